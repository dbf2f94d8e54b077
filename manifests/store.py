"""A directory whose files are written once: the only way this project writes into a manifest.

A file is spooled beside the manifest's work, closed, flushed to the disk, and only then linked under its final name; a name
that exists is never overwritten. So a reader sees a whole file or none, and of two writers one wins and the other is told.
Costs one extra `fsync` of the file and one of its directory.

This does *not* decide what a file means: see `commit` for the order in which files are published.
"""

import errno
import hashlib
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lmsplit.manifests.errors import ConfigurationError, LmsplitError
from lmsplit.manifests.layout import WORK

_CHUNK_BYTES = 1 << 20


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file as 64 hexadecimal digits, read in chunks of 1 MiB."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def local_path(location: str) -> Path:
    """Return the local directory that `location` names.

    Args:
        location: a path, or a `file://` URL.

    Raises:
        ConfigurationError: `location` is a URL of another scheme.
    """
    scheme, separator, rest = location.partition("://")
    if not separator:
        return Path(location)
    if scheme == "file":
        return Path(rest)
    if scheme in {"s3", "gs", "az", "hf"}:
        raise ConfigurationError(f"{location}: {scheme}:// comes with a later release; use a local directory for now")
    raise ConfigurationError(f"{location}: {scheme}:// is not supported; expected a local path or file://")


class Store:
    """A local directory with create-only puts.

    Args:
        root: the manifest's directory; created by the first put.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, name: str) -> Path:
        """Return the local path of the file called `name` (POSIX, relative to the root)."""
        return self.root / name

    def names(self, folder: str) -> list[str]:
        """Return the sorted file names directly inside `folder`; none where it does not exist."""
        directory = self.path(folder)
        if not directory.is_dir():
            return []
        return sorted(entry.name for entry in os.scandir(directory) if entry.is_file())

    def read(self, name: str) -> bytes:
        """Return a file's bytes.

        Raises:
            FileNotFoundError: there is no such file.
        """
        return self.path(name).read_bytes()

    @contextmanager
    def spool(self) -> Iterator[Path]:
        """Give a fresh path on the manifest's own file system to write to; what is left there at the end is removed."""
        directory = self.path(f"{WORK}/spool")
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / uuid.uuid4().hex
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)

    def put(self, spooled: Path, name: str) -> bool:
        """Publish a spooled file under `name` unless that name exists.

        Args:
            spooled: a closed file on the same file system.
            name: where it shall be, relative to the root.

        Returns:
            True when this call created it, False when it was there already.

        Raises:
            LmsplitError: the file system has no hard links, or no space is left.
        """
        target = self.path(name)
        target.parent.mkdir(parents=True, exist_ok=True)
        flush(spooled)
        try:
            os.link(spooled, target)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno in {errno.EPERM, errno.ENOTSUP, errno.EMLINK}:
                raise LmsplitError(
                    f"{target}: this file system has no hard links, so two writers could overwrite each other: "
                    "choose an output on another one"
                ) from error
            raise
        flush(target.parent)
        return True

    def put_bytes(self, data: bytes, name: str) -> bool:
        """Publish `data` under `name` unless that name exists; see `put`."""
        with self.spool() as spooled:
            spooled.write_bytes(data)
            return self.put(spooled, name)

    def replace(self, data: bytes, name: str) -> None:
        """Write a derived file that may change (the data-set card): whole or not at all, the last writer wins."""
        with self.spool() as spooled:
            spooled.write_bytes(data)
            flush(spooled)
            spooled.replace(self.path(name))


def flush(path: Path) -> None:
    """Write a file, or the entries of a directory, through to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
