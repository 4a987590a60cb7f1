"""Options of the command line: each stands once, and groups of them that several commands take.

A command declares a group as a parameter whose type is one of the dataclasses below; `grouped` spreads its
fields over the command line.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from ivimbayes.errors import InputError
from ivimbayes.models.names import SIGNAL_NAMES

if TYPE_CHECKING:
    import xarray as xr

    from ivimbayes.models.spec import ModelSpec

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
Signal = Annotated[str, typer.Option("--signal", help=f"Signal model: {', '.join(SIGNAL_NAMES)}.")]
Noise = Annotated[str, typer.Option("--noise", help="Noise of the signals: gaussian, rician, student_t.")]
Population = Annotated[
    str, typer.Option("--population", help="Voxels around their region: normal, student_t, mixture.")
]
Dwi = Annotated[Path, typer.Argument(help="4-D diffusion-weighted NIfTI image.", show_default=False)]
Table = Annotated[Path | None, typer.Option("--out", help="Write the table to this file (TSV).")]
Replace = Annotated[bool, typer.Option("--overwrite", help="Replace the file.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress bars.")]


@dataclass(frozen=True)
class ImageOptions:
    """What is read beside a diffusion-weighted image."""

    rois: Rois = None
    bval: Bval = None
    mask: Mask = None
    names: Names = None
    averages: Averages = None
    real_valued: RealValued = False

    def read(
        self, dwi: Path, b_min: float | None, b_max: float | None, regions: list[str] | None = None
    ) -> "xr.Dataset":
        """Read the scan."""
        from ivimbayes.io.scans import read_scan

        return read_scan(
            dwi, self.bval, self.mask, self.rois, names=parse_names(self.names), regions=regions,
            averages=parse_numbers(self.averages, "--averages"), b_min=b_min, b_max=b_max,
            real_valued=self.real_valued,
        )  # fmt: skip

    def require_regions(self, dwi: Path) -> None:
        """Refuse a scan without regions."""
        if self.rois is None and self.mask is None:
            raise InputError(f"{dwi}: no regions given; name a label image with --rois or a mask with --mask")


@dataclass(frozen=True)
class ModelOptions:
    """Which regions and voxels are fitted, and by which model."""

    region: Region = None
    tissue: Tissue = None
    priors: Priors = None
    b_min: BMin = None
    b_max: BMax = None
    voxels_per_roi: VoxelsPerRoi = 200
    downsample: Downsample = "1"
    level: Level = "voxel"
    signal: Signal = "biexponential"
    noise: Noise = "gaussian"
    population: Population = "normal"

    @property
    def spec(self) -> "ModelSpec":
        """The model."""
        from ivimbayes.models.spec import ModelSpec

        return ModelSpec(signal=self.signal, noise=self.noise, population=self.population)

    @property
    def keywords(self) -> dict[str, Any]:
        """Keywords of `fit` and `prior_check` that say which voxels and which priors."""
        return {
            "tissue": parse_tissues(self.tissue), "priors": self.priors,
            "voxels_per_roi": self.voxels_per_roi or None,
            "downsample": parse_whole_numbers(self.downsample, "--downsample"), "level": self.level,
        }  # fmt: skip


@dataclass(frozen=True)
class SamplingOptions:
    """How a fit is sampled, and whether maps follow."""

    draws: Draws = 1000
    tune: Tune = 500
    chains: Chains = 4
    target_accept: TargetAccept = 0.85
    seed: Seed = 0
    retry: Retry = True
    maps: Maps = True

    @property
    def keywords(self) -> dict[str, Any]:
        """Keywords of `fit`."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "maps"}


def grouped(function: Callable[..., None]) -> Callable[..., None]:
    """Spread the options of a command's groups over its command line."""
    hints = get_type_hints(function, include_extras=True)
    groups: dict[str, Any] = {name: kind for name, kind in hints.items() if is_dataclass(kind)}
    spread = []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.name not in groups:
            spread.append(parameter.replace(annotation=hints[parameter.name]))
            continue
        kinds = get_type_hints(groups[parameter.name], include_extras=True)
        spread += [
            inspect.Parameter(
                field.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=field.default,
                annotation=kinds[field.name],
            )
            for field in fields(groups[parameter.name])
        ]
    spread = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in spread]

    @wraps(function)
    def command(**values: Any) -> None:
        packed = {
            name: kind(**{field.name: values.pop(field.name) for field in fields(kind)})
            for name, kind in groups.items()
        }
        function(**values, **packed)

    command.__signature__ = inspect.Signature(spread)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in spread}
    del command.__wrapped__
    return command


def parse_tissues(words: list[str] | None) -> dict[str, str]:
    """Read --tissue: tissue by region name, ``"*"`` for all."""
    table = {}
    for word in words or []:
        region, equals, name = word.rpartition("=")
        if (equals and not region) or not name:
            raise InputError(f"--tissue {word}: give REGION=TISSUE, such as kidney=kidney, or TISSUE for all")
        table[region or "*"] = name
    return table


def parse_time(text: str | None, option: str) -> float | tuple[float, float] | None:
    """Read a time, or its mean and standard deviation (ms)."""
    if text is None:
        return None
    try:
        numbers = [float(word) for word in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) not in (1, 2):
        raise InputError(f"{option} {text}: give a time in ms, or its mean and standard deviation: 275,50")
    return numbers[0] if len(numbers) == 1 else (numbers[0], numbers[1])


def parse_times(words: list[str] | None, option: str) -> dict[str, float | tuple[float, float]] | None:
    """Read times by region, ``"*"`` for all."""
    table = {}
    for word in words or []:
        region, _, text = word.rpartition("=")
        time = parse_time(text, option)
        assert time is not None
        table[region or "*"] = time
    return table or None


def parse_names(text: str | None) -> dict[int, str] | str | None:
    """Read --names: names by label, or a file."""
    if text is None or "=" not in text:
        return text
    table = {}
    for part in text.split(","):
        label, _, name = part.partition("=")
        if not label.strip().isdecimal() or not name.strip():
            raise InputError(f"--names {text}: {part!r} is not LABEL=NAME; write 1=liver,2=kidney")
        table[int(label)] = name.strip()
    return table


def parse_numbers(text: str | None, option: str) -> list[float] | None:
    """Read a list of numbers."""
    if text is None:
        return None
    try:
        return [float(word) for word in text.replace(",", " ").split()]
    except ValueError:
        raise InputError(f"{option} {text}: not a list of numbers; write 1,1,2,4") from None


def parse_whole_numbers(text: str, option: str) -> int | list[int]:
    """Read one whole number, or three for x, y and z."""
    words = text.replace(",", " ").replace("x", " ").split()
    if len(words) not in (1, 3) or not all(word.isdecimal() for word in words):
        raise InputError(f"{option} {text}: give one whole number, or three for x, y and z")
    return int(words[0]) if len(words) == 1 else [int(word) for word in words]
