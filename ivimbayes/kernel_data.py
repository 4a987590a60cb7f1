"""What the kernel of the maps works on: a protocol, a population's draws, quasi-random points, scratch.

The draws lie on the last axis of every array; see `lanes`.
"""

import math
from functools import cache
from typing import NamedTuple

import numpy as np
from scipy.stats import chi, norm, qmc
from scipy.stats import f as fisher

from ivimbayes.numerics.arithmetic import Array
from ivimbayes.numerics.steps import B_DIGITS, step_table

WIDTH = 256  # lanes in a block at most; numbers of draws are multiples of it
NU = 7.0  # of the proposal
BINS, TAPS = 64, 32  # of the density of a parameter: bins, half the kernel
CLASSES = 512  # of weights
SCRAMBLE = 89  # of 120 scramblings tried, the one whose intervals come closest to those of 16 384 draws


class Protocol(NamedTuple):
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


class Draws(NamedTuple):
    """Draws of a population, one a lane (N), and what they have in common.

    Attributes
    ----------
    mean : ndarray (3, N)
        Of theta.
    precision : ndarray (6, N)
        Inverse covariance (or scale) of theta: 00, 11, 22, 01, 02, 12.
    constant, shared : ndarray (N,)
        Log-density's terms that depend on no voxel: of theta given the population, and of the signals.
    typical : ndarray (10,)
        Mean over the draws of the log-density of a normal population, a polynomial of theta - centre:
        constant, gradient, and minus half the inverse covariance's 00, 11, 22 and minus its 01, 02, 12.
    apart : ndarray (10, N)
        By how much the polynomial of each draw differs from it.
    lone_constant : ndarray (N,)
        `constant` and `shared` for one compartment.
    noise, S0, ratio : ndarray (N,)
        1 / sigma², mean of S0, and sigma² over the variance of S0.
    lone : ndarray (N,)
        Inverse variance of ln D.
    nu : float
        Degrees of freedom of a Student-t population; 0 for a normal one.
    centre : ndarray (3,)
    around : ndarray (3, 3)
        Mean and inverse covariance of theta over draws and voxels, for the search of modes.
    middle : ndarray (4,)
        Medians of ``noise``, ``S0`` and ``ratio``, and the inverse variance of ln D over draws and voxels.
    """

    mean: Array
    precision: Array
    constant: Array
    shared: Array
    typical: Array
    apart: Array
    lone_constant: Array
    noise: Array
    S0: Array
    ratio: Array
    lone: Array
    nu: float
    centre: Array
    around: Array
    middle: Array


class Points(NamedTuple):
    """Quasi-random draws of a standard Student-t, common to all voxels.

    Attributes
    ----------
    z : ndarray (P, N)
    log_q : ndarray (N,)
        Their log-density.
    normal : ndarray (N,)
        Standard normal numbers, for S0.
    """

    z: Array
    log_q: Array
    normal: Array


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


def make_work(protocol: Protocol, count: int) -> Work:
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


def make_protocol(b: Array, averages: Array, rician: bool = False) -> Protocol:
    """Sort and merge the b values of a scan, shape (K,)."""
    distinct, place = np.unique(np.asarray(b, float).round(B_DIGITS), return_inverse=True)
    averages = np.asarray(averages, float)
    step, steps = step_table(distinct)
    weight = np.bincount(place, averages)
    return Protocol(
        distinct, weight, step, np.ascontiguousarray(steps), place.astype(float), averages, int(rician)
    )


@cache
def make_points(dims: int, count: int, seed: int, nu: float = NU) -> Points:
    """Draw scrambled Sobol points and turn them to a Student-t along their radius."""
    u = np.clip(qmc.Sobol(dims + 1, seed=SCRAMBLE + seed).random(count), 1e-12, 1 - 1e-12)
    z = norm.ppf(u[:, :dims])
    radius = np.sqrt((z**2).sum(axis=1))
    # the radius of a Student-t with the same probability, of which the square over dims is F-distributed
    new = np.sqrt(dims * fisher.ppf(np.clip(chi.cdf(radius, dims), 0, 1 - 1e-13), dims, nu))
    z *= (new / radius)[:, None]
    constant = math.lgamma((nu + dims) / 2) - math.lgamma(nu / 2) - dims / 2 * math.log(nu * math.pi)
    log_q = constant - 0.5 * (nu + dims) * np.log1p((z**2).sum(axis=1) / nu)
    return Points(np.ascontiguousarray(z.T), log_q, norm.ppf(u[:, dims]))


def make_draws(
    mean: Array,
    covariance: Array,
    sigma: Array,
    S0: Array,
    S0_sd: Array,
    averages: Array,
    count: int,
    *,
    nu: float = 0.0,
    rician: bool = False,
    seed: int = 0,
) -> Draws:
    """Lay draws of a population's posterior into `count` lanes, in random order.

    Parameters
    ----------
    mean : ndarray (draw, 3)
    covariance : ndarray (draw, 3, 3)
        Of theta between voxels; the scale matrix of a Student-t population.
    sigma, S0, S0_sd : ndarray (draw,)
        Noise of one measurement; mean and standard deviation of S0.
    averages : ndarray (K,)
        Images averaged into each measurement.
    count : int
        Lanes; the draws are thinned, evenly over the spread of ln(D* - D), or repeated.
    nu : float
        Degrees of freedom of a Student-t population.
    rician : bool
    seed : int
        Of the order.
    """
    R, K = len(mean), len(averages)
    # evenly over the spread of ln(D* - D) between voxels, on which the tail of D* hangs
    even = np.argsort(covariance[:, 2, 2], kind="stable")[np.linspace(0, R - 1, count).round().astype(int)]
    chosen = np.random.default_rng([seed, count]).permutation(even if count <= R else np.arange(count) % R)
    mu, Sigma, noise = mean[chosen], covariance[chosen], sigma[chosen]
    # S0 has one population, of all draws: how bright a voxel is must not choose among draws of theta's
    tau = math.sqrt(np.mean(S0_sd**2) + np.var(S0))
    precision = np.linalg.inv(Sigma)
    heavy = nu > 0

    def normaliser(dims: int) -> float:
        if not heavy:
            return -dims / 2 * math.log(2 * math.pi)
        return math.lgamma((nu + dims) / 2) - math.lgamma(nu / 2) - dims / 2 * math.log(nu * math.pi)

    if rician:  # the S0 prior is a normal density; sum ln(n y) of the signals is left out
        shared = -2 * K * np.log(noise) + np.log(averages).sum() - math.log(tau) - 0.5 * math.log(2 * math.pi)
    else:
        shared = -(K - 1) * np.log(noise) - math.log(tau) - 0.5 * K * math.log(2 * math.pi)
        shared += 0.5 * np.log(averages).sum()
    widening = nu / (nu - 2) if heavy else 1.0
    d = mean - mean.mean(axis=0)  # without BLAS, whose sums depend on how busy its threads are
    total = widening * covariance.mean(axis=0) + np.einsum("ri,rj->ij", d, d) / R
    around = np.linalg.inv(total)
    middle = [np.median(1 / sigma**2), np.mean(S0), np.median(sigma**2) / tau**2, 1 / total[1, 1]]
    constant = normaliser(3) - 0.5 * np.linalg.slogdet(Sigma)[1]
    centre = mean.mean(axis=0)
    gradient = np.einsum("rij,rj->ri", precision, mu - centre)
    away = 0.5 * np.einsum("ri,ri->r", gradient, mu - centre)
    pairs = ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2))
    inverse = np.stack([precision[:, i, j] for i, j in pairs])
    curves = np.stack([constant - away, *gradient.T, *(-0.5 * inverse[:3]), *-inverse[3:]])
    typical = curves.mean(axis=1)
    return Draws(
        np.ascontiguousarray(mu.T),
        inverse,
        constant,
        shared,
        typical,
        curves - typical[:, None],
        shared - 0.5 * np.log(Sigma[:, 1, 1]) + normaliser(1),
        1 / noise**2, np.full(count, np.mean(S0)), noise**2 / tau**2, 1 / Sigma[:, 1, 1], float(nu),
        centre, around, np.array(middle),
    )  # fmt: skip
