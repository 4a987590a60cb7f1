"""The blocks of a volume, read and computed one after another: in threads, or on dask workers."""

from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any

import numpy as np
import xarray as xr

from ivimbayes.errors import InputError
from ivimbayes.maps.blocks import Task, map_block
from ivimbayes.maps.populations import PopulationDraws
from ivimbayes.maps.stores import MapStore
from ivimbayes.parallel import count_cores
from ivimbayes.progress import MapProgress
from ivimbayes.voxelwise.posterior import load_kernel
from ivimbayes.voxelwise.workspace import WIDTH

SLAB_BYTES = 128_000_000  # of signals read at a time
ATTEMPTS = 3  # at a block on workers, before the run gives up
Block = tuple[slice, slice, slice]


def compile_kernel(noise: str, student: bool) -> None:
    """Compile or load the kernel, before threads ask for it."""
    load_kernel(noise == "rician", student)
    one, identity = np.ones(2), np.stack([np.eye(3)] * 2)
    small = PopulationDraws(
        ("",),
        np.zeros((2, 3)),
        identity,
        one,
        one,
        one,
        0.0,
        "converged",
        np.empty((0, 3), int),
        np.empty((0, 4)),
    )
    b = np.array([0.0, 50.0, 200.0, 800.0])
    task = Task(b, np.ones(4), {1: small}, (1, 1, 1), noise, False, 0.95, 0, 0.5, WIDTH, 0)
    map_block(np.ones((1, 1, 1, 4), np.float32), np.ones((1, 1, 1), int), (0, 0, 0), task)


def run_here(
    scan: xr.Dataset, labels: np.ndarray, todo: list[Block], task: Task, sink: MapStore, bar: MapProgress,
    cores: int | None,
) -> None:  # fmt: skip
    """Compute the blocks in threads."""
    pool = ThreadPoolExecutor(cores or count_cores())
    bar.stage("mapping")
    try:
        for group, signal, first in _slabs(scan, todo):
            pending: dict[Future[Any], Block] = {}
            for block in group:
                i, j, k = block
                part = signal[i, j, k.start - first : k.stop - first]
                pending[pool.submit(map_block, part, labels[block], _start(block), task)] = block
            while pending:
                done, _ = wait(pending, return_when=FIRST_COMPLETED)
                for future in done:
                    block = pending.pop(future)
                    sink.put(block, future.result())
                    bar.advance(int((labels[block] != 0).sum()))
    except BaseException:
        pool.shutdown(wait=True, cancel_futures=True)
        raise
    pool.shutdown()


def run_on_workers(
    scan: xr.Dataset, labels: np.ndarray, todo: list[Block], task: Task, sink: MapStore, bar: MapProgress,
    client: Any,
) -> None:  # fmt: skip
    """Compute the blocks on the workers of a dask scheduler, a few for each at a time."""
    from distributed import as_completed

    bar.stage("mapping on workers")
    shared = client.scatter(task, broadcast=True)
    lazy = scan["signal"].chunks is not None
    pending: dict[Any, tuple[Block, Any, int]] = {}
    running = as_completed(with_results=False)

    def submit(block: Block, signal: Any, attempt: int) -> None:
        source = client.compute(signal) if lazy else client.scatter(signal)
        future = client.submit(map_block, source, labels[block], _start(block), shared, pure=False)
        pending[future.key] = block, signal, attempt
        running.add(future)

    blocks = iter(_read_blocks(scan, todo, lazy))
    for _, (block, signal) in zip(range(2 * sum(client.nthreads().values())), blocks, strict=False):
        submit(block, signal, 1)
    for future in running:
        block, signal, attempt = pending.pop(future.key)
        try:
            maps = future.result()
        except Exception as error:
            if attempt == ATTEMPTS:
                raise InputError(
                    f"scheduler: a block failed {ATTEMPTS} times on its workers "
                    f"({type(error).__name__}: {error}); see to them and run again; a store keeps its blocks"
                ) from None
            submit(block, signal, attempt + 1)
            continue
        sink.put(block, maps)
        bar.advance(int((labels[block] != 0).sum()))
        if (following := next(blocks, None)) is not None:
            submit(*following, 1)


def _slabs(scan: xr.Dataset, todo: list[Block]) -> Iterator[tuple[list[Block], np.ndarray, int]]:
    """Blocks that are read together, their signals (x, y, z, measurement) and the slab's first slice.

    Volumes are read one after another, as they lie in the file.
    """
    x, y, _, K = scan["signal"].shape
    a_slice = 4 * x * y * K
    at = 0
    while at < len(todo):
        first, last = todo[at][2].start, todo[at][2].stop
        group = [todo[at]]
        at += 1
        while at < len(todo) and (todo[at][2].stop - first) * a_slice <= max(
            SLAB_BYTES, (last - first) * a_slice
        ):
            group.append(todo[at])
            last = todo[at][2].stop
            at += 1
        signal = np.empty((x, y, last - first, K), np.float32)
        for k in range(K):
            signal[..., k] = scan["signal"].isel(measurement=k, z=slice(first, last)).values
        yield group, signal, first


def _read_blocks(scan: xr.Dataset, todo: list[Block], lazy: bool) -> Iterator[tuple[Block, Any]]:
    if lazy:
        for block in todo:
            yield block, scan["signal"].data[block]
        return
    for group, signal, first in _slabs(scan, todo):
        for i, j, k in group:
            yield (i, j, k), np.ascontiguousarray(signal[i, j, k.start - first : k.stop - first])


def _start(block: Block) -> tuple[int, int, int]:
    i, j, k = block
    return i.start, j.start, k.start
