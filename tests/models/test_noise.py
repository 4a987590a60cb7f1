import numpy as np
import pytest
from scipy.integrate import quad
from scipy.special import i0e
from scipy.stats import kstest, multivariate_normal, norm, rice, t

from ivimbayes.models import bessel
from ivimbayes.models.bessel import log_i0e
from ivimbayes.models.noise import NOISES, gaussian_logp

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


def draw_S0(
    rng: np.random.Generator, signal: np.ndarray, curve: np.ndarray, sigma: np.ndarray, mean: np.ndarray,
    sd: np.ndarray, averages: np.ndarray,
) -> np.ndarray:  # fmt: skip
    """Draw S0 given signals with Gaussian noise: a Normal, its population times the likelihood."""
    precision = 1 / sd**2 + (averages * curve**2).sum(-1) / sigma**2
    centre = (mean / sd**2 + (averages * curve * signal).sum(-1) / sigma**2) / precision
    return centre + rng.standard_normal(np.shape(centre)) / np.sqrt(precision)


def ranks_of_S0(sigma_used: float, n: int = 4000) -> np.ndarray:
    """Ranks of a true S0 among draws given its data: uniform if the sampler is right."""
    rng = np.random.default_rng(3)
    noise, sigma, mean, sd = NOISES["gaussian"], 0.2, 1.0, 0.3
    S0 = rng.normal(mean, sd, n)
    y = noise.draw_signal(rng, np.tile(G, (n, 1)), S0, np.full(n, sigma), AVERAGES)
    draws = draw_S0(
        rng,
        y,
        np.broadcast_to(G, (99, n, 7)),
        np.full((99, 1), sigma_used),
        *(np.full((99, 1), v) for v in (mean, sd)),
        AVERAGES,
    )
    return (draws < S0).mean(axis=0)


def test_S0_drawn_given_drawn_signals_is_calibrated() -> None:
    # A right sampler fails with probability 0.001; the control below has sigma wrong by a third.
    assert kstest(ranks_of_S0(0.2), "uniform").pvalue > 1e-3


def test_S0_drawn_with_wrong_sigma_is_not_calibrated() -> None:
    assert kstest(ranks_of_S0(0.3), "uniform").pvalue < 1e-3


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


SNRS = [0, 1e-3, 0.1, 1, 3, 8, 30, 1e3, 1e6]


@pytest.mark.parametrize("snr", SNRS)
def test_densities_given_S0_match_scipy(snr: float) -> None:
    """Around the mean and 5 sigma from it, for images averaged differently often."""
    sigma, rng = 0.7, np.random.default_rng(5)
    mean = np.full(200, snr * sigma)
    n = rng.integers(1, 5, 200).astype(float)
    scale = sigma / np.sqrt(n)
    y = np.abs(mean + rng.uniform(-5, 5, 200) * scale) + 1e-6
    s = np.array(sigma)
    found = {name: NOISES[name].logp(y, mean, s, n) for name in NOISES}
    np.testing.assert_allclose(found["gaussian"], norm(mean, scale).logpdf(y), rtol=1e-10)
    np.testing.assert_allclose(found["student_t"], t(4, mean, scale).logpdf(y), rtol=1e-10)
    z = y * mean / scale**2  # scipy's rice overflows for large z
    exact = np.log(y / scale**2) - 0.5 * ((y - mean) / scale) ** 2 + np.log(i0e(z))
    np.testing.assert_allclose(found["rician"], exact, rtol=1e-10, atol=1e-10)
    if 0.1 < snr < 30:
        np.testing.assert_allclose(
            found["rician"], rice(mean / scale, scale=scale).logpdf(y), rtol=1e-10, atol=1e-10
        )


def test_far_tails_are_finite() -> None:
    y = np.array([1e-300, 1e-8, 1.0, 1e8])
    for mean in (0.0, 1e-8, 1.0, 1e8):
        for name, noise in NOISES.items():
            found = noise.logp(y, np.full(4, mean), np.array(1e-3), np.ones(4))
            assert np.isfinite(found).all(), (name, mean)


def test_log_bessel_and_its_series_meet() -> None:
    z = np.concatenate([[0.0, 11.999999, 12.0, 12.000001], np.geomspace(1e-8, 1e13, 3000)])
    np.testing.assert_allclose(log_i0e(z), np.log(i0e(z)), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("name", ["rician", "student_t"])
def test_drawn_signals_have_their_density(name: str) -> None:
    # Fails with probability 0.001; with sigma wrong by a tenth it must fail.
    n, sigma, mean = 20_000, 0.5, 1.1
    noise = NOISES[name]
    y = noise.draw_signal(
        np.random.default_rng(6), np.ones((n, 1)), np.full(n, mean), np.full(n, sigma), np.ones(1)
    )[:, 0]

    def cumulative(sigma: float) -> np.ndarray:
        grid = np.linspace(1e-9 if name == "rician" else -60, 60, 40_001)
        density = np.exp(noise.logp(grid, np.full(grid.size, mean), np.array(sigma), np.ones(grid.size)))
        return np.interp(y, grid, np.cumsum(density) * (grid[1] - grid[0]))

    assert kstest(cumulative(sigma), "uniform").pvalue > 1e-3
    assert kstest(cumulative(1.1 * sigma), "uniform").pvalue < 1e-3


def test_rician_density_integrates_to_one() -> None:
    for mean in (0.0, 0.5, 3.0, 50.0):
        total, _ = quad(
            lambda y, m=mean: float(
                np.exp(NOISES["rician"].logp(np.array([y]), np.array([m]), np.array(1.0), np.ones(1)))[0]
            ),
            max(mean - 10, 0),
            mean + 12,
        )
        assert total == pytest.approx(1, rel=1e-7)


@pytest.mark.parametrize("name", NOISES)
@pytest.mark.parametrize("snr", [0.5, 5, 300])
def test_distribution_function_is_the_integral_of_the_density(name: str, snr: float) -> None:
    noise, sigma, n = NOISES[name], np.array(1 / snr), np.array([4.0])
    step = 1e-4 / snr

    def cdf(y: np.ndarray) -> np.ndarray:
        return np.array([noise.cdf(np.array([v]), np.array([1.0]), sigma, n)[0] for v in y])

    y = 1 + np.array([-1.0, -0.3, 0.2, 1.5]) / (2 * snr)
    y = y[y > 0]
    slope = (cdf(y + step) - cdf(y - step)) / (2 * step)
    density = [np.exp(noise.logp(np.array([v]), np.array([1.0]), sigma, n))[0] for v in y]
    assert slope == pytest.approx(density, rel=1e-4)
    assert cdf(np.array([1e-9 if name == "rician" else -1e6 / snr, 1 + 1e6 / snr])) == pytest.approx(
        [0, 1], abs=1e-6
    )


def test_rician_distribution_function_is_that_of_scipy() -> None:
    mean = np.array([0.0, 3, 20, 49, 51, 400])
    for z in (-2.0, 0.5, 3):
        y = np.maximum(mean + z, 0.3)
        found = NOISES["rician"].cdf(2 * y, 2 * mean, np.array(4.0), np.full(6, 4.0))
        assert found == pytest.approx(rice.cdf(y, mean), abs=3e-5)


def test_stored_bessel_coefficients_are_those_of_a_fit() -> None:
    """The coefficients are stored so that no machine has others; a fit of today agrees to rounding."""
    from numpy.polynomial import chebyshev
    from scipy.special import i0e

    u = np.cos(np.pi * (np.arange(4000) + 0.5) / 4000)
    near, far = 0.5 * bessel.BESSEL_SPLIT * (1 + u), 2 * bessel.BESSEL_SPLIT / (1 + u)
    every = bessel.COARSE_CENTRE * (1 + u) / (1 - u)
    cases = (
        (bessel.BESSEL_LOW, i0e(near), 28),
        (bessel.BESSEL_HIGH, i0e(far) * np.sqrt(2 * np.pi * far), 12),
        (bessel.COARSE, i0e(every) * np.sqrt(1 + 2 * np.pi * every), 16),
    )
    for stored, values, degree in cases:
        fitted = chebyshev.cheb2poly(chebyshev.chebfit(u, values, degree))
        assert len(stored) == degree + 1
        np.testing.assert_allclose(
            np.polynomial.polynomial.polyval(u, stored),
            np.polynomial.polynomial.polyval(u, fitted),
            atol=1e-13,
        )
