"""The Triton kernels against the equation in float64: on a GPU where there is one, else in Triton's interpreter."""
import itertools

import pytest
import torch
from attention_cases import (VALUES, assert_equals_the_equation, exact_outputs_and_gradients,
                             outputs_and_gradients, padding, random_inputs)
from helpers import DEVICE

from sensorllm_min.layers import attend, reference_attention, split_heads

pytest.importorskip("triton")
from sensorllm_min import triton_attention    # noqa: E402

# Every pair of values meets in one of these cases, at the least cost; test_triton_grid.py has the
# triples.
CASES = [   # length, head_dim, group, causal, padded, biased, offset
    (1, 16, 4, 0, 0, 1, 0),
    (1, 64, 1, 1, 1, 1, 1),
    (1, 80, 1, 1, 0, 0, 0),
    (1, 128, 8, 1, 0, 1, 1),
    (13, 16, 8, 0, 0, 0, 1),
    (13, 64, 1, 1, 0, 0, 1),
    (13, 80, 1, 0, 1, 1, 1),
    (13, 128, 4, 1, 1, 0, 0),
    (64, 16, 1, 0, 0, 1, 1),
    (64, 64, 4, 1, 0, 0, 0),
    (64, 80, 8, 0, 0, 0, 1),
    (64, 128, 1, 0, 1, 0, 1),
    (127, 16, 1, 0, 0, 1, 1),
    (127, 64, 8, 0, 1, 0, 0),
    (127, 80, 4, 1, 0, 0, 1),
    (127, 128, 1, 1, 0, 0, 1),
    (257, 16, 1, 1, 1, 1, 1),
    (257, 64, 1, 0, 1, 0, 0),
    (257, 80, 8, 0, 0, 0, 1),
    (257, 128, 4, 0, 0, 0, 1),
]


def test_every_pair_of_values_is_among_the_cases():
    for (i, some), (j, others) in itertools.combinations(enumerate(VALUES), 2):
        assert {(case[i], case[j]) for case in CASES} == set(itertools.product(some, others))


@pytest.mark.parametrize("length,head_dim,group,causal,padded,biased,offset", CASES)
def test_output_and_gradients_equal_the_equation(
    length, head_dim, group, causal, padded, biased, offset
):
    assert_equals_the_equation(length, head_dim, group, bool(causal), padded, biased, offset)


def test_neighbouring_query_heads_share_a_key_head():
    """Three key heads of two query heads each, in two rows of the batch: no head reads another's
    keys.
    """
    inputs = random_inputs(17, 17, 6, 2, 16)
    d_out = torch.randn_like(inputs[0])
    options = dict(scale=0.25, causal=True, key_mask=padding(17))
    ours = outputs_and_gradients(triton_attention.fused_attention, inputs, d_out, **options)
    for a, b in zip(ours, exact_outputs_and_gradients(inputs, d_out, **options), strict=True):
        # sums of 17 products in float32
        torch.testing.assert_close(a.double(), b, rtol=0, atol=1e-5)


@pytest.mark.parametrize("n_queries", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_a_mask_of_more_than_1024_keys_is_read_to_its_end(n_queries):
    """A program scans the mask 1,024 keys at a time: here what may be seen begins, or ends, in
    the second piece.
    """
    inputs = random_inputs(n_queries, 1100, 1, 1, 16, batch=3)
    mask = torch.zeros(3, 1100, dtype=torch.bool, device=DEVICE)
    mask[0, 1050:] = True                                                     # padded on the left
    mask[1, 1000:1060] = True                                                 # on both sides
    mask[2] = True
    mask[2, 1090] = False                                                     # a hole
    d_out = torch.randn_like(inputs[0])
    options = dict(scale=0.25, causal=True, key_mask=mask)
    ours = outputs_and_gradients(triton_attention.fused_attention, inputs, d_out, **options)
    for a, b in zip(ours, exact_outputs_and_gradients(inputs, d_out, **options), strict=True):
        # means of up to 1,100 values of size 1
        torch.testing.assert_close(a.double(), b, rtol=0, atol=1e-5)


# More queries than keys: the first ones see nothing. The diagonal: one before, on and one after the
# corner of a tile.
@pytest.mark.parametrize("n_queries,n_keys", [
    (70, 33), (20, 83), (129, 129), *(pytest.param(*sizes, marks=pytest.mark.slow)
                                      for sizes in ((3, 300), (20, 82), (20, 84), (128, 129)))])
def test_causal_at_the_corners_of_tiles(n_queries, n_keys):
    inputs = random_inputs(n_queries, n_keys, 2, 1, 32)
    d_out = torch.randn_like(inputs[0])
    ours = outputs_and_gradients(triton_attention.fused_attention, inputs, d_out, scale=0.2, causal=True)
    for a, b in zip(ours, exact_outputs_and_gradients(inputs, d_out, scale=0.2, causal=True)):
        torch.testing.assert_close(a.double(), b, rtol=0, atol=1e-5)


@pytest.mark.parametrize("causal", [False, True])
def test_queries_without_a_key_get_zeros(causal):
    inputs = random_inputs(70, 70, 2, 2, 16, batch=3)
    mask = torch.ones(3, 70, dtype=torch.bool, device=DEVICE)
    mask[0] = False                                                           # nothing to see for anyone
    mask[1, :66] = False                                                      # causal: nothing for the first 66
    out, dq, dk, dv = outputs_and_gradients(triton_attention.fused_attention, inputs, torch.ones_like(inputs[0]),
                                            scale=1.0, causal=causal, key_mask=mask)
    blind = torch.zeros(3, 70, dtype=torch.bool, device=DEVICE)
    blind[0] = True
    blind[1, :66] = causal
    assert (out.transpose(1, 2)[blind] == 0).all() and (dq.transpose(1, 2)[blind] == 0).all()
    assert (dk.transpose(1, 2)[~mask] == 0).all() and (dv.transpose(1, 2)[~mask] == 0).all()
    assert all(x.isfinite().all() for x in (out, dq, dk, dv)) and out[2].abs().min() > 0


@pytest.mark.parametrize("scale_up", [1e2, 1e-6])
def test_large_and_tiny_scores_stay_finite_and_exact(scale_up):
    """Scores of +-1e4, where exp without the running maximum is infinite, and all but equal ones."""
    q, k, v = random_inputs(65, 130, 2, 1, 64)
    inputs = [(q * scale_up).detach().requires_grad_(), (k * scale_up).detach().requires_grad_(), v]
    ours = outputs_and_gradients(triton_attention.fused_attention, inputs, torch.ones_like(q), scale=0.125)
    expected = exact_outputs_and_gradients(inputs, torch.ones_like(q), scale=0.125)
    # a score of 1e4 in float32 is known to 1e-3, and so are its exponential and all that follows
    torch.testing.assert_close(ours[0].double(), expected[0], rtol=0, atol=2e-2 if scale_up > 1 else 1e-5)
    assert all(x.isfinite().all() for x in ours)


def test_a_large_bias_overflows_nothing():
    """exp(200) is infinite in float32: nothing beyond the last row may be multiplied by it."""
    inputs = [*random_inputs(20, 20, 2, 1, 32), torch.full((1, 2, 20, 20), 200.0, device=DEVICE, requires_grad=True)]
    d_out = torch.randn_like(inputs[0])
    ours = outputs_and_gradients(triton_attention.fused_attention, inputs, d_out, scale=0.2)
    without = outputs_and_gradients(triton_attention.fused_attention, inputs[:3], d_out, scale=0.2)
    for a, b in zip(ours, without):                                           # the same for all: it changes nothing
        torch.testing.assert_close(a, b, rtol=0, atol=1e-3)                   # a score of 200 / 0.2 is known to 6e-5


@pytest.mark.usefixtures("interpreter_knows_bfloat16")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    "head_dim,biased", [(64, True), pytest.param(128, False, marks=pytest.mark.slow)])
def test_half_precision_is_as_near_as_the_plain_equation(dtype, head_dim, biased):
    """Both round: ours may be twice as far from float64 as the equation computed in that dtype, tensor by tensor."""
    inputs = random_inputs(70, 70, 2, 1, head_dim, dtype=dtype)
    if biased:
        inputs.append(torch.randn(1, 2, 70, 70, device=DEVICE, dtype=dtype, requires_grad=True))
    d_out = torch.randn_like(inputs[0])
    options = dict(scale=head_dim ** -0.5, causal=not biased, key_mask=padding(70))
    ours = outputs_and_gradients(triton_attention.fused_attention, inputs, d_out, **options)
    plain = outputs_and_gradients(reference_attention, inputs, d_out, **options)
    for a, b, true in zip(ours, plain, exact_outputs_and_gradients(inputs, d_out, **options)):
        assert a.dtype == dtype
        assert (a - true).norm() <= 2 * (b - true).norm()


def test_any_strides_are_read_without_a_copy(monkeypatch):
    """Heads side by side in memory, a slice of a cache, keys shared by the batch, columns apart."""
    torch.manual_seed(0)
    q = split_heads(torch.randn(2, 33, 4 * 16, device=DEVICE), 4)
    k = torch.randn(3, 2, 4, 90, 16, device=DEVICE)[1, :, :, :33]
    shared = torch.randn(1, 4, 33, 16, device=DEVICE).expand(2, -1, -1, -1)
    apart = torch.randn(2, 4, 16, 33, device=DEVICE).transpose(2, 3)
    expected = [reference_attention(q, k, v, scale=0.25, causal=True) for v in (shared, apart)]
    for name in ("contiguous", "clone", "reshape", "copy_"):
        monkeypatch.setattr(torch.Tensor, name, lambda *args, **kwargs: pytest.fail("a hidden copy"))
    ours = [triton_attention.fused_attention(q, k, v, scale=0.25, causal=True) for v in (shared, apart)]
    monkeypatch.undo()
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)
    assert ours[0].stride() == q.stride()                                     # so that joining the heads copies nothing


def test_nothing_is_kept_where_no_gradient_is_needed(monkeypatch):
    kept = []
    real = triton_attention.run_forward
    monkeypatch.setattr(triton_attention, "run_forward",
                        lambda *args, keep_lse: kept.append(keep_lse) or real(*args, keep_lse=keep_lse))
    q, k, v = random_inputs(5, 5, 2, 1, 16)
    with torch.no_grad():
        assert triton_attention.fused_attention(q, k, v, scale=1.0).grad_fn is None
    frozen = [x.detach() for x in (q, k, v)]
    assert triton_attention.fused_attention(*frozen, scale=1.0).grad_fn is None
    assert triton_attention.fused_attention(frozen[0], frozen[1], v, scale=1.0).grad_fn is not None
    assert kept == [False, False, True]


def test_one_gradient_alone_is_that_of_all_and_no_other_kernel_runs(monkeypatch):
    q, k, v = random_inputs(20, 20, 2, 1, 16)
    full = torch.autograd.grad(triton_attention.fused_attention(q, k, v, scale=1.0).sum(), (q, k, v))

    class MustNotRun:
        def __getitem__(self, grid):
            pytest.fail("a kernel ran for a gradient that nobody asked for")

    for i in range(3):
        if i == 0:
            monkeypatch.setattr(triton_attention, "key_gradients_kernel", MustNotRun())
        alone = [x.detach().requires_grad_(j == i) for j, x in enumerate((q, k, v))]
        out = triton_attention.fused_attention(*alone, scale=1.0)
        torch.testing.assert_close(torch.autograd.grad(out.sum(), alone[i])[0], full[i], rtol=0, atol=0)
        monkeypatch.undo()


def test_the_same_input_gives_the_same_bits():
    """On a GPU the programs of a kernel end in any order; no sum may depend on it."""
    length, dtype = (1000, torch.bfloat16) if DEVICE == "cuda" else (40, torch.float32)
    inputs = random_inputs(length, length, 2, 2, 64, batch=1, dtype=dtype)
    inputs.append(torch.randn(1, 2, length, length, device=DEVICE, requires_grad=True))
    d_out = torch.randn_like(inputs[0])
    first, second = (
        outputs_and_gradients(triton_attention.fused_attention, inputs, d_out, scale=0.125)
        for _ in range(2)
    )
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("change,complaint", [
    (dict(q=torch.zeros(1, 2, 3, 16, dtype=torch.float64)), "float64"), (dict(q=torch.zeros(1, 2, 3, 512)), "512"),
    (dict(k=torch.zeros(1, 2, 3, 16, dtype=torch.bfloat16)), "bfloat16"), (dict(scale=-1.0), "-1.0")])
def test_inputs_that_the_kernels_do_not_take_are_refused(change, complaint):
    inputs = dict(q=torch.zeros(1, 2, 3, 16), k=torch.zeros(1, 2, 3, 16), v=torch.zeros(1, 2, 3, 16), scale=1.0) | change
    inputs = {name: x.to(DEVICE) if isinstance(x, torch.Tensor) else x for name, x in inputs.items()}
    with pytest.raises(ValueError, match=complaint):
        triton_attention.fused_attention(**inputs)


def test_attend_gives_the_same_on_either_backend():
    q, k, v = random_inputs(9, 9, 4, 2, 16)
    expected = attend(q, k, v, scale=0.25, causal=True, backend="torch")
    torch.testing.assert_close(attend(q, k, v, scale=0.25, causal=True, backend="triton"), expected, rtol=0, atol=1e-5)
