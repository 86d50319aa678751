"""Ingest an archive with Ray Data: recordings to windows to shards, and a manifest when all is there."""

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from p2es.errors import DatasetError, RecordError
from p2es.formats import RecordRef, content_files, read
from p2es.segmenting import segment
from p2es.windows import SCHEMA_VERSION, Window
from p2es_platform import storage
from p2es_platform.archive import find, nearby
from p2es_platform.dataset import Dataset, Part, commit, finished_part, is_whole, write_part
from p2es_platform.settings import Settings
from pipelines.recipes import IngestConfig, Recipe, fingerprint


@dataclass(frozen=True)
class IngestResult:
    """What is in the dataset now.

    Attributes
    ----------
    url : str
    windows, people : int
    quarantined : dict
        Reason to count, of records and windows that were left out; the table in the dataset names them.
    reused : bool
        Whether nothing was new.
    """

    url: str
    windows: int
    people: int
    quarantined: dict[str, int]
    reused: bool


def split_of(config: IngestConfig, person: str) -> str:
    """Give the split of a person: SHA-256 of the public salt, the source family and the archive's id.

    Public on purpose: anyone with the archive can check it, whatever the secret of the stored ids.
    """
    digest = hashlib.sha256("\x1f".join([config.salt, config.source, person]).encode()).digest()
    place = int.from_bytes(digest[:8], "big") / 2**64
    if place < config.test_share:
        return "test"
    return "validation" if place < config.test_share + config.validation_share else "train"


def run(recipe: Recipe, settings: Settings, *, archive: str, name: str | None = None) -> IngestResult:
    """Read what is new in an archive and add it to the dataset; Ray must be running.

    A record that cannot be read goes to the quarantine table with its reason, and the run goes on. A run that is
    killed leaves finished shards, which the next run finds by their keys; until the manifest is written, readers see
    the dataset as it was. A shard that was lost since is made again.

    Parameters
    ----------
    recipe : Recipe
    settings : Settings
    archive : str
        Folder or file, or the address of a folder in a bucket.
    name : str, optional
        Of the dataset; without one, made from the archive and the configuration.

    Raises
    ------
    InputError
        When the archive holds nothing to read.
    DatasetError
        When another process writes the dataset, it was made with another configuration, a record has changed since,
        no window could be made, or there is no space.
    """
    url = settings.path("datasets", name or _name(recipe, archive))
    records = find(archive)
    how = _how(recipe.ingest, settings)
    with storage.writer_lock(url):
        old = _old_parts(url, how)
        new = _new_records(records, old, recipe.ingest, settings, url)
        parts = _read_all(new, recipe, settings, url) if new else []
        dataset = commit(url, [*old, *parts], how) if parts else Dataset.open(url)
    return _result(dataset, reused=not parts)


def _how(config: IngestConfig, settings: Settings) -> dict[str, Any]:
    """Give what decides the bytes of the windows, the secret of the ids included (by a hash of 32 bits)."""
    return {**_chosen(config), "secret": settings.hashed_id("dataset")[:8]}


def _chosen(config: IngestConfig) -> dict[str, Any]:
    values = asdict(config)
    return {key: values[key] for key in ("source", "step_s", "salt", "validation_share", "test_share")}


def _name(recipe: Recipe, archive: str) -> str:
    """Name the dataset of an archive: the simulated one's is known by its name, any other's by its place too."""
    place = str(Path(archive).resolve()) if storage.is_local(archive) else archive.rstrip("/")
    folder = place.rsplit("/", 1)[-1]
    own = folder.startswith(f"{recipe.name}-")
    base, where = (folder, "") if own else (f"{recipe.ingest.source}-{folder.split('.')[0]}", place)
    return f"{base}-{fingerprint(_chosen(recipe.ingest), where, SCHEMA_VERSION)[:8]}"


def _old_parts(url: str, how: Mapping[str, Any]) -> list[Part]:
    """Give the parts that the dataset has already and that are whole."""
    if not storage.exists(storage.join(url, "manifest.json")):
        return []
    dataset = Dataset.open(url)
    differs = [key for key, value in how.items() if dataset.manifest["ingest"].get(key) != value]
    if differs:
        raise DatasetError(f"{url} was ingested with another {differs[0]}: give the new one its own --ingest.name")
    return [part for part in dataset.parts if is_whole(url, part)]


@dataclass(frozen=True)
class _Record:
    """A record to read: where it is, its hashed id, the hash of its bytes, the record it is a copy of."""

    reference: RecordRef
    id: str
    digest: str
    copy_of: str | None = None


def _new_records(
    records: Sequence[RecordRef], old: Sequence[Part], config: IngestConfig, settings: Settings, url: str
) -> list[_Record]:
    """Give the records that the dataset has not yet; of those with the same bytes, the first is read."""
    known = {record: digest for part in old for record, digest in part.records.items()}
    first = dict.fromkeys(known.values(), "another record")
    new = []
    for reference, digest in zip(records, _digests(records), strict=True):
        record = settings.hashed_id(config.source, "file", reference.name)
        if record not in known:
            new.append(_Record(reference, record, digest, first.get(digest)))
            first.setdefault(digest, reference.name)
        elif known[record] != digest:
            raise DatasetError(
                f"{reference.name} changed since it was ingested into {url}: ingest it under a new --ingest.name"
            )
    return new


def _digests(records: Sequence[RecordRef]) -> list[str]:
    # Hashing gives up the interpreter's lock: threads use all cores.
    with ThreadPoolExecutor() as pool:
        found = pool.map(_digest, records)
        return list(tqdm(found, total=len(records), desc="read keys", unit="record", leave=False))


def _digest(record: RecordRef) -> str:
    """Hash the bytes of a record's files; their names do not count, so that a renamed copy is known as one."""
    digest = hashlib.sha256()
    with nearby(record) as here:
        for path in content_files(here):
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _read_all(new: Sequence[_Record], recipe: Recipe, settings: Settings, url: str) -> list[Part]:
    """Let Ray Data read the records, a task a batch; collect what each made."""
    import ray.data

    # Ray sets this level when it is imported; its plan and timings belong into its log files.
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    size = recipe.ingest.records_per_task
    # Batches are cut from the sorted list, so that any order of inputs and number of workers makes the same shards.
    batches = [{"batch": json.dumps([asdict(r) for r in new[k : k + size]])} for k in range(0, len(new), size)]
    context = ray.data.DataContext.get_current()
    shown, context.enable_progress_bars = context.enable_progress_bars, False
    parts = []
    try:
        made = ray.data.from_items(batches, override_num_blocks=len(batches)).map(
            _Task(recipe.ingest, settings, url), num_cpus=1
        )
        with tqdm(total=len(new), desc="ingest", unit="record") as bar:
            for row in made.iter_rows():
                if row["error"]:
                    raise DatasetError(row["error"])
                parts.append(Part.from_dict(json.loads(row["part"])))
                bar.update(len(parts[-1].records))
    finally:
        context.enable_progress_bars = shown
    return parts


@dataclass(frozen=True)
class _Task:
    """Read a batch of records and write its shards; every record's error is caught where it happens.

    An exception in a Ray Data map would lose the whole block, silently with max_errored_blocks (9,500 of 10,000 rows
    left by one bad one).
    """

    config: IngestConfig
    settings: Settings
    url: str

    def __call__(self, row: Mapping[str, Any]) -> dict[str, str]:
        try:
            records = [_Record(**{**r, "reference": RecordRef(**r["reference"])}) for r in json.loads(row["batch"])]
            return {"part": json.dumps(asdict(self.part(records))), "error": ""}
        except DatasetError as error:
            # As a value: an exception would reach the driver as Ray's own, with a traceback around it.
            return {"part": "", "error": str(error)}

    def part(self, records: Sequence[_Record]) -> Part:
        """Make the part of a batch, or find what an earlier run made of it."""
        how = _how(self.config, self.settings)
        key = fingerprint(how, SCHEMA_VERSION, sorted((r.id, r.digest, bool(r.copy_of)) for r in records))
        found = finished_part(self.url, key)
        if found is not None:
            return found
        windows: list[Window] = []
        left_out: list[dict[str, Any]] = []
        for record in records:
            windows += self._windows(record, left_out)
        digests = {record.id: record.digest for record in records}
        return write_part(self.url, key, self.config.source, digests, windows, left_out)

    def _windows(self, record: _Record, left_out: list[dict[str, Any]]) -> list[Window]:
        """Cut a record into windows; add to `left_out` what cannot be used."""
        windows: list[Window] = []
        skipped: list[RecordError] = []

        def leave_out(what: str, reason: str, detail: str, count: int = 1) -> None:
            row = {"record": record.reference.name, "source": self.config.source, "what": what}
            left_out.append({**row, "reason": reason, "detail": detail, "count": count})

        if record.copy_of is not None:
            leave_out("record", "duplicate", f"has the bytes of {record.copy_of}")
            return windows
        try:
            with nearby(record.reference) as here:
                for recording in read(here, self.config.source, skipped):
                    try:
                        split = split_of(self.config, recording.person)
                        cut = segment(recording, step_s=self.config.step_s, ids=self.settings.hashed_id, split=split)
                    except RecordError as error:
                        leave_out("recording", error.reason, str(error))
                        continue
                    windows.extend(cut.windows)
                    for reason, count in cut.rejected.items():
                        leave_out("window", reason, recording.record, count)
        except RecordError as error:
            leave_out("record", error.reason, str(error))
        except Exception as error:  # noqa: BLE001 - one record must not cost the others; the reason is kept
            leave_out("record", "unexpected", f"{type(error).__name__}: {error}")
        for reason, count in Counter(error.reason for error in skipped).items():
            leave_out("segment", reason, next(str(e) for e in skipped if e.reason == reason), count)
        return windows


def _result(dataset: Dataset, *, reused: bool) -> IngestResult:
    quarantined: Counter[str] = Counter()
    for part in dataset.parts:
        quarantined.update(part.quarantined)
    people = dataset.people().num_rows if dataset.shards() else 0
    windows = int(dataset.manifest["windows"])
    if not windows:
        reasons = ", ".join(f"{reason} ({count})" for reason, count in quarantined.items())
        raise DatasetError(
            f"no window could be made of the archive: {reasons or 'it is empty'}; {dataset.url} has the table"
        )
    return IngestResult(dataset.url, windows, people, dict(quarantined), reused)
