# mypy: disallow_untyped_defs=False
"""Log-density of a region in its sampling space, and the gradient, compiled once on a machine.

The density is that of `build_model`, in the same unconstrained coordinates: mu, ln sd, logit of the partial
correlations, S0_roi, ln S0_sd, ln sigma, of a mixture also logit share and shift over sd, and z of every
voxel (see `Informed`); of a mean curve ln sigma and z. Latent of a voxel are its P parameters theta and,
where the noise does not let S0 be integrated out, S0, whose population is independent of theta's: Q in all.
The gradient is written by hand. Voxels lie on the last axis of every array, up to `BLOCK` in a block, so that
the inner loops vectorise. Padding voxels in the last block have the weight 0 (`present`).
"""

import math
from functools import cache
from typing import Any

import numba as nb
import numpy as np
from numba import types

from ivimbayes.fitting.packing import GAUSSIAN, RICIAN, STUDENT_T, unpack
from ivimbayes.models.spec import SECOND_SHAPES, SECOND_SHIFT
from ivimbayes.numerics.arithmetic import Array, scalar_logistic
from ivimbayes.numerics.jit import (
    Cube,
    Cubes,
    Matrix,
    Vector,
    allocating_jit,
    c_function,
    jit,
    load,
    missing,
    separate,
)
from ivimbayes.numerics.noise import NOISE_KINDS, gaussian, rician, student_t
from ivimbayes.numerics.signals import Form, Shape, make_shape, signal_adjoint, signal_curve
from ivimbayes.numerics.triangular import (
    cholesky_adjoint,
    cholesky_blocks,
    inverse_gram,
    multiply,
    partial_cholesky,
    product,
    solve_lower,
    solve_upper,
)

# Scratch of a block of voxels. Few arrays are handed to the functions below, since each is copied at a call.
FACTOR, FACTOR_BAR, SQUARE, MORE_SQUARE, S_SUM = range(5)  # of `squares` (5, Q, Q, voxel)
INVERSE, RIGHT, U, Z, THETA, THETA_BAR, Z_BAR, E_BAR, DEVIATION, PULL = range(10)  # of `rows` (10, Q, voxel)


@separate()
def locate(S: Matrix, shift: Vector, Lambda: Cube, eta: Matrix, squares: Cubes, rows: Cube) -> None:
    """Theta of z: F⁻ᵀ (z + u) with u = F⁻¹ (shift + eta) and shift = Sigma⁻¹ mu."""
    F, inverse, a, u, z, theta = squares[FACTOR], rows[INVERSE], rows[RIGHT], rows[U], rows[Z], rows[THETA]
    lanes = z.shape[1]
    cholesky_blocks(S, Lambda, F, inverse)
    for i in range(z.shape[0]):
        for w in range(lanes):
            a[i, w] = shift[i] + eta[i, w]
    solve_lower(F, inverse, a, u)
    for i in range(z.shape[0]):
        for w in range(lanes):
            a[i, w] = u[i, w] + z[i, w]
    solve_upper(F, inverse, a, theta)


@separate()
def back_from_theta(present: Vector, e_sum: Matrix, squares: Cubes, rows: Cube) -> None:
    """Adjoints of `locate`: of z; those of Sigma⁻¹ and of shift + eta added to their sums."""
    F, F_bar, R, X = squares[FACTOR], squares[FACTOR_BAR], squares[SQUARE], squares[MORE_SQUARE]
    S_sum, inverse, u, theta = squares[S_SUM], rows[INVERSE], rows[U], rows[THETA]
    theta_bar, z_bar, e_bar = rows[THETA_BAR], rows[Z_BAR], rows[E_BAR]
    Q, lanes = theta.shape
    solve_lower(F, inverse, theta_bar, z_bar)
    solve_upper(F, inverse, z_bar, e_bar)
    for i in range(Q):
        for j in range(i + 1):
            for w in range(lanes):
                F_bar[i, j, w] = -theta[i, w] * z_bar[j, w] - e_bar[i, w] * u[j, w]
        for w in range(lanes):
            F_bar[i, i, w] -= inverse[i, w]
    cholesky_adjoint(F, inverse, F_bar, R, X)
    for i in range(Q):
        for j in range(i + 1):
            for w in range(lanes):
                S_sum[i, j, w] += 0.5 * present[w] * (X[i, j, w] + X[j, i, w])
        for w in range(lanes):
            e_sum[i, w] += present[w] * e_bar[i, w]


@jit
def read_z(x, start, count, z):
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
def hyperparameters(x, region):
    """Mu, sd, partial correlations, (S0_roi, S0_sd, sigma), (share, shift) and where z begins."""
    P, pairs = region.centre.size, region.shapes.size
    mu, sd, r = np.empty(P), np.empty(P), np.zeros(pairs)
    three, second = np.empty(3), np.zeros(1 + P)
    if region.pooled == 0.0:
        for i in range(P):
            mu[i], sd[i] = region.centre[i], region.width[i]
        three[0], three[1], three[2] = region.S0[0], region.S0[1], math.exp(x[0])
        return mu, sd, r, three, second, 1
    h = 2 * P + pairs
    three[0], three[1], three[2] = x[h], math.exp(x[h + 1]), math.exp(x[h + 2])
    for i in range(P):
        mu[i], sd[i] = x[i], math.exp(x[P + i])
    for n in range(pairs):
        r[n] = math.tanh(0.5 * x[2 * P + n])
    if region.mixed == 0.0:
        return mu, sd, r, three, second, h + 3
    second[0] = scalar_logistic(x[h + 3])
    for i in range(P):
        second[1 + i] = sd[i] * x[h + 4 + i]
    return mu, sd, r, three, second, h + 4 + P


@separate()
def likelihood(
    form: Form,
    noise: int,
    measurements: float,
    P: int,
    b: Vector,
    step: Vector,
    steps: Vector,
    left: Vector,
    right: Vector,
    signal: Matrix,
    root: Matrix,
    within: Vector,
    present: Vector,
    theta: Matrix,
    three: Vector,
    shape: Shape,
    curves: Cube,
    bars: Matrix,
    work: Matrix,
    out: Matrix,
) -> None:
    """Density of a block's signals: adjoints of theta (with S0) into ``out``, sums into ``bars``."""
    mean, S0_variance, variance = three[0], three[1] ** 2, three[2] ** 2
    curve, curve_bar = curves[0], curves[1]
    signal_curve(form, theta[:P], root, b, step, steps, left, right, curve, shape)
    if noise == GAUSSIAN:
        gaussian(
            signal, within, present, measurements, curve, mean, variance, S0_variance, work, curve_bar, bars
        )
    elif noise == RICIAN:
        rician(signal, present, curve, theta[P], variance, curve_bar, out[P], bars, work)
    elif noise == STUDENT_T:
        student_t(signal, present, curve, theta[P], variance, curve_bar, out[P], bars, work)
    else:
        bars[3, 0] = np.nan
    signal_adjoint(form, curve_bar, root, b, shape, out)


@jit
def block_likelihood(region, block, theta, three, shape, curves, bars, work, out):
    """Do `likelihood` for a block of a region."""
    likelihood(
        region.form, region.noise, region.measurements, region.centre.size, region.b, region.step,
        region.steps, region.left, region.right, region.signal[block], region.root[block],
        region.within[block], region.present[block], theta, three, shape, curves, bars, work, out,
    )  # fmt: skip


@separate()
def population(
    mu: Vector,
    S: Matrix,
    P: int,
    nu: float,
    mixed: float,
    second: Vector,
    present: Vector,
    mu_sum: Matrix,
    total: Vector,
    work: Matrix,
    squares: Cubes,
    rows: Cube,
) -> None:
    """Density of theta, and S0 after it, given the population; adjoints added.

    Of a mixture ``second`` is (share, shift, Sigma⁻¹ shift); the adjoints of logit share and shift go into
    the last rows of ``mu_sum``.
    """
    theta, theta_bar, d, Sd = rows[THETA], rows[THETA_BAR], rows[DEVIATION], rows[PULL]
    S_sum = squares[S_SUM]
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
        mix(P, second, present, d, Sd, mu_sum[Q:], S_sum, total, work)
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


@separate(optional=True)
def mix(
    P: int,
    second: Vector,
    present: Vector,
    d: Matrix,
    Sd: Matrix,
    second_sum: Matrix,
    S_sum: Cube,
    total: Vector,
    work: Matrix,
) -> None:
    """Turn a normal population into a mixture of two: add log(1 - w + w N2 / N1); Sd becomes its gradient.

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


@jit
def total_of(x):
    """Sum, term by term."""
    total = 0.0
    for w in range(x.size):
        total += x[w]
    return total


@allocating_jit
def _voxels(x, first, gradient, region, mu, L, S, three, second, S_bar, mu_bar, three_bar, second_bar):
    """Sum the voxels' densities; set the gradient in z, add adjoints of the hyperparameters."""
    lanes = region.present.shape[1]
    P, Q, M = region.centre.size, mu.size, region.b.size
    V = region.voxels
    variance = three[2] ** 2
    marginal = region.noise == GAUSSIAN
    shift = multiply(S, mu, Q)
    shape = make_shape(region.form, M, region.steps.size, lanes)
    squares, rows = np.empty((5, Q, Q, lanes)), np.empty((10, Q, lanes))
    curves, sums = np.empty((2, M, lanes)), np.zeros((4 + 2 * Q + 1 + P, lanes))
    S_sum, inverse, y_bar = squares[S_SUM], rows[INVERSE], rows[Z_BAR]
    bars, e_sum, mu_sum = sums[:4], sums[4 : 4 + Q], sums[4 + Q :]
    extended, moved = np.empty(1 + 2 * P), multiply(S, second[1:], P)
    for i in range(P):
        extended[i], extended[1 + P + i] = second[i], moved[i]
    extended[P] = second[P]
    work = np.empty((10, lanes))
    q = work[8]
    S_sum[:] = 0.0
    for block in range(region.signal.shape[0]):
        start = first + block * lanes * Q
        count = min(lanes, V - block * lanes)
        present = region.present[block]
        read_z(x, start, count, rows[Z])
        locate(S, shift, region.precision[block], region.shift[block], squares, rows)
        block_likelihood(region, block, rows[THETA], three, shape, curves, bars, work, rows[THETA_BAR])
        population(
            mu, S, P, region.nu, region.mixed, extended, present, mu_sum, bars[3], work[8:], squares, rows
        )
        # determinants: of theta(z), and of the noise
        for w in range(lanes):
            q[w] = work[3, w] if marginal else 1.0
        for i in range(Q):
            for w in range(lanes):
                q[w] *= inverse[i, w] * inverse[i, w]
        for w in range(lanes):
            bars[3, w] += present[w] * 0.5 * math.log(q[w])
        back_from_theta(present, e_sum, squares, rows)
        for w in range(count):
            for i in range(Q):
                gradient[start + w * Q + i] = y_bar[i, w]
    for i in range(1 + P):
        second_bar[i] = total_of(mu_sum[Q + i])
    total = -V * noise_logs(region) * math.log(variance)
    for w in range(lanes):
        total += bars[3, w]
        three_bar[0] += bars[0, w]
        three_bar[1] += bars[2, w]
        three_bar[2] += bars[1, w]
    for i in range(Q):
        total -= V * math.log(L[i, i])
        e = total_of(e_sum[i])
        mu_bar[i] += total_of(mu_sum[i])
        for j in range(Q):
            mu_bar[j] += S[j, i] * e
            S_bar[i, j] += 0.5 * e * mu[j]
            S_bar[j, i] += 0.5 * e * mu[j]
        for j in range(i + 1):
            each = total_of(S_sum[i, j])
            S_bar[i, j] += each
            if i != j:
                S_bar[j, i] += each
    return total


@jit
def noise_logs(region):
    """Exponent n of sigma² in a voxel's likelihood, which contains -n ln sigma²."""
    if region.noise == GAUSSIAN:
        return 0.5 * (region.measurements - 1)
    if region.noise == RICIAN:
        return region.measurements
    return 0.5 * region.measurements if region.noise == STUDENT_T else np.nan


@allocating_jit
def latent_population(mu, sd, r, three, Q):
    """Mean, Cholesky factor L and inverse covariance of a voxel's latents, that of theta without S0 first."""
    P = mu.size
    C, means, L = partial_cholesky(r, P), np.empty(Q), np.zeros((Q, Q))
    for i in range(P):
        means[i] = mu[i]
        for j in range(P):
            L[i, j] = sd[i] * C[i, j]
    for i in range(P, Q):
        means[i], L[i, i] = three[0], three[1]
    return means, L, inverse_gram(L, Q)


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


@separate(allocates=True)
def region_density(x: Vector, gradient: Vector, block: Vector) -> float:
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
    region = unpack(block)
    P, pairs, V = region.centre.size, region.shapes.size, region.voxels
    mu, sd, r, three, second, first = hyperparameters(x, region)
    Q = region.shift.shape[1]
    means, L, S = latent_population(mu, sd, r, three, Q)
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
    T = product(product(S, S_bar, P), product(S, L, P), P)
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
def _log_density(x, gradient, block):
    return region_density(x, gradient, block)


def log_density(x: Array, gradient: Array, block: Array) -> float:
    """Do `region_density`, whose parameters these are, after it is loaded for the region's noise."""
    callbacks(block)
    return float(_log_density(x, gradient, block))


def _density_callback(size, x, gradient, logp, data):
    """Do `region_density` for a sampler: 0, or 3 where the density or its gradient is not finite."""
    block = nb.carray(data, (int(nb.carray(data, (1,), np.float64)[0]),), np.float64)
    slope = nb.carray(gradient, (size,))
    value = region_density(nb.carray(x, (size,)), slope, block)
    nb.carray(logp, (1,))[0] = value
    good = math.isfinite(value)
    for i in range(slope.size):
        good = good and math.isfinite(slope[i])
    return 0 if good else 3


def _copy_callback(size, expanded, x, out, data):
    """Keep the coordinates of a draw as they are."""
    source, target = nb.carray(x, (size,)), nb.carray(out, (expanded,))
    for i in range(size):
        target[i] = source[i]
    return 0


@cache
def _callbacks() -> tuple[Any, Any]:
    number = types.CPointer(types.float64)
    size, status, data = types.uint64, types.int64, types.voidptr
    return (
        c_function(_density_callback, status, (size, number, number, number, data)),
        c_function(_copy_callback, status, (size, size, number, number, data)),
    )


def callbacks(block: Array) -> tuple[Any, Any]:
    """C functions for the sampler: the density of a region, and one that copies coordinates.

    Each has an ``address``. They are compiled at the first call on a machine; later processes load them, if
    they could be kept. What the noise and the population of the region need is loaded too.
    """
    load(*_parts(int(block[7]), bool(block[14])))
    return _callbacks()


def missing_density(block: Array) -> int:
    """Count the functions that `callbacks` would compile."""
    return len(missing(*_parts(int(block[7]), bool(block[14]))))


def _parts(noise: int, mixture: bool) -> list[Any]:
    noises = {GAUSSIAN: gaussian, RICIAN: rician, STUDENT_T: student_t}
    return [region_density, *([noises[noise]] if noise in noises else []), *([mix] if mixture else [])]


def compile_density(noise: str, mixture: bool) -> tuple[Any, Any]:
    """Compile or load the `callbacks` for a noise, and for a mixture of populations if asked."""
    load(*_parts(NOISE_KINDS.index(noise), mixture))
    return _callbacks()
