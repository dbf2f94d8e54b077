"""A prefix of an object store as a `Store`: s3, gs and az to write and read, hf to read.

```
put:   spooled file ──conditional put (If-None-Match: *), in parts side by side──► name        a failed upload is aborted
read:  ranges of a few MiB; each is asked for again when the connection breaks, the next one while this one is worked on
```

There is no rename and none is needed. Listings are never cached: other processes write here too. Credentials are found by the
store's own library (environment, profile, role); none passes through this code. A put whose answer was lost finds its own file
and is done.
"""

import errno
import getpass
import hashlib
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import wraps
from pathlib import Path
from typing import Any, BinaryIO, Final, ParamSpec, TypeVar, cast
from urllib.parse import urlsplit

import fsspec
import pyarrow as pa

from lmsplit.manifests.errors import ConfigurationError, LmsplitError
from lmsplit.manifests.layout import WORK
from lmsplit.manifests.store import FileFacts, scheme_of

BLOCK_BYTES: Final = 8 * 2**20
"""Read at once where a file is read to its end; one such block is worked on and one is on its way (assumption)."""
PIECE_BYTES: Final = 2**20
"""Read at once where a file is read here and there. Tried by hand on a 53 MB file, no script kept: a column of 0.5 MB takes 10
MB of reading with this, 38 MB with blocks of 8 MiB and reading ahead; the whole file takes no longer."""
PART_BYTES: Final = 16 * 2**20
"""Part of an upload; a file of fewer than two goes in one request (assumption)."""
_TRIES: Final = 3
Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")
_INSTALL: Final = {"s3": "'lmsplit[s3]'", "gs": "'lmsplit[gs]'", "az": "'lmsplit[az]'", "hf": "huggingface_hub"}


def _as_os_error(method: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Let a client library's own errors (no credentials, no such host) come out as an `OSError`, as a disk's do."""

    @wraps(method)
    def reached(*given: Parameters.args, **named: Parameters.kwargs) -> Result:
        """Call the method."""
        try:
            return method(*given, **named)
        except (OSError, LmsplitError):
            raise
        except Exception as error:
            raise OSError(errno.EIO, f"{type(error).__name__}: {error}") from error

    return reached


class ObjectStore:
    """A prefix of an object store with create-only puts.

    Args:
        location: its URL.

    Raises:
        ConfigurationError: the scheme is unknown, its library is not installed, or the URL holds credentials.
    """

    is_local = False

    def __init__(self, location: str) -> None:
        scheme = scheme_of(location)
        assert scheme is not None, "a path is a local store"
        parts = urlsplit(location)
        if scheme != "hf" and ({*"@:"} & {*parts.netloc} or parts.query or parts.fragment):
            raise ConfigurationError(
                f"{scheme}://…{parts.path}: a URL must not hold credentials or options: "
                "put them into the environment or a profile, as the store's own tools read them"
            )
        self._scheme = scheme
        self._location = location.rstrip("/")
        try:
            self._fs, root = fsspec.core.url_to_fs(self._location, use_listings_cache=False)
        except ImportError as error:
            raise ConfigurationError(f"{location}: {error}: pip install {_INSTALL[scheme]}") from error
        self._root = root.rstrip("/")

    def __reduce__(self) -> tuple[type["ObjectStore"], tuple[str]]:
        """Travel to another process as the URL alone: clients and credentials are made and found there anew."""
        return ObjectStore, (self._location,)

    @property
    def location(self) -> str:
        """The URL, without a slash at its end."""
        return self._location

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root

    def where(self, name: str) -> str:
        """Return the URL of a file, for people."""
        return f"{self._location}/{name}"

    def check(self) -> None:
        """Write a probe twice: a store that lets the second one through cannot keep two writers apart.

        Raises:
            ConfigurationError: it is read only here, does not answer, or overwrites.
        """
        name = self._path(f"{WORK}/probe-{uuid.uuid4().hex}")
        try:
            with suppress(FileExistsError):  # the answer was lost, and the client asked again
                self._fs.pipe_file(name, b"first", mode="create")
            with suppress(OSError):
                self._fs.pipe_file(name, b"second", mode="create")
            held = self._fs.cat_file(name)
            self._fs.rm_file(name)
        except Exception as error:  # each client library has errors of its own
            why = f"{self._location} cannot be written to ({error}): check its name and your access"
            raise ConfigurationError(why) from error
        if held != b"first":
            raise ConfigurationError(
                f"{self._location}: this store ignores create-only puts (If-None-Match), so two writers could overwrite each "
                "other: choose another store"
            )

    def entries(self, folder: str) -> dict[str, FileFacts]:
        """Return the files directly inside `folder`, sorted by name; none where it does not exist."""
        return dict(sorted((_last(info), _facts(info)) for info in self._list(folder) if info["type"] == "file"))

    def folders(self, folder: str) -> list[str]:
        """Return the sorted names of the folders directly inside `folder`."""
        return sorted(_last(info) for info in self._list(folder) if info["type"] == "directory")

    @_as_os_error
    def _list(self, folder: str) -> list[dict[str, Any]]:
        try:
            listed: list[dict[str, Any]] = self._fs.ls(self._path(folder), detail=True)
        except FileNotFoundError:
            return []
        return [info for info in listed if info["name"].rstrip("/") != self._path(folder)]  # a marker of the folder itself

    @_as_os_error
    def walk(self, folder: str) -> dict[str, FileFacts]:
        """Return every file below `folder`, sorted by name; names are relative to the store."""
        found: dict[str, dict[str, Any]] = self._fs.find(self._path(folder), detail=True)
        prefix = f"{self._root}/"
        return {name.removeprefix(prefix): _facts(info) for name, info in sorted(found.items()) if not name.endswith("/")}

    @_as_os_error
    def matches(self) -> list[str]:
        """Return the URLs of what the location names, unsorted: itself, what it matches as a glob, or all below it."""
        if any(character in self._root for character in "*?["):
            found = [name for name, info in self._fs.glob(self._root, detail=True).items() if info["type"] == "file"]
        elif self._fs.isfile(self._root):
            found = [self._root]
        else:
            found = self._fs.find(self._root)
        return [f"{self._scheme}://{name}" for name in found if not name.endswith("/")]

    def facts(self, name: str) -> FileFacts:
        """Return a file's size and time."""
        return _facts(self._info(name))

    def version(self, name: str) -> str:
        """Return a file's entity tag, or its size and time where the store has none."""
        info = self._info(name)
        tag = info.get("ETag") or info.get("etag") or info.get("blob_id")
        return str(tag or f"{info['size']} {_facts(info).modified_s}")

    @_as_os_error
    def _info(self, name: str) -> dict[str, Any]:
        info: dict[str, Any] = self._fs.info(self._path(name))
        if info["type"] != "file":
            raise FileNotFoundError(errno.ENOENT, "it is a folder, expected a file", self.where(name))
        return info

    @_as_os_error
    def read(self, name: str) -> bytes:
        """Return a file's bytes."""
        data: bytes = self._fs.cat_file(self._path(name))
        return data

    def open(self, name: str) -> BinaryIO:
        """Open a file to be read from its beginning to its end; the next block comes while this one is worked on."""
        return self._opened(name, "background", BLOCK_BYTES)

    def input(self, name: str) -> pa.NativeFile:
        """Open a file for pyarrow."""
        return pa.PythonFile(self._opened(name, "bytes", PIECE_BYTES), mode="r")

    @_as_os_error
    def _opened(self, name: str, cache: str, block_bytes: int) -> BinaryIO:
        return cast(BinaryIO, self._fs.open(self._path(name), "rb", block_size=block_bytes, cache_type=cache))

    def local(self, name: str) -> Path:
        """Return a local copy of a file that never changes, in a folder that the processes of a node share."""
        directory = Path(tempfile.gettempdir()) / f"lmsplit-{getpass.getuser()}"
        path = directory / hashlib.sha256(f"{self.where(name)} {self.version(name)}".encode()).hexdigest()
        if not path.exists():
            directory.mkdir(mode=0o700, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=directory, delete=False) as copy:
                try:
                    with self.open(name) as stream:
                        shutil.copyfileobj(stream, copy, BLOCK_BYTES)
                    os.replace(copy.name, path)  # noqa: PTH105
                except BaseException:
                    Path(copy.name).unlink(missing_ok=True)
                    raise
        return path

    @contextmanager
    def spool(self) -> Iterator[Path]:
        """Give a fresh path in the system's folder for temporary files; what is left there at the end is removed."""
        with tempfile.TemporaryDirectory(prefix="lmsplit-") as directory:
            yield Path(directory) / "spooled"

    @_as_os_error
    def put(self, spooled: Path, name: str) -> bool:
        """Publish a spooled file under `name` unless that name exists; see `Store.put`."""
        target = self._path(name)
        for attempt in range(_TRIES):
            try:
                self._fs.put_file(str(spooled), target, mode="create", chunksize=PART_BYTES)
            except FileExistsError:
                break
            except OSError:
                # Refused by a store that says it in other words, or done and the answer lost: the file is there.
                if self._fs.exists(target):
                    break
                if attempt + 1 == _TRIES:
                    raise
            else:
                return True
        self._check_same(spooled, name)
        return False

    def _check_same(self, spooled: Path, name: str) -> None:
        """Check that what stands under a name of its own digest is what was to be put there; receipts and commits may differ."""
        found = self.facts(name).num_bytes
        if found != (expected := spooled.stat().st_size) and not name.endswith(".json"):
            raise LmsplitError(
                f"{self.where(name)} has {found} bytes, expected {expected}: another program wrote there; "
                "remove it, or choose another output"
            )

    def put_bytes(self, data: bytes, name: str) -> bool:
        """Publish `data` under `name` unless that name exists; see `put`."""
        with self.spool() as spooled:
            spooled.write_bytes(data)
            return self.put(spooled, name)

    @_as_os_error
    def replace(self, data: bytes, name: str) -> None:
        """Write a derived file that may change: whole or not at all, the last writer wins."""
        self._fs.pipe_file(self._path(name), data)

    @_as_os_error
    def remove(self, folder: str) -> int:
        """Remove every file below `folder`; return the bytes that are free again."""
        found = self.walk(folder)
        if found:
            self._fs.rm([self._path(name) for name in found])
        return sum(facts.num_bytes for facts in found.values())

    @_as_os_error
    def sweep(self) -> int:
        """Abort the uploads that killed writers left, which cost money; stores other than S3 forget them by themselves."""
        if self._scheme == "s3":
            bucket, prefix, _ = self._fs.split_path(self._root)
            listed = self._fs.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=f"{prefix}/")
            for upload in listed.get("Uploads", ()):
                self._fs.call_s3("abort_multipart_upload", Bucket=bucket, Key=upload["Key"], UploadId=upload["UploadId"])
        return 0


def _last(info: dict[str, Any]) -> str:
    return str(info["name"].rstrip("/").rpartition("/")[2])


def _facts(info: dict[str, Any]) -> FileFacts:
    changed: Any = info.get("LastModified") or info.get("last_modified") or info.get("mtime")
    return FileFacts(int(info["size"] or 0), changed.timestamp() if hasattr(changed, "timestamp") else float(changed or 0))
