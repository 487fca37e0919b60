"""What both networks share: the norm, attention, and initial weights."""
import functools
import importlib.util
import os

import torch
import torch.nn.functional as F
from torch import nn

from .files import InputError


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension, in float32 (arXiv 1910.07467).
    x (..., D), weight (D,) -> (..., D) in x's dtype. T5 calls it "layer norm"."""

    def __init__(self, width, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x):
        x32 = x.float()
        mean_square = x32.square().mean(-1, keepdim=True)
        normed = x32 * torch.rsqrt(mean_square + self.eps)
        return self.weight * normed.to(x.dtype)         # rounded, then scaled: as the references do


def allowed_keys(n_queries, n_keys, causal, key_mask, device):
    """The keys that a query may see, bool (B or 1, 1, Tq or 1, Tk); None: all. See `attend`."""
    allowed = None
    if key_mask is not None:
        allowed = key_mask[:, None, None, :]                      # (B, 1, 1, Tk)
    if causal and n_queries > 1:                           # a single query is the last: it sees all
        past = torch.ones(n_queries, n_keys, dtype=torch.bool, device=device)
        past = past.tril(n_keys - n_queries)                      # (Tq, Tk)
        allowed = past if allowed is None else allowed & past
    return allowed


def reference_attention(q, k, v, *, scale, causal=False, key_mask=None, bias=None):
    """Attention as the equation says, one line a step. `attend` gives the same, faster."""
    group = q.shape[1] // k.shape[1]
    k = k.repeat_interleave(group, 1)                             # [K1, K2] -> [K1, K1, K2, K2]
    v = v.repeat_interleave(group, 1)                        # (B, H, Tk, Dh): a group shares a head
    scores = (q @ k.transpose(-2, -1)).float() * scale            # (B, H, Tq, Tk)
    if bias is not None:
        scores = scores + bias
    allowed = allowed_keys(q.shape[2], k.shape[2], causal, key_mask, q.device)
    if allowed is not None:
        scores = scores.masked_fill(~allowed, float("-inf"))
    probs = torch.nan_to_num(scores.softmax(-1)).to(q.dtype)      # a query without a key gets zeros
    return probs @ v                                              # (B, H, Tq, Dh)


def attend(q, k, v, *, scale, causal=False, key_mask=None, bias=None, backend=None):
    """softmax(scale * q k^T + bias, over the allowed keys) v: both networks compute attention here.

    q (B, H, Tq, Dh); k, v (B, Hkv, Tk, Dh), Hkv dividing H; key_mask (B, Tk) bool, True where a key
    may be seen; bias (1 or B, H, Tq, Tk) is added to the scores. causal: query i stands at position
    Tk - Tq + i. backend: "triton", "torch", or None for `default_backend`; all give the same.
    Returns (B, H, Tq, Dh); a query that may see no key gets zeros."""
    if backend is None:
        backend = default_backend(q) if q.is_cuda else "torch"
    if bias is not None and torch.is_grad_enabled():
        if any(x.requires_grad for x in (q, k, v, bias)):
            backend = "torch"               # the Triton kernels compute no gradients beside a bias
    if backend == "triton":
        from .triton_attention import fused_attention          # here, so that torch alone is enough
        return fused_attention(q, k, v, scale=scale, causal=causal, key_mask=key_mask, bias=bias)
    n_queries = q.shape[2]
    n_keys = k.shape[2]
    plain_causal = causal and n_queries == n_keys and key_mask is None and bias is None
    mask = None
    if not plain_causal:
        mask = allowed_keys(n_queries, n_keys, causal, key_mask, q.device)
    if bias is not None:
        bias = bias.to(q.dtype)
        mask = bias if mask is None else bias.masked_fill(~mask, float("-inf"))
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=plain_causal, scale=scale,
        enable_gqa=q.shape[1] != k.shape[1])


def default_backend(q):
    """Returns "triton" on NVIDIA GPUs from Ampere on, where its kernels take q; else "torch"."""
    if not (torch.version.cuda and has_triton()):
        return "torch"
    is_ampere = torch.cuda.get_device_capability(q.device) >= (8, 0)
    known_dtype = q.dtype in (torch.float32, torch.float16, torch.bfloat16)
    if is_ampere and known_dtype and q.shape[-1] <= 128:
        return "triton"
    return "torch"


@functools.cache
def has_triton():
    return importlib.util.find_spec("triton") is not None


def use_backend(model, backend):
    """Sets the attention backend of every layer: "torch", "triton", or None to choose for each."""
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    can_run = has_triton() and (interpreted or torch.cuda.is_available())
    if backend == "triton" and not can_run:
        raise InputError("--attention triton needs a GPU and the package triton; leave the option "
                         "out, or set TRITON_INTERPRET=1 to run the kernels, slowly, on the CPU")
    for module in model.modules():
        if hasattr(module, "backend"):
            module.backend = backend


def init_from_scratch(network):
    """Initialises a network at random: every matrix keeps the size of what flows through it.

    Linear weights are drawn from N(0, 1/fan_in), embeddings have length 1. Weights that write into
    the residual stream are smaller by sqrt(2 n_layers), so that it does not grow (GPT-2's rule)."""
    for name, module in network.named_modules():
        if isinstance(module, nn.Linear):
            std = module.in_features ** -0.5
            if name.endswith(("o_proj", "down_proj")):
                std = (2 * network.config.n_layers) ** -0.5 * std
            nn.init.normal_(module.weight, std=std)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=module.embedding_dim ** -0.5)
