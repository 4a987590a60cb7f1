"""Maps of a volume: what they hold, and NIfTI files of them."""

import json
import math
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import xarray as xr

from ivimbayes.errors import InputError
from ivimbayes.io.atomic import replacing
from ivimbayes.io.netcdf import check_netcdf
from ivimbayes.io.nifti import open_image, read_values, save
from ivimbayes.io.text import one_line, read_json
from ivimbayes.models.signals import PARAMETERS
from ivimbayes.voxelwise.status import MAPPED, SPACE, STATUS

ZARR: dict[str, Any] = {"engine": "zarr", "zarr_format": 3, "consolidated": False}  # 2 may hold pickles
LARGEST = 2**30  # values of an array in a store
SUMMARIES = ("mean", "sd", "median", "hdi_low", "hdi_high", "contraction")
ERRORS = tuple(f"{p}_se" for p in MAPPED)  # of least squares
NAMES = (*(f"{p}_{s}" for p in MAPPED for s in SUMMARIES), "pareto_k", "ess", "p_perfusion", "status")
OTHERS = {
    "pareto_k": ("1", "Pareto k of the importance weights; above 0.7 the numbers are not to be trusted"),
    "ess": ("1", "effective draws"),
    "p_perfusion": ("1", "probability of two compartments against one"),
    "status": ("1", "what the numbers of a voxel are worth"),
}


def map_attrs(interval: float) -> dict[str, dict[str, Any]]:
    """Attributes of each map, for intervals of a probability."""
    words = {
        "mean": "posterior mean",
        "sd": "posterior standard deviation",
        "median": "posterior median",
        "hdi_low": f"lower end of the {100 * interval:g} % highest-density interval",
        "hdi_high": f"upper end of the {100 * interval:g} % highest-density interval",
        "contraction": "1 - posterior variance over variance between voxels: what the voxel's signals tell",
    }
    attrs: dict[str, dict[str, Any]] = {}
    for parameter in MAPPED:
        p = PARAMETERS[parameter]
        for summary, text in words.items():
            unit = "1" if summary == "contraction" else p.unit
            attrs[f"{parameter}_{summary}"] = {"units": unit, "long_name": f"{p.long_name}: {text}"}
    for name, (unit, text) in OTHERS.items():
        attrs[name] = {"units": unit, "long_name": text}
    attrs["status"] |= {"flag_values": list(STATUS.values()), "flag_meanings": " ".join(STATUS)}
    return attrs


def write_maps(maps: xr.Dataset, folder: str | Path) -> list[Path]:
    """Write maps as NIfTI, each with a JSON sidecar.

    Parameters
    ----------
    maps : Dataset
        From `posterior_maps`, `fit_segmented` or `fit_full`: variables (x, y, z), and (draw, x, y, z) where
        draws were kept, with ``affine`` (row, column).
    folder : path
        Where ``f_mean.nii.gz``, ``f_mean.json`` and so on are written; made where it is not.

    Returns
    -------
    list of path
        The images. Values are float32 in the units of the sidecar (mm²/s for D and D*), NaN where there is
        no number; ``status`` is uint8.

    Raises
    ------
    InputError
        If the Dataset holds no map or no affine.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> from ivimbayes import fit_segmented, phantom
    >>> made = fit_segmented(phantom()[0], progress=False)
    >>> with TemporaryDirectory() as folder:
    ...     print(sorted(path.name for path in write_maps(made, folder))[:3])
    ['D.nii.gz', 'D_se.nii.gz', 'D_star.nii.gz']
    """
    names = [str(name) for name, v in maps.data_vars.items() if set(SPACE) <= set(v.dims)]
    if not names or "affine" not in maps:
        raise InputError(
            "maps: no variable (x, y, z) with an affine in the Dataset; "
            "give that of posterior_maps, fit_segmented or fit_full"
        )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    affine, written = maps["affine"].values, []
    shared = _provenance(maps.attrs)
    for name in names:
        variable = maps[name].transpose(*SPACE, ...)
        dtype = np.uint8 if variable.dtype.kind in "iub" else np.float32
        image = nib.Nifti1Image(np.asarray(variable.values, dtype), affine)
        image.header.set_xyzt_units("mm")
        image.header["descrip"] = f"{name} [{variable.attrs.get('units', '')}]"[:79].encode(
            "ascii", "replace"
        )
        save(image, folder / f"{name}.nii.gz")
        with replacing(folder / f"{name}.json") as path:
            path.write_text(json.dumps(_sidecar(variable.attrs) | shared, indent=2) + "\n", encoding="utf-8")
        written.append(folder / f"{name}.nii.gz")
    return written


def read_maps(folder: str | Path) -> xr.Dataset:
    """Read the maps that `write_maps`, or ``ivimbayes map``, wrote.

    Parameters
    ----------
    folder : path
        With the NIfTI images and their sidecars, or ``maps.nc``, or ``maps.zarr``.

    Returns
    -------
    Dataset
        (x, y, z) as `posterior_maps` gives it, with the attributes that the sidecars hold.

    Raises
    ------
    InputError
        If the folder holds no maps, or one cannot be read.
    """
    folder = Path(folder)
    for name, options in (("maps.nc", {"engine": "h5netcdf"}), ("maps.zarr", ZARR)):
        if (folder / name).exists():
            try:
                if name == "maps.nc":
                    check_netcdf(folder / name)
                else:
                    _check_zarr(folder / name)
                return xr.load_dataset(folder / name, **options)
            except Exception as error:  # a damaged file may raise anything in h5netcdf, zarr and xarray
                raise InputError(
                    f"{folder / name}: cannot be read ({one_line(error)}); make it again with ivimbayes map"
                ) from None
    found = [path for name in NAMES if (path := folder / f"{name}.nii.gz").is_file()]
    if not found:
        raise InputError(f"{folder}: holds no maps (such as f_mean.nii.gz); make them with ivimbayes map")
    data, attrs = dict[str, Any](), dict[str, Any]()
    for path in found:
        name = path.name.removesuffix(".nii.gz")
        try:
            image = open_image(path, 3, "a map")
            values = read_values(image.dataobj, (...,), path).reshape(image.shape[:3])
        except InputError as error:
            why = str(error).removeprefix(f"{path}: ").partition(";")[0]
            raise InputError(f"{path}: cannot be read ({why}); make it again with ivimbayes map") from None
        try:
            plain = read_json((folder / f"{name}.json").read_text(encoding="utf-8"))
            about = {"units": str(plain.get("Units", "")), "long_name": str(plain.get("Description", ""))}
            interval = {"interval": float(plain["Interval"]["Probability"])} if "Interval" in plain else {}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(
                f"{folder / name}.json: not the sidecar of a map ({one_line(error)}); make it again with "
                "ivimbayes map"
            ) from None
        data[name] = (SPACE, values, about)
        data["affine"] = (("row", "column"), image.affine, {"units": "mm"})
        attrs = {key.lower(): plain[key] for key in ("Model", "Noise", "Seed", "Draws") if key in plain}
        attrs |= interval
    shapes = {value[1].shape for name, value in data.items() if name != "affine"}
    if len(shapes) > 1:
        raise InputError(f"{folder}: its maps differ in shape ({sorted(shapes)}); make them again")
    return xr.Dataset(data, attrs=attrs)


def _check_zarr(path: Path) -> None:
    """Refuse a store whose arrays promise more than a volume's maps can be."""
    for about in sorted(path.glob("*/zarr.json")):
        plain = read_json(about.read_text(encoding="utf-8"))
        if math.prod(plain.get("shape", ())) > LARGEST:
            raise ValueError(f"{about.parent.name} has the shape {plain['shape']}")


def _sidecar(attrs: Mapping[str, Any]) -> dict[str, Any]:
    plain: dict[str, Any] = {"Units": attrs.get("units", ""), "Description": attrs.get("long_name", "")}
    if "flag_meanings" in attrs:
        values = np.atleast_1d(attrs["flag_values"]).tolist()
        plain["Levels"] = dict(zip(map(str, values), attrs["flag_meanings"].split(), strict=True))
    return plain


def _provenance(attrs: Mapping[str, Any]) -> dict[str, Any]:
    """Sidecar entries that all maps of a run share."""
    wanted = {
        "Interval": "interval", "Model": "model", "Noise": "noise", "Population": "population",
        "PerfusionPrior": "perfusion_prior", "Seed": "seed", "Draws": "draws", "Method": "method",
        "Threshold": "threshold", "Bounds": "bounds", "Sources": "inputs",
    }  # fmt: skip
    plain = {}
    for key, name in wanted.items():
        if name in attrs:
            value = attrs[name]
            value = value.item() if isinstance(value, np.generic) else value
            plain[key] = json.loads(value) if name in ("population", "bounds", "inputs") else value
    if "Interval" in plain:
        plain["Interval"] = {"Type": "highest density", "Probability": float(plain["Interval"])}
    return plain | {"Software": f"ivimbayes {version('ivimbayes')}"}


def describe_maps(maps: xr.Dataset) -> str:
    """Count the voxels of each status, in words."""
    status = np.bincount(maps["status"].values.ravel(), minlength=len(STATUS))
    inside = int(status.sum() - status[STATUS["outside"]])
    parts = [
        f"{status[code]:,} {name.replace('_', ' ')}"
        for name, code in STATUS.items()
        if name != "outside" and (status[code] or name == "ok")
    ]
    return f"{inside:,} voxels: {', '.join(parts)}"


def map_files() -> set[str]:
    """Name every file and store that maps may be written to."""
    stems = {f"{name}{ending}" for name in (*NAMES, *MAPPED, *ERRORS) for ending in (".nii.gz", ".json")}
    return stems | {"maps.nc", "maps.zarr"}
