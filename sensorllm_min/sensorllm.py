"""The whole model: Chronos tokenizer, T5 encoder, projector and LLaMA, joined at a prompt's <ts>.

    one channel, (S,) samples
      | tokenise    Chronos' bins                     ids       (S+1,)
      | encode      T5, frozen                        features  (S+1, D_enc)
      | project     MLP, learns                       sensors   (S+1, D)
      | splice      over the prompt's <ts>            x         (T, D)
      | decode      LLaMA, frozen                     hidden    (T, D)
      | score       stage 1: the answer's tokens      stage 2: one of the activities

Reference: SensorLLM, arXiv 2410.10624.
"""
import torch
import torch.nn.functional as F
from torch import nn

from .batch import IGNORED

LABEL_SMOOTHING = 0.1                   # of a class head with statistics, in training
PARTS = ("encoder", "llm", "projector", "tokens", "head")         # what can be trained, or frozen


class Projector(nn.Sequential):
    """An MLP with GELU; hidden: its hidden widths, (2048,) or, in an ablation, (2048, 3072)."""

    def __init__(self, d_in, hidden, d_out):
        widths = [d_in, *hidden, d_out]
        layers = [nn.Linear(widths[0], widths[1])]
        for width, next_width in zip(widths[1:], widths[2:]):
            layers += [nn.GELU(), nn.Linear(width, next_width)]
        super().__init__(*layers)
        self.hidden = hidden


class SensorLLM(nn.Module):
    """forward(batch) -> (summed loss, its weight): sums, so that processes can add them up.

    The loss is that of stage 2 if there is a class head (n_classes), else that of stage 1. The
    special tokens (<ts>, channel markers, padding) have embeddings of their own, (n_special, D),
    which learn while the vocabulary gets neither gradients nor optimizer state. With statistics
    (chronos.statistics) each feature also carries those of its series, and the class head reads
    what the LLM makes of each channel, not the last token alone."""

    def __init__(self, encoder, chronos, llm, tokenizer, projector_hidden, n_classes=None):
        super().__init__()
        self.encoder = encoder
        self.chronos = chronos
        self.llm = llm
        self.tokenizer = tokenizer
        self.vocab_size = tokenizer.vocab_size
        self.sensor_id = tokenizer.sensor_id
        d_model = llm.config.d_model
        self.d_features = encoder.config.d_model
        if chronos.statistics:
            self.d_features += chronos.statistics.n
        self.projector = Projector(self.d_features, projector_hidden, d_model)
        words = llm.embed_tokens.weight.detach()                  # (V, D)
        mean_embedding = words.mean(0, dtype=torch.float32)       # (D,)
        self.special_embeddings = nn.Parameter(mean_embedding.repeat(len(tokenizer.added), 1))
        self.head = None
        weights = None
        if n_classes:
            self.head = self.new_head(len(tokenizer.markers), n_classes)
            weights = torch.ones(n_classes)                       # of the classes in the loss
        self.register_buffer("class_weights", weights)

    def new_head(self, n_channels, n_classes):
        n_read = n_channels + 1 if self.chronos.statistics else 1
        return nn.Linear(n_read * self.llm.config.d_model, n_classes, bias=False)

    # ---- what happens to a sample ----

    def forward(self, batch):
        if self.head is not None:                                 # stage 2
            logits = self.class_logits(batch)                     # (B, n_classes)
            weights = self.class_weights[batch.labels]            # (B,): rare activities count more
            smoothing = LABEL_SMOOTHING if self.training and self.chronos.statistics else 0.0
            losses = F.cross_entropy(logits.float(), batch.labels, reduction="none",
                                     label_smoothing=smoothing)
            return (weights * losses).sum(), weights.sum()

        x = self.embed(batch)                                     # tokenise ... splice: (B, T, D)
        targets = F.pad(batch.targets[:, 1:], (0, 1), value=IGNORED)  # token t predicts token t + 1
        in_answer = targets != IGNORED                            # (B, T)
        hidden = self.llm(x, wanted=in_answer)                    # decode: (answer tokens, D)
        loss = F.linear_cross_entropy(                            # score
            hidden, self.llm.head_weight, targets[in_answer], reduction="sum",
            options=nn.LinearCrossEntropyOptions())               # never holds all the logits
        return loss, in_answer.sum()

    def class_logits(self, batch):
        """Scores (B, n_classes) of the activities, from the hidden state of the last real token;
        with statistics also from the mean over the <ts> of each channel."""
        x = self.embed(batch)                                     # tokenise ... splice: (B, T, D)
        last = batch.mask.sum(1) - 1                              # (B,)
        wanted = F.one_hot(last, x.shape[1]).bool()               # (B, T)
        if self.chronos.statistics:
            wanted = wanted | (batch.ids == self.sensor_id)
        hidden = self.llm(x, wanted=wanted)                       # decode: (wanted tokens, D)
        hidden = hidden.to(self.special_embeddings.dtype)
        if self.chronos.statistics:
            hidden = hidden.unflatten(0, (len(x), -1))            # (B, C*(S+1) + 1, D)
            channels = channel_means(hidden[:, :-1].flatten(0, 1), batch)         # (B, C*D)
            hidden = torch.cat([channels, hidden[:, -1]], -1)
        return self.head(hidden)                                  # score: (B, n_classes)

    def embed(self, batch):
        """The prompts as the decoder reads them, (B, T, D); generation starts here, too."""
        features = self.encode(batch)                             # tokenise, encode: (steps, D_enc)
        sensors = self.projector(features)                        # project: (steps, D)
        return self.splice(batch, sensors)                        # splice: (B, T, D)

    def encode(self, batch):
        """Samples -> features (steps, D_enc) of all series of the batch, one after another."""
        ids, observed, _, _ = self.chronos.encode(batch.series)   # tokenise: (N, S+1)
        ids = ids.to(batch.ids.device)
        observed = observed.to(batch.ids.device)
        features = self.encoder(ids, observed)                    # encode: (N, S+1, D_enc)
        if self.chronos.statistics:
            statistics = self.chronos.statistics(batch)           # (N, n)
            statistics = statistics.to(features.dtype).to(features.device)
            statistics = statistics[:, None].expand(-1, ids.shape[1], -1)
            features = torch.cat([features, statistics], -1)
        steps = torch.arange(ids.shape[1], device=ids.device)
        first = ids.shape[1] - 1 - batch.series_lengths           # (N,): where each series begins
        is_real = steps >= first[:, None]                         # (N, S+1)
        return features[is_real].to(self.special_embeddings.dtype)

    def splice(self, batch, sensors):
        """Embeds the prompts' tokens and writes the sensors (steps, D) over their <ts>, in order.
        Raises a ValueError if a row has another number of <ts> than of samples and series' ends."""
        is_sensor = batch.ids == self.sensor_id                   # (B, T)
        n_steps = (batch.series_lengths + 1).view(len(batch.ids), -1).sum(1)      # (B,)
        if not torch.equal(is_sensor.sum(1), n_steps):
            raise ValueError(f"the prompts hold {is_sensor.sum(1).tolist()} <ts>, the encoder "
                             f"gives {n_steps.tolist()} vectors")
        is_special = batch.ids >= self.vocab_size                 # (B, T)
        word_ids = batch.ids.masked_fill(is_special, 0)
        x = self.llm.embed_tokens(word_ids)                       # (B, T, D)
        special_ids = batch.ids[is_special] - self.vocab_size
        # unlike that of indexing, the gradient does not depend on the number of threads
        special = F.embedding(special_ids, self.special_embeddings)
        x[is_special] = special.to(x.dtype)
        x[is_sensor] = sensors.to(x.dtype)
        return x

    # ---- what learns ----

    @staticmethod
    def part_of(name):
        """The part (of PARTS) that a parameter or the class weights belong to."""
        parts = {"special_embeddings": "tokens", "class_weights": "head"}
        return parts.get(name, name.split(".")[0])

    def train_only(self, parts):
        """Freezes everything but `parts`. Trained parameters become float32."""
        for name, parameter in self.named_parameters():
            unused = self.head is not None and name == "llm.lm_head.weight"
            trained = self.part_of(name) in parts and not unused
            parameter.requires_grad_(trained)
            if trained:
                parameter.data = parameter.data.float()


def channel_means(vectors, batch):
    """Vectors (B*C*(S+1), width) of windows of one length -> their means, (B, C*width)."""
    means = vectors.unflatten(0, (len(batch.series), -1)).mean(1)                 # (B*C, width)
    return means.reshape(len(batch.labels), -1)


def class_weights(labels, n_classes):
    """Weights (n_classes,) proportional to 1 / frequency, with sum 1; 0 for an absent class."""
    counts = torch.bincount(torch.as_tensor(labels), minlength=n_classes).float()
    weights = torch.where(counts > 0, 1 / counts.clamp(min=1), 0)
    return weights / weights.sum()
