"""Prepared datasets: windows, splits, wording and counts; what the settings change; lines and files that are broken."""
import json
import re
import shutil
from collections import Counter

import numpy as np
import pytest
from helpers import digest, quiet, run
from raw_files import PEOPLE, write_small_own
from test_metrics import read_summary

from sensorllm_min.files import InputError
from sensorllm_min.data.prepared import PreparedData
from sensorllm_min.data.claims import parse_claims
from sensorllm_min.data.prepare import make_job, prepare, random_windows
from sensorllm_min.data.sensors import DATASETS
from sensorllm_min.evaluation.trend_scores import truth_sums
from sensorllm_min.data.texts import (
    HAR_TEXTS, align_pair, har_text, pair_rng, trend_segments)

SPLITS = ("train", "val", "test")
KINDS = ("simple_trend", "summary")                                           # of one's own recordings, where none are asked for


def lines_of(data, kind, split):
    rows = data.records(kind, split)
    return [rows[i] for i in range(len(rows))]


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Four people's recordings of 230 samples, four each, prepared with seed 3 -> (raw, out)."""
    folder = tmp_path_factory.mktemp("small")
    write_small_own(folder / "raw")
    prepare("own", folder / "raw", folder / "out", seed=3, say=quiet)
    return folder / "raw", folder / "out"


# ---- windows ----

def test_random_windows_follow_one_another_and_take_every_length():
    windows = random_windows(1000, 5, 200, np.random.default_rng(0))
    assert all(5 <= length <= 200 for _, length in windows)
    ends = [start + length for start, length in windows]
    assert [start for start, _ in windows] == [0, *ends[:-1]] and 1000 - ends[-1] < 5
    lengths = {length for _, length in random_windows(5000, 2, 5, np.random.default_rng(0))}
    assert lengths == {2, 3, 4, 5}
    assert random_windows(4, 5, 200, np.random.default_rng(0)) == []


def test_training_recordings_are_cut_twice_over_for_descriptions_and_others_once(small):
    data = PreparedData(small[1])
    cut = Counter()
    for split in SPLITS:
        for line in lines_of(data, "align", split):
            if line["channel"] == "ramp":
                cut[split] += line["length"]
    shortest = data.dataset.align_lengths[0]
    for split, people, times in (("train", 2, 2), ("val", 1, 1), ("test", 1, 1)):
        samples = people * times * 4 * 230
        left_over = people * times * 4 * (shortest - 1)                       # at the end of each recording, at most
        assert samples - left_over <= cut[split] <= samples


def test_stage_1_cuts_differ_by_subject_recording_and_seed(small, tmp_path):
    """All recordings are of 230 samples: only the key of the generator can make their cuts differ."""
    prepare("own", small[0], tmp_path / "out", seed=4, say=quiet)
    cuts = {}
    for folder in (small[1], tmp_path / "out"):
        for split in SPLITS:
            for line in lines_of(PreparedData(folder), "align", split):
                recording, start = divmod(line["start"], 230)
                cuts.setdefault((folder, line["subject"], recording), []).append((start, line["length"]))
    found = {tuple(sorted(set(one))[:4]) for one in cuts.values()}
    assert len(found) == len(cuts) == 2 * 4 * 4


# ---- wording ----

def test_wording_is_drawn_by_seed_dataset_subject_start_length_and_channel():
    base = (0, "usc-had", 1, 400, 60, "x_acc")
    others = [base[:i] + (other,) + base[i + 1:] for i, other in enumerate((1, "mhealth", 2, 401, 61, "y_acc"))]
    found = [pair_rng(seed, name, True, *key).random() for seed, name, *key in (base, *others, base)]
    assert len(set(found)) == 7 and found[0] == found[-1]                     # and by nothing else


def test_every_pair_can_be_made_again_alone_from_its_line(small):
    """Question and answer follow from the samples, the seed and the place that a line names, whatever came before."""
    data = PreparedData(small[1])
    channels = {channel.token: (column, channel) for column, channel in enumerate(data.dataset.channels)}
    for split in SPLITS:
        for line in lines_of(data, "align", split):
            column, channel = channels[line["channel"]]
            place = (line["subject"], line["start"], line["length"], line["channel"])
            series = data.window(line)[:, column]
            made = align_pair(series, channel, data.dataset.rate, KINDS, pair_rng(3, "gloves", *place))
            assert made == (line["question"], line["answer"]), line


def test_the_demo_words_every_pair_alike_and_tells_the_truth(demo):
    data = PreparedData(demo)
    assert np.load(demo / "samples" / "1.npy").dtype == np.float32            # one line of numpy
    assert {path.suffix for path in demo.rglob("*") if path.is_file()} == {".npy", ".jsonl", ".json"}
    tokens = [channel.token for channel in data.dataset.channels]
    lines = lines_of(data, "align", "test")
    assert {line["subject"] for line in lines} == set(data.dataset.test_subjects)
    for line in lines[::50]:                                                  # every stored answer is true of its series
        series = data.window(line)[:, tokens.index(line["channel"])]
        claims = parse_claims(line["answer"])
        sums = truth_sums(claims, claims, series, data.dataset)
        assert all(sums[name][0] == sums[name][1] for name in ("direction", "segment_f1", "well_formed")), line
    assert len({line["question"] for line in lines}) == len(tokens)           # one wording


# ---- counts and settings ----

def test_meta_counts_are_those_of_the_lines(small):
    """Per split and per subject: windows, pairs, samples and the balance of classes, summed over the subjects."""
    data = PreparedData(small[1])
    by_class, by_subject = {}, {person: Counter() for person in PEOPLE}
    for split in SPLITS:
        windows, pairs = lines_of(data, "har", split), lines_of(data, "align", split)
        assert data.meta["har_windows"][split] == len(windows) and data.meta["align_pairs"][split] == len(pairs)
        by_class[split] = dict(Counter(data.dataset.classes[line["label"]] for line in windows))
        for what, lines in (("har_windows", windows), ("align_pairs", pairs)):
            for line in lines:
                by_subject[line["subject"]][what] += 1
    assert data.meta["class_balance"] == by_class
    assert by_class["train"] == {"waving": 36, "typing": 36}                  # two people, two recordings of nine windows
    for person, counts in data.meta["subjects"].items():
        split = {"anna": "test", "ben": "val"}.get(person, "train")
        assert counts == {"split": split, "recordings": 4, "samples": 920, **by_subject[person]}


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(small, tmp_path):
    raw, out = small
    prepare("own", raw, tmp_path / "again", workers=3, seed=3, say=quiet)     # whatever the number of processes
    assert digest(tmp_path / "again") == digest(out)
    prepare("own", raw, tmp_path / "again", seed=1, say=quiet)                # replaces what was prepared there
    assert digest(tmp_path / "again")["align_train.jsonl"] != digest(out)["align_train.jsonl"]


def test_a_share_of_the_windows_is_drawn_by_seed_and_place(tmp_path):
    """About the share is kept, within five standard deviations of the binomial; no two recordings keep the same."""
    write_small_own(tmp_path / "raw", n_recordings=6, stride=5)
    whole = prepare("own", tmp_path / "raw", tmp_path / "whole", say=quiet)
    write_small_own(tmp_path / "raw", n_recordings=6, stride=5, share=0.3)
    chosen = {}
    for seed in (0, 1):
        meta = prepare("own", tmp_path / "raw", tmp_path / f"kept{seed}", seed=seed, say=quiet)
        for what, per_draw in (("har_windows", 1), ("align_pairs", 3)):       # the channels of a window are kept together
            drawn, kept = (sum(one[what].values()) / per_draw for one in (whole, meta))
            assert abs(kept - 0.3 * drawn) < 5 * np.sqrt(drawn * 0.3 * 0.7)
        for split in SPLITS:
            for line in lines_of(PreparedData(tmp_path / f"kept{seed}"), "har", split):
                recording, start = divmod(line["start"], 230)
                chosen.setdefault((seed, line["subject"], recording), set()).add(start)
    assert len(chosen) == 2 * 4 * 12 == len(set(map(frozenset, chosen.values())))


def test_the_options_of_data_prep_reach_the_dataset(small, tmp_path):
    """The same bytes as from a call with them, and the settings in meta.json, through which the dataset is known again."""
    raw, _ = small
    out = run("data_prep.py", "--dataset", "own", "--raw", raw, "--seed", 7, "--rate", 12.5, "--smooth", 0.4, "--band", 0.1,
              "--answer", "summary+trend", "--longest", 15, "--workers", 1, cwd=tmp_path)
    assert "wrote data/gloves-12.5hz; look at a window with --show 0 --out data/gloves-12.5hz" in out
    assert "har_windows: train 72, val 36, test 36" in out and re.search(r"^waving +36 +18 +18$", out, re.MULTILINE)
    assert re.search(r"^ben +val +4 +460 +36 +\d+$", out, re.MULTILINE)
    settings = dict(seed=7, rate=12.5, smooth=0.4, band=0.1, answer=("trend", "summary"), longest=15)
    prepare("own", raw, tmp_path / "called", **settings, say=quiet)
    prepared = tmp_path / "data" / "gloves-12.5hz"
    assert digest(prepared) == digest(tmp_path / "called")
    data, expected = PreparedData(prepared), make_job("own", raw, **settings).dataset
    assert data.dataset == expected and (expected.smooth, expected.band, expected.raw_rate) == (0.4, 0.1, 25)
    assert data.meta["seed"] == 7 and data.meta["row"]["answer"] == ["trend", "summary"] and data.dataset.align_lengths == (12, 15)
    lines = lines_of(data, "align", "test")
    assert {line["length"] for line in lines} == {12, 13, 14, 15}
    assert all(re.fullmatch(r"[^\n]+\n\n[^\n]+", line["answer"]) for line in lines)  # no line a segment: two paragraphs


# ---- what is refused ----

@pytest.mark.parametrize("name", ["usc-had", "uci-har"])
def test_raw_directories_that_are_missing_or_empty_are_refused(tmp_path, name):
    (tmp_path / "empty").mkdir()
    for raw, words in (("nowhere", "nowhere is not a directory; .*--download"), ("empty", "empty holds no file")):
        with pytest.raises(InputError, match=words):
            prepare(name, tmp_path / raw, tmp_path / "out", say=quiet)
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]            # nothing half-written


@pytest.mark.parametrize("change,words", [
    ({"version": 0}, "version 0"), ({"row": None}, "does not hold what it should")], ids=str)
def test_a_meta_json_of_another_version_or_dataset_is_refused(demo, tmp_path, change, words):
    meta = json.loads((demo / "meta.json").read_text())
    (tmp_path / "meta.json").write_text(json.dumps(meta | change))
    with pytest.raises(InputError, match=words):
        PreparedData(tmp_path)


def test_prepared_files_that_are_cut_or_broken_are_named(demo, tmp_path):
    shutil.copytree(demo, tmp_path / "data")
    data = PreparedData(tmp_path / "data")
    path = tmp_path / "data" / "align_train.jsonl"
    good = path.read_bytes()
    path.write_bytes(good[: len(good) // 2])
    with pytest.raises(InputError, match="align_train.jsonl holds .* lines, meta.json says"):
        data.records("align", "train")
    path.write_bytes(b"{" + good)
    with pytest.raises(InputError, match="align_train.jsonl, line 1, does not hold"):
        data.records("align", "train")[0]
    path, record = tmp_path / "data" / "samples" / "9.npy", data.records("har", "test")[0]
    samples = np.load(path)
    for change, words in ((lambda s: s[:, :5], r"shape \(3400, 5\)"), (lambda s: s[:7], "samples 0 to 24 are missing"), (lambda s: s + np.inf, "not finite")):
        np.save(path, change(samples))
        with pytest.raises(InputError, match="9.npy.*" + words):
            PreparedData(tmp_path / "data").window(record)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(InputError, match="9.npy is missing or truncated"):
        PreparedData(tmp_path / "data").window(record)


# ---- texts of stage 2 ----

COMBINATIONS = ["smry", "trend", "corr", "smry+Q", "smry+meta", "smry+meta+Q", "smry+corr", "smry+corr+Q", "smry+trend",
                "smry+trend+Q", "smry+trend+corr", "smry+trend+corr+Q"]
STRENGTHS = ((0.7, "strongly"), (0.3, "moderately"), (0.1, "weakly"))


@pytest.mark.parametrize("name", ["demo", "pamap2"])
def test_stage_2_texts_tell_the_truth(name):
    """Every combination: statistics to eight decimals, correlations in the words of their strength, trends, units, classes."""
    dataset, rng = DATASETS[name], np.random.default_rng(0)
    n = len(dataset.channels)
    window = rng.normal(size=(dataset.window, n)).round(3).astype(np.float32)
    for i in range(0, n - 1, 2):                                              # some pairs of every strength
        window[:, i + 1] = window[:, i] * rng.choice([-2, -0.5, 0.1, 0.5, 2]) + window[:, i + 1]
    window[:, n - 1] = 0.25                                                   # one that never changes
    names = [channel.spoken for channel in dataset.channels]
    parts = {part: har_text(window, dataset, (part,)) for part in HAR_TEXTS}
    for combination in COMBINATIONS:
        asked = combination.split("+")
        assert har_text(window, dataset, asked) == "\n".join(parts[part] for part in asked)
    for line, spoken, column in zip(parts["smry"].split("\n"), names, window.T.astype(float), strict=True):
        found = re.fullmatch(r"(.*): Mean=(-?\d+(?:\.\d*[1-9])?), StdDev=(\d+(?:\.\d*[1-9])?)", line)
        assert found[1] == spoken
        std = np.sqrt(((column - column.mean()) ** 2).mean())
        assert [float(found[2]), float(found[3])] == pytest.approx([column.mean(), std], abs=1e-8)   # eight decimals
    strengths, lines = set(), iter(parts["corr"].split("\n"))
    for i in range(n):
        for j in range(i + 1, n):
            a, b = window[:, i].astype(float), window[:, j].astype(float)
            covariance = ((a - a.mean()) * (b - b.mean())).mean()
            r = covariance / (a.std() * b.std()) if a.std() * b.std() else 0
            strength = next((word for limit, word in STRENGTHS if abs(r) >= limit), None)
            sign = "positively" if r > 0 else "negatively"
            words = f"{strength} {sign}" if strength else "not significantly"
            assert next(lines) == f"{names[i]} and {names[j]} are {words} correlated."
            strengths.add(words)
    assert len(strengths) >= (6 if n > 10 else 3) and next(lines, None) is None
    for line, spoken, series in zip(parts["trend"].split("\n"), names, window.T, strict=True):
        told = read_summary(line)
        assert spoken in line and told["changes"] == len(trend_segments(series)[0]) - 1
        assert told["overall"] == np.sign(series[-1] - series[0])
    assert all(unit in parts["meta"] for unit in {channel.unit for channel in dataset.channels})
    assert f"{dataset.window} samples of {n} channels at {dataset.rate} Hz" in parts["meta"]
    assert all(activity in parts["Q"] for activity in dataset.classes)
