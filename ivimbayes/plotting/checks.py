"""Plots that check a fit: chains, energy, effective draws, leave-one-out, and the comparison of models."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import arviz as az
import numpy as np
import xarray as xr
from arviz_base.labels import MapLabeller
from scipy.stats import kstwo

from ivimbayes.checks.calibration import BAND as RANK_BAND
from ivimbayes.checks.calibration import rank_band
from ivimbayes.errors import InputError
from ivimbayes.fitting.convergence import BFMI, ESS
from ivimbayes.plotting.style import (
    BLUE,
    GREY,
    ORANGE,
    fit_with,
    label_of,
    many_axes,
    okabe_ito,
    one_axes,
    plain,
    region_draws,
    signal_of,
)
from ivimbayes.results.comparison import Comparison
from ivimbayes.results.leave_one_out import VoxelDraws, leave_one_out, smoothed_weights
from ivimbayes.results.stored import FitView

PIT_DRAWS, PIT_VOXELS = 1000, 50  # draws in all, and voxels at a time
BAND = 0.95
BINS = 40
COLUMNS = 4  # of plots of ranks
LINEAR = 10.0  # elpd differences up to which the axis is linear


def plot_trace(tree: xr.DataTree, roi: str) -> Any:
    """Plot the draws of a region's values, chain by chain: their density, and one after another.

    Parameters
    ----------
    tree : DataTree
        From `fit`.
    roi : str
        Name of the region.

    Returns
    -------
    PlotCollection
        Of ArviZ's ``plot_trace_dist``, a row for each parameter of the signal and sigma; its figure is
        ``.viz["figure"].item()``. Ticks below mark divergent transitions.

    Raises
    ------
    InputError
        If there is no such region, or the tree lacks what is drawn.
    """
    fit = fit_with(tree, "posterior", "sample_stats", roi=roi)
    stats = tree["sample_stats"].to_dataset().sel(roi=roi, drop=True)[["diverging"]]
    values = _region_values(fit, [roi]).isel(region=0, drop=True)
    with okabe_ito():
        return az.plot_trace_dist(
            xr.DataTree.from_dict({"posterior": values, "sample_stats": stats}),
            compact=False,
            combined=False,
            kind="kde",
            labeller=_labeller(values),
            backend="matplotlib",
            aes={"color": ["chain"], "linestyle": ["chain"], "overlay": ["chain"]},
            aes_by_visuals={"dist": ["color", "linestyle"], "trace": ["color"]},
            visuals={"trace": {"width": 0.6, "alpha": 0.7}},
            figure_kwargs={"figsize": (8.0, 1.7 * len(values)), "layout": "constrained"},
        )


def plot_ess(tree: xr.DataTree) -> Any:
    """Plot the effective draws behind the quantiles of each region's values.

    Parameters
    ----------
    tree : DataTree
        From `fit`.

    Returns
    -------
    PlotCollection
        Of ArviZ's ``plot_ess``: a row for each parameter of the signal and sigma, a column for each region;
        its figure is ``.viz["figure"].item()``. The line is at 400, below which `diagnose` doubts a value.

    Raises
    ------
    InputError
        If the tree has no posterior.
    """
    fit = fit_with(tree, "posterior")
    regions, values = fit.regions, _region_values(fit, fit.regions)
    size = (1.0 + 2.2 * len(regions), 1.7 * len(values))
    with okabe_ito(), az.rc_context({"plot.max_subplots": None}):
        return az.plot_ess(
            xr.DataTree.from_dict({"posterior": values}),
            kind="quantile",
            min_ess=ESS,
            labeller=_labeller(values),
            backend="matplotlib",
            col_wrap=len(regions),
            visuals={"ess": {"color": BLUE, "size": 14}, "title": {"size": 9}},
            figure_kwargs={"figsize": size, "layout": "constrained"},
        )


def plot_khat(tree: xr.DataTree) -> Any:
    """Plot Pareto k of leaving out each measurement of each region's voxels.

    Parameters
    ----------
    tree : DataTree
        From `fit`.

    Returns
    -------
    PlotCollection
        Of ArviZ's ``plot_khat``, with a colour and a marker for each region, and the share of the
        measurements between the lines; its figure is ``.viz["figure"].item()``. Above the middle line (0.7,
        lower for few draws) the leave-one-out estimates that `compare_models` rests on are unreliable.

    Raises
    ------
    InputError
        If the tree lacks what is drawn.
    """
    fit = fit_with(tree, "posterior", "observed_data", "constant_data")
    found = {roi: leave_one_out(fit, roi) for roi in fit.regions}
    k = [
        xr.DataArray(
            each.pareto_k.values.ravel(),
            dims="point",
            coords={"region": ("point", [roi] * each.pareto_k.size)},
        )
        for roi, each in found.items()
    ]
    loo = replace(next(iter(found.values())), pareto_k=xr.concat(k, "point"))
    with okabe_ito():
        return az.plot_khat(
            loo,
            backend="matplotlib",
            aes={"color": ["region"], "marker": ["region"]},
            visuals={
                "khat": {"size": 9, "alpha": 0.7},
                "hlines": {"color": GREY},
                "bin_text": {"size": 8},
                "xlabel": {"text": "measurement of a voxel"},
                "ylabel": {"text": "Pareto k"},
            },
            figure_kwargs={"figsize": (8.0, 3.6), "layout": "constrained"},
        )


def plot_energy(tree: xr.DataTree, axes: Any = None) -> Any:
    """Plot the energy of each region's chains, and how far it changes from draw to draw.

    Where the change is much narrower than the energy, the sampler explores slowly (low E-BFMI).

    Parameters
    ----------
    tree : DataTree
        From `fit`.
    axes : sequence of Axes, optional
        Where to draw, one for each region; a new figure when not given.

    Returns
    -------
    ndarray of Axes
        Densities of both, as steps, with the lowest E-BFMI of a chain, which is of all its draws. Where
        draws were thinned the change is that between kept draws, and wider.

    Raises
    ------
    InputError
        If the tree lacks what is drawn, or there are not as many axes as regions.
    """
    fit = fit_with(tree, "posterior", "sample_stats", "constant_data")
    regions = fit.regions
    axes = many_axes(axes, regions, (2.8, 2.8))
    for ax, roi in zip(axes, regions, strict=True):
        energy = tree["sample_stats"]["energy"].sel(roi=roi).transpose("chain", "draw").values
        record = fit.record(roi)
        every = round(float(record["transitions"]) / energy.size)
        centred, change = energy - energy.mean(), np.diff(energy, axis=1)
        edges = np.histogram_bin_edges(np.concatenate([centred.ravel(), change.ravel()]), BINS)
        after = "a draw" if every == 1 else f"{every} draws"
        for values, colour, style, label in (
            (centred, BLUE, "-", "energy, from its mean"),
            (change, ORANGE, "--", f"change over {after}"),
        ):
            heights = np.histogram(values, edges, density=True)[0]
            ax.stairs(heights, edges, color=colour, ls=style, lw=1.5, label=label)
            ax.stairs(heights, edges, color=colour, alpha=0.15, fill=True)
        low = "" if float(record["bfmi"]) >= BFMI else f", below {BFMI}"
        ax.set(
            xlabel="energy (nats)",
            ylabel="density per nat",
            title=f"{plain(roi)}\nE-BFMI {float(record['bfmi']):.2f}{low}",
        )
        ax.set_ylim(0, 1.45 * ax.get_ylim()[1])
    axes[0].legend(frameon=False, fontsize="small", loc="upper left")
    return axes


def plot_loo_pit(tree: xr.DataTree, roi: str, ax: Any = None) -> Any:
    """Plot whether the measurements of a region's voxels fall where the others predict them.

    The leave-one-out PIT of a measurement is the probability of a smaller one, given the region and the
    voxel's other measurements (importance-weighted draws, as in `compare_models`). Where the model holds, the
    values are uniform. Drawn is the share of them below each probability, less that probability. A line
    above zero on the left and below it on the right says that signals scatter more than the model predicts;
    the reverse, less.

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
        The difference, and the band in which 95 % of such lines lie as a whole if the values are independent
        and uniform (Kolmogorov's statistic). Those of one voxel are not quite independent.

    Raises
    ------
    InputError
        If there is no such region, or the tree lacks what is drawn.
    """
    fit = fit_with(tree, "posterior", "observed_data", "constant_data", roi=roi)
    pit = np.sort(leave_one_out_pit(fit, roi).ravel())
    ax = one_axes(ax)
    half = float(kstwo.ppf(BAND, pit.size))
    ax.fill_between([0, 1], -half, half, color=GREY, alpha=0.2, lw=0, label=f"{100 * BAND:.0f} % band")
    share = np.arange(pit.size + 1) / pit.size
    p, share = np.repeat(np.r_[0.0, pit, 1.0], 2)[1:-1], np.repeat(share, 2)
    ax.plot(p, share - p, color=BLUE, lw=1.5, label=f"{pit.size} measurements")
    ax.axhline(0, color="black", lw=0.8, ls=":")
    ax.set(
        xlabel="leave-one-out PIT (probability)",
        ylabel="share below, less expected",
        title=plain(roi),
        xlim=(0, 1),
    )
    ax.legend(frameon=False, fontsize="small")
    return ax


def leave_one_out_pit(tree: xr.DataTree | FitView, roi: str) -> np.ndarray:
    """Probability of a smaller measurement, given the voxel's others, (voxel, measurement)."""
    fit, parts = FitView.of(tree), []
    for start in range(0, len(fit.voxels(roi)), PIT_VOXELS):
        draws = VoxelDraws.of(fit, roi, PIT_DRAWS, slice(start, start + PIT_VOXELS))
        density = xr.DataArray(draws.log_predictive(), dims=("chain", "draw", "voxel", "measurement"))
        weights = np.exp(smoothed_weights(density)[0].transpose(*density.dims).values)
        parts.append((weights * draws.cumulative()).sum(axis=(0, 1)))
    return np.clip(np.concatenate(parts), 0, 1)


def plot_comparison(comparison: Comparison, ax: Any = None) -> Any:
    """Plot how much worse each fit predicts than the best of its region.

    Parameters
    ----------
    comparison : Comparison
        From `compare_models`.
    ax : Axes, optional
        Where to draw; a new figure when not given.

    Returns
    -------
    Axes
        For each region and fit, the difference in elpd from the region's best and one standard error to both
        sides; full markers for the fit chosen, crosses for one whose numbers are not to be relied on (see
        ``warning`` in the table). The axis is linear up to differences of 10, logarithmic beyond.

    Raises
    ------
    InputError
        If the comparison is empty.
    """
    table = comparison.table
    if table.empty:
        raise InputError("comparison: holds no region; give what compare_models returns")
    rows = list(table.itertuples())
    new = [i > 0 and row.roi != rows[i - 1].roi for i, row in enumerate(rows)]
    y = np.arange(len(rows)) + 0.6 * np.cumsum(new)
    ax = one_axes(ax, (6.0, 0.28 * (y[-1] + 1) + 1.2))
    for at, row in zip(y, rows, strict=True):
        ax.hlines(at, row.elpd_diff - row.se_diff, row.elpd_diff + row.se_diff, color=BLUE, lw=1.5)
        face = BLUE if row.chosen else "white"
        ax.plot(row.elpd_diff, at, "X" if row.warning else "o", color=BLUE, mfc=face, ms=6)
    ax.axvline(0, color="black", lw=0.8, ls=":")
    ax.set_yticks(y, [plain(f"{row.roi}: {row.fit}") for row in rows])
    ax.set(ylim=(y[-1] + 0.7, -0.7), xlabel="elpd less that of the region's best fit (nats)")
    if (table["elpd_diff"] - table["se_diff"]).min() < -LINEAR:
        ax.set_xscale("symlog", linthresh=LINEAR)
        ax.xaxis.set_major_formatter("{x:g}")
    for marker, face, label in (
        ("o", BLUE, "chosen"),
        ("o", "white", "not chosen"),
        ("X", "white", "see warning"),
    ):
        if label != "see warning" or table["warning"].astype(bool).any():
            ax.plot([], [], marker, color=BLUE, mfc=face, ls="", label=label)
    ax.legend(frameon=False, fontsize="small", ncols=3, loc="lower right", bbox_to_anchor=(1.0, 1.0))
    return ax


def plot_calibration(
    result: xr.Dataset, quantities: Sequence[str] | None = None, axes: Any = None
) -> np.ndarray:
    """Plot whether the true values' ranks among the draws are uniform.

    Parameters
    ----------
    result : Dataset
        From `calibrate`.
    quantities : sequence of str, optional
        Which; all when not given.
    axes : array of Axes, optional
        One for each quantity; a new figure when not given.

    Returns
    -------
    ndarray of Axes (quantity,)
        The share of ranks below each value, less that value, and the band in which 99 % of such lines lie as
        a whole if ranks are uniform; orange where a line leaves it. A line above zero on the left and below
        it on the right says that posteriors are too narrow; above zero throughout, too high.

    Raises
    ------
    InputError
        If a quantity is not among those ranked.
    """
    known = [str(name) for name in result["quantity"].values]
    chosen = known if quantities is None else list(quantities)
    if absent := [name for name in chosen if name not in known]:
        raise InputError(f"no quantity {absent[0]!r}; ranked are {', '.join(known)}")
    columns = min(len(chosen), COLUMNS)
    rows = -(-len(chosen) // columns)
    if axes is None:
        padded = [*chosen, *[""] * (rows * columns - len(chosen))]
        axes = many_axes(None, padded, (2.0, 1.7), rows, sharex=True, sharey=True).ravel()
        for ax in axes[len(chosen) :]:
            ax.set_axis_off()
        axes = axes[: len(chosen)]
    axes = many_axes(axes, chosen, (2.0, 1.7))
    for i, (ax, name) in enumerate(zip(axes, chosen, strict=True)):
        points, ecdf, low, high = rank_band(result["rank"].sel(quantity=name).values, RANK_BAND)
        within = bool(((low <= ecdf) & (ecdf <= high)).all())
        ax.fill_between(points, low - points, high - points, color=GREY, alpha=0.2, lw=0, step="post")
        ax.step(points, ecdf - points, where="post", color=BLUE if within else ORANGE, lw=1.2)
        ax.axhline(0, color="black", lw=0.8, ls=":")
        ax.set_title(plain(name) if within else f"{plain(name)}: outside", fontsize=9)
        ax.set_xlim(0, 1)
        if i % columns == 0:
            ax.set_ylabel("share less\nexpected", fontsize=8)
        if i + columns >= len(chosen):
            ax.set_xlabel("rank (share of draws)", fontsize=8)
            ax.tick_params(labelbottom=True)
    return axes


def _region_values(fit: FitView, regions: list[str]) -> xr.Dataset:
    """Draws (chain, draw, region) of what is reported of the regions, in the units shown."""
    names = (*signal_of(fit).parameters, "sigma")
    data = {n: np.stack([region_draws(fit, n, roi) for roi in regions], axis=-1) for n in names}
    coords = {dim: fit.posterior[dim].values for dim in ("chain", "draw")} | {"region": regions}
    return xr.Dataset({n: (("chain", "draw", "region"), v) for n, v in data.items()}, coords)


def _labeller(values: xr.Dataset) -> Any:
    return MapLabeller(var_name_map={str(name): label_of(str(name)) for name in values.data_vars})
