"""Regions of a fit: the draws of one before they are joined, and one out of many afterwards."""

import numpy as np
import xarray as xr


def voxels_of(data: xr.Dataset, roi: str) -> slice | np.ndarray:
    """Places of a region's voxels: a slice where they lie together, as those of a fit do."""
    places = np.flatnonzero(data["voxel_roi"].values == roi)
    together = len(places) > 0 and places[-1] - places[0] == len(places) - 1
    return slice(int(places[0]), int(places[-1]) + 1) if together else places


def take_region(data: xr.Dataset, roi: str, voxels: bool = True) -> xr.Dataset:
    """Take a region out of a group of a fit, into memory.

    Parameters
    ----------
    data : Dataset
        Group of a fit.
    roi : str
        Name of the region.
    voxels : bool
        Take what belongs to its voxels too.

    Returns
    -------
    Dataset
        The dimension ``roi`` has length one.
    """
    if "roi" in data.dims:
        data = data.isel(roi=data["roi"].values == roi)
    if "voxel" in data.dims:
        data = data.isel(voxel=voxels_of(data, roi)) if voxels else data.drop_dims("voxel")
    return data.compute()


def region_tree(tree: xr.DataTree, roi: str) -> xr.DataTree:
    """Take a region out of a fit, into memory: a fit of this region only."""
    groups = {str(name): take_region(node.to_dataset(), roi) for name, node in tree.children.items()}
    region = xr.DataTree.from_dict(groups, name=tree.name)
    region.attrs = dict(tree.attrs)
    return region
