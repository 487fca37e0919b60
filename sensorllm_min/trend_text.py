"""Numbers -> questions and answers: what the language model learns to say about a sensor.

Stage 1 describes the trends of one channel; stage 2 adds statistics and a question to the sensors of a window.
Every number in a text is computed from the series; only the wording is drawn, by a generator that the caller seeds.
What the texts claim can be read back: `metrics.parse_claims`.
"""
import math
import random
from functools import lru_cache

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


@lru_cache
def clock(rate, n_samples):
    """The times of samples 0 to n_samples - 1 as texts write them, in seconds.

    Two decimals, as many as tell samples apart above 100 Hz: no segment may end where it starts.
    """
    decimals = max(2, math.ceil(math.log10(rate)))
    return [number(index / rate, decimals) for index in range(n_samples)]


def times_up_to(last, rate):
    """A clock that holds sample `last`; made in few sizes, since most windows are of few lengths."""
    return clock(rate, max(256, 1 << int(last).bit_length()))


# ---- wording of stage 1: pools from which one is drawn. The first of each is the one without paraphrasing ----

LINE_FORMATS = (
    "{start}s to {end}s: {word}",
    "{start}s - {end}s: {word}",
    "{start} to {end} seconds: {word}",
    "from {start}s to {end}s: {word}",
    "{word} from {start}s to {end}s",
    "{word}: {start}s to {end}s",
)
COUNT_FORMATS = (
    "Number of {word} trends: {count}",
    "Total {word} segments: {count}",
    "Count of {word} trends: {count}",
    "{word} segments in total: {count}",
    "{word} stretches: {count}",
    "How often {word}: {count}",
)
SENTENCES = (                                                                 # of the detailed trend text
    "From {start}s to {end}s the trend is {word}.",
    "Between {start}s and {end}s there is {a_word} trend.",
    "The trend is {word} from {start}s until {end}s.",
    "{A_word} trend runs from {start}s to {end}s.",
    "The trend stays {word} from {start}s to {end}s.",
    "Over the stretch {start}s to {end}s the course is {word}.",
    "{A_word} phase lasts from {start}s to {end}s.",
    "Starting at {start}s and ending at {end}s, the movement is {word}.",
    "In the interval {start}s to {end}s one sees {a_word} trend.",
    "At {start}s {a_word} stretch begins; it ends at {end}s.",
    "The readings follow {a_word} course from {start}s to {end}s.",
    "Beginning at {start}s, the trend is {word} until {end}s.",
    "The interval from {start}s to {end}s shows {a_word} trend.",
    "For the time from {start}s to {end}s the pattern is {word}.",
    "{A_word} stretch spans {start}s to {end}s.",
    "We see {a_word} trend between {start}s and {end}s.",
    "The course remains {word} between {start}s and {end}s.",
    "{A_word} period fills the time from {start}s to {end}s.",
    "As of {start}s and up to {end}s, the tendency is {word}.",
    "The segment from {start}s to {end}s is {word}.",
    "{A_word} run covers {start}s to {end}s.",
    "What one finds from {start}s up to {end}s is {a_word} trend.",
    "In the time between {start}s and {end}s the tendency is {word}.",
    "The data takes {a_word} course between {start}s and {end}s.",
    "Looking at {start}s to {end}s, the trend is {word}.",
    "{A_word} tendency holds from {start}s through {end}s.",
    "The line between {start}s and {end}s is {word}.",
    "The samples from {start}s to {end}s form {a_word} trend.",
    "On the way from {start}s to {end}s the values keep {a_word} course.",
    "Within {start}s to {end}s the series has {a_word} trend.",
    "A look at {start}s to {end}s reveals {a_word} trend.",
    "All the way from {start}s to {end}s, the trend remains {word}.",
)
QUESTIONS = tuple(f"{ask} {what}{end}" for ask, end in (
    ("Please describe", "."), ("Could you describe", "?"), ("Can you explain", "?"), ("Please sum up", "."),
    ("Please analyse", "."), ("Walk me through", "."), ("Would you tell me about", "?"), ("Please report", "."),
) for what in (
    "the trends in the {sensor} readings above",
    "the changes of the {sensor} signal over time",
    "the rises, falls and steady stretches of the {sensor} data",
    "the course of this {sensor} segment",
    "how the {sensor} values develop",
))
COVERS = (
    "The {sensor} data covers {first} to {last} seconds.",
    "This is {sensor} data from {first} to {last} seconds.",
    "Between {first} and {last} seconds the {sensor} was recorded.",
    "The readings of the {sensor} span {first} to {last} seconds.",
    "From {first} to {last} seconds we see the {sensor}.",
    "The time series runs from {first} to {last} seconds and shows the {sensor}.",
    "The {sensor} was read from {first} to {last} seconds.",
    "What we have is the {sensor} from {first} to {last} seconds.",
    "These are readings of the {sensor}, taken between {first} and {last} seconds.",
    "The segment holds {sensor} data of the time from {first} to {last} seconds.",
    "The {sensor} signal lasts from {first} to {last} seconds.",
    "We look at the {sensor} between {first} and {last} seconds.",
    "The window of the {sensor} begins at {first} and ends at {last} seconds.",
    "Here the {sensor} is shown from {first} to {last} seconds.",
    "The recording of the {sensor} goes from {first} to {last} seconds.",
    "In the time from {first} to {last} seconds the {sensor} was measured.",
    "The series comes from the {sensor} and spans {first} to {last} seconds.",
    "The samples are of the {sensor}, from {first} to {last} seconds.",
    "This window of the {sensor} reaches from {first} to {last} seconds.",
    "The data at hand is of the {sensor}; it runs from {first} to {last} seconds.",
    "Taken from {first} to {last} seconds, the readings are those of the {sensor}.",
    "The {sensor} is observed from {first} through {last} seconds.",
    "The measurements of the {sensor} start at {first} and stop at {last} seconds.",
    "This is what the {sensor} gave between {first} and {last} seconds.",
    "The period from {first} to {last} seconds was recorded by the {sensor}.",
    "One sees the {sensor} over the time from {first} to {last} seconds.",
    "The sequence belongs to the {sensor} and lasts from {first} to {last} seconds.",
    "The section runs from {first} to {last} seconds; its channel is the {sensor}.",
    "The channel is the {sensor}, the time {first} to {last} seconds.",
    "A stretch of the {sensor} is given, {first} to {last} seconds.",
    "The values of the {sensor} were sampled from {first} to {last} seconds.",
    "Given is the {sensor} between {first} and {last} seconds.",
    "The {sensor} readings belong to the time between {first} and {last} seconds.",
    "The time axis goes from {first} to {last} seconds, the channel is the {sensor}.",
    "With the {sensor} as its channel, the window spans {first} to {last} seconds.",
    "From its start at {first} to its end at {last} seconds, this is the {sensor}.",
    "The observation of the {sensor} took from {first} to {last} seconds.",
    "The excerpt shows the {sensor} from {first} to {last} seconds.",
    "The piece of {sensor} data goes from {first} to {last} seconds.",
    "All readings are of the {sensor} and fall between {first} and {last} seconds.",
)
CHANGES = (
    "It shows {kinds} and {changes}.",
    "One finds {kinds} in it, with {changes}.",
    "We find {kinds} and {changes}.",
    "The signal has {kinds} and goes through {changes}.",
    "There is a total of {kinds}, and of {changes}.",
    "Its course is made of {kinds}, with {changes}.",
    "The data contains {kinds} and {changes}.",
    "Looking closer, one counts {kinds} and {changes}.",
    "It consists of {kinds} with {changes}.",
    "We count {kinds} and {changes} in it.",
    "The readings hold {kinds} and {changes}.",
    "All in all it has {kinds}, with {changes}.",
    "Its samples form {kinds} with {changes}.",
    "The window displays {kinds} and {changes}.",
    "We see {kinds}, and between them {changes}.",
    "The analysis finds {kinds} and {changes}.",
    "The series is made up of {kinds} and goes through {changes}.",
    "It can be told apart into {kinds}, with {changes}.",
    "One observes {kinds} and {changes}.",
    "The curve has {kinds}, with {changes} on its way.",
    "The segment comprises {kinds} and {changes}.",
    "In it are {kinds} and {changes}.",
    "The course of the values has {kinds} and takes {changes}.",
    "One can make out {kinds} and {changes}.",
    "The sequence includes {kinds} and {changes}.",
    "It exhibits {kinds} along with {changes}.",
    "Its values make {kinds} and {changes}.",
    "The time series has {kinds}, and it makes {changes}.",
    "It is marked by {kinds} and {changes}.",
    "The count gives {kinds} and {changes}.",
)
TOTALS = (
    "In total the trend is {totals}.",
    "Added up, it is {totals}.",
    "Taken together, the trend is {totals}.",
    "Over the whole time the trend is {totals}.",
    "Summed over all segments, the trend is {totals}.",
    "By duration, the trend is {totals}.",
    "In sum, it is {totals}.",
    "All segments together, the course is {totals}.",
    "The trend is {totals}, all told.",
    "Counting the seconds, the trend is {totals}.",
    "The time divides as follows: the trend is {totals}.",
    "Over the window the course is {totals}.",
    "It is {totals} in total.",
    "As to duration, the course is {totals}.",
    "Put together, the segments are {totals}.",
    "Of the whole time, the trend is {totals}.",
    "The sum of the durations: {totals}.",
    "The durations add up so that the trend is {totals}.",
    "Measured in time, the trend is {totals}.",
    "Through the window the trend is {totals}.",
    "In all, the movement is {totals}.",
    "Across all segments, the tendency is {totals}.",
    "The total time: {totals}.",
    "Time spent: {totals}.",
    "In seconds, the trend is {totals}.",
    "The trend, in total, is {totals}.",
    "Totalled, the segments are {totals}.",
    "Its overall times: {totals}.",
    "Adding all segments, the trend is {totals}.",
    "For how long each lasts: {totals}.",
)
TOTAL = "{word} for {seconds} seconds"
OVERALL = (
    "The overall trend is {word}.",
    "Overall, the trend is {word}.",
    "From first to last sample the trend is {word}.",
    "On the whole, the movement is {word}.",
    "All things considered, the trend is {word}.",
    "Overall, this is {a_word} trend.",
    "Taken as a whole, the course is {word}.",
    "Comparing last and first sample, the trend is {word}.",
    "{A_word} trend results overall.",
    "The general tendency is {word}.",
    "In general the tendency is {word}.",
    "The general direction is {word}.",
    "Seen from start to end, the trend is {word}.",
    "Altogether the movement is {word}.",
    "From beginning to end it makes {a_word} trend.",
    "The net movement is {word}.",
    "As a whole, it has {a_word} tendency.",
    "The whole window has {a_word} trend.",
    "Its overall direction is {word}.",
    "In the end, the trend is {word}.",
    "The result is {a_word} trend overall.",
    "Judged by its ends, the series has {a_word} trend.",
    "The main tendency is {word}.",
    "Over the full window the net trend is {word}.",
    "Broadly, the course is {word}.",
    "End to end, the trend is {word}.",
    "Its net course is {word}.",
    "The bottom line is {a_word} trend.",
    "Overall one speaks of {a_word} trend.",
    "The first and the last sample make {a_word} trend.",
)
SINGLE = "It is a single sample, which has no trend."                         # all there is to say of one


class FirstWording:
    """Stands in for a random generator where no paraphrase is wanted: always the first of a pool."""

    @staticmethod
    def choice(pool):
        return pool[0]

    @staticmethod
    def choices(pool, k):
        return [pool[0]] * k


def article(word):
    return f"an {word}" if word[0] in "aeiou" else f"a {word}"


def capital(text):
    return text[:1].upper() + text[1:]


def plural(count, noun, of=""):
    """2, "kind", " of trend" -> "2 kinds of trend"."""
    return f"{count or 'no'} {noun}{'' if count == 1 else 's'}{of}"


def listing(parts):
    """["a", "b", "c"] -> "a, b and c"."""
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


@lru_cache(maxsize=None)                                                      # a few thousand short strings
def worded(template, word):
    """A template of one segment with its word in place and %s for start and end, or of one word alone."""
    return capital(template.format(start="%s", end="%s", count="%s", word=word, a_word=article(word),
                                   A_word=capital(article(word))))


def simple_trend(segments, words, rate, rng):
    """One line a segment, then a count line for each direction where there is more than one direction."""
    line, count_line = rng.choice(LINE_FORMATS), rng.choice(COUNT_FORMATS)
    starts, ends, directions = segments
    if not directions:
        return SINGLE
    times = times_up_to(ends[-1], rate)
    lines = {direction: worded(line, word) for direction, word in words.items()}
    text = [lines[direction] % (times[start], times[end]) for start, end, direction in zip(*segments)]
    counts = [(direction, directions.count(direction)) for direction in DIRECTIONS]
    present = [(direction, count) for direction, count in counts if count]
    if len(present) > 1:
        text += [worded(count_line, words[direction]) % count for direction, count in present]
    return "\n".join(text)


def detailed_trend(segments, words, rate, rng):
    """The same in full sentences, one a segment."""
    starts, ends, directions = segments
    if not directions:
        return SINGLE
    times = times_up_to(ends[-1], rate)
    return " ".join([worded(sentence, words[direction]) % (times[start], times[end]) for sentence, start, end, direction
                     in zip(rng.choices(SENTENCES, k=len(directions)), *segments)])


def summary(segments, words, rate, rng, sensor, overall):
    """Sensor and time span; kinds and changes of trend; seconds of each; overall direction (sign of last - first)."""
    starts, ends, directions = segments
    last = ends[-1] if ends else 0
    times = times_up_to(last, rate)
    sentences = [rng.choice(COVERS).format(sensor=sensor, first=times[0], last=times[last])]
    if not directions:
        return " ".join([*sentences, SINGLE])
    steps = dict.fromkeys(DIRECTIONS, 0)                                      # between samples, in each direction
    for start, end, direction in zip(*segments):
        steps[direction] += end - start
    present = [direction for direction in DIRECTIONS if steps[direction]]
    sentences += [
        rng.choice(CHANGES).format(kinds=plural(len(present), "kind", " of trend"),
                                   changes=plural(len(directions) - 1, "change", " of direction")),
        capital(rng.choice(TOTALS).format(totals=listing([TOTAL.format(word=words[d], seconds=times[steps[d]])
                                                          for d in present]))),
        worded(rng.choice(OVERALL), words[overall])]
    return " ".join(sentences)


ANSWER_KINDS = ("simple_trend", "trend", "summary")


def align_pair(series, channel, rate, kinds, rng):
    """(question, answer) about one channel's series (T,): the texts of `kinds`, a blank line between them."""
    sensor = f"normalized {channel.spoken}"
    up_down, steady = rng.choice(WORD_PAIRS), rng.choice(STEADY_WORDS)
    words = {RISING: up_down[0], FALLING: up_down[1], STEADY: steady}
    segments = [part.tolist() for part in trend_segments(series)]             # starts, ends, directions
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


# ---- stage 2 answered in words ----

def har_system_prompt(n_samples, dataset):
    """The system prompt of stage 2 where the answer is text."""
    return (f"A dialogue between a researcher and an assistant. The assistant recognises activities from "
            f"{len(dataset.channels)} sensor channels of {n_samples} points sampled at {dataset.rate} Hz.")


def strongest_rhythm(series, rate):
    """The frequency, in Hz, at which a series (T,) swings most: the peak of its spectrum, its mean left out."""
    spectrum = np.abs(np.fft.rfft(series - series.mean()))
    return float(np.argmax(spectrum[1:]) + 1) * rate / len(series)


def reasoning_text(window, dataset):
    """What speaks for an activity, computed from the window (S, C): a sentence for each unit, of the channel that varies most."""
    sentences = []
    for unit in dict.fromkeys(channel.unit for channel in dataset.channels):
        columns = [column for column, channel in enumerate(dataset.channels) if channel.unit == unit]
        column = max(columns, key=lambda column: window[:, column].std(dtype=float))
        series, spoken = window[:, column].astype(float), dataset.channels[column].spoken
        sentence = f"In {unit}, the {spoken} varies most, by {number(series.std())} around {number(series.mean())}"
        rhythm = f", with its strongest rhythm at {number(strongest_rhythm(series, dataset.rate), 1)} Hz"
        sentences.append(sentence + (rhythm if len(series) > 1 and np.ptp(series) > 0 else "") + ".")
    return " ".join(sentences)


ACTIVITY = "Activity: "                                                       # begins the line that names the class


def har_answer(window, dataset, label, reasoning):
    """The answer of stage 2 in words: a line that names the class, before it what speaks for it where reasoning is wanted."""
    return (reasoning_text(window, dataset) + "\n" if reasoning else "") + ACTIVITY + dataset.classes[label]
