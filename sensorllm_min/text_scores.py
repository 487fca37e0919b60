"""BLEU and ROUGE: how many words and phrases a generated text shares with its reference. Texts in, numbers out.

BLEU is Papineni et al. 2002 (aclanthology.org/P02-1040) with the tokens and the smoothing that sacrebleu has by default
(Post 2018, arXiv:1804.08771); ROUGE is Lin 2004 (aclanthology.org/W04-1013) as rouge-score counts it, no stemming. The
tests hold each number against those two packages. METEOR is left out: NLTK's implementation of it needs WordNet's
files, which do not come with it.

Scores are made pair by pair, so that any group of pairs can be scored afterwards: `bleu` of the sum of the group's
`bleu_counts`, the mean of its `rouge_1` or `rouge_l`.
"""
import math
import re
import string
from collections import Counter

import numpy as np

MAX_ORDER = 4
ENTITIES = {"&quot;": '"', "&amp;": "&", "&lt;": "<", "&gt;": ">"}             # in this order: "&amp;lt;" ends as "<"
APART = str.maketrans({mark: f" {mark} " for mark in string.punctuation if mark not in "'-.,"})


def bleu_tokens(text):
    """The words and marks of a text, by the rules of NIST's mteval-v13a ("13a"); digits are ASCII's.

    "It's 1,5-2.0s, 'up'." -> ["It's", "1,5", "-", "2.0s", ",", "'up'", "."]
    """
    text = text.rstrip().replace("<skipped>", "").replace("-\n", "").replace("\n", " ")   # mends words cut at a line's end
    for entity, mark in ENTITIES.items():
        text = text.replace(entity, mark)
    text = re.sub("(^|[^0-9])([.,])", r"\1 \2 ", text.translate(APART))       # two at a time: "a,.5" -> "a", ",", ".5"
    text = re.sub("[.,](?![0-9])", r" \g<0> ", text)
    return re.sub("(?<=[0-9])-", " - ", text).split()


def bleu_counts(text, reference):
    """What BLEU needs of one pair -> (10,) integers: both lengths in tokens, matches of order 1 to 4, totals of 1 to 4.

    A phrase of n tokens matches as often as it occurs in both; the totals count all the text's phrases.
    """
    pair = bleu_tokens(text), bleu_tokens(reference)
    matches, totals = [], []
    for n in range(1, MAX_ORDER + 1):
        ours, theirs = (Counter(zip(*(tokens[i:] for i in range(n)))) for tokens in pair)
        matches.append((ours & theirs).total())
        totals.append(ours.total())
    return np.array([*map(len, pair), *matches, *totals])


def bleu(counts, order=MAX_ORDER):
    """Corpus BLEU, 0 to 100, of summed `bleu_counts` (10,): 100 min(1, e^(1 - reference/text)) (p_1 ... p_order)^(1/order).

    p_n is matches over totals. The k-th order without a match counts as 2^-k matches ("exp" smoothing); without one
    shared token, or one phrase as long as `order`, the score is 0.
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
    """Lower-case runs of ASCII letters and digits; all else parts them: "1.5s" -> ["1", "5s"]."""
    return re.findall("[a-z0-9]+", text.lower())


def f1(shared, *lengths):
    """2 precision recall / (precision + recall), where `shared` of each side's tokens agree; 0 where nothing is said."""
    return 2 * shared / max(sum(lengths), 1)


def rouge_1(text, reference):
    """F1, 0 to 1, of the tokens that both texts have, in any order, each as often as both have it."""
    ours, theirs = (Counter(rouge_tokens(side)) for side in (text, reference))
    return f1((ours & theirs).total(), ours.total(), theirs.total())


def longest_common_subsequence(a, b):
    """Length of the longest list of tokens that is left of both `a` and `b` by leaving tokens out.

    A bit-parallel method (Hyyrö 2004, "Bit-parallel LCS-length computation revisited"): each row of the usual table is
    one Python integer. Neighbours in a row differ by 0 or 1, and bit i is clear where the row steps up at a[i]; the
    addition's carry moves every step to the first match after the step before it. 2,000 by 2,000 tokens: a few ms.
    """
    places = {}                                                               # token -> the bits at which `a` has it
    for i, token in enumerate(a):
        places[token] = places.get(token, 0) | 1 << i
    full = row = (1 << len(a)) - 1
    for token in b:
        matched = row & places.get(token, 0)
        row = ((row + matched) | (row - matched)) & full                      # & full: drops the carry out of the top
    return len(a) - row.bit_count()


def rouge_l(text, reference):
    """F1, 0 to 1, of the longest common subsequence of the two texts' tokens."""
    ours, theirs = rouge_tokens(text), rouge_tokens(reference)
    return f1(longest_common_subsequence(ours, theirs), len(ours), len(theirs))
