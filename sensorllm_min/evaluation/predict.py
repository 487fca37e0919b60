"""From examples to answers: a model over a split, a recording, or one question.

`answer_batches` yields a record for each example, a dict that JSON can hold:

    window, ...             the example's index in its file, and what the dataset's record holds
    generated, ended        an answer in words; whether it ended by itself or was cut off
    probabilities, loss     of the classes, and the weighted cross entropy, from a class head
    predicted               stage 2: the label; None for an answer in words that names no class
"""
import json
import time
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F

from ..batch import collate
from ..data.claims import parse_activity
from ..files import as_input_error, write_text
from ..generate import GREEDY, stream
from .class_scores import count_people, score_people

LONGEST = 400                           # default limit of an answer, in tokens
SILENCE = 10                            # seconds between lines about progress


def own_order(examples, processes):
    """The indices of this process's part of the examples, short ones first."""
    order = np.argsort(examples.sizes, kind="stable")
    return order[processes.rank::processes.world]


def batches_of(examples, processes, batch_size, say=None, n_done=0):
    """Yields this process's part of the examples, after the first n_done, as lists of Example."""
    order = own_order(examples, processes)
    sizes = examples.sizes[order]
    began = said = time.monotonic()
    for start in range(n_done, len(order), batch_size):
        now = time.monotonic()
        if say and start > n_done and now - said > SILENCE:
            said = now
            seconds = now - began
            done = sizes[n_done:start].sum()
            rest = sizes[start:].sum()
            left = seconds / done * rest                          # as if sizes were times
            say(f"{start}/{len(order)} windows, {(start - n_done) / seconds:.2g} windows/s, "
                f"{left / 60:.1f} min left")
        yield [examples[i] for i in order[start:start + batch_size]]


def longest_answer(examples):
    """Tokens of the longest true answer among the thousand largest records."""
    largest = np.argsort(-examples.sizes)[:1000]
    return max(len(examples[i].answer) for i in largest)


@torch.no_grad()
def answer_batches(
        model, batches, processes, max_new_tokens=LONGEST, sampling=GREEDY, listen=None):
    """Yields the record of each example in `batches`, lists of Example (see the top of the file).
    listen(ids) is called at each new token of an answer in words."""
    in_words = model.head is None
    model.eval()
    for examples in batches:
        batch = collate(examples, model.tokenizer.pad_id, for_generation=in_words)
        batch = batch.to(processes.device)
        with processes.autocast():
            if in_words:
                answers = write_answers(model, batch, max_new_tokens, sampling, listen)
            else:
                answers = choose_classes(model, batch)
        for example, answer in zip(examples, answers):
            yield {"window": example.index, **example.record, **answer}


def write_answers(model, batch, max_new_tokens, sampling, listen):
    tokenizer = model.tokenizer
    free = model.llm.config.max_positions - batch.ids.shape[1]
    n_tokens = min(max_new_tokens, free)
    sampling = replace(sampling, row_seeds=tuple(batch.examples))
    answers = [[] for _ in batch.examples]
    x = model.embed(batch)                                        # (B, T, D)
    tokens = stream(model.llm, x, batch.mask, tokenizer.stop_ids, n_tokens, sampling)
    for row, token in tokens:
        answers[row].append(token)
        if listen:
            listen(answers[row])
    return [{"generated": tokenizer.decode(ids), "ended": len(ids) < n_tokens} for ids in answers]


def choose_classes(model, batch):
    logits = model.class_logits(batch).float()                    # (B, n_classes)
    losses = F.cross_entropy(logits, batch.labels, model.class_weights, reduction="none")
    answers = []
    for probabilities, loss in zip(logits.softmax(-1).tolist(), losses.tolist()):
        predicted = int(np.argmax(probabilities))
        answers.append({"predicted": predicted, "probabilities": probabilities, "loss": loss})
    return answers


def read_activities(records, classes):
    """Yields records of stage 2; answers in words get "predicted", the label that they name."""
    for record in records:
        if "generated" in record:
            record["predicted"] = parse_activity(record["generated"], classes)
        yield record


@torch.no_grad()
def mean_loss(model, examples, processes, batch_size, say=None):
    """The loss per answer token (stage 1) or per weighted window (stage 2) over all examples."""
    model.eval()
    loss_sum = weight_sum = 0
    for batch in batches_of(examples, processes, batch_size, say):
        batch = collate(batch, model.tokenizer.pad_id).to(processes.device)
        with processes.autocast():
            loss, weight = model(batch)
        loss_sum += loss
        weight_sum += weight
    loss_sum, weight_sum = processes.sum(loss_sum, weight_sum)
    return loss_sum / weight_sum


def score_classes(model, examples, processes, batch_size, say=None):
    """All examples -> (scores of `score_people`, mean loss)."""
    classes = examples.data.dataset.classes
    people = examples.data.subjects_of(examples.split)
    in_words = model.head is None
    batches = batches_of(examples, processes, batch_size, say)
    longest = longest_answer(examples) if in_words else None
    records = answer_batches(model, batches, processes, longest)
    records = list(read_activities(records, classes))
    counts = count_people(records, people, len(classes))
    counts = np.reshape(processes.sum(*counts.ravel()), counts.shape).astype(int)
    scores = score_people(counts, people, classes)
    if in_words:
        return scores, mean_loss(model, examples, processes, batch_size, say)
    weights = model.class_weights.tolist()
    loss = sum(record["loss"] for record in records)
    weight = sum(weights[record["label"]] for record in records)
    loss, weight = processes.sum(loss, weight)
    return scores, loss / weight


def keep_records(path, settings, answer, batch_size):
    """Appends the records that answer(n_done) yields to a file, after its settings -> all records.

    If the file has the same settings, its first n_done records are read instead of made again:
    whole batches, since in another batch the last bits of a result may differ."""
    first = json.dumps(settings) + "\n"
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    lines = text.splitlines(keepends=True)
    if lines[:1] != [first]:
        lines = []
    n_whole = sum(line.endswith("\n") for line in lines[1:])     # a kill may cut the last one
    n_done = n_whole // batch_size * batch_size
    kept = lines[1:1 + n_done]
    with as_input_error(path, advice="; remove it, and all windows are answered again"):
        records = [json.loads(line) for line in kept]
    write_text(path, "".join([first, *kept]))
    with open(path, "a", encoding="utf-8", buffering=1) as file:  # a line at a time
        for record in answer(n_done):
            file.write(json.dumps(record) + "\n")
            records.append(record)
    return records
