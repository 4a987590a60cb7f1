import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from conftest import Case, Command
from faulty_scans import FAULTS, truncate

import ivimbayes.fitting.convergence
import ivimbayes.fitting.fit
from ivimbayes import diagnose, read_tree, summarize
from ivimbayes.cli.out_folder import CHECKPOINT
from ivimbayes.io.netcdf import open_tree

QUICK = ("--draws", "50", "--tune", "50", "--chains", "2", "--voxels-per-roi", "20", "--no-retry", "--quiet")


@pytest.fixture
def no_sampling(monkeypatch: pytest.MonkeyPatch, short_file: Path) -> None:
    """Let `fit` check and prepare everything, then give a ready result, with a page without figures."""

    def finish_file(results: Any, scan: Any, plan: Any, path: Path) -> xr.DataTree:
        path.parent.mkdir(parents=True)
        shutil.copy(short_file, path)
        return open_tree(path)

    monkeypatch.setattr(ivimbayes.fitting.fit, "_sample_all", lambda *_: {})
    monkeypatch.setattr(ivimbayes.fitting.fit, "finish_file", finish_file)
    monkeypatch.setattr("ivimbayes.reporting.page.render_report", lambda *_, **__: "<html></html>")


def refused_line(result: tuple[int, str, str], case: Case, *words: str) -> None:
    status, out, err = result
    assert status == 2
    assert out == ""
    assert err.count("\n") == 1 and err.startswith("ivimbayes: error: ")
    for word in words:
        assert word in err, err
    assert not case.out.exists()


def fit(case: Case, *more: object) -> tuple[object, ...]:
    return ("fit", case.dwi, "--rois", case.rois, "--out", case.out, *QUICK, *more)


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_one_line_and_status_2(fault: str, case: Case, command: Command) -> None:
    damage, words = FAULTS[fault]
    damage(case)
    refused_line(command(*fit(case)), case, *words)


def test_faults_found_late_leave_nothing(case: Case, command: Command) -> None:
    signal = case.signal()
    truncate(case)
    refused_line(command(*fit(case)), case, "dwi.nii.gz", "end early or are damaged")
    signal[4:] = 0
    case.save(case.dwi, signal)
    refused_line(command(*fit(case)), case, "dwi.nii.gz", "region 'spleen' has no voxel")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--tissue", "liver=livr"), ("unknown tissue 'livr'", "nearest: liver")),
        (("--tissue", "gut=liver"), ("no region 'gut'", "liver, spleen")),
        (("--tissue", "=liver"), ("--tissue =liver", "REGION=TISSUE")),
        (("--level", "roi"), ("level 'roi'",)), (("--population", "x"), ("population 'x'",)),
        (("--downsample", "1.5"), ("--downsample 1.5",)), (("--averages", "a"), ("--averages a",)),
        (("--averages", "1,2"), ("2 values for 16 volumes",)), (("--names", "liver=1"), ("'liver=1' is not LABEL=NAME",)),
        (("--names", "1=a,2=a"), ("two labels are named 'a'",)), (("--region", "gut"), ("no region 'gut'",)),
        (("--draws", "1"), ("draws 1",)), (("--b-min", "60"), ("no low b value", "--b-min")),
        (("--b-max", "15"), ("distinct b values", "--b-max")), (("--priors", "none.toml"), ("none.toml", "no such file")),
        (("--mask", "none.nii"), ("none.nii", "no such file")), (("--bval", "none.bval"), ("none.bval", "no such file")),
        (("--seed", "-1"), ("seed -1",)),
    ],
)  # fmt: skip
def test_bad_options_are_one_line(
    options: tuple[str, ...], words: tuple[str, ...], case: Case, command: Command
) -> None:
    refused_line(command(*fit(case, *options)), case, *words)


def test_regions_are_needed(case: Case, command: Command) -> None:
    refused_line(command("fit", case.dwi, "--out", case.out), case, "no regions given", "--rois", "--mask")


def test_folder_is_not_overwritten_unasked(case: Case, command: Command, no_sampling: None) -> None:
    case.out.mkdir()
    (case.out / "thesis.txt").write_text("precious")
    status, _, err = command(*fit(case))
    assert (status, err.count("\n")) == (2, 1)
    assert "not empty (holds thesis.txt)" in err and "--overwrite" in err
    assert [p.name for p in case.out.iterdir()] == ["thesis.txt"]
    status, out, _ = command(*fit(case, "--overwrite", "--no-maps"))
    assert {p.name for p in case.out.iterdir()} == {
        "thesis.txt",
        "posterior.nc",
        "summary.tsv",
        "report.html",
    }
    assert (case.out / "thesis.txt").read_text() == "precious"


def test_folder_that_cannot_be_made(case: Case, command: Command) -> None:
    (case.folder / "file").write_text("")
    status, _, err = command(*fit(case)[:4], "--out", case.folder / "file" / "out")
    assert (status, err.count("\n")) == (2, 1)
    assert "cannot be written" in err


def test_results_and_status(case: Case, command: Command, no_sampling: None, short_fit: xr.DataTree) -> None:
    status, out, err = command(*fit(case, "--no-maps"))
    verdicts = [d.verdict for d in diagnose(short_fit).values()]
    assert status == (3 if "failed" in verdicts else 0)
    assert err == ""
    table = pd.read_csv(case.out / "summary.tsv", sep="\t")
    expected = summarize(short_fit)
    assert list(table.columns) == list(expected.columns)
    np.testing.assert_allclose(table["mean"], expected["mean"], rtol=1e-5)
    assert read_tree(case.out / "posterior.nc")["posterior"].equals(short_fit["posterior"])
    for word in ("liver", "kidney", "pancreas", "95 % HDI", *verdicts, f"written to {case.out}"):
        assert word in out
    status, again, _ = command("summary", case.out)
    assert status == 0
    assert again.strip() == out.replace(f"written to {case.out}", "").strip()


def test_failed_region_is_status_3(
    case: Case, command: Command, no_sampling: None, monkeypatch: pytest.MonkeyPatch
) -> None:

    monkeypatch.setattr(ivimbayes.fitting.convergence, "R_HAT", 0.5)
    monkeypatch.setattr(ivimbayes.fitting.convergence, "R_HAT_FAILED", 0.6)
    monkeypatch.setattr("ivimbayes.results.diagnosis.R_HAT_FAILED", 0.6)
    status, out, _ = command(*fit(case, "--no-maps"))
    assert status == 3
    assert "failed: the chains disagree" in out
    assert (case.out / "summary.tsv").exists()


def test_warnings_are_one_line(case: Case, command: Command, no_sampling: None) -> None:
    case.write_b("0 0 10 20 30 40 50 60 70 80 90 100 110 120 130 140")
    _, _, err = command(*fit(case, "--no-maps"))
    assert err.count("\n") == 1
    assert err.startswith("ivimbayes: warning: ") and "no high b value" in err and "dwi.bval" in err


def test_a_real_short_fit(case: Case, command: Command) -> None:
    signal = case.signal()
    signal[0, 0, 0, 3] = np.nan
    labels = case.labels()
    labels[4:] = 0
    labels[4, :3, 0] = 2  # three voxels: too few to pool
    case.save(case.dwi, signal)
    case.save(case.rois, labels)
    status, out, err = command(*fit(case))
    assert status in (0, 3)
    assert "1 voxels were left out" in out
    assert "fewer than 5 usable voxels: the mean curve of 3 voxels was fitted" in out
    assert "prior of liver" in out
    assert "20 of 29 voxels were fitted" in out
    assert not (case.out / CHECKPOINT).exists()


def test_interrupt_keeps_the_folder(case: Case, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any, checkpoint: Path, **__: Any) -> None:
        checkpoint.mkdir()
        (checkpoint / "region-1.nc").touch()
        raise KeyboardInterrupt

    monkeypatch.setattr(ivimbayes.fitting.fit, "fit", interrupt)
    status, _, err = command(*fit(case))
    assert status == 130
    assert "continues" in err
    assert [p.name for p in case.out.iterdir()] == [CHECKPOINT]


def test_tissues_are_listed(command: Command, tmp_path: Path) -> None:
    status, out, _ = command("tissues")
    assert status == 0
    for word in ("kidney_cortex", "Ljimani 2020", "D* 41.0 (95 %", "bone_marrow"):
        assert word in out
    status, _, err = command("tissues", "--priors", tmp_path / "none.toml")
    assert (status, "no such file" in err) == (2, True)


def test_summary_of_nothing(command: Command, tmp_path: Path) -> None:
    status, _, err = command("summary", tmp_path)
    assert status == 2
    assert "posterior.nc: no such file" in err


def test_help_loads_nothing_slow() -> None:
    import subprocess

    code = "import sys, ivimbayes.cli.main; sys.exit(bool({'numpy', 'pymc', 'xarray', 'nutpie'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    shown = subprocess.run(
        [sys.executable, "-m", "ivimbayes", "fit", "--help"], capture_output=True, text=True, check=True
    )
    for option in (
        "--rois",
        "--bval",
        "--tissue",
        "--b-max",
        "--voxels-per-roi",
        "--downsample",
        "--level",
        "--seed",
    ):
        assert option in shown.stdout
