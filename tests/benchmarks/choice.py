"""Which signal model is chosen, over simulated regions of known f.

    .venv/bin/python tests/benchmarks/choice.py [--regions 60] [--f 0 0.02 0.04 0.08 0.15] [--wide]

Regions of 40 voxels, 16 b values, SNR 30. f is that of the regions' median voxel; D and D* cover what is published
of tissues (95 %: 0.5 to 2.2 and 6 to 70 x 1e-3 mm2/s), with --wide the generic prior (0.3 to 3.3 and 3 to 200). With
f = 0 the truth is mono-exponential. Two
controls break what is compared: noise said to be ten times what it is, and signals whose b values were
exchanged at random. "ahead" is the share of regions in which the bi-exponential fit has the higher elpd, whatever
the margin.
"""

import argparse
import time
import warnings
from dataclasses import dataclass, replace

import numpy as np
import xarray as xr

from ivimbayes import compare_models, fit, simulate
from ivimbayes.models.priors import tissue_prior
from ivimbayes.models.signals import SIGNALS
from ivimbayes.models.spec import ModelSpec
from ivimbayes.results.comparison import Comparison

B = (0, 0, 10, 20, 40, 80, 110, 140, 170, 200, 300, 400, 500, 600, 700, 800)
MODELS = ("monoexponential", "simplified", "biexponential")
VOXELS, SNR = 40, 30


def scan_of(f: float, regions: int, seed: int, wide: bool = False) -> xr.Dataset:
    """Regions whose median voxel has the perfusion fraction f."""
    generic = tissue_prior("generic")
    width = {**(generic.width if wide else {"D": 0.35, "D_star": 0.6}), "f": 0.01}
    prior = replace(generic, name="known f", centre={**generic.centre, "f": f or 0.1}, width=width)
    signal = "biexponential" if f else "monoexponential"
    return simulate(B, SNR, VOXELS, regions, prior=prior, signal=signal, seed=seed)[0]


def shuffled(scan: xr.Dataset, seed: int) -> xr.Dataset:
    """Each voxel's signals in random order: they say nothing about decay."""
    rng = np.random.default_rng(seed)
    return scan.assign(signal=(scan["signal"].dims, rng.permuted(scan["signal"].values, axis=-1)))


def fits_of(scan: xr.Dataset, seed: int, models: tuple[str, ...] = MODELS) -> dict[str, xr.DataTree]:
    options = {"draws": 500, "tune": 300, "chains": 4, "retry": False, "progress": False}
    return {name: fit(scan, ModelSpec(name), seed=seed, **options) for name in models}


def noisier(fits: dict[str, xr.DataTree], factor: float = 10.0) -> dict[str, xr.DataTree]:
    """Fits whose noise is said to be larger than it is, the same for all."""
    sigma = next(iter(fits.values()))["posterior"]["sigma"]
    copies = {name: tree.copy(deep=True) for name, tree in fits.items()}
    for tree in copies.values():
        tree["posterior"]["sigma"] = factor * sigma
    return copies


@dataclass(frozen=True)
class Shares:
    """Shares of regions (0 to 1), and how far the numbers can be trusted."""

    perfusion: float
    over_mono: float
    ahead: float
    chosen: dict[str, float]
    bad: float
    regions_bad: float
    gap: float


def shares(compared: Comparison) -> Shares:
    table = compared.table
    gap = table.pivot(index="roi", columns="fit", values="elpd_loo")
    gap = gap["biexponential"] - gap["monoexponential"]
    chosen = table[table["chosen"]]["signal"]
    mono = table[table["fit"] == "monoexponential"]
    clear = (mono["elpd_diff"] < -4) & (mono["elpd_diff"] < -2 * mono["se_diff"])
    return Shares(
        perfusion=float(np.mean([SIGNALS[name].fractions > 0 for name in chosen])),
        over_mono=float(clear.mean()),
        ahead=float((gap > 0).mean()),
        chosen={name: float((chosen == name).mean()) for name in MODELS},
        bad=float(table["pareto_k_bad"].sum() / table["measurements"].sum()),
        regions_bad=float((table["pareto_k_bad"] > 0.05 * table["measurements"]).mean()),
        gap=float(gap.median()),
    )


def main() -> None:
    """Print a row for each truth."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--regions", type=int, default=60)
    parser.add_argument("--f", type=float, nargs="+", default=[0, 0.02, 0.04, 0.08, 0.15])
    parser.add_argument("--wide", action="store_true")
    given = parser.parse_args()
    warnings.simplefilter("error")
    print("| truth | perfusion claimed | mono | simplified | bi | bi ahead | median difference | k bad |")
    print("|---|---|---|---|---|---|---|---|")
    for f in given.f:
        began = time.perf_counter()
        scan = scan_of(f, given.regions, seed=1, wide=given.wide)
        fits = fits_of(scan, seed=1)
        row(f"f = {f:g}" if f else "mono-exponential", compare_models(fits), began)
        if f == given.f[-1]:
            began = time.perf_counter()
            row(f"f = {f:g}, noise x 10", compare_models(noisier(fits)), began)
            began = time.perf_counter()
            row(f"f = {f:g}, shuffled", compare_models(fits_of(shuffled(scan, seed=2), seed=1)), began)


def row(name: str, compared: Comparison, began: float) -> None:
    found = shares(compared)
    columns = [f"{100 * x:.0f}" for x in (found.perfusion, *found.chosen.values(), found.ahead)]
    print(
        f"| {name} | {' | '.join(columns)} | {found.gap:.1f} | {100 * found.bad:.2f} |",
        f"<!-- {time.perf_counter() - began:.0f} s -->",
        flush=True,
    )


if __name__ == "__main__":
    main()
