"""Readers, one module a format: find the records of an archive, read each as recordings."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from p2es.errors import InputError, RecordError
from p2es.formats import csv, wfdb
from p2es.recording import Recording


@dataclass(frozen=True)
class RecordRef:
    """Where a record lies; cheap to make and to send.

    Attributes
    ----------
    path : str
        The file that names the record (a WFDB header, a CSV).
    format : str
        Key of the reader.
    name : str
        Path from the archive's root, for WFDB without the ending: unique in the archive.
    """

    path: str
    format: str
    name: str


_READERS: dict[str, Callable[[Path, str, str, list[RecordError]], Iterator[Recording]]] = {
    "wfdb": wfdb.read,
    "csv": csv.read,
}


def find_records(path: str) -> list[RecordRef]:
    """Find the records of a file or, with all folders below, a folder; sorted by name.

    Every WFDB header and every CSV is a record, also one that will turn out to be unreadable: what cannot be read is
    told, not passed over.

    Raises
    ------
    InputError
        When there is nothing there, or nothing that a reader knows.
    """
    root = Path(path).expanduser()
    if not root.exists() and root.with_name(f"{root.name}.hea").exists():
        root = root.with_name(f"{root.name}.hea")
    if not root.exists():
        raise InputError(f"there is no {path}: give a recording or a folder of recordings")
    files = [root] if root.is_file() else [p for p in root.rglob("*") if _visible(p, root)]
    base = root.parent if root.is_file() else root
    headers = [p for p in files if p.suffix == ".hea"]
    inner = wfdb.inner_headers(headers)
    found = [RecordRef(str(p), "wfdb", _name(p, base).removesuffix(".hea")) for p in headers if p not in inner]
    found += [RecordRef(str(p), "csv", _name(p, base)) for p in files if p.suffix == ".csv"]
    if not found:
        raise InputError(f"{path} holds no recording that p2es reads: give WFDB headers (.hea) or CSV files")
    return sorted(found, key=lambda reference: reference.name)


def _visible(path: Path, root: Path) -> bool:
    """Tell whether it is a file, and not in a hidden folder: there an interrupted writer leaves its parts."""
    return path.is_file() and not any(part.startswith(".") for part in path.relative_to(root).parts)


def _name(path: Path, base: Path) -> str:
    return path.relative_to(base).as_posix()


def read(reference: RecordRef, source: str, skipped: list[RecordError] | None = None) -> Iterator[Recording]:
    """Read a record, a recording a segment.

    Parameters
    ----------
    reference : RecordRef
    source : str
        Institution family.
    skipped : list of RecordError, optional
        Gets an entry for each part that could not be read while others could.

    Raises
    ------
    RecordError
        When nothing of it can be read.
    """
    errors = [] if skipped is None else skipped
    return _READERS[reference.format](Path(reference.path), reference.name, source, errors)


def content_files(reference: RecordRef) -> list[Path]:
    """Give the files whose bytes are the record: what its content key is made of."""
    path = Path(reference.path)
    return wfdb.files_of(path) if reference.format == "wfdb" else [path]
