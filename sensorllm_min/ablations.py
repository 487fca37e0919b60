"""Stage 2 without one part of the model: each class changes one thing.

They show what the part is worth: `train_har.py --compare NAME`, or `--compare` for all of them.
"""
from torch import nn

from .sensorllm import Projector, SensorLLM, channel_means


class NoLLM(SensorLLM):
    """No LLM: the projector's output, averaged over each channel, goes into the head."""

    def new_head(self, n_channels, n_classes):
        return nn.Linear(n_channels * self.llm.config.d_model, n_classes, bias=False)

    def class_logits(self, batch):
        sensors = self.projector(self.encode(batch))              # (B*C*(S+1), D)
        return self.head(channel_means(sensors, batch))


class EncoderMLP(SensorLLM):
    """Chronos + MLP: the encoder's features, averaged over each channel, go into an MLP."""

    def new_head(self, n_channels, n_classes):
        return Projector(n_channels * self.d_features, self.projector.hidden, n_classes)

    def class_logits(self, batch):
        features = self.encode(batch)                             # (B*C*(S+1), D_enc)
        return self.head(channel_means(features, batch))


class StatisticsMLP(SensorLLM):
    """No encoder and no LLM: statistics of the window, as for a random forest, go into an MLP."""

    def new_head(self, n_channels, n_classes):
        return Projector(n_channels * self.chronos.statistics.n, self.projector.hidden, n_classes)

    def class_logits(self, batch):
        statistics = self.chronos.statistics(batch)               # (N, n)
        statistics = statistics.to(self.special_embeddings.dtype).to(batch.ids.device)
        return self.head(statistics.reshape(len(batch.labels), -1))


# name -> (the model, the parts that do not learn)
ABLATIONS = {
    "random-llm": (SensorLLM, set()),                             # random weights: `build_model`
    "no-llm": (NoLLM, {"llm", "tokens"}),
    "encoder-mlp": (EncoderMLP, {"llm", "tokens", "projector"}),
    "statistics": (StatisticsMLP, {"llm", "tokens", "projector", "encoder"}),
}
