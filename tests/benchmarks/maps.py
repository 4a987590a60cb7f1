"""Maps of every voxel beside other packages: voxels a second, error, coverage.

    .venv/bin/python tests/benchmarks/maps.py --rivals RIVALS/bin/python

RIVALS is an environment of its own with ivim-mri, dipy, numba and joblib (ivim-mri needs numpy<2):

    python3 -m venv RIVALS && RIVALS/bin/pip install ivim-mri dipy numba joblib

16 b values, Gaussian noise, S0 1000 with a standard deviation of 10 % between voxels. Three tissues: the centre of
each one's prior, with a standard deviation between voxels of 0.4, 0.2 and 0.4 in logit f, ln D and ln(D* - D). The
package fits 200 voxels of a tissue and maps all of them; the maps' rate counts all of `posterior_maps`, not the fit.
Without --rivals only the comparison with NUTS is run.
Voxels with a signal that is not positive are left out for all: the rivals need logarithms.
"""

import argparse
import json
import subprocess
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import xarray as xr
from truth import make_scan

from ivimbayes import fit, posterior_maps, tissue_prior
from ivimbayes.models.population import draw_theta
from ivimbayes.models.signals import SIGNALS

B = np.array((0, 0, 10, 20, 40, 80, 110, 140, 170, 200, 300, 400, 500, 600, 700, 800.0))
TISSUES, SNRS, SPREAD = ("liver", "kidney", "brain"), (10, 20, 40, 80), (0.4, 0.2, 0.4)
NAMES, VOXELS = ("f", "D", "D_star"), 200_000
HERE = Path(__file__).parent


def scan_of(tissue: str, snr: float, voxels: int, seed: int) -> tuple[xr.Dataset, dict[str, np.ndarray]]:
    """A scan of one region, all of its signals positive, and the truth by voxel."""
    rng = np.random.default_rng(seed)
    theta = draw_theta(tissue_prior(tissue).theta_centre, np.diag(np.square(SPREAD)), 4 * voxels, rng)
    values = SIGNALS["biexponential"].values(*theta.T)
    S0 = 1000 * (1 + 0.1 * rng.standard_normal(len(theta)))
    curve = SIGNALS["biexponential"].curve(B, *(v[:, None] for v in values))
    signal = S0[:, None] * curve + 1000 / snr * rng.standard_normal(curve.shape)
    good = np.flatnonzero((signal > 0).all(axis=1))[:voxels]
    assert len(good) == voxels
    scan = make_scan(signal[good, None].astype(np.float32), np.ones((voxels, 1)), B, [tissue])
    return scan, {name: v[good] for name, v in zip(NAMES, values, strict=True)}


def rival(
    python: str, method: str, signal: np.ndarray, **more: np.ndarray
) -> tuple[dict[str, np.ndarray], float]:
    """Maps by another package, and the seconds it took without its start."""
    with TemporaryDirectory() as folder:
        np.savez(Path(folder) / "in.npz", b=B, signal=signal, **more)
        words = [
            python,
            str(HERE / "rivals.py"),
            method,
            str(Path(folder) / "in.npz"),
            str(Path(folder) / "out.npz"),
        ]
        subprocess.run(words, check=True, stderr=subprocess.DEVNULL)
        with np.load(Path(folder) / "out.npz") as out:
            return {name: out[name] for name in out.files if name != "seconds"}, float(out["seconds"])


def curves(scan: xr.Dataset) -> np.ndarray:
    return np.asarray(scan["signal"].values[:, 0, 0], float)


def speed(python: str) -> None:
    """Voxels a second, liver, SNR 30."""
    scan, truth = scan_of("liver", 30, VOXELS, seed=1)
    tree = fit(scan, tissue={"*": "liver"}, seed=1, progress=False)
    for noise in ("gaussian", "rician"):  # compiled, or loaded
        posterior_maps(scan.isel(x=slice(0, 10)), tree, noise=noise, progress=False)
    rates: dict[str, list[float]] = {}
    for _ in range(3):
        for noise in ("gaussian", "rician"):
            began = time.perf_counter()
            posterior_maps(scan, tree, noise=noise, progress=False)
            rates.setdefault(f"posterior_maps, {noise}", []).append(VOXELS / (time.perf_counter() - began))
        _, seconds = rival(python, "direct_loop", curves(scan), **truth)
        rates.setdefault("direct loop, 500 signals a voxel", []).append(VOXELS / seconds)
        _, seconds = rival(python, "ivim_mri_bayes", curves(scan)[:1000])
        rates.setdefault("ivim-mri bayes", []).append(1000 / seconds)
    for method, voxels in (("ivim_mri_segmented", VOXELS), ("dipy_ivim", 400)):
        _, seconds = rival(python, method, curves(scan)[:voxels])
        rates[method.replace("_mri", "-mri").replace("_", " ")] = [voxels / seconds]
    ours = np.median(rates["posterior_maps, gaussian"])
    print("| method | voxels/s | posterior_maps (Gaussian) is faster by |\n|---|---|---|")
    for method, each in rates.items():
        print(f"| {method} | {np.median(each):,.0f} | {ours / np.median(each):.3g} |")
    print()


def accuracy() -> None:
    """512 draws beside 16 384, 99 % quantiles over voxels in posterior sd, liver, SNR 30."""
    scan, _ = scan_of("liver", 30, 10_000, seed=2)
    tree = fit(scan, tissue={"*": "liver"}, seed=2, progress=False)
    made = posterior_maps(scan, tree, progress=False)
    long = posterior_maps(scan, tree, draws=16_384, seed=7, progress=False)
    print("| | f | D | D* | S0 |\n|---|---|---|---|---|")
    for title, summaries in (("mean", ("mean",)), ("ends", ("hdi_low", "hdi_high"))):
        error = [
            np.quantile(
                np.max(
                    [np.abs(made[f"{p}_{s}"] - long[f"{p}_{s}"]) / long[f"{p}_sd"] for s in summaries], axis=0
                ),
                0.99,
            )
            for p in (*NAMES, "S0")
        ]
        print(f"| {title} | {' | '.join(f'{e:.3f}' for e in error)} |")
    print()


def errors(python: str, voxels: int) -> None:
    """Root mean square errors, and coverage of the package's 95 % intervals."""
    methods = ("ivim_mri_bayes", "ivim_mri_segmented", "dipy_ivim", "dipy_ivim_free")
    print(
        "| tissue | SNR | parameter | posterior_maps | ivim-mri bayes | segmented | dipy | dipy, f to 1 | coverage |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    lost = 0
    for tissue in TISSUES:
        for snr in SNRS:
            scan, truth = scan_of(tissue, snr, voxels, seed=snr)
            tree = fit(scan, tissue={"*": tissue}, seed=snr, progress=False)
            made = posterior_maps(scan, tree, progress=False)
            found = [{p: made[f"{p}_mean"].values.ravel() for p in NAMES}]
            found += [rival(python, method, curves(scan))[0] for method in methods]
            for p in NAMES:
                good = np.all([np.isfinite(maps[p]) for maps in found], axis=0)
                rmse = [np.sqrt(np.mean((maps[p][good] - truth[p][good]) ** 2)) for maps in found]
                low, high = made[f"{p}_hdi_low"].values.ravel(), made[f"{p}_hdi_high"].values.ravel()
                cover = np.mean((low <= truth[p]) & (truth[p] <= high))
                lost += min(rmse[1:]) <= rmse[0]
                unit = 1 if p == "f" else 1e3
                print(
                    f"| {tissue} | {snr} | {p.replace('_star', '*')} | "
                    + " | ".join(f"{unit * e:.3g}" for e in rmse)
                    + f" | {100 * cover:.1f} % |",
                    flush=True,
                )
    print(f"\ncells in which another method has the smaller error: {lost}")


def beside_nuts() -> None:
    """Maps of four times 100 fitted voxels beside their NUTS draws (4 x 4 000): 95 % quantiles over the voxels.

    The last column says how far the standard deviations of two halves of the draws are apart.
    """
    print("| SNR | | mean, in sd | sd, relative | halves of NUTS, sd |\n|---|---|---|---|---|")
    for snr in (20, 40):
        parts = [scan_of(t, snr, 100, seed=i + snr)[0] for i, t in enumerate((*TISSUES, "spleen"))]
        labels = np.broadcast_to(np.arange(1, 5)[None, :, None], (100, 4, 1)).astype(np.int32)
        scan = (
            parts[0]
            .drop_dims(("x", "y", "z"))
            .assign(
                signal=(
                    ("x", "y", "z", "measurement"),
                    np.concatenate([p["signal"].values for p in parts], axis=1),
                ),
                roi=(("x", "y", "z"), labels),
            )
        )
        scan.attrs["roi_names"] = json.dumps({str(i + 1): t for i, t in enumerate((*TISSUES, "spleen"))})
        tree = fit(scan, draws=4000, seed=snr, voxels_per_roi=None, retry=False, progress=False)
        made, posterior = posterior_maps(scan, tree, progress=False), tree["posterior"].to_dataset()
        place = tuple(posterior[axis].values.astype(int) for axis in "xyz")
        for p in (*NAMES, "S0"):
            draws = posterior[p].astype(float)
            mean, sd = (getattr(draws, how)(("chain", "draw")).values for how in ("mean", "std"))
            half = [draws.isel(chain=c).std(("chain", "draw")).values for c in ([0, 1], [2, 3])]
            errors = (
                np.abs(made[f"{p}_mean"].values[place] - mean) / sd,
                np.abs(made[f"{p}_sd"].values[place] / sd - 1),
                np.abs(half[0] / half[1] - 1),
            )
            print(
                f"| {snr} | {p.replace('_star', '*')} | {' | '.join(f'{np.quantile(e, 0.95):.3f}' for e in errors)} |"
            )
    print()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--rivals", help="Python of the environment with the rivals; without it, only NUTS.")
    parser.add_argument(
        "--voxels", type=int, default=1000, help="Voxels of each cell of the table of errors."
    )
    given = parser.parse_args()
    if given.rivals is not None:
        speed(given.rivals)
        accuracy()
        errors(given.rivals, given.voxels)
    beside_nuts()
