"""Verdicts on the sampling of each region, and cautions, with their reasons."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import arviz as az
import numpy as np
import xarray as xr
from scipy.cluster.vq import kmeans2
from scipy.stats import gaussian_kde

from ivimbayes.fitting.convergence import (
    BFMI,
    DIVERGENT,
    DIVERGENT_FAILED,
    ESS_FAILED,
    R_HAT_FAILED,
    REPORTED,
    Chains,
    measure_chains,
)
from ivimbayes.models.priors import ThetaPrior
from ivimbayes.models.signals import PARAMETERS, SIGNALS, Signal
from ivimbayes.results.regions import take_region
from ivimbayes.results.stored import FitView

MEANINGS = {
    "converged": "the sampling can be trusted; whether the model fits is another question",
    "doubtful": "read the reasons before using the values",
    "failed": "the values are not to be used",
}
VERDICTS = tuple(MEANINGS)
LEVELS = ("failed", "doubtful", "caution", "note")

R_HAT_VOXEL = 1.05
IDENTIFIED = 0.5
KURTOTIC_B = 1000.0  # s/mm2
GAUSSIAN_SNR = 5.0  # at the highest b; below it magnitudes need Rician noise
MODE_WEIGHT, MODE_VALLEY, MODE_DRAWS = 0.05, 0.6, 4000


@dataclass(frozen=True)
class Finding:
    """One thing found in a region's posterior.

    Attributes
    ----------
    level : {"note", "caution", "doubtful", "failed"}
        What it means for the verdict, which is on the sampling: a caution is on the model or the prior, and
        leaves it as it is.
    what : str
        What was found.
    advice : str
        What to do about it.
    """

    level: str
    what: str
    advice: str = ""

    def __str__(self) -> str:
        return f"{self.what}; {self.advice}" if self.advice else self.what


@dataclass(frozen=True)
class Mode:
    """One of several modes of a region: its share of the draws, and its median parameters (1, mm²/s)."""

    weight: float
    values: Mapping[str, float]

    def __str__(self) -> str:
        shown = []
        for name, value in self.values.items():
            scaled = PARAMETERS[name].display_scale * value
            shown.append(f"{PARAMETERS[name].label} {scaled:.{1 if scaled >= 10 else 2}f}")
        return f"{', '.join(shown)} (D in 1e-3 mm2/s; {100 * self.weight:.0f} % of the draws)"


@dataclass(frozen=True)
class Diagnosis:
    """Verdict on a region's posterior, with reasons.

    Attributes
    ----------
    verdict : {"converged", "doubtful", "failed"}
    findings : tuple of Finding
        The gravest first.
    contraction : mapping of str to float
        By parameter, the share of the prior variance of the region's value (in its unbounded form) that the
        data took away: 1 is all from the data, 0 all from the prior.
    modes : tuple of Mode
        Two, where the posterior has two modes.
    snr : float
        Signal over noise of the region's median voxel at the highest b value.
    """

    verdict: str
    findings: tuple[Finding, ...]
    contraction: Mapping[str, float]
    modes: tuple[Mode, ...] = field(default=())
    snr: float = float("nan")


def diagnose(tree: xr.DataTree | FitView, voxels: bool = True) -> dict[str, Diagnosis]:
    """Judge the posterior of each region, with reasons in plain words and what to do.

    Parameters
    ----------
    tree : DataTree
        From `fit`.
    voxels : bool
        Judge the draws of single voxels too, which takes longest.

    Returns
    -------
    dict of str to Diagnosis
        By region. ``failed``: R-hat above 1.05, fewer than 100 effective draws of a reported value, or more
        than 2 % divergent. ``doubtful``: R-hat of a reported value above 1.01, fewer than 400 effective draws
        (100 for the spread between voxels), R-hat of a single voxel above 1.05, more than 0.1 % divergent,
        E-BFMI below 0.3, or two modes. Cautions do not change the verdict, which is on the sampling: a signal
        at the highest b below 5 times the noise, which Gaussian noise does not describe; b values above 1000
        s/mm2 under a model whose tissue decays exponentially; a region's value outside the 95 % range of its
        prior. What the data could not tell is a note.
    """
    fit = FitView.of(tree)
    posterior, spec, names = fit.posterior, fit.spec, fit.signal.parameters
    result = {}
    for roi in fit.regions:
        region = take_region(posterior if voxels else posterior.drop_dims("voxel"), roi)
        mine = region.drop_dims("voxel", errors="ignore").isel(roi=0)
        chains = measure_chains(mine, fit.record(roi))
        tissue, prior = fit.priors[roi].name, fit.priors[roi].theta(spec.signal)
        contraction = contraction_of(mine["mu"], prior)
        modes = find_bimodality(mine["mu"].values.reshape(-1, len(names)), spec.signal)
        snr = _snr(fit, roi, mine, take_region(posterior[["S0"]], roi)["S0"])
        worst = 1.0
        if voxels:
            worst = max(float(v.max()) for v in az.rhat(region[list(names)]).data_vars.values())
        findings = [
            *_modes(modes, chains, roi),
            *_sampling(chains, worst, bool(modes)),
            *_energy(chains),
            *([] if modes else _identification(contraction, mine, prior, tissue)),
            *_noise(snr, spec.noise, bool(fit.tree.attrs.get("real_valued"))),
            *_departure(float(fit.b.max()), fit.signal),
            *([] if modes else _conflict(mine, prior, tissue)),
            *_data(fit, roi),
        ]
        findings.sort(key=lambda finding: LEVELS.index(finding.level))
        levels = {finding.level for finding in findings}
        verdict = "failed" if "failed" in levels else "doubtful" if "doubtful" in levels else "converged"
        result[roi] = Diagnosis(verdict, tuple(findings), contraction, modes, snr)
    return result


def _modes(modes: tuple[Mode, ...], chains: Chains, roi: str) -> list[Finding]:
    if not modes:
        return []
    apart = max(chains.r_hat.values()) >= R_HAT_FAILED
    return [
        Finding(
            "failed" if apart else "doubtful",
            f"two modes: {modes[0]} and {modes[1]}",
            f"the data allow both: give the region the prior of its tissue (--tissue {roi!r}=TISSUE), "
            "or acquire more b values below 100 s/mm2",
        )
    ]


def _sampling(chains: Chains, rhat_voxel: float, modes: bool) -> list[Finding]:
    """Judge R-hat and effective draws, the worst of each."""
    findings = []
    if apart := chains.apart():
        name, value = max(apart, key=lambda pair: pair[1])
        advice = "see the two modes" if modes else "sample longer (--tune 2000 --draws 4000)"
        level = "failed" if value >= R_HAT_FAILED else "doubtful"
        findings.append(Finding(level, f"the chains disagree: R-hat {value:.3f} for {name}", advice))
    elif rhat_voxel >= R_HAT_VOXEL:
        what = f"the chains disagree about a voxel: R-hat {rhat_voxel:.3f}"
        findings.append(Finding("doubtful", what, "sample longer (--draws 4000)"))
    if short := chains.short():
        grave = [row for row in short if row[0] in REPORTED and row[2] < ESS_FAILED]
        name, kind, found, need = min(grave or short, key=lambda row: row[2])
        level = "failed" if grave else "doubtful"
        what = f"{found:.0f} effective draws ({kind}) for {name}, {need} are needed"
        findings.append(
            Finding(level, what, "see the two modes" if modes else "sample longer (--draws 4000)")
        )
    return findings


def _energy(chains: Chains) -> list[Finding]:
    """Judge divergences and energy."""
    findings = []
    if chains.divergences:
        plural = "" if chains.divergences == 1 else "s"
        what = f"{chains.divergences} divergent transition{plural} of {chains.transitions}"
        if chains.divergent <= DIVERGENT:
            findings.append(Finding("note", what, "too few to matter"))
        else:
            level = "failed" if chains.divergent > DIVERGENT_FAILED else "doubtful"
            advice = "the sampler missed a part of the posterior: raise --target-accept to 0.99"
            findings.append(Finding(level, what, advice))
    if chains.bfmi < BFMI:
        findings.append(
            Finding("doubtful", f"E-BFMI {chains.bfmi:.2f}, below {BFMI}", "sample longer (--tune 2000)")
        )
    return findings


def contraction_of(mu: xr.DataArray, prior: ThetaPrior) -> dict[str, float]:
    """Share of the prior variance of each parameter's theta that the data took away, from draws of mu."""
    sd = mu.std(("chain", "draw")).values
    names = [str(name) for name in mu["parameter"].values]
    return {name: float(1 - (s / w) ** 2) for name, s, w in zip(names, sd, prior.width, strict=True)}


def _identification(
    contraction: Mapping[str, float], mine: xr.Dataset, prior: ThetaPrior, tissue: str
) -> list[Finding]:
    """Say which parameters rest on the prior."""
    findings = []
    signal = next(s for s in SIGNALS.values() if s.parameters == tuple(contraction))
    centres = dict(zip(contraction, signal.values(*prior.centre), strict=True))
    for name, value in contraction.items():
        if value < IDENTIFIED:
            label, scale = PARAMETERS[name].label, PARAMETERS[name].display_scale
            median, centre = scale * float(mine[f"{name}_roi"].median()), scale * float(centres[name])
            what = (
                f"{label} rests on the prior: the data took away {100 * max(value, 0):.0f} % of the prior "
                f"variance (median {median:.3g}, prior of {tissue} {centre:.3g})"
            )
            findings.append(Finding("note", what, "report it with its interval, not as a measurement"))
    return findings


def _snr(fit: FitView, roi: str, mine: xr.Dataset, S0: xr.DataArray) -> float:
    """Signal of the median voxel at the highest b over the noise of a measurement there."""
    b = fit.b
    averages = float(np.median(fit.averages(roi)[:, b == b.max()]))
    region = mine.median(("chain", "draw"))
    curve = fit.signal.curve(b.max(), *(float(region[f"{p}_roi"]) for p in fit.signal.parameters))
    return float(float(S0.median()) * curve / (float(region["sigma"]) / np.sqrt(averages)))


def _noise(snr: float, noise: str, real_valued: bool) -> list[Finding]:
    """Say where magnitudes are no longer normal about their mean (Gudbjartsson and Patz 1995)."""
    if noise != "gaussian" or real_valued or not snr < GAUSSIAN_SNR:
        return []
    what = (
        f"the signal at the highest b is {snr:.1f} times the noise: below {GAUSSIAN_SNR:g} magnitudes are "
        "not Gaussian, and D comes out too low"
    )
    return [Finding("caution", what, "fit again with --noise rician")]


def _departure(highest: float, signal: Signal) -> list[Finding]:
    """Say where tissue departs from the exponential that the model takes it for (Jensen and Helpern 2010)."""
    if signal.tissue.shape or highest <= KURTOTIC_B:
        return []
    effect = (
        "perfusion: f comes out too high, D too low"
        if signal.fractions
        else "slow diffusion: D comes out too low"
    )
    advice = f"leave them out (--b-max {KURTOTIC_B:g}), or fit with kurtosis and compare (ivimbayes compare)"
    what = f"b values up to {highest:g} s/mm2: above {KURTOTIC_B:g} a kurtosis of tissue passes for {effect}"
    return [Finding("caution", what, advice)]


def _conflict(mine: xr.Dataset, prior: ThetaPrior, tissue: str) -> list[Finding]:
    """Say which of a region's values lie outside the 95 % range of their prior."""
    names = [str(name) for name in mine["parameter"].values]
    signal = next(s for s in SIGNALS.values() if s.parameters == tuple(names))
    mean = mine["mu"].mean(("chain", "draw")).values
    findings = []
    for i, name in enumerate(names):
        if abs(mean[i] - prior.centre[i]) > 1.96 * prior.width[i]:
            ends = []
            for side in (
                -1,
                1,
            ):  # this value's theta as it is judged, the others as found
                theta = mean.copy()
                theta[i] = prior.centre[i] + side * 1.96 * prior.width[i]
                ends.append(signal.values(*theta))
            scale, label = PARAMETERS[name].display_scale, PARAMETERS[name].label
            value, low, high = (
                scale * float(v) for v in (mine[f"{name}_roi"].median(), ends[0][i], ends[1][i])
            )
            what = (
                f"{label} {value:.3g} lies outside what the prior of {tissue} expects "
                f"({low:.3g} to {high:.3g})"
            )
            advice = "another tissue (--tissue), or a model that does not fit: see the check of its signals"
            findings.append(Finding("caution", what, advice))
    return findings


def _data(fit: FitView, roi: str) -> list[Finding]:
    """Say which voxels were fitted."""
    region, fitted = fit.record(roi), len(fit.voxels(roi))
    available, left_out = int(region["available"]), int(region["left_out"])
    findings = []
    if "interrupted" in region:
        findings.append(
            Finding(
                "doubtful", f"interrupted after {int(region['interrupted'])} draws of a chain", "run it again"
            )
        )
    if fit.level(roi) == "mean":
        reason = str(region["reason"].values)
        what = f"{reason}: the" if reason else "the"
        findings.append(
            Finding(
                "note", f"{what} mean curve of {available} voxels was fitted, without a spread between voxels"
            )
        )
    elif fitted < available:
        findings.append(Finding("note", f"{fitted} of {available} voxels were fitted, a stratified sample"))
    if "attempts" in region and int(region["attempts"]) > 1:
        findings.append(Finding("note", "sampled once more, longer: the first chains were not good enough"))
    if left_out:
        findings.append(
            Finding("note", f"{left_out} voxels were left out: a signal is not a positive number")
        )
    return findings


def find_bimodality(mu: np.ndarray, signal: str = "biexponential") -> tuple[Mode, ...]:
    """Two modes of the region's value, if its draws have them.

    The draws of theta are split in two (k-means); along the line between the centres their density must fall
    below 60 % of the lower peak, and the smaller part must hold 5 % of the draws.

    Parameters
    ----------
    mu : ndarray (draw, parameter)
        Draws of the region's mean of theta.
    signal : str
        A name in `SIGNALS`.

    Returns
    -------
    tuple of Mode
        Empty, or two, the larger first.
    """
    every = max(1, len(mu) // MODE_DRAWS)
    sd = mu.std(axis=0)
    if not (sd > 0).all():
        return ()
    z = ((mu - mu.mean(axis=0)) / sd)[::every]
    centres, part = kmeans2(z, 2, minit="++", rng=np.random.default_rng(0))
    weight = np.bincount(part, minlength=2) / len(part)
    if weight.min() < MODE_WEIGHT:
        return ()
    along = (z - centres[0]) @ (centres[1] - centres[0]) / ((centres[1] - centres[0]) ** 2).sum()
    low, high = np.quantile(along, [0.005, 0.995])
    grid = np.linspace(low, high, 201)
    density = gaussian_kde(along)(grid)
    split = int(np.searchsorted(grid, 0.5))
    if not 0 < split < len(grid) - 1:
        return ()
    left, right = int(density[:split].argmax()), split + int(density[split:].argmax())
    if density[left : right + 1].min() > MODE_VALLEY * min(density[left], density[right]):
        return ()
    model, found = SIGNALS[signal], []
    for k in (0, 1):
        values = model.values(*np.median(mu[::every][part == k], axis=0))
        found.append(Mode(float(weight[k]), dict(zip(model.parameters, map(float, values), strict=True))))
    return tuple(sorted(found, key=lambda mode: -mode.weight))
