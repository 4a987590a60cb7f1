# mypy: disallow_untyped_defs=False
"""Least-squares fits of single voxels, compiled: segmented, and all parameters at once."""

import numpy as np

from ivimbayes.least_squares.solver import (
    AT_BOUND,
    EXACT,
    FAST,
    FULL,
    GRID,
    NOT_CONVERGED,
    NOT_IDENTIFIED,
    OK,
    PASSES,
    REFINED,
    S0,
    SAME,
    D,
    F,
    Problem,
    Work,
    copy_values,
    factorise,
    fill_column,
    levenberg_marquardt,
    normal_equations,
    residual_square,
    solve_factored,
)
from ivimbayes.numerics.biexponential import fill_decays
from ivimbayes.numerics.jit import Vector, jit, load, separate

OTHER_STARTS = ((1.0, 13), (0.4, 5))  # of the full fit: share of one compartment's D, and place in the grid
FAINT = 0.05  # the least f of these
GONE = 1e3  # a D* whose signal is gone at every b > 0
CLOSE = 1e-6  # a share of the range that counts as being at its end
COLLAPSED = 1e-3  # D*/D - 1 below which there is one compartment
AGREED = 1e-9  # relative change of D at which the two steps agree


# ---------------------------------------------------------------- one fit


@jit
def _start_slow(x, first, y, problem):
    """Fit ln A - bD to the signals from a b value on, weighted by their squares; f = 0."""
    n = sb = sl = bb = bl = 0.0
    for j in range(first, problem.acquisition.b.size):
        if y[j] > 0:
            w, b, v = problem.acquisition.weight[j] * y[j] * y[j], problem.acquisition.b[j], np.log(y[j])
            n, sb, sl, bb, bl = n + w, sb + w * b, sl + w * v, bb + w * b * b, bl + w * b * v
    spread = n * bb - sb * sb
    x[F], x[FAST] = 0.0, GONE
    x[D] = (sb * sl - n * bl) / spread if spread > 1e-9 * n * bb else 0.0
    x[D] = min(max(x[D], problem.low[D]), problem.high[D])
    x[S0] = np.exp((sl + x[D] * sb) / n) if n > 0 else 0.0


@separate()
def start_fast(x: Vector, start: int, stop: int, y: Vector, problem: Problem, work: Work) -> None:
    """Set S0, f and D* to the best of some D* of the grid, D as it is."""
    n, w, fast, slow = problem.acquisition.b.size, problem.acquisition.weight, problem.fast, work.decays.slow
    x[FAST] = GONE
    residual_square(x, 0, y, problem, work)
    ss = sy = most = 0.0
    for j in range(n):
        ss += w[j] * slow[j] * slow[j]
        sy += w[j] * slow[j] * y[j]
    low, high = problem.low[F], problem.high[F]
    for k in range(start, stop):
        if problem.grid[k] <= x[D]:
            continue
        ff = sf = fy = 0.0
        for j in range(n):
            v = w[j] * fast[k, j]
            ff += v * fast[k, j]
            sf += v * slow[j]
            fy += v * y[j]
        quick, calm = ss * fy - sf * sy, ff * sy - sf * fy
        f = low if quick <= 0 else high if calm <= 0 else min(max(quick / (quick + calm), low), high)
        gy = max(f * fy + (1 - f) * sy, 0.0)
        gg = f * f * ff + 2 * f * (1 - f) * sf + (1 - f) ** 2 * ss
        if x[FAST] == GONE or gy * gy / gg > most:
            most, x[S0], x[F], x[FAST] = gy * gy / gg, gy / gg, f, problem.grid[k]


@jit
def _fit(x, S0_free, f_free, D_free, fast_free, first, y, problem, work):
    """Fit the parameters named, from a b value on."""
    free = work.free
    free[S0], free[F], free[D], free[FAST] = S0_free, f_free, D_free, fast_free
    return levenberg_marquardt(x, first, y, problem, work)


# ---------------------------------------------------------------- one voxel


@jit
def _settle(x, square, fitted, mono, mono_square, y, problem):
    """Report f = 0, one compartment, when the two-compartment fit does not reduce the residual."""
    rounding = 0.0
    for j in range(y.size):
        rounding += 100 * EXACT * problem.acquisition.weight[j] * y[j] * y[j]
    if problem.low[F] <= 0 and mono_square <= (1 + SAME) * square + rounding:
        copy_values(mono, x)
        return mono_square, True
    return square, fitted


@separate()
def fast_step(x: Vector, y: Vector, problem: Problem, work: Work) -> tuple[float, bool]:
    """Second step: S0, f and D*, D held."""
    if x[F] <= CLOSE or x[FAST] > problem.high[FAST]:
        start_fast(x, 0, GRID, y, problem, work)
    square, fitted = _fit(x, True, True, False, True, 0, y, problem, work)
    mono, total, ss = work.other, 0.0, 0.0
    mono[S0], mono[F], mono[D], mono[FAST] = 0.0, 0.0, x[D], GONE
    residual_square(mono, 0, y, problem, work)
    for j in range(y.size):
        ss += problem.acquisition.weight[j] * work.decays.slow[j] ** 2
        total += problem.acquisition.weight[j] * work.decays.slow[j] * y[j]
    mono[S0] = max(total, 0.0) / ss
    mono_square = residual_square(mono, 0, y, problem, work)
    return _settle(x, square, fitted, mono, mono_square, y, problem)


@jit
def _lead(A, slow, problem, work):
    """Fill ``work.lead``: the change of the first step's D with each signal; zeros when D is at a bound."""
    ss = sb = bb = 0.0
    acquisition, decay = problem.acquisition, work.decays.slow
    work.lead[:] = 0.0
    if not (problem.low[D] < slow < problem.high[D] and A > 0):
        return
    fill_decays(slow, slow, acquisition, work.decays)
    for j in range(problem.first, decay.size):
        v = acquisition.weight[j] * decay[j] * decay[j]
        ss, sb, bb = ss + v, sb + v * acquisition.b[j], bb + v * acquisition.b[j] ** 2
    for j in range(problem.first, decay.size):
        v = acquisition.weight[j] * decay[j]
        work.lead[j] = v * (sb - ss * acquisition.b[j]) / (A * (ss * bb - sb * sb))


@jit
def _tie(x, tail, problem, work):
    """Differentiate the two-step iteration D -> D at its fixed point, from L, the factor of the second step.

    Newton's method and the standard errors need it. ``bend`` is the change of -(S0, f, D*) with D held in the
    second step; ``pull`` the change of -D of the first step with them, through the tail of the perfusion.
    """
    for p in range(4):
        work.column[p] = work.H[p, D] if work.free[p] else 0.0
    solve_factored(work.free, work.column, work, work.bend)
    work.pull[:] = 0.0
    if not tail:
        return 0.0
    n = problem.acquisition.b.size
    for j in range(problem.first, n):
        v = work.lead[j] * work.decays.fast[j]
        work.pull[S0] += v * x[F]
        work.pull[F] += v * x[S0]
        work.pull[FAST] -= v * problem.acquisition.b[j] * x[S0] * x[F]
    total = 0.0
    for p in range(4):
        total += work.pull[p] * work.bend[p] if work.free[p] else 0.0
    return total


@separate()
def segmented(x: Vector, refine: bool, y: Vector, problem: Problem, work: Work) -> tuple[float, float, bool]:
    """Fit D and the intercept above the threshold, then the rest; to refine, repeat without the tail.

    The repetition is a search for the D that comes back to itself, by Newton's steps within a bracket.
    """
    slow, target, first, n = work.other, work.target, problem.first, y.size
    _start_slow(x, first, y, problem)
    _, slow_fitted = _fit(x, True, False, True, False, first, y, problem, work)
    A = x[S0]
    square, fitted = fast_step(x, y, problem, work)
    if not refine or not (fitted and slow_fitted):
        return A, square, fitted and slow_fitted
    low, high = problem.low[D], problem.high[D]
    for _ in range(PASSES):
        residual_square(x, 0, y, problem, work)
        for j in range(first, n):
            target[j] = y[j] - x[S0] * x[F] * work.decays.fast[j]
        slow[S0], slow[F], slow[D], slow[FAST] = A, 0.0, x[D], GONE
        _, slow_fitted = _fit(slow, True, False, True, False, first, target, problem, work)
        A, change = slow[S0], slow[D] - x[D]
        if not slow_fitted:
            break
        if abs(change) <= AGREED * problem.high[D]:
            return A, square, fitted
        if change > 0:
            low = x[D]
        else:
            high = x[D]
        _lead(A, slow[D], problem, work)
        residual_square(x, 0, y, problem, work)
        normal_equations(x, 0, y, False, problem, work)
        work.free[S0], work.free[F], work.free[D], work.free[FAST] = True, x[F] > 0, False, x[F] > 0
        slope = _tie(x, True, problem, work) if factorise(work.free, 0.0, work) else 0.0
        x[D] += change / (1 - slope)
        if not low < x[D] < high:
            x[D] = 0.5 * (low + high)
        if x[FAST] <= x[D] * (1 + COLLAPSED):
            x[F] = 0.0
        square, fitted = fast_step(x, y, problem, work)
        if not fitted:
            break
    return A, square, False


@separate(optional=True)
def full(x: Vector, y: Vector, problem: Problem, work: Work) -> tuple[float, bool]:
    """Fit all parameters from the segmented values, and from two starts about one compartment's D."""
    mono, other = work.other, work.third
    segmented(x, False, y, problem, work)
    if x[FAST] > problem.high[FAST]:
        start_fast(x, 0, GRID, y, problem, work)
    square, fitted = _fit(x, True, True, True, True, 0, y, problem, work)
    _start_slow(mono, 0, y, problem)
    mono_square, _ = _fit(mono, True, False, True, False, 0, y, problem, work)
    for share, k in OTHER_STARTS:
        other[D] = max(share * mono[D], problem.low[D])
        start_fast(other, k, k + 1, y, problem, work)
        if other[FAST] > problem.high[FAST]:  # no D* of the bounds is above this D
            continue
        other[F] = min(max(other[F], FAINT), 1 - FAINT)
        other[F] = min(max(other[F], problem.low[F]), problem.high[F])
        again, again_fitted = _fit(other, True, True, True, True, 0, y, problem, work)
        if again_fitted and (again < square or not fitted):
            copy_values(other, x)
            square, fitted = again, True
    return _settle(x, square, fitted, mono, mono_square, y, problem)


@jit
def _at_end(p, x, problem):
    margin = CLOSE * (problem.high[p] - problem.low[p])
    return x[p] <= problem.low[p] + margin or x[p] >= problem.high[p] - margin


@jit
def _judge(x, problem, work, out):
    """Status of a fit that has converged, the free parameters in work; NaN in out for what means nothing."""
    free = work.free
    copy_values(x, out)
    free[S0] = x[S0] > 0
    for p in range(1, 4):
        free[p] = not _at_end(p, x, problem)
    status = OK if free[F] and free[D] and free[FAST] else AT_BOUND
    if x[S0] <= 0:
        free[F] = free[D] = free[FAST] = False
        out[F] = out[D] = out[FAST] = np.nan
        status = NOT_IDENTIFIED
    elif problem.low[F] <= 0 and x[F] <= 0:
        free[F] = free[FAST] = False
        out[FAST] = np.nan
        status = NOT_IDENTIFIED
    elif x[F] >= 1 - CLOSE:
        free[F] = free[D] = False
        out[D] = np.nan
        status = NOT_IDENTIFIED
    elif x[FAST] <= (1 + COLLAPSED) * x[D]:
        free[F] = free[FAST] = False
        out[F] = out[FAST] = np.nan
        status = NOT_IDENTIFIED
    return status


@separate()
def add_errors(
    x: Vector,
    A: float,
    square: float,
    count: int,
    method: int,
    y: Vector,
    problem: Problem,
    work: Work,
    out: Vector,
) -> bool:
    """Set the standard errors of the free parameters; False where the Jacobian is singular, D* then NaN.

    A change e of the signals changes D by ``lead`` e less what comes back through the tail, and the second
    step's parameters by their own pseudo-inverse less ``bend`` times that change of D.
    """
    free, change, total = work.free, work.step, work.trial
    two_steps = method != FULL and free[D]
    used = free[S0] * 1 + free[F] * 1 + free[D] * 1 + free[FAST] * 1
    work.lead[:] = 0.0
    if two_steps:
        _lead(A, x[D], problem, work)
    free[D] = free[D] and method == FULL
    residual_square(x, 0, y, problem, work)
    normal_equations(x, 0, y, False, problem, work)
    known = factorise(free, 0.0, work)
    if not known:
        if free[FAST]:
            free[FAST] = False
            out[FAST], used = np.nan, used - 1
        if not factorise(free, 0.0, work):
            return False
    if count <= used:
        return known
    slope = _tie(x, method == REFINED and two_steps, problem, work)
    total[:] = 0.0
    for j in range(y.size):
        fill_column(x, j, problem, work)
        solve_factored(free, work.column, work, change)
        D_change = work.lead[j] / problem.acquisition.weight[j]
        for p in range(4):
            D_change -= work.pull[p] * change[p]
        D_change /= 1 - slope
        for p in range(4):
            v = D_change if p == D and two_steps else change[p] - work.bend[p] * D_change
            total[p] += problem.acquisition.weight[j] * v * v
    free[D] = free[D] or two_steps
    for p in range(4):
        if free[p]:
            out[4 + p] = np.sqrt(total[p] * square / (count - used))
            if out[4 + p] > problem.high[p] - problem.low[p]:
                out[p] = out[4 + p] = np.nan
                known = False
    return known


@jit
def fit_voxels(signal, within, count, method, problem, work, out, status):
    """Fit voxels one by one.

    Parameters
    ----------
    signal : ndarray (V, M)
        Mean signal at each distinct b, scaled to about 1.
    within : ndarray (V,)
        Weighted sum of squares of the measurements about it.
    count : int
        Number of measurements of a voxel.
    method : int
        SEGMENTED, REFINED or FULL.
    problem : Problem
    work : Work
    out : ndarray (V, 8)
        Set to S0, f, D, D* and their standard errors.
    status : ndarray (V,)
        Set to a status.
    """
    x = work.x
    for v in range(signal.shape[0]):
        y, A = signal[v], 0.0
        for p in range(8):
            out[v, p] = np.nan
        if method == FULL:
            square, fitted = full(x, y, problem, work)
        else:
            A, square, fitted = segmented(x, method == REFINED, y, problem, work)
        if not fitted:
            status[v] = NOT_CONVERGED
            continue
        status[v] = _judge(x, problem, work, out[v])
        if not add_errors(x, A, square + within[v], count, method, y, problem, work, out[v]):
            status[v] = NOT_IDENTIFIED


def load_fits(method: int) -> None:
    """Compile or load what `fit_voxels` needs for a method."""
    load(fit_voxels)
    if method == FULL:
        load(full)
