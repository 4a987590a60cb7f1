"""Data sets for examples: the embedded phantom, and public scans fetched from where they were published."""

import hashlib
import json
import os
import tomllib
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from itertools import product
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
import xarray as xr
from scipy.io import loadmat

from ivimbayes.errors import InputError
from ivimbayes.io.scans import as_scan
from ivimbayes.simulation.regions import phantom as phantom

try:
    import pooch
except ModuleNotFoundError:  # downloads are an optional extra
    pooch = None

ORIGIN = "https://raw.githubusercontent.com"
TIMEOUT = 30  # s without a byte
GRADIENTS = {"bip": 1, "fc": 2}  # the values of `betta`
SERIES = tuple(f"T{T}_{gradients}" for T, gradients in product((40, 70, 100), GRADIENTS))
ABDOMEN_REGIONS = {1: "pancreas", 2: "liver", 3: "kidney", 4: "spleen"}
DARKEST = 0.33  # the authors' floor under means at b = 0; also under directions, whose logarithm is taken
FIELDS = {"1.5T": "IVIM_DKI_1_5T", "3T": "IVIM_DKI_3T"}
PROSTATE_B = (0, 25, 50, 75, 100, 150, 200, 500, 800, 1000, 1250, 1500, 2000)  # default of the authors' app
PROSTATE_MASKS = {"peripheral zone": "pz_roi", "BPH": "bph_roi", "tumour": "tumor_roi"}  # the last one wins
MARGIN = 12  # voxels kept round the regions


class _File(NamedTuple):
    """A published file: where it lies in its repository, and what it must be."""

    path: str
    sha256: str
    bytes: int
    source: Mapping[str, Any]
    also: str = ""

    @property
    def name(self) -> str:
        return PurePosixPath(self.path).name


def abdomen(
    volunteer: int = 1, series: str = "T100_bip", *, data_dir: str | Path | None = None
) -> xr.Dataset:
    """Abdomen of a healthy volunteer (Wetscherek 2015): one slice, b up to 500 s/mm².

    Each breath-hold has its own images at b = 0 and six directions at each of its b values. A measurement is
    the geometric mean of the directions, times the median over the abdomen of (mean of the series' images at
    b = 0 / mean of that breath-hold's). The first measurement is the mean of the series' images at b = 0. A b
    value that was acquired twice is two measurements. Signals are whole numbers in the file; a direction, or
    a breath-hold's mean at b = 0, that is 0, as in air, counts as 0.33.

    Parameters
    ----------
    volunteer : int
        1 to 6.
    series : str
        Diffusion time in ms, ``T40`` (b up to 100 s/mm²), ``T70`` or ``T100``, then ``_bip`` for bipolar
        gradients (conventional IVIM) or ``_fc`` for flow-compensated ones.
    data_dir : path, optional
        Folder that holds the published file; otherwise the one that ``IVIMBAYES_DATA`` names, otherwise the
        file is downloaded once (needs the extra ``ivimbayes[data]``).

    Returns
    -------
    Dataset
        As `read_scan` gives it, in memory, with the labels of the file: pancreas, liver, kidney, spleen. The
        file holds no geometry: ``affine`` is the identity, x counts rows. Attributes ``licence``,
        ``citation`` and ``source``.

    Raises
    ------
    InputError
        If there is no such volunteer or series, or the file cannot be had or is not the published one.

    Examples
    --------
    >>> abdomen(7)
    Traceback (most recent call last):
    ...
    ivimbayes.errors.InputError: volunteer: 7; the volunteers are 1, 2, 3, 4, 5, 6
    """
    if volunteer not in range(1, 7):
        raise InputError(f"volunteer: {volunteer!r}; the volunteers are 1, 2, 3, 4, 5, 6")
    if series not in SERIES:
        raise InputError(f"series: {series!r}; the series are {', '.join(SERIES)}")
    file = _published("abdomen", f"data/volunteer{int(volunteer)}.mat")
    content = loadmat(_fetch(file, data_dir))
    b, signal = _traces(content, series, file.name)
    labels = content["rois"].astype(np.int32)
    present = np.unique(labels[labels > 0]).tolist()
    names = {label: ABDOMEN_REGIONS.get(label, f"roi-{label}") for label in present}
    attrs = _attrs(names, {"dwi": file}, f"{file.name} ({series})", file.path)
    return as_scan(signal[:, :, None], labels[:, :, None], np.eye(4), b, np.ones(len(b)), attrs)


def prostate(field: str = "1.5T", *, whole: bool = False, data_dir: str | Path | None = None) -> xr.Dataset:
    """Prostate of a patient (Malagi 2021): five slices, 13 b values up to 2000 s/mm².

    No file states the b values: they are the defaults of the authors' app. Above 1000 s/mm² the signal shows
    kurtosis; keep b <= 1000 for the bi-exponential.

    Parameters
    ----------
    field : str
        ``"1.5T"`` or ``"3T"``, each another patient.
    whole : bool
        The whole image; otherwise it is cropped to 12 voxels round the regions, in the plane.
    data_dir : path, optional
        Folder that holds the published files; otherwise the one that ``IVIMBAYES_DATA`` names, otherwise they
        are downloaded once (needs the extra ``ivimbayes[data]``).

    Returns
    -------
    Dataset
        As `read_scan` gives it, in memory, with regions peripheral zone, BPH and tumour (tumour where masks
        overlap). Attributes ``licence``, ``citation`` and ``source``.

    Raises
    ------
    InputError
        If there is no such field, or a file cannot be had or is not the published one.
    """
    if field not in FIELDS:
        raise InputError(f"field: {field!r}; the fields are {', '.join(FIELDS)}")
    dwi = _published("prostate", f"IVIM_DKI_data/{FIELDS[field]}/ivim13b.nii.gz")
    image = nib.load(_fetch(dwi, data_dir))
    signal, affine = np.asarray(image.dataobj, np.float32), np.asarray(image.affine, float)
    labels, used = _prostate_labels(field, data_dir)
    if not whole:
        window = tuple(slice(max(min(at) - MARGIN, 0), max(at) + MARGIN + 1) for at in np.nonzero(labels)[:2])
        signal, labels = signal[window], labels[window]
        affine[:3, 3] += affine[:3, :2] @ [part.start for part in window]
    names = dict(enumerate(PROSTATE_MASKS, start=1))
    protocol = f"{dwi.path} (b values of the authors' app)"
    attrs = _attrs(names, {"dwi": dwi, **used}, f"{dwi.name} ({field})", protocol)
    b = np.array(PROSTATE_B, float)
    return as_scan(signal, labels, affine, b, np.ones(len(b)), attrs)


def _traces(content: Mapping[str, np.ndarray], series: str, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Measurements of a series: b (measurement) in s/mm² and signals (x, y, measurement)."""
    b, time, betta = (content[key].ravel().astype(int) for key in ("b", "T", "betta"))
    images, inside = content["data"].astype(float), content["mask"] > 0
    hold = np.cumsum((b == 0) & (np.roll(b, 1) == 0))  # each begins and ends with an image at b = 0
    kinds = {word: (int(word[1:].split("_")[0]), GRADIENTS[word.split("_")[1]]) for word in SERIES}
    chosen = {word: (time == t) & (betta == kind) & (b > 0) for word, (t, kind) in kinds.items()}
    found = [word for word in SERIES if chosen[word].any()]
    if series not in found:
        raise InputError(f"series: no {series} in {name}; it has {', '.join(found)}")
    mine = chosen[series]
    b0 = {h: np.maximum(images[(hold == h) & (b == 0)].mean(0), DARKEST) for h in np.unique(hold[mine])}
    mean_b0 = np.mean(list(b0.values()), axis=0)
    out = [(0, mean_b0)]
    for value, h in sorted(set(zip(b[mine].tolist(), hold[mine].tolist(), strict=True))):
        directions = images[mine & (b == value) & (hold == h)]
        trace = np.prod(np.maximum(directions, DARKEST), axis=0) ** (1 / len(directions))
        out.append((value, trace * np.median((mean_b0 / b0[h])[inside])))
    return np.array([v for v, _ in out], float), np.stack([s for _, s in out], axis=-1).astype(np.float32)


def _prostate_labels(field: str, data_dir: str | Path | None) -> tuple[np.ndarray, dict[str, _File]]:
    """Labels (x, y, z) from the three masks, and the files they come from."""
    masks = {
        name: _published("prostate", f"IVIM_DKI_data/{FIELDS[field]}/{stem}.nii.gz")
        for name, stem in PROSTATE_MASKS.items()
    }
    merged = _sources()["prostate"]["merged"].get(field)
    if merged and (folder := _folder(data_dir)) and not any(_found(mask, folder) for mask in masks.values()):
        file = _File(path=merged["also"], source=_sources()["prostate"], **merged)
        if _found(file, folder):
            return np.asarray(nib.load(_fetch(file, data_dir)).dataobj).astype(np.int32), {"rois": file}
    used = {name: nib.load(_fetch(mask, data_dir)) for name, mask in masks.items()}
    labels = np.zeros(next(iter(used.values())).shape[:3], np.int32)
    for label, image in enumerate(used.values(), start=1):
        labels[np.asarray(image.dataobj).reshape(labels.shape) > 0] = label
    return labels, {f"mask of {name}": mask for name, mask in masks.items()}


def _attrs(names: Mapping[int, str], used: Mapping[str, _File], what: str, protocol: str) -> dict[str, Any]:
    source = next(iter(used.values())).source
    return {
        "roi_names": json.dumps({str(label): name for label, name in names.items()}),
        "inputs": json.dumps({k: {"file": f.name, "sha256": f.sha256} for k, f in used.items()}),
        "source": f"{what} of {source['repository']} at {source['commit']}",
        "licence": source["licence"],
        "citation": source["citation"],
        "protocol": protocol,
        "b_selected": 0,
        "real_valued": 0,
    }


@cache
def _sources() -> dict[str, Any]:
    return tomllib.loads(files("ivimbayes").joinpath("data/sources.toml").read_text(encoding="utf-8"))


def _published(dataset: str, path: str) -> _File:
    source = _sources()[dataset]
    return _File(path=path, source=source, **source["files"][path])


def _folder(data_dir: str | Path | None) -> Path | None:
    """Local folder of data; where one is named, nothing is downloaded."""
    named = data_dir if data_dir is not None else os.environ.get("IVIMBAYES_DATA")
    return Path(named).expanduser() if named else None


def _fetch(file: _File, data_dir: str | Path | None) -> Path:
    """Path of a published file whose size and SHA-256 were checked."""
    folder = _folder(data_dir)
    if folder is None:
        return _download(file)
    found = _found(file, folder)
    for path in found:
        if _same(path, file):
            return path
    where = "data_dir" if data_dir is not None else "IVIMBAYES_DATA"
    if found:
        raise InputError(
            f"{found[0]}: not the published file, its size or SHA-256 differs; replace it by {_address(file)}"
        )
    raise InputError(
        f"{folder}: no {file.path} or {file.name} in the folder that {where} names; "
        f"put {_address(file)} there, or name no folder to download it"
    )


def _found(file: _File, folder: Path) -> list[Path]:
    """Files of the folder that may be the published one: below any tail of its path, or in ``raw``."""
    tails = [
        str(PurePosixPath(*parts[i:]))
        for parts in (PurePosixPath(p).parts for p in (file.path, file.also) if p)
        for i in range(len(parts))
    ]
    clone = f"{PurePosixPath(file.source['repository']).name}/{file.path}"
    names = dict.fromkeys([clone, *tails, f"raw/{file.name}"])
    return [folder / name for name in names if (folder / name).is_file()]


def _same(path: Path, file: _File) -> bool:
    try:
        if path.stat().st_size != file.bytes:
            return False
        with path.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest() == file.sha256
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check its permissions") from None


def _address(file: _File) -> str:
    base = (os.environ.get("IVIMBAYES_DATA_URL") or ORIGIN).rstrip("/")
    if not base.startswith(("https://", "http://")):
        raise InputError(f"IVIMBAYES_DATA_URL: {base!r}; give the address of a mirror, https://...")
    return f"{base}/{file.source['repository']}/{file.source['commit']}/{file.path}"


def _download(file: _File) -> Path:
    """Path in the cache of a published file, downloaded where it is not there yet."""
    address = _address(file)
    way_out = "or put it into a folder and name that in data_dir or IVIMBAYES_DATA"
    if pooch is None:
        raise InputError(
            f"{address}: a download needs pooch, which is not installed; "
            f"pip install 'ivimbayes[data]', {way_out}"
        )
    path = Path(pooch.os_cache("ivimbayes"), file.source["repository"], file.source["commit"], file.path)
    try:
        pooch.retrieve(
            address,
            known_hash=f"sha256:{file.sha256}",
            fname=path.name,
            path=path.parent,
            downloader=pooch.HTTPDownloader(timeout=TIMEOUT),
        )
    except OSError as error:  # of requests, or of the cache's folder
        reason = error.strerror or type(error).__name__
        if (response := getattr(error, "response", None)) is not None:
            response.close()
            reason = f"status {response.status_code}"
        raise InputError(
            f"{address}: cannot be downloaded to {path.parent} ({reason}); try again, {way_out}"
        ) from None
    except ValueError:  # pooch has deleted what came
        raise InputError(
            f"{address}: what came is not the published file (its SHA-256 differs); try again, {way_out}"
        ) from None
    return path
