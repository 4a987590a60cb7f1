"""Stored fits: a view that reads each part of a fit once, and the check of a file before it is used."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from ivimbayes.errors import InputError
from ivimbayes.io.netcdf import open_tree, read_tree
from ivimbayes.io.text import one_line, read_json
from ivimbayes.models.priors import TissuePrior
from ivimbayes.models.signals import SIGNALS, Signal
from ivimbayes.models.spec import ModelSpec
from ivimbayes.results.regions import region_tree

GROUPS = ("posterior", "sample_stats", "constant_data", "observed_data")
LARGE = 1 << 28  # bytes of a file; the draws of a larger one are read as they are used


@dataclass(frozen=True, eq=False)
class FitView:
    """View of a fit: each part is read when it is first asked for, and then kept.

    Draws are not kept: where the tree is open, they stay in its file. A view is of the tree as it was; make
    another after a change.

    Attributes
    ----------
    tree : DataTree
        From `fit`.
    """

    tree: xr.DataTree

    @classmethod
    def of(cls, fit: "xr.DataTree | FitView") -> "FitView":
        """Give the view of a tree; a view is given back as it is."""
        return fit if isinstance(fit, FitView) else cls(fit)

    @cached_property
    def spec(self) -> ModelSpec:
        """What was fitted; the prior of each region is in `priors`."""
        return ModelSpec.from_json(self.tree.attrs["spec"])

    @property
    def signal(self) -> Signal:
        """Signal model."""
        return SIGNALS[self.spec.signal]

    @cached_property
    def priors(self) -> dict[str, TissuePrior]:
        """Prior of each region."""
        return stored_priors(self.tree.attrs)

    @cached_property
    def tissues(self) -> dict[str, str]:
        """Name of each region's prior; the region's own name where the tree holds no prior of it."""
        plain = read_json(self.tree.attrs.get("priors", "{}"))
        return {roi: plain.get(roi, {}).get("name", roi) for roi in self.regions}

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Length and number of the chains, and the other settings of the sampling."""
        return dict(read_json(self.tree.attrs["settings"]))

    @cached_property
    def versions(self) -> dict[str, str]:
        """Version of each package that made the fit."""
        return dict(read_json(self.tree.attrs["versions"]))

    @cached_property
    def posterior(self) -> xr.Dataset:
        """Group ``posterior``."""
        return self.tree["posterior"].to_dataset()

    @cached_property
    def observed(self) -> xr.Dataset:
        """Group ``observed_data``: ``signal`` (voxel, measurement), in signal units."""
        return self.tree["observed_data"].to_dataset()

    @cached_property
    def constant(self) -> xr.Dataset:
        """Group ``constant_data``: what was fitted, and how the sampling went."""
        return self.tree["constant_data"].to_dataset()

    @property
    def b(self) -> np.ndarray:
        """The b values (measurement,) in s/mm²."""
        return np.asarray(self.constant["b"].values)

    @cached_property
    def regions(self) -> list[str]:
        """Names of the regions, in their order."""
        return [str(roi) for roi in self.posterior["roi"].values]

    @cached_property
    def _voxels(self) -> Mapping[Any, np.ndarray]:
        names = pd.Series(self.posterior["voxel_roi"].values.astype(str))
        return names.groupby(names).indices

    def voxels(self, roi: str) -> np.ndarray:
        """Places (voxel,) of a region's voxels among all that were fitted, in ascending order."""
        return self._voxels[roi]

    def index(self, roi: str) -> np.ndarray:
        """Voxel indices x, y and z (voxel, 3) of a region's voxels in the scan."""
        mine = self.voxels(roi)
        return np.stack([self.constant[axis].values[mine] for axis in "xyz"], axis=1)

    def signals(self, roi: str) -> np.ndarray:
        """Signals (voxel, measurement) that a region was fitted to, in signal units."""
        return self._measured(self.observed["signal"], roi)

    def averages(self, roi: str) -> np.ndarray:
        """Averages (voxel, measurement) of a region's signals."""
        return self._measured(self.constant["averages"], roi)

    def _measured(self, values: xr.DataArray, roi: str) -> np.ndarray:
        return np.asarray(values.transpose("voxel", "measurement").values[self.voxels(roi)])

    def record(self, roi: str) -> xr.Dataset:
        """Take what ``constant_data`` says of a region: level, voxels available and left out, divergences."""
        return self.constant.sel(roi=roi)

    def level(self, roi: str) -> str:
        """Give what a region was fitted by: its voxels ("voxel"), or their mean curve ("mean")."""
        return str(self.constant["level"].sel(roi=roi).values)

    def region(self, roi: str) -> "FitView":
        """Take a region out of the fit, into memory."""
        return FitView(region_tree(self.tree, roi))


def stored_priors(attrs: Mapping[Any, Any]) -> dict[str, TissuePrior]:
    """Read the prior of each region from the attributes of a tree or of its file."""
    return {name: TissuePrior.from_dict(plain) for name, plain in read_json(attrs["priors"]).items()}


def read_fit(path: str | Path, large: int = LARGE) -> xr.DataTree:
    """Read the posterior.nc of a fit; the draws of one of more than `large` bytes stay in the file.

    Raises
    ------
    InputError
        If the file is missing, damaged, no fit, or one that this version does not understand.
    """
    path = Path(path)
    tree = open_tree(path) if path.is_file() and path.stat().st_size > large else read_tree(path)
    try:
        _check(FitView.of(tree))
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        tree.close()
        raise InputError(
            f"{path}: not a fit of this version of ivimbayes ({one_line(error)}); run ivimbayes fit again"
        ) from None
    return tree


def _check(fit: FitView) -> None:
    """Refuse a fit that lacks a part, or whose parts do not agree."""
    if missing := [name for name in GROUPS if name not in fit.tree.children]:
        raise KeyError(f"no group {missing[0]}")
    wanted = {*(f"{name}_roi" for name in fit.signal.parameters), "mu", "sigma"}
    if lost := wanted - set(fit.posterior.data_vars):
        raise KeyError(f"no {min(lost)}")
    priors = fit.priors
    for name in ("settings", "versions"):
        read_json(fit.tree.attrs[name])
    if absent := set(fit.regions) - set(priors):
        raise KeyError(f"no prior of {min(absent)}")
    if hidden := [name for name in priors if not name.isprintable()]:
        raise ValueError(f"a region named {hidden[0]!r}")
    if lost := {"level", "averaged", "available"} - set(fit.constant.data_vars):
        raise KeyError(f"no {min(lost)}")
