"""Reads a work unit as Arrow batches: the only reader of the corpus's records.

What becomes of a record is decided in `lines` and `tables`. Cost: a batch, a chunk, and one record: of lines at most
`max_record_bytes`, of Parquet whatever Arrow decodes as one value. How large Parquet rows are is known only once they are
decoded: a dictionary page, or a prefix that values share, may stand for a thousand times its bytes. So they are decoded a few
at a time, no more than 64 MiB if every row were as large as its row group. Measured on 63,000 documents of 12 files: 3 µs a
document for 4,096 or 64 rows at a time, 5 µs for 8, and 30 µs for 1, as in row groups of 64 MiB and more.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

from lmsplit.manifests.errors import InputError
from lmsplit.manifests.store import Store
from lmsplit.partition.decompression import BOMB_FREE_BYTES, BOMB_RATIO, CHUNK_BYTES, chunks
from lmsplit.partition.lines import LineRecords, LongLine, split_lines
from lmsplit.partition.records import BATCH_BYTES, BATCH_DOCUMENTS, Batch, Columns, Limits
from lmsplit.partition.tables import TableRecords
from lmsplit.partition.units import Segment, WorkUnit

_STEP_ROWS: Final = 64
_STEP_BYTES: Final = 64 * 2**20
"""Of Parquet decoded at once, if every row were as large as all of its row group; one row may be more."""


def read_unit(
    root: Store, unit: WorkUnit, columns: Columns, keep_types: Sequence[tuple[str, str]], limits: Limits
) -> Iterator[Batch]:
    """Stream a unit's records in batches of about 8 MiB or 4,096 records, cut by the unit alone.

    Args:
        root: where the input root is now.
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
        if (found := _num_bytes(root, segment.path)) != segment.file_bytes:
            raise _changed(segment, f"it has {found} bytes, the plan says {segment.file_bytes}")
        if segment.format != "parquet":
            yield from _read_lines(root, segment, lines, limits)
            continue
        if lines.num_records:
            yield lines.take()
        yield from _read_tables(root, segment, tables)
    if lines.num_records:
        yield lines.take()


def _num_bytes(root: Store, name: str) -> int:
    try:
        return root.facts(name).num_bytes
    except FileNotFoundError:
        return 0


def _changed(segment: Segment, how: str) -> InputError:
    return InputError(f"{segment.path} changed after it was planned: {how}; restore it, or plan again")


def _read_lines(root: Store, segment: Segment, lines: LineRecords, limits: Limits) -> Iterator[Batch]:
    row = segment.first_row
    with root.open(segment.path) as raw:
        for offset, line in split_lines(chunks(raw, segment), limits.max_record_bytes, segment.start):
            blank = line.blank if isinstance(line, LongLine) else not line or line.isspace()
            if not blank:
                lines.add(segment.path, row, offset, line)
                if lines.full:
                    yield lines.take()
            row += 1
    if segment.num_rows is not None and row != segment.first_row + segment.num_rows:
        raise _changed(segment, f"{row - segment.first_row} lines from byte {segment.start} on, not {segment.num_rows}")


def _read_tables(root: Store, segment: Segment, tables: TableRecords) -> Iterator[Batch]:
    first_row, group = segment.first_row, segment.start
    try:
        # Pre-buffering holds a row group's compressed columns: 222 MB of memory, not 24 (measured).
        options = {"page_checksum_verification": True, "buffer_size": CHUNK_BYTES, "pre_buffer": False}
        with root.input(segment.path) as source, pq.ParquetFile(source, **options) as file:
            used = [name for name in file.schema_arrow.names if name in tables.used]
            for group in range(segment.start, segment.stop):
                rows = file.metadata.row_group(group)
                mean_bytes = max(1, rows.total_byte_size // max(1, rows.num_rows))
                size = max(1, min(BATCH_DOCUMENTS, BATCH_BYTES // mean_bytes))
                step = max(1, min(_STEP_ROWS, size, _STEP_BYTES // max(1, rows.total_byte_size)))
                steps = _decoded(file.iter_batches(step, [group], used, use_threads=False), segment.path, rows)
                for table in _batches(steps, size):
                    yield tables.judge(table, segment.path, first_row)
                    first_row += table.num_rows
    except MemoryError:  # Arrow's is an ArrowException too, and says nothing of the file
        raise
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


def _decoded(steps: Iterable[pa.RecordBatch], path: str, rows: pq.RowGroupMetaData) -> Iterator[tuple[pa.RecordBatch, int]]:
    """Yield rows with every value written out, and their bytes, unless they are a thousand times what the file has of them."""
    stored = sum(rows.column(column).total_compressed_size for column in range(rows.num_columns))
    at_most, num_bytes = max(BOMB_FREE_BYTES, BOMB_RATIO * stored), 0
    for step in steps:
        if any(pa.types.is_dictionary(kind) for kind in step.schema.types):
            step = step.cast(_without_dictionaries(step.schema))
        num_bytes += (step_bytes := step.nbytes)
        if num_bytes > at_most:
            raise InputError(
                f"{path}: {stored} bytes of a row group expand to {num_bytes} and more, expected at most {BOMB_RATIO} times as "
                "many: taken for a bomb; write it again in smaller row groups and without a dictionary if it is sound"
            )
        yield step, step_bytes


def _without_dictionaries(schema: pa.Schema) -> pa.Schema:
    kinds = [kind.value_type if pa.types.is_dictionary(kind) else kind for kind in schema.types]
    return pa.schema(list(zip(schema.names, kinds, strict=True)))


def _batches(steps: Iterable[tuple[pa.RecordBatch, int]], num_rows: int) -> Iterator[pa.RecordBatch]:
    """Put rows together to batches of so many; of fewer where they are far larger than their encoded size says."""
    parts: list[pa.RecordBatch] = []
    left, num_bytes = num_rows, 0
    for step, step_bytes in steps:
        num_bytes += step_bytes
        if step.num_rows < left and num_bytes < 2 * BATCH_BYTES:
            parts.append(step)
            left -= step.num_rows
            continue
        yield _joined([*parts, step.slice(0, left)])
        rest = step.slice(left)
        parts, left, num_bytes = [rest], num_rows - rest.num_rows, rest.nbytes
    if left < num_rows:
        yield _joined(parts)


def _joined(parts: Sequence[pa.RecordBatch]) -> pa.RecordBatch:
    (batch,) = pa.Table.from_batches(parts).combine_chunks().to_batches()
    return batch
