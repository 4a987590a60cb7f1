"""One block of a volume: the kernel on its voxels, label by label, and a status for each."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.stats import chi2

from ivimbayes.io.digest import code_digest
from ivimbayes.maps.files import NAMES
from ivimbayes.maps.populations import PopulationDraws
from ivimbayes.numerics.steps import make_acquisition, sum_by_b
from ivimbayes.voxelwise.draws import PopulationBlock, make_draws
from ivimbayes.voxelwise.points import make_points
from ivimbayes.voxelwise.posterior import (
    COLUMNS,
    EFFECTIVE,
    EVIDENCE,
    FIELDS,
    K_HAT,
    SQUARE,
    load_kernel,
    voxel_posteriors,
)
from ivimbayes.voxelwise.status import FEW_DRAWS, K_DOUBTFUL, K_FAILED, MAPPED, STATUS
from ivimbayes.voxelwise.summaries import BANDWIDTH
from ivimbayes.voxelwise.workspace import WIDTH, make_work

ROBUST_FACTOR, MONO_DRAWS = 8, 64
SOME = 4 * WIDTH  # population draws over which a fitted voxel's posterior is averaged
MISFIT = 1e-6


@dataclass(frozen=True)
class Task:
    """Everything that the maps of a block depend on besides its signals and labels; can be pickled."""

    b: np.ndarray
    averages: np.ndarray
    populations: Mapping[int, PopulationDraws]
    shape: tuple[int, ...]
    noise: str
    real_valued: bool
    interval: float
    keep_draws: int
    perfusion_prior: float
    draws: int
    seed: int

    @cached_property
    def _blocks(self) -> dict[int, tuple[float, PopulationBlock, PopulationBlock, PopulationBlock]]:
        return {}

    def laid_out(self, label: int) -> tuple[float, PopulationBlock, PopulationBlock, PopulationBlock]:
        """Scale of a label's signals; its population's draws for the first pass, some, and for the second."""
        if label not in self._blocks:
            p = self.populations[label]
            scale = float(np.median(p.S0))
            first, some, second = (
                make_draws(
                    p.mean, p.covariance, p.sigma / scale, p.S0 / scale, p.S0_sd / scale, self.averages, n,
                    nu=p.nu, rician=self.noise == "rician", seed=self.seed,
                )
                for n in (self.draws, SOME, ROBUST_FACTOR * self.draws)
            )  # fmt: skip
            self._blocks[label] = scale, first, some, second
        return self._blocks[label]

    @cached_property
    def digest(self) -> str:
        """Of everything in it."""
        digest = hashlib.sha256(code_digest().encode())
        for name in (
            "shape",
            "noise",
            "real_valued",
            "interval",
            "keep_draws",
            "perfusion_prior",
            "draws",
            "seed",
        ):
            digest.update(repr(getattr(self, name)).encode())
        arrays = [self.b, self.averages]
        for label, p in sorted(self.populations.items()):
            digest.update(repr((label, p.names, p.nu, p.verdict)).encode())
            arrays += [p.mean, p.covariance, p.sigma, p.S0, p.S0_sd, p.own, p.own_signal]
        for array in arrays:
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()


def map_block(
    signal: np.ndarray, labels: np.ndarray, start: tuple[int, int, int], task: Task
) -> dict[str, np.ndarray]:
    """Map one block.

    Parameters
    ----------
    signal : ndarray (x, y, z, measurement)
    labels : ndarray (x, y, z)
    start : tuple of int
        Where the block begins in the volume.
    task : Task

    Returns
    -------
    dict of str to ndarray
        Every map (x, y, z), and kept draws (draw, x, y, z).
    """
    shape, signal = labels.shape, np.asarray(signal, np.float32)
    result = {name: np.full(shape, np.nan, np.float32) for name in NAMES if name != "status"}
    result["status"] = np.full(shape, STATUS["outside"], np.uint8)
    result |= {
        name: np.full((task.keep_draws, *shape), np.nan, np.float32) for name in MAPPED if task.keep_draws
    }
    lowest = -np.inf if task.real_valued else 0.0
    usable = (np.isfinite(signal) & (signal > lowest)).all(axis=-1)
    result["status"][(labels != 0) & ~usable] = STATUS["bad_signal"]
    for label in np.unique(labels[labels != 0]).tolist():
        here = np.nonzero((labels == label) & usable)
        if len(here[0]):
            population = task.populations[label]
            where = np.stack(here, axis=1) + np.array(start)
            found = np.ascontiguousarray(signal[here], dtype=float)
            out, kept = _voxels(found, where, label, task)
            _fill(result, here, out, kept, population, task)
    return result


def _voxels(signal: np.ndarray, where: np.ndarray, label: int, task: Task) -> tuple[np.ndarray, np.ndarray]:
    """Run the kernel on voxels of one label: its columns and the kept draws, in signal units."""
    population = task.populations[label]
    rician = task.noise == "rician"
    dims, count, seed = 4 if rician else 3, task.draws, task.seed
    acquisition = make_acquisition(task.b, task.averages)
    scale, draws, some_draws, more_draws = task.laid_out(label)
    load_kernel(rician, population.nu > 0)
    y = signal / scale
    weighted = y * task.averages
    merged = sum_by_b(weighted, acquisition.place, len(acquisition.b))
    out = np.empty((len(y), COLUMNS))
    kept = np.empty((len(y), 4, task.keep_draws))
    voxel_posteriors(
        merged, y, (weighted * y).sum(axis=1), np.ravel_multi_index(tuple(where.T), task.shape),
        _own(signal, where, population), acquisition, draws, some_draws, more_draws,
        make_points(dims, count, seed), make_points(dims, ROBUST_FACTOR * count, seed),
        make_points(dims - 2, MONO_DRAWS, seed), task.interval, BANDWIDTH, seed,
        make_work(acquisition, ROBUST_FACTOR * count), out, kept,
    )  # fmt: skip
    out[:, 3 * FIELDS : 4 * FIELDS] *= scale
    kept[:, 3] *= scale
    return out, kept


def _own(signal: np.ndarray, where: np.ndarray, population: PopulationDraws) -> np.ndarray:
    """Whether each voxel was among those fitted, at the same place with the same signals."""
    own = np.zeros(len(signal), bool)
    if len(population.own) and population.own_signal.shape[1] == signal.shape[1]:
        reach = 1 + np.maximum(where.max(axis=0), population.own.max(axis=0))
        places, fitted = (np.ravel_multi_index(tuple(p.T), tuple(reach)) for p in (where, population.own))
        _, here, mine = np.intersect1d(places, fitted, return_indices=True)
        own[here] = np.isclose(population.own_signal[mine], signal[here], rtol=1e-5).all(axis=1)
    return own


def _fill(
    result: dict[str, np.ndarray],
    here: tuple[np.ndarray, ...],
    out: np.ndarray,
    kept: np.ndarray,
    population: PopulationDraws,
    task: Task,
) -> None:
    """Put the kernel's columns into the maps, and judge them."""
    k, effective = out[:, K_HAT], out[:, EFFECTIVE]
    numbers = np.isfinite(out[:, : 4 * FIELDS]).all(axis=1)
    failed = ~numbers | ~(k <= K_FAILED) | (population.verdict == "failed")
    doubtful = ~(k <= K_DOUBTFUL) | (effective < FEW_DRAWS) | (population.verdict == "doubtful")
    if task.noise == "gaussian":
        doubtful |= out[:, SQUARE] > chi2.isf(MISFIT, len(task.b) - 1)
    status = np.where(failed, STATUS["failed"], np.where(doubtful, STATUS["doubtful"], STATUS["ok"]))
    result["status"][here] = status
    good = ~failed
    inside = tuple(axis[good] for axis in here)
    for p, name in enumerate(MAPPED):
        for s, summary in enumerate(("mean", "sd", "median", "hdi_low", "hdi_high")):
            result[f"{name}_{summary}"][inside] = out[good, FIELDS * p + s]
        result[f"{name}_contraction"][inside] = 1 - out[good, FIELDS * p + 1] ** 2 / population.variance[p]
        if task.keep_draws:
            result[name][:, inside[0], inside[1], inside[2]] = kept[good, p].T
    result["pareto_k"][here] = np.where(np.isfinite(k) | (k < 0), np.maximum(k, -10), np.nan)
    result["ess"][here] = effective
    odds = out[good, EVIDENCE] + np.log(task.perfusion_prior / (1 - task.perfusion_prior))
    result["p_perfusion"][inside] = 1 / (1 + np.exp(-np.clip(odds, -700, 700)))
