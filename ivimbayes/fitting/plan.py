"""Settings of a fit, and what it will do before it does it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import xarray as xr

from ivimbayes.errors import InputError
from ivimbayes.fitting.voxels import VOXELS_PER_ROI, choose_voxels
from ivimbayes.models.noise import NOISES
from ivimbayes.models.priors import TissuePrior
from ivimbayes.models.spec import ModelSpec, region_priors
from ivimbayes.protocol.check import require_protocol

DRAWS, TUNE, CHAINS, TARGET_ACCEPT = 1000, 500, 4, 0.85


RETRY_ACCEPT, RETRY_FACTOR, RETRY_BYTES = 0.95, 12, 2e9


MANY_VOXELS, MANY_DEPTH, DEPTH = 500, 4, 10  # 15 steps cross the posterior of many voxels, 31 turn back


@dataclass(frozen=True)
class Settings:
    """Length and seed of a region's chains."""

    draws: int = DRAWS
    tune: int = TUNE
    chains: int = CHAINS
    target_accept: float = TARGET_ACCEPT
    seed: int = 0
    retry: bool = True

    def __post_init__(self) -> None:
        for name, least in (("draws", LEAST), ("tune", LEAST), ("chains", 2), ("seed", 0)):
            if getattr(self, name) < least:
                raise InputError(f"{name} {getattr(self, name)}; give {least} or more")
        if not 0.5 <= self.target_accept < 1:
            raise InputError(f"target_accept {self.target_accept:g}; give a number from 0.5 to below 1")


@dataclass(frozen=True)
class FitPlan:
    """What a fit samples: voxels and prior of each region, the model, and the chains' settings."""

    chosen: Mapping[str, xr.Dataset]
    spec: ModelSpec
    priors: Mapping[str, TissuePrior]
    settings: Settings


def plan_fit(
    scan: xr.Dataset,
    spec: ModelSpec,
    settings: Settings,
    *,
    tissue: Mapping[str, str] | None = None,
    priors: Mapping[str, TissuePrior] | str | Path | None = None,
    voxels_per_roi: int | None = VOXELS_PER_ROI,
    downsample: int | Sequence[int] = 1,
    level: str = "voxel",
) -> FitPlan:
    """Choose the voxels of a fit and the priors of its regions; what cannot be fitted is refused here.

    Parameters and errors are those of `fit`.
    """
    chosen = choose_voxels(
        scan, voxels_per_roi=voxels_per_roi, downsample=downsample, level=level, seed=settings.seed
    )
    assigned = region_priors(list(chosen), spec, tissue, priors)
    for prior in {prior.name: prior for prior in assigned.values()}.values():
        require_protocol(scan, spec.signal, prior, warn=False)
    if NOISES[spec.noise].magnitude and scan.attrs.get("real_valued"):
        raise InputError(
            "noise rician: the images are real-valued, whose noise is gaussian; choose one of the two"
        )
    return FitPlan(chosen, spec, assigned, settings)


LEAST = 50  # draws of a chain that are of use
