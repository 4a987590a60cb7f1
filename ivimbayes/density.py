# mypy: disallow_untyped_defs=False
"""Log-density of a region in its sampling space, and the gradient, compiled once on a machine.

The density is that of `build_model`, in the same unconstrained coordinates: mu, ln sd, logit of the partial
correlations, S0_roi, ln S0_sd, ln sigma, of a mixture also logit share and shift over sd, and z of every
voxel (see `Informed`); of a mean curve ln sigma and z. Latent of a voxel are its P parameters theta and,
where the noise does not let S0 be integrated out, S0, whose population is independent of theta's: Q in all.
The gradient is written by hand. Voxels lie on the last axis of every array, up to `LANES` in a block, so that
the inner loops vectorise; the voxels that fill the last block count for nothing.
"""

import math
from collections.abc import Mapping
from functools import cache
from typing import Any, NamedTuple

import numba as nb
import numpy as np
from scipy.special import expit

from ivimbayes.models.correlation import beta_shapes
from ivimbayes.models.noise import NOISES
from ivimbayes.models.signals import SIGNALS
from ivimbayes.models.spec import S0_MEAN, S0_MEAN_SD, S0_SD, SECOND_SHAPES, SECOND_SHIFT, ModelSpec
from ivimbayes.numerics.jit import allocating_jit, c_function, jit
from ivimbayes.numerics.noise import NOISE_KINDS, gaussian, rician, student_t
from ivimbayes.numerics.signals import Form, form_of, make_shape, signal_adjoint, signal_curve
from ivimbayes.numerics.steps import B_DIGITS, step_table
from ivimbayes.numerics.triangular import (
    cholesky,
    cholesky_adjoint,
    inverse_gram,
    partial_cholesky,
    product,
    solve_lower,
    solve_upper,
)

LANES = 128  # at most; a multiple of 4
LN_2PI = math.log(2 * math.pi)
GAUSSIAN, RICIAN, STUDENT_T = (NOISE_KINDS.index(kind) for kind in ("gaussian", "rician", "student_t"))
Array = np.ndarray[Any, np.dtype[np.float64]]


class Region(NamedTuple):
    """Data of one region as the density takes them: views of one block of numbers.

    Measurements are sorted by b. With Gaussian noise those at one b are merged: their mean, and what is
    ``within``, their sum of squares about it. B blocks of `LANES` voxels, M measurements after merging, P
    parameters, Q latent.

    Attributes
    ----------
    form : Form
        The signal model.
    noise : int
        Place in `NOISE_KINDS`.
    pooled : float
        1 with a population to estimate, 0 for a mean curve, whose population is the prior.
    measurements : float
        Number of measurements of a voxel before merging.
    nu : float
        Degrees of freedom of a Student-t population; 0 for a normal one.
    mixed : float
        1 for a mixture of two normal populations.
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
        b values, s/mm², rising.
    step : ndarray (M,)
        Which of `steps` leads from the b value before (from 0) to this one; -1 where they are the same.
    steps, left, right : ndarray (S,)
        Distinct differences of b values, each the sum of those at left and right; where these are -1, in the
        first rows, it is no such sum.
    voxels : int
        Number of voxels.
    signal, root : ndarray (B, M, LANES)
        Mean signal at each b times ``root``, the square root of the number of images averaged into it.
    within, present : ndarray (B, LANES)
        Weighted sum of squares within the b values; 1 for a voxel, 0 for a filler.
    precision : ndarray (B, Q, Q, LANES)
        Lambda of `Informed`.
    shift : ndarray (B, Q, LANES)
        Eta of `Informed`.
    """

    form: Form
    noise: int
    pooled: float
    measurements: float
    nu: float
    mixed: float
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


HEAD = 17  # length, lanes, voxels, P, M, steps, Q, noise, form (3), and the six numbers after it in `Region`


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
    V, Q = data["eta"].shape
    form, marginal = form_of(SIGNALS[spec.signal]), NOISES[spec.noise].marginal
    P, n = len(data["centre"]), data["averages"]
    b, mean, weight, within = _sorted(data, marginal)
    step, steps = step_table(b)
    lanes = 4 * math.ceil(V / math.ceil(V / LANES) / 4)
    pooled, heavy = level == "voxel", level == "voxel" and spec.population == "student_t"
    shapes = beta_shapes(spec.eta, P)
    head = [
        0, lanes, V, P, len(b), steps.shape[1], Q, NOISE_KINDS.index(spec.noise), *form,
        pooled, n.shape[1], spec.nu if heavy else 0, pooled and spec.population == "mixture",
        _constant(data, spec, pooled, heavy), data["sigma_scale"],
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


def _sorted(data: Mapping[str, Array], merge: bool) -> tuple[Array, Array, Array, Array]:
    """Sort the b values, merge those that are one; mean signal, averages, and squares within, of each."""
    n, y = data["averages"], data["observed"]
    if not merge:
        order = np.argsort(data["b"], kind="stable")
        return data["b"].round(B_DIGITS)[order], y[:, order], n[:, order], np.zeros(len(y))
    b, where = np.unique(data["b"].round(B_DIGITS), return_inverse=True)
    into = (where[:, None] == np.arange(len(b))).astype(float)  # measurement to b value
    weight = n @ into
    mean = (n * y) @ into / weight
    return b, mean, weight, (n * (y - mean[:, where]) ** 2).sum(axis=1)


def noise_constant(noise: str, signal: Array, averages: Array) -> Array:
    """Terms of the log-density of voxels' signals (voxel, measurement) that depend on no parameter."""
    if noise == "rician":
        return np.asarray(np.log(signal * averages).sum(axis=1))
    each = {"gaussian": -0.5 * LN_2PI, "student_t": math.log(3 / 8)}[noise]
    return np.asarray((each + 0.5 * np.log(averages)).sum(axis=1))


def _constant(data: Mapping[str, Array], spec: ModelSpec, pooled: bool, heavy: bool) -> float:
    """Give what the density adds that depends on no parameter."""
    V, Q = data["eta"].shape
    P, half_normal = len(data["centre"]), 0.5 * math.log(2 / math.pi)
    total = float(noise_constant(spec.noise, data["observed"], data["averages"]).sum())
    total += half_normal - math.log(data["sigma_scale"]) - 0.5 * V * (Q - P) * LN_2PI
    if heavy:
        nu = spec.nu
        total += V * (math.lgamma((nu + P) / 2) - math.lgamma(nu / 2) - P / 2 * math.log(nu * math.pi))
    else:
        total -= 0.5 * V * P * LN_2PI
    if pooled:
        total -= np.log(data["width"]).sum() + 0.5 * P * LN_2PI
        total += P * half_normal - np.log(data["spread"]).sum()
        total -= sum(2 * math.lgamma(a) - math.lgamma(2 * a) for a in beta_shapes(spec.eta, P))
        total += half_normal - math.log(S0_SD) - math.log(S0_MEAN_SD) - 0.5 * LN_2PI
    if pooled and spec.population == "mixture":
        total += math.lgamma(sum(SECOND_SHAPES)) - sum(math.lgamma(a) for a in SECOND_SHAPES)
        total -= P * (math.log(SECOND_SHIFT) + 0.5 * LN_2PI)
    return total


def _in_lanes(values: Array, lanes: int) -> Array:
    """(voxel, ...) to (block, ..., lane), filled with zeros."""
    blocks = -(-len(values) // lanes)
    filled = np.zeros((blocks * lanes, *values.shape[1:]))
    filled[: len(values)] = values
    return np.moveaxis(filled.reshape(blocks, lanes, *values.shape[1:]), 1, -1)


@allocating_jit
def _unpack(block):
    """Make views of the parts of a block from `pack_region`."""
    lanes, V, P, M, S = int(block[1]), int(block[2]), int(block[3]), int(block[4]), int(block[5])
    Q = int(block[6])
    B, pairs = (V + lanes - 1) // lanes, P * (P - 1) // 2
    o0 = HEAD + 3
    o1 = o0 + 3 * P
    o2 = o1 + pairs
    o3 = o2 + 2 * M + 3 * S
    o4 = o3 + 2 * B * M * lanes
    o5 = o4 + 2 * B * lanes
    o6 = o5 + B * Q * Q * lanes
    n = B * M * lanes
    return Region(
        Form(int(block[8]), int(block[9]), int(block[10])),
        int(block[7]),
        block[11],
        block[12],
        block[13],
        block[14],
        block[15],
        block[16],
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
        block[o5 : o5 + B * Q * Q * lanes].reshape((B, Q, Q, lanes)),
        block[o6 : o6 + B * Q * lanes].reshape((B, Q, lanes)),
    )


@jit
def _locate(S, shift, Lambda, eta, z, F, inverse, a, u, theta):
    """Theta of z: F⁻ᵀ (z + u) with u = F⁻¹ (shift + eta) and shift = Sigma⁻¹ mu; ``a`` is scratch."""
    lanes = z.shape[1]
    cholesky(S, Lambda, F, inverse)
    for i in range(z.shape[0]):
        for w in range(lanes):
            a[i, w] = shift[i] + eta[i, w]
    solve_lower(F, inverse, a, u)
    for i in range(z.shape[0]):
        for w in range(lanes):
            a[i, w] = u[i, w] + z[i, w]
    solve_upper(F, inverse, a, theta)


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


# ---------------------------------------------------------------- the region


@allocating_jit
def _hyperparameters(x, region):
    """Mu, sd, partial correlations, (S0_roi, S0_sd, sigma), (share, shift) and where z begins."""
    P, pairs = region.centre.size, region.shapes.size
    three = np.empty(3)
    if region.pooled == 0.0:
        three[0], three[1], three[2] = region.S0[0], region.S0[1], math.exp(x[0])
        return region.centre, region.width, np.zeros(pairs), three, np.zeros(1 + P), 1
    h = 2 * P + pairs
    three[0], three[1], three[2] = x[h], math.exp(x[h + 1]), math.exp(x[h + 2])
    sd, second = np.exp(x[P : 2 * P]), np.zeros(1 + P)
    if region.mixed != 0.0:
        second[0], second[1:] = 1.0 / (1.0 + math.exp(-x[h + 3])), sd * x[h + 4 : h + 4 + P]
    first = h + 3 + (1 + P if region.mixed != 0.0 else 0)
    return x[:P], sd, np.tanh(0.5 * x[2 * P : h]), three, second, first


@jit
def _likelihood(region, block, theta, mean, variance, S0_variance, shape, curve, curve_bar, bars, work, out):
    """Density of a block's signals: adjoints of theta (with S0) into ``out``, sums into ``bars``."""
    P, root, present = region.centre.size, region.root[block], region.present[block]
    signal_curve(
        region.form, theta[:P], root, region.b, region.step, region.steps, region.left, region.right, curve,
        shape,
    )  # fmt: skip
    if region.noise == GAUSSIAN:
        gaussian(
            region.signal[block], region.within[block], present, region.measurements, curve, mean, variance,
            S0_variance, work, curve_bar, bars,
        )  # fmt: skip
    elif region.noise == RICIAN:
        rician(
            region.signal[block], present, curve, theta[P], variance, curve_bar, out[P], bars, work
        )  # fmt: skip
    elif region.noise == STUDENT_T:
        student_t(
            region.signal[block], present, curve, theta[P], variance, curve_bar, out[P], bars, work
        )  # fmt: skip
    else:
        bars[3, 0] = np.nan
    signal_adjoint(region.form, curve_bar, root, region.b, shape, out)


@jit
def _population(theta, mu, S, P, nu, mixed, second, present, d, Sd, theta_bar, mu_sum, S_sum, total, work):
    """Density of theta, and S0 after it, given the population; adjoints added.

    Of a mixture ``second`` is (share, shift, Sigma⁻¹ shift); the adjoints of logit share and shift go into
    the last rows of ``mu_sum``.
    """
    Q, lanes = theta.shape
    q, weight = work[0], work[1]
    for i in range(Q):
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
            total[w] -= present[w] * 0.5 * (nu + P) * math.log1p(q[w] / nu)
        for w in range(lanes):
            weight[w] = present[w] * (nu + P) / (nu + q[w])
    else:
        for w in range(lanes):
            total[w] -= present[w] * 0.5 * q[w]
        for w in range(lanes):
            weight[w] = present[w]
    if mixed != 0.0:
        _mix(P, second, present, d, Sd, mu_sum[Q:], S_sum, total, work)
    for i in range(P, Q):
        for w in range(lanes):
            Sd[i, w] = S[i, i] * d[i, w]
            total[w] -= present[w] * 0.5 * Sd[i, w] * d[i, w]
    for i in range(Q):
        if i == P:
            for w in range(lanes):
                weight[w] = present[w]
        for w in range(lanes):
            theta_bar[i, w] -= weight[w] * Sd[i, w]
        for w in range(lanes):
            mu_sum[i, w] += weight[w] * Sd[i, w]
        for j in range(i + 1):
            for w in range(lanes):
                S_sum[i, j, w] -= 0.5 * weight[w] * d[i, w] * d[j, w]


@jit
def _mix(P, second, present, d, Sd, second_sum, S_sum, total, work):
    """Add to a normal density what a second one about a mean apart gives; Sd becomes that of both.

    With r the probability that a voxel is of the second, the gradient is that of a normal whose residual is
    d less r times the shift.
    """
    share, lanes = second[0], Sd.shape[1]
    shift, Sshift, r = second[1 : 1 + P], second[1 + P :], work[0]
    base = math.log(share) - math.log1p(-share)
    for i in range(P):
        base -= 0.5 * shift[i] * Sshift[i]
    for w in range(lanes):
        r[w] = base
    for i in range(P):
        for w in range(lanes):
            r[w] += shift[i] * Sd[i, w]
    for w in range(lanes):
        odds = math.exp(-abs(r[w]))
        total[w] += present[w] * (math.log1p(-share) + max(r[w], 0.0) + math.log1p(odds))
        r[w] = (1.0 if r[w] > 0.0 else odds) / (1.0 + odds)
        second_sum[0, w] += present[w] * (r[w] - share)
    for i in range(P):
        for w in range(lanes):
            second_sum[1 + i, w] += present[w] * r[w] * (Sd[i, w] - Sshift[i])
            Sd[i, w] -= r[w] * Sshift[i]
        for j in range(i + 1):
            for w in range(lanes):
                cross = d[i, w] * shift[j] + shift[i] * d[j, w] - shift[i] * shift[j]
                S_sum[i, j, w] += 0.5 * present[w] * r[w] * cross


@allocating_jit
def _voxels(x, first, gradient, region, mu, L, S, three, second, S_bar, mu_bar, three_bar, second_bar):
    """Sum the voxels' densities; set the gradient in z, add adjoints of the hyperparameters."""
    lanes = region.present.shape[1]
    P, Q, M = region.centre.size, mu.size, region.b.size
    V = region.voxels
    mean, S0_variance, variance = three[0], three[1] ** 2, three[2] ** 2
    marginal = region.noise == GAUSSIAN
    shift = product(S, mu.reshape((Q, 1)))[:, 0]
    shape = make_shape(region.form, M, region.steps.size, lanes)
    squares, triples = np.empty((5, Q, Q, lanes)), np.empty((10, Q, lanes))
    F, F_bar, R, X, S_sum = squares[0], squares[1], squares[2], squares[3], squares[4]
    inverse, a, u, z, theta = triples[0], triples[1], triples[2], triples[3], triples[4]
    theta_bar, y_bar, e_bar, d, Sd = triples[5], triples[6], triples[7], triples[8], triples[9]
    curves, sums = np.empty((2, M, lanes)), np.zeros((4 + 2 * Q + 1 + P, lanes))
    curve, curve_bar = curves[0], curves[1]
    bars, e_sum, mu_sum = sums[:4], sums[4 : 4 + Q], sums[4 + Q :]
    extended = np.empty(1 + 2 * P)
    extended[: 1 + P], extended[1 + P :] = second, product(S[:P, :P], second[1:].copy().reshape((P, 1)))[:, 0]
    work = np.empty((10, lanes))
    q = work[8]
    S_sum[:] = 0.0
    for block in range(region.signal.shape[0]):
        start = first + block * lanes * Q
        count = min(lanes, V - block * lanes)
        present = region.present[block]
        _read_z(x, start, count, z)
        _locate(S, shift, region.precision[block], region.shift[block], z, F, inverse, a, u, theta)
        _likelihood(
            region, block, theta, mean, variance, S0_variance, shape, curve, curve_bar, bars, work, theta_bar
        )  # fmt: skip
        _population(
            theta, mu, S, P, region.nu, region.mixed, extended, present, d, Sd, theta_bar, mu_sum, S_sum,
            bars[3], work[8:],
        )  # fmt: skip
        # determinants: of theta(z), and of the noise
        for w in range(lanes):
            q[w] = work[3, w] if marginal else 1.0
        for i in range(Q):
            for w in range(lanes):
                q[w] *= inverse[i, w] * inverse[i, w]
        for w in range(lanes):
            bars[3, w] += present[w] * 0.5 * math.log(q[w])
        # back through theta(z)
        solve_lower(F, inverse, theta_bar, y_bar)
        solve_upper(F, inverse, y_bar, e_bar)
        for w in range(count):
            for i in range(Q):
                gradient[start + w * Q + i] = y_bar[i, w]
        for i in range(Q):
            for j in range(i + 1):
                for w in range(lanes):
                    F_bar[i, j, w] = -theta[i, w] * y_bar[j, w] - e_bar[i, w] * u[j, w]
            for w in range(lanes):
                F_bar[i, i, w] -= inverse[i, w]
        cholesky_adjoint(F, inverse, F_bar, R, X)
        for i in range(Q):
            for j in range(i + 1):
                for w in range(lanes):
                    S_sum[i, j, w] += 0.5 * present[w] * (X[i, j, w] + X[j, i, w])
            for w in range(lanes):
                e_sum[i, w] += present[w] * e_bar[i, w]
    for i in range(1 + P):
        second_bar[i] = mu_sum[Q + i].sum()
    total = -V * _noise_logs(region) * math.log(variance)
    for w in range(lanes):
        total += bars[3, w]
        three_bar[0] += bars[0, w]
        three_bar[1] += bars[2, w]
        three_bar[2] += bars[1, w]
    for i in range(Q):
        total -= V * math.log(L[i, i])
        e = e_sum[i].sum()
        mu_bar[i] += mu_sum[i].sum()
        for j in range(Q):
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
def _noise_logs(region):
    """How often ln variance is taken off a voxel's density."""
    if region.noise == GAUSSIAN:
        return 0.5 * (region.measurements - 1)
    if region.noise == RICIAN:
        return region.measurements
    return 0.5 * region.measurements if region.noise == STUDENT_T else np.nan


@allocating_jit
def _population_of(mu, sd, r, three, Q):
    """Mean, Cholesky factor L and inverse covariance of a voxel's latents, that of theta without S0 first."""
    P = mu.size
    C, means, L = partial_cholesky(r, P), np.empty(Q), np.zeros((Q, Q))
    for i in range(P):
        means[i] = mu[i]
        for j in range(P):
            L[i, j] = sd[i] * C[i, j]
    for i in range(P, Q):
        means[i], L[i, i] = three[0], three[1]
    return means, L, inverse_gram(L)


@jit
def _second_prior(apart, second, second_bar, sd, gradient):
    """Prior of logit share and of the shift over sd; their gradient set."""
    a, b, share = SECOND_SHAPES[0], SECOND_SHAPES[1], second[0]
    total = a * math.log(share) + b * math.log1p(-share)
    gradient[0] = second_bar[0] + a - (a + b) * share
    for i in range(sd.size):
        total -= 0.5 * (apart[i] / SECOND_SHIFT) ** 2
        gradient[1 + i] = second_bar[1 + i] * sd[i] - apart[i] / SECOND_SHIFT**2
    return total


@allocating_jit
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
    mu, sd, r, three, second, first = _hyperparameters(x, region)
    Q = region.shift.shape[1]
    means, L, S = _population_of(mu, sd, r, three, Q)
    S_bar, mu_bar, three_bar, second_bar = np.zeros((Q, Q)), np.zeros(Q), np.zeros(3), np.zeros(1 + P)
    total = region.constant
    total += _voxels(
        x, first, gradient, region, means, L, S, three, second, S_bar, mu_bar, three_bar, second_bar
    )
    for i in range(P, Q):  # S0: its mean, and its variance from the inverse variance
        three_bar[0] += mu_bar[i]
        three_bar[1] += -S_bar[i, i] * S[i, i] * S[i, i] - 0.5 * V * S[i, i]
    sigma = three[2] / region.sigma_scale
    total += math.log(three[2]) - 0.5 * sigma**2
    h = 2 * P + pairs
    at_sigma = h + 2 if region.pooled != 0.0 else 0
    gradient[at_sigma] = 2 * three[2] ** 2 * three_bar[2] + 1 - sigma**2
    if region.pooled == 0.0:
        return total
    from_mean, spread = (three[0] - region.S0[0]) / region.S0[1], three[1] / region.S0[2]
    total += x[h + 1] - 0.5 * (from_mean**2 + spread**2)
    gradient[h] = three_bar[0] - from_mean / region.S0[1]
    gradient[h + 1] = 2 * three[1] ** 2 * three_bar[1] + 1 - spread**2
    for i in range(P):
        from_mean, spread = (mu[i] - region.centre[i]) / region.width[i], sd[i] / region.spread[i]
        total += x[P + i] - 0.5 * (from_mean**2 + spread**2)
        gradient[i] = mu_bar[i] - from_mean / region.width[i]
        gradient[P + i] = 1 - spread**2
    if region.mixed != 0.0:
        total += _second_prior(x[h + 4 : first], second, second_bar, sd, gradient[h + 3 : first])
        for i in range(P):
            gradient[P + i] += second_bar[1 + i] * second[1 + i]
    for n in range(pairs):
        size = abs(x[2 * P + n])
        total -= region.shapes[n] * (size + 2 * math.log1p(math.exp(-size)))
        gradient[2 * P + n] = -region.shapes[n] * r[n]
    # Sigma⁻¹ = (L L')⁻¹, so L̄ = -2 tril(Sigma⁻¹ S̄ L⁻ᵀ); L = diag(sd) C(r), d r = (1 - r²) / 2 d x
    T = product(product(S[:P, :P], S_bar[:P, :P]), product(S[:P, :P], L[:P, :P]))
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


@allocating_jit
def _of_draws(x, block):
    """Give theta with S0 (draw, voxel, latent); log-likelihood, mean and precision of S0, (draw, voxel)."""
    region = _unpack(block)
    M, V, lanes = region.b.size, region.voxels, region.present.shape[1]
    Q = region.shift.shape[1]
    out, by_voxel = np.empty((x.shape[0], V, Q)), np.zeros((3, x.shape[0], V))
    F, triples = np.empty((Q, Q, lanes)), np.empty((6, Q, lanes))
    inverse, a, u, z, theta, bar = triples[0], triples[1], triples[2], triples[3], triples[4], triples[5]
    shape = make_shape(region.form, M, region.steps.size, lanes)
    curves, work, bars = np.empty((2, M, lanes)), np.empty((8, lanes)), np.zeros((4, lanes))
    for n in range(x.shape[0]):
        mu, sd, r, three, _, first = _hyperparameters(x[n], region)
        S0_variance, variance = three[1] ** 2, three[2] ** 2
        means, _, S = _population_of(mu, sd, r, three, Q)
        shift = product(S, means.reshape((Q, 1)))[:, 0]
        fixed = _noise_logs(region) * math.log(variance)
        for index in range(region.signal.shape[0]):
            start = index * lanes
            count = min(lanes, V - start)
            _read_z(x[n], first + start * Q, count, z)
            _locate(S, shift, region.precision[index], region.shift[index], z, F, inverse, a, u, theta)
            bars[:] = 0.0
            _likelihood(
                region, index, theta, three[0], variance, S0_variance, shape, curves[0], curves[1], bars,
                work, bar,
            )  # fmt: skip
            for w in range(count):
                by_voxel[0, n, start + w] = bars[3, w] - fixed
                if region.noise == GAUSSIAN:
                    by_voxel[0, n, start + w] += 0.5 * math.log(work[3, w])
                    by_voxel[1, n, start + w] = work[1, w]
                    by_voxel[2, n, start + w] = 1.0 / S0_variance + work[0, w] / variance
                for i in range(Q):
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
        ``mu``, ``sd`` (..., parameter) and ``partial`` correlations (..., pair), and of a mixture
        ``second_share`` (...) and ``second_shift`` (..., parameter). ``log_likelihood``, and the
        mean ``S0_mean`` and standard deviation ``S0_scale`` of S0 given the rest (0 where S0 is sampled), all
        (..., voxel); the log-likelihood lacks `noise_constant`.
    """
    P, pooled, lead = int(block[3]), bool(block[11]), x.shape[:-1]
    marginal = int(block[7]) == GAUSSIAN
    latent, by_voxel = _of_draws(np.ascontiguousarray(x.reshape(-1, x.shape[-1])), block)
    log_likelihood, mean, precision = by_voxel.reshape(3, *lead, -1)
    latent = latent.reshape(*lead, *latent.shape[1:])
    drawn = {
        "theta": latent[..., :P], "log_likelihood": log_likelihood,
        "S0_mean": mean if marginal else latent[..., P],
        "S0_scale": 1 / np.sqrt(precision) if marginal else np.zeros_like(mean),
    }  # fmt: skip
    if not pooled:
        fixed = {"S0_roi": np.full(lead, S0_MEAN), "S0_sd": np.full(lead, S0_MEAN_SD)}
        return drawn | fixed | {"sigma": np.exp(x[..., 0])}
    h = 2 * P + P * (P - 1) // 2
    if block[14]:
        shift = np.exp(x[..., P : 2 * P]) * x[..., h + 4 : h + 4 + P]
        drawn |= {"second_share": expit(x[..., h + 3]), "second_shift": shift}
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
        c_function(status(size, number, number, number, data), _density_callback),
        c_function(status(size, size, number, number, data), _copy_callback),
    )
    return compiled


def coordinates(block: Array) -> int:
    """Count the unconstrained coordinates of a region."""
    V, P, Q, pooled, mixed = int(block[2]), int(block[3]), int(block[6]), bool(block[11]), bool(block[14])
    return V * Q + (2 * P + P * (P - 1) // 2 + 3 + mixed * (1 + P) if pooled else 1)
