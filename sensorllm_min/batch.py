"""What the model reads: one example, and a batch of them with its padding and its targets."""
from dataclasses import dataclass, fields

import torch

from .chronos_tokenizer import pad_left
from .layers import exact_device

IGNORED = -100                          # a target that no loss looks at


@dataclass
class Example:
    """One prompt, with its answer in words, its label (stage 2), or both."""
    prompt: list                        # token ids
    answer: list                        # token ids; empty where a class head answers
    series: list                        # arrays (S,), one for each run of <ts> in the prompt
    label: int
    record: dict                        # the line of the dataset that it was made from
    index: int | None = None            # of that line in its file
    channels: tuple | None = None       # the dataset's channel of each series; None: all, in order


@dataclass
class Batch:
    ids: torch.Tensor            # (B, T) token ids, padded on the right, for generation on the left
    mask: torch.Tensor                  # (B, T) bool, False at padding
    targets: torch.Tensor           # (B, T) the answer's ids at their own places, IGNORED elsewhere
    series: torch.Tensor     # (N, S) float64, NaN on the left: every channel of every row, in order
    series_lengths: torch.Tensor        # (N,) samples of each
    labels: torch.Tensor                # (B,)
    examples: list                      # (B,) index of each example in its file
    channels: torch.Tensor              # (N,) the dataset's channel of each series

    def to(self, device):
        """The batch on a device; samples stay, with their channels, where there is float64."""
        tensors = {field.name: getattr(self, field.name) for field in fields(self)}
        examples = tensors.pop("examples")
        places = dict.fromkeys(("series", "channels"), exact_device(device))
        moved = {name: tensor.to(places.get(name, device), non_blocking=True)
                 for name, tensor in tensors.items()}
        return Batch(**moved, examples=examples)


def collate(examples, pad_id, for_generation=False) -> Batch:
    """Examples -> Batch. for_generation: prompts alone, padded on the left to end together."""
    sequences = [example.prompt if for_generation else example.prompt + example.answer
                 for example in examples]
    longest = max(map(len, sequences))
    ids = torch.full((len(examples), longest), pad_id)
    mask = torch.zeros(len(examples), longest, dtype=torch.bool)
    targets = torch.full((len(examples), longest), IGNORED)
    for row, (sequence, example) in enumerate(zip(sequences, examples)):
        start = longest - len(sequence) if for_generation else 0
        end = start + len(sequence)
        ids[row, start:end] = torch.tensor(sequence)
        mask[row, start:end] = True
        if not for_generation and example.answer:
            targets[row, len(example.prompt):end] = torch.tensor(example.answer)
    series, channels = [], []
    for example in examples:
        series += [torch.tensor(channel, dtype=torch.float64) for channel in example.series]
        channels += example.channels or range(len(example.series))
    return Batch(
        ids, mask, targets,
        series=pad_left(series),
        series_lengths=torch.tensor([len(channel) for channel in series]),
        labels=torch.tensor([example.label for example in examples]),
        examples=[example.index for example in examples],
        channels=torch.tensor(channels))
