# mypy: disallow_untyped_defs=False
"""A region's data as the block of numbers that the compiled density reads."""

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import xarray as xr

from ivimbayes.fitting.image_effects import image_reference
from ivimbayes.fitting.modes import PopulationMode
from ivimbayes.models.correlation import beta_shapes
from ivimbayes.models.noise import NOISES
from ivimbayes.models.signals import SIGNALS
from ivimbayes.models.spec import (
    IMAGE_SCALE,
    S0_MEAN,
    S0_MEAN_SD,
    S0_SD,
    SECOND_SHAPES,
    SECOND_SHIFT,
    ModelSpec,
    sigma_scale,
)
from ivimbayes.numerics.arithmetic import Array
from ivimbayes.numerics.jit import Cube, Cubes, Matrix, Vector, allocating_jit
from ivimbayes.numerics.noise import NOISE_KINDS
from ivimbayes.numerics.signals import Form, form_of
from ivimbayes.numerics.steps import B_DIGITS, distinct_b, step_table, sum_by_b

BLOCK = 128  # at most; a multiple of 4


LN_2PI = math.log(2 * math.pi)


GAUSSIAN, RICIAN, STUDENT_T = (NOISE_KINDS.index(kind) for kind in ("gaussian", "rician", "student_t"))


class PackedRegion(NamedTuple):
    """Data of one region as the density takes them: views of one block of numbers.

    Measurements are sorted by b. With Gaussian noise those at one b are merged: their mean, and what is
    ``within``, their sum of squares about it. B blocks of `BLOCK` voxels, M measurements after merging, P
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
    signal, root : ndarray (B, M, BLOCK)
        Mean signal at each b times ``root``, the square root of the number of images averaged into it.
    within, present : ndarray (B, BLOCK)
        Weighted sum of squares within the b values; 1 for a voxel, 0 for a filler.
    images : int
        Number of images with effects, M; 0 without. See `PackedImages`.
    precision : ndarray (B, Q, Q, BLOCK)
        Lambda of `Informed`.
    shift : ndarray (B, Q, BLOCK)
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
    S0: Vector
    centre: Vector
    width: Vector
    spread: Vector
    shapes: Vector
    b: Vector
    step: Vector
    steps: Vector
    left: Vector
    right: Vector
    voxels: int
    signal: Cube
    root: Cube
    within: Matrix
    present: Matrix
    images: int
    precision: Cubes
    shift: Cube


class PackedImages(NamedTuple):
    """What image effects need of a region: more views of its block of numbers.

    As in `ImageReference`, for K images, which are not merged; R reflectors.

    Attributes
    ----------
    order : ndarray (K,)
        Which image each of the sorted measurements is.
    target, certainty : ndarray (K,)
        Sorted by b.
    turn : ndarray (1, K)
    quality, height, offset : ndarray (K,)
    vectors, pull, origin, level : ndarray (K, K), (K, Q), (Q,), (1,)
    reflectors : ndarray (R, V Q)
    weight : ndarray (B, K, BLOCK)
        Over ``root``.
    cross : ndarray (B, Q, K, BLOCK)
    """

    order: Vector
    target: Vector
    certainty: Vector
    turn: Matrix
    quality: Vector
    height: Vector
    offset: Vector
    vectors: Matrix
    pull: Matrix
    origin: Vector
    level: Vector
    reflectors: Matrix
    weight: Cube
    cross: Cubes


HEAD = 20  # length, lanes, voxels, P, M, steps, Q, noise, form (3), six more of `PackedRegion`, K, H, R


def pack_region(
    data: Mapping[str, Array],
    spec: ModelSpec,
    level: str = "voxel",
    stretched: tuple[Array, Array] | None = None,
) -> Array:
    """Put a region's data into the one block of numbers that the density reads.

    Parameters
    ----------
    data : mapping of str to ndarray
        From `model_data`.
    spec : ModelSpec
        Model with the region's prior.
    level : {"voxel", "mean"}
        As in `build_model`.
    stretched : tuple of ndarray (H,), (H, H), optional
        The coordinates of the H hyperparameters are the first plus the second times those that are sampled.
    """
    V, Q = data["eta"].shape
    form, marginal = form_of(SIGNALS[spec.signal]), NOISES[spec.noise].marginal
    P, n = len(data["centre"]), data["averages"]
    pooled, heavy = level == "voxel", level == "voxel" and spec.population == "student_t"
    images = data["observed"].shape[1] if pooled and spec.image_effects else 0
    b, mean, weight, within = _sorted(data, marginal and not images)
    step, steps = step_table(b)
    lanes = 4 * math.ceil(V / math.ceil(V / BLOCK) / 4)
    shapes = beta_shapes(spec.eta, P)
    head = [
        0, lanes, V, P, len(b), steps.shape[1], Q, NOISE_KINDS.index(spec.noise), *form,
        pooled, n.shape[1], spec.nu if heavy else 0, pooled and spec.population == "mixture",
        _constant(data, spec, pooled, heavy), data["sigma_scale"], images,
        0 if stretched is None else len(stretched[0]),
        data["image_reflectors"].shape[2] if images else 0,
    ]  # fmt: skip
    root = np.sqrt(weight)
    by_voxel = (root * mean, root, within, np.ones(V), data["Lambda"], data["eta"])
    parts = [
        np.array(head, float), np.array([S0_MEAN, S0_MEAN_SD, S0_SD if pooled else S0_MEAN_SD]),
        data["centre"], data["width"], data["spread"], shapes, b, step, steps,
        *(to_blocks(values, lanes) for values in by_voxel),
        *(_image_parts(data, root, lanes) if images else ()), *(stretched or ()),
    ]  # fmt: skip
    block = np.concatenate([part.ravel() for part in parts])
    block[0] = block.size
    return block


def _image_parts(data: Mapping[str, Array], root: Array, lanes: int) -> list[Array]:
    """Parts of the block that image effects need."""
    order = np.argsort(data["b"], kind="stable")
    reflectors = np.moveaxis(data["image_reflectors"], -1, 0)
    return [
        order.astype(float), data["image_target"][order], data["image_certainty"][order], data["image_turn"],
        data["image_quality"], data["image_height"], data["image_offset"], data["image_vectors"],
        data["image_pull"], data["image_origin"], data["image_level"], reflectors,
        to_blocks(data["image_weight"][:, order] / root, lanes), to_blocks(data["image_cross"], lanes),
    ]  # fmt: skip


def _sorted(data: Mapping[str, Array], merge: bool) -> tuple[Array, Array, Array, Array]:
    """Sort the b values, merge those that are one; mean signal, averages, and squares within, of each."""
    n, y = data["averages"], data["observed"]
    if not merge:
        order = np.argsort(data["b"], kind="stable")
        return data["b"].round(B_DIGITS)[order], y[:, order], n[:, order], np.zeros(len(y))
    b, place = distinct_b(data["b"])
    weight = sum_by_b(n, place, len(b))
    mean = sum_by_b(n * y, place, len(b)) / weight
    return b, mean, weight, (n * (y - mean[:, place]) ** 2).sum(axis=1)


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
    if pooled and spec.image_effects:
        total += half_normal - math.log(IMAGE_SCALE) - 0.5 * data["observed"].shape[1] * LN_2PI
    if pooled and spec.population == "mixture":
        total += math.lgamma(sum(SECOND_SHAPES)) - sum(math.lgamma(a) for a in SECOND_SHAPES)
        total -= P * (math.log(SECOND_SHIFT) + 0.5 * LN_2PI)
    return total


def to_blocks(values: Array, lanes: int) -> Array:
    """(voxel, ...) to (block, ..., lane), filled with zeros."""
    blocks = -(-len(values) // lanes)
    filled = np.zeros((blocks * lanes, *values.shape[1:]))
    filled[: len(values)] = values
    return np.moveaxis(filled.reshape(blocks, lanes, *values.shape[1:]), 1, -1)


@allocating_jit
def unpack(block):
    """Make views of the parts of a block from `pack_region`, except those for image effects."""
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
    return PackedRegion(
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
        int(block[17]),
        block[o5 : o5 + B * Q * Q * lanes].reshape((B, Q, Q, lanes)),
        block[o6 : o6 + B * Q * lanes].reshape((B, Q, lanes)),
    )


@allocating_jit
def unpack_images(block):
    """Make views of what image effects need of a block: its last part, before the stretch."""
    lanes, V, Q = int(block[1]), int(block[2]), int(block[6])
    K, H, R = int(block[17]), int(block[18]), int(block[19])
    B = (V + lanes - 1) // lanes
    i4 = block.size - H * (H + 1)
    i3 = i4 - B * Q * K * lanes
    i2 = i3 - B * K * lanes
    i1 = i2 - R * V * Q
    i0 = i1 - 7 * K - K * K - K * Q - Q - 1
    square = i0 + 7 * K
    origin = square + K * K + K * Q
    return PackedImages(
        block[i0 : i0 + K],
        block[i0 + K : i0 + 2 * K],
        block[i0 + 2 * K : i0 + 3 * K],
        block[i0 + 3 * K : i0 + 4 * K].reshape((1, K)),
        block[i0 + 4 * K : i0 + 5 * K],
        block[i0 + 5 * K : i0 + 6 * K],
        block[i0 + 6 * K : square],
        block[square : square + K * K].reshape((K, K)),
        block[square + K * K : origin].reshape((K, Q)),
        block[origin : origin + Q],
        block[origin + Q : i1],
        block[i1:i2].reshape((R, V * Q)),
        block[i2:i3].reshape((B, K, lanes)),
        block[i3:i4].reshape((B, Q, K, lanes)),
    )


def stretch_of(block: Array) -> tuple[Array, Array]:
    """Offset and matrix from sampled hyperparameters to their coordinates; empty where there are none."""
    H = int(block[18])
    middle = block.size - H * H - H
    return block[middle : middle + H], block[middle + H :].reshape(H, H)


def hyperparameter_count(block: Array) -> int:
    """Count the coordinates of a region that come before those of its voxels."""
    P, pooled, mixed, images = int(block[3]), bool(block[11]), bool(block[14]), int(block[17])
    return 2 * P + P * (P - 1) // 2 + 3 + mixed * (1 + P) + (images > 0) if pooled else 1


def coordinates(block: Array) -> int:
    """Count the unconstrained coordinates of a region."""
    V, Q, images = int(block[2]), int(block[6]), int(block[17])
    return hyperparameter_count(block) + V * Q + images


def model_data(
    voxels: xr.Dataset, spec: ModelSpec, population: PopulationMode, scale: float
) -> dict[str, np.ndarray]:
    """Arrays of one region that its model takes.

    Parameters
    ----------
    voxels : Dataset
        From `choose_voxels`: ``signal`` and ``averages`` (voxel, measurement), ``b`` (measurement).
    spec : ModelSpec
        Model with the region's prior.
    population : PopulationMode
        Where the likelihood of each voxel is approximated; changes the sampling space, not the model.
    scale : float
        Signals are divided by this.
    """
    averages, prior = voxels["averages"].values, spec.prior.theta(spec.signal)
    signal, b, images = voxels["signal"].values / scale, voxels["b"].values, dict[str, np.ndarray]()
    if spec.image_effects and len(signal) > 1:
        reference = image_reference(signal, averages, b, population, spec.signal, spec.noise)
        images = {f"image_{name}": values for name, values in reference._asdict().items()}
    return images | {
        "b": b,
        "observed": signal,
        "averages": averages,
        "Lambda": population.precision,
        "eta": population.shift,
        "centre": prior.centre,
        "width": prior.width,
        "spread": prior.spread,
        "sigma_scale": np.array(sigma_scale(averages)),
    }
