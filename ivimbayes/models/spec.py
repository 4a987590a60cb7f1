"""What is fitted to a region: the specification of the model, and its data as arrays."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import numpy as np

from ivimbayes.errors import InputError
from ivimbayes.io.text import read_json
from ivimbayes.models.noise import NOISES
from ivimbayes.models.priors import TissuePrior, assign_priors, read_priors, tissue_prior
from ivimbayes.models.signals import SIGNALS

POPULATIONS = ("normal", "student_t", "mixture")
SECOND_SHAPES, SECOND_SHIFT = (1.0, 9.0), 4.0  # Beta shapes of its share; scale of its shift over sd
S0_MEAN, S0_MEAN_SD, S0_SD, SIGMA_SCALE = 1.0, 0.5, 0.5, 0.2  # of a region scaled to a median S0 near 1
IMAGE_SCALE = 0.05  # of the half-normal prior of the standard deviation of image effects


@dataclass(frozen=True)
class ModelSpec:
    """What is fitted to a region.

    Attributes
    ----------
    signal : str
        A name in `SIGNALS`.
    noise : str
        A name in `NOISES`.
    population : {"normal", "student_t", "mixture"}
        Distribution of the voxels around the region. Student-t shrinks single voxels that differ from the
        rest less. The mixture is of two normals with one covariance, the smaller about a mean of its own, to
        which voxels that differ alike, such as a lesion's, are shrunk.
    nu : float
        Degrees of freedom of the Student-t population, above 2.
    eta : float
        Shape of the LKJ prior of the correlations between voxel parameters; 1 is uniform.
    prior : TissuePrior
        Prior of the region.
    image_effects : bool
        Whether each image has a signal error of its own, common to all voxels of the region, as breathing,
        pulsation and drift cause. A mean curve has none: there the noise holds them.

    Examples
    --------
    >>> spec = ModelSpec(population="student_t")
    >>> ModelSpec.from_json(spec.to_json()) == spec
    True
    """

    signal: str = "biexponential"
    noise: str = "gaussian"
    population: str = "normal"
    nu: float = 3.0
    eta: float = 2.0
    prior: TissuePrior = field(default_factory=lambda: tissue_prior("generic"))
    image_effects: bool = False

    def __post_init__(self) -> None:
        for name, accepted in (("signal", SIGNALS), ("noise", NOISES), ("population", POPULATIONS)):
            if getattr(self, name) not in accepted:
                raise InputError(f"{name} {getattr(self, name)!r}; accepted are {', '.join(accepted)}")
        if not self.nu > 2:
            raise InputError(f"nu {self.nu:g}; the Student-t population needs more than 2")
        if not self.eta > 0:
            raise InputError(f"eta {self.eta:g}; the LKJ prior needs more than 0")

    @property
    def latent(self) -> tuple[str, ...]:
        """Names of what is sampled of each voxel, S0 among them where it is not integrated out."""
        return SIGNALS[self.signal].parameters + (() if NOISES[self.noise].marginal else ("S0",))

    def with_prior(self, prior: TissuePrior) -> "ModelSpec":
        """Return the same model with another prior."""
        return replace(self, prior=prior)

    def to_json(self) -> str:
        """JSON text, without loss."""
        return json.dumps(
            {**{f.name: getattr(self, f.name) for f in fields(self)}, "prior": self.prior.to_dict()}
        )

    @classmethod
    def from_json(cls, text: str) -> "ModelSpec":
        """Inverse of `to_json`."""
        plain = read_json(text)
        return cls(**{**plain, "prior": TissuePrior.from_dict(plain["prior"])})


def refuse_image_effects(spec: ModelSpec, what: str) -> None:
    """Raise an `InputError` where a model with image effects meets what does not take them."""
    if spec.image_effects:
        raise InputError(f"{what} does not take image effects; use a model with image_effects=False")


def signal_scale(signal: np.ndarray) -> float:
    """Give what a region's signals (voxel, measurement) are divided by: the median of their largest."""
    return float(np.median(signal.max(axis=1)))


def sigma_scale(averages: np.ndarray) -> float:
    """Scale of the half-normal prior of sigma, of scaled signals with these averages (voxel, measurement)."""
    return float(SIGMA_SCALE * np.sqrt(np.median(averages)))


def region_priors(
    regions: list[str],
    spec: ModelSpec,
    tissue: Mapping[str, str] | None = None,
    priors: Mapping[str, TissuePrior] | str | Path | None = None,
) -> dict[str, TissuePrior]:
    """Prior of each region: that of the tissue named for it, of the spec, or of the tissue in its name.

    Parameters
    ----------
    regions : list of str
        Names of the regions.
    spec : ModelSpec
        Its prior, when it is not the generic one, is used for every region that `tissue` does not name.
    tissue : mapping of str to str, optional
        Tissue by region name, ``"*"`` for all others.
    priors : mapping or path, optional
        Tissues to choose from, or a file of them; the package's own when not given.

    Raises
    ------
    InputError
        If a region or a tissue is unknown, or the file cannot be used.
    """
    named = tissue or {}
    assigned = assign_priors(regions, tissue, priors if isinstance(priors, Mapping) else read_priors(priors))
    if spec.prior != ModelSpec().prior and "*" not in named:
        assigned = {name: prior if name in named else spec.prior for name, prior in assigned.items()}
    return assigned
