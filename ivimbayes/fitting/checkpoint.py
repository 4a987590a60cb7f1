"""Finished regions, kept in files and found again by a key of all they depend on."""

import dataclasses
import hashlib
import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xarray as xr

from ivimbayes.errors import InputError
from ivimbayes.fitting.plan import MANY_DEPTH, MANY_VOXELS, RETRY_ACCEPT, RETRY_BYTES, RETRY_FACTOR, Settings
from ivimbayes.fitting.starts import STARTS, RegionTask
from ivimbayes.io.digest import code_digest
from ivimbayes.io.netcdf import read_tree


@dataclass(frozen=True)
class FinishedRegion:
    """Draws of a region: in memory, or in a file that was written before."""

    tree: xr.DataTree | None
    path: Path | None = None
    key: str = ""

    def read(self) -> xr.DataTree:
        """Give the tree of the region.

        Raises
        ------
        InputError
            If its file is gone, or is not the one that was written.
        """
        if self.tree is not None:
            return self.tree
        assert self.path is not None
        with suppress(InputError):
            tree = read_tree(self.path)
            if tree.attrs.get("key") == self.key:
                return tree
        raise InputError(
            f"{self.path}: gone or changed since it was written; if another run of ivimbayes works there, "
            "wait for it, and run the same command again"
        )


def region_key(task: RegionTask, settings: Settings) -> str:
    """Digest of everything a region's draws depend on."""
    digest = hashlib.sha256(task.spec.to_json().encode())
    digest.update(json.dumps(dataclasses.asdict(settings)).encode())
    digest.update(code_digest().encode())
    digest.update(task.block.tobytes())
    for name in ("signal", "averages", "b", "x", "y", "z"):
        digest.update(np.ascontiguousarray(task.voxels[name].values).tobytes())
    digest.update(str((RETRY_ACCEPT, RETRY_FACTOR, RETRY_BYTES, MANY_VOXELS, MANY_DEPTH, STARTS)).encode())
    digest.update(str((task.scale, task.name, dict(task.voxels.attrs))).encode())
    return digest.hexdigest()


def checkpoint_file(checkpoint: str | Path, task: RegionTask) -> Path:
    """File of a region in a folder of checkpoints."""
    return Path(checkpoint) / f"region-{task.voxels.attrs['label']}.nc"


def find_finished(
    checkpoint: str | Path | None, task: RegionTask, key: str, load: bool
) -> FinishedRegion | None:
    """Find the result of an earlier run with the same key."""
    if checkpoint is None or not (path := checkpoint_file(checkpoint, task)).is_file():
        return None
    try:
        tree = read_tree(path)
    except InputError:
        return None
    return FinishedRegion(tree if load else None, path, key) if tree.attrs.get("key") == key else None
