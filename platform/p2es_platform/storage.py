"""Files of the storage, in a folder or a bucket (fsspec): written whole or not at all."""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import fsspec

from p2es.errors import DatasetError
from p2es.files import write_whole


def is_local(url: str) -> bool:
    """Tell whether the address is a path of this machine."""
    return "://" not in url


def join(url: str, *parts: str) -> str:
    """Join parts to an address."""
    return "/".join([url.rstrip("/"), *parts])


def write_atomic(url: str, data: bytes) -> None:
    """Write a file whole: locally beside, synced and renamed; in a bucket by one put, which is atomic there.

    Raises
    ------
    DatasetError
        When there is no room.
    """
    try:
        if is_local(url):
            path = Path(url)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, data)
            _sync_folder(path.parent)
        else:
            with fsspec.open(url, "wb") as file:
                file.write(data)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise DatasetError(f"no space left for {_shown(url)}: free some and run again, nothing is lost") from error
        raise


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _shown(url: str) -> str:
    return url.rsplit("/", 1)[-1]


def read_bytes(url: str) -> bytes:
    """Read a file; FileNotFoundError when there is none."""
    if is_local(url):
        return Path(url).read_bytes()
    with fsspec.open(url, "rb") as file:
        return bytes(file.read())


def exists(url: str) -> bool:
    """Tell whether there is a file or folder."""
    if is_local(url):
        return Path(url).exists()
    filesystem, path = fsspec.core.url_to_fs(url)
    return bool(filesystem.exists(path))


def size(url: str) -> int | None:
    """Give the size of a file in bytes; None when there is no such file."""
    try:
        if is_local(url):
            return Path(url).stat().st_size
        filesystem, path = fsspec.core.url_to_fs(url)
        return int(filesystem.size(path))
    except FileNotFoundError:
        return None


def listing(url: str) -> list[str]:
    """Give the names in a folder, sorted; none when there is no folder."""
    if is_local(url):
        return sorted(p.name for p in Path(url).iterdir()) if Path(url).is_dir() else []
    filesystem, path = fsspec.core.url_to_fs(url)
    if not filesystem.exists(path):
        return []
    return sorted(name.rstrip("/").rsplit("/", 1)[-1] for name in filesystem.ls(path, detail=False))


def remove(url: str) -> None:
    """Remove a file, if it is there."""
    if is_local(url):
        Path(url).unlink(missing_ok=True)
        return
    filesystem, path = fsspec.core.url_to_fs(url)
    if filesystem.exists(path):
        filesystem.rm(path)


@contextmanager
def writer_lock(url: str) -> Iterator[None]:
    """Keep a second writer of this machine out of a local folder; the lock ends with the process, however it dies.

    A bucket has no such lock: there the manifest's last writer wins, and shards are keyed by content.

    Raises
    ------
    DatasetError
        When another process is writing.
    """
    if not is_local(url):
        yield
        return
    Path(url).mkdir(parents=True, exist_ok=True)
    with (Path(url) / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise DatasetError(f"another process is writing to {_shown(url)}: wait for it, or stop it") from error
        yield
