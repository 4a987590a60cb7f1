import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import arviz as az
import numpy as np
import pytest
import xarray as xr
from conftest import SHORT, B

import ivimbayes.fitting.convergence as convergence
import ivimbayes.fitting.fit as sampling
from ivimbayes import ModelSpec, fit, predict, simulate
from ivimbayes.fitting.voxels import choose_voxels
from ivimbayes.models.noise import gaussian_logp
from ivimbayes.models.signals import SIGNALS

GROUPS = {
    "posterior", "prior", "posterior_predictive", "prior_predictive", "log_likelihood", "sample_stats",
    "observed_data", "constant_data",
}  # fmt: skip
Scan = tuple[xr.Dataset, xr.Dataset]
TINY: dict[str, Any] = {**SHORT, "draws": 50, "tune": 50, "voxels_per_roi": 8}


def test_groups_dims_and_units(short_fit: xr.DataTree) -> None:
    assert set(short_fit.children) == GROUPS
    posterior = short_fit["posterior"].to_dataset()
    assert dict(posterior.sizes) == {
        "chain": 2,
        "draw": 200,
        "roi": 3,
        "voxel": 60,
        "parameter": 3,
        "pair": 3,
    }
    for name in ("f", "D", "D_star", "S0"):
        assert posterior[name].dims == ("chain", "draw", "voxel")
    for name in ("f_roi", "D_roi", "D_star_roi", "sigma", "S0_roi", "S0_sd"):
        assert posterior[name].dims == ("chain", "draw", "roi")
    assert posterior["D_roi"].attrs["units"] == posterior["D"].attrs["units"] == "mm2/s"
    assert posterior["f"].attrs["units"] == "1"
    assert all("long_name" in v.attrs for v in posterior.data_vars.values())
    assert posterior["roi"].values.tolist() == ["liver", "kidney", "pancreas"]
    assert posterior["voxel_roi"].values.tolist() == ["liver"] * 20 + ["kidney"] * 20 + ["pancreas"] * 20
    assert (posterior["D"] <= posterior["D_star"]).all()
    assert bool(posterior.notnull().all().to_array().all())
    predictive = short_fit["posterior_predictive"]["signal"]
    assert predictive.sizes["chain"] * predictive.sizes["draw"] == 100
    assert short_fit["prior"]["f_roi"].sizes == {"chain": 1, "draw": 1000, "roi": 3}


def test_attributes_tell_how_it_was_made(short_fit: xr.DataTree) -> None:
    attrs = short_fit.attrs
    assert ModelSpec.from_json(attrs["spec"]) == ModelSpec()
    assert {k: v["name"] for k, v in json.loads(attrs["priors"]).items()} == {
        "liver": "liver", "kidney": "kidney", "pancreas": "pancreas"
    }  # fmt: skip
    assert json.loads(attrs["settings"])["draws"] == 200
    assert {"ivimbayes", "pymc", "nutpie"} <= set(json.loads(attrs["versions"]))
    assert attrs["seed"] == 3
    assert "inputs" in attrs


def test_same_seed_same_draws_on_any_number_of_cores(phantom_scan: Scan, short_fit: xr.DataTree) -> None:
    again = fit(phantom_scan[0], seed=3, cores=1, **SHORT)
    xr.testing.assert_identical(again["posterior"].to_dataset(), short_fit["posterior"].to_dataset())
    xr.testing.assert_identical(
        again["posterior_predictive"].to_dataset(), short_fit["posterior_predictive"].to_dataset()
    )


def test_another_seed_other_draws(phantom_scan: Scan, short_fit: xr.DataTree) -> None:
    other = fit(phantom_scan[0], seed=4, **SHORT)
    assert not np.allclose(other["posterior"]["f_roi"], short_fit["posterior"]["f_roi"])


def test_log_likelihood_and_predictive_belong_to_the_draws(short_fit: xr.DataTree) -> None:
    posterior = short_fit["posterior"].to_dataset().isel(chain=1, draw=7)
    b = short_fit["observed_data"].to_dataset()["b"]
    curve = SIGNALS["biexponential"].curve(b, posterior["f"], posterior["D"], posterior["D_star"])
    curve = curve.transpose("voxel", "measurement").values.astype(float)
    of_roi = {n: posterior[n].sel(roi=posterior["voxel_roi"]).values for n in ("sigma", "S0_roi", "S0_sd")}
    y = short_fit["observed_data"]["signal"].values
    expected = gaussian_logp(y, curve, of_roi["sigma"], of_roi["S0_roi"], of_roi["S0_sd"], np.ones_like(y))
    found = short_fit["log_likelihood"]["signal"].isel(chain=1, draw=7).values
    np.testing.assert_allclose(found, expected, rtol=2e-3, atol=0.02)  # values of voxels are stored rounded
    residual = (short_fit["posterior_predictive"]["signal"] - short_fit["observed_data"]["signal"]).values
    sigma = posterior["sigma"].values.mean()
    assert residual.std() / sigma == pytest.approx(np.sqrt(2), rel=0.15)


@pytest.mark.filterwarnings("ignore:Estimated shape parameter of Pareto")
def test_arviz_accepts_the_tree(short_fit: xr.DataTree) -> None:
    assert np.isfinite(az.loo(short_fit, var_name="signal").elpd)
    assert az.summary(short_fit, var_names=["f_roi"], ci_kind="hdi", ci_prob=0.95, round_to=4).shape[0] == 3


def test_mean_curve_and_few_voxels() -> None:
    scan, truth = simulate(B, 200, voxels=4, regions=2, seed=6)
    tree = fit(scan, draws=400, tune=300, chains=2, seed=1, progress=False)
    assert tree["constant_data"]["level"].values.tolist() == ["mean", "mean"]
    posterior = tree["posterior"].to_dataset()
    assert posterior.sizes["voxel"] == 2
    assert posterior["sd"].isnull().all()
    np.testing.assert_allclose(posterior["f"].values, posterior["f_roi"].values, rtol=2e-4)


def test_student_t_population_is_fitted(phantom_scan: Scan) -> None:
    one = phantom_scan[0].copy()
    one.attrs["roi_names"] = '{"1": "liver"}'
    tree = fit(one, ModelSpec(population="student_t"), **SHORT)
    assert abs(float(tree["posterior"]["D_roi"].median()) - 1.1e-3) < 0.15e-3


def test_mixture_finds_the_voxels_that_differ_alike() -> None:
    """A lesion of 4 of 40 voxels; in a region without one hardly a voxel is taken for one."""
    rng, (f, D) = np.random.default_rng(4), (0.2, 1.0e-3)
    curves = [
        predict(np.array(B), 100, f=f, D=D, D_star=50e-3),
        predict(np.array(B), 100, f=0.05, D=2.2e-3, D_star=50e-3),
    ]
    scan, _ = simulate(B, 50, voxels=40, regions=2, seed=6)
    truth = np.zeros((40, 2), bool)
    truth[-4:, 0] = True
    signal = np.where(truth[..., None], curves[1], curves[0])
    scan["signal"] = (scan["signal"].dims, (signal + rng.normal(0, 2, signal.shape))[:, :, None])
    tree = fit(scan, ModelSpec(population="mixture"), **SHORT)
    posterior = tree["posterior"].to_dataset()
    probability = posterior["second_probability"].mean(("chain", "draw")).values
    inside = truth[posterior["x"].values.astype(int), posterior["y"].values.astype(int)]
    assert probability[inside].min() > 0.9 and probability[~inside].max() < 0.2
    share = posterior["second_share"].median(("chain", "draw")).values
    assert 0.04 < share[0] < 0.25 and share[1] < 0.06
    for name, value in (("f", f), ("D", D)):  # the region's values are the larger population's
        assert abs(float(posterior[f"{name}_roi"][..., 0].median()) / value - 1) < 0.1
    assert set(tree["prior"].data_vars) >= {"second_share", "second_shift"}


def test_priors_follow_the_region_names(phantom_scan: Scan, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, str] = {}

    def stop(tasks: list[Any], *_: Any) -> None:
        seen.update({task.name: task.spec.prior.name for task in tasks})
        raise InterruptedError

    monkeypatch.setattr(sampling, "_sample_all", stop)
    for options, expected in (
        ({}, {"liver": "liver", "kidney": "kidney", "pancreas": "pancreas"}),
        ({"tissue": {"kidney": "generic"}}, {"liver": "liver", "kidney": "generic", "pancreas": "pancreas"}),
        (
            {"tissue": {"*": "muscle", "liver": "spleen"}},
            {"liver": "spleen", "kidney": "muscle", "pancreas": "muscle"},
        ),
    ):
        with pytest.raises(InterruptedError):
            fit(phantom_scan[0], **SHORT, **options)
        assert seen == expected


def test_regions_are_independent(phantom_scan: Scan, short_fit: xr.DataTree) -> None:
    """A region alone is sampled from the same voxels and model as beside others."""
    alone = choose_voxels(phantom_scan[0], voxels_per_roi=20, seed=3)["kidney"]
    mine = short_fit["observed_data"]["signal"].isel(voxel=slice(20, 40))
    np.testing.assert_allclose(mine, alone["signal"])


def test_finished_regions_are_kept(
    phantom_scan: Scan, short_fit: xr.DataTree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = sampling.collect_region, []

    def second_breaks(voxels: xr.Dataset, *rest: Any) -> xr.DataTree:
        calls.append(voxels.attrs["roi"])
        if len(calls) == 4:  # three regions, then the one removed
            raise KeyboardInterrupt
        return real(voxels, *rest)

    monkeypatch.setattr(sampling, "collect_region", second_breaks)
    monkeypatch.setattr(convergence.Chains, "good", property(lambda _: True), raising=True)
    with pytest.raises(KeyboardInterrupt):
        for _ in range(2):
            fit(phantom_scan[0], seed=8, checkpoint=tmp_path / "kept", cores=1, **TINY)
            (tmp_path / "kept" / "region-2.nc").unlink()
    before = len(calls)
    whole = fit(phantom_scan[0], seed=8, checkpoint=tmp_path / "kept", cores=1, **TINY)
    assert len(calls) == before + 1
    fresh = fit(phantom_scan[0], seed=8, cores=2, **TINY)
    xr.testing.assert_identical(whole["posterior"].to_dataset(), fresh["posterior"].to_dataset())
    (tmp_path / "kept" / "region-1.nc").write_bytes(b"damaged")
    again = fit(phantom_scan[0], seed=8, checkpoint=tmp_path / "kept", cores=1, **TINY)
    xr.testing.assert_identical(again["posterior"].to_dataset(), fresh["posterior"].to_dataset())


def test_settings_are_checked(phantom_scan: Scan, refused: Callable[..., str]) -> None:
    scan = phantom_scan[0]
    for options, words in (
        ({"draws": 10}, "draws 10"), ({"tune": 0}, "tune 0"), ({"chains": 0}, "chains 0"), ({"seed": -1}, "seed -1"),
        ({"load": False}, "load False"), ({"target_accept": 1.0}, "target_accept 1"), ({"cores": 0}, "cores 0"), ({"tissue": {"liver": "lver"}}, "liver"),
    ):  # fmt: skip
        refused(lambda options=options: fit(scan, progress=False, **options), words)
