"""The hierarchical model of one region: the specification, and the only place that builds a `pm.Model`."""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import pymc as pm
import pytensor.tensor as pt
import xarray as xr
from pymc.logprob.transforms import Transform

from ivimbayes.errors import InputError
from ivimbayes.least_squares import Population
from ivimbayes.noise import NOISES
from ivimbayes.priors import TissuePrior, tissue_prior
from ivimbayes.signals import SIGNALS

POPULATIONS = ("normal", "student_t")
PAIRS = ((0, 1), (0, 2), (1, 2))
S0_MEAN, S0_MEAN_SD, S0_SD, SIGMA_SCALE = 1.0, 0.5, 0.5, 0.2  # of a region scaled to a median S0 near 1


@dataclass(frozen=True)
class ModelSpec:
    """What is fitted to a region.

    Attributes
    ----------
    signal : str
        A name in `SIGNALS`.
    noise : str
        A name in `NOISES`.
    population : {"normal", "student_t"}
        Distribution of the voxels around the region. Student-t shrinks voxels that differ from the rest,
        such as a lesion's, less.
    nu : float
        Degrees of freedom of the Student-t population, above 2.
    eta : float
        Shape of the LKJ prior of the correlations between voxel parameters; 1 is uniform.
    prior : TissuePrior
        Prior of the region.

    Examples
    --------
    >>> spec = ModelSpec(population="student_t")
    >>> ModelSpec.from_json(spec.to_json()) == spec
    True
    """

    signal: str = "biexponential"
    noise: str = "gaussian"
    population: str = "normal"
    nu: float = 4.0
    eta: float = 2.0
    prior: TissuePrior = field(default_factory=lambda: tissue_prior("generic"))

    def __post_init__(self) -> None:
        for name, accepted in (("signal", SIGNALS), ("noise", NOISES), ("population", POPULATIONS)):
            if getattr(self, name) not in accepted:
                raise InputError(f"{name} {getattr(self, name)!r}; accepted are {', '.join(accepted)}")
        if not self.nu > 2:
            raise InputError(f"nu {self.nu:g}; the Student-t population needs more than 2")
        if not self.eta > 0:
            raise InputError(f"eta {self.eta:g}; the LKJ prior needs more than 0")

    def with_prior(self, prior: TissuePrior) -> "ModelSpec":
        """Return the same model with another prior."""
        return replace(self, prior=prior)

    def to_json(self) -> str:
        """JSON text, without loss."""
        return json.dumps(
            {**{f.name: getattr(self, f.name) for f in fields(self)}, "prior": self.prior.to_dict()}
        )

    @classmethod
    def from_json(cls, text: str) -> "ModelSpec":
        """Inverse of `to_json`."""
        plain = json.loads(text)
        return cls(**{**plain, "prior": TissuePrior.from_dict(plain["prior"])})


def correlation_cholesky(partial: Any, sqrt: Callable[[Any], Any] = np.sqrt) -> list[list[Any]]:
    """Lower Cholesky factor (row by row) of the 3 x 3 correlation with the given partial correlations.

    ``partial[..., i]`` belongs to the pairs (0, 1), (0, 2) and (1, 2) given 0. With the first two
    2 Beta(eta + ½, eta + ½) - 1 and the last 2 Beta(eta, eta) - 1 the correlation is LKJ(eta) (Lewandowski,
    Kurowicka and Joe 2009).
    """
    r10, r20, r21 = partial[..., 0], partial[..., 1], partial[..., 2]
    c10, c20, c21 = sqrt(1 - r10**2), sqrt(1 - r20**2), sqrt(1 - r21**2)
    zero, one = 0 * r10, 1 + 0 * r10
    return [[one, zero, zero], [r10, c10, zero], [r20, r21 * c20, c21 * c20]]


def beta_shapes(eta: float) -> np.ndarray:
    """Beta shape of each partial correlation under LKJ(eta), in the order of `PAIRS`."""
    return np.array([eta + 0.5, eta + 0.5, eta])


def _solve_lower(L: Any, d: list[Any]) -> list[Any]:
    """L⁻¹ d for a 3 x 3 lower triangle, by elements."""
    u0 = d[0] / L[0][0]
    u1 = (d[1] - L[1][0] * u0) / L[1][1]
    return [u0, u1, (d[2] - L[2][0] * u0 - L[2][1] * u1) / L[2][2]]


def _solve_upper(L: Any, d: list[Any]) -> list[Any]:
    """L⁻ᵀ d for a 3 x 3 lower triangle, by elements."""
    u2 = d[2] / L[2][2]
    u1 = (d[1] - L[2][1] * u2) / L[1][1]
    return [(d[0] - L[1][0] * u1 - L[2][0] * u2) / L[0][0], u1, u2]


def _cholesky(A: Any) -> list[list[Any]]:
    """Cholesky factor of a symmetric 3 x 3 matrix, by elements (lower triangle read)."""
    a = pt.sqrt(A[0][0])
    b, d = A[1][0] / a, A[2][0] / a
    c = pt.sqrt(A[1][1] - b**2)
    e = (A[2][1] - d * b) / c
    return [[a], [b, c], [d, e, pt.sqrt(A[2][2] - d**2 - e**2)]]


def _inverse_gram(L: Any) -> list[list[Any]]:
    """Lower triangle of (L Lᵀ)⁻¹ for a 3 x 3 lower triangle L."""
    i00, i11, i22 = 1 / L[0][0], 1 / L[1][1], 1 / L[2][2]
    i10 = -L[1][0] * i00 * i11
    i21 = -L[2][1] * i11 * i22
    i20 = -(L[2][0] * i00 + L[2][1] * i10) * i22
    return [
        [i00**2 + i10**2 + i20**2],
        [i10 * i11 + i20 * i21, i11**2 + i21**2],
        [i20 * i22, i21 * i22, i22**2],
    ]


class Informed(Transform):
    """A sampling space in which the posterior of every voxel is close to Normal(0, I).

    With (Lambda, eta) the Gaussian approximation of the voxel's likelihood (precision, and precision times
    centre): A = Sigma⁻¹ + Lambda, M = A⁻¹ (Sigma⁻¹ mu + eta), theta = M + chol(A)⁻ᵀ z. NUTS walks in z; the
    model is unchanged. Lambda and eta are parents of the variable, so that data can be exchanged without
    compiling again. Inputs: mu (3,), cholesky of Sigma (3, 3), Lambda (voxel, 3, 3), eta (voxel, 3).
    """

    name = "informed"
    ndim_supp = 1

    @staticmethod
    def _factor(inputs: Any) -> tuple[Any, list[Any]]:
        mu, L, Lambda, eta = inputs[-5:-1]
        rows = [[L[..., i, j] for j in range(i + 1)] for i in range(3)]
        S = _inverse_gram(rows)
        A = [[Lambda[..., i, j] + S[i][j] for j in range(i + 1)] for i in range(3)]
        full = [[S[max(i, j)][min(i, j)] for j in range(3)] for i in range(3)]
        right = [sum(full[i][j] * mu[..., j] for j in range(3)) + eta[..., i] for i in range(3)]
        factor = _cholesky(A)
        return factor, _solve_lower(factor, right)

    def backward(self, value: Any, *inputs: Any) -> Any:
        """Theta from z."""
        factor, shift = self._factor(inputs)
        return pt.stack(_solve_upper(factor, [value[..., i] + shift[i] for i in range(3)]), axis=-1)

    def forward(self, value: Any, *inputs: Any) -> Any:
        """Z from theta."""
        factor, shift = self._factor(inputs)
        x = [value[..., i] for i in range(3)]
        rows = [sum(factor[j][i] * x[j] for j in range(i, 3)) - shift[i] for i in range(3)]
        return pt.stack(rows, axis=-1)

    def log_jac_det(self, value: Any, *inputs: Any) -> Any:
        """Log |d theta / d z|."""
        factor, _ = self._factor(inputs)
        return -(pt.log(factor[0][0]) + pt.log(factor[1][1]) + pt.log(factor[2][2]))


def _population(population: str, nu: float) -> tuple[Any, Any]:
    """Log-density and sampler of theta given the region; voxels that only pad the data stay normal."""
    heavy = population == "student_t"
    constant = math.lgamma((nu + 3) / 2) - math.lgamma(nu / 2) - 1.5 * math.log(nu * math.pi)

    def logp(theta: Any, mu: Any, L: Any, Lambda: Any, eta: Any, present: Any) -> Any:
        rows = [[L[..., i, j] for j in range(i + 1)] for i in range(3)]
        u = _solve_lower(rows, [theta[..., i] - mu[..., i] for i in range(3)])
        q = u[0] ** 2 + u[1] ** 2 + u[2] ** 2
        density = -0.5 * q - 1.5 * np.log(2 * np.pi)
        if heavy:
            density = pt.switch(present > 0, constant - 0.5 * (nu + 3) * pt.log1p(q / nu), density)
        return density - pt.log(rows[0][0]) - pt.log(rows[1][1]) - pt.log(rows[2][2])

    def random(
        mu: Any, L: Any, Lambda: Any, eta: Any, present: Any, rng: np.random.Generator, size: Any
    ) -> np.ndarray:
        shape = np.shape(present) if size is None else tuple(np.atleast_1d(size))
        z = rng.standard_normal((*shape, 3))
        if heavy:
            z = z / np.sqrt(rng.chisquare(nu, (*shape, 1)) / nu)
        return np.asarray(mu + np.einsum("...ij,...j->...i", L, z))

    return logp, random


def _signal(noise: str) -> tuple[Any, Any]:
    """Log-density and sampler of a voxel's measurements with S0 integrated out."""
    model = NOISES[noise]

    def logp(y: Any, g: Any, sigma: Any, mean: Any, sd: Any, averages: Any, present: Any) -> Any:
        return present * model.logp(y, g, sigma, mean, sd, averages, log=pt.log)

    def random(
        g: Any,
        sigma: Any,
        mean: Any,
        sd: Any,
        averages: Any,
        present: Any,
        rng: np.random.Generator,
        size: Any,
    ) -> np.ndarray:
        shape = (
            np.broadcast_shapes(np.shape(g)[:-1], np.shape(present))
            if size is None
            else tuple(np.atleast_1d(size))
        )
        S0 = mean + sd * rng.standard_normal(shape)
        return model.draw_signal(rng, g, S0, np.broadcast_to(sigma, shape), averages)

    return logp, random


def model_data(
    voxels: xr.Dataset, spec: ModelSpec, population: Population, scale: float, size: int | None = None
) -> dict[str, np.ndarray]:
    """Arrays of one region, padded to `size` voxels, that a built or compiled model takes.

    Parameters
    ----------
    voxels : Dataset
        From `choose_voxels`: ``signal`` and ``averages`` (voxel, measurement), ``b`` (measurement).
    spec : ModelSpec
        Model with the region's prior.
    population : Population
        Where the likelihood of each voxel is approximated; changes the sampling space, not the model.
    scale : float
        Signals are divided by this.
    size : int, optional
        Number of voxels to pad to.
    """
    signal, averages = voxels["signal"].values / scale, voxels["averages"].values
    V = len(signal)
    pad = (V if size is None else size) - V

    def padded(values: np.ndarray, fill: float) -> np.ndarray:
        return np.concatenate([values, np.full((pad, *values.shape[1:]), fill)])

    return {
        "b": voxels["b"].values,
        "observed": padded(signal, 1.0),
        "averages": padded(averages, 1.0),
        "present": padded(np.ones(V), 0.0),
        "Lambda": padded(population.precision, 0.0),
        "eta": padded(population.shift, 0.0),
        "centre": spec.prior.theta_centre,
        "width": spec.prior.theta_width,
        "spread": spec.prior.theta_spread,
        "sigma_scale": np.array(SIGMA_SCALE * np.sqrt(np.median(averages))),
    }


def build_model(data: Mapping[str, np.ndarray], spec: ModelSpec, level: str = "voxel") -> pm.Model:
    """Build the model of one region.

    Parameters
    ----------
    data : mapping of str to ndarray
        From `model_data`; becomes the model's ``pm.Data``.
    spec : ModelSpec
        Signal, noise and population; the prior's numbers are in `data`.
    level : {"voxel", "mean"}
        With "mean" there is one curve, whose parameters have the region's prior.

    Returns
    -------
    pm.Model
        Free variables ``mu``, ``sd`` (parameter), ``unit_partial`` (pair), ``sigma``, ``S0_roi``, ``S0_sd``,
        ``theta`` (voxel, parameter); deterministic ``f``, ``D``, ``D_star`` (voxel); observed ``signal``
        (voxel, measurement).

    Notes
    -----
    theta = (logit f, ln D, ln(D* - D)) ~ Normal or Student-t(mu, diag(sd) C diag(sd)), C ~ LKJ(eta). S0 of
    a voxel is Normal(S0_roi, S0_sd²) and integrated out of ``signal``.
    """
    signal = SIGNALS[spec.signal]
    size, K = data["observed"].shape
    coords = {
        "voxel": np.arange(size), "measurement": np.arange(K), "parameter": list(signal.parameters),
        "pair": [f"{signal.parameters[i]}:{signal.parameters[j]}" for i, j in PAIRS],
    }  # fmt: skip
    population_logp, population_random = _population(
        spec.population if level == "voxel" else "normal", spec.nu
    )
    signal_logp, signal_random = _signal(spec.noise)
    with pm.Model(coords=coords) as model:
        d = {name: pm.Data(name, value) for name, value in data.items()}
        if level == "voxel":
            mu = pm.Normal("mu", d["centre"], d["width"], dims="parameter")
            sd = pm.HalfNormal("sd", d["spread"], dims="parameter")
            shape = beta_shapes(spec.eta)
            partial = 2 * pm.Beta("unit_partial", shape, shape, dims="pair") - 1
            rows = correlation_cholesky(partial, sqrt=pt.sqrt)
            L = pt.stack([sd[i] * pt.stack(rows[i]) for i in range(3)])
            S0_mean = pm.Normal("S0_roi", S0_MEAN, S0_MEAN_SD)
            S0_sd = pm.HalfNormal("S0_sd", S0_SD)
        else:
            mu, L = d["centre"], pt.diag(d["width"])
            S0_mean, S0_sd = pt.constant(S0_MEAN), pt.constant(S0_MEAN_SD)
        sigma = pm.HalfNormal("sigma", d["sigma_scale"])
        theta = pm.CustomDist(
            "theta", mu, L, d["Lambda"], d["eta"], d["present"],
            logp=population_logp, random=population_random, signature="(p),(p,q),(p,q),(p),()->(p)",
            dims=("voxel", "parameter"), default_transform=Informed(),
        )  # fmt: skip
        values = signal.values(*(theta[:, i] for i in range(3)), exp=pt.exp)
        for name, value in zip(signal.parameters, values, strict=True):
            pm.Deterministic(name, value, dims="voxel")
        curve = signal.curve(d["b"], *(value[:, None] for value in values), exp=pt.exp)
        pm.CustomDist(
            "signal", curve, sigma, S0_mean, S0_sd, d["averages"], d["present"],
            logp=signal_logp, random=signal_random, signature="(k),(),(),(),(k),()->(k)",
            observed=d["observed"], dims=("voxel", "measurement"),
        )  # fmt: skip
    return model
