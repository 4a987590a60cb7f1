"""Draws from the prior of a region and from the population of its voxels."""

import numpy as np
from scipy.special import expit, logit

from ivimbayes.models.correlation import covariance, draw_correlation
from ivimbayes.models.priors import TissuePrior
from ivimbayes.models.signals import SIGNALS
from ivimbayes.models.spec import (
    IMAGE_SCALE,
    S0_MEAN,
    S0_MEAN_SD,
    S0_SD,
    SECOND_SHAPES,
    SECOND_SHIFT,
    sigma_scale,
)


def draw_region_prior(
    prior: TissuePrior,
    size: int,
    rng: np.random.Generator,
    eta: float = 2.0,
    signal: str = "biexponential",
) -> dict[str, np.ndarray]:
    """Draw a region's population from its prior.

    Returns
    -------
    dict
        ``mu``, ``sd`` (size, parameter) in theta, ``correlation`` (size, pair), and the region's values, such
        as ``f_roi`` (1), ``D_roi``, ``D_star_roi`` (mm²/s), of shape (size,).
    """
    model, (centre, width, spread) = SIGNALS[signal], prior.theta(signal)
    P = len(centre)
    mu = centre + width * rng.standard_normal((size, P))
    sd = np.abs(spread * rng.standard_normal((size, P)))
    correlation = draw_correlation(eta, size, rng, P)
    region = {f"{p}_roi": v for p, v in zip(model.parameters, model.values(*mu.T), strict=True)}
    return {"mu": mu, "sd": sd, "correlation": correlation, **region}


def draw_levels(averages: np.ndarray, size: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Draw a region's noise and brightness from their priors.

    Parameters
    ----------
    averages : ndarray (voxel, measurement)
        Images averaged into each measurement.
    size : int
        Number of draws.

    Returns
    -------
    dict
        ``sigma``, and mean ``S0_roi`` and standard deviation ``S0_sd`` of S0 between voxels, of shape
        (size,), over the scale of the region's signals.
    """
    sigma = np.abs(sigma_scale(averages) * rng.standard_normal(size))
    S0_roi = S0_MEAN + S0_MEAN_SD * rng.standard_normal(size)
    return {"sigma": sigma, "S0_roi": S0_roi, "S0_sd": S0_SD * np.abs(rng.standard_normal(size))}


def draw_theta(
    mu: np.ndarray,
    Sigma: np.ndarray,
    voxels: int,
    rng: np.random.Generator,
    population: str = "normal",
    nu: float = 3.0,
) -> np.ndarray:
    """Draw theta (voxel, parameter) of voxels from a population."""
    P = len(mu)
    z = rng.standard_normal((voxels, P))
    if population == "student_t":
        z = z / np.sqrt(rng.chisquare(nu, (voxels, 1)) / nu)
    return np.asarray(mu + z @ np.linalg.cholesky(Sigma + 1e-12 * np.eye(P)).T)


def draw_image_effects(images: int, draws: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Draw ``image_sd`` (draw,) and ``image_effect`` (draw, measurement) from their prior."""
    sd = np.abs(IMAGE_SCALE * rng.standard_normal(draws))
    return {"image_sd": sd, "image_effect": sd[:, None] * rng.standard_normal((draws, images))}


def draw_second_prior(sd: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Draw ``second_share`` (draw,) and ``second_shift`` (draw, parameter), given sd (draw, parameter)."""
    return {
        "second_share": rng.beta(*SECOND_SHAPES, len(sd)),
        "second_shift": SECOND_SHIFT * sd * rng.standard_normal(sd.shape),
    }


def add_second(
    theta: np.ndarray, share: np.ndarray, shift: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Move a share of the voxels, theta (voxel, parameter), by the shift; share () or (voxel,)."""
    inside = rng.random(len(theta)) < share
    return np.asarray(theta + inside[:, None] * shift)


def second_probability(
    theta: np.ndarray,
    mu: np.ndarray,
    sd: np.ndarray,
    correlation: np.ndarray,
    share: np.ndarray,
    shift: np.ndarray,
) -> np.ndarray:
    """Compute the probability that each voxel is of the second population, given its theta.

    Parameters
    ----------
    theta : ndarray (draw, voxel, parameter)
    mu, sd, shift : ndarray (draw, parameter)
    correlation : ndarray (draw, pair)
    share : ndarray (draw,)

    Returns
    -------
    ndarray (draw, voxel)
    """
    slope = np.linalg.solve(covariance(sd, correlation), shift[..., None])[..., 0]
    middle = np.einsum("dp,dp->d", slope, mu + 0.5 * shift)
    return np.asarray(expit(np.einsum("dvp,dp->dv", theta, slope) + (logit(share) - middle)[:, None]))
