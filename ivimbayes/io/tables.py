"""Tab-separated tables, read with care: what cannot be read is one line that says why."""

import warnings
from pathlib import Path
from typing import Any

import pandas as pd
from pandas.errors import ParserWarning

from ivimbayes.errors import InputError
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
        raise InputError(f"{path}: cannot be read ({one_line(error)}); {way_out}") from None
