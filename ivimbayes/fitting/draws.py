# mypy: disallow_untyped_defs=False
"""Model variables from draws of the unconstrained coordinates."""

import math

import numpy as np
from scipy.special import expit

from ivimbayes.fitting.blocks import CURVE, NOISE, THETA, THETA_BAR, block_likelihood
from ivimbayes.fitting.density import (
    EFFECT,
    FACTOR_OF,
    MOVE,
    callbacks,
    hyperparameters,
    latent_population,
    make_scratch,
    noise_logs,
    place_region,
    place_voxels,
    scale_curves,
)
from ivimbayes.fitting.packing import GAUSSIAN, stretch_of, unpack
from ivimbayes.models.spec import S0_MEAN, S0_MEAN_SD
from ivimbayes.numerics.arithmetic import Array
from ivimbayes.numerics.jit import Cube, Matrix, Vector, jit, load, separate
from ivimbayes.numerics.signals import make_shapes, shape_at
from ivimbayes.numerics.triangular import multiply


@separate(allocates=True)
def latents_of_draws(x: Matrix, block: Vector, out: Cube, by_voxel: Cube, effects_of_draws: Matrix) -> None:
    """Fill in theta with S0 (draw, voxel, latent), and log-likelihood, mean and precision of S0 (3, ...).

    Of a region with image effects also those, (draw, image).
    """
    region = unpack(block)
    M, V, lanes, images = region.b.size, region.voxels, region.present.shape[1], region.order.size
    Q, blocks = region.shift.shape[1], region.signal.shape[0]
    scratch, bars = make_scratch(region, Q), np.zeros((4, lanes))
    shapes = make_shapes(region.form, M, region.steps.size, lanes, scratch.rows.shape[0])
    by_image, work, shape = np.zeros((6, images)), scratch.work, shape_at(shapes, 0)
    effects, factor, move = by_image[EFFECT], by_image[FACTOR_OF], by_image[MOVE]
    for n in range(x.shape[0]):
        mu, sd, r, scalars, _, first = hyperparameters(x[n], region)
        S0_variance, variance = scalars[1] ** 2, scalars[2] ** 2
        means, _, S = latent_population(mu, sd, r, scalars, Q)
        shift, z = multiply(S, means, Q), x[n, first : first + V * Q].copy()
        fixed = noise_logs(region) * math.log(variance)
        if images > 0:
            of_images = x[n, first + V * Q :].copy()
            place_region(region, z, of_images, means, S, shift, scalars, scratch, shapes, by_image, bars)
            for k in range(images):
                effects_of_draws[n, int(region.order[k])] = effects[k]
        for index in range(blocks):
            at = index if images > 0 else 0
            start = index * lanes
            rows, curves = scratch.rows[at], scratch.curves[at]
            if images > 0:
                scale_curves(factor, curves[0])
            else:
                place_voxels(index, z, region, S, shift, move, scratch.squares[at], rows)
            bars[:] = 0.0
            block_likelihood(
                NOISE if images > 0 else CURVE + NOISE, region, index, rows[THETA], scalars, shape, curves,
                bars, work, rows[THETA_BAR],
            )  # fmt: skip
            for w in range(min(lanes, V - start)):
                by_voxel[0, n, start + w] = bars[3, w] - fixed
                if region.noise == GAUSSIAN:
                    by_voxel[0, n, start + w] += 0.5 * math.log(work[3, w])
                    by_voxel[1, n, start + w] = work[1, w]
                    by_voxel[2, n, start + w] = 1.0 / S0_variance + work[0, w] / variance
                for i in range(Q):
                    out[n, start + w, i] = rows[THETA, i, w]


@jit
def _of_draws(x, block, out, by_voxel, by_image):
    latents_of_draws(x, block, out, by_voxel, by_image)


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
        np.zeros((3, len(flat), V)),
        np.empty((len(flat), images)),
    )
    load(_of_draws)
    _of_draws(flat, block, latent, by_voxel, by_image)
    log_likelihood, mean, precision = by_voxel.reshape(3, *lead, -1)
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
