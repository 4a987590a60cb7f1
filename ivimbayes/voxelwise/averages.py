# mypy: disallow_untyped_defs=False
"""The posterior of one voxel averaged over draws of the population; compiled."""

import math

import numpy as np

from ivimbayes.numerics.arithmetic import exponential, logarithm
from ivimbayes.numerics.jit import jit
from ivimbayes.voxelwise.weights import finish_weights, largest, total_and_squares
from ivimbayes.voxelwise.workspace import WIDTH


@jit
def over_draws(count, lone, x, S0, given, square, draws, few, first, matrix, work):
    """Log-density of each draw s given each population draw first + r of `few`: matrix (s, r)."""
    total = work.sums[0]
    A = few.precision
    for s in range(count):
        own = given[s] / draws.noise[s]
        G, gs = own - draws.ratio[s], S0[s] * own - draws.ratio[s] * draws.S0[s]
        for r in range(WIDTH):
            total[r] = G + few.ratio[first + r]
        for r in range(WIDTH):
            ratio, m = few.ratio[first + r], few.S0[first + r]
            c = (ratio * m + gs) / total[r]
            matrix[s, r] = -0.5 * (
                few.noise[first + r] * (square + ratio * m * m - total[r] * c * c) + logarithm(total[r])
            )
        if lone:
            for r in range(WIDTH):
                d = x[0, s] - few.mean[1, first + r]
                total[r] = d * d * few.lone[first + r]
        else:
            for r in range(WIDTH):
                d0, d1, d2 = (
                    x[0, s] - few.mean[0, first + r],
                    x[1, s] - few.mean[1, first + r],
                    x[2, s] - few.mean[2, first + r],
                )
                q = d0 * d0 * A[0, first + r] + d1 * d1 * A[1, first + r] + d2 * d2 * A[2, first + r]
                total[r] = q + 2.0 * (
                    d0 * d1 * A[3, first + r] + d0 * d2 * A[4, first + r] + d1 * d2 * A[5, first + r]
                )
        dims = 1.0 if lone else 3.0
        if draws.nu > 0.0:
            for r in range(WIDTH):
                total[r] = (draws.nu + dims) * logarithm(1.0 + total[r] / draws.nu)
        for r in range(WIDTH):
            constant = (
                few.lone_constant[first + r] if lone else few.constant[first + r] + few.shared[first + r]
            )
            matrix[s, r] += constant - 0.5 * total[r]


@jit
def mean_weights(count, own, square, draws, few, matrix, normaliser, work):
    """Log-weights of the draws in ``work.x``, each averaged over the draws `few` of the population.

    Given the population, of which each draw has seen an ``own`` voxel, that voxel's posterior is the mean of
    the normalised conditional posteriors; ``normaliser`` is filled with the log-evidences of the first
    `WIDTH`. Other voxels take the first `WIDTH` draws only.
    """
    sets, mean, lanes, top = few.noise.size // WIDTH if own else 1, work.square, work.sums[0], 0.0
    for s in range(count):
        mean[s] = 0.0
    for n in range(sets - 1, -1, -1):  # the first last: its log-evidences stay
        over_draws(
            count, False, work.x, work.value[3], work.given, square, draws, few, n * WIDTH, matrix, work
        )  # fmt: skip
        log_means(count, work.log_q, matrix, normaliser, work)
        if not own:
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
    return finish_weights(count, work.log_w, work.w, work)


@jit
def log_means(count, log_q, matrix, out, work):
    """Subtract the proposal from the matrix; set ``out`` to the log of its mean exponential over draws."""
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
