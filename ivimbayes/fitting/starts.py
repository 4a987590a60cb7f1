"""Starting points: modes of the population of a region."""

from dataclasses import dataclass

import numpy as np
import xarray as xr

from ivimbayes.fitting.mixture import MixtureStart
from ivimbayes.fitting.modes import PopulationMode, population_mode
from ivimbayes.fitting.packing import stretch_of
from ivimbayes.models.parameters import PARAMETERS
from ivimbayes.models.signals import SIGNALS, Signal
from ivimbayes.models.spec import S0_MEAN, S0_MEAN_SD, ModelSpec

STARTS = {name: parameter.starts for name, parameter in PARAMETERS.items()}  # of the mean, in prior widths
START_VOXELS, START_DISTANCE, START_SCREEN, START_EVIDENCE = 60, 0.1, 12.0, 1.5


@dataclass(frozen=True)
class RegionTask:
    """One region, ready to sample."""

    name: str
    voxels: xr.Dataset
    spec: ModelSpec
    scale: float
    starts: tuple[PopulationMode, ...]
    block: np.ndarray
    seconds: tuple[MixtureStart, ...] = ()
    pilot: np.ndarray | None = None  # with image effects: draws (draw, coordinate) of the hyperparameters

    @property
    def level(self) -> str:
        """Whether voxels or the mean curve are fitted."""
        return str(self.voxels.attrs["level"])


def population_starts(voxels: xr.Dataset, spec: ModelSpec, scale: float) -> tuple[PopulationMode, ...]:
    """Modes of the population that dispersed starting points lead to, the best first.

    They are sought on a part of the voxels. Modes that differ are refined on all voxels and kept where their
    Laplace evidence is within `START_EVIDENCE` of the best: chains that set out from a mode of little weight
    may stay there and say more about the start than about the posterior.
    """
    signal, averages, b = voxels["signal"].values / scale, voxels["averages"].values, voxels["b"].values
    part = np.unique(np.linspace(0, len(signal) - 1, START_VOXELS).astype(int))
    prior, found = spec.prior.theta(spec.signal), list[PopulationMode]()
    for offset in start_offsets(SIGNALS[spec.signal]):
        start = prior.centre + offset * prior.width
        mode = _mode(signal[part], averages[part], b, spec, start)
        if all(np.abs(mode.location - other.location).max() > START_DISTANCE for other in found):
            found.append(mode)
    plausible = max(mode.log_evidence for mode in found) - START_SCREEN
    refined = [
        mode if len(part) == len(signal) else _mode(signal, averages, b, spec, mode)
        for mode in found
        if mode.log_evidence > plausible
    ]
    refined.sort(key=lambda mode: -mode.log_evidence)
    return tuple(mode for mode in refined if mode.log_evidence > refined[0].log_evidence - START_EVIDENCE)


def start_offsets(signal: Signal) -> np.ndarray:
    """List starts of the mean of theta, in prior widths from the prior's centre, (start, parameter)."""
    offsets = [*zip(*(STARTS[name] for name in signal.parameters), strict=True)]
    if more := signal.tissue.start:
        offsets.append(tuple(more.get(name, 0.0) for name in signal.parameters))
    return np.array(offsets, float)


def _mode(
    signal: np.ndarray,
    averages: np.ndarray,
    b: np.ndarray,
    spec: ModelSpec,
    start: PopulationMode | np.ndarray,
) -> PopulationMode:
    return population_mode(signal, averages, b, spec.prior, start, spec.signal, spec.noise)


def start_point(task: RegionTask, chain: int, rng: np.random.Generator) -> np.ndarray:
    """Unconstrained starting point of a chain, near one of the region's modes."""
    mode, best = task.starts[chain % len(task.starts)], task.starts[0]
    sd = np.sqrt(np.diag(mode.covariance))
    z = 0.5 * rng.standard_normal(best.shift.shape)
    if task.pilot is not None:
        of_images = 0.5 * rng.standard_normal(len(best.effects))
        drawn = task.pilot[rng.integers(len(task.pilot))]
        middle, stretch = stretch_of(task.block)
        drawn = np.linalg.solve(stretch, drawn - middle)
        return np.concatenate([drawn, z.ravel(), of_images])
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
