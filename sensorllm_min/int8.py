"""Frozen matrices in int8: training on top of an 8B LLM fits into 16 GB. Skip this at first.

Each row of a matrix W (one output) keeps its own scale, its largest weight / 127 (absmax, as in
arXiv 2208.07339, section 2.1); activations stay in floating point. Forward and backward each
restore W, one matrix at a time, and apply the scales to the outputs, not to the weights.
"""
import torch
import torch.nn.functional as F
from torch import nn


class Int8Product(torch.autograd.Function):
    """x W^T with W = scale * q, q (O, I) int8, scale (O,); keeps q for the backward pass, not W."""

    @staticmethod
    def forward(ctx, x, q, scale):
        ctx.save_for_backward(q, scale)
        return F.linear(x, q.to(x.dtype)) * scale.to(x.dtype)                 # (..., I) -> (..., O)

    @staticmethod
    def backward(ctx, grad):
        q, scale = ctx.saved_tensors
        grad = (grad * scale.to(grad.dtype)) @ q.to(grad.dtype)               # (..., O) -> (..., I)
        return grad, None, None


class Int8Linear(nn.Module):
    """Takes the place of a frozen nn.Linear without bias. weight (O, I), any float dtype."""

    def __init__(self, weight):
        super().__init__()
        weight = weight.detach().float()
        scale = (weight.abs().amax(1) / 127).clamp(min=1e-12)           # a row of zeros stays zeros
        q = (weight / scale[:, None]).round()
        self.register_buffer("q", q.to(torch.int8))
        self.register_buffer("scale", scale)

    def forward(self, x):
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        return Int8Product.apply(x, self.q, self.scale)


def quantize(llm):
    """Replaces every matrix of the decoder's blocks; embeddings, head and norms stay."""
    for module in list(llm.layers.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear):
                setattr(module, name, Int8Linear(child.weight))
    return llm
