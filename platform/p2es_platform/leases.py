"""One writer at a time: a lock on a folder, a lease on a prefix of a bucket."""

import contextlib
import fcntl
import json
import os
import secrets
import socket
import threading
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import fsspec

from p2es.errors import DatasetError, P2EsError
from p2es_platform.bucket import error_code, explained


class Held:
    """A lock that is held."""

    def __init__(self) -> None:
        self.lost = threading.Event()

    def check(self) -> None:
        """Raise DatasetError when the lock was lost meanwhile: call it before what cannot be undone."""
        if self.lost.is_set():
            raise DatasetError("another writer took this dataset over while this one slept: run again")


@contextlib.contextmanager
def folder_lock(path: str, shown: str) -> Iterator[Held]:
    """Lock a folder of this machine until the block or the process ends."""
    Path(path).mkdir(parents=True, exist_ok=True)
    with (Path(path) / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise DatasetError(f"another process is writing to {shown}: wait for it, or stop it") from error
        yield Held()


@contextlib.contextmanager
def bucket_lease(url: str, lease_s: float) -> Iterator[Held]:
    """Lease a prefix of an S3 bucket; other kinds of bucket have no conditional put that replaces."""
    if not url.startswith(("s3://", "s3a://")):
        yield Held()
        return
    lease = _Lease(f"{url.rstrip('/')}/lease.json", lease_s)
    lease.take()
    held = Held()
    stop = threading.Event()
    beat = threading.Thread(target=lease.keep, args=(held, stop), daemon=True)
    beat.start()
    try:
        yield held
    finally:
        stop.set()
        beat.join()
        if not held.lost.is_set():
            lease.release()


class _Lease:
    """An object that its owner rewrites; each step is a put under a condition, so two cannot both have it."""

    def __init__(self, url: str, lease_s: float) -> None:
        self._url = url
        self._lease_s = lease_s
        self._owner = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
        self._beat = 0
        self._tag = ""

    def take(self) -> None:
        """Take the lease, or that of a writer that gave no sign of life for long enough.

        Raises
        ------
        DatasetError
            When another writer has it.
        """
        try:
            self._put(IfNoneMatch="*")
        except FileExistsError:
            tag, age_s, owner = self._seen()
            if age_s < self._lease_s:
                left = self._lease_s - age_s
                raise DatasetError(
                    f"another process ({owner}) is writing to this dataset: wait for it, or {left:.0f} s after its end"
                ) from None
            try:
                self._put(IfMatch=tag)
            except FileExistsError:
                raise DatasetError("another process has just begun to write to this dataset: wait for it") from None

    def keep(self, held: Held, stop: threading.Event) -> None:
        """Renew until told to stop; say so in `held` when another writer has it."""
        while not stop.wait(self._lease_s / 4):
            try:
                self._put(IfMatch=self._tag)
            except FileExistsError:
                held.lost.set()
                return
            except (OSError, P2EsError):
                # The store does not answer: the next beat tries again, and the commit has its own condition.
                continue

    def release(self) -> None:
        """Remove the lease, if it is still this one's; where that fails it expires."""
        with contextlib.suppress(OSError, P2EsError):
            tag, _, _ = self._seen()
            if tag == self._tag:
                files, bucket, key = self._open()
                files.call_s3("delete_object", Bucket=bucket, Key=key)

    def _put(self, **condition: str) -> None:
        self._beat += 1
        body = json.dumps({"owner": self._owner, "beat": self._beat}).encode()
        with explained(self._url):
            files, bucket, key = self._open()
            try:
                done = files.call_s3("put_object", Bucket=bucket, Key=key, Body=body, **condition)
            except OSError as error:
                # 409 is two conditional puts at once; a 404 is a lease that was released since.
                if error_code(error) in ("PreconditionFailed", "ConditionalRequestConflict", "NoSuchKey"):
                    raise FileExistsError(self._url) from error
                raise
        self._tag = done["ETag"]

    def _seen(self) -> tuple[str, float, str]:
        """Give tag, age and owner of the lease that is there; the age by the store's clock alone."""
        with explained(self._url):
            files, bucket, key = self._open()
            try:
                found = files.call_s3("head_object", Bucket=bucket, Key=key)
            except FileNotFoundError:
                raise DatasetError("another process has just ended its writing to this dataset: run again") from None
            now = parsedate_to_datetime(found["ResponseMetadata"]["HTTPHeaders"]["date"])
            raw = files.cat_file(f"{bucket}/{key}")
        try:
            owner = str(json.loads(raw)["owner"])
        except (ValueError, KeyError, TypeError):
            owner = "unknown"
        return found["ETag"], (now - found["LastModified"]).total_seconds(), owner

    def _open(self) -> tuple[Any, str, str]:
        files, path = fsspec.core.url_to_fs(self._url)
        bucket, _, key = path.partition("/")
        return files, bucket, key
