"""The same numbers in less time or memory: skip this file at first.

Each part replaces a plain expression, and a test holds the two together:

- linear, Linear: F.linear(x, weight), for a few rows, when decoding.
- gated_silu: F.silu(gate) * up; keeps two tensors for the backward pass, not three.
- Packing: rows with padding; leaves the padding out.
- fused_cross_entropy: F.cross_entropy(hidden @ weight.T, targets); never holds all the logits.
- Int8Linear: a frozen matrix in floating point; keeps one byte a weight.
"""
from functools import cache, partial
from timeit import repeat

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

# ---- decoding: a few rows times a large weight ----

FEW_ROWS, LARGE_WEIGHT = 32, 1 << 18
TALL = 1 << 14                          # rows of a weight that are timed in place of more


def linear(x, weight):
    """x (..., D_in) times weight (D_out, D_in)^T -> (..., D_out): F.linear, or faster for few rows.

    Decoding in float32 has a few rows at a time and spends its time reading the weights. How fast
    PyTorch reads them depends on the processor: on some, `in_halves` is two to four times as fast
    as F.linear with two cores or more, on others half as fast. So it is timed, once for each shape.
    """
    n = x.numel() // x.shape[-1]
    few_rows = n <= FEW_ROWS and weight.numel() >= LARGE_WEIGHT
    float32_on_cpu = x.device.type == "cpu" and x.dtype == torch.float32
    training = torch.is_grad_enabled() or torch.is_autocast_enabled("cpu")
    if few_rows and float32_on_cpu and not training:
        d_out, d_in = weight.shape
        if halves_pay(n.bit_length(), min(d_out, TALL), d_in, torch.get_num_threads()):
            return in_halves(x, weight)
    return F.linear(x, weight)


def in_halves(x, weight):
    """The same product as W x^T, with the rows of the weight in two halves."""
    n, d_in = x.numel() // x.shape[-1], x.shape[-1]
    halves = weight.view(2 - len(weight) % 2, -1, d_in)           # (2, D_out/2, D_in), a view
    columns = x.reshape(n, d_in).T.expand(len(halves), -1, -1)    # (2, D_in, n)
    out = torch.bmm(halves, columns).reshape(-1, n)               # (D_out, n)
    return out.T.contiguous().view(*x.shape[:-1], -1)       # attention wants a dense last dimension


@cache
def halves_pay(bits, d_out, d_in, n_threads):
    """Whether `in_halves` is clearly faster, for rows whose number has so many bits."""
    x, weight = torch.ones(2 ** (bits - 1), d_in), torch.ones(d_out, d_in)
    best = {way: min(repeat(lambda: way(x, weight), number=1, repeat=5))
            for way in (F.linear, in_halves)}
    return best[in_halves] < 0.75 * best[F.linear]          # clearly: one run chooses as another


class Linear(nn.Linear):
    """nn.Linear without a bias, as all of LLaMA's are, through `linear`."""

    def __init__(self, d_in, d_out):
        super().__init__(d_in, d_out, bias=False)

    def forward(self, x):
        return linear(x, self.weight)


# ---- training: what the backward pass keeps ----

class GatedSilu(torch.autograd.Function):
    """silu(gate) * up, keeping gate and up for the backward pass; autograd keeps silu(gate), too.

    silu(g) = g s with s = sigmoid(g), so silu'(g) = s (1 + g - g s).
    """

    @staticmethod
    def forward(ctx, gate, up):
        ctx.save_for_backward(gate, up)
        return F.silu(gate) * up

    @staticmethod
    def backward(ctx, d_out):
        gate, up = ctx.saved_tensors
        s = gate.sigmoid()
        silu = gate * s
        d_gate = (1 + gate - silu).mul_(s).mul_(up).mul_(d_out)
        d_up = silu.mul_(d_out)
        return d_gate, d_up


gated_silu = GatedSilu.apply


class FusedCrossEntropy(torch.autograd.Function):
    """Summed cross entropy of hidden (N, D) @ weight (V, D)^T against targets (N,) -> a float32.

    Logits are made for a chunk of positions at a time and turned into their own gradient at once,
        d loss / d logits = softmax(logits) - onehot(target),
    so that no (N, V) tensor stands in memory, forward or backward, and no product is computed
    twice. The idea is that of Liger-Kernel (arXiv 2410.10989). PyTorch 2.13 has it built in, as
    `F.linear_cross_entropy`; use that where you do not want to see how it works.
    """
    CHUNK = 512                                                   # positions at a time

    @staticmethod
    def forward(ctx, hidden, weight, targets):
        loss = torch.zeros((), device=hidden.device)
        d_hidden = d_weight = None
        if ctx.needs_input_grad[0]:
            d_hidden = torch.empty_like(hidden)
        if ctx.needs_input_grad[1]:
            d_weight = torch.zeros_like(weight, dtype=torch.float32)
        for start in range(0, len(hidden), FusedCrossEntropy.CHUNK):
            chunk = slice(start, start + FusedCrossEntropy.CHUNK)
            rows, wanted = hidden[chunk], targets[chunk, None]
            logits = F.linear(rows, weight).float()               # (chunk, V)
            top, true = logits.amax(-1, keepdim=True), logits.gather(-1, wanted)
            exps = logits.sub_(top).exp_()                        # in place: the one large tensor
            total = exps.sum(-1, keepdim=True)
            loss += (total.log() + (top - true)).sum()            # top - true is 0 for a sure token
            if d_hidden is None and d_weight is None:
                continue
            d_logits = exps.div_(total).scatter_add_(-1, wanted, torch.full_like(true, -1))
            d_logits = d_logits.to(weight.dtype)
            if d_hidden is not None:
                d_hidden[chunk] = d_logits @ weight
            if d_weight is not None:
                d_weight += d_logits.T @ rows.to(weight.dtype)
        ctx.save_for_backward(d_hidden, d_weight)
        return loss

    @staticmethod
    def backward(ctx, d_loss):
        d_hidden, d_weight = ctx.saved_tensors
        if d_hidden is not None:
            d_hidden = d_hidden * d_loss.to(d_hidden.dtype)
        if d_weight is not None:
            d_weight = d_weight * d_loss
        return d_hidden, d_weight, None


fused_cross_entropy = FusedCrossEntropy.apply


# ---- training: no arithmetic for padding, nor for hidden states that nobody reads ----

class Packing:
    """Rows of unequal length without their padding: (B, T, ...) <-> (N, ...), N the real tokens.

    All but attention treats each token alone and need not see padding; attention gets the rows
    back. After the last attention only the `wanted` tokens are computed: the answers, or the last
    ones. mask, wanted (B, T) bool. Padding stands on the right, where a causal model never looks.
    """

    def __init__(self, mask, wanted):
        self.shape = mask.shape                                   # (B, T)
        self.index = mask.flatten().nonzero()[:, 0]               # (N,)
        self.wanted = self.pack(wanted).nonzero()[:, 0]           # (n,) among the N

    def pack(self, x):
        return x.flatten(0, 1).index_select(0, self.index)        # (N, ...)

    def unpack(self, x):
        rows = x.new_zeros(self.shape.numel(), *x.shape[1:])      # zeros at padding
        return rows.index_copy(0, self.index, x).unflatten(0, self.shape)         # (B, T, ...)


def last_block(block, x, context, wanted):
    """A LlamaBlock for the wanted tokens alone: x (N, D) -> (n, D)."""
    mixed = block.attn.mix(block.attn_norm(x), context)           # (N, H*Dh): needs every key
    x = x[wanted] + block.attn.o_proj(mixed[wanted])              # (n, D)
    return x + block.mlp(block.mlp_norm(x))


def packed_blocks(llm, x, context):
    """All blocks over packed rows: x (B, T, D) -> (n, D), one row for each wanted token."""
    packing = context.packing
    *blocks, last = llm.compiled or [*llm.layers[:-1], partial(last_block, llm.layers[-1])]
    x = packing.pack(x)                                           # (N, D)
    for block in blocks:
        x = run_block(llm, block, x, context)
    return run_block(llm, last, x, context, packing.wanted)       # (n, D)


def run_block(llm, block, *inputs):
    """Calls a block; with gradient checkpointing the backward pass computes its inside again."""
    if llm.gradient_checkpointing and torch.is_grad_enabled():
        return checkpoint(block, *inputs, use_reentrant=False)
    return block(*inputs)


def compile_blocks(llm):
    """Has torch.compile fuse the elementwise operations of each block over packed rows."""
    llm.compiled = [torch.compile(layer, dynamic=True) for layer in llm.layers[:-1]]
    llm.compiled.append(torch.compile(partial(last_block, llm.layers[-1]), dynamic=True))


# ---- frozen matrices in int8: an 8B LLM and what trains on it fit into 16 GB ----
#
# Each row of W (one output) keeps its own scale, its largest weight / 127 (absmax, as in arXiv
# 2208.07339, section 2.1); activations stay as they are. Forward and backward each make W anew, one
# matrix at a time, and the scales are applied to the outputs, not to the weights.

class Int8Product(torch.autograd.Function):
    """x W^T with W = scale * q, q (O, I) int8, scale (O,); keeps q for the backward pass, not W."""

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
        scale = (weight.abs().amax(1) / 127).clamp(min=1e-12)           # a row of zeros stays zeros
        self.register_buffer("q", (weight / scale[:, None]).round().to(torch.int8))
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
