"""Expected precision beside 500 simulated fits, and designed protocols beside the recommended one.

    .venv/bin/python tests/benchmarks/protocols.py --table agreement
    .venv/bin/python tests/benchmarks/protocols.py --table designs

Agreement: voxels drawn from a tissue's prior, each one's posterior by quadrature on a grid, whose sd and whose
mean's error are laid beside what `expected_precision` says; and full least-squares fits of one voxel at high SNR
beside the Cramér-Rao bound. Designs: expected sd of designed and recommended protocols of ten images.
"""

import argparse
import time

import numpy as np

from ivimbayes import design_protocol, expected_precision, fit_full, predict, recommended_protocol
from ivimbayes.io.scans import as_scan
from ivimbayes.models.signals import SIGNALS
from ivimbayes.protocol.design import describe_b
from ivimbayes.protocol.precision import make_plan

TISSUES = ("liver", "kidney", "brain", "pancreas", "prostate")
NAMES, SHOWN = ("f", "D", "D_star"), np.array([1.0, 1e3, 1e3])
FITS, HIGH_SNR = 500, 1000
NODES, REACH, FAR, PART = (
    61,
    6.0,
    19.0,
    20,
)  # of the grid: nodes an axis, widths, log-density; voxels at a time


def draw_voxels(b: np.ndarray, tissue: str, snr: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Signals (voxel, measurement) of voxels drawn from a tissue's prior, and their f, D, D* (voxel, 3)."""
    rng, plan = np.random.default_rng([seed, 2026]), make_plan(tissue, snr, "biexponential")
    theta = plan.centre + plan.width * rng.standard_normal((FITS, 3))
    truth = np.stack(SIGNALS["biexponential"].values(*theta.T), axis=1)
    clean = predict(b, 1.0, **{p: v[:, None] for p, v in zip(NAMES, truth.T, strict=True)})
    return clean + rng.standard_normal(clean.shape) / snr, truth


def on_grid(signal: np.ndarray, b: np.ndarray, tissue: str, snr: float) -> tuple[np.ndarray, np.ndarray]:
    """Mean and sd of f, D, D* (voxel, 3) under a tissue's prior and a flat one of S0, by brute force."""
    plan = make_plan(tissue, snr, "biexponential")
    axes = [c + w * np.linspace(-REACH, REACH, NODES) for c, w in zip(plan.centre, plan.width, strict=True)]
    theta = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)
    log_prior = -0.5 * (((theta - plan.centre) / plan.width) ** 2).sum(axis=1)
    theta, log_prior = theta[log_prior > -FAR], log_prior[log_prior > -FAR]
    f, D, D_star = values = np.stack(SIGNALS["biexponential"].values(*theta.T))
    curve = f[:, None] * np.exp(-b * D_star[:, None]) + (1 - f[:, None]) * np.exp(-b * D[:, None])
    G = (curve**2).sum(axis=1)
    mean, square = [], []
    for part in np.array_split(signal, max(1, len(signal) // PART)):
        log_w = 0.5 * snr**2 * (curve @ part.T) ** 2 / G[:, None] + (log_prior - 0.5 * np.log(G))[:, None]
        w = np.exp(log_w - log_w.max(axis=0))
        w /= w.sum(axis=0)
        mean.append((values @ w).T)
        square.append((values**2 @ w).T)
    found, squares = np.concatenate(mean), np.concatenate(square)
    return found, np.sqrt(np.maximum(squares - found**2, 0))


def least_squares_sd(b: np.ndarray, tissue: str, snr: float, seed: int) -> np.ndarray:
    """Standard deviation of f, D, D* (3,) over full least-squares fits of the tissue's median voxel."""
    centre = make_plan(tissue, snr, "biexponential").prior.centre
    clean = predict(b, 100.0, **{p: centre[p] for p in NAMES})
    noise = np.random.default_rng([seed, 11]).standard_normal((FITS, 1, 1, len(b)))
    about = {"roi_names": '{"1": "all"}', "inputs": "{}", "source": "simulation", "real_valued": 1}
    labels = np.ones((FITS, 1, 1), np.int32)
    scan = as_scan(clean + 100 / snr * noise, labels, np.eye(4), b, np.ones(len(b)), about)
    made = fit_full(scan, progress=False, cores=1)
    return np.array([float(made[p].std(ddof=1)) for p in NAMES])


def agreement(snrs: tuple[float, ...]) -> None:
    """Print expected precision over what simulated fits find."""
    b = recommended_protocol()
    print("| tissue | SNR | sd: f | D | D* | rms error: f | D | D* |\n|---|---|---|---|---|---|---|---|")
    for tissue in TISSUES:
        for snr in snrs:
            signal, truth = draw_voxels(b, tissue, snr, seed=1)
            mean, sd = on_grid(signal, b, tissue, snr)
            found = expected_precision(b, tissue, snr)
            ratio = found["expected_sd"].values / sd.mean(axis=0)
            rms = found["rms_sd"].values / np.sqrt(((mean - truth) ** 2).mean(axis=0))
            shown = " | ".join(f"{r:.2f}" for r in (*ratio, *rms))
            print(f"| {tissue} | {snr:g} | {shown} |", flush=True)
    print(f"\n| tissue | SNR | bound over sd of {FITS} fits: f | D | D* |\n|---|---|---|---|---|")
    for tissue in TISSUES:
        bound = expected_precision(b, tissue, HIGH_SNR, draws=64)["crlb"].values
        ratio = bound / least_squares_sd(b, tissue, HIGH_SNR, seed=1)
        print(f"| {tissue} | {HIGH_SNR} | {' | '.join(f'{r:.2f}' for r in ratio)} |", flush=True)


def designs(snrs: tuple[float, ...]) -> None:
    """Print expected sds of designed and recommended protocols."""
    all_three = dict.fromkeys(NAMES, 1.0)
    print("| tissue | SNR | protocol | b (s/mm²) | f | D | D* |\n|---|---|---|---|---|---|---|")
    for tissue in TISSUES:
        for snr in snrs:
            for aim, what in (("D_star", "designed for D*"), (all_three, "designed for all three")):
                began = time.perf_counter()
                made = design_protocol(10, tissue, snr, minimise=aim, progress=False)
                rows = [(what, "designed")] + (
                    [("recommended", "recommended")] if what.endswith("three") else []
                )
                for label, name in rows:
                    one = made.sel(protocol=name)
                    values = " | ".join(f"{v:.3g}" for v in SHOWN * one["expected_sd"].values)
                    b = describe_b(one["b"]) if name == "designed" else "as above"
                    print(f"| {tissue} | {snr:g} | {label} | {b} | {values} |", flush=True)
                print(f"<!-- {time.perf_counter() - began:.0f} s -->", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--table", choices=("agreement", "designs"), required=True)
    parser.add_argument("--snr", type=float, nargs="+", default=[30.0, 50.0])
    options = parser.parse_args()
    {"agreement": agreement, "designs": designs}[options.table](tuple(options.snr))


if __name__ == "__main__":
    main()
