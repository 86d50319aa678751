"""Variables of a MATLAB file of version 7.3, which is HDF5: h5py reads what is asked for, within the file."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from p2es.errors import RecordError
from p2es.formats.matlab5 import MAX_ELEMENTS, Matrix
from p2es.formats.spool import Budget

_MAX_CHUNK_BYTES = 64 << 20


class Version73:
    """Variables by h5py, which reads what is asked for; links to other files and huge chunks are refused."""

    def __init__(self, path: Path) -> None:
        import h5py

        self._path = path
        try:
            self._file = h5py.File(path, "r", locking=False)
        except (OSError, ValueError, RuntimeError) as error:
            raise RecordError(
                f"{path.name} cannot be read ({type(error).__name__}): fetch it again", "unreadable"
            ) from error

    def _get(self, path: str, element: int | None = None) -> Any:
        """Give the data set or group at a path, through hard links only."""
        import h5py

        value: Any = self._file
        try:
            for part in path.split("."):
                if not isinstance(value, h5py.Group) or not isinstance(value.get(part, getlink=True), h5py.HardLink):
                    return None
                value = value[part]
            if isinstance(value, h5py.Dataset) and value.dtype.kind == "O":
                # A structure array's field: references to its elements, in column order.
                if h5py.check_ref_dtype(value.dtype) is not h5py.Reference or not 0 < value.size <= MAX_ELEMENTS:
                    return None
                self._checked(value)
                references = value[()].reshape(-1, order="F" if value.shape[0] == 1 else "C")
                if element is not None and element >= references.size:
                    return None
                value = self._file[references[element or 0]]
        except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError) as error:
            raise self._unreadable(error) from error
        return value

    def _unreadable(self, error: Exception) -> RecordError:
        return RecordError(f"{self._path.name} cannot be read ({type(error).__name__}): fetch it again", "unreadable")

    def _checked(self, data: Any) -> Any:
        """Refuse data that lie in another file or unpack in chunks that fill the memory."""
        if data.is_virtual or data.external:
            raise RecordError(f"{self._path.name} keeps its data in another file: copy them into one", "layout")
        if data.chunks is not None and int(np.prod(data.chunks)) * data.dtype.itemsize > _MAX_CHUNK_BYTES:
            raise RecordError(f"{self._path.name} is stored in chunks of over 64 MB: write it anew", "too_large")
        return data

    def has(self, path: str) -> bool:
        """Tell whether there is something at a path."""
        return self._get(path) is not None

    def matrix(self, path: str, element: int | None) -> Matrix:
        """Give an array of numbers; of a structure array's element, when one is asked for."""
        import h5py

        data = self._get(path, element)
        if not isinstance(data, h5py.Dataset) or data.ndim != 2 or data.dtype.kind not in "fiu":
            raise RecordError(f"{path} of {self._path.name} is no array of numbers: correct the layout", "layout")
        self._checked(data)
        Budget(self._path.stat().st_size, self._path.name).spend(data.size * data.dtype.itemsize)
        columns, rows = data.shape  # MATLAB's order of the axes, reversed

        def load(axis: int, index: int, start: int, stop: int) -> NDArray[np.floating]:
            try:
                line = data[start:stop, index] if axis == 0 else data[index, start:stop]
            except (OSError, ValueError, RuntimeError) as error:
                raise self._unreadable(error) from error
            return np.asarray(line, np.float64)

        return Matrix((rows, columns), load)

    def text(self, path: str, element: int | None) -> str:
        """Give a text, or a single number as text; empty when it is neither."""
        import h5py

        data = self._get(path, element)
        if not isinstance(data, h5py.Dataset) or not 0 < data.size <= 1000 or data.dtype.kind not in "fiu":
            return ""
        try:
            values = self._checked(data)[()].reshape(-1)
        except (OSError, ValueError, RuntimeError) as error:
            raise self._unreadable(error) from error
        kind = data.attrs.get("MATLAB_class", b"")
        if kind == b"char" or (kind == b"" and data.dtype == np.uint16):
            return "".join(map(chr, values.tolist()))
        return str(values[0])

    def texts(self, path: str) -> tuple[str, ...]:
        """Give the texts of a cell."""
        count = self.elements(path)
        return tuple(self.text(path, k) for k in range(count))

    def elements(self, path: str) -> int:
        """Give the length of a structure array or a cell; a structure that is no array counts as one."""
        import h5py

        value: Any = self._file
        for part in path.split("."):
            if not isinstance(value, h5py.Group) or not isinstance(value.get(part, getlink=True), h5py.HardLink):
                return 0
            value = value[part]
        if isinstance(value, h5py.Group):
            fields = [value[key] for key in value if isinstance(value.get(key, getlink=True), h5py.HardLink)]
            sizes = [field.size for field in fields if isinstance(field, h5py.Dataset) and field.dtype.kind == "O"]
            return min(max(sizes, default=1), MAX_ELEMENTS)
        return min(int(value.size), MAX_ELEMENTS)
