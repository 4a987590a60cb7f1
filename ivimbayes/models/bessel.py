"""ln I0, the Bessel function of Rician noise: polynomials whose coefficients are stored.

`tests/models/test_noise.py` fits them anew. Two accuracies: to 2e-13 for the density of a fit, and to 1.5e-6
in a single polynomial for the maps, whose weights need no more and which evaluate it most of their time.
"""

from types import SimpleNamespace
from typing import Any

import numpy as np

NUMPY = SimpleNamespace(log=np.log, log1p=np.log1p, where=np.where, maximum=np.maximum, minimum=np.minimum)
BESSEL_SPLIT = 12.0  # below it I0 is a polynomial of z, above of 1/z
COARSE_CENTRE = 1.5
# I0(z) exp(-z) for z below the split, in u = z / 6 - 1.
BESSEL_LOW = (
    0.16665743263982033, -0.08763583998727884, 0.0696606619999466, -0.062175569459386335,
    0.059006730289479364, -0.05825283743544685, 0.05883759762308921, -0.05975657622905407,
    0.059969397445331196, -0.05856884727471022, 0.05503029549532192, -0.04936717521681471,
    0.04208481877105257, -0.034000234203272986, 0.02605874824131072, -0.01901554434459056,
    0.013105876300402084, -0.008412303957133632, 0.005270952005789092, -0.0034307930034360523,
    0.0019268857868473225, -0.0007136761831065049, 0.0003928520385096303, -0.0004615325782544548,
    0.0002105843328579177, 4.032169693097996e-05, -1.4276432480568505e-05, -3.6281217703453836e-05,
    1.4554069438086616e-05,
)  # fmt: skip
# I0(z) exp(-z) sqrt(2 π z) for z above the split, in u = 24 / z - 1.
BESSEL_HIGH = (
    1.005336071832929, 0.005469884440258669, 0.00014033314620232068, 7.012810676276281e-06,
    5.443394910750228e-07, 5.9384669886307756e-08, 8.638676006972126e-09, 1.6029431572658344e-09,
    3.696826337224674e-10, 1.5257776498354058e-10, 8.190494757487875e-11, 1.0020116317993355e-11,
    -7.741678783021926e-12,
)  # fmt: skip
# I0(z) exp(-z) sqrt(1 + 2 π z) for every z of 0 or more, in u = (z - c) / (z + c), c the centre.
COARSE = (
    1.1863490142284996, -0.36484017873159835, 0.04123078640873158, 0.4643983734629903, -0.22651591682621391,
    -0.25630514323596104, -0.1054486067753196, 0.1571387646892088, 0.27351925927911014, 0.1457597591198308,
    -0.21467198116938987, -0.2991210565511121, -0.004025351546293479, 0.19705354281807264,
    0.08357091229857704, -0.04408498923945657, -0.034008499287891104,
)  # fmt: skip


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
