# mypy: disallow_untyped_defs=False
"""Signal errors that all voxels of a region share in an image, in the sampling space, and the gradient.

The signal of image k is multiplied by exp(e_k), e_k ~ Normal(0, tau²) and tau half-normal. Along the
directions in which theta bends the curve, e trades against the mean of theta and against every voxel at once,
so that sampled as they are they mix badly. Three changes of coordinates, each with a known Jacobian, undo it:

- The sum of an image's signals over voxels says what e_k is, once theta is given: its conditional is close to
  a normal one about ln of that sum over the sum of the curves, with the prior taken in. e_k is sampled as a
  standard normal about it (`find_effects`).
- The centres of the voxels' likelihoods move with the region's mean by the part of it that e takes up, which
  depends on tau (`expected_effects`).
- The directions in which all voxels move at once, wide when tau is, are made coordinates of their own by
  Householder reflections (`reflect`), so that the sampler's diagonal metric adapts to them; and so is the
  direction in which all e_k move, which S0 takes up.
"""

import math
from typing import NamedTuple

import numpy as np

from ivimbayes.fitting.modes import PopulationMode, complete
from ivimbayes.models.noise import NOISES
from ivimbayes.models.signals import SIGNALS
from ivimbayes.models.spec import IMAGE_SCALE
from ivimbayes.numerics.arithmetic import Array
from ivimbayes.numerics.jit import Matrix, Vector, jit

LEAST_SPREAD = 1e-4  # variance of S0 between voxels, at least, in the approximation
WIDE, MOST_REFLECTORS = 1.5, 8  # variance of z, of 1 without effects, from which a direction is turned


class ImageReference(NamedTuple):
    """What the sampling space of a region with image effects is made of; changes the space, not the model.

    K images in the order of the measurements, V voxels, Q latents of a voxel.

    Attributes
    ----------
    origin : ndarray (Q,)
        Mean of the latents where the approximation was made.
    quality : ndarray (K,)
        Eigenvalues of the information on e, theta profiled out.
    vectors : ndarray (K, K)
        The eigenvectors, one a row.
    cross : ndarray (V, Q, K)
        Information that e shares with the latents of each voxel.
    pull, height, offset : ndarray (K, Q), (K,), (K,)
        Information that e shares with the mean, gradient in e, and e, along each eigenvector.
    target : ndarray (K,)
        Logarithm of the weighted sum of an image's signals.
    weight : ndarray (V, K)
        Weight of each curve, so that the sum of weighted curves is compared with it.
    certainty : ndarray (K,)
        Information on e_k given theta, times sigma².
    turn : ndarray (K,)
        Reflector of the e, of square length 2.
    level : ndarray (1,)
        Mean S0 at which the curves were summed; 0 where S0 is latent and in the sums.
    reflectors : ndarray (V, Q, R)
        Reflectors of z of all voxels, of square length 2, the last axis numbers them.
    """

    origin: Vector
    quality: Vector
    vectors: Matrix
    cross: Array
    pull: Matrix
    height: Vector
    offset: Vector
    target: Vector
    weight: Matrix
    certainty: Vector
    turn: Vector
    level: Array
    reflectors: Array


def image_reference(
    signal: Array,
    averages: Array,
    b: Array,
    mode: PopulationMode,
    model: str,
    noise: str,
) -> ImageReference:
    """Approximate a region's likelihood in theta and image effects about a mode.

    Parameters
    ----------
    signal, averages : ndarray (voxel, measurement)
        As in `voxel_modes`.
    b : ndarray (measurement,)
        s/mm².
    mode : PopulationMode
        Where.
    model, noise : str
        Names in `SIGNALS` and `NOISES`.
    """
    (V, K), variance, marginal = signal.shape, mode.sigma**2, NOISES[noise].marginal
    P, e = mode.theta.shape[1], mode.effects
    g, d = SIGNALS[model].jacobian(b, mode.theta)
    g, d, S0 = g * np.exp(e), d * np.exp(e), mode.S0
    mean = S0[:, None] * g
    data = complete(signal, averages, mean, mode.sigma, noise)
    S0_variance = max(float(np.var(S0)), LEAST_SPREAD)
    inverse = np.linalg.inv(mode.covariance)
    n, gn = data.information / variance, data.information * g / variance
    gg = (gn * g).sum(axis=1)
    J, N = S0[:, None, None] * d, np.zeros((V, K, K))
    N[:, range(K), range(K)] = n * mean**2
    origin = mode.mean
    if marginal:  # S0 profiled out
        J = J - np.einsum("vpk,vk->vp", J, gn)[..., None] * (g / gg[:, None])[:, None, :]
        N -= (n * mean * g)[:, :, None] * (n * mean * g)[:, None, :] / (gg + 1 / S0_variance)[:, None, None]
    else:
        J, origin = np.concatenate([J, g[:, None, :]], axis=1), np.append(origin, S0.mean())
        inverse = np.pad(inverse, (0, 1))
        inverse[P, P] = 1 / S0_variance
    cross = J * (n * mean)[:, None, :]
    spread = np.linalg.inv(mode.precision + inverse)
    Q = (N - cross.swapaxes(1, 2) @ spread @ cross).sum(axis=0)
    quality, U = np.linalg.eigh(0.5 * (Q + Q.T))
    gradient = (data.weight * (data.signal - mean) * mean).sum(axis=0) / variance
    reflectors = _reflectors(_soft(N.sum(axis=0), Q, cross, mode.precision + inverse))
    weight = data.weight * (mean * S0[:, None] if marginal else mean)
    certainty = (data.information * mean**2).sum(axis=0)
    return ImageReference(
        origin=origin,
        quality=np.maximum(quality, 0),
        vectors=U.T,
        cross=cross,
        pull=U.T @ (cross.swapaxes(1, 2) @ spread @ inverse).sum(axis=0),
        height=U.T @ gradient,
        offset=U.T @ e,
        target=np.log(
            np.maximum((weight * data.signal / (S0[:, None] if marginal else 1)).sum(axis=0), 1e-12)
        ),
        weight=weight,
        certainty=certainty,
        level=np.array([S0.mean() if marginal else 0.0]),
        turn=_reflectors(np.sqrt(certainty if marginal else np.eye(K)[0])[:, None])[:, 0],
        reflectors=reflectors.reshape(V, len(origin), reflectors.shape[1]),
    )


def _soft(information: Array, quality: Array, cross: Array, precision: Array) -> Array:
    """Directions of z of all voxels, (V Q, R), along which the effects leave it wide.

    ``information`` on e given theta, and ``quality`` of it with theta profiled out, (K, K).
    """
    K = len(information)
    D = np.linalg.inv(np.linalg.cholesky(information + np.eye(K) / IMAGE_SCALE**2))
    taken, W = np.linalg.eigh(D @ (information - quality) @ D.T)
    wide = W[:, taken > 1 - 1 / WIDE][:, ::-1][:, :MOST_REFLECTORS]
    along = np.linalg.solve(np.linalg.cholesky(precision), cross) @ D.T @ wide
    return np.asarray(along.reshape(along.shape[0] * along.shape[1], wide.shape[1]))


def _reflectors(columns: Array) -> Array:
    """Householder vectors, of square length 2, that turn the columns into the first axes."""
    R, vectors = columns.copy(), np.zeros_like(columns)
    for i in range(columns.shape[1]):
        v = R[i:, i].copy()
        v[0] += np.copysign(np.linalg.norm(v), v[0])
        v *= math.sqrt(2) / np.linalg.norm(v)
        R[i:] -= np.outer(v, v @ R[i:])
        vectors[i:, i] = v
    return vectors


@jit
def reflect(reflectors, z, forward):
    """Reflect z (N,) in place by each reflector (R, N): forward last to first, back first to last."""
    R = reflectors.shape[0]
    for n in range(R):
        v, along = reflectors[R - 1 - n if forward else n], 0.0
        for i in range(z.size):
            along += v[i] * z[i]
        for i in range(z.size):
            z[i] -= along * v[i]


@jit
def expected_effects(images, means, tau, move):
    """Set ``move`` (K,) to minus the effects that the latents' mean implies, those of the mode subtracted."""
    K, square = images.quality.size, tau * tau
    move[:] = 0.0
    for n in range(K):
        along = -images.height[n]
        for i in range(means.size):
            along += images.pull[n, i] * (means[i] - images.origin[i])
        share = (along * square + images.offset[n]) / (images.quality[n] * square + 1.0)
        for k in range(K):
            move[k] += images.vectors[n, k] * share


@jit
def expected_effects_adjoint(images, means, tau, move_bar, means_bar):
    """Take the adjoint of `expected_effects` back: added to that of the means; the adjoint of ln tau."""
    square, tau_bar = tau * tau, 0.0
    for n in range(images.quality.size):
        along, share_bar = -images.height[n], 0.0
        for i in range(means.size):
            along += images.pull[n, i] * (means[i] - images.origin[i])
        for k in range(move_bar.size):
            share_bar += images.vectors[n, k] * move_bar[k]
        below = images.quality[n] * square + 1.0
        for i in range(means.size):
            means_bar[i] += share_bar * square / below * images.pull[n, i]
        tau_bar += share_bar * (along - images.offset[n] * images.quality[n]) / (below * below)
    return 2.0 * square * tau_bar


@jit
def above_level(images, S0_roi):
    """Difference of S0_roi from the level at which the curves were summed, relative to that level."""
    level = images.level[0]
    return S0_roi / level - 1.0 if level > 0.0 else 0.0


@jit
def find_effects(images, z, sums, S0_roi, sigma, tau, effects):
    """Set the effects of the sorted images from their coordinates z and the sums of the curves.

    Returns the logarithm of the Jacobian.
    """
    total, prior, above = 0.0, 1.0 / (tau * tau), above_level(images, S0_roi)
    for k in range(effects.size):
        precision = images.certainty[k] / (sigma * sigma)
        both = precision + prior
        away = images.target[k] - math.log(sums[k]) - above
        effects[k] = away * precision / both + z[int(images.order[k])] / math.sqrt(both)
        total -= 0.5 * math.log(both)
    return total


@jit
def effects_prior(effects, tau, scale):
    """Log-density of the effects and of ln tau, without constants."""
    square = 0.0
    for k in range(effects.size):
        square += effects[k] * effects[k]
    return (
        -0.5 * square / (tau * tau) - effects.size * math.log(tau) + math.log(tau) - 0.5 * (tau / scale) ** 2
    )


@jit
def effects_adjoint(images, z, sums, S0_roi, sigma, tau, scale, effects, effects_bar, z_bar, sums_bar):
    """Take the adjoint of the effects back through `find_effects` and `effects_prior`.

    Sets those of z and of the sums; returns those of S0_roi, of ln sigma and of ln tau.
    """
    prior, in_precision, in_prior, in_above = 1.0 / (tau * tau), 0.0, 0.0, 0.0
    above = above_level(images, S0_roi)
    for k in range(effects.size):
        n = int(images.order[k])
        precision = images.certainty[k] / (sigma * sigma)
        both = precision + prior
        away = images.target[k] - math.log(sums[k]) - above
        bar = effects_bar[k] - effects[k] * prior
        in_both = -bar * (away * precision / both + 0.5 * z[n] / math.sqrt(both)) / both - 0.5 / both
        z_bar[n] = bar / math.sqrt(both)
        sums_bar[k] = -bar * precision / both / sums[k]
        in_above -= bar * precision / both
        in_precision += precision * (bar * away / both + in_both)
        in_prior += in_both - 0.5 * effects[k] * effects[k]
    in_tau = -2.0 * prior * in_prior - effects.size + 1.0 - (tau / scale) ** 2
    in_S0 = in_above / images.level[0] if images.level[0] > 0.0 else 0.0
    return in_S0, -2.0 * in_precision, in_tau
