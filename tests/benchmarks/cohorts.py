"""Studies of known truth: do the intervals of group contrasts hold it, and how long do many subjects take?

    .venv/bin/python tests/benchmarks/cohorts.py [--studies 200] [--subjects 2000]

A study has 20 subjects in two groups, one scan each; 20 voxels of liver, 16 b values, Gaussian noise, SNR 40. theta =
(logit f, ln D, ln(D* - D)) of a subject differs by standard deviations of 0.2, 0.05 and 0.2, that of a voxel by 0.3,
0.12 and 0.3; f of patients is 0.7 times, D* 1.3 times that of controls. Every subject is fitted from its signals, two
chains of 400 draws, and the fits that did not fail go to `fit_cohort`. Beside it a model that takes each subject's posterior means for
the truth and is told that the subjects do not differ otherwise, which must fail.
The many subjects have four regions each, whose estimates are simulated; reading them from files is timed apart.
"""

import argparse
import time
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import xarray as xr
from truth import with_signals_of

from ivimbayes import contrast, fit, fit_cohort, region_estimates, simulate, tissue_prior, write_tree
from ivimbayes.models.population import draw_theta
from ivimbayes.models.signals import SIGNALS

B = (0, 0, 10, 20, 40, 80, 110, 140, 170, 200, 300, 400, 500, 600, 700, 800)
MODEL, SNR, VOXELS, PEOPLE = SIGNALS["biexponential"], 40, 20, 20
SUBJECTS, WITHIN = (0.2, 0.05, 0.2), (0.3, 0.12, 0.3)
CONTROL = np.array(tuple(tissue_prior("liver").centre.values()))
PATIENT = CONTROL * [0.7, 1.0, 1.3]
GROUPS = ("control", "patient")
FITTED = {"draws": 400, "tune": 300, "chains": 2, "retry": False, "progress": False}


def scan_of(seed: int, people: int) -> tuple[xr.Dataset, pd.DataFrame]:
    """Subjects along y, the voxels of each along x, a label for each; and the design."""
    rng = np.random.default_rng(seed)
    scan, _ = simulate(B, SNR, voxels=VOXELS, regions=people, seed=seed)
    group = np.arange(people) % 2
    centre = np.array([MODEL.theta(*v) for v in (CONTROL, PATIENT)])[group]
    centre += rng.standard_normal(centre.shape) * SUBJECTS
    theta = np.stack([draw_theta(c, np.diag(np.square(WITHIN)), VOXELS, rng) for c in centre], axis=1)
    return with_signals_of(scan, theta, SNR, rng), pd.DataFrame({"group": np.array(GROUPS)[group]})


def study(seed: int, people: int = PEOPLE) -> tuple[xr.Dataset, pd.DataFrame]:
    """Estimates of one study's fits, and its design; a subject is a region of one scan here."""
    scan, design = scan_of(seed, people)
    tree = fit(scan, tissue={"*": "liver"}, seed=seed, **FITTED)
    together = region_estimates([tree])  # without the regions that failed
    return by_subject(together.reindex(roi=tree["posterior"]["roi"].values)), design


def study_fits(seed: int, people: int) -> tuple[list[xr.DataTree], pd.DataFrame]:
    """A fit for each subject, of the region liver, and the design."""
    scan, design = scan_of(seed, people)
    fits = []
    for n in range(people):
        one = scan.isel(y=[n])
        one["roi"] = (one["roi"] > 0).astype(np.int32)
        one.attrs["roi_names"] = '{"1": "liver"}'
        fits.append(fit(one, seed=n, progress=False))
    return fits, design


def by_subject(together: xr.Dataset) -> xr.Dataset:
    """Turn the regions of one fit to fits of one region."""
    names = ("mean", "covariance", "ess", "centre", "width")
    parts = {n: together[n].isel(fit=0).rename(roi="fit").expand_dims(roi=["liver"], axis=1) for n in names}
    spread = together["spread"].dropna("roi").isel(roi=[0]).assign_coords(roi=["liver"])
    return xr.Dataset({**parts, "spread": spread}, attrs=together.attrs).drop_vars("fit")


def naive(estimates: xr.Dataset, design: pd.DataFrame) -> dict[str, tuple[float, float]]:
    """Interval of the ratio of groups that pools each subject's posterior, as if subjects did not differ."""
    rng, found = np.random.default_rng(0), {}
    means = []
    for group in GROUPS:
        there = estimates["mean"].notnull().all(("roi", "parameter")).values
        mine = np.flatnonzero((design["group"] == group) & there)
        precision = np.linalg.inv(estimates["covariance"].values[mine, 0])
        total = np.linalg.inv(precision.sum(axis=0))
        mean = total @ np.einsum("sij,sj->i", precision, estimates["mean"].values[mine, 0])
        means.append(MODEL.values(*rng.multivariate_normal(mean, total, 4000).T))
    for p, a, b in zip(MODEL.parameters, means[1], means[0], strict=True):
        found[p] = tuple(np.quantile(a - b, [0.025, 0.975]))
    return found


def coverage(studies: int, first: int = 0) -> pd.DataFrame:
    """Whether the interval of each study's difference holds the truth, by parameter."""
    truth = dict(zip(MODEL.parameters, PATIENT - CONTROL, strict=True))
    scale = {"f": 1.0, "D": 1e3, "D_star": 1e3}
    rows = []
    for n in range(studies):
        estimates, design = study(1000 + first + n)
        cohort = fit_cohort(estimates, design, draws=500, chains=2, seed=n)
        table = contrast(cohort, {"group": "patient"}, {"group": "control"}).set_index("parameter")
        wrong = naive(estimates, design)
        for p in MODEL.parameters:
            low, high = table.loc[p, ["difference_low", "difference_high"]]
            rows.append(
                {
                    "study": n, "parameter": p, "held": low <= scale[p] * truth[p] <= high,
                    "naive": wrong[p][0] <= truth[p] <= wrong[p][1], "p_greater": table.loc[p, "p_greater"],
                }
            )  # fmt: skip
        if n % 20 == 19:
            print(
                f"{n + 1} studies",
                pd.DataFrame(rows).groupby("parameter")[["held", "naive"]].mean().to_dict(),
            )
    return pd.DataFrame(rows)


def many(subjects: int, regions: int = 4) -> None:
    """Time a study of many subjects from its estimates, and the reading of as many stored fits."""
    one, _ = study(1, 10)
    rng = np.random.default_rng(2)
    group = np.arange(subjects) % 2
    shift = rng.standard_normal((subjects, regions, 3)) * SUBJECTS + (group == 1)[:, None, None] * [
        -0.4,
        0.0,
        0.2,
    ]
    noise = np.linalg.cholesky(one["covariance"].values[0, 0])
    dims = ("fit", "roi", "parameter")
    shape = (subjects, regions, 1)
    estimates = xr.Dataset(
        {
            "mean": (dims, MODEL.theta(*CONTROL) + shift + rng.standard_normal(shift.shape) @ noise.T),
            "covariance": ((*dims, "other"), np.tile(one["covariance"].values[:1, :1], (*shape, 1))),
            "ess": (dims[:2], np.full(shape[:2], 1000.0)),
            "centre": (dims, np.tile(one["centre"].values[0, 0], shape)),
            "width": (dims, np.tile(one["width"].values[0, 0], shape)),
            "spread": (dims[1:], np.tile(one["spread"].values[0], (regions, 1))),
        },
        coords={"roi": [f"region-{n}" for n in range(regions)], "parameter": list(MODEL.parameters)},
        attrs=one.attrs,
    )
    design = pd.DataFrame({"group": np.array(GROUPS)[group]})
    start = time.perf_counter()
    cohort = fit_cohort(estimates, design)
    spent = time.perf_counter() - start
    ess = cohort["constant_data"]["effective_draws"].values
    print(f"{subjects} subjects x {regions} regions: {spent:.1f} s; effective draws {ess.min():.0f} or more")
    scan, _ = simulate(B, SNR, voxels=VOXELS, regions=regions, seed=1)
    with TemporaryDirectory() as folder:
        write_tree(
            fit(scan, tissue={"*": "liver"}, draws=1000, tune=200, retry=False, progress=False),
            f"{folder}/posterior.nc",
        )
        pd.DataFrame({"roi": ["x"], "verdict": ["converged"]}).to_csv(
            f"{folder}/summary.tsv", sep="\t", index=False
        )
        start = time.perf_counter()
        region_estimates([f"{folder}/posterior.nc"] * 100)
        print(
            f"reading: {(time.perf_counter() - start) / 100 * subjects:.1f} s for {subjects} fits of {regions} regions"
        )


def main() -> None:
    """Print coverage by parameter, and times."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--studies", type=int, default=200)
    parser.add_argument("--subjects", type=int, default=2000)
    given = parser.parse_args()
    if given.studies:
        found = coverage(given.studies)
        print(found.groupby("parameter")[["held", "naive"]].mean().mul(100).round(1).to_string())
    if given.subjects:
        many(given.subjects)


if __name__ == "__main__":
    main()
