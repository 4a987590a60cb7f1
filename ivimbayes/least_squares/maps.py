"""Least-squares fits of every voxel at once: segmented, and all parameters together."""

import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from ivimbayes.errors import InputError
from ivimbayes.io.scans import roi_names
from ivimbayes.least_squares.solver import (
    BAD_SIGNAL,
    FITTED,
    FULL,
    REFINED,
    S0,
    SEGMENTED,
    STATUS,
    Problem,
    make_problem,
    make_work,
)
from ivimbayes.least_squares.voxels import fit_voxels, load_fits
from ivimbayes.models.signals import PARAMETERS
from ivimbayes.numerics.steps import B_DIGITS, sum_by_b
from ivimbayes.parallel import count_cores
from ivimbayes.progress import MapProgress
from ivimbayes.protocol.check import require_protocol
from ivimbayes.voxelwise.status import MAPPED, SPACE

BOUNDS = {"f": (0.0, 1.0), "D": (0.0, 4e-3), "D_star": (0.0, 0.5)}
METHODS = {SEGMENTED: "segmented", REFINED: "segmented, refined", FULL: "full"}
THRESHOLD = 200.0  # s/mm²
CHUNK, SLAB_BYTES = 2048, 256_000_000  # voxels a task, and signals in memory at a time


def fit_segmented(
    scan: xr.Dataset,
    *,
    threshold: float = THRESHOLD,
    refine: bool = False,
    bounds: Mapping[str, tuple[float, float]] | None = None,
    cores: int | None = None,
    progress: bool = True,
) -> xr.Dataset:
    """Fit D above a threshold b value, then S0, f and D* with D held, in every voxel of a scan's regions.

    Parameters
    ----------
    scan : Dataset
        From `read_scan`: ``signal`` (x, y, z, measurement), ``roi`` (x, y, z), ``b`` in s/mm². A measurement
        that is the mean of ``averages`` images has the weight of so many.
    threshold : float
        s/mm²; A exp(-bD) is fitted to b above it, where the perfusion is taken to be gone.
    refine : bool
        Take the perfusion's tail, as fitted, from the signals above the threshold, and repeat both steps
        until they agree.
    bounds : mapping of str to (float, float), optional
        Lowest and highest ``f`` (1), ``D`` and ``D_star`` (mm²/s); what is not given is (0, 1), (0, 4e-3) and
        (0, 0.5). D* > D always.
    cores : int, optional
        Threads; all cores when not given. The numbers do not depend on it.
    progress : bool
        Show a bar.

    Returns
    -------
    Dataset
        (x, y, z): ``f``, ``D``, ``D_star`` (mm²/s), ``S0``, each with its standard error ``f_se`` and so on,
        ``status``, and ``affine`` (row, column). Status 0 is outside; 1 ok; 2 at bound: f, D or D* is at the
        end of its range, its standard error NaN and those of the others as if it were known; 3 not
        identified: the signals say nothing of what is NaN (D* where f is 0, D where f is 1, f and D* where
        D* has come down to D, all three where S0 is 0, any of them whose standard error exceeds its range);
        4 not converged and 5 bad signal (not a number, or not positive where images are magnitudes): all
        NaN.

    Raises
    ------
    InputError
        If the b values are too few on a side of the threshold or in all, or an option is out of range.

    See Also
    --------
    fit_full

    Notes
    -----
    Both steps are weighted non-linear least squares. The standard errors are those of the two steps together
    to first order: the error of D goes into those of S0, f and D*. The variance of the noise is the squared
    residual over K - P, K measurements and P parameters that are not at a bound; NaN where K = P.

    Where D* is low the perfusion is not gone at 200 s/mm² (at D* = 10e-3 mm²/s 14 % of it are left), D is too
    high and f too low. `refine` takes that away, at the price of more noise and more voxels at a bound: it is
    not the default, and what the field calls segmented is one pass.

    References
    ----------
    Le Bihan et al. 1988, Radiology 168:497.

    Examples
    --------
    >>> from ivimbayes import phantom
    >>> made = fit_segmented(phantom()[0], progress=False)
    >>> made["D"].attrs["units"], round(1e3 * float(made["D"].median()), 1)
    ('mm2/s', 1.2)
    """
    distinct = _check_scan(scan)
    if not np.isfinite(threshold):
        raise InputError(f"threshold {threshold}; give a b value in s/mm2, such as {THRESHOLD:g}")
    above = int((distinct > threshold).sum())
    if above < 2:
        raise InputError(
            f"threshold {threshold:g}: {above} distinct b values above it (the highest is {distinct[-1]:g} "
            "s/mm2), D needs 2; lower the threshold"
        )
    if len(distinct) - above < 2:
        raise InputError(
            f"threshold {threshold:g}: {len(distinct) - above} distinct b values at or below it (the lowest "
            f"is {distinct[0]:g} s/mm2), f and D* need 2; raise the threshold"
        )
    return _fit(scan, REFINED if refine else SEGMENTED, threshold, bounds, cores, progress)


def fit_full(
    scan: xr.Dataset,
    *,
    bounds: Mapping[str, tuple[float, float]] | None = None,
    cores: int | None = None,
    progress: bool = True,
) -> xr.Dataset:
    """Fit S0, f, D and D* at once in every voxel of a scan's regions.

    Parameters
    ----------
    scan, bounds, cores, progress
        As in `fit_segmented`.

    Returns
    -------
    Dataset
        As of `fit_segmented`.

    Raises
    ------
    InputError
        If there are fewer than 4 distinct b values, or an option is out of range.

    Notes
    -----
    Levenberg-Marquardt with the second derivatives, from three starts: the segmented values, and D* of 0.24
    and 0.013 mm²/s (under the default bounds) with all, and with 0.4, of the D of one compartment fitted to
    all b values. The best is kept: the squared residual of noisy voxels often has two minima. One compartment
    is reported as f = 0, not identified.

    Examples
    --------
    >>> from ivimbayes import phantom
    >>> made = fit_full(phantom()[0], progress=False)
    >>> bool((made["D"] < made["D_star"]).where(made["status"] == 1, True).all())
    True
    """
    distinct = _check_scan(scan)
    both = (distinct > THRESHOLD).sum() >= 2 and (distinct <= THRESHOLD).sum() >= 2
    start = THRESHOLD if both else float(distinct[(len(distinct) - 1) // 2])
    return _fit(scan, FULL, start, bounds, cores, progress)


def _check_scan(scan: xr.Dataset) -> np.ndarray:
    """Distinct b values of a scan, if they are enough."""
    require_protocol(scan, warn=False)
    return np.unique(scan["b"].values.astype(float).round(B_DIGITS))


def _check_bounds(bounds: Mapping[str, tuple[float, float]] | None) -> dict[str, tuple[float, float]]:
    found = dict(BOUNDS)
    for name, given in (bounds or {}).items():
        if name not in BOUNDS:
            raise InputError(f"bounds: unknown parameter {name!r}; accepted are {', '.join(BOUNDS)}")
        try:
            low, high = (float(v) for v in given)
        except (TypeError, ValueError):
            raise InputError(f"bounds: {name} {given!r}; give a lowest and a highest value") from None
        top = 1.0 if name == "f" else np.inf
        if not (0 <= low < high <= top and np.isfinite(high)):
            limit = "0 <= low < high <= 1" if name == "f" else "0 <= low < high, in mm2/s"
            raise InputError(f"bounds: {name} from {low:g} to {high:g}; give {limit}")
        found[name] = low, high
    (low, high), (low_star, high_star) = found["D"], found["D_star"]
    if low_star < low or high_star <= high:
        raise InputError(
            f"bounds: D_star from {low_star:g} to {high_star:g} beside D from {low:g} to {high:g}; D_star is "
            "above D, so give it bounds that are not below those of D"
        )
    return found


def _fit(
    scan: xr.Dataset,
    method: int,
    threshold: float,
    bounds: Mapping[str, tuple[float, float]] | None,
    cores: int | None,
    progress: bool,
) -> xr.Dataset:
    limits = _check_bounds(bounds)
    if cores is not None and cores < 1:
        raise InputError(f"cores {cores}; give 1 or more")
    low, high = (np.array([end, *(limits[p][i] for p in FITTED[1:])]) for i, end in enumerate((0.0, np.inf)))
    problem = make_problem(scan["b"].values, scan["averages"].values, threshold, low, high)
    lowest = -np.inf if scan.attrs.get("real_valued") else 0.0
    inside = scan["roi"].transpose(*SPACE).values > 0
    values = {name: np.full(inside.shape, np.nan) for p in MAPPED for name in (p, f"{p}_se")}
    status = np.full(inside.shape, STATUS["outside"], np.uint8)
    columns = (*FITTED, *(f"{p}_se" for p in FITTED))
    with (
        MapProgress(int(inside.sum()), 0, progress) as bar,
        ThreadPoolExecutor(cores or count_cores()) as pool,
    ):
        bar.stage("compiling, once on a machine")
        load_fits(method)
        _fit_chunk(np.ones((1, len(problem.acquisition.place))), lowest, method, problem)
        bar.stage("mapping")
        for z in _slabs(scan, inside):
            where, signal = inside[:, :, z], _read(scan, inside, z)
            chunks = (signal[v : v + CHUNK] for v in range(0, len(signal), CHUNK))
            made = []
            for part in pool.map(lambda chunk: _fit_chunk(chunk, lowest, method, problem), chunks):
                made.append(part)
                bar.advance(len(part[1]))
            for i, name in enumerate(columns):
                values[name][:, :, z][where] = np.concatenate([out[:, i] for out, _ in made])
            status[:, :, z][where] = np.concatenate([found for _, found in made])
    return _dataset(scan, values, status, method, threshold, limits)


def _fit_chunk(
    signal: np.ndarray, lowest: float, method: int, problem: Problem
) -> tuple[np.ndarray, np.ndarray]:
    """Fit voxels (voxel, measurement): S0, f, D, D* and their standard errors, and a status."""
    acquisition, place = problem.acquisition, problem.acquisition.place.astype(int)
    out, status = np.full((len(signal), 2 * len(FITTED)), np.nan), np.full(len(signal), BAD_SIGNAL, np.uint8)
    good = (np.isfinite(signal) & (signal > lowest)).all(axis=1) & (signal != 0).any(axis=1)
    scale = np.abs(signal[good]).max(axis=1, initial=0.0)[:, None]
    weight = acquisition.averages
    mean = sum_by_b(weight * signal[good], place, len(acquisition.b)) / (acquisition.weight * scale)
    within = (weight * (signal[good] / scale - mean[:, place]) ** 2).sum(axis=1)
    found, judged = out[good], status[good]
    fit_voxels(mean, within, len(place), method, problem, make_work(acquisition), found, judged)
    found[:, [S0, 4 + S0]] *= scale
    out[good], status[good] = found, judged
    return out, status


def _slabs(scan: xr.Dataset, inside: np.ndarray) -> Iterator[slice]:
    """Slices that are read together, those without a voxel left out."""
    a_slice = 8 * inside[:, :, 0].size * scan.sizes["measurement"]
    count = max(1, SLAB_BYTES // a_slice)
    for first in range(0, inside.shape[2], count):
        if inside[:, :, first : first + count].any():
            yield slice(first, min(first + count, inside.shape[2]))


def _read(scan: xr.Dataset, inside: np.ndarray, z: slice) -> np.ndarray:
    """Signals (voxel, measurement) of a slab, volume by volume as they lie in the file."""
    where = inside[:, :, z]
    signal = np.empty((int(where.sum()), scan.sizes["measurement"]))
    for k in range(scan.sizes["measurement"]):
        signal[:, k] = scan["signal"].isel(measurement=k, z=z).transpose(*SPACE).values[where]
    return signal


def _dataset(
    scan: xr.Dataset,
    values: Mapping[str, np.ndarray],
    status: np.ndarray,
    method: int,
    threshold: float,
    limits: Mapping[str, tuple[float, float]],
) -> xr.Dataset:
    data: dict[str, Any] = {}
    for name, array in values.items():
        p = PARAMETERS[name.removesuffix("_se")]
        error = ": standard error" if name.endswith("_se") else ""
        data[name] = (SPACE, array, {"units": p.unit, "long_name": p.long_name + error})
    flags = {"flag_values": list(STATUS.values()), "flag_meanings": " ".join(STATUS)}
    about = {"units": "1", "long_name": "what the numbers of a voxel are worth"}
    data["status"] = (SPACE, status, about | flags)
    data["affine"] = (("row", "column"), scan["affine"].values, {"units": "mm"})
    attrs: dict[str, Any] = {"method": METHODS[method], "model": "biexponential", "noise": "gaussian"}
    if method != FULL:
        attrs["threshold"] = float(threshold)
    return xr.Dataset(
        data,
        attrs=attrs
        | {
            "bounds": json.dumps({name: list(pair) for name, pair in limits.items()}),
            "inputs": scan.attrs.get("inputs", "{}"),
            "source": scan.attrs.get("source", ""),
            "versions": json.dumps({p: version(p) for p in ("ivimbayes", "numpy", "numba")}),
        },
    )


def describe_regions(maps: xr.Dataset, scan: xr.Dataset) -> pd.DataFrame:
    """Describe the fits of each region.

    Parameters
    ----------
    maps : Dataset
        From `fit_segmented` or `fit_full`.
    scan : Dataset
        The scan that was fitted.

    Returns
    -------
    DataFrame
        A row a region: ``roi``, ``voxels``, medians of ``f``, ``D`` and ``D_star`` (mm²/s) over the voxels
        that have the number, NaN where none has, and how many voxels have each status.
    """
    labels, rows = scan["roi"].transpose(*SPACE).values, []
    for label, name in roi_names(scan).items():
        here = labels == label
        row: dict[str, Any] = {"roi": name, "voxels": int(here.sum())}
        for p in FITTED[1:]:
            found = maps[p].values[here]
            found = found[np.isfinite(found)]
            row[p] = float(np.median(found)) if len(found) else np.nan
        counts = np.bincount(maps["status"].values[here], minlength=len(STATUS))
        rows.append(row | {key: int(counts[code]) for key, code in STATUS.items() if key != "outside"})
    return pd.DataFrame(rows)
