# mypy: disallow_untyped_defs=False
"""Modes of a single curve's posterior within bounds, and how wide it is there; compiled."""

import math

from ivimbayes.curves.density import FAR, MODES, Beliefs, Scratch
from ivimbayes.numerics.arithmetic import scalar_logistic
from ivimbayes.numerics.biexponential import (
    G0,
    G1,
    G2,
    GG,
    GY,
    H00,
    H01,
    H02,
    H11,
    H12,
    H22,
    Y0,
    Y1,
    Y2,
    theta_sums,
)
from ivimbayes.numerics.jit import Vector, jit, separate
from ivimbayes.numerics.levenberg_marquardt import accept_and_step, begin, end
from ivimbayes.numerics.steps import Acquisition
from ivimbayes.voxelwise.modes import STRIDE, axis_of, stretch_of
from ivimbayes.voxelwise.workspace import Work

STARTS, STEPS = 7, 60
EDGE = 0.03  # distance of a start from the bounds, over that between them
SAME = 0.1  # distance below which two modes are one


@jit
def place(theta, beliefs, phi):
    """Project theta into the open bounds and return it in the unbounded coordinates phi."""
    least = 0.0
    for i in range(3):
        low, high = beliefs.low[i], beliefs.high[i]
        if i == 0:
            value = scalar_logistic(theta[0])
        elif i == 1:
            value = math.exp(theta[1])
        else:
            low = max(low, least)
            value = least + math.exp(theta[2])
        above = max(min(value, high) - low, EDGE * min(high - low, low))
        phi[i] = math.log(above / max(high - value, EDGE * (high - low)))
        least = low + (high - low) * scalar_logistic(phi[i])


@separate()
def objective(
    phi: Vector, signal: Vector, square: float, acquisition: Acquisition, beliefs: Beliefs, work: Work
) -> float:
    """Half of -2 log density in phi, S0 and sigma profiled out.

    Its gradient and Gauss-Newton Hessian are left in ``work.search``.
    """
    low, high, K = beliefs.low, beliefs.high, beliefs.measurements
    e0, e1, e2 = math.exp(-phi[0]), math.exp(-phi[1]), math.exp(-phi[2])
    s0, s1, s2 = 1.0 / (1.0 + e0), 1.0 / (1.0 + e1), 1.0 / (1.0 + e2)
    df, dD = (high[0] - low[0]) * s0 * s0 * e0, (high[1] - low[1]) * s1 * s1 * e1
    f, rest = low[0] + (high[0] - low[0]) * s0, 1.0 - high[0] + (high[0] - low[0]) * e0 * s0
    D = low[1] + (high[1] - low[1]) * s1
    least, tied = max(low[2], D), low[2] < D
    gap, dgap = least - D + (high[2] - least) * s2, (high[2] - least) * s2 * s2 * e2
    theta_sums(f, rest, D, gap, signal, acquisition, work.decays)
    s, gradient, H = work.decays.by_theta, work.search.trial_gradient, work.search.trial_H
    free = s[GY] / s[GG]
    c = min(max(free, beliefs.S0[2]), beliefs.S0[3])
    within = 1.0 / s[GG] if c == free else 0.0
    residual = max(square - c * (2.0 * s[GY] - c * s[GG]), 0.0) + 2.0 * beliefs.sigma[1] ** 2
    h = (K - 2.0) / residual
    scale = h * c * c
    a0, a1, a2 = df / (f * rest), dD / D, dgap / gap
    a21 = -dD * (s2 if tied else 1.0) / gap  # of ln(D* - D) with D's phi
    p0, p1, p2 = beliefs.width[0] ** -2, beliefs.width[1] ** -2, beliefs.width[2] ** -2
    c0, c1 = math.log(f / rest) - beliefs.centre[0], math.log(D) - beliefs.centre[1]
    c2 = math.log(gap) - beliefs.centre[2]
    q0 = -h * c * (s[Y0] - c * s[G0]) + p0 * c0
    q1 = -h * c * (s[Y1] - c * s[G1]) + p1 * c1
    q2 = -h * c * (s[Y2] - c * s[G2]) + p2 * c2
    h00 = scale * (s[H00] - within * s[G0] * s[G0]) + p0
    h01 = scale * (s[H01] - within * s[G0] * s[G1])
    h02 = scale * (s[H02] - within * s[G0] * s[G2])
    h11 = scale * (s[H11] - within * s[G1] * s[G1]) + p1
    h12 = scale * (s[H12] - within * s[G1] * s[G2])
    h22 = scale * (s[H22] - within * s[G2] * s[G2]) + p2
    gradient[0] = a0 * q0 - (1.0 - 2.0 * s0) + df * (1.0 / f - 1.0 / rest)
    gradient[1] = a1 * q1 + a21 * q2 - (1.0 - 2.0 * s1) + a1 - (0.0 if tied else dD / gap)
    gradient[2] = a2 * q2 - (1.0 - 2.0 * s2) + a2
    H[0, 0] = a0 * a0 * h00 + 2.0 * s0 * s0 * e0
    H[0, 1] = a0 * (a1 * h01 + a21 * h02)
    H[0, 2] = a0 * a2 * h02
    H[1, 1] = a1 * a1 * h11 + 2.0 * a1 * a21 * h12 + a21 * a21 * h22 + 2.0 * s1 * s1 * e1
    H[1, 2] = a2 * (a1 * h12 + a21 * h22)
    H[2, 2] = a2 * a2 * h22 + 2.0 * s2 * s2 * e2
    value = 0.5 * (K - 2.0) * math.log(residual) - math.log(a0 * a1 * dgap / gap)
    return value + 0.5 * (p0 * c0 * c0 + p1 * c1 * c1 + p2 * c2 * c2)


@jit
def _find_mode(phi, signal, square, acquisition, beliefs, work):
    """Move phi to the mode; the factor of the Hessian there into ``work.search.L``. The objective."""
    search = work.search
    begin(phi, 3, search)
    for _ in range(STEPS):
        value = objective(search.trial, signal, square, acquisition, beliefs, work)
        if not accept_and_step(value, 3, phi, search):
            break
        for i in range(3):
            search.trial[i] = min(max(search.trial[i], -0.3 * FAR), 0.3 * FAR)
    return end(3, search)


@jit
def _start(start, beliefs, theta, phi):
    """Phi of one of the starting points: the prior's centre, and 1.5 widths from it along each axis."""
    for i in range(3):
        theta[i] = beliefs.centre[i]
    if start > 0:
        theta[(start - 1) // 2] += (1.5 if start % 2 else -1.5) * beliefs.width[(start - 1) // 2]
    place(theta, beliefs, phi)


@separate()
def find_modes(
    signal: Vector, square: float, acquisition: Acquisition, beliefs: Beliefs, work: Work, scratch: Scratch
) -> int:
    """Modes that the starting points lead to, best first, with their factors; their number."""
    modes, factors, heights, theta, phi, L = (
        scratch.modes, scratch.factors, scratch.heights, scratch.start, work.theta, work.search.L,
    )  # fmt: skip
    n = 0
    for start in range(STARTS):
        _start(start, beliefs, theta, phi)
        height = _find_mode(phi, signal, square, acquisition, beliefs, work)
        known = not math.isfinite(height)
        for c in range(n):
            away = 0.0
            for i in range(3):
                away = max(away, abs(phi[i] - modes[c, i]))
            known = known or away < SAME
        if known or n == MODES:
            continue
        at = n
        while at > 0 and heights[at - 1] > height:
            heights[at] = heights[at - 1]
            for i in range(3):
                modes[at, i] = modes[at - 1, i]
                for j in range(i + 1):
                    factors[at, i, j] = factors[at - 1, i, j]
            at -= 1
        heights[at], n = height, n + 1
        for i in range(3):
            modes[at, i] = phi[i]
            for j in range(i + 1):
                factors[at, i, j] = L[i, j]
    return n


@jit
def fit_width(mode, L, height, signal, square, acquisition, beliefs, work):
    """Fill ``work.stretch``: how much wider than its Hessian the posterior is, to each side of each axis."""
    axis, trial = work.search.step, work.search.trial
    for j in range(3):
        axis_of(L, 3, j, axis)
        for side in range(2):
            for i in range(3):
                trial[i] = mode[i] + (2 * side - 1) * STRIDE * axis[i]
            rise = objective(trial, signal, square, acquisition, beliefs, work) - height
            work.stretch[j, side] = stretch_of(rise)
