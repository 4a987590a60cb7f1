"""Images out."""

import gzip
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from ivimbayes.io.nifti import save


def test_an_image_is_written_with_the_same_bytes_at_any_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = np.random.default_rng(0).normal(size=(4, 3, 2)).astype(np.float32)
    image = nib.Nifti1Image(values, np.diag([2.0, 2.0, 5.0, 1.0]))
    save(image, tmp_path / "a.nii.gz")
    monkeypatch.setattr(time, "time", lambda: 2e9)
    save(image, tmp_path / "b.nii.gz")
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()
    assert gzip.decompress((tmp_path / "a.nii.gz").read_bytes()) == image.to_bytes()
    found = nib.load(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(np.asarray(found.dataobj), values)
    np.testing.assert_array_equal(found.affine, image.affine)
