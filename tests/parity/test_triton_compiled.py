"""The kernels compiled for GPUs that are not here: nothing spilled, matrix instructions used, shared memory that exists.

A quarter of the table of tests/bench/attention.py, which prints all of it with --compiled.
"""
import itertools
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


# ---- a part of the table (slow) ----

CHIPS, HEAD_SIZES, DTYPES = ("ampere", "hopper"), (16, 64, 80, 128, 256), ("bfloat16", "float32")
USES = [   # kernel, queries, biased
    ("forward_kernel", 1024, False), ("forward_kernel", 1024, True), ("query_gradient_kernel", 1024, False),
    ("query_gradient_kernel", 1024, True), ("key_gradients_kernel", 1024, False), ("key_gradients_kernel", 1024, True),
    ("bias_gradient_kernel", 1024, True), ("forward_kernel", 4, False)]


def part_of_the_table():
    """Each use with each head size, on chips and in dtypes that take turns -> cases of attention.py.

    The turns are such that each use, and each head size, meets each chip in each dtype.
    """
    for i, (kernel, n_queries, biased) in enumerate(USES):
        for j, head_dim in enumerate(HEAD_SIZES):
            chip = CHIPS[(i + j) % 2]
            dtype = DTYPES[(i // 2 + j // 2 + 1) % 2]
            yield kernel, chip, head_dim, dtype, n_queries, biased


@pytest.fixture(scope="module")
def rows():
    code = ("import json, sys; sys.path.insert(0, 'tests/bench'); import attention\n"
            "from concurrent.futures import ProcessPoolExecutor\n"
            "with ProcessPoolExecutor(2) as pool:\n"
            f"    for row in pool.map(attention.measured, {list(part_of_the_table())}): print(json.dumps(row))")
    return compiled_rows("-c", code)


def test_the_part_of_the_table_has_each_use_and_each_head_size_on_each_chip_in_each_dtype():
    cases = [((kernel, n_queries, biased), chip, head_dim, dtype)
             for kernel, chip, head_dim, dtype, n_queries, biased in part_of_the_table()]
    assert len(cases) == 40
    for taken, values in (((0, 2), (USES, HEAD_SIZES)), ((0, 1, 3), (USES, CHIPS, DTYPES)),
                          ((1, 2, 3), (CHIPS, HEAD_SIZES, DTYPES))):
        assert {tuple(case[place] for place in taken) for case in cases} == set(itertools.product(*values))
    assert (USES[0], "hopper", 128, "bfloat16") in cases                      # the loop that is looked into below


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
