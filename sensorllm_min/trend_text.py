"""Numbers -> questions and answers: what the language model learns to say about a sensor.

Stage 1 describes the trends of one channel; stage 2 adds statistics and a question to the sensors of a window.
Every number in a text is computed from the series; only the wording is drawn, by a generator that the caller seeds.
"""
import random

import numpy as np

# ---- trends: the facts ----

FALLING, STEADY, RISING = -1, 0, 1
DIRECTIONS = (RISING, FALLING, STEADY)                                        # the order in which texts list them

# Words for (rising, falling) and for steady: drawn once a window and kept through it.
WORD_PAIRS = (("rising", "falling"), ("upward", "downward"), ("ascending", "descending"),
              ("increasing", "decreasing"), ("growing", "declining"))
STEADY_WORDS = ("steady", "constant", "stable", "consistent")
DIRECTION_OF_WORD = ({up: RISING for up, _ in WORD_PAIRS} | {down: FALLING for _, down in WORD_PAIRS}
                     | {word: STEADY for word in STEADY_WORDS})


def trend_segments(series):
    """A series (T,) -> starts (K,), ends (K,), directions (K,): maximal runs of equal sign(x[t+1] - x[t]).

    Starts and ends are sample indices; a segment ends at the sample where the next one starts.
    """
    signs = np.sign(np.diff(series)).astype(int)                              # (T-1,)
    turns = np.flatnonzero(np.diff(signs)) + 1
    starts = np.concatenate([[0], turns])[:len(signs)]                        # a single sample has no trend
    ends = np.concatenate([turns, [len(signs)]])[:len(signs)]
    return starts, ends, signs[starts]


def number(value, decimals=2):
    """0.5 -> "0.5", 1 -> "1.0": at most `decimals` decimals, at least one."""
    return str(round(float(value), decimals) + 0.0)                           # + 0.0: no "-0.0"


# ---- wording of stage 1 ----

LINE_FORMATS = (
    "{start}s to {end}s: {word}",
    "{start}s - {end}s: {word}",
    "{start} to {end} seconds: {word}",
    "from {start}s to {end}s: {word}",
    "{word} from {start}s to {end}s",
)
COUNT_FORMATS = (
    "Number of {word} trends: {count}",
    "Total {word} segments: {count}",
    "Count of {word} trends: {count}",
    "{word} segments in total: {count}",
)
SENTENCES = (                                                                 # of the detailed trend text
    "From {start}s to {end}s the signal is {word}.",
    "Between {start}s and {end}s it shows {a_word} trend.",
    "It is {word} from {start}s until {end}s.",
    "{A_word} trend runs from {start}s to {end}s.",
    "The readings stay {word} from {start}s to {end}s.",
    "Over the stretch {start}s to {end}s the values are {word}.",
)
QUESTIONS = tuple(f"{ask} {what}{end}" for ask, end in (
    ("Please describe", "."), ("Could you describe", "?"), ("Can you explain", "?"), ("Please sum up", "."),
    ("Please analyse", "."), ("Walk me through", "."), ("Would you tell me about", "?"), ("Please report", "."),
) for what in (
    "the trends in the {sensor} readings above",
    "the changes of the {sensor} signal over time",
    "the rises, falls and steady stretches of the {sensor} data",
    "the course of this {sensor} segment",
))
COVERS = (
    "The {sensor} data covers {first} to {last} seconds.",
    "This is {sensor} data from {first} to {last} seconds.",
    "Between {first} and {last} seconds the {sensor} was recorded.",
    "The readings of the {sensor} span {first} to {last} seconds.",
    "From {first} to {last} seconds we see the {sensor}.",
    "The time series runs from {first} to {last} seconds and shows the {sensor}.",
)
CHANGES = (
    "It shows {kinds} and {changes}.",
    "One finds {kinds} in it, with {changes}.",
    "We find {kinds} and {changes}.",
    "The signal has {kinds} and goes through {changes}.",
)
TOTALS = (
    "In total the signal is {totals}.",
    "Added up, it is {totals}.",
    "Taken together, the readings are {totals}.",
    "Over the whole time the values are {totals}.",
)
TOTAL = "{word} for {seconds} seconds"
OVERALL = (
    "The overall trend is {word}.",
    "Overall, the series is {word}.",
    "From first to last sample the trend is {word}.",
    "On the whole, the movement is {word}.",
)


class FirstWording:
    """Stands in for a random generator where no paraphrase is wanted: always the first of a pool."""

    @staticmethod
    def choice(pool):
        return pool[0]


def article(word):
    return f"an {word}" if word[0] in "aeiou" else f"a {word}"


def capital(text):
    return text[:1].upper() + text[1:]


def plural(count, noun):
    return f"{count or 'no'} {noun}" + ("" if count == 1 else "s")


def listing(parts):
    """["a", "b", "c"] -> "a, b and c"."""
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def simple_trend(segments, words, rate, rng):
    """One line a segment, then a count line for each direction where there is more than one direction."""
    line = rng.choice(LINE_FORMATS)
    lines = [capital(line.format(start=number(start / rate), end=number(end / rate), word=words[direction]))
             for start, end, direction in segments]
    present = [direction for direction in DIRECTIONS if any(segment[2] == direction for segment in segments)]
    if len(present) > 1:
        count_line = rng.choice(COUNT_FORMATS)
        lines += [capital(count_line.format(word=words[direction], count=sum(s[2] == direction for s in segments)))
                  for direction in present]
    return "\n".join(lines)


def detailed_trend(segments, words, rate, rng):
    """The same in full sentences, one a segment."""
    return " ".join(rng.choice(SENTENCES).format(
        start=number(start / rate), end=number(end / rate), word=words[direction],
        a_word=article(words[direction]), A_word=capital(article(words[direction])))
        for start, end, direction in segments)


def summary(segments, words, rate, rng, sensor, overall):
    """Sensor and time span; kinds and changes of trend; seconds of each; overall direction (sign of last - first)."""
    last = segments[-1][1] if segments else 0
    seconds = {direction: sum(end - start for start, end, found in segments if found == direction) / rate
               for direction in DIRECTIONS}
    present = [direction for direction in DIRECTIONS if seconds[direction]]
    sentences = [rng.choice(COVERS).format(sensor=sensor, first="0.0", last=number(last / rate))]
    if segments:
        sentences += [
            rng.choice(CHANGES).format(kinds=plural(len(present), "kind") + " of trend",
                                       changes=plural(len(segments) - 1, "change") + " of direction"),
            rng.choice(TOTALS).format(totals=listing([TOTAL.format(word=words[d], seconds=number(seconds[d]))
                                                      for d in present]))]
    return " ".join(sentences + [rng.choice(OVERALL).format(word=words[overall])])


ANSWER_KINDS = ("simple_trend", "trend", "summary")


def align_pair(series, channel, rate, kinds, rng):
    """(question, answer) about one channel's series (T,): the texts of `kinds`, a blank line between them."""
    sensor = f"normalized {channel.spoken}"
    up_down, steady = rng.choice(WORD_PAIRS), rng.choice(STEADY_WORDS)
    words = {RISING: up_down[0], FALLING: up_down[1], STEADY: steady}
    segments = [tuple(segment) for segment in np.stack(trend_segments(series), 1).tolist()]
    question = rng.choice(QUESTIONS).format(sensor=sensor)
    make = {"simple_trend": lambda: simple_trend(segments, words, rate, rng),
            "trend": lambda: detailed_trend(segments, words, rate, rng),
            "summary": lambda: summary(segments, words, rate, rng, sensor, int(np.sign(series[-1] - series[0])))}
    return question, "\n\n".join(make[kind]() for kind in kinds)


def pair_rng(seed, dataset_name, paraphrase, *place):
    """The generator of one pair: the same for the same (seed, dataset, subject, start, length, channel), alone or not."""
    return random.Random(f"{seed} {dataset_name} {place}") if paraphrase else FirstWording


def system_prompt(n_samples, rate):
    """The system prompt of stage 1, in training and in evaluation."""
    return (f"A dialogue between a researcher and an assistant. The assistant analyses a sensor time series of "
            f"{n_samples} points sampled at {rate} Hz.")


# ---- wording of stage 2 ----

def decimals(value):
    """Eight decimals, zeros at the end cut: 0.25000000 -> "0.25"."""
    return f"{round(float(value), 8) + 0.0:.8f}".rstrip("0").rstrip(".")       # + 0.0: no "-0"


def correlation_in_words(r):
    strength = next((word for limit, word in ((0.7, "strongly"), (0.3, "moderately"), (0.1, "weakly"))
                     if abs(r) >= limit), None)
    return f"{strength} {'positively' if r > 0 else 'negatively'} correlated" if strength else \
        "not significantly correlated"


def statistics_text(window, dataset):
    """A line a channel: mean and population standard deviation."""
    return "\n".join(f"{channel.spoken}: Mean={decimals(mean)}, StdDev={decimals(std)}" for channel, mean, std in
                     zip(dataset.channels, window.mean(0, dtype=float), window.std(0, dtype=float)))


def window_trends_text(window, dataset):
    """The trend summary of each channel, always in the first wording: the text is an input here, not a lesson."""
    return "\n".join(align_pair(series, channel, dataset.rate, ("summary",), FirstWording)[1]
                     for series, channel in zip(window.T, dataset.channels))


def correlations_text(window, dataset):
    """Pearson correlation of each pair of channels, in words; a channel that never changes correlates with none."""
    with np.errstate(invalid="ignore", divide="ignore"):
        r = np.nan_to_num(np.corrcoef(window.T.astype(float)))                # (C, C)
    names = [channel.spoken for channel in dataset.channels]
    return "\n".join(f"{names[i]} and {names[j]} are {correlation_in_words(r[i, j])}."
                     for i in range(len(names)) for j in range(i + 1, len(names)))


def meta_text(window, dataset):
    units = dict.fromkeys(f"{channel.spoken.split()[-1]} in {channel.unit}" for channel in dataset.channels)
    return (f"The window holds {len(window)} samples of {len(dataset.channels)} channels at {dataset.rate} Hz "
            f"({number(len(window) / dataset.rate)} seconds): {listing(list(units))}.")


def question_text(window, dataset):
    return f"Which activity is this? It is one of: {', '.join(dataset.classes)}."


HAR_TEXTS = {"smry": statistics_text, "trend": window_trends_text, "corr": correlations_text, "meta": meta_text,
             "Q": question_text}


def har_text(window, dataset, parts):
    """The text of stage 2 after the sensors: window (S, C), parts of HAR_TEXTS in order, a line break between them."""
    return "\n".join(HAR_TEXTS[part](window, dataset) for part in parts)
