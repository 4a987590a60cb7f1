"""Results folder of a command: refused if not empty, left as it was if nothing came of it.

Modules that take long to import are imported where they are used.
"""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from ivimbayes.errors import InputError

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

CHECKPOINT, UNFINISHED_MAPS, WRITTEN_MAPS = ".ivimbayes-regions", ".ivimbayes-maps", ".ivimbayes-written"
OURS = (CHECKPOINT, UNFINISHED_MAPS, WRITTEN_MAPS, f".{UNFINISHED_MAPS}.unfinished")
RESULTS, MAPS = ("posterior.nc", "summary.tsv", "truth.tsv", "report.html"), "maps"
EXIT_INTERRUPTED = 130


class OutFolder:
    """The results folder: made if need be, refused if not empty, gone again if nothing came of it."""

    def __init__(self, path: Path, overwrite: bool):
        self.path, self.overwrite, self.made = path, overwrite, []  # type: ignore[var-annotated]

    def __enter__(self) -> Path:
        path = self.path
        try:
            self.made = [p for p in (path, *path.parents) if not p.exists()]
            path.mkdir(parents=True, exist_ok=True)
            ours: set[str] = set(OURS)
            if (path / UNFINISHED_MAPS).exists():  # a run that was ended while it moved its maps into place
                from ivimbayes.maps import map_files

                ours |= map_files()
            entries = [p.name for p in path.iterdir() if p.name not in ours]
            if not self.overwrite and {"posterior.nc", "summary.tsv"} <= set(entries):
                raise InputError(
                    f"{path}: the folder holds a finished fit (ivimbayes summary {path} prints it); "
                    "name another with --out, or replace it with --overwrite"
                )
            if entries and not self.overwrite:
                raise InputError(
                    f"{path}: the folder is not empty (holds {sorted(entries)[0]}); "
                    "name another with --out, or replace its results with --overwrite"
                )
            probe = path / ".ivimbayes-writable"
            probe.touch()
            probe.unlink()
        except OSError as error:
            self._remove_empty()
            raise InputError(
                f"{path}: cannot be written ({error.strerror}); name another folder with --out"
            ) from None
        return path

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, KeyboardInterrupt):
            typer.echo("ivimbayes: interrupted; the same command continues with what is finished", err=True)
            raise typer.Exit(EXIT_INTERRUPTED)
        if isinstance(error, Exception):
            self._remove_empty()

    def _remove_empty(self) -> None:
        kept = self.path / CHECKPOINT
        if not list(kept.glob("*.nc")):
            shutil.rmtree(kept, ignore_errors=True)
        if not any((self.path / UNFINISHED_MAPS / "blocks_done").glob("c/**/*")):
            for name in OURS[1:]:
                shutil.rmtree(self.path / name, ignore_errors=True)
        for path in self.made:
            if path.exists() and not any(path.iterdir()):
                path.rmdir()


def map_regions(
    scan: "xr.Dataset", tree: "xr.DataTree", folder: Path, seed: int, cores: int | None, quiet: bool
) -> "xr.Dataset | None":
    """Map the regions that were fitted, into a folder that `_write` puts in its place."""
    from ivimbayes.maps import write_maps
    from ivimbayes.voxelwise import posterior_maps, why_not_mapped

    if reason := why_not_mapped(tree):
        typer.echo(f"ivimbayes: no maps: {reason}", err=True)
        return None
    made = posterior_maps(scan, tree, seed=seed, cores=cores, progress=not quiet)
    shutil.rmtree(folder / CHECKPOINT / MAPS, ignore_errors=True)
    write_maps(made, folder / CHECKPOINT / MAPS)
    return made


def write_results(
    tree: "xr.DataTree", folder: Path, made: "xr.Dataset | None", truth: "xr.Dataset | None" = None
) -> list[str]:
    """Write the results, print them, and return the verdicts."""
    from ivimbayes.maps import describe_maps, replace_maps
    from ivimbayes.report import render_report
    from ivimbayes.storage import replacing, write_tree
    from ivimbayes.summary import compare_truth, diagnose, summarize
    from ivimbayes.terminal import print_fit, print_truth

    diagnoses = diagnose(tree)
    table = summarize(tree, diagnoses)
    tables: dict[str, pd.DataFrame] = {"summary.tsv": table}
    if truth is not None:
        tables["truth.tsv"] = compare_truth(table, truth)
    write_tree(tree, folder / "posterior.nc")
    for name, frame in tables.items():
        with replacing(folder / name) as path:
            frame.to_csv(path, sep="\t", index=False, float_format="%.6g", na_rep="n/a")
    with replacing(folder / "report.html") as path:
        path.write_text(render_report(tree, table, diagnoses, maps=made, truth=truth), encoding="utf-8")
    for stale in set(RESULTS) - {"posterior.nc", "report.html", *tables}:
        (folder / stale).unlink(missing_ok=True)
    if made is not None:
        replace_maps(folder / CHECKPOINT / MAPS, folder / MAPS)
    elif (folder / MAPS).is_dir():  # of an earlier fit
        (folder / CHECKPOINT / MAPS).mkdir(parents=True, exist_ok=True)
        replace_maps(folder / CHECKPOINT / MAPS, folder / MAPS)
    shutil.rmtree(folder / CHECKPOINT, ignore_errors=True)
    print_fit(table, diagnoses, tree)
    if made is not None:
        typer.echo(f"{MAPS}: {describe_maps(made)}")
    if truth is not None:
        print_truth(tables["truth.tsv"])
    return [d.verdict for d in diagnoses.values()]


def write_map_files(made: "xr.Dataset", store: Path, folder: Path, form: str) -> None:
    """Write maps beside the store they gathered in, move them into the folder, remove the store."""
    from ivimbayes.maps import replace_maps, write_maps

    written = folder / WRITTEN_MAPS
    shutil.rmtree(written, ignore_errors=True)
    written.mkdir()
    if form == "nifti":
        write_maps(made, written)
    elif form == "netcdf":
        encoding = {name: {"zlib": True, "complevel": 4} for name in made.data_vars}
        made.to_netcdf(written / "maps.nc", engine="h5netcdf", encoding=encoding)
    else:
        made.load().to_zarr(written / "maps.zarr", zarr_format=3, consolidated=False)
    replace_maps(written, folder)
    for name in OURS[1:]:
        shutil.rmtree(folder / name, ignore_errors=True)


def fit_file(path: Path) -> Path:
    """File of a fit: given, or in the folder given."""
    return path / "posterior.nc" if path.is_dir() or not path.exists() else path


def check_table(out: Path | None, overwrite: bool) -> None:
    """Refuse a file that exists, or has no folder to be in."""
    if out is not None and out.exists() and not overwrite:
        raise InputError(f"{out}: exists; name another file with --out, or replace it with --overwrite")
    if out is not None and not out.parent.is_dir():
        raise InputError(f"{out}: there is no folder {out.parent}; name a file in one with --out")


def write_table(table: "pd.DataFrame", out: Path | None) -> None:
    """Write a table (TSV), if a file is named."""
    from ivimbayes.storage import replacing

    if out is not None:
        with replacing(out) as path:
            table.to_csv(path, sep="\t", index=False, float_format="%.6g")
