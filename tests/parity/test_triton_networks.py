"""Whole networks on the Triton kernels, and without them."""
import pytest
import torch
from helpers import DEVICE, ROOT, launch, losses, make_chronos, make_llama, run

from sensorllm_min.generate import generate
from sensorllm_min.layers import use_backend
from sensorllm_min.llama import KVCache
from sensorllm_min.weights import load_llama, load_t5_encoder

pytest.importorskip("triton")


# ---- the whole networks

@pytest.mark.parametrize("recompute,length,n_layers", [
    (True, 20, 2), pytest.param(False, 70, 1, marks=pytest.mark.slow)])
def test_llama_and_its_gradients_are_those_of_pytorch_attention(
        tmp_path, recompute, length, n_layers):
    """Left padding, grouped heads, with and without recomputation: outputs, and the gradients of
    the input and of weights.
    """
    make_llama(tmp_path, num_key_value_heads=2, num_attention_heads=4, num_hidden_layers=n_layers)
    llm = load_llama(tmp_path).to(DEVICE)
    llm.gradient_checkpointing = recompute
    torch.manual_seed(0)
    x = torch.randn(2, length, 48, device=DEVICE, requires_grad=True)
    mask = torch.ones(2, length, dtype=torch.bool, device=DEVICE)
    mask[0, :9] = False
    weight = llm.layers[0].attn.k_proj.weight
    results = []
    for backend in ("triton", "torch"):
        use_backend(llm, backend)
        out = llm(x, mask)[mask]
        results.append((out, *torch.autograd.grad(out.square().mean(), (x, weight))))
    for ours, theirs in zip(*results):
        tolerance = 1e-5 * max(1, theirs.abs().max().item())
        torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance)


def test_llama_with_a_cache_equals_llama_without(tmp_path):
    """A prompt in two chunks, then token by token, equals the whole at once."""
    make_llama(tmp_path)
    llm = load_llama(tmp_path).to(DEVICE)
    torch.manual_seed(0)
    x = torch.randn(2, 30, 48, device=DEVICE)
    mask = torch.ones(2, 30, dtype=torch.bool, device=DEVICE)
    mask[1, :4] = False
    with torch.no_grad():
        use_backend(llm, "torch")
        expected = llm(x, mask)
        use_backend(llm, "triton")
        caches = [KVCache(llm.config, 2, 30, torch.float32, DEVICE) for _ in llm.layers]
        ends = [20, 27, 28, 29, 30]
        parts = [llm(x[:, start:end], mask[:, :end], caches)
                 for start, end in zip([0, *ends[:-1]], ends)]
    torch.testing.assert_close(torch.cat(parts, 1)[mask], expected[mask], rtol=0, atol=1e-5)


@pytest.mark.usefixtures("interpreter_knows_bfloat16")
def test_generation_under_bf16_autocast_is_the_same_on_either_backend(tmp_path):
    """Weights in float32, computed in bfloat16: queries, keys and the cache have one dtype."""
    make_llama(tmp_path)
    llm = load_llama(tmp_path).to(DEVICE)
    torch.manual_seed(0)
    x = torch.randn(1, 7, 48, device=DEVICE)
    mask = torch.ones(1, 7, dtype=torch.bool, device=DEVICE)
    tokens = {}
    for backend in ("triton", "torch"):
        use_backend(llm, backend)
        with torch.autocast(DEVICE, torch.bfloat16):
            tokens[backend] = generate(llm, x, mask, [0], 4)
    assert tokens["triton"] == tokens["torch"] and len(tokens["torch"][0]) == 4


def test_a_frozen_t5_encoder_is_that_of_pytorch_attention(tmp_path):
    """Padding on both sides, and a masked sample amid the series."""
    make_chronos(tmp_path, num_heads=2)
    encoder = load_t5_encoder(tmp_path)[0].to(DEVICE)
    torch.manual_seed(0)
    ids = torch.randint(4096, (2, 40), device=DEVICE)
    mask = torch.ones(2, 40, dtype=torch.bool, device=DEVICE)
    mask[0, :13] = False
    mask[0, 26] = False
    mask[1, 20:] = False
    results = []
    for backend in ("triton", "torch"):
        use_backend(encoder, backend)
        with torch.no_grad():
            results.append(encoder(ids, mask))
    tolerance = 1e-5 * max(1, results[1].abs().max().item())
    torch.testing.assert_close(*results, rtol=0, atol=tolerance)


@pytest.mark.slow
def test_training_on_two_processes_has_the_losses_of_pytorch_attention(demo, tmp_path):
    """`train_align.py` on several processes: the loss of every step is that of PyTorch's attention."""
    found = {}
    for backend in ("triton", "torch"):
        run("train_align.py", "--data", demo, "--out", backend, "--train-limit", 8, "--epochs", 1,
            "--batch-size", 2, "--eval-limit", 2, "--test-limit", 1, "--max-new-tokens", 2,
            "--attention", backend, cwd=tmp_path, processes=2)
        found[backend] = losses(tmp_path / backend)
    assert found["triton"] == pytest.approx(found["torch"], abs=1e-5) and len(found["torch"]) >= 2


# ---- without Triton

def test_triton_is_not_needed_and_not_imported():
    launch("-c", "import sys; sys.modules['triton'] = None\n"
                 "import torch, sensorllm_min.sensorllm\n"
                 "from sensorllm_min.layers import attend\n"
                 "x = torch.randn(1, 2, 3, 16); print(attend(x, x, x, scale=1.0).shape)\n"
                 "assert 'sensorllm_min.triton_attention' not in sys.modules", cwd=ROOT)
