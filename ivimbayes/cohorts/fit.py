"""A level above regions: the fits of a study in one model of subjects, sessions, groups and covariates."""

import json
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version

import numpy as np
import pandas as pd
import xarray as xr

from ivimbayes.cohorts.adaptive import K_GOOD, draw_density
from ivimbayes.cohorts.density import Data, Density, draw_means, marginal
from ivimbayes.cohorts.design import Design, read_design
from ivimbayes.cohorts.estimates import Fit, gaussian_likelihood, region_estimates
from ivimbayes.errors import InputError, InputWarning
from ivimbayes.fitting.convergence import ESS
from ivimbayes.models.correlation import correlations, pairs
from ivimbayes.models.signals import PARAMETERS, SIGNALS
from ivimbayes.parallel import count_cores

MEAN_DRAWS = 2_000_000  # of scans' values, per region and parameter, at most


def fit_cohort(
    fits: Sequence[Fit] | xr.Dataset,
    design: pd.DataFrame,
    *,
    effects: Sequence[str] | None = None,
    draws: int = 1000,
    chains: int = 4,
    seed: int = 0,
    cores: int | None = None,
) -> xr.DataTree:
    """Fit the level above regions to the fits of a study.

    Parameters
    ----------
    fits : sequence of DataTree or path, or Dataset
        One for each scan, as `region_estimates` takes them, or what it returned.
    design : DataFrame
        A row for each fit, in their order: ``subject`` (each scan its own where it is not given), and columns
        such as session, group or age. Columns of more than two different numbers are covariates, taken linear
        over their standard deviation; all others are factors.
    effects : sequence of str, optional
        Columns to take, and products of them such as ``"group:session"``; every column but ``subject`` when
        not given.
    draws, chains : int
        Draws kept of each chain, and chains.
    seed : int
    cores : int, optional
        Regions at a time; all cores when not given.

    Returns
    -------
    DataTree
        In ``posterior``: ``coefficient`` (chain, draw, roi, parameter, effect) on theta, ``between_sd``
        (…, roi, parameter) and ``between_correlation`` (…, roi, pair) of subjects, ``within_sd`` of the
        sessions of a subject, 0 where none has two. In ``scans``, of fewer draws: the parameters of each scan
        (chain, draw, roi, fit), such as ``f``, drawn towards those of its like; D and D_star in mm²/s.
        `contrast` and `scan_table` read it.

    Raises
    ------
    InputError
        If the design does not fit, or no effect can be made of it.

    Notes
    -----
    Of scan i of subject s, the region's mean theta (logit f, ln D, ln(D* − D)) is B' x_i + u_s + e_i with
    u_s ~ Normal(0, T) and e_i ~ Normal(0, diag(omega²)). The intercept has the tissue's prior; every level of
    a factor, and the slope of a covariate per standard deviation, is Normal about 0 with the tissue's spread
    between voxels as standard deviation. Standard deviations in T are half-normal with that scale, those in
    omega with half of it; correlations in T are LKJ(2). What a fit knows of its region is its posterior over
    its prior, both taken to be normal. Regions share nothing.
    """
    check_options(draws, chains, seed, cores)
    estimates = fits if isinstance(fits, xr.Dataset) else region_estimates(fits)
    if absent := {"mean", "covariance", "ess", "centre", "width", "spread"} - set(estimates.data_vars):
        raise InputError(f"fits: a Dataset without {sorted(absent)[0]}; give one from region_estimates")
    plan = read_design(design, estimates.sizes["fit"], effects)
    names = estimates["roi"].values.astype(str).tolist()

    def one(r: int) -> dict[str, np.ndarray]:
        return _fit_region(estimates.isel(roi=r), plan, draws, chains, [seed, r])

    with ThreadPoolExecutor(cores or count_cores()) as pool:
        found = list(pool.map(one, range(len(names))))
    tree = as_cohort(found, estimates, plan, seed)
    _warn(tree)
    return tree


def as_cohort(
    found: Sequence[Mapping[str, np.ndarray]], estimates: xr.Dataset, plan: Design, seed: int
) -> xr.DataTree:
    """Put the draws of each region together, as `fit_cohort` returns them."""
    signal, names = SIGNALS[estimates.attrs["signal"]], estimates["roi"].values.astype(str).tolist()
    chains, draws = found[0]["coefficient"].shape[:2]
    parameters, pair = list(signal.parameters), [
        f"{signal.parameters[i]}:{signal.parameters[j]}" for i, j in pairs(len(signal.parameters))
    ]  # fmt: skip
    dims = {
        "coefficient": ("parameter", "effect"), "between_sd": ("parameter",),
        "between_correlation": ("pair",), "within_sd": ("parameter",),
    }  # fmt: skip
    stacked = {
        name: (("chain", "draw", "roi", *own), np.stack([f[name] for f in found], axis=2))
        for name, own in dims.items()
    }
    kept = np.linspace(0, draws - 1, found[0]["scans"].shape[1]).astype(int)
    values = signal.values(*np.moveaxis(np.stack([f["scans"] for f in found], axis=2), -1, 0))
    coords = {"chain": np.arange(chains), "roi": names}
    tree = xr.DataTree.from_dict(
        {
            "posterior": xr.Dataset(
                stacked,
                coords
                | {"draw": np.arange(draws), "parameter": parameters, "pair": pair}
                | {"effect": plan.columns},
            ),
            "scans": xr.Dataset(
                {
                    name: (("chain", "draw", "roi", "fit"), v.astype(np.float32), PARAMETERS[name].attrs)
                    for name, v in zip(parameters, values, strict=True)
                },
                coords | {"draw": kept},
            ),
            "constant_data": xr.Dataset(
                {
                    **estimates.data_vars,
                    "effective_draws": ("roi", [float(f["ess"]) for f in found]),
                    "pareto_k": ("roi", [float(f["pareto_k"]) for f in found]),
                },
                {"roi": names, "parameter": parameters},
            ),
        }
    )
    tree.attrs = {
        "signal": estimates.attrs["signal"], "seed": seed,
        "design": plan.table.to_json(orient="columns"),
        "effects": json.dumps(plan.effects), "levels": json.dumps(plan.levels),
        "moments": json.dumps(plan.moments), "versions": json.dumps({"ivimbayes": version("ivimbayes")}),
    }  # fmt: skip
    return tree


def _warn(tree: xr.DataTree) -> None:
    constant = tree["constant_data"].to_dataset()
    for roi in constant["roi"].values:
        of = constant.sel(roi=roi)
        if float(of["pareto_k"]) > K_GOOD or float(of["effective_draws"]) < ESS:
            warnings.warn(
                f"region {str(roi)!r}: {float(of['effective_draws']):.0f} effective draws, Pareto k "
                f"{float(of['pareto_k']):.2f}; give more draws, fewer effects or more subjects",
                InputWarning,
                stacklevel=3,
            )


def check_options(draws: int, chains: int, seed: int, cores: int | None) -> None:
    """Refuse options out of range."""
    for name, value, least in (
        ("draws", draws, 50),
        ("chains", chains, 1),
        ("seed", seed, 0),
        ("cores", cores, 1),
    ):
        if value is not None and value < least:
            raise InputError(f"{name} {value}; give {least} or more")


def region_data(
    estimates: xr.Dataset, plan: Design
) -> tuple[Data, np.ndarray, np.ndarray, np.ndarray, bool, np.ndarray]:
    """Give what `Density` takes of one region, and the places of its scans."""
    there = estimates["mean"].notnull().all("parameter").to_numpy()
    subjects = plan.table["subject"].to_numpy()
    order = np.argsort(subjects, kind="stable")
    order = order[there[order]]
    if not len(order):
        raise InputError(f"region {str(estimates['roi'].item())!r}: in none of the fits")
    start = np.append(
        np.flatnonzero(np.append(True, subjects[order][1:] != subjects[order][:-1])), len(order)
    )
    mean, covariance, ess, centre, width = (
        estimates[n].to_numpy()[order] for n in ("mean", "covariance", "ess", "centre", "width")
    )
    Lambda, eta = gaussian_likelihood(mean, covariance, ess, centre, width)
    x, spread = plan.rows(plan.table.iloc[order]), estimates["spread"].to_numpy()
    repeated = bool((np.diff(start) > 1).any())
    return (Lambda, eta, x, start), centre[0], width[0], spread, repeated, order


def _fit_region(
    estimates: xr.Dataset, plan: Design, draws: int, chains: int, seed: list[int]
) -> dict[str, np.ndarray]:
    """Draw the hyperparameters of one region, then effects and scans given them."""
    data, centre, width, spread, repeated, order = region_data(estimates, plan)
    density = Density(data, centre, width, spread, repeated)
    drawn = draw_density(density, density.start, draws=draws, chains=chains, seed=seed)
    return {
        **_complete(density, drawn.x, order, len(plan.table), np.random.default_rng([*seed, 1])),
        "ess": np.array(drawn.ess), "pareto_k": np.array(drawn.pareto_k),
    }  # fmt: skip


def _complete(
    density: Density, x: np.ndarray, order: np.ndarray, scans: int, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Draw effects and the scans' mean theta given draws (chain, draw, ...) of the hyperparameters."""
    chains, draws, P = *x.shape[:2], density.P
    q = len(density.mean) // P
    keep = min(draws, max(25, MEAN_DRAWS // (chains * scans)))
    kept = np.linspace(0, draws - 1, keep).astype(int)
    at = {int(d): n for n, d in enumerate(kept)}
    subjects = len(density.data[3]) - 1
    sd, within = np.empty((chains, draws, P)), np.empty((chains, draws, P))
    partial = np.empty((chains, draws, len(density.shapes)))
    coefficient = np.empty((chains, draws, P, q))
    theta = np.full((chains, keep, scans, P), np.nan)
    out = np.empty((len(order), P))
    for c, d in np.ndindex(chains, draws):
        sd[c, d], partial[c, d], F, within[c, d] = density.split(x[c, d])
        _, mean, factor = marginal(F, within[c, d], density.data, density.mean, density.precision)
        beta = mean + np.linalg.solve(factor.T, rng.standard_normal(P * q))
        coefficient[c, d] = beta.reshape(P, q)
        if d in at:
            normal = rng.standard_normal((len(order) + subjects, P))
            draw_means(F, within[c, d], *density.data, coefficient[c, d], normal, out)
            theta[c, at[d], order] = out
    return {
        "coefficient": coefficient, "between_sd": sd, "between_correlation": correlations(partial, P),
        "within_sd": within, "scans": theta,
    }  # fmt: skip
