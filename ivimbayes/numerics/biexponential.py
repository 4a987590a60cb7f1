# mypy: disallow_untyped_defs=False
"""The bi-exponential curve at many draws of theta, and at one; compiled."""

import math

from ivimbayes.numerics.arithmetic import exponential
from ivimbayes.numerics.jit import jit


@jit
def fill_decays(rate, protocol, decay):
    """Fill the decays over each of the steps between b values."""
    steps, left, right = protocol.steps[0], protocol.steps[1], protocol.steps[2]
    for s in range(steps.size):
        i = int(left[s])
        decay[s] = exponential(-steps[s] * rate) if i < 0 else decay[i] * decay[int(right[s])]


@jit
def curve_products(theta, signal, protocol, decay):
    """Sum of the squared curve, and of curve times signal, for theta. ``decay`` (2, S) is scratch."""
    f, D, gap = 1.0 / (1.0 + math.exp(-theta[0])), math.exp(theta[1]), math.exp(theta[2])
    fill_decays(D, protocol, decay[0])
    fill_decays(D + gap, protocol, decay[1])
    G, gs, slow, fast = 0.0, 0.0, 1.0 - f, f
    for k in range(protocol.b.size):
        s = int(protocol.step[k])
        if s >= 0:
            slow *= decay[0, s]
            fast *= decay[1, s]
        G += protocol.weight[k] * (slow + fast) ** 2
        gs += signal[k] * (slow + fast)
    return G, gs


@jit
def start_products(x, o, n, protocol, value, work):
    """Values f, D, D* of the draws o to o + n, and the exponentials of the steps between b values."""
    y, steps, left, right = work.power, protocol.steps[0], protocol.steps[1], protocol.steps[2]
    x0, x1, x2 = x[0, o : o + n], x[1, o : o + n], x[2, o : o + n]
    f, D, D_star = value[0, o : o + n], value[1, o : o + n], value[2, o : o + n]
    for w in range(n):
        f[w] = 1.0 / (1.0 + exponential(-x0[w]))
    for w in range(n):
        D[w] = exponential(x1[w])
    for w in range(n):
        D_star[w] = D[w] + exponential(x2[w])
    simple = 0
    while simple < steps.size and left[simple] < 0:
        step, slow, fast = steps[simple], y[2 * simple], y[2 * simple + 1]
        for w in range(n):
            slow[w] = exponential(-step * D[w])
        for w in range(n):
            fast[w] = exponential(-step * D_star[w])
        simple += 1
    for s in range(simple, steps.size):
        i, j = int(left[s]), int(right[s])
        for c in range(2):
            row, one, other = y[2 * s + c], y[2 * i + c], y[2 * j + c]
            for w in range(n):
                row[w] = one[w] * other[w]


@jit
def curve_sums(o, n, signal, protocol, value, work):
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
def curves_at_b(o, n, protocol, value, work):
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
