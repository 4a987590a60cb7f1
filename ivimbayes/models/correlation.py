"""Correlations of a voxel's parameters: from partial correlations, drawn, and to a covariance."""

from collections.abc import Callable
from typing import Any

import numpy as np


def pairs(parameters: int) -> list[tuple[int, int]]:
    """Pairs of parameters, row by row of the lower triangle of their correlation: (0, 1), (0, 2) ..."""
    return [(j, i) for i in range(parameters) for j in range(i)]


def beta_shapes(eta: float, parameters: int) -> np.ndarray:
    """Beta shape of each partial correlation, given the parameters before both, under LKJ(eta)."""
    return np.array([eta + (parameters - 2 - j) / 2 for j, _ in pairs(parameters)])


def correlation_cholesky(
    partial: Any, parameters: int, sqrt: Callable[[Any], Any] = np.sqrt
) -> list[list[Any]]:
    """Lower Cholesky factor (row by row) of the correlation with the given partial correlations.

    ``partial[..., n]`` belongs to pair n of `pairs`: i and j > i given the parameters before i. With
    2 Beta - 1 of `beta_shapes` the correlation is LKJ(eta) (Lewandowski, Kurowicka and Joe 2009).
    """
    rows: list[list[Any]] = []
    n = 0
    for i in range(parameters):
        row, rest = [], 1.0
        for _ in range(i):
            row.append(partial[..., n] * rest)
            rest = rest * sqrt(1 - partial[..., n] ** 2)
            n += 1
        rows.append([*row, rest, *[0.0] * (parameters - 1 - i)])
    return rows


def correlations(partial: np.ndarray, parameters: int) -> np.ndarray:
    """Correlations (..., pair) from partial correlations (..., pair)."""
    L = correlation_cholesky(partial, parameters)
    found = [
        np.broadcast_to(sum(L[i][k] * L[j][k] for k in range(i + 1)), partial.shape[:-1])
        for i, j in pairs(parameters)
    ]
    return np.stack(found, axis=-1) if found else np.zeros((*partial.shape[:-1], 0))


def partial_correlations(correlation: np.ndarray, parameters: int) -> np.ndarray:
    """Inverse of `correlations`: partial correlations (..., pair) from correlations (..., pair)."""
    L = np.linalg.cholesky(covariance(np.ones((*correlation.shape[:-1], parameters)), correlation))
    rest = [np.sqrt(1 - (L[..., j, :i] ** 2).sum(axis=-1)) for i, j in pairs(parameters)]
    found = [L[..., j, i] / length for (i, j), length in zip(pairs(parameters), rest, strict=True)]
    return np.stack(found, axis=-1) if found else np.zeros((*correlation.shape[:-1], 0))


def draw_correlation(eta: float, size: int, rng: np.random.Generator, parameters: int = 3) -> np.ndarray:
    """Draw correlations (size, pair) of LKJ(eta) matrices."""
    drawn = [2 * rng.beta(shape, shape, size) - 1 for shape in beta_shapes(eta, parameters)]
    partial = np.stack(drawn, axis=-1) if drawn else np.zeros((size, 0))
    return correlations(partial, parameters)


def covariance(sd: np.ndarray, correlation: np.ndarray) -> np.ndarray:
    """Covariance (..., parameter, parameter) from sd (..., parameter) and correlation (..., pair)."""
    P = sd.shape[-1]
    C = np.broadcast_to(np.eye(P), (*sd.shape[:-1], P, P)).copy()
    for n, (i, j) in enumerate(pairs(P)):
        C[..., i, j] = C[..., j, i] = correlation[..., n]
    return np.asarray(sd[..., :, None] * C * sd[..., None, :])
