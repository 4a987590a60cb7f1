"""Plots of a fit: results in, axes out. Nothing is sampled and no default of matplotlib is changed."""

from typing import Any

import numpy as np
import xarray as xr

from ivimbayes.errors import InputError
from ivimbayes.signals import PARAMETERS, SIGNALS
from ivimbayes.spec import ModelSpec
from ivimbayes.summary import HDI, summarize

try:
    import matplotlib.pyplot as plt
except ModuleNotFoundError as missing:  # plots are an optional extra
    raise InputError(
        "plots need matplotlib, which is not installed; install ivimbayes with its extra: ivimbayes[plots]"
    ) from missing

BLUE, ORANGE, GREEN, PURPLE, GREY = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#555555",
)  # Okabe and Ito, colour-blind safe


def plot_decay(tree: xr.DataTree, roi: str, ax: Any = None, curves: int = 200) -> Any:
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
        If there is no such region.
    """
    posterior = tree["posterior"].to_dataset()
    if roi not in posterior["roi"].values:
        raise InputError(f"no region {roi!r}; the regions are {', '.join(posterior['roi'].values)}")
    ax = plt.subplots(figsize=(5, 3.6), layout="constrained")[1] if ax is None else ax
    region = posterior.drop_dims("voxel").sel(roi=roi).stack(sample=("chain", "draw"))
    region = region.isel(sample=np.linspace(0, region.sizes["sample"] - 1, curves).astype(int))
    measured_b = np.asarray(tree["observed_data"].to_dataset()["b"])
    b = xr.DataArray(np.linspace(0, measured_b.max(), 201), dims="b")
    signal = SIGNALS[ModelSpec.from_json(tree.attrs["spec"]).signal]
    each = signal.compartments(b, *(region[f"{p}_roi"] for p in signal.parameters))
    parts = {"region": (sum(weight * decay for weight, decay in each), BLUE)}
    if len(each) > 1:
        names = [
            "tissue part",
            "vascular part" if len(each) == 2 else "slow vascular part",
            "fast vascular part",
        ]
        parts |= {
            name: (weight * decay, colour)
            for name, (weight, decay), colour in zip(names, each, (GREEN, ORANGE, PURPLE), strict=False)
        }
    mine = posterior["voxel_roi"].values == roi
    S0 = posterior["S0"].isel(voxel=mine).median(("chain", "draw"))
    predictive = (tree["posterior_predictive"]["signal"].isel(voxel=mine) / S0).stack(
        sample=("chain", "draw", "voxel"), create_index=False
    )
    low, high = predictive.quantile([0.025, 0.975], "sample").values
    order = np.argsort(measured_b)
    ax.fill_between(
        measured_b[order],
        low[order],
        high[order],
        color=GREY,
        alpha=0.15,
        lw=0,
        label="a voxel's measurement",
    )
    for label, (curve, colour) in parts.items():
        low, middle, high = curve.quantile([0.025, 0.5, 0.975], "sample").values
        ax.fill_between(b, low, high, color=colour, alpha=0.25, lw=0)
        ax.plot(b, middle, color=colour, lw=1.5, label=label)
    measured = (tree["observed_data"]["signal"].isel(voxel=mine) / S0).mean("voxel")
    ax.plot(measured_b, measured, "o", ms=4, color="black", label="mean measured")
    ax.set(xlabel="b (s/mm²)", ylabel="signal / S0", ylim=(0, None))
    ax.set_title(roi, parse_math=False)
    ax.legend(frameon=False, fontsize="small")
    return ax


def plot_regions(tree: xr.DataTree, truth: xr.Dataset | None = None, axes: Any = None) -> Any:
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
    """
    names = SIGNALS[ModelSpec.from_json(tree.attrs["spec"]).signal].parameters
    if axes is None:
        size = (3 * len(names), 2.6)
        axes = plt.subplots(1, len(names), figsize=size, sharey=True, layout="constrained", squeeze=False)[1][
            0
        ]
    table = summarize(tree)
    regions = list(dict.fromkeys(table["roi"]))
    for ax, name in zip(axes, names, strict=True):
        parameter = PARAMETERS[name]
        rows = table[table["parameter"] == name].set_index("roi").loc[regions]
        y = np.arange(len(regions))
        ax.hlines(y, rows["hdi_low"], rows["hdi_high"], color=BLUE, lw=2)
        ax.plot(rows["median"], y, "o", color=BLUE, label=f"median, {100 * HDI:.0f} % HDI")
        if truth is not None:
            values = parameter.display_scale * truth[f"{name}_roi"].sel(roi=regions)
            ax.plot(values, y, "x", color=ORANGE, ms=8, mew=2, label="truth")
        unit = "" if parameter.display_unit == "1" else " (10⁻³ mm²/s)"
        ax.set(xlabel=parameter.label + unit, ylim=(len(regions) - 0.5, -0.5))
        ax.set_yticks(y, regions, parse_math=False)
    axes[0].legend(frameon=False, fontsize="small")
    return axes
