"""Measures of a region's chains, and what counts as good enough."""

from dataclasses import dataclass

import arviz as az
import xarray as xr

from ivimbayes.models.signals import PARAMETERS

REPORTED = (*(f"{name}_roi" for name in PARAMETERS if name != "sigma"), "sigma")
BETWEEN_VOXELS = ("sd", "correlation", "S0_sd")
R_HAT, R_HAT_FAILED = 1.01, 1.05
ESS, ESS_FAILED = 400, 100
DIVERGENT, DIVERGENT_FAILED = 0.001, 0.02
BFMI = 0.3


@dataclass(frozen=True)
class Chains:
    """R-hat, effective draws, divergences and energy of one region's chains.

    Attributes
    ----------
    r_hat, ess_bulk, ess_tail : dict of str to float
        Worst value by variable (Vehtari et al. 2021, doi:10.1214/20-BA1221); variables without spread are
        left out.
    divergences, transitions : int
    bfmi : float
        Lowest E-BFMI of a chain.
    """

    r_hat: dict[str, float]
    ess_bulk: dict[str, float]
    ess_tail: dict[str, float]
    divergences: int
    transitions: int
    bfmi: float

    @property
    def divergent(self) -> float:
        """Share of divergent transitions."""
        return self.divergences / self.transitions

    @property
    def good(self) -> bool:
        """Whether nothing about the chains calls for more draws.

        What is reported needs R-hat below 1.01 and 400 effective draws in bulk and tails; the hyperparameters
        of the spread between voxels R-hat below 1.05 and 100 effective draws in bulk.
        """
        return self.divergent <= DIVERGENT and not self.short() and not self.apart()

    def short(self) -> list[tuple[str, str, float, int]]:
        """Variables with too few effective draws: name, bulk or tail, found, needed."""
        wanted = [
            ("bulk", self.ess_bulk, name, ESS if name in REPORTED else ESS_FAILED) for name in self.ess_bulk
        ]
        wanted += [("tail", self.ess_tail, name, ESS) for name in self.ess_tail if name in REPORTED]
        return [(name, kind, table[name], need) for kind, table, name, need in wanted if table[name] < need]

    def apart(self) -> list[tuple[str, float]]:
        """Variables about which the chains disagree: name, R-hat."""
        return [
            (name, value)
            for name, value in self.r_hat.items()
            if value >= (R_HAT if name in REPORTED else R_HAT_FAILED)
        ]


def measure_chains(posterior: xr.Dataset, record: xr.Dataset) -> Chains:
    """Measure the chains of one region.

    Parameters
    ----------
    posterior : Dataset
        Region variables (chain, draw, ...), of one region.
    record : Dataset
        ``divergences``, ``transitions`` and ``bfmi`` of the region.
    """
    names = [n for n in (*REPORTED, *BETWEEN_VOXELS) if n in posterior]
    names = [n for n in names if posterior[n].size and posterior[n].notnull().all()]
    names = [n for n in names if posterior[n].max() > posterior[n].min()]
    mine = posterior[names]
    return Chains(
        r_hat={str(k): float(v.max()) for k, v in az.rhat(mine).data_vars.items()},
        ess_bulk={str(k): float(v.min()) for k, v in az.ess(mine, method="bulk").data_vars.items()},
        ess_tail={str(k): float(v.min()) for k, v in az.ess(mine, method="tail").data_vars.items()},
        divergences=int(record["divergences"].item()),
        transitions=int(record["transitions"].item()),
        bfmi=float(record["bfmi"].item()),
    )
