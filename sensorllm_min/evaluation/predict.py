"""A model over a split: its loss, generated answers, predicted classes.

Each process takes its share of the examples; sums are added up over all processes.
"""
import json
import math
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from ..batch import collate
from ..data.claims import parse_activity
from ..files import is_a, write_text
from ..generate import GREEDY, Sampling, stream
from ..training.processes import share
from .class_scores import confusion_of


PATIENCE = 128                          # tokens after which a row that repeats itself is given up
SILENCE = 10                            # seconds between lines about progress


@dataclass(frozen=True)
class Decoding:
    """How answers are generated."""
    batch_size: int = 16
    max_new_tokens: int | None = None   # None: as many as the longest true answer has
    sampling: Sampling = GREEDY


def short_to_long(examples):
    """The positions of all examples, short ones first."""
    return np.argsort(examples.sizes, kind="stable")


def batches_of(examples, processes, batch_size, order=None, for_generation=False):
    """This process's share of the examples in batches of like size: yields (positions, Batch)."""
    if order is None:
        order = short_to_long(examples)
    mine = share(order, processes.world)[processes.rank]
    pad_id = examples.prompts.tokenizer.pad_id
    for start in range(0, len(mine), batch_size):
        positions = mine[start:start + batch_size]
        batch = collate([examples[i] for i in positions], pad_id, for_generation)
        yield positions, batch.to(processes.device)


@torch.no_grad()
def mean_loss(model, examples, processes, batch_size, say=lambda line: None) -> float:
    """The loss per answer token (stage 1) or weighted window (stage 2) over all examples."""
    def sums():
        for positions, batch in batches_of(examples, processes, batch_size):
            with processes.autocast():
                sums_of_batch = model(batch)
            yield sums_of_batch
            yield from [(0, 0)] * (len(positions) - 1)            # progress counts examples
    mine = share(short_to_long(examples), processes.world)[processes.rank]
    loss_sum = weight_sum = 0
    for loss, weight in with_progress(sums(), examples, mine, say):
        loss_sum, weight_sum = loss_sum + loss, weight_sum + weight
    loss_sum, weight_sum = processes.sum(loss_sum, weight_sum)
    return loss_sum / weight_sum if weight_sum else math.nan


@torch.no_grad()
def describe(model, examples, processes, decoding=Decoding(), positions=None, say=None):
    """Generates the answer to each example of this process's share, as long as the LLM can take.

    positions: the examples to answer, in this order; None: all of them, short ones first. Yields
    (position, text, whether the answer ended by itself). While a batch takes long, `say` is told.
    """
    tokenizer = model.tokenizer
    longest = decoding.max_new_tokens
    if longest is None:                                           # seen in the longest records
        longest = max(len(examples[i].answer) for i in np.argsort(-examples.sizes)[:1000])
    batches = batches_of(examples, processes, decoding.batch_size, positions, for_generation=True)
    for positions, batch in batches:
        room = min(longest, examples.prompts.max_positions - batch.ids.shape[1])
        sampling = replace(decoding.sampling, row_seeds=tuple(batch.examples), patience=PATIENCE)
        answers = [[] for _ in positions]
        said = time.monotonic()
        with processes.autocast():
            x = model.embed(batch)
            tokens = stream(model.llm, x, batch.mask, tokenizer.stop_ids, room, sampling)
            for row, token in tokens:
                answers[row].append(token)
                if say and time.monotonic() - said > SILENCE:
                    said = time.monotonic()
                    say(f"{len(answers)} answers, {len(answers[row])} of at most {room} tokens")
        for i, answer in zip(positions, answers):
            yield int(i), tokenizer.decode(answer), len(answer) < room


@torch.no_grad()
def classify(model, examples, processes, decoding=Decoding(), positions=None):
    """Yields a record for each window of this process's share: window, subject, label, predicted.

    A class head adds probabilities (n,) and the loss, its weighted cross entropy. An answer in
    words adds the generated text; predicted is None where it names no class.
    """
    def record_of(i, **found):
        record = examples[i].record
        return {"window": int(examples.index[i]), "subject": record["subject"],
                "label": record["label"], **found}

    if model.head is None:
        classes = examples.data.dataset.classes
        for i, text, _ in describe(model, examples, processes, decoding, positions):
            yield record_of(i, predicted=parse_activity(text, classes), generated=text)
        return
    for positions, batch in batches_of(examples, processes, decoding.batch_size, positions):
        with processes.autocast():
            logits = model.class_logits(batch).float()            # (B, n)
        losses = F.cross_entropy(logits, batch.labels, reduction="none")
        losses = (model.class_weights[batch.labels] * losses).tolist()
        for i, loss, probabilities in zip(positions, losses, logits.softmax(-1).tolist()):
            predicted = int(np.argmax(probabilities))
            yield record_of(i, predicted=predicted, probabilities=probabilities, loss=loss)


def score_classes(model, examples, processes, batch_size, say):
    """Over all examples: the confusion matrix of `confusion_of`, and the mean loss."""
    classified = classify(model, examples, processes, Decoding(batch_size))
    mine = share(short_to_long(examples), processes.world)[processes.rank]
    records = list(with_progress(classified, examples, mine, say))
    n = len(examples.data.dataset.classes)
    counts = confusion_of(records, n)
    counts = np.array(processes.sum(*counts.ravel()), int).reshape(n, n + 1)
    if model.head is None:
        return counts, mean_loss(model, examples, processes, batch_size, say)
    weights = model.class_weights.tolist()
    loss = sum(record["loss"] for record in records)
    weight = sum(weights[record["label"]] for record in records)
    loss, weight = processes.sum(loss, weight)
    return counts[:, :-1], loss / weight if weight else math.nan  # a class head names a class


# ---- a long evaluation: how far it is, and what survives an interruption ----

def with_progress(results, examples, positions, say):
    """Yields the results, one for each position in this order; says now and then how far it is.

    The results of a batch come all at once: the pace is taken when the first of the next arrives.
    """
    began = said = arrived = time.monotonic()
    size, all_sizes = 0, examples.sizes[positions].sum()          # long windows take longer
    for done, (i, result) in enumerate(zip(positions, results)):
        now = time.monotonic()
        if done and now - said > SILENCE:
            said = now
            seconds = max(arrived - began, 1e-9)
            left = seconds / size * (all_sizes - size) - (now - arrived)
            say(f"{done}/{len(positions)} windows, {done / seconds:.2g} windows/s, "
                f"{max(0, left) / 60:.1f} min left")
        arrived = now
        yield result
        size += examples.sizes[i]


def json_line(record):
    return json.dumps(record, ensure_ascii=False) + "\n"


def read_partial(path, settings, fits=lambda record: True) -> list[dict]:
    """The good records of a partial file; none where it is missing or has other settings.

    One that is garbage, does not fit, or is of a window that came before, is left out: its window
    is answered again.
    """
    if not path.exists():
        return []
    *lines, _ = path.read_bytes().split(b"\n")                    # a kill may cut the last one
    first, *records = map(parse_or_none, lines or [b""])
    good = {}
    for record in records if first == settings else []:
        if isinstance(record, dict) and is_a(record.get("window"), int) and fits(record):
            good.setdefault(record["window"], record)
    return list(good.values())


def parse_or_none(line):
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def answers_one_of(examples, record) -> bool:
    """Whether a record is of one of the examples, as the dataset has it, with a whole answer."""
    window, n_classes = record["window"], len(examples.data.dataset.classes)
    if window not in examples.index:
        return False
    known = examples.records[window]
    asked = ("subject", "label") if examples.kind == "har" else known.keys()
    if any(record.get(key) != known[key] for key in asked):
        return False
    if examples.kind == "align":
        return is_a(record.get("generated"), str) and is_a(record.get("ended"), bool)
    predicted, chances = record.get("predicted", n_classes), record.get("probabilities")
    if chances is None:
        whole = is_a(record.get("generated"), str) and (predicted is None or is_a(predicted, int))
    else:
        whole = (isinstance(chances, list) and len(chances) == n_classes
                 and is_a(tuple(chances), tuple[float, ...])
                 and is_a(record.get("loss"), float) and is_a(predicted, int))
    return whole and (predicted is None or 0 <= predicted < n_classes)


def write_as_they_come(path, settings, examples, answer, say, batch_size=1) -> list[dict]:
    """Writes the records that answer(positions) yields, each with its "window" -> all records.

    Until all are there they stand in PATH.partial, behind the settings. The same evaluation,
    started again, resumes after the last record; one with other settings starts afresh. A batch of
    which a record is missing is run whole again: in another batch the last bits may differ.
    """
    unfinished = Path(f"{path}.partial")
    records = read_partial(unfinished, settings, partial(answers_one_of, examples))
    write_text(unfinished, "".join(json_line(record) for record in (settings, *records)))
    done = {record["window"] for record in records}
    order = short_to_long(examples)
    positions = []
    for start in range(0, len(order), batch_size):
        batch = order[start:start + batch_size]
        if not done.issuperset(examples.index[batch].tolist()):
            positions += list(batch)
    if records:
        say(f"resuming an interrupted evaluation: {len(records)} of {len(examples)} windows are "
            "done")
    answers = with_progress(answer(positions), examples, positions, say)
    with open(unfinished, "a", encoding="utf-8", buffering=1) as file:           # a line at a time
        for record in answers:
            if record["window"] not in done:
                file.write(json_line(record))
                records.append(record)
    write_text(path, "".join(json_line(record) for record in records))
    unfinished.unlink()
    return records
