"""What a BIDS dataset holds for a fit: diffusion-weighted runs, their b values, masks and label images."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ivimbayes.errors import InputError
from ivimbayes.io.text import one_line, read_json

LABEL = re.compile(r"[A-Za-z0-9]+")
NAME = re.compile(r"((?:[a-z]+-[A-Za-z0-9]+_)*)([A-Za-z0-9]+)(\.[a-z.]+)")
IMAGES = (".nii", ".nii.gz")
NOT_MAGNITUDE = ("phase", "imag")
DERIVED = ("space", "res", "den", "label", "desc", "atlas", "seg", "scale", "hemi")  # say nothing of the scan


@dataclass(frozen=True)
class Name:
    """A BIDS file name in parts: entities in their order, suffix, extension."""

    entities: Mapping[str, str]
    suffix: str
    extension: str


@dataclass(frozen=True)
class Run:
    """One diffusion-weighted image and what belongs to it.

    Attributes
    ----------
    entities : mapping of str to str
        Of its file name, in their order: ``sub``, ``ses`` and so on, without ``desc``.
    dwi : path
        The image.
    bval : path or None
        b values, found by the inheritance principle.
    rois, mask, names : path or None
        Label image, mask, and table of label names.
    fault : str
        Why it cannot be fitted, in one line; empty where nothing was found wrong yet.
    """

    entities: Mapping[str, str]
    dwi: Path
    bval: Path | None = None
    rois: Path | None = None
    mask: Path | None = None
    names: Path | None = None
    fault: str = field(default="")

    @property
    def stem(self) -> str:
        """What the names of its results begin with, such as ``sub-01_ses-1_run-2``."""
        return "_".join(f"{key}-{value}" for key, value in self.entities.items())

    @property
    def folder(self) -> Path:
        """Where its results lie in a dataset of derivatives."""
        session = [f"ses-{self.entities['ses']}"] if "ses" in self.entities else []
        return Path(f"sub-{self.entities['sub']}", *session, "dwi")

    @property
    def inputs(self) -> dict[str, Path]:
        """The files there are, by role."""
        files = {
            "dwi": self.dwi,
            "bval": self.bval,
            "rois": self.rois,
            "mask": self.mask,
            "names": self.names,
        }
        return {role: path for role, path in files.items() if path is not None}


def parse_name(name: str) -> Name | None:
    """Take a file name apart; None where it is none of BIDS.

    Examples
    --------
    >>> parse_name("sub-01_ses-2_dwi.nii.gz")
    Name(entities={'sub': '01', 'ses': '2'}, suffix='dwi', extension='.nii.gz')
    >>> parse_name("sub-01_ses-../../etc_dwi.nii.gz") is None
    True
    """
    found = NAME.fullmatch(name)
    if found is None:
        return None
    pairs = [part.split("-", 1) for part in found[1].split("_") if part]
    entities = {key: value for key, value in pairs}
    return Name(entities, found[2], found[3]) if len(entities) == len(pairs) else None


def find_runs(
    bids_dir: str | Path,
    *,
    participants: Sequence[str] | None = None,
    sessions: Sequence[str] | None = None,
    rois_dirs: Sequence[str | Path] | None = None,
    rois_desc: str | None = None,
    mask_desc: str | None = None,
    out_dir: str | Path | None = None,
) -> list[Run]:
    """Find the diffusion-weighted runs of a BIDS dataset.

    Parameters
    ----------
    bids_dir : path
        The dataset, raw or preprocessed.
    participants, sessions : sequence of str, optional
        Labels to take, with or without ``sub-`` and ``ses-``; all when not given.
    rois_dirs : sequence of path, optional
        Datasets that hold label images or masks, as ``sub-*/[ses-*/]dwi/*_dseg.nii.gz`` and
        ``*_mask.nii.gz``; the dataset and the folders in its ``derivatives`` when not given.
    rois_desc : str, optional
        ``desc`` of the label image, where there are several.
    mask_desc : str, optional
        ``desc`` of a mask, outside of which labels do not count. Without a label image the one mask there is
        is the region.
    out_dir : path, optional
        Where results go; not searched.

    Returns
    -------
    list of Run
        In the order of their names. One that lacks a file, or has too many, says so in ``fault``.

    Raises
    ------
    InputError
        If it is no BIDS dataset, or a label asked for is not there.
    """
    root = Path(bids_dir)
    _check_dataset(root)
    roots = _roi_roots(root, rois_dirs, out_dir)
    subjects = _folders(root, "sub", participants, "participant")
    if not subjects:
        raise InputError(f"{root}: no folder sub-<label> with letters and digits; name a BIDS dataset")
    wanted, seen = _labels(sessions, "ses", "session"), set[str]()
    runs = []
    for subject in subjects:
        for folder in _session_folders(subject):
            session = folder.name[4:] if folder != subject else None
            seen |= set() if session is None else {session}
            if wanted is None or session in wanted:
                runs += [
                    _complete(path, name, root, roots, rois_desc, mask_desc)
                    for path, name in _images(folder / "dwi", "dwi", subject.name[4:], session)
                ]
    if wanted is not None and (absent := sorted(wanted - seen)):
        raise InputError(
            f"session {absent[0]!r}: none of its name; there are {', '.join(sorted(seen)) or 'none'}"
        )
    return _without_twins(sorted(runs, key=lambda run: run.stem))


def read_description(root: Path) -> dict[str, object]:
    """Read ``dataset_description.json``; empty where there is none."""
    path = root / "dataset_description.json"
    try:
        plain = read_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not readable JSON ({one_line(error)}); correct it") from None
    if not isinstance(plain, dict):
        raise InputError(f"{path}: not a JSON object; correct it")
    return plain


def _check_dataset(root: Path) -> None:
    if not root.is_dir():
        raise InputError(f"{root}: no such folder; name a BIDS dataset")
    if not read_description(root):
        raise InputError(f"{root}: no dataset_description.json in it; name the top folder of a BIDS dataset")


def _roi_roots(root: Path, given: Sequence[str | Path] | None, out_dir: str | Path | None) -> list[Path]:
    """Datasets that are searched for label images."""
    if given:
        for path in map(Path, given):
            if not path.is_dir():
                raise InputError(f"{path}: no such folder; name a dataset that holds label images")
        return [Path(path) for path in given]
    derived = root / "derivatives"
    found = sorted(path for path in derived.iterdir() if path.is_dir()) if derived.is_dir() else []
    own = None if out_dir is None else Path(out_dir).resolve()
    return [root, *(path for path in found if path.resolve() != own and not path.name.startswith("."))]


def _labels(words: Sequence[str] | None, key: str, what: str) -> set[str] | None:
    """Labels of a list, with or without their key."""
    if not words:
        return None
    labels = {word.removeprefix(f"{key}-") for word in words}
    for label in labels:
        if not LABEL.fullmatch(label):
            raise InputError(f"{what} {label!r}; labels have letters and digits only")
    return labels


def _folders(root: Path, key: str, words: Sequence[str] | None, what: str) -> list[Path]:
    wanted = _labels(words, key, what)
    found = {
        path.name[len(key) + 1 :]: path
        for path in sorted(root.glob(f"{key}-*"))
        if path.is_dir() and LABEL.fullmatch(path.name[len(key) + 1 :])
    }
    if wanted is not None and (absent := sorted(wanted - set(found))):
        some = ", ".join(list(found)[:10]) + (", ..." if len(found) > 10 else "")
        raise InputError(f"{root}: no {what} {absent[0]!r}; there are {some or 'none'}")
    return [path for label, path in found.items() if wanted is None or label in wanted]


def _session_folders(subject: Path) -> list[Path]:
    """Folders that hold a folder dwi: sessions, and the subject itself."""
    found = [p for p in sorted(subject.glob("ses-*")) if p.is_dir() and LABEL.fullmatch(p.name[4:])]
    return [subject, *found]


def _images(
    folder: Path, suffix: str, subject: str, session: str | None
) -> Iterator[tuple[Path, Name | None]]:
    """Images of a suffix in a folder, with their names; None for a name that is not in its place."""
    if not folder.is_dir():
        return
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or not path.name.endswith(
            tuple(f"_{suffix}{ending}" for ending in IMAGES)
        ):
            continue
        name = parse_name(path.name)
        if name and (name.entities.get("sub"), name.entities.get("ses")) != (subject, session):
            name = None
        if name is None or name.entities.get("part") not in NOT_MAGNITUDE:
            yield path, name


def _complete(
    path: Path,
    name: Name | None,
    root: Path,
    roots: Sequence[Path],
    rois_desc: str | None,
    mask_desc: str | None,
) -> Run:
    """Find what belongs to an image."""
    if name is None:
        named = {
            part[:3]: part[4:] for part in path.parent.relative_to(root).parts if part[:4] in ("sub-", "ses-")
        }
        fault = "the file name is not sub-<label>[_ses-<label>][_<key>-<label>]_dwi of its folder; rename it"
        return Run(named | {"file": re.sub("[^A-Za-z0-9]", "", path.name)}, path, fault=fault)
    entities = {key: value for key, value in name.entities.items() if key != "desc"}
    try:
        bval = inherited(path.parent, root, name.entities, "dwi", (".bval",))
        if bval is None:
            raise InputError("no .bval belongs to it; write one of its name, or dwi.bval at the top")
        rois = _belonging(entities, roots, "dseg", rois_desc, "--rois-desc")
        masks = mask_desc is not None or rois is None
        mask = _belonging(entities, roots, "mask", mask_desc, "--mask-desc") if masks else None
        if mask_desc is not None and mask is None:
            raise InputError(
                f"no mask with desc-{mask_desc} belongs to it; add one, or leave --mask-desc out"
            )
        if rois is None and mask is None:
            places = ", ".join(str(r.relative_to(root)) if r.is_relative_to(root) else str(r) for r in roots)
            raise InputError(
                f"no label image (dseg) or mask belongs to it in {places}; name a folder with --rois-dir"
            )
        names = None
        if rois is not None:
            labelled = parse_name(rois.name)
            top = max((r for r in roots if rois.is_relative_to(r)), key=lambda r: len(r.parts))
            assert labelled is not None
            names = inherited(rois.parent, top, labelled.entities, "dseg", (".tsv",))
    except InputError as error:
        return Run(entities, path, fault=str(error))
    return Run(entities, path, bval, rois, mask, names)


def inherited(
    folder: Path, root: Path, entities: Mapping[str, str], suffix: str, extensions: Iterable[str]
) -> Path | None:
    """Find the file that applies to an image: the nearest, going up from its folder to the top.

    A file applies if each entity of its name is the image's; of several in one folder the one that has most
    entities is taken (BIDS, inheritance principle).

    Parameters
    ----------
    folder, root : path
        Where the image lies, and the top folder of its dataset.
    entities : mapping of str to str
        Of the image's name.
    suffix : str
        Of the file, such as ``dwi`` or ``dseg``.
    extensions : iterable of str
        Accepted, such as ``.bval``.

    Raises
    ------
    InputError
        If two files apply equally.
    """
    accepted = set(extensions)
    while True:
        found = []
        for path in sorted(folder.iterdir()):
            name = parse_name(path.name)
            if name is None or name.suffix != suffix or name.extension not in accepted:
                continue
            if name.entities.items() <= entities.items() and path.is_file():
                found.append((len(name.entities), path))
        if found:
            return _most_specific(found, f"{suffix} files ({', '.join(accepted)})", "keep one")
        if folder == root or root not in folder.parents:
            return None
        folder = folder.parent


def _belonging(
    entities: Mapping[str, str], roots: Sequence[Path], suffix: str, desc: str | None, option: str
) -> Path | None:
    """Find the label image or mask of a run: what its name says of the scan must be said by the run's."""
    subject, session = f"sub-{entities['sub']}", entities.get("ses")
    found = []
    for root in roots:
        folders: list[tuple[Path, str | None]] = [(root / subject, None)]
        if session is not None:
            folders.append((root / subject / f"ses-{session}", session))
        for folder, of_session in folders:
            for path, name in _images(folder / "dwi", suffix, entities["sub"], of_session):
                if name is None or (desc is not None and name.entities.get("desc") != desc):
                    continue
                scan = {key: value for key, value in name.entities.items() if key not in DERIVED}
                if scan.items() <= entities.items():
                    found.append((len(scan), path))
    what = "label images (dseg)" if suffix == "dseg" else "masks"
    return _most_specific(found, what, f"choose by {option} or --rois-dir") if found else None


def _most_specific(found: Sequence[tuple[int, Path]], what: str, way_out: str) -> Path:
    most = max(count for count, _ in found)
    best = [path for count, path in found if count == most]
    if len(best) > 1:
        raise InputError(f"{len(best)} {what} belong to it equally ({best[0]}, {best[1]}); {way_out}")
    return best[0]


def _without_twins(runs: list[Run]) -> list[Run]:
    """Refuse runs whose results would have the same names."""
    count = {stem: sum(run.stem == stem for run in runs) for stem in {run.stem for run in runs}}
    return [
        run
        if count[run.stem] == 1 or run.fault
        else Run(
            run.entities, run.dwi, fault=f"{count[run.stem]} images differ in desc or ending alone; keep one"
        )
        for run in runs
    ]
