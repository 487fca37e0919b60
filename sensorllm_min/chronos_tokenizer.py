"""Samples -> ids: scale a series, then cut the number line into uniform bins (Chronos, arXiv 2403.07815, section 3.1).

    id = bin(scaled sample) + n_special_tokens        0 is padding, 1 the end of the series; bins count from 1

Two scalings share everything else:
    mean scaling         scaled = x / mean|x|                      Chronos' own
    standardisation      scaled = (x - mean) / std                 SensorLLM's default
"""
import torch


def mean_scale(samples, observed):
    """(offset, scale) of mean scaling: offset 0, scale = mean |x| over the observed samples, 1 where that is not > 0."""
    n_observed = observed.sum(-1)
    scale = samples.abs().where(observed, 0).sum(-1) / n_observed
    return torch.zeros_like(scale), scale.where(scale > 0, 1.0)               # NaN > 0 is false: no sample, scale 1


def stan_normalize(samples, observed):
    """(offset, scale) of standardisation: mean and sqrt(population variance + 1e-8) over the observed samples."""
    n_observed = observed.sum(-1)
    mean = samples.where(observed, 0).sum(-1) / n_observed
    variance = (samples - mean[:, None]).square().where(observed, 0).sum(-1) / n_observed
    seen = n_observed > 0
    return mean.where(seen, 0.0), (variance + 1e-8).sqrt().where(seen, 1.0)


SCALINGS = {"MeanScaleUniformBins": mean_scale, "StanNormalizeUniformBins": stan_normalize}


def pad_left(series):
    """A list of 1-D series of any lengths -> (B, longest) with NaN on the left, as Chronos stacks its contexts."""
    series = [torch.as_tensor(one) for one in series]
    longest = max(len(one) for one in series)
    return torch.stack([torch.nn.functional.pad(one, (longest - len(one), 0), value=float("nan")) for one in series])


class ChronosTokenizer:
    """The uniform-bin tokenizer of one checkpoint with one of SCALINGS.

    Reference: chronos-forecasting, `MeanScaleUniformBins`. Computation stays in the dtype of the samples;
    centers and boundaries are float32, as there.
    """

    def __init__(self, config, scaling="StanNormalizeUniformBins"):
        self.config = config
        self.scaling = SCALINGS[scaling]
        n_bins = config.n_tokens - config.n_special_tokens - 1
        self.centers = torch.linspace(config.low_limit, config.high_limit, n_bins)        # (n_bins,)
        between = (self.centers[1:] + self.centers[:-1]) / 2
        self.boundaries = torch.cat([torch.tensor([-1e20]), between, torch.tensor([1e20])])  # (n_bins + 1,)

    def encode(self, samples):
        """samples (B, S) float, NaN where unobserved -> ids (B, S'+1), mask (B, S'+1), offset (B,), scale (B,).

        S' is min(S, context_length): a longer series keeps its last samples. The last id is EOS, its mask True.
        An unobserved sample gets the padding id and mask False.
        """
        samples = samples[:, -self.config.context_length:]
        observed = ~samples.isnan()
        offset, scale = self.scaling(samples, observed)
        scaled = (samples - offset[:, None]) / scale[:, None]
        # right=True: a value equal to a boundary goes up
        ids = torch.bucketize(scaled, self.boundaries.to(scaled), right=True) + self.config.n_special_tokens
        ids = ids.clamp(0, self.config.n_tokens - 1).where(observed, self.config.pad_id)
        eos = ids.new_full((len(ids), 1), self.config.eos_id)
        return torch.cat([ids, eos], 1), torch.cat([observed, torch.ones_like(eos, dtype=torch.bool)], 1), offset, scale

    def decode(self, ids, offset, scale):
        """Bin ids (B, S), offset (B,), scale (B,) -> samples (B, S): exact up to half a bin within the limits."""
        bins = (ids - self.config.n_special_tokens - 1).clamp(0, len(self.centers) - 1)
        return self.centers.to(ids.device)[bins] * scale[:, None] + offset[:, None]
