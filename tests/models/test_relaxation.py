import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from conftest import Command

from ivimbayes import correct_fraction, relaxation_times, volume_fraction, write_tree
from ivimbayes.models.priors import TISSUES
from ivimbayes.models.relaxation import _log_normal, _table
from ivimbayes.results.volume_fraction import tabulate_fractions

Refused = Callable[..., str]
TIMES = {"TE": 60.0, "T2_blood": 275.0, "T2_tissue": 34.0}
PAIRS = {"TE": 60.0, "T2_blood": (275.0, 50.0), "T2_tissue": (34.0, 4.0)}
RNG_DRAWS = (2, 500)


@pytest.fixture
def tree() -> xr.DataTree:
    """A fit's posterior of f: two voxels of liver, two of spleen, one of a second liver region."""
    rng = np.random.default_rng(1)
    rois, voxel_roi = ["liver", "spleen", "liver 2"], ["liver", "spleen", "liver", "spleen", "liver 2"]
    f = np.clip(0.2 + 0.02 * rng.standard_normal((*RNG_DRAWS, 5)), 0.01, 0.99)
    posterior = xr.Dataset(
        {
            "f": (("chain", "draw", "voxel"), f.astype(np.float32)),
            "f_roi": (("chain", "draw", "roi"), f[:, :, [0, 1, 4]]),
        },
        coords={
            "chain": range(2), "draw": range(RNG_DRAWS[1]), "roi": rois,
            "voxel_roi": ("voxel", voxel_roi), "x": ("voxel", np.arange(5.0)),
        },
    )  # fmt: skip
    made = xr.DataTree.from_dict({"posterior": posterior})
    names = {"liver": "liver", "spleen": "spleen", "liver 2": "liver"}
    made.attrs["priors"] = json.dumps({roi: {"name": name} for roi, name in names.items()})
    return made


def draws(value: float, voxels: int = 3) -> xr.DataArray:
    return xr.DataArray(np.full((*RNG_DRAWS, voxels), value), dims=("chain", "draw", "voxel"))


def weighted(f: float, TE: float, T2: tuple[float, float], TR: float, T1: tuple[float, float]) -> float:
    """Fraction of the signal from that of the volume: the equation forwards."""
    blood, tissue = (
        v * (1 - np.exp(-TR / t1)) * np.exp(-TE / t2) for v, t1, t2 in zip((f, 1 - f), T1, T2, strict=True)
    )
    return blood / (blood + tissue)


def test_value_by_hand() -> None:
    # 0.3 e^(60/275) = 0.37314; 0.7 e^(60/34) = 4.08787; 0.37314 / 4.46101
    assert volume_fraction(0.3, **TIMES) == pytest.approx(0.083645, abs=1e-6)


def test_a_fit_without_perfusion_is_refused(tree: xr.DataTree, refused: Refused) -> None:
    tree["posterior"] = tree["posterior"].to_dataset().drop_vars(["f", "f_roi"])
    refused(lambda: correct_fraction(tree, **TIMES), "fit", "no perfusion fraction", "biexponential")


@pytest.mark.parametrize("truth", [0.01, 0.08, 0.5, 0.97])
@pytest.mark.parametrize("TR", [800.0, 3000.0, 1e6])
def test_round_trip(truth: float, TR: float) -> None:
    signal = weighted(truth, 60, (275, 34), TR, (1932, 809))
    found = volume_fraction(signal, **TIMES, TR=TR, T1_blood=1932, T1_tissue=809)
    assert found == pytest.approx(truth, rel=1e-10)
    if TR == 1e6:
        assert volume_fraction(signal, **TIMES) == pytest.approx(truth, rel=1e-10)
    else:  # T1 left out: wrong, or the test above says nothing
        assert abs(volume_fraction(signal, **TIMES) - truth) > 0.01 * truth * (1 - truth)


def test_limits() -> None:
    f = np.array([0, 1e-12, 0.3, 1 - 1e-12, 1, np.nan])
    np.testing.assert_allclose(volume_fraction(f, TE=60, T2_blood=80, T2_tissue=80), f, rtol=1e-9)
    np.testing.assert_array_equal(volume_fraction(np.array([0.0, 1.0]), **TIMES), [0, 1])
    extreme = volume_fraction(np.array([0, 0.5, 1]), TE=1e6, T2_blood=300, T2_tissue=1)
    np.testing.assert_array_equal(extreme, [0, 0, 1])
    extreme = volume_fraction(np.array([0, 0.5, 1]), TE=1e6, T2_blood=1, T2_tissue=300)
    np.testing.assert_array_equal(extreme, [0, 1, 1])
    short = {"TR": 10, "T1_blood": 1e9, "T1_tissue": 1e9}
    assert volume_fraction(0.3, **TIMES, **short) == pytest.approx(volume_fraction(0.3, **TIMES), rel=1e-6)


def test_kind_dims_and_units_are_kept() -> None:
    assert isinstance(volume_fraction(0.3, **TIMES), float)
    assert volume_fraction(np.full((4, 5, 6, 2), 0.3), **PAIRS).shape == (4, 5, 6, 2)
    turned = draws(0.3).transpose("voxel", "draw", "chain").rename("f").assign_coords(voxel=[4, 5, 6])
    found = volume_fraction(turned, **PAIRS)
    assert found.dims == turned.dims and found.name == "f" and found["voxel"].values.tolist() == [4, 5, 6]
    assert found.attrs == {"units": "1", "long_name": "perfusion volume fraction"}
    xr.testing.assert_allclose(found.transpose("chain", "draw", "voxel").drop_vars("voxel"), volume_fraction(draws(0.3), **PAIRS).rename("f"))  # fmt: skip


def test_log_normal_has_the_given_moments() -> None:
    n = 200_000
    values = _log_normal(34, 10, (n,), (0, 0, 0))
    assert values.min() > 0
    assert values.mean() == pytest.approx(34, abs=5 * 10 / np.sqrt(n))
    assert values.std() == pytest.approx(10, rel=0.02)
    assert (_log_normal(34, 0, (5,), (0, 0, 0)) == 34).all()


def test_uncertain_times_widen_the_interval() -> None:
    rng = np.random.default_rng(0)
    f = draws(0.3, 1) + 0.01 * rng.standard_normal((*RNG_DRAWS, 1))
    sd = [
        float(volume_fraction(f, TE=60, T2_blood=275, T2_tissue=(34, width)).std()) for width in (0, 2, 4, 8)
    ]
    assert sd == sorted(sd) and sd[2] > 2 * sd[0]
    # to first order: d f_v / d T2_tissue = f_v (1 - f_v) TE / T2_tissue^2
    small = volume_fraction(draws(0.3, 1), TE=60, T2_blood=275, T2_tissue=(34, 0.5))
    assert float(small.std()) == pytest.approx(0.083645 * (1 - 0.083645) * 60 / 34**2 * 0.5, rel=0.1)


def test_one_draw_of_the_times_for_all_voxels() -> None:
    found = volume_fraction(draws(0.3), **PAIRS)
    assert bool((found == found.isel(voxel=0)).all())
    each = found.isel(voxel=0).values.ravel()
    assert len(np.unique(each)) == each.size
    xr.testing.assert_identical(found, volume_fraction(draws(0.3), **PAIRS, seed=0))
    assert not found.equals(volume_fraction(draws(0.3), **PAIRS, seed=1))


def test_blood_and_tissue_are_independent() -> None:
    blood = volume_fraction(draws(0.3, 1), **PAIRS | {"T2_tissue": 34}).values.ravel()
    tissue = volume_fraction(draws(0.3, 1), **PAIRS | {"T2_blood": 275}).values.ravel()
    assert abs(np.corrcoef(blood, tissue)[0, 1]) < 5 / np.sqrt(blood.size)


def test_a_fit_is_corrected(tree: xr.DataTree) -> None:
    made = correct_fraction(tree, TE=60, field=3, seed=4)
    assert made["f_volume"].dims == ("chain", "draw", "voxel")
    assert made["f_volume_roi"].dims == ("chain", "draw", "roi")
    for name in ("f_volume", "f_volume_roi"):
        assert made[name].attrs == {"units": "1", "long_name": "perfusion volume fraction"}
        assert bool(((made[name] > 0) & (made[name] < 1)).all())
    assert made["voxel_roi"].values.tolist() == tree["posterior"]["voxel_roi"].values.tolist()
    assert (made.attrs["TE_ms"], made.attrs["seed"]) == (60, 4) and "TR_ms" not in made.attrs
    used = json.loads(made.attrs["relaxation"])
    assert used["blood"] == {"T2": [275, 50], "source": "Stanisz 2005 (blood, 3 T)"}
    assert used["regions"]["spleen"] == {"T2": [61, 9], "source": "de Bazelaire 2004 (spleen, 3 T)"}
    # the region's value and its voxel's, the same number here, meet the same times
    np.testing.assert_allclose(made["f_volume"][..., 1], made["f_volume_roi"][..., 1], rtol=1e-6)
    xr.testing.assert_allclose(
        made["f_volume_roi"].sel(roi="liver"),
        volume_fraction(tree["posterior"]["f_roi"].sel(roi="liver"), **PAIRS, seed=4),
    )


def test_regions_of_one_tissue_share_its_times(tree: xr.DataTree) -> None:
    tree["posterior"]["f_roi"][:] = 0.2
    made = correct_fraction(tree, TE=60, T2_blood=275, field=3)["f_volume_roi"]
    xr.testing.assert_equal(made.sel(roi="liver", drop=True), made.sel(roi="liver 2", drop=True))
    correlation = np.corrcoef(made.sel(roi="liver").values.ravel(), made.sel(roi="spleen").values.ravel())
    assert abs(correlation[0, 1]) < 5 / np.sqrt(1000)


def test_given_times_come_before_the_table(tree: xr.DataTree) -> None:
    made = correct_fraction(
        tree, TE=60, TR=2000, field=1.5, T2_tissue={"spleen": 70}, tissue={"liver 2": "muscle"}, T1_blood=1400
    )
    used = json.loads(made.attrs["relaxation"])
    assert used["regions"]["spleen"] == {"T2": [70, 0], "T1": [1057, 42], "source": "de Bazelaire 2004 (spleen, 1.5 T); T2 given"}  # fmt: skip
    assert used["regions"]["liver 2"]["T2"] == [27, 8] and used["regions"]["liver"]["T2"] == [46, 6]
    assert used["blood"]["T1"] == [1400, 0] and made.attrs["TR_ms"] == 2000
    given = correct_fraction(tree, TE=60, T2_blood=275, T2_tissue={"*": 34, "spleen": (61, 9)})
    assert json.loads(given.attrs["relaxation"])["regions"]["liver"] == {"T2": [34, 0], "source": "given"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"TE": 0}, ("TE = 0", "above 0, in ms")), ({"TE": -60}, ("TE = -60",)), ({"TE": 0.06}, ("TE = 0.06 ms", "give ms")),
        ({"TE": np.nan}, ("TE = nan",)), ({"T2_blood": 0}, ("T2_blood = 0",)), ({"T2_tissue": (-34, 4)}, ("T2_tissue = -34",)),
        ({"T2_tissue": (34, -4)}, ("T2_tissue", "standard deviation -4")), ({"T2_tissue": (34, 4, 1)}, ("mean and standard deviation",)),
        ({"T2_blood": 0.275}, ("T2_blood = 0.275 ms", "looks like seconds", "give ms")),
        ({"T2_blood": "long"}, ("T2_blood = 'long'",)), ({"TR": 3000}, ("TR is given without T1",)),
        ({"TR": 3000, "T1_blood": 1932}, ("TR is given without T1",)), ({"T1_tissue": 809}, ("T1_tissue is given without TR",)),
        ({"TR": 3, "T1_blood": 1932, "T1_tissue": 809}, ("TR = 3 ms", "give ms")),
        ({"TR": 3000, "T1_blood": 1.932, "T1_tissue": 809}, ("T1_blood = 1.932 ms", "give ms")),
        ({"f": 30.0}, ("f = 30 is outside [0, 1]", "not percent")), ({"f": np.array([0.3, -0.1])}, ("f = -0.1",)),
        ({"T2_blood": (275, 50)}, ("T2_blood has a standard deviation", "no draws")), ({"seed": -1}, ("seed -1",)),
    ],
)  # fmt: skip
def test_refusals(change: dict[str, object], words: tuple[str, ...], refused: Refused) -> None:
    options = {"f": 0.3, **TIMES, **change}
    refused(lambda: volume_fraction(options.pop("f"), **options), *words)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, ("T2_blood is not given", "field strength")), ({"T2_blood": 275}, ("region 'liver'", "T2_tissue is not given")),
        ({"field": 7}, ("blood at 7 T", "1.5 T and 3 T")), ({"field": 3, "tissue": {"gut": "liver"}}, ("no region 'gut'", "liver, spleen")),
        ({"field": 3, "tissue": {"spleen": "gut"}}, ("region 'spleen'", "'gut'", "known are blood, liver")),
        ({"field": 3, "T2_tissue": {"gut": 40}}, ("no region 'gut'",)), ({"field": 3, "T1_blood": 1900}, ("without TR",)),
        ({"field": 3, "T2_tissue": {"spleen": -1}}, ("region 'spleen'", "T2_tissue = -1")),
        ({"T2_blood": 275, "T2_tissue": 34, "TR": 3000}, ("T1_blood is not given",)), ({"field": 3, "TR": 3}, ("TR = 3 ms",)),
        ({"T2_blood": 275, "T2_tissue": 34, "tissue": {"*": "liver"}}, ("tissue is given without the field",)),
    ],
)  # fmt: skip
def test_refusals_of_a_fit(
    options: dict[str, object], words: tuple[str, ...], tree: xr.DataTree, refused: Refused
) -> None:
    refused(lambda: correct_fraction(tree, TE=60, **options), *words)


def test_table_of_times(refused: Refused) -> None:
    blood = relaxation_times("Whole blood", 2.89)
    assert (blood.T2, blood.T1, blood.field) == ((275, 50), (1932, 85), 3)
    assert relaxation_times("renal cortex", 3).T2 == (76, 7)
    for names, times in _table().values():
        assert names and times
        for entry in times:
            assert entry.source and 20 < entry.T2[0] < entry.T1[0] < 2500
            assert all(0 < sd < mean / 2 for mean, sd in (entry.T2, entry.T1))
    assert set(_table()) - {"blood"} <= set(TISSUES)
    refused(lambda: relaxation_times("gut", 3), "'gut'", "known are blood, liver")
    refused(lambda: relaxation_times("prostate", 1.5), "prostate at 1.5 T", "known are 3 T")


def test_command_line(tree: xr.DataTree, tmp_path: Path, command: Command) -> None:
    write_tree(tree, tmp_path / "posterior.nc")
    out = tmp_path / "volume.tsv"
    words = (
        "volume",
        tmp_path,
        "--te",
        60,
        "--t2-blood",
        "275,50",
        "--t2-tissue",
        "34,4",
        "--t2-tissue",
        "spleen=61,9",
    )
    status, shown, _ = command(*words)
    assert status == 0
    assert list(tmp_path.iterdir()) == [tmp_path / "posterior.nc"]
    assert shown.splitlines()[0].split() == ["region", "median", "95", "%", "HDI"]
    assert "TE 60 ms\nblood: T2 275 (sd 50) ms: given" in shown and "spleen: T2 61 (sd 9) ms: given" in shown
    assert command(*words, "--out", out)[0] == 0
    table = pd.read_csv(out, sep="\t", dtype={"unit": str})
    corrected = correct_fraction(tree, TE=60, T2_blood=(275, 50), T2_tissue={"*": (34, 4), "spleen": (61, 9)})
    pd.testing.assert_frame_equal(table, tabulate_fractions(tree, corrected), check_dtype=False, rtol=1e-5)
    assert (table["hdi_low"] < table["median"]).all() and (table["median"] < table["hdi_high"]).all()
    status, _, err = command(*words, "--out", out)
    assert status == 2 and "exists" in err
    times = ("--te", 60, "--field", 3, "--tr", 3000, "--tissue", "spleen=muscle")
    status, shown, _ = command("volume", tmp_path, *times, "--out", out, "--overwrite")
    assert status == 0
    assert "TE 60 ms, TR 3000 ms" in shown and "spleen: T2 29 (sd 4) ms, T1 898 (sd 33) ms: de Baz" in shown


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--te", 0.06, "--field", 3), "TE = 0.06 ms"), (("--te", 60), "T2_blood is not given"),
        (("--te", 60, "--t2-blood", "x", "--field", 3), "--t2-blood x"), (("--te", 60, "--t2-tissue", "liver=", "--field", 3), "--t2-tissue "),
        (("--te", 60, "--field", 3, "--out", "none/here.tsv"), "there is no folder none"),
    ],
)  # fmt: skip
def test_command_line_refuses_in_one_line(
    options: tuple[object, ...], words: str, tree: xr.DataTree, tmp_path: Path, command: Command
) -> None:
    write_tree(tree, tmp_path / "posterior.nc")
    status, out, err = command("volume", tmp_path, *options)
    assert (status, out, err.count("\n")) == (2, "", 1) and words in err
