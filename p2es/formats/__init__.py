"""Readers, one module a format: find the records of an archive, read each as recordings."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from p2es.errors import InputError
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
        Path from the archive's root, without the ending: unique in the archive.
    """

    path: str
    format: str
    name: str


_READERS: dict[str, Callable[[Path, str, str], Iterator[Recording]]] = {"wfdb": wfdb.read, "csv": csv.read}


def find_records(path: str) -> list[RecordRef]:
    """Find the records of a file or, with all folders below, a folder; sorted by name.

    Raises
    ------
    InputError
        When there is nothing there, or nothing that a reader knows.
    """
    root = Path(path).expanduser()
    if not root.exists() and root.with_suffix(root.suffix + ".hea").exists():
        root = root.with_suffix(root.suffix + ".hea")
    if not root.exists():
        raise InputError(f"there is no {path}: give a recording or a folder of recordings")
    files = [root] if root.is_file() else sorted(p for p in root.rglob("*") if p.is_file())
    base = root.parent if root.is_file() else root
    headers = [p for p in files if p.suffix == ".hea"]
    inner = wfdb.inner_headers(headers)
    found = [_reference(p, base, "wfdb") for p in headers if p not in inner]
    found += [_reference(p, base, "csv") for p in files if p.suffix == ".csv" and csv.mapping_of(p) is not None]
    if not found:
        raise InputError(f"{path} holds no recording that p2es reads: WFDB headers (.hea) or a CSV with a known layout")
    return sorted(found, key=lambda reference: reference.name)


def _reference(path: Path, base: Path, kind: str) -> RecordRef:
    return RecordRef(str(path), kind, path.relative_to(base).with_suffix("").as_posix())


def read(reference: RecordRef, source: str) -> Iterator[Recording]:
    """Read a record, a recording a segment; raises RecordError when it cannot be read."""
    return _READERS[reference.format](Path(reference.path), reference.name, source)


def content_files(reference: RecordRef) -> list[Path]:
    """Give the files whose bytes are the record: what its content key is made of."""
    path = Path(reference.path)
    return wfdb.files_of(path) if reference.format == "wfdb" else [path]
