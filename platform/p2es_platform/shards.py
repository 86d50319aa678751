"""Shards: reading the Parquet files of a dataset, each checked against its sha256 before its first use."""

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from p2es.errors import DatasetError
from p2es.windows import WINDOW_SCHEMA, check_schema
from p2es_platform import storage

QUARANTINE_SCHEMA = pa.schema(
    [
        pa.field("record", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("what", pa.string(), nullable=False),  # "window"; or what else was left out: "record", "segment", ...
        pa.field("reason", pa.string(), nullable=False),
        pa.field("detail", pa.string(), nullable=False),
        pa.field("count", pa.int64(), nullable=False),
        pa.field("person", pa.string()),  # hashed, where it is known: deletion finds the row by it
    ]
)
Item = TypeVar("Item")
Result = TypeVar("Result")

# Shards read ahead: at 4 the disk and the decoding of Parquet are hidden behind the use of the windows.
_AHEAD = 4


@dataclass(frozen=True)
class Shard:
    """One file of windows, as the manifest names it."""

    path: str
    sha256: str
    rows: int
    bytes: int
    split: str
    source: str
    simulated: bool


class HasQuarantine(Protocol):
    """A part, or what a manifest tells of it."""

    @property
    def quarantine(self) -> str | None:
        """Path of the table."""

    @property
    def quarantine_sha256(self) -> str | None:
        """Its digest."""


# Local files that had their sha256 when this process read them: path, time of change, size. A shard is hashed once a
# process, at 1.5 GB/s, and its columns can be read alone from then on.
_CHECKED: set[tuple[str, int, int]] = set()


def read_checked(url: str, path: str, sha256: str, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a table of a dataset.

    Raises
    ------
    DatasetError
        When the file is missing, is not the one with this sha256, or is no table.
    """
    address = storage.join(url, path)
    try:
        state = _state(address)
        source = address if state in _CHECKED else pa.BufferReader(_bytes(address, path, sha256))
        table = read_columns(open_parquet(source), columns)
    except FileNotFoundError as error:
        raise DatasetError(f"{path} of {url} is missing: ingest again, which remakes it") from error
    except (pa.ArrowException, OSError, KeyError) as error:
        raise DatasetError(f"{path} of {url} is corrupt: remove it and ingest again") from error
    if state is not None:
        _CHECKED.add(state)
    return table


def open_parquet(source: Any) -> pq.ParquetFile:
    """Open a Parquet file; ArrowInvalid when it is none.

    Arrow hands the metadata of an extension type to whoever registered its name, as soon as the schema is read; Ray
    did run code from it (CVE-2026-41486, mended in 2.55), and still raises what it likes.
    """
    try:
        return pq.ParquetFile(source)
    except (pa.ArrowException, OSError):
        raise
    except Exception as error:
        raise pa.ArrowInvalid("its schema cannot be read") from error


def read_columns(file: pq.ParquetFile, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a Parquet file in this thread.

    Arrow's own threads may be the last to hold the bytes; one that gives them back while the interpreter ends is
    unwound by it through C++ and takes the process down (exit status 134, 3 of 10 runs of `p2es dataset show`).
    """
    return file.read(columns=None if columns is None else list(columns), use_threads=False)


def _state(address: str) -> tuple[str, int, int] | None:
    if not storage.is_local(address):
        return None
    found = Path(address).stat()
    return str(Path(address).resolve()), found.st_mtime_ns, found.st_size


def _bytes(address: str, path: str, sha256: str) -> bytes:
    data = storage.read_bytes(address)
    if hashlib.sha256(data).hexdigest() != sha256:
        raise DatasetError(f"{path} of {address.removesuffix(path).rstrip('/')} is corrupt: remove it and ingest again")
    return data


def read_shard(url: str, shard: Shard, columns: Sequence[str] | None = None) -> pa.Table:
    """Read windows; decode them with `p2es.windows.decode`.

    Raises
    ------
    DatasetError
        When the file is missing, damaged, of another schema, or has not the windows that the manifest counts.
    """
    table = read_checked(url, shard.path, shard.sha256, columns)
    check_schema(table.schema)
    fields = {field.name: field.type for field in WINDOW_SCHEMA}
    expected = list(fields) if columns is None else list(columns)
    there = set(expected) <= set(table.column_names)
    same = there and all(table.schema.field(name).type == fields[name] for name in expected)
    if not same or table.num_rows != shard.rows:
        raise DatasetError(f"{shard.path} of {url} is not a shard of windows: remove it and ingest again")
    return table if table.column_names == expected else table.select(expected)


def read_quarantine(url: str, part: HasQuarantine) -> pa.Table:
    """Read what was left out of a part, and why."""
    if part.quarantine is None:
        return QUARANTINE_SCHEMA.empty_table()
    table = read_checked(url, part.quarantine, part.quarantine_sha256 or "")
    if not table.schema.equals(QUARANTINE_SCHEMA):
        raise DatasetError(f"{part.quarantine} of {url} is no quarantine table: remove it and ingest again")
    return table


def read_shards(url: str, shards: Iterable[Shard], columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """Read shards in their order, a table each, the next ones being read meanwhile."""
    return ahead(lambda shard: read_shard(url, shard, columns), shards)


def ahead(work: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Do some work on items in threads, the next ones while the caller uses one; results in the items' order."""
    items = list(items)
    if len(items) == 1:
        # Starting threads takes longer than reading a small shard.
        yield work(items[0])
        return
    waiting: deque[Future[Result]] = deque()
    pool = ThreadPoolExecutor(max_workers=_AHEAD, thread_name_prefix="shards")
    try:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) > _AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
