"""Deleting a person from a dataset for good, and collecting what no version names."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from p2es.errors import DatasetError
from p2es_platform import storage, versions
from p2es_platform.dataset import Dataset
from p2es_platform.parts import forget_person

GRACE_S = 24 * 3600.0
"""Age below which a file that no version names may be the work of an ingest that will be resumed."""
_FOLDERS = ("shards", "quarantine", "parts", "versions", "history")


@dataclass(frozen=True)
class Deletion:
    """What was deleted.

    Attributes
    ----------
    person : str
        Hashed id.
    version : int
        The version that is without the person.
    windows : int
        Windows taken out of the version before it.
    purged : tuple of int
        Versions that were removed because the person was in them.
    hashes : tuple of str
        Hashes of all datasets that ever had the person: models with these in their lineage saw the person.
    files : int
        Files removed.
    """

    person: str
    version: int
    windows: int
    purged: tuple[int, ...]
    hashes: tuple[str, ...]
    files: int


def delete_person(url: str, person: str) -> Deletion:
    """Delete a person: a new version without, then every file that has them, uncommitted ones included.

    What stays is a tombstone in the manifest: the keyed hash of the person's id, so that a later ingest of the same
    archive does not bring them back, and the hashes of the datasets they were in, so that it can be told for ever
    which models saw them. Of nobody else is it kept who was in which version. A deletion that is cut short is
    completed by running it again. Out of reach are models, reports and translations made from the person's windows,
    copies of the dataset, backups, old versions that the bucket itself keeps, and the rows of the quarantine table
    about recordings whose person was never known.

    Parameters
    ----------
    url : str
    person : str
        The stored id: `Settings.hashed_id(source, "person", id of the archive)`.

    Raises
    ------
    DatasetError
        When the person neither is nor was in the dataset, or another process is writing.
    """
    with storage.writer_lock(url) as held:
        dataset = Dataset.open(url)
        with_person = _versions_with(url, person)
        stone = dict(dataset.manifest["deleted"].get(person, {"hashes": []}))
        there = [part for part in dataset.parts if person in part.people]
        if not there and not stone["hashes"] and not with_person:
            raise DatasetError(f"person {person[:12]} is not in {url}: check the id and --ingest.source")
        hashes = {*stone["hashes"], *with_person.values(), *_hashes_with(url, {part.key for part in there})}
        before = dataset.manifest["windows"]
        if there or person not in dataset.deleted or set(stone["hashes"]) != hashes:
            parts = [forget_person(url, part, person) if person in part.people else part for part in dataset.parts]
            tombstone = {person: {"hashes": sorted(hashes)}}
            body = versions.commit(url, parts, dataset.manifest["ingest"], dataset.version, deleted=tombstone)
        else:
            body = dict(dataset.manifest)
        held.check()
        purged = tuple(number for number in with_person if number != body["number"])
        _purge(url, purged)
        held.check()
        files = _remove_unnamed(url, grace_s=0.0)
        files += _remove_groups(url, hashes)
    return Deletion(person, body["number"], before - body["windows"], purged, tuple(sorted(hashes)), files)


def _versions_with(url: str, person: str) -> dict[int, str]:
    """Give the number and hash of the versions that have a person; one that cannot be read may have them."""
    found = {}
    for number in versions.numbers(url):
        try:
            dataset = Dataset.open(url, number)
            inside = any(person in part.people for part in dataset.parts)
        except DatasetError as error:
            if "window schema" in str(error):
                raise
            raise DatasetError(f"{error}; or remove {versions.version_path(number)}, then delete again") from None
        if inside:
            found[number] = dataset.hash
    return found


def _hashes_with(url: str, keys: set[str]) -> Iterator[str]:
    """Give the hashes of removed versions that had one of these parts."""
    return (str(body["hash"]) for body in versions.remembered(url) if not keys.isdisjoint(body["parts"]))


def _purge(url: str, numbers: Iterable[int]) -> None:
    """Remove versions; what must outlive them is kept first, and none may still open when its files go."""
    chosen = list(numbers)
    for number in chosen:
        versions.remember(url, versions.read(url, number))
    storage.remove_all(storage.join(url, versions.version_path(number)) for number in chosen)


def _remove_groups(url: str, hashes: set[str]) -> int:
    """Remove neighbours and clusters that were found among people of these datasets: they list the people."""
    gone = []
    for name in storage.listing(storage.join(url, "groups")):
        path = storage.join(url, "groups", name)
        if name.endswith(".json") and _dataset_hash(path) in hashes:
            gone += [path, path.removesuffix(".json") + ".parquet"]
    storage.remove_all(gone)
    return len(gone)


def _dataset_hash(path: str) -> str:
    try:
        return str(json.loads(storage.read_bytes(path)).get("dataset_hash"))
    except (ValueError, AttributeError):
        return ""


@dataclass(frozen=True)
class Collection:
    """What was collected, or would be.

    Attributes
    ----------
    versions : tuple of int
        Versions removed.
    files : dict
        Path of each file that no kept version names to its bytes.
    spared : int
        Files that no version names and that are younger than the grace.
    dry_run : bool
    """

    versions: tuple[int, ...]
    files: Mapping[str, int]
    spared: int
    dry_run: bool


def collect(
    url: str, *, keep_versions: int | None = None, grace_s: float = GRACE_S, dry_run: bool = False
) -> Collection:
    """Remove old versions, and every file that no version names: of killed ingests, of parts that were made anew.

    It waits for no writer: with one at work it is refused.

    Parameters
    ----------
    url : str
    keep_versions : int, optional
        The newest that stay, at least 1; all without it.
    grace_s : float
        Younger files stay: an ingest that was killed finds its finished parts by them.
    dry_run : bool
        Remove nothing.

    Raises
    ------
    DatasetError
        When another process is writing, or a version cannot be read: it may name any file.
    """
    if keep_versions is not None and keep_versions < 1:
        raise DatasetError(f"{keep_versions} versions cannot be kept: the newest one always stays")
    with storage.writer_lock(url) as held:
        there = versions.numbers(url)
        gone = tuple(there[:-keep_versions]) if keep_versions else ()
        named = _named(url, [number for number in there if number not in gone])
        if gone and not dry_run:
            held.check()
            _purge(url, gone)
        unnamed = _unnamed(url, named, {versions.version_path(number) for number in gone})
        old = {path: size for path, (size, age_s) in unnamed.items() if _older(age_s, grace_s)}
        if not dry_run:
            held.check()
            storage.remove_all(storage.join(url, path) for path in old)
    return Collection(gone, dict(sorted(old.items())), len(unnamed) - len(old), dry_run)


def _remove_unnamed(url: str, grace_s: float) -> int:
    unnamed = _unnamed(url, _named(url, versions.numbers(url)), set())
    old = [path for path, (_, age_s) in unnamed.items() if _older(age_s, grace_s)]
    storage.remove_all(storage.join(url, path) for path in old)
    return len(old)


def _older(age_s: float | None, grace_s: float) -> bool:
    """Tell whether a file is old enough; one whose age nobody knows is so only where age does not matter."""
    return grace_s <= 0 or (age_s is not None and age_s >= grace_s)


def _named(url: str, numbers: Iterable[int]) -> set[str]:
    """Give every file that these versions name."""
    found = set()
    for number in numbers:
        found.add(versions.version_path(number))
        for entry in versions.read(url, number)["parts"]:
            found.add(entry["path"])
            found.update(shard["path"] for shard in entry["shards"])
            if entry["quarantine"] is not None:
                found.add(entry["quarantine"])
    return found


def _unnamed(url: str, named: set[str], gone: set[str]) -> dict[str, tuple[int, float | None]]:
    """Give size and age of the files in the dataset's own folders that nothing names."""
    found: dict[str, tuple[int, float | None]] = {}
    for folder in _FOLDERS:
        for name, info in storage.find(storage.join(url, folder)).items():
            path = f"{folder}/{name}"
            kept = folder in ("versions", "history") and not path.endswith(".partial")
            if path not in named and path not in gone and not kept:
                found[path] = (info.bytes, info.age_s)
    for name in storage.listing(url):
        if name.endswith(".partial"):
            found[name] = (storage.size(storage.join(url, name)) or 0, _age_s(url, name))
    return found


def _age_s(url: str, name: str) -> float | None:
    return storage.find(url)[name].age_s
