"""The arguments of `p2es dataset`, apart from its work: the command line must start fast."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

Action = Literal["list", "show", "verify", "report", "versions", "diff", "quarantine", "splits", "delete", "collect"]


@dataclass(frozen=True)
class DatasetArgs:
    """What to do, and with which dataset.

    list, show, verify, report, versions and quarantine only look; diff compares two versions; splits tells, writes or
    checks the list of people and splits; delete takes a person out for good, and says which models saw them; collect
    removes files that no kept version names. delete and collect only say what they would do until --yes.
    """

    action: tyro.conf.Positional[Action] = "list"
    dataset: tyro.conf.Positional[str | None] = None
    """Its name in the storage (`p2es dataset list`), or its address."""
    version: int | None = None
    """For show, verify and report: a version other than the newest."""
    versions: tuple[int, int] | None = None
    """For diff: the older and the newer one. Without it, the last two."""
    source: str | None = None
    """For delete, splits and quarantine: the institution family; the dataset's only one without it."""
    person: str | None = None
    """For delete: the archive's own id of the person."""
    archive: str | None = None
    """For splits and quarantine: the archive, which has the names that the dataset does not keep."""
    mapping: tuple[str, ...] = ()
    """For splits: as --ingest.mapping was."""
    people: tuple[str, ...] = ()
    """For splits: as --ingest.people was."""
    out: Path | None = None
    """For report and splits: the file to write."""
    check: str | None = None
    """For splits: a published list to check against the rule and the dataset."""
    keep: int | None = None
    """For collect: how many versions to keep, the newest; all without it."""
    grace_h: float = 24.0
    """For collect: younger files stay, which an interrupted ingest would find."""
    yes: bool = False
    """For delete and collect: do it."""
