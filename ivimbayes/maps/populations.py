"""Populations of voxels, from a fit: one for each label of a scan."""

import warnings
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import xarray as xr

from ivimbayes.errors import InputError, InputWarning
from ivimbayes.io.scans import roi_names
from ivimbayes.models.correlation import covariance
from ivimbayes.models.population import draw_region_prior
from ivimbayes.models.signals import SIGNALS
from ivimbayes.results.diagnosis import diagnose
from ivimbayes.results.stored import FitView

POPULATION_DRAWS = 4096


@dataclass(frozen=True)
class PopulationDraws:
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


def find_populations(scan: xr.Dataset, fit: FitView) -> dict[int, PopulationDraws]:
    """Find the population of each label of the scan."""
    spec, fitted = fit.spec, fit.regions
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
        shrink = (spec.nu - 2) / spec.nu if spec.population == "student_t" else 1.0  # of covariance to scale
        drawn = _pool([_population(fit, roi) for roi in chosen], shrink)
        worst = max((verdicts[r] for r in chosen), key=("converged", "doubtful", "failed").index)
        result[label] = PopulationDraws(
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


def _population(fit: FitView, roi: str) -> dict[str, np.ndarray]:
    """Draws of one fitted region's population of voxels."""
    region = fit.posterior.drop_dims("voxel").sel(roi=roi)
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
    averaged, level = int(fit.record(roi)["averaged"]), fit.level(roi)
    # curves averaged over voxels have less noise, and differ less, than voxels do; by how much less they
    # differ depends on how alike neighbours are: here they are no more alike than others
    sigma, S0_sd = flat["sigma"] * np.sqrt(averaged), flat["S0_sd"]
    sd, correlation = flat["sd"], flat["correlation"]
    if level == "mean":  # a curve says nothing of the spread between voxels: it is that of the prior
        drawn = draw_region_prior(fit.priors[roi], len(sd), np.random.default_rng(0), fit.spec.eta)
        sd, correlation = drawn["sd"], drawn["correlation"]
    else:
        sd, S0_sd = sd * np.sqrt(averaged), S0_sd * np.sqrt(averaged)
    observed = fit.signals(roi)
    single = averaged == 1 and level == "voxel"
    return {
        "mean": flat["mu"],
        "covariance": covariance(np.maximum(sd, 1e-4), np.clip(correlation, -0.9999, 0.9999)),
        "sigma": sigma, "S0": flat["S0_roi"], "S0_sd": S0_sd,
        "own": fit.index(roi).round().astype(int) if single else np.empty((0, 3), int),
        "own_signal": observed if single else np.empty((0, observed.shape[1])),
    }  # fmt: skip
