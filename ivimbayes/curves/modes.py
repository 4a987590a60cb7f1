# mypy: disallow_untyped_defs=False
"""Modes of a single curve's posterior within bounds, and how wide it is there; compiled."""

import math

import numpy as np

from ivimbayes.curves.density import FAR, MODES
from ivimbayes.numerics.biexponential import fill_decays
from ivimbayes.numerics.jit import jit
from ivimbayes.voxelwise.modes import cholesky

STARTS, STEPS = 7, 60
EDGE = 0.03  # distance of a start from the bounds, over that between them
SAME = 0.1  # distance below which two modes are one
STRIDE = 2.0  # from the mode to where the width of the posterior is measured, in sd


@jit
def place(theta, beliefs, phi):
    """Phi of the point nearest to theta that is within the bounds and not at them."""
    least = 0.0
    for i in range(3):
        low, high = beliefs.low[i], beliefs.high[i]
        if i == 0:
            value = 1.0 / (1.0 + math.exp(-theta[0]))
        elif i == 1:
            value = math.exp(theta[1])
        else:
            low = max(low, least)
            value = least + math.exp(theta[2])
        above = max(min(value, high) - low, EDGE * min(high - low, low))
        phi[i] = math.log(above / max(high - value, EDGE * (high - low)))
        least = low + (high - low) / (1.0 + math.exp(-phi[i]))


@jit
def _local(phi, signal, square, protocol, beliefs, gradient, H, decay):
    """Half of -2 log density in phi, S0 and sigma profiled out; its gradient and Gauss-Newton Hessian."""
    low, high, K = beliefs.low, beliefs.high, beliefs.measurements
    e0, e1, e2 = math.exp(-phi[0]), math.exp(-phi[1]), math.exp(-phi[2])
    s0, s1, s2 = 1.0 / (1.0 + e0), 1.0 / (1.0 + e1), 1.0 / (1.0 + e2)
    df, dD = (high[0] - low[0]) * s0 * s0 * e0, (high[1] - low[1]) * s1 * s1 * e1
    f, rest = low[0] + (high[0] - low[0]) * s0, 1.0 - high[0] + (high[0] - low[0]) * e0 * s0
    D = low[1] + (high[1] - low[1]) * s1
    least, tied = max(low[2], D), low[2] < D
    gap, dgap = least - D + (high[2] - least) * s2, (high[2] - least) * s2 * s2 * e2
    fill_decays(D, protocol, decay[0])
    fill_decays(D + gap, protocol, decay[1])
    slow = fast = 1.0
    G = gs = y0 = y1 = y2 = g0 = g1 = g2 = h00 = h01 = h02 = h11 = h12 = h22 = 0.0
    for k in range(protocol.b.size):
        b, W, y, s = protocol.b[k], protocol.weight[k], signal[k], int(protocol.step[k])
        if s >= 0:
            slow *= decay[0, s]
            fast *= decay[1, s]
        g = rest * slow + f * fast
        d0, d1, d2 = f * rest * (fast - slow), -b * D * g, -b * gap * f * fast
        G += W * g * g
        gs += y * g
        y0 += y * d0
        y1 += y * d1
        y2 += y * d2
        g0 += W * d0 * g
        g1 += W * d1 * g
        g2 += W * d2 * g
        h00 += W * d0 * d0
        h01 += W * d0 * d1
        h02 += W * d0 * d2
        h11 += W * d1 * d1
        h12 += W * d1 * d2
        h22 += W * d2 * d2
    free = gs / G
    c = min(max(free, beliefs.S0[2]), beliefs.S0[3])
    within = 1.0 / G if c == free else 0.0
    residual = max(square - c * (2.0 * gs - c * G), 0.0) + 2.0 * beliefs.sigma[1] ** 2
    h = (K - 2.0) / residual
    scale = h * c * c
    a0, a1, a2 = df / (f * rest), dD / D, dgap / gap
    a21 = -dD * (s2 if tied else 1.0) / gap  # of ln(D* - D) with D's phi
    t0, t1, t2 = math.log(f / rest), math.log(D), math.log(gap)
    p0, p1, p2 = beliefs.width[0] ** -2, beliefs.width[1] ** -2, beliefs.width[2] ** -2
    c0, c1, c2 = t0 - beliefs.centre[0], t1 - beliefs.centre[1], t2 - beliefs.centre[2]
    q0 = -h * c * (y0 - c * g0) + p0 * c0
    q1 = -h * c * (y1 - c * g1) + p1 * c1
    q2 = -h * c * (y2 - c * g2) + p2 * c2
    H00, H01, H02 = (
        scale * (h00 - within * g0 * g0) + p0,
        scale * (h01 - within * g0 * g1),
        scale * (h02 - within * g0 * g2),
    )
    H11, H12, H22 = (
        scale * (h11 - within * g1 * g1) + p1,
        scale * (h12 - within * g1 * g2),
        scale * (h22 - within * g2 * g2) + p2,
    )
    gradient[0] = a0 * q0 - (1.0 - 2.0 * s0) + df * (1.0 / f - 1.0 / rest)
    gradient[1] = a1 * q1 + a21 * q2 - (1.0 - 2.0 * s1) + a1 - (0.0 if tied else dD / gap)
    gradient[2] = a2 * q2 - (1.0 - 2.0 * s2) + a2
    H[0, 0] = a0 * a0 * H00 + 2.0 * s0 * s0 * e0
    H[0, 1] = a0 * (a1 * H01 + a21 * H02)
    H[0, 2] = a0 * a2 * H02
    H[1, 1] = a1 * a1 * H11 + 2.0 * a1 * a21 * H12 + a21 * a21 * H22 + 2.0 * s1 * s1 * e1
    H[1, 2] = a2 * (a1 * H12 + a21 * H22)
    H[2, 2] = a2 * a2 * H22 + 2.0 * s2 * s2 * e2
    value = 0.5 * (K - 2.0) * math.log(residual) - math.log(a0 * a1 * dgap / gap)
    return value + 0.5 * (p0 * c0 * c0 + p1 * c1 * c1 + p2 * c2 * c2)


@jit
def _find_mode(phi, signal, square, protocol, beliefs, L, search):
    """Move phi to the mode (Levenberg-Marquardt); the factor of the Hessian there into L. The objective."""
    gradient, trial_gradient, trial, step = search[0], search[1], search[2], search[3]
    H, trial_H, decay = search[4:8], search[8:12], search[12:14]
    damping, best = 1e-3, np.inf
    for i in range(3):
        trial[i] = phi[i]
    for _ in range(STEPS):
        value = _local(trial, signal, square, protocol, beliefs, trial_gradient, trial_H, decay)
        if value <= best:
            best, damping = value, max(0.1 * damping, 1e-9)
            for i in range(3):
                phi[i], gradient[i] = trial[i], trial_gradient[i]
                for j in range(3):
                    H[i, j] = trial_H[i, j]
        else:
            damping *= 10.0
            if damping > 1e9:
                break
        decrement = 0.0
        for i in range(3):
            H[i, i] *= 1.0 + damping
        good = cholesky(H, 3, L)
        for i in range(3):
            H[i, i] /= 1.0 + damping
        if not good:
            damping *= 10.0
            continue
        for i in range(3):
            step[i] = gradient[i]
            for k in range(i):
                step[i] -= L[i, k] * step[k]
            step[i] /= L[i, i]
            decrement += step[i] * step[i]
        if decrement < 1e-4:
            break
        for i in range(2, -1, -1):
            for k in range(i + 1, 3):
                step[i] -= L[k, i] * step[k]
            step[i] /= L[i, i]
        for i in range(3):
            trial[i] = min(max(phi[i] - min(max(step[i], -2.0), 2.0), -0.3 * FAR), 0.3 * FAR)
    return best if math.isfinite(best) and cholesky(H, 3, L) else np.inf


@jit
def _start(start, beliefs, theta, phi):
    """Phi of one of the starting points: the prior's centre, and 1.5 widths from it along each axis."""
    for i in range(3):
        theta[i] = beliefs.centre[i]
    if start > 0:
        theta[(start - 1) // 2] += (1.5 if start % 2 else -1.5) * beliefs.width[(start - 1) // 2]
    place(theta, beliefs, phi)


@jit
def find_modes(signal, square, protocol, beliefs, work, scratch):
    """Modes that the starting points lead to, best first, with their factors; their number."""
    modes, factors, heights, theta, phi, L = (
        scratch.modes, scratch.factors, scratch.heights, scratch.start, work.theta, work.L,
    )  # fmt: skip
    n = 0
    for start in range(STARTS):
        _start(start, beliefs, theta, phi)
        height = _find_mode(phi, signal, square, protocol, beliefs, L, work.search)
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
def fit_width(mode, L, height, signal, square, protocol, beliefs, stretch, search):
    """How much wider than the Hessian says the posterior is, to each side along each of its axes."""
    axis, trial = search[2], search[3]
    for j in range(3):
        for i in range(2, -1, -1):
            axis[i] = 1.0 if i == j else 0.0
            for k in range(i + 1, 3):
                axis[i] -= L[k, i] * axis[k]
            axis[i] /= L[i, i]
        for side in range(2):
            for i in range(3):
                trial[i] = mode[i] + (2 * side - 1) * STRIDE * axis[i]
            rise = (
                _local(trial, signal, square, protocol, beliefs, search[0], search[4:8], search[12:14])
                - height
            )
            fall = 2.0 * rise / STRIDE**2
            stretch[j, side] = 1.0 / math.sqrt(min(max(fall, 0.25), 2.0)) if math.isfinite(fall) else 1.0
