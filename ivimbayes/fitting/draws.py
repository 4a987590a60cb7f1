# mypy: disallow_untyped_defs=False
"""Model variables from draws of the unconstrained coordinates."""

import math

import numpy as np
from scipy.special import expit

from ivimbayes.fitting.density import (
    THETA,
    THETA_BAR,
    Z,
    block_likelihood,
    callbacks,
    hyperparameters,
    latent_population,
    locate,
    noise_logs,
    read_z,
)
from ivimbayes.fitting.packing import GAUSSIAN, unpack
from ivimbayes.models.spec import S0_MEAN, S0_MEAN_SD
from ivimbayes.numerics.arithmetic import Array
from ivimbayes.numerics.jit import Cube, Matrix, Vector, jit, load, separate
from ivimbayes.numerics.signals import make_shape
from ivimbayes.numerics.triangular import multiply


@separate(allocates=True)
def latents_of_draws(x: Matrix, block: Vector, out: Cube, by_voxel: Cube) -> None:
    """Fill in theta with S0 (draw, voxel, latent), and log-likelihood, mean and precision of S0 (3, ...)."""
    region = unpack(block)
    M, V, lanes = region.b.size, region.voxels, region.present.shape[1]
    Q = region.shift.shape[1]
    squares, rows = np.empty((1, Q, Q, lanes)), np.empty((6, Q, lanes))
    theta = rows[THETA]
    shape = make_shape(region.form, M, region.steps.size, lanes)
    curves, work, bars = np.empty((2, M, lanes)), np.empty((8, lanes)), np.zeros((4, lanes))
    for n in range(x.shape[0]):
        mu, sd, r, three, _, first = hyperparameters(x[n], region)
        S0_variance, variance = three[1] ** 2, three[2] ** 2
        means, _, S = latent_population(mu, sd, r, three, Q)
        shift = multiply(S, means, Q)
        fixed = noise_logs(region) * math.log(variance)
        for index in range(region.signal.shape[0]):
            start = index * lanes
            count = min(lanes, V - start)
            read_z(x[n], first + start * Q, count, rows[Z])
            locate(S, shift, region.precision[index], region.shift[index], squares, rows)
            for i in range(4):
                for w in range(lanes):
                    bars[i, w] = 0.0
            block_likelihood(region, index, theta, three, shape, curves, bars, work, rows[THETA_BAR])
            for w in range(count):
                by_voxel[0, n, start + w] = bars[3, w] - fixed
                if region.noise == GAUSSIAN:
                    by_voxel[0, n, start + w] += 0.5 * math.log(work[3, w])
                    by_voxel[1, n, start + w] = work[1, w]
                    by_voxel[2, n, start + w] = 1.0 / S0_variance + work[0, w] / variance
                for i in range(Q):
                    out[n, start + w, i] = theta[i, w]


@jit
def _of_draws(x, block, out, by_voxel):
    latents_of_draws(x, block, out, by_voxel)


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
        ``second_share`` (...) and ``second_shift`` (..., parameter). ``log_likelihood``, and the
        mean ``S0_mean`` and standard deviation ``S0_scale`` of S0 given the rest (0 where S0 is sampled), all
        (..., voxel); the log-likelihood lacks `noise_constant`.
    """
    P, pooled, lead = int(block[3]), bool(block[11]), x.shape[:-1]
    marginal = int(block[7]) == GAUSSIAN
    callbacks(block)
    flat = np.ascontiguousarray(x.reshape(-1, x.shape[-1]))
    V, Q = int(block[2]), int(block[6])
    latent, by_voxel = np.empty((len(flat), V, Q)), np.zeros((3, len(flat), V))
    load(_of_draws)
    _of_draws(flat, block, latent, by_voxel)
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
    if block[14]:
        shift = np.exp(x[..., P : 2 * P]) * x[..., h + 4 : h + 4 + P]
        drawn |= {"second_share": expit(x[..., h + 3]), "second_shift": shift}
    return drawn | {
        "mu": x[..., :P], "sd": np.exp(x[..., P : 2 * P]), "partial": np.tanh(0.5 * x[..., 2 * P : h]),
        "S0_roi": x[..., h], "S0_sd": np.exp(x[..., h + 1]), "sigma": np.exp(x[..., h + 2]),
    }  # fmt: skip
