"""Files as devices write them: which column is the clock, its forms, packets, rows out of order, headers, units."""
import json
from collections import Counter
from datetime import datetime, timedelta

import numpy as np
import pytest
from raw_files import OWN
from test_own import describe, write_log

from sensorllm_min.data.logs import put_on_grid
from sensorllm_min.data.own import read_log
from sensorllm_min.data.prepare import prepare
from sensorllm_min.files import InputError

SECONDS = np.arange(150) / 25


@pytest.fixture
def dataset(tmp_path):
    return describe(tmp_path / "raw")


def read(path, dataset):
    """(ramp on the grid, what was counted) of a file; the ramp is the true time, in samples."""
    counts = Counter()
    log = put_on_grid(read_log(path, dataset, counts), counts)
    return log.samples[:, 0], counts


@pytest.mark.parametrize("name,form", [
    ("Time (s)", "{:.3f}"), ("timestamp", "{:.3f}"), ("seconds_elapsed", "{:.3f}"), ("Date", "2024-12-11T10:00:{:06.3f}"),
    ("epoch (ms)", lambda second: str(round(1000 * second) + 1_700_000_000_000)), ("t", "{:.3f}")])
def test_a_clock_is_found_by_name_and_content_and_said(tmp_path, dataset, name, form):
    """Two rows are missing, which only a clock tells; a column that is called like one and is none is named as not used."""
    write_log(tmp_path / "a.csv", np.delete(SECONDS, [40, 90]), time=name, form=form)
    lines = (tmp_path / "a.csv").read_text().splitlines()
    texts = [f"{9 - i % 3},{line}" for i, line in enumerate(lines[1:])]
    (tmp_path / "a.csv").write_text("\n".join([f"battery time,{lines[0]}", *texts]))
    ramp, counts = read(tmp_path / "a.csv", dataset)
    np.testing.assert_allclose(ramp, np.arange(150), atol=0.02)   # three decimals
    assert counts[f"files whose clock is {name}"] == counts["files whose column battery time is not used"] == 1


def stamp(kind, i):
    """The time stamp of row i where packets share one."""
    return {"threes": i // 3 * 3, "one and two": i - (i % 3 == 2)}[kind] / 25


@pytest.mark.parametrize("kind,n_shared", [("threes", 100), ("one and two", 50)])
def test_packets_are_spread_over_their_interval(tmp_path, dataset, kind, n_shared):
    write_log(tmp_path / "a.csv", SECONDS)
    header, *lines = (tmp_path / "a.csv").read_text().splitlines()
    stamped = [f"{stamp(kind, i):.6f},{line.split(',', 1)[1]}" for i, line in enumerate(lines)]
    (tmp_path / "a.csv").write_text("\n".join([header, *stamped]))
    ramp, counts = read(tmp_path / "a.csv", dataset)
    np.testing.assert_allclose(ramp, np.arange(150), atol=1e-5)
    assert counts["rows with the time of the row before"] == n_shared


@pytest.mark.parametrize("order,said", [
    ([*range(40), 41, 40, *range(42, 150)], {"rows out of order": 2}), ([*range(149, -1, -1)], {"files turned around, newest row first": 1}),
    ([i // 2 for i in range(300)], {"rows written twice": 150})], ids=["swapped", "newest first", "twice"])
def test_rows_out_of_order_or_twice_are_mended_and_counted(tmp_path, dataset, order, said):
    write_log(tmp_path / "a.csv", SECONDS[order])
    ramp, counts = read(tmp_path / "a.csv", dataset)
    np.testing.assert_allclose(ramp, np.arange(150), atol=1e-5)
    assert said.items() <= counts.items()


def test_a_clock_that_is_set_back_begins_anew(tmp_path, dataset):
    write_log(tmp_path / "a.csv", np.concatenate([SECONDS, SECONDS + 1]))
    ramp, counts = read(tmp_path / "a.csv", dataset)
    assert np.isnan(ramp).sum() == 1 and len(ramp) == 301 and not counts["rows out of order"]


@pytest.mark.parametrize("form", [
    "%d/%m/%Y %H:%M:%S.%f", "%m/%d/%Y %H:%M:%S.%f", "%d.%m.%Y %H:%M:%S.%f", "%Y-%m-%d %H:%M:%S,%f", "%Y-%m-%d %H:%M:%S:%f",
    "%d/%m/%Y %I:%M:%S.%f %p", "%I:%M:%S.%f %p", "%H:%M:%S.%f"])
def test_dates_are_read_as_devices_write_them(tmp_path, dataset, form):
    start = datetime(2024, 12, 30, 11, 59, 58)
    write_log(tmp_path / "a.csv", SECONDS, form=lambda second: f'"{(start + timedelta(seconds=second)).strftime(form)}"')
    np.testing.assert_allclose(read(tmp_path / "a.csv", dataset)[0], np.arange(150), atol=1e-5)


def test_day_and_month_that_cannot_be_told_apart_need_a_format(tmp_path, dataset):
    """Two recordings' ends a day apart would be a month apart the other way round."""
    form = lambda second: (datetime(2024, 2, 1) + timedelta(days=float(second))).strftime("%d/%m/%Y %H:%M:%S")          # noqa: E731
    write_log(tmp_path / "a.csv", np.arange(5), form=form)
    with pytest.raises(InputError, match='"format".*day and month cannot be told apart'):
        read_log(tmp_path / "a.csv", dataset, Counter())


def test_milliseconds_without_zeros_run_on(tmp_path, dataset):
    write_log(tmp_path / "a.csv", SECONDS, form=lambda second: f"10:00:0{int(second)}.{round(second % 1 * 1000)}")
    np.testing.assert_allclose(read(tmp_path / "a.csv", dataset)[0], np.arange(150), atol=1e-5)


@pytest.mark.parametrize("change,given", [
    (lambda text: "sep=,\n" + text, {}), (lambda text: "Serial 7\nmade by, X\n" + text, {}),
    (lambda text: text.replace("\n", "\ns,m,deg\n", 1), {}), (lambda text: text.replace(",", "\t"), {}),
    (lambda text: text.replace(",", ";").replace(".", ","), {}),
    (lambda text: text.split("\n", 1)[1], {"header": ["time", "ramp", "wave"]})],
    ids=["sep", "above", "units", "tabs", "semicolons", "none"])
def test_the_header_is_found_whatever_stands_around_it(tmp_path, change, given):
    dataset = describe(tmp_path / "raw", **given)
    write_log(tmp_path / "a.csv", SECONDS)
    (tmp_path / "a.csv").write_text(change((tmp_path / "a.csv").read_text()))
    np.testing.assert_allclose(read(tmp_path / "a.csv", dataset)[0], np.arange(150), atol=1e-5)


def test_preparation_names_what_is_odd(tmp_path):
    """Labels that are numbers, one that is no class, a class without a window, another unit, an absurd sample, predictions."""
    raw, said = tmp_path / "raw", []
    first, second = OWN["classes"]
    describe(raw, label={"column": "what", "values": {"1": first, "2": second}})
    for person, code in (("anna", "1"), ("ben", "2.0"), ("carl", "1")):
        write_log(raw / person / "a.csv", SECONDS, labels=[code] * 140 + ["9"] * 10)
    lines = (raw / "anna/a.csv").read_text().splitlines()
    lines[51] = lines[51].replace(lines[51].split(",")[2], "1e9")
    (raw / "anna/a.csv").write_text("\n".join(lines))
    (raw / "ben/a.csv.predictions.csv").write_text("start,end\n")
    meta = prepare("own", raw, tmp_path / "out", say=said.append)
    text = "\n".join(said) + json.dumps(meta["lost_samples"])
    for words in (f"no train window of {second}", "a.csv.predictions.csv", "samples labelled '9', which is no class",
                  "1e+09 in wave, row 51"):
        assert words in text, text
    assert meta["har_windows"]["val"] == sum(meta["class_balance"]["val"].values()) == meta["class_balance"]["val"][second] > 0
    describe(raw, label={"column": "what", "values": {"1": first, "2": second}})
    for person in ("anna", "ben", "carl"):
        factor = 9.81 if person == "carl" else 1
        write_log(raw / person / "a.csv", SECONDS * factor, labels=[1] * 150, time="at")
    prepare("own", raw, tmp_path / "out", say=said.append)
    assert "carl/a.csv: its samples" in "\n".join(said)


