"""Samples -> ids: scale a series, then cut the number line into bins (arXiv 2403.07815, 3.1).

    id = bin(scaled sample) + n_special_tokens

Id 0 is padding, 1 the end of the series; bins count from 1.

Two scalings share everything else:
    mean scaling         scaled = x / mean|x|                    Chronos' own
    standardisation      scaled = (x - mean) / std               SensorLLM's default
"""
import torch
import torch.nn.functional as F


def mean_scale(samples, observed):
    """(offset, scale), each (B,): offset 0, scale = mean |x| of the observed samples, or 1."""
    sizes = samples.abs().where(observed, 0)
    scale = sizes.sum(-1) / observed.sum(-1)
    scale = scale.where(scale > 0, 1.0)       # NaN > 0 is false: 1 also where there is no sample
    return torch.zeros_like(scale), scale


def stan_normalize(samples, observed):
    """(offset, scale), each (B,): mean and sqrt(population variance + 1e-8) of the observed."""
    n_observed = observed.sum(-1)
    mean = samples.where(observed, 0).sum(-1) / n_observed
    squares = (samples - mean[:, None]).square()
    variance = squares.where(observed, 0).sum(-1) / n_observed
    scale = (variance + 1e-8).sqrt()
    has_samples = n_observed > 0
    return mean.where(has_samples, 0.0), scale.where(has_samples, 1.0)


SCALINGS = {"MeanScaleUniformBins": mean_scale, "StanNormalizeUniformBins": stan_normalize}


class ChronosTokenizer:
    """The uniform-bin tokenizer of a checkpoint with one of SCALINGS.

    statistics: the Statistics that the model gets beside the ids; None, as in the paper: none.
    Centers and boundaries are float32, as in chronos-forecasting."""

    def __init__(self, config, scaling="StanNormalizeUniformBins", statistics=None):
        self.config = config
        self.scaling = SCALINGS[scaling]
        self.statistics = statistics
        n_bins = config.n_tokens - config.n_special_tokens - 1
        self.centers = torch.linspace(config.low_limit, config.high_limit, n_bins)       # (n_bins,)
        between = (self.centers[1:] + self.centers[:-1]) / 2
        outermost = torch.tensor([1e20])
        self.boundaries = torch.cat([-outermost, between, outermost])     # (n_bins + 1,)

    def encode(self, samples):
        """Samples (B, S) -> ids, mask, each (B, S'+1); offset, scale, each (B,). NaN: unobserved.

        S' is min(S, context_length): a longer series keeps its last samples. The last id is EOS
        with mask True. An unobserved sample gets the padding id and mask False."""
        config = self.config
        samples = samples[:, -config.context_length:]             # (B, S')
        observed = ~samples.isnan()
        offset, scale = self.scaling(samples, observed)
        scaled = (samples - offset[:, None]) / scale[:, None]
        boundaries = self.boundaries.to(scaled)
        bins = torch.bucketize(scaled, boundaries, right=True)    # on a boundary: the upper bin
        ids = bins + config.n_special_tokens
        ids = ids.clamp(0, config.n_tokens - 1)
        ids = ids.where(observed, config.pad_id)
        ids = F.pad(ids, (0, 1), value=config.eos_id)             # (B, S'+1)
        mask = F.pad(observed, (0, 1), value=True)
        return ids, mask, offset, scale

    def decode(self, ids, offset, scale):
        """Bin ids (B, S), offset and scale (B,) -> samples (B, S), exact to half a bin."""
        bins = ids - self.config.n_special_tokens - 1
        bins = bins.clamp(0, len(self.centers) - 1)
        scaled = self.centers.to(ids.device)[bins]
        return scaled * scale[:, None] + offset[:, None]
