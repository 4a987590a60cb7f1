"""Which b values to measure: the protocol of a given length with the least expected posterior sd."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from ivimbayes.errors import InputError
from ivimbayes.models.priors import TissuePrior
from ivimbayes.models.signals import Array
from ivimbayes.progress import StepProgress
from ivimbayes.protocol.check import check_protocol, check_values, needed_distinct, recommended_protocol
from ivimbayes.protocol.precision import (
    VOXELS,
    Scenario,
    information,
    make_plan,
    posterior_sd,
    precision_of,
    prior_sd_of,
)

STARTS, TRUTHS = 4, 256  # of the exchange; values of the prior that its criterion averages over
FEW_VOXELS, FEW_POINTS = 256, 512  # simulated where protocols are compared
EVALUATIONS, GAIN = 100, 1e-3  # of simulated posteriors at most; improvement that is worth a move
FRESH = 1000  # added to the seed for the final precision: other voxels than those optimised on


class _Search:
    """A protocol as the sorted indices of its candidates; its criteria, each computed once."""

    def __init__(self, n: int, plan: Scenario, candidates: Array, aim: Array, seed: int):
        self.n, self.plan, self.candidates, self.seed = n, plan, candidates, seed
        self.aim = aim / prior_sd_of(plan)
        rng = np.random.default_rng([seed, 3])
        theta = plan.centre + plan.width * rng.standard_normal((TRUTHS, len(plan.centre)))
        one = np.ones(1)
        self.each = np.stack(
            [information(candidates[i : i + 1], one, theta, plan) for i in range(len(candidates))]
        )
        self.prior = np.diag(np.append(1 / plan.width**2, 1e-6))
        self.slope = plan.model.value_slope(theta)
        self.fast: dict[tuple[int, ...], float] = {}
        self.exact: dict[tuple[int, ...], float] = {}
        self.good: dict[tuple[int, ...], bool] = {}

    def feasible(self, chosen: tuple[int, ...]) -> bool:
        """Whether b = 0 is among them, they are enough, and no parameter is left to the prior."""
        if chosen not in self.good:
            b = self.candidates[list(chosen)]
            found = check_protocol(b, self.plan.signal, self.plan.prior).findings
            self.good[chosen] = bool(b[0] == 0) and all(f.level == "gap" for f in found)
        return self.good[chosen]

    def approximate(self, totals: Array) -> Array:
        """Weighted sum of the sds of Gaussian posteriors, of informations (..., truth, P + 1, P + 1)."""
        P = self.slope.shape[-1]
        covariance = np.linalg.inv(totals + self.prior)[..., :P, :P]
        variance = np.einsum("tip,...tpq,tiq->...ti", self.slope, covariance, self.slope)
        return np.asarray(np.sqrt(variance).mean(axis=-2) @ self.aim)

    def simulated(self, chosen: tuple[int, ...]) -> float:
        """Weighted sum of the expected sds, by simulated posteriors."""
        if chosen not in self.exact:
            b = self.candidates[list(chosen)]
            sd = posterior_sd(b, np.ones(self.n), self.plan, FEW_VOXELS, self.seed, FEW_POINTS)
            self.exact[chosen] = float(sd.mean(axis=0) @ self.aim)
        return self.exact[chosen]

    def exchange(self, chosen: tuple[int, ...]) -> tuple[int, ...]:
        """Replace one image by the best candidate until none helps (Fedorov 1972)."""
        best = float(self.approximate(self.each[list(chosen)].sum(axis=0)))
        improved = True
        while improved:
            improved = False
            for old in dict.fromkeys(chosen):
                rest = list(chosen)
                rest.remove(old)
                values = self.approximate(self.each[rest].sum(axis=0) + self.each)
                for new in np.argsort(values, kind="stable"):
                    if values[new] > (1 - GAIN / 10) * best:
                        break
                    moved = tuple(sorted([*rest, int(new)]))
                    if self.feasible(moved):
                        chosen, best, improved = moved, float(values[new]), True
                        break
                if improved:
                    break
        return chosen

    def neighbours(self, chosen: tuple[int, ...]) -> list[tuple[int, ...]]:
        """Protocols with one image at a neighbouring candidate, or at another b value of the protocol."""
        found: dict[tuple[int, ...], None] = {}
        for old in dict.fromkeys(chosen):
            rest = list(chosen)
            rest.remove(old)
            near = [old + step for step in (-1, 1, -2, 2) if 0 <= old + step < len(self.candidates)]
            for new in [*near, *(c for c in dict.fromkeys(chosen) if c != old)]:
                found[tuple(sorted([*rest, new]))] = None
        return [c for c in found if c != chosen and self.feasible(c)]

    def starts(self, recommended: Array) -> list[tuple[int, ...]]:
        """Feasible protocols to begin with: the recommended one on the candidates, and random ones."""
        distance = np.abs(self.candidates[:, None] - recommended)
        found = [tuple(sorted(distance.argmin(axis=0).tolist()))]
        rng = np.random.default_rng([self.seed, 5])
        for _ in range(50 * STARTS):
            drawn = rng.choice(len(self.candidates), self.n - 1, replace=len(self.candidates) < self.n)
            found.append(tuple(sorted([0, *drawn.tolist()])))
        return [c for c in found if self.feasible(c)][:STARTS]


def design_protocol(
    n: int | None = None,
    tissue: str | TissuePrior = "generic",
    snr: float = 30.0,
    b_max: float = 800.0,
    *,
    minimise: str | Mapping[str, float] = "D_star",
    signal: str = "biexponential",
    voxels: int = 1,
    candidates: Sequence[float] | None = None,
    scan_time: float | None = None,
    time_per_image: float | None = None,
    refine: bool = True,
    draws: int = VOXELS,
    seed: int = 0,
    progress: bool = True,
) -> xr.Dataset:
    """Choose n b values, repeats among them, for the least expected posterior sd.

    Parameters
    ----------
    n : int, optional
        Images. When not given, as many as `scan_time` has time for.
    tissue, snr, signal, voxels
        As in `expected_precision`.
    b_max : float
        Highest b (s/mm²), above 300.
    minimise : str or mapping of str to float
        A parameter, or weights of several: of the sum of weight times expected sd over the prior's.
    candidates : sequence of float, optional
        b values to choose from, 0 among them; to 50 in steps of 5, to 100 of 10, to 200 of 25, then of 50
        when not given.
    scan_time, time_per_image : float, optional
        Seconds in all, and for one image.
    refine : bool
        Improve the best protocols of the exchange by simulated posteriors.
    draws : int
        Voxels simulated for the precision that is given, a power of 2.
    seed : int
        The same seed gives the same protocol.
    progress : bool
        Show a bar.

    Returns
    -------
    Dataset
        ``b`` (protocol, measurement), rising, of the ``designed`` and the ``recommended`` protocol
        (`recommended_protocol`) of as many images, and what `expected_precision` gives of both, (protocol,
        parameter), from voxels other than those that the search used.

    Raises
    ------
    InputError
        If an argument is out of range, or no protocol of n candidates serves the signal model.

    Notes
    -----
    The criterion is the mean of the posterior sd over voxels drawn from the tissue's prior. Images are
    exchanged for candidates (Fedorov) under Gaussian posteriors, (Fisher information + prior precision)⁻¹,
    from several starts; then moved to neighbouring candidates under simulated posteriors. Protocols that
    `check_protocol` finds leaving a parameter to its prior are left out. Every image costs the same, and its
    noise does not depend on b: with a higher `b_max` the echo time grows and the SNR falls, which is for the
    user to state.

    References
    ----------
    Fedorov 1972, Theory of Optimal Experiments. Chaloner and Verdinelli 1995, Statist Sci 10:273.

    Examples
    --------
    >>> made = design_protocol(6, "liver", snr=30, refine=False, draws=64, progress=False)
    >>> made["b"].sel(protocol="recommended").values.tolist()
    [0.0, 20.0, 50.0, 200.0, 500.0, 800.0]
    """
    plan = make_plan(tissue, snr, signal, voxels)
    n = _images(n, scan_time, time_per_image, signal)
    recommended = recommended_protocol(n, b_max)
    grid = candidate_b(b_max) if candidates is None else _check_candidates(candidates, b_max)
    aim = _weights(minimise, plan)
    search = _Search(n, plan, grid, np.array([aim.get(p, 0.0) for p in plan.model.parameters]), seed)
    starts = search.starts(recommended)
    if not starts:
        raise InputError(
            f"no protocol of {n} of the {len(grid)} candidates up to {grid[-1]:g} s/mm2 serves the {signal} "
            "model; see check_protocol, and give more images or other candidates"
        )
    steps = len(starts) + (EVALUATIONS if refine else 0) + 2
    with StepProgress(steps, f"{n} images", progress) as bar:
        chosen = _optimise(search, starts, refine, bar)
        protocols = {"designed": grid[list(chosen)], "recommended": recommended}
        parts = []
        for b in protocols.values():
            parts.append(precision_of(b, np.ones(n), plan, draws, seed + FRESH))
            bar.advance("final precision")
        bar.finish()
    found = xr.concat(parts, "protocol", data_vars="all").assign_coords(protocol=list(protocols))
    found["b"] = (("protocol", "measurement"), np.stack(list(protocols.values())), {"units": "s/mm2"})
    about = {"minimise": json.dumps(aim), "b_max": float(b_max), "images": n, "seed": seed}
    if time_per_image is not None:
        about["scan_time"] = n * time_per_image
    return found.assign_attrs(parts[0].attrs | about)


def _optimise(
    search: _Search, starts: list[tuple[int, ...]], refine: bool, bar: StepProgress
) -> tuple[int, ...]:
    """Find the best protocol from several starts."""
    found: dict[tuple[int, ...], None] = {}
    for start in starts:
        found[search.exchange(start)] = None
        bar.advance("exchange")
    if not refine:
        fast = {c: float(search.approximate(search.each[list(c)].sum(axis=0))) for c in found}
        return min(fast, key=fast.__getitem__)
    for start in starts[:1]:
        found[start] = None
    chosen = min(found, key=search.simulated)
    improved = True
    while improved and len(search.exact) < EVALUATIONS:
        improved = False
        for moved in search.neighbours(chosen):
            if moved in search.exact:
                continue
            bar.advance(f"refining, {len(search.exact)} protocols simulated")
            if search.simulated(moved) < (1 - GAIN) * search.simulated(chosen):
                chosen, improved = moved, True
                break
            if len(search.exact) >= EVALUATIONS:
                break
    return chosen


def precision_by_budget(
    images: Sequence[int],
    tissue: str | TissuePrior = "generic",
    snr: float = 30.0,
    b_max: float = 800.0,
    *,
    progress: bool = True,
    **options: Any,
) -> xr.Dataset:
    """Expect the precision of designed and recommended protocols of several lengths.

    Parameters
    ----------
    images : sequence of int
        Numbers of images.
    tissue, snr, b_max
        As in `design_protocol`.
    progress : bool
        Show a bar for each.
    **options
        Of `design_protocol`; ``refine`` is False when not given.

    Returns
    -------
    Dataset
        What `design_protocol` gives, for each number of ``images``; ``b`` (images, protocol, measurement) is
        NaN beyond the last.

    Examples
    --------
    >>> made = precision_by_budget([4, 8], "liver", draws=64, progress=False)
    >>> dict(made["expected_sd"].sizes)
    {'images': 2, 'protocol': 2, 'parameter': 3}
    """
    options = {"refine": False, **options}
    made = {
        n: design_protocol(n, tissue, snr, b_max, progress=progress, **options) for n in sorted(set(images))
    }
    if not made:
        raise InputError("images: none given; give numbers of images, such as [6, 8, 10]")
    return join_budgets(made)


def join_budgets(made: Mapping[int, xr.Dataset]) -> xr.Dataset:
    """Join designs by their number of images."""
    longest = max(made)
    padded = [d.pad(measurement=(0, longest - n), constant_values=np.nan) for n, d in made.items()]
    joined = xr.concat(padded, "images", data_vars="all", combine_attrs="drop_conflicts")
    return joined.assign_coords(images=list(made))


def candidate_b(b_max: float) -> Array:
    """Give the b values that a design is chosen from, up to `b_max` (s/mm²)."""
    parts = (np.arange(0, 50, 5), np.arange(50, 100, 10), np.arange(100, 200, 25), np.arange(200, b_max, 50))
    grid = np.concatenate([*parts, [b_max]]).astype(float)
    return grid[grid <= b_max]


def describe_b(b: Any) -> str:
    """Give b values as text, with how often each is measured.

    Examples
    --------
    >>> describe_b([0, 0, 20, 800, 800, 800])
    '0 (2 times), 20, 800 (3 times)'
    """
    values, times = np.unique(np.asarray(b, float), return_counts=True)
    return ", ".join(
        f"{v:g}" + (f" ({t} times)" if t > 1 else "") for v, t in zip(values, times, strict=True)
    )


def _images(n: int | None, scan_time: float | None, time_per_image: float | None, signal: str) -> int:
    """Give the number of images, from the scan time where none is given."""
    if (n is None) == (scan_time is None):
        raise InputError(f"n {n}, scan_time {scan_time}; give one of the two")
    for name, value in (("scan_time", scan_time), ("time_per_image", time_per_image)):
        if value is not None and not (value > 0 and np.isfinite(value)):
            raise InputError(f"{name} {value:g}; give seconds, more than 0")
    if scan_time is not None and time_per_image is None:
        raise InputError("scan_time is given without time_per_image; give the seconds of one image")
    if n is None:
        assert scan_time is not None and time_per_image is not None
        n = int(scan_time / time_per_image * (1 + 1e-12))
    least = max(4, needed_distinct(signal))
    if n < least:
        raise InputError(f"n {n}; give {least} images or more for the {signal} model")
    return n


def _check_candidates(candidates: Sequence[float], b_max: float) -> Array:
    grid = np.unique(check_values(candidates))
    grid = grid[grid <= b_max]
    if not len(grid) or grid[0] != 0:
        raise InputError("candidates: 0 is not among them; every protocol measures b = 0")
    return grid


def _weights(minimise: str | Mapping[str, float], plan: Scenario) -> dict[str, float]:
    """Weights by parameter."""
    aim = {minimise: 1.0} if isinstance(minimise, str) else {p: float(w) for p, w in minimise.items()}
    names = plan.model.parameters
    for name, weight in aim.items():
        if name not in names:
            raise InputError(f"minimise {name!r}; the {plan.signal} model has {', '.join(names)}")
        if not (weight >= 0 and np.isfinite(weight)):
            raise InputError(f"minimise: the weight of {name} is {weight:g}; give 0 or more")
    if not sum(aim.values()) > 0:
        raise InputError(f"minimise: no weight is above 0; name one of {', '.join(names)}")
    return aim
