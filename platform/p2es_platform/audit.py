"""The numbered record of what was promoted: written once, never changed, each entry sealed by the next.

Two promoters that race for one number cannot both have it: an entry is made by a conditional create.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import fsspec

from p2es.errors import ModelError

_FORMAT = "p2es-audit"


@dataclass(frozen=True)
class Entry:
    """One promotion or rollback.

    Attributes
    ----------
    number : int
        From 1, without gaps.
    action : str
        `promote` or `rollback`.
    model_version, sha256 : str
        The champion from then on.
    who : str
    at : str
        UTC. Entries are ordered by number, not by it: clocks jump.
    details : mapping
        The gate's report.
    """

    number: int
    action: str
    model_version: str
    sha256: str
    who: str
    at: str
    details: Mapping[str, Any]


def read(folder: str) -> list[Entry]:
    """Give every entry in order.

    Raises
    ------
    ModelError
        When one is missing, unreadable or was changed.
    """
    fs, root = fsspec.core.url_to_fs(folder)
    found = sorted(Path(p).name for p in fs.ls(root, detail=False) if p.endswith(".json")) if fs.exists(root) else []
    entries: list[Entry] = []
    previous = ""
    for number, name in enumerate(found, start=1):
        raw = fs.cat_file(f"{root}/{name}")
        try:
            fields = json.loads(raw)
            sealed = (fields.pop("format"), fields.pop("version"), fields.pop("previous"))
            entry = Entry(**fields)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(f"the audit entry {name} cannot be read: restore it from a copy") from error
        if sealed != (_FORMAT, 1, previous) or entry.number != number or name != _name(number):
            raise ModelError(f"the audit does not hold together at {name}: an entry was changed or is missing")
        entries.append(entry)
        previous = hashlib.sha256(raw).hexdigest()
    return entries


def append(
    folder: str,
    after: int,
    *,
    action: str,
    model_version: str,
    sha256: str,
    who: str,
    details: Mapping[str, Any],
) -> Entry:
    """Write entry `after + 1`.

    Raises
    ------
    FileExistsError
        When another promoter wrote that number first: read again and decide again.
    """
    fs, root = fsspec.core.url_to_fs(folder)
    previous = hashlib.sha256(fs.cat_file(f"{root}/{_name(after)}")).hexdigest() if after else ""
    at = datetime.now(UTC).isoformat(timespec="seconds")
    entry = Entry(after + 1, action, model_version, sha256, who, at, details)
    fields = {"format": _FORMAT, "version": 1, "previous": previous, **entry.__dict__}
    data = json.dumps(fields, indent=1).encode()
    if "file" in fs.protocol:
        _create_local(Path(root) / _name(entry.number), data)
    else:
        fs.makedirs(root, exist_ok=True)
        fs.pipe_file(f"{root}/{_name(entry.number)}", data, mode="create")
    return entry


def _create_local(path: Path, data: bytes) -> None:
    """Create a file that has all of its bytes or does not exist: a link refuses a name that is taken."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, staged = tempfile.mkstemp(prefix=".entry-", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.link(staged, path)
    finally:
        Path(staged).unlink()
    parent = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(parent)
    finally:
        os.close(parent)


def _name(number: int) -> str:
    return f"{number:06d}.json"
