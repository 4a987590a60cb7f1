# mypy: disallow_untyped_defs=False
"""Posterior of single voxels given draws of their population: weighted quasi-random draws, compiled.

Given the population, a voxel has a posterior of its own, of theta = (logit f, ln D, ln(D* - D)), with S0
integrated out (Gaussian noise), or of theta and S0 (Rician noise). Around its mode a Student-t with the
covariance of the mode is laid, whose draws, common to all voxels, are weighted by the posterior over the
proposal (importance sampling). Each draw has its own draw of the population, so that the population's
uncertainty enters. The draws lie on the last axis of every array; see `lanes`.
"""

import math

import numpy as np

from ivimbayes.numerics.arithmetic import logarithms
from ivimbayes.numerics.biexponential import curve_products
from ivimbayes.numerics.jit import jit
from ivimbayes.voxelwise.averages import log_means, mean_weights, over_draws
from ivimbayes.voxelwise.density import evaluate_lone
from ivimbayes.voxelwise.modes import lone_mode
from ivimbayes.voxelwise.passes import ENOUGH, ENOUGH_K, ENOUGH_TAIL, first_pass, robust_pass
from ivimbayes.voxelwise.proposals import log_determinant, spread
from ivimbayes.voxelwise.summaries import describe, resample
from ivimbayes.voxelwise.weights import moments, normalise, spread_error
from ivimbayes.voxelwise.workspace import WIDTH

FIELDS = 5  # mean, sd, median, ends of the interval
K_HAT, EVIDENCE, EFFECTIVE, SQUARE, PASSES = range(4 * FIELDS, 4 * FIELDS + 5)
COLUMNS = 4 * FIELDS + 5


@jit
def _passes(signal, raw, yy, fitted, protocol, draws, few, many, points, more_points, work):
    """Weighted draws of one voxel, by the first pass, by it with more draws, or by the robust pass.

    Returns their number, the pass, and as `finish_weights`.
    """
    N, P = points.log_q.size, 4 if protocol.rician == 1 else 3
    matrix, normaliser = work.matrix, work.normaliser
    count, passes, used, drawn = N, 1, draws, points
    while True:
        top, total, effective, k = first_pass(count, work.theta, signal, raw, yy, protocol, used, drawn, work)
        if fitted and total > 0.0:
            before = k
            top, total, effective, k = mean_weights(count, True, yy, used, few, matrix, normaliser, work)
            k = min(k, before)  # a population draw whose posterior few draws hit: no fault of the proposal
        good = k <= ENOUGH_K and (effective >= ENOUGH * N or passes == 2)
        if not good:
            break
        if passes == 2 or spread_error(N, work.w, total, work.value[2]) <= ENOUGH_TAIL:
            return count, passes, top, total, effective, k
        count, passes, used, drawn = more_points.log_q.size, 2, many, more_points
    count = more_points.log_q.size
    top, total, effective, k = robust_pass(signal, raw, yy, protocol, many, more_points, work)
    uncertain = not (k <= ENOUGH_K and effective >= 0.1 * count)  # perhaps for the population's draws
    if total > 0.0 and P == 3 and (fitted or uncertain):
        before = k
        top, total, effective, k = mean_weights(count, fitted, yy, many, few, matrix, normaliser, work)
        k = min(k, before)
    return count, 2, top, total, effective, k


@jit
def _best_square(count, passes, signal, yy, protocol, work):
    """Least squared residual, at the mode or the best draw."""
    theta = work.theta
    if passes == 2:
        best = 0
        for s in range(1, count):
            higher = work.log_w[s] + work.log_q[s] > work.log_w[best] + work.log_q[best]
            best = s if higher else best
        for i in range(3):
            theta[i] = work.x[i, best]
    G, gs = curve_products(theta, signal, protocol, work.search[12:14])
    return yy - gs * gs / G


@jit
def _summarise(count, total, rician, smoothing, interval, row, work):
    """Fill in mean, sd, median and interval of each parameter."""
    # logit f, ln D and ln D* in x; of S0 the mean given each draw
    logarithms(work.value[2, :count], work.square[:count])
    for i in range(4):
        mean, variance = moments(count, work.w, total, work.value[i])
        extra = 0.0
        if i == 3 and not rician:
            for s in range(count):
                work.log_w[s] = 1.0 / work.given[s]
            extra, _ = moments(count, work.w, total, work.log_w)
        cell = row[FIELDS * i : FIELDS * (i + 1)]
        cell[0], cell[1] = mean, math.sqrt(variance + extra)
        t = work.x[i] if i < 2 else work.square if i == 2 else work.value[3]
        kind = 0 if i == 0 else 1 if i < 3 else 2
        describe(count, work.w, total, t, kind, extra, smoothing, interval, cell, work)


@jit
def _log_odds(evidence, signal, raw, yy, fitted, protocol, draws, few, lone_points, work):
    """Log of the evidence of two compartments over one's."""
    dims, count, theta, L = 2 if protocol.rician == 1 else 1, lone_points.log_q.size, work.theta, work.L
    lone_mode(draws.centre[1], signal, yy, protocol, draws, dims, theta, L, work.search)
    spread(theta, L, work.ones, lone_points, dims, 0, count, work.x)
    evaluate_lone(
        count, raw if dims == 2 else signal, yy, protocol, draws, work.x, work.value, work.given, work.log_w,
        work,
    )  # fmt: skip
    shift = log_determinant(L, dims)
    for s in range(count):
        work.square[s] = lone_points.log_q[s] + shift
    if not fitted:
        for s in range(count):
            work.log_w[s] -= work.square[s]
        top, total, _ = normalise(count, work.log_w, work.w)
        return evidence - (top + math.log(total / count))
    matrix, ratio = work.matrix, work.lone_normaliser
    over_draws(count, True, work.x, work.value[3], work.given, yy, draws, few, 0, matrix, work)
    log_means(count, work.square, matrix, ratio, work)
    for r in range(WIDTH):
        ratio[r] -= work.normaliser[r]
    top, total, _ = normalise(WIDTH, ratio, work.w)
    return -(top + math.log(total / WIDTH))


@jit
def voxel_posteriors(
    merged, raw, square, identity, own, protocol, draws, few, many, points, more_points, lone_points,
    interval, bandwidth, seed, work, out, kept,
):  # fmt: skip
    """Summarise the posterior of every voxel.

    Parameters
    ----------
    merged : ndarray (voxel, M)
        Sum over the measurements at each b of signal times averages.
    raw : ndarray (voxel, K)
        Signals; used with Rician noise only.
    square : ndarray (voxel,)
        Sum of squared signals times averages.
    identity : ndarray of int (voxel,)
        A number of the voxel's own, for the choice of its kept draws.
    own : ndarray of bool (voxel,)
        Whether the voxel was among those fitted.
    protocol : Protocol
    draws, few, many : Draws
        Of as many lanes as `points` and `more_points` have draws, and of some times `WIDTH`.
    points, more_points, lone_points : Points
        For the first pass, the robust pass and one compartment.
    interval : float
        Probability of the intervals.
    bandwidth : float
        Smoothing of a parameter's density, in its standard deviations.
    seed : int
        Of the kept draws.
    work : Work
        Scratch, for as many draws as `more_points` has.
    out : ndarray (voxel, COLUMNS)
        Filled: mean, sd, median, low and high of f, D, D*, S0; `K_HAT`, `EVIDENCE` (log of two compartments'
        over one's), `EFFECTIVE` draws, `SQUARE` (least squared residual over sigma²), `PASSES`.
    kept : ndarray (voxel, 4, keep)
        Filled with draws.
    """
    rician = protocol.rician == 1
    for v in range(merged.shape[0]):
        row, signal, yy, fitted = out[v], merged[v], square[v], own[v] and not rician
        for i in range(COLUMNS):
            row[i] = np.nan
        count, passes, top, total, effective, k = _passes(
            signal, raw[v], yy, fitted, protocol, draws, few, many, points, more_points, work
        )
        row[K_HAT], row[EFFECTIVE], row[PASSES] = k, effective, passes
        if not total > 0.0:
            continue
        used, normal = (draws, points.normal) if passes == 1 else (many, more_points.normal)
        row[SQUARE] = used.middle[0] * _best_square(count, passes, signal, yy, protocol, work)
        smoothing = bandwidth if passes == 1 else 0.6 * bandwidth
        _summarise(count, total, rician, smoothing, interval, row, work)
        if kept.shape[2] > 0:
            resample(
                count, work.w, total, work.value, work.given, normal, protocol.rician, identity[v], seed,
                kept[v],
            )  # fmt: skip
        evidence = top + math.log(total / count)
        row[EVIDENCE] = _log_odds(
            evidence, signal, raw[v], yy, fitted, protocol, draws, few, lone_points, work
        )
