"""Variables of a MATLAB file of version 5 (published by The MathWorks as "MAT-File Format").

SciPy reads such files by C code that takes sizes and depths on trust: one changed byte ends the process (SciPy 1.17, a
segmentation fault after some 50 random changes), and with it a worker and its other records. This reads what recordings
are made of, arrays of numbers, texts, cells and structures, with every size checked against the bytes there are.
"""

import math
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from p2es.errors import RecordError
from p2es.formats.spool import Budget
from p2es.recording import LazySamples, Samples

MAX_ELEMENTS = 100_000
_MAX_DEPTH = 16
_COMPRESSED, _MATRIX = 15, 14
# Types of stored numbers; a class of double is often stored in fewer bytes.
_NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_ENCODINGS = {1: "latin-1", 2: "latin-1", 4: "utf-16", 16: "utf-8", 17: "utf-16", 18: "utf-32"}
_COMPLEX = 0x0800


class MatlabFile(Protocol):
    """Variables of a MATLAB file by path (`a.b.c`)."""

    def has(self, path: str) -> bool:
        """Tell whether there is something at a path."""
        ...

    def matrix(self, path: str, element: int | None) -> "Matrix":
        """Give an array of numbers; of a structure array's element, when one is asked for."""
        ...

    def text(self, path: str, element: int | None) -> str:
        """Give a text or a single number as text."""
        ...

    def texts(self, path: str) -> tuple[str, ...]:
        """Give the texts of a cell."""
        ...

    def elements(self, path: str) -> int:
        """Give the length of a structure array or a cell; what is no array counts as one."""
        ...


@dataclass(frozen=True)
class Matrix:
    """Numbers (rows, columns), read on demand: `load(axis, index, start, stop)`, axis 0 for a row."""

    shape: tuple[int, int]
    load: Callable[[int, int, int, int], NDArray[np.floating]]

    def along(self, axis: int, index: int, what: str) -> Samples:
        """Give a row (axis 0) or a column (axis 1)."""
        if not 0 <= index < self.shape[axis]:
            raise RecordError(f"{what} is outside an array of {self.shape[0]} x {self.shape[1]}: correct it", "layout")
        return LazySamples(self.shape[1 - axis], lambda start, stop: self.load(axis, index, start, stop))


class _Class(IntEnum):
    """Classes of arrays; numbers are 6 to 15."""

    CELL = 1
    STRUCTURE = 2
    TEXT = 4


Structure = list[dict[str, "Value"]]
Value = NDArray[Any] | str | list["Value"] | Structure | None


class Version5:
    """Variables by path; each is unpacked when it is first asked for."""

    def __init__(self, path: Path) -> None:
        self._path = path
        size = path.stat().st_size
        self._budget = Budget(size, path.name)
        self._places: dict[str, tuple[int, int, int]] = {}
        self._loaded: dict[str, Value] = {}
        with path.open("rb") as file:
            self._order = "<" if file.read(128)[126:128] == b"IM" else ">"
            while len(tag := file.read(8)) == 8:
                kind, count = struct.unpack(f"{self._order}2I", tag)
                at = file.tell()
                if at + count > size:
                    raise RecordError(f"{path.name} is cut short: fetch it again", "truncated")
                if name := self._name(kind, tag, file.read(min(count, 4096))):
                    self._places[name] = (kind, at, count)
                file.seek(at + count)

    def _name(self, kind: int, tag: bytes, head: bytes) -> str:
        """Give the name of a variable by its beginning; empty when it is none."""
        if kind == _COMPRESSED:
            head = _unpacked(head, Budget(1 << 20, self._path.name), self._path.name, 4096)
        else:
            head = tag + head
        return _Reader(head, self._order, self._path.name).name() if len(head) >= 8 else ""

    def _variable(self, name: str) -> Value:
        if name not in self._loaded:
            kind, at, count = self._places[name]
            with self._path.open("rb") as file:
                file.seek(at if kind == _COMPRESSED else at - 8)
                data = file.read(count if kind == _COMPRESSED else count + 8)
            if kind == _COMPRESSED:
                data = _unpacked(data, self._budget, self._path.name)
            self._loaded[name] = _Reader(data, self._order, self._path.name).value()
        return self._loaded[name]

    def _get(self, path: str, element: int | None) -> Value:
        first, *fields = path.split(".")
        if first not in self._places:
            return None
        value = self._variable(first)
        for depth, field in enumerate(fields):
            at = element if element is not None and depth == 0 else 0
            if not isinstance(value, list) or at >= len(value):
                return None
            row = value[at]
            value = row.get(field) if isinstance(row, dict) else None
        return value

    def has(self, path: str) -> bool:
        """Tell whether there is something at a path."""
        return self._get(path, 0) is not None

    def matrix(self, path: str, element: int | None) -> Matrix:
        """Give an array of numbers; of a structure array's element, when one is asked for."""
        value = self._get(path, element)
        if not isinstance(value, np.ndarray) or value.ndim != 2:
            raise RecordError(f"{path} of {self._path.name} is no array of numbers: correct the layout", "layout")
        array = value

        def load(axis: int, index: int, start: int, stop: int) -> NDArray[np.floating]:
            line = array[index, start:stop] if axis == 0 else array[start:stop, index]
            return np.asarray(line, np.float64)

        return Matrix((array.shape[0], array.shape[1]), load)

    def text(self, path: str, element: int | None) -> str:
        """Give a text, or a single number as text; empty when it is neither."""
        return _as_text(self._get(path, element))

    def texts(self, path: str) -> tuple[str, ...]:
        """Give the texts of a cell."""
        value = self._get(path, None)
        return tuple(map(_as_text, value)) if isinstance(value, list) else ()

    def elements(self, path: str) -> int:
        """Give the length of a structure array or a cell; what is no array counts as one."""
        value = self._get(path, None)
        return len(value) if isinstance(value, list) else int(value is not None)


def _as_text(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return str(value.flat[0]) if value.size else ""
    return value if isinstance(value, str) else ""


def _unpacked(data: bytes, budget: Budget, name: str, most: int = 0) -> bytes:
    """Unpack a variable, or its first bytes; RecordError when it is damaged or grows beyond all measure."""
    stream, parts, rest, size = zlib.decompressobj(), [], data, 0
    try:
        while rest and not stream.eof and not (most and size >= most):
            part = stream.decompress(rest, 1 << 20)
            budget.spend(len(part))
            parts.append(part)
            size += len(part)
            rest = stream.unconsumed_tail
    except zlib.error as error:
        raise RecordError(f"{name} is damaged: fetch it again", "unreadable") from error
    return b"".join(parts)


class _Reader:
    """One variable as bytes."""

    def __init__(self, data: bytes, order: str, name: str) -> None:
        self._data, self._order, self._name = data, order, name
        self._count = 0

    def _wrong(self, what: str) -> RecordError:
        return RecordError(f"{self._name} {what}: fetch it again", "unreadable")

    def _tag(self, at: int, end: int) -> tuple[int, int, int, int]:
        """Give type and place of an element: its data from, to, and where the next begins."""
        if at + 8 > end:
            raise self._wrong("ends in the middle of a variable")
        kind, count = struct.unpack_from(f"{self._order}2I", self._data, at)
        if kind >> 16:  # four bytes or fewer lie in the tag
            return kind & 0xFFFF, at + 4, at + 4 + min(kind >> 16, 4), at + 8
        start, stop = at + 8, at + 8 + count
        if stop > end:
            raise self._wrong("has a variable that is longer than the file")
        return kind, start, stop, min(stop + -count % 8, end)

    def name(self) -> str:
        """Give the variable's name from its first bytes; empty when it is no array."""
        kind, start = struct.unpack_from(f"{self._order}I", self._data)[0], 8
        if kind != _MATRIX:
            return ""
        for _ in range(2):
            start = self._tag(start, len(self._data))[3]
        _, start, stop, _ = self._tag(start, len(self._data))
        return self._data[start:stop].decode("latin-1")

    def value(self) -> Value:
        """Read the variable."""
        kind, start, stop, _ = self._tag(0, len(self._data))
        return self._array(start, stop, 0) if kind == _MATRIX else None

    def _array(self, at: int, end: int, depth: int) -> Value:
        self._count += 1
        if depth > _MAX_DEPTH or self._count > MAX_ELEMENTS:
            raise self._wrong("has variables nested deeper than any recording")
        if at == end:
            return np.empty((0, 0))
        _, start, stop, at = self._tag(at, end)
        if stop - start < 4:
            raise self._wrong("has an array without a class")
        flags = struct.unpack_from(f"{self._order}I", self._data, start)[0]
        _, start, stop, at = self._tag(at, end)
        sizes = struct.unpack_from(f"{self._order}{(stop - start) // 4}i", self._data, start)
        if not 2 <= len(sizes) <= 32 or any(size < 0 for size in sizes):
            raise self._wrong("has an array of impossible size")
        *_, at = self._tag(at, end)
        match flags & 0xFF:
            case _Class.CELL:
                return self._cell(at, end, math.prod(sizes), depth)
            case _Class.STRUCTURE:
                return self._structure(at, end, math.prod(sizes), depth)
            case _Class.TEXT:
                return self._text(at, end)
            case kind if 6 <= kind <= 15 and not flags & _COMPLEX:
                return self._numbers(at, end, sizes)
        # Complex and sparse arrays, functions and objects of MATLAB's own: none is a signal.
        return None

    def _numbers(self, at: int, end: int, sizes: tuple[int, ...]) -> NDArray[Any]:
        kind, start, stop, _ = self._tag(at, end)
        if kind not in _NUMBERS:
            raise self._wrong("has numbers of an unknown type")
        dtype = np.dtype(self._order + _NUMBERS[kind])
        if math.prod(sizes) * dtype.itemsize != stop - start:
            raise self._wrong("has an array whose size is not that of its numbers")
        return np.frombuffer(self._data, dtype, math.prod(sizes), start).reshape(sizes, order="F")

    def _text(self, at: int, end: int) -> str:
        kind, start, stop, _ = self._tag(at, end)
        encoding = _ENCODINGS.get(kind, "latin-1")
        if encoding in {"utf-16", "utf-32"}:
            encoding += "-le" if self._order == "<" else "-be"
        return self._data[start:stop].decode(encoding, errors="replace")

    def _cell(self, at: int, end: int, count: int, depth: int) -> list[Value]:
        values: list[Value] = []
        for _ in range(min(count, MAX_ELEMENTS + 1)):
            value, at = self._inner(at, end, depth)
            values.append(value)
        return values

    def _structure(self, at: int, end: int, count: int, depth: int) -> Structure:
        _, start, stop, at = self._tag(at, end)
        length = struct.unpack_from(f"{self._order}i", self._data, start)[0] if stop - start == 4 else 0
        _, start, stop, at = self._tag(at, end)
        if not 0 < length <= 256:
            raise self._wrong("has a structure without names")
        names = [self._data[k : k + length].split(b"\0")[0].decode("latin-1") for k in range(start, stop, length)]
        rows: Structure = []
        for _ in range(min(count, MAX_ELEMENTS + 1) if names else 0):
            row: dict[str, Value] = {}
            for name in names:
                row[name], at = self._inner(at, end, depth)
            rows.append(row)
        return rows

    def _inner(self, at: int, end: int, depth: int) -> tuple[Value, int]:
        kind, start, stop, after = self._tag(at, end)
        return (self._array(start, stop, depth + 1) if kind == _MATRIX else None), after
