"""Ingest an archive with Ray Data: recordings to windows to shards, and a manifest when all is there."""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from p2es.errors import DatasetError, RecordError
from p2es.formats import RecordRef, content_files, find_records, read
from p2es.segmenting import segment
from p2es.windows import SCHEMA_VERSION, Window
from p2es_platform import storage
from p2es_platform.dataset import Dataset, Part, commit, finished_part, write_part
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
    the dataset as it was.

    Parameters
    ----------
    archive : str
        Folder or file.
    name : str, optional
        Of the dataset; the recipe's for its own archive, else the archive's.
    """
    url = settings.path("datasets", name or _name(recipe, archive))
    records = find_records(archive)
    with storage.writer_lock(url):
        old = list(Dataset.open(url).parts) if storage.exists(storage.join(url, "manifest.json")) else []
        _check_same(url, recipe.ingest, old)
        known = {(record, digest) for part in old for record, digest in part.records.items()}
        new = [r for r in _with_digests(records) if (r[0].name, r[1]) not in known]
        _check_unchanged(new, {record for record, _ in known}, url)
        parts = _read_all(new, recipe, settings, url) if new else []
        how = {**_how(recipe.ingest), "shares": [recipe.ingest.validation_share, recipe.ingest.test_share]}
        dataset = commit(url, [*old, *parts], how) if parts else Dataset.open(url)
    return _result(dataset, reused=not parts)


def _how(config: IngestConfig) -> dict[str, Any]:
    """Give what of the configuration decides the bytes of the windows."""
    values = asdict(config)
    return {key: values[key] for key in ("source", "step_s", "salt", "validation_share", "test_share")}


def _name(recipe: Recipe, archive: str) -> str:
    folder = Path(archive).resolve().name
    own = folder.startswith(f"{recipe.name}-")
    base = folder if own else f"{recipe.ingest.source}-{Path(folder).stem}"
    return f"{base}-{fingerprint(_how(recipe.ingest), SCHEMA_VERSION)[:8]}"


def _check_same(url: str, config: IngestConfig, old: Sequence[Part]) -> None:
    if not old:
        return
    written = Dataset.open(url).manifest["ingest"]
    differs = [key for key, value in _how(config).items() if written.get(key) != value]
    if differs:
        raise DatasetError(f"{url} was ingested with another {differs[0]}: give the new one its own --name")


def _check_unchanged(new: Sequence[tuple[RecordRef, str]], known: set[str], url: str) -> None:
    changed = [reference.name for reference, _ in new if reference.name in known]
    if changed:
        raise DatasetError(
            f"{changed[0]} changed since it was ingested into {url}: ingest the archive under a new --name"
        )


def _with_digests(records: Sequence[RecordRef]) -> list[tuple[RecordRef, str]]:
    return [(record, _digest(record)) for record in tqdm(records, desc="read keys", unit="record", leave=False)]


def _digest(record: RecordRef) -> str:
    """Hash the bytes of a record's files."""
    digest = hashlib.sha256()
    for path in content_files(record):
        digest.update(path.name.encode())
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _read_all(new: Sequence[tuple[RecordRef, str]], recipe: Recipe, settings: Settings, url: str) -> list[Part]:
    """Let Ray Data read the records, a task a batch; collect what each made."""
    import ray.data

    size = recipe.ingest.records_per_task
    # Batches are cut from the sorted list, so that any order of inputs and number of workers makes the same shards.
    batches = [{"records": [asdict(r) | {"digest": d} for r, d in new[k : k + size]]} for k in range(0, len(new), size)]
    settings.hashed_id("draws the secret before any task needs it")
    ray.data.DataContext.get_current().enable_progress_bars = False
    made = ray.data.from_items(batches, override_num_blocks=len(batches)).map(
        _Task(recipe.ingest, settings, url), num_cpus=1
    )
    parts = []
    with tqdm(total=len(new), desc="ingest", unit="record") as bar:
        for row in made.iter_rows():
            parts.append(Part.from_dict(_plain(row["part"])))
            bar.update(len(parts[-1].records))
    return parts


def _plain(value: Any) -> Any:
    import json

    return json.loads(value)


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
        import json

        references = [(RecordRef(r["path"], r["format"], r["name"]), r["digest"]) for r in row["records"]]
        digests = {reference.name: digest for reference, digest in references}
        key = fingerprint(_how(self.config), SCHEMA_VERSION, sorted(digests.items()))
        part = finished_part(self.url, key)
        if part is None:
            windows: list[Window] = []
            left_out: list[dict[str, Any]] = []
            for reference, _ in references:
                self._record(reference, windows, left_out)
            part = write_part(self.url, key, self.config.source, digests, windows, left_out)
        return {"part": json.dumps(asdict(part))}

    def _record(self, reference: RecordRef, windows: list[Window], left_out: list[dict[str, Any]]) -> None:
        def leave_out(what: str, reason: str, detail: str, count: int = 1) -> None:
            source = self.config.source
            left_out.append(
                {
                    "record": reference.name,
                    "source": source,
                    "what": what,
                    "reason": reason,
                    "detail": detail,
                    "count": count,
                }
            )

        try:
            for recording in read(reference, self.config.source):
                try:
                    split = split_of(self.config, recording.person)
                    cut = segment(recording, step_s=self.config.step_s, ids=self.settings.hashed_id, split=split)
                except RecordError as error:
                    leave_out("recording", error.reason, f"{recording.record}: {error}")
                    continue
                windows.extend(cut.windows)
                for reason, count in Counter(cut.rejected).items():
                    leave_out("window", reason, recording.record, count)
        except RecordError as error:
            leave_out("record", error.reason, str(error))
        except Exception as error:  # noqa: BLE001 - one record must not cost the others; the reason is kept
            leave_out("record", "unexpected", f"{type(error).__name__}: {error}")


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
