# mypy: disallow_untyped_defs=False
"""Posterior of single voxels given draws of their population: weighted quasi-random draws, compiled.

Given the population, a voxel has a posterior of its own, of theta = (logit f, ln D, ln(D* - D)), with S0
integrated out (Gaussian noise), or of theta and S0 (Rician noise). Around its mode a Student-t with the
covariance of the mode is laid, whose draws, common to all voxels, are weighted by the posterior over the
proposal (importance sampling). Each draw has its own draw of the population, so that the population's
uncertainty enters. The draws lie on the last axis of every array, so that loops over them vectorise.
"""

import math
from typing import Any

import numpy as np

from ivimbayes.numerics.arithmetic import logarithms
from ivimbayes.numerics.biexponential import curve_products, from_theta
from ivimbayes.numerics.jit import (
    Cube,
    Flags,
    Integers,
    Matrix,
    Separate,
    Vector,
    jit,
    load,
    missing,
    separate,
)
from ivimbayes.numerics.steps import Acquisition
from ivimbayes.voxelwise.averages import log_means, mean_weights, over_draws
from ivimbayes.voxelwise.density import add_student_population, evaluate_mono, rician_draws
from ivimbayes.voxelwise.draws import PopulationBlock
from ivimbayes.voxelwise.modes import mono_mode, rician_fit
from ivimbayes.voxelwise.passes import ENOUGH, ENOUGH_K, ENOUGH_TAIL, first_pass, robust_pass
from ivimbayes.voxelwise.points import Points
from ivimbayes.voxelwise.proposals import log_determinant, spread
from ivimbayes.voxelwise.summaries import FINER, describe, resample
from ivimbayes.voxelwise.weights import moments, normalise, spread_error
from ivimbayes.voxelwise.workspace import WIDTH, Work

FIELDS = 5  # mean, sd, median, ends of the interval
K_HAT, EVIDENCE, EFFECTIVE, SQUARE, PASSES = range(4 * FIELDS, 4 * FIELDS + 5)
COLUMNS = 4 * FIELDS + 5


@separate()
def weighted_draws(
    merged: Vector,
    raw: Vector,
    square: float,
    was_fitted: bool,
    acquisition: Acquisition,
    draws: PopulationBlock,
    some_draws: PopulationBlock,
    more_draws: PopulationBlock,
    points: Points,
    more_points: Points,
    work: Work,
) -> tuple[int, int, float, float, float, float]:
    """Weighted draws of one voxel: by the first pass, by it with more draws, or by the robust pass.

    Returns their number, the pass, and as `finish_weights`.
    """
    N, P = points.log_q.size, 4 if draws.rician == 1 else 3
    count, passes, used, drawn = N, 1, draws, points
    while True:
        top, total, effective, k = first_pass(
            count, work.theta, merged, raw, square, acquisition, used, drawn, work
        )
        if was_fitted and total > 0.0:
            before = k
            top, total, effective, k = mean_weights(count, True, square, used, some_draws, work)
            # A large k can come from population draws that few points cover, not from the proposal.
            k = min(k, before)
        good = k <= ENOUGH_K and (effective >= ENOUGH * N or passes == 2)
        if not good:
            break
        if passes == 2 or spread_error(N, work.w, total, work.value[2]) <= ENOUGH_TAIL:
            return count, passes, top, total, effective, k
        count, passes, used, drawn = more_points.log_q.size, 2, more_draws, more_points
    count = more_points.log_q.size
    top, total, effective, k = robust_pass(merged, raw, square, acquisition, more_draws, more_points, work)
    uncertain = not (k <= ENOUGH_K and effective >= 0.1 * count)  # perhaps because of the population's draws
    if total > 0.0 and P == 3 and (was_fitted or uncertain):
        before = k
        top, total, effective, k = mean_weights(count, was_fitted, square, more_draws, some_draws, work)
        k = min(k, before)
    return count, 2, top, total, effective, k


@jit
def _best_square(count, passes, signal, square, acquisition, work):
    """Least squared residual, at the mode or the best draw."""
    theta = work.theta
    if passes == 2:
        best = 0
        for s in range(1, count):
            higher = work.log_w[s] + work.log_q[s] > work.log_w[best] + work.log_q[best]
            best = s if higher else best
        for i in range(3):
            theta[i] = work.x[i, best]
    f, D, gap = from_theta(theta)
    G, gs = curve_products(f, 1.0 - f, D, gap, signal, acquisition, work.decays)
    return square - gs * gs / G


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
        describe(count, work.w, total, t, kind, extra, smoothing, interval, cell, work.counting)


@separate()
def log_odds(
    evidence: float,
    merged: Vector,
    raw: Vector,
    square: float,
    was_fitted: bool,
    acquisition: Acquisition,
    draws: PopulationBlock,
    some_draws: PopulationBlock,
    mono_points: Points,
    work: Work,
) -> float:
    """Log of the evidence of two compartments over that of one."""
    P, count, theta, L = 2 if draws.rician == 1 else 1, mono_points.log_q.size, work.theta, work.search.L
    mono_mode(theta, merged, square, acquisition, draws.prior, P, work.search, work.decays)
    spread(theta, L, work.ones, mono_points, P, 0, count, work.x)
    evaluate_mono(count, raw if P == 2 else merged, square, acquisition, draws, work)
    shift = log_determinant(L, P)
    for s in range(count):
        work.square[s] = mono_points.log_q[s] + shift
    if not was_fitted:
        for s in range(count):
            work.log_w[s] -= work.square[s]
        top, total, _ = normalise(count, work.log_w, work.w)
        return evidence - (top + math.log(total / count))
    ratio = work.mono_normaliser
    over_draws(count, True, square, draws, some_draws, 0, work)
    log_means(count, work.square, ratio, work)
    for r in range(WIDTH):
        ratio[r] -= work.normaliser[r]
    top, total, _ = normalise(WIDTH, ratio, work.w)
    return -(top + math.log(total / WIDTH))


@separate()
def map_voxels(
    merged: Matrix,
    raw: Matrix,
    square: Vector,
    identity: Integers,
    was_fitted: Flags,
    acquisition: Acquisition,
    draws: PopulationBlock,
    some_draws: PopulationBlock,
    more_draws: PopulationBlock,
    points: Points,
    more_points: Points,
    mono_points: Points,
    interval: float,
    bandwidth: float,
    seed: int,
    work: Work,
    out: Matrix,
    kept: Cube,
) -> None:
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
    was_fitted : ndarray of bool (voxel,)
        Whether the voxel was among those fitted.
    acquisition : Acquisition
    draws, some_draws, more_draws : PopulationBlock
        As many as `points` have draws, a multiple of `WIDTH`, and as many as `more_points` have.
    points, more_points, mono_points : Points
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
    rician = draws.rician == 1
    for v in range(merged.shape[0]):
        row, signal, yy, fitted = out[v], merged[v], square[v], was_fitted[v] and not rician
        for i in range(COLUMNS):
            row[i] = np.nan
        count, passes, top, total, effective, k = weighted_draws(
            signal, raw[v], yy, fitted, acquisition, draws, some_draws, more_draws, points, more_points, work
        )
        row[K_HAT], row[EFFECTIVE], row[PASSES] = k, effective, passes
        if not total > 0.0:
            continue
        used, normal = (draws, points.normal) if passes == 1 else (more_draws, more_points.normal)
        row[SQUARE] = used.prior.middle[0] * _best_square(count, passes, signal, yy, acquisition, work)
        smoothing = bandwidth if passes == 1 else FINER * bandwidth
        _summarise(count, total, rician, smoothing, interval, row, work)
        if kept.shape[2] > 0:
            resample(count, work.w, total, work.value, work.given, normal, rician, identity[v], seed, kept[v])
        evidence = top + math.log(total / count)
        row[EVIDENCE] = log_odds(
            evidence, signal, raw[v], yy, fitted, acquisition, draws, some_draws, mono_points, work
        )


@jit
def voxel_posteriors(
    merged,
    raw,
    square,
    identity,
    was_fitted,
    acquisition,
    draws,
    some_draws,
    more_draws,
    points,
    more_points,
    mono_points,
    interval,
    bandwidth,
    seed,
    work,
    out,
    kept,
):
    """Call `map_voxels` from Python, without the interpreter's lock."""
    map_voxels(
        merged,
        raw,
        square,
        identity,
        was_fitted,
        acquisition,
        draws,
        some_draws,
        more_draws,
        points,
        more_points,
        mono_points,
        interval,
        bandwidth,
        seed,
        work,
        out,
        kept,
    )


def _parts(rician: bool, student: bool) -> list[Any]:
    return [
        voxel_posteriors,
        *([rician_draws, rician_fit] if rician else []),
        *([add_student_population] if student else []),
    ]


def load_kernel(rician: bool, student: bool, alone: bool = False) -> None:
    """Compile or load what `voxel_posteriors` needs, for Rician noise and a Student-t population if asked."""
    load(*_parts(rician, student), alone=alone)


def missing_kernel(rician: bool, student: bool) -> list[Separate]:
    """Find what `load_kernel` would compile."""
    return missing(*_parts(rician, student))
