"""Reads a work unit as Arrow batches: the only reader of the corpus's records.

What becomes of a record is decided in `lines` and `tables`. Cost: a batch, a chunk, and one record of at most
`max_record_bytes`.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from lmsplit.manifests.errors import InputError
from lmsplit.partition.decompression import CHUNK_BYTES, chunks
from lmsplit.partition.lines import LineRecords, LongLine, split_lines
from lmsplit.partition.records import BATCH_BYTES, BATCH_DOCUMENTS, Batch, Columns, Limits
from lmsplit.partition.tables import TableRecords
from lmsplit.partition.units import Segment, WorkUnit


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
        for offset, line in split_lines(chunks(raw, segment), limits.max_record_bytes, segment.start):
            blank = line.blank if isinstance(line, LongLine) else not line or line.isspace()
            if not blank:
                lines.add(segment.path, row, offset, line)
                if lines.full:
                    yield lines.take()
            row += 1
    if segment.num_rows is not None and row != segment.first_row + segment.num_rows:
        raise _changed(segment, f"{row - segment.first_row} lines from byte {segment.start} on, not {segment.num_rows}")


def _read_tables(path: Path, segment: Segment, tables: TableRecords) -> Iterator[Batch]:
    first_row, group = segment.first_row, segment.start
    try:
        # Pre-buffering holds a row group's compressed columns: 222 MB of memory, not 24 (measured).
        options = {"page_checksum_verification": True, "buffer_size": CHUNK_BYTES, "pre_buffer": False}
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
