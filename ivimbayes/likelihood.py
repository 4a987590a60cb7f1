# mypy: disallow_untyped_defs=False
"""Compiled signal models and noise with their derivatives: voxels in lanes on the last axis.

Measurements of n averages are multiplied by sqrt(n), and so are their curves, in all that follows: they then
have the noise of one image.
"""

from typing import NamedTuple

import numpy as np

from ivimbayes.jit import allocating_jit, jit
from ivimbayes.lanes import exponential, logarithm
from ivimbayes.models.bessel import BESSEL_HIGH, BESSEL_LOW, BESSEL_SPLIT
from ivimbayes.models.noise import T_NU
from ivimbayes.models.signals import Signal

NOISE_KINDS = ("gaussian", "rician", "student_t")
TOGETHER = 8  # factors whose logarithm is taken at once


class Form(NamedTuple):
    """The numbers of a `Signal`: compartments besides tissue, rates, whether there is a kurtosis."""

    fractions: int
    rates: int
    kurtosis: int


class Shape(NamedTuple):
    """Scratch of `signal_curve`, C compartments, M measurements: see `make_shape`.

    Attributes
    ----------
    value : ndarray (parameter, lane)
        Shares (fraction over the fraction before), distances of the rates, kurtosis.
    weight, rate : ndarray (C, lane)
    decay : ndarray (C, M, lane)
    y : ndarray (rate and step, lane)
    sums : ndarray (2 C + 1, lane)
    """

    value: np.ndarray
    weight: np.ndarray
    rate: np.ndarray
    decay: np.ndarray
    y: np.ndarray
    sums: np.ndarray


def form_of(signal: Signal) -> Form:
    """Make the `Form` of a signal model."""
    return Form(signal.fractions, signal.rates, int(signal.kurtosis))


@allocating_jit
def make_shape(form, measurements, steps, lanes):
    """Allocate the scratch of `signal_curve`."""
    C, P = form.fractions + 1, form.fractions + form.rates + form.kurtosis
    return Shape(
        np.empty((P, lanes)),
        np.empty((C, lanes)),
        np.empty((C, lanes)),
        np.empty((C, measurements, lanes)),
        np.empty((form.rates * steps, lanes)),
        np.empty((2 * C + 1, lanes)),
    )


@jit
def _values(form, theta, shape):
    """Fill value, weight and rate."""
    F, R, P, lanes = form.fractions, form.rates, shape.value.shape[0], theta.shape[1]
    value, weight, rate = shape.value, shape.weight, shape.rate
    for i in range(F, P):
        row, each = value[i], theta[i]
        for w in range(lanes):
            row[w] = exponential(each[w])
    for w in range(lanes):
        weight[0, w] = 1.0
    for i in range(F):
        row, each = value[i], theta[i]
        for w in range(lanes):
            row[w] = 1.0 / (1.0 + exponential(-each[w]))
        for w in range(lanes):
            weight[i + 1, w] = weight[i, w] * value[i, w]
    for i in range(F):
        for w in range(lanes):
            weight[i, w] -= weight[i + 1, w]
    for c in range(R):
        for w in range(lanes):
            rate[c, w] = value[F + c, w]
        if c > 0:
            for w in range(lanes):
                rate[c, w] += rate[c - 1, w]


@jit
def _decays(form, b, step, steps, left, right, shape):
    """Fill decay: running products over the steps between b values, few, some sums of two others."""
    F, R, S, lanes = form.fractions, form.rates, steps.size, shape.rate.shape[1]
    y, rate, n = shape.y, shape.rate, 0
    if form.kurtosis:
        slow, each = shape.value[F + R], rate[0]
        for k in range(b.size):
            row = shape.decay[0, k]
            for w in range(lanes):
                v = min(b[k] * each[w], 3.0 / slow[w])
                row[w] = exponential(v * (v * slow[w] / 6.0 - 1.0))
    while n < S and left[n] < 0:
        for c in range(R):
            row, each = y[R * n + c], rate[c]
            for w in range(lanes):
                row[w] = exponential(-steps[n] * each[w])
        n += 1
    for s in range(n, S):
        i, j = int(left[s]), int(right[s])
        for c in range(R):
            row, one, other = y[R * s + c], y[R * i + c], y[R * j + c]
            for w in range(lanes):
                row[w] = one[w] * other[w]
    for c in range(form.kurtosis, R):
        decay = shape.decay[c]
        for k in range(b.size):
            s = int(step[k])
            if k == 0 and s < 0:
                for w in range(lanes):
                    decay[k, w] = 1.0
            elif k == 0:
                for w in range(lanes):
                    decay[k, w] = y[R * s + c, w]
            elif s < 0:
                for w in range(lanes):
                    decay[k, w] = decay[k - 1, w]
            else:
                for w in range(lanes):
                    decay[k, w] = decay[k - 1, w] * y[R * s + c, w]
    for c in range(R, F + 1):
        for k in range(b.size):
            shape.decay[c, k, :] = 1.0 if b[k] == 0.0 else 0.0


@jit
def signal_curve(form, theta, root, b, step, steps, left, right, curve, shape):
    """Curve times root for theta (parameter, lane), as `ivimbayes.models.signals.Signal.curve`."""
    _values(form, theta, shape)
    _decays(form, b, step, steps, left, right, shape)
    C, lanes, weight, decay = form.fractions + 1, theta.shape[1], shape.weight, shape.decay
    if C == 2:
        for k in range(b.size):
            out, r, one, other = curve[k], root[k], decay[0, k], decay[1, k]
            for w in range(lanes):
                out[w] = r[w] * (weight[0, w] * one[w] + weight[1, w] * other[w])
        return
    for k in range(b.size):
        out, r = curve[k], root[k]
        for w in range(lanes):
            out[w] = r[w] * weight[0, w] * decay[0, k, w]
        for c in range(1, C):
            for w in range(lanes):
                out[w] += r[w] * weight[c, w] * decay[c, k, w]


@jit
def signal_adjoint(form, curve_bar, root, b, shape, theta_bar):
    """Adjoint of theta from that of the weighted curve."""
    F, R, lanes = form.fractions, form.rates, root.shape[1]
    C, value, weight, sums = F + 1, shape.value, shape.weight, shape.sums
    plain, slope, bend = sums[:C], sums[C : 2 * C], sums[2 * C]
    for c in range(2 * C + 1):
        for w in range(lanes):
            sums[c, w] = 0.0
    for k in range(b.size):
        bk, bar, r = b[k], curve_bar[k], root[k]
        for c in range(C):
            decay, one, other = shape.decay[c, k], plain[c], slope[c]
            for w in range(lanes):
                each = bar[w] * r[w] * decay[w]
                one[w] += each
                other[w] += bk * each
        if form.kurtosis:
            decay, one, D, K = shape.decay[0, k], slope[0], shape.rate[0], value[F + R]
            for w in range(lanes):
                each, v = bar[w] * r[w] * decay[w], min(bk * D[w], 3.0 / K[w])
                one[w] -= bk * v * K[w] / 3.0 * each
                bend[w] += v * v / 6.0 * each
    # rates
    for c in range(R):
        for w in range(lanes):
            slope[c, w] *= -weight[c, w]
    if form.kurtosis:
        for w in range(lanes):
            theta_bar[F + R, w] = bend[w] * weight[0, w] * value[F + R, w]
    for c in range(R - 1, -1, -1):
        if c + 1 < R:
            for w in range(lanes):
                slope[c, w] += slope[c + 1, w]
        for w in range(lanes):
            theta_bar[F + c, w] = value[F + c, w] * slope[c, w]
    # shares: each scales its fraction and all later ones; a fraction is the weight of all later compartments
    for c in range(F, 0, -1):
        if c < F:
            for w in range(lanes):
                weight[c, w] += weight[c + 1, w]
        for w in range(lanes):
            theta_bar[c - 1, w] = weight[c, w] * (plain[c, w] - plain[c - 1, w])
    for c in range(F - 1, 0, -1):
        for w in range(lanes):
            theta_bar[c - 1, w] += theta_bar[c, w]
    for c in range(F):
        for w in range(lanes):
            theta_bar[c, w] *= 1.0 - value[c, w]


# ---------------------------------------------------------------- noise


@jit
def gaussian(
    signal, within, present, measurements, curve, mean, variance, S0_variance, work, curve_bar, bars
):
    """Gaussian noise with S0 ~ Normal(mean, S0_variance) integrated out, as `ivimbayes.models.noise.gaussian_logp`.

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


@jit
def rician(signal, present, curve, S0, variance, curve_bar, S0_bar, bars, work):
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


@jit
def student_t(signal, present, curve, S0, variance, curve_bar, S0_bar, bars, work):
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
