"""The compiled curves are those of the equations in numpy, for random theta and b values; so are their slopes."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ivimbayes.models.parameters import LOGIT, PARAMETERS
from ivimbayes.models.signals import DECAYS, SIGNALS, Signal
from ivimbayes.numerics.biexponential import curve_sums, curves_at_b, start_products, values_of_draws
from ivimbayes.numerics.signals import KINDS, form_of, make_shape, signal_adjoint, signal_curve
from ivimbayes.numerics.steps import make_acquisition, step_table
from ivimbayes.voxelwise.workspace import make_work

LANES = 4
RANGES = {"D": (-14.0, -4.0), "D_star": (-9.0, 2.0), "D_star_fast": (-9.0, 3.0), "K": (-6.0, 3.0)}
B_VALUES = st.lists(st.floats(0, 5000).map(lambda b: round(b, 1)), min_size=1, max_size=20, unique=True).map(
    sorted
)


def thetas(signal: Signal) -> Any:
    """Theta (parameter, lane) over more than any prior's range."""
    ranges = [(-8.0, 8.0) if PARAMETERS[name].link is LOGIT else RANGES[name] for name in signal.parameters]
    lanes = st.tuples(*(st.floats(*ends) for ends in ranges))
    return st.lists(lanes, min_size=LANES, max_size=LANES).map(lambda rows: np.array(rows).T.copy())


def compiled(signal: Signal, theta: np.ndarray, b: np.ndarray, root: np.ndarray, bar: np.ndarray) -> Any:
    """Weighted curve (b, lane) and the adjoint of theta (parameter, lane) from that of the curve."""
    step, (steps, left, right) = step_table(b)
    form, curve, out = form_of(signal), np.empty((len(b), LANES)), np.full_like(theta, np.nan)
    shape = make_shape(form, len(b), len(steps), LANES)
    signal_curve(form, theta, root, b, step, steps, left, right, curve, shape)
    signal_adjoint(form, bar, root, b, shape, out)
    return curve, out


@pytest.mark.parametrize("name", SIGNALS)
@settings(deadline=None, derandomize=True)
@given(data=st.data())
def test_curve_and_adjoint_are_those_of_the_equation(name: str, data: st.DataObject) -> None:
    signal = SIGNALS[name]
    theta, b = data.draw(thetas(signal)), np.array(data.draw(B_VALUES))
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    root, bar = rng.uniform(0.5, 2, (len(b), LANES)), rng.standard_normal((len(b), LANES))
    curve, adjoint = compiled(signal, theta, b, root, bar)
    expected, slope = signal.jacobian(b, theta.T)
    np.testing.assert_allclose(curve, root * expected.T, rtol=1e-11, atol=1e-14)
    terms = slope * (root * bar).T[:, None]
    near = 1e-11 * np.abs(terms).sum(axis=-1).T + 1e-12
    assert (np.abs(adjoint - terms.sum(axis=-1).T) <= near).all()


@settings(deadline=None, derandomize=True)
@given(theta=thetas(SIGNALS["biexponential"]), b=B_VALUES, seed=st.integers(0, 1000))
def test_sums_over_b_of_many_draws_are_those_of_the_equation(
    theta: np.ndarray, b: list[float], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    acquisition = make_acquisition(np.array(b), rng.integers(1, 4, len(b)).astype(float))
    signal, work = rng.uniform(0, 2, len(b)), make_work(acquisition, LANES)
    values_of_draws(theta, 0, LANES, work.value)
    start_products(0, LANES, acquisition, work.value, work)
    curve_sums(0, LANES, signal, acquisition, work.value, work)
    curves_at_b(0, LANES, acquisition, work.value, work)
    values = SIGNALS["biexponential"].values(*theta)
    curve = SIGNALS["biexponential"].curve(acquisition.b, *(v[:, None] for v in values))
    near = {"rtol": 1e-11, "atol": 1e-14}
    np.testing.assert_allclose(work.value[:3], values, rtol=1e-14)
    np.testing.assert_allclose(work.curve[:, :LANES], curve.T, **near)
    np.testing.assert_allclose(work.sums[0, :LANES], curve**2 @ acquisition.weight, **near)
    np.testing.assert_allclose(work.sums[1, :LANES], curve @ signal, **near)


def test_a_kind_of_decay_without_compiled_functions_gives_no_number() -> None:
    """The place of a kind is its number; one that is not dispatched on is not taken for another."""
    assert tuple(DECAYS) == KINDS
    b, ones = np.array([0.0, 500.0]), np.ones((2, LANES))
    step, (steps, left, right) = step_table(b)
    form = form_of(SIGNALS["kurtosis"])
    shape, curve = make_shape(form, 2, len(steps), LANES), np.empty((2, LANES))
    unknown, theta = form._replace(kind=-len(KINDS)), np.full((2, LANES), -7.0)
    signal_curve(unknown, theta, ones, b, step, steps, left, right, curve, shape)
    assert np.isnan(curve[1]).all()
