"""Noise in a band, and what happens now and then: the parts both kinds of device are made of."""

import math

import numpy as np
from numpy.typing import NDArray
from scipy import fft

Floats = NDArray[np.float64]


def band_noise(rng: np.random.Generator, n: int, fs_hz: float, low_hz: float, high_hz: float) -> Floats:
    """Draw Gaussian noise (time,) whose power is 1 if all of the band lies below half the rate.

    A rate that cannot hold the band gives the part of it that it can: a device filters before it samples.
    """
    period = fft.next_fast_len(n, real=True)
    first, last = math.ceil(low_hz * period / fs_hz), math.floor(high_hz * period / fs_hz)
    spectrum = np.zeros(period // 2 + 1, complex)
    inside = spectrum[first : last + 1]
    inside += rng.standard_normal((inside.size, 2)) @ np.array([1, 1j])
    # A line of unit real and imaginary part has the power 4 / period^2.
    return fft.irfft(spectrum, period)[:n] * (period / (2 * math.sqrt(max(last - first + 1, 1))))


def slow_noise(rng: np.random.Generator, n: int, fs_hz: float, low_hz: float, high_hz: float) -> Floats:
    """Draw Gaussian noise (time,) of about unit power in a band far below the rate.

    It is drawn on a coarse grid over at least four of its slowest periods, so that a short recording gets a
    piece of a slow wander and not one sine that closes in it. Straight lines between 16 points of the fastest
    period are within 2 % of it.
    """
    grid_hz = 16 * high_hz
    points = math.ceil(n / fs_hz * grid_hz) + 2
    coarse = band_noise(rng, max(points, math.ceil(4 * grid_hz / low_hz)), grid_hz, low_hz, high_hz)
    return np.interp(np.arange(n) * (grid_hz / fs_hz), np.arange(points), coarse[:points])


def happenings(rng: np.random.Generator, per_min: float, duration_s: float, draws: int) -> tuple[Floats, Floats]:
    """Draw when something happens that happens at random (a Poisson process), and numbers to shape it.

    Returns
    -------
    starts_s : array (event,)
        Ascending. A longer recording has the same events and then more, if `rng` is not used for anything else.
    uniform : array (event, draws)
        In [0, 1).
    """
    expected = per_min * duration_s / 60
    if expected <= 0:
        return np.empty(0), np.empty((0, draws))
    # Eight deviations more than expected: never too few.
    numbers = rng.random((math.ceil(expected + 8 * math.sqrt(expected) + 16), draws + 1))
    starts_s = np.cumsum(-np.log1p(-numbers[:, 0])) * (60 / per_min)
    inside = int(np.searchsorted(starts_s, duration_s))
    return starts_s[:inside], numbers[:inside, 1:]


def samples_between(start_s: float, stop_s: float, n: int, fs_hz: float) -> slice:
    """Give the samples with `start_s` <= time < `stop_s`."""
    # The rounding keeps 0.3 s at 10 Hz from being sample 4.
    first, last = (min(max(math.ceil(round(at_s * fs_hz, 6)), 0), n) for at_s in (start_s, stop_s))
    return slice(first, last)


def ramps(n: int, share: float) -> Floats:
    """Give a plateau (time,) of height 1 that rises and falls, as a cosine, over `share` of its length in all."""
    edge = max(round(n * share / 2), 1)
    to_end = np.minimum(np.arange(n), np.arange(n)[::-1]) + 1
    return 0.5 - 0.5 * np.cos(np.pi * np.minimum(to_end / (edge + 1), 1.0))
