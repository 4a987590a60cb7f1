"""Draws, maps and speed beside an earlier commit, in one run.

    .venv/bin/python tests/benchmarks/earlier.py 3552e9f

The earlier commit is checked out into a temporary folder and run with the same dependencies. Both sides do the
same work through the public interface: short fits of every signal, noise and population, maps, single curves, least
squares, planning and a comparison. The table says, for each result, whether the two are identical bit by bit, or else
the largest difference relative to the largest number of the array. Then both sides time the log-density with its
gradient and the maps, in turns; a ratio above 1 means that this commit is faster.
"""

import argparse
import subprocess
import sys
import time
import warnings
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

B = (0, 0, 10, 20, 40, 80, 110, 140, 170, 200, 300, 400, 500, 600, 700, 800)
FITS = (
    ("biexponential", "gaussian", "normal"), ("biexponential", "rician", "normal"),
    ("biexponential", "student_t", "normal"), ("biexponential", "gaussian", "student_t"),
    ("biexponential", "gaussian", "mixture"), ("monoexponential", "gaussian", "normal"),
    ("kurtosis", "rician", "normal"), ("simplified", "gaussian", "normal"),
    ("biexponential_kurtosis", "gaussian", "normal"), ("triexponential", "rician", "normal"),
)  # fmt: skip


def results() -> dict[str, np.ndarray]:
    """Compute what is compared, by name."""
    import ivimbayes as ib
    from ivimbayes.osipi import IvimBayes

    found: dict[str, np.ndarray] = {}
    kept: dict[str, object] = {}
    for signal, noise, population in FITS:
        scan, _ = ib.simulate(B, 30, voxels=60, signal=signal, noise=noise, seed=3)
        for level in ("voxel", "mean") if population == "normal" else ("voxel",):
            spec = ib.ModelSpec(signal, noise, population)
            tree = ib.fit(
                scan, spec, level=level, draws=120, tune=150, chains=2, seed=1, retry=False, progress=False
            )
            kept[f"{signal} {noise} {population} {level}"] = tree
            for group in ("prior", "posterior", "log_likelihood", "posterior_predictive"):
                for name, variable in tree[group].data_vars.items():
                    if variable.dtype.kind == "f":
                        key = f"fit/{signal} {noise} {population} {level}/{group}/{name}"
                        found[key] = variable.values
    for noise in ("gaussian", "rician"):
        scan, _ = ib.simulate(B, 20, voxels=400, prior=ib.tissue_prior("kidney"), noise=noise, seed=4)
        tree = kept[f"biexponential {noise} normal voxel"]
        maps = ib.posterior_maps(scan, tree, keep_draws=8, seed=2, progress=False)
        found |= {f"maps/{noise}/{name}": v.values for name, v in maps.data_vars.items()}
    heavy = ib.posterior_maps(scan, kept["biexponential gaussian student_t voxel"], progress=False)
    found |= {f"maps/student_t/{name}": v.values for name, v in heavy.data_vars.items()}
    own, _ = ib.simulate(B, 30, voxels=60, signal="biexponential", noise="gaussian", seed=3)
    fitted = ib.posterior_maps(own, kept["biexponential gaussian normal voxel"], progress=False)
    found |= {f"maps/fitted/{name}": v.values for name, v in fitted.data_vars.items()}
    for name, function in (("segmented", ib.fit_segmented), ("full", ib.fit_full)):
        found |= {f"least squares/{name}/{k}": v.values for k, v in function(scan).data_vars.items()}
    curves = IvimBayes(bvalues=np.array(B, float))
    signals = scan["signal"].values.reshape(-1, len(B))[:60]
    table = [curves.osipi_fit(s / s[0], np.array(B, float)) for s in signals]
    found |= {f"curves/{k}": np.array([t[k] for t in table]) for k in table[0]}
    precision = ib.expected_precision(np.array(B, float), ib.tissue_prior("liver"), snr=30)
    found |= {f"precision/{k}": v.values for k, v in precision.data_vars.items() if v.dtype.kind == "f"}
    for key in ("monoexponential gaussian normal voxel", "biexponential gaussian normal voxel"):
        table = ib.summarize(kept[key]).select_dtypes("number")
        found |= {f"summary/{key}/{name}": table[name].to_numpy() for name in table}
    return {name: np.asarray(v, float) for name, v in found.items() if np.asarray(v).dtype.kind in "fiu"}


def gradient_cost() -> float:
    """Seconds of one log-density with gradient: 200 voxels, 16 b values, Gaussian noise."""
    wings = find_spec("ivimbayes.fitting") is not None
    density = import_module("ivimbayes.fitting.density" if wings else "ivimbayes.density")
    packing = import_module("ivimbayes.fitting.packing" if wings else "ivimbayes.density")
    data = import_module("ivimbayes.fitting.packing" if wings else "ivimbayes.spec")
    population_mode = import_module("ivimbayes.fitting.modes" if wings else "ivimbayes.modes").population_mode
    from ivimbayes import ModelSpec, choose_voxels, simulate

    scan, _ = simulate(B, 30, voxels=200, seed=5)
    chosen, spec = choose_voxels(scan)["region-1"], ModelSpec()
    found = population_mode(
        chosen["signal"].values / 100, chosen["averages"].values, np.array(B, float), spec.prior, None,
        "biexponential", "gaussian",
    )  # fmt: skip
    block = packing.pack_region(data.model_data(chosen, spec, found, 100.0), spec)
    sd = np.sqrt(np.diag(found.covariance))
    x = np.zeros(packing.coordinates(block))
    x[: 2 * len(sd)] = np.concatenate([found.mean, np.log(sd)])
    x[9:12] = 1, -2, np.log(found.sigma)
    slope, value, times = np.empty_like(x), np.empty(1), []
    call = (density.callbacks(block) if wings else density.callbacks())[0].ctypes
    pointers = [a.ctypes.data_as(kind) for a, kind in zip((x, slope, value), call.argtypes[1:4], strict=True)]
    for _ in range(5):
        began = time.perf_counter()
        for _ in range(400):
            call(x.size, *pointers, block.ctypes.data)
        times.append((time.perf_counter() - began) / 400)
    return min(times)


def map_cost(noise: str, voxels: int = 4000) -> float:
    """Seconds of the maps of a liver."""
    import ivimbayes as ib

    prior = ib.tissue_prior("liver")
    small, _ = ib.simulate(B, 30, voxels=100, prior=prior, noise=noise, seed=3)
    tree = ib.fit(
        small, ib.ModelSpec(noise=noise), tissue={"*": "liver"}, draws=500, tune=300, chains=2, seed=1, retry=False,
        progress=False,
    )  # fmt: skip
    scan, _ = ib.simulate(B, 30, voxels=voxels, prior=prior, noise=noise, seed=6)
    ib.posterior_maps(small, tree, progress=False)
    times = []
    for _ in range(3):
        began = time.perf_counter()
        ib.posterior_maps(scan, tree, progress=False)
        times.append(time.perf_counter() - began)
    return min(times)


COSTS = {
    "gradient": gradient_cost, "maps, gaussian": lambda: map_cost("gaussian"),
    "maps, rician": lambda: map_cost("rician", 1000),
}  # fmt: skip


def worker(task: str, target: str) -> None:
    """Do one side's work and write it to a file."""
    warnings.simplefilter("ignore")
    if task == "results":
        np.savez(target, **{k.replace("/", "|"): v for k, v in results().items()})
    else:
        np.savez(target, seconds=COSTS[task]())


def run(package: Path, task: str, target: Path) -> dict[str, np.ndarray]:
    """Run a worker with one of the two packages."""
    code = f"import sys; sys.path.insert(0, {str(package)!r}); sys.path.insert(1, {str(Path(__file__).parent)!r})"
    subprocess.run(
        [sys.executable, "-c", f"{code}; import earlier; earlier.worker({task!r}, {str(target)!r})"],
        check=True,
    )
    with np.load(target, allow_pickle=False) as file:
        return {name.replace("|", "/"): file[name] for name in file.files}


def difference(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Largest difference over the largest number; infinite where shapes or what is missing differ."""
    if ours.shape != theirs.shape or (np.isfinite(ours) != np.isfinite(theirs)).any():
        return np.inf
    good = np.isfinite(ours)
    scale = np.abs(theirs[good]).max(initial=0.0)
    return float(np.abs(ours - theirs)[good].max(initial=0.0) / scale) if scale > 0 else 0.0


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("commit")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each side for the speed; 0 for none")
    parser.add_argument("--tolerance", type=float, default=1e-12)
    given = parser.parse_args()
    here = Path(__file__).resolve().parents[2]
    with TemporaryDirectory() as temporary:
        there, target = Path(temporary) / "earlier", Path(temporary) / "found.npz"
        subprocess.run(
            ["git", "-C", str(here), "worktree", "add", "-f", "--detach", str(there), given.commit],
            check=True,
        )
        try:
            theirs, ours = run(there, "results", target), run(here, "results", target)
            missing = sorted(set(theirs) - set(ours))
            worst = {name: difference(ours[name], theirs[name]) for name in theirs if name in ours}
            same = sum(np.array_equal(ours[n], theirs[n], equal_nan=True) for n in worst)
            print(f"{len(worst)} arrays: {same} identical bit by bit; missing: {missing or 'none'}")
            for name, size in sorted(worst.items(), key=lambda item: -item[1]):
                if size > given.tolerance:
                    print(f"  {name}: {size:.2g}")
            for task in COSTS if given.rounds else ():
                pairs = [
                    [float(run(p, task, target)["seconds"]) for p in (there, here)]
                    for _ in range(given.rounds)
                ]
                before, now = np.min(pairs, axis=0)
                print(f"{task}: {before:.4g} s before, {now:.4g} s now, ratio {before / now:.3f}")
        finally:
            subprocess.run(["git", "-C", str(here), "worktree", "remove", "--force", str(there)], check=True)


if __name__ == "__main__":
    main()
