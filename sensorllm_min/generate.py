"""Greedy decoding with a key-value cache, for prompts of unequal length in one batch."""
import torch

from .llama import KVCache


@torch.no_grad()
def generate(llm, embeds, mask, stop_ids, max_new_tokens):
    """Continues prompts until a stop token or max_new_tokens -> a list of id lists, stop tokens left out.

    embeds (B, T, D): prompts as embeddings, padded on the left, so that all of them end at the same place;
    mask (B, T) bool, False at padding. The prompt runs once; then each step feeds one token and the cache.
    """
    B, T, _ = embeds.shape
    device = embeds.device.type                                               # under autocast keys come in its dtype
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else embeds.dtype
    cache = KVCache(llm.config, B, T + max_new_tokens, dtype, embeds.device)
    stops = torch.tensor(sorted(stop_ids), device=embeds.device)
    running = torch.ones(B, dtype=torch.bool, device=embeds.device)
    steps = []
    hidden = llm(embeds, mask, cache)[:, -1]                                  # (B, D)
    for _ in range(max_new_tokens):
        token = llm.logits(hidden).argmax(-1)                                 # (B,)
        running = running & ~torch.isin(token, stops)
        steps.append(torch.where(running, token, -1))
        if not running.any() or len(steps) == max_new_tokens:
            break
        mask = torch.cat([mask, running.new_ones(B, 1)], 1)
        hidden = llm(llm.embed_tokens(token)[:, None].to(embeds.dtype), mask, cache)[:, -1]
    if not steps:
        return [[] for _ in range(B)]
    return [[token for token in row if token >= 0] for row in torch.stack(steps, 1).tolist()]
