"""The command line: arguments to functions, and results to the terminal. No science.

Modules that take long to import are imported where they are used, so that ``--help`` answers at once.
"""

import shutil
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ivimbayes.errors import InputError, InputWarning

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

app = typer.Typer(
    name="ivimbayes",
    help="Bayesian intravoxel incoherent motion (IVIM) MRI: a posterior and a verdict for every region.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
CHECKPOINT, UNFINISHED_MAPS, WRITTEN_MAPS = ".ivimbayes-regions", ".ivimbayes-maps", ".ivimbayes-written"
OURS = (CHECKPOINT, UNFINISHED_MAPS, WRITTEN_MAPS, f".{UNFINISHED_MAPS}.unfinished")
RESULTS, MAPS = ("posterior.nc", "summary.tsv", "truth.tsv"), "maps"
FORMATS = ("nifti", "zarr", "netcdf")
EXIT_INPUT, EXIT_FAILED_REGION, EXIT_INTERRUPTED = 2, 3, 130

Out = Annotated[Path, typer.Option("--out", help="Folder for the results.")]
VoxelsPerRoi = Annotated[
    int, typer.Option("--voxels-per-roi", help="Voxels a region at most, a stratified sample; 0 takes all.")
]
Draws = Annotated[int, typer.Option("--draws", help="Draws kept of each chain.")]
Tune = Annotated[int, typer.Option("--tune", help="Draws discarded of each chain.")]
Chains = Annotated[int, typer.Option("--chains", help="Chains a region.")]
TargetAccept = Annotated[float, typer.Option("--target-accept", help="NUTS acceptance.")]
Seed = Annotated[
    int, typer.Option("--seed", help="The same seed gives the same draws on any number of cores.")
]
Retry = Annotated[
    bool, typer.Option("--retry/--no-retry", help="Sample a region that has not converged once more, longer.")
]
Cores = Annotated[
    int | None, typer.Option("--cores", help="Chains that run at a time.  [default: all cores]")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the results in the folder.")]
Maps = Annotated[
    bool, typer.Option("--maps/--no-maps", help="Map every voxel of the regions into the folder maps.")
]
Bval = Annotated[
    Path | None, typer.Option("--bval", help="b values in s/mm2.  [default: DWI's name ending in .bval]")
]
Mask = Annotated[Path | None, typer.Option("--mask", help="3-D NIfTI image, 0 outside.")]
Rois = Annotated[
    Path | None, typer.Option("--rois", help="3-D NIfTI image of integer labels, a region a label.")
]
Names = Annotated[
    str | None,
    typer.Option("--names", help="Names of labels: 1=liver,2=kidney, or a .json or dseg.tsv file."),
]
Averages = Annotated[
    str | None, typer.Option("--averages", help="Images averaged into each volume (NSA): 1,1,2,4 ...")
]
RealValued = Annotated[
    bool, typer.Option("--real-valued", help="Real parts, not magnitudes: signals may be negative.")
]
Region = Annotated[list[str] | None, typer.Option("--region", help="Take this region only; may be repeated.")]
Tissue = Annotated[
    list[str] | None,
    typer.Option("--tissue", help="Prior of a region, REGION=TISSUE, or TISSUE for all; may be repeated."),
]
Priors = Annotated[Path | None, typer.Option("--priors", help="A priors file of your own (TOML).")]
BMin = Annotated[float | None, typer.Option("--b-min", help="Leave out lower b values (s/mm2).")]
BMax = Annotated[float | None, typer.Option("--b-max", help="Leave out higher b values (s/mm2).")]
Downsample = Annotated[
    str, typer.Option("--downsample", help="Average blocks of N x N voxels, or of X,Y,Z voxels.")
]
Level = Annotated[str, typer.Option("--level", help="Fit each voxel, or the mean curve: voxel, mean.")]
Signal = Annotated[
    str,
    typer.Option(
        "--signal",
        help="Signal model: monoexponential, kurtosis, simplified, biexponential, "
        "biexponential_kurtosis, triexponential.",
    ),
]
Noise = Annotated[str, typer.Option("--noise", help="Noise of the signals: gaussian, rician, student_t.")]
Population = Annotated[
    str, typer.Option("--population", help="Voxels around their region: normal, student_t.")
]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress bars.")]


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
    """Fit the regions of a scan; write posterior.nc, summary.tsv and maps.

    Exit status 0: results written. 2: nothing written, the message says why. 3: results written, a region's
    posterior is not to be trusted.
    """
    from ivimbayes.sampling import fit
    from ivimbayes.scans import read_scan
    from ivimbayes.spec import ModelSpec

    options: dict[str, Any] = {
        "tissue": _tissues(tissue), "priors": priors, "voxels_per_roi": voxels_per_roi or None,
        "downsample": _whole_numbers(downsample, "--downsample"), "level": level,
        "draws": draws, "tune": tune, "chains": chains, "target_accept": target_accept,
        "seed": seed, "retry": retry, "cores": cores, "progress": not quiet,
    }  # fmt: skip
    if rois is None and mask is None:
        raise InputError(f"{dwi}: no regions given; name a label image with --rois or a mask with --mask")
    spec = ModelSpec(signal=signal, noise=noise, population=population)
    scan = read_scan(
        dwi, bval, mask, rois, names=_names(names), regions=region or None,
        averages=_numbers(averages, "--averages"), b_min=b_min, b_max=b_max,
        real_valued=real_valued,
    )  # fmt: skip
    with _OutFolder(out, overwrite) as folder:
        tree = fit(scan, spec, checkpoint=folder / CHECKPOINT, **options)
        made = _map_regions(scan, tree, folder, seed, cores, quiet) if maps else None
        verdicts = _write(tree, folder, made)
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
    from ivimbayes.prior_check import prior_check, tabulate_check, verdicts
    from ivimbayes.scans import read_scan
    from ivimbayes.spec import ModelSpec
    from ivimbayes.storage import replacing
    from ivimbayes.terminal import print_check

    _check_table(out, overwrite)
    if rois is None and mask is None:
        raise InputError(f"{dwi}: no regions given; name a label image with --rois or a mask with --mask")
    spec = ModelSpec(signal=signal, noise=noise, population=population)
    size = _whole_numbers(downsample, "--downsample")
    scan = read_scan(
        dwi, bval, mask, rois, names=_names(names), regions=region or None,
        averages=_numbers(averages, "--averages"), b_min=b_min, b_max=b_max,
        real_valued=real_valued,
    )  # fmt: skip
    checked = prior_check(
        scan, spec, tissue=_tissues(tissue), priors=priors, voxels_per_roi=voxels_per_roi or None,
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
    from ivimbayes.sampling import fit
    from ivimbayes.scans import read_scan, write_scan
    from ivimbayes.simulate import phantom

    simulated, truth = phantom()
    with _OutFolder(out, overwrite) as folder:
        dwi, labels = write_scan(simulated, folder / CHECKPOINT / "phantom")
        scan = read_scan(dwi, rois=labels)
        tree = fit(
            scan, draws=draws, tune=tune, chains=chains, seed=seed,
            retry=retry, cores=cores, progress=not quiet, checkpoint=folder / CHECKPOINT,
        )  # fmt: skip
        made = _map_regions(scan, tree, folder, seed, cores, quiet) if maps else None
        shutil.rmtree(folder / "phantom", ignore_errors=True)
        (folder / CHECKPOINT / "phantom").rename(folder / "phantom")
        verdicts = _write(tree, folder, made, truth)
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
    from ivimbayes.maps import describe_maps
    from ivimbayes.scans import read_scan
    from ivimbayes.storage import read_tree
    from ivimbayes.voxelwise import posterior_maps

    if form not in FORMATS:
        raise InputError(f"--format {form}; accepted are {', '.join(FORMATS)}")
    tree = read_tree(_fitted(fitted))
    b = tree["posterior"]["b"] if "b" in tree["posterior"].coords else tree["constant_data"]["b"]
    scan = read_scan(
        dwi, bval, mask, rois, names=_names(names), averages=_numbers(averages, "--averages"),
        b_min=float(b.min()) if b_min is None else b_min, b_max=float(b.max()) if b_max is None else b_max,
        real_valued=real_valued,
    )  # fmt: skip
    out = (fitted if fitted.is_dir() else fitted.parent) / MAPS if out is None else out
    with _OutFolder(out, overwrite) as folder:
        store = folder / UNFINISHED_MAPS
        made = posterior_maps(
            scan, tree, noise=noise, interval=interval, keep_draws=keep_draws, seed=seed, cores=cores,
            perfusion_prior=perfusion_prior, scheduler=scheduler, store=store, renew=True, progress=not quiet,
        )  # fmt: skip
        typer.echo(describe_maps(made))
        _write_maps(made, store, folder, form)
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
    from ivimbayes.least_squares import describe_regions, fit_full, fit_segmented
    from ivimbayes.scans import read_scan
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
        dwi, bval, mask, rois, names=_names(names), averages=_numbers(averages, "--averages"),
        b_min=b_min, b_max=b_max, real_valued=real_valued,
    )  # fmt: skip
    with _OutFolder(out, overwrite) as folder:
        made = fit_full(scan, **options) if method == "full" else fit_segmented(scan, **options)
        print_regions(describe_regions(made, scan))
        (folder / UNFINISHED_MAPS).mkdir(exist_ok=True)  # the mark of maps that are being moved
        _write_maps(made, folder / UNFINISHED_MAPS, folder, "nifti")
    typer.echo(f"written to {out}")


def _write_maps(made: "xr.Dataset", store: Path, folder: Path, form: str) -> None:
    """Write maps beside the store they gathered in, move them into the folder, remove the store."""
    from ivimbayes.maps import replace_maps, write_maps

    written = folder / WRITTEN_MAPS
    shutil.rmtree(written, ignore_errors=True)
    written.mkdir()
    if form == "nifti":
        write_maps(made, written)
    elif form == "netcdf":
        encoding = {name: {"zlib": True, "complevel": 4} for name in made.data_vars}
        made.to_netcdf(written / "maps.nc", engine="h5netcdf", encoding=encoding)
    else:
        made.load().to_zarr(written / "maps.zarr", zarr_format=3, consolidated=False)
    replace_maps(written, folder)
    for name in OURS[1:]:
        shutil.rmtree(folder / name, ignore_errors=True)


@app.command()
def summary(
    folder: Annotated[Path, typer.Argument(help="A folder that ivimbayes fit wrote.", show_default=False)],
    sensitivity: Annotated[
        bool, typer.Option("--sensitivity", help="Print how far prior and data each move the values.")
    ] = False,
) -> None:
    """Print the table and the verdicts of a fit."""
    from ivimbayes.storage import read_tree
    from ivimbayes.summary import diagnose, summarize
    from ivimbayes.terminal import print_fit

    tree = read_tree(_fitted(folder))
    diagnoses = diagnose(tree)
    print_fit(summarize(tree, diagnoses), diagnoses, tree)
    if sensitivity:
        from ivimbayes.sensitivity import prior_sensitivity
        from ivimbayes.terminal import print_sensitivity

        print_sensitivity(prior_sensitivity(tree))


@app.command("compare")
def compare_command(
    folders: Annotated[
        list[Path],
        typer.Argument(
            metavar="DIR DIR ...", help="Folders that ivimbayes fit wrote, of one scan.", show_default=False
        ),
    ],
    out: Annotated[Path | None, typer.Option("--out", help="Write the table to this file (TSV).")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file.")] = False,
) -> None:
    """Compare fits of one scan with different --signal or --noise: say what the data of each region support.

    By leave-one-out cross-validation; the simplest model that is not clearly worse than the best is marked.
    """
    from ivimbayes.compare import compare_models
    from ivimbayes.storage import read_tree
    from ivimbayes.terminal import print_comparison

    _check_table(out, overwrite)
    names = [path.resolve().name for path in folders]
    names = names if len(set(names)) == len(names) else list(map(str, folders))
    if len(set(names)) < len(names):
        raise InputError(f"{max(names, key=names.count)}: given twice; name each folder once")
    compared = compare_models(
        {name: read_tree(_fitted(path)) for name, path in zip(names, folders, strict=True)}
    )
    _write_table(compared.table, out)
    print_comparison(compared.table, compared.sentences)
    if out is not None:
        typer.echo(f"written to {out}")


def _fitted(path: Path) -> Path:
    """File of a fit: given, or in the folder given."""
    return path / "posterior.nc" if path.is_dir() or not path.exists() else path


def _check_table(out: Path | None, overwrite: bool) -> None:
    """Refuse a file that exists, or has no folder to be in."""
    if out is not None and out.exists() and not overwrite:
        raise InputError(f"{out}: exists; name another file with --out, or replace it with --overwrite")
    if out is not None and not out.parent.is_dir():
        raise InputError(f"{out}: there is no folder {out.parent}; name a file in one with --out")


def _write_table(table: "pd.DataFrame", out: Path | None) -> None:
    from ivimbayes.storage import replacing

    if out is not None:
        with replacing(out) as path:
            table.to_csv(path, sep="\t", index=False, float_format="%.6g")


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
    from ivimbayes.relaxation import correct_fraction, tabulate_fractions
    from ivimbayes.storage import read_tree
    from ivimbayes.terminal import print_volume

    _check_table(out, overwrite)
    tree = read_tree(_fitted(folder))
    corrected = correct_fraction(
        tree, TE=te, TR=tr, field=field, tissue=_tissues(tissue), seed=seed,
        T2_blood=_time(t2_blood, "--t2-blood"), T2_tissue=_times(t2_tissue, "--t2-tissue"),
        T1_blood=_time(t1_blood, "--t1-blood"), T1_tissue=_times(t1_tissue, "--t1-tissue"),
    )  # fmt: skip
    table = tabulate_fractions(tree, corrected)
    _write_table(table, out)
    print_volume(table, corrected)
    if out is not None:
        typer.echo(f"written to {out}")


@app.command()
def tissues(
    priors: Priors = None,
) -> None:
    """List the tissues, their priors and where the numbers come from."""
    from ivimbayes.priors import read_priors
    from ivimbayes.terminal import print_tissues

    print_tissues(read_priors(priors))


class _OutFolder:
    """The results folder: made if need be, refused if not empty, gone again if nothing came of it."""

    def __init__(self, path: Path, overwrite: bool):
        self.path, self.overwrite, self.made = path, overwrite, []  # type: ignore[var-annotated]

    def __enter__(self) -> Path:
        path = self.path
        try:
            self.made = [p for p in (path, *path.parents) if not p.exists()]
            path.mkdir(parents=True, exist_ok=True)
            ours: set[str] = set(OURS)
            if (path / UNFINISHED_MAPS).exists():  # a run that was ended while it moved its maps into place
                from ivimbayes.maps import map_files

                ours |= map_files()
            entries = [p.name for p in path.iterdir() if p.name not in ours]
            if entries and not self.overwrite:
                raise InputError(
                    f"{path}: the folder is not empty (holds {sorted(entries)[0]}); "
                    "name another with --out, or replace its results with --overwrite"
                )
            probe = path / ".ivimbayes-writable"
            probe.touch()
            probe.unlink()
        except OSError as error:
            self._remove_empty()
            raise InputError(
                f"{path}: cannot be written ({error.strerror}); name another folder with --out"
            ) from None
        return path

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, KeyboardInterrupt):
            typer.echo("ivimbayes: interrupted; the same command continues with what is finished", err=True)
            raise typer.Exit(EXIT_INTERRUPTED)
        if isinstance(error, Exception):
            self._remove_empty()

    def _remove_empty(self) -> None:
        kept = self.path / CHECKPOINT
        if not list(kept.glob("region-*.nc")):
            shutil.rmtree(kept, ignore_errors=True)
        if not any((self.path / UNFINISHED_MAPS / "blocks_done").glob("c/**/*")):
            for name in OURS[1:]:
                shutil.rmtree(self.path / name, ignore_errors=True)
        for path in self.made:
            if path.exists() and not any(path.iterdir()):
                path.rmdir()


def _map_regions(
    scan: "xr.Dataset", tree: "xr.DataTree", folder: Path, seed: int, cores: int | None, quiet: bool
) -> "xr.Dataset | None":
    """Map the regions that were fitted, into a folder that `_write` puts in its place."""
    from ivimbayes.maps import write_maps
    from ivimbayes.voxelwise import posterior_maps, why_not_mapped

    if reason := why_not_mapped(tree):
        typer.echo(f"ivimbayes: no maps: {reason}", err=True)
        return None
    made = posterior_maps(scan, tree, seed=seed, cores=cores, progress=not quiet)
    shutil.rmtree(folder / CHECKPOINT / MAPS, ignore_errors=True)
    write_maps(made, folder / CHECKPOINT / MAPS)
    return made


def _write(
    tree: "xr.DataTree", folder: Path, made: "xr.Dataset | None", truth: "xr.Dataset | None" = None
) -> list[str]:
    """Write the results, print them, and return the verdicts."""
    from ivimbayes.maps import describe_maps, replace_maps
    from ivimbayes.storage import replacing, write_tree
    from ivimbayes.summary import compare_truth, diagnose, summarize
    from ivimbayes.terminal import print_fit, print_truth

    diagnoses = diagnose(tree)
    table = summarize(tree, diagnoses)
    tables: dict[str, pd.DataFrame] = {"summary.tsv": table}
    if truth is not None:
        tables["truth.tsv"] = compare_truth(table, truth)
    write_tree(tree, folder / "posterior.nc")
    for name, frame in tables.items():
        with replacing(folder / name) as path:
            frame.to_csv(path, sep="\t", index=False, float_format="%.6g", na_rep="n/a")
    for stale in set(RESULTS) - {"posterior.nc", *tables}:
        (folder / stale).unlink(missing_ok=True)
    if made is not None:
        replace_maps(folder / CHECKPOINT / MAPS, folder / MAPS)
    elif (folder / MAPS).is_dir():  # of an earlier fit
        (folder / CHECKPOINT / MAPS).mkdir(parents=True, exist_ok=True)
        replace_maps(folder / CHECKPOINT / MAPS, folder / MAPS)
    shutil.rmtree(folder / CHECKPOINT, ignore_errors=True)
    print_fit(table, diagnoses, tree)
    if made is not None:
        typer.echo(f"{MAPS}: {describe_maps(made)}")
    if truth is not None:
        print_truth(tables["truth.tsv"])
    return [d.verdict for d in diagnoses.values()]


def _finish(out: Path, verdicts: list[str]) -> None:
    typer.echo(f"written to {out}")
    if "failed" in verdicts:
        raise typer.Exit(EXIT_FAILED_REGION)


def _tissues(words: list[str] | None) -> dict[str, str]:
    table = {}
    for word in words or []:
        region, equals, name = word.rpartition("=")
        if (equals and not region) or not name:
            raise InputError(f"--tissue {word}: give REGION=TISSUE, such as kidney=kidney, or TISSUE for all")
        table[region or "*"] = name
    return table


def _time(text: str | None, option: str) -> float | tuple[float, float] | None:
    if text is None:
        return None
    try:
        numbers = [float(word) for word in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) not in (1, 2):
        raise InputError(f"{option} {text}: give a time in ms, or its mean and standard deviation: 275,50")
    return numbers[0] if len(numbers) == 1 else (numbers[0], numbers[1])


def _times(words: list[str] | None, option: str) -> dict[str, float | tuple[float, float]] | None:
    table = {}
    for word in words or []:
        region, _, text = word.rpartition("=")
        time = _time(text, option)
        assert time is not None
        table[region or "*"] = time
    return table or None


def _names(text: str | None) -> dict[int, str] | str | None:
    if text is None or "=" not in text:
        return text
    table = {}
    for part in text.split(","):
        label, _, name = part.partition("=")
        if not label.strip().isdecimal() or not name.strip():
            raise InputError(f"--names {text}: {part!r} is not LABEL=NAME; write 1=liver,2=kidney")
        table[int(label)] = name.strip()
    return table


def _numbers(text: str | None, option: str) -> list[float] | None:
    if text is None:
        return None
    try:
        return [float(word) for word in text.replace(",", " ").split()]
    except ValueError:
        raise InputError(f"{option} {text}: not a list of numbers; write 1,1,2,4") from None


def _whole_numbers(text: str, option: str) -> int | list[int]:
    words = text.replace(",", " ").replace("x", " ").split()
    if len(words) not in (1, 3) or not all(word.isdecimal() for word in words):
        raise InputError(f"{option} {text}: give one whole number, or three for x, y and z")
    return int(words[0]) if len(words) == 1 else [int(word) for word in words]


def _show_warning(message: Any, category: type[Warning], *_: Any, **__: Any) -> None:
    if issubclass(category, InputWarning):
        typer.echo(f"ivimbayes: warning: {message}", err=True)


def main() -> None:
    """Run the command line; an InputError is one line and exit status 2."""
    warnings.simplefilter("ignore")
    warnings.simplefilter("always", InputWarning)
    warnings.showwarning = _show_warning
    try:
        app()
    except InputError as error:
        typer.echo(f"ivimbayes: error: {error}", err=True)
        sys.exit(EXIT_INPUT)
    except OSError as error:
        typer.echo(f"ivimbayes: error: {error.filename or 'output'}: {error.strerror or error}", err=True)
        sys.exit(EXIT_INPUT)
