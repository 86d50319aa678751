"""Archives at any address: a record that lies in a bucket is copied to this machine for as long as it is read."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import fsspec

from p2es.errors import InputError
from p2es.formats import RecordRef, find_records
from p2es.formats.wfdb import named_files
from p2es_platform import storage


def find(url: str) -> list[RecordRef]:
    """Find the records of an archive: as `find_records`, and in a bucket the same ones.

    Raises
    ------
    InputError
        When there is nothing there, or nothing that a reader knows.
    """
    if storage.is_local(url):
        return find_records(url)
    files, root = fsspec.core.url_to_fs(url)
    if not files.exists(root):
        raise InputError(f"there is no {url}: give the address of a folder of recordings")
    with tempfile.TemporaryDirectory(prefix="p2es-") as folder:
        # Headers say which of them are records; of all other files the name is enough.
        for path in files.find(root):
            name = path.removeprefix(root).lstrip("/")
            here = Path(folder) / name
            here.parent.mkdir(parents=True, exist_ok=True)
            if here.suffix == ".hea":
                files.get_file(path, str(here))
            else:
                here.touch()
        try:
            found = find_records(folder)
        except InputError as error:
            raise InputError(str(error).replace(folder, url)) from None
        return [replace(record, path=storage.join(url, _below(record, folder))) for record in found]


def _below(record: RecordRef, folder: str) -> str:
    return Path(record.path).relative_to(folder).as_posix()


@contextmanager
def nearby(record: RecordRef) -> Iterator[RecordRef]:
    """Give a record as files of this machine, for the time of the block."""
    if storage.is_local(record.path):
        yield record
        return
    depth = record.name.count("/") + 1
    *_, archive = record.path.split("/")[:-depth] or [""]
    with tempfile.TemporaryDirectory(prefix="p2es-") as folder:
        # The archive's own name too: a reader may tell the person by it.
        below = "/".join([archive, *record.path.split("/")[-depth:]])
        yield replace(record, path=str(_copied(record.path, Path(folder) / below)))


def _copied(url: str, target: Path) -> Path:
    """Copy a record's files to the folder of `target`; those that are missing are the reader's to tell."""
    files, source = fsspec.core.url_to_fs(url)
    target.parent.mkdir(parents=True, exist_ok=True)
    pending = [target]
    while pending:
        path = pending.pop()
        remote = f"{source.rsplit('/', 1)[0]}/{path.name}"
        if path.exists() or not files.exists(remote):
            continue
        files.get_file(remote, str(path))
        if path.suffix == ".hea":
            pending += named_files(path)
    return target
