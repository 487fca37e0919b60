"""Scores of trend texts: their words against the true text, their claims against the series.

A text can share most of its words with the true one and yet be wrong in every number. So each score
stands beside that of a fixed guess, which has not seen the window: its words are those of a
training window of similar length, and it claims a single trend in the most common direction.

    direction      fraction of the time whose direction is right; silence is wrong
    segment_f1     F1 of the segments: they agree in direction, and in both ends to a quarter
    well_formed    fraction of the answers that ended, hold nothing but claims, and whose
                   segments follow one another from 0 s
"""
import functools
from bisect import bisect_left

import numpy as np

from ..data.claims import Claims, in_samples, parse_claims, parse_segments
from ..data.texts import trend_line, trend_segments
from ..data.wording import DIRECTIONS
from ..plots.figures import draw_descriptions

TOLERANCE = 0.25                        # fraction of a segment's length, at each of its ends
BLEU = ("bleu_1", "bleu_2", "bleu_3", "bleu_4")
TEXT = (*BLEU, "rouge_1", "rouge_l")                              # scores from 0 to 100
TRUTH = ("direction", "segment_f1", "well_formed")                # from 0 to 1; None: not asked for
# Each score comes from a pair (part, whole), added up over windows and processes. BLEU's pairs are
# shared phrases and all phrases; its brevity penalty needs the lengths of both texts.
PAIRS = ("length", *TEXT, *TRUTH)


@functools.cache
def word_scorers():
    """sacrebleu's BLEU and rouge-score's scorer, which take seconds to import."""
    from rouge_score.rouge_scorer import RougeScorer
    from sacrebleu.metrics import BLEU as SacreBLEU
    return SacreBLEU(effective_order=True), RougeScorer(["rouge1", "rougeL"])


def word_pairs(text, true_text):
    """{name: (part, whole)} of a text's words: BLEU's counts, ROUGE's F1."""
    bleu, rouge = word_scorers()
    counts = bleu.sentence_score(text, [true_text])
    f1 = rouge.score(true_text, text)
    pairs = dict(zip(BLEU, zip(counts.counts, counts.totals)))
    pairs["length"] = counts.sys_len, counts.ref_len
    pairs["rouge_1"] = 100 * f1["rouge1"].fmeasure, 1
    pairs["rouge_l"] = 100 * f1["rougeL"].fmeasure, 1
    return pairs


def list_segments(series):
    """The true (start, end, direction) of a series, in samples."""
    return list(zip(*(part.tolist() for part in trend_segments(series))))


def count_matches(claimed, true):
    """The number of segments (start, end, direction) that agree, each used once."""
    left = list(true)
    for start, end, direction in sorted(claimed):
        for segment in left:
            off = max(abs(segment[0] - start), abs(segment[1] - end))
            allowed = TOLERANCE * (segment[1] - segment[0])
            if segment[2] == direction and off <= allowed:
                left.remove(segment)
                break
    return len(true) - len(left)


def truth_sums(claims, asked, series, rate, ended=True):
    """{name of TRUTH: (part, whole)} of an answer's Claims about a series (S,).

    asked: the Claims of the true text. If it lists no segments, none are scored.
    """
    n = len(series) - 1
    claimed = in_samples(claims.segments, n, rate)
    pairs = {}
    if asked.segments:
        true = list_segments(series)
        directions = np.full(n, np.nan)
        for start, end, direction in claimed:
            directions[start:end] = direction
        pairs["direction"] = (directions == np.sign(np.diff(series))).sum(), n
        pairs["segment_f1"] = 2 * count_matches(claimed, true), len(claimed) + len(true)
    well_formed = ended and not claims.unread
    if asked.segments and not claimed:
        well_formed = False
    before = 0
    for start, end, _ in claimed:
        if not start == before < end:
            well_formed = False
        before = end
    pairs["well_formed"] = well_formed, 1
    return pairs


class Guess:
    """A description made without seeing the window, learned from a sample of training windows."""

    def __init__(self, train, n_windows=2000):
        dataset = train.data.dataset
        self.rate = dataset.rate
        self.seconds = dict.fromkeys(DIRECTIONS, 0.0)             # time spent in each direction
        self.texts = {}                                           # channel -> [(samples, text)]
        sample = np.random.default_rng(0).permutation(len(train))[:n_windows]
        for i in sample:
            example = train[i]
            record = example.record
            line = trend_line(example.series[0], dataset)
            for start, end, direction in list_segments(line):
                self.seconds[direction] += (end - start) / self.rate
            text = record["length"], record["answer"]
            self.texts.setdefault(record["channel"], []).append(text)
        self.usual = max(self.seconds, key=self.seconds.get)
        for texts in self.texts.values():
            texts.sort()

    def claims(self, n_samples):
        """One segment in the most common direction."""
        return Claims([(0.0, (n_samples - 1) / self.rate, self.usual)])

    def text(self, channel, n_samples):
        """The text of a training window of similar length, of this channel if any was drawn."""
        texts = self.texts.get(channel) or next(iter(self.texts.values()))
        index = bisect_left(texts, (n_samples, ""))
        neighbours = texts[max(index - 1, 0):index + 1]
        return min(neighbours, key=lambda pair: abs(pair[0] - n_samples))[1]


def scores_of(pairs):
    """Added-up pairs (len(PAIRS), 2) -> {name: score}."""
    bleu, _ = word_scorers()
    lengths, *pairs = pairs.tolist()
    matches, totals = map(list, zip(*pairs[:len(BLEU)]))
    lengths = [int(length) for length in lengths]                 # sacrebleu takes no floats
    scores = {}
    for order, name in enumerate(BLEU, start=1):
        counts = matches[:order], totals[:order]
        scores[name] = bleu.compute_bleu(*counts, *lengths, "exp", max_ngram_order=order).score
    for name, (part, whole) in zip(PAIRS[1 + len(BLEU):], pairs[len(BLEU):]):
        scores[name] = part / whole if whole else None
    return scores


def score_trends(records, data, guess, processes):
    """This process's records -> {"all" or a channel: {"windows", "answers", "guess"}} of all."""
    groups = ["all", *data.tokens]
    sums = np.zeros((len(groups), 2, len(PAIRS), 2))
    for record in records:
        column = data.tokens.index(record["channel"])
        line = trend_line(data.window(record)[:, column], data.dataset)
        true_text, text, n = record["answer"], record["generated"], len(line)
        asked = parse_claims(true_text)
        answer = text, parse_claims(text), record["ended"]
        guessed = guess.text(record["channel"], n), guess.claims(n), True
        for who, (text, claims, ended) in enumerate((answer, guessed)):
            pairs = truth_sums(claims, asked, line, guess.rate, ended)
            pairs |= word_pairs(text, true_text)
            sums[[0, 1 + column], who] += [pairs.get(name, (0, 0)) for name in PAIRS]
    sums = np.reshape(processes.sum(*sums.ravel()), sums.shape)
    scores = {}
    for group, (answers, guessed) in zip(groups, sums):
        n_windows = int(answers[-1, 1])                           # each counts in well_formed
        if n_windows:
            scores[group] = {
                "windows": n_windows,
                "answers": scores_of(answers),
                "guess": scores_of(guessed),
            }
    return scores


def shown(group, name):
    """A score of a group, as two texts: the answers' and the guess's."""
    scores = group["answers"][name], group["guess"][name]
    if None in scores:
        return "n/a", "n/a"
    form = "{:.1f}" if name in TEXT else "{:.1%}"
    return tuple(map(form.format, scores))


def scores_table(scores):
    """The scores of score_trends as text: answers / guess, a line for each group."""
    import pandas as pd                                           # takes a second to import
    lines = {}
    for title, group in scores.items():
        lines[title] = {name: " / ".join(shown(group, name)) for name in (*TEXT, *TRUTH)}
    table = pd.DataFrame(lines).T
    return f"{table[[*TEXT]].to_string()}\n\n{table[[*TRUTH]].to_string()}"


def in_one_line(scores):
    """The truth scores of all windows, the answers' and the guess's, as a sentence."""
    parts = []
    for name in TRUTH:
        score, guess = shown(scores["all"], name)
        if score == "n/a":
            continue
        if name == "direction":
            parts.append(f"direction right for {score} of the time, guessing gets {guess}")
        else:
            parts.append(f"{name.replace('_', ' ')} {score} (guess {guess})")
    return "; ".join(parts)


def draw_answers(path, records, data, say):
    """Draws described windows to a PNG, with their true trends and those that the answers claim."""
    windows = []
    for record in records:
        column = data.tokens.index(record["channel"])
        spoken = data.dataset.channels[column].spoken
        title = f"window {record['window']}, subject {record['subject']}: {spoken}"
        series = data.window(record)[:, column]
        windows.append((title, series, parse_segments(record["generated"])))
    draw_descriptions(path, windows, data.dataset)
    say(f"wrote {path}: true trends and those that the model claims")
