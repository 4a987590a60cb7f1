# mypy: disallow_untyped_defs=False
"""Compiled signal models with their derivatives: voxels in lanes on the last axis.

The decay of tissue is one of `ivimbayes.models.signals.DECAYS`, chosen by its place there. An exponential is
a running product over the steps between b values. Each other kind has two functions of numbers here, its
decay and its slopes, which the loops over lanes call and the compiler inlines.

Measurements of n averages are multiplied by sqrt(n), and so are their curves, in all that follows: they then
have the noise of one image.
"""

import math
from typing import NamedTuple

import numpy as np

from ivimbayes.models.parameters import LOGIT, PARAMETERS
from ivimbayes.models.signals import DECAYS, Signal
from ivimbayes.numerics.arithmetic import exponential, logistic
from ivimbayes.numerics.jit import Cube, Matrix, Vector, allocating_jit, jit

KINDS = tuple(DECAYS)
EXPONENTIAL, KURTOSIS, STRETCHED = (KINDS.index(kind) for kind in ("exponential", "kurtosis", "stretched"))
SHAPES = tuple(len(decay.shape) for decay in DECAYS.values())  # shape parameters of each kind: none, or one
SHAPE_LOGITS = tuple(  # whether the link of that is the logit; else it is the logarithm
    any(PARAMETERS[name].link is LOGIT for name in decay.shape) for decay in DECAYS.values()
)


class Form(NamedTuple):
    """The numbers of a `Signal`: compartments besides tissue, rates, place of its decay in `DECAYS`."""

    fractions: int
    rates: int
    kind: int


class Shape(NamedTuple):
    """Scratch of `signal_curve`, C compartments, M measurements: see `make_shapes`.

    Attributes
    ----------
    value : ndarray (parameter, lane)
        Shares (fraction over the fraction before), distances of the rates, the shape parameter of tissue.
    weight, rate : ndarray (C, lane)
    ln_D : ndarray (lane,)
        Logarithm of the rate of tissue.
    decay : ndarray (C, M, lane)
    y : ndarray (rate and step, lane)
    sums : ndarray (2 C + 1, lane)
    """

    value: Matrix
    weight: Matrix
    rate: Matrix
    ln_D: Vector
    decay: Cube
    y: Matrix
    sums: Matrix


def form_of(signal: Signal) -> Form:
    """Make the `Form` of a signal model."""
    return Form(signal.fractions, signal.rates, KINDS.index(signal.tissue.name))


@allocating_jit
def make_shapes(form, measurements, steps, lanes, blocks):
    """Allocate the scratch of `signal_curve` for blocks of voxels, the block first; see `shape_at`."""
    C, P = form.fractions + 1, form.fractions + form.rates + SHAPES[form.kind]
    return (
        np.empty((blocks, P, lanes)),
        np.empty((blocks, C, lanes)),
        np.empty((blocks, C, lanes)),
        np.empty((blocks, lanes)),
        np.empty((blocks, C, measurements, lanes)),
        np.empty((blocks, form.rates * steps, lanes)),
        np.empty((blocks, 2 * C + 1, lanes)),
    )


@allocating_jit
def shape_at(shapes, block):
    """Scratch of one block."""
    value, weight, rate, ln_D, decay, y, sums = shapes
    return Shape(value[block], weight[block], rate[block], ln_D[block], decay[block], y[block], sums[block])


@allocating_jit
def make_shape(form, measurements, steps, lanes):
    """Allocate the scratch of `signal_curve`."""
    return shape_at(make_shapes(form, measurements, steps, lanes, 1), 0)


@jit
def kurtosis_decay(b, D, K):
    """Decay exp(-v + v² K / 6), v = b D held at 3 / K."""
    v = min(b * D, 3.0 / K)
    return exponential(v * (v * K / 6.0 - 1.0))


@jit
def kurtosis_slopes(b, D, K):
    """Differentiate ln decay in D, less the -b of an exponential, and in K."""
    v = min(b * D, 3.0 / K)
    return b * v * K / 3.0, v * v / 6.0


@jit
def stretched_decay(ln_v, alpha):
    """Decay exp(-v^alpha), v = b D above 0."""
    return exponential(-exponential(alpha * ln_v))


@jit
def stretched_slopes(b, D, ln_v, alpha):
    """Differentiate ln decay in D, less the -b of an exponential, and in alpha; v = b D above 0."""
    power = exponential(alpha * ln_v)
    return b - alpha * power / D, -power * ln_v


@jit
def _values(form, theta, shape):
    """Fill value, weight, rate and ln_D."""
    F, R, P, lanes = form.fractions, form.rates, shape.value.shape[0], theta.shape[1]
    value, weight, rate = shape.value, shape.weight, shape.rate
    logits = F + R if SHAPE_LOGITS[form.kind] else P
    for i in range(F, logits):
        row, each = value[i], theta[i]
        for w in range(lanes):
            row[w] = exponential(each[w])
    for i in range(logits, P):
        row, each = value[i], theta[i]
        for w in range(lanes):
            row[w] = logistic(each[w])
    for w in range(lanes):
        shape.ln_D[w] = theta[F, w]
    for w in range(lanes):
        weight[0, w] = 1.0
    for i in range(F):
        row, each = value[i], theta[i]
        for w in range(lanes):
            row[w] = logistic(each[w])
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
def _tissue_decays(kind, b, shape, bend, decay):
    """Fill the decays (measurement, lane) of tissue whose kind is not the exponential."""
    D, ln_D, lanes = shape.rate[0], shape.ln_D, shape.ln_D.size
    for k in range(b.size):
        bk, row = b[k], decay[k]
        if bk == 0.0:
            for w in range(lanes):
                row[w] = 1.0
        elif kind == KURTOSIS:
            for w in range(lanes):
                row[w] = kurtosis_decay(bk, D[w], bend[w])
        elif kind == STRETCHED:
            ln_b = math.log(bk)
            for w in range(lanes):
                row[w] = stretched_decay(ln_b + ln_D[w], bend[w])
        else:
            for w in range(lanes):
                row[w] = np.nan


@jit
def _decays(form, b, step, steps, left, right, shape):
    """Fill decay: running products over the steps between b values, few, some sums of two others."""
    F, R, S, lanes = form.fractions, form.rates, steps.size, shape.rate.shape[1]
    y, rate, n = shape.y, shape.rate, 0
    first = 0 if form.kind == EXPONENTIAL else 1  # compartment that is a running product
    if first > 0:
        _tissue_decays(form.kind, b, shape, shape.value[F + R], shape.decay[0])
    while n < S and left[n] < 0:
        for c in range(first, R):
            row, each = y[R * n + c], rate[c]
            for w in range(lanes):
                row[w] = exponential(-steps[n] * each[w])
        n += 1
    for s in range(n, S):
        i, j = int(left[s]), int(right[s])
        for c in range(first, R):
            row, one, other = y[R * s + c], y[R * i + c], y[R * j + c]
            for w in range(lanes):
                row[w] = one[w] * other[w]
    for c in range(first, R):
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
def _tissue_slopes(kind, b, shape, bend, bar, root, decay, in_rate, in_bend):
    """Add to the sums of slopes what a kind that is not the exponential has besides it; b is above 0.

    ``bar``, ``root`` and ``decay`` (lane,) are the adjoint of the weighted curve, the weight of its
    measurement and the decay. ``in_rate`` already has b times their product.
    """
    D, ln_D, lanes = shape.rate[0], shape.ln_D, shape.ln_D.size
    if kind == KURTOSIS:
        for w in range(lanes):
            each = bar[w] * root[w] * decay[w]
            added, turn = kurtosis_slopes(b, D[w], bend[w])
            in_rate[w] -= added * each
            in_bend[w] += turn * each
    elif kind == STRETCHED:
        ln_b = math.log(b)
        for w in range(lanes):
            each = bar[w] * root[w] * decay[w]
            added, turn = stretched_slopes(b, D[w], ln_b + ln_D[w], bend[w])
            in_rate[w] -= added * each
            in_bend[w] += turn * each
    else:
        for w in range(lanes):
            in_bend[w] = np.nan


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
        if form.kind != EXPONENTIAL and bk > 0.0:
            _tissue_slopes(form.kind, bk, shape, value[F + R], bar, r, shape.decay[0, k], slope[0], bend)
    # rates
    for c in range(R):
        for w in range(lanes):
            slope[c, w] *= -weight[c, w]
    if form.kind != EXPONENTIAL:
        for w in range(lanes):
            theta_bar[F + R, w] = bend[w] * weight[0, w] * value[F + R, w]
        if SHAPE_LOGITS[form.kind]:
            for w in range(lanes):
                theta_bar[F + R, w] *= 1.0 - value[F + R, w]
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
