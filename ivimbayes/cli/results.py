"""The commands that read a finished fit: ``summary``, ``report``, ``compare``, ``volume``; and ``tissues``.

Modules that take long to import are imported where they are used.
"""

from pathlib import Path
from typing import Annotated

import typer

from ivimbayes.cli.options import Priors, Replace, Seed, Table, parse_time, parse_times, parse_tissues
from ivimbayes.cli.out_folder import MAPS
from ivimbayes.cli.outputs import check_table, fit_file, write_table
from ivimbayes.errors import InputError

FitFolder = Annotated[Path, typer.Argument(help="A folder that ivimbayes fit wrote.", show_default=False)]


def summary_command(
    folder: FitFolder,
    sensitivity: Annotated[
        bool, typer.Option("--sensitivity", help="Print how far prior and data each move the values.")
    ] = False,
) -> None:
    """Print the table and the verdicts of a fit."""
    from ivimbayes.cli.terminal import print_fit
    from ivimbayes.results.diagnosis import diagnose
    from ivimbayes.results.stored import read_fit
    from ivimbayes.results.summary import summarize

    tree = read_fit(fit_file(folder))
    diagnoses = diagnose(tree)
    print_fit(summarize(tree, diagnoses), diagnoses, tree)
    if sensitivity:
        from ivimbayes.checks.sensitivity import prior_sensitivity
        from ivimbayes.cli.terminal import print_sensitivity

        print_sensitivity(prior_sensitivity(tree))


def report_command(
    folder: FitFolder,
    out: Annotated[
        Path | None, typer.Option("--out", help="The HTML file.  [default: DIR/report.html]")
    ] = None,
    title: Annotated[
        str | None, typer.Option("--title", help="Of the page.  [default: the scan's file]")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file --out.")] = False,
) -> None:
    """Write the report on a fit: one HTML file, with its maps if the folder has some.

    Without --out it replaces the report of the folder.
    """
    from ivimbayes.maps.files import map_files, read_maps
    from ivimbayes.reporting.page import write_report
    from ivimbayes.results.stored import read_fit

    check_table(out, overwrite)
    path = fit_file(folder)
    tree, maps = read_fit(path), path.parent / MAPS
    has_maps = maps.is_dir() and any((maps / name).exists() for name in map_files())
    out = path.parent / "report.html" if out is None else out
    write_report(tree, out, maps=read_maps(maps) if has_maps else None, title=title)
    typer.echo(f"written to {out}")


def compare_command(
    folders: Annotated[
        list[Path],
        typer.Argument(
            metavar="DIR DIR ...",
            help="Folders that ivimbayes fit wrote: of one scan, or with --sessions before and after.",
            show_default=False,
        ),
    ],
    sessions: Annotated[
        bool, typer.Option("--sessions", help="Two sessions, before and after: what changed?")
    ] = False,
    rope: Annotated[
        list[str] | None,
        typer.Option(
            "--rope", help="Change that does not matter, D=5% or f=0.02 (D in 1e-3 mm2/s); may be repeated."
        ),
    ] = None,
    out: Table = None,
    overwrite: Replace = False,
) -> None:
    """Compare fits of one scan with different --signal or --noise: say what the data of each region support.

    By leave-one-out cross-validation; the simplest model that is not clearly worse than the best is marked.
    With --sessions, two fits of the same regions in two scans: differences, ratios, and what changed.
    """
    if sessions:
        from ivimbayes.cli.sessions import compare_sessions

        compare_sessions(folders, rope, out, overwrite)
        return
    if rope:
        raise InputError("--rope: is of two sessions; give --sessions too")
    from ivimbayes.cli.terminal import print_comparison
    from ivimbayes.results.comparison import compare_models
    from ivimbayes.results.stored import read_fit

    check_table(out, overwrite)
    names = [path.resolve().name for path in folders]
    names = names if len(set(names)) == len(names) else list(map(str, folders))
    if len(set(names)) < len(names):
        raise InputError(f"{max(names, key=names.count)}: given twice; name each folder once")
    compared = compare_models(
        {name: read_fit(fit_file(path)) for name, path in zip(names, folders, strict=True)}
    )
    write_table(compared.table, out)
    print_comparison(compared.table, compared.sentences)
    if out is not None:
        typer.echo(f"written to {out}")


def volume_command(
    folder: FitFolder,
    te: Annotated[float, typer.Option("--te", help="Echo time (ms).")],
    t2_blood: Annotated[
        str | None, typer.Option("--t2-blood", help="T2 of blood (ms): mean, or mean,sd.")
    ] = None,
    t2_tissue: Annotated[
        list[str] | None,
        typer.Option("--t2-tissue", help="T2 of tissue (ms): mean,sd, or REGION=mean,sd; may be repeated."),
    ] = None,
    field: Annotated[
        float | None,
        typer.Option("--field", help="Field strength (T): times not given are taken from the table."),
    ] = None,
    tissue: Annotated[
        list[str] | None,
        typer.Option(
            "--tissue",
            help="Tissue of a region in the table, REGION=TISSUE; may be repeated.  [default: of its prior]",
        ),
    ] = None,
    tr: Annotated[
        float | None, typer.Option("--tr", help="Repetition time (ms): correct for T1 too.")
    ] = None,
    t1_blood: Annotated[
        str | None, typer.Option("--t1-blood", help="T1 of blood (ms): mean, or mean,sd.")
    ] = None,
    t1_tissue: Annotated[
        list[str] | None, typer.Option("--t1-tissue", help="T1 of tissue (ms), as --t2-tissue.")
    ] = None,
    out: Table = None,
    seed: Seed = 0,
    overwrite: Replace = False,
) -> None:
    """Print the perfusion fraction of each region's volume: that of the signal, corrected for T2 (and T1)."""
    from ivimbayes.cli.terminal import print_volume
    from ivimbayes.io.netcdf import read_tree
    from ivimbayes.results.volume_fraction import correct_fraction, tabulate_fractions

    check_table(out, overwrite)
    tree = read_tree(fit_file(folder))
    corrected = correct_fraction(
        tree, TE=te, TR=tr, field=field, tissue=parse_tissues(tissue), seed=seed,
        T2_blood=parse_time(t2_blood, "--t2-blood"), T2_tissue=parse_times(t2_tissue, "--t2-tissue"),
        T1_blood=parse_time(t1_blood, "--t1-blood"), T1_tissue=parse_times(t1_tissue, "--t1-tissue"),
    )  # fmt: skip
    table = tabulate_fractions(tree, corrected)
    write_table(table, out)
    print_volume(table, corrected)
    if out is not None:
        typer.echo(f"written to {out}")


def tissues_command(
    priors: Priors = None,
) -> None:
    """List the tissues, their priors and where the numbers come from."""
    from ivimbayes.cli.terminal import print_tissues
    from ivimbayes.models.priors import read_priors

    print_tissues(read_priors(priors))
