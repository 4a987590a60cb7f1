"""Plot of expected precision against the number of images."""

import json
from typing import Any

import numpy as np
import xarray as xr

from ivimbayes.errors import InputError
from ivimbayes.models.signals import PARAMETERS
from ivimbayes.plotting.style import BLUE, GREY, ORANGE, label_of, legend_above, one_axes

STYLES = {"designed": (BLUE, "o", "-"), "recommended": (ORANGE, "s", "--")}


def plot_protocol(precision: xr.Dataset, parameter: str | None = None, ax: Any = None) -> Any:
    """Plot the expected posterior sd of designed and recommended protocols against their number of images.

    Parameters
    ----------
    precision : Dataset
        From `precision_by_budget`, or `design_protocol`.
    parameter : str, optional
        The first that was minimised when not given.
    ax : Axes, optional
        A new figure's when not given.

    Returns
    -------
    Axes
        With a line for each protocol, and one for the prior's sd where it is not far above.

    Raises
    ------
    InputError
        If the dataset is another, or has no such parameter.

    Examples
    --------
    >>> from ivimbayes import precision_by_budget
    >>> made = precision_by_budget([4, 8], "liver", draws=64, progress=False)
    >>> plot_protocol(made, "D").get_ylabel()
    'expected sd of D (10⁻³ mm²/s)'
    """
    if (
        not {"expected_sd", "error", "prior_sd"} <= set(precision.data_vars)
        or "protocol" not in precision.dims
    ):
        raise InputError("precision: not of designed protocols; give what precision_by_budget gives")
    names = precision["parameter"].values.tolist()
    parameter = next(iter(json.loads(precision.attrs["minimise"]))) if parameter is None else parameter
    if parameter not in names:
        raise InputError(f"parameter {parameter!r}; accepted are {', '.join(names)}")
    if "images" not in precision.dims:
        precision = precision.expand_dims(images=[int(precision.attrs["images"])])
    scale = PARAMETERS[parameter].display_scale
    mine = scale * precision[["expected_sd", "error", "prior_sd"]].sel(parameter=parameter)
    ax, images = one_axes(ax), precision["images"].values
    for name in precision["protocol"].values.tolist():
        colour, marker, line = STYLES.get(name, (GREY, "^", ":"))
        one = mine.sel(protocol=name)
        ax.errorbar(
            images, one["expected_sd"], one["error"], color=colour, marker=marker, ls=line, ms=5, label=name
        )
    prior = float(np.ravel(mine["prior_sd"])[0])
    top = float(mine["expected_sd"].max())
    if prior < 2 * top:
        ax.axhline(prior, color=GREY, lw=1, ls=":", label="prior")
        top = max(top, prior)
    ax.set(xlabel="images", ylabel=f"expected sd of {label_of(parameter)}", ylim=(0, 1.08 * top))
    ax.set_xticks(images)
    legend_above(ax)
    return ax
