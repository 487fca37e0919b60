"""A model over a split: loss, generated answers, predicted classes. Each process takes its share; sums are added."""
import json
import math
import time
from collections import Counter
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from .config import write_whole
from .data import collate, share
from .generate import GREEDY, generate
from .metrics import confusion_of, parse_activity, parse_claims
from .trend_scores import groups_of, row_of_sums, scores_of


def batches_of(examples, processes, batch_size, pad_id, order=None, for_generation=False):
    """This process's share of the examples, in batches of like size: yields (positions, Batch)."""
    order = np.argsort(examples.sizes, kind="stable") if order is None else order
    mine = share(order, processes.world)[processes.rank]
    for start in range(0, len(mine), batch_size):
        positions = mine[start:start + batch_size]
        batch = collate([examples[i] for i in positions], pad_id, for_generation)
        yield positions, batch.to(processes.device)


@torch.no_grad()
def mean_loss(model, examples, processes, batch_size, pad_id, bf16=False):
    """The loss per answer token (stage 1) or per weighted window (stage 2) over all examples."""
    loss_sum = weight_sum = 0
    for _, batch in batches_of(examples, processes, batch_size, pad_id):
        with torch.autocast(processes.device.type, torch.bfloat16, enabled=bf16):
            loss, weight = model(batch)
        loss_sum, weight_sum = loss_sum + loss, weight_sum + weight
    loss_sum, weight_sum = processes.sum(loss_sum, weight_sum)
    return loss_sum / weight_sum if weight_sum else math.nan


@torch.no_grad()
def describe(model, tokenizer, examples, processes, batch_size, max_new_tokens=None, bf16=False, positions=None,
             sampling=GREEDY):
    """Generates the answer to each example of this process's share: yields (position, text, whether it ended by itself).

    max_new_tokens None: as many as the longest true answer, of the thousand longest lines; never beyond what the LLM takes.
    positions: of the examples to answer, in this order; None: all of them, short ones first.
    """
    longest = max_new_tokens or max(len(examples[i].answer) for i in np.argsort(-examples.sizes)[:1000])
    for positions, batch in batches_of(examples, processes, batch_size, tokenizer.pad_id, positions, for_generation=True):
        room = min(longest, examples.limits.max_positions - batch.ids.shape[1])
        with torch.autocast(processes.device.type, torch.bfloat16, enabled=bf16):
            answers = generate(model.llm, model.embed(batch), batch.mask, tokenizer.stop_ids, room, sampling, batch.examples)
        yield from ((int(i), tokenizer.decode(answer), len(answer) < room) for i, answer in zip(positions, answers))


def trend_sums(row, series, guess):
    """A described window -> (2, WIDTH): the sums of trend_scores, of the answer and of the guess.

    row: the window's line with what was "generated", and whether it "ended" by itself; series (T,).
    """
    text = row["generated"]
    return np.stack([row_of_sums(text, parse_claims(text), row["answer"], series, guess.rate, row["ended"]),
                     guess.row_of_sums(row, series)])


def trend_scores(rows, data, guess, say):
    """Described windows -> {group: {"windows", "answers", "guess"}}: of all, each channel, each quarter of the lengths."""
    columns = {channel.token: column for column, channel in enumerate(data.dataset.channels)}
    sums, counts, said = {}, Counter(), time.time()
    for place, row in enumerate(rows):
        if time.time() - said > 10:
            said = time.time()
            say(f"scored {place} of {len(rows)} descriptions")
        series = data.window(row)[:, columns[row["channel"]]]
        both = trend_sums(row, series, guess)
        for group in groups_of(row, data.meta["align_lengths"]):
            sums[group] = sums.get(group, 0) + both
            counts[group] += 1
    order = ["all", *(token for token in columns if token in sums)]
    order += sorted(sums.keys() - set(order), key=lambda group: int(group.split()[0]))
    return {group: {"windows": counts[group], "answers": scores_of(sums[group][0]), "guess": scores_of(sums[group][1])}
            for group in order}


@torch.no_grad()
def classify(model, tokenizer, examples, processes, batch_size, bf16=False, positions=None, sampling=GREEDY,
             max_new_tokens=None):
    """Yields a row for each window of this process's share: where it is from, its label, the predicted one.

    From a class head with probabilities (n,) and loss, the weighted cross entropy; from an answer in words with the
    text, and predicted None where it names no class.
    """
    def row_of(i, **found):
        row = examples[i].row
        return {"window": int(examples.index[i]), "subject": row["subject"], "label": row["label"], **found}

    classes = examples.data.dataset.classes
    if model.head is None:
        for i, text, _ in describe(model, tokenizer, examples, processes, batch_size, max_new_tokens, bf16, positions,
                                   sampling):
            yield row_of(i, predicted=parse_activity(text, classes), generated=text)
        return
    for positions, batch in batches_of(examples, processes, batch_size, tokenizer.pad_id, positions):
        with torch.autocast(processes.device.type, torch.bfloat16, enabled=bf16):
            logits = model.class_logits(batch)
        losses = model.class_weights[batch.labels] * F.cross_entropy(logits.float(), batch.labels, reduction="none")
        for i, loss, probabilities in zip(positions, losses.tolist(), logits.float().softmax(-1).tolist()):
            yield row_of(i, predicted=int(np.argmax(probabilities)), probabilities=probabilities, loss=loss)


def score_classes(model, tokenizer, examples, processes, batch_size, bf16=False):
    """Over all examples: the confusion matrix of `confusion_of`, and the mean loss."""
    rows = list(classify(model, tokenizer, examples, processes, batch_size, bf16))
    n = len(examples.data.dataset.classes)
    counts = np.array(processes.sum(*confusion_of(rows, n).ravel()), int).reshape(n, n + 1)
    if model.head is None:
        return counts, mean_loss(model, examples, processes, batch_size, tokenizer.pad_id, bf16)
    counts, weights = counts[:, :-1], model.class_weights.tolist()            # a class head names one always
    loss, weight = processes.sum(sum(row["loss"] for row in rows), sum(weights[row["label"]] for row in rows))
    return counts, loss / weight if weight else math.nan


# ---- a long evaluation that may be interrupted ----

def rows_so_far(path, settings):
    """The whole lines of a partial file -> rows; none where it is missing or was begun with other settings."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    rows = [json.loads(line) for line in lines if line.endswith("\n")]        # a kill may cut the last one
    return rows[1:] if rows and rows[0] == settings else []


def written_as_they_come(path, settings, examples, answer, say):
    """answer(positions) yields a row for each example, with its "window"; they are written to `path` -> all rows.

    Until all are there the file is PATH.partial, with the settings as its first line: the same evaluation, started
    again, goes on behind its last row, and another one begins anew.
    """
    partial = Path(f"{path}.partial")
    rows = rows_so_far(partial, settings)
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in (settings, *rows)]
    write_whole(partial, "".join(lines))
    done = {row["window"] for row in rows}
    positions = [i for i in np.argsort(examples.sizes, kind="stable") if int(examples.index[i]) not in done]
    if rows:
        say(f"going on where an interrupted evaluation stopped: {len(rows)} of {len(examples)} windows are done")
    began = said = time.time()
    size, all_sizes = 0, examples.sizes[positions].sum()                      # long windows come last, and take longer
    with open(partial, "a", encoding="utf-8", buffering=1) as file:        # line by line
        for count, (i, row) in enumerate(zip(positions, answer(positions)), start=1):
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            rows.append(row)
            size += examples.sizes[i]
            if time.time() - said > 10:
                said = time.time()
                say(f"{len(rows)}/{len(examples)} windows, {count / (said - began):.1f} windows/s, "
                    f"{(said - began) / size * (all_sizes - size) / 60:.1f} min left")
    write_whole(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    partial.unlink()
    return rows
