"""The posterior of every voxel of a volume, given the populations that a fit has found."""

import hashlib
import json
import os
import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from scipy.stats import chi2

from ivimbayes.correlation import covariance
from ivimbayes.errors import InputError, InputWarning
from ivimbayes.kernel import (
    COLUMNS,
    EFFECTIVE,
    EVIDENCE,
    FIELDS,
    K_HAT,
    SQUARE,
    voxel_posteriors,
)
from ivimbayes.kernel_data import WIDTH, Draws, make_draws, make_points, make_protocol
from ivimbayes.maps import MAPPED, NAMES, SPACE, STATUS, map_attrs
from ivimbayes.priors import TissuePrior
from ivimbayes.progress import MapProgress
from ivimbayes.scans import roi_names
from ivimbayes.signals import PARAMETERS, SIGNALS
from ivimbayes.simulate import draw_region_prior
from ivimbayes.spec import ModelSpec
from ivimbayes.stores import MapStore, MemoryStore, ZarrStore
from ivimbayes.summary import diagnose

NOISES = ("gaussian", "rician")
DRAWS = {"gaussian": 512, "rician": 1024}
ROBUST_FACTOR, LONE_DRAWS = 8, 64
FEW = 4 * WIDTH  # population draws over which a fitted voxel's posterior is averaged
POPULATION_DRAWS = 4096
BLOCKS, FEWEST, MOST = 24, 1024, 16_384  # of a volume at least, and voxels of a block
SLAB_BYTES = 128_000_000  # of signals read at a time
BANDWIDTH = 0.6
MISFIT = 1e-6
K_FAILED, K_DOUBTFUL, FEW_DRAWS = 1.0, 0.7, 100
ATTEMPTS = 3  # at a block on workers, before the run gives up


@dataclass(frozen=True)
class Population:
    """Draws of a population, as the voxels of a label need them, in signal units.

    Attributes
    ----------
    names : tuple of str
        Regions of the fit that it is made of.
    mean : ndarray (draw, parameter)
    covariance : ndarray (draw, parameter, parameter)
        Of theta between voxels.
    sigma, S0, S0_sd : ndarray (draw,)
    nu : float
        Degrees of freedom of a Student-t population; 0 for a normal one.
    verdict : str
        The worst of the regions'.
    own, own_signal : ndarray (voxel, 3), (voxel, measurement)
        Index and signals of the voxels that were fitted one by one.
    """

    names: tuple[str, ...]
    mean: np.ndarray
    covariance: np.ndarray
    sigma: np.ndarray
    S0: np.ndarray
    S0_sd: np.ndarray
    nu: float
    verdict: str
    own: np.ndarray = field(repr=False)
    own_signal: np.ndarray = field(repr=False)

    @cached_property
    def variance(self) -> np.ndarray:
        """Variance of f, D, D_star and S0 over draws and voxels, shape (4,)."""
        rng = np.random.default_rng(0)
        z = rng.standard_normal(self.mean.shape)
        if self.nu:
            z *= np.sqrt(self.nu / rng.chisquare(self.nu, (len(z), 1)))
        theta = self.mean + np.einsum("rij,rj->ri", np.linalg.cholesky(self.covariance), z)
        values = SIGNALS["biexponential"].values(*theta.T)
        return np.array([*(np.var(v) for v in values), np.var(self.S0) + np.mean(self.S0_sd**2)])


@dataclass(frozen=True)
class Task:
    """Everything that the maps of a block depend on besides its signals and labels; can be pickled."""

    b: np.ndarray
    averages: np.ndarray
    populations: Mapping[int, Population]
    shape: tuple[int, ...]
    noise: str
    real_valued: bool
    interval: float
    keep_draws: int
    perfusion_prior: float
    draws: int
    seed: int

    @cached_property
    def _lanes(self) -> dict[int, tuple[float, Draws, Draws, Draws]]:
        return {}

    def lanes(self, label: int) -> tuple[float, Draws, Draws, Draws]:
        """Scale of a label's signals; its population in lanes for the first pass, few, for the second."""
        if label not in self._lanes:
            p = self.populations[label]
            scale = float(np.median(p.S0))
            first, few, second = (
                make_draws(
                    p.mean, p.covariance, p.sigma / scale, p.S0 / scale, p.S0_sd / scale, self.averages, n,
                    nu=p.nu, rician=self.noise == "rician", seed=self.seed,
                )
                for n in (self.draws, FEW, ROBUST_FACTOR * self.draws)
            )  # fmt: skip
            self._lanes[label] = scale, first, few, second
        return self._lanes[label]

    @cached_property
    def digest(self) -> str:
        """Of everything in it."""
        digest = hashlib.sha256(" ".join(version(p) for p in ("numba", "numpy", "scipy")).encode())
        folder = Path(__file__).parent
        for path in (*sorted(folder.glob("kernel*.py")), folder / "lanes.py", Path(__file__)):
            digest.update(path.read_bytes())
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


Block = tuple[slice, slice, slice]


def posterior_maps(
    scan: xr.Dataset,
    fit: xr.DataTree,
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
    if reason := why_not_mapped(fit, noise):
        raise InputError(f"fit: {reason}; fit it so, or go without maps (--no-maps)")
    noise = ModelSpec.from_json(fit.attrs["spec"]).noise if noise is None else noise
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
    with _workers(scheduler) as client, MapProgress(total, total - left, progress) as bar:
        if todo and client is not None:
            _run_on_workers(scan, labels, todo, task, sink, bar, client)
        elif todo:
            bar.stage("compiling, once on a machine")
            _compile(noise)
            _run_here(scan, labels, todo, task, sink, bar, cores)
    return _finish(sink, scan, task, attrs)


def why_not_mapped(fit: xr.DataTree, noise: str | None = None) -> str:
    """Say why a fit cannot be mapped, in words; empty where it can."""
    spec = ModelSpec.from_json(fit.attrs["spec"])
    if spec.signal != "biexponential":
        return f"maps are of the biexponential signal, the fit's is {spec.signal}"
    if noise is None and spec.noise not in NOISES:
        return f"maps are of {' or '.join(NOISES)} noise, the fit's is {spec.noise}"
    return ""


def _make_task(scan: xr.Dataset, fit: xr.DataTree, **options: Any) -> Task:
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
    if "averaged" not in fit["constant_data"].data_vars:
        raise InputError("fit: written by another version of ivimbayes; run ivimbayes fit again")
    _compare_protocols(scan, fit)
    return Task(
        b=scan["b"].values.astype(float),
        averages=scan["averages"].values.astype(float),
        populations=_populations(scan, fit),
        shape=scan["roi"].shape,
        real_valued=bool(scan.attrs.get("real_valued")),
        **options,
    )


def _compare_protocols(scan: xr.Dataset, fit: xr.DataTree) -> None:
    """Warn where sigma of the fit may not be that of the scan."""
    constant = fit["constant_data"].to_dataset()
    b, averages = constant["b"].values, constant["averages"].values.max(axis=0)
    source = scan.attrs.get("source", "scan")
    if not np.array_equal(b, scan["b"].values):
        found, fitted = (f"{len(v)} from {v.min():g} to {v.max():g}" for v in (scan["b"].values, b))
        warnings.warn(
            f"{source}: its b values ({found} s/mm2) are not those of the fit ({fitted}); "
            "the fit's noise and S0 are taken to be the scan's",
            InputWarning,
            stacklevel=4,
        )
    elif (constant["averaged"] == 1).all() and not np.allclose(averages, scan["averages"].values):
        warnings.warn(
            f"{source}: its averages are not those of the fit; give the same --averages",
            InputWarning,
            stacklevel=4,
        )


def _populations(scan: xr.Dataset, fit: xr.DataTree) -> dict[int, Population]:
    """Find the population of each label of the scan."""
    posterior = fit["posterior"].to_dataset()
    fitted = posterior["roi"].values.tolist()
    verdicts = {name: d.verdict for name, d in diagnose(fit, voxels=False).items()}
    names = roi_names(scan)
    absent = [name for name in names.values() if name not in fitted]
    if absent and len(names) > 1:
        raise InputError(
            f"{scan.attrs.get('source', 'scan')}: region {absent[0]!r} was not fitted; the fit has "
            f"{', '.join(fitted)}: give their labels, or a mask"
        )
    if absent and absent[0] not in ("mask", "all") and len(fitted) > 1:
        warnings.warn(
            f"{scan.attrs.get('source', 'scan')}: region {absent[0]!r} was not fitted; it is mapped with the "
            f"population of all of {', '.join(fitted)}",
            InputWarning,
            stacklevel=4,
        )
    result = {}
    for label, name in names.items():
        chosen = [name] if name in fitted else [r for r in fitted if verdicts[r] != "failed"] or fitted
        spec = ModelSpec.from_json(fit.attrs["spec"])
        shrink = (spec.nu - 2) / spec.nu if spec.population == "student_t" else 1.0  # of covariance to scale
        drawn = _pool([_population(fit, posterior, roi) for roi in chosen], shrink)
        worst = max((verdicts[r] for r in chosen), key=("converged", "doubtful", "failed").index)
        result[label] = Population(
            names=tuple(chosen),
            **drawn,
            nu=spec.nu if spec.population == "student_t" else 0.0,
            verdict=worst,
        )
    return result


def _pool(parts: list[dict[str, np.ndarray]], shrink: float) -> dict[str, np.ndarray]:
    """Make one population of several: mean and covariance of all voxels, draw by draw, each alike."""
    size = min(POPULATION_DRAWS, *(len(p["sigma"]) for p in parts))
    own = {key: np.concatenate([p[key] for p in parts]) for key in ("own", "own_signal")}
    even = [np.linspace(0, len(p["sigma"]) - 1, size).round().astype(int) for p in parts]
    mean, covariance, sigma, S0, S0_sd = (
        np.stack([p[key][i] for p, i in zip(parts, even, strict=True)])
        for key in ("mean", "covariance", "sigma", "S0", "S0_sd")
    )
    apart, S0_apart = mean - mean.mean(axis=0), S0 - S0.mean(axis=0)
    return own | {
        "mean": mean.mean(axis=0),
        "covariance": (covariance + shrink * np.einsum("cri,crj->crij", apart, apart)).mean(axis=0),
        "sigma": np.sqrt((sigma**2).mean(axis=0)),
        "S0": S0.mean(axis=0),
        "S0_sd": np.sqrt((S0_sd**2 + S0_apart**2).mean(axis=0)),
    }


def _population(fit: xr.DataTree, posterior: xr.Dataset, roi: str) -> dict[str, np.ndarray]:
    """Draws of one fitted region's population of voxels."""
    region, constant = posterior.drop_dims("voxel").sel(roi=roi), fit["constant_data"].to_dataset()
    flat = {
        name: region[name].transpose("chain", "draw", ...).values.astype(float).reshape(-1, *size)
        for name, size in (
            ("mu", (3,)),
            ("sd", (3,)),
            ("correlation", (3,)),
            ("sigma", ()),
            ("S0_roi", ()),
            ("S0_sd", ()),
        )
    }
    mine = constant["voxel_roi"].values == roi
    averaged, level = int(constant["averaged"].sel(roi=roi)), str(constant["level"].sel(roi=roi).values)
    # curves averaged over voxels have less noise, and differ less, than voxels do; by how much less they
    # differ depends on how alike neighbours are: here they are no more alike than others
    sigma, S0_sd = flat["sigma"] * np.sqrt(averaged), flat["S0_sd"]
    sd, correlation = flat["sd"], flat["correlation"]
    if level == "mean":  # a curve says nothing of the spread between voxels: it is that of the prior
        prior = TissuePrior.from_dict(json.loads(fit.attrs["priors"])[roi])
        drawn = draw_region_prior(
            prior, len(sd), np.random.default_rng(0), ModelSpec.from_json(fit.attrs["spec"]).eta
        )
        sd, correlation = drawn["sd"], drawn["correlation"]
    else:
        sd, S0_sd = sd * np.sqrt(averaged), S0_sd * np.sqrt(averaged)
    place = np.stack([constant[axis].values[mine] for axis in SPACE], axis=1)
    observed = fit["observed_data"]["signal"].transpose("voxel", "measurement").values[mine]
    single = averaged == 1 and level == "voxel"
    return {
        "mean": flat["mu"],
        "covariance": covariance(np.maximum(sd, 1e-4), np.clip(correlation, -0.9999, 0.9999)),
        "sigma": sigma, "S0": flat["S0_roi"], "S0_sd": S0_sd,
        "own": place.round().astype(int) if single else np.empty((0, 3), int),
        "own_signal": observed if single else np.empty((0, observed.shape[1])),
    }  # fmt: skip


# ---------------------------------------------------------------- blocks


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


def _compile(noise: str) -> None:
    """Compile the kernel, or load it, before threads ask for it."""
    one, identity = np.ones(2), np.stack([np.eye(3)] * 2)
    small = Population(
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
    protocol = make_protocol(task.b, task.averages, rician)
    scale, draws, few, many = task.lanes(label)
    y = signal / scale
    weighted = y * task.averages
    merged = np.zeros((len(y), len(protocol.b)))
    for measurement, place in enumerate(protocol.place.astype(int)):
        merged[:, place] += weighted[:, measurement]
    out = np.empty((len(y), COLUMNS))
    kept = np.empty((len(y), 4, task.keep_draws))
    voxel_posteriors(
        merged, y, (weighted * y).sum(axis=1), np.ravel_multi_index(tuple(where.T), task.shape),
        _own(signal, where, population), protocol, draws, few, many, make_points(dims, count, seed),
        make_points(dims, ROBUST_FACTOR * count, seed), make_points(dims - 2, LONE_DRAWS, seed),
        task.interval, BANDWIDTH, seed, out, kept,
    )  # fmt: skip
    out[:, 3 * FIELDS : 4 * FIELDS] *= scale
    kept[:, 3] *= scale
    return out, kept


def _own(signal: np.ndarray, where: np.ndarray, population: Population) -> np.ndarray:
    """Whether each voxel was among those fitted, at the same place with the same signals."""
    mine = {tuple(place): i for i, place in enumerate(population.own.tolist())}
    own = np.zeros(len(signal), bool)
    if mine and population.own_signal.shape[1] == signal.shape[1]:
        low, high = where.min(axis=0), where.max(axis=0)
        if ((population.own >= low) & (population.own <= high)).all(axis=1).any():
            for v, place in enumerate(where.tolist()):
                i = mine.get(tuple(place))
                own[v] = i is not None and np.allclose(population.own_signal[i], signal[v], rtol=1e-5)
    return own


def _fill(
    result: dict[str, np.ndarray],
    here: tuple[np.ndarray, ...],
    out: np.ndarray,
    kept: np.ndarray,
    population: Population,
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


# ---------------------------------------------------------------- running


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


def _run_here(
    scan: xr.Dataset, labels: np.ndarray, todo: list[Block], task: Task, sink: MapStore, bar: MapProgress,
    cores: int | None,
) -> None:  # fmt: skip
    """Compute the blocks in threads."""
    here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    pool = ThreadPoolExecutor(cores or here)
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


def _start(block: Block) -> tuple[int, int, int]:
    i, j, k = block
    return i.start, j.start, k.start


def _run_on_workers(
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


@contextmanager
def _workers(scheduler: Any) -> Iterator[Any]:
    """Give a client of the scheduler; None for None."""
    if scheduler is None or not isinstance(scheduler, str):
        yield scheduler
        return
    try:
        from distributed import Client
    except ImportError:
        raise InputError("scheduler: dask is not installed; pip install 'ivimbayes[dask]'") from None
    try:
        client = Client(scheduler, timeout="5s")
    except (OSError, ValueError, TimeoutError) as error:
        raise InputError(
            f"scheduler {scheduler}: no dask scheduler answers there ({error}); give its address"
        ) from None
    with client:
        if not client.nthreads():
            raise InputError(f"scheduler {scheduler}: it has no workers; start some with dask worker")
        yield client


def _read_blocks(scan: xr.Dataset, todo: list[Block], lazy: bool) -> Iterator[tuple[Block, Any]]:
    if lazy:
        for block in todo:
            yield block, scan["signal"].data[block]
        return
    for group, signal, first in _slabs(scan, todo):
        for i, j, k in group:
            yield (i, j, k), np.ascontiguousarray(signal[i, j, k.start - first : k.stop - first])


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


# ---------------------------------------------------------------- result


def _attrs(scan: xr.Dataset, fit: xr.DataTree, task: Task) -> dict[str, Any]:
    spec = ModelSpec.from_json(fit.attrs["spec"])
    names = roi_names(scan)
    return {
        "model": spec.signal, "noise": task.noise, "population_model": spec.population,
        "population": json.dumps({names[k]: list(p.names) for k, p in task.populations.items()}),
        "interval": task.interval, "perfusion_prior": task.perfusion_prior, "draws": task.draws,
        "seed": task.seed, "inputs": scan.attrs.get("inputs", "{}"), "source": scan.attrs.get("source", ""),
        "fit_inputs": fit.attrs.get("inputs", "{}"), "fit_seed": int(fit.attrs.get("seed", 0)),
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
