"""Simulation-based calibration: whether the posteriors of fits are those of the declared model.

Truth is drawn from the prior, signals from the truth, and the region is fitted as `fit` fits it. Over many
replicates the rank of the truth among the draws is uniform if, and only if, the sampler draws from the
posterior of the declared model (Talts et al. 2018, arXiv:1804.06788).
"""

import dataclasses
import hashlib
import json
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import arviz as az
import numpy as np
import pandas as pd
import xarray as xr
from arviz_stats.ecdf_utils import ecdf_pit

from ivimbayes.errors import InputError
from ivimbayes.fitting.convergence import measure_chains
from ivimbayes.fitting.density import compile_density
from ivimbayes.fitting.draws import split_draws
from ivimbayes.fitting.packing import noise_constant
from ivimbayes.fitting.plan import Settings
from ivimbayes.fitting.prepare import prepare_region
from ivimbayes.fitting.sampler import SamplerPool, chain_options, retry_factor
from ivimbayes.fitting.starts import RegionTask
from ivimbayes.fitting.voxels import MIN_POOLED
from ivimbayes.io.digest import code_digest
from ivimbayes.io.netcdf import check_netcdf, write_netcdf
from ivimbayes.io.text import one_line
from ivimbayes.models.correlation import correlations, covariance, pairs
from ivimbayes.models.noise import NOISES, gaussian_logp
from ivimbayes.models.population import (
    add_second,
    draw_levels,
    draw_region_prior,
    draw_second_prior,
    draw_theta,
)
from ivimbayes.models.signals import SIGNALS
from ivimbayes.models.spec import ModelSpec, refuse_image_effects
from ivimbayes.parallel import count_cores
from ivimbayes.progress import StepProgress
from ivimbayes.protocol.check import require_protocol

B = (0, 10, 20, 40, 80, 110, 140, 170, 200, 300, 400, 500, 600, 700, 800)
VOXELS, KEPT, SAVE_EVERY = 10, 999, 10
BAND, BAND_SIMULATIONS = 0.99, 4000
FAR = 3.0  # data whose signals at the lowest b differ by more than this factor are drawn again
MOST_TRIES = 1000
Values = dict[str, Any]


def calibrate(
    spec: ModelSpec | None = None,
    b: Any = B,
    n: int = 300,
    *,
    voxels: int = VOXELS,
    averages: Any = None,
    fitted: ModelSpec | None = None,
    noise_factor: float = 1.0,
    draws: int = 1000,
    tune: int = 500,
    chains: int = 4,
    target_accept: float = 0.85,
    seed: int = 0,
    retry: bool = True,
    cores: int | None = None,
    progress: bool = True,
    checkpoint: str | Path | None = None,
    renew: bool = False,
) -> xr.Dataset:
    """Draw regions from the prior, fit them, and rank the truth among the draws.

    Parameters
    ----------
    spec : ModelSpec, optional
        Signal, noise, population and prior.
    b : array_like (measurement,)
        s/mm²; 15 values from 0 to 800 when not given.
    n : int
        Replicates: regions drawn and fitted.
    voxels : int
        Voxels a region, 5 or more.
    averages : array_like (measurement,), optional
        Images averaged into each measurement; 1 when not given.
    fitted : ModelSpec, optional
        What is fitted, where it is not what is drawn from; shows whether the ranks give a wrong model away.
    noise_factor : float
        Noise of the signals over the sigma that was drawn for them; other than 1 makes the model wrong.
    draws, tune, chains, target_accept, retry, cores
        As in `fit`.
    seed : int
        Replicate i depends on `seed` and i alone.
    progress : bool
        Show a bar.
    checkpoint : path, optional
        File (netCDF) that holds the replicates that are done. A later call continues from it, also with more
        replicates.

    Returns
    -------
    Dataset
        ``rank`` (replicate, quantity), the share of draws below the truth, from 0 to 1; ``truth``, ``mean``
        and ``sd`` of each quantity; ``attempts``, ``converged`` and ``redrawn`` (replicate). Quantities are
        the population's ``mu``, ``sd`` and ``correlation`` of theta, ``sigma``, ``S0_roi`` and ``S0_sd``, the
        values of the first voxel, and ``log_likelihood`` of the signals. Signals are in units in which the
        prior mean of S0 is 1.

    Raises
    ------
    InputError
        If an option is out of range, the b values cannot identify the model, or `checkpoint` holds
        replicates of other settings.

    Notes
    -----
    The prior of S0 and sigma is wide: some data drawn from it are no images. Data in which the mean signal at
    the lowest b of any voxel differs by more than a factor 3 from the region's median, or the median from 1,
    are drawn again. That choice looks at data alone, so it leaves the posterior, and the ranks, as they are.

    Examples
    --------
    >>> result = calibrate(n=2, voxels=5, draws=50, tune=100, retry=False, progress=False)
    >>> dict(result["rank"].sizes)
    {'replicate': 2, 'quantity': 16}
    """
    spec = ModelSpec() if spec is None else spec
    fitted = spec if fitted is None else fitted
    for model in (spec, fitted):
        refuse_image_effects(model, "calibration")
    settings = Settings(draws, tune, chains, target_accept, seed, retry)
    protocol = _protocol(spec, b, averages)
    _check(spec, fitted, n, voxels, noise_factor)
    task = CalibrationRun(spec, fitted, protocol, voxels, noise_factor, settings)
    done = _kept(checkpoint, task.key, renew)
    missing = [i for i in range(n) if i not in done]
    if missing:
        compile_density(spec.noise, spec.population == "mixture")
    running, pool = SamplerPool(), ThreadPoolExecutor(count_cores() if cores is None else cores)
    with StepProgress(n, "replicates", progress, n - len(missing)) as bar:
        try:
            pending: list[Future[Values]] = [pool.submit(task.replicate, i, running) for i in missing]
            for count, future in enumerate(as_completed(pending), start=1):
                found = future.result()
                done[found["replicate"]] = found
                bar.advance()
                if checkpoint is not None and (count % SAVE_EVERY == 0 or count == len(missing)):
                    _write(_join(done, task), checkpoint)
        except BaseException:
            running.stop()
            pool.shutdown(wait=True, cancel_futures=True)
            if checkpoint is not None and done:
                _write(_join(done, task), checkpoint)
            raise
    pool.shutdown()
    return _join({i: done[i] for i in range(n)}, task)


def check_calibration(result: xr.Dataset, prob: float = BAND) -> pd.DataFrame:
    """Check that the ranks of each quantity are uniform.

    Parameters
    ----------
    result : Dataset
        From `calibrate`.
    prob : float
        Probability that the whole line of a quantity of uniform ranks lies inside its band.

    Returns
    -------
    DataFrame
        A row for each quantity: ``inside``, whether the empirical distribution function of its ranks lies
        inside the simultaneous band (Säilynoja et al. 2022, doi:10.1007/s11222-022-10090-6); ``outside_by``,
        how far it leaves the band at most; ``mean_rank`` (0.5 if calibrated), ``coverage_50`` and
        ``coverage_95``, the share of central intervals that hold the truth; ``z``, the mean of (posterior
        mean - truth) / posterior sd; ``contraction``, 1 - mean posterior variance / variance of the truth.

    Raises
    ------
    InputError
        If there are fewer than 20 replicates.
    """
    if result.sizes["replicate"] < 20:
        raise InputError(f"{result.sizes['replicate']} replicates; 20 are needed to judge ranks")
    rows = []
    for name in result["quantity"].values:
        one = result.sel(quantity=name)
        rank = one["rank"].values
        _, ecdf, low, high = rank_band(rank, prob)
        beyond = float(np.maximum(low - ecdf, ecdf - high).max())
        rows.append(
            {
                "quantity": str(name), "inside": beyond <= 0, "outside_by": max(beyond, 0.0),
                "mean_rank": rank.mean(), "coverage_50": (np.abs(rank - 0.5) <= 0.25).mean(),
                "coverage_95": (np.abs(rank - 0.5) <= 0.475).mean(),
                "z": float(((one["mean"] - one["truth"]) / one["sd"]).mean()),
                "contraction": 1 - float((one["sd"] ** 2).mean() / one["truth"].var(ddof=1)),
            }
        )  # fmt: skip
    return pd.DataFrame(rows)


def rank_band(rank: np.ndarray, prob: float = BAND) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Points, distribution function of ranks (replicate,), and the simultaneous band that it should be in."""
    points, low, high = _band(len(rank), prob)
    ecdf = np.searchsorted(np.sort(rank), points, side="right") / len(rank)
    return points, ecdf, low, high


@cache
def _band(n: int, prob: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points, and the band of n uniform ranks; found by simulation, the same at each call."""
    even = (np.arange(n) + 0.5) / n
    points, _, low, high = ecdf_pit(even, prob, BAND_SIMULATIONS, rng=np.random.default_rng(0))
    return np.asarray(points, float), np.asarray(low, float), np.asarray(high, float)


def _protocol(spec: ModelSpec, b: Any, averages: Any) -> xr.Dataset:
    """Give b values and averages as those of a scan, checked."""
    values = np.atleast_1d(np.asarray(b, float))
    n = np.ones(len(values)) if averages is None else np.atleast_1d(np.asarray(averages, float))
    if values.ndim != 1 or not np.isfinite(values).all() or (values < 0).any():
        raise InputError(f"b {b}: give a list of b values in s/mm2, 0 or more")
    if n.shape != values.shape or not (np.isfinite(n) & (n > 0)).all():
        raise InputError(
            f"averages {averages}: give a positive number for each of the {len(values)} b values"
        )
    protocol = xr.Dataset(coords={"b": ("measurement", values), "averages": ("measurement", n)})
    protocol.attrs["protocol"] = "calibration"
    require_protocol(protocol, spec.signal, spec.prior)
    return protocol


def _check(spec: ModelSpec, fitted: ModelSpec, n: int, voxels: int, noise_factor: float) -> None:
    if spec.signal != fitted.signal:
        raise InputError(
            f"fitted signal {fitted.signal}, drawn {spec.signal}: they have other parameters; choose one"
        )
    if n < 1:
        raise InputError(f"n {n}; give 1 replicate or more")
    if voxels < MIN_POOLED:
        raise InputError(f"voxels {voxels}; give {MIN_POOLED} or more")
    if not noise_factor > 0:
        raise InputError(f"noise_factor {noise_factor:g}; give a number above 0")


@dataclasses.dataclass(frozen=True)
class CalibrationRun:
    """What every replicate shares."""

    spec: ModelSpec
    fitted: ModelSpec
    protocol: xr.Dataset
    voxels: int
    noise_factor: float
    settings: Settings

    @property
    def key(self) -> str:
        """Digest of everything a replicate depends on but its number."""
        parts = [
            self.spec.to_json(), self.fitted.to_json(), json.dumps(dataclasses.asdict(self.settings)),
            str(self.protocol["b"].values.tolist()), str(self.protocol["averages"].values.tolist()),
            str((self.voxels, self.noise_factor, KEPT, FAR)),
            code_digest(),
        ]  # fmt: skip
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def replicate(self, i: int, running: SamplerPool) -> Values:
        """Draw, fit and rank one region."""
        rng = np.random.default_rng([self.settings.seed, i])
        truth, region, redrawn = _draw(self, rng)
        settings = dataclasses.replace(self.settings, seed=int(rng.integers(2**31)))
        task = prepare_region(f"replicate {i}", region, self.fitted, 1.0)
        for attempt in (1, 2):
            chains = [
                running.run(**chain_options(task, settings, c, attempt)) for c in range(settings.chains)
            ]
            x, good = _thinned(task, chains)
            if good or not settings.retry or retry_factor(task, settings) == 1:
                break
        drawn = _quantities(split_draws(x, task.block), task)
        names = list(drawn)
        values = np.stack([drawn[name] for name in names])
        true = np.array([truth[name] for name in names])
        below = (values < true[:, None]).sum(axis=1)
        return {
            "replicate": i, "attempts": attempt, "converged": good, "redrawn": redrawn, "quantity": names,
            "rank": (below + rng.uniform(size=len(names))) / (values.shape[1] + 1), "truth": true,
            "mean": values.mean(axis=1), "sd": values.std(axis=1, ddof=1),
        }  # fmt: skip


def _draw(study: CalibrationRun, rng: np.random.Generator) -> tuple[dict[str, float], xr.Dataset, int]:
    """Draw a region from the prior until its data could be images: truth, signals, how often again."""
    redrawn = 0
    truth, signal = _draw_once(study, rng)
    while not _is_image(signal, study.protocol["b"].values):
        redrawn += 1
        if redrawn == MOST_TRIES:
            raise InputError(
                f"{MOST_TRIES} data sets drawn from the prior are no images; give other b values"
            )
        truth, signal = _draw_once(study, rng)
    averages = np.broadcast_to(study.protocol["averages"].values, signal.shape)
    region = xr.Dataset(
        {"signal": (("voxel", "measurement"), signal), "averages": (("voxel", "measurement"), averages)},
        coords={"b": ("measurement", study.protocol["b"].values)},
        attrs={"level": "voxel", "label": 1},
    )
    return truth, region, redrawn


def _is_image(signal: np.ndarray, b: np.ndarray) -> bool:
    """Whether the signals at the lowest b are of one magnitude, near 1."""
    level = signal[:, b == b.min()].mean(axis=1)
    median = float(np.median(level))
    return bool(1 / FAR < median < FAR and (level > median / FAR).all() and (level < median * FAR).all())


def _draw_once(study: CalibrationRun, rng: np.random.Generator) -> tuple[dict[str, float], np.ndarray]:
    """Draw hyperparameters, voxels and signals (voxel, measurement); the true value of each quantity."""
    spec, V = study.spec, study.voxels
    signal, noise, b = SIGNALS[spec.signal], NOISES[spec.noise], study.protocol["b"].values
    averages = np.broadcast_to(study.protocol["averages"].values, (V, len(b)))
    hyper = draw_region_prior(spec.prior, 1, rng, spec.eta, spec.signal)
    mu, sd, correlation = (hyper[name][0] for name in ("mu", "sd", "correlation"))
    levels = draw_levels(averages, 1, rng)
    sigma, S0_roi, S0_sd = (float(levels[name][0]) for name in ("sigma", "S0_roi", "S0_sd"))
    theta = draw_theta(mu, covariance(sd, correlation), V, rng, spec.population, spec.nu)
    second = draw_second_prior(sd[None], rng) if spec.population == "mixture" else {}
    if second:
        theta = add_second(theta, second["second_share"][0], second["second_shift"][0], rng)
    S0 = S0_roi + S0_sd * rng.standard_normal(V)
    curve = signal.curve(b, *(v[:, None] for v in signal.values(*theta.T)))
    y = noise.draw_signal(rng, curve, S0, np.full(V, study.noise_factor * sigma), averages)
    if noise.marginal:
        density = gaussian_logp(y, curve, sigma, np.full(V, S0_roi), S0_sd, averages)
    else:
        density = noise.logp(y, S0[:, None] * curve, np.full(V, sigma), averages).sum(axis=1)
    drawn = {
        "mu": mu[None], "sd": sd[None], "correlation": correlation[None], "theta": theta[None, :1],
        "log_likelihood": np.array([density.sum()]),
    } | levels | second  # fmt: skip
    return {name: float(value[0]) for name, value in _named(drawn, spec).items()}, y


def _thinned(task: RegionTask, chains: list[xr.DataTree]) -> tuple[np.ndarray, bool]:
    """Draws (draw, coordinate), evenly spaced over all chains, and whether the chains are good enough."""
    x = np.stack([c["posterior"].to_dataset()["x"].values[0] for c in chains])
    stats = xr.concat([c["sample_stats"].to_dataset() for c in chains], "chain", join="override")
    record = xr.Dataset(
        {
            "divergences": int(stats["diverging"].sum()),
            "transitions": int(stats["diverging"].size),
            "bfmi": np.min(az.bfmi(stats["energy"].values)),
        }
    )
    every = max(1, x.shape[1] // 1000)
    good = measure_chains(_region_values(split_draws(x[:, ::every], task.block), task.spec), record).good
    flat = x.reshape(-1, x.shape[-1])
    return flat[np.linspace(0, len(flat) - 1, min(KEPT, len(flat))).round().astype(int)], good


def _region_values(raw: dict[str, np.ndarray], spec: ModelSpec) -> xr.Dataset:
    """Values of the region (chain, draw, ...) by which chains are judged."""
    signal = SIGNALS[spec.signal]
    of_region = signal.values(*np.moveaxis(raw["mu"], -1, 0))
    values = {f"{p}_roi": v for p, v in zip(signal.parameters, of_region, strict=True)}
    values |= {name: raw[name] for name in ("sigma", "S0_roi", "S0_sd", "sd")}
    values["correlation"] = correlations(raw["partial"], len(signal.parameters))
    last = {"sd": "parameter", "correlation": "pair"}
    return xr.Dataset(
        {name: (("chain", "draw", last.get(name, ""))[: v.ndim], v) for name, v in values.items()}
    )


def _quantities(raw: dict[str, np.ndarray], task: RegionTask) -> dict[str, np.ndarray]:
    """Draws of each quantity."""
    averages, observed = task.voxels["averages"].values, task.voxels["signal"].values
    constant = noise_constant(task.spec.noise, observed, averages)
    drawn = raw | {
        "correlation": correlations(raw["partial"], raw["mu"].shape[-1]),
        "theta": raw["theta"][:, :1],
        "log_likelihood": (raw["log_likelihood"] + constant).sum(axis=1),
    }
    return _named(drawn, task.spec)


def _named(drawn: dict[str, np.ndarray], spec: ModelSpec) -> dict[str, np.ndarray]:
    """Quantities by name, from arrays whose first axis is draws; ``theta`` is that of the first voxel."""
    signal = SIGNALS[spec.signal]
    names, P = signal.parameters, len(signal.parameters)
    found = {f"mu[{p}]": drawn["mu"][:, i] for i, p in enumerate(names)}
    found |= {f"sd[{p}]": drawn["sd"][:, i] for i, p in enumerate(names)}
    found |= {
        f"correlation[{names[i]}:{names[j]}]": drawn["correlation"][:, n] for n, (i, j) in enumerate(pairs(P))
    }
    found |= {name: drawn[name] for name in ("sigma", "S0_roi", "S0_sd", "second_share") if name in drawn}
    if "second_shift" in drawn:
        found |= {f"second_shift[{p}]": drawn["second_shift"][:, i] for i, p in enumerate(names)}
    of_voxel = signal.values(*drawn["theta"][:, 0].T)
    found |= {f"{p}[0]": v for p, v in zip(names, of_voxel, strict=True)}
    return found | {"log_likelihood": drawn["log_likelihood"]}


def _join(done: dict[int, Values], study: CalibrationRun) -> xr.Dataset:
    """One Dataset of the replicates, in their order."""
    order = sorted(done)
    by_quantity, single = ("replicate", "quantity"), ("attempts", "converged", "redrawn")
    data: dict[str, Any] = {
        name: (by_quantity, np.stack([done[i][name] for i in order]))
        for name in ("rank", "truth", "mean", "sd")
    }
    data |= {name: ("replicate", np.array([int(done[i][name]) for i in order])) for name in single}
    attrs = {
        "key": study.key, "spec": study.spec.to_json(), "fitted": study.fitted.to_json(),
        "b": study.protocol["b"].values, "averages": study.protocol["averages"].values,
        "voxels": study.voxels, "noise_factor": study.noise_factor, "seed": study.settings.seed,
        "settings": json.dumps(dataclasses.asdict(study.settings)), "version": version("ivimbayes"),
    }  # fmt: skip
    coords = {"replicate": order, "quantity": list(done[order[0]]["quantity"])}
    return xr.Dataset(data, coords=coords, attrs=attrs)


def _write(result: xr.Dataset, path: str | Path) -> None:
    write_netcdf(result, path)


def read_calibration(path: str | Path) -> xr.Dataset:
    """Read the replicates that `calibrate` stored.

    Raises
    ------
    InputError
        If the file is missing or holds no calibration.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file; run ivimbayes calibrate first")
    try:
        check_netcdf(path)
        with xr.open_dataset(path, engine="h5netcdf") as stored:
            result = stored.load()
    except Exception as error:  # a damaged file may raise anything in h5py, h5netcdf and xarray
        raise InputError(
            f"{path}: not a readable netCDF file ({one_line(error)}); run ivimbayes calibrate again"
        ) from None
    if "rank" not in result or "key" not in result.attrs:
        raise InputError(f"{path}: holds no calibration; name a file that ivimbayes calibrate wrote")
    return result


def _kept(path: str | Path | None, key: str, renew: bool) -> dict[int, Values]:
    """Replicates of an earlier run with the same key; none, to `renew` those of another."""
    if path is None or not Path(path).exists():
        return {}
    try:
        result = read_calibration(path)
    except InputError:
        if renew:
            return {}
        raise
    if result.attrs["key"] != key:
        if renew:
            return {}
        raise InputError(
            f"{path}: holds replicates of other settings or versions; name another place, "
            "or replace them (--overwrite)"
        )
    names = ("rank", "truth", "mean", "sd", "attempts", "converged", "redrawn")
    return {
        int(i): {"replicate": int(i), "quantity": result["quantity"].values.tolist()}
        | {name: result[name].values[at] for name in names}
        for at, i in enumerate(result["replicate"].values)
    }
