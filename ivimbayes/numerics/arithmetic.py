# mypy: disallow_untyped_defs=False
"""Compiled arithmetic on many numbers at once: lanes on the last axis, so that inner loops vectorise."""

import math
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from ivimbayes.numerics.jit import inlined_jit, jit

LOG2_E = 1 / math.log(2)
LN2_HIGH, LN2_LOW = 6.93147180369123816490e-01, 1.90821492927058770002e-10  # Cody and Waite (1980)
EXP_RANGE = 708.0
TAYLOR = tuple(1 / math.factorial(n) for n in range(13))
ROUND = 1.5 * 2.0**52
Array = np.ndarray[Any, np.dtype[np.float64]]


@intrinsic
def _as_bits(context, x):
    """Take a float64 for the int64 of the same bits."""
    return types.int64(types.float64), lambda _, builder, signature, x: builder.bitcast(x[0], ir.IntType(64))


@intrinsic
def _as_float(context, x):
    """Take an int64 for the float64 of the same bits."""
    return types.float64(types.int64), lambda _, builder, signature, x: builder.bitcast(x[0], ir.DoubleType())


@jit
def exponential(x):
    """Calculate exp(x) within two units in the last place; beyond ±708 it is held.

    exp(x) = 2ⁿ exp(r), |r| ≤ ln 2 / 2, by Taylor's series. Adding `ROUND` rounds to an integer and leaves
    that in the lowest bits. There is no branch, so that loops over it vectorise.
    """
    x = min(max(x, -EXP_RANGE), EXP_RANGE)
    rounded = x * LOG2_E + ROUND
    n = rounded - ROUND
    r = (x - n * LN2_HIGH) - n * LN2_LOW
    p = TAYLOR[12]
    p = p * r + TAYLOR[11]
    p = p * r + TAYLOR[10]
    p = p * r + TAYLOR[9]
    p = p * r + TAYLOR[8]
    p = p * r + TAYLOR[7]
    p = p * r + TAYLOR[6]
    p = p * r + TAYLOR[5]
    p = p * r + TAYLOR[4]
    p = p * r + TAYLOR[3]
    p = p * r + TAYLOR[2]
    p = p * r + 1.0
    return (p * r + 1.0) * _as_float((_as_bits(rounded) + 1023) << 52)


@jit
def logistic(x):
    """Calculate 1 / (1 + exp(-x))."""
    return 1.0 / (1.0 + exponential(-x))


@inlined_jit
def scalar_logistic(x):
    """Calculate 1 / (1 + exp(-x)) with the exponential of the C library, faster where no loop vectorises."""
    return 1.0 / (1.0 + math.exp(-x))


@jit
def exponentials(x, out):
    """Set ``out`` to exp(x); one-dimensional arrays."""
    for i in range(x.size):
        out[i] = exponential(x[i])


LOG_SHIFT = 0x3FF0000000000000 - 0x3FE6A09E667F3BCD  # 1 and the root of a half, as bits
LOG_SERIES = tuple(2 / (2 * n + 1) for n in range(10))


@jit
def logarithm(x):
    """Calculate ln(x), x positive, to a relative error of 1e-15; without a branch, as `exponential`.

    ln(x) = e ln 2 + ln(m), m between the root of a half and of two; ln(m) = 2 artanh(s), s = (m - 1)/(m + 1).
    """
    shifted = _as_bits(x) + LOG_SHIFT
    e = float((shifted >> 52) - 1023)
    m = _as_float(((shifted & 0x000FFFFFFFFFFFFF) + 0x3FE6A09E667F3BCD) & 0x7FFFFFFFFFFFFFFF)
    s = (m - 1.0) / (m + 1.0)
    q = s * s
    p = LOG_SERIES[9]
    p = p * q + LOG_SERIES[8]
    p = p * q + LOG_SERIES[7]
    p = p * q + LOG_SERIES[6]
    p = p * q + LOG_SERIES[5]
    p = p * q + LOG_SERIES[4]
    p = p * q + LOG_SERIES[3]
    p = p * q + LOG_SERIES[2]
    p = p * q + LOG_SERIES[1]
    p = p * q + LOG_SERIES[0]
    return e * LN2_HIGH + (e * LN2_LOW + p * s)


@jit
def logarithms(x, out):
    """Set ``out`` to ln(x); one-dimensional arrays."""
    for i in range(x.size):
        out[i] = logarithm(x[i])
