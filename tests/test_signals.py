import numpy as np
import pytensor.tensor as pt
import pytest
import xarray as xr

from ivimbayes import predict
from ivimbayes.signals import SIGNALS

B = np.array([0.0, 10, 50, 200, 800])
THETA = np.random.default_rng(1).normal([-2, -6.8, -4], [1, 0.4, 1], (50, 3))


@pytest.mark.parametrize("name", SIGNALS)
def test_values_and_theta_are_inverse_and_ordered(name: str) -> None:
    signal = SIGNALS[name]
    values = signal.values(*THETA.T)
    np.testing.assert_allclose(np.stack(signal.theta(*values), axis=-1), THETA, rtol=1e-9)
    _, D, D_star = values
    assert (D_star > D).all()


@pytest.mark.parametrize("name", SIGNALS)
def test_jacobian_matches_finite_differences(name: str) -> None:
    signal = SIGNALS[name]

    def curve(theta: np.ndarray) -> np.ndarray:
        return signal.curve(B, *(v[..., None] for v in signal.values(*theta.T)))

    g, jacobian = signal.jacobian(B, THETA)
    np.testing.assert_allclose(g, curve(THETA), rtol=1e-12)
    for i in range(3):
        step = np.zeros(3)
        step[i] = 1e-6
        numeric = (curve(THETA + step) - curve(THETA - step)) / 2e-6
        np.testing.assert_allclose(jacobian[:, i], numeric, atol=1e-8)


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
