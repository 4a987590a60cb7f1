import numpy as np
import pandas as pd
import pytest
import xarray as xr

from ivimbayes import diagnose, summarize
from ivimbayes.fitting.convergence import Chains
from ivimbayes.results.diagnosis import _sampling, find_bimodality
from ivimbayes.results.summary import COLUMNS, compare_truth


def changed(tree: xr.DataTree, **variables: xr.DataArray) -> xr.DataTree:
    """A copy of a fit with other posterior variables."""
    groups = {name: node.to_dataset() for name, node in tree.children.items()}
    groups["posterior"] = groups["posterior"].assign(variables)
    copy = xr.DataTree.from_dict(groups)
    copy.attrs = dict(tree.attrs)
    return copy


def levels(tree: xr.DataTree, roi: str = "liver") -> list[str]:
    return [f"{f.level}: {f}" for f in diagnose(tree)[roi].findings]


def ideal(tree: xr.DataTree, seed: int = 0) -> xr.DataTree:
    """The fit with its draws replaced by independent ones of the same mean and spread."""
    rng = np.random.default_rng(seed)
    posterior = tree["posterior"].to_dataset()
    new = {}
    for name, old in posterior.data_vars.items():
        noise = rng.standard_normal((4, 1000, *old.shape[2:]))
        coords = {k: v for k, v in old.coords.items() if not {"chain", "draw"} & set(v.dims)}
        mean, sd = old.mean(("chain", "draw")).values, old.std(("chain", "draw")).values
        new[str(name)] = xr.DataArray(mean + sd * noise, dims=old.dims, coords=coords, attrs=old.attrs)
    groups = {name: node.to_dataset() for name, node in tree.children.items()}
    groups["posterior"] = xr.Dataset(new)
    record = {"divergences": [0, 0, 0], "transitions": [4000] * 3, "bfmi": [1.0] * 3}
    groups["constant_data"] = groups["constant_data"].assign({k: ("roi", v) for k, v in record.items()})
    made = xr.DataTree.from_dict(groups)
    made.attrs = dict(tree.attrs)
    return made


@pytest.fixture(scope="module")
def good(short_fit: xr.DataTree) -> xr.DataTree:
    return ideal(short_fit)


def test_table_has_the_stated_columns_and_units(good: xr.DataTree) -> None:
    table = summarize(good)
    assert tuple(table.columns) == COLUMNS
    assert len(table) == 15
    rows = table.set_index(["roi", "parameter"])
    D, draws = rows.loc[("kidney", "D")], 1e3 * good["posterior"]["D_roi"].sel(roi="kidney").values
    assert D["unit"] == "1e-3 mm2/s"
    assert D["mean"] == pytest.approx(draws.mean())
    assert D["median"] == pytest.approx(np.median(draws))
    assert D["sd"] == pytest.approx(draws.std(), rel=1e-3)
    inside = ((draws > D["hdi_low"]) & (draws < D["hdi_high"])).mean()
    assert inside == pytest.approx(0.95, abs=0.002)
    assert 3000 < D["ess_bulk"] < 5500
    assert pd.isna(rows.loc[("kidney", "sigma"), "spread"])
    assert set(table["verdict"]) == {"converged"}


def test_spread_is_the_sd_between_voxels(short_fit: xr.DataTree) -> None:
    table = summarize(short_fit).set_index(["roi", "parameter"])
    voxels = 1e3 * short_fit["posterior"]["D"].isel(voxel=slice(0, 20)).astype(float)
    assert table.loc[("liver", "D"), "spread"] == pytest.approx(float(voxels.std("voxel").mean()), rel=0.35)


def test_truth_beside_the_posterior(good: xr.DataTree, phantom_scan: tuple[xr.Dataset, xr.Dataset]) -> None:
    table = compare_truth(summarize(good), phantom_scan[1])
    assert len(table) == 9
    assert table.set_index(["roi", "parameter"]).loc[("liver", "D"), "truth"] == pytest.approx(1.1)
    assert (table["inside"] == ((table.hdi_low <= table.truth) & (table.truth <= table.hdi_high))).all()


def test_good_chains_converge(good: xr.DataTree) -> None:
    for diagnosis in diagnose(good).values():
        assert diagnosis.verdict == "converged"
        assert not diagnosis.modes
        assert 0 < diagnosis.contraction["D"] <= 1


def test_a_chain_apart_fails(good: xr.DataTree) -> None:
    shift = xr.DataArray([0, 0, 0, 1.0], dims="chain") * (good["posterior"]["roi"] == "liver")
    for name in ("f_roi", "sigma"):
        old = good["posterior"][name]
        bad = changed(good, **{name: (old + 3 * old.std() * shift).transpose(*old.dims)})
        assert any("the chains disagree: R-hat" in text and f"for {name}" in text for text in levels(bad))
        verdicts = {roi: d.verdict for roi, d in diagnose(bad).items()}
        assert verdicts == {"liver": "failed", "kidney": "converged", "pancreas": "converged"}


def test_sticky_chains_are_doubtful(good: xr.DataTree) -> None:
    old = good["posterior"]["D_roi"]
    rng = np.random.default_rng(1)
    walk = np.zeros(old.shape)
    for i in range(1, old.sizes["draw"]):
        walk[:, i] = 0.9 * walk[:, i - 1] + rng.standard_normal(walk[:, i].shape)
    bad = changed(good, D_roi=old.mean() + 1e-5 * old.copy(data=walk))
    assert any("effective draws" in text and "D_roi" in text for text in levels(bad))
    assert diagnose(bad)["liver"].verdict != "converged"


def recorded(tree: xr.DataTree, **values: float) -> xr.DataTree:
    """A copy of a fit in which sampling of the liver went as said."""
    copy = changed(tree)
    constant = copy["constant_data"].to_dataset()
    rest = {name: constant[name].values.tolist()[1:] for name in values}
    copy["constant_data"] = xr.DataTree(
        constant.assign({k: ("roi", [v, *rest[k]]) for k, v in values.items()})
    )
    return copy


def test_divergences(good: xr.DataTree) -> None:
    for count, level, verdict in (
        (2, "note", "converged"),
        (20, "doubtful", "doubtful"),
        (200, "failed", "failed"),
    ):
        bad = recorded(good, divergences=count)
        assert any(text.startswith(f"{level}: {count} divergent transitions of 4000") for text in levels(bad))
        assert {roi: d.verdict for roi, d in diagnose(bad).items()} == {
            "liver": verdict, "kidney": "converged", "pancreas": "converged"
        }  # fmt: skip


def test_slow_energy_is_doubtful(good: xr.DataTree) -> None:
    bad = recorded(good, bfmi=0.1)
    assert any("E-BFMI 0.10" in text for text in levels(bad))
    assert diagnose(bad)["liver"].verdict == "doubtful"


def test_a_failed_value_is_not_hidden_by_a_worse_hyperparameter() -> None:
    chains = Chains({"f_roi": 1.0}, {"f_roi": 60.0, "sd": 20.0}, {"f_roi": 500.0}, 0, 4000, 1.0)
    finding = _sampling(chains, 1.0, modes=False)[0]
    assert finding.level == "failed"
    assert "60 effective draws (bulk) for f_roi" in finding.what


def test_a_posterior_like_its_prior_is_said_to_be(good: xr.DataTree) -> None:
    from ivimbayes import TISSUES

    rng = np.random.default_rng(3)
    mu = good["posterior"]["mu"].copy(deep=True)
    prior = TISSUES["liver"]
    mu.values[:, :, 0, 2] = prior.theta_centre[2] + prior.theta_width[2] * rng.standard_normal((4, 1000))
    diagnosis = diagnose(changed(good, mu=mu))["liver"]
    assert diagnosis.contraction["D_star"] < 0.1
    assert diagnosis.verdict == "converged"
    assert any("D* rests on the prior" in str(f) and f.level == "note" for f in diagnosis.findings)
    assert not any("rests on the prior" in text for text in levels(good) if "D*" not in text)


def test_two_modes_are_found_and_named(good: xr.DataTree) -> None:
    rng = np.random.default_rng(4)
    mu = good["posterior"]["mu"].copy(deep=True)
    first = rng.random((4, 1000, 1)) < 0.3
    centres = np.where(first, [0.0, -6.5, -5.0], [-1.4, -6.05, -4.4])
    mu.values[:, :, 0] = centres + 0.03 * rng.standard_normal((4, 1000, 3))
    diagnosis = diagnose(changed(good, mu=mu))["liver"]
    assert diagnosis.verdict == "doubtful"
    larger, smaller = diagnosis.modes
    assert (larger.weight, smaller.weight) == pytest.approx((0.7, 0.3), abs=0.03)
    assert (larger.values["f"], smaller.values["f"]) == pytest.approx((0.198, 0.5), abs=0.01)
    text = next(str(f) for f in diagnosis.findings if "two modes" in str(f))
    assert "f 0.20, D 2.36, D* 14.6" in text and "f 0.50, D 1.5" in text and "--tissue" in text


def test_one_mode_is_not_called_two() -> None:
    # 200 unimodal posteriors, normal, skewed and heavy-tailed: no false alarm.
    rng = np.random.default_rng(5)
    for i in range(200):
        z = rng.standard_normal((4000, 3))
        if i % 3 == 1:
            z = np.exp(0.5 * z)
        if i % 3 == 2:
            z = z / np.sqrt(rng.chisquare(4, (4000, 1)) / 4)
        assert not find_bimodality(z @ rng.normal(size=(3, 3)))
    constant = np.ones((4000, 3))
    assert not find_bimodality(constant)


def test_a_value_outside_its_prior_and_high_b_are_cautions(short_fit: xr.DataTree) -> None:
    """Neither changes the verdict, which is on the sampling."""
    before = diagnose(short_fit, voxels=False)
    assert not any("lies outside" in str(f) or "kurtosis" in str(f) for f in before["liver"].findings)
    moved = short_fit.copy(deep=True)
    posterior = moved["posterior"].to_dataset()
    at = dict(roi="liver", parameter="D")
    posterior["mu"].loc[at] += 3 * 1.0
    posterior["D_roi"].loc[{"roi": "liver"}] *= np.exp(3.0)
    moved["posterior"] = xr.DataTree(posterior)
    constant = moved["constant_data"].to_dataset()
    constant = constant.assign_coords(b=("measurement", 2.5 * constant["b"].values))
    constant["attempts"] = constant["attempts"] * 0 + 2
    moved["constant_data"] = xr.DataTree(constant)
    after = diagnose(moved, voxels=False)
    found = [(f.level, str(f)) for f in after["liver"].findings]
    assert any(
        level == "caution" and text.startswith("D ") and "lies outside" in text for level, text in found
    )
    assert any(level == "caution" and "b values up to 2000" in text for level, text in found)
    assert any(level == "note" and "sampled once more" in text for level, text in found)
    assert after["liver"].verdict == before["liver"].verdict
    assert not any("lies outside" in str(f) for f in after["kidney"].findings)
