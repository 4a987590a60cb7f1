"""The order in which results are summarised and written."""

import shutil
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from ivimbayes.cli.out_folder import MAPS, READY, RESULTS, OutFolder
from ivimbayes.errors import InputError

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

EXIT_INPUT, EXIT_FAILED_REGION = 2, 3


def map_regions(
    scan: "xr.Dataset", tree: "xr.DataTree", seed: int, cores: int | None, quiet: bool
) -> "xr.Dataset | None":
    """Map the regions that were fitted, where they can be."""
    from ivimbayes.maps.posterior import posterior_maps, why_not_mapped

    if reason := why_not_mapped(tree):
        typer.echo(f"ivimbayes: no maps: {reason}", err=True)
        return None
    return posterior_maps(scan, tree, seed=seed, cores=cores, progress=not quiet)


def write_results(
    tree: "xr.DataTree",
    out: OutFolder,
    made: "xr.Dataset | None",
    truth: "xr.Dataset | None" = None,
    quiet: bool = False,
) -> list[str]:
    """Put the results of a fit, whose draws lie in the unfinished work, in place; the verdicts."""
    from ivimbayes.cli.terminal import print_fit, print_truth
    from ivimbayes.maps.files import describe_maps, map_files, write_maps
    from ivimbayes.progress import FEW, StepProgress
    from ivimbayes.reporting.page import render_report
    from ivimbayes.results.diagnosis import diagnose
    from ivimbayes.results.summary import compare_truth, summarize

    new = out.new
    long = not quiet and tree["posterior"].sizes["roi"] > FEW
    with StepProgress(3, "verdicts, table, report", long) as bar:
        diagnoses = diagnose(tree)
        bar.advance()
        table = summarize(tree, diagnoses)
        bar.advance()
        text = render_report(tree, table, diagnoses, maps=made, truth=truth)
        bar.advance()
    tables: dict[str, pd.DataFrame] = {"summary.tsv": table}
    if truth is not None:
        tables["truth.tsv"] = compare_truth(table, truth)
    for name, frame in tables.items():
        write_table(frame, new / name)
    (new / "report.html").write_text(text, encoding="utf-8")
    if made is not None:
        write_maps(made, new / MAPS)
    tree.close()
    (out.unfinished / RESULTS[0]).replace(new / RESULTS[0])
    shutil.rmtree(out.path / MAPS / READY, ignore_errors=True)  # maps of the fit that is replaced
    out.finish({*RESULTS, *(f"{MAPS}/{name}" for name in map_files())})
    if made is None and (out.path / MAPS).is_dir():  # of an earlier fit, now empty
        with suppress(OSError):
            (out.path / MAPS).rmdir()
    print_fit(table, diagnoses, tree)
    if made is not None:
        typer.echo(f"{MAPS}: {describe_maps(made)}")
    if truth is not None:
        print_truth(tables["truth.tsv"])
    return [d.verdict for d in diagnoses.values()]


def write_map_files(made: "xr.Dataset", out: OutFolder, form: str) -> None:
    """Write maps in a format, in place of those in the folder."""
    from ivimbayes.io.netcdf import write_netcdf
    from ivimbayes.maps.files import map_files, write_maps

    if form == "nifti":
        write_maps(made, out.new)
    elif form == "netcdf":
        encoding = {name: {"zlib": True, "complevel": 4} for name in made.data_vars}
        write_netcdf(made, out.new / "maps.nc", encoding)
    else:
        made.load().to_zarr(out.new / "maps.zarr", zarr_format=3, consolidated=False)
    out.finish(map_files())


def fit_file(path: Path) -> Path:
    """File of a fit: given, or in the folder given."""
    folder = path if path.is_dir() else path.parent
    if any((place / READY).exists() for place in (folder, folder / MAPS)):
        raise InputError(
            f"{folder}: results are being put in place, or were when their run was ended; "
            "wait, or run the command that writes there again"
        )
    return path / "posterior.nc" if path.is_dir() or not path.exists() else path


def check_table(out: Path | None, overwrite: bool) -> None:
    """Refuse a file that exists, or has no folder to be in."""
    if out is not None and out.exists() and not overwrite:
        raise InputError(f"{out}: exists; name another file with --out, or replace it with --overwrite")
    if out is not None and not out.parent.is_dir():
        raise InputError(f"{out}: there is no folder {out.parent}; name a file in one with --out")


def write_table(table: "pd.DataFrame", out: Path | None) -> None:
    """Write a table, if a file is named."""
    from ivimbayes.io import tables

    if out is not None:
        tables.write_table(table, out)
