"""Recovery and coverage of every signal model under every noise, over simulated regions.

    .venv/bin/python tests/benchmarks/recovery.py [--regions 200] [--signal NAME] [--noise NAME]

Truth is drawn from the generic prior, SNR 30, 20 voxels a region; the b values reach the low ones that two
vascular pools need and the high ones that kurtosis needs. Exact posteriors cover 95 % on average. Bias is the
mean, and error the root mean square, of the posterior mean less the truth in theta, over the posterior's standard
deviation: 0 and 1 if exact. A region's values of one parameter cover with a standard deviation of 1.5 points over
200 regions; those of all parameters together are the last columns.
"""

import argparse
import time

import arviz as az
import numpy as np
import xarray as xr

from ivimbayes import fit, simulate
from ivimbayes.models.noise import NOISES
from ivimbayes.models.signals import SIGNALS
from ivimbayes.models.spec import ModelSpec

B = (0, 0, 3, 6, 10, 15, 20, 40, 80, 110, 140, 200, 300, 400, 500, 700, 900, 1100)
VOXELS = 20


def covered(tree: xr.DataTree, truth: xr.Dataset, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Whether the 95 % HDI holds the truth, by region value and by voxel value."""
    posterior = tree["posterior"].to_dataset()
    inside = {}
    place = tuple(posterior[axis].values.astype(int) for axis in "xyz")
    for name in names:
        roi = az.hdi(posterior[f"{name}_roi"], prob=0.95)
        true = truth[f"{name}_roi"].sel(roi=posterior["roi"].values).values
        inside[f"{name}_roi"] = (roi.values[:, 0] <= true) & (true <= roi.values[:, 1])
        voxel = az.hdi(posterior[name].astype(float), prob=0.95).values
        inside[name] = (voxel[:, 0] <= truth[name].values[place]) & (truth[name].values[place] <= voxel[:, 1])
    return inside


def study(
    signal: str, noise: str, regions: int, seed: int, snr: float = 30, chains: int = 4
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Coverage by value, and the errors of region means in theta over the posterior's sd (roi, parameter)."""
    scan, truth = simulate(B, snr, voxels=VOXELS, regions=regions, signal=signal, noise=noise, seed=seed)
    options = {"draws": 1000, "tune": 500, "chains": chains, "retry": False, "progress": False}
    tree = fit(scan, ModelSpec(signal, noise), seed=seed, **options)
    model, posterior = SIGNALS[signal], tree["posterior"].to_dataset()
    theta = np.stack(model.theta(*(truth[f"{p}_roi"].values for p in model.parameters)), axis=-1)
    mu = posterior["mu"]
    error = (mu.mean(("chain", "draw")).values - theta) / mu.std(("chain", "draw")).values
    return covered(tree, truth, model.parameters), error


def main() -> None:
    """Print a row for each signal and noise."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--regions", type=int, default=200)
    parser.add_argument("--signal", choices=list(SIGNALS), action="append")
    parser.add_argument("--noise", choices=list(NOISES), action="append")
    given = parser.parse_args()
    print("| signal | noise | by parameter: region, voxels | bias | error | regions | voxels |")
    print("|---|---|---|---|---|---|---|")
    for signal in given.signal or SIGNALS:
        for noise in given.noise or NOISES:
            began = time.perf_counter()
            inside, error = study(signal, noise, given.regions, seed=1)
            names = SIGNALS[signal].parameters
            each = "; ".join(
                f"{n} {100 * inside[f'{n}_roi'].mean():.1f}, {100 * inside[n].mean():.1f}" for n in names
            )
            roi = np.mean([inside[f"{n}_roi"] for n in names])
            voxel = np.mean([inside[n] for n in names])
            bias = np.abs(error.mean(axis=0)).max()
            rms = np.sqrt((error**2).mean())
            print(
                f"| {signal} | {noise} | {each} | {bias:.2f} | {rms:.2f} | {100 * roi:.1f} | {100 * voxel:.1f} |",
                f"<!-- {time.perf_counter() - began:.0f} s -->",
                flush=True,
            )


if __name__ == "__main__":
    main()
