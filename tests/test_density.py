"""The density by hand is PyMC's, with its gradient; its exponential is numpy's."""

import subprocess
import sys

import numpy as np
import pytest

from ivimbayes.density import callbacks, coordinates, log_density, pack_region, split_draws
from ivimbayes.lanes import exponentials
from ivimbayes.model import build_model
from ivimbayes.modes import population_mode
from ivimbayes.noise import gaussian_logp
from ivimbayes.sampling import sampler_model
from ivimbayes.signals import SIGNALS
from ivimbayes.simulate import simulate
from ivimbayes.spec import ModelSpec, model_data
from ivimbayes.voxels import choose_voxels

B = [0, 10, 40, 0, 100, 200, 400, 400 + 1e-10, 600, 15.5]  # repeated, one up to rounding, and unsorted
CASES = [("normal", "voxel"), ("student_t", "voxel"), ("normal", "mean")]


def region(population: str, level: str, voxels: int = 150) -> tuple[dict[str, np.ndarray], ModelSpec]:
    """150 voxels take two blocks, the second with fillers; the images are averaged differently often."""
    scan, _ = simulate(B, 30, voxels=voxels, seed=5)
    scan["averages"] = ("measurement", np.array([1, 2, 1, 3, 1, 1, 4, 2, 1, 1.0]))
    chosen = choose_voxels(scan, level=level)["region-1"]
    spec = ModelSpec(population=population)
    found = population_mode(
        chosen["signal"].values / 100, chosen["averages"].values, np.array(B, float), spec.prior
    )
    data = model_data(chosen, spec, found, 100.0)
    often = np.random.default_rng(4).integers(1, 4, (len(data["averages"]), 1))
    return {**data, "averages": data["averages"] * often}, spec


def points(data: dict[str, np.ndarray], level: str, count: int) -> np.ndarray:
    """Coordinates from the bulk of the posterior to far outside it."""
    rng = np.random.default_rng(7)
    middle = [*data["centre"], *np.log(data["spread"]), 0, 0, 0, 1, -2, -3] if level == "voxel" else [-3]
    x = np.concatenate([middle, np.zeros(data["eta"].size)])
    return x + np.linspace(0.1, 3, count)[:, None] * rng.standard_normal((count, x.size))


@pytest.mark.parametrize(("population", "level"), CASES)
def test_density_and_gradient_are_those_of_pymc(population: str, level: str) -> None:
    data, spec = region(population, level)
    block, model = pack_region(data, spec, level), build_model(data, spec, level)
    reference = model.logp_dlogp_function(ravel_inputs=True)
    reference.set_extra_values({})
    assert coordinates(block) == sum(v.size for v in model.initial_point().values())
    for x in points(data, level, 5):
        expected, slope = reference(x)
        found = np.empty_like(x)
        assert log_density(x, found, block) == pytest.approx(float(expected), rel=1e-10, abs=1e-7)
        np.testing.assert_allclose(found, slope, rtol=1e-8, atol=1e-9 * np.abs(slope).max())


@pytest.mark.parametrize("level", ["voxel", "mean"])
def test_likelihood_and_S0_of_draws_have_their_closed_forms(level: str) -> None:
    data, spec = region("normal", level)
    drawn = split_draws(points(data, level, 4)[:2], pack_region(data, spec, level))
    n, y = data["averages"], data["observed"]
    values = SIGNALS["biexponential"].values(*np.moveaxis(drawn["theta"], -1, 0))
    curve = SIGNALS["biexponential"].curve(data["b"], *(v[..., None] for v in values))
    sigma, mean, sd = (drawn[name][:, None] for name in ("sigma", "S0_roi", "S0_sd"))
    expected = gaussian_logp(y, curve, sigma, mean, sd, n) - 0.5 * np.log(n).sum(axis=1)
    np.testing.assert_allclose(drawn["log_likelihood"], expected, rtol=1e-9)
    precision = 1 / sd**2 + (n * curve**2).sum(-1) / sigma**2
    centre = (mean / sd**2 + (n * curve * y).sum(-1) / sigma**2) / precision
    np.testing.assert_allclose(drawn["S0_mean"], centre, rtol=1e-9)
    np.testing.assert_allclose(drawn["S0_scale"], precision**-0.5, rtol=1e-9)


@pytest.mark.parametrize(("population", "level"), CASES)
def test_draws_are_split_as_pymc_does(population: str, level: str) -> None:
    data, spec = region(population, level)
    block, model = pack_region(data, spec, level), build_model(data, spec, level)
    x = points(data, level, 3)
    drawn, names = split_draws(x, block), [v.name for v in model.free_RVs]
    inverse = model.compile_fn(
        model.replace_rvs_by_values(model.free_RVs), inputs=model.value_vars, point_fn=False
    )
    for n in range(3):
        values, at = [], 0
        for variable, initial in model.initial_point().items():
            values.append(x[n, at : at + initial.size].reshape(initial.shape))
            at += initial.size
            assert variable in {v.name for v in model.value_vars}
        for name, expected in zip(names, inverse(*values), strict=True):
            found = (1 + drawn["partial"][n]) / 2 if name == "unit_partial" else drawn[name][n]
            np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


def test_exponentials() -> None:
    x = np.concatenate([np.random.default_rng(1).uniform(-700, 700, 20000), [0.0, -0.0, 1e-300]])
    out = np.empty_like(x)
    exponentials(x, out, np.empty(x.size, np.int64))
    np.testing.assert_allclose(out, np.exp(x), rtol=5e-16)
    far = np.array([-1e6, 1e6])
    exponentials(far, out[:2], np.empty(2, np.int64))
    assert out[0] < 1e-300
    assert out[1] > 1e300


def test_what_is_not_finite_is_told_to_the_sampler() -> None:
    data, spec = region("normal", "voxel")
    block = pack_region(data, spec)
    model = sampler_model(block, np.zeros(coordinates(block)))
    x, slope, value = (np.zeros(n) for n in (model.n_dim, model.n_dim, 1))
    call = model.compiled_logp_func.ctypes

    def status() -> int:
        arrays = [
            a.ctypes.data_as(kind) for a, kind in zip((x, slope, value), call.argtypes[1:4], strict=True)
        ]
        return int(call(x.size, *arrays, block.ctypes.data))

    assert status() == 0
    x[0] = np.nan
    assert status() == 3
    x[0], x[-1] = 0.0, np.inf
    assert status() == 3


def test_order_of_the_measurements_does_not_matter() -> None:
    data, spec = region("normal", "voxel")
    order = np.random.default_rng(3).permutation(len(B))
    other = {
        **data,
        "b": data["b"][order],
        "observed": data["observed"][:, order],
        "averages": data["averages"][:, order],
    }
    x = points(data, "voxel", 1)[0]
    slopes = np.empty((2, x.size))
    assert log_density(x, slopes[0], pack_region(data, spec)) == pytest.approx(
        log_density(x, slopes[1], pack_region(other, spec)), rel=1e-12
    )
    np.testing.assert_allclose(slopes[0], slopes[1], rtol=1e-9, atol=1e-9 * np.abs(slopes).max())


def test_regions_of_any_size_and_b_values_share_one_compilation() -> None:
    for voxels, b in ((7, B), (200, B[:6]), (150, np.linspace(0, 800, 40).tolist())):
        scan, _ = simulate(b, 30, voxels=voxels, seed=2)
        chosen = choose_voxels(scan, voxels_per_roi=None)["region-1"]
        found = population_mode(
            chosen["signal"].values / 100, chosen["averages"].values, np.array(b, float), ModelSpec().prior
        )
        block = pack_region(model_data(chosen, ModelSpec(), found, 100.0), ModelSpec())
        assert np.isfinite(log_density(np.zeros(coordinates(block)), np.empty(coordinates(block)), block))
    assert len(log_density.signatures) == 1


def test_compiled_code_is_kept_between_processes() -> None:
    """A second process loads the density; where there is no folder for it, nothing is kept and nothing fails."""
    script = (
        "import numba.core.caching as c, sys\n"
        "if len(sys.argv) > 1: c.CacheImpl._locator_classes = c.CacheImpl._locator_classes[:0]\n"
        "from ivimbayes import density as d\n"
        "print(d.KEEP, d.callbacks()[0].cache_hits if d.KEEP else '')\n"
    )

    def run(*words: str) -> list[str]:
        return subprocess.run(
            [sys.executable, "-c", script, *words], capture_output=True, text=True, check=True
        ).stdout.split()

    callbacks()
    assert run() == ["True", "1"]
    assert run("nowhere") == ["False"]
