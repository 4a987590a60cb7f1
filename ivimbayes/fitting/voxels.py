"""The voxels that are fitted: all of a region, a stratified sample, block averages, or the mean curve."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from ivimbayes.errors import InputError
from ivimbayes.io.scans import roi_names

LEVELS = ("voxel", "mean")
VOXELS_PER_ROI = 200
MIN_POOLED = 5  # with fewer voxels there is no spread between voxels to learn: the mean curve is fitted


def choose_voxels(
    scan: xr.Dataset,
    *,
    voxels_per_roi: int | None = VOXELS_PER_ROI,
    downsample: int | Sequence[int] = 1,
    level: str = "voxel",
    seed: int = 0,
) -> dict[str, xr.Dataset]:
    """Choose and load the voxels of each region.

    Parameters
    ----------
    scan : Dataset
        From `read_scan`: ``signal`` (x, y, z, measurement) and ``roi`` (x, y, z).
    voxels_per_roi : int or None
        Voxels a region to fit at most. A larger region is cut into as many consecutive strata in the order
        of the image and one voxel of each is drawn. None takes all.
    downsample : int or three ints
        Average blocks of this many voxels along x and y (one number) or x, y and z, within the region.
    level : {"voxel", "mean"}
        Fit voxels, or the region's mean curve. A region of fewer than 5 usable voxels falls back to the
        mean.
    seed : int
        Seed of the sample; a region's sample does not depend on the other regions.

    Returns
    -------
    dict of str to Dataset
        By region: ``signal`` (voxel, measurement), ``averages`` (voxel, measurement), coordinates ``x``,
        ``y``, ``z`` (voxel index, a mean for blocks) and ``b`` (measurement). Attributes: ``roi``,
        ``label``, ``level``, ``available`` (usable voxels or blocks), ``left_out`` (voxels with a signal
        that is not a number, or not positive where images are magnitudes), ``averaged`` (voxels that a full
        block, or the mean curve, is the mean of), ``reason`` (for a mean curve that was not asked for).

    Raises
    ------
    InputError
        If an option is out of range or no voxel of a region is usable.

    Notes
    -----
    The volumes are read one at a time, twice: to find the usable voxels, and to collect the chosen ones.
    Measurements averaged over a part of a block only count as that part of a full block's precision.

    Examples
    --------
    >>> from ivimbayes import phantom
    >>> chosen = choose_voxels(phantom()[0], voxels_per_roi=50)
    >>> chosen["liver"].sizes["voxel"], int(chosen["liver"].attrs["available"])
    (50, 816)
    """
    blocks = _blocks(downsample)
    if level not in LEVELS:
        raise InputError(f"level {level!r}; accepted are {', '.join(LEVELS)}")
    if voxels_per_roi is not None and voxels_per_roi < MIN_POOLED:
        raise InputError(
            f"voxels_per_roi {voxels_per_roi}; give {MIN_POOLED} or more, or fit the mean curve (level mean)"
        )
    labels = scan["roi"].values
    where = np.argwhere(labels != 0)
    usable = _usable(scan, where)
    of_voxel = labels[tuple(where.T)]
    chosen = {}
    for label, name in roi_names(scan).items():
        mine = of_voxel == label
        if not usable[mine].any():
            raise InputError(
                f"{scan.attrs.get('source', 'scan')}: region {name!r} has no voxel with usable signals; "
                "correct the image or leave the region out"
            )
        rng = np.random.default_rng([seed, label])
        groups = _group(where[mine & usable], blocks, level, voxels_per_roi, rng)
        attrs = {
            "roi": name, "label": label, "level": groups.level, "available": groups.available,
            "left_out": int((mine & ~usable).sum()), "averaged": groups.averaged, "reason": groups.reason,
        }  # fmt: skip
        chosen[name] = (groups, attrs)
    curves = _read(scan, [groups for groups, _ in chosen.values()])
    return {
        name: _dataset(groups, signal, scan, attrs)
        for (name, (groups, attrs)), signal in zip(chosen.items(), curves, strict=True)
    }


@dataclass(frozen=True)
class _Groups:
    """Voxels (index), the curve each is averaged into, and the share of a full block each curve is."""

    index: np.ndarray
    of_curve: np.ndarray
    share: np.ndarray
    level: str
    available: int
    averaged: int = 1
    reason: str = ""

    def mean(self, values: np.ndarray) -> np.ndarray:
        """Mean of voxel values (voxel, ...) over each curve's voxels."""
        count = np.bincount(self.of_curve)
        total = np.zeros((len(count), *values.shape[1:]))
        np.add.at(total, self.of_curve, values)
        return np.asarray(total / count.reshape(-1, *[1] * (values.ndim - 1)))


def _usable(scan: xr.Dataset, where: np.ndarray) -> np.ndarray:
    """Whether every signal of a voxel is a number, and positive unless the images are real-valued."""
    usable = np.ones(len(where), bool)
    lowest = -np.inf if scan.attrs.get("real_valued") else 0.0
    for k in range(scan.sizes["measurement"]):
        values = scan["signal"].isel(measurement=k).values[tuple(where.T)]
        usable &= np.isfinite(values) & (values > lowest)
    return usable


def _read(scan: xr.Dataset, regions: Sequence[_Groups]) -> list[np.ndarray]:
    """Curves (curve, measurement) of each region, volume by volume."""
    curves = [np.empty((len(groups.share), scan.sizes["measurement"])) for groups in regions]
    for k in range(scan.sizes["measurement"]):
        volume = scan["signal"].isel(measurement=k).values
        for groups, signal in zip(regions, curves, strict=True):
            signal[:, k] = groups.mean(volume[tuple(groups.index.T)].astype(float))
    return curves


def _blocks(downsample: int | Sequence[int]) -> np.ndarray:
    sizes = (downsample, downsample, 1) if isinstance(downsample, int) else tuple(downsample)
    if len(sizes) != 3 or not all(isinstance(s, int | np.integer) and s >= 1 for s in sizes):
        raise InputError(f"downsample {downsample!r}; give one whole number, or three for x, y and z")
    return np.array(sizes)


def _group(
    where: np.ndarray, blocks: np.ndarray, level: str, limit: int | None, rng: np.random.Generator
) -> _Groups:
    """Decide which voxels of a region make which curve."""
    if (blocks > 1).any():
        corner, of_curve, count = np.unique(where // blocks, axis=0, return_inverse=True, return_counts=True)
        of_curve, share = of_curve.ravel(), count / count.max()
    else:
        corner, of_curve, count = where, np.arange(len(where)), np.ones(len(where), int)
        share = np.ones(len(where))
    available, averaged = len(corner), int(count.max())
    if level == "mean" or available < MIN_POOLED:
        reason = "" if level == "mean" else f"fewer than {MIN_POOLED} usable voxels"
        return _Groups(where, np.zeros(len(where), int), np.ones(1), "mean", available, len(where), reason)
    if limit is None or available <= limit:
        return _Groups(where, of_curve, share, level, available, averaged)
    keep = _stratified(corner, limit, rng)
    place = np.full(available, -1)
    place[keep] = np.arange(limit)
    kept = place[of_curve] >= 0
    return _Groups(where[kept], place[of_curve][kept], share[keep], level, available, averaged)


def _stratified(position: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """One voxel of each of n consecutive strata in the order z, y, x."""
    order = np.lexsort(position.T)
    edges = np.linspace(0, len(order), n + 1).astype(int)
    return np.sort(order[rng.integers(edges[:-1], edges[1:])])


def _dataset(groups: _Groups, signal: np.ndarray, scan: xr.Dataset, attrs: dict[str, Any]) -> xr.Dataset:
    x, y, z = groups.mean(groups.index.astype(float)).T
    return xr.Dataset(
        {
            "signal": (("voxel", "measurement"), signal, {"units": "signal units"}),
            "averages": (
                ("voxel", "measurement"), groups.share[:, None] * scan["averages"].values, {"units": "1"}
            ),
        },
        coords={
            "b": ("measurement", scan["b"].values, {"units": "s/mm2"}),
            "x": ("voxel", x), "y": ("voxel", y), "z": ("voxel", z),
        },
        attrs=attrs,
    )  # fmt: skip
