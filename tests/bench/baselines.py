"""What a sceptic runs first, on the windows, folds and augmentation of ours, in one table.

    python tests/bench/baselines.py DATA [--folds 7] [--limit 6000]      # stage 2: classifiers
    python tests/bench/baselines.py DATA --align out/align               # stage 1: directions of trends

Forest and logistic regression read sensorllm_min/statistics.py, MiniRocket the samples (it needs
`pip install aeon` and is left out without it). Each trains on the training windows and DRAWS augmented copies.
"""
import argparse
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from sensorllm_min.batch import IGNORED, Example, collate                    # noqa: E402
from sensorllm_min.data.claims import in_samples, parse_claims               # noqa: E402
from sensorllm_min.data.examples import AlignExamples, resize_movement, rotate_sensors      # noqa: E402
from sensorllm_min.data.prepared import PreparedData                         # noqa: E402
from sensorllm_min.data.sensors import rotations                             # noqa: E402
from sensorllm_min.data.texts import trend_line                              # noqa: E402
from sensorllm_min.evaluation.class_scores import count_people, score_people # noqa: E402
from sensorllm_min.evaluation.interface import load_model                    # noqa: E402
from sensorllm_min.evaluation.trend_scores import Guess, list_segments       # noqa: E402
from sensorllm_min.statistics import Statistics                              # noqa: E402

DRAWS = 4                               # augmented copies of each training window
DEGREES, FACTOR = 30.0, 1.4             # as train_har.py has them for the built-in networks


def classifiers():
    """{row: (a scikit-learn classifier, whether it reads statistics)}"""
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.linear_model import LogisticRegression, RidgeClassifierCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    rows = {"forest": (RandomForestClassifier(500, min_samples_leaf=2, random_state=0, n_jobs=2), True),
            "logistic regression": (make_pipeline(StandardScaler(), LogisticRegression(C=0.02, max_iter=300)), True)}
    try:
        from aeon.transformations.collection.convolution_based import MiniRocket
    except ImportError:
        print("without MiniRocket: pip install aeon")
        return rows
    ridge = make_pipeline(MiniRocket(random_state=0), StandardScaler(with_mean=False),
                          RidgeClassifierCV(np.logspace(-2, 4, 7)))
    return rows | {"MiniRocket, ridge": (ridge, False)}


def windows_of(data, split, limit):
    """Windows (N, C, S) and records of a split; a seeded sample of `limit`, as train_har.py takes it."""
    records = data.records("har", split)
    chosen = np.arange(len(records))
    if limit and limit < len(records):
        chosen = np.sort(np.random.default_rng(0).permutation(len(records))[:limit])
    records = [records[i] for i in chosen]
    return np.stack([data.window(record) for record in records]).astype(float), records


def augmented(windows, dataset):
    """The windows (N, S, C), then DRAWS copies as if worn and moved otherwise."""
    copies, rng = [windows], np.random.default_rng(0)
    for _ in range(DRAWS):
        turned = [rotate_sensors(window, rotations(dataset), DEGREES, rng) for window in windows]
        copies.append(np.stack([resize_movement(window, FACTOR, rng) for window in turned]))
    return np.concatenate(copies)


def compare_classifiers(directory, folds, limit):
    parts = [PreparedData(directory, (k, folds) if folds else None) for k in range(folds or 1)]
    people = parts[0].subjects_of(None if folds else "test")
    classes, n_classes = parts[0].dataset.classes, len(parts[0].dataset.classes)
    for row, (classifier, reads_statistics) in classifiers().items():
        began, counts = time.monotonic(), 0
        for data in parts:
            windows, records = windows_of(data, "train", limit)
            train, labels = augmented(windows, data.dataset), np.tile([r["label"] for r in records], 1 + DRAWS)
            test, test_records = windows_of(data, "test", None)
            train, test = (part.swapaxes(1, 2) for part in (train, test))
            if reads_statistics:
                raw = Statistics(data.usual(), data.dataset.n_window).raw
                train, test = (raw(torch.from_numpy(part.copy()), torch.arange(part.shape[1])).flatten(1).numpy()
                               for part in (train, test))
            predicted = classifier.fit(train.astype(np.float32), labels).predict(test.astype(np.float32))
            answers = [record | {"predicted": int(label)} for record, label in zip(test_records, predicted)]
            counts = counts + count_people(answers, people, n_classes)
        scores = score_people(counts, people, classes)
        f1 = [person["f1"] for person in scores["people"].values()]
        print(f"{row:20} macro F1 {scores['macro_f1']:.3f}, of {len(f1)} people {np.mean(f1):.3f} +- {np.std(f1):.3f}, "
              f"accuracy {scores['accuracy']:.3f}, {time.monotonic() - began:.0f} s", flush=True)


def directions(segments, n):
    """The direction of each of n intervals, 0 where nothing is claimed."""
    found = np.zeros(n)
    for start, end, direction in segments:
        found[start:end] = direction
    return found


def compare_directions(directory, checkpoint, n_train=1500, n_test=400):
    """The fraction of the time whose direction is right, for answers that have not seen the window, and
    for logistic regression on the encoder's features at each sample, which shows what there is to be read."""
    from sklearn.linear_model import LogisticRegression
    model, data = load_model(f"{checkpoint}/best.safetensors", None, None, "cpu", "float32"), PreparedData(directory)
    rate, features, signs, texts, right = data.dataset.rate, {}, {}, {}, Counter()
    guess = Guess(AlignExamples(data, "train", model.prompts))
    for split, limit in (("train", n_train), ("test", n_test)):
        examples, features[split], signs[split] = AlignExamples(data, split, model.prompts, limit), [], []
        for i in range(len(examples)):
            series = examples[i].series[0]
            one = Example([0], [], [series], IGNORED, {}, 0, examples[i].channels)
            with torch.no_grad():
                found = model.model.encode(collate([one], 0))[:len(series) - 1].numpy()
            features[split].append(found)
            signs[split].append(np.sign(np.diff(trend_line(series, data.dataset))))
            if split == "test":
                texts[i] = examples[i].record
    probe = LogisticRegression(max_iter=200).fit(np.concatenate(features["train"]), np.concatenate(signs["train"]))
    lengths = [end - start for one in signs["train"]
               for start, end, _ in list_segments(np.concatenate([[0], one.cumsum()]))]
    period = max(1, round(np.mean(lengths)))
    for i, true in enumerate(signs["test"]):
        n = len(true)
        text = parse_claims(guess.text(texts[i]["channel"], texts[i]["length"]))
        answers = {"the usual direction": np.full(n, guess.usual),
                   f"turning every {period} samples": 1 - 2 * (np.arange(n) // period % 2),
                   "text of a training window": directions(in_samples(text.segments, n, rate), n),
                   "linear probe of the encoder": probe.predict(features["test"][i])}
        right.update({name: int((answer == true).sum()) for name, answer in answers.items()})
    total = sum(map(len, signs["test"]))
    for name, count in right.items():
        print(f"{name:30} direction right for {count / total:.1%} of the time")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--folds", type=int)
    parser.add_argument("--limit", type=int, help="training windows of a fold")
    parser.add_argument("--align", help="a run of train_align.py: compare directions instead of classes")
    args = parser.parse_args()
    if args.align:
        compare_directions(args.data, args.align)
    else:
        compare_classifiers(args.data, args.folds, args.limit)
