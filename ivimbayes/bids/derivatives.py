"""Files of a BIDS dataset of derivatives: maps, tables and pages of a run, and what describes the dataset."""

import json
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
import xarray as xr

from ivimbayes.bids.layout import Run, parse_name, read_description
from ivimbayes.errors import InputError, printable
from ivimbayes.io.atomic import replacing
from ivimbayes.io.tables import read_table, write_table
from ivimbayes.io.text import read_json
from ivimbayes.maps.files import write_maps
from ivimbayes.models.signals import SIGNALS
from ivimbayes.models.spec import ModelSpec
from ivimbayes.reporting.page import render_report
from ivimbayes.results.diagnosis import VERDICTS, diagnose
from ivimbayes.results.summary import summarize

BIDS_VERSION = "1.10.0"
KEPT = ".ivimbayes"  # finished regions of unfinished runs
LOGS, FAILED = "logs", "failed.tsv"
IGNORED = (
    "*_dwimap.nii.gz", "*_dwimap.json", "*_summary.tsv", "*_summary.json", "*_posterior.nc", "*_report.html",
    "sub-*.html", "group_*.tsv", "group_*.json", "group_cohort.nc", FAILED, f"{LOGS}/", f"{KEPT}/",
)  # fmt: skip
NOTES = {  # of maps that are of no parameter
    "pareto_k": "paretok", "ess": "ess", "p_perfusion": "pperfusion", "status": "status",
}  # fmt: skip
COLUMNS = {
    "roi": "Name of the region",
    "parameter": "Parameter: f, D, D_star (or those of the signal model), S0, sigma",
    "unit": "Unit of the row's values; 10^-3 mm2/s for D and D_star",
    "mean": "Posterior mean of the region's median voxel",
    "median": "Posterior median",
    "sd": "Posterior standard deviation",
    "hdi_low": "Lower end of the 95 % highest-density interval",
    "hdi_high": "Upper end of the 95 % highest-density interval",
    "spread": "Spread between the fitted voxels, as a standard deviation",
    "ess_bulk": "Bulk effective draws",
    "ess_tail": "Tail effective draws",
    "r_hat": "Rank-normalised split R-hat",
    "verdict": "What the region's sampling is worth: converged, doubtful or failed",
}
README = """# IVIM fits

Made by ivimbayes from the dataset named in dataset_description.json: for each run posterior, table, report
and maps, and a page for each participant (sub-<label>.html). Maps are named after BIDS extension proposal 16.
D and D* are in mm2/s in maps and posterior, in 10^-3 mm2/s in tables. For research; nothing here is for
diagnosis.
"""
Sidecar = dict[str, Any]


def model_label(signal: str) -> str:
    """Label of a signal model in file names: letters and digits.

    Examples
    --------
    >>> model_label("biexponential"), model_label("biexponential_kurtosis")
    ('ivim', 'biexponentialkurtosis')
    """
    return "ivim" if signal == "biexponential" else signal.replace("_", "")


def result_file(out: Path, run: Run, signal: str, ending: str) -> Path:
    """Path of a result of a run, such as ``sub-01/dwi/sub-01_model-ivim_summary.tsv``."""
    return out / run.folder / f"{run.stem}_model-{model_label(signal)}_{ending}"


def map_ending(name: str) -> str:
    """End of the file name of a map, without extension.

    Examples
    --------
    >>> map_ending("D_star_hdi_low"), map_ending("pareto_k")
    ('param-Dstar_desc-hdilow_dwimap', 'desc-paretok_dwimap')
    """
    if name in NOTES:
        return f"desc-{NOTES[name]}_dwimap"
    parameter = next(p for p in ("D_star", "D", "f", "S0") if name.startswith(f"{p}_"))
    summary = name.removeprefix(f"{parameter}_")
    return f"param-{parameter.replace('_', '')}_desc-{summary.replace('_', '')}_dwimap"


def open_dataset(out: Path, bids_dir: Path) -> None:
    """Make the dataset of derivatives, or refuse a folder that is something else.

    Raises
    ------
    InputError
        If the folder is the dataset itself, holds another program's, or cannot be written.
    """
    if out.resolve() == bids_dir.resolve():
        raise InputError(f"{out}: is the dataset itself; name a folder such as derivatives/ivimbayes in it")
    makers = read_description(out).get("GeneratedBy", []) if out.is_dir() else []
    names = [str(maker.get("Name")) for maker in makers] if isinstance(makers, list) else ["?"]
    if out.is_dir() and (out / "dataset_description.json").exists() and "ivimbayes" not in names:
        raise InputError(f"{out}: holds a dataset that ivimbayes did not make; name another folder")
    for name in (KEPT, LOGS):
        if (out / name).is_symlink():
            raise InputError(f"{out / name}: a link, where ivimbayes keeps its own work; remove it")
    try:
        out.mkdir(parents=True, exist_ok=True)
        source = os.path.relpath(bids_dir.resolve(), out.resolve())
        raw = read_description(bids_dir)
        _write_json(
            out / "dataset_description.json",
            {
                "Name": f"IVIM of {raw.get('Name') or bids_dir.resolve().name}",
                "BIDSVersion": BIDS_VERSION,
                "DatasetType": "derivative",
                "GeneratedBy": [{"Name": "ivimbayes", "Version": version("ivimbayes")}],
                "SourceDatasets": [
                    {"URL": source, **({"DOI": raw["DatasetDOI"]} if "DatasetDOI" in raw else {})}
                ],
                "DatasetLinks": {"raw": source},
            },
        )
        with replacing(out / "README.md") as path:
            path.write_text(README, encoding="utf-8")
        with replacing(out / ".bidsignore") as path:
            path.write_text("\n".join(IGNORED) + "\n", encoding="utf-8")
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error.strerror}); name another folder") from None


def read_key(out: Path, run: Run, signal: str) -> str | None:
    """Key of a finished run's inputs and options; None where none is finished."""
    if not result_file(out, run, signal, "summary.tsv").is_file():
        return None
    path = result_file(out, run, signal, "summary.json")
    try:
        return str(read_json(path.read_text(encoding="utf-8"))["Run"]["Key"])
    except (OSError, ValueError, KeyError, TypeError):
        return "unknown"


def write_run(
    out: Path,
    bids_dir: Path,
    run: Run,
    tree: xr.DataTree,
    joined: Path,
    maps: xr.Dataset | None,
    key: str,
    note: str = "",
) -> pd.DataFrame:
    """Write the results of a run, the table last: where it is, all are.

    Parameters
    ----------
    out, bids_dir : path
        The dataset of derivatives and that of the scans.
    run : Run
        What was fitted.
    tree : DataTree
        From `fit`; it is closed.
    joined : path
        Its file, which is moved.
    maps : Dataset or None
        From `posterior_maps`.
    key : str
        Digest of inputs and options, kept in ``summary.json``.
    note : str
        Why there are no maps.

    Returns
    -------
    DataFrame
        From `summarize`.
    """
    spec = ModelSpec.from_json(tree.attrs["spec"])
    folder = out / run.folder
    folder.mkdir(parents=True, exist_ok=True)
    _check_inside(out, folder)
    named = f"{run.stem}_model-{model_label(spec.signal)}_*"
    # The table goes first and comes last: where it is, all are.
    result_file(out, run, spec.signal, "summary.tsv").unlink(missing_ok=True)
    for part in folder.glob(f".part-*-{named}"):
        part.unlink(missing_ok=True)
    stale = set(folder.glob(named))
    diagnoses = diagnose(tree)
    table = summarize(tree, diagnoses)
    shared = _shared(run, bids_dir, spec, tree)
    text = render_report(tree, table, diagnoses, maps=maps, title=run.stem)
    tree.close()
    joined.replace(result_file(out, run, spec.signal, "posterior.nc"))
    written = {result_file(out, run, spec.signal, end) for end in ("posterior.nc", "report.html")}
    if maps is not None:
        written |= _write_maps(out, run, spec.signal, maps, shared)
    with replacing(result_file(out, run, spec.signal, "report.html")) as path:
        path.write_text(text, encoding="utf-8")
    about: Sidecar = {name: {"Description": text} for name, text in COLUMNS.items()}
    about["verdict"]["Levels"] = {name: name for name in VERDICTS}
    for path in stale - written:  # of an earlier run
        path.unlink(missing_ok=True)
    about["Run"] = {"Key": key, **shared, **({"NoMaps": note} if note else {})}
    _write_json(result_file(out, run, spec.signal, "summary.json"), about)
    write_table(table, result_file(out, run, spec.signal, "summary.tsv"))
    close_run(out, run, spec.signal)
    return table


def close_run(out: Path, run: Run, signal: str) -> None:
    """Remove what is left of a finished run's work: its regions, and why it failed before."""
    (out / LOGS / f"{run.stem}.txt").unlink(missing_ok=True)
    shutil.rmtree(out / KEPT / run.stem / signal, ignore_errors=True)
    with suppress(OSError):  # another model's work is there
        (out / KEPT / run.stem).rmdir()


def has_index(out: Path, run: Run, signal: str) -> bool:
    """Whether a participant's page is newer than the table of the run."""
    page, table = out / f"sub-{run.entities['sub']}.html", result_file(out, run, signal, "summary.tsv")
    return page.is_file() and page.stat().st_mtime_ns >= table.stat().st_mtime_ns


def _check_inside(out: Path, folder: Path) -> None:
    """Refuse a folder that a link leads out of the dataset."""
    if not folder.resolve().is_relative_to(out.resolve()):
        raise InputError(f"{folder}: a link leads it out of {out}; remove the link")


def write_index(out: Path, subject: str) -> None:
    """Write the page of a participant: every run with its verdicts and values, and a link to its report."""
    runs = [_index_entry(out, path) for path in _summaries(out, subject)]
    text = _index_template().render(subject=subject, runs=runs)
    with replacing(out / f"{subject}.html") as page:
        page.write_text(text, encoding="utf-8")


def _index_entry(out: Path, path: Path) -> dict[str, Any]:
    """Give what the page of a participant says of a run: its name, and its report and values or an error."""
    name = path.name.removesuffix("_summary.tsv")
    try:
        table = read_summary(path, dtype=str)
    except InputError as error:  # of another run, or just being replaced
        return {"name": name, "error": str(error)}
    report = path.with_name(f"{name}_report.html").relative_to(out)
    return {"name": name, "report": report.as_posix(), "rows": table.to_dict("records")}


@cache
def _index_template() -> jinja2.Template:
    text = files("ivimbayes").joinpath("data/participant.html").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(text)


def write_failure(out: Path, run: Run, reason: str) -> None:
    """Keep the reason why a run failed."""
    (out / LOGS).mkdir(exist_ok=True)
    with replacing(out / LOGS / f"{run.stem}.txt") as path:
        path.write_text(printable(reason) + "\n", encoding="utf-8")


def write_failures(out: Path) -> None:
    """Gather the reasons that are kept into ``failed.tsv``; remove it where there is none."""
    rows = []
    for path in sorted((out / LOGS).glob("*.txt")):
        with suppress(FileNotFoundError):  # finished meanwhile, by another task of a job array
            rows.append({"run": path.stem, "reason": path.read_text(encoding="utf-8").strip()})
    if not rows:
        (out / FAILED).unlink(missing_ok=True)
        return
    write_table(pd.DataFrame(rows), out / FAILED)


def read_summaries(out: Path) -> pd.DataFrame:
    """Read all tables of a dataset as one, with ``participant_id``, ``session_id``, ``run``, ``model``."""
    parts = []
    for path, first in find_results(out):
        table = read_summary(path, na_values=["n/a"])
        for at, (column, value) in enumerate(first.items()):
            table.insert(at, column, value)
        parts.append(table)
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def read_summary(path: Path, **options: Any) -> pd.DataFrame:
    """Read the table of a run."""
    way_out = "delete it, and run the participant level again"
    table = read_table(path, way_out, **options)
    if missing := {"roi", "parameter", "unit", "median", "hdi_low", "hdi_high", "verdict"} - set(table):
        raise InputError(f"{path}: not the table of a run (no column {min(missing)}); {way_out}")
    return table


def find_results(out: Path) -> list[tuple[Path, dict[str, str]]]:
    """Find the tables of runs; ``participant_id``, ``session_id``, ``run`` and ``model`` of each."""
    found = []
    for path in _summaries(out):
        name = parse_name(path.name)
        assert name is not None
        entities = dict(name.entities)
        session, model = entities.get("ses"), entities.pop("model", "n/a")
        first = {
            "participant_id": f"sub-{entities['sub']}",
            "session_id": "n/a" if session is None else f"ses-{session}",
            "run": "_".join(f"{k}-{v}" for k, v in entities.items()),
            "model": model,
        }
        found.append((path, first))
    return found


def _summaries(out: Path, subject: str = "sub-*") -> list[Path]:
    found = [*out.glob(f"{subject}/dwi/*_summary.tsv"), *out.glob(f"{subject}/ses-*/dwi/*_summary.tsv")]
    return sorted(path for path in found if (name := parse_name(path.name)) and "sub" in name.entities)


def _write_maps(out: Path, run: Run, signal: str, maps: xr.Dataset, shared: Sidecar) -> set[Path]:
    """Write maps beside, then give them their names; a sidecar comes before its image. Their files."""
    written = set[Path]()
    made = out / KEPT / run.stem / signal / "maps"
    shutil.rmtree(made, ignore_errors=True)
    for image in write_maps(maps, made):
        name = image.name.removesuffix(".nii.gz")
        plain: Sidecar = json.loads((made / f"{name}.json").read_text(encoding="utf-8"))
        plain |= {"Inputs": plain.pop("Sources", {}), "Software": plain.pop("Software")} | shared
        places = [result_file(out, run, signal, map_ending(name) + end) for end in (".json", ".nii.gz")]
        _write_json(places[0], plain)
        image.replace(places[1])
        written.update(places)
    return written


def _shared(run: Run, bids_dir: Path, spec: ModelSpec, tree: xr.DataTree) -> Sidecar:
    """Entries that the sidecars of a run share: the model, and what it was made from."""
    root = bids_dir.resolve()
    sources = [
        f"bids:raw:{path.absolute().relative_to(bids_dir.absolute()).as_posix()}"
        if path.absolute().is_relative_to(bids_dir.absolute())
        else os.path.relpath(path.resolve(), root)
        for path in run.inputs.values()
    ]
    return {
        "Model": {
            "Description": SIGNALS[spec.signal].long_name,
            "Noise": spec.noise,
            "Population": spec.population,
            "Settings": json.loads(tree.attrs["settings"]),
        },
        "Sources": sources,
    }


def _write_json(path: Path, plain: Mapping[str, Any]) -> None:
    with replacing(path) as unfinished:
        unfinished.write_text(json.dumps(plain, indent=2) + "\n", encoding="utf-8")


def write_group(out: Path, table: pd.DataFrame, described: Mapping[str, Any]) -> Path:
    """Write the table of all runs with a description of its columns."""
    about = {name: {"Description": text} for name, text in COLUMNS.items()}
    _write_json(out / "group_summary.json", {**about, **described})
    write_table(table, out / "group_summary.tsv")
    return out / "group_summary.tsv"
