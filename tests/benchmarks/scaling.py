"""Time of one region against its number of voxels, with the convergence of every value.

    .venv/bin/python tests/benchmarks/scaling.py

Liver prior and truth, 16 b values, SNR 30; four chains of 500 + 2000 transitions, all voxels fitted. ``before`` is
what comes before sampling, ``after`` the log-likelihood, predictive draws and S0.
"""

import time
import warnings

import arviz as az
import xarray as xr
from population import B, stopwatch

from ivimbayes import fit, simulate, tissue_prior
from ivimbayes.fitting.sampler import SamplerPool

HYPER = ["mu", "sd", "correlation", "sigma", "S0_roi", "S0_sd"]
VOXEL = ["f", "D", "D_star", "S0"]


def worst(posterior: xr.Dataset, names: list[str]) -> tuple[float, float]:
    """Largest R-hat and smallest bulk ESS."""
    values = posterior[names].astype(float)
    r_hat, ess = az.rhat(values), az.ess(values)
    return max(float(r_hat[n].max()) for n in names), min(float(ess[n].min()) for n in names)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    prior = tissue_prior("liver")
    scan, _ = simulate(B, 30, voxels=50, prior=prior, seed=1)
    fit(scan, tissue={"*": "liver"}, draws=50, tune=50, retry=False, progress=False)  # loads what is compiled
    print(
        "| voxels | before, s | sampling, s | after, s | ms a voxel | R-hat, region | R-hat, voxels | ESS, region | ESS, voxels |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for voxels in (50, 100, 200, 500, 1000, 2000, 5000):
        scan, _ = simulate(B, 30, voxels=voxels, prior=prior, seed=3)
        began = time.perf_counter()
        with stopwatch(SamplerPool, "run") as spans:
            tree = fit(
                scan,
                tissue={"*": "liver"},
                voxels_per_roi=None,
                draws=2000,
                retry=False,
                seed=1,
                progress=False,
            )
        total = time.perf_counter() - began
        first, last = min(s for s, _ in spans), max(e for _, e in spans)
        posterior = tree["posterior"].to_dataset()
        (r_hat, ess), (r_hat_voxel, ess_voxel) = worst(posterior, HYPER), worst(posterior, VOXEL)
        print(
            f"| {voxels} | {first - began:.1f} | {last - first:.1f} | {total - (last - began):.1f} | {1e3 * total / voxels:.0f} "
            f"| {r_hat:.4f} | {r_hat_voxel:.4f} | {ess:.0f} | {ess_voxel:.0f} |",
            flush=True,
        )
