"""Plots of a fit: signals and regions. Results in, axes out; nothing is sampled, no default is changed."""

from typing import Any

import numpy as np
import xarray as xr

from ivimbayes.errors import InputError
from ivimbayes.models.signals import PARAMETERS
from ivimbayes.plotting.style import (
    AMBER,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    fit_with,
    interval_of,
    label_of,
    legend_above,
    log_scale,
    many_axes,
    name_regions,
    one_axes,
    plain,
    region_draws,
    regions_of,
    signal_of,
)
from ivimbayes.results.regions import take_region
from ivimbayes.results.stored import FitView
from ivimbayes.results.summary import HDI, NORMAL_SD

BAND = (0.025, 0.5, 0.975)
VOXEL_QUANTILES = {0.1: ("v", ORANGE, ":"), 0.5: ("o", BLUE, "-"), 0.9: ("^", GREEN, "--")}
VOXEL_DRAWS = 250  # of a chain
GOLDEN = 0.618034  # multiples of it, modulo 1, spread points evenly


def plot_decay(tree: xr.DataTree | FitView, roi: str, ax: Any = None, curves: int = 200) -> Any:
    """Plot the signal decay of a region with its posterior.

    Parameters
    ----------
    tree : DataTree
        From `fit`.
    roi : str
        Name of the region.
    ax : Axes, optional
        Where to draw; a new figure when not given.
    curves : int
        Posterior draws the bands are made of.

    Returns
    -------
    Axes
        Mean measured signal over the fitted voxels, relative to S0; posterior median and 95 % band of the
        region's median voxel, its tissue and vascular parts, and the posterior predictive band of a voxel's
        measurement.

    Raises
    ------
    InputError
        If there is no such region, or the tree lacks what is drawn.
    """
    fit = fit_with(tree, "posterior", "observed_data", "posterior_predictive", roi=roi)
    posterior, signal, mine = fit.posterior, signal_of(fit), fit.voxels(roi)
    ax = one_axes(ax)
    names = [f"{p}_roi" for p in signal.parameters]
    region = posterior[names].drop_dims("voxel", errors="ignore").sel(roi=roi).stack(sample=("chain", "draw"))
    region = region.isel(sample=np.linspace(0, region.sizes["sample"] - 1, curves).astype(int))
    measured_b = np.asarray(fit.observed["b"].values, float)
    b = xr.DataArray(np.linspace(0, measured_b.max(), 201), dims="b")
    each = signal.compartments(b, *(region[f"{p}_roi"] for p in signal.parameters))
    parts = {"region": (sum(weight * decay for weight, decay in each), BLUE, "-")}
    if len(each) > 1:
        vascular = ["vascular part"] if len(each) == 2 else ["slow vascular part", "fast vascular part"]
        looks = ((GREEN, "--"), (ORANGE, "-."), (PURPLE, ":"))
        for name, (weight, decay), look in zip(["tissue part", *vascular], each, looks, strict=False):
            parts[name] = (weight * decay, *look)
    S0 = posterior["S0"].isel(voxel=mine).median(("chain", "draw"))
    predictive = (fit.tree["posterior_predictive"]["signal"].isel(voxel=mine) / S0).stack(
        sample=("chain", "draw", "voxel"), create_index=False
    )
    low, _, high = predictive.quantile(BAND, "sample").values
    order = np.argsort(measured_b)
    shape = (measured_b[order], low[order], high[order])
    ax.fill_between(*shape, color=GREY, alpha=0.15, lw=0, label="a voxel's measurement")
    for label, (curve, colour, style) in parts.items():
        low, middle, high = curve.quantile(BAND, "sample").values
        ax.fill_between(b, low, high, color=colour, alpha=0.25, lw=0)
        ax.plot(b, middle, color=colour, ls=style, lw=1.5, label=label)
    measured = (fit.observed["signal"].isel(voxel=mine) / S0).mean("voxel")
    ax.plot(measured_b, measured, "o", ms=4, color="black", label="mean measured")
    bottom = min(0.0, 1.1 * float(measured.min()))
    ax.set(xlabel="b (s/mm²)", ylabel="signal / S0", title=plain(roi), ylim=(bottom, None))
    ax.legend(frameon=False, fontsize="small")
    return ax


def plot_predictive(tree: xr.DataTree | FitView, roi: str, ax: Any = None) -> Any:
    """Plot the measured signals of a region's voxels against those that the fit predicts.

    At each b value, the 10, 50 and 90 % quantiles over the voxels: of what was measured, and of the draws of
    the posterior predictive (each draw repeats every voxel's measurements), as their 95 % band. Where the
    model describes the signals, about 95 % of the measured quantiles lie in their bands; both know the same
    signals, so a little more.

    Parameters
    ----------
    tree : DataTree
        From `fit`.
    roi : str
        Name of the region.
    ax : Axes, optional
        Where to draw; a new figure when not given.

    Returns
    -------
    Axes
        Signals in signal units. Of a region fitted by its mean curve, the curve and its band.

    Raises
    ------
    InputError
        If there is no such region, or the tree lacks what is drawn.
    """
    fit = fit_with(tree, "posterior", "observed_data", "posterior_predictive", roi=roi)
    mine = fit.voxels(roi)
    measured = fit.observed["signal"].isel(voxel=mine).transpose("voxel", "measurement")
    predicted = fit.tree["posterior_predictive"]["signal"].isel(voxel=mine)
    predicted = predicted.stack(sample=("chain", "draw"), create_index=False)
    b = np.asarray(fit.observed["b"].values, float)
    order = np.argsort(b, kind="stable")
    single = len(mine) == 1
    ax = one_axes(ax)
    for q in (0.5,) if single else tuple(VOXEL_QUANTILES)[::-1]:
        marker, colour, style = VOXEL_QUANTILES[q]
        over_voxels = predicted.astype(float).quantile(q, "voxel")
        low, middle, high = over_voxels.quantile(BAND, "sample").values[:, order]
        what = "mean curve" if single else f"{100 * q:.0f} % quantile"
        ax.fill_between(b[order], low, high, color=colour, alpha=0.25, lw=0)
        ax.plot(b[order], middle, color=colour, ls=style, lw=1, label=f"predicted, {what}")
        found = measured.quantile(q, "voxel").values
        ax.plot(b, found, marker, ms=4, color=colour, mec="black", mew=0.5, label=f"measured, {what}")
    ax.set(xlabel="b (s/mm²)", ylabel="signal (signal units)", title=plain(roi))
    ax.legend(frameon=False, fontsize="small")
    return ax


def plot_regions(tree: xr.DataTree | FitView, truth: xr.Dataset | None = None, axes: Any = None) -> Any:
    """Plot median and 95 % HDI of the parameters (f, D and D*) of each region.

    Parameters
    ----------
    tree : DataTree
        From `fit`.
    truth : Dataset, optional
        ``f_roi``, ``D_roi``, ``D_star_roi`` (roi) to mark, as `phantom` gives them.
    axes : sequence of Axes, optional
        Where to draw; a new figure when not given.

    Returns
    -------
    ndarray of Axes
        One for each parameter of the signal.

    Raises
    ------
    InputError
        If the tree lacks what is drawn, the truth a region, or there are not as many axes as parameters.
    """
    fit = FitView.of(tree)
    names, regions = signal_of(fit).parameters, regions_of(fit)
    if truth is not None:
        _check_truth(truth, names, regions)
    axes = many_axes(axes, names, (3, 0.35 * len(regions) + 1.55), sharey=True)
    y = np.arange(len(regions))
    for ax, name in zip(axes, names, strict=True):
        found = [interval_of(region_draws(fit, name, roi)) for roi in regions]
        middle, low, high = np.transpose(found)
        ax.hlines(y, low, high, color=BLUE, lw=2)
        ax.plot(middle, y, "o", color=BLUE, label=f"median, {100 * HDI:.0f} % HDI")
        if truth is not None:
            values = PARAMETERS[name].display_scale * truth[f"{name}_roi"].sel(roi=regions)
            ax.plot(values, y, "x", color=ORANGE, ms=8, mew=2, label="truth")
        ax.set(xlabel=label_of(name))
    axes[0].set(ylim=(len(regions) - 0.5, -0.5))
    axes[0].set_yticks(y, [plain(roi) for roi in regions])
    legend_above(axes[0])
    return axes


def _check_truth(truth: xr.Dataset, names: tuple[str, ...], regions: list[str]) -> None:
    if absent := [f"{name}_roi" for name in names if f"{name}_roi" not in truth]:
        raise InputError(f"truth: has no {absent[0]}; give a Dataset as phantom makes it")
    if absent := [roi for roi in regions if roi not in truth["roi"].values]:
        raise InputError(f"truth: has no region {absent[0]!r}; give values of all regions, or none")


def plot_spread(tree: xr.DataTree | FitView, axes: Any = None) -> Any:
    """Plot how a region's voxels differ: their posterior medians beside the region's median voxel.

    Parameters
    ----------
    tree : DataTree
        From `fit`.
    axes : sequence of Axes, optional
        Where to draw; a new figure when not given.

    Returns
    -------
    ndarray of Axes
        One for each parameter of the signal. In each, by region: the posterior median of every fitted voxel
        (dots, spread sideways to be seen), and the posterior median of the region's median voxel (square)
        with the central 68 % range of the voxels' values (bar), the posterior mean of both ends, half the
        width of which is ``spread`` in `summarize`. Medians of voxels that rest on the region lie closer
        together than the voxels' values do.

    Raises
    ------
    InputError
        If only mean curves were fitted, the tree lacks what is drawn, or there are not as many axes as
        parameters.
    """
    fit = FitView.of(tree)
    names, regions = signal_of(fit).parameters, regions_of(fit)
    if all(len(fit.voxels(roi)) < 2 for roi in regions):
        raise InputError(
            "tree: the regions' mean curves were fitted, which have no spread; fit with level voxel"
        )
    axes = many_axes(axes, names, (max(3.0, 0.7 * len(regions) + 0.8), 3.2))
    for ax, name in zip(axes, names, strict=True):
        for i, roi in enumerate(regions):
            voxels = _voxel_draws(fit, name, roi)
            medians = voxels.median(("chain", "draw")).values
            beside = i - 0.3 + 0.4 * (GOLDEN * np.arange(len(medians)) % 1)
            ax.plot(beside, medians, "o", ms=2.5, mew=0, color=BLUE, alpha=0.6)
            at, middle = i + 0.28, float(np.median(region_draws(fit, name, roi)))
            if len(medians) > 1:
                low, high = voxels.quantile(NORMAL_SD, "voxel").mean(("chain", "draw")).values
                ax.vlines(at, low, high, color=ORANGE, lw=3, alpha=0.6)
            ax.plot(at, middle, "s", ms=5, color=ORANGE, mec="black", mew=0.5)
        if name in ("D_star", "D_star_fast"):
            log_scale(ax.yaxis)
        ax.set(ylabel=label_of(name), xlim=(-0.6, len(regions) - 0.4))
        name_regions(ax, np.arange(len(regions)), regions)
    _label_spread(axes[0])
    return axes


def _voxel_draws(fit: FitView, name: str, roi: str) -> xr.DataArray:
    """Take some draws of a region's voxels, in the units shown."""
    values = take_region(fit.posterior[[name]], roi)[name]
    size = values.sizes["draw"]
    kept = np.linspace(0, size - 1, min(size, VOXEL_DRAWS)).astype(int)
    return PARAMETERS[name].display_scale * values.isel(draw=kept).astype(float)


def _label_spread(ax: Any) -> None:
    ax.plot([], [], "o", ms=2.5, mew=0, color=BLUE, label="voxels, posterior median")
    ax.plot([], [], "s-", ms=5, color=ORANGE, mec="black", mew=0.5, lw=3, label="region, 68 % of its voxels")
    legend_above(ax)


def plot_sessions(before: xr.DataTree, after: xr.DataTree, axes: Any = None) -> Any:
    """Plot the regions of two fits side by side, and how they differ.

    Parameters
    ----------
    before, after : DataTree
        From `fit`, of the same regions with the same signal model.
    axes : ndarray of Axes (2, parameter), optional
        Where to draw; a new figure when not given.

    Returns
    -------
    ndarray of Axes (2, parameter)
        Above, median and 95 % HDI of each region's value in both fits; below, of the difference after less
        before. The two posteriors are taken to be independent. The difference does not hold what differs
        between any two sessions with nothing changed, such as where the region was drawn.

    Raises
    ------
    InputError
        If the fits are not of the same regions and signal model, or there are not two axes for each
        parameter.
    """
    one, two = FitView.of(before), FitView.of(after)
    names, regions = signal_of(one).parameters, regions_of(one)
    if (other := signal_of(two).parameters) != names:
        raise InputError(
            f"after: its signal has the parameters {', '.join(other)}, that of before {', '.join(names)}; "
            "fit both with the same --signal"
        )
    if set(there := regions_of(two)) != set(regions):
        raise InputError(
            f"after: its regions are {', '.join(there)}, those of before {', '.join(regions)}; "
            "fit the same regions"
        )
    what = [*names, *(f"change of {name}" for name in names)]
    axes = many_axes(axes, what, (max(3.0, 0.7 * len(regions) + 0.8), 2.8), rows=2)
    x = np.arange(len(regions))
    for top, bottom, name in zip(*axes, names, strict=True):
        draws = [[region_draws(fit, name, roi) for roi in regions] for fit in (one, two)]
        looks = (("before", "o", BLUE, -0.12), ("after", "s", AMBER, 0.12))
        for of_fit, (label, marker, colour, aside) in zip(draws, looks, strict=True):
            _intervals(top, x + aside, of_fit, marker, colour, label)
        change = [_difference(*pair) for pair in zip(*draws, strict=True)]
        _intervals(bottom, x, change, "D", GREY, "after - before")
        bottom.axhline(0, color="black", lw=0.8, ls=":")
        top.set(ylabel=label_of(name), xlim=(-0.5, len(regions) - 0.5))
        bottom.set(ylabel=f"change, {label_of(name)}", xlim=(-0.5, len(regions) - 0.5))
        for ax in (top, bottom):
            name_regions(ax, x, regions)
    legend_above(axes[0, 0])
    return axes


def _difference(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Draws of the difference of two independent values.

    Draws are paired across chains: two fits with one seed may move alike, draw by draw.
    """
    one, two = before.ravel(), after.ravel()
    size = min(one.size, two.size)
    kept = [each[np.linspace(0, each.size - 1, size).astype(int)] for each in (one, two)]
    return np.asarray(np.roll(kept[1], size // 2) - kept[0])


def _intervals(ax: Any, x: np.ndarray, draws: list[np.ndarray], marker: str, colour: str, label: str) -> None:
    middle, low, high = np.transpose([interval_of(each) for each in draws])
    ax.vlines(x, low, high, color=colour, lw=2)
    ax.plot(x, middle, marker, color=colour, mec="black", mew=0.5, label=f"{label}, {100 * HDI:.0f} % HDI")
