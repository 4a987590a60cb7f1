# mypy: disallow_untyped_defs=False
"""Compiled algebra of small triangular matrices: one matrix, or one for each voxel of a block."""

import math

import numpy as np

from ivimbayes.numerics.jit import allocating_jit, inlined_jit, jit


@inlined_jit
def cholesky(A, P, L):
    """Factor one symmetric matrix, ``A = L L'``, of which the upper triangle is read.

    Returns whether it is positive definite. ``L`` is lower triangular; P is the number of rows.
    """
    for j in range(P):
        for i in range(j, P):
            total = A[j, i]
            for k in range(j):
                total -= L[i, k] * L[j, k]
            if i == j:
                if not total > 0.0:
                    return False
                L[j, j] = math.sqrt(total)
            else:
                L[i, j] = total / L[j, j]
    return True


@inlined_jit
def forward(L, P, x):
    """Replace the vector x by ``L⁻¹ x``; the squared length of the result."""
    square = 0.0
    for i in range(P):
        for k in range(i):
            x[i] -= L[i, k] * x[k]
        x[i] /= L[i, i]
        square += x[i] * x[i]
    return square


@jit
def forward_columns(L, X):
    """Replace the columns of the matrix X by ``L⁻¹ X``."""
    for c in range(X.shape[1]):
        for i in range(X.shape[0]):
            value = X[i, c]
            for k in range(i):
                value -= L[i, k] * X[k, c]
            X[i, c] = value / L[i, i]


@inlined_jit
def backward(L, P, x):
    """Replace the vector x by ``L⁻ᵀ x``."""
    for i in range(P - 1, -1, -1):
        for k in range(i + 1, P):
            x[i] -= L[k, i] * x[k]
        x[i] /= L[i, i]


@jit
def cholesky_blocks(S, Lambda, F, inverse):
    """Factor ``F F' = S + Lambda`` for each voxel, Lambda (P, P, voxel); ``inverse`` of F's diagonal."""
    lanes = inverse.shape[1]
    for j in range(S.shape[0]):
        for i in range(j, S.shape[0]):
            for w in range(lanes):
                F[i, j, w] = S[i, j] + Lambda[i, j, w]
            for k in range(j):
                for w in range(lanes):
                    F[i, j, w] -= F[i, k, w] * F[j, k, w]
            if i == j:
                for w in range(lanes):
                    F[j, j, w] = math.sqrt(F[j, j, w])
                for w in range(lanes):
                    inverse[j, w] = 1.0 / F[j, j, w]
            else:
                for w in range(lanes):
                    F[i, j, w] *= inverse[j, w]


@jit
def solve_lower(F, inverse, a, out):
    """``out = F⁻¹ a``."""
    lanes = a.shape[1]
    for i in range(a.shape[0]):
        for w in range(lanes):
            out[i, w] = a[i, w]
        for k in range(i):
            for w in range(lanes):
                out[i, w] -= F[i, k, w] * out[k, w]
        for w in range(lanes):
            out[i, w] *= inverse[i, w]


@jit
def solve_upper(F, inverse, a, out):
    """``out = F⁻ᵀ a``."""
    lanes = a.shape[1]
    for i in range(a.shape[0] - 1, -1, -1):
        for w in range(lanes):
            out[i, w] = a[i, w]
        for k in range(i + 1, a.shape[0]):
            for w in range(lanes):
                out[i, w] -= F[k, i, w] * out[k, w]
        for w in range(lanes):
            out[i, w] *= inverse[i, w]


@jit
def cholesky_adjoint(F, inverse, F_bar, Q, X):
    """Adjoint of A = F F' from that of F, into X: F⁻ᵀ Φ(Fᵀ F̄) F⁻¹ (Murray 2016, arXiv:1602.07527).

    The sum of X and its transpose, halved, is the symmetric adjoint. ``Q`` is scratch.
    """
    lanes = inverse.shape[1]
    P = inverse.shape[0]
    for i in range(P):
        for j in range(i + 1):
            for w in range(lanes):
                Q[i, j, w] = F[i, i, w] * F_bar[i, j, w]
            for k in range(i + 1, P):
                for w in range(lanes):
                    Q[i, j, w] += F[k, i, w] * F_bar[k, j, w]
        for w in range(lanes):
            Q[i, i, w] *= 0.5
        for j in range(i + 1, P):
            for w in range(lanes):
                Q[i, j, w] = 0.0
    for j in range(P):
        for i in range(P - 1, -1, -1):
            for w in range(lanes):
                X[i, j, w] = Q[i, j, w]
            for k in range(i + 1, P):
                for w in range(lanes):
                    X[i, j, w] -= F[k, i, w] * X[k, j, w]
            for w in range(lanes):
                X[i, j, w] *= inverse[i, w]
    for i in range(P):
        for j in range(P - 1, -1, -1):
            for k in range(j + 1, P):
                for w in range(lanes):
                    X[i, j, w] -= X[i, k, w] * F[k, j, w]
            for w in range(lanes):
                X[i, j, w] *= inverse[j, w]


@allocating_jit
def partial_cholesky(r, P):
    """Lower Cholesky factor of a correlation matrix from its partial correlations, row by row."""
    C, n = np.zeros((P, P)), 0
    for i in range(P):
        rest = 1.0
        for j in range(i):
            C[i, j] = r[n] * rest
            rest *= math.sqrt((1.0 - r[n]) * (1.0 + r[n]))
            n += 1
        C[i, i] = rest
    return C


@allocating_jit
def product(A, B, P):
    """Multiply the first P rows and columns of two matrices, without BLAS."""
    out = np.zeros((P, P))
    for i in range(P):
        for j in range(P):
            for k in range(P):
                out[i, j] += A[i, k] * B[k, j]
    return out


@allocating_jit
def multiply(A, x, P):
    """Multiply the first P rows and columns of a matrix by a vector."""
    out = np.zeros(P)
    for i in range(P):
        for k in range(P):
            out[i] += A[i, k] * x[k]
    return out


@allocating_jit
def inverse_gram(L, P):
    """(L L')⁻¹ of a lower triangle of P rows."""
    inverse, S = np.zeros((P, P)), np.zeros((P, P))
    for j in range(P):
        inverse[j, j] = 1.0 / L[j, j]
        for i in range(j + 1, P):
            for k in range(j, i):
                inverse[i, j] -= L[i, k] * inverse[k, j]
            inverse[i, j] /= L[i, i]
    for i in range(P):
        for j in range(P):
            for k in range(max(i, j), P):
                S[i, j] += inverse[k, i] * inverse[k, j]
    return S
