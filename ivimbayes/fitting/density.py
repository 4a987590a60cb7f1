# mypy: disallow_untyped_defs=False
"""Log-density of a region in its sampling space, and the gradient, compiled once on a machine.

The density is that of `build_model`, in the same unconstrained coordinates: mu, ln sd, logit of the partial
correlations, S0_roi, ln S0_sd, ln sigma, of a mixture also logit share and shift over sd, with image effects
ln of their standard deviation, z of every voxel (see `Informed`), and with image effects z of each image (see
`ivimbayes.fitting.image_effects`); of a mean curve ln sigma and z. The gradient is written by hand. What a
block of voxels adds is in `ivimbayes.fitting.blocks`. The sampler may see a linear map of the
hyperparameters' coordinates (`unstretched`).
"""

import math
from functools import cache
from typing import Any

import numba as nb
import numpy as np
from numba import types

from ivimbayes.fitting.blocks import make_adjoints, mix, voxels_density
from ivimbayes.fitting.image_density import density_with_effects
from ivimbayes.fitting.packing import GAUSSIAN, RICIAN, STUDENT_T, unpack
from ivimbayes.models.spec import SECOND_SHAPES, SECOND_SHIFT
from ivimbayes.numerics.arithmetic import Array, scalar_logistic
from ivimbayes.numerics.jit import Vector, allocating_jit, c_function, jit, load, missing, separate
from ivimbayes.numerics.noise import NOISE_KINDS, gaussian, rician, student_t
from ivimbayes.numerics.triangular import inverse_gram, partial_cholesky, product


@allocating_jit
def hyperparameters(x, region):
    """Mu, sd, partial correlations, (S0_roi, S0_sd, sigma, tau), (share, shift) and where z begins."""
    P, pairs = region.centre.size, region.shapes.size
    mu, sd, r = np.empty(P), np.empty(P), np.zeros(pairs)
    scalars, second = np.zeros(4), np.zeros(1 + P)
    if region.pooled == 0.0:
        for i in range(P):
            mu[i], sd[i] = region.centre[i], region.width[i]
        scalars[0], scalars[1], scalars[2] = region.S0[0], region.S0[1], math.exp(x[0])
        return mu, sd, r, scalars, second, 1
    h = 2 * P + pairs
    scalars[0], scalars[1], scalars[2] = x[h], math.exp(x[h + 1]), math.exp(x[h + 2])
    for i in range(P):
        mu[i], sd[i] = x[i], math.exp(x[P + i])
    for n in range(pairs):
        r[n] = math.tanh(0.5 * x[2 * P + n])
    first = h + 3
    if region.mixed != 0.0:
        second[0] = scalar_logistic(x[first])
        for i in range(P):
            second[1 + i] = sd[i] * x[first + 1 + i]
        first += 1 + P
    if region.images > 0:
        scalars[3] = math.exp(x[first])
        first += 1
    return mu, sd, r, scalars, second, first


@allocating_jit
def latent_population(mu, sd, r, scalars, Q):
    """Mean, Cholesky factor L and inverse covariance of a voxel's latents, that of theta without S0 first."""
    P = mu.size
    C, means, L = partial_cholesky(r, P), np.empty(Q), np.zeros((Q, Q))
    for i in range(P):
        means[i] = mu[i]
        for j in range(P):
            L[i, j] = sd[i] * C[i, j]
    for i in range(P, Q):
        means[i], L[i, i] = scalars[0], scalars[1]
    return means, L, inverse_gram(L, Q)


@jit
def _second_prior(apart, second, second_bar, sd, gradient):
    """Prior of logit share and of the shift over sd; their gradient set."""
    a, b, share = SECOND_SHAPES[0], SECOND_SHAPES[1], second[0]
    total = a * math.log(share) + b * math.log1p(-share)
    gradient[0] = second_bar[0] + a - (a + b) * share
    for i in range(sd.size):
        total -= 0.5 * (apart[i] / SECOND_SHIFT) ** 2
        gradient[1 + i] = second_bar[1 + i] * sd[i] - apart[i] / SECOND_SHIFT**2
    return total


@allocating_jit
def unstretched(x, block):
    """Coordinates from those that are sampled: the hyperparameters' are a linear map of theirs."""
    H = int(block[18])
    matrix = block.size - H * H
    y = x.copy()
    for i in range(H):
        y[i] = block[matrix - H + i]
        for j in range(H):
            y[i] += block[matrix + i * H + j] * x[j]
    return y


@allocating_jit
def stretch_gradient(gradient, block):
    """Take the gradient in the coordinates back to those that are sampled."""
    H = int(block[18])
    matrix, by_coordinate = block.size - H * H, gradient[:H].copy()
    for j in range(H):
        gradient[j] = 0.0
        for i in range(H):
            gradient[j] += block[matrix + i * H + j] * by_coordinate[i]


@allocating_jit
def add_covariance(region, sd, r, L, S, S_bar, gradient):
    """Add to the gradient in ln sd and the partial correlations the part that depends on the covariance."""
    # Sigma⁻¹ = (L L')⁻¹, so L̄ = -2 tril(Sigma⁻¹ S̄ L⁻ᵀ); L = diag(sd) C(r), d r = (1 - r²) / 2 d x
    P, V = sd.size, region.voxels
    T = product(product(S, S_bar, P), product(S, L, P), P)
    for i in range(P):
        row = i * (i - 1) // 2
        for j in range(i + 1):
            bar = -2 * T[i, j]
            if i == j:
                bar -= V / L[i, i]
            gradient[i] += bar * L[i, j]
            for k in range(j):
                gradient[P + row + k] -= 0.5 * bar * L[i, j] * r[row + k]
            if j < i:
                rest = sd[i]
                for k in range(j):
                    rest *= math.sqrt((1.0 - r[row + k]) * (1.0 + r[row + k]))
                gradient[P + row + j] += 0.5 * bar * rest * (1 - r[row + j] ** 2)


@separate(allocates=True)
def region_density(x: Vector, gradient: Vector, block: Vector) -> float:
    """Log-density of a region and its gradient.

    Parameters
    ----------
    x : ndarray (coordinate,)
        Unconstrained coordinates, in the order that the module's docstring gives.
    gradient : ndarray (coordinate,)
        Filled.
    block : ndarray
        From `pack_region`.

    Returns
    -------
    float
    """
    region = unpack(block)
    P, pairs, V, Q = region.centre.size, region.shapes.size, region.voxels, region.shift.shape[1]
    if block[18] > 0.0:
        x = unstretched(x, block)
    mu, sd, r, scalars, second, first = hyperparameters(x, region)
    means, L, S = latent_population(mu, sd, r, scalars, Q)
    total, adjoints = region.constant, make_adjoints(P, Q)
    if region.images > 0:
        total += density_with_effects(x, first, gradient, block, means, L, S, scalars, second, adjoints)
    else:
        total += voxels_density(x, first, gradient, region, means, L, S, scalars, second, adjoints)
    S_bar, mu_bar, scalars_bar, second_bar = adjoints
    for i in range(P, Q):  # S0: its mean, and its variance from the inverse variance
        scalars_bar[0] += mu_bar[i]
        scalars_bar[1] += -S_bar[i, i] * S[i, i] * S[i, i] - 0.5 * V * S[i, i]
    sigma = scalars[2] / region.sigma_scale
    total += math.log(scalars[2]) - 0.5 * sigma**2
    h = 2 * P + pairs
    at_sigma = h + 2 if region.pooled != 0.0 else 0
    gradient[at_sigma] = 2 * scalars[2] ** 2 * scalars_bar[2] + 1 - sigma**2
    if region.pooled == 0.0:
        return total
    from_mean, spread = (scalars[0] - region.S0[0]) / region.S0[1], scalars[1] / region.S0[2]
    total += x[h + 1] - 0.5 * (from_mean**2 + spread**2)
    gradient[h] = scalars_bar[0] - from_mean / region.S0[1]
    gradient[h + 1] = 2 * scalars[1] ** 2 * scalars_bar[1] + 1 - spread**2
    for i in range(P):
        from_mean, spread = (mu[i] - region.centre[i]) / region.width[i], sd[i] / region.spread[i]
        total += x[P + i] - 0.5 * (from_mean**2 + spread**2)
        gradient[i] = mu_bar[i] - from_mean / region.width[i]
        gradient[P + i] = 1 - spread**2
    if region.mixed != 0.0:
        total += _second_prior(x[h + 4 : h + 4 + P], second, second_bar, sd, gradient[h + 3 : h + 4 + P])
        for i in range(P):
            gradient[P + i] += second_bar[1 + i] * second[1 + i]
    if region.images > 0:
        gradient[first - 1] = scalars_bar[3]
    for n in range(pairs):
        size = abs(x[2 * P + n])
        total -= region.shapes[n] * (size + 2 * math.log1p(math.exp(-size)))
        gradient[2 * P + n] = -region.shapes[n] * r[n]
    add_covariance(region, sd, r, L, S, S_bar, gradient[P:h])
    if block[18] > 0.0:
        stretch_gradient(gradient, block)
    return total


@allocating_jit
def _log_density(x, gradient, block):
    return region_density(x, gradient, block)


def log_density(x: Array, gradient: Array, block: Array) -> float:
    """Do `region_density`, whose parameters these are, after it is loaded for the region's noise."""
    callbacks(block)
    return float(_log_density(x, gradient, block))


def _density_callback(size, x, gradient, logp, data):
    """Do `region_density` for a sampler: 0, or 3 where the density or its gradient is not finite."""
    block = nb.carray(data, (int(nb.carray(data, (1,), np.float64)[0]),), np.float64)
    slope = nb.carray(gradient, (size,))
    value = region_density(nb.carray(x, (size,)), slope, block)
    nb.carray(logp, (1,))[0] = value
    good = math.isfinite(value)
    for i in range(slope.size):
        good = good and math.isfinite(slope[i])
    return 0 if good else 3


def _copy_callback(size, expanded, x, out, data):
    """Keep the coordinates of a draw as they are."""
    source, target = nb.carray(x, (size,)), nb.carray(out, (expanded,))
    for i in range(size):
        target[i] = source[i]
    return 0


@cache
def _callbacks() -> tuple[Any, Any]:
    number = types.CPointer(types.float64)
    size, status, data = types.uint64, types.int64, types.voidptr
    return (
        c_function(_density_callback, status, (size, number, number, number, data)),
        c_function(_copy_callback, status, (size, size, number, number, data)),
    )


def callbacks(block: Array) -> tuple[Any, Any]:
    """C functions for the sampler: the density of a region, and one that copies coordinates.

    Each has an ``address``. They are compiled at the first call on a machine; later processes load them, if
    they could be kept. What the noise and the population of the region need is loaded too.
    """
    load(*_parts_of(block))
    return _callbacks()


def missing_density(block: Array) -> int:
    """Count the functions that `callbacks` would compile."""
    return len(missing(*_parts_of(block)))


def _parts_of(block: Array) -> list[Any]:
    return _parts(int(block[7]), bool(block[14]), block[17] > 0)


def _parts(noise: int, mixture: bool, images: bool) -> list[Any]:
    noises = {GAUSSIAN: gaussian, RICIAN: rician, STUDENT_T: student_t}
    optional = {mix: mixture, density_with_effects: images}
    found = [noises[noise]] if noise in noises else []
    return [region_density, *found, *(part for part, wanted in optional.items() if wanted)]


def compile_density(noise: str, mixture: bool, images: bool = False) -> tuple[Any, Any]:
    """Compile or load the `callbacks` for a noise, if asked with a mixture or image effects."""
    load(*_parts(NOISE_KINDS.index(noise), mixture, images))
    return _callbacks()
