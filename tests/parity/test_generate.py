"""Decoding: any batch like each prompt alone, with a cache like without, greedy like
transformers, samples as defined.
"""
from dataclasses import replace
from importlib import import_module

import numpy as np
import pytest
import torch
from helpers import make_chronos, make_llama

from sensorllm_min.evaluation.predict import answer_batches
from sensorllm_min.chronos_tokenizer import ChronosTokenizer
from sensorllm_min.batch import collate
from sensorllm_min.data.examples import AlignExamples, HarExamples, PromptFormat
from sensorllm_min.data.prepared import PreparedData
from sensorllm_min.generate import Sampling, generate, next_tokens, stream, token_probabilities
from sensorllm_min.llama import KVCache
from sensorllm_min.data.examples import sample_texts
from sensorllm_min.sensorllm import SensorLLM
from sensorllm_min.text_tokenizer import load_text_tokenizer, new_tokens, train_backend
from sensorllm_min.training.processes import Processes
from sensorllm_min.weights import load_llama, load_t5_encoder

module = import_module("sensorllm_min.generate")                  # not the function of this name
ONE_PROCESS = Processes(0, 1, torch.device("cpu"))
SAMPLED = Sampling(temperature=0.9, top_k=40, top_p=0.95, seed=3)


@pytest.fixture(scope="module")
def model(demo, tmp_path_factory):
    """A random sensor-language model, transformers' LLaMA of the same weights, and prompts of unequal length as a batch."""
    folder, data = tmp_path_factory.mktemp("sources"), PreparedData(demo)
    theirs = make_llama(folder / "llm", train_backend(sample_texts(data), 500), vocab_size=512)
    make_chronos(folder / "encoder")
    torch.manual_seed(0)
    llm, (encoder, chronos) = load_llama(folder / "llm"), load_t5_encoder(folder / "encoder")
    tokenizer = load_text_tokenizer(folder / "llm", llm.config, new_tokens(data.dataset.channels))
    ours = SensorLLM(encoder, ChronosTokenizer(chronos), llm, tokenizer, (40,)).requires_grad_(False)
    return ours, theirs, tokenizer, data


def prompts(model, kind, indices):
    ours, _, tokenizer, data = model
    examples = (AlignExamples(data, "test", PromptFormat(tokenizer, 512, 4096)) if kind == "align" else
                HarExamples(data, "test", PromptFormat(tokenizer, 512, 4096, answer="text")))
    return collate([examples[i] for i in indices], tokenizer.pad_id, for_generation=True)


@pytest.mark.parametrize("kind,indices", [("align", (0, 100, 333, 7)), ("har", (0, 400))])
@pytest.mark.parametrize("sampling", [module.GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_a_batch_says_what_each_prompt_says_alone(model, kind, indices, sampling):
    """Prompts and sensor windows of unequal length; stop tokens that end the rows at different places."""
    ours, _, tokenizer, _ = model
    batch = prompts(model, kind, indices)
    assert kind == "har" or len({int(n) for n in batch.series_lengths}) > 1 and not batch.mask.all()
    free = generate(ours.llm, ours.embed(batch), batch.mask, set(), 40, replace(sampling, row_seeds=tuple(batch.examples)))
    stops = {free[0][5], free[-1][20], free[1][30]}                           # several, met at different steps
    together = generate(ours.llm, ours.embed(batch), batch.mask, stops, 40, replace(sampling, row_seeds=tuple(batch.examples)))
    assert together == [row[:next((i for i, token in enumerate(row) if token in stops), 40)] for row in free]
    assert len({len(answer) for answer in together}) > 1
    for i, index in enumerate(indices):
        alone = prompts(model, kind, (index,))
        assert alone.mask.all()
        assert generate(ours.llm, ours.embed(alone), alone.mask, stops, 40, replace(sampling, row_seeds=tuple(alone.examples))) == [together[i]]


def test_greedy_with_sensors_equals_transformers(model):
    """The same spliced embeddings into transformers' generate, token by token."""
    ours, theirs, _, _ = model
    batch = prompts(model, "align", (0, 100, 333, 7))
    x = ours.embed(batch)
    mine = generate(ours.llm, x, batch.mask, {5, 9, 2}, 50)
    for row, tokens in enumerate(mine):
        alone = x[row:row + 1, batch.mask[row]]
        expected = theirs.generate(inputs_embeds=alone, attention_mask=torch.ones(alone.shape[:2], dtype=torch.long),
                                   max_new_tokens=50, do_sample=False, eos_token_id=[5, 9, 2], pad_token_id=0)[0].tolist()
        assert tokens == (expected[:-1] if expected[-1] in (5, 9, 2) else expected)


def test_no_text_grows_beyond_what_the_llm_takes(model, monkeypatch):
    """Prompt and answer stay within max_positions; an answer that was cut there has not ended."""
    ours, _, tokenizer, data = model
    examples = AlignExamples(data, "test", PromptFormat(tokenizer, 512, 4096))
    batch = prompts(model, "align", (0, 100))
    max_positions = batch.ids.shape[1] + 4
    reached = []
    real = KVCache.extend

    def extend(self, k, v):
        reached.append(self.length + k.shape[2])
        return real(self, k, v)
    monkeypatch.setattr(KVCache, "extend", extend)
    monkeypatch.setattr(ours.llm, "config", replace(ours.llm.config, max_positions=max_positions))
    records = list(answer_batches(ours, [[examples[i] for i in (0, 100)]], ONE_PROCESS, 50))
    # the last token is not fed
    assert max(reached) == max_positions - 1 and [record["ended"] for record in records] == [False, False]
    stop = generate(ours.llm, ours.embed(batch), batch.mask, set(), 3)[0][2]
    monkeypatch.setattr(tokenizer, "stop_ids", {stop})
    records = list(answer_batches(ours, [[examples[i] for i in (0, 100)]], ONE_PROCESS, 50))
    assert records[0]["ended"]


def test_tokens_stream_as_they_are_made(model):
    """Row by row at each step, before the next step is computed."""
    ours, _, _, _ = model
    batch = prompts(model, "align", (0, 100))
    calls = []
    hook = ours.llm.register_forward_hook(lambda *_: calls.append(1))
    steps = stream(ours.llm, ours.embed(batch), batch.mask, set(), 6)
    for made in range(12):
        row, _ = next(steps)
        assert row == made % 2 and len(calls) == made // 2 + 1
    hook.remove()
    assert next(steps, None) is None
    assert generate(ours.llm, ours.embed(batch), batch.mask, set(), 0) == [[], []]


@pytest.mark.parametrize("temperature,top_k,top_p", [
    (1.0, 0, 1.0), (0.6, 50, 0.9), (0.3, 1, 0.5), (1.0, 0, 1e-6), (0.7, 1000, 0.999)])
def test_the_distribution_equals_transformers(temperature, top_k, top_p):
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper
    logits = torch.randn(64, 300, generator=torch.Generator().manual_seed(0)) * 4
    expected = TemperatureLogitsWarper(temperature)(None, logits) if temperature != 1 else logits
    expected = TopKLogitsWarper(top_k)(None, expected) if top_k else expected
    expected = TopPLogitsWarper(top_p)(None, expected).softmax(-1)
    ours = token_probabilities(logits, Sampling(temperature, top_k, top_p))
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-7)


def test_the_distribution_computed_by_hand():
    """Probabilities 1/2, 1/4, 1/8, 1/8 of tokens 2, 0, 3, 1."""
    logits = torch.tensor([[2.0, 1.0, 3.0, 1.0]]) * np.log(2)
    def probabilities(**settings):
        return token_probabilities(logits, Sampling(**{"temperature": 1.0} | settings))[0].tolist()
    assert probabilities() == pytest.approx([1 / 4, 1 / 8, 1 / 2, 1 / 8])
    assert probabilities(top_k=2) == pytest.approx([1 / 3, 0, 2 / 3, 0])
    assert probabilities(top_p=0.6) == pytest.approx([1 / 3, 0, 2 / 3, 0])    # one is not enough, two are
    assert probabilities(top_p=0.5) == pytest.approx([0, 0, 1, 0])            # one reaches it exactly
    assert probabilities(top_p=0.75) == pytest.approx([1 / 3, 0, 2 / 3, 0])
    assert probabilities(temperature=0.5) == pytest.approx([4 / 22, 1 / 22, 16 / 22, 1 / 22])
    assert probabilities(top_k=3, temperature=0.5)[0] == pytest.approx(4 / 22)   # a tie at the border stays whole


def test_draws_follow_the_distribution():
    """20,000 draws of one row: chi-square within what chance allows (five sigma); what was cut
    off never comes.
    """
    n = 20_000
    logits = torch.randn(1, 30, generator=torch.Generator().manual_seed(1)) * 2
    settings = Sampling(temperature=0.8, top_k=12, top_p=0.97, seed=0)
    expected = token_probabilities(logits, settings)[0].double().numpy()
    streams = [np.random.default_rng([0, place]) for place in range(n)]
    drawn = np.bincount(next_tokens(logits.expand(n, -1), settings, streams).numpy(), minlength=30)
    assert drawn[expected == 0].sum() == 0 and (expected == 0).sum() >= 18
    kept = expected > 0
    chi_square = ((drawn[kept] - n * expected[kept]) ** 2 / (n * expected[kept])).sum()
    freedom = kept.sum() - 1
    assert chi_square < freedom + 5 * (2 * freedom) ** 0.5


class Fixed:
    """A stream that always draws the same number."""

    def __init__(self, number):
        self.number = number

    def random(self):
        return self.number


def test_draws_at_the_very_edges():
    """0 takes the first token that is possible, the largest number below 1 the last; neither takes an impossible one."""
    logits = torch.tensor([[-np.inf, 1.0, -np.inf, 2.0, -np.inf]])
    settings = Sampling(temperature=1.0)
    assert next_tokens(logits, settings, [Fixed(0.0)]).item() == 1
    assert next_tokens(logits, settings, [Fixed(np.nextafter(1, 0))]).item() == 3


def test_a_seed_fixes_what_is_said(model):
    ours, _, _, _ = model
    batch = prompts(model, "align", (0, 100))
    def said(**settings):
        return generate(ours.llm, ours.embed(batch), batch.mask, set(), 20, Sampling(temperature=1.5, row_seeds=(4, 5), **settings))
    assert said(seed=1) == said(seed=1) != said(seed=2)
    rows = said(seed=1)
    # what is drawn goes with the number of the example, not with its row in the batch
    swapped = prompts(model, "align", (100, 0))
    settings = Sampling(temperature=1.5, seed=1)
    x = ours.embed(swapped)
    assert generate(ours.llm, x, swapped.mask, set(), 20, replace(settings, row_seeds=(5, 4))) == rows[::-1]
    same = prompts(model, "align", (0, 0))                                    # one prompt twice draws apart
    first, second = generate(ours.llm, ours.embed(same), same.mask, set(), 20, Sampling(temperature=1.5, row_seeds=(4, 5)))
    assert first != second
