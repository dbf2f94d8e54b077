"""Publishes a directory whole or not at all: what is built lies in a hidden sibling until one rename.

A killed build leaves only the sibling `.<name>.partial`, which the next build of the same name empties. A
lock in it keeps two processes from building the same directory at once. Costs nothing beside the build.

This does *not* look into what was built, and needs the sibling on the same local file system as the target.
"""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from lmsplit.manifests.errors import ConflictError
from lmsplit.manifests.store import flush

_LOCK = ".lock"


@contextmanager
def whole_directory(target: Path) -> Iterator[Path]:
    """Give an empty directory to fill, and rename it to `target` when the block ends without an error.

    Args:
        target: where the directory shall appear; it must not exist yet.

    Yields:
        The directory to fill.

    Raises:
        ConflictError: another process is building `target` now, or has just published it.
    """
    partial = target.with_name(f".{target.name}.partial")
    partial.mkdir(parents=True, exist_ok=True)
    with (partial / _LOCK).open("w") as lock:
        _take(lock, target)
        _empty(partial)
        try:
            yield partial
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        _publish(partial, target)


def write_whole(path: Path, text: str) -> None:
    """Write a file whole or not at all; the last writer wins."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
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
        elif entry.name != _LOCK:
            entry.unlink()


def _publish(partial: Path, target: Path) -> None:
    mode = (partial / _LOCK).stat().st_mode  # what the umask makes of a new file: some writers keep theirs to the owner
    for path in partial.rglob("*"):
        if path.is_file():
            path.chmod(mode)
        flush(path)
    flush(partial)
    (partial / _LOCK).unlink()
    try:
        partial.rename(target)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise ConflictError(f"{target} was published by another process meanwhile: run the command again") from error
    flush(target.parent)
