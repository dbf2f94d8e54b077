"""Survey the input: resolve paths, digest every file, check the columns, and cut the work units.

`survey` cuts units from the input alone, so that any number of workers sees the same ones; `reading` reads them back. Which files
there are is found in `listing`. It does not support kept columns of nested types.

Cost: every byte is read once for its SHA-256; memory is a chunk per thread.
"""

import hashlib
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Final

from lmsplit.manifests.errors import InputError
from lmsplit.manifests.store import Store
from lmsplit.partition.agreement import Footer, check_kept, check_types, footer_of, kept_types
from lmsplit.partition.decompression import CHUNK_BYTES, chunks
from lmsplit.partition.listing import find_input
from lmsplit.partition.records import Columns
from lmsplit.partition.units import Cutter, Piece, Segment, WorkUnit, choose_unit_bytes, format_of, pack

REMOTE_FILES_AT_ONCE: Final = 16
"""Each waits for the network most of the time (assumption)."""
_FILES_SUBMITTED: Final = 1024  # what waits to be digested takes 2 KB a file
_COMPRESSION: Final = 4  # typical of text under gzip and zstd; only weighs units


@dataclass(frozen=True)
class InputFile:
    """A file of the corpus: its POSIX path relative to the input root, its size, and its SHA-256."""

    path: str
    num_bytes: int
    sha256: str


Scanned = tuple[InputFile, str, list[Piece]]
"""A file, what tells it when it is written again, and the pieces that it can be cut into."""


@dataclass(frozen=True)
class Corpus:
    """The input as surveyed.

    Attributes:
        root: the input root, an absolute path or a URL; never part of a digest or an output.
        files: every file, by path.
        versions: by path, what tells a file that is written again; never part of a digest or an output.
        units: the work units, in the order of the files; together they are the corpus, each row once.
        estimated_documents: rows and lines, estimated for compressed files from their beginning.
        keep_types: (name, Arrow type name) of every kept column.
    """

    root: str
    files: tuple[InputFile, ...]
    versions: dict[str, str]
    units: tuple[WorkUnit, ...]
    estimated_documents: int
    keep_types: tuple[tuple[str, str], ...]


def survey(
    paths: Sequence[str],
    columns: Columns,
    *,
    output: str | None = None,
    num_threads: int | None = None,
    progress: Callable[[int], None] | None = None,
    unit_bytes: int | None = None,
) -> Corpus:
    """Resolve the input, digest its files and cut them into work units.

    Args:
        paths: files, globs (`**` too) or directories; paths or URLs, all in one place.
        columns: which columns will be read; checked against every Parquet schema.
        output: where the run will write; no input file may lie there.
        num_threads: files digested at once; None: one a core, more where they come over a network.
        progress: told the number of bytes of each piece digested; from any thread, one at a time.
        unit_bytes: uncompressed bytes of a unit; None chooses it from the size of the input.

    Raises:
        ConfigurationError: a path or a kept column cannot be used as written.
        InputError: a file is missing, damaged, changing or outside the root, or a column is missing or differs in type.
    """
    check_kept(columns)
    root, names = find_input(paths, output)
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

    def scan(name: str) -> Scanned:
        """Digest one file and cut it."""
        version = root.version(name)
        file, pieces = _scan(root, name, footers.get(name), unit_bytes, advance)
        if root.version(name) != version:
            raise InputError(f"{name} changed while it was planned: run the same command again once it is whole")
        return file, version, pieces

    num_threads = num_threads or (len(os.sched_getaffinity(0)) if root.is_local else REMOTE_FILES_AT_ONCE)
    scanned = list(_in_threads(scan, names, num_threads))
    pieces = [piece for *_, pieces_of_file in scanned for piece in pieces_of_file]
    return Corpus(
        root=root.location,
        files=tuple(file for file, *_ in scanned),
        versions={file.path: version for file, version, _ in scanned},
        units=pack(pieces, unit_bytes),
        estimated_documents=sum(piece.num_documents for piece in pieces),
        keep_types=keep_types,
    )


def _in_threads(scan: Callable[[str], Scanned], names: Sequence[str], num_threads: int) -> Iterator[Scanned]:
    """Yield what `scan` says of every file, in their order."""
    with ThreadPoolExecutor(num_threads) as executor:
        for first in range(0, len(names), _FILES_SUBMITTED):
            yield from executor.map(scan, names[first : first + _FILES_SUBMITTED])


def _uncompressed_bytes(root: Store, name: str, footers: dict[str, Footer]) -> int:
    if name in footers:
        return sum(num_bytes for _, num_bytes in footers[name].groups)
    return root.facts(name).num_bytes * (1 if format_of(name) == "jsonl" else _COMPRESSION)


def _scan(
    root: Store, name: str, footer: Footer | None, unit_bytes: int, advance: Callable[[int], None]
) -> tuple[InputFile, list[Piece]]:
    """Read a file once: its digest, and the pieces it can be cut into."""
    form = format_of(name)
    digest, size, cutter = hashlib.sha256(), 0, Cutter(unit_bytes)
    try:
        with root.open(name) as stream:
            while chunk := stream.read(CHUNK_BYTES):
                digest.update(chunk)
                size += len(chunk)
                if form == "jsonl":
                    cutter.add(chunk)
                advance(len(chunk))
    except OSError as error:
        raise InputError(
            f"{name}: cannot be read at byte {size} ({error.strerror or error}): repair it or leave it out"
        ) from error
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


def _estimated_lines(root: Store, whole: Segment) -> int:
    with root.open(whole.path) as raw:
        lines = num_bytes = 0
        for chunk in chunks(raw, whole):
            lines += chunk.count(b"\n")
            num_bytes += len(chunk)
            if num_bytes >= CHUNK_BYTES:
                break
        return max(1, lines * whole.stop // max(1, raw.tell()))
