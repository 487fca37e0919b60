"""The decoder of Llama 2 and 3.x, TinyLlama, SmolLM2 (arXiv 2302.13971, 2307.09288, 2407.21783).

It maps embeddings to hidden states, so that sensors can take the place of words; `logits` maps
those to the vocabulary. Reference: transformers' `LlamaForCausalLM`.
"""
import functools
import math

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from .layers import RMSNorm, attend


@functools.cache
def rotary_frequencies(config):
    """Rotary embedding: radians per token for each pair of dimensions, (Dh/2,): theta^(-2i/Dh).

    Llama 3.1 divides low frequencies by `factor`, keeps high ones, and blends between them: from
    low_freq_factor to high_freq_factor waves in the first training context."""
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
    frequencies = 1.0 / config.rope_theta ** exponents
    if config.rope_scaling is None:
        return frequencies
    scaling = config.rope_scaling
    n_waves = scaling.original_max_positions * frequencies / (2 * math.pi)    # in that context
    low = scaling.low_freq_factor
    high = scaling.high_freq_factor
    keep = (n_waves - low) / (high - low)
    keep = keep.clamp(0, 1)                                       # 1: unchanged, 0: divided
    return frequencies * (keep + (1 - keep) / scaling.factor)


def rotary_angles(config, positions):
    """positions (B, T) int -> cos and sin, each (B, 1, T, Dh), float32: bfloat16 is too coarse."""
    frequencies = rotary_frequencies(config).to(positions.device)
    positions = positions[:, None, :, None].float()               # (B, 1, T, 1)
    angles = positions * frequencies                              # (B, 1, T, Dh/2)
    angles = torch.cat([angles, angles], -1)                      # (B, 1, T, Dh)
    return angles.cos(), angles.sin()


def rotate(x, cos, sin):
    """Turns each pair (x[i], x[i + Dh/2]) by its angle: half-split, no weight is permuted."""
    first, second = x.chunk(2, -1)
    turned = torch.cat([-second, first], -1)                      # by a quarter of a circle
    return (x * cos + turned * sin).to(x.dtype)


class KVCache:
    """Keys and values of a layer's tokens so far, allocated once: (B, Hkv, max_length, Dh)."""

    def __init__(self, config, batch_size, max_length, dtype, device):
        shape = (batch_size, config.n_kv_heads, max_length, config.head_dim)
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        self.length = 0                                           # tokens stored so far

    def extend(self, k, v):
        """Appends k, v (b, Hkv, T, Dh) to the first b rows -> all their keys and values."""
        b = k.shape[0]
        end = self.length + k.shape[2]
        self.keys[:b, :, self.length:end] = k
        self.values[:b, :, self.length:end] = v
        self.length = end
        return self.keys[:b, :, :end], self.values[:b, :, :end]

    def keep(self, rows):
        for stored in (self.keys, self.values):
            stored[:len(rows), :, :self.length] = stored[rows, :, :self.length]


class LlamaAttention(nn.Module):
    """Grouped-query attention: n_heads queries share n_kv_heads keys and values."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.backend = None                                       # see layers.use_backend
        d_queries = config.n_heads * config.head_dim
        d_keys = config.n_kv_heads * config.head_dim
        self.q_proj = nn.Linear(config.d_model, d_queries, bias=False)
        self.k_proj = nn.Linear(config.d_model, d_keys, bias=False)
        self.v_proj = nn.Linear(config.d_model, d_keys, bias=False)
        self.o_proj = nn.Linear(d_queries, config.d_model, bias=False)

    def forward(self, x, rotary, key_mask=None, cache=None):
        cos, sin = rotary
        heads = (self.config.n_heads, -1)
        kv_heads = (self.config.n_kv_heads, -1)
        q = self.q_proj(x).unflatten(-1, heads).transpose(1, 2)               # (B, H, T, Dh)
        k = self.k_proj(x).unflatten(-1, kv_heads).transpose(1, 2)            # (B, Hkv, T, Dh)
        v = self.v_proj(x).unflatten(-1, kv_heads).transpose(1, 2)            # (B, Hkv, T, Dh)
        q = rotate(q, cos, sin)
        k = rotate(k, cos, sin)
        if cache is not None:
            k, v = cache.extend(k, v)                             # (B, Hkv, Tk, Dh)
        out = attend(q, k, v, scale=self.config.head_dim ** -0.5, causal=True,
                     key_mask=key_mask, backend=self.backend)     # (B, H, T, Dh)
        return self.o_proj(out.transpose(1, 2).flatten(-2))       # (B, T, D)


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)) (arXiv 2002.05202)."""

    def __init__(self, config):
        super().__init__()
        self.gate_proj = nn.Linear(config.d_model, config.d_ff, bias=False)
        self.up_proj = nn.Linear(config.d_model, config.d_ff, bias=False)
        self.down_proj = nn.Linear(config.d_ff, config.d_model, bias=False)

    def forward(self, x):
        gate = F.silu(self.gate_proj(x))                          # (..., D_ff)
        return self.down_proj(gate * self.up_proj(x))


class LlamaBlock(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.attn_norm = RMSNorm(config.d_model, config.norm_eps)
        self.attn = LlamaAttention(config)
        self.mlp_norm = RMSNorm(config.d_model, config.norm_eps)
        self.mlp = SwiGLU(config)

    def forward(self, x, rotary, key_mask=None, cache=None, wanted=None):
        x = x + self.attn(self.attn_norm(x), rotary, key_mask, cache)         # (B, T, D)
        if wanted is not None:
            x = x[wanted]                                                     # (n, D)
        return x + self.mlp(self.mlp_norm(x))


class Llama(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.d_model)
        self.layers = nn.ModuleList(LlamaBlock(config) for _ in range(config.n_layers))
        self.norm = RMSNorm(config.d_model, config.norm_eps)
        if not config.tie_embeddings:
            self.lm_head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        self.gradient_checkpointing = False

    def forward(self, x, key_mask=None, caches=None, wanted=None):
        """Embeddings x (B, T, D) -> hidden states (B, T, D), ready for `logits`.

        key_mask (B, Tk) bool, False at padding, over the cached tokens and these; None if nothing
        is padded, or only on the right, where a causal model never looks. A token's position is
        the number of real tokens before it. caches: a KVCache for each layer, which this call
        extends by T tokens. wanted (B, T) bool: the n tokens whose hidden states are used; the
        others are dropped after the last attention, and the result is (n, D)."""
        T = x.shape[1]
        if key_mask is None:
            past = caches[0].length if caches else 0
            positions = torch.arange(past, past + T, device=x.device)[None]       # (1, T)
        else:
            n_real = key_mask.long().cumsum(-1)                   # (B, Tk)
            positions = (n_real - 1).clamp(min=0)[:, -T:]         # (B, T)
        rotary = rotary_angles(self.config, positions)
        recompute = self.gradient_checkpointing and torch.is_grad_enabled()
        caches = caches or [None] * len(self.layers)
        for layer, cache in zip(self.layers, caches, strict=True):
            is_last = layer is self.layers[-1]
            inputs = x, rotary, key_mask, cache, wanted if is_last else None
            if recompute:                                         # in the backward pass
                x = checkpoint(layer, *inputs, use_reentrant=False)
            elif cache:
                x = layer.forward(*inputs)                        # never compiled: shapes change
            else:
                x = layer(*inputs)
        return self.norm(x)

    @property
    def head_weight(self):
        """(V, D): the output head, which may be the embedding matrix."""
        if self.config.tie_embeddings:
            return self.embed_tokens.weight
        return self.lm_head.weight

    def logits(self, hidden):
        """Hidden states (..., D) -> next-token scores (..., V)."""
        return F.linear(hidden, self.head_weight)
