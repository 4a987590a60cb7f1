"""Cost of the compiled density and its gradient, by signal model and noise.

    .venv/bin/python tests/benchmarks/gradient.py

A region of 200 voxels, 16 b values (15 distinct), at the mode of its population; the best of five times 100 calls.
"""

import time

import numpy as np

from ivimbayes import ModelSpec, choose_voxels, simulate
from ivimbayes.fitting.density import log_density
from ivimbayes.fitting.modes import population_mode
from ivimbayes.fitting.packing import coordinates, model_data, pack_region
from ivimbayes.models.noise import NOISES
from ivimbayes.models.signals import SIGNALS

B = (0, 0, 10, 20, 40, 80, 110, 140, 170, 200, 300, 400, 500, 600, 700, 800)


def cost(signal: str, noise: str, snr: float) -> float:
    """Seconds a call."""
    scan, _ = simulate(B, snr, voxels=200, signal=signal, noise="rician", seed=5)
    chosen, spec = choose_voxels(scan)["region-1"], ModelSpec(signal, noise)
    found = population_mode(
        chosen["signal"].values / 100,
        chosen["averages"].values,
        np.array(B, float),
        spec.prior,
        None,
        signal,
        noise,
    )
    block = pack_region(model_data(chosen, spec, found, 100.0), spec)
    sd = np.sqrt(np.diag(found.covariance))
    rest = coordinates(block) - 2 * len(sd) - len(sd) * (len(sd) - 1) // 2 - 3
    x = np.concatenate(
        [
            found.mean,
            np.log(sd),
            np.zeros(len(sd) * (len(sd) - 1) // 2),
            [1, -2, np.log(found.sigma)],
            np.zeros(rest),
        ]
    )
    slope, times = np.empty_like(x), []
    log_density(x, slope, block)
    for _ in range(5):
        began = time.perf_counter()
        for _ in range(100):
            log_density(x, slope, block)
        times.append((time.perf_counter() - began) / 100)
    return min(times)


def main() -> None:
    """Print a row for each signal and SNR."""
    print("| signal | SNR | " + " | ".join(f"{noise}, µs" for noise in NOISES) + " | Rician over Gaussian |")
    print("|---|---|" + "---|" * (len(NOISES) + 1))
    for signal in SIGNALS:
        for snr in (8, 30):
            seconds = {noise: cost(signal, noise, snr) for noise in NOISES}
            cells = " | ".join(f"{1e6 * s:.0f}" for s in seconds.values())
            print(
                f"| {signal} | {snr} | {cells} | {seconds['rician'] / seconds['gaussian']:.2f} |", flush=True
            )


if __name__ == "__main__":
    main()
