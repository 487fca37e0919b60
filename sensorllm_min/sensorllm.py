"""The whole model: Chronos tokenizer -> T5 encoder -> projector -> LLaMA, spliced over the <ts> of a prompt.

    x_acc  (S,) --tokenizer--> ids (S+1,) --encoder--> (S+1, D_enc) --projector--> (S+1, D)
                                                                                      |  one masked write
    ids    <x_acc_start> <ts> <ts> ... <ts> <x_acc_end> question ... --embedding--> (T, D) --LLaMA--> hidden (T, D)

Reference: SensorLLM, arXiv 2410.10624.
"""
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from .data import IGNORED

PARTS = ("encoder", "llm", "projector", "tokens", "head")                     # what can be trained, or frozen

# What the one model becomes, in stage 2, to see what a part of it is worth: each changes one thing.
# name -> (what it is, the parts that do not learn then)
CONTROLS = {
    "random-llm": ("the LLM's weights are drawn at random and stay so", {"llm"}),
    "no-llm": ("no LLM: the projector's output, averaged over each channel, goes into the head", {"llm", "tokens"}),
    "encoder-mlp": ("the encoder's features, averaged over each channel, go into an MLP (Chronos + MLP)",
                    {"llm", "tokens", "projector"}),
    "shuffled": ("the sensor embeddings of a window stand in a random order, always the same", set()),
    "text-only": ("every sample is 0: only the text tells windows apart", set()),
}


class Projector(nn.Sequential):
    """MLP from the encoder's width to the LLM's, GELU between: hidden (2048,) in the paper, (2048, 3072) its ablation."""

    def __init__(self, d_in, hidden, d_out):
        widths = [d_in, *hidden, d_out]
        layers = [nn.Linear(widths[0], widths[1])]
        for width, next_width in zip(widths[1:], widths[2:]):
            layers += [nn.GELU(), nn.Linear(width, next_width)]
        super().__init__(*layers)


class HeadLoss(torch.autograd.Function):
    """Cross entropy of hidden (N, D) @ weight (V, D)^T against targets (N,), summed -> a scalar, float32.

    Logits are made for a chunk of positions at a time and turned into their own gradient at once,
        d loss / d logits = softmax(logits) - onehot(target),
    so that no (N, V) tensor ever stands in memory, forward or backward, and no matmul is done twice
    (the idea of Liger-Kernel's fused linear cross entropy, arXiv 2410.10989, here in plain PyTorch).
    """
    CHUNK = 512                                                               # positions at a time

    @staticmethod
    def forward(ctx, hidden, weight, targets):
        loss = torch.zeros((), device=hidden.device)
        d_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        d_weight = torch.zeros_like(weight, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        for start in range(0, len(hidden), HeadLoss.CHUNK):
            here = slice(start, start + HeadLoss.CHUNK)
            part, wanted = hidden[here], targets[here, None]
            logits = F.linear(part, weight).float()                           # (chunk, V)
            top, true = logits.amax(-1, keepdim=True), logits.gather(-1, wanted)
            exps = logits.sub_(top).exp_()                                    # in place: the one large tensor
            total = exps.sum(-1, keepdim=True)
            loss += (total.log() + (top - true)).sum()                        # top - true first: it is 0 for a sure token
            if d_hidden is None and d_weight is None:
                continue
            d_logits = exps.div_(total).scatter_add_(-1, wanted, torch.full_like(true, -1)).to(weight.dtype)
            if d_hidden is not None:
                d_hidden[here] = d_logits @ weight
            if d_weight is not None:
                d_weight += d_logits.T @ part.to(weight.dtype)
        ctx.save_for_backward(d_hidden, d_weight)
        return loss

    @staticmethod
    def backward(ctx, d_loss):
        d_hidden, d_weight = ctx.saved_tensors
        return None if d_hidden is None else d_hidden * d_loss.to(d_hidden.dtype), \
            None if d_weight is None else d_weight * d_loss, None


class SensorLLM(nn.Module):
    """forward(batch) -> (loss summed over what counts, how much counts): sums, so that processes can be added up.

    With a class head (n_classes) the loss is stage 2's, otherwise stage 1's. new_rows are the embeddings of the new
    special tokens, a parameter of their own: the vocabulary gets neither gradient nor optimizer state.
    control: of CONTROLS, or None for the model itself; it needs a class head.
    """

    def __init__(self, encoder, chronos, llm, tokenizer, projector_hidden, n_classes=None, control=None):
        super().__init__()
        self.encoder, self.chronos, self.llm, self.control = encoder, chronos, llm, control
        self.vocab_size, self.sensor_id = tokenizer.vocab_size, tokenizer.sensor_id
        d_model = llm.config.d_model
        self.projector = Projector(encoder.config.d_model, projector_hidden, d_model)
        mean_row = llm.embed_tokens.weight.detach().mean(0, dtype=torch.float32)      # (D,)
        self.new_rows = nn.Parameter(mean_row.repeat(len(tokenizer.added), 1))
        self.head = nn.Linear(d_model, n_classes, bias=False) if n_classes else None
        n_channels = sum(token.endswith("_start>") for token in tokenizer.added)
        if control == "no-llm":
            self.head = nn.Linear(n_channels * d_model, n_classes, bias=False)
        elif control == "encoder-mlp":
            self.head = Projector(n_channels * encoder.config.d_model, projector_hidden, n_classes)
        self.register_buffer("class_weights", torch.ones(n_classes or 0), persistent=False)

    @staticmethod
    def part_of(name):
        """Which of PARTS a parameter belongs to."""
        return {"new_rows": "tokens"}.get(name, name.split(".")[0])

    def train_only(self, parts):
        """Freezes all but `parts`. Trained parameters are float32, whatever the frozen ones are."""
        for name, parameter in self.named_parameters():
            trained = self.part_of(name) in parts and not (self.head is not None and name == "llm.lm_head.weight")
            parameter.requires_grad_(trained)                                 # the class head takes the LM head's place
            if trained:
                parameter.data = parameter.data.float()

    def check_prompt(self, ids, series_lengths):
        """ValueError unless each series has its run of <ts>, one longer than itself, between its channel's markers."""
        is_sensor = F.pad(ids == self.sensor_id, (1, 1))                      # (B, T+2)
        starts = (is_sensor[:, 1:-1] & ~is_sensor[:, :-2]).nonzero()          # (runs, 2): row, first placeholder
        ends = (is_sensor[:, 1:-1] & ~is_sensor[:, 2:]).nonzero()
        runs = ends[:, 1] - starts[:, 1] + 1
        if runs.tolist() != (series_lengths + 1).tolist():
            raise ValueError(f"the prompts hold runs of {runs.tolist()} <ts>, "
                             f"the encoder gives {(series_lengths + 1).tolist()} vectors")
        around = F.pad(ids, (1, 1), value=-1)
        opener = around[starts[:, 0], starts[:, 1]] - self.sensor_id          # markers follow <ts>: start 1, end 2, ...
        closer = around[ends[:, 0], ends[:, 1] + 2] - self.sensor_id
        is_start = (opener > 0) & (opener % 2 == 1)
        if not (is_start & (closer == opener + 1)).all():
            raise ValueError("a run of <ts> does not stand between the start and the end marker of one channel")

    def sensor_features(self, series, series_lengths):
        """series (N, S) float, NaN on the left -> encoder features (sum of lengths + 1, D_enc), one after another."""
        if self.control == "text-only":
            series = series * 0                                               # NaN, the padding, stays NaN
        ids, mask, _, _ = self.chronos.encode(series)                         # (N, S+1)
        features = self.encoder(ids, mask)                                    # all channels of all rows at once
        steps = torch.arange(ids.shape[1], device=ids.device)
        return features[steps >= ids.shape[1] - 1 - series_lengths[:, None]]  # without the padding

    def sensor_embeddings(self, batch):
        """What the projector makes of a batch's series -> (sum of lengths + 1, D), one after another."""
        return self.projector(self.sensor_features(batch.series, batch.series_lengths).to(self.new_rows.dtype))

    def embed(self, batch):
        """A batch -> embeddings (B, T, D): words, new special tokens, and the sensors spliced over <ts>."""
        self.check_prompt(batch.ids, batch.series_lengths)
        is_new = batch.ids >= self.vocab_size
        x = self.llm.embed_tokens(batch.ids.masked_fill(is_new, 0))           # (B, T, D)
        x[is_new] = F.embedding(batch.ids[is_new] - self.vocab_size, self.new_rows).to(x.dtype)   # summed in a fixed order
        sensors = self.sensor_embeddings(batch)
        if self.control == "shuffled":
            counts = (batch.ids == self.sensor_id).sum(1).tolist()            # of each row
            sensors = torch.cat([row[np.random.default_rng(place).permutation(len(row))]
                                 for row, place in zip(sensors.split(counts), batch.examples)])
        x[batch.ids == self.sensor_id] = sensors.to(x.dtype)                  # the splice
        return x

    def class_logits(self, batch):
        """(B, n_classes) from the hidden state of each row's last real token; without an LLM, from each channel's mean."""
        if self.control in ("no-llm", "encoder-mlp"):
            x = self.sensor_embeddings(batch) if self.control == "no-llm" else \
                self.sensor_features(batch.series, batch.series_lengths)
            hidden = x.unflatten(0, (len(batch.series), -1)).mean(1)          # (B*C, S+1, width) -> (B*C, width)
            hidden = hidden.reshape(len(batch.labels), -1)                    # (B, C*width)
        else:
            last = F.one_hot(batch.mask.sum(1) - 1, batch.mask.shape[1]).bool()   # (B, T)
            hidden = self.llm(self.embed(batch), real=batch.mask, wanted=last)    # (B, D)
        return self.head(hidden.to(self.new_rows.dtype))

    def class_loss(self, logits, labels):
        """(weighted cross entropy summed, weights summed) of logits (B, n_classes) and labels (B,)."""
        weights = self.class_weights[labels]
        return (weights * F.cross_entropy(logits.float(), labels, reduction="none")).sum(), weights.sum()

    def answer_loss(self, batch):
        """(cross entropy summed, tokens counted) over the answers. Hidden states and logits are made for no other token."""
        targets = F.pad(batch.targets[:, 1:], (0, 1), value=IGNORED)          # (B, T): token t predicts token t + 1
        counts = targets != IGNORED
        hidden = self.llm(self.embed(batch), real=batch.mask, wanted=counts)  # (answer tokens, D)
        return HeadLoss.apply(hidden, self.llm.head_weight, targets[counts]), counts.sum()

    def forward(self, batch):
        if self.head is not None:
            return self.class_loss(self.class_logits(batch), batch.labels)
        return self.answer_loss(batch)


def class_weights(labels, n_classes):
    """Weights proportional to 1 / frequency that sum to 1 -> (n_classes,); a class without a window gets 0."""
    counts = torch.bincount(torch.as_tensor(labels), minlength=n_classes).float()
    weights = torch.where(counts > 0, 1 / counts.clamp(min=1), 0)
    return weights / weights.sum()
