"""The level above regions: against dense algebra, brute force, the joint model; coverage; bad input."""

import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import cohorts
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from scipy.stats import multivariate_normal

from ivimbayes import (
    InputError,
    InputWarning,
    all_contrasts,
    contrast,
    diagnose,
    fit_cohort,
    fit_joint,
    plot_cohort,
    predict_cohort,
    read_cohort,
    region_estimates,
    scan_table,
)
from ivimbayes.cohorts.adaptive import draw_density
from ivimbayes.cohorts.density import Density, draw_means, marginal
from ivimbayes.cohorts.design import read_design
from ivimbayes.cohorts.estimates import gaussian_likelihood
from ivimbayes.models.signals import SIGNALS

CENTRE, WIDTH, SPREAD = np.array([-2.2, -6.9, -4.0]), np.array([0.85, 0.6, 1.2]), np.array([0.7, 0.4, 0.7])
MEAN, EFFECT = np.array([-1.5, -6.8, -3.3]), np.array([-0.4, 0.0, 0.2])
BETWEEN, WITHIN, ERROR = (0.2, 0.05, 0.2), (0.08, 0.03, 0.1), (0.12, 0.04, 0.3)
MODEL = SIGNALS["biexponential"]
Refused = Callable[..., str]


def estimates_of(theta: np.ndarray, rng: np.random.Generator, error: tuple[float, ...] = ERROR) -> xr.Dataset:
    """What fits with normal likelihoods of given errors would say of theta (scan, parameter), one region."""
    Lambda = np.diag(1 / np.square(error))
    seen = theta + rng.standard_normal(theta.shape) * error
    covariance = np.linalg.inv(Lambda + np.diag(1 / WIDTH**2))
    mean = (seen @ Lambda + CENTRE / WIDTH**2) @ covariance
    dims, n = ("fit", "roi", "parameter"), len(theta)
    return xr.Dataset(
        {
            "mean": (dims, mean[:, None]),
            "covariance": ((*dims, "other"), np.tile(covariance, (n, 1, 1, 1))),
            "centre": (dims, np.tile(CENTRE, (n, 1, 1))),
            "width": (dims, np.tile(WIDTH, (n, 1, 1))),
            "ess": (dims[:2], np.full((n, 1), np.inf)),
            "spread": (dims[1:], SPREAD[None]),
        },
        coords={"roi": ["liver"], "parameter": list(MODEL.parameters)},
        attrs={"signal": "biexponential"},
    )


def study(
    seed: int, subjects: int = 12, sessions: int = 1, effect: np.ndarray = EFFECT
) -> tuple[xr.Dataset, pd.DataFrame, np.ndarray]:
    """Estimates, design and true theta (scan, parameter) of subjects of two groups."""
    rng = np.random.default_rng(seed)
    subject = np.repeat(np.arange(subjects), sessions)
    group = np.where(subject % 2, "patient", "control")
    theta = MEAN + (rng.standard_normal((subjects, 3)) * BETWEEN)[subject]
    theta += (
        rng.standard_normal(theta.shape) * WITHIN * (sessions > 1) + (group == "patient")[:, None] * effect
    )
    design = pd.DataFrame(
        {
            "subject": [f"s{s}" for s in subject], "group": group,
            "session": [f"t{n}" for n in range(sessions)] * subjects,
            "age": 40 + 3.0 * subject,
        }
    )  # fmt: skip
    return estimates_of(theta, rng), design, theta


def small() -> tuple[tuple[np.ndarray, ...], np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Five scans of three subjects with likelihoods that are full matrices: data, seen, error, prior."""
    rng = np.random.default_rng(2)
    root = rng.standard_normal((5, 3, 3)) * 0.2 + 0.3 * np.eye(3)
    error = root @ root.transpose(0, 2, 1)
    seen, x = rng.standard_normal((5, 3)), np.stack([np.ones(5), [0, 0, 1, 1, 0.5]], axis=1)
    Lambda = np.linalg.inv(error)
    data = (Lambda, np.einsum("nij,nj->ni", Lambda, seen), x, np.array([0, 2, 4, 5]))
    return data, seen, error, rng.standard_normal(6) * 0.3, rng.uniform(0.5, 2, 6)


def dense(F: np.ndarray, omega: np.ndarray) -> tuple[np.ndarray, ...]:
    """Joint normal distribution of the five seen means and of the true ones: mean, and covariances."""
    data, _, error, mean, precision = small()
    x = data[2]
    subject = np.array([0, 0, 1, 1, 2])
    X = np.concatenate([np.kron(np.eye(3), row) for row in x])  # scan then parameter; parameter then effect
    prior = X @ np.diag(1 / precision) @ X.T
    between = np.kron(subject[:, None] == subject, F @ F.T) + np.kron(np.eye(5), np.diag(omega**2))
    noise = np.zeros((15, 15))
    for n in range(5):
        noise[3 * n : 3 * n + 3, 3 * n : 3 * n + 3] = error[n]
    return X @ mean, prior + between, noise


HYPER = (
    (np.array([[0.3, 0, 0], [0.1, 0.2, 0], [-0.1, 0.05, 0.4]]), np.array([0.1, 0.2, 0.05])),
    (np.diag([1e-6, 0.5, 0.2]), np.array([0.3, 0.0, 0.1])),
    (np.diag([0.4, 0.1, 0.1]), np.zeros(3)),
)


def test_marginal_likelihood_is_that_of_dense_matrices() -> None:
    data, seen, _, mean, precision = small()
    found, exact = [], []
    for F, omega in HYPER:
        middle, truth, noise = dense(F, omega)
        found.append(marginal(F, omega, data, mean, precision)[0])
        exact.append(multivariate_normal.logpdf(seen.ravel(), middle, truth + noise))
    assert np.diff(found) == pytest.approx(np.diff(exact), rel=1e-9)


def test_draws_of_the_means_are_those_of_dense_matrices() -> None:
    data, seen, _, mean, precision = small()
    rng, (F, omega), draws = np.random.default_rng(0), HYPER[0], 20_000
    middle, truth, noise = dense(F, omega)
    gain = truth @ np.linalg.inv(truth + noise)
    exact = middle + gain @ (seen.ravel() - middle)
    covariance = truth - gain @ truth
    _, beta, factor = marginal(F, omega, data, mean, precision)
    out, found = np.empty((5, 3)), np.empty((draws, 15))
    for n in range(draws):
        drawn = beta + np.linalg.solve(factor.T, rng.standard_normal(6))
        draw_means(F, omega, *data, drawn.reshape(3, 2), rng.standard_normal((8, 3)), out)
        found[n] = out.ravel()
    sd = np.sqrt(np.diag(covariance))
    assert np.abs((found.mean(axis=0) - exact) / sd).max() < 0.04  # five standard errors
    assert np.abs(np.cov(found.T) / np.outer(sd, sd) - covariance / np.outer(sd, sd)).max() < 0.05


def test_the_likelihood_is_the_posterior_over_the_prior() -> None:
    estimates, _, _ = study(1, 4)
    mean, covariance = estimates["mean"].values[:, 0], estimates["covariance"].values[:, 0]
    Lambda, eta = gaussian_likelihood(
        mean, covariance, np.full(4, np.inf), np.tile(CENTRE, (4, 1)), np.tile(WIDTH, (4, 1))
    )
    assert Lambda == pytest.approx(np.tile(np.diag(1 / np.square(ERROR)), (4, 1, 1)), rel=1e-9, abs=1e-9)
    back = np.linalg.solve(Lambda + np.diag(1 / WIDTH**2), (eta + CENTRE / WIDTH**2)[..., None])[..., 0]
    assert back == pytest.approx(mean)


def test_fits_that_know_nothing_do_not_add_up_to_knowledge() -> None:
    """2 000 fits of 400 draws whose posterior is the prior: their precisions are 0 on average (five errors)."""
    rng, fits, draws = np.random.default_rng(0), 2000, 400
    z = rng.standard_normal((fits, draws, 3)) * WIDTH + CENTRE
    covariance = np.stack([np.cov(each.T) for each in z])
    centre, width = np.tile(CENTRE, (fits, 1)), np.tile(WIDTH, (fits, 1))
    Lambda, eta = gaussian_likelihood(z.mean(axis=1), covariance, np.full(fits, draws), centre, width)
    gain = np.diagonal(Lambda, axis1=1, axis2=2) * WIDTH**2
    error = np.sqrt(2 / draws / fits)
    assert np.abs(gain.mean(axis=0)).max() < 5 * error
    assert np.maximum(gain, 0).mean() > 10 * error  # what cutting off at 0 would make of them
    pull = (eta - np.einsum("nij,j->ni", Lambda, CENTRE)) * WIDTH
    assert np.abs(pull.mean(axis=0)).max() < 5 / np.sqrt(draws * fits)


def test_hyperparameters_are_those_of_a_sum_over_a_grid() -> None:
    """One parameter: the posterior of the sd between subjects, summed over a grid."""
    rng = np.random.default_rng(3)
    Lambda = np.full((8, 1, 1), 100.0)
    eta = Lambda[:, :, 0] * (-7 + 0.3 * rng.standard_normal((8, 1)))
    data = (Lambda, eta, np.ones((8, 1)), np.arange(9))
    density = Density(data, np.array([-6.9]), np.array([0.6]), np.array([0.4]), False)
    grid = np.linspace(np.log(0.002), np.log(3), 2000)
    logs = np.array([density(np.array([x])) for x in grid])
    p = np.exp(logs - logs.max()) / np.exp(logs - logs.max()).sum()
    mean, square = p @ np.exp(grid), p @ np.exp(2 * grid)
    found = np.exp(draw_density(density, density.start, draws=4000).x)
    sd = np.sqrt(square - mean**2)
    assert abs(found.mean() - mean) < 0.06 * sd and found.std() == pytest.approx(sd, rel=0.08)


@pytest.fixture(scope="module")
def cohort() -> xr.DataTree:
    estimates, design, _ = study(5, 16, 2)
    return fit_cohort(estimates, design, effects=["group", "session", "age"], draws=400, chains=2)


def test_an_effect_is_found_and_only_where_it_is(cohort: xr.DataTree) -> None:
    table = contrast(cohort, {"group": "patient"}, {"group": "control"}).set_index("parameter")
    assert table.loc["f", "p_greater"] < 0.05 and 0.05 < table.loc["D", "p_greater"] < 0.95
    f = table.loc["f"]
    assert f["difference_low"] < f["difference"] < min(f["difference_high"], -0.02)
    assert f["a"] - f["b"] == pytest.approx(f["difference"], abs=0.01)
    assert table["unit"].tolist() == ["1", "1e-3 mm2/s", "1e-3 mm2/s"]


def test_contrasts_turn_round(cohort: xr.DataTree) -> None:
    one, other = {"group": "patient", "age": 50}, {"group": "control"}
    forth, back = contrast(cohort, one, other), contrast(cohort, other, one)
    assert forth["difference"].to_numpy() == pytest.approx(-back["difference"].to_numpy())
    assert forth["p_greater"].to_numpy() == pytest.approx(1 - back["p_greater"].to_numpy())


def test_every_effect_has_a_row(cohort: xr.DataTree) -> None:
    table = all_contrasts(cohort)
    assert table["effect"].drop_duplicates().tolist() == [
        "group: patient - control", "session: t1 - t0", "age: 76.33 - 62.5",
    ]  # fmt: skip
    assert len(table) == 9


def test_products_of_effects() -> None:
    estimates, design, _ = study(5, 12, 2)
    found = fit_cohort(estimates, design, effects=["group", "session", "group:session"], draws=100, chains=2)
    assert found["posterior"]["effect"].values.tolist()[-4:] == [
        "group:session[control,t0]", "group:session[control,t1]", "group:session[patient,t0]",
        "group:session[patient,t1]",
    ]  # fmt: skip
    change = [
        predict_cohort(found, {"group": g, "session": "t1"})["f"].mean()
        - predict_cohort(found, {"group": g, "session": "t0"})["f"].mean()
        for g in ("control", "patient")
    ]
    assert abs(float(change[0]) - float(change[1])) > 1e-6  # not the same in both groups, as without it


def test_scans_are_drawn_together() -> None:
    estimates, design, theta = study(7, 30)
    found = scan_table(fit_cohort(estimates, design, effects=["group"], draws=300, chains=2))
    D_star = found[found["parameter"] == "D_star"]
    truth = 1e3 * np.array(MODEL.values(*theta.T)[2])
    alone, together = (np.sqrt(np.mean((D_star[c] - truth) ** 2)) for c in ("alone", "mean"))
    assert together < 0.75 * alone
    assert np.mean((D_star["low"] < truth) & (truth < D_star["high"])) > 0.8


def test_regions_may_be_absent(refused: Refused) -> None:
    estimates, design, _ = study(8, 10)
    both = xr.concat([estimates, estimates.assign_coords(roi=["spleen"])], "roi", data_vars="all")
    both["mean"][3, 1] = np.nan
    both["covariance"][3, 1] = np.nan
    found = fit_cohort(both, design, effects=["group"], draws=100, chains=2)
    table = scan_table(found)
    assert table.groupby("roi")["fit"].nunique().to_dict() == {"liver": 10, "spleen": 9}
    both["mean"][:, 1] = np.nan
    refused(lambda: fit_cohort(both, design, effects=["group"]), "spleen", "none of the fits")


def test_the_same_seed_gives_the_same_draws() -> None:
    estimates, design, _ = study(9, 6)
    one, again = (
        fit_cohort(estimates, design, effects=["group"], draws=60, chains=2, seed=3, cores=c) for c in (1, 2)
    )
    assert one["posterior"].to_dataset().identical(again["posterior"].to_dataset())
    assert one["scans"].to_dataset().identical(again["scans"].to_dataset())


@pytest.mark.parametrize(
    ("design", "effects", "words"),
    [
        (pd.DataFrame({"group": ["a", "b"]}), None, ("2 rows for 6 fits",)),
        (pd.DataFrame({"group": ["a"] * 6}), None, ("group", "'a' in every row", "leave it out")),
        (pd.DataFrame({"age": [3.0] * 6}), None, ("age", "3 in every row")),
        (pd.DataFrame({"age": [3.0, 4, 5, 6, np.inf, 1]}), None, ("age", "not finite")),
        (pd.DataFrame({"group": ["a", "b", None, "a", "b", "a"]}), None, ("row 3", "no group")),
        (pd.DataFrame({"group": list("ababab")}), ["grup"], ("no column 'grup'", "group")),
        (pd.DataFrame({"group": list("ababab")}), ["subject"], ("no column 'subject'",)),
        (
            pd.DataFrame({"age": ["41", "52", "4 7", "60", "52", "41"]}),
            None,
            ("row 3", "'4 7'", "not a number"),
        ),
        (pd.DataFrame({"note": list("abcdef")}), None, ("note", "different in every row")),
        (pd.DataFrame(np.eye(6)[:, :2] * [1, 0], columns=["a", "a"]), None, ("two columns 'a'",)),
        (pd.DataFrame({"subject": ["a", None, "b", "c", "d", "e"]}), None, ("row 2", "no subject")),
    ],
)
def test_designs_that_are_refused(
    design: pd.DataFrame, effects: list[str] | None, words: tuple[str, ...], refused: Refused
) -> None:
    refused(lambda: read_design(design, 6, effects), *words)


def test_what_is_a_factor() -> None:
    table = pd.DataFrame(
        {
            "coded": [0, 1, 0, 1, 0, 1], "visit": pd.Categorical(list("papapa"), categories=["p", "a"]),
            "well": [True, False] * 3, "age": [3, 4, 5, 6, 7, 8],
        }
    )  # fmt: skip
    plan = read_design(table, 6, ["coded", "visit", "well", "age", "age"])
    assert plan.levels == {"coded": ("0", "1"), "visit": ("p", "a"), "well": ("False", "True")}
    assert list(plan.moments) == ["age"] and plan.columns.count("age") == 1
    rows = plan.rows(plan.table)
    assert rows[:, plan.columns.index("coded[1]")].tolist() == [0, 1, 0, 1, 0, 1]


def test_contrasts_that_are_refused(cohort: xr.DataTree, refused: Refused) -> None:
    refused(lambda: predict_cohort(cohort, {"sex": "f"}), "sex", "group, session, age")
    refused(lambda: predict_cohort(cohort, {"group": "x"}), "'x'", "control, patient")
    refused(lambda: predict_cohort(cohort, {"age": "old"}), "give a number")
    assert predict_cohort(cohort, {"age": np.int64(50)})["f"].notnull().all()
    refused(lambda: fit_cohort(xr.Dataset(), pd.DataFrame()), "region_estimates")
    refused(lambda: fit_cohort([], pd.DataFrame(), seed=-1), "seed -1")
    refused(lambda: scan_table(xr.DataTree()), "fit_cohort")


def test_what_fits_say(short_fit: xr.DataTree, short_file: Path, tmp_path: Path, refused: Refused) -> None:
    with pytest.warns(InputWarning) if _failed(short_fit) else _nothing():
        found = region_estimates([short_fit, short_fit])
    regions = short_fit["posterior"]["roi"].values.tolist()
    assert found["roi"].values.tolist() == regions and found.sizes["fit"] == 2
    good = [r for r in regions if r not in _failed(short_fit)]
    for roi in good:
        mu = short_fit["posterior"]["mu"].sel(roi=roi).values.reshape(-1, 3)
        assert found["mean"].sel(roi=roi).values[0] == pytest.approx(mu.mean(axis=0))
        assert found["covariance"].sel(roi=roi).values[1] == pytest.approx(np.cov(mu.T))
    shutil.copy(short_file, tmp_path)
    refused(lambda: region_estimates([tmp_path]), "summary.tsv", "verdicts")
    failed = regions[0]
    table = pd.DataFrame({"roi": regions, "verdict": ["failed", *["converged"] * (len(regions) - 1)]})
    table.to_csv(tmp_path / "summary.tsv", sep="\t", index=False)
    (tmp_path / "other").mkdir()
    shutil.copy(short_file, tmp_path / "other")
    table.assign(verdict="doubtful").to_csv(tmp_path / "other" / "summary.tsv", sep="\t", index=False)
    with pytest.warns(InputWarning, match=f"{failed!r} of fit 1"):
        stored = region_estimates([tmp_path / "posterior.nc", tmp_path / "other"])
    assert stored["mean"].sel(roi=failed).isnull().all("parameter").values.tolist() == [True, False]
    assert stored["mean"].sel(roi=regions[1:]).notnull().all()
    refused(lambda: region_estimates([]), "none given")
    refused(lambda: region_estimates([tmp_path / "x.nc"]), "no such file")
    (tmp_path / "bad.nc").write_bytes(b"CDF no")
    refused(lambda: region_estimates([tmp_path / "bad.nc"]), "bad.nc", "not a stored fit")


def _failed(tree: xr.DataTree) -> list[str]:
    return [roi for roi, found in diagnose(tree, voxels=False).items() if found.verdict == "failed"]


def _nothing() -> AbstractContextManager[None]:
    return nullcontext()


def test_a_posterior_that_cannot_be_drawn_well_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    estimates, design, _ = study(1, 4)
    monkeypatch.setattr("ivimbayes.cohorts.adaptive.NU", 300.0)  # proposals without tails
    monkeypatch.setattr("ivimbayes.cohorts.adaptive.ROUNDS", 1)
    monkeypatch.setattr("ivimbayes.cohorts.adaptive.ATTEMPTS", 1)
    with pytest.warns(InputWarning, match="effective draws"):
        fit_cohort(estimates, design, effects=["group"], draws=50, chains=1)


@pytest.mark.slow
def test_intervals_of_a_contrast_hold_the_truth(capsys: pytest.CaptureFixture[str]) -> None:
    """200 studies, normal likelihoods: 95 % intervals hold 91 to 99 %, by parameter (2.6 standard errors: 1 % false alarm).

    Three scans of each subject; taken for so many subjects, which is wrong, they hold less.
    """
    held: dict[str, list[bool]] = {name: [] for name in MODEL.parameters}
    wrong: list[bool] = []
    truth = dict(
        zip(MODEL.parameters, np.subtract(MODEL.values(*(MEAN + EFFECT)), MODEL.values(*MEAN)), strict=True)
    )
    for seed in range(200):
        estimates, design, _ = study(100 + seed, 12)
        found = fit_cohort(estimates, design, effects=["group"], draws=200, chains=2, seed=seed)
        table = contrast(found, {"group": "patient"}, {"group": "control"}).set_index("parameter")
        for name in MODEL.parameters:
            low, high = table.loc[name, ["difference_low", "difference_high"]] * (1 if name == "f" else 1e-3)
            held[name].append(low <= truth[name] <= high)
        if seed % 4 == 0:
            estimates, design, _ = study(100 + seed, 12, 6)
            found = fit_cohort(
                estimates, design[["group"]], effects=["group"], draws=200, chains=2, seed=seed
            )
            row = contrast(found, {"group": "patient"}, {"group": "control"}).set_index("parameter").loc["f"]
            wrong.append(row["difference_low"] <= truth["f"] <= row["difference_high"])
    share = {name: float(np.mean(v)) for name, v in held.items()}
    with capsys.disabled():
        print(f"\nheld {share}, sessions taken for subjects {np.mean(wrong):.3f}")
    assert all(0.91 <= v <= 0.99 for v in share.values()), share
    assert np.mean(wrong) < 0.85, np.mean(wrong)


@pytest.mark.slow
def test_two_stages_agree_with_the_joint_model(capsys: pytest.CaptureFixture[str]) -> None:
    """Means within 0.15 posterior sd, of group contrasts and of every scan; another group's is not."""
    fits, design = cohorts.study_fits(seed=11, people=6)
    one = fit_cohort(fits, design, draws=1000)
    other = fit_joint(fits, design, draws=1000, progress=False)
    a, b = (
        predict_cohort(c, {"group": "patient"}) - predict_cohort(c, {"group": "control"})
        for c in (one, other)
    )
    sd = {name: float(b[name].std()) for name in MODEL.parameters}
    apart = {name: abs(float(a[name].mean() - b[name].mean())) / sd[name] for name in sd}
    ratio = {name: float(a[name].std()) / sd[name] for name in sd}
    left, right = scan_table(one), scan_table(other)
    scans = np.abs((left["mean"] - right["mean"]) / right["sd"]).max()
    with capsys.disabled():
        print(f"\ncontrasts apart {max(apart.values()):.3f} sd, sd {min(ratio.values()):.2f} to ", end="")
        print(f"{max(ratio.values()):.2f} times, scans apart {scans:.3f} sd at most")
    assert max(apart.values()) < 0.15, apart
    assert all(0.85 < r < 1.18 for r in ratio.values()), ratio
    assert scans < 0.15
    shifted = right["mean"].to_numpy().reshape(3, -1)[:, [*range(1, 6), 0]].ravel()
    assert np.abs((left["mean"] - shifted) / right["sd"]).max() > 1


def test_the_plot_shows_each_scan(cohort: xr.DataTree, refused: Refused) -> None:
    import matplotlib

    matplotlib.use("Agg")
    ax = plot_cohort(cohort, "D_star")
    table = scan_table(cohort)
    table = table[table["parameter"] == "D_star"]
    control, patient, alone = ax.lines
    assert [len(line.get_xdata()) for line in ax.lines] == [16, 16, 32]
    assert sorted(alone.get_xdata()) == pytest.approx(sorted(table["alone"]))
    mine = table[table["group"] == "patient"]
    assert sorted(patient.get_xdata()) == pytest.approx(sorted(mine["median"]))
    assert ax.get_xlabel() == "D* (10⁻³ mm²/s)" and ax.get_title() == "liver"
    assert [t.get_text() for t in ax.get_legend().get_texts()] == [
        "group control", "group patient", "its fit alone",
    ]  # fmt: skip
    matplotlib.pyplot.close("all")
    refused(lambda: plot_cohort(cohort, "K"), "'K'", "f, D, D_star")
    refused(lambda: plot_cohort(cohort, by="sex"), "'sex'", "group, session")


# ---------------------------------------------------------------- command line


@pytest.fixture
def stored(short_fit: xr.DataTree, short_file: Path, tmp_path: Path) -> Path:
    """A design of four scans of two subjects, whose results are all the same; the path of its table."""
    for name in ("a1", "a2", "b1", "b2"):
        folder = tmp_path / name
        folder.mkdir()
        shutil.copy(short_file, folder)
        regions = short_fit["posterior"]["roi"].values
        pd.DataFrame({"roi": regions, "verdict": "converged"}).to_csv(folder / "summary.tsv", sep="\t")
    path = tmp_path / "design.tsv"
    path.write_text("fit\tsubject\tgroup\na1\ta\tx\na2\ta\tx\nb1\tb\ty\nb2\tb\ty\n")
    return path


def run_command(*words: str | Path) -> Any:
    from typer.testing import CliRunner

    from ivimbayes.cli import main as cli

    return CliRunner().invoke(cli.app, [str(w) for w in words])


def test_the_command_writes_tables(stored: Path, tmp_path: Path) -> None:
    found = run_command("cohort", stored, "--out", tmp_path / "out", "--draws", "100")
    assert found.exit_code == 0, found.output
    assert "group: y - x" in found.output and "P(a > b)" in found.output
    effects, scans = (pd.read_csv(tmp_path / "out" / f"{n}.tsv", sep="\t") for n in ("effects", "scans"))
    regions = 3
    assert len(effects) == regions * 3 and len(scans) == 4 * regions * 3
    assert (effects["p_greater"].between(0.2, 0.8)).all()  # the scans are the same
    cohort = read_cohort(tmp_path / "out" / "cohort.nc")
    again = all_contrasts(cohort)
    assert again["difference"].to_numpy() == pytest.approx(
        effects["difference"].to_numpy(), rel=1e-3, abs=1e-5
    )
    second = run_command("cohort", stored, "--out", tmp_path / "out")
    assert isinstance(second.exception, InputError) and "--overwrite" in str(second.exception)
    assert (
        run_command("cohort", stored, "--out", tmp_path / "out", "--draws", "60", "--overwrite").exit_code
        == 0
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("subject\tgroup\na\tx\n", "column fit"),
        ("fit\tgroup\na1\tx\nnone\ty\n", "no such file"),
        ("fit\tgroup\na1\tx\na2\tx\n", "leave it out"),
        ("fit\tage\na1\t3\na2\tn/a\n", "row 2: no age"),
        ('fit\tgroup\n"a1\tx\n', "cannot be read"),
    ],
)
def test_tables_that_are_refused(text: str, words: str, stored: Path, tmp_path: Path) -> None:
    stored.write_text(text)
    found = run_command("cohort", stored, "--out", tmp_path / "out")
    assert isinstance(found.exception, InputError) and words in str(found.exception)
    assert "\n" not in str(found.exception) and not (tmp_path / "out").exists()


def test_what_is_no_cohort_is_refused(stored: Path, tmp_path: Path, refused: Refused) -> None:
    refused(lambda: read_cohort(tmp_path / "x.nc"), "no such file")
    refused(lambda: read_cohort(stored), "not a readable netCDF")
    refused(lambda: read_cohort(tmp_path / "a1" / "posterior.nc"), "fit_cohort")
