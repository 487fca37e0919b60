"""What both networks share: the norm, attention, and the start of weights that are trained from scratch.

Shape letters, the same in every file: B batch, T tokens, S sensor steps, D model width, H/Hkv heads, Dh head width.
"""
import functools
import importlib.util
import os

import torch
import torch.nn.functional as F
from torch import nn

from .config import InputError


def rms_norm(x, weight, eps):
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension, normalised in float32 (arXiv 1910.07467).

    x (..., D), weight (D,) -> (..., D). T5 calls it "layer norm", but takes no mean and has no bias either.
    """
    x32 = x.float()
    normed = x32 * torch.rsqrt(x32.square().mean(-1, keepdim=True) + eps)
    return weight * normed.to(x.dtype)                                        # rounded first, then scaled: as the references


class RMSNorm(nn.Module):
    def __init__(self, width, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x):
        return rms_norm(x, self.weight, self.eps)


FEW_ROWS, LARGE_WEIGHT = 32, 1 << 17


def linear(x, weight):
    """x (..., D_in) times weight (D_out, D_in)^T -> (..., D_out).

    Decoding in float32 on a CPU has a few rows at a time, and all its time goes into reading the weights. PyTorch's x W^T
    reads them with one core, or slowly; W x^T, the weight in two halves, is the same and reads them two to four times as
    fast (tests/bench/generate.py; in bfloat16 it is the other way round).
    """
    n, d_in = x.numel() // x.shape[-1], x.shape[-1]
    decoding = n <= FEW_ROWS and x.device.type == "cpu" and not torch.is_grad_enabled()
    if not decoding or weight.numel() < LARGE_WEIGHT or x.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
        return F.linear(x, weight)
    halves = weight.view(2 - len(weight) % 2, -1, d_in)                       # (2, D_out/2, D_in), a view
    out = torch.bmm(halves, x.reshape(n, d_in).T.expand(len(halves), -1, -1)) # (2, D_out/2, n)
    return out.reshape(-1, n).T.contiguous().view(*x.shape[:-1], -1)          # attention wants its last dimension dense


class Linear(nn.Linear):
    """Without a bias, as all of LLaMA's."""

    def __init__(self, d_in, d_out):
        super().__init__(d_in, d_out, bias=False)

    def forward(self, x):
        return linear(x, self.weight)


def allowed_keys(n_queries, n_keys, causal, key_mask, device):
    """Which keys a query may look at: bool, broadcastable to (B, H, Tq, Tk), or None for all of them.

    With fewer queries than keys (a cache holds the earlier ones) the queries are the last ones.
    """
    allowed = None if key_mask is None else key_mask[:, None, None, :]        # (B, 1, 1, Tk)
    if causal and n_queries > 1:                                              # a single query is the last: it sees all
        past = torch.ones(n_queries, n_keys, dtype=torch.bool, device=device).tril(n_keys - n_queries)  # (Tq, Tk)
        allowed = past if allowed is None else allowed & past
    return allowed


def reference_attention(q, k, v, *, scale, causal=False, key_mask=None, bias=None):
    """Attention as the equation says, one line a step. `attend` must give the same; read this one, run that one."""
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)       # (B, H, Tk, Dh): a group shares a head
    scores = (q @ k.transpose(-2, -1)).float() * scale                        # (B, H, Tq, Tk)
    if bias is not None:
        scores = scores + bias
    allowed = allowed_keys(q.shape[2], k.shape[2], causal, key_mask, q.device)
    if allowed is not None:
        scores = scores.masked_fill(~allowed, float("-inf"))
    probs = torch.nan_to_num(scores.softmax(-1)).to(q.dtype)                  # a query without a key gets zeros
    return probs @ v                                                          # (B, H, Tq, Dh)


def default_backend(q):
    """The Triton kernels for what they take, on NVIDIA GPUs from Ampere on; PyTorch's attention elsewhere."""
    ours = (q.is_cuda and torch.version.cuda and torch.cuda.get_device_capability(q.device) >= (8, 0) and has_triton()
            and q.dtype in (torch.float32, torch.float16, torch.bfloat16) and q.shape[-1] <= 256)
    return "triton" if ours else "torch"


@functools.cache
def has_triton():
    return importlib.util.find_spec("triton") is not None


def attend(q, k, v, *, scale, causal=False, key_mask=None, bias=None, backend=None):
    """softmax(scale * q k^T + bias, over the allowed keys) v: the one door to attention for both networks.

    q (B, H, Tq, Dh); k, v (B, Hkv, Tk, Dh), Hkv dividing H; key_mask (B, Tk) bool, True where a key may be seen;
    bias (1 or B, H, Tq, Tk) is added to the scores. causal: query i stands at position Tk - Tq + i.
    backend: "triton", "torch", or None for `default_backend`; all give the same.
    -> (B, H, Tq, Dh); a query that may see no key gets zeros.
    """
    if (backend or default_backend(q)) == "triton":
        from .triton_attention import fused_attention                         # here: no Triton, no harm
        return fused_attention(q, k, v, scale=scale, causal=causal, key_mask=key_mask, bias=bias)
    n_queries, n_keys = q.shape[2], k.shape[2]
    plain_causal = causal and n_queries == n_keys and key_mask is None and bias is None
    mask = None
    if not plain_causal:
        mask = allowed_keys(n_queries, n_keys, causal, key_mask, q.device)
        if bias is not None:
            mask = bias.to(q.dtype) if mask is None else bias.to(q.dtype).masked_fill(~mask, float("-inf"))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=plain_causal, scale=scale,
                                          enable_gqa=q.shape[1] != k.shape[1])


def use_backend(model, backend):
    """Has every attention of a model run on "torch" or "triton"; None is the default of `attend`."""
    runs = has_triton() and (torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") == "1")
    if backend == "triton" and not runs:
        raise InputError("--attention triton needs a GPU and the package triton; leave the option out, "
                         "or set TRITON_INTERPRET=1 to see the kernels run, slowly, on the CPU")
    for module in model.modules():
        if hasattr(module, "backend"):
            module.backend = backend


def split_heads(x, n_heads):
    """(B, T, H*Dh) -> (B, H, T, Dh)."""
    return x.unflatten(-1, (n_heads, -1)).transpose(1, 2)


def join_heads(x):
    """(B, H, T, Dh) -> (B, T, H*Dh)."""
    return x.transpose(1, 2).flatten(-2)


def init_from_scratch(network, n_layers):
    """The start of a network without weights: every matrix keeps the size of what flows through it.

    Linear weights N(0, 1/fan_in); those that write into the residual stream smaller by sqrt(2 n_layers),
    so that the stream does not grow with depth (GPT-2's rule). Embedding rows have length 1.
    """
    for name, module in network.named_modules():
        if isinstance(module, nn.Linear):
            shrink = (2 * n_layers) ** -0.5 if name.endswith(("o_proj", "down_proj")) else 1.0
            nn.init.normal_(module.weight, std=shrink * module.in_features ** -0.5)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=module.embedding_dim ** -0.5)
