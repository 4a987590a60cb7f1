"""Measure what more voxels are worth: python docs/voxels.py prints the table of docs/voxels.md."""

import time

import numpy as np

import ivimbayes as ib

B = (0, 0, 10, 20, 40, 80, 110, 140, 170, 200, 300, 400, 500, 600, 700, 800)
SNR = 30

if __name__ == "__main__":
    print("| voxels | fit, s | sd of f | sd of D | sd of D* | sd of f over sd at 1600 |")
    print("|---|---|---|---|---|---|")
    rows = []
    prior = ib.tissue_prior("liver")
    scan, _ = ib.simulate(B, SNR, voxels=25, prior=prior, seed=11)
    ib.fit(scan, draws=50, tune=50, retry=False, progress=False)  # loads what is compiled
    for voxels in (25, 50, 100, 200, 400, 800, 1600):
        scan, _ = ib.simulate(B, SNR, voxels=2000, prior=prior, seed=11)
        options = {"tissue": {"*": "liver"}, "voxels_per_roi": voxels, "progress": False, "seed": 1}
        start = time.perf_counter()
        tree = ib.fit(scan, retry=False, **options)
        took = time.perf_counter() - start
        table = ib.summarize(tree).set_index("parameter")
        rows.append((voxels, took, *(table.loc[p, "sd"] for p in ("f", "D", "D_star"))))
    for voxels, took, f, D, D_star in rows:
        print(f"| {voxels} | {took:.1f} | {f:.4f} | {D:.4f} | {D_star:.2f} | {f / rows[-1][2]:.1f} |")
    assert np.isfinite([row[1:] for row in rows]).all()
