"""Regions of many runs, sampled here or on dask workers; finished ones are kept in files."""

import hashlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from ivimbayes.errors import InputError, InputWarning
from ivimbayes.fitting.density import compile_density
from ivimbayes.fitting.fit import sample_region
from ivimbayes.fitting.plan import Settings
from ivimbayes.io.digest import code_digest
from ivimbayes.io.netcdf import read_tree, write_tree
from ivimbayes.models.spec import ModelSpec
from ivimbayes.parallel import connect, count_cores

WAITING = 32  # regions handed out at least, so that a cluster that grows with its queue sees one
Result = xr.DataTree | Exception


@dataclass(frozen=True)
class RegionJob:
    """A region of a run, ready to be sent to another machine.

    Attributes
    ----------
    run, name : str
        Names of the run and of the region.
    voxels : Dataset
        From `choose_voxels`.
    spec : ModelSpec
        Model with the region's prior.
    settings : Settings
        Length and seed of the chains.
    """

    run: str
    name: str
    voxels: xr.Dataset
    spec: ModelSpec
    settings: Settings

    @property
    def key(self) -> str:
        """Digest of everything the region's draws depend on."""
        plain = (
            self.spec.to_json(),
            asdict(self.settings),
            code_digest(),
            self.name,
            dict(self.voxels.attrs),
        )
        digest = hashlib.sha256(str(plain).encode())
        for name in ("signal", "averages", "b", "x", "y", "z"):
            digest.update(np.ascontiguousarray(self.voxels[name].values).tobytes())
        return digest.hexdigest()

    def file(self, folder: Path) -> Path:
        """Where its result is kept."""
        return folder / self.run / self.spec.signal / f"region-{self.voxels.attrs['label']}.nc"


@contextmanager
def open_workers(scheduler: Any = None, workers: int | None = None) -> Iterator[Any]:
    """Give a dask client: of a scheduler, or of worker processes of this machine; None for this process.

    Parameters
    ----------
    scheduler : str or distributed.Client, optional
        Address of a scheduler, or its client.
    workers : int, optional
        Processes on this machine when there is no scheduler; as many as cores when not given. With one, or
        where dask is not installed, regions are sampled in this process.

    Raises
    ------
    InputError
        If no scheduler answers, or dask is not installed.
    """
    count = count_cores() if workers is None else workers
    if count < 1:
        raise InputError(f"workers {count}; give 1 or more")
    if scheduler is not None:
        with connect(scheduler) as client:
            yield client
        return
    with_dask = find_spec("distributed") is not None
    if with_dask and count > 1 and find_spec("cryptography") is None:
        warnings.warn(
            "workers: dask is here without cryptography, so that all is sampled in this process; "
            "pip install 'ivimbayes[dask]'",
            InputWarning,
            stacklevel=4,
        )
        with_dask = False
    if count == 1 or not with_dask:
        yield None
        return
    from distributed import Client, LocalCluster

    compile_density("gaussian", False)  # once, before the workers ask for it
    options = {
        "n_workers": count,
        "threads_per_worker": 1,
        "dashboard_address": "127.0.0.1:0",
        "silence_logs": 50,
        "security": True,  # other users of this machine are kept out
    }
    with LocalCluster(**options) as cluster, Client(cluster) as client:
        yield client


def sample_jobs(jobs: Iterator[RegionJob], client: Any, folder: Path) -> Iterator[tuple[RegionJob, Result]]:
    """Sample regions and give each with its result, or with the error that ended it, as they are done.

    Parameters
    ----------
    jobs : iterator of RegionJob
        Read as workers ask for more.
    client : distributed.Client or None
        Whose workers sample, one region a task; None for this process, with a chain a core. A task whose
        worker is lost is given to another by the scheduler.
    folder : path
        Where finished regions are kept; those of the same `RegionJob.key` are taken from there.
    """
    if client is None:
        for job in jobs:
            if (kept := _kept(job, folder)) is not None:
                yield job, kept
                continue
            try:
                tree = _sample(job, count_cores())
            except Exception as error:  # of this region: it is reported with its run, the others go on
                yield job, error
            else:
                yield job, _keep(job, tree, folder)
        return
    yield from _on_workers(jobs, client, folder)


def _on_workers(jobs: Iterator[RegionJob], client: Any, folder: Path) -> Iterator[tuple[RegionJob, Result]]:
    from distributed import as_completed

    pending: dict[str, RegionJob] = {}
    running, more = as_completed(with_results=False), True
    while True:
        while more and len(pending) < max(WAITING, 2 * sum(client.nthreads().values())):
            following = next(jobs, None)
            if following is None:
                more = False
            elif (kept := _kept(following, folder)) is not None:
                yield following, kept
            else:
                future = client.submit(_sample, following, pure=False)
                pending[future.key] = following
                running.add(future)
        if not pending:
            return
        future = next(running)
        job = pending.pop(future.key)
        try:
            tree = future.result()
        except Exception as error:
            if client.status != "running":
                raise InputError(
                    f"scheduler: it was lost ({type(error).__name__}); start it and give the same command, "
                    "which continues with the regions that are finished"
                ) from None
            yield job, error
        else:
            yield job, _keep(job, tree, folder)


def _sample(job: RegionJob, cores: int = 1) -> xr.DataTree:
    tree = sample_region(job.name, job.voxels, job.spec, job.settings, cores)
    tree.attrs["key"] = job.key
    return tree


def _keep(job: RegionJob, tree: xr.DataTree, folder: Path) -> xr.DataTree:
    path = job.file(folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_tree(tree, path, hasty=True)
    return tree


def _kept(job: RegionJob, folder: Path) -> xr.DataTree | None:
    """Read the result of an earlier run with the same key."""
    if not (path := job.file(folder)).is_file():
        return None
    try:
        tree = read_tree(path)
    except InputError:  # cut short: it is sampled again
        return None
    return tree if tree.attrs.get("key") == job.key else None
