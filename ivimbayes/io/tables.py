"""Tab-separated tables in and out; what cannot be read is refused in one line that says why."""

import warnings
from pathlib import Path
from typing import Any

import pandas as pd
from pandas.errors import ParserError, ParserWarning

from ivimbayes.errors import InputError
from ivimbayes.io.atomic import replacing
from ivimbayes.io.text import one_line


def read_table(path: Path, way_out: str, **options: Any) -> pd.DataFrame:
    """Read a tab-separated table; one whose rows are longer than its header is refused.

    Parameters
    ----------
    path : path
        The file, UTF-8.
    way_out : str
        End of the message: what to do.
    options
        For `pandas.read_csv`.

    Raises
    ------
    InputError
        If it cannot be read.
    """
    options = {"keep_default_na": False} | options
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", ParserWarning)  # a row too long, whose end would be cut off
            return pd.read_csv(path, sep="\t", encoding="utf-8-sig", index_col=False, **options)
    except (OSError, ValueError, OverflowError, ParserWarning) as error:
        if isinstance(error, ParserError | ParserWarning) and (line := _long_line(path)):
            raise InputError(f"{path}: line {line} has more fields than the header; {way_out}") from None
        raise InputError(f"{path}: cannot be read ({one_line(error)}); {way_out}") from None


def _long_line(path: Path) -> int | None:
    """Find the first line with more fields than the header; its number from 1, None where there is none."""
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        tabs = ((n, line.count("\t")) for n, line in enumerate(file, start=1) if line.strip(" \r\n"))
        _, header = next(tabs, (0, 0))
        return next((n for n, count in tabs if count > header), None)


def write_table(table: pd.DataFrame, path: Path) -> None:
    """Write a table, tab-separated: numbers with 6 significant digits, missing values as ``n/a``.

    Parameters
    ----------
    table : DataFrame
        Its columns are written; its index is not.
    path : path
        The file, which appears when it is complete.

    Raises
    ------
    OSError
        If it cannot be written.
    """
    with replacing(path) as unfinished:
        table.to_csv(unfinished, sep="\t", index=False, float_format="%.6g", na_rep="n/a")
