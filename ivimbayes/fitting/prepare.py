"""A region made ready to sample: its starting points, and the space it is sampled in."""

from dataclasses import replace
from typing import Any

import numpy as np
import nutpie
import xarray as xr

from ivimbayes.fitting.draws import split_draws
from ivimbayes.fitting.mixture import find_mixture_starts
from ivimbayes.fitting.modes import PopulationMode, population_mode
from ivimbayes.fitting.packing import hyperparameter_count, model_data, pack_region
from ivimbayes.fitting.sampler import sampler_model
from ivimbayes.fitting.starts import RegionTask, population_starts, start_point
from ivimbayes.models.correlation import correlations, covariance
from ivimbayes.models.spec import ModelSpec

PILOT_VOXELS, PILOT_TUNE, PILOT_DRAWS, PILOT_CHAINS, PILOT_DEPTH = 64, 300, 150, 2, 6
FIRST_IMAGE_SD, SHRINKAGE = 0.02, 0.1  # start of the image effects' sd; of the pilot's correlations


def prepare_region(name: str, voxels: xr.Dataset, spec: ModelSpec, scale: float) -> RegionTask:
    """Find the modes of a region, whose signals are divided by `scale`, and pack its data.

    With image effects, which the modes do not know, the space is laid about the mean of a short pilot run on
    some of the voxels, and chains start from its draws.
    """
    starts = population_starts(voxels, spec, scale)
    pooled = voxels.attrs["level"] == "voxel"
    mixed = spec.population == "mixture" and pooled
    seconds = find_mixture_starts(starts[0], spec) if mixed else ()
    pilot, stretched = None, None
    if spec.image_effects and pooled:
        mode, pilot = _pilot(name, voxels, spec, scale, seconds)
        starts, C = (mode,), np.cov(pilot.T)
        C = (1 - SHRINKAGE) * C + SHRINKAGE * np.diag(np.diag(C))
        stretched = pilot.mean(axis=0), np.linalg.cholesky(C)
    block = pack_region(model_data(voxels, spec, starts[0], scale), spec, voxels.attrs["level"], stretched)
    return RegionTask(name, voxels, spec, scale, starts, block, seconds, pilot)


def _pilot(
    name: str, voxels: xr.Dataset, spec: ModelSpec, scale: float, seconds: tuple[Any, ...]
) -> tuple[PopulationMode, np.ndarray]:
    """Sample some voxels for a short time: a mode of all voxels about the means, and draws."""
    part = np.unique(np.linspace(0, voxels.sizes["voxel"] - 1, PILOT_VOXELS).astype(int))
    few, prior = voxels.isel(voxel=part), spec.prior.theta(spec.signal)
    spread = np.diag(prior.spread**2)
    loose = _known(few, spec, scale, (prior.centre, np.diag(prior.width**2) + spread), None)
    loose = replace(loose, mean=loose.theta.mean(axis=0), covariance=spread)
    block = pack_region(model_data(few, spec, loose, scale), spec)
    H, rng = hyperparameter_count(block), np.random.default_rng([len(part), int(voxels.attrs["label"])])
    task = RegionTask(name, few, replace(spec, image_effects=False), scale, (loose,), block, seconds)
    parts = []
    for chain in range(PILOT_CHAINS):
        start = start_point(task, chain, rng)
        of_images = 0.5 * rng.standard_normal(len(loose.effects))
        ln_sd = np.log(FIRST_IMAGE_SD) + 0.3 * rng.standard_normal()
        start = np.concatenate([start[: H - 1], [ln_sd], start[H - 1 :], of_images])
        drawn = nutpie.sample(
            sampler_model(block, start), chains=1, cores=1, draws=PILOT_DRAWS, tune=PILOT_TUNE,
            maxdepth=PILOT_DEPTH, seed=int(rng.integers(2**31)), progress_bar=False, save_warmup=False,
        )  # fmt: skip
        parts.append(drawn["posterior"].to_dataset()["x"].values[0])
    x = np.concatenate(parts)
    drawn = split_draws(x, block)
    partial = np.tanh(np.arctanh(np.clip(drawn["partial"], -0.999, 0.999)).mean(axis=0))
    Sigma = covariance(np.exp(np.log(drawn["sd"]).mean(axis=0)), correlations(partial, len(prior.centre)))
    known = drawn["mu"].mean(axis=0), Sigma
    return _known(voxels, spec, scale, known, drawn["image_effect"].mean(axis=0)), x[:, :H]


def _known(
    voxels: xr.Dataset,
    spec: ModelSpec,
    scale: float,
    population: tuple[np.ndarray, np.ndarray],
    effects: np.ndarray | None,
) -> PopulationMode:
    """Modes of voxels whose population is known."""
    return population_mode(
        voxels["signal"].values / scale, voxels["averages"].values, voxels["b"].values, spec.prior, None,
        spec.signal, spec.noise, population, effects,
    )  # fmt: skip
