"""The commands ``fit``, ``prior`` and ``demo``.

Modules that take long to import are imported where they are used.
"""

from pathlib import Path

import typer

from ivimbayes.cli.options import (
    Cores,
    Dwi,
    ImageOptions,
    ModelOptions,
    Out,
    Overwrite,
    Quiet,
    Replace,
    SamplingOptions,
    Seed,
    Table,
    grouped,
)
from ivimbayes.cli.out_folder import CHECKPOINT, OutFolder
from ivimbayes.cli.outputs import EXIT_FAILED_REGION, check_table, map_regions, write_results, write_table


@grouped
def fit_command(
    dwi: Dwi,
    out: Out,
    image: ImageOptions,
    model: ModelOptions,
    sampling: SamplingOptions,
    cores: Cores = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Fit the regions of a scan; write posterior.nc, summary.tsv, report.html and maps.

    Exit status 0: results written. 2: nothing written, the message says why. 3: results written, a region's
    posterior is not to be trusted.
    """
    from ivimbayes.fitting.fit import fit
    from ivimbayes.maps.posterior import compile_maps_beside

    image.require_regions(dwi)
    options = model.keywords | sampling.keywords | {"cores": cores, "progress": not quiet}
    spec = model.spec
    scan = image.read(dwi, model.b_min, model.b_max, model.region or None)
    with OutFolder(out, overwrite, CHECKPOINT) as folder, compile_maps_beside(spec, sampling.maps) as beside:
        tree = fit(scan, spec, checkpoint=folder.unfinished, load=False, **options)
        beside.wait()
        made = map_regions(scan, tree, sampling.seed, cores, quiet) if sampling.maps else None
        verdicts = write_results(tree, folder, made, quiet=quiet)
    _finish(out, verdicts)


@grouped
def prior_command(
    dwi: Dwi,
    image: ImageOptions,
    model: ModelOptions,
    seed: Seed = 0,
    out: Table = None,
    overwrite: Replace = False,
) -> None:
    """Before a fit: print the signals of each region beside those that its prior expects.

    It takes the options of fit. Exit status 0: checked, also where signals lie outside. 2: bad input.
    """
    from ivimbayes.checks.prior_check import prior_check, tabulate_check, verdicts
    from ivimbayes.cli.terminal import print_check

    check_table(out, overwrite)
    image.require_regions(dwi)
    spec, options = model.spec, model.keywords
    scan = image.read(dwi, model.b_min, model.b_max, model.region or None)
    checked = prior_check(scan, spec, seed=seed, **options)
    write_table(tabulate_check(checked), out)
    print_check(checked, verdicts(checked))
    if out is not None:
        typer.echo(f"written to {out}")


@grouped
def demo_command(
    out: Out,
    sampling: SamplingOptions,
    cores: Cores = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Fit the embedded phantom: three tissues whose true values are printed beside the posterior.

    The phantom is written to the folder phantom, as NIfTI, the truth of the regions to truth.tsv.
    """
    from ivimbayes.fitting.fit import fit
    from ivimbayes.io.scans import read_scan, write_scan
    from ivimbayes.maps.posterior import compile_maps_beside
    from ivimbayes.models.spec import ModelSpec
    from ivimbayes.simulation.regions import phantom

    simulated, truth = phantom()
    maps = sampling.maps
    with OutFolder(out, overwrite, CHECKPOINT) as folder, compile_maps_beside(ModelSpec(), maps) as beside:
        dwi, labels = write_scan(simulated, folder.new / "phantom")
        scan = read_scan(dwi, rois=labels)
        tree = fit(
            scan,
            cores=cores,
            progress=not quiet,
            checkpoint=folder.unfinished,
            load=False,
            **sampling.keywords,
        )
        beside.wait()
        made = map_regions(scan, tree, sampling.seed, cores, quiet) if maps else None
        verdicts = write_results(tree, folder, made, truth, quiet)
    _finish(out, verdicts)


def _finish(out: Path, verdicts: list[str]) -> None:
    typer.echo(f"written to {out}")
    if "failed" in verdicts:
        raise typer.Exit(EXIT_FAILED_REGION)
