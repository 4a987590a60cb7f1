# mypy: disallow_untyped_defs=False
"""Weighted draws of one voxel: around its mode, and where that fails, from a mixture; compiled."""

import math

import numpy as np

from ivimbayes.kernel_data import NU, WIDTH
from ivimbayes.kernel_density import evaluate
from ivimbayes.kernel_modes import cholesky, find_mode, fit_stretch
from ivimbayes.kernel_weights import finish_weights, moments, total_and_squares
from ivimbayes.numerics.arithmetic import logarithms
from ivimbayes.numerics.jit import allocating_jit, jit

PROPOSALS, KERNELS, ROUNDS = 6, 64, 4  # of the second pass: at first, later, and how often
ENOUGH, ENOUGH_K = 0.6, 0.6  # share of effective draws and Pareto k that spare a voxel the second pass
ENOUGH_TAIL = 0.1  # relative error of the sd of D* that spares a voxel more draws


@jit
def spread(mode, L, stretch, points, P, first, count, x):
    """Draws x = mode + L⁻ᵀ u of points first to first + count, u their z stretched to each side."""
    for i in range(P - 1, -1, -1):
        inverse, centre, down, up = 1.0 / L[i, i], mode[i], stretch[i, 0], stretch[i, 1]
        z, out = points.z[i, first : first + count], x[i, first : first + count]
        for s in range(count):
            out[s] = z[s] * (up if z[s] > 0.0 else down)
        for k in range(i + 1, P):
            factor, shift, later = L[k, i], L[k, i] * mode[k], x[k, first : first + count]
            for s in range(count):
                out[s] -= factor * later[s] - shift
        for s in range(count):
            out[s] = centre + inverse * out[s]


@jit
def log_determinant(L, P):
    """Log-determinant of a lower triangular matrix."""
    total = 0.0
    for i in range(P):
        total += math.log(L[i, i])
    return total


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


@jit
def spread_parts(modes, factors, share, n, first, count, P, points, ones, x):
    """Draws of the n parts of a mixture, by their shares, at points first to first + count."""
    edge, reached = first, 0.0
    for c in range(n):
        reached += share[c]
        next_edge = first + (count if c == n - 1 else int(round(reached * count)))
        spread(modes[c], factors[c], ones, points, P, edge, next_edge - edge, x)
        edge = next_edge


@allocating_jit
def narrow_proposals(count, total, narrow, P, centres, factor, work):
    """Centres of narrow proposals, draws of the posterior so far, and their common factor; whether it is one.

    The weights are cut where they are few.
    """
    limit, w, mean, cov = total / math.sqrt(count), work.rest, np.empty(4), np.zeros((4, 4))
    for s in range(count):
        w[s] = min(work.w[s], limit)
    total, _ = total_and_squares(w[:count])
    for i in range(P):
        mean[i], _ = moments(count, w, total, work.x[i])
    for i in range(P):
        for j in range(i + 1):
            each = 0.0
            for s in range(count):
                each += w[s] * (work.x[i, s] - mean[i]) * (work.x[j, s] - mean[j])
            cov[i, j] = narrow * each / total
            cov[j, i] = cov[i, j]
        cov[i, i] += 1e-12
    if not cholesky(np.linalg.inv(cov[:P, :P]), P, factor):
        return False
    s, passed = 0, w[0]
    for c in range(KERNELS):
        level = (c + 0.5) / KERNELS * total
        while passed < level and s < count - 1:
            s += 1
            passed += w[s]
        for i in range(P):
            centres[c, i] = work.x[i, s]
    return True


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
def add_students(count, mode, factor, share, P, x, density, work):
    """Add a part of a mixture's density at the draws x: a Student-t, ``factor`` of its inverse covariance."""
    constant = math.lgamma((NU + P) / 2) - math.lgamma(NU / 2) - P / 2 * math.log(NU * math.pi)
    constant = share * math.exp(constant + log_determinant(factor, P))
    quadratic, z = work.sums[0], work.sums[1]
    for o in range(0, count, WIDTH):
        for w in range(WIDTH):
            quadratic[w] = 1.0
        for i in range(P):
            for w in range(WIDTH):
                z[w] = 0.0
            for j in range(i, P):
                slope, shift, row = factor[j, i], factor[j, i] * mode[j], x[j, o : o + WIDTH]
                for w in range(WIDTH):
                    z[w] += slope * row[w] - shift
            for w in range(WIDTH):
                quadratic[w] += z[w] * z[w] * (1.0 / NU)
        out = density[o : o + WIDTH]
        for w in range(WIDTH):  # the power -(NU + P) / 2 for NU = 7
            inverse = 1.0 / quadratic[w]
            square = inverse * inverse
            quadratic[w] = square * square * inverse
            z[w] = math.sqrt(inverse)
        if P == 4:
            for w in range(WIDTH):
                quadratic[w] *= z[w]
        for w in range(WIDTH):
            out[w] += constant * quadratic[w]


@jit
def _weigh(count, signal, square, protocol, draws, density, work):
    """Evaluate the draws in ``work.x``, weight them over the density of their proposal, keep its log."""
    evaluate(count, signal, square, protocol, draws, work.x, work.value, work.given, work.log_w, work)
    logarithms(density[:count], work.log_q[:count])
    for s in range(count):
        work.log_w[s] -= work.log_q[s]
    return finish_weights(count, work.log_w, work.w, work)
