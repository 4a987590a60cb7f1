"""The hierarchical model of one region: the only place that builds a `pm.Model`."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pymc as pm
import pytensor.tensor as pt
from pymc.logprob.transforms import Transform

from ivimbayes.noise import NOISES
from ivimbayes.signals import SIGNALS
from ivimbayes.spec import PAIRS, S0_MEAN, S0_MEAN_SD, S0_SD, ModelSpec, beta_shapes


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
        mu, L, Lambda, eta = inputs[-4:]
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
    """Log-density and sampler of theta given the region."""
    heavy = population == "student_t"
    constant = math.lgamma((nu + 3) / 2) - math.lgamma(nu / 2) - 1.5 * math.log(nu * math.pi)

    def logp(theta: Any, mu: Any, L: Any, Lambda: Any, eta: Any) -> Any:
        rows = [[L[..., i, j] for j in range(i + 1)] for i in range(3)]
        u = _solve_lower(rows, [theta[..., i] - mu[..., i] for i in range(3)])
        q = u[0] ** 2 + u[1] ** 2 + u[2] ** 2
        density = -0.5 * q - 1.5 * np.log(2 * np.pi)
        if heavy:
            density = constant - 0.5 * (nu + 3) * pt.log1p(q / nu)
        return density - pt.log(rows[0][0]) - pt.log(rows[1][1]) - pt.log(rows[2][2])

    def random(mu: Any, L: Any, Lambda: Any, eta: Any, rng: np.random.Generator, size: Any) -> np.ndarray:
        shape = np.shape(eta)[:-1] if size is None else tuple(np.atleast_1d(size))
        z = rng.standard_normal((*shape, 3))
        if heavy:
            z = z / np.sqrt(rng.chisquare(nu, (*shape, 1)) / nu)
        return np.asarray(mu + np.einsum("...ij,...j->...i", L, z))

    return logp, random


def _signal(noise: str) -> tuple[Any, Any]:
    """Log-density and sampler of a voxel's measurements with S0 integrated out."""
    model = NOISES[noise]

    def logp(y: Any, g: Any, sigma: Any, mean: Any, sd: Any, averages: Any) -> Any:
        return model.logp(y, g, sigma, mean, sd, averages, log=pt.log)

    def random(
        g: Any,
        sigma: Any,
        mean: Any,
        sd: Any,
        averages: Any,
        rng: np.random.Generator,
        size: Any,
    ) -> np.ndarray:
        shape = np.shape(g)[:-1] if size is None else tuple(np.atleast_1d(size))
        S0 = mean + sd * rng.standard_normal(shape)
        return model.draw_signal(rng, g, S0, np.broadcast_to(sigma, shape), averages)

    return logp, random


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
            "theta", mu, L, d["Lambda"], d["eta"],
            logp=population_logp, random=population_random, signature="(p),(p,q),(p,q),(p)->(p)",
            dims=("voxel", "parameter"), default_transform=Informed(),
        )  # fmt: skip
        values = signal.values(*(theta[:, i] for i in range(3)), exp=pt.exp)
        for name, value in zip(signal.parameters, values, strict=True):
            pm.Deterministic(name, value, dims="voxel")
        curve = signal.curve(d["b"], *(value[:, None] for value in values), exp=pt.exp)
        pm.CustomDist(
            "signal", curve, sigma, S0_mean, S0_sd, d["averages"],
            logp=signal_logp, random=signal_random, signature="(k),(),(),(),(k)->(k)",
            observed=d["observed"], dims=("voxel", "measurement"),
        )  # fmt: skip
    return model
