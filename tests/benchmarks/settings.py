"""Sampling spaces and sampler settings beside each other.

    .venv/bin/python tests/benchmarks/settings.py

Regions simulated from the priors of four tissues at SNR 10, 30 and 100 with 20, 100 and 500 voxels, one of 2 000, and
the four regions of the abdominal scan where it is (`IVIMBAYES_DATA` names its folder). For each alternative: the
geometric mean over regions of the worst hyperparameter's effective draws per second of sampling and per 100 000
gradients, regions with R-hat above 1.01, and divergent transitions.
"""

import os
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import arviz as az
import numpy as np
import nutpie
import xarray as xr
from population import TISSUES, B

from ivimbayes import ModelSpec, choose_voxels, read_scan, simulate, tissue_prior
from ivimbayes.fitting.density import compile_density
from ivimbayes.fitting.draws import split_draws
from ivimbayes.fitting.fit import prepare_regions
from ivimbayes.fitting.modes import PopulationMode, voxel_modes
from ivimbayes.fitting.packing import model_data, pack_region
from ivimbayes.fitting.plan import DEPTH, DRAWS, MANY_DEPTH, MANY_VOXELS, TARGET_ACCEPT, TUNE
from ivimbayes.fitting.sampler import sampler_model
from ivimbayes.fitting.starts import RegionTask, start_point
from ivimbayes.models.priors import assign_priors
from ivimbayes.progress import FitProgress

CHAINS, HYPER = 4, ("mu", "sd", "partial", "sigma", "S0_roi", "S0_sd")
DATA = Path(os.environ.get("IVIMBAYES_DATA", Path(__file__).parents[3] / "shared" / "data"))


def prepare(scan: xr.Dataset, tissue: str | None = None) -> list[RegionTask]:
    chosen = choose_voxels(scan, voxels_per_roi=None)
    priors = assign_priors(list(chosen), {"*": tissue} if tissue else None)
    with FitProgress(list(chosen), 1, False) as bars:
        return prepare_regions(chosen, ModelSpec(), priors, bars)


def regions() -> list[RegionTask]:
    tasks = []
    for snr in (10, 30, 100):
        for voxels in (20, 100, 500):
            for seed, tissue in enumerate(TISSUES):
                scan, _ = simulate(B, snr, voxels=voxels, prior=tissue_prior(tissue), seed=seed)
                tasks += prepare(scan.assign_attrs(real_valued=1), tissue)
    scan, _ = simulate(B, 30, voxels=2000, prior=tissue_prior("liver"), seed=9)
    tasks += prepare(scan, "liver")
    if (folder := DATA / "abdomen_v1").is_dir():
        tasks += prepare(read_scan(folder / "dwi_T100_bip.nii.gz", rois=folder / "labels.nii.gz"))
    else:
        print("no real scan: set IVIMBAYES_DATA")
    return tasks


def laid(task: RegionTask, population: PopulationMode) -> RegionTask:
    """Return the region with its sampling space laid around another approximation."""
    data = model_data(task.voxels, task.spec, population, task.scale)
    return replace(task, block=pack_region(data, task.spec))


def scaled(task: RegionTask, factor: float) -> RegionTask:
    best = task.starts[0]
    return laid(task, replace(best, precision=factor * best.precision, shift=factor * best.shift))


def diagonal(task: RegionTask) -> RegionTask:
    """Partial centring of each parameter by itself: no correlation in the approximation."""
    best = task.starts[0]
    kept = np.eye(3) * best.precision
    centre = np.linalg.solve(best.precision + 1e-9 * np.eye(3), best.shift[..., None])[..., 0]
    return laid(task, replace(best, precision=kept, shift=np.einsum("vpq,vq->vp", kept, centre)))


def at_prior(task: RegionTask) -> RegionTask:
    """Linearise at each voxel's mode under the region's prior instead of the estimated population."""
    best, prior, voxels = task.starts[0], task.spec.prior, task.voxels
    inverse = np.diag(1 / prior.theta_width**2)
    theta, precision, _, _ = voxel_modes(
        voxels["signal"].values / task.scale, voxels["averages"].values, voxels["b"].values,
        best.sigma, prior.theta_centre, np.diag(prior.theta_width**2),
    )  # fmt: skip
    shift = np.einsum("vpq,vq->vp", precision, theta) + (theta - prior.theta_centre) @ inverse
    return laid(task, replace(best, precision=precision, shift=shift))


def measure(task: RegionTask, **options: object) -> tuple[float, float, int, float, int]:
    """Worst ESS, seconds, gradients, R-hat and divergences."""
    many = len(task.starts[0].S0) >= MANY_VOXELS
    depth = MANY_DEPTH if many else DEPTH
    options = {"tune": TUNE, "target_accept": 0.8, "maxdepth": depth, **options}

    def chain(c: int) -> xr.DataTree:
        seed = np.random.SeedSequence([0, c])
        start = start_point(task, c, np.random.default_rng(seed))
        return nutpie.sample(
            sampler_model(task.block, start), chains=1, cores=1, draws=DRAWS,
            seed=int(seed.generate_state(1)[0]), progress_bar=False, save_warmup=True, **options,
        )  # fmt: skip

    began = time.perf_counter()
    with ThreadPoolExecutor(2) as pool:
        chains = list(pool.map(chain, range(CHAINS)))
    took = time.perf_counter() - began
    x = np.stack([c["posterior"].to_dataset()["x"].values[0] for c in chains])
    drawn = split_draws(x, task.block)
    hyper = xr.Dataset(
        {n: (("chain", "draw", *[f"{n}_{i}" for i in range(drawn[n].ndim - 2)]), drawn[n]) for n in HYPER}
    )
    stats = [c[group].to_dataset() for c in chains for group in ("warmup_sample_stats", "sample_stats")]
    return (
        min(float(v.min()) for v in az.ess(hyper).data_vars.values()),
        took,
        sum(int(s["n_steps"].sum()) for s in stats),
        max(float(v.max()) for v in az.rhat(hyper).data_vars.values()),
        sum(int(s["diverging"].sum()) for s in stats[1::2]),
    )


def main() -> None:
    warnings.simplefilter("ignore")
    compile_density("gaussian", False)
    tasks = regions()
    alternatives = {
        "as it is, acceptance 0.85": ({"target_accept": TARGET_ACCEPT}, None),
        "acceptance 0.8, as in all that follow": ({}, None),
        "non-centred (no data in the space)": ({}, lambda t: scaled(t, 0.0)),
        "precision of the data halved": ({}, lambda t: scaled(t, 0.5)),
        "each parameter by itself": ({}, diagonal),
        "linearised at the mode under the prior": ({}, at_prior),
        "acceptance 0.7": ({"target_accept": 0.7}, None),
        "acceptance 0.9": ({"target_accept": 0.9}, None),
        "300 tuning draws": ({"tune": 300}, None),
        "1000 tuning draws": ({"tune": 1000}, None),
        "mass matrix from draws alone": ({"adaptation": "draw_diag"}, None),
        "at most 15 steps": ({"maxdepth": 4}, None),
        "at most 7 steps": ({"maxdepth": 3}, None),
    }
    print(f"{len(tasks)} regions\n")
    print("| alternative | ESS per s | ESS per 1e5 gradients | R-hat > 1.01 | divergent |")
    print("|---|---|---|---|---|")
    for name, (options, change) in alternatives.items():
        found = [measure(change(task) if change else task, **options) for task in tasks]
        ess, took, gradients, r_hat, divergent = (np.array(column) for column in zip(*found, strict=True))
        print(
            f"| {name} | {np.exp(np.log(ess / took).mean()):.0f} | {np.exp(np.log(1e5 * ess / gradients).mean()):.0f} "
            f"| {(r_hat > 1.01).sum()} | {divergent.sum()} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
