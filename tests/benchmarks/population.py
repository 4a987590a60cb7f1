"""Population fits beside the model a PyMC user would write by hand, and beside ivimfit.

    .venv/bin/pip install -e '.[bench]' && .venv/bin/python tests/benchmarks/population.py

Four regions of 100 voxels (liver, kidney, pancreas, spleen, each drawn from its prior), 16 b values, SNR 30, five
seeds. The package and (a) the hand-written model see the same voxels and have the same priors; (b) ivimfit fits
some of the voxels, one at a time. All run in this process, one after the other, after a first run that fills the
compile caches. A machine with other work on it gives other ratios.
"""

import argparse
import platform
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

import arviz as az
import numpy as np
import pymc as pm
import pytensor.tensor as pt
import xarray as xr

from ivimbayes import choose_voxels, fit, simulate, tissue_prior
from ivimbayes.fitting.sampler import SamplerPool
from ivimbayes.models.spec import S0_MEAN, S0_MEAN_SD, S0_SD, SIGMA_SCALE

B = (0, 0, 10, 20, 40, 80, 110, 140, 170, 200, 300, 400, 500, 600, 700, 800)
TISSUES = ("liver", "kidney", "pancreas", "spleen")
VOXELS, SNR = 100, 30
HYPER = ("mu", "sd", "correlation", "sigma", "S0_roi", "S0_sd")
VOXEL = ("f", "D", "D_star", "S0")


def scan_of(seed: int) -> xr.Dataset:
    """Four regions side by side along y, named by tissue."""
    parts = []
    for n, tissue in enumerate(TISSUES):
        part, _ = simulate(B, SNR, voxels=VOXELS, prior=tissue_prior(tissue), seed=100 * seed + n)
        parts.append(part.assign(roi=part["roi"] * (n + 1)))
    attrs = parts[0].attrs | {
        "roi_names": str({str(n + 1): t for n, t in enumerate(TISSUES)}).replace("'", '"')
    }
    joined = xr.concat(parts, "y", data_vars="minimal", coords="minimal", compat="override", join="override")
    return joined.assign_coords(y=np.arange(len(TISSUES))).assign_attrs(attrs)


def by_hand(scan: xr.Dataset) -> pm.Model:
    """Write the model plainly: S0 sampled, voxels non-centred, correlation by LKJ, regions in one model."""
    chosen = choose_voxels(scan, voxels_per_roi=None)
    priors = [tissue_prior(name) for name in chosen]
    scale = np.array([np.median(v["signal"].values.max(axis=1)) for v in chosen.values()])
    signal = np.concatenate([v["signal"].values / s for v, s in zip(chosen.values(), scale, strict=True)])
    roi = np.repeat(np.arange(len(chosen)), VOXELS)
    b = np.array(B, float)
    coords = {"roi": list(chosen), "parameter": ["f", "D", "D_star"], "voxel": np.arange(len(roi))}
    with pm.Model(coords=coords) as model:
        centre, width, spread = (
            np.stack([getattr(p.theta("biexponential"), k) for p in priors])
            for k in ("centre", "width", "spread")
        )
        mu = pm.Normal("mu", centre, width, dims=("roi", "parameter"))
        factors = [
            pm.LKJCholeskyCov(f"cov_{n}", n=3, eta=2.0, sd_dist=pm.HalfNormal.dist(spread[n]))
            for n in range(len(chosen))
        ]
        L = pt.stack([factor[0] for factor in factors])
        pm.Deterministic("sd", pt.stack([factor[2] for factor in factors]), dims=("roi", "parameter"))
        pm.Deterministic(
            "correlation",
            pt.stack([pt.stack([f[1][i, j] for i, j in ((0, 1), (0, 2), (1, 2))]) for f in factors]),
        )
        z = pm.Normal("z", dims=("voxel", "parameter"))
        theta = mu[roi] + (L[roi] * z[:, None, :]).sum(-1)
        S0_roi = pm.Normal("S0_roi", S0_MEAN, S0_MEAN_SD, dims="roi")
        S0_sd = pm.HalfNormal("S0_sd", S0_SD, dims="roi")
        S0 = pm.Deterministic("S0", S0_roi[roi] + S0_sd[roi] * pm.Normal("z_S0", dims="voxel"), dims="voxel")
        sigma = pm.HalfNormal("sigma", SIGMA_SCALE, dims="roi")
        f = pm.Deterministic("f", pm.math.sigmoid(theta[:, 0]), dims="voxel")
        D = pm.Deterministic("D", pt.exp(theta[:, 1]), dims="voxel")
        D_star = pm.Deterministic("D_star", D + pt.exp(theta[:, 2]), dims="voxel")
        curve = f[:, None] * pt.exp(-b * D_star[:, None]) + (1 - f[:, None]) * pt.exp(-b * D[:, None])
        pm.Normal("signal", S0[:, None] * curve, sigma[roi][:, None], observed=signal)
    model.scale = scale  # type: ignore[attr-defined]
    return model


@contextmanager
def stopwatch(owner: Any, name: str) -> Iterator[list[tuple[float, float]]]:
    """Record when each call of a function began and ended."""
    inner, spans, lock = getattr(owner, name), [], threading.Lock()

    def timed(*args: Any, **options: Any) -> Any:
        began = time.perf_counter()
        try:
            return inner(*args, **options)
        finally:
            with lock:
                spans.append((began, time.perf_counter()))

    setattr(owner, name, timed)
    try:
        yield spans
    finally:
        setattr(owner, name, inner)


def run_package(scan: xr.Dataset, seed: int, **options: int) -> tuple[xr.Dataset, dict[str, float]]:
    began = time.perf_counter()
    with stopwatch(SamplerPool, "run") as spans:
        tree = fit(scan, voxels_per_roi=None, seed=seed, retry=False, progress=False, **options)
    total = time.perf_counter() - began
    first, last = min(s for s, _ in spans), max(e for _, e in spans)
    return tree["posterior"].to_dataset(), {"before": first - began, "sampling": last - first, "total": total}


def run_by_hand(scan: xr.Dataset, seed: int, **options: int) -> tuple[xr.Dataset, dict[str, float]]:
    import nutpie

    began = time.perf_counter()
    model = by_hand(scan)
    with model, stopwatch(nutpie, "sample") as spans:
        tree = pm.sample(random_seed=seed, progressbar=False, **options)
    total = time.perf_counter() - began
    ((first, last),) = spans
    posterior = tree["posterior"].to_dataset()
    scale = xr.DataArray(model.scale, dims="roi")
    for name in ("sigma", "S0_roi", "S0_sd"):
        posterior[name] = posterior[name] * scale
    posterior["S0"] = posterior["S0"] * np.repeat(model.scale, VOXELS)
    return posterior, {"before": first - began, "sampling": last - first, "total": total}


def run_ivimfit(scan: xr.Dataset, count: int) -> float:
    """Voxels per second of ivimfit's Bayesian fit; the first voxel, which compiles, is left out."""
    from ivimfit.bayesian import fit_bayesian

    signal = next(iter(choose_voxels(scan, voxels_per_roi=None).values()))["signal"].values
    b = np.array(B, float)
    fit_bayesian(b, signal[0])
    began = time.perf_counter()
    for curve in signal[1 : count + 1]:
        fit_bayesian(b, curve)
    return count / (time.perf_counter() - began)


def effective(posterior: xr.Dataset, names: tuple[str, ...]) -> np.ndarray:
    found = az.ess(posterior[list(names)].astype(float), method="bulk")
    return np.concatenate([found[name].values.ravel() for name in names])


def enough(posterior: xr.Dataset) -> int:
    """Voxels with 400 effective draws of f, D and D*."""
    ess = az.ess(posterior[list(VOXEL[:3])].astype(float), method="bulk")
    return int((np.stack([ess[name].values for name in VOXEL[:3]]) >= 400).all(axis=0).sum())


def disagreement(ours: xr.Dataset, theirs: xr.Dataset, names: tuple[str, ...], method: str) -> np.ndarray:
    """Differences of posterior means or sds, in Monte-Carlo standard errors of the difference."""
    z = []
    for name in names:
        a, b = (p[name].astype(float) for p in (ours, theirs))
        reduce = {"mean": "mean", "sd": "std"}[method]
        values = [getattr(v, reduce)(("chain", "draw")).values.ravel() for v in (a, b)]
        errors = [az.mcse(v.to_dataset(name="v"), method=method)["v"].values.ravel() for v in (a, b)]
        z.append((values[0] - values[1]) / np.hypot(*errors))
    return np.concatenate(z)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--ivimfit-voxels", type=int, default=20)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    packages = ", ".join(f"{p} {version(p)}" for p in ("ivimbayes", "pymc", "nutpie", "numba", "ivimfit"))
    print(f"{platform.processor() or platform.machine()}, Python {platform.python_version()}, {packages}\n")
    runs: dict[str, Callable[..., Any]] = {"package": run_package, "by hand": run_by_hand}
    for run in runs.values():  # fill the compile caches
        run(scan_of(0), 0)
    table: dict[str, list[list[float]]] = {name: [] for name in runs}
    good, seconds = [], []
    columns = (
        "to the first draw, s", "sampling, s", "whole run, s", "worst hyper ESS", "its ESS/s of sampling",
        "its ESS/s", "median hyper ESS/s", "worst voxel ESS/s", "median voxel ESS/s",
    )  # fmt: skip
    print(f"| seed | run | {' | '.join(columns)} |\n|{'---|' * (2 + len(columns))}")
    for seed in range(1, options.seeds + 1):
        scan = scan_of(seed)
        for name, run in runs.items():
            posterior, spent = run(scan, seed)
            hyper, voxel, total = effective(posterior, HYPER), effective(posterior, VOXEL), spent["total"]
            row = [
                spent["before"], spent["sampling"], total, hyper.min(), hyper.min() / spent["sampling"],
                hyper.min() / total, np.median(hyper) / total, voxel.min() / total, np.median(voxel) / total,
            ]  # fmt: skip
            table[name].append(row)
            print(f"| {seed} | {name} | {' | '.join(f'{value:.3g}' for value in row)} |", flush=True)
            if name == "package":
                good.append(enough(posterior))
                seconds.append(total)
    ours, theirs = (np.median(table[name], axis=0) for name in runs)
    print("\n| median over seeds | package | by hand | ratio |\n|---|---|---|---|")
    for label, a, b in list(zip(columns, ours, theirs, strict=True))[4:]:
        print(f"| {label} | {a:.3g} | {b:.3g} | {a / b:.0f} |")
    our_long, _ = run_package(scan_of(1), 2, draws=4000)
    their_long, _ = run_by_hand(scan_of(1), 2, draws=4000, tune=2000, chains=4)
    print(
        f"\nthe two posteriors at seed 1, four chains of 4000 draws each (worst ESS "
        f"{effective(our_long, HYPER).min():.0f} and {effective(their_long, HYPER).min():.0f}): "
        "differences in their Monte-Carlo standard errors"
    )
    for method in ("mean", "sd"):
        for kind, names in (("hyperparameters", HYPER), ("voxel values", VOXEL)):
            z = disagreement(our_long, their_long, names, method)
            print(
                f"  {method}, {len(z)} {kind}: rms {np.sqrt(np.mean(z**2)):.2f}, largest {np.abs(z).max():.1f}"
            )
    rate = sum(good) / sum(seconds)
    rival = run_ivimfit(scan_of(1), options.ivimfit_voxels)
    print(
        f"\nvoxels per second: package {rate:.1f} ({sum(good)} of {options.seeds * 4 * VOXELS} with 400 effective draws, "
        f"whole runs), ivimfit {rival:.3f} (every voxel counted): {rate / rival:.0f} times"
    )


if __name__ == "__main__":
    sys.exit(main())
