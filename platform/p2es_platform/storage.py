"""Files of the storage, in a folder or a bucket: written whole or not at all, created once, listed, removed."""

import errno
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Protocol

from p2es.errors import DatasetError
from p2es_platform.bucket import Bucket
from p2es_platform.disk import FileInfo, LocalFiles, SystemDisk
from p2es_platform.leases import Held, bucket_lease, folder_lock


class Files(Protocol):
    """What a kind of storage can do; addresses as given to the functions of this module."""

    def write(self, url: str, data: bytes) -> None:
        """Write a file, whole or not at all."""

    def create(self, url: str, data: bytes) -> None:
        """Write a file that must not exist; FileExistsError."""

    def read(self, url: str) -> bytes:
        """Read a file; FileNotFoundError."""

    def info(self, url: str) -> FileInfo | None:
        """Describe a file."""

    def exists(self, url: str) -> bool:
        """Tell whether there is a file or folder."""

    def listing(self, url: str) -> list[str]:
        """Give the names in a folder."""

    def find(self, url: str) -> dict[str, FileInfo]:
        """Give all files below a folder."""

    def remove(self, urls: Iterable[str]) -> None:
        """Remove files."""


SCHEMES: dict[str, Files] = {}
"""Kinds of storage by scheme beside folders and fsspec's; tests put a disk here that loses its power."""

_LOCAL = LocalFiles(SystemDisk())
_BUCKET = Bucket()
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What an operating system says where there is no room."""


def is_local(url: str) -> bool:
    """Tell whether the address is a path of this machine."""
    return "://" not in url


def join(url: str, *parts: str) -> str:
    """Join parts to an address."""
    return "/".join([url.rstrip("/"), *parts])


def _files(url: str) -> tuple[Files, str]:
    """Give who keeps the files of an address, and the address as they know it."""
    scheme, mark, path = url.partition("://")
    if not mark:
        return _LOCAL, url
    if scheme in SCHEMES:
        return SCHEMES[scheme], path
    return (_LOCAL, path) if scheme in ("file", "local") else (_BUCKET, url)


def write_atomic(url: str, data: bytes) -> None:
    """Write a file whole: locally beside, synced and renamed; in a bucket by one put, which is atomic there.

    Raises
    ------
    DatasetError
        When there is no room.
    ConfigError, RemoteError
        When the bucket is missing, refuses, or does not answer.
    """
    files, path = _files(url)
    with _room(url):
        files.write(path, data)


def create(url: str, data: bytes) -> None:
    """Write a file whole that must not exist: of two writers, one gets the name.

    Raises
    ------
    FileExistsError
        When there is one; of other bytes than `data`, if it is in a bucket: a put whose answer was lost is
        repeated, and would else refuse itself.
    DatasetError, ConfigError, RemoteError
        As `write_atomic`.
    """
    files, path = _files(url)
    try:
        with _room(url):
            files.create(path, data)
    except FileExistsError:
        if files is not _BUCKET or files.read(path) != data:
            raise


@contextmanager
def _room(url: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise DatasetError(f"no space left for {_shown(url)}: free some and run again, nothing is lost") from error
        raise


def _shown(url: str) -> str:
    return url.rsplit("/", 1)[-1]


def read_bytes(url: str) -> bytes:
    """Read a file; FileNotFoundError when there is none."""
    files, path = _files(url)
    return files.read(path)


def exists(url: str) -> bool:
    """Tell whether there is a file or folder."""
    files, path = _files(url)
    return files.exists(path)


def size(url: str) -> int | None:
    """Give the size of a file in bytes; None when there is no such file."""
    files, path = _files(url)
    found = files.info(path)
    return None if found is None else found.bytes


def listing(url: str) -> list[str]:
    """Give the names in a folder, sorted; none when there is no folder."""
    files, path = _files(url)
    return files.listing(path)


def find(url: str) -> dict[str, FileInfo]:
    """Give all files below a folder, however deep, by their path from it."""
    files, path = _files(url)
    return files.find(path)


def remove(url: str) -> None:
    """Remove a file, if it is there."""
    remove_all([url])


def remove_all(urls: Iterable[str]) -> None:
    """Remove files of one storage, those that are there; when it returns they stay removed."""
    chosen = [_files(url) for url in urls]
    if chosen:
        chosen[0][0].remove([path for _, path in chosen])


@contextmanager
def writer_lock(url: str, *, lease_s: float = 60.0) -> Iterator[Held]:
    """Keep a second writer out of a folder or a bucket's prefix; it is refused at once.

    A folder is locked by `flock`, which ends with the process, however it dies. An S3 prefix is leased: its writer
    renews an object every `lease_s / 4`, and one that was not renewed for `lease_s` (by the store's own clock) may
    be taken over. A writer that lost its lease, by a long sleep, is told by `Held.check`; should it go on all the
    same, its commit is refused, because a version is created once. Other stores have no lock, only that.

    Raises
    ------
    DatasetError
        When another process is writing.
    """
    files, path = _files(url)
    if files is _BUCKET:
        with bucket_lease(url, lease_s) as held:
            yield held
    elif files is _LOCAL:
        with folder_lock(path, _shown(url)) as held:
            yield held
    else:
        yield Held()
