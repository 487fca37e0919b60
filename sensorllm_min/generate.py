"""Decoding with a key-value cache: prompts of unequal length in one batch, greedy or sampled."""
from dataclasses import dataclass

import numpy as np
import torch

from .llama import KVCache


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. The original uses temperature 0.6, top_k 50, top_p 0.9."""
    temperature: float = 0.0            # 0: greedy, always the likeliest token
    top_k: int = 0                      # only this many of the likeliest tokens; 0: all
    top_p: float = 1.0                  # only the fewest likeliest that reach top_p together
    seed: int = 0
    row_seeds: tuple | None = None      # one for each row, so that a row draws alike in any batch


GREEDY = Sampling()


def token_probabilities(logits, sampling):
    """Logits (B, V) -> probabilities (B, V) float32: tempered, then cut to top_k, then to top_p."""
    logits = logits.float() / sampling.temperature
    if 0 < sampling.top_k < logits.shape[-1]:
        least = logits.topk(sampling.top_k).values[:, -1:]        # (B, 1)
        logits = logits.masked_fill(logits < least, float("-inf"))
    if sampling.top_p < 1:
        ranked, tokens = logits.sort(-1, descending=True)
        probs = ranked.softmax(-1)
        before = probs.cumsum(-1) - probs                         # the sum over likelier tokens
        ranked = ranked.masked_fill(before >= sampling.top_p, float("-inf"))
        logits = torch.empty_like(logits).scatter_(-1, tokens, ranked)
    return logits.softmax(-1)


def next_tokens(logits, sampling, generators):
    """Logits (B, V) -> token ids (B,). Each row draws one number from its numpy generator."""
    if sampling.temperature == 0:
        return logits.argmax(-1)
    probs = token_probabilities(logits, sampling)
    if probs.device.type == "mps":                                # it lacks float64
        probs = probs.cpu()
    reached = probs.double().cumsum(-1)                           # (B, V): the end of each token
    drawn = [[generator.random()] for generator in generators]
    drawn = torch.tensor(drawn, dtype=torch.float64, device=probs.device)         # (B, 1)
    drawn = drawn * reached[:, -1:]                               # rounding: not quite 1
    tokens = (reached <= drawn).sum(-1)
    tokens = tokens.clamp(max=logits.shape[-1] - 1)
    return tokens.to(logits.device)


@torch.no_grad()
def stream(llm, embeds, mask, stop_ids, max_new_tokens, sampling=GREEDY):
    """Continues prompts; yields (row, token id) until each row met a stop token or max_new_tokens.

    embeds (B, T, D): prompts as embeddings, padded on the left, so that all of them end together;
    mask (B, T) bool, False at padding. The prompts run once; then each step feeds one token a row.
    """
    if max_new_tokens == 0:
        return
    B, T, _ = embeds.shape
    device = embeds.device
    dtype = embeds.dtype
    if torch.is_autocast_enabled(device.type):                    # keys then have its dtype
        dtype = torch.get_autocast_dtype(device.type)
    caches = [KVCache(llm.config, B, T + max_new_tokens, dtype, device) for _ in llm.layers]
    is_padded = not mask.all()
    mask = torch.cat([mask, mask.new_ones(B, max_new_tokens)], 1)         # (B, T + max_new_tokens)
    row_seeds = sampling.row_seeds or range(B)
    generators = [np.random.default_rng([sampling.seed, row_seed]) for row_seed in row_seeds]
    rows = list(range(B))                                         # rows that still run, b of them
    x = embeds
    for step in range(max_new_tokens):
        key_mask = mask[:, :T + step] if is_padded else None
        hidden = llm(x, key_mask, caches)[:, -1]                  # (b, D)
        tokens = next_tokens(llm.logits(hidden), sampling, generators)            # (b,)
        running = []                                              # indices into rows
        for index, (row, token) in enumerate(zip(rows, tokens.tolist())):
            if token not in stop_ids:
                yield row, token
                running.append(index)
        if not running:
            return
        if len(running) < len(rows):                              # finished rows cost nothing more
            for cache in caches:
                cache.keep(running)
            rows = [rows[index] for index in running]
            generators = [generators[index] for index in running]
            tokens = tokens[running]
            mask = mask[running]
        x = llm.embed_tokens(tokens[:, None]).to(embeds.dtype)    # (b, 1, D)


def generate(llm, embeds, mask, stop_ids, max_new_tokens, sampling=GREEDY):
    """`stream`, collected: a list of ids for each row, without the stop token that ended it."""
    answers = [[] for _ in embeds]
    for row, token in stream(llm, embeds, mask, set(stop_ids), max_new_tokens, sampling):
        answers[row].append(token)
    return answers
