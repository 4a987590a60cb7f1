"""Commands of protocol planning: arguments to functions, and results to the terminal. No science.

Modules that take long to import are imported where they are used.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ivimbayes.cli.options import Averages, Overwrite, Priors, Quiet, Seed, Signal, parse_numbers
from ivimbayes.cli.out_folder import OutFolder
from ivimbayes.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    import xarray as xr

protocol_app = typer.Typer(
    help="Before a scan: what b values will tell, and which to measure.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
EXIT_REFUSED = 2
BUDGETS = 6  # numbers of images in the plot
BVAL, TABLE, PLOT = "protocol.bval", "protocol.tsv", "precision.svg"

Planned = Annotated[
    str, typer.Option("--tissue", help="Tissue whose prior holds; ivimbayes tissues lists all.")
]
Snr = Annotated[float, typer.Option("--snr", help="S0 over the noise of one image of one voxel.")]
Voxels = Annotated[int, typer.Option("--voxels", help="Voxels whose mean curve is fitted.")]


@protocol_app.command("check")
def check_command(
    b: Annotated[str, typer.Argument(metavar="B", help="A .bval file, or b values (s/mm2): 0,10,20,50,...")],
    tissue: Planned = "generic",
    snr: Snr = 30.0,
    signal: Signal = "biexponential",
    averages: Averages = None,
    voxels: Voxels = 1,
    priors: Priors = None,
    seed: Seed = 0,
) -> None:
    """Say what b values can tell, and how precisely.

    Exit status 0: a fit would take them. 2: it would not, or bad input.
    """
    from ivimbayes.cli.terminal import print_precision
    from ivimbayes.models.priors import read_priors, tissue_prior
    from ivimbayes.protocol.check import check_protocol
    from ivimbayes.protocol.precision import expected_precision, tabulate_precision

    values, prior = _read_b(b), tissue_prior(tissue, read_priors(priors))
    checked = check_protocol(values, signal, prior)
    weights = parse_numbers(averages, "--averages")
    found = None
    if checked.minimum:
        found = expected_precision(
            values, prior, snr, signal=signal, averages=weights, voxels=voxels, seed=seed
        )
    typer.echo(str(checked))
    if found is None:
        raise typer.Exit(EXIT_REFUSED)
    typer.echo(f"\n{prior.name}, SNR {snr:g}" + (f", mean of {voxels} voxels" if voxels > 1 else ""))
    print_precision(tabulate_precision(found))


@protocol_app.command("design")
def design_command(
    n: Annotated[
        int | None, typer.Option("--n", help="Images.  [default: what --scan-time has time for]")
    ] = None,
    tissue: Planned = "generic",
    snr: Snr = 30.0,
    b_max: Annotated[float, typer.Option("--b-max", help="Highest b value (s/mm2).")] = 800.0,
    minimise: Annotated[
        str, typer.Option("--minimise", help="Parameter whose sd is made least; several share: f,D,D_star.")
    ] = "D_star",
    signal: Signal = "biexponential",
    voxels: Voxels = 1,
    candidates: Annotated[
        str | None, typer.Option("--candidates", help="b values to choose from: 0,10,20,... (s/mm2).")
    ] = None,
    scan_time: Annotated[
        float | None, typer.Option("--scan-time", help="Seconds in all, instead of --n.")
    ] = None,
    time_per_image: Annotated[
        float | None, typer.Option("--time-per-image", help="Seconds of one image.")
    ] = None,
    priors: Priors = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder for protocol.bval, protocol.tsv and precision.svg.")
    ] = None,
    seed: Seed = 0,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Choose the b values with the least expected posterior sd; the recommended ones stand beside them.

    With --out the design is written as an FSL file, and the sd plotted against the number of images.
    """
    from ivimbayes.cli.terminal import print_precision
    from ivimbayes.models.priors import read_priors, tissue_prior
    from ivimbayes.protocol.design import describe_b, design_protocol
    from ivimbayes.protocol.precision import tabulate_precision

    names = [word.strip() for word in minimise.split(",")]
    if len(set(names)) < len(names) or not all(names):
        raise InputError(f"--minimise {minimise}; name parameters once each, such as D_star or f,D,D_star")
    options: dict[str, Any] = {
        "tissue": tissue_prior(tissue, read_priors(priors)), "snr": snr, "b_max": b_max, "signal": signal,
        "minimise": dict.fromkeys(names, 1.0), "voxels": voxels, "seed": seed, "progress": not quiet,
        "candidates": parse_numbers(candidates, "--candidates"),
    }  # fmt: skip

    def design() -> "xr.Dataset":
        made = design_protocol(n, scan_time=scan_time, time_per_image=time_per_image, **options)
        for name in made["protocol"].values.tolist():
            typer.echo(f"{name}: b = {describe_b(made['b'].sel(protocol=name))} s/mm2")
        if "scan_time" in made.attrs:
            typer.echo(f"{made.attrs['images']} images, {made.attrs['scan_time']:g} s")
        print_precision(tabulate_precision(made))
        return made

    if out is None:
        design()
        return
    with OutFolder(out, overwrite) as folder:
        made = design()
        _write(made, folder.new, options)
        folder.finish({BVAL, TABLE, PLOT})
    typer.echo(f"written to {out}")


def _write(made: "xr.Dataset", folder: Path, options: dict[str, Any]) -> None:
    """Write b values, table and plot, with designs of fewer and of more images."""
    import numpy as np
    from matplotlib.figure import Figure

    from ivimbayes.io.tables import write_table
    from ivimbayes.plotting.protocols import plot_protocol
    from ivimbayes.protocol.check import needed_distinct
    from ivimbayes.protocol.design import design_protocol, join_budgets
    from ivimbayes.protocol.precision import tabulate_precision

    images = int(made.attrs["images"])
    least = max(4, needed_distinct(made.attrs["signal"]))
    others = np.linspace(least, 2 * images, BUDGETS).round().astype(int).tolist()
    designs = {k: design_protocol(k, refine=False, **options) for k in others if k != images}
    joined = join_budgets(dict(sorted((designs | {images: made}).items())))
    b = " ".join(f"{v:g}" for v in made["b"].values[0])
    (folder / BVAL).write_text(b + "\n", encoding="utf-8")
    write_table(tabulate_precision(joined), folder / TABLE)
    names = list(options["minimise"])
    figure = Figure(figsize=(4.8 * len(names), 3.6), layout="constrained")
    for ax, name in zip(np.ravel(figure.subplots(1, len(names))), names, strict=True):
        plot_protocol(joined, name, ax)
    figure.savefig(folder / PLOT, format="svg")


def _read_b(text: str) -> "np.ndarray":
    """Read b values, from a file or as given."""
    from ivimbayes.io.scans import read_bval
    from ivimbayes.protocol.check import check_values

    try:
        numbers = [float(word) for word in text.replace(",", " ").split()]
    except ValueError:
        if not Path(text).exists():
            raise InputError(
                f"{text}: no such file, and not b values; give a .bval file, or 0,10,20"
            ) from None
        return read_bval(Path(text))
    return check_values(numbers)
