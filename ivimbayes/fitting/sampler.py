"""The compiled density as a model for nutpie, and the samplers that run at a time."""

import math
import threading
from contextlib import suppress
from functools import cache
from typing import Any

import numba as nb
import numpy as np
import nutpie
import xarray as xr
from nutpie.compile_pymc import CompiledPyMCModel

from ivimbayes.fitting.density import log_density
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
from ivimbayes.fitting.starts import RegionTask
from ivimbayes.models.spec import S0_MEAN, S0_MEAN_SD
from ivimbayes.numerics.jit import c_function

POLL_SECONDS = 0.2


def sampler_model(block: np.ndarray, start: np.ndarray) -> CompiledPyMCModel:
    """Wrap a region's density for nutpie, with a starting point; its one variable is ``x``."""
    n = coordinates(block)
    density, copy = callbacks()
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


class Running:
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
    start = _start_point(task, chain, np.random.default_rng(seed))
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


def _start_point(task: RegionTask, chain: int, rng: np.random.Generator) -> np.ndarray:
    """Unconstrained starting point of a chain, near one of the region's modes."""
    mode, best = task.starts[chain % len(task.starts)], task.starts[0]
    sd = np.sqrt(np.diag(mode.covariance))
    z = 0.5 * rng.standard_normal(best.shift.shape)
    ln_sigma = np.log(mode.sigma) + 0.1 * rng.standard_normal()
    if task.level == "mean":  # the population is fixed: the mode's theta itself is the start
        P, Q = len(sd), best.shift.shape[1]
        precision = np.diag([*np.ones(P), *np.full(Q - P, 1 / S0_MEAN_SD**2)])
        precision[:P, :P] = np.linalg.inv(mode.covariance)
        A = precision + best.precision[0]
        mean, location = np.append(mode.mean, S0_MEAN)[:Q], np.append(mode.location, mode.S0[0])[:Q]
        centre = np.linalg.solve(A, precision @ mean + best.shift[0])
        z = z + np.linalg.cholesky(A).T @ (location - centre)
        return np.concatenate([[ln_sigma], z.ravel()])
    centre, second = mode.mean, np.zeros(0)
    if task.seconds:  # one of these instead of the mode, whose spread holds both populations
        found = task.seconds[chain % len(task.seconds)]
        centre, sd = found.mean, np.sqrt(np.diag(found.covariance))
        logit = np.log(found.share / (1 - found.share)) + 0.3 * rng.standard_normal()
        second = np.append(logit, found.shift / sd + 0.5 * rng.standard_normal(len(sd)))
    return np.concatenate(
        [
            centre + 2 * sd / np.sqrt(len(mode.S0)) * rng.standard_normal(len(sd)),
            np.log(sd) + 0.3 * rng.standard_normal(len(sd)),
            0.3 * rng.standard_normal(len(sd) * (len(sd) - 1) // 2),
            [np.mean(mode.S0), np.log(np.std(mode.S0) + 0.02), ln_sigma],
            second,
            z.ravel(),
        ]
    )


def _density_callback(size, x, gradient, logp, data):
    """Do `log_density` for a sampler: 0, or 3 where the density or its gradient is not finite."""
    block = nb.carray(data, (int(nb.carray(data, (1,), np.float64)[0]),), np.float64)
    slope = nb.carray(gradient, (size,))
    value = log_density(nb.carray(x, (size,)), slope, block)
    nb.carray(logp, (1,))[0] = value
    return 0 if math.isfinite(value) and np.isfinite(slope).all() else 3


def _copy_callback(size, expanded, x, out, data):
    """Keep the coordinates of a draw as they are."""
    nb.carray(out, (expanded,))[:] = nb.carray(x, (size,))
    return 0


@cache
def callbacks() -> tuple[Any, Any]:
    """C functions for the sampler, the density's and one that copies coordinates; each has an ``address``.

    Compiled at the first call on a machine; later processes load them, if they could be kept.
    """
    number = nb.types.CPointer(nb.types.float64)
    size, status, data = nb.types.uint64, nb.types.int64, nb.types.voidptr
    compiled = (
        c_function(status(size, number, number, number, data), _density_callback),
        c_function(status(size, size, number, number, data), _copy_callback),
    )
    return compiled
