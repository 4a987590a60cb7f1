"""The command line: arguments to functions, and results to the terminal. No science.

Modules that take long to import are imported where they are used, so that ``--help`` answers at once.
"""

import errno
import signal
import sys
import warnings
from importlib.metadata import version as release
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ivimbayes.cli_bids import bids_command
from ivimbayes.cli_calibrate import calibrate_command
from ivimbayes.cli_cohort import cohort_command
from ivimbayes.cli_protocol import protocol_app
from ivimbayes.errors import InputError, InputWarning, printable
from ivimbayes.folders import (
    CHECKPOINT,
    MAPS,
    STORE,
    OutFolder,
    check_table,
    fit_file,
    map_regions,
    write_map_files,
    write_results,
    write_table,
)
from ivimbayes.options import (
    Averages,
    BMax,
    BMin,
    Bval,
    Chains,
    Cores,
    Downsample,
    Draws,
    Level,
    Maps,
    Mask,
    Names,
    Noise,
    Out,
    Overwrite,
    Population,
    Priors,
    Quiet,
    RealValued,
    Region,
    Retry,
    Rois,
    Seed,
    Signal,
    TargetAccept,
    Tissue,
    Tune,
    VoxelsPerRoi,
    parse_names,
    parse_numbers,
    parse_time,
    parse_times,
    parse_tissues,
    parse_whole_numbers,
)

if TYPE_CHECKING:
    pass

app = typer.Typer(
    name="ivimbayes",
    help="Bayesian intravoxel incoherent motion (IVIM) MRI: a posterior and a verdict for every region.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(protocol_app, name="protocol")
FORMATS = ("nifti", "zarr", "netcdf")
EXIT_INPUT, EXIT_FAILED_REGION = 2, 3
REMEDIES = {
    errno.ENOSPC: "free some space", errno.EDQUOT: "free some space", errno.EACCES: "see to its permissions",
    errno.EROFS: "name another place", errno.ENOENT: "see whether something removed it",
}  # fmt: skip
app.command("bids")(bids_command)
app.command("calibrate")(calibrate_command)
app.command("cohort")(cohort_command)


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


@app.command("fit")
def fit_command(
    dwi: Annotated[Path, typer.Argument(help="4-D diffusion-weighted NIfTI image.", show_default=False)],
    out: Out,
    rois: Rois = None,
    bval: Bval = None,
    mask: Mask = None,
    names: Names = None,
    region: Region = None,
    tissue: Tissue = None,
    priors: Priors = None,
    averages: Averages = None,
    b_min: BMin = None,
    b_max: BMax = None,
    real_valued: RealValued = False,
    voxels_per_roi: VoxelsPerRoi = 200,
    downsample: Downsample = "1",
    level: Level = "voxel",
    signal: Signal = "biexponential",
    noise: Noise = "gaussian",
    population: Population = "normal",
    draws: Draws = 1000,
    tune: Tune = 500,
    chains: Chains = 4,
    target_accept: TargetAccept = 0.85,
    seed: Seed = 0,
    retry: Retry = True,
    maps: Maps = True,
    cores: Cores = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Fit the regions of a scan; write posterior.nc, summary.tsv, report.html and maps.

    Exit status 0: results written. 2: nothing written, the message says why. 3: results written, a region's
    posterior is not to be trusted.
    """
    from ivimbayes.fitting.fit import fit
    from ivimbayes.io.scans import read_scan
    from ivimbayes.models.spec import ModelSpec

    options: dict[str, Any] = {
        "tissue": parse_tissues(tissue), "priors": priors, "voxels_per_roi": voxels_per_roi or None,
        "downsample": parse_whole_numbers(downsample, "--downsample"), "level": level,
        "draws": draws, "tune": tune, "chains": chains, "target_accept": target_accept,
        "seed": seed, "retry": retry, "cores": cores, "progress": not quiet,
    }  # fmt: skip
    if rois is None and mask is None:
        raise InputError(f"{dwi}: no regions given; name a label image with --rois or a mask with --mask")
    spec = ModelSpec(signal=signal, noise=noise, population=population)
    scan = read_scan(
        dwi, bval, mask, rois, names=parse_names(names), regions=region or None,
        averages=parse_numbers(averages, "--averages"), b_min=b_min, b_max=b_max,
        real_valued=real_valued,
    )  # fmt: skip
    with OutFolder(out, overwrite, CHECKPOINT) as folder:
        tree = fit(scan, spec, checkpoint=folder.unfinished, load=False, **options)
        made = map_regions(scan, tree, seed, cores, quiet) if maps else None
        verdicts = write_results(tree, folder, made, quiet=quiet)
    _finish(out, verdicts)


@app.command("prior")
def prior_command(
    dwi: Annotated[Path, typer.Argument(help="4-D diffusion-weighted NIfTI image.", show_default=False)],
    rois: Rois = None,
    bval: Bval = None,
    mask: Mask = None,
    names: Names = None,
    region: Region = None,
    tissue: Tissue = None,
    priors: Priors = None,
    averages: Averages = None,
    b_min: BMin = None,
    b_max: BMax = None,
    real_valued: RealValued = False,
    voxels_per_roi: VoxelsPerRoi = 200,
    downsample: Downsample = "1",
    level: Level = "voxel",
    signal: Signal = "biexponential",
    noise: Noise = "gaussian",
    population: Population = "normal",
    seed: Seed = 0,
    out: Annotated[Path | None, typer.Option("--out", help="Write the table to this file (TSV).")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file.")] = False,
) -> None:
    """Before a fit: print the signals of each region beside those that its prior expects.

    It takes the options of fit. Exit status 0: checked, also where signals lie outside. 2: bad input.
    """
    from ivimbayes.checks.prior_check import prior_check, tabulate_check, verdicts
    from ivimbayes.io.atomic import replacing
    from ivimbayes.io.scans import read_scan
    from ivimbayes.models.spec import ModelSpec
    from ivimbayes.terminal import print_check

    check_table(out, overwrite)
    if rois is None and mask is None:
        raise InputError(f"{dwi}: no regions given; name a label image with --rois or a mask with --mask")
    spec = ModelSpec(signal=signal, noise=noise, population=population)
    size = parse_whole_numbers(downsample, "--downsample")
    scan = read_scan(
        dwi, bval, mask, rois, names=parse_names(names), regions=region or None,
        averages=parse_numbers(averages, "--averages"), b_min=b_min, b_max=b_max,
        real_valued=real_valued,
    )  # fmt: skip
    checked = prior_check(
        scan, spec, tissue=parse_tissues(tissue), priors=priors, voxels_per_roi=voxels_per_roi or None,
        downsample=size, level=level, seed=seed,
    )  # fmt: skip
    if out is not None:
        with replacing(out) as path:
            tabulate_check(checked).to_csv(path, sep="\t", index=False, float_format="%.6g")
    print_check(checked, verdicts(checked))
    if out is not None:
        typer.echo(f"written to {out}")


@app.command()
def demo(
    out: Out,
    draws: Draws = 1000,
    tune: Tune = 500,
    chains: Chains = 4,
    seed: Seed = 0,
    retry: Retry = True,
    maps: Maps = True,
    cores: Cores = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Fit the embedded phantom: three tissues whose true values are printed beside the posterior.

    The phantom is written to the folder phantom, as NIfTI, the truth of the regions to truth.tsv.
    """
    from ivimbayes.fitting.fit import fit
    from ivimbayes.io.scans import read_scan, write_scan
    from ivimbayes.simulation.regions import phantom

    simulated, truth = phantom()
    with OutFolder(out, overwrite, CHECKPOINT) as folder:
        dwi, labels = write_scan(simulated, folder.new / "phantom")
        scan = read_scan(dwi, rois=labels)
        tree = fit(
            scan, draws=draws, tune=tune, chains=chains, seed=seed,
            retry=retry, cores=cores, progress=not quiet, checkpoint=folder.unfinished, load=False,
        )  # fmt: skip
        made = map_regions(scan, tree, seed, cores, quiet) if maps else None
        verdicts = write_results(tree, folder, made, truth, quiet)
    _finish(out, verdicts)


@app.command("map")
def map_command(
    fitted: Annotated[
        Path, typer.Argument(metavar="DIR", help="A folder that ivimbayes fit wrote.", show_default=False)
    ],
    dwi: Annotated[Path, typer.Option("--dwi", help="4-D diffusion-weighted NIfTI image to map.")],
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder for the maps.  [default: DIR/maps]")
    ] = None,
    mask: Mask = None,
    rois: Rois = None,
    bval: Bval = None,
    names: Names = None,
    averages: Averages = None,
    b_min: Annotated[
        float | None, typer.Option("--b-min", help="Leave out lower b values (s/mm2).  [default: the fit's]")
    ] = None,
    b_max: Annotated[
        float | None, typer.Option("--b-max", help="Leave out higher b values (s/mm2).  [default: the fit's]")
    ] = None,
    real_valued: RealValued = False,
    noise: Annotated[
        str | None,
        typer.Option("--noise", help="Noise of the signals: gaussian, rician.  [default: the fit's]"),
    ] = None,
    interval: Annotated[float, typer.Option("--interval", help="Probability of the intervals.")] = 0.95,
    keep_draws: Annotated[int, typer.Option("--keep-draws", help="Draws of each voxel to keep.")] = 0,
    perfusion_prior: Annotated[
        float,
        typer.Option("--perfusion-prior", help="Probability of perfusion before a voxel's signals are seen."),
    ] = 0.5,
    form: Annotated[str, typer.Option("--format", help="Of the maps: nifti, zarr, netcdf.")] = "nifti",
    seed: Seed = 0,
    cores: Annotated[
        int | None, typer.Option("--cores", help="Blocks computed at a time.  [default: all cores]")
    ] = None,
    scheduler: Annotated[
        str | None, typer.Option("--scheduler", help="Address of a dask scheduler whose workers compute.")
    ] = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Map the posterior of every voxel of a scan, with the populations of a fit.

    With --rois each region takes the population of the fitted region of its name; without, the mask (or the
    whole image) takes that of the one fitted region, or of all regions together. The same command continues
    a run that was ended.
    """
    from ivimbayes.io.scans import read_scan
    from ivimbayes.maps.files import describe_maps
    from ivimbayes.maps.posterior import posterior_maps
    from ivimbayes.results.stored import read_fit

    if form not in FORMATS:
        raise InputError(f"--format {form}; accepted are {', '.join(FORMATS)}")
    tree = read_fit(fit_file(fitted))
    b = tree["posterior"]["b"] if "b" in tree["posterior"].coords else tree["constant_data"]["b"]
    scan = read_scan(
        dwi, bval, mask, rois, names=parse_names(names), averages=parse_numbers(averages, "--averages"),
        b_min=float(b.min()) if b_min is None else b_min, b_max=float(b.max()) if b_max is None else b_max,
        real_valued=real_valued,
    )  # fmt: skip
    out = (fitted if fitted.is_dir() else fitted.parent) / MAPS if out is None else out
    with OutFolder(out, overwrite, STORE) as folder:
        made = posterior_maps(
            scan, tree, noise=noise, interval=interval, keep_draws=keep_draws, seed=seed, cores=cores,
            perfusion_prior=perfusion_prior, scheduler=scheduler, store=folder.unfinished, renew=True,
            progress=not quiet,
        )  # fmt: skip
        if rois is None:
            fitted_regions = [str(name) for name in tree["posterior"].to_dataset()["roi"].values]
            typer.echo(f"population: that of {', '.join(fitted_regions)}{_together(fitted_regions)}")
            if mask is None:
                typer.echo("no mask: air is mapped too, as what the population expects; see the contraction")
        typer.echo(describe_maps(made))
        write_map_files(made, folder, form)
    typer.echo(f"written to {out}")


@app.command("ls")
def ls_command(
    dwi: Annotated[Path, typer.Argument(help="4-D diffusion-weighted NIfTI image.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", help="Folder for the maps.")],
    method: Annotated[str, typer.Option("--method", help="segmented, full.")] = "segmented",
    threshold: Annotated[
        float | None,
        typer.Option("--threshold", help="D is fitted to b values above it (s/mm2).  [default: 200]"),
    ] = None,
    refine: Annotated[
        bool,
        typer.Option("--refine", help="Segmented: take the perfusion's tail out, until the steps agree."),
    ] = False,
    rois: Rois = None,
    mask: Mask = None,
    bval: Bval = None,
    names: Names = None,
    averages: Averages = None,
    b_min: BMin = None,
    b_max: BMax = None,
    real_valued: RealValued = False,
    cores: Annotated[int | None, typer.Option("--cores", help="Threads.  [default: all cores]")] = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Fit every voxel by least squares; write maps of f, D, D*, S0, their standard errors and a status.

    Without --rois or --mask every voxel of the image is fitted.
    """
    from ivimbayes.io.scans import read_scan
    from ivimbayes.least_squares.maps import describe_regions, fit_full, fit_segmented
    from ivimbayes.terminal import print_regions

    options: dict[str, Any] = {"cores": cores, "progress": not quiet}
    if method not in ("segmented", "full"):
        raise InputError(f"--method {method}; accepted are segmented, full")
    if method == "full" and (threshold is not None or refine):
        option = "--refine" if threshold is None else "--threshold"
        raise InputError(f"{option} belongs to --method segmented; leave one of the two out")
    if method == "segmented":
        options |= {"refine": refine} | ({} if threshold is None else {"threshold": threshold})
    scan = read_scan(
        dwi, bval, mask, rois, names=parse_names(names), averages=parse_numbers(averages, "--averages"),
        b_min=b_min, b_max=b_max, real_valued=real_valued,
    )  # fmt: skip
    with OutFolder(out, overwrite) as folder:
        made = fit_full(scan, **options) if method == "full" else fit_segmented(scan, **options)
        write_map_files(made, folder, "nifti")
    print_regions(describe_regions(made, scan))
    typer.echo(f"written to {out}")


@app.command()
def summary(
    folder: Annotated[Path, typer.Argument(help="A folder that ivimbayes fit wrote.", show_default=False)],
    sensitivity: Annotated[
        bool, typer.Option("--sensitivity", help="Print how far prior and data each move the values.")
    ] = False,
) -> None:
    """Print the table and the verdicts of a fit."""
    from ivimbayes.results.diagnosis import diagnose
    from ivimbayes.results.stored import read_fit
    from ivimbayes.results.summary import summarize
    from ivimbayes.terminal import print_fit

    tree = read_fit(fit_file(folder))
    diagnoses = diagnose(tree)
    print_fit(summarize(tree, diagnoses), diagnoses, tree)
    if sensitivity:
        from ivimbayes.checks.sensitivity import prior_sensitivity
        from ivimbayes.terminal import print_sensitivity

        print_sensitivity(prior_sensitivity(tree))


@app.command("report")
def report_command(
    folder: Annotated[Path, typer.Argument(help="A folder that ivimbayes fit wrote.", show_default=False)],
    out: Annotated[
        Path | None, typer.Option("--out", help="The HTML file.  [default: DIR/report.html]")
    ] = None,
    title: Annotated[
        str | None, typer.Option("--title", help="Of the page.  [default: the scan's file]")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file --out.")] = False,
) -> None:
    """Write the report on a fit: one HTML file, with its maps if the folder has some.

    Without --out it replaces the report of the folder.
    """
    from ivimbayes.maps.files import map_files, read_maps
    from ivimbayes.reporting.page import write_report
    from ivimbayes.results.stored import read_fit

    check_table(out, overwrite)
    path = fit_file(folder)
    tree, maps = read_fit(path), path.parent / MAPS
    has_maps = maps.is_dir() and any((maps / name).exists() for name in map_files())
    out = path.parent / "report.html" if out is None else out
    write_report(tree, out, maps=read_maps(maps) if has_maps else None, title=title)
    typer.echo(f"written to {out}")


@app.command("compare")
def compare_command(
    folders: Annotated[
        list[Path],
        typer.Argument(
            metavar="DIR DIR ...",
            help="Folders that ivimbayes fit wrote: of one scan, or with --sessions before and after.",
            show_default=False,
        ),
    ],
    sessions: Annotated[
        bool, typer.Option("--sessions", help="Two sessions, before and after: what changed?")
    ] = False,
    rope: Annotated[
        list[str] | None,
        typer.Option(
            "--rope", help="Change that does not matter, D=5% or f=0.02 (D in 1e-3 mm2/s); may be repeated."
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Write the table to this file (TSV).")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file.")] = False,
) -> None:
    """Compare fits of one scan with different --signal or --noise: say what the data of each region support.

    By leave-one-out cross-validation; the simplest model that is not clearly worse than the best is marked.
    With --sessions, two fits of the same regions in two scans: differences, ratios, and what changed.
    """
    if sessions:
        from ivimbayes.cli_sessions import compare_sessions

        compare_sessions(folders, rope, out, overwrite)
        return
    if rope:
        raise InputError("--rope: is of two sessions; give --sessions too")
    from ivimbayes.results.comparison import compare_models
    from ivimbayes.results.stored import read_fit
    from ivimbayes.terminal import print_comparison

    check_table(out, overwrite)
    names = [path.resolve().name for path in folders]
    names = names if len(set(names)) == len(names) else list(map(str, folders))
    if len(set(names)) < len(names):
        raise InputError(f"{max(names, key=names.count)}: given twice; name each folder once")
    compared = compare_models(
        {name: read_fit(fit_file(path)) for name, path in zip(names, folders, strict=True)}
    )
    write_table(compared.table, out)
    print_comparison(compared.table, compared.sentences)
    if out is not None:
        typer.echo(f"written to {out}")


@app.command()
def volume(
    folder: Annotated[Path, typer.Argument(help="A folder that ivimbayes fit wrote.", show_default=False)],
    te: Annotated[float, typer.Option("--te", help="Echo time (ms).")],
    t2_blood: Annotated[
        str | None, typer.Option("--t2-blood", help="T2 of blood (ms): mean, or mean,sd.")
    ] = None,
    t2_tissue: Annotated[
        list[str] | None,
        typer.Option("--t2-tissue", help="T2 of tissue (ms): mean,sd, or REGION=mean,sd; may be repeated."),
    ] = None,
    field: Annotated[
        float | None,
        typer.Option("--field", help="Field strength (T): times not given are taken from the table."),
    ] = None,
    tissue: Annotated[
        list[str] | None,
        typer.Option(
            "--tissue",
            help="Tissue of a region in the table, REGION=TISSUE; may be repeated.  [default: of its prior]",
        ),
    ] = None,
    tr: Annotated[
        float | None, typer.Option("--tr", help="Repetition time (ms): correct for T1 too.")
    ] = None,
    t1_blood: Annotated[
        str | None, typer.Option("--t1-blood", help="T1 of blood (ms): mean, or mean,sd.")
    ] = None,
    t1_tissue: Annotated[
        list[str] | None, typer.Option("--t1-tissue", help="T1 of tissue (ms), as --t2-tissue.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Write the table to this file (TSV).")] = None,
    seed: Seed = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file.")] = False,
) -> None:
    """Print the perfusion fraction of each region's volume: that of the signal, corrected for T2 (and T1)."""
    from ivimbayes.io.netcdf import read_tree
    from ivimbayes.results.volume_fraction import correct_fraction, tabulate_fractions
    from ivimbayes.terminal import print_volume

    check_table(out, overwrite)
    tree = read_tree(fit_file(folder))
    corrected = correct_fraction(
        tree, TE=te, TR=tr, field=field, tissue=parse_tissues(tissue), seed=seed,
        T2_blood=parse_time(t2_blood, "--t2-blood"), T2_tissue=parse_times(t2_tissue, "--t2-tissue"),
        T1_blood=parse_time(t1_blood, "--t1-blood"), T1_tissue=parse_times(t1_tissue, "--t1-tissue"),
    )  # fmt: skip
    table = tabulate_fractions(tree, corrected)
    write_table(table, out)
    print_volume(table, corrected)
    if out is not None:
        typer.echo(f"written to {out}")


@app.command()
def tissues(
    priors: Priors = None,
) -> None:
    """List the tissues, their priors and where the numbers come from."""
    from ivimbayes.models.priors import read_priors
    from ivimbayes.terminal import print_tissues

    print_tissues(read_priors(priors))


def _together(regions: list[str]) -> str:
    return " together; --rois gives each region its own" if len(regions) > 1 else ""


def _finish(out: Path, verdicts: list[str]) -> None:
    typer.echo(f"written to {out}")
    if "failed" in verdicts:
        raise typer.Exit(EXIT_FAILED_REGION)


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
