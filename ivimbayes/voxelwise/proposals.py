# mypy: disallow_untyped_defs=False
"""Proposals of importance sampling: Student-t densities around modes and draws; compiled."""

import math

import numpy as np

from ivimbayes.numerics.jit import Matrix, Vector, jit, separate
from ivimbayes.numerics.triangular import cholesky, inverse_gram
from ivimbayes.voxelwise.points import NU, Points
from ivimbayes.voxelwise.weights import moments, total_and_squares
from ivimbayes.voxelwise.workspace import WIDTH, Work

KERNELS = 64


@separate()
def spread(
    mode: Vector, L: Matrix, stretch: Matrix, points: Points, P: int, first: int, count: int, x: Matrix
) -> None:
    """Fill in x = mode + L⁻ᵀ u of points first to first + count; u is their z, stretched to each side."""
    for i in range(P - 1, -1, -1):
        inverse, centre, down, up = 1.0 / L[i, i], mode[i], stretch[i, 0], stretch[i, 1]
        z, out = points.z[i, first : first + count], x[i, first : first + count]
        for s in range(count):
            out[s] = z[s] * (up if z[s] > 0.0 else down)
        for k in range(i + 1, P):
            factor, shift, later = L[k, i], L[k, i] * mode[k], x[k, first : first + count]
            for s in range(count):
                out[s] -= factor * later[s] - shift
        for s in range(count):
            out[s] = centre + inverse * out[s]


@jit
def log_determinant(L, P):
    """Log-determinant of a lower triangular matrix."""
    total = 0.0
    for i in range(P):
        total += math.log(L[i, i])
    return total


@jit
def log_proposal(count, points, L, stretch, P, log_q):
    """Log-density of the draws that `spread` makes of the first points."""
    shift = log_determinant(L, P)
    for s in range(count):
        log_q[s] = points.log_q[s] + shift
    for i in range(P):
        z, down, up = points.z[i], math.log(stretch[i, 0]), math.log(stretch[i, 1])
        for s in range(count):
            log_q[s] -= up if z[s] > 0.0 else down


@jit
def spread_parts(modes, factors, share, n, first, count, P, points, ones, x):
    """Draws of the n parts of a mixture, by their shares, at points first to first + count."""
    edge, reached = first, 0.0
    for c in range(n):
        reached += share[c]
        next_edge = first + (count if c == n - 1 else int(round(reached * count)))
        spread(modes[c], factors[c], ones, points, P, edge, next_edge - edge, x)
        edge = next_edge


@separate(allocates=True)
def narrow_proposals(
    count: int, total: float, narrow: float, P: int, centres: Matrix, factor: Matrix, work: Work
) -> bool:
    """Choose `KERNELS` centres by systematic resampling of the draws so far, and the factor that all share.

    Weights are cut off at the total over the root of the count. The factor is that of the inverse of the
    draws' covariance times `narrow`. Returns whether that covariance can be inverted.
    """
    limit, w, mean, cov = total / math.sqrt(count), work.counting.rest, np.empty(4), np.zeros((4, 4))
    for s in range(count):
        w[s] = min(work.w[s], limit)
    total, _ = total_and_squares(w[:count])
    for i in range(P):
        mean[i], _ = moments(count, w, total, work.x[i])
    for i in range(P):
        for j in range(i + 1):
            each = 0.0
            for s in range(count):
                each += w[s] * (work.x[i, s] - mean[i]) * (work.x[j, s] - mean[j])
            cov[i, j] = narrow * each / total
            cov[j, i] = cov[i, j]
        cov[i, i] += 1e-12
    if not (cholesky(cov, P, factor) and cholesky(inverse_gram(factor, P), P, factor)):
        return False
    s, passed = 0, w[0]
    for c in range(KERNELS):
        level = (c + 0.5) / KERNELS * total
        while passed < level and s < count - 1:
            s += 1
            passed += w[s]
        for i in range(P):
            centres[c, i] = work.x[i, s]
    return True


@separate()
def add_students(
    count: int, mode: Vector, factor: Matrix, share: float, P: int, x: Matrix, density: Vector, sums: Matrix
) -> None:
    """Add a part of a mixture's density at the draws x: a Student-t, ``factor`` of its inverse covariance."""
    constant = math.lgamma((NU + P) / 2) - math.lgamma(NU / 2) - P / 2 * math.log(NU * math.pi)
    constant = share * math.exp(constant + log_determinant(factor, P))
    quadratic, z = sums[0], sums[1]
    for o in range(0, count, WIDTH):
        for w in range(WIDTH):
            quadratic[w] = 1.0
        for i in range(P):
            for w in range(WIDTH):
                z[w] = 0.0
            for j in range(i, P):
                slope, shift, row = factor[j, i], factor[j, i] * mode[j], x[j, o : o + WIDTH]
                for w in range(WIDTH):
                    z[w] += slope * row[w] - shift
            for w in range(WIDTH):
                quadratic[w] += z[w] * z[w] * (1.0 / NU)
        out = density[o : o + WIDTH]
        for w in range(WIDTH):  # the power -(NU + P) / 2 for NU = 7
            inverse = 1.0 / quadratic[w]
            square = inverse * inverse
            quadratic[w] = square * square * inverse
            z[w] = math.sqrt(inverse)
        if P == 4:
            for w in range(WIDTH):
                quadratic[w] *= z[w]
        for w in range(WIDTH):
            out[w] += constant * quadratic[w]
