"""The LLaMA decoder (arXiv 2302.13971, 2307.09288, 2407.21783): Llama 2 and 3.x, TinyLlama, SmolLM2 are all this.

It maps embeddings to hidden states, so that sensor features can take the place of words; `logits` maps those to the
vocabulary. Reference: transformers' `LlamaForCausalLM`.
"""
import math

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from .layers import Linear, RMSNorm, attend, init_from_scratch, join_heads, linear, split_heads


def rotary_frequencies(config):
    """Radians a token, one for each pair of dimensions: theta^(-2i/Dh), i < Dh/2 -> (Dh/2,) float32.

    Llama 3.1 (rope_scaling) slows down the waves longer than its first training context by `factor`, keeps the
    short ones, and blends between: wavelengths original/high .. original/low (reference: transformers' "llama3").
    """
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
    frequencies = 1.0 / config.rope_theta ** exponents
    if config.rope_scaling is None:
        return frequencies
    scaling = config.rope_scaling
    turns = scaling.original_max_positions * frequencies / (2 * math.pi)      # full waves within the first context
    keep = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    keep = keep.clamp(0, 1)                                                   # 1: as it was, 0: slowed down wholly
    return frequencies * (keep + (1 - keep) / scaling.factor)


def rotary_angles(config, positions):
    """positions (B, T) int -> cos and sin, each (B, 1, T, Dh), in float32: bf16 angles are off after a few hundred."""
    angles = positions[:, None, :, None].float() * rotary_frequencies(config).to(positions.device)  # (B, 1, T, Dh/2)
    angles = torch.cat([angles, angles], -1)
    return angles.cos(), angles.sin()


def rotate(x, cos, sin):
    """Turn each pair (x[i], x[i + Dh/2]) by its angle: the half-split layout, so that no weight has to be permuted."""
    first, second = x.chunk(2, -1)
    return (x * cos + torch.cat([-second, first], -1) * sin).to(x.dtype)


class KVCache:
    """Keys and values of the tokens so far, allocated once: (n_layers, B, Hkv, max_length, Dh)."""

    def __init__(self, config, batch_size, max_length, dtype, device):
        shape = (config.n_layers, batch_size, config.n_kv_heads, max_length, config.head_dim)
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        self.length = 0                                                       # tokens that every layer holds

    def extend(self, layer, k, v):
        """Writes k, v (b, Hkv, T, Dh) behind what layer holds of the first b rows -> all of their keys and values."""
        b, end = k.shape[0], self.length + k.shape[2]
        self.keys[layer, :b, :, self.length:end] = k
        self.values[layer, :b, :, self.length:end] = v
        return self.keys[layer, :b, :, :end], self.values[layer, :b, :, :end]

    def keep(self, rows):
        """Goes on with these rows alone (ascending), at the front -> the rows in their new order.

        In place: the last ones move into the holes, nothing is allocated.
        """
        holes = [place for place in range(len(rows)) if place not in rows]
        order = [place for place in rows if place < len(rows)]
        for hole, row in zip(holes, [row for row in rows if row >= len(rows)]):
            for stored in (self.keys, self.values):
                stored[:, hole, :, :self.length] = stored[:, row, :, :self.length]
            order.insert(hole, row)
        return order


class Packing:
    """Rows of unequal length without their padding: (B, T, ...) <-> (N, ...), N the real tokens of all rows.

    All but attention treats each token alone, and so need not see padding; attention gets the rows back.
    """

    def __init__(self, mask):
        self.shape = mask.shape                                               # (B, T)
        self.index = mask.flatten().nonzero()[:, 0]                           # (N,)

    def pack(self, x):
        return x.flatten(0, 1).index_select(0, self.index)                    # (N, ...)

    def unpack(self, x):
        rows = x.new_zeros(self.shape.numel(), *x.shape[1:])                  # zeros at padding
        return rows.index_copy(0, self.index, x).unflatten(0, self.shape)     # (B, T, ...)


class LlamaAttention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.backend = None                                                   # of `attend`; see layers.use_backend
        self.q_proj = Linear(config.d_model, config.n_heads * config.head_dim)
        self.k_proj = Linear(config.d_model, config.n_kv_heads * config.head_dim)
        self.v_proj = Linear(config.d_model, config.n_kv_heads * config.head_dim)
        self.o_proj = Linear(config.n_heads * config.head_dim, config.d_model)

    def forward(self, x, cos, sin, mask, cache, layer, packing):
        q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)                      # (B, T, H*Dh), or (N, H*Dh)
        if packing is not None:
            q, k, v = packing.unpack(q), packing.unpack(k), packing.unpack(v)         # (B, T, H*Dh)
        q = rotate(split_heads(q, self.config.n_heads), cos, sin)                     # (B, H, T, Dh)
        k = rotate(split_heads(k, self.config.n_kv_heads), cos, sin)                  # (B, Hkv, T, Dh)
        v = split_heads(v, self.config.n_kv_heads)
        if cache is not None:
            k, v = cache.extend(layer, k, v)                                          # (B, Hkv, Tk, Dh)
        out = attend(q, k, v, scale=self.config.head_dim ** -0.5, causal=True, key_mask=mask, backend=self.backend)
        out = join_heads(out)                                                         # (B, T, H*Dh)
        return out if packing is None else packing.pack(out)                          # or (N, H*Dh)


class GatedSilu(torch.autograd.Function):
    """silu(gate) * up, keeping gate and up for the backward pass; autograd would keep silu(gate) as well.

    silu(g) = g s with s = sigmoid(g), so silu'(g) = s (1 + g - g s).
    """

    @staticmethod
    def forward(ctx, gate, up):
        ctx.save_for_backward(gate, up)
        return nn.functional.silu(gate) * up

    @staticmethod
    def backward(ctx, d_out):
        gate, up = ctx.saved_tensors
        s = gate.sigmoid()
        silu = gate * s
        return (1 + gate - silu).mul_(s).mul_(up).mul_(d_out), silu.mul_(d_out)


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)) (arXiv 2002.05202)."""

    def __init__(self, config):
        super().__init__()
        self.gate_proj = Linear(config.d_model, config.d_ff)
        self.up_proj = Linear(config.d_model, config.d_ff)
        self.down_proj = Linear(config.d_ff, config.d_model)

    def forward(self, x):
        return self.down_proj(GatedSilu.apply(self.gate_proj(x), self.up_proj(x)))


class LlamaBlock(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.attn_norm = RMSNorm(config.d_model, config.norm_eps)
        self.attn = LlamaAttention(config)
        self.mlp_norm = RMSNorm(config.d_model, config.norm_eps)
        self.mlp = SwiGLU(config)

    def forward(self, x, cos, sin, mask, cache, layer, packing, wanted):
        seen = self.attn(self.attn_norm(x), cos, sin, mask, cache, layer, packing)
        if wanted is not None:
            x, seen = x[wanted], seen[wanted]                                 # in the last block: nobody reads the rest
        x = x + self.attn.o_proj(seen)
        return x + self.mlp(self.mlp_norm(x))


class Llama(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.gradient_checkpointing = False                                   # recompute each block in the backward pass
        self.compiled = []                                                    # the blocks, compiled; see compile_blocks
        self.embed_tokens = nn.Embedding(config.vocab_size, config.d_model)
        self.layers = nn.ModuleList(LlamaBlock(config) for _ in range(config.n_layers))
        self.norm = RMSNorm(config.d_model, config.norm_eps)
        if not config.tie_embeddings:
            self.lm_head = Linear(config.d_model, config.vocab_size)

    def forward(self, x, mask=None, cache=None, real=None, wanted=None):
        """Embeddings x (B, T, D) -> hidden states (B, T, D), ready for `logits`; or (n, D) of the n `wanted` tokens.

        mask (B, Tk) bool, False at padding, over the cached tokens and these. None where nothing is padded, or
        only on the right: a causal model never looks there. A token's position counts the real tokens before it.
        cache: a KVCache, which this call extends by T tokens.
        real, wanted (B, T) bool, both or none, for training: nothing is computed for what is not real (padding on the
        right), and behind the last attention nothing but for what is wanted.
        """
        past = 0 if cache is None else cache.length
        if mask is None:
            positions = torch.arange(past, past + x.shape[1], device=x.device)[None]          # (1, T)
        else:
            positions = (mask.long().cumsum(-1) - 1).clamp(min=0)[:, -x.shape[1]:]            # (B, T)
        cos, sin = rotary_angles(self.config, positions)
        packing = None if real is None else Packing(real)
        if packing is not None:
            x, wanted = packing.pack(x), packing.pack(wanted).nonzero()[:, 0]         # (N, D), (n,)
        for index, layer in enumerate(self.compiled if packing is not None and self.compiled else self.layers):
            only = wanted if index == len(self.layers) - 1 else None
            if self.gradient_checkpointing and torch.is_grad_enabled():
                x = checkpoint(layer, x, cos, sin, mask, None, index, packing, only, use_reentrant=False)
            else:
                x = layer(x, cos, sin, mask, cache, index, packing, only)
        if cache is not None:
            cache.length += x.shape[1]
        return self.norm(x)

    def compile_blocks(self):
        """Has torch.compile fuse each block's elementwise operations, in training and validation, not in generation."""
        self.compiled = [torch.compile(layer, dynamic=True) for layer in self.layers]

    @property
    def head_weight(self):
        """(V, D): the output head, which may be the embedding matrix."""
        return (self.embed_tokens if self.config.tie_embeddings else self.lm_head).weight

    def logits(self, hidden):
        """Hidden states (..., D) -> next-token scores (..., V)."""
        return linear(hidden, self.head_weight)

    def init_from_scratch(self):
        init_from_scratch(self, self.config.n_layers)
