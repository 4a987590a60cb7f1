# mypy: disallow_untyped_defs=False
"""Log-density of a region in its sampling space, and the gradient, compiled once on a machine.

The density is that of `build_model`, in the same unconstrained coordinates: mu, ln sd, logit of the partial
correlations, S0_roi, ln S0_sd, ln sigma, and z of every voxel (see `Informed`); of a mean curve ln sigma and
z. The gradient is written by hand. Voxels lie on the last axis of every array, up to `LANES` in a block, so
that the inner loops vectorise; the voxels that fill the last block count for nothing.
"""

import math
from collections.abc import Mapping
from functools import cache
from typing import Any, NamedTuple

import numba as nb
import numpy as np

from ivimbayes.lanes import B_DIGITS, KEEP, exponentials, jit, step_table
from ivimbayes.spec import S0_MEAN, S0_MEAN_SD, S0_SD, ModelSpec, beta_shapes

LANES = 128  # at most; a multiple of 4
LN_2PI = math.log(2 * math.pi)
Array = np.ndarray[Any, np.dtype[np.float64]]


class Region(NamedTuple):
    """Data of one region as the density takes them: views of one block of numbers.

    Measurements are sorted by b and those at one b are merged: their mean, and what is ``within``, their sum
    of squares about it. B blocks of `LANES` voxels, M distinct b values, P parameters.

    Attributes
    ----------
    pooled : float
        1 with a population to estimate, 0 for a mean curve, whose population is the prior.
    measurements : float
        Number of measurements of a voxel before merging.
    nu : float
        Degrees of freedom of a Student-t population; 0 for a normal one.
    constant : float
        What the density adds that depends on no parameter.
    sigma_scale : float
        Scale of the half-normal prior of sigma.
    S0 : ndarray (3,)
        Mean and standard deviation of the normal prior of S0_roi, scale of the half-normal prior of S0_sd.
    centre, width, spread : ndarray (P,)
        Prior of mu, Normal(centre, width²), and of sd, half-normal with scale spread.
    shapes : ndarray (P (P - 1) / 2,)
        Beta shape of each partial correlation.
    b : ndarray (M,)
        Distinct b values, s/mm², rising.
    step : ndarray (M,)
        Which of `steps` leads from the b value before (from 0) to this one; -1 for b = 0.
    steps, left, right : ndarray (S,)
        Distinct differences of b values, each the sum of those at left and right; where these are -1, in the
        first rows, it is no such sum.
    voxels : int
        Number of voxels.
    signal, root : ndarray (B, M, LANES)
        Mean signal at each b times ``root``, the square root of the number of images averaged into it.
    within, present : ndarray (B, LANES)
        Weighted sum of squares within the b values; 1 for a voxel, 0 for a filler.
    precision : ndarray (B, P, P, LANES)
        Lambda of `Informed`.
    shift : ndarray (B, P, LANES)
        Eta of `Informed`.
    """

    pooled: float
    measurements: float
    nu: float
    constant: float
    sigma_scale: float
    S0: Array
    centre: Array
    width: Array
    spread: Array
    shapes: Array
    b: Array
    step: Array
    steps: Array
    left: Array
    right: Array
    voxels: int
    signal: Array
    root: Array
    within: Array
    present: Array
    precision: Array
    shift: Array


HEAD = 11  # length, lanes, voxels, P, M, steps, pooled, measurements, nu, constant, sigma_scale


def pack_region(data: Mapping[str, Array], spec: ModelSpec, level: str = "voxel") -> Array:
    """Put a region's data into the one block of numbers that the density reads.

    Parameters
    ----------
    data : mapping of str to ndarray
        From `model_data`.
    spec : ModelSpec
        Model with the region's prior.
    level : {"voxel", "mean"}
        As in `build_model`.
    """
    V, P = data["eta"].shape
    b, where = np.unique(data["b"].round(B_DIGITS), return_inverse=True)
    n = data["averages"]
    into = (where[:, None] == np.arange(len(b))).astype(float)  # measurement to b value
    weight = n @ into
    mean = (n * data["observed"]) @ into / weight
    within = (n * (data["observed"] - mean[:, where]) ** 2).sum(axis=1)
    step, steps = step_table(b)
    lanes = 4 * math.ceil(V / math.ceil(V / LANES) / 4)
    pooled, heavy = level == "voxel", level == "voxel" and spec.population == "student_t"
    shapes = beta_shapes(spec.eta)
    half_normal = 0.5 * math.log(2 / math.pi)
    constant = 0.5 * np.log(n).sum() - 0.5 * n.size * math.log(2 * math.pi)
    constant += half_normal - math.log(data["sigma_scale"])
    if heavy:
        nu = spec.nu
        constant += V * (math.lgamma((nu + P) / 2) - math.lgamma(nu / 2) - P / 2 * math.log(nu * math.pi))
    else:
        constant -= 0.5 * V * P * math.log(2 * math.pi)
    if pooled:
        constant -= np.log(data["width"]).sum() + 0.5 * P * math.log(2 * math.pi)
        constant += P * half_normal - np.log(data["spread"]).sum()
        constant -= sum(2 * math.lgamma(a) - math.lgamma(2 * a) for a in shapes)
        constant -= math.log(S0_MEAN_SD) + 0.5 * math.log(2 * math.pi)
        constant += half_normal - math.log(S0_SD)
    head = [
        0, lanes, V, P, len(b), steps.shape[1], pooled, n.shape[1], spec.nu if heavy else 0, constant,
        data["sigma_scale"],
    ]  # fmt: skip
    root = np.sqrt(weight)
    by_voxel = (root * mean, root, within, np.ones(V), data["Lambda"], data["eta"])
    parts = [
        np.array(head, float), np.array([S0_MEAN, S0_MEAN_SD, S0_SD if pooled else S0_MEAN_SD]),
        data["centre"], data["width"], data["spread"], shapes, b, step, steps,
        *(_in_lanes(values, lanes) for values in by_voxel),
    ]  # fmt: skip
    block = np.concatenate([part.ravel() for part in parts])
    block[0] = block.size
    return block


def _in_lanes(values: Array, lanes: int) -> Array:
    """(voxel, ...) to (block, ..., lane), filled with zeros."""
    blocks = -(-len(values) // lanes)
    filled = np.zeros((blocks * lanes, *values.shape[1:]))
    filled[: len(values)] = values
    return np.moveaxis(filled.reshape(blocks, lanes, *values.shape[1:]), 1, -1)


@jit
def _unpack(block):
    """Make views of the parts of a block from `pack_region`."""
    lanes, V, P, M, S = int(block[1]), int(block[2]), int(block[3]), int(block[4]), int(block[5])
    B, pairs = (V + lanes - 1) // lanes, P * (P - 1) // 2
    o0 = HEAD + 3
    o1 = o0 + 3 * P
    o2 = o1 + pairs
    o3 = o2 + 2 * M + 3 * S
    o4 = o3 + 2 * B * M * lanes
    o5 = o4 + 2 * B * lanes
    o6 = o5 + B * P * P * lanes
    n = B * M * lanes
    return Region(
        block[6],
        block[7],
        block[8],
        block[9],
        block[10],
        block[HEAD : HEAD + 3],
        block[o0 : o0 + P],
        block[o0 + P : o0 + 2 * P],
        block[o0 + 2 * P : o0 + 3 * P],
        block[o1 : o1 + pairs],
        block[o2 : o2 + M],
        block[o2 + M : o2 + 2 * M],
        block[o2 + 2 * M : o2 + 2 * M + S],
        block[o2 + 2 * M + S : o2 + 2 * M + 2 * S],
        block[o2 + 2 * M + 2 * S : o2 + 2 * M + 3 * S],
        V,
        block[o3 : o3 + n].reshape((B, M, lanes)),
        block[o3 + n : o3 + 2 * n].reshape((B, M, lanes)),
        block[o4 : o4 + B * lanes].reshape((B, lanes)),
        block[o4 + B * lanes : o4 + 2 * B * lanes].reshape((B, lanes)),
        block[o5 : o5 + B * P * P * lanes].reshape((B, P, P, lanes)),
        block[o6 : o6 + B * P * lanes].reshape((B, P, lanes)),
    )


# ---------------------------------------------------------------- algebra in lanes


@jit
def _cholesky(S, Lambda, F, inverse):
    """``F F' = S + Lambda``; ``inverse`` of F's diagonal."""
    lanes = inverse.shape[1]
    for j in range(S.shape[0]):
        for i in range(j, S.shape[0]):
            for w in range(lanes):
                F[i, j, w] = S[i, j] + Lambda[i, j, w]
            for k in range(j):
                for w in range(lanes):
                    F[i, j, w] -= F[i, k, w] * F[j, k, w]
            if i == j:
                for w in range(lanes):
                    F[j, j, w] = math.sqrt(F[j, j, w])
                for w in range(lanes):
                    inverse[j, w] = 1.0 / F[j, j, w]
            else:
                for w in range(lanes):
                    F[i, j, w] *= inverse[j, w]


@jit
def _solve_lower(F, inverse, a, out):
    """``out = F⁻¹ a``."""
    lanes = a.shape[1]
    for i in range(a.shape[0]):
        for w in range(lanes):
            out[i, w] = a[i, w]
        for k in range(i):
            for w in range(lanes):
                out[i, w] -= F[i, k, w] * out[k, w]
        for w in range(lanes):
            out[i, w] *= inverse[i, w]


@jit
def _solve_upper(F, inverse, a, out):
    """``out = F⁻ᵀ a``."""
    lanes = a.shape[1]
    for i in range(a.shape[0] - 1, -1, -1):
        for w in range(lanes):
            out[i, w] = a[i, w]
        for k in range(i + 1, a.shape[0]):
            for w in range(lanes):
                out[i, w] -= F[k, i, w] * out[k, w]
        for w in range(lanes):
            out[i, w] *= inverse[i, w]


@jit
def _cholesky_adjoint(F, inverse, F_bar, Q, X):
    """Adjoint of A = F F' from that of F, into X: F⁻ᵀ Φ(Fᵀ F̄) F⁻¹ (Murray 2016, arXiv:1602.07527).

    The sum of X and its transpose, halved, is the symmetric adjoint. ``Q`` is scratch.
    """
    lanes = inverse.shape[1]
    P = inverse.shape[0]
    for i in range(P):
        for j in range(i + 1):
            for w in range(lanes):
                Q[i, j, w] = F[i, i, w] * F_bar[i, j, w]
            for k in range(i + 1, P):
                for w in range(lanes):
                    Q[i, j, w] += F[k, i, w] * F_bar[k, j, w]
        for w in range(lanes):
            Q[i, i, w] *= 0.5
        for j in range(i + 1, P):
            for w in range(lanes):
                Q[i, j, w] = 0.0
    for j in range(P):
        for i in range(P - 1, -1, -1):
            for w in range(lanes):
                X[i, j, w] = Q[i, j, w]
            for k in range(i + 1, P):
                for w in range(lanes):
                    X[i, j, w] -= F[k, i, w] * X[k, j, w]
            for w in range(lanes):
                X[i, j, w] *= inverse[i, w]
    for i in range(P):
        for j in range(P - 1, -1, -1):
            for k in range(j + 1, P):
                for w in range(lanes):
                    X[i, j, w] -= X[i, k, w] * F[k, j, w]
            for w in range(lanes):
                X[i, j, w] *= inverse[j, w]


@jit
def _locate(S, shift, Lambda, eta, z, F, inverse, a, u, theta):
    """Theta of z: F⁻ᵀ (z + u) with u = F⁻¹ (shift + eta) and shift = Sigma⁻¹ mu; ``a`` is scratch."""
    lanes = z.shape[1]
    _cholesky(S, Lambda, F, inverse)
    for i in range(z.shape[0]):
        for w in range(lanes):
            a[i, w] = shift[i] + eta[i, w]
    _solve_lower(F, inverse, a, u)
    for i in range(z.shape[0]):
        for w in range(lanes):
            a[i, w] = u[i, w] + z[i, w]
    _solve_upper(F, inverse, a, theta)


@jit
def _read_z(x, start, count, z):
    """Copy the z of `count` voxels from the coordinates into lanes; fillers get 0."""
    P, lanes = z.shape
    for w in range(count):
        for i in range(P):
            z[i, w] = x[start + w * P + i]
    for w in range(count, lanes):
        for i in range(P):
            z[i, w] = 0.0


# ---------------------------------------------------------------- signal and noise


@jit
def _biexponential(theta, root, step, steps, left, right, value, slow, fast, curve, x, y, bits):
    """Curve times root for theta = (logit f, ln D, ln(D* - D)); ``value`` = (f, D, D* - D).

    exp(-b D) is a running product over the steps between b values, of which few are distinct, and of those
    many the sum of two others. ``x``, ``y`` and ``bits`` are scratch with max(3, 2 steps) rows.
    """
    lanes = theta.shape[1]
    S, n = steps.size, 0
    for w in range(lanes):
        x[0, w] = -theta[0, w]
        x[1, w] = theta[1, w]
        x[2, w] = theta[2, w]
    exponentials(x[:3].ravel(), value.ravel(), bits[:3].ravel())
    for w in range(lanes):
        value[0, w] = 1.0 / (1.0 + value[0, w])
    while n < S and left[n] < 0:
        for w in range(lanes):
            x[2 * n, w] = -steps[n] * value[1, w]
            x[2 * n + 1, w] = -steps[n] * (value[1, w] + value[2, w])
        n += 1
    exponentials(x[: 2 * n].ravel(), y[: 2 * n].ravel(), bits[: 2 * n].ravel())
    for s in range(n, S):
        i, j = int(left[s]), int(right[s])
        for w in range(lanes):
            y[2 * s, w] = y[2 * i, w] * y[2 * j, w]
            y[2 * s + 1, w] = y[2 * i + 1, w] * y[2 * j + 1, w]
    for k in range(step.size):
        s = int(step[k])
        if s < 0:
            for w in range(lanes):
                slow[k, w] = 1.0
                fast[k, w] = 1.0
        elif k == 0:
            for w in range(lanes):
                slow[k, w] = y[2 * s, w]
                fast[k, w] = y[2 * s + 1, w]
        else:
            for w in range(lanes):
                slow[k, w] = slow[k - 1, w] * y[2 * s, w]
                fast[k, w] = fast[k - 1, w] * y[2 * s + 1, w]
        for w in range(lanes):
            curve[k, w] = root[k, w] * (slow[k, w] + value[0, w] * (fast[k, w] - slow[k, w]))


@jit
def _biexponential_adjoint(curve_bar, root, b, value, slow, fast, curve, theta_bar):
    """Adjoint of theta from that of the weighted curve."""
    lanes = root.shape[1]
    for i in range(3):
        for w in range(lanes):
            theta_bar[i, w] = 0.0
    for k in range(b.size):
        bk = b[k]
        for w in range(lanes):
            bar = curve_bar[k, w] * root[k, w]
            theta_bar[0, w] += bar * (fast[k, w] - slow[k, w])
            theta_bar[1, w] -= bk * curve_bar[k, w] * curve[k, w]
            theta_bar[2, w] -= bk * bar * fast[k, w]
    for w in range(lanes):
        theta_bar[0, w] *= value[0, w] * (1.0 - value[0, w])
        theta_bar[1, w] *= value[1, w]
        theta_bar[2, w] *= value[0, w] * value[2, w]


@jit
def _gaussian(
    signal, within, present, measurements, curve, mean, variance, S0_variance, work, curve_bar, bars
):
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


# ---------------------------------------------------------------- the region


@jit
def _partial_cholesky(r, P):
    """Lower Cholesky factor of a correlation matrix from its partial correlations, row by row."""
    C, n = np.zeros((P, P)), 0
    for i in range(P):
        rest = 1.0
        for j in range(i):
            C[i, j] = r[n] * rest
            rest *= math.sqrt((1.0 - r[n]) * (1.0 + r[n]))
            n += 1
        C[i, i] = rest
    return C


@jit
def _product(A, B):
    """Multiply small matrices, without BLAS."""
    out = np.zeros((A.shape[0], B.shape[1]))
    for i in range(A.shape[0]):
        for j in range(B.shape[1]):
            for k in range(A.shape[1]):
                out[i, j] += A[i, k] * B[k, j]
    return out


@jit
def _inverse_gram(L):
    """(L L')⁻¹ of a lower triangle."""
    P = L.shape[0]
    inverse, S = np.zeros((P, P)), np.zeros((P, P))
    for j in range(P):
        inverse[j, j] = 1.0 / L[j, j]
        for i in range(j + 1, P):
            for k in range(j, i):
                inverse[i, j] -= L[i, k] * inverse[k, j]
            inverse[i, j] /= L[i, i]
    for i in range(P):
        for j in range(P):
            for k in range(max(i, j), P):
                S[i, j] += inverse[k, i] * inverse[k, j]
    return S


@jit
def _hyperparameters(x, region):
    """Mu, sd, partial correlations, (S0_roi, S0_sd, sigma) and the number of coordinates they take."""
    P, pairs = region.centre.size, region.shapes.size
    three = np.empty(3)
    if region.pooled == 0.0:
        three[0], three[1], three[2] = region.S0[0], region.S0[1], math.exp(x[0])
        return region.centre, region.width, np.zeros(pairs), three, 1
    h = 2 * P + pairs
    three[0], three[1], three[2] = x[h], math.exp(x[h + 1]), math.exp(x[h + 2])
    return x[:P], np.exp(x[P : 2 * P]), np.tanh(0.5 * x[2 * P : h]), three, h + 3


@jit
def _voxels(x, first, gradient, region, mu, L, S, three, S_bar, mu_bar, three_bar):
    """Sum the voxels' densities; set the gradient in z, add adjoints of the hyperparameters."""
    lanes = region.present.shape[1]
    P, M = region.centre.size, region.b.size
    V = region.voxels
    mean, S0_variance, variance = three[0], three[1] ** 2, three[2] ** 2
    nu = region.nu
    shift = _product(S, mu.reshape((P, 1)))[:, 0]
    rows = max(3, 2 * region.steps.size)
    exponent, power, bits = (
        np.empty((rows, lanes)),
        np.empty((rows, lanes)),
        np.empty((rows, lanes), np.int64),
    )
    squares, triples = np.empty((5, P, P, lanes)), np.empty((10, P, lanes))
    F, F_bar, Q, X, S_sum = squares[0], squares[1], squares[2], squares[3], squares[4]
    inverse, a, u, z, theta = triples[0], triples[1], triples[2], triples[3], triples[4]
    theta_bar, y_bar, e_bar, d, Sd = triples[5], triples[6], triples[7], triples[8], triples[9]
    curves, sums, value = np.empty((4, M, lanes)), np.zeros((4 + 2 * P, lanes)), np.empty((3, lanes))
    slow, fast, curve, curve_bar = curves[0], curves[1], curves[2], curves[3]
    bars, e_sum, mu_sum = sums[:4], sums[4 : 4 + P], sums[4 + P :]
    work = np.empty((6, lanes))
    q, weight = work[4], work[5]
    S_sum[:] = 0.0
    for block in range(region.signal.shape[0]):
        start = first + block * lanes * P
        count = min(lanes, V - block * lanes)
        present = region.present[block]
        _read_z(x, start, count, z)
        _locate(S, shift, region.precision[block], region.shift[block], z, F, inverse, a, u, theta)
        # likelihood
        root = region.root[block]
        _biexponential(
            theta, root, region.step, region.steps, region.left, region.right, value, slow, fast, curve,
            exponent, power, bits,
        )  # fmt: skip
        _gaussian(
            region.signal[block], region.within[block], present, region.measurements, curve, mean, variance,
            S0_variance, work, curve_bar, bars,
        )  # fmt: skip
        _biexponential_adjoint(curve_bar, root, region.b, value, slow, fast, curve, theta_bar)
        # population
        for i in range(P):
            for w in range(lanes):
                d[i, w] = theta[i, w] - mu[i]
        for w in range(lanes):
            q[w] = 0.0
        for i in range(P):
            for w in range(lanes):
                Sd[i, w] = 0.0
            for j in range(P):
                for w in range(lanes):
                    Sd[i, w] += S[i, j] * d[j, w]
            for w in range(lanes):
                q[w] += Sd[i, w] * d[i, w]
        if nu > 0.0:
            for w in range(lanes):
                bars[3, w] -= present[w] * 0.5 * (nu + P) * math.log1p(q[w] / nu)
            for w in range(lanes):
                weight[w] = present[w] * (nu + P) / (nu + q[w])
        else:
            for w in range(lanes):
                bars[3, w] -= present[w] * 0.5 * q[w]
            for w in range(lanes):
                weight[w] = present[w]
        for i in range(P):
            for w in range(lanes):
                theta_bar[i, w] -= weight[w] * Sd[i, w]
            for w in range(lanes):
                mu_sum[i, w] += weight[w] * Sd[i, w]
            for j in range(i + 1):
                for w in range(lanes):
                    S_sum[i, j, w] -= 0.5 * weight[w] * d[i, w] * d[j, w]
        # determinants: of theta(z), and of the noise
        for w in range(lanes):
            q[w] = work[3, w]
        for i in range(P):
            for w in range(lanes):
                q[w] *= inverse[i, w] * inverse[i, w]
        for w in range(lanes):
            bars[3, w] += present[w] * 0.5 * math.log(q[w])
        # back through theta(z)
        _solve_lower(F, inverse, theta_bar, y_bar)
        _solve_upper(F, inverse, y_bar, e_bar)
        for w in range(count):
            for i in range(P):
                gradient[start + w * P + i] = y_bar[i, w]
        for i in range(P):
            for j in range(i + 1):
                for w in range(lanes):
                    F_bar[i, j, w] = -theta[i, w] * y_bar[j, w] - e_bar[i, w] * u[j, w]
            for w in range(lanes):
                F_bar[i, i, w] -= inverse[i, w]
        _cholesky_adjoint(F, inverse, F_bar, Q, X)
        for i in range(P):
            for j in range(i + 1):
                for w in range(lanes):
                    S_sum[i, j, w] += 0.5 * present[w] * (X[i, j, w] + X[j, i, w])
            for w in range(lanes):
                e_sum[i, w] += present[w] * e_bar[i, w]
    total = -0.5 * V * (region.measurements - 1) * math.log(variance)
    for w in range(lanes):
        total += bars[3, w]
        three_bar[0] += bars[0, w]
        three_bar[1] += bars[2, w]
        three_bar[2] += bars[1, w]
    for i in range(P):
        total -= V * math.log(L[i, i])
        e = e_sum[i].sum()
        mu_bar[i] += mu_sum[i].sum()
        for j in range(P):
            mu_bar[j] += S[j, i] * e
            S_bar[i, j] += 0.5 * e * mu[j]
            S_bar[j, i] += 0.5 * e * mu[j]
        for j in range(i + 1):
            each = S_sum[i, j].sum()
            S_bar[i, j] += each
            if i != j:
                S_bar[j, i] += each
    return total


@jit
def log_density(x, gradient, block):
    """Log-density of a region and its gradient.

    Parameters
    ----------
    x : ndarray (coordinate,)
        Unconstrained coordinates, in the order that the module's docstring gives.
    gradient : ndarray (coordinate,)
        Filled.
    block : ndarray
        From `pack_region`.

    Returns
    -------
    float
    """
    region = _unpack(block)
    P, pairs, V = region.centre.size, region.shapes.size, region.voxels
    mu, sd, r, three, first = _hyperparameters(x, region)
    C = _partial_cholesky(r, P)
    L = np.empty((P, P))
    for i in range(P):
        for j in range(P):
            L[i, j] = sd[i] * C[i, j]
    S = _inverse_gram(L)
    S_bar, mu_bar, three_bar = np.zeros((P, P)), np.zeros(P), np.zeros(3)
    total = region.constant + _voxels(x, first, gradient, region, mu, L, S, three, S_bar, mu_bar, three_bar)
    sigma = three[2] / region.sigma_scale
    total += math.log(three[2]) - 0.5 * sigma**2
    gradient[first - 1] = 2 * three[2] ** 2 * three_bar[2] + 1 - sigma**2
    if region.pooled == 0.0:
        return total
    h = 2 * P + pairs
    from_mean, spread = (three[0] - region.S0[0]) / region.S0[1], three[1] / region.S0[2]
    total += x[h + 1] - 0.5 * (from_mean**2 + spread**2)
    gradient[h] = three_bar[0] - from_mean / region.S0[1]
    gradient[h + 1] = 2 * three[1] ** 2 * three_bar[1] + 1 - spread**2
    for i in range(P):
        from_mean, spread = (mu[i] - region.centre[i]) / region.width[i], sd[i] / region.spread[i]
        total += x[P + i] - 0.5 * (from_mean**2 + spread**2)
        gradient[i] = mu_bar[i] - from_mean / region.width[i]
        gradient[P + i] = 1 - spread**2
    for n in range(pairs):
        size = abs(x[2 * P + n])
        total -= region.shapes[n] * (size + 2 * math.log1p(math.exp(-size)))
        gradient[2 * P + n] = -region.shapes[n] * r[n]
    # Sigma⁻¹ = (L L')⁻¹, so L̄ = -2 tril(Sigma⁻¹ S̄ L⁻ᵀ); L = diag(sd) C(r), d r = (1 - r²) / 2 d x
    T = _product(_product(S, S_bar), _product(S, L))
    for i in range(P):
        row = i * (i - 1) // 2
        for j in range(i + 1):
            bar = -2 * T[i, j]
            if i == j:
                bar -= V / L[i, i]
            gradient[P + i] += bar * L[i, j]
            for k in range(j):
                gradient[2 * P + row + k] -= 0.5 * bar * L[i, j] * r[row + k]
            if j < i:
                rest = sd[i]
                for k in range(j):
                    rest *= math.sqrt((1.0 - r[row + k]) * (1.0 + r[row + k]))
                gradient[2 * P + row + j] += 0.5 * bar * rest * (1 - r[row + j] ** 2)
    return total


@jit
def _of_draws(x, block):
    """Give theta (draw, voxel, parameter); log-likelihood, mean and precision of S0, each (draw, voxel)."""
    region = _unpack(block)
    P, M, V, lanes = region.centre.size, region.b.size, region.voxels, region.present.shape[1]
    out, by_voxel = np.empty((x.shape[0], V, P)), np.empty((3, x.shape[0], V))
    F, triples = np.empty((P, P, lanes)), np.empty((5, P, lanes))
    inverse, a, u, z, theta = triples[0], triples[1], triples[2], triples[3], triples[4]
    rows = max(3, 2 * region.steps.size)
    exponent, power, bits = (
        np.empty((rows, lanes)),
        np.empty((rows, lanes)),
        np.empty((rows, lanes), np.int64),
    )
    curves, value, work, bars = (
        np.empty((4, M, lanes)),
        np.empty((3, lanes)),
        np.empty((4, lanes)),
        np.zeros((4, lanes)),
    )
    for n in range(x.shape[0]):
        mu, sd, r, three, first = _hyperparameters(x[n], region)
        S0_variance, variance = three[1] ** 2, three[2] ** 2
        C = _partial_cholesky(r, P)
        for i in range(P):
            for j in range(P):
                C[i, j] *= sd[i]
        S = _inverse_gram(C)
        shift = _product(S, mu.reshape((P, 1)))[:, 0]
        fixed = (region.measurements - 1) * math.log(variance) + region.measurements * LN_2PI
        for index in range(region.signal.shape[0]):
            start = index * lanes
            count = min(lanes, V - start)
            _read_z(x[n], first + start * P, count, z)
            _locate(S, shift, region.precision[index], region.shift[index], z, F, inverse, a, u, theta)
            _biexponential(
                theta, region.root[index], region.step, region.steps, region.left, region.right, value,
                curves[0], curves[1], curves[2], exponent, power, bits,
            )  # fmt: skip
            _gaussian(
                region.signal[index], region.within[index], region.present[index], region.measurements,
                curves[2], three[0], variance, S0_variance, work, curves[3], bars,
            )  # fmt: skip
            for w in range(count):
                d = work[1, w] - three[0]
                square = work[2, w] / variance + d * d / S0_variance
                by_voxel[0, n, start + w] = -0.5 * (square + fixed - math.log(work[3, w]))
                by_voxel[1, n, start + w] = work[1, w]
                by_voxel[2, n, start + w] = 1.0 / S0_variance + work[0, w] / variance
                for i in range(P):
                    out[n, start + w, i] = theta[i, w]
    return out, by_voxel


def split_draws(x: Array, block: Array) -> dict[str, Array]:
    """Model variables at unconstrained coordinates, and what follows from them for each voxel.

    Parameters
    ----------
    x : ndarray (..., coordinate)
        Draws.
    block : ndarray
        From `pack_region`.

    Returns
    -------
    dict of str to ndarray
        ``theta`` (..., voxel, parameter), ``sigma``, ``S0_roi`` and ``S0_sd`` (...); of a population also
        ``mu``, ``sd`` (..., parameter) and ``partial`` correlations (..., pair). ``log_likelihood``, and the
        mean ``S0_mean`` and standard deviation ``S0_scale`` of S0 given the rest, all (..., voxel); the
        log-likelihood lacks half the sum of ln n over the images averaged.
    """
    P, pooled, lead = int(block[3]), bool(block[6]), x.shape[:-1]
    theta, by_voxel = _of_draws(np.ascontiguousarray(x.reshape(-1, x.shape[-1])), block)
    log_likelihood, mean, precision = by_voxel.reshape(3, *lead, -1)
    drawn = {
        "theta": theta.reshape(*lead, *theta.shape[1:]), "log_likelihood": log_likelihood,
        "S0_mean": mean, "S0_scale": 1 / np.sqrt(precision),
    }  # fmt: skip
    if not pooled:
        fixed = {"S0_roi": np.full(lead, S0_MEAN), "S0_sd": np.full(lead, S0_MEAN_SD)}
        return drawn | fixed | {"sigma": np.exp(x[..., 0])}
    h = 2 * P + P * (P - 1) // 2
    return drawn | {
        "mu": x[..., :P], "sd": np.exp(x[..., P : 2 * P]), "partial": np.tanh(0.5 * x[..., 2 * P : h]),
        "S0_roi": x[..., h], "S0_sd": np.exp(x[..., h + 1]), "sigma": np.exp(x[..., h + 2]),
    }  # fmt: skip


def _density_callback(size, x, gradient, logp, data):
    """Do `log_density` for a sampler: 0, or 3 where the density or its gradient is not finite."""
    block = nb.carray(data, (int(nb.carray(data, (1,), np.float64)[0]),), np.float64)
    slope = nb.carray(gradient, (size,))
    value = log_density(nb.carray(x, (size,)), slope, block)
    nb.carray(logp, (1,))[0] = value
    return 0 if math.isfinite(value) and np.isfinite(slope).all() else 3


def _copy_callback(size, expanded, x, out, data):
    """Keep the coordinates of a draw as they are."""
    nb.carray(out, (expanded,))[:] = nb.carray(x, (size,))
    return 0


@cache
def callbacks() -> tuple[Any, Any]:
    """C functions for the sampler, the density's and one that copies coordinates; each has an ``address``.

    Compiled at the first call on a machine; later processes load them, if they could be kept.
    """
    number = nb.types.CPointer(nb.types.float64)
    size, status, data = nb.types.uint64, nb.types.int64, nb.types.voidptr
    compiled = (
        nb.cfunc(status(size, number, number, number, data), cache=KEEP)(_density_callback),
        nb.cfunc(status(size, size, number, number, data), cache=KEEP)(_copy_callback),
    )
    return compiled


def coordinates(block: Array) -> int:
    """Count the unconstrained coordinates of a region."""
    V, P, pooled = int(block[2]), int(block[3]), bool(block[6])
    return V * P + (2 * P + P * (P - 1) // 2 + 3 if pooled else 1)
