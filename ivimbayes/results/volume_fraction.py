"""The perfusion fraction of the volume, corrected for T2 and T1."""

import json
from collections.abc import Mapping
from typing import Any

import arviz as az
import numpy as np
import pandas as pd
import xarray as xr

from ivimbayes.errors import InputError
from ivimbayes.models.relaxation import (
    ATTRS,
    LEAST,
    SAMPLES,
    Time,
    checked_times,
    drawn_sizes,
    log_weight,
    one_time,
    relaxation_times,
    volume_of,
)
from ivimbayes.results.stored import FitView

HDI = 0.95


def correct_fraction(
    tree: xr.DataTree,
    *,
    TE: float,
    T2_blood: Time | None = None,
    T2_tissue: Time | Mapping[str, Time] | None = None,
    TR: float | None = None,
    T1_blood: Time | None = None,
    T1_tissue: Time | Mapping[str, Time] | None = None,
    field: float | None = None,
    tissue: Mapping[str, str] | None = None,
    seed: int = 0,
) -> xr.Dataset:
    """Volume fractions of a fit: of each fitted voxel and each region.

    Parameters
    ----------
    tree : DataTree
        From `fit`.
    TE, TR : float
        Echo and repetition time (ms); without TR, magnetization is taken to have recovered.
    T2_blood, T2_tissue, T1_blood, T1_tissue : float, (float, float) or mapping, optional
        As in `volume_fraction` (ms). Those of the tissue may be a mapping by region; its key ``"*"`` stands
        for every region not named. T1 is needed with TR alone.
    field : float, optional
        Field strength (T): times that are not given are taken from the table of `relaxation_times`, for blood
        and for the tissue of each region's prior.
    tissue : mapping of str to str, optional
        Tissue of the table by region, where it is not that of the prior; ``"*"`` as above.
    seed : int
        Of the draws of relaxation times. Regions with the same times share them, others are independent;
        blood is the same for all.

    Returns
    -------
    Dataset
        ``f_volume`` (chain, draw, voxel) and ``f_volume_roi`` (chain, draw, roi), units 1, with the
        coordinates of `tree`. The attribute ``relaxation`` holds, as JSON, the times (mean and sd, ms) and
        sources of blood and of each region; ``TE_ms``, ``TR_ms`` and ``seed`` the rest.

    Raises
    ------
    InputError
        As `volume_fraction`; if the fit has no f, times are missing and no field is given, or a region or a
        tissue is unknown.
    """
    fit = FitView.of(tree)
    if "f" not in fit.posterior:
        raise InputError(
            "fit: its signal has no perfusion fraction; give a fit of one that has, biexponential"
        )
    regions = fit.regions
    wanted = ("T2",) if TR is None else ("T2", "T1")
    _check_options(TE, TR, T1_blood is not None or T1_tissue is not None, tissue, field)
    names = _tissues(fit, tissue)
    T2, T1 = _by_region(T2_tissue, regions), _by_region(T1_tissue, regions)
    blood = _chosen("blood", "blood", {"T2": T2_blood, "T1": T1_blood}, wanted, field)
    f, f_roi = fit.posterior["f"], fit.posterior["f_roi"]
    volume = xr.full_like(f, np.nan, dtype=float).transpose(*SAMPLES, "voxel")
    volume_roi = xr.full_like(f_roi, np.nan, dtype=float).transpose(*SAMPLES, "roi")
    streams: dict[Any, int] = {}
    record: dict[str, Any] = {"blood": {}, "regions": {}}
    for i, region in enumerate(regions):
        try:
            own = _chosen("tissue", names[region], {"T2": T2[region], "T1": T1[region]}, wanted, field)
            parts = {"blood": blood, "tissue": own}
            known = checked_times(
                TE, TR, {f"{k}_{part}": v[k] for part, v in parts.items() for k in wanted}, seed
            )
        except InputError as error:
            raise InputError(f"region {region!r}: {error}") from None
        record["blood"], record["regions"][region] = (
            {k: known[f"{k}_{part}"] for k in wanted} | {"source": v["source"]} for part, v in parts.items()
        )
        stream = streams.setdefault((known["T2_tissue"], known.get("T1_tissue")), len(streams))
        weight = log_weight(TE, TR, known, drawn_sizes(f_roi), seed, stream)
        inside = fit.voxels(region)
        volume[:, :, inside] = volume_of(f.isel(voxel=inside), weight).transpose(*SAMPLES, "voxel").values
        volume_roi[:, :, i] = volume_of(f_roi.isel(roi=i), weight).transpose(*SAMPLES).values
    made = xr.Dataset({"f_volume": volume, "f_volume_roi": volume_roi})
    for name in made.data_vars:
        made[name].attrs = dict(ATTRS)
    made.attrs = {
        "TE_ms": float(TE), **({} if TR is None else {"TR_ms": float(TR)}), "seed": int(seed),
        "relaxation": json.dumps(record),
    }  # fmt: skip
    return made


def _check_options(
    TE: float, TR: float | None, T1: bool, tissue: Mapping[str, str] | None, field: float | None
) -> None:
    """Refuse options that need another, and times out of range; `T1` is whether one is given."""
    if TR is None and T1:
        raise InputError("T1 is given without TR; give TR in ms too, or leave T1 out")
    if tissue and field is None:
        raise InputError("tissue is given without the field strength; give the field in T too")
    for time, value in (("TE", TE), ("TR", TR))[: 1 if TR is None else 2]:
        one_time(time, value, LEAST[time])


def tabulate_fractions(tree: xr.DataTree, corrected: xr.Dataset) -> pd.DataFrame:
    """Signal and volume fraction of each region.

    Parameters
    ----------
    tree : DataTree
        From `fit`.
    corrected : Dataset
        From `correct_fraction`.

    Returns
    -------
    DataFrame
        Rows ``f`` and ``f_volume`` of each region, with the columns ``roi``, ``parameter``, ``unit``,
        ``median``, ``hdi_low``, ``hdi_high`` (95 % highest-density interval).
    """
    rows = []
    for roi in corrected["roi"].values.tolist():
        for name, draws in (("f", tree["posterior"]["f_roi"]), ("f_volume", corrected["f_volume_roi"])):
            values = np.asarray(draws.sel(roi=roi).values, float).ravel()
            low, high = az.hdi(values, prob=HDI)
            rows.append((roi, name, "1", float(np.median(values)), float(low), float(high)))
    return pd.DataFrame(rows, columns=["roi", "parameter", "unit", "median", "hdi_low", "hdi_high"])


def _chosen(
    part: str, tissue: str, given: dict[str, Any], wanted: tuple[str, ...], field: float | None
) -> dict[str, Any]:
    """Take the times given for blood or tissue, the others from the table; say where they come from."""
    own = [k for k in wanted if given[k] is not None]
    missing = [k for k in wanted if given[k] is None]
    if not missing:
        return {k: given[k] for k in wanted} | {"source": "given"}
    if field is None:
        raise InputError(
            f"{missing[0]}_{part} is not given; give it in ms, or the field strength in T (--field)"
        )
    entry = relaxation_times(tissue, field)
    source = f"{entry.source} ({entry.tissue}, {entry.field:g} T)"
    return {k: getattr(entry, k) if k in missing else given[k] for k in wanted} | {
        "source": source + (f"; {' and '.join(own)} given" if own else "")
    }


def _tissues(fit: FitView, tissue: Mapping[str, str] | None) -> dict[str, str]:
    named = _by_region(tissue or None, fit.regions)
    return {region: name or fit.tissues[region] for region, name in named.items()}


def _by_region(value: Any, regions: list[str]) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return dict.fromkeys(regions, value)
    absent = [name for name in value if name not in (*regions, "*")]
    if absent:
        raise InputError(f"no region {absent[0]!r}; the regions are {', '.join(regions)}")
    return {region: value.get(region, value.get("*")) for region in regions}
