# mypy: disallow_untyped_defs=False
"""What is said of a parameter from its weighted draws: median, shortest interval, draws to keep; compiled."""

import math

import numpy as np

from ivimbayes.numerics.arithmetic import exponentials, scalar_logistic
from ivimbayes.numerics.jit import Matrix, Vector, jit, separate
from ivimbayes.voxelwise.weights import moments
from ivimbayes.voxelwise.workspace import BINS, TAPS, WIDTH, Counting

BANDWIDTH, FINER = 0.6, 0.6  # smoothing of a density, in its sd; of one from more draws, over that
REACH = 4.8  # half the range of the bins, in sd
AROUND = 2  # bins to each side of the shortest interval that a parabola is laid through


@jit
def _back(t, kind):
    """From the scale of the bins to the parameter: logistic, exponential or itself."""
    if kind == 0:
        return scalar_logistic(t)
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
    for k in range(TAPS + taps + 1, TAPS + taps + 4):
        kernel[k] = 0.0
    return taps


@jit
def _shared_kernel(bandwidth, bins):
    """Kernel for a bandwidth in sd, in bins the same for all parameters: fill row 4 where it is another's."""
    if bandwidth != bins[6, 1]:
        h2 = (bandwidth * BINS / (2.0 * REACH)) ** 2
        bins[6, 0] = _fill_kernel(h2, h2, bins[4])
        bins[6, 1] = bandwidth
    return int(bins[6, 0])


@jit
def _count_bins(count, w, t, low, width, counts, lanes, place):
    """Sum the weights in bins from `low` on, `TAPS` further on in ``counts``."""
    inverse, first = 1.0 / width, counts[TAPS:]
    for i in range(counts.size):
        counts[i] = 0.0
    for o in range(0, count, WIDTH):
        each, weight = t[o : o + WIDTH], w[o : o + WIDTH]
        for i in range(WIDTH):
            lanes[i] = min(max((each[i] - low) * inverse, 0.0), BINS - 1.0)
        for i in range(WIDTH):
            place[i] = np.int32(lanes[i])
        for i in range(WIDTH):
            first[np.uint32(place[i])] += weight[i]


@jit
def _accumulate(kernel, taps, counts, smooth, cumulative):
    """Smooth the bins by a kernel; fill the cumulative density at their edges."""
    size = counts.size - 2 * TAPS - 4  # BINS, but not known to the compiler, which would unroll
    for i in range(size):
        smooth[i] = 0.0
    k = -taps
    while k <= taps:
        o = TAPS + k  # four taps at a time, those beyond the last are 0
        k0, k1, k2, k3 = kernel[o], kernel[o + 1], kernel[o + 2], kernel[o + 3]
        a, b, c, d = counts[o : o + size], counts[o + 1 :], counts[o + 2 :], counts[o + 3 :]
        for i in range(size):
            smooth[i] += k0 * a[i] + k1 * b[i] + k2 * c[i] + k3 * d[i]
        k += 4
    cumulative[0] = 0.0
    for i in range(BINS):
        cumulative[i + 1] = cumulative[i] + max(smooth[i], 0.0)
    scale = 1.0 / cumulative[BINS]
    for i in range(BINS + 1):
        cumulative[i] *= scale


@jit
def _fill_edges(low, width, kind, edges, values):
    """Fill the parameter's value at the edges of the bins."""
    sign = -1.0 if kind == 0 else 1.0
    for i in range(BINS + 1):
        edges[i] = sign * (low + width * i)
    if kind == 2:
        for i in range(BINS + 1):
            values[i] = edges[i]
    else:
        exponentials(edges[: BINS + 1], values[: BINS + 1])
    if kind == 0:
        for i in range(BINS + 1):
            values[i] = 1.0 / (1.0 + values[i])


@jit
def _shortest(interval, cumulative, values, sizes):
    """Edge, fractional, at which the shortest interval of a probability begins."""
    tried, at, j = 0, 0, 0
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
    return at + shift


@separate()
def describe(
    count: int,
    w: Vector,
    total: float,
    t: Vector,
    kind: int,
    extra: float,
    bandwidth: float,
    interval: float,
    out: Vector,
    work: Counting,
) -> None:
    """Median and shortest interval of a parameter from its smoothed density, into ``out[2:5]``.

    Weighted draws ``t`` (logit, log or the value itself) are counted in bins, smoothed by a kernel of sixth
    order, and of each draw's own normal variance `extra` where it stands for a distribution.
    """
    mean, variance = moments(count, w, total, t)
    sd = math.sqrt(variance + extra)
    if not (sd > 0.0 and math.isfinite(sd)):
        return
    low, width = mean - REACH * sd, 2.0 * REACH * sd / BINS
    counts, smooth, cumulative, values = work.bins[0], work.bins[1], work.bins[2], work.bins[3]
    _count_bins(count, w, t, low, width, counts, work.sums[0], work.place)
    if extra > 0.0:
        h2, kernel = max((bandwidth * sd) ** 2 - extra, 0.0) / width**2, work.bins[5]
        taps = _fill_kernel(h2 + extra / width**2, h2, kernel)
    else:
        kernel, taps = work.bins[4], _shared_kernel(bandwidth, work.bins)
    _accumulate(kernel, taps, counts, smooth, cumulative)
    out[2] = _back(low + width * _crossing(cumulative, 0.5, 0), kind)
    _fill_edges(low, width, kind, counts, values)
    edge = _shortest(interval, cumulative, values, smooth)
    i = int(math.floor(edge))
    level = cumulative[i] + (edge - i) * (cumulative[i + 1] - cumulative[i])
    out[3] = _back(low + width * edge, kind)
    out[4] = _back(low + width * _crossing(cumulative, min(level + interval, 1.0), i), kind)


@jit
def _next_random(state):
    """Advance a generator (SplitMix64, Steele et al. 2014); returns its state and a number in [0, 1)."""
    state += np.uint64(0x9E3779B97F4A7C15)
    z = state
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z = z ^ (z >> np.uint64(31))
    return state, (z >> np.uint64(11)) * (1.0 / 9007199254740992.0)


@separate(allocates=True)
def resample(
    count: int,
    w: Vector,
    total: float,
    value: Matrix,
    given: Vector,
    normal: Vector,
    rician: bool,
    identity: int,
    seed: int,
    kept: Matrix,
) -> None:
    """Fill in equally weighted draws in random order, kept (parameter, draw)."""
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
        kept[3, order[k]] = value[3, s] if rician else value[3, s] + normal[s] / math.sqrt(given[s])
