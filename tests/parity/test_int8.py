"""Frozen matrices in int8: what they cost in accuracy and save in memory, and that gradients pass through them."""
import copy

import torch
from helpers import make_chronos, make_llama, run

from sensorllm_min.config import LlamaConfig
from sensorllm_min.int8 import Int8Linear, quantize
from sensorllm_min.layers import init_from_scratch
from sensorllm_min.llama import Llama
from sensorllm_min.text_tokenizer import train_backend
from sensorllm_min.weights import load_llama


def dequantized(layer):
    return layer.q.float() * layer.scale[:, None]


def test_a_weight_is_off_by_half_a_step_at_most():
    torch.manual_seed(0)
    weight = torch.randn(50, 70) * torch.logspace(-6, 3, 50)[:, None]         # rows of very different size
    weight[7] = 0
    layer = Int8Linear(weight)
    assert ((dequantized(layer) - weight).abs() <= layer.scale[:, None] / 2 * 1.001).all()
    assert layer.q.dtype == torch.int8 and layer.q.abs().amax(1)[[0, 6, 8, 49]].tolist() == [127] * 4
    # nothing was divided by zero
    assert (dequantized(layer)[7] == 0).all() and (layer.scale > 0).all()


def test_product_and_gradient_are_those_of_the_dequantized_matrix():
    torch.manual_seed(0)
    layer, x = Int8Linear(torch.randn(50, 70)), torch.randn(3, 5, 70, requires_grad=True)
    grad = torch.randn(3, 5, 50)
    expected = x @ dequantized(layer).T
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-5 * expected.abs().max().item())
    (ours,), (theirs,) = (torch.autograd.grad(out, x, grad) for out in (layer(x), expected))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5 * theirs.abs().max().item())


def test_under_autocast_the_product_has_its_dtype():
    """As nn.Linear's, so that an int8 LLM computes in bfloat16 where a bfloat16 one does."""
    torch.manual_seed(0)
    layer, x = Int8Linear(torch.randn(50, 70)), torch.randn(3, 70)
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(x)
    assert out.dtype == torch.bfloat16
    exact = x @ dequantized(layer).T
    assert (out - exact).norm() < 2 ** -7 * exact.norm()  # two roundings to 8 bits


def test_nothing_is_kept_in_floating_point():
    """Neither in the model nor for the backward pass: what autograd saves is the int8 matrix itself."""
    layer, x = Int8Linear(torch.randn(50, 70)), torch.randn(5, 70, requires_grad=True)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        layer(x)
    assert not any(t.is_floating_point() and t.dim() > 1 for t in saved) and any(t is layer.q for t in saved)
    assert sum(t.nbytes for t in layer.buffers()) == 50 * 70 + 50 * 4 and not list(layer.parameters())


def test_a_quantised_llama_is_that_of_the_dequantised_matrices(tmp_path):
    make_llama(tmp_path)
    exact = load_llama(tmp_path, torch.float32).requires_grad_(False)
    int8 = quantize(load_llama(tmp_path, torch.float32).requires_grad_(False))
    # all matrices of both blocks
    assert sum(isinstance(layer, Int8Linear) for layer in int8.modules()) == 2 * 7
    assert torch.equal(int8.head_weight, exact.head_weight) and torch.equal(
        int8.embed_tokens.weight, exact.embed_tokens.weight
    )
    rounded = copy.deepcopy(exact)                                            # the same rounding, in plain matrices
    for (name, layer) in int8.named_modules():
        if isinstance(layer, Int8Linear):
            rounded.get_submodule(name).weight.copy_(dequantized(layer))
    torch.manual_seed(0)
    x = torch.randn(2, 30, 48, requires_grad=True)
    results = [(out := llm.logits(llm(x)), torch.autograd.grad(out.square().mean(), x)[0]) for llm in (int8, rounded, exact)]
    for ours, same in zip(results[0], results[1]):
        torch.testing.assert_close(ours, same, rtol=0, atol=2e-5 * same.abs().max().item())
    assert (results[0][0] - results[2][0]).norm() < 0.05 * results[2][0].norm()


def token_loss(llm, ids):
    """Cross entropy per token of ids (B, T)."""
    logits = llm.logits(llm(llm.embed_tokens(ids[:, :-1]))).float()
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())


def test_a_llama_trained_here_loses_little():
    """Two blocks learn a chain in which the next token follows nine times in ten; then their
    matrices are rounded.
    """
    torch.manual_seed(0)
    llm = Llama(
        LlamaConfig(vocab_size=32, d_model=64, d_ff=128, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=16)
    )
    init_from_scratch(llm)
    follower = torch.randperm(32)

    def texts(n, length=40):
        ids = torch.randint(32, (n, length))
        for t in range(1, length):
            ids[:, t] = torch.where(torch.rand(n) < 0.9, follower[ids[:, t - 1]], ids[:, t])
        return ids

    optimizer = torch.optim.Adam(llm.parameters(), lr=3e-3)
    for _ in range(120):
        loss = token_loss(llm, texts(16))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    held_out = texts(64)
    with torch.no_grad():
        exact = token_loss(llm, held_out).item()
        rounded = token_loss(quantize(llm), held_out).item()
    assert exact < 1.0  # untrained 3.5; the chain's entropy is 0.65
    assert abs(rounded - exact) < 0.001                                       # measured 0.00001


def test_the_scripts_train_and_evaluate_in_int8(demo, tmp_path):
    make_llama(tmp_path / "llama", train_backend(["rising and falling 0.1s"], 300), max_position_embeddings=20_000)
    make_chronos(tmp_path / "chronos")
    common = ("--data", demo, "--train-limit", 8, "--epochs", 1, "--batch-size", 4, "--eval-limit", 2, "--test-limit", 1,
              "--max-new-tokens", 2, "--llm", "llama", "--dtype", "int8")
    run("train_align.py", *common, "--encoder", "chronos", "--out", "out", cwd=tmp_path)
    run("evaluate.py", "--checkpoint", "out", "--data", demo, "--limit", 2, "--max-new-tokens", 2, "--dtype", "int8", cwd=tmp_path)
    line = run("train_align.py", *common, "--train", "projector,llm", "--out", "other", cwd=tmp_path, expect=2).splitlines()[-1]
    assert "--dtype int8" in line and "frozen" in line
    line = run("train_align.py", "--data", demo, "--dtype", "int8", cwd=tmp_path, expect=2).splitlines()[-1]
    assert "--dtype int8" in line
