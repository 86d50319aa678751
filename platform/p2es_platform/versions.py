"""Versions of a dataset: immutable manifests in a row, each made once, sealed by its own checksum.

<dataset>/versions/000001.json   what the dataset was then: shards, parts, configuration, deleted people
<dataset>/history/000001.json    what is kept of a version that was removed: hash, counts, keys of its parts
<dataset>/manifest.json          a copy of the newest version

Versions are ordered by number, never by time: clocks jump.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from p2es.errors import DatasetError
from p2es.windows import SCHEMA_VERSION
from p2es_platform import storage
from p2es_platform.parts import Part, in_two_splits, is_whole

FORMAT = "p2es-dataset"
VERSION = 2
# Requests to a bucket at once.
_THREADS = 16
_INLINE = ("key", "shards", "quarantine", "quarantine_sha256", "quarantined", "candidates", "notes", "derived")


def seal(body: Mapping[str, Any]) -> bytes:
    """Give the file of a manifest: its JSON, with the sha256 of the JSON without it."""
    return _dump({**body, "checksum": hashlib.sha256(_dump(body)).hexdigest()})


def _dump(values: Mapping[str, Any]) -> bytes:
    # Not indented: that is written in Python, five times as slow.
    return json.dumps(values, sort_keys=True).encode()


def unseal(raw: bytes, where: str) -> dict[str, Any]:
    """Undo `seal`.

    Raises
    ------
    DatasetError
        When one bit differs from what was sealed, or another version of p2es sealed it.
    """
    damaged = f"{where} is corrupt"
    try:
        body = json.loads(raw)
        found = (body.get("format"), body.get("version"), body.get("schema_version"))
    except (ValueError, AttributeError, RecursionError) as error:
        raise DatasetError(damaged) from error
    whole = "checksum" in body and raw == seal({key: value for key, value in body.items() if key != "checksum"})
    if found != (FORMAT, VERSION, SCHEMA_VERSION) and (whole or found[1] != VERSION):
        raise DatasetError(
            f"{where} is {found[0]} {found[1]} with window schema {found[2]}, this p2es reads {FORMAT} {VERSION} "
            f"with {SCHEMA_VERSION}: ingest again"
        )
    if not whole:
        raise DatasetError(damaged)
    return body


def numbers(url: str, folder: str = "versions") -> list[int]:
    """Give the numbers of the versions that are there, in order."""
    names = (
        name.removesuffix(".json") for name in storage.listing(storage.join(url, folder)) if name.endswith(".json")
    )
    return sorted(int(name) for name in names if name.isdecimal())


def version_path(number: int, folder: str = "versions") -> str:
    """Give the path of a version, in the dataset."""
    return f"{folder}/{number:06d}.json"


def read(url: str, number: int | None = None) -> dict[str, Any]:
    """Read a version, the newest where no number is given.

    Raises
    ------
    DatasetError
        When there is none, it is damaged (never silently an older one), or another version of p2es made it.
    """
    there = numbers(url)
    if not there:
        if number is not None or not storage.exists(storage.join(url, "manifest.json")):
            raise DatasetError(f"there is no dataset in {url}: `p2es ingest` makes one")
        return _copy(url)
    if number is not None and number not in there:
        raise DatasetError(f"{url} has no version {number}: it has {', '.join(map(str, there))}")
    chosen = there[-1] if number is None else number
    try:
        return _read_one(url, chosen)
    except DatasetError as error:
        if "corrupt" not in str(error):
            raise
        copy = _copy_of(url, chosen)
        if copy is not None:
            return copy
        whole = [n for n in there if n != chosen and _is_whole(url, n)]
        hint = f"version {whole[-1]} is whole: remove the damaged file to go back to it" if whole else "restore it"
        raise DatasetError(f"{error}; {hint}, and ingest again: finished shards are reused") from None


def _read_one(url: str, number: int) -> dict[str, Any]:
    path = version_path(number)
    body = unseal(storage.read_bytes(storage.join(url, path)), f"{path} of {url}")
    if body["number"] != number:
        raise DatasetError(f"{path} of {url} is corrupt: it says that it is number {body['number']}")
    return body


def _copy(url: str) -> dict[str, Any]:
    try:
        return unseal(storage.read_bytes(storage.join(url, "manifest.json")), f"the manifest of {url}")
    except DatasetError as error:
        if "corrupt" not in str(error):
            raise
        raise DatasetError(f"{error}: ingest again, finished shards are reused") from None


def _copy_of(url: str, number: int) -> dict[str, Any] | None:
    """Give the copy of a version in manifest.json, when it is one and whole."""
    try:
        copy = _copy(url)
    except (DatasetError, FileNotFoundError):
        return None
    return copy if copy["number"] == number else None


def _is_whole(url: str, number: int) -> bool:
    try:
        _read_one(url, number)
    except (DatasetError, FileNotFoundError):
        return False
    return True


def exists(url: str) -> bool:
    """Tell whether there is a dataset."""
    return bool(numbers(url)) or storage.exists(storage.join(url, "manifest.json"))


def commit(
    url: str,
    parts: Sequence[Part],
    ingest: Mapping[str, Any],
    base_version: int | None = None,
    *,
    deleted: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Make the next version: from now on the dataset is these parts.

    Parameters
    ----------
    url : str
    parts : sequence of Part
        All of them, those of the version before included.
    ingest : mapping
        What decides the bytes of the windows.
    base_version : int, optional
        Number of the version that this one was made from, 0 for none; without it, the newest there is now.
    deleted : mapping, optional
        Deleted people: hashed id to the versions and hashes that had them. Those of the version before stay.

    Raises
    ------
    DatasetError
        When another writer made a version since, a record or person would be in it twice, a deleted person would
        come back, or a new file is missing.
    """
    newest = (numbers(url) or [0])[-1]
    base = newest if base_version is None else base_version
    if newest != base:
        raise DatasetError(_overtaken(newest))
    before = read(url, base) if base else {"parts": [], "deleted": {}}
    gone = {**before["deleted"], **(deleted or {})}
    _check(parts, gone)
    known = {entry["path"] for entry in before["parts"]}
    _require_whole(url, [part for part in parts if part.path not in known])
    body = _body(parts, ingest, base + 1, gone)
    raw = seal(body)
    try:
        storage.create(storage.join(url, version_path(base + 1)), raw)
    except FileExistsError as error:
        raise DatasetError(_overtaken(base + 1)) from error
    storage.write_atomic(storage.join(url, "manifest.json"), raw)
    return json.loads(raw)


def _overtaken(number: int) -> str:
    return f"another writer committed version {number} while this ran: run again, finished shards are reused"


def _check(parts: Sequence[Part], gone: Mapping[str, Any]) -> None:
    records: set[str] = set()
    splits: dict[str, str] = {}
    for part in parts:
        if not records.isdisjoint(part.records):
            raise DatasetError("a record is in two parts: ingest into a new dataset")
        records.update(part.records)
        for person, split in part.people.items():
            if person in gone:
                raise DatasetError(f"person {person[:12]} was deleted from this dataset: leave the recordings out")
            if splits.setdefault(person, split) != split:
                raise DatasetError(in_two_splits(person, split, splits[person]))


def _require_whole(url: str, parts: Iterable[Part]) -> None:
    def missing(part: Part) -> str | None:
        whole = is_whole(url, part) and storage.exists(storage.join(url, part.path))
        return None if whole else part.key

    with ThreadPoolExecutor(_THREADS) as pool:
        for key in pool.map(missing, parts):
            if key is not None:
                raise DatasetError(f"part {key[:12]} of {url} is not whole: run again, which makes it anew")


def _body(parts: Sequence[Part], ingest: Mapping[str, Any], number: int, gone: Mapping[str, Any]) -> dict[str, Any]:
    people = {person: split for part in parts for person, split in part.people.items()}
    return {
        "format": FORMAT,
        "version": VERSION,
        "schema_version": SCHEMA_VERSION,
        "number": number,
        "ingest": dict(ingest),
        "hash": dataset_hash(shard.sha256 for part in parts for shard in part.shards),
        "windows": sum(part.rows for part in parts),
        "candidates": sum(part.candidates for part in parts),
        "people": dict(sorted(Counter(people.values()).items())),
        "records": sum(len(part.records) for part in parts),
        "deleted": dict(gone),
        "parts": [_entry(part) for part in sorted(parts, key=lambda part: part.key)],
    }


def _entry(part: Part) -> dict[str, Any]:
    """Give what a manifest tells of a part: all but its records and people, which grow with the archive."""
    inline = {name: getattr(part, name) for name in _INLINE}
    return {"path": part.path, "sha256": part.sha256, **inline, "shards": [dict(vars(shard)) for shard in part.shards]}


def dataset_hash(hashes: Iterable[str]) -> str:
    """SHA-256 over the sorted hashes of the shards: the same windows give the same hash."""
    return hashlib.sha256("\n".join(sorted(hashes)).encode()).hexdigest()


def remember(url: str, body: Mapping[str, Any]) -> None:
    """Keep what must outlive a version: which models it trained is asked by its hash.

    No person is named in it. Who was in the version is told by the keys of its parts: a part keeps its key when
    windows are taken out of it, so a person of today's part was in every earlier version with that part.
    """
    kept = {name: body[name] for name in ("format", "version", "schema_version", "number", "hash", "windows", "people")}
    kept["parts"] = sorted(entry["key"] for entry in body["parts"])
    storage.write_atomic(storage.join(url, version_path(body["number"], "history")), seal(kept))


def remembered(url: str) -> list[dict[str, Any]]:
    """Give what was kept of removed versions."""
    paths = [version_path(number, "history") for number in numbers(url, "history")]
    return [unseal(storage.read_bytes(storage.join(url, path)), f"{path} of {url}") for path in paths]
