from collections.abc import Callable

import numpy as np
import pymc as pm
import pytensor
import pytensor.tensor as pt
import pytest
import xarray as xr
from scipy.stats import ks_2samp, multivariate_normal, multivariate_t

from ivimbayes.fitting.modes import PopulationMode, population_mode
from ivimbayes.fitting.packing import model_data
from ivimbayes.fitting.voxels import choose_voxels
from ivimbayes.models.correlation import covariance
from ivimbayes.models.noise import gaussian_logp
from ivimbayes.models.population import draw_region_prior
from ivimbayes.models.priors import tissue_prior
from ivimbayes.models.pymc_model import Informed, build_model
from ivimbayes.models.signals import SIGNALS
from ivimbayes.models.spec import ModelSpec
from ivimbayes.simulation.regions import simulate

pytestmark = pytest.mark.usefixtures("interpreted")

B = [0, 10, 40, 100, 200, 400, 600, 800]
V = 6


def region(population: str = "normal") -> tuple[dict[str, np.ndarray], ModelSpec, PopulationMode]:
    scan, _ = simulate(B, 30, voxels=V, seed=5)
    voxels = choose_voxels(scan)["region-1"]
    spec = ModelSpec(population=population, prior=tissue_prior("kidney"))
    found = population_mode(
        voxels["signal"].values / 100, voxels["averages"].values, np.array(B, float), spec.prior
    )
    return model_data(voxels, spec, found, 100.0), spec, found


@pytest.fixture(scope="module")
def model() -> pm.Model:
    data, spec, _ = region()
    return build_model(data, spec)


def test_spec_round_trip_and_checks(refused: Callable[..., str]) -> None:
    spec = ModelSpec(population="student_t", nu=5, eta=1, prior=tissue_prior("brain"))
    assert ModelSpec.from_json(spec.to_json()) == spec
    assert ModelSpec.from_json(ModelSpec().to_json()) == ModelSpec()
    refused(lambda: ModelSpec(population="cauchy"), "population 'cauchy'", "normal, student_t, mixture")
    refused(lambda: ModelSpec(noise="poisson"), "noise 'poisson'")
    refused(lambda: ModelSpec(signal="x"), "signal 'x'")
    refused(lambda: ModelSpec(nu=2), "nu 2")
    refused(lambda: ModelSpec(eta=0), "eta 0")


def test_informed_space_is_a_change_of_variables() -> None:
    data, spec, found = region()
    rng = np.random.default_rng(12)
    L = np.linalg.cholesky(covariance(np.array([0.3, 0.2, 0.5]), np.array([0.4, -0.6, 0.1])))
    mu, z = found.mean, rng.standard_normal((V, 3))
    inputs = [pt.constant(v) for v in (mu, L, data["Lambda"], data["eta"])]
    theta = Informed().backward(pt.constant(z), None, None, *inputs).eval()
    back = Informed().forward(pt.constant(theta), None, None, *inputs).eval()
    np.testing.assert_allclose(back, z, atol=1e-9)
    jacobian = Informed().log_jac_det(pt.constant(z), None, None, *inputs).eval()
    inverse = np.linalg.inv(L @ L.T)
    for v in range(V):
        A = inverse + data["Lambda"][v]
        assert jacobian[v] == pytest.approx(-0.5 * np.linalg.slogdet(A)[1])
        M = np.linalg.solve(A, inverse @ mu + data["eta"][v])
        np.testing.assert_allclose(theta[v], M + np.linalg.solve(np.linalg.cholesky(A).T, z[v]), atol=1e-9)


def point(spec: ModelSpec, seed: int = 13) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "mu": spec.prior.theta_centre + 0.1 * rng.standard_normal(3), "sd": rng.uniform(0.1, 0.5, 3),
        "unit_partial": rng.uniform(0.2, 0.8, 3), "S0_roi": np.array(1.02), "S0_sd": np.array(0.12),
        "sigma": np.array(0.04), "theta": spec.prior.theta_centre + 0.3 * rng.standard_normal((V, 3)),
    }  # fmt: skip


@pytest.mark.parametrize("population", ["normal", "student_t"])
def test_densities_match_scipy(population: str) -> None:
    data, spec, _ = region(population)
    model = build_model(data, spec)
    at = point(spec)
    with model:
        theta, signal = model["theta"], model["signal"]
        values = {model.rvs_to_values[model[name]]: value for name, value in at.items()}
        logps = pm.logp(theta, at["theta"]), model.logp(vars=[signal], jacobian=False, sum=False)[0]
    given = {model[name]: pt.constant(value) for name, value in at.items() if name != "theta"}
    of_theta = pytensor.graph.replace.clone_replace(logps[0], given).eval()
    r10, r20, r21 = 2 * at["unit_partial"] - 1
    pairs = np.array([r10, r20, r10 * r20 + r21 * np.sqrt((1 - r10**2) * (1 - r20**2))])
    Sigma = covariance(at["sd"], pairs)
    exact = (
        multivariate_t(at["mu"], Sigma, df=spec.nu)
        if population == "student_t"
        else multivariate_normal(at["mu"], Sigma)
    )
    np.testing.assert_allclose(of_theta, exact.logpdf(at["theta"]), rtol=1e-9)
    assert values


def test_pymc_likelihood_is_the_numpy_one(model: pm.Model) -> None:
    data, spec, _ = region()
    draws = [point(spec, seed) for seed in (1, 2)]
    posterior = xr.Dataset(
        {
            name: (
                ("chain", "draw", *(model.named_vars_to_dims.get(name) or ())),
                np.stack([d[name] for d in draws])[None],
            )
            for name in draws[0]
        }
    )
    tree = xr.DataTree.from_dict({"posterior": posterior})
    with model:
        found = pm.compute_log_likelihood(tree, progressbar=False)["log_likelihood"]["signal"].values[0]
    for logp, at in zip(found, draws, strict=True):
        f, D, D_star = SIGNALS["biexponential"].values(*at["theta"].T)
        curve = SIGNALS["biexponential"].curve(data["b"], f[:, None], D[:, None], D_star[:, None])
        sigma, mean, sd = (at[name] * np.ones(V) for name in ("sigma", "S0_roi", "S0_sd"))
        expected = gaussian_logp(data["observed"], curve, sigma, mean, sd, data["averages"])
        np.testing.assert_allclose(logp, expected, rtol=1e-9)


@pytest.mark.filterwarnings("ignore:Numba will use object mode")
def test_pymc_prior_is_the_simulated_one(model: pm.Model) -> None:
    # Two independent writings of one prior: eight Kolmogorov-Smirnov tests at 0.0005 each.
    _, spec, _ = region()
    with model:
        prior = pm.sample_prior_predictive(1500, random_seed=14)
    drawn = draw_region_prior(spec.prior, 1500, np.random.default_rng(15), spec.eta)
    ours, theirs = drawn, prior["prior"].to_dataset()
    for i in range(3):
        assert ks_2samp(ours["mu"][:, i], theirs["mu"].values[0, :, i]).pvalue > 5e-4
        assert ks_2samp(ours["sd"][:, i], theirs["sd"].values[0, :, i]).pvalue > 5e-4
    assert ks_2samp(ours["f_roi"], 1 / (1 + np.exp(-theirs["mu"].values[0, :, 0]))).pvalue > 5e-4
    assert ks_2samp(ours["D_roi"] * 1.2, np.exp(theirs["mu"].values[0, :, 1])).pvalue < 5e-4
    signals = prior["prior_predictive"]["signal"].values[0]
    assert signals.shape == (1500, V, len(B))
    assert np.isfinite(signals).all()
    noise = signals - signals.mean(axis=1, keepdims=True)
    assert abs(np.corrcoef(noise[:, 0, 3], noise[:, 1, 3])[0, 1]) < 0.5  # voxels do not share their noise


@pytest.mark.filterwarnings("ignore:Numba will use object mode")
def test_posterior_predictive_works(model: pm.Model) -> None:
    _, spec, _ = region()
    posterior = xr.Dataset(
        {
            name: (("chain", "draw", *(model.named_vars_to_dims.get(name) or ())), value[None, None])
            for name, value in point(spec).items()
        }
    )
    with model:
        drawn = pm.sample_posterior_predictive(
            xr.DataTree.from_dict({"posterior": posterior}),
            progressbar=False,
            random_seed=1,
            freeze_vars=list(posterior.data_vars),
        )
    assert drawn["posterior_predictive"]["signal"].shape == (1, 1, V, len(B))


def test_ordered_by_construction(model: pm.Model) -> None:
    theta = np.random.default_rng(16).normal(0, 20, (1000, 3))
    _, D, D_star = SIGNALS["biexponential"].values(*theta.T, exp=np.exp)
    assert (D_star >= D).all()
    assert [v.name for v in model.observed_RVs] == ["signal"]
    assert not model.potentials
