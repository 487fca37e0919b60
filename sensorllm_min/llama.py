"""The decoder of Llama 2 and 3.x, TinyLlama, SmolLM2 (arXiv 2302.13971, 2307.09288, 2407.21783).

It maps embeddings to hidden states, so that sensors can take the place of words; `logits` maps
those to the vocabulary. Reference: transformers' `LlamaForCausalLM`.
"""
import math
from dataclasses import dataclass

import torch
from torch import nn

from .efficient import Linear, Packing, gated_silu, linear, packed_blocks, run_block
from .layers import RMSNorm, attend, init_from_scratch, join_heads, split_heads

# ---- rotary embedding: a token's position turns its queries and keys ----


def rotary_frequencies(config):
    """Radians a token for each pair of dimensions: theta^(-2i/Dh), i < Dh/2 -> (Dh/2,) float32.

    Llama 3.1 (rope_scaling) slows down the waves longer than its first training context by
    `factor`, keeps the short ones, and blends between them: wavelengths from original/high to
    original/low (reference: transformers' "llama3").
    """
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
    frequencies = 1.0 / config.rope_theta ** exponents
    if config.rope_scaling is None:
        return frequencies
    scaling = config.rope_scaling
    # full waves in the first context
    turns = scaling.original_max_positions * frequencies / (2 * math.pi)
    keep = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    keep = keep.clamp(0, 1)                                 # 1: unchanged, 0: slowed down by factor
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


# ---- the cache of generation ----

class KVCache:
    """Keys and values of the tokens so far, allocated once: (n_layers, B, Hkv, max_length, Dh)."""

    def __init__(self, config, batch_size, max_length, dtype, device):
        shape = (config.n_layers, batch_size, config.n_kv_heads, max_length, config.head_dim)
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        self.length = 0                                           # tokens that every layer holds

    def extend(self, layer, k, v):
        """Appends k, v (b, Hkv, T, Dh) to a layer's first b rows -> all their keys and values."""
        b, end = k.shape[0], self.length + k.shape[2]
        self.keys[layer, :b, :, self.length:end] = k
        self.values[layer, :b, :, self.length:end] = v
        return self.keys[layer, :b, :, :end], self.values[layer, :b, :, :end]

    def keep(self, rows):
        """Keeps these rows alone (ascending), at the front -> the rows in their new order.

        In place: the last ones move into the holes, and nothing is allocated.
        [0, 2, 3] of five -> row 3 moves into hole 1: [0, 3, 2].
        """
        holes = [place for place in range(len(rows)) if place not in rows]
        order = [row for row in rows if row < len(rows)]
        moving = [row for row in rows if row >= len(rows)]
        for hole, row in zip(holes, moving):
            for stored in (self.keys, self.values):
                stored[:, hole, :, :self.length] = stored[:, row, :, :self.length]
            order.insert(hole, row)
        return order


# ---- the network ----

@dataclass
class Context:
    """What every block needs beside its input."""
    cos: torch.Tensor                   # (B or 1, 1, T, Dh)
    sin: torch.Tensor
    key_mask: torch.Tensor | None       # (B, Tk) bool, False at padding
    packing: Packing | None = None      # efficient.py; without it x is (B, T, D) everywhere


class LlamaAttention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.backend = None                                   # for `attend`; see layers.use_backend
        self.q_proj = Linear(config.d_model, config.n_heads * config.head_dim)
        self.k_proj = Linear(config.d_model, config.n_kv_heads * config.head_dim)
        self.v_proj = Linear(config.d_model, config.n_kv_heads * config.head_dim)
        self.o_proj = Linear(config.n_heads * config.head_dim, config.d_model)

    def forward(self, x, context, cache=None, layer=None):
        return self.o_proj(self.mix(x, context, cache, layer))

    def mix(self, x, context, cache=None, layer=None):
        """What each token takes from those it sees: x (B, T, D) -> (B, T, H*Dh), before o_proj."""
        packing = context.packing
        q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)          # (B, T, H*Dh)
        if packing is not None:
            q, k, v = packing.unpack(q), packing.unpack(k), packing.unpack(v)
        q = rotate(split_heads(q, self.config.n_heads), context.cos, context.sin)    # (B, H, T, Dh)
        # (B, Hkv, T, Dh)
        k = rotate(split_heads(k, self.config.n_kv_heads), context.cos, context.sin)
        v = split_heads(v, self.config.n_kv_heads)                # (B, Hkv, T, Dh)
        if cache is not None:
            k, v = cache.extend(layer, k, v)                      # (B, Hkv, Tk, Dh)
        out = attend(q, k, v, scale=self.config.head_dim ** -0.5, causal=True,
                     key_mask=context.key_mask, backend=self.backend)
        out = join_heads(out)                                     # (B, T, H*Dh)
        return out if packing is None else packing.pack(out)


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)) (arXiv 2002.05202)."""

    def __init__(self, config):
        super().__init__()
        self.gate_proj = Linear(config.d_model, config.d_ff)
        self.up_proj = Linear(config.d_model, config.d_ff)
        self.down_proj = Linear(config.d_ff, config.d_model)

    def forward(self, x):
        return self.down_proj(gated_silu(self.gate_proj(x), self.up_proj(x)))


class LlamaBlock(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.attn_norm = RMSNorm(config.d_model, config.norm_eps)
        self.attn = LlamaAttention(config)
        self.mlp_norm = RMSNorm(config.d_model, config.norm_eps)
        self.mlp = SwiGLU(config)

    def forward(self, x, context, cache=None, layer=None):
        x = x + self.attn(self.attn_norm(x), context, cache, layer)
        return x + self.mlp(self.mlp_norm(x))


class Llama(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.d_model)
        self.layers = nn.ModuleList(LlamaBlock(config) for _ in range(config.n_layers))
        self.norm = RMSNorm(config.d_model, config.norm_eps)
        if not config.tie_embeddings:
            self.lm_head = Linear(config.d_model, config.vocab_size)
        self.gradient_checkpointing = False                       # see efficient.run_block
        self.compiled = []                                        # see efficient.compile_blocks

    def forward(self, x, key_mask=None, cache=None, packing=None):
        """Embeddings x (B, T, D) -> hidden states (B, T, D), ready for `logits`.

        key_mask (B, Tk) bool, False at padding, over the cached tokens and these. None where
        nothing is padded, or only on the right: a causal model never looks there. A token's
        position counts the real tokens before it. cache: a KVCache, which this call extends by T
        tokens. packing: for training, an efficient.Packing; the result is then (n, D), of the n
        wanted tokens.
        """
        past = 0 if cache is None else cache.length
        if key_mask is None:
            positions = torch.arange(past, past + x.shape[1], device=x.device)[None]      # (1, T)
        else:
            positions = (key_mask.long().cumsum(-1) - 1).clamp(min=0)     # (B, Tk)
            positions = positions[:, -x.shape[1]:]                # (B, T)
        context = Context(*rotary_angles(self.config, positions), key_mask, packing)
        if packing is not None:
            return self.norm(packed_blocks(self, x, context))
        for index, block in enumerate(self.layers):
            x = run_block(self, block, x, context, cache, index)
        if cache is not None:
            cache.length += x.shape[1]
        return self.norm(x)

    @property
    def head_weight(self):
        """(V, D): the output head, which may be the embedding matrix."""
        return (self.embed_tokens if self.config.tie_embeddings else self.lm_head).weight

    def logits(self, hidden):
        """Hidden states (..., D) -> next-token scores (..., V)."""
        return linear(hidden, self.head_weight)

    def init_from_scratch(self):
        init_from_scratch(self, self.config.n_layers)
