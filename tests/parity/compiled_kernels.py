"""Compiles the Triton kernels for GPUs that need not be here, as they would be launched there.

    python tests/parity/compiled_kernels.py CASES

CASES is JSON, a list of [compute capability, head size, dtype, use]; prints a line of JSON for each
kernel. A process of its own, since test_triton_compiled.py runs in Triton's interpreter.
"""
import functools
import json
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from sensorllm_min import triton_attention    # noqa: E402


class Driver:
    """Stands in for the driver of a GPU."""

    def __init__(self, capability):
        self.capability = capability

    def get_current_device(self):
        return self.capability          # by which Triton caches kernels

    def get_current_stream(self, device):
        return None

    def get_current_target(self):
        return GPUTarget("cuda", self.capability, 32)


def disassemble(cubin):
    """Machine code -> its instructions."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(cubin)
        command = [knobs.nvidia.cuobjdump.path, "-sass", file.name]
        printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+(.+?);", printed, re.M)


def run_attention(head_dim, dtype, use):
    """Attention of tensors without memory: "training" and "decoding" as LLaMA, "biased" as T5."""
    def empty(n_heads, n_rows):
        x = torch.empty(2, n_rows, n_heads, head_dim, dtype=getattr(torch, dtype), device="meta")
        return x.transpose(1, 2)

    n_kv_heads = 32 if use == "biased" else 8
    n_queries = 1 if use == "decoding" else 1024
    q, k, v = empty(32, n_queries), empty(n_kv_heads, 1024), empty(n_kv_heads, 1024)
    mask = torch.empty(2, 1024, dtype=torch.bool, device="meta")
    bias = torch.empty(1, 32, 1024, 1024, dtype=q.dtype, device="meta") if use == "biased" else None
    q.requires_grad_(use == "training")
    out = triton_attention.fused_attention(
        q, k, v, scale=0.1, causal=use != "biased", key_mask=mask, bias=bias)
    if use == "training":
        out.backward(q.detach())


def compile_case(case):
    """-> what each kernel of a case takes: a dict for each."""
    capability, *arguments = case
    rows = []

    def compile_only(kernel, *arguments, **options):
        binary = kernel.warmup(*arguments, grid=(1,), **options)
        code = disassemble(binary.asm["cubin"])
        counts = {name: sum(name in instruction for instruction in code)
                  for name in ("HGMMA", "HMMA", "LDL", "STL")}
        rows.append(dict(
            case=case, kernel=kernel.__name__,
            spilled=counts["LDL"] + counts["STL"], shared=binary.metadata.shared,
            wgmma=counts["HGMMA"], mma=counts["HMMA"]))

    triton.runtime.driver.set_active(Driver(capability))
    JITFunction.__getitem__ = lambda kernel, grid: functools.partial(compile_only, kernel)
    run_attention(*arguments)
    return rows


if __name__ == "__main__":
    with ProcessPoolExecutor(2) as pool:
        for rows in pool.map(compile_case, json.loads(sys.argv[1])):
            for row in rows:
                print(json.dumps(row))
