"""Cores of this machine, and workers of a dask scheduler."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ivimbayes.errors import InputError

ANSWER = "5s"  # how long to wait for a scheduler


def count_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def connect(scheduler: Any) -> Iterator[Any]:
    """Give a client of the scheduler; None for None."""
    if scheduler is None or not isinstance(scheduler, str):
        yield scheduler
        return
    try:
        from distributed import Client
    except ImportError:
        raise InputError("scheduler: dask is not installed; pip install 'ivimbayes[dask]'") from None
    try:
        client = Client(scheduler, timeout=ANSWER)
    except (OSError, ValueError, TimeoutError) as error:
        raise InputError(
            f"scheduler {scheduler}: no dask scheduler answers there ({error}); give its address"
        ) from None
    with client:
        if not client.nthreads():
            raise InputError(f"scheduler {scheduler}: it has no workers; start some with dask worker")
        yield client
