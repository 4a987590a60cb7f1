"""Slices of maps as PNG images, for a page."""

import base64
import io
from dataclasses import dataclass, replace

import matplotlib
import nibabel as nib
import numpy as np
import xarray as xr
from PIL import Image

from ivimbayes.errors import InputError
from ivimbayes.models.signals import PARAMETERS
from ivimbayes.plotting.style import MAP_COLOURS
from ivimbayes.voxelwise.status import STATUS

COLOURS, LEVELS = 63, 4  # of a palette: colours, and steps of opacity
RANGE = (0.02, 0.98)  # quantiles over voxels that colours span
FADE = 0.15  # opacity where the signals of a voxel told nothing
MARGIN = 2  # voxels around the region
BUDGET = 2_500_000  # bytes of images in all


@dataclass(frozen=True)
class Picture:
    """A map as images.

    Attributes
    ----------
    title, unit : str
    low, high : float
        What the ends of the colour scale stand for, in ``unit``.
    colours : str
        The scale, as a CSS gradient.
    images : tuple of str
        A PNG image of each slice, as data addresses.
    """

    title: str
    unit: str
    low: float
    high: float
    colours: str
    images: tuple[str, ...]


@dataclass(frozen=True)
class Slices:
    """Maps of a volume, slice by slice.

    Attributes
    ----------
    numbers : tuple of int
        Of the slices shown, along the third axis.
    left_out : int
        Slices with voxels that are not shown, for the size of the page.
    underlay : tuple of str
        S0 of each slice, grey.
    rows : tuple of tuple of Picture
        For each parameter, the value and its uncertainty.
    aspect : str
        Width over height, as CSS.
    sides : tuple of str
        What is at the left and at the top; empty where the affine does not tell.
    total : int
        Slices of the volume.
    """

    numbers: tuple[int, ...]
    left_out: int
    underlay: tuple[str, ...]
    rows: tuple[tuple[Picture, ...], ...]
    aspect: str
    sides: tuple[str, str]
    total: int


def has_numbers(maps: xr.Dataset) -> bool:
    """Whether a voxel of the maps is there to be drawn."""
    return bool(np.isin(maps["status"].values, (STATUS["ok"], STATUS["doubtful"])).any())


def draw_slices(maps: xr.Dataset, budget: int = BUDGET) -> Slices:
    """Draw the posterior mean and standard deviation of f, D and D* and the probability of perfusion.

    Parameters
    ----------
    maps : Dataset
        From `posterior_maps`.
    budget : int
        Bytes of all images together; slices are left out evenly until they fit.

    Returns
    -------
    Slices
        Voxels fade as their own signals told less (contraction); failed ones are not drawn.

    Raises
    ------
    InputError
        If no voxel has numbers.
    """
    drawn = np.isin(maps["status"].values, (STATUS["ok"], STATUS["doubtful"]))
    if not has_numbers(maps):
        raise InputError("maps: no voxel has numbers; see the map of status")
    planes = np.flatnonzero(drawn.any(axis=(0, 1)))
    share, every = planes, 1
    while True:
        made = _draw(maps, drawn, share)
        size = sum(map(len, made.underlay)) + sum(len(i) for row in made.rows for p in row for i in p.images)
        if size <= budget or len(share) == 1:
            break
        every += max(1, int(every * (size / budget - 1)))
        share = planes[(every // 2) % len(planes) :: every]
    return replace(made, left_out=len(planes) - len(share))


def _draw(maps: xr.Dataset, drawn: np.ndarray, planes: np.ndarray) -> Slices:
    turn = _Turn(maps["affine"].values, drawn)
    S0 = maps["S0_mean"].values
    top = np.quantile(S0[drawn], RANGE[1])
    underlay = tuple(_grey(turn(np.where(drawn, S0, np.nan)[:, :, z]) / top) for z in planes)
    rows = []
    for name in ("f", "D", "D_star"):
        p = PARAMETERS[name]
        unit = "" if p.display_unit == "1" else "10⁻³ mm²/s"
        opacity = np.clip(maps[f"{name}_contraction"].values, FADE, 1)
        shown = []
        for suffix, title in (("mean", p.label), ("sd", f"sd of {p.label}")):
            values = p.display_scale * maps[f"{name}_{suffix}"].values
            fade = opacity if suffix == "mean" else np.ones_like(opacity)
            shown.append(_picture(title, unit, values, fade, MAP_COLOURS[suffix], drawn, planes, turn))
        rows.append(tuple(shown))
    chance = maps["p_perfusion"].values
    rows.append(
        (
            _picture(
                "probability of perfusion",
                "",
                chance,
                np.ones_like(chance),
                MAP_COLOURS["probability"],
                drawn,
                planes,
                turn,
                (0, 1),
            ),
        )
    )
    return Slices(tuple(map(int, planes)), 0, underlay, tuple(rows), turn.aspect, turn.sides, drawn.shape[2])


class _Turn:
    """Crop a slice to the voxels with numbers, and turn it: first row on top, as radiologists look at it."""

    def __init__(self, affine: np.ndarray, drawn: np.ndarray):
        used = [np.flatnonzero(drawn.any(axis=tuple({0, 1, 2} - {axis}))) for axis in (0, 1)]
        self.crop = tuple(
            slice(max(0, int(u[0]) - MARGIN), min(size, int(u[-1]) + 1 + MARGIN))
            for u, size in zip(used, drawn.shape, strict=False)
        )
        size = np.linalg.norm(affine[:3, :2], axis=0) if affine[:3, :2].any() else np.ones(2)
        axes, signs = nib.orientations.io_orientation(affine)[:2].T
        known = not np.array_equal(affine[:3, :3], np.eye(3)) and np.isfinite(axes).all()
        # across: the first of the axes left-right, back-front, foot-head, its positive end at the left
        self.swap = bool(known and axes[0] > axes[1])
        across, up = (1, 0) if self.swap else (0, 1)
        self.flip_across = bool(known and signs[across] > 0)
        self.flip_up = bool(not known or signs[up] > 0)
        names = ("R", "A", "S")
        # nibabel's axes run to the right, the front and the head; the patient's right is at the left
        self.sides = (names[int(axes[across])], names[int(axes[up])]) if known else ("", "")
        counts = [s.stop - s.start for s in self.crop]
        self.aspect = f"{counts[across] * size[across]:g} / {counts[up] * size[up]:g}"

    def __call__(self, plane: np.ndarray) -> np.ndarray:
        image = plane[self.crop]
        image = image if self.swap else image.T  # rows up, columns across
        image = image[::-1] if self.flip_up else image
        return image[:, ::-1] if self.flip_across else image


def _picture(
    title: str,
    unit: str,
    values: np.ndarray,
    opacity: np.ndarray,
    colours: str,
    drawn: np.ndarray,
    planes: np.ndarray,
    turn: _Turn,
    span: tuple[float, float] | None = None,
) -> Picture:
    low, high = np.quantile(values[drawn], RANGE) if span is None else span
    high = high if high > low else low + 1e-12
    scale = matplotlib.colormaps[colours](np.linspace(0, 1, COLOURS))
    index = np.clip((values - low) / (high - low), 0, 1) * (COLOURS - 1)
    level = np.ceil(np.clip(opacity, 0, 1) * LEVELS) - 1
    with np.errstate(invalid="ignore"):
        code = np.where(drawn, 1 + np.nan_to_num(index).round() + COLOURS * np.nan_to_num(level), 0)
    palette = [np.zeros((1, 3))] + [scale[:, :3]] * LEVELS
    alpha = [np.zeros(1)] + [np.full(COLOURS, (n + 1) / LEVELS) for n in range(LEVELS)]
    table = (255 * np.concatenate(palette)).round().astype(np.uint8).tobytes()
    clear = (255 * np.concatenate(alpha)).round().astype(np.uint8).tobytes()
    images = []
    for z in planes:
        image = Image.fromarray(turn(code[:, :, z]).astype(np.uint8), mode="P")
        image.putpalette(table)
        images.append(_address(image, transparency=clear))
    stops = ", ".join(matplotlib.colors.to_hex(c) for c in scale[:: COLOURS // 8])
    return Picture(title, unit, float(low), float(high), f"linear-gradient(to right, {stops})", tuple(images))


def _grey(plane: np.ndarray) -> str:
    values = (160 * np.clip(np.nan_to_num(plane), 0, 1)).round().astype(np.uint8)
    return _address(Image.fromarray(values, mode="L"))


def _address(image: Image.Image, **options: object) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True, **options)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
