# mypy: disallow_untyped_defs=False
"""Weighted draws of one voxel: around its mode, and where that fails, from a mixture; compiled."""

import math

import numpy as np

from ivimbayes.numerics.arithmetic import logarithms
from ivimbayes.numerics.jit import Cube, Matrix, Vector, allocating_jit, jit, separate
from ivimbayes.numerics.steps import Acquisition
from ivimbayes.numerics.triangular import cholesky
from ivimbayes.voxelwise.density import evaluate
from ivimbayes.voxelwise.draws import PopulationBlock
from ivimbayes.voxelwise.modes import find_mode, fit_stretch
from ivimbayes.voxelwise.points import Points
from ivimbayes.voxelwise.proposals import (
    KERNELS,
    add_students,
    log_determinant,
    log_proposal,
    narrow_proposals,
    spread,
    spread_parts,
)
from ivimbayes.voxelwise.weights import Weights, finish_weights
from ivimbayes.voxelwise.workspace import WIDTH, Work

# of the second pass: at first, later, and how often
PROPOSALS = 6
ROUNDS = 4
ENOUGH, ENOUGH_K = 0.6, 0.6  # share of effective draws and Pareto k that spare a voxel the second pass
ENOUGH_TAIL = 0.1  # relative error of the sd of D* that spares a voxel more draws


@jit
def _mode(theta, merged, raw, square, acquisition, draws, P, work):
    """Move theta to a mode: under Gaussian noise, then (P = 4) under Rician noise. The objective."""
    search, decays = work.search, work.decays
    objective = find_mode(theta, merged, square, acquisition, draws.prior, 3, search, decays)
    if P == 4:
        objective = find_mode(theta, raw, square, acquisition, draws.prior, 4, search, decays)
    return objective


@separate()
def first_pass(
    count: int,
    theta: Vector,
    merged: Vector,
    raw: Vector,
    square: float,
    acquisition: Acquisition,
    draws: PopulationBlock,
    points: Points,
    work: Work,
) -> Weights:
    """Draw around the mode, to which theta is moved, and weight the draws. Returns as `finish_weights`."""
    P = 4 if draws.rician == 1 else 3
    for i in range(3):
        theta[i] = draws.prior.centre[i]
    objective = _mode(theta, merged, raw, square, acquisition, draws, P, work)
    if not math.isfinite(objective):
        return -np.inf, 0.0, 0.0, np.inf
    signal = raw if P == 4 else merged
    fit_stretch(
        theta, objective, signal, square, acquisition, draws.prior, P, work.search, work.decays,
        work.stretch,
    )  # fmt: skip
    spread(theta, work.search.L, work.stretch, points, P, 0, count, work.x)
    evaluate(count, signal, square, acquisition, draws, work)
    log_proposal(count, points, work.search.L, work.stretch, P, work.log_q)
    for s in range(count):
        work.log_w[s] -= work.log_q[s]
    return finish_weights(count, work.log_w, work.w, work.counting)


@jit
def _is_known(theta, modes, n):
    """Whether theta is one of the first n modes."""
    for c in range(n):
        away = 0.0
        for i in range(3):
            away = max(away, abs(theta[i] - modes[c, i]))
        if away < 0.1:
            return True
    return False


@separate(allocates=True)
def first_proposals(
    merged: Vector,
    raw: Vector,
    square: float,
    acquisition: Acquisition,
    draws: PopulationBlock,
    P: int,
    modes: Matrix,
    factors: Cube,
    share: Vector,
    work: Work,
) -> int:
    """Find the modes from seven starts; they and the population, last, make a mixture. Returns its parts."""
    theta, L, n, lowest = np.empty(4), work.search.L, 0, np.inf
    for start in range(7):
        for i in range(3):
            theta[i] = draws.prior.centre[i]
        if start > 0:
            axis = (start - 1) // 2
            theta[axis] += (2.0 if start % 2 else -2.0) / math.sqrt(draws.prior.around[axis, axis])
        objective = _mode(theta, merged, raw, square, acquisition, draws, P, work)
        if not math.isfinite(objective) or n == PROPOSALS - 2 or _is_known(theta, modes, n):
            continue
        for i in range(P):
            modes[n, i] = theta[i]
            for j in range(i + 1):
                factors[n, i, j] = L[i, j] / 1.3
        share[n] = -objective - log_determinant(L, P)
        n += 1
    for c in range(n):
        lowest = min(lowest, -share[c])
    total = 0.0
    for c in range(n):
        share[c] = max(math.exp(share[c] + lowest), 0.1)
        total += share[c]
    for c in range(n):
        share[c] *= 0.7 / total
    _population_factor(draws, P, modes[n], factors[n])
    share[n] = 0.3 if n > 0 else 1.0
    return n + 1


@separate(allocates=True)
def robust_pass(
    merged: Vector,
    raw: Vector,
    square: float,
    acquisition: Acquisition,
    draws: PopulationBlock,
    points: Points,
    work: Work,
) -> Weights:
    """Weighted draws from a mixture of all modes and the population, adapted while Pareto k is large."""
    P, count = 4 if draws.rician == 1 else 3, points.log_q.size
    signal, density = raw if P == 4 else merged, work.square
    modes, factors = np.empty((PROPOSALS, 4)), np.zeros((PROPOSALS, 4, 4))
    share, ones = np.zeros(PROPOSALS), np.ones((4, 2))
    n = first_proposals(merged, raw, square, acquisition, draws, P, modes, factors, share, work)
    spread_parts(modes, factors, share, n, 0, count, P, points, ones, work.x)
    for s in range(count):
        density[s] = 0.0
    for c in range(n):
        add_students(count, modes[c], factors[c], share[c], P, work.x, density, work.sums)
    result = _weigh(count, signal, square, acquisition, draws, density, work)
    centres, factor, narrow = np.empty((KERNELS, 4)), np.zeros((4, 4)), 0.25
    # a quarter of the draws stays with the first proposals, which reach as far as the posterior may
    kept = max(count // 4 // WIDTH, 1) * WIDTH
    fresh = count - kept
    for _ in range(ROUNDS):
        _, total, effective, k = result
        if not total > 0.0 or (k <= ENOUGH_K and effective > 0.25 * count):
            break
        if not narrow_proposals(count, total, narrow, P, centres, factor, work):
            break
        spread_parts(modes, factors, share, n, fresh, kept, P, points, ones, work.x)
        for c in range(KERNELS):
            first, last = c * fresh // KERNELS, (c + 1) * fresh // KERNELS
            spread(centres[c], factor, ones, points, P, first, last - first, work.x)
        for s in range(count):
            density[s] = 0.0
        for c in range(n):
            add_students(count, modes[c], factors[c], share[c] * kept / count, P, work.x, density, work.sums)
        for c in range(KERNELS):
            add_students(count, centres[c], factor, fresh / count / KERNELS, P, work.x, density, work.sums)
        result = _weigh(count, signal, square, acquisition, draws, density, work)
        narrow *= 0.6
    return result


@allocating_jit
def _population_factor(draws, P, centre, L):
    """Mean of the population and the Cholesky factor of its inverse covariance."""
    A = np.zeros((4, 4))
    for i in range(3):
        centre[i] = draws.prior.centre[i]
        for j in range(3):
            A[i, j] = draws.prior.around[i, j]
    if P == 4:
        centre[3] = draws.prior.middle[1]
        A[3, 3] = draws.prior.middle[0] * draws.prior.middle[2]
    cholesky(A, P, L)


@jit
def _weigh(count, signal, square, acquisition, draws, density, work):
    """Evaluate the draws in ``work.x``, weight them over the density of their proposal, keep its log."""
    evaluate(count, signal, square, acquisition, draws, work)
    logarithms(density[:count], work.log_q[:count])
    for s in range(count):
        work.log_w[s] -= work.log_q[s]
    return finish_weights(count, work.log_w, work.w, work.counting)
