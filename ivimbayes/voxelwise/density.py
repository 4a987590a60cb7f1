# mypy: disallow_untyped_defs=False
"""Log-density of a voxel's signals and of its parameters given the population, at many draws; compiled."""

from ivimbayes.models.bessel import COARSE, COARSE_CENTRE
from ivimbayes.numerics.arithmetic import exponential, logarithm, logarithms
from ivimbayes.numerics.biexponential import curve_sums, curves_at_b, start_products, values_of_draws
from ivimbayes.numerics.jit import Matrix, Vector, jit, separate
from ivimbayes.numerics.noise import S0_centre, S0_log_density
from ivimbayes.numerics.steps import Acquisition
from ivimbayes.voxelwise.draws import PopulationBlock
from ivimbayes.voxelwise.workspace import WIDTH, Work


@jit
def _gaussian(o, n, square, draws, given, log_w, S0_row, work):
    """Log-density of the signals, S0 integrated out; S0's mean and inverse variance ``given`` the draw."""
    G, gs, total = work.sums[0], work.sums[1], work.sums[2]
    m, r, precision = draws.S0[o : o + n], draws.ratio[o : o + n], draws.noise[o : o + n]
    c, p, out = S0_row[o : o + n], given[o : o + n], log_w[o : o + n]
    for w in range(n):
        total[w] = G[w] + r[w]
    for w in range(n):
        c[w] = S0_centre(gs[w], total[w], m[w], r[w])
    for w in range(n):
        p[w] = total[w] * precision[w]
    for w in range(n):
        out[w] = S0_log_density(square, total[w], c[w], m[w], r[w], precision[w])


@separate(optional=True)
def rician_draws(
    o: int,
    n: int,
    S0_row: Vector,
    signal: Vector,
    acquisition: Acquisition,
    noise: Vector,
    S0: Vector,
    ratio: Vector,
    log_w: Vector,
    curve: Matrix,
    sums: Matrix,
) -> None:
    """Log-density of the signals, from the curve, and of S0, under Rician noise; ``sums`` is scratch."""
    total, product, root, z = sums[0], sums[1], sums[2], sums[3]
    for w in range(n):
        total[w] = 0.0
        product[w] = 1.0
        root[w] = 1.0
        log_w[o + w] = 0.0
    for k in range(acquisition.place.size):
        place, images = int(acquisition.place[k]), acquisition.averages[k]
        yk = signal[k]
        for w in range(n):
            mean = abs(S0_row[o + w]) * curve[place, w]
            residual = yk - mean
            total[w] += images * residual * residual
            z[w] = images * yk * mean * noise[o + w]
        for w in range(n):
            u = (z[w] - COARSE_CENTRE) / (z[w] + COARSE_CENTRE)
            p = COARSE[16]
            p = p * u + COARSE[15]
            p = p * u + COARSE[14]
            p = p * u + COARSE[13]
            p = p * u + COARSE[12]
            p = p * u + COARSE[11]
            p = p * u + COARSE[10]
            p = p * u + COARSE[9]
            p = p * u + COARSE[8]
            p = p * u + COARSE[7]
            p = p * u + COARSE[6]
            p = p * u + COARSE[5]
            p = p * u + COARSE[4]
            p = p * u + COARSE[3]
            p = p * u + COARSE[2]
            p = p * u + COARSE[1]
            product[w] *= p * u + COARSE[0]
            root[w] *= 1.0 + 6.283185307179586 * z[w]
        if k % 16 == 15 or k == acquisition.place.size - 1:
            for w in range(n):
                product[w] = product[w] * product[w] / root[w]
                root[w] = 1.0
            logarithms(product[:n], z[:n])
            for w in range(n):
                log_w[o + w] += 0.5 * z[w]
                product[w] = 1.0
    for w in range(n):
        d = S0_row[o + w] - S0[o + w]
        log_w[o + w] -= 0.5 * noise[o + w] * (total[w] + ratio[o + w] * d * d)
        if S0_row[o + w] <= 0.0:
            log_w[o + w] = -1e300


@jit
def _add_population(o, n, x, draws, log_w, work):
    """Add the log-density of theta given a normal population."""
    d0, d1, d2, e, mean = work.sums[0], work.sums[1], work.sums[2], work.sums[3], work.slow
    x0, x1, x2 = x[0, o : o + n], x[1, o : o + n], x[2, o : o + n]
    t, A, c = draws.mean_log, draws.deviation, draws.prior.centre
    c0, c1, c2 = c[0], c[1], c[2]
    # Variance reduction. Write the log-density of a population draw as m + e, where m is the mean over all
    # draws, so that e has the mean 0. Then exp(m) (exp(e) - e) has the same expectation as exp(m + e),
    # provided that e is not correlated with the draw's sigma. The noise that is linear in e is gone, and
    # exp(e) - e >= 1 keeps the weights positive.
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


@separate(optional=True)
def add_student_population(
    o: int, n: int, x: Matrix, draws: PopulationBlock, log_w: Vector, work: Work
) -> None:
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


@separate()
def signal_density(
    count: int, signal: Vector, square: float, acquisition: Acquisition, draws: PopulationBlock, work: Work
) -> None:
    """Set ``work.log_w`` to the log-density of the signals given f, D and D* of the draws.

    Under Gaussian noise this fills S0, its mean given the draw, and its inverse variance ``work.given``.
    """
    value, log_w = work.value, work.log_w
    for o in range(0, count, WIDTH):
        n = min(WIDTH, count - o)
        start_products(o, n, acquisition, value, work)
        if draws.rician == 1:
            curves_at_b(o, n, acquisition, value, work)
            rician_draws(
                o, n, value[3], signal, acquisition, draws.noise, draws.S0, draws.ratio, log_w, work.curve,
                work.sums,
            )  # fmt: skip
        else:
            curve_sums(o, n, signal, acquisition, value, work)
            _gaussian(o, n, square, draws, work.given, log_w, value[3], work)


@separate()
def evaluate(
    count: int, signal: Vector, square: float, acquisition: Acquisition, draws: PopulationBlock, work: Work
) -> None:
    """Evaluate likelihood times population at the draws ``work.x``.

    Fills their values f, D, D* and S0 (``work.value``; under Gaussian noise S0 is its mean given the draw),
    the inverse variance of S0 (``work.given``) and the log-density (``work.log_w``). ``signal`` holds the
    sums at each distinct b under Gaussian noise, the measurements under Rician noise.
    """
    x, value, log_w = work.x, work.value, work.log_w
    for o in range(0, count, WIDTH):
        values_of_draws(x, o, min(WIDTH, count - o), value)
    if draws.rician == 1:
        for w in range(count):
            value[3, w] = x[3, w]
    signal_density(count, signal, square, acquisition, draws, work)
    for o in range(0, count, WIDTH):
        n = min(WIDTH, count - o)
        if draws.nu > 0.0:
            add_student_population(o, n, x, draws, log_w, work)
        else:
            _add_population(o, n, x, draws, log_w, work)


@separate()
def evaluate_mono(
    n: int, signal: Vector, square: float, acquisition: Acquisition, draws: PopulationBlock, work: Work
) -> None:
    """`evaluate` for one compartment and up to `WIDTH` draws: ``work.x`` is (ln D,) or (ln D, S0)."""
    x, value, log_w, quadratic = work.x, work.value, work.log_w, work.fast
    for w in range(n):
        value[0, w] = 0.0
        value[1, w] = exponential(x[0, w])
        value[2, w] = value[1, w]
    if draws.rician == 1:
        for w in range(n):
            value[3, w] = x[1, w]
    signal_density(n, signal, square, acquisition, draws, work)
    for w in range(n):
        d = x[0, w] - draws.mean[1, w]
        quadratic[w] = d * d * draws.mono[w]
    if draws.nu > 0.0:
        for w in range(n):
            quadratic[w] = (draws.nu + 1.0) * logarithm(1.0 + quadratic[w] / draws.nu)
    for w in range(n):
        log_w[w] += draws.mono_constant[w] - 0.5 * quadratic[w]
