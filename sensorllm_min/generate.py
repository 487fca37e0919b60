"""Decoding with a key-value cache: prompts of unequal length in one batch, greedy or sampled, token by token."""
from dataclasses import dataclass

import numpy as np
import torch

from .llama import KVCache


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. The original evaluates with temperature 0.6, top_k 50, top_p 0.9."""
    temperature: float = 0.0            # 0: greedy, always the likeliest token
    top_k: int = 0                      # only so many of the likeliest; 0: all
    top_p: float = 1.0                  # only the fewest likeliest whose probabilities reach top_p together
    seed: int = 0


GREEDY = Sampling()


def token_probabilities(logits, sampling):
    """logits (B, V) -> the distribution a token is drawn from, (B, V) float32: tempered, then cut to top_k, then to top_p."""
    logits = logits.float() / sampling.temperature
    if 0 < sampling.top_k < logits.shape[-1]:
        least = logits.topk(sampling.top_k).values[:, -1:]                    # (B, 1)
        logits = logits.masked_fill(logits < least, float("-inf"))
    if sampling.top_p < 1:
        ranked, tokens = logits.sort(-1, descending=True)
        probs = ranked.softmax(-1)
        before = probs.cumsum(-1) - probs                                     # of all likelier tokens: 0 for the first
        ranked = ranked.masked_fill(before >= sampling.top_p, float("-inf"))
        logits = torch.empty_like(logits).scatter_(-1, tokens, ranked)
    return logits.softmax(-1)


def next_tokens(logits, sampling, streams):
    """logits (B, V) -> (B,) token ids. streams: a numpy generator for each row, from which it draws one number."""
    if sampling.temperature == 0:
        return logits.argmax(-1)
    reached = token_probabilities(logits, sampling).double().cumsum(-1)       # (B, V): where each token's share ends
    drawn = torch.tensor([[stream.random()] for stream in streams], dtype=torch.float64, device=logits.device)
    return (reached <= drawn * reached[:, -1:]).sum(-1).clamp(max=logits.shape[-1] - 1)


@torch.no_grad()
def stream(llm, embeds, mask, stop_ids, max_new_tokens, sampling=GREEDY, places=None):
    """Continues prompts; yields (row, token id) as they come, until each row met a stop token or max_new_tokens.

    embeds (B, T, D): prompts as embeddings, padded on the left, so that all of them end at the same place;
    mask (B, T) bool, False at padding. The prompts run once; then each step feeds one token a row and the cache.
    places: a whole number for each row (default: its index). With the seed it fixes what a row draws, so that a row
    says the same in any batch.
    """
    B, T, _ = embeds.shape
    if max_new_tokens == 0:
        return
    device = embeds.device.type                                               # under autocast keys come in its dtype
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else embeds.dtype
    cache = KVCache(llm.config, B, T + max_new_tokens, dtype, embeds.device)
    padded = not mask.all()
    mask = torch.cat([mask, mask.new_ones(B, max_new_tokens)], 1)             # (B, T + max_new_tokens)
    streams = [np.random.default_rng([sampling.seed, place]) for place in places or range(B)]
    rows = list(range(B))                                                     # which row stands where in the batch
    x = embeds
    for step in range(max_new_tokens):
        seen = mask[:, :T + step] if padded else None
        hidden = llm(x, seen, cache)[:, -1]                                   # (b, D): b rows still run
        token = next_tokens(llm.logits(hidden), sampling, streams)            # (b,)
        ids = token.tolist()
        yield from ((row, index) for row, index in zip(rows, ids) if index not in stop_ids)
        if any(index in stop_ids for index in ids):                           # ended rows cost nothing from here on
            kept = cache.keep([place for place, index in enumerate(ids) if index not in stop_ids])
            if not kept:
                return
            rows, streams = [rows[place] for place in kept], [streams[place] for place in kept]
            token, mask = token[kept], mask[kept]
        x = llm.embed_tokens(token)[:, None].to(embeds.dtype)                 # (b, 1, D)


def generate(llm, embeds, mask, stop_ids, max_new_tokens, sampling=GREEDY, places=None):
    """`stream`, collected -> a list of id lists, stop tokens left out. One shorter than max_new_tokens ended by itself."""
    answers = [[] for _ in embeds]
    for row, token in stream(llm, embeds, mask, set(stop_ids), max_new_tokens, sampling, places):
        answers[row].append(token)
    return answers
