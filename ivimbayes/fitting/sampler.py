"""The compiled density as a model for nutpie, and the samplers that run at a time."""

import threading
from contextlib import suppress
from typing import Any

import numpy as np
import nutpie
import xarray as xr
from nutpie.compile_pymc import CompiledPyMCModel

from ivimbayes.fitting.density import callbacks
from ivimbayes.fitting.packing import coordinates
from ivimbayes.fitting.plan import (
    DEPTH,
    MANY_DEPTH,
    MANY_VOXELS,
    RETRY_ACCEPT,
    RETRY_BYTES,
    RETRY_FACTOR,
    Settings,
)
from ivimbayes.fitting.starts import RegionTask, start_point

POLL_SECONDS = 0.2


def sampler_model(block: np.ndarray, start: np.ndarray) -> CompiledPyMCModel:
    """Wrap a region's density for nutpie, with a starting point; its one variable is ``x``."""
    n = coordinates(block)
    density, copy = callbacks(block)
    return CompiledPyMCModel(
        dims={},
        compiled_logp_func=density,
        compiled_expand_func=copy,
        initial_point_func=lambda _: start,
        shared_data={},
        shared_var_keys={},
        user_data=block,
        n_expanded=n,
        shape_info=(["x"], [slice(0, n)], [(n,)]),
        logp_func=None,
        expand_func=None,
        reparameterized_names=[],
        _n_dim=n,
        _shapes={"x": (n,)},
        _coords={},
    )


class SamplerPool:
    """Runs samplers, and ends those at work when the fit is interrupted."""

    def __init__(self) -> None:
        self.stopped = threading.Event()

    def run(self, partial: bool = False, **options: Any) -> xr.DataTree:
        """Sample one chain, polling, since a sampler cannot be ended while another thread waits for it.

        Stopped, it gives the draws so far, if a `partial` chain is of use.
        """
        sampler = nutpie.sample(blocking=False, progress_bar=False, save_warmup=False, **options)
        while not self.stopped.is_set():
            with suppress(TimeoutError):
                return sampler.wait(timeout=POLL_SECONDS)
        if partial:
            return sampler.abort()
        sampler.cancel()
        raise InterruptedError("sampling was stopped")

    def stop(self) -> None:
        """End every sampler at its next poll."""
        self.stopped.set()


def chain_options(task: RegionTask, settings: Settings, chain: int, attempt: int = 1) -> dict[str, Any]:
    """Give what `nutpie.sample` takes for a chain of a region; a second attempt is longer and steps finer."""
    factor = 1 if attempt == 1 else retry_factor(task, settings)
    many = attempt == 1 and task.voxels.sizes["voxel"] >= MANY_VOXELS
    accept = settings.target_accept
    seed = np.random.SeedSequence([settings.seed, int(task.voxels.attrs["label"]), chain, attempt])
    start = start_point(task, chain, np.random.default_rng(seed))
    return {
        "compiled_model": sampler_model(task.block, start), "chains": 1, "cores": 1,
        "draws": settings.draws * factor, "tune": settings.tune * factor,
        "target_accept": accept if attempt == 1 else max(RETRY_ACCEPT, accept),
        "maxdepth": MANY_DEPTH if many else DEPTH, "seed": int(seed.generate_state(1)[0]),
    }  # fmt: skip


def retry_factor(task: RegionTask, settings: Settings) -> int:
    """How many times the draws a second attempt takes: fewer where they would not fit `RETRY_BYTES`."""
    size = 8 * settings.chains * settings.draws * coordinates(task.block)
    return min(RETRY_FACTOR, int(RETRY_BYTES / size))
