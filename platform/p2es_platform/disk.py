"""Files of a local disk, published so that a crash at any step leaves the old file, the new one or none."""

import contextlib
import os
import secrets
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, Protocol


class FileInfo(NamedTuple):
    """What a listing tells of a file: its size, and the seconds since it was written (None when nobody knows)."""

    bytes: int
    age_s: float | None


class Disk(Protocol):
    """The steps of publishing, one system call each: the seam at which tests stop the power.

    Until `sync` the bytes of a file, and until `sync_folder` its name, may be lost or not, in any order.
    """

    def write(self, path: str, data: bytes) -> None:
        """Create or replace a file in place."""

    def sync(self, path: str) -> None:
        """Make the bytes of a file last."""

    def sync_folder(self, path: str) -> None:
        """Make the names in a folder last."""

    def rename(self, old: str, new: str) -> None:
        """Give a file another name, which may be taken."""

    def link(self, old: str, new: str) -> None:
        """Give a file a second name; FileExistsError when it is taken."""

    def unlink(self, path: str) -> None:
        """Take a name away; FileNotFoundError when there is none."""

    def make_folder(self, path: str) -> None:
        """Make one folder; its parent exists."""

    def is_folder(self, path: str) -> bool:
        """Tell whether there is a folder."""

    def names(self, path: str) -> list[str]:
        """Give the names in a folder."""

    def info(self, path: str) -> FileInfo | None:
        """Describe a file; None when there is no such file."""

    def read(self, path: str) -> bytes:
        """Give the bytes of a file; FileNotFoundError when there is none."""


class SystemDisk:
    """The operating system's files."""

    def write(self, path: str, data: bytes) -> None:
        """Create or replace a file in place."""
        with Path(path).open("wb", buffering=0) as file:
            view = memoryview(data)
            while view:
                view = view[file.write(view) :]

    def sync(self, path: str) -> None:
        """Make the bytes of a file last."""
        self._sync(path)

    def sync_folder(self, path: str) -> None:
        """Make the names in a folder last."""
        self._sync(path)

    def _sync(self, path: str) -> None:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

    def rename(self, old: str, new: str) -> None:
        """Give a file another name, which may be taken."""
        Path(old).replace(new)

    def link(self, old: str, new: str) -> None:
        """Give a file a second name; FileExistsError when it is taken."""
        os.link(old, new)

    def unlink(self, path: str) -> None:
        """Take a name away; FileNotFoundError when there is none."""
        Path(path).unlink()

    def make_folder(self, path: str) -> None:
        """Make one folder; its parent exists."""
        Path(path).mkdir(exist_ok=True)

    def is_folder(self, path: str) -> bool:
        """Tell whether there is a folder."""
        return Path(path).is_dir()

    def names(self, path: str) -> list[str]:
        """Give the names in a folder."""
        return [entry.name for entry in Path(path).iterdir()]

    def info(self, path: str) -> FileInfo | None:
        """Describe a file; None when there is no such file."""
        try:
            found = Path(path).stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        return FileInfo(found.st_size, max(time.time() - found.st_mtime, 0.0))

    def read(self, path: str) -> bytes:
        """Give the bytes of a file; FileNotFoundError when there is none."""
        return Path(path).read_bytes()


class LocalFiles:
    """Files published by the steps of a `Disk`."""

    def __init__(self, disk: Disk) -> None:
        self.disk = disk

    def write(self, path: str, data: bytes) -> None:
        """Write beside, sync, rename, sync the folder: readers see the old file or the new one, never a part."""
        with self._staged(path, data) as staged:
            self.disk.rename(staged, path)
        self.disk.sync_folder(_folder(path))

    def create(self, path: str, data: bytes) -> None:
        """Write a file that must not exist: a link refuses a name that is taken, a rename would replace it.

        Raises
        ------
        FileExistsError
        """
        with self._staged(path, data) as staged:
            self.disk.link(staged, path)
        self.disk.sync_folder(_folder(path))

    @contextlib.contextmanager
    def _staged(self, path: str, data: bytes) -> Iterator[str]:
        folder, name = _folder(path), path.rsplit("/", 1)[-1]
        self._make_folders(folder)
        # Not the process's number: two nodes that share a file system may have the same.
        staged = f"{folder}/.{name}.{secrets.token_hex(6)}.partial"
        try:
            self.disk.write(staged, data)
            self.disk.sync(staged)
            yield staged
        finally:
            with contextlib.suppress(FileNotFoundError):
                self.disk.unlink(staged)

    def _make_folders(self, folder: str) -> None:
        """Make a folder and those above it; each is a name in the one above, which must last too."""
        missing = []
        while not self.disk.is_folder(folder):
            missing.append(folder)
            folder = _folder(folder)
        for path in reversed(missing):
            self.disk.make_folder(path)
            self.disk.sync_folder(_folder(path))

    def remove(self, paths: Iterable[str]) -> None:
        """Remove files, those that are there, and make it last."""
        folders = set()
        for path in paths:
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                self.disk.unlink(path)
                folders.add(_folder(path))
        for folder in sorted(folders):
            self.disk.sync_folder(folder)

    def read(self, path: str) -> bytes:
        """Read a file; FileNotFoundError when there is none."""
        return self.disk.read(path)

    def info(self, path: str) -> FileInfo | None:
        """Describe a file; None when there is no such file."""
        return None if self.disk.is_folder(path) else self.disk.info(path)

    def exists(self, path: str) -> bool:
        """Tell whether there is a file or folder."""
        return self.disk.is_folder(path) or self.disk.info(path) is not None

    def listing(self, path: str) -> list[str]:
        """Give the names in a folder, sorted; none when there is no folder."""
        return sorted(self.disk.names(path)) if self.disk.is_folder(path) else []

    def find(self, path: str) -> dict[str, FileInfo]:
        """Give all files below a folder by their path from it."""
        found: dict[str, FileInfo] = {}
        pending = [""]
        while pending:
            below = pending.pop()
            for name in self.listing(f"{path}/{below}".rstrip("/")):
                here = f"{below}/{name}".lstrip("/")
                if self.disk.is_folder(f"{path}/{here}"):
                    pending.append(here)
                elif (info := self.disk.info(f"{path}/{here}")) is not None:
                    found[here] = info
        return found


def _folder(path: str) -> str:
    above, mark, _ = path.rpartition("/")
    return above or mark or "."
