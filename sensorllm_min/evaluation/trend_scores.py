"""Scores of trend texts: their words against the true text, their claims against the series.

A text can share most of its words with the true one and yet be wrong in every number. So each score
stands beside that of a fixed guess, which has not seen the window: its words are those of a
training window of like length, its claims are what is usual in training.

One text makes one row of sums (WIDTH,). Rows of any group are added up for `scores_of`.
"""
import time
from bisect import bisect_left
from collections import Counter

import numpy as np

from ..data.claims import Claims, in_samples, parse_claims, parse_segments
from ..plots.figures import draw_descriptions
from ..data.texts import trend_line, trend_segments
from ..data.wording import DIRECTIONS
from ..files import markdown_table
from .text_scores import MAX_ORDER, bleu, bleu_counts, rouge_1, rouge_l

TOLERANCE = 0.25                        # of a segment's length, at each of its ends

# What is held against the series -> what it means; each is a (sum, count) in a row of sums.
TRUTH = {
    "direction": "share of the time whose direction is right; silence is wrong",
    "segment_f1": "segments claimed and true that agree in direction, "
                  "and in both ends to a quarter of the true one",
    "count_error": "segments of each direction, claimed minus true: absolute, per true segment",
    "duration_error": "seconds of each direction, claimed minus true: absolute, per second",
    "overall": "direction from first to last sample, share right",
    "well_formed": "share of answers that ended, hold nothing but claims, "
                   "and whose segments follow one another from 0 s",
}
BLEU = tuple(f"bleu_{order}" for order in range(1, MAX_ORDER + 1))
TEXT = (*BLEU, "rouge_1", "rouge_l")
# A row of sums: BLEU's counts, then a sum and a count for each of COLUMNS.
COLUMNS = ("rouge_1", "rouge_l", *TRUTH)
N_BLEU = 2 + 2 * MAX_ORDER
WIDTH = N_BLEU + 2 * len(COLUMNS)


def list_segments(series):
    """The true (start, end, direction) of a series, in samples."""
    return list(zip(*(part.tolist() for part in trend_segments(series))))


def count_matches(claimed, true):
    """How many segments (start, end, direction) agree, each used once."""
    n_matches, left = 0, list(true)
    for start, end, direction in sorted(claimed):
        for segment in left:
            off = max(abs(segment[0] - start), abs(segment[1] - end))
            allowed = TOLERANCE * (segment[1] - segment[0])
            if segment[2] == direction and off <= allowed:
                left.remove(segment)
                n_matches += 1
                break
    return n_matches


def truth_sums(claims, asked, series, rate, ended=True):
    """Holds Claims against a series (S,) -> {name of TRUTH: (sum, count)}, for what was asked.

    asked: the Claims of the true text; what it is silent about is left out. Where an answer lists
    segments and names no counts or durations, those of its segments stand for them. A count or
    duration beyond what the window can hold counts as the most it can.
    """
    n = len(series) - 1
    signs = np.sign(np.diff(series))                              # (n,)
    true = list_segments(series)
    claimed = in_samples(claims.segments, n, rate)
    sums = {}
    if asked.segments:
        directions = np.full(n, np.nan)
        for start, end, direction in claimed:
            directions[start:end] = direction
        sums["direction"] = (directions == signs).sum(), n
        sums["segment_f1"] = 2 * count_matches(claimed, true), len(claimed) + len(true)
    if asked.segments or asked.counts:
        counts = claims.counts or Counter(direction for _, _, direction in claimed)
        true_counts = Counter(direction for _, _, direction in true)
        errors = [abs(min(counts.get(d, 0), n) - true_counts[d]) for d in DIRECTIONS]
        sums["count_error"] = sum(errors), len(true)
    if asked.segments or asked.totals:
        lengths = Counter()
        for start, end, direction in claimed:
            lengths[direction] += max(end - start, 0)             # a model may swap start and end
        seconds = claims.totals or {d: lengths[d] / rate for d in DIRECTIONS}
        true_seconds = {d: (signs == d).sum() / rate for d in DIRECTIONS}
        errors = [abs(min(seconds.get(d, 0), n / rate) - true_seconds[d]) for d in DIRECTIONS]
        sums["duration_error"] = sum(errors), n / rate
    if asked.overall is not None:
        sums["overall"] = claims.overall == np.sign(series[-1] - series[0]), 1
    ends = [0] + [end for _, end, _ in claimed]
    follow = all(start == before < end for before, (start, end, _) in zip(ends, claimed))
    answered = bool(claimed or not asked.segments)
    sums["well_formed"] = ended and not claims.unread and follow and answered, 1
    return sums


def row_of_sums(text, claims, true_text, series, rate, ended=True):
    """One answer -> (WIDTH,). claims: the text's, or another's."""
    sums = truth_sums(claims, parse_claims(true_text), series, rate, ended)
    sums["rouge_1"] = rouge_1(text, true_text), 1
    sums["rouge_l"] = rouge_l(text, true_text), 1
    pairs = [sums.get(name, (0, 0)) for name in COLUMNS]
    return np.concatenate([bleu_counts(text, true_text), *pairs]).astype(float)


def scores_of(sums):
    """Added-up sums (WIDTH,) -> {name: score}: TEXT to 100, TRUTH None where it was never asked."""
    scores = {name: bleu(sums[:N_BLEU], order) for order, name in enumerate(BLEU, start=1)}
    for name, (total, count) in zip(COLUMNS, sums[N_BLEU:].reshape(-1, 2)):
        share = float(total / count) if count else None
        scores[name] = 100 * (share or 0.0) if name in TEXT else share
    return scores


class Guess:
    """What can be said without seeing the window: learned from a sample of training windows."""

    def __init__(self, train, n_windows=2000):
        self.dataset = train.data.dataset
        self.rate = self.dataset.rate
        self.texts = {}                                           # channel -> [(length, text)]
        seconds, segments, overall = Counter(), Counter(), Counter()
        for i in np.random.default_rng(0).permutation(len(train))[:n_windows]:
            example = train[i]
            (series,), record = example.series, example.record
            line = trend_line(series, self.dataset)
            text = record["length"], record["answer"]
            self.texts.setdefault(record["channel"], []).append(text)
            for start, end, direction in list_segments(line):
                seconds[direction] += (end - start) / self.rate
                segments[direction] += 1
            overall[int(np.sign(line[-1] - line[0]))] += 1
        total = sum(seconds.values())
        self.share = {d: seconds[d] / total for d in DIRECTIONS}    # share of the time
        self.pace = {d: segments[d] / total for d in DIRECTIONS}    # segments per second
        self.usual = max(self.share, key=self.share.get)
        self.overall = max(overall, key=overall.get)
        for texts in self.texts.values():
            texts.sort()

    def claims(self, n_samples):
        """One segment in the most common direction; all else as usual in so much time."""
        seconds = (n_samples - 1) / self.rate
        counts = {d: round(self.pace[d] * seconds) for d in DIRECTIONS}
        totals = {d: self.share[d] * seconds for d in DIRECTIONS}
        segment = (0.0, seconds, self.usual)
        return Claims([segment], counts=counts, totals=totals, overall=self.overall)

    def text(self, channel, n_samples):
        """The text of a training window of like length, of this channel if any of it was drawn."""
        texts = self.texts.get(channel) or next(iter(self.texts.values()))
        index = bisect_left(texts, (n_samples, ""))
        neighbours = texts[max(index - 1, 0):index + 1]
        return min(neighbours, key=lambda pair: abs(pair[0] - n_samples))[1]

    def row_of_sums(self, record, series):
        """What the guess gets on a window -> (WIDTH,)."""
        n_samples = len(series)
        text, claims = self.text(record["channel"], n_samples), self.claims(n_samples)
        return row_of_sums(text, claims, record["answer"], series, self.rate)


def trend_sums(record, series, guess):
    """A described window, with "generated" and "ended" -> (2, WIDTH): sums of answer and guess."""
    series, text = trend_line(series, guess.dataset), record["generated"]
    answer = row_of_sums(
        text, parse_claims(text), record["answer"], series, guess.rate, record["ended"])
    return np.stack([answer, guess.row_of_sums(record, series)])


def draw_answers(path, records, data, say):
    """Draws described windows to a PNG, with their true trends and those that the answers claim.

    Says so, unless there are none or matplotlib is missing.
    """
    windows = []
    for record in records:
        column = data.tokens.index(record["channel"])
        series = data.window(record)[:, column]
        title = (f"window {record['window']}, subject {record['subject']}: "
                 f"{data.dataset.channels[column].spoken}")
        windows.append((title, series, parse_segments(record["generated"])))
    try:
        draw_descriptions(path, windows, data.dataset)
    except ImportError:
        return
    if windows:
        say(f"wrote {path}: true trends and those that the model claims")


def score_trends(records, data, guess, say):
    """Described windows -> {group: {"windows", "answers", "guess"}}; groups are of groups_of."""
    sums, counts, said = {}, Counter(), time.time()
    for index, record in enumerate(records):
        if time.time() - said > 10:
            said = time.time()
            say(f"scored {index} of {len(records)} descriptions")
        series = data.window(record)[:, data.tokens.index(record["channel"])]
        both = trend_sums(record, series, guess)
        for group in groups_of(record, data.meta["align_lengths"]):
            sums[group] = sums.get(group, 0) + both
            counts[group] += 1
    order = ["all", *(token for token in data.tokens if token in sums)]
    lengths = sums.keys() - set(order)                            # "5 to 53 samples"
    order += sorted(lengths, key=lambda group: int(group.split()[0]))
    return {group: {"windows": counts[group], "answers": scores_of(sums[group][0]),
                    "guess": scores_of(sums[group][1])} for group in order}


def groups_of(record, lengths):
    """The groups a window counts in: all, its channel, a quarter of the lengths (first, last)."""
    shortest, longest = lengths
    borders = np.linspace(shortest, longest + 1, 5).astype(int)
    quarter = min(int(np.searchsorted(borders, record["length"], "right")) - 1, 3)
    return "all", record["channel"], f"{borders[quarter]} to {borders[quarter + 1] - 1} samples"


def scores_table(scores):
    """{group: {"windows", "answers", "guess"}} -> Markdown: a table for all, one of groups."""
    def pair_of(group, name):
        return shown(group["answers"][name], name), shown(group["guess"][name], name)

    rows = [(name.replace("_", " "), *pair_of(scores["all"], name), TRUTH.get(name, ""))
            for name in (*TEXT, *TRUTH)]
    names = [name for name in ("bleu_4", "rouge_l", *TRUTH)
             if scores["all"]["answers"][name] is not None]
    head = ["", "windows", *(name.replace("_", " ") for name in names)]
    group_rows = []
    for title, group in scores.items():
        pairs = [" / ".join(pair_of(group, name)) for name in names]
        group_rows.append((title, group["windows"], *pairs))
    return (f"{scores['all']['windows']} windows; the guess has not seen them.\n\n"
            f"{markdown_table(('score', 'answers', 'guess', ''), rows)}\n\n"
            f"Answers / guess of each group:\n\n{markdown_table(head, group_rows)}\n")


def shown(score, name):
    """A score as a table shows it; n/a: the texts of this dataset say nothing of the kind."""
    if score is None:
        return "n/a"
    if name in TEXT:
        return f"{score:.1f}"
    return f"{score:.2f}" if "error" in name else f"{score:.1%}"


def in_one_line(ours, guess):
    """The truth scores of the answers and of the guess, as a sentence."""
    start, others = "", []
    for name in TRUTH:
        score, guessed = shown(ours[name], name), shown(guess[name], name)
        if name == "direction" and ours[name] is not None:
            start = f"direction right for {score} of the time, guessing gets {guessed}; "
        elif ours[name] is not None:
            others.append(f"{name.replace('_', ' ')} {score} (guess {guessed})")
    return start + ", ".join(others)
