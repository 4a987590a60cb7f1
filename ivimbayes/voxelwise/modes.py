# mypy: disallow_untyped_defs=False
"""Mode of one voxel's posterior, and how wide the posterior is around it; compiled."""

import math

import numpy as np

from ivimbayes.numerics.biexponential import curve_products, fill_decays
from ivimbayes.numerics.jit import jit
from ivimbayes.voxelwise.density import BESSEL, BESSEL_CENTRE

STEPS = 40
STRIDE = 2.0  # from the mode to where the width of the posterior is measured, in sd


@jit
def _gaussian_fit(theta, signal, square, protocol, draws, gradient, H, decay):
    """Half of -2 log posterior with S0 profiled out, its gradient and Gauss-Newton Hessian; and S0."""
    noise, m, ratio = draws.middle[0], draws.middle[1], draws.middle[2]
    f, D, gap = 1.0 / (1.0 + math.exp(-theta[0])), math.exp(theta[1]), math.exp(theta[2])
    fill_decays(D, protocol, decay[0])
    fill_decays(D + gap, protocol, decay[1])
    slow = fast = 1.0
    G = gs = s0 = s1 = s2 = g0 = g1 = g2 = h00 = h01 = h02 = h11 = h12 = h22 = 0.0
    for k in range(protocol.b.size):
        b, W, y, s = protocol.b[k], protocol.weight[k], signal[k], int(protocol.step[k])
        if s >= 0:
            slow *= decay[0, s]
            fast *= decay[1, s]
        g = slow + f * (fast - slow)
        d0, d1, d2 = f * (1.0 - f) * (fast - slow), -b * D * g, -b * gap * f * fast
        G += W * g * g
        gs += y * g
        s0 += y * d0
        s1 += y * d1
        s2 += y * d2
        d0w, d1w, d2w = W * d0, W * d1, W * d2
        g0 += d0w * g
        g1 += d1w * g
        g2 += d2w * g
        h00 += d0w * d0
        h01 += d0w * d1
        h02 += d0w * d2
        h11 += d1w * d1
        h12 += d1w * d2
        h22 += d2w * d2
    total = G + ratio
    c = (ratio * m + gs) / total
    scale = noise * c * c
    gradient[0], gradient[1], gradient[2] = (
        -noise * c * (s0 - c * g0),
        -noise * c * (s1 - c * g1),
        -noise * c * (s2 - c * g2),
    )
    H[0, 0] = scale * (h00 - g0 * g0 / total)
    H[0, 1] = scale * (h01 - g0 * g1 / total)
    H[0, 2] = scale * (h02 - g0 * g2 / total)
    H[1, 1] = scale * (h11 - g1 * g1 / total)
    H[1, 2] = scale * (h12 - g1 * g2 / total)
    H[2, 2] = scale * (h22 - g2 * g2 / total)
    return 0.5 * noise * (square + ratio * m * m - total * c * c), c


@jit
def _rician_fit(theta, signal, protocol, draws, gradient, H):
    """`_gaussian_fit` for Rician noise, with S0 the last of theta and the curvature at least a tenth."""
    noise, m, ratio = draws.middle[0], draws.middle[1], draws.middle[2]
    f, D, gap, S0 = 1.0 / (1.0 + math.exp(-theta[0])), math.exp(theta[1]), math.exp(theta[2]), theta[3]
    value = 0.5 * noise * ratio * (S0 - m) ** 2
    for i in range(4):
        gradient[i] = 0.0
        for j in range(4):
            H[i, j] = 0.0
    gradient[3] = noise * ratio * (S0 - m)
    H[3, 3] = noise * ratio
    if S0 <= 0.0:
        return 1e300
    for k in range(protocol.place.size):
        n, y = protocol.averages[k] * noise, signal[k]
        b = protocol.b[int(protocol.place[k])]
        slow = math.exp(-b * D)
        fast = slow * math.exp(-b * gap)
        g = slow + f * (fast - slow)
        d = (S0 * f * (1.0 - f) * (fast - slow), -S0 * b * D * g, -S0 * b * gap * f * fast, g)
        mean = S0 * g
        z = n * y * mean
        u = (z - BESSEL_CENTRE) / (z + BESSEL_CENTRE)
        p, slope = BESSEL[16], 0.0
        for t in range(15, -1, -1):
            slope = slope * u + p
            p = p * u + BESSEL[t]
        # A = d ln I0 / dz, and its derivative
        A = 1.0 + slope / p * 2 * BESSEL_CENTRE / (z + BESSEL_CENTRE) ** 2
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


@jit
def cholesky(A, P, L):
    """Lower factor of a small symmetric matrix (upper triangle read); whether it is positive definite."""
    for j in range(P):
        for i in range(j, P):
            total = A[j, i]
            for k in range(j):
                total -= L[i, k] * L[j, k]
            if i == j:
                if not total > 0.0:
                    return False
                L[j, j] = math.sqrt(total)
            else:
                L[i, j] = total / L[j, j]
    return True


@jit
def find_mode(theta, signal, square, protocol, draws, P, H, L, search):
    """Move theta to the mode (Levenberg-Marquardt); leave the Cholesky factor of the Hessian there in L.

    Returns the objective, infinite where it failed, and S0. ``search`` is scratch, see `Work`.
    """
    gradient, trial_gradient, trial, step = search[0], search[1], search[2], search[3]
    trial_H, damped, decay = search[4:8], search[8:12], search[12:14]
    damping, best, S0 = 1e-3, np.inf, 0.0
    for i in range(P):
        trial[i] = theta[i]
    for _ in range(STEPS):
        if P == 3:
            value, c = _gaussian_fit(trial, signal, square, protocol, draws, trial_gradient, trial_H, decay)
        else:
            value, c = _rician_fit(trial, signal, protocol, draws, trial_gradient, trial_H), trial[3]
        for i in range(3):
            d = 0.0
            for j in range(3):
                d += draws.around[i, j] * (trial[j] - draws.centre[j])
            value += 0.5 * d * (trial[i] - draws.centre[i])
            trial_gradient[i] += d
            for j in range(i, 3):
                trial_H[i, j] += draws.around[i, j]
        if value <= best:
            best, S0, damping = value, c, max(0.1 * damping, 1e-9)
            for i in range(P):
                theta[i] = trial[i]
                gradient[i] = trial_gradient[i]
                for j in range(P):
                    H[i, j] = trial_H[i, j]
        else:
            damping *= 10.0
            if damping > 1e9:
                break
        for i in range(P):
            for j in range(i, P):
                damped[i, j] = H[i, j]
            damped[i, i] *= 1.0 + damping
        if not cholesky(damped, P, L):
            damping *= 10.0
            continue
        decrement = 0.0
        for i in range(P):
            step[i] = gradient[i]
            for k in range(i):
                step[i] -= L[i, k] * step[k]
            step[i] /= L[i, i]
            decrement += step[i] * step[i]
        if decrement < 1e-4:
            break
        for i in range(P - 1, -1, -1):
            for k in range(i + 1, P):
                step[i] -= L[k, i] * step[k]
            step[i] /= L[i, i]
        for i in range(P):
            trial[i] = theta[i] - min(max(step[i], -2.0), 2.0) if i < 3 else theta[i] - step[i]
    if not (math.isfinite(best) and cholesky(H, P, L)):
        return np.inf, S0
    return best, S0


@jit
def lone_mode(start, signal, square, protocol, draws, P, mode, L, search):
    """Mode of ln D and S0 of one compartment under Gaussian noise, and the factor of the Hessian there."""
    noise, m, ratio = draws.middle[0], draws.middle[1], draws.middle[2]
    around, centre = draws.middle[3], draws.centre[1]
    y, best, damping, trial = start, np.inf, 1e-3, start
    gradient, H, decay = 0.0, 1.0, search[12]
    for _ in range(STEPS):
        D = math.exp(trial)
        fill_decays(D, protocol, decay)
        G = gs = s1 = g1 = h11 = 0.0
        g = 1.0
        for k in range(protocol.b.size):
            b, W, s = protocol.b[k], protocol.weight[k], int(protocol.step[k])
            if s >= 0:
                g *= decay[s]
            d = -b * D * g
            G += W * g * g
            gs += signal[k] * g
            s1 += signal[k] * d
            g1 += W * d * g
            h11 += W * d * d
        total = G + ratio
        c = (ratio * m + gs) / total
        value = 0.5 * noise * (square + ratio * m * m - total * c * c) + 0.5 * around * (trial - centre) ** 2
        if value <= best:
            best, y, damping = value, trial, max(0.1 * damping, 1e-9)
            gradient = -noise * c * (s1 - c * g1) + around * (y - centre)
            H = noise * c * c * (h11 - g1 * g1 / total) + around
            mode[0], mode[1] = y, c
            L[0, 0] = math.sqrt(H)
            if P == 2:  # of ln D and S0, in that order
                L[0, 0] = math.sqrt(noise * c * c * h11 + around)
                L[1, 0] = noise * c * g1 / L[0, 0]
                L[1, 1] = math.sqrt(noise * total - L[1, 0] ** 2)
        else:
            damping *= 10.0
            if damping > 1e9:
                break
        step = gradient / (H * (1.0 + damping))
        if gradient * step < 1e-4:
            break
        trial = y - min(max(step, -2.0), 2.0)


@jit
def _objective(theta, merged, raw, square, protocol, draws, P, gradient, H, decay):
    """Half of -2 log posterior, S0 profiled out (Gaussian noise) or the last of theta."""
    if P == 3:
        noise, m, ratio = draws.middle[0], draws.middle[1], draws.middle[2]
        G, gs = curve_products(theta, merged, protocol, decay)
        value = 0.5 * noise * (square + ratio * m * m - (ratio * m + gs) ** 2 / (G + ratio))
    else:
        value = _rician_fit(theta, raw, protocol, draws, gradient, H)
    for i in range(3):
        for j in range(3):
            value += 0.5 * draws.around[i, j] * (theta[i] - draws.centre[i]) * (theta[j] - draws.centre[j])
    return value


@jit
def fit_stretch(mode, L, objective, merged, raw, square, protocol, draws, P, stretch, search):
    """How much wider than the Hessian says the posterior is, to each side along each of its axes."""
    gradient, axis, trial, H, decay = search[0], search[2], search[3], search[4:8], search[12:14]
    for j in range(P):
        for i in range(P - 1, -1, -1):
            axis[i] = 1.0 if i == j else 0.0
            for k in range(i + 1, P):
                axis[i] -= L[k, i] * axis[k]
            axis[i] /= L[i, i]
        for side in range(2):
            for i in range(P):
                trial[i] = mode[i] + (2 * side - 1) * STRIDE * axis[i]
            rise = _objective(trial, merged, raw, square, protocol, draws, P, gradient, H, decay) - objective
            fall = 2.0 * rise / STRIDE**2
            stretch[j, side] = 1.0 / math.sqrt(min(max(fall, 0.25), 2.0)) if math.isfinite(fall) else 1.0
