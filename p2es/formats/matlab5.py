"""Variables of a MATLAB file: version 5 by SciPy, after a look at its bytes, since SciPy takes sizes on trust."""

import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from p2es.errors import RecordError
from p2es.formats.spool import Budget
from p2es.recording import LazySamples, Samples

MAX_ELEMENTS = 100_000
# SciPy reads nested structures by recursion in C: a hostile file of a few kilobytes overflows the stack.
_MAX_DEPTH = 16


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


class Version5:
    """Variables by SciPy; each is unpacked and looked through before, so that no size or depth is taken on trust."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._names = _checked_names(path)
        self._loaded: dict[str, Any] = {}

    def _get(self, path: str, element: int | None) -> Any:
        first, *fields = path.split(".")
        if first not in self._names:
            return None
        value = self._variable(first)
        for depth, field in enumerate(fields):
            if not isinstance(value, np.ndarray) or value.dtype.names is None or field not in value.dtype.names:
                return None
            flat = value.reshape(-1, order="F")
            at = element if element is not None and depth == 0 else 0
            if at >= flat.size:
                return None
            value = flat[at][field]
        return value

    def _variable(self, name: str) -> Any:
        import scipy.io

        if name not in self._loaded:
            try:
                found = scipy.io.loadmat(
                    self._path, variable_names=[name], chars_as_strings=True, struct_as_record=True
                )
            except Exception as error:  # SciPy raises every kind of error on odd input
                what = type(error).__name__
                text = f"{self._path.name} cannot be read ({what}): fetch it again"
                raise RecordError(text, "unreadable") from error
            self._loaded[name] = found.get(name)
        return self._loaded[name]

    def has(self, path: str) -> bool:
        """Tell whether there is something at a path."""
        return self._get(path, 0) is not None

    def matrix(self, path: str, element: int | None) -> Matrix:
        """Give an array of numbers; of a structure array's element, when one is asked for."""
        value = self._get(path, element)
        if not isinstance(value, np.ndarray) or value.ndim != 2 or value.dtype.kind not in "fiub":
            raise RecordError(f"{path} of {self._path.name} is no array of numbers: correct the layout", "layout")
        rows, columns = value.shape

        def load(axis: int, index: int, start: int, stop: int) -> NDArray[np.floating]:
            line = value[index, start:stop] if axis == 0 else value[start:stop, index]
            return np.asarray(line, np.float64)

        return Matrix((rows, columns), load)

    def text(self, path: str, element: int | None) -> str:
        """Give a text, or a single number as text; empty when it is neither."""
        value = self._get(path, element)
        flat = np.asarray(value).reshape(-1) if value is not None else np.empty(0)
        return str(flat[0]) if flat.size and flat.dtype.kind in "fiubU" else ""

    def texts(self, path: str) -> tuple[str, ...]:
        """Give the texts of a cell."""
        value = self._get(path, None)
        flat = np.asarray(value).reshape(-1, order="F") if value is not None else np.empty(0)
        if flat.dtype.kind == "O":
            return tuple(str(np.asarray(item).reshape(-1)[0]) if np.size(item) else "" for item in flat)
        return tuple(str(item) for item in flat)

    def elements(self, path: str) -> int:
        """Give the length of a structure array or a cell; what is no array counts as one."""
        value = self._get(path, None)
        return min(int(np.size(value)), MAX_ELEMENTS) if value is not None else 0


def _checked_names(path: Path) -> set[str]:
    """Give the names of the variables, after a look through all of them: sizes add up and nothing is nested deep."""
    size = path.stat().st_size
    budget = Budget(size, path.name)
    names: set[str] = set()
    with path.open("rb") as file:
        order = "<" if file.read(128)[126:128] == b"IM" else ">"
        while (tag := file.read(8)) and len(tag) == 8:
            kind, count = struct.unpack(f"{order}2I", tag)
            if file.tell() + count > size:
                raise RecordError(f"{path.name} is cut short: fetch it again", "truncated")
            if kind == 15:
                data = _unpacked(file.read(count), budget, path.name)
            else:
                budget.spend(count)
                data = tag + file.read(count)
            names.add(_Look(data, order, path.name).variable())
    return names - {""}


def _unpacked(data: bytes, budget: Budget, name: str) -> bytes:
    stream, parts, rest = zlib.decompressobj(), [], data
    try:
        while not stream.eof:
            part = stream.decompress(rest, 1 << 20)
            budget.spend(len(part))
            parts.append(part)
            rest = stream.unconsumed_tail
            if not part and not rest:
                break
    except zlib.error as error:
        raise RecordError(f"{name} is damaged: fetch it again", "unreadable") from error
    return b"".join(parts)


class _Look:
    """One variable of a version 5 file, as bytes: its name, and whether SciPy can be given it."""

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
        return kind, start, stop, stop + (-count % 8 if kind != 15 else 0)

    def variable(self) -> str:
        """Check the variable; give its name, empty when it is no array."""
        kind, start, stop, _ = self._tag(0, len(self._data))
        return self._array(start, stop, 0) if kind == 14 else ""

    def _array(self, at: int, end: int, depth: int) -> str:
        """Check an array and those within it; give its name."""
        self._count += 1
        if depth > _MAX_DEPTH or self._count > MAX_ELEMENTS:
            raise self._wrong("has variables nested deeper than any recording")
        if at == end:
            return ""
        _, start, stop, at = self._tag(at, end)
        if stop - start < 4:
            raise self._wrong("has an array without a class")
        kind = struct.unpack_from(f"{self._order}I", self._data, start)[0] & 0xFF
        if kind == 17:  # an object of MATLAB's own: has no dimensions
            raise self._wrong("has objects of MATLAB's own classes, which are not read")
        _, start, stop, at = self._tag(at, end)
        sizes = struct.unpack_from(f"{self._order}{(stop - start) // 4}i", self._data, start)
        if not 2 <= len(sizes) <= 32 or any(size < 0 for size in sizes):
            raise self._wrong("has an array of impossible size")
        count = 1
        for size in sizes:
            count *= size
        if count > max(len(self._data), 64):
            raise self._wrong("has an array of more elements than bytes")
        _, start, stop, at = self._tag(at, end)
        name = self._data[start:stop].decode("latin-1")
        # Cells and structures hold arrays; a structure's fields' names come before, and are of other types.
        while kind in (1, 2, 3) and at < end:
            inner, start, stop, at = self._tag(at, end)
            if inner == 14:
                self._array(start, stop, depth + 1)
        return name
