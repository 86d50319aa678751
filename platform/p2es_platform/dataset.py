"""The dataset: Parquet shards keyed by content, and a manifest that says which exist.

<dataset>/manifest.json                     written last; the dataset is what it names
<dataset>/shards/<split>/<key>.parquet      windows
<dataset>/quarantine/<key>.parquet          records and windows that were left out, with the reason
<dataset>/parts/<key>.json                  what a finished task made, so that a killed ingest resumes
"""

import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from p2es.errors import DatasetError
from p2es.windows import SCHEMA_VERSION, Window, WindowBatch, WindowStore, check_schema, collate, decode, encode
from p2es_platform import storage

FORMAT = "p2es-dataset"
VERSION = 1
SPLITS = ("train", "validation", "test")

QUARANTINE_SCHEMA = pa.schema(
    [
        pa.field("record", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("what", pa.string(), nullable=False),  # "record" or "window"
        pa.field("reason", pa.string(), nullable=False),
        pa.field("detail", pa.string(), nullable=False),
        pa.field("count", pa.int64(), nullable=False),
    ]
)
_PEOPLE = ["person", "split", "age_years", "sex", "height_cm", "weight_kg"]
# Windows a row group: a reader that wants a few windows need not decode a whole shard.
_ROW_GROUP = 64
# Windows held as float32 at a time: 17 MB.
_DECODE_ROWS = 256


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


@dataclass(frozen=True)
class Part:
    """What one task of an ingest made: shards and the records they came from.

    Attributes
    ----------
    key : str
        Of the contents of the records and of how they were read.
    records : dict
        Hashed id of each record, read well or badly, to the sha256 of its files.
    shards : tuple of Shard
    quarantine : str or None
        Path of the table of what was left out.
    quarantined : dict
        Reason to count.
    """

    key: str
    records: Mapping[str, str]
    shards: tuple[Shard, ...]
    quarantine: str | None = None
    quarantined: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Part":
        """Undo `dataclasses.asdict`."""
        return cls(**{**values, "shards": tuple(Shard(**shard) for shard in values["shards"])})


@dataclass(frozen=True)
class Dataset:
    """A dataset that exists: what its manifest names."""

    url: str
    manifest: Mapping[str, Any]

    @classmethod
    def open(cls, url: str) -> "Dataset":
        """Read the manifest; DatasetError when there is none, or one of another version."""
        try:
            manifest = dict(json.loads(storage.read_bytes(storage.join(url, "manifest.json"))))
        except FileNotFoundError as error:
            raise DatasetError(f"there is no dataset in {url}: `p2es ingest` makes one") from error
        except (ValueError, TypeError) as error:
            raise DatasetError(f"the manifest of {url} is corrupt: ingest again, finished shards are reused") from error
        found = (manifest.get("format"), manifest.get("version"), manifest.get("schema_version"))
        if found != (FORMAT, VERSION, SCHEMA_VERSION):
            raise DatasetError(
                f"{url} is {found[0]} {found[1]} with window schema {found[2]}, this p2es reads {FORMAT} {VERSION} "
                f"with {SCHEMA_VERSION}: ingest again"
            )
        return cls(url, manifest)

    @cached_property
    def parts(self) -> tuple[Part, ...]:
        """What the ingests made."""
        return tuple(Part.from_dict(part) for part in self.manifest["parts"])

    @cached_property
    def hash(self) -> str:
        """SHA-256 over the sorted hashes of the shards: the same windows give the same hash."""
        return _hash(shard.sha256 for part in self.parts for shard in part.shards)

    def shards(self, split: str | None = None) -> list[Shard]:
        """Give the shards of a split, or all, in the order of their paths."""
        found = [shard for part in self.parts for shard in part.shards if split in (None, shard.split)]
        return sorted(found, key=lambda shard: shard.path)

    def shard_paths(self, split: str) -> list[str]:
        """Give the addresses of a split's files."""
        return [storage.join(self.url, shard.path) for shard in self.shards(split)]

    def read_windows(self, split: str, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """Read a split, a table a shard; decode the tables with `p2es.windows.decode`."""
        for shard in self.shards(split):
            table = self._read(shard.path, None if columns is None else list(columns))
            check_schema(table.schema)
            yield table

    def rows(self, split: str) -> int:
        """Count the windows of a split."""
        return sum(shard.rows for shard in self.shards(split))

    def store(self, split: str, *, channels: int = 1, limit: int | None = None) -> WindowStore:
        """Read a split into memory, 34 kB a window; with a `limit`, that many windows spread evenly over it."""
        total = self.rows(split)
        if total == 0:
            raise DatasetError(f"{self.url} has no {split} windows: ingest more people, or raise the split's share")
        kept = np.linspace(0, total - 1, min(limit or total, total)).round().astype(np.int64)
        return WindowStore.from_batches(self._batches(split, kept, channels))

    def _batches(self, split: str, kept: NDArray[np.int64], channels: int) -> Iterator[WindowBatch]:
        seen = 0
        for table in self.read_windows(split):
            mine = kept[(kept >= seen) & (kept < seen + table.num_rows)] - seen
            seen += table.num_rows
            for start in range(0, len(mine), _DECODE_ROWS):
                yield collate(decode(table.take(mine[start : start + _DECODE_ROWS])), channels)

    def people(self, split: str | None = None) -> pa.Table:
        """Give one row a person: person, split, age_years, sex, height_cm, weight_kg; sorted by person."""
        tables = [self._read(shard.path, _PEOPLE) for shard in self.shards(split)]
        if not tables:
            raise DatasetError(f"{self.url} has no {split or ''} windows: ingest more people")
        table = pa.concat_tables(table.replace_schema_metadata() for table in tables)
        values = [name for name in _PEOPLE if name != "person"]
        found = table.group_by("person", use_threads=False).aggregate([(name, "first") for name in values])
        return found.rename_columns([name.removesuffix("_first") for name in found.column_names]).sort_by("person")

    def quarantine(self) -> pa.Table:
        """Give what was left out, and why."""
        tables = [self._read(part.quarantine) for part in self.parts if part.quarantine is not None]
        return pa.concat_tables(tables) if tables else QUARANTINE_SCHEMA.empty_table()

    def verify(self) -> None:
        """Check every file against the manifest, and that no person is in two splits; DatasetError when not."""
        ids: set[str] = set()
        splits: dict[str, str] = {}
        for shard in self.shards():
            try:
                data = storage.read_bytes(storage.join(self.url, shard.path))
            except FileNotFoundError as error:
                raise DatasetError(f"{shard.path} of {self.url} is missing: ingest again, which remakes it") from error
            if hashlib.sha256(data).hexdigest() != shard.sha256:
                raise DatasetError(f"{shard.path} of {self.url} is corrupt: remove it and ingest again")
            table = pq.read_table(io.BytesIO(data), columns=["window_id", "person"])
            names = table["window_id"].to_pylist()
            if len(names) != shard.rows or not ids.isdisjoint(names) or len(set(names)) != len(names):
                raise DatasetError(f"{shard.path} of {self.url} repeats windows: ingest into a new dataset")
            ids.update(names)
            for person in set(table["person"].to_pylist()):
                if splits.setdefault(person, shard.split) != shard.split:
                    raise DatasetError(f"person {person[:8]} is in {splits[person]} and {shard.split}: ingest again")

    def _read(self, path: str, columns: list[str] | None = None) -> pa.Table:
        url = storage.join(self.url, path)
        try:
            source: Any = url if storage.is_local(url) else io.BytesIO(storage.read_bytes(url))
            return pq.read_table(source, columns=columns, partitioning=None)
        except FileNotFoundError as error:
            raise DatasetError(f"{path} of {self.url} is missing: ingest again") from error
        except (pa.ArrowInvalid, OSError) as error:
            raise DatasetError(f"{path} of {self.url} is corrupt: remove it and ingest again") from error


def _hash(hashes: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(sorted(hashes)).encode()).hexdigest()


def finished_part(url: str, key: str) -> Part | None:
    """Give what an earlier run made under this key, when all its files are there."""
    try:
        part = Part.from_dict(json.loads(storage.read_bytes(storage.join(url, "parts", f"{key}.json"))))
    except (FileNotFoundError, ValueError):
        return None
    return part if is_whole(url, part) else None


def is_whole(url: str, part: Part) -> bool:
    """Tell whether all files of a part are there, the shards in the size they were written (`verify` reads them)."""
    shards = all(storage.size(storage.join(url, shard.path)) == shard.bytes for shard in part.shards)
    return shards and (part.quarantine is None or storage.exists(storage.join(url, part.quarantine)))


def write_part(
    url: str,
    key: str,
    source: str,
    records: Mapping[str, str],
    windows: Sequence[Window],
    left_out: Sequence[Mapping[str, Any]],
) -> Part:
    """Write the shards and the quarantine table of one task, and, last, the note that they are whole."""
    shards = []
    for split in SPLITS:
        chosen = [window for window in windows if window.split == split]
        if chosen:
            path = f"shards/{split}/{key}.parquet"
            data = _parquet(encode(chosen))
            storage.write_atomic(storage.join(url, path), data)
            digest = hashlib.sha256(data).hexdigest()
            simulated = all(window.simulated for window in chosen)
            shards.append(Shard(path, digest, len(chosen), len(data), split, source, simulated))
    quarantine = None
    counts: dict[str, int] = {}
    if left_out:
        quarantine = f"quarantine/{key}.parquet"
        table = pa.Table.from_pylist([dict(row) for row in left_out], schema=QUARANTINE_SCHEMA)
        storage.write_atomic(storage.join(url, quarantine), _parquet(table))
        for row in left_out:
            counts[row["reason"]] = counts.get(row["reason"], 0) + int(row["count"])
    part = Part(key, dict(records), tuple(shards), quarantine, counts)
    storage.write_atomic(storage.join(url, "parts", f"{key}.json"), json.dumps(asdict(part)).encode())
    return part


def _parquet(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    # 10 % smaller than without (22 of 24 kB a window), for 40 us a window; dictionaries only cost time.
    pq.write_table(
        table, sink, row_group_size=_ROW_GROUP, compression="zstd", use_dictionary=False, write_statistics=False
    )
    return sink.getvalue()


def commit(url: str, parts: Sequence[Part], ingest: Mapping[str, Any]) -> Dataset:
    """Write the manifest: from now on the dataset is these parts.

    Raises
    ------
    DatasetError
        When a record would be in it twice.
    """
    seen: set[str] = set()
    for part in parts:
        if not seen.isdisjoint(part.records):
            raise DatasetError("a record is in two parts: ingest into a new dataset")
        seen.update(part.records)
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        "schema_version": SCHEMA_VERSION,
        "ingest": dict(ingest),
        "hash": _hash(shard.sha256 for part in parts for shard in part.shards),
        "windows": sum(shard.rows for part in parts for shard in part.shards),
        "parts": [asdict(part) for part in sorted(parts, key=lambda part: part.key)],
    }
    storage.write_atomic(storage.join(url, "manifest.json"), json.dumps(manifest, indent=1).encode())
    return Dataset.open(url)
