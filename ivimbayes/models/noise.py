"""Noise models: the density of a voxel's measurements and the sampler of the same density, side by side.

Conventions: ``signal``, ``mean`` (the signal without noise), ``curve`` (that for S0 = 1) and ``averages``
have measurements on their last axis; ``sigma``, and mean and standard deviation of S0, broadcast against the
axes before it. A measurement that is the mean of n images has the noise of one image with sigma / sqrt(n);
``averages`` holds n. Densities are evaluated with numpy or pytensor: pass the functions of the library.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import chndtr, ndtr, stdtr, stdtrit

from ivimbayes.models.bessel import NUMPY, log_i0e

Array = np.ndarray[Any, np.dtype[np.float64]]
T_NU = 4.0  # degrees of freedom of Student-t noise
RICIAN_FAR = 50.0  # standard deviations, beyond which magnitudes are nearly normal


@dataclass(frozen=True)
class Noise:
    """A noise model.

    Attributes
    ----------
    long_name : str
    marginal : bool
        S0 is integrated out of the density; otherwise it is sampled with the voxel's parameters.
    magnitude : bool
        Signals are magnitudes, never negative.
    logp : callable
        ``logp(signal, mean, sigma, averages, xp)``: log-density of each measurement. ``xp`` has log, log1p,
        where, maximum and minimum.
    draw_signal : callable
        ``draw_signal(rng, curve, S0, sigma, averages)``: measurements given S0.
    cdf : callable
        ``cdf(signal, mean, sigma, averages)``: probability of a smaller measurement.
    """

    long_name: str
    marginal: bool
    magnitude: bool
    logp: Callable[..., Any]
    draw_signal: Callable[..., Array]
    cdf: Callable[..., Array]


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


def _gaussian_logp(signal: Any, mean: Any, sigma: Any, averages: Any, xp: Any = NUMPY) -> Any:
    variance = sigma[..., None] ** 2 / averages
    return -0.5 * ((signal - mean) ** 2 / variance + xp.log(2 * np.pi * variance))


def _rician_logp(signal: Any, mean: Any, sigma: Any, averages: Any, xp: Any = NUMPY) -> Any:
    """Log-density of the magnitude of mean + complex Gaussian noise (Rice 1944); signals are positive.

    ln(y / s²) - (y - m)² / 2 s² + ln[I0(z) exp(-z)], z = y m / s²: no large terms cancel.
    """
    variance = sigma[..., None] ** 2 / averages
    mean = xp.maximum(mean, -mean)
    z = signal * mean / variance
    return xp.log(signal / variance) - 0.5 * (signal - mean) ** 2 / variance + log_i0e(z, xp)


def _student_t_logp(signal: Any, mean: Any, sigma: Any, averages: Any, xp: Any = NUMPY) -> Any:
    """Log-density of Student-t noise of `T_NU` = 4 degrees of freedom and scale sigma."""
    variance = sigma[..., None] ** 2 / averages
    constant = np.log(3.0 / 8.0)  # of Γ(5/2) / (Γ(2) sqrt(4 π))
    return constant - 0.5 * xp.log(variance) - 2.5 * xp.log1p((signal - mean) ** 2 / (T_NU * variance))


def gaussian_draw_signal(
    rng: np.random.Generator, curve: Array, S0: Array, sigma: Array, averages: Array
) -> Array:
    """Draw measurements S0 g + Normal(0, sigma² / n)."""
    centre, scale = S0[..., None] * curve, sigma[..., None] / np.sqrt(averages)
    return np.asarray(centre + scale * rng.standard_normal(np.broadcast_shapes(centre.shape, scale.shape)))


def _rician_draw_signal(
    rng: np.random.Generator, curve: Array, S0: Array, sigma: Array, averages: Array
) -> Array:
    real = gaussian_draw_signal(rng, curve, S0, sigma, averages)
    return np.hypot(real, sigma[..., None] / np.sqrt(averages) * rng.standard_normal(real.shape))


def _student_t_draw_signal(
    rng: np.random.Generator, curve: Array, S0: Array, sigma: Array, averages: Array
) -> Array:
    centre, scale = S0[..., None] * curve, sigma[..., None] / np.sqrt(averages)
    shape = np.broadcast_shapes(centre.shape, scale.shape)
    return np.asarray(centre + scale * stdtrit(T_NU, rng.uniform(size=shape)))


def _gaussian_cdf(signal: Array, mean: Array, sigma: Array, averages: Array) -> Array:
    return np.asarray(ndtr((signal - mean) * np.sqrt(averages) / sigma[..., None]))


def _rician_cdf(signal: Array, mean: Array, sigma: Array, averages: Array) -> Array:
    """Probability of a smaller magnitude: its square over the variance is a noncentral chi-squared.

    Of means above 50 standard deviations it is taken for a normal about sqrt(mean² + variance), within 3e-5.
    """
    sd = sigma[..., None] / np.sqrt(averages)
    y, m = (np.asarray(v) for v in np.broadcast_arrays(signal / sd, np.abs(mean) / sd))
    found, near = ndtr(y - np.sqrt(m**2 + 1)), m < RICIAN_FAR
    found[near] = chndtr(y[near] ** 2, 2, m[near] ** 2)
    return np.asarray(found)


def _student_t_cdf(signal: Array, mean: Array, sigma: Array, averages: Array) -> Array:
    return np.asarray(stdtr(T_NU, (signal - mean) * np.sqrt(averages) / sigma[..., None]))


NOISES: dict[str, Noise] = {
    "gaussian": Noise("Gaussian", True, False, _gaussian_logp, gaussian_draw_signal, _gaussian_cdf),
    "rician": Noise("Rician", False, True, _rician_logp, _rician_draw_signal, _rician_cdf),
    "student_t": Noise("Student-t", False, False, _student_t_logp, _student_t_draw_signal, _student_t_cdf),
}
