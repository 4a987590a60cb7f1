"""How precisely b values tell the parameters of a voxel: Cramér-Rao bounds, and the expected posterior sd."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from scipy.stats import norm, qmc

from ivimbayes.errors import InputError
from ivimbayes.models.priors import TissuePrior, tissue_prior
from ivimbayes.models.signals import PARAMETERS, SIGNALS, Array, Signal
from ivimbayes.numerics.levenberg_marquardt import minimise
from ivimbayes.numerics.steps import distinct_b, sum_by_b
from ivimbayes.protocol.check import check_values
from ivimbayes.voxelwise.points import NU, make_points

VOXELS, POINTS = 1024, 1024  # simulated voxels; weighted points of each posterior, a quarter from the prior
FROM_PRIOR, WIDER, TAILS = 0.25, 1.2, 1.6  # their share; how much wider the proposals are than mode and prior
STEPS, BLOCK = 30, 128  # of the search for modes; voxels at a time
ENOUGH = 1e-3  # gain of the objective below which a search ends
PRIOR_POINTS = 1 << 15
UNKNOWN = 1e-11  # eigenvalue of a scaled information matrix below which a direction is not identified


@dataclass(frozen=True)
class Scenario:
    """What b values are judged for.

    Attributes
    ----------
    signal : str
        A name in `SIGNALS`.
    prior : TissuePrior
    sigma : float
        Noise of one image, over S0.
    """

    signal: str
    prior: TissuePrior
    sigma: float

    @property
    def model(self) -> Signal:
        """Signal model."""
        return SIGNALS[self.signal]

    @property
    def centre(self) -> Array:
        """Prior mean of theta, (parameter,)."""
        return self.prior.theta(self.signal).centre

    @property
    def width(self) -> Array:
        """Prior standard deviation of theta, (parameter,)."""
        return self.prior.theta(self.signal).width


def expected_precision(
    b: Any,
    tissue: str | TissuePrior = "generic",
    snr: float = 30.0,
    *,
    signal: str = "biexponential",
    averages: Sequence[float] | None = None,
    voxels: int = 1,
    draws: int = VOXELS,
    seed: int = 0,
) -> xr.Dataset:
    """Expect the precision of the parameters of a voxel, before it is measured.

    Parameters
    ----------
    b : array_like (measurement,)
        s/mm²; a b value that is measured several times is given several times.
    tissue : str or TissuePrior
        Whose prior the voxel's values are drawn from: theta ~ Normal(centre, width²).
    snr : float
        S0 over the noise standard deviation of one image of one voxel.
    signal : str
        A name in `SIGNALS`.
    averages : sequence of float, optional
        Images averaged into each measurement; 1 when not given.
    voxels : int
        Voxels whose mean curve is fitted: the noise falls with its square root.
    draws : int
        Voxels simulated for the expected posterior, a power of 2.
    seed : int
        Of the simulated voxels.

    Returns
    -------
    Dataset
        (parameter): ``value``, the prior's centre; ``crlb``, the Cramér-Rao bound there, the least sd of an
        unbiased estimate (infinite where the b values do not identify it); ``expected_sd``, the mean over
        voxels drawn from the prior of the sd of their posterior; ``error``, its standard error by
        simulation; ``rms_sd``, the root of their mean variance, which is the rms error of the posterior
        mean; ``prior_sd``; ``contraction``, 1 - rms_sd² / prior_sd². In the unit of the parameter (``unit``).

    Raises
    ------
    InputError
        If an argument is out of range.

    Notes
    -----
    The noise is Gaussian and known, S0 unknown with a flat prior. The bound is of theta, by the delta method;
    a posterior is narrower where the prior tells more than the signals do. Each posterior is that of weighted
    quasi-random points from a mixture of a Student-t around its mode and the prior.

    Examples
    --------
    >>> found = expected_precision([0, 10, 20, 50, 100, 200, 400, 800], "liver", snr=30)
    >>> (1e3 * found["expected_sd"].sel(parameter=["D", "D_star"])).values.round(1).tolist()
    [0.1, 41.3]
    """
    plan = make_plan(tissue, snr, signal, voxels)
    b = check_values(b)
    weight = check_averages(averages, len(b))
    if draws < 2 or draws & (draws - 1):
        raise InputError(f"draws {draws}; give a power of 2, such as {VOXELS}")
    return precision_of(b, weight, plan, draws, seed)


def make_plan(tissue: str | TissuePrior, snr: float, signal: str, voxels: int = 1) -> Scenario:
    """Check what b values are judged for."""
    if signal not in SIGNALS:
        raise InputError(f"signal {signal!r}; accepted are {', '.join(SIGNALS)}")
    if not (snr > 0 and np.isfinite(snr)):
        raise InputError(f"snr {snr:g}; give S0 over the noise of one image, such as 30")
    if voxels < 1:
        raise InputError(f"voxels {voxels}; give 1 or more")
    prior = tissue_prior(tissue) if isinstance(tissue, str) else tissue
    return Scenario(signal, prior, 1 / (snr * voxels**0.5))


def check_averages(averages: Sequence[float] | None, count: int) -> Array:
    """Give averages as numbers, (measurement,)."""
    found = np.ones(count) if averages is None else np.asarray(averages, float)
    if found.shape != (count,):
        raise InputError(f"averages has the shape {found.shape}; give {count} numbers, one for each b value")
    if not (np.isfinite(found) & (found > 0)).all():
        raise InputError("averages: a number is not above 0; give the images averaged into each measurement")
    return found


def precision_of(b: Array, weight: Array, plan: Scenario, draws: int, seed: int) -> xr.Dataset:
    """Compute what `expected_precision` gives, from checked arguments."""
    names, prior_sd = plan.model.parameters, prior_sd_of(plan)
    sd = posterior_sd(b, weight, plan, draws, seed)
    mean, square = sd.mean(axis=0), (sd**2).mean(axis=0)
    columns = {
        "value": (np.array(plan.model.values(*plan.centre)), "median of the prior"),
        "crlb": (cramer_rao(b, weight, plan), "Cramér-Rao bound of the sd, at the median of the prior"),
        "expected_sd": (mean, "expected sd of the posterior"),
        "error": (sd.std(axis=0) / np.sqrt(len(sd)), "standard error of expected_sd, by simulation"),
        "rms_sd": (np.sqrt(square), "rms error of the posterior mean"),
        "prior_sd": (prior_sd, "sd of the prior"),
        "contraction": (1 - square / prior_sd**2, "share of the prior variance that the signals take away"),
    }
    return xr.Dataset(
        {name: ("parameter", values, {"long_name": what}) for name, (values, what) in columns.items()},
        coords={
            "parameter": list(names),
            "unit": ("parameter", [PARAMETERS[p].unit for p in names]),
        },
        attrs={"signal": plan.signal, "tissue": plan.prior.name, "snr": 1 / plan.sigma, "seed": seed,
               "images": float(weight.sum()), "draws": draws},
    )  # fmt: skip


def prior_sd_of(plan: Scenario) -> Array:
    """Compute the standard deviation of each parameter under the prior, (parameter,)."""
    z = norm.ppf(qmc.Sobol(len(plan.centre), seed=1).random(PRIOR_POINTS))
    values = plan.model.values(*(plan.centre + plan.width * z).T)
    return np.array([v.std() for v in values])


def information(b: Array, weight: Array, theta: Array, plan: Scenario) -> Array:
    """Fisher information of (theta, ln S0) in measurements (..., parameter + 1, parameter + 1).

    Parameters
    ----------
    b, weight : ndarray (measurement,)
        s/mm², and the images averaged.
    theta : ndarray (..., parameter)
    plan : Scenario
    """
    curve, slope = plan.model.jacobian(b, theta)
    full = np.concatenate([slope, curve[..., None, :]], axis=-2)
    return np.asarray((full * (weight / plan.sigma**2)) @ np.swapaxes(full, -1, -2))


def cramer_rao(b: Array, weight: Array, plan: Scenario) -> Array:
    """Least sd of an unbiased estimate of each parameter at the prior's centre, (parameter,)."""
    P = len(plan.centre)
    F = information(b, weight, plan.centre, plan)
    scale = np.sqrt(np.diag(F))
    scale[scale == 0] = 1.0
    value, vector = np.linalg.eigh(F / np.outer(scale, scale))
    known = value > UNKNOWN
    gradient = np.pad(plan.model.value_slope(plan.centre), ((0, 0), (0, 1))) / scale
    along = gradient @ vector
    variance = (along[:, known] ** 2 / value[known]).sum(axis=1)
    lost = (along[:, ~known] ** 2).sum(axis=1) > 1e-6 * (gradient**2).sum(axis=1)
    return np.where(lost, np.inf, np.sqrt(variance))[:P]


def posterior_sd(
    b: Array, weight: Array, plan: Scenario, draws: int, seed: int, points: int = POINTS
) -> Array:
    """Posterior sd of the parameters of voxels drawn from the prior, (draws, parameter).

    The same `seed` gives the same voxels and the same noise at the m-th distinct b value.
    """
    distinct, place = distinct_b(b)
    weight = sum_by_b(weight, place, len(distinct))
    P, M = len(plan.centre), len(distinct)
    u = qmc.Sobol(P + M, seed=np.random.default_rng([seed, 7])).random(draws)
    z = norm.ppf(np.clip(u, 1e-12, 1 - 1e-12))
    theta = plan.centre + plan.width * z[:, :P]
    curve = plan.model.curve(distinct, *(v[:, None] for v in plan.model.values(*theta.T)))
    signal = curve + plan.sigma / np.sqrt(weight) * z[:, P:]
    parts = [slice(i, i + BLOCK) for i in range(0, draws, BLOCK)]
    return np.concatenate(
        [voxel_moments(signal[part], distinct, weight, plan, theta[part], points)[1] for part in parts]
    )


def voxel_moments(
    signal: Array, b: Array, weight: Array, plan: Scenario, start: Array, count: int = POINTS
) -> tuple[Array, Array, Array]:
    """Posterior of voxels, of known noise and prior, S0 with a flat one.

    Parameters
    ----------
    signal : ndarray (voxel, measurement)
    b, weight : ndarray (measurement,)
        s/mm², and the images averaged.
    plan : Scenario
    start : ndarray (voxel, parameter)
        Theta where the search for the mode begins.
    count : int
        Weighted points of each posterior, a power of 2.

    Returns
    -------
    mean, sd : ndarray (voxel, parameter)
        Of the parameters' values.
    effective : ndarray (voxel,)
        Effective points.
    """
    P = start.shape[1]
    mode, covariance = find_modes(signal, b, weight, plan, start)
    L = WIDER * np.linalg.cholesky(covariance)
    points = make_points(P, count, 0)
    own = int((1 - FROM_PRIOR) * count)
    theta = mode[:, None] + np.einsum("vij,jn->vni", L, points.z)
    theta[:, own:] = plan.centre + TAILS * plan.width * _normal_points(P, count - own)
    z = np.linalg.solve(L[:, None], (theta - mode[:, None])[..., None])[..., 0]
    square = (z**2).sum(axis=2)
    constant = points.log_q[0] + 0.5 * (NU + P) * np.log1p((points.z[:, 0] ** 2).sum() / NU)
    around = constant - 0.5 * (NU + P) * np.log1p(square / NU)
    around -= np.log(np.diagonal(L, axis1=1, axis2=2)).sum(axis=1)[:, None]
    log_prior = -0.5 * (((theta - plan.centre) / plan.width) ** 2).sum(axis=2)
    widened = log_prior / TAILS**2 - np.log(TAILS * plan.width).sum() - 0.5 * P * np.log(2 * np.pi)
    proposal = np.logaddexp(np.log(1 - FROM_PRIOR) + around, np.log(FROM_PRIOR) + widened)
    values = plan.model.values(*np.moveaxis(theta, -1, 0))
    curve = plan.model.curve(b, *(v[..., None] for v in values))
    G = curve**2 @ weight
    gy = np.einsum("vnm,vm->vn", curve, weight * signal)
    log_w = 0.5 * gy**2 / G / plan.sigma**2 - 0.5 * np.log(G) + log_prior - proposal
    w = np.exp(log_w - log_w.max(axis=1, keepdims=True))
    w /= w.sum(axis=1, keepdims=True)
    mean = np.stack([(w * v).sum(axis=1) for v in values], axis=1)
    spread = [(w * (v - m[:, None]) ** 2).sum(axis=1) for v, m in zip(values, mean.T, strict=True)]
    return mean, np.sqrt(np.stack(spread, axis=1)), 1 / (w**2).sum(axis=1)


def _normal_points(dims: int, count: int) -> Array:
    return np.asarray(norm.ppf(qmc.Sobol(dims, seed=5).random(count)))


def find_modes(signal: Array, b: Array, weight: Array, plan: Scenario, start: Array) -> tuple[Array, Array]:
    """Find modes of voxels' posteriors: theta, and its covariance there."""
    inverse, P = 1 / plan.width**2, start.shape[1]

    def look(theta: Array) -> tuple[Array, ...]:
        curve, slope = plan.model.jacobian(b, theta)
        G = curve**2 @ weight
        S0 = np.einsum("vm,vm->v", curve, weight * signal) / G
        rest = signal - S0[:, None] * curve
        away = theta - plan.centre
        value = 0.5 * (rest**2 @ weight) / plan.sigma**2 + 0.5 * (away**2 @ inverse)
        full = np.concatenate([S0[:, None, None] * slope, curve[:, None]], axis=1)
        scaled = full * (weight / plan.sigma**2)
        H = scaled @ np.swapaxes(full, 1, 2)
        downhill = np.einsum("vpm,vm->vp", scaled, rest)
        H[:, range(P), range(P)] += inverse
        downhill[:, :P] -= inverse * away
        return value, downhill, H

    theta, (_, _, H) = minimise(look, start.copy(), 2 * plan.width, STEPS, ENOUGH)
    return theta, np.linalg.inv(H)[:, :P, :P]


def tabulate_precision(found: xr.Dataset) -> pd.DataFrame:
    """Give what `expected_precision` or `design_protocol` gives as a table, in the units shown."""
    table = found.drop_vars("b", errors="ignore").to_dataframe().reset_index()
    shown = table["parameter"].map(PARAMETERS)
    for name in ("value", "crlb", "expected_sd", "error", "rms_sd", "prior_sd"):
        table[name] = table[name] * [p.display_scale for p in shown]
    table["unit"] = [p.display_unit for p in shown]
    first = [name for name in ("images", "protocol", "parameter", "unit") if name in table]
    return table[[*first, *(name for name in table if name not in first)]]
