"""Errors that all voxels of a region share in an image: found, counted in the intervals, and refused elsewhere."""

import numpy as np
import pytest
import xarray as xr

from ivimbayes import (
    ModelSpec,
    calibrate,
    fit,
    posterior_maps,
    prior_check,
    prior_sensitivity,
    simulate,
    tissue_prior,
)
from ivimbayes.errors import InputError
from ivimbayes.fitting.density import log_density
from ivimbayes.fitting.draws import split_draws
from ivimbayes.fitting.image_effects import _reflectors, _soft, reflect
from ivimbayes.fitting.modes import population_mode
from ivimbayes.fitting.packing import coordinates, hyperparameter_count, model_data, pack_region
from ivimbayes.fitting.voxels import choose_voxels
from ivimbayes.models.signals import SIGNALS

B = [0, 0, 10, 20, 40, 80, 150, 200, 300, 400, 600, 800]
LIVER = tissue_prior("liver")  # whose f and D* these b values identify
SPEC = ModelSpec(image_effects=True, prior=LIVER)
ERROR, REGIONS, VOXELS = 0.05, 4, 100


@pytest.fixture(scope="module")
def scan() -> tuple[xr.Dataset, xr.Dataset]:
    return simulate(B, 30, voxels=VOXELS, regions=REGIONS, prior=LIVER, image_sd=ERROR, seed=5)


@pytest.fixture(scope="module")
def fitted(scan: tuple[xr.Dataset, xr.Dataset]) -> xr.DataTree:
    return fit(scan[0], SPEC, draws=300, tune=300, chains=2, retry=False, seed=1, progress=False)


def test_effects_are_found(fitted: xr.DataTree) -> None:
    """Up to what S0 and the curve take up, which the posterior knows to be uncertain."""
    drawn = fitted["posterior"].to_dataset()
    truth = ERROR * np.random.default_rng([5, 1]).standard_normal((REGIONS, len(B)))
    assert drawn["image_effect"].dims == ("chain", "draw", "roi", "measurement")
    mean, sd = (getattr(drawn["image_effect"], how)(("chain", "draw")).values for how in ("mean", "std"))
    z = (mean - truth) / sd
    assert np.sqrt((z**2).mean()) < 1.6
    repeats, expected = (
        mean[:, 0] - mean[:, 1],
        truth[:, 0] - truth[:, 1],
    )  # of one b: nothing else can differ
    np.testing.assert_allclose(repeats, expected, atol=4 * 0.033 * np.sqrt(2 / VOXELS))
    assert ((drawn["image_sd"].median(("chain", "draw")) - ERROR) < 0.03).all()


def distance(tree: xr.DataTree, truth: xr.Dataset) -> float:
    """Root mean square of the regions' means from the truth, in posterior standard deviations."""
    true = SIGNALS["biexponential"].theta(*(truth[f"{p}_roi"].values for p in ("f", "D", "D_star")))
    mu = tree["posterior"].to_dataset()["mu"]
    z = (mu.mean(("chain", "draw")) - np.stack(true, axis=-1)) / mu.std(("chain", "draw"))
    return float(np.sqrt((z**2).mean()))


def test_intervals_hold_the_truth(scan: tuple[xr.Dataset, xr.Dataset], fitted: xr.DataTree) -> None:
    """The root mean square of 12 standard normal numbers exceeds 1.6 in 0.2 % of cases."""
    plain = ModelSpec(prior=LIVER)
    without = fit(scan[0], plain, draws=300, tune=300, chains=2, retry=False, seed=1, progress=False)
    assert distance(fitted, scan[1]) < 1.6
    assert distance(without, scan[1]) > 2.5
    predictive = fitted["posterior_predictive"].to_dataset()["signal"].mean(("chain", "draw"))
    observed = fitted["observed_data"].to_dataset()["signal"]
    for voxels in np.split(np.arange(REGIONS * VOXELS), REGIONS):
        away = (predictive - observed).isel(voxel=voxels).mean("voxel").values
        assert np.abs(away).max() < 4 * (100 / 30) / np.sqrt(VOXELS)


def test_hyperparameters_are_stretched(scan: tuple[xr.Dataset, xr.Dataset]) -> None:
    """The density of stretched coordinates is that of what they stand for."""
    chosen = choose_voxels(scan[0])["region-1"]
    mode = population_mode(
        chosen["signal"].values / 100, chosen["averages"].values, np.array(B, float), SPEC.prior
    )
    data, rng = model_data(chosen, SPEC, mode, 100.0), np.random.default_rng(3)
    plain = pack_region(data, SPEC)
    H, n = hyperparameter_count(plain), coordinates(plain)
    middle = np.array([*mode.mean, *np.log(data["spread"]), 0, 0, 0, 1, -2, -3, -4])
    stretch = np.tril(0.1 * rng.standard_normal((H, H))) + 0.3 * np.eye(H)
    block, x = pack_region(data, SPEC, stretched=(middle, stretch)), 0.3 * rng.standard_normal(n)
    y = np.concatenate([middle + stretch @ x[:H], x[H:]])
    found, expected = np.empty(n), np.empty(n)
    assert log_density(x, found, block) == pytest.approx(log_density(y, expected, plain), rel=1e-12)
    np.testing.assert_allclose(found[:H], stretch.T @ expected[:H], rtol=1e-9)
    np.testing.assert_allclose(found[H:], expected[H:], rtol=1e-9)
    for name, values in split_draws(x, block).items():
        np.testing.assert_allclose(values, split_draws(y, plain)[name], rtol=1e-10, err_msg=name)


def test_reflectors_turn_columns_into_axes() -> None:
    columns = np.random.default_rng(1).standard_normal((20, 3))
    reflectors = _reflectors(columns)
    for i in range(3):
        z = columns[:, i].copy()
        reflect.py_func(reflectors.T, z, False)
        assert np.abs(z[i + 1 :]).max() < 1e-12
        reflect.py_func(reflectors.T, z, True)
        np.testing.assert_allclose(z, columns[:, i], atol=1e-12)


def test_without_information_nothing_is_turned() -> None:
    cross, none = np.zeros((4, 3, 6)), np.zeros((6, 6))
    assert _reflectors(_soft(none, none, cross, np.tile(np.eye(3), (4, 1, 1)))).shape == (12, 0)


def test_what_does_not_take_them_says_so(scan: tuple[xr.Dataset, xr.Dataset], fitted: xr.DataTree) -> None:
    for call in (
        lambda: posterior_maps(scan[0], fitted),
        lambda: prior_sensitivity(fitted),
        lambda: prior_check(scan[0], SPEC),
        lambda: calibrate(SPEC, n=2),
    ):
        with pytest.raises(InputError, match="image effects"):
            call()
