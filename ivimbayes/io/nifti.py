"""NIfTI images in and out; a header is checked against its file before anything is read."""

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError

from ivimbayes.errors import InputError
from ivimbayes.io.atomic import replacing
from ivimbayes.io.text import by, one_line

FARTHEST = 1 << 24  # bytes of header and extensions
GZIP_RATIO = 1100  # deflate cannot compress more than 1032 times
GZIP_LEVEL = 1  # of images; on noisy values level 6 takes nearly twice as long and saves less than 1 %
READ_ERRORS = (
    OSError,
    EOFError,
    ValueError,
    OverflowError,
    zlib.error,
    ImageFileError,
    HeaderDataError,
    gzip.BadGzipFile,
)


def read_values(proxy: Any, key: tuple[Any, ...], path: Path) -> np.ndarray:
    """Read values of an image; a file that ends early or is damaged is an `InputError`."""
    try:
        with np.errstate(all="ignore"):
            return np.asarray(proxy[key])
    except READ_ERRORS as error:
        raise InputError(
            f"{path}: the image data end early or are damaged ({one_line(error)}); copy or convert it again"
        ) from None


def open_image(path: str | Path, ndim: int, what: str) -> Any:
    """Open a NIfTI image whose header promises no more than the file can hold; its values are not read.

    Raises
    ------
    InputError
        If it is missing, damaged, of another kind or shape, or too large for its file.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; give {what} as NIfTI (.nii or .nii.gz)") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); give {what} as NIfTI") from None
    try:
        _check_offset(path)
        with np.errstate(all="ignore"):
            image = nib.load(path, keep_file_open=True)
    except (*READ_ERRORS, TypeError) as error:
        raise InputError(
            f"{path}: not a readable NIfTI file ({one_line(error)}); convert it to .nii.gz"
        ) from None
    if not isinstance(image, nib.Nifti1Image | nib.Nifti1Pair):
        raise InputError(f"{path}: {type(image).__name__}, not NIfTI; convert it to .nii.gz")
    shape = image.shape
    while ndim == 3 and len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) != ndim:
        hint = " (one volume a b value)" if ndim == 4 else ""
        raise InputError(f"{path}: {len(shape)}-D image of shape {by(shape)}; give {what}{hint}")
    if min(shape) < 1:
        raise InputError(f"{path}: empty image of shape {by(shape)}; give {what}")
    held = path if path.suffix != ".hdr" else Path(image.file_map["image"].filename)
    size = held.stat().st_size if held.is_file() else 0
    needed = math.prod(image.shape) * image.get_data_dtype().itemsize
    if needed > size * (GZIP_RATIO if held.suffix == ".gz" else 1):
        raise InputError(
            f"{path}: the header promises {by(shape)} values, the file holds {size} bytes; copy it again"
        )
    if image.get_data_dtype().kind not in "iuf":
        raise InputError(
            f"{path}: values of type {image.get_data_dtype()}; give {what} of integers or real numbers"
        )
    return image


def _check_offset(path: Path) -> None:
    """Refuse an image whose values begin far behind its header: what lies between would be read whole."""
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        header = file.read(176)
    for order in "<>":
        for size, at, kind in ((348, 108, "f"), (540, 168, "q")):
            if len(header) == 176 and struct.unpack_from(order + "i", header)[0] == size:
                offset = struct.unpack_from(order + kind, header, at)[0]
                if not 0 <= offset <= FARTHEST:
                    raise ImageFileError(f"its values begin at byte {offset:g}")


def save(image: nib.Nifti1Image, path: Path) -> None:
    """Write an image as ``.nii.gz``; the same image always gives the same bytes.

    Parameters
    ----------
    image : Nifti1Image
    path : path
        The file, which appears when it is complete.

    Raises
    ------
    OSError
        If it cannot be written.
    """
    with replacing(path) as unfinished:
        unfinished.write_bytes(gzip.compress(image.to_bytes(), GZIP_LEVEL, mtime=0))
