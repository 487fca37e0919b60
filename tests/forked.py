"""Imported once by the process that forks the runs of the tests (helpers.Run): what most runs import."""
import importlib
import os
import runpy
import sys
from pathlib import Path

os.environ["MPLBACKEND"] = "Agg"
for heavy in ("matplotlib.pyplot", "torch.distributed", "torch._dynamo", "data_prep", "train_align", "train_har",
              "evaluate"):
    importlib.import_module(heavy)

import torch                                                                  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]


def script_process(script, options, cwd, environment, output, typed, threads):
    """What a forked process does: runs the file as `python script` does, in its folder and environment, with its arguments."""
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(threads)
    with open(output, "a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdin = open(typed)
    sys.argv = [script, *options]
    runpy.run_path(str(ROOT / script), run_name="__main__")
