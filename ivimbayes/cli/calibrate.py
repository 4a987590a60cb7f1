"""The command ``ivimbayes calibrate``.

Modules that take long to import are imported where they are used.
"""

from pathlib import Path
from typing import Annotated

import typer

from ivimbayes.cli.options import (
    Chains,
    Draws,
    Noise,
    Out,
    Overwrite,
    Population,
    Priors,
    Quiet,
    Retry,
    Seed,
    Signal,
    Tune,
    parse_numbers,
)
from ivimbayes.cli.out_folder import CHECKPOINT, OutFolder
from ivimbayes.errors import InputError

EXIT_OUTSIDE = 3
RESULTS = ("calibration.nc", "calibration.tsv", "calibration.svg")


def calibrate_command(
    out: Out,
    b: Annotated[
        str | None, typer.Option("--b", help="b values in s/mm2, 0,20,50 ...  [default: 15 from 0 to 800]")
    ] = None,
    bval: Annotated[Path | None, typer.Option("--bval", help="A file of b values instead.")] = None,
    averages: Annotated[
        str | None, typer.Option("--averages", help="Images averaged at each b value: 1,1,2,4 ...")
    ] = None,
    replicates: Annotated[int, typer.Option("--replicates", help="Regions to draw and to fit.")] = 300,
    voxels: Annotated[int, typer.Option("--voxels", help="Voxels a region.")] = 10,
    tissue: Annotated[str, typer.Option("--tissue", help="Tissue whose prior to draw from.")] = "generic",
    priors: Priors = None,
    signal: Signal = "biexponential",
    noise: Noise = "gaussian",
    population: Population = "normal",
    draws: Draws = 1000,
    tune: Tune = 500,
    chains: Chains = 4,
    seed: Seed = 0,
    retry: Retry = True,
    cores: Annotated[
        int | None, typer.Option("--cores", help="Regions fitted at a time.  [default: all cores]")
    ] = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Draw regions from the prior, fit them, and check that the true values' ranks are uniform.

    Writes calibration.nc, calibration.tsv and calibration.svg. Exit status 0: all ranks inside their bands.
    2: nothing written, the message says why. 3: results written, ranks of a quantity outside.
    """
    from ivimbayes.checks.calibration import B, calibrate, check_calibration
    from ivimbayes.cli.terminal import print_calibration
    from ivimbayes.io.netcdf import write_netcdf
    from ivimbayes.io.tables import write_table
    from ivimbayes.models.priors import read_priors, tissue_prior
    from ivimbayes.models.spec import ModelSpec
    from ivimbayes.plotting.checks import plot_calibration

    values = parse_numbers(b, "--b")
    if values is not None and bval is not None:
        raise InputError("--b and --bval: both given; name b values once")
    if bval is not None:
        values = _read(bval)
    prior = tissue_prior(tissue, read_priors(priors))
    spec = ModelSpec(signal=signal, noise=noise, population=population, prior=prior)
    if replicates < 20:
        raise InputError(f"--replicates {replicates}; 20 are needed to judge ranks")
    with OutFolder(out, overwrite, CHECKPOINT) as folder:
        folder.unfinished.mkdir(exist_ok=True)
        kept = folder.unfinished / RESULTS[0]
        result = calibrate(
            spec, B if values is None else values, replicates, voxels=voxels,
            averages=parse_numbers(averages, "--averages"), draws=draws, tune=tune, chains=chains, seed=seed,
            retry=retry, cores=cores, progress=not quiet, checkpoint=kept, renew=overwrite,
        )  # fmt: skip
        table = check_calibration(result)
        figure = plot_calibration(result)[0].figure
        write_netcdf(result, folder.new / RESULTS[0])
        write_table(table, folder.new / RESULTS[1])
        figure.savefig(folder.new / RESULTS[2], format="svg")
        folder.finish(set(RESULTS))
    print_calibration(table, float(result["converged"].mean()), replicates)
    typer.echo(f"written to {out}")
    if not table["inside"].all():
        raise typer.Exit(EXIT_OUTSIDE)


def _read(path: Path) -> list[float]:
    """Read the b values of a file."""
    try:
        words = path.read_text(encoding="utf-8").split()
        return [float(word) for word in words]
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError:
        raise InputError(f"{path}: not a list of b values; write 0 10 20 50") from None
