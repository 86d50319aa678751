"""Sinus rhythm: beat times with respiratory and slow modulation. Other rhythms are not made yet."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from p2es.simulator.people import Person

# Beats are made this long before and after the recording: their waves reach into it.
LEAD_IN_S = 3.0
LEAD_OUT_S = 1.5
_MAYER_HZ = 0.1


@dataclass(frozen=True)
class Rhythm:
    """When the heart beats, and how the person breathes.

    Attributes
    ----------
    r_peaks_s : array (beat,)
        Seconds from the start of the recording; the first ones are negative and the last ones beyond its end.
    rr_s : array (beat,)
        Interval that ends at each beat.
    respiration_hz, respiration_phase : float
        Rate and phase at time 0 (radians) of breathing.
    """

    r_peaks_s: NDArray[np.float64]
    rr_s: NDArray[np.float64]
    respiration_hz: float
    respiration_phase: float

    def breath(self, time_s: NDArray[np.float64]) -> NDArray[np.float64]:
        """Give the breathing at `time_s`: 1 at full inspiration, -1 at full expiration."""
        # The slow change of rate keeps the line in the spectrum from being one single frequency.
        phase = 2 * np.pi * self.respiration_hz * time_s + self.respiration_phase
        return np.sin(phase + 0.8 * np.sin(2 * np.pi * 0.021 * time_s + self.respiration_phase))


def draw_rhythm(rng: np.random.Generator, person: Person, duration_s: float) -> Rhythm:
    """Draw sinus rhythm for a recording of `duration_s`.

    The interval is the mean, plus respiratory sinus arrhythmia, plus a Mayer wave at 0.1 Hz of the same
    depth, plus slow drift and beat noise; all in proportion to the mean interval.
    """
    mean_rr_s = 60.0 / person.heart_rate_bpm
    depth_s = 0.5 * person.rsa_s * mean_rr_s / 0.9
    empty = np.empty(0)
    air = Rhythm(empty, empty, float(rng.uniform(0.19, 0.31)), float(rng.uniform(0, 2 * np.pi)))
    mayer_phase, drift_phase = rng.uniform(0, 2 * np.pi, 2)
    count = int(1.8 * (duration_s + LEAD_IN_S + LEAD_OUT_S) / mean_rr_s) + 4
    noise_s = 0.006 * mean_rr_s * rng.standard_normal(count)
    times, intervals = [], []
    # The start is anywhere in a beat, so that windows do not share a phase.
    now = -LEAD_IN_S - float(rng.uniform(0, mean_rr_s))
    for jitter_s in noise_s:
        slow = np.sin(2 * np.pi * _MAYER_HZ * now + mayer_phase) + np.sin(2 * np.pi * 0.017 * now + drift_phase)
        # Inspiration shortens the interval.
        interval_s = mean_rr_s + depth_s * (slow - float(air.breath(np.array(now)))) + jitter_s
        now += max(interval_s, 0.35)
        if now > duration_s + LEAD_OUT_S:
            break
        times.append(now)
        intervals.append(interval_s)
    return Rhythm(np.array(times), np.array(intervals), air.respiration_hz, air.respiration_phase)
