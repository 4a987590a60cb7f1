"""From a fit to tables: what each region's posterior says, and whether to believe it."""

from collections.abc import Mapping

import arviz as az
import numpy as np
import pandas as pd
import xarray as xr

from ivimbayes.models.signals import PARAMETERS, Parameter
from ivimbayes.results.diagnosis import Diagnosis, diagnose
from ivimbayes.results.regions import take_region
from ivimbayes.results.stored import FitView

HDI = 0.95
NORMAL_SD = (0.158655, 0.841345)  # quantiles one standard deviation from the mean of a Normal
COLUMNS = (
    "roi", "parameter", "unit", "mean", "median", "sd", "hdi_low", "hdi_high", "spread", "ess_bulk",
    "ess_tail", "r_hat", "verdict",
)  # fmt: skip


def summarize(tree: xr.DataTree | FitView, diagnoses: Mapping[str, Diagnosis] | None = None) -> pd.DataFrame:
    """Tabulate the posterior of each region.

    Parameters
    ----------
    tree : DataTree
        From `fit`.
    diagnoses : mapping, optional
        From `diagnose`, where they are at hand.

    Returns
    -------
    DataFrame
        A row for each parameter of the signal (f, D, D_star), S0 and sigma of each region, with the columns
        of ``summary.tsv``: mean, median, standard deviation and 95 % highest-density interval of the region's
        value (of its median voxel), ``spread`` between the fitted voxels (posterior mean of half their
        central 68 % range, which is the standard deviation if they are normal), bulk and tail effective
        draws, R-hat and the region's verdict. D and D_star are in 10⁻³ mm²/s.
    """
    fit = FitView.of(tree)
    diagnoses = diagnose(fit) if diagnoses is None else diagnoses
    parameters = fit.posterior["parameter"].values
    names = {p: f"{p}_roi" for p in (*map(str, parameters), "S0")} | {"sigma": "sigma"}
    rows = []
    for roi in fit.regions:
        region = take_region(fit.posterior, roi)
        for parameter, name in names.items():
            values = region[name].isel(roi=0)
            if parameter == "S0" and values.max() == values.min():  # a mean curve has one S0, its own
                values = region["S0"].isel(voxel=0)
            rows.append(
                _row(roi, PARAMETERS[parameter], values, region) | {"verdict": diagnoses[roi].verdict}
            )
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _row(roi: str, parameter: Parameter, values: xr.DataArray, region: xr.Dataset) -> dict[str, object]:
    draws = np.asarray(values.transpose("chain", "draw").values, float)
    scale, spread = parameter.display_scale, np.nan
    if "voxel" in region[parameter.name].dims and region.sizes["voxel"] > 1:
        low, high = region[parameter.name].astype(float).quantile(NORMAL_SD, "voxel")
        spread = float((high - low).mean() / 2)
    low, high = az.hdi(draws.ravel(), prob=HDI)
    single = xr.Dataset({"value": (("chain", "draw"), draws)})
    return {
        "roi": roi, "parameter": parameter.name, "unit": parameter.display_unit,
        "mean": scale * draws.mean(), "median": scale * np.median(draws), "sd": scale * draws.std(ddof=1),
        "hdi_low": scale * low, "hdi_high": scale * high, "spread": scale * spread,
        "ess_bulk": float(az.ess(single, method="bulk")["value"]),
        "ess_tail": float(az.ess(single, method="tail")["value"]),
        "r_hat": float(az.rhat(single)["value"]),
    }  # fmt: skip


def compare_truth(table: pd.DataFrame, truth: xr.Dataset) -> pd.DataFrame:
    """Set true values beside the posterior.

    Parameters
    ----------
    table : DataFrame
        From `summarize`.
    truth : Dataset
        ``f_roi``, ``D_roi``, ``D_star_roi`` (roi), as `phantom` and `simulate` give them.

    Returns
    -------
    DataFrame
        ``roi``, ``parameter``, ``unit``, ``truth``, ``median``, ``hdi_low``, ``hdi_high`` and ``inside``.
    """
    rows = table[[p in PARAMETERS and f"{p}_roi" in truth for p in table["parameter"]]].copy()
    rows["truth"] = [
        PARAMETERS[p].display_scale * float(truth[f"{p}_roi"].sel(roi=r))
        for r, p in zip(rows["roi"], rows["parameter"], strict=True)
    ]
    rows["inside"] = (rows["hdi_low"] <= rows["truth"]) & (rows["truth"] <= rows["hdi_high"])
    columns = ["roi", "parameter", "unit", "truth", "median", "hdi_low", "hdi_high", "inside"]
    return rows[columns].reset_index(drop=True)
