"""Batched penalised least squares: the mode of every voxel's posterior, and of a region's population.

These give the sampler its starting points and the Gaussian approximation of each voxel's likelihood.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.special import i0e, i1e

from ivimbayes.models.noise import NOISES, T_NU
from ivimbayes.models.priors import TissuePrior
from ivimbayes.models.signals import SIGNALS
from ivimbayes.numerics.levenberg_marquardt import LONGEST, minimise

MODE_STEPS = 60
ENOUGH = 1e-5  # gain of twice the objective below which a search ends
POPULATION_STEPS, POPULATION_MODE_STEPS = 40, 8
LEAST_INFORMATION = 0.05  # of a magnitude in the noise, in that of a signal
SPREAD_WEIGHT = 4.0  # pseudo-voxels that hold the spread near its prior scale while it is estimated


@dataclass(frozen=True)
class PopulationMode:
    """A mode of a region's population, with the Gaussian approximation of each voxel's likelihood there.

    Attributes
    ----------
    mean : ndarray (parameter,)
        Mean of theta.
    covariance : ndarray (parameter, parameter)
        Covariance of theta between voxels.
    sigma : float
        Noise standard deviation of one measurement.
    theta : ndarray (voxel, parameter)
        Mode of each voxel.
    precision : ndarray (voxel, parameter, parameter)
        Gauss-Newton Hessian of the negative log-likelihood of each voxel in theta, and in S0 where that is
        not integrated out.
    shift : ndarray (voxel, parameter)
        ``precision`` times the centre of that approximation.
    S0 : ndarray (voxel,)
        Least-squares S0.
    log_evidence : float
        Laplace approximation up to a constant, to rank modes of one region.
    effects : ndarray (measurement,)
        Image effects that were taken for given.
    """

    mean: np.ndarray
    covariance: np.ndarray
    sigma: float
    theta: np.ndarray
    precision: np.ndarray
    shift: np.ndarray
    S0: np.ndarray
    log_evidence: float
    effects: np.ndarray

    @property
    def location(self) -> np.ndarray:
        """Where the mode is: the mean of theta, or theta itself where there is one curve."""
        return self.mean if len(self.theta) > 1 else self.theta[0]


def voxel_modes(
    signal: np.ndarray,
    averages: np.ndarray,
    b: np.ndarray,
    sigma: float,
    mean: np.ndarray,
    covariance: np.ndarray,
    start: np.ndarray | None = None,
    model: str = "biexponential",
    steps: int = MODE_STEPS,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Posterior mode of every voxel by Levenberg-Marquardt, S0 profiled out, all voxels at once.

    Parameters
    ----------
    signal, averages : ndarray (voxel, measurement)
        Measurements and the number of images averaged into each.
    b : ndarray (measurement,)
        s/mm².
    sigma : float
        Noise standard deviation of one measurement.
    mean, covariance : ndarray (parameter,), (parameter, parameter)
        Normal prior of theta.
    start : ndarray (voxel, parameter), optional
        Starting points; `mean` when not given.
    model : str
        A name in `SIGNALS`.
    steps : int
        Steps at most.

    Returns
    -------
    theta : ndarray (voxel, parameter)
    precision : ndarray (voxel, parameter, parameter)
        Gauss-Newton Hessian of the negative log-likelihood, without the prior.
    S0, square : ndarray (voxel,)
        Least-squares S0 and the weighted sum of squared residuals.
    """
    root, inverse = np.sqrt(averages), np.linalg.inv(covariance)
    y = root * signal
    theta = np.broadcast_to(mean, (len(y), len(mean))).copy() if start is None else start.copy()

    def look(theta: np.ndarray) -> tuple[np.ndarray, ...]:
        S0, J, residual, square = _evaluate(y, root, b, theta, model)
        away = theta - mean
        downhill = np.einsum("vpk,vk->vp", J, residual) / sigma**2 - away @ inverse
        H = np.einsum("vpk,vqk->vpq", J, J) / sigma**2 + inverse
        return square / sigma**2 + _quadratic(away, inverse), downhill, H, S0, J, square

    theta, (_, _, _, S0, J, square) = minimise(look, theta, LONGEST, steps, ENOUGH)
    return theta, np.einsum("vpk,vqk->vpq", J, J) / sigma**2, S0, square


def _evaluate(
    y: np.ndarray, root: np.ndarray, b: np.ndarray, theta: np.ndarray, model: str
) -> tuple[np.ndarray, ...]:
    """S0 by least squares, Jacobian of S0 g with S0 profiled out, residual and its square."""
    g, d = SIGNALS[model].jacobian(b, theta)
    g, d = root * g, root[:, None, :] * d
    gg = (g * g).sum(1)
    S0 = np.maximum((g * y).sum(1) / gg, 1e-9)
    d = d - np.einsum("vpk,vk->vp", d, g)[..., None] * (g / gg[:, None])[:, None, :]
    residual = y - S0[:, None] * g
    return S0, S0[:, None, None] * d, residual, (residual**2).sum(1)


def _quadratic(d: np.ndarray, P: np.ndarray) -> np.ndarray:
    return np.asarray(np.einsum("...i,ij,...j->...", d, P, d))


def population_mode(
    signal: np.ndarray,
    averages: np.ndarray,
    b: np.ndarray,
    prior: TissuePrior,
    start: "PopulationMode | np.ndarray | None" = None,
    model: str = "biexponential",
    noise: str = "gaussian",
    population: tuple[np.ndarray, np.ndarray] | None = None,
    effects: np.ndarray | None = None,
) -> PopulationMode:
    """Mode of a region's population by alternating voxel modes and moments (Laplace-EM).

    Parameters
    ----------
    signal, averages, b, model
        As in `voxel_modes`.
    prior : TissuePrior
        Prior of the population's mean and spread.
    start : PopulationMode or ndarray (parameter,), optional
        Mode or mean of theta to start from; different starts may end in different modes.
    noise : str
        A name in `NOISES`. Where S0 is not integrated out, ``precision`` and ``shift`` have it as their last
        parameter.
    population : tuple of ndarray (parameter,), (parameter, parameter), optional
        Mean and covariance of theta where they are known: only voxels and sigma are sought then.
    effects : ndarray (measurement,), optional
        Image effects where they are known.

    Returns
    -------
    PopulationMode

    Notes
    -----
    The step of the highest evidence on the way is returned. The mean's update weighs the voxels against the
    prior; the spread's update adds four voxels of the prior scale. With one curve the population is the
    prior, and theta and sigma are estimated. Other noise is reduced to Gaussian noise at each step, as in the
    EM algorithm: by the expected real part of a magnitude, or by the weights of Student-t residuals.
    """
    V, K = signal.shape
    centre, width, spread = prior.theta(model)
    marginal = NOISES[noise].marginal
    W = np.diag(width**2)
    if isinstance(start, PopulationMode):
        mu, Sigma, sigma = start.mean, start.covariance, start.sigma
    else:
        mu = centre.copy() if start is None else np.asarray(start, float)
        Sigma = np.diag((0.5 * spread) ** 2) if V > 1 else W
        sigma = 0.1 * float(np.median(signal.max(axis=1)))
    theta, factor = np.tile(mu, (V, 1)), np.exp(np.zeros(K) if effects is None else effects)
    if V == 1:
        mu, Sigma = centre, W
    if population is not None:
        mu, Sigma = population
    best: PopulationMode | None = None
    data = Complete(signal, averages, averages, 0.0, 1.0)
    for _ in range(POPULATION_STEPS):
        theta, precision, S0, square = voxel_modes(
            data.signal / factor, data.weight * factor**2, b, sigma, mu, Sigma, theta, model,
            POPULATION_MODE_STEPS,
        )  # fmt: skip
        inverse, d = np.linalg.inv(Sigma), theta - mu
        C = np.linalg.inv(precision + inverse)
        mean = S0[:, None] * factor * SIGNALS[model].jacobian(b, theta)[0]
        if marginal:
            log_likelihood = -0.5 * square.sum() / sigma**2 - V * (K - 1) * np.log(sigma)
        else:
            log_likelihood = NOISES[noise].logp(signal, mean, np.full(V, sigma), averages).sum()
        log_evidence = (
            log_likelihood
            - 0.5 * (_quadratic(d, inverse).sum() + V * np.linalg.slogdet(Sigma)[1])
            + 0.5 * np.linalg.slogdet(C)[1].sum()
            - 0.5 * _quadratic(mu - centre, np.linalg.inv(W))
            - 0.5 * (np.diag(Sigma) / spread**2).sum()
        )
        completed = complete(signal, averages, mean, sigma, noise)
        if best is None or log_evidence > best.log_evidence:
            found = precision, np.einsum("vpq,vq->vp", precision, theta) + d @ inverse
            if not marginal:
                found = _with_S0(completed, b, theta, S0, sigma, d @ inverse, model, factor)
            best = PopulationMode(mu, Sigma, sigma, theta, *found, S0, float(log_evidence), np.log(factor))
        before, sigma_before = mu, sigma
        used = 1 + np.einsum("vpq,vqp->v", C, precision)
        if not marginal:
            square = (completed.weight * (completed.signal - mean) ** 2).sum(axis=1)
        freedom = np.maximum(completed.channels * V * K - used.sum(), 0.5)
        sigma = float(np.sqrt((square.sum() + completed.rest + 1e-12) / freedom))
        data = completed
        settled = marginal or abs(sigma / sigma_before - 1) < 1e-3
        if V == 1:
            continue
        if population is not None:
            if abs(sigma / sigma_before - 1) < 1e-3:
                break
            continue
        mu = np.linalg.solve(
            np.linalg.inv(W) + V * inverse, np.linalg.solve(W, centre) + inverse @ theta.sum(axis=0)
        )
        d = theta - mu
        scatter = np.einsum("vp,vq->pq", d, d) + C.sum(axis=0)
        Sigma = (scatter + SPREAD_WEIGHT * np.diag((0.5 * spread) ** 2)) / (V + SPREAD_WEIGHT)
        if np.abs(mu - before).max() < 1e-3 and settled:
            break
    assert best is not None
    return best


class Complete(NamedTuple):
    """Data of Gaussian noise that other noise amounts to, given the mean signal and sigma.

    ``signal``, ``weight`` (voxel, measurement) in place of the measurements and their averages;
    ``information``, the weight that the curvature of the likelihood has; ``rest``, what else the sum of
    squares holds, over ``channels`` per measurement.
    """

    signal: np.ndarray
    weight: np.ndarray
    information: np.ndarray
    rest: float
    channels: float


def complete(
    signal: np.ndarray, averages: np.ndarray, mean: np.ndarray, sigma: float, noise: str
) -> Complete:
    """Reduce noise to Gaussian noise, given the mean signal and sigma."""
    precision = averages / sigma**2
    if noise == "rician":
        z = np.maximum(signal * mean * precision, 1e-8)
        A = i1e(z) / i0e(z)
        bend = np.where(z < 1e-3, 0.5, 1 - A / z - A**2)
        information = averages * np.clip(1 - precision * signal**2 * bend, LEAST_INFORMATION, 1)
        rest = float((averages * signal**2 * (1 - A**2)).sum())
        return Complete(A * signal, averages, information, rest, 2.0)
    if noise == "student_t":
        weight = averages * (T_NU + 1) / (T_NU + precision * (signal - mean) ** 2)
        return Complete(signal, weight, weight, 0.0, 1.0)
    if noise == "gaussian":
        return Complete(signal, averages, averages, 0.0, 1.0)
    raise ValueError(f"{noise} noise has no reduction to Gaussian noise")


def _with_S0(
    data: Complete,
    b: np.ndarray,
    theta: np.ndarray,
    S0: np.ndarray,
    sigma: float,
    gradient: np.ndarray,
    model: str,
    factor: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Precision and shift of a likelihood of theta and S0, whose gradient in theta is given, in S0 zero."""
    g, d = (factor * each for each in SIGNALS[model].jacobian(b, theta))
    J = np.concatenate([S0[:, None, None] * d, g[:, None, :]], axis=1)
    precision = np.einsum("vpk,vk,vqk->vpq", J, data.information, J) / sigma**2
    shift = np.einsum("vpq,vq->vp", precision, np.concatenate([theta, S0[:, None]], axis=1))
    shift[:, :-1] += gradient
    return precision, shift
