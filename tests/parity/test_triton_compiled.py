"""The kernels compiled for GPUs that are not here: nothing spilled, matrix instructions used, shared memory that exists."""
import json
import os
import subprocess
import sys

import pytest
from helpers import ROOT

triton = pytest.importorskip("triton")


# bytes a program may take: of consumer GPUs, and of an H100
SMEM = {"ampere": 99 * 1024, "hopper": 227 * 1024}


def compiled_rows(*command, **environment):
    """Runs Python without Triton's interpreter -> what it printed, one JSON object a line."""
    base = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=base | environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.slow
def test_two_kernels_compile_for_gpus_that_are_not_here(tmp_path):
    """LLaMA's forward pass for Hopper, T5's key gradients for Ampere: compiled afresh, as on a
    new machine.
    """
    cases = [("forward_kernel", "hopper", 128, "bfloat16", 1024, False),
             ("key_gradients_kernel", "ampere", 64, "bfloat16", 1024, True)]
    code = ("import json, sys; sys.path.insert(0, 'tests/bench'); import attention\n"
            f"for case in {cases}: print(json.dumps(attention.measured(case)))")
    forward, keys = compiled_rows("-c", code, TRITON_CACHE_DIR=str(tmp_path))
    assert forward["wgmma"] and keys["mma"]  # the matrix instructions of each
    for row in (forward, keys):
        assert row["spilled"] == 0 and row["shared"] <= SMEM[row["generation"]], row


# ---- all kernels, all rows of the table (slow) ----

@pytest.fixture(scope="module")
def rows():
    return compiled_rows("tests/bench/attention.py", "--compiled", "--json")


@pytest.mark.slow
def test_every_kernel_and_row_of_the_table_is_there(rows):
    dtypes, chips, head_sizes, kernels_and_uses = 2, 2, 5, 8
    assert len(rows) == dtypes * chips * head_sizes * kernels_and_uses
    assert {row["kernel"] for row in rows} == {"forward_kernel", "query_gradient_kernel", "key_gradients_kernel",
                                               "bias_gradient_kernel"}


@pytest.mark.slow
def test_no_register_is_spilled(rows):
    """The tiles were chosen with Triton 3.9. Other versions place registers otherwise: what counts must fit there, too."""
    if not triton.__version__.startswith("3.9."):
        rows = [row for row in rows if row["dtype"] == "bfloat16" and row["head_dim"] in (64, 80, 128)]
    assert rows and [row for row in rows if row["spilled"]] == []


@pytest.mark.slow
def test_products_use_matrix_instructions_unless_in_float32(rows):
    """Hopper's own where a tile is 64 high or more; none for float32, which they would round to 10 bits."""
    for row in rows:
        if row["dtype"] == "float32":
            assert row["wgmma"] == row["mma"] == 0, row
        elif row["generation"] == "ampere":
            assert row["mma"] and not row["wgmma"], row
        else:
            assert row["wgmma"] or row["mma"], row
    hopper = [row for row in rows if row["generation"] == "hopper" and row["dtype"] == "bfloat16" and not row["short"]]
    assert all(row["wgmma"] for row in hopper if row["kernel"] in ("forward_kernel", "query_gradient_kernel"))
    assert all(row["wgmma"] for row in hopper if row["kernel"] == "key_gradients_kernel" and row["head_dim"] <= 128
               and not row["biased"])


@pytest.mark.slow
def test_shared_memory_is_within_the_chip(rows):
    """What is compiled for Ampere fits into the 99 KB of consumer GPUs, not only into the 163 KB
    of an A100.
    """
    for row in rows:
        assert row["shared"] <= SMEM[row["generation"]], row


@pytest.mark.slow
def test_the_forward_loop_computes_no_exp2_twice(rows):
    """exp2 of the forward pass: one a score and one a query of the thread's, from the tile's size."""
    seen = 0
    for row in rows:
        m, n, warps, _ = row["tiles"]
        if row["kernel"] == "forward_kernel" and row["generation"] == "hopper" and row["wgmma"] and row["head_dim"] == 128 \
                and not row["biased"]:
            assert row["loop_exp2"] == m * n // (32 * warps) + 2, row
            seen += 1
    assert seen == 1
