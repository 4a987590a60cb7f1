"""Names of label values, from JSON, a BIDS dseg.tsv or a mapping."""

import csv
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ivimbayes.errors import InputError
from ivimbayes.io.tables import read_table
from ivimbayes.io.text import one_line, read_json

LONGEST = 18  # digits of a label


def read_label_names(
    labels: Path, values: np.ndarray, names: Mapping[int, str] | str | Path | None
) -> tuple[dict[int, str], Path | None]:
    """Name every label of an image.

    Parameters
    ----------
    labels : path
        The label image; a ``.tsv`` or ``.json`` of its name beside it is read when `names` is None. A JSON
        sidecar that holds anything but labels and names is passed over.
    values : ndarray of int
        Labels present in the image.
    names : mapping, path or None
        Names by label, or the file that holds them.

    Returns
    -------
    names : dict of int to str
        By label, in rising order; a label without a name is called ``roi-<label>``.
    path : path or None
        The file that was read.

    Raises
    ------
    InputError
        If the file cannot be read, a name cannot be printed, or two labels share one.
    """
    path: Path | None = None
    if names is None:
        stem = labels.name.removesuffix(".gz").removesuffix(".nii")
        found = [p for ending in (".tsv", ".json") if (p := labels.with_name(stem + ending)).exists()]
        table: dict[int, str] = {}
        for path in found:
            table = _read(path, required=False)
            if table:
                break
        path = path if table else None
    elif isinstance(names, Mapping):
        table = {int(label): str(name) for label, name in names.items()}
    else:
        path = Path(names)
        table = _read(path, required=True)
    table.pop(0, None)
    for value in values.tolist():
        table.setdefault(value, f"roi-{value}")
    table = {label: table[label] for label in sorted(table)}
    for label, name in table.items():
        if not name.strip() or not name.isprintable():
            raise InputError(f"{path or labels}: label {label} is named {name!r}; use printable characters")
    twice, count = Counter(table.values()).most_common(1)[0] if table else ("", 0)
    if count > 1:
        raise InputError(f"{path or labels}: two labels are named {twice!r}; give each region its own name")
    return table, path


def _read(path: Path, required: bool) -> dict[int, str]:
    try:
        if path.suffix == ".tsv" and path.exists():
            return _from_tsv(path)
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise InputError(
            f'{path}: no such file; give names as 1=liver,2=kidney, {{"1": "liver"}} in JSON or a dseg.tsv'
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path}: cannot be read ({one_line(error)}); give names as JSON or a dseg.tsv"
        ) from None
    return _from_json(text, path, required)


def _from_json(text: str, path: Path, required: bool) -> dict[int, str]:
    try:
        plain: Any = read_json(text)
    except ValueError as error:
        raise InputError(f'{path}: not JSON ({one_line(error)}); write names as {{"1": "liver"}}') from None
    pairs = plain.items() if isinstance(plain, dict) else ()
    table = {_label(key): str(value) for key, value in pairs if _label(key) >= 0 and isinstance(value, str)}
    table |= {_label(value): str(key) for key, value in pairs if _label(value) >= 0 and _label(key) < 0}
    if not required and len(table) < len(pairs):
        return {}
    if required and not table:
        raise InputError(f'{path}: holds no label names; write {{"1": "liver", "2": "kidney"}}')
    return table


def _from_tsv(path: Path) -> dict[int, str]:
    rows = read_table(path, "write index and name, tab-separated", dtype=str, quoting=csv.QUOTE_NONE)
    if rows.empty or not {"index", "name"} <= set(rows):
        raise InputError(f"{path}: no columns index and name; write a tab-separated table with both")
    table = {}
    for number, (index, name) in enumerate(zip(rows["index"], rows["name"], strict=True), start=2):
        label = _label(index)
        if label < 0 or not name:
            raise InputError(
                f"{path}: line {number} has index {index!r} and name {name!r}; give a whole number and a name"
            )
        table[label] = name
    return table


def _label(word: Any) -> int:
    """Label value of a word, -1 where it is none."""
    if isinstance(word, bool) or not isinstance(word, int | str):
        return -1
    text = str(word).strip()
    return int(text) if text.isdecimal() and len(text) <= LONGEST else -1
