"""Parquet tables: judge the rows of an Arrow batch, each a document or a rejection.

It does not open files: see `reading`. Cost: a batch is judged by columns, without a Python object per row but for the rejected
ones. Memory: one batch; a text past the limit is in it, as Arrow decodes it, and is not copied again.
"""

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lmsplit.partition.records import (
    EMPTY_TEXT,
    INVALID_UTF8,
    KEPT_RECORD_BYTES,
    MISSING_TEXT,
    Batch,
    Columns,
    Limits,
    Rejected,
    documents_schema,
    rejected_batch,
    too_large,
)


class TableRecords:
    """Judges the rows of Parquet files.

    Args:
        columns: where the parts of a document are.
        keep_types: (name, type name) of the kept columns.
        limits: texts of more bytes than these allow are rejected.
    """

    def __init__(self, columns: Columns, keep_types: Sequence[tuple[str, str]], limits: Limits) -> None:
        self._text = columns.text
        self._limits = limits
        self._schema = documents_schema(keep_types)
        self._parts = {"doc_id": columns.id, "text": columns.text}
        self._parts |= {
            "source": columns.source,
            "group": columns.group,
            **{name: name for name, _ in keep_types},
        }
        self.used = frozenset(name for name in self._parts.values() if name is not None)

    def judge(self, table: pa.RecordBatch, path: str, first_row: int) -> Batch:
        """Judge consecutive rows, from row `first_row` of the file `path` on; absent columns are null.

        Raises:
            pyarrow.ArrowInvalid: a column has another type than when the corpus was surveyed.
        """
        parts, verdicts = self._parts_of(table)
        raw_text = parts.pop("raw_text")
        rows = pa.array(np.arange(first_row, first_row + table.num_rows))
        num_bytes = pc.binary_length(raw_text).cast(pa.int64()).fill_null(0)
        for row in _rows_where(pc.greater(num_bytes, self._limits.max_record_bytes)):
            verdicts[row] = too_large(num_bytes[row].as_py(), self._limits)
        ids = parts["doc_id"]
        if ids.null_count:
            stand_in = pc.binary_join_element_wise(path, rows.cast(pa.string()), ":")
            parts["doc_id"] = pc.coalesce(parts["doc_id"], stand_in)
        paths = pa.repeat(pa.scalar(path, pa.string()), table.num_rows)
        parts |= {"source_path": paths, "source_row": rows, "record_bytes": num_bytes}
        arrays = [parts[name] for name in self._schema.names]
        documents = pa.RecordBatch.from_arrays(arrays, schema=self._schema)
        if verdicts:
            valid = np.ones(table.num_rows, dtype=bool)
            valid[list(verdicts)] = False
            documents = documents.filter(pa.array(valid))
        rejected = []
        rows_aside = sorted(verdicts)
        for row, value in zip(rows_aside, _raw_values(raw_text, rows_aside), strict=True):
            verdict = verdicts[row]
            where = (path, first_row + row, None, verdict.reason, verdict.detail)
            digest = hashlib.sha256(value).hexdigest()
            rejected.append((*where, len(value), digest, bytes(value[:KEPT_RECORD_BYTES]), ids[row].as_py()))
        return Batch(documents, rejected_batch(rejected), table.num_rows, pc.sum(num_bytes).as_py() or 0)

    def _parts_of(self, table: pa.RecordBatch) -> tuple[dict[str, pa.Array], dict[int, Rejected]]:
        """Return the columns in their final types, with the text's bytes, and what is wrong where."""
        parts: dict[str, pa.Array] = {}
        verdicts: dict[int, Rejected] = {}
        for part, name in self._parts.items():
            kind = self._schema.field(part).type
            if name is None or name not in table.schema.names:
                parts[part] = pa.nulls(table.num_rows, kind)
                continue
            values = table.column(name).cast(kind)
            if part == "text":
                parts["raw_text"] = values.cast(pa.binary())
            if pa.types.is_string(kind):
                values, broken = _valid_strings(values)
                verdicts |= {row: Rejected(INVALID_UTF8, f"column {name!r} is not UTF-8") for row in broken}
            parts[part] = values
        text = parts["text"]
        blank = pc.or_(pc.equal(pc.binary_length(text), 0), pc.utf8_is_space(text))
        empty = Rejected(EMPTY_TEXT, f"column {self._text!r} is empty or only white space")
        missing = Rejected(MISSING_TEXT, f"column {self._text!r} is null")
        verdicts |= dict.fromkeys(_rows_where(blank), empty)
        verdicts |= dict.fromkeys(_rows_where(parts["raw_text"].is_null()), missing)
        return parts, verdicts


def _raw_values(values: pa.Array, rows: Sequence[int]) -> Iterator[memoryview]:
    """Yield the bytes of rows, none for nulls, without the copy that `values[row]` makes of a text of any size."""
    valid = values.is_valid().to_numpy(zero_copy_only=False)
    _, offsets, data = values.buffers()
    offsets_N = np.frombuffer(offsets, np.int32)[values.offset :]
    for row in rows:
        whole = memoryview(data) if valid[row] and data is not None else memoryview(b"")
        yield whole[offsets_N[row] : offsets_N[row + 1]]


def _is_utf8(value: bytes | None) -> bool:
    try:
        return value is None or value.decode() is not None
    except UnicodeDecodeError:
        return False


def _rows_where(mask: pa.Array) -> list[int]:
    return [int(row) for row in np.flatnonzero(mask.fill_null(False).to_numpy(zero_copy_only=False))]


def _valid_strings(values: pa.Array) -> tuple[pa.Array, list[int]]:
    """Return the strings, null where they are not UTF-8 (Parquet readers do not look), and these rows."""
    try:
        values.validate(full=True)
    except pa.ArrowInvalid:
        raw = values.cast(pa.binary()).to_pylist()
        broken = [row for row, value in enumerate(raw) if not _is_utf8(value)]
        for row in broken:
            raw[row] = None
        # Built anew: if_else would leave the bad bytes under the nulls, where kernels still read them.
        return pa.array(raw, pa.binary()).cast(pa.string()), broken
    return values, []
