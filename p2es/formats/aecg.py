"""HL7 annotated ECG (aECG, FDA): the rhythm of an XML file, a recording a sequence set.

Representative beats and other derived series are no recordings and are left out; so is everything that says who it
was (name, race, dates, sites). The XML is read as a stream, without a tree, by defusedxml: no entity, no document type.

Source: HL7 v3 Annotated ECG, PORT_MT020001, and its implementation guide of 2005.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from p2es.demographics import Demographics
from p2es.errors import RecordError
from p2es.formats.naming import kind_of, lead_of, to_millivolt
from p2es.formats.spool import Spool
from p2es.formats.subject import age_at, day_of, person_of, sex_of
from p2es.recording import LazySamples, Recording, Samples, Signal, SignalKind

# A day of 12 leads at 500 Hz would be 2 GB of digits; trials store 10 s (500 kB) to some minutes.
MAX_BYTES = 512 << 20
MAX_DEPTH = 64
MAX_SEQUENCES = 512
# Expat 2.5 scans a token from its beginning with each piece it gets: large pieces keep that from growing as n^2.
_PIECE_BYTES = 1 << 22
_BUFFER = 1 << 18
_SECONDS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "min": 60.0}
_LEAD = "MDC_ECG_LEAD_"
_NUMBER = re.compile(r"\s*[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d{1,3})?\s*", re.ASCII)


@dataclass
class _Sequence:
    """One sequence of a set: times, or the digits of a lead."""

    code: str = ""
    values: dict[str, tuple[float, str]] = field(default_factory=dict)
    digits: Spool = field(default_factory=Spool)

    @property
    def kind(self) -> SignalKind | None:
        unit = self.values.get("scale", (0.0, ""))[1]
        if self.code.startswith(_LEAD):
            return SignalKind.ECG if unit.lower() not in {"%", "mmhg"} else None
        return kind_of(self.code, unit)


@dataclass
class _Subject:
    """What is kept of the person, and two dates until the age is known."""

    person: str = ""
    sex: str = ""
    birth: str = ""
    day: str = ""

    def demographics(self) -> Demographics:
        return Demographics(age_at(day_of(self.birth), day_of(self.day)), sex_of(self.sex))


def is_mine(head: bytes) -> bool:
    """Tell by the beginning of a file whether it is an aECG."""
    text = head.decode("utf-16", "ignore") if head[:2] in {b"\xff\xfe", b"\xfe\xff"} else head.decode("latin-1")
    return text.lstrip("\ufeff\u00ef\u00bb\u00bf \t\r\n").startswith("<") and bool(
        re.search(r"<(?:\w+:)?AnnotatedECG[\s>]", text)
    )


def read(path: Path, name: str, source: str, skipped: list[RecordError]) -> Iterator[Recording]:
    """Read a file, a recording for each sequence set of a rhythm.

    Parameters
    ----------
    path : Path
    name : str
        Name of the record in the archive; from the second on, sets get `name/part-2` and so on.
    source : str
        Institution family.
    skipped : list of RecordError
        Gets an entry for each set and each lead that cannot be read while others can.

    Raises
    ------
    RecordError
        When nothing of it can be read: `header` (no aECG), `unreadable` (no XML, or one with entities), `no_signal`,
        `rate`, `too_large`, `missing_file`.
    """
    errors: list[RecordError] = []
    found = 0
    target = _Target(path.name)
    try:
        for leads in _sets(path, target):
            try:
                signals = tuple(_signals(leads, path.name, errors))
            except RecordError as error:
                errors.append(error)
                continue
            found += 1
            person = person_of(target.subject.person, path.stem)
            label = name if found == 1 else f"{name}/part-{found}"
            demographics = target.subject.demographics()
            yield Recording(label, source, person, signals, demographics, provenance={"format": "aecg"})
    except RecordError as error:
        errors.append(error)
    if not found:
        raise (errors[0] if errors else RecordError(f"{path.name} holds no rhythm: it has no waveform", "no_signal"))
    skipped += errors


def _sets(path: Path, target: "_Target") -> Iterator[list[_Sequence]]:
    """Feed the file to the parser piece by piece, and give each sequence set once it is whole."""
    from xml.etree.ElementTree import ParseError

    from defusedxml import DefusedXmlException
    from defusedxml.ElementTree import DefusedXMLParser

    parser = DefusedXMLParser(target=target, forbid_dtd=True)
    try:
        with path.open("rb") as file:
            if file.seek(0, 2) > MAX_BYTES:
                raise RecordError(f"{path.name} is over {MAX_BYTES >> 20} MiB of XML: cut it", "too_large")
            file.seek(0)
            while piece := file.read(_PIECE_BYTES):
                parser.feed(piece)
                yield from target.take()
            parser.close()
            yield from target.take()
    except OSError as error:
        raise RecordError(f"{path.name} cannot be opened ({error.strerror}): fetch it", "missing_file") from error
    except DefusedXmlException as error:
        raise RecordError(
            f"{path.name} declares a document type or entities, which an aECG has not: it is not read", "unreadable"
        ) from error
    except (ParseError, ValueError, LookupError) as error:
        # LookupError: an encoding that is none.
        raise RecordError(f"{path.name} is no well-formed XML: fetch it again", "unreadable") from error


class _Target:
    """What the parser calls: keeps the subject and the sequence sets of rhythms, and nothing else."""

    def __init__(self, name: str) -> None:
        self.subject = _Subject()
        self._name = name
        self._path: list[str] = []
        self._rhythm: list[bool] = []
        self._whole: list[list[_Sequence]] = []
        self._set: list[_Sequence] | None = None
        self._sequence: _Sequence | None = None
        self._text: list[str] | None = None
        self._buffered = 0

    def take(self) -> list[list[_Sequence]]:
        """Give the sets that became whole since the last call."""
        whole, self._whole = self._whole, []
        return whole

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        """Enter an element."""
        here = tag.rsplit("}", 1)[-1]
        if not self._path and here != "AnnotatedECG":
            raise RecordError(f"{self._name} is XML, but no annotated ECG", "header")
        if len(self._path) >= MAX_DEPTH:
            raise RecordError(f"{self._name} is nested over {MAX_DEPTH} deep: it is no annotated ECG", "header")
        above = self._path[-1] if self._path else ""
        self._path.append(here)
        if here in {"series", "derivedSeries"}:
            self._rhythm.append(here == "series")
        elif here == "code" and above in {"series", "derivedSeries"} and self._rhythm:
            self._rhythm[-1] &= attributes.get("code", "").upper() != "REPRESENTATIVE_BEAT"
        elif here == "sequenceSet" and self._rhythm and self._rhythm[-1]:
            self._set = []
        elif self._set is not None:
            self._in_set(here, above, attributes)
        elif not self._rhythm:
            self._of_subject(here, above, attributes)

    def _in_set(self, here: str, above: str, attributes: dict[str, str]) -> None:
        assert self._set is not None
        if here == "sequence":
            if len(self._set) >= MAX_SEQUENCES:
                raise RecordError(f"{self._name} has over {MAX_SEQUENCES} leads: it is no annotated ECG", "header")
            self._sequence = _Sequence()
            self._set.append(self._sequence)
        elif self._sequence is None:
            return
        elif here == "code" and above == "sequence":
            self._sequence.code = attributes.get("code", "")[:64]
        elif here in {"increment", "origin", "scale"}:
            text = attributes.get("value", "")
            value = float(text) if _NUMBER.fullmatch(text) else math.nan
            self._sequence.values[here] = (value, attributes.get("unit", "")[:16])
        elif here == "digits":
            self._text = []

    def _of_subject(self, here: str, above: str, attributes: dict[str, str]) -> None:
        subject, value = self.subject, attributes.get("value", "")[:32]
        if here == "id" and above == "trialSubject":
            subject.person = attributes.get("extension", "")[:128]
        elif here == "administrativeGenderCode":
            subject.sex = attributes.get("code", "")[:8]
        elif here == "birthTime":
            subject.birth = value
        elif here in {"center", "low"} and self._path[:-1] == ["AnnotatedECG", "effectiveTime"]:
            subject.day = subject.day or value

    def data(self, text: str) -> None:
        """Take a piece of text: only digits are kept."""
        if self._text is None:
            return
        self._text.append(text)
        self._buffered += len(text)
        if self._buffered > _BUFFER:
            self._flush(last=False)

    def _flush(self, *, last: bool) -> None:
        """Turn buffered digits into numbers; the last word may go on in the next piece."""
        assert self._text is not None
        assert self._sequence is not None
        text = "".join(self._text)
        end = len(text) if last else max(text.rfind(" "), text.rfind("\n"), text.rfind("\t"))
        if end <= 0 and not last:
            raise RecordError(f"{self._name} has digits without blanks: they are no samples", "unreadable")
        self._text, self._buffered = [text[end:]], len(text) - end
        try:
            values = np.array(text[:end].split(), np.float64)
        except ValueError as error:
            raise RecordError(f"{self._name} has digits that are no numbers: fetch it again", "unreadable") from error
        self._sequence.digits.append(np.where(np.abs(values) < 1e30, values, np.nan))

    def end(self, tag: str) -> None:
        """Leave an element."""
        here = self._path.pop()
        if here == "digits" and self._text is not None:
            self._flush(last=True)
            self._text, self._buffered = None, 0
        elif here == "sequence":
            self._sequence = None
        elif here == "sequenceSet" and self._set is not None:
            self._whole.append(self._set)
            self._set = None
        elif here in {"series", "derivedSeries"}:
            self._rhythm.pop()

    def close(self) -> None:
        """End the file."""


def _signals(sequences: list[_Sequence], name: str, errors: list[RecordError]) -> Iterator[Signal]:
    """Give the signals of a set; RecordError when it has none, or no rate."""
    fs_hz = _rate(sequences, name)
    count = 0
    for sequence in sequences:
        kind = sequence.kind
        if kind is None or sequence.digits.size < 2:
            continue
        scale, unit = sequence.values.get("scale", (1.0, ""))
        origin, origin_unit = sequence.values.get("origin", (0.0, unit))
        factor, offset_factor = to_millivolt(unit), to_millivolt(origin_unit)
        if kind is SignalKind.PPG:
            factor = offset_factor = 1.0
        elif factor is None or offset_factor is None:
            factor, offset_factor, unit = 1.0, 1.0, "unknown"
        else:
            unit = "mV"
        step, offset = scale * factor, origin * offset_factor
        if not (1e-12 <= abs(step) <= 1e12 and abs(offset) <= 1e12):
            errors.append(RecordError(f"{name} has no scale for a lead: correct it", "header"))
            continue
        count += 1
        lead = lead_of(sequence.code.removeprefix(_LEAD)) if kind is SignalKind.ECG else None
        samples = _scaled(sequence.digits.samples(), step, offset)
        yield Signal(sequence.code, kind, samples, fs_hz, unit, 0.0, lead, 1.0 / step)
    if not count:
        raise RecordError(f"{name} has no lead with samples", "no_signal")


def _scaled(digits: Samples, step: float, offset: float) -> Samples:
    """Give the digits in their unit, in memory where they are."""
    if isinstance(digits, LazySamples):
        return LazySamples(digits.size, lambda start, stop: _line(digits[start:stop], step, offset))
    return _line(digits[0 : digits.size], step, offset)


def _line(digits: NDArray[np.floating], step: float, offset: float) -> NDArray[np.floating]:
    with np.errstate(over="ignore"):
        values = (digits.astype(np.float64) * step + offset).astype(np.float32)
    return np.where(np.isfinite(values), values, np.float32(np.nan))


def _rate(sequences: list[_Sequence], name: str) -> float:
    """Give the rate that the set's times have: the inverse of their increment."""
    for sequence in sequences:
        if sequence.code.startswith("TIME_"):
            step, unit = sequence.values.get("increment", (math.nan, ""))
            step *= _SECONDS.get(unit.strip(), math.nan)
            if 1e-5 <= step <= 1.0:
                return 1.0 / step
            raise RecordError(f"{name} has times without an increment from 10 us to 1 s: the rate is unknown", "rate")
    raise RecordError(f"{name} has a sequence set without times: the rate is unknown", "rate")
