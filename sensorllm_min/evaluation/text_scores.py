"""BLEU and ROUGE: how many words and phrases a generated text shares with its reference.

BLEU is Papineni et al. 2002 (aclanthology.org/P02-1040) with the tokens and the smoothing that
sacrebleu uses by default (Post 2018, arXiv:1804.08771); ROUGE is Lin 2004
(aclanthology.org/W04-1013) as rouge-score counts it, without stemming. The tests hold each number
against those two packages. METEOR is left out: it needs WordNet's files.

Pairs of texts are counted one by one, so that any group of them can be scored afterwards: `bleu` of
the sum of the group's `bleu_counts`, the mean of its `rouge_1` or `rouge_l`.
"""
import math
import re
import string
from collections import Counter

import numpy as np

MAX_ORDER = 4
ENTITIES = {"&quot;": '"', "&amp;": "&", "&lt;": "<", "&gt;": ">"}    # in this order: &amp;lt; -> <
SET_APART = [mark for mark in string.punctuation if mark not in "'-.,"]
SPACED = str.maketrans({mark: f" {mark} " for mark in SET_APART})


def bleu_tokens(text):
    """The words and marks of a text, by the rules of NIST's mteval-v13a ("13a").

    "It's 1,5-2.0s, 'up'." -> ["It's", "1,5", "-", "2.0s", ",", "'up'", "."]
    """
    text = text.rstrip().replace("<skipped>", "")
    text = text.replace("-\n", "").replace("\n", " ")             # joins hyphenated words
    for entity, mark in ENTITIES.items():
        text = text.replace(entity, mark)
    text = text.translate(SPACED)
    text = re.sub("(^|[^0-9])([.,])", r"\1 \2 ", text)            # "a,.5" -> "a", ",", ".5"
    text = re.sub("[.,](?![0-9])", r" \g<0> ", text)
    return re.sub("(?<=[0-9])-", " - ", text).split()


def bleu_counts(text, reference):
    """What BLEU needs of one pair -> (10,) integers.

    Both lengths in tokens, then for phrases of 1 to 4 tokens how many match, each as often as both
    texts have it, then how many the text has.
    """
    def phrases(tokens, n):                                       # abc, 2 -> ab, bc
        return Counter(zip(*(tokens[i:] for i in range(n))))

    pair = bleu_tokens(text), bleu_tokens(reference)
    matches, totals = [], []
    for n in range(1, MAX_ORDER + 1):
        ours, theirs = (phrases(tokens, n) for tokens in pair)
        matches.append((ours & theirs).total())
        totals.append(ours.total())
    return np.array([*map(len, pair), *matches, *totals])


def bleu(counts, order=MAX_ORDER):
    """Corpus BLEU, 0 to 100, of summed `bleu_counts` (10,).

    100 min(1, e^(1 - reference / text)) (p_1 ... p_order)^(1 / order), with p_n = matches / totals.
    The k-th order without a match counts as 2^-k matches ("exp" smoothing). Without a shared token,
    or a phrase as long as `order`, the score is 0.
    """
    length, reference_length, *counts = (int(count) for count in counts)
    matches, totals = counts[:order], counts[MAX_ORDER:MAX_ORDER + order]
    if not matches[0] or not totals[-1]:
        return 0.0
    unmatched, logs = 0, []
    for match, total in zip(matches, totals):
        unmatched += not match
        logs.append(math.log((match or 0.5**unmatched) / total))
    return 100 * math.exp(min(0, 1 - reference_length / length) + sum(logs) / order)


def rouge_tokens(text):
    """Lower-case runs of ASCII letters and digits: "1.5s" -> ["1", "5s"]."""
    return re.findall("[a-z0-9]+", text.lower())


def f1(n_shared, n_ours, n_theirs):
    """2 precision recall / (precision + recall); 0 where both texts are empty."""
    return 2 * n_shared / max(n_ours + n_theirs, 1)


def rouge_1(text, reference):
    """F1, 0 to 1, of the tokens that both texts have, in any order, as often as both have them."""
    ours, theirs = Counter(rouge_tokens(text)), Counter(rouge_tokens(reference))
    return f1((ours & theirs).total(), ours.total(), theirs.total())


def longest_common_subsequence(a, b):
    """Length of the longest list that is left of both `a` and `b` by leaving tokens out.

    A bit-parallel method (Hyyrö 2004, "Bit-parallel LCS-length computation revisited"): each row
    of the usual table is one Python integer. Neighbours in a row differ by 0 or 1, and bit i is
    clear where the row steps up at a[i]; the addition's carry moves every step to the first match
    after the step before it. 2,000 by 2,000 tokens take a few milliseconds.
    """
    bits = {}                                                     # token -> where `a` has it
    for i, token in enumerate(a):
        bits[token] = bits.get(token, 0) | 1 << i
    full = row = (1 << len(a)) - 1
    for token in b:
        matched = row & bits.get(token, 0)
        row = ((row + matched) | (row - matched)) & full          # & full drops the top carry
    return len(a) - row.bit_count()


def rouge_l(text, reference):
    """F1, 0 to 1, of the longest common subsequence of the two texts' tokens."""
    ours, theirs = rouge_tokens(text), rouge_tokens(reference)
    return f1(longest_common_subsequence(ours, theirs), len(ours), len(theirs))
