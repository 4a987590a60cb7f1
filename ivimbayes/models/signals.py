"""Signal models and the table of their parameters.

Every model is a sum of compartments that decay each at its own rate, of which the slowest may have a kurtosis
and the fastest may be gone at the first b value above 0. A model is one entry of `SIGNALS`, which says how
many of these it has; the equations are written once, for numpy, xarray and pytensor (pass the library's
``exp``), with their derivatives for numpy here, and compiled for the sampler in `likelihood`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class Parameter:
    """What a parameter is called, measured in and shown as.

    Stored values are in ``unit``; tables and plots show ``value * display_scale`` in ``display_unit``.
    """

    name: str
    long_name: str
    label: str
    unit: str
    display_scale: float = 1.0
    display_unit: str = ""

    @property
    def attrs(self) -> dict[str, str]:
        """Attributes of a dataset variable that holds this parameter."""
        return {"units": self.unit, "long_name": self.long_name}


PARAMETERS: dict[str, Parameter] = {
    p.name: p
    for p in (
        Parameter("S0", "signal at b = 0", "S0", "signal units", 1.0, "signal units"),
        Parameter("f", "perfusion fraction", "f", "1", 1.0, "1"),
        Parameter("f_fast", "fraction of the fast vascular pool, part of f", "f fast", "1", 1.0, "1"),
        Parameter("D", "tissue diffusion coefficient", "D", "mm2/s", 1e3, "1e-3 mm2/s"),
        Parameter("D_star", "pseudo-diffusion coefficient", "D*", "mm2/s", 1e3, "1e-3 mm2/s"),
        Parameter("D_star_fast", "pseudo-diffusion coefficient of the fast vascular pool", "D* fast", "mm2/s",
                  1e3, "1e-3 mm2/s"),
        Parameter("K", "kurtosis of tissue diffusion", "K", "1", 1.0, "1"),
        Parameter("sigma", "noise standard deviation of one measurement", "sigma", "signal units", 1.0,
                  "signal units"),
    )
}  # fmt: skip
FRACTIONS, RATES, KURTOSIS = ("f", "f_fast"), ("D", "D_star", "D_star_fast"), "K"
INSTANT = 1e30  # mm²/s: a rate at which nothing is left at any b above 0


@dataclass(frozen=True)
class Signal:
    """A signal model for S0 = 1 and the space ``theta`` in which its parameters are unbounded.

    With the fractions 1 > f > f_fast and the rates D < D_star < D_star_fast, compartment c has the weight
    fraction c - fraction c + 1 and decays as exp(-b rate c); the first has exp(-v + v² K / 6), v = b D held
    at 3 / K, where there is a kurtosis. theta holds, in the order of ``parameters``: the logit of f and of
    f_fast / f; ln D and the ln of each rate's distance from the one before; ln K.

    Attributes
    ----------
    long_name : str
        What the field calls it.
    fractions : int
        Compartments besides tissue.
    instant : bool
        The last compartment has no rate: it is seen at b = 0 only.
    kurtosis : bool
        Diffusion in tissue has a kurtosis.
    source : str
        Who introduced it.
    """

    long_name: str
    fractions: int
    instant: bool
    kurtosis: bool
    source: str

    @property
    def rates(self) -> int:
        """Number of rates that are parameters."""
        return 1 + self.fractions - self.instant

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names, in the order of the last axis of ``theta``."""
        return FRACTIONS[: self.fractions] + RATES[: self.rates] + (KURTOSIS,) * self.kurtosis

    @property
    def links(self) -> tuple[str, ...]:
        """Each parameter in theta, as text."""
        before = {"f_fast": "logit(f_fast / f)", "D_star": "ln(D* - D)", "D_star_fast": "ln(D* fast - D*)"}
        return tuple(
            before.get(name, f"logit {name}" if name in FRACTIONS else f"ln {name}")
            for name in self.parameters
        )

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
        tissue = "exp(−b·D + (b·D)²·K/6)" if self.kurtosis else "exp(−b·D)"
        terms = [f"(1 − {shares[0]})·{tissue}" if shares else tissue]
        for c, share in enumerate(shares, 1):
            weight = f"({share} − {shares[c]})" if c < len(shares) else share
            terms.append(f"{weight}·exp(−b·{rates[c]})" if c < len(rates) else f"{weight} at b = 0")
        order = f", {' < '.join(rates)}" if len(rates) > 1 else ""
        return f"S(b)/S0 = {' + '.join(terms)}{order}"

    def values(self, *theta: Any, exp: Callable[[Any], Any] = np.exp) -> tuple[Any, ...]:
        """Parameter values from their unbounded form: the order of the rates holds for every input."""
        found: list[Any] = []
        for i, x in enumerate(theta):
            if i < self.fractions:
                share = 1 / (1 + exp(-x))
                found.append(share * found[-1] if i else share)
            elif self.fractions < i < self.fractions + self.rates:
                found.append(found[-1] + exp(x))
            else:
                found.append(exp(x))
        return tuple(found)

    def theta(self, *values: Any) -> tuple[Any, ...]:
        """Inverse of `values`."""
        found = []
        for i, value in enumerate(values):
            if i < self.fractions:
                whole = values[i - 1] if i else 1.0
                found.append(np.log(value) - np.log(whole - value))
            elif self.fractions < i < self.fractions + self.rates:
                found.append(np.log(value - values[i - 1]))
            else:
                found.append(np.log(value))
        return tuple(found)

    def compartments(self, b: Any, *values: Any, exp: Callable[[Any], Any] = np.exp) -> list[tuple[Any, Any]]:
        """Weight and decay of each compartment, tissue first, by broadcasting."""
        fractions = (1, *values[: self.fractions], 0)
        rates = [*values[self.fractions : self.fractions + self.rates], *(INSTANT,) * self.instant]
        exponents = [-b * rate for rate in rates]
        if self.kurtosis:
            v = valid_product(b * rates[0], values[-1])
            exponents[0] = -v + v**2 * values[-1] / 6
        return [(fractions[c] - fractions[c + 1], exp(x)) for c, x in enumerate(exponents)]

    def curve(self, b: Any, *values: Any, exp: Callable[[Any], Any] = np.exp) -> Any:
        """Relative signal, by broadcasting."""
        return sum(weight * decay for weight, decay in self.compartments(b, *values, exp=exp))

    def jacobian(self, b: Array, theta: Array) -> tuple[Array, Array]:
        """Curve (..., measurement) and its derivative in theta (..., parameter, measurement)."""
        F, R = self.fractions, self.rates
        x = [v[..., None] for v in np.moveaxis(theta, -1, 0)]
        values = self.values(*x)
        parts = self.compartments(b, *values)
        weight, decay = [w for w, _ in parts], [E for _, E in parts]
        derivative = []
        for j in range(F):  # a share scales its fraction and all later ones
            of_each = (values[i] * (decay[i + 1] - decay[i]) for i in range(j, F))
            derivative.append(sum(of_each) / (1 + np.exp(x[j])))
        slope = [-b * w * E for w, E in parts]
        if self.kurtosis:
            v = valid_product(b * values[F], values[-1])
            bend = weight[0] * decay[0] * v**2 * values[-1] / 6
            slope[0] = slope[0] * (1 - v * values[-1] / 3)
        derivative += [np.exp(x[F + j]) * sum(slope[j:R]) for j in range(R)]
        derivative += [bend] if self.kurtosis else []
        curve = sum(w * E for w, E in parts)
        return curve, np.stack(np.broadcast_arrays(*derivative), axis=-2)


def valid_product(bD: Any, K: Any) -> Any:
    """Product of b and D, held at 3 / K: beyond, the kurtosis would let the signal rise with b."""
    excess = bD * K / 3
    return bD / (0.5 * (1 + excess + abs(1 - excess)))


SIGNALS: dict[str, Signal] = {
    "monoexponential": Signal("mono-exponential (ADC)", 0, False, False, "Le Bihan 1986"),
    "kurtosis": Signal("diffusion kurtosis", 0, False, True, "Jensen 2005"),
    "simplified": Signal("simplified IVIM", 1, True, False, "Le Bihan 1988"),
    "biexponential": Signal("bi-exponential IVIM", 1, False, False, "Le Bihan 1988"),
    "biexponential_kurtosis": Signal("bi-exponential IVIM with kurtosis", 1, False, True, "Lu 2012"),
    "triexponential": Signal("tri-exponential IVIM", 2, False, False, "Cercueil 2015"),
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
        The signal's parameters, by name: ``f``, ``f_fast``, ``K`` (1), ``D``, ``D_star``,
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
