"""The voxels that are fitted: all of a region, a stratified sample, block averages, or the mean curve."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from ivimbayes.errors import InputError
from ivimbayes.scans import roi_names

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
        that is not a positive number).

    Raises
    ------
    InputError
        If an option is out of range or no voxel of a region is usable.

    Notes
    -----
    One volume is in memory at a time. Measurements averaged over a part of a block only count as that part
    of a full block's precision.
    """
    blocks = _blocks(downsample)
    if level not in LEVELS:
        raise InputError(f"level {level!r}; accepted are {', '.join(LEVELS)}")
    if voxels_per_roi is not None and voxels_per_roi < 1:
        raise InputError(f"voxels_per_roi {voxels_per_roi}; give 1 or more")
    labels = scan["roi"].values
    index = np.argwhere(labels != 0)
    volumes = (scan["signal"].isel(measurement=k).values for k in range(scan.sizes["measurement"]))
    signal = np.stack([volume[tuple(index.T)] for volume in volumes], axis=1).astype(float)
    of_voxel = labels[tuple(index.T)]
    chosen = {}
    for label, name in roi_names(scan).items():
        mine = of_voxel == label
        good = (np.isfinite(signal[mine]) & (signal[mine] > 0)).all(axis=1)
        where, curves = index[mine][good], signal[mine][good]
        if not good.any():
            raise InputError(
                f"{scan.attrs.get('source', 'scan')}: region {name!r} has no voxel whose signals are all "
                "positive numbers; correct the image or leave the region out"
            )
        rng = np.random.default_rng([seed, label])
        region = _region(where, curves, blocks, level, voxels_per_roi, rng)
        chosen[name] = _dataset(region, scan, name, label, int((~good).sum()))
    return chosen


def _blocks(downsample: int | Sequence[int]) -> np.ndarray:
    sizes = (downsample, downsample, 1) if isinstance(downsample, int) else tuple(downsample)
    if len(sizes) != 3 or not all(isinstance(s, int | np.integer) and s >= 1 for s in sizes):
        raise InputError(f"downsample {downsample!r}; give one whole number, or three for x, y and z")
    return np.array(sizes)


def _region(
    where: np.ndarray,
    curves: np.ndarray,
    blocks: np.ndarray,
    level: str,
    limit: int | None,
    rng: np.random.Generator,
) -> dict[str, Any]:
    """Average and sample one region: positions, curves, share of a full block, level and number available."""
    position, share = where.astype(float), np.ones(len(where))
    if (blocks > 1).any():
        _, block, count = np.unique(where // blocks, axis=0, return_inverse=True, return_counts=True)
        total = np.zeros((len(count), 3)), np.zeros((len(count), curves.shape[1]))
        np.add.at(total[0], block.ravel(), position)
        np.add.at(total[1], block.ravel(), curves)
        position, curves, share = total[0] / count[:, None], total[1] / count[:, None], count / count.max()
    available = len(position)
    if level == "mean" or min(available, limit or available) < MIN_POOLED:
        level, curves = "mean", np.average(curves, axis=0, weights=share)[None]
        position, share = position.mean(axis=0)[None], np.ones(1)
    elif limit is not None and available > limit:
        keep = _stratified(position, limit, rng)
        position, curves, share = position[keep], curves[keep], share[keep]
    return {"position": position, "curves": curves, "share": share, "level": level, "available": available}


def _stratified(position: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """One voxel of each of n consecutive strata in the order z, y, x."""
    order = np.lexsort(position.T)
    edges = np.linspace(0, len(order), n + 1)
    return np.sort(order[np.floor(edges[:-1] + rng.random(n) * np.diff(edges)).astype(int)])


def _dataset(region: dict[str, Any], scan: xr.Dataset, name: str, label: int, left_out: int) -> xr.Dataset:
    averages = region["share"][:, None] * scan["averages"].values
    x, y, z = region["position"].T
    return xr.Dataset(
        {
            "signal": (("voxel", "measurement"), region["curves"], {"units": "signal units"}),
            "averages": (("voxel", "measurement"), averages, {"units": "1"}),
        },
        coords={
            "b": ("measurement", scan["b"].values, {"units": "s/mm2"}),
            "x": ("voxel", x),
            "y": ("voxel", y),
            "z": ("voxel", z),
        },
        attrs={
            "roi": name, "label": label, "level": region["level"], "available": region["available"],
            "left_out": left_out,
        },
    )  # fmt: skip
