"""What the tests of the Triton kernels share: random inputs, padding, and one case held against
the equation.
"""
import torch
from helpers import DEVICE

from sensorllm_min.layers import reference_attention


def random_inputs(n_queries, n_keys, n_heads, group, head_dim, batch=2, dtype=torch.float32):
    """q (batch, n_heads, n_queries, head_dim), k and v with a head for each group."""
    torch.manual_seed(0)
    q = torch.randn(batch, n_heads, n_queries, head_dim)
    k, v = (torch.randn(batch, n_heads // group, n_keys, head_dim) for _ in range(2))
    return [x.to(DEVICE, dtype).requires_grad_() for x in (q, k, v)]


def padding(n_keys, batch=2):
    """A mask (batch, n_keys): row 0 is padded on the left and has a hole, row 1 is padded on the
    right.
    """
    mask = torch.ones(2, n_keys, dtype=torch.bool, device=DEVICE)
    mask[0, :n_keys // 3] = False
    mask[0, 2 * n_keys // 3] = n_keys < 3
    mask[1, n_keys - n_keys // 2:] = False
    return mask[:batch]


def outputs_and_gradients(attention, inputs, d_out, **options):
    """inputs: q, k, v and perhaps the bias -> the output, and the gradient of each input."""
    out = attention(*inputs[:3], bias=inputs[3] if len(inputs) > 3 else None, **options)
    return out.detach(), *torch.autograd.grad(out, inputs, d_out)


def exact_outputs_and_gradients(inputs, d_out, **options):
    """The same from the equation in float64."""
    exact = [x.detach().double().requires_grad_() for x in inputs]
    return outputs_and_gradients(reference_attention, exact, d_out.double(), **options)


# A case: (length, head_dim, group, causal, padded, biased, offset). With an offset the queries are
# the last third of the tokens, as if a cache held the others.
VALUES = ((1, 13, 64, 127, 257), (16, 64, 80, 128), (1, 4, 8), *[(False, True)] * 4)


def assert_equals_the_equation(length, head_dim, group, causal, padded, biased, offset):
    """Output and all gradients of one case. The batch is as small as the case allows: the
    interpreter is slow.
    """
    from sensorllm_min.triton_attention import fused_attention
    n_queries = (length + 2) // 3 if offset else length
    n_heads = max(2, group)
    batch = 2 if length == 13 or (length == 64 and biased) else 1
    inputs = random_inputs(n_queries, length, n_heads, group, head_dim, batch)
    if biased:
        shared_by_the_batch = length % 2
        bias = torch.randn(
            1 if shared_by_the_batch else batch, n_heads, n_queries, length, device=DEVICE
        )
        inputs.append(bias.requires_grad_())
    d_out = torch.randn_like(inputs[0])
    options = dict(
        scale=head_dim**-0.5, causal=causal, key_mask=padding(length, batch) if padded else None
    )

    ours = outputs_and_gradients(fused_attention, inputs, d_out, **options)
    expected = exact_outputs_and_gradients(inputs, d_out, **options)
    # float32 rounds to 6e-8; an output is a mean of values of size 1, a gradient a sum of up to 8 *
    # 257 products.
    torch.testing.assert_close(ours[0].double(), expected[0], rtol=0, atol=1e-5)
    for gradient, true in zip(ours[1:], expected[1:], strict=True):
        torch.testing.assert_close(
            gradient.double(), true, rtol=0, atol=1e-5 * max(1, true.abs().max().item())
        )
