"""A trained model in Python: what `sensorllm_min.load` returns."""
from collections import Counter

import numpy as np
import torch

from ..batch import IGNORED, Example, collate
from ..data.examples import PromptFormat, align_prompt, har_prompt
from ..data.logs import put_on_grid, steady_log
from ..data.sensors import dataset_of
from ..data.tables import pick_columns
from ..data.wording import QUESTIONS
from ..files import InputError
from ..generate import GREEDY
from ..layers import use_backend
from ..training.checkpoint import load_checkpoint
from ..recipe import DTYPES
from ..training.processes import Processes, choose_device
from .ask import one_channel
from .predict import answer_batches
from .recording import Prediction, classify_recording


class Model:
    """A trained model with its tokenizers and the description of its data.

    stage      "align" (stage 1: `describe`, `ask`) or "har" (stage 2: `classify`)
    dataset    the DatasetInfo of its training data: rate (Hz), channels, classes, window (samples)
    model      the network itself (sensorllm.SensorLLM)
    recipe     what it is made of (recipe.Recipe); progress: of its training, a dict

    Samples are real numbers (T, C): T samples at `dataset.rate`, a column for each of
    `dataset.channels`, in their order and units. Every method raises an InputError for samples of
    another shape, for a call that does not fit this stage, and for a window that is too long."""

    def __init__(self, model, recipe, progress, processes):
        self.model = model
        self.recipe = recipe
        self.progress = progress
        self.processes = processes
        self.stage = recipe.stage
        self.dataset = dataset_of(recipe)
        self.prompts = PromptFormat.of(model, recipe)

    def classify(self, samples, batch_size=16) -> list[Prediction]:
        """The activities of a recording (T, C): [(start, end, activity, probabilities), ...].

        Windows slide over it as in training; start and end are seconds from the first sample,
        probabilities {activity: probability} (None for a model that answers in words). NaN is a
        missing sample: gaps of up to 0.1 s are interpolated, and no window crosses a longer one.
        batch_size: windows in a forward pass."""
        self.require("har", "classify")
        samples = self.checked(samples, may_miss=True)
        counts = Counter()
        unlabelled = np.full(len(samples), -1)
        log = put_on_grid(steady_log(samples, unlabelled, self.dataset.rate), counts)
        return classify_recording(self, log, counts, batch_size)

    def describe(self, samples, channel, max_new_tokens=400) -> str:
        """The trends of one channel of a window (T, C), in words. channel: its token, "x_acc"."""
        spoken = one_channel(self.dataset, channel).channels[0].spoken
        question = QUESTIONS[0].format(sensor=f"normalized {spoken}")
        return self.ask(samples, channel, question, max_new_tokens)

    def ask(self, samples, channel, question, max_new_tokens=400, sampling=GREEDY) -> str:
        """The answer to a question about one channel of a window (T, C).
        sampling: a generate.Sampling; by default always the likeliest token."""
        self.require("align", "describe and ask")
        if not isinstance(question, str):
            raise InputError(f"question is {question!r}, expected a text")
        dataset = one_channel(self.dataset, channel)
        column = self.dataset.channels.index(dataset.channels[0])
        series = self.checked(samples)[:, [column]]
        example = self.example(series, dataset, "samples", question)
        return self.answer(example, max_new_tokens, sampling)["generated"]

    @torch.no_grad()
    def features(self, samples, after="encoder"):
        """The features of a window (T, C), for a network of your own -> float32 array.

        after="encoder": the encoder's features (C, T+1, D_enc), with statistics if it gets them;
        "projector": the sensor embeddings (C, T+1, D). The last step is the end of the series."""
        if after not in ("encoder", "projector"):
            raise InputError(f"after={after!r}: give encoder or projector")
        samples = self.checked(samples)
        self.prompts.check_length(samples, "samples")
        example = Example([0], [], list(samples.T), IGNORED, {})
        batch = collate([example], self.model.tokenizer.pad_id).to(self.processes.device)
        with self.processes.autocast():
            vectors = self.model.encode(batch)                    # (C * (T+1), D_enc)
            if after == "projector":
                vectors = self.model.projector(vectors)
        vectors = vectors.float().cpu()
        return vectors.unflatten(0, (samples.shape[1], -1)).numpy()

    def example(self, samples, dataset, title, question=None, index=0):
        """A window (S, C) of the dataset's C channels as an Example; question: for stage 1."""
        self.prompts.check_length(samples, title)
        if self.stage == "align":
            question = self.model.tokenizer.as_text(question)
            channel, = dataset.channels
            prompt = align_prompt(self.prompts, channel, len(samples), dataset.rate, question)
        else:
            prompt = har_prompt(self.prompts, samples, dataset)
        if len(prompt) >= self.prompts.max_positions:
            raise InputError(f"{title}: a prompt of {len(prompt)} tokens, the LLM takes "
                             f"{self.prompts.max_positions}")
        columns = tuple(map(self.dataset.channels.index, dataset.channels))
        return Example(prompt, [], list(samples.T), IGNORED, {}, index, columns)

    def answer(self, example, max_new_tokens=400, sampling=GREEDY, listen=None):
        record, = answer_batches(
            self.model, [[example]], self.processes, max_new_tokens, sampling, listen)
        return record

    def require(self, stage, what):
        if self.stage != stage:
            raise InputError(f"{what}: this checkpoint is of stage {self.stage}; load one of "
                             f"train_{stage}.py")

    def checked(self, samples, may_miss=False):
        """Samples as an array (T, C): float32, like prepared windows; float64 if some may miss."""
        if hasattr(samples, "columns"):                           # a DataFrame goes by name
            tokens = [channel.token for channel in self.dataset.channels]
            headings = [channel.heading for channel in self.dataset.channels]
            names = tokens if set(tokens) <= set(samples.columns) else headings
            samples = pick_columns(samples, names, "the DataFrame")
        if isinstance(samples, torch.Tensor):
            samples = samples.detach().cpu().double()
        samples = np.asarray(samples)
        n_channels = len(self.dataset.channels)
        is_real = samples.dtype.kind in "biuf"
        if not is_real or samples.ndim != 2 or samples.shape[1] != n_channels:
            channels = ", ".join(channel.token for channel in self.dataset.channels)
            raise InputError(f"samples are {samples.dtype} of shape {samples.shape}, expected "
                             f"numbers of shape (T, {n_channels}), the channels {channels}")
        if len(samples) < 2 or not (may_miss or np.isfinite(samples).all()):
            raise InputError("samples need at least two rows, all of them finite")
        return samples.astype(np.float64 if may_miss else np.float32)


def load_model(source, llm, encoder, device, dtype, attention=None) -> Model:
    """See `sensorllm_min.load`. attention: "torch", "triton", or None to choose automatically."""
    if dtype not in DTYPES:
        raise InputError(f"dtype {dtype!r}: give {', '.join(DTYPES)}")
    processes = Processes(0, 1, choose_device(device), bf16=dtype != "float32")
    model, recipe, progress = load_checkpoint(source, llm, encoder, dtype)
    model.to(processes.device).requires_grad_(False)
    use_backend(model, attention)
    return Model(model, recipe, progress, processes)
