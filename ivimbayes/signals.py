"""Signal equations and the table of their parameters.

Each equation is written once and evaluated with numpy, xarray or pytensor: pass the ``exp`` of the library.
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
        Parameter("D", "tissue diffusion coefficient", "D", "mm2/s", 1e3, "1e-3 mm2/s"),
        Parameter("D_star", "pseudo-diffusion coefficient", "D*", "mm2/s", 1e3, "1e-3 mm2/s"),
        Parameter("sigma", "noise standard deviation of one measurement", "sigma", "signal units", 1.0,
                  "signal units"),
    )
}  # fmt: skip


@dataclass(frozen=True)
class Signal:
    """A signal equation for S0 = 1 and the space ``theta`` in which its parameters are unbounded.

    Attributes
    ----------
    parameters : tuple of str
        Names, in the order of the last axis of ``theta``.
    curve : callable
        ``curve(b, *values, exp)``: relative signal, by broadcasting.
    values : callable
        ``values(*theta, exp)``: parameter values from their unbounded form.
    theta : callable
        ``theta(*values)``: the inverse of `values`.
    jacobian : callable
        ``jacobian(b, theta)``: curve (..., measurement) and its derivative (..., parameter, measurement).
    """

    parameters: tuple[str, ...]
    curve: Callable[..., Any]
    values: Callable[..., tuple[Any, ...]]
    theta: Callable[..., tuple[Any, ...]]
    jacobian: Callable[[Array, Array], tuple[Array, Array]]


def biexponential(b: Any, f: Any, D: Any, D_star: Any, exp: Callable[[Any], Any] = np.exp) -> Any:
    """Relative signal of the two IVIM compartments, ``f exp(-b D*) + (1 - f) exp(-b D)`` (Le Bihan 1988)."""
    return f * exp(-b * D_star) + (1 - f) * exp(-b * D)


def _biexponential_values(x: Any, y: Any, z: Any, exp: Callable[[Any], Any] = np.exp) -> tuple[Any, Any, Any]:
    """Values of (logit f, ln D, ln(D* - D)): D < D* holds for every input."""
    D = exp(y)
    return 1 / (1 + exp(-x)), D, D + exp(z)


def _biexponential_theta(f: Any, D: Any, D_star: Any) -> tuple[Any, Any, Any]:
    return np.log(f) - np.log1p(-f), np.log(D), np.log(D_star - D)


def _biexponential_jacobian(b: Array, theta: Array) -> tuple[Array, Array]:
    f, D, D_star = (v[..., None] for v in _biexponential_values(*np.moveaxis(theta, -1, 0)))
    fast, slow = np.exp(-b * D_star), np.exp(-b * D)
    g = f * fast + (1 - f) * slow
    d_f = (fast - slow) * f * (1 - f)
    d_D = -b * D * g
    d_gap = -b * (D_star - D) * f * fast
    return g, np.stack([d_f, d_D, d_gap], axis=-2)


SIGNALS: dict[str, Signal] = {
    "biexponential": Signal(
        parameters=("f", "D", "D_star"),
        curve=biexponential,
        values=_biexponential_values,
        theta=_biexponential_theta,
        jacobian=_biexponential_jacobian,
    ),
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
        The signal's parameters, by name: ``f`` (1), ``D`` and ``D_star`` (mm²/s).

    Returns
    -------
    array_like or DataArray
        Signal in the units of ``S0``, by numpy broadcasting, or by dimension names for DataArrays.

    Raises
    ------
    ValueError
        If a parameter of the signal is missing or unknown.

    Examples
    --------
    >>> predict(np.array([0.0, 50.0, 800.0]), 100.0, f=0.1, D=1e-3, D_star=20e-3).round(1)
    array([100. ,  89.3,  40.4])
    """
    model = SIGNALS[signal]
    if set(values) != set(model.parameters):
        raise ValueError(
            f"the {signal} signal has the parameters {', '.join(model.parameters)}; got {', '.join(values)}"
        )
    return S0 * model.curve(b, *(values[name] for name in model.parameters))
