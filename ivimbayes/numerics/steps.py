"""b values as the compiled functions take them: repeated ones merged, and the few steps between them.

A decay at every b value is a running product over few distinct steps.
"""

from typing import NamedTuple

import numpy as np

from ivimbayes.numerics.arithmetic import Array
from ivimbayes.numerics.jit import Matrix, Vector

B_DIGITS = 6  # b values (s/mm²) that agree to so many decimals are one


class Acquisition(NamedTuple):
    """The b values of a scan: M distinct ones of K measurements.

    Attributes
    ----------
    b, weight : ndarray (M,)
        Distinct b values (s/mm²), rising, and the images averaged into each.
    step : ndarray (M,)
    steps : ndarray (3, S)
        From `step_table`.
    place, averages : ndarray (K,)
        Which b value a measurement is at, and the images averaged into it.
    """

    b: Vector
    weight: Vector
    step: Vector
    steps: Matrix
    place: Vector
    averages: Vector


def make_acquisition(b: Array, averages: Array) -> Acquisition:
    """Sort and merge the b values of a scan, shape (K,)."""
    distinct, place = distinct_b(b)
    averages = np.array(averages, float)  # a copy: compiled code takes contiguous arrays that it may write to
    step, steps = step_table(distinct)
    weight = np.bincount(place, averages)
    return Acquisition(distinct, weight, step, np.ascontiguousarray(steps), place.astype(float), averages)


def distinct_b(b: Array) -> tuple[Array, np.ndarray]:
    """Distinct b values (M,), rising, and which of them each measurement has (K,)."""
    distinct, place = np.unique(np.asarray(b, float).round(B_DIGITS), return_inverse=True)
    return distinct, place


def sum_by_b(values: Array, place: np.ndarray, count: int) -> Array:
    """Sum over the measurements at each of `count` distinct b values: (..., K) to (..., M)."""
    total = np.zeros((*values.shape[:-1], count))
    for measurement, where in enumerate(np.asarray(place).astype(int)):
        total[..., where] += values[..., measurement]
    return total


def step_table(b: Array) -> tuple[Array, Array]:
    """Make a table of the few distinct steps between b values.

    Parameters
    ----------
    b : ndarray (M,)
        Distinct b values, rising.

    Returns
    -------
    step : ndarray (M,)
        Which of the steps leads from the b value before (from 0) to this one; -1 for b = 0.
    steps : ndarray (3, S)
        Distinct steps and what lies between, and the two others whose sum each is; where these are -1, in the
        first columns, it is no such sum.
    """
    difference = np.diff(b, prepend=0.0).round(B_DIGITS)
    simple: list[float] = []
    sums: dict[float, tuple[float, float]] = {}
    for c in (float(d) for d in np.unique(difference) if d > 0):
        found = _as_sum(c, [*simple, *sums])
        if found is None:
            simple.append(c)
        else:
            sums |= found
    order = [*simple, *sums]
    pairs = [[-1, -1] for _ in simple] + [[order.index(part) for part in pair] for pair in sums.values()]
    table = np.array([[c, *pair] for c, pair in zip(order, pairs, strict=True)], float).reshape(-1, 3).T
    return np.array([order.index(d) if d > 0 else -1 for d in difference], float), table


def _as_sum(c: float, known: list[float]) -> dict[float, tuple[float, float]] | None:
    """Write a step as the sum of two that are known, or of one and the sum of two: a product is cheaper."""
    for a in known:
        if (rest := round(c - a, B_DIGITS)) in known:
            return {c: (a, rest)}
    for i, a in enumerate(known):
        for other in known[i:]:
            between = round(a + other, B_DIGITS)
            if (rest := round(c - between, B_DIGITS)) in known or rest == between:
                return {between: (a, other), c: (between, rest)}
    return None
