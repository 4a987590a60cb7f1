"""A BIDS dataset in, BIDS derivatives out: every run fitted, a task for each of its regions."""

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import xarray as xr

from ivimbayes.bids.derivatives import (
    KEPT,
    close_run,
    find_results,
    has_index,
    model_label,
    open_dataset,
    read_key,
    read_summaries,
    read_summary,
    result_file,
    write_failure,
    write_failures,
    write_group,
    write_index,
    write_run,
)
from ivimbayes.bids.jobs import RegionJob, Result, open_workers, sample_jobs
from ivimbayes.bids.layout import Run, find_runs
from ivimbayes.cohorts.contrasts import write_cohort
from ivimbayes.cohorts.fit import fit_cohort
from ivimbayes.errors import InputError, printable
from ivimbayes.fitting.checkpoint import FinishedRegion
from ivimbayes.fitting.fit import HELD_BYTES, JOINED, finish_file
from ivimbayes.fitting.plan import CHAINS, DRAWS, TARGET_ACCEPT, TUNE, FitPlan, Settings, plan_fit
from ivimbayes.fitting.voxels import VOXELS_PER_ROI
from ivimbayes.io.scans import file_digest, read_scan, roi_names
from ivimbayes.io.tables import read_table
from ivimbayes.maps.posterior import posterior_maps, why_not_mapped
from ivimbayes.models.priors import TissuePrior, read_priors
from ivimbayes.models.spec import ModelSpec
from ivimbayes.progress import StepProgress
from ivimbayes.protocol.check import require_protocol
from ivimbayes.results.diagnosis import VERDICTS

TODO, DONE, KEPT_DONE, FAILED, OTHER = "to do", "done", "already done", "failed", "other results"


@dataclass(frozen=True)
class _Options:
    """What the results of a run depend on, apart from its files."""

    spec: ModelSpec
    settings: Settings
    tissue: Mapping[str, str]
    priors: Mapping[str, TissuePrior]
    voxels: Mapping[str, Any]
    scan: Mapping[str, Any]
    maps: bool

    def key(self, files: Mapping[str, str]) -> str:
        """Digest of the options and of a run's files, given by role as their SHA-256."""
        plain = [
            dict(files), self.spec.to_json(), dataclasses.asdict(self.settings), dict(self.tissue),
            {name: prior.to_dict() for name, prior in self.priors.items()}, dict(self.voxels),
            dict(self.scan), self.maps, version("ivimbayes"),
        ]  # fmt: skip
        return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


@dataclass
class _Open:
    """A run at work: its scan, what is to be fitted, and the regions that are finished."""

    run: Run
    scan: xr.Dataset
    plan: FitPlan
    results: dict[str, FinishedRegion] = field(default_factory=dict)


def run_participant(
    bids_dir: str | Path,
    out_dir: str | Path,
    spec: ModelSpec | None = None,
    *,
    participants: Sequence[str] | None = None,
    sessions: Sequence[str] | None = None,
    rois_dirs: Sequence[str | Path] | None = None,
    rois_desc: str | None = None,
    mask_desc: str | None = None,
    regions: Sequence[str] | None = None,
    tissue: Mapping[str, str] | None = None,
    priors: Mapping[str, TissuePrior] | str | Path | None = None,
    b_min: float | None = None,
    b_max: float | None = None,
    real_valued: bool = False,
    voxels_per_roi: int | None = VOXELS_PER_ROI,
    downsample: int | Sequence[int] = 1,
    level: str = "voxel",
    draws: int = DRAWS,
    tune: int = TUNE,
    chains: int = CHAINS,
    target_accept: float = TARGET_ACCEPT,
    seed: int = 0,
    retry: bool = True,
    maps: bool = True,
    scheduler: Any = None,
    workers: int | None = None,
    overwrite: bool = False,
    dry_run: bool = False,
    progress: bool = True,
) -> pd.DataFrame:
    """Fit every diffusion-weighted run of a BIDS dataset and write a dataset of derivatives.

    A run with a fault is passed over and reported; the others are finished. A run whose results are there,
    of the same files and options, is left as it is.

    Parameters
    ----------
    bids_dir : path
        The dataset; b values are found by the inheritance principle.
    out_dir : path
        The dataset of derivatives, made where it is not.
    spec : ModelSpec, optional
        Model, as in `fit`.
    participants, sessions : sequence of str, optional
        Labels to take; all when not given.
    rois_dirs : sequence of path, optional
        Datasets that hold the label images ``*_dseg.nii.gz`` or masks; the folders in ``derivatives`` of the
        dataset, and itself, when not given.
    rois_desc, mask_desc : str, optional
        ``desc`` of the label image where there are several, and of a mask that cuts it.
    regions : sequence of str, optional
        Names of the regions to fit; all when not given.
    tissue, priors, voxels_per_roi, downsample, level, draws, tune, chains, target_accept, seed, retry
        As in `fit`, whose draws these are.
    b_min, b_max, real_valued
        As in `read_scan`.
    maps : bool
        Map every voxel of the regions.
    scheduler : str or distributed.Client, optional
        Address of a dask scheduler, or its client: each region of a run is a task for its workers.
    workers : int, optional
        Worker processes on this machine, when there is no scheduler; as many as cores when not given. With 1,
        or without dask, regions are sampled in this process.
    overwrite : bool
        Replace results of other files or options.
    dry_run : bool
        Say what would be done; write nothing.
    progress : bool
        Show a bar.

    Returns
    -------
    DataFrame
        A row for each run: ``run``, ``dwi``, ``bval``, ``rois``, ``mask``, ``names`` (paths in the dataset),
        ``regions``, ``status`` ("done", "already done", "failed"; in a dry run "to do" and "other results"
        too), ``verdict`` (the worst of its regions) and ``reason``.

    Raises
    ------
    InputError
        If an option is out of range, there is no run, or a folder cannot be used; if a run's results are of
        other files or options and are not to be replaced, before anything is written.

    Notes
    -----
    A region is sampled by one worker and its result kept in the folder ``.ivimbayes`` until its run is
    written. What a lost worker had in hand is sampled again by another; a command that was ended continues.
    """
    out, root = Path(out_dir), Path(bids_dir)
    options = _Options(
        ModelSpec() if spec is None else spec, Settings(draws, tune, chains, target_accept, seed, retry),
        dict(tissue or {}), dict(priors) if isinstance(priors, Mapping) else read_priors(priors),
        {"voxels_per_roi": voxels_per_roi, "downsample": downsample, "level": level},
        {"regions": list(regions) if regions else None, "b_min": b_min, "b_max": b_max,
         "real_valued": real_valued},
        maps,
    )  # fmt: skip
    runs = find_runs(
        root, participants=participants, sessions=sessions, rois_dirs=rois_dirs, rois_desc=rois_desc,
        mask_desc=mask_desc, out_dir=out,
    )  # fmt: skip
    if not runs:
        raise InputError(
            f"{root}: no diffusion-weighted image sub-*/[ses-*/]dwi/*_dwi.nii.gz among those chosen"
        )
    states = {run.stem: _state(run, out, options) for run in runs}
    rows = {run.stem: _row(run, root, *states[run.stem]) for run in runs}
    if dry_run:
        for run in runs:
            _look(run, options, rows[run.stem])
        return _table(rows)
    if not overwrite and (others := [stem for stem, (state, _) in states.items() if state == OTHER]):
        raise InputError(
            f"{out}: results of {len(others)} runs ({others[0]}{', ...' if len(others) > 1 else ''}) are of "
            "other files, options or version; replace them with --overwrite, or name another folder"
        )
    open_dataset(out, root)
    for run in runs:
        if states[run.stem][0] == FAILED:
            write_failure(out, run, states[run.stem][1])
    todo = [run for run in runs if states[run.stem][0] in (TODO, OTHER)]
    if todo:
        _run_all(todo, root, out, options, rows, scheduler, workers, progress)
    for run in runs:
        if rows[run.stem]["status"] == KEPT_DONE:
            table = read_summary(result_file(out, run, options.spec.signal, "summary.tsv"))
            rows[run.stem] |= _described(table)
            close_run(out, run, options.spec.signal)  # as a run that was ended may have left it
            if not has_index(out, run, options.spec.signal):
                write_index(out, f"sub-{run.entities['sub']}")
    write_failures(out)
    return _table(rows)


def run_group(
    bids_dir: str | Path,
    out_dir: str | Path,
    *,
    effects: Sequence[str] | None = None,
    signal: str = "biexponential",
    draws: int = 1000,
    seed: int = 0,
) -> Path:
    """Gather the tables of all participants into ``group_summary.tsv``; fit the level above regions.

    Parameters
    ----------
    bids_dir : path
        The dataset; the columns of its ``participants.tsv``, such as group or age, are joined.
    out_dir : path
        The dataset that `run_participant` wrote.
    effects : sequence of str, optional
        Columns of ``participants.tsv``, ``session``, and products of them such as ``"group:session"``: what
        `fit_cohort` is to find effects of, in all runs of the signal model. It writes ``group_effects.tsv``,
        ``group_scans.tsv`` and ``group_cohort.nc``; nothing is fitted when not given.
    signal : str
        Which runs, where there are several models.
    draws, seed : int
        Of the fit of the level above.

    Returns
    -------
    path
        The table of all: ``participant_id``, ``session_id``, ``run``, ``model``, the columns of
        ``summary.tsv``, then those of ``participants.tsv`` (``participants_<name>`` where a name is taken).

    Raises
    ------
    InputError
        If there are no tables, or ``participants.tsv`` or the effects cannot be used.
    """
    out, root = Path(out_dir), Path(bids_dir)
    table = read_summaries(out)
    if table.empty:
        raise InputError(f"{out}: holds no results; run the participant level first")
    open_dataset(out, root)
    described: dict[str, Any] = {}
    people = read_participants(root)
    if people is not None:
        taken = {c: f"participants_{c}" for c in people if c in table and c != "participant_id"}
        people = people.rename(columns=taken)
        described = {c: {"Description": "From participants.tsv"} for c in people if c != "participant_id"}
        table = table.merge(people, on="participant_id", how="left")
    cohort = None if effects is None else _fit_group(out, people, effects, signal, draws, seed)
    path = write_group(out, table, described)
    if cohort is not None:
        write_cohort(cohort, out, "group_")
    return path


def _fit_group(
    out: Path, people: pd.DataFrame | None, effects: Sequence[str], signal: str, draws: int, seed: int
) -> xr.DataTree:
    """Fit the level above to all runs of one signal model, with the columns that the effects name."""
    results = [(path, first) for path, first in find_results(out) if first["model"] == model_label(signal)]
    if not results:
        raise InputError(f"{out}: holds no results of the {signal} signal; name another with --signal")
    design = pd.DataFrame([first for _, first in results])
    design = design.rename(columns={"participant_id": "subject", "session_id": "session"})
    if people is not None:
        theirs = people.rename(columns={"participant_id": "subject"})
        theirs = theirs.drop(columns=[c for c in ("session", "run", "model") if c in theirs])
        design = design.merge(theirs.loc[:, ~theirs.columns.duplicated()], on="subject", how="left")
    names = list(dict.fromkeys(part for effect in effects for part in effect.split(":")))
    kept = design[["subject"]].copy()
    for name in names:
        if name not in design or name in ("subject", "run", "model"):
            known = [c for c in design if c not in ("subject", "run", "model", "index")]
            raise InputError(f"--effects {name}: not in participants.tsv; there are {', '.join(known)}")
        absent = design[name].isna() | (design[name].astype(str).str.strip().isin(["", "n/a"]))
        if absent.any():
            if name == "session":
                raise InputError(
                    f"--effects session: {design['subject'][absent].iloc[0]} has none; leave it out"
                )
            raise InputError(
                f"participants.tsv: no {name} of {design['subject'][absent].iloc[0]}; complete it, or leave "
                "the effect out"
            )
        numbers = pd.to_numeric(design[name], errors="coerce")
        kept[name] = design[name] if numbers.isna().any() else numbers
    files = [path.with_name(path.name.replace("summary.tsv", "posterior.nc")) for path, _ in results]
    return fit_cohort(files, kept, effects=effects, draws=draws, seed=seed)


def read_participants(root: Path) -> pd.DataFrame | None:
    """Read ``participants.tsv`` of a dataset, as words; None where there is none."""
    path = root / "participants.tsv"
    if not path.is_file():
        return None
    people = read_table(path, "write a tab-separated table", dtype=str)
    if "participant_id" not in people or people["participant_id"].duplicated().any():
        raise InputError(f"{path}: needs a column participant_id, each participant once")
    return people


def _state(run: Run, out: Path, options: _Options) -> tuple[str, str]:
    """Whether a run is to be done, and why not."""
    if run.fault:
        return FAILED, run.fault
    there = read_key(out, run, options.spec.signal)
    if there is None:
        return TODO, ""
    try:
        same = there == options.key({role: file_digest(path) for role, path in run.inputs.items()})
    except InputError as error:
        return FAILED, str(error)
    return (KEPT_DONE, "") if same else (OTHER, "its results are of other files, options or version")


def _row(run: Run, root: Path, status: str, reason: str) -> dict[str, Any]:
    files = {role: "" for role in ("dwi", "bval", "rois", "mask", "names")}
    for role, path in {**run.inputs, "dwi": run.dwi}.items():
        files[role] = str(path.relative_to(root)) if path.is_relative_to(root) else str(path)
    return {"run": run.stem, **files, "regions": "", "status": status, "verdict": "", "reason": reason}


def _table(rows: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    return pd.DataFrame(list(rows.values()))


def _described(table: pd.DataFrame) -> dict[str, str]:
    verdicts = set(table["verdict"])
    regions = ", ".join(dict.fromkeys(table["roi"].astype(str)))
    return {"regions": regions, "verdict": next((v for v in reversed(VERDICTS) if v in verdicts), "")}


def _look(run: Run, options: _Options, row: dict[str, Any]) -> None:
    """Read a run's scan for a dry run, and name its regions or its fault."""
    if run.fault:
        return
    try:
        row["regions"] = ", ".join(roi_names(_read(run, options)).values())
    except InputError as error:
        row |= {"status": FAILED, "reason": str(error)}


def _read(run: Run, options: _Options) -> xr.Dataset:
    return read_scan(run.dwi, run.bval, run.mask, run.rois, names=run.names, **options.scan)


def _run_all(
    todo: Sequence[Run],
    root: Path,
    out: Path,
    options: _Options,
    rows: dict[str, dict[str, Any]],
    scheduler: Any,
    workers: int | None,
    progress: bool,
) -> None:
    """Sample the regions of the runs, and write each run when its last region is done."""
    at_work: dict[str, _Open] = {}
    bar = StepProgress(len(todo), "runs", progress)

    def fail(run: Run, error: Exception) -> None:
        at_work.pop(run.stem, None)
        reason = _reason(error)
        rows[run.stem] |= {"status": FAILED, "reason": reason}
        write_failure(out, run, reason)
        bar.advance()

    def jobs() -> Iterator[RegionJob]:
        for run in todo:
            try:
                scan = _read(run, options)
                plan = plan_fit(
                    scan, options.spec, options.settings, tissue=options.tissue, priors=options.priors,
                    **options.voxels,
                )  # fmt: skip
            except InputError as error:
                fail(run, error)
                continue
            require_protocol(scan, options.spec.signal)
            at_work[run.stem] = _Open(run, scan, plan)
            for name, voxels in plan.chosen.items():
                if run.stem not in at_work:  # a region of it has failed
                    break
                yield RegionJob(
                    run.stem, name, voxels, options.spec.with_prior(plan.priors[name]), plan.settings
                )

    with open_workers(scheduler, workers) as client, bar:
        for job, result in sample_jobs(jobs(), client, out / KEPT):
            opened = at_work.get(job.run)
            if opened is None:
                continue
            try:
                if (table := _take(opened, job, result, root, out, options)) is None:
                    continue
            except Exception as error:  # of this run: it is reported by name, the others go on
                fail(opened.run, error)
                continue
            del at_work[job.run]
            rows[job.run] |= {"status": DONE, "reason": "", **_described(table)}
            bar.advance()


def _take(
    opened: _Open, job: RegionJob, result: Result, root: Path, out: Path, options: _Options
) -> pd.DataFrame | None:
    """Take a region's result; write the run if it was the last."""
    if isinstance(result, Exception):
        raise _of_region(job.name, result)
    last = len(opened.results) == len(opened.plan.chosen) - 1
    held = sum(region.tree.nbytes for region in opened.results.values() if region.tree is not None)
    stays = last or held + result.nbytes <= HELD_BYTES  # what does not is read again when the run is done
    opened.results[job.name] = FinishedRegion(result if stays else None, job.file(out / KEPT), job.key)
    if not last:
        return None
    run, scan = opened.run, opened.scan
    read = json.loads(scan.attrs["inputs"])
    key = options.key({role: read[role]["sha256"] for role in run.inputs})
    joined = job.file(out / KEPT).with_name(JOINED)
    tree = finish_file(opened.results, scan, opened.plan, joined, bids_key=key)
    note = why_not_mapped(tree) if options.maps else "not asked for"
    maps = None
    if not note:
        maps = posterior_maps(scan, tree, seed=options.settings.seed, progress=False)
    table = write_run(out, root, run, tree, joined, maps, key, note)
    write_index(out, f"sub-{run.entities['sub']}")
    return table


def _of_region(region: str, error: Exception) -> InputError:
    """Name the region in an error of its sampling."""
    return InputError(f"region {region!r}: {_reason(error)}")


def _reason(error: Exception) -> str:
    """Give one line that says what happened."""
    text = printable(" ".join(str(error).split()))
    return text if isinstance(error, InputError) else f"{type(error).__name__}: {text}"
