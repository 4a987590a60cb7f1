"""Plots of maps: a slice of the posterior mean beside its uncertainty."""

from typing import Any

import numpy as np
import xarray as xr

from ivimbayes.errors import InputError
from ivimbayes.models.signals import PARAMETERS
from ivimbayes.plotting.style import MAP_COLOURS, ORANGE, label_of, many_axes, unit_of
from ivimbayes.voxelwise.status import MAPPED, SPACE, STATUS

SHOWN = (STATUS["ok"], STATUS["doubtful"])
RANGE = (0.02, 0.98)  # quantiles of the slice that the colours span
MARGIN = 4  # voxels around what is shown
FINE = 8  # points a voxel that its outline is drawn with


def plot_maps(
    maps: xr.Dataset,
    parameter: str = "f",
    z: int | None = None,
    underlay: Any = None,
    axes: Any = None,
    relative: bool = False,
) -> Any:
    """Plot a slice of the posterior mean of a parameter beside its uncertainty.

    Parameters
    ----------
    maps : Dataset
        From `posterior_maps`.
    parameter : {"f", "D", "D_star", "S0"}
        What is mapped.
    z : int, optional
        Index of the slice; that with the most mapped voxels when not given.
    underlay : array_like or DataArray (x, y, z), optional
        Anatomy in grey, such as the scan's image at b = 0:
        ``scan["signal"].isel(measurement=0)``.
    axes : sequence of two Axes, optional
        Where to draw; a new figure when not given.
    relative : bool
        Uncertainty in % of the mean instead of the parameter's unit.

    Returns
    -------
    ndarray of Axes (2,)
        The mean, and half the width of the highest-density interval. The mean of a voxel is as opaque as its
        contraction, the share of the variance between voxels that its own signals took away: what they do
        not tell fades. Voxels that are outside, failed or without a number are transparent; a line is drawn
        around all others. Axes are in mm from the corner of the volume, x to the right and y up; colours
        span the central 96 % of the slice.

    Raises
    ------
    InputError
        If the maps lack the parameter or the slice, the slice holds no number, the underlay is of another
        shape, or there are not two axes.
    """
    names = [f"{parameter}_{ending}" for ending in ("mean", "hdi_low", "hdi_high", "contraction")]
    _check(maps, parameter, [*names, "status", "affine"])
    z = _slice(maps, z)
    mean, low, high, contraction = (_plane(maps[name], z) for name in names)
    shown = np.isin(_plane(maps["status"], z), SHOWN) & np.isfinite(mean)
    if not shown.any():
        raise InputError(f"maps: slice z = {z} holds no voxel with a number; give another z")
    behind = None if underlay is None else _underlay(underlay, maps["status"].sizes, z)
    width = 0.5 * (high - low) / (mean / 100 if relative else 1)
    scale = PARAMETERS[parameter].display_scale
    probability = 100 * float(maps.attrs.get("interval", 0.95))
    label = PARAMETERS[parameter].label
    unit = " (%)" if relative else f" ({unit_of(parameter)})" if unit_of(parameter) else ""
    panels = (
        ("posterior mean", scale * mean, np.clip(contraction, 0, 1), MAP_COLOURS["mean"],
         label_of(parameter)),
        ("uncertainty", (1 if relative else scale) * width, np.ones(mean.shape), MAP_COLOURS["interval"],
         f"{label}, half the {probability:g} % interval{unit}"),
    )  # fmt: skip
    steps = np.linalg.norm(np.asarray(maps["affine"].values, float)[:3, :2], axis=0)
    axes = many_axes(axes, [panel[0] for panel in panels], _size(shown, steps))
    for ax, (what, values, alpha, colours, text) in zip(axes, panels, strict=True):
        _draw(ax, values, np.where(shown, np.nan_to_num(alpha), 0.0), behind, steps, colours, text)
        _outline(ax, shown, steps)
        _frame(ax, shown, steps)
        ax.set_title(f"{label}, {what}, z = {z}", fontsize="medium")
    return axes


def _check(maps: xr.Dataset, parameter: str, names: list[str]) -> None:
    if parameter not in MAPPED:
        raise InputError(f"parameter {parameter!r}; accepted are {', '.join(MAPPED)}")
    if absent := [name for name in names if name not in maps]:
        raise InputError(f"maps: has no {absent[0]}; give the Dataset of posterior_maps")


def _slice(maps: xr.Dataset, z: int | None) -> int:
    """Index of the slice: the one asked for, or the fullest."""
    status = maps["status"].transpose(*SPACE).values
    filled = np.isin(status, SHOWN).sum(axis=(0, 1))
    if not filled.any():
        raise InputError("maps: no voxel has a number; check the labels, and status for what failed")
    if z is None:
        return int(filled.argmax())
    if not 0 <= z < len(filled):
        raise InputError(f"z {z}; the slices are 0 to {len(filled) - 1}")
    return int(z)


def _plane(values: xr.DataArray, z: int) -> np.ndarray:
    """Slice (y, x), as images are drawn."""
    return np.asarray(values.isel(z=z).transpose("y", "x").values, float)


def _underlay(underlay: Any, sizes: Any, z: int) -> np.ndarray:
    shape = tuple(sizes[axis] for axis in SPACE)
    if isinstance(underlay, xr.DataArray):
        if set(underlay.dims) != set(SPACE):
            raise InputError(f"underlay: its dimensions are {underlay.dims}; give one image, with {SPACE}")
        underlay = underlay.transpose(*SPACE)
    if np.shape(underlay) != shape:
        raise InputError(
            f"underlay: its shape is {np.shape(underlay)}, that of the maps {shape}; "
            "give an image on their grid"
        )
    return np.asarray(underlay[:, :, z], float).T


def _draw(
    ax: Any,
    values: np.ndarray,
    alpha: np.ndarray,
    behind: np.ndarray | None,
    steps: np.ndarray,
    colours: str,
    text: str,
) -> None:
    """Draw one panel: values and alpha (y, x) over the underlay, with a colour bar."""
    extent = (0, steps[0] * values.shape[1], 0, steps[1] * values.shape[0])
    options = {"origin": "lower", "extent": extent, "aspect": "equal", "interpolation": "nearest"}
    if behind is not None:
        finite = behind[np.isfinite(behind)]
        top = np.quantile(finite, 0.99) if finite.size else 1.0
        ax.imshow(behind, cmap=MAP_COLOURS["underlay"], vmin=0, vmax=top, **options)
    seen = values[(alpha > 0) & np.isfinite(values)]
    seen = seen if seen.size else values[np.isfinite(values)]
    low, high = np.quantile(seen, RANGE)
    if not high > low:
        low, high = low - 0.5 * abs(low) - 1e-12, high + 0.5 * abs(high) + 1e-12
    opacity = np.where(np.isfinite(values), alpha, 0.0)
    image = ax.imshow(values, alpha=opacity, cmap=colours, vmin=low, vmax=high, **options)
    beyond = ("neither", "min", "max", "both")[int(seen.min() < low) + 2 * int(seen.max() > high)]
    ax.figure.colorbar(image, ax=ax, label=text, extend=beyond, shrink=0.85).solids.set_alpha(1)


def _outline(ax: Any, shown: np.ndarray, steps: np.ndarray) -> None:
    """Draw a line around the voxels that have a number."""
    fine = np.pad(shown, 1).repeat(FINE, axis=0).repeat(FINE, axis=1).astype(float)
    x, y = (step * ((np.arange(n) + 0.5) / FINE - 1) for step, n in zip(steps, fine.shape[::-1], strict=True))
    ax.contour(x, y, fine, levels=[0.5], colors=ORANGE, linewidths=0.7)


def _bounds(shown: np.ndarray) -> tuple[int, int, int, int]:
    """First and last + 1 of columns and rows that are drawn, with a margin inside the image."""
    rows, columns = np.flatnonzero(shown.any(axis=1)), np.flatnonzero(shown.any(axis=0))
    left, right = max(columns[0] - MARGIN, 0), min(columns[-1] + 1 + MARGIN, shown.shape[1])
    bottom, top = max(rows[0] - MARGIN, 0), min(rows[-1] + 1 + MARGIN, shown.shape[0])
    return int(left), int(right), int(bottom), int(top)


def _size(shown: np.ndarray, steps: np.ndarray) -> tuple[float, float]:
    """Width and height of a panel, in inches, in the shape of what is drawn."""
    left, right, bottom, top = _bounds(shown)
    ratio = (top - bottom) * steps[1] / ((right - left) * steps[0])
    return 4.6, float(np.clip(3.0 * ratio + 0.8, 2.2, 6.0))


def _frame(ax: Any, shown: np.ndarray, steps: np.ndarray) -> None:
    left, right, bottom, top = _bounds(shown)
    ax.set(xlim=(left * steps[0], right * steps[0]), ylim=(bottom * steps[1], top * steps[1]))
    ax.set(xlabel="x (mm)", ylabel="y (mm)")
