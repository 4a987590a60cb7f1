"""The posterior of single voxels, against quadrature on a grid with densities written by others."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.special import logsumexp
from scipy.stats import multivariate_normal, multivariate_t, norm, rice

from ivimbayes.models.bessel import COARSE, COARSE_CENTRE
from ivimbayes.models.signals import SIGNALS
from ivimbayes.numerics.arithmetic import logarithms
from ivimbayes.numerics.jit import load
from ivimbayes.numerics.steps import make_acquisition
from ivimbayes.voxelwise import posterior as kernel
from ivimbayes.voxelwise.draws import make_draws
from ivimbayes.voxelwise.points import make_points
from ivimbayes.voxelwise.summaries import BANDWIDTH
from ivimbayes.voxelwise.weights import finish_weights
from ivimbayes.voxelwise.workspace import WIDTH, make_work

B = np.array((0, 0, 10, 20, 40, 80, 110, 140, 170, 200, 300, 400, 500, 600, 700, 800.0))
AVERAGES = np.array((2, 1, 1, 1, 2, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 3.0))
MU = np.array([-1.6, -6.7, -3.6])
COV = np.array([[0.30, -0.02, 0.05], [-0.02, 0.04, 0.01], [0.05, 0.01, 0.40]])
SIGMA, S0, S0_SD = 1 / 25, 1.0, 0.15
NAMES = ("f", "D", "D_star", "S0")


def voxels(count: int, rician: bool, seed: int = 0, sigma: float = SIGMA) -> tuple[np.ndarray, np.ndarray]:
    """Signals and true (f, D, D*, S0)."""
    rng = np.random.default_rng(seed)
    values = np.stack(SIGNALS["biexponential"].values(*rng.multivariate_normal(MU, COV, count).T), axis=1)
    scale = S0 + S0_SD * rng.standard_normal(count)
    curve = scale[:, None] * SIGNALS["biexponential"].curve(B, *(v[:, None] for v in values.T))
    noise = sigma / np.sqrt(AVERAGES) * rng.standard_normal((2, count, len(B)))
    signal = np.hypot(curve + noise[0], noise[1]) if rician else curve + noise[0]
    return signal, np.column_stack([values, scale])


def run(
    signal: np.ndarray,
    *,
    rician: bool = False,
    nu: float = 0.0,
    draws: int = 512,
    interval: float = 0.95,
    keep: int = 0,
    own: bool = False,
    population: dict[str, np.ndarray] | None = None,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    fixed = {
        "mean": np.tile(MU, (2, 1)), "covariance": np.tile(COV, (2, 1, 1)), "sigma": np.full(2, SIGMA),
        "S0": np.full(2, S0), "S0_sd": np.full(2, S0_SD),
    }  # fmt: skip
    acquisition = make_acquisition(B, AVERAGES)
    kernel.load_kernel(rician, nu > 0)
    dims = 4 if rician else 3
    lanes = [
        make_draws(**(population or fixed), averages=AVERAGES, count=n, nu=nu, rician=rician, seed=seed)
        for n in (draws, WIDTH, 8 * draws)
    ]
    points = [make_points(d, n, seed) for d, n in ((dims, draws), (dims, 8 * draws), (dims - 2, 64))]
    merged = np.zeros((len(signal), len(acquisition.b)))
    np.add.at(merged.T, acquisition.place.astype(int), (AVERAGES * signal).T)
    out, kept = np.empty((len(signal), kernel.COLUMNS)), np.empty((len(signal), 4, keep))
    kernel.voxel_posteriors(
        merged, signal, (AVERAGES * signal**2).sum(axis=1), np.arange(len(signal)),
        np.full(len(signal), own), acquisition, *lanes, *points, interval, BANDWIDTH, seed,
        make_work(acquisition, 8 * draws), out, kept,
    )  # fmt: skip
    return out, kept


def on_grid(
    y: np.ndarray, nu: float = 0.0, rician: bool = False, half: int = 20
) -> tuple[np.ndarray, np.ndarray, float]:
    """Mean and sd of (f, D, D*, S0), and the log-evidence of two compartments over one, by brute force."""
    axes = [MU[i] + 5.5 * np.sqrt(COV[i, i]) * np.linspace(-1, 1, 2 * half + 1) for i in range(3)]
    theta = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
    cell = np.log(np.prod([axis[1] - axis[0] for axis in axes]))
    prior = multivariate_t(MU, COV, nu) if nu else multivariate_normal(MU, COV)
    f, D, D_star = SIGNALS["biexponential"].values(*theta.T)
    curve = SIGNALS["biexponential"].curve(B, f[:, None], D[:, None], D_star[:, None])
    lnD = np.linspace(MU[1] - 1.5, MU[1] + 1.5, 801)
    lone_prior = multivariate_t(MU[1], COV[1, 1], nu) if nu else norm(MU[1], np.sqrt(COV[1, 1]))
    lone_curve = np.exp(-B * np.exp(lnD)[:, None])
    S = np.linspace(S0 - 1.0, S0 + 1.0, 161)
    noise = SIGMA / np.sqrt(AVERAGES)

    def likelihood(g: np.ndarray) -> np.ndarray:
        """Log-density (theta, S0) of the signals and S0."""
        total = np.full((len(g), len(S)), norm.logpdf(S, S0, S0_SD))
        for k in range(len(B)):
            mean = g[:, k, None] * S
            total += (
                rice.logpdf(y[k], mean / noise[k], scale=noise[k])
                if rician
                else norm.logpdf(y[k], mean, noise[k])
            )
        return total

    keep = np.flatnonzero(prior.logpdf(theta) > prior.logpdf(MU) - 18)
    parts = np.concatenate([likelihood(curve[part]) for part in np.array_split(keep, 60)])
    joint = parts + np.asarray(prior.logpdf(theta))[keep, None]
    weight = np.exp(joint - joint.max())
    weight /= weight.sum()
    by_theta, by_S = weight.sum(axis=1), weight.sum(axis=0)
    values = [(v[keep], by_theta) for v in (f, D, D_star)] + [(S, by_S)]
    mean = np.array([w @ v for v, w in values])
    sd = np.sqrt([w @ (v - m) ** 2 for (v, w), m in zip(values, mean, strict=True)])
    lone = logsumexp(likelihood(lone_curve) + np.asarray(lone_prior.logpdf(lnD))[:, None]) + np.log(
        lnD[1] - lnD[0]
    )
    return mean, sd, float(logsumexp(joint) + cell - lone)


@pytest.mark.parametrize(
    ("rician", "nu"), [(False, 0.0), pytest.param(False, 5.0, marks=pytest.mark.slow), (True, 0.0)]
)
def test_against_quadrature(rician: bool, nu: float) -> None:
    signal, _ = voxels(2, rician, seed=4)
    out, _ = run(signal, rician=rician, nu=nu, draws=2048)
    for y, row in zip(signal, out, strict=True):
        mean, sd, evidence = on_grid(y, nu, rician, half=14 if rician else 20)
        # under a Student-t population the mean of D* is infinite: nothing bounds D* from above
        known = [0, 1, 3] if nu else [0, 1, 2, 3]
        assert (np.abs(row[0:20:5] - mean)[known] < 0.03 * sd[known]).all()
        assert (np.abs(row[1:20:5] / sd - 1)[known] < 0.04).all()
        assert abs(row[kernel.EVIDENCE] - evidence) < 0.05
    wrong, _ = run(signal / 1.05, rician=rician, nu=nu, draws=2048)  # another signal is told apart
    assert np.abs(wrong[0, 15] - on_grid(signal[0], nu, rician, half=10)[0][3]) > 0.03 * sd[3]


def test_draws_are_from_the_summarised_posterior() -> None:
    signal, _ = voxels(40, False)
    out, kept = run(signal, keep=2000)
    for p in range(4):
        mean, sd = out[:, 5 * p], out[:, 5 * p + 1]
        z = (kept[:, p].mean(axis=1) - mean) / (sd / np.sqrt(2000))
        assert np.abs(z).max() < 4
        low, high = out[:, 5 * p + 3, None], out[:, 5 * p + 4, None]
        inside = ((low <= kept[:, p]) & (kept[:, p] <= high)).mean(axis=1)
        assert abs(inside.mean() - 0.95) < 0.01
        assert np.abs(inside - 0.95).max() < 0.03
    each = kept - kept.mean(axis=2, keepdims=True)
    order = [np.corrcoef(each[i, 0], each[j, 0])[0, 1] for i, j in ((0, 1), (2, 3), (4, 5))]
    assert np.abs(order).max() < 0.1  # the draws of two voxels do not go together


def accuracy(out: np.ndarray, long: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """99 % quantiles over voxels of the error of means and interval ends, in posterior sd, by parameter."""
    sd = long[:, 1:20:5]
    mean = np.abs(out[:, 0:20:5] - long[:, 0:20:5]) / sd
    ends = np.maximum(np.abs(out[:, 3:20:5] - long[:, 3:20:5]), np.abs(out[:, 4:20:5] - long[:, 4:20:5])) / sd
    return np.quantile(mean, 0.99, axis=0), np.quantile(ends, 0.99, axis=0)


@pytest.mark.parametrize("rician", [False, True])
def test_default_draws_are_as_good_as_16384(rician: bool) -> None:
    signal, _ = voxels(1000, rician, seed=9)
    draws = 1024 if rician else 512
    long, _ = run(signal, rician=rician, draws=16384, seed=5)
    mean, ends = accuracy(run(signal, rician=rician, draws=draws)[0], long)
    assert (mean < 0.1).all(), mean
    assert (ends < (0.2 if rician else 0.15)).all(), ends
    few, _ = run(signal / 1.01, rician=rician, draws=draws)  # signals of 1 % less are told apart
    assert (accuracy(few, long)[0] > 0.1).any()


def test_hard_voxels_take_the_second_pass() -> None:
    """A voxel far from its population: first-pass draws fail, those of the second do not."""
    signal, _ = voxels(1, False)
    b_far = SIGNALS["biexponential"].curve(B, 0.02, 2.6e-3, 0.2)
    population = {
        "mean": np.tile(MU, (64, 1)), "covariance": np.tile(4 * COV, (64, 1, 1)), "sigma": np.full(64, 0.01),
        "S0": np.ones(64), "S0_sd": np.full(64, 0.15),
    }  # fmt: skip
    rng = np.random.default_rng(2)
    theta = rng.multivariate_normal(MU, 4 * COV, 400)
    values = SIGNALS["biexponential"].values(*theta.T)
    curves = np.vstack([SIGNALS["biexponential"].curve(B, *(v[:, None] for v in values)), b_far[None]])
    signal = curves + 0.01 / np.sqrt(AVERAGES) * rng.standard_normal(curves.shape)
    out, _ = run(signal, population=population)
    again = out[:, kernel.PASSES] == 2
    assert 0 < again.sum() < 350
    assert (out[again, kernel.K_HAT] < 0.7).mean() > 0.95
    long, _ = run(signal[again], population=population, draws=2048, seed=7)
    error = np.abs(out[again, 0:20:5] - long[:, 0:20:5]) / long[:, 1:20:5]
    assert np.quantile(error, 0.95) < 0.15


def test_own_voxels_are_not_counted_twice() -> None:
    """Of two voxels and a population that has seen them, the posterior is that of the joint model.

    The population's mean is unknown, its prior is normal; the joint posterior is sampled by brute force.
    """
    signal, _ = voxels(2, False, seed=3)
    rng = np.random.default_rng(0)
    wide = np.diag([0.6, 0.3, 0.6]) ** 2
    size = 400_000
    mu = rng.multivariate_normal(MU, wide, size)
    theta = mu[:, None] + rng.multivariate_normal(np.zeros(3), COV, (size, 2))
    curve = SIGNALS["biexponential"].curve(
        B, *(v[..., None] for v in SIGNALS["biexponential"].values(*np.moveaxis(theta, -1, 0)))
    )
    from ivimbayes.models.noise import gaussian_logp

    one = np.ones((size, 2))
    logw = gaussian_logp(signal, curve, SIGMA * one, S0 * one, S0_SD * one, AVERAGES).sum(axis=1)
    w = np.exp(logw - logw.max())
    w /= w.sum()
    assert 1 / (w @ w) > 300
    f = 1 / (1 + np.exp(-theta[:, 0, 0]))
    joint = w @ f, np.sqrt(w @ (f - w @ f) ** 2)
    chosen = rng.choice(size, 4096, p=w)
    population = {
        "mean": mu[chosen], "covariance": np.tile(COV, (4096, 1, 1)), "sigma": np.full(4096, SIGMA),
        "S0": np.full(4096, S0), "S0_sd": np.full(4096, S0_SD),
    }  # fmt: skip
    right, _ = run(signal[:1], population=population, own=True, draws=4096)
    twice, _ = run(signal[:1], population=population, own=False, draws=4096)
    assert abs(right[0, 0] - joint[0]) < 0.15 * joint[1]
    assert abs(right[0, 1] / joint[1] - 1) < 0.12
    assert abs(twice[0, 0] - joint[0]) > 2 * abs(right[0, 0] - joint[0]) or twice[0, 1] < 0.88 * joint[1]


def test_pareto_k_is_that_of_arviz() -> None:
    import numba as nb
    from arviz_stats.base import array_stats

    @nb.njit
    def shapes(log_w, out, work):  # type: ignore[no-untyped-def]
        for i in range(len(log_w)):
            _, _, _, out[i] = finish_weights(log_w.shape[1], log_w[i], work.w, work.counting)

    rng = np.random.default_rng(1)
    log_w = np.stack([shape * rng.exponential(size=1024) for shape in (0.1, 0.3, 0.6, 0.9, 1.3)])
    found = np.empty(5)
    load(finish_weights)
    work = make_work(make_acquisition(B, AVERAGES), 1024)
    shapes(log_w, found, work)
    expected = [float(array_stats.psislw(-row)[1]) for row in log_w]  # it takes log-likelihoods
    np.testing.assert_allclose(found, expected, atol=0.01)


ARRAYS_RETURNED = """
import sys
from numba.core.dispatcher import Dispatcher
from numba.core.types import Array, BaseTuple
from ivimbayes.fitting.density import compile_density
from ivimbayes.maps.execution import compile_kernel

def has_array(of):
    return isinstance(of, Array) or isinstance(of, BaseTuple) and any(map(has_array, of))

compile_kernel("gaussian", False), compile_density("gaussian", False, images=True)
modules = [m for name, m in sys.modules.items() if name.startswith("ivimbayes.")]
found = {f for m in modules for f in vars(m).values() if isinstance(f, Dispatcher)}
for counts in (False, True):
    compiled = [f for f in found if f.overloads and f.targetoptions["_nrt"] is counts]
    arrays = [f for f in compiled if any(has_array(o.signature.return_type) for o in f.overloads.values())]
    print(len(compiled), len(arrays))
"""


@pytest.mark.slow
def test_functions_without_references_return_no_array(tmp_path: Path) -> None:
    """An array that one of them returns would be freed while it is used, or never."""
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", ARRAYS_RETURNED]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    (bare, bare_arrays), (_, arrays) = (map(int, line.split()) for line in done.stdout.splitlines())
    assert bare > 40 and bare_arrays == 0
    assert arrays > 4  # those that count references do return arrays, and are found


def test_logarithms() -> None:
    x = np.exp(np.random.default_rng(0).uniform(-700, 700, 1000))
    out = np.empty(1000)
    logarithms(x, out)
    np.testing.assert_allclose(out, np.log(x), rtol=1e-15)
    logarithms(np.array([1.0, np.nextafter(1, 2)]), out[:2])
    assert out[0] == 0
    np.testing.assert_allclose(out[1], np.spacing(1.0), rtol=1e-12)


def test_bessel_series() -> None:
    from scipy.special import i0e

    z = np.concatenate([[0], np.logspace(-6, 10, 4001)])
    u = (z - COARSE_CENTRE) / (z + COARSE_CENTRE)
    found = np.polynomial.polynomial.polyval(u, COARSE) / np.sqrt(1 + 2 * np.pi * z)
    np.testing.assert_allclose(found, i0e(z), rtol=2e-6)


@pytest.mark.slow
@pytest.mark.parametrize("tissue", ["liver", "kidney", "brain"])
def test_intervals_cover(tissue: str, capsys: pytest.CaptureFixture[str]) -> None:
    """50, 80 and 95 % intervals of 20 000 voxels cover so often, at each SNR; with a wrong sigma they do not.

    20 000 voxels put the share of a 50 % interval within 1.06 points of the truth with probability 0.9973.
    """
    from ivimbayes.models.priors import tissue_prior

    prior = tissue_prior(tissue)
    mu, cov = prior.theta_centre, np.diag(np.square([0.4, 0.2, 0.4]))
    rng = np.random.default_rng(11)
    worst = 0.0
    for snr in (10, 20, 40, 80):
        values = np.stack(
            SIGNALS["biexponential"].values(*rng.multivariate_normal(mu, cov, 20_000).T), axis=1
        )
        truth = np.column_stack([values, 1 + 0.15 * rng.standard_normal(20_000)])
        curve = truth[:, 3:] * SIGNALS["biexponential"].curve(B, *(v[:, None] for v in values.T))
        signal = curve + rng.standard_normal(curve.shape) / snr / np.sqrt(AVERAGES)
        for wrong in (1.0, 0.6):
            population = {
                "mean": np.tile(mu, (2, 1)), "covariance": np.tile(cov, (2, 1, 1)),
                "sigma": np.full(2, wrong / snr), "S0": np.ones(2), "S0_sd": np.full(2, 0.15),
            }  # fmt: skip
            misses = []
            for interval in (0.5, 0.8, 0.95):
                out, _ = run(signal, population=population, interval=interval)
                inside = (out[:, 3:20:5] <= truth) & (truth <= out[:, 4:20:5])
                misses.append(np.abs(inside.mean(axis=0) - interval))
            if wrong == 1.0:
                worst = max(worst, np.max(misses))
                assert np.max(misses) < 0.015, (snr, np.round(misses, 4))
            else:
                assert np.max(misses) > 0.03, (snr, np.round(misses, 4))
    with capsys.disabled():
        print(f"\n{tissue}: at most {100 * worst:.2f} points off", end="")
