"""The hierarchical models, of one region and of a study: the only place that builds a `pm.Model`."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pymc as pm
import pytensor.tensor as pt
from pymc.logprob.transforms import Transform

from ivimbayes.models.correlation import beta_shapes, correlation_cholesky, pairs
from ivimbayes.models.noise import NOISES, gaussian_logp
from ivimbayes.models.signals import SIGNALS
from ivimbayes.models.spec import (
    IMAGE_SCALE,
    S0_MEAN,
    S0_MEAN_SD,
    S0_SD,
    SECOND_SHAPES,
    SECOND_SHIFT,
    ModelSpec,
)


def _solve_lower(L: Any, d: list[Any]) -> list[Any]:
    """L⁻¹ d for a small lower triangle, by elements, which compiles faster than a batched solve."""
    u: list[Any] = []
    for i, x in enumerate(d):
        u.append((x - sum(L[i][k] * u[k] for k in range(i))) / L[i][i])
    return u


def _solve_upper(L: Any, d: list[Any]) -> list[Any]:
    """L⁻ᵀ d for a small lower triangle, by elements."""
    size = len(d)
    u: list[Any] = [None] * size
    for i in reversed(range(size)):
        u[i] = (d[i] - sum(L[k][i] * u[k] for k in range(i + 1, size))) / L[i][i]
    return u


def _cholesky(A: Any) -> list[list[Any]]:
    """Cholesky factor of a small symmetric matrix, by elements (lower triangle read)."""
    L: list[list[Any]] = []
    for i in range(len(A)):
        L.append([])
        for j in range(i):
            L[i].append((A[i][j] - sum(L[i][k] * L[j][k] for k in range(j))) / L[j][j])
        L[i].append(pt.sqrt(A[i][i] - sum(L[i][k] ** 2 for k in range(i))))
    return L


def _inverse_gram(L: Any) -> list[list[Any]]:
    """Lower triangle of (L Lᵀ)⁻¹ for a small lower triangle L."""
    size = len(L)
    inverse = [_solve_lower(L, [float(i == j) for i in range(size)]) for j in range(size)]  # column by column
    return [
        [sum(inverse[i][k] * inverse[j][k] for k in range(i, size)) for j in range(i + 1)]
        for i in range(size)
    ]


class Informed(Transform):
    """A sampling space in which the posterior of every voxel is close to Normal(0, I).

    With (Lambda, eta) the Gaussian approximation of the voxel's likelihood (precision, and precision times
    centre): A = Sigma⁻¹ + Lambda, M = A⁻¹ (Sigma⁻¹ mu + eta), theta = M + chol(A)⁻ᵀ z. NUTS walks in z; the
    model is unchanged. Lambda and eta are parents of the variable, so that data can be exchanged without
    compiling again. Inputs: mu (Q,), cholesky of Sigma (Q, Q), Lambda (voxel, Q, Q), eta (voxel, Q).

    Parameters
    ----------
    size : int
        Q, what is sampled of a voxel.
    reflectors : int
        How many turn z of all voxels, so that what they share is in its first coordinates; an input (voxel,
        Q, reflector) before the rest.
    """

    name = "informed"
    ndim_supp = 1

    def __init__(self, size: int = 3, reflectors: int = 0):
        self.size, self.reflectors = size, reflectors

    def _reflect(self, z: Any, inputs: Any, order: Any) -> Any:
        for n in order:
            v = inputs[-5][..., n]
            z = z - v * (v * z).sum((-2, -1), keepdims=True)
        return z

    def _factor(self, inputs: Any) -> tuple[Any, list[Any]]:
        mu, L, Lambda, eta = inputs[-4:]
        every = range(self.size)
        rows = [[L[..., i, j] for j in range(i + 1)] for i in every]
        S = _inverse_gram(rows)
        A = [[Lambda[..., i, j] + S[i][j] for j in range(i + 1)] for i in every]
        full = [[S[max(i, j)][min(i, j)] for j in every] for i in every]
        right = [sum(full[i][j] * mu[..., j] for j in every) + eta[..., i] for i in every]
        factor = _cholesky(A)
        return factor, _solve_lower(factor, right)

    def backward(self, value: Any, *inputs: Any) -> Any:
        """Theta from z."""
        factor, shift = self._factor(inputs)
        value = self._reflect(value, inputs, reversed(range(self.reflectors)))
        return pt.stack(_solve_upper(factor, [value[..., i] + shift[i] for i in range(self.size)]), axis=-1)

    def forward(self, value: Any, *inputs: Any) -> Any:
        """Z from theta."""
        factor, shift = self._factor(inputs)
        x = [value[..., i] for i in range(self.size)]
        rows = [sum(factor[j][i] * x[j] for j in range(i, self.size)) - shift[i] for i in range(self.size)]
        return self._reflect(pt.stack(rows, axis=-1), inputs, range(self.reflectors))

    def log_jac_det(self, value: Any, *inputs: Any) -> Any:
        """Log |d theta / d z|."""
        factor, _ = self._factor(inputs)
        return -sum(pt.log(factor[i][i]) for i in range(self.size))


class Placed(Transform):
    """A sampling space in which the posterior of the image effects is close to Normal(0, I), given theta.

    Inputs: tau, location and scale (measurement,), where the voxels' signals place each effect, and the
    reflector (measurement,) of z. These are parents of the variable that its density does not depend on, as
    Lambda and eta of `Informed` are.
    """

    name = "placed"
    ndim_supp = 1

    def backward(self, value: Any, *inputs: Any) -> Any:
        """Effects from z."""
        location, scale, turn = inputs[-3:]
        return location + scale * (value - turn * (turn * value).sum(-1, keepdims=True))

    def forward(self, value: Any, *inputs: Any) -> Any:
        """Z from effects."""
        location, scale, turn = inputs[-3:]
        z = (value - location) / scale
        return z - turn * (turn * z).sum(-1, keepdims=True)

    def log_jac_det(self, value: Any, *inputs: Any) -> Any:
        """Log |d effects / d z|."""
        return pt.log(inputs[-2]).sum(-1)


def _effects_logp(effects: Any, tau: Any, location: Any, scale: Any, turn: Any) -> Any:
    return (-0.5 * (effects / tau) ** 2 - pt.log(tau) - 0.5 * np.log(2 * np.pi)).sum(-1)


def _effects_random(
    tau: Any, location: Any, scale: Any, turn: Any, rng: np.random.Generator, size: Any
) -> np.ndarray:
    shape = np.shape(location) if size is None else (*np.atleast_1d(size), np.shape(location)[-1])
    return np.asarray(np.expand_dims(tau, -1) * rng.standard_normal(shape))


def _expected_effects(d: Mapping[str, Any], mean: Any, tau: Any) -> Any:
    """Give the effects that the region's mean implies, less those of the approximation, negative."""
    along = pt.dot(d["image_pull"], mean - d["image_origin"]) - d["image_height"]
    return pt.dot(
        (along * tau**2 + d["image_offset"]) / (d["image_quality"] * tau**2 + 1), d["image_vectors"]
    )


def _image_effects(d: Mapping[str, Any], curve: Any, S0: Any, above: Any, sigma: Any, tau: Any) -> Any:
    """Declare the image effects; ``S0`` is that of each voxel, or 1, ``above`` how far its mean moved."""
    precision = d["image_certainty"] / sigma**2
    both = precision + tau**-2
    away = d["image_target"] - pt.log((d["image_weight"] * curve * S0).sum(0)) - above
    return pm.CustomDist(
        "image_effect", tau, away * precision / both, both**-0.5, d["image_turn"], logp=_effects_logp,
        random=_effects_random, signature="(),(k),(k),(k)->(k)", dims="measurement",
        default_transform=Placed(),
    )  # fmt: skip


def _population(population: str, nu: float, size: int, latent: int) -> tuple[Any, Any]:
    """Log-density and sampler of `size` parameters given the region, and of a normal S0 if latent."""
    heavy, mixed = population == "student_t", population == "mixture"
    constant = math.lgamma((nu + size) / 2) - math.lgamma(nu / 2) - size / 2 * math.log(nu * math.pi)

    def logp(theta: Any, *parents: Any) -> Any:
        mu, L = parents[-4:-2]
        every = range(latent)
        rows = [[L[..., i, j] for j in range(i + 1)] for i in every]
        u = _solve_lower(rows, [theta[..., i] - mu[..., i] for i in every])
        q = sum(u[i] ** 2 for i in range(size))
        density = -0.5 * q - size / 2 * np.log(2 * np.pi)
        if heavy:
            density = constant - 0.5 * (nu + size) * pt.log1p(q / nu)
        if mixed:
            share, shift = parents[:2]
            moved = [theta[..., i] - mu[..., i] - shift[..., i] for i in range(size)]
            apart = sum(v**2 for v in _solve_lower(rows, moved))
            density = pt.logaddexp(pt.log1p(-share) - 0.5 * q, pt.log(share) - 0.5 * apart)
            density -= size / 2 * np.log(2 * np.pi)
        density -= sum(0.5 * u[i] ** 2 + 0.5 * np.log(2 * np.pi) for i in every if i >= size)
        return density - sum(pt.log(rows[i][i]) for i in every)

    parameters = size

    def random(*parents: Any, rng: np.random.Generator, size: Any) -> np.ndarray:
        mu, L, _, eta = parents[-4:]
        shape = np.shape(eta)[:-1] if size is None else tuple(np.atleast_1d(size))
        z = rng.standard_normal((*shape, latent))
        if heavy:
            z[..., :parameters] /= np.sqrt(rng.chisquare(nu, (*shape, 1)) / nu)
        theta = np.asarray(mu + np.einsum("...ij,...j->...i", L, z))
        if mixed:
            share, shift = parents[:2]
            theta[..., :parameters] += (rng.random(shape) < share)[..., None] * shift
        return theta

    return logp, random


def _marginal_signal(noise: str) -> tuple[Any, Any]:
    """Log-density and sampler of a voxel's measurements with S0 integrated out."""
    model = NOISES[noise]

    def logp(y: Any, g: Any, sigma: Any, mean: Any, sd: Any, averages: Any) -> Any:
        return gaussian_logp(y, g, sigma, mean, sd, averages, log=pt.log)

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


def _signal(noise: str) -> tuple[Any, Any]:
    """Log-density and sampler of a voxel's measurements given S0."""
    model = NOISES[noise]

    def logp(y: Any, g: Any, S0: Any, sigma: Any, averages: Any) -> Any:
        return model.logp(y, S0[..., None] * g, sigma, averages, xp=pt).sum(-1)

    def random(g: Any, S0: Any, sigma: Any, averages: Any, rng: np.random.Generator, size: Any) -> np.ndarray:
        shape = np.shape(g)[:-1] if size is None else tuple(np.atleast_1d(size))
        return model.draw_signal(rng, g, np.broadcast_to(S0, shape), np.broadcast_to(sigma, shape), averages)

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
        of a mixture ``second_share`` and ``second_apart`` (parameter), ``theta`` (voxel, latent), with image
        effects ``image_sd`` and ``image_effect`` (measurement);
        deterministic: the signal's parameters, such as ``f``, ``D``, ``D_star`` (voxel); observed ``signal``
        (voxel, measurement).

    Notes
    -----
    theta ~ Normal or Student-t(mu, diag(sd) C diag(sd)), C ~ LKJ(eta), in the signal's unbounded parameters
    (`Signal.links`). In a mixture a share of the voxels, Beta(1, 9), is normal about mu + sd apart with the
    same covariance; apart ~ Normal(0, 4²). S0 of a voxel is Normal(S0_roi, S0_sd²): integrated out of
    ``signal`` if the noise is Gaussian, else the last of ``theta``. The curve of each image is multiplied by
    exp(image_effect), the same for all voxels: image_effect ~ Normal(0, image_sd²), image_sd ~
    HalfNormal(0.05).
    """
    signal, noise = SIGNALS[spec.signal], NOISES[spec.noise]
    (size, K), P, Q = data["observed"].shape, len(signal.parameters), len(spec.latent)
    coords = {
        "voxel": np.arange(size), "measurement": np.arange(K), "parameter": list(signal.parameters),
        "latent": list(spec.latent),
        "pair": [f"{signal.parameters[i]}:{signal.parameters[j]}" for i, j in pairs(P)],
    }  # fmt: skip
    population_logp, population_random = _population(
        spec.population if level == "voxel" else "normal", spec.nu, P, Q
    )
    images, reflected = level == "voxel" and spec.image_effects, tuple[Any, ...]()
    with pm.Model(coords=coords) as model:
        d = {name: pm.Data(name, value) for name, value in data.items()}
        if level == "voxel":
            mu = pm.Normal("mu", d["centre"], d["width"], dims="parameter")
            sd = pm.HalfNormal("sd", d["spread"], dims="parameter")
            partial: Any = pt.zeros(0)
            if P > 1:
                shape = beta_shapes(spec.eta, P)
                partial = 2 * pm.Beta("unit_partial", shape, shape, dims="pair") - 1
            rows = correlation_cholesky(partial, P, sqrt=pt.sqrt)
            L = pt.stack([sd[i] * pt.stack([pt.as_tensor(c) for c in rows[i]]) for i in range(P)])
            S0_mean = pm.Normal("S0_roi", S0_MEAN, S0_MEAN_SD)
            S0_sd = pm.HalfNormal("S0_sd", S0_SD)
        else:
            mu, L = d["centre"], pt.diag(d["width"])
            S0_mean, S0_sd = pt.constant(S0_MEAN), pt.constant(S0_MEAN_SD)
        sigma = pm.HalfNormal("sigma", d["sigma_scale"])
        second: tuple[Any, ...] = ()
        if level == "voxel" and spec.population == "mixture":
            share = pm.Beta("second_share", *SECOND_SHAPES)
            second = (share, sd * pm.Normal("second_apart", 0, SECOND_SHIFT, dims="parameter"))
        if not noise.marginal:
            mu = pt.concatenate([mu, S0_mean[None]])
            L = pt.set_subtensor(pt.zeros((Q, Q))[:P, :P], L)
            L = pt.set_subtensor(L[P, P], S0_sd)
        eta, reflectors = d["eta"], 0
        if images:
            tau, reflected = pm.HalfNormal("image_sd", IMAGE_SCALE), (d["image_reflectors"],)
            reflectors = data["image_reflectors"].shape[2]
            eta = eta + (d["image_cross"] * _expected_effects(d, mu, tau)).sum(-1)
        theta = pm.CustomDist(
            "theta", *second, *reflected, mu, L, d["Lambda"], eta,
            logp=population_logp, random=population_random,
            signature=("(),(r)," if second else "") + "(p,n)," * images + "(p),(p,q),(p,q),(p)->(p)",
            dims=("voxel", "latent"), default_transform=Informed(Q, reflectors),
        )  # fmt: skip
        values = signal.values(*(theta[:, i] for i in range(P)), exp=pt.exp)
        for name, value in zip(signal.parameters, values, strict=True):
            pm.Deterministic(name, value, dims="voxel")
        curve = signal.curve(d["b"], *(value[:, None] for value in values), exp=pt.exp)
        if images:
            if noise.marginal:
                S0, above = 1.0, S0_mean / d["image_level"][0] - 1
            else:
                S0, above = theta[:, P, None], 0.0
            curve = curve * pt.exp(_image_effects(d, curve, S0, above, sigma, tau))
        parents: tuple[Any, ...]
        if noise.marginal:
            logp, random = _marginal_signal(spec.noise)
            parents, signature = (sigma, S0_mean, S0_sd, d["averages"]), "(k),(),(),(),(k)->(k)"
        else:
            logp, random = _signal(spec.noise)
            parents, signature = (theta[:, P], sigma, d["averages"]), "(k),(),(),(k)->(k)"
        pm.CustomDist(
            "signal", curve, *parents, logp=logp, random=random, signature=signature,
            observed=d["observed"], dims=("voxel", "measurement"),
        )  # fmt: skip
    return model


def build_joint_model(data: Mapping[str, np.ndarray], spec: ModelSpec, repeated: bool) -> pm.Model:
    """Build the model of all voxels of one region in all scans of a study.

    Parameters
    ----------
    data : mapping of str to ndarray
        Of the voxels of all scans, as `build_model` takes them: ``b``, ``observed``, ``averages``,
        ``Lambda``, ``eta``; ``scan`` (voxel,) and ``subject`` (scan,), places; ``x`` (scan, effect), the
        design; ``mean``, ``width`` (parameter, effect), the effects' prior; ``between``, ``within``
        (parameter,), scales of the standard deviations, ``shapes`` (pair,), of the correlations of
        subjects; ``spread`` (scan, parameter), ``sigma_scale`` (scan,); ``scan_Lambda``, ``scan_eta``, the
        likelihood of each scan's mean as its own fit gave it, which changes the sampling space alone.
    spec : ModelSpec
        Gaussian noise and normal population.
    repeated : bool
        Whether a subject has two scans; without, ``within`` is 0.

    Returns
    -------
    pm.Model
        Free variables ``coefficient`` (parameter, effect), ``between_sd``, ``between_partial``, with sessions
        ``within_sd`` and ``subject_unit`` (subject, parameter), ``mu`` (scan, parameter), ``sd``,
        ``unit_partial``, ``sigma``, ``S0_roi``, ``S0_sd`` of each scan, and ``theta`` (voxel, parameter).

    Notes
    -----
    The level above regions is that of `fit_cohort`, the rest that of `build_model`.
    """
    signal, P = SIGNALS[spec.signal], len(SIGNALS[spec.signal].parameters)
    scans, count = data["x"].shape[0], len(data["observed"])
    coords = {
        "voxel": np.arange(count), "measurement": np.arange(len(data["b"])), "scan": np.arange(scans),
        "subject": np.arange(int(data["subject"].max()) + 1), "parameter": list(signal.parameters),
        "effect": np.arange(data["x"].shape[1]), "pair": np.arange(len(pairs(P))),
    }  # fmt: skip
    shape = beta_shapes(spec.eta, P)
    normal_logp, normal_random = _population("normal", spec.nu, P, P)
    normal = {
        "logp": normal_logp, "random": normal_random, "signature": "(p),(p,q),(p,q),(p)->(p)",
        "default_transform": Informed(P),
    }  # fmt: skip

    def factor(sd: Any, unit: Any) -> Any:
        rows = correlation_cholesky(2 * unit - 1, P, sqrt=pt.sqrt)
        each = [[pt.as_tensor(c) * sd[..., i] for c in rows[i]] for i in range(P)]
        return pt.stack(
            [pt.stack(pt.broadcast_arrays(*row, sd[..., 0])[:-1], axis=-1) for row in each], axis=-2
        )

    with pm.Model(coords=coords) as model:
        effects = pm.Normal("coefficient", data["mean"], data["width"], dims=("parameter", "effect"))
        between = pm.HalfNormal("between_sd", data["between"], dims="parameter")
        F = factor(between, pm.Beta("between_partial", data["shapes"], data["shapes"], dims="pair"))
        middle, spread = pt.dot(pt.as_tensor(data["x"]), effects.T), F
        if repeated:
            within = pm.HalfNormal("within_sd", data["within"], dims="parameter")
            unit = pm.Normal("subject_unit", 0, 1, dims=("subject", "parameter"))
            middle, spread = middle + pt.dot(unit, F.T)[data["subject"]], pt.diag(within)
        mu = pm.CustomDist(
            "mu", middle, spread, data["scan_Lambda"], data["scan_eta"], dims=("scan", "parameter"), **normal
        )
        sd = pm.HalfNormal("sd", data["spread"], dims=("scan", "parameter"))
        L = factor(sd, pm.Beta("unit_partial", shape, shape, dims=("scan", "pair")))
        S0_mean = pm.Normal("S0_roi", S0_MEAN, S0_MEAN_SD, dims="scan")
        S0_sd = pm.HalfNormal("S0_sd", S0_SD, dims="scan")
        sigma = pm.HalfNormal("sigma", data["sigma_scale"], dims="scan")
        at = data["scan"]
        theta = pm.CustomDist(
            "theta", mu[at], L[at], data["Lambda"], data["eta"], dims=("voxel", "parameter"), **normal
        )
        values = signal.values(*(theta[:, i] for i in range(P)), exp=pt.exp)
        curve = signal.curve(data["b"], *(value[:, None] for value in values), exp=pt.exp)
        logp, random = _marginal_signal("gaussian")
        pm.CustomDist(
            "signal", curve, sigma[at], S0_mean[at], S0_sd[at], data["averages"], logp=logp, random=random,
            signature="(k),(),(),(),(k)->(k)", observed=data["observed"], dims=("voxel", "measurement"),
        )  # fmt: skip
    return model
