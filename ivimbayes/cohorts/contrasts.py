"""From the fit of a study to tables: groups compared, and the scans given all others."""

import itertools
from collections.abc import Mapping
from contextlib import ExitStack
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from ivimbayes.cohorts.design import design_of
from ivimbayes.errors import InputError
from ivimbayes.io.atomic import replacing
from ivimbayes.io.netcdf import load_tree, write_tree
from ivimbayes.models.signals import PARAMETERS, SIGNALS
from ivimbayes.results.sessions import change_row

OWN = ("fit", "roi", "parameter", "unit", "alone", "mean", "median", "sd", "low", "high")  # of `scan_table`
CONTRASTS = (
    "roi", "parameter", "unit", "a", "b", "difference", "difference_low", "difference_high", "ratio",
    "ratio_low", "ratio_high", "p_greater",
)  # fmt: skip


def predict_cohort(cohort: xr.DataTree, at: Mapping[str, Any]) -> xr.Dataset:
    """Values of the middle subject of a group, or at a covariate's value.

    Parameters
    ----------
    cohort : DataTree
        From `fit_cohort`.
    at : mapping
        Level or number by column. Factors not named are averaged over their levels (on theta, each alike),
        covariates not named are at their mean.

    Returns
    -------
    Dataset
        The parameters (chain, draw, roi); D and D_star in mm²/s.

    Raises
    ------
    InputError
        If a column or a level is unknown.
    """
    plan = design_of(cohort)
    for name, value in at.items():
        if name not in plan.levels and name not in plan.moments:
            known = ", ".join([*plan.levels, *plan.moments]) or "none"
            raise InputError(f"{name}: not among the effects of the study; those are {known}")
        if name in plan.levels and str(value) not in plan.levels[name]:
            raise InputError(f"{name} {value!r}: no such level; they are {', '.join(plan.levels[name])}")
        if name in plan.moments and not isinstance(value, Real):
            raise InputError(f"{name} {value!r}: a covariate; give a number")
    cells = itertools.product(*([str(at[n])] if n in at else levels for n, levels in plan.levels.items()))
    table = pd.DataFrame(list(cells), columns=list(plan.levels))
    if table.empty:
        table = pd.DataFrame(index=[0])
    for name, (mean, _) in plan.moments.items():
        table[name] = at.get(name, mean)
    row = xr.DataArray(plan.rows(table).mean(axis=0), dims="effect")
    posterior = cohort["posterior"].to_dataset()
    theta = (posterior["coefficient"] * row).sum("effect")
    signal = SIGNALS[cohort.attrs["signal"]]
    values = signal.values(*(theta.sel(parameter=p, drop=True) for p in signal.parameters))
    return xr.Dataset(
        {p: v.assign_attrs(PARAMETERS[p].attrs) for p, v in zip(signal.parameters, values, strict=True)}
    )


def contrast(cohort: xr.DataTree, a: Mapping[str, Any], b: Mapping[str, Any]) -> pd.DataFrame:
    """Compare two groups, sessions or values of a covariate.

    Parameters
    ----------
    cohort : DataTree
        From `fit_cohort`.
    a, b : mapping
        As `predict_cohort` takes them, such as ``{"group": "patient"}`` and ``{"group": "control"}``.

    Returns
    -------
    DataFrame
        A row for each region and parameter: medians ``a`` and ``b``, median and 95 % HDI of the difference
        a − b and of the ratio a / b, and ``p_greater``, the probability that a is the larger; D and D_star
        in 10⁻³ mm²/s.

    Examples
    --------
    >>> import numpy as np, pandas as pd, xarray as xr
    >>> rng = np.random.default_rng(0)
    >>> group = np.repeat(["A", "B"], 15)
    >>> theta = np.array([-1.5, -6.8, -3.5]) + 0.1 * rng.standard_normal((30, 1, 3))
    >>> theta[15:, 0, 0] -= 0.5
    >>> dims = ("fit", "roi", "parameter")
    >>> estimates = xr.Dataset(
    ...     {
    ...         "mean": (dims, theta),
    ...         "covariance": ((*dims, "other"), np.tile(np.eye(3) * 0.01, (30, 1, 1, 1))),
    ...         "centre": (dims, np.tile([-2.2, -6.9, -4.0], (30, 1, 1))),
    ...         "width": (dims, np.tile([0.85, 0.6, 1.2], (30, 1, 1))),
    ...         "ess": (dims[:2], np.full((30, 1), 1000.0)),
    ...         "spread": (dims[1:], [[0.7, 0.4, 0.7]]),
    ...     },
    ...     coords={"roi": ["liver"], "parameter": ["f", "D", "D_star"]},
    ...     attrs={"signal": "biexponential"},
    ... )
    >>> from ivimbayes import fit_cohort
    >>> cohort = fit_cohort(estimates, pd.DataFrame({"group": group}), draws=300, chains=2)
    >>> table = contrast(cohort, {"group": "A"}, {"group": "B"}).set_index("parameter")
    >>> bool(table.loc["f", "p_greater"] > 0.99), bool(table.loc["D", "p_greater"] > 0.99)
    (True, False)
    """
    one, other = predict_cohort(cohort, a), predict_cohort(cohort, b)
    rows = []
    for roi in one["roi"].values.astype(str).tolist():
        for name in SIGNALS[cohort.attrs["signal"]].parameters:
            before, after = (d[name].sel(roi=roi).values.ravel() for d in (other, one))
            row = change_row(roi, name, before, after, None)
            row |= {"a": row["after"], "b": row["before"], "p_greater": row["p_increase"]}
            rows.append({key: row[key] for key in CONTRASTS})
    return pd.DataFrame(rows, columns=list(CONTRASTS))


def scan_table(cohort: xr.DataTree) -> pd.DataFrame:
    """Tabulate the scans of a study: what each fit said alone, and what it is given all others.

    Returns
    -------
    DataFrame
        A row for each scan, region and parameter: the columns of the design, ``alone`` (the value at the mean
        of the fit's own posterior of theta), and ``mean``, ``median``, ``sd``, ``low`` and ``high`` (central
        95 %) given the study. D and D_star in 10⁻³ mm²/s.
    """
    plan, signal = design_of(cohort), SIGNALS[cohort.attrs["signal"]]
    alone = signal.values(*np.moveaxis(cohort["constant_data"].to_dataset()["mean"].values, -1, 0))
    parts = []
    scans = cohort["scans"].to_dataset()
    for p, name in enumerate(signal.parameters):
        scale = PARAMETERS[name].display_scale
        draws = scans[name].transpose("chain", "draw", "fit", "roi")
        flat = scale * np.asarray(draws, float).reshape(-1, *draws.shape[2:])
        low, median, high = np.quantile(flat, [0.025, 0.5, 0.975], axis=0)
        for r, roi in enumerate(scans["roi"].values.astype(str).tolist()):
            part = plan.table.rename(columns={c: f"design_{c}" for c in OWN if c in plan.table}).assign(
                fit=np.arange(len(plan.table)), roi=roi, parameter=name,
                unit=PARAMETERS[name].display_unit, alone=scale * alone[p][:, r],
                mean=flat[..., r].mean(axis=0), median=median[:, r], sd=flat[..., r].std(axis=0),
                low=low[:, r], high=high[:, r],
            )  # fmt: skip
            parts.append(part[np.isfinite(part["mean"])])
    return pd.concat(parts, ignore_index=True)


def all_contrasts(cohort: xr.DataTree) -> pd.DataFrame:
    """Tabulate the effects of a study: each level of a factor beside its first, each covariate one sd up.

    Products of effects are averaged over here; `contrast` tells them apart.

    Returns
    -------
    DataFrame
        As `contrast` gives it, with ``effect`` in front, such as ``group: patient - control``.
    """
    plan, parts = design_of(cohort), []
    for name, levels in plan.levels.items():
        for level in levels[1:]:
            table = contrast(cohort, {name: level}, {name: levels[0]})
            parts.append((f"{name}: {level} - {levels[0]}", table))
    for name, (mean, sd) in plan.moments.items():
        table = contrast(cohort, {name: mean + sd}, {name: mean})
        parts.append((f"{name}: {mean + sd:.4g} - {mean:.4g}", table))
    for effect, table in parts:
        table.insert(0, "effect", effect)
    tables = [table for _, table in parts]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=["effect", *CONTRASTS])


def write_cohort(cohort: xr.DataTree, folder: str | Path, prefix: str = "") -> tuple[Path, Path, Path]:
    """Write the fit of a study: ``effects.tsv`` and ``scans.tsv``, its tables, and ``cohort.nc``.

    Parameters
    ----------
    cohort : DataTree
        From `fit_cohort`.
    folder : path
        There.
    prefix : str
        In front of the names of the files.

    Returns
    -------
    tuple of path
    """
    effects, scans, tree = (
        Path(folder) / f"{prefix}{name}" for name in ("effects.tsv", "scans.tsv", "cohort.nc")
    )
    with ExitStack() as all_or_none:  # the names are given when all three are written
        for table, path in ((all_contrasts(cohort), effects), (scan_table(cohort), scans)):
            unfinished = all_or_none.enter_context(replacing(path))
            table.to_csv(unfinished, sep="\t", index=False, float_format="%.6g", na_rep="n/a")
        write_tree(cohort, all_or_none.enter_context(replacing(tree)))
        for path in (effects, scans, tree):  # lest old and new be taken for one
            path.unlink(missing_ok=True)
    return effects, scans, tree


def read_cohort(path: str | Path) -> xr.DataTree:
    """Read the fit of a study that `write_cohort` wrote.

    Raises
    ------
    InputError
        If the file is missing or is none.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file; name the cohort.nc of ivimbayes cohort")
    loaded = load_tree(path, "run ivimbayes cohort again")
    design_of(loaded)
    return loaded
