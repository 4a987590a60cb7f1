"""Simulation-based calibration of every signal model and noise, and of two wrong models.

    .venv/bin/python tests/benchmarks/calibration.py [--replicates 300] [--signal NAME] [--noise NAME] [--wrong]

Regions of 10 voxels drawn from the generic prior, 4 chains of 1000 draws; with --retry those that have not converged
are sampled once more, longer, as `fit` does. Replicates are kept in the folder that --keep names, so that an
interrupted run continues. A row gives the quantities whose ranks leave the band that holds
99 % of the lines of uniform ranks, over all hyperparameters, the first voxel's values and the log-likelihood.
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from ivimbayes import calibrate, check_calibration
from ivimbayes.models.noise import NOISES
from ivimbayes.models.signals import SIGNALS
from ivimbayes.models.spec import ModelSpec

B = (0, 10, 20, 40, 80, 110, 140, 170, 200, 300, 400, 500, 600, 700, 800)
B_LONG = (
    0,
    3,
    6,
    10,
    15,
    20,
    40,
    80,
    110,
    140,
    200,
    300,
    400,
    500,
    700,
    900,
    1100,
)  # vascular pools, kurtosis


def wrong_models(spec: ModelSpec) -> dict[str, dict[str, object]]:
    """Name the wrong models: sigma half of the noise, and a prior of D shifted by its width."""
    width = spec.prior.width["D"]
    shifted = replace(
        spec.prior, centre={**spec.prior.centre, "D": spec.prior.centre["D"] * float(np.exp(width))}
    )
    return {"sigma halved": {"noise_factor": 2.0}, "prior of D shifted": {"fitted": spec.with_prior(shifted)}}


def row(name: str, spec: ModelSpec, replicates: int, keep: Path | None, retry: bool, **wrong: object) -> None:
    """Run and print one row of the table."""
    began = time.perf_counter()
    b = B_LONG if spec.signal in ("triexponential", "kurtosis", "biexponential_kurtosis") else B
    file = None if keep is None else keep / f"{name.replace(' ', '-').replace(',', '')}.nc"
    result = calibrate(spec, b, replicates, seed=1, checkpoint=file, retry=retry, progress=False, **wrong)  # type: ignore[arg-type]
    table = check_calibration(result)
    outside = table.loc[~table["inside"], "quantity"].tolist()
    print(
        f"| {name} | {replicates} | {len(table)} | {', '.join(outside) or 'none'} | "
        f"{100 * table['coverage_50'].mean():.1f} | {100 * table['coverage_95'].mean():.1f} | "
        f"{100 * float(result['converged'].mean()):.0f} % | <!-- {time.perf_counter() - began:.0f} s -->",
        flush=True,
    )


def main() -> None:
    """Print a row for each model."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--replicates", type=int, default=300)
    parser.add_argument("--signal", choices=list(SIGNALS), action="append")
    parser.add_argument("--noise", choices=list(NOISES), action="append")
    parser.add_argument("--wrong", action="store_true", help="The wrong models instead.")
    parser.add_argument("--retry", action="store_true")
    parser.add_argument("--keep", type=Path)
    given = parser.parse_args()
    if given.keep is not None:
        given.keep.mkdir(parents=True, exist_ok=True)
    print("| model | replicates | quantities | outside | in 50 % | in 95 % | converged |")
    print("|---|---|---|---|---|---|---|")
    for signal in given.signal or SIGNALS:
        for noise in given.noise or NOISES:
            spec = ModelSpec(signal, noise)
            if not given.wrong:
                row(f"{signal}, {noise}", spec, given.replicates, given.keep, given.retry)
                continue
            for name, wrong in wrong_models(spec).items():
                row(f"{signal}, {noise}, {name}", spec, given.replicates, given.keep, given.retry, **wrong)


if __name__ == "__main__":
    main()
