"""Rows of CSV and Parquet files: what a file's beginning says, and its columns chunk by chunk."""

import base64
import csv
import gzip
import io
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from p2es.errors import RecordError
from p2es.formats.mapping import At, Layout
from p2es.formats.spool import Budget

HEAD_BYTES = 1 << 16
_CHUNK_ROWS = 65_536
_MAX_COLUMNS = 10_000
_GZIP = b"\x1f\x8b"
_PARQUET = b"PAR1"


@dataclass(frozen=True)
class Header:
    """The beginning of a table.

    Attributes
    ----------
    kind : str
        "csv" or "parquet".
    first, second : tuple of str
        Fields of the first two rows, blanks around them left out; of a Parquet file the names, and nothing.
    delimiter : str
    gzipped : bool
    """

    kind: str
    first: tuple[str, ...]
    second: tuple[str, ...] = ()
    delimiter: str = ","
    gzipped: bool = False

    def fits(self, layout: Layout) -> bool:
        """Tell whether the table has what the layout asks for."""
        match = layout.match
        if layout.headed:
            return set(match.columns) <= set(self.first)
        if self.kind == "parquet" or len(self.first) != match.width:
            return False
        if self.first in match.headers:
            return numeric(self.second) and len(self.second) == match.width
        if not (numeric(self.first) and numeric(self.second) and len(self.second) == match.width):
            return False
        at = match.counter
        return at is None or float(self.second[at]) - float(self.first[at]) == 1.0

    def has_names(self, layout: Layout) -> bool:
        """Tell whether the first row is names."""
        return layout.headed or self.first in layout.match.headers

    def places(self, at: At) -> list[int]:
        """Give the numbers of the columns called so: two may have one name."""
        if isinstance(at, int):
            return [at] if at < len(self.first) else []
        return [k for k, name in enumerate(self.first) if name == at]


def numeric(fields: Sequence[str]) -> bool:
    """Tell whether all fields are finite numbers."""
    try:
        return bool(fields) and all(np.isfinite(float(field)) for field in fields)
    except ValueError:
        return False


def head_of(data: bytes) -> Header | None:
    """Read the beginning of a text table; None when it is no text of rows."""
    gzipped = data.startswith(_GZIP)
    if gzipped:
        data = _unzipped(data)
    if b"\0" in data or not data.strip():
        return None
    text = data.decode("utf-8-sig", errors="replace")
    whole = len(data) < HEAD_BYTES // 2
    line = text.lstrip("\r\n").split("\n", 1)[0]
    delimiter = max(",;\t", key=line.count)
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
        rows: list[tuple[str, ...]] = []
        for row in reader:
            if row:
                rows.append(tuple(field.strip() for field in row))
            if len(rows) == 2:
                break
    except csv.Error:
        return None
    # The last row of a head that was cut is not whole.
    if not rows or (len(rows) == 1 and not whole) or len(rows[0]) > _MAX_COLUMNS:
        return None
    return Header("csv", rows[0], rows[1] if len(rows) > 1 else (), delimiter, gzipped)


def _unzipped(data: bytes) -> bytes:
    try:
        return zlib.decompressobj(31).decompress(data, HEAD_BYTES)
    except zlib.error:
        return b""


def header_of(path: Path) -> Header | None:
    """Read the beginning of a table; None when it is none.

    Raises
    ------
    RecordError
        When a Parquet file has types that could run code when they are read, or its end is damaged.
    """
    try:
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
    except OSError as error:
        raise RecordError(f"{path.name} cannot be opened ({type(error).__name__})", "unreadable") from error
    if head.startswith(_PARQUET):
        return Header("parquet", tuple(name.strip() for name in _parquet(path).schema_arrow.names))
    return head_of(head)


def blocks_of(
    path: Path, header: Header, layout: Layout, numbers: list[int], texts: list[int], first: dict[int, str]
) -> Iterator[dict[int, NDArray[np.floating]]]:
    """Give the numeric columns of a table chunk by chunk; put what the first row says into `first`."""
    for frame in frames_of(path, header, sorted({*numbers, *texts}), named=header.has_names(layout)):
        if not first:
            first.update({k: "" if frame[k].empty else _text(frame[k].iloc[0]) for k in texts})
        yield {k: _numbers(frame[k], path.name) for k in numbers}


def frames_of(path: Path, header: Header, places: list[int], *, named: bool = True) -> Iterator[Any]:
    """Give the columns at `places` as data frames by number, chunk by chunk; `named`: the first row is names."""
    if header.kind == "parquet":
        return _parquet_frames(path, places)
    return _csv_frames(path, header, named, places)


def _text(value: Any) -> str:
    return "" if value is None or value != value else str(value)


def _numbers(series: Any, name: str) -> NDArray[np.floating]:
    """Make numbers of a column; a word is a missing value, a decimal comma an error."""
    import pandas as pd

    if series.dtype.kind in "fiu":
        return np.asarray(series.to_numpy(), np.float64)
    if series.dtype.kind == "b":
        return np.asarray(series.to_numpy(), np.float64)
    text = series.astype("string")
    if text.str.fullmatch(r"\s*-?\d+,\d+\s*").fillna(False).any():
        raise RecordError(f"{name} writes decimals with a comma: write them with a point", "layout")
    values = pd.to_numeric(text, errors="coerce")
    return np.asarray(values.to_numpy(dtype=np.float64, na_value=np.nan), np.float64)


def _csv_frames(path: Path, header: Header, has_names: bool, places: list[int]) -> Iterator[Any]:
    """Give the columns at `places` by number, in chunks."""
    import pandas as pd

    if not places:
        return
    try:
        with _Text(path, header.gzipped) as file:
            chunks = pd.read_csv(
                file,
                header=0 if has_names else None,
                usecols=places,
                names=list(range(len(header.first))),
                sep=header.delimiter,
                skipinitialspace=True,
                chunksize=_CHUNK_ROWS,
                low_memory=False,
                encoding="utf-8-sig",
                encoding_errors="replace",
                index_col=False,
            )
            yield from chunks
    except RecordError:
        raise
    except pd.errors.EmptyDataError:
        return
    except (ValueError, OSError, EOFError, zlib.error, OverflowError, MemoryError) as error:
        what = type(error).__name__
        raise RecordError(f"{path.name} cannot be read ({what}): fetch it again", "unreadable") from error


class _Text(io.RawIOBase):
    """A text file or a gzipped one, bounded: neither a bomb nor a line without an end fills the memory."""

    def __init__(self, path: Path, gzipped: bool) -> None:
        self._file: Any = gzip.open(path, "rb") if gzipped else path.open("rb")  # noqa: SIM115 - closed with this
        self._name = path.name
        self._budget = Budget(path.stat().st_size, path.name)
        self._line = 0

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size if 0 < size < 1 << 20 else 1 << 20)
        self._budget.spend(len(data))
        at = data.rfind(b"\n")
        self._line = self._line + len(data) if at < 0 else len(data) - at
        if self._line > 1 << 22:
            raise RecordError(f"{self._name} has a line of over 4 MB: it is no table", "unreadable")
        return data

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()


def _parquet(path: Path) -> Any:
    """Open a Parquet file, if reading it can run nothing.

    Ray registers Arrow types whose metadata is code once it is imported (CVE-2026-41486), so a file that names any
    extension type is refused before pyarrow sees its schema.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if _extension_types(path):
        raise RecordError(f"{path.name} has columns of extension types: write it with plain columns", "layout")
    try:
        # Reading ahead, its default, keeps whole columns in memory: 330 MB of a day's table instead of 7.
        return pq.ParquetFile(
            path,
            pre_buffer=False,
            buffer_size=1 << 20,
            thrift_string_size_limit=1 << 26,
            thrift_container_size_limit=1 << 20,
        )
    except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
        what = type(error).__name__
        raise RecordError(f"{path.name} cannot be read ({what}): fetch it again", "unreadable") from error


def _extension_types(path: Path) -> bool:
    """Tell whether the Arrow schema in the file's end names extension types, by bytes: nothing is built of it."""
    with path.open("rb") as file:
        size = file.seek(0, io.SEEK_END)
        file.seek(max(0, size - 8))
        length = int.from_bytes(file.read(4), "little")
        if length > min(size, 1 << 26):
            raise RecordError(f"the end of {path.name} is damaged: fetch it again", "unreadable")
        file.seek(max(0, size - 8 - length))
        footer = file.read(length)
    if b"ARROW:extension:name" in footer:
        return True
    for found in re.finditer(rb"[A-Za-z0-9+/]{64,}={0,2}", footer):
        # Without knowing where in the text the schema begins: each of four alignments of base64.
        text = found.group().rstrip(b"=")
        for skip in range(4):
            part = text[skip : skip + (len(text) - skip) // 4 * 4]
            if b"ARROW:extension:name" in base64.b64decode(part):
                return True
    return False


def _parquet_frames(path: Path, places: list[int]) -> Iterator[Any]:
    import pandas as pd
    import pyarrow as pa

    file = _parquet(path)
    names = file.schema_arrow.names
    if any(file.schema_arrow.field(k).type.num_fields for k in places):
        raise RecordError(f"{path.name} has nested columns: write it with plain columns", "layout")
    try:
        wanted = [names[k] for k in places]
        for batch in file.iter_batches(batch_size=_CHUNK_ROWS, columns=list(dict.fromkeys(wanted)), use_threads=False):
            columns = {}
            for k in places:
                at = batch.schema.get_all_field_indices(names[k])
                column = batch.column(at[[i for i, n in enumerate(names) if n == names[k]].index(k)])
                columns[k] = pd.Series(column.to_numpy(zero_copy_only=False))
            yield pd.DataFrame(columns)
    except (pa.ArrowException, OSError, ValueError, IndexError, KeyError, MemoryError, OverflowError) as error:
        what = type(error).__name__
        raise RecordError(f"{path.name} cannot be read ({what}): fetch it again", "unreadable") from error
