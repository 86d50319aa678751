"""The Ray tasks of an ingest: hash records, and read a batch of them into one part of a dataset."""

import hashlib
import json
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from p2es.errors import ConfigError, DatasetError, P2EsError, RecordError
from p2es.formats import (
    PeopleLayout,
    ReadOptions,
    RecordRef,
    content_files,
    load_mapping,
    load_people,
    load_people_layout,
    read,
    simulated,
)
from p2es.reasons import KEPT
from p2es.recording import Recording
from p2es.segmenting import cut
from p2es.windows import SCHEMA_VERSION
from p2es_platform import storage
from p2es_platform.archive import nearby, stamp
from p2es_platform.parts import Part, PartWriter, finished_part
from p2es_platform.settings import Settings
from p2es_platform.splits import SplitRule
from pipelines.recipes import IngestConfig, fingerprint

# A word that is a file's name or a segment's.
_FILE_NAME = re.compile(r"\w\.[A-Za-z]\w{1,7}[:,;)]?$|\d{4,}_\w+|[A-Za-z]\d{4,}")

# A task's answer is a few kB. Ray Data holds room for a whole block of the greatest size before it starts a task: with
# its 128 MiB, an object store of 128 MB runs one task at a time, on any number of CPUs.
_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class Record:
    """A record to read: where it is, its hashed id, the hash of its bytes, whether another has the same bytes."""

    reference: RecordRef
    id: str
    digest: str
    is_copy: bool = False

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Record":
        """Undo `dataclasses.asdict`."""
        return cls(**{**values, "reference": RecordRef(**values["reference"])})


def split_of(config: IngestConfig, person: str) -> str:
    """Give the split of a person, by the public rule and the archive's own id."""
    return SplitRule(config.salt, config.source, config.validation_share, config.test_share).split_of(person)


def read_options(config: IngestConfig) -> tuple[ReadOptions, tuple[PeopleLayout, ...]]:
    """Load the mappings and the people tables that the user named; a TOML among the latter declares a table."""
    mappings = tuple(load_mapping(path) for path in config.mapping)
    layouts = tuple(load_people_layout(path) for path in config.people if path.endswith(".toml"))
    tables = tuple(load_people(path, layouts) for path in config.people if not path.endswith(".toml"))
    if layouts and not tables:
        raise ConfigError("--ingest.people has only a declaration (.toml): name the table beside it")
    return ReadOptions(mappings=mappings, people=tables), layouts


def batched(references: Sequence[RecordRef], config: IngestConfig) -> Iterator[list[int]]:
    """Cut a list of records into batches of bounded bytes and number; what they are depends on the list alone."""
    batch: list[int] = []
    size = 0
    for index, reference in enumerate(references):
        if batch and (size + reference.bytes > config.task_mb * 1_000_000 or len(batch) == config.task_records):
            yield batch
            batch, size = [], 0
        batch.append(index)
        size += reference.bytes
    if batch:
        yield batch


def over_ray(
    rows: Sequence[Mapping[str, str]], task: Callable[..., Any], sizes: Sequence[int], title: str
) -> list[Any]:
    """Let Ray Data run a task on each row and give the results in the order of the rows.

    A task gives `{"row": its number, "result": JSON, "error": one line or ""}`.

    Raises
    ------
    DatasetError
        With what a task said was wrong.
    """
    import ray.data

    results: dict[int, Any] = {}
    with _quiet_ray_data(), tqdm(total=sum(sizes), desc=title, unit="record", mininterval=0.5) as bar:
        numbered = [{"row": k, **row} for k, row in enumerate(rows)]
        made = ray.data.from_items(numbered, override_num_blocks=len(numbered)).map(task, num_cpus=1)
        for row in made.iter_rows():
            if row["error"]:
                raise DatasetError(row["error"])
            results[row["row"]] = json.loads(row["result"])
            bar.update(sizes[row["row"]])
    return [results[k] for k in range(len(rows))]


@contextmanager
def _quiet_ray_data() -> Iterator[None]:
    """Keep Ray Data's plan and bars off the terminal: they go into its log files, ours is one bar."""
    import ray.data

    # Ray sets this level when it is imported.
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    before = context.enable_progress_bars, context.target_max_block_size, context.target_min_block_size
    context.enable_progress_bars = False
    context.target_max_block_size = context.target_min_block_size = _BLOCK_BYTES
    try:
        yield
    finally:
        context.enable_progress_bars, context.target_max_block_size, context.target_min_block_size = before


def answer(row: Mapping[str, Any], work: Callable[[], Any]) -> dict[str, Any]:
    """Give what the work made, or the user's error as a value: an exception would come back as Ray's own."""
    try:
        return {"row": row["row"], "result": json.dumps(work()), "error": ""}
    except P2EsError as error:
        return {"row": row["row"], "result": "", "error": str(error)}


@dataclass(frozen=True)
class HashTask:
    """Hash the bytes of a batch of records; what an earlier run hashed and has not changed since is not read again."""

    url: str
    options: ReadOptions

    def __call__(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Hash the batch of a row."""
        references = [RecordRef(**reference) for reference in json.loads(row["batch"])]
        return answer(row, lambda: self.digests(references))

    def digests(self, references: Sequence[RecordRef]) -> list[str]:
        """Give the SHA-256 of each record's files."""
        key = fingerprint([[reference.name, stamp(reference, self.options)] for reference in references])
        place = storage.join(self.url, "keys", f"{key}.json")
        try:
            return [str(digest) for digest in json.loads(storage.read_bytes(place))]
        except (FileNotFoundError, ValueError):
            found = [_digest(reference, self.options) for reference in references]
            storage.write_atomic(place, json.dumps(found).encode())
            return found


def _digest(reference: RecordRef, options: ReadOptions) -> str:
    """Hash the bytes of a record's files; their names do not count, so that a renamed copy is known as one."""
    if reference.format == "simulated":
        return simulated.key_of(reference)
    digest = hashlib.sha256()
    with nearby(reference, options.mappings) as here:
        for path in content_files(here, options):
            try:
                with path.open("rb") as file:
                    digest.update(hashlib.file_digest(file, "sha256").digest())
            except OSError as error:
                # The reader will say what is wrong with it.
                digest.update(f"unreadable: {error.errno}".encode())
    return digest.hexdigest()


@dataclass(frozen=True)
class ReadTask:
    """Read a batch of records and write its part; every record's error is caught where it happens.

    An exception in a Ray Data map would lose the whole block, silently with max_errored_blocks (9,500 of 10,000 rows
    left by one bad one).

    Attributes
    ----------
    deleted : frozenset of str
        Hashed ids of people who were deleted from the dataset: their windows do not come back.
    """

    config: IngestConfig
    settings: Settings
    url: str
    how: str
    options: ReadOptions
    deleted: frozenset[str] = frozenset()

    def __call__(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Read the batch of a row."""
        records = [Record.from_dict(record) for record in json.loads(row["batch"])]
        return answer(row, lambda: asdict(self.part(records)))

    def part(self, records: Sequence[Record]) -> Part:
        """Make the part of a batch, or find what an earlier run made of it."""
        contents = sorted((r.id, r.digest, r.is_copy) for r in records)
        key = fingerprint(self.how, self.config.source, SCHEMA_VERSION, contents, sorted(self.deleted))
        found = finished_part(self.url, key)
        if found is not None:
            return found
        with PartWriter(self.url, key, self.config.source) as writer:
            readers = [_Reader(self, writer, record) for record in records]
            for reader in readers:
                reader.read()
            candidates = sum(reader.candidates for reader in readers)
            return writer.finish({record.id: record.digest for record in records}, candidates=candidates)


@dataclass
class _Reader:
    """Reads one record into the part that is being written, and counts the window positions that were tried."""

    task: ReadTask
    writer: PartWriter
    record: Record
    candidates: int = 0

    def read(self) -> None:
        """Write its windows, and what was left out."""
        if self.record.is_copy:
            self._leave_out("record", "duplicate", "has the bytes of another record")
            return
        skipped: list[RecordError] = []
        try:
            with nearby(self.record.reference, self.task.options.mappings) as here:
                for recording in read(here, self.task.config.source, skipped, self.task.options):
                    self._cut(recording)
        except RecordError as error:
            self._leave_out("record", error.reason, str(error))
        except P2EsError:
            raise
        except Exception as error:  # noqa: BLE001 - one record must not cost the others; the reason is kept
            self._leave_out("record", "unexpected", f"{type(error).__name__} in {_place(error)}: report it")
        for reason, count in Counter(error.reason for error in skipped).items():
            self._leave_out("segment", reason, next(str(e) for e in skipped if e.reason == reason), count)

    def _cut(self, recording: Recording) -> None:
        config, hashed_id = self.task.config, self.task.settings.hashed_id
        person = hashed_id(recording.source, "person", recording.person)
        if person in self.task.deleted:
            self._leave_out("recording", "deleted", "this person was deleted from the dataset")
            return
        joined = str(recording.provenance.get("people", "filled"))
        if joined != "filled":
            reason = "people_differ" if joined.startswith("differs") else "people_not_found"
            self._leave_out("demographics", reason, joined, person=person)
        rejected: Counter[str] = Counter()
        notes: Counter[str] = Counter()
        try:
            split = split_of(config, recording.person)
            for piece in cut(recording, step_s=config.step_s, ids=hashed_id, split=split):
                self.writer.add(piece.windows, self.record.id)
                self.candidates += piece.candidates
                rejected.update(piece.rejected)
                notes.update(piece.notes)
        except RecordError as error:
            self._leave_out("recording", error.reason, str(error), person=person)
        finally:
            for reason, count in rejected.items():
                self._leave_out("window", reason, "", count, person)
            for reason, count in notes.items():
                self._leave_out("change" if reason in KEPT else "signal", reason, "", count, person)

    def _leave_out(self, what: str, reason: str, detail: str, count: int = 1, person: str | None = None) -> None:
        self.writer.leave_out(
            {
                "record": self.record.id,
                "source": self.task.config.source,
                "what": what,
                "reason": reason,
                "detail": scrubbed(detail, self.record.reference),
                "count": count,
                "person": person,
            }
        )


def _place(error: BaseException) -> str:
    """Say where an unexpected error arose; its message may quote the file, and with it a person."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "p2es" if trace is None else f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}"


def scrubbed(text: str, reference: RecordRef) -> str:
    """Take the archive's names out of a message: a file's name may be a person's, and its number is an identifier."""
    names = {part for piece in reference.name.split("/") for part in (piece, Path(piece).stem)}
    words = [
        "..." if any(name and name in word for name in names) or _FILE_NAME.search(word) else word
        for word in text.split(" ")
    ]
    return " ".join(words)
