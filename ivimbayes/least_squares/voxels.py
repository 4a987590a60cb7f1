# mypy: disallow_untyped_defs=False
"""Least-squares fits of single voxels, compiled: segmented, and all parameters at once."""

import numpy as np

from ivimbayes.least_squares.solver import (
    AT_BOUND,
    BAD_SIGNAL,
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
    copy_values,
    factorise,
    fill_column,
    levenberg_marquardt,
    normal_equations,
    residual_square,
    solve_factored,
)
from ivimbayes.numerics.jit import jit

OTHER_STARTS = ((1.0, 13), (0.4, 5))  # of the full fit: share of one compartment's D, and place in the grid
FAINT = 0.05  # the least f of these
GONE = 1e3  # a D* whose signal is gone at every b > 0
CLOSE = 1e-6  # a share of the range that counts as being at its end
COLLAPSED = 1e-3  # D*/D - 1 below which there is one compartment
AGREED = 1e-9  # relative change of D at which the two steps agree


# ---------------------------------------------------------------- one fit


@jit
def _start_slow(x, first, y, protocol):
    """Fit ln A - bD to the signals from a b value on, weighted by their squares; f = 0."""
    n = sb = sl = bb = bl = 0.0
    for j in range(first, protocol.b.size):
        if y[j] > 0:
            w, b, v = protocol.weight[j] * y[j] * y[j], protocol.b[j], np.log(y[j])
            n, sb, sl, bb, bl = n + w, sb + w * b, sl + w * v, bb + w * b * b, bl + w * b * v
    spread = n * bb - sb * sb
    x[F], x[FAST] = 0.0, GONE
    x[D] = (sb * sl - n * bl) / spread if spread > 1e-9 * n * bb else 0.0
    x[D] = min(max(x[D], protocol.low[D]), protocol.high[D])
    x[S0] = np.exp((sl + x[D] * sb) / n) if n > 0 else 0.0


@jit
def _start_fast(x, ks, y, protocol, work):
    """Set S0, f and D* to the best of some D* of the grid, D as it is."""
    n, w, fast, power = protocol.b.size, protocol.weight, protocol.fast, work.power
    x[FAST] = GONE
    residual_square(x, 0, y, protocol, work)
    ss = sy = most = 0.0
    for j in range(n):
        ss += w[j] * power[j] * power[j]
        sy += w[j] * power[j] * y[j]
    low, high = protocol.low[F], protocol.high[F]
    for k in ks:
        if protocol.grid[k] <= x[D]:
            continue
        ff = sf = fy = 0.0
        for j in range(n):
            v = w[j] * fast[k, j]
            ff += v * fast[k, j]
            sf += v * power[j]
            fy += v * y[j]
        quick, calm = ss * fy - sf * sy, ff * sy - sf * fy
        f = low if quick <= 0 else high if calm <= 0 else min(max(quick / (quick + calm), low), high)
        gy = max(f * fy + (1 - f) * sy, 0.0)
        gg = f * f * ff + 2 * f * (1 - f) * sf + (1 - f) ** 2 * ss
        if x[FAST] == GONE or gy * gy / gg > most:
            most, x[S0], x[F], x[FAST] = gy * gy / gg, gy / gg, f, protocol.grid[k]


@jit
def _fit(x, S0_free, f_free, D_free, fast_free, first, y, protocol, work):
    """Fit the parameters named, from a b value on."""
    free = work.free
    free[S0], free[F], free[D], free[FAST] = S0_free, f_free, D_free, fast_free
    return levenberg_marquardt(x, first, y, protocol, work)


# ---------------------------------------------------------------- one voxel


@jit
def _settle(x, square, fitted, lone, lone_square, y, protocol):
    """Keep one compartment, written as f = 0, where two do no better."""
    rounding = 0.0
    for j in range(y.size):
        rounding += 100 * EXACT * protocol.weight[j] * y[j] * y[j]
    if protocol.low[F] <= 0 and lone_square <= (1 + SAME) * square + rounding:
        copy_values(lone, x)
        return lone_square, True
    return square, fitted


@jit
def _fast_step(x, y, protocol, work):
    """Second step: S0, f and D*, D held."""
    if x[F] <= CLOSE or x[FAST] > protocol.high[FAST]:
        _start_fast(x, range(GRID), y, protocol, work)
    square, fitted = _fit(x, True, True, False, True, 0, y, protocol, work)
    lone, total, ss = work.other, 0.0, 0.0
    lone[S0], lone[F], lone[D], lone[FAST] = 0.0, 0.0, x[D], GONE
    residual_square(lone, 0, y, protocol, work)
    for j in range(y.size):
        ss += protocol.weight[j] * work.power[j] ** 2
        total += protocol.weight[j] * work.power[j] * y[j]
    lone[S0] = max(total, 0.0) / ss
    lone_square = residual_square(lone, 0, y, protocol, work)
    return _settle(x, square, fitted, lone, lone_square, y, protocol)


@jit
def _lead(A, slow, protocol, work):
    """Change of D of the first step with each signal, into work.lead; none where D is at a bound."""
    ss = sb = bb = 0.0
    first, n = protocol.first, protocol.b.size
    work.lead[:] = 0.0
    if not (protocol.low[D] < slow < protocol.high[D] and A > 0):
        return
    for j in range(first, n):
        v = protocol.weight[j] * np.exp(-2 * protocol.b[j] * slow)
        ss, sb, bb = ss + v, sb + v * protocol.b[j], bb + v * protocol.b[j] ** 2
    for j in range(first, n):
        v = protocol.weight[j] * np.exp(-protocol.b[j] * slow)
        work.lead[j] = v * (sb - ss * protocol.b[j]) / (A * (ss * bb - sb * sb))


@jit
def _tie(x, tail, protocol, work):
    """Tie the two steps, from L over the free parameters of the second: how D returns to itself.

    ``bend`` is the change of -(S0, f, D*) with D held in the second step; ``pull`` the change of -D of the
    first step with them, through the tail of the perfusion.
    """
    for p in range(4):
        work.column[p] = work.H[p, D] if work.free[p] else 0.0
    solve_factored(work.free, work.column, work, work.bend)
    work.pull[:] = 0.0
    if not tail:
        return 0.0
    n = protocol.b.size
    for j in range(protocol.first, n):
        v = work.lead[j] * work.power[n + j]
        work.pull[S0] += v * x[F]
        work.pull[F] += v * x[S0]
        work.pull[FAST] -= v * protocol.b[j] * x[S0] * x[F]
    total = 0.0
    for p in range(4):
        total += work.pull[p] * work.bend[p] if work.free[p] else 0.0
    return total


@jit
def _segmented(x, refine, y, protocol, work):
    """Fit D and the intercept above the threshold, then the rest; to refine, repeat without the tail.

    The repetition is a search for the D that comes back to itself, by Newton's steps within a bracket.
    """
    slow, target, first, n = work.other, work.target, protocol.first, y.size
    _start_slow(x, first, y, protocol)
    _, slow_fitted = _fit(x, True, False, True, False, first, y, protocol, work)
    A = x[S0]
    square, fitted = _fast_step(x, y, protocol, work)
    if not refine or not (fitted and slow_fitted):
        return A, square, fitted and slow_fitted
    low, high = protocol.low[D], protocol.high[D]
    for _ in range(PASSES):
        residual_square(x, 0, y, protocol, work)
        for j in range(first, n):
            target[j] = y[j] - x[S0] * x[F] * work.power[n + j]
        slow[S0], slow[F], slow[D], slow[FAST] = A, 0.0, x[D], GONE
        _, slow_fitted = _fit(slow, True, False, True, False, first, target, protocol, work)
        A, change = slow[S0], slow[D] - x[D]
        if not slow_fitted:
            break
        if abs(change) <= AGREED * protocol.high[D]:
            return A, square, fitted
        if change > 0:
            low = x[D]
        else:
            high = x[D]
        _lead(A, slow[D], protocol, work)
        residual_square(x, 0, y, protocol, work)
        normal_equations(x, 0, y, False, protocol, work)
        work.free[S0], work.free[F], work.free[D], work.free[FAST] = True, x[F] > 0, False, x[F] > 0
        slope = _tie(x, True, protocol, work) if factorise(work.free, 0.0, work) else 0.0
        x[D] += change / (1 - slope)
        if not low < x[D] < high:
            x[D] = 0.5 * (low + high)
        if x[FAST] <= x[D] * (1 + COLLAPSED):
            x[F] = 0.0
        square, fitted = _fast_step(x, y, protocol, work)
        if not fitted:
            break
    return A, square, False


@jit
def _full(x, y, protocol, work):
    """Fit all parameters from the segmented values, and from two starts about one compartment's D."""
    lone, other = work.other, work.third
    _segmented(x, False, y, protocol, work)
    if x[FAST] > protocol.high[FAST]:
        _start_fast(x, range(GRID), y, protocol, work)
    square, fitted = _fit(x, True, True, True, True, 0, y, protocol, work)
    _start_slow(lone, 0, y, protocol)
    lone_square, _ = _fit(lone, True, False, True, False, 0, y, protocol, work)
    for share, k in OTHER_STARTS:
        other[D] = max(share * lone[D], protocol.low[D])
        _start_fast(other, range(k, k + 1), y, protocol, work)
        if other[FAST] > protocol.high[FAST]:  # no D* of the bounds is above this D
            continue
        other[F] = min(max(other[F], FAINT), 1 - FAINT)
        other[F] = min(max(other[F], protocol.low[F]), protocol.high[F])
        again, again_fitted = _fit(other, True, True, True, True, 0, y, protocol, work)
        if again_fitted and (again < square or not fitted):
            copy_values(other, x)
            square, fitted = again, True
    return _settle(x, square, fitted, lone, lone_square, y, protocol)


@jit
def _at_end(p, x, protocol):
    margin = CLOSE * (protocol.high[p] - protocol.low[p])
    return x[p] <= protocol.low[p] + margin or x[p] >= protocol.high[p] - margin


@jit
def _judge(x, protocol, work, out):
    """Status of a fit that has converged, the free parameters in work; NaN in out for what means nothing."""
    free = work.free
    copy_values(x, out)
    free[S0] = x[S0] > 0
    for p in range(1, 4):
        free[p] = not _at_end(p, x, protocol)
    status = OK if free[F] and free[D] and free[FAST] else AT_BOUND
    if x[S0] <= 0:
        free[F] = free[D] = free[FAST] = False
        out[F] = out[D] = out[FAST] = np.nan
        status = NOT_IDENTIFIED
    elif protocol.low[F] <= 0 and x[F] <= 0:
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


@jit
def _add_errors(x, A, square, count, method, y, protocol, work, out):
    """Set the standard errors of the free parameters; False where the Jacobian is singular, D* then NaN.

    A change e of the signals changes D by ``lead`` e less what comes back through the tail, and the second
    step's parameters by their own pseudo-inverse less ``bend`` times that change of D.
    """
    free, change, total = work.free, work.step, work.trial
    two_steps = method != FULL and free[D]
    used = free[S0] * 1 + free[F] * 1 + free[D] * 1 + free[FAST] * 1
    work.lead[:] = 0.0
    if two_steps:
        _lead(A, x[D], protocol, work)
    free[D] = free[D] and method == FULL
    residual_square(x, 0, y, protocol, work)
    normal_equations(x, 0, y, False, protocol, work)
    known = factorise(free, 0.0, work)
    if not known:
        if free[FAST]:
            free[FAST] = False
            out[FAST], used = np.nan, used - 1
        if not factorise(free, 0.0, work):
            return False
    if count <= used:
        return known
    slope = _tie(x, method == REFINED and two_steps, protocol, work)
    total[:] = 0.0
    for j in range(y.size):
        fill_column(x, j, protocol, work)
        solve_factored(free, work.column, work, change)
        D_change = work.lead[j] / protocol.weight[j]
        for p in range(4):
            D_change -= work.pull[p] * change[p]
        D_change /= 1 - slope
        for p in range(4):
            v = D_change if p == D and two_steps else change[p] - work.bend[p] * D_change
            total[p] += protocol.weight[j] * v * v
    free[D] = free[D] or two_steps
    for p in range(4):
        if free[p]:
            out[4 + p] = np.sqrt(total[p] * square / (count - used))
            if out[4 + p] > protocol.high[p] - protocol.low[p]:
                out[p] = out[4 + p] = np.nan
                known = False
    return known


@jit
def fit_voxels(signal, lowest, method, protocol, work, out, status):
    """Fit voxels one by one.

    Parameters
    ----------
    signal : ndarray (V, K)
    lowest : float
        Signals must be above it.
    method : int
        SEGMENTED, REFINED or FULL.
    protocol : Protocol
    work : Work
    out : ndarray (V, 8)
        Set to S0, f, D, D* and their standard errors.
    status : ndarray (V,)
        Set to a status.
    """
    x, y, weight, K = work.x, work.y, protocol.weight, protocol.place.size
    out[:] = np.nan
    for v in range(signal.shape[0]):
        scale, good = 0.0, True
        y[:] = 0.0
        for k in range(K):
            good = good and np.isfinite(signal[v, k]) and signal[v, k] > lowest
            scale = max(scale, abs(signal[v, k]))
            y[protocol.place[k]] += protocol.averages[k] * signal[v, k]
        if not good or scale == 0:
            status[v] = BAD_SIGNAL
            continue
        for j in range(y.size):
            y[j] /= weight[j] * scale
        within = 0.0
        for k in range(K):
            within += protocol.averages[k] * (signal[v, k] / scale - y[protocol.place[k]]) ** 2
        if method == FULL:
            A = 0.0
            square, fitted = _full(x, y, protocol, work)
        else:
            A, square, fitted = _segmented(x, method == REFINED, y, protocol, work)
        if not fitted:
            status[v] = NOT_CONVERGED
            continue
        status[v] = _judge(x, protocol, work, out[v])
        if not _add_errors(x, A, square + within, K, method, y, protocol, work, out[v]):
            status[v] = NOT_IDENTIFIED
        out[v, S0] *= scale
        out[v, 4 + S0] *= scale
