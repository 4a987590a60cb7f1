"""Posterior of many regions in one file, written region by region: memory does not grow with their number."""

import io
import threading
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import h5netcdf
import numpy as np
import xarray as xr

from ivimbayes.io.atomic import replacing
from ivimbayes.io.netcdf import COMPRESSION, PIECE, tree_bytes

GROWING = ("roi", "voxel")  # dimensions along which regions are joined
CHUNK = {"roi": 1, "voxel": 8}  # regions and voxels in a chunk: a region is read by itself


class SurvivingFile(io.FileIO):
    """A file for HDF5, which does not outlive a write that fails: it is told of none.

    From the first that failed on, what is written is held in memory, and read from there.

    Attributes
    ----------
    error : OSError or None
        Of the first write that failed.
    """

    def __init__(self, path: Path):
        super().__init__(path, "r+")
        self.error: OSError | None = None
        self._held: list[tuple[int, bytes]] = []

    def write(self, piece: Any) -> int:
        """Write all of a piece, on the disk or into memory."""
        start, done = self.tell(), 0
        with memoryview(piece) as view:
            try:
                while self.error is None and done < len(view):
                    done += self._put(view[done : done + PIECE])
            except OSError as error:
                self.error = error.with_traceback(None)  # which would hold the piece
            if self.error is not None:
                self._held.append((start, bytes(view)))
                self.seek(start + len(view))
            return len(view)

    def _put(self, piece: memoryview) -> int:
        return super().write(piece) or 0

    def readinto(self, buffer: Any) -> int:
        """Read from the disk, or from memory what is held there."""
        start, view = self.tell(), memoryview(buffer).cast("B")
        size = super().readinto(view) or 0
        for at, piece in self._held:
            low, high = max(at, start), min(at + len(piece), start + len(view))
            if low < high:
                view[low - start : high - start] = piece[low - at : high - at]
                size = max(size, high - start)
        return size

    def truncate(self, size: int | None = None) -> int:
        """Set the length; a failure is kept as that of a write is."""
        try:
            return super().truncate(size)
        except OSError as error:
            self.error = self.error or error
            return self.tell() if size is None else size


def write_regions(
    regions: Iterable[xr.DataTree], path: str | Path, affine: np.ndarray, attrs: Mapping[str, Any]
) -> None:
    """Write the trees of regions as one netCDF file, holding one of them at a time.

    It holds what `join_regions` and `write_tree` would write.

    Parameters
    ----------
    regions : iterable of DataTree
        From `collect_region`, with the attribute ``attempts``; all of the same chains and draws.
    path : path
        File to write; an older one is replaced in one step.
    affine : ndarray (4, 4)
        Of the scan (mm).
    attrs : mapping
        Attributes of the file.

    Raises
    ------
    OSError
        If the disk is full, or the file cannot be written.
    """
    stop = threading.Event()
    with replacing(path) as temporary, ThreadPoolExecutor(1) as apart:
        # apart: an interruption is raised in the main thread, and within a call of HDF5 would lose a write
        writing = apart.submit(_write, regions, temporary, affine, attrs, stop)
        try:
            writing.result()
        except BaseException:
            stop.set()
            raise


def _write(
    regions: Iterable[xr.DataTree],
    path: Path,
    affine: np.ndarray,
    attrs: Mapping[str, Any],
    stop: threading.Event,
) -> None:
    at = dict.fromkeys(GROWING, 0)
    with SurvivingFile(path) as disk:
        with ExitStack() as opened:
            file: Any = None
            for region in regions:
                tree = _prepared(region, at["voxel"], affine)
                if file is None:
                    tree.attrs = dict(attrs)
                    with _start(tree) as content:
                        disk.write(content)
                    if disk.error is None:
                        file = opened.enter_context(h5netcdf.File(disk, "r+"))
                else:
                    for group, node in tree.children.items():
                        _append(file[group], node.to_dataset(), at)
                    file.flush()
                if disk.error is not None or stop.is_set():
                    break
                at = {dim: at[dim] + tree["posterior"].sizes[dim] for dim in GROWING}
        if disk.error is not None:
            raise disk.error


def _prepared(region: xr.DataTree, first: int, affine: np.ndarray) -> xr.DataTree:
    """Count the voxels of a region from `first`, and note its attempts and the scan's affine."""
    groups = {str(name): node.to_dataset() for name, node in region.children.items()}
    for name, data in groups.items():
        if "voxel" in data.dims:
            groups[name] = data.assign_coords(voxel=np.arange(first, first + data.sizes["voxel"]))
    groups["constant_data"]["affine"] = (("row", "column"), affine, {"units": "mm"})
    groups["constant_data"]["attempts"] = ("roi", [int(region.attrs["attempts"])])
    return xr.DataTree.from_dict(groups)


def _start(tree: xr.DataTree) -> memoryview:
    """Make a file of the first region, that can grow."""
    encoding: dict[str, dict[str, Any]] = {}
    for name, node in tree.children.items():
        encoding[f"/{name}"] = {
            str(key): {"chunksizes": _chunks(variable)}
            for key, variable in node.variables.items()
            if set(variable.dims) & set(GROWING) and variable.size
        }
    limits = {
        f"/{name}": [dim for dim in GROWING if dim in node.sizes] for name, node in tree.children.items()
    }
    return tree_bytes(tree, encoding, limits)


def _chunks(variable: xr.Variable) -> tuple[int, ...]:
    if variable.ndim == 1:
        return (128,)
    return tuple(CHUNK.get(str(dim), size) for dim, size in variable.sizes.items())


def _append(group: Any, data: xr.Dataset, at: Mapping[str, int]) -> None:
    """Append a region to a group of the file."""
    for dim in GROWING:
        if dim in data.sizes:
            group.resize_dimension(dim, at[dim] + data.sizes[dim])
    for name, variable in data.variables.items():
        if not set(variable.dims) & set(GROWING):
            continue
        if name not in group.variables:  # as of a mixture, which a mean curve has not
            _create(group, str(name), data)
        target = group.variables[str(name)]
        where = tuple(
            slice(at[str(dim)], at[str(dim)] + size) if dim in GROWING else slice(None)
            for dim, size in variable.sizes.items()
        )
        values = variable.values
        target[where] = values.astype(object) if values.dtype.kind in "UT" else values.astype(target.dtype)


def _create(group: Any, name: str, data: xr.Dataset) -> None:
    """Add a variable that the regions before do not have: it is NaN there."""
    variable = data[name].variable
    made = group.create_variable(
        name, tuple(map(str, variable.dims)), variable.dtype, fillvalue=np.nan, chunks=_chunks(variable),
        compression="gzip", compression_opts=COMPRESSION["complevel"], shuffle=COMPRESSION["shuffle"],
    )  # fmt: skip
    made.attrs.update(variable.attrs)
    along = [str(key) for key in data[name].coords if key not in data.dims]
    if along:
        made.attrs["coordinates"] = " ".join(along)
