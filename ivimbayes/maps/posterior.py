"""The posterior of every voxel of a volume, given the populations that a fit has found."""

import hashlib
import json
import warnings
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from ivimbayes.errors import InputError, InputWarning
from ivimbayes.io.scans import roi_names
from ivimbayes.maps.blocks import Task
from ivimbayes.maps.execution import SLAB_BYTES, Block, compile_kernel, run_here, run_on_workers
from ivimbayes.maps.files import map_attrs
from ivimbayes.maps.populations import find_populations
from ivimbayes.maps.stores import MapStore, MemoryStore, ZarrStore
from ivimbayes.models.signals import PARAMETERS
from ivimbayes.models.spec import ModelSpec
from ivimbayes.numerics.jit import Beside
from ivimbayes.parallel import connect
from ivimbayes.progress import MapProgress, compiling
from ivimbayes.results.stored import FitView
from ivimbayes.voxelwise.posterior import missing_kernel
from ivimbayes.voxelwise.status import MAPPED
from ivimbayes.voxelwise.workspace import WIDTH

NOISES = ("gaussian", "rician")
DRAWS = {"gaussian": 512, "rician": 1024}
BLOCKS, FEWEST, MOST = 24, 1024, 16_384  # of a volume at least, and voxels of a block


def posterior_maps(
    scan: xr.Dataset,
    fit: xr.DataTree | FitView,
    *,
    noise: str | None = None,
    interval: float = 0.95,
    keep_draws: int = 0,
    perfusion_prior: float = 0.5,
    draws: int | None = None,
    seed: int = 0,
    chunk: int | None = None,
    cores: int | None = None,
    scheduler: Any = None,
    store: str | Path | None = None,
    renew: bool = False,
    progress: bool = True,
) -> xr.Dataset:
    """Map the posterior of every voxel of a scan's regions, or of its mask.

    Parameters
    ----------
    scan : Dataset
        From `read_scan`. ``signal`` may be a dask array. A region takes the population of the fitted region
        of the same name. Where the scan has no labels, all voxels take the one fitted region's, or one
        population with the mean and covariance of the voxels of all regions that did not fail.
    fit : DataTree
        From `fit`.
    noise : {"gaussian", "rician"}, optional
        The fit's when not given.
        Noise of the scan's signals.
    interval : float
        Probability of the highest-density intervals.
    keep_draws : int
        Draws of each voxel to keep; ``f``, ``D``, ``D_star`` and ``S0`` (draw, x, y, z) then join the maps.
    perfusion_prior : float
        Probability of a perfusion compartment before a voxel's signals are seen.
    draws : int, optional
        Weighted quasi-random draws a voxel, a multiple of 256; eight times as many where they fit badly. 512
        when not given, 1 024 with Rician noise.
    seed : int
        The same seed gives the same maps, whatever the chunk, the cores and the workers.
    chunk : int, optional
        Voxels a block, about; a block is computed, and stored, at a time. Up to 16 384 when not given.
    cores : int, optional
        Blocks computed at a time; all cores when not given.
    scheduler : str or distributed.Client, optional
        Address of a dask scheduler, whose workers compute the blocks (needs the extra ``dask``).
    store : path, optional
        Folder of a zarr store into which the maps are written block by block. A run that was ended continues
        there.
    renew : bool
        Replace a store that holds maps of another scan, fit or setting.
    progress : bool
        Show a bar.

    Returns
    -------
    Dataset
        (x, y, z): ``f_mean``, ``f_sd``, ``f_median``, ``f_hdi_low``, ``f_hdi_high``, ``f_contraction``, the
        same of ``D``, ``D_star`` (mm²/s) and ``S0``; ``pareto_k``, ``ess``, ``p_perfusion`` and ``status`` (0
        outside, 1 ok, 2 doubtful, 3 failed, 4 bad signal), and ``affine`` (row, column). Numbers are NaN
        where the status is outside, failed or bad signal (``pareto_k`` and ``ess`` not where it is failed).
        Read when used, where there is a `store`.

    Raises
    ------
    InputError
        If an option is out of range, a region of the scan was not fitted, or the store holds other maps.

    Warns
    -----
    InputWarning
        If the b values or averages are not those of the fit.

    Notes
    -----
    Given a draw of the population, voxels are independent. The posterior of theta = (logit f, ln D,
    ln(D* - D)), S0 integrated out (with Rician noise: of theta and S0), is that of quasi-random draws
    from a Student-t around the mode, weighted by importance; each has its own draw of the population.
    Where fewer than 60 % of the draws are effective, or Pareto k is above 0.6 (Vehtari et al. 2024), a
    second pass draws from a mixture of all modes found and the population. Of a voxel that was itself
    fitted, the posterior is the mean of the conditional posteriors, each normalised. Under Rician noise
    that is left out.

    ``doubtful``: Pareto k above 0.7 or fewer than 100 effective draws after the second pass, a squared
    residual of probability below 1e-6 (Gaussian noise), or a population that `diagnose` finds doubtful.
    ``failed``: Pareto k above 1, or a population that failed.
    """
    fit = FitView.of(fit)
    if reason := why_not_mapped(fit, noise):
        raise InputError(f"maps: {reason}; fit the scan with that")
    noise = fit.spec.noise if noise is None else noise
    task = _make_task(
        scan, fit, noise=noise, interval=interval, keep_draws=keep_draws, perfusion_prior=perfusion_prior,
        draws=DRAWS.get(noise, 512) if draws is None else draws, seed=seed,
    )  # fmt: skip
    if chunk is not None and chunk < 1:
        raise InputError(f"chunk {chunk}; give 1 voxel or more")
    if cores is not None and cores < 1:
        raise InputError(f"cores {cores}; give 1 or more")
    shape = task.shape
    inside = int((scan["roi"].values != 0).sum())
    if chunk is None:  # a block holds voxels outside too, as many as fit in a slab
        wanted = int(np.prod(shape)) // max(1, inside) * min(max(inside // BLOCKS, FEWEST), MOST)
        chunk = max(1, min(wanted, SLAB_BYTES // (16 * scan.sizes["measurement"])))
    box = _box(shape, chunk)
    attrs = _attrs(scan, fit, task)
    sink: MapStore
    if store is None:
        sink = MemoryStore(shape, box, keep_draws)
    else:
        key = hashlib.sha256((task.digest + _signal_digest(scan)).encode()).hexdigest()
        sink = ZarrStore(Path(store), shape, box, keep_draws, key, renew)
    labels = scan["roi"].values
    todo = [block for block in _blocks(shape, sink.box) if labels[block].any() and not sink.has(block)]
    total = int((labels != 0).sum())
    left = sum(int((labels[block] != 0).sum()) for block in todo)
    with connect(scheduler) as client, MapProgress(total, total - left, progress) as bar:
        if todo and client is not None:
            run_on_workers(scan, labels, todo, task, sink, bar, client)
        elif todo:
            student = any(p.nu > 0 for p in task.populations.values())
            if count := len(missing_kernel(noise == "rician", student)):
                bar.stage(compiling("the maps", count))
            compile_kernel(noise, student)
            run_here(scan, labels, todo, task, sink, bar, cores)
    return _finish(sink, scan, task, attrs)


def compile_maps_beside(spec: ModelSpec, wanted: bool = True) -> Beside:
    """Begin to compile what maps of a fit need in a process beside this one, if maps are wanted."""
    mapped = wanted and not why_model_not_mapped(spec)
    return Beside(missing_kernel(spec.noise == "rician", spec.population == "student_t") if mapped else [])


def why_not_mapped(fit: xr.DataTree | FitView, noise: str | None = None) -> str:
    """Say why a fit cannot be mapped, in words; empty where it can."""
    return why_model_not_mapped(FitView.of(fit).spec, noise)


def why_model_not_mapped(spec: ModelSpec, noise: str | None = None) -> str:
    """Say why fits of a model cannot be mapped; empty where they can."""
    if spec.image_effects:
        return "maps do not take image effects, which the fit has"
    if spec.population == "mixture":
        return "maps are of a normal or student_t population, the fit's is a mixture"
    if spec.signal != "biexponential":
        return f"maps are of the biexponential signal, the fit's is {spec.signal}"
    if noise is None and spec.noise not in NOISES:
        return f"maps are of {' or '.join(NOISES)} noise, the fit's is {spec.noise}"
    return ""


def _make_task(scan: xr.Dataset, fit: xr.DataTree | FitView, **options: Any) -> Task:
    fit = FitView.of(fit)
    for name, good, way in (
        ("noise", options["noise"] in NOISES, f"accepted are {', '.join(NOISES)}"),
        ("interval", 0 < options["interval"] < 1, "give a probability between 0 and 1, such as 0.95"),
        ("keep_draws", options["keep_draws"] >= 0, "give 0 or more"),
        ("perfusion_prior", 0 < options["perfusion_prior"] < 1, "give a probability between 0 and 1"),
        ("seed", 0 <= options["seed"] < 2**62, "give 0 or more"),
        ("draws", options["draws"] > 0 and options["draws"] % WIDTH == 0, f"give a multiple of {WIDTH}"),
    ):
        if not good:
            raise InputError(f"{name} {options[name]!r}; {way}")
    if options["noise"] == "rician" and scan.attrs.get("real_valued"):
        raise InputError(
            "noise rician: the images are real-valued, whose noise is gaussian; choose one of the two"
        )
    if "averaged" not in fit.constant.data_vars:
        raise InputError("fit: written by another version of ivimbayes; run ivimbayes fit again")
    _compare_protocols(scan, fit)
    return Task(
        b=scan["b"].values.astype(float),
        averages=scan["averages"].values.astype(float),
        populations=find_populations(scan, fit),
        shape=scan["roi"].shape,
        real_valued=bool(scan.attrs.get("real_valued")),
        **options,
    )


def _compare_protocols(scan: xr.Dataset, fit: FitView) -> None:
    """Warn where sigma of the fit may not be that of the scan."""
    b, averages = fit.b, fit.constant["averages"].values.max(axis=0)
    source = scan.attrs.get("source", "scan")
    if not np.array_equal(b, scan["b"].values):
        found, fitted = (f"{len(v)} from {v.min():g} to {v.max():g}" for v in (scan["b"].values, b))
        warnings.warn(
            f"{source}: its b values ({found} s/mm2) are not those of the fit ({fitted}); "
            "the fit's noise and S0 are taken to be the scan's",
            InputWarning,
            stacklevel=4,
        )
    elif (fit.constant["averaged"] == 1).all() and not np.allclose(averages, scan["averages"].values):
        warnings.warn(
            f"{source}: its averages are not those of the fit; give the same --averages",
            InputWarning,
            stacklevel=4,
        )


def _box(shape: tuple[int, ...], chunk: int) -> tuple[int, int, int]:
    """Size of a block of about `chunk` voxels: whole rows, then whole slices, where they fit."""
    x = min(shape[0], chunk)
    y = min(shape[1], max(1, chunk // x))
    return x, y, min(shape[2], max(1, chunk // (x * y)))


def _blocks(shape: tuple[int, ...], box: tuple[int, ...]) -> Iterator[Block]:
    for z in range(0, shape[2], box[2]):
        for y in range(0, shape[1], box[1]):
            for x in range(0, shape[0], box[0]):
                starts = zip((x, y, z), box, shape, strict=True)
                i, j, k = (slice(start, min(start + size, end)) for start, size, end in starts)
                yield i, j, k


def _signal_digest(scan: xr.Dataset) -> str:
    """Of the signals and labels; of the name that dask gives the signals, where it holds them."""
    digest = hashlib.sha256(np.ascontiguousarray(scan["roi"].values).tobytes())
    if scan["signal"].chunks is not None:
        digest.update(str(scan["signal"].data.name).encode())
    else:
        for k in range(scan.sizes["measurement"]):
            digest.update(
                np.ascontiguousarray(scan["signal"].isel(measurement=k).values, np.float32).tobytes()
            )
    return digest.hexdigest()


def _attrs(scan: xr.Dataset, fit: FitView, task: Task) -> dict[str, Any]:
    names = roi_names(scan)
    return {
        "model": fit.spec.signal, "noise": task.noise, "population_model": fit.spec.population,
        "population": json.dumps({names[k]: list(p.names) for k, p in task.populations.items()}),
        "interval": task.interval, "perfusion_prior": task.perfusion_prior, "draws": task.draws,
        "seed": task.seed, "inputs": scan.attrs.get("inputs", "{}"), "source": scan.attrs.get("source", ""),
        "fit_inputs": fit.tree.attrs.get("inputs", "{}"), "fit_seed": int(fit.tree.attrs.get("seed", 0)),
        "versions": json.dumps({p: version(p) for p in ("ivimbayes", "numpy", "numba")}),
    }  # fmt: skip


def _finish(sink: MapStore, scan: xr.Dataset, task: Task, attrs: dict[str, Any]) -> xr.Dataset:
    variables = map_attrs(task.interval)
    variables |= {
        name: {"units": PARAMETERS[name].unit, "long_name": f"{PARAMETERS[name].long_name}: posterior draws"}
        for name in MAPPED
        if task.keep_draws
    }
    affine = scan["affine"].values
    return sink.finish(variables, affine, attrs)
