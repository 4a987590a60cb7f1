"""ln I0, the Bessel function of Rician noise."""

from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.polynomial import chebyshev
from scipy.special import i0e

NUMPY = SimpleNamespace(log=np.log, log1p=np.log1p, where=np.where, maximum=np.maximum, minimum=np.minimum)


BESSEL_SPLIT = 12.0  # below it I0 is a polynomial of z, above of 1/z


def _bessel_series() -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Coefficients of I0(z) exp(-z) to 2e-13 in u = z / 6 - 1, and times sqrt(2 π z) in u = 24 / z - 1."""
    u = np.cos(np.pi * (np.arange(4000) + 0.5) / 4000)
    near, far = 0.5 * BESSEL_SPLIT * (1 + u), 2 * BESSEL_SPLIT / (1 + u)
    series = (
        chebyshev.chebfit(u, i0e(near), 28),
        chebyshev.chebfit(u, i0e(far) * np.sqrt(2 * np.pi * far), 12),
    )
    low, high = (tuple(float(c) for c in chebyshev.cheb2poly(s)) for s in series)
    return low, high


BESSEL_LOW, BESSEL_HIGH = _bessel_series()


def log_i0e(z: Any, xp: Any = NUMPY) -> Any:
    """ln[I0(z) exp(-z)] for z >= 0, within 1e-12."""
    low, high = xp.minimum(z, BESSEL_SPLIT), xp.maximum(z, BESSEL_SPLIT)

    def polynomial(u: Any, coefficients: tuple[float, ...]) -> Any:
        value = 0.0 * u
        for c in reversed(coefficients):
            value = value * u + c
        return value

    near = polynomial(2 * low / BESSEL_SPLIT - 1, BESSEL_LOW)
    far = polynomial(2 * BESSEL_SPLIT / high - 1, BESSEL_HIGH)
    return xp.where(z < BESSEL_SPLIT, xp.log(near), xp.log(far) - 0.5 * xp.log(2 * np.pi * high))
