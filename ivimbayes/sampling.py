"""Fit: choose voxels, sample by NUTS, collect. Each region is a fit of its own."""

import dataclasses
import hashlib
import json
import os
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import nutpie
import xarray as xr
from nutpie.compile_pymc import CompiledPyMCModel

from ivimbayes.collect import collect_region, join_regions
from ivimbayes.convergence import measure_chains
from ivimbayes.density import callbacks, coordinates, pack_region
from ivimbayes.errors import InputError
from ivimbayes.interruption import LEAST, FitInterrupted, Interrupted, cut_chains, cut_regions
from ivimbayes.io.append import write_regions
from ivimbayes.io.digest import code_digest
from ivimbayes.io.netcdf import open_tree, read_tree, write_tree
from ivimbayes.models.noise import NOISES
from ivimbayes.models.priors import TissuePrior
from ivimbayes.models.signals import SIGNALS
from ivimbayes.models.spec import S0_MEAN, S0_MEAN_SD, ModelSpec, model_data, region_priors, signal_scale
from ivimbayes.modes import Population, population_mode
from ivimbayes.progress import FitProgress
from ivimbayes.protocol.check import require_protocol
from ivimbayes.regions import Region
from ivimbayes.second import Second, find_second
from ivimbayes.voxels import VOXELS_PER_ROI, choose_voxels

DRAWS, TUNE, CHAINS, TARGET_ACCEPT = 1000, 500, 4, 0.85
RETRY_ACCEPT, RETRY_FACTOR, RETRY_BYTES = 0.95, 12, 2e9
MANY_VOXELS, MANY_DEPTH, DEPTH = 500, 4, 10  # 15 steps cross the posterior of many voxels, 31 turn back
POLL_SECONDS = 0.2
JOINED, INTERRUPTED = "posterior.nc", "interrupted.nc"
STARTS = {  # of the mean, in prior widths; the last for kurtosis, for which slow D and large f can stand
    "f": (0, 1, -1, -0.5, 0), "f_fast": (0, -0.5, 0.5, 0.5, 0), "D": (0, -0.5, 0.5, 0.5, 0.5),
    "D_star": (0, -1, 0.5, 1, -1), "D_star_fast": (0, -0.5, 0.5, 0, 0), "K": (0, 0.5, -0.5, 1, 2),
}  # fmt: skip
START_VOXELS, START_DISTANCE, START_SCREEN, START_EVIDENCE = 60, 0.1, 12.0, 1.5


@dataclass(frozen=True)
class Settings:
    """Length and seed of a region's chains."""

    draws: int = DRAWS
    tune: int = TUNE
    chains: int = CHAINS
    target_accept: float = TARGET_ACCEPT
    seed: int = 0
    retry: bool = True

    def __post_init__(self) -> None:
        for name, least in (("draws", LEAST), ("tune", LEAST), ("chains", 2), ("seed", 0)):
            if getattr(self, name) < least:
                raise InputError(f"{name} {getattr(self, name)}; give {least} or more")
        if not 0.5 <= self.target_accept < 1:
            raise InputError(f"target_accept {self.target_accept:g}; give a number from 0.5 to below 1")


@dataclass(frozen=True)
class Plan:
    """What a fit samples: voxels and prior of each region, the model, and the chains' settings."""

    chosen: Mapping[str, xr.Dataset]
    spec: ModelSpec
    priors: Mapping[str, TissuePrior]
    settings: Settings


@dataclass(frozen=True)
class RegionTask:
    """One region, ready to sample."""

    name: str
    voxels: xr.Dataset
    spec: ModelSpec
    scale: float
    starts: tuple[Population, ...]
    block: np.ndarray
    seconds: tuple[Second, ...] = ()

    @property
    def level(self) -> str:
        """Whether voxels or the mean curve are fitted."""
        return str(self.voxels.attrs["level"])


def fit(
    scan: xr.Dataset,
    spec: ModelSpec | None = None,
    *,
    tissue: Mapping[str, str] | None = None,
    priors: Mapping[str, TissuePrior] | str | Path | None = None,
    voxels_per_roi: int | None = VOXELS_PER_ROI,
    downsample: int | Sequence[int] = 1,
    level: str = "voxel",
    draws: int = DRAWS,
    tune: int = TUNE,
    chains: int = CHAINS,
    target_accept: float = TARGET_ACCEPT,
    seed: int = 0,
    retry: bool = True,
    cores: int | None = None,
    progress: bool = True,
    checkpoint: str | Path | None = None,
    load: bool = True,
) -> xr.DataTree:
    """Sample the posterior of every region of a scan.

    Parameters
    ----------
    scan : Dataset
        From `read_scan`.
    spec : ModelSpec, optional
        Model. Its prior, when it is not the generic one, is used for every region that `tissue` does not
        name.
    tissue : mapping of str to str, optional
        Tissue by region name, ``"*"`` for all others. A region not named takes the tissue its name speaks
        of, or the generic prior.
    priors : mapping or path, optional
        Tissues to choose from, or a file of them; the package's own when not given.
    voxels_per_roi, downsample, level
        As in `choose_voxels`.
    draws, tune, chains, target_accept
        Draws kept and discarded in each chain, chains, and NUTS acceptance.
    retry : bool
        Sample a region that has not converged once more, with twelve times the draws (fewer, or not at all,
        where thousands of voxels would fill the memory; thinned to `draws`) and acceptance 0.95.
    seed : int
        The same seed gives the same draws, whatever the number of cores.
    cores : int, optional
        Chains that run at a time, over all regions; all cores when not given.
    progress : bool
        Show a bar for each region.
    checkpoint : path, optional
        Folder in which finished regions are kept; a later call with the same input continues from there.
    load : bool
        Give the draws in memory. If not, which needs a checkpoint, they stay in ``posterior.nc`` there, and
        are read as they are used: then the memory does not grow with the number of regions.

    Returns
    -------
    DataTree
        Groups ``posterior``, ``prior``, ``posterior_predictive``, ``prior_predictive``, ``log_likelihood``,
        ``sample_stats``, ``observed_data`` and ``constant_data``. In ``posterior``: ``f``, ``D``, ``D_star``,
        ``S0`` (chain, draw, voxel); ``f_roi``, ``D_roi``, ``D_star_roi``, ``sigma``, ``S0_roi``, ``S0_sd``
        (chain, draw, roi); ``mu``, ``sd`` (chain, draw, roi, parameter) and ``correlation`` (chain, draw,
        roi, pair) of theta. Predictive groups hold fewer draws.

    Raises
    ------
    InputError
        If an option is out of range or a region cannot be fitted; nothing is sampled then.
    FitInterrupted
        A `KeyboardInterrupt` that holds the draws so far.
    """
    spec = ModelSpec() if spec is None else spec
    settings = Settings(draws, tune, chains, target_accept, seed, retry)
    cores = len(os.sched_getaffinity(0)) if cores is None and hasattr(os, "sched_getaffinity") else cores
    cores = os.cpu_count() or 1 if cores is None else cores
    if cores < 1:
        raise InputError(f"cores {cores}; give 1 or more")
    if not load and checkpoint is None:
        raise InputError("load False: the draws stay in the folder checkpoint; give one")
    plan = plan_fit(
        scan, spec, settings, tissue=tissue, priors=priors, voxels_per_roi=voxels_per_roi,
        downsample=downsample, level=level,
    )  # fmt: skip
    require_protocol(scan, spec.signal)
    with FitProgress(list(plan.chosen), settings.chains * (settings.draws + settings.tune), progress) as bars:
        tasks = _prepare(plan.chosen, spec, plan.priors, bars)
        try:
            results = _sample_all(tasks, settings, cores, bars, checkpoint, load)
        except Interrupted as stop:
            raise _interruption(stop.regions, scan, plan, checkpoint) from None
        if load:
            return finish_fit({name: region.read() for name, region in results.items()}, scan, plan)
        assert checkpoint is not None
        (Path(checkpoint) / INTERRUPTED).unlink(missing_ok=True)
        bars.stage(tasks[-1].name, "all regions are being joined")
        tree = finish_file(results, scan, plan, Path(checkpoint) / JOINED)
        bars.stage(tasks[-1].name, "done")
        return tree


def plan_fit(
    scan: xr.Dataset,
    spec: ModelSpec,
    settings: Settings,
    *,
    tissue: Mapping[str, str] | None = None,
    priors: Mapping[str, TissuePrior] | str | Path | None = None,
    voxels_per_roi: int | None = VOXELS_PER_ROI,
    downsample: int | Sequence[int] = 1,
    level: str = "voxel",
) -> Plan:
    """Choose the voxels of a fit and the priors of its regions; what cannot be fitted is refused here.

    Parameters and errors are those of `fit`.
    """
    chosen = choose_voxels(
        scan, voxels_per_roi=voxels_per_roi, downsample=downsample, level=level, seed=settings.seed
    )
    assigned = region_priors(list(chosen), spec, tissue, priors)
    for prior in {prior.name: prior for prior in assigned.values()}.values():
        require_protocol(scan, spec.signal, prior, warn=False)
    if NOISES[spec.noise].magnitude and scan.attrs.get("real_valued"):
        raise InputError(
            "noise rician: the images are real-valued, whose noise is gaussian; choose one of the two"
        )
    return Plan(chosen, spec, assigned, settings)


def sample_region(
    name: str, voxels: xr.Dataset, spec: ModelSpec, settings: Settings, cores: int = 1
) -> xr.DataTree:
    """Sample one region of a plan by itself, here or on another machine: the same draws as in `fit`.

    Parameters
    ----------
    name : str
        Of the region.
    voxels : Dataset
        ``signal``, ``averages`` (voxel, measurement), as `choose_voxels` gives them.
    spec : ModelSpec
        Model with the region's prior.
    settings : Settings
        Length and seed of the chains.
    cores : int
        Chains that run at a time.
    """
    with FitProgress([name], settings.chains * (settings.draws + settings.tune), False) as bars:
        task = prepare_region(name, voxels, spec, signal_scale(voxels["signal"].values))
        return _sample_all([task], settings, cores, bars, None, True)[name].read()


def finish_fit(results: Mapping[str, xr.DataTree], scan: xr.Dataset, plan: Plan) -> xr.DataTree:
    """Join the regions of a plan, in its order, and say in attributes how they were made."""
    tree = join_regions({name: results[name] for name in plan.chosen if name in results}, scan)
    tree.attrs |= describe_fit(scan, plan)
    return tree


def finish_file(
    results: Mapping[str, Region], scan: xr.Dataset, plan: Plan, path: Path, **attrs: str
) -> xr.DataTree:
    """Join the regions of a plan like `finish_fit`, but in a file, which is then open."""
    for left in (path, *path.parent.glob(".part-*.nc")):  # of a run that was ended
        left.unlink(missing_ok=True)
    trees = (results[name].read() for name in plan.chosen if name in results)
    write_regions(trees, path, scan["affine"].values, describe_fit(scan, plan) | attrs)
    return open_tree(path, check=False)


def describe_fit(scan: xr.Dataset, plan: Plan) -> dict[str, Any]:
    """Attributes of a fit: what was fitted, and how."""
    return {
        "spec": plan.spec.to_json(),
        "priors": json.dumps({name: prior.to_dict() for name, prior in plan.priors.items()}),
        "settings": json.dumps(dataclasses.asdict(plan.settings)),
        "versions": json.dumps(
            {p: version(p) for p in ("ivimbayes", "pymc", "nutpie", "arviz", "numpy", "numba")}
        ),
        "inputs": scan.attrs.get("inputs", "{}"),
        "source": scan.attrs.get("source", ""),
        "real_valued": int(scan.attrs.get("real_valued", 0)),
        "seed": plan.settings.seed,
    }


def _prepare(
    chosen: Mapping[str, xr.Dataset], spec: ModelSpec, priors: Mapping[str, TissuePrior], bars: FitProgress
) -> list[RegionTask]:
    """Find the modes that each region starts from, around the best of which its sampling space is laid."""
    tasks = []
    for name, voxels in chosen.items():
        bars.stage(name, "starting points")
        scale = signal_scale(voxels["signal"].values)
        tasks.append(prepare_region(name, voxels, spec.with_prior(priors[name]), scale))
    return tasks


def prepare_region(name: str, voxels: xr.Dataset, spec: ModelSpec, scale: float) -> RegionTask:
    """Find the modes of a region, whose signals are divided by `scale`, and pack its data."""
    starts = _starts(voxels, spec, scale)
    block = pack_region(model_data(voxels, spec, starts[0], scale), spec, voxels.attrs["level"])
    mixed = spec.population == "mixture" and voxels.attrs["level"] == "voxel"
    seconds = find_second(starts[0], spec) if mixed else ()
    return RegionTask(name, voxels, spec, scale, starts, block, seconds)


def _starts(voxels: xr.Dataset, spec: ModelSpec, scale: float) -> tuple[Population, ...]:
    """Modes of the population that dispersed starting points lead to, the best first.

    They are sought on a part of the voxels. Modes that differ are refined on all voxels and kept where their
    Laplace evidence is within `START_EVIDENCE` of the best: chains that set out from a mode of little weight
    may stay there and say more about the start than about the posterior.
    """
    signal, averages, b = voxels["signal"].values / scale, voxels["averages"].values, voxels["b"].values
    part = np.unique(np.linspace(0, len(signal) - 1, START_VOXELS).astype(int))
    prior, found = spec.prior.theta(spec.signal), list[Population]()
    offsets = np.array([STARTS[name] for name in SIGNALS[spec.signal].parameters]).T
    for offset in offsets if SIGNALS[spec.signal].kurtosis else offsets[:-1]:
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


def _mode(
    signal: np.ndarray, averages: np.ndarray, b: np.ndarray, spec: ModelSpec, start: Population | np.ndarray
) -> Population:
    return population_mode(signal, averages, b, spec.prior, start, spec.signal, spec.noise)


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


def _sample_all(
    tasks: list[RegionTask],
    settings: Settings,
    cores: int,
    bars: FitProgress,
    checkpoint: str | Path | None,
    load: bool,
) -> dict[str, Region]:
    """Sample every chain of every region, `cores` at a time; collect a region when its chains are done.

    Regions are begun when there is little left to do for the cores. Those kept on the disk are read again
    later, unless they are to be loaded.
    """
    results: dict[str, Region] = {}
    running = Running()
    pool = ThreadPoolExecutor(cores)
    try:
        pending: dict[Future[Any], tuple[RegionTask, int, int]] = {}
        parts: dict[tuple[str, int], dict[int, Any]] = {}
        keys = {task.name: _key(task, settings) for task in tasks}
        bars.stage(tasks[0].name, "compiling, once on a machine")
        callbacks()
        waiting = deque[RegionTask]()
        for task in tasks:
            if (kept := _kept(checkpoint, task, keys[task.name], load)) is not None:
                results[task.name] = kept
                bars.done(task.name, "kept from before")
            else:
                waiting.append(task)
        while pending or waiting:
            while waiting and len(pending) <= cores:
                task = waiting.popleft()
                bars.stage(task.name, "preparing")
                _submit(task, settings, 1, pool, running, bars, pending)
            future = next(as_completed(pending))
            task, chain, attempt = pending.pop(future)
            chains = parts.setdefault((task.name, attempt), {})
            chains[chain] = future.result()
            if len(chains) < settings.chains:
                continue
            drawn = [chains[c] for c in range(settings.chains)]
            bars.stage(task.name, "collecting")
            tree = collect_region(
                task.voxels, task.spec, task.scale, task.block, drawn, settings.seed, settings.draws
            )
            measured = measure_chains(tree["posterior"].to_dataset(), tree["constant_data"].to_dataset())
            if settings.retry and attempt == 1 and not measured.good and retry_factor(task, settings) > 1:
                del parts[task.name, attempt]
                bars.stage(task.name, "once more, longer")
                _submit(task, settings, 2, pool, running, bars, pending)
                continue
            tree.attrs |= {"attempts": attempt, "key": keys[task.name]}
            path = None
            if checkpoint is not None:
                Path(checkpoint).mkdir(parents=True, exist_ok=True)
                path = _checkpoint_file(checkpoint, task)
                write_tree(tree, path)
            results[task.name] = Region(tree if load else None, path, keys[task.name])
            del parts[task.name, attempt], chains, drawn, tree  # only now: an interruption finds them
            bars.done(task.name)
    except KeyboardInterrupt:
        bars.stage(tasks[0].name, "stopping")
        running.stop()
        pool.shutdown(wait=True, cancel_futures=True)
        for future, (task, chain, attempt) in pending.items():
            if not future.cancelled() and future.exception() is None:
                parts.setdefault((task.name, attempt), {})[chain] = future.result()
        raise Interrupted(_unfinished(tasks, parts, results, settings)) from None
    except BaseException:
        running.stop()
        pool.shutdown(wait=True, cancel_futures=True)
        raise
    pool.shutdown()
    return {task.name: results[task.name] for task in tasks}


def _unfinished(
    tasks: list[RegionTask],
    parts: Mapping[tuple[str, int], Mapping[int, xr.DataTree]],
    results: dict[str, Region],
    settings: Settings,
) -> dict[str, Region]:
    """Finished regions, and those of which two chains or more have draws, up to the shortest."""
    regions = dict(results)
    for task in tasks:
        for attempt in (1, 2):
            thin = 1 if attempt == 1 else retry_factor(task, settings)
            chains, draws = cut_chains(parts.get((task.name, attempt), {}), thin)
            if chains:
                tree = collect_region(
                    task.voxels, task.spec, task.scale, task.block, chains, settings.seed, draws
                )
                tree.attrs |= {"attempts": attempt}
                regions[task.name] = Region(tree)
    return {task.name: regions[task.name] for task in tasks if task.name in regions}


def _interruption(
    regions: Mapping[str, Region], scan: xr.Dataset, plan: Plan, checkpoint: str | Path | None
) -> FitInterrupted:
    """Join the draws of an interrupted fit, mark them and store them."""
    if not regions:
        return FitInterrupted(None)
    cut = cut_regions(regions)
    if checkpoint is None:
        return FitInterrupted(finish_fit({name: region.read() for name, region in cut.items()}, scan, plan))
    path = Path(checkpoint) / INTERRUPTED
    path.parent.mkdir(parents=True, exist_ok=True)
    tree = finish_file(cut, scan, plan, path)
    if all(region.tree is not None for region in regions.values()):
        tree.close()
        tree = read_tree(path)
    return FitInterrupted(tree, str(path))


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


def _submit(
    task: RegionTask,
    settings: Settings,
    attempt: int,
    pool: ThreadPoolExecutor,
    running: Running,
    bars: FitProgress,
    pending: dict[Future[Any], tuple[RegionTask, int, int]],
) -> None:
    factor = 1 if attempt == 1 else retry_factor(task, settings)
    bars.begin(task.name, settings.chains * factor * (settings.draws + settings.tune))
    for chain in range(settings.chains):
        options = chain_options(task, settings, chain, attempt)
        callback = bars.callback(task.name, chain)
        future = pool.submit(running.run, partial=True, **options, progress_callback=callback)
        pending[future] = (task, chain, attempt)


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


def _key(task: RegionTask, settings: Settings) -> str:
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


def _checkpoint_file(checkpoint: str | Path, task: RegionTask) -> Path:
    return Path(checkpoint) / f"region-{task.voxels.attrs['label']}.nc"


def _kept(checkpoint: str | Path | None, task: RegionTask, key: str, load: bool) -> Region | None:
    """Find the result of an earlier run with the same key."""
    if checkpoint is None or not (path := _checkpoint_file(checkpoint, task)).is_file():
        return None
    try:
        tree = read_tree(path)
    except InputError:
        return None
    return Region(tree if load else None, path, key) if tree.attrs.get("key") == key else None
