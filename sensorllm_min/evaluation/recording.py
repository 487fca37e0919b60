"""A recording of any length: windows slide over it, and each gets its activity."""
from typing import NamedTuple

import numpy as np
import torch

from ..batch import IGNORED, Example, collate
from ..data.claims import parse_activity
from ..data.examples import har_prompt
from ..data.prepare import strided_windows
from ..data.logs import split_at_gaps
from ..files import InputError
from ..generate import generate


class Prediction(NamedTuple):
    """The activity of one window; times in seconds from the recording's first sample."""
    start: float
    end: float
    activity: str | None                # None: an answer in words that names no class
    probabilities: dict | None          # {activity: probability}; None: answered in words


def slide_windows(samples, dataset, counts):
    """Yields (start, samples (S, C) float32) of the windows of a recording (N, C).

    As in preparation: short gaps (NaN) are interpolated, none lies in a longer one, the last window
    of a stretch is flush with its end. counts: a Counter for what was interpolated and lost.
    """
    for begin, stretch in split_at_gaps(samples, dataset.rate, counts):
        for start in strided_windows(len(stretch), dataset.window, dataset.stride):
            window = stretch[start:start + dataset.n_window]
            yield begin + start, window.astype(np.float32)


@torch.no_grad()
def classify_recording(loaded, samples, counts, processes, batch_size=16):
    """Samples (N, C), at the dataset's rate -> yields a Prediction for each window, in order.

    InputError where not one whole window is without a gap.
    """
    dataset, prompts = loaded.recipe.sensors, loaded.prompts
    windows = list(slide_windows(samples, dataset, counts))
    if not windows:
        raise InputError(f"{len(samples)} samples hold no window: {dataset.n_window} samples "
                         f"without a gap, {dataset.n_window / dataset.rate:g} s at "
                         f"{dataset.rate:g} Hz")
    for first in range(0, len(windows), batch_size):
        some = windows[first:first + batch_size]
        examples = [Example(har_prompt(prompts, window, dataset), [], list(window.T), IGNORED, {},
                            index=start) for start, window in some]
        longest = max(len(example.prompt) for example in examples)
        if longest >= prompts.max_positions:
            raise InputError(f"a window makes a prompt of {longest} tokens, the LLM takes "
                             f"{prompts.max_positions}")
        for (start, window), (activity, probabilities) in zip(
                some, name_activities(loaded, examples, processes)):
            seconds = start / dataset.rate, (start + len(window)) / dataset.rate
            yield Prediction(*seconds, activity, probabilities)


def name_activities(loaded, examples, processes):
    """Examples of one batch -> [(activity, {activity: probability})], one for each."""
    model, tokenizer, classes = loaded.model, loaded.tokenizer, loaded.recipe.classes
    in_words = model.head is None
    batch = collate(examples, tokenizer.pad_id, for_generation=in_words).to(processes.device)
    with processes.autocast():
        if not in_words:
            chances = model.class_logits(batch).float().softmax(-1)               # (B, n_classes)
            return [(classes[int(np.argmax(row))], dict(zip(classes, row)))
                    for row in chances.tolist()]
        room = min(400, loaded.prompts.max_positions - batch.ids.shape[1])
        answers = generate(model.llm, model.embed(batch), batch.mask, tokenizer.stop_ids, room)
    labels = [parse_activity(tokenizer.decode(answer), classes) for answer in answers]
    return [(None if label is None else classes[label], None) for label in labels]
