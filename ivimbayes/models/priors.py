"""Priors of the tissues: published values, their disagreement, and the names they answer to."""

import difflib
import re
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ivimbayes.errors import InputError
from ivimbayes.io.text import one_line
from ivimbayes.models.parameters import FRACTIONS, LOG, LOGIT, PARAMETERS, RATES
from ivimbayes.models.signals import SIGNALS

GIVEN = tuple(p.name for p in PARAMETERS.values() if p.prior and p.prior.centre is None)  # by every tissue
OTHERS = tuple(p.name for p in PARAMETERS.values() if p.prior and p.prior.centre is not None)
SHOWN = (*GIVEN, *OTHERS)  # of a published entry, beside its source
DEFAULT_SPREAD = {p.name: p.prior.spread for p in PARAMETERS.values() if p.prior}
DEFAULT_WIDTH = {p.name: p.prior.width for p in PARAMETERS.values() if p.name in OTHERS and p.prior}
LESION_STEMS = (
    "tumo", "cancer", "carcino", "lesion", "metasta", "mets", "malign", "hcc", "neoplas", "adenoma",
    "sarcoma", "lymphoma", "glioma", "glioblastoma", "gbm", "melanoma", "mass", "nodule", "pdac",
    "fibroadenoma",
)  # fmt: skip


class ThetaPrior(NamedTuple):
    """A tissue's prior in the theta of a signal model; all ndarray (parameter,)."""

    centre: np.ndarray
    width: np.ndarray
    spread: np.ndarray


@dataclass(frozen=True)
class TissuePrior:
    """Prior of a region's median voxel, and of the spread between its voxels.

    In theta = (logit f, ln D, ln(D* - D)): the region's mean is Normal(theta of `centre`, `width`²) and the
    standard deviation between voxels is HalfNormal(`spread`).

    Attributes
    ----------
    centre : mapping
        Prior median of ``f`` (1), ``D`` and ``D_star`` (mm²/s); it may hold others of `PARAMETERS`, such as
        ``K`` (1), for signal models that have them.
    width : mapping
        Prior standard deviation of logit f, ln D and ln(D* - D), and of the others' theta.
    spread : mapping
        Scale of the half-normal prior of the standard deviation between voxels, in the same space.
    names : tuple of str
        Region names, or words in them, that the tissue answers to.
    published : tuple of mapping
        Values with their ``source``.

    Examples
    --------
    >>> from dataclasses import replace
    >>> wide = replace(tissue_prior("liver"), width={"f": 1.0, "D": 0.4, "D_star": 1.4})
    >>> wide.centre["f"], wide.theta_width.tolist()
    (0.23, [1.0, 0.4, 1.4])
    """

    name: str
    centre: Mapping[str, float]
    width: Mapping[str, float]
    spread: Mapping[str, float] = field(default_factory=lambda: {p: DEFAULT_SPREAD[p] for p in GIVEN})
    names: tuple[str, ...] = ()
    published: tuple[Mapping[str, Any], ...] = ()
    note: str = ""

    @property
    def theta_centre(self) -> np.ndarray:
        """Centre in the bi-exponential's theta, shape (parameter,)."""
        return self.theta("biexponential").centre

    @property
    def theta_width(self) -> np.ndarray:
        """Standard deviations in the bi-exponential's theta, shape (parameter,)."""
        return self.theta("biexponential").width

    def theta(self, signal: str) -> ThetaPrior:
        """Give the prior in the theta of a signal model.

        Numbers that the tissue does not hold are those of `PARAMETERS`. Where the model means something else
        by a parameter's name, its `Departure` says how the prior differs: an apparent D has a wider one,
        since perfusion adds to it; D_star of the slow of two vascular pools is 0.6 of that of one, with a
        wider prior.

        Parameters
        ----------
        signal : str
            A name in `SIGNALS`.
        """
        model, centre = SIGNALS[signal], dict(self.centre)
        width, spread = {**DEFAULT_WIDTH, **self.width}, {**DEFAULT_SPREAD, **self.spread}
        for name in OTHERS:
            if name not in centre and (prior := PARAMETERS[name].prior):
                centre[name] = prior.median(self.centre)
        for departure in model.departures:
            name = departure.name
            least = 0.0 if name == RATES[0] else centre[RATES[RATES.index(name) - 1]]
            centre[name] = least + departure.ratio * (centre[name] - least)
            width[name] = float(np.hypot(width[name], departure.width))
        names = model.parameters
        return ThetaPrior(
            np.array(model.theta(*(centre[p] for p in names))),
            np.array([width[p] for p in names]),
            np.array([spread[p] for p in names]),
        )

    def ranges(self) -> dict[str, tuple[float, float]]:
        """Central 95 % prior range of the region's f (1), D and D_star (mm²/s).

        That of D_star is for D at its median.
        """
        low, high = (self.theta_centre + sign * 1.96 * self.theta_width for sign in (-1, 1))
        (f0, D0, _), (f1, D1, _) = (SIGNALS["biexponential"].values(*end) for end in (low, high))
        D = self.centre["D"]
        return {
            "f": (float(f0), float(f1)),
            "D": (float(D0), float(D1)),
            "D_star": (D + float(LOG.inverse(low[2])), D + float(LOG.inverse(high[2]))),
        }

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as in the priors file."""
        plain = asdict(self)
        return {k: dict(v) if isinstance(v, Mapping) else v for k, v in plain.items()}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> "TissuePrior":
        """Inverse of `to_dict`."""
        return cls(
            **{
                **plain,
                "names": tuple(plain.get("names", ())),
                "published": tuple(plain.get("published", ())),
            }
        )


def read_priors(path: str | Path | None = None) -> dict[str, TissuePrior]:
    """Read a priors file.

    Parameters
    ----------
    path : path, optional
        A TOML file of the same form as ``ivimbayes/data/tissues.toml``, which is read when not given.

    Returns
    -------
    dict of str to TissuePrior
        By tissue name, in the order of the file.

    Raises
    ------
    InputError
        If the file is missing, is not TOML, or a number is missing or out of range.

    Examples
    --------
    >>> list(read_priors())[:3]
    ['generic', 'brain', 'white_matter']
    """
    if path is None:
        return dict(TISSUES)
    try:
        tables = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; give a priors file with --priors") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({one_line(error)}); give a priors file in TOML") from None
    except (tomllib.TOMLDecodeError, ValueError, RecursionError) as error:
        raise InputError(
            f"{path}: not TOML ({one_line(error)}); see the form of ivimbayes/data/tissues.toml"
        ) from None
    if not tables:
        raise InputError(f"{path}: holds no tissue; add a table such as [liver] with centre and width")
    return {name: _parse(name, table, str(path)) for name, table in tables.items()}


def _parse(name: str, table: Any, path: str) -> TissuePrior:
    where = f"{path}: [{name}]"
    if not isinstance(table, dict):
        raise InputError(f"{path}: {name} is not a table; write [{name}] with centre and width under it")
    unknown = set(table) - {"names", "note", "centre", "width", "spread", "published"}
    if unknown:
        raise InputError(
            f"{where} has the unknown entry {', '.join(sorted(unknown))}; "
            "accepted are names, note, centre, width, spread, published"
        )
    centre = _triple(table, "centre", where, required=True)
    width = _triple(table, "width", where, required=True)
    spread = _triple(table, "spread", where, required=False)
    spread = {p: DEFAULT_SPREAD[p] for p in GIVEN} | spread
    _check_centre(centre, where)
    for label, values in (("width", width), ("spread", spread)):
        for parameter, value in values.items():
            if not 0 < value <= 10:
                raise InputError(f"{where} {label} {parameter} = {value:g}; give a number above 0, up to 10")
    names, published = table.get("names", []), table.get("published", [])
    if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
        raise InputError(f'{where} names is not a list of words; write names = ["liver"]')
    if not isinstance(published, list) or not all(isinstance(p, dict) and "source" in p for p in published):
        raise InputError(f"{where} published: every entry needs a source")
    for key, value in (item for entry in published for item in entry.items() if item[0] in SHOWN):
        number = isinstance(value, int | float) and not isinstance(value, bool) and -1e9 < value < 1e9
        if not number:
            raise InputError(f"{where} published: {key} = {value!r} is not a number; correct it")
    published = [entry | {"source": _words_of(entry["source"])} for entry in published]
    names, note = list(map(_words_of, names)), _words_of(table.get("note", ""))
    sources = [entry["source"] for entry in published]
    if hidden := [word for word in (name, note, *names, *sources) if not word.isprintable()]:
        raise InputError(f"{where} has the text {hidden[0]!r}; use printable characters")
    return TissuePrior(name, centre, width, spread, tuple(names), tuple(published), note)


def _check_centre(centre: Mapping[str, float], where: str) -> None:
    """Refuse prior medians beyond the limits and the order of their parameters."""
    for name, value in centre.items():
        high, logit = PARAMETERS[name].highest, PARAMETERS[name].link is LOGIT
        if name in FRACTIONS[1:]:
            whole = FRACTIONS[FRACTIONS.index(name) - 1]
            inside, way_out = 0 < value < centre[whole], f"it is a part of {whole} = {centre[whole]:g}"
        elif name in RATES:
            slower = RATES[: RATES.index(name)]
            inside = max((centre[rate] for rate in slower), default=0.0) < value <= high
            way_out = f"give 0 < {' < '.join((*slower, name))}, up to {high:g} mm2/s (D is about 1e-3)"
        elif logit:
            inside, way_out = 0 < value < high, f"give a fraction between 0 and {high:g}"
        else:
            inside, way_out = 0 < value <= high, f"give a number above 0, up to {high:g}"
        if not inside:
            raise InputError(f"{where} centre {name} = {value:g}; {way_out}")


def _words_of(text: Any) -> str:
    """Text in one line."""
    return " ".join(str(text).split())


def _triple(table: dict[str, Any], label: str, where: str, required: bool) -> dict[str, float]:
    entry = table.get(label, None if required else {})
    if not isinstance(entry, dict):
        raise InputError(f"{where} has no {label}; write {label} = {{ f = ..., D = ..., D_star = ... }}")
    missing = [p for p in GIVEN if p not in entry] if required else []
    if missing or set(entry) - set(SHOWN):
        raise InputError(
            f"{where} {label} has {', '.join(entry) or 'nothing'}; it needs f, D and D_star, "
            f"and may have {', '.join(OTHERS)}"
        )
    for parameter, value in entry.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not -1e9 < value < 1e9:
            raise InputError(f"{where} {label} {parameter} = {value!r}; give a number")
    return {p: float(entry[p]) for p in SHOWN if p in entry}


def tissue_prior(name: str, priors: Mapping[str, TissuePrior] | None = None) -> TissuePrior:
    """Look up the prior of a tissue.

    Parameters
    ----------
    name : str
        A tissue's name, or one of the names it answers to; case and punctuation do not matter.
    priors : mapping, optional
        Tissues to choose from; `TISSUES` when not given.

    Raises
    ------
    InputError
        If there is no such tissue; the message names the nearest ones.

    Examples
    --------
    >>> tissue_prior("liver").centre["D"]
    0.00109
    """
    table = TISSUES if priors is None else priors
    wanted = _words(name)
    for prior in table.values():
        if wanted in (_words(prior.name), *map(_words, prior.names)):
            return prior
    known = {w: p.name for p in table.values() for w in (_words(p.name), *map(_words, p.names))}
    near = dict.fromkeys(known[w] for w in difflib.get_close_matches(wanted, known, n=5, cutoff=0.5))
    offer = f"nearest: {', '.join(near)}" if near else f"known: {', '.join(table)}"
    raise InputError(f"unknown tissue {name!r}; {offer} (ivimbayes tissues lists all)")


def match_tissue(region: str, priors: Mapping[str, TissuePrior] | None = None) -> TissuePrior:
    """Prior of the tissue that a region's name speaks of, the generic one if none.

    The longest name found as whole words wins. A name that speaks of a tumour or lesion is not matched to
    healthy tissue.

    Examples
    --------
    >>> match_tissue("left kidney").name, match_tissue("kidney tumour").name
    ('kidney', 'generic')
    """
    table = TISSUES if priors is None else priors
    padded = f" {re.sub(r'[0-9]+', ' ', _words(region))} "
    padded = f" {' '.join(padded.split())} "
    lesion = _speaks_of_lesion(padded)
    found = [
        (len(words), prior)
        for prior in table.values()
        for words in {_words(prior.name), *map(_words, prior.names)}
        if f" {words} " in padded and (not lesion or _speaks_of_lesion(words))
    ]
    if found:
        return max(found, key=lambda pair: pair[0])[1]
    return table.get("generic", TISSUES["generic"])


def assign_priors(
    regions: list[str],
    tissues: Mapping[str, str] | None = None,
    priors: Mapping[str, TissuePrior] | None = None,
) -> dict[str, TissuePrior]:
    """Prior of each region: the tissue named for it, else the one its name speaks of.

    Parameters
    ----------
    regions : list of str
        Names of the regions.
    tissues : mapping of str to str, optional
        Tissue by region name; the key ``"*"`` stands for every region not named.
    priors : mapping, optional
        Tissues to choose from; `TISSUES` when not given.

    Raises
    ------
    InputError
        If a region or a tissue is unknown.
    """
    chosen = dict(tissues or {})
    default = chosen.pop("*", None)
    absent = [name for name in chosen if name not in regions]
    if absent:
        raise InputError(f"no region {absent[0]!r} for --tissue; the regions are {', '.join(regions)}")
    return {
        region: tissue_prior(chosen.get(region, default), priors)  # type: ignore[arg-type]
        if chosen.get(region, default)
        else match_tissue(region, priors)
        for region in regions
    }


def _speaks_of_lesion(words: str) -> bool:
    return any(word.startswith(LESION_STEMS) for word in words.split())


def _words(name: str) -> str:
    return " ".join(re.findall(r"[^\W_]+", name.casefold()))


@cache
def _packaged() -> dict[str, TissuePrior]:
    text = files("ivimbayes").joinpath("data/tissues.toml").read_text(encoding="utf-8")
    return {name: _parse(name, table, "tissues.toml") for name, table in tomllib.loads(text).items()}


TISSUES: dict[str, TissuePrior] = _packaged()
