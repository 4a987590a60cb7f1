"""Draws of a known density: right moments, weights that tell when they are not."""

import numpy as np
import pytest
from scipy.stats import halfnorm, kstest, norm

from ivimbayes.cohorts.adaptive import Proposal, draw_density


def leaning(x: np.ndarray) -> float:
    """Ln of a half-normal, a normal about it, and one more ln of a half-normal: long tails to the left."""
    ln = x[0] - 0.5 * np.exp(2 * x[0]) + x[2] - 0.5 * np.exp(2 * x[2])
    return float(ln - 0.5 * (x[1] - x[0]) ** 2)


def test_draws_are_of_the_density() -> None:
    found = draw_density(leaning, np.zeros(3), draws=2000, seed=4)
    assert found.x.shape == (4, 2000, 3) and found.pareto_k < 0.7 and found.ess > 2000
    for values, exact in (
        (np.exp(found.x[..., 0]), halfnorm), (np.exp(found.x[..., 2]), halfnorm),
        (found.x[..., 1] - found.x[..., 0], norm),
    ):  # fmt: skip
        few = values.ravel()[:: int(3 * found.x[..., 0].size / found.ess)]  # nearly independent
        assert kstest(few, exact.cdf).pvalue > 1e-4
        assert kstest(1.2 * few, exact.cdf).pvalue < 1e-4  # a density a fifth wider is told apart


def test_the_same_seed_gives_the_same_draws() -> None:
    one, again, other = (draw_density(leaning, np.zeros(3), draws=100, seed=s).x for s in (1, 1, 2))
    assert np.array_equal(one, again) and not np.array_equal(one, other)


@pytest.mark.parametrize("bend", [0.0, 0.4, 1.0, 1.7, 2.0])
def test_proposals_have_the_density_they_say(bend: float) -> None:
    """Its integral is 1, and its draws lie as it says."""
    proposal = Proposal(
        np.array([1.0]), np.array([2.0]), np.array([bend]), np.array([0.2]), np.array([[0.8]])
    )
    grid = np.concatenate([-np.geomspace(1e7, 1e-6, 200_000), np.geomspace(1e-6, 1e7, 200_000)])
    density = np.exp(proposal.log_density(grid[:, None]))
    cumulative = np.append(0, np.cumsum(0.5 * (density[1:] + density[:-1]) * np.diff(grid)))
    assert cumulative[-1] == pytest.approx(1, abs=0.02)
    drawn = proposal.draw(2000, np.random.default_rng(0))[:, 0]
    assert kstest(drawn, lambda x: np.interp(x, grid, cumulative)).pvalue > 1e-3
