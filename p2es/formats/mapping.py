"""Declared layouts: what the columns of a table or the variables of a MATLAB file are.

Nothing in a CSV or a MATLAB file says unit, lead or rate, so such a file is read only by a mapping that a person wrote
down. The shipped ones lie in `mappings/`, with the evidence for what they declare; a user's own is a file of the same
form (docs/data.md).
"""

import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from p2es.demographics import Sex
from p2es.errors import ConfigError
from p2es.formats.naming import to_millivolt
from p2es.leads import canonical_lead
from p2es.recording import SignalKind

At = str | int
_FIELDS = ("age_years", "sex", "height_cm", "weight_kg")
MAX_BYTES = 1 << 20


@dataclass(frozen=True)
class Column:
    """A signal of a layout.

    Attributes
    ----------
    at : str or int
        Name or number of a column; of a MATLAB file a path, `ECG.data[0]` (row) or `signal[:,0]` (column).
    name : str
        Name of the signal.
    kind : SignalKind
    unit : str
        For an ECG "mV", "uV" or "V" only where the archive's description or evidence says so; "unknown" keeps it out
        of the targets.
    lead : str or None
        Standard lead; without one, the lead that the name says.
    gain : float or None
        Converter steps a unit.
    missing : float or None
        Value of a missing sample, in converter steps where there is a gain, else as written.
    beside : bool
        Whether it is in the file beside (`Beside`).
    fs_at : str
        Path of its own rate in a MATLAB file.
    """

    at: At
    name: str
    kind: SignalKind
    unit: str = "unknown"
    lead: str | None = None
    gain: float | None = None
    missing: float | None = None
    beside: bool = False
    fs_at: str = ""

    @property
    def millivolt(self) -> float | None:
        """What a value is multiplied by to become millivolt; None for a PPG and an unknown unit."""
        return to_millivolt(self.unit) if self.kind is SignalKind.ECG else None

    @property
    def stored_unit(self) -> str:
        """Unit of the signal once it is read."""
        if self.kind is SignalKind.PPG:
            return self.unit
        return "unknown" if self.millivolt is None else "mV"

    @property
    def missing_value(self) -> float | None:
        """Value of a missing sample as it stands in the file."""
        return self.missing / self.gain if self.missing is not None and self.gain else self.missing


@dataclass(frozen=True)
class Match:
    """What makes a file one of a layout: all that is given must hold.

    Attributes
    ----------
    columns : tuple of str
        Names that the header of a table must have.
    width : int or None
        Number of columns of a table without a header.
    headers : tuple of tuple of str
        Headers that such a table may have all the same; its columns are known by number.
    counter : int or None
        Number of a column that counts up by one: what tells one table without a header from another.
    variables : tuple of str
        Paths that a MATLAB file must have.
    file : str
        Regular expression that must be found in the file's name.
    """

    columns: tuple[str, ...] = ()
    width: int | None = None
    headers: tuple[tuple[str, ...], ...] = ()
    counter: int | None = None
    variables: tuple[str, ...] = ()
    file: str = ""


@dataclass(frozen=True)
class Time:
    """Column of the time, from which the rate is measured; `unit_s` is seconds of one of its units."""

    at: At
    unit_s: float


@dataclass(frozen=True)
class Rate:
    """A rate: declared, or at a path of a MATLAB file; and why it is believed."""

    fs_hz: float | None = None
    at: str = ""
    source: str = ""


@dataclass(frozen=True)
class Value:
    """Where a demographic field stands, and what its codes mean; without codes, as `parse_sex` reads it."""

    at: At
    codes: Mapping[str, Sex | None] | None = None


@dataclass(frozen=True)
class Beside:
    """A second file of the record, on the same clock: the name's end `replace` becomes `by`."""

    replace: str
    by: str


@dataclass(frozen=True)
class Layout:
    """A layout.

    Attributes
    ----------
    name, description, licence : str
    kind : str
        "table" (CSV or Parquet), "mat", or "wfdb": which two records are one recording; all else their headers say.
    match : Match
    signals : tuple of Column
        Those that a file does not have are passed over: BIDMC's leads differ from person to person.
    time : Time or None
    rate : Rate or None
        With a time as well, the measured rate must agree within 1 %.
    person : str
        Regular expression on the file's name without endings; its first group is the person. Empty: the whole name.
    person_at : str or int or None
        Column or path that holds the person instead.
    demographics : mapping of str to Value
    padding : float or None
        Rows at the end whose signals all have this value were never recorded.
    each : str
        A MATLAB structure array: each element is a recording.
    labels_at : str
        A MATLAB cell of the columns' names, which must agree where it is there.
    beside : Beside or None
    tried : bool
        Whether files of the archive were read with it here, or only its documentation followed.
    """

    name: str
    kind: str
    match: Match
    signals: tuple[Column, ...]
    description: str = ""
    licence: str = ""
    time: Time | None = None
    rate: Rate | None = None
    person: str = ""
    person_at: At | None = None
    demographics: Mapping[str, Value] = field(default_factory=dict)
    padding: float | None = None
    each: str = ""
    labels_at: str = ""
    beside: Beside | None = None
    tried: bool = True

    @property
    def headed(self) -> bool:
        """Whether the columns are known by names."""
        return not self.match.width

    def person_of(self, file_name: str) -> str:
        """Give the person that a file's name says."""
        stem = file_name.split("/")[-1]
        stem = re.sub(r"(?i)(\.(csv|tsv|txt|parquet|mat|gz))+$", "", stem)
        found = re.search(self.person, stem) if self.person else None
        return found.group(1) if found else stem


class _Table:
    """A table of a TOML file, with errors that name file and key; what nobody took is an unknown key."""

    def __init__(self, values: Mapping[str, Any], where: str, path: str = "") -> None:
        self.values, self.where, self.path = dict(values), where, path

    def wrong(self, key: str, what: str) -> ConfigError:
        return ConfigError(f"{self.where}: {self.path}{key} {what}")

    def take(self, key: str, kinds: type | tuple[type, ...], default: Any) -> Any:
        value = self.values.pop(key, None)
        if value is None:
            if default is ...:
                raise self.wrong(key, "is missing: add it")
            return default
        allowed = kinds if isinstance(kinds, tuple) else (kinds,)
        # TOML's true is Python's int 1.
        if not isinstance(value, allowed) or (isinstance(value, bool) and bool not in allowed):
            words = {str: "text", int: "a whole number", float: "a number", bool: "true or false", list: "a list"}
            said = " or ".join(dict.fromkeys(words.get(kind, "a table") for kind in allowed))
            raise self.wrong(key, f"must be {said}")
        return value

    def number(self, key: str) -> float | None:
        value = self.take(key, (int, float), None)
        if value is not None and not abs(value) < 1e12:
            raise self.wrong(key, "must be a finite number")
        return None if value is None else float(value)

    def positive(self, key: str) -> float | None:
        value = self.number(key)
        if value is not None and value <= 0:
            raise self.wrong(key, "must be above 0")
        return value

    def index(self, key: str) -> int | None:
        value = self.take(key, int, None)
        if value is not None and not 0 <= value < 10_000:
            raise self.wrong(key, "must be a number from 0 to 9999")
        return None if value is None else int(value)

    def place(self, key: str, default: Any = None) -> Any:
        value = self.take(key, (str, int), default)
        if isinstance(value, int) and not 0 <= value < 10_000:
            raise self.wrong(key, "must be a name, or a number from 0 to 9999")
        return value.strip() if isinstance(value, str) else value

    def texts(self, key: str) -> tuple[str, ...]:
        value = self.take(key, list, [])
        if not all(isinstance(item, str) for item in value):
            raise self.wrong(key, "must be a list of texts")
        return tuple(item.strip() for item in value)

    def pattern(self, key: str, groups: int = 0) -> str:
        value: str = self.take(key, str, "")
        try:
            if value and re.compile(value).groups < groups:
                raise self.wrong(key, "needs a group in brackets")
        except (re.error, RecursionError, OverflowError) as error:
            raise self.wrong(key, "is no regular expression") from error
        return value

    def table(self, key: str) -> "_Table | None":
        value = self.take(key, dict, None)
        return None if value is None else _Table(value, self.where, f"{self.path}{key}.")

    def done(self) -> None:
        for key in self.values:
            raise self.wrong(key, "is not known: correct it or leave it out")


def read_toml(path: Path) -> _Table:
    """Read a TOML file.

    Raises
    ------
    ConfigError
        When it is not there, too large or no TOML.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(
            f"{path.name} cannot be read ({type(error).__name__}): give the path of a TOML file"
        ) from None
    if len(data) > MAX_BYTES:
        raise ConfigError(f"{path.name} is larger than {MAX_BYTES} bytes: give a TOML file")
    try:
        return _Table(tomllib.loads(data.decode("utf-8")), path.name)
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError, ValueError) as error:
        reason = str(error).split("\n")[0]
        raise ConfigError(f"{path.name} is no TOML ({reason}): correct it") from None


def load_mapping(path: str | Path) -> Layout:
    """Read a mapping.

    Raises
    ------
    ConfigError
        When it cannot be used; the message names the file and the key.
    """
    table = read_toml(Path(path).expanduser())
    kind = table.take("kind", str, ...)
    if kind == "wfdb":
        return _pair(table)
    if kind not in {"table", "mat"}:
        raise table.wrong("kind", "must be table, mat or wfdb")
    person = table.table("person")
    mapping = Layout(
        name=table.take("name", str, ...),
        kind=kind,
        match=_match(table, kind),
        signals=_signals(table, kind),
        description=table.take("description", str, ""),
        licence=table.take("licence", str, ""),
        time=_time(table),
        rate=_rate(table, kind),
        person=person.pattern("file", 1) if person else "",
        person_at=person.place("at") if person else None,
        demographics=demographics_of(table.table("demographics")),
        padding=table.number("padding"),
        each=table.take("each", str, ""),
        labels_at=table.take("labels_at", str, ""),
        beside=_beside(table, kind),
        tried=table.take("tried", bool, True),
    )
    if person:
        person.done()
    table.done()
    _check(mapping, table)
    return mapping


def _pair(table: _Table) -> Layout:
    """Read what declares two WFDB records as one recording."""
    match, person = table.table("match"), table.table("person")
    file = match.pattern("file") if match else ""
    mapping = Layout(
        name=table.take("name", str, ...),
        kind="wfdb",
        match=Match(file=file),
        signals=(),
        description=table.take("description", str, ""),
        licence=table.take("licence", str, ""),
        person=person.pattern("file", 1) if person else "",
        beside=_beside(table, "wfdb"),
        tried=table.take("tried", bool, True),
    )
    for inner in (match, person, table):
        if inner is not None:
            inner.done()
    if not file:
        raise table.wrong("match.file", "is missing: say which headers have a second record")
    if mapping.beside is None:
        raise table.wrong("beside", "is missing: say how the second header is called")
    return mapping


def _check(mapping: Layout, table: _Table) -> None:
    if not (mapping.time or mapping.rate or all(column.fs_at for column in mapping.signals)):
        raise table.wrong("time", "is missing, and so is rate: without one the rate is unknown")
    if mapping.beside is None and any(column.beside for column in mapping.signals):
        raise table.wrong("beside", "is missing, but a signal is said to be there")
    if mapping.kind == "table" and not mapping.headed:
        places = [column.at for column in mapping.signals] + ([mapping.time.at] if mapping.time else [])
        if not all(isinstance(at, int) and at < (mapping.match.width or 0) for at in places):
            raise table.wrong("signals", "of a table without a header are known by numbers below its width")


def _match(table: _Table, kind: str) -> Match:
    inner = table.table("match")
    if inner is None:
        raise table.wrong("match", "is missing: say what makes a file of this layout")
    headers = inner.take("headers", list, [])
    if not all(isinstance(header, list) and all(isinstance(name, str) for name in header) for header in headers):
        raise inner.wrong("headers", "must be a list of lists of texts")
    match = Match(
        columns=inner.texts("columns"),
        width=inner.index("width"),
        headers=tuple(tuple(name.strip() for name in header) for header in headers),
        counter=inner.index("counter"),
        variables=inner.texts("variables"),
        file=inner.pattern("file"),
    )
    inner.done()
    if kind == "mat" and not match.variables:
        raise inner.wrong("variables", "is missing: name the variables that such a file has")
    if kind == "table" and bool(match.columns) == bool(match.width):
        raise inner.wrong("columns", "or width must be given, one of the two")
    return match


def _signals(table: _Table, kind: str) -> tuple[Column, ...]:
    listed = table.take("signals", list, ...)
    if not listed or len(listed) > 512 or not all(isinstance(item, dict) for item in listed):
        raise table.wrong("signals", "must be 1 to 512 tables, [[signals]]")
    return tuple(_column(_Table(item, table.where, f"signals[{k}]."), kind) for k, item in enumerate(listed))


def _column(table: _Table, kind: str) -> Column:
    at = table.place("at", ...)
    signal_kind = table.take("kind", str, ...)
    if signal_kind not in set(SignalKind):
        raise table.wrong("kind", "must be ecg or ppg")
    lead = table.take("lead", str, None)
    if lead is not None and canonical_lead(lead) is None:
        raise table.wrong("lead", "is none of the twelve")
    name = table.take("name", str, str(at))
    column = Column(
        at=at,
        name=name,
        kind=SignalKind(signal_kind),
        unit=table.take("unit", str, "unknown"),
        lead=canonical_lead(lead or name) if signal_kind == "ecg" else None,
        gain=table.positive("gain"),
        missing=table.number("missing"),
        beside=table.take("beside", bool, False),
        fs_at=table.take("fs_at", str, ""),
    )
    if kind == "mat" and not isinstance(at, str):
        raise table.wrong("at", "must be a path such as ECG.data[0]")
    table.done()
    return column


def _time(table: _Table) -> Time | None:
    inner = table.table("time")
    if inner is None:
        return None
    unit_s = inner.positive("unit_s")
    if unit_s is None:
        raise inner.wrong("unit_s", "is missing: say how many seconds one unit of the time is")
    time = Time(inner.place("at", ...), unit_s)
    inner.done()
    return time


def _rate(table: _Table, kind: str) -> Rate | None:
    inner = table.table("rate")
    if inner is None:
        return None
    rate = Rate(inner.positive("fs_hz"), inner.take("at", str, ""), inner.take("source", str, ""))
    inner.done()
    if (rate.fs_hz is None) == (not rate.at):
        raise inner.wrong("fs_hz", "or at must be given, one of the two")
    if rate.fs_hz is not None and not 1.0 <= rate.fs_hz <= 100_000.0:
        raise inner.wrong("fs_hz", "must be from 1 to 100000")
    if rate.fs_hz is not None and not rate.source:
        raise inner.wrong("source", "is missing: say why the rate is believed")
    if rate.at and kind != "mat":
        raise inner.wrong("at", "is for MATLAB files: a table has a time column or a rate that is declared")
    return rate


def _beside(table: _Table, kind: str) -> Beside | None:
    inner = table.table("beside")
    if inner is None:
        return None
    beside = Beside(inner.take("replace", str, ...), inner.take("by", str, ...))
    inner.done()
    if kind == "mat" or not beside.replace or "/" in beside.by or beside.by == beside.replace:
        raise inner.wrong("by", "must be another ending of a file name, of tables or WFDB headers")
    if kind == "wfdb" and not (beside.replace.endswith(".hea") and beside.by.endswith(".hea")):
        raise inner.wrong("by", "and replace must end in .hea")
    return beside


def demographics_of(table: "_Table | None") -> dict[str, Value]:
    """Read the declared demographic fields, at most one of each."""
    result: dict[str, Value] = {}
    if table is None:
        return result
    for name in _FIELDS:
        inner = table.table(name)
        if inner is None:
            continue
        at = inner.place("at", ...)
        codes = inner.take("codes", dict, None)
        if codes is not None and (name != "sex" or not set(codes.values()) <= {"F", "M", ""}):
            raise inner.wrong("codes", "are for sex, and say F, M or nothing")
        inner.done()
        result[name] = Value(at, None if codes is None else {k: Sex(v) if v else None for k, v in codes.items()})
    table.done()
    return result


@cache
def shipped() -> tuple[Layout, ...]:
    """Give the mappings that come with p2es, by name."""
    return tuple(load_mapping(path) for path in sorted((Path(__file__).parent / "mappings").glob("*.toml")))


def layout_of(
    kind: str, file_name: str, has: Callable[[Layout], bool], mappings: tuple[Layout, ...] = ()
) -> Layout | None:
    """Find the layout of a file: the user's own first, then the shipped; None when it is of none.

    Parameters
    ----------
    kind : str
    file_name : str
    has : callable
        Tells whether the file has what the mapping's `match` asks for.
    mappings : tuple of Layout
    """
    for mapping in (*mappings, *shipped()):
        named = not mapping.match.file or re.search(mapping.match.file, file_name) is not None
        if mapping.kind == kind and named and has(mapping):
            return mapping
    return None
