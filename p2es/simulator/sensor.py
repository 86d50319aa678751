"""PPG sensors: when they sample, and what they make of the pulse wave they see."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from p2es.simulator.noise import Floats, happenings, ramps, samples_between, slow_noise

PULSE_RMS, _PULSE_MEAN = 0.33, 0.35
"""Of a wave whose systolic amplitude is 1, at rest (measured on 60 people: 0.30-0.34). Noise is in proportion to
this, not to what the wave at hand has: a sensor does not fall silent because the heart pauses."""


class Light(NamedTuple):
    """What light of one colour sees, relative to green: of the pulse, and of the veins that breathing fills.

    Green is absorbed most and stays in the skin; infrared and red go deeper, where the veins are.
    """

    pulse: float
    breath: float


LIGHTS = {"green": Light(1.0, 0.5), "infrared": Light(0.6, 1.0), "red": Light(0.35, 0.8)}
"""The order is Maeda's and Lee's, green > infrared > red; the sizes are our choice."""

# Pulse over steady light, in per cent, of a warm person with good contact; our choice within what is published.
_PERFUSION_PERCENT = {"finger": 2.0, "ear": 1.2, "forehead": 0.8, "wrist": 0.8, "arm": 0.6}


@dataclass(frozen=True)
class SensorKind:
    """A make of PPG sensor.

    Attributes
    ----------
    site : str
        finger, wrist, ear, forehead or arm.
    fs_hz : float
    delay_s : float
        What filtering, buffering and the site add to the physiological delay.
    snr_db : float
        Pulse power over sensor noise at the first wavelength; by `LIGHTS` less or more at the others.
    wander : float
        Slow baseline relative to the pulse.
    wavelengths : tuple of str
        Names in `LIGHTS`, in the order of the channels.
    bits : int
        Of its converter.
    raw : bool
        Raw counts (unit "adu"), in which the pulse is a per cent or two on steady light; else the pulse alone,
        scaled by an automatic gain (unit "NU").
    packet : int
        Samples sent at a time.
    inverted : bool
        Raw light: less of it comes back in systole.
    """

    site: str
    fs_hz: float
    delay_s: float
    snr_db: float
    wander: float
    wavelengths: tuple[str, ...]
    bits: int
    raw: bool
    packet: int
    inverted: bool = False


# With 0.16 to 0.23 s of physiology (2nd to 98th percentile of 120 people) these give 0.16 to 0.58 s; real devices show
# 0.3 to 0.58 s.
SENSORS = {
    "clip-a": SensorKind("finger", 125.0, 0.00, 35.0, 0.05, ("infrared",), 16, False, 25),
    "clip-b": SensorKind("finger", 100.0, 0.08, 32.0, 0.08, ("infrared", "red"), 18, True, 20),
    "lab-clip": SensorKind("finger", 500.0, 0.02, 36.0, 0.06, ("infrared",), 16, False, 50),
    "patient-monitor": SensorKind("finger", 125.0, 0.27, 38.0, 0.03, ("infrared",), 10, False, 125),
    "telemetry": SensorKind("finger", 250.0, 0.34, 34.0, 0.05, ("infrared",), 12, False, 50),
    "oximeter": SensorKind("finger", 60.0, 0.30, 33.0, 0.06, ("infrared", "red"), 8, False, 3),
    "watch-a": SensorKind("wrist", 100.0, 0.14, 26.0, 0.20, ("green",), 16, True, 20),
    "watch-b": SensorKind("wrist", 50.0, 0.32, 24.0, 0.20, ("green",), 20, False, 10),
    "watch-c": SensorKind("wrist", 128.0, 0.16, 27.0, 0.15, ("green", "red", "infrared"), 19, True, 16),
    "tracker": SensorKind("wrist", 25.0, 0.25, 24.0, 0.25, ("green",), 12, False, 10),
    "wristband": SensorKind("wrist", 64.0, 0.18, 27.0, 0.15, ("green",), 16, False, 16),
    "ring": SensorKind("finger", 100.0, 0.20, 28.0, 0.12, ("infrared", "red"), 18, True, 25),
    "raw-patch": SensorKind("arm", 200.0, 0.06, 28.0, 0.15, ("green",), 18, True, 40, inverted=True),
    # For the population `other` alone.
    "earlobe": SensorKind("ear", 75.0, 0.04, 30.0, 0.10, ("infrared",), 14, False, 15),
    "forehead": SensorKind("forehead", 128.0, 0.24, 27.0, 0.15, ("infrared", "red"), 18, True, 16),
    "band": SensorKind("arm", 32.0, 0.35, 20.0, 0.30, ("green",), 16, False, 8),
}


@dataclass(frozen=True)
class SensorConditions:
    """What can go wrong where sensors are used.

    Attributes
    ----------
    motion, saturation, dropout, perfusion_drops : float
        Share of wearers to whom it happens.
    motion_per_min, saturation_per_min, dropout_per_min, perfusion_drops_per_min : float
        How often, to these.
    poor_perfusion, poor_contact : float
        Share of wearers with a weak pulse (cold, in shock), and with a loose sensor.
    packet_jitter_s : float
        Standard deviation of the time stamps of packets, on average over the wearers.
    packet_loss : float
        Share of packets lost, on average over the wearers.
    clock_drift_ppm : float
        Most that a clock is off, either way.
    offset_s : float
        Most that a clock is early or late, either way.
    """

    motion: float = 0.0
    motion_per_min: float = 2.0
    saturation: float = 0.0
    saturation_per_min: float = 0.5
    dropout: float = 0.0
    dropout_per_min: float = 0.5
    perfusion_drops: float = 0.0
    perfusion_drops_per_min: float = 0.5
    poor_perfusion: float = 0.0
    poor_contact: float = 0.0
    packet_jitter_s: float = 0.0
    packet_loss: float = 0.0
    clock_drift_ppm: float = 0.0
    offset_s: float = 0.0


CLEAN = SensorConditions()
USUAL = SensorConditions(
    motion=0.25,
    saturation=0.03,
    dropout=0.05,
    perfusion_drops=0.05,
    poor_perfusion=0.05,
    poor_contact=0.10,
    packet_jitter_s=0.002,
    packet_loss=0.001,
    clock_drift_ppm=50.0,
    offset_s=0.020,
)
WARD = SensorConditions(
    motion=0.35,
    saturation=0.05,
    dropout=0.20,
    perfusion_drops=0.25,
    perfusion_drops_per_min=0.3,
    poor_perfusion=0.20,
    poor_contact=0.15,
    packet_jitter_s=0.003,
    packet_loss=0.003,
    clock_drift_ppm=50.0,
    offset_s=0.020,
)
STRESS = SensorConditions(
    motion=0.9,
    motion_per_min=5.0,
    saturation=0.4,
    saturation_per_min=1.0,
    dropout=0.5,
    dropout_per_min=1.0,
    perfusion_drops=0.5,
    perfusion_drops_per_min=1.0,
    poor_perfusion=0.35,
    poor_contact=0.40,
    packet_jitter_s=0.010,
    packet_loss=0.02,
    clock_drift_ppm=50.0,
    offset_s=0.020,
)


@dataclass(frozen=True)
class Sensor:
    """One sensor on one person on one occasion.

    Attributes
    ----------
    name : str
        Its make, in `SENSORS`.
    kind : SensorKind
    conditions : SensorConditions
    delay_s : float
        Added to the physiological delay: of the make, of this piece, and `offset_s`. Pulses start this much later
        in what the sensor sees; `sample_times` does not hold it.
    offset_s : float
        What the clock adds to the delay, early (negative) or late.
    clock_drift_ppm : float
        How much slower than nominal the sensor samples: positive, and a sample is taken later than its number says.
    contact : float
        0 to 1.
    perfusion_percent : float
        Pulse over steady light at the first wavelength; with the contact in it.
    snr_db : float
        Pulse power over sensor noise at the first wavelength, with perfusion and contact in it.
    wander : float
        Slow baseline relative to the pulse.
    level, pulse_share : float
        Where the middle of the pulse lies in the converter's range, and the pulse's share of that range.
    motion, saturation, dropout, perfusion_drops : bool
        Whether it happens to this wearer.
    packet_jitter_s : float
        Standard deviation of a packet's time stamp.
    packet_loss : float
        Share of packets lost.
    """

    name: str
    kind: SensorKind
    conditions: SensorConditions
    delay_s: float
    offset_s: float
    clock_drift_ppm: float
    contact: float
    perfusion_percent: float
    snr_db: float
    wander: float
    level: float
    pulse_share: float
    motion: bool
    saturation: bool
    dropout: bool
    perfusion_drops: bool
    packet_jitter_s: float
    packet_loss: float


def draw_sensor(rng: np.random.Generator, kinds: tuple[str, ...], conditions: SensorConditions) -> Sensor:
    """Draw a sensor among the makes `kinds`.

    Delay: that of the make within about 10 ms, and the clock's offset. Perfusion varies by a quarter between
    people, which gives the 2 dB of spread of the signal-to-noise ratio.
    """
    name = kinds[int(rng.integers(len(kinds)))]
    kind = SENSORS[name]
    delay_s = max(kind.delay_s + 0.010 * float(rng.standard_normal()), 0.0)
    offset_s = conditions.offset_s * float(rng.uniform(-1, 1))
    contact = float(rng.uniform(0.3, 0.7) if rng.random() < conditions.poor_contact else rng.uniform(0.85, 1.0))
    weak = float(rng.uniform(0.15, 0.4) if rng.random() < conditions.poor_perfusion else 1.0)
    strength = weak * contact * math.exp(0.25 * float(rng.standard_normal()))
    perfusion = _PERFUSION_PERCENT[kind.site] * strength
    level = float(rng.uniform(0.3, 0.6) if kind.raw else rng.uniform(0.35, 0.45))
    happens = rng.random(4) < [conditions.motion, conditions.saturation, conditions.dropout, conditions.perfusion_drops]
    return Sensor(
        name=name,
        kind=kind,
        conditions=conditions,
        delay_s=delay_s + offset_s,
        offset_s=offset_s,
        clock_drift_ppm=conditions.clock_drift_ppm * float(rng.uniform(-1, 1)),
        contact=contact,
        perfusion_percent=perfusion,
        snr_db=kind.snr_db + 20 * math.log10(strength),
        wander=kind.wander * math.exp(0.3 * float(rng.standard_normal())) / contact,
        level=level,
        pulse_share=level * perfusion / 100 if kind.raw else float(rng.uniform(0.15, 0.25)),
        motion=bool(happens[0]),
        saturation=bool(happens[1]),
        dropout=bool(happens[2]),
        perfusion_drops=bool(happens[3]),
        packet_jitter_s=conditions.packet_jitter_s * float(rng.uniform(0.5, 1.5)),
        # Most links lose little and some lose much; never more than half.
        packet_loss=min(conditions.packet_loss * float(rng.exponential()), 0.5),
    )


def sample_times(rng: np.random.Generator, sensor: Sensor, duration_s: float) -> Floats:
    """Draw when each sample was taken.

    Returns
    -------
    array (time,)
        True seconds of the samples whose nominal times are k / fs_hz: the clock drifts, and the samples of a
        packet share the error of its time stamp. Strictly ascending: a packet may be stamped late by anything,
        but the next ones make up for it by no more than nine tenths of a sample each. So packets are later than
        `delay_s` tells: on average by up to 1 ms in the ward, and at 500 Hz under stress by 9 ms (measured).
        A longer recording starts with the same times.
    """
    fs_hz, packet = sensor.kind.fs_hz, sensor.kind.packet
    n = round(duration_s * fs_hz)
    times_s = np.arange(n, dtype=np.float64) * ((1 + 1e-6 * sensor.clock_drift_ppm) / fs_hz)
    if sensor.packet_jitter_s > 0:
        recovered_s = np.arange(-(-n // packet)) * (0.9 / fs_hz)
        shift_s = np.clip(rng.standard_normal(recovered_s.size), -3, 3) * sensor.packet_jitter_s
        shift_s = np.maximum.accumulate(shift_s + recovered_s) - recovered_s
        times_s += np.repeat(shift_s, packet)[:n]
    return times_s


class Artefact(NamedTuple):
    """A stretch that is not as it should be: motion, saturation, dropout or perfusion."""

    kind: str
    start_s: float
    stop_s: float


@dataclass(frozen=True)
class Sensed:
    """What a sensor gives.

    Attributes
    ----------
    samples : array (wavelength, time)
        In `unit`; NaN where nothing was recorded.
    unit : str
        "adu" or "NU".
    artefacts : tuple of Artefact
        By kind, then time. Lost packets are not among them.
    """

    samples: Floats
    unit: str
    artefacts: tuple[Artefact, ...]


@dataclass(frozen=True)
class _Episode:
    """An artefact that is about to be made, with numbers in [0, 1) to shape it."""

    at: Artefact
    span: slice
    uniform: Floats


def sense(rng: np.random.Generator, sensor: Sensor, waves: Floats, breath: Floats) -> Sensed:
    """Give what the sensor records.

    Parameters
    ----------
    rng : Generator
    sensor : Sensor
    waves : array (wavelength, time)
        Pulse waves of systolic amplitude 1 at the true sample times, in the order of the kind's wavelengths.
    breath : array (time,)
        1 at full inspiration, -1 at full expiration.

    Returns
    -------
    Sensed
    """
    assert waves.shape == (len(sensor.kind.wavelengths), breath.size)
    lost = rng.random(-(-breath.size // sensor.kind.packet)) < sensor.packet_loss
    seen = _seen(rng, sensor, waves, breath)
    # Artefacts draw from generators of their own: the rest of the recording is the same without them.
    episodes = _episodes(rng, sensor, breath.size)
    for episode in episodes["perfusion"]:
        _fade(episode, sensor, seen, waves)
    for episode in episodes["motion"]:
        _shake(episode, sensor, seen)
    counts = _converted(sensor, seen, episodes["saturation"])
    for episode in episodes["dropout"]:
        held = counts[:, max(episode.span.start - 1, 0)].copy()
        counts[:, episode.span] = np.nan if episode.uniform[1] < 0.5 else held[:, None]
    if lost.any():
        counts[:, np.repeat(lost, sensor.kind.packet)[: breath.size]] = np.nan
    if not sensor.kind.raw:
        counts /= 2**sensor.kind.bits - 1
    artefacts = tuple(episode.at for kind in episodes.values() for episode in kind)
    return Sensed(counts, "adu" if sensor.kind.raw else "NU", artefacts)


def _pulse_sizes(sensor: Sensor) -> Floats:
    """Give each wavelength's pulse relative to the first one's (wavelength,)."""
    sizes = np.array([LIGHTS[name].pulse for name in sensor.kind.wavelengths])
    return sizes / sizes[0]


def _seen(rng: np.random.Generator, sensor: Sensor, waves: Floats, breath: Floats) -> Floats:
    """Give pulse, wander and noise (wavelength, time) in systolic amplitudes of the first wavelength."""
    n, fs_hz = breath.size, sensor.kind.fs_hz
    breathing = np.array([LIGHTS[name].breath for name in sensor.kind.wavelengths])
    seen = rng.standard_normal(waves.shape)
    seen *= PULSE_RMS * 10 ** (-sensor.snr_db / 20)
    drift = slow_noise(rng, n, fs_hz, 0.01, 0.15)
    for row, wave, size, breaths in zip(seen, waves, _pulse_sizes(sensor), breathing, strict=True):
        row += size * (wave - _PULSE_MEAN)
        row += (PULSE_RMS * sensor.wander) * (breaths * breath + drift)
    return seen


def _episodes(rng: np.random.Generator, sensor: Sensor, n: int) -> dict[str, list[_Episode]]:
    """Draw what happens to this wearer, by kind."""
    conditions = sensor.conditions
    # Happens, how often, and the seconds it lasts.
    plan = {
        "motion": (sensor.motion, conditions.motion_per_min, 1.0, 5.0),
        "saturation": (sensor.saturation, conditions.saturation_per_min, 0.5, 4.0),
        "dropout": (sensor.dropout, conditions.dropout_per_min, 0.5, 6.0),
        "perfusion": (sensor.perfusion_drops, conditions.perfusion_drops_per_min, 4.0, 20.0),
    }
    return {
        kind: _drawn(rng.spawn(1)[0], kind, per_min, (shortest_s, longest_s), n, sensor.kind.fs_hz) if happens else []
        for kind, (happens, per_min, shortest_s, longest_s) in plan.items()
    }


def _drawn(
    rng: np.random.Generator, kind: str, per_min: float, lasts_s: tuple[float, float], n: int, fs_hz: float
) -> list[_Episode]:
    duration_s = n / fs_hz
    starts_s, uniform = happenings(rng, per_min, duration_s, 4)
    stops_s = np.minimum(starts_s + lasts_s[0] + (lasts_s[1] - lasts_s[0]) * uniform[:, 0], duration_s)
    result = []
    for start_s, stop_s, numbers in zip(starts_s.tolist(), stops_s.tolist(), uniform, strict=True):
        span = samples_between(start_s, stop_s, n, fs_hz)
        if span.stop > span.start:
            result.append(_Episode(Artefact(kind, start_s, stop_s), span, numbers))
    return result


def _fade(episode: _Episode, sensor: Sensor, seen: Floats, waves: Floats) -> None:
    """Weaken the pulse to 5-50 %."""
    n = episode.span.stop - episode.span.start
    loss = (1 - 0.05 * 10 ** episode.uniform[1]) * ramps(n, 0.4)
    pulses = _pulse_sizes(sensor)[:, None] * (waves[:, episode.span] - _PULSE_MEAN)
    seen[:, episode.span] -= loss * pulses


_SHARED_MOTION = 0.7
"""Power of motion that all wavelengths see alike: they look at one place, at different depths."""


def _shake(episode: _Episode, sensor: Sensor, seen: Floats) -> None:
    """Add a burst of motion in 0.5-8 Hz, 10 dB below to 5 dB above the pulse (clinical notes, 8.3)."""
    n, fs_hz = episode.span.stop - episode.span.start, sensor.kind.fs_hz
    # A longer recording has the same burst, so the burst has a generator of its own.
    own = np.random.default_rng((episode.uniform[2:] * 2**53).astype(np.uint64))
    strength = PULSE_RMS * 10 ** ((5 - 15 * episode.uniform[1]) / 20)
    window = strength * ramps(n, 0.4)
    rows = seen.shape[0]
    drawn = [slow_noise(own, n, fs_hz, 0.5, 8.0) for _ in range(1 if rows == 1 else rows + 1)]
    if rows == 1:
        seen[0, episode.span] += window * drawn[0]
        return
    for row, alone in zip(seen, drawn[1:], strict=True):
        row[episode.span] += window * (math.sqrt(_SHARED_MOTION) * drawn[0] + math.sqrt(1 - _SHARED_MOTION) * alone)


def _converted(sensor: Sensor, seen: Floats, saturation: list[_Episode]) -> Floats:
    """Give counts (wavelength, time); saturation drives them to a rail, four times in five the upper one."""
    counts = seen
    counts *= -sensor.pulse_share if sensor.kind.inverted else sensor.pulse_share
    counts += sensor.level
    for episode in saturation:
        push = 1.2 if episode.uniform[1] < 0.8 else -1.2
        counts[:, episode.span] += push * ramps(episode.span.stop - episode.span.start, 0.1)
    counts *= 2**sensor.kind.bits - 1
    np.rint(counts, out=counts)
    np.clip(counts, 0, 2**sensor.kind.bits - 1, out=counts)
    return counts
