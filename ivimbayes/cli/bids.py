"""The command ``ivimbayes bids``: a BIDS App.

Modules that take long to import are imported where they are used.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ivimbayes.cli.options import ModelOptions, Quiet, RealValued, SamplingOptions, grouped
from ivimbayes.cli.out_folder import EXIT_INTERRUPTED
from ivimbayes.cli.outputs import EXIT_FAILED_REGION, EXIT_INPUT
from ivimbayes.errors import InputError, printable

if TYPE_CHECKING:
    import pandas as pd

LEVELS = ("participant", "group")


@grouped
def bids_command(
    bids_dir: Annotated[Path, typer.Argument(help="A BIDS dataset.", show_default=False)],
    out_dir: Annotated[Path, typer.Argument(help="Dataset of derivatives to write.", show_default=False)],
    analysis_level: Annotated[str, typer.Argument(help="participant, group.", show_default=False)],
    model: ModelOptions,
    sampling: SamplingOptions,
    real_valued: RealValued = False,
    participant_label: Annotated[
        list[str] | None,
        typer.Option(
            "--participant-label",
            "--participant_label",
            help="Take this participant: 01, or 01,02; may be repeated.",
        ),
    ] = None,
    session_label: Annotated[
        list[str] | None,
        typer.Option("--session-label", "--session_label", help="Take this session; may be repeated."),
    ] = None,
    rois_dir: Annotated[
        list[Path] | None,
        typer.Option(
            "--rois-dir",
            help="Dataset with the label images (dseg) or masks; may be repeated.  "
            "[default: BIDS_DIR and the folders in its derivatives]",
        ),
    ] = None,
    rois_desc: Annotated[
        str | None, typer.Option("--rois-desc", help="desc of the label image, where there are several.")
    ] = None,
    mask_desc: Annotated[
        str | None, typer.Option("--mask-desc", help="desc of a mask, outside of which labels do not count.")
    ] = None,
    effects: Annotated[
        list[str] | None,
        typer.Option(
            "--effects",
            help="group level: find effects of these columns of participants.tsv, or of session: "
            "group, or group,session,group:session; may be repeated.",
        ),
    ] = None,
    scheduler: Annotated[
        str | None, typer.Option("--scheduler", help="Address of a dask scheduler whose workers sample.")
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers", help="Worker processes on this machine, without --scheduler.  [default: all cores]"
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done; write nothing.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace results of other files, options or version.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Fit every diffusion-weighted run of a BIDS dataset (participant), or gather the tables (group).

    A run with a fault is reported and passed over. Finished runs are left as they are, so that the same
    command continues. Exit status 0: all done. 2: nothing done, the message says why. 3: results written, but
    a run has failed, or a region's posterior is not to be trusted.
    """
    if analysis_level not in LEVELS:
        raise InputError(f"analysis level {analysis_level!r}; accepted are {', '.join(LEVELS)}")
    if analysis_level == "group":
        from ivimbayes.bids.app import run_group

        if dry_run:
            raise InputError("--dry-run belongs to the participant level; leave it out")
        wanted = _words(effects)
        written = run_group(
            bids_dir, out_dir, effects=wanted, signal=model.signal, draws=sampling.draws, seed=sampling.seed
        )
        if wanted:
            from ivimbayes.cli.terminal import print_effects
            from ivimbayes.io.tables import read_table

            print_effects(read_table(out_dir / "group_effects.tsv", "run the group level again"))
        typer.echo(f"written to {written}")
        return
    if effects:
        raise InputError("--effects belongs to the group level; leave it out")
    from ivimbayes.bids.app import run_participant

    try:
        table = run_participant(
            bids_dir, out_dir, model.spec, participants=_words(participant_label),
            sessions=_words(session_label), rois_dirs=rois_dir, rois_desc=rois_desc, mask_desc=mask_desc,
            regions=model.region or None, b_min=model.b_min, b_max=model.b_max, real_valued=real_valued,
            maps=sampling.maps, scheduler=scheduler, workers=workers, overwrite=overwrite, dry_run=dry_run,
            progress=not quiet, **model.keywords, **sampling.keywords,
        )  # fmt: skip
    except KeyboardInterrupt:
        typer.echo("ivimbayes: interrupted; the same command continues with what is finished", err=True)
        raise typer.Exit(EXIT_INTERRUPTED) from None
    if dry_run:
        _print_plan(table)
        return
    _print_end(table, out_dir)


def _words(words: list[str] | None) -> list[str] | None:
    """Labels of an option that may be repeated, or hold several."""
    return [label for word in words or [] for label in word.replace(",", " ").split()] or None


def _print_plan(table: "pd.DataFrame") -> None:
    for row in table.to_dict("records"):
        typer.echo(f"{row['run']}: {row['status']}{': ' if row['reason'] else ''}{row['reason']}")
        for role in ("dwi", "bval", "rois", "mask", "names", "regions"):
            if row[role]:
                typer.echo(printable(f"  {role}: {row[role]}"))
    counts = table["status"].value_counts(sort=False)
    typer.echo(
        f"{len(table)} runs: {', '.join(f'{n} {status}' for status, n in counts.items())}; nothing written"
    )


def _print_end(table: "pd.DataFrame", out: Path) -> None:
    """Say what was done and what was not, and exit with the status that tells it."""
    count = {status: int((table["status"] == status).sum()) for status in ("done", "already done", "failed")}
    untrusted = table[table["verdict"] == "failed"]
    for row in untrusted.to_dict("records"):
        typer.echo(f"{row['run']}: a region's posterior is not to be trusted; see its report")
    for row in table[table["status"] == "failed"].to_dict("records"):
        typer.echo(f"ivimbayes: {row['run']}: failed: {row['reason']}", err=True)
    if count["already done"]:
        rest = "" if count["done"] or count["failed"] else ", nothing to do"
        typer.echo(f"{count['already done']} runs already done{rest}")
    if count["done"]:
        typer.echo(f"{count['done']} runs done, written to {out}")
    if count["failed"]:
        typer.echo(
            f"{count['failed']} of {len(table)} runs failed; reasons in {out / 'failed.tsv'}", err=True
        )
    if count["failed"] == len(table):
        raise typer.Exit(EXIT_INPUT)
    if count["failed"] or len(untrusted):
        raise typer.Exit(EXIT_FAILED_REGION)
