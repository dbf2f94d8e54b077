"""Publishes a directory whole or not at all: what is built lies in a hidden sibling until one rename.

A killed build leaves only the sibling `.<name>.partial`, which the next build of the same name empties, or goes on
with where it asks for that. A lock in it keeps two processes from building the same directory at once. Costs nothing
beside the build.

This does *not* look into what was built, and needs the sibling on the same local file system as the target.
"""

import fcntl
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from lmsplit.manifests.errors import ConflictError
from lmsplit.manifests.store import flush

LOCK = ".lock"


def partial_directory(target: Path) -> Path:
    """Return where `target` lies while it is built."""
    return target.with_name(f".{target.name}.partial")


@contextmanager
def whole_directory(target: Path, *, resume: bool = False) -> Iterator[Path]:
    """Give a directory to fill, and rename it to `target` when the block ends without an error.

    Args:
        target: where the directory shall appear; it must not exist yet.
        resume: keep what an earlier build that was killed or failed left, and leave it for the next one when this
            one fails. The caller makes sure that it belongs to the same content, as when a digest of all that goes
            into the directory is its name; every file in it should be written whole (see `whole_file`). Otherwise
            the directory is empty at first, and removed when the block fails.

    Yields:
        The directory to fill.

    Raises:
        ConflictError: another process is building `target` now, or has just published it.
    """
    partial = partial_directory(target)
    partial.mkdir(parents=True, exist_ok=True)
    with (partial / LOCK).open("w") as lock:
        _take(lock, target)
        if not resume:
            _empty(partial)
        try:
            yield partial
        except BaseException:
            if not resume:
                shutil.rmtree(partial, ignore_errors=True)
            raise
        _publish(partial, target)


@contextmanager
def sole_writer(directory: Path) -> Iterator[None]:
    """Make a directory, and keep others that ask out of it until the block ends.

    Raises:
        ConflictError: another process is in it.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / LOCK).open("w") as lock:
        _take(lock, directory)
        yield


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give a path to write to, and rename it to `path` when the block ends without an error; for one writer at a time.

    What a killed writer leaves is called as this one's, and so overwritten.
    """
    partial = path.with_name(f".{path.name}.partial")
    yield partial
    flush(partial)
    partial.replace(path)


def write_whole(path: Path, text: str) -> None:
    """Write a file whole or not at all; the last writer wins."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.partial")
    partial.write_text(text, encoding="utf-8")
    flush(partial)
    partial.replace(path)


def _take(lock: IO[str], target: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise ConflictError(f"{target} is being built by another process: wait for it, or choose another output") from error


def _empty(partial: Path) -> None:
    for entry in partial.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry)
        elif entry.name != LOCK:
            entry.unlink()


def _publish(partial: Path, target: Path) -> None:
    mode = (partial / LOCK).stat().st_mode  # what the umask makes of a new file: some writers keep theirs to the owner
    for path in partial.rglob("*"):
        if path.is_file():
            path.chmod(mode)
        flush(path)
    flush(partial)
    (partial / LOCK).unlink()
    try:
        partial.rename(target)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise ConflictError(f"{target} was published by another process meanwhile: run the command again") from error
    flush(target.parent)
