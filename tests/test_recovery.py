"""Coverage of the intervals over simulated regions: the posterior must be right, a wrong prior must show.

Truth is drawn from the generic prior, so that exact posteriors cover 95 % on average whatever the data. With
600 regions at each SNR the share of region intervals that cover has a standard deviation of 0.9 points: an
exact posterior leaves 93-97 % with probability 0.025 for each parameter and SNR. Seeds are fixed, so the
outcome is too. The signals are real-valued: leaving out voxels with a negative signal would select slow
diffusion. An HDI from 2 000 draws is a little short: of independent normal draws it holds 94.7 %.
"""

import numpy as np
import pytest
import recovery

from ivimbayes import fit, simulate
from ivimbayes.models.priors import TissuePrior, tissue_prior
from ivimbayes.models.spec import ModelSpec

B = (0, 0, 10, 20, 40, 80, 110, 140, 170, 200, 300, 400, 500, 600, 700, 800)
REGIONS, PARTS, VOXELS = 200, 3, 20
NAMES = ("f", "D", "D_star")


def study(snr: float, regions: int, seed: int, prior: TissuePrior | None = None) -> dict[str, np.ndarray]:
    scan, truth = simulate(B, snr, voxels=VOXELS, regions=regions, S0_spread=0.1, seed=seed)
    spec = ModelSpec() if prior is None else ModelSpec(prior=prior)
    tree = fit(scan, spec, draws=1000, tune=500, chains=2, seed=seed, retry=False, progress=False)
    return recovery.covered(tree, truth, NAMES)


@pytest.mark.slow
@pytest.mark.parametrize("snr", [15, 30, 60])
def test_intervals_cover_the_truth(snr: int, capsys: pytest.CaptureFixture[str]) -> None:
    parts = [study(snr, REGIONS, seed=100 + 10 * part + snr) for part in range(PARTS)]
    shares = {name: np.mean(np.concatenate([part[name] for part in parts])) for name in parts[0]}
    with capsys.disabled():
        print(f"\nSNR {snr}:", {k: f"{100 * v:.1f} %" for k, v in shares.items()}, end="")
    for name, share in shares.items():
        assert 0.93 <= share <= 0.97, (name, share)


@pytest.mark.slow
def test_a_wrong_prior_does_not_cover() -> None:
    """A prior centred elsewhere, three times too sure of it, and of voxels five times too alike."""
    generic = tissue_prior("generic")
    wrong = TissuePrior(
        "wrong",
        centre={"f": 0.3, "D": 0.6e-3, "D_star": 60e-3},
        width={k: w / 3 for k, w in generic.width.items()},
        spread={k: s / 5 for k, s in generic.spread.items()},
    )
    for name, inside in study(15, 60, seed=1, prior=wrong).items():
        assert not 0.93 <= inside.mean() <= 0.97, (name, inside.mean())
