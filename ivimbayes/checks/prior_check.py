"""Before a fit: whether the signals lie where the priors of their regions expect them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import xarray as xr

from ivimbayes.errors import InputError
from ivimbayes.fitting.voxels import VOXELS_PER_ROI, choose_voxels
from ivimbayes.models.correlation import covariance
from ivimbayes.models.population import add_second, draw_region_prior, draw_second_prior, draw_theta
from ivimbayes.models.priors import TissuePrior
from ivimbayes.models.signals import PARAMETERS, SIGNALS
from ivimbayes.models.spec import ModelSpec, refuse_image_effects, region_priors
from ivimbayes.numerics.steps import distinct_b, sum_by_b

DRAWS, LEAST_DRAWS = 4000, 100
QUANTILES = (0.025, 0.5, 0.975)
MEDIAN_ERROR = 1.2533  # standard error of a median over that of a mean, of normal values
VARIABLES = {
    "measured": "median over the voxels of the signal relative to that at the lowest b value",
    "measured_error": "standard error of that median",
    "prior": "relative signal of the region's median voxel under the prior",
    "voxel": "relative signal of a single voxel under the prior",
    "parameter_prior": "the region's parameters under the prior",
}


def prior_check(
    scan: xr.Dataset,
    spec: ModelSpec | None = None,
    *,
    tissue: Mapping[str, str] | None = None,
    priors: Mapping[str, TissuePrior] | str | Path | None = None,
    voxels_per_roi: int | None = VOXELS_PER_ROI,
    downsample: int | Sequence[int] = 1,
    level: str = "voxel",
    seed: int = 0,
    draws: int = DRAWS,
) -> xr.Dataset:
    """Lay the signals of each region beside the signals that its prior expects; nothing is sampled.

    Parameters
    ----------
    scan : Dataset
        From `read_scan`.
    spec, tissue, priors, voxels_per_roi, downsample, level
        As in `fit`, which would fit the same voxels with the same priors.
    seed : int
        Of the voxels, and of what is drawn.
    draws : int
        Regions drawn from each prior.

    Returns
    -------
    Dataset
        Signals relative to that at the lowest b value (1): ``measured``, ``measured_error`` (roi, b),
        ``prior`` and ``voxel`` (roi, b, quantile: 0.025, 0.5, 0.975), ``inside`` (roi, b). At the lowest b
        value all are 1. ``parameter_prior`` (roi, parameter, quantile) in the units of its coordinate
        ``unit``; ``tissue`` (roi), the prior's name; ``voxels`` (roi), how many are summarised.

    Raises
    ------
    InputError
        As `fit`; if `draws` is below 100, or no voxel of a region has a signal above 0 at the lowest b value.

    Notes
    -----
    Of each region drawn from the prior the curve of the median voxel is taken, g(b; mu) / g(b_0; mu), with a
    normal error of the measured median's size, 1.25 sd / sqrt(voxels); measurements at one b value are
    averaged first. A single voxel is drawn from each region's population. Both are without the noise of a
    measurement: in a median over voxels it hardly counts, save that the floor of magnitudes lifts signals
    below about three times sigma. A mean curve has no error here. The ranges at different b values are not
    independent: read the row of them, not one b value.

    Examples
    --------
    >>> from ivimbayes import phantom
    >>> checked = prior_check(phantom()[0], voxels_per_roi=50)
    >>> checked["tissue"].sel(roi="liver").item(), bool(checked["inside"].sel(roi="liver").all())
    ('liver', True)
    """
    spec = ModelSpec() if spec is None else spec
    refuse_image_effects(spec, "the prior predictive check")
    if isinstance(draws, bool) or draws != int(draws) or draws < LEAST_DRAWS:
        raise InputError(f"draws {draws}; give a whole number, {LEAST_DRAWS} or more")
    if seed < 0:
        raise InputError(f"seed {seed}; give 0 or more")
    chosen = choose_voxels(scan, voxels_per_roi=voxels_per_roi, downsample=downsample, level=level, seed=seed)
    assigned = region_priors(list(chosen), spec, tissue, priors)
    b, _ = distinct_b(scan["b"].values)
    found = []
    for name, voxels in chosen.items():
        rng = np.random.default_rng([seed, int(voxels.attrs["label"]), 2])
        measured = _measured(voxels, b, str(scan.attrs.get("source", "scan")))
        found.append((measured, _expected(spec.with_prior(assigned[name]), b, measured.error, draws, rng)))
    parameters, coords = SIGNALS[spec.signal].parameters, {"quantile": list(QUANTILES)}
    checked = xr.Dataset(
        {
            "measured": (("roi", "b"), [m.median for m, _ in found]),
            "measured_error": (("roi", "b"), [m.error for m, _ in found]),
            "prior": (("roi", "b", "quantile"), [e.region for _, e in found]),
            "voxel": (("roi", "b", "quantile"), [e.voxel for _, e in found]),
            "parameter_prior": (("roi", "parameter", "quantile"), [e.parameters for _, e in found]),
            "tissue": ("roi", [assigned[name].name for name in chosen]),
            "voxels": ("roi", [m.voxels for m, _ in found]),
        },
        coords=coords
        | {
            "roi": list(chosen), "b": ("b", b, {"units": "s/mm2"}), "parameter": list(parameters),
            "unit": ("parameter", [PARAMETERS[p].unit for p in parameters]),
        },
    )  # fmt: skip
    for variable, text in VARIABLES.items():
        checked[variable].attrs = {"long_name": text} | ({} if "parameter" in variable else {"units": "1"})
    low, high = checked["prior"].sel(quantile=QUANTILES[0]), checked["prior"].sel(quantile=QUANTILES[-1])
    inside = (low <= checked["measured"]) & (checked["measured"] <= high)
    checked["inside"] = inside.drop_vars("quantile", errors="ignore") | (checked["b"] == b[0])
    checked.attrs = {"source": str(scan.attrs.get("source", "")), "spec": spec.to_json(), "seed": int(seed)}
    return checked


class _Measured(NamedTuple):
    """Median relative signal at each b value, its standard error (b,), and the number of voxels."""

    median: np.ndarray
    error: np.ndarray
    voxels: int


class _Expected(NamedTuple):
    """Quantiles (..., quantile) of the region's curve, of a voxel's (b,), and of the region's parameters."""

    region: np.ndarray
    voxel: np.ndarray
    parameters: np.ndarray


def _measured(voxels: xr.Dataset, b: np.ndarray, source: str) -> _Measured:
    weight, signal = voxels["averages"].values, voxels["signal"].values
    _, place = distinct_b(voxels["b"].values)
    mean = sum_by_b(weight * signal, place, len(b)) / sum_by_b(weight, place, len(b))
    mean = mean[mean[:, 0] > 0]
    if not len(mean):
        raise InputError(
            f"{source}: region {voxels.attrs['roi']!r} has no signal above 0 at b = {b[0]:g}; "
            "correct the image or leave the region out"
        )
    relative = mean / mean[:, :1]
    spread = np.std(relative, axis=0, ddof=1) if len(mean) > 1 else np.zeros(len(b))
    return _Measured(np.median(relative, axis=0), MEDIAN_ERROR * spread / np.sqrt(len(mean)), len(mean))


def _expected(
    spec: ModelSpec, b: np.ndarray, error: np.ndarray, draws: int, rng: np.random.Generator
) -> _Expected:
    signal = SIGNALS[spec.signal]
    drawn = draw_region_prior(spec.prior, draws, rng, spec.eta, spec.signal)
    P = drawn["mu"].shape[1]
    z = draw_theta(np.zeros(P), np.eye(P), draws, rng, spec.population, spec.nu)
    L = np.linalg.cholesky(covariance(drawn["sd"], drawn["correlation"]) + 1e-12 * np.eye(P))
    theta = drawn["mu"] + np.einsum("dij,dj->di", L, z)
    if spec.population == "mixture":
        second = draw_second_prior(drawn["sd"], rng)
        theta = add_second(theta, second["second_share"], second["second_shift"], rng)
    region, voxel = (_relative(b, x, spec.signal) for x in (drawn["mu"], theta))
    region = region + error * rng.standard_normal(region.shape)
    values = np.stack([drawn[f"{name}_roi"] for name in signal.parameters], axis=-1)
    return _Expected(*(np.quantile(v, QUANTILES, axis=0).T for v in (region, voxel, values)))


def _relative(b: np.ndarray, theta: np.ndarray, signal: str) -> np.ndarray:
    """Signals (draw, b) over that at the lowest b value, of theta (draw, parameter)."""
    model = SIGNALS[signal]
    curve = model.curve(b, *(value[:, None] for value in model.values(*theta.T)))
    return np.asarray(curve / curve[:, :1])


def tabulate_check(checked: xr.Dataset) -> pd.DataFrame:
    """Tabulate a check from `prior_check`.

    Returns
    -------
    DataFrame
        A row for each region and b value: ``roi``, ``tissue``, ``b`` (s/mm²), and relative signals (1):
        ``measured``, ``prior_median``, ``prior_low``, ``prior_high`` (95 %), ``voxel_low``, ``voxel_high``
        (95 % of single voxels), ``inside``.
    """
    rows = [
        (
            roi, str(mine["tissue"].values), float(at["b"]), float(at["measured"]),
            *at["prior"].values[[1, 0, 2]].tolist(), *at["voxel"].values[[0, 2]].tolist(), bool(at["inside"]),
        )
        for roi, mine in ((roi, checked.sel(roi=roi)) for roi in checked["roi"].values.tolist())
        for at in (mine.isel(b=i) for i in range(checked.sizes["b"]))
    ]  # fmt: skip
    columns = ("roi", "tissue", "b", "measured", "prior_median", "prior_low", "prior_high", "voxel_low",
               "voxel_high", "inside")  # fmt: skip
    return pd.DataFrame(rows, columns=list(columns))


def verdicts(checked: xr.Dataset) -> dict[str, str]:
    """Say of each region, in a line, whether its signals lie where its prior expects them.

    The lowest b value, to which signals are relative, is not counted.
    """
    said = {}
    for roi in checked["roi"].values.tolist():
        mine = checked.sel(roi=roi).isel(b=slice(1, None))
        b, tissue = mine["b"].values, str(mine["tissue"].values)
        outside, low = ~mine["inside"].values, mine["measured"].values < mine["prior"].values[:, 1]
        if not outside.any():
            said[roi] = f"inside the 95 % range of the prior of {tissue} at all {len(b)} b values"
            continue
        parts = [
            f"{word} the 95 % range of the prior of {tissue} at b = {_list(b, part)} "
            f"({int(part.sum())} of {len(b)} b values): signals fall {how} than it allows"
            for word, how, part in (
                ("below", "faster", outside & low),
                ("above", "slower", outside & ~low),
            )
            if part.any()
        ]
        said[roi] = (
            f"{', '.join(parts)}; name another tissue (--tissue {roi!r}=TISSUE), "
            "or check b values, labels and the noise floor"
        )
    return said


def _list(b: np.ndarray, part: np.ndarray) -> str:
    """Write b values, those that follow each other as a range."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], part.astype(int), [0]])))
    runs = [b[start:end] for start, end in edges.reshape(-1, 2)]
    return ", ".join(f"{r[0]:g}" if len(r) == 1 else f"{r[0]:g} ... {r[-1]:g}" for r in runs)
