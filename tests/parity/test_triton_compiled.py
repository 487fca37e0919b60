"""The kernels compiled for GPUs that are not here: nothing spilled, matrix instructions used, shared memory that exists."""
import json
import os
import subprocess
import sys

import pytest
from helpers import ROOT

triton = pytest.importorskip("triton")


@pytest.fixture(scope="module")
def rows():
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "tests/bench/attention.py", "--compiled", "--json"], cwd=ROOT, env=environment,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_every_kernel_and_row_of_the_table_is_there(rows):
    assert len(rows) == 2 * 2 * 5 * 8
    assert {row["kernel"] for row in rows} == {"forward_kernel", "query_gradient_kernel", "key_gradients_kernel",
                                               "bias_gradient_kernel"}


def test_no_register_is_spilled(rows):
    """The tiles were chosen with Triton 3.9. Other versions place registers otherwise: what counts must fit there, too."""
    if not triton.__version__.startswith("3.9."):
        rows = [row for row in rows if row["dtype"] == "bfloat16" and row["head_dim"] in (64, 80, 128)]
    assert rows and [row for row in rows if row["spilled"]] == []


def test_matrix_instructions(rows):
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


def test_shared_memory_is_within_the_chip(rows):
    """163 KB on an A100, 227 KB on Hopper; and what is compiled for Ampere fits into the 99 KB of consumer GPUs."""
    for row in rows:
        assert row["shared"] <= (99 if row["generation"] == "ampere" else 227) * 1024, row


def test_the_loops_are_tight(rows):
    """exp2 of the forward pass: one a score and one a query of the thread's, from the tile's size."""
    seen = 0
    for row in rows:
        m, n, warps, _ = row["tiles"]
        if row["kernel"] == "forward_kernel" and row["generation"] == "hopper" and row["wgmma"] and row["head_dim"] == 128 \
                and not row["biased"]:
            assert row["loop_exp2"] == m * n // (32 * warps) + 2, row
            seen += 1
    assert seen == 1
