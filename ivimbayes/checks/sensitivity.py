"""Whether it is the data or the prior: how a region's values move as its prior, or its likelihood, is scaled.

Power scaling (Kallioinen et al. 2024, Stat Comput 34:57, doi:10.1007/s11222-023-10366-5) raises the prior or
the likelihood to a power alpha near 1 and asks how far the posterior moves. Nothing is sampled again: the
draws are weighted, and ArviZ turns the weights into a sensitivity.
"""

from dataclasses import dataclass

import arviz as az
import numpy as np
import pandas as pd
import xarray as xr
from numpy.polynomial import polynomial
from scipy.special import ndtri
from scipy.stats import rankdata

from ivimbayes.errors import InputError
from ivimbayes.models.correlation import beta_shapes, partial_correlations
from ivimbayes.models.priors import ThetaPrior
from ivimbayes.models.signals import SIGNALS
from ivimbayes.models.spec import (
    S0_MEAN,
    S0_MEAN_SD,
    S0_SD,
    ModelSpec,
    refuse_image_effects,
    sigma_scale,
    signal_scale,
)
from ivimbayes.results.diagnosis import contraction_of, find_bimodality
from ivimbayes.results.stored import FitView

THRESHOLD = 0.05
COMPONENTS = ("all", "mu", "sd", "correlation", "S0", "sigma")
COLUMNS = ("roi", "parameter", "prior", "likelihood", "contraction", "diagnosis")
CONFLICT, WEAK = "prior-data conflict", "prior dominates / weak likelihood"
SMOOTH = 3  # degree of the polynomial in a value that a log-density is reduced to
FARTHEST = 1.5  # fourth moment of the draws over that of a normal, above which they are not taken for one
HALF_NORMAL_VARIANCE = 1 - 2 / np.pi
GROUPS = ("posterior", "observed_data", "constant_data")


def prior_sensitivity(tree: xr.DataTree, component: str = "all") -> pd.DataFrame:
    """Sensitivity of each region's values to its prior and to its likelihood.

    Parameters
    ----------
    tree : DataTree
        From `fit`.
    component : {"all", "mu", "sd", "correlation", "S0", "sigma"}
        The part of the prior that is scaled: that of the region's mean of theta, of the spread of theta
        between voxels, of its correlations, of S0 (mean and spread), of the noise; all of them by default.

    Returns
    -------
    DataFrame
        A row for each parameter of the signal (f, D, D_star), S0 and sigma of each region: ``prior`` and
        ``likelihood``, the sensitivities (1); ``contraction``, the share of the prior variance that the data
        took away, in theta for the signal's parameters (as `diagnose`); ``diagnosis``: "prior-data conflict"
        where both sensitivities reach 0.05, "prior dominates / weak likelihood" where that to the prior alone
        does, else "". A sensitivity of 0.05 is a shift by about 0.2 standard deviations a doubling of the
        prior's log-density; a value that the data alone determine has a ``likelihood`` near 0.09. In
        `attrs`, ``component`` and, by region, ``kurtosis`` (see Notes).

    Raises
    ------
    InputError
        If the component is unknown, or the tree is not one that `fit` made.

    Notes
    -----
    The prior is that of the top level: mu, sd, partial correlations, S0_roi, S0_sd and sigma; of a mean
    curve, its theta, S0 and sigma. The population of the voxels given these is a part of the likelihood.

    The likelihood is p(signals | top level), with every voxel's theta and S0 integrated out: scaled by 2, the
    region has twice the voxels. It is not computed from the voxels' log-likelihood in the tree. The sum of
    that over 200 voxels varies with their 600 parameters, and though Pareto k of its weights is low (0.0),
    sensitivities with the log-likelihoods of the draws exchanged at random are 0.07 to 0.13: no value could
    be told to be insensitive. It is found instead as posterior over prior, the posterior being taken for a
    normal in mu, the square roots of sd and S0_sd, partial correlations, S0_roi and ln sigma. ``kurtosis`` is
    the mean fourth power of the draws' Mahalanobis distance over that of a normal: 1 if that holds;
    ``likelihood`` is NaN where it is above 1.5, or mu has two modes. Refits with
    twice the voxels moved as is predicted, to 0.1 standard deviations (docs/priors.md).

    Each log-density is reduced to its mean given the value (a cubic in the value's normal scores), which to
    first order in alpha - 1 moves the value as the density itself does, with less Monte-Carlo noise.
    """
    if component not in COMPONENTS:
        raise InputError(f"component {component!r}; accepted are {', '.join(COMPONENTS)}")
    absent = [g for g in GROUPS if g not in tree.children] + [
        a for a in ("spec", "priors") if a not in tree.attrs
    ]
    if absent:
        raise InputError(f"the tree has no {absent[0]}; give a tree from fit, or of its posterior.nc")
    fit, rows, kurtosis = FitView.of(tree), [], {}
    spec = fit.spec
    refuse_image_effects(spec, "prior sensitivity")
    for roi in fit.regions:
        draws = _top_level(fit, roi, spec, fit.priors[roi].theta(spec.signal))
        whole = np.sum(list(draws.log_prior.values()), axis=0)
        log_prior = whole if component == "all" else draws.log_prior.get(component)
        log_likelihood, kurtosis[roi] = marginal_log_likelihood(draws.coordinates, whole + draws.log_jacobian)
        mu = draws.coordinates[..., : len(spec.prior.theta(spec.signal).centre)]
        odd = kurtosis[roi] > FARTHEST or find_bimodality(mu.reshape(-1, mu.shape[-1]), spec.signal)
        for name, values in draws.values.items():
            prior = 0.0 if log_prior is None else sensitivity(values, log_prior)
            likelihood = np.nan if odd else sensitivity(values, log_likelihood)
            contraction, diagnosis = draws.contraction[name], judge(prior, likelihood)
            rows.append((roi, name, prior, likelihood, contraction, diagnosis))
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    table.attrs = {"component": component, "kurtosis": kurtosis}
    return table


def judge(prior: float, likelihood: float) -> str:
    """Diagnosis of a value from its sensitivities; "" where that to the likelihood is not known."""
    if not prior >= THRESHOLD or np.isnan(likelihood):
        return ""
    return CONFLICT if likelihood >= THRESHOLD else WEAK


def sensitivity(values: np.ndarray, log_density: np.ndarray) -> float:
    """Power-scaling sensitivity of a value to a factor of the posterior.

    Parameters
    ----------
    values, log_density : ndarray (chain, draw)
        Draws of the value, and the log-density of the factor at them.

    Returns
    -------
    float
        ArviZ's: the slope in log2 alpha of the square root of the cumulative Jensen-Shannon distance between
        the posterior and that with the factor to the power alpha, at alpha = 0.99 and 1.01.
    """
    # draws of one rounded value are put in order: ArviZ refuses a tail of equal weights
    scores = ndtri((rankdata(values, "ordinal") - 0.5) / values.size)
    smooth = polynomial.polyval(scores, polynomial.polyfit(scores, log_density.ravel(), SMOOTH))
    groups = {"posterior": values, "log_prior": smooth.reshape(values.shape)}
    data = xr.DataTree.from_dict(
        {g: xr.Dataset({"value": (("chain", "draw"), v)}) for g, v in groups.items()}
    )
    return float(az.psense(data, group="prior")["value"])


def marginal_log_likelihood(coordinates: np.ndarray, log_prior: np.ndarray) -> tuple[np.ndarray, float]:
    """Log-likelihood of draws, up to a constant, as that of a normal posterior over the prior.

    Parameters
    ----------
    coordinates : ndarray (chain, draw, coordinate)
        Draws of all top-level parameters, in coordinates in which their posterior is near a normal.
    log_prior : ndarray (chain, draw)
        Log-density of the prior in these coordinates.

    Returns
    -------
    log_likelihood : ndarray (chain, draw)
    kurtosis : float
        Mean fourth power of the Mahalanobis distance over that of a normal (Mardia 1970).
    """
    flat = coordinates.reshape(-1, coordinates.shape[-1])
    d, n = flat - flat.mean(axis=0), flat.shape[1]
    square = np.einsum("di,ij,dj->d", d, np.linalg.inv(np.atleast_2d(np.cov(d.T))), d)
    kurtosis = float((square**2).mean() / (n * (n + 2)))
    return -0.5 * square.reshape(log_prior.shape) - log_prior, kurtosis


@dataclass(frozen=True)
class _Draws:
    """Top level of one region: all arrays (chain, draw), coordinates (chain, draw, coordinate).

    ``values`` and ``contraction`` are by parameter, ``log_prior`` by component; ``log_jacobian`` turns the
    log-density of the prior into that of the coordinates.
    """

    values: dict[str, np.ndarray]
    contraction: dict[str, float]
    log_prior: dict[str, np.ndarray]
    coordinates: np.ndarray
    log_jacobian: np.ndarray


def _top_level(tree: xr.DataTree | FitView, roi: str, spec: ModelSpec, prior: ThetaPrior) -> _Draws:
    """Draws and log prior of one region, in the units of its scaled signals, up to constants."""
    fit = FitView.of(tree)
    scale, noise_scale = signal_scale(fit.signals(roi)), sigma_scale(fit.averages(roi))
    pooled = fit.level(roi) == "voxel"
    mine = fit.posterior.drop_dims("voxel").sel(roi=roi).transpose("chain", "draw", ...)
    mu, sigma = mine["mu"].values, mine["sigma"].values / scale
    if pooled:
        S0 = mine["S0_roi"].values / scale
    else:  # a mean curve has one S0, its own
        own = fit.posterior["S0"].isel(voxel=int(fit.voxels(roi)[0]))
        S0 = own.transpose("chain", "draw").values / scale
    log_prior = {
        "mu": _normal((mu - prior.centre) / prior.width).sum(axis=-1),
        "S0": _normal((S0 - S0_MEAN) / S0_MEAN_SD),
        "sigma": _normal(sigma / noise_scale),
    }
    coordinates, log_jacobian = [mu, S0[..., None], np.log(sigma)[..., None]], np.log(sigma)
    if pooled:
        sd, S0_sd = mine["sd"].values, mine["S0_sd"].values / scale
        partial = partial_correlations(mine["correlation"].values, mu.shape[-1])
        shapes = beta_shapes(spec.eta, mu.shape[-1])
        log_prior["sd"] = _normal(sd / prior.spread).sum(axis=-1)
        log_prior["correlation"] = ((shapes - 1) * np.log1p(-(partial**2))).sum(axis=-1)
        log_prior["S0"] = log_prior["S0"] + _normal(S0_sd / S0_SD)
        coordinates += [np.sqrt(sd), partial, np.sqrt(S0_sd)[..., None]]
        log_jacobian = log_jacobian + 0.5 * (np.log(sd).sum(axis=-1) + np.log(S0_sd))
    names = SIGNALS[spec.signal].parameters
    values = {name: mine[f"{name}_roi"].values for name in names} | {"S0": scale * S0, "sigma": scale * sigma}
    contraction = contraction_of(mine["mu"], prior) | {
        "S0": float(1 - S0.var() / S0_MEAN_SD**2),
        "sigma": float(1 - sigma.var() / (HALF_NORMAL_VARIANCE * noise_scale**2)),
    }
    return _Draws(values, contraction, log_prior, np.concatenate(coordinates, axis=-1), log_jacobian)


def _normal(z: np.ndarray) -> np.ndarray:
    return np.asarray(-0.5 * z**2)
