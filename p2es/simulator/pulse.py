"""The pulse wave: three Gaussians a beat whose shape is the person's pulse age.

A systolic wave (fast rise, slower fall), a shoulder and a reflected wave that runs off slowly. The parameters at 25, 45 and 65 years were
fitted so that the ageing index of the second derivative follows Takazawa's line (-0.73, -0.41, -0.09). Beyond these
ages the shape is held; three in ten of those over 60 have lost most of the reflected wave.
"""

from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray

from p2es.simulator.people import Person, Subtype
from p2es.simulator.population import Population
from p2es.simulator.rhythm import BeatKind, Rhythm

Floats = NDArray[np.float64]

_AGES = (25.0, 45.0, 65.0)
# Seconds at RR 0.857 s; columns as in `Pulse`.
_SHAPES = np.array(
    [
        [0.122, 0.055, 0.078, 0.225, 0.320, 0.044, 0.523, 0.394, 0.094],
        [0.138, 0.057, 0.074, 0.130, 0.319, 0.036, 0.610, 0.387, 0.095],
        [0.158, 0.060, 0.065, 0.091, 0.317, 0.035, 0.696, 0.377, 0.097],
    ]
)
_RR_S = 0.857
_BEFORE_S, _AFTER_S = 0.35, 1.75
# Pressure falls until the next beat: the reflected wave falls this many times as slowly as it rises. It leaves the
# second derivative's waves a to e, which come before its top, alone.
_RUN_OFF = 1.7
# A pulse does not go on growing longer in a pause: what follows its diastole is run-off.
_LONGEST_S = 1.15
_NO_NOTCH_SHARE, _NO_NOTCH_YEARS, _NO_NOTCH = 0.3, 60.0, 0.15
# Filling: 0 at an interval of 0.25 s, nearly whole after 1 s.
_FILLING_FROM_S, _FILLING_S = 0.25, 0.25
MISSING = 0.12
"""A pulse smaller than this share of the usual one is not felt: the valve may not have opened at all."""
# What full contact pressure adds to the foot and to the rise (22 ms at the foot, 40 at the peak).
_PRESSED_FOOT_S, _PRESSED_RISE_S = 0.022, 0.009


@dataclass(frozen=True)
class Pulse:
    """One person's pulse at RR 0.857 s; times in seconds, the systolic amplitude is 1.

    Attributes
    ----------
    peak_s, rise_s, fall_s : float
        Centre and the two widths of the systolic wave.
    shoulder, shoulder_s, shoulder_width_s : float
    reflection, reflection_s, reflection_width_s : float
    breath_gain : float
        How much breathing changes the amplitude.
    """

    peak_s: float
    rise_s: float
    fall_s: float
    shoulder: float
    shoulder_s: float
    shoulder_width_s: float
    reflection: float
    reflection_s: float
    reflection_width_s: float
    breath_gain: float

    @property
    def steepest_s(self) -> float:
        """Time of the steepest rise: the inflection of the systolic Gaussian, which nothing else reaches."""
        return self.peak_s - self.rise_s

    @property
    def foot_s(self) -> float:
        """Time where the tangent at the steepest rise meets zero: one more width earlier, for a Gaussian."""
        return self.peak_s - 2 * self.rise_s

    def pressed(self, pressure: float) -> "Pulse":
        """Give the pulse under a sensor that presses, 0 to 1: a slower rise to a later peak."""
        slower_s = _PRESSED_RISE_S * pressure
        return replace(self, rise_s=self.rise_s + slower_s, peak_s=self.peak_s + 2 * slower_s)


@dataclass(frozen=True)
class PulseTrain:
    """The pulses of a recording, one a beat.

    Attributes
    ----------
    start_s : array (beat,)
        Time 0 of each pulse's waves, as they reach the skin.
    scale : array (beat,)
        The interval, bounded, that stretches its shape.
    amplitude : array (beat,)
        1 is usual; below `MISSING` there is no pulse.
    foot_s, steepest_s : array (beat,)
        Foot and steepest rise; NaN where the pulse is missing.
    """

    start_s: Floats
    scale: Floats
    amplitude: Floats
    foot_s: Floats
    steepest_s: Floats


def draw_pulse(rng: np.random.Generator, person: Person, population: Population) -> Pulse:
    """Draw a person's pulse: the shape of the pulse age, and a shape of its own."""
    shape = np.array([np.interp(person.pulse_age_years, _AGES, column) for column in _SHAPES.T])
    spread = np.array([0.02, 0.06, 0.06, 0.2, 0.02, 0.1, 0.1, 0.03, 0.08])
    shape *= np.exp(spread * rng.standard_normal(shape.size))
    shift = population.reflection_shift - (0.10 if person.subtype is Subtype.ROTATED else 0.0)
    lost = rng.random() < _NO_NOTCH_SHARE and (person.demographics.age_years or 0.0) > _NO_NOTCH_YEARS
    shape[6] = max(shape[6] + shift - _NO_NOTCH * lost, 0.1)
    values = [*map(float, shape), float(rng.uniform(0.05, 0.10))]
    return Pulse(**{field.name: value for field, value in zip(fields(Pulse), values, strict=True)})


def draw_train(
    rng: np.random.Generator, person: Person, pulse: Pulse, rhythm: Rhythm, pressure: float = 0.0
) -> PulseTrain:
    """Draw when each beat's pulse reaches the finger, and how large it is.

    The foot comes after R by pre-ejection period (beat noise 4 ms) and transit time (2 %). A short interval before a
    beat leaves the ventricle half full: `1 - exp(-(RR - 0.25) / 0.25)`, relative to the usual interval. A
    ventricular beat gives half of that at most, 20 to 60 ms late.

    Parameters
    ----------
    pulse : Pulse
        As the sensor's pressure leaves it (`Pulse.pressed`).
    pressure : float
        Of the sensor on the skin, 0 to 1; it delays the foot.
    """
    rr_s = rhythm.rr_s
    usual_s = float(np.median(rr_s)) if rr_s.size else 1.0
    scale = np.clip(rr_s, 0.6 * usual_s, min(1.25 * usual_s, _LONGEST_S))
    filling = _filling(rr_s) / _filling(np.array([usual_s]))
    wide = np.isin(rhythm.kind, (BeatKind.VENTRICULAR,))
    amplitude = np.clip(filling, 0.0, 1.4) * np.where(wide, rng.uniform(0.0, 0.5, rr_s.size), 1.0)
    amplitude *= 1 + pulse.breath_gain * rhythm.breathing.at(rhythm.r_s)
    late_s = np.where(wide, rng.uniform(0.020, 0.060, rr_s.size), 0.0)
    pep_s = person.pep_s + 0.004 * rng.standard_normal(rr_s.size) + late_s
    ptt_s = person.ptt_s * (1 + 0.02 * rng.standard_normal(rr_s.size))
    systole = _systolic_scale(scale)
    foot_s = rhythm.r_s + pep_s + ptt_s + _PRESSED_FOOT_S * pressure
    start_s = foot_s - pulse.foot_s * systole
    gone = amplitude < MISSING
    return PulseTrain(
        start_s,
        scale,
        amplitude,
        np.where(gone, np.nan, foot_s),
        np.where(gone, np.nan, start_s + pulse.steepest_s * systole),
    )


def _filling(rr_s: Floats) -> Floats:
    return 1 - np.exp(-np.maximum(rr_s - _FILLING_FROM_S, 0.0) / _FILLING_S)


def _systolic_scale(rr_s: Floats) -> Floats:
    # Systole shortens with the root of the interval, diastole in proportion.
    return np.sqrt(rr_s / _RR_S)


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
    length = int((_BEFORE_S + _AFTER_S) * fs_hz) + 2
    for chunk in range(0, train.start_s.size, 256):
        part = slice(chunk, chunk + 256)
        start_s = train.start_s[part] + delay_s
        first = np.searchsorted(time_s, start_s - _BEFORE_S)
        last = np.searchsorted(time_s, start_s + _AFTER_S)
        near = last > first
        index = first[near, None] + np.arange(length)
        from_start = time_s[np.minimum(index, time_s.size - 1)] - start_s[near, None]
        beats = _beats(pulse, from_start, train.scale[part][near]) * train.amplitude[part][near, None]
        for begin, end, beat in zip(first[near], last[near], beats, strict=True):
            stop = min(end, begin + length)
            wave[begin:stop] += beat[: stop - begin]
    return wave


def _beats(pulse: Pulse, time_s: Floats, rr_s: Floats) -> Floats:
    """Give (beat, time) pulses at times from their start."""
    systole, diastole = _systolic_scale(rr_s)[:, None], (rr_s / _RR_S)[:, None]
    from_peak = time_s - pulse.peak_s * systole
    width = np.where(from_peak < 0, pulse.rise_s, pulse.fall_s) * systole
    shoulder = (time_s - pulse.shoulder_s * diastole) / (pulse.shoulder_width_s * diastole)
    from_top = time_s - pulse.reflection_s * diastole
    reflection = from_top / (pulse.reflection_width_s * diastole * np.where(from_top < 0, 1.0, _RUN_OFF))
    return (
        np.exp(-0.5 * (from_peak / width) ** 2)
        + pulse.shoulder * np.exp(-0.5 * shoulder**2)
        + pulse.reflection * np.exp(-0.5 * reflection**2)
    )
