"""Signal files of WFDB: samples of any stretch as converter steps, without reading what lies before it.

The formats are those of signal(5); FLAC (508, 516, 524) is decoded by libsndfile. wfdb is the oracle of the tests and
not used here: of the 6 ms it takes for a record of 10 s and 12 leads, 95 % go into parsing the header once more. It
also gives wrong samples for format 8 from any place but the start, and for skewed signals of several samples a frame.
"""

import os
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from p2es.errors import RecordError
from p2es.formats.wfdb_header import SignalLine

Steps = NDArray[np.signedinteger[Any]]

_CHUNK_SAMPLES = 2**18
"""Samples of all signals of a file that are decoded at once: 0.5 to 1 MB."""
_CACHE_SAMPLES = 2**23
"""Samples that stay decoded: 16 to 32 MB, ten minutes of 12 leads at 1000 Hz."""
_FLAC_TAIL = 16_384
"""Samples at the end of a FLAC file that are decoded to see that it is whole: 3 ms; to seek the very last one can take
170 ms."""
_FLAC_BITS = {508: 8, 516: 16, 524: 24}
_SUBTYPE_BITS = {"PCM_S8": 8, "PCM_16": 16, "PCM_24": 24}


@dataclass(frozen=True)
class _Coding:
    """How samples become bytes.

    `samples` of them in a block of `bytes`; `part` bytes hold the first 0, 1, 2 samples of a block; `missing` is the
    step that means "not recorded"; `dtype` and `bias` where numpy knows the samples.
    """

    samples: int
    bytes: int
    missing: int | None
    dtype: str = ""
    bias: int = 0
    part: tuple[int, ...] = (0,)

    def bytes_of(self, samples: int) -> int:
        """Give the bytes that hold so many samples from the start of a block."""
        blocks, rest = divmod(samples, self.samples)
        return blocks * self.bytes + self.part[rest]

    def samples_in(self, size: int) -> int:
        """Give the samples that so many bytes hold."""
        blocks, rest = divmod(size, self.bytes)
        return blocks * self.samples + max(k for k, part in enumerate(self.part) if part <= rest)


_CODINGS = {
    8: _Coding(1, 1, None, "i1"),
    16: _Coding(1, 2, -(2**15), "<i2"),
    24: _Coding(1, 3, -(2**23)),
    32: _Coding(1, 4, -(2**31), "<i4"),
    61: _Coding(1, 2, -(2**15), ">i2"),
    80: _Coding(1, 1, -(2**7), "u1", 2**7),
    160: _Coding(1, 2, -(2**15), "<u2", 2**15),
    212: _Coding(2, 3, -(2**11), part=(0, 2)),
    310: _Coding(3, 4, -(2**9), part=(0, 2, 4)),
    311: _Coding(3, 4, -(2**9), part=(0, 2, 3)),
}


class _Store(Protocol):
    """The samples of a file. Both methods raise OSError when the file cannot be read, RecordError when it is wrong."""

    missing: int | None

    def held(self) -> int:
        """Give the number of whole frames in the file."""
        ...

    def decode(self, start: int, stop: int) -> Steps:
        """Decode frames start to stop as (frame, samples of all signals); fewer frames where the file is cut."""
        ...


@dataclass
class _Blocks:
    """Samples in blocks of fixed size: every format but FLAC and differences."""

    path: Path
    coding: _Coding
    code: int
    width: int
    offset: int

    def __post_init__(self) -> None:
        self.missing = self.coding.missing

    def held(self) -> int:
        return self.coding.samples_in(max(self.path.stat().st_size - self.offset, 0)) // self.width

    def decode(self, start: int, stop: int) -> Steps:
        first, count = start * self.width, (stop - start) * self.width
        block, ahead = divmod(first, self.coding.samples)
        with self.path.open("rb") as file:
            file.seek(self.offset + block * self.coding.bytes)
            data = file.read(self.coding.bytes_of(ahead + count))
        there = min(self.coding.samples_in(len(data)), ahead + count)
        steps = _unpack(data, there, self.code, self.coding)[ahead:]
        return steps[: steps.size - steps.size % self.width].reshape(-1, self.width)


class _Differences(_Blocks):
    """Format 8: each byte is the difference to the sample before, so a stretch is known from the start only."""

    def __init__(self, path: Path, coding: _Coding, lines: Sequence[SignalLine], offset: int) -> None:
        super().__init__(path, coding, 8, sum(line.per_frame for line in lines), offset)
        self.lines = lines
        self._rewind()

    def _rewind(self) -> None:
        self.at = 0
        self.level = np.array([line.initial for line in self.lines], np.int64)

    def decode(self, start: int, stop: int) -> Steps:
        if start < self.at:
            self._rewind()
        chunk = max(_CHUNK_SAMPLES // self.width, 1)
        while self.at < start and len(self._sum(min(self.at + chunk, start))):
            pass
        return self._sum(stop).astype(np.int32)

    def _sum(self, stop: int) -> Steps:
        """Go on to frame `stop`, adding up each signal's differences."""
        differences = super().decode(self.at, stop)
        sums = np.empty(differences.shape, np.int64)
        level, first = self.level.copy(), 0
        for k, line in enumerate(self.lines):
            part = differences[:, first : first + line.per_frame]
            sums[:, first : first + line.per_frame] = level[k] + part.cumsum(dtype=np.int64).reshape(part.shape)
            first += line.per_frame
            level[k] = sums[-1, first - 1] if len(sums) else level[k]
        self.at, self.level = self.at + len(sums), level
        return sums


@dataclass
class _Flac:
    """FLAC, a channel a signal; all signals have as many samples a frame."""

    path: Path
    bits: int
    lines: Sequence[SignalLine]
    offset: int
    record: str

    def __post_init__(self) -> None:
        self.missing = -(2 ** (self.bits - 1))
        self.per_frame = self.lines[0].per_frame
        if any(line.per_frame != self.per_frame for line in self.lines):
            raise RecordError(f"{self.record} gives the signals of a FLAC file several rates: correct it", "header")

    def held(self) -> int:
        with self._opened() as file:
            return int(max(file.frames - self.offset, 0) // self.per_frame)

    def decode(self, start: int, stop: int) -> Steps:
        left, pieces = (stop - start) * self.per_frame, []
        with self._opened() as file:
            bits = _SUBTYPE_BITS[file.subtype]
            file.seek(self.offset + start * self.per_frame)
            # libsndfile fails for more than 2**24 samples at once.
            while left > 0:
                some = min(left, max(2**20 // len(self.lines), 1))
                pieces.append(file.read(some, dtype="int16" if bits <= 16 else "int32", always_2d=True))
                left -= some if len(pieces[-1]) == some else left
        steps = np.concatenate(pieces) if pieces else np.empty((0, len(self.lines)), np.int16)
        if bits in (8, 24):  # libsndfile fills 16 and 32 bits from the top
            steps >>= 8
        steps = steps[: len(steps) - len(steps) % self.per_frame].reshape(-1, self.per_frame, len(self.lines))
        # From channels side by side to each signal's samples of a frame side by side, as in every other format.
        return steps.transpose(0, 2, 1).reshape(len(steps), -1)

    @contextmanager
    def _opened(self) -> Iterator[Any]:
        import soundfile

        # libsndfile knows thirty formats by their content; this is to be one of them.
        with self.path.open("rb") as file:
            magic = file.read(4)
        if magic != b"fLaC":
            raise RecordError(f"a signal file of {self.record} is no FLAC: fetch it again", "unreadable")
        try:
            with soundfile.SoundFile(os.fspath(self.path)) as opened:
                if opened.channels != len(self.lines) or _SUBTYPE_BITS.get(opened.subtype, 99) > self.bits:
                    raise RecordError(f"{self.record} and a FLAC file of it differ: fetch both again", "header")
                yield opened
        except soundfile.LibsndfileError as error:
            raise OSError(str(error)) from error


def _unpack(data: bytes, count: int, code: int, coding: _Coding) -> Steps:
    """Turn bytes, from the start of a block, into `count` samples."""
    if coding.dtype:
        raw = np.frombuffer(data, coding.dtype, count)
        wide = raw if not coding.bias else raw.astype(np.int32) - coding.bias
        return wide.astype(np.int32 if raw.itemsize == 4 else np.int16)
    whole = np.frombuffer(data + bytes(-len(data) % coding.bytes), np.uint8).reshape(-1, coding.bytes)
    if code == 24:
        a, b, c = whole.T.astype(np.int32)
        return (a | b << 8 | (c ^ 0x80) - 0x80 << 16)[:count]
    first = whole.T.astype(np.int16)
    samples = np.empty((len(whole), coding.samples), np.int16)
    if code == 212:
        samples[:, 0] = first[0] | (first[1] & 0x0F) << 8
        samples[:, 1] = first[2] | (first[1] & 0xF0) << 4
        sign = 0x800
    elif code == 310:
        samples[:, 0] = first[0] >> 1 | (first[1] & 0x07) << 7
        samples[:, 1] = first[2] >> 1 | (first[3] & 0x07) << 7
        samples[:, 2] = first[1] >> 3 | (first[3] & 0xF8) << 2
        sign = 0x200
    else:
        samples[:, 0] = first[0] | (first[1] & 0x03) << 8
        samples[:, 1] = first[1] >> 2 | (first[2] & 0x0F) << 6
        samples[:, 2] = first[2] >> 4 | (first[3] & 0x3F) << 4
        sign = 0x200
    return ((samples ^ sign) - sign).reshape(-1)[:count]


class Cache:
    """Decoded stretches of a record's files, the oldest of which go when there are too many samples."""

    def __init__(self) -> None:
        self._held: OrderedDict[tuple[object, int], Steps] = OrderedDict()
        self._size = 0

    def get(self, key: tuple[object, int], decode: Callable[[], Steps]) -> Steps:
        """Give a stretch, decoded now unless it still is."""
        if key in self._held:
            self._held.move_to_end(key)
            return self._held[key]
        steps = decode()
        self._held[key] = steps
        self._size += steps.size
        while self._size > _CACHE_SAMPLES and len(self._held) > 1:
            self._size -= self._held.popitem(last=False)[1].size
        return steps


class SignalFile:
    """The signals that share a file.

    Parameters
    ----------
    path : Path
    lines : sequence of SignalLine
        All signals of the file, in their order.
    record : str
        Name of the header, for errors.
    frames : int
        Frames that the header announces; with 0, their number is taken from the file.
    cache : Cache
        Of the record: whoever reads it stretch by stretch, signal after signal, decodes each stretch once.

    Attributes
    ----------
    frames : int
    missing : int or None
        Step that means "not recorded".

    Raises
    ------
    RecordError
        missing_file, unknown_format, truncated, unreadable, header or no_permission: the file is checked at once.
    """

    def __init__(self, path: Path, lines: Sequence[SignalLine], record: str, frames: int, cache: Cache) -> None:
        self.path, self.record, self._cache = path, record, cache
        # Not the file itself: with it a record would be a ring, and its samples wait for the garbage collector.
        self._key = object()
        self._ends = np.cumsum([line.per_frame for line in lines]).tolist()
        self._stated = np.array([line.checksum for line in lines], np.int64)
        self._sums = np.zeros(len(lines), np.int64)
        self._summed: set[int] = set()
        self._chunk = max(_CHUNK_SAMPLES // self._ends[-1], 1)
        if not path.is_file():
            raise RecordError(f"{record} names a signal file that is not there: fetch it", "missing_file")
        self._store = self._open(lines)
        self.missing = self._store.missing
        with self._told():
            held = self._store.held()
        if held < frames:
            raise self._truncated()
        self.frames = frames or held
        if isinstance(self._store, _Flac) and self.frames:
            # A cut FLAC file still announces its full length: its end must be there.
            self._decode(max(0, self.frames - max(_FLAC_TAIL // lines[0].per_frame, 1)), self.frames)

    def _open(self, lines: Sequence[SignalLine]) -> _Store:
        code, offset = lines[0].format, max(line.offset for line in lines)
        if code in _FLAC_BITS:
            return _Flac(self.path, _FLAC_BITS[code], lines, offset, self.record)
        if code not in _CODINGS:
            raise RecordError(f"{self.record} has format {code}, which is none of WFDB's", "unknown_format")
        if code == 8:
            return _Differences(self.path, _CODINGS[code], lines, offset)
        return _Blocks(self.path, _CODINGS[code], code, self._ends[-1], offset)

    def stretches(self, signal: int, start: int, stop: int) -> Iterator[Steps]:
        """Give the steps of a signal in frames start to stop, `per_frame` samples each, piece by piece."""
        first = self._ends[signal - 1] if signal else 0
        for chunk in range(start // self._chunk, -(-stop // self._chunk)):
            begin, end = chunk * self._chunk, min((chunk + 1) * self._chunk, self.frames)
            decoded = self._cache.get((self._key, chunk), partial(self._decode_chunk, chunk, begin, end))
            part = decoded[max(start - begin, 0) : stop - begin, first : self._ends[signal]]
            yield part.reshape(-1)

    def wrong_sums(self) -> int:
        """Count the signals that miss the checksum of their header: the sum of all steps modulo 2**16 (header(5)).

        Known once all pieces of the file were read, in any order; 0 before, and for what states no sum: writers that do
        not know it write 0. The last piece is read here if it is all that is missing: a tail shorter than a window is
        asked for by nobody.
        """
        last = -(-self.frames // self._chunk) - 1
        left = set(range(last + 1)) - self._summed
        if not self._stated.any() or last < 0 or left - {last}:
            return 0
        if left:
            self._decode_chunk(last, last * self._chunk, self.frames)
        differ = (self._sums - self._stated) % 2**16 != 0
        return int(np.count_nonzero(differ & (self._stated != 0)))

    def _decode_chunk(self, chunk: int, start: int, stop: int) -> Steps:
        """Decode a piece, and add it to the sums the first time."""
        decoded = self._decode(start, stop)
        if chunk not in self._summed and self._stated.any():
            self._summed.add(chunk)
            # Signal by signal it takes 1 ns a sample, across them 2 (12 signals) to 11 (2 signals).
            frame = np.ascontiguousarray(decoded.T).sum(axis=1, dtype=np.int64)
            self._sums += np.add.reduceat(frame, [0, *self._ends[:-1]])
        return decoded

    def _decode(self, start: int, stop: int) -> Steps:
        with self._told():
            decoded = self._store.decode(start, stop)
        if len(decoded) < stop - start:
            raise self._truncated()
        return decoded

    def _truncated(self) -> RecordError:
        return RecordError(f"a signal file of {self.record} is cut short: fetch it again", "truncated")

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Tell what the operating system or libsndfile says as what it means for the record."""
        try:
            yield
        except PermissionError as error:
            raise RecordError(f"a signal file of {self.record} may not be read: allow it", "no_permission") from error
        except FileNotFoundError as error:
            raise RecordError(f"a signal file of {self.record} is gone: fetch it again", "missing_file") from error
        except OSError as error:
            if isinstance(self._store, _Flac):  # libsndfile cannot seek where a file is cut
                raise self._truncated() from error
            raise RecordError(f"a signal file of {self.record} cannot be read: fetch it again", "unreadable") from error
