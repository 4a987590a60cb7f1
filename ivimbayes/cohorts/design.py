"""The design of a study: covariates of each scan as columns of a matrix."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import xarray as xr

from ivimbayes.errors import InputError
from ivimbayes.io.text import one_line, read_json


@dataclass(frozen=True)
class Design:
    """Rows of a study's scans turned to numbers.

    Attributes
    ----------
    table : DataFrame
        As given, with ``subject``.
    effects : tuple of str
        Columns, and products of them such as ``group:session``.
    levels : mapping of str to tuple of str
        Of each column that is not a number.
    moments : mapping of str to (float, float)
        Mean and standard deviation of each column that is.
    """

    table: pd.DataFrame
    effects: tuple[str, ...]
    levels: Mapping[str, tuple[str, ...]]
    moments: Mapping[str, tuple[float, float]]

    @property
    def columns(self) -> list[str]:
        """Names of the coefficients, the intercept first."""
        found = ["intercept"]
        for effect in self.effects:
            parts = [self.levels.get(name, (None,)) for name in effect.split(":")]
            for chosen in itertools.product(*parts):
                inside = ",".join(level for level in chosen if level is not None)
                found.append(f"{effect}[{inside}]" if inside else effect)
        return found

    def rows(self, table: pd.DataFrame) -> np.ndarray:
        """Rows (row, coefficient) of the design for the rows of a table with the same columns."""
        found = [np.ones(len(table))]
        for effect in self.effects:
            parts = []
            for name in effect.split(":"):
                if name in self.levels:
                    parts.append(
                        [(table[name].astype(str) == level).to_numpy() for level in self.levels[name]]
                    )
                else:
                    mean, sd = self.moments[name]
                    parts.append([(table[name].to_numpy(float) - mean) / sd])
            found += [np.prod(chosen, axis=0) for chosen in itertools.product(*parts)]
        return np.stack(found, axis=1).astype(float)


def read_design(design: pd.DataFrame, scans: int, effects: Sequence[str] | None = None) -> Design:
    """Check a study's table and turn it into a `Design`; parameters and errors are those of `fit_cohort`."""
    if len(design) != scans:
        raise InputError(
            f"design: {len(design)} rows for {scans} fits; give a row for each fit, in their order"
        )
    named = [str(c) for c in design.columns]
    if twice := [c for c in named if named.count(c) > 1]:
        raise InputError(f"design: two columns {twice[0]!r}; give each its own name")
    given = [c for c in named if c != "subject"] if effects is None else list(dict.fromkeys(effects))
    names = list(dict.fromkeys(part for effect in given for part in effect.split(":")))
    for name in names:
        if name not in named or name == "subject":
            there = ", ".join(c for c in named if c != "subject") or "none"
            raise InputError(f"effects: no column {name!r} in the design; its columns are {there}")
    plain = design.set_axis(named, axis=1).reset_index(drop=True)
    subject = plain["subject"] if "subject" in named else pd.Series(np.arange(scans))
    table, levels, moments = (
        pd.DataFrame(index=plain.index),
        dict[str, tuple[str, ...]](),
        dict[str, tuple[float, float]](),
    )
    for name, column in {"subject": subject, **{name: plain[name] for name in names}}.items():
        if column.isna().any():
            at = int(np.flatnonzero(column.isna())[0])
            raise InputError(f"design, row {at + 1}: no {name}; leave the scan out, or give a value")
        if name == "subject" or _is_factor(column):
            table[name] = column.astype(str)
            if name != "subject":
                levels[name] = _levels(name, column)
            continue
        table[name] = column.astype(float)
        if not np.isfinite(table[name]).all():
            raise InputError(f"design: {name} is not finite throughout; leave such scans out")
        moments[name] = float(table[name].mean()), float(table[name].std(ddof=0))
        if moments[name][1] == 0:
            raise InputError(
                f"design: {name} is {table[name][0]:g} in every row; leave it out of the effects"
            )
    return Design(table, tuple(given), levels, moments)


def _is_factor(column: pd.Series) -> bool:
    """Whether a column is one of levels: text, true or false, or two different numbers, as 0 and 1."""
    number = pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column)
    return not number or (column.nunique() == 2 and len(column) > 2)


def _levels(name: str, column: pd.Series) -> tuple[str, ...]:
    """Levels of a factor, in order; columns that are hardly one are refused."""
    text = column.astype(str)
    categories = (
        column.cat.categories.astype(str)
        if isinstance(column.dtype, pd.CategoricalDtype)
        else sorted(text.unique())
    )
    found = tuple(level for level in categories if (text == level).any())
    if len(found) < 2:
        raise InputError(f"design: {name} is {found[0]!r} in every row; leave it out of the effects")
    numbers = pd.to_numeric(text, errors="coerce")
    if numbers.notna().mean() > 0.5 and numbers.isna().any():
        at = int(np.flatnonzero(numbers.isna())[0])
        raise InputError(
            f"design, row {at + 1}: {name} {text[at]!r} is not a number as most others; correct it"
        )
    if len(found) == len(text) and len(text) > 2:
        raise InputError(f"design: {name} is different in every row; leave it out of the effects")
    return found


def design_of(cohort: xr.DataTree) -> Design:
    """Read the design back from the fit of a study."""
    if "effects" not in cohort.attrs or "scans" not in cohort.children:
        raise InputError("cohort: not the fit of a study; give a tree from fit_cohort or read_cohort")
    a = cohort.attrs
    try:
        levels = {name: tuple(found) for name, found in read_json(a["levels"]).items()}
        moments = {name: tuple(found) for name, found in read_json(a["moments"]).items()}
        table = pd.DataFrame(read_json(a["design"]))
        return Design(table, tuple(read_json(a["effects"])), levels, moments)
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise InputError(f"cohort: its design cannot be read ({one_line(error)}); fit it again") from None
