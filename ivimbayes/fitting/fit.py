"""Fit: choose voxels, sample by NUTS, collect. Each region is a fit of its own."""

import dataclasses
import json
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from importlib.metadata import version
from pathlib import Path
from typing import Any

import xarray as xr

from ivimbayes.errors import InputError
from ivimbayes.fitting.checkpoint import FinishedRegion, checkpoint_file, find_finished, region_key
from ivimbayes.fitting.collect import collect_region, join_regions
from ivimbayes.fitting.convergence import measure_chains
from ivimbayes.fitting.density import callbacks, missing_density
from ivimbayes.fitting.interruption import FitInterrupted, Interrupted, cut_chains, cut_regions
from ivimbayes.fitting.plan import CHAINS, DRAWS, TARGET_ACCEPT, TUNE, FitPlan, Settings, plan_fit
from ivimbayes.fitting.prepare import prepare_region
from ivimbayes.fitting.sampler import SamplerPool, chain_options, retry_factor
from ivimbayes.fitting.starts import RegionTask
from ivimbayes.fitting.voxels import VOXELS_PER_ROI
from ivimbayes.io.append import write_regions
from ivimbayes.io.netcdf import open_tree, read_tree, write_tree
from ivimbayes.models.priors import TissuePrior
from ivimbayes.models.spec import ModelSpec, signal_scale
from ivimbayes.parallel import count_cores
from ivimbayes.progress import FitProgress
from ivimbayes.protocol.check import require_protocol

JOINED, INTERRUPTED = "posterior.nc", "interrupted.nc"
HELD_BYTES = 2**26  # of finished regions that need not be read again: four of 200 voxels


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
        Give the draws in memory. If not, which needs a checkpoint, they stay in ``posterior.nc`` there and
        are read as they are used, so that memory does not grow with the number of regions; draws of up to
        64 MiB in all stay in memory.

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
    cores = count_cores() if cores is None else cores
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
        tasks = prepare_regions(plan.chosen, spec, plan.priors, bars)
        try:
            results = _sample_all(tasks, settings, cores, bars, checkpoint, load)
        except Interrupted as stop:
            raise _interruption(stop.regions, scan, plan, checkpoint, load) from None
        if load:
            return finish_fit({name: region.read() for name, region in results.items()}, scan, plan)
        assert checkpoint is not None
        (Path(checkpoint) / INTERRUPTED).unlink(missing_ok=True)
        bars.stage(tasks[-1].name, "all regions are being joined")
        tree = finish_file(results, scan, plan, Path(checkpoint) / JOINED)
        bars.stage(tasks[-1].name, "done")
        return tree


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


def finish_fit(results: Mapping[str, xr.DataTree], scan: xr.Dataset, plan: FitPlan) -> xr.DataTree:
    """Join the regions of a plan, in its order, and say in attributes how they were made."""
    tree = join_regions({name: results[name] for name in plan.chosen if name in results}, scan)
    tree.attrs |= describe_fit(scan, plan)
    return tree


def finish_file(
    results: Mapping[str, FinishedRegion], scan: xr.Dataset, plan: FitPlan, path: Path, **attrs: str
) -> xr.DataTree:
    """Join the regions of a plan like `finish_fit`, and write them to a file.

    If all regions are still in memory, the tree is too. Otherwise it is open: draws are read from the file
    each time they are used.
    """
    for left in (path, *path.parent.glob(".part-*.nc")):  # of a run that was ended
        left.unlink(missing_ok=True)
    found = {name: results[name] for name in plan.chosen if name in results}
    if all(region.tree is not None for region in found.values()):
        tree = finish_fit({name: region.read() for name, region in found.items()}, scan, plan)
        tree.attrs |= attrs
        write_tree(tree, path)
        return tree
    trees = (region.read() for region in found.values())
    write_regions(trees, path, scan["affine"].values, describe_fit(scan, plan) | attrs)
    return open_tree(path, check=False)


def describe_fit(scan: xr.Dataset, plan: FitPlan) -> dict[str, Any]:
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


def prepare_regions(
    chosen: Mapping[str, xr.Dataset], spec: ModelSpec, priors: Mapping[str, TissuePrior], bars: FitProgress
) -> list[RegionTask]:
    """Find the modes that each region starts from, around the best of which its sampling space is laid."""
    tasks = []
    for name, voxels in chosen.items():
        bars.stage(name, "starting points")
        scale = signal_scale(voxels["signal"].values)
        tasks.append(prepare_region(name, voxels, spec.with_prior(priors[name]), scale))
    return tasks


def _sample_all(
    tasks: list[RegionTask],
    settings: Settings,
    cores: int,
    bars: FitProgress,
    checkpoint: str | Path | None,
    load: bool,
) -> dict[str, FinishedRegion]:
    """Sample every chain of every region, `cores` at a time; collect a region when its chains are done.

    Regions are begun when there is little left to do for the cores. Those kept on the disk are read again
    later, unless they are to be loaded; the first `HELD_BYTES` stay in memory too.
    """
    results: dict[str, FinishedRegion] = {}
    held = 0
    running = SamplerPool()
    pool = ThreadPoolExecutor(cores)
    try:
        pending: dict[Future[Any], tuple[RegionTask, int, int]] = {}
        parts: dict[tuple[str, int], dict[int, Any]] = {}
        keys = {task.name: region_key(task, settings) for task in tasks}
        if count := missing_density(tasks[0].block):
            bars.compile(tasks[0].name, count)
        callbacks(tasks[0].block)
        waiting = deque[RegionTask]()
        for task in tasks:
            if (kept := find_finished(checkpoint, task, keys[task.name], load)) is not None:
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
                path = checkpoint_file(checkpoint, task)
                write_tree(tree, path, hasty=True)
            held += tree.nbytes
            stays = load or held <= HELD_BYTES
            results[task.name] = FinishedRegion(tree if stays else None, path, keys[task.name])
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
    results: dict[str, FinishedRegion],
    settings: Settings,
) -> dict[str, FinishedRegion]:
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
                regions[task.name] = FinishedRegion(tree)
    return {task.name: regions[task.name] for task in tasks if task.name in regions}


def _interruption(
    regions: Mapping[str, FinishedRegion],
    scan: xr.Dataset,
    plan: FitPlan,
    checkpoint: str | Path | None,
    load: bool,
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
    if load:
        tree.close()
        tree = read_tree(path)
    return FitInterrupted(tree, str(path))


def _submit(
    task: RegionTask,
    settings: Settings,
    attempt: int,
    pool: ThreadPoolExecutor,
    running: SamplerPool,
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
