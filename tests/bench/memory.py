"""The memory of a training run, step by step: it must not grow.

    python tests/bench/memory.py [--steps 375] --data data/usc-had --train-limit 12000 \\
        --batch-size 32

All other options are those of train_align.py, which runs in a process of its own and is ended after
so many steps. What is printed is its peak until then, mapped files included.
"""
import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LINE = re.compile(r"step +(\d+)/.* ([\d.]+) GB$")


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=375)
    arguments, options = parser.parse_known_args()
    peaks = {}
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, ROOT / "train_align.py", "--log-every", "1", "--out", out,
                   "--eval-every", str(arguments.steps + 1), *options]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        for line in process.stdout:
            match = LINE.match(line.rstrip())
            if not match:
                continue
            step, peak = int(match[1]), float(match[2])
            peaks[step] = peak
            if step in (1, 10) or step % 25 == 0:
                print(f"step {step:4}: {peak:.2f} GB", flush=True)
            if step == arguments.steps:
                break
        process.kill()
        process.wait()
    at_50, last = peaks[50], peaks[max(peaks)]
    print(f"from step 50 to {max(peaks)} it grew by {last / at_50 - 1:.1%}")
    assert last <= 1.1 * at_50


if __name__ == "__main__":
    main()
