"""Scans with a fault, and the words with which each is refused."""

import gzip
from collections.abc import Callable

import nibabel as nib
import numpy as np
from conftest import B, Case


def damage_b(text: str) -> Callable[[Case], None]:
    return lambda case: case.write_b(text)


def float_labels(case: Case) -> None:
    case.save(case.rois, case.labels().astype(np.float32))


def scaled_labels(case: Case) -> None:
    image = nib.Nifti1Image(case.labels(), np.eye(4))
    image.header.set_slope_inter(0.5, 0)
    nib.save(image, case.rois)


def truncate(case: Case) -> None:
    data = case.dwi.read_bytes()
    case.dwi.write_bytes(data[: len(data) // 2])


def not_nifti(case: Case) -> None:
    case.dwi.write_bytes(gzip.compress(b"this is not an image" * 100))


def text(case: Case) -> None:
    case.dwi.write_text("hello")


def complex_signal(case: Case) -> None:
    case.save(case.dwi, case.signal().astype(np.complex64))


def huge_header(case: Case) -> None:
    raw = bytearray(gzip.decompress(case.dwi.read_bytes()))
    raw[40:50] = np.array([4, 32767, 32767, 32767, 16], "<i2").tobytes()
    case.dwi.write_bytes(gzip.compress(bytes(raw)))


FAULTS: dict[str, tuple[Callable[[Case], object], tuple[str, ...]]] = {
    "missing image": (lambda c: c.dwi.unlink(), ("dwi.nii.gz", "no such file")),
    "a folder": (lambda c: (c.dwi.unlink(), c.dwi.mkdir()), ("dwi.nii.gz", "not a readable NIfTI")),
    "not NIfTI": (not_nifti, ("dwi.nii.gz", "not a readable NIfTI")),
    "text": (text, ("dwi.nii.gz", "not a readable NIfTI")),
    "complex": (complex_signal, ("dwi.nii.gz", "complex64")),
    "3-D image": (lambda c: c.save(c.dwi, c.signal()[..., 0]), ("dwi.nii.gz", "3-D image of shape 6 x 5 x 2", "4-D")),
    "bval missing": (lambda c: c.bval.unlink(), ("dwi.bval", "no such file", "--bval")),
    "bval empty": (damage_b(" \n"), ("dwi.bval", "empty", "16 b values")),
    "bval words": (damage_b("b0 " * 16), ("dwi.bval", "'b0' is not a number")),
    "bval NaN": (damage_b("nan " + "100 " * 15), ("dwi.bval", "b value 1 is nan")),
    "bval negative": (damage_b("-5 " + "100 " * 15), ("dwi.bval", "negative b value -5")),
    "bval length": (damage_b("0 100 200"), ("dwi.bval", "3 b values", "16 volumes")),
    "bval in s/m2": (damage_b(" ".join(f"{b}e6" for b in B)), ("dwi.bval", "look like s/m2", "divide them by 1e6")),
    "bval in ms/um2": (damage_b(" ".join(f"{b / 1000}" for b in B)), ("dwi.bval", "ms/um2", "multiply them by 1000")),
    "bval not text": (lambda c: c.bval.write_bytes(b"\xff\xfe\x00"), ("dwi.bval", "cannot be read")),
    "labels shape": (lambda c: c.save(c.rois, c.labels()[:5]), ("labels.nii.gz", "5 x 5 x 2", "6 x 5 x 2")),
    "labels affine": (lambda c: c.save(c.rois, c.labels(), 2 * np.eye(4)), ("labels.nii.gz", "affine differs")),
    "labels missing": (lambda c: c.rois.unlink(), ("labels.nii.gz", "no such file")),
    "float labels": (float_labels, ("labels.nii.gz", "stored as float32", "integers")),
    "scaled labels": (scaled_labels, ("labels.nii.gz", "scale factor")),
    "negative label": (lambda c: c.save(c.rois, c.labels().astype(np.int16) - 1), ("labels.nii.gz", "negative label -1")),
    "no label": (lambda c: c.save(c.rois, 0 * c.labels()), ("labels.nii.gz", "no region in it")),
    "absent label": (
        lambda c: (c.folder / "labels.json").write_text('{"1": "liver", "2": "spleen", "7": "gall bladder"}'),
        ("labels.nii.gz", "no voxel of region 'gall bladder' (label 7)"),
    ),
    "twice the same name": (
        lambda c: (c.folder / "labels.json").write_text('{"1": "liver", "2": "liver"}'),
        ("labels.json", "two labels are named 'liver'"),
    ),
    "unprintable name": (
        lambda c: (c.folder / "labels.json").write_text('{"1": "li\\nver", "2": "a"}'), ("labels.json", "printable")
    ),
    "huge header": (huge_header, ("dwi.nii.gz", "promises 32767 x 32767 x 32767 x 16 values")),
    "names not JSON": (lambda c: (c.folder / "labels.json").write_text("{"), ("labels.json", "not JSON")),
}  # fmt: skip
