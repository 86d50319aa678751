"""ECG electrodes: their noise, and what becomes of the leads when they come off or are swapped.

Everything happens at nine electrodes and reaches the leads as a recorder forms them (I = LA - RA, II = LL - RA,
V = electrode minus the mean of RA, LA and LL), so the lead laws hold with noise, and with swaps, to rounding.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from p2es.leads import INDEPENDENT, LEADS, lift
from p2es.simulator.noise import Floats, band_noise, happenings, ramps, samples_between, slow_noise

ELECTRODES = ("RA", "LA", "LL", "V1", "V2", "V3", "V4", "V5", "V6")
_LIMBS = ELECTRODES[:3]
SWAPS = ("RA-LA", "RA-LL", "LA-LL", "V1-V2", "V1-V3", "V2-V3", "V3-V4", "V4-V5", "V5-V6")
"""Those that are seen: two limbs, and neighbours on the chest."""

_MUSCLE_HZ = (15.0, 100.0)
# A network is held to some hundredths of a hertz, and swings about its nominal value within a minute.
_HUM_DRIFT_HZ, _HUM_SWING_HZ = 0.03, 0.017

# Rows: the 8 independent leads; columns: the 9 electrodes.
FROM_ELECTRODES: Floats = np.zeros((len(INDEPENDENT), len(ELECTRODES)))
FROM_ELECTRODES[0, :2] = (-1.0, 1.0)
FROM_ELECTRODES[1, [0, 2]] = (-1.0, 1.0)
FROM_ELECTRODES[2:, :3] = -1 / 3
FROM_ELECTRODES[2:, 3:] = np.eye(6)
FROM_ELECTRODES.setflags(write=False)

# The potentials against RA: Wilson's terminal is at (I + II) / 3.
_TO_ELECTRODES: Floats = np.zeros((len(ELECTRODES), len(INDEPENDENT)))
_TO_ELECTRODES[1, 0] = _TO_ELECTRODES[2, 1] = 1.0
_TO_ELECTRODES[3:, :2] = 1 / 3
_TO_ELECTRODES[3:, 2:] = np.eye(6)
_TO_ELECTRODES.setflags(write=False)


@dataclass(frozen=True)
class ElectrodeConditions:
    """How an ECG is recorded; levels are at one electrode, against the body.

    Attributes
    ----------
    breath_mv, slow_mv : float
        Wander: the most that breathing moves a potential, and the deviation of the rest (0.02-0.4 Hz).
    muscle_mv : (float, float)
        Least and most deviation of the noise of muscles (15-100 Hz).
    bursts : float
        Share of people whose muscles tense now and then, by `burst_mv` (least, most) at one electrode.
    hum : float
        Share of recordings with powerline noise, of up to `hum_mv` (amplitude) at an electrode.
    motion : float
        Share of people whose electrodes move: steps and bumps of `motion_mv` (least, most), either way.
    bursts_per_min, motion_per_min, off_per_min : float
        How often, to these.
    off : float
        Share of recordings in which electrodes come off.
    swap : float
        Share of recordings with two electrodes swapped.
    """

    breath_mv: float = 0.0
    slow_mv: float = 0.0
    muscle_mv: tuple[float, float] = (0.0, 0.0)
    bursts: float = 0.0
    bursts_per_min: float = 1.0
    burst_mv: tuple[float, float] = (0.02, 0.08)
    hum: float = 0.0
    hum_mv: float = 0.02
    motion: float = 0.0
    motion_per_min: float = 1.0
    motion_mv: tuple[float, float] = (0.1, 0.5)
    off: float = 0.0
    off_per_min: float = 0.5
    swap: float = 0.0


NONE = ElectrodeConditions()
CLEAN = ElectrodeConditions(breath_mv=0.04, slow_mv=0.02, muscle_mv=(0.004, 0.012))
USUAL = ElectrodeConditions(
    breath_mv=0.08,
    slow_mv=0.03,
    muscle_mv=(0.004, 0.020),
    bursts=0.2,
    hum=0.4,
    hum_mv=0.015,
    motion=0.15,
    off=0.02,
    swap=0.01,
)
WARD = ElectrodeConditions(
    breath_mv=0.12,
    slow_mv=0.05,
    muscle_mv=(0.005, 0.030),
    bursts=0.3,
    hum=0.5,
    hum_mv=0.03,
    motion=0.35,
    motion_mv=(0.1, 0.8),
    off=0.10,
    swap=0.02,
)
STRESS = ElectrodeConditions(
    breath_mv=0.30,
    slow_mv=0.15,
    muscle_mv=(0.010, 0.060),
    bursts=0.8,
    bursts_per_min=6.0,
    burst_mv=(0.05, 0.20),
    hum=0.7,
    hum_mv=0.10,
    motion=0.9,
    motion_per_min=6.0,
    motion_mv=(0.2, 1.5),
    off=0.3,
    off_per_min=1.0,
    swap=0.10,
)


class Off(NamedTuple):
    """An electrode (by the name on its cable) without contact."""

    electrode: str
    start_s: float
    stop_s: float


class Burst(NamedTuple):
    """Muscle noise of a deviation of `mv` at one electrode; `seed` is its waveform's."""

    electrode: str
    start_s: float
    stop_s: float
    mv: float
    seed: int


class Motion(NamedTuple):
    """A movement of one electrode.

    A `step` of `mv` rises in 20 ms and decays with the time constant `lasts_s`; a `bump` swells to `mv` and is
    gone after `lasts_s`.
    """

    electrode: str
    shape: str
    start_s: float
    lasts_s: float
    mv: float


@dataclass(frozen=True)
class Electrodes:
    """The electrodes on one person on one occasion; levels in mV, in the order of `ELECTRODES`.

    Attributes
    ----------
    breath_mv : tuple of 9 floats
        What full inspiration adds to the potential, of either sign.
    slow_mv, muscle_mv : float
        Deviations of slow wander and muscle noise, at each electrode.
    hum_hz : float
        50 or 60; what the network drifts about.
    hum_phase : float
        Radians.
    hum_mv : tuple of 9 floats
        Amplitudes, of either sign; all 0 without hum.
    bursts, motion, off : tuple
        What happens, by start. A longer recording has the same and then more.
    swap : str or None
        Two electrodes that are at each other's place, such as "RA-LA".
    """

    breath_mv: tuple[float, ...]
    slow_mv: float
    muscle_mv: float
    hum_hz: float
    hum_phase: float
    hum_mv: tuple[float, ...]
    bursts: tuple[Burst, ...]
    motion: tuple[Motion, ...]
    off: tuple[Off, ...]
    swap: str | None


def draw_electrodes(rng: np.random.Generator, conditions: ElectrodeConditions, duration_s: float) -> Electrodes:
    """Draw electrodes and what happens to them in a recording of `duration_s`."""
    of_bursts, of_motion, of_off = rng.spawn(3)
    breath_mv = conditions.breath_mv * rng.uniform(-1, 1, len(ELECTRODES))
    muscle_mv = float(rng.uniform(*conditions.muscle_mv))
    hum_hz = 50.0 if rng.random() < 0.5 else 60.0
    hum_phase = float(rng.uniform(0, 2 * np.pi))
    hum_mv = conditions.hum_mv * rng.uniform(-1, 1, len(ELECTRODES))
    has_bursts, has_hum, has_motion, has_off, is_swapped = rng.random(5) < [
        conditions.bursts,
        conditions.hum,
        conditions.motion,
        conditions.off,
        conditions.swap,
    ]
    swap = SWAPS[int(rng.integers(len(SWAPS)))]
    return Electrodes(
        breath_mv=tuple(breath_mv.tolist()),
        slow_mv=conditions.slow_mv,
        muscle_mv=muscle_mv,
        hum_hz=hum_hz,
        hum_phase=hum_phase,
        hum_mv=tuple((hum_mv * has_hum).tolist()),
        bursts=_bursts(of_bursts, conditions, duration_s) if has_bursts else (),
        motion=_motion(of_motion, conditions, duration_s) if has_motion else (),
        off=_off(of_off, conditions, duration_s) if has_off else (),
        swap=swap if is_swapped else None,
    )


def _electrode(uniform: float) -> str:
    return ELECTRODES[int(uniform * len(ELECTRODES))]


def _between(limits: tuple[float, float], uniform: float) -> float:
    return limits[0] + (limits[1] - limits[0]) * uniform


def _bursts(rng: np.random.Generator, conditions: ElectrodeConditions, duration_s: float) -> tuple[Burst, ...]:
    starts_s, uniform = happenings(rng, conditions.bursts_per_min, duration_s, 4)
    return tuple(
        Burst(_electrode(a), start_s, start_s + 1 + 4 * b, _between(conditions.burst_mv, c), int(d * 2**53))
        for start_s, (a, b, c, d) in zip(starts_s.tolist(), uniform.tolist(), strict=True)
    )


def _motion(rng: np.random.Generator, conditions: ElectrodeConditions, duration_s: float) -> tuple[Motion, ...]:
    starts_s, uniform = happenings(rng, conditions.motion_per_min, duration_s, 4)
    found = []
    for start_s, (a, b, c, d) in zip(starts_s.tolist(), uniform.tolist(), strict=True):
        mv = math.copysign(_between(conditions.motion_mv, abs(2 * d - 1)), d - 0.5)
        shape, lasts_s = ("step", 0.2 + 1.3 * c) if b < 0.5 else ("bump", 0.3 + 0.9 * c)
        found.append(Motion(_electrode(a), shape, start_s, lasts_s, mv))
    return tuple(found)


def _off(rng: np.random.Generator, conditions: ElectrodeConditions, duration_s: float) -> tuple[Off, ...]:
    """Draw when electrodes are off: for 2 s to a minute; in a third of these recordings one is off all the time."""
    always, which = rng.random(2)
    starts_s, uniform = happenings(rng, conditions.off_per_min, duration_s, 2)
    whole = [Off(_electrode(which), 0.0, duration_s)] if always < 1 / 3 else []
    return (
        *whole,
        *(
            # Evenly over the logarithm: most are put back soon.
            Off(_electrode(a), start_s, min(start_s + 2 * 30**b, duration_s))
            for start_s, (a, b) in zip(starts_s.tolist(), uniform.tolist(), strict=True)
        ),
    )


def electrode_noise(rng: np.random.Generator, electrodes: Electrodes, breath: Floats, fs_hz: float) -> Floats:
    """Draw the noise of the 8 independent leads.

    Parameters
    ----------
    rng : Generator
    electrodes : Electrodes
    breath : array (time,)
        1 at full inspiration, -1 at full expiration, at `fs_hz`.
    fs_hz : float

    Returns
    -------
    array (8, time)
        In mV, in the order of `p2es.leads.INDEPENDENT`. One electrode is made at a time: beside the result it
        needs the room of a few leads, whatever the length.
    """
    leads = np.zeros((len(INDEPENDENT), breath.size))
    hum = _hum(electrodes, breath.size, fs_hz) if any(electrodes.hum_mv) else None
    for index, name in enumerate(ELECTRODES):
        potential = electrodes.breath_mv[index] * breath
        if hum is not None:
            potential += electrodes.hum_mv[index] * hum
        if electrodes.slow_mv:
            potential += electrodes.slow_mv * slow_noise(rng, breath.size, fs_hz, 0.02, 0.4)
        if electrodes.muscle_mv:
            potential += electrodes.muscle_mv * band_noise(rng, breath.size, fs_hz, *_MUSCLE_HZ)
        _tense(potential, [burst for burst in electrodes.bursts if burst.electrode == name], fs_hz)
        _move(potential, [motion for motion in electrodes.motion if motion.electrode == name], fs_hz)
        for lead, weight in zip(leads, FROM_ELECTRODES[:, index], strict=True):
            if weight:
                lead += weight * potential
    return leads


def _hum(electrodes: Electrodes, n: int, fs_hz: float) -> Floats:
    """Give powerline noise (time,) of amplitude 1 with a third harmonic of 0.2, where the rate can hold them."""
    if electrodes.hum_hz >= fs_hz / 2:
        return np.zeros(n)
    phase = np.arange(n) * (2 * np.pi * _HUM_SWING_HZ / fs_hz) + electrodes.hum_phase
    np.sin(phase, out=phase)
    phase *= _HUM_DRIFT_HZ / _HUM_SWING_HZ
    phase += np.arange(n) * (2 * np.pi * electrodes.hum_hz / fs_hz)
    wave = np.sin(phase, out=phase)
    # sin 3x = 3 sin x - 4 sin^3 x.
    return wave + 0.2 * (3 * wave - 4 * wave**3) if 3 * electrodes.hum_hz < fs_hz / 2 else wave


def _tense(potential: Floats, bursts: list[Burst], fs_hz: float) -> None:
    for burst in bursts:
        span = samples_between(burst.start_s, burst.stop_s, potential.size, fs_hz)
        # Drawn for the whole burst, so that a recording that ends in it has its first part.
        n = round((burst.stop_s - burst.start_s) * fs_hz) + 1
        noise = band_noise(np.random.default_rng(burst.seed), n, fs_hz, *_MUSCLE_HZ)
        potential[span] += (burst.mv * ramps(n, 0.5) * noise)[: span.stop - span.start]


def _move(potential: Floats, movements: list[Motion], fs_hz: float) -> None:
    for motion in movements:
        # After eight time constants 0.03 % of a step is left.
        stop_s = motion.start_s + (8 if motion.shape == "step" else 1) * motion.lasts_s
        span = samples_between(motion.start_s, stop_s, potential.size, fs_hz)
        since_s = np.arange(span.start, span.stop) / fs_hz - motion.start_s
        if motion.shape == "step":
            potential[span] += motion.mv * np.exp(-since_s / motion.lasts_s) * -np.expm1(-since_s / 0.02)
        else:
            potential[span] += motion.mv * (0.5 - 0.5 * np.cos(2 * np.pi * since_s / motion.lasts_s))


def swap_matrix(swap: str) -> Floats:
    """Give the matrix (8, 8) that makes the independent leads what they are with two electrodes swapped."""
    first, second = (ELECTRODES.index(name) for name in swap.split("-"))
    place = np.arange(len(ELECTRODES))
    place[[first, second]] = place[[second, first]]
    return FROM_ELECTRODES @ _TO_ELECTRODES[place]


def worn(leads_mv: Floats, electrodes: Electrodes, fs_hz: float) -> Floats:
    """Give the 12 leads as these electrodes give them.

    Parameters
    ----------
    leads_mv : array (8, time)
        The independent leads of electrodes at their places, noise included.
    electrodes : Electrodes
    fs_hz : float

    Returns
    -------
    array (12, time)
        In mV, in the order of `p2es.leads.LEADS`. While an electrode is off, every lead that is formed with it is
        NaN: a limb electrode takes all but one limb lead, and through Wilson's terminal all precordial ones.
    """
    leads = lift(leads_mv if electrodes.swap is None else swap_matrix(electrodes.swap) @ leads_mv)
    for electrode, start_s, stop_s in electrodes.off:
        lost = [LEADS.index(name) for name in leads_of(electrode)]
        leads[lost, samples_between(start_s, stop_s, leads.shape[1], fs_hz)] = np.nan
    return leads


def leads_of(electrode: str) -> tuple[str, ...]:
    """Give the leads that are formed with an electrode."""
    if electrode not in _LIMBS:
        return (electrode,)
    spared = {"RA": "III", "LA": "II", "LL": "I"}[electrode]
    return tuple(name for name in LEADS if name != spared)
