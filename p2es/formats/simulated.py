"""Archives that are an address alone: the people are simulated when their records are read, and no file is written.

`simulated:clinic,people=600,seed=0,duration_s=82` gives the recordings that `p2es simulate` writes with these numbers,
before WFDB rounds them to 16 bits (1 µV for an ECG, 1/40,000 of its range for a PPG).
"""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import gcd

from p2es.demographics import parse_number
from p2es.errors import ConfigError, InputError, P2EsError, RecordError
from p2es.formats.find import RecordRef, Survey
from p2es.recording import Recording
from p2es.simulator import VERSION, names_of, simulate_person
from p2es.simulator.population import population_named
from p2es.simulator.sensor import SENSORS

PREFIX = "simulated:"
_SHORTEST_S, _LONGEST_S = 12.0, 86_400.0
"""One window and its margins; what the simulator gives at most."""
_MOST_A_FRAME = 1000
"""Samples of a signal in a frame of a WFDB record."""
_LEADS = 12
_BYTES_A_SAMPLE = 2


@dataclass(frozen=True)
class SimulateConfig:
    """The people who are simulated when no archive is given."""

    people: int = 600
    """People of the archive."""
    duration_s: float = 82.0
    """Length of a recording, seconds."""
    seed: int = 0
    """The same seed gives the same bytes, whatever the number of workers."""
    population: str = "healthy"
    """healthy, clinic (a mix), ward, stress (everything at once), or other (for testing: never train on it)."""
    days: int = 1
    """Recordings of each person, on different days."""
    ecg_fs_hz: float = 250.0
    """Rate of the ECG; that of the PPG is the sensor's."""

    def __post_init__(self) -> None:
        try:
            rates_hz = {SENSORS[name].fs_hz for name in population_named(self.population).sensors}
        except InputError as error:
            raise ConfigError(f"simulate.population: {error}") from None
        for name, least in (("people", 1), ("days", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"simulate.{name} is {getattr(self, name)}: give {least} or more")
        if not _SHORTEST_S <= self.duration_s <= _LONGEST_S:
            raise ConfigError(f"simulate.duration_s is {self.duration_s:g}: give {_SHORTEST_S:g} to {_LONGEST_S:g} s")
        if not (100 <= self.ecg_fs_hz <= 2000 and self.ecg_fs_hz == int(self.ecg_fs_hz)):
            raise ConfigError(f"simulate.ecg_fs_hz is {self.ecg_fs_hz:g}: give a whole number of 100 to 2000 Hz")
        frames_hz = [gcd(int(self.ecg_fs_hz), int(rate_hz)) for rate_hz in rates_hz]
        if max(self.ecg_fs_hz, *rates_hz) / min(frames_hz) > _MOST_A_FRAME:
            raise ConfigError(
                f"simulate.ecg_fs_hz is {self.ecg_fs_hz:g}: shares no frame with the sensors, give 250, 500 or 1000"
            )

    @property
    def records(self) -> int:
        """How many recordings there are."""
        return self.people * self.days

    def person_and_day(self, number: int) -> tuple[int, int]:
        """Give whose recording one is, counted from 0, and of which day: the days of a person follow each other."""
        return divmod(number, self.days)

    @property
    def address(self) -> str:
        """The archive's address, with every number."""
        numbers = (f"{name}={_plain(getattr(self, name))}" for name in _NUMBERS)
        return f"{PREFIX}{self.population},{','.join(numbers)}"


_NUMBERS: dict[str, type[int] | type[float]] = {
    "people": int,
    "duration_s": float,
    "seed": int,
    "days": int,
    "ecg_fs_hz": float,
}


def _plain(value: float) -> str:
    return f"{value:.12g}"


def in_whole_frames(recording: Recording) -> Recording:
    """Cut off what is no whole frame of all signals at the end, under 1 s: WFDB, and only it, cannot keep that."""
    frame_hz = gcd(*(int(signal.fs_hz) for signal in recording.signals))
    frames = min(int(signal.samples.size / signal.fs_hz * frame_hz + 1e-6) for signal in recording.signals)
    return recording.between(0.0, frames / frame_hz)


def is_simulated(where: str) -> bool:
    """Tell whether an address names people to simulate rather than files."""
    return where.startswith(PREFIX)


def parse(where: str, defaults: SimulateConfig | None = None) -> SimulateConfig:
    """Read an address: `simulated:POPULATION,name=number,...`; what it does not say is as in `defaults`.

    Raises
    ------
    InputError
        For a name or number that is none.
    ConfigError
        For one that cannot be simulated.
    """
    words = re.split(r"[,?&]", where.removeprefix(PREFIX))
    given: dict[str, object] = {"population": words[0]} if words[0] and "=" not in words[0] else {}
    for word in filter(None, words[bool(given) :]):
        name, _, value = word.partition("=")
        given[name] = _number(name, value)
    return replace(defaults or SimulateConfig(), **given)  # type: ignore[arg-type]


def _number(name: str, value: str) -> float:
    if name not in _NUMBERS:
        raise InputError(
            f"a simulated archive has no {name!r}: give {', '.join(_NUMBERS)}, as in simulated:clinic,people=9"
        )
    try:
        return _NUMBERS[name](value)
    except ValueError:
        raise InputError(f"{name}={value} in the address of a simulated archive is no number: write {name}=9") from None


def survey(where: str) -> Survey:
    """Give the recordings of an address as references, which are read as any other record is."""
    config = parse(where)
    size = round(config.duration_s * (_LEADS * config.ecg_fs_hz + 100)) * _BYTES_A_SAMPLE
    shared = f"seed={config.seed},duration_s={_plain(config.duration_s)},ecg_fs_hz={_plain(config.ecg_fs_hz)}"
    records = []
    for index, day in map(config.person_and_day, range(config.records)):
        path = f"{PREFIX}{config.population},{shared},index={index},day={day}"
        records.append(RecordRef(path, "simulated", names_of(index, config.population, day)["record"], size))
    return Survey(sorted(records, key=lambda reference: reference.name))


def key_of(reference: RecordRef) -> str:
    """Give what stands for the hash of the bytes of a record that has none: its parameters, and the simulator's."""
    return hashlib.sha256(f"{reference.path} by simulator {VERSION}".encode()).hexdigest()


def read(reference: RecordRef, source: str) -> Iterator[Recording]:
    """Simulate the recording of a reference.

    Raises
    ------
    RecordError
        When the reference is none that `survey` gave.
    """
    found = re.fullmatch(
        rf"{PREFIX}(\w+),seed=(\d+),duration_s=([\d.e+]+),ecg_fs_hz=([\d.]+),index=(\d+),day=(\d+)", reference.path
    )
    if not found:
        raise RecordError(f"{reference.path} is not the address of a simulated record", "header")
    population, seed, duration_s, ecg_fs_hz, index, day = found.groups()
    try:
        made = simulate_person(
            int(seed), int(index), float(duration_s), population, day=int(day), ecg_fs_hz=float(ecg_fs_hz)
        )
    except P2EsError as error:
        raise RecordError(str(error), "header") from None
    # An archive keeps no age above 89, nor does any reader.
    age = made.demographics.age_years
    known = (
        made.demographics
        if age is None
        else replace(made.demographics, age_years=parse_number(f"{age:g}", "age_years"))
    )
    yield replace(in_whole_frames(made), source=source, demographics=known, provenance={"format": "simulated"})
