"""The posterior of single curves, each on its own: a prior, bounds, and no knowledge of the noise."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np
from scipy.stats import gamma, norm, qmc

from ivimbayes.curves.density import Beliefs, SigmaDraws, make_scratch
from ivimbayes.curves.posterior import COLUMNS, EFFECTIVE, FIELDS, K_HAT, SIGMA, curve_posteriors
from ivimbayes.models.priors import TissuePrior
from ivimbayes.models.spec import S0_MEAN, S0_MEAN_SD, SIGMA_SCALE
from ivimbayes.numerics.jit import load
from ivimbayes.numerics.steps import make_acquisition, sum_by_b
from ivimbayes.parallel import count_cores
from ivimbayes.voxelwise.points import make_points
from ivimbayes.voxelwise.status import MAPPED, STATUS
from ivimbayes.voxelwise.summaries import BANDWIDTH
from ivimbayes.voxelwise.workspace import make_work

DRAWS, MORE_FACTOR, TAIL = 512, 4, 0.25
FAST = 1e3  # mm²/s: an upper bound of D and D* where there is none
QUIET = 1e-4  # of S0: noise below this is ruled out, or signals without noise would have no posterior
CHUNK = 1024
K_FAILED, K_DOUBTFUL, FEW_DRAWS = 1.0, 0.7, 100


def voxel_prior(prior: TissuePrior) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of a voxel's theta before its region is known, each shape (3,).

    The variance is that of the region's mean and, on average, that between voxels: width² + spread².
    """
    centre, width, spread = prior.theta("biexponential")
    return centre, np.hypot(width, spread)


def summarise_curves(
    signal: np.ndarray,
    b: np.ndarray,
    prior: TissuePrior,
    bounds: Mapping[str, tuple[float, float]],
    *,
    interval: float = 0.95,
    draws: int = DRAWS,
    tail: float = TAIL,
    cores: int | None = None,
) -> dict[str, np.ndarray]:
    """Summarise the posterior of every curve.

    Parameters
    ----------
    signal : ndarray (curve, measurement)
        Scaled to a signal near 1 at b = 0; finite.
    b : ndarray (measurement,)
        s/mm².
    prior : TissuePrior
        See `voxel_prior`.
    bounds : mapping
        Lower and upper bound of any of ``f``, ``D``, ``D_star`` (mm²/s) and ``S0``; the posterior is cut off
        there.
    interval : float
        Probability of the highest-density intervals.
    draws : int
        Weighted quasi-random draws of a curve, a multiple of 256; four times as many where they fit
        badly.
    tail : float
        Relative error of a standard deviation above which more draws are taken.
    cores : int, optional
        Threads; all cores when not given.

    Returns
    -------
    dict of str to ndarray (curve,)
        ``f_mean``, ``f_sd``, ``f_median``, ``f_low``, ``f_high``, the same of ``D``, ``D_star`` and ``S0``;
        ``sigma``, ``pareto_k``, ``ess`` and ``status`` (1 ok, 2 doubtful, 3 failed).
    """
    acquisition = make_acquisition(b, np.ones(len(b)))
    beliefs = _beliefs(prior, bounds, len(b))
    shape = (len(b) - 2) / 2
    merged = sum_by_b(signal, acquisition.place, len(acquisition.b))
    square = (signal**2).sum(axis=1)
    most = MORE_FACTOR * draws
    points, more = make_points(3, draws, 0), make_points(3, most, 0)
    out = np.empty((len(signal), COLUMNS))

    load(curve_posteriors)

    def run(part: slice) -> None:
        curve_posteriors(
            merged[part], square[part], acquisition, beliefs, points, more, _sigma_draws(draws, shape),
            _sigma_draws(most, shape), tail, interval, BANDWIDTH, make_work(acquisition, most),
            make_scratch(most), out[part],
        )  # fmt: skip

    parts = [slice(start, start + CHUNK) for start in range(0, len(signal), CHUNK)]
    _sigma_draws(draws, shape), _sigma_draws(most, shape)
    if len(parts) <= 1:
        list(map(run, parts))
    else:
        with ThreadPoolExecutor(cores or count_cores()) as pool:
            list(pool.map(run, parts))
    return _named(out)


def _beliefs(prior: TissuePrior, bounds: Mapping[str, tuple[float, float]], measurements: int) -> Beliefs:
    centre, width = voxel_prior(prior)
    widest = {"f": (0.0, 1.0), "D": (0.0, FAST), "D_star": (0.0, FAST), "S0": (-np.inf, np.inf)}
    low, high = (np.array([(widest | dict(bounds))[name][end] for name in MAPPED]) for end in (0, 1))
    low[:3] = np.maximum(low[:3], 0.0)
    high[0], high[1] = min(high[0], 1.0), min(high[1], high[2])
    return Beliefs(
        centre, width, low[:3].copy(), high[:3].copy(), np.array([S0_MEAN, S0_MEAN_SD, low[3], high[3]]),
        np.array([SIGMA_SCALE, QUIET]), float(measurements),
    )  # fmt: skip


@cache
def _sigma_draws(count: int, shape: float) -> SigmaDraws:
    """Numbers for sigma, from the last dimension of the points, and for S0."""
    u = norm.cdf(make_points(3, count, 0).normal)
    drawn = np.maximum(gamma.ppf(u, shape), 1e-12)
    again = qmc.Sobol(1, seed=1).random(count)[:, 0]
    normal = norm.ppf(np.clip(np.random.default_rng(0).permutation(again), 1e-9, 1 - 1e-9))
    return SigmaDraws(drawn, shape * np.log(drawn) - drawn, normal)


def _named(out: np.ndarray) -> dict[str, np.ndarray]:
    fields = ("mean", "sd", "median", "low", "high")
    found = {
        f"{name}_{field}": out[:, FIELDS * i + j]
        for i, name in enumerate(MAPPED)
        for j, field in enumerate(fields)
    }
    k, effective = out[:, K_HAT], out[:, EFFECTIVE]
    failed = ~np.isfinite(out[:, : 4 * FIELDS]).all(axis=1) | ~(k <= K_FAILED)
    doubtful = ~(k <= K_DOUBTFUL) | (effective < FEW_DRAWS)
    for column in found.values():
        column[failed] = np.nan
    status = np.where(failed, STATUS["failed"], np.where(doubtful, STATUS["doubtful"], STATUS["ok"]))
    return found | {
        "sigma": out[:, SIGMA],
        "pareto_k": k,
        "ess": effective,
        "status": status.astype(np.uint8),
    }
