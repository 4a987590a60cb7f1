# mypy: disallow_untyped_defs=False
"""Posterior of single curves that nothing else is known of, by importance sampling; compiled.

Given f, D and D*, S0 and sigma are drawn from close to their conditional posterior (`curves.density`), so
that three dimensions are left, as in `voxelwise.posterior`: a Student-t around the mode, and where that fails
a mixture.
"""

import math

import numpy as np

from ivimbayes.curves.density import Beliefs, Scratch, SigmaDraws, evaluate_curves, log_mass
from ivimbayes.curves.modes import find_modes, fit_width, place
from ivimbayes.numerics.arithmetic import logarithms, scalar_logistic
from ivimbayes.numerics.jit import Matrix, Vector, jit, separate
from ivimbayes.numerics.steps import Acquisition
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
from ivimbayes.voxelwise.summaries import FINER, describe
from ivimbayes.voxelwise.weights import Weights, finish_weights, moments, normalise, spread_error
from ivimbayes.voxelwise.workspace import WIDTH, Work

FIELDS = 5  # mean, sd, median, ends of the interval; of f, D, D*, S0
SIGMA, K_HAT, EFFECTIVE = range(4 * FIELDS, 4 * FIELDS + 3)
COLUMNS = 4 * FIELDS + 3
ENOUGH, ENOUGH_K = 0.5, 0.6  # share of effective draws and Pareto k that spare a curve the second pass
ROUNDS = 6
RIVAL = 8.0  # difference in log density from which on another mode does not count


@separate()
def near_pass(
    count: int,
    height: float,
    signal: Vector,
    square: float,
    acquisition: Acquisition,
    beliefs: Beliefs,
    sigmas: SigmaDraws,
    points: Points,
    work: Work,
    scratch: Scratch,
) -> Weights:
    """Weighted draws around the best mode. Returns as `finish_weights`."""
    mode, L, log_q = scratch.modes[0], scratch.factors[0], work.log_q
    fit_width(mode, L, height, signal, square, acquisition, beliefs, work)
    spread(mode, L, work.stretch, points, 3, 0, count, work.x)
    evaluate_curves(count, signal, square, acquisition, beliefs, sigmas, work, scratch)
    log_proposal(count, points, L, work.stretch, 3, log_q)
    for s in range(count):
        work.log_w[s] -= log_q[s]
    return finish_weights(count, work.log_w, work.w, work.counting)


@jit
def _weigh(count, signal, square, acquisition, beliefs, sigmas, density, work, scratch):
    """Evaluate the draws in ``work.x``, weight them over the density of their proposal."""
    evaluate_curves(count, signal, square, acquisition, beliefs, sigmas, work, scratch)
    logarithms(density[:count], work.log_q[:count])
    for s in range(count):
        work.log_w[s] -= work.log_q[s]
    return finish_weights(count, work.log_w, work.w, work.counting)


@jit
def _share_modes(n, beliefs, work, scratch):
    """Shares of the modes in a mixture, by their evidence, with the prior added as its last part."""
    modes, factors, share, heights = scratch.modes, scratch.factors, scratch.share, scratch.heights
    total, lowest = 0.0, np.inf
    for c in range(n):
        heights[c] += log_determinant(factors[c], 3)
        lowest = min(lowest, heights[c])
    for c in range(n):
        share[c] = max(math.exp(lowest - heights[c]), 0.1)
        total += share[c]
        for i in range(3):
            for j in range(i + 1):
                factors[c, i, j] /= 1.3
    for c in range(n):
        share[c] *= 0.7 / total
    share[n] = 0.3 if n > 0 else 1.0
    place(beliefs.centre, beliefs, modes[n])
    for i in range(3):
        low, high = max(beliefs.low[i], 0.0), beliefs.high[i]
        s = scalar_logistic(modes[n, i])
        value = low + (high - low) * s
        slope = (high - low) * s * (1.0 - s) / (value * (1.0 - value) if i == 0 else value)
        for j in range(3):
            factors[n, i, j] = 0.0
        factors[n, i, i] = max(slope / beliefs.width[i], 0.5)


@jit
def _temper(count, work, scratch):
    """Weights of the draws for the root of the posterior, whose tails are wider; their sum."""
    flat = scratch.flat
    for s in range(count):
        flat[s] = 0.5 * (work.log_w[s] - work.log_q[s])
    _, total, _ = normalise(count, flat, work.w)
    return total


@jit
def _tail_error(count, total, work):
    """Largest relative error of the standard deviations of f, D and D*."""
    return max(
        spread_error(count, work.w, total, work.value[0]),
        spread_error(count, work.w, total, work.value[1]),
        spread_error(count, work.w, total, work.value[2]),
    )


@jit
def _add_kernels(centres, factor, first, count, share, points, ones, density, drawn, work):
    """Draw from narrow proposals, or add their density."""
    for c in range(KERNELS):
        start, stop = first + c * count // KERNELS, first + (c + 1) * count // KERNELS
        if drawn:
            spread(centres[c], factor, ones, points, 3, start, stop - start, work.x)
        else:
            add_students(
                points.log_q.size, centres[c], factor, share / KERNELS, 3, work.x, density, work.sums
            )


@separate(allocates=True)
def wide_pass(
    n: int,
    tail: float,
    signal: Vector,
    square: float,
    acquisition: Acquisition,
    beliefs: Beliefs,
    sigmas: SigmaDraws,
    points: Points,
    work: Work,
    scratch: Scratch,
) -> Weights:
    """Weighted draws from a mixture of all modes and the prior, adapted while they fit badly.

    Half of the narrow proposals are around draws of the root of the posterior, for its tails.
    """
    count, density = points.log_q.size, work.square
    modes, factors, share, ones = scratch.modes, scratch.factors, scratch.share, np.ones((4, 2))
    _share_modes(n, beliefs, work, scratch)
    n += 1
    spread_parts(modes, factors, share, n, 0, count, 3, points, ones, work.x)
    for s in range(count):
        density[s] = 0.0
    for c in range(n):
        add_students(count, modes[c], factors[c], share[c], 3, work.x, density, work.sums)
    result = _weigh(count, signal, square, acquisition, beliefs, sigmas, density, work, scratch)
    centres, factor, narrow = np.empty((KERNELS, 4)), np.zeros((4, 4)), 0.25
    far_centres, far_factor = np.empty((KERNELS, 4)), np.zeros((4, 4))
    kept = max(count // 4 // WIDTH, 1) * WIDTH  # stays with the first proposals, which reach furthest
    near = (count - kept) // 2
    far = count - kept - near
    for _ in range(ROUNDS):
        _, total, effective, k = result
        if not total > 0.0:
            break
        if k <= ENOUGH_K and effective > 0.25 * count and _tail_error(count, total, work) <= tail:
            break
        good = narrow_proposals(count, total, narrow, 3, centres, factor, work)
        total = _temper(count, work, scratch)
        if not (good and narrow_proposals(count, total, narrow, 3, far_centres, far_factor, work)):
            break
        spread_parts(modes, factors, share, n, count - kept, kept, 3, points, ones, work.x)
        _add_kernels(centres, factor, 0, near, 0.0, points, ones, density, True, work)
        _add_kernels(far_centres, far_factor, near, far, 0.0, points, ones, density, True, work)
        for s in range(count):
            density[s] = 0.0
        for c in range(n):
            add_students(count, modes[c], factors[c], share[c] * kept / count, 3, work.x, density, work.sums)
        _add_kernels(centres, factor, 0, near, near / count, points, ones, density, False, work)
        _add_kernels(far_centres, far_factor, near, far, far / count, points, ones, density, False, work)
        result = _weigh(count, signal, square, acquisition, beliefs, sigmas, density, work, scratch)
        narrow *= 0.7
    return result


@jit
def _within(u, low, high):
    """Quantile of a standard normal distribution cut off at low and high."""
    high = min(high, max(low, 0.0) + 10.0)
    first, last = max(low, min(high, 0.0) - 10.0), high
    low, target = first, math.log(max(u, 1e-12)) + log_mass(first, last)
    for _ in range(40):
        middle = 0.5 * (first + last)
        if log_mass(low, middle) < target:
            first = middle
        else:
            last = middle
    return 0.5 * (first + last)


@jit
def _draw_S0(count, beliefs, sigmas, work):
    """Turn the mean and standard deviation of S0 given each draw into a draw of it, within its bounds."""
    S0, given, normal, root = work.value[3], work.given, sigmas.normal, 0.7071067811865476
    for s in range(count):
        low, high = (beliefs.S0[2] - S0[s]) / given[s], (beliefs.S0[3] - S0[s]) / given[s]
        z = normal[s]
        if z < low:  # how far down in the part below the bound, which is uniform
            z = _within(math.erfc(-z * root) / math.erfc(-low * root), low, high)
        elif z > high:
            z = _within(math.erfc(z * root) / math.erfc(high * root), low, high)
        S0[s] += given[s] * z


@jit
def _summarise(count, total, smoothing, interval, beliefs, sigmas, row, work, scratch):
    """Fill in mean, sd, median and interval of f, D, D* and S0, and the mean of sigma."""
    low, high = beliefs.low, beliefs.high
    _draw_S0(count, beliefs, sigmas, work)
    for s in range(count):
        scratch.variance[s] = math.sqrt(scratch.variance[s])
    row[SIGMA], _ = moments(count, work.w, total, scratch.variance)
    least = max(low[2], low[1])
    for s in range(count):
        D_star = work.value[2, s]
        work.square[s] = math.log(max(D_star - least, 1e-300) / max(high[2] - D_star, 1e-300))
    for i in range(4):
        mean, variance = moments(count, work.w, total, work.value[i])
        cell = row[FIELDS * i : FIELDS * (i + 1)]
        t = work.value[3] if i == 3 else work.square if i == 2 else work.x[i]
        describe(count, work.w, total, t, 2 if i == 3 else 0, 0.0, smoothing, interval, cell, work.counting)
        cell[0], cell[1] = mean, math.sqrt(variance)
        first, last = (least if i == 2 else low[i], high[i]) if i < 3 else (beliefs.S0[2], beliefs.S0[3])
        for j in range(2, 5):
            if i < 3:
                cell[j] = first + (last - first) * cell[j]
            cell[j] = min(max(cell[j], first), last)


@separate()
def all_curves(
    merged: Matrix,
    square: Vector,
    acquisition: Acquisition,
    beliefs: Beliefs,
    points: Points,
    more_points: Points,
    sigmas: SigmaDraws,
    more_sigmas: SigmaDraws,
    tail: float,
    interval: float,
    bandwidth: float,
    work: Work,
    scratch: Scratch,
    out: Matrix,
) -> None:
    """Summarise the posterior of every curve, each with an S0 and a sigma of its own.

    Parameters
    ----------
    merged : ndarray (curve, M)
        Sum of the signals at each b.
    square : ndarray (curve,)
        Sum of squared signals.
    acquisition : Acquisition
    beliefs : Beliefs
    points, more_points : Points
        For the first pass and the second.
    sigmas, more_sigmas : SigmaDraws
        As many as there are points.
    tail : float
        Relative error of a standard deviation that spares a curve the second pass, or another round of it.
    interval : float
        Probability of the intervals.
    bandwidth : float
        Smoothing of a parameter's density, in its standard deviations.
    work : Work
    scratch : Scratch
        For as many draws as `more_points` has.
    out : ndarray (curve, COLUMNS)
        Filled: mean, sd, median, low and high of f, D, D*, S0; `SIGMA`, `K_HAT` and `EFFECTIVE` draws.
    """
    for v in range(merged.shape[0]):
        row, signal, yy = out[v], merged[v], square[v]
        for i in range(COLUMNS):
            row[i] = np.nan
        n = find_modes(signal, yy, acquisition, beliefs, work, scratch)
        height, count, used, smoothing = scratch.heights[0], points.log_q.size, sigmas, bandwidth
        alone = n == 1 or (n > 1 and scratch.heights[1] > height + RIVAL)
        total, effective, k = 0.0, 0.0, np.inf
        if alone:
            _, total, effective, k = near_pass(
                count, height, signal, yy, acquisition, beliefs, sigmas, points, work, scratch
            )
        good = k <= ENOUGH_K and effective >= ENOUGH * count
        if not (good and _tail_error(count, total, work) <= tail):
            count, used, smoothing = more_points.log_q.size, more_sigmas, FINER * bandwidth
            _, total, effective, k = wide_pass(
                n, tail, signal, yy, acquisition, beliefs, more_sigmas, more_points, work, scratch
            )
        row[K_HAT], row[EFFECTIVE] = k, effective
        if total > 0.0:
            _summarise(count, total, smoothing, interval, beliefs, used, row, work, scratch)


@jit
def curve_posteriors(
    merged,
    square,
    acquisition,
    beliefs,
    points,
    more_points,
    sigmas,
    more_sigmas,
    tail,
    interval,
    bandwidth,
    work,
    scratch,
    out,
):
    """Call `all_curves` from Python, without the interpreter's lock."""
    all_curves(
        merged,
        square,
        acquisition,
        beliefs,
        points,
        more_points,
        sigmas,
        more_sigmas,
        tail,
        interval,
        bandwidth,
        work,
        scratch,
        out,
    )
