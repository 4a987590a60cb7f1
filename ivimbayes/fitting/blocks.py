# mypy: disallow_untyped_defs=False
"""Voxels of a region in the sampling space, a block at a time: theta, curve, noise and population.

Voxels lie on the last axis of every array, up to `BLOCK` in a block, so that the inner loops vectorise.
Padding voxels in the last block have the weight 0 (`present`). Latent of a voxel are its P parameters theta
and, where the noise does not let S0 be integrated out, S0, whose population is independent of theta's: Q in
all. Each function is followed by the one that takes its gradient back.
"""

import math
from typing import NamedTuple

import numpy as np

from ivimbayes.fitting.packing import GAUSSIAN, RICIAN, STUDENT_T
from ivimbayes.numerics.jit import Cube, Cubes, Matrix, Vector, allocating_jit, jit, separate
from ivimbayes.numerics.noise import gaussian, rician, student_t
from ivimbayes.numerics.signals import Form, Shape, make_shape, signal_adjoint, signal_curve
from ivimbayes.numerics.triangular import (
    cholesky_adjoint,
    cholesky_blocks,
    multiply,
    solve_lower,
    solve_upper,
)

# Scratch of a block of voxels. Few arrays are handed to the functions below, since each is copied at a call.
FACTOR, FACTOR_BAR, SQUARE, MORE_SQUARE, S_SUM = range(5)  # of `squares` (5, Q, Q, voxel)
INVERSE, RIGHT, U, Z, THETA, THETA_BAR, Z_BAR, E_BAR, DEVIATION, PULL = range(10)  # of `rows` (10, Q, voxel)


@separate()
def locate(S: Matrix, shift: Vector, Lambda: Cube, eta: Matrix, squares: Cubes, rows: Cube) -> None:
    """Theta of z: F⁻ᵀ (z + u) with u = F⁻¹ (shift + eta) and shift = Sigma⁻¹ mu.

    ``eta`` may be the row `RIGHT`.
    """
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
    """Adjoints of `locate`: of z and of eta; those of Sigma⁻¹ and of shift + eta added to their sums."""
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


@jit
def signal_density(
    noise, measurements, P, signal, within, present, theta, scalars, curve, curve_bar, bars, work, out
):
    """Density of a block's signals given the weighted curves, by the noise.

    Adds to the rows of ``bars`` (4, lane): adjoints of S0_roi, of sigma² and of S0_sd², and the log-density.
    Sets the adjoint of the curves, and that of a latent S0 in ``out``.
    """
    mean, S0_variance, variance = scalars[0], scalars[1] ** 2, scalars[2] ** 2
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
    scalars: Vector,
    shape: Shape,
    curves: Cube,
    bars: Matrix,
    work: Matrix,
    out: Matrix,
) -> None:
    """Density of a block's signals: adjoints of theta (with S0) into ``out``, sums into ``bars``."""
    curve, curve_bar = curves[0], curves[1]
    signal_curve(form, theta[:P], root, b, step, steps, left, right, curve, shape)
    signal_density(
        noise, measurements, P, signal, within, present, theta, scalars, curve, curve_bar, bars, work, out
    )
    signal_adjoint(form, curve_bar, root, b, shape, out)


@jit
def block_likelihood(region, block, theta, scalars, shape, curves, bars, work, out):
    """Do `likelihood` for a block of a region."""
    likelihood(
        region.form, region.noise, region.measurements, region.centre.size, region.b, region.step,
        region.steps, region.left, region.right, region.signal[block], region.root[block],
        region.within[block], region.present[block], theta, scalars, shape, curves, bars, work, out,
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


class Adjoints(NamedTuple):
    """Adjoints of what the voxels' part takes of the hyperparameters.

    Attributes
    ----------
    S : ndarray (Q, Q)
        Of Sigma⁻¹.
    means : ndarray (Q,)
    scalars : ndarray (4,)
        Of S0_roi, S0_sd², sigma² and ln tau.
    second : ndarray (1 + P,)
        Of logit share and shift.
    """

    S: Matrix
    means: Vector
    scalars: Vector
    second: Vector


@allocating_jit
def make_adjoints(P, Q):
    """Zeros."""
    return Adjoints(np.zeros((Q, Q)), np.zeros(Q), np.zeros(4), np.zeros(1 + P))


class Sums(NamedTuple):
    """Sums over blocks of voxels, lane by lane.

    Attributes
    ----------
    bars : ndarray (4, lane)
        Adjoints of S0_roi, sigma² and S0_sd², and the log-density.
    pulls : ndarray (Q, lane)
        Adjoint of shift + eta.
    means : ndarray (Q + 1 + P, lane)
        Adjoints of the population's mean, of logit share and of the shift.
    """

    bars: Matrix
    pulls: Matrix
    means: Matrix


@allocating_jit
def make_sums(P, Q, lanes):
    """Zeros."""
    every = np.zeros((4 + 2 * Q + 1 + P, lanes))
    return Sums(every[:4], every[4 : 4 + Q], every[4 + Q :])


@jit
def noise_logs(region):
    """Exponent n of sigma² in a voxel's likelihood, which contains -n ln sigma²."""
    if region.noise == GAUSSIAN:
        return 0.5 * (region.measurements - 1)
    if region.noise == RICIAN:
        return region.measurements
    return 0.5 * region.measurements if region.noise == STUDENT_T else np.nan


@allocating_jit
def extended_second(second, S, P):
    """Share, shift and Sigma⁻¹ shift of a mixture."""
    extended, moved = np.empty(1 + 2 * P), multiply(S, second[1:], P)
    for i in range(P):
        extended[i], extended[1 + P + i] = second[i], moved[i]
    extended[P] = second[P]
    return extended


@jit
def add_determinants(present, inverse, noise_determinant, q, total):
    """Add half the logarithm of the determinants of theta(z) and of the noise."""
    for w in range(q.size):
        q[w] = noise_determinant[w]
    for i in range(inverse.shape[0]):
        for w in range(q.size):
            q[w] *= inverse[i, w] * inverse[i, w]
    for w in range(q.size):
        total[w] += present[w] * 0.5 * math.log(q[w])


@jit
def write_z(source, start, count, target):
    """Copy the adjoint of z of `count` voxels from lanes into the gradient."""
    for w in range(count):
        for i in range(source.shape[0]):
            target[start + w * source.shape[0] + i] = source[i, w]


@allocating_jit
def voxels_density(x, first, gradient, region, mu, L, S, scalars, second, adjoints):
    """Sum the densities of voxels without image effects; set the gradient in z, add to the adjoints."""
    lanes, P, Q, M = region.present.shape[1], region.centre.size, mu.size, region.b.size
    shift, extended, sums = multiply(S, mu, Q), extended_second(second, S, P), make_sums(P, Q, lanes)
    shape = make_shape(region.form, M, region.steps.size, lanes)
    squares, rows, curves = np.empty((5, Q, Q, lanes)), np.empty((10, Q, lanes)), np.empty((2, M, lanes))
    work, bars = np.empty((10, lanes)), sums.bars
    squares[S_SUM] = 0.0
    for block in range(region.signal.shape[0]):
        start, present = first + block * lanes * Q, region.present[block]
        count = min(lanes, region.voxels - block * lanes)
        read_z(x, start, count, rows[Z])
        locate(S, shift, region.precision[block], region.shift[block], squares, rows)
        block_likelihood(region, block, rows[THETA], scalars, shape, curves, bars, work, rows[THETA_BAR])
        population(
            mu, S, P, region.nu, region.mixed, extended, present, sums.means, bars[3], work[8:], squares, rows
        )
        if region.noise != GAUSSIAN:
            work[3] = 1.0
        add_determinants(present, rows[INVERSE], work[3], work[8], bars[3])
        back_from_theta(present, sums.pulls, squares, rows)
        write_z(rows[Z_BAR], start, count, gradient)
    return add_sums(region, mu, L, S, scalars, sums, squares[S_SUM], adjoints)


@jit
def add_sums(region, mu, L, S, scalars, sums, S_sum, adjoints):
    """Add the sums over voxels to the adjoints; return the log-density of all voxels."""
    P, Q, V = region.centre.size, mu.size, region.voxels
    total = -V * noise_logs(region) * math.log(scalars[2] ** 2)
    for i in range(1 + P):
        adjoints.second[i] = total_of(sums.means[Q + i])
    for w in range(sums.bars.shape[1]):
        total += sums.bars[3, w]
        adjoints.scalars[0] += sums.bars[0, w]
        adjoints.scalars[1] += sums.bars[2, w]
        adjoints.scalars[2] += sums.bars[1, w]
    for i in range(Q):
        total -= V * math.log(L[i, i])
        e = total_of(sums.pulls[i])
        adjoints.means[i] += total_of(sums.means[i])
        for j in range(Q):
            adjoints.means[j] += S[j, i] * e
            adjoints.S[i, j] += 0.5 * e * mu[j]
            adjoints.S[j, i] += 0.5 * e * mu[j]
        for j in range(i + 1):
            each = total_of(S_sum[i, j])
            adjoints.S[i, j] += each
            if i != j:
                adjoints.S[j, i] += each
    return total
