# mypy: disallow_untyped_defs=False
"""Density of single curves that nothing else is known of: S0 and sigma their own, within bounds; compiled.

phi holds where f, D and D* lie between their bounds, as logits; D* has D as a lower bound too.
"""

import math
from typing import NamedTuple

import numpy as np

from ivimbayes.numerics.arithmetic import exponential, logarithm
from ivimbayes.numerics.biexponential import curve_sums, start_products, values_of_draws
from ivimbayes.numerics.jit import Cube, Matrix, Vector, jit, separate
from ivimbayes.numerics.noise import S0_centre, S0_square
from ivimbayes.numerics.steps import Acquisition
from ivimbayes.voxelwise.workspace import WIDTH, Work

MODES = 5  # of a curve at most
FAR = 100.0  # of phi


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

    centre: Vector
    width: Vector
    low: Vector
    high: Vector
    S0: Vector
    sigma: Vector
    measurements: float


class SigmaDraws(NamedTuple):
    """Numbers, common to all curves, from which sigma and S0 are drawn.

    Attributes
    ----------
    gamma : ndarray (N,)
        Draws of a gamma distribution of shape (measurements - 2) / 2 and rate 1.
    log_gamma : ndarray (N,)
        Log-density of their logarithm.
    normal : ndarray (N,)
        Standard normal.
    """

    gamma: Vector
    log_gamma: Vector
    normal: Vector


class Scratch(NamedTuple):
    """Scratch of one thread beside `Work`: theta (3, N), variance of the noise (N,), parts of a mixture."""

    theta: Matrix
    variance: Vector
    modes: Matrix
    factors: Cube
    share: Vector
    heights: Vector
    start: Vector
    flat: Vector


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
def log_mass(low, high):
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
        d0, d1, d2 = (
            (t0[w] - centre[0]) / width[0],
            (t1[w] - centre[1]) / width[1],
            (t2[w] - centre[2]) / width[2],
        )
        out[w] = logarithm(out[w]) - 0.5 * (d0 * d0 + d1 * d1 + d2 * d2)


@separate()
def evaluate_curves(
    count: int,
    signal: Vector,
    square: float,
    acquisition: Acquisition,
    beliefs: Beliefs,
    sigmas: SigmaDraws,
    work: Work,
    scratch: Scratch,
) -> None:
    """Log of prior times likelihood at the draws ``work.x`` of phi, over the density of their sigma.

    Fills ``work.log_w``, f, D, D* and S0 in ``work.value`` (of S0 its mean given the draw), its standard
    deviation in ``work.given``, and the variance of the noise.
    """
    x, log_w = work.x, work.log_w
    m, tau, S0_low, S0_high = beliefs.S0[0], beliefs.S0[1], beliefs.S0[2], beliefs.S0[3]
    K, bounded = beliefs.measurements, math.isfinite(S0_low) or math.isfinite(S0_high)
    floor, slope = 2.0 * beliefs.sigma[1] ** 2, 0.5 / beliefs.sigma[0] ** 2
    for o in range(0, count, WIDTH):
        n = min(WIDTH, count - o)
        _to_theta(o, n, x, scratch.theta, beliefs, log_w)
        values_of_draws(scratch.theta, o, n, work.value)
        start_products(o, n, acquisition, work.value, work)
        curve_sums(o, n, signal, acquisition, work.value, work)
        G, gs, out = work.sums[0], work.sums[1], log_w[o : o + n]
        S0, given, variance = work.value[3, o : o + n], work.given[o : o + n], scratch.variance[o : o + n]
        gamma, log_gamma = sigmas.gamma[o : o + n], sigmas.log_gamma[o : o + n]
        for w in range(n):
            c = min(max(gs[w] / G[w], S0_low), S0_high)
            residual = max(square - c * (2.0 * gs[w] - c * G[w]), 0.0) + floor
            variance[w] = 0.5 * residual / gamma[w]
        for w in range(n):
            v = variance[w]
            h, r = 1.0 / v, v / (tau * tau)
            total = G[w] + r
            c = S0_centre(gs[w], total, m, r)
            quadratic = S0_square(square, total, c, m, r) + floor
            # sigma ** (1 - K) with the measure of sigma itself: ln(sigma) counts once more
            out[w] += 0.5 * ((2.0 - K) * logarithm(v) - h * quadratic - logarithm(total)) - slope * v
            out[w] -= log_gamma[w]
            S0[w] = c
            given[w] = math.sqrt(v / total)
        if bounded:
            for w in range(n):
                out[w] += log_mass((S0_low - S0[w]) / given[w], (S0_high - S0[w]) / given[w])
