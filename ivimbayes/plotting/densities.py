"""Plots of a fit: densities of a region's values, of posterior and prior, alone and in pairs."""

from typing import Any

import numpy as np
import xarray as xr
from scipy.stats import gaussian_kde

from ivimbayes.errors import InputError
from ivimbayes.models.signals import PARAMETERS
from ivimbayes.plotting.style import (
    BLUE,
    GREY,
    ORANGE,
    fit_with,
    label_of,
    log_scale,
    many_axes,
    one_axes,
    plain,
    region_draws,
    signal_of,
    slope_of_line,
    to_line,
    unit_of,
)
from ivimbayes.results.stored import FitView

MOST = 2000  # draws that a density is made of
POINTS, GRID = 400, 100
SHOWN = {"posterior": (0.001, 0.999), "prior": (0.01, 0.95)}  # quantiles within which a density is drawn
NARROW = 0.1  # of what is shown: a narrower posterior is drawn on a logarithmic axis
LEVELS = (0.95, 0.5)  # probability inside the contours, the outer first


def plot_prior_posterior(tree: xr.DataTree | FitView, roi: str, axes: Any = None) -> Any:
    """Plot posterior and prior density of each parameter of a region's median voxel.

    Parameters
    ----------
    tree : DataTree
        From `fit`.
    roi : str
        Name of the region.
    axes : sequence of Axes, optional
        Where to draw; a new figure when not given.

    Returns
    -------
    ndarray of Axes
        One for each parameter of the signal. Kernel density estimates from the draws in ln value (logit of a
        fraction), drawn in the value itself; in its logarithm where the posterior is narrow beside the
        prior.

    Raises
    ------
    InputError
        If there is no such region, the tree has no prior, a value does not vary, or there are not as many
        axes as parameters.
    """
    fit = fit_with(tree, "posterior", "prior", roi=roi)
    names = signal_of(fit).parameters
    draws = {
        group: {name: _varying(region_draws(fit, name, roi, group), name, roi) for name in names}
        for group in ("posterior", "prior")
    }
    axes = many_axes(axes, names, (3.0, 2.8))
    for ax, name in zip(axes, names, strict=True):
        ends = [np.quantile(draws[group][name], SHOWN[group]) for group in SHOWN]
        x = np.linspace(np.min(ends), np.max(ends), POINTS + 1)
        narrow = np.ptp(np.quantile(draws["posterior"][name], SHOWN["posterior"])) < NARROW * np.ptp(x)
        logarithmic = bool(narrow and PARAMETERS[name].link.axis == "log" and np.min(ends) > 0)
        if logarithmic:
            x = np.geomspace(np.min(ends), np.max(ends), POINTS + 1)
        prior, posterior = (
            density(name, draws[group][name], x) * (x if logarithmic else 1)
            for group in ("prior", "posterior")
        )
        ax.fill_between(x, 0, prior, color=GREY, alpha=0.15, lw=0)
        ax.plot(x, prior, color=GREY, ls="--", lw=1.5, label="prior")
        ax.fill_between(x, 0, posterior, color=BLUE, alpha=0.25, lw=0)
        ax.plot(x, posterior, color=BLUE, lw=1.5, label="posterior")
        per = " per ln unit" if logarithmic else f" per {unit_of(name)}" if unit_of(name) else ""
        ax.set(
            xlabel=label_of(name),
            ylabel=f"density\n{per.strip()}".strip(),
            ylim=(0, None),
            xlim=(x[0], x[-1]),
        )
        ax.set_title(plain(roi))
        if logarithmic:
            log_scale(ax.xaxis)
    axes[0].set_ylim(0, 1.2 * axes[0].get_ylim()[1])
    axes[0].legend(frameon=False, fontsize="small", ncols=2, loc="upper right")
    return axes


def plot_joint(tree: xr.DataTree | FitView, roi: str, x: str = "f", y: str = "D_star", ax: Any = None) -> Any:
    """Plot the joint posterior density of two values of a region.

    Parameters
    ----------
    tree : DataTree
        From `fit`.
    roi : str
        Name of the region.
    x, y : str
        Parameters of the signal, ``S0`` or ``sigma``.
    ax : Axes, optional
        Where to draw; a new figure when not given.

    Returns
    -------
    Axes
        Density, and the contours that hold 50 and 95 % of the draws where it is highest.

    Raises
    ------
    InputError
        If there is no such region or parameter, both are the same, or one does not vary.
    """
    fit = fit_with(tree, "posterior", roi=roi)
    accepted = (*signal_of(fit).parameters, "S0", "sigma")
    for what, name in (("x", x), ("y", y)):
        if name not in accepted:
            raise InputError(f"{what} {name!r}; accepted are {', '.join(accepted)}")
    if x == y:
        raise InputError(f"x and y are both {x!r}; give two parameters of {', '.join(accepted)}")
    pair = [_varying(region_draws(fit, name, roi), name, roi) for name in (x, y)]
    kept = np.linspace(0, pair[0].size - 1, min(MOST, pair[0].size)).astype(int)
    at = np.stack([each[kept] for each in pair])
    grid = [np.linspace(*_widened(each), GRID) for each in at]
    mesh = np.stack(np.meshgrid(*grid))
    kde = gaussian_kde(np.stack([to_line(name, each) for name, each in zip((x, y), at, strict=True)]))
    on_grid, on_draws = (_joint_density(kde, (x, y), points) for points in (mesh, at))
    levels = [float(np.quantile(on_draws, 1 - p)) for p in LEVELS]
    ax = one_axes(ax, (4.2, 3.6))
    ax.contourf(*grid, on_grid, levels=[*levels, on_grid.max()], colors=[(BLUE, 0.12), (BLUE, 0.35)])
    ax.contour(*grid, on_grid, levels=levels, colors=BLUE, linestyles=["--", "-"], linewidths=[1.2, 1.6])
    for p, style in zip(LEVELS, ("--", "-"), strict=True):
        ax.plot([], [], color=BLUE, ls=style, label=f"{100 * p:.0f} % of the posterior")
    ax.plot(*np.median(at, axis=1), "+", color=ORANGE, ms=9, mew=2, label="medians")
    ax.set(xlabel=label_of(x), ylabel=label_of(y), title=plain(roi))
    ax.legend(frameon=False, fontsize="small")
    return ax


def density(name: str, draws: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Density at values x of a parameter, all as shown, estimated in `to_line`."""
    kept = np.linspace(0, draws.size - 1, min(MOST, draws.size)).astype(int)
    kde = gaussian_kde(to_line(name, draws[kept]))
    return np.asarray(kde(to_line(name, x)) * slope_of_line(name, x))


def _joint_density(kde: Any, names: tuple[str, str], points: np.ndarray) -> np.ndarray:
    """Density at points (2, ...) of two parameters as shown."""
    pairs = list(zip(names, points, strict=True))
    line = np.stack([to_line(name, each).ravel() for name, each in pairs])
    slope = np.prod([slope_of_line(name, each) for name, each in pairs], axis=0)
    return np.asarray(kde(line).reshape(slope.shape) * slope)


def _varying(draws: np.ndarray, name: str, roi: str) -> np.ndarray:
    """Draws (sample,), refused where they are all the same."""
    if not np.ptp(draws) > 0:
        raise InputError(
            f"{name} of {roi}: all draws are the same, so there is no density (S0 of a mean curve is its "
            "voxel's own); give another parameter"
        )
    return draws.ravel()


def _widened(draws: np.ndarray) -> tuple[float, float]:
    """Give the ends of what is drawn: within the bounds, a little beyond all but the outermost draws."""
    low, high = np.quantile(draws, [0.002, 0.998])
    margin = 0.15 * (high - low)
    return max(low - margin, 0.2 * low), min(high + margin, 0.5 * (1 + high)) if high < 1 else high + margin
