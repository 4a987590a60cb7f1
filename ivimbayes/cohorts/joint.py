"""All voxels of a study in one model, for small studies: what the level above regions is checked against."""

from collections.abc import Sequence

import arviz as az
import numpy as np
import nutpie
import pandas as pd
import xarray as xr

from ivimbayes.cohorts.density import Density
from ivimbayes.cohorts.design import read_design
from ivimbayes.cohorts.estimates import region_estimates
from ivimbayes.cohorts.fit import as_cohort, check_options, region_data
from ivimbayes.errors import InputError
from ivimbayes.fitting.packing import model_data
from ivimbayes.fitting.prepare import prepare_region
from ivimbayes.models.correlation import correlations
from ivimbayes.models.pymc_model import build_joint_model
from ivimbayes.models.spec import refuse_image_effects, sigma_scale, signal_scale
from ivimbayes.results.stored import FitView

TUNE, ACCEPT = 1000, 0.9


def fit_joint(
    fits: Sequence[xr.DataTree],
    design: pd.DataFrame,
    *,
    effects: Sequence[str] | None = None,
    draws: int = 1000,
    chains: int = 4,
    seed: int = 0,
    cores: int | None = None,
    progress: bool = True,
) -> xr.DataTree:
    """Sample all voxels of all scans of a small study in one model, by NUTS.

    `fit_cohort` does the same in two stages, in a fraction of the time; this is the model it approximates.

    Parameters
    ----------
    fits : sequence of DataTree
        From `fit`, with Gaussian noise and a normal population; their voxels, not their draws, are used.
    design, effects
        As `fit_cohort` takes them.
    draws, chains : int
        Draws kept of each chain, and chains.
    seed : int
    cores : int, optional
        Chains at a time; all cores when not given.
    progress : bool
        Show a bar of the chains.

    Returns
    -------
    DataTree
        As `fit_cohort` returns it, with ``effective_draws`` the smallest of the effects; its chains are not
        judged.

    Raises
    ------
    InputError
        If the design does not fit, or the fits are of another noise or population.
    """
    views = [_checked(tree, n) for n, tree in enumerate(fits)]
    check_options(draws, chains, seed, cores)
    estimates = region_estimates(fits)
    plan = read_design(design, len(fits), effects)
    found = []
    for r, roi in enumerate(estimates["roi"].values.astype(str)):
        data, centre, width, spread, repeated, order = region_data(estimates.isel(roi=r), plan)
        density = Density(data, centre, width, spread, repeated)
        arrays = _voxels([views[n] for n in order], roi)
        P, q = density.P, data[2].shape[1]
        scale = density.scale
        subject = np.repeat(np.arange(len(data[3]) - 1), np.diff(data[3]))
        arrays |= {
            "x": data[2], "subject": subject, "mean": density.mean.reshape(P, q),
            "width": (1 / np.sqrt(density.precision)).reshape(P, q), "between": scale[:P],
            "within": scale[P:],
            "shapes": density.shapes, "spread": np.tile(spread, (len(order), 1)), "scan_Lambda": data[0],
            "scan_eta": data[1],
        }  # fmt: skip
        model = build_joint_model(arrays, views[-1].spec, repeated)
        compiled = nutpie.compile_pymc_model(model)
        tree = nutpie.sample(
            compiled, draws=draws, tune=TUNE, chains=chains, cores=cores, seed=seed, target_accept=ACCEPT,
            progress_bar=progress,
        )  # fmt: skip
        found.append(_collect(tree["posterior"].to_dataset(), order, len(fits), P))
    return as_cohort(found, estimates, plan, seed)


def _checked(tree: xr.DataTree, place: int) -> FitView:
    """View of a fit whose voxels the joint model takes; others are refused."""
    if not isinstance(tree, xr.DataTree) or "spec" not in tree.attrs:
        raise InputError(f"fits[{place}]: not a fit; give trees from fit, or from read_tree")
    fit = FitView.of(tree)
    if (fit.constant["level"] != "voxel").any():
        raise InputError(f"fits[{place}]: of a mean curve; the joint model takes voxels (--level voxel)")
    if len(fit.signal.parameters) < 2:
        raise InputError(
            f"fits[{place}]: of the {fit.spec.signal} signal; the joint model takes two parameters or more"
        )
    refuse_image_effects(fit.spec, f"fits[{place}]: the joint model")
    if fit.spec.noise != "gaussian" or fit.spec.population != "normal":
        raise InputError(
            f"fits[{place}]: of {fit.spec.noise} noise and a {fit.spec.population} population; "
            "the joint model takes gaussian noise and a normal population"
        )
    return fit


def _voxels(fits: Sequence[FitView], roi: str) -> dict[str, np.ndarray]:
    """Arrays of the voxels of one region of all scans, each scan over its own scale."""
    parts, scans, sigma = [], [], []
    for n, fit in enumerate(fits):
        mine = fit.voxels(roi)
        voxels = xr.Dataset(
            {
                "signal": fit.observed["signal"].transpose("voxel", "measurement")[mine],
                "averages": fit.constant["averages"].transpose("voxel", "measurement")[mine],
                "b": fit.constant["b"],
            },
            attrs={"level": "voxel", "label": 1},
        ).drop_vars(["roi"], errors="ignore")
        scale = signal_scale(voxels["signal"].values)
        task = prepare_region(roi, voxels, fit.spec, scale)
        parts.append(model_data(voxels, fit.spec, task.starts[0], scale))
        scans.append(np.full(len(parts[-1]["observed"]), n))
        sigma.append(sigma_scale(parts[-1]["averages"]))
    if any(not np.array_equal(part["b"], parts[0]["b"]) for part in parts):
        raise InputError(
            f"region {roi!r}: the scans have different b values; the joint model takes one protocol"
        )
    stacked = {
        key: np.concatenate([part[key] for part in parts])
        for key in ("observed", "averages", "Lambda", "eta")
    }
    return {**stacked, "b": parts[0]["b"], "scan": np.concatenate(scans), "sigma_scale": np.array(sigma)}


def _collect(posterior: xr.Dataset, order: np.ndarray, scans: int, P: int) -> dict[str, np.ndarray]:
    mu = posterior["mu"].transpose("chain", "draw", "scan", "parameter").values
    theta = np.full((*mu.shape[:2], scans, P), np.nan)
    theta[:, :, order] = mu
    sd = posterior["between_sd"].values
    return {
        "coefficient": posterior["coefficient"].transpose(..., "parameter", "effect").values,
        "between_sd": sd, "between_correlation": correlations(2 * posterior["between_partial"].values - 1, P),
        "within_sd": posterior["within_sd"].values if "within_sd" in posterior else np.zeros_like(sd),
        "scans": theta, "ess": np.array(float(az.ess(posterior[["coefficient"]])["coefficient"].min())),
        "pareto_k": np.array(np.nan),
    }  # fmt: skip
