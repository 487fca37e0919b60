"""The Triton kernels against the equation in float64: on a GPU where there is one, else in Triton's interpreter."""
import itertools
import json
import subprocess
import sys

import pytest
import torch
from helpers import DEVICE, ROOT, make_chronos, make_llama, run

from sensorllm_min.config import read_llama_config
from sensorllm_min.generate import generate
from sensorllm_min.layers import attend, reference_attention, split_heads, use_backend
from sensorllm_min.llama import KVCache
from sensorllm_min.weights import load_llama, load_t5_encoder

pytest.importorskip("triton")
from sensorllm_min import triton_attention                                    # noqa: E402


def random_inputs(n_queries, n_keys, n_heads, group, head_dim, batch=2, dtype=torch.float32):
    torch.manual_seed(0)
    q = torch.randn(batch, n_heads, n_queries, head_dim)
    k, v = (torch.randn(batch, n_heads // group, n_keys, head_dim) for _ in range(2))
    return [x.to(DEVICE, dtype).requires_grad_() for x in (q, k, v)]


def padding(n_keys):
    """Row 0 padded on the left and with a hole, row 1 on the right."""
    mask = torch.ones(2, n_keys, dtype=torch.bool, device=DEVICE)
    mask[0, :n_keys // 3] = False
    mask[0, 2 * n_keys // 3] = n_keys < 3
    mask[1, n_keys - n_keys // 2:] = False
    return mask


def outputs_and_gradients(attention, inputs, d_out, **options):
    """inputs: q, k, v and perhaps the bias -> out, and the gradient of each input."""
    out = attention(*inputs[:3], bias=inputs[3] if len(inputs) > 3 else None, **options)
    return out.detach(), *torch.autograd.grad(out, inputs, d_out)


# every length with every head size and group; the 16 combinations of the four flags in turn, each four times or more
LENGTHS, HEAD_DIMS, GROUPS = (1, 13, 64, 127, 200, 257), (16, 64, 80, 128), (1, 4, 8)
CASES = [(*shape, *((i + 7) % 16 >> bit & 1 == 1 for bit in range(4)))
         for i, shape in enumerate(itertools.product(LENGTHS, HEAD_DIMS, GROUPS))]


@pytest.mark.parametrize("length,head_dim,group,causal,padded,biased,offset", CASES)
def test_equals_the_equation(length, head_dim, group, causal, padded, biased, offset):
    n_queries = (length + 2) // 3 if offset else length                       # offset: the last third of the tokens
    n_heads, batch = max(2, group), 2 if padded or length < 200 else 1        # the interpreter takes its time
    inputs = random_inputs(n_queries, length, n_heads, group, head_dim, batch)
    if biased:
        shared_by_the_batch = length % 2
        bias = torch.randn(1 if shared_by_the_batch else batch, n_heads, n_queries, length, device=DEVICE)
        inputs.append(bias.requires_grad_())
    d_out = torch.randn_like(inputs[0])
    options = dict(scale=head_dim ** -0.5, causal=causal, key_mask=padding(length) if padded else None)

    ours = outputs_and_gradients(triton_attention.fused_attention, inputs, d_out, **options)
    exact = [x.detach().double().requires_grad_() for x in inputs]
    expected = outputs_and_gradients(reference_attention, exact, d_out.double(), **options)
    torch.testing.assert_close(ours[0].double(), expected[0], rtol=0, atol=1e-5)
    for gradient, true in zip(ours[1:], expected[1:]):                        # sums of up to 8 * 257 products
        torch.testing.assert_close(gradient.double(), true, rtol=0, atol=1e-5 * max(1, true.abs().max().item()))


# more queries than keys: the first ones see nothing; the diagonal one before, on and one after the corner of a tile
@pytest.mark.parametrize("n_queries,n_keys", [(70, 33), (3, 300), (20, 82), (20, 83), (20, 84), (128, 129), (129, 129)])
def test_causal_at_the_corners_of_tiles(n_queries, n_keys):
    inputs = random_inputs(n_queries, n_keys, 2, 1, 32)
    d_out = torch.randn_like(inputs[0])
    ours = outputs_and_gradients(triton_attention.fused_attention, inputs, d_out, scale=0.2, causal=True)
    exact = [x.detach().double().requires_grad_() for x in inputs]
    for a, b in zip(ours, outputs_and_gradients(reference_attention, exact, d_out.double(), scale=0.2, causal=True)):
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
def test_large_and_tiny_scores(scale_up):
    """Scores of +-1e4, where exp without the running maximum is infinite, and all but equal ones."""
    q, k, v = random_inputs(65, 130, 2, 1, 64)
    inputs = [(q * scale_up).detach().requires_grad_(), (k * scale_up).detach().requires_grad_(), v]
    ours = outputs_and_gradients(triton_attention.fused_attention, inputs, torch.ones_like(q), scale=0.125)
    exact = [x.detach().double().requires_grad_() for x in inputs]
    expected = outputs_and_gradients(reference_attention, exact, torch.ones_like(q).double(), scale=0.125)
    # a score of 1e4 in float32 is known to 1e-3, and so are its exponential and all that follows
    torch.testing.assert_close(ours[0].double(), expected[0], rtol=0, atol=2e-2 if scale_up > 1 else 1e-5)
    assert all(x.isfinite().all() for x in ours)


def test_a_large_bias():
    """exp(200) is infinite in float32: nothing beyond the last row may be multiplied by it."""
    inputs = [*random_inputs(20, 20, 2, 1, 32), torch.full((1, 2, 20, 20), 200.0, device=DEVICE, requires_grad=True)]
    d_out = torch.randn_like(inputs[0])
    ours = outputs_and_gradients(triton_attention.fused_attention, inputs, d_out, scale=0.2)
    without = outputs_and_gradients(triton_attention.fused_attention, inputs[:3], d_out, scale=0.2)
    for a, b in zip(ours, without):                                           # the same for all: it changes nothing
        torch.testing.assert_close(a, b, rtol=0, atol=1e-3)                   # a score of 200 / 0.2 is known to 6e-5


@pytest.fixture
def interpreter_knows_bfloat16(monkeypatch):
    """Triton's interpreter keeps bfloat16 as its 16 bits, and its dot multiplies those bits as whole numbers."""
    if DEVICE == "cuda":
        return
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle, tl
    real = InterpreterBuilder.create_dot

    def value(x):
        if x.dtype.scalar is not tl.bfloat16:
            return x
        return TensorHandle((x.data.astype("uint32") << 16).view("float32"), tl.float32)
    monkeypatch.setattr(InterpreterBuilder, "create_dot",
                        lambda self, a, b, *rest: real(self, value(a), value(b), *rest))


@pytest.mark.usefixtures("interpreter_knows_bfloat16")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("head_dim,biased", [(64, True), (128, False)])
def test_half_precision_is_as_near_as_the_plain_equation(dtype, head_dim, biased):
    """Both round: ours may be twice as far from float64 as the equation computed in that dtype, tensor by tensor."""
    inputs = random_inputs(100, 100, 4, 2, head_dim, dtype=dtype)
    if biased:
        inputs.append(torch.randn(1, 4, 100, 100, device=DEVICE, dtype=dtype, requires_grad=True))
    d_out = torch.randn_like(inputs[0])
    options = dict(scale=head_dim ** -0.5, causal=not biased, key_mask=padding(100))
    ours = outputs_and_gradients(triton_attention.fused_attention, inputs, d_out, **options)
    plain = outputs_and_gradients(reference_attention, inputs, d_out, **options)
    exact = [x.detach().double().requires_grad_() for x in inputs]
    for a, b, true in zip(ours, plain, outputs_and_gradients(reference_attention, exact, d_out.double(), **options)):
        assert a.dtype == dtype
        assert (a - true).norm() <= 2 * (b - true).norm()


def test_any_strides_without_a_copy(monkeypatch):
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


def test_only_what_is_asked_for_is_computed():
    q, k, v = random_inputs(20, 20, 2, 1, 16)
    full = torch.autograd.grad(triton_attention.fused_attention(q, k, v, scale=1.0).sum(), (q, k, v))
    for i in range(3):
        alone = [x.detach().requires_grad_(j == i) for j, x in enumerate((q, k, v))]
        out = triton_attention.fused_attention(*alone, scale=1.0)
        torch.testing.assert_close(torch.autograd.grad(out.sum(), alone[i])[0], full[i], rtol=0, atol=0)


def test_the_same_input_gives_the_same_bits():
    inputs = random_inputs(130, 130, 4, 4, 64, dtype=torch.bfloat16)
    inputs.append(torch.randn(1, 4, 130, 130, device=DEVICE, requires_grad=True))
    d_out = torch.randn_like(inputs[0])
    first, second = (outputs_and_gradients(triton_attention.fused_attention, inputs, d_out, scale=0.125) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second))


@pytest.mark.parametrize("change,complaint", [
    (dict(q=torch.zeros(1, 2, 3, 16, dtype=torch.float64)), "float64"), (dict(q=torch.zeros(1, 2, 3, 512)), "512"),
    (dict(k=torch.zeros(1, 2, 3, 16, dtype=torch.bfloat16)), "bfloat16"), (dict(scale=-1.0), "-1.0")])
def test_what_the_kernels_do_not_take(change, complaint):
    inputs = dict(q=torch.zeros(1, 2, 3, 16), k=torch.zeros(1, 2, 3, 16), v=torch.zeros(1, 2, 3, 16), scale=1.0) | change
    inputs = {name: x.to(DEVICE) if isinstance(x, torch.Tensor) else x for name, x in inputs.items()}
    with pytest.raises(ValueError, match=complaint):
        triton_attention.fused_attention(**inputs)


# ---- the whole networks

@pytest.mark.parametrize("recompute", [False, True])
def test_llama_whole(tmp_path, recompute):
    """Left padding, grouped heads; with and without recomputation: outputs and the gradients of input and weights."""
    make_llama(tmp_path, num_key_value_heads=2, num_attention_heads=4)
    llm = load_llama(tmp_path).to(DEVICE)
    llm.gradient_checkpointing = recompute
    torch.manual_seed(0)
    x = torch.randn(2, 70, 48, device=DEVICE, requires_grad=True)
    mask = torch.ones(2, 70, dtype=torch.bool, device=DEVICE)
    mask[0, :9] = False
    weight = llm.layers[0].attn.k_proj.weight
    results = []
    for backend in ("triton", "torch"):
        use_backend(llm, backend)
        out = llm(x, mask)[mask]
        results.append((out, *torch.autograd.grad(out.square().mean(), (x, weight))))
    for ours, theirs in zip(*results):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5 * max(1, theirs.abs().max().item()))


def test_llama_with_a_cache(tmp_path):
    """A prompt in two chunks, then token by token, equals the whole at once."""
    make_llama(tmp_path)
    llm = load_llama(tmp_path).to(DEVICE)
    config = read_llama_config(tmp_path)
    torch.manual_seed(0)
    x = torch.randn(2, 30, 48, device=DEVICE)
    mask = torch.ones(2, 30, dtype=torch.bool, device=DEVICE)
    mask[1, :4] = False
    with torch.no_grad():
        use_backend(llm, "torch")
        expected = llm(x, mask)
        use_backend(llm, "triton")
        cache = KVCache(config, 2, 30, torch.float32, DEVICE)
        parts = [llm(x[:, a:b], mask[:, :b], cache) for a, b in ((0, 20), (20, 27), (27, 28), (28, 29), (29, 30))]
    torch.testing.assert_close(torch.cat(parts, 1)[mask], expected[mask], rtol=0, atol=1e-5)


@pytest.mark.usefixtures("interpreter_knows_bfloat16")
def test_generation_under_autocast(tmp_path):
    """Weights in float32, computed in bfloat16: queries, keys and the cache have one dtype."""
    make_llama(tmp_path)
    llm = load_llama(tmp_path).to(DEVICE)
    torch.manual_seed(0)
    x, mask = torch.randn(1, 7, 48, device=DEVICE), torch.ones(1, 7, dtype=torch.bool, device=DEVICE)
    tokens = {}
    for backend in ("triton", "torch"):
        use_backend(llm, backend)
        with torch.autocast(DEVICE, torch.bfloat16):
            tokens[backend] = generate(llm, x, mask, [0], 4)
    assert tokens["triton"] == tokens["torch"] and len(tokens["torch"][0]) == 4


def test_t5_encoder_whole(tmp_path):
    """A masked sample amid the series, padding; the relative bias gets its gradient."""
    make_chronos(tmp_path)
    encoder = load_t5_encoder(tmp_path)[0].to(DEVICE)
    torch.manual_seed(0)
    ids = torch.randint(4096, (2, 101), device=DEVICE)
    mask = padding(101)
    results = []
    for backend in ("triton", "torch"):
        use_backend(encoder, backend)
        out = encoder(ids, mask)
        results.append((out, *torch.autograd.grad(out.square().mean(), (encoder.relative_bias.bias.weight,
                                                                        encoder.layers[1].attn.q_proj.weight))))
    for ours, theirs in zip(*results):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5 * max(1, theirs.abs().max().item()))


def test_training_on_two_processes(demo, tmp_path):
    """`train_align.py` under DDP: the first step's loss is PyTorch's, from the first process's share and the second's."""
    losses = {}
    for backend in ("triton", "torch"):
        run("train_align.py", "--data", demo, "--out", tmp_path / backend, "--train-limit", 8, "--epochs", 1, "--batch-size",
            2, "--eval-limit", 2, "--test-limit", 1, "--max-new-tokens", 2, "--attention", backend, cwd=tmp_path, processes=2)
        lines = (tmp_path / backend / "metrics.jsonl").read_text().splitlines()
        losses[backend] = [row["loss"] for row in map(json.loads, lines) if "loss" in row]
    assert losses["triton"] == pytest.approx(losses["torch"], abs=1e-5) and len(losses["torch"]) >= 2


# ---- where there is no Triton

def python(code):
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)


def test_triton_is_not_needed_and_not_imported():
    done = python("import sys; sys.modules['triton'] = None\n"
                  "import torch, sensorllm_min.sensorllm\n"
                  "from sensorllm_min.layers import attend\n"
                  "x = torch.randn(1, 2, 3, 16); print(attend(x, x, x, scale=1.0).shape)\n"
                  "assert 'sensorllm_min.triton_attention' not in sys.modules")
    assert done.returncode == 0, done.stderr


def test_attention_triton_without_a_gpu_is_one_line(demo, tmp_path, monkeypatch):
    if DEVICE == "cuda":
        pytest.skip("here it runs")
    monkeypatch.delenv("TRITON_INTERPRET")
    printed = run("train_align.py", "--data", demo, "--attention", "triton", cwd=tmp_path, expect=2)
    assert "--attention triton needs a GPU" in printed.splitlines()[-1]


def test_the_backends_are_one_function():
    q, k, v = random_inputs(9, 9, 4, 2, 16)
    expected = attend(q, k, v, scale=0.25, causal=True, backend="torch")
    torch.testing.assert_close(attend(q, k, v, scale=0.25, causal=True, backend="triton"), expected, rtol=0, atol=1e-5)
