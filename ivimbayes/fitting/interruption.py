"""A fit that is interrupted: the draws until then, cut to one length and marked."""

from collections.abc import Mapping
from dataclasses import dataclass

import xarray as xr

from ivimbayes.fitting.checkpoint import FinishedRegion
from ivimbayes.fitting.plan import LEAST


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

    def __init__(self, regions: dict[str, FinishedRegion]):
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


@dataclass(frozen=True)
class Cut(FinishedRegion):
    """A region of an interrupted fit, cut to some chains and draws and marked with the draws it had."""

    chains: int = 0
    draws: int = 0
    predictive: int = 0

    def read(self) -> xr.DataTree:
        """Give the tree of the region, cut."""
        tree = super().read()
        had = tree["posterior"].sizes["draw"]
        groups = {str(group): node.to_dataset() for group, node in tree.children.items()}
        for group, data in groups.items():
            if "draw" in data.dims and not group.startswith("prior"):
                size = self.predictive if group == "posterior_predictive" else self.draws
                groups[group] = data.isel(chain=slice(0, self.chains), draw=slice(0, size))
        groups["constant_data"]["interrupted"] = ("roi", [had])
        cut = xr.DataTree.from_dict(groups)
        cut.attrs |= tree.attrs
        return cut


def cut_regions(regions: Mapping[str, FinishedRegion]) -> dict[str, Cut]:
    """Cut regions to the fewest chains and draws of any."""
    sizes = [_sizes(region.read()) for region in regions.values()]
    fewest = [min(column) for column in zip(*sizes, strict=True)]
    return {name: Cut(region.tree, region.path, region.key, *fewest) for name, region in regions.items()}


def _sizes(tree: xr.DataTree) -> tuple[int, int, int]:
    posterior, predictive = tree["posterior"].sizes, tree["posterior_predictive"].sizes
    return posterior["chain"], posterior["draw"], predictive["draw"]
