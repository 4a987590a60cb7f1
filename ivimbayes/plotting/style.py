"""What the plots share: colours, axes, labels with units, draws in the units shown, and what is refused."""

from collections.abc import Sequence
from typing import Any

import arviz as az
import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from cycler import cycler
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from ivimbayes.errors import InputError
from ivimbayes.models.signals import PARAMETERS, Signal
from ivimbayes.results.stored import FitView
from ivimbayes.results.summary import HDI

BLUE, ORANGE, GREEN, PURPLE, GREY = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#555555",
)  # Okabe and Ito, colour-blind safe
SKY, AMBER = "#56B4E9", "#E69F00"
CHAINS = (BLUE, ORANGE, GREEN, PURPLE, SKY, AMBER)
# Colour maps of the maps, in figures and in the report.
MAP_COLOURS = {
    "mean": "viridis",
    "interval": "plasma",
    "sd": "magma",
    "probability": "cividis",
    "underlay": "gray",
}
UNITS = {"1": "", "1e-3 mm2/s": "10⁻³ mm²/s"}
FEW_TICKS = 6.0  # upper end over lower of a logarithmic axis
LONGEST = 32  # characters of a label
SHORT_NAMES = {"sigma": "σ"}


def unit_of(name: str) -> str:
    """Give the unit that a parameter is shown in; empty where it has none."""
    unit = PARAMETERS[name].display_unit
    return UNITS.get(unit, unit)


def label_of(name: str) -> str:
    """Label of an axis that shows a parameter, with its unit."""
    label, unit = SHORT_NAMES.get(name, PARAMETERS[name].label), unit_of(name)
    return f"{label} ({unit})" if unit else label


def plain(text: str) -> str:
    """Make a label of a user's text: cut where it is long; dollar signs, which make formulas, escaped."""
    text = text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
    return text.replace("$", r"\$")


def fit_with(tree: xr.DataTree | FitView, *groups: str, roi: str | None = None) -> FitView:
    """View of a fit; one without one of the groups, or without the region, is refused."""
    fit = FitView.of(tree)
    for group in groups:
        if group not in fit.tree.children:
            raise InputError(
                f"tree: has no group {group}, only {', '.join(fit.tree.children) or 'none'}; "
                "give a tree from fit, or of its posterior.nc"
            )
    if roi is not None and roi not in fit.regions:
        raise InputError(f"no region {roi!r}; the regions are {', '.join(fit.regions)}")
    return fit


def signal_of(fit: FitView) -> Signal:
    """Signal model of a fit."""
    if "spec" not in fit.tree.attrs:
        raise InputError("tree: has no attribute spec; give a tree from fit, or of its posterior.nc")
    return fit.signal


def regions_of(fit: FitView) -> list[str]:
    """Names of the fitted regions."""
    return fit_with(fit, "posterior").regions


def region_draws(fit: FitView, name: str, roi: str, group: str = "posterior") -> np.ndarray:
    """Draws (chain, draw) of a region's value, in the units shown."""
    variable = name if name == "sigma" else f"{name}_roi"
    values = fit.tree[group][variable].sel(roi=roi).transpose("chain", "draw").values
    return np.asarray(PARAMETERS[name].display_scale * values, float)


def interval_of(draws: np.ndarray) -> tuple[float, float, float]:
    """Median of draws, and the ends of their 95 % highest-density interval."""
    low, high = az.hdi(draws.ravel(), prob=HDI)
    return float(np.median(draws)), float(low), float(high)


def to_line(name: str, values: Any) -> Any:
    """Put values shown on the whole line, by the parameter's link."""
    return PARAMETERS[name].link.forward(values)


def slope_of_line(name: str, values: Any) -> Any:
    """Differentiate `to_line`."""
    return 1 / PARAMETERS[name].link.slope(values)


def one_axes(ax: Any, size: tuple[float, float] = (5.0, 3.6)) -> Any:
    """Give the axes to draw on; those of a new figure where there are none."""
    return plt.subplots(figsize=size, layout="constrained")[1] if ax is None else ax


def many_axes(
    axes: Any, what: Sequence[str], size: tuple[float, float], rows: int = 1, **options: Any
) -> np.ndarray:
    """Give axes in rows, one for each thing that is drawn; those of a new figure where there are none.

    Parameters
    ----------
    axes : Axes, array of Axes or None
        What the caller gave.
    what : sequence of str
        What each of them shows.
    size : tuple of float
        Width and height of one, in inches.
    rows : int
        Of how many rows they are; of one, the axes come without a dimension for it.
    **options
        Of ``matplotlib.pyplot.subplots``.

    Returns
    -------
    ndarray of Axes (axes,) or (row, axes)
    """
    columns = len(what) // rows
    if axes is None:
        options |= {"figsize": (size[0] * columns, size[1] * rows), "layout": "constrained", "squeeze": False}
        figure, axes = plt.subplots(rows, columns, **options)
        figure.get_layout_engine().set(w_pad=0.08, h_pad=0.06)
    found = np.atleast_1d(np.asarray(axes, dtype=object)).ravel()
    if len(found) != len(what):
        raise InputError(f"axes: {len(found)} given; give {len(what)}, for {', '.join(what)}")
    return found if rows == 1 else found.reshape(rows, columns)


def legend_above(ax: Any) -> None:
    """Put the legend over the axes, where it covers nothing."""
    ax.legend(frameon=False, fontsize="small", loc="lower left", bbox_to_anchor=(0.0, 1.0), borderaxespad=0.2)


def name_regions(ax: Any, x: np.ndarray, regions: Sequence[str]) -> None:
    """Write the regions below the axes, slanted where they would meet."""
    slanted = len(regions) > 5 or max(map(len, regions)) > 9
    turned = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"} if slanted else {}
    ax.set_xticks(x, [plain(roi) for roi in regions], **turned)


def log_scale(axis: Any) -> None:
    """Make an axis logarithmic, with plain numbers at 1, 2 and 5, or evenly where it is short."""
    axis.axes.set(**{f"{axis.axis_name}scale": "log"})
    low, high = axis.get_view_interval()
    few = low > 0 and high < FEW_TICKS * low  # 1, 2 and 5 would leave one tick or none
    axis.set_major_locator(MaxNLocator(4) if few else LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


def okabe_ito() -> Any:
    """Context in which ArviZ takes the colours of these plots."""
    return plt.rc_context({"axes.prop_cycle": cycler(color=CHAINS)})
