"""Memory of long runs: a scan of many regions, and a study of many scans.

    .venv/bin/python tests/benchmarks/long_runs.py

Each size is a process of its own, whose peak resident memory is read from /proc. A fit keeps the draws of its
regions in files, as the command `ivimbayes fit` does; tables and report are made from there. Beside the peak stands
the size that all draws would take. The studies are without reports, which take the same memory one by one, and most
of the time.
"""

import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np

import ivimbayes.bids.derivatives

SHORT = {"draws": 100, "tune": 100, "chains": 2, "retry": False, "progress": False}


def peak() -> float:
    """Peak resident memory of this process, MiB."""
    status = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    line = next(line for line in status if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def fit_many(regions: int) -> str:
    """Fit a scan of so many regions of ten voxels, keeping each as it is finished."""
    import json

    import ivimbayes as ib

    scan, _ = ib.phantom()
    inside = scan["signal"].values[scan["roi"].values == 1]
    labels = np.repeat(np.arange(1, regions + 1), 10).reshape(regions, 10, 1)
    big = scan.isel(x=np.zeros(regions, int), y=np.zeros(10, int), z=[0]).copy(deep=True)
    big["signal"].values[:] = np.resize(inside, (regions, 10, 1, inside.shape[1]))
    big["roi"] = (("x", "y", "z"), labels)
    big.attrs["roi_names"] = json.dumps({str(k): f"liver {k}" for k in range(1, regions + 1)})
    with tempfile.TemporaryDirectory() as folder:
        tree = ib.fit(big, checkpoint=folder, load=False, **SHORT)
        sampled = peak()
        ib.write_report(tree, Path(folder) / "report.html")
        size = sum(node.to_dataset(inherit=False).nbytes for node in tree.subtree) / 2**20
        tree.close()
    return f"{sampled:.0f} before the report, draws of all regions {size:.0f} MiB"


def study_many(scans: int) -> str:
    """Fit a study of so many scans with two regions."""
    import ivimbayes as ib

    ivimbayes.bids.derivatives.render_report = lambda *_, **__: "<html></html>"  # type: ignore[assignment]
    with tempfile.TemporaryDirectory() as folder:
        ib.simulate_study(Path(folder) / "study", subjects=scans, sessions=1)
        table = ib.run_participant(
            Path(folder) / "study", Path(folder) / "out", workers=1, voxels_per_roi=8, maps=False, **SHORT
        )
    return f"{(table['status'] == 'done').sum()} scans done"


def main() -> None:
    """Run every size in a process of its own."""
    if len(sys.argv) > 1:
        warnings.simplefilter("ignore")
        began = time.monotonic()
        said = {"regions": fit_many, "scans": study_many}[sys.argv[1]](int(sys.argv[2]))
        print(f"{sys.argv[2]} {sys.argv[1]}: peak {peak():.0f} MiB, {said}, {time.monotonic() - began:.0f} s")
        return
    for what, sizes in (("regions", (50, 200, 500)), ("scans", (25, 100))):
        for size in sizes:
            subprocess.run([sys.executable, __file__, what, str(size)], check=True)


if __name__ == "__main__":
    main()
