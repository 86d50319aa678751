"""Archives at any address: a record that lies in a bucket is copied to this machine for as long as it is read."""

import hashlib
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from p2es.errors import ConfigError, InputError
from p2es.formats import Layout, PeopleLayout, ReadOptions, RecordRef, Survey, content_files, find_records, simulated
from p2es.formats import survey as survey_local
from p2es.formats.find import HEADER_BYTES, beside_names, named_by, survey_tree
from p2es_platform import storage
from p2es_platform.bucket import explained, filesystem

# Heads fetched at a time: in parallel where the file system can, and 1 MB of memory.
_BATCH = 256


class Bucket:
    """The files below an address, for `survey_tree`: of each only the head is fetched, of WFDB headers all.

    Parameters
    ----------
    url : str
        Of a folder, without a wildcard.
    deep : bool
        Whether the folders below belong to it.
    """

    def __init__(self, url: str, *, deep: bool = True) -> None:
        self._url = url.rstrip("/")
        self._files, self._root = filesystem(self._url)
        self._root = self._root.rstrip("/")
        found = self._files.find(self._root, maxdepth=None if deep else 1, detail=True)
        below = {path.removeprefix(self._root).lstrip("/"): int(info.get("size") or 0) for path, info in found.items()}
        # A bucket's mark of a folder is an empty object with a slash at its end.
        self.sizes: dict[str, int] = {name: size for name, size in below.items() if name and not name.endswith("/")}
        headers = [name for name in self.sizes if name.endswith(".hea")]
        others = [name for name in self.sizes if not name.endswith(".hea")]
        self._queues = {True: headers, False: others}
        self._places = {name: k for queue in self._queues.values() for k, name in enumerate(queue)}
        self._heads: dict[str, bytes | Exception] = {}

    def head(self, name: str, count: int) -> bytes:
        """Give the first bytes of a file; FileNotFoundError when it went since it was listed."""
        if name not in self._heads:
            queue, at = self._queues[name.endswith(".hea")], self._places[name]
            batch = [other for other in queue[at : at + _BATCH] if other not in self._heads]
            self._heads |= dict(zip(batch, self._fetched(batch, count), strict=True))
        found = self._heads.pop(name)
        if isinstance(found, FileNotFoundError):
            raise found
        if isinstance(found, Exception):
            # A store that fails says nothing of the file: taken for unreadable, it would be quarantined as unknown.
            with explained(self._url):
                raise found
        return found

    def _fetched(self, names: Sequence[str], count: int) -> list[bytes | Exception]:
        # S3 refuses a range of an empty file.
        filled = [name for name in names if self.sizes[name]]
        paths = [f"{self._root}/{name}" for name in filled]
        stops = [min(count, self.sizes[name]) for name in filled]
        found = self._files.cat_ranges(paths, [0] * len(paths), stops, on_error="return") if paths else []
        heads = dict(zip(filled, found, strict=True))
        return [heads.get(name, b"") for name in names]

    def address(self, name: str) -> str:
        """Give the address of a file."""
        return storage.join(self._url, name)


def survey(url: str, mappings: tuple[Layout, ...] = (), tables: Sequence[PeopleLayout] = ()) -> Survey:
    """Account for every file of an archive: as `p2es.formats.survey`, and in a bucket by the same rules.

    Parameters
    ----------
    url : str
        A file, a folder, a glob or a list of this machine; or the address of a folder, a file, a glob or a list.
    mappings : tuple of Layout
    tables : sequence of PeopleLayout

    Raises
    ------
    InputError
        When there is nothing there.
    """
    if storage.is_local(url):
        return survey_local(url, mappings, tables)
    with explained(url.removeprefix("@")):
        return _survey_bucket(url, mappings, tables)


def _survey_bucket(url: str, mappings: tuple[Layout, ...], tables: Sequence[PeopleLayout]) -> Survey:
    address = url.removeprefix("@").rstrip("/")
    files, root = filesystem(address)
    if re.search(r"[*?[]", address):
        base = re.split(r"[*?[]", address)[0].rpartition("/")[0]
        inner = filesystem(base)[1].rstrip("/")
        names = [path.removeprefix(inner).lstrip("/") for path in files.glob(root)]
        return _only(Bucket(base), names, url, mappings, tables)
    if files.isdir(root):
        return survey_tree(Bucket(address), mappings, tables)
    if not files.exists(root) and files.exists(f"{root}.hea"):
        address = f"{address}.hea"
    elif not files.exists(root):
        raise InputError(f"there is no {url}: give the address of a recording or a folder of recordings")
    base, _, name = address.rpartition("/")
    if url.startswith("@") or name == "RECORDS":
        return _of_list(Bucket(base), storage.read_bytes(address), url, mappings, tables)
    return _only(Bucket(base, deep=False), [name], url, mappings, tables)


def _only(
    bucket: Bucket, names: Sequence[str], url: str, mappings: tuple[Layout, ...], tables: Sequence[PeopleLayout]
) -> Survey:
    """Survey the named files and all in the named folders."""
    wanted = {file for name in names for file in bucket.sizes if file == name or file.startswith(f"{name}/")}
    if not wanted:
        raise InputError(f"nothing matches {url}: give the address of a recording or a folder of recordings")
    return survey_tree(bucket, mappings, tables, only=wanted)


def _of_list(
    bucket: Bucket, data: bytes, url: str, mappings: tuple[Layout, ...], tables: Sequence[PeopleLayout]
) -> Survey:
    """Survey what a list names, from its folder; an entry that is not there is a record that says so."""
    entries = [line.strip().rstrip("/") for line in data.decode("utf-8-sig", "replace").splitlines() if line.strip()]
    names, missing = [], []
    for entry in entries:
        if f"{entry}.hea" in bucket.sizes:
            names.append(f"{entry}.hea")
        elif entry in bucket.sizes or any(name.startswith(f"{entry}/") for name in bucket.sizes):
            names.append(entry)
        else:
            missing.append(RecordRef(bucket.address(entry), "missing", entry))
    found = _only(bucket, names, url, mappings, tables) if names else Survey([])
    if not found.records and not missing:
        raise InputError(f"{url} lists nothing: give one recording a line")
    return replace(found, records=sorted([*found.records, *missing], key=lambda reference: reference.name))


def find(url: str, *, mappings: tuple[Layout, ...] = (), tables: Sequence[PeopleLayout] = ()) -> list[RecordRef]:
    """Find the records of an archive: as `find_records`, and in a bucket the same ones.

    Raises
    ------
    InputError
        When there is nothing there, or nothing that may be a recording.
    """
    if storage.is_local(url):
        return find_records(url, mappings=mappings, tables=tables)
    found = survey(url, mappings, tables).records
    if not found:
        raise InputError(f"{url} holds no recording: give WFDB headers, EDF, DICOM, aECG, .vital, MATLAB or tables")
    return found


@contextmanager
def nearby(record: RecordRef, mappings: tuple[Layout, ...] = ()) -> Iterator[RecordRef]:
    """Give a record as files of this machine, for the time of the block.

    Parameters
    ----------
    record : RecordRef
    mappings : tuple of Layout
        The user's own: they may say that a table has a second file.
    """
    if storage.is_local(record.path):
        yield record
        return
    depth = record.name.count("/") + 1
    with tempfile.TemporaryDirectory(prefix="p2es-") as folder:
        target = Path(folder) / "/".join(record.path.split("/")[-depth:])
        target.parent.mkdir(parents=True, exist_ok=True)
        # A store that fails is not the record's fault: the run stops, and the next one goes on from here.
        with explained(record.path):
            files, _ = filesystem(record.path)
            for path in _files_of(files, record, mappings):
                _fetch(files, path, target.parent / path.rpartition("/")[2])
        yield replace(record, path=str(target))


def _fetch(files: Any, path: str, target: Path) -> None:
    """Copy a file of a bucket to this machine; one that went since it was listed is the reader's to tell."""
    try:
        with explained(path):
            files.get_file(path, str(target))
    except FileNotFoundError:
        target.unlink(missing_ok=True)
    except OSError as error:
        if error.errno in storage.FULL:
            raise ConfigError(f"no space left in {tempfile.gettempdir()}: free some, or set TMPDIR") from error
        raise


def _files_of(files: Any, record: RecordRef, mappings: tuple[Layout, ...]) -> Iterator[str]:
    """Give the files of a record in a bucket that are there: those that are named, its annotations, its second file."""
    path = filesystem(record.path)[1]
    if record.format in {"missing", "link"} or not files.exists(path):
        return
    yield path
    if record.format != "wfdb":
        yield from (other for other in beside_names(path, mappings) if files.exists(other))
        return
    there = {found.rstrip("/") for found in files.ls(path.rpartition("/")[0], detail=False)}
    given, pending = {path}, [path]
    while pending:
        header = pending.pop()
        stem = header.removesuffix(".hea")
        notes = sorted(found for found in there if re.fullmatch(re.escape(stem) + r"\.[A-Za-z][\w+-]{0,15}", found))
        named = named_by(header, files.cat_file(header, end=HEADER_BYTES))
        for other in (*named, *notes, *(beside_names(path, mappings) if header == path else ())):
            if other in there and other not in given:
                given.add(other)
                yield other
                pending += [other] if other.endswith(".hea") else []


def stamp(record: RecordRef, options: ReadOptions | None = None) -> str:
    """Give a mark of a record's files that changes when they do, without reading their samples.

    It is made of sizes and times of change, in a bucket of its entity tags: equal marks on one storage mean equal
    bytes unless somebody set a time back; it says nothing between storages, where the content key does. Of a simulated
    record, which has no files, it is made of the parameters and the simulator's version.
    """
    if record.format == "simulated":
        return simulated.key_of(record)
    options = options or ReadOptions()
    digest = hashlib.sha256()
    if storage.is_local(record.path):
        for path in content_files(record, options):
            found = path.stat()
            digest.update(f"{path.name}\0{found.st_size}\0{found.st_mtime_ns}\n".encode())
        return digest.hexdigest()
    with explained(record.path):
        files, _ = filesystem(record.path)
        for name in _files_of(files, record, options.mappings):
            info = files.info(name)
            digest.update(f"{name.rpartition('/')[2]}\0{info.get('size')}\0{_changed(info)}\n".encode())
    return digest.hexdigest()


def _changed(info: Mapping[str, Any]) -> str:
    for key in (
        "ETag",
        "etag",
        "md5Hash",
        "content_md5",
        "LastModified",
        "last_modified",
        "mtime",
        "updated",
        "created",
    ):
        if info.get(key):
            return str(info[key])
    return ""
