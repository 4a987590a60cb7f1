# mypy: disallow_untyped_defs=False
"""Noise densities with their derivatives, voxels on the last axis; compiled."""

import numpy as np

from ivimbayes.models.bessel import BESSEL_HIGH, BESSEL_LOW, BESSEL_SPLIT
from ivimbayes.models.noise import T_NU
from ivimbayes.numerics.arithmetic import logarithm
from ivimbayes.numerics.jit import Matrix, Vector, jit, separate

NOISE_KINDS = ("gaussian", "rician", "student_t")


TOGETHER = 8  # factors whose logarithm is taken at once


# ---------------------------------------------------------------- Gaussian noise, S0 integrated out
#
# S0 ~ Normal(m, tau²). Let G be the sum of the squared curve, gs that of curve times signal,
# ratio = sigma² / tau² and total = G + ratio. Given the rest, S0 has the mean `S0_centre` and the variance
# sigma² / total.


@jit
def S0_centre(gs, total, m, ratio):
    """Mean of S0 given the signals and the curve."""
    return (ratio * m + gs) / total


@jit
def S0_square(square, total, centre, m, ratio):
    """Squared residuals of signals and of S0 from its mean m, over sigma², at the best S0, times sigma².

    ``square`` is the sum of the squared signals.
    """
    return square + (ratio * m * m - total * centre * centre)


@jit
def S0_log_density(square, total, centre, m, ratio, precision):
    """Log-density of the signals, S0 integrated out; without terms in sigma and S0's variance alone."""
    return -0.5 * (precision * S0_square(square, total, centre, m, ratio) + logarithm(total))


@separate(optional=True)
def gaussian(
    signal: Matrix,
    within: Vector,
    present: Vector,
    measurements: float,
    curve: Matrix,
    mean: float,
    variance: float,
    S0_variance: float,
    work: Matrix,
    curve_bar: Matrix,
    bars: Matrix,
) -> None:
    """Gaussian noise with S0 ~ Normal(mean, S0_variance) integrated out, as `gaussian_logp`.

    Leaves the adjoint of the weighted curve in ``curve_bar``, adds those of mean, variance and S0_variance to
    the rows of ``bars`` and the log-density without its determinant to the last row. ``work`` rows: G, S0
    given the curve, square, and 1 / (variance + S0_variance G), of which the determinant is made.
    """
    lanes = curve.shape[1]
    G, S0, square, inverse = work[0], work[1], work[2], work[3]
    ratio, precision, S0_precision = variance / S0_variance, 1.0 / variance, 1.0 / S0_variance
    for w in range(lanes):
        G[w] = 0.0
    for w in range(lanes):
        S0[w] = ratio * mean
    for k in range(curve.shape[0]):
        for w in range(lanes):
            G[w] += curve[k, w] * curve[k, w]
            S0[w] += curve[k, w] * signal[k, w]
    for w in range(lanes):
        S0[w] /= G[w] + ratio
        inverse[w] = 1.0 / (variance + S0_variance * G[w])
        square[w] = within[w]
    for k in range(curve.shape[0]):
        for w in range(lanes):
            e = signal[k, w] - S0[w] * curve[k, w]
            square[w] += e * e
            curve_bar[k, w] = S0[w] * e * precision - S0_variance * inverse[w] * curve[k, w]
    for w in range(lanes):
        d = (S0[w] - mean) * S0_precision
        q = square[w] * precision
        bars[0, w] += present[w] * d
        bars[1, w] += present[w] * 0.5 * ((q - (measurements - 1)) * precision - inverse[w])
        bars[2, w] += present[w] * 0.5 * (d * d - G[w] * inverse[w])
        bars[3, w] -= present[w] * 0.5 * (q + d * d * S0_variance)


@jit
def _polynomial(u, coefficients, p, slope):
    """Set p and slope to a polynomial of u and its derivative; the number of coefficients is 4 n + 1."""
    top = len(coefficients) - 1
    for w in range(u.size):
        p[w] = coefficients[top]
        slope[w] = 0.0
    for i in range(top - 1, 0, -4):
        c0, c1, c2, c3 = coefficients[i], coefficients[i - 1], coefficients[i - 2], coefficients[i - 3]
        for w in range(u.size):
            t, q, d = u[w], p[w], slope[w]
            d = d * t + q
            q = q * t + c0
            d = d * t + q
            q = q * t + c1
            d = d * t + q
            q = q * t + c2
            slope[w] = d * t + q
            p[w] = q * t + c3


@separate(optional=True)
def rician(
    signal: Matrix,
    present: Vector,
    curve: Matrix,
    S0: Vector,
    variance: float,
    curve_bar: Matrix,
    S0_bar: Vector,
    bars: Matrix,
    work: Matrix,
) -> None:
    """Rician noise given S0, as the one of `ivimbayes.models.noise`, without ln y and ln variance.

    Leaves the adjoints of the weighted curve and of S0, adds that of the variance and the log-density to rows
    1 and 3 of ``bars``. ``work`` has 7 rows.
    """
    lanes = curve.shape[1]
    z, u, p, slope, far_p, far_slope, product = (
        work[0], work[1], work[2], work[3], work[4], work[5], work[6],
    )  # fmt: skip
    precision = 1.0 / variance
    for w in range(lanes):
        S0_bar[w] = 0.0
        product[w] = 1.0
    for k in range(curve.shape[0]):
        y, g, out = signal[k], curve[k], curve_bar[k]
        least = np.inf
        for w in range(lanes):
            z[w] = y[w] * abs(S0[w] * g[w]) * precision
        for w in range(lanes):
            least = min(least, z[w] if present[w] > 0.0 else np.inf)
        for w in range(lanes):
            u[w] = 2.0 * BESSEL_SPLIT / max(z[w], BESSEL_SPLIT) - 1.0
        _polynomial(u, BESSEL_HIGH, far_p, far_slope)
        if least < BESSEL_SPLIT:
            for w in range(lanes):
                u[w] = 2.0 / BESSEL_SPLIT * min(z[w], BESSEL_SPLIT) - 1.0
            _polynomial(u, BESSEL_LOW, p, slope)
            for w in range(lanes):
                near = z[w] < BESSEL_SPLIT
                inverse = 1.0 / max(z[w], BESSEL_SPLIT)
                far = -0.5 * inverse - far_slope[w] / far_p[w] * 2.0 * BESSEL_SPLIT * inverse * inverse
                square = p[w] * p[w] if near else far_p[w] * far_p[w] * inverse / 6.283185307179586
                slope[w] = slope[w] / p[w] * (2.0 / BESSEL_SPLIT) if near else far
                product[w] *= square
        else:
            for w in range(lanes):
                inverse = 1.0 / max(z[w], BESSEL_SPLIT)
                slope[w] = -0.5 * inverse - far_slope[w] / far_p[w] * 2.0 * BESSEL_SPLIT * inverse * inverse
                product[w] *= far_p[w] * far_p[w] * inverse / 6.283185307179586
        for w in range(lanes):
            e = y[w] - abs(S0[w] * g[w])
            pull = (e + y[w] * slope[w]) * precision
            pull = pull if S0[w] * g[w] >= 0.0 else -pull
            out[w] = pull * S0[w]
            S0_bar[w] += pull * g[w]
            square = 0.5 * e * e * precision
            bars[1, w] += present[w] * (square - z[w] * slope[w] - 1.0) * precision
            bars[3, w] -= present[w] * square
        if (k + 1) % TOGETHER == 0 or k + 1 == curve.shape[0]:
            for w in range(lanes):
                bars[3, w] += present[w] * 0.5 * logarithm(product[w])
            for w in range(lanes):
                product[w] = 1.0
    for w in range(lanes):
        S0_bar[w] *= present[w]


@separate(optional=True)
def student_t(
    signal: Matrix,
    present: Vector,
    curve: Matrix,
    S0: Vector,
    variance: float,
    curve_bar: Matrix,
    S0_bar: Vector,
    bars: Matrix,
    work: Matrix,
) -> None:
    """Student-t noise given S0, as `rician`, without half of ln variance."""
    lanes = curve.shape[1]
    ratio, scale = work[0], 1.0 / (T_NU * variance)
    for w in range(lanes):
        S0_bar[w] = 0.0
    for k in range(curve.shape[0]):
        y, g, out = signal[k], curve[k], curve_bar[k]
        for w in range(lanes):
            e = y[w] - S0[w] * g[w]
            ratio[w] = 1.0 + e * e * scale
            pull = (T_NU + 1.0) * e * scale / ratio[w]
            out[w] = pull * S0[w]
            S0_bar[w] += pull * g[w]
            bars[1, w] += present[w] * 0.5 * (pull * e - 1.0) / variance
        for w in range(lanes):
            bars[3, w] -= present[w] * 0.5 * (T_NU + 1.0) * logarithm(ratio[w])
    for w in range(lanes):
        S0_bar[w] *= present[w]
