"""What was done in a run, in words for a paper, with the numbers of that run."""

import numpy as np
import pandas as pd
import xarray as xr

from ivimbayes.maps.files import describe_maps
from ivimbayes.models.noise import NOISES
from ivimbayes.results.stored import FitView


def describe_methods(
    tree: xr.DataTree | FitView, table: pd.DataFrame, maps: xr.Dataset | None = None
) -> list[str]:
    """Say how a fit was made, in paragraphs.

    Parameters
    ----------
    tree : DataTree
        From `fit`.
    table : DataFrame
        From `summarize`.
    maps : Dataset, optional
        From `posterior_maps`, if they are to be spoken of.

    Returns
    -------
    list of str
        Data; model; priors; sampling and its convergence; maps.
    """
    fit = FitView.of(tree)
    paragraphs = [_data(fit), _model(fit), _priors(fit), _sampling(fit, table)]
    return paragraphs if maps is None else [*paragraphs, _maps(maps)]


def _data(fit: FitView) -> str:
    distinct, images = np.unique(fit.b, return_counts=True)
    values = ", ".join(
        f"{v:g}" + (f" ({n} images)" if n > 1 else "") for v, n in zip(distinct, images, strict=True)
    )
    regions = []
    for roi in fit.regions:
        fitted, available = len(fit.voxels(roi)), int(fit.record(roi)["available"])
        if fit.level(roi) == "mean":
            regions.append(f"{roi} (mean curve of {available} voxels)")
        else:
            share = f"{fitted} voxels" if fitted == available else f"{fitted} of {available} voxels"
            regions.append(f"{roi} ({share})")
    return (
        f"Diffusion-weighted images at b = {values} s/mm² were analysed in "
        f"{len(regions)} region{'s' if len(regions) > 1 else ''} of interest: {'; '.join(regions)}."
    )


def _model(fit: FitView) -> str:
    spec, signal = fit.spec, fit.signal
    noise = f"{NOISES[spec.noise].long_name} noise"
    noise += " with S0 integrated out" if NOISES[spec.noise].marginal else " with S0 of each voxel sampled"
    population = {
        "normal": "normally distributed",
        "student_t": f"Student-t distributed ({spec.nu:g} degrees of freedom)",
        "mixture": "distributed as a mixture of two normals of one covariance, the larger of which lies",
    }[spec.population]
    links = ", ".join(signal.links)
    return (
        f"The {signal.long_name} model {signal.equation} was fitted with {noise} to all voxels of a "
        f"region together, in a hierarchical Bayesian model: {links} of the voxels are {population} around "
        "the region's value, with a covariance that is estimated. Values reported for a region are those of "
        "its median voxel."
    )


def _priors(fit: FitView) -> str:
    tissues = "; ".join(f"{roi}: {prior.name}" for roi, prior in fit.priors.items())
    return (
        "The prior of a region's value is normal in these terms, with centre and width from published values "
        f"of its tissue ({tissues}); that of the standard deviation between voxels is half-normal, that of "
        f"their correlations LKJ({fit.spec.eta:g})."
    )


def _sampling(fit: FitView, table: pd.DataFrame) -> str:
    settings = fit.settings
    divergent, transitions = (int(fit.constant[name].sum()) for name in ("divergences", "transitions"))
    worst = table.loc[~table["parameter"].isin(["S0"])]
    software = ", ".join(f"{name} {number}" for name, number in fit.versions.items())
    return (
        f"The posterior was sampled by the No-U-Turn sampler: {settings['chains']} chains of "
        f"{settings['tune']} warm-up and {settings['draws']} kept transitions per region, and more where a "
        f"region had not converged (seed {int(fit.tree.attrs['seed'])}; {software}). R-hat of the reported "
        f"values is at most {worst['r_hat'].max():.3f}, their effective number of draws at least "
        f"{worst[['ess_bulk', 'ess_tail']].min(axis=None):.0f}; {divergent} of {transitions} transitions "
        "diverged. Values are posterior medians with 95 % highest-density intervals."
    )


def _maps(maps: xr.Dataset) -> str:
    attrs = maps.attrs
    return (
        "The posterior of each voxel given its region's population was calculated by importance sampling "
        f"with {int(attrs['draws'])} quasi-random draws around its mode, eight times as many where these "
        f"did not suffice; intervals hold {100 * float(attrs['interval']):g} %. The maps hold "
        f"{describe_maps(maps)}."
    )
