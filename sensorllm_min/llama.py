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

from .layers import RMSNorm, attend, init_from_scratch

# ---- rotary embedding: a token's position turns its queries and keys ----


@functools.cache
def rotary_frequencies(config):
    """Radians per token for each pair of dimensions: theta^(-2i/Dh), i < Dh/2 -> (Dh/2,) float32.

    Llama 3.1 (rope_scaling) divides by `factor` the frequencies whose wavelength exceeds its first
    training context, keeps the high ones, and blends between them: wavelengths from original/high
    to original/low (reference: transformers' "llama3").
    """
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
    frequencies = 1.0 / config.rope_theta ** exponents
    if config.rope_scaling is None:
        return frequencies
    scaling = config.rope_scaling
    n_waves = scaling.original_max_positions * frequencies / (2 * math.pi)    # in that context
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    keep = ((n_waves - low) / (high - low)).clamp(0, 1)           # 1: unchanged, 0: divided
    return frequencies * (keep + (1 - keep) / scaling.factor)


def rotary_angles(config, positions):
    """positions (B, T) int -> cos and sin, each (B, 1, T, Dh), in float32.

    In bfloat16 the angles are wrong after a few hundred tokens.
    """
    frequencies = rotary_frequencies(config).to(positions.device)
    angles = positions[:, None, :, None].float() * frequencies    # (B, 1, T, Dh/2)
    angles = torch.cat([angles, angles], -1)                      # (B, 1, T, Dh)
    return angles.cos(), angles.sin()


def rotate(x, cos, sin):
    """Turns each pair (x[i], x[i + Dh/2]) by its angle: half-split, no weight is permuted."""
    first, second = x.chunk(2, -1)
    return (x * cos + torch.cat([-second, first], -1) * sin).to(x.dtype)


# ---- the key-value cache of generation ----

class KVCache:
    """Keys and values of a layer's tokens so far, allocated once: (B, Hkv, max_length, Dh)."""

    def __init__(self, config, batch_size, max_length, dtype, device):
        shape = (batch_size, config.n_kv_heads, max_length, config.head_dim)
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        self.length = 0                                           # tokens stored so far

    def extend(self, k, v):
        """Appends k, v (b, Hkv, T, Dh) to the first b rows -> all their keys and values."""
        b, end = k.shape[0], self.length + k.shape[2]
        self.keys[:b, :, self.length:end] = k
        self.values[:b, :, self.length:end] = v
        self.length = end
        return self.keys[:b, :, :end], self.values[:b, :, :end]

    def keep(self, rows):
        """Moves these rows to the front, in this order, and drops the others."""
        for stored in (self.keys, self.values):
            stored[:len(rows), :, :self.length] = stored[rows, :, :self.length]


# ---- the network ----

class LlamaAttention(nn.Module):
    """Grouped-query attention: n_heads queries share n_kv_heads keys and values."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.backend = None                                       # see layers.use_backend
        d_queries, d_keys = (n * config.head_dim for n in (config.n_heads, config.n_kv_heads))
        self.q_proj = nn.Linear(config.d_model, d_queries, bias=False)
        self.k_proj = nn.Linear(config.d_model, d_keys, bias=False)
        self.v_proj = nn.Linear(config.d_model, d_keys, bias=False)
        self.o_proj = nn.Linear(d_queries, config.d_model, bias=False)

    def forward(self, x, rotary, key_mask=None, cache=None):
        cos, sin = rotary
        heads, kv_heads = (self.config.n_heads, -1), (self.config.n_kv_heads, -1)
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
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


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
        others are dropped after the last attention, and the result is (n, D).
        """
        if key_mask is None:
            past = caches[0].length if caches else 0
            positions = torch.arange(past, past + x.shape[1], device=x.device)[None]      # (1, T)
        else:
            positions = (key_mask.long().cumsum(-1) - 1).clamp(min=0)                     # (B, Tk)
            positions = positions[:, -x.shape[1]:]                                        # (B, T)
        rotary = rotary_angles(self.config, positions)
        recompute = self.gradient_checkpointing and torch.is_grad_enabled()
        for index, layer in enumerate(self.layers):
            inputs = [x, rotary, key_mask, caches[index] if caches else None]
            if index == len(self.layers) - 1:
                inputs.append(wanted)
            if recompute:                                         # in the backward pass
                x = checkpoint(layer, *inputs, use_reentrant=False)
            elif caches:
                x = layer.forward(*inputs)                        # never compiled: shapes change
            else:
                x = layer(*inputs)
        return self.norm(x)

    @property
    def head_weight(self):
        """(V, D): the output head, which may be the embedding matrix."""
        return (self.embed_tokens if self.config.tie_embeddings else self.lm_head).weight

    def logits(self, hidden):
        """Hidden states (..., D) -> next-token scores (..., V)."""
        return F.linear(hidden, self.head_weight)

    def init_from_scratch(self):
        init_from_scratch(self, self.config.n_layers)
