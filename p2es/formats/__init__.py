"""Readers, one module a format: find the records of an archive, read each as recordings."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from p2es.errors import InputError, RecordError
from p2es.formats import aecg, dicom, edf, find, matlab, simulated, table, vital, wfdb
from p2es.formats.find import RecordRef, Survey, why_unknown
from p2es.formats.mapping import Layout, load_mapping, shipped
from p2es.formats.people import People, PeopleLayout, load_people, load_people_layout
from p2es.recording import Recording

__all__ = [
    "Layout",
    "People",
    "PeopleLayout",
    "ReadOptions",
    "RecordRef",
    "Survey",
    "content_files",
    "find_records",
    "load_mapping",
    "load_people",
    "load_people_layout",
    "read",
    "shipped",
    "survey",
]

_READERS = {
    "edf": edf.read,
    "vital": vital.read,
    "dicom": dicom.read,
    "aecg": aecg.read,
}
# What no reader is given, and why.
_REFUSED = {
    "link": ("is a link that leaves the archive, or to a folder: copy what it names into the archive", "link"),
    "missing": ("is listed but not there: fetch it", "missing_file"),
}


@dataclass(frozen=True)
class ReadOptions:
    """What a user declares of an archive; small enough to send with a task.

    Attributes
    ----------
    mappings : tuple of Layout
        Layouts of tables and MATLAB files, tried before the shipped ones.
    people : tuple of People
        Tables joined to every recording, one after the other.
    """

    mappings: tuple[Layout, ...] = ()
    people: tuple[People, ...] = ()


def survey(where: str | Path, mappings: tuple[Layout, ...] = (), tables: Sequence[PeopleLayout] = ()) -> Survey:
    """Account for every file of an archive on this machine (`find.survey`), or every record of a simulated one."""
    if simulated.is_simulated(str(where)):
        return simulated.survey(str(where))
    return find.survey(where, mappings, tables)


def find_records(
    path: str, *, mappings: tuple[Layout, ...] = (), tables: Sequence[PeopleLayout] = ()
) -> list[RecordRef]:
    """Find the records of a file, a folder with all below it, a glob or a list (`survey`); sorted by name.

    Every file that may be a recording is here, also one that will turn out to be unreadable or of an unknown format:
    what cannot be read is told when it is read, not passed over.

    Raises
    ------
    InputError
        When there is nothing there, or nothing that may be a recording.
    """
    found = survey(path, mappings, tables).records
    if not found:
        raise InputError(f"{path} holds no recording: give WFDB headers, EDF, DICOM, aECG, .vital, MATLAB or tables")
    return found


def read(
    reference: RecordRef,
    source: str,
    skipped: list[RecordError] | None = None,
    options: ReadOptions | None = None,
) -> Iterator[Recording]:
    """Read a record, a recording a stretch with one set of leads.

    Parameters
    ----------
    reference : RecordRef
    source : str
        Institution family.
    skipped : list of RecordError, optional
        Gets an entry for each part that could not be read while others could.
    options : ReadOptions, optional

    Raises
    ------
    RecordError
        When nothing of it can be read.
    """
    options = options or ReadOptions()
    found = _read(reference, source, [] if skipped is None else skipped, options)
    return (_joined(recording, options.people) for recording in found)


def _joined(recording: Recording, tables: Sequence[People]) -> Recording:
    for people in tables:
        recording = people.join(recording)
    return recording


def _read(reference: RecordRef, source: str, skipped: list[RecordError], options: ReadOptions) -> Iterator[Recording]:
    if reference.format == "simulated":
        return simulated.read(reference, source)
    path = Path(reference.path)
    if reference.format not in {"link", "missing"} and not _is_file(path):
        raise why_unknown(path)
    match reference.format:
        case "unknown":
            raise why_unknown(path)
        case "link" | "missing":
            what, reason = _REFUSED[reference.format]
            raise RecordError(f"{path.name} {what}", reason)
        case "wfdb":
            return wfdb.read(path, reference.name, source, skipped, options.mappings)
        case "csv" | "parquet":
            return table.read(path, reference.name, source, skipped, options.mappings)
        case "matlab":
            return matlab.read(path, reference.name, source, skipped, options.mappings)
    return _READERS[reference.format](path, reference.name, source, skipped)


def _is_file(path: Path) -> bool:
    """Tell whether it may be opened: not so a pipe, which would keep the reader waiting."""
    try:
        return not path.exists() or path.is_file()
    except OSError:
        return True


def content_files(reference: RecordRef, options: ReadOptions | None = None) -> list[Path]:
    """Give the files whose bytes are the record: what its content key is made of; none for what is not there."""
    path = Path(reference.path)
    if reference.format in {"link", "missing", "simulated"} or not path.is_file():
        return []
    if reference.format == "wfdb":
        return wfdb.files_of(path, reference.name, (options or ReadOptions()).mappings)
    if reference.format in {"csv", "parquet"}:
        return table.files_of(path, (options or ReadOptions()).mappings)
    return [path]
