"""The commands ``map`` and ``ls``: every voxel of a scan.

Modules that take long to import are imported where they are used.
"""

from pathlib import Path
from typing import Annotated, Any

import typer

from ivimbayes.cli.options import BMax, BMin, Dwi, ImageOptions, Overwrite, Quiet, Seed, grouped
from ivimbayes.cli.out_folder import MAPS, STORE, OutFolder
from ivimbayes.cli.outputs import fit_file, write_map_files
from ivimbayes.errors import InputError

FORMATS = ("nifti", "zarr", "netcdf")


@grouped
def map_command(
    fitted: Annotated[
        Path, typer.Argument(metavar="DIR", help="A folder that ivimbayes fit wrote.", show_default=False)
    ],
    dwi: Annotated[Path, typer.Option("--dwi", help="4-D diffusion-weighted NIfTI image to map.")],
    image: ImageOptions,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder for the maps.  [default: DIR/maps]")
    ] = None,
    b_min: Annotated[
        float | None, typer.Option("--b-min", help="Leave out lower b values (s/mm2).  [default: the fit's]")
    ] = None,
    b_max: Annotated[
        float | None, typer.Option("--b-max", help="Leave out higher b values (s/mm2).  [default: the fit's]")
    ] = None,
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
    from ivimbayes.maps.files import describe_maps
    from ivimbayes.maps.posterior import posterior_maps
    from ivimbayes.results.stored import read_fit

    if form not in FORMATS:
        raise InputError(f"--format {form}; accepted are {', '.join(FORMATS)}")
    tree = read_fit(fit_file(fitted))
    b = tree["posterior"]["b"] if "b" in tree["posterior"].coords else tree["constant_data"]["b"]
    scan = image.read(
        dwi, float(b.min()) if b_min is None else b_min, float(b.max()) if b_max is None else b_max
    )
    out = (fitted if fitted.is_dir() else fitted.parent) / MAPS if out is None else out
    with OutFolder(out, overwrite, STORE) as folder:
        made = posterior_maps(
            scan, tree, noise=noise, interval=interval, keep_draws=keep_draws, seed=seed, cores=cores,
            perfusion_prior=perfusion_prior, scheduler=scheduler, store=folder.unfinished, renew=True,
            progress=not quiet,
        )  # fmt: skip
        if image.rois is None:
            fitted_regions = [str(name) for name in tree["posterior"].to_dataset()["roi"].values]
            typer.echo(f"population: that of {', '.join(fitted_regions)}{_together(fitted_regions)}")
            if image.mask is None:
                typer.echo("no mask: air is mapped too, as what the population expects; see the contraction")
        typer.echo(describe_maps(made))
        write_map_files(made, folder, form)
    typer.echo(f"written to {out}")


@grouped
def ls_command(
    dwi: Dwi,
    out: Annotated[Path, typer.Option("--out", help="Folder for the maps.")],
    image: ImageOptions,
    method: Annotated[str, typer.Option("--method", help="segmented, full.")] = "segmented",
    threshold: Annotated[
        float | None,
        typer.Option("--threshold", help="D is fitted to b values above it (s/mm2).  [default: 200]"),
    ] = None,
    refine: Annotated[
        bool,
        typer.Option("--refine", help="Segmented: take the perfusion's tail out, until the steps agree."),
    ] = False,
    b_min: BMin = None,
    b_max: BMax = None,
    cores: Annotated[int | None, typer.Option("--cores", help="Threads.  [default: all cores]")] = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Fit every voxel by least squares; write maps of f, D, D*, S0, their standard errors and a status.

    Without --rois or --mask every voxel of the image is fitted.
    """
    from ivimbayes.cli.terminal import print_regions
    from ivimbayes.least_squares.maps import describe_regions, fit_full, fit_segmented

    options: dict[str, Any] = {"cores": cores, "progress": not quiet}
    if method not in ("segmented", "full"):
        raise InputError(f"--method {method}; accepted are segmented, full")
    if method == "full" and (threshold is not None or refine):
        option = "--refine" if threshold is None else "--threshold"
        raise InputError(f"{option} belongs to --method segmented; leave one of the two out")
    if method == "segmented":
        options |= {"refine": refine} | ({} if threshold is None else {"threshold": threshold})
    scan = image.read(dwi, b_min, b_max)
    with OutFolder(out, overwrite) as folder:
        made = fit_full(scan, **options) if method == "full" else fit_segmented(scan, **options)
        write_map_files(made, folder, "nifti")
    print_regions(describe_regions(made, scan))
    typer.echo(f"written to {out}")


def _together(regions: list[str]) -> str:
    return " together; --rois gives each region its own" if len(regions) > 1 else ""
