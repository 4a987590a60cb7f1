"""Two fits of the same regions compared: what changed, by how much, beside what a repeat would show."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import arviz as az
import numpy as np
import pandas as pd
import xarray as xr
from scipy.stats import chi2

from ivimbayes.errors import InputError
from ivimbayes.models.signals import PARAMETERS
from ivimbayes.results.diagnosis import Diagnosis, diagnose
from ivimbayes.results.stored import FitView
from ivimbayes.results.summary import HDI

COMPARED = (
    "roi", "parameter", "unit", "before", "after", "difference", "difference_low", "difference_high", "ratio",
    "ratio_low", "ratio_high", "p_increase", "rope", "p_equivalent", "p_above", "p_below", "finding",
    "verdict",
)  # fmt: skip
SURE = 0.95
MOST_DRAWS = 8000
FEW_PAIRS = 2


@dataclass(frozen=True)
class Change:
    """Two fits of the same regions, compared.

    Attributes
    ----------
    table : DataFrame
        A row for each region and parameter: medians before and after, median and 95 % HDI of the difference
        and of the ratio (after over before), ``p_increase``; with a region of practical equivalence its half
        width ``rope``, and the probabilities that the difference lies in it, above and below; ``finding``
        ("increased", "decreased", "equivalent", "undecided") and the worse ``verdict`` of the two fits. D and
        D_star are in 10⁻³ mm²/s.
    sentences : mapping of str to str
        By region, what changed.
    draws : Dataset
        Draws of the difference (roi, sample) of each parameter, in mm²/s where it has a unit.
    """

    table: pd.DataFrame
    sentences: Mapping[str, str]
    draws: xr.Dataset


def compare_fits(
    before: xr.DataTree,
    after: xr.DataTree,
    *,
    rope: Mapping[str, float | str] | pd.DataFrame | None = None,
    seed: int = 0,
) -> Change:
    """Compare the regions of two fits, such as of two sessions of one subject.

    Parameters
    ----------
    before, after : DataTree
        From `fit`, of the same regions with the same signal model.
    rope : mapping or DataFrame, optional
        Region of practical equivalence: changes that do not matter, by parameter. A number is the largest
        such change in the parameter's unit (D and D_star in mm²/s), a text such as "10 %" one relative to the
        value before. Or the table that `repeatability` gives, whose coefficients are taken, region by region.
    seed : int
        Of the order in which the draws of the two fits are paired; they are taken to be independent.

    Returns
    -------
    Change
        Table, sentences and draws.

    Raises
    ------
    InputError
        If the fits are not of the same regions and signal model, or `rope` cannot be read.

    Notes
    -----
    A change is found ("increased", "decreased") where at least 95 % of its posterior lie beyond the region of
    practical equivalence on one side, or beyond 0 without one; "equivalent" where 95 % lie within; else it is
    "undecided". The posterior of the difference holds the uncertainty of both fits, not what differs between
    any two sessions with nothing changed, such as position, physiology and where the region was drawn: that
    is what `repeatability` is for.

    Examples
    --------
    >>> from ivimbayes import fit, simulate
    >>> scan, _ = simulate([0, 20, 50, 100, 200, 400, 800], snr=100, voxels=60, seed=1)
    >>> options = {"draws": 100, "tune": 100, "chains": 2, "retry": False, "progress": False}
    >>> change = compare_fits(fit(scan, **options), fit(scan, seed=1, **options), rope={"D": "30 %"})
    >>> change.table.set_index("parameter").loc["D", "finding"]
    'equivalent'
    """
    fits = FitView.of(before), FitView.of(after)
    names, regions = _check(*fits)
    ropes = _read_rope(rope, names, regions)
    verdicts = [diagnose(fit, voxels=False) for fit in fits]
    rng = np.random.default_rng(seed)
    rows, sentences, kept = [], {}, {}
    for roi in regions:
        of_region = []
        for name in names:
            one, two = _paired(*fits, name, roi, rng)
            kept[roi, name] = two - one
            row = change_row(roi, name, one, two, ropes.get((roi, name)))
            of_region.append(row | {"verdict": _worse(verdicts, roi)})
        rows += of_region
        sentences[roi] = _sentence(of_region)
    draws = xr.Dataset(
        {
            name: (("roi", "sample"), np.stack([kept[roi, name] for roi in regions]), _attrs(name))
            for name in names
        },
        coords={"roi": regions},
    )
    return Change(pd.DataFrame(rows, columns=list(COMPARED)), sentences, draws)


def repeatability(pairs: Sequence[tuple[xr.DataTree, xr.DataTree]]) -> pd.DataFrame:
    """Estimate how far two sessions differ with nothing changed, from pairs of fits of test and retest.

    Parameters
    ----------
    pairs : sequence of (DataTree, DataTree)
        Two or more; each pair is of one subject, all of the same regions with the same signal model.

    Returns
    -------
    DataFrame
        A row for each region and parameter: ``pairs``, ``unit``, ``mean`` of all values, ``bias`` (mean
        retest less test), ``wsd``, the within-subject standard deviation sqrt(sum d² / 2 n) of the posterior
        medians' differences d, ``wcv``, wsd over mean, and the repeatability coefficient ``rc`` =
        1.96 sqrt(2) wsd, below which 95 % of differences lie with nothing changed, with its 95 % confidence
        limits ``rc_low`` and ``rc_high`` (chi-squared with n degrees of freedom; Raunig et al. 2015,
        doi:10.1177/0962280214537344). D and D_star are in 10⁻³ mm²/s.

    Raises
    ------
    InputError
        If there are fewer than two pairs, or they are not of the same regions and signal model.
    """
    if len(pairs) < FEW_PAIRS:
        raise InputError(f"{len(pairs)} pairs of test and retest; give {FEW_PAIRS} or more")
    views = [(FitView.of(test), FitView.of(retest)) for test, retest in pairs]
    names, regions = _check(*views[0])
    for pair in views[1:]:
        if _check(*pair)[0] != names or set(_check(*pair)[1]) != set(regions):
            raise InputError("pairs: not all of the same regions and signal model; give such pairs")
    rows = []
    for roi in regions:
        for name in names:
            scale = PARAMETERS[name].display_scale
            medians = scale * np.array(
                [
                    [float(fit.posterior[f"{name}_roi"].sel(roi=roi).median()) for fit in pair]
                    for pair in views
                ]
            )
            d, n = medians[:, 1] - medians[:, 0], len(pairs)
            wsd = float(np.sqrt((d**2).sum() / (2 * n)))
            rc = 1.96 * np.sqrt(2) * wsd
            low, high = (rc * np.sqrt(n / chi2.ppf(q, n)) for q in (0.975, 0.025))
            rows.append(
                {
                    "roi": roi, "parameter": name, "unit": PARAMETERS[name].display_unit, "pairs": n,
                    "mean": medians.mean(), "bias": d.mean(), "wsd": wsd, "wcv": wsd / medians.mean(),
                    "rc": rc, "rc_low": low, "rc_high": high,
                }
            )  # fmt: skip
    return pd.DataFrame(rows)


def _check(before: FitView, after: FitView) -> tuple[tuple[str, ...], list[str]]:
    """Give the parameters and regions that both fits have, or refuse them."""
    for which, fit in (("before", before), ("after", after)):
        if "spec" not in fit.tree.attrs or "posterior" not in fit.tree.children:
            raise InputError(f"{which}: not a fit; give a tree from fit, or of its posterior.nc")
    if before.spec.signal != after.spec.signal:
        raise InputError(
            f"after: its signal is {after.spec.signal}, that of before {before.spec.signal}; "
            "fit both with the same --signal"
        )
    regions, there = before.regions, after.regions
    if set(regions) != set(there):
        raise InputError(
            f"after: its regions are {', '.join(there)}, those of before {', '.join(regions)}; "
            "fit the same regions"
        )
    return before.signal.parameters, regions


def _read_rope(
    rope: Mapping[str, float | str] | pd.DataFrame | None, names: tuple[str, ...], regions: list[str]
) -> dict[tuple[str, str], tuple[float, bool]]:
    """Half width by region and parameter, and whether it is relative to the value before."""
    if rope is None:
        return {}
    if isinstance(rope, pd.DataFrame):
        if not {"roi", "parameter", "rc"} <= set(rope.columns):
            raise InputError(
                "rope: a table without columns roi, parameter and rc; give one from repeatability"
            )
        found = {
            (row.roi, row.parameter): (float(row.rc) / PARAMETERS[row.parameter].display_scale, False)
            for row in rope.itertuples()
        }
        if absent := [roi for roi in regions if not any((roi, name) in found for name in names)]:
            raise InputError(f"rope: has no region {absent[0]!r}; give test and retest of the same regions")
        return found
    widths = {}
    for name, given in rope.items():
        if name not in names:
            raise InputError(f"rope: no parameter {name!r}; the parameters are {', '.join(names)}")
        relative = isinstance(given, str)
        try:
            width = float(str(given).removesuffix("%")) / (100 if relative else 1)
        except ValueError:
            width = np.nan
        if (relative and not str(given).strip().endswith("%")) or not width > 0:
            raise InputError(f"rope {name}={given}: give a positive number, or one in percent such as 10%")
        widths[name] = width, relative
    return {(roi, name): width for roi in regions for name, width in widths.items()}


def _paired(
    before: xr.DataTree | FitView,
    after: xr.DataTree | FitView,
    name: str,
    roi: str,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Draws of a region's value in both fits, in an order that ties none to another."""
    both = []
    for tree in (before, after):
        draws = FitView.of(tree).posterior[f"{name}_roi"].sel(roi=roi).values.astype(float).ravel()
        both.append(rng.permutation(draws))
    size = min(MOST_DRAWS, *(len(draws) for draws in both))
    return both[0][:size], both[1][:size]


def change_row(
    roi: str, name: str, before: np.ndarray, after: np.ndarray, rope: tuple[float, bool] | None
) -> dict[str, object]:
    """Give a row of `Change.table`, without the verdict, from paired draws in the parameter's unit."""
    scale, change, ratio = PARAMETERS[name].display_scale, after - before, after / before
    width = 0.0 if rope is None else rope[0]
    limit = width * before if rope is not None and rope[1] else np.full_like(before, width)
    above, below = float((change > limit).mean()), float((change < -limit).mean())
    low, high = az.hdi(change, prob=HDI)
    ratio_low, ratio_high = az.hdi(ratio, prob=HDI)
    finding = "undecided"
    if above >= SURE:
        finding = "increased"
    elif below >= SURE:
        finding = "decreased"
    elif rope is not None and 1 - above - below >= SURE:
        finding = "equivalent"
    return {
        "roi": roi, "parameter": name, "unit": PARAMETERS[name].display_unit,
        "before": scale * np.median(before), "after": scale * np.median(after),
        "difference": scale * np.median(change), "difference_low": scale * low,
        "difference_high": scale * high, "ratio": np.median(ratio), "ratio_low": ratio_low,
        "ratio_high": ratio_high, "p_increase": float((change > 0).mean()),
        "rope": np.nan if rope is None else scale * float(np.median(limit)),
        "p_equivalent": np.nan if rope is None else 1 - above - below,
        "p_above": np.nan if rope is None else above, "p_below": np.nan if rope is None else below,
        "finding": finding,
    }  # fmt: skip


def _worse(verdicts: list[dict[str, Diagnosis]], roi: str) -> str:
    order = ("converged", "doubtful", "failed")
    return max((found[roi].verdict for found in verdicts), key=order.index)


def _sentence(rows: list[dict[str, object]]) -> str:
    """Say of one region what changed."""
    parts = []
    for row in rows:
        label, unit = PARAMETERS[str(row["parameter"])].label, str(row["unit"])
        unit = "" if unit == "1" else f" {unit}"
        low, high = (f"{row[key]:+.3g}" for key in ("difference_low", "difference_high"))
        span = f"{row['difference']:+.3g}{unit} (95 % interval {low} to {high})"
        if row["finding"] in ("increased", "decreased"):
            beyond = "" if np.isnan(float(str(row["rope"]))) else f" by more than {row['rope']:.3g}{unit}"
            up = float(str(row["p_above" if beyond else "p_increase"]))
            down = float(str(row["p_below"])) if beyond else 1 - up
            sure = max(up, down)
            parts.append(f"{label} {row['finding']}{beyond} (probability {sure:.2f}): {span}")
        elif row["finding"] == "equivalent":
            parts.append(
                f"{label} did not change by more than {row['rope']:.3g}{unit} "
                f"(probability {row['p_equivalent']:.2f}): {span}"
            )
        else:
            parts.append(f"whether {label} changed is undecided: {span}")
    said = "; ".join(parts) + "."
    if rows[0]["verdict"] != "converged":
        said += f" A fit of this region is {rows[0]['verdict']}: do not rely on this."
    return "W" + said[1:] if said.startswith("whether") else said  # f is a symbol, and stays small


def _attrs(name: str) -> dict[str, str]:
    parameter = PARAMETERS[name]
    return {"units": parameter.unit, "long_name": f"change of {parameter.long_name}"}
