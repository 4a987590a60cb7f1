"""Which signal model a scan supports: fits of the same data, compared by leave-one-out cross-validation."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import arviz as az
import numpy as np
import pandas as pd
import xarray as xr

from ivimbayes.errors import InputError
from ivimbayes.models.noise import NOISES
from ivimbayes.models.signals import SIGNALS, Signal
from ivimbayes.models.spec import ModelSpec
from ivimbayes.results.diagnosis import diagnose
from ivimbayes.results.leave_one_out import error_of, leave_one_out
from ivimbayes.results.stored import FitView

CLEAR_SE, CLEAR_ELPD = 2.0, 4.0  # of smaller differences the error is not normal (Sivula 2025)
POPULATION_NAMES = {"normal": "normal", "student_t": "Student-t", "mixture": "mixed"}
FEW = 100  # measurements, below which standard errors are rough (Sivula 2025)
ROUGH = 0.05  # share of measurements
COLUMNS = (
    "roi", "fit", "signal", "noise", "parameters", "rank", "elpd_loo", "se", "elpd_diff", "se_diff", "p_loo",
    "weight", "pareto_k", "pareto_k_bad", "measurements", "verdict", "chosen", "warning",
)  # fmt: skip


@dataclass(frozen=True)
class Comparison:
    """Fits of the same data, compared.

    Attributes
    ----------
    table : DataFrame
        A row for each region and fit, the best of a region first, with the columns

        - ``roi``, ``fit`` (its key), ``signal``, ``noise``, ``parameters`` of the signal (number)
        - ``rank``: 1 is the highest ``elpd_loo``
        - ``elpd_loo``, ``se``: expected log predictive density of a measurement that was left out, summed
          over the measurements of all voxels, and its standard error
        - ``elpd_diff``, ``se_diff``: less that of the best fit (0 or negative), and its standard error
        - ``p_loo``: effective number of parameters
        - ``weight``: stacking weight, 0 to 1
        - ``pareto_k``, ``pareto_k_bad``, ``measurements``: the worst Pareto k, the number of measurements
          above the threshold of reliability (0.7, lower for few draws), and the number of measurements
        - ``verdict`` of `diagnose` on the region, not judging single voxels
        - ``chosen``: the simplest fit that is not clearly worse than the best
        - ``warning``: what speaks against the numbers of this row; empty if nothing
    sentences : mapping of str to str
        By region, what the comparison says.
    """

    table: pd.DataFrame
    sentences: Mapping[str, str]


@dataclass(frozen=True)
class Candidate:
    """One fit of one region.

    Attributes
    ----------
    key, label : str
        What the caller calls it, and what a sentence does.
    spec : ModelSpec
    loo : ELPDData
        With ``elpd_i`` and ``pareto_k`` (voxel, measurement).
    verdict : str
    """

    key: str
    label: str
    spec: ModelSpec
    loo: az.ELPDData
    verdict: str

    @property
    def signal(self) -> Signal:
        """Signal model."""
        return SIGNALS[self.spec.signal]

    @property
    def complexity(self) -> tuple[int, int]:
        """Number of parameters of the signal, and of vascular pools; the simpler sorts first."""
        return len(self.signal.parameters), self.signal.fractions

    @property
    def bad(self) -> np.ndarray:
        """Measurements whose importance weights are unreliable, (voxel, measurement)."""
        return np.asarray(self.loo.pareto_k.values > self.loo.good_k)


def compare_models(fits: Mapping[str, xr.DataTree]) -> Comparison:
    """Compare fits of the same scan and regions with different signal or noise models.

    One measurement of one voxel is left out at a time, by Pareto-smoothed importance sampling, from at most
    2000 draws of each fit. A fit is clearly worse than the best if its elpd is lower by more than 4 and by
    more than 2 standard errors. Of those that are not, the one with the fewest parameters is chosen. What
    only some of the fits have, such as perfusion, is claimed if all fits without it are clearly worse.

    The standard error of a difference takes voxels, not measurements, as independent where that makes it
    larger: measurements of a voxel share its parameters. Measurements whose importance weights are unreliable
    (a large Pareto k) are counted; if the choice would be another without them, the sentence says so.

    Parameters
    ----------
    fits : mapping of str to DataTree
        Two or more, from `fit`, by a name of your choice.

    Returns
    -------
    Comparison
        Its ``table`` and ``sentences``.

    Raises
    ------
    InputError
        If there are fewer than two fits, or they are not of the same regions, voxels and signals.

    Notes
    -----
    Under Gaussian noise S0 is integrated over its posterior from the voxel's other measurements
    (`Draws.log_predictive`), else it is one more sampled parameter. Voxel draws are stored with 13
    significant bits: against draws in float64 that changed the elpd of a Gaussian bi-exponential fit by less
    than 0.02 up to a signal-to-noise ratio of 1000, and by 0.1 at 3000 (20 voxels, 16 b values).

    Sources: Vehtari, Gelman and Gabry 2017, doi:10.1007/s11222-016-9696-4, and Vehtari et al. 2024, JMLR
    25(72) (PSIS-LOO); Yao et al. 2018, doi:10.1214/17-BA1091 (stacking); Sivula et al. 2025, arXiv:2008.10296
    (when a difference is clear).
    """
    views = {key: FitView.of(tree) for key, tree in fits.items()}
    _check(views)
    labels = _labels({key: fit.spec for key, fit in views.items()})
    diagnoses = {key: diagnose(fit, voxels=False) for key, fit in views.items()}
    rows, sentences = [], {}
    for roi in next(iter(views.values())).regions:
        found = [
            Candidate(key, labels[key], fit.spec, leave_one_out(fit, roi), diagnoses[key][roi].verdict)
            for key, fit in views.items()
        ]
        found.sort(key=lambda candidate: -candidate.loo.elpd)
        rows += _rows(roi, found)
        sentences[roi] = f"{roi}: {describe(found)}"
    return Comparison(pd.DataFrame(rows, columns=list(COLUMNS)), sentences)


def difference(better: Candidate, worse: Candidate, kept: np.ndarray | None = None) -> tuple[float, float]:
    """Elpd of one fit less that of another, and its standard error.

    Parameters
    ----------
    kept : ndarray (voxel, measurement), optional
        False for measurements that are not to count.
    """
    found = better.loo.elpd_i.values - worse.loo.elpd_i.values
    found = found if kept is None else np.where(kept, found, 0.0)
    return float(found.sum()), error_of(found)


def plausible(found: Sequence[Candidate], kept: np.ndarray | None = None) -> list[Candidate]:
    """Fits that are not clearly worse than the best, the simplest first, of equally simple ones the better.

    Parameters
    ----------
    found : sequence of Candidate
        Of one region.
    kept : ndarray (voxel, measurement), optional
        False for measurements that are not to count.
    """
    ordered = sorted(found, key=lambda c: difference(found[0], c, kept)[0])
    near = [c for c in ordered if not _clear(*difference(ordered[0], c, kept))]
    return sorted(near, key=lambda c: c.complexity)


def _clear(gap: float, se: float) -> bool:
    return gap > CLEAR_ELPD and gap > CLEAR_SE * se


def _rows(roi: str, found: Sequence[Candidate]) -> list[dict[str, object]]:
    """Rows of the table, of one region; `found` has the best first."""
    best, chosen, weights = found[0], plausible(found)[0], stacking_weights(found)
    rows = []
    for rank, c in enumerate(found, start=1):
        gap, se = difference(best, c)
        rows.append({
            "roi": roi, "fit": c.key, "signal": c.spec.signal, "noise": c.spec.noise,
            "parameters": c.complexity[0], "rank": rank, "elpd_loo": c.loo.elpd, "se": c.loo.se,
            "elpd_diff": 0.0 - gap, "se_diff": se, "p_loo": c.loo.p, "weight": weights[c.key],
            "pareto_k": float(c.loo.pareto_k.max()), "pareto_k_bad": int(c.bad.sum()),
            "measurements": c.loo.n_data_points, "verdict": c.verdict, "chosen": c is chosen,
            "warning": "; ".join(_warnings(c)),
        })  # fmt: skip
    return rows


def _warnings(candidate: Candidate) -> list[str]:
    loo, bad = candidate.loo, int(candidate.bad.sum())
    found = ["the fit failed"] if candidate.verdict == "failed" else []
    if bad:
        found.append(f"Pareto k above {loo.good_k:.2f} at {bad} of {loo.n_data_points} measurements")
    if loo.n_data_points < FEW:
        found.append(f"{loo.n_data_points} measurements are few: the standard errors are rough")
    return found


def stacking_weights(found: Sequence[Candidate]) -> dict[str, float]:
    """Weights of the mixture of fits that predicts best, by key (Yao et al. 2018)."""
    highest = np.max([c.loo.elpd_i.values for c in found], axis=0)  # taken off, exp stays in range
    shifted = {c.key: replace(c.loo, elpd_i=c.loo.elpd_i - highest) for c in found}
    weights = az.compare(shifted, method="stacking", round_to="none")["weight"]
    return {str(key): float(np.clip(weight, 0, 1)) for key, weight in weights.items()}


def describe(found: Sequence[Candidate]) -> str:
    """Say in words what the fits of one region show.

    Parameters
    ----------
    found : sequence of Candidate
        Of one region, the best first.
    """
    near = plausible(found)
    parts = [*_perfusion(found, near), *_vessels(found, near), *_tissue(found, near)]
    parts += _assumed(found, near, "noise", lambda c: NOISES[c.spec.noise].long_name)
    parts += _assumed(found, near, "population", lambda c: POPULATION_NAMES[c.spec.population])
    text = "; ".join(parts or [_preferred(found, near)]) + "."
    if rough := [c for c in found if c.bad.mean() > ROUGH]:
        worst = max(rough, key=lambda c: c.bad.sum())
        text += (
            f" The differences are rough: Pareto k is large at {worst.bad.sum()} of {worst.bad.size} "
            f"measurements ({worst.label}), more than {100 * ROUGH:.0f} %."
        )
    if failed := [c.label for c in found if c.verdict == "failed"]:
        text += f" Not to be relied on: the fit of {' and of '.join(failed)} failed."
    bad = np.any([c.bad for c in found], axis=0)
    if not bad.all() and (other := plausible(found, ~bad)[0]) is not near[0]:
        text += (
            f" This rests on measurements of large Pareto k ({bad.sum()}): without, {other.label} is chosen."
        )
    return text


def _perfusion(found: Sequence[Candidate], near: Sequence[Candidate]) -> list[str]:
    """Whether there is perfusion, where some fits have it and some do not."""
    perfused = [c for c in found if c.signal.fractions]
    without = [c for c in found if not c.signal.fractions]
    chosen = near[0]
    if not perfused or not without:
        return []
    if not chosen.signal.fractions:
        gap = difference(perfused[0], chosen)
        than = "" if gap[0] <= 0 else f" as the {perfused[0].label}: {_gap(*gap)}"
        return [f"no evidence of perfusion in these data: the {chosen.label} describes them as well{than}"]
    lead = chosen if _clear(*difference(chosen, without[0])) else found[0]
    parts = [
        f"the signals are described better with perfusion ({lead.label}) than without ({without[0].label}): "
        f"{_gap(*difference(lead, without[0]))}"
    ]
    return parts if lead is chosen else [*parts, f"the simpler {chosen.label} describes them as well"]


def _vessels(found: Sequence[Candidate], near: Sequence[Candidate]) -> list[str]:
    """Whether D* is seen, and a second vascular pool, where there is perfusion."""
    chosen, parts = near[0], []
    perfused = [c for c in found if c.signal.fractions]
    instant = [c for c in perfused if c.signal.instant]
    single = [c for c in perfused if c.signal.fractions == 1]
    if not chosen.signal.fractions:
        return []
    if (
        0 < len(instant) < len(perfused)
    ):  # the chosen is the simplest: where it has D*, all that are near have
        gap = _gap(*difference(found[0], instant[0]))
        parts.append(
            "D* is not seen" if chosen.signal.instant else f"D* is seen, against {instant[0].label}: {gap}"
        )
    if 0 < len(single) < len(perfused):
        gap = _gap(*difference(found[0], single[0]))
        none = "no sign of more than one vascular pool"
        parts.append(none if chosen.signal.fractions == 1 else f"two vascular pools rather than one: {gap}")
    return parts


def _tissue(found: Sequence[Candidate], near: Sequence[Candidate]) -> list[str]:
    """How tissue decays, where fits differ in it."""
    kinds = {c.signal.tissue.name: c.signal.tissue for c in found}
    if len(kinds) == 1:
        return []
    chosen = near[0].signal.tissue
    if not chosen.shape:
        return [f"no sign of {' or '.join(sorted(kind.noun for kind in kinds.values() if kind.shape))}"]
    if rivals := [c for c in near if c.signal.tissue.name != chosen.name]:
        return [f"{chosen.noun} cannot be told from {rivals[0].label}"]
    without = [c for c in found if c.signal.tissue.name != chosen.name]
    return [f"{chosen.claim}: {_gap(*difference(found[0], without[0]))}"]


def _assumed(
    found: Sequence[Candidate], near: Sequence[Candidate], what: str, name: Callable[[Candidate], str]
) -> list[str]:
    """Noise or population, where fits differ in it: neither is the simpler.

    The best fit is compared with those that differ from it in nothing else.
    """
    if len({name(c) for c in found}) == 1:
        return []
    best = found[0]
    alike = [c for c in found if replace(c.spec, **{what: getattr(best.spec, what)}) == best.spec]
    if not (others := [c for c in alike if name(c) != name(best)]):
        return [f"which {what} describes them better is open: the fits that differ in it differ in more"]
    if same := [c for c in others if c in near]:
        names = sorted({name(best), *(name(c) for c in same)})
        return [f"{' and '.join(names)} {what} describe them about as well"]
    gap = _gap(*difference(best, others[0]))
    several = len({c.spec.signal for c in found}) > 1
    under = f" under the {best.signal.long_name.partition(' (')[0]} model" if several else ""
    return [f"{name(best)} {what} describes them better than {name(others[0])}{under}: {gap}"]


def _preferred(found: Sequence[Candidate], near: Sequence[Candidate]) -> str:
    """Compare fits that differ in nothing above, such as the prior."""
    if len(near) == 1:
        gap = _gap(*difference(found[0], found[1]))
        return f"{found[0].label} describes the signals better than {found[1].label}: {gap}"
    return f"no clear difference between {' and '.join(c.label for c in near)}"


def _gap(gap: float, se: float) -> str:
    return f"elpd difference {_short(gap)} (se {_short(se)})"


def _short(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 10 else f"{value:.1f}"


def _labels(specs: Mapping[str, ModelSpec]) -> dict[str, str]:
    """Names of the fits in a sentence: the signal, with what else is needed to tell them apart."""
    labels = {key: SIGNALS[spec.signal].long_name.partition(" (")[0] for key, spec in specs.items()}
    if len({spec.noise for spec in specs.values()}) > 1:
        labels = {k: f"{v}, {NOISES[specs[k].noise].long_name} noise" for k, v in labels.items()}
    if len({spec.population for spec in specs.values()}) > 1:
        labels = {k: f"{v}, {POPULATION_NAMES[specs[k].population]} population" for k, v in labels.items()}
    if len(set(labels.values())) < len(labels):
        labels = {k: f"{v}, {k}" for k, v in labels.items()}
    return labels


def _check(fits: Mapping[str, FitView]) -> None:
    """Refuse what cannot be compared."""
    if len(fits) < 2:
        raise InputError(
            f"{', '.join(fits) or 'no fit'}: {len(fits)} to compare; give two or more, of the same scan with "
            "different --signal or --noise"
        )
    first, *others = fits
    for other in others:
        for here, there in ((first, other), (other, first)):
            for roi in fits[here].regions:
                if roi not in fits[there].regions:
                    raise InputError(
                        f"{there}: has no region {roi!r}, which {here} has; fit the same regions"
                    )
        for roi in fits[first].regions:
            _check_region(roi, first, fits[first], other, fits[other])


def _check_region(roi: str, first: str, one: FitView, other: str, two: FitView) -> None:
    levels = [fit.level(roi) for fit in (one, two)]
    if levels[0] != levels[1]:
        raise InputError(
            f"{other}: region {roi!r} is fitted at level {levels[1]}, in {first} at level {levels[0]}; "
            "fit both with the same --level"
        )
    parts = [(fit.b, fit.index(roi), fit.averages(roi), fit.signals(roi)) for fit in (one, two)]
    for what, left, right in zip(("b values", "voxels", "averages", "signals"), *parts, strict=True):
        if left.shape != right.shape or not np.allclose(left, right, rtol=1e-6, atol=0):
            raise InputError(
                f"{other}: the {what} of region {roi!r} are not those of {first}; fit the same scan, "
                "with the same --seed, --voxels-per-roi, --downsample and b values; two sessions: --sessions"
            )
