# mypy: disallow_untyped_defs=False
"""Log-density of a region in its sampling space, and the gradient, compiled once on a machine.

The density is that of `build_model`, in the same unconstrained coordinates: mu, ln sd, logit of the partial
correlations, S0_roi, ln S0_sd, ln sigma, of a mixture also logit share and shift over sd, with image effects
ln of their standard deviation, z of every voxel (see `Informed`), and with image effects z of each image (see
`ivimbayes.fitting.image_effects`); of a mean curve ln sigma and z. The gradient is written by hand. What a
block of voxels adds is in `ivimbayes.fitting.blocks`. The sampler may see a linear map of the
hyperparameters' coordinates (`unstretched`).
"""

import math
from functools import cache
from typing import Any, NamedTuple

import numba as nb
import numpy as np
from numba import types

from ivimbayes.fitting.blocks import (
    ADJOINT,
    CURVE,
    INVERSE,
    NOISE,
    S_SUM,
    THETA,
    THETA_BAR,
    Z_BAR,
    Z,
    back_from_theta,
    block_likelihood,
    locate,
    mix,
    population,
    read_z,
    total_of,
)
from ivimbayes.fitting.image_effects import (
    effects_adjoint,
    effects_prior,
    expected_effects,
    expected_effects_adjoint,
    find_effects,
    reflect,
)
from ivimbayes.fitting.packing import GAUSSIAN, RICIAN, STUDENT_T, unpack
from ivimbayes.models.spec import IMAGE_SCALE, SECOND_SHAPES, SECOND_SHIFT
from ivimbayes.numerics.arithmetic import Array, scalar_logistic
from ivimbayes.numerics.jit import (
    Cubes,
    Matrix,
    Vector,
    allocating_jit,
    c_function,
    jit,
    load,
    missing,
    separate,
)  # fmt: skip
from ivimbayes.numerics.noise import NOISE_KINDS, gaussian, rician, student_t
from ivimbayes.numerics.signals import make_shapes, shape_at
from ivimbayes.numerics.triangular import inverse_gram, multiply, partial_cholesky, product


@allocating_jit
def hyperparameters(x, region):
    """Mu, sd, partial correlations, (S0_roi, S0_sd, sigma, tau), (share, shift) and where z begins."""
    P, pairs = region.centre.size, region.shapes.size
    mu, sd, r = np.empty(P), np.empty(P), np.zeros(pairs)
    scalars, second = np.zeros(4), np.zeros(1 + P)
    if region.pooled == 0.0:
        for i in range(P):
            mu[i], sd[i] = region.centre[i], region.width[i]
        scalars[0], scalars[1], scalars[2] = region.S0[0], region.S0[1], math.exp(x[0])
        return mu, sd, r, scalars, second, 1
    h = 2 * P + pairs
    scalars[0], scalars[1], scalars[2] = x[h], math.exp(x[h + 1]), math.exp(x[h + 2])
    for i in range(P):
        mu[i], sd[i] = x[i], math.exp(x[P + i])
    for n in range(pairs):
        r[n] = math.tanh(0.5 * x[2 * P + n])
    first = h + 3
    if region.mixed != 0.0:
        second[0] = scalar_logistic(x[first])
        for i in range(P):
            second[1 + i] = sd[i] * x[first + 1 + i]
        first += 1 + P
    if region.order.size > 0:
        scalars[3] = math.exp(x[first])
        first += 1
    return mu, sd, r, scalars, second, first


# Rows of `by_image` (6, K): the effects, their exponentials, the sums of the curves, what moves the centres
# of the likelihoods (see `locate`), and adjoints of the sums and of the effects.
EFFECT, FACTOR_OF, SUM, MOVE, SUM_BAR, EFFECT_BAR = range(6)


class Scratch(NamedTuple):
    """Scratch of all blocks that are worked on together: those of a region with image effects, else one.

    Attributes
    ----------
    squares : ndarray (block, 5, Q, Q, lane)
    rows : ndarray (block, 10, Q, lane)
    curves : ndarray (block, 2, M, lane)
        The curves and their adjoint.
    determinant : ndarray (block, lane)
        Of the noise.
    work : ndarray (10, lane)
    """

    squares: Any
    rows: Cubes
    curves: Cubes
    determinant: Matrix
    work: Matrix


@allocating_jit
def make_scratch(region, Q):
    """Allocate `Scratch`."""
    lanes, M = region.present.shape[1], region.b.size
    blocks = region.present.shape[0] if region.order.size > 0 else 1
    return Scratch(
        np.empty((blocks, 5, Q, Q, lanes)),
        np.empty((blocks, 10, Q, lanes)),
        np.empty((blocks, 2, M, lanes)),
        np.empty((blocks, lanes)),
        np.empty((10, lanes)),
    )


@jit
def place_voxels(block, z, region, S, shift, move, squares, rows):
    """Theta of a block from the z of all voxels."""
    Q, lanes = rows.shape[1], rows.shape[2]
    read_z(z, block * lanes * Q, min(lanes, region.voxels - block * lanes), rows[Z])
    cross = region.cross[block if move.size > 0 else 0]
    locate(S, shift, region.precision[block], region.shift[block], cross, move, squares, rows)


@jit
def add_weighted(region, block, curve, theta, sums):
    """Add to each image the weighted sum of its curves over the voxels of a block."""
    P, Q, weight = region.centre.size, theta.shape[0], region.weight[block]
    for k in range(sums.size):
        total = 0.0
        if Q > P:
            for w in range(theta.shape[1]):
                total += weight[k, w] * curve[k, w] * theta[P, w]
        else:
            for w in range(theta.shape[1]):
                total += weight[k, w] * curve[k, w]
        sums[k] += total


@jit
def scale_curves(factor, curve):
    """Multiply the curve of each image by its factor."""
    for k in range(factor.size):
        for w in range(curve.shape[1]):
            curve[k, w] *= factor[k]


@jit
def add_effects_adjoint(factor, curves, effects_bar):
    """Add to the adjoint of each effect; the adjoint of the curves becomes that of those without effects."""
    curve, bar = curves[0], curves[1]
    for k in range(factor.size):
        total = 0.0
        for w in range(curve.shape[1]):
            total += curve[k, w] * bar[k, w]
            bar[k, w] *= factor[k]
        effects_bar[k] += total


@jit
def add_weighted_adjoint(region, block, factor, sums_bar, curves, theta, theta_bar):
    """Take the adjoint of the sums back to the curves and, where it is latent, to S0."""
    P, Q, weight, curve, bar = region.centre.size, theta.shape[0], region.weight[block], curves[0], curves[1]
    for k in range(factor.size):
        if Q > P:
            for w in range(theta.shape[1]):
                each = sums_bar[k] * weight[k, w]
                bar[k, w] += each * theta[P, w]
                theta_bar[P, w] += each * curve[k, w] / factor[k]
        else:
            for w in range(theta.shape[1]):
                bar[k, w] += sums_bar[k] * weight[k, w]


@jit
def finish_block(
    block, region, mu, S, extended, move_sum, e_sum, mu_sum, bars, work, squares, rows, determinant, z_bar
):
    """Density of a block's theta given the population; all adjoints back to z."""
    present, inverse, q = region.present[block], rows[INVERSE], work[8]
    Q, lanes = inverse.shape
    population(
        mu, S, region.centre.size, region.nu, region.mixed, extended, present, mu_sum, bars[3], work[8:],
        squares, rows,
    )  # fmt: skip
    # determinants: of theta(z), and of the noise
    for w in range(lanes):
        q[w] = determinant[w]
    for i in range(Q):
        for w in range(lanes):
            q[w] *= inverse[i, w] * inverse[i, w]
    for w in range(lanes):
        bars[3, w] += present[w] * 0.5 * math.log(q[w])
    cross = region.cross[block if move_sum.shape[0] > 0 else 0]
    back_from_theta(present, cross, e_sum, move_sum, squares, rows)
    start = block * lanes * Q
    for w in range(min(lanes, region.voxels - block * lanes)):
        for i in range(Q):
            z_bar[start + w * Q + i] = rows[Z_BAR, i, w]


@allocating_jit
def extended_second(second, S, P):
    """Share, shift and Sigma⁻¹ shift of a mixture."""
    extended, moved = np.empty(1 + 2 * P), multiply(S, second[1:], P)
    for i in range(P):
        extended[i], extended[1 + P + i] = second[i], moved[i]
    extended[P] = second[P]
    return extended


@allocating_jit
def place_region(region, z, of_images, means, S, shift, scalars, scratch, shapes, by_image, bars):
    """Find theta, curves and effects of a region with image effects; log of the effects' Jacobian.

    ``z`` and ``of_images`` are reflected in place, and the first rows of ``by_image`` filled.
    """
    effects, factor, sums, move = by_image[EFFECT], by_image[FACTOR_OF], by_image[SUM], by_image[MOVE]
    reflect(region.reflectors, z, True)
    reflect(region.turn, of_images, True)
    expected_effects(region, means, scalars[3], move)
    sums[:] = 0.0
    for block in range(region.signal.shape[0]):
        curves, rows = scratch.curves[block], scratch.rows[block]
        place_voxels(block, z, region, S, shift, move, scratch.squares[block], rows)
        block_likelihood(
            CURVE, region, block, rows[THETA], scalars, shape_at(shapes, block), curves, bars, scratch.work,
            rows[THETA_BAR],
        )  # fmt: skip
        add_weighted(region, block, curves[0], rows[THETA], sums)
    total = find_effects(region, of_images, sums, scalars[0], scalars[2], scalars[3], effects)
    for k in range(effects.size):
        factor[k] = math.exp(effects[k])
    return total


@allocating_jit
def _voxels(x, first, gradient, region, mu, L, S, scalars, second, S_bar, mu_bar, scalars_bar, second_bar):
    """Sum the voxels' densities; set the gradient in z, add adjoints of the hyperparameters."""
    lanes, blocks, images = region.present.shape[1], region.signal.shape[0], region.order.size
    P, Q, M, V = region.centre.size, mu.size, region.b.size, region.voxels
    variance, tau, last = scalars[2] ** 2, scalars[3], first + V * Q
    shift, extended = multiply(S, mu, Q), extended_second(second, S, P)
    scratch = make_scratch(region, Q)
    shapes = make_shapes(region.form, M, region.steps.size, lanes, scratch.rows.shape[0])
    scratch.squares[:, S_SUM] = 0.0
    sums = np.zeros((4 + 2 * Q + 1 + P + images, lanes))
    bars, e_sum, mu_sum = sums[:4], sums[4 : 4 + Q], sums[4 + Q : 5 + 2 * Q + P]
    move_sum = sums[5 + 2 * Q + P :]
    z, z_bar, by_image, total = x[first:last], gradient[first:last], np.zeros((6, images)), 0.0
    effects, factor, move = by_image[EFFECT], by_image[FACTOR_OF], by_image[MOVE]
    of_images, sums_bar, effects_bar = x[last:], by_image[SUM_BAR], by_image[EFFECT_BAR]
    if images > 0:
        z, of_images = z.copy(), of_images.copy()
        total += place_region(region, z, of_images, mu, S, shift, scalars, scratch, shapes, by_image, bars)
        total += effects_prior(effects, tau, IMAGE_SCALE)
    shape, work, stages = shape_at(shapes, 0), scratch.work, NOISE if images > 0 else CURVE + NOISE + ADJOINT
    for block in range(blocks):
        at = block if images > 0 else 0
        squares, rows, curves = scratch.squares[at], scratch.rows[at], scratch.curves[at]
        determinant = scratch.determinant[at]
        if images > 0:
            scale_curves(factor, curves[0])
        else:
            place_voxels(block, z, region, S, shift, move, squares, rows)
        block_likelihood(
            stages, region, block, rows[THETA], scalars, shape, curves, bars, work, rows[THETA_BAR]
        )
        for w in range(lanes):
            determinant[w] = work[3, w] if region.noise == GAUSSIAN else 1.0
        if images > 0:
            add_effects_adjoint(factor, curves, effects_bar)
        else:
            finish_block(
                block, region, mu, S, extended, move_sum, e_sum, mu_sum, bars, work, squares, rows,
                determinant, z_bar,
            )  # fmt: skip
    if images > 0:
        of_images_bar = gradient[last:]
        in_S0, in_sigma, in_tau = effects_adjoint(
            region, of_images, by_image[SUM], scalars[0], scalars[2], tau, IMAGE_SCALE, effects, effects_bar,
            of_images_bar, sums_bar,
        )  # fmt: skip
        scalars_bar[0] += in_S0
        scalars_bar[2] += in_sigma / (2.0 * variance)
        scalars_bar[3] += in_tau
        reflect(region.turn, of_images_bar, False)
        for block in range(blocks):
            rows, curves = scratch.rows[block], scratch.curves[block]
            add_weighted_adjoint(region, block, factor, sums_bar, curves, rows[THETA], rows[THETA_BAR])
            block_likelihood(
                ADJOINT, region, block, rows[THETA], scalars, shape_at(shapes, block), curves, bars, work,
                rows[THETA_BAR],
            )  # fmt: skip
            finish_block(
                block, region, mu, S, extended, move_sum, e_sum, mu_sum, bars, work, scratch.squares[block],
                rows, scratch.determinant[block], z_bar,
            )  # fmt: skip
        reflect(region.reflectors, z_bar, False)
        move_bar = np.empty(images)
        for k in range(images):
            move_bar[k] = total_of(move_sum[k])
        scalars_bar[3] += expected_effects_adjoint(region, mu, tau, move_bar, mu_bar)
    for i in range(1 + P):
        second_bar[i] = total_of(mu_sum[Q + i])
    total -= V * noise_logs(region) * math.log(variance)
    for w in range(lanes):
        total += bars[3, w]
        scalars_bar[0] += bars[0, w]
        scalars_bar[1] += bars[2, w]
        scalars_bar[2] += bars[1, w]
    for i in range(Q):
        total -= V * math.log(L[i, i])
        e = total_of(e_sum[i])
        mu_bar[i] += total_of(mu_sum[i])
        for j in range(Q):
            mu_bar[j] += S[j, i] * e
            S_bar[i, j] += 0.5 * e * mu[j]
            S_bar[j, i] += 0.5 * e * mu[j]
        for j in range(i + 1):
            each = 0.0
            for at in range(scratch.rows.shape[0]):
                each += total_of(scratch.squares[at, S_SUM, i, j])
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
def latent_population(mu, sd, r, scalars, Q):
    """Mean, Cholesky factor L and inverse covariance of a voxel's latents, that of theta without S0 first."""
    P = mu.size
    C, means, L = partial_cholesky(r, P), np.empty(Q), np.zeros((Q, Q))
    for i in range(P):
        means[i] = mu[i]
        for j in range(P):
            L[i, j] = sd[i] * C[i, j]
    for i in range(P, Q):
        means[i], L[i, i] = scalars[0], scalars[1]
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


@allocating_jit
def unstretched(x, region):
    """Coordinates from those that are sampled: the hyperparameters' are a linear map of theirs."""
    H = region.middle.size
    if H == 0:
        return x
    y = x.copy()
    for i in range(H):
        y[i] = region.middle[i]
        for j in range(H):
            y[i] += region.stretch[i, j] * x[j]
    return y


@allocating_jit
def stretch_gradient(gradient, region):
    """Take the gradient in the coordinates back to those that are sampled."""
    H = region.middle.size
    by_coordinate = gradient[:H].copy()
    for j in range(H):
        gradient[j] = 0.0
        for i in range(H):
            gradient[j] += region.stretch[i, j] * by_coordinate[i]


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
    x = unstretched(x, region)
    mu, sd, r, scalars, second, first = hyperparameters(x, region)
    Q = region.shift.shape[1]
    means, L, S = latent_population(mu, sd, r, scalars, Q)
    S_bar, mu_bar, scalars_bar, second_bar = np.zeros((Q, Q)), np.zeros(Q), np.zeros(4), np.zeros(1 + P)
    total = region.constant
    total += _voxels(
        x, first, gradient, region, means, L, S, scalars, second, S_bar, mu_bar, scalars_bar, second_bar
    )
    for i in range(P, Q):  # S0: its mean, and its variance from the inverse variance
        scalars_bar[0] += mu_bar[i]
        scalars_bar[1] += -S_bar[i, i] * S[i, i] * S[i, i] - 0.5 * V * S[i, i]
    sigma = scalars[2] / region.sigma_scale
    total += math.log(scalars[2]) - 0.5 * sigma**2
    h = 2 * P + pairs
    at_sigma = h + 2 if region.pooled != 0.0 else 0
    gradient[at_sigma] = 2 * scalars[2] ** 2 * scalars_bar[2] + 1 - sigma**2
    if region.pooled == 0.0:
        return total
    from_mean, spread = (scalars[0] - region.S0[0]) / region.S0[1], scalars[1] / region.S0[2]
    total += x[h + 1] - 0.5 * (from_mean**2 + spread**2)
    gradient[h] = scalars_bar[0] - from_mean / region.S0[1]
    gradient[h + 1] = 2 * scalars[1] ** 2 * scalars_bar[1] + 1 - spread**2
    for i in range(P):
        from_mean, spread = (mu[i] - region.centre[i]) / region.width[i], sd[i] / region.spread[i]
        total += x[P + i] - 0.5 * (from_mean**2 + spread**2)
        gradient[i] = mu_bar[i] - from_mean / region.width[i]
        gradient[P + i] = 1 - spread**2
    if region.mixed != 0.0:
        total += _second_prior(x[h + 4 : h + 4 + P], second, second_bar, sd, gradient[h + 3 : h + 4 + P])
        for i in range(P):
            gradient[P + i] += second_bar[1 + i] * second[1 + i]
    if region.order.size > 0:
        gradient[first - 1] = scalars_bar[3]
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
    stretch_gradient(gradient, region)
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
