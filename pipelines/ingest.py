"""Ingest an archive with Ray Data: recordings to windows to shards, and a new version of the dataset at the end."""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from p2es.errors import DatasetError, InputError
from p2es.formats import RecordRef, Survey, simulated
from p2es.simulator import VERSION
from p2es.windows import SCHEMA_VERSION
from p2es_platform import storage, versions
from p2es_platform.archive import survey
from p2es_platform.dataset import Dataset, commit
from p2es_platform.parts import Part, whole_parts
from p2es_platform.settings import Settings
from pipelines.copies import without_twins
from pipelines.reading import HashTask, ReadTask, Record, batched, over_ray, read_options
from pipelines.recipes import IngestConfig, Recipe, fingerprint

# An archive of this size is hashed by threads in a second or two, which Ray Data takes to start.
_HASHED_HERE = 2_000_000_000
_THREADS = 4


@dataclass(frozen=True)
class IngestResult:
    """What is in the dataset now.

    Attributes
    ----------
    url : str
    version : int
        Of the dataset; it grows with each change.
    windows, people : int
    records : int
        Records of this and of earlier runs, read or quarantined.
    candidates : int
        Window positions that were tried: `windows` and the rejected ones.
    quarantined : dict
        Reason to count, of whatever was left out (`p2es dataset show` has it by kind).
    documents, companions : int
        Files of the archive that are no recordings and say so (README, tables of people); that belong to a record.
    reused : bool
        Whether nothing was new.
    """

    url: str
    version: int
    windows: int
    people: int
    records: int
    candidates: int
    quarantined: dict[str, int]
    documents: int
    companions: int
    reused: bool


def run(recipe: Recipe, settings: Settings, *, archive: str, name: str | None = None) -> IngestResult:
    """Read what is new in an archive and add it to the dataset; Ray must be running.

    A record that cannot be read goes to the quarantine table with its reason, and the run goes on. A run that is
    killed leaves finished shards, which the next run finds by their keys; until the new version is committed, readers
    see the dataset as it was. A shard that was lost since is made again.

    Parameters
    ----------
    recipe : Recipe
    settings : Settings
    archive : str
        Folder, file, glob or list of records, here or in a bucket; or `simulated:POPULATION`, people who are simulated
        as they are read.
    name : str, optional
        Of the dataset; without one, made from the archive and the configuration.

    Raises
    ------
    InputError
        When the archive holds nothing to read.
    DatasetError
        When another process writes the dataset, it was made with another configuration, a record has changed since,
        the same heart is in two splits (with `twins` at `fail`), no window could be made, or there is no space.
    """
    config = recipe.ingest
    archive = address_of(archive, recipe)
    url = settings.path("datasets", name or _name(recipe, archive))
    options, layouts = read_options(config)
    found = survey(archive, options.mappings, layouts)
    if not found.records:
        raise InputError(
            f"{archive} holds no recording, only {len(found.documents)} documents; a table of people is joined to an "
            "archive by --ingest.people"
        )
    how = _how(config, settings)
    with storage.writer_lock(url) as held:
        base = Dataset.open(url) if versions.exists(url) else None
        old = _old_parts(base, how)
        task = ReadTask(config, settings, url, json.dumps(how, sort_keys=True), options, _deleted(base))
        new = _new_records(found.records, old, task)
        parts = _read_all(new, task) if new else []
        changed = base is None or bool(parts) or len(old) < len(base.parts)
        if base is None or changed:
            parts = without_twins(url, parts, old, config.twins)
            held.check()
            base = commit(url, [*old, *parts], _merged(base, how), base.version if base else 0)
    return _result(base, found, reused=not changed)


def address_of(archive: str, recipe: Recipe) -> str:
    """Give the whole address of an archive: what one of simulated people leaves open is as the recipe has it."""
    return simulated.parse(archive, recipe.simulate).address if simulated.is_simulated(archive) else archive


def _deleted(base: Dataset | None) -> frozenset[str]:
    return base.deleted if base is not None else frozenset()


def _how(config: IngestConfig, settings: Settings) -> dict[str, Any]:
    """Give what decides the bytes of the windows, the secret of the ids included (by a hash of 32 bits)."""
    chosen = asdict(config)
    fixed = {key: chosen[key] for key in ("step_s", "salt", "validation_share", "test_share")}
    files = [
        hashlib.sha256(Path(path).expanduser().read_bytes()).hexdigest() for path in config.mapping + config.people
    ]
    source = {config.source: fingerprint(files)}
    return {**fixed, "secret": settings.hashed_id("dataset")[:8], "sources": source}


def _merged(base: Dataset | None, how: Mapping[str, Any]) -> dict[str, Any]:
    """Add a source family to those that the dataset has."""
    before = base.manifest["ingest"]["sources"] if base is not None else {}
    return {**how, "sources": {**before, **how["sources"]}}


def _name(recipe: Recipe, archive: str) -> str:
    """Name the dataset of an archive: that of `p2es simulate` is known by its name, any other's by its place too."""
    config = recipe.ingest
    if simulated.is_simulated(archive):
        return f"{config.source}-{simulated.parse(archive).population}-{_chosen(config, archive, VERSION)}"
    place = str(Path(archive).resolve()) if storage.is_local(archive) else archive.rstrip("/")
    folder = place.rsplit("/", 1)[-1]
    own = folder.startswith(f"{recipe.name}-")
    plain = "".join(letter if letter.isalnum() or letter in "-_" else "-" for letter in folder.split(".")[0])
    base, where = (folder, "") if own else (f"{config.source}-{plain}", place)
    return f"{base}-{_chosen(config, where)}"


def _chosen(config: IngestConfig, *where: object) -> str:
    """Hash what decides the windows of an archive."""
    chosen = (config.source, config.step_s, config.salt, config.validation_share, config.test_share)
    return fingerprint(chosen, config.mapping, config.people, *where, SCHEMA_VERSION)[:8]


def _old_parts(base: Dataset | None, how: Mapping[str, Any]) -> list[Part]:
    """Give the parts that the dataset has already and that are whole."""
    if base is None:
        return []
    before = base.manifest["ingest"]
    differs = [key for key, value in how.items() if key != "sources" and before.get(key) != value]
    differs += [
        f"mapping or people table for {k}" for k, v in how["sources"].items() if before["sources"].get(k, v) != v
    ]
    if differs:
        raise DatasetError(f"{base.url} was ingested with another {differs[0]}: give the new one its own --ingest.name")
    return whole_parts(base.url, base.parts)


def _new_records(references: Sequence[RecordRef], old: Sequence[Part], task: ReadTask) -> list[Record]:
    """Give the records that the dataset has not yet; of those with the same bytes, the first is read."""
    known = {record: digest for part in old for record, digest in part.records.items()}
    seen = set(known.values())
    new = []
    for reference, digest in zip(references, _digests(references, task), strict=True):
        record = task.settings.hashed_id(task.config.source, "file", reference.name)
        if record not in known:
            new.append(Record(reference, record, digest, is_copy=digest in seen))
            seen.add(digest)
        elif known[record] != digest:
            raise DatasetError(
                f"{reference.name} changed since it was ingested into {task.url}: ingest it under a new --ingest.name"
            )
    return new


def _digests(references: Sequence[RecordRef], task: ReadTask) -> list[str]:
    batches = [[references[k] for k in batch] for batch in batched(references, task.config)]
    hashing = HashTask(task.url, task.options)
    if sum(r.bytes for r in references) <= _HASHED_HERE and all(storage.is_local(r.path) for r in references):
        with ThreadPoolExecutor(_THREADS) as pool:
            found: list[list[str]] = list(pool.map(hashing.digests, batches))
    else:
        rows = [{"batch": json.dumps([asdict(reference) for reference in batch])} for batch in batches]
        found = over_ray(rows, hashing, [len(batch) for batch in batches], "read keys")
    return [digest for digests in found for digest in digests]


def _read_all(new: Sequence[Record], task: ReadTask) -> list[Part]:
    """Let Ray Data read the records, a task a batch; collect what each made."""
    # Batches are cut from the sorted list, so that any order of inputs and number of workers makes the same shards.
    batches = [[new[k] for k in batch] for batch in batched([record.reference for record in new], task.config)]
    rows = [{"batch": json.dumps([asdict(record) for record in batch])} for batch in batches]
    found = over_ray(rows, task, [len(batch) for batch in batches], "ingest")
    return [Part.from_dict(part) for part in found]


def _result(dataset: Dataset, found: Survey, *, reused: bool) -> IngestResult:
    quarantined: Counter[str] = Counter()
    for part in dataset.parts:
        quarantined.update(part.quarantined)
    windows = int(dataset.manifest["windows"])
    if not windows:
        reasons = ", ".join(f"{reason} ({count})" for reason, count in quarantined.items())
        raise DatasetError(
            f"no window could be made of the archive: {reasons or 'it is empty'}; {dataset.url} has the table"
        )
    return IngestResult(
        url=dataset.url,
        version=dataset.version,
        windows=windows,
        people=sum(dataset.manifest["people"].values()),
        records=int(dataset.manifest["records"]),
        candidates=int(dataset.manifest["candidates"]),
        quarantined=dict(sorted(quarantined.items())),
        documents=len(found.documents),
        companions=len(found.companions),
        reused=reused,
    )
