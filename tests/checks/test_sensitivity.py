import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from conftest import SHORT, B
from scipy.stats import norm

from ivimbayes import ModelSpec, fit, prior_sensitivity, simulate, tissue_prior
from ivimbayes.checks.sensitivity import (
    COLUMNS,
    CONFLICT,
    THRESHOLD,
    WEAK,
    _Draws,
    _top_level,
    judge,
    marginal_log_likelihood,
    sensitivity,
)
from ivimbayes.cli.results import summary_command
from ivimbayes.cli.terminal import print_sensitivity
from ivimbayes.models.correlation import correlations, draw_correlation, partial_correlations
from ivimbayes.models.priors import TissuePrior

VOXELS, OPTIONS = 12, {"draws": 1000, "tune": 400, "chains": 4, "cores": 2, "progress": False, "seed": 1}
WIDE = TissuePrior("wide", {"f": 0.2, "D": 1.1e-3, "D_star": 50e-3}, {"f": 1.5, "D": 0.8, "D_star": 1.5})


# ---------------------------------------------------------------- a normal mean, where all is known


def distance(mean: float, sd: float, alpha_mean: float, alpha_sd: float) -> float:
    """Square root of the cumulative Jensen-Shannon distance of two normals, over the range of 4 000 draws."""
    far = norm.ppf(1 - 0.5 / 4000)
    x = np.linspace(mean - far * sd, mean + far * sd, 20001)
    step, found = x[1] - x[0], []
    for sign in (1, -1):
        p, q = norm.cdf(sign * (x - mean) / sd), norm.cdf(sign * (x - alpha_mean) / alpha_sd)
        middle = np.log2((p + q) / 2)
        total = p.sum() + q.sum()
        both = (p * (np.log2(p) - middle)).sum() + (q * (np.log2(q) - middle)).sum()
        found.append(np.sqrt(both * step / (total * step)))
    return max(found)


def analytic(prior_mean: float, prior_sd: float, data_mean: float, data_sd: float, of: str) -> float:
    def posterior(a: float, b: float) -> tuple[float, float]:
        precision = a / prior_sd**2 + b / data_sd**2
        return (a * prior_mean / prior_sd**2 + b * data_mean / data_sd**2) / precision, precision**-0.5

    slopes = []
    for alpha in (0.99, 1.01):
        scaled = posterior(alpha, 1) if of == "prior" else posterior(1, alpha)
        slopes.append(distance(*posterior(1, 1), *scaled) / abs(np.log2(alpha)))
    return float(np.mean(slopes))


@pytest.mark.parametrize(
    ("prior", "data", "said"),
    [((0, 1), (3, 1), CONFLICT), ((0, 10), (1, 0.5), ""), ((0, 0.3), (0.2, 8), WEAK)],
)
def test_of_a_normal_mean_agrees_with_the_analytic_value(
    prior: tuple[float, float], data: tuple[float, float], said: str
) -> None:
    precision = prior[1] ** -2 + data[1] ** -2
    mean = (prior[0] * prior[1] ** -2 + data[0] * data[1] ** -2) / precision
    draws = mean + precision**-0.5 * np.random.default_rng(0).standard_normal((4, 1000))
    log_prior = -0.5 * ((draws - prior[0]) / prior[1]) ** 2
    log_likelihood, kurtosis = marginal_log_likelihood(draws[..., None], log_prior)
    assert kurtosis == pytest.approx(1, abs=0.1)
    found = sensitivity(draws, log_prior), sensitivity(draws, log_likelihood)
    wanted = analytic(*prior, *data, "prior"), analytic(*prior, *data, "likelihood")
    assert found == pytest.approx(wanted, rel=0.12, abs=0.012)
    assert judge(*found) == judge(*wanted) == said


def test_a_factor_that_says_nothing_of_the_value_moves_nothing() -> None:
    """A factor of 12 top-level parameters; that of 200 voxels would drown a threshold of 0.05 in its noise."""
    rng = np.random.default_rng(1)
    values = rng.standard_normal((4, 1000))
    few, many = (-0.5 * rng.chisquare(n, (4, 1000)) for n in (12, 600))
    assert sensitivity(values, few) < 0.02 < THRESHOLD < sensitivity(values, many)


def test_judgement() -> None:
    assert [judge(*pair) for pair in ((0.04, 0.1), (0.06, 0.1), (0.06, 0.01), (0.06, np.nan))] == [
        "", CONFLICT, WEAK, "",
    ]  # fmt: skip


@pytest.mark.parametrize("parameters", [1, 2, 3, 5])
def test_partial_correlations_are_the_inverse(parameters: int) -> None:
    r = draw_correlation(2, 7, np.random.default_rng(0), parameters)
    np.testing.assert_allclose(correlations(partial_correlations(r, parameters), parameters), r, atol=1e-12)


# ---------------------------------------------------------------- fits


def one_region(voxels: int = VOXELS, signal: float = 1.0) -> xr.Dataset:
    scan, _ = simulate(B, 20, voxels=voxels, prior=tissue_prior("liver"), seed=5)
    return scan.assign(signal=signal * scan["signal"])


def run(prior: TissuePrior, scan: xr.Dataset | None = None) -> xr.DataTree:
    return fit(one_region() if scan is None else scan, ModelSpec(prior=prior), **OPTIONS)


def top_level(tree: xr.DataTree, prior: TissuePrior) -> _Draws:
    return _top_level(tree, "region-1", ModelSpec(), prior.theta("biexponential"))


@pytest.fixture(scope="module")
def brain() -> xr.DataTree:
    """Signals of liver under the prior of brain."""
    return run(tissue_prior("brain"))


def shift(draws: np.ndarray, log_density: np.ndarray, alpha: float) -> np.ndarray:
    """Change of the mean, in posterior standard deviations, that power scaling predicts."""
    flat, log_weight = draws.reshape(-1, draws.shape[-1]), (alpha - 1) * log_density.ravel()
    weight = np.exp(log_weight - log_weight.max())
    return np.asarray((weight @ flat / weight.sum() - flat.mean(axis=0)) / flat.std(axis=0))


def moved(before: xr.DataTree, after: xr.DataTree) -> np.ndarray:
    a, b = (t["posterior"].to_dataset()["mu"].values.reshape(-1, 3) for t in (before, after))
    return np.asarray((b.mean(axis=0) - a.mean(axis=0)) / a.std(axis=0))


@pytest.mark.parametrize("alpha", [0.5, 2.0])
def test_a_refit_with_the_scaled_prior_moves_as_predicted(brain: xr.DataTree, alpha: float) -> None:
    """Widths over sqrt(alpha) are the prior of mu to the power alpha. Monte-Carlo error is about 0.05."""
    prior = tissue_prior("brain")
    scaled = dataclasses.replace(prior, width={k: v / np.sqrt(alpha) for k, v in prior.width.items()})
    found = moved(brain, run(scaled))
    draws = top_level(brain, prior)
    wanted = shift(draws.coordinates[..., :3], draws.log_prior["mu"], alpha)
    assert np.abs(wanted).max() > 0.2
    np.testing.assert_allclose(found, wanted, atol=0.2)
    assert np.sign(found[np.abs(wanted) > 0.2]).tolist() == np.sign(wanted[np.abs(wanted) > 0.2]).tolist()


def test_a_refit_with_twice_the_voxels_moves_as_predicted(brain: xr.DataTree) -> None:
    scan = one_region()
    twice = scan.isel(x=np.tile(np.arange(VOXELS), 2))
    draws = top_level(brain, tissue_prior("brain"))
    whole = sum(draws.log_prior.values()) + draws.log_jacobian
    log_likelihood, _ = marginal_log_likelihood(draws.coordinates, np.asarray(whole))
    wanted = shift(draws.coordinates[..., :3], log_likelihood, 2.0)
    found = moved(brain, run(tissue_prior("brain"), twice))
    assert np.abs(wanted).max() > 0.2
    np.testing.assert_allclose(found, wanted, atol=0.25)


def test_a_sharp_prior_far_from_the_truth_is_flagged_and_a_wide_one_is_not() -> None:
    scan = one_region(40)
    sharp = dataclasses.replace(WIDE, centre={**WIDE.centre, "f": 0.05}, width={**WIDE.width, "f": 0.1})
    far = prior_sensitivity(run(sharp, scan)).set_index("parameter")
    wide = prior_sensitivity(run(WIDE, scan)).set_index("parameter")
    assert far.loc["f", "diagnosis"] == CONFLICT and far.loc["f", "prior"] > 2 * THRESHOLD
    assert (wide["diagnosis"] == "").all()
    assert far.loc["f", "prior"] > 5 * wide.loc["f", "prior"]


def test_table_and_components(short_fit: xr.DataTree) -> None:
    table = prior_sensitivity(short_fit)
    assert tuple(table.columns) == COLUMNS
    assert table["parameter"].tolist() == ["f", "D", "D_star", "S0", "sigma"] * 3
    assert (table["diagnosis"] == "").all()
    assert (table["likelihood"] > THRESHOLD).all() and (table["contraction"] > 0.9).all()
    mu = prior_sensitivity(short_fit, component="mu")
    assert mu.attrs["component"] == "mu"
    pd.testing.assert_series_equal(mu["likelihood"], table["likelihood"])
    assert not np.allclose(mu["prior"], table["prior"])


def test_the_units_of_the_signal_do_not_matter(short_fit: xr.DataTree) -> None:
    larger = short_fit.copy()
    for group in ("posterior", "observed_data"):
        data = larger[group].to_dataset()
        scaled = {n: 1000 * data[n] for n in ("S0", "S0_roi", "S0_sd", "sigma", "signal") if n in data}
        larger[group] = xr.DataTree(data.assign(scaled))
    ours, theirs = prior_sensitivity(short_fit), prior_sensitivity(larger)
    columns = ["prior", "likelihood", "contraction"]
    np.testing.assert_allclose(ours[columns], theirs[columns], atol=1e-6)


@pytest.mark.parametrize(
    "spec", [ModelSpec(), ModelSpec(signal="monoexponential"), ModelSpec(noise="rician")]
)
def test_mean_curves_and_other_models(spec: ModelSpec, phantom_scan: tuple[xr.Dataset, xr.Dataset]) -> None:
    level = "mean" if spec == ModelSpec() else "voxel"
    tree = fit(phantom_scan[0], spec, seed=3, cores=2, level=level, **SHORT)
    table = prior_sensitivity(tree)
    assert np.isfinite(table[["prior", "contraction"]]).all(axis=None)
    assert np.isfinite(table["likelihood"]).any()


@pytest.mark.parametrize(("draws", "distance"), [(1, 20.0), (60, 5.0)])
def test_long_tails_and_two_modes_are_not_taken_for_a_normal(
    short_fit: xr.DataTree, draws: int, distance: float, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = short_fit.copy()
    data = odd["posterior"].to_dataset()
    jump = xr.zeros_like(data["mu"])
    jump[:, :draws] = distance
    odd["posterior"] = xr.DataTree(data.assign(mu=data["mu"] + jump))
    table = prior_sensitivity(odd)
    assert table["likelihood"].isna().all() and (table["diagnosis"] == "").all()
    print_sensitivity(table)
    assert "liver: the posterior has two modes or long tails" in capsys.readouterr().out


def test_refusals(short_fit: xr.DataTree, refused: Callable[..., str]) -> None:
    refused(lambda: prior_sensitivity(short_fit, component="prior"), "component 'prior'", "correlation")
    part = short_fit.filter(lambda node: node.name != "observed_data")
    refused(lambda: prior_sensitivity(part), "no observed_data", "from fit")


def test_summary_prints_it_when_asked(
    short_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(short_file, tmp_path)
    summary_command(tmp_path, sensitivity=True)
    more = capsys.readouterr().out
    assert (
        "95 % HDI" in more and "contraction" in more and "0 of 15 values are sensitive to their prior" in more
    )
