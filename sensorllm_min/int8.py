"""Frozen matrices in int8: a byte a weight instead of two, so that an 8B LLM and what trains on it fit into 16 GB.

Each row of W (one output) keeps its own scale, its largest weight / 127 (absmax, as in arXiv 2208.07339, section 2.1);
activations stay as they are. W is never kept in floating point: forward and backward each make it anew, a matrix at a
time, and the scales are applied to the outputs, not to the weights.
"""
import torch
from torch import nn
from torch.nn import functional as F


class Int8Product(torch.autograd.Function):
    """x W^T with W = scale * q, q (O, I) int8, scale (O,). Autograd would keep W for the backward pass; this keeps q."""

    @staticmethod
    def forward(ctx, x, q, scale):
        ctx.save_for_backward(q, scale)
        return F.linear(x, q.to(x.dtype)) * scale.to(x.dtype)                 # (..., I) -> (..., O)

    @staticmethod
    def backward(ctx, grad):
        q, scale = ctx.saved_tensors
        return (grad * scale.to(grad.dtype)) @ q.to(grad.dtype), None, None   # (..., O) -> (..., I)


class Int8Linear(nn.Module):
    """Takes the place of a frozen nn.Linear without bias. weight (O, I), any float dtype."""

    def __init__(self, weight):
        super().__init__()
        weight = weight.detach().float()
        scale = (weight.abs().amax(1) / 127).clamp(min=1e-12)                 # a row of zeros stays zeros
        self.register_buffer("q", (weight / scale[:, None]).round().to(torch.int8))
        self.register_buffer("scale", scale)

    def forward(self, x):
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        return Int8Product.apply(x, self.q, self.scale)


def quantize(llm):
    """Replaces all matrices of the decoder's blocks, one after the other; embeddings, head and norms stay as they are."""
    for module in list(llm.layers.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear):
                setattr(module, name, Int8Linear(child.weight))
    return llm
