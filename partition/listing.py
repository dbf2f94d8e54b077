"""Which files are the input: paths, globs, directories and URLs → the input root and the names below it.

It opens no file. Cost: a listing; on a local disk one look at every file, so that no link leads out of the root.
"""

import glob
import os
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path

from lmsplit.manifests.errors import ConfigurationError, InputError
from lmsplit.manifests.store import LocalStore, Store, open_store, scheme_of
from lmsplit.partition.units import FORMATS, format_of


def find_input(paths: Sequence[str], output: str | None = None) -> tuple[Store, list[str]]:
    """Return the input root and the names of the input files below it, sorted, each file once.

    Args:
        paths: files, globs (`**` too) or directories; paths or URLs, all in one place.
        output: where the run will write; no input file may lie there.

    Raises:
        ConfigurationError: a path cannot be used as written, or lies in the output.
        InputError: nothing is found, or a file is broken, outside the root or badly named.
    """
    if not paths:
        raise ConfigurationError("input names no path: give a file, a glob or a directory")
    remote = {scheme_of(path) not in {None, "file"} for path in paths}
    if len(remote) > 1:
        raise ConfigurationError(f"input {list(paths)} is partly local and partly on an object store: put it in one place")
    root, names = _find_objects(paths) if remote == {True} else _find_local(paths)
    for name in names:
        _check_format(name)
    _check_outside(root, names, output)
    return root, names


def _check_outside(root: Store, names: Sequence[str], output: str | None) -> None:
    """Refuse an input that holds the output: a resumed run would read its own data."""
    if output is None or open_store(output).is_local != root.is_local:
        return
    if isinstance(root, LocalStore):
        there = open_store(output)
        assert isinstance(there, LocalStore), "both are local"
        real_output, real_folder = there.root.resolve(), cache(Path.resolve)
        inside = [name for name in names if _real(root.path(name), real_folder).is_relative_to(real_output)]
    else:
        inside = [name for name in names if root.where(name).startswith(f"{output.rstrip('/')}/")]
    if inside:
        raise ConfigurationError(f"input file {inside[0]!r} lies in the output {output!r}: choose an output outside the input")


def _find_objects(paths: Sequence[str]) -> tuple[Store, list[str]]:
    from lmsplit.manifests.object_store import ObjectStore

    found: set[str] = set()
    for path in paths:
        try:
            matches = ObjectStore(path).matches()
        except OSError as error:
            raise InputError(f"input {path!r} cannot be listed ({error}): check its name and your access") from error
        if path not in matches and not glob.has_magic(path):  # a prefix
            matches = [url for url in matches if _is_shown(url.removeprefix(path))]
        if not matches:
            raise _matches_nothing(path)
        found.update(matches)
    split = sorted(url.split("://", 1) for url in found)
    common = os.path.commonpath([path.rpartition("/")[0] for _, path in split])
    if not common or len({scheme for scheme, _ in split}) > 1:
        raise ConfigurationError(f"input {list(paths)} lies in several buckets: put it in one place")
    return open_store(f"{split[0][0]}://{common}"), [path.removeprefix(f"{common}/") for _, path in split]


def _is_shown(name: str) -> bool:
    """Whether a file found below a directory is input: not hidden, not scratch, of a known format."""
    return format_of(name) is not None and not any(part[:1] in {".", "_"} for part in name.split("/"))


def _find_local(paths: Sequence[str]) -> tuple[Store, list[str]]:
    found = sorted({name for path in paths for name in _found(path)})
    root = os.path.commonpath([Path(name).parent for name in found])
    real_root, real_folder = Path(root).resolve(), cache(Path.resolve)
    names: dict[str, str] = {}
    for relative in sorted(Path(name).relative_to(root).as_posix() for name in found):
        _check_format(relative)
        real = _real(Path(root, relative), real_folder)
        if not real.is_relative_to(real_root):
            raise InputError(f"input file {relative!r} is a link that leads out of the input root: copy the file there")
        if not real.is_file():
            raise InputError(f"input file {relative!r} is not a regular file (or a broken link): leave it out")
        if relative != relative.encode(errors="replace").decode():
            raise InputError(f"input file {relative!r} has a name that is not UTF-8: rename it")
        names.setdefault(str(real), relative)
    return LocalStore(Path(root)), list(names.values())


def _real(path: Path, real_folder: Callable[[Path], Path]) -> Path:
    """Return where a file is, links followed; a folder's links are looked up once, not for each of its files."""
    return path.resolve() if path.is_symlink() else real_folder(path.parent) / path.name


def _check_format(name: str) -> None:
    if format_of(name) is None:
        raise ConfigurationError(f"input file {name!r} has no known suffix: expected {', '.join(FORMATS)}")


def _found(path: str) -> list[str]:
    local = os.path.normpath(Path(path.removeprefix("file://")).absolute())  # resolve() would hide where links lead
    if Path(local).is_dir():
        files = list(_walk(local))
    elif Path(local).exists() or Path(local).is_symlink():
        files = [local]
    else:  # Path.glob takes no absolute pattern
        files = [name for name in glob.glob(local, recursive=True) if not Path(name).is_dir()]  # noqa: PTH207
    if not files:
        raise _matches_nothing(path)
    return files


def _matches_nothing(path: str) -> InputError:
    return InputError(f"input {path!r} matches no file: expected {', '.join(FORMATS)} files; check the path")


def _walk(directory: str) -> Iterator[str]:
    def stop(error: OSError) -> None:
        """Refuse what `os.walk` would leave out silently."""
        raise InputError(f"input directory {error.filename!r} cannot be listed ({error.strerror}): make it readable")

    for folder, subfolders, names in os.walk(directory, onerror=stop, followlinks=True):
        subfolders[:] = [name for name in subfolders if name[0] not in "._"]
        yield from (str(Path(folder, name)) for name in names if name[0] not in "._" and format_of(name))
