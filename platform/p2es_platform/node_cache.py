"""A split's windows, unpacked once on each machine: its processes share them, and a restart finds them there."""

import contextlib
import fcntl
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from p2es.errors import DatasetError
from p2es.windows import WindowStore
from p2es_platform.dataset import Dataset

log = logging.getLogger(__name__)

_FORMAT = 1


@contextlib.contextmanager
def node_store(dataset: Dataset, split: str, *, channels: int = 1, root: Path | None = None) -> Iterator[WindowStore]:
    """Give a split as mapped files of this machine (34 kB a window), made by whoever comes first.

    What no process uses any more is removed by the next that makes another. Where the disk has no room, the windows
    are held in this process's memory, and that is said.

    Parameters
    ----------
    dataset : Dataset
    split : str
    channels : int
        PPG channels.
    root : Path, optional
        Where; by default `P2ES_CACHE`, or the user's part of the temporary folder.

    Raises
    ------
    DatasetError
        When the split has no windows or is damaged.
    """
    count = dataset.rows(split)
    if count == 0:
        raise DatasetError(f"{dataset.url} has no {split} windows: ingest more people, or raise the split's share")
    root = _root() if root is None else root
    folder = root / f"{dataset.hash[:32]}-{split}-{channels}-{_FORMAT}"
    with contextlib.ExitStack() as held:
        try:
            root.mkdir(parents=True, exist_ok=True, mode=0o700)
            held.enter_context(_locked(folder.with_suffix(".used"), fcntl.LOCK_SH))
            if not folder.exists():
                _make(folder, dataset, split, channels, count)
            store = WindowStore.map(folder)
        except OSError as error:
            log.warning("no window cache in %s (%s): each process holds the windows in memory", root, error.strerror)
            store = dataset.store(split, channels=channels)
        yield store


def _root() -> Path:
    return Path(os.environ.get("P2ES_CACHE") or Path(tempfile.gettempdir()) / f"p2es-windows-{os.getuid()}")


@contextlib.contextmanager
def _locked(path: Path, how: int) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, how)
        yield


def _make(folder: Path, dataset: Dataset, split: str, channels: int, count: int) -> None:
    """Make the files; of several processes one does, and the others wait and find them."""
    with _locked(folder.parent / ".making", fcntl.LOCK_EX):
        if folder.exists():
            return
        _remove_unused(folder)
        staging = folder.with_suffix(".part")
        try:
            WindowStore.write(staging, count, dataset.batches(split, channels=channels))
            staging.rename(folder)
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def _remove_unused(mine: Path) -> None:
    """Remove what nobody holds, and what a killed process left half-made."""
    for staging in mine.parent.glob("*.part"):
        shutil.rmtree(staging, ignore_errors=True)
    for lock in mine.parent.glob("*.used"):
        other = lock.with_suffix("")
        if other != mine and other.exists():
            with contextlib.suppress(BlockingIOError), _locked(lock, fcntl.LOCK_EX | fcntl.LOCK_NB):
                shutil.rmtree(other, ignore_errors=True)
