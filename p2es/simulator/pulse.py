"""The pulse wave, made as the double integral of its own acceleration.

The second derivative of a PPG has five waves, a to e, whose sizes relative to a follow age (Takazawa's lines, in the
docstring of `_RATIOS`). Each is a Gaussian here, and two more (f and g) bring the pulse back to rest; the pulse is what
that sum integrates to twice. So the ageing of the pulse is built in, and crest time, notch and run-off come out of it.
Widths and places were fitted at 25, 45 and 65 years; beyond 20 and 72 years the shape is held.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline
from scipy.special import ndtr

from p2es.simulator.people import Person, Subtype
from p2es.simulator.population import Population
from p2es.simulator.rhythm import BeatKind, Rhythm

Floats = NDArray[np.float64]

_AGES = (25.0, 45.0, 65.0)
_YOUNGEST, _OLDEST = 20.0, 72.0
_RATIOS = np.array(
    [
        [1.0, -0.6197, 0.1393, -0.1091, 0.1653],
        [1.0, -0.5557, 0.0466, -0.2268, 0.1443],
        [1.0, -0.4842, -0.0537, -0.3502, 0.1218],
    ]
)
"""Weights of a to e at `_AGES`. Where they overlap the extrema come to b/a = .0045 age - .803, c/a = -.0044 age +
.1017, d/a = -.0062 age + .034 and e/a = -.001 age + .2002 (Takazawa 1998), within .01 from 20 to 72 years."""
_PLACES_S = np.array(
    [
        [0.045, 0.103, 0.154, 0.205, 0.290, 0.400, 0.660],
        [0.046, 0.107, 0.160, 0.213, 0.300, 0.405, 0.660],
        [0.047, 0.111, 0.166, 0.221, 0.310, 0.410, 0.660],
    ]
)
_WIDTHS_S = np.array(
    [
        [0.0158, 0.0311, 0.0160, 0.0260, 0.030, 0.060, 0.120],
        [0.0166, 0.0310, 0.0160, 0.0260, 0.030, 0.060, 0.120],
        [0.0178, 0.0308, 0.0160, 0.0259, 0.030, 0.060, 0.120],
    ]
)
"""Of a to g, seconds from the pulse's start at RR 0.857 s."""
_RR_S = 0.857
_BEFORE_S, _AFTER_S = 0.10, 1.40
_GRID_S = 0.004
# A pulse does not go on growing longer in a pause: what follows its diastole is rest.
_LONGEST_S = 1.5
# Filling: 0 at an interval of 0.25 s, nearly whole after 1 s.
_FILLING_FROM_S, _FILLING_S = 0.25, 0.25
MISSING = 0.12
"""A pulse smaller than this share of the usual one is not felt: the valve may not have opened at all."""
# What full contact pressure adds to the foot and to the time to the peak (22 ms at the foot, 40 at the peak).
_PRESSED_FOOT_S, _PRESSED_PEAK_S = 0.022, 0.018
_PEAK_S = 0.16


@dataclass(frozen=True)
class Pulse:
    """One person's pulse at RR 0.857 s, from rest to rest, its largest value 1.

    Attributes
    ----------
    weight, place_s, width_s : array (7,)
        The Gaussians of its acceleration.
    breath_gain : float
        How much breathing changes the amplitude.
    """

    weight: Floats
    place_s: Floats
    width_s: Floats
    breath_gain: float

    @cached_property
    def shape(self) -> CubicSpline:
        """The pulse over time in seconds from its start."""
        time_s = np.arange(-_BEFORE_S, _AFTER_S, _GRID_S)
        z = (time_s[:, None] - self.place_s) / self.width_s
        # A Gaussian's second integral is z Phi(z) + phi(z), in its width squared.
        ramps = z * ndtr(z) + np.exp(-0.5 * z * z) / np.sqrt(2 * np.pi)
        wave = ramps @ (self.weight * self.width_s**2)
        return CubicSpline(time_s, wave / wave.max())

    @cached_property
    def steepest_s(self) -> float:
        """Time of the steepest rise: where the acceleration changes sign between a and b."""
        time_s = np.arange(self.place_s[0], self.place_s[1], 0.0005)
        return float(time_s[int(self.shape(time_s, 1).argmax())])

    @cached_property
    def foot_s(self) -> float:
        """Time where the tangent at the steepest rise meets zero."""
        return self.steepest_s - float(self.shape(self.steepest_s)) / float(self.shape(self.steepest_s, 1))

    def pressed(self, pressure: float) -> "Pulse":
        """Give the pulse under a sensor that presses more (positive) or less: slower to its peak, or faster."""
        slower = 1 + _PRESSED_PEAK_S / _PEAK_S * pressure
        return Pulse(self.weight, self.place_s * slower, self.width_s * slower, self.breath_gain)


@dataclass(frozen=True)
class PulseTrain:
    """The pulses of a recording, one a beat.

    Attributes
    ----------
    start_s : array (beat,)
        Time 0 of each pulse, as it reaches the skin.
    scale : array (beat,)
        What stretches its shape.
    amplitude : array (beat,)
        1 is usual; 0 where there is no pulse, since it would be below `MISSING`.
    foot_s, steepest_s : array (beat,)
        Foot and steepest rise; NaN where the pulse is missing.
    """

    start_s: Floats
    scale: Floats
    amplitude: Floats
    foot_s: Floats
    steepest_s: Floats


def closed(weight: Floats, place_s: Floats, width_s: Floats) -> Floats:
    """Add to the weights (5,) of a to e those of f and g, (7,), with which the pulse ends at rest where it began."""
    area, moment = width_s, width_s * place_s
    open_ = np.array([weight @ area[:5], weight @ moment[:5]])
    return np.concatenate([weight, np.linalg.solve(np.stack([area[5:], moment[5:]]), -open_)])


def draw_pulse(rng: np.random.Generator, person: Person, population: Population) -> Pulse:
    """Draw a person's pulse: the shape of the pulse age, and a shape of its own."""
    age = float(np.clip(person.pulse_age_years, _YOUNGEST, _OLDEST))
    ratios, places, widths = (_at_age(age, table) for table in (_RATIOS, _PLACES_S, _WIDTHS_S))
    speed, level = _after_e(ratios, places, widths)
    normal = rng.standard_normal
    ratios[1:] += np.array([0.02, 0.03, 0.03, 0.02]) * normal(4)
    # Less of a reflected wave leaves less of a pulse after its notch.
    less = population.reflection_shift - (0.15 if person.subtype is Subtype.ROTATED else 0.0)
    wanted = speed * np.exp(0.12 * normal()), level * np.exp(0.06 * normal() + less)
    widths[[0, 2, 3, 4]] *= np.exp(0.02 * normal(4))
    widths[1], places[1] = _fitted_b(ratios, places, widths, *wanted)
    pace = np.exp(0.03 * normal())
    places, widths = places * pace, widths * pace
    return Pulse(closed(ratios, places, widths), places, widths, float(rng.uniform(0.05, 0.10)))


def _after_e(weight: Floats, place_s: Floats, width_s: Floats) -> tuple[float, float]:
    """Give how fast the pulse moves after wave e, and where the line it then follows stands at e."""
    area = weight * width_s[:5]
    return float(area.sum()), float(area @ (place_s[4] - place_s[:5]))


def _fitted_b(weight: Floats, place_s: Floats, width_s: Floats, speed: float, level: float) -> tuple[float, float]:
    """Give width and place of b with which the pulse comes out of e at a speed and a level.

    Both follow from all five waves, so shapes of waves drawn each on its own would leave pulses that fall below rest.
    """
    others = np.array([0, 2, 3, 4])
    area = weight[others] * width_s[others]
    rest = float(area.sum()), float(area @ (place_s[4] - place_s[others]))
    area_b = speed - rest[0]
    return area_b / float(weight[1]), float(place_s[4] - (level - rest[1]) / area_b)


def _at_age(age: float, table: Floats) -> Floats:
    """Give the row of a table at an age, on the lines through its rows."""
    low = 0 if age < _AGES[1] else 1
    share = (age - _AGES[low]) / (_AGES[low + 1] - _AGES[low])
    return table[low] + share * (table[low + 1] - table[low])


def draw_train(
    rng: np.random.Generator, person: Person, pulse: Pulse, rhythm: Rhythm, pressure: float = 0.0
) -> PulseTrain:
    """Draw when each beat's pulse reaches the skin, and how large it is.

    The foot comes after R by pre-ejection period (beat noise 4 ms) and transit time (2 %). A short interval before a
    beat leaves the ventricle half full: `1 - exp(-(RR - 0.25) / 0.25)`, relative to the usual interval. A premature
    ventricular beat gives half of that at most, 20 to 60 ms late.

    Parameters
    ----------
    pulse : Pulse
        As the sensor's pressure leaves it (`Pulse.pressed`).
    pressure : float
        Of the sensor on the skin beyond the usual; it delays the foot.
    """
    rr_s = rhythm.rr_s
    usual_s = float(np.median(rr_s)) if rr_s.size else 1.0
    # Ejection, and with it the pulse, lengthens with the root of the interval.
    scale = np.sqrt(np.clip(rr_s, 0.6 * usual_s, min(1.25 * usual_s, _LONGEST_S)) / _RR_S)
    filling = _filling(rr_s) / _filling(np.array([usual_s]))
    wide = rhythm.kind == BeatKind.VENTRICULAR
    size, late, ejection, transit = rng.spawn(4)
    amplitude = np.clip(filling, 0.0, 1.4) * np.where(wide, size.uniform(0.0, 0.5, rr_s.size), 1.0)
    amplitude *= 1 + pulse.breath_gain * rhythm.breathing.at(rhythm.r_s)
    late_s = np.where(wide, late.uniform(0.020, 0.060, rr_s.size), 0.0)
    pep_s = person.pep_s + 0.004 * ejection.standard_normal(rr_s.size) + late_s
    ptt_s = person.ptt_s * (1 + 0.02 * transit.standard_normal(rr_s.size))
    foot_s = rhythm.r_s + pep_s + ptt_s + _PRESSED_FOOT_S * pressure
    start_s = foot_s - pulse.foot_s * scale
    gone = amplitude < MISSING
    return PulseTrain(
        start_s,
        scale,
        np.where(gone, 0.0, amplitude),
        np.where(gone, np.nan, foot_s),
        np.where(gone, np.nan, start_s + pulse.steepest_s * scale),
    )


def _filling(rr_s: Floats) -> Floats:
    return 1 - np.exp(-np.maximum(rr_s - _FILLING_FROM_S, 0.0) / _FILLING_S)


def pulse_wave(pulse: Pulse, train: PulseTrain, time_s: Floats, delay_s: float = 0.0) -> Floats:
    """Give the noise-free pulse wave (time,), systolic amplitude about 1.

    Parameters
    ----------
    train : PulseTrain
    time_s : array (time,)
        True times of the samples, ascending, nearly even.
    delay_s : float
        What the sensor adds.
    """
    wave = np.zeros(time_s.size)
    if time_s.size < 2:
        return wave
    fs_hz = (time_s.size - 1) / (time_s[-1] - time_s[0])
    last_s = _AFTER_S - 2 * _GRID_S
    for chunk in range(0, train.start_s.size, 256):
        part = slice(chunk, chunk + 256)
        start_s, scale = train.start_s[part] + delay_s, train.scale[part]
        first = np.searchsorted(time_s, start_s - _BEFORE_S * scale)
        stop = np.searchsorted(time_s, start_s + last_s * scale)
        near = stop > first
        if not near.any():
            continue
        length = int((_BEFORE_S + last_s) * scale[near].max() * fs_hz) + 2
        index = np.minimum(first[near, None] + np.arange(length), time_s.size - 1)
        from_start = (time_s[index] - start_s[near, None]) / scale[near, None]
        beats = pulse.shape(np.clip(from_start, -_BEFORE_S, last_s)) * train.amplitude[part][near, None]
        for begin, end, beat in zip(first[near], stop[near], beats, strict=True):
            wave[begin : min(end, begin + length)] += beat[: end - begin]
    return wave
