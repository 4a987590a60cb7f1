# mypy: disallow_untyped_defs=False
"""Weights of importance sampling: normalised, their moments, and Pareto k; compiled."""

import math

import numpy as np

from ivimbayes.numerics.arithmetic import exponential, logarithm
from ivimbayes.numerics.jit import Vector, jit, separate, sum_jit
from ivimbayes.voxelwise.workspace import CLASSES, WIDTH, Counting

Weights = tuple[float, float, float, float]  # log of the largest weight, sum, effective number, Pareto k


@jit
def largest(x):
    """Find the largest number."""
    a = b = c = d = x[0]
    for i in range(0, x.size - 3, 4):  # four at a time: each maximum waits for the one before
        a, b = max(a, x[i]), max(b, x[i + 1])
        c, d = max(c, x[i + 2]), max(d, x[i + 3])
    for i in range(x.size // 4 * 4, x.size):
        a = max(a, x[i])
    return max(max(a, b), max(c, d))


@sum_jit
def total_and_squares(x):
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
def normalise(count, log_w, w):
    """Weights over their largest, whose log is returned with their sum and that of their squares."""
    top = largest(log_w[:count])
    for s in range(count):
        w[s] = exponential(log_w[s] - top)
    total, squares = total_and_squares(w[:count])
    return top, total, squares


@jit
def moments(count, w, total, x):
    """Weighted mean and variance."""
    shift = x[0]
    first, second = _weighted(w[:count], x[:count], shift)
    first /= total
    return shift + first, max(second / total - first * first, 0.0)


@sum_jit
def _fourth(w, x, mean, variance):
    """Return the sum of w² ((x - mean)² - variance)²."""
    total = 0.0
    for i in range(w.size):
        d = x[i] - mean
        e = w[i] * (d * d - variance)
        total += e * e
    return total


@jit
def spread_error(count, w, total, x):
    """Relative standard error of the weighted standard deviation, were the draws independent."""
    mean, variance = moments(count, w, total, x)
    return 0.5 * math.sqrt(_fourth(w[:count], x[:count], mean, variance)) / (total * variance)


@jit
def _ranked(above, low, high, n, x, scratch):
    """Order statistic: of the first n values of x in [low, high), the one with `above` values below it."""
    m = 0
    for i in range(n):
        scratch[m] = x[i]
        m += 1 if low <= x[i] < high else 0
    first, last = 0, m - 1
    while first < last:  # Hoare's selection
        pivot, i, j = scratch[(first + last) // 2], first, last
        while i <= j:
            while scratch[i] < pivot:
                i += 1
            while pivot < scratch[j]:
                j -= 1
            if i <= j:
                scratch[i], scratch[j] = scratch[j], scratch[i]
                i += 1
                j -= 1
        if above <= j:
            last = j
        elif above >= i:
            first = i
        else:
            break
    return scratch[above]


@jit
def _count_classes(count, w, counts, lanes, place):
    """Count the weights, 1 at most, in classes of equal width."""
    for c in range(CLASSES):
        counts[c] = 0
    for o in range(0, count, WIDTH):
        each = w[o : o + WIDTH]
        for i in range(WIDTH):
            lanes[i] = min(each[i] * CLASSES, CLASSES - 1.0)
        for i in range(WIDTH):
            place[i] = np.int32(lanes[i])
        for i in range(WIDTH):
            counts[np.uint32(place[i])] += 1


@jit
def _fill_tail(count, w, M, work):
    """Fill ``work.tail`` with the excess of the largest weights over the next, of rank M + 1.

    Returns their number (M but for ties), that weight, and the first quartile of the excesses.
    """
    tail, counts, rest = work.tail, work.counts, work.rest
    _count_classes(count, w, counts, work.sums[0], work.place)
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
    size, n = n, 0
    for s in range(size):
        x = tail[s] - cutoff
        tail[n] = x
        n += 1 if x > 0.0 else 0
    return n, cutoff, quartile


@jit
def _fit_tail(n, M, cutoff, quartile, tail, scratch):
    """Mean of theta over the grid of Zhang and Stephens, by its profile likelihood of the n excesses."""
    theta, products, sums, logs = scratch[0], scratch[1], scratch[2], scratch[3]
    m = 30 + int(math.sqrt(M))
    lanes = (m + 3) // 4 * 4
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
            for j in range(lanes):
                sums[j] += logarithm(products[j])
            for j in range(lanes):
                products[j] = 1.0
    for j in range(lanes):
        logs[j] = M * (logarithm(-theta[j] * M / sums[j]) - 1.0) - sums[j]
    top = largest(logs[:lanes])
    for j in range(lanes):
        products[j] = exponential(logs[j] - top)
    weight = centre = 0.0
    for j in range(m):
        weight += products[j]
        centre += products[j] * theta[j]
    return centre / weight


@sum_jit
def _log_sum(theta, x):
    """Sum of ln(1 - theta x)."""
    total = 0.0
    for i in range(x.size):
        total += logarithm(1.0 - theta * x[i])
    return total


@jit
def _pareto_k(count, w, work):
    """Shape k of a generalised Pareto distribution of the largest weights (Vehtari et al. 2024).

    The estimate of Zhang and Stephens (2009) with the weak prior of ten weights around one half. The largest
    weight is 1.
    """
    M = int(math.ceil(min(0.2 * count, 3.0 * math.sqrt(count))))
    n, cutoff, quartile = _fill_tail(count, w, M, work)
    if not 1.0 - cutoff > 1e-12:
        return -np.inf
    theta = _fit_tail(n, M, cutoff, quartile, work.tail, work.sums)
    k = _log_sum(theta, work.tail[:n])
    return (k + 5.0) / (M + 10.0)


@separate()
def finish_weights(count: int, log_w: Vector, w: Vector, work: Counting) -> Weights:
    """Weights over their largest; the log of that, and their sum, effective number and Pareto k."""
    top, total, squares = normalise(count, log_w, w)
    if not (math.isfinite(top) and total > 0.0):
        return top, 0.0, 0.0, np.inf
    return top, total, total * total / squares, _pareto_k(count, w, work)
