import hashlib
import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import B, Case
from faulty_scans import FAULTS, truncate

from ivimbayes import phantom, read_scan
from ivimbayes.io.scans import roi_names, write_scan


def test_a_scan_is_read(case: Case) -> None:
    scan = read_scan(case.dwi, rois=case.rois)
    assert scan["signal"].dims == ("x", "y", "z", "measurement")
    np.testing.assert_allclose(scan["signal"].values, case.signal())
    np.testing.assert_allclose(scan["b"].values, B)
    assert scan["b"].attrs["units"] == "s/mm2"
    assert roi_names(scan) == {1: "liver", 2: "spleen"}
    np.testing.assert_array_equal(scan["roi"].values, case.labels())
    inputs = json.loads(scan.attrs["inputs"])
    files = {role: entry["file"] for role, entry in inputs.items()}
    assert files == {"dwi": "dwi.nii.gz", "bval": "dwi.bval", "rois": "labels.nii.gz", "names": "labels.json"}
    assert inputs["dwi"]["sha256"] == hashlib.sha256(case.dwi.read_bytes()).hexdigest()


def test_b_selection_and_averages(case: Case) -> None:
    scan = read_scan(case.dwi, rois=case.rois, b_min=10, b_max=500, averages=range(1, 17))
    assert scan["b"].values.tolist() == [b for b in B if 10 <= b <= 500]
    assert scan["averages"].values.tolist() == [i + 1 for i, b in enumerate(B) if 10 <= b <= 500]
    np.testing.assert_allclose(scan["signal"].isel(measurement=0).values, case.signal()[..., 2])


def test_signal_is_read_when_used(case: Case) -> None:
    big = np.zeros((64, 64, 40, 16), np.float32) + 1
    case.save(case.dwi, big)
    case.save(case.rois, np.ones((64, 64, 40), np.uint8))
    (case.folder / "labels.json").unlink()
    tracemalloc.start()
    scan = read_scan(case.dwi, rois=case.rois)
    scan["signal"].isel(measurement=3).values.sum()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < big.nbytes / 2


def test_mask_alone_is_one_region(case: Case) -> None:
    mask = np.zeros((6, 5, 2), np.uint8)
    mask[2:4] = 1
    case.save(case.folder / "mask.nii.gz", mask)
    scan = read_scan(case.dwi, mask=case.folder / "mask.nii.gz")
    assert roi_names(scan) == {1: "mask"}
    assert int((scan["roi"] == 1).sum()) == 20
    both = read_scan(case.dwi, mask=case.folder / "mask.nii.gz", rois=case.rois, regions=["liver"])
    assert int((both["roi"] != 0).sum()) == 10


def test_written_scan_reads_back(tmp_path: Path) -> None:
    scan, _ = phantom()
    dwi, labels = write_scan(scan, tmp_path)
    back = read_scan(dwi, rois=labels)
    np.testing.assert_allclose(back["signal"].values, scan["signal"].values, rtol=1e-6)
    np.testing.assert_allclose(back["affine"], scan["affine"])
    assert roi_names(back) == roi_names(scan)


@pytest.mark.parametrize("form", ["json", "reversed", "tsv", "mapping", "none"])
def test_names_of_labels(case: Case, form: str) -> None:
    names: object = None
    (case.folder / "labels.json").unlink()
    if form == "json":
        (case.folder / "labels.json").write_text('{"1": "a b", "2": "c"}')
    elif form == "reversed":
        (case.folder / "labels.json").write_text('{"a b": 1, "c": 2}')
    elif form == "tsv":
        (case.folder / "labels.json").write_text('{"Modality": "MR", "MagneticFieldStrength": 3}')
        (case.folder / "labels.tsv").write_text(
            "index\tname\tcolor\n0\tbackground\t#0\n1\ta b\t#1\n2\tc\t#2\n"
        )
    elif form == "mapping":
        names = {1: "a b", 2: "c"}
    expected = {1: "roi-1", 2: "roi-2"} if form == "none" else {1: "a b", 2: "c"}
    assert roi_names(read_scan(case.dwi, rois=case.rois, names=names)) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_refused(fault: str, case: Case, refused: Callable[..., str]) -> None:
    damage, words = FAULTS[fault]
    damage(case)
    refused(lambda: read_scan(case.dwi, rois=case.rois), *words)


def flip_bit(case: Case) -> None:
    data = bytearray(case.dwi.read_bytes())
    data[len(data) // 2] ^= 1
    case.dwi.write_bytes(data)


@pytest.mark.parametrize("damage", [truncate, flip_bit])
def test_damaged_image_is_refused(
    damage: Callable[[Case], None], case: Case, refused: Callable[..., str]
) -> None:
    damage(case)
    refused(lambda: read_scan(case.dwi, rois=case.rois), "dwi.nii.gz", "end early or are damaged")


def test_image_damaged_after_it_was_opened_is_refused(case: Case, refused: Callable[..., str]) -> None:
    scan = read_scan(case.dwi, rois=case.rois)
    truncate(case)
    refused(lambda: scan["signal"].values, "dwi.nii.gz", "end early or are damaged")


def test_sidecar_that_names_nothing_is_passed_over(case: Case) -> None:
    (case.folder / "labels.json").write_text('{"Modality": "MR", "MagneticFieldStrength": 2, "Manual": true}')
    assert roi_names(read_scan(case.dwi, rois=case.rois)) == {1: "roi-1", 2: "roi-2"}


def test_nan_in_a_mask_is_outside(case: Case) -> None:
    mask = np.full((6, 5, 2), np.nan, np.float32)
    mask[1] = 1
    case.save(case.folder / "mask.nii.gz", mask)
    assert int((read_scan(case.dwi, mask=case.folder / "mask.nii.gz")["roi"] != 0).sum()) == 10


def test_arguments_are_checked(case: Case, refused: Callable[..., str]) -> None:
    read = lambda **options: lambda: read_scan(case.dwi, rois=case.rois, **options)  # noqa: E731
    refused(read(averages=[1, 2]), "averages", "2 values for 16 volumes")
    refused(read(averages=[0] * 16), "averages", "above 0")
    refused(read(b_min=2000), "dwi.bval", "no b value is left of 0 to", "--b-max")
    refused(read(regions=["kidney"]), "labels.nii.gz", "no region 'kidney'", "liver, spleen")
    refused(read(names=case.folder / "none.json"), "none.json", "no such file")
    mask = np.ones((6, 5, 2), np.uint8)
    mask[:3] = 0
    case.save(case.folder / "mask.nii.gz", mask)
    refused(read(mask=case.folder / "mask.nii.gz"), "'liver' is empty inside the mask")
    for table, words in (("a\tb\n1\t2\n", "no columns index"), ("index\tname\nx\ty\n", "line 2")):
        (case.folder / "names.tsv").write_text(table)
        refused(read(names=case.folder / "names.tsv"), "names.tsv", words)
