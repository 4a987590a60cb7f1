"""Accuracy at little noise, coverage and speed of single curves, as on the page about OSIPI's collection."""

import time

import numpy as np
from truth import TISSUES

from ivimbayes import SIGNALS, predict, tissue_prior
from ivimbayes.models.correlation import covariance
from ivimbayes.models.population import draw_region_prior
from ivimbayes.osipi import IvimBayes

B = np.array([0, 1, 2, 5, 10, 20, 30, 50, 75, 100, 150, 200, 300, 400, 500, 600, 700, 800, 1000, 1200.0])
# published values, D, f, D* in 1e-3 mm2/s, and a sweep of f
PUBLISHED = (*TISSUES.values(), *((1.1, f, 30) for f in (0.03, 0.05, 0.4, 0.6, 0.8)))
NAMES = ("f", "D", "Dp")


def drawn_curves(n: int, rng: np.random.Generator) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Curves (n, measurement) of voxels, each of a region of its own from the generic prior; their values."""
    region = draw_region_prior(tissue_prior("generic"), n, rng)
    root = np.linalg.cholesky(covariance(region["sd"], region["correlation"]) + 1e-12 * np.eye(3))
    theta = region["mu"] + np.einsum("rij,rj->ri", root, rng.standard_normal((n, 3)))
    values = SIGNALS["biexponential"].values(*theta.T)
    clean = SIGNALS["biexponential"].curve(B, *(v[:, None] for v in values))
    return clean, dict(zip(NAMES, values, strict=True))


def tissues(seeds: int = 20) -> None:
    """Largest errors at noise 0.0005 over all tissues, and the time of a curve."""
    fit, rng, times = IvimBayes(bvalues=B), np.random.default_rng(0), []
    worst, held, count = dict.fromkeys(NAMES, 0.0), dict.fromkeys(NAMES, 0), 0
    fit.osipi_fit(predict(B, 1.0, f=0.1, D=1e-3, D_star=20e-3))
    for D, f, D_star in PUBLISHED:
        truth = {"f": f, "D": D * 1e-3, "Dp": D_star * 1e-3}
        clean = predict(B, 1.0, f=f, D=truth["D"], D_star=truth["Dp"])
        for _ in range(seeds):
            start = time.perf_counter()
            found = fit.osipi_fit(clean + 5e-4 * rng.standard_normal(len(B)))
            times.append(time.perf_counter() - start)
            count += 1
            for key, true in truth.items():
                error = abs(found[key] - true) / (1 if key == "f" else true)
                worst[key] = max(worst[key], error)
                held[key] += found[f"{key}_low"] <= true <= found[f"{key}_high"]
    print(f"{count} curves: largest error of f {worst['f']:.4f}, D {worst['D']:.2%}, D* {worst['Dp']:.1%}")
    print("95 % intervals hold", ", ".join(f"{key} {100 * n / count:.1f} %" for key, n in held.items()))
    print(f"a curve: median {1e3 * np.median(times):.1f} ms, longest {1e3 * max(times):.0f} ms")


def prior(n: int = 2000) -> None:
    """Coverage over the generic prior, and voxels a second of a volume."""
    rng = np.random.default_rng(1)
    (clean, truth), fit = drawn_curves(n, rng), IvimBayes(bvalues=B)
    fit.osipi_fit_full_volume(clean[:2])
    for noise in (0.1, 0.05, 0.02, 0.0005):
        start = time.perf_counter()
        found = fit.osipi_fit_full_volume(clean + noise * rng.standard_normal(clean.shape))
        rate = n / (time.perf_counter() - start)
        cover = [
            100 * np.mean((found[f"{key}_low"] <= v) & (v <= found[f"{key}_high"]))
            for key, v in truth.items()
        ]
        ok = 100 * np.mean(found["status"] == 1)
        print(
            f"noise {noise}: f, D, D* {cover[0]:.1f} {cover[1]:.1f} {cover[2]:.1f} %, ok {ok:.1f} %, {rate:.0f}/s"
        )


if __name__ == "__main__":
    tissues()
    prior()
