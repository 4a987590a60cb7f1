"""What the kernel of the maps works on: a protocol, a population's draws, quasi-random points, scratch.

The draws lie on the last axis of every array; see `lanes`.
"""

from typing import NamedTuple

import numpy as np

from ivimbayes.numerics.arithmetic import Array
from ivimbayes.numerics.steps import B_DIGITS, step_table

WIDTH = 256  # lanes in a block at most; numbers of draws are multiples of it
BINS, TAPS = 64, 32  # of the density of a parameter: bins, half the kernel
CLASSES = 512  # of weights


class Acquisition(NamedTuple):
    """What all voxels of a scan share. M distinct b values, K measurements.

    Attributes
    ----------
    b, weight : ndarray (M,)
        Distinct b values (s/mm²), rising, and the images averaged into each.
    step : ndarray (M,)
    steps : ndarray (3, S)
        From `step_table`.
    place, averages : ndarray (K,)
        Which b value a measurement is at, and the images averaged into it.
    rician : int
        1 for Rician noise, 0 for Gaussian.
    """

    b: Array
    weight: Array
    step: Array
    steps: Array
    place: Array
    averages: Array
    rician: int


class Work(NamedTuple):
    """Scratch of one thread, for N draws: see `make_work`.

    Attributes
    ----------
    x, value : ndarray (4, N)
        Theta (and S0, Rician noise) of the draws; their f, D, D*, S0.
    given, log_w, w, square, log_q : ndarray (N,)
    power : ndarray (2 S, WIDTH)
        Decays over the steps between b values.
    curve : ndarray (M, WIDTH)
    slow, fast : ndarray (WIDTH,)
    sums : ndarray (4, WIDTH)
    bins : ndarray (7, BINS + 2 TAPS + 4)
    place, counts : ndarray of int
    tail, rest : ndarray (N + 1,)
    theta : ndarray (4,)
    L, H : ndarray (4, 4)
    stretch, ones : ndarray (4, 2)
    search : ndarray (14, 4 or S)
        For `find_mode`.
    matrix : ndarray (N, WIDTH)
        Used for few voxels; its memory is taken when it is.
    normaliser, lone_normaliser : ndarray (WIDTH,)
    """

    x: Array
    value: Array
    given: Array
    log_w: Array
    w: Array
    square: Array
    log_q: Array
    power: Array
    curve: Array
    slow: Array
    fast: Array
    sums: Array
    bins: Array
    place: np.ndarray
    counts: np.ndarray
    tail: Array
    rest: Array
    theta: Array
    L: Array
    H: Array
    stretch: Array
    ones: Array
    search: Array
    matrix: Array
    normaliser: Array
    lone_normaliser: Array


def make_work(protocol: Acquisition, count: int) -> Work:
    """Allocate scratch for `count` draws."""
    M, S = len(protocol.b), protocol.steps.shape[1]
    return Work(
        np.zeros((4, count)), np.zeros((4, count)), np.zeros(count), np.empty(count), np.empty(count),
        np.empty(count), np.empty(count), np.empty((2 * S, WIDTH)), np.empty((M, WIDTH)), np.empty(WIDTH),
        np.empty(WIDTH), np.empty((4, WIDTH)), np.zeros((7, BINS + 2 * TAPS + 4)), np.empty(WIDTH, np.int32),
        np.empty(CLASSES, np.int32), np.empty(count + 1), np.empty(count + 1), np.zeros(4), np.zeros((4, 4)),
        np.zeros((4, 4)), np.ones((4, 2)), np.ones((4, 2)), np.empty((14, max(4, S))),
        np.empty((count, WIDTH)), np.empty(WIDTH), np.empty(WIDTH),
    )  # fmt: skip


def make_protocol(b: Array, averages: Array, rician: bool = False) -> Acquisition:
    """Sort and merge the b values of a scan, shape (K,)."""
    distinct, place = np.unique(np.asarray(b, float).round(B_DIGITS), return_inverse=True)
    averages = np.asarray(averages, float)
    step, steps = step_table(distinct)
    weight = np.bincount(place, averages)
    return Acquisition(
        distinct, weight, step, np.ascontiguousarray(steps), place.astype(float), averages, int(rician)
    )
