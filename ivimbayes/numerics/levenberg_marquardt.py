# mypy: disallow_untyped_defs=False
"""Levenberg-Marquardt: one step for one voxel, compiled; and a search for many voxels at once, in NumPy."""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ivimbayes.numerics.arithmetic import Array
from ivimbayes.numerics.jit import Matrix, Vector, inlined_jit
from ivimbayes.numerics.triangular import backward, cholesky, forward

FIRST_DAMPING, LEAST_DAMPING, MOST_DAMPING = 1e-3, 1e-9, 1e9
LONGEST = 2.0  # step along a parameter of theta
NEAR = 1e-4  # a mode is found where a Newton step would lower twice the objective by less


class Search(NamedTuple):
    """Scratch of a search, P parameters at most.

    Attributes
    ----------
    trial, trial_gradient : ndarray (P,)
    trial_H : ndarray (P, P)
        Where the objective is evaluated next; its gradient and Hessian there, of which the upper triangle is
        read.
    gradient, H : ndarray (P,), (P, P)
        Of the best point so far.
    damped, L : ndarray (P, P)
        The damped Hessian and its Cholesky factor.
    step, reach : ndarray (P,)
        The step, and the longest that is taken along each parameter.
    state : ndarray (2,)
        Damping, and the lowest objective so far.
    """

    trial: Vector
    trial_gradient: Vector
    trial_H: Matrix
    gradient: Vector
    H: Matrix
    damped: Matrix
    L: Matrix
    step: Vector
    reach: Vector
    state: Vector


def make_search(P: int) -> Search:
    """Allocate the scratch."""
    return Search(
        np.zeros(P), np.zeros(P), np.zeros((P, P)), np.zeros(P), np.zeros((P, P)), np.zeros((P, P)),
        np.zeros((P, P)), np.zeros(P), np.full(P, LONGEST), np.zeros(2),
    )  # fmt: skip


@inlined_jit
def begin(point, P, search):
    """Begin a search at a point."""
    search.state[0], search.state[1] = FIRST_DAMPING, np.inf
    for i in range(P):
        search.trial[i] = point[i]


@inlined_jit
def accept_and_step(value, P, point, search):
    """Accept or reject the trial point, whose objective is `value`, and make the next one.

    After `begin` the caller evaluates objective, gradient and Hessian at ``search.trial`` and calls this,
    until it returns False. ``point`` is then the best point; the lowest objective is ``search.state[1]``.
    """
    state, H, damped, L, step = search.state, search.H, search.damped, search.L, search.step
    if value <= state[1]:
        state[1], state[0] = value, max(0.1 * state[0], LEAST_DAMPING)
        for i in range(P):
            point[i], search.gradient[i] = search.trial[i], search.trial_gradient[i]
            for j in range(i, P):
                H[i, j] = search.trial_H[i, j]
    else:
        state[0] *= 10.0
        if state[0] > MOST_DAMPING:
            return False
    while True:
        for i in range(P):
            for j in range(i, P):
                damped[i, j] = H[i, j]
            damped[i, i] *= 1.0 + state[0]
        if cholesky(damped, P, L):
            break
        state[0] *= 10.0
        if not state[0] <= MOST_DAMPING:
            return False
    for i in range(P):
        step[i] = search.gradient[i]
    if forward(L, P, step) < NEAR:
        return False
    backward(L, P, step)
    for i in range(P):
        search.trial[i] = point[i] - min(max(step[i], -search.reach[i]), search.reach[i])
    return True


@inlined_jit
def end(P, search):
    """Give the lowest objective, infinite if there is none; ``search.L`` factors the Hessian there."""
    best = search.state[1]
    return best if math.isfinite(best) and cholesky(search.H, P, search.L) else np.inf


def minimise(
    look: Callable[[Array], tuple[Array, ...]],
    theta: Array,
    reach: Array | float,
    steps: int,
    enough: float,
) -> tuple[Array, tuple[Array, ...]]:
    """Minimise the objectives of many voxels at once.

    Parameters
    ----------
    look : callable
        ``look(theta)``: objective (voxel,), downhill gradient (voxel, Q) and Hessian (voxel, Q, Q), whose
        first parameters are theta's (further ones are profiled out), and whatever else the caller wants of
        the end.
    theta : ndarray (voxel, P)
        Starting points.
    reach : float or ndarray (P,)
        Longest step along each parameter.
    steps : int
        Steps at most.
    enough : float
        The search ends when no voxel gains more.

    Returns
    -------
    theta : ndarray (voxel, P)
    found : tuple of ndarray
        What `look` gives there.
    """
    P, found = theta.shape[1], look(theta)
    damping = np.full(len(theta), FIRST_DAMPING)
    for _ in range(steps):
        value, downhill, H = found[:3]
        damped = (
            H + damping[:, None, None] * np.eye(H.shape[1]) * np.diagonal(H, axis1=1, axis2=2)[:, None, :]
        )
        step = np.clip(np.linalg.solve(damped, downhill[..., None])[:, :P, 0], -reach, reach)
        tried = look(theta + step)
        better = tried[0] <= value
        gain = np.where(better, value - tried[0], np.inf)
        theta = np.where(better[:, None], theta + step, theta)
        damping = np.clip(np.where(better, damping / 10, damping * 10), LEAST_DAMPING, MOST_DAMPING)
        found = tuple(
            np.where(better.reshape(-1, *[1] * (new.ndim - 1)), new, old)
            for new, old in zip(tried, found, strict=True)
        )
        if ((gain < enough) | (damping >= MOST_DAMPING)).all():
            break
    return theta, found
