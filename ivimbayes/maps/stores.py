"""Where the maps of a volume gather, block by block: memory, or a zarr store that outlives the run."""

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import xarray as xr

from ivimbayes.errors import InputError
from ivimbayes.io.text import read_json
from ivimbayes.maps.files import NAMES
from ivimbayes.voxelwise.status import MAPPED, SPACE, STATUS

Block = tuple[slice, slice, slice]
DONE = "blocks_done"  # an array in the store: 1 for each finished block
KEY, LAYOUT = "ivimbayes_key", "ivimbayes_layout"  # attributes of the store


def _layout(keep_draws: int) -> dict[str, tuple[tuple[str, ...], str, Any]]:
    """Dims, type and value outside of every variable."""
    layout: dict[str, tuple[tuple[str, ...], str, Any]] = {
        name: (SPACE, "float32", np.nan) for name in NAMES if name != "status"
    }
    layout["status"] = (SPACE, "uint8", STATUS["outside"])
    if keep_draws:
        layout |= {name: (("draw", *SPACE), "float32", np.nan) for name in MAPPED}
    return layout


class MapStore(Protocol):
    """Takes blocks of the size `box`, gives a Dataset."""

    box: tuple[int, ...]

    def has(self, block: Block) -> bool:
        """Whether a block is there from before."""

    def put(self, block: Block, maps: Mapping[str, np.ndarray]) -> None:
        """Take the maps of a block."""

    def finish(
        self, attrs: Mapping[str, Mapping[str, Any]], affine: np.ndarray, own: Mapping[str, Any]
    ) -> xr.Dataset:
        """Make the Dataset, with attributes of the variables and its own."""


class MemoryStore:
    """Maps in memory."""

    def __init__(self, shape: tuple[int, ...], box: tuple[int, ...], keep_draws: int):
        self.box, self.layout = box, _layout(keep_draws)
        self.arrays = {
            name: np.full((keep_draws, *shape) if dims[0] == "draw" else shape, outside, dtype)
            for name, (dims, dtype, outside) in self.layout.items()
        }

    def has(self, block: Block) -> bool:
        """Never."""
        return False

    def put(self, block: Block, maps: Mapping[str, np.ndarray]) -> None:
        """Take the maps of a block."""
        for name, values in maps.items():
            self.arrays[name][(..., *block)] = values

    def finish(
        self, attrs: Mapping[str, Mapping[str, Any]], affine: np.ndarray, own: Mapping[str, Any]
    ) -> xr.Dataset:
        """Make the Dataset."""
        data: dict[str, Any] = {
            name: (dims, self.arrays[name], attrs[name]) for name, (dims, _, _) in self.layout.items()
        }
        data["affine"] = (("row", "column"), affine, {"units": "mm"})
        return xr.Dataset(data, attrs=dict(own))


class ZarrStore:
    """Maps in a zarr store, one chunk a block.

    A block counts as done when its mark is written, after all its chunks. The store says by a key which
    scan, fit and settings it belongs to.
    """

    def __init__(
        self,
        path: Path,
        shape: tuple[int, ...],
        box: tuple[int, ...],
        keep_draws: int,
        key: str,
        renew: bool = False,
    ):
        self.path, self.box, self.layout = path, box, _layout(keep_draws)
        if path.exists() and not path.is_dir():
            raise InputError(f"{path}: a file is there; name another store")
        found = _key(path)
        if found is None and path.exists() and any(path.iterdir()):
            raise InputError(f"{path}: the folder holds other files; name another store, or move it away")
        if found is not None and found != key and not renew:
            raise InputError(
                f"{path}: holds maps of another scan, fit or setting; name another store or delete it"
            )
        if found != key or not self._open():
            if found == key and not renew:
                raise InputError(f"{path}: the store is damaged; delete it, and run again")
            self._lay_out(shape, keep_draws, key)
        self.marks = self.group[DONE]
        self.done = np.asarray(self.marks[...])

    def _open(self) -> bool:
        """Open the store of an earlier run; whether it is whole. Blocks that were damaged are undone."""
        import zarr

        try:
            self.group = zarr.open_group(self.path, mode="r+", zarr_format=3, use_consolidated=False)
            if self.group.attrs[LAYOUT] != self._layout_digest(self.path):
                return False
            self.box, marks = tuple(self.group["status"].chunks), self.group[DONE]
            for place in np.argwhere(np.asarray(marks[...])):
                i, j, k = (slice(at * n, (at + 1) * n) for at, n in zip(place, self.box, strict=True))
                if not self._is_whole((i, j, k)):
                    marks[tuple(place)] = 0
        except FileNotFoundError:
            return False
        except OSError:
            raise
        except Exception:  # what zarr raises on damaged files is not one kind
            return False
        return True

    def _layout_digest(self, path: Path) -> str:
        """Of the metadata of all arrays, without their attributes."""
        digest = hashlib.sha256()
        for name in (*self.layout, DONE):
            plain = read_json((path / name / "zarr.json").read_text(encoding="utf-8"))
            plain.pop("attributes", None)
            digest.update(json.dumps([name, plain], sort_keys=True).encode())
        return digest.hexdigest()

    def _is_whole(self, block: Block) -> bool:
        """Whether all chunks of a finished block are there and bear out their checksums."""
        try:
            place = [str(at) for at in self._place(block)]
            for name, (dims, _, _) in self.layout.items():
                chunk = self.path.joinpath(name, "c", *(["0"] if dims[0] == "draw" else []), *place)
                if not chunk.is_file():
                    return False
                self.group[name][(..., *block)]
            return True
        except (RuntimeError, ValueError, TypeError):
            return False

    def _lay_out(self, shape: tuple[int, ...], keep_draws: int, key: str) -> None:
        import zarr
        from zarr.codecs import Crc32cCodec, ZstdCodec

        unfinished = unfinished_store(self.path)  # of a run that was ended meanwhile
        remove_store(self.path)
        unfinished.mkdir(parents=True)
        self.group = zarr.create_group(unfinished, zarr_format=3)
        checked = [ZstdCodec(), Crc32cCodec()]
        for name, (dims, dtype, outside) in self.layout.items():
            lead = (keep_draws,) if dims[0] == "draw" else ()
            self.group.create_array(
                name, shape=(*lead, *shape), chunks=(*lead, *self.box), dtype=dtype, fill_value=outside,
                dimension_names=list(dims), compressors=checked,
            )  # fmt: skip
        self.group.create_array(
            DONE,
            shape=tuple(-(-n // size) for n, size in zip(shape, self.box, strict=True)),
            chunks=(1, 1, 1),
            dtype="uint8",
            fill_value=0,
            dimension_names=["block_x", "block_y", "block_z"],
            compressors=checked,
        )
        self.group.attrs.update({KEY: key, LAYOUT: self._layout_digest(unfinished)})
        unfinished.rename(self.path)
        self.group = zarr.open_group(self.path, mode="r+", zarr_format=3, use_consolidated=False)

    def _place(self, block: Block) -> tuple[int, ...]:
        return tuple(s.start // size for s, size in zip(block, self.box, strict=True))

    def has(self, block: Block) -> bool:
        """Whether a block was finished by an earlier run."""
        return bool(self.done[self._place(block)])

    def put(self, block: Block, maps: Mapping[str, np.ndarray]) -> None:
        """Write the maps of a block, then its mark."""
        import zarr

        try:
            with zarr.config.set({"array.write_empty_chunks": True}):  # one that is not there is lost
                for name, values in maps.items():
                    self.group[name][(slice(None),) * (values.ndim - 3) + block] = values
            self.marks[self._place(block)] = 1
        except KeyError:
            raise InputError(f"{self.path}: the store was removed while it was written; run again") from None

    def finish(
        self, attrs: Mapping[str, Mapping[str, Any]], affine: np.ndarray, own: Mapping[str, Any]
    ) -> xr.Dataset:
        """Write what is left, and open the store."""
        self.group.create_array(
            "affine", shape=affine.shape, dtype="float64", dimension_names=["row", "column"], overwrite=True
        )
        self.group["affine"][...] = affine
        for name, values in attrs.items():
            self.group[name].attrs.update(dict(values))
        self.group["affine"].attrs["units"] = "mm"
        self.group.attrs.update(dict(own))
        made = xr.open_zarr(self.path, chunks=None, consolidated=False, zarr_format=3, drop_variables=[DONE])
        del made.attrs[KEY], made.attrs[LAYOUT]
        return made


def unfinished_store(path: Path) -> Path:
    """Where a store is made, and where it goes to be removed."""
    return path.with_name(f".{path.name}.unfinished")


def remove_store(path: Path) -> None:
    """Remove a store; what is left of it if that is cut short is no store."""
    unfinished = unfinished_store(path)
    shutil.rmtree(unfinished, ignore_errors=True)
    if path.exists():
        path.rename(unfinished)
        shutil.rmtree(unfinished, ignore_errors=True)


def _key(path: Path) -> str | None:
    """Find the key that a store bears."""
    try:
        note = read_json((path / "zarr.json").read_text(encoding="utf-8"))
        return str(note["attributes"][KEY])
    except (OSError, ValueError, KeyError, TypeError):
        return None
