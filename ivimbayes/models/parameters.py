"""The parameters of the signal models: how each is shown, its link to the whole line, what is assumed of it.

Everything that is particular to a parameter is a field of its record in `PARAMETERS`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Link:
    """How a parameter's values are put on the whole line.

    Attributes
    ----------
    name : str
        What a model's text calls it.
    forward : callable
        From a value to the line. For `LOGIT` a second argument is the whole that the value is a part of, 1
        when not given.
    inverse : callable
        From the line to a value; takes the library's ``exp``.
    slope : callable
        Derivative of `inverse`, as a function of the value.
    axis : {"linear", "log"}
        Scale of a plot's axis that suits values over a wide range.
    """

    name: str
    forward: Callable[..., Any]
    inverse: Callable[..., Any]
    slope: Callable[[Any], Any]
    axis: str


def _logit(value: Any, whole: Any = 1.0) -> Any:
    return np.log(value) - np.log(whole - value)


def _logistic(x: Any, exp: Callable[[Any], Any] = np.exp) -> Any:
    return 1 / (1 + exp(-x))


def _logistic_slope(value: Any) -> Any:
    return value * (1 - value)


def _exp(x: Any, exp: Callable[[Any], Any] = np.exp) -> Any:
    return exp(x)


def _exp_slope(value: Any) -> Any:
    return value


LOGIT = Link("logit", _logit, _logistic, _logistic_slope, "linear")
LOG = Link("ln", np.log, _exp, _exp_slope, "log")


@dataclass(frozen=True)
class DefaultPrior:
    """What the prior of a parameter is where a tissue does not say.

    Attributes
    ----------
    spread : float
        Scale of the half-normal prior of the standard deviation of theta between voxels.
    width : float
        Prior standard deviation of theta. Unused where `centre` is None.
    centre : float or callable, optional
        Prior median, or a function of those that the tissue holds, by name. None for a parameter that every
        tissue gives.
    source : str
        What the numbers stand on.
    """

    spread: float
    width: float = float("nan")
    centre: float | Callable[[Mapping[str, float]], float] | None = None
    source: str = ""

    def median(self, tissue: Mapping[str, float]) -> float:
        """Prior median, given those that the tissue holds."""
        assert self.centre is not None
        return self.centre(tissue) if callable(self.centre) else self.centre


@dataclass(frozen=True)
class Parameter:
    """What a parameter is called, measured in and shown as, and what is assumed of it before it is fitted.

    Stored values are in ``unit``; tables and plots show ``value * display_scale`` in ``display_unit``.

    Attributes
    ----------
    name, long_name, label : str
        In code and files, in full, and in tables and on axes.
    unit, display_unit : str
    display_scale : float
    link : Link
        Between its values and theta.
    highest : float
        Highest prior median that a priors file may give (``unit``).
    starts : tuple of float
        Where the search for a region's modes starts, in prior widths from the prior's centre.
    prior : DefaultPrior, optional
        None for what is a parameter of no signal model.
    """

    name: str
    long_name: str
    label: str
    unit: str
    display_scale: float = 1.0
    display_unit: str = ""
    link: Link = LOG
    highest: float = np.inf
    starts: tuple[float, float, float, float] = (0, 0, 0, 0)
    prior: DefaultPrior | None = None

    @property
    def attrs(self) -> dict[str, str]:
        """Attributes of a dataset variable that holds this parameter."""
        return {"units": self.unit, "long_name": self.long_name}


def _half_of_f(tissue: Mapping[str, float]) -> float:
    return 0.5 * tissue["f"]


def _fast_rate(tissue: Mapping[str, float]) -> float:
    return max(0.5, 3 * tissue["D_star"])


PARAMETERS: dict[str, Parameter] = {
    p.name: p
    for p in (
        Parameter("S0", "signal at b = 0", "S0", "signal units", 1.0, "signal units"),
        Parameter(
            "f", "perfusion fraction", "f", "1", 1.0, "1",
            link=LOGIT, highest=1, starts=(0, 1, -1, -0.5), prior=DefaultPrior(0.7),
        ),
        Parameter(
            "f_fast", "fraction of the fast vascular pool, part of f", "f fast", "1", 1.0, "1",
            link=LOGIT, highest=1, starts=(0, -0.5, 0.5, 0.5),
            prior=DefaultPrior(
                0.5, 0.6, _half_of_f,
                "0.15 of 0.31 and 0.16 of 0.33 in liver: Riexinger 2019, doi 10.1002/jmri.26730",
            ),
        ),
        Parameter(
            "D", "tissue diffusion coefficient", "D", "mm2/s", 1e3, "1e-3 mm2/s",
            highest=1, starts=(0, -0.5, 0.5, 0.5), prior=DefaultPrior(0.4),
        ),
        Parameter(
            "D_star", "pseudo-diffusion coefficient", "D*", "mm2/s", 1e3, "1e-3 mm2/s",
            highest=1, starts=(0, -1, 0.5, 1), prior=DefaultPrior(0.7),
        ),
        Parameter(
            "D_star_fast", "pseudo-diffusion coefficient of the fast vascular pool", "D* fast", "mm2/s", 1e3,
            "1e-3 mm2/s", highest=10, starts=(0, -0.5, 0.5, 0),
            prior=DefaultPrior(
                0.5, 0.9, _fast_rate,
                "0.17 to 2.5 mm2/s in liver and kidney: Riexinger 2019, Chevallier 2019, Wurnig 2018",
            ),
        ),
        Parameter(
            "K", "kurtosis of tissue diffusion", "K", "1", 1.0, "1",
            highest=10, starts=(0, 0.5, -0.5, 1),
            prior=DefaultPrior(
                0.4, 0.45, 0.8,
                "0.43 to 1.38 in prostate, kidney, tumours and brain: Tamura 2014, Suo 2014, Pentang 2014, "
                "Lätt 2013",
            ),
        ),
        Parameter(
            "alpha", "stretching exponent of tissue diffusion", "alpha", "1", 1.0, "1",
            link=LOGIT, highest=1, starts=(0, 0.5, -0.5, -1),
            prior=DefaultPrior(
                0.5, 0.9, 0.75,
                "0.64 in tumour, 0.82 and 0.85 in healthy prostate: Liu 2015, doi 10.1002/jmri.24872; 0.46 "
                "to 0.87 fitted to the bi-exponential curves of the package's tissues, b 0 to 800 s/mm2",
            ),
        ),
        Parameter(
            "sigma", "noise standard deviation of one measurement", "sigma", "signal units", 1.0,
            "signal units",
        ),
    )
}  # fmt: skip
FRACTIONS = ("f", "f_fast")  # each a part of the one before
RATES = ("D", "D_star", "D_star_fast")  # each above the one before
