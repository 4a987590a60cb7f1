# mypy: disallow_untyped_defs=False
"""Log-density of a study's hyperparameters, everything else integrated out, compiled.

A scan's region has the mean theta m = B' x + u + e: effects B of the scan's row x of the design, its
subject's own u ~ Normal(0, F F'), and what differs between sessions, e ~ Normal(0, diag(omega²)). What its
fit knows of m is a Gaussian likelihood, exp(eta' m - m' Lambda m / 2). Then u, e and, with a normal prior, B
are integrated out in closed form; what is left depends on F and omega alone.
"""

import math

import numpy as np

from ivimbayes.models.correlation import beta_shapes, correlation_cholesky
from ivimbayes.numerics.jit import allocating_jit, jit
from ivimbayes.numerics.triangular import cholesky, forward_columns


@jit
def _factor(A, K):
    """Lower Cholesky factor K of A, and the sum of the logarithms of its diagonal; NaN if there is none."""
    P, total = A.shape[0], 0.0
    if not cholesky(A, P, K):
        return math.nan
    for i in range(P):
        total += math.log(K[i, i])
    return total


@jit
def _without_e(omega, Lambda, eta, M, K, R, each, rest):
    """Precision and shift of a scan's likelihood with e integrated out, into each and rest; a constant.

    M, K (P, P) and R (P, P + 1) are scratch.
    """
    P = len(omega)
    for i in range(P):
        for j in range(P):
            R[i, j] = omega[i] * Lambda[i, j]
            M[i, j] = R[i, j] * omega[j]
        M[i, i] += 1.0
        R[i, P] = omega[i] * eta[i]
    c = -_factor(M, K)
    forward_columns(K, R)
    for i in range(P):
        c += 0.5 * R[i, P] ** 2
        rest[i] = eta[i]
        for j in range(P):
            rest[i] -= R[j, i] * R[j, P]
            each[i, j] = Lambda[i, j]
            for k in range(P):
                each[i, j] -= R[k, i] * R[k, j]
    return c


@jit
def _inside(F, L, M):
    """M = I + F' L F, of a lower triangle F."""
    P = F.shape[0]
    for i in range(P):
        for j in range(P):
            M[i, j] = 1.0 if i == j else 0.0
            for k in range(i, P):
                for m in range(j, P):
                    M[i, j] += F[k, i] * L[k, m] * F[m, j]


@allocating_jit
def collect_terms(F, omega, Lambda, eta, x, start, G, h):
    """Integrate u and e out: the log-likelihood is c + h' beta - beta' G beta / 2, of which c is returned.

    Parameters
    ----------
    F : ndarray (P, P)
        Lower triangle; F F' is the covariance between subjects.
    omega : ndarray (P,)
        Standard deviations between the sessions of a subject.
    Lambda, eta : ndarray (scan, P, P), (scan, P)
        The likelihood of each scan's mean.
    x : ndarray (scan, q)
        Rows of the design.
    start : ndarray of int (subject + 1,)
        Where each subject's scans begin.
    G, h : ndarray (P q, P q), (P q,)
        Filled, for beta in the order of parameter, then effect.
    """
    P, q = F.shape[0], x.shape[1]
    Q = P * q
    M, K, R = np.zeros((P, P)), np.zeros((P, P)), np.zeros((P, P + 1))
    L, total, each, rest = np.zeros((P, P)), np.zeros((P, Q + 1)), np.zeros((P, P)), np.zeros(P)
    moved = np.zeros((P, Q + 1))
    c = 0.0
    G[:] = 0.0
    h[:] = 0.0
    for s in range(len(start) - 1):
        L[:] = 0.0
        total[:] = 0.0  # sum of Lambda x' beside, in the last column, that of eta
        for n in range(start[s], start[s + 1]):
            c += _without_e(omega, Lambda[n], eta[n], M, K, R, each, rest)
            for i in range(P):
                total[i, Q] += rest[i]
                for a in range(q):
                    h[i * q + a] += rest[i] * x[n, a]
                for j in range(P):
                    L[i, j] += each[i, j]
                    for a in range(q):
                        value = each[i, j] * x[n, a]
                        total[i, j * q + a] += value
                        for b in range(q):
                            G[i * q + b, j * q + a] += value * x[n, b]
        _inside(F, L, M)
        for i in range(P):
            for a in range(Q + 1):
                value = 0.0
                for k in range(i, P):
                    value += F[k, i] * total[k, a]
                moved[i, a] = value
        c -= _factor(M, K)
        forward_columns(K, moved)
        for k in range(P):
            v = moved[k, Q]
            c += 0.5 * v * v
            for a in range(Q):
                h[a] -= moved[k, a] * v
                for b in range(Q):
                    G[a, b] -= moved[k, a] * moved[k, b]
    return c


def marginal(
    F: np.ndarray,
    omega: np.ndarray,
    data: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray],
    mean: np.ndarray,
    precision: np.ndarray,
) -> tuple[float, np.ndarray, np.ndarray]:
    """Log-likelihood of F and omega with the effects integrated out, and the effects' posterior given them.

    Parameters
    ----------
    F, omega : ndarray (P, P), (P,)
    data : tuple
        ``Lambda``, ``eta``, ``x``, ``start`` as `collect_terms` takes them.
    mean, precision : ndarray (P q,)
        Normal prior of the effects, independent.

    Returns
    -------
    float
        Up to a constant that depends on neither.
    ndarray (P q,), (P q, P q)
        Mean of the effects, and the lower Cholesky factor of their precision.
    """
    size = len(mean)
    G, h = np.empty((size, size)), np.empty(size)
    c = collect_terms(F, omega, *data, G, h)
    factor = np.linalg.cholesky(G + np.diag(precision))
    right = h + precision * mean
    half = np.linalg.solve(factor, right)
    return c + 0.5 * half @ half - np.log(np.diag(factor)).sum(), np.linalg.solve(factor.T, half), factor


@allocating_jit
def draw_means(F, omega, Lambda, eta, x, start, beta, normal, out):
    """Draw every scan's mean given F, omega and the effects.

    Parameters
    ----------
    F, omega, Lambda, eta, x, start
        As in `collect_terms`.
    beta : ndarray (P, q)
        Effects.
    normal : ndarray (scan + subject, P)
        Standard normal numbers: of the scans, then of the subjects.
    out : ndarray (scan, P)
        Filled.
    """
    P, q, scans = F.shape[0], x.shape[1], len(eta)
    M, K, R = np.zeros((P, P)), np.zeros((P, P)), np.zeros((P, P + 1))
    L, e, u, z, fixed = np.zeros((P, P)), np.zeros(P), np.zeros(P), np.zeros(P), np.zeros(P)
    each, rest = np.zeros((P, P)), np.zeros(P)
    for s in range(len(start) - 1):
        L[:] = 0.0
        e[:] = 0.0
        for n in range(start[s], start[s + 1]):  # the subject given all of its scans, e integrated out
            for i in range(P):
                fixed[i] = 0.0
                for a in range(q):
                    fixed[i] += beta[i, a] * x[n, a]
            for i in range(P):
                z[i] = eta[n, i]
                for j in range(P):
                    z[i] -= Lambda[n, i, j] * fixed[j]
            _without_e(omega, Lambda[n], z, M, K, R, each, rest)
            for i in range(P):
                e[i] += rest[i]
                for j in range(P):
                    L[i, j] += each[i, j]
        _inside(F, L, M)
        for i in range(P):
            z[i] = 0.0
            for k in range(i, P):
                z[i] += F[k, i] * e[k]
        _draw(M, K, z, normal[scans + s])
        for i in range(P):
            u[i] = 0.0
            for k in range(i + 1):
                u[i] += F[i, k] * z[k]
        for n in range(start[s], start[s + 1]):  # then each scan given the subject
            for i in range(P):
                fixed[i] = u[i]
                for a in range(q):
                    fixed[i] += beta[i, a] * x[n, a]
            for i in range(P):
                value = eta[n, i]
                for j in range(P):
                    value -= Lambda[n, i, j] * fixed[j]
                    M[i, j] = omega[i] * Lambda[n, i, j] * omega[j]
                M[i, i] += 1.0
                z[i] = omega[i] * value
            _draw(M, K, z, normal[n])
            for i in range(P):
                out[n, i] = fixed[i] + omega[i] * z[i]


@jit
def _draw(M, K, z, normal):
    """Replace z by a draw of Normal(M⁻¹ z, M⁻¹)."""
    P = len(z)
    _factor(M, K)
    for i in range(P):
        for k in range(i):
            z[i] -= K[i, k] * z[k]
        z[i] /= K[i, i]
    for i in range(P - 1, -1, -1):
        z[i] += normal[i]
        for k in range(i + 1, P):
            z[i] -= K[k, i] * z[k]
        z[i] /= K[i, i]


ETA = 2.0  # LKJ shape of the correlation between subjects


WITHIN = 0.5  # scale of the sd between sessions, over that between subjects


Data = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]  # Lambda, eta, x, start


class Density:
    """Posterior density of one region's hyperparameters: ln sd and correlations of subjects, ln sd within.

    Parameters
    ----------
    data : tuple
        ``Lambda``, ``eta``, ``x``, ``start``, as `collect_terms` takes them.
    centre, width, spread : ndarray (P,)
        The tissue's prior.
    repeated : bool
        Whether a subject has two scans, so that there are sessions to tell apart.
    """

    def __init__(
        self,
        data: Data,
        centre: np.ndarray,
        width: np.ndarray,
        spread: np.ndarray,
        repeated: bool,
    ) -> None:
        P, q = len(centre), data[2].shape[1]
        self.data, self.P, self.repeated = data, P, repeated
        self.scale = np.concatenate([spread, WITHIN * spread]) if repeated else spread
        self.shapes = beta_shapes(ETA, P)
        mean, sd = np.zeros((P, q)), np.repeat(spread[:, None], q, axis=1)
        mean[:, 0], sd[:, 0] = centre, width
        self.mean, self.precision = mean.ravel(), 1 / sd.ravel() ** 2
        self.start = np.concatenate([np.log(0.3 * self.scale), np.zeros(len(self.shapes))])

    def split(self, point: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Give standard deviations between subjects, partial correlations, F, standard deviations within."""
        P, sd = self.P, np.exp(point[: len(self.scale)])
        partial = np.tanh(point[len(self.scale) :])
        F = sd[:P, None] * np.array(correlation_cholesky(partial, P), float)
        return sd[:P], partial, F, sd[P:] if self.repeated else np.zeros(P)

    def __call__(self, point: np.ndarray) -> float:
        """Log-density, up to a constant."""
        logs, z = point[: len(self.scale)], point[len(self.scale) :]
        if logs.max() > 5 or np.abs(z).max(initial=0) > 15:
            return -np.inf
        _, _, F, omega = self.split(point)
        prior = (logs - 0.5 * np.exp(2 * logs) / self.scale**2).sum()
        prior -= (2 * self.shapes * np.logaddexp(z, -z)).sum()  # Beta density and its Jacobian, in atanh
        try:
            value = prior + marginal(F, omega, self.data, self.mean, self.precision)[0]
        except np.linalg.LinAlgError:
            return -np.inf
        return float(value) if np.isfinite(value) else -np.inf
