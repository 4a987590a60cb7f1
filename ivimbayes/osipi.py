"""The posterior of single curves and volumes, with the interface of OSIPI's IVIM code collection.

The collection (OSIPI TF2.4, github.com/OSIPI/TF2.4_IVIM-MRI_CodeCollection) gives every algorithm the
methods and attributes of its `OsipiBase`. `IvimBayes` has them, and needs nothing of the collection.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import arviz as az
import numpy as np
import xarray as xr

from ivimbayes.curves.summary import summarise_curves
from ivimbayes.errors import InputError
from ivimbayes.fitting.fit import fit
from ivimbayes.maps.posterior import posterior_maps
from ivimbayes.models.priors import TissuePrior, tissue_prior
from ivimbayes.models.spec import ModelSpec
from ivimbayes.protocol.check import require_protocol
from ivimbayes.voxelwise.status import STATUS

KEYS = {"f": "f", "D": "D", "Dp": "D_star", "S0": "S0"}  # the collection's names, and the package's
ORDER = ("D", "f", "Dp", "S0")  # of bounds and guesses given without names
RANGES = {"f": (0.0, 1.0), "D": (0.0, np.inf), "Dp": (0.0, np.inf), "S0": (0.0, np.inf)}
SUFFIXES = ("", "_mean", "_sd", "_low", "_high")
RESULTS = (*(key + suffix for key in KEYS for suffix in SUFFIXES), "sigma", "status")
CURVE_DRAWS, CURVE_TAIL = 4096, 0.1  # of single curves, of which there are few
KEPT, FEWEST = 200, 50  # draws of a pooled voxel, and those that must lie within the bounds


class IvimBayes:
    """Bi-exponential IVIM: the posterior of each curve, summarised.

    Parameters
    ----------
    bvalues : array_like (measurement,), optional
        s/mm²; used where a call gives none.
    thresholds : array_like, optional
        Accepted as the collection's algorithms do; there is nothing to segment.
    bounds : mapping or array_like (2, 4), optional
        ``{"S0": [0.7, 1.3], "f": [0, 1], "Dp": [0.005, 0.2], "D": [0, 0.005]}``, or lower and upper bounds in
        the order D, f, Dp, S0, in mm²/s; those of S0 over the mean signal at the lowest b. The posterior is
        cut off there: no draw, estimate or interval lies outside. A mapping may leave some out.
    initial_guess : mapping or array_like, optional
        Accepted; a posterior does not depend on it.
    prior : str or TissuePrior
        A tissue of the package, or a prior of one's own.
    interval : float
        Probability of the intervals.
    body_part : str, optional
        Accepted as newer versions of the collection give it; the prior is chosen by `prior`.

    Raises
    ------
    InputError
        If an argument cannot be used.

    Examples
    --------
    >>> import numpy as np
    >>> from ivimbayes import predict
    >>> b = np.array([0, 10, 20, 50, 100, 200, 400, 600, 800, 1000])
    >>> found = IvimBayes(bvalues=b).osipi_fit(predict(b, 1.0, f=0.2, D=1e-3, D_star=20e-3))
    >>> round(found["f"], 3), round(found["D"], 5), round(found["Dp"], 4)
    (0.2, 0.001, 0.02)
    """

    id_author = "the ivimbayes developers"
    id_algorithm_type = "Bayesian bi-exponential fit"
    id_return_parameters = "f, D*, D, S0, each with standard deviation and interval"
    id_units = "seconds per milli metre squared or milliseconds per micro metre squared"

    required_bvalues = 4
    required_thresholds = (0, 0)
    required_bounds = False
    required_bounds_optional = True
    required_initial_guess = False
    required_initial_guess_optional = True

    supported_bounds = True
    supported_initial_guess = False
    supported_thresholds = False
    supported_dimensions = 1
    supported_priors = True

    def __init__(
        self,
        bvalues: Any = None,
        thresholds: Any = None,
        bounds: Any = None,
        initial_guess: Any = None,
        *,
        prior: str | TissuePrior = "generic",
        interval: float = 0.95,
        body_part: str | None = None,
    ) -> None:
        if not 0 < interval < 1:
            raise InputError(f"interval {interval!r}; give a probability between 0 and 1, such as 0.95")
        self.bvalues = None if bvalues is None else np.asarray(bvalues, float)
        self.thresholds, self.initial_guess, self.body_part = thresholds, initial_guess, body_part
        self.bounds = bounds
        self.osipi_bounds, self.osipi_initial_guess = bounds, initial_guess
        self.use_bounds, self.use_initial_guess = True, False
        self.deep_learning = self.supervised = self.stochastic = False
        self.result_keys = list(RESULTS)
        self.prior = tissue_prior(prior) if isinstance(prior, str) else prior
        self.interval = interval
        _read_bounds(bounds)

    def osipi_author(self) -> str:
        """Who wrote it."""
        return self.id_author

    def osipi_fit(self, data: Any, bvalues: Any = None, **kwargs: Any) -> dict[str, Any]:
        """Summarise the posterior of a curve, or of each of several.

        Parameters
        ----------
        data : array_like (..., measurement)
            Signals in any unit. Negative ones are noise; the mean at the lowest b must be above 0.
        bvalues : array_like (measurement,), optional
            s/mm²; those given at first where none are given here.
        **kwargs
            ``njobs`` is accepted, as the collection gives it; anything else is an error.

        Returns
        -------
        dict of str to float or ndarray (...)
            ``f``, ``D``, ``Dp`` (D*) and ``S0``: medians of the posterior; each with ``_mean``, ``_sd``,
            ``_low`` and ``_high``, its mean, standard deviation and the ends of its interval; ``sigma``, the
            noise, and ``status``: 1 ok, 2 doubtful, 3 failed. D and Dp in mm²/s, S0 and sigma in the signals'
            unit.

        Raises
        ------
        InputError
            If b values are missing or do not tell the model, shapes differ, a signal is not finite, or the
            mean at the lowest b is not positive.
        """
        _refuse(kwargs, ("njobs",))
        signal, b = self._read(data, bvalues)
        bad = ~_usable(signal, b)
        if bad.any():
            where = f"curve {np.argwhere(bad)[0].tolist()}" if signal.ndim > 1 else "data"
            raise InputError(
                f"{where}: a signal is not finite, or the mean at the lowest b is not above 0; "
                "leave the curve out, or use osipi_fit_full_volume, which marks such voxels"
            )
        return self._single(signal, b, draws=CURVE_DRAWS, tail=CURVE_TAIL)

    def osipi_fit_full_volume(
        self, data: Any, bvalues: Any = None, *, pooled: bool = False, seed: int = 0, **kwargs: Any
    ) -> dict[str, np.ndarray]:
        """Summarise the posterior of every voxel of a volume.

        Parameters
        ----------
        data : array_like (..., measurement)
        bvalues : array_like (measurement,), optional
            As in `osipi_fit`.
        pooled : bool
            Fit one population of voxels to a sample of the volume's, by `fit`, and map all by
            `posterior_maps`: a voxel is then drawn towards the others. For a volume of one tissue.
        seed : int
            Of the pooled fit.
        **kwargs
            ``njobs`` is accepted, as the collection gives it; anything else is an error.

        Returns
        -------
        dict of str to ndarray (...)
            As `osipi_fit`. Voxels with a signal that is not finite, or none at the lowest b, have the
            status 4 and no numbers (NaN); of a pooled fit, those of which few draws lie within the bounds
            have the status 3 and none.

        Raises
        ------
        InputError
            If b values are missing or do not tell the model, or shapes differ.
        """
        _refuse(kwargs, ("njobs",))
        signal, b = self._read(data, bvalues)
        good = _usable(signal, b)
        result = {key: np.full(good.shape, np.nan) for key in RESULTS}
        result["status"] = np.full(good.shape, STATUS["bad_signal"], np.uint8)
        if good.any():
            found = self._pooled(signal[good], b, seed) if pooled else self._single(signal[good], b)
            for key in RESULTS:
                result[key][good] = found[key]
        return result

    def ivim_fit(self, signals: Any, bvalues: Any = None, **kwargs: Any) -> dict[str, Any]:
        """Do as `osipi_fit`; the name by which the collection calls a fit of one curve."""
        return IvimBayes.osipi_fit(self, signals, bvalues, **kwargs)

    def ivim_fit_full_volume(self, signals: Any, bvalues: Any = None, **kwargs: Any) -> dict[str, np.ndarray]:
        """Do as `osipi_fit_full_volume`; the name by which the collection calls a fit of a volume."""
        return IvimBayes.osipi_fit_full_volume(self, signals, bvalues, **kwargs)

    def _read(self, data: Any, bvalues: Any) -> tuple[np.ndarray, np.ndarray]:
        """Signals and b values as arrays that fit together."""
        bvalues = self.bvalues if bvalues is None else bvalues
        if bvalues is None:
            raise InputError("bvalues: none given; give them to the class or to the call, in s/mm2")
        try:
            signal, b = np.asarray(data, float), np.asarray(bvalues, float)
        except (TypeError, ValueError) as error:
            raise InputError(f"data or bvalues: not numbers ({error}); give arrays of numbers") from None
        if b.ndim != 1 or not (np.isfinite(b) & (b >= 0)).all():
            raise InputError(f"bvalues {b.shape}: give one row of numbers from 0 on, in s/mm2")
        if signal.ndim < 1 or signal.shape[-1] != len(b):
            raise InputError(
                f"data {signal.shape}: the last axis must be as long as bvalues, {len(b)}; check both"
            )
        require_protocol(xr.Dataset(coords={"b": ("measurement", b)}, attrs={"source": "bvalues"}))
        return signal, b

    def _single(self, signal: np.ndarray, b: np.ndarray, **effort: Any) -> dict[str, Any]:
        """Results of curves (..., measurement), each on its own."""
        scale = _at_lowest(signal, b)
        flat = (signal / scale[..., None]).reshape(-1, len(b))
        bounds = {KEYS[key]: pair for key, pair in _read_bounds(self.bounds).items()}
        found = summarise_curves(flat, b, self.prior, bounds, interval=self.interval, **effort)
        names = {"": "median", "_mean": "mean", "_sd": "sd", "_low": "low", "_high": "high"}
        result = {
            key + suffix: found[f"{name}_{names[suffix]}"].reshape(scale.shape)
            for key, name in KEYS.items()
            for suffix in SUFFIXES
        }
        result |= {
            "sigma": found["sigma"].reshape(scale.shape),
            "status": found["status"].reshape(scale.shape),
        }
        for key in ("sigma", *(f"S0{suffix}" for suffix in SUFFIXES)):
            result[key] = result[key] * scale
        return result if scale.shape else {key: value.item() for key, value in result.items()}

    def _pooled(self, signal: np.ndarray, b: np.ndarray, seed: int) -> dict[str, np.ndarray]:
        """Results of voxels (voxel, measurement) given the population of all."""
        n = len(signal)
        scan = xr.Dataset(
            {
                "signal": (("x", "y", "z", "measurement"), signal[:, None, None, :]),
                "roi": (("x", "y", "z"), np.ones((n, 1, 1), np.int32)),
                "affine": (("row", "column"), np.eye(4)),
            },
            coords={"b": ("measurement", b), "averages": ("measurement", np.ones(len(b)))},
            attrs={"roi_names": '{"1": "volume"}', "source": "data", "inputs": "{}", "real_valued": 1},
        )
        prior = replace(self.prior, name="volume")
        tree = fit(
            scan, ModelSpec(prior=prior), tissue={"volume": "volume"}, priors={"volume": prior}, seed=seed,
            progress=False,
        )  # fmt: skip
        bounds = _read_bounds(self.bounds)
        maps = posterior_maps(
            scan, tree, interval=self.interval, keep_draws=KEPT if bounds else 0, seed=seed, progress=False
        )
        ends = {"": "median", "_mean": "mean", "_sd": "sd", "_low": "hdi_low", "_high": "hdi_high"}
        result = {
            key + suffix: maps[f"{name}_{end}"].values[:, 0, 0].astype(float)
            for key, name in KEYS.items()
            for suffix, end in ends.items()
        }
        result["status"] = maps["status"].values[:, 0, 0].copy()
        result["sigma"] = np.full(n, float(tree["posterior"]["sigma"].mean()))
        if bounds:
            draws = {key: maps[name].values[:, :, 0, 0] for key, name in KEYS.items()}
            draws["S0"] = draws["S0"] / _at_lowest(signal, b)
            _cut(result, draws, bounds, self.interval, _at_lowest(signal, b))
        return result


def _cut(
    result: dict[str, np.ndarray],
    draws: dict[str, np.ndarray],
    bounds: Mapping[str, tuple[float, float]],
    interval: float,
    scale: np.ndarray,
) -> None:
    """Cut posteriors of voxels off at the bounds, by their draws (draw, voxel)."""
    inside = np.all(
        [(low <= draws[key]) & (draws[key] <= high) for key, (low, high) in bounds.items()], axis=0
    )
    kept = inside.sum(axis=0)
    for v in np.flatnonzero((kept < len(inside)) & (result["status"] != STATUS["failed"])):
        for key in KEYS:
            chosen = draws[key][inside[:, v], v] * (scale[v] if key == "S0" else 1.0)
            numbers = [np.nan] * len(SUFFIXES)
            if kept[v] >= FEWEST:
                ends = az.hdi(chosen, prob=interval)
                numbers = [np.median(chosen), chosen.mean(), chosen.std(), *ends]
            for suffix, number in zip(SUFFIXES, numbers, strict=True):
                result[key + suffix][v] = number
        if kept[v] < FEWEST:
            result["status"][v] = STATUS["failed"]


def _refuse(given: Mapping[str, Any], accepted: tuple[str, ...]) -> None:
    unknown = [name for name in given if name not in accepted]
    if unknown:
        raise InputError(f"{unknown[0]}: unknown argument; accepted are bvalues and {', '.join(accepted)}")


def _at_lowest(signal: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Mean signal at the lowest b, which the collection divides by."""
    return np.asarray(signal[..., b == b.min()].mean(axis=-1))


def _usable(signal: np.ndarray, b: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        return np.asarray(np.isfinite(signal).all(axis=-1) & (_at_lowest(signal, b) > 0))


def _read_bounds(bounds: Any) -> dict[str, tuple[float, float]]:
    """Bounds by name, in either of the forms that the collection has used."""
    if bounds is None:
        return {}
    if isinstance(bounds, Mapping):
        pairs = dict(bounds)
    else:
        try:
            table = np.asarray(bounds, float)
        except (TypeError, ValueError):
            table = np.empty(0)
        if table.shape != (2, 4):
            raise InputError(
                "bounds: give a mapping such as {'f': [0, 1]}, or lower and upper bounds of D, f, Dp, S0, "
                "shape (2, 4)"
            )
        pairs = dict(zip(ORDER, table.T, strict=True))
    if unknown := [key for key in pairs if key not in KEYS]:
        raise InputError(f"bounds: unknown {unknown[0]!r}; accepted are {', '.join(KEYS)}")
    found = {}
    for key, pair in pairs.items():
        try:
            low, high = (float(end) for end in pair)
        except (TypeError, ValueError):
            raise InputError(f"bounds {key} {pair!r}; give a lower and an upper number") from None
        least, most = RANGES[key]
        if not (low < high and low < most and high > least):
            raise InputError(
                f"bounds {key} [{low:g}, {high:g}]; give a lower bound below the upper, "
                f"within {least:g} to {most:g}"
            )
        found[key] = (low, high)
    if "D" in found and "Dp" in found and found["D"][0] >= found["Dp"][1]:
        raise InputError(
            f"bounds: D from {found['D'][0]:g} on, Dp up to {found['Dp'][1]:g}; D is below Dp, so lower D's"
        )
    return found
