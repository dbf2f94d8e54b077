"""Survey the input: resolve paths, digest every file, check the columns, and cut the work units.

`survey` cuts units from the input alone, so that any number of workers sees the same ones; `reading` reads them back. It
supports neither object stores nor kept columns of nested types.

Cost: every byte is read once for its SHA-256; memory is a chunk per thread.
"""

import glob
import hashlib
import os
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from lmsplit.manifests.errors import ConfigurationError, InputError
from lmsplit.partition.agreement import Footer, check_kept, check_types, footer_of, kept_types
from lmsplit.partition.decompression import CHUNK_BYTES, chunks
from lmsplit.partition.records import Columns
from lmsplit.partition.units import FORMATS, Cutter, Piece, Segment, WorkUnit, choose_unit_bytes, format_of, pack

_LATER_SCHEMES: Final = ("s3", "gs", "az", "hf")
_COMPRESSION: Final = 4  # typical of text under gzip and zstd; only weighs units


@dataclass(frozen=True)
class InputFile:
    """A file of the corpus: its POSIX path relative to the input root, its size, and its SHA-256."""

    path: str
    num_bytes: int
    sha256: str


@dataclass(frozen=True)
class Corpus:
    """The input as surveyed.

    Attributes:
        root: absolute input root; never part of a digest or an output.
        files: every file, by path.
        units: the work units, in the order of the files; together they are the corpus, each row once.
        estimated_documents: rows and lines, estimated for compressed files from their beginning.
        keep_types: (name, Arrow type name) of every kept column.
    """

    root: str
    files: tuple[InputFile, ...]
    units: tuple[WorkUnit, ...]
    estimated_documents: int
    keep_types: tuple[tuple[str, str], ...]


def survey(
    paths: Sequence[str],
    columns: Columns,
    *,
    output: str | None = None,
    num_threads: int = 2,
    progress: Callable[[int], None] | None = None,
    unit_bytes: int | None = None,
) -> Corpus:
    """Resolve the input, digest its files and cut them into work units.

    Args:
        paths: files, globs (`**` too) or directories; `file://` is accepted.
        columns: which columns will be read; checked against every Parquet schema.
        output: where the run will write; no input file may lie there.
        num_threads: files digested at once.
        progress: told the number of bytes of each piece digested; from any thread, one at a time.
        unit_bytes: uncompressed bytes of a unit; None chooses it from the size of the input.

    Raises:
        ConfigurationError: a path or a kept column cannot be used as written.
        InputError: a file is missing, damaged or outside the root, or a column is missing or differs in type.
    """
    check_kept(columns)
    root, names = _resolve(paths)
    _check_outside(root, names, output)
    footers = {name: footer_of(root, name) for name in names if format_of(name) == "parquet"}
    check_types(footers, columns)
    keep_types = kept_types(footers, columns)
    if unit_bytes is None:
        unit_bytes = choose_unit_bytes(sum(_uncompressed_bytes(root, name, footers) for name in names))
    lock = threading.Lock()

    def advance(num_bytes: int) -> None:
        """Report progress, from any thread."""
        if progress:
            with lock:
                progress(num_bytes)

    def scan(name: str) -> tuple[InputFile, list[Piece]]:
        """Digest one file and cut it."""
        return _scan(root, name, footers.get(name), unit_bytes, advance)

    with ThreadPoolExecutor(num_threads) as executor:
        scanned = list(executor.map(scan, names))
    pieces = [piece for _, pieces_of_file in scanned for piece in pieces_of_file]
    return Corpus(
        root=root,
        files=tuple(file for file, _ in scanned),
        units=pack(pieces, unit_bytes),
        estimated_documents=sum(piece.num_documents for piece in pieces),
        keep_types=keep_types,
    )


def _check_outside(root: str, names: Sequence[str], output: str | None) -> None:
    """Refuse an input that holds the output: a resumed run would read its own data."""
    if output is None:
        return
    inside = [name for name in names if Path(root, name).resolve().is_relative_to(Path(output).resolve())]
    if inside:
        raise ConfigurationError(f"input file {inside[0]!r} lies in the output {output!r}: choose an output outside the input")


def _local(path: str) -> str:
    if path.startswith("file://"):
        return path.removeprefix("file://")
    if scheme := re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", path):
        when = "come with a later release" if scheme[1].lower() in _LATER_SCHEMES else "are not supported"
        raise ConfigurationError(f"input {path!r}: {scheme[1]}:// paths {when}; copy the corpus to a local directory")
    return path


def _walk(directory: str) -> Iterator[str]:
    def stop(error: OSError) -> None:
        """Refuse what `os.walk` would leave out silently."""
        raise InputError(f"input directory {error.filename!r} cannot be listed ({error.strerror}): make it readable")

    for folder, subfolders, names in os.walk(directory, onerror=stop, followlinks=True):
        subfolders[:] = [name for name in subfolders if name[0] not in "._"]
        yield from (str(Path(folder, name)) for name in names if name[0] not in "._" and format_of(name))


def _found(path: str) -> list[str]:
    local = os.path.normpath(Path(_local(path)).absolute())  # resolve() would follow links, and hide where they lead
    if Path(local).is_dir():
        files = list(_walk(local))
    elif Path(local).exists() or Path(local).is_symlink():
        files = [local]
    else:  # Path.glob takes no absolute pattern
        files = [name for name in glob.glob(local, recursive=True) if not Path(name).is_dir()]  # noqa: PTH207
    if not files:
        raise InputError(f"input {path!r} matches no file: expected {', '.join(FORMATS)} files; check the path")
    return files


def _resolve(paths: Sequence[str]) -> tuple[str, list[str]]:
    """Return the input root and the relative names of its files, sorted, each file once."""
    found = sorted({name for path in paths for name in _found(path)})
    if not found:
        raise ConfigurationError("input names no path: give a file, a glob or a directory")
    root = os.path.commonpath([Path(name).parent for name in found])
    names: dict[Path, str] = {}
    for relative in sorted(Path(name).relative_to(root).as_posix() for name in found):
        if format_of(relative) is None:
            raise ConfigurationError(f"input file {relative!r} has no known suffix: expected {', '.join(FORMATS)}")
        real = Path(root, relative).resolve()
        if not real.is_relative_to(Path(root).resolve()):
            raise InputError(f"input file {relative!r} is a link that leads out of the input root: copy the file there")
        if not real.is_file():
            raise InputError(f"input file {relative!r} is not a regular file (or a broken link): leave it out")
        if relative != relative.encode(errors="replace").decode():
            raise InputError(f"input file {relative!r} has a name that is not UTF-8: rename it")
        names.setdefault(real, relative)
    return root, list(names.values())


def _uncompressed_bytes(root: str, name: str, footers: dict[str, Footer]) -> int:
    if name in footers:
        return sum(num_bytes for _, num_bytes in footers[name].groups)
    return Path(root, name).stat().st_size * (1 if format_of(name) == "jsonl" else _COMPRESSION)


def _scan(
    root: str, name: str, footer: Footer | None, unit_bytes: int, advance: Callable[[int], None]
) -> tuple[InputFile, list[Piece]]:
    """Read a file once: its digest, and the pieces it can be cut into."""
    form = format_of(name)
    digest, size, cutter = hashlib.sha256(), 0, Cutter(unit_bytes)
    try:
        with Path(root, name).open("rb", buffering=0) as stream:
            while chunk := stream.read(CHUNK_BYTES):
                digest.update(chunk)
                size += len(chunk)
                if form == "jsonl":
                    cutter.add(chunk)
                advance(len(chunk))
    except OSError as error:
        raise InputError(f"{name}: cannot be read at byte {size} ({error.strerror}): repair it or leave it out") from error
    cutter.finish()
    whole = Segment(name, form or "jsonl", 0, size, 0, None, size)
    if footer:
        return InputFile(name, size, digest.hexdigest()), list(_row_groups(whole, footer))
    if form == "jsonl":
        pieces = [
            Piece(replace(whole, start=start, stop=stop, first_row=first, num_rows=rows), stop - start, rows)
            for start, stop, first, rows in cutter.cuts
        ]
    else:
        pieces = [Piece(whole, size * _COMPRESSION, _estimated_lines(root, whole))] if size else []
    return InputFile(name, size, digest.hexdigest()), pieces


def _row_groups(whole: Segment, footer: Footer) -> Iterator[Piece]:
    first_row = 0
    for index, (rows, num_bytes) in enumerate(footer.groups):
        segment = replace(whole, start=index, stop=index + 1, first_row=first_row, num_rows=rows)
        yield Piece(segment, num_bytes, rows)
        first_row += rows


def _estimated_lines(root: str, whole: Segment) -> int:
    with Path(root, whole.path).open("rb") as raw:
        lines = num_bytes = 0
        for chunk in chunks(raw, whole):
            lines += chunk.count(b"\n")
            num_bytes += len(chunk)
            if num_bytes >= CHUNK_BYTES:
                break
        return max(1, lines * whole.stop // max(1, raw.tell()))
