"""Scores of words, added up text by text: the corpus scores of sacrebleu and the means of rouge-score."""
import random

import numpy as np
import pytest
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics import BLEU

from sensorllm_min.data.sensors import DATASETS
from sensorllm_min.data.texts import align_pair
from sensorllm_min.evaluation.trend_scores import PAIRS, TEXT, scores_of, word_pairs

EDGES = ["", "\n", ".", "a", "a b c", "a b c d", "a a a a a", "A B C D", ".5", "\u6570\u636e", "it's 1,5-2.0s"]


def scored(texts, references):
    pairs = [word_pairs(text, reference) for text, reference in zip(texts, references)]
    sums = sum(np.array([row.get(name, (0, 0)) for name in PAIRS], float) for row in pairs)
    return scores_of(sums)


def assert_same(texts, references):
    """Each pair alone, every third pair, and all together; 1e-9: sums in float64, reordered."""
    rouge = RougeScorer(["rouge1", "rougeL"], use_stemmer=False)
    for group in [*(slice(i, i + 1) for i in range(len(texts))), slice(0, None, 3), slice(None)]:
        ours, some, theirs = scored(texts[group], references[group]), texts[group], references[group]
        for order in range(1, 5):
            expected = BLEU(max_ngram_order=order).corpus_score(some, [theirs]).score
            assert ours[f"bleu_{order}"] == pytest.approx(expected, abs=1e-9, rel=0), (some, order)
        found = [rouge.score(reference, text) for text, reference in zip(some, theirs)]
        for name, key in (("rouge_1", "rouge1"), ("rouge_l", "rougeL")):
            expected = 100 * np.mean([score[key].fmeasure for score in found])
            assert ours[name] == pytest.approx(expected, abs=1e-9, rel=0), some


def damaged(text, other, rng):
    """What a model may write instead: words dropped, shuffled, the text cut, another window's text, itself."""
    words = text.split(" ")
    return rng.choice([
        lambda: " ".join(word for word in words if rng.random() < 0.8),
        lambda: " ".join(rng.sample(words, len(words))),
        lambda: " ".join(words[:rng.randrange(len(words) + 1)]),
        lambda: text.replace("\n", " \n").replace(".", ",").upper(),
        lambda: other, lambda: text + other, lambda: text])()


def test_the_projects_own_texts_score_as_in_the_references():
    rng, draw = random.Random(0), np.random.default_rng(0)
    kinds = (("simple_trend", "summary"), ("trend", "summary"), ("summary",), ("trend",))
    references = []
    for trial in range(60):
        series = np.cumsum(np.repeat(draw.choice([0.0, 1.0, -1.0], 20), draw.integers(1, 5)))[:int(draw.integers(1, 81))]
        channel = DATASETS["pamap2"].channels[trial % 27]
        references.append(align_pair(series, channel, 50, kinds[trial % 4], random.Random(trial))[1])
    texts = [damaged(text, other, rng) for text, other in zip(references, references[1:] + references[:1])]
    assert_same(texts, references)


def test_edges_score_as_in_the_references():
    pairs = [(text, reference) for text in EDGES for reference in EDGES]
    assert_same(*map(list, zip(*pairs)))
    reordered = scored(["the gunman kill police"], ["police killed the gunman"])            # Lin's example
    assert (reordered["rouge_1"], reordered["rouge_l"]) == (75, 50)
    nothing_shared = scored(["", "a"], ["", "b"])
    assert [nothing_shared[name] for name in TEXT] == [0] * 6
