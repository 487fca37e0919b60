"""The kernels compiled for GPUs that are not here: nothing spilled, matrix instructions used, and
shared memory that every such GPU has.
"""
import json
import os
import subprocess
import sys

import pytest
from helpers import ROOT

triton = pytest.importorskip("triton")

AMPERE, HOPPER = 80, 90
SHARED_MEMORY = 99 * 1024               # bytes that a program may take on consumer GPUs
USES = ("training", "biased", "decoding")
CASES = [(chip, head_dim, dtype, use)
         for dtype, head_sizes in (("bfloat16", (16, 64, 80, 128)), ("float32", (64, 128)))
         for chip in (AMPERE, HOPPER) for head_dim in head_sizes for use in USES]


def compile_all(cases):
    """-> what compiled_kernels.py prints of the cases, run without Triton's interpreter."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "tests/parity/compiled_kernels.py", json.dumps(cases)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_kernels_compile_for_gpus_that_are_not_here(tmp_path, monkeypatch):
    """LLaMA's training on Hopper, T5 on Ampere: compiled afresh, as on a new machine."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    rows = compile_all([(HOPPER, 128, "bfloat16", "training"), (AMPERE, 64, "bfloat16", "biased")])
    assert [row["kernel"] for row in rows] == [
        "forward_kernel", "query_gradient_kernel", "key_gradients_kernel", "forward_kernel"]
    assert all(row["wgmma"] for row in rows[:3]) and rows[3]["mma"]
    for row in rows:
        assert row["spilled"] == 0 and row["shared"] <= SHARED_MEMORY, row


# ---- every kernel, head size and dtype on both chips (slow) ----

@pytest.fixture(scope="module")
def rows():
    rows = compile_all(CASES)
    assert len(rows) == 5 * len(CASES) / 3                        # three kernels run in training
    return rows


@pytest.mark.slow
def test_no_register_is_spilled(rows):
    """The tiles were chosen with Triton 3.9. Other versions place registers in other ways: there
    the sizes of public models must fit.
    """
    if not triton.__version__.startswith("3.9."):
        rows = [row for row in rows if row["case"][2] == "bfloat16" and row["case"][1] in (64, 128)]
    assert rows and [row for row in rows if row["spilled"]] == []


@pytest.mark.slow
def test_products_use_matrix_instructions_unless_in_float32(rows):
    """Hopper's own where a tile is 64 high or more; none for float32, which they would round to 10
    bits.
    """
    for row in rows:
        chip, _, dtype, use = row["case"]
        if dtype == "float32":
            assert row["wgmma"] == row["mma"] == 0, row
        elif chip == HOPPER and use != "decoding":
            assert row["wgmma"], row
        else:
            assert row["mma"] and not row["wgmma"], row


@pytest.mark.slow
def test_shared_memory_is_that_of_consumer_gpus(rows):
    assert max(row["shared"] for row in rows) <= SHARED_MEMORY
