"""Other packages' bi-exponential fits, called alike: b in s/mm2 and signal (voxel, measurement) in, maps out.

The rivals are no dependency of this package: run these where they are installed (ivim-mri needs numpy<2).
D_star is always that of f exp(-b D*) + (1 - f) exp(-b D), whatever the rival calls by that name. A voxel that
the rival does not fit is NaN.
"""

import math
import sys
import time
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numba import njit, prange

# A NIfTI axis holds at most 32767 voxels.
LONGEST = 32767

Maps = dict[str, np.ndarray]


def ivim_mri_bayes(b: np.ndarray, signal: np.ndarray) -> Maps:
    """Posterior means by ivim-mri, ``ivim.fit.bayes(..., regime="diffusive")``, at its defaults.

    One chain a voxel, updating one value at a time: 1000 burn-in iterations and 2000 more, flat priors (D 0
    to 3e-3, f 0 to 1, D* - 1.75e-3 0 to 1, S0 0 to twice the largest signal of all voxels), sigma integrated
    out, no spatial prior. ``ctm="mean"`` is the default and the only one of its three summaries that does not
    keep every draw; no interval or sd is written. All voxels advance together in numpy, on one core; random
    numbers come from numpy's global generator. Its D* is added to blood's D (1.75e-3), which is put back
    here. Needs measurements at b = 0; a voxel with any signal not above zero is not fitted.
    """
    from ivim.constants import Db

    maps = _ivim_mri("bayes", b, signal)
    return maps | {"D_star": maps["D_star"] + Db}


def ivim_mri_segmented(b: np.ndarray, signal: np.ndarray) -> Maps:
    """Segmented fit by ivim-mri, ``ivim.fit.seg(..., regime="diffusive")``, at its defaults.

    D (0 to 3e-3) from b >= 200, its default, by least squares of one exponential; D* (3e-3 to 0.1) by the
    same from what remains at every b. Here its D* is the whole rate, unlike in the Bayesian fit. All voxels
    advance together in numpy, on one core. A voxel with any signal not above zero at b >= 200 is not fitted.
    """
    maps = _ivim_mri("seg", b, signal)
    return maps | {"D_star": np.where(np.isfinite(maps["f"]), maps["D_star"], np.nan)}


def _ivim_mri(method: str, b: np.ndarray, signal: np.ndarray) -> Maps:
    """Write a NIfTI image and its b-values, fit, and read the maps back: ivim-mri has no other way in."""
    import nibabel as nib
    from ivim import fit

    voxels = len(signal)
    columns = max(1, math.ceil(voxels / LONGEST))
    image = np.zeros((math.ceil(voxels / columns), columns, 1, len(b)))  # zeros are left out of the fit
    image.reshape(-1, len(b))[:voxels] = signal
    with TemporaryDirectory() as folder:
        scan, b_file = Path(folder) / "scan.nii", Path(folder) / "scan.bval"
        nib.save(nib.Nifti1Image(image, np.eye(4)), scan)
        np.savetxt(b_file, np.asarray(b, float)[None])
        with np.errstate(all="ignore"):
            getattr(fit, method)(
                str(scan), str(b_file), regime="diffusive", outbase=str(Path(folder) / "map")
            )
        return {
            ours: nib.load(Path(folder) / f"map_{theirs}.nii.gz").get_fdata().ravel()[:voxels]
            for ours, theirs in (("f", "f"), ("D", "D"), ("D_star", "Dstar"))
        }


def dipy_ivim(
    b: np.ndarray,
    signal: np.ndarray,
    method: str = "trr",
    engine: str = "serial",
    n_jobs: int = 1,
    bounds: tuple[list[float], list[float]] | None = None,
) -> Maps:
    """Least-squares fit by dipy, ``IvimModel(gradient_table(...)).fit(signal)``, at its defaults ("trr").

    Voxel by voxel: D and S0 from straight lines through log signal at b >= 400 and b <= 200, then f and D*,
    then all four, within f 0 to 0.2, D* and D 0 to 1; where a step fails, the values of the one before it,
    even outside those limits (S0 expects signals of about 1000: its step is scaled so). ``engine`` "joblib",
    "ray" or "dask" with ``n_jobs`` is its own way to more cores. Repeated b = 0 stays as it is. A voxel with
    any signal not above zero has no logarithm and is left out. ``bounds`` are of (S0, f, D*, D), None for its
    own; ``method`` "varpro" needs cvxpy and has bounds of (f, D*, D).
    """
    from dipy.core.gradients import gradient_table
    from dipy.reconst.ivim import IvimModel

    b = np.asarray(b, float)
    signal = np.asarray(signal, float)
    directions = np.where(b[:, None] > 0, (1.0, 0.0, 0.0), 0.0)
    good = (np.isfinite(signal) & (signal > 0)).all(axis=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = IvimModel(
            gradient_table(b, bvecs=directions, b0_threshold=0), fit_method=method, bounds=bounds
        )
        options = {} if engine == "serial" else {"engine": engine, "n_jobs": n_jobs}
        found = np.full((len(signal), 4), np.nan)
        if good.any():
            found[good] = model.fit(signal[good], **options).model_params
    return {"f": found[:, 1], "D_star": found[:, 2], "D": found[:, 3]}


@njit(parallel=True, fastmath=True)
def direct_loop(b: np.ndarray, f: np.ndarray, D: np.ndarray, D_star: np.ndarray, repeats: int = 500) -> float:
    """Sum of all voxels' signals at every b, each evaluated ``repeats`` times with new parameters."""
    total = 0.0
    for v in prange(len(f)):
        inside = 0.0
        for s in range(repeats):
            change = 1 + 1e-6 * s
            fraction, slow, fast = f[v] * change, D[v] * change, D_star[v] * change
            for k in range(len(b)):
                inside += fraction * math.exp(-b[k] * fast) + (1 - fraction) * math.exp(-b[k] * slow)
        total += inside
    return total


def main(method: str, source: str, target: str) -> None:
    """Run a method on the arrays of a file, after a first call on a few voxels; write maps and seconds."""
    with np.load(source) as given:
        b, signal = given["b"], given["signal"]
        truth = [given[name] for name in ("f", "D", "D_star")] if method == "direct_loop" else []
    np.random.seed(0)  # noqa: NPY002  ivim-mri draws from the global generator

    def run(part: slice) -> Maps:
        if method == "direct_loop":
            return {"total": np.array(direct_loop(b, *(v[part] for v in truth)))}
        if method == "dipy_ivim":
            return dipy_ivim(b, signal[part], engine="joblib", n_jobs=2)
        if method == "dipy_ivim_free":
            bounds = ([0.0, 0.0, 0.0, 0.0], [np.inf, 1.0, 1.0, 1.0])
            return dipy_ivim(b, signal[part], engine="joblib", n_jobs=2, bounds=bounds)
        return {"ivim_mri_bayes": ivim_mri_bayes, "ivim_mri_segmented": ivim_mri_segmented}[method](
            b, signal[part]
        )

    run(slice(0, 20))
    began = time.perf_counter()
    maps = run(slice(None))
    np.savez(target, seconds=time.perf_counter() - began, **maps)


if __name__ == "__main__":
    main(*sys.argv[1:])
