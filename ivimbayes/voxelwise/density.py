# mypy: disallow_untyped_defs=False
"""Log-density of a voxel's signals and of its parameters given the population, at many draws; compiled."""

import numpy as np
from numpy.polynomial import chebyshev
from scipy.special import i0e

from ivimbayes.numerics.arithmetic import exponential, logarithm, logarithms
from ivimbayes.numerics.biexponential import curve_sums, curves_at_b, start_products
from ivimbayes.numerics.jit import jit
from ivimbayes.voxelwise.workspace import WIDTH

BESSEL_CENTRE = 1.5


def _bessel_series(degree: int = 16) -> tuple[float, ...]:
    """Coefficients in u = (z - c) / (z + c) of I0(z) exp(-z) sqrt(1 + 2 pi z), to 1.5e-6 for every z >= 0."""
    u = np.cos(np.pi * (np.arange(4000) + 0.5) / 4000)
    z = BESSEL_CENTRE * (1 + u) / (1 - u)
    series = chebyshev.chebfit(u, i0e(z) * np.sqrt(1 + 2 * np.pi * z), degree)
    return tuple(float(c) for c in chebyshev.cheb2poly(series))


BESSEL = _bessel_series()


@jit
def _gaussian(o, n, square, draws, given, log_w, S0_row, work):
    """Log-density of the signals, S0 integrated out; S0's mean and inverse variance ``given`` the draw."""
    G, gs, total = work.sums[0], work.sums[1], work.sums[2]
    m, r, precision = draws.S0[o : o + n], draws.ratio[o : o + n], draws.noise[o : o + n]
    c, p, out = S0_row[o : o + n], given[o : o + n], log_w[o : o + n]
    for w in range(n):
        total[w] = G[w] + r[w]
    for w in range(n):
        c[w] = (r[w] * m[w] + gs[w]) / total[w]
    for w in range(n):
        G[w] = r[w] * m[w] * m[w] - total[w] * c[w] * c[w]
    for w in range(n):
        p[w] = total[w] * precision[w]
    for w in range(n):
        out[w] = -0.5 * (precision[w] * (square + G[w]) + logarithm(total[w]))


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
            logarithms(product[:n], z[:n])
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
    """Add the log-density of theta given a normal population."""
    d0, d1, d2, e, mean = work.sums[0], work.sums[1], work.sums[2], work.sums[3], work.slow
    x0, x1, x2 = x[0, o : o + n], x[1, o : o + n], x[2, o : o + n]
    t, A, c0, c1, c2 = draws.typical, draws.apart, draws.centre[0], draws.centre[1], draws.centre[2]
    # a draw's log-density differs from the mean m over draws by e, whose mean is 0: exp(m) (exp(e) - e) has
    # the mean of exp(m + e), if e does not go with the draw's sigma; it is positive and free of what is
    # linear in e
    a0, a1, a2, a3 = A[0, o : o + n], A[1, o : o + n], A[2, o : o + n], A[3, o : o + n]
    a00, a11, a22 = A[4, o : o + n], A[5, o : o + n], A[6, o : o + n]
    a01, a02, a12 = A[7, o : o + n], A[8, o : o + n], A[9, o : o + n]
    for w in range(n):
        d0[w] = x0[w] - c0
    for w in range(n):
        d1[w] = x1[w] - c1
    for w in range(n):
        d2[w] = x2[w] - c2
    for w in range(n):
        each = t[3] + t[6] * d2[w] + t[8] * d0[w] + t[9] * d1[w]
        mean[w] = (
            t[0] + d0[w] * (t[1] + t[4] * d0[w]) + d1[w] * (t[2] + t[5] * d1[w] + t[7] * d0[w]) + d2[w] * each
        )
    for w in range(n):
        e[w] = a0[w] + d0[w] * (a1[w] + a00[w] * d0[w])
    for w in range(n):
        e[w] += d1[w] * (a2[w] + a11[w] * d1[w] + a01[w] * d0[w])
    for w in range(n):
        e[w] += d2[w] * (a3[w] + a22[w] * d2[w] + a02[w] * d0[w] + a12[w] * d1[w])
    shared, out = draws.shared[o : o + n], log_w[o : o + n]
    for w in range(n):
        log = logarithm(exponential(e[w]) - e[w])
        out[w] += shared[w] + mean[w] + (log if e[w] < 50.0 else e[w])


@jit
def _add_heavy_population(o, n, x, draws, log_w, work):
    """Add the log-density of theta given a Student-t population."""
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
    for w in range(n):
        log = logarithm(1.0 + quadratic[w] / draws.nu)
        out[w] += shared[w] + constant[w] - 0.5 * (draws.nu + 3.0) * log


@jit
def evaluate(count, signal, square, protocol, draws, x, value, given, log_w, work):
    """Log of likelihood times population at the draws x (P, N); their values f, D, D*, S0."""
    for o in range(0, count, WIDTH):
        n = min(WIDTH, count - o)
        start_products(x, o, n, protocol, value, work)
        if protocol.rician == 1:
            curves_at_b(o, n, protocol, value, work)
            _rician(o, n, x, signal, square, protocol, draws, log_w, value[3], work, 4)
        else:
            curve_sums(o, n, signal, protocol, value, work)
            _gaussian(o, n, square, draws, given, log_w, value[3], work)
        if draws.nu > 0.0:
            _add_heavy_population(o, n, x, draws, log_w, work)
        else:
            _add_population(o, n, x, draws, log_w, work)


@jit
def evaluate_lone(n, signal, square, protocol, draws, x, value, given, log_w, work):
    """`evaluate` for one compartment and up to `WIDTH` draws: x is (ln D,) or (ln D, S0)."""
    steps, y, slow = protocol.steps[0], work.power, work.slow
    G, gs, D, ln_D = work.sums[0], work.sums[1], value[1, :n], x[0, :n]
    for w in range(n):
        D[w] = exponential(ln_D[w])
    for s in range(steps.size):
        step, row = steps[s], y[s]
        for w in range(n):
            row[w] = exponential(-step * D[w])
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
    mean, lone, constant, quadratic = draws.mean[1], draws.lone, draws.lone_constant, work.fast
    for w in range(n):
        d = ln_D[w] - mean[w]
        quadratic[w] = d * d * lone[w]
    if draws.nu > 0.0:
        for w in range(n):
            quadratic[w] = (draws.nu + 1.0) * logarithm(1.0 + quadratic[w] / draws.nu)
    for w in range(n):
        log_w[w] += constant[w] - 0.5 * quadratic[w]
