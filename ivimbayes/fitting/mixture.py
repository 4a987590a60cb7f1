"""Starting points of a mixture of two populations: a smaller one that lies apart from the region's."""

from dataclasses import dataclass

import numpy as np

from ivimbayes.fitting.modes import SPREAD_WEIGHT, PopulationMode
from ivimbayes.models.spec import S0_MEAN, S0_MEAN_SD, SECOND_SHAPES, SECOND_SHIFT, ModelSpec

STEPS, FIRST_SHARE, FAR, EVIDENCE = 60, 0.05, 0.1, 1.5


@dataclass(frozen=True)
class MixtureStart:
    """A mode of a region's mixture.

    Attributes
    ----------
    mean : ndarray (parameter,)
        Of theta in the larger population.
    covariance : ndarray (parameter, parameter)
        Of theta within either.
    share : float
        Of voxels in the smaller.
    shift : ndarray (parameter,)
        From the larger's mean to the smaller's.
    log_evidence : float
        Of the Gaussian approximation, up to a constant.
    """

    mean: np.ndarray
    covariance: np.ndarray
    share: float
    shift: np.ndarray
    log_evidence: float


def find_mixture_starts(mode: PopulationMode, spec: ModelSpec) -> tuple[MixtureStart, ...]:
    """Find where a smaller population may lie, by EM over the Gaussian approximations of voxels.

    Parameters
    ----------
    mode : PopulationMode
        Of the region, taken for one normal population.
    spec : ModelSpec
        Model with the region's prior.

    Returns
    -------
    tuple of MixtureStart
        The best first; others only where about as good.
    """
    P = len(mode.mean)
    Lambda, eta = _without_S0(mode, P)
    whitened = np.linalg.solve(np.linalg.cholesky(mode.covariance), (mode.theta - mode.mean).T).T
    far = np.argsort(-(whitened**2).sum(axis=1))[: max(2, int(FAR * len(whitened)))]
    side = whitened[far] @ np.linalg.svd(whitened[far], full_matrices=False)[2][0]
    groups = [far[s * side > 0] for s in (1, -1)]
    scale = spec.prior.theta(spec.signal).spread
    found = [
        _em(Lambda, eta, mode, mode.theta[group].mean(axis=0) - mode.mean, scale)
        for group in groups
        if len(group)
    ]
    found.sort(key=lambda second: -second.log_evidence)
    return tuple(second for second in found if second.log_evidence > found[0].log_evidence - EVIDENCE)


def _without_S0(mode: PopulationMode, P: int) -> tuple[np.ndarray, np.ndarray]:
    """Precision and shift of each voxel's likelihood of theta, S0 integrated out where it is the last."""
    Lambda, eta = mode.precision, mode.shift
    if eta.shape[1] == P:
        return Lambda, eta
    wide = 1 / S0_MEAN_SD**2
    gain = Lambda[:, :P, P] / (Lambda[:, P, P] + wide)[:, None]
    return (
        Lambda[:, :P, :P] - np.einsum("vp,vq->vpq", gain, Lambda[:, P, :P]),
        eta[:, :P] - gain * (eta[:, P] + wide * S0_MEAN)[:, None],
    )


def _em(
    Lambda: np.ndarray, eta: np.ndarray, mode: PopulationMode, shift: np.ndarray, scale: np.ndarray
) -> MixtureStart:
    """Mean, covariance, share and shift from a first shift."""
    mu, Sigma, share, V, (a, b) = mode.mean, mode.covariance, FIRST_SHARE, len(eta), SECOND_SHAPES
    evidence = -np.inf
    for _ in range(STEPS):
        S = np.linalg.inv(Sigma)
        inverse, pull = np.linalg.inv(S + Lambda), np.diag(1 / (SECOND_SHIFT**2 * np.diag(Sigma)))
        fixed = 0.5 * np.linalg.slogdet(inverse)[1] - 0.5 * np.linalg.slogdet(Sigma)[1]
        means, logs = [], []
        for at in (mu, mu + shift):
            right = S @ at + eta
            means.append(np.einsum("vpq,vq->vp", inverse, right))
            logs.append(fixed + 0.5 * (right * means[-1]).sum(axis=1) - 0.5 * at @ S @ at)
        both = np.logaddexp(np.log1p(-share) + logs[0], np.log(share) + logs[1])
        r = np.exp(np.log(share) + logs[1] - both)[:, None]
        evidence = both.sum() - 0.5 * shift @ pull @ shift + (b - 1) * np.log1p(-share)
        share = float(np.clip((r.sum() + a - 1) / (V + a + b - 2), 1 / (V + 1), 0.5))
        mu = ((1 - r) * means[0] + r * (means[1] - shift)).mean(axis=0)
        shift = np.linalg.solve(S * r.sum() + pull, S @ (r * (means[1] - mu)).sum(axis=0))
        scatter = inverse.sum(axis=0) + SPREAD_WEIGHT * np.diag((0.5 * scale) ** 2)
        for weight, from_mean in ((1 - r, means[0] - mu), (r, means[1] - mu - shift)):
            scatter = scatter + (weight * from_mean).T @ from_mean
        Sigma = scatter / (V + SPREAD_WEIGHT)
    return MixtureStart(mu, Sigma, share, shift, float(evidence))
