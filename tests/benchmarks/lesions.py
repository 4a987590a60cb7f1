"""Does a lesion inside a region keep its contrast? Normal, Student-t and mixed population, simulated regions.

    .venv/bin/python tests/benchmarks/lesions.py [--regions 20]

Regions of 200 voxels of liver, 10 of them (5 %) a lesion of known f and D; 16 b values, Gaussian noise.
Voxels differ by a standard deviation of 0.2, 0.08 and 0.2 in logit f, ln D and ln(D* - D). Bias is the mean
over the lesion's voxels of the posterior mean less the truth, averaged over the regions.
"""

import argparse

import numpy as np
import xarray as xr
from truth import with_signals_of

from ivimbayes import ModelSpec, fit, simulate
from ivimbayes.models.population import draw_theta
from ivimbayes.models.signals import SIGNALS
from ivimbayes.models.spec import POPULATIONS

B = (0, 0, 10, 20, 40, 80, 110, 140, 170, 200, 300, 400, 500, 600, 700, 800)
LIVER = (0.23, 1.09e-3, 70e-3)
LESIONS = {
    "few vessels (f 0.08, D 1.6)": (0.08, 1.6e-3, 70e-3),
    "many vessels (f 0.45, D 1.0)": (0.45, 1.0e-3, 70e-3),
}
SPREAD, VOXELS, LESION = (0.2, 0.08, 0.2), 200, 10
MODEL = SIGNALS["biexponential"]


def scan_of(
    lesion: tuple[float, float, float], snr: float, regions: int, seed: int
) -> tuple[xr.Dataset, np.ndarray]:
    """Regions along y, voxels along x, the lesion's the last; and the true values (parameter, voxel, region)."""
    rng = np.random.default_rng(seed)
    scan, _ = simulate(B, snr, voxels=VOXELS, regions=regions, seed=seed)
    Sigma = np.diag(np.square(SPREAD))
    liver, other = (np.array(MODEL.theta(*v)) for v in (LIVER, lesion))
    theta = np.stack(
        [
            np.concatenate(
                [draw_theta(liver, Sigma, VOXELS - LESION, rng), draw_theta(other, Sigma, LESION, rng)]
            )
            for _ in range(regions)
        ],
        axis=1,
    )
    return with_signals_of(scan, theta, snr, rng), np.stack(MODEL.values(*np.moveaxis(theta, -1, 0)))


def bias(
    lesion: tuple[float, float, float], population: str, snr: float, regions: int, nu: float = 3.0
) -> np.ndarray:
    """Bias of the lesion's mean f and D, by region: (2, region)."""
    scan, truth = scan_of(lesion, snr, regions, seed=3)
    tree = fit(
        scan, ModelSpec(population=population, nu=nu), tissue={"*": "liver"}, seed=3, retry=False,
        progress=False,
    )  # fmt: skip
    posterior = tree["posterior"].to_dataset()
    x, y = posterior["x"].values.astype(int), posterior["y"].values.astype(int)
    error = np.stack(
        [posterior[p].mean(("chain", "draw")).values - truth[i, x, y] for i, p in enumerate(("f", "D"))]
    )
    inside = x >= VOXELS - LESION
    return np.stack([error[:, inside & (y == r)].mean(axis=1) for r in range(regions)], axis=1)


def main() -> None:
    """Print a row for each lesion, SNR and population."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--regions", type=int, default=20)
    given = parser.parse_args()
    print(
        "| lesion | SNR | bias of f: normal | Student-t | ratio | mixture | ratio "
        "| bias of D (1e-3): normal | Student-t | ratio | mixture | ratio |"
    )
    print("|" + 12 * "---|")
    for name, lesion in LESIONS.items():
        for snr in (20, 40):
            found = [bias(lesion, population, snr, given.regions) for population in POPULATIONS]
            cells: list[str] = []
            for i, unit in enumerate((1, 1e3)):
                one, *others = (unit * b[i] for b in found)
                cells.append(f"{one.mean():+.3f}")
                for other in others:
                    error, ratio = other.std() / np.sqrt(given.regions), abs(other.mean() / one.mean())
                    cells += [f"{other.mean():+.3f} (se {error:.3f})", f"{ratio:.2f}"]
            print(f"| {name} | {snr} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
