"""Tables for the terminal."""

import json
import math
from collections.abc import Mapping

import pandas as pd
import xarray as xr
from rich.console import Console
from rich.table import Table

from ivimbayes.models.priors import TissuePrior
from ivimbayes.models.signals import PARAMETERS
from ivimbayes.results.diagnosis import Diagnosis
from ivimbayes.results.stored import FitView

STYLES = {"converged": "green", "caution": "yellow", "doubtful": "yellow", "failed": "red"}


LEFT = (
    "region", "protocol", "finding", "quantity", "ranks", "", "verdict", "source", "unit", "fit", "diagnosis",
)  # fmt: skip


def _table(*columns: str, title: str | None = None) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for column in columns:
        table.add_column(
            column,
            justify="left" if column in LEFT else "right",
        )
    return table


def _show(console: Console, table: Table) -> None:
    """Print a table in its full width: numbers are never cut, a narrow terminal wraps lines."""
    wide = console.options.update(max_width=1000)
    before, console.width = console.width, max(console.width, table.__rich_measure__(console, wide).maximum)
    console.print(table)
    console.width = before


def print_fit(table: pd.DataFrame, diagnoses: Mapping[str, Diagnosis], tree: xr.DataTree) -> None:
    """Print the posterior of each region and what was found about it."""
    console = Console(markup=False, highlight=False, width=None)
    fit = FitView.of(tree)
    shown = _table("region", "", "unit", "median", "95 % HDI", "spread", "ESS", "R-hat")
    for roi, rows in table.groupby("roi", sort=False):
        for i, row in enumerate(rows[~rows["parameter"].isin(["S0", "sigma"])].to_dict("records")):
            spread = "" if pd.isna(row["spread"]) else _number(row["spread"])
            shown.add_row(
                str(roi) if i == 0 else "", PARAMETERS[row["parameter"]].label,
                "" if row["unit"] == "1" else row["unit"], _number(row["median"]),
                f"{_number(row['hdi_low'])} to {_number(row['hdi_high'])}", spread,
                f"{min(row['ess_bulk'], row['ess_tail']):.0f}", f"{row['r_hat']:.3f}",
            )  # fmt: skip
    _show(console, shown)
    console.print()
    for roi, diagnosis in diagnoses.items():
        fitted = len(fit.voxels(roi))
        console.print(f"{roi}: ", end="")
        console.print(diagnosis.verdict, style=STYLES[diagnosis.verdict], end="")
        console.print(
            f" ({fitted} {'curve' if fitted == 1 else 'voxels'}, prior of {fit.priors[str(roi)].name})"
        )
        for finding in diagnosis.findings:
            console.print(f"  {finding.level}: ", style=STYLES.get(finding.level), end="")
            console.print(str(finding), soft_wrap=True)


def print_sensitivity(table: pd.DataFrame) -> None:
    """Print how sensitive each region's values are to prior and likelihood."""
    console = Console(markup=False, highlight=False)
    component = table.attrs.get("component", "all")
    scaled = "prior" if component == "all" else f"prior of {component}"
    shown = _table("region", "", scaled, "likelihood", "contraction", "diagnosis")
    for roi, rows in table.groupby("roi", sort=False):
        for i, row in enumerate(rows.to_dict("records")):
            numbers = (row[c] for c in ("prior", "likelihood", "contraction"))
            shown.add_row(
                str(roi) if i == 0 else "", PARAMETERS[row["parameter"]].label,
                *("n/a" if pd.isna(n) else f"{n:.3f}" for n in numbers), row["diagnosis"],
            )  # fmt: skip
    console.print()
    _show(console, shown)
    flagged = int((table["diagnosis"] != "").sum())
    console.print(f"{flagged} of {len(table)} values are sensitive to their prior (0.05 or more)")
    for roi, kurtosis in table.attrs.get("kurtosis", {}).items():
        if table.loc[table["roi"] == roi, "likelihood"].isna().any():
            console.print(
                f"{roi}: the posterior has two modes or long tails "
                f"(fourth moment {kurtosis:.1f} of a normal): the sensitivity to its likelihood is not known",
                soft_wrap=True,
            )


def print_check(checked: xr.Dataset, verdicts: Mapping[str, str]) -> None:
    """Print the signals of each region beside those that its prior expects."""
    console = Console(markup=False, highlight=False)
    for roi, verdict in verdicts.items():
        mine = checked.sel(roi=roi)
        title = f"{roi} ({int(mine['voxels'])} voxels, prior of {mine['tissue'].item()})"
        for name, unit in zip(mine["parameter"].values.tolist(), mine["unit"].values.tolist(), strict=True):
            p = PARAMETERS[name]
            low, median, high = (
                p.display_scale * mine["parameter_prior"].sel(parameter=name).values
            ).tolist()
            unit = "" if unit == "1" else f" x {p.display_unit}"
            title += f"\n  {p.label:2} {_number(median)} (95 %: {_number(low)} to {_number(high)}){unit}"
        console.print(title, soft_wrap=True)
        shown = _table("b", "measured", "prior", "95 %", "inside")
        for i in range(1, checked.sizes["b"]):
            at = mine.isel(b=i)
            low, median, high = at["prior"].values.tolist()
            shown.add_row(
                f"{float(at['b']):g}", f"{float(at['measured']):.3f}", f"{median:.3f}",
                f"{low:.3f} to {high:.3f}", "yes" if bool(at["inside"]) else "no",
            )  # fmt: skip
        _show(console, shown)
        console.print(f"{roi}: {verdict}\n", soft_wrap=True)
    console.print(f"signals relative to b = {float(checked['b'][0]):g}; nothing was fitted")


def print_truth(table: pd.DataFrame) -> None:
    """Print true values beside the posterior."""
    console = Console(markup=False, highlight=False)
    shown = _table("region", "", "unit", "truth", "median", "95 % HDI", "inside")
    for row in table.to_dict("records"):
        shown.add_row(
            row["roi"], PARAMETERS[row["parameter"]].label, "" if row["unit"] == "1" else row["unit"],
            _number(row["truth"]), _number(row["median"]),
            f"{_number(row['hdi_low'])} to {_number(row['hdi_high'])}",
            "yes" if row["inside"] else "no",
        )  # fmt: skip
    console.print()
    _show(console, shown)
    console.print(f"{int(table['inside'].sum())} of {len(table)} true values lie inside their 95 % HDI")


def print_volume(table: pd.DataFrame, corrected: xr.Dataset) -> None:
    """Print signal and volume fraction of each region, and the relaxation times between them."""
    console = Console(markup=False, highlight=False)
    shown = _table("region", "", "median", "95 % HDI")
    for row in table.to_dict("records"):
        first = row["parameter"] == "f"
        shown.add_row(
            row["roi"] if first else "", row["parameter"], _number(row["median"]),
            f"{_number(row['hdi_low'])} to {_number(row['hdi_high'])}",
        )  # fmt: skip
    _show(console, shown)
    console.print()
    used = json.loads(corrected.attrs["relaxation"])
    TR = f", TR {corrected.attrs['TR_ms']:g} ms" if "TR_ms" in corrected.attrs else ""
    console.print(f"TE {corrected.attrs['TE_ms']:g} ms{TR}")
    for name, times in {"blood": used["blood"], **used["regions"]}.items():
        parts = [f"{k} {times[k][0]:g} (sd {times[k][1]:g}) ms" for k in ("T2", "T1") if k in times]
        console.print(f"{name}: {', '.join(parts)}: {times['source']}", soft_wrap=True)


def print_precision(table: pd.DataFrame) -> None:
    """Print the expected precision of b values, a row for each parameter (and protocol)."""
    console = Console(markup=False, highlight=False)
    several = ["protocol"] if "protocol" in table else []
    shown = _table(*several, "", "prior", "prior sd", "bound", "expected sd", "contraction")
    for row in table.to_dict("records"):
        name, bound = row["parameter"], row["crlb"]
        shown.add_row(
            *(row[p] for p in several), f"{PARAMETERS[name].label} {_unit(name)}".rstrip(),
            _number(row["value"]), _number(row["prior_sd"]), "none" if math.isinf(bound) else _number(bound),
            _number(row["expected_sd"]), f"{max(row['contraction'], 0.0):.2f}",
        )  # fmt: skip
    _show(console, shown)
    console.print(
        "prior: median and sd; bound: Cramér-Rao, at the median; expected sd: of a voxel's posterior; "
        "contraction: share of the prior variance that the signals take away",
        soft_wrap=True,
    )


def print_comparison(table: pd.DataFrame, sentences: Mapping[str, str]) -> None:
    """Print, for each region, how its fits compare, and what that says."""
    console = Console(markup=False, highlight=False)
    for roi, rows in table.groupby("roi", sort=False):
        shown = _table("fit", "elpd", "difference", "se", "p", "weight", "worst k", "verdict", title=str(roi))
        for row in rows.to_dict("records"):
            shown.add_row(
                f"{row['fit']}{' *' if row['chosen'] else ''}", f"{row['elpd_loo']:.1f}",
                f"{row['elpd_diff']:.1f}", f"{row['se_diff']:.1f}", f"{row['p_loo']:.1f}",
                f"{row['weight']:.2f}", f"{row['pareto_k']:.2f}", row["verdict"],
            )  # fmt: skip
        _show(console, shown)
        for row in rows.to_dict("records"):
            if row["warning"]:
                console.print(f"  {row['fit']}: {row['warning']}", soft_wrap=True)
        console.print()
    console.print("* the simplest fit that is not clearly worse than the best (4 in elpd and 2 se)")
    for sentence in sentences.values():
        console.print(sentence, soft_wrap=True)


def print_calibration(table: pd.DataFrame, converged: float, replicates: int) -> None:
    """Print how the ranks of each quantity are spread."""
    console = Console(markup=False, highlight=False)
    shown = _table("quantity", "ranks", "mean rank", "in 50 %", "in 95 %", "z", "contraction")
    for row in table.to_dict("records"):
        shown.add_row(
            row["quantity"], "inside" if row["inside"] else "OUTSIDE", f"{row['mean_rank']:.3f}",
            f"{100 * row['coverage_50']:.1f} %", f"{100 * row['coverage_95']:.1f} %", f"{row['z']:+.2f}",
            f"{row['contraction']:.2f}",
        )  # fmt: skip
    _show(console, shown)
    console.print()
    outside = table.loc[~table["inside"], "quantity"].tolist()
    said = f"outside their band: {', '.join(outside)}" if outside else "all inside their bands"
    console.print(f"{replicates} replicates, {100 * converged:.0f} % converged; ranks {said}", soft_wrap=True)


def print_change(table: pd.DataFrame, sentences: Mapping[str, str]) -> None:
    """Print how the regions of two fits differ."""
    console = Console(markup=False, highlight=False)
    shown = _table(
        "region", "", "unit", "before", "after", "difference", "95 % HDI", "ratio", "P(increase)", "finding"
    )
    for roi, rows in table.groupby("roi", sort=False):
        for i, row in enumerate(rows.to_dict("records")):
            shown.add_row(
                str(roi) if i == 0 else "", PARAMETERS[row["parameter"]].label,
                "" if row["unit"] == "1" else row["unit"], _number(row["before"]), _number(row["after"]),
                f"{row['difference']:+.3g}", f"{row['difference_low']:+.3g} to {row['difference_high']:+.3g}",
                f"{row['ratio']:.2f}", f"{row['p_increase']:.2f}", row["finding"],
            )  # fmt: skip
    _show(console, shown)
    console.print()
    for roi, sentence in sentences.items():
        console.print(f"{roi}: {sentence}", soft_wrap=True)


def print_effects(table: pd.DataFrame) -> None:
    """Print the effects of a study, region by region."""
    console = Console(markup=False, highlight=False)
    for effect, part in table.groupby("effect", sort=False):
        shown = _table(
            "region", "", "unit", "a", "b", "a - b", "95 % HDI", "a / b", "P(a > b)", title=str(effect)
        )
        for roi, rows in part.groupby("roi", sort=False):
            for i, row in enumerate(rows.to_dict("records")):
                shown.add_row(
                    str(roi) if i == 0 else "", PARAMETERS[row["parameter"]].label,
                    "" if row["unit"] == "1" else row["unit"], _number(row["a"]), _number(row["b"]),
                    f"{row['difference']:+.3g}",
                    f"{row['difference_low']:+.3g} to {row['difference_high']:+.3g}", f"{row['ratio']:.2f}",
                    f"{row['p_greater']:.3f}",
                )  # fmt: skip
        _show(console, shown)
        console.print()


def print_regions(table: pd.DataFrame) -> None:
    """Print medians of least-squares fits over the voxels of each region, and how the voxels fared."""
    console = Console(markup=False, highlight=False)
    shown = _table("region", *(f"{PARAMETERS[p].label} {_unit(p)}".rstrip() for p in ("f", "D", "D_star")))
    for row in table.to_dict("records"):
        medians = (PARAMETERS[p].display_scale * row[p] for p in ("f", "D", "D_star"))
        shown.add_row(row["roi"], *("n/a" if pd.isna(m) else _number(m) for m in medians))
    _show(console, shown)
    console.print()
    states = table.columns[list(table.columns).index("D_star") + 1 :]
    for row in table.to_dict("records"):
        parts = [f"{row[s]:,} {s.replace('_', ' ')}" for s in states if row[s] or s == "ok"]
        console.print(f"{row['roi']}: {row['voxels']:,} voxels: {', '.join(parts)}", soft_wrap=True)
        if row["ok"] < row["voxels"] / 2:
            console.print("  most voxels are not ok: do not rely on the medians", style="yellow")
    console.print("medians over all voxels that were fitted, those at a bound included", soft_wrap=True)


def _unit(parameter: str) -> str:
    unit = PARAMETERS[parameter].display_unit
    return "" if unit == "1" else f"({unit})"


def print_tissues(priors: Mapping[str, TissuePrior]) -> None:
    """Print every tissue's prior: median, central 95 % range, and the published values behind it."""
    console = Console(markup=False, highlight=False)
    for prior in priors.values():
        names = f" (also: {', '.join(prior.names)})" if prior.names else ""
        console.print(f"{prior.name}{names}", style="bold", soft_wrap=True)
        if prior.note:
            console.print(f"  {prior.note}", soft_wrap=True)
        ranges = prior.ranges()
        for name in ("f", "D", "D_star"):
            p = PARAMETERS[name]
            low, high = (p.display_scale * v for v in ranges[name])
            unit = "" if p.display_unit == "1" else f" x {p.display_unit}"
            median = p.display_scale * prior.centre[name]
            console.print(f"  {p.label:2} {_number(median)} (95 %: {_number(low)} to {_number(high)}){unit}")
        for entry in prior.published:
            values = ", ".join(
                f"{PARAMETERS[n].label} {_number(PARAMETERS[n].display_scale * entry[n])}"
                for n in ("f", "D", "D_star")
                if n in entry
            )
            console.print(f"  - {values}: {entry['source']}", soft_wrap=True)


def _number(value: float) -> str:
    return f"{value:#.3g}".rstrip(".")
