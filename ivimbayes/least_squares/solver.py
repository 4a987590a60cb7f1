# mypy: disallow_untyped_defs=False
"""Levenberg-Marquardt for one bi-exponential curve within bounds; compiled."""

from typing import NamedTuple

import numpy as np

from ivimbayes.numerics.arithmetic import Array
from ivimbayes.numerics.jit import jit
from ivimbayes.numerics.steps import B_DIGITS, step_table

FITTED = ("S0", "f", "D", "D_star")


S0, F, D, FAST = range(4)  # their places


STATUS = {"outside": 0, "ok": 1, "at_bound": 2, "not_identified": 3, "not_converged": 4, "bad_signal": 5}


OK, AT_BOUND, NOT_IDENTIFIED, NOT_CONVERGED, BAD_SIGNAL = range(1, 6)


SEGMENTED, REFINED, FULL = range(3)


GRID, GRID_LOW = 16, 2e-3  # trial values of D*, the lowest where no bound is higher


STEPS, PASSES = 200, 50


GRADIENT, LOOSE = 1e-16, 1e-8  # squared cosines between residual and Jacobian at which a fit has converged


STALL, EXACT, SAME, STUCK = 1e-14, 1e-28, 1e-12, 1e99


SINGULAR = 1e-12


FLAGS = ("free", "open")


class Acquisition(NamedTuple):
    """What the fits of all voxels share.

    Attributes
    ----------
    b, weight : ndarray (N,)
        Distinct b values, rising, and the images averaged into each.
    step, steps, pairs : ndarray (N,), (S,), (2, S)
        The few distinct steps between b values, as `step_table` gives them.
    place, averages : ndarray (K,)
        Which distinct b value each measurement has, and its images averaged.
    first : int
        The first distinct b value above the threshold.
    grid, fast : ndarray (G,), (G, N)
        Trial values of D* and their exponentials.
    low, high : ndarray (4,)
        Bounds of S0, f, D and D*.
    """

    b: Array
    weight: Array
    step: np.ndarray
    steps: Array
    pairs: np.ndarray
    place: np.ndarray
    averages: Array
    first: int
    grid: Array
    fast: Array
    low: Array
    high: Array


class Work(NamedTuple):
    """Scratch of one thread."""

    y: Array
    target: Array
    lead: Array
    power: Array
    part: Array
    free: np.ndarray
    open: np.ndarray
    H: Array
    L: Array
    x: Array
    gradient: Array
    scale: Array
    column: Array
    step: Array
    trial: Array
    other: Array
    third: Array
    bend: Array
    pull: Array


def make_protocol(b: Array, averages: Array, threshold: float, low: Array, high: Array) -> Acquisition:
    """Sort and merge the b values of a scan, shape (K,); bounds of S0, f, D and D*."""
    distinct, place = np.unique(np.asarray(b, float).round(B_DIGITS), return_inverse=True)
    averages = np.asarray(averages, float)
    grid = np.geomspace(max(low[FAST], min(GRID_LOW, 0.5 * high[FAST])), high[FAST], GRID)
    step, table = step_table(distinct)
    return Acquisition(
        distinct, np.bincount(place, averages), step.astype(int), table[0].copy(),
        np.ascontiguousarray(table[1:].astype(int)), place, averages,
        int(np.searchsorted(distinct, threshold, side="right")),
        grid, np.exp(-grid[:, None] * distinct), low, high,
    )  # fmt: skip


def make_work(n: int) -> Work:
    """Make the scratch for n distinct b values."""
    sizes = {"y": n, "target": n, "lead": n, "power": 2 * n, "part": (2, 2 * n), "H": (4, 4), "L": (4, 4)}
    return Work(*(np.zeros(sizes.get(name, 4), bool if name in FLAGS else float) for name in Work._fields))


@jit
def copy_values(source, target):
    """Copy the parameters."""
    for p in range(4):
        target[p] = source[p]


@jit
def residual_square(x, first, y, protocol, work):
    """Weighted squared residuals from one b value on; the exponentials of both compartments stay in work."""
    power, part, pairs, n = work.power, work.part, protocol.pairs, protocol.b.size
    for k in range(protocol.steps.size):
        i, j = pairs[0, k], pairs[1, k]
        part[0, k] = part[0, i] * part[0, j] if i >= 0 else np.exp(-protocol.steps[k] * x[D])
        part[1, k] = part[1, i] * part[1, j] if i >= 0 else np.exp(-protocol.steps[k] * x[FAST])
    slow, fast, total = 1.0, 1.0, 0.0
    for j in range(n):
        k = protocol.step[j]
        if k >= 0:
            slow, fast = slow * part[0, k], fast * part[1, k]
        power[j], power[n + j] = slow, fast
        if j >= first:
            r = y[j] - x[S0] * (x[F] * fast + (1 - x[F]) * slow)
            total += protocol.weight[j] * r * r
    return total


@jit
def fill_column(x, j, protocol, work):
    """Set column to the derivatives of the signal at one b value."""
    slow, fast, b = work.power[j], work.power[protocol.b.size + j], protocol.b[j]
    work.column[S0] = x[F] * fast + (1 - x[F]) * slow
    work.column[F] = x[S0] * (fast - slow)
    work.column[D] = -b * x[S0] * (1 - x[F]) * slow
    work.column[FAST] = -b * x[S0] * x[F] * fast


@jit
def normal_equations(x, first, y, curved, protocol, work):
    """Set the gradient to J'Wr, scale to the diagonal of J'WJ, and H to J'WJ or, curved, to half the Hessian.

    From the exponentials s (slow) and q (fast) in work: sums of b^n times ss, sq, qq, rs and rq, weighted.
    """
    n, s0, f, rest = protocol.b.size, x[S0], x[F], 1 - x[F]
    ss = sq = qq = bss = bsq = bqq = bbss = bbsq = bbqq = 0.0
    rs = rq = brs = brq = bbrs = bbrq = 0.0
    for j in range(first, n):
        b, s, q = protocol.b[j], work.power[j], work.power[n + j]
        ws, wq, r = protocol.weight[j] * s, protocol.weight[j] * q, y[j] - s0 * (f * q + rest * s)
        ss, sq, qq, rs, rq = ss + ws * s, sq + ws * q, qq + wq * q, rs + ws * r, rq + wq * r
        ws, wq = b * ws, b * wq
        bss, bsq, bqq, brs, brq = bss + ws * s, bsq + ws * q, bqq + wq * q, brs + ws * r, brq + wq * r
        ws, wq = b * ws, b * wq
        bbss, bbsq, bbqq = bbss + ws * s, bbsq + ws * q, bbqq + wq * q
        bbrs, bbrq = bbrs + ws * r, bbrq + wq * r
    g, H = work.gradient, work.H
    g[S0], g[F], g[D], g[FAST] = f * rq + rest * rs, s0 * (rq - rs), -s0 * rest * brs, -s0 * f * brq
    H[S0, S0] = f * f * qq + 2 * f * rest * sq + rest * rest * ss
    H[F, S0] = s0 * (f * qq + (rest - f) * sq - rest * ss)
    H[F, F] = s0 * s0 * (qq - 2 * sq + ss)
    H[D, S0] = -s0 * rest * (f * bsq + rest * bss)
    H[D, F] = -s0 * s0 * rest * (bsq - bss)
    H[D, D] = s0 * s0 * rest * rest * bbss
    H[FAST, S0] = -s0 * f * (f * bqq + rest * bsq)
    H[FAST, F] = -s0 * s0 * f * (bqq - bsq)
    H[FAST, D] = s0 * s0 * f * rest * bbsq
    H[FAST, FAST] = s0 * s0 * f * f * bbqq
    for p in range(4):
        work.scale[p] = H[p, p]
    if curved:
        H[F, S0] -= rq - rs
        H[D, S0] += rest * brs
        H[D, F] -= s0 * brs
        H[D, D] -= s0 * rest * bbrs
        H[FAST, S0] += f * brq
        H[FAST, F] += s0 * brq
        H[FAST, FAST] -= s0 * f * bbrq
    for p in range(4):
        for k in range(p):
            H[k, p] = H[p, k]


@jit
def factorise(use, damping, work):
    """Set L to the Cholesky factor of H + damping scale over the parameters in use; False if singular."""
    H, L = work.H, work.L
    for p in range(4):
        for q in range(p + 1):
            if not (use[p] and use[q]):
                L[p, q] = 1.0 if p == q else 0.0
                continue
            v = H[p, q] + damping * work.scale[p] if p == q else H[p, q]
            for k in range(q):
                v -= L[p, k] * L[q, k]
            if p > q:
                L[p, q] = v / L[q, q]
            elif v > SINGULAR * work.scale[p]:
                L[p, p] = np.sqrt(v)
            else:
                return False
    return True


@jit
def solve_factored(use, right, work, out):
    """Solve L L' out = right over the parameters in use; others are 0."""
    L = work.L
    for p in range(4):
        v = right[p] if use[p] else 0.0
        for k in range(p):
            v -= L[p, k] * out[k]
        out[p] = v / L[p, p]
    for p in range(3, -1, -1):
        v = out[p]
        for k in range(p + 1, 4):
            v -= L[k, p] * out[k]
        out[p] = v / L[p, p]


@jit
def levenberg_marquardt(x, first, y, protocol, work):
    """Fit the free parameters in place, within their bounds and D* > D: squared residual, and convergence.

    Parameters at a bound that the gradient pushes out are held for the step. A step that would take D* - D
    below a tenth of what it was is shortened.
    """
    low, high, g, scale = protocol.low, protocol.high, work.gradient, work.scale
    step, trial = work.step, work.trial
    square, exact = residual_square(x, first, y, protocol, work), 0.0
    for j in range(first, y.size):
        exact += EXACT * protocol.weight[j] * y[j] * y[j]
    damping = 1e-3
    for _ in range(STEPS):
        normal_equations(x, first, y, True, protocol, work)
        slope = 0.0
        for p in range(4):
            pushed_out = (x[p] <= low[p] and g[p] <= 0) or (x[p] >= high[p] and g[p] >= 0)
            work.open[p] = work.free[p] and scale[p] > 0 and not pushed_out
            if work.open[p]:
                slope = max(slope, g[p] * g[p] / scale[p])
        if slope <= GRADIENT * square + exact:
            return square, True
        while True:
            if not damping < STUCK:
                return square, False
            if not factorise(work.open, damping, work):
                damping *= 10
                continue
            solve_factored(work.open, g, work, step)
            gain = 0.0
            for p in range(4):
                gain += step[p] * (g[p] + damping * scale[p] * step[p])
                trial[p] = min(max(x[p] + step[p], low[p]), high[p]) if work.open[p] else x[p]
            if gain <= STALL * square:
                return square, damping <= 1 or slope <= LOOSE * square + exact
            gap, new_gap = x[FAST] - x[D], trial[FAST] - trial[D]
            if new_gap < 0.1 * gap:
                part = 0.9 * gap / (gap - new_gap)
                for p in range(4):
                    trial[p] = x[p] + part * (trial[p] - x[p])
            value = residual_square(trial, first, y, protocol, work)
            if value < square:
                break
            damping *= 10
        copy_values(trial, x)
        square, damping = value, max(damping / 10, 1e-9)
    return square, False
