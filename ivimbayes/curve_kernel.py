# mypy: disallow_untyped_defs=False
"""Posterior of single curves that nothing else is known of: S0 and sigma their own, within bounds; compiled.

phi holds where f, D and D* lie between their bounds, as logits; D* has D as a lower bound too. Given phi, S0
and sigma are drawn from close to their conditional posterior, so that three dimensions are left for
importance sampling, as in `kernel`: a Student-t around the mode, and where that fails a mixture.
"""

import math
from typing import NamedTuple

import numpy as np

from ivimbayes.kernel_data import WIDTH
from ivimbayes.kernel_density import curve_sums, start_products
from ivimbayes.kernel_modes import cholesky, fill_decays
from ivimbayes.kernel_passes import KERNELS, add_students, log_determinant, narrow_proposals, spread, spread_parts
from ivimbayes.kernel_summaries import describe
from ivimbayes.kernel_weights import finish_weights, moments, normalise, spread_error
from ivimbayes.lanes import Array, allocating_jit, exponential, jit, logarithm, logarithms

FIELDS = 5  # mean, sd, median, ends of the interval; of f, D, D*, S0
SIGMA, K_HAT, EFFECTIVE = range(4 * FIELDS, 4 * FIELDS + 3)
COLUMNS = 4 * FIELDS + 3
ENOUGH, ENOUGH_K = 0.5, 0.6  # share of effective draws and Pareto k that spare a curve the second pass
STARTS, MODES, ROUNDS, STEPS = 7, 5, 6, 60
EDGE = 0.03  # distance of a start from the bounds, over that between them
SAME, RIVAL = 0.1, 8.0  # distance below which two modes are one; difference in log density that counts
FAR = 100.0
STRIDE = 2.0  # from the mode to where the width of the posterior is measured, in sd


class Beliefs(NamedTuple):
    """Prior and bounds of curves that are scaled to a signal near 1 at b = 0.

    Attributes
    ----------
    centre, width : ndarray (3,)
        Normal prior of theta = (logit f, ln D, ln(D* - D)).
    low, high : ndarray (3,)
        Bounds of f, D and D*; those of D below that of D*.
    S0 : ndarray (4,)
        Mean and standard deviation of the normal prior of S0; its bounds, infinite where it has none.
    sigma : ndarray (2,)
        Scale of the half-normal prior of sigma, and the noise below which sigma is ruled out.
    measurements : float
        Number of measurements of a curve.
    """

    centre: Array
    width: Array
    low: Array
    high: Array
    S0: Array
    sigma: Array
    measurements: float


class Lanes(NamedTuple):
    """Numbers, common to all curves, from which sigma and S0 are drawn; all ndarray (N,).

    Attributes
    ----------
    gamma : ndarray (N,)
        Draws of a gamma distribution of shape (measurements - 2) / 2 and rate 1.
    log_gamma : ndarray (N,)
        Log-density of their logarithm.
    normal : ndarray (N,)
        Standard normal.
    """

    gamma: Array
    log_gamma: Array
    normal: Array


class Scratch(NamedTuple):
    """Scratch of one thread beside `Work`: theta (3, N), variance of the noise (N,), parts of a mixture."""

    theta: Array
    variance: Array
    modes: Array
    factors: Array
    share: Array
    heights: Array
    start: Array
    flat: Array


def make_scratch(count: int) -> Scratch:
    """Allocate scratch for `count` draws."""
    return Scratch(
        np.empty((3, count)), np.empty(count), np.empty((MODES + 1, 4)), np.zeros((MODES + 1, 4, 4)),
        np.empty(MODES + 1), np.empty(MODES + 1), np.empty(3), np.empty(count),
    )  # fmt: skip


@jit
def _log_erfc(x):
    """Log of the complementary error function, for x of 0 or more."""
    if x < 20.0:
        return math.log(math.erfc(x))
    q = 0.5 / (x * x)
    return -x * x - math.log(x * 1.7724538509055160) + math.log(1.0 - q * (1.0 - 3.0 * q))


@jit
def _log_mass(low, high):
    """Log of the probability that a standard normal number lies between two numbers."""
    if low > 0.0:
        low, high = -high, -low
    if high <= 0.0:
        top = _log_erfc(-high * 0.7071067811865476)
        rest = _log_erfc(-low * 0.7071067811865476) - top if low > -1e150 else -np.inf
        return top - 0.6931471805599453 + math.log(-math.expm1(rest)) if rest < 0.0 else -1e300
    outside = 0.5 * (math.erfc(-low * 0.7071067811865476) + math.erfc(high * 0.7071067811865476))
    return math.log1p(-outside)


@jit
def _to_theta(o, n, x, theta, beliefs, log_w):
    """Theta of the draws o to o + n, and their log prior with the volume element, into ``log_w``."""
    low, high, centre, width = beliefs.low, beliefs.high, beliefs.centre, beliefs.width
    l0, l1, l2, h0, h1, h2 = low[0], low[1], low[2], high[0], high[1], high[2]
    x0, x1, x2, out = x[0, o : o + n], x[1, o : o + n], x[2, o : o + n], log_w[o : o + n]
    t0, t1, t2 = theta[0, o : o + n], theta[1, o : o + n], theta[2, o : o + n]
    for w in range(n):
        e = exponential(-min(max(x0[w], -FAR), FAR))
        s = 1.0 / (1.0 + e)
        f, rest, span = l0 + (h0 - l0) * s, 1.0 - h0 + (h0 - l0) * e * s, (h0 - l0) * s * e * s
        t0[w] = logarithm(f / rest)
        out[w] = span / (f * rest)
    for w in range(n):
        e1 = exponential(-min(max(x1[w], -FAR), FAR))
        s1 = 1.0 / (1.0 + e1)
        D = l1 + (h1 - l1) * s1
        e2 = exponential(-min(max(x2[w], -FAR), FAR))
        s2 = 1.0 / (1.0 + e2)
        least = max(l2, D)
        gap = least - D + (h2 - least) * s2
        t1[w] = logarithm(D)
        t2[w] = logarithm(gap)
        out[w] *= (h1 - l1) * s1 * e1 * s1 / D * ((h2 - least) * s2 * e2 * s2 / gap)
    for w in range(n):
        d0, d1, d2 = (t0[w] - centre[0]) / width[0], (t1[w] - centre[1]) / width[1], (t2[w] - centre[2]) / width[2]
        out[w] = logarithm(out[w]) - 0.5 * (d0 * d0 + d1 * d1 + d2 * d2)


@jit
def evaluate_curves(count, signal, square, protocol, beliefs, lanes, x, log_w, work, scratch):
    """Log of prior times likelihood at the draws x of phi, over the density of their sigma.

    Fills f, D, D* and S0 in ``work.value`` (of S0 its mean given the draw), its standard deviation in
    ``work.given``, and the variance of the noise.
    """
    m, tau, S0_low, S0_high = beliefs.S0[0], beliefs.S0[1], beliefs.S0[2], beliefs.S0[3]
    K, bounded = beliefs.measurements, math.isfinite(S0_low) or math.isfinite(S0_high)
    floor, slope = 2.0 * beliefs.sigma[1] ** 2, 0.5 / beliefs.sigma[0] ** 2
    for o in range(0, count, WIDTH):
        n = min(WIDTH, count - o)
        _to_theta(o, n, x, scratch.theta, beliefs, log_w)
        start_products(scratch.theta, o, n, protocol, work.value, work)
        curve_sums(o, n, signal, protocol, work.value, work)
        G, gs, out = work.sums[0], work.sums[1], log_w[o : o + n]
        S0, given, variance = work.value[3, o : o + n], work.given[o : o + n], scratch.variance[o : o + n]
        gamma, log_gamma = lanes.gamma[o : o + n], lanes.log_gamma[o : o + n]
        for w in range(n):
            c = min(max(gs[w] / G[w], S0_low), S0_high)
            residual = max(square - c * (2.0 * gs[w] - c * G[w]), 0.0) + floor
            variance[w] = 0.5 * residual / gamma[w]
        for w in range(n):
            v = variance[w]
            h, r = 1.0 / v, v / (tau * tau)
            total = G[w] + r
            c = (r * m + gs[w]) / total
            quadratic = square + r * m * m - total * c * c + floor
            # sigma ** (1 - K) with the measure of sigma itself: ln(sigma) counts once more
            out[w] += 0.5 * ((2.0 - K) * logarithm(v) - h * quadratic - logarithm(total)) - slope * v
            out[w] -= log_gamma[w]
            S0[w] = c
            given[w] = math.sqrt(v / total)
        if bounded:
            for w in range(n):
                out[w] += _log_mass((S0_low - S0[w]) / given[w], (S0_high - S0[w]) / given[w])


@jit
def _place(theta, beliefs, phi):
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
    f, rest, D = low[0] + (high[0] - low[0]) * s0, 1.0 - high[0] + (high[0] - low[0]) * e0 * s0, 0.0
    D = low[1] + (high[1] - low[1]) * s1
    least, tied = max(low[2], D), D > low[2]
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
    H00, H01, H02 = scale * (h00 - within * g0 * g0) + p0, scale * (h01 - within * g0 * g1), scale * (h02 - within * g0 * g2)
    H11, H12, H22 = scale * (h11 - within * g1 * g1) + p1, scale * (h12 - within * g1 * g2), scale * (h22 - within * g2 * g2) + p2
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
    """Move phi to the mode (Levenberg-Marquardt), leave the factor of the Hessian there in L; the objective."""
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
    _place(theta, beliefs, phi)


@jit
def _find_modes(signal, square, protocol, beliefs, work, scratch):
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
def _stretch(mode, L, height, signal, square, protocol, beliefs, stretch, search):
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
            rise = _local(trial, signal, square, protocol, beliefs, search[0], search[4:8], search[12:14]) - height
            fall = 2.0 * rise / STRIDE**2
            stretch[j, side] = 1.0 / math.sqrt(min(max(fall, 0.25), 2.0)) if math.isfinite(fall) else 1.0


@jit
def _near_pass(count, height, signal, square, protocol, beliefs, lanes, points, work, scratch):
    """Weighted draws around the best mode. Returns as `finish_weights`."""
    mode, L, stretch, log_q = scratch.modes[0], scratch.factors[0], work.stretch, work.log_q
    _stretch(mode, L, height, signal, square, protocol, beliefs, stretch, work.search)
    spread(mode, L, stretch, points, 3, 0, count, work.x)
    evaluate_curves(count, signal, square, protocol, beliefs, lanes, work.x, work.log_w, work, scratch)
    shift = log_determinant(L, 3)
    for s in range(count):
        log_q[s] = points.log_q[s] + shift
    for i in range(3):
        z, down, up = points.z[i], math.log(stretch[i, 0]), math.log(stretch[i, 1])
        for s in range(count):
            log_q[s] -= up if z[s] > 0.0 else down
    for s in range(count):
        work.log_w[s] -= log_q[s]
    return finish_weights(count, work.log_w, work.w, work)


@jit
def _weigh(count, signal, square, protocol, beliefs, lanes, density, work, scratch):
    """Evaluate the draws in ``work.x``, weight them over the density of their proposal."""
    evaluate_curves(count, signal, square, protocol, beliefs, lanes, work.x, work.log_w, work, scratch)
    logarithms(density[:count], work.log_q[:count])
    for s in range(count):
        work.log_w[s] -= work.log_q[s]
    return finish_weights(count, work.log_w, work.w, work)


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
    _place(beliefs.centre, beliefs, modes[n])
    for i in range(3):
        low, high = max(beliefs.low[i], 0.0), beliefs.high[i]
        s = 1.0 / (1.0 + math.exp(-modes[n, i]))
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
            add_students(points.log_q.size, centres[c], factor, share / KERNELS, 3, work.x, density, work)


@allocating_jit
def _wide_pass(n, tail, signal, square, protocol, beliefs, lanes, points, work, scratch):
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
        add_students(count, modes[c], factors[c], share[c], 3, work.x, density, work)
    result = _weigh(count, signal, square, protocol, beliefs, lanes, density, work, scratch)
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
            add_students(count, modes[c], factors[c], share[c] * kept / count, 3, work.x, density, work)
        _add_kernels(centres, factor, 0, near, near / count, points, ones, density, False, work)
        _add_kernels(far_centres, far_factor, near, far, far / count, points, ones, density, False, work)
        result = _weigh(count, signal, square, protocol, beliefs, lanes, density, work, scratch)
        narrow *= 0.7
    return result


@jit
def _draw_S0(count, beliefs, lanes, work):
    """Turn the mean and standard deviation of S0 given each draw into a draw of it, within its bounds."""
    S0, given, low, high = work.value[3], work.given, beliefs.S0[2], beliefs.S0[3]
    for s in range(count):
        drawn = S0[s] + given[s] * lanes.normal[s]
        if drawn < low or drawn > high:  # exponential decay from the bound that it was drawn beyond
            bound = low if drawn < low else high
            away = abs(bound - S0[s]) / given[s] + 1.0
            u = 0.5 * math.erfc(abs(lanes.normal[s]) * 0.7071067811865476) * 2.0
            inward = -math.log(max(u, 1e-12)) * given[s] / away
            drawn = min(max(bound + (inward if drawn < low else -inward), low), high)
        S0[s] = drawn


@jit
def _summarise(count, total, smoothing, interval, beliefs, lanes, row, work, scratch):
    """Fill in mean, sd, median and interval of f, D, D* and S0, and the mean of sigma."""
    low, high = beliefs.low, beliefs.high
    _draw_S0(count, beliefs, lanes, work)
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
        describe(count, work.w, total, t, 2 if i == 3 else 0, 0.0, smoothing, interval, cell, work)
        cell[0], cell[1] = mean, math.sqrt(variance)
        first, last = (least if i == 2 else low[i], high[i]) if i < 3 else (beliefs.S0[2], beliefs.S0[3])
        for j in range(2, 5):
            if i < 3:
                cell[j] = first + (last - first) * cell[j]
            cell[j] = min(max(cell[j], first), last)


@jit
def curve_posteriors(
    merged, square, protocol, beliefs, points, more_points, lanes, more_lanes, tail, interval, bandwidth,
    work, scratch, out,
):  # fmt: skip
    """Summarise the posterior of every curve, each with an S0 and a sigma of its own.

    Parameters
    ----------
    merged : ndarray (curve, M)
        Sum of the signals at each b.
    square : ndarray (curve,)
        Sum of squared signals.
    protocol : Protocol
    beliefs : Beliefs
    points, more_points : Points
        For the first pass and the second.
    lanes, more_lanes : Lanes
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
        n = _find_modes(signal, yy, protocol, beliefs, work, scratch)
        height, count, used, smoothing = scratch.heights[0], points.log_q.size, lanes, bandwidth
        alone = n == 1 or (n > 1 and scratch.heights[1] > height + RIVAL)
        total, effective, k = 0.0, 0.0, np.inf
        if alone:
            _, total, effective, k = _near_pass(
                count, height, signal, yy, protocol, beliefs, lanes, points, work, scratch
            )
        good = k <= ENOUGH_K and effective >= ENOUGH * count
        if not (good and _tail_error(count, total, work) <= tail):
            count, used, smoothing = more_points.log_q.size, more_lanes, 0.6 * bandwidth
            _, total, effective, k = _wide_pass(
                n, tail, signal, yy, protocol, beliefs, more_lanes, more_points, work, scratch
            )
        row[K_HAT], row[EFFECTIVE] = k, effective
        if total > 0.0:
            _summarise(count, total, smoothing, interval, beliefs, used, row, work, scratch)
