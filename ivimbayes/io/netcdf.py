"""Result files, written under a temporary name and renamed: no half-written file has a result's name."""

import os
import sys
from collections.abc import Mapping
from contextlib import nullcontext
from math import prod
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import xarray as xr

from ivimbayes.errors import InputError
from ivimbayes.io.atomic import UMASK, replacing
from ivimbayes.io.text import one_line

MANTISSA_BITS, PIECE = 12, 1 << 24  # bits kept, and bytes written at a time
os.umask(UMASK)
RATIO, DRAWS_RATIO, DEEPEST = 1100, 100, 2  # of compression, at most; of draws; depth of groups
COMPRESSION: dict[str, Any] = {"zlib": True, "complevel": 4, "shuffle": True}


def shorten(values: np.ndarray) -> np.ndarray:
    """Round to float32 with 13 significant bits: a relative error below 1.3e-4, and about half the size.

    Draws of voxels are stored so; the rounding is far below their Monte-Carlo error.
    """
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    drop = 23 - MANTISSA_BITS
    half = np.uint32((1 << (drop - 1)) - 1) + ((bits >> np.uint32(drop)) & np.uint32(1))
    rounded = ((bits + half) & np.uint32(~((1 << drop) - 1) & 0xFFFFFFFF)).view(np.float32)
    return np.where(np.isfinite(values), rounded, values).astype(np.float32)


def write_tree(tree: xr.DataTree, path: str | Path, *, hasty: bool = False) -> None:
    """Write a DataTree as netCDF, compressed.

    Parameters
    ----------
    tree : DataTree
        Groups of arrays; attributes are strings or numbers.
    path : path
        File to write; an older one is replaced in one step.
    hasty : bool
        Compress less, for a file that is soon read and removed.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> tree = xr.DataTree.from_dict({"posterior": xr.Dataset({"D_roi": ("draw", [1e-3, 1.1e-3])})})
    >>> with TemporaryDirectory() as folder:
    ...     write_tree(tree, f"{folder}/posterior.nc")
    ...     read_tree(f"{folder}/posterior.nc").identical(tree)
    True
    """
    _write(tree_bytes(tree, level=1 if hasty else COMPRESSION["complevel"]), path)


def tree_bytes(
    tree: xr.DataTree,
    encoding: Mapping[str, Mapping[str, Any]] | None = None,
    unlimited: Mapping[str, Any] | None = None,
    level: int = COMPRESSION["complevel"],
) -> memoryview:
    """Bytes of a compressed netCDF file of a tree.

    Parameters
    ----------
    tree : DataTree
        As for `write_tree`.
    encoding : mapping, optional
        By group and variable, what is to be added to the compression.
    unlimited : mapping, optional
        By group, dimensions that can grow.
    level : int
        Of the compression, 1 to 9.
    """
    stored: dict[str, dict[str, dict[str, Any]]] = {}
    for node in tree.subtree:
        if node.has_data:
            stored[node.path] = {str(k): dict(v) for k, v in (encoding or {}).get(node.path, {}).items()}
            for name, variable in node.to_dataset(inherit=False).data_vars.items():
                if variable.ndim and variable.dtype.kind in "fiub":
                    stored[node.path].setdefault(str(name), {}).update(COMPRESSION | {"complevel": level})
    with _alone():
        return tree.to_netcdf(engine="h5netcdf", encoding=stored, unlimited_dims=unlimited)


def write_netcdf(
    data: xr.DataTree | xr.Dataset, path: str | Path, encoding: Mapping[Any, Any] | None = None
) -> None:
    """Write netCDF by way of memory: HDF5 does not outlive a disk that is full."""
    with _alone():
        content = data.to_netcdf(engine="h5netcdf", encoding=encoding)
    _write(content, path)


def _write(content: memoryview, path: str | Path) -> None:
    with content as view, replacing(path) as temporary, temporary.open("wb", buffering=0) as file:
        for at in range(0, len(view), PIECE):
            _write_piece(file, bytes(view[at : at + PIECE]))


def _write_piece(file: Any, piece: bytes) -> None:
    at = 0
    while at < len(piece):
        at += file.write(piece[at:])


def _alone() -> Any:
    """Keep xarray from asking a dask scheduler for a lock, which knows files only."""
    if "distributed" not in sys.modules:
        return nullcontext()
    import dask

    return dask.config.set(scheduler="synchronous")


def read_tree(path: str | Path) -> xr.DataTree:
    """Read a DataTree into memory and close its file.

    Raises
    ------
    InputError
        If the file is missing or is not a stored fit.

    Examples
    --------
    >>> read_tree("fit.nc")
    Traceback (most recent call last):
    ivimbayes.errors.InputError: fit.nc: no such file; run ivimbayes fit first, or name the folder it wrote
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file; run ivimbayes fit first, or name the folder it wrote")
    loaded = load_tree(path, "run ivimbayes fit again")
    _check_posterior(loaded, path)
    for node in loaded.subtree:  # how it was stored would cut longer names that join it
        node.encoding = {}
        for variable in node.variables.values():
            variable.encoding.clear()
    return loaded


def _check_posterior(tree: xr.DataTree, path: Path) -> None:
    if "posterior" not in tree.children or not {"f_roi", "D_roi"} & set(tree["posterior"].data_vars):
        raise InputError(f"{path}: holds no posterior of ivimbayes; name a folder that ivimbayes fit wrote")


def open_tree(path: str | Path, check: bool = True) -> xr.DataTree:
    """Open the DataTree of a fit: draws are read from the file each time that they are used.

    Coordinates, and groups without draws, are in memory. Close the tree when it is no longer of use.

    Parameters
    ----------
    path : path
        The file.
    check : bool
        Read all draws once, a part at a time; damage is found then.

    Raises
    ------
    InputError
        If the file cannot be read, any part of it, or is not a stored fit.
    """
    path = Path(path)
    try:
        check_netcdf(path, DRAWS_RATIO)
        tree = xr.open_datatree(path, engine="h5netcdf", cache=False)
        try:
            for node in tree.children.values():
                data = node.to_dataset()
                few = data.coords if "draw" in data.dims else data.variables
                node.dataset = data.assign({str(name): data[name].load() for name in few})
                if check:
                    _read_once(node.to_dataset())
            _check_posterior(tree, path)
        except BaseException:
            tree.close()
            raise
    except InputError:
        raise
    except Exception as error:  # as in `load_tree`
        raise InputError(
            f"{path}: not a readable netCDF file ({one_line(error)}); run ivimbayes fit again"
        ) from None
    return tree


def _read_once(data: xr.Dataset) -> None:
    """Read every value of a dataset, a part at a time."""
    for variable in data.data_vars.values():
        along = next((dim for dim in ("voxel", "roi") if variable.sizes.get(dim)), None)
        if along is None:
            variable.compute()
            continue
        step = max(1, PIECE * variable.sizes[along] // max(1, variable.nbytes))
        for first in range(0, variable.sizes[along], step):
            variable.isel({along: slice(first, first + step)}).compute()


def check_netcdf(path: Path, ratio: float = RATIO) -> None:
    """Refuse a netCDF file that promises more than it can hold, or points outside of itself.

    Groups two levels deep at most, reached once; no values kept in other files; no more bytes than `ratio`
    times the file's (deflate cannot compress more than `RATIO`).

    Parameters
    ----------
    path : path
        The file.
    ratio : float
        Bytes of values, in whole chunks, to one of the file. Strings count as pointers.

    Raises
    ------
    ValueError
        If it does.
    """
    size = path.stat().st_size
    promised, limit, seen = 0, ratio * size, set[Any]()

    def walk(group: Any, depth: int) -> None:
        nonlocal promised
        for name in group:
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                raise ValueError(f"{name} is a link to elsewhere")
            item = group[name]
            if isinstance(item, h5py.Group):
                address = h5py.h5o.get_info(item.id).addr
                if depth == DEEPEST or address in seen:
                    raise ValueError(f"group {name} is nested too deeply")
                seen.add(address)
                walk(item, depth + 1)
            elif isinstance(item, h5py.Dataset):
                if item.external or item.is_virtual:
                    raise ValueError(f"values of {name} lie in another file")
                shape = item.shape or ()
                stored = item.size or 0
                if item.chunks:  # those at the end are whole too
                    stored = prod(-(-n // chunk) * chunk for n, chunk in zip(shape, item.chunks, strict=True))
                promised += stored * item.dtype.itemsize
                if promised > limit:
                    raise ValueError(f"it promises {promised} bytes and more, of a file of {size}")

    with h5py.File(path) as file:
        walk(file, 0)


def load_tree(path: Path, remedy: str) -> xr.DataTree:
    """Read any DataTree into memory and close its file; an `InputError` with the way out if it cannot be."""
    try:
        check_netcdf(path)
        with xr.open_datatree(path, engine="h5netcdf") as tree:
            return tree.load().copy(deep=True)
    except Exception as error:  # a damaged file may raise anything in h5py, h5netcdf and xarray
        raise InputError(f"{path}: not a readable netCDF file ({one_line(error)}); {remedy}") from None
