import numpy as np
import pytest
from scipy.stats import kstest, multivariate_normal

from ivimbayes.noise import NOISES, gaussian_logp

RNG = np.random.default_rng(2)
G = np.exp(-np.linspace(0, 1.2, 7))
AVERAGES = np.array([1.0, 1, 2, 4, 1, 3, 8])


def reference(y: np.ndarray, sigma: float, mean: float, sd: float) -> float:
    covariance = np.diag(sigma**2 / AVERAGES) + sd**2 * np.outer(G, G)
    return float(multivariate_normal.logpdf(y, mean * G, covariance))


@pytest.mark.parametrize("snr", [0.5, 5, 100, 1e4])
def test_density_matches_the_multivariate_normal(snr: float) -> None:
    y, mean, sd = G + RNG.normal(0, 0.05, 7), 0.9, 0.3
    ours = gaussian_logp(y, G, np.array(1 / snr), np.array(mean), np.array(sd), AVERAGES)
    assert ours == pytest.approx(reference(y, 1 / snr, mean, sd), rel=1e-8)


def test_density_broadcasts_over_draws_and_voxels() -> None:
    y, g = RNG.normal(1, 0.1, (4, 7)), RNG.uniform(0.2, 1, (3, 4, 7))
    sigma, mean, sd = (np.array([[0.1], [0.2], [0.3]]) for _ in range(3))
    ours = gaussian_logp(y, g, sigma, mean, sd, np.ones((4, 7)))
    assert ours.shape == (3, 4)
    one = gaussian_logp(y[1], g[2, 1], *(np.array(0.3),) * 3, np.ones(7))
    assert ours[2, 1] == pytest.approx(one)


def draw_S0(sigma_used: float, n: int = 4000) -> np.ndarray:
    """Ranks of a true S0 among draws given its data: uniform if the sampler is right."""
    rng = np.random.default_rng(3)
    noise, sigma, mean, sd = NOISES["gaussian"], 0.2, 1.0, 0.3
    S0 = rng.normal(mean, sd, n)
    y = noise.draw_signal(rng, np.tile(G, (n, 1)), S0, np.full(n, sigma), AVERAGES)
    draws = noise.draw_S0(
        rng,
        y,
        np.broadcast_to(G, (99, n, 7)),
        np.full((99, 1), sigma_used),
        *(np.full((99, 1), v) for v in (mean, sd)),
        AVERAGES,
    )
    return (draws < S0).mean(axis=0)


def test_S0_drawn_given_data_is_calibrated() -> None:
    # A right sampler fails with probability 0.001; the control below has sigma wrong by a third.
    assert kstest(draw_S0(0.2), "uniform").pvalue > 1e-3


def test_S0_drawn_with_wrong_sigma_is_not_calibrated() -> None:
    assert kstest(draw_S0(0.3), "uniform").pvalue < 1e-3


def test_drawn_signals_have_the_stated_noise() -> None:
    y = NOISES["gaussian"].draw_signal(
        np.random.default_rng(4),
        np.tile(G, (40_000, 1)),
        np.full(40_000, 5.0),
        np.full(40_000, 0.4),
        AVERAGES,
    )
    np.testing.assert_allclose(y.mean(axis=0), 5 * G, atol=0.01)
    np.testing.assert_allclose(y.std(axis=0), 0.4 / np.sqrt(AVERAGES), rtol=0.02)
