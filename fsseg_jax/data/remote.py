"""Files that are addressed by a URL, such as gs://, s3:// or https://, through fsspec."""

import io
import re
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

from fsseg_jax.errors import UserError

# What fsspec's file systems call the version or the time of a file, the most exact first.
_VERSIONS = ("etag", "ETag", "md5Hash", "generation", "mtime", "updated", "LastModified", "created")


class Remote(NamedTuple):
    """A file in a folder of a URL."""

    url: str
    name: str  # below the folder
    size: int  # bytes, 0 if it is not told
    version: int  # a number that changes with its contents, 0 if none is told


def is_url(path: Any) -> bool:
    """Whether it is a text such as s3://bucket/name."""
    return isinstance(path, str) and re.match(r"[a-z][a-z0-9+.-]*://", path) is not None


def read_url(url: str) -> io.BytesIO:
    """The contents of a file.

    Raises:
        UserError: it cannot be read, or the package for its kind of address is missing.
    """
    import fsspec  # takes a moment, and few need it

    try:
        with fsspec.open(url, "rb") as file:
            return io.BytesIO(file.read())  # pyright: ignore[reportAttributeAccessIssue]
    except Exception as error:  # each of fsspec's file systems raises its own
        raise _unreadable(url, error) from None


def list_url(url: str) -> Iterator[Remote]:
    """All files in a folder and below.

    Raises:
        UserError: see `read_url`.
    """
    import fsspec

    try:
        system, folder = fsspec.url_to_fs(url)
        found = system.find(folder, detail=True)
    except Exception as error:
        raise _unreadable(url, error) from None
    for path, about in found.items():
        version = next((about[key] for key in _VERSIONS if about.get(key)), None)
        number = 0 if version is None else zlib.crc32(str(version).encode())
        name = path.removeprefix(folder).lstrip("/")
        yield Remote(system.unstrip_protocol(path), name, int(about.get("size") or 0), number)


def _unreadable(url: str, error: Exception) -> UserError:
    reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
    return UserError(
        f"{url} cannot be read ({reason}): check the address, the credentials, and whether the "
        "package for it is installed (s3fs, gcsfs ...)."
    )
