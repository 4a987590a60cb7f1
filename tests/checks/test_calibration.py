"""Ranks of the truth among the draws: what is drawn, what is kept, and that wrong models are given away."""

import re
from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from scipy.stats import kstest
from typer.testing import CliRunner

import ivimbayes as ib
from ivimbayes.checks import calibration
from ivimbayes.checks.calibration import CalibrationRun, _draw, _draw_once, _protocol
from ivimbayes.cli.main import app
from ivimbayes.fitting.plan import Settings
from ivimbayes.fitting.sampler import SamplerPool
from ivimbayes.models.spec import ModelSpec

MONO = ModelSpec("monoexponential")
SHORT = {"draws": 100, "tune": 200, "chains": 2, "retry": False, "progress": False, "cores": 2}
B = (0, 100, 200, 400, 800)


def study_of(spec: ModelSpec, noise_factor: float = 1.0) -> CalibrationRun:
    return CalibrationRun(spec, spec, _protocol(spec, calibration.B, None), 8, noise_factor, Settings())


@pytest.mark.parametrize("noise", ["gaussian", "rician", "student_t"])
def test_truth_has_the_density_that_draws_have(noise: str) -> None:
    """The log-likelihood of the truth is that of a draw that is the truth."""
    from ivimbayes.fitting.draws import split_draws
    from ivimbayes.fitting.packing import coordinates
    from ivimbayes.fitting.prepare import prepare_region

    spec = ModelSpec(noise=noise)
    study = study_of(spec)
    truth, region, _ = _draw(study, np.random.default_rng(1))
    task = prepare_region("one", region, spec, 1.0)
    x = np.random.default_rng(2).normal(0, 0.5, (1, coordinates(task.block)))
    drawn = calibration._quantities(split_draws(x, task.block), task)
    assert list(drawn) == list(truth)
    raw = split_draws(x, task.block)
    signal, values = ib.SIGNALS["biexponential"], region["signal"].values
    curve = signal.curve(region["b"].values, *(v[:, None] for v in signal.values(*raw["theta"][0].T)))
    averages = np.ones_like(values)
    model = ib.NOISES[noise]
    if model.marginal:
        expected = calibration.gaussian_logp(
            values, curve, raw["sigma"][0], np.full(8, raw["S0_roi"][0]), raw["S0_sd"][0], averages
        )
    else:
        S0 = raw["S0_mean"][0]
        expected = model.logp(values, S0[:, None] * curve, np.full(8, raw["sigma"][0]), averages)
    assert drawn["log_likelihood"][0] == pytest.approx(expected.sum(), rel=1e-9)


def test_truth_is_drawn_from_the_prior() -> None:
    """One hyperparameter of each kind against its prior: each fails in 1 of 1000 runs if it is right."""
    study = study_of(ModelSpec())
    drawn = [_draw_once(study, np.random.default_rng([5, i]))[0] for i in range(400)]
    prior = ModelSpec().prior.theta("biexponential")
    scaled = {
        "mu[D]": [(t["mu[D]"] - prior.centre[1]) / prior.width[1] for t in drawn],
        "S0_roi": [(t["S0_roi"] - 1.0) / 0.5 for t in drawn],
    }
    folded = {
        "sd[f]": [t["sd[f]"] / prior.spread[0] for t in drawn],
        "sigma": [t["sigma"] / 0.2 for t in drawn],
    }
    for values in scaled.values():
        assert kstest(values, "norm").pvalue > 1e-3
        assert kstest(np.add(values, 0.5), "norm").pvalue < 1e-3
    for values in folded.values():
        assert kstest(values, "halfnorm").pvalue > 1e-3
        assert kstest(np.multiply(values, 1.5), "halfnorm").pvalue < 1e-3


def test_data_that_are_no_image_are_drawn_again() -> None:
    study = study_of(ModelSpec())
    counts = []
    for i in range(60):
        _, region, redrawn = _draw(study, np.random.default_rng([6, i]))
        level = region["signal"].values[:, 0]
        assert level.min() > np.median(level) / 3 > 1 / 9
        counts.append(redrawn)
    assert max(counts) > 0


@pytest.fixture(scope="module")
def right() -> xr.Dataset:
    return ib.calibrate(MONO, B, 60, voxels=5, seed=1, **SHORT)


@pytest.fixture(scope="module")
def six() -> xr.Dataset:
    return ib.calibrate(MONO, B, 6, voxels=5, seed=1, **SHORT)


@pytest.mark.slow
def test_ranks_of_the_right_model_are_uniform(right: xr.Dataset) -> None:
    """Eight quantities, each outside its band in 1 of 100 runs if the model is right; the seed is fixed."""
    table = ib.check_calibration(right)
    assert table["inside"].all(), table
    assert table["mean_rank"].between(0.35, 0.65).all()
    assert right["rank"].values.min() > 0
    assert right["rank"].values.max() < 1


@pytest.mark.slow
def test_wrong_noise_is_given_away() -> None:
    result = ib.calibrate(MONO, B, 40, voxels=5, noise_factor=2.0, seed=1, **SHORT)
    table = ib.check_calibration(result).set_index("quantity")
    assert not table.loc["sigma", "inside"]


def test_replicates_are_kept_and_added_to(tmp_path: Path, six: xr.Dataset) -> None:
    file = tmp_path / "ranks.nc"
    first = ib.calibrate(MONO, B, 4, voxels=5, seed=1, checkpoint=file, **SHORT)
    again = ib.calibrate(MONO, B, 6, voxels=5, seed=1, checkpoint=file, **SHORT)
    for name in ("rank", "truth", "mean"):
        np.testing.assert_array_equal(first[name], again[name][:4])
        np.testing.assert_array_equal(again[name], six[name])
    assert ib.read_calibration(file).sizes["replicate"] == 6


def test_an_interrupted_run_keeps_what_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, run, calls = tmp_path / "ranks.nc", SamplerPool.run, [0]

    def interrupted(self: SamplerPool, **options: object) -> object:
        calls[0] += 1
        if calls[0] == 7:  # in the fourth replicate of two chains
            raise KeyboardInterrupt
        return run(self, **options)

    with monkeypatch.context() as patched:
        patched.setattr(SamplerPool, "run", interrupted)
        with pytest.raises(KeyboardInterrupt):
            ib.calibrate(MONO, B, 6, voxels=5, seed=1, checkpoint=file, **SHORT | {"cores": 1})
    kept = ib.read_calibration(file)
    assert 1 <= kept.sizes["replicate"] <= 3
    result = ib.calibrate(MONO, B, 6, voxels=5, seed=1, checkpoint=file, **SHORT)
    np.testing.assert_array_equal(result["rank"][kept["replicate"].values], kept["rank"])


def test_replicates_of_other_settings_are_not_mixed(tmp_path: Path, refused: Callable[..., str]) -> None:
    file = tmp_path / "ranks.nc"
    ib.calibrate(MONO, B, 1, voxels=5, checkpoint=file, **SHORT)
    before = file.read_bytes()
    refused(lambda: ib.calibrate(MONO, B, 1, voxels=6, checkpoint=file, **SHORT), "other settings", str(file))
    assert file.read_bytes() == before
    file.write_bytes(b"no netCDF")
    refused(lambda: ib.calibrate(MONO, B, 1, voxels=5, checkpoint=file, **SHORT), "not a readable")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"n": 0}, ("n 0",)),
        ({"voxels": 4}, ("voxels 4", "5")),
        ({"noise_factor": 0.0}, ("noise_factor 0",)),
        ({"averages": (1, 2)}, ("averages", "5 b values")),
        ({"averages": (1, 1, 0, 1, 1)}, ("averages",)),
        ({"fitted": ModelSpec()}, ("biexponential", "monoexponential")),
        ({"b": (0, -5, 10, 20, 30)}, ("b ", "0 or more")),
        ({"b": (0,)}, ("distinct b values",)),
        ({"draws": 10}, ("draws 10",)),
    ],
)
def test_bad_input_is_refused(options: dict, words: tuple[str, ...], refused: Callable[..., str]) -> None:
    given = {"b": B, "n": 2, "voxels": 5, **SHORT, **options}
    refused(lambda: ib.calibrate(MONO, **given), *words)


def test_few_replicates_are_not_judged(six: xr.Dataset, refused: Callable[..., str]) -> None:
    refused(lambda: ib.check_calibration(six), "6 replicates", "20")


def test_the_check_sees_narrow_wide_and_shifted_posteriors() -> None:
    """Ranks of a normal truth under normal posteriors that are right, narrow, wide or shifted."""
    rng = np.random.default_rng(3)
    z = rng.standard_normal((300, 4)) * [1.0, 1.5, 0.65, 1.0] + [0.0, 0.0, 0.0, 0.4]
    from scipy.special import ndtr

    values = ("replicate", "quantity")
    result = xr.Dataset(
        {"rank": (values, ndtr(z)), "truth": (values, z), "mean": (values, 0 * z), "sd": (values, 0 * z + 1)},
        coords={"quantity": ["right", "narrow", "wide", "shifted"]},
    )
    table = ib.check_calibration(result).set_index("quantity")
    assert table["inside"].tolist() == [True, False, False, False]
    assert table.loc["right", "outside_by"] == 0
    assert table.loc["narrow", "coverage_95"] < 0.9
    assert table.loc["wide", "coverage_50"] > 0.6
    assert table.loc["shifted", "mean_rank"] > 0.55
    axes = ib.plot_calibration(result)
    titles = [ax.get_title() for ax in axes]
    assert [": outside" in title for title in titles] == [False, True, True, True]
    plt.close("all")


def test_the_plot_shows_the_ranks(six: xr.Dataset, refused: Callable[..., str]) -> None:
    axes = ib.plot_calibration(six, ["sigma", "mu[D]"])
    assert [ax.get_title() for ax in axes] == ["sigma", "mu[D]"]
    rank = six["rank"].sel(quantity="sigma").values
    x, y = axes[0].lines[0].get_data()
    for at in (0.25, 0.5, 0.75):
        nearest = np.argmin(np.abs(np.asarray(x) - at))
        assert y[nearest] == pytest.approx((rank <= x[nearest]).mean() - x[nearest])
    plt.close("all")
    refused(lambda: ib.plot_calibration(six, ["tau"]), "'tau'", "sigma")


def test_command_writes_its_results(tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ["calibrate", "--out", str(out), "--signal", "monoexponential", "--b", "0,100,200,400,800"]
    words += ["--replicates", "20", "--voxels", "5", "--draws", "100", "--tune", "200", "--chains", "2"]
    words += ["--no-retry", "--seed", "1", "--quiet"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code in (0, 3), done.output
    table = pd.read_csv(out / "calibration.tsv", sep="\t")
    assert (done.exit_code == 3) == (not table["inside"].all())
    assert sorted(p.name for p in out.iterdir()) == ["calibration.nc", "calibration.svg", "calibration.tsv"]
    assert "20 replicates" in done.output
    assert re.search(r"mu\[D\]\s+(inside|OUTSIDE)", done.output)
    stored = ib.read_calibration(out / "calibration.nc")
    assert stored["rank"].sel(quantity="sigma").mean().item() == pytest.approx(
        table.set_index("quantity").loc["sigma", "mean_rank"], rel=1e-5
    )
    plt.close("all")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--replicates", "5"], "--replicates 5"),
        (["--b", "0,x"], "--b 0,x"),
        (["--b", "0,10", "--bval", "b.bval"], "both given"),
        (["--bval", "absent.bval"], "absent.bval"),
        (["--tissue", "unobtainium"], "unobtainium"),
    ],
)
def test_command_refuses_bad_input(words: list[str], says: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = CliRunner().invoke(app, ["calibrate", "--out", str(out), *words])
    assert isinstance(done.exception, ib.InputError)
    assert says in str(done.exception)
    assert not out.exists()
