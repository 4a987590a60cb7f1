"""Noise models: the density of a voxel's measurements and the sampler of the same density, side by side.

Conventions: ``signal``, ``curve`` and ``averages`` have measurements on their last axis; ``sigma``, ``mean``
and ``sd`` broadcast against the axes before it. ``curve`` is the signal for S0 = 1. A measurement that is
the mean of n images has noise sigma / sqrt(n); ``averages`` holds n.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class Noise:
    """A noise model with S0 integrated out.

    Attributes
    ----------
    logp : callable
        ``logp(signal, curve, sigma, mean, sd, averages, log)``: log-density over the last axis.
    draw_S0 : callable
        ``draw_S0(rng, signal, curve, sigma, mean, sd, averages)``: S0 given the measurements.
    draw_signal : callable
        ``draw_signal(rng, curve, S0, sigma, averages)``: measurements given S0.
    """

    logp: Callable[..., Any]
    draw_S0: Callable[..., Array]
    draw_signal: Callable[..., Array]


def gaussian_logp(
    signal: Any, curve: Any, sigma: Any, mean: Any, sd: Any, averages: Any, log: Callable[[Any], Any] = np.log
) -> Any:
    """Log-density of signals S0 g + noise with S0 ~ Normal(mean, sd²) integrated out.

    With r = y - mean g, G = sum n g² and a = sum n g r / G over K measurements of n averages, minus half of
    [sum n (r - a g)² + a² G c / (G + c)] / sigma² + (K-1) ln sigma² + ln(sigma² + sd² G) + K ln 2π
    - sum ln n,
    where c = sigma²/sd². No large terms cancel, whatever the signal-to-noise ratio.
    """
    residual = signal - mean[..., None] * curve
    G = (averages * curve**2).sum(-1)
    shift = (averages * curve * residual).sum(-1) / G
    variance, K = sigma**2, signal.shape[-1]
    c = variance / sd**2
    square = (averages * (residual - shift[..., None] * curve) ** 2).sum(-1) + shift**2 * G * c / (G + c)
    determinant = (K - 1) * log(variance) + log(variance + sd**2 * G) - log(averages).sum(-1)
    return -0.5 * (square / variance + determinant + K * np.log(2 * np.pi))


def gaussian_draw_S0(
    rng: np.random.Generator,
    signal: Array,
    curve: Array,
    sigma: Array,
    mean: Array,
    sd: Array,
    averages: Array,
) -> Array:
    """Draw S0 given the measurements: a Normal, the product of its population and the likelihood."""
    precision = 1 / sd**2 + (averages * curve**2).sum(-1) / sigma**2
    centre = (mean / sd**2 + (averages * curve * signal).sum(-1) / sigma**2) / precision
    return np.asarray(centre + rng.standard_normal(np.shape(centre)) / np.sqrt(precision))


def gaussian_draw_signal(
    rng: np.random.Generator, curve: Array, S0: Array, sigma: Array, averages: Array
) -> Array:
    """Draw measurements S0 g + Normal(0, sigma² / n)."""
    centre = S0[..., None] * curve
    scale = sigma[..., None] / np.sqrt(averages)
    return np.asarray(centre + scale * rng.standard_normal(np.broadcast_shapes(centre.shape, scale.shape)))


NOISES: dict[str, Noise] = {"gaussian": Noise(gaussian_logp, gaussian_draw_S0, gaussian_draw_signal)}
