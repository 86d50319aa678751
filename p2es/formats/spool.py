"""Columns of a table as they are read, on disk once they are many: a day's table needs no day's memory."""

import os
import tempfile
import weakref
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from p2es.errors import RecordError
from p2es.recording import LazySamples

# A column of 4 million float32 is 16 MB, 2.2 h at 500 Hz; a mapping has a dozen columns at most.
IN_MEMORY = 4_000_000
# What is unpacked may be this and this many times the file: real tables pack to a tenth, bombs to a thousandth.
FREE_BYTES = 64 << 20
EXPANSION = 100


class Spool:
    """A column that grows: in memory at first, then in a file without a name, which goes when nobody reads it."""

    def __init__(self, dtype: type[np.floating] = np.float32) -> None:
        self._dtype = np.dtype(dtype)
        self._parts: list[NDArray[np.floating]] = []
        self._file: int | None = None
        self.size = 0

    def append(self, values: NDArray[np.floating]) -> None:
        """Add values at the end; RecordError when the disk is full."""
        with np.errstate(over="ignore"):  # too large for single precision is infinite, and so missing
            values = np.ascontiguousarray(values, self._dtype)
        self.size += values.size
        self._parts.append(values)
        try:
            if self._file is None and self.size > IN_MEMORY:
                self._file, path = tempfile.mkstemp(prefix="p2es-")
                Path(path).unlink()
                weakref.finalize(self, os.close, self._file)
            if self._file is not None:
                for part in self._parts:
                    self._write(part)
                self._parts = []
        except OSError as error:
            raise RecordError(
                "no room to unpack a long table: free some in the temporary folder", "too_large"
            ) from error

    def _write(self, part: NDArray[np.floating]) -> None:
        assert self._file is not None
        rest = part.view(np.uint8).data
        while rest:
            rest = rest[os.write(self._file, rest) :]

    def samples(self) -> NDArray[np.floating] | LazySamples:
        """Give what was added: an array, or samples that stay on disk."""
        if self._file is None:
            return np.concatenate(self._parts) if self._parts else np.empty(0, self._dtype)
        return LazySamples(self.size, self._load)

    def _load(self, start: int, stop: int) -> NDArray[np.floating]:
        assert self._file is not None
        width = self._dtype.itemsize
        values = np.empty(stop - start, self._dtype)
        rest, at = values.view(np.uint8).data, start * width
        while rest:
            count = os.preadv(self._file, [rest], at)
            assert count
            rest, at = rest[count:], at + count
        return values


class Budget:
    """How much a file may become when it is unpacked, so that a small hostile one fills neither memory nor disk."""

    def __init__(self, file_bytes: int, name: str) -> None:
        self._left = FREE_BYTES + EXPANSION * file_bytes
        self._name = name

    def spend(self, count: int) -> None:
        """Count bytes; RecordError when they are too many for the file."""
        self._left -= count
        if self._left < 0:
            raise RecordError(
                f"{self._name} unpacks to over {EXPANSION} times its size: it is no recording", "too_large"
            )
