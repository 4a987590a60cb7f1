"""Functions that are compiled apart: results and errors reach their callers."""

import numpy as np
import pytest

from ivimbayes.numerics.jit import allocating_jit, load, separate


@separate(allocates=True)
def sum_of_ones(count: int) -> float:
    ones = np.empty(count)
    for i in range(ones.size):
        ones[i] = 1.0
    return ones.sum()


@allocating_jit
def twice(count):  # type: ignore[no-untyped-def]
    return 2.0 * sum_of_ones(count)


def test_an_error_reaches_the_caller() -> None:
    load(twice)
    assert twice(3) == 6.0
    with pytest.raises(MemoryError):
        twice(2**58)
    assert twice(4) == 8.0
