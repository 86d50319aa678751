"""The pulse wave: three Gaussians a beat whose shape is the person's pulse age.

A systolic wave (fast rise, slower fall), a shoulder and a reflected wave. The parameters at 25, 45 and 65
years were fitted so that the ageing index of the second derivative follows Takazawa's line (-0.73, -0.41,
-0.09). Beyond these ages the shape is held.
"""

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from p2es.simulator.people import Person, Population
from p2es.simulator.rhythm import Rhythm

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
_BEFORE_S, _AFTER_S = 0.35, 1.35


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


def draw_pulse(rng: np.random.Generator, person: Person, population: Population) -> Pulse:
    """Draw a person's pulse: the shape of the pulse age, and a shape of its own."""
    shape = np.array([np.interp(person.pulse_age_years, _AGES, column) for column in _SHAPES.T])
    spread = np.array([0.02, 0.06, 0.06, 0.2, 0.02, 0.1, 0.1, 0.03, 0.08])
    shape *= np.exp(spread * rng.standard_normal(shape.size))
    shape[6] = max(shape[6] + population.reflection_shift, 0.1)
    values = [*map(float, shape), float(rng.uniform(0.05, 0.10))]
    return Pulse(**{field.name: value for field, value in zip(fields(Pulse), values, strict=True)})


def pulse_times(rng: np.random.Generator, person: Person, pulse: Pulse, rhythm: Rhythm) -> NDArray[np.float64]:
    """Draw when each beat's pulse starts (beat,): R plus pre-ejection period and transit time, to the foot.

    Beat noise of 4 ms in the pre-ejection period and 2 % in the transit time.
    """
    n = rhythm.r_peaks_s.size
    pep_s = person.pep_s + 0.004 * rng.standard_normal(n)
    ptt_s = person.ptt_s * (1 + 0.02 * rng.standard_normal(n))
    return rhythm.r_peaks_s + pep_s + ptt_s - pulse.foot_s * _systolic_scale(rhythm.rr_s)


def steepest_rises(pulse: Pulse, starts_s: NDArray[np.float64], rr_s: NDArray[np.float64]) -> NDArray[np.float64]:
    """Give the time of the steepest rise of each pulse (beat,), exactly."""
    return starts_s + pulse.steepest_s * _systolic_scale(rr_s)


def _systolic_scale(rr_s: NDArray[np.float64]) -> NDArray[np.float64]:
    # Systole shortens with the root of the interval, diastole in proportion.
    return np.sqrt(rr_s / _RR_S)


def pulse_wave(
    pulse: Pulse, rhythm: Rhythm, starts_s: NDArray[np.float64], duration_s: float, fs_hz: float
) -> NDArray[np.float64]:
    """Give the noise-free pulse wave (time,), systolic amplitude about 1.

    Parameters
    ----------
    starts_s : array (beat,)
        From `pulse_times`, later by whatever the device adds.
    """
    n = round(duration_s * fs_hz)
    offsets = np.arange(-round(_BEFORE_S * fs_hz), round(_AFTER_S * fs_hz))
    first = np.round(starts_s * fs_hz).astype(np.int64)
    time_s = (first[:, None] + offsets) / fs_hz - starts_s[:, None]
    beats = _beats(pulse, time_s, rhythm.rr_s) * (1 + pulse.breath_gain * rhythm.breath(starts_s))[:, None]
    padding = offsets.size
    wave = np.zeros(n + 2 * padding)
    for start, beat in zip(first + offsets[0] + padding, beats, strict=True):
        if 0 <= start <= n + padding:
            wave[start : start + padding] += beat
    return wave[padding : padding + n]


def _beats(pulse: Pulse, time_s: NDArray[np.float64], rr_s: NDArray[np.float64]) -> NDArray[np.float64]:
    """Give (beat, time) pulses at times from their start."""
    systole, diastole = _systolic_scale(rr_s)[:, None], (rr_s / _RR_S)[:, None]
    from_peak = time_s - pulse.peak_s * systole
    width = np.where(from_peak < 0, pulse.rise_s, pulse.fall_s) * systole
    shoulder = (time_s - pulse.shoulder_s * diastole) / (pulse.shoulder_width_s * diastole)
    reflection = (time_s - pulse.reflection_s * diastole) / (pulse.reflection_width_s * diastole)
    return (
        np.exp(-0.5 * (from_peak / width) ** 2)
        + pulse.shoulder * np.exp(-0.5 * shoulder**2)
        + pulse.reflection * np.exp(-0.5 * reflection**2)
    )
