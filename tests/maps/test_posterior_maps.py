"""Maps of a volume: the same numbers however it is cut, honest where there is none, safe when killed."""

import json
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import xarray as xr
from conftest import Command
from typer.testing import CliRunner

import ivimbayes.parallel
from ivimbayes import InputWarning, ModelSpec, fit, phantom, posterior_maps, read_tree, write_maps
from ivimbayes.cli.main import app
from ivimbayes.io.scans import write_scan
from ivimbayes.maps.blocks import Task, map_block
from ivimbayes.maps.files import NAMES
from ivimbayes.maps.populations import PopulationDraws
from ivimbayes.maps.posterior import _make_task
from ivimbayes.models.signals import SIGNALS
from ivimbayes.voxelwise.status import MAPPED, STATUS

runner = CliRunner()


@pytest.fixture(scope="session")
def trusted(phantom_scan: tuple[xr.Dataset, xr.Dataset]) -> xr.DataTree:
    """Fit of the phantom that passes its diagnosis: 100 voxels a region."""
    return fit(phantom_scan[0], voxels_per_roi=100, draws=1000, tune=500, seed=1, progress=False)


@pytest.fixture(scope="session")
def maps(phantom_scan: tuple[xr.Dataset, xr.Dataset], trusted: xr.DataTree) -> xr.Dataset:
    return posterior_maps(phantom_scan[0], trusted, progress=False)


def part(whole: xr.Dataset) -> xr.Dataset:
    """An eighth of the voxels, of every region."""
    return whole.isel(x=slice(None, None, 2), y=slice(None, None, 2), z=slice(0, 1))


@pytest.fixture(scope="session")
def small(phantom_scan: tuple[xr.Dataset, xr.Dataset]) -> xr.Dataset:
    return part(phantom_scan[0])


@pytest.fixture(scope="session")
def small_maps(small: xr.Dataset, trusted: xr.DataTree) -> xr.Dataset:
    return posterior_maps(small, trusted, progress=False)


@pytest.fixture
def short_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ivimbayes.parallel, "ANSWER", "300ms")


def same(a: xr.Dataset, b: xr.Dataset) -> None:
    """The same bytes in every variable."""
    assert set(a.data_vars) == set(b.data_vars)
    for name in a.data_vars:
        assert a[name].values.tobytes() == b[name].values.tobytes(), name


def test_every_map_is_there(maps: xr.Dataset, phantom_scan: tuple[xr.Dataset, xr.Dataset]) -> None:
    scan, truth = phantom_scan
    assert set(maps.data_vars) == {*NAMES, "affine"}
    inside = scan["roi"].values != 0
    assert ((maps["status"].values != STATUS["outside"]) == inside).all()
    assert (maps["status"].values[inside] == STATUS["ok"]).mean() > 0.97
    for name in set(NAMES) - {"status"}:
        values = maps[name].values
        assert np.isnan(values[~inside]).all(), name
        assert np.isfinite(values[maps["status"].values == STATUS["ok"]]).all(), name
        assert maps[name].attrs["units"]
        assert maps[name].attrs["long_name"]
    for p in MAPPED:
        low, median, high = (maps[f"{p}_{s}"].values[inside] for s in ("hdi_low", "median", "hdi_high"))
        assert (low < median).all()
        assert (median < high).all()
    for p, share in (("f", 0.03), ("D", 0.04), ("S0", 0.03)):
        low, high, true = maps[f"{p}_hdi_low"], maps[f"{p}_hdi_high"], truth[p]
        assert abs(float(((low <= true) & (true <= high)).values[inside].mean()) - 0.95) < share
    corr = np.corrcoef(maps["f_mean"].values[inside], truth["f"].values[inside])[0, 1]
    assert corr > 0.8
    assert float(maps["S0_contraction"].median()) > float(maps["D_star_contraction"].median())
    assert json.loads(maps.attrs["population"])["liver"] == ["liver"]


@pytest.mark.parametrize("change", [{"chunk": 37}, {"cores": 1}, {"cores": 3, "chunk": 100}])
def test_the_cut_changes_nothing(
    small: xr.Dataset, trusted: xr.DataTree, small_maps: xr.Dataset, change: dict[str, int]
) -> None:
    same(posterior_maps(small, trusted, progress=False, **change), small_maps)


def test_another_seed_gives_other_maps_within_their_error(
    phantom_scan: tuple[xr.Dataset, xr.Dataset], trusted: xr.DataTree, maps: xr.Dataset
) -> None:
    other = posterior_maps(phantom_scan[0], trusted, progress=False, seed=1)
    for p in MAPPED:
        error = np.abs(other[f"{p}_mean"] - maps[f"{p}_mean"]) / maps[f"{p}_sd"]
        assert 0 < float(error.quantile(0.99)) < 0.15


def test_kept_draws(
    phantom_scan: tuple[xr.Dataset, xr.Dataset], trusted: xr.DataTree, maps: xr.Dataset
) -> None:
    few = phantom_scan[0].isel(z=slice(0, 1))
    made = posterior_maps(few, trusted, progress=False, keep_draws=50)
    again = posterior_maps(few, trusted, progress=False, keep_draws=50, chunk=30)
    same(made, again)
    for p in MAPPED:
        assert made[p].dims == ("draw", "x", "y", "z")
        z = (made[p].mean("draw") - made[f"{p}_mean"]) / (made[f"{p}_sd"] / np.sqrt(50))
        assert abs(float(z.mean())) < 0.1
        assert 0.5 < float(z.std()) < 1.1
    assert (made["D"] < made["D_star"]).values[np.isfinite(made["D"].values)].all()


def test_nuts_agrees_on_its_own_voxels(trusted: xr.DataTree, maps: xr.Dataset) -> None:
    posterior = trusted["posterior"].to_dataset()
    place = tuple(posterior[axis].values.astype(int) for axis in "xyz")
    for p in MAPPED:
        draws = posterior[p].astype(float)
        mean, sd = draws.mean(("chain", "draw")).values, draws.std(("chain", "draw")).values
        error = np.abs(maps[f"{p}_mean"].values[place] - mean) / sd
        assert np.quantile(error, 0.95) < 0.1, p
        ratio = np.abs(maps[f"{p}_sd"].values[place] / sd - 1)
        assert np.quantile(ratio, 0.95) < 0.1, p


def test_bad_voxels_are_marked_and_empty(
    small: xr.Dataset, trusted: xr.DataTree, small_maps: xr.Dataset
) -> None:
    scan = small.copy(deep=True)
    inside = np.argwhere(scan["roi"].values == 1)
    for index, value in zip(inside[:4], (np.nan, np.inf, 0.0, -3.0), strict=True):
        scan["signal"].values[(*index, 5)] = value
    rising = tuple(inside[10])
    scan["signal"].values[rising] = 300 * np.exp(-0.004 * np.asarray(scan["b"]))[::-1]  # grows with b
    made = posterior_maps(scan, trusted, progress=False)
    for index in inside[:4]:
        assert made["status"].values[tuple(index)] == STATUS["bad_signal"]
        assert all(np.isnan(made[name].values[tuple(index)]) for name in NAMES if name != "status")
    assert made["status"].values[rising] in (STATUS["doubtful"], STATUS["failed"])
    untouched = np.ones(scan["roi"].shape, bool)
    for index in [*inside[:4], inside[10]]:
        untouched[tuple(index)] = False
    assert (made["f_mean"].values[untouched] == small_maps["f_mean"].values[untouched])[
        scan["roi"].values[untouched] != 0
    ].all()
    scan.attrs["real_valued"] = 1
    assert (
        posterior_maps(scan, trusted, progress=False)["status"].values[tuple(inside[3])]
        != STATUS["bad_signal"]
    )


def test_a_failed_region_has_no_numbers(
    small: xr.Dataset, trusted: xr.DataTree, small_maps: xr.Dataset
) -> None:
    spoilt = trusted.copy(deep=True)
    chains = spoilt["posterior"]["f_roi"].copy(deep=True)
    chains[0, :, 0] += 0.5
    spoilt["posterior"]["f_roi"] = chains
    made = posterior_maps(small, spoilt, progress=False)
    liver = small["roi"].values == 1
    assert (made["status"].values[liver] == STATUS["failed"]).all()
    assert np.isnan(made["D_mean"].values[liver]).all()
    kidney = small["roi"].values == 2
    assert (made["D_mean"].values[kidney] == small_maps["D_mean"].values[kidney]).all()


def test_voxels_without_a_region_take_all_regions(
    small: xr.Dataset, trusted: xr.DataTree, small_maps: xr.Dataset
) -> None:
    scan = small.copy(deep=True)
    scan["roi"] = (scan["roi"] > 0).astype(np.int32)
    scan.attrs["roi_names"] = json.dumps({"1": "mask"})
    made = posterior_maps(scan, trusted, progress=False)
    assert json.loads(made.attrs["population"]) == {"mask": ["liver", "kidney", "pancreas"]}
    wider = (made["D_sd"] / small_maps["D_sd"]).median()
    assert 1 < float(wider) < 1.5


@pytest.mark.slow
def test_mean_curves_and_blocks_give_maps(phantom_scan: tuple[xr.Dataset, xr.Dataset]) -> None:
    """A curve averaged over voxels has less noise than its voxels have: sigma is scaled back."""
    scan, truth = phantom_scan
    short = {"draws": 200, "tune": 300, "chains": 2, "progress": False, "retry": False, "seed": 0}
    coarse = fit(scan, downsample=2, **short)  # type: ignore[arg-type]
    assert coarse["constant_data"]["averaged"].values.tolist() == [4, 4, 4]
    curve = fit(scan, level="mean", **short)  # type: ignore[arg-type]
    assert int(curve["constant_data"]["averaged"][0]) == int((scan["roi"] == 1).sum())
    for tree, low in ((coarse, 0.85), (curve, 0.85)):
        made = posterior_maps(scan, tree, progress=False)
        known = np.isfinite(made["D_mean"].values)
        assert known.sum() > 300
        inside = (made["D_hdi_low"] <= truth["D"]) & (truth["D"] <= made["D_hdi_high"])
        assert float(inside.values[known].mean()) > low


def test_student_t_population(phantom_scan: tuple[xr.Dataset, xr.Dataset]) -> None:
    scan = phantom_scan[0].isel(z=slice(0, 1))
    scan = scan.assign(roi=scan["roi"].where(scan["roi"] == 1, 0)).assign_attrs(roi_names='{"1": "liver"}')
    tree = fit(
        scan,
        ModelSpec(population="student_t"),
        voxels_per_roi=40,
        draws=300,
        tune=300,
        seed=0,
        retry=False,
        progress=False,
    )
    made = posterior_maps(scan, tree, progress=False)
    assert made.attrs["population_model"] == "student_t"
    posterior = tree["posterior"].to_dataset()
    place = tuple(posterior[axis].values.astype(int) for axis in "xyz")
    mean, sd = (getattr(posterior["f"].astype(float), s)(("chain", "draw")).values for s in ("mean", "std"))
    assert np.quantile(np.abs(made["f_mean"].values[place] - mean) / sd, 0.9) < 0.15


def test_rician_noise_lifts_the_bias_of_D() -> None:
    """At an SNR of 8 the Gaussian model takes the noise floor for slow diffusion; intervals cover with the Rician."""
    b = np.array((0, 0, 20, 50, 100, 200, 400, 600, 800, 1000.0))
    mu, sd, sigma, size = np.array([-1.7, -6.2, -3.5]), np.array([0.4, 0.3, 0.4]), 1 / 8, 4000
    rng = np.random.default_rng(0)
    values = np.stack(SIGNALS["biexponential"].values(*(mu + sd * rng.standard_normal((size, 3))).T), axis=1)
    S0 = 1 + 0.1 * rng.standard_normal(size)
    curve = S0[:, None] * SIGNALS["biexponential"].curve(b, *(v[:, None] for v in values.T))
    noise = sigma * rng.standard_normal((2, size, len(b)))
    signal = np.hypot(curve + noise[0], noise[1]).reshape(size, 1, 1, len(b)).astype(np.float32)
    fixed = np.ones(2)
    population = PopulationDraws(
        ("known",), np.tile(mu, (2, 1)), np.tile(np.diag(sd**2), (2, 1, 1)), sigma * fixed, fixed, 0.1 * fixed, 0.0,
        "converged", np.empty((0, 3), int), np.empty((0, len(b))),
    )  # fmt: skip
    bias, cover = {}, {}
    for name, draws in (("gaussian", 512), ("rician", 1024)):
        task = Task(b, np.ones(len(b)), {1: population}, (size, 1, 1), name, False, 0.95, 0, 0.5, draws, 0)
        made = map_block(signal, np.ones((size, 1, 1), int), (0, 0, 0), task)
        known = np.isfinite(made["D_mean"].ravel())
        assert known.mean() > 0.98
        bias[name] = abs(np.mean(made["D_mean"].ravel()[known] - values[known, 1]))
        low, high = made["D_hdi_low"].ravel()[known], made["D_hdi_high"].ravel()[known]
        cover[name] = np.mean((low <= values[known, 1]) & (values[known, 1] <= high))
    assert bias["rician"] < 0.2 * bias["gaussian"]
    assert abs(cover["rician"] - 0.95) < 0.012  # 3.5 standard deviations of the share of 4 000
    assert abs(cover["gaussian"] - 0.95) > 0.012


def test_perfusion_is_told_from_none(small: xr.Dataset, trusted: xr.DataTree, small_maps: xr.Dataset) -> None:
    scan = small.copy(deep=True)
    b = scan["b"].values
    rng = np.random.default_rng(0)
    liver = scan["roi"].values == 1
    scan["signal"].values[liver] = 300 * np.exp(-b * 1.1e-3) + 5 * rng.standard_normal((liver.sum(), len(b)))
    made = posterior_maps(scan, trusted, progress=False)
    assert float(np.median(made["p_perfusion"].values[liver])) < 0.05
    other = small_maps
    assert float(np.median(other["p_perfusion"].values[liver])) > 0.95
    sceptic = posterior_maps(small, trusted, progress=False, perfusion_prior=0.01)
    odds = [m["p_perfusion"].values[liver] for m in (other, sceptic)]
    keep = (odds[0] > 0.01) & (odds[0] < 0.99)
    ratio = np.log(odds[0][keep] / (1 - odds[0][keep])) - np.log(odds[1][keep] / (1 - odds[1][keep]))
    np.testing.assert_allclose(ratio, np.log(99), atol=0.02)


# ---------------------------------------------------------------- stores


def test_a_store_holds_the_same_maps(
    tmp_path: Path, small: xr.Dataset, trusted: xr.DataTree, small_maps: xr.Dataset
) -> None:
    made = posterior_maps(small, trusted, store=tmp_path / "maps.zarr", chunk=50, progress=False)
    same(made, small_maps)
    assert made["f_mean"].attrs == small_maps["f_mean"].attrs
    assert made.attrs == small_maps.attrs
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        opened = xr.open_zarr(tmp_path / "maps.zarr", chunks=None, consolidated=False)
    same(opened.drop_vars("blocks_done"), small_maps)


def test_an_ended_run_continues(
    tmp_path: Path,
    small: xr.Dataset,
    trusted: xr.DataTree,
    small_maps: xr.Dataset,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import ivimbayes.maps.execution as module

    calls, real = [], module.map_block

    def fails_at_third(*words: object) -> object:
        if words[2] != (0, 0, 0) or len(calls) > 0:
            calls.append(words[2])
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*words)  # type: ignore[arg-type]

    store = tmp_path / "maps.zarr"
    options = {"store": store, "chunk": 50, "cores": 1, "progress": False}
    monkeypatch.setattr(module, "map_block", fails_at_third)
    with pytest.raises(KeyboardInterrupt):
        posterior_maps(small, trusted, **options)  # type: ignore[arg-type]
    done = len([p for p in (store / "blocks_done" / "c").rglob("*") if p.is_file()])
    assert 0 < done < 8
    calls.clear()
    computed = []

    def counts(*words: object) -> object:
        computed.append(words[2])
        return real(*words)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "map_block", counts)
    same(posterior_maps(small, trusted, **options), small_maps)  # type: ignore[arg-type]
    assert len(computed) == 8 - done + 1  # and the one that compiles
    computed.clear()
    options["chunk"] = 70  # the store keeps its own cut
    same(posterior_maps(small, trusted, **options), small_maps)  # type: ignore[arg-type]
    assert not computed


def test_a_store_of_other_maps_is_refused(
    tmp_path: Path,
    small: xr.Dataset,
    trusted: xr.DataTree,
    small_maps: xr.Dataset,
    refused: Callable[..., str],
) -> None:
    store, scan = tmp_path / "maps.zarr", small
    posterior_maps(scan, trusted, store=store, seed=5, progress=False)
    refused(
        lambda: posterior_maps(scan, trusted, store=store, progress=False),
        "another scan, fit or setting",
        str(store),
    )
    other = scan.copy(deep=True)
    other["signal"].values[0, 0, 0, 0] += 1
    refused(lambda: posterior_maps(other, trusted, store=store, seed=5, progress=False), "another scan")
    same(posterior_maps(scan, trusted, store=store, renew=True, progress=False), small_maps)
    named = other.assign_attrs(inputs=json.dumps({"dwi": {"file": "a.nii.gz", "sha256": "0"}}))
    first = scan.assign_attrs(inputs=named.attrs["inputs"])
    posterior_maps(first, trusted, store=tmp_path / "named.zarr", progress=False)
    refused(
        lambda: posterior_maps(named, trusted, store=tmp_path / "named.zarr", progress=False), "another scan"
    )
    small_maps[["f_mean"]].to_zarr(tmp_path / "f.zarr", zarr_format=3, consolidated=False)
    refused(
        lambda: posterior_maps(scan, trusted, store=tmp_path / "f.zarr", renew=True, progress=False),
        "other files",
    )
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    refused(lambda: posterior_maps(scan, trusted, store=tmp_path / "mine", progress=False), "other files")
    refused(
        lambda: posterior_maps(scan, trusted, store=tmp_path / "mine", renew=True, progress=False),
        "other files",
    )
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


@pytest.fixture(scope="module")
def workers() -> Iterator[str]:
    """Address of a dask scheduler with two workers."""
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=False, dashboard_address="127.0.0.1:0", protocol="tcp://"
    ) as cluster:
        yield cluster.scheduler_address


def test_workers_give_the_same_maps(
    workers: str,
    tmp_path: Path,
    small: xr.Dataset,
    trusted: xr.DataTree,
    small_maps: xr.Dataset,
) -> None:
    scan = small
    same(posterior_maps(scan, trusted, scheduler=workers, chunk=70, progress=False), small_maps)
    lazy = scan.assign(signal=scan["signal"].chunk({"x": 11, "z": 1}))
    same(posterior_maps(lazy, trusted, chunk=70, progress=False), small_maps)
    same(
        posterior_maps(lazy, trusted, scheduler=workers, chunk=70, store=tmp_path / "a.zarr", progress=False),
        small_maps,
    )


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"noise": "pink"}, ("noise", "gaussian, rician")),
        ({"interval": 1.0}, ("interval", "between 0 and 1")),
        ({"keep_draws": -1}, ("keep_draws", "0 or more")),
        ({"perfusion_prior": 0.0}, ("perfusion_prior", "between 0 and 1")),
        ({"draws": 500}, ("draws", "multiple of 256")),
        ({"seed": -1}, ("seed", "0 or more")),
        ({"chunk": 0}, ("chunk", "1 voxel or more")),
        ({"cores": 0}, ("cores", "1 or more")),
        ({"scheduler": "tcp://127.0.0.1:9"}, ("scheduler", "no dask scheduler")),
    ],
)
def test_bad_options(
    short_wait: None,
    small: xr.Dataset,
    trusted: xr.DataTree,
    refused: Callable[..., str],
    options: dict[str, object],
    words: tuple[str, ...],
) -> None:
    refused(lambda: posterior_maps(small, trusted, progress=False, **options), *words)  # type: ignore[arg-type]


def test_a_region_that_was_not_fitted(
    small: xr.Dataset, trusted: xr.DataTree, refused: Callable[..., str]
) -> None:
    scan = small.copy()
    scan.attrs["roi_names"] = json.dumps({"1": "liver", "2": "kidney", "3": "bladder"})
    refused(
        lambda: posterior_maps(scan, trusted, progress=False), "'bladder' was not fitted", "liver, kidney"
    )


def test_rician_noise_of_real_parts_is_refused(
    small: xr.Dataset, trusted: xr.DataTree, refused: Callable[..., str]
) -> None:
    scan = small.assign_attrs(real_valued=1)
    refused(lambda: posterior_maps(scan, trusted, noise="rician", progress=False), "rician", "real-valued")
    old = trusted.copy()
    old["constant_data"] = old["constant_data"].to_dataset().drop_vars("averaged")
    refused(lambda: posterior_maps(scan, old, progress=False), "another version", "fit again")


def test_a_region_of_another_name_takes_all_and_says_so(small: xr.Dataset, trusted: xr.DataTree) -> None:
    scan = small.assign(roi=(small["roi"] == 1).astype(np.int32))
    scan.attrs |= {**small.attrs, "roi_names": json.dumps({"1": "livr"})}
    with pytest.warns(
        InputWarning, match="'livr' was not fitted; it is mapped with the population of all of liver"
    ):
        posterior_maps(scan, trusted, progress=False)


def test_other_b_values_are_warned_of(small: xr.Dataset, trusted: xr.DataTree) -> None:
    scan = small.isel(measurement=slice(0, 14))
    with pytest.warns(InputWarning, match="b values .* are not those of the fit"):
        posterior_maps(scan, trusted, progress=False)
    more = small.assign_coords(averages=("measurement", np.r_[np.full(15, 1.0), 4.0]))
    with pytest.warns(InputWarning, match="averages are not those"):
        posterior_maps(more, trusted, progress=False)


# ---------------------------------------------------------------- files and the command line


def test_images_lie_on_the_scan(tmp_path: Path, maps: xr.Dataset) -> None:
    made = maps.assign(
        affine=(
            ("row", "column"),
            np.array([[-2.0, 0.1, 0, 90], [0, 2, 0, -126], [0, 0, 3, -72], [0, 0, 0, 1]]),
        )
    )
    images = write_maps(made, tmp_path / "new" / "maps")
    assert {p.name.removesuffix(".nii.gz") for p in images} == set(NAMES)
    for path in images:
        image = nib.load(path)
        name = path.name.removesuffix(".nii.gz")
        np.testing.assert_allclose(image.affine, made["affine"].values)
        np.testing.assert_array_equal(image.get_fdata(dtype=np.float32), maps[name].values.astype(np.float32))
        assert image.header.get_xyzt_units()[0] == "mm"
        side = json.loads(path.with_name(f"{name}.json").read_text())
        assert side["Units"] == maps[name].attrs["units"]
        assert side["Interval"] == {"Type": "highest density", "Probability": 0.95}
        assert side["Model"] == "biexponential"
    status = json.loads((tmp_path / "new" / "maps" / "status.json").read_text())
    assert status["Levels"]["3"] == "failed"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scan on disk, and a fit of it by the command line."""
    made = tmp_path_factory.mktemp("mapped")
    scan, _ = phantom()
    dwi, labels = write_scan(part(scan), made)
    words = [
        "fit",
        str(dwi),
        "--rois",
        str(labels),
        "--out",
        str(made / "out"),
        "--voxels-per-roi",
        "30",
        "--quiet",
    ]
    result = runner.invoke(
        app,
        [*words, "--draws", "300", "--tune", "300", "--chains", "2", "--no-retry"],
        catch_exceptions=False,
    )
    assert result.exit_code == 0, result.output
    assert "maps: 160 voxels" in result.output
    return made


def test_fit_writes_maps(folder: Path) -> None:
    assert {p.name for p in (folder / "out").iterdir()} == {
        "posterior.nc",
        "summary.tsv",
        "report.html",
        "maps",
    }
    assert len(list((folder / "out" / "maps").glob("*.nii.gz"))) == len(NAMES)
    assert nib.load(folder / "out" / "maps" / "f_mean.nii.gz").shape == (20, 20, 1)


@pytest.mark.parametrize(
    "form", ["nifti", *(pytest.param(f, marks=pytest.mark.slow) for f in ("netcdf", "zarr"))]
)
def test_map_command(folder: Path, tmp_path: Path, form: str) -> None:
    words = [
        "map",
        str(folder / "out"),
        "--dwi",
        str(folder / "dwi.nii.gz"),
        "--rois",
        str(folder / "labels.nii.gz"),
    ]
    result = runner.invoke(
        app, [*words, "--out", str(tmp_path / "m"), "--format", form, "--quiet"], catch_exceptions=False
    )
    assert result.exit_code == 0, result.output
    assert "160 voxels" in result.output
    if form == "nifti":
        for path in (folder / "out" / "maps").glob("*.nii.gz"):
            assert (
                nib.load(path).get_fdata() == nib.load(tmp_path / "m" / path.name).get_fdata()
            ).sum() + np.isnan(nib.load(path).get_fdata()).sum() == 400
    elif form == "netcdf":
        with xr.open_dataset(tmp_path / "m" / "maps.nc", engine="h5netcdf") as made:
            assert set(made.data_vars) == {*NAMES, "affine"}
    else:
        made = xr.open_zarr(tmp_path / "m" / "maps.zarr", chunks=None, consolidated=False)
        assert set(made.data_vars) == {*NAMES, "affine"}
        assert {p.name for p in (tmp_path / "m" / "maps.zarr").iterdir()} == {*NAMES, "affine", "zarr.json"}
    assert len(list((tmp_path / "m").glob(".*"))) == 0


@pytest.mark.slow
def test_overwriting_keeps_what_is_not_ours(folder: Path, tmp_path: Path) -> None:
    words = [
        "map",
        str(folder / "out"),
        "--dwi",
        str(folder / "dwi.nii.gz"),
        "--rois",
        str(folder / "labels.nii.gz"),
    ]
    words += ["--out", str(tmp_path / "m"), "--quiet"]
    assert runner.invoke(app, [*words, "--keep-draws", "3"], catch_exceptions=False).exit_code == 0
    assert (tmp_path / "m" / "D_star.nii.gz").exists()
    (tmp_path / "m" / "thesis.txt").write_text("years of work")
    assert (
        runner.invoke(app, [*words, "--format", "netcdf", "--overwrite"], catch_exceptions=False).exit_code
        == 0
    )
    assert {p.name for p in (tmp_path / "m").iterdir()} == {"maps.nc", "thesis.txt"}
    with xr.open_dataset(tmp_path / "m" / "maps.nc", engine="h5netcdf") as made:
        assert len(write_maps(made, tmp_path / "again")) == len(NAMES)


def test_map_refuses_in_one_line(folder: Path, tmp_path: Path, command: Command, short_wait: None) -> None:
    def error(*words: str) -> str:
        status, _, said = command("map", *words)
        assert status == 2
        assert said.count("\n") == 1, said
        return said

    dwi, out = str(folder / "dwi.nii.gz"), str(folder / "out")
    assert "not empty" in error(out, "--dwi", dwi)
    assert "no such file" in error(str(tmp_path / "none"), "--dwi", dwi, "--out", str(tmp_path / "m"))
    assert "--format" in error(out, "--dwi", dwi, "--out", str(tmp_path / "m"), "--format", "gif")
    assert "no dask scheduler" in error(
        out, "--dwi", dwi, "--out", str(tmp_path / "m"), "--scheduler", "tcp://127.0.0.1:9"
    )
    assert not (tmp_path / "m").exists()


@pytest.mark.slow
def test_memory_does_not_grow_with_the_volume(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A million voxels of 16 measurements stay below 2 GiB."""
    if not Path("/proc/self/status").exists():
        pytest.skip("peak memory is read from /proc")
    scan, _ = phantom()
    tree = fit(scan, voxels_per_roi=60, draws=500, tune=500, seed=0, progress=False)
    tree.to_netcdf(tmp_path / "posterior.nc", engine="h5netcdf")
    script = tmp_path / "run.py"
    script.write_text(
        "import sys, time\n"
        "import numpy as np, xarray as xr\n"
        "from ivimbayes import phantom, posterior_maps, read_tree\n"
        "scan, _ = phantom()\n"
        "side = int(sys.argv[2])\n"
        "inside = scan['signal'].values[scan['roi'].values == 1].astype(np.float32)\n"
        "signal = np.resize(inside, (side, 100, 100, 16))\n"
        "space = ('x', 'y', 'z')\n"
        "big = xr.Dataset({'signal': ((*space, 'measurement'), signal), 'roi': (space, np.ones(signal.shape[:3], np.int32)),\n"
        "    'affine': scan['affine']}, coords={'b': scan['b'], 'averages': scan['averages']},\n"
        "    attrs={**scan.attrs, 'roi_names': '{\"1\": \"liver\"}'})\n"
        "tree = read_tree(sys.argv[1])\n"
        "posterior_maps(big.isel(x=slice(0, 1)), tree, progress=False)\n"
        "begun = time.monotonic()\n"
        "made = posterior_maps(big, tree, progress=False)\n"
        "peak = next(line for line in open('/proc/self/status') if line.startswith('VmHWM'))\n"
        "print(time.monotonic() - begun, int(peak.split()[1]) / 2**20)\n",
        encoding="utf-8",
    )
    seconds, memory = {}, {}
    for side in (25, 100):
        run = subprocess.run(
            [sys.executable, str(script), str(tmp_path / "posterior.nc"), str(side)],
            capture_output=True,
            text=True,
            check=True,
        )
        seconds[side], memory[side] = map(float, run.stdout.split()[-2:])
    with capsys.disabled():
        print(
            f"\n10^6 voxels: {seconds[100]:.0f} s, {memory[100]:.2f} GiB; 250 000: {seconds[25]:.0f} s",
            end="",
        )
    assert memory[100] < 2


def test_a_task_can_be_sent(phantom_scan: tuple[xr.Dataset, xr.Dataset], trusted: xr.DataTree) -> None:
    import pickle

    options = {
        "noise": "gaussian",
        "interval": 0.95,
        "keep_draws": 0,
        "perfusion_prior": 0.5,
        "draws": 512,
        "seed": 0,
    }
    task = _make_task(phantom_scan[0], trusted, **options)
    sent = pickle.loads(pickle.dumps(task))  # noqa: S301
    assert sent.digest == task.digest
    scan = phantom_scan[0]
    here = (slice(10, 20), slice(15, 25), slice(0, 1))
    made = [
        map_block(scan["signal"].values[here], scan["roi"].values[here], (10, 15, 0), t) for t in (task, sent)
    ]
    assert all(made[0][name].tobytes() == made[1][name].tobytes() for name in made[0])


def test_read_tree_round_trip_maps_alike(
    tmp_path: Path, phantom_scan: tuple[xr.Dataset, xr.Dataset], trusted: xr.DataTree, maps: xr.Dataset
) -> None:
    from ivimbayes import write_tree

    write_tree(trusted, tmp_path / "posterior.nc")
    same(posterior_maps(phantom_scan[0], read_tree(tmp_path / "posterior.nc"), progress=False), maps)
