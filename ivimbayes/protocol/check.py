"""What a set of b values can tell: checks before anything is computed, or acquired."""

import warnings
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from ivimbayes.errors import InputError, InputWarning
from ivimbayes.models.priors import TissuePrior, tissue_prior
from ivimbayes.models.signals import PARAMETERS, SIGNALS, Decay

SAME_B = 5.0  # s/mm²: b values closer than this are one
LOW_B = 50.0  # the lowest b must not lie above this, or S0 and f cannot be told apart
PERFUSION_B = 150.0  # without a b value between 0 and this, D* cannot be identified
HIGH_B = 200.0  # perfusion is gone above this; without such a b, D and f cannot be told apart
FAST_B, FAST_COUNT = 100.0, 3  # two vascular pools need as many b values between 0 and this
LEAST_DISTINCT = 2
LEFT = 0.05  # of the perfusion signal at the lowest b above 0: with less, D* cannot be told from a larger one

RECOMMENDED_DISTINCT = 8


class Band(NamedTuple):
    """Range of b (s/mm²), how many b values are recommended in it, and what for."""

    low: float
    high: float
    wanted: int
    what: str


BANDS = (
    Band(10.0, 50.0, 3, "perfusion: f and D*"),
    Band(100.0, 200.0, 2, "the transition from perfusion to diffusion"),
    Band(300.0, np.inf, 3, "diffusion: D"),
)
ORDER = (0, 800, 50, 200, 20, 500, 100, 10, 300, 30)  # the first n are n recommended b values


@dataclass(frozen=True)
class ProtocolFinding:
    """What was found about b values.

    Attributes
    ----------
    level : {"refused", "prior", "bias", "gap"}
        `fit` would refuse them; a parameter will rest on its prior, or be biased; something recommended is
        missing.
    parameters : tuple of str
        Which cannot be identified, or are biased.
    text : str
        The reason.
    """

    level: str
    parameters: tuple[str, ...]
    text: str

    def __str__(self) -> str:
        return f"{self.level}: {self.text}"


@dataclass(frozen=True)
class ProtocolCheck:
    """What b values can tell: see `check_protocol`.

    Attributes
    ----------
    b : tuple of float
        Distinct b values (s/mm²), rising.
    images : int
        Measurements.
    signal : str
        Signal model.
    tissue : str
        Tissue whose values were used; empty if none.
    findings : tuple of ProtocolFinding
    """

    b: tuple[float, ...]
    images: int
    signal: str
    tissue: str
    findings: tuple[ProtocolFinding, ...]

    @property
    def minimum(self) -> bool:
        """The minimum is met: `fit` takes them."""
        return not any(f.level == "refused" for f in self.findings)

    @property
    def recommended(self) -> bool:
        """What is recommended is met: nothing was found."""
        return not self.findings

    @property
    def gaps(self) -> tuple[str, ...]:
        """What is recommended and missing."""
        return tuple(f.text for f in self.findings if f.level == "gap")

    @property
    def not_identified(self) -> dict[str, str]:
        """Parameters that these b values cannot identify, and why."""
        found = [f for f in self.findings if f.level in ("refused", "prior")]
        return {p: f.text for f in reversed(found) for p in f.parameters}

    def __str__(self) -> str:
        shown = ", ".join(f"{b:g}" for b in self.b)
        verdict = "not usable" if not self.minimum else "as recommended" if self.recommended else "usable"
        head = f"{verdict}: {self.images} images at b = {shown} s/mm2, {self.signal}"
        return "\n".join([head, *(f"  {f}" for f in self.findings)])


def check_protocol(
    b: Any, signal: str = "biexponential", tissue: str | TissuePrior | None = None
) -> ProtocolCheck:
    """Check b values: minimum, recommendation, gaps, and what they cannot identify.

    Everything is reported at once; nothing is raised or warned of for b values that are too few. `fit` does
    that, by the same rules.

    Parameters
    ----------
    b : array_like (measurement,) or Dataset
        s/mm²; or a scan, whose ``b`` is taken.
    signal : str
        A name in `SIGNALS`.
    tissue : str or TissuePrior, optional
        A tissue whose prior says how fast its perfusion is gone, and up to which b a kurtosis is valid.

    Returns
    -------
    ProtocolCheck
        With ``minimum``, ``recommended``, ``gaps``, ``not_identified`` and all ``findings``; as text, what
        was found.

    Raises
    ------
    InputError
        If there is no b value, one is negative or not a number, or the signal or tissue is unknown.

    Notes
    -----
    Recommended, for models with D*: 8 distinct b values or more, among them 0, three from 10 to 50, two from
    100 to 200 and three from 300 s/mm²; for models with f alone, 0 and three from 300.

    Examples
    --------
    >>> print(check_protocol([0, 0, 200, 400, 600, 800], tissue="liver"))
    usable: 6 images at b = 0, 200, 400, 600, 800 s/mm2, biexponential
      prior: no b value between 0 and 150 s/mm2, so D* cannot be identified: it will rest on the prior
      gap: 5 distinct b values, 8 recommended
      gap: no b value from 10 to 50 s/mm2, 3 recommended (perfusion: f and D*)
      gap: 1 b value from 100 to 200 s/mm2, 2 recommended (the transition from perfusion to diffusion)
    >>> check_protocol([0, 100, 600]).minimum
    False
    """
    if signal not in SIGNALS:
        raise InputError(f"signal {signal!r}; accepted are {', '.join(SIGNALS)}")
    prior = tissue_prior(tissue) if isinstance(tissue, str) else tissue
    selected = isinstance(b, xr.Dataset) and bool(b.attrs.get("b_selected"))
    found = check_values(b["b"].values if isinstance(b, xr.Dataset) else b)
    distinct = np.unique(found)
    findings = [*_refusals(distinct, signal, prior, selected), *_limits(distinct, signal)]
    findings += _gone(distinct, signal, prior, findings) + _gaps(distinct, signal)
    return ProtocolCheck(
        tuple(distinct.tolist()), len(found), signal, prior.name if prior else "", tuple(findings)
    )


def check_values(b: Any) -> np.ndarray:
    """Give b values as numbers, (measurement,); refuse what are none."""
    try:
        found = np.atleast_1d(np.asarray(b, float))
    except (TypeError, ValueError):
        raise InputError(f"b {b!r}; give numbers in s/mm2, such as [0, 20, 50, 200, 800]") from None
    if found.ndim != 1 or not len(found):
        raise InputError(f"b has the shape {found.shape}; give a list of b values in s/mm2")
    wrong = found[~((found >= 0) & np.isfinite(found))]
    if len(wrong):
        raise InputError(f"b {wrong[0]:g}; b values in s/mm2 are 0 or more")
    return found


def require_protocol(
    scan: xr.Dataset, signal: str = "biexponential", prior: TissuePrior | None = None, *, warn: bool = True
) -> None:
    """Refuse b values that cannot identify a signal model, warn where a parameter will rest on the prior.

    Parameters
    ----------
    scan : Dataset
        ``b`` (measurement), s/mm²; attributes ``protocol`` or ``source`` name it in messages.
    signal : str
        A name in `SIGNALS`.
    prior : TissuePrior, optional
        Whose median D and K say up to which b a kurtosis is valid.
    warn : bool
        Warn too.

    Raises
    ------
    InputError
        If there are fewer distinct b values than parameters and S0; if no b value is low (50 s/mm²) or, for
        the simplified model, 0; for two vascular pools, if fewer than three b values lie between 0 and 100
        s/mm²; for a kurtosis, if the highest b is beyond 3 / (D K).

    Warns
    -----
    InputWarning
        If the b values leave a parameter to its prior, or hold signals that the model leaves out.

    Examples
    --------
    >>> from ivimbayes import simulate
    >>> scan, _ = simulate([0, 20, 50, 100, 400, 800], snr=30, voxels=5)
    >>> require_protocol(scan)
    >>> require_protocol(scan.isel(measurement=[0, 4, 5]))  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ivimbayes.errors.InputError: simulation: 3 distinct b values, 4 are needed; ...
    """
    b = np.unique(scan["b"].values.astype(float))
    where = scan.attrs.get("protocol", scan.attrs.get("source", "scan"))
    for refusal in _refusals(b, signal, prior, bool(scan.attrs.get("b_selected"))):
        raise InputError(f"{where}: {refusal.text}")
    if warn:
        for limit in _limits(b, signal):
            warnings.warn(f"{where}: {limit.text}", InputWarning, stacklevel=3)


def recommended_protocol(n: int = 10, b_max: float = 800.0) -> np.ndarray:
    """Give n recommended b values: 0, several from 10 to 50, some from 100 to 200, several from 300.

    Ten are 0, 10, 20, 30, 50, 100, 200, 300, 500 and 800 s/mm². Fewer leave out the least needed; more
    repeat them, the ends and 50 first. Where `b_max` is below 800, those above 300 come closer.

    Parameters
    ----------
    n : int
        Images, 4 or more.
    b_max : float
        Highest b (s/mm²), above 300.

    Returns
    -------
    ndarray (n,)
        s/mm², rising.

    Raises
    ------
    InputError
        If `n` or `b_max` is too small.

    Examples
    --------
    >>> recommended_protocol(4).tolist(), recommended_protocol(12, b_max=600).tolist()[-4:]
    ([0.0, 50.0, 200.0, 800.0], [300.0, 420.0, 600.0, 600.0])
    """
    if n < 4:
        raise InputError(f"n {n}; give 4 images or more")
    if not b_max > 300:
        raise InputError(f"b_max {b_max:g}; give more than 300 s/mm2, D needs several b values above that")
    b = np.array([ORDER[i % len(ORDER)] for i in range(n)], float)
    high = b > 300
    b[high] = 10 * np.round((300 + (b[high] - 300) * (min(b_max, 800.0) - 300) / 500) / 10)
    return np.sort(np.minimum(b, b_max))


def needed_distinct(signal: str) -> int:
    """Distinct b values that a signal model needs: as many as parameters and S0."""
    return max(LEAST_DISTINCT, len(SIGNALS[signal].parameters) + 1)


def _refusals(b: np.ndarray, signal: str, prior: TissuePrior | None, selected: bool) -> list[ProtocolFinding]:
    """Find why a fit would refuse b values (distinct, rising)."""
    model, found = SIGNALS[signal], []
    distinct, needed = len(np.unique(np.round(b / SAME_B))), needed_distinct(signal)
    shares = model.parameters[: model.fractions]
    if distinct < needed:
        way_out = "widen --b-min/--b-max" if selected else f"the {signal} model needs more b values"
        text = f"{distinct} distinct b values, {needed} are needed; {way_out}"
        found.append(ProtocolFinding("refused", model.parameters, text))
    if model.instant and b[0] > 0:
        text = (
            f"no b = 0 (lowest {b[0]:g} s/mm2), at which alone the {signal} model has perfusion; "
            "choose another --signal"
        )
        found.append(ProtocolFinding("refused", shares, text))
    if model.fractions and b[0] > LOW_B:
        way_out = "lower --b-min" if selected else "acquire b = 0"
        text = (
            f"no low b value (lowest {b[0]:g} s/mm2, at most {LOW_B:g} needed), "
            f"so S0 and f cannot be told apart; {way_out}"
        )
        found.append(ProtocolFinding("refused", shares, text))
    low = int(((b > 0) & (b < FAST_B)).sum())
    if model.fractions > 1 and low < FAST_COUNT:
        text = (
            f"{low} b values between 0 and {FAST_B:g} s/mm2, {FAST_COUNT} are needed to tell two "
            "vascular pools apart; choose --signal biexponential"
        )
        found.append(ProtocolFinding("refused", ("f_fast", "D_star", "D_star_fast"), text))
    if prior is not None:
        found += _beyond_validity(float(b[-1]), signal, prior)
    return found


def _beyond_validity(highest: float, signal: str, prior: TissuePrior) -> list[ProtocolFinding]:
    """Find b values at which the decay of tissue is not valid at the prior's median (Jensen 2005)."""
    model = SIGNALS[signal]
    if model.tissue.limit is None:
        return []
    median = zip(model.parameters, (float(v) for v in model.values(*prior.theta(signal).centre)), strict=True)
    names = ("D", *model.tissue.shape)
    limit = model.tissue.limit(*(value for name, value in median if name in names))
    if highest <= limit:
        return []
    text = (
        f"the highest b, {highest:g} s/mm2, is beyond {model.tissue.limit_text} = {limit:.0f} s/mm2, up to "
        f"which {model.tissue.noun} is valid at the median of the prior of {prior.name}; leave out higher b "
        f"values (--b-max {10 * int(limit / 10)}), or choose another --signal"
    )
    return [ProtocolFinding("refused", names, text)]


def _limits(b: np.ndarray, signal: str) -> list[ProtocolFinding]:
    """Find what b values (distinct, rising) leave to the prior, or bias."""
    model, found = SIGNALS[signal], []
    if model.fractions and b[-1] <= HIGH_B:
        text = (
            f"no high b value (highest {b[-1]:g} s/mm2, above {HIGH_B:g} needed), so D cannot be "
            "told apart from perfusion: D and f will rest on the prior"
        )
        found.append(ProtocolFinding("prior", ("f", "D"), text))
    if "D_star" in model.parameters and not ((b > 0) & (b < PERFUSION_B)).any():
        text = (
            f"no b value between 0 and {PERFUSION_B:g} s/mm2, so D* cannot be identified: "
            "it will rest on the prior"
        )
        found.append(ProtocolFinding("prior", ("D_star",), text))
    found += _shape_limits(b, model.tissue)
    if model.instant and ((b > 0) & (b < PERFUSION_B)).any():
        text = (
            f"b values between 0 and {PERFUSION_B:g} s/mm2 hold perfusion, which the {signal} model has at "
            "b = 0 alone: f and D will be biased"
        )
        found.append(ProtocolFinding("bias", ("f", "D"), text))
    return found


def _shape_limits(b: np.ndarray, tissue: Decay) -> list[ProtocolFinding]:
    """Find where b values (distinct, rising) leave the shape of the decay of tissue to the prior."""
    found, label = [], "".join(PARAMETERS[name].label for name in tissue.shape)
    if b[-1] < tissue.curved_b:
        text = (
            f"the highest b is {b[-1]:g} s/mm2: below {tissue.curved_b:g} {tissue.noun} hardly bends the "
            f"signal, so {label} cannot be identified: it will rest on the prior"
        )
        found.append(ProtocolFinding("prior", tissue.shape, text))
    if b[0] > tissue.low_b:
        text = (
            f"no low b value (lowest {b[0]:g} s/mm2, at most {tissue.low_b:g} needed), so {label} cannot be "
            "told apart from S0: it will rest on the prior"
        )
        found.append(ProtocolFinding("prior", tissue.shape, text))
    return found


def _gone(
    b: np.ndarray, signal: str, prior: TissuePrior | None, before: list[ProtocolFinding]
) -> list[ProtocolFinding]:
    """Find a tissue's perfusion gone at the lowest b above 0, where nothing was said of D* yet."""
    said = any("D_star" in f.parameters for f in before)
    if prior is None or said or "D_star" not in SIGNALS[signal].parameters:
        return []
    lowest, D_star = float(b[b > 0][0]), prior.centre["D_star"]
    left = float(np.exp(-lowest * D_star))
    if left >= LEFT:
        return []
    text = (
        f"at the lowest b above 0, {lowest:g} s/mm2, {100 * left:.2g} % of the perfusion signal of "
        f"{prior.name} is left (D* {1e3 * D_star:g}e-3 mm2/s), so D* can only be told to be large: "
        "it will rest on the prior"
    )
    return [ProtocolFinding("prior", ("D_star",), text)]


def _gaps(b: np.ndarray, signal: str) -> list[ProtocolFinding]:
    """Find what is recommended and missing in b values (distinct, rising)."""
    model, texts = SIGNALS[signal], []
    if not model.fractions:
        return []
    bands = BANDS if "D_star" in model.parameters else BANDS[-1:]
    distinct = len(np.unique(np.round(b / SAME_B)))
    if len(bands) > 1 and distinct < RECOMMENDED_DISTINCT:
        texts.append(f"{distinct} distinct b values, {RECOMMENDED_DISTINCT} recommended")
    if b[0] > 0:
        texts.append(f"no b = 0 (lowest {b[0]:g} s/mm2), at which S0 is measured")
    for low, high, count, what in bands:
        inside = int(((b >= low) & (b <= high)).sum())
        if inside < count:
            reach = f"from {low:g} s/mm2" if np.isinf(high) else f"from {low:g} to {high:g} s/mm2"
            have = f"{inside or 'no'} b value{'s' if inside > 1 else ''}"
            texts.append(f"{have} {reach}, {count} recommended ({what})")
    return [ProtocolFinding("gap", (), text) for text in texts]
