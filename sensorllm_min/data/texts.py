"""Numbers -> questions and answers: what the language model learns to say about a sensor.

Stage 1 describes the trends of one channel; stage 2 adds statistics and a question to the sensors
of a window. Numbers are computed from the series; only the wording is drawn, by a random generator
that the caller seeds. `claims.parse_claims` reads the numbers back.
"""
import math
import random
from functools import lru_cache, partial
from itertools import combinations

import numpy as np

from .wording import (ACTIVITY, CHANGES, COUNT_FORMATS, COVERS, DIRECTIONS, FACT_FORMATS,
                      FACT_QUESTIONS, FACTS, FALLING, LINE_FORMATS, OVERALL, QUESTIONS, RISING,
                      SENTENCES, SINGLE, STEADY, STEADY_WORDS, TOTAL, TOTALS, WORD_PAIRS)


def trend_segments(series):
    """A series (T,) -> starts (K,), ends (K,), directions (K,): runs of equal sign(x[t+1] - x[t]).
    Starts and ends are sample indices; a segment ends where the next one starts."""
    signs = np.sign(np.diff(series)).astype(int)                  # (T-1,)
    turns = np.flatnonzero(np.diff(signs)) + 1
    starts = np.concatenate([[0], turns])[:len(signs)]
    ends = np.concatenate([turns, [len(signs)]])[:len(signs)]
    return starts, ends, signs[starts]


def moving_average(series, width):
    """The mean of the `width` samples (an odd number) around each sample, fewer near the ends.
    A constant series (T,) stays exactly constant, so that no rounding error becomes a trend."""
    half = min(width // 2, len(series) - 1)
    window = np.ones(2 * half + 1)
    within = slice(half, half + len(series))
    n_samples = np.convolve(np.ones(len(series)), window)[within]
    changes = np.asarray(series, np.float64) - series[0]
    sums = np.convolve(changes, window)[within]
    return series[0] + sums / n_samples


def turning_points(series, band):
    """Indices of the highs and lows between which a series moves by at least `band`, in order."""
    high = low = direction = 0
    points = []
    for i, x in enumerate(series):
        if direction >= 0 and x > series[high]:
            high = i
        if direction <= 0 and x < series[low]:
            low = i
        if direction >= 0 and series[high] - x >= band:
            points.append(high)
            direction = -1
            low = i
        elif direction <= 0 and x - series[low] >= band:
            points.append(low)
            direction = 1
            high = i
    if direction:
        points.append(high if direction > 0 else low)
    return points


PLATEAU = 0.25                          # of the band: how far a plateau may be from its high or low
HOLD = 0.5                              # seconds: a shorter plateau does not count as steady


def trend_line(series, dataset):
    """The simplified curve (T,) whose trends stage 1 describes.

    The moving average over dataset.smooth seconds, taken twice, is redrawn with straight strokes
    between highs and lows more than dataset.band of its range apart, level where it stays near one
    for HOLD seconds. If smooth and band are 0, it is the series itself."""
    if not (dataset.smooth or dataset.band):
        return series
    width = 2 * round(dataset.smooth * dataset.rate / 2) + 1      # odd, so that nothing shifts
    smooth = moving_average(series, width)
    smooth = moving_average(smooth, width)                        # once passes fast rhythms
    if dataset.band == 0:
        return smooth
    band = dataset.band * np.ptp(smooth)
    if band == 0:                                                 # a constant
        return np.full(len(smooth), smooth.mean())
    points = turning_points(smooth.tolist(), band)
    end = len(smooth) - 1
    if abs(smooth[0] - smooth[points[0]]) >= band / 2:            # moving at the start
        points.insert(0, 0)
    if abs(smooth[end] - smooth[points[-1]]) >= band / 2:
        points.append(end)
    xs = []
    ys = []
    for point in points:
        far = np.flatnonzero(np.abs(smooth - smooth[point]) > PLATEAU * band)
        position = np.searchsorted(far, point)
        first, last, corner = 0, end, point                       # of a plateau
        if point == points[0]:
            corner = 0
        else:
            first = far[position - 1] + 1
        if point == points[-1]:
            corner = end
        else:
            last = far[position] - 1
        if last - first < HOLD * dataset.rate:                    # no plateau: one sharp corner
            first = last = corner
        xs += [first, last]
        ys += [smooth[point], smooth[point]]
    return np.interp(np.arange(len(smooth)), xs, ys)


def number(value, decimals=2):
    """0.5 -> "0.5", 1 -> "1.0": at most `decimals` decimals, at least one."""
    return str(round(float(value), decimals) + 0.0)               # + 0.0: no "-0.0"


@lru_cache(maxsize=None)                                          # a few thousand short strings
def time_text(index, rate):
    """The time of a sample in seconds, with enough decimals to distinguish neighbouring samples."""
    return number(index / rate, max(2, math.ceil(math.log10(rate))))


class FirstWording:
    """A stand-in for a random generator that always chooses the first entry: no paraphrasing."""
    choice = staticmethod(lambda pool: pool[0])
    choices = staticmethod(lambda pool, k: [pool[0]] * k)


def plural(count, noun, of=""):
    """2, "kind", " of trend" -> "2 kinds of trend"."""
    ending = "" if count == 1 else "s"
    return f"{count or 'no'} {noun}{ending}{of}"


def join_list(parts):
    """["a", "b", "c"] -> "a, b and c"."""
    *others, last = parts
    if not others:
        return last
    return f"{', '.join(others)} and {last}"


@lru_cache(maxsize=None)                                          # a few thousand short strings
def fill_word(template, word):
    """A template with its direction word filled in, and %s for start, end or count."""
    article = "an" if word[0] in "aeiou" else "a"
    a_word = f"{article} {word}"
    text = template.format(
        start="%s", end="%s", count="%s", word=word, a_word=a_word)
    return text[:1].upper() + text[1:]


def simple_trend(segments, words, rate, rng):
    line = rng.choice(LINE_FORMATS)
    count_line = rng.choice(COUNT_FORMATS)
    starts, ends, directions = segments
    if not directions:
        return SINGLE
    text = []
    for start, end, direction in zip(*segments):
        times = time_text(start, rate), time_text(end, rate)
        text.append(fill_word(line, words[direction]) % times)
    if len(set(directions)) > 1:
        for direction in DIRECTIONS:
            if count := directions.count(direction):
                text.append(fill_word(count_line, words[direction]) % count)
    return "\n".join(text)


def detailed_trend(segments, words, rate, rng):
    starts, ends, directions = segments
    if not directions:
        return SINGLE
    sentences = rng.choices(SENTENCES, k=len(directions))
    text = []
    for sentence, start, end, direction in zip(sentences, *segments):
        times = time_text(start, rate), time_text(end, rate)
        text.append(fill_word(sentence, words[direction]) % times)
    return " ".join(text)


def summary(segments, words, rate, rng, sensor, overall):
    starts, ends, directions = segments
    last = time_text(ends[-1] if ends else 0, rate)
    covers = rng.choice(COVERS).format(
        sensor=sensor, first=time_text(0, rate), last=last)
    if not directions:
        return f"{covers} {SINGLE}"
    steps = dict.fromkeys(DIRECTIONS, 0)                          # intervals in each direction
    for start, end, direction in zip(*segments):
        steps[direction] += end - start
    present = [direction for direction in DIRECTIONS if steps[direction]]
    kinds = plural(len(present), "kind", " of trend")
    turns = plural(len(directions) - 1, "change", " of direction")
    changes = rng.choice(CHANGES).format(kinds=kinds, changes=turns)
    durations = []
    for direction in present:
        seconds = time_text(steps[direction], rate)
        durations.append(TOTAL.format(word=words[direction], seconds=seconds))
    totals = rng.choice(TOTALS).format(totals=join_list(durations))
    direction = fill_word(rng.choice(OVERALL), words[overall])
    return f"{covers} {changes} {totals} {direction}"


TREND_KINDS = ("simple_trend", "trend", "summary")
ANSWER_KINDS = (*FACTS, *TREND_KINDS)
ALONE = 0.25                            # of the pairs with facts: the fraction that asks for one


def facts_of(series, rate):
    """{fact: number} about a series (T,): mean, range, standard deviation, rhythm in Hz."""
    series = np.asarray(series, np.float64)
    spread = float(np.ptp(series))
    rhythm = strongest_rhythm(series, rate) if spread else 0.0
    return {"level": series.mean(), "range": spread, "deviation": series.std(), "rhythm": rhythm}


def describe_series(series, channel, dataset, rng):
    """(question, answer) of stage 1 about a channel's series (T,), as dataset.answer says: facts,
    then trends; sometimes the question asks for a single fact."""
    wording = rng if dataset.paraphrase else FirstWording
    asked = [kind for kind in dataset.answer if kind in FACTS]
    trends = [kind for kind in dataset.answer if kind in TREND_KINDS]
    alone = bool(asked) and rng.random() < ALONE
    if alone:
        asked = [rng.choice(asked)]
    numbers = facts_of(series, dataset.rate) if asked else {}
    lines = []
    for fact in asked:
        unit = "Hz" if fact == "rhythm" else channel.unit
        value = number(f"{numbers[fact]:.2g}", 4)                 # to two digits
        value = f"{value} {unit}".strip()
        text = wording.choice(FACT_FORMATS)
        lines.append(text.format(fact=fact, value=value))
    if alone:
        question = wording.choice(FACT_QUESTIONS)
        question = question.format(fact=asked[0], sensor=channel.spoken)
        return question, lines[0]
    line = trend_line(series, dataset)
    question, answer = align_pair(line, channel, dataset.rate, trends, wording)
    return question, "\n".join([*lines, answer])


def align_pair(series, channel, rate, kinds, rng):
    """(question, answer) about the trends of a series (T,): texts of `kinds`, of TREND_KINDS."""
    sensor = f"normalized {channel.spoken}"
    (up, down), steady = rng.choice(WORD_PAIRS), rng.choice(STEADY_WORDS)
    words = {RISING: up, FALLING: down, STEADY: steady}
    segments = [part.tolist() for part in trend_segments(series)]
    question = rng.choice(QUESTIONS).format(sensor=sensor)
    overall = int(np.sign(series[-1] - series[0]))                # last sample against first
    write = {"simple_trend": simple_trend, "trend": detailed_trend,
             "summary": partial(summary, sensor=sensor, overall=overall)}
    texts = [write[kind](segments, words, rate, rng) for kind in kinds]
    return question, "\n\n".join(texts)


def pair_rng(seed, dataset_name, *key):
    """The random generator of one pair; its key is (subject, start, length, channel)."""
    return random.Random(f"{seed} {dataset_name} {key}")


def system_prompt(n_samples, rate):
    return ("A dialogue between a researcher and an assistant. The assistant analyses a sensor "
            f"time series of {n_samples} points sampled at {rate} Hz.")


# ---- stage 2: texts beside the sensors of a window (S, C) ----

def decimals(value):
    """Eight decimals without the zeros at the end: 0.25000000 -> "0.25"."""
    value = round(float(value), 8) + 0.0                          # + 0.0: no "-0"
    return f"{value:.8f}".rstrip("0").rstrip(".")


def statistics_text(window, dataset):
    """A line per channel: mean and population standard deviation."""
    means = window.mean(0, dtype=float)
    deviations = window.std(0, dtype=float)
    lines = []
    for channel, mean, deviation in zip(dataset.channels, means, deviations):
        lines.append(f"{channel.spoken}: Mean={decimals(mean)}, StdDev={decimals(deviation)}")
    return "\n".join(lines)


def window_trends_text(window, dataset):
    """The summary of each channel, in the first wording: an input here, not a lesson."""
    lines = []
    for channel, series in zip(dataset.channels, window.T):
        line = trend_line(series, dataset)
        _, text = align_pair(line, channel, dataset.rate, ("summary",), FirstWording)
        lines.append(text)
    return "\n".join(lines)


def correlation_in_words(r):
    sign = "positively" if r > 0 else "negatively"
    for limit, strength in ((0.7, "strongly"), (0.3, "moderately"), (0.1, "weakly")):
        if abs(r) >= limit:
            return f"{strength} {sign} correlated"
    return "not significantly correlated"


def correlations_text(window, dataset):
    """Pearson correlation of each pair of channels, in words; 0 where a channel never changes."""
    with np.errstate(invalid="ignore", divide="ignore"):
        r = np.nan_to_num(np.corrcoef(window.T.astype(float)))    # (C, C)
    names = [channel.spoken for channel in dataset.channels]
    lines = []
    for i, j in combinations(range(len(names)), 2):
        relation = correlation_in_words(r[i, j])
        lines.append(f"{names[i]} and {names[j]} are {relation}.")
    return "\n".join(lines)


def meta_text(window, dataset):
    kinds = {}                                                    # each once, in order
    for channel in dataset.channels:
        unit = f" in {channel.unit}" if channel.unit else ""
        kinds[channel.spoken.split()[-1] + unit] = None
    seconds = number(len(window) / dataset.rate)
    return (f"The window holds {len(window)} samples of {len(dataset.channels)} channels at "
            f"{dataset.rate} Hz ({seconds} seconds): {join_list(kinds)}.")


def question_text(window, dataset):
    return f"Which activity is this? It is one of: {', '.join(dataset.classes)}."


HAR_TEXTS = {
    "smry": statistics_text,
    "trend": window_trends_text,
    "corr": correlations_text,
    "meta": meta_text,
    "Q": question_text,
}


def har_text(window, dataset, parts):
    """The text after the sensors: parts of HAR_TEXTS in order, one below the other."""
    return "\n".join(HAR_TEXTS[part](window, dataset) for part in parts)


def har_system_prompt(n_samples, dataset):
    return ("A dialogue between a researcher and an assistant. The assistant recognises activities "
            f"from {len(dataset.channels)} sensor channels of {n_samples} points sampled at "
            f"{dataset.rate} Hz.")


def strongest_rhythm(series, rate):
    """The frequency in Hz of the highest peak in the spectrum of a series (T,)."""
    spectrum = np.abs(np.fft.rfft(series - series.mean()))
    return float(np.argmax(spectrum[1:]) + 1) * rate / len(series)


def reasoning_text(window, dataset):
    """Evidence for an activity: for each unit, a sentence about the channel that varies most."""
    sentences = []
    for unit in dict.fromkeys(channel.unit for channel in dataset.channels):
        columns = [i for i, channel in enumerate(dataset.channels) if channel.unit == unit]
        column = max(
            columns, key=lambda i: window[:, i].std(dtype=float))
        series = window[:, column].astype(float)
        spoken = dataset.channels[column].spoken
        start = f"In {unit}, the" if unit else "The"
        sentence = (f"{start} {spoken} varies most, by {number(series.std())} around "
                    f"{number(series.mean())}")
        if np.ptp(series) > 0:
            rhythm = number(strongest_rhythm(series, dataset.rate), 1)
            sentence += f", with its strongest rhythm at {rhythm} Hz"
        sentences.append(sentence + ".")
    return " ".join(sentences)


def har_answer(window, dataset, label, reasoning):
    """The answer of stage 2 in words: with reasoning, the evidence first; then the class's line."""
    evidence = reasoning_text(window, dataset) + "\n" if reasoning else ""
    return evidence + ACTIVITY + dataset.classes[label]
