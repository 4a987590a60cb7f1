"""The command line: its commands, and how errors end.

Modules that take long to import are imported where they are used, so that ``--help`` answers at once.
"""

import errno
import signal
import sys
import warnings
from collections.abc import Callable
from importlib.metadata import version as release
from typing import Annotated, Any

import typer

from ivimbayes.cli.bids import bids_command
from ivimbayes.cli.calibrate import calibrate_command
from ivimbayes.cli.cohort import cohort_command
from ivimbayes.cli.fit import demo_command, fit_command, prior_command
from ivimbayes.cli.maps import ls_command, map_command
from ivimbayes.cli.outputs import EXIT_INPUT
from ivimbayes.cli.protocol import protocol_app
from ivimbayes.cli.results import (
    compare_command,
    report_command,
    summary_command,
    tissues_command,
    volume_command,
)
from ivimbayes.errors import InputError, InputWarning, printable

app = typer.Typer(
    name="ivimbayes",
    help="Bayesian intravoxel incoherent motion (IVIM) MRI: a posterior and a verdict for every region.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(protocol_app, name="protocol")
COMMANDS: dict[str, Callable[..., None]] = {
    "bids": bids_command, "calibrate": calibrate_command, "cohort": cohort_command, "fit": fit_command,
    "prior": prior_command, "demo": demo_command, "map": map_command, "ls": ls_command,
    "summary": summary_command, "report": report_command, "compare": compare_command,
    "volume": volume_command, "tissues": tissues_command,
}  # fmt: skip
for name, command in COMMANDS.items():
    app.command(name)(command)
REMEDIES = {
    errno.ENOSPC: "free some space", errno.EDQUOT: "free some space", errno.EACCES: "see to its permissions",
    errno.EROFS: "name another place", errno.ENOENT: "see whether something removed it",
}  # fmt: skip


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"ivimbayes {release('ivimbayes')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_print_version),
    ] = False,
) -> None:
    """Bayesian intravoxel incoherent motion (IVIM) MRI: a posterior and a verdict for every region."""


def _show_warning(message: Any, category: type[Warning], *_: Any, **__: Any) -> None:
    if issubclass(category, InputWarning):
        typer.echo(f"ivimbayes: warning: {message}", err=True)


def _end(*_: Any) -> None:
    """End as at Ctrl-C."""
    raise KeyboardInterrupt


def main() -> None:
    """Run the command line; an InputError is one line and exit status 2."""
    warnings.simplefilter("ignore")
    warnings.simplefilter("always", InputWarning)
    warnings.showwarning = _show_warning
    before = signal.signal(signal.SIGTERM, _end)
    try:
        app()
    except InputError as error:
        typer.echo(f"ivimbayes: error: {error}", err=True)
        sys.exit(EXIT_INPUT)
    except OSError as error:
        where, what = printable(error.filename or "output"), printable(error.strerror or error)
        remedy = REMEDIES.get(error.errno or 0, "see to it")
        typer.echo(f"ivimbayes: error: {where}: {what}; {remedy}, and run the same command again", err=True)
        sys.exit(EXIT_INPUT)
    finally:
        signal.signal(signal.SIGTERM, before)
