"""Scratch of the kernel. Draws lie on the last axis of every array, so that loops over them vectorise."""

from typing import NamedTuple

import numpy as np

from ivimbayes.numerics.biexponential import Decays, make_decays
from ivimbayes.numerics.jit import Matrix, Places, Vector
from ivimbayes.numerics.levenberg_marquardt import Search, make_search
from ivimbayes.numerics.steps import Acquisition

WIDTH = 256  # lanes in a block at most; numbers of draws are multiples of it
BINS, TAPS = 64, 32  # of the density of a parameter: bins, half the kernel
CLASSES = 512  # of weights


class Counting(NamedTuple):
    """The part of `Work` that weights and summaries take: few arrays, since each is copied at a call.

    Attributes
    ----------
    sums : ndarray (4, WIDTH)
        The same array as in `Work`.
    bins : ndarray (7, BINS + 2 TAPS + 4)
    place, counts : ndarray of int
    tail, rest : ndarray (N + 1,)
    """

    sums: Matrix
    bins: Matrix
    place: Places
    counts: Places
    tail: Vector
    rest: Vector


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
    counting : Counting
    theta : ndarray (4,)
    stretch, ones : ndarray (4, 2)
    search : Search
    decays : Decays
    matrix : ndarray (N, WIDTH)
        Used for few voxels; its memory is taken when it is.
    normaliser, mono_normaliser : ndarray (WIDTH,)
    """

    x: Matrix
    value: Matrix
    given: Vector
    log_w: Vector
    w: Vector
    square: Vector
    log_q: Vector
    power: Matrix
    curve: Matrix
    slow: Vector
    fast: Vector
    sums: Matrix
    counting: Counting
    theta: Vector
    stretch: Matrix
    ones: Matrix
    search: Search
    decays: Decays
    matrix: Matrix
    normaliser: Vector
    mono_normaliser: Vector


def make_work(acquisition: Acquisition, count: int) -> Work:
    """Allocate scratch for `count` draws."""
    M, S = len(acquisition.b), acquisition.steps.shape[1]
    sums = np.empty((4, WIDTH))
    counting = Counting(
        sums, np.zeros((7, BINS + 2 * TAPS + 4)), np.empty(WIDTH, np.int32),
        np.empty(CLASSES, np.int32), np.empty(count + 1), np.empty(count + 1),
    )  # fmt: skip
    return Work(
        np.zeros((4, count)), np.zeros((4, count)), np.zeros(count), np.empty(count), np.empty(count),
        np.empty(count), np.empty(count), np.empty((2 * S, WIDTH)), np.empty((M, WIDTH)), np.empty(WIDTH),
        np.empty(WIDTH), sums, counting, np.zeros(4), np.ones((4, 2)), np.ones((4, 2)), make_search(4),
        make_decays(acquisition), np.empty((count, WIDTH)), np.empty(WIDTH), np.empty(WIDTH),
    )  # fmt: skip
