"""Bias, standard deviation, error and coverage in 27 tissues, beside least squares and other packages.

    .venv/bin/python tests/benchmarks/regions.py --rivals RIVALS/bin/python [--draws 300] [--snr 10 --snr 30 ...]

RIVALS as in maps.py. Tissue values are those that the OSIPI TF2.4 collection publishes (its consensus table, brain and
XCAT phantoms, and proposals of its issue 87); each of 27 regions has --draws curves of one truth with Gaussian noise,
18 b values of its XCAT phantom, S0 1000. Curves with a signal that is not positive are drawn again: the rivals need
logarithms. The package knows no tissue, and has the generic prior throughout: each curve on its own (`ivimbayes.osipi`); pooled, where
one population is fitted to 200 curves of all regions; and by region, where each region has a label, and a population of
its own fitted to 200 of its curves, which favours it here, since the curves of a region have one truth.
Each by the median of the posterior and by its mean.
"""

import argparse
from pathlib import Path

import maps as benchmark
import numpy as np
import pandas as pd
import xarray as xr
from truth import make_scan

from ivimbayes import fit, fit_full, fit_segmented, posterior_maps
from ivimbayes.models.signals import SIGNALS
from ivimbayes.osipi import IvimBayes

B = (0, 1, 2, 5, 10, 20, 30, 50, 75, 100, 150, 250, 350, 400, 550, 700, 850, 1000)
TISSUES = {  # f, D and D* in 1e-3 mm2/s
    "brain": (0.0764, 0.83, 10.88), "kidney": (0.1888, 1.89, 40.53), "liver": (0.2305, 1.09, 70.02),
    "muscle": (0.1034, 1.47, 30.88), "breast, benign": (0.07, 1.43, 52.33),
    "breast, malignant": (0.1131, 0.97, 37.76), "pancreas": (0.2003, 1.41, 25.39),
    "pancreas, malignant": (0.1239, 1.40, 22.16), "white matter": (0.044, 0.81, 84.0),
    "grey matter": (0.033, 0.86, 76.0), "myocardium, ventricle": (0.15, 2.4, 80.0),
    "myocardium, atrium": (0.07, 1.5, 70.0), "muscle, XCAT": (0.10, 1.37, 26.3),
    "liver, XCAT": (0.11, 1.5, 100.0), "oesophagus": (0.32, 1.67, 30.0), "stomach wall": (0.3, 1.5, 12.0),
    "pancreas, XCAT": (0.15, 1.3, 10.0), "kidney cortex": (0.097, 2.12, 20.0),
    "kidney medulla": (0.158, 2.09, 19.0), "spleen": (0.2, 1.3, 30.0), "spinal cord": (0.178, 0.41, 28.9),
    "bone marrow": (0.145, 0.43, 50.0), "intestine": (0.69, 1.31, 29.0),
    "pancreatic tumour": (0.0549, 1.32, 94.0), "prostate": (0.08, 1.5, 25.0),
    "head and neck": (0.15, 1.0, 25.0), "placenta": (0.28, 1.7, 40.0),
}  # fmt: skip
NAMES = ("f", "D", "D_star")
OURS = ("generic prior", "generic prior, mean", "pooled", "pooled, mean", "by region", "by region, mean")
RIVALS = ("ivim_mri_bayes", "ivim_mri_segmented", "dipy_ivim_free")
Found = dict[str, np.ndarray]


def curves_of(snr: float, draws: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Curves (region, draw, measurement), all positive, and the truth (region, parameter) in mm2/s."""
    rng = np.random.default_rng([seed, int(snr)])
    truth = np.array(list(TISSUES.values())) * [1, 1e-3, 1e-3]
    clean = 1000 * SIGNALS["biexponential"].curve(np.array(B, float), *(v[:, None] for v in truth.T))
    signal = np.empty((len(truth), draws, len(B)))
    for r, curve in enumerate(clean):
        made = 0
        while made < draws:
            tried = curve + 1000 / snr * rng.standard_normal((4 * draws, len(B)))
            good = tried[(tried > 0).all(axis=1)][: draws - made]
            signal[r, made : made + len(good)] = good
            made += len(good)
    return signal, truth


def scan_of(signal: np.ndarray) -> xr.Dataset:
    """The curves as a scan: regions along x, draws along y, a label for each region."""
    labels = np.tile(np.arange(1, len(signal) + 1)[:, None], (1, signal.shape[1]))
    return make_scan(signal.astype(float), labels, B, [f"region-{n}" for n in labels[:, 0]])


def ours(signal: np.ndarray, pooled: bool) -> Found:
    """Maps and intervals of the package."""
    made = IvimBayes(bvalues=np.array(B, float)).osipi_fit_full_volume(signal[:, :, None], pooled=pooled)
    theirs = {"f": "f", "D": "D", "D_star": "Dp"}
    found = {name: np.squeeze(made[key], 2) for name, key in theirs.items()}
    found |= {f"{name}_mean": np.squeeze(made[f"{key}_mean"], 2) for name, key in theirs.items()}
    for end in ("low", "high"):
        found |= {f"{name}_{end}": np.squeeze(made[f"{key}_{end}"], 2) for name, key in theirs.items()}
    return found


def by_region(scan: xr.Dataset) -> Found:
    """Maps of the package with a population for each region."""
    tree = fit(scan, tissue={"*": "generic"}, seed=1, progress=False)
    made = posterior_maps(scan, tree, seed=1, progress=False)
    found = {p: made[f"{p}_median"].values[:, :, 0] for p in NAMES}
    found |= {f"{p}_mean": made[f"{p}_mean"].values[:, :, 0] for p in NAMES}
    for end in ("low", "high"):
        found |= {f"{p}_{end}": made[f"{p}_hdi_{end}"].values[:, :, 0] for p in NAMES}
    return found


def methods(signal: np.ndarray, python: str | None) -> dict[str, Found]:
    """Estimates (region, draw) of every method."""
    found = {"generic prior": ours(signal, False), "pooled": ours(signal, True)}
    scan = scan_of(signal)
    found["by region"] = by_region(scan)
    for name in tuple(found):  # the posterior's mean in place of its median
        found[f"{name}, mean"] = {**found[name], **{p: found[name][f"{p}_mean"] for p in NAMES}}
    for name, made in (
        ("segmented", fit_segmented(scan, progress=False)), ("full", fit_full(scan, progress=False)),
    ):  # fmt: skip
        found[name] = {p: made[p].values[:, :, 0] for p in NAMES}
    benchmark.B = np.array(B, float)
    for name in RIVALS if python is not None else ():
        made, _ = benchmark.rival(python, name, signal.reshape(-1, len(B)))
        title = name.replace("_mri", "-mri").replace("_free", "").replace("_", " ")
        found[title] = {p: made[p].reshape(signal.shape[:2]) for p in NAMES}
    return found


def tabulate(snr: float, found: dict[str, Found], truth: np.ndarray) -> pd.DataFrame:
    """Give a row for each region, parameter and method, over the curves that all methods fitted."""
    rows = []
    for r, tissue in enumerate(TISSUES):
        for i, p in enumerate(NAMES):
            good = np.all([np.isfinite(m[p][r]) for m in found.values()], axis=0)
            for method, m in found.items():
                error = m[p][r][good] - truth[r, i]
                row = {
                    "snr": snr, "tissue": tissue, "parameter": p, "method": method, "curves": int(good.sum()),
                    "bias": error.mean(), "sd": error.std(), "rmse": np.sqrt((error**2).mean()),
                }  # fmt: skip
                if f"{p}_low" in m:
                    inside = (m[f"{p}_low"][r] <= truth[r, i]) & (truth[r, i] <= m[f"{p}_high"][r])
                    row["coverage"] = inside[good].mean()
                rows.append(row)
    return pd.DataFrame(rows)


def main() -> None:
    """Print, by SNR, how often each method has the smallest error, and the cells where another has."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rivals", help="Python of the environment with the rivals.")
    parser.add_argument("--draws", type=int, default=300)
    parser.add_argument("--snr", type=float, action="append")
    parser.add_argument("--out", type=Path, help="Write every row to this file (TSV).")
    given = parser.parse_args()
    parts = []
    for snr in given.snr or (10, 30, 50, 100, 200):
        signal, truth = curves_of(snr, given.draws, seed=1)
        table = tabulate(snr, methods(signal, given.rivals), truth)
        parts.append(table)
        report(table)
        if given.out is not None:
            pd.concat(parts).to_csv(given.out, sep="\t", index=False, float_format="%.6g")
    total(pd.concat(parts))


def total(table: pd.DataFrame) -> None:
    """Print how often each of ours has the smallest error, over all cells of tissue, parameter and SNR."""
    wide = table.pivot_table(
        index=["snr", "tissue", "parameter"], columns="method", values="rmse", sort=False
    )
    others = wide.drop(columns=list(OURS)).min(axis=1)
    for ours in OURS:
        best = wide[ours] < others
        print(f"{ours}: smallest error in {best.sum()} of {len(best)} cells ({100 * best.mean():.1f} %)")


def report(table: pd.DataFrame) -> None:
    """Print one SNR's summary."""
    snr = table["snr"].iloc[0]
    wide = table.pivot_table(index=["tissue", "parameter"], columns="method", values="rmse", sort=False)
    relative = wide.div(wide["generic prior"], axis=0)
    print(f"\nSNR {snr:g}\n\n| method | f | D | D* | coverage f | D | D* |\n|---|---|---|---|---|---|---|")
    for method in wide.columns:
        cells = [f"{relative[method].xs(p, level='parameter').median():.2f}" for p in NAMES]
        mine = table[table["method"] == method].groupby("parameter")["coverage"].mean()
        cells += ["" if np.isnan(mine[p]) else f"{100 * mine[p]:.1f} %" for p in NAMES]
        print(f"| {method} | {' | '.join(cells)} |")
    others = wide.drop(columns=list(OURS))
    for ours in OURS:
        best = wide[ours] < others.min(axis=1)
        print(f"\n{ours}: smallest error in {best.sum()} of {len(best)} cells", end="")
        print(f" ({', '.join(f'{p} {best.xs(p, level=1).sum()} of {len(TISSUES)}' for p in NAMES)})")
        for (tissue, p), _ in best[~best].items():
            row = others.loc[(tissue, p)]
            print(
                f"  {tissue}, {p}: {wide.loc[(tissue, p), ours] / row.min():.2f} times that of {row.idxmin()}"
            )
    print(flush=True)


if __name__ == "__main__":
    main()
