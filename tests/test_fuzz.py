"""Mutated files end in a result or in one of the package's errors; what the fuzzer found stays found."""

import gzip
import json
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from conftest import Case
from hypothesis import given, settings
from hypothesis import strategies as st

from ivimbayes import posterior_maps, read_maps, read_scan, write_maps
from ivimbayes.errors import InputError
from ivimbayes.io.labels import read_label_names
from ivimbayes.io.scans import read_bval

FUZZ = Path(__file__).parent / "fuzz" / "fuzz.py"
Refused = Callable[..., str]


def patched(case: Case, at: int, form: str, *values: float) -> Path:
    """The image, uncompressed, with numbers of its header exchanged."""
    raw = bytearray(gzip.decompress(case.dwi.read_bytes()))
    struct.pack_into("<" + form, raw, at, *values)
    path = case.folder / "dwi.nii"
    path.write_bytes(bytes(raw))
    return path


@pytest.mark.parametrize(
    ("at", "form", "values"),
    [
        (108, "f", (np.inf,)),  # vox_offset: "cannot convert float infinity to integer"
        (108, "f", (np.nan,)),
        (108, "f", (1e38,)),  # "Python int too large to convert to C long"
        (108, "f", (-1e9,)),
        (40, "8h", (4, 32767, 32767, 32767, 32767, 1, 1, 1)),  # 10^18 voxels
        (40, "8h", (4, -6, 5, 2, 16, 1, 1, 1)),
        (40, "8h", (7, 6, 5, 2, 16, 32767, 32767, 32767)),
        (70, "h", (1792,)),  # complex
        (70, "h", (-4,)),
        (344, "4s", (b"xxxx",)),
    ],
)
def test_hostile_headers(at: int, form: str, values: tuple[float, ...], case: Case, refused: Refused) -> None:
    path = patched(case, at, form, *values)
    refused(lambda: read_scan(path, case.bval, rois=case.rois).load(), "dwi.nii")


@pytest.mark.parametrize("slope", [0.0, np.nan, np.inf])
def test_scale_factors_that_are_none_count_as_1(slope: float, case: Case) -> None:
    """As the NIfTI standard has it for 0; infinite ones make no finite signal, and are left out later."""
    scan = read_scan(patched(case, 112, "f", slope), case.bval, rois=case.rois)
    assert np.isfinite(scan["signal"].values).all()


def test_maps_whose_sidecars_are_none(
    case: Case,
    short_fit: xr.DataTree,
    phantom_scan: tuple[xr.Dataset, xr.Dataset],
    tmp_path: Path,
    refused: Refused,
) -> None:
    scan = phantom_scan[0].isel(z=[0])
    write_maps(posterior_maps(scan, short_fit, progress=False), tmp_path)
    sidecar = tmp_path / "f_mean.json"
    good = sidecar.read_text()
    for text in (
        "[1, 2]",
        "{",
        json.dumps({"Interval": [0.95]}),
        json.dumps({"Interval": {"Probability": "x"}}),
    ):
        sidecar.write_text(text)
        refused(lambda: read_maps(tmp_path), "f_mean.json", "ivimbayes map")
    sidecar.write_text(good)
    image = tmp_path / "f_mean.nii.gz"
    raw = bytearray(image.read_bytes())
    raw[60:90] = bytes(30)  # "invalid distance too far back"
    image.write_bytes(bytes(raw))
    refused(lambda: read_maps(tmp_path), "f_mean.nii.gz", "ivimbayes map")
    for path in tmp_path.iterdir():
        path.unlink()
    (tmp_path / "maps.nc").write_bytes(b"\x89HDF\r\n\x1a\nno")
    refused(lambda: read_maps(tmp_path), "maps.nc", "ivimbayes map")


@given(text=st.text(st.sampled_from("0123456789 .,eE+-naif\t\n\x00"), max_size=60))
@settings(max_examples=300, derandomize=True, deadline=None)
def test_b_values_are_numbers_or_refused(text: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.bval"
        path.write_text(text)
        try:
            b = read_bval(path)
        except InputError as error:
            assert str(error).isprintable()
        else:
            assert b.size and np.isfinite(b).all() and (b >= 0).all() and b.max() < 1e5


@given(
    names=st.dictionaries(
        st.integers(1, 10**9), st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1), min_size=1
    )
)
@settings(max_examples=200, derandomize=True, deadline=None)
def test_names_of_labels_come_back(names: dict[int, str]) -> None:
    """From JSON; two labels of one name are refused."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "names.json"
        path.write_text(json.dumps(names))
        labels = np.array(sorted(names))
        if len(set(names.values())) < len(names):
            with pytest.raises(InputError, match="two labels"):
                read_label_names(path, labels, path)
        else:
            assert read_label_names(path, labels, path)[0] == names


@pytest.mark.slow
def test_mutated_files() -> None:
    """1 500 cases; more are run by hand, with the count in the docs."""
    done = subprocess.run(
        [sys.executable, str(FUZZ), "--cases", "1500", "--first", "1000000"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0 and "1500 cases, 0 faults" in done.stdout, done.stdout + done.stderr
