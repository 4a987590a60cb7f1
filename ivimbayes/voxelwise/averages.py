# mypy: disallow_untyped_defs=False
"""The posterior of one voxel averaged over draws of the population; compiled."""

import math

import numpy as np

from ivimbayes.numerics.arithmetic import exponential, logarithm
from ivimbayes.numerics.jit import jit, separate
from ivimbayes.numerics.noise import S0_centre, S0_log_density
from ivimbayes.voxelwise.draws import PopulationBlock
from ivimbayes.voxelwise.weights import Weights, finish_weights, largest, total_and_squares
from ivimbayes.voxelwise.workspace import WIDTH, Work


@separate()
def over_draws(
    count: int,
    mono: bool,
    square: float,
    draws: PopulationBlock,
    some_draws: PopulationBlock,
    first: int,
    work: Work,
) -> None:
    """Log-density of each draw s given each population draw first + r: ``work.matrix`` (s, r)."""
    x, S0, given, matrix = work.x, work.value[3], work.given, work.matrix
    total = work.sums[0]
    A = some_draws.precision
    for s in range(count):
        own = given[s] / draws.noise[s]
        G, gs = own - draws.ratio[s], S0[s] * own - draws.ratio[s] * draws.S0[s]
        for r in range(WIDTH):
            total[r] = G + some_draws.ratio[first + r]
        for r in range(WIDTH):
            ratio, m = some_draws.ratio[first + r], some_draws.S0[first + r]
            c = S0_centre(gs, total[r], m, ratio)
            matrix[s, r] = S0_log_density(square, total[r], c, m, ratio, some_draws.noise[first + r])
        if mono:
            for r in range(WIDTH):
                d = x[0, s] - some_draws.mean[1, first + r]
                total[r] = d * d * some_draws.mono[first + r]
        else:
            for r in range(WIDTH):
                d0, d1, d2 = (
                    x[0, s] - some_draws.mean[0, first + r],
                    x[1, s] - some_draws.mean[1, first + r],
                    x[2, s] - some_draws.mean[2, first + r],
                )
                q = d0 * d0 * A[0, first + r] + d1 * d1 * A[1, first + r] + d2 * d2 * A[2, first + r]
                total[r] = q + 2.0 * (
                    d0 * d1 * A[3, first + r] + d0 * d2 * A[4, first + r] + d1 * d2 * A[5, first + r]
                )
        dims = 1.0 if mono else 3.0
        if draws.nu > 0.0:
            for r in range(WIDTH):
                total[r] = (draws.nu + dims) * logarithm(1.0 + total[r] / draws.nu)
        for r in range(WIDTH):
            constant = (
                some_draws.mono_constant[first + r]
                if mono
                else some_draws.constant[first + r] + some_draws.shared[first + r]
            )
            matrix[s, r] += constant - 0.5 * total[r]


@separate()
def mean_weights(
    count: int,
    was_fitted: bool,
    square: float,
    draws: PopulationBlock,
    some_draws: PopulationBlock,
    work: Work,
) -> Weights:
    """Weights of the draws in ``work.x``, each averaged over the population draws `some_draws`.

    The population's draws have seen a voxel that was fitted: that voxel's posterior is the mean of the
    normalised conditional posteriors. ``work.normaliser`` is filled with the log-evidences of the first
    `WIDTH`. Other voxels take the first `WIDTH` draws only. Returns as `finish_weights`.
    """
    sets = some_draws.noise.size // WIDTH if was_fitted else 1
    mean, lanes, matrix, normaliser, top = work.square, work.sums[0], work.matrix, work.normaliser, 0.0
    for s in range(count):
        mean[s] = 0.0
    for n in range(
        sets - 1, -1, -1
    ):  # backwards, so that the log-evidences of the first set are left at the end
        over_draws(count, False, square, draws, some_draws, n * WIDTH, work)
        log_means(count, work.log_q, normaliser, work)
        if not was_fitted:
            top = largest(normaliser)
            for r in range(WIDTH):
                normaliser[r] = top
        for s in range(count):
            for r in range(WIDTH):
                lanes[r] = exponential(matrix[s, r] - normaliser[r])
            total, _ = total_and_squares(lanes)
            mean[s] += total / (WIDTH * sets)
    for s in range(count):
        work.log_w[s] = top + math.log(max(mean[s], 1e-300))
    return finish_weights(count, work.log_w, work.w, work.counting)


@jit
def log_means(count, log_q, out, work):
    """Subtract the proposal from ``work.matrix``; the log of its mean exponential over draws into ``out``."""
    matrix = work.matrix
    for r in range(WIDTH):
        out[r] = -np.inf
    for s in range(count):
        for r in range(WIDTH):
            matrix[s, r] -= log_q[s]
            out[r] = max(out[r], matrix[s, r])
    total = work.sums[0]
    for r in range(WIDTH):
        total[r] = 0.0
    for s in range(count):
        for r in range(WIDTH):
            total[r] += exponential(matrix[s, r] - out[r])
    for r in range(WIDTH):
        out[r] += math.log(total[r] / count)
