"""From the chains of each region to one DataTree in the ArviZ schema, in signal units."""

from collections.abc import Mapping, Sequence
from typing import Any

import arviz as az
import numpy as np
import xarray as xr

from ivimbayes.fitting.draws import split_draws
from ivimbayes.fitting.packing import noise_constant
from ivimbayes.io.netcdf import shorten
from ivimbayes.models.correlation import correlations, covariance, pairs
from ivimbayes.models.noise import NOISES
from ivimbayes.models.population import (
    add_second,
    draw_image_effects,
    draw_levels,
    draw_region_prior,
    draw_second_prior,
    draw_theta,
    second_probability,
)
from ivimbayes.models.signals import PARAMETERS, SIGNALS
from ivimbayes.models.spec import S0_MEAN, S0_MEAN_SD, ModelSpec, sigma_scale

PRIOR_DRAWS, PRIOR_PREDICTIVE_DRAWS, PREDICTIVE_DRAWS = 1000, 50, 100
STATS = {
    "diverging": "diverging", "energy": "energy", "logp": "lp", "n_steps": "n_steps", "depth": "tree_depth",
    "step_size": "step_size", "mean_tree_accept": "acceptance_rate",
    "maxdepth_reached": "reached_max_treedepth",
}  # fmt: skip
Arrays = dict[str, np.ndarray]


def collect_region(
    voxels: xr.Dataset,
    spec: ModelSpec,
    scale: float,
    block: np.ndarray,
    chains: Sequence[xr.DataTree],
    seed: int,
    draws: int,
) -> xr.DataTree:
    """Turn the chains of one region into a tree, adding what follows from the draws.

    Parameters
    ----------
    voxels : Dataset
        What was fitted, from `choose_voxels`.
    spec : ModelSpec
        Model with the region's prior.
    scale : float
        What signals were divided by.
    block : ndarray
        What was sampled, from `pack_region`.
    chains : sequence of DataTree
        One chain each, as the sampler returns them: coordinates ``x``.
    seed : int
        Seed of S0, the prior and the predictive draws.
    draws : int
        Draws to keep of each chain, evenly spaced.

    Returns
    -------
    DataTree
        As `fit` describes, with one ``roi``.
    """
    rng = np.random.default_rng([seed, int(voxels.attrs["label"]), 1])
    stats = xr.concat([c["sample_stats"].to_dataset() for c in chains], "chain", join="override")
    thin = stats.sizes["draw"] // draws
    pooled = voxels.attrs["level"] == "voxel"
    kept = np.linspace(0, draws - 1, min(draws, -(-PREDICTIVE_DRAWS // len(chains)))).astype(int)
    parts = []
    for chain in chains:  # one after another: the draws of many voxels are large
        x = chain["posterior"].to_dataset()["x"].values[0, thin - 1 :: thin]
        parts.append(_of_chain(voxels, spec, scale, split_draws(x, block), pooled, kept, rng))
    by_voxel, log_likelihood, predictive, hyper = (
        {name: np.stack([part[n][name] for part in parts]) for name in parts[0][n]} for n in range(4)
    )
    signal = SIGNALS[spec.signal]
    region_values = signal.values(*np.moveaxis(hyper["mu"], -1, 0))
    region = {f"{p}_roi": v for p, v in zip(signal.parameters, region_values, strict=True)}
    prior, prior_predictive = _prior(voxels, spec, scale, pooled, rng)
    chain_draw, coords = ("chain", "draw"), _coords(voxels, spec)
    chain_coords = {"chain": np.arange(len(chains)), "draw": np.arange(draws)}
    few = chain_coords | {"draw": kept}
    one, prior_few = ({"chain": [0], "draw": np.arange(n)} for n in (PRIOR_DRAWS, PRIOR_PREDICTIVE_DRAWS))
    groups = {
        "posterior": _dataset(by_voxel | region | hyper, chain_draw, coords | chain_coords),
        "prior": _dataset(prior, chain_draw, coords | one),
        "posterior_predictive": _dataset(predictive, chain_draw, coords | few),
        "prior_predictive": _dataset({"signal": shorten(prior_predictive)}, chain_draw, coords | prior_few),
        "log_likelihood": _dataset(log_likelihood, chain_draw, coords | chain_coords),
        "sample_stats": _stats(stats, thin, chain_coords, coords),
        "observed_data": _dataset({"signal": voxels["signal"].values}, (), coords),
        "constant_data": _constants(voxels, stats, coords),
    }
    return xr.DataTree.from_dict(groups)


def _of_chain(
    voxels: xr.Dataset,
    spec: ModelSpec,
    scale: float,
    raw: Arrays,
    pooled: bool,
    kept: np.ndarray,
    rng: np.random.Generator,
) -> tuple[Arrays, Arrays, Arrays, Arrays]:
    """Turn one chain into voxel values, log-likelihood, predictive signals at `kept` and hyperparameters.

    In signal units; what has voxels is rounded for storage.
    """
    signal, noise, averages = SIGNALS[spec.signal], NOISES[spec.noise], voxels["averages"].values
    values = dict(zip(signal.parameters, signal.values(*np.moveaxis(raw["theta"], -1, 0)), strict=True))
    S0 = raw["S0_mean"] + raw["S0_scale"] * rng.standard_normal(raw["S0_mean"].shape)
    unit = noise_constant(spec.noise, voxels["signal"].values / scale, averages)
    unit -= voxels.sizes["measurement"] * np.log(scale)
    curve = signal.curve(voxels["b"].values, *(values[n][kept, :, None] for n in signal.parameters))
    images = {name: raw[name] for name in ("image_sd", "image_effect") if name in raw}
    if images:
        curve = curve * np.exp(images["image_effect"][kept, None, :])
    predictive = noise.draw_signal(rng, curve, S0[kept], raw["sigma"][kept, None], averages)
    by_voxel = {k: shorten(v) for k, v in {**values, "S0": scale * S0}.items()}
    hyper = images | {name: scale * raw[name] for name in ("sigma", "S0_roi", "S0_sd")}
    if pooled:
        correlation = correlations(raw["partial"], len(signal.parameters))
        hyper |= {"mu": raw["mu"], "sd": raw["sd"], "correlation": correlation}
        if spec.population == "mixture":
            second = {name: raw[name] for name in ("second_share", "second_shift")}
            inside = second_probability(raw["theta"], raw["mu"], raw["sd"], correlation, *second.values())
            hyper |= second
            by_voxel["second_probability"] = shorten(inside)
    else:  # one curve has no spread
        hyper |= {"mu": raw["theta"][:, 0], **_no_spread(len(S0), len(signal.parameters))}
    log_likelihood = {"signal": shorten(raw["log_likelihood"] + unit)}
    return by_voxel, log_likelihood, {"signal": shorten(scale * predictive)}, hyper


def _no_spread(draws: int, parameters: int) -> Arrays:
    return {
        "sd": np.full((draws, parameters), np.nan),
        "correlation": np.full((draws, len(pairs(parameters))), np.nan),
    }


def _prior(
    voxels: xr.Dataset, spec: ModelSpec, scale: float, pooled: bool, rng: np.random.Generator
) -> tuple[Arrays, np.ndarray]:
    """Draws of the region's prior, and signals of its voxels under some of them, in signal units."""
    drawn = draw_region_prior(spec.prior, PRIOR_DRAWS, rng, spec.eta, spec.signal)
    mixed = pooled and spec.population == "mixture"
    if mixed:
        drawn |= draw_second_prior(drawn["sd"], rng)
    P = drawn["mu"].shape[1]
    averages = voxels["averages"].values
    if pooled and spec.image_effects:
        drawn |= draw_image_effects(voxels.sizes["measurement"], PRIOR_DRAWS, rng)
    if pooled:
        drawn |= draw_levels(averages, PRIOR_DRAWS, rng)
    else:  # one curve: S0 itself is normal about the prior's mean
        fixed = {"S0_roi": np.full(PRIOR_DRAWS, S0_MEAN), "S0_sd": np.full(PRIOR_DRAWS, S0_MEAN_SD)}
        drawn |= {"sigma": np.abs(sigma_scale(averages) * rng.standard_normal(PRIOR_DRAWS))} | fixed
    if not pooled:
        drawn |= _no_spread(PRIOR_DRAWS, P)
    Sigma = covariance(drawn["sd"], drawn["correlation"]) if pooled else np.zeros((PRIOR_DRAWS, P, P))
    signal, V, predictive = SIGNALS[spec.signal], voxels.sizes["voxel"], []
    for d in range(PRIOR_PREDICTIVE_DRAWS):
        theta = draw_theta(drawn["mu"][d], Sigma[d], V, rng, spec.population, spec.nu)
        if mixed:
            theta = add_second(theta, drawn["second_share"][d], drawn["second_shift"][d], rng)
        curve = signal.curve(voxels["b"].values, *(v[:, None] for v in signal.values(*theta.T)))
        if "image_effect" in drawn:
            curve = curve * np.exp(drawn["image_effect"][d])
        S0 = drawn["S0_roi"][d] + drawn["S0_sd"][d] * rng.standard_normal(V)
        predictive.append(
            NOISES[spec.noise].draw_signal(rng, curve, S0, np.full(V, drawn["sigma"][d]), averages)
        )
    drawn |= {name: scale * drawn[name] for name in ("sigma", "S0_roi", "S0_sd")}
    return {k: v[None] for k, v in drawn.items()}, scale * np.stack(predictive)[None]


def _coords(voxels: xr.Dataset, spec: ModelSpec) -> dict[str, Any]:
    names = SIGNALS[spec.signal].parameters
    return {
        "roi": [voxels.attrs["roi"]], "voxel_roi": ("voxel", [voxels.attrs["roi"]] * voxels.sizes["voxel"]),
        **{axis: ("voxel", voxels[axis].values) for axis in "xyz"},
        "parameter": list(names), "pair": [f"{names[i]}:{names[j]}" for i, j in pairs(len(names))],
        "b": ("measurement", voxels["b"].values, {"units": "s/mm2"}),
    }  # fmt: skip


DIMS = {
    **dict.fromkeys((*(p for p in PARAMETERS if p != "sigma"),), ("voxel",)),
    **dict.fromkeys((*(f"{p}_roi" for p in PARAMETERS), "sigma", "S0_sd"), ("roi",)),
    "signal": ("voxel", "measurement"), "second_probability": ("voxel",),
    **dict.fromkeys(("mu", "sd", "second_shift"), ("roi", "parameter")), "correlation": ("roi", "pair"),
    "second_share": ("roi",), "image_sd": ("roi",), "image_effect": ("roi", "measurement"),
}  # fmt: skip
LONG_NAMES = {
    "mu": "mean of theta, the signal's unbounded parameters, in the region",
    "sd": "scale of theta between voxels (its standard deviation, if the population is normal)",
    "correlation": "correlation of theta between voxels",
    "second_probability": "probability that the voxel is of the second population",
    "second_share": "share of the region's voxels in the second population",
    "second_shift": "mean of theta in the second population less that of the first",
    "image_sd": "standard deviation of the image effects of the region",
    "image_effect": "logarithm of the factor that all signals of the region have in common in an image",
    "S0_roi": "mean S0 of the region",
    "S0_sd": "standard deviation of S0 between voxels",
    "signal": "diffusion-weighted signal",
}


def _dataset(
    arrays: Mapping[str, np.ndarray], leading: tuple[str, ...], coords: dict[str, Any]
) -> xr.Dataset:
    """Dataset with the dims, units and names of every variable, and only the coordinates it uses."""
    data = {}
    for name, values in arrays.items():
        dims = (*leading, *DIMS[name])
        if name == "signal" and values.ndim == len(leading) + 1:  # a voxel's density is one number
            dims = dims[:-1]
        if dims[len(leading) : len(leading) + 1] == ("roi",):
            values = np.expand_dims(values, len(leading))
        data[name] = (dims, values, _attrs(name))
    used = {dim for dims, *_ in data.values() for dim in dims}
    kept = {
        k: v
        for k, v in coords.items()
        if (k in used if not isinstance(v, tuple) else v[0] in used and (k != "voxel_roi" or "voxel" in used))
    }
    return xr.Dataset(data, coords=kept)


def _attrs(name: str) -> dict[str, str]:
    parameter = PARAMETERS.get(name.removesuffix("_roi"))
    if name in LONG_NAMES:
        unit = "signal units" if name in ("S0_roi", "S0_sd", "signal") else "1"
        return {"units": unit, "long_name": LONG_NAMES[name]}
    assert parameter is not None
    suffix = " of the region's median voxel" if name.endswith("_roi") else ""
    return {"units": parameter.unit, "long_name": parameter.long_name + suffix}


def _stats(
    stats: xr.Dataset, thin: int, chain_coords: Mapping[str, Any], coords: Mapping[str, Any]
) -> xr.Dataset:
    data = {new: stats[old].values for old, new in STATS.items() if old in stats}
    shape = (len(chain_coords["chain"]), len(chain_coords["draw"]), thin)
    grouped = {k: v.reshape(shape) for k, v in data.items()}
    kept = {k: v.any(-1) if k == "diverging" else v[..., -1] for k, v in grouped.items()}
    return xr.Dataset(
        {k: (("chain", "draw", "roi"), v[..., None]) for k, v in kept.items()},
        coords={**chain_coords, "roi": coords["roi"]},
    )


def _constants(voxels: xr.Dataset, stats: xr.Dataset, coords: dict[str, Any]) -> xr.Dataset:
    """Tell what was fitted, and how sampling went over all draws, also those thinned out."""
    a = voxels.attrs
    keep = {k: coords[k] for k in ("roi", "voxel_roi", "x", "y", "z", "b")}
    return xr.Dataset(
        {
            "averages": (("voxel", "measurement"), voxels["averages"].values, {"units": "1"}),
            "label": ("roi", [a["label"]]),
            "level": ("roi", [a["level"]]),
            "available": ("roi", [a["available"]], {"long_name": "usable voxels in the region"}),
            "averaged": ("roi", [a["averaged"]], {"long_name": "voxels averaged into a full curve"}),
            "reason": ("roi", [a["reason"]], {"long_name": "why the mean curve was fitted"}),
            "divergences": ("roi", [int(stats["diverging"].sum())]),
            "transitions": ("roi", [int(stats["diverging"].size)]),
            "bfmi": ("roi", [np.min(az.bfmi(stats["energy"].values))]),
            "left_out": ("roi", [a["left_out"]], {"long_name": "voxels not fitted for their signals"}),
        },
        coords=keep,
    )  # fmt: skip


def join_regions(regions: Mapping[str, xr.DataTree], scan: xr.Dataset) -> xr.DataTree:
    """Join the trees of the regions along ``roi`` and ``voxel``; they are emptied, not to hold all twice."""
    trees = list(regions.values())
    groups = {}
    for name in list(trees[0].children):
        parts = [tree[str(name)].to_dataset() for tree in trees]
        groups[str(name)] = xr.merge(
            [
                xr.concat(
                    [p[[v for v in p.data_vars if dim in p[v].dims]] for p in parts],
                    dim, join="override", combine_attrs="override", coords="minimal", compat="override",
                )
                for dim in ("roi", "voxel")
                if any(dim in p[v].dims for p in parts for v in p.data_vars)
            ],
            combine_attrs="override", compat="override", join="outer",
        )  # fmt: skip
        del parts
        for tree in trees:
            del tree[name]
        if "voxel" in groups[str(name)].dims:
            groups[str(name)] = groups[str(name)].assign_coords(
                voxel=np.arange(groups[str(name)].sizes["voxel"])
            )
    groups["constant_data"]["affine"] = (("row", "column"), scan["affine"].values, {"units": "mm"})
    groups["constant_data"]["attempts"] = ("roi", [int(t.attrs["attempts"]) for t in trees])
    return xr.DataTree.from_dict(groups)
