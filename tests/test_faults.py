"""What disturbs a run: kills, full disks, vanished folders, two runs at once, other versions, hostile files."""

import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import h5py
import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from conftest import SHORT, Case

import ivimbayes.bids.jobs as workers
import ivimbayes.cli.out_folder as folders
import ivimbayes.fitting.convergence as convergence
import ivimbayes.fitting.fit as sampling
import ivimbayes.io.append as joined
import ivimbayes.io.netcdf as storage
from ivimbayes import (
    ModelSpec,
    diagnose,
    fit,
    posterior_maps,
    read_maps,
    read_scan,
    read_tree,
    region_estimates,
    summarize,
    write_tree,
)  # fmt: skip
from ivimbayes.bids.derivatives import open_dataset, write_failure
from ivimbayes.bids.layout import Run
from ivimbayes.cli.out_folder import CHECKPOINT, LOCK, NEW, READY, STORE, OutFolder
from ivimbayes.cli.outputs import fit_file
from ivimbayes.errors import InputError, InputWarning
from ivimbayes.fitting import plan, sampler
from ivimbayes.fitting.checkpoint import FinishedRegion
from ivimbayes.fitting.collect import join_regions
from ivimbayes.fitting.interruption import FitInterrupted
from ivimbayes.io.append import write_regions
from ivimbayes.io.atomic import replacing
from ivimbayes.io.labels import read_label_names
from ivimbayes.io.netcdf import open_tree
from ivimbayes.io.tables import read_table
from ivimbayes.maps.stores import ZarrStore, unfinished_store
from ivimbayes.models.priors import read_priors
from ivimbayes.results.regions import region_tree
from ivimbayes.results.stored import read_fit

Refused = Callable[..., str]
KILLS = Path(__file__).parent / "faults" / "kills.py"
REPLACED = {"posterior.nc", "summary.tsv", "truth.tsv", "maps/f_mean.json", "maps/D_mean.json"}


class Killed(BaseException):
    """Stands for a SIGKILL: nothing is tidied up after it."""


def results(folder: OutFolder, word: str) -> None:
    """Write three results and a folder of two."""
    for name in ("posterior.nc", "summary.tsv", "maps/f_mean.json", "phantom/dwi.bval"):
        (folder.new / name).parent.mkdir(exist_ok=True)
        (folder.new / name).write_text(word)


def there(path: Path) -> dict[str, str]:
    return {str(p.relative_to(path)): p.read_text() for p in sorted(path.rglob("*")) if p.is_file()}


def first_results(out: Path) -> None:
    with OutFolder(out, False, CHECKPOINT) as folder:
        results(folder, "old")
        (folder.new / "truth.tsv").write_text("old")
        (folder.new / "maps" / "D_mean.json").write_text("old")
        folder.finish(REPLACED)
    (out / "maps" / "mine.txt").write_text("mine")


STEPS = 16  # file operations of putting in place: each is killed, and the run after them is not


@pytest.mark.parametrize("step", range(STEPS + 1))
def test_a_kill_at_any_step_of_putting_in_place(step: int, tmp_path: Path, monkeypatch: Any) -> None:
    """Before the one rename that counts the old results stand; after it the next run completes the new ones."""
    out = tmp_path / "out"
    first_results(out)
    old = there(out)
    calls = 0

    def killing(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            nonlocal calls
            if calls == step:
                raise Killed
            calls += 1
            return real(*args, **options)

        return call

    folder = OutFolder(out, True, CHECKPOINT).__enter__()
    folder.unfinished.mkdir()
    (folder.unfinished / "region-1.nc").touch()
    results(folder, "new")
    with monkeypatch.context() as patch:
        for name in ("rename", "replace", "unlink"):
            patch.setattr(Path, name, killing(getattr(Path, name)))
        patch.setattr(shutil, "rmtree", killing(shutil.rmtree))
        killed = True
        with suppress(Killed):
            folder.finish(REPLACED)
            killed = False
    assert killed == (step < STEPS)
    assert folder.lock is not None
    folder.lock.release()  # as the system does for a process that is gone
    began = (out / READY).exists() or (out / "summary.tsv").read_text() == "new"
    if (out / READY).exists():
        with pytest.raises(InputError, match="put in place"):
            fit_file(out)
    try:
        with OutFolder(out, False, CHECKPOINT):
            raise AssertionError("a folder with results was taken for an empty one")
    except InputError as error:
        assert "finished fit" in str(error)
    found = there(out)
    if not began:
        assert found == old | {f"{CHECKPOINT}/region-1.nc": ""}
        return
    wanted = ("posterior.nc", "summary.tsv", "maps/f_mean.json", "phantom/dwi.bval")
    assert found == {"maps/mine.txt": "mine", **dict.fromkeys(wanted, "new")}


def test_two_runs_in_one_folder(tmp_path: Path, refused: Refused) -> None:
    with OutFolder(tmp_path / "out", False, CHECKPOINT):
        refused(lambda: OutFolder(tmp_path / "out", True, STORE).__enter__(), "another run", "--out")
        assert (tmp_path / "out" / LOCK).exists()
    assert not (tmp_path / "out").exists()


def test_a_lock_file_that_its_holder_removes_is_opened_again(
    tmp_path: Path, monkeypatch: Any, refused: Refused
) -> None:
    """A run that ends removes the file between another's opening and locking it: that lock would be of no file."""
    fcntl = pytest.importorskip("fcntl")
    real, removed = fcntl.flock, []

    def removing(*given: Any) -> None:
        if not removed:
            removed.append((tmp_path / LOCK).unlink())
        real(*given)

    monkeypatch.setattr(fcntl, "flock", removing)
    with OutFolder(tmp_path, False, CHECKPOINT):
        assert removed and (tmp_path / LOCK).exists()
        refused(lambda: OutFolder(tmp_path, True, STORE).__enter__(), "another run")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_disk_without_locks(number: int, tmp_path: Path, monkeypatch: Any) -> None:
    def without(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(pytest.importorskip("fcntl"), "flock", without)
    for word in ("old", "new"):
        with OutFolder(tmp_path / "out", True, CHECKPOINT) as folder:
            assert (tmp_path / "out" / LOCK).exists()
            results(folder, word)
            folder.finish(REPLACED)
        assert (tmp_path / "out" / "summary.tsv").read_text() == word
        assert not (tmp_path / "out" / LOCK).exists()


def test_a_folder_that_cannot_be_written_is_refused(
    tmp_path: Path, monkeypatch: Any, refused: Refused
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(folders.BaseFileLock, "acquire", full)
    monkeypatch.setattr(Path, "touch", full)
    refused(lambda: OutFolder(tmp_path / "out", False).__enter__(), "out: cannot be written", "No space left")
    assert not (tmp_path / "out").exists()


def test_unfinished_work_of_another_command_is_left_alone(tmp_path: Path, refused: Refused) -> None:
    (tmp_path / STORE / "blocks_done" / "c" / "0").mkdir(parents=True)
    (tmp_path / STORE / "blocks_done" / "c" / "0" / "0").touch()
    refused(lambda: OutFolder(tmp_path, False, CHECKPOINT).__enter__(), "unfinished work of ivimbayes map")
    with OutFolder(tmp_path, True, None) as folder:  # as ls has none of its own
        (folder.new / "D.json").touch()
        folder.finish({"D.json"})
    assert (tmp_path / STORE / "blocks_done" / "c" / "0" / "0").exists()


def test_leftovers_of_a_killed_run_are_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / NEW).mkdir()
    unfinished_store(tmp_path / STORE).mkdir()
    (unfinished_store(tmp_path / STORE) / "zarr.json").touch()
    (tmp_path / NEW / "posterior.nc").write_text("half")
    (tmp_path / ".part-x-posterior.nc").write_text("half")
    (tmp_path / LOCK).touch()
    with OutFolder(tmp_path, False, CHECKPOINT) as folder:
        assert [p.name for p in folder.path.iterdir()] == [LOCK]


def test_links_where_work_is_kept_are_refused(tmp_path: Path, refused: Refused) -> None:
    other = tmp_path / "other"
    (other / "maps").mkdir(parents=True)
    (other / "maps" / "mine.txt").touch()
    for name in (CHECKPOINT, STORE, NEW, READY):
        out = tmp_path / f"out{name}"
        out.mkdir()
        (out / name).symlink_to(other)
        refused(lambda out=out: OutFolder(out, True, CHECKPOINT).__enter__(), "a link")
    (tmp_path / "data").mkdir()
    for name in (".ivimbayes", "logs"):
        out = tmp_path / f"bids{name}"
        out.mkdir()
        (out / name).symlink_to(other)
        refused(lambda out=out: open_dataset(out, tmp_path / "data"), "a link")
    assert (other / "maps" / "mine.txt").exists()


@pytest.mark.parametrize("name", ["../mine.txt", "/tmp/mine.txt", "maps/../../mine.txt", "..", "maps/.."])
def test_a_forged_list_of_results_leads_nowhere(name: str, tmp_path: Path, refused: Refused) -> None:
    out = tmp_path / "out"
    (out / READY).mkdir(parents=True)
    (tmp_path / "mine.txt").touch()
    for plain in ({"moved": [], "stale": [name]}, {"moved": [name], "stale": []}):
        (out / READY / folders.MANIFEST).write_text(json.dumps(plain | {"work": None}))
        refused(lambda: OutFolder(out, True).__enter__(), READY)
    (out / READY / folders.MANIFEST).write_text(json.dumps({"moved": [], "stale": [], "work": "../out"}))
    refused(lambda: OutFolder(out, True).__enter__(), READY)
    assert (tmp_path / "mine.txt").exists()


def regions_of_fit(tree: xr.DataTree) -> list[xr.DataTree]:
    """Give each region of a fit as it was before they were joined."""
    parts = []
    for roi in tree["posterior"]["roi"].values.tolist():
        part = region_tree(tree, roi)
        groups = {str(name): node.to_dataset() for name, node in part.children.items()}
        groups["constant_data"] = groups["constant_data"].drop_vars(["affine", "attempts"])
        groups = {k: v.drop_vars("voxel") if "voxel" in v.dims else v for k, v in groups.items()}
        parts.append(xr.DataTree.from_dict(groups))
        parts[-1].attrs = {"attempts": int(part["constant_data"]["attempts"].item())}
    return parts


def write_joined(tree: xr.DataTree, path: Path) -> None:
    write_regions(regions_of_fit(tree), path, tree["constant_data"]["affine"].values, tree.attrs)


def test_regions_joined_in_a_file_are_those_joined_in_memory(
    short_fit: xr.DataTree, short_file: Path, tmp_path: Path
) -> None:
    write_joined(short_fit, tmp_path / "joined.nc")
    joined, whole = read_tree(tmp_path / "joined.nc"), read_tree(short_file)
    xr.testing.assert_identical(joined, whole)
    with open_tree(tmp_path / "joined.nc") as opened:
        assert opened.identical(whole)
        draws = opened["posterior"]["f"].variable
        assert not draws._in_memory
        draws.values  # noqa: B018  is read, and not kept
        assert not draws._in_memory
        assert opened["posterior"].to_dataset()["voxel_roi"].variable._in_memory
        pd.testing.assert_frame_equal(summarize(opened), summarize(whole))
    assert not list(tmp_path.glob(".part-*"))


def test_a_variable_of_later_regions_is_nan_in_the_first(short_fit: xr.DataTree, tmp_path: Path) -> None:
    parts = regions_of_fit(short_fit)
    later = parts[1]["posterior"].to_dataset()
    later["second_share"] = later["sigma"].rename("second_share")
    later["second_probability"] = later["f"].rename("second_probability")
    parts[1]["posterior"] = xr.DataTree(later)
    write_regions(parts, tmp_path / "joined.nc", short_fit["constant_data"]["affine"].values, short_fit.attrs)
    joined = read_tree(tmp_path / "joined.nc")["posterior"].to_dataset()
    memory = join_regions(
        dict(zip("abc", parts, strict=False)), xr.Dataset({"affine": short_fit["constant_data"]["affine"]})
    )
    write_tree(memory, tmp_path / "memory.nc")
    xr.testing.assert_identical(joined, read_tree(tmp_path / "memory.nc")["posterior"].to_dataset())
    assert np.isnan(joined["second_share"].isel(roi=[0, 2])).all()
    assert joined["second_probability"].isel(voxel=0).isnull().all()
    assert joined["second_probability"].notnull().any()


def two_regions(scan: xr.Dataset) -> xr.Dataset:
    """The liver and the kidney of a slice of the phantom."""
    few = scan.isel(z=[0])
    names = '{"1": "liver", "2": "kidney"}'
    return few.assign(roi=few["roi"].where(few["roi"] < 3, 0)).assign_attrs(roi_names=names)


def test_a_small_fit_is_written_as_a_large_one(
    phantom_scan: tuple[xr.Dataset, xr.Dataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Joined in memory or in the file: the same file, and the same tree."""
    options: dict[str, Any] = {**SHORT, "draws": 50, "tune": 50, "voxels_per_roi": 5, "seed": 2}
    scan, found = two_regions(phantom_scan[0]), {}
    for held in (2**26, 0):
        monkeypatch.setattr(sampling, "HELD_BYTES", held)
        with fit(scan, checkpoint=tmp_path / str(held), load=False, **options) as tree:
            assert tree["posterior"]["f"].variable._in_memory == (held > 0)
            found[held] = tree.load().copy(deep=True), read_tree(tmp_path / str(held) / "posterior.nc")
    for small, large in zip(*found.values(), strict=True):
        assert small.attrs == large.attrs
        for name, node in small.children.items():
            xr.testing.assert_identical(node.to_dataset(), large[name].to_dataset())


@pytest.mark.slow
def test_one_parameter_has_no_pairs(
    phantom_scan: tuple[xr.Dataset, xr.Dataset], tmp_path: Path, refused: Refused
) -> None:
    """Whose correlations are an array of size zero."""
    options: dict[str, Any] = {"seed": 2, "voxels_per_roi": 5, **SHORT}
    scan = two_regions(phantom_scan[0])
    spec = ModelSpec(signal="monoexponential")
    memory = fit(scan, spec, **options)
    assert memory["posterior"]["correlation"].size == 0
    with fit(scan, spec, checkpoint=tmp_path, load=False, **options) as opened:
        xr.testing.assert_identical(
            opened["posterior"].to_dataset().compute(),
            read_tree(tmp_path / "posterior.nc")["posterior"].to_dataset(),
        )
    xr.testing.assert_equal(
        read_tree(tmp_path / "posterior.nc")["posterior"].to_dataset(), memory["posterior"].to_dataset()
    )
    assert read_fit(tmp_path / "posterior.nc", large=0).equals(read_tree(tmp_path / "posterior.nc"))
    (tmp_path / "region-2.nc").unlink()
    refused(
        lambda: FinishedRegion(None, tmp_path / "region-2.nc", "key").read(), "region-2.nc", "another run"
    )
    refused(
        lambda: FinishedRegion(None, tmp_path / "region-1.nc", "key").read(), "region-1.nc", "another run"
    )
    for left in ("interrupted.nc", ".part-1-posterior.nc"):
        (tmp_path / left).touch()
    fit(scan, spec, checkpoint=tmp_path, load=False, **options).close()
    assert {p.name for p in tmp_path.iterdir()} == {"posterior.nc", "region-1.nc", "region-2.nc"}


@pytest.mark.parametrize("write", [3, 40, 200])
def test_an_interruption_while_regions_are_joined(
    short_fit: xr.DataTree, tmp_path: Path, monkeypatch: Any, write: int
) -> None:
    """HDF5 would swallow it, and lose the write: it is raised, and an older file stays."""
    real, count = joined.SurvivingFile._put, []

    def put(self: Any, piece: memoryview) -> int:
        count.append(1)
        if len(count) == write:
            os.kill(os.getpid(), signal.SIGINT)
        return real(self, piece)

    (tmp_path / "joined.nc").write_text("older")
    with monkeypatch.context() as patch:
        patch.setattr(joined.SurvivingFile, "_put", put)
        with pytest.raises(KeyboardInterrupt):
            write_joined(short_fit, tmp_path / "joined.nc")
    assert len(count) >= write
    assert (tmp_path / "joined.nc").read_text() == "older"
    assert not list(tmp_path.glob(".part-*"))


@pytest.mark.parametrize("bytes_free", [0, 3000, 300_000, 700_000, 1_000_000])
def test_a_disk_that_is_full_while_regions_are_joined(
    short_fit: xr.DataTree, tmp_path: Path, bytes_free: int
) -> None:
    """By a limit on the size of files: HDF5 must outlive it, and an older file stays."""
    write_joined(short_fit, tmp_path / "whole.nc")
    assert (tmp_path / "whole.nc").stat().st_size > bytes_free
    (tmp_path / "joined.nc").write_text("older")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_free, before[1]))
    try:
        with pytest.raises(OSError, match="too large") as found:
            write_joined(short_fit, tmp_path / "joined.nc")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert found.value.filename == str(tmp_path / "joined.nc")
    assert (tmp_path / "joined.nc").read_text() == "older"
    assert not list(tmp_path.glob(".part-*"))


@pytest.mark.parametrize("when", ["region", "joined"])
def test_a_full_disk_is_one_line_and_loses_nothing(
    case: Case, short_fit: xr.DataTree, monkeypatch: Any, capsys: pytest.CaptureFixture[str], when: str
) -> None:
    from ivimbayes.cli import main as cli

    def kept(*_: Any, checkpoint: Path, **__: Any) -> xr.DataTree:
        checkpoint.mkdir(exist_ok=True)
        (checkpoint / "region-1.nc").touch()
        if when == "region":
            write_tree(short_fit, checkpoint / "region-2.nc")
        write_joined(short_fit, checkpoint / "posterior.nc")
        pytest.fail("the disk was not full")

    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(sampling, "fit", kept)
    words = ["fit", str(case.dwi), "--rois", str(case.rois), "--out", str(case.out), "--no-maps", "--quiet"]
    monkeypatch.setattr(sys, "argv", ["ivimbayes", *words])
    with monkeypatch.context() as patch:
        if when == "region":
            patch.setattr(storage, "_write_piece", full)
        else:
            patch.setattr(joined.SurvivingFile, "_put", full)
        with pytest.raises(SystemExit) as stopped:
            cli.main()
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    name = "region-2.nc" if when == "region" else "posterior.nc"
    for word in (name, "No space left", "free some space", "same command"):
        assert word in said
    assert there(case.out) == {f"{CHECKPOINT}/region-1.nc": ""}


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="Permission") as found, replacing(tmp_path / "a.tsv"):
        raise PermissionError(errno.EACCES, "Permission denied", "something else")
    assert found.value.filename == str(tmp_path / "a.tsv")
    assert not list(tmp_path.iterdir())
    with pytest.raises(FileNotFoundError) as found, replacing(tmp_path / "gone" / "a.tsv"):
        pass
    assert found.value.filename == str(tmp_path / "gone" / "a.tsv")


def test_the_folder_removed_midway(tmp_path: Path) -> None:
    """It is made again: the results are not lost with it."""
    with OutFolder(tmp_path / "out", False, CHECKPOINT) as folder:
        shutil.rmtree(folder.path)
        results(folder, "new")
        folder.finish(REPLACED)
    assert set(there(tmp_path / "out").values()) == {"new"}


def test_a_store_removed_midway_is_named(tmp_path: Path, refused: Refused) -> None:
    store = ZarrStore(tmp_path / "store", (4, 3, 2), (4, 3, 1), 0, "key")
    shutil.rmtree(tmp_path / "store")
    maps = {name: np.ones((4, 3, 1), dtype) for name, (_, dtype, _) in store.layout.items()}
    refused(lambda: store.put((slice(0, 4), slice(0, 3), slice(0, 1)), maps), "removed", "run again")


def damaged(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 255
    path.write_bytes(bytes(raw))


@pytest.mark.parametrize(
    "what",
    ["chunk", "lost", "marks", *(pytest.param(w, marks=pytest.mark.slow) for w in ("cut", "metadata", "dtype", "none"))],
)  # fmt: skip
def test_a_damaged_store_is_computed_again(
    what: str, phantom_scan: tuple[xr.Dataset, xr.Dataset], short_fit: xr.DataTree, tmp_path: Path
) -> None:
    scan = phantom_scan[0].isel(x=slice(12, 20), y=slice(12, 20))
    options: dict[str, Any] = {"progress": False, "chunk": 32}
    wanted = posterior_maps(scan, short_fit, **options)
    store = tmp_path / "store"
    posterior_maps(scan, short_fit, store=store, **options).close()
    chunk = sorted(p for p in (store / "f_mean" / "c").rglob("*") if p.is_file())[0]
    if what == "chunk":
        damaged(chunk)
    elif what == "cut":
        chunk.write_bytes(b"")
    elif what == "lost":
        chunk.unlink()
    elif what == "none":
        (store / "D_sd" / "zarr.json").unlink()
    elif what == "marks":
        damaged(next(p for p in (store / "blocks_done" / "c").rglob("*") if p.is_file()))
    else:
        about = store / "D_sd" / "zarr.json"
        text = about.read_text()
        about.write_text(text[:-9] if what == "metadata" else text.replace("float32", "float64"))
    found = posterior_maps(scan, short_fit, store=store, renew=True, **options).load()
    for name in wanted.data_vars:
        assert found[name].values.tobytes() == wanted[name].values.tobytes(), name


@pytest.mark.parametrize("load", [pytest.param(True, marks=pytest.mark.slow), False])
def test_draws_of_an_interrupted_fit(
    phantom_scan: tuple[xr.Dataset, xr.Dataset], tmp_path: Path, monkeypatch: Any, load: bool
) -> None:
    """Kept, cut to the shortest chain and marked; the run that follows ends as if nothing had been."""
    real, started = sampler.SamplerPool.run, []

    def stopped_early(self: Any, partial: bool = False, **options: Any) -> xr.DataTree:
        assert partial
        self.stopped.wait()
        started.append(options["seed"])
        whole = real(sampler.SamplerPool(), **options)
        return whole.isel(draw=slice(0, 60 + len(started) % 2))

    def interrupt(_: Any) -> Any:
        raise KeyboardInterrupt

    scan = two_regions(phantom_scan[0])
    with monkeypatch.context() as patch:
        patch.setattr(sampler.SamplerPool, "run", stopped_early)
        patch.setattr(sampling, "as_completed", interrupt)
        with pytest.raises(FitInterrupted) as stop:
            fit(scan, seed=8, checkpoint=tmp_path / "kept", load=load, cores=4, **SHORT)
    kept = read_tree(stop.value.kept)
    assert stop.value.tree is not None and kept.identical(stop.value.tree)
    assert stop.value.kept == str(tmp_path / "kept" / "interrupted.nc")
    assert dict(kept["posterior"].sizes)["draw"] == 60
    assert kept["posterior"]["roi"].values.tolist() == ["liver", "kidney"]
    for diagnosis in diagnose(kept).values():
        assert diagnosis.verdict in ("doubtful", "failed")
        assert any("interrupted after 6" in finding.what for finding in diagnosis.findings)
    again = fit(scan, seed=8, checkpoint=tmp_path / "kept", load=load, cores=2, **SHORT)
    fresh = fit(scan, seed=8, cores=1, **SHORT)
    xr.testing.assert_identical(again["posterior"].to_dataset(), fresh["posterior"].to_dataset())
    assert "interrupted" not in again["constant_data"]


def test_an_interrupted_fit_without_draws(
    phantom_scan: tuple[xr.Dataset, xr.Dataset], monkeypatch: Any
) -> None:
    def interrupt(_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(sampling, "as_completed", interrupt)
    with pytest.raises(FitInterrupted) as stop:
        fit(phantom_scan[0].isel(z=[0]), cores=1, **SHORT | {"draws": 5000})
    assert stop.value.tree is None and stop.value.kept == ""


def test_a_region_that_does_not_converge_costs_bounded_draws(
    phantom_scan: tuple[xr.Dataset, xr.Dataset], monkeypatch: Any
) -> None:
    """Every region is found bad: each is sampled twice, never a third time, with steps of bounded length."""
    asked: list[tuple[int, int, int]] = []
    real = sampling.chain_options

    def counted(*given: Any) -> dict[str, Any]:
        options = real(*given)
        asked.append((options["draws"], options["tune"], options["maxdepth"]))
        return options

    monkeypatch.setattr(sampling, "chain_options", counted)
    monkeypatch.setattr(convergence.Chains, "good", property(lambda _: False))
    scan = phantom_scan[0]
    tree = fit(scan, cores=2, **SHORT | {"draws": 50, "tune": 50, "voxels_per_roi": 8, "retry": True})
    assert tree["constant_data"]["attempts"].values.tolist() == [2, 2, 2]
    assert sorted(asked) == [(50, 50, 10)] * 6 + [(600, 600, 10)] * 6
    many = plan.RETRY_BYTES / (8 * 4 * 1000 * 12)  # coordinates that leave no room for twelve times as many
    monkeypatch.setattr(sampler, "coordinates", lambda _: int(many * 4))
    assert sampler.retry_factor(Mock(), plan.Settings()) == 3


def stored(short_file: Path, path: Path, **attrs: Any) -> Path:
    """A copy of a fit with other attributes."""
    shutil.copy(short_file, path)
    with h5py.File(path, "r+") as file:
        file.attrs.update(attrs)
    return path


def test_fits_of_another_version(
    short_fit: xr.DataTree, short_file: Path, tmp_path: Path, refused: Refused
) -> None:
    spec, priors = json.loads(short_fit.attrs["spec"]), json.loads(short_fit.attrs["priors"])
    path = tmp_path / "posterior.nc"
    for attrs in (
        {"spec": json.dumps(spec | {"new": 1})}, {"spec": json.dumps({k: v for k, v in spec.items() if k != "prior"})},
        {"spec": "[]"}, {"settings": "{"}, {"priors": json.dumps({k: v for k, v in priors.items() if k != "liver"})},
    ):  # fmt: skip
        stored(short_file, path, **attrs)
        refused(lambda: read_fit(path), "posterior.nc", "this version", "run ivimbayes fit again")
    older = short_fit.copy()
    older["constant_data"] = xr.DataTree(older["constant_data"].to_dataset().drop_vars("level"))
    write_tree(older, path)
    refused(lambda: read_fit(path), "no level", "run ivimbayes fit again")
    assert read_fit(stored(short_file, path)).identical(read_tree(path))
    refused(lambda: read_fit(stored(short_file, path, settings="{"), large=0), "posterior.nc", "this version")


def test_a_large_fit_stays_in_its_file(
    short_fit: xr.DataTree, short_file: Path, tmp_path: Path, refused: Refused
) -> None:
    """What is said of it is the same; damage anywhere is found before anything is said."""
    path = stored(short_file, tmp_path / "posterior.nc")
    with read_fit(path, large=0) as opened:
        assert not opened["posterior"]["f"].variable._in_memory
        diagnoses = diagnose(opened)
        assert diagnoses == diagnose(short_fit)
        pd.testing.assert_frame_equal(
            summarize(opened, diagnoses), summarize(read_tree(path), diagnoses), check_exact=True
        )
    with h5py.File(path) as file:
        draws = file["log_likelihood/signal"]
        chunk = draws.id.get_chunk_info(draws.id.get_num_chunks() - 1)
    content = bytearray(path.read_bytes())
    content[chunk.byte_offset + 9 : chunk.byte_offset + 90] = bytes(81)
    path.write_bytes(content)
    refused(
        lambda: read_fit(path, large=0), "posterior.nc", "not a readable netCDF", "run ivimbayes fit again"
    )
    for name, value in (("scale_factor", "abc"), ("_Encoding", "none")):
        stored(short_file, path)
        with h5py.File(path, "r+") as file:
            file["posterior/f"].attrs[name] = value
            file["posterior/x"].attrs[name] = value
        refused(lambda: read_fit(path, large=0), "posterior.nc", "not a readable netCDF")
    xr.Dataset({"a": ("x", [1.0])}).to_netcdf(tmp_path / "other.nc", engine="h5netcdf")
    refused(lambda: read_fit(tmp_path / "other.nc", large=0), "holds no posterior")


def test_netcdf_that_points_elsewhere_or_promises_too_much(
    short_file: Path, tmp_path: Path, refused: Refused
) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_bytes(bytes(800))

    def linked(file: h5py.File) -> None:
        file["posterior/other"] = h5py.ExternalLink(str(tmp_path / "other.nc"), "/")

    def outside(file: h5py.File) -> None:
        file.create_dataset("posterior/elsewhere", (100,), "f8", external=[(str(secret), 0, 800)])

    def huge(file: h5py.File) -> None:
        file.create_dataset("posterior/elsewhere", (2**40,), "f8", chunks=(2**20,))

    def wide(file: h5py.File) -> None:
        file.create_dataset("posterior/elsewhere", (2**20, 1), "f8", chunks=(1, 2**20), maxshape=(None, None))

    def round_about(file: h5py.File) -> None:
        file["posterior/again"] = file["/"]

    def deep(file: h5py.File) -> None:
        file.create_group("/".join("abcdefghijklmnop"))

    for change, words in ((linked, "link"), (outside, "another file"), (huge, "promises"), (wide, "promises"), (round_about, "nested"), (deep, "nested")):  # fmt: skip
        path = stored(short_file, tmp_path / "posterior.nc")
        with h5py.File(path, "r+") as file:
            change(file)
        refused(lambda path=path: read_tree(path), "posterior.nc", words)


def test_no_pickle_is_read_from_a_store_of_maps(tmp_path: Path, refused: Refused) -> None:
    """zarr format 2 may name a pickle filter; format 3, the one that is written, is the only one read."""
    store = tmp_path / "maps.zarr"
    xr.Dataset({"f_mean": (("x", "y", "z"), np.ones((2, 2, 2)))}).to_zarr(
        store, zarr_format=2, consolidated=False
    )
    refused(lambda: read_maps(tmp_path), "maps.zarr", "ivimbayes map")
    shutil.rmtree(store)
    xr.Dataset({"f_mean": (("x", "y", "z"), np.ones((2, 2, 2)))}).to_zarr(
        store, zarr_format=3, consolidated=False
    )
    assert read_maps(tmp_path)["f_mean"].shape == (2, 2, 2)
    about = store / "f_mean" / "zarr.json"
    about.write_text(json.dumps(json.loads(about.read_text()) | {"shape": [2**20, 2**20, 2]}))
    refused(lambda: read_maps(tmp_path), "shape", "ivimbayes map")


def test_header_extensions_are_bounded(case: Case, refused: Refused) -> None:
    image = nib.Nifti1Image(case.signal(), np.eye(4))
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b" " * (20 << 20)))
    nib.save(image, case.dwi)
    refused(lambda: read_scan(case.dwi, case.bval, rois=case.rois), "dwi.nii.gz", "begin at byte")


def test_messages_are_one_printable_line() -> None:
    for kind in (InputError, InputWarning):
        said = str(kind("a\x1b]0;x\x07\nkidney: converged\u2028\ud800" + "9" * 10**6))
        assert said.isprintable() and len(said) < 1100
        assert said.startswith("a\\x1b]0;x\\x07\\nkidney")


def test_texts_that_do_not_print(
    tmp_path: Path, short_fit: xr.DataTree, short_file: Path, refused: Refused
) -> None:
    text = '[liver]\nnote = "a\\u001b[2K"\ncentre = {f = 0.2, D = 1e-3, D_star = 2e-2}\nwidth = {f = 1.0, D = 0.4, D_star = 1.0}\n'
    (tmp_path / "p.toml").write_text(text)
    refused(lambda: read_priors(tmp_path / "p.toml"), "printable")
    priors = json.loads(short_fit.attrs["priors"])
    path = stored(
        short_file, tmp_path / "posterior.nc", priors=json.dumps(priors | {"a\x1b[2K": priors["liver"]})
    )
    refused(lambda: read_fit(path), "posterior.nc")
    (tmp_path / "logs").mkdir()
    write_failure(tmp_path, Run({"sub": "01"}, tmp_path), "bad\nsub-02: done")
    assert (tmp_path / "logs" / "sub-01.txt").read_text().count("\n") == 1


def test_tables_are_not_cut(tmp_path: Path, refused: Refused) -> None:
    path = tmp_path / "t.tsv"
    for text in ("a\tb\n1\t2\t3\n", "a\tb\n1\t2\n1\t2\t3\t4\n", ""):
        path.write_text(text)
        refused(lambda: read_table(path, "correct it"), "t.tsv", "correct it")
    path.write_text("a\tb\n1\t2\n")
    assert read_table(path, "").to_dict("list") == {"a": [1], "b": [2]}


def test_names_of_labels_are_not_cut(tmp_path: Path, refused: Refused) -> None:
    path = tmp_path / "rois.tsv"
    path.write_text("index\tname\n1\tliver\textra\n")
    refused(lambda: read_label_names(path, np.array([1]), path), "line 2", "more fields")


def test_other_entries_of_a_published_value_are_let_be(tmp_path: Path) -> None:
    text = """[x]
names = ["a\u00a0b"]
note = '''two
lines'''
centre = {f = 0.2, D = 1e-3, D_star = 2e-2}
width = {f = 1.0, D = 0.4, D_star = 1.0}
published = [{source = "A et al.\u00a02010", f = 0.2, doi = "10.1/2", b = [0, 800], year = "2010"}]
"""
    (tmp_path / "p.toml").write_text(text)
    prior = read_priors(tmp_path / "p.toml")["x"]
    assert (prior.note, prior.names) == ("two lines", ("a b",))
    assert prior.published[0]["source"] == "A et al. 2010"


def test_texts_nested_deeply_are_refused(short_file: Path, tmp_path: Path, refused: Refused) -> None:
    path = stored(short_file, tmp_path / "posterior.nc", spec="[" * 50_000)
    (tmp_path / "summary.tsv").write_text("roi\tverdict\nliver\tconverged\n")
    refused(lambda: read_fit(path), "nested too deeply")
    refused(lambda: region_estimates([path]), "nested too deeply")


def test_a_user_file_in_the_way_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "phantom").write_text("mine")
    with OutFolder(tmp_path, True, CHECKPOINT) as folder:
        results(folder, "new")
        folder.finish(REPLACED)
    assert (tmp_path / "phantom" / "dwi.bval").read_text() == "new"


def test_a_folder_that_is_refused_is_left_as_it_was(tmp_path: Path, refused: Refused) -> None:
    (tmp_path / ".part-1-other.nc").touch()
    (tmp_path / "mine.txt").touch()
    refused(lambda: OutFolder(tmp_path, False).__enter__(), "not empty")
    assert sorted(p.name for p in tmp_path.iterdir()) == [".part-1-other.nc", "mine.txt"]


def test_workers_of_this_machine_talk_in_private(monkeypatch: Any) -> None:
    pytest.importorskip("distributed")
    pytest.importorskip("cryptography")
    with workers.open_workers(workers=2) as client:
        assert client.scheduler.address.startswith("tls://")
    monkeypatch.setattr(workers, "find_spec", lambda name: None if name == "cryptography" else name)
    with pytest.warns(InputWarning, match="cryptography"), workers.open_workers(workers=2) as client:
        assert client is None


def test_published_numbers_are_numbers(tmp_path: Path, refused: Refused) -> None:
    text = '[x]\ncentre = {f = 0.2, D = 1e-3, D_star = 2e-2}\nwidth = {f = 1.0, D = 0.4, D_star = 1.0}\npublished = [{source = "s", D_star = "2010"}]\n'
    (tmp_path / "p.toml").write_text(text)
    refused(lambda: read_priors(tmp_path / "p.toml"), "D_star", "is not a number")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_fit(number: int, case: Case) -> None:
    """With status 130, one line and no result; a fit of this length would take minutes."""
    words = ["fit", case.dwi, "--rois", case.rois, "--out", case.out, "--draws", 400_000, "--quiet"]
    command = [sys.executable, "-m", "ivimbayes", *map(str, words)]
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs ignore it
    try:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    finally:
        signal.signal(signal.SIGINT, before)
    try:
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=30)
        process.send_signal(number)
        out, err = process.communicate(timeout=120)
    finally:
        process.kill()
        process.communicate()
    assert (process.returncode, out) == (130, ""), err
    assert err.count("\n") == 1 and "interrupted; the same command continues" in err
    assert not case.out.exists() or {p.name for p in case.out.iterdir()} == {CHECKPOINT}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kills"), [("fit", 2), ("map", 10), ("bids", 2)])
def test_killed_runs_end_as_undisturbed_ones(
    name: str, kills: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Thirty are run by hand; the numbers are in docs/reliability.md."""
    words = [sys.executable, str(KILLS), "--kills", str(kills), "--command", name, "--seed", "1"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    with capsys.disabled():
        print(f"\n{done.stdout}", end="")
    assert done.returncode == 0 and f"{kills} ended as an undisturbed run" in done.stdout, (
        done.stdout + done.stderr
    )
