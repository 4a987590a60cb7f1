"""The benchmarks' inputs and the rival's model stay in step with the package; the timing itself is not tested."""

import maps
import numpy as np
import population
import pytest
import scaling
import settings
import xarray as xr

from ivimbayes import choose_voxels
from ivimbayes.fitting.density import log_density
from ivimbayes.fitting.draws import split_draws
from ivimbayes.fitting.packing import coordinates, unpack


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:PyTensor could not link to a BLAS")
def test_rival_has_the_same_voxels_and_parameters() -> None:
    scan = population.scan_of(1)
    chosen = choose_voxels(scan, voxels_per_roi=None)
    assert [v.sizes["voxel"] for v in chosen.values()] == [population.VOXELS] * 4
    model = population.by_hand(scan)
    observed = model.rvs_to_values[model["signal"]].data
    expected = np.concatenate([v["signal"].values for v in chosen.values()])
    scale = np.repeat(model.scale, population.VOXELS)[:, None]
    np.testing.assert_allclose(observed * scale, expected)
    sizes = sum(v.size for v in model.initial_point().values())
    assert sizes == 4 * (3 + 6 + 3) + 400 * (3 + 1)


def test_alternative_spaces_keep_the_posterior() -> None:
    """Another approximation moves z, not the density of theta: equal once the jacobian is taken off."""
    task = settings.prepare(population.scan_of(2), "liver")[0]
    V, rng = population.VOXELS, np.random.default_rng(1)
    x = np.zeros(coordinates(task.block))
    x[:3], x[3:6], x[9:12], x[12:] = task.starts[0].mean, -1, (1, -2, -3), rng.standard_normal(3 * V)
    inverse = np.eye(3) / np.exp(-1) ** 2
    theta = split_draws(x, task.block)["theta"]
    found = []
    for change in (lambda t: t, lambda t: settings.scaled(t, 0.5), settings.diagonal, settings.at_prior):
        block = change(task).block
        region = unpack.py_func(block)
        lanes = region.present.shape[1]
        Lambda = np.moveaxis(region.precision, -1, 1).reshape(-1, 3, 3)[:V]
        eta = np.moveaxis(region.shift, -1, 1).reshape(-1, 3)[:V]
        assert lanes >= V
        A = inverse + Lambda
        M = np.linalg.solve(A, (inverse @ x[:3] + eta)[..., None])[..., 0]
        z = np.einsum("vji,vj->vi", np.linalg.cholesky(A), theta - M)
        at = np.concatenate([x[:12], z.ravel()])
        np.testing.assert_allclose(split_draws(at, block)["theta"], theta, atol=1e-8)
        found.append(log_density(at, np.empty_like(at), block) + 0.5 * np.linalg.slogdet(A)[1].sum())
    np.testing.assert_allclose(found, found[0], rtol=1e-9)


def test_worst_values_are_found() -> None:
    draws = np.random.default_rng(0).standard_normal((4, 500, 3))
    draws[0, :, 2] += 1
    r_hat, ess = scaling.worst(xr.Dataset({"a": (("chain", "draw", "n"), draws)}), ["a"])
    assert r_hat > 1.05
    assert ess < 100


def test_scans_of_the_maps_benchmark() -> None:
    scan, truth = maps.scan_of("brain", 10, 300, seed=0)
    assert (scan["signal"].values > 0).all()
    assert scan["signal"].shape == (300, 1, 1, 16)
    assert all(len(truth[name]) == 300 for name in maps.NAMES)
    f, D, D_star = (truth[name][:, None] for name in maps.NAMES)
    curve = maps.curves(scan) / maps.curves(scan)[:, :2].mean(axis=1, keepdims=True)
    error = curve - (f * np.exp(-maps.B * D_star) + (1 - f) * np.exp(-maps.B * D))
    assert 0.08 < error[:, 2:].std() < 0.16
