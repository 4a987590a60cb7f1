"""Measure the least-squares fits: python docs/least_squares.py prints the tables of docs/least_squares.md."""

import time

import numpy as np
import xarray as xr

import ivimbayes as ib
from ivimbayes.least_squares.solver import STATUS

B = np.array([0, 10, 20, 40, 80, 110, 140, 170, 200, 300, 400, 500, 600, 700, 800], float)
TISSUES = {  # D and D* in 1e-3 mm2/s, f
    "brain, Vieni 2020": (0.83, 0.076, 10.9),
    "white matter, OSIPI phantom": (0.81, 0.044, 84),
    "grey matter, OSIPI phantom": (0.86, 0.033, 76),
    "white matter, Spinner 2021": (0.6, 0.05, 4),
    "grey matter, Spinner 2021": (0.8, 0.08, 6),
    "liver, Li 2017": (1.09, 0.23, 70),
    "liver, XCAT": (1.5, 0.11, 100),
    "kidney, Ljimani 2020": (1.89, 0.19, 40.5),
    "kidney cortex, XCAT": (2.12, 0.097, 20),
    "kidney medulla, XCAT": (2.09, 0.158, 19),
    "pancreas, Zhu 2021": (1.41, 0.20, 25.4),
    "pancreas, XCAT": (1.3, 0.15, 10),
    "pancreatic tumour, Zhu 2021": (1.40, 0.124, 22),
    "pancreatic tumour, XCAT": (1.32, 0.055, 94),
    "muscle, Englund 2022": (1.47, 0.10, 31),
    "muscle, XCAT": (1.37, 0.10, 26),
    "breast benign, Liang 2020": (1.43, 0.07, 52),
    "breast malignant, Liang 2020": (0.97, 0.113, 38),
    "spleen, XCAT": (1.3, 0.2, 30),
    "myocardium, XCAT": (2.4, 0.15, 80),
    "bone marrow, XCAT": (0.43, 0.145, 50),
    "prostate, TF2.4 #87": (1.5, 0.08, 25),
    "head and neck, TF2.4 #87": (1.0, 0.15, 25),
    "placenta, TF2.4 #87": (1.7, 0.28, 40),
}
D, F, D_STAR = (np.array([*TISSUES.values()]) * (1e-3, 1, 1e-3)).T
TRUTH = {"f": F, "D": D, "D_star": D_STAR}
FITS = {
    "segmented": ib.fit_segmented,
    "refined": lambda scan, **options: ib.fit_segmented(scan, refine=True, **options),
    "full": ib.fit_full,
}
STATES = ("at_bound", "not_identified", "not_converged")


def scan_of(signal: np.ndarray) -> xr.Dataset:
    """Scan of signals (tissue, repeat, measurement)."""
    scan, _ = ib.simulate(B, 1.0, voxels=signal.shape[0], regions=signal.shape[1])
    scan["signal"].values[:, :, 0] = signal
    return scan


if __name__ == "__main__":
    clean = ib.predict(B, 1.0, f=F[:, None], D=D[:, None], D_star=D_STAR[:, None])[:, None]
    scan = scan_of(clean)
    made = {name: fit(scan, progress=False) for name, fit in FITS.items()}
    print("| tissue | f | D | D* | refined, largest | full, largest |\n|---|---|---|---|---|---|")
    error = {
        name: np.stack([100 * (maps[p].values[:, 0, 0] / true - 1) for p, true in TRUTH.items()])
        for name, maps in made.items()
    }
    for i, tissue in enumerate(TISSUES):
        one = " | ".join(f"{e:.2g}" if abs(e) >= 0.005 else "0" for e in error["segmented"][:, i])
        rest = " | ".join(f"{abs(error[name][:, i]).max():.0e}" for name in ("refined", "full"))
        print(f"| {tissue} | {one} | {rest} |")

    print("\n| SNR | fit | f | D | D* | at bound | not identified | not converged |\n" + 8 * "|---" + "|")
    rng = np.random.default_rng(0)
    for snr in (20, 40, 80):
        scan = scan_of(clean + rng.normal(0, 1 / snr, (len(D), 1000, len(B))))
        for name, fit in FITS.items():
            maps = fit(scan, progress=False)
            errors = (abs(maps[p].values[..., 0] / true[:, None] - 1) for p, true in TRUTH.items())
            off = (100 * float(np.nanmedian(e)) for e in errors)
            shares = (100 * float((maps["status"] == STATUS[s]).mean()) for s in STATES)
            words = [*(f"{v:.0f}" for v in off), *(f"{v:.1f}" for v in shares)]
            print(f"| {snr} | {name} | {' | '.join(words)} |")

    scan, _ = ib.simulate(B, 30, voxels=100_000, prior=ib.tissue_prior("liver"), seed=1)
    for name, fit in FITS.items():
        took = []
        for _ in range(3):
            start = time.perf_counter()
            fit(scan, progress=False)
            took.append(time.perf_counter() - start)
        print(f"\n{name}: 100 000 voxels in {min(took):.2f} s, {1e5 / min(took):,.0f} voxels/s", end="")
    print()
