# mypy: disallow_untyped_defs=False
"""Weighted draws of one voxel: around its mode, and where that fails, from a mixture; compiled."""

import math

import numpy as np

from ivimbayes.numerics.arithmetic import logarithms
from ivimbayes.numerics.jit import allocating_jit, jit
from ivimbayes.voxelwise.density import evaluate
from ivimbayes.voxelwise.modes import cholesky, find_mode, fit_stretch
from ivimbayes.voxelwise.proposals import (
    KERNELS,
    add_students,
    log_determinant,
    narrow_proposals,
    spread,
    spread_parts,
)
from ivimbayes.voxelwise.weights import finish_weights
from ivimbayes.voxelwise.workspace import WIDTH

# of the second pass: at first, later, and how often
PROPOSALS = 6
ROUNDS = 4
ENOUGH, ENOUGH_K = 0.6, 0.6  # share of effective draws and Pareto k that spare a voxel the second pass
ENOUGH_TAIL = 0.1  # relative error of the sd of D* that spares a voxel more draws


@jit
def first_pass(count, theta, merged, raw, square, protocol, draws, points, work):
    """Weighted draws around the mode, which theta is set to. Returns as `finish_weights`; top of evidence."""
    P, L, H, stretch = 4 if protocol.rician == 1 else 3, work.L, work.H, work.stretch
    for i in range(3):
        theta[i] = draws.centre[i]
    objective, theta[3] = find_mode(theta, merged, square, protocol, draws, 3, H, L, work.search)
    if P == 4:
        objective, _ = find_mode(theta, raw, square, protocol, draws, 4, H, L, work.search)
    if not math.isfinite(objective):
        return -np.inf, 0.0, 0.0, np.inf
    fit_stretch(theta, L, objective, merged, raw, square, protocol, draws, P, stretch, work.search)
    spread(theta, L, stretch, points, P, 0, count, work.x)
    signal = raw if P == 4 else merged
    evaluate(count, signal, square, protocol, draws, work.x, work.value, work.given, work.log_w, work)
    log_q, shift = work.log_q, log_determinant(L, P)
    for s in range(count):
        log_q[s] = points.log_q[s] + shift
    for i in range(P):
        z, down, up = points.z[i], math.log(stretch[i, 0]), math.log(stretch[i, 1])
        for s in range(count):
            log_q[s] -= up if z[s] > 0.0 else down
    for s in range(count):
        work.log_w[s] -= log_q[s]
    return finish_weights(count, work.log_w, work.w, work)


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


@allocating_jit
def _first_proposals(merged, raw, square, protocol, draws, P, modes, factors, share, work):
    """Find the modes from seven starts; they and the population, last, make a mixture. Returns its parts."""
    theta, L, H, n, lowest = np.empty(4), np.zeros((4, 4)), np.empty((4, 4)), 0, np.inf
    for start in range(7):
        for i in range(3):
            theta[i] = draws.centre[i]
        if start > 0:
            axis = (start - 1) // 2
            theta[axis] += (2.0 if start % 2 else -2.0) / math.sqrt(draws.around[axis, axis])
        objective, theta[3] = find_mode(theta, merged, square, protocol, draws, 3, H, L, work.search)
        if P == 4:
            objective, _ = find_mode(theta, raw, square, protocol, draws, 4, H, L, work.search)
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


@allocating_jit
def robust_pass(merged, raw, square, protocol, draws, points, work):
    """Weighted draws from a mixture of all modes and the population, adapted while Pareto k is large."""
    P, count = 4 if protocol.rician == 1 else 3, points.log_q.size
    signal, density = raw if P == 4 else merged, work.square
    modes, factors = np.empty((PROPOSALS, 4)), np.zeros((PROPOSALS, 4, 4))
    share, ones = np.zeros(PROPOSALS), np.ones((4, 2))
    n = _first_proposals(merged, raw, square, protocol, draws, P, modes, factors, share, work)
    spread_parts(modes, factors, share, n, 0, count, P, points, ones, work.x)
    for s in range(count):
        density[s] = 0.0
    for c in range(n):
        add_students(count, modes[c], factors[c], share[c], P, work.x, density, work)
    result = _weigh(count, signal, square, protocol, draws, density, work)
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
            add_students(count, modes[c], factors[c], share[c] * kept / count, P, work.x, density, work)
        for c in range(KERNELS):
            add_students(count, centres[c], factor, fresh / count / KERNELS, P, work.x, density, work)
        result = _weigh(count, signal, square, protocol, draws, density, work)
        narrow *= 0.6
    return result


@allocating_jit
def _population_factor(draws, P, centre, L):
    """Mean of the population and the Cholesky factor of its inverse covariance."""
    A = np.zeros((4, 4))
    for i in range(3):
        centre[i] = draws.centre[i]
        for j in range(3):
            A[i, j] = draws.around[i, j]
    if P == 4:
        centre[3] = draws.middle[1]
        A[3, 3] = draws.middle[0] * draws.middle[2]
    cholesky(A, P, L)


@jit
def _weigh(count, signal, square, protocol, draws, density, work):
    """Evaluate the draws in ``work.x``, weight them over the density of their proposal, keep its log."""
    evaluate(count, signal, square, protocol, draws, work.x, work.value, work.given, work.log_w, work)
    logarithms(density[:count], work.log_q[:count])
    for s in range(count):
        work.log_w[s] -= work.log_q[s]
    return finish_weights(count, work.log_w, work.w, work)
