"""Runs killed at random moments (SIGKILL) and started again: they end with the bytes of an undisturbed one.

    .venv/bin/python tests/faults/kills.py --kills 10 [--command fit --command map --command bids] [--seed 0]

Each kill has a new results folder: the command is started, killed after a time drawn evenly between nothing and
the length of an undisturbed run, and started again until it ends by itself. A run that ends before its kill does
not count. Of what is left by a kill, every file with a result's name must be whole. Then all files are compared.
"""

import argparse
import hashlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import xarray as xr

import ivimbayes as ib
from ivimbayes.io.scans import write_scan

DRAWS = ("--draws", "200", "--tune", "300", "--chains", "2", "--no-retry", "--quiet")


def command(*words: object) -> list[str]:
    """Words of a command of the package."""
    return [sys.executable, "-m", "ivimbayes", *map(str, words)]


def make_fit(folder: Path) -> Callable[[Path], list[str]]:
    """A fit of three regions with maps."""
    dwi, labels = write_scan(ib.phantom()[0].isel(z=[0]), folder)
    return lambda out: command("fit", dwi, "--rois", labels, "--out", out, "--voxels-per-roi", 40, *DRAWS)


def make_map(folder: Path) -> Callable[[Path], list[str]]:
    """A map of 96 000 voxels, 29 s of a core."""
    dwi, labels = write_scan(ib.phantom()[0], folder)
    words = command("fit", dwi, "--rois", labels, "--out", folder / "fit", "--no-maps", "--quiet")
    subprocess.run(words, check=True, capture_output=True)
    image = nib.load(dwi)
    big = np.concatenate([np.asarray(image.dataobj)] * 60, axis=2)
    nib.save(nib.Nifti1Image(big, image.affine), folder / "big.nii.gz")
    (folder / "big.bval").write_text((folder / "dwi.bval").read_text())
    return lambda out: command(
        "map", folder / "fit", "--dwi", folder / "big.nii.gz", "--out", out, "--real-valued", "--quiet"
    )


def make_bids(folder: Path) -> Callable[[Path], list[str]]:
    """A study of two subjects with one session, two regions each, on two workers."""
    ib.simulate_study(folder / "study", subjects=2, sessions=1, seed=0)
    return lambda out: command("bids", folder / "study", out, "participant", "--voxels-per-roi", 30, *DRAWS)


COMMANDS: dict[str, Callable[[Path], Callable[[Path], list[str]]]] = {
    "fit": make_fit, "map": make_map, "bids": make_bids,
}  # fmt: skip


def content(path: Path, root: Path) -> str:
    """Digest of a file; of a stored fit, of its numbers and attributes, since HDF5 stores times."""
    data = path.read_bytes()
    if path.suffix == ".nc":
        tree = ib.read_tree(path)
        parts = [
            (node.path, name, variable.dims, hashlib.sha256(np.asarray(variable.values).astype(str).tobytes()
             if variable.dtype.kind in "OUT" else variable.values.tobytes()).hexdigest())
            for node in tree.subtree for name, variable in sorted(node.variables.items())
        ]  # fmt: skip
        attrs = [
            (node.path, sorted(map(str, node.attrs.items())), {k: sorted(map(str, v.attrs.items())) for k, v in node.variables.items()})
            for node in tree.subtree
        ]  # fmt: skip
        data = repr((parts, attrs)).encode()
    if path.suffix in (".html", ".json", ".md"):
        data = data.replace(str(root).encode(), b"OUT").replace(root.name.encode(), b"OUT")
    return hashlib.sha256(data).hexdigest()


def contents(root: Path) -> dict[str, str]:
    """Digest of every file of a results folder."""
    return {str(p.relative_to(root)): content(p, root) for p in sorted(root.rglob("*")) if p.is_file()}


def check_whole(root: Path) -> None:
    """Read every file that has a result's name; raise if one is not whole."""
    for path in root.rglob("*"):
        hidden = any(part.startswith(".") for part in path.relative_to(root).parts)
        if not path.is_file() or hidden:
            continue
        if path.name.endswith(".nii.gz"):
            nib.load(path).get_fdata()
        elif path.suffix == ".nc":
            with xr.open_datatree(path, engine="h5netcdf") as tree:
                tree.load()
        elif path.suffix == ".tsv":
            pd.read_csv(path, sep="\t")
        elif path.suffix == ".html":
            assert path.read_text(encoding="utf-8").rstrip().endswith("</html>"), path


def run_killed(words: list[str], after: float) -> bool:
    """Start a command and kill it with its workers after some seconds; whether the kill came in time."""
    process = subprocess.Popen(
        words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        process.wait(timeout=after)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return True
    return False


def kill_runs(name: str, kills: int, seed: int) -> tuple[int, int, list[str]]:
    """Kill a command so often: kills, runs that ended before theirs, differences found."""
    rng, faults = np.random.default_rng([seed, len(name)]), list[str]()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        words = COMMANDS[name](folder)
        subprocess.run(words(folder / "results-first"), check=True, capture_output=True)
        began = time.monotonic()
        subprocess.run(words(folder / "results-second"), check=True, capture_output=True)
        length, wanted = time.monotonic() - began, contents(folder / "results-second")
        first = contents(folder / "results-first")
        if other := sorted(k for k in {*first, *wanted} if first.get(k) != wanted.get(k)):
            faults.append(f"two undisturbed runs differ: {other[:5]}")
        killed = early = 0
        while killed < kills:
            out = folder / f"results-{killed + early}"
            if not run_killed(words(out), rng.uniform(0.02, 1.0) * length):
                early += 1
                continue
            killed += 1
            check_whole(out)
            left = sorted(p.name for p in out.iterdir()) if out.exists() else []
            again = subprocess.run(words(out), capture_output=True, text=True, check=False)
            placed = again.returncode == 2 and re.search("are now in place", again.stderr)
            if (
                again.returncode != 0
                and not placed
                and not (again.returncode == 2 and contents(out) == wanted)
            ):
                faults.append(f"kill {killed} ({left}): status {again.returncode}: {again.stderr[-300:]}")
                continue
            found = contents(out)
            if found != wanted:
                other = sorted(k for k in {*found, *wanted} if found.get(k) != wanted.get(k))
                faults.append(f"kill {killed} ({left}): other files: {other[:5]}")
    return killed, early, faults


def main() -> None:
    """Run and report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--command", action="append", choices=list(COMMANDS))
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    wrong = 0
    for name in given.command or list(COMMANDS):
        began = time.monotonic()
        killed, early, faults = kill_runs(name, given.kills, given.seed)
        wrong += len(faults)
        print(
            f"{name}: {killed} kills, {killed - len(faults)} ended as an undisturbed run; {early} runs ended before "
            f"theirs; {time.monotonic() - began:.0f} s",
            flush=True,
        )
        for fault in faults:
            print(f"  {fault}")
    raise SystemExit(bool(wrong))


if __name__ == "__main__":
    main()
