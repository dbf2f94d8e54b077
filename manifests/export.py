"""Outputs that appear whole or not at all, for exports and `diff`; and which domains an export means.

An export never touches the manifest that it is made from. It is written under a hidden name beside its own (`.<name>.<random>`),
flushed, and only then given the name: a reader sees all of it or nothing. A kill leaves the hidden one behind, which may be
deleted. It does *not* overwrite: an output that exists is refused.

The exports are in `export_slim` (one table without texts), `croissant` (a description for other tools) and `handover` (some
domains as a manifest of their own).
"""

import errno
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from lmsplit.manifests.errors import ConfigurationError
from lmsplit.manifests.layout import CARD, FOLDERS, WORK
from lmsplit.manifests.reader import Domain, Manifest
from lmsplit.manifests.store import LocalStore, flush

Progress = Callable[[int], None]
"""Called with what was done since the last call; each export says in which unit."""


def chosen_domains(manifest: Manifest, names: Sequence[str]) -> tuple[Domain, ...]:
    """Return domains by name, each once and in the manifest's order.

    Args:
        manifest: the manifest.
        names: of the domains; none means all of them.

    Raises:
        ManifestError: there is no domain of that name.
    """
    wanted = {manifest.domain(name).domain for name in names}
    return tuple(domain for domain in manifest.domains if domain.domain in wanted or not names)


@contextmanager
def new_file(manifest: Manifest, output: Path) -> Iterator[Path]:
    """Give a hidden path to write a file to, which is called `output` once the block ends well.

    Raises:
        ConfigurationError: `output` exists, has no directory, or lies where the manifest keeps its own files.
    """
    _check(manifest, output)
    hidden = _hidden(output)
    try:
        yield hidden
        flush(hidden)
        _publish_file(hidden, output)
        flush(output.absolute().parent)
    finally:
        hidden.unlink(missing_ok=True)


@contextmanager
def new_directory(manifest: Manifest, output: Path) -> Iterator[Path]:
    """Give a hidden directory to fill, which is called `output` once the block ends well.

    Raises:
        ConfigurationError: `output` exists, has no directory, or lies where the manifest keeps its own files.
    """
    _check(manifest, output)
    hidden = _hidden(output)
    hidden.mkdir()
    try:
        yield hidden
        for directory, _, _ in os.walk(hidden, topdown=False):
            flush(Path(directory))
        _check(manifest, output)  # again: a rename would replace an empty directory that came meanwhile
        hidden.rename(output)
        flush(output.absolute().parent)
    finally:
        shutil.rmtree(hidden, ignore_errors=True)


def _check(manifest: Manifest, output: Path) -> None:
    if os.path.lexists(output):
        raise _exists(output)
    if not output.absolute().parent.is_dir():
        raise ConfigurationError(
            f"{output.absolute().parent} is not a directory: make it, or choose another output than {output}"
        )
    check_place(manifest, output)


def check_place(manifest: Manifest, output: Path) -> None:
    """Refuse an output among the manifest's own files.

    Raises:
        ConfigurationError: it lies there.
    """
    if not isinstance(manifest.store, LocalStore):
        return
    root, place = manifest.store.root.resolve(), output.absolute().parent.resolve() / output.name
    inside = place.relative_to(root).parts if place.is_relative_to(root) else ()
    if inside and inside[0] in {*FOLDERS, WORK, CARD}:
        raise ConfigurationError(
            f"{output} lies in {inside[0]} of the manifest, which holds only what its commits name: choose another output"
        )


def _exists(output: Path) -> ConfigurationError:
    return ConfigurationError(f"{output} exists, and is not overwritten: remove it, or choose another output")


def _hidden(output: Path) -> Path:
    return output.with_name(f".{output.name}.{uuid.uuid4().hex}")


def _publish_file(hidden: Path, output: Path) -> None:
    try:
        os.link(hidden, output)  # unlike a rename, it never replaces a file that came meanwhile
    except FileExistsError as error:
        raise _exists(output) from error
    except OSError as error:
        if error.errno not in {errno.EPERM, errno.ENOTSUP, errno.EMLINK}:
            raise
        hidden.rename(output)
