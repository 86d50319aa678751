"""When the heart beats: the sinus node, and what conduction and other pacemakers make of it.

The sinus node is an integral pulse frequency modulator: its rate follows breathing (respiratory sinus arrhythmia, by
age), a Mayer wave (lines about 0.1 Hz) and a slow 1/f drift, and it fires each time its integral has gained
one. Rhythms are built on its impulses; those that have other clocks are in `arrhythmia.py`.
"""

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from p2es.errors import InputError
from p2es.simulator.catalogue import RHYTHMS, SINUS_RHYTHMS
from p2es.simulator.people import PR_SLOPE, Person

Floats = NDArray[np.float64]

# Beats are made this long before and after the recording: their waves reach into it.
LEAD_IN_S = 4.0
LEAD_OUT_S = 2.5
_GRID_HZ = 8.0
_MAYER_HZ, _MAYER_WIDTH_HZ = 0.1, 0.015
_DRIFT_HZ = (0.003, 0.04)
_LINES = 16


class BeatKind(IntEnum):
    """Where a beat comes from."""

    NORMAL = 0
    ATRIAL = 1
    """Premature, from the atria."""
    VENTRICULAR = 2
    """Premature, from a ventricle."""
    JUNCTIONAL = 3
    """Escape with a narrow QRS."""
    ESCAPE = 4
    """Escape from a ventricle, wide."""


SYMBOLS = {
    BeatKind.NORMAL: "N",
    BeatKind.ATRIAL: "A",
    BeatKind.VENTRICULAR: "V",
    BeatKind.JUNCTIONAL: "j",
    BeatKind.ESCAPE: "E",
}
"""WFDB's annotation symbols."""


@dataclass(frozen=True)
class Breathing:
    """How a person breathes.

    Attributes
    ----------
    rate_hz, phase : float
        Rate, and phase at time 0 in radians.
    """

    rate_hz: float
    phase: float

    def at(self, time_s: Floats) -> Floats:
        """Give the breathing at `time_s`: 1 at full inspiration, -1 at full expiration."""
        # The slow change of rate keeps the line in the spectrum from being one single frequency.
        phase = 2 * np.pi * self.rate_hz * time_s + self.phase
        return np.sin(phase + 0.8 * np.sin(2 * np.pi * 0.021 * time_s + self.phase))


@dataclass(frozen=True)
class Rhythm:
    """Beats and P waves, in order; the first ones are before the recording and the last ones beyond its end.

    Attributes
    ----------
    name : str
        In `catalogue.RHYTHMS`.
    r_s : array (beat,)
        R, seconds from the start of the recording: time 0 of the beat's waves.
    kind : array (beat,)
        `BeatKind`.
    p_s : array (p,)
        When the R of each P wave comes, or would come if it were conducted.
    pr_s : array (p,)
        PR interval of each.
    p_beat : array (p,)
        The beat it leads to; -1 for none (blocked, or dissociated).
    p_premature : array (p,)
        Whether it comes from elsewhere than the sinus node.
    breathing : Breathing
    fibrillates : bool
        Whether the atria do: no P waves, f waves instead.
    """

    name: str
    r_s: Floats
    kind: NDArray[np.int64]
    p_s: Floats
    pr_s: Floats
    p_beat: NDArray[np.int64]
    p_premature: NDArray[np.bool_]
    breathing: Breathing
    fibrillates: bool = False

    @property
    def rr_s(self) -> Floats:
        """Interval (beat,) that ends at each beat; the first is taken as the second."""
        if self.r_s.size < 2:
            return np.ones(self.r_s.size)
        return np.diff(self.r_s, prepend=2 * self.r_s[0] - self.r_s[1])


@dataclass(frozen=True)
class Sinus:
    """The impulses of the sinus node as they reach the ventricles if nothing is in the way.

    Attributes
    ----------
    time_s : array (impulse,)
    mean_s : float
        Mean interval.
    pr_s : array (impulse,)
        PR interval at its rate.
    breathing : Breathing
    """

    time_s: Floats
    mean_s: float
    pr_s: Floats
    breathing: Breathing


def _swinging(rng: np.random.Generator, time_s: Floats, lines_hz: Floats) -> Floats:
    """Draw a slow random change (time,) of unit power: lines of equal size and random phase.

    Made of lines, not of filtered noise, so that a longer recording begins as a shorter one does.
    """
    phases = rng.uniform(0, 2 * np.pi, lines_hz.size)
    total = np.zeros(time_s.size)
    for line_hz, phase in zip(lines_hz, phases, strict=True):
        total += np.sin(2 * np.pi * line_hz * time_s + phase)
    return total * np.sqrt(2 / lines_hz.size)


def draw_sinus(rng: np.random.Generator, person: Person, duration_s: float, rate_bpm: float, depth: float) -> Sinus:
    """Draw the sinus node's impulses.

    Parameters
    ----------
    rate_bpm : float
        Mean.
    depth : float
        Factor on the respiratory sinus arrhythmia of the person.
    """
    mean_s = 60.0 / rate_bpm
    breathing = Breathing(float(rng.uniform(0.19, 0.31)), float(rng.uniform(0, 2 * np.pi)))
    start = float(rng.uniform(0, 1))
    slow, beat = rng.spawn(2)
    span_s = duration_s + LEAD_IN_S + LEAD_OUT_S + 2 * mean_s
    grid_s = np.arange(int(span_s * _GRID_HZ) + 2) / _GRID_HZ - LEAD_IN_S - mean_s
    # Modulation is in proportion to the interval: a fast heart varies less.
    half_s = 0.5 * depth * person.rsa_s * mean_s / 0.9
    mayer = _swinging(slow, grid_s, slow.normal(_MAYER_HZ, _MAYER_WIDTH_HZ, _LINES))
    # Evenly spread over the logarithm of frequency: 1/f.
    drift = _swinging(slow, grid_s, np.exp(slow.uniform(np.log(_DRIFT_HZ[0]), np.log(_DRIFT_HZ[1]), _LINES)))
    interval_s: Floats = mean_s + half_s * (0.7 * mayer - breathing.at(grid_s)) + 0.012 * mean_s * drift
    fired = np.cumsum(1.0 / np.clip(interval_s, 0.3, 3.0)) / _GRID_HZ
    # The start is anywhere in a beat, so that windows do not share a phase.
    count: Floats = np.arange(np.ceil(fired[0]), np.floor(fired[-1]), dtype=np.float64) + start
    time_s = np.interp(count, fired, grid_s)
    time_s = time_s[time_s < duration_s + LEAD_OUT_S + mean_s]
    time_s = time_s + 0.003 * mean_s * beat.standard_normal(time_s.size)
    rr_s = np.diff(time_s, prepend=time_s[0] - mean_s)
    return Sinus(time_s, mean_s, person.pr_s(mean_s) + PR_SLOPE * (rr_s - mean_s), breathing)


def conducted(name: str, sinus: Sinus, **changes: object) -> Rhythm:
    """Give the rhythm in which each sinus impulse leads to a beat; `changes` replaces fields of `Rhythm`."""
    n = sinus.time_s.size
    fields: dict[str, object] = {
        "r_s": sinus.time_s,
        "kind": np.full(n, BeatKind.NORMAL, np.int64),
        "p_s": sinus.time_s,
        "pr_s": sinus.pr_s,
        "p_beat": np.arange(n),
        "p_premature": np.zeros(n, bool),
    }
    return Rhythm(name=name, breathing=sinus.breathing, **(fields | changes))  # type: ignore[arg-type]


def draw_rhythm(rng: np.random.Generator, person: Person, duration_s: float, name: str = "sinus") -> Rhythm:
    """Draw a rhythm for a recording of `duration_s`.

    Raises
    ------
    InputError
        For a name that is not in `catalogue.RHYTHMS`.
    """
    if name not in RHYTHMS:
        raise InputError(f"there is no rhythm {name!r}: choose among {', '.join(RHYTHMS)}")
    rate, depth = person.heart_rate_bpm, 1.0
    if name == "sinus_tachycardia":
        rate, depth = float(rng.uniform(101, 145)), 0.4
    elif name == "sinus_bradycardia":
        rate, depth = float(rng.uniform(40, 57)), 1.2
    elif name == "sinus_arrhythmia":
        rate, depth = min(rate, 85.0), max(3.0, 0.16 / person.rsa_s)
    elif name == "av_block_3":
        # The atria answer a slow ventricle with a faster rate.
        rate = float(np.clip(1.2 * rate, 65, 105))
    # Premature beats bring those after them forward: there must be enough of these.
    spare = 1.4 if name == "premature_atrial" else 1.0
    sinus = draw_sinus(rng, person, spare * duration_s, rate, depth)
    if name in SINUS_RHYTHMS:
        return conducted(name, sinus)
    from p2es.simulator import arrhythmia

    return arrhythmia.draw(rng, person, sinus, name, duration_s)
