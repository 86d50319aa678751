"""What needs the archive beside the dataset, which keeps no name: who is in it, and the names of what was left out."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from p2es.errors import RecordError
from p2es.formats import ReadOptions, RecordRef, read
from p2es_platform.archive import nearby, survey
from p2es_platform.dataset import Dataset
from p2es_platform.settings import Settings
from pipelines.reading import answer, batched, over_ray, read_options
from pipelines.recipes import IngestConfig


@dataclass(frozen=True)
class LeftOut:
    """One line of the quarantine table, with the archive's name of the record where the archive was given."""

    record: str
    what: str
    reason: str
    detail: str
    count: int


def left_out(dataset: Dataset, settings: Settings, source: str, where: str | None = None) -> list[LeftOut]:
    """Give what was left out of a source; with the archive at hand its own names stand for the hashed ids."""
    names: dict[str, str] = {}
    if where is not None:
        names = {settings.hashed_id(source, "file", found.name): found.name for found in survey(where).records}
    return sorted(
        (
            LeftOut(
                names.get(row["record"], row["record"][:12]), row["what"], row["reason"], row["detail"], row["count"]
            )
            for row in dataset.quarantine().to_pylist()
            if row["source"] == source
        ),
        key=lambda line: (line.record, line.what, line.reason),
    )


@dataclass(frozen=True)
class _PeopleTask:
    """Open a batch of records and give the archive's ids of their people; signals stay in their files."""

    source: str
    options: ReadOptions

    def __call__(self, row: Mapping[str, Any]) -> dict[str, Any]:
        references = [RecordRef(**reference) for reference in json.loads(row["batch"])]
        return answer(row, lambda: sorted({person for found in references for person in self._people(found)}))

    def _people(self, reference: RecordRef) -> Iterator[str]:
        skipped: list[RecordError] = []
        try:
            with nearby(reference, self.options.mappings) as here:
                for recording in read(here, self.source, skipped, self.options):
                    yield recording.person
        except RecordError:
            return  # Not in the dataset either: the quarantine table has it.


def people_of(
    dataset: Dataset,
    where: str,
    source: str,
    settings: Settings,
    mapping: tuple[str, ...] = (),
    people: tuple[str, ...] = (),
) -> list[str]:
    """Give the archive's ids of the people who are in the dataset; Ray must be running."""
    config = replace(IngestConfig(), source=source, mapping=mapping, people=people)
    options, layouts = read_options(config)
    references = survey(where, options.mappings, layouts).records
    batches = [[references[k] for k in batch] for batch in batched(references, config)]
    rows = [{"batch": json.dumps([asdict(reference) for reference in batch])} for batch in batches]
    found = over_ray(rows, _PeopleTask(source, options), [len(batch) for batch in batches], "read people")
    known = {person for part in dataset.parts for person in part.people}
    return sorted(
        {person for batch in found for person in batch if settings.hashed_id(source, "person", person) in known}
    )
