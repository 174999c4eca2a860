"""Generated features of known kinds, each with a difficulty that teachers' features have.

Every set begins as Gaussian with a mean and a std of its own for each channel, as the features of a ViT have:
the means have 0.75 of the stds' size, so that two tokens have a cosine of about 0.36.
"""

import numpy as np
import torch

OUTLIER_CHANNELS = (5, 70, 333)
_MEAN_SHARE = 0.75
_OUTLIER = 30.0  # deviations
_OUTLIER_TOKENS = 0.02
_DEGREES = 3  # of freedom of Student's t


def _channels(rng, width):
    """Mean and deviation (D,) of every channel."""
    deviation = np.exp(0.3 * rng.normal(size=width))
    return _MEAN_SHARE * deviation * rng.normal(size=width), deviation


def plain(rng, shape):
    """Gaussian."""
    mean, deviation = _channels(rng, shape[-1])
    return mean + deviation * rng.normal(size=shape)


def constant_outliers(rng, shape):
    """Three channels are 30 deviations off in every token."""
    features = plain(rng, shape)
    features[..., OUTLIER_CHANNELS] += _OUTLIER
    return features


def rare_outliers(rng, shape):
    """Three channels are 30 deviations off in one token of 50."""
    features = plain(rng, shape)
    tokens = rng.random(shape[:-1]) < _OUTLIER_TOKENS
    features[..., OUTLIER_CHANNELS] += _OUTLIER * tokens[..., None]
    return features


def heavy_tails(rng, shape):
    """Student's t with three degrees of freedom in the place of the Gaussian."""
    mean, deviation = _channels(rng, shape[-1])
    return mean + deviation * rng.standard_t(_DEGREES, size=shape)


SETS = {
    "plain": plain,
    "constant outliers": constant_outliers,
    "rare outliers": rare_outliers,
    "heavy tails": heavy_tails,
}


def feature_set(name, *shape, seed=0):
    """Return features (..., D) float32 of a set."""
    return torch.from_numpy(SETS[name](np.random.default_rng([seed, len(name)]), shape).astype(np.float32))
