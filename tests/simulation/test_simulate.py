import numpy as np
import pytest
from scipy.stats import beta, kstest

from ivimbayes.models.correlation import covariance, draw_correlation
from ivimbayes.models.population import draw_region_prior
from ivimbayes.models.priors import tissue_prior
from ivimbayes.simulation.regions import phantom, simulate


@pytest.mark.parametrize("eta", [1.0, 2.0, 5.0])
def test_every_correlation_has_the_lkj_marginal(eta: float) -> None:
    # Each pair of a 3 x 3 LKJ(eta) is 2 Beta(eta + 1/2, eta + 1/2) - 1. Nine tests, each fails with 0.0005.
    drawn = draw_correlation(eta, 4000, np.random.default_rng(9))
    for pair in range(3):
        assert kstest((drawn[:, pair] + 1) / 2, beta(eta + 0.5, eta + 0.5).cdf).pvalue > 5e-4
        assert kstest((drawn[:, pair] + 1) / 2, beta(eta + 2, eta + 2).cdf).pvalue < 5e-4


def test_covariance_is_positive_definite() -> None:
    drawn = draw_region_prior(tissue_prior("generic"), 2000, np.random.default_rng(10))
    C = covariance(drawn["sd"], drawn["correlation"])
    assert np.linalg.eigvalsh(C).min() > -1e-12
    np.testing.assert_allclose(np.diagonal(C, axis1=1, axis2=2), drawn["sd"] ** 2)


def test_region_prior_has_its_median_and_width() -> None:
    prior = tissue_prior("kidney")
    drawn = draw_region_prior(prior, 20_000, np.random.default_rng(11))
    for name in ("f", "D"):
        assert np.median(drawn[f"{name}_roi"]) == pytest.approx(prior.centre[name], rel=0.03)
    np.testing.assert_allclose(drawn["mu"].std(axis=0), prior.theta_width, rtol=0.03)
    low, high = prior.ranges()["f"]
    assert ((drawn["f_roi"] > low) & (drawn["f_roi"] < high)).mean() == pytest.approx(0.95, abs=0.01)


def test_simulation_is_a_scan_with_its_truth() -> None:
    b = [0, 20, 50, 100, 300, 600]
    scan, truth = simulate(b, 1e6, voxels=8, regions=2, seed=1)
    assert dict(scan["signal"].sizes) == {"x": 8, "y": 2, "z": 1, "measurement": 6}
    expected = truth["S0"] * (
        truth["f"] * np.exp(-scan["b"] * truth["D_star"]) + (1 - truth["f"]) * np.exp(-scan["b"] * truth["D"])
    )
    np.testing.assert_allclose(scan["signal"], expected.transpose(*scan["signal"].dims), atol=1e-3)
    again, _ = simulate(b, 1e6, voxels=8, regions=2, seed=1)
    other, _ = simulate(b, 1e6, voxels=8, regions=2, seed=2)
    assert again["signal"].equals(scan["signal"])
    assert not other["signal"].equals(scan["signal"])


def test_phantom_is_three_tissues_of_known_truth() -> None:
    scan, truth = phantom()
    assert truth["roi"].values.tolist() == ["liver", "kidney", "pancreas"]
    for label, roi in enumerate(truth["roi"].values, start=1):
        inside = scan["roi"].values == label
        assert inside.sum() > 150
        for name in ("f", "D", "D_star"):
            median = np.median(truth[name].values[inside])
            assert median == pytest.approx(float(truth[f"{name}_roi"].sel(roi=roi)), rel=0.06)
    noise = scan["signal"].values[scan["roi"].values == 0]
    assert noise.min() > 0
    assert np.sqrt((noise**2).mean() / 2) == pytest.approx(300 / 40, rel=0.02)
