"""The density by hand is PyMC's, with its gradient; its exponential is numpy's."""

import subprocess
import sys

import numpy as np
import pytest
from numba.core.runtime import _nrt_python, rtsys
from scipy.special import expit
from scipy.stats import beta, halfnorm, multivariate_normal, multivariate_t, norm

from ivimbayes.fitting.density import _log_density, compile_density, log_density
from ivimbayes.fitting.draws import split_draws
from ivimbayes.fitting.modes import population_mode
from ivimbayes.fitting.packing import coordinates, model_data, noise_constant, pack_region
from ivimbayes.fitting.sampler import sampler_model
from ivimbayes.fitting.voxels import choose_voxels
from ivimbayes.models.correlation import correlations, covariance
from ivimbayes.models.noise import NOISES, gaussian_logp
from ivimbayes.models.pymc_model import build_model
from ivimbayes.models.signals import SIGNALS
from ivimbayes.models.spec import ModelSpec
from ivimbayes.numerics.arithmetic import exponentials
from ivimbayes.simulation.regions import simulate

pytestmark = pytest.mark.usefixtures("interpreted")

B = [0, 10, 40, 0, 100, 200, 400, 400 + 1e-10, 600, 15.5]  # repeated, one up to rounding, and unsorted
CASES = [
    ("normal", "voxel", "biexponential", "gaussian", False),
    pytest.param("student_t", "voxel", "biexponential", "gaussian", False, marks=pytest.mark.slow),
    pytest.param("mixture", "voxel", "biexponential", "gaussian", False, marks=pytest.mark.slow),
    ("normal", "mean", "biexponential", "gaussian", False),
]
MORE = [
    pytest.param("student_t", "voxel", "monoexponential", "rician", False, marks=pytest.mark.slow),
    ("normal", "mean", "simplified", "student_t", False),
    ("normal", "voxel", "stretched", "gaussian", False),
]
IMAGES = [  # with image effects
    ("normal", "voxel", "biexponential", "gaussian", True),
    ("mixture", "voxel", "stretched", "gaussian", True),
    ("normal", "voxel", "simplified", "student_t", True),
    pytest.param("normal", "voxel", "simplified", "rician", True, marks=pytest.mark.slow),
]


def region(
    population: str,
    level: str,
    signal: str = "biexponential",
    noise: str = "gaussian",
    voxels: int = 150,
    images: bool = False,
) -> tuple[dict[str, np.ndarray], ModelSpec]:
    """150 voxels take two blocks, the second with fillers; the images are averaged differently often."""
    scan, _ = simulate(B, 30, voxels=voxels, signal=signal, noise=noise, seed=5)
    scan["averages"] = ("measurement", np.array([1, 2, 1, 3, 1, 1, 4, 2, 1, 1.0]))
    chosen = choose_voxels(scan, level=level)["region-1"]
    spec = ModelSpec(signal, noise, population=population, image_effects=images)
    found = population_mode(
        chosen["signal"].values / 100, chosen["averages"].values, np.array(B, float), spec.prior, None, signal,
        noise,
    )  # fmt: skip
    data = model_data(chosen, spec, found, 100.0)
    often = np.random.default_rng(4).integers(1, 4, (len(data["averages"]), 1))
    return {**data, "averages": data["averages"] * often}, spec


def points(
    data: dict[str, np.ndarray], level: str, count: int, population: str = "normal", images: bool = False
) -> np.ndarray:
    """Coordinates from the bulk of the posterior to far outside it."""
    rng = np.random.default_rng(7)
    P = len(data["centre"])
    partial = np.zeros(P * (P - 1) // 2)
    middle = [-3.0]
    if level == "voxel":
        middle = [*data["centre"], *np.log(data["spread"]), *partial, 1, -2, -3]
        middle += [-2, *np.full(P, 0.3)] if population == "mixture" else []
        middle += [-3.5] if images else []
    x = np.concatenate([middle, np.zeros(data["eta"].size + (len(data["b"]) if images else 0))])
    return x + np.linspace(0.1, 3, count)[:, None] * rng.standard_normal((count, x.size))


@pytest.mark.parametrize(
    ("population", "level", "signal", "noise", "images"),
    [*CASES, *MORE, *IMAGES],
)
def test_density_and_gradient_are_those_of_pymc(
    population: str, level: str, signal: str, noise: str, images: bool
) -> None:
    data, spec = region(population, level, signal, noise, images=images)
    block, model = pack_region(data, spec, level), build_model(data, spec, level)
    reference = model.logp_dlogp_function(ravel_inputs=True)
    reference.set_extra_values({})
    assert coordinates(block) == sum(v.size for v in model.initial_point().values())
    for x in points(data, level, 5, population, images):
        expected, slope = reference(x)
        found = np.empty_like(x)
        assert log_density(x, found, block) == pytest.approx(float(expected), rel=1e-10, abs=1e-7)
        np.testing.assert_allclose(found, slope, rtol=1e-8, atol=1e-9 * np.abs(slope).max())


def written_out(x: np.ndarray, data: dict[str, np.ndarray], spec: ModelSpec) -> float:
    """The log-density of a pooled region in plain numpy and scipy, voxel by voxel."""
    P, V, Q = len(data["centre"]), *data["eta"].shape
    pairs = P * (P - 1) // 2
    more = 1 + P if spec.population == "mixture" else 0
    mu, ln_sd, raw, (S0, ln_S0_sd, ln_sigma), second, z = np.split(x, np.cumsum([P, P, pairs, 3, more]))
    sd, S0_sd, sigma, unit = np.exp(ln_sd), np.exp(ln_S0_sd), np.exp(ln_sigma), expit(raw)
    total = norm(data["centre"], data["width"]).logpdf(mu).sum() + norm(1, 0.5).logpdf(S0)
    total += (halfnorm(scale=data["spread"]).logpdf(sd) + ln_sd).sum()
    total += halfnorm(scale=0.5).logpdf(S0_sd) + ln_S0_sd
    total += halfnorm(scale=data["sigma_scale"]).logpdf(sigma) + ln_sigma
    shapes = [spec.eta + (P - 2 - j) / 2 for i in range(P) for j in range(i)]
    total += sum(beta(a, a).logpdf(u) + np.log(u * (1 - u)) for a, u in zip(shapes, unit, strict=True))
    Sigma = np.eye(Q) * S0_sd**2
    Sigma[:P, :P] = covariance(sd, correlations(2 * unit - 1, P))
    mean, inverse = np.append(mu, S0)[:Q], np.linalg.inv(Sigma)
    population = multivariate_normal(mu, Sigma[:P, :P])
    if spec.population == "student_t":
        population = multivariate_t(mu, Sigma[:P, :P], df=spec.nu)
    if more:
        share, shift = expit(second[0]), sd * second[1:]
        apart = multivariate_normal(mu + shift, Sigma[:P, :P])
        total += beta(1, 9).logpdf(share) + np.log(share * (1 - share))
        total += norm(0, 4).logpdf(second[1:]).sum()
    model, noise = SIGNALS[spec.signal], NOISES[spec.noise]
    for v in range(V):
        A = inverse + data["Lambda"][v]
        latent = np.linalg.solve(A, inverse @ mean + data["eta"][v])
        latent = latent + np.linalg.solve(np.linalg.cholesky(A).T, z[v * Q : (v + 1) * Q])
        density = population.logpdf(latent[:P])
        if more:
            density = np.logaddexp(np.log1p(-share) + density, np.log(share) + apart.logpdf(latent[:P]))
        total += density - 0.5 * np.linalg.slogdet(A)[1]
        curve = model.curve(data["b"].round(6), *model.values(*latent[:P]))
        y, n, s = data["observed"][v], data["averages"][v], np.array(sigma)
        if noise.marginal:
            total += gaussian_logp(y, curve, s, np.array(S0), np.array(S0_sd), n)
        else:
            total += norm(S0, S0_sd).logpdf(latent[P]) + noise.logp(y, latent[P] * curve, s, n).sum()
    return float(total)


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("signal", SIGNALS)
def test_density_of_every_signal_and_noise_written_out(signal: str, noise: str) -> None:
    for population in ("normal", "student_t", "mixture"):
        data, spec = region(population, "voxel", signal, noise, 20)
        block = pack_region(data, spec)
        for x in points(data, "voxel", 3, population)[:2]:
            found = log_density(x, np.empty_like(x), block)
            assert found == pytest.approx(written_out(x, data, spec), rel=1e-10, abs=1e-7)


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("signal", SIGNALS)
@pytest.mark.parametrize("population", ["student_t", "mixture"])
def test_gradient_and_likelihood_of_every_signal_and_noise(signal: str, noise: str, population: str) -> None:
    """The derivative along directions, by differences, and the likelihood written out with numpy."""
    data, spec = region(population, "voxel", signal, noise, 20)
    block, rng = pack_region(data, spec), np.random.default_rng(8)
    x = points(data, "voxel", 2, population)[0]
    slope = np.empty_like(x)
    log_density(x, slope, block)
    for direction in rng.standard_normal((6, x.size)) * 3e-5:
        ends = [log_density(x + k * direction, np.empty_like(x), block) for k in (-2, -1, 1, 2)]
        numeric = (ends[0] - 8 * ends[1] + 8 * ends[2] - ends[3]) / 12
        assert slope @ direction == pytest.approx(numeric, rel=1e-5, abs=1e-7 * np.abs(slope).max() * 3e-5)
    drawn, model = split_draws(x[None], block), SIGNALS[signal]
    values = model.values(*np.moveaxis(drawn["theta"][0], -1, 0))
    curve = model.curve(data["b"].round(6), *(v[:, None] for v in values))
    n, y, sigma = data["averages"], data["observed"], np.full(20, drawn["sigma"][0])
    if NOISES[noise].marginal:
        mean, sd = (np.full(20, drawn[name][0]) for name in ("S0_roi", "S0_sd"))
        expected = gaussian_logp(y, curve, sigma, mean, sd, n)
    else:
        expected = NOISES[noise].logp(y, drawn["S0_mean"][0][:, None] * curve, sigma, n).sum(axis=1)
    found = drawn["log_likelihood"][0] + noise_constant(noise, y, n)
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-9)


@pytest.mark.parametrize("level", ["voxel", "mean"])
def test_likelihood_and_S0_of_draws_have_their_closed_forms(level: str) -> None:
    data, spec = region("normal", level)
    drawn = split_draws(points(data, level, 4)[:2], pack_region(data, spec, level))
    n, y = data["averages"], data["observed"]
    values = SIGNALS["biexponential"].values(*np.moveaxis(drawn["theta"], -1, 0))
    curve = SIGNALS["biexponential"].curve(data["b"], *(v[..., None] for v in values))
    sigma, mean, sd = (drawn[name][:, None] for name in ("sigma", "S0_roi", "S0_sd"))
    expected = gaussian_logp(y, curve, sigma, mean, sd, n) - noise_constant("gaussian", y, n)
    np.testing.assert_allclose(drawn["log_likelihood"], expected, rtol=1e-9)
    precision = 1 / sd**2 + (n * curve**2).sum(-1) / sigma**2
    centre = (mean / sd**2 + (n * curve * y).sum(-1) / sigma**2) / precision
    np.testing.assert_allclose(drawn["S0_mean"], centre, rtol=1e-9)
    np.testing.assert_allclose(drawn["S0_scale"], precision**-0.5, rtol=1e-9)


@pytest.mark.parametrize(
    ("population", "level", "signal", "noise", "images"),
    [*CASES, MORE[0], IMAGES[0], *IMAGES[2:]],
)
def test_draws_are_split_as_pymc_does(
    population: str, level: str, signal: str, noise: str, images: bool
) -> None:
    data, spec = region(population, level, signal, noise, images=images)
    block, model = pack_region(data, spec, level), build_model(data, spec, level)
    x = points(data, level, 3, population, images)
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
            if name == "unit_partial":
                found = (1 + drawn["partial"][n]) / 2
            elif name == "second_apart":
                found = drawn["second_shift"][n] / drawn["sd"][n]
            else:
                found = drawn[name][n]
            if name == "theta" and noise != "gaussian":
                found = np.concatenate([found, drawn["S0_mean"][n][:, None]], axis=1)
            np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


def test_exponentials() -> None:
    x = np.concatenate([np.random.default_rng(1).uniform(-700, 700, 20000), [0.0, -0.0, 1e-300]])
    out = np.empty_like(x)
    exponentials(x, out)
    np.testing.assert_allclose(out, np.exp(x), rtol=5e-16)
    far = np.array([-1e6, 1e6])
    exponentials(far, out[:2])
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
        before = len(_log_density.signatures)
        scan, _ = simulate(b, 30, voxels=voxels, seed=2)
        chosen = choose_voxels(scan, voxels_per_roi=None)["region-1"]
        found = population_mode(
            chosen["signal"].values / 100, chosen["averages"].values, np.array(b, float), ModelSpec().prior
        )
        block = pack_region(model_data(chosen, ModelSpec(), found, 100.0), ModelSpec())
        assert np.isfinite(log_density(np.zeros(coordinates(block)), np.empty(coordinates(block)), block))
        assert before in (len(_log_density.signatures), 0)
    assert len(_log_density.signatures) == 1


def test_compiled_code_is_kept_between_processes() -> None:
    """A second process loads the density; where there is no folder for it, nothing is kept and nothing fails."""
    script = (
        "import numba.core.caching as c, sys\n"
        "if len(sys.argv) > 1: c.CacheImpl._locator_classes = c.CacheImpl._locator_classes[:0]\n"
        "from ivimbayes.fitting.density import compile_density\n"
        "from ivimbayes.numerics.jit import KEEP\n"
        "print(KEEP, compile_density('gaussian', False)[0].cache_hits if KEEP else '')\n"
    )

    def run(*words: str) -> list[str]:
        return subprocess.run(
            [sys.executable, "-c", script, *words], capture_output=True, text=True, check=True
        ).stdout.split()

    compile_density("gaussian", False)
    assert run() == ["True", "1"]
    assert run("nowhere") == ["False"]


def test_an_unknown_noise_is_an_error_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """No dispatch on the noise has a default: a noise that is only half added fails loudly."""
    monkeypatch.setitem(NOISES, "chi", NOISES["student_t"])
    scan, _ = simulate(B, 30, voxels=6, seed=3)
    chosen = choose_voxels(scan)["region-1"]
    signal, averages = chosen["signal"].values / 100, chosen["averages"].values
    spec = ModelSpec()
    with pytest.raises(ValueError, match="chi"):
        population_mode(signal, averages, np.array(B, float), spec.prior, None, "biexponential", "chi")
    with pytest.raises(KeyError, match="chi"):
        noise_constant("chi", signal, averages)
    found = population_mode(signal, averages, np.array(B, float), spec.prior)
    block = pack_region(model_data(chosen, spec, found, 100.0), spec)
    x = np.zeros(coordinates(block))
    assert np.isfinite(log_density(x, np.empty_like(x), block))
    block[7] = 3  # of no noise
    assert np.isnan(log_density(x, np.empty_like(x), block))


@pytest.mark.parametrize("images", [False, True])
def test_all_memory_is_freed(images: bool) -> None:
    """A function compiled without reference counts leaks arrays that another one returns to it."""
    data, spec = region("normal", "voxel", images=images)
    block, x = pack_region(data, spec), points(data, "voxel", 1, images=images)[0]
    slope = np.empty_like(x)
    log_density(x, slope, block)
    split_draws(x[None], block)
    _nrt_python.memsys_enable_stats()
    try:
        before = rtsys.get_allocation_stats()
        _log_density(x, slope, block)
        split_draws(x[None], block)
        after = rtsys.get_allocation_stats()
    finally:
        _nrt_python.memsys_disable_stats()
    made = after.alloc - before.alloc
    assert made > 10
    assert after.free - before.free == made
