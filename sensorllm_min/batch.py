"""What the model reads: an example, and a batch of examples with its padding and targets."""
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch.nn.utils.rnn import pad_sequence

IGNORED = -100                          # a target that the loss ignores


@dataclass
class Example:
    """A prompt with its answer in words, its label (stage 2), or both."""
    prompt: list                        # token ids
    answer: list                        # token ids; empty where a class head answers
    series: list                        # arrays (S,), one for each run of <ts> in the prompt
    label: int
    record: dict                        # the dataset's record that it was made from
    index: int | None = None            # of the record in its file
    channels: tuple | None = None       # index of each series' channel; None: all, in order


@dataclass
class Batch:
    ids: torch.Tensor            # (B, T) token ids, padded on the right, for generation on the left
    mask: torch.Tensor                  # (B, T) bool, False at padding
    targets: torch.Tensor               # (B, T) the ids of the answer, IGNORED elsewhere
    series: torch.Tensor                # (N, S) float64, NaN on the left: all channels of all rows
    series_lengths: torch.Tensor        # (N,) samples
    labels: torch.Tensor                # (B,)
    examples: list                      # (B,) index of each example in its file
    channels: torch.Tensor              # (N,) index of each series' channel
    counts: float = 1.0                 # factor of the loss; 0.0 for a batch that only keeps step

    def to(self, device):
        """The batch on a device; samples stay on the CPU, where float64 exists, until tokenised."""
        moved = {}
        for name, value in vars(self).items():
            if isinstance(value, torch.Tensor) and name not in ("series", "channels"):
                moved[name] = value.to(device, non_blocking=True)
        return replace(self, **moved)


def collate(examples, pad_id, for_generation=False):
    """Examples -> Batch. for_generation: only the prompts, padded on the left to end together."""
    side = "left" if for_generation else "right"
    pad = partial(pad_sequence, batch_first=True, padding_side=side)
    ids = []
    mask = []
    targets = []
    series = []
    channels = []
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
        series=pad_sequence(                                      # as in Chronos
            series, batch_first=True, padding_value=float("nan"), padding_side="left"),
        series_lengths=torch.tensor([len(channel) for channel in series]),
        labels=torch.tensor([example.label for example in examples]),
        examples=[example.index for example in examples],
        channels=torch.tensor(channels))
