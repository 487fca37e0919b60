"""What generated trend texts are worth: their words against the true text's, and their claims against the series.

A text can share most of its words with the true one and yet be wrong in every number. So each score stands beside
that of a fixed guess, which has not seen the window: its words are the text of a training window of like length, its
claims are what is usual in training.

One text makes one row of sums (WIDTH,); rows of any group are added up, and `scores_of` makes scores of a sum.
"""
from bisect import bisect_left
from collections import Counter

import numpy as np

from .metrics import Claims, in_samples, parse_claims
from .text_scores import MAX_ORDER, bleu, bleu_counts, rouge_1, rouge_l
from .trend_text import DIRECTIONS, trend_segments

TOLERANCE = 1                                                                 # samples that a segment's ends may be off

TRUTH = {               # what is held against the series -> what it means; each a (sum, count) in a row of sums
    "direction": "share of the time whose direction is right; silence is wrong",
    "segment_f1": f"segments claimed and true that agree in direction, and in both ends to {TOLERANCE} sample",
    "count_error": "segments of each direction, claimed minus true: absolute, per true segment",
    "duration_error": "seconds of each direction, claimed minus true: absolute, per second",
    "overall": "direction from first to last sample, share right",
    "well_formed": "share of answers that ended, hold nothing but claims, and whose segments follow one another from 0 s",
}
TEXT = tuple(f"bleu_{order}" for order in range(1, MAX_ORDER + 1)) + ("rouge_1", "rouge_l")
COLUMNS = ("rouge_1", "rouge_l", *TRUTH)                                      # behind BLEU's counts, two places each
N_BLEU = 2 + 2 * MAX_ORDER
WIDTH = N_BLEU + 2 * len(COLUMNS)


def agreeing(claimed, true):
    """How many segments agree, each used once: lists of (start, end, direction) in samples."""
    found = 0
    for direction in DIRECTIONS:
        left = [segment for segment in true if segment[2] == direction]
        for start, end, _ in sorted(segment for segment in claimed if segment[2] == direction):
            match = next((one for one in left if max(abs(one[0] - start), abs(one[1] - end)) <= TOLERANCE), None)
            if match is not None:
                left.remove(match)
                found += 1
    return found


def truth_sums(claims, asked, series, rate, ended=True):
    """Claims held against a series (T,) -> {name of TRUTH: (sum, count)}, for what was asked.

    asked: the Claims of the true text. What that is silent about is no part of the answer, and is left out. Where an
    answer lists segments and names no counts or durations, those of its segments stand for them. A count or duration
    beyond what the window can hold counts as the most it can.
    """
    signs, n = np.sign(np.diff(series)), len(series) - 1
    true = list(zip(*(part.tolist() for part in trend_segments(series))))     # (start, end, direction), samples
    claimed, sums = in_samples(claims.segments, n, rate), {}
    if asked.segments:
        directions = np.full(n, np.nan)
        for start, end, direction in claimed:
            directions[start:end] = direction
        sums["direction"] = (directions == signs).sum(), n
        sums["segment_f1"] = 2 * agreeing(claimed, true), len(claimed) + len(true)
    if asked.segments or asked.counts:
        counts = claims.counts or Counter(direction for *_, direction in claimed)
        true_counts = Counter(direction for *_, direction in true)
        sums["count_error"] = sum(abs(min(counts.get(d, 0), n) - true_counts[d]) for d in DIRECTIONS), len(true)
    if asked.segments or asked.totals:
        totals = claims.totals or {d: sum(max(end - start, 0) for start, end, one in claimed if one == d) / rate
                                   for d in DIRECTIONS}                       # max: a model may write an end before its start
        sums["duration_error"] = sum(abs(min(totals.get(d, 0), n / rate) - (signs == d).sum() / rate)
                                     for d in DIRECTIONS), n / rate
    if asked.overall is not None:
        sums["overall"] = claims.overall == np.sign(series[-1] - series[0]), 1
    ends = [0] + [end for _, end, _ in claimed]
    follows = all(start == before < end for (start, end, _), before in zip(claimed, ends))
    sums["well_formed"] = ended and not claims.unread and follows and bool(claimed or not asked.segments), 1
    return sums


def row_of_sums(text, claims, true_text, series, rate, ended=True):
    """One answer -> (WIDTH,). claims: of the text, or another's."""
    sums = truth_sums(claims, parse_claims(true_text), series, rate, ended)
    sums |= {"rouge_1": (rouge_1(text, true_text), 1), "rouge_l": (rouge_l(text, true_text), 1)}
    return np.concatenate([bleu_counts(text, true_text), *(sums.get(name, (0, 0)) for name in COLUMNS)]).astype(float)


def scores_of(sums):
    """Added-up sums (WIDTH,) -> {name: score}: TEXT from 0 to 100; TRUTH as shares and errors, None where never asked."""
    pairs = dict(zip(COLUMNS, sums[N_BLEU:].reshape(-1, 2)))
    shares = {name: float(total / count) if count else None for name, (total, count) in pairs.items()}
    return ({f"bleu_{order}": bleu(sums[:N_BLEU], order) for order in range(1, MAX_ORDER + 1)}
            | {name: 100 * (shares[name] or 0.0) if name in TEXT else shares[name] for name in COLUMNS})


class Guess:
    """What can be said without a look at the window: learned from a seeded sample of the training windows."""

    def __init__(self, train, n_windows=2000):
        self.rate = train.data.dataset.rate
        self.texts = {}                                                       # channel -> sorted [(length, text)]
        seconds, segments, overall = Counter(), Counter(), Counter()
        for i in np.random.default_rng(0).permutation(len(train))[:n_windows]:
            example = train[i]
            (series,), row = example.series, example.row
            self.texts.setdefault(row["channel"], []).append((row["length"], row["answer"]))
            for start, end, direction in zip(*(part.tolist() for part in trend_segments(series))):
                seconds[direction] += (end - start) / self.rate
                segments[direction] += 1
            overall[int(np.sign(series[-1] - series[0]))] += 1
        total = sum(seconds.values())
        self.share = {d: seconds[d] / total for d in DIRECTIONS}              # of the time
        self.pace = {d: segments[d] / total for d in DIRECTIONS}              # segments a second
        self.usual, self.overall = max(self.share, key=self.share.get), max(overall, key=overall.get)
        for texts in self.texts.values():
            texts.sort()

    def claims(self, n_samples):
        """One segment in the commonest direction; counts, durations and overall direction as usual in so much time."""
        seconds = (n_samples - 1) / self.rate
        return Claims([(0.0, seconds, self.usual)], counts={d: round(self.pace[d] * seconds) for d in DIRECTIONS},
                      totals={d: self.share[d] * seconds for d in DIRECTIONS}, overall=self.overall)

    def text(self, channel, n_samples):
        """The text of a training window of this channel (or any, where none was drawn) and of the nearest length."""
        texts = self.texts.get(channel) or next(iter(self.texts.values()))
        place = bisect_left(texts, (n_samples, ""))
        return min(texts[max(place - 1, 0):place + 1], key=lambda pair: abs(pair[0] - n_samples))[1]

    def row_of_sums(self, row, series):
        """What the guess gets on a window -> (WIDTH,)."""
        return row_of_sums(self.text(row["channel"], len(series)), self.claims(len(series)), row["answer"], series, self.rate)


def groups_of(row, lengths):
    """The groups that a row counts in: all, its channel, a quarter of the lengths (shortest, longest)."""
    shortest, longest = lengths
    borders = np.linspace(shortest, longest + 1, 5).astype(int)
    quarter = min(int(np.searchsorted(borders, row["length"], "right")) - 1, 3)
    return "all", row["channel"], f"{borders[quarter]} to {borders[quarter + 1] - 1} samples"


def scores_table(scores):
    """{group: {"windows", "answers", "guess"}} -> Markdown: a line a score over all windows, then a line a group."""
    everything = scores["all"]
    lines = [f"{everything['windows']} windows; the guess has not seen them.", "",
             "| score | answers | guess | |", "| --- | --- | --- | --- |"]
    for name in (*TEXT, *TRUTH):
        ours, guess = (shown(everything[side][name], name) for side in ("answers", "guess"))
        lines.append(f"| {name.replace('_', ' ')} | {ours} | {guess} | {TRUTH.get(name, '')} |")
    some = [name for name in ("bleu_4", "rouge_l", *TRUTH) if everything["answers"][name] is not None]
    lines += ["", "Answers / guess of each group:", "",
              "| | windows | " + " | ".join(name.replace("_", " ") for name in some) + " |", "| --- " * (len(some) + 2) + "|"]
    for group, of_group in scores.items():
        cells = (f"{shown(of_group['answers'][name], name)} / {shown(of_group['guess'][name], name)}" for name in some)
        lines.append(f"| {group} | {of_group['windows']} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def shown(score, name):
    """A score as a table shows it; n/a: the texts of this dataset say nothing of the kind."""
    return "n/a" if score is None else f"{score:.1f}" if name in TEXT else f"{score:.2f}" if "error" in name else f"{score:.1%}"


def in_one_line(ours, guess):
    """The truth scores of answers and of the guess, as a sentence."""
    sentence = (f"direction right for {shown(ours['direction'], 'direction')} of the time, guessing gets "
                f"{shown(guess['direction'], 'direction')}; " if ours["direction"] is not None else "")
    return sentence + ", ".join(f"{name.replace('_', ' ')} {shown(ours[name], name)} (guess {shown(guess[name], name)})"
                                for name in TRUTH if name != "direction" and ours[name] is not None)
