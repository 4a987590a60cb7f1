from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from conftest import B, Case, Command

import ivimbayes.fitting.fit
from ivimbayes import ModelSpec, prior_check, simulate, tissue_prior
from ivimbayes.checks.prior_check import QUANTILES, tabulate_check, verdicts
from ivimbayes.models.priors import TissuePrior

Scan = tuple[xr.Dataset, xr.Dataset]


@pytest.fixture(scope="module")
def checked(phantom_scan: Scan) -> xr.Dataset:
    return prior_check(phantom_scan[0])


def test_dims_units_and_reference(checked: xr.Dataset) -> None:
    assert dict(checked["prior"].sizes) == {"roi": 3, "b": 15, "quantile": 3}
    assert checked["b"].values.tolist() == sorted(set(B))
    first = checked.isel(b=0)
    assert (first["measured"] == 1).all() and (first["prior"] == 1).all() and first["inside"].all()
    for name in ("prior", "voxel", "parameter_prior"):
        assert (checked[name].diff("quantile") >= 0).all()
    width = checked.isel(b=slice(1, None)).diff("quantile").sum("quantile")
    assert (width["voxel"] > width["prior"]).all()
    assert checked["unit"].values.tolist() == ["1", "mm2/s", "mm2/s"]
    assert checked["tissue"].values.tolist() == ["liver", "kidney", "pancreas"]


def test_parameters_have_the_range_of_the_prior(checked: xr.Dataset) -> None:
    for name in ("f", "D"):
        low, high = tissue_prior("liver").ranges()[name]
        drawn = checked["parameter_prior"].sel(roi="liver", parameter=name)
        np.testing.assert_allclose(drawn.values[[0, 2]], [low, high], rtol=0.06)
        assert float(drawn[1]) == pytest.approx(tissue_prior("liver").centre[name], rel=0.04)


def test_the_right_prior_is_inside_and_the_wrong_one_is_not(phantom_scan: Scan, checked: xr.Dataset) -> None:
    assert set(verdicts(checked)) == {"liver", "kidney", "pancreas"}
    assert verdicts(checked)["liver"] == "inside the 95 % range of the prior of liver at all 14 b values"
    wrong = prior_check(phantom_scan[0], tissue={"*": "brain"})
    line = verdicts(wrong)["kidney"]
    for words in (
        "below the 95 % range of the prior of brain at b = ",
        " ... 800",
        "fall faster",
        "--tissue 'kidney'",
    ):
        assert words in line
    slow = {
        "stone": TissuePrior(
            "stone", {"f": 0.3, "D": 4e-3, "D_star": 50e-3}, dict.fromkeys(("f", "D", "D_star"), 0.2)
        )
    }
    line = verdicts(prior_check(phantom_scan[0], tissue={"*": "stone"}, priors=slow))["liver"]
    assert "above" in line and "fall slower" in line


def test_wrong_units_of_b_are_seen(phantom_scan: Scan) -> None:
    scan = phantom_scan[0].assign_coords(b=phantom_scan[0]["b"] / 1000)
    assert "below" in verdicts(prior_check(scan))["liver"]


def test_regions_drawn_from_the_prior_lie_inside() -> None:
    """Of 300 regions at 3 b values 95 % lie inside: 92.5 to 97.5 % with probability 0.95."""
    b = np.array([0, 0, 0, 30, 300, 800.0])
    scan, _ = simulate(b, 60, voxels=40, regions=300, seed=2)
    found = prior_check(scan, voxels_per_roi=None, draws=1000)
    share = found["inside"].isel(b=slice(1, None)).mean("roi").values
    assert ((share > 0.925) & (share < 0.975)).all(), share


def test_seed_and_spec(phantom_scan: Scan, checked: xr.Dataset) -> None:
    xr.testing.assert_identical(checked, prior_check(phantom_scan[0]))
    assert not checked["prior"].equals(prior_check(phantom_scan[0], seed=1)["prior"])
    tri = prior_check(phantom_scan[0], ModelSpec(signal="triexponential", population="student_t"), draws=200)
    assert "D_star_fast" in tri["parameter"].values
    own = prior_check(phantom_scan[0], ModelSpec(prior=tissue_prior("spleen")), draws=200)
    assert set(own["tissue"].values) == {"spleen"}
    mean = prior_check(phantom_scan[0], level="mean", draws=200)
    assert (mean["voxels"] == 1).all() and (mean["measured_error"] == 0).all()


def test_table(checked: xr.Dataset) -> None:
    table = tabulate_check(checked)
    assert len(table) == 45 and table["inside"].dtype == bool
    row = table[(table["roi"] == "kidney") & (table["b"] == 800)].iloc[0]
    at = checked.sel(roi="kidney", b=800)
    assert row["prior_low"] == at["prior"].sel(quantile=QUANTILES[0])
    assert row["prior_median"] == at["prior"].sel(quantile=0.5)
    assert row["voxel_high"] == at["voxel"].sel(quantile=QUANTILES[2])


def test_refusals(phantom_scan: Scan, refused: Callable[..., str]) -> None:
    scan = phantom_scan[0]
    refused(lambda: prior_check(scan, draws=10), "draws 10", "100")
    refused(lambda: prior_check(scan, seed=-1), "seed -1")
    refused(lambda: prior_check(scan, tissue={"gut": "liver"}), "no region 'gut'")
    negative = scan.assign(signal=-abs(scan["signal"])).assign_attrs(real_valued=1)
    refused(lambda: prior_check(negative), "liver", "no signal above 0 at b = 0")


def test_command(case: Case, monkeypatch: pytest.MonkeyPatch, command: Command) -> None:
    monkeypatch.setattr(ivimbayes.fitting.fit, "fit", None)
    table = case.folder / "prior.tsv"
    words = ("prior", case.dwi, "--rois", case.rois)
    status, out, _ = command(*words, "--out", table)
    assert status == 0
    assert "liver: inside the 95 % range of the prior of liver at all 14 b values" in out
    assert "D* " in out and "x 1e-3 mm2/s" in out and "nothing was fitted" in out
    assert set(pd.read_csv(table, sep="\t")["roi"]) == {"liver", "spleen"}
    status, out, _ = command(*words, "--tissue", "liver=brain", "--signal", "kurtosis", "--b-max", "700")
    assert status == 0
    assert "below the 95 % range of the prior of brain" in out
    for more, said in (
        (("--out", table), "exists"),
        (("--tissue", "liver=livr"), "unknown tissue 'livr'"),
        (("--noise", "pink"), "noise 'pink'"),
    ):
        status, out, err = command(*words, *more)
        assert (status, out, err.count("\n")) == (2, "", 1) and said in err
    status, _, err = command(*words[:2])
    assert status == 2
    assert "no regions given" in err
