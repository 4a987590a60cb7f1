"""A fit that is interrupted: the draws until then, cut to one length and marked."""

from collections.abc import Mapping

import xarray as xr

LEAST = 50  # draws of a chain that are of use


class FitInterrupted(KeyboardInterrupt):
    """A fit that was interrupted.

    Attributes
    ----------
    tree : DataTree or None
        As `fit` gives it, of the regions of which two chains or more have 50 draws or more; all are cut to
        the fewest chains and draws. `diagnose` finds them ``doubtful`` and says how many draws there were.
    kept : str
        Where it was stored; empty where there was no checkpoint.
    """

    def __init__(self, tree: xr.DataTree | None, kept: str = ""):
        super().__init__("fit interrupted")
        self.tree, self.kept = tree, kept


class Interrupted(KeyboardInterrupt):
    """Sampling that was interrupted, with the tree of each region that has draws."""

    def __init__(self, regions: dict[str, xr.DataTree]):
        super().__init__("interrupted")
        self.regions = regions


def cut_chains(chains: Mapping[int, xr.DataTree], thin: int) -> tuple[list[xr.DataTree], int]:
    """Chains of a region that are long enough, cut to the shortest, and their draws after thinning.

    No chains where fewer than two are.
    """
    long = [
        chain
        for _, chain in sorted(chains.items(), key=lambda item: item[0])
        if chain["sample_stats"].sizes["draw"] >= LEAST * thin
    ]
    if len(long) < 2:
        return [], 0
    draws = min(chain["sample_stats"].sizes["draw"] for chain in long) // thin
    return [chain.isel(draw=slice(0, draws * thin)) for chain in long], draws


def cut_regions(regions: Mapping[str, xr.DataTree]) -> dict[str, xr.DataTree]:
    """Trees of regions, cut to the fewest chains and draws of any."""
    chains = min(tree["posterior"].sizes["chain"] for tree in regions.values())
    draws = min(tree["posterior"].sizes["draw"] for tree in regions.values())
    predictive = min(tree["posterior_predictive"].sizes["draw"] for tree in regions.values())
    cut = {}
    for name, tree in regions.items():
        groups = {str(group): node.to_dataset() for group, node in tree.children.items()}
        for group, data in groups.items():
            if "draw" in data.dims and not group.startswith("prior"):
                size = predictive if group == "posterior_predictive" else draws
                groups[group] = data.isel(chain=slice(0, chains), draw=slice(0, size))
        cut[name] = xr.DataTree.from_dict(groups)
        cut[name].attrs |= tree.attrs
    return cut


def mark_interrupted(tree: xr.DataTree, drawn: Mapping[str, int]) -> None:
    """Note in a tree how many draws each region had."""
    constant = tree["constant_data"].to_dataset()
    noted = xr.Dataset({"interrupted": ("roi", [drawn[name] for name in constant["roi"].values.tolist()])})
    tree["constant_data"] = xr.DataTree(constant.merge(noted))
