"""Parts: what one task of an ingest makes, written in bounded shards as the windows come, and changed by a copy.

<dataset>/shards/<split>/<key>-<n>-<digest>.parquet   windows
<dataset>/quarantine/<key>-<digest>.parquet           records and windows that were left out, with the reason
<dataset>/parts/<key>/<digest>.json                   written last: the part is what it names

Names carry a digest of the bytes: a file that a version of the dataset names is never replaced by another.
"""

import hashlib
import io
import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from types import TracebackType
from typing import Any, Self

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from p2es.errors import DatasetError
from p2es.windows import Window, encode
from p2es_platform import storage
from p2es_platform.shards import QUARANTINE_SCHEMA, Shard, read_quarantine, read_shard, read_shards

SPLITS = ("train", "validation", "test")
SHARD_ROWS = 256
"""Windows a shard: 6 MB, which is what a writer holds of each split and a reader of each shard."""
# Windows a row group: a reader that wants a few windows need not decode a whole shard.
_ROW_GROUP = 64


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
    candidates : int
        Window positions tried: the rows of the shards and the windows in the quarantine table, exactly.
    notes : dict
        Reason to count, of what was left out of windows that are kept.
    people : dict
        Hashed id of each person with a window to the split.
    quarantine_sha256 : str or None
    derived : bool
        Whether windows were taken out of it since: it is no longer what its key says.
    recordings : dict
        Hashed id of each recording with a window to that of its record: by it a window that is left out later is told
        under the name that the archive has for it.
    """

    key: str
    records: Mapping[str, str]
    shards: tuple[Shard, ...]
    quarantine: str | None = None
    quarantined: Mapping[str, int] = field(default_factory=dict)
    candidates: int = 0
    notes: Mapping[str, int] = field(default_factory=dict)
    people: Mapping[str, str] = field(default_factory=dict)
    quarantine_sha256: str | None = None
    derived: bool = False
    recordings: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Part":
        """Undo `dataclasses.asdict`."""
        return cls(**{**values, "shards": tuple(Shard(**shard) for shard in values["shards"])})

    def to_bytes(self) -> bytes:
        """Give the one JSON of this part."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        if not self.recordings:
            # Parts of before there was this field keep their name, which is the digest of these bytes.
            del values["recordings"]
        return json.dumps({**values, "shards": [vars(shard) for shard in self.shards]}, sort_keys=True).encode()

    @cached_property
    def sha256(self) -> str:
        """Digest of its JSON."""
        return _digest(self.to_bytes())

    @property
    def path(self) -> str:
        """Where the part's own file is, in the dataset."""
        return f"parts/{self.key}/{self.sha256[:16]}.json"

    @property
    def rows(self) -> int:
        """Windows in it."""
        return sum(shard.rows for shard in self.shards)

    def files(self) -> list[str]:
        """Give the paths of all its files."""
        found = [shard.path for shard in self.shards]
        return [*found, self.path] if self.quarantine is None else [*found, self.quarantine, self.path]


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class PartWriter:
    """Writes a part as its windows come, holding at most `rows` encoded windows of each split.

    A context manager. Nothing of a part exists for readers before `finish` returns and the part is committed; what an
    interrupted one leaves is written over by the next attempt or collected. The bytes depend on the windows and their
    order alone, not on how they were handed over.

    Parameters
    ----------
    url, key, source : str
        Of the dataset; of the part; the institution family.
    rows : int
        Windows a shard.
    """

    def __init__(self, url: str, key: str, source: str, *, rows: int = SHARD_ROWS) -> None:
        self._url, self._key, self._source, self._rows = url, key, source, rows
        self._waiting: dict[str, list[pa.Table]] = {split: [] for split in SPLITS}
        self._count = dict.fromkeys(SPLITS, 0)
        self._shards: list[Shard] = []
        self._people: dict[str, str] = {}
        self._recordings: dict[str, str] = {}
        self._left_out: list[dict[str, Any]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._waiting.clear()

    def add(self, windows: Iterable[Window], record: str = "") -> None:
        """Take windows, in the order they shall have, and write the shards that are full.

        Parameters
        ----------
        windows : iterable of Window
        record : str
            Hashed id of the record that they were cut from.

        Raises
        ------
        DatasetError
            When a person is in two splits, or there is no space.
        """
        pending = iter(windows)
        while chosen := list(itertools.islice(pending, self._rows)):
            self._take(chosen)
            if record:
                self._recordings |= {window.recording: record for window in chosen}

    def _take(self, windows: Sequence[Window]) -> None:
        by_split: dict[str, list[Window]] = {}
        for window in windows:
            if self._people.setdefault(window.person, window.split) != window.split:
                raise DatasetError(in_two_splits(window.person, window.split, self._people[window.person]))
            by_split.setdefault(window.split, []).append(window)
        for split, chosen in by_split.items():
            self._waiting[split].append(encode(chosen))
            self._count[split] += len(chosen)
            if self._count[split] >= self._rows:
                self._write(split, self._rows)

    def leave_out(self, row: Mapping[str, Any]) -> None:
        """Note what was left out: record, source, what, reason, detail, count, and the person where it is known."""
        self._left_out.append(dict(row))

    def finish(self, records: Mapping[str, str], candidates: int, notes: Mapping[str, int] | None = None) -> Part:
        """Write what is left, the quarantine table and, last, the part's own file.

        Parameters
        ----------
        records : mapping
            Hashed id of each record to the sha256 of its files.
        candidates : int
            Window positions tried.
        notes : mapping, optional
            Reason to count, of what was left out of windows that are kept.
        """
        for split in SPLITS:
            self._write(split, self._count[split])
        part = Part(
            self._key,
            dict(records),
            tuple(sorted(self._shards, key=lambda shard: shard.path)),
            candidates=candidates,
            notes=dict(sorted((notes or {}).items())),
            people=dict(sorted(self._people.items())),
            recordings=dict(sorted(self._recordings.items())),
        )
        return _finish(self._url, part, pa.Table.from_pylist(self._left_out, schema=QUARANTINE_SCHEMA))

    def _write(self, split: str, rows: int) -> None:
        """Write the first `rows` windows that wait."""
        if not rows:
            return
        table = pa.concat_tables(self._waiting[split])
        rest = table.slice(rows)
        self._waiting[split] = [rest] if rest.num_rows else []
        self._count[split] = rest.num_rows
        number = sum(shard.split == split for shard in self._shards)
        stem = f"shards/{split}/{self._key}-{number:05d}"
        self._shards.append(_write_shard(self._url, stem, table.slice(0, rows), split, self._source))


def in_two_splits(person: str, split: str, other: str) -> str:
    """Say that a person is on both sides."""
    return f"person {person[:12]} is in {' and '.join(sorted({split, other}))}: ingest again with one rule of splits"


def _write_shard(url: str, stem: str, table: pa.Table, split: str, source: str) -> Shard:
    data = _parquet(table)
    digest = _digest(data)
    path = f"{stem}-{digest[:12]}.parquet"
    storage.write_atomic(storage.join(url, path), data)
    simulated = bool(pc.all(table["simulated"]).as_py())
    return Shard(path, digest, table.num_rows, len(data), split, source, simulated)


def _parquet(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    # 10 % smaller than without (22 of 24 kB a window), for 40 us a window; dictionaries only cost time. Chunks are
    # joined first, because pages end where they end.
    pq.write_table(
        table.combine_chunks(), sink, row_group_size=_ROW_GROUP, compression="zstd", use_dictionary=False,
        write_statistics=False,
    )  # fmt: skip
    return sink.getvalue()


def _finish(url: str, part: Part, left_out: pa.Table) -> Part:
    """Write the quarantine table of a part, and then its own file."""
    quarantine = digest = None
    counts: Counter[str] = Counter()
    if left_out.num_rows:
        data = _parquet(left_out)
        digest = _digest(data)
        quarantine = f"quarantine/{part.key}-{digest[:12]}.parquet"
        storage.write_atomic(storage.join(url, quarantine), data)
        for reason, count in zip(left_out["reason"].to_pylist(), left_out["count"].to_pylist(), strict=True):
            counts[reason] += count
    whole = replace(part, quarantine=quarantine, quarantine_sha256=digest, quarantined=dict(sorted(counts.items())))
    storage.write_atomic(storage.join(url, whole.path), whole.to_bytes())
    return whole


def rejected_windows(left_out: pa.Table) -> int:
    """Count the windows of a quarantine table."""
    chosen = left_out.filter(pc.equal(left_out["what"], "window"))
    return int(pc.sum(chosen["count"]).as_py() or 0)


def write_part(
    url: str,
    key: str,
    source: str,
    records: Mapping[str, str],
    windows: Sequence[Window],
    left_out: Sequence[Mapping[str, Any]],
) -> Part:
    """Write a part whose windows are all there."""
    with PartWriter(url, key, source) as writer:
        writer.add(windows)
        for row in left_out:
            writer.leave_out(row)
        tried = len(windows) + sum(int(row["count"]) for row in left_out if row["what"] == "window")
        return writer.finish(records, tried)


def load_part(url: str, path: str, sha256: str | None = None) -> Part:
    """Read the file of a part; its name tells the digest it must have.

    Raises
    ------
    DatasetError
        When it is missing or damaged.
    """
    try:
        data = storage.read_bytes(storage.join(url, path))
    except FileNotFoundError as error:
        raise DatasetError(f"{path} of {url} is missing: ingest again") from error
    found = _digest(data)
    if found != (sha256 or found) or found[:16] != path.rsplit("/", 1)[-1].removesuffix(".json"):
        raise DatasetError(f"{path} of {url} is corrupt: remove it and ingest again")
    return Part.from_dict(json.loads(data))


def finished_part(url: str, key: str) -> Part | None:
    """Give what an earlier run made under this key, when all its files are there."""
    for name in storage.listing(storage.join(url, "parts", key)):
        try:
            part = load_part(url, f"parts/{key}/{name}") if name.endswith(".json") else None
        except DatasetError:
            continue
        if part is not None and not part.derived and is_whole(url, part):
            return part
    return None


def is_whole(url: str, part: Part) -> bool:
    """Tell whether all files of a part are there, the shards in the size they were written (`verify` reads them)."""
    shards = all(storage.size(storage.join(url, shard.path)) == shard.bytes for shard in part.shards)
    return shards and (part.quarantine is None or storage.exists(storage.join(url, part.quarantine)))


def whole_parts(url: str, parts: Sequence[Part]) -> list[Part]:
    """Give the parts all of whose files are there: as `is_whole`, by one listing for many parts."""
    there = {f"{folder}/{name}": info.bytes for folder in ("shards", "quarantine", "parts")
             for name, info in storage.find(storage.join(url, folder)).items()}  # fmt: skip

    def whole(part: Part) -> bool:
        return all(there.get(shard.path) == shard.bytes for shard in part.shards) and all(
            path in there for path in part.files()
        )

    return [part for part in parts if whole(part)]


def rewrite_part(url: str, part: Part, dropped: Mapping[str, str], detail: str = "") -> Part:
    """Make a part anew without some windows, which go to its quarantine table.

    The old files stay, since a version may name them. A window that enrolled by a dropped one no longer does.

    Parameters
    ----------
    url : str
    part : Part
    dropped : mapping
        `window_id` to the reason (`near_duplicate`).
    detail : str
        For the quarantine table.

    Raises
    ------
    DatasetError
        When one of the windows is not in the part, or a file is damaged.
    """
    rows: Counter[tuple[str, str]] = Counter()

    def keep(table: pa.Table) -> list[bool]:
        names, recordings = table["window_id"].to_pylist(), table["recording"].to_pylist()
        rows.update(
            (part.recordings.get(recording, recording), dropped[name])
            for name, recording in zip(names, recordings, strict=True)
            if name in dropped
        )
        return [name not in dropped for name in names]

    changed = _filtered(url, part, keep)
    if sum(rows.values()) != len(dropped):
        raise DatasetError(f"part {part.key[:12]} of {url} has not all windows to be left out: run the ingest again")
    source = part.shards[0].source if part.shards else ""
    added = [
        {"record": record, "source": source, "what": "window", "reason": reason, "detail": detail, "count": count}
        for (record, reason), count in sorted(rows.items())
    ]
    left_out = pa.concat_tables([read_quarantine(url, part), pa.Table.from_pylist(added, schema=QUARANTINE_SCHEMA)])
    return _finish(url, changed, left_out)


def forget_person(url: str, part: Part, person: str) -> Part:
    """Make a part anew without a person: no window, no row of the quarantine table, no count of either is kept."""
    changed = _filtered(url, part, lambda table: pc.not_equal(table["person"], person).to_pylist())
    left_out = read_quarantine(url, part)
    theirs = pc.fill_null(pc.equal(left_out["person"], person), False)
    gone = part.rows - changed.rows + rejected_windows(left_out.filter(theirs))
    changed = replace(changed, candidates=part.candidates - gone)
    return _finish(url, changed, left_out.filter(pc.invert(theirs)))


def _filtered(url: str, part: Part, keep: Callable[[pa.Table], list[bool]]) -> Part:
    """Write the shards that lose a window anew; give the part with what is left, its own file not yet written."""
    lost: set[str] = set()
    chosen: list[tuple[Shard, list[bool]]] = []
    for shard in part.shards:
        table = read_shard(url, shard, ["window_id", "person", "recording"])
        kept = keep(table)
        lost.update(name for name, stays in zip(table["window_id"].to_pylist(), kept, strict=True) if not stays)
        chosen.append((shard, kept))
    shards, people, recordings = [], set[str](), set[str]()
    for shard, kept in chosen:
        table = read_shard(url, shard)
        cut = _without_enrolment(table.filter(pa.array(kept, pa.bool_())), lost)
        people.update(cut["person"].to_pylist())
        recordings.update(cut["recording"].to_pylist())
        if cut.num_rows and not cut.equals(table):
            stem = shard.path.removesuffix(".parquet").rpartition("-")[0]
            shards.append(_write_shard(url, stem, cut, shard.split, shard.source))
        elif cut.num_rows:
            shards.append(shard)
    known = {person: split for person, split in part.people.items() if person in people}
    left = {recording: record for recording, record in part.recordings.items() if recording in recordings}
    return replace(part, shards=tuple(shards), people=known, recordings=left, derived=True)


def _without_enrolment(table: pa.Table, lost: set[str]) -> pa.Table:
    """Take out references to windows that are gone."""
    if "enrolment" not in table.column_names:
        return table
    gone = pc.fill_null(pc.is_in(table["enrolment"], pa.array(sorted(lost), pa.string())), False)
    if not pc.any(gone).as_py():
        return table
    place = table.schema.get_field_index("enrolment")
    return table.set_column(place, table.schema.field(place), pc.if_else(gone, None, table["enrolment"]))


def windows_of(url: str, parts: Iterable[Part], columns: Sequence[str]) -> Iterator[tuple[Shard, pa.Table]]:
    """Read some columns of all shards of parts, committed or not."""
    shards = [shard for part in parts for shard in part.shards]
    yield from zip(shards, read_shards(url, shards, columns), strict=True)
