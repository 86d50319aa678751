"""Verify: every file, window, person and count of a dataset, in parallel and in bounded memory."""

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from p2es.errors import DatasetError
from p2es.windows import WINDOW_SCHEMA, check_schema
from p2es_platform import storage
from p2es_platform.dataset import Dataset
from p2es_platform.parts import Part, in_two_splits, load_part, rejected_windows
from p2es_platform.shards import Shard, open_parquet, read_columns, read_quarantine

# Shards in memory at once: 6 MB each.
_THREADS = 8
# A digest of 16 bytes as two integers, which sort a hundred times faster than bytes.
_DIGEST = np.dtype([("high", "<u8"), ("low", "<u8")])


@dataclass(frozen=True)
class _Read:
    """What verifying one shard leaves behind: 32 bytes a window."""

    shard: Shard
    problem: str | None
    ids: NDArray[np.void]
    contents: NDArray[np.void]
    people: frozenset[str]


def problems(dataset: Dataset, progress: Callable[[Shard], object] | None = None) -> list[str]:
    """Give what is wrong with a dataset, a line each; nothing when it is whole.

    Checked: the sha256 of every file; the schema, rows, split and source of every shard; that no window is there
    twice, no person in two splits, no deleted person there at all, no signals in two splits (by the column
    `content`); that each part's candidates are its windows and its rejected windows, exactly.

    Parameters
    ----------
    dataset : Dataset
    progress : callable, optional
        Called with each shard when it is done.
    """
    found: list[str] = []
    parts = list(_parts(dataset, found))
    reads: list[_Read] = []
    splits: dict[str, str] = {}
    for read in _in_order(dataset):
        if read.problem is not None:
            found.append(read.problem)
        found += _people(read, splits, dataset.deleted)
        reads.append(read)
        if progress is not None:
            progress(read.shard)
    found += _repeated_windows(dataset, reads)
    found += _shared_signals(dataset, reads)
    for part in parts:
        found += _accounts(dataset, part, splits)
    return found


def _parts(dataset: Dataset, found: list[str]) -> Iterator[Part]:
    for entry in dataset.manifest["parts"]:
        try:
            yield load_part(dataset.url, entry["path"], entry["sha256"])
        except DatasetError as error:
            found.append(str(error))


def _in_order(dataset: Dataset) -> Iterator[_Read]:
    waiting: deque[Any] = deque()
    with ThreadPoolExecutor(_THREADS) as pool:
        for shard in dataset.shards():
            waiting.append(pool.submit(_read, dataset.url, shard))
            if len(waiting) >= _THREADS:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _read(url: str, shard: Shard) -> _Read:
    try:
        table = _table(url, shard)
    except DatasetError as error:
        nothing = np.zeros(0, _DIGEST)
        return _Read(shard, str(error), nothing, nothing, frozenset())
    problem = None
    if table.num_rows != shard.rows:
        problem = f"{shard.path} of {url} has {table.num_rows} windows, the manifest says {shard.rows}: ingest again"
    for column, value in (("split", shard.split), ("source", shard.source)):
        others = table.filter(pc.not_equal(table[column], value)).num_rows
        if others and problem is None:
            problem = f"{shard.path} of {url} has {others} windows of another {column} than {value}: ingest again"
    contents = _digests(table["content"].to_pylist()) if "content" in table.column_names else np.zeros(0, _DIGEST)
    people = frozenset(table["person"].unique().to_pylist())
    return _Read(shard, problem, _digests(table["window_id"].to_pylist()), contents, people)


def _table(url: str, shard: Shard) -> pa.Table:
    """Read the bytes from the storage, whatever was read before, and check them."""
    columns = ["window_id", "person", "split", "source"]
    columns += ["content"] if "content" in WINDOW_SCHEMA.names else []
    try:
        data = storage.read_bytes(storage.join(url, shard.path))
    except FileNotFoundError as error:
        raise DatasetError(f"{shard.path} of {url} is missing: ingest again, which remakes it") from error
    if hashlib.sha256(data).hexdigest() != shard.sha256:
        raise DatasetError(f"{shard.path} of {url} is corrupt: remove it and ingest again")
    try:
        file = open_parquet(pa.BufferReader(data))
        check_schema(file.schema_arrow)
        return read_columns(file, columns)
    except (pa.ArrowException, OSError, KeyError) as error:
        raise DatasetError(f"{shard.path} of {url} is no table of windows: remove it and ingest again") from error


def _digests(values: Iterable[str | bytes | None]) -> NDArray[np.void]:
    raw = b"".join(
        hashlib.blake2b(value.encode() if isinstance(value, str) else value or b"", digest_size=16).digest()
        for value in values
    )
    return np.frombuffer(raw, _DIGEST)


def _people(read: _Read, splits: dict[str, str], deleted: frozenset[str]) -> Iterator[str]:
    for person in sorted(read.people):
        if splits.setdefault(person, read.shard.split) != read.shard.split:
            yield in_two_splits(person, read.shard.split, splits[person])
        if person in deleted:
            yield f"person {person[:12]} was deleted and is in {read.shard.path}: delete the person again"


def _repeats(digests: list[NDArray[np.void]]) -> Iterator[NDArray[np.int64]]:
    """Give the places, in all arrays put together, of each digest that is there more than once."""
    if not digests:
        return
    whole = np.concatenate(digests)
    order = np.lexsort((whole["low"], whole["high"]))
    ordered = whole[order]
    first = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]])) if len(ordered) else np.zeros(0, int)
    ends = np.append(first[1:], len(ordered))
    for start, end in zip(first[ends - first > 1], ends[ends - first > 1], strict=True):
        yield np.sort(order[start:end])


def _repeated_windows(dataset: Dataset, reads: list[_Read]) -> Iterator[str]:
    starts = np.cumsum([0, *(len(read.ids) for read in reads)])
    for places in _repeats([read.ids for read in reads]):
        shard = reads[int(np.searchsorted(starts, places[1], side="right")) - 1].shard
        yield f"{shard.path} of {dataset.url} repeats windows: ingest into a new dataset"


def _shared_signals(dataset: Dataset, reads: list[_Read]) -> Iterator[str]:
    reads = [read for read in reads if len(read.contents)]
    starts = np.cumsum([0, *(len(read.contents) for read in reads)])
    for places in _repeats([read.contents for read in reads]):
        owners = np.searchsorted(starts, places, side="right") - 1
        shards = [reads[int(owner)].shard for owner in owners]
        if len({shard.split for shard in shards}) < 2:
            continue
        other = next(k for k, shard in enumerate(shards) if shard.split != shards[0].split)
        people = [_person(dataset, shards[k], int(places[k] - starts[owners[k]])) for k in (0, other)]
        yield (
            f"the same signals are in {shards[0].split} (person {people[0][:12]}) and {shards[other].split} "
            f"(person {people[1][:12]}): ingest the archives as one source family"
        )


def _person(dataset: Dataset, shard: Shard, row: int) -> str:
    return str(dataset.read(shard, ["person"])["person"][row].as_py())


def _accounts(dataset: Dataset, part: Part, splits: dict[str, str]) -> Iterator[str]:
    """Check the counts of a part, and that it names the people of its shards."""
    try:
        left_out = read_quarantine(dataset.url, part)
    except DatasetError as error:
        yield str(error)
        return
    rejected = rejected_windows(left_out)
    if part.candidates != part.rows + rejected:
        yield (
            f"part {part.key[:12]} of {dataset.url} tried {part.candidates} windows, has {part.rows} and left out "
            f"{rejected}: ingest again"
        )
    if int(pc.sum(left_out["count"]).as_py() or 0) != sum(part.quarantined.values()):
        yield f"part {part.key[:12]} of {dataset.url} counts another quarantine than it has: ingest again"
    if any(splits.get(person, split) != split for person, split in part.people.items()):
        yield f"part {part.key[:12]} of {dataset.url} names people of another split: ingest again"
