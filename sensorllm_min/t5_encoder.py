"""T5's encoder (arXiv 1910.10683), as Chronos uses it: sample ids in, feature vectors out.

It differs from a LLaMA block in three ways: attention is bidirectional, its scores are not divided
by sqrt(Dh), and positions enter as a learned bias on the distance between two samples, not by
rotating queries and keys. Reference: transformers' `T5EncoderModel`.
"""
import math

import torch
from torch import nn

from .layers import RMSNorm, attend, init_from_scratch


def distance_bucket(distance, n_buckets, max_distance):
    """The bucket (of n_buckets) of a relative distance (key position - query position, int).

    Half of the buckets are for keys after the query. In each half, the first half of the buckets
    hold one distance each; the others widen logarithmically up to max_distance and beyond."""
    half = n_buckets // 2
    exact = half // 2
    side = (distance > 0).long() * half
    distance = distance.abs()
    # log(distance / exact) / log(max_distance / exact) runs from 0 to 1 over the widening buckets
    ratio = distance.clamp(min=1).float() / exact
    fraction = torch.log(ratio) / math.log(max_distance / exact)
    wide = exact + (fraction * (half - exact)).long()
    wide = wide.clamp(max=half - 1)
    return side + torch.where(distance < exact, distance, wide)


class RelativeBias(nn.Module):
    """A learned number for each (distance bucket, head), added to the scores of every block."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.bias = nn.Embedding(config.n_buckets, config.n_heads)

    def forward(self, n_steps):
        n_stored = math.ceil(n_steps / 16) * 16                   # a GPU loads 16 bytes at once
        steps = torch.arange(n_stored, device=self.bias.weight.device)
        distance = steps[None, :] - steps[:, None]                # (S, S)
        buckets = distance_bucket(distance, self.config.n_buckets, self.config.max_distance)
        bias = self.bias(buckets)                                 # (S, S, H)
        bias = bias.permute(2, 0, 1)[None].contiguous()           # (1, H, S, S)
        return bias[:, :, :n_steps, :n_steps]


class T5Attention(nn.Module):
    def __init__(self, config):
        super().__init__()
        inner = config.n_heads * config.head_dim
        self.heads = (config.n_heads, -1)
        self.backend = None                                   # for `attend`; see layers.use_backend
        self.q_proj = nn.Linear(config.d_model, inner, bias=False)
        self.k_proj = nn.Linear(config.d_model, inner, bias=False)
        self.v_proj = nn.Linear(config.d_model, inner, bias=False)
        self.o_proj = nn.Linear(inner, config.d_model, bias=False)

    def forward(self, x, mask, bias):
        q = self.q_proj(x).unflatten(-1, self.heads).transpose(1, 2)          # (B, H, S, Dh)
        k = self.k_proj(x).unflatten(-1, self.heads).transpose(1, 2)
        v = self.v_proj(x).unflatten(-1, self.heads).transpose(1, 2)
        # scale 1: T5 does not divide its scores by sqrt(Dh)
        out = attend(q, k, v, scale=1.0, key_mask=mask, bias=bias, backend=self.backend)
        return self.o_proj(out.transpose(1, 2).flatten(-2))       # (B, S, D)


class T5FeedForward(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.up_proj = nn.Linear(config.d_model, config.d_ff, bias=False)
        self.down_proj = nn.Linear(config.d_ff, config.d_model, bias=False)

    def forward(self, x):
        hidden = self.up_proj(x).relu()                           # (..., D_ff)
        return self.down_proj(hidden)


class T5Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.attn_norm = RMSNorm(config.d_model, config.norm_eps)
        self.attn = T5Attention(config)
        self.mlp_norm = RMSNorm(config.d_model, config.norm_eps)
        self.mlp = T5FeedForward(config)

    def forward(self, x, mask, bias):
        x = x + self.attn(self.attn_norm(x), mask, bias)
        return x + self.mlp(self.mlp_norm(x))


class T5Encoder(nn.Module):
    """ids (B, S) int, mask (B, S) bool, True where a sample was observed -> features (B, S, D)."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.d_model)
        self.relative_bias = RelativeBias(config)
        self.layers = nn.ModuleList(T5Block(config) for _ in range(config.n_layers))
        self.norm = RMSNorm(config.d_model, config.norm_eps)

    def forward(self, ids, mask):
        x = self.embed_tokens(ids)                                # (B, S, D)
        bias = self.relative_bias(ids.shape[1])                   # (1, H, S, S), for all blocks
        for layer in self.layers:
            x = layer(x, mask, bias)
        return self.norm(x)

    def init_from_scratch(self, centers, n_special_tokens):
        """Initialises at random, except for two things that are slow to learn.

        Bin embeddings start as smooth functions of their centers (n_bins,), so that neighbouring
        bins start alike: independent rows never learn that 2.31 is close to 2.32. Heads start
        local: half of them attend to the previous sample, half to the next one; half of each
        sharply, half broadly. A slope is a difference of neighbours."""
        init_from_scratch(self)
        for layer in self.layers:                                 # T5 does not scale its scores
            layer.attn.q_proj.weight.data *= self.config.head_dim ** -0.5

        waves = torch.logspace(math.log10(2), math.log10(20), self.config.d_model // 2)
        angles = 2 * math.pi * centers[:, None] / waves           # (n_bins, D/2)
        smooth = torch.cat([angles.sin(), angles.cos()], -1)      # (n_bins, D)
        first = n_special_tokens + 1                              # the id of the first bin
        self.embed_tokens.weight.data[first:first + len(centers)] = smooth

        steps = torch.arange(self.config.n_buckets // 2)
        distance = torch.cat([-steps, steps])                     # as if each bucket held one
        for head in range(self.config.n_heads):
            neighbour = (-1, 1)[head % 2]
            slope = (4.0, 0.5)[head % 4 // 2]
            self.relative_bias.bias.weight.data[:, head] = -slope * (distance - neighbour).abs()
