"""One optimizer step in isolation: which examples it sees, what it does with their loss, and with which rate."""
import dataclasses
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from sensorllm_min.batch import Example
from sensorllm_min.config import TINY_LLAMA
from sensorllm_min.files import InputError
from sensorllm_min.llama import Llama
from sensorllm_min.training.options import RunSettings, default_parts, set_up
from sensorllm_min.training.processes import Processes
from sensorllm_min.training.step import Loader, epoch_order, learning_rate, new_optimizer, train_step

CPU = torch.device("cpu")
ALONE = Processes(0, 1, CPU)


# ---- the learning rate ----

@pytest.mark.parametrize("n_steps,n_warmup", [(200, 6), (130, 4), (10, 1)])   # 3 % of 130 is 3.9, of 10 it is 0.3
def test_schedule_equals_transformers(n_steps, n_warmup):
    """The original's trainer (transformers' get_warmup_steps) rounds the warm-up up to a whole step, and so does ours."""
    from transformers import get_cosine_schedule_with_warmup
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2e-3)
    theirs = get_cosine_schedule_with_warmup(optimizer, n_warmup, n_steps).lr_lambdas[0]
    for step in range(n_steps):
        # Theirs spends its first step at rate 0. Ours warms up one notch ahead, so that no step is wasted.
        expected = theirs(step + 1) if step < n_warmup else theirs(step)
        assert learning_rate(step, n_steps, 2e-3, 0.03) == pytest.approx(2e-3 * expected)


# ---- the update ----

class OneBatch:
    """As much of a Batch as train_step reads."""
    mask = torch.ones(2, 3)
    examples = [41]

    def __init__(self, counts=1.0):
        self.counts = counts

    def to(self, device):
        return self


class Told(torch.nn.Module):
    """A model whose loss sum and weight are what it is told: loss_of(its one parameter), weight."""

    def __init__(self, loss_of, weight=1.0):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(3))
        self.loss_of, self.counted = loss_of, torch.tensor(weight)

    def forward(self, batch):
        return self.loss_of(self.weight), self.counted


def one_step(model, optimizer, processes=ALONE, batches=1, lr=1.0, counts=1.0):
    return train_step(model, optimizer, [OneBatch(counts)] * batches, lr, processes)


@pytest.mark.parametrize("has_head,slow_rate", [(True, 0.05), (False, 1.0)])
def test_networks_under_a_class_head_learn_slowly(has_head, slow_rate):
    """At a twentieth of the rate of all else; in stage 1, without a head, all learn alike."""
    model = Told(lambda weight: weight.sum())
    model.encoder, model.llm, model.projector = (torch.nn.Linear(2, 2) for _ in range(3))
    model.head = torch.nn.Linear(2, 2) if has_head else None
    optimizer = new_optimizer(model, SimpleNamespace(lr=0.01, betas=(0.9, 0.95), weight_decay=0.1))
    one_step(model, optimizer, lr=2e-3)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        factor = slow_rate if name.startswith(("encoder", "llm")) else 1
        assert rates[id(parameter)] == pytest.approx(2e-3 * factor), name


@pytest.mark.parametrize("scale,beta", [(0.01, 0.95), (100, 0.999)])
def test_an_optimizer_step_equals_the_formulas(scale, beta):
    """Clipping to norm 1 and AdamW (arXiv 1711.05101, algorithm 2), in numpy; norms and biases do not decay."""
    model = torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.LayerNorm(4), torch.nn.Linear(4, 1, bias=False))
    optimizer = new_optimizer(model, SimpleNamespace(lr=0.01, betas=(0.9, beta), weight_decay=0.1))
    decays = {id(p) for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]}
    assert [name for name, p in model.named_parameters() if id(p) in decays] == ["0.weight", "2.weight"]

    class Quadratic(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model

        def forward(self, batch):
            loss = sum(((p - 0.3) ** 2).sum() for p in model.parameters())
            return scale * 3 * loss, torch.tensor(3.0)                        # 3 tokens
    weights = {name: p.detach().double().numpy().copy() for name, p in model.named_parameters()}
    m, v = ({name: np.zeros_like(w) for name, w in weights.items()} for _ in "mv")
    for step in range(1, 6):
        rate = 0.01 / step
        _, norm, _ = one_step(Quadratic(), optimizer, lr=rate)
        gradients = {name: scale * 2 * (w - 0.3) for name, w in weights.items()}
        total = np.sqrt(sum((g ** 2).sum() for g in gradients.values()))
        assert norm == pytest.approx(total, rel=1e-5)
        for name, w in weights.items():
            g = gradients[name] * min(1, 1 / (total + 1e-6))
            m[name], v[name] = 0.9 * m[name] + 0.1 * g, beta * v[name] + (1 - beta) * g * g
            if w.ndim > 1:
                w *= 1 - rate * 0.1
            w -= rate * m[name] / (1 - 0.9 ** step) / (np.sqrt(v[name] / (1 - beta ** step)) + 1e-8)
            np.testing.assert_allclose(model.get_parameter(name).detach().numpy(), w, atol=1e-6)


@pytest.mark.parametrize("norm", [0.5, 1.5, 500.0])
def test_gradients_are_clipped_to_a_norm_of_1(norm):
    """Plain gradient descent shows the clipped gradient itself; Adam would hide a constant factor."""
    direction = torch.tensor([2.0, -1.0, 2.0]) / 3                            # of length 1
    model = Told(lambda weight: norm * (direction * weight).sum())
    _, shown, _ = one_step(model, torch.optim.SGD(model.parameters(), lr=1.0))
    assert shown == pytest.approx(norm)                                       # the norm before clipping is what is logged
    torch.testing.assert_close(1 - model.weight.detach(), min(norm, 1.0) * direction, rtol=1e-5, atol=0)


def test_the_gradient_is_divided_by_all_that_counted_in_all_micro_batches():
    model = Told(lambda weight: 0.6 * weight.sum(), weight=3.0)
    loss, _, n_tokens = one_step(model, torch.optim.SGD(model.parameters(), lr=1.0), batches=2)
    assert loss == pytest.approx(2 * 1.8 / 6) and n_tokens == 12
    torch.testing.assert_close(model.weight.detach(), torch.full((3,), 1 - 2 * 0.6 / 6))
    assert model.weight.grad is None                                          # the next step begins from nothing


class TwoProcesses(Processes):
    """The first of two processes: what the other one adds to each sum is known."""

    def sum(self, *values):
        return [float(mine) + other for mine, other in zip(values, (6.0, 3.0, 10.0))]


@pytest.mark.parametrize("counts", [0.0, 1.0])
def test_a_batch_that_counts_nothing_adds_nothing(counts):
    """Neither to the loss, nor to its weight, nor to the tokens, nor to the gradient."""
    model = Told(lambda weight: 0.5 * weight.sum(), weight=2.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    loss, norm, n_tokens = one_step(model, optimizer, TwoProcesses(0, 2, CPU), counts=counts)
    assert loss == pytest.approx((6.0 + 1.5 * counts) / (3.0 + 2.0 * counts)) and n_tokens == 10 + 6 * counts
    # DDP averages over two processes: the mean is turned back into the sum before it is divided by what counted
    assert norm == pytest.approx(math.sqrt(3) * 0.5 * counts * 2 / (3.0 + 2.0 * counts))


@pytest.mark.parametrize("bf16,computes", [(False, torch.float32), (True, torch.bfloat16)])
def test_a_step_computes_in_bfloat16_and_trained_weights_stay_float32(bf16, computes):
    seen = []

    def loss_of(weight):
        product = weight[None] @ torch.ones(3, 1)
        seen.append(product.dtype)
        return product.float().sum()
    model = Told(loss_of)
    one_step(model, torch.optim.SGD(model.parameters(), lr=0.1), Processes(0, 1, CPU, bf16))
    assert seen == [computes] and model.weight.dtype == torch.float32


@pytest.mark.parametrize("loss_of,words", [
    (lambda weight: (weight * float("nan")).sum(), "the loss is nan"),
    (lambda weight: (weight - 1).abs().sqrt().sum(), "the gradient's norm is (nan|inf)")])  # its slope at 0 is infinite
def test_what_is_not_finite_stops_before_the_update(loss_of, words):
    model = Told(loss_of)
    with pytest.raises(InputError, match=rf"{words} \(training examples 41\).*checkpoints saved until now are good"):
        one_step(model, torch.optim.AdamW(model.parameters()))
    assert (model.weight == 1).all()


@pytest.mark.parametrize("recompute,compiled", [(False, True), (True, False)])
def test_gradient_checkpointing_and_compile_reach_the_llm(recompute, compiled):
    """What they then do is tested with the LLaMA itself."""
    model = torch.nn.Module()
    model.llm, model.train_only = Llama(dataclasses.replace(TINY_LLAMA, vocab_size=16)), lambda parts: None
    set_up(model, RunSettings(attention="torch", gradient_checkpointing=recompute, compile=compiled))
    assert model.llm.gradient_checkpointing is recompute
    assert all((layer._compiled_call_impl is not None) == compiled for layer in model.llm.layers)


def test_defaults_stand_where_an_option_was_not_given():
    given = RunSettings(lr=0.5, seed=4)
    filled = given.with_defaults(lr=1e-3, epochs=3, projector=(256,))
    assert filled == RunSettings(lr=0.5, seed=4, epochs=3, projector=(256,))
    assert default_parts(RunSettings(llm="DIR"), "projector", "tokens") == ("projector", "tokens", "encoder")
    assert default_parts(RunSettings(), "projector", "head") == ("projector", "head", "llm", "encoder")


# ---- which examples a step sees ----

class Numbered:
    """Examples of which each knows its number, and the epoch that it was made in."""
    prompts = SimpleNamespace(tokenizer=SimpleNamespace(pad_id=0))

    def __init__(self, count):
        self.sizes = np.arange(count) % 7 + 1
        self.epoch = None

    def __len__(self):
        return len(self.sizes)

    def __getitem__(self, index):
        return Example([1] * int(self.sizes[index]), [2], [np.ones(3)], label=self.epoch, record={}, index=int(index))


def loader_of(count, world=1, rank=0, batch_size=8, accumulate=1, epochs=1, seed=0):
    settings = RunSettings(batch_size=batch_size, accumulate=accumulate, epochs=epochs, seed=seed)
    return Loader(Numbered(count), settings, Processes(rank, world, CPU))


def numbers(loader, first=0):
    """The examples of each step from `first` on, micro-batch by micro-batch."""
    return [[batch.examples for batch in batches if batch.counts] for _, batches in loader.steps(first)]


def flat(lists):
    return [item for inner in lists for item in inner]


@pytest.mark.parametrize("first,expected", [(0, [0, 0, 1, 1, 2, 2]), (3, [1, 2, 2])])
def test_each_step_tells_the_examples_its_epoch(first, expected):
    """So that they turn their sensors anew; after a resumption in the middle as well."""
    steps = list(loader_of(16, epochs=3).steps(first))
    assert [step for step, _ in steps] == list(range(first, 6))
    assert [batches[0].labels.unique().item() for _, batches in steps] == expected


@pytest.mark.parametrize("world,batch_size,accumulate", [(2, 4, 1), (1, 2, 4), (4, 1, 2), (8, 1, 1)])
@pytest.mark.parametrize("count", [49, 52, 56])
def test_processes_and_micro_batches_share_the_examples_of_a_step(count, world, batch_size, accumulate):
    """Each step has the examples it has in one process, each once; the last step of 49 leaves all but one without."""
    alone = [sorted(flat(step)) for step in numbers(loader_of(count))]
    assert sorted(flat(alone)) == list(range(count))
    ranks = [loader_of(count, world, rank, batch_size, accumulate) for rank in range(world)]
    assert [sorted(flat(flat(step))) for step in zip(*map(numbers, ranks))] == alone
    for loader in ranks:
        assert loader.n_steps == len(alone) and loader.step_size == 8
        for step, batches in loader.steps():
            assert batches                                                    # DDP needs each process in each step
            sizes = [len(batch.examples) for batch in batches if batch.counts]
            if len(alone[step]) == 8:
                assert sizes == [batch_size] * accumulate
            assert len(sizes) <= accumulate and all(size <= batch_size for size in sizes)


def test_the_order_follows_from_seed_and_epoch_and_a_resumed_run_takes_it_up():
    steps = numbers(loader_of(50, epochs=3, seed=5))
    epochs = [steps[start:start + 7] for start in (0, 7, 14)]
    assert len(steps) == 21 and all(sorted(flat(flat(epoch))) == list(range(50)) for epoch in epochs)
    assert epochs[0] != epochs[1] and epochs[1] != epochs[2] and epochs[0] != epochs[2]
    assert numbers(loader_of(50, epochs=3, seed=5)) == steps
    assert numbers(loader_of(50, epochs=3, seed=6))[:7] != epochs[0]
    for first in (3, 7, 16, 21):
        assert numbers(loader_of(50, epochs=3, seed=5), first) == steps[first:]
    assert numbers(loader_of(50, epochs=0.5, seed=5)) == steps[:4]            # of 7, rounded up
    assert numbers(loader_of(50, epochs=1.5, seed=5)) == steps[:11]


def test_orders_of_other_seeds_and_epochs_are_others_and_the_largest_step_comes_first():
    """Also the examples that share a step are others, but of like length; long steps come anywhere in an epoch."""
    sizes = np.random.default_rng(0).integers(10, 500, 643)
    orders = [epoch_order(sizes, 8, seed, epoch) for seed, epoch in ((0, 0), (1, 0), (0, 1), (1, 1))]
    together = [{tuple(sorted(step)) for step in order} for order in orders]
    for index, one in enumerate(together):
        for other in together[index + 1:]:
            assert len(one & other) < 8                                       # of 80; by chance hardly ever one
    for order in orders:
        totals = [sizes[step].sum() for step in order]
        assert totals[0] == max(totals) and sorted(map(len, order)) == [3] + [8] * 80
        assert 0.3 < (np.diff(totals) > 0).mean() < 0.7
        assert np.mean([np.ptp(sizes[step]) for step in order]) < np.ptp(sizes) / 5
        assert sorted(np.concatenate(order)) == list(range(643))
