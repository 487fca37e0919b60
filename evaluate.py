"""Scores a checkpoint on subjects it has not seen, or lets it answer about one window.

    python evaluate.py                                     # the demo, whichever stages were trained
    python evaluate.py --checkpoint out/har --data data/usc-had
    python evaluate.py --checkpoint out/align --ask "When does it rise?" --window 2
    python evaluate.py --checkpoint out/har --csv walk.csv # the activities of a recording
"""
import sensorllm_min    # noqa: F401: first, since it says where Python is too old
import hashlib
import sys
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from sensorllm_min.cli import (
    amount, count, option, probability, read_settings, run_script, seed)
from sensorllm_min.data.examples import AlignExamples, HarExamples
from sensorllm_min.data.prepared import PreparedData
from sensorllm_min.data.wording import QUESTIONS
from sensorllm_min.evaluation.ask import converse, csv_window, prepared_window
from sensorllm_min.evaluation.class_scores import class_report, count_people, score_people
from sensorllm_min.evaluation.interface import load_model
from sensorllm_min.evaluation.predict import (
    LONGEST, answer_batches, batches_of, keep_records, longest_answer, read_activities)
from sensorllm_min.evaluation.recording import predict_csv
from sensorllm_min.evaluation.report import write_report
from sensorllm_min.evaluation.trend_scores import (
    Guess, add_word_scores, draw_answers, in_one_line, score_trends, scores_table)
from sensorllm_min.files import InputError, write_json
from sensorllm_min.generate import Sampling
from sensorllm_min.training.checkpoint import checkpoint_file
from sensorllm_min.training.options import SharedSettings
from sensorllm_min.training.provenance import command_line, git_commit

say = partial(print, flush=True)


def sample_size(text):
    return sys.maxsize if text == "all" else count(text)


@dataclass(frozen=True)
class EvaluateSettings(SharedSettings):
    checkpoint: list = option(
        None, "outputs of train_align.py or train_har.py, checkpoint files, or hub ids (default: "
        "out/align and out/har, whichever exist)", nargs="+")
    split: str = option("test", "whose windows are scored", choices=("val", "test"))
    limit: int = option(
        None, "score a seeded sample of this many windows, or all (default 256 in stage 1, all in "
        "stage 2)", type=sample_size)
    show: int = option(3, "descriptions to print", type=seed)
    temperature: float = option(
        0.0, "sampling temperature; 0 takes the likeliest token", type=amount)
    top_k: int = option(0, "sample from this many of the likeliest tokens; 0: all", type=seed)
    top_p: float = option(
        1.0, "sample from the fewest tokens that reach this probability together",
        type=probability)
    ask: str = option(
        None, "answer a question about one window, instead of scoring", metavar="QUESTION")
    window: int = option(None, "the window of the split to ask about (default 0)", type=seed)
    csv: str = option(
        None, "a file with a column for each channel, named by its token: in stage 1 a window to "
        "ask about, in stage 2 a recording of any length, whose activities are written to "
        "FILE.predictions.csv and drawn in FILE.predictions.png", metavar="FILE")
    channel: str = option(None, "the channel to ask about (default: the window's own)")

    @property
    def sampling(self):
        return Sampling(self.temperature, self.top_k, self.top_p, self.seed)


def answer_split(settings, model, checkpoint, examples, path):
    """The records of all examples, from the file at `path` as far as it holds them."""
    same = asdict(replace(settings, show=0)) | {"code": git_commit()}
    files = {"checkpoint": checkpoint, "data": examples.data.directory / "meta.json"}
    for name, source in files.items():
        with open(source, "rb") as file:
            same[name] = hashlib.file_digest(file, "sha256").hexdigest()
    longest = settings.max_new_tokens
    if longest is None and model.model.head is None:
        longest = longest_answer(examples)

    def answer(n_done):
        if n_done:
            say(f"{path} holds {n_done} of {len(examples)} answers; remove it to make them again")
        batches = batches_of(examples, model.processes, settings.batch_size, say, n_done)
        records = answer_batches(model.model, batches, model.processes, longest, settings.sampling)
        classes = model.recipe.classes
        return read_activities(records, classes) if classes else records

    return keep_records(path, same, answer, settings.batch_size)


def evenly(records, n):
    chosen = np.linspace(0, len(records) - 1, min(n, len(records))).astype(int)
    return [records[i] for i in chosen]


def score_descriptions(settings, model, checkpoint, data, out):
    """Stage 1: describes windows, prints and draws some, and scores them."""
    limit = settings.limit or 256
    examples = AlignExamples(data, settings.split, model.prompts, limit, settings.seed)
    path = out / f"descriptions_{settings.split}.jsonl"
    records = answer_split(settings, model, checkpoint, examples, path)
    for record in evenly(records, settings.show):
        length = record["length"]
        say(f"--- window {record['window']}: {record['channel']}, {length} samples\n"
            f"true:\n{record['answer']}\ngenerated:\n{record['generated']}\n")
    draw_answers(path.with_suffix(".png"), evenly(records, 6), data, say)
    guess = Guess(AlignExamples(data, "train", model.prompts))
    scores = score_trends(records, data, guess, model.processes)
    add_word_scores(scores, records, guess)
    say(f"answers / guess, on {len(records)} windows of {data.dataset.held_out}:\n"
        f"{scores_table(scores)}\n{in_one_line(scores)}")
    return {"windows": len(records), **scores["all"]["answers"], "groups": scores}


def score_activities(settings, model, checkpoint, data, out):
    """Stage 2: classifies windows, prints the scores and writes the report."""
    import pandas as pd
    examples = HarExamples(data, settings.split, model.prompts, settings.limit, settings.seed)
    path = out / f"predictions_{settings.split}.jsonl"
    records = answer_split(settings, model, checkpoint, examples, path)
    classes = model.recipe.classes
    by_person = data.subjects_of(settings.split)
    counts = count_people(records, by_person, len(classes))
    scores = score_people(counts, by_person, classes)
    say(class_report(scores["confusion"], classes))
    people = pd.DataFrame.from_dict(scores["people"], orient="index")
    say(f"\neach person; F1 over the classes that this person has: {people['f1'].mean():.3f} +- "
        f"{people['f1'].std(ddof=0):.3f}\n{people.to_string(float_format='{:.4f}'.format)}")
    report = out / f"report_{settings.split}.html"
    write_report(report, records, scores, model, data)
    say(f"wrote {report}, with pictures and the windows it got most wrong")
    return scores


def open_data(settings, recipe):
    """The dataset of --data, in the checkpoint's fold. InputError unless it was trained on it."""
    data = PreparedData(settings.data or f"data/{recipe.dataset}", recipe.fold)
    if data.name != recipe.dataset:
        raise InputError(f"the checkpoint was trained on {recipe.dataset}, {settings.data} holds "
                         f"{data.name}; give the --data it was trained on")
    return data


def score(settings, model, checkpoint, out):
    recipe = model.recipe
    progress = model.progress
    data = open_data(settings, recipe)
    best = progress["best"]                                       # None: not validated yet
    best = "none yet" if best is None else f"{best:.4f}"
    say(f"{checkpoint}: stage {recipe.stage}, {recipe.dataset}, step {progress['step']}, "
        f"validation {best}; LLM {recipe.llm or 'built-in'}, encoder "
        f"{recipe.encoder or 'built-in'}; {settings.split} subjects")
    path = out / f"evaluation_{settings.split}.json"
    path.unlink(missing_ok=True)                                  # an interrupted run leaves none
    score_stage = score_activities if recipe.classes else score_descriptions
    result = score_stage(settings, model, checkpoint, data, out)
    write_json(path, {"command": command_line(), "tested": data.dataset.held_out, **result})
    say(f"wrote {path}\n")


def ask(settings, model, out):
    """Answers a question about one window; in stage 1 by default about its trends."""
    if model.stage == "har":
        if settings.channel:
            raise InputError("--channel is for stage 1; stage 2 reads all channels")
        if settings.ask:
            raise InputError("stage 2 answers one question, which activity it is; give --window or "
                             "--csv without --ask")
    if settings.csv:
        window = csv_window(settings.csv, model.dataset, settings.channel)
    else:
        data = open_data(settings, model.recipe)
        index = settings.window or 0
        window = prepared_window(data, model.stage, settings.split, index, settings.channel)
    spoken = window.dataset.channels[0].spoken
    question = settings.ask or QUESTIONS[0].format(sensor=f"normalized {spoken}")
    longest = settings.max_new_tokens or LONGEST
    converse(model, window, question, longest, settings.sampling, out)


def main():
    settings = read_settings(EvaluateSettings, __doc__)
    settings = replace(settings, batch_size=settings.batch_size or 16)
    if settings.csv and settings.window is not None:
        raise InputError("--csv and --window are two windows; give one of them")
    trained = [path for path in ("out/align", "out/har") if checkpoint_file(path).is_file()]
    sources = settings.checkpoint or trained
    if not sources:
        raise InputError("no checkpoint in out/align or out/har; run train_align.py first, or "
                         "give --checkpoint")
    asked = settings.ask, settings.window, settings.csv, settings.channel
    asking = any(value is not None for value in asked)
    for source in sources[:1] if asking else sources:
        checkpoint = checkpoint_file(source)
        model = load_model(checkpoint, settings.llm, settings.encoder, settings.device,
                           settings.dtype, settings.attention)
        on_hub = not Path(source).exists()                        # its folder is the hub's cache
        out = Path("out", Path(source).name) if on_hub else checkpoint.parent
        out.mkdir(parents=True, exist_ok=True)
        recording = settings.csv and not (settings.ask or settings.channel)
        if recording and model.stage == "har":
            predict_csv(settings.csv, model, settings.batch_size, say)
        elif asking:
            ask(settings, model, out)
        else:
            score(settings, model, checkpoint, out)


if __name__ == "__main__":
    run_script(main)
