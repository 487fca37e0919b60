"""BLEU against sacrebleu, ROUGE against rouge-score: the project's own texts, damaged; wild strings; the edges."""
import functools
import math
import random

import numpy as np
import pytest

from sensorllm_min.data.sensors import DATASETS
from sensorllm_min.data.texts import align_pair
from sensorllm_min.evaluation.text_scores import (
    bleu, bleu_counts, bleu_tokens, longest_common_subsequence, rouge_1, rouge_l)

ORDERS = (1, 2, 3, 4)
SLOW = [pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2)]
SEEDS = pytest.mark.parametrize("seed", [0, *SLOW])
PIECES = ["&quot;", "&amp;", "&lt;", "&gt;", "&amp;lt;", "&apos;", "&", ";", "<skipped>", "<skip", "-\n", "\n", "\r\n",
          "\t", " ", "  ", "\u00a0", "\u2028", "\x1c", "\v", "-", "--", "\u2013", "\u2014", ".", ",", "..", "...", ".,",
          ",.5", "1.5", "2,000", "7", "0", "3-4", "-1.2", "5-", "\u0663", "\u0663.", ",\u0663", "\u00bd", "it's", "'",
          "\u2019", "a", "b", "A", "rising", "Rising", "e.g.", "\u0130", "\u212a", "\u00df", "na\u00efve", "\u6570\u636e",
          "\U0001f600", "e\u0301", *"!\"#$%()*+/:<=>?@[\\]^_`{|}~"]
EDGES = ["", " ", "\n", ".", "-", "&amp;", "a", "a b", "a b c", "a b c d", "a b c d e", "a a a a a", "e d c b a", "A B C D",
         "x y z", "a-\n", "a-\nb", "x-\n \n", ".5", ",.5", "5.", "5,a", "a,.5", "5..5", "1-2", "-1", "<skipped>",
         "\u6570\u636e", "..., 1", "a b x c d"]


@functools.cache
def their_scorers():
    """sacrebleu of each order, and rouge-score; imported late, since they take seconds to import."""
    from rouge_score.rouge_scorer import RougeScorer
    from sacrebleu.metrics import BLEU
    sacrebleu = {order: BLEU(max_ngram_order=order) for order in ORDERS}
    return sacrebleu, RougeScorer(["rouge1", "rougeL"], use_stemmer=False)


def assert_same(texts, references):
    """Each pair alone, three groups, and all together, every order.

    Tolerance 1e-9: the same integers, then a few logarithms and divisions in float64, reordered.
    """
    sacrebleu, rouge = their_scorers()
    counts = np.array([bleu_counts(*pair) for pair in zip(texts, references)])
    assert counts.shape == (len(texts), 10) and counts.dtype.kind == "i"
    groups = [slice(i, i + 1) for i in range(len(texts))] + [slice(i, None, 3) for i in range(3)] + [slice(None)]
    for group in groups:
        for order in ORDERS:
            theirs = sacrebleu[order].corpus_score(texts[group], [references[group]]).score
            assert bleu(counts[group].sum(0), order) == pytest.approx(theirs, abs=1e-9, rel=0), (texts[group], order)
    assert bleu(counts.sum(0)) == bleu(counts.sum(0), 4)
    for text, reference in zip(texts, references):
        theirs = rouge.score(reference, text)
        assert rouge_1(text, reference) == pytest.approx(theirs["rouge1"].fmeasure, abs=1e-9, rel=0), (text, reference)
        assert rouge_l(text, reference) == pytest.approx(theirs["rougeL"].fmeasure, abs=1e-9, rel=0), (text, reference)


def align_texts(n, seed):
    """Texts of every kind and wording about random series, from one sample to 80."""
    rng, kinds = np.random.default_rng(seed), (("simple_trend", "summary"), ("trend", "summary"), ("summary",), ("trend",))
    for trial in range(n):
        series = np.cumsum(np.repeat(rng.choice([0.0, 1.0, -1.0], 20), rng.integers(1, 5)))[:int(rng.integers(1, 81))]
        yield align_pair(series, DATASETS["pamap2"].channels[trial % 27], (20, 50, 100)[trial % 3], kinds[trial % 4],
                         random.Random(f"{seed} {trial}"))[1]


def damaged(text, other, rng):
    """What a model may write instead: words dropped, swapped, repeated; the text cut; another window's text; itself."""
    words = text.split(" ")
    return rng.choice([
        lambda: " ".join(word for word in words if rng.random() < 0.8),
        lambda: " ".join(rng.sample(words, len(words))),
        lambda: " ".join(word for word in words for _ in range(rng.choice((1, 1, 2)))),
        lambda: " ".join(words[:rng.randrange(len(words) + 1)]),
        lambda: text.replace("\n", " \n").replace(".", ",").upper(),
        lambda: other, lambda: text + other, lambda: text])()


@SEEDS
def test_the_projects_own_texts_score_as_in_the_references(seed):
    rng, references = random.Random(seed), list(align_texts(150, seed))
    texts = [damaged(text, other, rng) for text, other in zip(references, references[1:] + references[:1])]
    assert_same(texts, references)


@SEEDS
def test_wild_strings_score_as_in_the_references(seed):
    rng = random.Random(seed)
    references = ["".join(rng.choices(PIECES, k=rng.randrange(40))) for _ in range(150)]
    texts = [reference[rng.randrange(5):] + rng.choice(PIECES) if rng.random() < 0.7 else rng.choice(references)
             for reference in references]
    assert_same(texts, references)


def test_tokens_are_sacrebleus():
    rng, tokenize = random.Random(0), their_scorers()[0][4].tokenizer
    for trial in range(4000):
        text = "".join(rng.choices("aZ09.,-' \n&\u0663" if trial % 2 else PIECES, k=rng.randrange(12)))
        assert bleu_tokens(text) == tokenize(text.rstrip()).split(), repr(text)    # it strips before it tokenises
    for mark in map(chr, range(0x250)):
        assert bleu_tokens(f"a{mark}b 1{mark}2") == tokenize(f"a{mark}b 1{mark}2").split(), repr(mark)


def test_edges_score_as_in_the_references():
    pairs = [(text, reference) for text in EDGES for reference in EDGES]
    assert_same(*map(list, zip(*pairs)))
    for order in ORDERS:
        assert bleu(np.zeros(10, int), order) == 0.0                          # a group without pairs


def test_tokens_by_hand():
    assert bleu_tokens("It's 1,5-2.0s, 'up'.") == ["It's", "1,5", "-", "2.0s", ",", "'up'", "."]
    assert bleu_tokens("0.0s to 0.5s:\nrising") == ["0.0s", "to", "0.5s", ":", "rising"]
    assert bleu_tokens("&quot;x&amp;lt;y&quot; a,.5 well-known") == ['"', "x", "<", "y", '"', "a", ",", ".5", "well-known"]


def test_bleu_by_hand():
    counts = bleu_counts("the the the the the the the", "the cat is on the mat")   # Papineni's example: 2 of 7, not 7 of 7
    assert counts.tolist() == [7, 6, 2, 0, 0, 0, 7, 6, 5, 4]
    precisions = [2 / 7, 1 / (2 * 6), 1 / (4 * 5), 1 / (8 * 4)]
    for order in ORDERS:
        assert bleu(counts, order) == pytest.approx(100 * math.prod(precisions[:order]) ** (1 / order))
    short = bleu_counts("a b c", "a b c d")                                   # all right, a quarter missing
    assert [bleu(short, order) for order in ORDERS] == pytest.approx([100 * math.exp(-1 / 3)] * 3 + [0])
    both = short + bleu_counts("a b x d", "a b c d")                          # 7 tokens for 8; 6 of 7, 3 of 5 pairs
    assert bleu(both, 2) == pytest.approx(100 * math.exp(-1 / 7) * math.sqrt(6 / 7 * 3 / 5))


def test_rouge_by_hand():
    reference = "police killed the gunman"                                    # Lin's example
    assert rouge_1("police kill the gunman", reference) == rouge_l("Police, kill the GUNMAN!", reference) == 3 / 4
    assert rouge_1("the gunman kill police", reference) == 3 / 4 and rouge_l("the gunman kill police", reference) == 2 / 4
    assert rouge_1("", "") == rouge_l("", "") == rouge_l("\u6570", "a") == 0.0    # nothing said, nothing shared
    assert longest_common_subsequence("xaybzc", "abcz") == 3


def test_the_longest_common_subsequence_of_long_texts_is_right():
    """Long enough for carries through many machine words; of few tokens, each in many places."""
    rng = random.Random(0)
    text, reference = (" ".join(rng.choices("abcdefghij", k=length)) for length in (700, 500))
    theirs = their_scorers()[1].score(reference, text)["rougeL"].fmeasure
    assert rouge_l(text, reference) == pytest.approx(theirs, abs=1e-9, rel=0)
