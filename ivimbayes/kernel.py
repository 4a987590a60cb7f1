# mypy: disallow_untyped_defs=False
"""Posterior of single voxels given draws of their population: weighted quasi-random draws, compiled.

Given the population, a voxel has a posterior of its own, of theta = (logit f, ln D, ln(D* - D)), with S0
integrated out (Gaussian noise), or of theta and S0 (Rician noise). Around its mode a Student-t with the
covariance of the mode is laid, whose draws, common to all voxels, are weighted by the posterior over the
proposal (importance sampling). Each draw has its own draw of the population, so that the population's
uncertainty enters. The draws lie on the last axis of every array; see `lanes`.
"""

import math
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.polynomial import chebyshev
from scipy.special import i0e
from scipy.stats import chi, norm, qmc
from scipy.stats import f as fisher

from ivimbayes.lanes import B_DIGITS, Array, exponentials, jit, logarithms, step_table, sum_jit

WIDTH = 256  # lanes in a block at most; numbers of draws are multiples of it
BINS, REACH, TAPS = 64, 4.8, 32  # of the density of a parameter: bins, half the range in sd, half the kernel
NU = 7.0  # of the proposal
CLASSES = 512  # of weights
AROUND = 2  # bins to each side of the shortest interval that a parabola is laid through
PROPOSALS, KERNELS, ROUNDS = 6, 64, 4  # of the second pass: at first, later, and how often
STEPS = 40
STRIDE = 2.0  # from the mode to where the width of the posterior is measured, in sd
ENOUGH, ENOUGH_K = 0.6, 0.6  # share of effective draws and Pareto k that spare a voxel the second pass
FIELDS = 5  # mean, sd, median, ends of the interval
K_HAT, EVIDENCE, EFFECTIVE, SQUARE, PASSES = range(4 * FIELDS, 4 * FIELDS + 5)
COLUMNS = 4 * FIELDS + 5
BESSEL_CENTRE = 1.5
SCRAMBLE = 89  # of 120 scramblings tried, the one whose intervals come closest to those of 16 384 draws


def _bessel_series(degree: int = 16) -> tuple[float, ...]:
    """Coefficients in u = (z - c) / (z + c) of I0(z) exp(-z) sqrt(1 + 2 pi z), to 1.5e-6 for every z >= 0."""
    u = np.cos(np.pi * (np.arange(4000) + 0.5) / 4000)
    z = BESSEL_CENTRE * (1 + u) / (1 - u)
    series = chebyshev.chebfit(u, i0e(z) * np.sqrt(1 + 2 * np.pi * z), degree)
    return tuple(float(c) for c in chebyshev.cheb2poly(series))


BESSEL = _bessel_series()


class Protocol(NamedTuple):
    """What all voxels of a scan share. M distinct b values, K measurements.

    Attributes
    ----------
    b, weight : ndarray (M,)
        Distinct b values (s/mm²), rising, and the images averaged into each.
    step : ndarray (M,)
    steps : ndarray (3, S)
        From `step_table`.
    place, averages : ndarray (K,)
        Which b value a measurement is at, and the images averaged into it.
    rician : int
        1 for Rician noise, 0 for Gaussian.
    """

    b: Array
    weight: Array
    step: Array
    steps: Array
    place: Array
    averages: Array
    rician: int


class Draws(NamedTuple):
    """Draws of a population, one a lane (N), and what they have in common.

    Attributes
    ----------
    mean : ndarray (3, N)
        Of theta.
    precision : ndarray (6, N)
        Inverse covariance (or scale) of theta: 00, 11, 22, 01, 02, 12.
    constant, shared : ndarray (N,)
        Log-density's terms that depend on no voxel: of theta given the population, and of the signals.
    typical : ndarray (10,)
        Mean over the draws of the log-density of a normal population, a polynomial of theta - centre:
        constant, gradient, and minus half the Hessian's 00, 11, 22 and minus its 01, 02, 12.
    lone_constant : ndarray (N,)
        `constant` and `shared` for one compartment.
    noise, S0, ratio : ndarray (N,)
        1 / sigma², mean of S0, and sigma² over the variance of S0.
    lone : ndarray (N,)
        Inverse variance of ln D.
    nu : float
        Degrees of freedom of a Student-t population; 0 for a normal one.
    centre : ndarray (3,)
    around : ndarray (3, 3)
        Mean and inverse covariance of theta over draws and voxels, for the search of modes.
    middle : ndarray (4,)
        Medians of ``noise``, ``S0`` and ``ratio``, and the inverse variance of ln D over draws and voxels.
    """

    mean: Array
    precision: Array
    constant: Array
    shared: Array
    typical: Array
    lone_constant: Array
    noise: Array
    S0: Array
    ratio: Array
    lone: Array
    nu: float
    centre: Array
    around: Array
    middle: Array


class Points(NamedTuple):
    """Quasi-random draws of a standard Student-t, common to all voxels.

    Attributes
    ----------
    z : ndarray (P, N)
    log_q : ndarray (N,)
        Their log-density.
    normal : ndarray (N,)
        Standard normal numbers, for S0.
    """

    z: Array
    log_q: Array
    normal: Array


class Work(NamedTuple):
    """Scratch of one thread."""

    x: Array
    value: Array
    given: Array
    log_w: Array
    w: Array
    square: Array
    log_q: Array
    exponent: Array
    power: Array
    bits: np.ndarray
    curve: Array
    slow: Array
    fast: Array
    sums: Array
    bins: Array
    long_bits: np.ndarray
    place: np.ndarray
    counts: np.ndarray
    tail: Array
    rest: Array


def make_protocol(b: Array, averages: Array, rician: bool = False) -> Protocol:
    """Sort and merge the b values of a scan, shape (K,)."""
    distinct, place = np.unique(np.asarray(b, float).round(B_DIGITS), return_inverse=True)
    averages = np.asarray(averages, float)
    step, steps = step_table(distinct)
    weight = np.bincount(place, averages)
    return Protocol(
        distinct, weight, step, np.ascontiguousarray(steps), place.astype(float), averages, int(rician)
    )


@cache
def make_points(dims: int, count: int, seed: int, nu: float = NU) -> Points:
    """Draw scrambled Sobol points and turn them to a Student-t along their radius."""
    u = np.clip(qmc.Sobol(dims + 1, seed=SCRAMBLE + seed).random(count), 1e-12, 1 - 1e-12)
    z = norm.ppf(u[:, :dims])
    radius = np.sqrt((z**2).sum(axis=1))
    # the radius of a Student-t with the same probability, of which the square over dims is F-distributed
    new = np.sqrt(dims * fisher.ppf(np.clip(chi.cdf(radius, dims), 0, 1 - 1e-13), dims, nu))
    z *= (new / radius)[:, None]
    constant = math.lgamma((nu + dims) / 2) - math.lgamma(nu / 2) - dims / 2 * math.log(nu * math.pi)
    log_q = constant - 0.5 * (nu + dims) * np.log1p((z**2).sum(axis=1) / nu)
    return Points(np.ascontiguousarray(z.T), log_q, norm.ppf(u[:, dims]))


def make_draws(
    mean: Array,
    covariance: Array,
    sigma: Array,
    S0: Array,
    S0_sd: Array,
    averages: Array,
    count: int,
    *,
    nu: float = 0.0,
    rician: bool = False,
    seed: int = 0,
) -> Draws:
    """Lay draws of a population's posterior into `count` lanes, in random order.

    Parameters
    ----------
    mean : ndarray (draw, 3)
    covariance : ndarray (draw, 3, 3)
        Of theta between voxels; the scale matrix of a Student-t population.
    sigma, S0, S0_sd : ndarray (draw,)
        Noise of one measurement; mean and standard deviation of S0.
    averages : ndarray (K,)
        Images averaged into each measurement.
    count : int
        Lanes; the draws are thinned, evenly over the spread of ln(D* - D), or repeated.
    nu : float
        Degrees of freedom of a Student-t population.
    rician : bool
    seed : int
        Of the order.
    """
    R, K = len(mean), len(averages)
    # evenly over the spread of ln(D* - D) between voxels, on which the tail of D* hangs
    even = np.argsort(covariance[:, 2, 2], kind="stable")[np.linspace(0, R - 1, count).round().astype(int)]
    chosen = np.random.default_rng([seed, count]).permutation(even if count <= R else np.arange(count) % R)
    mu, Sigma, noise = mean[chosen], covariance[chosen], sigma[chosen]
    # S0 has one population, of all draws: how bright a voxel is must not choose among draws of theta's
    tau = math.sqrt(np.mean(S0_sd**2) + np.var(S0))
    precision = np.linalg.inv(Sigma)
    heavy = nu > 0

    def normaliser(dims: int) -> float:
        if not heavy:
            return -dims / 2 * math.log(2 * math.pi)
        return math.lgamma((nu + dims) / 2) - math.lgamma(nu / 2) - dims / 2 * math.log(nu * math.pi)

    if rician:  # the S0 prior is a normal density; sum ln(n y) of the signals is left out
        shared = -2 * K * np.log(noise) + np.log(averages).sum() - math.log(tau) - 0.5 * math.log(2 * math.pi)
    else:
        shared = -(K - 1) * np.log(noise) - math.log(tau) - 0.5 * K * math.log(2 * math.pi)
        shared += 0.5 * np.log(averages).sum()
    widening = nu / (nu - 2) if heavy else 1.0
    d = mean - mean.mean(axis=0)  # without BLAS, whose sums depend on how busy its threads are
    total = widening * covariance.mean(axis=0) + np.einsum("ri,rj->ij", d, d) / R
    around = np.linalg.inv(total)
    middle = [np.median(1 / sigma**2), np.mean(S0), np.median(sigma**2) / tau**2, 1 / total[1, 1]]
    constant = normaliser(3) - 0.5 * np.linalg.slogdet(Sigma)[1]
    centre = mean.mean(axis=0)
    gradient = np.einsum("rij,rj->ri", precision, mu - centre)
    away = 0.5 * np.einsum("ri,ri->r", gradient, mu - centre)
    A = precision.mean(axis=0)
    typical = [
        np.mean(constant - away), *gradient.mean(axis=0), *(-0.5 * np.diag(A)), -A[0, 1], -A[0, 2], -A[1, 2]
    ]  # fmt: skip
    return Draws(
        np.ascontiguousarray(mu.T),
        np.stack([precision[:, i, j] for i, j in ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2))]),
        constant,
        shared,
        np.array(typical),
        shared - 0.5 * np.log(Sigma[:, 1, 1]) + normaliser(1),
        1 / noise**2, np.full(count, np.mean(S0)), noise**2 / tau**2, 1 / Sigma[:, 1, 1], float(nu),
        centre, around, np.array(middle),
    )  # fmt: skip


# ---------------------------------------------------------------- density


@jit
def _start_products(x, o, n, protocol, value, work):
    """Values f, D, D* of the draws o to o + n, and the exponentials of the steps between b values."""
    e, y, bits = work.exponent, work.power, work.bits
    steps, left, right = protocol.steps[0], protocol.steps[1], protocol.steps[2]
    for w in range(n):
        e[0, w] = -x[0, o + w]
        e[1, w] = x[1, o + w]
        e[2, w] = x[2, o + w]
    for i in range(3):
        exponentials(e[i, :n], y[i, :n], bits[0, :n])
    for w in range(n):
        value[0, o + w] = 1.0 / (1.0 + y[0, w])
        value[1, o + w] = y[1, w]
        value[2, o + w] = y[1, w] + y[2, w]
    simple = 0
    while simple < steps.size and left[simple] < 0:
        for w in range(n):
            e[2 * simple, w] = -steps[simple] * value[1, o + w]
            e[2 * simple + 1, w] = -steps[simple] * value[2, o + w]
        simple += 1
    for i in range(2 * simple):
        exponentials(e[i, :n], y[i, :n], bits[0, :n])
    for s in range(simple, steps.size):
        i, j = int(left[s]), int(right[s])
        for w in range(n):
            y[2 * s, w] = y[2 * i, w] * y[2 * j, w]
            y[2 * s + 1, w] = y[2 * i + 1, w] * y[2 * j + 1, w]


@jit
def _curve_sums(o, n, signal, protocol, value, work):
    """Sum the squared curve, and curve times signal, over b: rows 0 and 1 of ``work.sums``."""
    y, slow, fast = work.power, work.slow, work.fast
    G, gs = work.sums[0], work.sums[1]
    f = value[0, o : o + n]
    for w in range(n):
        fast[w] = f[w]
    for w in range(n):
        slow[w] = 1.0 - f[w]
    for w in range(n):
        G[w] = 0.0
    for w in range(n):
        gs[w] = 0.0
    k = 0
    while k < protocol.b.size:
        s, weight, yk = int(protocol.step[k]), protocol.weight[k], signal[k]
        if s < 0:
            for w in range(n):
                G[w] += weight
            for w in range(n):
                gs[w] += yk
            k += 1
            continue
        a, c = y[2 * s + 1], y[2 * s]
        if k + 1 == protocol.b.size:
            for w in range(n):
                g = fast[w] * a[w] + slow[w] * c[w]
                G[w] += weight * g * g
                gs[w] += yk * g
            break
        s, next_weight, next_yk = int(protocol.step[k + 1]), protocol.weight[k + 1], signal[k + 1]
        next_a, next_c = y[2 * s + 1], y[2 * s]
        for w in range(n):  # two b values at a time: half the loads and stores
            p, q = fast[w] * a[w], slow[w] * c[w]
            g = p + q
            p, q = p * next_a[w], q * next_c[w]
            h = p + q
            fast[w] = p
            slow[w] = q
            G[w] += weight * g * g + next_weight * h * h
            gs[w] += yk * g + next_yk * h
        k += 2


@jit
def _curves(o, n, protocol, value, work):
    """Curve at each b, into ``work.curve``."""
    y, slow, fast, curve = work.power, work.slow, work.fast, work.curve
    for w in range(n):
        fast[w] = value[0, o + w]
        slow[w] = 1.0 - fast[w]
    for k in range(protocol.b.size):
        s = int(protocol.step[k])
        if s >= 0:
            for w in range(n):
                fast[w] *= y[2 * s + 1, w]
                slow[w] *= y[2 * s, w]
        for w in range(n):
            curve[k, w] = fast[w] + slow[w]


@jit
def _gaussian(o, n, square, draws, given, log_w, S0_row, work):
    """Log-density of the signals, S0 integrated out; S0's mean and inverse variance ``given`` the draw."""
    G, gs, total, logs = work.sums[0], work.sums[1], work.sums[2], work.sums[3]
    m, r, precision = draws.S0[o : o + n], draws.ratio[o : o + n], draws.noise[o : o + n]
    c, p, out = S0_row[o : o + n], given[o : o + n], log_w[o : o + n]
    for w in range(n):
        total[w] = G[w] + r[w]
    logarithms(total[:n], logs[:n], work.bits[0, :n])
    for w in range(n):
        c[w] = (r[w] * m[w] + gs[w]) / total[w]
    for w in range(n):
        G[w] = r[w] * m[w] * m[w] - total[w] * c[w] * c[w]
    for w in range(n):
        p[w] = total[w] * precision[w]
    for w in range(n):
        out[w] = -0.5 * (precision[w] * (square + G[w]) + logs[w])


@jit
def _rician(o, n, x, signal, square, protocol, draws, log_w, S0_row, work, P):
    """Log-density of the signals and of S0, the last row of x."""
    total, product, root, z = work.sums[0], work.sums[1], work.sums[2], work.sums[3]
    for w in range(n):
        total[w] = 0.0
        product[w] = 1.0
        root[w] = 1.0
        S0_row[o + w] = x[P - 1, o + w]
        log_w[o + w] = 0.0
    for k in range(protocol.place.size):
        place, images = int(protocol.place[k]), protocol.averages[k]
        yk = signal[k]
        for w in range(n):
            mean = abs(S0_row[o + w]) * work.curve[place, w]
            residual = yk - mean
            total[w] += images * residual * residual
            z[w] = images * yk * mean * draws.noise[o + w]
        for w in range(n):
            u = (z[w] - BESSEL_CENTRE) / (z[w] + BESSEL_CENTRE)
            p = BESSEL[16]
            p = p * u + BESSEL[15]
            p = p * u + BESSEL[14]
            p = p * u + BESSEL[13]
            p = p * u + BESSEL[12]
            p = p * u + BESSEL[11]
            p = p * u + BESSEL[10]
            p = p * u + BESSEL[9]
            p = p * u + BESSEL[8]
            p = p * u + BESSEL[7]
            p = p * u + BESSEL[6]
            p = p * u + BESSEL[5]
            p = p * u + BESSEL[4]
            p = p * u + BESSEL[3]
            p = p * u + BESSEL[2]
            p = p * u + BESSEL[1]
            product[w] *= p * u + BESSEL[0]
            root[w] *= 1.0 + 6.283185307179586 * z[w]
        if k % 16 == 15 or k == protocol.place.size - 1:
            for w in range(n):
                product[w] = product[w] * product[w] / root[w]
                root[w] = 1.0
            logarithms(product[:n], z[:n], work.bits[0, :n])
            for w in range(n):
                log_w[o + w] += 0.5 * z[w]
                product[w] = 1.0
    for w in range(n):
        d = S0_row[o + w] - draws.S0[o + w]
        log_w[o + w] -= 0.5 * draws.noise[o + w] * (total[w] + draws.ratio[o + w] * d * d)
        if S0_row[o + w] <= 0.0:
            log_w[o + w] = -1e300


@jit
def _add_population(o, n, x, draws, log_w, work):
    """Add the log-density of theta given the population."""
    d0, d1, d2, quadratic = work.sums[0], work.sums[1], work.sums[2], work.sums[3]
    m0, m1, m2 = draws.mean[0, o : o + n], draws.mean[1, o : o + n], draws.mean[2, o : o + n]
    x0, x1, x2 = x[0, o : o + n], x[1, o : o + n], x[2, o : o + n]
    A = draws.precision
    a00, a11, a22 = A[0, o : o + n], A[1, o : o + n], A[2, o : o + n]
    a01, a02, a12 = A[3, o : o + n], A[4, o : o + n], A[5, o : o + n]
    for w in range(n):
        d0[w] = x0[w] - m0[w]
    for w in range(n):
        d1[w] = x1[w] - m1[w]
    for w in range(n):
        d2[w] = x2[w] - m2[w]
    for w in range(n):
        quadratic[w] = d0[w] * (d0[w] * a00[w] + 2.0 * (d1[w] * a01[w] + d2[w] * a02[w]))
    for w in range(n):
        quadratic[w] += d1[w] * (d1[w] * a11[w] + 2.0 * d2[w] * a12[w]) + d2[w] * d2[w] * a22[w]
    constant, shared, out = draws.constant[o : o + n], draws.shared[o : o + n], log_w[o : o + n]
    if draws.nu > 0.0:
        for w in range(n):
            quadratic[w] = 1.0 + quadratic[w] / draws.nu
        logarithms(quadratic[:n], d0[:n], work.bits[0, :n])
        for w in range(n):
            out[w] += shared[w] + constant[w] - 0.5 * (draws.nu + 3.0) * d0[w]
        return
    # a draw's log-density differs from the mean m over draws by e, whose mean is 0: exp(m) (exp(e) - e) has
    # the mean of exp(m + e), if e does not go with the draw's sigma; it is positive and free of what is
    # linear in e
    t, c0, c1, c2 = draws.typical, draws.centre[0], draws.centre[1], draws.centre[2]
    for w in range(n):
        d0[w] = x0[w] - c0
        d1[w] = x1[w] - c1
        d2[w] = x2[w] - c2
    mean, log = work.slow, work.fast
    for w in range(n):
        mean[w] = t[0] + d0[w] * (t[1] + t[4] * d0[w] + t[7] * d1[w] + t[8] * d2[w])
    for w in range(n):
        mean[w] += d1[w] * (t[2] + t[5] * d1[w] + t[9] * d2[w]) + d2[w] * (t[3] + t[6] * d2[w])
    for w in range(n):
        quadratic[w] = constant[w] - 0.5 * quadratic[w] - mean[w]
    exponentials(quadratic[:n], d0[:n], work.bits[0, :n])
    for w in range(n):
        d0[w] -= quadratic[w]
    logarithms(d0[:n], log[:n], work.bits[0, :n])
    for w in range(n):
        out[w] += shared[w] + mean[w] + (log[w] if quadratic[w] < 50.0 else quadratic[w])


@jit
def _evaluate(count, signal, square, protocol, draws, x, value, given, log_w, work):
    """Log of likelihood times population at the draws x (P, N); their values f, D, D*, S0."""
    for o in range(0, count, WIDTH):
        n = min(WIDTH, count - o)
        _start_products(x, o, n, protocol, value, work)
        if protocol.rician == 1:
            _curves(o, n, protocol, value, work)
            _rician(o, n, x, signal, square, protocol, draws, log_w, value[3], work, 4)
        else:
            _curve_sums(o, n, signal, protocol, value, work)
            _gaussian(o, n, square, draws, given, log_w, value[3], work)
        _add_population(o, n, x, draws, log_w, work)


@jit
def _evaluate_lone(n, signal, square, protocol, draws, x, value, given, log_w, work):
    """`_evaluate` for one compartment and up to `WIDTH` draws: x is (ln D,) or (ln D, S0)."""
    steps, e, y, slow = protocol.steps[0], work.exponent, work.power, work.slow
    G, gs, D, bits = work.sums[0], work.sums[1], value[1, :n], work.bits[0, :n]
    exponentials(x[0, :n], D, bits)
    for s in range(steps.size):
        for w in range(n):
            e[s, w] = -steps[s] * D[w]
        exponentials(e[s, :n], y[s, :n], bits)
    for w in range(n):
        slow[w] = 1.0
    for w in range(n):
        G[w] = 0.0
    for w in range(n):
        gs[w] = 0.0
    for k in range(protocol.b.size):
        s, weight, yk = int(protocol.step[k]), protocol.weight[k], signal[k]
        if s >= 0:
            for w in range(n):
                slow[w] *= y[s, w]
        if protocol.rician == 1:
            for w in range(n):
                work.curve[k, w] = slow[w]
        else:
            for w in range(n):
                G[w] += weight * slow[w] * slow[w]
                gs[w] += yk * slow[w]
    if protocol.rician == 1:
        _rician(0, n, x, signal, square, protocol, draws, log_w, value[3], work, 2)
    else:
        _gaussian(0, n, square, draws, given, log_w, value[3], work)
    for w in range(n):
        d = x[0, w] - draws.mean[1, w]
        e[0, w] = d * d * draws.lone[w]
    if draws.nu > 0.0:
        for w in range(n):
            e[1, w] = 1.0 + e[0, w] / draws.nu
        logarithms(e[1, :n], y[0, :n], bits)
        for w in range(n):
            e[0, w] = (draws.nu + 1.0) * y[0, w]
    for w in range(n):
        log_w[w] += draws.lone_constant[w] - 0.5 * e[0, w]


# ---------------------------------------------------------------- mode


@jit
def _gaussian_fit(theta, signal, square, protocol, draws, gradient, H):
    """Half of -2 log posterior with S0 profiled out, its gradient and Gauss-Newton Hessian; and S0."""
    noise, m, ratio = draws.middle[0], draws.middle[1], draws.middle[2]
    f, D, gap = 1.0 / (1.0 + math.exp(-theta[0])), math.exp(theta[1]), math.exp(theta[2])
    G = gs = s0 = s1 = s2 = g0 = g1 = g2 = h00 = h01 = h02 = h11 = h12 = h22 = 0.0
    for k in range(protocol.b.size):
        b, W, y = protocol.b[k], protocol.weight[k], signal[k]
        slow = math.exp(-b * D)
        fast = slow * math.exp(-b * gap)
        g = slow + f * (fast - slow)
        d0, d1, d2 = f * (1.0 - f) * (fast - slow), -b * D * g, -b * gap * f * fast
        G += W * g * g
        gs += y * g
        s0 += y * d0
        s1 += y * d1
        s2 += y * d2
        d0w, d1w, d2w = W * d0, W * d1, W * d2
        g0 += d0w * g
        g1 += d1w * g
        g2 += d2w * g
        h00 += d0w * d0
        h01 += d0w * d1
        h02 += d0w * d2
        h11 += d1w * d1
        h12 += d1w * d2
        h22 += d2w * d2
    total = G + ratio
    c = (ratio * m + gs) / total
    scale = noise * c * c
    gradient[0], gradient[1], gradient[2] = (
        -noise * c * (s0 - c * g0),
        -noise * c * (s1 - c * g1),
        -noise * c * (s2 - c * g2),
    )
    H[0, 0] = scale * (h00 - g0 * g0 / total)
    H[0, 1] = scale * (h01 - g0 * g1 / total)
    H[0, 2] = scale * (h02 - g0 * g2 / total)
    H[1, 1] = scale * (h11 - g1 * g1 / total)
    H[1, 2] = scale * (h12 - g1 * g2 / total)
    H[2, 2] = scale * (h22 - g2 * g2 / total)
    return 0.5 * noise * (square + ratio * m * m - total * c * c), c


@jit
def _rician_fit(theta, signal, protocol, draws, gradient, H):
    """`_gaussian_fit` for Rician noise, with S0 the last of theta and the curvature at least a tenth."""
    noise, m, ratio = draws.middle[0], draws.middle[1], draws.middle[2]
    f, D, gap, S0 = 1.0 / (1.0 + math.exp(-theta[0])), math.exp(theta[1]), math.exp(theta[2]), theta[3]
    value = 0.5 * noise * ratio * (S0 - m) ** 2
    for i in range(4):
        gradient[i] = 0.0
        for j in range(4):
            H[i, j] = 0.0
    gradient[3] = noise * ratio * (S0 - m)
    H[3, 3] = noise * ratio
    if S0 <= 0.0:
        return 1e300
    for k in range(protocol.place.size):
        n, y = protocol.averages[k] * noise, signal[k]
        b = protocol.b[int(protocol.place[k])]
        slow = math.exp(-b * D)
        fast = slow * math.exp(-b * gap)
        g = slow + f * (fast - slow)
        d = (S0 * f * (1.0 - f) * (fast - slow), -S0 * b * D * g, -S0 * b * gap * f * fast, g)
        mean = S0 * g
        z = n * y * mean
        u = (z - BESSEL_CENTRE) / (z + BESSEL_CENTRE)
        p, slope = BESSEL[16], 0.0
        for t in range(15, -1, -1):
            slope = slope * u + p
            p = p * u + BESSEL[t]
        # A = d ln I0 / dz, and its derivative
        A = 1.0 + slope / p * 2 * BESSEL_CENTRE / (z + BESSEL_CENTRE) ** 2
        A -= 3.141592653589793 / (1.0 + 6.283185307179586 * z)
        bend = 0.5 if z < 1e-3 else 1.0 - A / z - A * A
        value += 0.5 * n * (y - mean) ** 2 - math.log(p) + 0.5 * math.log(1.0 + 6.283185307179586 * z)
        pull = n * (mean - y * A)
        curvature = n * max(1.0 - n * y * y * bend, 0.1)
        for i in range(4):
            gradient[i] += pull * d[i]
            for j in range(i, 4):
                H[i, j] += curvature * d[i] * d[j]
    return value


@jit
def _cholesky(A, P, L):
    """Lower factor of a small symmetric matrix (upper triangle read); whether it is positive definite."""
    for j in range(P):
        for i in range(j, P):
            total = A[j, i]
            for k in range(j):
                total -= L[i, k] * L[j, k]
            if i == j:
                if not total > 0.0:
                    return False
                L[j, j] = math.sqrt(total)
            else:
                L[i, j] = total / L[j, j]
    return True


@jit
def _find_mode(theta, signal, square, protocol, draws, P, H, L):
    """Move theta to the mode (Levenberg-Marquardt); leave the Cholesky factor of the Hessian there in L.

    Returns the objective, infinite where it failed.
    """
    gradient, trial_gradient, trial_H = np.empty(4), np.empty(4), np.empty((4, 4))
    trial, damped, step = np.empty(4), np.empty((4, 4)), np.empty(4)
    damping, best, S0 = 1e-3, np.inf, 0.0
    for i in range(P):
        trial[i] = theta[i]
    for _ in range(STEPS):
        if P == 3:
            value, c = _gaussian_fit(trial, signal, square, protocol, draws, trial_gradient, trial_H)
        else:
            value, c = _rician_fit(trial, signal, protocol, draws, trial_gradient, trial_H), trial[3]
        for i in range(3):
            d = 0.0
            for j in range(3):
                d += draws.around[i, j] * (trial[j] - draws.centre[j])
            value += 0.5 * d * (trial[i] - draws.centre[i])
            trial_gradient[i] += d
            for j in range(i, 3):
                trial_H[i, j] += draws.around[i, j]
        if value <= best:
            best, S0, damping = value, c, max(0.1 * damping, 1e-9)
            for i in range(P):
                theta[i] = trial[i]
                gradient[i] = trial_gradient[i]
                for j in range(P):
                    H[i, j] = trial_H[i, j]
        else:
            damping *= 10.0
            if damping > 1e9:
                break
        for i in range(P):
            for j in range(i, P):
                damped[i, j] = H[i, j]
            damped[i, i] *= 1.0 + damping
        if not _cholesky(damped, P, L):
            damping *= 10.0
            continue
        decrement = 0.0
        for i in range(P):
            step[i] = gradient[i]
            for k in range(i):
                step[i] -= L[i, k] * step[k]
            step[i] /= L[i, i]
            decrement += step[i] * step[i]
        if decrement < 1e-4:
            break
        for i in range(P - 1, -1, -1):
            for k in range(i + 1, P):
                step[i] -= L[k, i] * step[k]
            step[i] /= L[i, i]
        for i in range(P):
            trial[i] = theta[i] - min(max(step[i], -2.0), 2.0) if i < 3 else theta[i] - step[i]
    if not (math.isfinite(best) and _cholesky(H, P, L)):
        return np.inf, S0
    return best, S0


@jit
def _lone_mode(start, signal, square, protocol, draws, P, mode, L):
    """Mode of ln D and S0 of one compartment under Gaussian noise, and the factor of the Hessian there."""
    noise, m, ratio = draws.middle[0], draws.middle[1], draws.middle[2]
    around, centre = draws.middle[3], draws.centre[1]
    y, best, damping, trial = start, np.inf, 1e-3, start
    gradient, H = 0.0, 1.0
    for _ in range(STEPS):
        D = math.exp(trial)
        G = gs = s1 = g1 = h11 = 0.0
        for k in range(protocol.b.size):
            b, W = protocol.b[k], protocol.weight[k]
            g = math.exp(-b * D)
            d = -b * D * g
            G += W * g * g
            gs += signal[k] * g
            s1 += signal[k] * d
            g1 += W * d * g
            h11 += W * d * d
        total = G + ratio
        c = (ratio * m + gs) / total
        value = 0.5 * noise * (square + ratio * m * m - total * c * c) + 0.5 * around * (trial - centre) ** 2
        if value <= best:
            best, y, damping = value, trial, max(0.1 * damping, 1e-9)
            gradient = -noise * c * (s1 - c * g1) + around * (y - centre)
            H = noise * c * c * (h11 - g1 * g1 / total) + around
            mode[0], mode[1] = y, c
            L[0, 0] = math.sqrt(H)
            if P == 2:  # of ln D and S0, in that order
                L[0, 0] = math.sqrt(noise * c * c * h11 + around)
                L[1, 0] = noise * c * g1 / L[0, 0]
                L[1, 1] = math.sqrt(noise * total - L[1, 0] ** 2)
        else:
            damping *= 10.0
            if damping > 1e9:
                break
        step = gradient / (H * (1.0 + damping))
        if gradient * step < 1e-4:
            break
        trial = y - min(max(step, -2.0), 2.0)


# ---------------------------------------------------------------- weights


@jit
def _objective(theta, merged, raw, square, protocol, draws, P, gradient, H):
    """Half of -2 log posterior, S0 profiled out (Gaussian noise) or the last of theta."""
    if P == 3:
        value, _ = _gaussian_fit(theta, merged, square, protocol, draws, gradient, H)
    else:
        value = _rician_fit(theta, raw, protocol, draws, gradient, H)
    for i in range(3):
        for j in range(3):
            value += 0.5 * draws.around[i, j] * (theta[i] - draws.centre[i]) * (theta[j] - draws.centre[j])
    return value


@jit
def _fit_stretch(mode, L, objective, merged, raw, square, protocol, draws, P, stretch):
    """How much wider than the Hessian says the posterior is, to each side along each of its axes."""
    gradient, H, axis, trial = np.empty(4), np.empty((4, 4)), np.empty(4), np.empty(4)
    for j in range(P):
        for i in range(P - 1, -1, -1):
            axis[i] = 1.0 if i == j else 0.0
            for k in range(i + 1, P):
                axis[i] -= L[k, i] * axis[k]
            axis[i] /= L[i, i]
        for side in range(2):
            for i in range(P):
                trial[i] = mode[i] + (2 * side - 1) * STRIDE * axis[i]
            rise = _objective(trial, merged, raw, square, protocol, draws, P, gradient, H) - objective
            fall = 2.0 * rise / STRIDE**2
            stretch[j, side] = 1.0 / math.sqrt(min(max(fall, 0.25), 2.0)) if math.isfinite(fall) else 1.0


@jit
def _spread(mode, L, stretch, points, P, first, count, x):
    """Draws x = mode + L⁻ᵀ u of points first to first + count, u their z stretched to each side."""
    for i in range(P - 1, -1, -1):
        inverse, centre, down, up = 1.0 / L[i, i], mode[i], stretch[i, 0], stretch[i, 1]
        z, out = points.z[i, first : first + count], x[i, first : first + count]
        for s in range(count):
            out[s] = z[s] * (up if z[s] > 0.0 else down)
        for k in range(i + 1, P):
            factor, shift, later = L[k, i], L[k, i] * mode[k], x[k, first : first + count]
            for s in range(count):
                out[s] -= factor * later[s] - shift
        for s in range(count):
            out[s] = centre + inverse * out[s]


@jit
def _log_determinant(L, P):
    total = 0.0
    for i in range(P):
        total += math.log(L[i, i])
    return total


@sum_jit
def _largest(x):
    top = x[0]
    for i in range(x.size):
        top = max(top, x[i])
    return top


@sum_jit
def _sums(x):
    """Sum, and sum of squares."""
    total = squares = 0.0
    for i in range(x.size):
        total += x[i]
        squares += x[i] * x[i]
    return total, squares


@sum_jit
def _weighted(w, x, shift):
    """Return the sums of w (x - shift) and w (x - shift)²."""
    first = second = 0.0
    for i in range(w.size):
        d = x[i] - shift
        first += w[i] * d
        second += w[i] * d * d
    return first, second


@jit
def _normalise(count, log_w, w, work):
    """Weights over their largest, whose log is returned with their sum and that of their squares."""
    top = _largest(log_w[:count])
    for o in range(0, count, WIDTH):
        n = min(WIDTH, count - o)
        lanes = work.sums[0, :n]
        for i in range(n):
            lanes[i] = log_w[o + i] - top
        exponentials(lanes, w[o : o + n], work.bits[0, :n])
    total, squares = _sums(w[:count])
    return top, total, squares


@jit
def _moments(count, w, total, x):
    """Weighted mean and variance."""
    shift = x[0]
    first, second = _weighted(w[:count], x[:count], shift)
    first /= total
    return shift + first, max(second / total - first * first, 0.0)


@jit
def _ranked(above, low, high, n, x, scratch):
    """Find the number at a rank among those from low to below high: as many as `above` are not below it."""
    m = 0
    for i in range(n):
        scratch[m] = x[i]
        m += 1 if low <= x[i] < high else 0
    if m > 32:
        return np.sort(scratch[:m])[above]
    for i in range(1, m):
        each, j = scratch[i], i
        while j > 0 and scratch[j - 1] > each:
            scratch[j] = scratch[j - 1]
            j -= 1
        scratch[j] = each
    return scratch[above]


@jit
def _pareto_k(count, w, work):
    """Shape k of a generalised Pareto distribution of the largest weights (Vehtari et al. 2024).

    The estimate of Zhang and Stephens (2009) with the weak prior of ten weights around one half. The largest
    weight is 1.
    """
    M, tail, counts, rest = (
        int(math.ceil(min(0.2 * count, 3.0 * math.sqrt(count)))),
        work.tail,
        work.counts,
        work.rest,
    )
    for c in range(CLASSES):
        counts[c] = 0
    lanes_of, place = work.sums[0], work.place
    for o in range(0, count, WIDTH):
        for i in range(WIDTH):
            lanes_of[i] = min(w[o + i] * CLASSES, CLASSES - 1.0)
        for i in range(WIDTH):
            place[i] = np.int32(lanes_of[i])
        for i in range(WIDTH):
            counts[place[i]] += 1
    # classes that hold the rank of the cutoff and of the tail's first quartile
    quarter = M + 1 - int(M / 4 + 0.5)
    c, above, q, above_q = CLASSES, 0, CLASSES, 0
    while above < M + 1:
        c -= 1
        above += counts[c]
        if above_q < quarter:
            q, above_q = c, above
    low, n = c / CLASSES, 0
    for s in range(count):
        tail[n] = w[s]
        n += 1 if w[s] >= low else 0
    top = 2.0 if c == CLASSES - 1 else (c + 1) / CLASSES
    cutoff = _ranked(above - M - 1, low, top, n, tail, rest)
    top = 2.0 if q == CLASSES - 1 else (q + 1) / CLASSES
    quartile = max(_ranked(above_q - quarter, q / CLASSES, top, n, tail, rest) - cutoff, 1e-30)
    if not 1.0 - cutoff > 1e-12:
        return -np.inf
    size, n = n, 0
    for s in range(size):
        x = tail[s] - cutoff
        tail[n] = x
        n += 1 if x > 0.0 else 0
    m = 30 + int(math.sqrt(M))
    theta, products, sums, logs = work.sums[0], work.sums[1], work.sums[2], work.sums[3]
    lanes, bits = (m + 3) // 4 * 4, work.bits[0]
    for j in range(lanes):
        theta[j] = (1.0 - math.sqrt(m / (min(j, m - 1) + 0.5))) / (3.0 * quartile) + 1.0 / (1.0 - cutoff)
    for j in range(lanes):
        sums[j] = 0.0
    for j in range(lanes):
        products[j] = 1.0
    for i in range(n):
        x = tail[i]
        for j in range(lanes):
            products[j] *= 1.0 - theta[j] * x
        if i % 8 == 7 or i == n - 1:
            logarithms(products[:lanes], logs[:lanes], bits[:lanes])
            for j in range(lanes):
                sums[j] += logs[j]
            for j in range(lanes):
                products[j] = 1.0
    for j in range(lanes):
        products[j] = -theta[j] * M / sums[j]
    logarithms(products[:lanes], logs[:lanes], bits[:lanes])
    top = -np.inf
    for j in range(lanes):
        logs[j] = M * (logs[j] - sums[j] / M - 1.0)
        top = max(top, logs[j])
    for j in range(lanes):
        logs[j] -= top
    exponentials(logs[:lanes], products[:lanes], bits[:lanes])
    weight = centre = 0.0
    for j in range(m):
        weight += products[j]
        centre += products[j] * theta[j]
    centre /= weight
    for j in range(WIDTH):
        products[j] = 1.0
    for i in range(n):
        products[i % WIDTH] *= 1.0 - centre * tail[i]
    logarithms(products, logs, bits)
    k = 0.0
    for j in range(WIDTH):
        k += logs[j]
    return (k + 5.0) / (M + 10.0)


# ---------------------------------------------------------------- densities


@jit
def _back(t, kind):
    """From the scale of the bins to the parameter: logistic, exponential or itself."""
    if kind == 0:
        return 1.0 / (1.0 + math.exp(-t))
    return math.exp(t) if kind == 1 else t


@jit
def _crossing(cumulative, target, start):
    """First bin edge, fractional, at which the cumulative density reaches `target`, from edge `start` on."""
    j = start
    while j < BINS - 1 and cumulative[j + 1] < target:
        j += 1
    gap = cumulative[j + 1] - cumulative[j]
    return j + ((target - cumulative[j]) / gap if gap > 0.0 else 0.5)


@jit
def _fill_kernel(smoothing, h2, kernel):
    """Kernel of sixth order and variance `h2`, convolved with a normal one to `smoothing`, in bins."""
    taps = min(int(4.5 * math.sqrt(smoothing)) + 1, TAPS)
    for k in range(-taps, taps + 1):
        u = k * k / smoothing
        second, fourth = (u - 1.0) / smoothing, (u * u - 6.0 * u + 3.0) / smoothing**2
        kernel[TAPS + k] = math.exp(-0.5 * u) * (1.0 - 0.5 * h2 * second + 0.125 * h2 * h2 * fourth)
    return taps


@jit
def _describe(count, w, total, t, kind, extra, bandwidth, interval, out, work):
    """Median and shortest interval of a parameter from its smoothed density, into ``out[2:5]``.

    Weighted draws ``t`` (logit, log or the value itself) are counted in bins, smoothed by a kernel of sixth
    order, and of each draw's own normal variance `extra` where it stands for a distribution.
    """
    mean, variance = _moments(count, w, total, t)
    sd = math.sqrt(variance + extra)
    if not (sd > 0.0 and math.isfinite(sd)):
        return
    low, width = mean - REACH * sd, 2.0 * REACH * sd / BINS
    counts, smooth, cumulative, values = work.bins[0], work.bins[1], work.bins[2], work.bins[3]
    for i in range(counts.size):
        counts[i] = 0.0
    inverse, place, lanes = 1.0 / width, work.place, work.sums[0]
    for o in range(0, count, WIDTH):
        for i in range(WIDTH):
            lanes[i] = min(max((t[o + i] - low) * inverse, 0.0), BINS - 1.0)
        for i in range(WIDTH):
            place[i] = np.int32(lanes[i])
        for i in range(WIDTH):
            counts[TAPS + place[i]] += w[o + i]
    if extra > 0.0:
        h2 = max((bandwidth * sd) ** 2 - extra, 0.0) / width**2
        kernel = work.bins[5]
        taps = _fill_kernel(h2 + extra / width**2, h2, kernel)
    else:  # the same for all, in bins; filled beforehand
        kernel, taps = work.bins[4], int(work.bins[6, 0])
    for i in range(BINS):
        smooth[i] = 0.0
    k = -taps
    while k <= taps - 3:
        o = TAPS + k
        k0, k1, k2, k3 = kernel[o], kernel[o + 1], kernel[o + 2], kernel[o + 3]
        for i in range(BINS):
            smooth[i] += (
                k0 * counts[i + o] + k1 * counts[i + o + 1] + k2 * counts[i + o + 2] + k3 * counts[i + o + 3]
            )
        k += 4
    while k <= taps:
        o, k0 = TAPS + k, kernel[TAPS + k]
        for i in range(BINS):
            smooth[i] += k0 * counts[i + o]
        k += 1
    cumulative[0] = 0.0
    for i in range(BINS):
        cumulative[i + 1] = cumulative[i] + max(smooth[i], 0.0)
    scale = 1.0 / cumulative[BINS]
    for i in range(BINS + 1):
        cumulative[i] *= scale
    out[2] = _back(low + width * _crossing(cumulative, 0.5, 0), kind)
    sign = -1.0 if kind == 0 else 1.0
    for i in range(BINS + 1):
        counts[i] = sign * (low + width * i)
    if kind == 2:
        for i in range(BINS + 1):
            values[i] = counts[i]
    else:
        exponentials(counts[: BINS + 1], values[: BINS + 1], work.long_bits)
    if kind == 0:
        for i in range(BINS + 1):
            values[i] = 1.0 / (1.0 + values[i])
    sizes, tried, at, j = smooth, 0, 0, 0
    for i in range(BINS):
        level = cumulative[i] + interval
        if level >= 1.0:
            break
        while j < BINS - 1 and cumulative[j + 1] < level:
            j += 1
        gap = cumulative[j + 1] - cumulative[j]
        sizes[i] = values[j] + (level - cumulative[j]) / gap * (values[j + 1] - values[j]) - values[i]
        if sizes[i] < sizes[at]:
            at = i
        tried += 1
    # the minimum of a parabola through the sizes around the smallest
    reach, shift = min(AROUND, at, tried - 1 - at), 0.0
    if reach > 0:
        slope = bend = squares = fourths = mean = 0.0
        for i in range(-reach, reach + 1):
            mean += sizes[at + i]
            slope += i * sizes[at + i]
            bend += i * i * sizes[at + i]
            squares += i * i
            fourths += i**4
        n = 2 * reach + 1
        bend = (bend - squares * mean / n) / (fourths - squares * squares / n)
        if bend > 0.0:
            shift = min(max(-0.5 * slope / squares / bend, -1.0 * reach), 1.0 * reach)
    edge = at + shift
    i = int(math.floor(edge))
    level = cumulative[i] + (edge - i) * (cumulative[i + 1] - cumulative[i])
    out[3] = _back(low + width * edge, kind)
    out[4] = _back(low + width * _crossing(cumulative, min(level + interval, 1.0), i), kind)


# ---------------------------------------------------------------- passes


@jit
def _finish_weights(count, log_w, w, work):
    """Weights, and top, sum, effective number and Pareto k of them."""
    top, total, squares = _normalise(count, log_w, w, work)
    if not (math.isfinite(top) and total > 0.0):
        return top, 0.0, 0.0, np.inf
    return top, total, total * total / squares, _pareto_k(count, w, work)


@jit
def _first_pass(count, theta, merged, raw, square, protocol, draws, points, L, H, stretch, work):
    """Weighted draws around the mode. Returns as `_finish_weights`; top is then of the evidence."""
    P = 4 if protocol.rician == 1 else 3
    for i in range(3):
        theta[i] = draws.centre[i]
    objective, theta[3] = _find_mode(theta, merged, square, protocol, draws, 3, H, L)
    if P == 4:
        objective, _ = _find_mode(theta, raw, square, protocol, draws, 4, H, L)
    if not math.isfinite(objective):
        return -np.inf, 0.0, 0.0, np.inf
    _fit_stretch(theta, L, objective, merged, raw, square, protocol, draws, P, stretch)
    _spread(theta, L, stretch, points, P, 0, count, work.x)
    signal = raw if P == 4 else merged
    _evaluate(count, signal, square, protocol, draws, work.x, work.value, work.given, work.log_w, work)
    log_q, shift = work.log_q, _log_determinant(L, P)
    for s in range(count):
        log_q[s] = points.log_q[s] + shift
    for i in range(P):
        z, down, up = points.z[i], math.log(stretch[i, 0]), math.log(stretch[i, 1])
        for s in range(count):
            log_q[s] -= up if z[s] > 0.0 else down
    for s in range(count):
        work.log_w[s] -= log_q[s]
    return _finish_weights(count, work.log_w, work.w, work)


@jit
def _population_factor(draws, P, centre, L):
    """Mean of the population and the Cholesky factor of its inverse covariance."""
    A = np.zeros((4, 4))
    for i in range(3):
        centre[i] = draws.centre[i]
        for j in range(3):
            A[i, j] = draws.around[i, j]
    if P == 4:
        centre[3] = draws.middle[1]
        A[3, 3] = draws.middle[0] * draws.middle[2]
    _cholesky(A, P, L)


@jit
def _robust_pass(merged, raw, square, protocol, draws, points, work):
    """Weighted draws from a mixture of all modes and the population, adapted while Pareto k is large."""
    P, count = 4 if protocol.rician == 1 else 3, points.log_q.size
    signal = raw if P == 4 else merged
    modes, factors = np.empty((PROPOSALS, 4)), np.zeros((PROPOSALS, 4, 4))
    ones = np.ones((4, 2))
    share, H, theta, L = np.zeros(PROPOSALS), np.empty((4, 4)), np.empty(4), np.zeros((4, 4))
    n, lowest = 0, np.inf
    for start in range(7):
        for i in range(3):
            theta[i] = draws.centre[i]
        if start > 0:
            axis = (start - 1) // 2
            theta[axis] += (2.0 if start % 2 else -2.0) / math.sqrt(draws.around[axis, axis])
        objective, theta[3] = _find_mode(theta, merged, square, protocol, draws, 3, H, L)
        if P == 4:
            objective, _ = _find_mode(theta, raw, square, protocol, draws, 4, H, L)
        if not math.isfinite(objective) or n == PROPOSALS - 2:
            continue
        known = False
        for c in range(n):
            away = 0.0
            for i in range(3):
                away = max(away, abs(theta[i] - modes[c, i]))
            known = known or away < 0.1
        if known:
            continue
        for i in range(P):
            modes[n, i] = theta[i]
            for j in range(i + 1):
                factors[n, i, j] = L[i, j] / 1.3
        share[n] = -objective - _log_determinant(L, P)
        n += 1
    for c in range(n):
        lowest = min(lowest, -share[c])
    total = 0.0
    for c in range(n):
        share[c] = max(math.exp(share[c] + lowest), 0.1)
        total += share[c]
    for c in range(n):
        share[c] *= 0.7 / total
    _population_factor(draws, P, modes[n], factors[n])
    share[n] = 0.3 if n > 0 else 1.0
    n += 1
    edge, reached = 0, 0.0
    for c in range(n):
        reached += share[c]
        next_edge = count if c == n - 1 else int(round(reached * count))
        _spread(modes[c], factors[c], ones, points, P, edge, next_edge - edge, work.x)
        edge = next_edge
    density = work.square
    for s in range(count):
        density[s] = 0.0
    for c in range(n):
        _add_students(count, modes[c], factors[c], share[c], P, work.x, density, work)
    result = _weigh(count, signal, square, protocol, draws, density, work)
    centres, factor, cov = np.empty((KERNELS, 4)), np.zeros((4, 4)), np.zeros((4, 4))
    narrow = 0.25
    for _ in range(ROUNDS):
        top, total, effective, k = result
        if not total > 0.0 or (k <= ENOUGH_K and effective > 0.25 * count):
            break
        # narrow proposals around draws of the posterior so far, their weights cut where they are few
        limit = total / math.sqrt(count)
        w = work.rest
        for s in range(count):
            w[s] = min(work.w[s], limit)
        total, _ = _sums(w[:count])
        for i in range(P):
            theta[i], _ = _moments(count, w, total, work.x[i])
        for i in range(P):
            for j in range(i + 1):
                each = 0.0
                for s in range(count):
                    each += w[s] * (work.x[i, s] - theta[i]) * (work.x[j, s] - theta[j])
                cov[i, j] = narrow * each / total
                cov[j, i] = cov[i, j]
            cov[i, i] += 1e-12
        if not _cholesky(np.linalg.inv(cov[:P, :P]), P, factor):
            break
        s, passed = 0, w[0]
        for c in range(KERNELS):
            level = (c + 0.5) / KERNELS * total
            while passed < level and s < count - 1:
                s += 1
                passed += w[s]
            for i in range(P):
                centres[c, i] = work.x[i, s]
        # a quarter of the draws stays with the first proposals, which reach as far as the posterior may
        kept = max(count // 4 // WIDTH, 1) * WIDTH
        fresh = count - kept
        edge, reached = fresh, 0.0
        for c in range(n):
            reached += share[c]
            next_edge = count if c == n - 1 else fresh + int(round(reached * kept))
            _spread(modes[c], factors[c], ones, points, P, edge, next_edge - edge, work.x)
            edge = next_edge
        for c in range(KERNELS):
            first, last = c * fresh // KERNELS, (c + 1) * fresh // KERNELS
            _spread(centres[c], factor, ones, points, P, first, last - first, work.x)
        for s in range(count):
            density[s] = 0.0
        for c in range(n):
            _add_students(count, modes[c], factors[c], share[c] * kept / count, P, work.x, density, work)
        for c in range(KERNELS):
            _add_students(count, centres[c], factor, fresh / count / KERNELS, P, work.x, density, work)
        result = _weigh(count, signal, square, protocol, draws, density, work)
        narrow *= 0.6
    return result


@jit
def _add_students(count, mode, factor, share, P, x, density, work):
    """Add a part of a mixture's density at the draws x: a Student-t, ``factor`` of its inverse covariance."""
    constant = math.lgamma((NU + P) / 2) - math.lgamma(NU / 2) - P / 2 * math.log(NU * math.pi)
    constant = share * math.exp(constant + _log_determinant(factor, P))
    quadratic, z = work.sums[0], work.sums[1]
    for o in range(0, count, WIDTH):
        for w in range(WIDTH):
            quadratic[w] = 1.0
        for i in range(P):
            for w in range(WIDTH):
                z[w] = 0.0
            for j in range(i, P):
                slope, shift, row = factor[j, i], factor[j, i] * mode[j], x[j, o : o + WIDTH]
                for w in range(WIDTH):
                    z[w] += slope * row[w] - shift
            for w in range(WIDTH):
                quadratic[w] += z[w] * z[w] * (1.0 / NU)
        out = density[o : o + WIDTH]
        for w in range(WIDTH):  # the power -(NU + P) / 2 for NU = 7
            inverse = 1.0 / quadratic[w]
            square = inverse * inverse
            quadratic[w] = square * square * inverse
            z[w] = math.sqrt(inverse)
        if P == 4:
            for w in range(WIDTH):
                quadratic[w] *= z[w]
        for w in range(WIDTH):
            out[w] += constant * quadratic[w]


@jit
def _weigh(count, signal, square, protocol, draws, density, work):
    """Evaluate the draws in ``work.x``, weight them over the density of their proposal, keep its log."""
    _evaluate(count, signal, square, protocol, draws, work.x, work.value, work.given, work.log_w, work)
    for o in range(0, count, WIDTH):
        logarithms(density[o : o + WIDTH], work.log_q[o : o + WIDTH], work.bits[0])
    for s in range(count):
        work.log_w[s] -= work.log_q[s]
    return _finish_weights(count, work.log_w, work.w, work)


@jit
def _over_draws(count, lone, x, S0, given, square, draws, few, first, matrix, work):
    """Log-density of each draw s given each population draw first + r of `few`: matrix (s, r)."""
    total, logs = work.sums[0], work.sums[1]
    A = few.precision
    for s in range(count):
        own = given[s] / draws.noise[s]
        G, gs = own - draws.ratio[s], S0[s] * own - draws.ratio[s] * draws.S0[s]
        for r in range(WIDTH):
            total[r] = G + few.ratio[first + r]
        logarithms(total, logs, work.bits[0])
        for r in range(WIDTH):
            ratio, m = few.ratio[first + r], few.S0[first + r]
            c = (ratio * m + gs) / total[r]
            matrix[s, r] = -0.5 * (
                few.noise[first + r] * (square + ratio * m * m - total[r] * c * c) + logs[r]
            )
        if lone:
            for r in range(WIDTH):
                d = x[0, s] - few.mean[1, first + r]
                total[r] = d * d * few.lone[first + r]
        else:
            for r in range(WIDTH):
                d0, d1, d2 = (
                    x[0, s] - few.mean[0, first + r],
                    x[1, s] - few.mean[1, first + r],
                    x[2, s] - few.mean[2, first + r],
                )
                q = d0 * d0 * A[0, first + r] + d1 * d1 * A[1, first + r] + d2 * d2 * A[2, first + r]
                total[r] = q + 2.0 * (
                    d0 * d1 * A[3, first + r] + d0 * d2 * A[4, first + r] + d1 * d2 * A[5, first + r]
                )
        dims = 1.0 if lone else 3.0
        if draws.nu > 0.0:
            for r in range(WIDTH):
                total[r] = 1.0 + total[r] / draws.nu
            logarithms(total, logs, work.bits[0])
            for r in range(WIDTH):
                total[r] = (draws.nu + dims) * logs[r]
        for r in range(WIDTH):
            constant = (
                few.lone_constant[first + r] if lone else few.constant[first + r] + few.shared[first + r]
            )
            matrix[s, r] += constant - 0.5 * total[r]


@jit
def _mean_weights(count, own, square, draws, few, matrix, normaliser, work):
    """Log-weights of the draws in ``work.x``, each averaged over the draws `few` of the population.

    Given the population, of which each draw has seen an ``own`` voxel, that voxel's posterior is the mean of
    the normalised conditional posteriors; ``normaliser`` is filled with the log-evidences of the first
    `WIDTH`. Other voxels take the first `WIDTH` draws only.
    """
    sets, mean, lanes, top = few.noise.size // WIDTH if own else 1, work.square, work.sums[0], 0.0
    for s in range(count):
        mean[s] = 0.0
    for n in range(sets - 1, -1, -1):  # the first last: its log-evidences stay
        _over_draws(
            count, False, work.x, work.value[3], work.given, square, draws, few, n * WIDTH, matrix, work
        )  # fmt: skip
        _log_means(count, work.log_q, matrix, normaliser, work)
        if not own:
            top = normaliser.max()
            for r in range(WIDTH):
                normaliser[r] = top
        for s in range(count):
            for r in range(WIDTH):
                lanes[r] = matrix[s, r] - normaliser[r]
            exponentials(lanes, work.sums[1], work.bits[0])
            total, _ = _sums(work.sums[1])
            mean[s] += total / (WIDTH * sets)
    for s in range(count):
        work.log_w[s] = top + math.log(max(mean[s], 1e-300))
    return _finish_weights(count, work.log_w, work.w, work)


@jit
def _log_means(count, log_q, matrix, out, work):
    """Subtract the proposal from the matrix; set ``out`` to the log of its mean exponential over draws."""
    for r in range(WIDTH):
        out[r] = -np.inf
    for s in range(count):
        for r in range(WIDTH):
            matrix[s, r] -= log_q[s]
            out[r] = max(out[r], matrix[s, r])
    lanes, each, total = work.sums[0], work.sums[1], work.sums[2]
    for r in range(WIDTH):
        total[r] = 0.0
    for s in range(count):
        for r in range(WIDTH):
            lanes[r] = matrix[s, r] - out[r]
        exponentials(lanes, each, work.bits[0])
        for r in range(WIDTH):
            total[r] += each[r]
    for r in range(WIDTH):
        out[r] += math.log(total[r] / count)


@jit
def _next_random(state):
    """Advance a generator (SplitMix64, Steele et al. 2014); returns its state and a number in [0, 1)."""
    state += np.uint64(0x9E3779B97F4A7C15)
    z = state
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z = z ^ (z >> np.uint64(31))
    return state, (z >> np.uint64(11)) * (1.0 / 9007199254740992.0)


@jit
def _least_square(x0, x1, x2, signal, square, protocol):
    """Sum of squared residuals for theta, S0 by least squares."""
    f, D, gap = 1.0 / (1.0 + math.exp(-x0)), math.exp(x1), math.exp(x2)
    G = gs = 0.0
    for k in range(protocol.b.size):
        slow = math.exp(-protocol.b[k] * D)
        g = slow + f * slow * (math.exp(-protocol.b[k] * gap) - 1.0)
        G += protocol.weight[k] * g * g
        gs += signal[k] * g
    return square - gs * gs / G


@jit
def _resample(count, w, total, value, given, normal, rician, identity, seed, kept):
    """Equally weighted draws in random order, kept (parameter, draw)."""
    state = np.uint64(seed) * np.uint64(0xD1342543DE82EF95) + np.uint64(identity)
    keep, s, reached = kept.shape[1], 0, w[0]
    order = np.arange(keep)
    for k in range(keep - 1, 0, -1):
        state, u = _next_random(state)
        j = int(u * (k + 1))
        order[k], order[j] = order[j], order[k]
    for k in range(keep):
        state, u = _next_random(state)
        level = (k + u) / keep * total
        while reached < level and s < count - 1:
            s += 1
            reached += w[s]
        for i in range(3):
            kept[i, order[k]] = value[i, s]
        kept[3, order[k]] = value[3, s] if rician == 1 else value[3, s] + normal[s] / math.sqrt(given[s])


@jit
def _at_least(matrix, rows):
    return matrix if matrix.shape[0] >= rows else np.empty((rows, WIDTH))


@jit
def voxel_posteriors(
    merged, raw, square, identity, own, protocol, draws, few, many, points, more_points, lone_points,
    interval, bandwidth, seed, out, kept,
):  # fmt: skip
    """Summarise the posterior of every voxel.

    Parameters
    ----------
    merged : ndarray (voxel, M)
        Sum over the measurements at each b of signal times averages.
    raw : ndarray (voxel, K)
        Signals; used with Rician noise only.
    square : ndarray (voxel,)
        Sum of squared signals times averages.
    identity : ndarray of int (voxel,)
        A number of the voxel's own, for the choice of its kept draws.
    own : ndarray of bool (voxel,)
        Whether the voxel was among those fitted.
    protocol : Protocol
    draws, few, many : Draws
        Of as many lanes as `points` and `more_points` have draws, and of some times `WIDTH`.
    points, more_points, lone_points : Points
        For the first pass, the robust pass and one compartment.
    interval : float
        Probability of the intervals.
    bandwidth : float
        Smoothing of a parameter's density, in its standard deviations.
    seed : int
        Of the kept draws.
    out : ndarray (voxel, COLUMNS)
        Filled: mean, sd, median, low and high of f, D, D*, S0; `K_HAT`, `EVIDENCE` (log of two compartments'
        over one's), `EFFECTIVE` draws, `SQUARE` (least squared residual over sigma²), `PASSES`.
    kept : ndarray (voxel, 4, keep)
        Filled with draws.
    """
    N, P = points.log_q.size, 4 if protocol.rician == 1 else 3
    largest, lone_count = max(N, more_points.log_q.size), lone_points.log_q.size
    M, S = protocol.b.size, protocol.steps.shape[1]
    rows = max(6, 2 * S)
    work = Work(
        np.zeros((4, largest)), np.zeros((4, largest)), np.zeros(largest), np.empty(largest),
        np.empty(largest), np.empty(largest), np.empty(largest), np.empty((rows, WIDTH)),
        np.empty((rows, WIDTH)), np.empty((rows, WIDTH), np.int64), np.empty((M, WIDTH)), np.empty(WIDTH),
        np.empty(WIDTH),
        np.empty((4, WIDTH)), np.empty((7, BINS + 2 * TAPS + 1)), np.empty(BINS + 1, np.int64),
        np.empty(WIDTH, np.int32), np.empty(CLASSES, np.int32), np.empty(largest + 1),
        np.empty(largest + 1),
    )  # fmt: skip
    theta, L, H, stretch = np.zeros(4), np.zeros((4, 4)), np.zeros((4, 4)), np.ones((4, 2))
    ones = np.ones((4, 2))
    matrix, normaliser, lone_normaliser = np.empty((0, WIDTH)), np.empty(WIDTH), np.empty(WIDTH)
    filled = 0.0
    for v in range(merged.shape[0]):
        row, signal, yy = out[v], merged[v], square[v]
        for i in range(COLUMNS):
            row[i] = np.nan
        count, passes, fitted, used = N, 1, own[v] and P == 3, draws
        top, total, effective, k = _first_pass(
            N, theta, signal, raw[v], yy, protocol, draws, points, L, H, stretch, work
        )
        if fitted and total > 0.0:
            matrix = _at_least(matrix, max(N, lone_count))
            before = k
            top, total, effective, k = _mean_weights(N, True, yy, draws, few, matrix, normaliser, work)
            k = min(k, before)  # a population draw whose posterior few draws hit is no fault of the proposal
        if not (k <= ENOUGH_K and effective >= ENOUGH * N):
            passes, count, used = 2, more_points.log_q.size, many
            top, total, effective, k = _robust_pass(signal, raw[v], yy, protocol, many, more_points, work)
            uncertain = not (k <= ENOUGH_K and effective >= 0.1 * count)  # perhaps for the population's draws
            if total > 0.0 and P == 3 and (fitted or uncertain):
                matrix, before = _at_least(matrix, count), k
                top, total, effective, k = _mean_weights(
                    count, fitted, yy, many, few, matrix, normaliser, work
                )
                k = min(k, before)
        row[K_HAT], row[EFFECTIVE], row[PASSES] = k, effective, passes
        if not total > 0.0:
            continue
        evidence = top + math.log(total / count)
        if passes == 2:
            s = np.argmax(work.log_w[:count] + work.log_q[:count])
            for i in range(3):
                theta[i] = work.x[i, s]
        row[SQUARE] = used.middle[0] * _least_square(theta[0], theta[1], theta[2], signal, yy, protocol)
        # logit f, ln D and ln D* in x; of S0 the mean given each draw
        for o in range(0, count, WIDTH):
            logarithms(work.value[2, o : o + WIDTH], work.square[o : o + WIDTH], work.bits[0])
        smoothing = bandwidth if passes == 1 else 0.6 * bandwidth
        if smoothing != filled:
            h2 = (smoothing * BINS / (2.0 * REACH)) ** 2
            work.bins[6, 0] = _fill_kernel(h2, h2, work.bins[4])
            filled = smoothing
        for i in range(4):
            mean, variance = _moments(count, work.w, total, work.value[i])
            extra = 0.0
            if i == 3 and P == 3:
                for s in range(count):
                    work.log_w[s] = 1.0 / work.given[s]
                extra, _ = _moments(count, work.w, total, work.log_w)
            cell = row[FIELDS * i : FIELDS * (i + 1)]
            cell[0], cell[1] = mean, math.sqrt(variance + extra)
            t = work.x[i] if i < 2 else work.square if i == 2 else work.value[3]
            kind = 0 if i == 0 else 1 if i < 3 else 2
            _describe(count, work.w, total, t, kind, extra, smoothing, interval, cell, work)
        if kept.shape[2] > 0:
            normal = points.normal if passes == 1 else more_points.normal
            _resample(
                count, work.w, total, work.value, work.given, normal, protocol.rician, identity[v], seed,
                kept[v],
            )  # fmt: skip
        # one compartment
        _lone_mode(draws.centre[1], signal, yy, protocol, draws, P - 2, theta, L)
        _spread(theta, L, ones, lone_points, P - 2, 0, lone_count, work.x)
        _evaluate_lone(
            lone_count, raw[v] if P == 4 else signal, yy, protocol, draws, work.x, work.value, work.given,
            work.log_w, work,
        )  # fmt: skip
        shift = _log_determinant(L, P - 2)
        for s in range(lone_count):
            work.square[s] = lone_points.log_q[s] + shift
        if fitted:
            _over_draws(
                lone_count, True, work.x, work.value[3], work.given, yy, draws, few, 0, matrix, work
            )  # fmt: skip
            _log_means(lone_count, work.square, matrix, lone_normaliser, work)
            highest = (lone_normaliser - normaliser).max()
            mean = np.exp(lone_normaliser - normaliser - highest).mean()
            row[EVIDENCE] = -(highest + math.log(mean))
        else:
            for s in range(lone_count):
                work.log_w[s] -= work.square[s]
            lone_top, lone_total, _ = _normalise(lone_count, work.log_w, work.w, work)
            row[EVIDENCE] = evidence - (lone_top + math.log(lone_total / lone_count))
