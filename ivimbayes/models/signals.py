"""Signal models, the ways in which tissue may decay, and the one table that holds both.

A signal is a sum of compartments. Tissue decays as one of `DECAYS`; the vascular compartments decay
exponentially, each at its own rate, and the fastest may be gone at the first b value above 0. A model is one
entry of `SIGNALS`. What is particular to a kind of decay is a field of its record in `DECAYS`, what is
particular to a parameter a field of its record in `PARAMETERS`. The equations serve numpy, xarray and
pytensor (pass the library's ``exp``); `ivimbayes.numerics.signals` has their compiled counterparts.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ivimbayes.models.parameters import FRACTIONS, RATES
from ivimbayes.models.parameters import PARAMETERS as PARAMETERS
from ivimbayes.models.parameters import Parameter as Parameter

Array = np.ndarray[Any, np.dtype[np.float64]]
INSTANT = 1e30  # mm²/s: a rate at which nothing is left at any b above 0


# ---------------------------------------------------------------- decays of tissue


@dataclass(frozen=True)
class Decay:
    """A kind of decay: how the signal of tissue falls with b at the rate D.

    Attributes
    ----------
    name : str
    noun : str
        What sentences call its departure from an exponential; empty for the exponential itself.
    equation : str
        The decay, as text.
    shape : tuple of str
        The parameter besides D that it has; empty, or one name.
    value : callable
        The decay at b, D and the shape parameter, given the library's ``exp``. Exactly 1 at b = 0.
    slopes : callable
        Derivatives, in D and in theta of the shape parameter, of weight times decay, given b, weight, decay,
        D, the shape parameter, and the derivative of that in its theta.
    claim : str
        What a comparison of models says where the data need it.
    curved_b : float
        s/mm². Where the highest b is lower, the curve differs too little from an exponential to tell the
        shape parameter.
    low_b : float
        s/mm². Where the lowest b is higher, the shape parameter cannot be told apart from S0.
    limit : callable, optional
        Highest b (s/mm²) at which the decay is valid, given D and the shape parameter.
    limit_text : str
        The same, as text.
    start : mapping of str to float
        One more start of the search for modes, in prior widths by parameter; empty if none is needed.
    """

    name: str
    noun: str
    equation: str
    shape: tuple[str, ...]
    value: Callable[..., Any]
    slopes: Callable[..., tuple[Any, ...]]
    claim: str = ""
    curved_b: float = 0.0
    low_b: float = np.inf
    limit: Callable[[float, float], float] | None = None
    limit_text: str = ""
    start: Mapping[str, float] = field(default_factory=dict, hash=False)


def _plain_decay(b: Any, D: Any, exp: Callable[[Any], Any] = np.exp) -> Any:
    return exp(-b * D)


def _plain_slopes(b: Any, weight: Any, decay: Any, D: Any) -> tuple[Any, ...]:
    return (-b * weight * decay,)


def _kurtosis_decay(b: Any, D: Any, K: Any, exp: Callable[[Any], Any] = np.exp) -> Any:
    v = valid_product(b * D, K)
    return exp(-v + v**2 * K / 6)


def _kurtosis_slopes(b: Any, weight: Any, decay: Any, D: Any, K: Any, turn: Any) -> tuple[Any, ...]:
    v = valid_product(b * D, K)
    return -b * weight * decay * (1 - v * K / 3), weight * decay * v**2 * turn / 6


def _kurtosis_limit(D: float, K: float) -> float:
    return 3 / (D * K)


def _stretched_decay(b: Any, D: Any, alpha: Any, exp: Callable[[Any], Any] = np.exp) -> Any:
    """Take the powers apart: at b = 0 the derivative of (b D)^alpha in D would be 0 times infinity."""
    return exp(-(b**alpha * D**alpha))


def _stretched_slopes(b: Any, weight: Any, decay: Any, D: Any, alpha: Any, turn: Any) -> tuple[Any, ...]:
    power = b**alpha * D**alpha
    part = -weight * decay * power
    return part * alpha / D, part * np.log(b * D + (b == 0)) * turn


def valid_product(bD: Any, K: Any) -> Any:
    """Product of b and D, held at 3 / K: beyond, the kurtosis would let the signal rise with b."""
    excess = bD * K / 3
    return bD / (0.5 * (1 + excess + abs(1 - excess)))


EXPONENTIAL = Decay("exponential", "", "exp(−b·D)", (), _plain_decay, _plain_slopes)
KURTOSIS = Decay(
    "kurtosis", "kurtosis", "exp(−b·D + (b·D)²·K/6)", ("K",), _kurtosis_decay, _kurtosis_slopes,
    claim="diffusion in tissue has a kurtosis",
    curved_b=800.0,  # below, a kurtosis of 1 bends the signal by a tenth at most, at D = 1e-3 mm²/s
    limit=_kurtosis_limit, limit_text="3 / (D K)",
    start={"D": 0.5, "D_star": -1, "K": 2},  # slow D and large f can stand for a kurtosis
)  # fmt: skip
STRETCHED = Decay(
    "stretched", "stretching", "exp(−(b·D)^alpha)", ("alpha",), _stretched_decay, _stretched_slopes,
    claim="a stretched exponential describes the signals better",
    low_b=50.0,  # the decay is steepest at b = 0
)  # fmt: skip
DECAYS = {decay.name: decay for decay in (EXPONENTIAL, KURTOSIS, STRETCHED)}


# ---------------------------------------------------------------- models


@dataclass(frozen=True)
class Departure:
    """How the prior of a parameter departs from the tissue's where a model means something else by its name.

    Attributes
    ----------
    name : str
        The parameter.
    width : float
        What is added to the width of the tissue's prior, in quadrature.
    ratio : float
        Prior median over the tissue's; of D* that of its distance from D.
    """

    name: str
    width: float
    ratio: float = 1.0


APPARENT = Departure("D", 0.35)  # perfusion makes an apparent D larger, the more the lower the b values
SLOW_POOL = Departure("D_star", 0.7, 0.6)  # of two pools the slow one


@dataclass(frozen=True)
class Signal:
    """A signal model for S0 = 1 and the space ``theta`` in which its parameters are unbounded.

    With the fractions 1 > f > f_fast and the rates D < D_star < D_star_fast, compartment c has the weight
    fraction c - fraction c + 1 and decays as exp(-b rate c); the first, tissue, as its kind of decay says.
    theta holds, in the order of ``parameters``: the logit of f and of f_fast / f; ln D and the ln of each
    rate's distance from the one before; the shape parameter of the decay of tissue by its link.

    Attributes
    ----------
    long_name : str
        What the field calls it.
    fractions : int
        Compartments besides tissue.
    instant : bool
        The last compartment has no rate: it is seen at b = 0 only.
    tissue : Decay
        How tissue decays.
    source : str
        Who introduced it.
    departures : tuple of Departure
        Where its priors are not those of the tissue.
    """

    long_name: str
    fractions: int
    instant: bool
    tissue: Decay
    source: str
    departures: tuple[Departure, ...] = ()

    @property
    def rates(self) -> int:
        """Number of rates that are parameters."""
        return 1 + self.fractions - self.instant

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names, in the order of the last axis of ``theta``."""
        return FRACTIONS[: self.fractions] + RATES[: self.rates] + self.tissue.shape

    @property
    def links(self) -> tuple[str, ...]:
        """Each parameter in theta, as text.

        Examples
        --------
        >>> SIGNALS["triexponential"].links
        ('logit f', 'logit(f_fast / f)', 'ln D', 'ln(D* - D)', 'ln(D* fast - D*)')
        """
        found = []
        for i, name in enumerate(self.parameters):
            label, before = PARAMETERS[name].label, self.parameters[i - 1]
            if 0 < i < self.fractions:
                found.append(f"logit({name} / {before})")
            elif self.fractions < i < self.fractions + self.rates:
                found.append(f"ln({label} - {PARAMETERS[before].label})")
            else:
                found.append(f"{PARAMETERS[name].link.name} {name}")
        return tuple(found)

    @property
    def equation(self) -> str:
        """The signal over S0, as text.

        Examples
        --------
        >>> SIGNALS["biexponential"].equation
        'S(b)/S0 = (1 − f)·exp(−b·D) + f·exp(−b·D*), D < D*'
        """
        labels = [PARAMETERS[name].label for name in self.parameters]
        shares, rates = labels[: self.fractions], labels[self.fractions : self.fractions + self.rates]
        terms = [f"(1 − {shares[0]})·{self.tissue.equation}" if shares else self.tissue.equation]
        for c, share in enumerate(shares, 1):
            weight = f"({share} − {shares[c]})" if c < len(shares) else share
            terms.append(f"{weight}·exp(−b·{rates[c]})" if c < len(rates) else f"{weight} at b = 0")
        order = f", {' < '.join(rates)}" if len(rates) > 1 else ""
        return f"S(b)/S0 = {' + '.join(terms)}{order}"

    def values(self, *theta: Any, exp: Callable[[Any], Any] = np.exp) -> tuple[Any, ...]:
        """Parameter values from their unbounded form: the order of the rates holds for every input."""
        found: list[Any] = []
        for i, (name, x) in enumerate(zip(self.parameters, theta, strict=True)):
            value = PARAMETERS[name].link.inverse(x, exp)
            if 0 < i < self.fractions:
                value = value * found[-1]
            elif self.fractions < i < self.fractions + self.rates:
                value = found[-1] + value
            found.append(value)
        return tuple(found)

    def theta(self, *values: Any) -> tuple[Any, ...]:
        """Inverse of `values`."""
        found = []
        for i, (name, value) in enumerate(zip(self.parameters, values, strict=True)):
            link = PARAMETERS[name].link
            if 0 < i < self.fractions:
                found.append(link.forward(value, values[i - 1]))
            elif self.fractions < i < self.fractions + self.rates:
                found.append(link.forward(value - values[i - 1]))
            else:
                found.append(link.forward(value))
        return tuple(found)

    def value_slope(self, theta: Array) -> Array:
        """Differentiate the parameters' values in theta (..., parameter): (..., value, parameter)."""
        F, R = self.fractions, self.rates
        slope = np.zeros((*theta.shape, theta.shape[-1]))
        values = self.values(*np.moveaxis(theta, -1, 0))
        for i, (name, value) in enumerate(zip(self.parameters, values, strict=True)):
            if i < F:  # a share scales its fraction and all later ones
                for j in range(i + 1):
                    slope[..., i, j] = value / (1 + np.exp(theta[..., j]))
            elif i < F + R:  # a step between rates moves its rate and all later ones
                slope[..., i, F : i + 1] = np.exp(theta[..., F : i + 1])
            else:
                slope[..., i, i] = PARAMETERS[name].link.slope(value)
        return slope

    def compartments(self, b: Any, *values: Any, exp: Callable[[Any], Any] = np.exp) -> list[tuple[Any, Any]]:
        """Weight and decay of each compartment, tissue first, by broadcasting."""
        F, R = self.fractions, self.rates
        fractions = (1, *values[:F], 0)
        rates = [*values[F : F + R], *(INSTANT,) * self.instant]
        decays = [self.tissue.value(b, rates[0], *values[F + R :], exp=exp)]
        decays += [exp(-b * rate) for rate in rates[1:]]
        return [(fractions[c] - fractions[c + 1], decay) for c, decay in enumerate(decays)]

    def curve(self, b: Any, *values: Any, exp: Callable[[Any], Any] = np.exp) -> Any:
        """Relative signal, by broadcasting."""
        return sum(weight * decay for weight, decay in self.compartments(b, *values, exp=exp))

    def jacobian(self, b: Array, theta: Array) -> tuple[Array, Array]:
        """Curve (..., measurement) and its derivative in theta (..., parameter, measurement)."""
        F, R = self.fractions, self.rates
        x = [v[..., None] for v in np.moveaxis(theta, -1, 0)]
        values = self.values(*x)
        parts = self.compartments(b, *values)
        decay = [E for _, E in parts]
        derivative = []
        for j in range(F):  # a share scales its fraction and all later ones
            of_each = (values[i] * (decay[i + 1] - decay[i]) for i in range(j, F))
            derivative.append(sum(of_each) / (1 + np.exp(x[j])))
        turn = [PARAMETERS[n].link.slope(v) for n, v in zip(self.tissue.shape, values[F + R :], strict=True)]
        in_D, *in_shape = self.tissue.slopes(b, *parts[0], *values[F : F + 1], *values[F + R :], *turn)
        slope = [in_D, *(-b * w * E for w, E in parts[1:])]
        derivative += [np.exp(x[F + j]) * sum(slope[j:R]) for j in range(R)] + in_shape
        curve = sum(w * E for w, E in parts)
        return curve, np.stack(np.broadcast_arrays(*derivative), axis=-2)


SIGNALS: dict[str, Signal] = {
    "monoexponential": Signal("mono-exponential (ADC)", 0, False, EXPONENTIAL, "Le Bihan 1986", (APPARENT,)),
    "kurtosis": Signal("diffusion kurtosis", 0, False, KURTOSIS, "Jensen 2005", (APPARENT,)),
    "simplified": Signal("simplified IVIM", 1, True, EXPONENTIAL, "Le Bihan 1988"),
    "biexponential": Signal("bi-exponential IVIM", 1, False, EXPONENTIAL, "Le Bihan 1988"),
    "biexponential_kurtosis": Signal("bi-exponential IVIM with kurtosis", 1, False, KURTOSIS, "Lu 2012"),
    "triexponential": Signal("tri-exponential IVIM", 2, False, EXPONENTIAL, "Cercueil 2015", (SLOW_POOL,)),
    "stretched": Signal("stretched exponential (DDC)", 0, False, STRETCHED, "Bennett 2003", (APPARENT,)),
}


def predict(b: Any, S0: Any, *, signal: str = "biexponential", **values: Any) -> Any:
    """Signal at the given b values.

    Parameters
    ----------
    b : array_like or DataArray (measurement)
        Diffusion weighting in s/mm².
    S0 : array_like or DataArray
        Signal at b = 0.
    signal : str
        A name in `SIGNALS`.
    **values : array_like or DataArray
        The signal's parameters, by name: ``f``, ``f_fast``, ``K``, ``alpha`` (1), ``D``, ``D_star``,
        ``D_star_fast`` (mm²/s).

    Returns
    -------
    array_like or DataArray
        Signal in the units of ``S0``, by numpy broadcasting, or by dimension names for DataArrays.

    Raises
    ------
    ValueError
        If the signal is unknown, or a parameter of it is missing or unknown.

    Examples
    --------
    >>> predict([0, 50, 800], 100.0, f=0.1, D=1e-3, D_star=20e-3).round(1)
    array([100. ,  89.3,  40.4])
    """
    if signal not in SIGNALS:
        raise ValueError(f"signal {signal!r}; accepted are {', '.join(SIGNALS)}")
    model = SIGNALS[signal]
    if set(values) != set(model.parameters):
        raise ValueError(
            f"the {signal} signal has the parameters {', '.join(model.parameters)}; got {', '.join(values)}"
        )
    b, S0, *given = (
        np.asarray(v, float) if isinstance(v, (list, tuple)) else v
        for v in (b, S0, *(values[name] for name in model.parameters))
    )
    return S0 * model.curve(b, *given)
