import numpy as np
import pytest

from ivimbayes.fitting.modes import population_mode, voxel_modes
from ivimbayes.models.population import draw_theta
from ivimbayes.models.priors import tissue_prior
from ivimbayes.models.signals import SIGNALS

B = np.array([0.0, 10, 20, 40, 80, 140, 200, 300, 400, 500, 600, 800])
SIGNAL = SIGNALS["biexponential"]
WIDE = np.diag([100.0, 100.0, 100.0])


def curves(theta: np.ndarray) -> np.ndarray:
    return SIGNAL.curve(B, *(v[:, None] for v in SIGNAL.values(*theta.T)))


def test_modes_without_noise_are_the_truth() -> None:
    rng = np.random.default_rng(5)
    truth = rng.normal([-1.5, -6.8, -4.0], [0.3, 0.2, 0.3], (40, 3))
    y = 50 * curves(truth)
    theta, precision, S0, square = voxel_modes(y, np.ones_like(y), B, 0.01, truth.mean(axis=0), WIDE)
    np.testing.assert_allclose(theta, truth, atol=1e-3)
    np.testing.assert_allclose(S0, 50, rtol=1e-4)
    assert square.max() < 1e-3
    assert (np.linalg.eigvalsh(precision) > 0).all()


def test_modes_maximise_the_posterior() -> None:
    rng = np.random.default_rng(6)
    mean, covariance, sigma = np.array([-1.5, -6.8, -4.0]), np.diag([0.2, 0.05, 0.2]), 1.5
    y = 50 * curves(rng.multivariate_normal(mean, covariance, 20)) + rng.normal(0, sigma, (20, len(B)))
    averages = np.tile(rng.integers(1, 4, len(B)).astype(float), (20, 1))

    def log_posterior(theta: np.ndarray) -> np.ndarray:
        g = curves(theta)
        S0 = (averages * g * y).sum(1) / (averages * g * g).sum(1)
        d = theta - mean
        prior = np.einsum("vi,ij,vj->v", d, np.linalg.inv(covariance), d)
        return -0.5 * ((averages * (y - S0[:, None] * g) ** 2).sum(1) / sigma**2 + prior)

    theta = voxel_modes(y, averages, B, sigma, mean, covariance)[0]
    best = log_posterior(theta)
    for _ in range(50):
        assert (log_posterior(theta + rng.normal(0, 0.05, theta.shape)) <= best + 1e-3).all()


def test_averages_count_as_repeats() -> None:
    y = curves(np.array([[-1.5, -6.8, -4.0]])) + np.random.default_rng(7).normal(0, 0.02, (1, len(B)))
    mean = np.array([-2.0, -6.9, -4.0])
    one = voxel_modes(y, np.full_like(y, 2.0), B, 0.02, mean, np.eye(3))
    b2, y2 = np.tile(B, 2), np.tile(y, 2)
    two = voxel_modes(y2, np.ones_like(y2), b2, 0.02, mean, np.eye(3))
    np.testing.assert_allclose(one[0], two[0], atol=1e-4)
    np.testing.assert_allclose(one[1], two[1], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("snr", [20, 60])
def test_population_mode_finds_the_population(snr: float) -> None:
    rng = np.random.default_rng(8)
    mu, sd = np.array([-1.6, -6.75, -3.4]), np.array([0.3, 0.12, 0.3])
    theta = draw_theta(mu, np.diag(sd**2), 150, rng)
    y = rng.normal(1, 0.1, (150, 1)) * curves(theta)
    y += rng.normal(0, 1 / snr, y.shape)
    found = population_mode(y, np.ones_like(y), B, tissue_prior("generic"))
    np.testing.assert_allclose(found.mean, mu, atol=4 / snr + 0.05)
    np.testing.assert_allclose(np.sqrt(np.diag(found.covariance)), sd, rtol=0.5, atol=0.05)
    assert found.sigma == pytest.approx(1 / snr, rel=0.1)


def test_population_of_one_voxel_is_the_prior() -> None:
    prior = tissue_prior("liver")
    y = curves(prior.theta_centre[None])
    found = population_mode(y, np.ones_like(y), B, prior)
    np.testing.assert_allclose(found.mean, prior.theta_centre)
    np.testing.assert_allclose(found.covariance, np.diag(prior.theta_width**2))
