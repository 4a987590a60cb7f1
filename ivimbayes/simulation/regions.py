"""Signals drawn from the priors, and the embedded phantom of known truth."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from ivimbayes.models.correlation import covariance
from ivimbayes.models.noise import NOISES
from ivimbayes.models.population import draw_region_prior, draw_theta
from ivimbayes.models.priors import TissuePrior, tissue_prior
from ivimbayes.models.signals import PARAMETERS, SIGNALS

PHANTOM_B = (0, 0, 10, 20, 40, 80, 110, 140, 170, 200, 300, 400, 500, 600, 700, 800)
PHANTOM_TISSUES = {
    "liver": {"f": 0.22, "D": 1.10e-3, "D_star": 65e-3},
    "kidney": {"f": 0.16, "D": 2.00e-3, "D_star": 28e-3},
    "pancreas": {"f": 0.14, "D": 1.35e-3, "D_star": 20e-3},
}
PHANTOM_SPREAD = (0.3, 0.12, 0.3)
PHANTOM_SHAPE = (40, 40, 2)


def simulate(
    b: Any,
    snr: float,
    voxels: int = 100,
    regions: int = 1,
    *,
    signal: str = "biexponential",
    prior: TissuePrior | None = None,
    eta: float = 2.0,
    population: str = "normal",
    nu: float = 3.0,
    S0: float = 100.0,
    S0_spread: float = 0.1,
    noise: str = "gaussian",
    image_sd: float = 0.0,
    seed: int = 0,
) -> tuple[xr.Dataset, xr.Dataset]:
    """Simulate regions whose populations are drawn from a prior.

    Parameters
    ----------
    b : array_like (measurement,)
        s/mm².
    snr : float
        S0 over the noise standard deviation of one measurement.
    voxels, regions : int
        Voxels a region, and regions.
    signal : str
        A name in `SIGNALS`.
    prior : TissuePrior, optional
        Generic when not given.
    eta, population, nu
        As in `ModelSpec`.
    S0, S0_spread : float
        Mean of S0 and its relative standard deviation between voxels.
    noise : str
        A name in `NOISES`.
    image_sd : float
        Standard deviation of the image effects: the logarithm of a factor that all voxels of a region have in
        common in an image.
    seed : int
        Seed of everything drawn.

    Returns
    -------
    scan : Dataset
        As `read_scan` gives it, with ``x`` counting voxels and ``y`` regions.
    truth : Dataset
        The signal's parameters, such as ``f``, ``D``, ``D_star``, and ``S0`` (x, y, z), and the regions'
        values ``f_roi``, ``D_roi``, ``D_star_roi`` (roi).

    Examples
    --------
    >>> scan, truth = simulate([0, 20, 50, 100, 400, 800], snr=30, voxels=5, regions=2)
    >>> dict(scan["signal"].sizes)
    {'x': 5, 'y': 2, 'z': 1, 'measurement': 6}
    >>> bool((truth["D"] < truth["D_star"]).all())
    True
    """
    rng = np.random.default_rng(seed)
    b = np.asarray(b, float)
    drawn = draw_region_prior(tissue_prior("generic") if prior is None else prior, regions, rng, eta, signal)
    Sigma = covariance(drawn["sd"], drawn["correlation"])
    theta = np.stack(
        [draw_theta(drawn["mu"][r], Sigma[r], voxels, rng, population, nu) for r in range(regions)], axis=1
    )
    names = {r + 1: f"region-{r + 1}" for r in range(regions)}
    labels = np.broadcast_to(np.arange(1, regions + 1), (voxels, regions))
    factor = np.exp(image_sd * np.random.default_rng([seed, 1]).standard_normal((regions, 1, len(b))))
    scan, truth = _image(
        theta[:, :, None], labels[:, :, None], b, S0, S0_spread, S0 / snr, noise, names, rng, signal, factor
    )
    for name in SIGNALS[signal].parameters:
        truth[f"{name}_roi"] = ("roi", drawn[f"{name}_roi"])
    return scan, truth.assign_coords(roi=list(names.values()))


def phantom(snr: float = 40.0, seed: int = 2026) -> tuple[xr.Dataset, xr.Dataset]:
    """Make the embedded phantom: three tissues of known f, D and D* in two slices, Rician noise.

    Parameters
    ----------
    snr : float
        S0 over the noise standard deviation.
    seed : int
        Seed of everything drawn.

    Returns
    -------
    scan : Dataset
        As `read_scan` gives it: 40 x 40 x 2 voxels, 16 measurements, regions liver, kidney, pancreas.
    truth : Dataset
        ``f``, ``D``, ``D_star``, ``S0`` (x, y, z), and ``f_roi``, ``D_roi``, ``D_star_roi`` (roi), the values
        of each region's median voxel.

    Examples
    --------
    >>> scan, truth = phantom()
    >>> float(truth["f_roi"].sel(roi="liver"))
    0.22
    """
    rng = np.random.default_rng(seed)
    x, y, z = np.meshgrid(*(np.arange(n) for n in PHANTOM_SHAPE), indexing="ij")
    labels = np.zeros(PHANTOM_SHAPE, int)
    labels[((x - 14) / 11) ** 2 + ((y - 22) / 12) ** 2 <= 1] = 1
    labels[((x - 32) / 5) ** 2 + ((y - 12) / 8) ** 2 <= 1] = 2
    labels[((x - 29) / 7) ** 2 + ((y - 29) / 4) ** 2 <= 1] = 3
    theta = np.zeros((*PHANTOM_SHAPE, 3))
    names = dict(enumerate(PHANTOM_TISSUES, start=1))
    Sigma = np.diag(np.square(PHANTOM_SPREAD))
    for label, name in names.items():
        inside = labels == label
        mu = np.array(SIGNALS["biexponential"].theta(*PHANTOM_TISSUES[name].values()))
        theta[inside] = draw_theta(mu, Sigma, int(inside.sum()), rng)
    b = np.array(PHANTOM_B, float)
    scan, truth = _image(theta, labels, b, 300.0, 0.1, 300.0 / snr, "rician", names, rng)
    for parameter in ("f", "D", "D_star"):
        truth[f"{parameter}_roi"] = ("roi", [PHANTOM_TISSUES[name][parameter] for name in names.values()])
    return scan, truth.assign_coords(roi=list(names.values()))


def _image(
    theta: np.ndarray,
    labels: np.ndarray,
    b: np.ndarray,
    S0: float,
    S0_spread: float,
    sigma: float,
    noise: str,
    names: Mapping[int, str],
    rng: np.random.Generator,
    signal_model: str = "biexponential",
    factor: np.ndarray | float = 1.0,
) -> tuple[xr.Dataset, xr.Dataset]:
    inside, model = labels > 0, SIGNALS[signal_model]
    values = model.values(*np.moveaxis(theta, -1, 0))
    S0_map = np.where(inside, S0 * (1 + S0_spread * rng.standard_normal(labels.shape)), 0.0)
    curve = factor * model.curve(b, *(v[..., None] for v in values))
    signal = NOISES[noise].draw_signal(rng, curve, S0_map, np.full(labels.shape, sigma), np.ones(len(b)))
    space = ("x", "y", "z")
    scan = xr.Dataset(
        {
            "signal": ((*space, "measurement"), signal, {"units": "signal units"}),
            "roi": (space, labels.astype(np.int32)),
            "affine": (("row", "column"), np.diag([2.0, 2.0, 5.0, 1.0]), {"units": "mm"}),
        },
        coords={
            "b": ("measurement", b, {"units": "s/mm2"}),
            "averages": ("measurement", np.ones(len(b)), {"units": "1"}),
        },
        attrs={
            "roi_names": json.dumps({str(k): v for k, v in names.items()}),
            "inputs": "{}",
            "source": "simulation",
            "real_valued": int(not NOISES[noise].magnitude),
        },
    )
    maps = dict(zip(model.parameters, values, strict=True)) | {"S0": S0_map}
    truth = xr.Dataset(
        {
            name: (space, np.where(inside, value, np.nan), PARAMETERS[name].attrs)
            for name, value in maps.items()
        }
    )
    return scan, truth
