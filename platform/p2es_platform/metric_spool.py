"""What MLflow has not taken yet, on disk: a killed process loses none of it.

A folder holds, of each run, segments of lines (`RUN-*.jsonl`), small files (`RUN-files/`), and how the run ended
(`RUN-end.json`), each until MLflow has it. A segment belongs to the process that writes it, by a lock that the
operating system drops when the process dies; then the next one takes the segment over.

Lines are not synced one by one: they outlive the process, not a power cut.
"""

import contextlib
import fcntl
import json
import logging
import os
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from p2es.files import write_whole

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Line:
    """Figures of one step.

    Attributes
    ----------
    step : int
    time_ms : int
        When they were measured. It is kept, since MLflow stores a figure of the same key, step, time and value once.
    metrics : mapping
        Name to value; an infinity is NaN.
    """

    step: int
    time_ms: int
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class _Segment:
    path: Path
    handle: int

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)
        os.close(self.handle)


class Spool:
    """The spool of one run, as one process writes it. The caller sees to it that calls do not overlap.

    Parameters
    ----------
    folder : Path
        Made when first needed. Shared by the machines, so that a worker started elsewhere finds what was left.
    run_id : str
    """

    def __init__(self, folder: Path, run_id: str) -> None:
        self.folder, self.run_id = folder, run_id
        self._open: _Segment | None = None
        self._closed: list[_Segment] = []

    def append(self, line: Line) -> None:
        """Write a line; OSError when the disk does not take it."""
        if self._open is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            path = self.folder / f"{self.run_id}-{time.time_ns():020d}-{uuid.uuid4().hex[:8]}.jsonl"
            self._open = _Segment(path, os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o644))
            _lock(self._open.handle)
        # The line break comes first: what a full disk cut off spoils no later line.
        data = b"\n" + json.dumps([line.step, line.time_ms, line.metrics], separators=(",", ":")).encode()
        if os.write(self._open.handle, data) != len(data):
            raise OSError(f"{self._open.path.parent} takes no more")

    def turn(self) -> None:
        """End the segment; the next line begins another."""
        if self._open is not None:
            self._closed.append(self._open)
            self._open = None

    def forget(self) -> None:
        """Remove the ended segments: MLflow has their lines."""
        for segment in self._closed:
            segment.remove()
        self._closed.clear()

    def adopt(self) -> list[Line]:
        """Take over what processes that are gone have left, in the order of steps."""
        lines, torn = [], 0
        for path in sorted(self.folder.glob(f"{self.run_id}-*.jsonl")):
            segment = _take(path)
            if segment is None:
                continue
            self._closed.append(segment)
            for text in filter(None, path.read_bytes().split(b"\n")):
                try:
                    lines.append(Line(*json.loads(text)))
                except (ValueError, TypeError):
                    torn += 1
        if torn:
            log.warning("%d lines of metrics in %s were cut off in the middle and are lost", torn, self.folder)
        return sorted(lines, key=lambda line: line.step)

    def close(self) -> None:
        """Let go of the segments; their files stay for whoever adopts them."""
        self.turn()
        for segment in self._closed:
            os.close(segment.handle)
        self._closed.clear()

    def keep_file(self, name: str, data: bytes) -> None:
        """Write a file that shall become the artifact `name`, over an older one; OSError when it cannot."""
        path = self._files / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, data)

    def files(self) -> list[tuple[str, Path]]:
        """Give the names and places of the files that wait."""
        found = (path for path in sorted(self._files.rglob("*")) if path.is_file() and not path.name.startswith("."))
        return [(str(path.relative_to(self._files)), path) for path in found]

    def drop_file(self, path: Path, version: int) -> None:
        """Remove a file that was sent, unless it was written over meanwhile (`version` is its inode when sent)."""
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_ino == version:
                path.unlink()

    @property
    def _files(self) -> Path:
        return self.folder / f"{self.run_id}-files"

    @property
    def _ending(self) -> Path:
        return self.folder / f"{self.run_id}-end.json"

    def keep_end(self, status: str) -> None:
        """Note how the run ended, and when."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_whole(self._ending, json.dumps({"status": status, "time_ms": int(time.time() * 1000)}).encode())

    def end(self) -> tuple[str, int] | None:
        """Give how the run ended, and when (ms), where MLflow has not taken that yet."""
        try:
            found = json.loads(self._ending.read_text())
        except FileNotFoundError:
            return None
        return found["status"], found["time_ms"]

    def drop_end(self) -> None:
        """Forget how the run ended: MLflow has it, or it goes on."""
        self._ending.unlink(missing_ok=True)


def runs_in(folder: Path) -> list[str]:
    """Give the ids of the runs of which something waits in a folder."""
    waiting = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return sorted({path.parts[0].partition("-")[0] for path in waiting if not path.name.startswith(".")})


def _lock(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        # A file system without locks: sending a line twice is harmless, since MLflow stores it once.
        return True
    return True


def _take(path: Path) -> _Segment | None:
    """Open and lock a segment; None when its writer lives or somebody else has taken it."""
    try:
        handle = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return None
    # Between the opening and the lock another process may have sent and removed it.
    if _lock(handle) and os.fstat(handle).st_nlink:
        return _Segment(path, handle)
    os.close(handle)
    return None
