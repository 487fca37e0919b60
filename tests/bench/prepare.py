"""How fast data is prepared, and in how much memory: python tests/bench/prepare.py

    text            stage-1 pairs a second of one process, for noisy series
    usc-had         the whole dataset, where it is beside the project, on one process and on two
    capture24       a participant's day at 100 Hz (8.64 million lines), written as the dataset is
"""
import gzip
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from sensorllm_min.data.prepare import prepare                    # noqa: E402
from sensorllm_min.data.sensors import DATASETS                   # noqa: E402
from sensorllm_min.data.texts import align_pair, pair_rng         # noqa: E402

USC_HAD = ROOT.parent / "shared/data/USC-HAD"


def measure_text():
    dataset, rng = DATASETS["usc-had"], np.random.default_rng(0)
    lengths = rng.integers(5, 201, size=3000)
    windows = [rng.normal(size=length).round(1).cumsum() for length in lengths]
    began = time.time()
    for index, series in enumerate(windows):
        channel = dataset.channels[index % 6]
        rng = pair_rng(0, "usc-had", True, index)
        align_pair(series, channel, dataset.rate, dataset.answer, rng)
    print(f"text: {len(windows) / (time.time() - began):.0f} pairs/s in one process", flush=True)


def measure(name, raw, workers):
    """In a process of its own, whose peak of memory is its own."""
    print(f"{name}, {workers} workers: ", end="", flush=True)
    subprocess.run([sys.executable, __file__, name, raw, str(workers)], check=True)


def prepare_once(name, raw, workers):
    began = time.time()
    with tempfile.TemporaryDirectory() as folder:
        meta = prepare(name, raw, Path(folder, "out"), workers=workers, say=lambda line: None)
    seconds = time.time() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    pairs, windows = sum(meta["align_pairs"].values()), sum(meta["har_windows"].values())
    print(f"{pairs} pairs, {windows} windows, {seconds:.1f} s, {pairs / seconds:.0f} pairs/s; peak "
          f"memory {peak:.0f} MiB" + (" without the workers" if workers > 1 else ""))


def write_day(raw, n=8_640_000):
    """P001.csv.gz: a day of rest and movement; the label changes every ten minutes."""
    (raw / "annotation-label-dictionary.csv").write_text(
        "annotation,label:WillettsSpecific2018\n"
        "7030 sleeping;MET 0.95,sleep\nwalking;MET 2.3,walking\n")
    rng, labels = np.random.default_rng(0), ("7030 sleeping;MET 0.95", "walking;MET 2.3", "")
    first, step = np.datetime64("2015-03-01T10:00:00.000"), np.timedelta64(10, "ms")
    with gzip.open(raw / "P001.csv.gz", "wt", compresslevel=1) as file:
        file.write("time,x,y,z,annotation\n")
        for start in range(0, n, 60_000):
            times = (first + np.arange(start, start + 60_000) * step).astype(str)
            samples = rng.normal(size=(60_000, 3)).round(6).tolist()
            label = labels[start // 60_000 % 3]
            for stamp, (x, y, z) in zip(np.char.replace(times, "T", " "), samples):
                file.write(f"{stamp},{x},{y},{z},{label}\n")


if __name__ == "__main__":
    if sys.argv[1:]:
        name, raw, workers = sys.argv[1:]
        sys.exit(prepare_once(name, raw, int(workers)))
    measure_text()
    if USC_HAD.exists():
        for workers in (1, 2):
            measure("usc-had", str(USC_HAD), workers)
    with tempfile.TemporaryDirectory() as folder:
        print("writing a day of capture24 ...", flush=True)
        write_day(Path(folder))
        measure("capture24", folder, 1)
