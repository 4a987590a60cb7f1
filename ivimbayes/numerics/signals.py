# mypy: disallow_untyped_defs=False
"""Compiled signal models and noise with their derivatives: voxels in lanes on the last axis.

Measurements of n averages are multiplied by sqrt(n), and so are their curves, in all that follows: they then
have the noise of one image.
"""

from typing import NamedTuple

import numpy as np

from ivimbayes.models.signals import Signal
from ivimbayes.numerics.arithmetic import exponential
from ivimbayes.numerics.jit import Cube, Matrix, allocating_jit, jit


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

    value: Matrix
    weight: Matrix
    rate: Matrix
    decay: Cube
    y: Matrix
    sums: Matrix


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
