"""What the Triton kernels cost on a GPU, beside PyTorch's backends.

    python tests/bench/attention.py

Prints median times for LLaMA's shapes, forward and backward, and for T5's with a bias, forward
only. tests/parity/compiled_kernels.py shows without a GPU what the kernels compile to.
"""
import sys
from pathlib import Path

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from sensorllm_min.layers import attend                           # noqa: E402

SHAPES = [              # batch, heads, KV heads, length, head size, the model with such shapes
    (8, 32, 8, 512, 128, "LLaMA"),
    (4, 32, 8, 2048, 128, "LLaMA"),
    (1, 32, 8, 16384, 128, "LLaMA"),
    (64, 16, 16, 201, 64, "T5"),
]
BACKENDS = {"flash": SDPBackend.FLASH_ATTENTION, "efficient": SDPBackend.EFFICIENT_ATTENTION,
            "cudnn": SDPBackend.CUDNN_ATTENTION}


def median_ms(run):
    from triton.testing import do_bench
    return do_bench(run, return_mode="median")


def matmul_rate():
    """FLOP/s of a large bf16 matrix product on this chip, which no attention exceeds."""
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    return 2 * 8192 ** 3 / (median_ms(lambda: a @ b) * 1e-3)


def random(*shape):
    return torch.randn(shape, device="cuda", dtype=torch.bfloat16)


def bench(shape, rate):
    batch, n_heads, n_kv_heads, length, head_dim, model = shape
    causal = model == "LLaMA"
    q, k, v = (random(batch, length, heads, head_dim).transpose(1, 2)
               for heads in (n_heads, n_kv_heads, n_kv_heads))
    d_out = torch.randn_like(q)
    bias = None
    if not causal:
        padded = -(-length // 16) * 16                            # as t5_encoder.RelativeBias does
        bias = random(1, n_heads, padded, padded)[:, :, :length, :length]

    def run(q, k, v, name):
        options = dict(scale=head_dim ** -0.5, causal=causal, bias=bias)
        if name == "ours":
            return attend(q, k, v, backend="triton", **options)
        with sdpa_kernel(BACKENDS[name]):
            return attend(q, k, v, backend="torch", **options)

    flop = 4 * batch * n_heads * length ** 2 * head_dim * (0.5 if causal else 1)
    print(f"\n{shape[:5]} {model}: at the matmul rate {flop / rate * 1e3:.3f} ms forward, "
          f"{2.5 * flop / rate * 1e3:.3f} ms backward")
    for name in ("ours", *BACKENDS):
        try:
            forward = median_ms(lambda: run(q, k, v, name))
            line = f"forward {forward:8.3f} ms {flop / forward / 1e9:5.0f} TFLOP/s"
            if causal:
                inputs = [x.detach().requires_grad_() for x in (q, k, v)]
                out = run(*inputs, name)
                backward = median_ms(
                    lambda: torch.autograd.grad(out, inputs, d_out, retain_graph=True))
                line += f"   backward {backward:8.3f} ms {2.5 * flop / backward / 1e9:5.0f} TFLOP/s"
        except RuntimeError as error:
            line = f"does not run here: {str(error).splitlines()[0][:80]}"
        print(f"  {name:10} {line}", flush=True)


def main():
    if not torch.cuda.is_available():
        sys.exit("attention.py needs a GPU")
    rate = matmul_rate()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}: "
          f"matmul {rate / 1e12:.0f} TFLOP/s in bf16")
    for shape in SHAPES:
        bench(shape, rate)


if __name__ == "__main__":
    main()
