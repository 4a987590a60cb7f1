"""A simulated study of known truth as a BIDS dataset: subjects, sessions, groups, missing runs."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd

from ivimbayes.errors import InputError
from ivimbayes.io.nifti import save
from ivimbayes.io.tables import write_table
from ivimbayes.models.noise import NOISES
from ivimbayes.models.population import draw_theta
from ivimbayes.models.priors import TISSUES
from ivimbayes.models.signals import SIGNALS
from ivimbayes.simulation.regions import PHANTOM_B, PHANTOM_SPREAD

SHAPE = (8, 8, 2)
BETWEEN_SUBJECTS, BETWEEN_SESSIONS = (0.20, 0.05, 0.20), (0.08, 0.03, 0.10)  # sd of theta
S0, S0_SPREAD = 300.0, 0.1
BIDS_VERSION = "1.10.0"
README = """# Simulated IVIM study

Diffusion-weighted images drawn by ivimbayes.simulate_study; the true values of every region are in
derivatives/truth/truth.tsv, the label images in derivatives/manual.
"""


def simulate_study(
    folder: str | Path,
    subjects: int = 20,
    sessions: int = 2,
    *,
    groups: Sequence[str] = ("control", "patient"),
    effects: Mapping[str, Mapping[str, float]] | None = None,
    regions: Sequence[str] = ("liver", "spleen"),
    missing: float = 0.0,
    snr: float = 40.0,
    b: Sequence[float] = PHANTOM_B,
    seed: int = 0,
) -> pd.DataFrame:
    """Write a simulated study as a BIDS dataset, with label images and the truth.

    Parameters
    ----------
    folder : path
        New or empty.
    subjects, sessions : int
        Subjects take the groups in turn.
    groups : sequence of str
        Names of the groups.
    effects : mapping, optional
        Factors on the true values of f, D and D_star by parameter and group; 0.7 on f of patients when not
        given.
    regions : sequence of str
        Tissues, whose prior medians are the values without effect; each has a slab of the image.
    missing : float
        Share of the runs that are left out, from 0 to below 1; a subject keeps one.
    snr : float
        S0 over the noise standard deviation; the noise is Rician.
    b : sequence of float
        b values in s/mm².
    seed : int
        Seed of everything drawn.

    Returns
    -------
    DataFrame
        The truth, a row for each region of each run: ``participant_id``, ``session_id``, ``group``, ``roi``,
        ``f`` (1), ``D``, ``D_star`` (10⁻³ mm²/s) of the region's median voxel. The same is written to
        ``derivatives/truth/truth.tsv``.

    Raises
    ------
    InputError
        If the folder is not empty or an argument is out of range.

    Notes
    -----
    theta = (logit f, ln D, ln(D* - D)) of a region differs between subjects with standard deviations 0.20,
    0.05 and 0.20, between sessions with 0.08, 0.03 and 0.10, and between voxels with 0.3, 0.12 and 0.3.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     truth = simulate_study(folder, subjects=2, sessions=1)
    ...     print(len(truth), sorted(path.name for path in Path(folder).glob("sub-*")))
    4 ['sub-01', 'sub-02']
    """
    root, effects = Path(folder), {"f": {"patient": 0.7}} if effects is None else effects
    _check(root, subjects, sessions, groups, effects, regions, missing)
    rng = np.random.default_rng(seed)
    runs = [(s, t) for s in range(1, subjects + 1) for t in range(1, sessions + 1)]
    absent = _left_out(runs, missing, rng)
    labels = _labels(len(regions))
    width = max(2, len(str(subjects)))
    people = [(f"sub-{s:0{width}d}", groups[(s - 1) % len(groups)]) for s in range(1, subjects + 1)]
    _write_top(root, people, regions, np.asarray(b, float))
    model, rows = SIGNALS["biexponential"], []
    for s, (subject, group) in enumerate(people, start=1):
        own = rng.standard_normal((len(regions), 3)) * BETWEEN_SUBJECTS
        for t in range(1, sessions + 1):
            theta = np.zeros((*SHAPE, 3))
            shift = own + rng.standard_normal((len(regions), 3)) * BETWEEN_SESSIONS
            of_run = []
            for r, roi in enumerate(regions):
                centre = {
                    p: TISSUES[roi].centre[p] * effects.get(p, {}).get(group, 1.0) for p in model.parameters
                }
                mu = np.array(model.theta(*centre.values())) + shift[r]
                inside = labels == r + 1
                theta[inside] = draw_theta(mu, np.diag(np.square(PHANTOM_SPREAD)), int(inside.sum()), rng)
                f, D, D_star = model.values(*mu)
                of_run.append(
                    (subject, f"ses-{t}", group, roi, float(f), 1e3 * float(D), 1e3 * float(D_star))
                )
            signal = _draw(theta, labels, np.asarray(b, float), snr, rng)
            if (s, t) not in absent:
                _write_run(root, subject, f"ses-{t}", signal, labels)
                rows += of_run
    truth = pd.DataFrame(rows, columns=["participant_id", "session_id", "group", "roi", "f", "D", "D_star"])
    _write_derived(root, "truth", "True values of the simulation")
    write_table(truth, root / "derivatives" / "truth" / "truth.tsv")
    (root / "derivatives" / "truth" / ".bidsignore").write_text("truth.tsv\n", encoding="utf-8")
    return truth


def _check(
    root: Path,
    subjects: int,
    sessions: int,
    groups: Sequence[str],
    effects: Mapping[str, Mapping[str, float]],
    regions: Sequence[str],
    missing: float,
) -> None:
    if root.exists() and any(root.iterdir()):
        raise InputError(f"{root}: the folder is not empty; name another")
    for name, number in (("subjects", subjects), ("sessions", sessions), ("groups", len(groups))):
        if number < 1:
            raise InputError(f"{name} {number}; give 1 or more")
    if not 0 <= missing < 1:
        raise InputError(f"missing {missing:g}; give a share from 0 to below 1")
    if not 1 <= len(regions) <= SHAPE[0] // 2:
        raise InputError(f"regions: {len(regions)}; give 1 to {SHAPE[0] // 2} tissues")
    for roi in regions:
        if roi not in TISSUES:
            raise InputError(f"region {roi!r}: no tissue of that name; there are {', '.join(TISSUES)}")
    for parameter, factors in effects.items():
        if parameter not in ("f", "D", "D_star"):
            raise InputError(f"effects of {parameter!r}; accepted are f, D, D_star")
        for group, factor in factors.items():
            if group not in groups or not factor > 0:
                raise InputError(
                    f"effect {factor} on {parameter} of {group!r}; name a group and a factor above 0"
                )


def _left_out(
    runs: Sequence[tuple[int, int]], missing: float, rng: np.random.Generator
) -> set[tuple[int, int]]:
    """Draw the runs that are missing from all but one of each subject."""
    kept = {s: int(rng.integers(1, max(t for _, t in runs) + 1)) for s in sorted({s for s, _ in runs})}
    others = [run for run in runs if kept[run[0]] != run[1]]
    count = min(round(missing * len(runs)), len(others))
    return {others[i] for i in rng.permutation(len(others))[:count]}


def _labels(regions: int) -> np.ndarray:
    """Slabs along x with a column of background after each."""
    labels = np.zeros(SHAPE, np.uint8)
    step = SHAPE[0] // regions
    for r in range(regions):
        labels[r * step : (r + 1) * step - 1] = r + 1
    return labels


def _draw(
    theta: np.ndarray, labels: np.ndarray, b: np.ndarray, snr: float, rng: np.random.Generator
) -> np.ndarray:
    """Magnitude signals (x, y, z, measurement)."""
    model = SIGNALS["biexponential"]
    of_voxel = np.where(labels > 0, S0 * (1 + S0_SPREAD * rng.standard_normal(SHAPE)), 0.0)
    curve = model.curve(b, *(v[..., None] for v in model.values(*np.moveaxis(theta, -1, 0))))
    sigma = np.full(SHAPE, S0 / snr)
    return np.asarray(NOISES["rician"].draw_signal(rng, curve, of_voxel, sigma, np.ones(len(b))))


def _write_top(root: Path, people: Sequence[tuple[str, str]], regions: Sequence[str], b: np.ndarray) -> None:
    """Write what all runs share: b values, directions, participants, names of labels."""
    root.mkdir(parents=True, exist_ok=True)
    plain = {"Name": "Simulated IVIM study", "BIDSVersion": BIDS_VERSION, "DatasetType": "raw",
             "License": "CC0", "GeneratedBy": [{"Name": "ivimbayes"}]}  # fmt: skip
    _json(root / "dataset_description.json", plain)
    (root / "README.md").write_text(README, encoding="utf-8")
    (root / "dwi.bval").write_text(" ".join(f"{v:g}" for v in b) + "\n", encoding="utf-8")
    directions = np.eye(3)[np.arange(len(b)) % 3] * (b > 0)[:, None]
    rows = [" ".join(f"{v:g}" for v in row) for row in directions.T]
    (root / "dwi.bvec").write_text("\n".join(rows) + "\n", encoding="utf-8")
    _json(root / "dwi.json", {"Manufacturer": "simulated", "EchoTime": 0.06, "RepetitionTime": 4.0,
                              "MagneticFieldStrength": 3.0})  # fmt: skip
    write_table(pd.DataFrame(people, columns=["participant_id", "group"]), root / "participants.tsv")
    _json(root / "participants.json", {"group": {"Description": "Group of the simulation"}})
    _write_derived(root, "manual", "Label images of the simulation")
    names = pd.DataFrame(enumerate(regions, start=1), columns=["index", "name"])
    write_table(names, root / "derivatives" / "manual" / "dseg.tsv")


def _write_derived(root: Path, name: str, title: str) -> None:
    folder = root / "derivatives" / name
    folder.mkdir(parents=True, exist_ok=True)
    plain = {"Name": title, "BIDSVersion": BIDS_VERSION, "DatasetType": "derivative",
             "GeneratedBy": [{"Name": "ivimbayes"}]}  # fmt: skip
    _json(folder / "dataset_description.json", plain)


def _write_run(root: Path, subject: str, session: str, signal: np.ndarray, labels: np.ndarray) -> None:
    affine = np.diag([2.0, 2.0, 5.0, 1.0])
    stem = f"{subject}_{session}"
    for top, values, suffix in (
        (root, signal.astype(np.float32), "dwi"),
        (root / "derivatives" / "manual", labels, "dseg"),
    ):
        folder = top / subject / session / "dwi"
        folder.mkdir(parents=True, exist_ok=True)
        image = nib.Nifti1Image(values, affine)
        image.header.set_xyzt_units("mm", "sec")
        save(image, folder / f"{stem}_{suffix}.nii.gz")


def _json(path: Path, plain: Mapping[str, object]) -> None:
    path.write_text(json.dumps(plain, indent=2) + "\n", encoding="utf-8")
