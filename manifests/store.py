"""Where a manifest's files lie: written once, read from anywhere. The only way this project writes into a manifest.

A file is put under a name that must not exist yet: spooled locally, closed, and only then published, whole; of two writers one
wins and the other is told. `LocalStore` is a directory; `object_store.ObjectStore` is `s3://`, `gs://`, `az://`, `hf://`.

This does *not* decide what a file means: see `commit` for the order in which files are published. A local put costs one extra
`fsync` of the file and one of its directory.
"""

import errno
import hashlib
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol

import pyarrow as pa

from lmsplit.manifests.errors import ConfigurationError, LmsplitError
from lmsplit.manifests.layout import WORK

SCHEMES = ("s3", "gs", "az", "hf")
_CHUNK_BYTES = 1 << 20
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


class FileFacts(NamedTuple):
    """What a listing says of a file."""

    num_bytes: int
    modified_s: float
    """seconds since 1970, by the store's clock"""


class Store(Protocol):
    """Files by name; a name is a POSIX path relative to the store."""

    @property
    def location(self) -> str:
        """Absolute path or URL, without a slash at its end."""
        ...

    @property
    def is_local(self) -> bool:
        """Whether it is a directory of this machine."""
        ...

    def where(self, name: str) -> str:
        """Return the path or URL of a file, for people."""
        ...

    def check(self) -> None:
        """Check that files can be put here, each name once.

        Raises:
            ConfigurationError: they cannot.
        """
        ...

    def entries(self, folder: str) -> dict[str, FileFacts]:
        """Return the files directly inside `folder`, sorted by name; none where it does not exist."""
        ...

    def folders(self, folder: str) -> list[str]:
        """Return the sorted names of the folders directly inside `folder`."""
        ...

    def walk(self, folder: str) -> dict[str, FileFacts]:
        """Return every file below `folder`, sorted by name; names are relative to the store. Links are not followed."""
        ...

    def facts(self, name: str) -> FileFacts:
        """Return what is known of a file without reading it.

        Raises:
            FileNotFoundError: there is no such file.
        """
        ...

    def version(self, name: str) -> str:
        """Return what changes when a file is written again: the time of its change, or its entity tag.

        Raises:
            FileNotFoundError: there is no such file.
        """
        ...

    def read(self, name: str) -> bytes:
        """Return a file's bytes.

        Raises:
            FileNotFoundError: there is no such file.
        """
        ...

    def open(self, name: str) -> BinaryIO:
        """Open a file to be read from its beginning to its end; it can seek.

        Raises:
            FileNotFoundError: there is no such file.
        """
        ...

    def input(self, name: str) -> pa.NativeFile:
        """Open a file for pyarrow, to be read here and there.

        Raises:
            FileNotFoundError: there is no such file.
        """
        ...

    def local(self, name: str) -> Path:
        """Return a local path of a file that never changes, to be mapped into memory; a remote one is fetched once a node.

        Raises:
            FileNotFoundError: there is no such file.
        """
        ...

    def spool(self) -> AbstractContextManager[Path]:
        """Give a fresh local path to write to; what is left there at the end is removed."""
        ...

    def put(self, spooled: Path, name: str) -> bool:
        """Publish a spooled file under `name` unless that name exists.

        Args:
            spooled: a closed file that `spool` gave.
            name: where it shall be.

        Returns:
            True when this call created it, False when it was there already.

        Raises:
            LmsplitError: the store cannot create a name once only.
            OSError: no space is left, or the store cannot be reached.
        """
        ...

    def put_bytes(self, data: bytes, name: str) -> bool:
        """Publish `data` under `name` unless that name exists; see `put`."""
        ...

    def replace(self, data: bytes, name: str) -> None:
        """Write a derived file that may change (the data-set card): whole or not at all, the last writer wins."""
        ...

    def remove(self, folder: str) -> int:
        """Remove every file below `folder`; return the bytes that are free again."""
        ...

    def sweep(self) -> int:
        """Remove what killed writers left, while none is at work: spooled files, uploads that never ended. Returns the bytes."""
        ...


def open_store(location: str | Path) -> Store:
    """Open the store at a path or URL; nothing is read or written yet.

    Args:
        location: a path, or a URL of file, s3, gs, az or hf. Credentials come from the environment or a profile, as the
            store's own tools find them; a URL that holds some is refused.

    Raises:
        ConfigurationError: the scheme is not supported, its library is not installed, or the URL holds credentials.
    """
    text = os.fspath(location)
    if scheme_of(text) in {None, "file"}:
        return LocalStore(Path(text.removeprefix("file://")))
    from lmsplit.manifests.object_store import ObjectStore

    return ObjectStore(text)


def scheme_of(location: str) -> str | None:
    """Return the scheme of a URL, None of a path.

    Raises:
        ConfigurationError: it is not supported.

    >>> scheme_of("s3://bucket/corpus"), scheme_of("corpus/a.jsonl")
    ('s3', None)
    """
    if (match := _SCHEME.match(location)) is None:
        return None
    scheme = match[1].lower()
    if scheme != "file" and scheme not in SCHEMES:
        expected = ", ".join(f"{each}://" for each in ("file", *SCHEMES))
        raise ConfigurationError(f"{location}: {scheme}:// is not supported; expected a local path, or {expected}")
    return scheme


def absolute(location: str) -> str:
    """Return a location that means the same from any directory: an absolute path, or the URL without a slash at its end."""
    if scheme_of(location) in {None, "file"}:
        return str(local_path(location).absolute())
    return location.rstrip("/")


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a local file as 64 hexadecimal digits, read in chunks of 1 MiB."""
    with path.open("rb") as stream:
        return stream_sha256(stream)


def stream_sha256(stream: BinaryIO) -> str:
    """Return the SHA-256 of what is left of a stream as 64 hexadecimal digits, read in chunks of 1 MiB."""
    digest = hashlib.sha256()
    while chunk := stream.read(_CHUNK_BYTES):
        digest.update(chunk)
    return digest.hexdigest()


def local_path(location: str) -> Path:
    """Return the local path that `location` names, for what is written beside a manifest and never into one.

    Args:
        location: a path, or a `file://` URL.

    Raises:
        ConfigurationError: `location` is a URL of another scheme.
    """
    if scheme_of(location) in {None, "file"}:
        return Path(location.removeprefix("file://"))
    raise ConfigurationError(f"{location} is on an object store: expected a local path here")


class LocalStore:
    """A local directory with create-only puts.

    Args:
        root: the directory; created by the first put.
    """

    is_local = True

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def location(self) -> str:
        """The directory as it was given."""
        return str(self.root)

    def path(self, name: str) -> Path:
        """Return the local path of the file called `name`."""
        return self.root / name

    def where(self, name: str) -> str:
        """Return the local path of a file, for people."""
        return str(self.path(name))

    def check(self) -> None:
        """Check that no file stands in the directory's place; a file system without hard links refuses the first put."""
        for path in (self.root, *self.root.parents):
            if path.exists() and not path.is_dir():
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))

    def entries(self, folder: str) -> dict[str, FileFacts]:
        """Return the files directly inside `folder`, sorted by name; none where it does not exist."""
        found = {}
        with _scanned(self.path(folder)) as scanned:
            for entry in sorted(scanned, key=lambda entry: entry.name):
                if entry.is_file():
                    found[entry.name] = _facts(entry.stat())
        return found

    def folders(self, folder: str) -> list[str]:
        """Return the sorted names of the folders directly inside `folder`."""
        with _scanned(self.path(folder)) as scanned:
            return sorted(entry.name for entry in scanned if entry.is_dir())

    def walk(self, folder: str) -> dict[str, FileFacts]:
        """Return every file below `folder`, sorted by name; names are relative to the store."""
        found = {}
        for path in sorted(self.path(folder).rglob("*")):
            if path.is_symlink() or path.is_file():
                found[path.relative_to(self.root).as_posix()] = _facts(path.lstat())
        return found

    def facts(self, name: str) -> FileFacts:
        """Return a file's size and time."""
        return _facts(self._file(name).stat())

    def version(self, name: str) -> str:
        """Return when a file was changed, in nanoseconds."""
        return str(self._file(name).stat().st_mtime_ns)

    def _file(self, name: str) -> Path:
        path = self.path(name)
        if path.is_dir():
            raise FileNotFoundError(errno.ENOENT, "it is a directory, expected a file", str(path))
        return path

    def read(self, name: str) -> bytes:
        """Return a file's bytes."""
        return self.path(name).read_bytes()

    def open(self, name: str) -> BinaryIO:
        """Open a file to be read from its beginning to its end."""
        return self.path(name).open("rb")

    def input(self, name: str) -> pa.NativeFile:
        """Open a file for pyarrow."""
        return pa.OSFile(str(self.path(name)))

    def local(self, name: str) -> Path:
        """Return the path of a file."""
        path = self.path(name)
        path.stat()
        return path

    @contextmanager
    def spool(self) -> Iterator[Path]:
        """Give a fresh path on the store's own file system to write to; what is left there at the end is removed."""
        directory = self.path(f"{WORK}/spool")
        _make(directory)
        path = directory / uuid.uuid4().hex
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)

    def put(self, spooled: Path, name: str) -> bool:
        """Publish a spooled file under `name` unless that name exists; see `Store.put`."""
        target = self.path(name)
        _make(target.parent)
        flush(spooled)
        try:
            os.link(spooled, target)
            created = True
        except FileExistsError:
            created = False
        except OSError as error:
            if error.errno in {errno.EPERM, errno.ENOTSUP, errno.EMLINK}:
                raise LmsplitError(
                    f"{target}: this file system has no hard links, so two writers could overwrite each other: "
                    "choose an output on another one"
                ) from error
            raise
        flush(target.parent)  # also where it existed: who created it may have been killed before this line
        return created

    def put_bytes(self, data: bytes, name: str) -> bool:
        """Publish `data` under `name` unless that name exists; see `put`."""
        with self.spool() as spooled:
            spooled.write_bytes(data)
            return self.put(spooled, name)

    def replace(self, data: bytes, name: str) -> None:
        """Write a derived file that may change: whole or not at all, the last writer wins."""
        with self.spool() as spooled:
            spooled.write_bytes(data)
            flush(spooled)
            spooled.replace(self.path(name))

    def remove(self, folder: str) -> int:
        """Remove a folder with all that is in it; return the bytes that are free again."""
        freed = sum(facts.num_bytes for facts in self.walk(folder).values())
        shutil.rmtree(self.path(folder), ignore_errors=True)
        return freed

    def sweep(self) -> int:
        """Remove what killed writers spooled."""
        return self.remove(f"{WORK}/spool")


def _facts(status: os.stat_result) -> FileFacts:
    return FileFacts(status.st_size, status.st_mtime)


@contextmanager
def _scanned(directory: Path) -> Iterator[Iterator[os.DirEntry[str]]]:
    """Give what is directly inside a directory; nothing where it does not exist."""
    if not directory.is_dir():
        yield iter(())
        return
    with os.scandir(directory) as scanned:
        yield scanned


def _make(directory: Path) -> None:
    """Create a folder where it is missing, and write its name through to the disk, or a power cut could take what is in it."""
    if not directory.is_dir():
        _make(directory.parent)
        directory.mkdir(exist_ok=True)
        flush(directory.parent)


def flush(path: Path) -> None:
    """Write a file, or the entries of a directory, through to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
