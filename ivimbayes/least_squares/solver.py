# mypy: disallow_untyped_defs=False
"""Least squares of one bi-exponential curve within bounds, by Levenberg-Marquardt; compiled."""

from typing import NamedTuple

import numpy as np

from ivimbayes.numerics.arithmetic import Array
from ivimbayes.numerics.biexponential import (
    BBQQ,
    BBSQ,
    BBSS,
    BBYQ,
    BBYS,
    BQQ,
    BSQ,
    BSS,
    BYQ,
    BYS,
    QQ,
    SQ,
    SS,
    YQ,
    YS,
    Decays,
    curve_of,
    decay_sums,
    fill_decays,
    make_decays,
)
from ivimbayes.numerics.jit import Flags, Matrix, Vector, jit, separate
from ivimbayes.numerics.steps import Acquisition, make_acquisition
from ivimbayes.numerics.triangular import backward, cholesky, forward

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


class Problem(NamedTuple):
    """What the fits of all voxels share.

    Attributes
    ----------
    acquisition : Acquisition
    first : int
        The first distinct b value above the threshold.
    grid, fast : ndarray (G,), (G, M)
        Trial values of D* and their decays.
    low, high : ndarray (4,)
        Bounds of S0, f, D and D*.
    """

    acquisition: Acquisition
    first: int
    grid: Vector
    fast: Matrix
    low: Vector
    high: Vector


class Work(NamedTuple):
    """Scratch of one thread."""

    target: Vector
    lead: Vector
    residual: Vector
    decays: Decays
    free: Flags
    open: Flags
    H: Matrix
    damped: Matrix
    L: Matrix
    x: Vector
    gradient: Vector
    scale: Vector
    column: Vector
    step: Vector
    trial: Vector
    other: Vector
    third: Vector
    bend: Vector
    pull: Vector


def make_problem(b: Array, averages: Array, threshold: float, low: Array, high: Array) -> Problem:
    """Sort and merge the b values of a scan, shape (K,); bounds of S0, f, D and D*."""
    acquisition = make_acquisition(b, averages)
    grid = np.geomspace(max(low[FAST], min(GRID_LOW, 0.5 * high[FAST])), high[FAST], GRID)
    fast, decays = np.empty((GRID, len(acquisition.b))), make_decays(acquisition)
    for k, rate in enumerate(grid):
        fill_decays(rate, rate, acquisition, decays)
        fast[k] = decays.fast
    first = int(np.searchsorted(acquisition.b, threshold, side="right"))
    return Problem(acquisition, first, grid, fast, low, high)


def make_work(acquisition: Acquisition) -> Work:
    """Make the scratch for a scan."""
    n = len(acquisition.b)
    sizes: dict[str, int | tuple[int, int]] = {name: n for name in ("target", "lead", "residual")}
    sizes |= {name: (4, 4) for name in ("H", "damped", "L")}
    made = {
        name: np.zeros(sizes.get(name, 4), bool if name in FLAGS else float)
        for name in Work._fields
        if name != "decays"
    }
    return Work(decays=make_decays(acquisition), **made)


@jit
def copy_values(source, target):
    """Copy the parameters."""
    for p in range(4):
        target[p] = source[p]


@jit
def residual_square(x, first, y, problem, work):
    """Weighted squared residuals from one b value on; the decays of both compartments stay in work."""
    decays, total = work.decays, 0.0
    fill_decays(x[D], x[FAST], problem.acquisition, decays)
    for j in range(first, y.size):
        r = y[j] - x[S0] * curve_of(x[F], 1 - x[F], decays.slow[j], decays.fast[j])
        total += problem.acquisition.weight[j] * r * r
    return total


@jit
def fill_column(x, j, problem, work):
    """Set column to the derivatives of the signal at one b value."""
    slow, fast, b = work.decays.slow[j], work.decays.fast[j], problem.acquisition.b[j]
    work.column[S0] = curve_of(x[F], 1 - x[F], slow, fast)
    work.column[F] = x[S0] * (fast - slow)
    work.column[D] = -b * x[S0] * (1 - x[F]) * slow
    work.column[FAST] = -b * x[S0] * x[F] * fast


@separate()
def normal_equations(x: Vector, first: int, y: Vector, curved: bool, problem: Problem, work: Work) -> None:
    """Set the gradient to J'Wr, scale to the diagonal of J'WJ, and H to J'WJ or, curved, to half the Hessian.

    From the decays in work, of the residuals r.
    """
    s0, f, rest, weight = x[S0], x[F], 1 - x[F], problem.acquisition.weight
    for j in range(first, y.size):
        work.residual[j] = y[j] - s0 * (f * work.decays.fast[j] + rest * work.decays.slow[j])
    decay_sums(first, work.residual, weight, problem.acquisition, work.decays)
    s, g, H = work.decays.by_b, work.gradient, work.H
    g[S0], g[F] = f * s[YQ] + rest * s[YS], s0 * (s[YQ] - s[YS])
    g[D], g[FAST] = -s0 * rest * s[BYS], -s0 * f * s[BYQ]
    H[S0, S0] = f * f * s[QQ] + 2 * f * rest * s[SQ] + rest * rest * s[SS]
    H[F, S0] = s0 * (f * s[QQ] + (rest - f) * s[SQ] - rest * s[SS])
    H[F, F] = s0 * s0 * (s[QQ] - 2 * s[SQ] + s[SS])
    H[D, S0] = -s0 * rest * (f * s[BSQ] + rest * s[BSS])
    H[D, F] = -s0 * s0 * rest * (s[BSQ] - s[BSS])
    H[D, D] = s0 * s0 * rest * rest * s[BBSS]
    H[FAST, S0] = -s0 * f * (f * s[BQQ] + rest * s[BSQ])
    H[FAST, F] = -s0 * s0 * f * (s[BQQ] - s[BSQ])
    H[FAST, D] = s0 * s0 * f * rest * s[BBSQ]
    H[FAST, FAST] = s0 * s0 * f * f * s[BBQQ]
    for p in range(4):
        work.scale[p] = H[p, p]
    if curved:
        H[F, S0] -= s[YQ] - s[YS]
        H[D, S0] += rest * s[BYS]
        H[D, F] -= s0 * s[BYS]
        H[D, D] -= s0 * rest * s[BBYS]
        H[FAST, S0] += f * s[BYQ]
        H[FAST, F] += s0 * s[BYQ]
        H[FAST, FAST] -= s0 * f * s[BBYQ]
    for p in range(4):
        for k in range(p):
            H[k, p] = H[p, k]


@jit
def factorise(use, damping, work):
    """Set L to the Cholesky factor of H + damping scale over the parameters in use; False if singular."""
    damped, L = work.damped, work.L
    for p in range(4):
        for q in range(p, 4):
            used = use[p] and use[q]
            damped[p, q] = work.H[p, q] if used else 1.0 if p == q else 0.0
        if use[p]:
            damped[p, p] += damping * work.scale[p]
    if not cholesky(damped, 4, L):
        return False
    good = True
    for p in range(4):
        good = good and not (use[p] and not L[p, p] * L[p, p] > SINGULAR * work.scale[p])
    return good


@jit
def solve_factored(use, right, work, out):
    """Solve L L' out = right over the parameters in use; others are 0."""
    for p in range(4):
        out[p] = right[p] if use[p] else 0.0
    forward(work.L, 4, out)
    backward(work.L, 4, out)


@separate()
def levenberg_marquardt(x: Vector, first: int, y: Vector, problem: Problem, work: Work) -> tuple[float, bool]:
    """Fit the free parameters in place, within their bounds and D* > D: squared residual, and convergence.

    Parameters at a bound that the gradient pushes out are held for the step. A step that would take D* - D
    below a tenth of what it was is shortened.
    """
    low, high, g, scale = problem.low, problem.high, work.gradient, work.scale
    step, trial = work.step, work.trial
    square, exact = residual_square(x, first, y, problem, work), 0.0
    for j in range(first, y.size):
        exact += EXACT * problem.acquisition.weight[j] * y[j] * y[j]
    damping = 1e-3
    for _ in range(STEPS):
        normal_equations(x, first, y, True, problem, work)
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
            value = residual_square(trial, first, y, problem, work)
            if value < square:
                break
            damping *= 10
        copy_values(trial, x)
        square, damping = value, max(damping / 10, 1e-9)
    return square, False
