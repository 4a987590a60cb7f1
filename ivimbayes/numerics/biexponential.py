# mypy: disallow_untyped_defs=False
"""The bi-exponential curve, for speed without the generality of `signals`; compiled.

With s and q the decays of the slow and the fast compartment, the curve is (1 - f) s + f q.
"""

import math
from typing import NamedTuple

import numpy as np

from ivimbayes.numerics.arithmetic import exponential, logistic, scalar_logistic
from ivimbayes.numerics.jit import Matrix, Vector, inlined_jit, jit
from ivimbayes.numerics.steps import Acquisition

# Places in what `decay_sums` fills: weighted sums over b of products of s, q, b and the signal y.
SS, SQ, QQ, BSS, BSQ, BQQ, BBSS, BBSQ, BBQQ, YS, YQ, BYS, BYQ, BBYS, BBYQ = range(15)
# Places in what `theta_sums` fills: with g the curve and d0, d1, d2 its derivatives in theta, weighted sums
# of g², g y; d y; d g; d d.
GG, GY, Y0, Y1, Y2, G0, G1, G2, H00, H01, H02, H11, H12, H22 = range(14)


# ---------------------------------------------------------------- one theta


class Decays(NamedTuple):
    """Scratch for the decays of one theta, M distinct b values and S steps between them.

    Attributes
    ----------
    slow, fast : ndarray (M,)
        Decays of the compartments at each b.
    power : ndarray (2, S)
        Their decays over each of the steps.
    ones : ndarray (M,)
        Weights of signals that are weighted already.
    by_b : ndarray (15,)
        From `decay_sums`.
    by_theta : ndarray (14,)
        From `theta_sums`.
    """

    slow: Vector
    fast: Vector
    power: Matrix
    ones: Vector
    by_b: Vector
    by_theta: Vector


def make_decays(acquisition: Acquisition) -> Decays:
    """Allocate the scratch."""
    M, S = len(acquisition.b), acquisition.steps.shape[1]
    return Decays(
        np.empty(M), np.empty(M), np.empty((2, S)), np.ones(M), np.empty(BBYQ + 1), np.empty(H22 + 1)
    )


@inlined_jit
def from_theta(theta):
    """Give f, D and D* - D of one theta."""
    return scalar_logistic(theta[0]), math.exp(theta[1]), math.exp(theta[2])


@inlined_jit
def curve_of(f, rest, slow, fast):
    """Give the curve of the decays at one b; ``rest`` is 1 - f."""
    return rest * slow + f * fast


@inlined_jit
def fill_decays(slow_rate, fast_rate, acquisition, decays):
    """Fill ``decays.slow`` and ``decays.fast`` with exp(-b rate) at every distinct b."""
    steps, left, right = acquisition.steps[0], acquisition.steps[1], acquisition.steps[2]
    slow_power, fast_power, slow, fast = decays.power[0], decays.power[1], 1.0, 1.0
    for s in range(steps.size):
        i = int(left[s])
        if i < 0:
            slow_power[s] = exponential(-steps[s] * slow_rate)
            fast_power[s] = exponential(-steps[s] * fast_rate)
        else:
            j = int(right[s])
            slow_power[s] = slow_power[i] * slow_power[j]
            fast_power[s] = fast_power[i] * fast_power[j]
    for k in range(acquisition.b.size):
        s = int(acquisition.step[k])
        if s >= 0:
            slow *= slow_power[s]
            fast *= fast_power[s]
        decays.slow[k] = slow
        decays.fast[k] = fast


@inlined_jit
def decay_sums(first, y, y_weight, acquisition, decays):
    """Fill ``decays.by_b`` from the decays, from one distinct b value on.

    ``y`` is the signal at each distinct b value, which counts with ``y_weight``.
    """
    slow, fast, sums, weight = decays.slow, decays.fast, decays.by_b, acquisition.weight
    ss = sq = qq = bss = bsq = bqq = bbss = bbsq = bbqq = 0.0
    ys = yq = bys = byq = bbys = bbyq = 0.0
    for k in range(first, acquisition.b.size):
        b, s, q = acquisition.b[k], slow[k], fast[k]
        ws, wq, vs, vq = weight[k] * s, weight[k] * q, y_weight[k] * s, y_weight[k] * q
        ss += ws * s
        sq += ws * q
        qq += wq * q
        ys += vs * y[k]
        yq += vq * y[k]
        ws, wq, vs, vq = b * ws, b * wq, b * vs, b * vq
        bss += ws * s
        bsq += ws * q
        bqq += wq * q
        bys += vs * y[k]
        byq += vq * y[k]
        ws, wq, vs, vq = b * ws, b * wq, b * vs, b * vq
        bbss += ws * s
        bbsq += ws * q
        bbqq += wq * q
        bbys += vs * y[k]
        bbyq += vq * y[k]
    sums[SS], sums[SQ], sums[QQ], sums[BSS], sums[BSQ], sums[BQQ] = ss, sq, qq, bss, bsq, bqq
    sums[BBSS], sums[BBSQ], sums[BBQQ], sums[YS], sums[YQ] = bbss, bbsq, bbqq, ys, yq
    sums[BYS], sums[BYQ], sums[BBYS], sums[BBYQ] = bys, byq, bbys, bbyq


@inlined_jit
def theta_sums(f, rest, D, gap, signal, acquisition, decays):
    """Fill ``decays.by_theta`` for theta = (logit f, ln D, ln gap), the gap being D* - D; ``rest`` is 1 - f.

    The derivatives of the curve are d0 = f (1 - f) (q - s), d1 = -b D g and d2 = -b gap f q.
    """
    fill_decays(D, D + gap, acquisition, decays)
    decay_sums(0, signal, decays.ones, acquisition, decays)
    sums, out, e, h = decays.by_b, decays.by_theta, f * rest, gap * f
    out[GG] = rest * rest * sums[SS] + 2.0 * e * sums[SQ] + f * f * sums[QQ]
    out[GY] = rest * sums[YS] + f * sums[YQ]
    out[Y0] = e * (sums[YQ] - sums[YS])
    out[Y1] = -D * (rest * sums[BYS] + f * sums[BYQ])
    out[Y2] = -h * sums[BYQ]
    out[G0] = e * (rest * (sums[SQ] - sums[SS]) + f * (sums[QQ] - sums[SQ]))
    out[G1] = -D * (rest * rest * sums[BSS] + 2.0 * e * sums[BSQ] + f * f * sums[BQQ])
    out[G2] = -h * (rest * sums[BSQ] + f * sums[BQQ])
    out[H00] = e * e * (sums[QQ] - 2.0 * sums[SQ] + sums[SS])
    out[H01] = -D * e * (rest * (sums[BSQ] - sums[BSS]) + f * (sums[BQQ] - sums[BSQ]))
    out[H02] = -h * e * (sums[BQQ] - sums[BSQ])
    out[H11] = D * D * (rest * rest * sums[BBSS] + 2.0 * e * sums[BBSQ] + f * f * sums[BBQQ])
    out[H12] = D * h * (rest * sums[BBSQ] + f * sums[BBQQ])
    out[H22] = h * h * sums[BBQQ]


@inlined_jit
def curve_products(f, rest, D, gap, signal, acquisition, decays):
    """Sum the squared curve, and curve times signal, of `theta_sums` alone."""
    fill_decays(D, D + gap, acquisition, decays)
    squares = products = 0.0
    for k in range(acquisition.b.size):
        g = curve_of(f, rest, decays.slow[k], decays.fast[k])
        squares += acquisition.weight[k] * g * g
        products += signal[k] * g
    return squares, products


# ---------------------------------------------------------------- many theta


@jit
def values_of_draws(x, o, n, value):
    """Fill in f, D and D* of the draws o to o + n from their theta, x (3, N)."""
    x0, x1, x2 = x[0, o : o + n], x[1, o : o + n], x[2, o : o + n]
    f, D, D_star = value[0, o : o + n], value[1, o : o + n], value[2, o : o + n]
    for w in range(n):
        f[w] = logistic(x0[w])
    for w in range(n):
        D[w] = exponential(x1[w])
    for w in range(n):
        D_star[w] = D[w] + exponential(x2[w])


@jit
def start_products(o, n, acquisition, value, work):
    """Fill ``work.power`` with the decays of the draws o to o + n over each step between b values."""
    y, steps, left, right = work.power, acquisition.steps[0], acquisition.steps[1], acquisition.steps[2]
    D, D_star = value[1, o : o + n], value[2, o : o + n]
    simple = 0
    while simple < steps.size and left[simple] < 0:
        step, slow, fast = steps[simple], y[2 * simple], y[2 * simple + 1]
        for w in range(n):
            slow[w] = exponential(-step * D[w])
        for w in range(n):
            fast[w] = exponential(-step * D_star[w])
        simple += 1
    for s in range(simple, steps.size):
        i, j = int(left[s]), int(right[s])
        for c in range(2):
            row, one, other = y[2 * s + c], y[2 * i + c], y[2 * j + c]
            for w in range(n):
                row[w] = one[w] * other[w]


@jit
def curve_sums(o, n, signal, acquisition, value, work):
    """Sum the squared curve, and curve times signal, over b: rows 0 and 1 of ``work.sums``.

    This walks over b as `curves_at_b` does, but two b values at a time, which halves the loads and stores:
    summing what `curves_at_b` fills in took 7 to 12 % more time a voxel.
    """
    y, slow, fast = work.power, work.slow, work.fast
    G, gs = work.sums[0], work.sums[1]
    f = value[0, o : o + n]
    for w in range(n):
        fast[w] = f[w]
    for w in range(n):
        slow[w] = 1.0 - f[w]
    for w in range(n):
        G[w] = 0.0
    for w in range(n):
        gs[w] = 0.0
    k = 0
    while k < acquisition.b.size:
        s, weight, yk = int(acquisition.step[k]), acquisition.weight[k], signal[k]
        if s < 0:
            for w in range(n):
                G[w] += weight
            for w in range(n):
                gs[w] += yk
            k += 1
            continue
        a, c = y[2 * s + 1], y[2 * s]
        if k + 1 == acquisition.b.size:
            for w in range(n):
                g = fast[w] * a[w] + slow[w] * c[w]
                G[w] += weight * g * g
                gs[w] += yk * g
            break
        s, next_weight, next_yk = int(acquisition.step[k + 1]), acquisition.weight[k + 1], signal[k + 1]
        next_a, next_c = y[2 * s + 1], y[2 * s]
        for w in range(n):
            p, q = fast[w] * a[w], slow[w] * c[w]
            g = p + q
            p, q = p * next_a[w], q * next_c[w]
            h = p + q
            fast[w] = p
            slow[w] = q
            G[w] += weight * g * g + next_weight * h * h
            gs[w] += yk * g + next_yk * h
        k += 2


@jit
def curves_at_b(o, n, acquisition, value, work):
    """Fill ``work.curve`` with the curve at each distinct b."""
    y, slow, fast, curve = work.power, work.slow, work.fast, work.curve
    for w in range(n):
        fast[w] = value[0, o + w]
        slow[w] = 1.0 - fast[w]
    for k in range(acquisition.b.size):
        s = int(acquisition.step[k])
        if s >= 0:
            for w in range(n):
                fast[w] *= y[2 * s + 1, w]
                slow[w] *= y[2 * s, w]
        for w in range(n):
            curve[k, w] = fast[w] + slow[w]
