"""Plot of a study: each scan alone, and given all others."""

from typing import Any

import numpy as np
import xarray as xr

from ivimbayes.cohorts.contrasts import scan_table
from ivimbayes.cohorts.design import design_of
from ivimbayes.errors import InputError
from ivimbayes.models.signals import SIGNALS
from ivimbayes.plotting.style import CHAINS, GREY, label_of, one_axes, plain

NAMED = 60  # scans whose names are legible beside one another


def plot_cohort(
    cohort: xr.DataTree, parameter: str = "f", roi: str | None = None, by: str | None = None, ax: Any = None
) -> Any:
    """Plot a parameter of every scan of a study: what its own fit said, and what it is given all others.

    Parameters
    ----------
    cohort : DataTree
        From `fit_cohort`.
    parameter : str
        Of the signal model.
    roi : str, optional
        Region; the first when not given.
    by : str, optional
        Factor that groups and colours the scans; the first of the study when not given.
    ax : Axes, optional
        Where to draw; a new figure when not given.

    Returns
    -------
    Axes
        A row for each scan: its own estimate as a ring; median and 95 % interval given the study.

    Raises
    ------
    InputError
        If there is no such parameter, region or factor.
    """
    plan, table = design_of(cohort), scan_table(cohort)
    regions = table["roi"].drop_duplicates().tolist()
    roi = regions[0] if roi is None else roi
    by = next(iter(plan.levels), None) if by is None else by
    for what, name, known in (
        ("parameter", parameter, SIGNALS[cohort.attrs["signal"]].parameters),
        ("region", roi, regions), ("by", by, [None, *plan.levels]),
    ):  # fmt: skip
        if name not in known:
            raise InputError(f"{what} {name!r}; accepted are {', '.join(map(str, known))}")
    rows = table[(table["parameter"] == parameter) & (table["roi"] == roi)]
    keys = [*([by] if by else []), "subject", "fit"]
    rows = rows.sort_values(keys, kind="stable").reset_index(drop=True)
    ax = one_axes(ax, (4.8, max(2.0, 0.6 + 0.16 * min(len(rows), NAMED))))
    levels = plan.levels[by] if by else ("",)
    for n, level in enumerate(levels):
        mine = rows[rows[by].astype(str) == level] if by else rows
        colour = CHAINS[n % len(CHAINS)]
        ax.hlines(mine.index, mine["low"], mine["high"], color=colour, lw=1.5)
        ax.plot(
            mine["median"], mine.index, "o", ms=4, color=colour, label=plain(f"{by} {level}") if by else None
        )
    ax.plot(rows["alone"], rows.index, "o", ms=5, mfc="none", mec=GREY, label="its fit alone")
    ax.set(xlabel=label_of(parameter), ylim=(len(rows) - 0.5, -0.5))
    ax.set_title(plain(roi), pad=22)
    if len(rows) <= NAMED:
        ax.set_yticks(rows.index, [plain(str(s)) for s in rows["subject"]], fontsize="x-small")
    else:
        ax.set(yticks=np.empty(0), ylabel=f"{len(rows)} scans")
    ax.legend(frameon=False, fontsize="small", loc="lower left", bbox_to_anchor=(0, 1), ncols=3)
    return ax
