"""A trained model in Python: what `sensorllm_min.load` returns."""
from collections import Counter

import numpy as np
import torch

from ..batch import IGNORED, Example, collate
from ..data.own import Log
from ..data.wording import QUESTIONS
from ..files import InputError
from ..generate import GREEDY
from ..layers import use_backend
from ..data.examples import PromptFormat
from ..data.sensors import dataset_of
from ..training.checkpoint import load_checkpoint
from ..recipe import DTYPES
from ..training.processes import Processes, choose_device
from .ask import Window, answer, one_channel
from .predict import Decoding
from .recording import Prediction, classify_recording


class Model:
    """A trained model with its tokenizers and the description of its data.

    stage    "align" (stage 1: `describe`, `ask`) or "har" (stage 2: `classify`)
    dataset  the DatasetInfo of its training data: rate (Hz), channels, classes, window (samples)
    model    the network itself (sensorllm.SensorLLM); recipe  what it is made of (recipe.Recipe)

    Samples are arrays (T, C) of real numbers: T samples at `dataset.rate`, a column for each of
    `dataset.channels`, in their order and units. Every method raises an InputError, in one line,
    for samples of another shape, what does not fit this stage, and what is too long.
    """

    def __init__(self, model, recipe, processes):
        self.model, self.recipe, self.processes = model, recipe, processes
        self.stage, self.dataset = recipe.stage, dataset_of(recipe)

    def __repr__(self):
        channels = ", ".join(channel.token for channel in self.dataset.channels)
        return (f"<sensorllm_min model of stage {self.stage} on {self.recipe.dataset}: "
                f"{channels} at {self.dataset.rate:g} Hz>")

    def classify(self, samples, batch_size=16) -> list[Prediction]:
        """The activities of a recording (T, C): [(start, end, activity, probabilities), ...].

        Windows slide over it as in training; start and end are seconds from the first sample,
        probabilities {activity: probability} (None for a model that answers in words). NaN is a
        missing sample: gaps of up to 0.1 s are interpolated, and no window lies across a longer
        one. batch_size: windows in a forward pass.
        """
        self.require("har", "classify")
        samples = self.checked(samples, may_miss=True)
        n, rate = len(samples), self.dataset.rate
        log = Log(samples, np.full(n, -1), np.arange(n) / rate, rate)
        return list(classify_recording(self.model, self.recipe, log, Counter(), self.processes, batch_size))

    def describe(self, samples, channel, max_new_tokens=400) -> str:
        """The trends of one channel of a window (T, C), in words. channel: its token, "x_acc"."""
        spoken = one_channel(self.dataset, channel).channels[0].spoken
        question = QUESTIONS[0].format(sensor=f"normalized {spoken}")
        return self.ask(samples, channel, question, max_new_tokens)

    def ask(self, samples, channel, question, max_new_tokens=400, sampling=GREEDY) -> str:
        """The answer to a question about one channel of a window (T, C).

        sampling: a generate.Sampling; by default always the likeliest token.
        """
        self.require("align", "describe and ask")
        dataset = one_channel(self.dataset, channel)
        series = self.checked(samples)[:, [self.dataset.channels.index(dataset.channels[0])]]
        window = Window(series, dataset, "samples", "samples", None)
        decoding = Decoding(1, max_new_tokens, sampling)
        return answer(self.model, self.recipe, window, question, self.processes, decoding, lambda piece: None)

    @torch.no_grad()
    def features(self, samples, after="encoder"):
        """What the model makes of a window (T, C), for a network of your own -> float32 array.

        after="encoder": the encoder's features (C, T+1, D_enc), with the levels, where the model
        has them; "projector": the sensor embeddings (C, T+1, D). The last step ends the series.
        """
        if after not in ("encoder", "projector"):
            raise InputError(f"after={after!r}: give encoder or projector")
        model, samples = self.model, self.checked(samples)
        PromptFormat.of(model, self.recipe).check_length(samples, "samples")
        example = Example([0], [], list(samples.T), IGNORED, {})
        batch = collate([example], model.tokenizer.pad_id).to(self.processes.device)
        with self.processes.autocast():
            vectors = model.encode(batch)                         # (C * (T+1), D_enc)
            if after == "projector":
                vectors = model.projector(vectors)
        return vectors.float().cpu().unflatten(0, (samples.shape[1], -1)).numpy()

    def require(self, stage, what):
        if self.stage != stage:
            script = {"align": "train_align.py", "har": "train_har.py"}[stage]
            raise InputError(f"{what}: this checkpoint is of stage {self.stage}; load one of "
                             f"{script}")

    def checked(self, samples, may_miss=False):
        """Samples as an array (T, C). InputError for what is none.

        float32, as prepared windows are; where samples may be missing, float64 until gaps are
        filled.
        """
        samples = np.asarray(samples)
        n_channels = len(self.dataset.channels)
        if samples.dtype.kind not in "biuf" or samples.ndim != 2 or samples.shape[1] != n_channels:
            channels = ", ".join(channel.token for channel in self.dataset.channels)
            raise InputError(f"samples are {samples.dtype} of shape {samples.shape}, expected "
                             f"numbers of shape (T, {n_channels}), the channels {channels}")
        if len(samples) < 2 or not (may_miss or np.isfinite(samples).all()):
            raise InputError("samples need at least two rows, all of them finite")
        return samples.astype(np.float64 if may_miss else np.float32)


def load_model(source, llm, encoder, device, dtype) -> Model:
    """See `sensorllm_min.load`."""
    if dtype not in DTYPES:
        raise InputError(f"dtype {dtype!r}: give {', '.join(DTYPES)}")
    device = choose_device(device)
    model, recipe, _ = load_checkpoint(source, llm, encoder, dtype)
    model.to(device).requires_grad_(False)
    use_backend(model, None)
    return Model(model, recipe, Processes(0, 1, device, bf16=dtype != "float32"))
