"""Mutated files through everything that reads one: each ends in a result or in one of the package's errors.

    .venv/bin/python tests/fuzz/fuzz.py --cases 100000 [--first 0] [--target scan] [--jobs 2]

Cases are numbered: a case is the same whenever it is run. They are run in child processes with bounds on memory
(address space, MEMORY) and time (a case, SECONDS), so that a crash, a hang or a claim on memory is seen and named.
Prints every case that ended otherwise as it is found, then the count by target and outcome; exit status 1 if one
did. Interrupted, it prints the counts so far.
"""

import argparse
import faulthandler
import json
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).parent))
from mutate import compress, mutate_bytes, mutate_image, mutate_text

import ivimbayes as ib
from ivimbayes.bids.app import read_participants
from ivimbayes.bids.derivatives import read_key, read_summaries, result_file
from ivimbayes.bids.layout import Run, find_runs
from ivimbayes.checks.calibration import read_calibration
from ivimbayes.cli.cohort import read_design_file
from ivimbayes.cohorts.contrasts import all_contrasts, read_cohort, scan_table
from ivimbayes.cohorts.design import read_design
from ivimbayes.errors import InputError
from ivimbayes.maps.stores import ZarrStore
from ivimbayes.results.stored import read_fit

MEMORY, SECONDS, BATCH = 6 << 30, 30, 2000
B = (0, 10, 20, 50, 100, 200, 400, 600, 800)


def seeds_of(folder: Path) -> None:
    """Write the valid files that are mutated."""
    rng = np.random.default_rng(0)
    b = np.array(B, float)
    curve = 0.2 * np.exp(-b * 30e-3) + 0.8 * np.exp(-b * 1.1e-3)
    signal = (100 * curve + rng.normal(0, 2, (6, 5, 2, len(b)))).astype(np.float32)
    labels = np.zeros((6, 5, 2), np.uint8)
    labels[:3], labels[4:] = 1, 2
    for name, values in (("dwi", signal), ("rois", labels)):
        nib.save(nib.Nifti1Image(values, np.diag([2.0, 2.0, 3.0, 1.0])), folder / f"{name}.nii")
    (folder / "dwi.bval").write_text(" ".join(map(str, B)))
    (folder / "rois.json").write_text('{"1": "liver", "2": "spleen"}')
    (folder / "rois.tsv").write_text("index\tname\n1\tliver\n2\tspleen\n")
    package = Path(ib.__file__).parent
    text = (package / "data" / "tissues.toml").read_text(encoding="utf-8")
    (folder / "priors.toml").write_text(text[: text.index("[grey_matter]")], encoding="utf-8")
    scan = ib.read_scan(folder / "dwi.nii", rois=folder / "rois.nii")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tree = ib.fit(scan, draws=50, tune=50, chains=2, voxels_per_roi=6, retry=False, progress=False)
        trusted = ib.fit(scan, draws=500, progress=False)
        design = pd.DataFrame({"subject": list("abcdef"), "group": ["one", "two"] * 3, "age": range(6)})
        study = ib.fit_cohort([trusted] * 6, design)
    ib.write_tree(tree, folder / "posterior.nc")
    ib.write_maps(ib.posterior_maps(scan, tree, progress=False), folder / "maps")
    ib.posterior_maps(scan, tree, progress=False, store=folder / "store")
    ib.write_cohort(study, folder)
    (folder / "design.tsv").write_text(
        "fit\tsubject\tgroup\tage\n" + "".join(f"f{n}\ts{n}\tg{n % 2}\t{40 + n}\n" for n in range(6))
    )
    people = "participant_id\tgroup\tage\nsub-01\tpatient\t50\nsub-02\tcontrol\tn/a\n"
    (folder / "participants.tsv").write_text(people)
    (folder / "summary.tsv").write_text(
        "roi\tparameter\tunit\tmedian\thdi_low\thdi_high\tverdict\n"
        "liver\tf\t1\t0.2\t0.1\t0.3\tconverged\nspleen\tf\t1\t0.1\t0.1\t0.2\tfailed\n"
    )


class Late(BaseException):
    """A case took too long; no reader may take it for an error of its file."""


Reader = Callable[[Path, np.random.Generator, Path], None]


def scan_case(seeds: Path, rng: np.random.Generator, folder: Path) -> None:
    """An image, its b values, labels and their names; one to three of them mutated."""
    files = {
        name: (seeds / name).read_bytes()
        for name in ("dwi.nii", "dwi.bval", "rois.nii", "rois.json", "rois.tsv")
    }
    names = str(rng.choice(["rois.json", "rois.tsv"]))
    del files["rois.tsv" if names == "rois.json" else "rois.json"]
    for name in rng.choice(list(files), int(rng.integers(1, 4)), replace=False):
        change = mutate_image if name.endswith(".nii") else mutate_text
        files[str(name)] = change(files[str(name)], rng)
    packed = rng.random() < 0.4
    for name, data in files.items():
        image = name.endswith(".nii")
        (folder / (name + ".gz" if image and packed else name)).write_bytes(
            compress(data, rng) if image and packed else data
        )
    end = ".nii.gz" if packed else ".nii"
    scan = ib.read_scan(folder / f"dwi{end}", rois=folder / f"rois{end}").load()
    ib.choose_voxels(scan, voxels_per_roi=6)


def prior_case(seeds: Path, rng: np.random.Generator, folder: Path) -> None:
    """A file of priors."""
    path = folder / "priors.toml"
    path.write_bytes(mutate_text((seeds / "priors.toml").read_bytes(), rng))
    for prior in ib.read_priors(path).values():
        prior.theta("triexponential")
        prior.ranges()


def tree_case(seeds: Path, rng: np.random.Generator, folder: Path) -> None:
    """A stored fit, read by all that read one."""
    path = folder / "posterior.nc"
    path.write_bytes(mutate_bytes((seeds / "posterior.nc").read_bytes(), rng))
    read = (read_fit, _open_fit, read_calibration)[int(rng.integers(3))]
    read(path)


def _open_fit(path: Path) -> None:
    """Open a fit as a large one is, and use all of its draws."""
    with read_fit(path, large=0) as tree:
        for node in tree.subtree:
            node.to_dataset(inherit=False).compute()


def cohort_case(seeds: Path, rng: np.random.Generator, folder: Path) -> None:
    """The stored fit of a study, and what is asked of it."""
    path = folder / "cohort.nc"
    path.write_bytes(mutate_bytes((seeds / "cohort.nc").read_bytes(), rng))
    cohort = read_cohort(path)
    all_contrasts(cohort)
    scan_table(cohort)


def table_case(seeds: Path, rng: np.random.Generator, folder: Path) -> None:
    """The table of a study, or that of participants."""
    name = str(rng.choice(["design.tsv", "participants.tsv"]))
    (folder / name).write_bytes(mutate_text((seeds / name).read_bytes(), rng))
    if name == "design.tsv":
        table = read_design_file(folder / name)
        table.pop("fit")
        read_design(table, len(table))
    else:
        read_participants(folder)


def group_case(seeds: Path, rng: np.random.Generator, folder: Path) -> None:
    """Derivatives of a study, of which a table, a description or a name is mutated."""
    run = Run({"sub": "01"}, folder)
    files = {
        str(result_file(folder, run, "biexponential", "summary.tsv").relative_to(folder)): (
            seeds / "summary.tsv"
        ).read_bytes(),
        str(
            result_file(folder, run, "biexponential", "summary.json").relative_to(folder)
        ): b'{"Run": {"Key": "0"}}',
    }
    name = str(rng.choice(list(files)))
    files[name] = mutate_text(files[name], rng)
    for place, data in files.items():
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        (folder / place).write_bytes(data)
    read_summaries(folder)
    read_key(folder, run, "biexponential")


def store_case(seeds: Path, rng: np.random.Generator, folder: Path) -> None:
    """The store of a map run that was ended, one file of it damaged."""
    shutil.copytree(seeds / "store", folder / "store")
    files = sorted(path for path in (folder / "store").rglob("*") if path.is_file())
    path = files[int(rng.integers(len(files)))]
    change = mutate_text if path.suffix == ".json" and rng.random() < 0.7 else mutate_bytes
    path.write_bytes(change(path.read_bytes(), rng) if rng.random() < 0.9 else b"")
    key = json.loads((seeds / "store" / "zarr.json").read_text())["attributes"]["ivimbayes_key"]
    store = ZarrStore(folder / "store", (6, 5, 2), (6, 5, 2), 0, key, renew=bool(rng.integers(2)))
    if not store.has((slice(0, 6), slice(0, 5), slice(0, 2))):
        block = {name: np.ones((6, 5, 2), dtype) for name, (_, dtype, _) in store.layout.items()}
        store.put((slice(0, 6), slice(0, 5), slice(0, 2)), block)
    store.finish({}, np.eye(4), {}).load()


def estimate_case(seeds: Path, rng: np.random.Generator, folder: Path) -> None:
    """A stored fit and its table, as a study reads them."""
    path, change = folder / "posterior.nc", rng.integers(2)
    data = (seeds / "posterior.nc").read_bytes()
    path.write_bytes(mutate_bytes(data, rng) if change else data)
    table = (seeds / "summary.tsv").read_bytes()
    (folder / "summary.tsv").write_bytes(table if change else mutate_text(table, rng))
    ib.region_estimates([path])


def map_case(seeds: Path, rng: np.random.Generator, folder: Path) -> None:
    """A folder of maps."""
    chosen = sorted((seeds / "maps").iterdir())
    for path in chosen:
        (folder / path.name).write_bytes(path.read_bytes())
    path = folder / chosen[int(rng.integers(len(chosen)))].name
    path.write_bytes((mutate_text if path.suffix == ".json" else mutate_bytes)(path.read_bytes(), rng))
    ib.read_maps(folder)


def bids_case(seeds: Path, rng: np.random.Generator, folder: Path) -> None:
    """A BIDS dataset whose texts and names are mutated."""
    texts = {
        "dataset_description.json": b'{"Name": "x", "BIDSVersion": "1.10.0"}', "dwi.bval": " ".join(map(str, B)).encode(),
        "derivatives/manual/dataset_description.json": b'{"Name": "y", "BIDSVersion": "1.10.0", "DatasetType": "derivative"}',
        "derivatives/manual/dseg.tsv": (seeds / "rois.tsv").read_bytes(),
    }  # fmt: skip
    images = {
        "sub-01/dwi/sub-01_dwi.nii": "dwi.nii",
        "derivatives/manual/sub-01/dwi/sub-01_dseg.nii": "rois.nii",
    }
    name = str(rng.choice(list(texts)))
    texts[name] = mutate_text(texts[name], rng)
    for place, data in (*texts.items(), *((k, (seeds / v).read_bytes()) for k, v in images.items())):
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        (folder / place).write_bytes(data)
    for run in find_runs(folder):
        if not run.fault and run.bval is not None:
            ib.read_scan(run.dwi, run.bval, run.mask, run.rois, names=run.names)


TARGETS: dict[str, tuple[Reader, float]] = {  # and its share of the cases
    "scan": (scan_case, 0.44), "priors": (prior_case, 0.14), "tree": (tree_case, 0.08), "estimates": (estimate_case, 0.06),
    "cohort": (cohort_case, 0.06), "tables": (table_case, 0.06), "group": (group_case, 0.04), "store": (store_case, 0.02),
    "maps": (map_case, 0.05), "bids": (bids_case, 0.05),
}  # fmt: skip


def target_of(case: int) -> str:
    """Which target a case is of."""
    u = np.random.default_rng([7, case]).random()
    for name, (_, share) in TARGETS.items():
        u -= share
        if u < 0:
            return name
    return next(iter(TARGETS))


def run_case(case: int, target: str, seeds: Path) -> tuple[str, str]:
    """Outcome of a case: result, refused, or a fault with what was raised."""

    def late(*_: object) -> None:
        raise Late(f"more than {SECONDS} s")

    signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    faulthandler.dump_traceback_later(2 * SECONDS, exit=True)  # where no signal is heard, as in a C library
    try:
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            TARGETS[target][0](seeds, np.random.default_rng([case, 1]), Path(folder))
        return "result", ""
    except InputError as error:
        return ("fault", f"message of several lines: {error!r}") if "\n" in str(error) else ("refused", "")
    except BaseException as error:  # noqa: BLE001
        where = traceback.extract_tb(error.__traceback__)
        ours = [f"{Path(f.filename).name}:{f.lineno}" for f in where if "ivimbayes" in f.filename]
        return "fault", f"{type(error).__name__}: {str(error)[:160]} at {ours[-1] if ours else where[-1]}"
    finally:
        signal.alarm(0)
        faulthandler.cancel_dump_traceback_later()


def child(seeds: Path, first: int, last: int, only: str | None) -> None:
    """Run cases, a line of JSON for each; the bound on memory is this process's."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    for case in range(first, last):
        target = only or target_of(case)
        sys.stdout.write(json.dumps([case, target, "started", ""]) + "\n")
        sys.stdout.flush()
        sys.stdout.write(json.dumps([case, target, *run_case(case, target, seeds)]) + "\n")
    sys.stdout.flush()


def run_batch(seeds: Path, first: int, last: int, only: str | None) -> Iterator[list[object]]:
    """Outcomes of the cases, run in a child; one that dies is a fault of the case it was at, and the rest goes on."""
    at = first
    while at < last:
        words = [
            sys.executable,
            __file__,
            "--child",
            str(seeds),
            "--first",
            str(at),
            "--cases",
            str(last - at),
        ]
        words += ["--target", only] if only else []
        with tempfile.TemporaryFile("w+") as said:
            process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=said, text=True)
            assert process.stdout is not None
            case: list[object] = [at - 1, "", "result", ""]
            for line in process.stdout:
                case = json.loads(line)
                if case[2] != "started":
                    yield case
            process.wait()
            said.seek(0)
            told = said.read()[-2000:]
        if case[2] == "started":
            yield [case[0], case[1], "fault", f"the process died, status {process.returncode}: {told[-300:]}"]
        elif int(str(case[0])) < last - 1:
            raise RuntimeError(f"no progress at case {at}: {told}")
        at = int(str(case[0])) + 1


def run_all(
    seeds: Path, first: int, cases: int, only: str | None, jobs: int
) -> tuple[Counter[tuple[str, str]], int]:
    """Run all cases; print the faults as they come, and count."""
    counts: Counter[tuple[str, str]] = Counter()
    end = first + cases

    def count(at: int) -> None:
        for case in run_batch(seeds, at, min(at + BATCH, end), only):
            counts[str(case[1]), str(case[2])] += 1
            if case[2] == "fault":
                print(*case, flush=True)
            if sum(counts.values()) % 5000 == 0:
                print(f"{sum(counts.values())} of {cases} cases", file=sys.stderr, flush=True)

    pool = ThreadPoolExecutor(jobs)
    try:
        for done in [pool.submit(count, at) for at in range(first, end, BATCH)]:
            done.result()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
    finally:
        pool.shutdown(cancel_futures=True)
    return counts, sum(n for (_, outcome), n in counts.items() if outcome == "fault")


def main() -> None:
    """Run and report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--target", choices=list(TARGETS))
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child is not None:
        child(given.child, given.first, given.first + given.cases, given.target)
        return
    with tempfile.TemporaryDirectory() as folder:
        seeds_of(Path(folder))
        counts, faults = run_all(Path(folder), given.first, given.cases, given.target, given.jobs)
    print(pd.Series(counts).unstack(fill_value=0).to_string())
    print(f"{sum(counts.values())} cases, {faults} faults")
    raise SystemExit(bool(faults))


if __name__ == "__main__":
    main()
