"""From the perfusion fraction of the signal to that of the volume: T2 and T1 of blood and tissue.

At b = 0 blood and tissue weigh in the signal by w = (1 - exp(-TR / T1)) exp(-TE / T2) (a spin echo), so that

    f_volume = (f / w_blood) / (f / w_blood + (1 - f) / w_tissue)

(Lemke et al., Magn Reson Med 2010, doi 10.1002/mrm.22565). The relaxation times are not known exactly: a pair
(mean, sd) is drawn anew for each posterior draw, so that its uncertainty is part of every interval.
"""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np
import xarray as xr
from scipy.special import expit, logit

from ivimbayes.errors import InputError

Time = float | tuple[float, float]
TIMES = ("T2_blood", "T2_tissue", "T1_blood", "T1_tissue")
LEAST = {"TE": 1.0, "TR": 10.0, "T2": 1.0, "T1": 10.0}  # ms: anything below was given in seconds
SAMPLES = ("chain", "draw")
ATTRS = {"units": "1", "long_name": "perfusion volume fraction"}
FIELD_TOLERANCE = 0.2  # T: scanners of 2.89 T are called 3 T


@dataclass(frozen=True)
class RelaxationTimes:
    """Relaxation times of a tissue at a field strength.

    Attributes
    ----------
    tissue : str
    field : float
        Field strength (T).
    T2, T1 : tuple of float
        Mean and standard deviation (ms).
    source : str
        Where the numbers come from.
    """

    tissue: str
    field: float
    T2: tuple[float, float]
    T1: tuple[float, float]
    source: str


def relaxation_times(tissue: str, field: float) -> RelaxationTimes:
    """Look up T2 and T1 of blood or a tissue.

    Parameters
    ----------
    tissue : str
        A name in ``ivimbayes/data/relaxation.toml``, or one that the tissue answers to; case and punctuation
        do not matter.
    field : float
        Field strength (T): 1.5 or 3, within 0.2.

    Returns
    -------
    RelaxationTimes
        T2 and T1, each mean and standard deviation in ms, and their source.

    Raises
    ------
    InputError
        If the table has no such tissue, or not at this field.

    Examples
    --------
    >>> relaxation_times("liver", 3).T2
    (34.0, 4.0)
    """
    table = _table()
    found = [times for names, times in table.values() if _plain(tissue) in names]
    if not found:
        raise InputError(
            f"no relaxation times of {tissue!r}; known are {', '.join(table)}; "
            "name one of them (--tissue REGION=TISSUE), or give the times in ms (--t2-tissue REGION=80,10)"
        )
    near = [entry for entry in found[0] if abs(entry.field - field) <= FIELD_TOLERANCE]
    if not near:
        known = " and ".join(f"{entry.field:g} T" for entry in found[0])
        raise InputError(
            f"no relaxation times of {found[0][0].tissue} at {field:g} T; known are {known}; "
            "give the times in ms"
        )
    return near[0]


@cache
def _table() -> dict[str, tuple[set[str], list[RelaxationTimes]]]:
    text = files("ivimbayes").joinpath("data/relaxation.toml").read_text(encoding="utf-8")
    return {
        name: (
            {_plain(name), *map(_plain, tissue["names"])},
            [
                RelaxationTimes(
                    name, float(entry["field"]), _pair(entry["T2"]), _pair(entry["T1"]),
                    entry["source"],
                )
                for entry in tissue["times"]
            ],
        )
        for name, tissue in tomllib.loads(text).items()
    }  # fmt: skip


def _plain(name: str) -> str:
    return " ".join(re.findall(r"[^\W_]+", name.casefold()))


def _pair(values: list[float]) -> tuple[float, float]:
    return float(values[0]), float(values[1])


def volume_fraction[F: (float, np.ndarray, xr.DataArray)](
    f: F,
    *,
    TE: float,
    T2_blood: Time,
    T2_tissue: Time,
    TR: float | None = None,
    T1_blood: Time | None = None,
    T1_tissue: Time | None = None,
    seed: int = 0,
) -> F:
    """Volume fraction of blood from the fraction of the signal at b = 0.

    Parameters
    ----------
    f : float, ndarray or DataArray
        Perfusion fraction of the signal (1). Draws are a DataArray (chain, draw, ...), an ndarray (draw,) or
        an ndarray whose first two axes are chain and draw.
    TE : float
        Echo time (ms).
    T2_blood, T2_tissue : float or (float, float)
        T2 (ms): a number, taken as known, or mean and standard deviation of a log-normal distribution, of
        which one draw is taken for each posterior draw, the same for all voxels or regions of that draw.
        Blood and tissue are drawn independently.
    TR : float, optional
        Repetition time (ms) of a spin echo. Without it, magnetization is taken to have recovered.
    T1_blood, T1_tissue : float or (float, float), optional
        T1 (ms), as T2; needed with `TR`.
    seed : int
        The same seed and the same shape of draws give the same relaxation times.

    Returns
    -------
    float, ndarray or DataArray
        Like `f`, dims in the same order; NaN where `f` is.

    Raises
    ------
    InputError
        If f is outside [0, 1], a time is not a positive number of ms or its standard deviation negative, TR
        and T1 are not given together, or f has no draws to carry the uncertainty of a pair.

    Examples
    --------
    >>> round(volume_fraction(0.3, TE=60, T2_blood=275, T2_tissue=34), 3)
    0.084
    """
    times = {"T2_blood": T2_blood, "T2_tissue": T2_tissue, "T1_blood": T1_blood, "T1_tissue": T1_tissue}
    known = checked_times(TE, TR, times, seed)
    if isinstance(f, xr.DataArray):
        given = f
    else:
        values = np.asarray(f, float)
        draws: tuple[str, ...] = SAMPLES if values.ndim > 1 else SAMPLES[1:]
        given = xr.DataArray(values, dims=[*draws, *(f"axis_{i}" for i in range(2, 64))][: values.ndim])
    volume = volume_of(given, log_weight(TE, TR, known, drawn_sizes(given), seed)).transpose(*given.dims)
    if isinstance(f, xr.DataArray):
        volume.attrs = dict(ATTRS)
        return volume.rename(f.name)
    if isinstance(f, np.ndarray) or volume.ndim:
        return volume.values  # type: ignore[return-value]
    return float(volume)


def drawn_sizes(f: xr.DataArray) -> dict[str, int]:
    """Sizes of the dims over which relaxation times are drawn."""
    return {str(dim): f.sizes[dim] for dim in SAMPLES if dim in f.dims}


def checked_times(
    TE: float, TR: float | None, times: Mapping[str, Any], seed: int
) -> dict[str, tuple[float, float]]:
    """Check all times; return those that are used, as mean and standard deviation (ms)."""
    one_time("TE", TE, LEAST["TE"])
    T1 = [name for name in ("T1_blood", "T1_tissue") if times.get(name) is not None]
    if TR is None and T1:
        raise InputError(f"{T1[0]} is given without TR; give TR in ms too, or leave T1 out")
    if TR is not None:
        one_time("TR", TR, LEAST["TR"])
        if len(T1) < 2:
            raise InputError("TR is given without T1 of blood and tissue; give both in ms, or leave TR out")
    if isinstance(seed, bool) or int(seed) != seed or seed < 0:
        raise InputError(f"seed {seed}: give a whole number, 0 or above")
    known = {}
    for name in TIMES[: 2 if TR is None else 4]:
        given = times[name]
        pair = tuple(given) if isinstance(given, tuple | list) else (given, 0.0)
        if len(pair) != 2:
            raise InputError(f"{name} = {given!r}; give a number of ms, or mean and standard deviation")
        mean = one_time(name, pair[0], LEAST[name[:2]])
        try:
            sd = float(pair[1])
        except (TypeError, ValueError):
            sd = np.nan
        if not (np.isfinite(sd) and sd >= 0):
            raise InputError(f"{name} has the standard deviation {pair[1]!r}; give 0 or more, in ms")
        known[name] = (mean, sd)
    return known


def one_time(name: str, value: Any, least: float) -> float:
    """Check one time (ms)."""
    try:
        number = np.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = np.nan
    if not (np.isfinite(number) and number > 0):
        raise InputError(f"{name} = {value!r}; give a time above 0, in ms")
    if number < least:
        raise InputError(f"{name} = {number:g} ms is too short, and looks like seconds; give ms")
    return number


def log_weight(
    TE: float,
    TR: float | None,
    known: Mapping[str, tuple[float, float]],
    sizes: dict[str, int],
    seed: int,
    stream: int = 0,
) -> xr.DataArray:
    """How much more blood weighs in the signal, ln(w_blood / w_tissue), of each draw: dims of `sizes`."""
    if not sizes:
        unsure = [name for name, (_, sd) in known.items() if sd > 0]
        if unsure:
            raise InputError(
                f"{unsure[0]} has a standard deviation, but f has no draws to carry it; "
                "give draws with dims chain and draw, or the mean alone"
            )
    T = {
        name: _log_normal(*pair, tuple(sizes.values()), (seed, i, 0 if "blood" in name else stream))
        for i, (name, pair) in enumerate(known.items())
    }
    weight = TE / T["T2_tissue"] - TE / T["T2_blood"]
    if TR is not None:
        weight = weight + np.log(-np.expm1(-TR / T["T1_blood"])) - np.log(-np.expm1(-TR / T["T1_tissue"]))
    return xr.DataArray(weight, dims=tuple(sizes))


def _log_normal(mean: float, sd: float, shape: tuple[int, ...], key: tuple[int, ...]) -> np.ndarray:
    """Draws of a log-normal distribution with this mean and standard deviation."""
    variance = np.log1p((sd / mean) ** 2)
    z = np.random.default_rng(key).standard_normal(shape)
    return np.asarray(mean * np.exp(np.sqrt(variance) * z - variance / 2))


def volume_of(f: xr.DataArray, log_weight: xr.DataArray) -> xr.DataArray:
    """Subtract in logits, where no exponential can overflow: logit f_volume = logit f - log_weight."""
    values = f.astype(float)
    wrong = values.where((values < 0) | (values > 1))
    if bool(wrong.notnull().any()):
        raise InputError(f"f = {float(wrong.max()):g} is outside [0, 1]; give fractions, not percent")
    return xr.apply_ufunc(lambda x, w: expit(logit(x) - w), values, log_weight)
