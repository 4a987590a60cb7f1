"""Diffusion-weighted scans: NIfTI image, b values and labels in, one xarray Dataset out."""

import gzip
import hashlib
import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import xarray as xr
from xarray.backends import BackendArray
from xarray.core import indexing

from ivimbayes.errors import InputError
from ivimbayes.io.atomic import replacing
from ivimbayes.io.labels import read_label_names
from ivimbayes.io.nifti import open_image, read_values, save
from ivimbayes.io.text import by, one_line


class _LazyVolumes(BackendArray):
    """A 4-D image that reads what is asked for, and turns read failures into an InputError."""

    def __init__(self, image: Any, path: Path):
        self.proxy, self.path = image.dataobj, path
        self.shape, self.dtype = tuple(image.shape), np.dtype("float32")

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        return indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.BASIC, self._read)

    def _read(self, key: tuple[Any, ...]) -> np.ndarray:
        return read_values(self.proxy, key, self.path).astype(self.dtype)


def read_scan(
    dwi: str | Path,
    bval: str | Path | None = None,
    mask: str | Path | None = None,
    rois: str | Path | None = None,
    *,
    names: Mapping[int, str] | str | Path | None = None,
    regions: Sequence[str] | None = None,
    averages: Sequence[float] | None = None,
    b_min: float | None = None,
    b_max: float | None = None,
    real_valued: bool = False,
) -> xr.Dataset:
    """Read a diffusion-weighted scan.

    Parameters
    ----------
    dwi : path
        4-D NIfTI image, one volume a measurement.
    bval : path, optional
        FSL b-value file in s/mm²; when not given, the file of the image's name ending in ``.bval`` or
        ``.bvals``.
    mask : path, optional
        3-D NIfTI image; voxels that are 0 are left out.
    rois : path, optional
        3-D NIfTI image of integer labels, 0 for background. Without it the mask is one region, and without
        a mask the whole image is.
    names : mapping or path, optional
        Names of the labels: ``{1: "liver"}``, a ``.json`` file of the same, or a BIDS ``dseg.tsv``
        (columns ``index``, ``name``). When not given, the file of the label image's name ending in
        ``.json`` or ``.tsv`` where there is one.
    regions : sequence of str, optional
        Names of the regions to keep; all when not given.
    averages : sequence of float, optional
        Number of images averaged into each measurement (NSA), in the order of the volumes.
    b_min, b_max : float, optional
        Keep measurements with b_min <= b <= b_max (s/mm²).
    real_valued : bool
        The images are real parts (phase-corrected), not magnitudes: zero and negative signals are noise,
        not a fault.

    Returns
    -------
    Dataset
        ``signal`` (x, y, z, measurement), read when used; ``roi`` (x, y, z), integer labels; ``affine``
        (row, column); coordinates ``b`` (measurement) in s/mm² and ``averages`` (measurement). Attributes
        ``roi_names`` (JSON, name by label), ``inputs`` (JSON, file name and SHA-256 by role), ``source``,
        ``protocol`` (the file of b values), ``b_selected`` and ``real_valued``.

    Raises
    ------
    InputError
        If a file is missing or unreadable, or shapes, affines or counts disagree. The message names the file,
        what was found and the way out.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> from ivimbayes import phantom
    >>> with TemporaryDirectory() as folder:
    ...     dwi, labels = write_scan(phantom()[0], folder)
    ...     scan = read_scan(dwi, rois=labels, b_max=500).load()
    >>> dict(scan["signal"].sizes), scan.attrs["roi_names"]
    ({'x': 40, 'y': 40, 'z': 2, 'measurement': 13}, '{"1": "liver", "2": "kidney", "3": "pancreas"}')
    """
    image = open_image(dwi, 4, "a 4-D diffusion-weighted image")
    bval_path = _beside(Path(dwi)) if bval is None else Path(bval)
    b = read_bval(bval_path, image.shape[3], dwi)
    weights = _check_averages(averages, len(b))
    keep = np.flatnonzero(
        (b >= (-np.inf if b_min is None else b_min)) & (b <= (np.inf if b_max is None else b_max))
    )
    if not len(keep):
        raise InputError(
            f"{bval_path}: no b value is left of {b.min():g} to {b.max():g} s/mm2; widen --b-min/--b-max"
        )
    used = {"dwi": Path(dwi), "bval": bval_path}
    inside = np.ones(image.shape[:3], bool)
    if mask is not None:
        inside = np.nan_to_num(_volume(mask, image, Path(dwi), "mask")) != 0
        used["mask"] = Path(mask)
    if rois is None:
        labels, label_names = inside.astype(np.int32), {1: "mask" if mask is not None else "all"}
        origin = Path(mask if mask is not None else dwi)
    else:
        origin = Path(rois)
        labels = _labels(origin, image, Path(dwi))
        label_names, name_file = read_label_names(origin, np.unique(labels[labels != 0]), names)
        used |= {"rois": origin, **({"names": name_file} if name_file else {})}
    labels, label_names = _select(labels, inside, label_names, regions, origin)
    attrs = {
        "roi_names": json.dumps({str(k): v for k, v in label_names.items()}),
        "inputs": json.dumps({k: {"file": p.name, "sha256": file_digest(p)} for k, p in used.items()}),
        "source": Path(dwi).name,
        "protocol": str(bval_path),
        "b_selected": int(b_min is not None or b_max is not None),
        "real_valued": int(real_valued),
    }
    signal = indexing.LazilyIndexedArray(_LazyVolumes(image, Path(dwi)))
    scan = as_scan(signal, labels, np.asarray(image.affine, float), b, weights, attrs)
    return scan.isel(measurement=keep)


def as_scan(
    signal: Any,
    labels: np.ndarray,
    affine: np.ndarray,
    b: np.ndarray,
    averages: np.ndarray,
    attrs: Mapping[str, Any],
) -> xr.Dataset:
    """Assemble a scan: signals (x, y, z, measurement), labels (x, y, z), affine in mm, b in s/mm²."""
    space = ("x", "y", "z")
    about = {"units": "signal units", "long_name": "diffusion-weighted signal"}
    return xr.Dataset(
        {
            "signal": ((*space, "measurement"), signal, about),
            "roi": (space, labels, {"long_name": "region label"}),
            "affine": (("row", "column"), affine, {"units": "mm"}),
        },
        coords={
            "b": ("measurement", b, {"units": "s/mm2", "long_name": "diffusion weighting"}),
            "averages": ("measurement", averages, {"units": "1", "long_name": "images averaged"}),
        },
        attrs=attrs,
    )


def roi_names(scan: xr.Dataset) -> dict[int, str]:
    """Name of each region by its label."""
    return {int(k): v for k, v in json.loads(scan.attrs["roi_names"]).items()}


def _volume(path: str | Path, dwi: Any, dwi_path: Path, what: str) -> np.ndarray:
    image = open_image(path, 3, f"a 3-D {what} image")
    if image.shape[:3] != dwi.shape[:3]:
        raise InputError(
            f"{path}: shape {by(image.shape[:3])}, but {dwi_path.name} has {by(dwi.shape[:3])}; "
            f"resample the {what} onto the scan's grid"
        )
    if not np.allclose(image.affine, dwi.affine, atol=1e-3, rtol=1e-4):
        raise InputError(
            f"{path}: its affine differs from that of {dwi_path.name} by up to "
            f"{np.abs(image.affine - dwi.affine).max():.3g} mm; resample the {what} onto the scan's grid"
        )
    return read_values(image.dataobj, (...,), Path(path)).reshape(dwi.shape[:3])


def _labels(path: Path, dwi: Any, dwi_path: Path) -> np.ndarray:
    image = open_image(path, 3, "a 3-D label image")
    if image.get_data_dtype().kind == "f" or not _unscaled(image):
        raise InputError(
            f"{path}: labels stored as {image.get_data_dtype()}"
            f"{'' if _unscaled(image) else ' with a scale factor'}; "
            "save them as integers (such as uint8 or int16), a whole number a region"
        )
    values = _volume(path, dwi, dwi_path, "label image")
    if values.min() < 0:
        raise InputError(
            f"{path}: negative label {values.min()}; use 0 for background and 1, 2, ... for regions"
        )
    if values.max() > np.iinfo(np.int32).max:
        raise InputError(f"{path}: label {values.max()} is too large; use labels below 2147483648")
    return values.astype(np.int32)


def _unscaled(image: Any) -> bool:
    return bool(image.dataobj.slope == 1 and image.dataobj.inter == 0)


def _select(
    labels: np.ndarray,
    inside: np.ndarray,
    names: dict[int, str],
    regions: Sequence[str] | None,
    path: Path,
) -> tuple[np.ndarray, dict[int, str]]:
    """Keep the wanted regions, inside the mask."""
    if regions is not None:
        absent = [name for name in regions if name not in names.values()]
        if absent:
            raise InputError(f"{path}: no region {absent[0]!r}; the regions are {', '.join(names.values())}")
        names = {label: name for label, name in names.items() if name in regions}
    present = set(np.unique(labels).tolist()) - {0}
    if not present or not names:
        raise InputError(f"{path}: no region in it, every voxel is 0; give labels 1, 2, ...")
    for label, name in names.items():
        if label not in present:
            raise InputError(
                f"{path}: no voxel of region {name!r} (label {label}); "
                "correct --names or the names' file, or choose the regions to fit by name"
            )
    labels = np.where(inside & np.isin(labels, list(names)), labels, 0).astype(np.int32)
    for label, name in names.items():
        if not (labels == label).any():
            raise InputError(
                f"{path}: region {name!r} is empty inside the mask; correct the mask or the labels"
            )
    return labels, names


def _beside(dwi: Path) -> Path:
    stem = dwi.name.removesuffix(".gz").removesuffix(".nii")
    for ending in (".bval", ".bvals"):
        if (candidate := dwi.with_name(stem + ending)).exists():
            return candidate
    raise InputError(f"{dwi.with_name(stem + '.bval')}: no such file; give the b values with --bval")


def read_bval(path: Path, count: int | None = None, dwi: str | Path = "") -> np.ndarray:
    """Read b values (s/mm²) and check their number (where an image has so many volumes), sign and unit."""
    try:
        words = path.read_text(encoding="utf-8").replace(",", " ").split()
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; give the b values with --bval") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({one_line(error)}); give b values as text") from None
    if not words:
        wanted = "" if count is None else f"{count} "
        raise InputError(f"{path}: empty; write {wanted}b values in s/mm2, one for each volume")
    try:
        b = np.array([float(word) for word in words])
    except ValueError:
        word = next(word for word in words if not _is_number(word))
        raise InputError(f"{path}: {word!r} is not a number; write b values in s/mm2") from None
    if not np.isfinite(b).all():
        raise InputError(
            f"{path}: b value {int(np.flatnonzero(~np.isfinite(b))[0]) + 1} is {b[~np.isfinite(b)][0]}; "
            "write the b value in s/mm2"
        )
    if count is not None and len(b) != count:
        raise InputError(
            f"{path}: {len(b)} b values, but {Path(dwi).name} has {count} volumes; give one b value a volume"
        )
    if (b < 0).any():
        raise InputError(f"{path}: negative b value {b[b < 0][0]:g}; b values in s/mm2 are 0 or more")
    if b.max() >= 1e5:
        raise InputError(
            f"{path}: b values up to {b.max():g} look like s/m2; divide them by 1e6 to get s/mm2"
        )
    if 0 < b.max() <= 20:
        raise InputError(
            f"{path}: b values up to {b.max():g} look like ms/um2; multiply them by 1000 to get s/mm2"
        )
    return b


def _check_averages(averages: Sequence[float] | None, count: int) -> np.ndarray:
    if averages is None:
        return np.ones(count)
    weights = np.asarray(averages, float)
    if weights.shape != (count,):
        raise InputError(f"averages: {weights.size} values for {count} volumes; give one a volume")
    if not (np.isfinite(weights) & (weights > 0)).all():
        raise InputError("averages: every number of averaged images must be above 0")
    return weights


def file_digest(path: Path) -> str:
    """SHA-256 of a file, which is read to its end; a damaged gzip file is refused."""
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({one_line(error)}); check its permissions") from None
    if path.suffix == ".gz":  # nibabel does not reach the checksum at the end
        try:
            with gzip.open(path) as packed:
                while packed.read(1 << 20):
                    pass
        except (OSError, EOFError, zlib.error) as error:
            raise InputError(
                f"{path}: the image data end early or are damaged ({one_line(error)}); "
                "copy or convert it again"
            ) from None
    return digest


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def write_scan(scan: xr.Dataset, folder: str | Path) -> tuple[Path, Path]:
    """Write a scan as NIfTI, for `read_scan` and other programs.

    Parameters
    ----------
    scan : Dataset
        ``signal`` (x, y, z, measurement), ``roi`` (x, y, z), ``affine`` and ``b``, as `read_scan` gives them.
    folder : path
        Where ``dwi.nii.gz``, ``dwi.bval``, ``labels.nii.gz`` and ``labels.json`` are written.

    Returns
    -------
    dwi, labels : path
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    affine = scan["affine"].values
    for name, values, dtype in (("dwi", scan["signal"], np.float32), ("labels", scan["roi"], np.uint8)):
        save(nib.Nifti1Image(values.values.astype(dtype), affine), folder / f"{name}.nii.gz")
    with replacing(folder / "dwi.bval") as path:
        path.write_text(" ".join(f"{b:g}" for b in scan["b"].values) + "\n", encoding="utf-8")
    with replacing(folder / "labels.json") as path:
        path.write_text(scan.attrs["roi_names"] + "\n", encoding="utf-8")
    return folder / "dwi.nii.gz", folder / "labels.nii.gz"
