"""One self-contained page from a fit: verdicts, values with their intervals, what rests on the prior."""

import base64
import hashlib
import io
import json
import re
from collections.abc import Mapping
from functools import cache
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import matplotlib
import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.figure import Figure

from ivimbayes.io.atomic import replacing
from ivimbayes.models.noise import NOISES
from ivimbayes.models.priors import SHOWN, TissuePrior
from ivimbayes.models.signals import PARAMETERS
from ivimbayes.plotting.densities import plot_joint, plot_prior_posterior
from ivimbayes.plotting.regions import plot_decay, plot_predictive, plot_regions, plot_spread
from ivimbayes.plotting.style import unit_of
from ivimbayes.reporting.methods import describe_methods
from ivimbayes.reporting.slices import draw_slices, has_numbers
from ivimbayes.results.diagnosis import MEANINGS, VERDICTS, Diagnosis, diagnose
from ivimbayes.results.stored import FitView
from ivimbayes.results.summary import summarize

FIGURES_AT_MOST = 40  # regions with figures of their own, for the size of the page


def write_report(
    fit: xr.DataTree | FitView,
    path: str | Path,
    *,
    maps: xr.Dataset | None = None,
    truth: xr.Dataset | None = None,
    title: str | None = None,
) -> Path:
    """Write a page on the uncertainty of a fit's regions: one file, which asks for nothing outside.

    Parameters
    ----------
    fit : DataTree
        From `fit`.
    path : path
        The HTML file, written under a temporary name and renamed.
    maps : Dataset, optional
        From `posterior_maps` or `read_maps`; their slices are then shown.
    truth : Dataset, optional
        ``f_roi``, ``D_roi``, ``D_star_roi`` (roi) to mark, as `phantom` gives them.
    title : str, optional
        The name of the scan's file when not given.

    Returns
    -------
    path
        The file.
    """
    fit = FitView.of(fit)
    diagnoses = diagnose(fit)
    table = summarize(fit, diagnoses)
    text = render_report(fit, table, diagnoses, maps=maps, truth=truth, title=title)
    path = Path(path)
    with replacing(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")
    return path


def render_report(
    tree: xr.DataTree | FitView,
    table: pd.DataFrame,
    diagnoses: Mapping[str, Diagnosis],
    *,
    maps: xr.Dataset | None = None,
    truth: xr.Dataset | None = None,
    title: str | None = None,
) -> str:
    """Make the text of the page, of a fit with its `summarize` and `diagnose`; see `write_report`."""
    fit = FitView.of(tree)
    source = fit.tree.attrs.get("source", "")
    regions = [
        _region(fit, roi, table, diagnoses[roi], n < FIGURES_AT_MOST) for n, roi in enumerate(diagnoses)
    ]
    template = _template()
    script = files("ivimbayes").joinpath("data/report.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    return template.render(
        title=title or (Path(source).name if source else "") or "IVIM fit",
        counts=[(v, sum(d.verdict == v for d in diagnoses.values()), MEANINGS[v]) for v in VERDICTS],
        cautions=sum(any(f.level == "caution" for f in d.findings) for d in diagnoses.values()),
        subtitle=_subtitle(fit),
        regions=regions,
        without_figures=max(0, len(regions) - FIGURES_AT_MOST),
        overview=_overview(fit, truth),
        table=[_cells(row) for row in table.to_dict("records")],
        contraction=_contraction(diagnoses, fit.signal.parameters),
        priors=_priors(fit),
        methods=describe_methods(fit, table, maps),
        mapped=maps is not None,
        slices=draw_slices(maps) if maps is not None and has_numbers(maps) else None,
        settings=_settings(fit),
        inputs=[{"role": k, **v} if isinstance(v, dict) else {"role": k, "name": v} for k, v in
                json.loads(fit.tree.attrs.get("inputs", "{}")).items()],
        script=script,
        script_hash=digest,
    )  # fmt: skip


def _subtitle(fit: FitView) -> str:
    b = fit.b
    return (
        f"{fit.signal.long_name} signal, {NOISES[fit.spec.noise].long_name} noise, "
        f"{len(b)} measurements of b {b.min():g} to {b.max():g} s/mm²"
    )


@cache
def _template() -> jinja2.Template:
    text = files("ivimbayes").joinpath("data/report.html").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"number": number, "svg": jinja2.utils.markupsafe.Markup}
    return environment.from_string(text)


def number(value: float) -> str:
    """Three significant digits of a number as ``summary.tsv`` has it; no exponent from 0.001 to 1e6.

    Examples
    --------
    >>> number(0.0123456), number(1234.56), number(float("nan"))
    ('0.0123', '1235', '–')
    """
    value = float(f"{value:.6g}")
    if not np.isfinite(value):
        return "–"
    if value == 0:
        return "0"
    size = int(np.floor(np.log10(abs(value))))
    return f"{value:.{max(0, 2 - size)}f}" if -4 < size < 6 else f"{value:.3g}"


def _cells(row: Mapping[str, Any]) -> dict[str, Any]:
    """Make a row of the table, its numbers as ``summary.tsv`` has them."""
    shown = {k: f"{v:.6g}" if isinstance(v, float) else str(v) for k, v in row.items()}
    return shown | {"label": PARAMETERS[str(row["parameter"])].label, "unit": unit_of(str(row["parameter"]))}


def _region(
    fit: FitView, roi: str, table: pd.DataFrame, diagnosis: Diagnosis, figures: bool
) -> dict[str, Any]:
    rows = table[(table["roi"] == roi) & ~table["parameter"].isin(["S0", "sigma"])]
    return {
        "name": roi,
        "verdict": diagnosis.verdict,
        "caution": any(f.level == "caution" for f in diagnosis.findings),
        "meaning": MEANINGS[diagnosis.verdict],
        "level": fit.level(roi),
        "fitted": len(fit.voxels(roi)),
        "available": int(fit.record(roi)["available"]),
        "prior": fit.priors[roi].name,
        "snr": diagnosis.snr,
        "findings": [{"level": f.level, "what": f.what, "advice": f.advice} for f in diagnosis.findings],
        "values": [
            {
                "label": PARAMETERS[row["parameter"]].label,
                "unit": unit_of(row["parameter"]),
                **{k: number(row[k]) for k in ("median", "hdi_low", "hdi_high", "spread")},
            }
            for row in rows.to_dict("records")
        ],
        "figures": _figures(fit.region(roi), roi, tuple(rows["parameter"])) if figures else [],
    }


def _figures(fit: FitView, roi: str, parameters: tuple[str, ...]) -> list[dict[str, str]]:
    """Draw what is known of a region, each figure with its caption."""
    decay, predictive, joint = (Figure(figsize=(5, 3.6), layout="constrained") for _ in range(3))
    plot_decay(fit, roi, ax=decay.subplots())
    plot_predictive(fit, roi, ax=predictive.subplots())
    densities = Figure(figsize=(5, 1.9 * len(parameters)), layout="constrained")
    plot_prior_posterior(fit, roi, axes=densities.subplots(len(parameters), squeeze=False)[:, 0])
    made = [
        (
            decay,
            "Signal decay: mean measured signal; median and 95 % band of the region's median voxel and of "
            "its parts; in grey where 95 % of single measurements are expected.",
        ),
        (
            predictive,
            "Check of the model: quantiles of the measured signals over the region's voxels, and where the "
            "fit expects them.",
        ),
        (
            densities,
            "Prior and posterior of the region's median voxel: where they are alike, the data told little.",
        ),
    ]
    if {"f", "D_star"} <= set(parameters):
        plot_joint(fit, roi, ax=joint.subplots())
        made.append((joint, "f and D* together: regions that hold 50 and 95 % of the posterior."))
    return [{"svg": _svg(figure), "caption": caption} for figure, caption in made]


def _overview(fit: FitView, truth: xr.Dataset | None) -> list[dict[str, str]]:
    parameters, regions_here = fit.signal.parameters, len(fit.regions)
    size = (5, len(parameters) * (1 + 0.32 * regions_here))
    regions = Figure(figsize=size, layout="constrained")
    plot_regions(fit, truth, axes=regions.subplots(len(parameters), sharey=True, squeeze=False)[:, 0])
    made = [(regions, "Median and 95 % highest-density interval of each region's median voxel.")]
    if regions_here <= FIGURES_AT_MOST and fit.posterior.sizes["voxel"] > regions_here:
        spread = Figure(figsize=(5, 2.3 * len(parameters)), layout="constrained")
        plot_spread(fit, axes=spread.subplots(len(parameters), squeeze=False)[:, 0])
        made.append(
            (spread, "Posterior medians of single voxels, and the region's median voxel with its spread.")
        )
    return [{"svg": _svg(figure), "caption": caption} for figure, caption in made]


def _svg(figure: Figure) -> str:
    """Draw a figure as SVG with names of its own, so that many can stand in a page."""
    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.fonttype": "path", "svg.hashsalt": "ivimbayes"}):
        figure.savefig(
            buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
        )
    text = buffer.getvalue().decode("utf-8")
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, count=1, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)  # each text of the figure
    own = hashlib.sha256(text.encode()).hexdigest()[:8]
    text = re.sub(r'\bid="([^"]+)"', rf'id="{own}-\1"', text)
    text = re.sub(r"url\(#([^)]+)\)", rf"url(#{own}-\1)", text)
    text = re.sub(r'href="#([^"]+)"', rf'href="#{own}-\1"', text)
    return re.sub(
        r'^<svg ([^>]*?)width="[^"]*"', r"<svg \1", re.sub(r'^(<svg [^>]*?) height="[^"]*"', r"\1", text)
    )


def _contraction(diagnoses: Mapping[str, Diagnosis], parameters: tuple[str, ...]) -> list[dict[str, Any]]:
    return [
        {
            "region": roi,
            "shares": [
                {"label": PARAMETERS[p].label, "percent": round(100 * max(0.0, diagnosis.contraction[p]))}
                for p in parameters
            ],
        }
        for roi, diagnosis in diagnoses.items()
    ]


def _priors(fit: FitView) -> list[dict[str, Any]]:
    """List each prior once, with the regions that have it."""
    by_name: dict[str, dict[str, Any]] = {}
    for roi, prior in fit.priors.items():
        entry = by_name.setdefault(
            json.dumps(prior.to_dict(), sort_keys=True),
            {"name": prior.name, "note": prior.note, "regions": [], "rows": _prior_rows(prior),
             "published": [{k: v for k, v in p.items() if k in (*SHOWN, "source")} for p in prior.published]},
        )  # fmt: skip
        entry["regions"].append(roi)
    return list(by_name.values())


def _prior_rows(prior: TissuePrior) -> list[dict[str, str]]:
    return [
        {
            "label": PARAMETERS[p].label,
            "unit": unit_of(p),
            "median": number(PARAMETERS[p].display_scale * prior.centre[p]),
            "low": number(PARAMETERS[p].display_scale * low),
            "high": number(PARAMETERS[p].display_scale * high),
        }
        for p, (low, high) in prior.ranges().items()
    ]


def _settings(fit: FitView) -> list[tuple[str, str]]:
    plain = [
        ("signal model", fit.signal.long_name),
        ("noise", fit.spec.noise),
        ("population", fit.spec.population),
        ("seed", str(int(fit.tree.attrs["seed"]))),
        *((k.replace("_", " "), str(v)) for k, v in fit.settings.items() if k != "seed"),
    ]
    plain += [(f"{name} of the fit", release) for name, release in fit.versions.items()]
    return [*plain, ("ivimbayes of this page", version("ivimbayes"))]
