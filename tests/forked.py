"""Imported once by the process that forks the runs of the tests (helpers.Run): everything that a script may import."""
import importlib
import os
import sys
from pathlib import Path

os.environ["MPLBACKEND"] = "Agg"
for heavy in ("matplotlib.pyplot", "pandas", "scipy.io", "scipy.signal", "torch.distributed", "torch._dynamo",
              "data_prep", "train_align", "train_har", "evaluate"):
    importlib.import_module(heavy)

import torch                                                                  # noqa: E402

from sensorllm_min.cli import run_script    # noqa: E402


def script_process(script, options, cwd, environment, output, typed, threads):
    """What a forked process does: becomes the script, in its folder, environment and with its arguments."""
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(threads)
    with open(output, "a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdin = open(typed)
    sys.argv = [script, *options]
    run_script(importlib.import_module(Path(script).stem).main)
