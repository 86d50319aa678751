"""What two versions of a dataset, or two datasets, do not have in common."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from p2es.windows import WINDOW_SCHEMA
from p2es_platform.dataset import Dataset
from p2es_platform.shards import Shard, read_shards

_COLUMNS = ["window_id", "recording", "person", "split", "source"]


@dataclass(frozen=True)
class Difference:
    """What changed from one version to another.

    Attributes
    ----------
    added, removed : dict
        `windows`, `recordings` or `people`, then split and source (`train of mimic`), to a count.
    changed : int
        Windows that are in both under one id, with other signals.
    configuration : dict
        Name to the values before and after.
    """

    added: Mapping[str, Mapping[str, int]]
    removed: Mapping[str, Mapping[str, int]]
    changed: int
    configuration: Mapping[str, tuple[Any, Any]]

    @property
    def same(self) -> bool:
        """Whether nothing differs."""
        return not (self.changed or self.configuration or any(self.added.values()) or any(self.removed.values()))


Windows = dict[str, tuple[str, str, str, bytes | None]]


def diff(before: Dataset, after: Dataset) -> Difference:
    """Compare two versions; only shards that are not in both are read.

    Returns
    -------
    Difference
        A recording or person counts as added when none of its windows were there before.
    """
    common = {shard.sha256 for shard in before.shards()} & {shard.sha256 for shard in after.shards()}
    old = _windows(before, [shard for shard in before.shards() if shard.sha256 not in common])
    new = _windows(after, [shard for shard in after.shards() if shard.sha256 not in common])
    shared = _names(before, [shard for shard in before.shards() if shard.sha256 in common]) if old or new else _NOBODY
    changed = sum(old[name][3] != new[name][3] for name in old.keys() & new.keys())
    return Difference(_only(new, old, shared), _only(old, new, shared), changed, _configuration(before, after))


def _windows(dataset: Dataset, shards: list[Shard]) -> Windows:
    columns = [*_COLUMNS, *(["content"] if "content" in WINDOW_SCHEMA.names else [])]
    found: Windows = {}
    for table in read_shards(dataset.url, shards, columns):
        rows = [table[name].to_pylist() for name in _COLUMNS]
        contents = table["content"].to_pylist() if "content" in columns else [None] * table.num_rows
        for name, recording, person, split, source, content in zip(*rows, contents, strict=True):
            found[name] = (recording, person, f"{split} of {source}", content)
    return found


_NOBODY: tuple[frozenset[str], frozenset[str]] = (frozenset(), frozenset())


def _names(dataset: Dataset, shards: list[Shard]) -> tuple[frozenset[str], frozenset[str]]:
    """Give the recordings and people of the shards that both have."""
    recordings: set[str] = set()
    people: set[str] = set()
    for table in read_shards(dataset.url, shards, ["recording", "person"]):
        recordings.update(table["recording"].unique().to_pylist())
        people.update(table["person"].unique().to_pylist())
    return frozenset(recordings), frozenset(people)


def _only(mine: Windows, theirs: Windows, shared: tuple[frozenset[str], frozenset[str]]) -> dict[str, dict[str, int]]:
    """Count what is in `mine` alone."""

    def alone(place: int, known: Iterable[str]) -> dict[str, int]:
        others = {*known, *(row[place] for row in theirs.values())}
        return _counted({row[place]: row[2] for row in mine.values() if row[place] not in others}.values())

    return {
        "windows": _counted(row[2] for name, row in mine.items() if name not in theirs),
        "recordings": alone(0, shared[0]),
        "people": alone(1, shared[1]),
    }


def _counted(groups: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(groups).items()))


def _configuration(before: Dataset, after: Dataset) -> dict[str, tuple[Any, Any]]:
    old = {**before.manifest["ingest"], "window schema": before.manifest["schema_version"]}
    new = {**after.manifest["ingest"], "window schema": after.manifest["schema_version"]}
    return {name: (old.get(name), new.get(name)) for name in sorted({*old, *new}) if old.get(name) != new.get(name)}
