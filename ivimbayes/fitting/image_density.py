# mypy: disallow_untyped_defs=False
"""The voxels' part of a region's density with image effects, and the gradient.

The effects depend on the curves of all voxels, so each evaluation makes three passes over the blocks of
voxels. The first finds the curves and their sums, which give the effects; the second adds the density of the
signals; the third takes the gradient back to theta and z. `ivimbayes.fitting.image_effects` explains the
coordinates.
"""

import math
from typing import Any, NamedTuple

import numpy as np

from ivimbayes.fitting.blocks import (
    E_BAR,
    INVERSE,
    RIGHT,
    S_SUM,
    THETA,
    THETA_BAR,
    Z_BAR,
    Adjoints,
    Sums,
    Z,
    add_determinants,
    add_sums,
    back_from_theta,
    extended_second,
    locate,
    make_sums,
    population,
    read_z,
    signal_density,
    total_of,
    write_z,
)
from ivimbayes.fitting.image_effects import (
    effects_adjoint,
    effects_prior,
    expected_effects,
    expected_effects_adjoint,
    find_effects,
    reflect,
)
from ivimbayes.fitting.packing import GAUSSIAN, unpack, unpack_images
from ivimbayes.models.spec import IMAGE_SCALE
from ivimbayes.numerics.jit import Cubes, Matrix, Vector, allocating_jit, jit, separate
from ivimbayes.numerics.signals import make_shapes, shape_at, signal_adjoint, signal_curve
from ivimbayes.numerics.triangular import multiply

# Rows of `by_image` (6, K): the effects, their exponentials, the sums of the curves, what moves the centres
# of the likelihoods (see `expected_effects`), and adjoints of the sums and of the effects.
EFFECT, FACTOR_OF, SUM, MOVE, SUM_BAR, EFFECT_BAR = range(6)


class Scratch(NamedTuple):
    """Scratch of all blocks of voxels (B) of a region.

    Attributes
    ----------
    squares : ndarray (B, 5, Q, Q, lane)
    rows : ndarray (B, 10, Q, lane)
    curves : ndarray (B, 2, K, lane)
        The curves, later times the factors of the images, and the adjoint.
    determinant : ndarray (B, lane)
        Of the noise.
    work : ndarray (10, lane)
        Of one block.
    shapes : tuple of ndarray
        From `make_shapes`.
    by_image : ndarray (6, K)
    sums : Sums
        Over blocks.
    moves : ndarray (K, lane)
        Sum over blocks of the adjoint of the row `MOVE`.
    """

    squares: Any
    rows: Cubes
    curves: Cubes
    determinant: Matrix
    work: Matrix
    shapes: Any
    by_image: Matrix
    sums: Sums
    moves: Matrix


@allocating_jit
def make_scratch(region):
    """Allocate `Scratch`; sums are zero."""
    (B, K, lanes), P, Q = region.signal.shape, region.centre.size, region.shift.shape[1]
    scratch = Scratch(
        np.empty((B, 5, Q, Q, lanes)),
        np.empty((B, 10, Q, lanes)),
        np.empty((B, 2, K, lanes)),
        np.ones((B, lanes)),
        np.empty((10, lanes)),
        make_shapes(region.form, K, region.steps.size, lanes, B),
        np.zeros((6, K)),
        make_sums(P, Q, lanes),
        np.zeros((K, lanes)),
    )
    scratch.squares[:, S_SUM] = 0.0
    return scratch


@jit
def move_centres(eta, cross, move, moved):
    """Set ``moved`` (Q, lane) to what the centres of the likelihoods of a block become: eta + cross move."""
    for i in range(eta.shape[0]):
        for w in range(eta.shape[1]):
            moved[i, w] = eta[i, w]
        for k in range(move.size):
            for w in range(eta.shape[1]):
                moved[i, w] += cross[i, k, w] * move[k]


@jit
def add_moves(cross, e_bar, moves):
    """Add the adjoint of ``move`` in `move_centres`."""
    for i in range(e_bar.shape[0]):
        for k in range(moves.shape[0]):
            for w in range(moves.shape[1]):
                moves[k, w] += cross[i, k, w] * e_bar[i, w]


@jit
def add_weighted(P, weight, curve, theta, sums):
    """Add to each image the weighted sum of its curves over the voxels of a block, times S0 if latent."""
    for k in range(sums.size):
        total = 0.0
        if theta.shape[0] > P:
            for w in range(theta.shape[1]):
                total += weight[k, w] * curve[k, w] * theta[P, w]
        else:
            for w in range(theta.shape[1]):
                total += weight[k, w] * curve[k, w]
        sums[k] += total


@jit
def add_weighted_adjoint(P, weight, factor, sums_bar, curves, theta, theta_bar):
    """Take the adjoint of the sums back to the curves and, where it is latent, to S0."""
    curve, bar = curves[0], curves[1]
    for k in range(factor.size):
        if theta.shape[0] > P:
            for w in range(theta.shape[1]):
                each = sums_bar[k] * weight[k, w]
                bar[k, w] += each * theta[P, w]
                theta_bar[P, w] += each * curve[k, w] / factor[k]
        else:
            for w in range(theta.shape[1]):
                bar[k, w] += sums_bar[k] * weight[k, w]


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


@allocating_jit
def place_effects(region, images, x, first, means, S, scalars, scratch):
    """Find theta, curves and effects at the coordinates; give the log of the effects' Jacobian.

    Rows of ``scratch.by_image`` and, of each block, ``Z`` to ``THETA``, the factor and the curves are set.
    """
    V, Q, lanes, P = region.voxels, means.size, region.present.shape[1], region.centre.size
    by_image, last = scratch.by_image, first + V * Q
    z, of_images, shift = x[first:last].copy(), x[last:].copy(), multiply(S, means, Q)
    reflect(images.reflectors, z, True)
    reflect(images.turn, of_images, True)
    expected_effects(images, means, scalars[3], by_image[MOVE])
    by_image[SUM] = 0.0
    for n in range(region.signal.shape[0]):
        rows, curve = scratch.rows[n], scratch.curves[n, 0]
        read_z(z, n * lanes * Q, min(lanes, V - n * lanes), rows[Z])
        move_centres(region.shift[n], images.cross[n], by_image[MOVE], rows[RIGHT])
        locate(S, shift, region.precision[n], rows[RIGHT], scratch.squares[n], rows)
        signal_curve(
            region.form, rows[THETA][:P], region.root[n], region.b, region.step, region.steps, region.left,
            region.right, curve, shape_at(scratch.shapes, n),
        )  # fmt: skip
        add_weighted(P, images.weight[n], curve, rows[THETA], by_image[SUM])
    total = find_effects(
        images, of_images, by_image[SUM], scalars[0], scalars[2], scalars[3], by_image[EFFECT]
    )
    for k in range(by_image.shape[1]):
        by_image[FACTOR_OF, k] = math.exp(by_image[EFFECT, k])
    return total


@jit
def block_density(region, n, scalars, scratch, bars):
    """Multiply the curves of a block by the factors of the images; add the density of its signals."""
    rows, curve, factor = scratch.rows[n], scratch.curves[n, 0], scratch.by_image[FACTOR_OF]
    for k in range(factor.size):
        for w in range(curve.shape[1]):
            curve[k, w] *= factor[k]
    signal_density(
        region.noise, region.measurements, region.centre.size, region.signal[n], region.within[n],
        region.present[n], rows[THETA], scalars, curve, scratch.curves[n, 1], bars, scratch.work,
        rows[THETA_BAR],
    )  # fmt: skip


@allocating_jit
def effects_to_gradient(region, images, x, first, scalars, scratch, adjoints, gradient):
    """Take the adjoint of the effects back to their coordinates, the sums and the scalars."""
    by_image, last = scratch.by_image, first + region.voxels * region.shift.shape[1]
    of_images, bar = x[last:].copy(), gradient[last:]
    reflect(images.turn, of_images, True)
    in_S0, in_sigma, in_tau = effects_adjoint(
        images, of_images, by_image[SUM], scalars[0], scalars[2], scalars[3], IMAGE_SCALE, by_image[EFFECT],
        by_image[EFFECT_BAR], bar, by_image[SUM_BAR],
    )  # fmt: skip
    adjoints.scalars[0] += in_S0
    adjoints.scalars[2] += in_sigma / (2.0 * scalars[2] ** 2)
    adjoints.scalars[3] += in_tau
    reflect(images.turn, bar, False)


@allocating_jit
def block_to_z(region, images, n, mu, S, extended, scratch, z_bar):
    """Take the adjoint of the curves of a block back to theta and z; add the population's density."""
    P, Q, lanes, sums = region.centre.size, mu.size, region.present.shape[1], scratch.sums
    rows, curves, squares, total = scratch.rows[n], scratch.curves[n], scratch.squares[n], sums.bars[3]
    by_image, present, work = scratch.by_image, region.present[n], scratch.work
    add_weighted_adjoint(
        P, images.weight[n], by_image[FACTOR_OF], by_image[SUM_BAR], curves, rows[THETA], rows[THETA_BAR]
    )
    signal_adjoint(
        region.form, curves[1], region.root[n], region.b, shape_at(scratch.shapes, n), rows[THETA_BAR]
    )
    population(
        mu, S, P, region.nu, region.mixed, extended, present, sums.means, total, work[8:], squares, rows
    )
    add_determinants(present, rows[INVERSE], scratch.determinant[n], work[8], total)
    back_from_theta(present, sums.pulls, squares, rows)
    add_moves(images.cross[n], rows[E_BAR], scratch.moves)
    write_z(rows[Z_BAR], n * lanes * Q, min(lanes, region.voxels - n * lanes), z_bar)


@separate(allocates=True, optional=True)
def density_with_effects(
    x: Vector,
    first: int,
    gradient: Vector,
    packed: Vector,
    mu: Vector,
    L: Matrix,
    S: Matrix,
    scalars: Vector,
    second: Vector,
    adjoints: Adjoints,
) -> float:
    """Density of the voxels and the effects; set the gradient in z of both, add to the adjoints.

    Parameters
    ----------
    x, gradient : ndarray (coordinate,)
        As in `region_density`, not stretched.
    first : int
        Where z of the voxels begins.
    packed : ndarray
        From `pack_region`.
    mu, L, S : ndarray (Q,), (Q, Q), (Q, Q)
        From `latent_population`.
    scalars, second : ndarray (4,), (1 + P,)
        From `hyperparameters`.
    adjoints : Adjoints
        Added to.

    Returns
    -------
    float
    """
    region, images = unpack(packed), unpack_images(packed)
    scratch, last = make_scratch(region), first + region.voxels * mu.size
    by_image, extended = scratch.by_image, extended_second(second, S, region.centre.size)
    total = place_effects(region, images, x, first, mu, S, scalars, scratch)
    total += effects_prior(by_image[EFFECT], scalars[3], IMAGE_SCALE)
    for n in range(region.signal.shape[0]):
        block_density(region, n, scalars, scratch, scratch.sums.bars)
        if region.noise == GAUSSIAN:
            scratch.determinant[n] = scratch.work[3]
        add_effects_adjoint(by_image[FACTOR_OF], scratch.curves[n], by_image[EFFECT_BAR])
    effects_to_gradient(region, images, x, first, scalars, scratch, adjoints, gradient)
    for n in range(region.signal.shape[0]):
        block_to_z(region, images, n, mu, S, extended, scratch, gradient[first:last])
        if n > 0:
            scratch.squares[0, S_SUM] += scratch.squares[n, S_SUM]
    reflect(images.reflectors, gradient[first:last], False)
    move_bar = np.empty(by_image.shape[1])
    for k in range(move_bar.size):
        move_bar[k] = total_of(scratch.moves[k])
    adjoints.scalars[3] += expected_effects_adjoint(images, mu, scalars[3], move_bar, adjoints.means)
    return total + add_sums(region, mu, L, S, scalars, scratch.sums, scratch.squares[0, S_SUM], adjoints)
