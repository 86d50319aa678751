"""People with a known truth: 12-lead ECG and PPG that are SYNTHETIC, from demographics to samples.

`simulate` gives a recording and everything that is true of it; `simulate_person` the recording alone. The shapes are
sums of Gaussians fitted for this project, the spreads those of published cohorts: good for exact truth and for a prior,
no substitute for people.
"""

import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from p2es.demographics import Demographics, Sex, parse_sex
from p2es.errors import InputError
from p2es.leads import LEADS
from p2es.recording import Recording, Signal, SignalKind
from p2es.simulator import electrodes as electrode_settings
from p2es.simulator import sensor as sensor_settings
from p2es.simulator.catalogue import MORPHOLOGIES, RHYTHMS, check
from p2es.simulator.ecg import heart_ecg
from p2es.simulator.electrodes import Electrodes, draw_electrodes, electrode_noise, worn
from p2es.simulator.heart import Heart, build_heart
from p2es.simulator.people import Person, draw_demographics, draw_person, on_a_day, recorded_demographics
from p2es.simulator.population import POPULATIONS, Population, draw_condition, population_named
from p2es.simulator.pulse import PulseTrain, draw_pulse, draw_train, pulse_wave
from p2es.simulator.rhythm import Rhythm, draw_rhythm
from p2es.simulator.sensor import SENSORS, Sensed, Sensor, draw_sensor, sample_times, sense
from p2es.simulator.truth import Truth, truth_of

__all__ = [
    "ECG_FS_HZ",
    "MORPHOLOGIES",
    "POPULATIONS",
    "RHYTHMS",
    "SENSORS",
    "VERSION",
    "Simulation",
    "names_of",
    "simulate",
    "simulate_person",
]

VERSION = 3
"""Goes up with every change of what is simulated, so that an older archive is not taken for a new one."""
ECG_FS_HZ = 250.0
"""Rate of the ECG unless another is asked for."""

# What a person keeps, and what each day draws anew. A longer recording leaves all but the noise alone.
_PERSON_PARTS = ("demographics", "person", "condition", "heart", "pulse", "sensor kind", "record")
_DAY_PARTS = ("day", "rhythm", "placement", "atria", "train", "sensor", "clock", "ppg noise", "electrodes", "ecg noise")
_MIN_DURATION_S, _MAX_DURATION_S = 1.0, 86_400.0
# Everything here is of adults.
_YOUNGEST, _OLDEST = 18.0, 100.0


@dataclass(frozen=True)
class Simulation:
    """A recording, and what is true of it.

    Attributes
    ----------
    recording : Recording
    truth : Truth
    clean_mv : array (8, time)
        The independent leads before noise, swapped or loose electrodes; same rate as the recording's ECG.
    """

    recording: Recording
    truth: Truth
    clean_mv: NDArray[np.float64]


def _generators(seed: int, index: int, population: str, day: int) -> dict[str, np.random.Generator]:
    """Give one generator a part, so that parts do not shift each other."""
    key = [seed, zlib.crc32(population.encode()), index]
    person = np.random.SeedSequence(key).spawn(len(_PERSON_PARTS))
    today = np.random.SeedSequence([*key, day]).spawn(len(_DAY_PARTS))
    seeds = zip((*_PERSON_PARTS, *_DAY_PARTS), (*person, *today), strict=True)
    return {part: np.random.default_rng(one) for part, one in seeds}


def simulate(
    seed: int,
    index: int,
    duration_s: float,
    population: str = "healthy",
    *,
    day: int = 0,
    rhythm: str | None = None,
    morphologies: Iterable[str] | None = None,
    demographics: Mapping[str, Any] | None = None,
    sensor: str | None = None,
    noise: bool = True,
    ecg_fs_hz: float = ECG_FS_HZ,
) -> Simulation:
    """Simulate one recording of one person, with its truth.

    Parameters
    ----------
    seed, index : int
        Not negative. The same pair gives the same samples, in whatever order or process people are made.
    duration_s : float
        1 s to a day. A day of 12 leads at 250 Hz takes 5.2 GB of memory and half a minute.
    population : str
        A name in `POPULATIONS`; `other` has settings that are kept out of training.
    day : int
        Another day of the same person: heart rate, intervals, axis, electrodes and pulse differ as they do in life.
    rhythm, morphologies : str, iterable of str, optional
        Instead of what the population would draw: names in `RHYTHMS` and `MORPHOLOGIES`.
    demographics : mapping, optional
        Fields of `Demographics` to change, everything else kept: the person's counterfactual twin. Effects of sex are
        those between people of equal height for their sex, so give the twin a height too.
    sensor : str, optional
        Its make, a name in `SENSORS`, instead of what the population would draw.
    noise : bool
        False leaves out the noise of electrodes and the faults of sensors.
    ecg_fs_hz : float
        100 to 2000.

    Raises
    ------
    InputError
        For a negative seed, index or day, an impossible duration or rate, an unknown name, or a combination that
        physiology does not allow.
    """
    _check(seed, index, day, duration_s, ecg_fs_hz, sensor)
    settings = population_named(population)
    rng = _generators(seed, index, population, day)
    known = _changed(draw_demographics(rng["demographics"], settings), demographics or {})
    drawn = draw_condition(rng["condition"], settings, known.age_years or 0.0)
    rhythm = drawn[0] if rhythm is None else rhythm
    shapes = check(drawn[1] if morphologies is None else morphologies, rhythm)
    person = on_a_day(rng["day"], draw_person(rng["person"], settings, known))
    heart = build_heart(rng["heart"], rng["placement"], person, shapes, settings.t_width)
    beats = draw_rhythm(rng["rhythm"], person, duration_s, rhythm)

    ecg = _record_ecg(rng, heart, beats, settings, duration_s, ecg_fs_hz, noise=noise)
    ppg = _record_ppg(rng, person, beats, settings, duration_s, sensor, noise=noise)
    truth = truth_of(
        person,
        heart,
        beats,
        ppg.train,
        duration_s=duration_s,
        delay_s=ppg.sensor.delay_s,
        clock=1 + 1e-6 * ppg.sensor.clock_drift_ppm,
        morphologies=shapes,
        sensor=_told(ppg.sensor),
        electrodes=_told(ecg.electrodes),
        artefacts=_artefacts(ppg.sensed, ecg.electrodes),
    )
    told = {name: value for name, value in truth.scalars().items() if not isinstance(value, dict | list)}
    motion = any(one.kind == "motion" for one in ppg.sensed.artefacts)
    recording = Recording(
        source="simulated",
        **names_of(index, population, day),
        signals=(*_leads(ecg.leads_mv, ecg_fs_hz), *_pulses(ppg)),
        demographics=recorded_demographics(rng["record"], known),
        r_peaks_s=truth.beats.r_s,
        simulated=True,
        provenance={"seed": seed, "population": population, "day": day, "device": ppg.sensor.name}
        | {"motion": str(motion).lower()}
        | told,
    )
    return Simulation(recording, truth, ecg.clean_mv)


def simulate_person(seed: int, index: int, duration_s: float, population: str = "healthy", **options: Any) -> Recording:
    """Simulate one recording of one person; parameters and errors as of `simulate`.

    Returns
    -------
    Recording
        12 leads in mV, the PPG of one sensor at the sensor's rate, and the R peaks. `provenance` holds the truth that
        fits in a line: `delay_s` (R peak to steepest rise, median over the beats), rate, intervals, axis and device.
    """
    return simulate(seed, index, duration_s, population, **options).recording


@dataclass(frozen=True)
class _Ecg:
    """What the electrodes recorded, and the leads before noise: (12, time) and (8, time)."""

    leads_mv: NDArray[np.float64]
    clean_mv: NDArray[np.float64]
    electrodes: Electrodes


@dataclass(frozen=True)
class _Ppg:
    """What the sensor recorded, of which pulses."""

    sensor: Sensor
    train: PulseTrain
    sensed: Sensed


_Generators = dict[str, np.random.Generator]


def _record_ecg(
    rng: _Generators, heart: Heart, beats: Rhythm, settings: Population, duration_s: float, fs_hz: float, *, noise: bool
) -> _Ecg:
    clean_mv = heart_ecg(rng["atria"], heart, beats, duration_s, fs_hz)
    conditions = settings.electrode_conditions if noise else electrode_settings.NONE
    electrodes = draw_electrodes(rng["electrodes"], conditions, duration_s)
    breath = beats.breathing.at(np.arange(clean_mv.shape[1]) / fs_hz)
    leads_mv = electrode_noise(rng["ecg noise"], electrodes, breath, fs_hz)
    leads_mv += clean_mv
    return _Ecg(worn(leads_mv, electrodes, fs_hz), clean_mv, electrodes)


def _record_ppg(
    rng: _Generators,
    person: Person,
    beats: Rhythm,
    settings: Population,
    duration_s: float,
    make: str | None,
    *,
    noise: bool,
) -> _Ppg:
    usual = settings.sensors[int(rng["sensor kind"].integers(len(settings.sensors)))]
    conditions = settings.sensor_conditions if noise else sensor_settings.CLEAN
    sensor = draw_sensor(rng["sensor"], (make or usual,), conditions)
    # What is said of the pulse holds for a sensor that sits well; one that is loose presses less.
    pressure = sensor.contact - 1
    pulse = draw_pulse(rng["pulse"], person, settings).pressed(pressure)
    train = draw_train(rng["train"], person, pulse, beats, pressure)
    at_s = sample_times(rng["clock"], sensor, duration_s)
    wave = pulse_wave(pulse, train, at_s, sensor.delay_s)
    waves = np.broadcast_to(wave, (len(sensor.kind.wavelengths), wave.size))
    return _Ppg(sensor, train, sense(rng["ppg noise"], sensor, waves, beats.breathing.at(at_s)))


def _check(seed: int, index: int, day: int, duration_s: float, ecg_fs_hz: float, sensor: str | None) -> None:
    if seed < 0 or index < 0 or day < 0:
        raise InputError(f"seed {seed}, person {index} and day {day} must not be negative: give 0 or more")
    if not _MIN_DURATION_S <= duration_s <= _MAX_DURATION_S:
        raise InputError(f"a duration of {duration_s:g} s cannot be simulated: give 1 s to 86400 s")
    if not 100 <= ecg_fs_hz <= 2000:
        raise InputError(f"an ECG at {ecg_fs_hz:g} Hz cannot be simulated: give 100 to 2000 Hz")
    if sensor is not None and sensor not in SENSORS:
        raise InputError(f"there is no sensor {sensor!r}: choose among {', '.join(SENSORS)}")


def _changed(demographics: Demographics, changes: Mapping[str, Any]) -> Demographics:
    unknown = sorted(set(changes) - set(Demographics.__dataclass_fields__))
    if unknown:
        raise InputError(f"demographics have no field {unknown[0]!r}: they have age_years, sex, height_cm, weight_kg")
    changed = replace(demographics, **changes)
    if not isinstance(changed.sex, Sex):
        sex = parse_sex(str(changed.sex))
        if sex is None:
            raise InputError(f"{changed.sex!r} is no sex that is known here: give F or M")
        changed = replace(changed, sex=sex)
    age = changed.age_years
    if age is not None and not _YOUNGEST <= age <= _OLDEST:
        raise InputError(f"a person of {age:g} years cannot be simulated: give {_YOUNGEST:g} to {_OLDEST:g}")
    return changed


def names_of(index: int, population: str, day: int) -> dict[str, str]:
    """Give the names of record and person; days after the first are records of the same person."""
    name = f"{index:06d}" if population == "healthy" else f"{population}-{index:06d}"
    return {"record": f"record-{name}" + (f"-{day}" if day else ""), "person": f"person-{name}"}


def _leads(ecg_mv: NDArray[np.float64], fs_hz: float) -> tuple[Signal, ...]:
    return tuple(
        Signal(name, SignalKind.ECG, row, fs_hz, "mV", lead=name) for name, row in zip(LEADS, ecg_mv, strict=True)
    )


def _pulses(ppg: _Ppg) -> tuple[Signal, ...]:
    kind = ppg.sensor.kind
    names = ["Pleth"] if len(kind.wavelengths) == 1 else [f"PPG {light}" for light in kind.wavelengths]
    rows = zip(names, ppg.sensed.samples, strict=True)
    return tuple(Signal(name, SignalKind.PPG, row, kind.fs_hz, ppg.sensed.unit) for name, row in rows)


def _artefacts(sensed: Sensed, electrodes: Electrodes) -> tuple[tuple[str, str, float, float], ...]:
    """Give (signal or electrode, what, start, stop) of all that spoiled signals for a while."""
    return (
        *(("PPG", one.kind, one.start_s, one.stop_s) for one in sensed.artefacts),
        *((one.electrode, "muscle", one.start_s, one.stop_s) for one in electrodes.bursts),
        *((one.electrode, "motion", one.start_s, one.start_s + one.lasts_s) for one in electrodes.motion),
        *((one.electrode, "off", one.start_s, one.stop_s) for one in electrodes.off),
    )


def _told(device: Sensor | Electrodes) -> dict[str, Any]:
    """Give what was drawn for a device, without what its make fixes and what `_artefacts` tells."""
    elsewhere = {"kind", "conditions"} | ({"bursts", "motion", "off"} if isinstance(device, Electrodes) else set())
    return {one.name: getattr(device, one.name) for one in fields(device) if one.name not in elsewhere}
