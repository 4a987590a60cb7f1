"""The part of ``ivimbayes compare`` that compares two sessions."""

from pathlib import Path

import typer

from ivimbayes.cli.outputs import check_table, fit_file, write_table
from ivimbayes.errors import InputError


def compare_sessions(folders: list[Path], rope: list[str] | None, out: Path | None, overwrite: bool) -> None:
    """Compare two folders' fits, print what changed and write the table."""
    from ivimbayes.cli.terminal import print_change
    from ivimbayes.results.sessions import compare_fits
    from ivimbayes.results.stored import read_fit

    check_table(out, overwrite)
    if len(folders) != 2:
        raise InputError(f"--sessions: {len(folders)} folders; name two, that of before and that of after")
    before, after = (read_fit(fit_file(path)) for path in folders)
    change = compare_fits(before, after, rope=_parse(rope))
    write_table(change.table, out)
    print_change(change.table, change.sentences)
    if out is not None:
        typer.echo(f"written to {out}")


def _parse(words: list[str] | None) -> dict[str, float | str] | None:
    """Read --rope: half widths by parameter, in percent or in the units of tables."""
    from ivimbayes.models.signals import PARAMETERS

    if not words:
        return None
    found: dict[str, float | str] = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals or name not in PARAMETERS:
            raise InputError(f"--rope {word}: give PARAMETER=CHANGE, such as D=5% or f=0.02")
        if text.strip().endswith("%"):
            found[name] = text
            continue
        try:
            found[name] = float(text) / PARAMETERS[name].display_scale
        except ValueError:
            raise InputError(f"--rope {word}: not a number; write {name}=5% or {name}=0.02") from None
    return found
