"""Real scans, from the command line, against the ROI means of a plain fit; and the demo. Each takes a minute."""

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from conftest import data_folder

from ivimbayes import diagnose, read_scan, read_tree
from ivimbayes import fit as fit_scan

ROI_MEANS = {  # D (1e-3 mm2/s) and f of a segmented fit to the region's mean curve
    "pancreas": (2.09, 0.268), "liver": (1.22, 0.290), "kidney": (1.97, 0.279), "spleen": (0.70, 0.113)
}  # fmt: skip


def command(*words: object) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "ivimbayes", *map(str, words)], capture_output=True, text=True, check=False
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout


@pytest.mark.slow
def test_demo_recovers_the_phantom(tmp_path: Path) -> None:
    status, out = command("demo", "--out", tmp_path / "demo")
    assert status == 0, out
    truth = pd.read_csv(tmp_path / "demo" / "truth.tsv", sep="\t")
    assert truth["inside"].sum() >= 8
    assert set(pd.read_csv(tmp_path / "demo" / "summary.tsv", sep="\t")["verdict"]) == {"converged"}
    assert (tmp_path / "demo" / "posterior.nc").stat().st_size < 50e6


@pytest.mark.slow
def test_abdomen(tmp_path: Path) -> None:
    folder = data_folder() / "abdomen_v1"
    status, out = command(
        "fit", folder / "dwi_T100_bip.nii.gz", "--rois", folder / "labels.nii.gz", "--out", tmp_path / "out"
    )
    table = pd.read_csv(tmp_path / "out" / "summary.tsv", sep="\t").set_index(["roi", "parameter"])
    verdicts = {roi: d.verdict for roi, d in diagnose(read_tree(tmp_path / "out" / "posterior.nc")).items()}
    assert status == (3 if "failed" in verdicts.values() else 0)
    assert verdicts["kidney"] == "converged"
    for roi, (D, f) in ROI_MEANS.items():
        if verdicts[roi] == "converged":
            assert table.loc[(roi, "D"), "mean"] == pytest.approx(D, rel=0.2)
            assert table.loc[(roi, "f"), "mean"] == pytest.approx(f, abs=0.08)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_kidney_has_two_modes_under_the_generic_prior(seed: int) -> None:
    folder = data_folder() / "abdomen_v1"
    scan = read_scan(folder / "dwi_T100_bip.nii.gz", rois=folder / "labels.nii.gz", regions=["kidney"])
    diagnosis = diagnose(fit_scan(scan, tissue={"kidney": "generic"}, seed=seed, progress=False))["kidney"]
    assert diagnosis.verdict in ("doubtful", "failed")
    low, high = sorted(diagnosis.modes, key=lambda mode: mode.values["f"])
    assert low.values["f"] == pytest.approx(0.2, abs=0.05)
    assert high.values["f"] > 0.4
    assert low.values["D"] > high.values["D"]


@pytest.mark.slow
def test_prostate(tmp_path: Path) -> None:
    folder = data_folder() / "prostate_1p5T"
    status, out = command(
        "fit",
        folder / "dwi.nii.gz",
        "--rois",
        folder / "labels.nii.gz",
        "--b-max",
        1000,
        "--out",
        tmp_path / "out",
    )
    assert status == 0, out
    tree = read_tree(tmp_path / "out" / "posterior.nc")
    assert {d.verdict for d in diagnose(tree).values()} == {"converged"}
    D = tree["posterior"]["D_roi"]
    for other in ("peripheral zone", "BPH"):
        assert float((D.sel(roi="tumour") < D.sel(roi=other)).mean()) > 0.99
