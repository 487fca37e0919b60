"""`attend` against the equation in float64, and where it could go wrong: groups, padding, offsets,
bias, empty rows.
"""
import itertools

import pytest
import torch

from sensorllm_min.layers import attend, reference_attention

LENGTHS = [(1, 1), (13, 13), (5, 64), (1, 200)]                   # queries, keys
CASES = list(itertools.product(LENGTHS, [1, 4], *[[False, True]] * 3))


@pytest.mark.parametrize("lengths,group,causal,padded,biased", CASES)
def test_attend_equals_the_equation_in_float64(lengths, group, causal, padded, biased):
    n_queries, n_keys = lengths
    torch.manual_seed(0)
    q = torch.randn(3, 4, n_queries, 16, requires_grad=True)
    k, v = (torch.randn(3, 4 // group, n_keys, 16, requires_grad=True) for _ in range(2))
    bias = torch.randn(1, 4, n_queries, n_keys, requires_grad=True) if biased else None
    mask = torch.ones(3, n_keys, dtype=torch.bool)
    mask[0, :n_keys // 2] = False       # left padding
    mask[1, n_keys // 2 + 1:] = False   # right padding
    options = dict(scale=0.3, causal=causal, key_mask=mask if padded else None)
    inputs = [x for x in (q, k, v, bias) if x is not None]

    out = attend(q, k, v, bias=bias, **options)
    grads = torch.autograd.grad(out.square().sum(), inputs)
    exact = [x.detach().double().requires_grad_() for x in inputs]
    expected = reference_attention(*exact[:3], bias=exact[3] if biased else None, **options)
    exact_grads = torch.autograd.grad(expected.square().sum(), exact)
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=1e-5)
    for ours, theirs in zip(grads, exact_grads, strict=True):
        # sums over up to 200 keys
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-4)


def test_a_query_without_a_key_gets_zeros():
    q = torch.randn(1, 2, 3, 8, requires_grad=True)
    k, v = torch.randn(1, 2, 3, 8), torch.randn(1, 2, 3, 8)
    mask = torch.tensor([[False, True, True]])
    out = attend(q, k, v, scale=1.0, causal=True, key_mask=mask)
    assert (out[:, :, 0] == 0).all() and (out[:, :, 1] == v[:, :, 1]).all()
    out.sum().backward()
    assert not q.grad.isnan().any()
