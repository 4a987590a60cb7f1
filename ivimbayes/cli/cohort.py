"""The command ``ivimbayes cohort``: the level above regions, from a table of fits.

Modules that take long to import are imported where they are used.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ivimbayes.cli.options import Cores, Draws, Overwrite, Seed
from ivimbayes.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

FILES = ("effects.tsv", "scans.tsv", "cohort.nc")


def cohort_command(
    design: Annotated[
        Path,
        typer.Argument(
            help="Table (TSV) with a row for each scan: fit (its results folder, from the folder of the "
            "table), subject, and columns such as group, session, age.",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder to write to.", show_default=False)],
    effects: Annotated[
        list[str] | None,
        typer.Option(
            "--effects",
            help="Columns to find effects of: group, or group,session,group:session; may be repeated.  "
            "[default: all but fit and subject]",
        ),
    ] = None,
    draws: Draws = 1000,
    seed: Seed = 0,
    cores: Cores = None,
    overwrite: Overwrite = False,
) -> None:
    """Compare groups, sessions or covariates over the fits of a study, with subjects drawn together.

    Writes effects.tsv, scans.tsv and cohort.nc. Exit status 0: written. 2: nothing written, the message says
    why.
    """
    from ivimbayes.cli.terminal import print_effects
    from ivimbayes.cohorts.contrasts import all_contrasts, write_cohort
    from ivimbayes.cohorts.fit import fit_cohort
    from ivimbayes.io.text import one_line

    there = [name for name in FILES if (out / name).exists()]
    if there and not overwrite:
        raise InputError(f"{out}: holds {there[0]}; name another with --out, or replace it with --overwrite")
    table = read_design_file(design)
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: is a file; name a folder with --out")
    names = [label for word in effects or [] for label in word.replace(",", " ").split()]
    folders = [design.parent / folder for folder in table.pop("fit")]
    cohort = fit_cohort(folders, table, effects=names or None, draws=draws, seed=seed, cores=cores)
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_cohort(cohort, out)
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({one_line(error)}); name another folder") from None
    print_effects(all_contrasts(cohort))
    typer.echo(f"written to {out}")


def read_design_file(path: Path) -> "pd.DataFrame":
    """Read the table of a study: a row for each scan, whose results folder is in the column fit."""
    from ivimbayes.io.tables import read_table

    types = {"fit": str, "subject": str}
    table = read_table(path, "write a tab-separated table", na_values=["n/a", ""], dtype=types)
    if "fit" not in table or table["fit"].isna().any():
        raise InputError(f"{path}: needs a column fit, the results folder of each scan; add it")
    return table
