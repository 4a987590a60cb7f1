import json
from collections.abc import Callable, Iterator

import arviz as az
import matplotlib
import numpy as np
import pandas as pd
import pytest
import xarray as xr

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.colors import to_rgba

import ivimbayes as ib
from ivimbayes.models.noise import NOISES
from ivimbayes.models.priors import tissue_prior
from ivimbayes.models.signals import PARAMETERS, SIGNALS
from ivimbayes.models.spec import ModelSpec
from ivimbayes.plotting.checks import leave_one_out_pit
from ivimbayes.plotting.style import CHAINS
from ivimbayes.results.comparison import Comparison
from ivimbayes.results.leave_one_out import leave_one_out
from ivimbayes.results.summary import summarize

LABELS = {
    "f": "f", "f_fast": "f fast", "D": "D (10⁻³ mm²/s)", "D_star": "D* (10⁻³ mm²/s)",
    "D_star_fast": "D* fast (10⁻³ mm²/s)", "K": "K", "alpha": "alpha", "sigma": "σ (signal units)",
}  # fmt: skip
VALUES = {"f": 0.2, "f_fast": 0.08, "D": 1.1e-3, "D_star": 20e-3, "D_star_fast": 0.2, "K": 0.8, "alpha": 0.75}
B = np.array([0, 0, 10, 30, 80, 200, 400, 800.0])
SIGMA = 2.0


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    before = dict(matplotlib.rcParams)
    yield
    plt.close("all")
    assert dict(matplotlib.rcParams) == before


def made_tree(
    signal: str = "biexponential",
    noise: str = "gaussian",
    regions: tuple[str, ...] = ("liver", "kidney"),
    voxels: int = 12,
    draws: int = 150,
    shift: float = 0.0,
    scatter: float = 1.0,
    every: int = 1,
) -> xr.DataTree:
    """A tree as `fit` makes it, its posterior normal in theta around known values, without a fit.

    Parameters
    ----------
    shift : float
        Added to theta of every region.
    scatter : float
        Noise of the measurements over sigma of the posterior.
    every : int
        One in so many draws was kept.
    """
    rng, model = np.random.default_rng(5), SIGNALS[signal]
    names, R, C = model.parameters, len(regions), 2
    centre = np.array(model.theta(*(VALUES[n] for n in names))) + shift
    mu = centre + 0.1 * np.arange(R)[:, None] + 0.05 * rng.standard_normal((C, draws, R, len(names)))
    prior_mu = centre + 0.6 * rng.standard_normal((1, 400, R, len(names)))
    of_voxel = np.repeat(np.arange(R), voxels)
    true = mu.mean((0, 1))[of_voxel] + (0.2 if voxels > 1 else 0.0) * rng.standard_normal(
        (R * voxels, len(names))
    )
    theta = true + 0.03 * rng.standard_normal((C, draws, R * voxels, len(names)))
    S0 = 100 * np.exp(0.1 * rng.standard_normal(R * voxels))
    curve = model.curve(B, *(v[..., None] for v in model.values(*np.moveaxis(true, -1, 0))))
    sigma = np.full(R * voxels, SIGMA)
    measured = NOISES[noise].draw_signal(rng, curve, S0, scatter * sigma, np.ones(len(B)))
    repeated = [NOISES[noise].draw_signal(rng, curve, S0, sigma, np.ones(len(B))) for _ in range(C * 20)]
    name_of = np.array(regions, dtype=object)[of_voxel].astype(str)
    coords = {"voxel_roi": ("voxel", name_of), "voxel": np.arange(R * voxels)}
    coords |= {axis: ("voxel", np.arange(R * voxels)) for axis in "xyz"}
    at = ("chain", "draw", "roi")
    posterior = dict(
        zip(
            names,
            ((("chain", "draw", "voxel"), v) for v in model.values(*np.moveaxis(theta, -1, 0))),
            strict=True,
        )
    )
    posterior["S0"] = (("chain", "draw", "voxel"), S0 + 0.5 * rng.standard_normal((C, draws, R * voxels)))
    for group, source in ((posterior, mu), (prior := {}, prior_mu)):
        group |= {
            f"{n}_roi": (at, v) for n, v in zip(names, model.values(*np.moveaxis(source, -1, 0)), strict=True)
        }
        group["mu"] = ((*at, "parameter"), source)
    wander = np.ones(R) if voxels == 1 else 100 + rng.standard_normal((C, draws, R))
    posterior["S0_roi"] = (at, np.broadcast_to(wander, (C, draws, R)))
    posterior["S0_sd"] = (at, np.full((C, draws, R), 10.0))
    posterior["sigma"] = (at, SIGMA * (1 + 0.02 * rng.standard_normal((C, draws, R))))
    observed = {"signal": (("voxel", "measurement"), measured)}
    with_b = {"b": ("measurement", B, {"units": "s/mm2"})}
    predictive = {
        "signal": (
            ("chain", "draw", "voxel", "measurement"),
            np.reshape(repeated, (C, 20, R * voxels, len(B))),
        )
    }
    constant = {
        "averages": (("voxel", "measurement"), np.ones_like(measured)),
        "transitions": ("roi", [C * draws * every] * R), "divergences": ("roi", [1] * R),
        "bfmi": ("roi", np.linspace(0.9, 0.2, R)), "level": ("roi", ["mean" if voxels == 1 else "voxel"] * R),
    }  # fmt: skip
    diverging = np.zeros((C, draws, R), bool)
    diverging[0, 3] = True
    stats = {"diverging": (at, diverging), "energy": (at, 50 + rng.standard_normal((C, draws, R)))}
    rois = {"roi": list(regions), "chain": np.arange(C), "draw": np.arange(draws)}
    tree = xr.DataTree.from_dict(
        {
            "posterior": xr.Dataset(posterior, coords | rois | {"parameter": list(names)}),
            "prior": xr.Dataset(prior, {"roi": list(regions)}),
            "posterior_predictive": xr.Dataset(predictive, coords | with_b),
            "observed_data": xr.Dataset(observed, coords | with_b),
            "constant_data": xr.Dataset(constant, coords | with_b | {"roi": list(regions)}),
            "sample_stats": xr.Dataset(stats, rois),
        }
    )
    tree.attrs["spec"] = ModelSpec(signal=signal, noise=noise).to_json()
    tree.attrs["priors"] = json.dumps({roi: tissue_prior("generic").to_dict() for roi in regions})
    return tree


@pytest.fixture(scope="module")
def tree() -> xr.DataTree:
    return made_tree()


def without(tree: xr.DataTree, group: str) -> xr.DataTree:
    made = tree.copy()
    del made[group]
    return made


def legend(ax: object) -> list[str]:
    return [text.get_text() for text in ax.get_legend().get_texts()]


def shown(tree: xr.DataTree, name: str, roi: str) -> np.ndarray:
    """Draws in the units shown."""
    return PARAMETERS[name].display_scale * tree["posterior"][f"{name}_roi"].sel(roi=roi).values.ravel()


def overlapping_texts(figure: object) -> list[tuple[str, str]]:
    """Axis labels, titles and tick labels that cover one another (slanted ones apart) or leave the figure."""
    figure.canvas.draw()
    texts = []
    for ax in figure.axes:
        texts += [ax.xaxis.label, ax.yaxis.label, ax.title]
        for axis in (ax.xaxis, ax.yaxis):
            low, high = sorted(axis.get_view_interval())
            texts += [t.label1 for t in axis.get_major_ticks() if low <= t.get_loc() <= high]
    texts = [t for t in texts if t.get_text() and t.get_visible()]
    boxes = [(t.get_text(), t.get_window_extent(), t.get_rotation() % 90 == 0) for t in texts]
    page = figure.bbox.padded(1)
    found = [(text, "edge") for text, box, _ in boxes if page.count_contains(box.corners()) < 4]
    straight = [(text, box) for text, box, upright in boxes if upright]
    for i, (text, box) in enumerate(straight):
        found += [
            (text, other) for other, second in straight[i + 1 :] if box.padded(-1).overlaps(second.padded(-1))
        ]
    return found


# signals


@pytest.mark.parametrize("signal", SIGNALS)
def test_decay_of_every_signal(signal: str) -> None:
    made = made_tree(signal)
    ax = ib.plot_decay(made, "kidney")
    parts = {
        1: [],
        2: ["tissue part", "vascular part"],
        3: ["tissue part", "slow vascular part", "fast vascular part"],
    }
    names = ["region", *parts[SIGNALS[signal].fractions + 1]]
    assert legend(ax) == ["a voxel's measurement", *names, "mean measured"]
    assert (ax.get_xlabel(), ax.get_ylabel(), ax.get_title()) == ("b (s/mm²)", "signal / S0", "kidney")
    values = [made["posterior"][f"{p}_roi"].sel(roi="kidney").median() for p in SIGNALS[signal].parameters]
    drawn = ax.lines[0].get_xdata(), ax.lines[0].get_ydata()
    assert drawn[1] == pytest.approx(SIGNALS[signal].curve(drawn[0], *map(float, values)), abs=0.01)
    if len(names) > 1:
        assert sum(line.get_ydata() for line in ax.lines[1 : len(names)]) == pytest.approx(drawn[1], abs=0.01)
    assert len({line.get_linestyle() for line in ax.lines[: len(names)]}) == len(names)
    mine = made["observed_data"]["voxel_roi"].values == "kidney"
    S0 = made["posterior"]["S0"].values[..., mine]
    expected = (made["observed_data"]["signal"].values[mine] / np.median(S0, (0, 1))[:, None]).mean(0)
    assert ax.lines[-1].get_ydata() == pytest.approx(expected)
    assert list(ax.lines[-1].get_xdata()) == list(B)


def test_decay_shows_negative_signals() -> None:
    made = made_tree()
    made["observed_data"]["signal"] = made["observed_data"]["signal"] - 60
    assert ib.plot_decay(made, "liver").get_ylim()[0] < -0.1


def test_predictive_shows_quantiles_of_voxels(tree: xr.DataTree) -> None:
    ax = ib.plot_predictive(tree, "kidney")
    assert (ax.get_xlabel(), ax.get_ylabel(), ax.get_title()) == (
        "b (s/mm²)",
        "signal (signal units)",
        "kidney",
    )
    mine = tree["observed_data"]["voxel_roi"].values == "kidney"
    measured = tree["observed_data"]["signal"].values[mine]
    predicted = tree["posterior_predictive"]["signal"].values[:, :, mine].reshape(-1, mine.sum(), len(B))
    assert len(ax.lines) == 6 and len(ax.collections) == 3
    for i, q in enumerate((0.9, 0.5, 0.1)):
        curve, points = ax.lines[2 * i : 2 * i + 2]
        assert points.get_ydata() == pytest.approx(np.quantile(measured, q, axis=0))
        quantiles = np.quantile(predicted, q, axis=1)
        assert curve.get_ydata() == pytest.approx(np.median(quantiles, axis=0))
        low, high = np.quantile(quantiles, [0.025, 0.975], axis=0)
        band = ax.collections[i].get_paths()[0].vertices
        assert (band[:, 1].min(), band[:, 1].max()) == pytest.approx((low.min(), high.max()))
        assert legend(ax)[2 * i : 2 * i + 2] == [
            f"{w}, {100 * q:.0f} % quantile" for w in ("predicted", "measured")
        ]
    assert len({line.get_marker() for line in ax.lines[1::2]}) == 3


def test_predictive_of_a_mean_curve() -> None:
    ax = ib.plot_predictive(made_tree(voxels=1), "kidney")
    assert legend(ax) == ["predicted, mean curve", "measured, mean curve"]


# regions


@pytest.mark.parametrize("signal", ["biexponential", "triexponential", "kurtosis", "stretched"])
def test_regions_show_median_and_interval(signal: str) -> None:
    made = made_tree(signal)
    axes = ib.plot_regions(made)
    assert [ax.get_xlabel() for ax in axes] == [LABELS[p] for p in SIGNALS[signal].parameters]
    for ax, name in zip(axes, SIGNALS[signal].parameters, strict=True):
        for i, roi in enumerate(("liver", "kidney")):
            draws = shown(made, name, roi)
            assert ax.lines[0].get_xdata()[i] == pytest.approx(np.median(draws))
            assert ax.collections[0].get_segments()[i][:, 0] == pytest.approx(az.hdi(draws, prob=0.95))
    assert legend(axes[0]) == ["median, 95 % HDI"]


def test_regions_agree_with_the_table(
    short_fit: xr.DataTree, phantom_scan: tuple[xr.Dataset, xr.Dataset]
) -> None:
    axes = ib.plot_regions(short_fit, phantom_scan[1])
    assert [ax.get_xlabel() for ax in axes] == ["f", "D (10⁻³ mm²/s)", "D* (10⁻³ mm²/s)"]
    assert [t.get_text() for t in axes[0].get_yticklabels()] == ["liver", "kidney", "pancreas"]
    assert axes[1].lines[1].get_xdata() == pytest.approx([1.1, 2.0, 1.35])
    table = summarize(short_fit)
    for ax, name in zip(axes, ("f", "D", "D_star"), strict=True):
        rows = table[table["parameter"] == name]
        assert ax.lines[0].get_xdata() == pytest.approx(rows["median"].values)
        ends = np.array([segment[:, 0] for segment in ax.collections[0].get_segments()])
        assert ends == pytest.approx(rows[["hdi_low", "hdi_high"]].values)
    assert not overlapping_texts(axes[0].figure)


def test_regions_refuse_a_truth_of_others(tree: xr.DataTree, refused: Callable[..., str]) -> None:
    truth = xr.Dataset({f"{p}_roi": ("roi", [0.1]) for p in ("f", "D", "D_star")}, {"roi": ["liver"]})
    refused(lambda: ib.plot_regions(tree, truth), "truth", "no region 'kidney'")
    refused(lambda: ib.plot_regions(tree, truth[["f_roi"]]), "truth", "D_roi")


def test_spread_shows_every_voxel(tree: xr.DataTree) -> None:
    axes = ib.plot_spread(tree)
    assert [ax.get_ylabel() for ax in axes] == [LABELS[p] for p in ("f", "D", "D_star")]
    assert [ax.get_yscale() for ax in axes] == ["linear", "linear", "log"]
    table = summarize_spread(tree)
    for ax, name in zip(axes, ("f", "D", "D_star"), strict=True):
        for i, roi in enumerate(("liver", "kidney")):
            mine = tree["posterior"]["voxel_roi"].values == roi
            scale = PARAMETERS[name].display_scale
            medians = scale * np.median(tree["posterior"][name].values[..., mine], (0, 1))
            dots, square = ax.lines[2 * i : 2 * i + 2]
            assert dots.get_ydata() == pytest.approx(medians)
            assert (np.abs(dots.get_xdata() - i) < 0.35).all()
            assert square.get_ydata() == pytest.approx([np.median(shown(tree, name, roi))])
            low, high = ax.collections[i].get_segments()[0][:, 1]
            assert high - low == pytest.approx(2 * table[roi, name])
        assert [t.get_text() for t in ax.get_xticklabels()] == ["liver", "kidney"]
    assert legend(axes[0]) == ["voxels, posterior median", "region, 68 % of its voxels"]


def summarize_spread(tree: xr.DataTree) -> dict[tuple[str, str], float]:
    """Half the central 68 % range between voxels, averaged over draws, as the tables have it."""
    found = {}
    for roi in ("liver", "kidney"):
        for name in ("f", "D", "D_star"):
            mine = tree["posterior"]["voxel_roi"].values == roi
            values = tree["posterior"][name].values[..., mine]
            low, high = np.quantile(values, [0.158655, 0.841345], axis=-1)
            found[roi, name] = PARAMETERS[name].display_scale * (high - low).mean() / 2
    return found


def test_spread_of_mean_curves_is_refused(refused: Callable[..., str]) -> None:
    refused(lambda: ib.plot_spread(made_tree(voxels=1)), "mean curves", "level voxel")


def test_sessions_show_both_and_the_difference(tree: xr.DataTree) -> None:
    after = made_tree(shift=0.3)
    axes = ib.plot_sessions(tree, after)
    assert axes.shape == (2, 3)
    for column, name in enumerate(("f", "D", "D_star")):
        top, bottom = axes[:, column]
        assert (top.get_ylabel(), bottom.get_ylabel()) == (LABELS[name], f"change, {LABELS[name]}")
        for i, roi in enumerate(("liver", "kidney")):
            one, two = (shown(each, name, roi) for each in (tree, after))
            assert top.lines[0].get_ydata()[i] == pytest.approx(np.median(one))
            assert top.lines[1].get_ydata()[i] == pytest.approx(np.median(two))
            assert top.collections[1].get_segments()[i][:, 1] == pytest.approx(az.hdi(two, prob=0.95))
            change = np.roll(two, two.size // 2) - one
            assert bottom.lines[0].get_ydata()[i] == pytest.approx(np.median(change))
            assert bottom.collections[0].get_segments()[i][:, 1] == pytest.approx(az.hdi(change, prob=0.95))
    assert len({line.get_marker() for line in axes[0, 0].lines}) == 2
    assert legend(axes[0, 0]) == ["before, 95 % HDI", "after, 95 % HDI"]
    assert not overlapping_texts(axes[0, 0].figure)


def test_sessions_match_regions_by_name(tree: xr.DataTree) -> None:
    swapped = made_tree()
    for group in swapped.children:
        if "roi" in swapped[group].dims:
            swapped[group] = swapped[group].to_dataset().isel(roi=[1, 0])
    change = ib.plot_sessions(tree, swapped)[1, 0].lines[0].get_ydata()
    same = ib.plot_sessions(tree, tree)[1, 0].lines[0].get_ydata()
    assert change == pytest.approx(same)


def test_difference_of_equal_fits_is_uncertain(tree: xr.DataTree) -> None:
    """One seed and nearly the same signals give nearly the same draws; their differences would all be small."""
    top, bottom = ib.plot_sessions(tree, tree)[:, 0]
    for i in range(2):
        low, high = top.collections[0].get_segments()[i][:, 1]
        from_, to = bottom.collections[0].get_segments()[i][:, 1]
        assert to - from_ == pytest.approx(np.sqrt(2) * (high - low), rel=0.2)


def test_sessions_need_the_same_fits(tree: xr.DataTree, refused: Callable[..., str]) -> None:
    other = made_tree(regions=("liver", "spleen"))
    refused(lambda: ib.plot_sessions(tree, other), "after", "liver, spleen", "liver, kidney")
    refused(lambda: ib.plot_sessions(tree, made_tree("monoexponential")), "after", "--signal")
    refused(lambda: ib.plot_sessions(tree, tree, axes=plt.subplots(1, 3)[1]), "3 given", "give 6")


# densities


def test_prior_and_posterior_densities(tree: xr.DataTree) -> None:
    axes = ib.plot_prior_posterior(tree, "kidney")
    assert [ax.get_xlabel() for ax in axes] == [LABELS[p] for p in ("f", "D", "D_star")]
    per = ["density", "density\nper 10⁻³ mm²/s", "density\nper 10⁻³ mm²/s"]
    assert [ax.get_ylabel() for ax in axes] == per
    assert legend(axes[0]) == ["prior", "posterior"]
    for ax, name in zip(axes, ("f", "D", "D_star"), strict=True):
        prior, posterior = ax.lines
        assert prior.get_linestyle() != posterior.get_linestyle()
        x, y = posterior.get_data()
        assert np.trapezoid(y, x) == pytest.approx(1, abs=0.02)
        draws = shown(tree, name, "kidney")
        assert np.trapezoid(x * y, x) == pytest.approx(draws.mean(), rel=0.01)
        assert np.sqrt(np.trapezoid((x - draws.mean()) ** 2 * y, x)) == pytest.approx(draws.std(), rel=0.15)
        assert 0.85 < np.trapezoid(prior.get_ydata(), x) < 1.01
        assert y.max() > 3 * prior.get_ydata().max()


def test_prior_must_be_there(tree: xr.DataTree, refused: Callable[..., str]) -> None:
    refused(lambda: ib.plot_prior_posterior(without(tree, "prior"), "liver"), "no group prior", "posterior")


def test_joint_contours_hold_their_share(tree: xr.DataTree) -> None:
    ax = ib.plot_joint(tree, "kidney")
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("f", "D* (10⁻³ mm²/s)")
    points = np.column_stack([shown(tree, name, "kidney") for name in ("f", "D_star")])
    lines = ax.collections[-1]
    for path, share in zip(lines.get_paths(), (0.95, 0.5), strict=True):
        parts = [p for p in path.to_polygons() if len(p) > 2]
        held = np.any([matplotlib.path.Path(p).contains_points(points) for p in parts], axis=0)
        assert held.mean() == pytest.approx(share, abs=0.03)
    assert legend(ax) == ["95 % of the posterior", "50 % of the posterior", "medians"]
    assert [float(v[0]) for v in ax.lines[-1].get_data()] == pytest.approx(np.median(points, axis=0))
    assert ib.plot_joint(tree, "liver", "D", "sigma").get_ylabel() == "σ (signal units)"


def test_joint_needs_two_values_that_vary(tree: xr.DataTree, refused: Callable[..., str]) -> None:
    refused(lambda: ib.plot_joint(tree, "liver", x="K"), "x 'K'", "f, D, D_star, S0, sigma")
    refused(lambda: ib.plot_joint(tree, "liver", x="D", y="D"), "both 'D'")
    refused(
        lambda: ib.plot_joint(made_tree(voxels=1), "liver", y="S0"), "S0 of liver", "all draws are the same"
    )


# maps


@pytest.fixture
def maps() -> xr.Dataset:
    """Three slices of 8 x 6 voxels of 2 x 3 mm; slice 1 has the most voxels."""
    status = np.zeros((8, 6, 3), np.uint8)
    status[2:5, 1:4, 1] = 1
    status[2, 1, 1], status[3, 1, 1], status[4, 1, 1] = 3, 2, 4
    status[5, 5, 0] = 1
    data = {"status": (("x", "y", "z"), status)}
    rng = np.random.default_rng(1)
    for name, size in (("f", 0.2), ("D", 1e-3), ("D_star", 20e-3), ("S0", 100.0)):
        mean = np.where(np.isin(status, (1, 2)), size * (1 + 0.2 * rng.random(status.shape)), np.nan)
        contraction = np.where(np.isfinite(mean), rng.uniform(-0.2, 0.95, status.shape), np.nan)
        half = mean * rng.uniform(0.05, 0.3, status.shape)
        for ending, values in (
            ("mean", mean),
            ("hdi_low", mean - half),
            ("hdi_high", mean + half),
            ("contraction", contraction),
        ):
            data[f"{name}_{ending}"] = (("x", "y", "z"), values)
        data[f"{name}_contraction"][1][3, 2, 1] = -0.2
    data["affine"] = (("row", "column"), np.diag([2.0, -3.0, 5.0, 1.0]))
    return xr.Dataset(data, attrs={"interval": 0.95})


@pytest.mark.parametrize(
    "name, unit", [("f", ""), ("D", " (10⁻³ mm²/s)"), ("D_star", " (10⁻³ mm²/s)"), ("S0", " (signal units)")]
)
def test_maps_show_mean_and_uncertainty(maps: xr.Dataset, name: str, unit: str) -> None:
    axes = ib.plot_maps(maps, name)
    scale, label = PARAMETERS[name].display_scale, PARAMETERS[name].label
    mean, low, high = (scale * maps[f"{name}_{e}"].values[:, :, 1].T for e in ("mean", "hdi_low", "hdi_high"))
    for ax, expected in zip(axes, (mean, (high - low) / 2), strict=True):
        image = ax.images[-1]
        assert np.asarray(image.get_array()) == pytest.approx(expected, nan_ok=True)
        assert image.origin == "lower" and ax.get_aspect() == 1
        assert image.get_extent() == [0, 16, 0, 18]
        assert (ax.get_xlabel(), ax.get_ylabel()) == ("x (mm)", "y (mm)")
        assert "z = 1" in ax.get_title()
        assert (image.norm.vmin, image.norm.vmax) == pytest.approx(
            tuple(np.nanquantile(np.where(image.get_alpha() > 0, expected, np.nan), [0.02, 0.98]))
        )
    bars = [ax.get_ylabel() for ax in axes[0].figure.axes[2:]]
    assert bars == [f"{label}{unit}", f"{label}, half the 95 % interval{unit}"]
    assert not overlapping_texts(axes[0].figure)


def test_maps_fade_with_the_uncertainty(maps: xr.Dataset) -> None:
    axes = ib.plot_maps(maps, "f")
    mean, width = (ax.images[-1].get_alpha() for ax in axes)
    inside = np.isin(maps["status"].values[:, :, 1].T, (1, 2))
    contraction = maps["f_contraction"].values[:, :, 1].T
    assert mean[inside] == pytest.approx(np.clip(contraction[inside], 0, 1))
    assert contraction[2, 3] < 0 and mean[2, 3] == 0
    assert (mean[~inside] == 0).all() and (width[~inside] == 0).all() and (width[inside] == 1).all()
    assert inside.sum() == 7


def test_maps_on_an_underlay(maps: xr.Dataset) -> None:
    image = np.arange(8 * 6 * 3, dtype=float).reshape(8, 6, 3)
    for underlay in (image, xr.DataArray(image, dims=("x", "y", "z")).transpose("z", "x", "y")):
        axes = ib.plot_maps(maps, "D", z=0, underlay=underlay)
        assert len(axes[0].images) == 2
        assert (np.asarray(axes[1].images[0].get_array()) == image[:, :, 0].T).all()
        assert axes[0].images[0].get_extent() == axes[0].images[1].get_extent()


def test_maps_relative_to_the_mean(maps: xr.Dataset) -> None:
    axes = ib.plot_maps(maps, "D", relative=True)
    low, high, mean = (maps[f"D_{e}"].values[:, :, 1].T for e in ("hdi_low", "hdi_high", "mean"))
    assert np.asarray(axes[1].images[-1].get_array()) == pytest.approx(50 * (high - low) / mean, nan_ok=True)
    assert axes[0].figure.axes[3].get_ylabel() == "D, half the 95 % interval (%)"


def test_maps_say_what_is_missing(maps: xr.Dataset, refused: Callable[..., str]) -> None:
    refused(lambda: ib.plot_maps(maps, "K"), "parameter 'K'", "f, D, D_star, S0")
    refused(lambda: ib.plot_maps(maps.drop_vars("f_hdi_low")), "no f_hdi_low", "posterior_maps")
    refused(lambda: ib.plot_maps(maps, z=3), "z 3", "0 to 2")
    refused(lambda: ib.plot_maps(maps, z=2), "slice z = 2", "another z")
    refused(lambda: ib.plot_maps(maps.assign(status=0 * maps["status"])), "no voxel has a number")
    refused(lambda: ib.plot_maps(maps, underlay=np.ones((8, 6))), "underlay", "(8, 6)", "(8, 6, 3)")
    series = xr.DataArray(np.ones((8, 6, 3, 2)), dims=("x", "y", "z", "measurement"))
    refused(lambda: ib.plot_maps(maps, underlay=series), "underlay", "measurement")
    refused(lambda: ib.plot_maps(maps, axes=plt.subplots()[1]), "axes: 1 given", "give 2")


# checks


def test_trace_shows_each_chain(tree: xr.DataTree) -> None:
    pc = ib.plot_trace(tree, "kidney")
    assert sorted(pc.viz["plot"].data_vars) == sorted(["f", "D", "D_star", "sigma"])
    for name in ("f", "D_star"):
        ax = pc.viz["plot"][name].sel(column="trace").item()
        drawn = np.array([line.get_ydata() for line in ax.lines[:2]])
        assert drawn.ravel() == pytest.approx(shown(tree, name, "kidney"))
        assert ax.get_ylabel() == LABELS[name]
        assert [line.get_color() for line in ax.lines[:2]] == list(CHAINS[:2])
    dist = pc.viz["plot"]["D"].sel(column="dist").item()
    assert dist.get_xlabel() == LABELS["D"]
    assert len({line.get_linestyle() for line in dist.lines[:2]}) == 2
    assert not overlapping_texts(pc.viz["figure"].item())


def test_ess_shows_every_region(tree: xr.DataTree) -> None:
    pc = ib.plot_ess(tree)
    for name in ("f", "D", "D_star", "sigma"):
        assert list(pc.viz["plot"][name].coords["region"].values) == ["liver", "kidney"]
    ax = pc.viz["plot"]["D"].sel(region="liver").item()
    assert LABELS["D"] in ax.get_title() and "liver" in ax.get_title()
    assert ax.get_ylabel() == "ESS"
    draws = tree["posterior"]["D_roi"].sel(roi="liver").to_dataset(name="D")
    expected = float(az.ess(draws, method="quantile", prob=0.5)["D"])
    drawn = np.asarray(ax.collections[0].get_offsets())
    assert np.interp(0.5, drawn[:, 0], drawn[:, 1]) == pytest.approx(expected, rel=0.2)
    assert list(ax.lines[0].get_ydata())[:2] == [400, 400]


def test_ess_of_many_regions() -> None:
    many = tuple(f"r{i}" for i in range(11))
    pc = ib.plot_ess(made_tree(regions=many, voxels=2))
    assert len(pc.viz["figure"].item().axes) == 44


def test_khat_shows_every_measurement(tree: xr.DataTree) -> None:
    pc = ib.plot_khat(tree)
    figure = pc.viz["figure"].item()
    ax = figure.axes[0]
    drawn = np.concatenate([np.asarray(c.get_offsets()) for c in ax.collections])
    k = np.concatenate([leave_one_out(tree, roi).pareto_k.values.ravel() for roi in ("liver", "kidney")])
    assert drawn[np.argsort(drawn[:, 0]), 1] == pytest.approx(k)
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["kidney", "liver"]
    assert {tuple(c.get_facecolor()[0][:3]) for c in ax.collections} == {to_rgba(c)[:3] for c in CHAINS[:2]}
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("measurement of a voxel", "Pareto k")
    assert sum(float(t.get_text().rstrip("%")) for t in ax.texts) == pytest.approx(100, abs=0.3)


def test_energy_shows_every_region(tree: xr.DataTree) -> None:
    axes = ib.plot_energy(tree)
    assert [ax.get_title() for ax in axes] == ["liver\nE-BFMI 0.90", "kidney\nE-BFMI 0.20, below 0.3"]
    assert legend(axes[0]) == ["energy, from its mean", "change over a draw"]
    assert (axes[0].get_xlabel(), axes[0].get_ylabel()) == ("energy (nats)", "density per nat")
    energy = tree["sample_stats"]["energy"].sel(roi="liver").values
    heights, edges, _ = axes[0].patches[0].get_data()
    assert heights == pytest.approx(np.histogram(energy - energy.mean(), edges, density=True)[0])
    heights, edges, _ = axes[0].patches[2].get_data()
    assert heights == pytest.approx(np.histogram(np.diff(energy, axis=1), edges, density=True)[0])
    assert legend(ib.plot_energy(made_tree(every=6))[0])[1] == "change over 6 draws"
    assert not overlapping_texts(axes[0].figure)


@pytest.mark.parametrize("noise", NOISES)
def test_pit_of_calibrated_signals_is_uniform(noise: str) -> None:
    made = made_tree(noise=noise, voxels=40)
    pit = leave_one_out_pit(made, "kidney")
    assert pit.shape == (40, len(B))
    ax = ib.plot_loo_pit(made, "kidney")
    x, y = ax.lines[0].get_data()
    assert np.abs(y).max() < inside_band(ax)
    assert (x[0], x[-1], y[0], y[-1]) == (0, 1, 0, 0)
    at = np.sort(pit.ravel())
    assert y[1:-1:2] == pytest.approx(np.arange(at.size) / at.size - at)
    assert y[2::2] == pytest.approx(np.arange(1, at.size + 1) / at.size - at)
    assert legend(ax) == ["95 % band", f"{at.size} measurements"]
    assert (ax.get_title(), ax.get_xlabel()) == ("kidney", "leave-one-out PIT (probability)")


def inside_band(ax: object) -> float:
    return float(ax.collections[0].get_paths()[0].vertices[:, 1].max())


@pytest.mark.parametrize("scatter, sign", [(2.0, 1), (0.5, -1)])
def test_pit_tells_wrong_noise(scatter: float, sign: int) -> None:
    ax = ib.plot_loo_pit(made_tree(voxels=40, scatter=scatter), "kidney")
    x, y = ax.lines[0].get_data()
    assert sign * np.interp(0.2, x, y) > inside_band(ax)
    assert sign * np.interp(0.8, x, y) < -inside_band(ax)


def test_pit_band_is_that_of_uniform_values(tree: xr.DataTree) -> None:
    half = inside_band(ib.plot_loo_pit(tree, "liver"))
    n = 12 * len(B)
    values = np.sort(np.random.default_rng(0).random((4000, n)), axis=1)
    above, below = np.arange(1, n + 1) / n - values, values - np.arange(n) / n
    assert (np.maximum(above, below).max(axis=1) < half).mean() == pytest.approx(0.95, abs=0.015)


def compared(warning: str = "") -> Comparison:
    rows = [
        ("liver", "tri", 0.0, 0.0, False, warning), ("liver", "bi", -3.0, 2.0, True, ""),
        ("liver", "mono", -150.0, 20.0, False, ""), ("spleen", "bi", 0.0, 0.0, True, ""),
        ("spleen", "mono", -6.0, 3.0, False, ""),
    ]  # fmt: skip
    columns = ["roi", "fit", "elpd_diff", "se_diff", "chosen", "warning"]
    return Comparison(pd.DataFrame(rows, columns=columns), {"liver": "", "spleen": ""})


def test_comparison_shows_each_fit() -> None:
    ax = ib.plot_comparison(compared())
    points = [line for line in ax.lines if line.get_marker() == "o" and len(line.get_xdata()) == 1]
    assert [float(line.get_xdata()[0]) for line in points] == [0, -3, -150, 0, -6]
    assert [line.get_markerfacecolor() != "white" for line in points] == [False, True, False, True, False]
    bars = [c.get_segments()[0][:, 0].tolist() for c in ax.collections]
    assert bars == [[0, 0], [-5, -1], [-170, -130], [0, 0], [-9, -3]]
    names = [t.get_text() for t in ax.get_yticklabels()]
    assert names == ["liver: tri", "liver: bi", "liver: mono", "spleen: bi", "spleen: mono"]
    assert ax.get_xlabel() == "elpd less that of the region's best fit (nats)"
    assert ax.get_xscale() == "symlog" and legend(ax) == ["chosen", "not chosen"]
    assert not overlapping_texts(ax.figure)


def test_comparison_marks_what_is_rough(refused: Callable[..., str]) -> None:
    ax = ib.plot_comparison(compared("the fit failed"))
    assert ax.lines[0].get_marker() == "X" and legend(ax)[-1] == "see warning"
    empty = Comparison(compared().table.iloc[:0], {})
    refused(lambda: ib.plot_comparison(empty), "comparison", "compare_models")


# what all have in common

BY_REGION = (
    ib.plot_decay,
    ib.plot_predictive,
    ib.plot_prior_posterior,
    ib.plot_joint,
    ib.plot_trace,
    ib.plot_loo_pit,
)
OF_ALL = (ib.plot_regions, ib.plot_spread, ib.plot_ess, ib.plot_khat, ib.plot_energy)


@pytest.mark.parametrize("plot", BY_REGION)
def test_unknown_region(plot: Callable[..., object], tree: xr.DataTree, refused: Callable[..., str]) -> None:
    refused(lambda: plot(tree, "spleen"), "no region 'spleen'", "liver, kidney")


@pytest.mark.parametrize("plot", [*BY_REGION, *OF_ALL])
def test_no_posterior(plot: Callable[..., object], tree: xr.DataTree, refused: Callable[..., str]) -> None:
    arguments = (without(tree, "posterior"), *(("liver",) if plot in BY_REGION else ()))
    refused(lambda: plot(*arguments), "no group posterior", "from fit")


@pytest.mark.parametrize(
    "plot, group",
    [
        (ib.plot_decay, "posterior_predictive"), (ib.plot_predictive, "observed_data"), (ib.plot_trace, "sample_stats"),
        (ib.plot_loo_pit, "observed_data"), (ib.plot_energy, "sample_stats"), (ib.plot_khat, "constant_data"),
    ],
)  # fmt: skip
def test_missing_group(
    plot: Callable[..., object], group: str, tree: xr.DataTree, refused: Callable[..., str]
) -> None:
    arguments = (without(tree, group), *(("liver",) if plot in BY_REGION else ()))
    refused(lambda: plot(*arguments), f"no group {group}", "posterior.nc")


def test_no_spec(tree: xr.DataTree, refused: Callable[..., str]) -> None:
    bare = tree.copy()
    bare.attrs = {}
    refused(lambda: ib.plot_regions(bare), "no attribute spec")


@pytest.mark.parametrize("plot", [ib.plot_decay, ib.plot_predictive, ib.plot_joint, ib.plot_loo_pit])
def test_given_axes_are_used(plot: Callable[..., object], tree: xr.DataTree) -> None:
    ax = plt.subplots()[1]
    assert plot(tree, "liver", ax=ax) is ax
    assert len(plt.get_fignums()) == 1 and ax.has_data()


def test_given_axes_must_be_enough(tree: xr.DataTree, refused: Callable[..., str]) -> None:
    for plot in (
        ib.plot_regions,
        ib.plot_spread,
        lambda t, axes: ib.plot_prior_posterior(t, "liver", axes=axes),
    ):
        axes = plt.subplots(1, 3)[1]
        assert list(plot(tree, axes=axes)) == list(axes)
        refused(
            lambda plot=plot, axes=axes: plot(tree, axes=axes[:2]),
            "axes: 2 given",
            "give 3, for f, D, D_star",
        )
    refused(lambda: ib.plot_energy(tree, axes=axes), "axes: 3 given", "give 2, for liver, kidney")
    assert len(plt.get_fignums()) == 3


def test_labels_of_five_parameters_do_not_meet() -> None:
    made = made_tree("triexponential")
    for axes in (
        ib.plot_sessions(made, made).ravel(),
        ib.plot_spread(made),
        ib.plot_prior_posterior(made, "liver"),
    ):
        assert not overlapping_texts(axes[0].figure)


@pytest.mark.parametrize(
    "plot", [ib.plot_regions, ib.plot_spread, lambda tree: ib.plot_sessions(tree, tree).ravel()]
)
def test_long_names_do_not_meet(plot: Callable[..., np.ndarray]) -> None:
    long = ("peripheral zone of the left", "transition zone", "tumour")
    assert not overlapping_texts(plot(made_tree(regions=long))[0].figure)


def test_a_real_fit_is_drawn(short_fit: xr.DataTree) -> None:
    for plot in BY_REGION:
        plot(short_fit, "kidney")
    for plot in OF_ALL:
        plot(short_fit)
    ax = ib.plot_decay(short_fit, "kidney")
    assert legend(ax) == ["a voxel's measurement", "region", "tissue part", "vascular part", "mean measured"]
    assert len(ax.lines[-1].get_xdata()) == 16


@pytest.mark.parametrize("name", ["monoexponential", "triexponential"])
def test_decay_of_a_fit_of_the_fewest_and_the_most(
    name: str, phantom_scan: tuple[xr.Dataset, xr.Dataset]
) -> None:
    """Also where there is nothing to correlate (one parameter): from a fit, not a tree made by hand."""
    short = {"draws": 50, "tune": 50, "chains": 2, "voxels_per_roi": 6, "retry": False, "progress": False}
    tree = ib.fit(phantom_scan[0], ModelSpec(signal=name), **short)
    ax = ib.plot_decay(tree, str(tree["posterior"]["roi"].values[0]))
    assert all(np.isfinite(line.get_ydata()).all() for line in ax.lines)
