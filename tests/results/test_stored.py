"""The view of a fit: what it gives is what the tree holds, and each part is read once."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from ivimbayes import ModelSpec, TissuePrior, summarize, write_tree
from ivimbayes.io.netcdf import open_tree
from ivimbayes.results.regions import region_tree, take_region
from ivimbayes.results.stored import FitView, read_fit


@pytest.fixture
def scattered(short_fit: xr.DataTree) -> xr.DataTree:
    """The fit, the voxels of its regions in a random order."""
    order = np.random.default_rng(1).permutation(short_fit["posterior"].sizes["voxel"])
    groups = {str(name): node.to_dataset() for name, node in short_fit.children.items()}
    made = xr.DataTree.from_dict(
        {k: v.isel(voxel=order) if "voxel" in v.dims else v for k, v in groups.items()}
    )
    made.attrs = short_fit.attrs
    return made


def with_attrs(tree: xr.DataTree, **attrs: str) -> xr.DataTree:
    made = tree.copy()
    made.attrs = tree.attrs | attrs
    return made


def test_a_view_is_made_once(short_fit: xr.DataTree) -> None:
    fit = FitView.of(short_fit)
    assert FitView.of(fit) is fit and fit.tree is short_fit
    assert fit.spec is fit.spec and fit.priors is fit.priors and fit.posterior is fit.posterior


def test_what_a_fit_says_of_itself(short_fit: xr.DataTree) -> None:
    fit, attrs = FitView.of(short_fit), short_fit.attrs
    assert fit.spec == ModelSpec.from_json(attrs["spec"])
    assert fit.signal.parameters == ("f", "D", "D_star")
    assert fit.regions == short_fit["posterior"]["roi"].values.tolist()
    priors = json.loads(attrs["priors"])
    assert list(fit.priors) == list(priors)
    assert all(prior == TissuePrior.from_dict(priors[roi]) for roi, prior in fit.priors.items())
    assert fit.tissues == {roi: priors[roi]["name"] for roi in fit.regions}
    assert (fit.settings, fit.versions) == (json.loads(attrs["settings"]), json.loads(attrs["versions"]))


def test_the_tissue_of_a_region_without_a_prior_is_its_name(short_fit: xr.DataTree) -> None:
    first, *others = FitView.of(short_fit).regions
    fit = FitView.of(with_attrs(short_fit, priors=json.dumps({first: {"name": "muscle"}})))
    assert fit.tissues == {first: "muscle", **{roi: roi for roi in others}}


@pytest.mark.parametrize("made", ["short_fit", "scattered"])
def test_voxels_of_a_region(made: str, request: pytest.FixtureRequest) -> None:
    tree: xr.DataTree = request.getfixturevalue(made)
    fit, constant = FitView.of(tree), tree["constant_data"].to_dataset()
    for roi in fit.regions:
        inside = constant["voxel_roi"].values == roi
        assert fit.voxels(roi).tolist() == np.flatnonzero(inside).tolist()
        np.testing.assert_array_equal(fit.signals(roi), tree["observed_data"]["signal"].values[inside])
        np.testing.assert_array_equal(fit.averages(roi), constant["averages"].values[inside])
        index = np.transpose([constant[axis].values[inside] for axis in "xyz"])
        np.testing.assert_array_equal(fit.index(roi), index)
    places = np.concatenate([fit.voxels(roi) for roi in fit.regions])
    assert sorted(places) == list(range(constant.sizes["voxel"]))


def test_record_of_a_region(short_fit: xr.DataTree) -> None:
    fit = FitView.of(short_fit)
    assert [fit.level(roi) for roi in fit.regions] == ["voxel"] * len(fit.regions)
    available = [int(fit.record(roi)["available"]) for roi in fit.regions]
    assert available == short_fit["constant_data"]["available"].values.tolist()
    np.testing.assert_array_equal(fit.b, short_fit["constant_data"]["b"].values)
    with pytest.raises(KeyError):
        fit.voxels("spine")


def test_an_open_file_is_read_a_region_at_a_time(short_fit: xr.DataTree, short_file: Path) -> None:
    with open_tree(short_file) as tree:
        fit = FitView.of(tree)
        region = fit.region(fit.regions[1])
        drawn = take_region(fit.posterior, fit.regions[1])
        assert not fit.posterior["f"].variable._in_memory and drawn["f"].variable._in_memory
    assert region.regions == fit.regions[1:2] and region.spec == fit.spec
    assert region.tree.identical(region_tree(short_fit, fit.regions[1]))
    assert len(region.voxels(fit.regions[1])) == region.posterior.sizes["voxel"] == 20


def test_a_table_and_its_verdicts_parse_a_fit_once(
    short_fit: xr.DataTree, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsed: list[str] = []
    before = ModelSpec.from_json
    monkeypatch.setattr(ModelSpec, "from_json", lambda text: parsed.append(text) or before(text))
    summarize(short_fit)
    assert parsed == [short_fit.attrs["spec"]]


@pytest.mark.parametrize(
    "attrs, words",
    [
        ({"spec": "{}"}, "'prior'"), ({"priors": "{}"}, "no prior of"), ({"priors": "["}, "Expecting value"),
        ({"settings": "x"}, "Expecting value"),
    ],
)  # fmt: skip
def test_what_is_no_fit_is_refused(
    attrs: dict[str, str], words: str, short_fit: xr.DataTree, tmp_path: Path, refused: Callable[..., str]
) -> None:
    write_tree(with_attrs(short_fit, **attrs), tmp_path / "posterior.nc")
    refused(lambda: read_fit(tmp_path / "posterior.nc"), "posterior.nc", "not a fit of this version", words)
