"""WFDB headers, read strictly: what the specification allows, within limits, or a typed error.

The specification is header(5) of the WFDB Applications Guide. wfdb 4.3.1 takes wrong headers silently (a rate of nan
loads as 250 Hz, a gain of 0 as 200), chokes on others (a billion signals is a MemoryError) and spends 95 % of the 6 ms
that a 12-lead record of 10 s takes in its tables of fields, so headers are read here.
"""

import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from p2es.errors import RecordError

MAX_HEADER_BYTES = 2 * 2**20
MAX_SIGNALS = 512
MAX_SEGMENTS = 20_000
"""A change of setup every two minutes for a month; each that is not there costs 16 us."""
MAX_FRAMES = 10**10
"""Three years at 100 Hz."""
MAX_SAMPLES_A_FRAME = 10**6
MAX_SKEW_FRAMES = 10**5
MAX_NAME = 200
"""Letters of a signal's name: header(5) allows lines of 255."""
UNCALIBRATED_GAIN = 200.0
"""What header(5) supposes, in steps a unit, where no gain is given."""

_INTEGER = re.compile(r"[+-]?\d{1,18}", re.ASCII)
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d{1,4})?", re.ASCII | re.IGNORECASE)
_NUMBER_LIKE = re.compile(r"[+-]?(\.?\d|nan|inf)", re.ASCII | re.IGNORECASE)
_GAIN = re.compile(r"([^(/]*)(?:\(([^)]*)\))?(?:/(.*))?")
_FORMAT = re.compile(r"(\d{1,4})((?:[x:+]\d{1,15})*)", re.ASCII)
_SEGMENTS = re.compile(r"[^/\\]+/(\d{1,9})", re.ASCII)


@dataclass(frozen=True)
class SignalLine:
    """A signal as a header describes it.

    Attributes
    ----------
    file : str or None
        Name of its file, in the folder of the header; None where nothing was recorded (`~`).
    format : int
        How samples are stored (signal(5)); 0 where nothing was recorded.
    per_frame : int
        Samples a frame.
    skew : int
        Frames by which its samples lie too late in the file.
    offset : int
        Bytes before the first sample; for FLAC, samples.
    gain : float or None
        Steps a unit; None where it is not calibrated (no gain, or 0), nan where what is written is no usable number.
    baseline : float
        Step of the value 0.
    unit : str
        As written; "mV" where nothing is.
    resolution_bits, zero, initial, checksum, block : int
        The converter's bits and middle step; the first sample's step; sum of all samples modulo 2**16; block size.
    name : str
        The description, which names lead or sensor; "" where there is none.
    """

    file: str | None
    format: int
    per_frame: int = 1
    skew: int = 0
    offset: int = 0
    gain: float | None = None
    baseline: float = 0.0
    unit: str = "mV"
    resolution_bits: int = 0
    zero: int = 0
    initial: int = 0
    checksum: int = 0
    block: int = 0
    name: str = ""


@dataclass(frozen=True)
class SegmentLine:
    """A segment of a multi-segment record: name of its header without the ending (None: a gap), length in frames."""

    name: str | None
    frames: int


@dataclass(frozen=True)
class Header:
    """A header.

    Attributes
    ----------
    frame_hz : float
        Frames a second.
    frames : int
        Length; 0 where the header does not tell it.
    signals : tuple of SignalLine
        Of a record with one segment; else empty.
    segments : tuple of SegmentLine or None
        Of a multi-segment record; else None.
    comments : str
        The comment lines without their `#`. They may name people: use and drop them.
    """

    frame_hz: float
    frames: int
    signals: tuple[SignalLine, ...]
    segments: tuple[SegmentLine, ...] | None
    comments: str


def read_header(path: Path, root: Path) -> Header:
    """Read a header.

    Parameters
    ----------
    path : Path
    root : Path
        The archive: no file outside is opened, also not by a link.

    Raises
    ------
    RecordError
        When it is missing or not a header.
    """
    if not within(path, root):
        raise RecordError(outside(path.name), "link")
    try:
        data = _content(path)
    except FileNotFoundError as error:
        raise RecordError(f"{path.name} is not there: fetch it", "header") from error
    except PermissionError as error:
        raise RecordError(f"{path.name} may not be read: allow it", "no_permission") from error
    except OSError as error:
        raise RecordError(f"{path.name} cannot be read ({type(error).__name__})", "unreadable") from error
    if len(data) > MAX_HEADER_BYTES:
        raise RecordError(f"{path.name} has more than {MAX_HEADER_BYTES} bytes: no WFDB header has", "header")
    return parse_header(data, path.name)


def within(path: Path, root: Path) -> bool:
    """Tell whether a file, all links followed, lies in the archive. It need not exist."""
    try:
        return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root))
    except (OSError, ValueError):
        return False


def outside(name: str) -> str:
    """Word the error of a link that leaves the archive."""
    return f"{name} is a link that leaves the archive: copy the file, or ingest the folder in which it lies"


def _content(path: Path) -> bytes:
    if path.exists() and not path.is_file():  # a pipe would wait for ever
        raise OSError("not a file")
    with path.open("rb") as file:
        return file.read(MAX_HEADER_BYTES + 1)


def _split(data: bytes) -> tuple[list[str], list[str]]:
    """Split into lines and comments. UTF-8, or Latin-1 as older archives write a micro sign."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = data.decode("latin-1")
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    # Of all that Python takes for white space, as `split` does later: a line of U+001C alone has no fields.
    stripped = [line.strip() for line in lines if line]
    lines = [line for line in stripped if line and not line.startswith("#")]
    return lines, [line[1:] for line in stripped if line.startswith("#")]


def parse_header(data: bytes, name: str) -> Header:
    """Parse a header; `name` is what errors call it.

    Lines beyond those that the record line announces are ignored, as the specification says.

    Raises
    ------
    RecordError
        Reason "rate" when the rate is missing or impossible, else "header".
    """
    lines, comments = _split(data)
    if not lines:
        raise RecordError(f"{name} is empty: fetch it again", "header")
    if b"\0" in data:
        raise RecordError(f"{name} holds NUL bytes: fetch it again", "header")
    fields = lines[0].split()
    if len(fields) < 2:
        raise RecordError(f"{name} has no number of signals: fetch it again", "header")
    multiple = "/" in fields[0]
    found = _SEGMENTS.fullmatch(fields[0])
    if multiple and not found:
        raise RecordError(f"{name} names a record in a folder: write its name alone", "header")
    count = int(found.group(1)) if found else _whole(fields[1], name, "number of signals", MAX_SIGNALS)
    if found and not 1 <= count <= MAX_SEGMENTS:
        raise RecordError(f"{name} claims {count} segments: correct the header", "header")
    rate, frames = _rate(fields, name), 0
    if len(fields) > 3:
        frames = _whole(fields[3], name, "number of samples", MAX_FRAMES)
    if len(lines) < count + 1:
        raise RecordError(f"{name} lists {len(lines) - 1} of {count} lines: fetch it again", "header")
    text = "\n".join(comments)
    if multiple:
        return Header(rate, frames, (), tuple(_segment(line, name) for line in lines[1 : count + 1]), text)
    signals = tuple(_signal(line, name) for line in lines[1 : count + 1])
    _check_layout(signals, lines[count + 1 :], name)
    return Header(rate, frames, signals, None, text)


def _rate(fields: Sequence[str], name: str) -> float:
    """Read frames a second; counter frequency and base counter, after a slash, are of no use here."""
    if len(fields) < 3:
        raise RecordError(f"{name} has no sampling rate: add it to the record line", "rate")
    rate = _number(fields[2].split("/")[0])
    if not 1e-4 <= rate <= 1e6:
        raise RecordError(f"{name} gives a rate of {_short(fields[2])} Hz: correct the record line", "rate")
    return rate


def _segment(line: str, name: str) -> SegmentLine:
    segment, *rest = line.split()
    frames = _whole(rest[0] if rest else "", name, "length of a segment", MAX_FRAMES)
    return SegmentLine(_file_name(segment, name), frames)


def _signal(line: str, name: str) -> SignalLine:
    file, *rest = line.split(maxsplit=2)
    if not rest:
        raise RecordError(f"{name} gives no format for a signal: correct the header", "header")
    code, extra = _format(rest[0], name)
    text = rest[1] if len(rest) > 1 else ""
    gain: float | None = None
    baseline, unit = None, "mV"
    if text and _NUMBER_LIKE.match(text):
        first, *others = text.split(maxsplit=1)
        gain, baseline, unit = _gain(first)
        text = others[0] if others else ""
    numbers, description = _numbers(text, name)
    resolution_bits, zero, initial, checksum, block = numbers
    return SignalLine(
        file=_file_name(file, name),
        format=code,
        per_frame=max(extra.get("x", 1), 1),
        skew=extra.get(":", 0),
        offset=extra.get("+", 0),
        gain=gain,
        baseline=float(zero or 0) if baseline is None else baseline,
        unit=unit,
        resolution_bits=resolution_bits or 0,
        zero=zero or 0,
        initial=(zero or 0) if initial is None else initial,
        checksum=checksum or 0,
        block=block or 0,
        name=description,
    )


def _format(text: str, name: str) -> tuple[int, dict[str, int]]:
    """Read `212x4:3+24`: format, samples a frame, skew, offset."""
    found = _FORMAT.fullmatch(text)
    if not found:
        raise RecordError(f"{name} gives the format {_short(text)}: correct the header", "header")
    extra = {part[0]: int(part[1:]) for part in re.findall(r"[x:+]\d+", found.group(2))}
    if extra.get(":", 0) > MAX_SKEW_FRAMES:
        raise RecordError(f"{name} gives the format {_short(text)}, a skew of minutes: correct the header", "header")
    return int(found.group(1)), extra


def _gain(text: str) -> tuple[float | None, float | None, str]:
    """Read `200(1024)/mV`: gain (nan: unusable), baseline where there is one, unit."""
    found = _GAIN.fullmatch(text)
    if not found:
        return math.nan, None, "mV"
    gain = _number(found.group(1))
    baseline = None if found.group(2) is None else _number(found.group(2))
    unit = found.group(3) or "mV"
    if gain == 0:
        return None, baseline, unit
    # Outside of these single precision would overflow, and no converter is like that.
    usable = 1e-12 <= abs(gain) <= 1e15 and (baseline is None or abs(baseline) <= 2**53)
    return (gain if usable else math.nan), (baseline if usable else None), unit


def _numbers(text: str, name: str) -> tuple[list[int | None], str]:
    """Read the five whole numbers after the gain, any of which may be missing, and the description that follows."""
    numbers: list[int | None] = []
    rest = text.strip()
    while rest and len(numbers) < 5:
        first, *others = rest.split(maxsplit=1)
        if not _INTEGER.fullmatch(first):
            if _NUMBER.fullmatch(first) or first.lower().lstrip("+-") in {"nan", "inf"}:
                raise RecordError(f"{name} has {_short(first)} where a whole number belongs: correct it", "header")
            break
        numbers.append(int(first))
        rest = others[0] if others else ""
    return numbers + [None] * (5 - len(numbers)), rest.strip()[:MAX_NAME]


def _file_name(text: str, name: str) -> str | None:
    """Check the name of a file or segment: it lies beside the header, or there is none (`~`)."""
    if text == "~":
        return None
    if text in {".", "..", "-"} or text.startswith("~") or re.search(r"[/\\:]", text):
        raise RecordError(f"{name} names a file outside its folder: correct the header", "header")
    if len(text.encode()) > 250:
        raise RecordError(f"{name} names a file with {len(text)} letters: correct the header", "header")
    return text


def _check_layout(signals: Sequence[SignalLine], ignored: Sequence[str], name: str) -> None:
    """Refuse what leaves open where in a file the samples of a signal are."""
    if sum(signal.per_frame for signal in signals) > MAX_SAMPLES_A_FRAME:
        raise RecordError(f"{name} has more than {MAX_SAMPLES_A_FRAME} samples a frame: correct the header", "header")
    layout: dict[str, tuple[int, int]] = {}
    for signal in signals:
        if signal.file is not None:
            first = layout.setdefault(signal.file, (signal.format, signal.offset))
            # An offset is often written on the first line of a file only.
            if signal.format != first[0] or signal.offset not in (0, first[1]):
                raise RecordError(f"{name} gives one file two formats: correct the header", "header")
    if any(line.split()[0] in layout for line in ignored):
        raise RecordError(f"{name} lists more signals of a file than it announces: correct the header", "header")


def _whole(text: str, name: str, what: str, most: int) -> int:
    value = int(text) if _INTEGER.fullmatch(text) else -1
    if not 0 <= value <= most:
        raise RecordError(f"{name} gives {_short(text)} as {what}: correct the header", "header")
    return value


def _number(text: str) -> float:
    """Read a number; nan where it is none, or infinite."""
    value = float(text) if _NUMBER.fullmatch(text) else math.nan
    return value if math.isfinite(value) else math.nan


def _short(text: str) -> str:
    """Quote a field in an error: printable, and not for ever."""
    return ascii(text if len(text) <= 20 else f"{text[:20]}...")
