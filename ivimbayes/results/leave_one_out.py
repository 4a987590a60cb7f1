"""Leave-one-out cross-validation over voxels, S0 integrated out."""

from collections.abc import Iterator
from dataclasses import dataclass

import arviz as az
import numpy as np
import xarray as xr
from scipy.special import logsumexp, ndtr

from ivimbayes.models.noise import NOISES
from ivimbayes.models.spec import ModelSpec
from ivimbayes.results.stored import FitView

DRAWS, VOXELS = 2000, 50  # draws of a fit, voxels at a time


GOOD_K = 0.7  # with fewer than 2150 draws 1 - 1 / log10(draws) (Vehtari 2024)


SAMPLES = ("chain", "draw")


@dataclass(frozen=True)
class VoxelDraws:
    """Posterior draws of some voxels of a region, evenly spaced, with what was measured.

    Attributes
    ----------
    spec : ModelSpec
    curve : ndarray (chain, draw, voxel, measurement)
        Signal for S0 = 1.
    S0 : ndarray (chain, draw, voxel, 1)
    sigma, S0_mean, S0_sd : ndarray (chain, draw, 1, 1)
        Noise, and the region's mean and standard deviation of S0.
    signal, averages : ndarray (voxel, measurement)
    """

    spec: ModelSpec
    curve: np.ndarray
    S0: np.ndarray
    sigma: np.ndarray
    S0_mean: np.ndarray
    S0_sd: np.ndarray
    signal: np.ndarray
    averages: np.ndarray

    @classmethod
    def of(
        cls, tree: xr.DataTree | FitView, roi: str, draws: int = DRAWS, voxels: slice = slice(None)
    ) -> "VoxelDraws":
        """Take at most `draws` of a fit, over all chains, for `voxels` of the region's."""
        fit = FitView.of(tree)
        posterior, names, mine = fit.posterior, fit.signal.parameters, fit.voxels(roi)[voxels]
        each = min(posterior.sizes["draw"], max(1, draws // posterior.sizes["chain"]))
        kept = np.linspace(0, posterior.sizes["draw"] - 1, each).astype(int)
        of_roi = posterior[["sigma", "S0_roi", "S0_sd"]].sel(roi=roi).isel(draw=kept)
        region = {k: v.transpose(*SAMPLES).values[..., None, None] for k, v in of_roi.data_vars.items()}
        of_voxels = posterior[[*names, "S0"]].isel(voxel=mine, draw=kept).astype(float)
        values = {k: v.transpose(*SAMPLES, "voxel").values[..., None] for k, v in of_voxels.data_vars.items()}
        curve = fit.signal.curve(fit.b.astype(float), *(values[name] for name in names))
        if fit.spec.image_effects:
            of_images = posterior["image_effect"].sel(roi=roi).isel(draw=kept)
            curve = curve * np.exp(of_images.transpose(*SAMPLES, "measurement").values[..., None, :])
        y, n = fit.signals(roi)[voxels], fit.averages(roi)[voxels]
        return cls(fit.spec, curve, values["S0"], region["sigma"], region["S0_roi"], region["S0_sd"], y, n)

    def log_likelihood(self) -> np.ndarray:
        """Log-density of each measurement given its voxel's parameters and S0.

        Under Gaussian noise S0 was integrated out when the chains ran, and then drawn given the rest: it and
        the voxel's parameters are joint draws of the posterior.

        Returns
        -------
        ndarray (chain, draw, voxel, measurement)
            Natural logarithm of a density in 1 / signal units.
        """
        noise = NOISES[self.spec.noise]
        return np.asarray(noise.logp(self.signal, self.S0 * self.curve, self.sigma[..., 0], self.averages))

    def log_predictive(self) -> np.ndarray:
        """Log-density of each measurement given its voxel's parameters and the voxel's other measurements.

        Where S0 is sampled, that is the log-likelihood. Under Gaussian noise S0 is integrated over its
        posterior from the others, with g the curve, n the averages and m, t the region's mean and spread of
        S0: precision p = 1/t² + sum' n g²/sigma², mean (m/t² + sum' n g y/sigma²) / p, and y ~ Normal(g mean,
        sigma²/n + g²/p). Its inverse is the importance weight of the posterior without that measurement, and
        varies less than that of the log-likelihood.

        Returns
        -------
        ndarray (chain, draw, voxel, measurement)
            Natural logarithm of a density in 1 / signal units.
        """
        if not NOISES[self.spec.noise].marginal:
            return self.log_likelihood()
        mean, variance = self.left_out()
        return np.asarray(-0.5 * ((self.signal - mean) ** 2 / variance + np.log(2 * np.pi * variance)))

    def left_out(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and variance of each measurement given the voxel's others, where S0 is integrated out.

        Returns
        -------
        mean, variance : ndarray (chain, draw, voxel, measurement)
            Of the normal whose log-density is `log_predictive`.
        """
        g, n, variance = self.curve, self.averages, self.sigma**2
        weight, product = n * g**2, n * g * self.signal
        precision = 1 / self.S0_sd**2 + (weight.sum(-1, keepdims=True) - weight) / variance
        others = (product.sum(-1, keepdims=True) - product) / variance
        mean = (self.S0_mean / self.S0_sd**2 + others) / precision
        return g * mean, variance / n + g**2 / precision

    def cumulative(self) -> np.ndarray:
        """Probability of a smaller measurement than each, under the density that `log_predictive` gives.

        Returns
        -------
        ndarray (chain, draw, voxel, measurement)
        """
        noise = NOISES[self.spec.noise]
        if noise.marginal:
            mean, variance = self.left_out()
            return np.asarray(ndtr((self.signal - mean) / np.sqrt(variance)))
        return np.asarray(noise.cdf(self.signal, self.S0 * self.curve, self.sigma[..., 0], self.averages))


def leave_one_out(tree: xr.DataTree | FitView, roi: str) -> az.ELPDData:
    """PSIS-LOO of every measurement of a region's voxels.

    Returns
    -------
    ELPDData
        Of ArviZ, with ``elpd_i`` and ``pareto_k`` (voxel, measurement); its standard error is that of
        `error_of`.
    """
    fit, parts = FitView.of(tree), []
    for voxels in _chunks(len(fit.voxels(roi))):
        draws = VoxelDraws.of(fit, roi, DRAWS, voxels)
        density = xr.DataArray(draws.log_predictive(), dims=(*SAMPLES, "voxel", "measurement"))
        size = density.sizes["chain"] * density.sizes["draw"]
        log_weights, k = smoothed_weights(density)
        if (np.ptp(draws.sigma, axis=1) == 0).any():  # a chain that never moved
            k = xr.full_like(k, np.inf)
        weighted = (log_weights + density).transpose(*SAMPLES, "voxel", "measurement").values
        predicted = logsumexp(weighted, axis=(0, 1))
        within = logsumexp(draws.log_likelihood(), axis=(0, 1)) - np.log(size)
        parts.append((predicted, k.transpose("voxel", "measurement").values, within))
    elpd_i, pareto_k, within = (np.concatenate(each) for each in zip(*parts, strict=True))
    good = min(1 - 1 / np.log10(size), GOOD_K)
    return az.ELPDDataLOO(
        elpd=float(elpd_i.sum()),
        se=error_of(elpd_i),
        p=float((within - elpd_i).sum()),
        n_samples=size,
        n_data_points=elpd_i.size,
        scale="log",
        warning=bool((pareto_k > good).any()),
        good_k=good,
        elpd_i=xr.DataArray(elpd_i, dims=("voxel", "measurement")),
        pareto_k=xr.DataArray(pareto_k, dims=("voxel", "measurement")),
    )


def smoothed_weights(density: xr.DataArray) -> tuple[xr.DataArray, xr.DataArray]:
    """Logarithms of the importance weights of each measurement left out, and their Pareto k.

    Parameters
    ----------
    density : DataArray (chain, draw, voxel, measurement)
        From `VoxelDraws.log_predictive`.

    Returns
    -------
    log_weights : DataArray (chain, draw, voxel, measurement)
        Pareto-smoothed; over the draws, the weights add up to 1.
    k : DataArray (voxel, measurement)
    """
    size = density.sizes["chain"] * density.sizes["draw"]
    effective = float(az.ess(density.sum("measurement").to_dataset(name="sum"))["sum"].mean())
    # PSIS refuses weights that are all the same, as draws of a chain that did not move are
    distinct = density * (1 + 1e-9 * np.linspace(0, 1, size).reshape(density.shape[:2])[..., None, None])
    log_weights, k = distinct.azstats.psislw(r_eff=min(1.0, effective / size), dim=list(SAMPLES))
    return log_weights, k


def _chunks(voxels: int) -> Iterator[slice]:
    return (slice(start, start + VOXELS) for start in range(0, voxels, VOXELS))


def error_of(pointwise: np.ndarray) -> float:
    """Give the standard error of the sum of values (voxel, measurement).

    The larger of two: with all values independent, and with those of different voxels alone.
    """
    by_voxel = pointwise.sum(axis=1)
    return float(max(np.sqrt(x.size * x.var(ddof=1)) for x in (pointwise, by_voxel) if x.size > 1))
