"""The line whose trends stage 1 tells: by hand, and in texts, scores and pictures alike."""
from dataclasses import replace

import numpy as np
import pytest
from helpers import quiet
from raw_files import OWN, PEOPLE, write_small_own
from test_metrics import read_summary
from untrained import ALONE

from sensorllm_min.plots import figures as plots
from sensorllm_min.data.claims import in_samples, parse_claims
from sensorllm_min.data.examples import AlignExamples, PromptFormat, sample_texts
from sensorllm_min.plots.figures import COLOURS
from sensorllm_min.data.prepare import prepare
from sensorllm_min.data.prepared import PreparedData
from sensorllm_min.data.sensors import DATASETS
from sensorllm_min.data.texts import (
    FirstWording, align_pair, har_text, moving_average, trend_line, turning_points)
from sensorllm_min.evaluation.trend_scores import Guess, draw_answers, list_segments, score_trends
from sensorllm_min.text_tokenizer import built_tokenizer, new_tokens, train_backend

# Without smoothing; half a second is ten samples; of a range of 8 the band is 2, a plateau's 0.5.
BANDED = replace(DATASETS["demo"], smooth=0.0, band=0.25)
UP = list(range(9))                                               # 0 to 8
DOWN = UP[::-1]


def strokes(series, dataset=BANDED):
    return list_segments(trend_line(np.array(series, float), dataset))


# ---- by hand ----

def test_a_moving_average_is_over_the_samples_that_are_there():
    series = np.array([3.0, 0, 6, 0, 3, 9])
    np.testing.assert_allclose(moving_average(series, 3), [1.5, 3, 2, 3, 4, 6], rtol=1e-12)
    np.testing.assert_array_equal(moving_average(series, 1), series)
    whole = series.mean()
    np.testing.assert_allclose(moving_average(series, 99), [whole] * 6, rtol=1e-12)
    np.testing.assert_allclose(moving_average(series, 5), [3, 2.25, 2.4, 3.6, 4.5, 4], rtol=1e-12)
    assert moving_average(np.array([7.0]), 5) == [7]


def test_turning_points_lie_where_the_series_moves_by_the_band():
    assert turning_points([0, 1, 2, 3, 2, 1, 0], 1) == [0, 3, 6]
    assert turning_points([0, 1, 0], 1) == [0, 1, 2]              # by just the band
    assert turning_points([0, 1, 0.1], 1) == [0, 1]               # by less than it at the end
    assert turning_points([0, 5, 4.5, 5.2, 10, 9.6, 10.1, 0], 1) == [0, 6, 7]     # noise on the way
    assert turning_points([5, 2, 2.5, 8, 7.5], 2) == [0, 1, 3]
    assert turning_points([1, 1.2, 0.9, 1.1], 1) == []
    assert turning_points([0, 2, 2, 2, 0], 1) == [0, 1, 4]        # of equal ones the first


def test_a_peak_is_two_strokes_with_noise_on_it_or_without():
    peak = np.array(UP + DOWN[1:], float)
    assert strokes(peak) == [(0, 8, 1), (8, 16, -1)]
    np.testing.assert_allclose(trend_line(peak, BANDED), peak, atol=1e-12)
    noise = np.resize([0, 0.9, -0.9, 0.4], 17)                    # up to 1.8, less than the band
    noise[[0, 8, 16]] = 0
    line = trend_line(peak + noise, BANDED)
    np.testing.assert_allclose(line, peak, atol=1e-12)
    assert len(list_segments(peak + noise)) > 6


def test_a_plateau_is_steady_where_it_lasts_half_a_second():
    """Near its level is on it: what moves by less than a quarter of the band does not end it."""
    wobble = 8 - np.resize([0, 0.4, 0.1], 11)
    line = trend_line(np.array(UP + list(wobble[1:]) + DOWN[1:]), BANDED)
    assert list_segments(line) == [(0, 8, 1), (8, 18, 0), (18, 26, -1)]
    assert set(line[8:19]) == {8}
    assert strokes(UP + [8] * 9 + DOWN[1:]) == [(0, 8, 1), (8, 25, -1)]     # 9 samples: a corner
    assert strokes(UP + [8] * 5 + [7.4] + [8] * 5 + DOWN[1:]) == [(0, 8, 1), (8, 27, -1)]
    slower = replace(BANDED, rate=10)                             # half a second is five samples
    assert strokes(UP + [8] * 9 + DOWN[1:], slower) == [(0, 8, 1), (8, 17, 0), (17, 25, -1)]


def test_ends_that_are_half_a_band_away_are_strokes_of_their_own():
    """Of 8 the band is 2: a first or last move of 1 is seen, one of 0.9 belongs to the next."""
    assert strokes([1, *UP]) == [(0, 1, -1), (1, 9, 1)]
    assert strokes([0.9, *UP]) == [(0, 9, 1)]
    assert strokes([*UP, 7]) == [(0, 8, 1), (8, 9, -1)]
    assert strokes([*UP, 7.1]) == [(0, 9, 1)]
    assert trend_line(np.array([*UP, 7.1]), BANDED)[-1] == 8
    assert strokes([0] * 12 + UP[1:]) == [(0, 11, 0), (11, 19, 1)]          # rest, then a rise
    assert strokes(DOWN + [0] * 12) == [(0, 8, -1), (8, 20, 0)]


@pytest.mark.parametrize("smooth,band", [(0, 0.25), (0.25, 0), (0.25, 0.25), (3.0, 0.5)])
def test_what_does_not_change_is_one_steady_trend(smooth, band):
    """Rounding errors of sums of 0.1 are no trends, at the ends of an average as elsewhere."""
    dataset = replace(BANDED, smooth=smooth, band=band)
    for level in (0.0, 0.1, -7.7, 1e9, 1e-9):
        assert strokes([level] * 30, dataset) == [(0, 29, 0)]
        assert strokes([level] * 2, dataset) == [(0, 1, 0)]
        assert strokes([level], dataset) == []
    assert strokes([1, 2]) == [(0, 1, 1)] and strokes([2, 1]) == [(0, 1, -1)]
    assert len(trend_line(np.array([5.0]), dataset)) == 1


def test_without_smoothing_and_band_the_line_is_the_series_itself():
    series = np.random.default_rng(0).normal(size=50).astype(np.float32)
    assert trend_line(series, DATASETS["usc-had"]) is series


def test_smoothing_is_in_seconds():
    """A quarter of a second: five samples at 20 Hz, 25 at 100 Hz, twice; without a band, the average itself."""
    series = np.random.default_rng(0).normal(size=90)
    for rate, width in ((20, 5), (10, 3), (100, 25)):
        dataset = replace(BANDED, rate=rate, smooth=0.25, band=0)
        twice = moving_average(moving_average(series, width), width)
        np.testing.assert_array_equal(trend_line(series, dataset), twice)


def test_strokes_of_noise_are_as_large_as_the_band_and_plateaus_as_long_as_they_must_be():
    """At both ends of a window, also before or after a plateau there, half the band."""
    rng = np.random.default_rng(0)
    dataset = replace(BANDED, smooth=0.25)
    for n_samples in range(20, 90):
        series = rng.normal(size=n_samples).cumsum()
        smooth, line = moving_average(moving_average(series, 5), 5), trend_line(series, dataset)
        band, segments = 0.25 * np.ptp(smooth), list_segments(line)
        for index, (start, end, direction) in enumerate(segments):
            if direction == 0:
                assert end - start >= 10
                continue
            before, after = segments[:index], segments[index + 1:]
            at_an_end = any(all(d == 0 for _, _, d in rest) for rest in (before, after))
            least = band / 2 if at_an_end else band
            assert direction * (line[end] - line[start]) > 0.999 * least
            assert index == 0 or segments[index - 1][2] != direction


# ---- texts, scores and pictures use this line ----

@pytest.fixture(scope="module")
def walked(tmp_path_factory):
    """Four people's noisy random walks at 25 Hz, prepared with both smoothing and a band."""
    raw = tmp_path_factory.mktemp("walked") / "raw"
    write_small_own(raw, n_recordings=1, align_lengths=[25, 75])
    for number, path in enumerate(sorted(raw.rglob("*.npy"))):
        rng = np.random.default_rng(number)
        walk = rng.normal(size=(230, 3)).cumsum(0)
        np.save(path, walk + rng.normal(size=walk.shape))
    out = raw.parent / "data"
    prepare("own", raw, out, smooth=0.3, band=0.2, say=quiet)
    return PreparedData(out)


def lines_of(data):
    """Yields (record, the column's number, series) of each pair of stage 1."""
    for split in data.dataset.splits:
        records = data.records("align", split)
        for record in (records[i] for i in range(len(records))):
            column = data.tokens.index(record["channel"])
            yield record, column, data.window(record)[:, column]


def test_stage_1_tells_the_trends_of_the_line(walked):
    """What the parser reads back from an answer is the line's strokes, not those of the series."""
    n_told = n_series = 0
    for record, _, series in lines_of(walked):
        true = list_segments(trend_line(series, walked.dataset))
        told = in_samples(parse_claims(record["answer"]).segments, len(series) - 1, OWN["rate"])
        assert told == true, record
        n_told += len(told)
        n_series += len(list_segments(series))
    assert n_series > 3 * n_told > 3 * len(PEOPLE)
    window = walked.window(walked.records("har", "test")[0])      # and the text of stage 2
    for text, series in zip(har_text(window, walked.dataset, ("trend",)).split("\n"), window.T, strict=True):
        true = trend_line(series, walked.dataset)
        told = read_summary(text)
        assert told["changes"] == len(list_segments(true)) - 1 and told["overall"] == np.sign(true[-1] - true[0])


@pytest.fixture(scope="module")
def guess(walked):
    channels = walked.dataset.channels
    tokenizer = built_tokenizer(train_backend(sample_texts(walked), 400), new_tokens(channels), 400)
    return Guess(AlignExamples(walked, "train", PromptFormat(tokenizer, 512, 4096)))


def test_the_scores_hold_answers_against_the_line(walked, guess):
    """The true answers get full marks; the same told of the series itself do not."""
    records, of_series = [], []
    for record, column, series in lines_of(walked):
        channel = walked.dataset.channels[column]
        text = align_pair(series, channel, OWN["rate"], ("simple_trend",), FirstWording)[1]
        records.append({**record, "generated": record["answer"], "ended": True})
        of_series.append({**record, "generated": text, "ended": True})
    scores = score_trends(records, walked, guess, ALONE)["all"]["answers"]
    assert scores["direction"] == scores["segment_f1"] == scores["well_formed"] == 1
    worse = score_trends(of_series, walked, guess, ALONE)["all"]["answers"]
    assert worse["direction"] < 0.8 and worse["segment_f1"] < 0.3


def test_the_guess_learns_from_the_line(walked, guess):
    """Noise rises and falls, and is never steady; the line's strokes are."""
    seconds = dict.fromkeys((1, -1, 0), 0.0)
    for record, _, series in lines_of(walked):
        if walked.dataset.split_of(record["subject"]) == "train":
            for start, end, direction in list_segments(trend_line(series, walked.dataset)):
                seconds[direction] += (end - start) / OWN["rate"]
    assert guess.seconds == pytest.approx(seconds) and seconds[0] > 1


# ---- pictures of answers, training curves ----

def test_bars_stand_where_the_true_trends_are_and_where_the_answer_claims_them(walked, tmp_path, monkeypatch):
    """Claims beyond the window end with it; one that ends before it begins has no width."""
    from matplotlib.colors import to_hex
    drawn, lines, save = [], [], plots.save

    def look(figure, path):
        """Keeps the bars on each axis, lower ones last: {(start, end, colour)} for each height."""
        for axis in figure.axes:
            rows = {}
            for bar in axis.collections:
                for one in bar.get_paths():
                    (left, bottom), (right, _) = one.get_extents().get_points()
                    ends = round(left, 6), round(right, 6), to_hex(bar.get_facecolor()[0])
                    rows.setdefault(round(bottom, 6), set()).add(ends)
            drawn.append([rows[bottom] for bottom in sorted(rows, reverse=True)])
            lines.append([(to_hex(line.get_color()), line.get_ydata().tolist()) for line in axis.lines])
        save(figure, path)

    monkeypatch.setattr(plots, "save", look)
    records, generated = walked.records("align", "test"), (
        "0.0s to 0.4s: rising\n0.4s to 0.6s: steady\n0.6s to 99s: falling",
        "0.2s to 99999999999s: falling\n0.6s to 0.2s: rising", "It is a nice day.")
    asked = [{**records[i], "window": i, "generated": text} for i, text in enumerate(generated)]
    path, said = tmp_path / "descriptions.png", []
    draw_answers(path, asked, walked, said.append)
    assert said == [f"wrote {path}: true trends and those that the model claims"]
    assert path.read_bytes().startswith(b"\x89PNG") and len(drawn) == 3
    for record, bars, (grey, *strokes) in zip(asked, drawn, lines):
        series = walked.window(record)[:, walked.tokens.index(record["channel"])]
        line = trend_line(series, walked.dataset)
        assert grey[1] == series.tolist()                         # below its line, in the colours of its trends
        assert strokes == [(COLOURS[direction], line[start:end + 1].tolist()) for start, end, direction in list_segments(line)]
        assert bars[0] == {(round(start / 25, 6), round(end / 25, 6), COLOURS[direction])
                           for start, end, direction in list_segments(line)}
    first, last = (round((one["length"] - 1) / 25, 6) for one in asked[:2])
    assert drawn[0][1] == {(0.0, 0.4, COLOURS[1]), (0.4, 0.6, COLOURS[0]), (0.6, first, COLOURS[-1])}
    assert drawn[1][1] == {(0.2, last, COLOURS[-1]), (0.6, 0.6, COLOURS[1])}
    assert len(drawn[2]) == 1                                     # it claims nothing
