import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import arviz as az
import choice
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from conftest import SHORT, Command
from scipy.stats import norm

import ivimbayes.results.comparison
import ivimbayes.results.leave_one_out
from ivimbayes import ModelSpec, compare_models, fit, write_tree
from ivimbayes.io.netcdf import shorten
from ivimbayes.models.noise import gaussian_logp
from ivimbayes.models.signals import SIGNALS
from ivimbayes.results.comparison import Candidate, Comparison, describe, plausible, stacking_weights
from ivimbayes.results.leave_one_out import VoxelDraws, error_of, leave_one_out

Refused = Callable[..., str]
Scan = tuple[xr.Dataset, xr.Dataset]


@pytest.fixture(scope="session")
def fits(phantom_scan: Scan, short_fit: xr.DataTree) -> dict[str, xr.DataTree]:
    mono = fit(phantom_scan[0], ModelSpec("monoexponential"), seed=3, cores=2, **SHORT)
    return {"adc": mono, "ivim": short_fit}


@pytest.fixture(scope="session")
def compared(fits: dict[str, xr.DataTree]) -> Comparison:
    return compare_models(fits)


def candidate(signal: str, elpd: float, k: float = 0.3, se: float = 1.0, **more: str) -> Candidate:
    """A fit whose elpd is the sum over 40 x 5 measurements, with about that standard error of differences."""
    noise = np.where(np.arange(200) % 2, 1.0, -1.0) * se / np.sqrt(200)
    elpd_i = (elpd / 200 + noise * (signal != "monoexponential")).reshape(40, 5)
    dims = ("voxel", "measurement")
    loo = az.ELPDDataLOO(
        elpd=elpd, se=1.0, p=2.0, n_samples=1000, n_data_points=200, scale="log", warning=False, good_k=0.7,
        elpd_i=xr.DataArray(elpd_i, dims=dims), pareto_k=xr.DataArray(np.full((40, 5), k), dims=dims),
    )  # fmt: skip
    spec = ModelSpec(signal, more.get("noise", "gaussian"), more.get("population", "normal"))
    label = more.get("label", SIGNALS[signal].long_name.partition(" (")[0])
    return Candidate(label, label, spec, loo, more.get("verdict", "converged"))


def conjugate(snr: float, spread: float = 1e-6, voxels: int = 30) -> tuple[xr.DataTree, float]:
    """A tree whose D and sigma are known and S0 has a flat prior, and its exact leave-one-out elpd."""
    rng, b, D = np.random.default_rng(5), np.array([0.0, 0, 100, 200, 400, 800]), 1e-3
    g, sigma, averages = np.exp(-b * D), 100 / snr, np.array([1.0, 1, 2, 2, 4, 4])
    y = 100 * g + sigma / np.sqrt(averages) * rng.standard_normal((voxels, 6))
    G, centre = (averages * g**2).sum(), (averages * g * y).sum(-1) / (averages * g**2).sum()
    S0 = centre + sigma / np.sqrt(G) * rng.standard_normal((4, 500, voxels))
    rest = G - averages * g**2
    left_out = ((averages * g * y).sum(-1, keepdims=True) - averages * g * y) / rest
    exact = norm.logpdf(y, g * left_out, sigma * np.sqrt(1 / averages + g**2 / rest)).sum()
    sample, roi = ("chain", "draw"), ("voxel", ["liver"] * voxels)
    coords = {"chain": range(4), "draw": range(500), "roi": ["liver"], "voxel_roi": roi}
    posterior = xr.Dataset(
        {
            "D": ((*sample, "voxel"), D * (1 + spread * rng.standard_normal(S0.shape))),
            "S0_roi": ((*sample, "roi"), np.full((4, 500, 1), 100.0)),
            "S0_sd": ((*sample, "roi"), np.full((4, 500, 1), 1e6)),
            "S0": ((*sample, "voxel"), S0),
            "sigma": ((*sample, "roi"), np.full((4, 500, 1), sigma)),
        },
        coords=coords,
    )
    constant = xr.Dataset(
        {"averages": (("voxel", "measurement"), np.tile(averages, (voxels, 1)))},
        coords={"voxel_roi": roi, "b": ("measurement", b)},
    )
    observed = xr.Dataset({"signal": (("voxel", "measurement"), y)})
    groups = {"posterior": posterior, "constant_data": constant, "observed_data": observed}
    tree = xr.DataTree.from_dict(groups)
    tree.attrs["spec"] = ModelSpec("monoexponential").to_json()
    return tree, float(exact)


def test_pointwise_sums_to_the_density_of_the_fit(phantom_scan: Scan) -> None:
    options = SHORT | {"draws": 50, "tune": 100, "voxels_per_roi": 6}
    tree = fit(phantom_scan[0], ModelSpec(noise="rician"), seed=1, cores=2, **options)
    stored = tree["log_likelihood"]["signal"]
    for roi in ("liver", "pancreas"):
        of_roi = stored["voxel_roi"].values == roi
        found = VoxelDraws.of(tree, roi).log_likelihood()
        assert found.shape == (2, 50, 6, 16)
        np.testing.assert_array_equal(VoxelDraws.of(tree, roi).log_predictive(), found)
        # rounding: of what is stored (up to 0.01 of 80) and of the parameters
        np.testing.assert_allclose(found.sum(-1), stored.values[..., of_roi], atol=0.05)


def test_pointwise_by_hand(fits: dict[str, xr.DataTree]) -> None:
    tree = fits["ivim"]
    found = VoxelDraws.of(tree, "kidney", voxels=slice(3, 5)).log_likelihood()
    p = tree["posterior"].to_dataset()
    v = np.flatnonzero(p["voxel_roi"].values == "kidney")[4]
    c, d, k, b = 1, 77, 6, 110.0
    f, D, D_star, S0 = (float(p[name].values[c, d, v]) for name in ("f", "D", "D_star", "S0"))
    mean = S0 * (f * np.exp(-b * D_star) + (1 - f) * np.exp(-b * D))
    expected = norm.logpdf(
        float(tree["observed_data"]["signal"].values[v, k]),
        mean,
        float(p["sigma"].sel(roi="kidney").values[c, d]),
    )
    assert found.shape == (2, 200, 2, 16)
    assert float(found[c, d, 1, k]) == pytest.approx(expected, rel=1e-9)


def test_predictive_is_a_ratio_of_densities(fits: dict[str, xr.DataTree]) -> None:
    """p(y_k | others) = p(y) / p(others), both with S0 integrated out, as the sampler has them."""
    draws = VoxelDraws.of(fits["ivim"], "kidney", 40, slice(0, 4))
    found = draws.log_predictive()
    sigma, mean, sd = (v[..., 0] for v in (draws.sigma, draws.S0_mean, draws.S0_sd))
    whole = gaussian_logp(draws.signal, draws.curve, sigma, mean, sd, draws.averages)
    for k in (0, 1, 7, 15):
        rest = (np.delete(a, k, axis=-1) for a in (draws.signal, draws.curve, draws.averages))
        y, g, n = rest
        np.testing.assert_allclose(found[..., k], whole - gaussian_logp(y, g, sigma, mean, sd, n), rtol=1e-8)


def test_cumulative_is_the_integral_of_the_predictive(fits: dict[str, xr.DataTree]) -> None:
    draws, step = VoxelDraws.of(fits["ivim"], "kidney", 40, slice(0, 4)), 1e-3
    for k in (0, 7, 15):  # one measurement moves, the others stay
        moved = [draws.signal.copy() for _ in range(2)]
        for y, sign in zip(moved, (1, -1), strict=True):
            y[:, k] += sign * step
        above, below = (replace(draws, signal=y).cumulative()[..., k] for y in moved)
        density = np.exp(draws.log_predictive()[..., k])
        np.testing.assert_allclose((above - below) / (2 * step), density, rtol=1e-4)


def test_draws_are_thinned(fits: dict[str, xr.DataTree]) -> None:
    found, whole = (VoxelDraws.of(fits["ivim"], "liver", draws) for draws in (100, 2000))
    assert found.curve.shape == (2, 50, 20, 16)
    np.testing.assert_array_equal(found.curve[:, -1], whole.curve[:, -1])


def test_leave_one_out_is_that_of_arviz(fits: dict[str, xr.DataTree]) -> None:
    density = xr.DataArray(
        VoxelDraws.of(fits["ivim"], "kidney").log_predictive(), dims=("chain", "draw", "voxel", "measurement")
    )
    density = density.assign_coords(chain=range(2), draw=range(200))
    groups = {
        "posterior": xr.Dataset(coords=density.coords),
        "log_likelihood": density.to_dataset(name="signal"),
    }
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Estimated shape parameter of Pareto")
        expected = az.loo(xr.DataTree.from_dict(groups), pointwise=True, reff=0.8)
    found = leave_one_out(fits["ivim"], "kidney")
    assert found.good_k == pytest.approx(expected.good_k)
    np.testing.assert_allclose(found.elpd_i, expected.elpd_i, atol=0.05)
    np.testing.assert_allclose(found.pareto_k, expected.pareto_k, atol=0.4)
    assert found.elpd == pytest.approx(expected.elpd, abs=0.3)


def test_leave_one_out_is_exact_where_it_can_be() -> None:
    tree, exact = conjugate(snr=30)
    found = leave_one_out(tree, "liver")
    assert found.elpd == pytest.approx(exact, abs=0.01)
    assert found.p == pytest.approx(30, rel=0.35)  # one S0 a voxel
    assert found.pareto_k.shape == (30, 6)
    tree["posterior"]["sigma"] = 2 * tree["posterior"]["sigma"]
    assert abs(leave_one_out(tree, "liver").elpd - exact) > 20


@pytest.mark.parametrize(("snr", "most"), [(30, 0.01), (300, 0.02)])
def test_stored_precision_is_enough(snr: float, most: float) -> None:
    tree, _ = conjugate(snr, spread=1 / snr)
    whole = leave_one_out(tree, "liver").elpd
    tree["posterior"]["D"] = tree["posterior"]["D"].copy(data=shorten(tree["posterior"]["D"].values))
    assert leave_one_out(tree, "liver").elpd == pytest.approx(whole, abs=most)


def test_a_chain_that_never_moved() -> None:
    tree, exact = conjugate(snr=30, spread=0.01)
    rng = np.random.default_rng(2)
    tree["posterior"]["sigma"] = tree["posterior"]["sigma"] * np.exp(0.01 * rng.standard_normal((4, 500, 1)))
    assert np.isfinite(leave_one_out(tree, "liver").pareto_k).all()
    for name in ("D", "S0", "sigma"):
        tree["posterior"][name].values[1] = tree["posterior"][name].values[1, 0]
    found = leave_one_out(tree, "liver")
    assert found.elpd == pytest.approx(exact, abs=5)
    assert (found.pareto_k == np.inf).all() and found.warning


def test_chunks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    tree, _ = conjugate(snr=30)
    whole = leave_one_out(tree, "liver")
    monkeypatch.setattr(ivimbayes.results.leave_one_out, "VOXELS", 7)
    parts = leave_one_out(tree, "liver")
    assert parts.elpd_i.shape == whole.elpd_i.shape
    np.testing.assert_allclose(parts.elpd_i, whole.elpd_i, atol=0.02)
    assert parts.p == pytest.approx(whole.p, abs=0.1)


def test_error_of_a_sum() -> None:
    rng = np.random.default_rng(0)
    free = rng.standard_normal((300, 16))
    assert error_of(free) == pytest.approx(np.sqrt(free.size), rel=0.1)
    shared = np.repeat(rng.standard_normal((300, 1)), 16, axis=1)  # the measurements of a voxel go together
    assert error_of(shared) == pytest.approx(16 * np.sqrt(300), rel=0.15)
    assert error_of(free[:1]) == pytest.approx(4 * free[0].std(ddof=1))  # one curve


def test_weights_in_range() -> None:
    better, worse = candidate("biexponential", -300), candidate("monoexponential", -500)
    assert stacking_weights([better, worse])[better.key] > 0.99
    for c in (better, worse):
        c.loo.elpd_i[3, 2] = -1e5  # an outlier under every model
    weights = stacking_weights([better, worse])
    assert sum(weights.values()) == pytest.approx(1)
    assert weights[better.key] > 0.99


def test_table(compared: Comparison) -> None:
    table = compared.table
    assert list(table.columns) == list(ivimbayes.results.comparison.COLUMNS)
    assert list(table["roi"]) == [roi for roi in ("liver", "kidney", "pancreas") for _ in range(2)]
    assert (table[table["rank"] == 1]["elpd_diff"] == 0).all()
    assert (table[table["rank"] == 1]["fit"] == "ivim").all()
    worse = table[table["rank"] == 2]
    assert (worse["elpd_diff"] < -10).all() and (worse["se_diff"] > 1).all()
    np.testing.assert_allclose(table.groupby("roi")["weight"].sum(), 1)
    assert (table.groupby("roi")["chosen"].sum() == 1).all()
    assert (table["measurements"] == 320).all()
    bad = table[table["pareto_k_bad"] > 0]
    assert all("Pareto k above" in text for text in bad["warning"])
    assert (table["pareto_k_bad"] <= 0.1 * table["measurements"]).all()


def test_sentences_of_a_fit(compared: Comparison) -> None:
    for roi, sentence in compared.sentences.items():
        assert sentence.startswith(
            f"{roi}: the signals are described better with perfusion (bi-exponential IVIM)"
        )
        assert "without (mono-exponential): elpd difference " in sentence


MONO, SIMPLE, BI, TRI = "monoexponential", "simplified", "biexponential", "triexponential"


@pytest.mark.parametrize(
    ("signals", "words", "absent"),
    [
        ({BI: -300, MONO: -453}, ["better with perfusion (bi-exponential IVIM) than without (mono-exp", "153"], "pool"),
        ({BI: -300, TRI: -301, MONO: -453}, ["(bi-exponential IVIM)", "no sign of more than one"], "simpler"),
        ({TRI: -300, BI: -303, MONO: -453}, ["(bi-exponential IVIM)", "no sign of more than one"], "two"),
        ({TRI: -300, BI: -330, MONO: -453}, ["(tri-exponential IVIM)", "two vascular pools rather than one: elpd difference 30"], "no sign"),
        ({BI: -300, SIMPLE: -302, MONO: -400}, ["(simplified IVIM) than", "98", "D* is not seen"], "D* is seen"),
        ({BI: -300, SIMPLE: -320, MONO: -400}, ["D* is seen, against simplified IVIM: elpd difference 20"], "not seen"),
        ({BI: -300, SIMPLE: -303, MONO: -305}, ["(bi-exponential IVIM) than without", "the simpler simplified IVIM describes them as well"], "no evidence"),
        ({BI: -300, MONO: -303}, ["no evidence of perfusion", "the mono-exponential describes them as well as the bi-exponential IVIM: elpd difference 3.0"], "better"),
        ({MONO: -300, BI: -302}, ["no evidence of perfusion", "the mono-exponential describes them as well."], "elpd"),
        ({"kurtosis": -300, BI: -301, MONO: -400}, ["no evidence of perfusion", "diffusion kurtosis describes", "kurtosis cannot be told from bi-exponential IVIM"], "better"),
        ({"biexponential_kurtosis": -300, BI: -350}, ["diffusion in tissue has a kurtosis: elpd difference 50"], "no sign"),
        ({BI: -300, "biexponential_kurtosis": -301}, ["no sign of kurtosis"], "has a"),
        ({"stretched": -300, MONO: -350}, ["a stretched exponential describes the signals better: elpd difference 50"], "no sign"),
        ({"stretched": -300, BI: -301, MONO: -400}, ["no evidence of perfusion", "the stretched exponential describes", "stretching cannot be told from bi-exponential IVIM"], "better"),
        ({"stretched": -300, "kurtosis": -301, MONO: -400}, ["stretching cannot be told from diffusion kurtosis"], "no sign"),
        ({MONO: -300, "stretched": -301, "kurtosis": -302}, ["no sign of kurtosis or stretching"], "cannot"),
    ],
)  # fmt: skip
def test_sentences(signals: dict[str, float], words: list[str], absent: str) -> None:
    sentence = describe([candidate(name, elpd) for name, elpd in signals.items()])
    for word in words:
        assert word in sentence, sentence
    assert absent not in sentence and sentence.endswith(".")


def test_a_rough_difference_claims_nothing() -> None:
    assert "better" in describe([candidate(BI, -300, se=9), candidate(MONO, -320)])
    assert "no evidence" in describe([candidate(BI, -300, se=11), candidate(MONO, -320)])


def test_noise_and_population_in_words() -> None:
    rician = candidate(BI, -300, noise="rician", label="a")
    sentence = describe([rician, candidate(BI, -340, label="b")])
    assert sentence == "Rician noise describes them better than Gaussian: elpd difference 40 (se 0.0)."
    assert "Gaussian and Rician noise describe them about as well" in describe(
        [rician, candidate(BI, -302, label="b")]
    )
    mixed = [candidate("biexponential_kurtosis", -300, noise="rician"), candidate(BI, -340)]
    assert "which noise describes them better is open" in describe(mixed)
    like = [*mixed, candidate("biexponential_kurtosis", -330)]
    assert "Rician noise describes them better than Gaussian under the" in describe(like)
    assert "elpd difference 30" in describe(like)
    heavy = candidate(BI, -300, population="student_t", label="a")
    assert "Student-t population describes" in describe([heavy, candidate(BI, -340, label="b")])
    same = [candidate(BI, -300, label="one"), candidate(BI, -340, label="two")]
    assert describe(same) == "one describes the signals better than two: elpd difference 40 (se 0.0)."
    assert "no clear difference between" in describe([same[0], candidate(BI, -301, label="two")])


def test_doubts_are_said() -> None:
    failed = [candidate(BI, -300, verdict="failed"), candidate(MONO, -400)]
    assert describe(failed).endswith("Not to be relied on: the fit of bi-exponential IVIM failed.")
    assert "rough: Pareto k is large at 200 of 200 measurements (mono-exponential)" in describe(
        [candidate(BI, -300), candidate(MONO, -400, k=0.8)]
    )
    shaky = [candidate(BI, -300), candidate(MONO, -307)]
    assert "better with perfusion" in describe(shaky)
    shaky[0].loo.elpd_i[...] -= 3.2 / 199  # nearly half of the difference is one measurement's
    shaky[0].loo.elpd_i[0, 0] += 3.2 + 3.2 / 199
    assert describe(shaky) == describe([shaky[0], candidate(MONO, -307)])
    shaky[1].loo.pareto_k[0, 0] = 0.9
    words = "This rests on measurements of large Pareto k (1): without, mono-exponential is chosen."
    assert words in describe(shaky) and "better with perfusion" in describe(shaky)


def test_the_simpler_is_chosen() -> None:
    near = plausible(
        [candidate(TRI, -300), candidate(BI, -301), candidate(SIMPLE, -303.9), candidate(MONO, -304.1)]
    )
    assert [c.spec.signal for c in near] == [SIMPLE, BI, TRI]


def damaged(tree: xr.DataTree, change: Callable[[xr.DataTree], object]) -> xr.DataTree:
    copy = tree.copy(deep=True)
    change(copy)
    return copy


def test_refusals(fits: dict[str, xr.DataTree], phantom_scan: Scan, refused: Refused) -> None:
    def against(change: Callable[[xr.DataTree], object]) -> Callable[[], object]:
        return lambda: compare_models({"adc": fits["adc"], "ivim": damaged(fits["ivim"], change)})

    refused(lambda: compare_models({"adc": fits["adc"]}), "adc", "two or more", "--signal")
    refused(lambda: compare_models({}), "no fit", "two or more")

    def signals(tree: xr.DataTree) -> None:
        tree["observed_data"]["signal"].values[0] *= 1.001

    def b_values(tree: xr.DataTree) -> None:
        tree["constant_data"] = (
            tree["constant_data"].to_dataset().assign_coords(b=tree["constant_data"]["b"] + 1)
        )

    def level(tree: xr.DataTree) -> None:
        tree["constant_data"]["level"].values[1] = "mean"

    refused(against(signals), "ivim", "signals", "'liver'", "adc", "--seed")
    refused(against(b_values), "b values")
    refused(against(level), "ivim", "'kidney'", "level mean", "level voxel")
    options = SHORT | {"draws": 50, "tune": 50}
    names = phantom_scan[0].attrs["roi_names"].replace("kidney", "spleen")
    other = fit(phantom_scan[0].assign_attrs(roi_names=names), ModelSpec(MONO), seed=3, cores=2, **options)
    refused(lambda: compare_models({"a": fits["ivim"], "b": other}), "b: has no region 'kidney'", "a has")
    elsewhere = fit(phantom_scan[0], ModelSpec(MONO), seed=4, cores=2, **options)
    refused(
        lambda: compare_models({"a": fits["ivim"], "b": elsewhere}),
        "b: the voxels of region 'liver'",
        "--seed",
    )


def test_mean_curves(phantom_scan: Scan) -> None:
    options = SHORT | {"draws": 100, "tune": 100, "level": "mean"}
    fits = {s: fit(phantom_scan[0], ModelSpec(s), seed=3, cores=2, **options) for s in (MONO, BI)}
    table = compare_models(fits).table
    assert (table["measurements"] == 16).all()
    assert all("16 measurements are few" in text for text in table["warning"])
    assert (table["se"] > 0).all()


def test_command(
    fits: dict[str, xr.DataTree],
    compared: Comparison,
    command: Command,
    tmp_path: Path,
) -> None:
    for name, tree in fits.items():
        (tmp_path / name).mkdir()
        write_tree(tree, tmp_path / name / "posterior.nc")
    folders, out = [tmp_path / name for name in fits], tmp_path / "table.tsv"
    status, text, err = command("compare", *folders, "--out", out)
    assert (status, err) == (0, "")
    for sentence in compared.sentences.values():
        assert sentence in text
    for word in ("liver", "ivim *", "adc", "difference", "weight", "worst k", f"written to {out}"):
        assert word in text
    table = pd.read_csv(out, sep="\t", keep_default_na=False)
    np.testing.assert_allclose(table["elpd_loo"], compared.table["elpd_loo"], rtol=1e-5)
    for words, line in (
        (("compare", *folders, "--out", out), "exists; name another file with --out"),
        (("compare", folders[0]), "two or more"),
        (("compare", folders[0], folders[0]), "given twice"),
        (("compare", folders[0], tmp_path / "none"), "no such file"),
    ):
        status, text, err = command(*words)
        assert (status, text, err.count("\n")) == (2, "", 1)
        assert line in err


@pytest.mark.slow
def test_perfusion_is_claimed_where_it_is() -> None:
    """At least 90 % of regions with f = 0.08, none claimed beyond 5 % without; wrong noise claims no more.

    With 20 regions, a method that claims 97 % passes with probability 0.98, and one that claims 70 % with 0.04.
    """
    models, regions = (MONO, BI), 20
    fits = choice.fits_of(choice.scan_of(0.08, regions, seed=11), seed=1, models=models)
    assert choice.shares(compare_models(fits)).perfusion >= 0.9
    assert choice.shares(compare_models(choice.noisier(fits))).perfusion <= 0.05
    none = choice.fits_of(choice.scan_of(0, regions, seed=12), seed=1, models=models)
    assert choice.shares(compare_models(none)).perfusion <= 0.05
