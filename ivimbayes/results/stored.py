"""Stored fits, read for a command: one of another version is refused, not half understood."""

from pathlib import Path

import xarray as xr

from ivimbayes.errors import InputError
from ivimbayes.io.netcdf import open_tree, read_tree
from ivimbayes.io.text import one_line, read_json
from ivimbayes.models.priors import TissuePrior
from ivimbayes.models.signals import SIGNALS
from ivimbayes.models.spec import ModelSpec

GROUPS = ("posterior", "sample_stats", "constant_data", "observed_data")
LARGE = 1 << 28  # bytes of a file; the draws of a larger one are read as they are used


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
        if missing := [name for name in GROUPS if name not in tree.children]:
            raise KeyError(f"no group {missing[0]}")
        spec = ModelSpec.from_json(tree.attrs["spec"])
        wanted = {*(f"{name}_roi" for name in SIGNALS[spec.signal].parameters), "mu", "sigma"}
        if lost := wanted - set(tree["posterior"].data_vars):
            raise KeyError(f"no {min(lost)}")
        priors = {name: TissuePrior.from_dict(p) for name, p in read_json(tree.attrs["priors"]).items()}
        for name in ("settings", "versions"):
            read_json(tree.attrs[name])
        if absent := set(tree["posterior"].to_dataset()["roi"].values.astype(str)) - set(priors):
            raise KeyError(f"no prior of {min(absent)}")
        if hidden := [name for name in priors if not name.isprintable()]:
            raise ValueError(f"a region named {hidden[0]!r}")
        if lost := {"level", "averaged", "available"} - set(tree["constant_data"].data_vars):
            raise KeyError(f"no {min(lost)}")
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        tree.close()
        raise InputError(
            f"{path}: not a fit of this version of ivimbayes ({one_line(error)}); run ivimbayes fit again"
        ) from None
    return tree
