from itertools import pairwise

import numpy as np
import pytensor.tensor as pt
import pytest
import xarray as xr

from ivimbayes import predict
from ivimbayes.models.names import SIGNAL_NAMES
from ivimbayes.models.parameters import LOG, LOGIT, PARAMETERS, Link
from ivimbayes.models.signals import DECAYS, SIGNALS

pytestmark = pytest.mark.usefixtures("interpreted")

B = np.array([0.0, 10, 50, 200, 800])
CENTRES = {"f": -2, "f_fast": 0.3, "D": -6.8, "D_star": -4, "D_star_fast": -2.5, "K": -0.3, "alpha": 1.1}


def thetas(name: str) -> np.ndarray:
    centre = [CENTRES[p] for p in SIGNALS[name].parameters]
    return np.random.default_rng(1).normal(centre, 0.7, (50, len(centre)))


@pytest.mark.parametrize("name", SIGNALS)
def test_values_and_theta_are_inverse_and_ordered(name: str) -> None:
    signal, theta = SIGNALS[name], thetas(name)
    values = signal.values(*theta.T)
    np.testing.assert_allclose(np.stack(signal.theta(*values), axis=-1), theta, rtol=1e-9)
    named = dict(zip(signal.parameters, values, strict=True))
    rates = [named[p] for p in ("D", "D_star", "D_star_fast") if p in named]
    assert all((b > a).all() for a, b in pairwise(rates))
    fractions = [np.ones(50), *(named[p] for p in ("f", "f_fast") if p in named)]
    assert all((b < a).all() and (b > 0).all() for a, b in pairwise(fractions))


@pytest.mark.parametrize("name", SIGNALS)
def test_jacobian_matches_finite_differences(name: str) -> None:
    signal, theta = SIGNALS[name], thetas(name)

    def curve(theta: np.ndarray) -> np.ndarray:
        return signal.curve(B, *(v[..., None] for v in signal.values(*theta.T)))

    g, jacobian = signal.jacobian(B, theta)
    np.testing.assert_allclose(g, curve(theta), rtol=1e-12)
    for i, step in enumerate(1e-6 * np.eye(theta.shape[1])):
        numeric = (curve(theta + step) - curve(theta - step)) / 2e-6
        np.testing.assert_allclose(jacobian[:, i], numeric, rtol=1e-6, atol=1e-8)


def test_equations_are_the_published_ones() -> None:
    f, g, D, D1, D2, K, a, b = 0.2, 0.08, 1e-3, 20e-3, 0.3, 0.9, 0.7, B
    exp = np.exp
    expected = {
        "monoexponential": exp(-b * D),
        "kurtosis": exp(-b * D + b**2 * D**2 * K / 6),
        "stretched": exp(-((b * D) ** a)),
        "simplified": (1 - f) * exp(-b * D) + f * (b == 0),
        "biexponential": f * exp(-b * D1) + (1 - f) * exp(-b * D),
        "biexponential_kurtosis": f * exp(-b * D1) + (1 - f) * exp(-b * D + b**2 * D**2 * K / 6),
        "triexponential": (f - g) * exp(-b * D1) + g * exp(-b * D2) + (1 - f) * exp(-b * D),
    }
    values = {"f": f, "f_fast": g, "D": D, "D_star": D1, "D_star_fast": D2, "K": K, "alpha": a}
    assert set(expected) == set(SIGNALS)
    for name, curve in expected.items():
        mine = {p: values[p] for p in SIGNALS[name].parameters}
        np.testing.assert_allclose(predict(b, 1.0, signal=name, **mine), curve, rtol=1e-13)


def test_models_agree_where_fractions_vanish() -> None:
    values = {"f": 0.2, "D": 1e-3, "D_star": 20e-3}
    bi = predict(B, 1.0, **values)
    tri = predict(B, 1.0, signal="triexponential", **values, f_fast=1e-12, D_star_fast=0.5)
    np.testing.assert_allclose(tri, bi, atol=1e-11)
    kurtosis = predict(B, 1.0, signal="biexponential_kurtosis", **values, K=1e-12)
    np.testing.assert_allclose(kurtosis, bi, atol=1e-11)
    simplified = predict(B, 1.0, signal="simplified", f=0.2, D=1e-3)
    np.testing.assert_allclose(predict(B, 1.0, f=0.2, D=1e-3, D_star=1e3), simplified, atol=1e-11)
    mono = predict(B, 1.0, signal="monoexponential", D=1e-3)
    for name, rest in (("simplified", {}), ("biexponential", {"D_star": 0.02})):
        np.testing.assert_allclose(predict(B, 1.0, signal=name, f=1e-12, D=1e-3, **rest), mono, atol=1e-11)
    np.testing.assert_allclose(predict(B, 1.0, signal="kurtosis", D=1e-3, K=1e-12), mono, atol=1e-11)
    np.testing.assert_allclose(predict(B, 1.0, signal="stretched", D=1e-3, alpha=1.0), mono, rtol=1e-14)


@pytest.mark.parametrize("name", SIGNALS)
@pytest.mark.parametrize("low", [0.0, -30.0])
def test_all_is_finite_and_1_at_b_zero(name: str, low: float) -> None:
    """The derivatives too, by hand and by pytensor, however small the parameters."""
    signal, b = SIGNALS[name], np.array([0.0, 1e-6, 1e5])
    theta = thetas(name) + low
    curve, jacobian = signal.jacobian(b, theta)
    np.testing.assert_allclose(curve[:, 0], 1, rtol=1e-15)
    assert np.isfinite(jacobian).all()
    assert (jacobian[..., 0] == 0).all()
    x = pt.vector("x")
    traced = signal.curve(b, *signal.values(*(x[i] for i in range(theta.shape[1])), exp=pt.exp), exp=pt.exp)
    slopes = pt.stack([pt.grad(traced[k], x) for k in range(len(b))], axis=1)
    found = slopes.eval({x: theta[0]})
    np.testing.assert_allclose(found, jacobian[0], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", DECAYS)
def test_every_kind_of_decay_is_an_exponential_or_says_how_it_departs(name: str) -> None:
    decay = DECAYS[name]
    assert len(decay.shape) <= 1
    assert bool(decay.shape) == bool(decay.noun) == bool(decay.claim)
    assert set(decay.start) <= set(PARAMETERS)
    assert all(label in decay.equation for label in ("b·D", *decay.shape))
    assert any(signal.tissue is decay for signal in SIGNALS.values())


@pytest.mark.parametrize("link", [LOGIT, LOG], ids=["logit", "log"])
def test_links_are_inverse_with_their_slope(link: Link) -> None:
    x = np.linspace(-8, 8, 33)
    value = link.inverse(x)
    np.testing.assert_allclose(link.forward(value), x, atol=1e-12)
    np.testing.assert_allclose(link.inverse(pt.constant(x), exp=pt.exp).eval(), value, rtol=1e-15)
    numeric = (link.inverse(x + 1e-6) - link.inverse(x - 1e-6)) / 2e-6
    np.testing.assert_allclose(link.slope(value), numeric, rtol=1e-8, atol=1e-9)


def test_names_for_the_command_line_are_those_of_the_models() -> None:
    assert tuple(SIGNALS) == SIGNAL_NAMES


def test_parameters_of_models_have_a_prior() -> None:
    used = {name for signal in SIGNALS.values() for name in signal.parameters}
    assert {name for name, p in PARAMETERS.items() if p.prior} == used
    assert all(p.prior.source for p in PARAMETERS.values() if p.prior and p.prior.centre is not None)


def test_one_equation_serves_numpy_xarray_and_pytensor() -> None:
    f, D, D_star = (np.array(v) for v in ([0.1, 0.3], [1e-3, 2e-3], [20e-3, 50e-3]))
    by_numpy = predict(B, 100.0, f=f[:, None], D=D[:, None], D_star=D_star[:, None])
    da = {k: xr.DataArray(v, dims="voxel") for k, v in {"f": f, "D": D, "D_star": D_star}.items()}
    by_name = predict(xr.DataArray(B, dims="measurement"), 100.0, **da)
    np.testing.assert_allclose(by_name.transpose("voxel", "measurement").values, by_numpy)
    curve = SIGNALS["biexponential"].curve(B, *(pt.constant(v[:, None]) for v in (f, D, D_star)), exp=pt.exp)
    np.testing.assert_allclose(100 * curve.eval(), by_numpy)


def test_signal_is_s0_at_b_zero_and_tissue_at_high_b() -> None:
    values = {"f": 0.2, "D": 1e-3, "D_star": 50e-3}
    assert predict(0.0, 7.0, **values) == pytest.approx(7.0)
    assert predict(600.0, 1.0, **values) == pytest.approx(0.8 * np.exp(-0.6), rel=1e-9)


def test_wrong_parameters_are_named() -> None:
    with pytest.raises(ValueError, match="has the parameters f, D, D_star; got f, D"):
        predict(B, 1.0, f=0.1, D=1e-3)
    with pytest.raises(ValueError, match="signal 'ivim'; accepted are monoexponential"):
        predict(B, 1.0, signal="ivim", f=0.1, D=1e-3)
