"""How fast data is prepared, and in how much memory: python tests/bench/prepare.py

    text            stage-1 pairs a second of one process: questions, trends and summaries of noisy series
    usc-had         all of it, where it lies beside the project, on one process and on two
    capture24       one participant's day at 100 Hz (8.64 million lines), in the dataset's raw form, written for it
"""
import gzip
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from helpers import ROOT, SHARED

from sensorllm_min.sensors import DATASETS
from sensorllm_min.trend_text import align_pair, pair_rng

MEASURE = """
import resource, sys, time
sys.path.insert(0, {root!r})
from sensorllm_min.prepare import prepare
if __name__ == "__main__":
    began = time.time()
    meta = prepare({name!r}, {raw!r}, {out!r}, workers={workers}, say=lambda line: None)
    seconds = time.time() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    pairs = sum(meta["align_pairs"].values())
    print(f"{{pairs}} pairs, {{sum(meta['har_windows'].values())}} windows, {{seconds:.1f}} s, {{pairs / seconds:.0f}} pairs/s; "
          f"peak memory {{peak:.0f}} MiB" + (" without the workers" if {workers} > 1 else ""))
"""


def text():
    dataset, rng = DATASETS["usc-had"], np.random.default_rng(0)
    windows = [rng.normal(size=int(rng.integers(5, 201))).round(1).cumsum() for _ in range(3000)]
    began = time.time()
    for place, series in enumerate(windows):
        channel = dataset.channels[place % 6]
        align_pair(series, channel, dataset.rate, dataset.answer, pair_rng(0, "usc-had", True, place))
    print(f"text: {len(windows) / (time.time() - began):.0f} pairs/s in one process", flush=True)


def measure(name, raw, workers):
    """In a process of its own, whose peak is its own."""
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder, "measure.py")
        script.write_text(MEASURE.format(root=str(ROOT), name=name, raw=str(raw), out=f"{folder}/out", workers=workers))
        print(f"{name}, {workers} workers: ", end="", flush=True)
        subprocess.run([sys.executable, script], check=True)


def write_day(raw, n=8_640_000):
    """P001.csv.gz: a day of rest and movement, labels that change each ten minutes."""
    (raw / "annotation-label-dictionary.csv").write_text(
        "annotation,label:WillettsSpecific2018\n7030 sleeping;MET 0.95,sleep\nwalking;MET 2.3,walking\n")
    rng, annotations = np.random.default_rng(0), ("7030 sleeping;MET 0.95", "walking;MET 2.3", "")
    with gzip.open(raw / "P001.csv.gz", "wt", compresslevel=1) as file:
        file.write("time,x,y,z,annotation\n")
        for start in range(0, n, 60_000):
            stamps = np.datetime64("2015-03-01T10:00:00.000") + np.arange(start, start + 60_000) * np.timedelta64(10, "ms")
            samples = rng.normal(size=(60_000, 3)).round(6)
            annotation = annotations[start // 60_000 % 3]
            file.write("".join(f"{stamp},{x},{y},{z},{annotation}\n" for stamp, (x, y, z) in
                               zip(np.char.replace(stamps.astype(str), "T", " "), samples.tolist())))


if __name__ == "__main__":
    text()
    if (SHARED / "data/USC-HAD").exists():
        for workers in (1, 2):
            measure("usc-had", SHARED / "data/USC-HAD", workers)
    with tempfile.TemporaryDirectory() as folder:
        print("writing a day of capture24 ...", flush=True)
        write_day(Path(folder))
        measure("capture24", folder, 1)
