"""What a set of b values can tell: checks before anything is computed."""

import warnings

import numpy as np
import xarray as xr

from ivimbayes.errors import InputError, InputWarning
from ivimbayes.priors import TissuePrior
from ivimbayes.signals import SIGNALS

SAME_B = 5.0  # s/mm²: b values closer than this are one
LOW_B = 50.0  # the lowest b must not lie above this, or S0 and f cannot be told apart
PERFUSION_B = 150.0  # without a b value between 0 and this, D* cannot be identified
HIGH_B = 200.0  # perfusion is gone above this; without such a b, D and f cannot be told apart
CURVED_B = 800.0  # below this a kurtosis of 1 bends the signal by a tenth at most, at D = 1e-3 mm²/s
FAST_B, FAST_COUNT = 100.0, 3  # two vascular pools need as many b values between 0 and this
LEAST_DISTINCT = 2


def check_protocol(
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
        Whose median D and K say how far the kurtosis model is valid.
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
    >>> check_protocol(scan)
    >>> check_protocol(scan.isel(measurement=[0, 4, 5]))  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ivimbayes.errors.InputError: simulation: 3 distinct b values, 4 are needed; ...
    """
    model, b = SIGNALS[signal], np.unique(scan["b"].values.astype(float))
    where = scan.attrs.get("protocol", scan.attrs.get("source", "scan"))
    selected, names = bool(scan.attrs.get("b_selected")), model.parameters
    distinct = len(np.unique(np.round(b / SAME_B)))
    needed = max(LEAST_DISTINCT, len(names) + 1)
    if distinct < needed:
        way_out = "widen --b-min/--b-max" if selected else f"the {signal} model needs more b values"
        raise InputError(f"{where}: {distinct} distinct b values, {needed} are needed; {way_out}")
    if model.instant and b[0] > 0:
        raise InputError(
            f"{where}: no b = 0 (lowest {b[0]:g} s/mm2), at which alone the {signal} model has perfusion; "
            "choose another --signal"
        )
    if model.fractions and b[0] > LOW_B:
        way_out = "lower --b-min" if selected else "acquire b = 0"
        raise InputError(
            f"{where}: no low b value (lowest {b[0]:g} s/mm2, at most {LOW_B:g} needed), "
            f"so S0 and f cannot be told apart; {way_out}"
        )
    low = int(((b > 0) & (b < FAST_B)).sum())
    if model.fractions > 1 and low < FAST_COUNT:
        raise InputError(
            f"{where}: {low} b values between 0 and {FAST_B:g} s/mm2, {FAST_COUNT} are needed to tell two "
            "vascular pools apart; choose --signal biexponential"
        )
    if model.kurtosis and prior is not None:
        _check_validity(float(b[-1]), signal, prior, str(where))
    if warn:
        _warn(b, signal, str(where))


def _check_validity(highest: float, signal: str, prior: TissuePrior, where: str) -> None:
    """Refuse b values at which the prior's median signal would rise with b (Jensen 2005)."""
    model = SIGNALS[signal]
    values = dict(
        zip(model.parameters, (float(v) for v in model.values(*prior.theta(signal).centre)), strict=True)
    )
    limit = 3 / (values["D"] * values["K"])
    if highest > limit:
        raise InputError(
            f"{where}: the highest b, {highest:g} s/mm2, is beyond 3 / (D K) = {limit:.0f} s/mm2, up to "
            f"which a kurtosis is valid at the median of the prior of {prior.name}; leave out higher b "
            f"values (--b-max {10 * int(limit / 10)}), or choose another --signal"
        )


def _warn(b: np.ndarray, signal: str, where: str) -> None:
    model, found = SIGNALS[signal], []
    if model.fractions and b[-1] <= HIGH_B:
        found.append(
            f"no high b value (highest {b[-1]:g} s/mm2, above {HIGH_B:g} needed), so D cannot be "
            "told apart from perfusion: D and f will rest on the prior"
        )
    if "D_star" in model.parameters and not ((b > 0) & (b < PERFUSION_B)).any():
        found.append(
            f"no b value between 0 and {PERFUSION_B:g} s/mm2, so D* cannot be identified: "
            "it will rest on the prior"
        )
    if model.kurtosis and b[-1] < CURVED_B:
        found.append(
            f"the highest b is {b[-1]:g} s/mm2: below {CURVED_B:g} a kurtosis hardly bends the signal, so K "
            "cannot be identified: it will rest on the prior"
        )
    if model.instant and ((b > 0) & (b < PERFUSION_B)).any():
        found.append(
            f"b values between 0 and {PERFUSION_B:g} s/mm2 hold perfusion, which the {signal} model has at "
            "b = 0 alone: f and D will be biased"
        )
    for text in found:
        warnings.warn(f"{where}: {text}", InputWarning, stacklevel=4)
