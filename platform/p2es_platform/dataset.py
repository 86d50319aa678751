"""The dataset: a version of it, and what can be read of that. How it is written: `parts`, `versions`, `maintenance`."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from p2es.errors import DatasetError
from p2es.tables import COLUMNS, LISTED, WindowList, batch_of, list_of
from p2es.windows import WindowBatch, WindowStore
from p2es_platform import storage, versions
from p2es_platform.parts import (
    SPLITS,
    Part,
    PartWriter,
    finished_part,
    is_whole,
    load_part,
    rewrite_part,
    whole_parts,
    write_part,
)
from p2es_platform.shards import QUARANTINE_SCHEMA, Shard, ahead, read_quarantine, read_shard, read_shards

__all__ = [
    "QUARANTINE_SCHEMA",
    "SPLITS",
    "Dataset",
    "Part",
    "PartWriter",
    "Shard",
    "commit",
    "finished_part",
    "is_whole",
    "rewrite_part",
    "whole_parts",
    "write_part",
]

_PEOPLE = ["person", "split", "age_years", "sex", "height_cm", "weight_kg"]
# Windows held as float32 at a time: 17 MB.
_DECODE_ROWS = 256
_THREADS = 16


@dataclass(frozen=True)
class _Quarantine:
    quarantine: str | None
    quarantine_sha256: str | None


@dataclass(frozen=True)
class Dataset:
    """A version of a dataset: what its manifest names."""

    url: str
    manifest: Mapping[str, Any]

    @classmethod
    def open(cls, url: str, version: int | None = None) -> "Dataset":
        """Open a version, or the newest; DatasetError when there is none, or it is damaged or of another p2es."""
        return cls(url, versions.read(url, version))

    @property
    def version(self) -> int:
        """Its number, from 1."""
        return int(self.manifest["number"])

    @property
    def deleted(self) -> frozenset[str]:
        """Hashed ids of the people who were deleted: no ingest may bring them back."""
        return frozenset(self.manifest["deleted"])

    @cached_property
    def parts(self) -> tuple[Part, ...]:
        """What the ingests made, with the records and people of each; read from the parts' own files."""
        entries = self.manifest["parts"]
        with ThreadPoolExecutor(min(_THREADS, len(entries)) or 1) as pool:
            return tuple(pool.map(lambda entry: load_part(self.url, entry["path"], entry["sha256"]), entries))

    @property
    def hash(self) -> str:
        """SHA-256 over the sorted hashes of the shards: the same windows give the same hash."""
        return str(self.manifest["hash"])

    @cached_property
    def _shards(self) -> tuple[Shard, ...]:
        found = [Shard(**shard) for part in self.manifest["parts"] for shard in part["shards"]]
        return tuple(sorted(found, key=lambda shard: shard.path))

    def shards(self, split: str | None = None) -> list[Shard]:
        """Give the shards of a split, or all, in the order of their paths."""
        return [shard for shard in self._shards if split in (None, shard.split)]

    def shard_paths(self, split: str) -> list[str]:
        """Give the addresses of a split's files."""
        return [storage.join(self.url, shard.path) for shard in self.shards(split)]

    def read_windows(self, split: str, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """Read a split, a table a shard; decode the tables with `p2es.windows.decode`."""
        return read_shards(self.url, self.shards(split), columns)

    def rows(self, split: str) -> int:
        """Count the windows of a split."""
        return sum(shard.rows for shard in self.shards(split))

    def store(self, split: str, *, channels: int = 1, limit: int | None = None) -> WindowStore:
        """Read a split into memory, 34 kB a window; with a `limit`, that many windows spread evenly over it."""
        total = self._some(split)
        kept = np.linspace(0, total - 1, min(limit or total, total)).round().astype(np.int64)
        return self.chosen(split, kept, channels=channels)

    def chosen(self, split: str, rows: NDArray[np.int64], *, channels: int = 1) -> WindowStore:
        """Read the windows of a split at `rows`, which rise, into memory; a shard without any is not read.

        Some five shards of 6 MB are held at a time, besides what is chosen.
        """
        return WindowStore.from_batches(self._batches(split, rows, channels))

    def listed(self, split: str) -> WindowList:
        """List the windows of a split in their order, without their signals; DatasetError when it has none."""
        self._some(split)
        return list_of(self.read_windows(split, LISTED))

    def _some(self, split: str) -> int:
        total = self.rows(split)
        if total == 0:
            raise DatasetError(f"{self.url} has no {split} windows: ingest more people, or raise the split's share")
        return total

    def batches(self, split: str, *, channels: int = 1) -> Iterator[WindowBatch]:
        """Read a split as arrays, up to 256 windows at a time, the next ones being decoded meanwhile."""
        return self._batches(split, np.arange(self.rows(split)), channels)

    def _batches(self, split: str, kept: NDArray[np.int64], channels: int) -> Iterator[WindowBatch]:
        """Decode the windows at `kept`; a shard without one is not read."""
        ends = np.cumsum([shard.rows for shard in self.shards(split)])
        chosen = []
        for shard, end in zip(self.shards(split), ends, strict=True):
            mine = kept[(kept >= end - shard.rows) & (kept < end)] - (end - shard.rows)
            if mine.size:
                chosen.append((shard, mine))

        def decoded(item: tuple[Shard, NDArray[np.int64]]) -> list[WindowBatch]:
            shard, mine = item
            table = read_shard(self.url, shard, COLUMNS)
            table = table if len(mine) == table.num_rows else table.take(mine)
            return [batch_of(table.slice(k, _DECODE_ROWS), channels) for k in range(0, len(mine), _DECODE_ROWS)]

        return (batch for batches in ahead(decoded, chosen) for batch in batches)

    def people(self, split: str | None = None) -> pa.Table:
        """Give one row a person: person, split, age_years, sex, height_cm, weight_kg; sorted by person."""
        tables = list(read_shards(self.url, self.shards(split), _PEOPLE))
        if not tables:
            raise DatasetError(f"{self.url} has no {split or ''} windows: ingest more people")
        table = pa.concat_tables(table.replace_schema_metadata() for table in tables)
        values = [name for name in _PEOPLE if name != "person"]
        found = table.group_by("person", use_threads=False).aggregate([(name, "first") for name in values])
        return found.rename_columns([name.removesuffix("_first") for name in found.column_names]).sort_by("person")

    def quarantine(self) -> pa.Table:
        """Give what was left out, and why."""
        entries = [_Quarantine(part["quarantine"], part["quarantine_sha256"]) for part in self.manifest["parts"]]
        tables = [read_quarantine(self.url, entry) for entry in entries if entry.quarantine is not None]
        return pa.concat_tables(tables) if tables else QUARANTINE_SCHEMA.empty_table()

    def verify(self, progress: Callable[[Shard], object] | None = None) -> None:
        """Check every file and every window (see `verifying.problems`); DatasetError with the first that is wrong."""
        from p2es_platform.verifying import problems

        found = problems(self, progress)
        if found:
            raise DatasetError(found[0] if len(found) == 1 else f"{found[0]} (and {len(found) - 1} more)")

    def read(self, shard: Shard, columns: Sequence[str] | None = None) -> pa.Table:
        """Read one shard."""
        return read_shard(self.url, shard, columns)


def commit(url: str, parts: Sequence[Part], ingest: Mapping[str, Any], base_version: int | None = None) -> Dataset:
    """Make the next version of a dataset, see `versions.commit`, and give it."""
    return Dataset(url, versions.commit(url, parts, ingest, base_version))
