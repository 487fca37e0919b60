"""What the Triton kernels cost, and what they compile to.

    python tests/bench/attention.py               on a GPU: tests, then times beside PyTorch's
                                                  backends; elsewhere: tests in the interpreter,
                                                  then what --compiled prints
    python tests/bench/attention.py --compiled    registers, shared memory and instructions of every
                                                  row of TILES, for Ampere and Hopper, without a GPU
"""
import argparse
import collections
import json
import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

# Capability, and bytes of shared memory that a program may take (CUDA programming guide).
CHIPS = {"ampere": (80, 163 * 1024), "hopper": (90, 227 * 1024)}
# What one multiprocessor does per clock (tuning guides of A100 and H100): bf16 multiply-adds of the
# matrix unit, exp2 of the special function unit, threads that get any other instruction issued.
RATES = {"ampere": (1024, 16, 128), "hopper": (2048, 16, 128)}
PRODUCTS = {            # matrix products for each tile of scores
    "forward_kernel": 2, "query_gradient_kernel": 3, "key_gradients_kernel": 4,
    "bias_gradient_kernel": 2}
TYPES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32", torch.bool: "i1"}


# ---- what is compiled ----

def compiled(kernel, arguments, options, capability):
    """The binary of a launch, for a GPU that need not be there; the arguments may be on "meta"."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from sensorllm_min.triton_attention import LENGTHS
    options, constants, hints = dict(options), {}, {}

    def kind(x, path, specialized):
        """The type of an argument. Triton makes None and 1 constants, and notes what 16 divides."""
        if isinstance(x, tuple):
            return type(x)(*(kind(part, (*path, i), specialized) for i, part in enumerate(x)))
        number = specialized and isinstance(x, int) and x is not True
        if x is None or (number and x == 1):
            constants[path] = x
            return "constexpr"
        if isinstance(x, torch.Tensor) or (number and x % 16 == 0):
            hints[path] = [["tt.divisibility", 16]]
        if isinstance(x, torch.Tensor):
            return f"*{TYPES[x.dtype]}"
        return "fp32" if isinstance(x, float) else "i32"

    signature = {}
    for i, name in enumerate(kernel.arg_names):
        if i < len(arguments):
            signature[name] = kind(arguments[i], (i,), name not in LENGTHS)
        else:
            constants[(i,)] = options.pop(name)
            signature[name] = "constexpr"
    source = ASTSource(kernel, signature, constants, hints)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def arguments_for(name, head_dim, dtype, n_queries, biased):
    """A kernel's arguments and constants for a causal LLaMA, 4 heads a group; biased: for a T5."""
    from sensorllm_min.triton_attention import strided
    group, n_keys = 1 if biased else 4, 1024

    def empty(*shape, dtype=dtype):
        return torch.empty(shape, dtype=dtype, device="meta")

    q = strided(empty(2, n_queries, 32, head_dim).transpose(1, 2))
    k = strided(empty(2, n_keys, 32 // group, head_dim).transpose(1, 2))
    mask = strided(empty(2, 1, n_keys, 1, dtype=torch.bool))
    row = strided(empty(2, 32, n_queries, 1, dtype=torch.float32))
    bias = strided(empty(1, 32, n_queries, n_keys)) if biased else None
    sizes = (0.1, 32, n_queries, n_keys)                # scale, heads, queries, keys
    arguments = {
        "forward_kernel": (q, k, k, bias, mask, q, row, *sizes),
        "query_gradient_kernel": (q, k, k, bias, mask, q, row, q, row, q, *sizes),
        "key_gradients_kernel":
            (q, k, k, bias, mask, row, q, row, k, k, 0.1, 32 // group, n_queries, n_keys),
        "bias_gradient_kernel": (q, k, k, bias, mask, row, q, row, bias, *sizes, 2)}
    return arguments[name], dict(GROUP=group, CAUSAL=not biased)


def disassemble(cubin):
    """Machine code -> (what cuobjdump says of its resources, [(address, instruction)])."""
    from triton import knobs
    printed = []
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(cubin)
        for option in ("--dump-resource-usage", "-sass"):
            command = [knobs.nvidia.cuobjdump.path, option, file.name]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            printed.append(done.stdout)
    lines = re.findall(r"^\s+/\*([0-9a-f]{4,})\*/\s+(.+?);", printed[1], re.M)
    return printed[0], [(int(address, 16), text) for address, text in lines]


def innermost_loops(code):
    """The loops in code [(address, text)] that hold no other and use the matrix unit -> texts."""
    loops = []                                                    # (start, end)
    for address, text in code:
        branch = re.search(r"\bBRA(?:\.U)?\s+(?:!?U?P\w+,\s*)?0x([0-9a-f]+)", text)
        if branch and int(branch[1], 16) < address:
            loops.append((int(branch[1], 16), address))
    found = []
    for start, end in sorted(loops):
        inside = [loop for loop in loops if start <= loop[0] and loop[1] <= end]
        texts = [text for address, text in code if start <= address <= end]
        if len(inside) == 1 and any("MMA" in text for text in texts):
            found.append(texts)
    return found


def measured(case):
    """One of `cases`, compiled: what a program takes, and each unit's cycles for a tile."""
    import triton

    from sensorllm_min import triton_attention
    name, generation, head_dim, dtype_name, n_queries, biased = case
    dtype, (capability, shared_memory) = getattr(torch, dtype_name), CHIPS[generation]
    rows = "float32" if dtype == torch.float32 else generation
    kernel = getattr(triton_attention, name)
    tiles = triton_attention.tiles_for(kernel, rows, head_dim, n_queries, biased)
    width = max(16, triton.next_power_of_2(head_dim))
    arguments, constants = arguments_for(name, head_dim, dtype, n_queries, biased)
    options = constants | dict(
        HEAD_DIM=head_dim, M=tiles.queries, N=tiles.keys, D=width,
        num_warps=tiles.warps, num_stages=tiles.stages, enable_fp_fusion=True)
    binary = compiled(kernel, arguments, options, capability)
    usage, code = disassemble(binary.asm["cubin"])
    operations = collections.Counter()
    for _, text in code:
        operations[re.sub(r"^@!?U?P\w+\s+", "", text).split()[0].split(".")[0]] += 1
    registers = int(re.search(r"REG:(\d+)", usage)[1])
    by_registers = 65536 // (registers * 32 * tiles.warps)
    by_memory = shared_memory // (binary.metadata.shared + 1024)
    row = dict(
        kernel=name, generation=generation, head_dim=head_dim, dtype=dtype_name,
        short=n_queries <= 16, biased=biased, tiles=list(tiles), registers=registers,
        spilled=operations["LDL"] + operations["STL"], shared=binary.metadata.shared,
        wgmma=operations["HGMMA"], mma=operations["HMMA"], programs=min(by_registers, by_memory))
    loops = innermost_loops(code)
    if loops and dtype != torch.float32:
        m, n, warps, _ = tiles
        row["loop_exp2"] = sum("MUFU.EX2" in text for text in loops[0])
        n_tiles = max(1, row["loop_exp2"] * 32 * warps // (m * n))            # of an unrolled loop
        other = sum("MMA" not in text and "MUFU.EX2" not in text for text in loops[0])
        matrix_rate, exp2_rate, issue_rate = RATES[generation]
        row["cycles"] = [PRODUCTS[name] * m * n * width // matrix_rate, m * n // exp2_rate,
                         other * 32 * warps // n_tiles // issue_rate]
    return row


def cases():
    """Each kernel as LLaMA and T5 use it -> (kernel, chip, head size, dtype, queries, biased).

    The bias gradient exists with a bias only; decoding uses the forward kernel only.
    """
    uses = [(name, 1024, biased) for name in PRODUCTS for biased in (False, True)]
    uses.remove(("bias_gradient_kernel", 1024, False))
    uses.append(("forward_kernel", 4, False))
    for dtype in ("bfloat16", "float32"):
        for generation in CHIPS:
            for head_dim in (16, 64, 80, 128, 256):
                for name, n_queries, biased in uses:
                    yield name, generation, head_dim, dtype, n_queries, biased


HEAD = (f"{'kernel':22}{'for':8}{'Dh':>4} {'dtype':9}{'model':7}{'tile':>10}{'warps':>6}{'regs':>6}"
        f"{'spilled':>8}{'shared':>8}{'programs':>9}  cycles a tile: matrix unit, exp2 unit, rest")


def print_row(row):
    model = "T5" if row["biased"] else "LLaMA"
    if row["short"]:
        model = "decode"
    m, n, warps, _ = row["tiles"]
    cycles = "".join(f"{number:6}" for number in row.get("cycles", ()))
    print(f"{row['kernel']:22}{row['generation']:8}{row['head_dim']:4} {row['dtype']:9}{model:7}"
          f"{f'{m} x {n}':>10}{warps:6}{row['registers']:6}{row['spilled']:8}"
          f"{row['shared'] // 1024:5} KB{row['programs']:9}{cycles}", flush=True)


# ---- what is timed ----

SHAPES = [   # batch, heads, KV heads, length, head size, the model with such shapes
    (8, 32, 8, 512, 128, "LLaMA"), (4, 32, 8, 2048, 128, "LLaMA"), (2, 32, 8, 4096, 128, "LLaMA"),
    (1, 32, 8, 16384, 128, "LLaMA"), (64, 16, 16, 201, 64, "T5")]


def matmul_rate():
    """FLOP/s of a large bf16 matrix product on this chip, which no attention exceeds."""
    from triton.testing import do_bench
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    return 2 * 8192 ** 3 / (do_bench(lambda: a @ b, return_mode="median") * 1e-3)


def attentions(bias, scale, causal):
    """Name -> attention(q, k, v): ours, and PyTorch's backends. Flash takes no bias."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    from sensorllm_min.triton_attention import fused_attention

    def ours(q, k, v):
        return fused_attention(q, k, v, scale=scale, causal=causal, bias=bias)

    def torch_backend(backend):
        def attention(q, k, v):
            with sdpa_kernel(backend):
                return torch.nn.functional.scaled_dot_product_attention(
                    q, k, v, attn_mask=bias, is_causal=causal, scale=scale,
                    enable_gqa=q.shape[1] != k.shape[1])
        return attention

    name, flash = "flash", SDPBackend.FLASH_ATTENTION
    if bias is not None:
        name, flash = "efficient", SDPBackend.EFFICIENT_ATTENTION
    return {"ours": ours, name: torch_backend(flash),
            "cudnn": torch_backend(SDPBackend.CUDNN_ATTENTION)}


def bench(shape, rate):
    """Prints median times of a shape, and errors against float64 on the first group of heads."""
    from triton.testing import do_bench

    from sensorllm_min.layers import reference_attention
    batch, n_heads, n_kv_heads, length, head_dim, model = shape
    torch.manual_seed(0)
    causal = model == "LLaMA"
    scale, size = (head_dim ** -0.5, 1.0) if causal else (1.0, head_dim ** -0.25)

    def random(*shape):
        return torch.randn(shape, device="cuda", dtype=torch.bfloat16)

    q, k, v = ((random(batch, length, heads, head_dim).transpose(1, 2) * size).requires_grad_()
               for heads in (n_heads, n_kv_heads, n_kv_heads))
    d_out = torch.randn_like(q)
    bias = part_bias = None
    some, group = min(length, 2048), n_heads // n_kv_heads
    if not causal:
        padded = -(-length // 16) * 16
        bias = random(1, n_heads, padded, padded)[:, :, :length, :length]
        part_bias = bias[:, :group, :some, :some]
    parts = [q[:1, :group, :some], k[:1, :1, :some], v[:1, :1, :some]]

    def outputs(attention, dtype):
        """-> out, dq, dk, dv of the first group of heads."""
        inputs = [x.detach().to(dtype).requires_grad_() for x in parts]
        out = attention(*inputs)
        gradients = torch.autograd.grad(out, inputs, d_out[:1, :group, :some].to(dtype))
        return out.detach(), *gradients

    def equation(q, k, v):
        bias = None if causal else part_bias.double()
        return reference_attention(q, k, v, scale=scale, causal=causal, bias=bias)

    true = outputs(equation, torch.float64)
    flop = 4 * batch * n_heads * length ** 2 * head_dim * (0.5 if causal else 1)
    print(f"\n{shape[:5]} {model}: at the matmul rate {flop / rate * 1e3:.3f} ms forward, "
          f"{2.5 * flop / rate * 1e3:.3f} ms backward")
    for name, attention in attentions(bias, scale, causal).items():
        try:
            out = attention(q, k, v)
            forward = do_bench(
                lambda: attention(q.detach(), k.detach(), v.detach()), return_mode="median")
            backward = do_bench(
                lambda: torch.autograd.grad(out, (q, k, v), d_out, retain_graph=True),
                return_mode="median")
        except RuntimeError as error:
            print(f"  {name:10} does not run here: {str(error).splitlines()[0][:80]}")
            continue
        found = outputs(attentions(part_bias, scale, causal)[name], torch.bfloat16)
        errors = " ".join(f"{((a - b).norm() / b.norm()).item():.1e}" for a, b in zip(found, true))
        print(f"  {name:10} forward {forward:8.3f} ms {flop / forward / 1e9:5.0f} TFLOP/s   "
              f"backward {backward:8.3f} ms {2.5 * flop / backward / 1e9:5.0f} TFLOP/s   "
              f"error of out, dq, dk, dv: {errors}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compiled", action="store_true", help="print what the kernels compile to")
    parser.add_argument("--json", action="store_true", help="with --compiled: rows as JSON objects")
    args = parser.parse_args()
    os.environ.pop("TRITON_INTERPRET", None)                      # this process compiles
    if not args.compiled:
        command = [sys.executable, "-m", "pytest", "-q", "tests/parity/test_triton_attention.py"]
        subprocess.run(command, cwd=ROOT, check=True)
    if not args.compiled and torch.cuda.is_available():
        rate = matmul_rate()
        print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}: "
              f"matmul {rate / 1e12:.0f} TFLOP/s in bf16")
        for shape in SHAPES:
            bench(shape, rate)
        return
    if not args.json:
        print(HEAD)
    with ProcessPoolExecutor(2) as pool:
        for row in pool.map(measured, cases()):
            if args.json:
                print(json.dumps(row), flush=True)
            else:
                print_row(row)


if __name__ == "__main__":
    main()
