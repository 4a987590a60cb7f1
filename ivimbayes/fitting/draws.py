# mypy: disallow_untyped_defs=False
"""Model variables from draws of the unconstrained coordinates."""

import math

import numpy as np
from scipy.special import expit

from ivimbayes.fitting.blocks import THETA, THETA_BAR, Z, block_likelihood, locate, noise_logs, read_z
from ivimbayes.fitting.density import callbacks, hyperparameters, latent_population
from ivimbayes.fitting.image_density import EFFECT, block_density, make_scratch, place_effects
from ivimbayes.fitting.packing import GAUSSIAN, stretch_of, unpack, unpack_images
from ivimbayes.models.spec import S0_MEAN, S0_MEAN_SD
from ivimbayes.numerics.arithmetic import Array
from ivimbayes.numerics.jit import Cube, Matrix, Vector, jit, load, separate
from ivimbayes.numerics.signals import make_shape
from ivimbayes.numerics.triangular import multiply


@jit
def keep_block(region, start, scalars, rows, bars, work, out, by_voxel):
    """Write what a block of voxels gives at a draw: theta (voxel, latent) and ``by_voxel`` (3, voxel)."""
    variance = scalars[2] ** 2
    fixed = noise_logs(region) * math.log(variance)
    for w in range(min(bars.shape[1], region.voxels - start)):
        by_voxel[0, start + w] = bars[3, w] - fixed
        if region.noise == GAUSSIAN:
            by_voxel[0, start + w] += 0.5 * math.log(work[3, w])
            by_voxel[1, start + w] = work[1, w]
            by_voxel[2, start + w] = 1.0 / scalars[1] ** 2 + work[0, w] / variance
        for i in range(out.shape[1]):
            out[start + w, i] = rows[THETA, i, w]


@separate(allocates=True)
def latents_of_draws(x: Matrix, packed: Vector, out: Cube, by_voxel: Cube) -> None:
    """Fill in theta with S0, (draw, voxel, latent), and the signals' part, (draw, 3, voxel).

    The three are the log-likelihood, and the mean and precision of S0.
    """
    region = unpack(packed)
    M, V, lanes, Q = region.b.size, region.voxels, region.present.shape[1], out.shape[2]
    shape, bars = make_shape(region.form, M, region.steps.size, lanes), np.empty((4, lanes))
    squares, rows = np.empty((5, Q, Q, lanes)), np.empty((10, Q, lanes))
    curves, work = np.empty((2, M, lanes)), np.empty((10, lanes))
    for n in range(x.shape[0]):
        mu, sd, r, scalars, _, first = hyperparameters(x[n], region)
        means, _, S = latent_population(mu, sd, r, scalars, Q)
        shift = multiply(S, means, Q)
        for at in range(region.signal.shape[0]):
            start = at * lanes
            read_z(x[n], first + start * Q, min(lanes, V - start), rows[Z])
            locate(S, shift, region.precision[at], region.shift[at], squares, rows)
            bars[:] = 0.0
            block_likelihood(region, at, rows[THETA], scalars, shape, curves, bars, work, rows[THETA_BAR])
            keep_block(region, start, scalars, rows, bars, work, out[n], by_voxel[n])


@separate(allocates=True, optional=True)
def latents_with_effects(x: Matrix, packed: Vector, out: Cube, by_voxel: Cube, effects: Matrix) -> None:
    """Do `latents_of_draws` for a region with image effects, and fill in these, (draw, image)."""
    region, images = unpack(packed), unpack_images(packed)
    scratch, lanes = make_scratch(region), region.present.shape[1]
    bars = scratch.sums.bars
    for n in range(x.shape[0]):
        mu, sd, r, scalars, _, first = hyperparameters(x[n], region)
        means, _, S = latent_population(mu, sd, r, scalars, out.shape[2])
        place_effects(region, images, x[n], first, means, S, scalars, scratch)
        for k in range(region.images):
            effects[n, int(images.order[k])] = scratch.by_image[EFFECT, k]
        for at in range(region.signal.shape[0]):
            bars[:] = 0.0
            block_density(region, at, scalars, scratch, bars)
            keep_block(region, at * lanes, scalars, scratch.rows[at], bars, scratch.work, out[n], by_voxel[n])


@jit
def _of_draws(x, packed, out, by_voxel, by_image):
    if by_image.shape[1] > 0:
        latents_with_effects(x, packed, out, by_voxel, by_image)
    else:
        latents_of_draws(x, packed, out, by_voxel)


def split_draws(x: Array, block: Array) -> dict[str, Array]:
    """Model variables at unconstrained coordinates, and what follows from them for each voxel.

    Parameters
    ----------
    x : ndarray (..., coordinate)
        Draws.
    block : ndarray
        From `pack_region`.

    Returns
    -------
    dict of str to ndarray
        ``theta`` (..., voxel, parameter), ``sigma``, ``S0_roi`` and ``S0_sd`` (...); of a population also
        ``mu``, ``sd`` (..., parameter) and ``partial`` correlations (..., pair), and of a mixture
        ``second_share`` (...) and ``second_shift`` (..., parameter), with image effects ``image_sd`` (...)
        and ``image_effect`` (..., measurement). ``log_likelihood``, and the
        mean ``S0_mean`` and standard deviation ``S0_scale`` of S0 given the rest (0 where S0 is sampled), all
        (..., voxel); the log-likelihood lacks `noise_constant`.
    """
    P, pooled, lead = int(block[3]), bool(block[11]), x.shape[:-1]
    marginal = int(block[7]) == GAUSSIAN
    callbacks(block)
    middle, stretch = stretch_of(block)
    H = len(middle)
    x = np.concatenate([middle + x[..., :H] @ stretch.T, x[..., H:]], axis=-1)
    flat = np.ascontiguousarray(x.reshape(-1, x.shape[-1]))
    V, Q, images = int(block[2]), int(block[6]), int(block[17])
    latent, by_voxel, by_image = (
        np.empty((len(flat), V, Q)),
        np.zeros((len(flat), 3, V)),
        np.empty((len(flat), images)),
    )
    load(_of_draws, *([latents_with_effects] if images else []))
    _of_draws(flat, block, latent, by_voxel, by_image)
    log_likelihood, mean, precision = np.moveaxis(by_voxel.reshape(*lead, 3, V), -2, 0)
    latent = latent.reshape(*lead, *latent.shape[1:])
    drawn = {
        "theta": latent[..., :P], "log_likelihood": log_likelihood,
        "S0_mean": mean if marginal else latent[..., P],
        "S0_scale": 1 / np.sqrt(precision) if marginal else np.zeros_like(mean),
    }  # fmt: skip
    if not pooled:
        fixed = {"S0_roi": np.full(lead, S0_MEAN), "S0_sd": np.full(lead, S0_MEAN_SD)}
        return drawn | fixed | {"sigma": np.exp(x[..., 0])}
    h = 2 * P + P * (P - 1) // 2
    if images:
        drawn["image_sd"] = np.exp(x[..., h + 3 + (1 + P if block[14] else 0)])
        drawn["image_effect"] = by_image.reshape(*lead, images)
    if block[14]:
        shift = np.exp(x[..., P : 2 * P]) * x[..., h + 4 : h + 4 + P]
        drawn |= {"second_share": expit(x[..., h + 3]), "second_shift": shift}
    return drawn | {
        "mu": x[..., :P], "sd": np.exp(x[..., P : 2 * P]), "partial": np.tanh(0.5 * x[..., 2 * P : h]),
        "S0_roi": x[..., h], "S0_sd": np.exp(x[..., h + 1]), "sigma": np.exp(x[..., h + 2]),
    }  # fmt: skip
