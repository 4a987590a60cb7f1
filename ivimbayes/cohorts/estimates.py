"""What each fit of a study knows of its regions, in few numbers: what the level above takes."""

import warnings
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np
import xarray as xr
from arviz_stats.base import array_stats

from ivimbayes.errors import InputError, InputWarning
from ivimbayes.io.netcdf import check_netcdf
from ivimbayes.io.tables import read_table
from ivimbayes.io.text import one_line
from ivimbayes.models.priors import TissuePrior
from ivimbayes.models.signals import SIGNALS
from ivimbayes.models.spec import ModelSpec
from ivimbayes.results.diagnosis import diagnose
from ivimbayes.results.stored import FitView, stored_priors

LEAST_GAIN = -0.5  # of a scan's information on a direction of theta, over the prior's
Fit = xr.DataTree | str | Path


def region_estimates(fits: Sequence[Fit]) -> xr.Dataset:
    """Reduce fits to what a study's model needs: what each knows of each region's mean theta.

    Parameters
    ----------
    fits : sequence of DataTree or path
        From `fit`, or files ``posterior.nc`` or their folders; of one signal model. A region may be absent
        from some.

    Returns
    -------
    Dataset
        ``mean`` (fit, roi, parameter) and ``covariance`` (fit, roi, parameter, other) of the posterior of the
        region's mean theta, ``ess`` (fit, roi), the least effective draws of its parameters, ``centre`` and
        ``width`` (fit, roi, parameter) of its prior; NaN where a fit has
        no such region, or its verdict there is ``failed``, of which a warning tells. ``spread`` (roi,
        parameter) is the prior scale of standard deviations. It can be stored by `Dataset.to_netcdf`, and
        takes the place of the fits.

    Raises
    ------
    InputError
        If a fit cannot be read, or the signal models or a region's priors differ.
    """
    read = [_read(one, n) for n, one in enumerate(fits)]
    if not read:
        raise InputError("fits: none given; give those of at least one subject")
    signals = {spec.signal for spec, *_ in read}
    if len(signals) > 1:
        raise InputError(f"fits: of {' and '.join(sorted(signals))} signals; give those of one signal model")
    signal = signals.pop()
    names = list(dict.fromkeys(name for *_, drawn, failed in read for name in drawn if name not in failed))
    if not names:
        raise InputError("fits: no region of any is to be trusted; see the verdicts of ivimbayes summary")
    P = len(SIGNALS[signal].parameters)
    shape = (len(read), len(names), P)
    mean, centre, width = (np.full(shape, np.nan) for _ in range(3))
    _warn([(n, name) for n, (_, _, _, failed) in enumerate(read) for name in failed], len(read))
    covariance, ess = np.full((*shape, P), np.nan), np.full(shape[:2], np.nan)
    used: dict[str, tuple[int, TissuePrior]] = {}
    for n, (_, priors, drawn, failed) in enumerate(read):
        for name in sorted(set(drawn) - failed):
            flat = drawn[name].reshape(-1, P)
            first, same = used.setdefault(name, (n, priors[name]))
            pairs = zip(priors[name].theta(signal), same.theta(signal), strict=True)
            if not all(np.array_equal(one, other) for one, other in pairs):
                raise InputError(
                    f"region {name!r}: fit {first + 1} has the prior of {same.name}, fit {n + 1} another "
                    f"({priors[name].name}); fit all with one (--tissue)"
                )
            r, prior = names.index(name), priors[name].theta(signal)
            mean[n, r], covariance[n, r] = flat.mean(axis=0), np.atleast_2d(np.cov(flat.T))
            ess[n, r] = np.min(array_stats.ess(drawn[name], chain_axis=0, draw_axis=1, method="mean"))
            centre[n, r], width[n, r] = prior.centre, prior.width
            if not (np.diag(covariance[n, r]) > 0).all():
                raise InputError(f"region {name!r} of fit {n + 1}: its draws do not vary; fit it again")
    spread = {name: prior.theta(signal).spread for name, (_, prior) in used.items()}
    dims = ("fit", "roi", "parameter")
    return xr.Dataset(
        {
            "mean": (dims, mean), "covariance": ((*dims, "other"), covariance), "centre": (dims, centre),
            "width": (dims, width), "ess": (dims[:2], ess),
            "spread": (dims[1:], np.stack([spread[name] for name in names])),
        },
        coords={"roi": names, "parameter": list(SIGNALS[signal].parameters)},
        attrs={"signal": signal},
    )  # fmt: skip


def _warn(failed: list[tuple[int, str]], fits: int) -> None:
    if failed:
        shown = ", ".join(f"{name!r} of fit {n + 1}" for n, name in failed[:5])
        more = f" and {len(failed) - 5} more" if len(failed) > 5 else ""
        warnings.warn(
            f"regions left out, since their posteriors are not to be trusted: {shown}{more} (of {fits} fits)",
            InputWarning,
            stacklevel=3,
        )


def _read(one: Fit, place: int) -> tuple[ModelSpec, dict[str, TissuePrior], dict[str, np.ndarray], set[str]]:
    """Specification, priors, draws (chain, draw, parameter) of each mean theta; regions that failed."""
    if isinstance(one, xr.DataTree):
        if "spec" not in one.attrs or "posterior" not in one.children:
            raise InputError(
                f"fits[{place}]: not a fit; give a tree from fit, or the path of its posterior.nc"
            )
        fit = FitView.of(one)
        mu = fit.posterior["mu"].transpose(..., "roi", "parameter").values
        names, spec, priors = fit.regions, fit.spec, fit.priors
        failed = {name for name, d in diagnose(fit, voxels=False).items() if d.verdict == "failed"}
    else:
        path = Path(one)
        path = path / "posterior.nc" if path.is_dir() else path
        if not path.is_file():
            raise InputError(f"{path}: no such file; run ivimbayes fit first, or name the folder it wrote")
        try:  # a study has thousands of these: the rest of the file is not read
            check_netcdf(path)
            with h5py.File(path) as file:
                mu = file["posterior/mu"][...]
                names = [name.decode() for name in file["posterior/roi"][...]]
                spec, priors = ModelSpec.from_json(file.attrs["spec"]), stored_priors(file.attrs)
                missing = [name for name in names if name not in priors]
        except (OSError, KeyError, ValueError, AttributeError, TypeError, RuntimeError) as error:
            raise InputError(
                f"{path}: not a stored fit ({one_line(error)}); run ivimbayes fit again"
            ) from None
        if missing or mu.ndim != 4 or mu.shape[2:] != (len(names), len(SIGNALS[spec.signal].parameters)):
            raise InputError(f"{path}: not a stored fit (its parts do not agree); run ivimbayes fit again")
        failed = _failed(path)
    return spec, priors, {name: mu[:, :, r].astype(float) for r, name in enumerate(names)}, failed


def _failed(path: Path) -> set[str]:
    """Regions whose verdict is ``failed`` in the table beside a stored fit."""
    if not path.name.endswith("posterior.nc"):
        raise InputError(f"{path}: named otherwise than posterior.nc, beside its summary.tsv; name it so")
    beside = path.with_name(path.name.replace("posterior.nc", "summary.tsv"))
    if not beside.is_file():
        raise InputError(f"{beside}: no such file, which holds the verdicts; run ivimbayes fit again")
    table = read_table(beside, "run ivimbayes fit again", dtype=str)
    if absent := [name for name in ("roi", "verdict") if name not in table]:
        raise InputError(f"{beside}: not a table of a fit ({absent[0]!r}); run ivimbayes fit again")
    return set(table.loc[table["verdict"] == "failed", "roi"])


def gaussian_likelihood(
    mean: np.ndarray, covariance: np.ndarray, ess: np.ndarray, centre: np.ndarray, width: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Divide a normal posterior (..., parameter) by its normal prior.

    Parameters
    ----------
    mean, covariance : ndarray (..., parameter), (..., parameter, parameter)
        Of the posterior, from draws.
    ess : ndarray (...)
        Effective draws.
    centre, width : ndarray (..., parameter)
        Of the prior.

    Returns
    -------
    ndarray (..., parameter, parameter), (..., parameter)
        Precision of the likelihood, and precision times mean. What the data say nothing of has a precision
        that is 0 on average, of either sign by the chance of the draws: cut off at 0 it would add up over
        scans to knowledge that none of them has.
    """
    P, scale = mean.shape[-1], 1 / width
    white = scale[..., :, None] * covariance * scale[..., None, :]
    values, vectors = np.linalg.eigh(white)
    unbiased = np.maximum(1 - (P + 1) / np.asarray(ess, float), 0.5)[..., None]  # of an inverse covariance
    values = np.minimum(np.maximum(values, 1e-12) / unbiased, 1 / (1 + LEAST_GAIN))
    m = np.einsum("...ji,...j->...i", vectors, (mean - centre) * scale)
    gain, pull = 1 / values - 1, m / values
    Lambda = np.einsum("...i,...ij,...j,...kj,...k->...ik", scale, vectors, gain, vectors, scale)
    eta = scale * np.einsum("...ij,...j->...i", vectors, pull)
    return Lambda, eta + np.einsum("...ij,...j->...i", Lambda, centre)
