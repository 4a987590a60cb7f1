"""A BIDS dataset in, BIDS derivatives out."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from conftest import Command

import ivimbayes.bids.derivatives
import ivimbayes.bids.jobs
from ivimbayes import fit, read_scan, read_tree, run_group, run_participant, simulate_study
from ivimbayes.bids.derivatives import COLUMNS, map_ending
from ivimbayes.bids.layout import Run, find_runs, inherited, parse_name
from ivimbayes.maps.files import NAMES

SHORT: dict[str, Any] = {
    "draws": 50, "tune": 50, "chains": 2, "voxels_per_roi": 8, "retry": False, "progress": False,
}  # fmt: skip
HERE: dict[str, Any] = {**SHORT, "workers": 1, "maps": False}
Refused = Callable[..., str]


def touch(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def dataset(root: Path, *names: str) -> Path:
    """A dataset of empty files."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "dataset_description.json").write_text(json.dumps({"Name": "x", "BIDSVersion": "1.10.0"}))
    touch(root, *names)
    return root


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two subjects with two sessions; nobody writes to it."""
    root = tmp_path_factory.mktemp("study") / "data"
    simulate_study(root, subjects=2, sessions=2, seed=3)
    return root


@pytest.fixture(scope="module")
def finished(study: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pd.DataFrame]:
    """Results of the study, with maps and a report of one run, and what the run said."""
    out, real = tmp_path_factory.mktemp("results") / "ivimbayes", ivimbayes.bids.derivatives.render_report

    def render(*given: Any, **options: Any) -> str:
        return real(*given, **options) if options["title"] == "sub-01_ses-1" else "<html></html>"

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ivimbayes.bids.derivatives, "render_report", render)
        return out, run_participant(study, out, **{**HERE, "maps": True})


@pytest.fixture
def own(study: Path, tmp_path: Path) -> Path:
    """A copy of the study that a test may damage."""
    return Path(shutil.copytree(study, tmp_path / "data"))


@pytest.fixture
def copied(finished: tuple[Path, pd.DataFrame], tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished[0], tmp_path / "out"))


@pytest.fixture
def plain_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures take longer than these fits."""
    monkeypatch.setattr(ivimbayes.bids.derivatives, "render_report", lambda *_, **__: "<html></html>")


@pytest.fixture
def no_sampling(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> xr.DataTree:
        raise AssertionError("sampled")

    monkeypatch.setattr(ivimbayes.bids.jobs, "sample_region", refuse)


@pytest.fixture
def run(command: Command) -> Command:
    """Run the command bids, with a short fit at the participant level."""

    def call(*words: object) -> tuple[int, str, str]:
        options = ("--draws", "50", "--tune", "50", "--chains", "2", "--voxels-per-roi", "8", "--no-retry")
        more = (*options, "--workers", "1", "--quiet") if "participant" in words else ()
        return command("bids", *words, *more)

    return call


def files(root: Path) -> dict[str, tuple[int, int]]:
    """Every file of a folder with its size and time, of hidden ones and the description not the time."""
    found = [path for path in root.rglob("*") if path.is_file()]
    return {str(p.relative_to(root)): (p.stat().st_size, p.stat().st_mtime_ns) for p in found}


# ---------------------------------------------------------------- names and files


@pytest.mark.parametrize(
    "name",
    ["sub-../x_dwi.nii.gz", "sub-01/../../x_dwi.nii", "sub-01_ses-a b_dwi.nii.gz", "sub-_dwi.nii.gz", "sub-01_sub-02_dwi.nii", "dwi", "sub-é_dwi.nii"],
)  # fmt: skip
def test_names_that_are_none(name: str) -> None:
    assert parse_name(name) is None


def test_names_are_taken_apart() -> None:
    name = parse_name("sub-01_ses-a_run-2_desc-preproc_dwi.nii.gz")
    assert name is not None
    assert dict(name.entities) == {"sub": "01", "ses": "a", "run": "2", "desc": "preproc"}
    assert (name.suffix, name.extension) == ("dwi", ".nii.gz")


@pytest.mark.parametrize(
    ("there", "found"),
    [
        (("dwi.bval",), "dwi.bval"),
        (("dwi.bval", "sub-01/sub-01_dwi.bval"), "sub-01/sub-01_dwi.bval"),
        (("dwi.bval", "sub-01/ses-1/dwi/sub-01_ses-1_run-2_dwi.bval"), "sub-01/ses-1/dwi/sub-01_ses-1_run-2_dwi.bval"),
        (("sub-01/ses-1/dwi/sub-01_ses-1_dwi.bval", "sub-01/ses-1/dwi/sub-01_ses-1_run-2_dwi.bval"), "sub-01/ses-1/dwi/sub-01_ses-1_run-2_dwi.bval"),
        (("run-2_dwi.bval", "dwi.bval"), "run-2_dwi.bval"),
        (("run-1_dwi.bval", "sub-01/sub-01_acq-a_dwi.bval", "dwi.json", "bold.bval"), None),
    ],
)  # fmt: skip
def test_inheritance(there: tuple[str, ...], found: str | None, tmp_path: Path) -> None:
    touch(tmp_path, *there)
    folder = tmp_path / "sub-01" / "ses-1" / "dwi"
    folder.mkdir(parents=True, exist_ok=True)
    entities = {"sub": "01", "ses": "1", "run": "2"}
    assert inherited(folder, tmp_path, entities, "dwi", (".bval",)) == (found and tmp_path / found)


def test_two_that_apply_equally_are_refused(tmp_path: Path, refused: Refused) -> None:
    touch(tmp_path, "run-2_dwi.bval", "acq-a_dwi.bval")
    entities = {"sub": "01", "acq": "a", "run": "2"}
    refused(lambda: inherited(tmp_path, tmp_path, entities, "dwi", (".bval",)), "equally", "keep one")


def test_inheritance_ends_at_the_top(tmp_path: Path) -> None:
    touch(tmp_path, "dwi.bval")
    root = tmp_path / "data"
    root.mkdir()
    assert inherited(root, root, {"sub": "01"}, "dwi", (".bval",)) is None


DWI, DSEG = "sub-01/dwi/sub-01_dwi.nii.gz", "derivatives/a/sub-01/dwi/sub-01_dseg.nii.gz"


def one(root: Path, **options: Any) -> Run:
    (found,) = find_runs(root, **options)
    return found


def test_a_run_and_its_files(tmp_path: Path) -> None:
    root = dataset(
        tmp_path,
        DWI,
        "dwi.bval",
        DSEG,
        "derivatives/a/dseg.tsv",
        "derivatives/a/sub-01/dwi/sub-01_mask.nii.gz",
    )
    run = one(root)
    assert (run.stem, str(run.folder), run.fault) == ("sub-01", "sub-01/dwi", "")
    assert run.inputs == {"dwi": root / DWI, "bval": root / "dwi.bval", "rois": root / DSEG, "names": root / "derivatives/a/dseg.tsv"}  # fmt: skip


@pytest.mark.parametrize(
    ("more", "options", "words"),
    [
        ((DSEG,), {}, (".bval",)),
        (("dwi.bval",), {}, ("no label image (dseg) or mask", "--rois-dir")),
        (("dwi.bval", DSEG, DSEG.replace("/a/", "/b/")), {}, ("2 label images", "equally", "--rois-desc")),
        (("dwi.bval", DSEG.replace("_dseg", "_desc-x_dseg")), {"rois_desc": "y"}, ("no label image",)),
        (("dwi.bval", DSEG), {"mask_desc": "brain"}, ("no mask with desc-brain",)),
        (("dwi.bval", DSEG, "sub-01/dwi/sub-01_desc-b_dwi.nii.gz"), {}, ("differ in desc", "keep one")),
    ],
)  # fmt: skip
def test_faults_of_a_run(
    more: tuple[str, ...], options: dict[str, str], words: tuple[str, ...], tmp_path: Path
) -> None:
    root = dataset(tmp_path, DWI, *more)
    for found in find_runs(root, **options):
        assert "\n" not in found.fault
        for word in words:
            assert word in found.fault


def test_labels_and_masks_are_chosen(tmp_path: Path) -> None:
    x, y, brain = (
        DSEG.replace("sub-01_dseg", f"sub-01_{name}")
        for name in ("desc-x_dseg", "desc-y_dseg", "desc-brain_mask")
    )
    root = dataset(tmp_path / "data", DWI, "dwi.bval", x, y, brain)
    assert one(root, rois_desc="y").rois == root / y
    chosen = one(root, rois_desc="x", mask_desc="brain")
    assert (chosen.rois, chosen.mask) == (root / x, root / brain)
    (root / x).unlink()
    (root / y).unlink()
    assert (one(root).rois, one(root).mask) == (None, root / brain)
    other = dataset(tmp_path / "other", "sub-01/dwi/sub-01_dseg.nii.gz")
    assert one(root, rois_dirs=[other]).rois == other / "sub-01/dwi/sub-01_dseg.nii.gz"


def test_labels_of_another_run_are_not_taken(tmp_path: Path) -> None:
    run1, run2 = (DSEG.replace("sub-01_", f"sub-01_run-{n}_") for n in (1, 2))
    root = dataset(tmp_path, DWI.replace("_dwi", "_run-1_dwi"), "dwi.bval", run1, run2)
    assert one(root).rois == root / run1
    (root / run1).unlink()
    assert "no label image" in one(root).fault


def test_what_is_not_fitted(tmp_path: Path) -> None:
    root = dataset(
        tmp_path, "sub-01/dwi/sub-01_part-phase_dwi.nii.gz", "sub-01/anat/sub-01_T1w.nii.gz", "sub-x y/dwi/sub-x_dwi.nii.gz",
        "sub-01/dwi/.sub-01_dwi.nii.gz", "sourcedata/sub-01/dwi/sub-01_dwi.nii.gz", "sub-01/dwi/sub-01_sbref.nii.gz",
    )  # fmt: skip
    assert find_runs(root) == []


def test_a_name_out_of_place_is_a_fault(tmp_path: Path) -> None:
    root = dataset(tmp_path, "sub-01/ses-1/dwi/sub-02_ses-1_dwi.nii.gz", "dwi.bval")
    run = one(root)
    assert "rename it" in run.fault and str(run.folder) == "sub-01/ses-1/dwi"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"participants": ["03"]}, ("participant '03'", "there are 01")),
        ({"participants": ["../01"]}, ("letters and digits",)),
        ({"sessions": ["2"]}, ("session '2'", "there are none")),
        ({"rois_dirs": ["nowhere"]}, ("nowhere", "no such folder")),
    ],
)
def test_labels_asked_for(
    options: dict[str, Any], words: tuple[str, ...], tmp_path: Path, refused: Refused
) -> None:
    root = dataset(tmp_path, DWI)
    refused(lambda: find_runs(root, **options), *words)


def test_no_dataset(tmp_path: Path, refused: Refused) -> None:
    refused(lambda: find_runs(tmp_path / "x"), "no such folder")
    refused(lambda: find_runs(tmp_path), "no dataset_description.json")
    (tmp_path / "dataset_description.json").write_text("{")
    refused(lambda: find_runs(tmp_path), "not readable JSON")
    dataset(tmp_path)
    refused(lambda: find_runs(tmp_path), "no folder sub-")
    (tmp_path / "sub-01").mkdir()
    refused(lambda: run_participant(tmp_path, tmp_path / "out", **HERE), "no diffusion-weighted image")


# ---------------------------------------------------------------- results


def test_results(study: Path, finished: tuple[Path, pd.DataFrame]) -> None:
    out, table = finished
    assert table["status"].tolist() == ["done"] * 4
    assert set(table["regions"]) == {"liver, spleen"}
    folder, stem = out / "sub-01" / "ses-2" / "dwi", "sub-01_ses-2_model-ivim"
    there = {path.name.removeprefix(f"{stem}_") for path in folder.iterdir()}
    maps = {f"{map_ending(name)}{ending}" for name in NAMES for ending in (".nii.gz", ".json")}
    assert there == maps | {"posterior.nc", "summary.tsv", "summary.json", "report.html"}
    assert len(maps) == 2 * len(NAMES)
    rows = pd.read_csv(folder / f"{stem}_summary.tsv", sep="\t")
    assert (
        set(rows.columns)
        == set(COLUMNS)
        == set(json.loads((folder / f"{stem}_summary.json").read_text())) - {"Run"}
    )
    image = nib.load(folder / f"{stem}_param-f_desc-mean_dwimap.nii.gz")
    scan = nib.load(study / "sub-01" / "ses-2" / "dwi" / "sub-01_ses-2_dwi.nii.gz")
    assert image.shape == scan.shape[:3] and np.array_equal(image.affine, scan.affine)
    plain = json.loads((folder / f"{stem}_param-D_desc-sd_dwimap.json").read_text())
    assert plain["Units"] == "mm2/s"
    assert plain["Model"]["Description"] == "bi-exponential IVIM"
    assert "bids:raw:sub-01/ses-2/dwi/sub-01_ses-2_dwi.nii.gz" in plain["Sources"]
    for source in plain["Sources"]:
        assert (study / source.removeprefix("bids:raw:")).is_file()


def test_the_dataset_describes_itself(finished: tuple[Path, pd.DataFrame]) -> None:
    out = finished[0]
    plain = json.loads((out / "dataset_description.json").read_text())
    assert plain["DatasetType"] == "derivative" and plain["GeneratedBy"][0]["Name"] == "ivimbayes"
    assert (out / plain["DatasetLinks"]["raw"] / "participants.tsv").is_file()
    assert "*_dwimap.nii.gz" in (out / ".bidsignore").read_text().splitlines()
    assert not (out / "failed.tsv").exists()


def test_page_of_a_participant(finished: tuple[Path, pd.DataFrame]) -> None:
    out = finished[0]
    page = (out / "sub-02.html").read_text()
    for session in (1, 2):
        link = f"sub-02/ses-{session}/dwi/sub-02_ses-{session}_model-ivim_report.html"
        assert f'href="{link}"' in page and (out / link).is_file()
    assert "sub-01" not in page


def test_draws_are_those_of_fit(study: Path, finished: tuple[Path, pd.DataFrame]) -> None:
    kept = read_tree(finished[0] / "sub-01/ses-1/dwi/sub-01_ses-1_model-ivim_posterior.nc")
    scan = read_scan(
        study / "sub-01/ses-1/dwi/sub-01_ses-1_dwi.nii.gz", study / "dwi.bval",
        rois=study / "derivatives/manual/sub-01/ses-1/dwi/sub-01_ses-1_dseg.nii.gz", names=study / "derivatives/manual/dseg.tsv",
    )  # fmt: skip
    whole = fit(scan, **SHORT)
    xr.testing.assert_identical(kept["posterior"].to_dataset(), whole["posterior"].to_dataset())
    assert {k: v for k, v in kept.attrs.items() if k != "bids_key"} == whole.attrs


def test_the_second_time_there_is_nothing_to_do(
    study: Path, copied: Path, finished: tuple[Path, pd.DataFrame], no_sampling: None
) -> None:
    before = files(copied / "sub-01") | files(copied / "sub-02")
    table = run_participant(study, copied, **{**HERE, "maps": True})
    assert table["status"].tolist() == ["already done"] * 4
    assert table["verdict"].tolist() == finished[1]["verdict"].tolist()
    assert files(copied / "sub-01") | files(copied / "sub-02") == before


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"maps": False}, {"b_max": 700.0}, {"tissue": {"*": "generic"}}]
)
def test_other_options_are_not_mixed_in(
    change: dict[str, Any], study: Path, copied: Path, no_sampling: None, refused: Refused
) -> None:
    before = files(copied)
    refused(
        lambda: run_participant(study, copied, **{**HERE, "maps": True, **change}),
        "sub-01_ses-1",
        "other files",
        "--overwrite",
    )
    assert files(copied) == before


def test_changed_files_are_noticed_and_replaced(
    own: Path, copied: Path, plain_reports: None, refused: Refused
) -> None:
    path = own / "sub-02/ses-1/dwi/sub-02_ses-1_dwi.nii.gz"
    image = nib.load(path)
    nib.save(nib.Nifti1Image(2 * np.asarray(image.dataobj), image.affine), path)
    options = {**HERE, "maps": True}
    refused(lambda: run_participant(own, copied, **options), "1 runs (sub-02_ses-1)")
    table = run_participant(own, copied, **options, overwrite=True).set_index("run")["status"]
    assert table.to_dict() == {
        "sub-01_ses-1": "already done", "sub-01_ses-2": "already done", "sub-02_ses-1": "done", "sub-02_ses-2": "already done",
    }  # fmt: skip
    assert set(run_participant(own, copied, **options)["status"]) == {"already done"}


@pytest.mark.slow
def test_a_run_that_was_cut_short_is_done_again(study: Path, copied: Path, plain_reports: None) -> None:
    folder = copied / "sub-01/ses-1/dwi"
    (folder / "sub-01_ses-1_model-ivim_summary.tsv").unlink()
    (folder / "sub-01_ses-1_model-ivim_param-f_desc-old_dwimap.json").touch()
    table = run_participant(study, copied, **{**HERE, "maps": True})
    assert table["status"].value_counts().to_dict() == {"already done": 3, "done": 1}
    assert not (folder / "sub-01_ses-1_model-ivim_param-f_desc-old_dwimap.json").exists()


@pytest.mark.slow
def test_a_command_that_was_ended_continues(
    study: Path,
    tmp_path: Path,
    finished: tuple[Path, pd.DataFrame],
    plain_reports: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sampled, real = [], ivimbayes.bids.jobs.sample_region

    def sample(name: str, *rest: Any) -> xr.DataTree:
        if len(sampled) == 1:
            raise KeyboardInterrupt
        sampled.append(name)
        return real(name, *rest)

    monkeypatch.setattr(ivimbayes.bids.jobs, "sample_region", sample)
    options = {**HERE, "participants": ["sub-01"], "sessions": ["1"]}
    with pytest.raises(KeyboardInterrupt):
        run_participant(study, tmp_path / "out", **options)
    assert [p.name for p in (tmp_path / "out").rglob("region-*.nc")] == ["region-1.nc"]
    sampled.clear()
    assert run_participant(study, tmp_path / "out", **options)["status"].tolist() == ["done"]
    assert sampled == ["spleen"]
    assert not list((tmp_path / "out").rglob("region-*.nc"))
    name = "sub-01/ses-1/dwi/sub-01_ses-1_model-ivim_posterior.nc"
    one, other = (read_tree(out / name)["posterior"].to_dataset() for out in (tmp_path / "out", finished[0]))
    xr.testing.assert_identical(one, other)


def test_folders_that_are_refused(own: Path, tmp_path: Path, refused: Refused) -> None:
    refused(lambda: run_participant(own, own, **HERE), "is the dataset itself")
    other = dataset(tmp_path / "other")
    refused(lambda: run_participant(own, other, **HERE), "did not make")
    assert [p.name for p in other.iterdir()] == ["dataset_description.json"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"workers": 0}, ("workers 0",)),
        ({"draws": 1}, ("draws 1",)),
        ({"priors": "none.toml"}, ("none.toml",)),
    ],
)
def test_bad_options(
    options: dict[str, Any], words: tuple[str, ...], study: Path, tmp_path: Path, refused: Refused
) -> None:
    refused(lambda: run_participant(study, tmp_path / "out", **{**HERE, **options}), *words)


# ---------------------------------------------------------------- broken runs


def damage(root: Path) -> dict[str, str]:
    """Break three of four runs in three ways; words of what is said about each."""
    (root / "sub-01/ses-1/dwi/sub-01_ses-1_dwi.bval").write_text("0 10 many")
    labels = root / "derivatives/manual/sub-01/ses-2/dwi/sub-01_ses-2_dseg.nii.gz"
    image = nib.load(labels)
    values = np.asarray(image.dataobj)
    nib.save(nib.Nifti1Image(np.where(values == 2, 0, values).astype(np.uint8), image.affine), labels)
    (root / "derivatives/manual/sub-02/ses-1/dwi/sub-02_ses-1_dseg.nii.gz").unlink()
    return {"sub-01_ses-1": "'many' is not a number", "sub-01_ses-2": "no voxel of region 'spleen'", "sub-02_ses-1": "no label image"}  # fmt: skip


@pytest.mark.slow
def test_broken_runs_are_named_and_the_rest_finishes(
    own: Path, study: Path, tmp_path: Path, plain_reports: None, run: Command
) -> None:
    said = damage(own)
    out = tmp_path / "out"
    status, shown, err = run(own, out, "participant", "--no-maps")
    assert status == 3
    assert "1 runs done" in shown and "3 of 4 runs failed" in err
    failed = pd.read_csv(out / "failed.tsv", sep="\t").set_index("run")["reason"]
    assert set(failed.index) == set(said)
    for name, words in said.items():
        assert words in failed[name] and f"{name}: failed: {failed[name]}" in err
    assert [p.name for p in out.rglob("*_summary.tsv")] == ["sub-02_ses-2_model-ivim_summary.tsv"]
    status, shown, err = run(own, out, "participant", "--no-maps", "--participant-label", "01")
    assert status == 2 and "2 of 2 runs failed" in err
    shutil.copytree(study / "derivatives", own / "derivatives", dirs_exist_ok=True)
    (own / "sub-01/ses-1/dwi/sub-01_ses-1_dwi.bval").unlink()
    status, shown, err = run(own, out, "participant", "--no-maps")
    assert status in (0, 3) and "3 runs done" in shown and "failed:" not in err
    assert not (out / "failed.tsv").exists()


def test_a_damaged_image_is_named(own: Path, tmp_path: Path, plain_reports: None) -> None:
    path = own / "sub-02/ses-2/dwi/sub-02_ses-2_dwi.nii.gz"
    path.write_bytes(path.read_bytes()[:2000])
    table = run_participant(own, tmp_path / "out", **HERE, participants=["02"]).set_index("run")
    assert table["status"].to_dict() == {"sub-02_ses-1": "done", "sub-02_ses-2": "failed"}
    assert "damaged" in table.loc["sub-02_ses-2", "reason"]


@pytest.mark.slow
def test_a_sampler_that_fails_is_named(
    study: Path, tmp_path: Path, plain_reports: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = ivimbayes.bids.jobs.sample_region
    calls = []

    def sample(name: str, *rest: Any) -> xr.DataTree:
        calls.append(name)
        if len(calls) == 1:
            raise FloatingPointError("no\nfinite start")
        return real(name, *rest)

    monkeypatch.setattr(ivimbayes.bids.jobs, "sample_region", sample)
    table = run_participant(study, tmp_path / "out", **HERE, participants=["01"])
    assert table["status"].tolist() == ["failed", "done"]
    assert table["reason"][0] == "region 'liver': FloatingPointError: no finite start"
    assert calls == ["liver", "liver", "spleen"]


# ---------------------------------------------------------------- workers


@pytest.fixture(scope="module")
def scheduler() -> Iterator[str]:
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=False, dashboard_address="127.0.0.1:0", protocol="tcp://"
    ) as cluster:
        yield cluster.scheduler_address


@pytest.mark.slow
def test_workers_give_the_same_draws(
    study: Path, tmp_path: Path, scheduler: str, finished: tuple[Path, pd.DataFrame], plain_reports: None
) -> None:
    out = tmp_path / "out"
    table = run_participant(study, out, **{**HERE, "participants": ["02"], "scheduler": scheduler})
    assert table["status"].tolist() == ["done"] * 2
    for path in out.rglob("*_posterior.nc"):
        other = read_tree(finished[0] / path.relative_to(out))["posterior"].to_dataset()
        xr.testing.assert_identical(read_tree(path)["posterior"].to_dataset(), other)


@pytest.mark.slow
def test_an_error_on_a_worker_is_of_its_run_alone(
    study: Path, tmp_path: Path, scheduler: str, plain_reports: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = ivimbayes.bids.jobs.sample_region

    def sample(name: str, voxels: xr.Dataset, *rest: Any) -> xr.DataTree:
        if name == "spleen" and voxels["signal"].values[0, 0] == first:
            raise MemoryError("too large")
        return real(name, voxels, *rest)

    scan = read_scan(study / "sub-01/ses-1/dwi/sub-01_ses-1_dwi.nii.gz", study / "dwi.bval",
                     rois=study / "derivatives/manual/sub-01/ses-1/dwi/sub-01_ses-1_dseg.nii.gz")  # fmt: skip
    first = ivimbayes.choose_voxels(scan, voxels_per_roi=8)["roi-2"]["signal"].values[0, 0]
    monkeypatch.setattr(ivimbayes.bids.jobs, "sample_region", sample)
    table = run_participant(
        study, tmp_path / "out", **{**HERE, "participants": ["01"], "scheduler": scheduler}
    )
    assert table["status"].tolist() == ["failed", "done"]
    assert table["reason"][0] == "region 'spleen': MemoryError: too large"


# ---------------------------------------------------------------- group, command line, study


def test_group(study: Path, copied: Path) -> None:
    path = run_group(study, copied)
    table = pd.read_csv(path, sep="\t")
    assert list(table.columns) == ["participant_id", "session_id", "run", "model", *COLUMNS, "group"]
    assert len(table) == 4 * 2 * 5
    assert table.drop_duplicates("participant_id").set_index("participant_id")["group"].to_dict() == {
        "sub-01": "control",
        "sub-02": "patient",
    }
    single = pd.read_csv(copied / "sub-02/ses-1/dwi/sub-02_ses-1_model-ivim_summary.tsv", sep="\t")
    part = table[(table["participant_id"] == "sub-02") & (table["session_id"] == "ses-1")]
    assert np.array_equal(part["median"], single["median"])
    assert set(json.loads((copied / "group_summary.json").read_text())) == {*COLUMNS, "group"}


def test_group_with_effects(study: Path, copied: Path, own: Path, refused: Refused, run: Command) -> None:
    for path in copied.glob("sub-*/ses-*/dwi/*_summary.tsv"):  # of 50 draws
        path.write_text(path.read_text().replace("failed", "converged"))
    status, out, err = run(study, copied, "group", "--effects", "group,session")
    assert status == 0, err
    assert "group: patient - control" in out and "session: ses-2 - ses-1" in out
    effects = pd.read_csv(copied / "group_effects.tsv", sep="\t")
    assert set(effects["effect"]) == {"group: patient - control", "session: ses-2 - ses-1"}
    scans = pd.read_csv(copied / "group_scans.tsv", sep="\t")
    assert set(scans["subject"]) == {"sub-01", "sub-02"} and set(scans["session"]) == {"ses-1", "ses-2"}
    refused(lambda: run_group(study, copied, effects=["sex"]), "--effects sex", "group")
    refused(lambda: run_group(study, copied, effects=["group"], signal="kurtosis"), "kurtosis", "--signal")
    (own / "participants.tsv").write_text("participant_id\tage\nsub-01\t3\nsub-02\tn/a\n")
    refused(lambda: run_group(own, copied, effects=["age"]), "no age of sub-02")


def test_group_without_results(study: Path, tmp_path: Path, refused: Refused) -> None:
    refused(lambda: run_group(study, tmp_path), "holds no results", "participant level")


def test_group_with_bad_participants(own: Path, copied: Path, refused: Refused) -> None:
    (own / "participants.tsv").write_text("participant_id\tmean\nsub-01\t3\nsub-01\t4\n")
    refused(lambda: run_group(own, copied), "participants.tsv", "each participant once")
    (own / "participants.tsv").write_text("participant_id\tmean\nsub-01\t3\n")
    table = pd.read_csv(run_group(own, copied), sep="\t")
    assert table["participants_mean"].notna().sum() == 20 and table["mean"].notna().all()


def test_a_dry_run_writes_nothing(own: Path, tmp_path: Path, no_sampling: None, run: Command) -> None:
    damage(own)
    before = files(own)
    status, shown, _ = run(own, tmp_path / "out", "participant", "--dry-run")
    assert status == 0 and not (tmp_path / "out").exists() and files(own) == before
    assert "sub-02_ses-2: to do" in shown and "regions: liver, spleen" in shown and "bval: dwi.bval" in shown
    assert "sub-01_ses-1: failed: " in shown and "4 runs: 3 failed, 1 to do" in shown


def test_nothing_to_do_is_said(study: Path, copied: Path, no_sampling: None, run: Command) -> None:
    status, shown, _ = run(study, copied, "participant")
    assert status in (0, 3) and "4 runs already done, nothing to do" in shown
    status, shown, _ = run(study, copied, "participant", "--dry-run")
    assert "4 runs: 4 already done" in shown
    status, shown, _ = run(study, copied, "participant", "--dry-run", "--seed", "1")
    assert "4 runs: 4 other results" in shown


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("session",), "accepted are participant, group"),
        (("group", "--dry-run"), "--dry-run belongs to"),
        (("participant", "--participant_label", "07"), "no participant '07'"),
        (("participant", "--session-label", "1,9"), "session '9'"),
    ],
)
def test_bad_commands(words: tuple[str, ...], said: str, study: Path, tmp_path: Path, run: Command) -> None:
    status, shown, err = run(study, tmp_path / "out", *words)
    assert (status, shown, err.count("\n")) == (2, "", 1) and said in err
    assert not (tmp_path / "out").exists()


def test_a_study_holds_its_truth(tmp_path: Path) -> None:
    truth = simulate_study(tmp_path / "a", subjects=40, sessions=2, missing=0.25, seed=2)
    runs = truth.drop_duplicates(["participant_id", "session_id"])
    assert len(runs) == 60 == len(list((tmp_path / "a").glob("sub-*/ses-*/dwi/*_dwi.nii.gz")))
    assert truth["participant_id"].nunique() == 40
    logit = np.log(truth["f"] / (1 - truth["f"]))
    centres = logit.groupby([truth["roi"], truth["group"]]).mean()
    liver = 0.23 * np.array([1, 0.7])  # within 4 standard errors of the mean of 20 subjects
    assert np.abs(centres["liver"].values - np.log(liver / (1 - liver))).max() < 4 * 0.21 / np.sqrt(20)
    again = simulate_study(tmp_path / "b", subjects=40, sessions=2, missing=0.25, seed=2)
    pd.testing.assert_frame_equal(truth, again)
    name = runs.iloc[3][["participant_id", "session_id"]].tolist()
    images = ["/".join([*name, "dwi", "_".join([*name, "dwi.nii.gz"])])] * 2
    one, two = (np.asarray(nib.load(tmp_path / d / i).dataobj) for d, i in zip("ab", images, strict=True))
    assert np.array_equal(one, two)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"subjects": 0}, ("subjects 0",)),
        ({"missing": 1.0}, ("missing 1",)),
        ({"regions": ("livr",)}, ("livr",)),
        ({"effects": {"K": {"patient": 2.0}}}, ("'K'",)),
        ({"effects": {"f": {"patients": 2.0}}}, ("'patients'",)),
    ],
)
def test_studies_that_are_refused(
    options: dict[str, Any], words: tuple[str, ...], tmp_path: Path, refused: Refused
) -> None:
    refused(lambda: simulate_study(tmp_path / "s", **options), *words)
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "thesis.txt").touch()
    refused(lambda: simulate_study(tmp_path / "s"), "not empty")


def worker_processes(pid: int) -> list[Any]:
    """Processes that a local cluster has started for the process of this number."""
    psutil = pytest.importorskip("psutil")
    children = psutil.Process(pid).children(recursive=True)
    return [child for child in children if "multiprocessing.spawn" in " ".join(child.cmdline())]


@pytest.mark.slow
def test_a_study_on_two_workers_one_of_them_killed(tmp_path: Path) -> None:
    """20 subjects with 2 sessions from one command; a worker killed midway; then once more."""
    pytest.importorskip("distributed")
    root, out = tmp_path / "data", tmp_path / "out"
    simulate_study(root, subjects=20, sessions=2, seed=5)
    words = ["bids", str(root), str(out), "participant", "--workers", "2", "--draws", "250", "--tune", "250",
             "--chains", "4", "--no-maps", "--quiet"]  # fmt: skip
    command = [sys.executable, "-m", "ivimbayes", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while len(list(out.rglob("*_summary.tsv"))) < 10:
            assert process.poll() is None
            time.sleep(0.2)
        before = {worker.pid for worker in worker_processes(process.pid)}
        assert len(before) == 2
        victim = min(before)
        os.kill(victim, signal.SIGKILL)
        shown, err = process.communicate(timeout=1800)
    assert process.returncode in (0, 3), err
    assert "40 runs done" in shown and "failed:" not in err
    assert len(list(out.rglob("*_posterior.nc"))) == 40 and not list(out.rglob("region-*.nc"))
    for name in ("sub-07/ses-1/dwi/sub-07_ses-1", "sub-20/ses-2/dwi/sub-20_ses-2"):
        stem = root / "derivatives" / "manual" / f"{name}_dseg.nii.gz"
        scan = read_scan(root / f"{name}_dwi.nii.gz", root / "dwi.bval", rois=stem, names=root / "derivatives/manual/dseg.tsv")  # fmt: skip
        whole = fit(scan, draws=250, tune=250, chains=4, progress=False)["posterior"].to_dataset()
        kept = read_tree(out / f"{name}_model-ivim_posterior.nc")["posterior"].to_dataset()
        xr.testing.assert_identical(kept, whole)
    before_files = files(out / "sub-01")
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert again.returncode == process.returncode
    assert "40 runs already done, nothing to do" in again.stdout
    assert files(out / "sub-01") == before_files
    table = pd.read_csv(run_group(root, out, effects=["group", "session"]), sep="\t")
    effects = pd.read_csv(out / "group_effects.tsv", sep="\t").set_index(["effect", "roi", "parameter"])
    found = effects.loc[("group: patient - control", "liver", "f")]
    assert found["p_greater"] < 0.01 and found["ratio_low"] < 0.7 < found["ratio_high"]
    assert table["participant_id"].nunique() == 20 and set(table["group"]) == {"control", "patient"}
    liver = table[(table["roi"] == "liver") & (table["parameter"] == "f")].groupby("group")["median"].mean()
    assert 0.5 < liver["patient"] / liver["control"] < 0.9  # 0.7 is true
