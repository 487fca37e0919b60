"""What the Triton kernels cost, and what they compile to.

    python tests/bench/attention.py               on a GPU: correctness, then times beside PyTorch's backends
                                                  elsewhere: the interpreter's checks, then what --compiled prints
    python tests/bench/attention.py --compiled    registers, shared memory and instructions of every row of TILES,
                                                  compiled for Ampere and Hopper; needs no GPU
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

CHIPS = {   # capability, shared memory a program may take, bytes (CUDA programming guide, table of compute capabilities)
    "ampere": (80, 163 * 1024), "hopper": (90, 227 * 1024)}
# of one multiprocessor, per clock (tuning guides of A100 and H100): bf16 multiply-adds of the matrix unit, exp2 of the
# special function unit, and threads for which its four schedulers can issue any other instruction
RATES = {"ampere": (1024, 16, 128), "hopper": (2048, 16, 128)}
PRODUCTS = {"forward_kernel": 2, "query_gradient_kernel": 3, "key_gradients_kernel": 4, "bias_gradient_kernel": 2}


# ---- what is compiled

def compiled(kernel, arguments, options, capability):
    """What a launch with these arguments would compile, for a GPU that need not be there. Tensors may be on "meta"."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from sensorllm_min.triton_attention import LENGTHS
    options, constants, hints = dict(options), {}, {}
    names = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32", torch.bool: "i1"}

    def kind(x, path, specialized):
        """The type of an argument; on the way, what Triton assumes of it: 1 and None are constants, 16 divides."""
        if isinstance(x, tuple):
            return type(x)(*(kind(part, (*path, i), specialized) for i, part in enumerate(x)))
        if x is None or (specialized and x is not True and isinstance(x, int) and x == 1):
            constants[path] = x
            return "constexpr"
        if isinstance(x, torch.Tensor) or (specialized and isinstance(x, int) and x % 16 == 0):
            hints[path] = [["tt.divisibility", 16]]
        return f"*{names[x.dtype]}" if isinstance(x, torch.Tensor) else "fp32" if isinstance(x, float) else "i32"

    signature = {name: kind(x, (i,), name not in LENGTHS) for i, (name, x) in enumerate(zip(kernel.arg_names, arguments))}
    for i, name in enumerate(kernel.arg_names[len(arguments):], len(arguments)):
        constants[(i,)] = options.pop(name)
        signature[name] = "constexpr"
    source = ASTSource(kernel, signature, constants, hints)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def arguments_of(kernel, head_dim, dtype, n_queries, biased):
    """A causal LLaMA's arguments, 4 heads a group, padded; or with a bias a T5's, which looks both ways."""
    from sensorllm_min.triton_attention import (bias_gradient_kernel, forward_kernel, key_gradients_kernel,
                                                query_gradient_kernel, strided)
    group, n_keys = 1 if biased else 4, 1024
    tokens = {name: strided(torch.empty(2, length, heads, head_dim, dtype=dtype, device="meta").transpose(1, 2))
              for name, length, heads in (("q", n_queries, 32), ("k", n_keys, 32 // group))}
    q, k = tokens["q"], tokens["k"]
    mask = strided(torch.empty(2, 1, n_keys, 1, dtype=torch.bool, device="meta"))
    row = strided(torch.empty(2, 32, n_queries, 1, device="meta"))
    bias = strided(torch.empty(1, 32, n_queries, n_keys, dtype=dtype, device="meta")) if biased else None
    arguments = {
        forward_kernel: (q, k, k, bias, mask, q, row, 0.1, 32, n_queries, n_keys),
        query_gradient_kernel: (q, k, k, bias, mask, q, row, q, row, q, 0.1, 32, n_queries, n_keys),
        key_gradients_kernel: (q, k, k, bias, mask, row, q, row, k, k, 0.1, 32 // group, n_queries, n_keys),
        bias_gradient_kernel: (q, k, k, bias, mask, row, q, row, bias, 0.1, 32, n_queries, n_keys, 2)}
    return arguments[kernel], dict(GROUP=group, CAUSAL=not biased)


def innermost_loops(code):
    """Of machine code, [(address, text)]: the loops that hold no other and use the matrix unit, as lists of text."""
    ends = {}
    for address, text in code:
        branch = re.search(r"\bBRA(?:\.U)?\s+(?:!?U?P\w+,\s*)?0x([0-9a-f]+)", text)
        if branch and int(branch[1], 16) < address:
            ends[address] = int(branch[1], 16)
    inner = [(start, end) for end, start in ends.items()
             if not any(start <= s and e <= end and (s, e) != (start, end) for e, s in ends.items())]
    loops = ([text for address, text in code if start <= address <= end] for start, end in sorted(inner))
    return [loop for loop in loops if any("MMA" in text for text in loop)]


def measured(case):
    """One row of TILES compiled: what it takes of a multiprocessor, and the cycles a tile takes of each of its units."""
    import triton
    from triton import knobs

    from sensorllm_min import triton_attention
    name, generation, head_dim, dtype_name, n_queries, biased = case
    dtype, (capability, _) = getattr(torch, dtype_name), CHIPS[generation]
    kernel = getattr(triton_attention, name)
    tiles = triton_attention.tiles_for(kernel, "float32" if dtype == torch.float32 else generation, head_dim, n_queries,
                                       biased)
    arguments, model = arguments_of(kernel, head_dim, dtype, n_queries, biased)
    binary = compiled(kernel, arguments, model | dict(
        HEAD_DIM=head_dim, M=tiles.queries, N=tiles.keys, D=max(16, triton.next_power_of_2(head_dim)),
        num_warps=tiles.warps, num_stages=tiles.stages, enable_fp_fusion=True), capability)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(binary.asm["cubin"])
        usage, listing = (subprocess.run([knobs.nvidia.cuobjdump.path, option, file.name], capture_output=True, text=True,
                                         check=True).stdout for option in ("--dump-resource-usage", "-sass"))
    code = [(int(address, 16), text) for address, text in re.findall(r"^\s+/\*([0-9a-f]{4,})\*/\s+(.+?);", listing, re.M)]
    operations = collections.Counter(re.sub(r"^@!?U?P\w+\s+", "", text).split()[0].split(".")[0] for _, text in code)
    registers = int(re.search(r"REG:(\d+)", usage)[1])
    row = dict(kernel=name, generation=generation, head_dim=head_dim, dtype=dtype_name, short=n_queries <= 16, biased=biased,
               tiles=list(tiles), registers=registers, spilled=operations["LDL"] + operations["STL"],
               shared=binary.metadata.shared, wgmma=operations["HGMMA"], mma=operations["HMMA"],
               programs=min(65536 // (registers * 32 * tiles.warps), CHIPS[generation][1] // (binary.metadata.shared + 1024)))
    loops = innermost_loops(code)
    if loops and dtype != torch.float32:
        m, n, warps, _ = tiles
        row["loop_exp2"] = sum("MUFU.EX2" in text for text in loops[0])
        n_tiles = max(1, row["loop_exp2"] * 32 * warps // (m * n))            # the compiler may have unrolled the loop
        other = sum("MMA" not in text and "MUFU.EX2" not in text for text in loops[0])
        matrix_rate, exp2_rate, issue_rate = RATES[generation]
        row["cycles"] = [PRODUCTS[name] * m * n * max(16, triton.next_power_of_2(head_dim)) // matrix_rate,
                         m * n // exp2_rate, other * 32 * warps // n_tiles // issue_rate]
    return row


def cases():
    """LLaMA's and T5's use of each kernel. The bias gradient exists with a bias only, decoding only forward."""
    for dtype in ("bfloat16", "float32"):
        for generation in CHIPS:
            for head_dim in (16, 64, 80, 128, 256):
                for name in ("forward_kernel", "query_gradient_kernel", "key_gradients_kernel", "bias_gradient_kernel"):
                    for biased in (False, True):
                        if biased or name != "bias_gradient_kernel":
                            yield name, generation, head_dim, dtype, 1024, biased
                yield "forward_kernel", generation, head_dim, dtype, 4, False


def compile_all(say):
    with ProcessPoolExecutor(2) as pool:
        for row in pool.map(measured, cases()):
            say(row)


def print_compiled(row):
    if row == "head":
        print(f"{'kernel':22}{'for':8}{'Dh':>4} {'dtype':9}{'model':7}{'tile':>10}{'warps':>6}{'regs':>6}{'spilled':>8}"
              f"{'shared':>8}{'programs':>9}  cycles a tile: matrix unit, exp2 unit, issue of the rest")
        return
    model = "decode" if row["short"] else "T5" if row["biased"] else "LLaMA"
    m, n, warps, _ = row["tiles"]
    loop = "".join(f"{cycles:6}" for cycles in row.get("cycles", ()))
    print(f"{row['kernel']:22}{row['generation']:8}{row['head_dim']:4} {row['dtype']:9}{model:7}{f'{m} x {n}':>10}{warps:6}"
          f"{row['registers']:6}{row['spilled']:8}{row['shared'] // 1024:5} KB{row['programs']:9}{loop}", flush=True)


# ---- what is measured

SHAPES = [   # batch, heads, KV heads, length, head size, like which model
    (8, 32, 8, 512, 128, "LLaMA"), (4, 32, 8, 2048, 128, "LLaMA"), (2, 32, 8, 4096, 128, "LLaMA"),
    (1, 32, 8, 16384, 128, "LLaMA"), (64, 16, 16, 201, 64, "T5")]


def matmul_rate():
    """bf16 FLOP/s of a large matrix product on this chip: the floor that no attention gets under."""
    from triton.testing import do_bench
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    return 2 * 8192 ** 3 / (do_bench(lambda: a @ b, return_mode="median") * 1e-3)


def ways(bias):
    """Name -> attention: ours, and PyTorch's backends by name. Flash takes no bias; Efficient stands in for it."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    from sensorllm_min.triton_attention import fused_attention

    def torch_backend(backend):
        def attention(q, k, v, scale, causal):
            with sdpa_kernel(backend):
                return torch.nn.functional.scaled_dot_product_attention(
                    q, k, v, attn_mask=bias, is_causal=causal, scale=scale, enable_gqa=q.shape[1] != k.shape[1])
        return attention
    ours = {"ours": lambda q, k, v, scale, causal: fused_attention(q, k, v, scale=scale, causal=causal, bias=bias)}
    flash = SDPBackend.FLASH_ATTENTION if bias is None else SDPBackend.EFFICIENT_ATTENTION
    return ours | {"flash" if bias is None else "efficient": torch_backend(flash),
                   "cudnn": torch_backend(SDPBackend.CUDNN_ATTENTION)}


def bench(batch, n_heads, n_kv_heads, length, head_dim, model, rate):
    """Error against float64 on a few heads, then medians of forward and backward."""
    from triton.testing import do_bench

    from sensorllm_min.layers import reference_attention
    torch.manual_seed(0)
    causal, scale = model == "LLaMA", head_dim ** -0.5 if model == "LLaMA" else 1.0
    q, k, v = (torch.randn(batch, length, heads, head_dim, device="cuda", dtype=torch.bfloat16).transpose(1, 2)
               * (1.0 if causal else head_dim ** -0.25) for heads in (n_heads, n_kv_heads, n_kv_heads))
    q, k, v = (x.detach().requires_grad_() for x in (q, k, v))
    padded = -(-length // 16) * 16
    bias = None if causal else torch.randn(1, n_heads, padded, padded, device="cuda",
                                           dtype=torch.bfloat16)[:, :, :length, :length]
    d_out = torch.randn_like(q)
    some, group = min(length, 2048), n_heads // n_kv_heads
    small = [x[:1, :group if x.shape[1] == n_heads else 1, :some].detach().double().requires_grad_() for x in (q, k, v)]
    small_bias = None if bias is None else bias[:, :group, :some, :some].double()
    true = reference_attention(*small, scale=scale, causal=causal, bias=small_bias)
    true = (true.detach(), *torch.autograd.grad(true, small, d_out[:1, :group, :some].double()))

    flop = 4 * batch * n_heads * length ** 2 * head_dim * (0.5 if causal else 1)
    print(f"\n({batch}, {n_heads}, {n_kv_heads}, {length}, {head_dim}) {model}: floor at the matmul rate "
          f"{flop / rate * 1e3:.3f} ms forward, {2.5 * flop / rate * 1e3:.3f} ms backward")
    for name, attention in ways(bias).items():
        try:
            out = attention(q, k, v, scale, causal)
            forward = do_bench(lambda: attention(q.detach(), k.detach(), v.detach(), scale, causal), return_mode="median")
            backward = do_bench(lambda: torch.autograd.grad(out, (q, k, v), d_out, retain_graph=True), return_mode="median")
        except RuntimeError as error:
            print(f"  {name:10} does not run here: {str(error).splitlines()[0][:80]}")
            continue
        narrow = [x[:1, :group if x.shape[1] == n_heads else 1, :some].detach().requires_grad_() for x in (q, k, v)]
        part = ways(None if bias is None else bias[:, :group, :some, :some])[name](*narrow, scale, causal)
        found = (part.detach(), *torch.autograd.grad(part, narrow, d_out[:1, :group, :some]))
        errors = " ".join(f"{((a - b).norm() / b.norm()).item():.1e}" for a, b in zip(found, true))
        print(f"  {name:10} forward {forward:8.3f} ms {flop / forward / 1e9:5.0f} TFLOP/s   backward {backward:8.3f} ms "
              f"{2.5 * flop / backward / 1e9:5.0f} TFLOP/s   error of out, dq, dk, dv: {errors}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compiled", action="store_true", help="only what the kernels compile to")
    parser.add_argument("--json", action="store_true", help="with --compiled: one JSON object a line")
    args = parser.parse_args()
    os.environ.pop("TRITON_INTERPRET", None)                                  # this process compiles
    if not args.compiled:
        there = torch.cuda.is_available()
        print("correctness:" if there else "no GPU here: the kernels run in Triton's interpreter, nothing is timed", flush=True)
        subprocess.run([sys.executable, "-m", "pytest", "-q", "tests/test_triton_attention.py"], cwd=ROOT, check=True)
        if there:
            rate = matmul_rate()
            print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}: matmul {rate / 1e12:.0f} TFLOP/s in bf16")
            for shape in SHAPES:
                bench(*shape, rate)
            return
    if not args.json:
        print_compiled("head")
    compile_all((lambda row: print(json.dumps(row), flush=True)) if args.json else print_compiled)


if __name__ == "__main__":
    main()
