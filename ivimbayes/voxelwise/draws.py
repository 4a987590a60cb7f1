"""Draws of a population's posterior, laid out for the kernel."""

import math
from typing import NamedTuple

import numpy as np

from ivimbayes.numerics.arithmetic import Array
from ivimbayes.numerics.jit import Matrix, Vector


class NormalPrior(NamedTuple):
    """One normal prior of a voxel, over draws and voxels of a population, for the search of modes.

    Attributes
    ----------
    centre : ndarray (3,)
    around : ndarray (3, 3)
        Mean and inverse covariance of theta.
    middle : ndarray (4,)
        Medians of 1 / sigma², S0 and sigma² / var(S0), and the inverse variance of ln D.
    """

    centre: Vector
    around: Matrix
    middle: Vector


class PopulationBlock(NamedTuple):
    """Draws of a population (N), and what they have in common.

    Attributes
    ----------
    mean : ndarray (3, N)
        Of theta.
    precision : ndarray (6, N)
        Inverse covariance (or scale) of theta: 00, 11, 22, 01, 02, 12.
    constant, shared : ndarray (N,)
        Log-density's terms that depend on no voxel: of theta given the population, and of the signals.
    mean_log : ndarray (10,)
        Mean over the draws of the log-density of a normal population, a polynomial of theta - centre:
        constant, gradient, and minus half the inverse covariance's 00, 11, 22 and minus its 01, 02, 12.
    deviation : ndarray (10, N)
        By how much the polynomial of each draw differs from it.
    mono_constant : ndarray (N,)
        `constant` and `shared` for one compartment.
    noise, S0, ratio : ndarray (N,)
        1 / sigma², mean of S0, and sigma² over the variance of S0.
    mono : ndarray (N,)
        Inverse variance of ln D.
    nu : float
        Degrees of freedom of a Student-t population; 0 for a normal one.
    prior : NormalPrior
    rician : int
        1 for Rician noise, 0 for Gaussian.
    """

    mean: Matrix
    precision: Matrix
    constant: Vector
    shared: Vector
    mean_log: Vector
    deviation: Matrix
    mono_constant: Vector
    noise: Vector
    S0: Vector
    ratio: Vector
    mono: Vector
    nu: float
    prior: NormalPrior
    rician: int


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
) -> PopulationBlock:
    """Choose `count` draws of a population's posterior, in random order, and lay them out.

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
        Number of draws; those given are thinned, evenly over the spread of ln(D* - D), or repeated.
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
    mean_log = curves.mean(axis=1)
    return PopulationBlock(
        np.ascontiguousarray(mu.T),
        inverse,
        constant,
        shared,
        mean_log,
        curves - mean_log[:, None],
        shared - 0.5 * np.log(Sigma[:, 1, 1]) + normaliser(1),
        1 / noise**2, np.full(count, np.mean(S0)), noise**2 / tau**2, 1 / Sigma[:, 1, 1], float(nu),
        NormalPrior(centre, around, np.array(middle)), int(rician),
    )  # fmt: skip
