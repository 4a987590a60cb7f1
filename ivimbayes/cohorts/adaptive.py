"""Draws of a posterior of few dimensions, whose density alone is known: adaptive importance sampling."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from arviz_stats.base import array_stats
from scipy.optimize import minimize
from scipy.special import logsumexp
from scipy.stats import multivariate_t, yeojohnson_normmax

NU = 5.0  # of the proposals
ROUNDS, ROUND_DRAWS = 4, 60  # draws of a round: so many times the dimensions, at least FEWEST
FEWEST, STEP = 200, 1e-3
WIDEST = 1.5  # standard deviations along an axis to begin with, at most
MARGIN, MOST = 1.3, 16  # weighted draws: so many times those that seem to be needed; at most per draw kept
K_GOOD, ENOUGH, ATTEMPTS = 0.7, 400, 3
BENDS = (0.0, 2.0)


@dataclass(frozen=True)
class Drawn:
    """Draws of a posterior.

    Attributes
    ----------
    x : ndarray (chain, draw, dimension)
        Equally weighted; chains were computed apart.
    ess : float
        Effective draws of all chains, from the weights.
    pareto_k : float
        Of the weights; above 0.7 they are not to be trusted (Vehtari et al. 2024, arXiv:1507.02646).
    """

    x: np.ndarray
    ess: float
    pareto_k: float

    @property
    def good(self) -> bool:
        """Whether the weights are good enough."""
        return self.pareto_k <= K_GOOD and self.ess >= ENOUGH


def draw_density(
    log_density: Callable[[np.ndarray], float],
    start: np.ndarray,
    *,
    draws: int = 1000,
    chains: int = 4,
    seed: int | list[int] = 0,
) -> Drawn:
    """Draw from a density by importance sampling, from a Student-t that is fitted to it in rounds.

    The first proposal lies around the mode, with the curvature there; each round of draws, weighted by the
    density over the mean of all proposals so far, gives the next one its mean and covariance (Cornuet et al.
    2012, doi:10.1111/j.1467-9469.2011.00756.x). Draws whose weights are not good enough are drawn again,
    more of them, from a proposal that is fitted to them. A second mode that no round reaches is not seen.

    Parameters
    ----------
    log_density : callable
        Of a point (dimension,); finite or minus infinity.
    start : ndarray (dimension,)
        Where the search of the mode begins.
    draws, chains : int
        Draws kept of each chain, and chains.
    seed : int or list of int

    Examples
    --------
    >>> found = draw_density(lambda x: -0.5 * float(((x - 3) ** 2).sum()), np.zeros(2))
    >>> bool(abs(found.x.mean() - 3) < 0.1), bool(found.pareto_k < 0.7)
    (True, True)
    """
    rng = np.random.default_rng(seed)
    mode = _find_mode(log_density, start)
    plain = np.ones_like(mode)
    proposals = [Proposal(mode, plain, plain, np.zeros_like(mode), _covariance(log_density, mode))]
    size = max(FEWEST, ROUND_DRAWS * len(start))
    points, heights = np.empty((0, len(start))), np.empty(0)
    for _ in range(ROUNDS):
        new = proposals[-1].draw(size, rng)
        points = np.concatenate([points, new])
        heights = np.append(heights, [log_density(x) for x in new])
        mixed = logsumexp([p.log_density(points) for p in proposals], axis=0) - np.log(len(proposals))
        w = _weights(heights - mixed)
        proposals.append(_fit_proposal(points[_resample(w, size, rng)], points, w))
    last, effective = proposals[-1], float(1 / (w**2).sum() / len(w))
    count = int(max(draws, FEWEST) * min(max(MARGIN / max(effective, 1e-3), 1.0), MOST))
    best, (points, w) = _draw_chains(log_density, last, count, draws, chains, rng)
    for _ in range(ATTEMPTS - 1):
        if best.good:
            break
        last, count = _fit_proposal(points[_resample(w, len(w), rng)], points, w), 2 * count
        found, (points, w) = _draw_chains(log_density, last, count, draws, chains, rng)
        best = max(best, found, key=lambda d: (d.pareto_k <= K_GOOD, d.ess))
    return best


def _draw_chains(
    log_density: Callable[[np.ndarray], float],
    proposal: "Proposal",
    count: int,
    draws: int,
    chains: int,
    rng: np.random.Generator,
) -> tuple[Drawn, tuple[np.ndarray, np.ndarray]]:
    """Weigh `count` draws of a proposal for each chain and resample; also all of them with their weights."""
    points, logs, kept = [], [], []
    for _ in range(chains):
        x = proposal.draw(count, rng)
        logs.append(np.array([log_density(v) for v in x]) - proposal.log_density(x))
        kept.append(x[_resample(_weights(logs[-1]), draws, rng)])
        points.append(x)
    total = np.concatenate(logs)
    w = _weights(total)
    k = float(array_stats.psislw(-total)[1])
    return Drawn(np.stack(kept), float(1 / (w**2).sum()), k), (np.concatenate(points), w)


@dataclass(frozen=True)
class Proposal:
    """A Student-t in coordinates that are warped one by one, for densities that lean to a side.

    Coordinate i, x = (point - middle) / scale, is warped to ((1 + x)^bend - 1) / bend above 0 and to
    (1 - (1 - x)^(2 - bend)) / (2 - bend) below, which is x where the bend is 1 (Yeo and Johnson 2000,
    doi:10.1093/biomet/87.4.954). There the location is ``mean``, the scale matrix ``covariance``.
    """

    middle: np.ndarray
    scale: np.ndarray
    bend: np.ndarray
    mean: np.ndarray
    covariance: np.ndarray

    def warp(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Warped coordinates, and the sum of the logarithms of their derivatives."""
        x = (points - self.middle) / self.scale
        power = np.where(x >= 0, self.bend, 2 - self.bend)
        logs = np.log1p(np.abs(x))
        y = np.sign(x) * np.where(power > 0, np.expm1(power * logs) / np.where(power > 0, power, 1), logs)
        return y, ((power - 1) * logs - np.log(self.scale)).sum(axis=-1)

    def draw(self, size: int, rng: np.random.Generator) -> np.ndarray:
        """Draw points (size, dimension)."""
        z = rng.standard_normal((size, len(self.mean))) / np.sqrt(rng.chisquare(NU, (size, 1)) / NU)
        y = self.mean + z @ np.linalg.cholesky(self.covariance).T
        power = np.where(y >= 0, self.bend, 2 - self.bend)
        far = np.abs(y)
        x = np.expm1(np.where(power > 0, np.log1p(power * far) / np.where(power > 0, power, 1), far))
        return np.asarray(self.middle + self.scale * np.sign(y) * x)

    def log_density(self, points: np.ndarray) -> np.ndarray:
        """Log-density at points (point, dimension)."""
        y, jacobian = self.warp(points)
        return np.asarray(
            np.atleast_1d(multivariate_t.logpdf(y, self.mean, self.covariance, df=NU)) + jacobian
        )


def _fit_proposal(sample: np.ndarray, points: np.ndarray, w: np.ndarray) -> Proposal:
    """Fit a proposal to weighted points, its warping to a sample of them."""
    middle = np.median(sample, axis=0)
    scale = np.maximum(sample.std(axis=0), 1e-6)
    bend = np.array(
        [
            np.clip(yeojohnson_normmax(x), *BENDS) if np.ptp(x) > 0 else 1.0
            for x in ((sample - middle) / scale).T
        ]
    )
    warped = Proposal(middle, scale, bend, middle, np.eye(len(middle))).warp(points)[0]
    mean = w @ warped
    away = warped - mean
    return Proposal(middle, scale, bend, mean, (w[:, None] * away).T @ away + 1e-9 * np.eye(len(mean)))


def _find_mode(log_density: Callable[[np.ndarray], float], start: np.ndarray) -> np.ndarray:
    """Mode of the density, by quasi-Newton steps from differences over `STEP`, wide beside rounding."""

    def slope(x: np.ndarray) -> np.ndarray:
        steps = STEP * np.eye(len(x))
        return np.array([(log_density(x - e) - log_density(x + e)) / (2 * STEP) for e in steps])

    found = minimize(lambda x: -log_density(x), start, jac=slope, method="BFGS", options={"gtol": 1e-2})
    return np.asarray(found.x)


def _covariance(log_density: Callable[[np.ndarray], float], mode: np.ndarray) -> np.ndarray:
    """Inverse of the negative Hessian, by differences; no wider than `WIDEST` along any of its axes."""
    n, h = len(mode), STEP * 10
    H = np.empty((n, n))
    eye = h * np.eye(n)
    for i in range(n):
        for j in range(i + 1):
            value = log_density(mode + eye[i] + eye[j]) - log_density(mode + eye[i] - eye[j])
            value += log_density(mode - eye[i] - eye[j]) - log_density(mode - eye[i] + eye[j])
            H[i, j] = H[j, i] = -value / (4 * h * h)
    values, vectors = np.linalg.eigh(np.where(np.isfinite(H), H, 0.0))
    return np.asarray((vectors / np.maximum(values, 1 / WIDEST**2)) @ vectors.T)


def _weights(log_ratio: np.ndarray) -> np.ndarray:
    """Weights that add up to 1."""
    w = np.exp(log_ratio - log_ratio.max())
    return np.asarray(w / w.sum())


def _resample(w: np.ndarray, draws: int, rng: np.random.Generator) -> np.ndarray:
    """Places of equally weighted draws, in random order."""
    places = np.searchsorted(np.cumsum(w), (np.arange(draws) + rng.random()) / draws)
    return rng.permutation(np.minimum(places, len(w) - 1))
