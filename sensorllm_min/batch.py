"""What the model reads: one example, and a batch of them with its padding and its targets."""
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch.nn.utils.rnn import pad_sequence

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
        tensors = {name: value for name, value in vars(self).items() if name != "examples"}
        places = dict.fromkeys(("series", "channels"), exact_device(device))
        moved = {name: tensor.to(places.get(name, device), non_blocking=True)
                 for name, tensor in tensors.items()}
        return replace(self, **moved)


def collate(examples, pad_id, for_generation=False) -> Batch:
    """Examples -> Batch. for_generation: prompts alone, padded on the left to end together."""
    side = "left" if for_generation else "right"
    pad = partial(pad_sequence, batch_first=True, padding_side=side)
    ids, mask, targets, series, channels = [], [], [], [], []
    for example in examples:
        answer = [] if for_generation else example.answer
        sequence = torch.tensor(example.prompt + answer)          # (t,)
        target = sequence.clone()
        target[:len(example.prompt)] = IGNORED
        ids.append(sequence)
        mask.append(torch.ones_like(sequence, dtype=torch.bool))
        targets.append(target)
        series += [torch.tensor(channel, dtype=torch.float64) for channel in example.series]
        channels += example.channels or range(len(example.series))
    return Batch(
        ids=pad(ids, padding_value=pad_id),                       # (B, T)
        mask=pad(mask, padding_value=False),
        targets=pad(targets, padding_value=IGNORED),
        series=pad_left(series),
        series_lengths=torch.tensor([len(channel) for channel in series]),
        labels=torch.tensor([example.label for example in examples]),
        examples=[example.index for example in examples],
        channels=torch.tensor(channels))
