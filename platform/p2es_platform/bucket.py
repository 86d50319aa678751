"""Files of a bucket, through fsspec: one put makes a file, whole or not at all; errors say what to mend."""

import contextlib
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Any

import fsspec

from p2es.errors import ConfigError, P2EsError, RemoteError
from p2es_platform.disk import FileInfo

_SDKS = ("botocore", "aiobotocore", "aiohttp", "http.client")
_WRONG_KEYS = ("InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken", "AuthFailure")


class Bucket:
    """Files at addresses with a scheme (`s3://bucket/prefix`).

    S3 itself is reached by s3fs, an S3-compatible server by `AWS_ENDPOINT_URL`; keys as boto finds them.
    """

    def write(self, url: str, data: bytes) -> None:
        """Put a file; what is larger than 100 MB goes in parts and appears when the last one is there."""
        with explained(url):
            files, path = filesystem(url)
            _make_parents(files, path)
            files.pipe_file(path, data)

    def create(self, url: str, data: bytes) -> None:
        """Put a file that must not exist (`If-None-Match: *`); FileExistsError."""
        with explained(url):
            files, path = filesystem(url)
            _make_parents(files, path)
            files.pipe_file(path, data, mode="create")

    def read(self, url: str) -> bytes:
        """Read a file; FileNotFoundError when there is none."""
        with explained(url):
            files, path = filesystem(url)
            return bytes(files.cat_file(path))

    def info(self, url: str) -> FileInfo | None:
        """Describe a file; None when there is no such file."""
        with explained(url):
            files, path = filesystem(url)
            try:
                found = files.info(path)
            except FileNotFoundError:
                return None
            return None if found["type"] == "directory" else _file_info(found)

    def exists(self, url: str) -> bool:
        """Tell whether there is a file or folder."""
        with explained(url):
            files, path = filesystem(url)
            return bool(files.exists(path))

    def listing(self, url: str) -> list[str]:
        """Give the names in a folder, sorted; none when there is no folder."""
        with explained(url):
            files, path = filesystem(url)
            try:
                found = files.ls(path, detail=False)
            except FileNotFoundError:
                return []
            return sorted({name.rstrip("/").rsplit("/", 1)[-1] for name in found} - {""})

    def find(self, url: str) -> dict[str, FileInfo]:
        """Give all files below a folder by their path from it."""
        with explained(url):
            files, path = filesystem(url)
            found = files.find(path, detail=True)
            return {name.removeprefix(path).lstrip("/"): _file_info(info) for name, info in found.items()}

    def remove(self, urls: Iterable[str]) -> None:
        """Remove files, those that are there."""
        chosen = list(urls)
        if not chosen:
            return
        with explained(chosen[0]):
            files, _ = filesystem(chosen[0])
            for path in (files._strip_protocol(url) for url in chosen):
                with contextlib.suppress(FileNotFoundError):
                    files.rm_file(path)


def filesystem(url: str) -> tuple[Any, str]:
    """Give the file system of a URL and the path in it.

    Raises
    ------
    ConfigError
        When the package for this kind of URL is missing, or its settings cannot be.
    """
    try:
        files, path = fsspec.core.url_to_fs(url)
    except ImportError as error:
        scheme = url.split("://")[0]
        raise ConfigError(f"{scheme}:// needs a package that is not installed: pip install 'p2es[s3]'") from error
    except ValueError as error:
        raise ConfigError(f"{url.split('://')[0]}:// is no storage that fsspec knows: use a folder or s3://") from error
    # Another process may have written since this one listed.
    files.invalidate_cache()
    return files, path


def _make_parents(files: Any, path: str) -> None:
    # A bucket has no folders; file systems behind fsspec do, and s3fs would try to make the bucket.
    if "s3" not in files.protocol:
        files.makedirs(path.rpartition("/")[0], exist_ok=True)


def _file_info(found: dict[str, Any]) -> FileInfo:
    written = found.get("LastModified") or found.get("mtime") or found.get("created")
    if isinstance(written, int | float):
        written = datetime.fromtimestamp(written, UTC)
    age_s = None
    if isinstance(written, datetime):
        known = written if written.tzinfo else written.replace(tzinfo=UTC)
        age_s = max((datetime.now(UTC) - known).total_seconds(), 0.0)
    return FileInfo(int(found.get("size") or 0), age_s)


def error_code(error: BaseException) -> str:
    """Give the S3 error code behind an exception; empty where there is none."""
    seen: BaseException | None = error
    while seen is not None:
        response = getattr(seen, "response", None)
        if isinstance(response, dict):
            return str(response.get("Error", {}).get("Code", ""))
        seen = seen.__cause__
    return ""


@contextlib.contextmanager
def explained(url: str) -> Iterator[None]:
    """Turn what an SDK raises into one line that says what to mend; files that are not there pass through."""
    bucket = url.split("://", 1)[-1].split("/", 1)[0]
    try:
        yield
    except FileNotFoundError as error:
        if error_code(error) == "NoSuchBucket":
            raise ConfigError(f"there is no bucket {bucket}: make it, or correct the address") from error
        raise
    except (FileExistsError, P2EsError):
        raise
    except PermissionError as error:
        code = error_code(error)
        what = "does not know these keys" if code in _WRONG_KEYS else "does not allow this with these keys"
        raise ConfigError(f"the store of {bucket} {what}: check AWS_ACCESS_KEY_ID and the bucket's policy") from error
    except Exception as error:
        # s3fs makes an OSError of what a store answers (500, 503), and leaves what the line does as it is.
        name = error_code(error) or type(error).__name__
        of_line = isinstance(error, ConnectionError | TimeoutError) or type(error).__module__.startswith(_SDKS)
        if not (error_code(error) or of_line):
            raise
        if "Credential" in name:
            raise ConfigError("the store needs keys: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY") from error
        raise RemoteError(f"the store of {bucket} does not answer ({name}): check AWS_ENDPOINT_URL") from error
