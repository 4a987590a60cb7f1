"""Single curves and volumes with the interface of OSIPI's collection: right, within bounds, and refused."""

from typing import Any

import numpy as np
import pytest
from numba import njit
from numba.core import event
from osipi import PUBLISHED, B, drawn_curves

from ivimbayes import SIGNALS, InputError, InputWarning, predict, tissue_prior
from ivimbayes.curves.summary import QUIET, summarise_curves, voxel_prior
from ivimbayes.models.spec import S0_MEAN, S0_MEAN_SD, SIGMA_SCALE
from ivimbayes.osipi import RESULTS, IvimBayes

TRUTH = {"f": 0.2, "D": 1.1e-3, "D_star": 40e-3}
SILLY = ([0.0008, 0.2, 0.01, 1.1], [0.0012, 0.3, 0.02, 1.3])
GENERIC = tissue_prior("generic")


def curve(noise: float, seed: int = 0, **values: float) -> np.ndarray:
    return predict(B, 1.0, **(TRUTH | values)) + noise * np.random.default_rng(seed).standard_normal(len(B))


def on_grid(y: np.ndarray, n: int = 56) -> dict[str, tuple[float, float]]:
    """Mean and sd of a curve's posterior by sums over theta and sigma, zoomed on where it is."""
    centre, width = voxel_prior(GENERIC)
    low, high = centre - 5 * width, centre + 5 * width
    for _ in range(3):
        axes = [np.linspace(low[i], high[i], n) for i in range(3)]
        theta = np.meshgrid(*axes, indexing="ij")
        f, D, D_star = SIGNALS["biexponential"].values(*theta)
        G = gs = 0.0
        for b, signal in zip(B, y, strict=True):
            g = (1 - f) * np.exp(-b * D) + f * np.exp(-b * D_star)
            G, gs = G + g * g, gs + signal * g
        middle = 0.5 * np.log(((y @ y) - gs**2 / G).min() / len(y))
        total = np.full(f.shape, -np.inf)
        for sigma in np.exp(np.linspace(middle - 1.5, middle + 3, 50)):
            r = (sigma / S0_MEAN_SD) ** 2
            c = (r * S0_MEAN + gs) / (G + r)
            square = (y @ y) + r * S0_MEAN**2 - (G + r) * c * c
            each = (2 - len(y)) * np.log(sigma) - 0.5 * np.log(G + r) - 0.5 * square / sigma**2
            total = np.logaddexp(total, each - 0.5 * (sigma / SIGMA_SCALE) ** 2 - (QUIET / sigma) ** 2)
        total -= 0.5 * sum(((t - centre[i]) / width[i]) ** 2 for i, t in enumerate(theta))
        p = np.exp(total - total.max())
        for i in range(3):
            there = np.flatnonzero(p.max(axis=tuple({0, 1, 2} - {i})) > 1e-7)
            low[i], high[i] = axes[i][max(there[0] - 1, 0)], axes[i][min(there[-1] + 1, n - 1)]
        found = {}
        for name, value in (("f", f), ("D", D), ("D_star", D_star)):
            mean = (p * value).sum() / p.sum()
            found[name] = mean, np.sqrt((p * (value - mean) ** 2).sum() / p.sum())
    return found


def differ(found: dict[str, np.ndarray], exact: dict[str, tuple[float, float]]) -> list[str]:
    return [
        name
        for name, (mean, sd) in exact.items()
        if abs(found[f"{name}_mean"][0] - mean) > 0.1 * sd or abs(found[f"{name}_sd"][0] / sd - 1) > 0.1
    ]


@pytest.mark.parametrize("noise", [0.1, pytest.param(0.02, marks=pytest.mark.slow), 0.0005])
def test_agrees_with_sums_over_a_grid(noise: float) -> None:
    y = curve(noise, 5)
    exact = on_grid(y)
    assert differ(summarise_curves(y[None], B, GENERIC, {}, draws=4096, tail=0.1), exact) == []
    other = summarise_curves(curve(noise, 6)[None], B, GENERIC, {}, draws=4096, tail=0.1)
    assert differ(other, exact)  # another curve's posterior is told apart


def test_known_tissues_with_little_noise() -> None:
    fit = IvimBayes(bvalues=B)
    for D, f, D_star in PUBLISHED:
        for seed in (0, 1):
            found = fit.osipi_fit(curve(0.0005, seed, f=f, D=D * 1e-3, D_star=D_star * 1e-3))
            for key, truth, far in (
                ("f", f, 0.02),
                ("D", D * 1e-3, 0.03e-3 * D),
                ("Dp", D_star * 1e-3, 0.15e-3 * D_star),
            ):
                held = found[f"{key}_low"] <= truth <= found[f"{key}_high"]
                assert held or abs(found[key] - truth) <= far, (key, truth, found)
            assert found["status"] == 1


def test_a_further_curve_compiles_nothing() -> None:
    """A curve takes milliseconds (docs/osipi.md) unless something is compiled for it, which takes seconds."""
    fit = IvimBayes(bvalues=B)
    fit.osipi_fit(curve(0.02))
    with event.install_recorder("numba:compile") as compiled:
        fit.osipi_fit(curve(0.05, 1))
        IvimBayes(prior="liver").osipi_fit(curve(0.02, 2)[:15], B[:15])
    assert compiled.buffer == []
    with event.install_recorder("numba:compile") as compiled:
        njit(lambda x: x + 1)(1)
    assert compiled.buffer  # a compilation would be seen


def test_units_of_the_signal_do_not_matter() -> None:
    y = curve(0.02)
    one, other = IvimBayes().osipi_fit(y, B), IvimBayes().osipi_fit(300 * y, B)
    assert other["f"] == pytest.approx(one["f"], rel=1e-9)
    assert other["S0_high"] == pytest.approx(300 * one["S0_high"], rel=1e-9)
    assert other["sigma"] == pytest.approx(300 * one["sigma"], rel=1e-9)


@pytest.mark.parametrize("noise", [0.05, 0.0005])
@pytest.mark.parametrize("named", [True, False])
def test_bounds_hold_in_both_forms(noise: float, named: bool) -> None:
    order = ("D", "f", "Dp", "S0")
    bounds: Any = {k: [SILLY[0][i], SILLY[1][i]] for i, k in enumerate(order)} if named else SILLY
    y = curve(noise)
    found = IvimBayes(bounds=bounds, initial_guess=[0.001, 0.25, 0.015, 1.2]).osipi_fit(y / y[0], B)
    free = IvimBayes().osipi_fit(y / y[0], B)
    for i, key in enumerate(order):
        for suffix in ("", "_low", "_high"):
            assert SILLY[0][i] <= found[key + suffix] <= SILLY[1][i], key + suffix
    assert free["S0"] < SILLY[0][3]  # without them it lies outside


def test_bounds_can_be_set_later_and_wide_ones_change_little() -> None:
    fit, y = IvimBayes(bvalues=B), curve(0.01)
    free = fit.osipi_fit(y)
    fit.bounds = ([0, 0, 0.005, 0.7], [0.005, 1.0, 0.2, 1.3])
    found = fit.osipi_fit(y)
    for key in ("f", "D", "Dp", "S0"):
        assert abs(found[key] - free[key]) < 0.1 * free[f"{key}_sd"]
        assert found[f"{key}_sd"] == pytest.approx(free[f"{key}_sd"], rel=0.1)


def test_the_initial_guess_changes_nothing() -> None:
    y = curve(0.02)
    guess = {"S0": 1, "f": 0.9, "Dp": 0.1, "D": 0.004}
    assert IvimBayes(initial_guess=guess).osipi_fit(y, B) == IvimBayes().osipi_fit(y, B)


def test_a_volume_is_its_curves() -> None:
    volume = np.stack([curve(0.03, seed) for seed in range(12)]).reshape(3, 2, 2, -1)
    volume[0, 0, 0], volume[2, 1, 1, 3] = 0.0, np.nan
    found = IvimBayes(bvalues=B).osipi_fit_full_volume(volume)
    assert set(found) == set(RESULTS) and all(v.shape == (3, 2, 2) for v in found.values())
    assert found["status"][0, 0, 0] == found["status"][2, 1, 1] == 4
    assert np.isnan(found["f"][0, 0, 0]) and (found["status"] == 1).sum() == 10
    one = IvimBayes().osipi_fit(volume[1, 1, 0], B)
    for key in ("f", "D", "Dp", "S0"):
        assert abs(found[key][1, 1, 0] - one[key]) < 0.1 * one[f"{key}_sd"]


def test_pooled_voxels_are_drawn_together_and_cut_off() -> None:
    rng = np.random.default_rng(1)
    f = 0.2 + 0.03 * rng.standard_normal(40)
    signal = predict(B, 1.0, f=f[:, None], D=1.1e-3, D_star=40e-3) + 0.04 * rng.standard_normal((40, len(B)))
    fit = IvimBayes(bvalues=B, bounds={"D": (0, 1.12e-3)})
    alone, pooled = fit.osipi_fit_full_volume(signal), fit.osipi_fit_full_volume(signal, pooled=True)
    good = pooled["status"] < 3
    assert good.sum() > 20
    assert np.median(pooled["Dp_sd"][good]) < 0.7 * np.median(alone["Dp_sd"])
    assert (pooled["D_high"][good] <= 1.12e-3).all() and (pooled["D"][good] <= 1.12e-3).all()


@pytest.mark.parametrize(
    ("given", "data", "bvalues", "message"),
    [
        ({}, curve(0.01), None, "bvalues: none given"),
        ({}, curve(0.01)[:5], B, "as long as bvalues"),
        ({}, curve(0.01)[:4], B[[0, 0, 19, 19]], "distinct b values"),
        ({}, curve(0.01), -B, "from 0 on"),
        ({}, np.full(len(B), np.nan), B, "not finite"),
        ({}, -curve(0.01), B, "not above 0"),
        ({}, "signal", B, "not numbers"),
        ({"bounds": {"f": [0.5, 0.2]}}, None, None, "below the upper"),
        ({"bounds": {"g": [0, 1]}}, None, None, "unknown 'g'"),
        ({"bounds": [0, 1]}, None, None, r"shape \(2, 4\)"),
        ({"bounds": {"D": [0.01, 0.02], "Dp": [0.005, 0.01]}}, None, None, "D is below Dp"),
        ({"interval": 95}, None, None, "probability"),
        ({"prior": "livr"}, None, None, "nearest: liver"),
    ],
)
def test_bad_input_is_refused_in_one_line(
    given: dict[str, Any], data: Any, bvalues: Any, message: str
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        IvimBayes(**given).osipi_fit(data, bvalues)
    assert "\n" not in str(caught.value)


def test_unknown_arguments_and_weak_protocols_are_named() -> None:
    with pytest.raises(InputError, match="fitS0"):
        IvimBayes().osipi_fit(curve(0.01), B, fitS0=True)
    low = B <= 150
    with pytest.warns(InputWarning, match="no high b value"):
        IvimBayes().osipi_fit(curve(0.01)[low], B[low])


def test_negative_signals_are_noise() -> None:
    y = curve(0.05)
    y[-1] = -0.02
    assert IvimBayes().osipi_fit(y, B)["status"] == 1


class CollectionBase:
    """What the collection's base class does with an algorithm: it turns into it, and sets bounds by name."""

    def __init__(self, algorithm: type | None = None, **given: Any) -> None:
        bounds = {"S0": [0.7, 1.3], "f": [0, 1.0], "Dp": [0.005, 0.2], "D": [0, 0.005]}
        if algorithm is not None:
            self.__class__ = algorithm
            self.__init__(bvalues=None, thresholds=None, bounds=bounds, initial_guess={"S0": 1}, **given)

    def osipi_fit(self, data: np.ndarray, bvalues: Any = None) -> dict[str, Any]:
        raise AssertionError("the algorithm's own is meant")

    def osipi_check_required_bounds(self) -> bool:
        return True


class InCollection(IvimBayes, CollectionBase):
    pass


def test_it_takes_its_place_in_the_collection() -> None:
    fit: Any = CollectionBase(algorithm=InCollection, prior="liver")
    assert fit.osipi_check_required_bounds() and fit.use_bounds and not fit.deep_learning
    found = fit.osipi_fit(curve(0.01), B)
    assert list(found) == fit.result_keys
    assert found == fit.ivim_fit(curve(0.01), B)


@pytest.mark.slow
@pytest.mark.parametrize("noise", [0.05, 0.02, 0.0005])
def test_intervals_hold_the_truth(noise: float) -> None:
    """1 000 curves: 95 ± 2.8 points, four standard errors; false alarm below 1e-3 over all nine."""
    rng = np.random.default_rng(11)
    clean, truth = drawn_curves(1000, rng)
    fit = IvimBayes(bvalues=B)
    found = fit.osipi_fit_full_volume(clean + noise * rng.standard_normal(clean.shape))
    for key, true in truth.items():
        low, high = found[f"{key}_low"], found[f"{key}_high"]
        assert abs(np.mean((low <= true) & (true <= high)) - 0.95) < 0.028, key
        low, high = found[key] + 0.7 * (low - found[key]), found[key] + 0.7 * (high - found[key])
        assert np.mean((low <= true) & (true <= high)) < 0.95 - 0.028, f"{key}: intervals too short pass"
