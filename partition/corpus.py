"""Survey the input, cut it into work units, and read a unit as Arrow batches: the only reader of the corpus.

`survey` digests every file and cuts units from the input alone, so that any number of workers sees the same
ones; `read_unit` streams one. What becomes of a record is decided in `records`. It supports neither object
stores nor kept columns of nested types.

Cost: the survey reads every byte once for its SHA-256 and holds a chunk per thread. Reading a unit holds a
batch, a chunk, and one record of at most `max_record_bytes`.
"""

import glob
import gzip
import hashlib
import os
import re
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, Final, Literal, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from lmsplit.manifests.errors import ConfigurationError, InputError
from lmsplit.manifests.schema import DOCUMENT_FIELDS
from lmsplit.partition.records import (
    BATCH_BYTES,
    BATCH_DOCUMENTS,
    REJECTED_SCHEMA,
    Batch,
    Columns,
    Limits,
    LineRecords,
    LongLine,
    TableRecords,
    documents_schema,
    split_lines,
    type_named,
)

__all__ = [
    "REJECTED_SCHEMA", "Batch", "Columns", "Corpus", "InputFile", "Limits", "Segment", "WorkUnit",
    "documents_schema", "read_unit", "survey",
]  # fmt: skip

Format = Literal["parquet", "jsonl", "jsonl.gz", "jsonl.zst"]

# Assumptions: 128 units keep 64 workers busy nearly to the end; a smaller unit than 1 MiB would not pay for
# starting a task, and one above 64 MiB would cost too much when a worker is killed and starts it again.
UNITS_WANTED: Final = 128
MIN_UNIT_BYTES: Final = 2**20
MAX_UNIT_BYTES: Final = 64 * 2**20

_FORMATS: Final[dict[str, Format]] = {
    ".parquet": "parquet",
    ".jsonl": "jsonl",
    ".json": "jsonl",
    ".jsonl.gz": "jsonl.gz",
    ".jsonl.zst": "jsonl.zst",
}
_LATER_SCHEMES: Final = ("s3", "gs", "az", "hf")
_COMPRESSION: Final = 4  # typical of text under gzip and zstd; only weighs units
_CHUNK_BYTES: Final = 2**20
_ZSTD_INPUT_BYTES: Final = 2048  # a frame may expand 32,000-fold: at most 64 MiB for one such piece
_BOMB_RATIO: Final = 1000
_BOMB_FREE_BYTES: Final = 64 * 2**20
_DAMAGED: Final = (EOFError, OSError, zlib.error, zstandard.ZstdError)


@dataclass(frozen=True)
class InputFile:
    """A file of the corpus: its POSIX path relative to the input root, its size, and its SHA-256."""

    path: str
    num_bytes: int
    sha256: str


@dataclass(frozen=True)
class Segment:
    """A piece of one file that is read whole.

    Attributes:
        path: POSIX path relative to the input root.
        format: how the file is written.
        start: first row group (parquet), or first byte.
        stop: the row group or byte after the last; a compressed file is always whole.
        first_row: row or line of the file that the segment begins with.
        num_rows: rows, or lines including blank ones; None for a compressed file.
        file_bytes: size of the whole file, to notice one that changed.
    """

    path: str
    format: Format
    start: int
    stop: int
    first_row: int
    num_rows: int | None
    file_bytes: int


@dataclass(frozen=True)
class WorkUnit:
    """Consecutive segments of the corpus that one task processes."""

    index: int
    segments: tuple[Segment, ...]


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


class _Piece(NamedTuple):
    segment: Segment
    weight: int
    num_documents: int


class _Footer(NamedTuple):
    schema: pa.Schema
    groups: list[tuple[int, int]]  # rows and uncompressed bytes of each row group


def survey(
    paths: Sequence[str],
    columns: Columns,
    *,
    num_threads: int = 2,
    progress: Callable[[int], None] | None = None,
    unit_bytes: int | None = None,
) -> Corpus:
    """Resolve the input, digest its files and cut them into work units.

    Args:
        paths: files, globs (`**` too) or directories; `file://` is accepted.
        columns: which columns will be read; checked against every Parquet schema.
        num_threads: files digested at once.
        progress: told the number of bytes of each piece digested; from any thread, one at a time.
        unit_bytes: uncompressed bytes of a unit; None chooses it from the size of the input.

    Raises:
        ConfigurationError: a path or a kept column cannot be used as written.
        InputError: a file is missing, damaged or outside the root, or a column is missing or differs in type.
    """
    _check_kept(columns)
    root, names = _resolve(paths)
    footers = {name: _footer(root, name) for name in names if _format_of(name) == "parquet"}
    _check_types(footers, columns)
    keep_types = _keep_types(footers, columns)
    if unit_bytes is None:
        total = sum(_uncompressed_bytes(root, name, footers) for name in names)
        unit_bytes = min(max(total // UNITS_WANTED, MIN_UNIT_BYTES), MAX_UNIT_BYTES)
    lock = threading.Lock()

    def advance(num_bytes: int) -> None:
        if progress:
            with lock:
                progress(num_bytes)

    def scan(name: str) -> tuple[InputFile, list[_Piece]]:
        return _scan(root, name, footers.get(name), unit_bytes, advance)

    with ThreadPoolExecutor(num_threads) as executor:
        scanned = list(executor.map(scan, names))
    pieces = [piece for _, pieces_of_file in scanned for piece in pieces_of_file]
    return Corpus(
        root=root,
        files=tuple(file for file, _ in scanned),
        units=_pack(pieces, unit_bytes),
        estimated_documents=sum(piece.num_documents for piece in pieces),
        keep_types=keep_types,
    )


def _format_of(name: str) -> Format | None:
    lower = name.lower()
    return next((form for suffix, form in _FORMATS.items() if lower.endswith(suffix)), None)


def _local(path: str) -> str:
    if path.startswith("file://"):
        return path.removeprefix("file://")
    if scheme := re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", path):
        when = "come with a later release" if scheme[1].lower() in _LATER_SCHEMES else "are not supported"
        raise ConfigurationError(f"input {path!r}: {scheme[1]}:// paths {when}; copy the corpus to a local directory")
    return path


def _walk(directory: str) -> Iterator[str]:
    def stop(error: OSError) -> None:
        raise InputError(f"input directory {error.filename!r} cannot be listed ({error.strerror}): make it readable")

    for folder, subfolders, names in os.walk(directory, onerror=stop, followlinks=True):
        subfolders[:] = [name for name in subfolders if name[0] not in "._"]
        yield from (str(Path(folder, name)) for name in names if name[0] not in "._" and _format_of(name))


def _found(path: str) -> list[str]:
    local = os.path.normpath(Path(_local(path)).absolute())  # resolve() would follow links, and hide where they lead
    if Path(local).is_dir():
        files = list(_walk(local))
    elif Path(local).exists() or Path(local).is_symlink():
        files = [local]
    else:  # Path.glob takes no absolute pattern
        files = [name for name in glob.glob(local, recursive=True) if not Path(name).is_dir()]  # noqa: PTH207
    if not files:
        raise InputError(f"input {path!r} matches no file: expected {', '.join(_FORMATS)} files; check the path")
    return files


def _resolve(paths: Sequence[str]) -> tuple[str, list[str]]:
    """Return the input root and the relative names of its files, sorted, each file once."""
    found = sorted({name for path in paths for name in _found(path)})
    if not found:
        raise ConfigurationError("input names no path: give a file, a glob or a directory")
    root = os.path.commonpath([Path(name).parent for name in found])
    names: dict[Path, str] = {}
    for relative in sorted(Path(name).relative_to(root).as_posix() for name in found):
        if _format_of(relative) is None:
            raise ConfigurationError(f"input file {relative!r} has no known suffix: expected {', '.join(_FORMATS)}")
        real = Path(root, relative).resolve()
        if not real.is_relative_to(Path(root).resolve()):
            raise InputError(f"input file {relative!r} is a link that leads out of the input root: copy the file there")
        if not real.is_file():
            raise InputError(f"input file {relative!r} is not a regular file (or a broken link): leave it out")
        if relative != relative.encode(errors="replace").decode():
            raise InputError(f"input file {relative!r} has a name that is not UTF-8: rename it")
        names.setdefault(real, relative)
    return root, list(names.values())


def _check_kept(columns: Columns) -> None:
    taken = {name for name, *_ in DOCUMENT_FIELDS} | {"record_bytes"}
    for name, declared in columns.keep:
        if name in taken:
            raise ConfigurationError(f"keep names {name!r}, which is twice there or a manifest's own column: remove it")
        taken.add(name)
        type_named(declared or "string")


def _footer(root: str, name: str) -> _Footer:
    try:
        with pq.ParquetFile(Path(root, name)) as file:
            groups = [file.metadata.row_group(index) for index in range(file.num_row_groups)]
            return _Footer(file.schema_arrow, [(group.num_rows, group.total_byte_size) for group in groups])
    except (pa.ArrowException, OSError) as error:
        raise InputError(
            f"{name}: the Parquet footer cannot be read, the file is truncated or damaged ({error}): "
            "write it again or leave it out"
        ) from error


def _canonical(kind: pa.DataType) -> str:
    if pa.types.is_dictionary(kind):
        return _canonical(kind.value_type)
    strings = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    return "string" if strings else str(kind)


def _column_type(footers: dict[str, _Footer], name: str, *, required: bool) -> tuple[str, str] | None:
    """Return the one type of a column in all Parquet files, and the first that has it; None: none has."""
    found: tuple[str, str] | None = None
    for path, footer in footers.items():
        places = footer.schema.get_all_field_indices(name)
        if len(places) > 1 or (required and not places):
            count = "more than once" if places else "not"
            raise InputError(
                f"column {name!r} is {count} in {path}, which has {', '.join(footer.schema.names)}: expected "
                "once in every Parquet file; correct the name in the configuration, or the file"
            )
        kind = _canonical(footer.schema.field(places[0]).type) if places else "null"
        if kind == "null":  # without a single value there is no type to disagree about
            continue
        if found and found[0] != kind:
            raise InputError(
                f"column {name!r} is {found[0]} in {found[1]} and {kind} in {path}: expected one type "
                "everywhere; write one of the files again"
            )
        found = found or (kind, path)
    return found


def _check_types(footers: dict[str, _Footer], columns: Columns) -> None:
    numbers = [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)]
    for name, required, others in (
        (columns.text, True, []),
        (columns.id, columns.id != Columns.id, numbers),
        (columns.source, columns.source != Columns.source, []),
        (columns.group, True, numbers),
    ):
        found = _column_type(footers, name, required=required) if name is not None else None
        if found and found[0] not in ["string", *others]:
            raise InputError(
                f"column {name!r} is {found[0]} in {found[1]}, expected string{' or integer' * bool(others)}"
                ": name another column, or write the file again"
            )


def _keep_types(footers: dict[str, _Footer], columns: Columns) -> tuple[tuple[str, str], ...]:
    kept = []
    for name, declared in columns.keep:
        found = _column_type(footers, name, required=True)
        wanted = str(type_named(declared)) if declared else None
        if found and wanted and found[0] != wanted:
            raise InputError(
                f"kept column {name!r} is {found[0]} in {found[1]}, expected {declared} as declared: "
                "correct the declaration, or the file"
            )
        kept.append((name, str(type_named(wanted or (found[0] if found else "string")))))
    return tuple(kept)


def _uncompressed_bytes(root: str, name: str, footers: dict[str, _Footer]) -> int:
    if name in footers:
        return sum(num_bytes for _, num_bytes in footers[name].groups)
    return Path(root, name).stat().st_size * (1 if _format_of(name) == "jsonl" else _COMPRESSION)


class _Cutter:
    """Cuts plain JSONL after the first line that ends at or past the unit size, counting lines on the way."""

    def __init__(self, unit_bytes: int) -> None:
        self._unit_bytes = unit_bytes
        self._start = self._first_row = self._position = self._row = 0
        self._ended = True
        self.cuts: list[tuple[int, int, int, int]] = []  # start, stop, first row, rows

    def add(self, chunk: bytes) -> None:
        begin = 0
        while cut := chunk.find(b"\n", max(begin, self._start + self._unit_bytes - self._position - 1)) + 1:
            self._row += chunk.count(b"\n", begin, cut)
            self._close(self._position + cut)
            begin = cut
        self._row += chunk.count(b"\n", begin)
        self._position += len(chunk)
        self._ended = chunk.endswith(b"\n")

    def finish(self) -> None:
        self._row += not self._ended
        if self._position > self._start:
            self._close(self._position)

    def _close(self, stop: int) -> None:
        self.cuts.append((self._start, stop, self._first_row, self._row - self._first_row))
        self._start, self._first_row = stop, self._row


def _scan(
    root: str, name: str, footer: _Footer | None, unit_bytes: int, advance: Callable[[int], None]
) -> tuple[InputFile, list[_Piece]]:
    """Read a file once: its digest, and the pieces it can be cut into."""
    form = _format_of(name)
    digest, size, cutter = hashlib.sha256(), 0, _Cutter(unit_bytes)
    try:
        with Path(root, name).open("rb", buffering=0) as stream:
            while chunk := stream.read(_CHUNK_BYTES):
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
            _Piece(replace(whole, start=start, stop=stop, first_row=first, num_rows=rows), stop - start, rows)
            for start, stop, first, rows in cutter.cuts
        ]
    else:
        pieces = [_Piece(whole, size * _COMPRESSION, _estimated_lines(root, whole))] if size else []
    return InputFile(name, size, digest.hexdigest()), pieces


def _row_groups(whole: Segment, footer: _Footer) -> Iterator[_Piece]:
    first_row = 0
    for index, (rows, num_bytes) in enumerate(footer.groups):
        segment = replace(whole, start=index, stop=index + 1, first_row=first_row, num_rows=rows)
        yield _Piece(segment, num_bytes, rows)
        first_row += rows


def _estimated_lines(root: str, whole: Segment) -> int:
    with Path(root, whole.path).open("rb") as raw:
        lines = num_bytes = 0
        for chunk in _chunks(raw, whole):
            lines += chunk.count(b"\n")
            num_bytes += len(chunk)
            if num_bytes >= _CHUNK_BYTES:
                break
        return max(1, lines * whole.stop // max(1, raw.tell()))


def _pack(pieces: Sequence[_Piece], unit_bytes: int) -> tuple[WorkUnit, ...]:
    """Put consecutive pieces together while they fit a unit, neighbours in a file into one segment."""
    units: list[list[Segment]] = []
    weight = 0
    for piece in pieces:
        if not units or weight + piece.weight > unit_bytes:
            units.append([])
            weight = 0
        weight += piece.weight
        last, new = units[-1][-1] if units[-1] else None, piece.segment
        if last and last.path == new.path and last.num_rows is not None and new.num_rows is not None:
            units[-1][-1] = replace(last, stop=new.stop, num_rows=last.num_rows + new.num_rows)
        else:
            units[-1].append(new)
    return tuple(WorkUnit(index, tuple(segments)) for index, segments in enumerate(units))


def read_unit(
    corpus_root: str, unit: WorkUnit, columns: Columns, keep_types: Sequence[tuple[str, str]], limits: Limits
) -> Iterator[Batch]:
    """Stream a unit's records in batches of about 8 MiB or 4,096 records, cut by the unit alone.

    Args:
        corpus_root: where the input root is now.
        unit: a unit of `Corpus.units`.
        columns: as given to `survey`.
        keep_types: `Corpus.keep_types`.
        limits: what a record may be at most.

    Yields:
        The records in their order, every one in exactly one table of one batch.

    Raises:
        InputError: a file changed since the survey, or its compression, pages or encoding are damaged.
    """
    lines, tables = LineRecords(columns, keep_types, limits), TableRecords(columns, keep_types, limits)
    for segment in unit.segments:
        path = Path(corpus_root, segment.path)
        found = path.stat().st_size if path.exists() else 0
        if found != segment.file_bytes:
            raise _changed(segment, f"it has {found} bytes, the plan says {segment.file_bytes}")
        if segment.format != "parquet":
            yield from _read_lines(path, segment, lines, limits)
            continue
        if lines.num_records:
            yield lines.take()
        yield from _read_tables(path, segment, tables)
    if lines.num_records:
        yield lines.take()


def _changed(segment: Segment, how: str) -> InputError:
    return InputError(f"{segment.path} changed after it was planned: {how}; restore it, or plan again")


def _read_lines(path: Path, segment: Segment, lines: LineRecords, limits: Limits) -> Iterator[Batch]:
    row = segment.first_row
    with path.open("rb") as raw:
        for offset, line in split_lines(_chunks(raw, segment), limits.max_record_bytes, segment.start):
            blank = line.blank if isinstance(line, LongLine) else not line or line.isspace()
            if not blank:
                lines.add(segment.path, row, offset, line)
                if lines.full:
                    yield lines.take()
            row += 1
    if segment.num_rows is not None and row != segment.first_row + segment.num_rows:
        raise _changed(segment, f"{row - segment.first_row} lines from byte {segment.start} on, not {segment.num_rows}")


def _chunks(raw: BinaryIO, segment: Segment) -> Iterator[bytes]:
    """Yield a segment's bytes, decompressed; damage and bombs stop it."""
    if segment.format == "jsonl":
        raw.seek(segment.start)
        while chunk := raw.read(min(_CHUNK_BYTES, segment.stop - raw.tell())):
            yield chunk
        return
    num_bytes = 0
    try:
        for chunk in _gunzipped(raw) if segment.format == "jsonl.gz" else _unzstd(raw):
            num_bytes += len(chunk)
            if num_bytes > max(_BOMB_FREE_BYTES, _BOMB_RATIO * raw.tell()):
                raise InputError(
                    f"{segment.path}: its first {raw.tell()} bytes expand to {num_bytes}, expected at most "
                    f"{_BOMB_RATIO} times as many: taken for a bomb; decompress it yourself if it is sound"
                )
            yield chunk
    except _DAMAGED as error:
        raise InputError(
            f"{segment.path}: compressed data is truncated or damaged near byte {raw.tell()} of "
            f"{segment.stop} ({error}): fetch or write the file again"
        ) from error


def _gunzipped(raw: BinaryIO) -> Iterator[bytes]:
    with gzip.GzipFile(fileobj=raw) as stream:  # reads every member, and checks the last one's end
        while chunk := stream.read(_CHUNK_BYTES):
            yield chunk


def _unzstd(raw: BinaryIO) -> Iterator[bytes]:
    # Neither stream_reader nor read_to_iter tells a truncated frame from a finished one: go frame by frame.
    decompressor = zstandard.ZstdDecompressor()
    frame, parts = None, list[bytes]()
    while data := raw.read(_ZSTD_INPUT_BYTES):
        while data:
            frame = frame or decompressor.decompressobj()
            parts.append(frame.decompress(data))
            data = frame.unused_data if frame.eof else b""
            frame = None if frame.eof else frame
        if sum(map(len, parts)) >= _CHUNK_BYTES // 8:
            yield b"".join(parts)
            parts.clear()
    yield b"".join(parts)
    if frame:
        raise EOFError("the last zstd frame is not complete")


def _read_tables(path: Path, segment: Segment, tables: TableRecords) -> Iterator[Batch]:
    first_row, group = segment.first_row, segment.start
    try:
        # Pre-buffering holds a row group's compressed columns: 222 MB of memory, not 24 (measured).
        options = {"page_checksum_verification": True, "buffer_size": _CHUNK_BYTES, "pre_buffer": False}
        with pq.ParquetFile(path, **options) as file:
            used = [name for name in file.schema_arrow.names if name in tables.used]
            for group in range(segment.start, segment.stop):
                rows = file.metadata.row_group(group)
                mean_bytes = max(1, rows.total_byte_size // max(1, rows.num_rows))
                size = max(1, min(BATCH_DOCUMENTS, BATCH_BYTES // mean_bytes))
                for table in file.iter_batches(size, [group], used, use_threads=False):
                    yield tables.judge(table, segment.path, first_row)
                    first_row += table.num_rows
    except (pa.ArrowException, OSError, IndexError) as error:
        raise InputError(
            f"{segment.path}: row group {group} is truncated or damaged near row {first_row} ({error}): "
            "fetch or write the file again"
        ) from error
    if first_row != segment.first_row + (segment.num_rows or 0):
        raise _changed(
            segment,
            f"{first_row - segment.first_row} rows from {segment.first_row} on, not {segment.num_rows}",
        )
