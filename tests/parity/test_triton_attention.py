"""The Triton kernels against the equation in float64, on a GPU or else in Triton's interpreter."""
import itertools
import random

import pytest
import torch
from helpers import DEVICE

from sensorllm_min.layers import attend, reference_attention

pytest.importorskip("triton")
from sensorllm_min.triton_attention import fused_attention    # noqa: E402


def random_inputs(n_queries, n_keys, n_heads, group, head_dim, batch=2, dtype=torch.float32):
    """q (batch, n_heads, n_queries, head_dim), k and v with a head for each group."""
    torch.manual_seed(0)
    q = torch.randn(batch, n_heads, n_queries, head_dim)
    k, v = (torch.randn(batch, n_heads // group, n_keys, head_dim) for _ in range(2))
    return [x.to(DEVICE, dtype).requires_grad_() for x in (q, k, v)]


def padding(n_keys, batch=2):
    """A mask (batch, n_keys). Row 0 has left padding and a hole, row 1 right padding."""
    mask = torch.ones(2, n_keys, dtype=torch.bool, device=DEVICE)
    mask[0, :n_keys // 3] = False
    mask[0, 2 * n_keys // 3] = n_keys < 3
    mask[1, n_keys - n_keys // 2:] = False
    return mask[:batch]


def run(attention, inputs, d_out, bias=None, **options):
    """-> the output and, unless there is a bias, the gradients of q, k and v."""
    if bias is not None:
        with torch.no_grad():
            return [attention(*inputs, bias=bias, **options)]
    out = attention(*inputs, **options)
    return [out.detach(), *torch.autograd.grad(out, inputs, d_out)]


def run_exactly(inputs, d_out, bias=None, **options):
    """The same from the equation in float64."""
    inputs = [x.detach().double().requires_grad_() for x in inputs]
    bias = None if bias is None else bias.double()
    return run(reference_attention, inputs, d_out.double(), bias, **options)


def assert_equal_the_equation(inputs, **options):
    """float32 rounds to 6e-8; an output is a mean of values of size 1, a gradient a sum of up to
    8 * 257 products.
    """
    d_out = torch.randn_like(inputs[0])
    ours = run(fused_attention, inputs, d_out, **options)
    for a, b in zip(ours, run_exactly(inputs, d_out, **options), strict=True):
        torch.testing.assert_close(
            a.double(), b, rtol=0, atol=1e-5 * max(1, b.abs().max().item()))


# ---- all kinds of shapes ----

# length, head_dim, group, causal, padded, biased, offset. With an offset the queries are the last
# third of the tokens, as if a cache held the others.
VALUES = ((1, 13, 64, 127, 257), (16, 64, 80, 128), (1, 4, 8), *[(0, 1)] * 4)
CASES = [               # every pair of values meets in one of these cases, at the least cost
    (1, 16, 4, 0, 0, 1, 0), (1, 64, 1, 1, 1, 1, 1), (1, 80, 1, 1, 0, 0, 0),
    (1, 128, 8, 1, 0, 1, 1), (13, 16, 8, 0, 0, 0, 1), (13, 64, 1, 1, 0, 0, 1),
    (13, 80, 1, 0, 1, 1, 1), (13, 128, 4, 1, 1, 0, 0), (64, 16, 1, 0, 0, 1, 1),
    (64, 64, 4, 1, 0, 0, 0), (64, 80, 8, 0, 0, 0, 1), (64, 128, 1, 0, 1, 0, 1),
    (127, 16, 1, 0, 0, 1, 1), (127, 64, 8, 0, 1, 0, 0), (127, 80, 4, 1, 0, 0, 1),
    (127, 128, 1, 1, 0, 0, 1), (257, 16, 1, 1, 1, 1, 1), (257, 64, 1, 0, 1, 0, 0),
    (257, 80, 8, 0, 0, 0, 1), (257, 128, 4, 0, 0, 0, 1)]
MORE_CASES = random.Random(0).sample(list(itertools.product((200, *VALUES[0]), *VALUES[1:])), 40)


def test_every_pair_of_values_is_among_the_cases():
    for (i, some), (j, others) in itertools.combinations(enumerate(VALUES), 2):
        assert {(case[i], case[j]) for case in CASES} == set(itertools.product(some, others))


@pytest.mark.parametrize("length,head_dim,group,causal,padded,biased,offset", [
    *CASES, *(pytest.param(*case, marks=pytest.mark.slow) for case in MORE_CASES)])
def test_output_and_gradients_equal_the_equation(
        length, head_dim, group, causal, padded, biased, offset):
    """The batch is as small as the case allows: the interpreter is slow."""
    n_queries = (length + 2) // 3 if offset else length
    n_heads = max(2, group)
    batch = 2 if length == 13 or (length == 64 and biased) else 1
    inputs = random_inputs(n_queries, length, n_heads, group, head_dim, batch)
    bias = None
    if biased:
        bias_batch = 1 if length % 2 else batch
        bias = torch.randn(bias_batch, n_heads, n_queries, length, device=DEVICE)
    mask = padding(length, batch) if padded else None
    assert_equal_the_equation(
        inputs, scale=head_dim ** -0.5, causal=bool(causal), key_mask=mask, bias=bias)


@pytest.mark.parametrize("n_queries", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_a_mask_of_more_than_1024_keys_is_read_to_its_end(n_queries):
    """A program scans the mask 1,024 keys at a time; here the visible keys begin or end in the
    second piece.
    """
    inputs = random_inputs(n_queries, 1100, 1, 1, 16, batch=3)
    mask = torch.zeros(3, 1100, dtype=torch.bool, device=DEVICE)
    mask[0, 1050:] = True               # padded on the left
    mask[1, 1000:1060] = True           # on both sides
    mask[2] = True
    mask[2, 1090] = False               # a hole
    assert_equal_the_equation(inputs, scale=0.25, causal=True, key_mask=mask)


@pytest.mark.parametrize("first", [16, 17, 31])
def test_left_padding_may_end_anywhere_in_a_bias(first):
    """Loads of a bias start at a multiple of 16 keys, so that up to 15 masked ones come along."""
    inputs = random_inputs(5, 150, 1, 1, 16, batch=1)
    mask = torch.arange(150, device=DEVICE)[None] >= first
    bias = torch.randn(1, 1, 5, 150, device=DEVICE)
    assert_equal_the_equation(inputs, scale=0.25, key_mask=mask, bias=bias)


# More queries than keys: the first ones see nothing. The diagonal: one before, on and one after the
# corner of a tile.
@pytest.mark.parametrize("n_queries,n_keys", [
    (70, 33), (20, 82), (128, 129), *(pytest.param(*sizes, marks=pytest.mark.slow)
                                      for sizes in ((3, 300), (20, 83), (20, 84), (129, 129)))])
def test_causal_at_the_corners_of_tiles(n_queries, n_keys):
    assert_equal_the_equation(random_inputs(n_queries, n_keys, 2, 1, 32), scale=0.2, causal=True)


# ---- extreme numbers, other dtypes ----

@pytest.mark.parametrize("causal", [False, True])
def test_queries_without_a_key_get_zeros(causal):
    inputs = random_inputs(70, 70, 2, 2, 16, batch=3)
    mask = torch.ones(3, 70, dtype=torch.bool, device=DEVICE)
    mask[0] = False                     # nothing to see for any query
    mask[1, :66] = False                # if causal, nothing for the first 66
    out, dq, dk, dv = run(fused_attention, inputs, torch.ones_like(inputs[0]), scale=1.0,
                          causal=causal, key_mask=mask)
    blind = torch.zeros(3, 70, dtype=torch.bool, device=DEVICE)
    blind[0] = True
    blind[1, :66] = causal
    assert (out.transpose(1, 2)[blind] == 0).all() and (dq.transpose(1, 2)[blind] == 0).all()
    assert (dk.transpose(1, 2)[~mask] == 0).all() and (dv.transpose(1, 2)[~mask] == 0).all()
    assert all(x.isfinite().all() for x in (out, dq, dk, dv)) and out[2].abs().min() > 0


@pytest.mark.parametrize("scale_up,tolerance", [(1e2, 2e-2), (1e-6, 1e-5)])
def test_large_and_tiny_scores_stay_finite_and_exact(scale_up, tolerance):
    """Scores of +-1e4, where exp without the running maximum is infinite, and nearly equal ones.

    A score of 1e4 is known to 1e-3 in float32, and so are its exponential and all that follows.
    """
    q, k, v = random_inputs(65, 130, 2, 1, 64)
    inputs = [(q * scale_up).detach().requires_grad_(), (k * scale_up).detach().requires_grad_(), v]
    ours = run(fused_attention, inputs, torch.ones_like(q), scale=0.125)
    expected = run_exactly(inputs, torch.ones_like(q), scale=0.125)
    torch.testing.assert_close(ours[0].double(), expected[0], rtol=0, atol=tolerance)
    assert all(x.isfinite().all() for x in ours)


@pytest.mark.usefixtures("interpreter_knows_bfloat16")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("head_dim,biased", [
    (64, False), (64, True), pytest.param(128, False, marks=pytest.mark.slow)])
def test_half_precision_is_as_near_as_the_plain_equation(dtype, head_dim, biased):
    """Both round: ours may be twice as far from float64 as the equation computed in that dtype,
    tensor by tensor.
    """
    inputs = random_inputs(70, 70, 2, 1, head_dim, dtype=dtype)
    bias = torch.randn(1, 2, 70, 70, device=DEVICE, dtype=dtype) if biased else None
    d_out = torch.randn_like(inputs[0])
    options = dict(scale=head_dim ** -0.5, causal=not biased, key_mask=padding(70), bias=bias)
    ours = run(fused_attention, inputs, d_out, **options)
    plain = run(reference_attention, inputs, d_out, **options)
    for a, b, true in zip(ours, plain, run_exactly(inputs, d_out, **options), strict=True):
        assert a.dtype == dtype
        assert (a - true).norm() <= 2 * (b - true).norm()


def test_the_same_input_gives_the_same_bits():
    """On a GPU the programs of a kernel end in any order; no sum may depend on it."""
    length, dtype = (1000, torch.bfloat16) if DEVICE == "cuda" else (40, torch.float32)
    inputs = random_inputs(length, length, 2, 2, 64, batch=1, dtype=dtype)
    d_out = torch.randn_like(inputs[0])
    first, second = (run(fused_attention, inputs, d_out, scale=0.125) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


# ---- what is taken, and what is refused ----

def test_any_strides_are_read_without_a_copy(monkeypatch):
    """Heads side by side in memory, a slice of a cache, keys shared by the batch, columns apart."""
    torch.manual_seed(0)
    q = torch.randn(2, 33, 4, 16, device=DEVICE).transpose(1, 2)
    k = torch.randn(3, 2, 4, 90, 16, device=DEVICE)[1, :, :, :33]
    shared = torch.randn(1, 4, 33, 16, device=DEVICE).expand(2, -1, -1, -1)
    apart = torch.randn(2, 4, 16, 33, device=DEVICE).transpose(2, 3)
    expected = [reference_attention(q, k, v, scale=0.25, causal=True) for v in (shared, apart)]
    for name in ("contiguous", "clone", "reshape", "copy_"):
        monkeypatch.setattr(torch.Tensor, name, lambda *args, **kwargs: pytest.fail("a copy"))
    ours = [fused_attention(q, k, v, scale=0.25, causal=True) for v in (shared, apart)]
    monkeypatch.undo()
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)
    assert ours[0].stride() == q.stride()                         # joining the heads copies nothing


@pytest.mark.parametrize("change,complaint", [
    (dict(q=torch.zeros(1, 2, 3, 16, dtype=torch.float64)), "float64"),
    (dict(q=torch.zeros(1, 2, 3, 512)), "512"),
    (dict(k=torch.zeros(1, 2, 3, 16, dtype=torch.bfloat16)), "bfloat16"),
    (dict(q=torch.empty(1, 2, 2 ** 27, 16, device="meta")), r"2\^31"),
    (dict(scale=-1.0), "-1.0"),
    (dict(bias=torch.zeros(1, 2, 3, 3, requires_grad=True)), "no gradients .* with a bias")])
def test_inputs_that_the_kernels_do_not_take_are_refused(change, complaint):
    inputs = dict.fromkeys("qkv", torch.zeros(1, 2, 3, 16)) | dict(scale=1.0) | change
    with pytest.raises(ValueError, match=complaint):
        fused_attention(**inputs)


@pytest.mark.parametrize("what_learns", ["no bias", "bias", "queries beside a bias"])
def test_attend_gives_the_same_on_either_backend(what_learns):
    """Where a gradient is needed beside a bias, `attend` takes PyTorch's attention."""
    q, k, v = random_inputs(9, 9, 4, 2, 16)
    bias = torch.randn(1, 4, 9, 9, device=DEVICE)
    learning = q
    if what_learns == "bias":
        learning = bias.requires_grad_()
        q, k, v = (x.detach() for x in (q, k, v))
    options = dict(scale=0.25, causal=True, bias=None if what_learns == "no bias" else bias)
    results = []
    for backend in ("torch", "triton"):
        out = attend(q, k, v, backend=backend, **options)
        results.append((out, torch.autograd.grad(out.square().sum(), learning)[0]))
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=1e-5)
