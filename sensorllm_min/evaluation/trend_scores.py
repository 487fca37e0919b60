"""Scores of trend texts: their words against the true text, their claims against the series.

A text can share most of its words with the true one and yet be wrong in every number. So each score
stands beside that of a fixed guess, which has not seen the window: its words are those of a
training window of similar length, and it claims a single trend in the most common direction and
the median of each fact of this channel.

    direction      fraction of the time whose direction is right; silence is wrong
    segment_f1     F1 of the segments: they agree in direction, and in both ends to a quarter
    facts          fraction of the facts that are right to a tenth of themselves (a level, of the
                   standard deviation if that is more)
    well_formed    fraction of the answers that ended, hold nothing but claims, and whose
                   segments follow one another from 0 s
"""
import numpy as np

from ..data.claims import Claims, in_samples, parse_claims, parse_segments
from ..data.texts import facts_of, trend_line, trend_segments
from ..data.wording import DIRECTIONS, FACTS
from ..plots.figures import draw_descriptions

TOLERANCE = 0.25                        # fraction of a segment's length, at each of its ends
WORDS = ("bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_1", "rouge_l")        # from 0 to 100
TRUTH = ("direction", "segment_f1", "facts", "well_formed")       # from 0 to 1; None: not asked for


def word_scores(texts, true_texts):
    """{name of WORDS: score}: BLEU of all texts together, and the mean F1 of ROUGE."""
    from rouge_score.rouge_scorer import RougeScorer              # both take seconds to import
    from sacrebleu.metrics import BLEU
    scores = {}
    for order, name in enumerate(WORDS[:4], start=1):
        bleu = BLEU(max_ngram_order=order)
        scores[name] = bleu.corpus_score(texts, [true_texts]).score
    scorer = RougeScorer(["rouge1", "rougeL"])
    found = [scorer.score(true, text) for text, true in zip(texts, true_texts)]
    for name, key in (("rouge_1", "rouge1"), ("rouge_l", "rougeL")):
        scores[name] = 100 * float(np.mean([score[key].fmeasure for score in found]))
    return scores


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


def count_right(claimed, asked, true):
    """How many of the facts `asked` for are right. claimed, true: {fact: number}."""
    n_right = 0
    for fact in asked:
        size = abs(true[fact])
        if fact == "level":
            size = max(size, true["deviation"])
        n_right += abs(claimed.get(fact, np.inf) - true[fact]) <= 0.1 * size
    return n_right


def truth_sums(claims, asked, window, dataset, ended=True):
    """{name of TRUTH: (part, whole)} of Claims about a window (S,), of what the true text lists."""
    rate = dataset.rate
    series = trend_line(window, dataset)
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
    if asked.facts:
        n_right = count_right(claims.facts, asked.facts, facts_of(window, rate))
        pairs["facts"] = n_right, len(asked.facts)
    well_formed = ended and not claims.unread and claims.facts.keys() == asked.facts.keys()
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
        facts = {}                                                # channel -> [facts]
        sample = np.random.default_rng(0).permutation(len(train))[:n_windows]
        for i in sample:
            example = train[i]
            record = example.record
            line = trend_line(example.series[0], dataset)
            for start, end, direction in list_segments(line):
                self.seconds[direction] += (end - start) / self.rate
            text = record["length"], record["answer"]
            self.texts.setdefault(record["channel"], []).append(text)
            numbers = facts_of(example.series[0], self.rate)
            facts.setdefault(record["channel"], []).append(numbers)
        self.facts = {}                                           # channel -> medians
        for channel, some in facts.items():
            self.facts[channel] = {fact: np.median([one[fact] for one in some]) for fact in FACTS}
        self.usual = max(self.seconds, key=self.seconds.get)
        for texts in self.texts.values():
            texts.sort()

    def claims(self, channel, n_samples, asked):
        """What it claims about a channel, of the kinds that `asked`, the true Claims, holds."""
        facts = self.facts.get(channel) or next(iter(self.facts.values()))
        segments = [(0.0, (n_samples - 1) / self.rate, self.usual)] if asked.segments else []
        return Claims(segments, facts={fact: facts[fact] for fact in asked.facts})

    def text(self, channel, n_samples):
        """The text of a training window of similar length, of this channel if any was drawn."""
        texts = self.texts.get(channel) or next(iter(self.texts.values()))
        return min(texts, key=lambda pair: abs(pair[0] - n_samples))[1]


def score_trends(records, data, guess, processes):
    """This process's records -> {"all" or a channel: {"windows", "answers", "guess"}} of all.

    "answers" and "guess" hold the scores of TRUTH. Each is a part of a whole; parts and wholes are
    added up over windows and processes."""
    groups = ["all", *data.tokens]
    sums = np.zeros((len(groups), 2, len(TRUTH), 2))
    for record in records:
        column = data.tokens.index(record["channel"])
        series = data.window(record)[:, column]
        asked = parse_claims(record["answer"])
        answer = parse_claims(record["generated"]), record["ended"]
        guessed = guess.claims(record["channel"], len(series), asked), True
        for who, (claims, ended) in enumerate((answer, guessed)):
            pairs = truth_sums(claims, asked, series, data.dataset, ended)
            both = [pairs.get(name, (0, 0)) for name in TRUTH]
            sums[[0, 1 + column], who] += both                    # in its channel and in all
    sums = np.reshape(processes.sum(*sums.ravel()), sums.shape)
    scores = {}
    for title, group in zip(groups, sums.tolist()):
        n_windows = int(group[0][-1][1])                          # each counts in well_formed
        if n_windows:
            scores[title] = {"windows": n_windows}
            for who, pairs in zip(("answers", "guess"), group):
                scores[title][who] = {name: part / whole if whole else None
                                      for name, (part, whole) in zip(TRUTH, pairs)}
    return scores


def add_word_scores(scores, records, guess):
    """Adds the scores of WORDS to each group of `score_trends`. records: those of all processes."""
    for title, group in scores.items():
        some = [record for record in records if title in ("all", record["channel"])]
        guessed = [guess.text(record["channel"], record["length"]) for record in some]
        true = [record["answer"] for record in some]
        group["answers"] |= word_scores([record["generated"] for record in some], true)
        group["guess"] |= word_scores(guessed, true)


def shown(group, name):
    """A score of a group, as two texts: the answers' and the guess's."""
    scores = group["answers"][name], group["guess"][name]
    if None in scores:
        return "n/a", "n/a"
    form = "{:.1f}" if name in WORDS else "{:.1%}"
    return tuple(map(form.format, scores))


def scores_table(scores):
    """The scores of score_trends as text: answers / guess, a line for each group."""
    import pandas as pd                                           # takes a second to import
    lines = {}
    for title, group in scores.items():
        lines[title] = {}
        for name in (*WORDS, *TRUTH):
            lines[title][name] = " / ".join(shown(group, name))
    table = pd.DataFrame(lines).T
    return f"{table[[*WORDS]].to_string()}\n\n{table[[*TRUTH]].to_string()}"


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
