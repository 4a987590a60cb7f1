# mypy: disallow_untyped_defs=False
"""Mode of one voxel's posterior, and how wide the posterior is around it; compiled."""

import math

import numpy as np

from ivimbayes.models.bessel import COARSE, COARSE_CENTRE
from ivimbayes.numerics.biexponential import (
    BBSS,
    BSS,
    BYS,
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
    SS,
    Y0,
    Y1,
    Y2,
    YS,
    Decays,
    curve_of,
    curve_products,
    decay_sums,
    fill_decays,
    from_theta,
    theta_sums,
)
from ivimbayes.numerics.jit import Matrix, Vector, inlined_jit, separate
from ivimbayes.numerics.levenberg_marquardt import Search, accept_and_step, begin, end
from ivimbayes.numerics.noise import S0_centre, S0_square
from ivimbayes.numerics.steps import Acquisition
from ivimbayes.numerics.triangular import backward
from ivimbayes.voxelwise.draws import NormalPrior

STEPS = 40
STRIDE = 2.0  # from the mode to where the width of the posterior is measured, in sd


@inlined_jit
def _gaussian_fit(theta, signal, square, acquisition, prior, gradient, H, decays):
    """Half of -2 log posterior with S0 profiled out, its gradient and Gauss-Newton Hessian; and S0."""
    noise, m, ratio = prior.middle[0], prior.middle[1], prior.middle[2]
    f, D, gap = from_theta(theta)
    theta_sums(f, 1.0 - f, D, gap, signal, acquisition, decays)
    s = decays.by_theta
    total = s[GG] + ratio
    c = S0_centre(s[GY], total, m, ratio)
    scale = noise * c * c
    gradient[0] = -noise * c * (s[Y0] - c * s[G0])
    gradient[1] = -noise * c * (s[Y1] - c * s[G1])
    gradient[2] = -noise * c * (s[Y2] - c * s[G2])
    H[0, 0] = scale * (s[H00] - s[G0] * s[G0] / total)
    H[0, 1] = scale * (s[H01] - s[G0] * s[G1] / total)
    H[0, 2] = scale * (s[H02] - s[G0] * s[G2] / total)
    H[1, 1] = scale * (s[H11] - s[G1] * s[G1] / total)
    H[1, 2] = scale * (s[H12] - s[G1] * s[G2] / total)
    H[2, 2] = scale * (s[H22] - s[G2] * s[G2] / total)
    return 0.5 * noise * S0_square(square, total, c, m, ratio), c


@separate(optional=True)
def rician_fit(
    theta: Vector,
    signal: Vector,
    acquisition: Acquisition,
    prior: NormalPrior,
    gradient: Vector,
    H: Matrix,
    decays: Decays,
) -> float:
    """`_gaussian_fit` for Rician noise, with S0 the last of theta and the curvature at least a tenth."""
    noise, m, ratio, S0 = prior.middle[0], prior.middle[1], prior.middle[2], theta[3]
    f, D, gap = from_theta(theta)
    rest = 1.0 - f
    value = 0.5 * noise * ratio * (S0 - m) ** 2
    for i in range(4):
        gradient[i] = 0.0
        for j in range(4):
            H[i, j] = 0.0
    gradient[3] = noise * ratio * (S0 - m)
    H[3, 3] = noise * ratio
    if S0 <= 0.0:
        return 1e300
    fill_decays(D, D + gap, acquisition, decays)
    for k in range(acquisition.place.size):
        place = int(acquisition.place[k])
        n, y, b = acquisition.averages[k] * noise, signal[k], acquisition.b[place]
        slow, fast = decays.slow[place], decays.fast[place]
        g = curve_of(f, rest, slow, fast)
        d = (S0 * f * rest * (fast - slow), -S0 * b * D * g, -S0 * b * gap * f * fast, g)
        mean = S0 * g
        z = n * y * mean
        u = (z - COARSE_CENTRE) / (z + COARSE_CENTRE)
        p, slope = COARSE[16], 0.0
        for t in range(15, -1, -1):
            slope = slope * u + p
            p = p * u + COARSE[t]
        # A = d ln I0 / dz, and its derivative
        A = 1.0 + slope / p * 2 * COARSE_CENTRE / (z + COARSE_CENTRE) ** 2
        A -= 3.141592653589793 / (1.0 + 6.283185307179586 * z)
        bend = 0.5 if z < 1e-3 else 1.0 - A / z - A * A
        value += 0.5 * n * (y - mean) ** 2 - math.log(p) + 0.5 * math.log(1.0 + 6.283185307179586 * z)
        pull = n * (mean - y * A)
        curvature = n * max(1.0 - n * y * y * bend, 0.1)
        for i in range(4):
            gradient[i] += pull * d[i]
            for j in range(i, 4):
                H[i, j] += curvature * d[i] * d[j]
    return value


@inlined_jit
def _objective(theta, signal, square, acquisition, prior, P, search, decays):
    """Half of -2 log posterior at theta; its gradient and Hessian into ``search``. And S0."""
    gradient, H = search.trial_gradient, search.trial_H
    if P == 3:
        value, S0 = _gaussian_fit(theta, signal, square, acquisition, prior, gradient, H, decays)
    else:
        value, S0 = rician_fit(theta, signal, acquisition, prior, gradient, H, decays), theta[3]
    for i in range(3):
        d = 0.0
        for j in range(3):
            d += prior.around[i, j] * (theta[j] - prior.centre[j])
        value += 0.5 * d * (theta[i] - prior.centre[i])
        gradient[i] += d
        for j in range(i, 3):
            H[i, j] += prior.around[i, j]
    return value, S0


@separate()
def find_mode(
    theta: Vector,
    signal: Vector,
    square: float,
    acquisition: Acquisition,
    prior: NormalPrior,
    P: int,
    search: Search,
    decays: Decays,
) -> float:
    """Move theta to the mode; leave the Cholesky factor of the Hessian there in ``search.L``.

    P is 3, with S0 profiled out and set in theta[3], or under Rician noise 4. Returns the objective, infinite
    where the search failed.
    """
    S0 = 0.0
    search.reach[3] = np.inf
    begin(theta, P, search)
    for _ in range(STEPS):
        lowest = search.state[1]
        value, c = _objective(search.trial, signal, square, acquisition, prior, P, search, decays)
        S0 = c if value <= lowest else S0
        if not accept_and_step(value, P, theta, search):
            break
    theta[3] = S0
    return end(P, search)


@separate()
def mono_mode(
    mode: Vector,
    signal: Vector,
    square: float,
    acquisition: Acquisition,
    prior: NormalPrior,
    P: int,
    search: Search,
    decays: Decays,
) -> None:
    """Mode of ln D and S0 of one compartment under Gaussian noise, from the population's mean.

    ``search.L`` is the factor of the Hessian there: of ln D (P = 1), or of ln D and S0 (P = 2).
    """
    noise, m, ratio = prior.middle[0], prior.middle[1], prior.middle[2]
    around, centre = prior.middle[3], prior.centre[1]
    sums, S0, slope, bend, G = decays.by_b, 0.0, 0.0, 0.0, 0.0
    mode[0] = centre
    begin(mode, 1, search)
    for _ in range(STEPS):
        D, lowest = math.exp(search.trial[0]), search.state[1]
        fill_decays(D, D, acquisition, decays)
        decay_sums(0, signal, decays.ones, acquisition, decays)
        total = sums[SS] + ratio
        c = S0_centre(sums[YS], total, m, ratio)
        away = search.trial[0] - centre
        value = 0.5 * noise * S0_square(square, total, c, m, ratio) + 0.5 * around * away**2
        g1, h11 = -D * sums[BSS], D * D * sums[BBSS]
        search.trial_gradient[0] = -noise * c * (-D * sums[BYS] - c * g1) + around * away
        search.trial_H[0, 0] = noise * c * c * (h11 - g1 * g1 / total) + around
        if value <= lowest:
            S0, slope, bend, G = c, g1, h11, total
        if not accept_and_step(value, 1, mode, search):
            break
    mode[1] = S0
    end(1, search)
    if P == 2:
        L = search.L
        L[0, 0] = math.sqrt(noise * S0 * S0 * bend + around)
        L[1, 0] = noise * S0 * slope / L[0, 0]
        L[1, 1] = math.sqrt(noise * G - L[1, 0] ** 2)


@inlined_jit
def axis_of(L, P, j, axis):
    """Fill ``axis`` with one standard deviation along the j-th axis of a posterior; L factors its Hessian."""
    for i in range(P):
        axis[i] = 1.0 if i == j else 0.0
    backward(L, P, axis)


@inlined_jit
def stretch_of(rise):
    """How much wider than its Hessian a posterior is, from the rise of the objective over `STRIDE` sd."""
    fall = 2.0 * rise / STRIDE**2
    return 1.0 / math.sqrt(min(max(fall, 0.25), 2.0)) if math.isfinite(fall) else 1.0


@inlined_jit
def _height(theta, signal, square, acquisition, prior, P, search, decays):
    """`_objective` alone, without its gradient and Hessian under Gaussian noise."""
    if P == 4:
        value, _ = _objective(theta, signal, square, acquisition, prior, P, search, decays)
        return value
    noise, m, ratio = prior.middle[0], prior.middle[1], prior.middle[2]
    f, D, gap = from_theta(theta)
    G, gs = curve_products(f, 1.0 - f, D, gap, signal, acquisition, decays)
    total = G + ratio
    value = 0.5 * noise * S0_square(square, total, S0_centre(gs, total, m, ratio), m, ratio)
    for i in range(3):
        for j in range(3):
            away = (theta[i] - prior.centre[i]) * (theta[j] - prior.centre[j])
            value += 0.5 * prior.around[i, j] * away
    return value


@separate()
def fit_stretch(
    mode: Vector,
    lowest: float,
    signal: Vector,
    square: float,
    acquisition: Acquisition,
    prior: NormalPrior,
    P: int,
    search: Search,
    decays: Decays,
    stretch: Matrix,
) -> None:
    """Fill in how much wider than its Hessian the posterior is, to each side of each axis."""
    axis, trial = search.step, search.trial
    for j in range(P):
        axis_of(search.L, P, j, axis)
        for side in range(2):
            for i in range(P):
                trial[i] = mode[i] + (2 * side - 1) * STRIDE * axis[i]
            value = _height(trial, signal, square, acquisition, prior, P, search, decays)
            stretch[j, side] = stretch_of(value - lowest)
