"""Parquet rows: documents or rejections, as the same records in JSON lines would be."""

import hashlib
import tracemalloc
from collections.abc import Sequence
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pytest

from lmsplit.partition import tables
from lmsplit.partition.lines import LineRecords
from lmsplit.partition.records import Batch, Columns, Limits, documents_schema
from lmsplit.partition.tables import TableRecords


def judge_rows(data: dict[str, Any], limits: Limits | None = None, keep: Sequence[tuple[str, str]] = ()) -> Batch:
    return TableRecords(Columns(group="group"), keep, limits or Limits()).judge(pa.RecordBatch.from_pydict(data), "a.parquet", 7)


def invalid(values: Sequence[bytes | None]) -> pa.Array:
    """A string column holding bytes that Arrow did not check, as a Parquet reader hands it over."""
    return pa.array(values, pa.binary()).view(pa.string())


def test_table_gives_the_documents_that_lines_give() -> None:
    rows = [
        {"id": 3, "text": "a\0b", "source": "s", "group": 4},
        {"id": None, "text": "é", "source": None, "group": None},
    ]
    table = pa.RecordBatch.from_pylist(rows)
    batch = TableRecords(Columns(group="group"), (), Limits()).judge(table, "a.jsonl", 0)
    lines = LineRecords(Columns(group="group"), (), Limits())
    for row, record in enumerate(rows):
        lines.add("a.jsonl", row, 0, orjson.dumps(record))
    names = [name for name in batch.documents.schema.names if name != "record_bytes"]
    assert batch.documents.select(names) == lines.take().documents.select(names)
    assert batch.documents["record_bytes"].to_pylist() == [3, 2]


@pytest.mark.parametrize("kind", [pa.large_string(), pa.dictionary(pa.int32(), pa.string()), pa.string_view()])
def test_table_reads_every_kind_of_string(kind: pa.DataType) -> None:
    data = {"id": pa.array(["i"]).cast(kind), "text": pa.array(["x"]).cast(kind)}
    assert judge_rows(data).documents.select(["doc_id", "text"]).to_pylist() == [{"doc_id": "i", "text": "x"}]


def test_table_rejects_only_the_bad_rows() -> None:
    text = invalid([b"good", None, b"", b" \xe3\x80\x80", b"\xff", b"too long" * 9, b"x", b"fine"])
    identifiers = invalid([b"0", b"1", b"2", b"3", b"4", b"5", b"\xed\xa0\x80", None])
    batch = judge_rows({"text": text, "id": identifiers}, Limits(20))
    assert batch.documents.select(["doc_id", "text"]).to_pylist() == [
        {"doc_id": "0", "text": "good"},
        {"doc_id": "a.parquet:14", "text": "fine"},
    ]
    assert [(row["source_row"], row["reason"], row["record"], row["byte_offset"]) for row in batch.rejected.to_pylist()] == [
        (8, "missing_text", b"", None),
        (9, "empty_text", b"", None),
        (10, "empty_text", b" \xe3\x80\x80", None),
        (11, "invalid_utf8", b"\xff", None),
        (12, "record_too_large", b"too long" * 9, None),
        (13, "invalid_utf8", b"x", None),
    ]
    assert batch.rejected["sha256"][3].as_py() == hashlib.sha256(b"\xff").hexdigest()
    assert batch.rejected["doc_id"].to_pylist() == ["1", "2", "3", "4", "5", None]
    assert (batch.num_records, batch.num_bytes) == (8, 4 + 4 + 1 + 72 + 1 + 4)


def test_table_rejects_the_right_rows_of_a_slice() -> None:
    table = pa.RecordBatch.from_pydict({"text": ["first", "too long", None, "fine", "also long"]}).slice(1)
    batch = TableRecords(Columns(), (), Limits(5)).judge(table, "a.parquet", 1)
    found = [(row["source_row"], row["record"], row["sha256"]) for row in batch.rejected.to_pylist()]
    texts = {1: b"too long", 2: b"", 4: b"also long"}
    assert found == [(row, text, hashlib.sha256(text).hexdigest()) for row, text in texts.items()]
    assert batch.documents["text"].to_pylist() == ["fine"]


def test_table_rejects_a_text_past_the_limit_without_a_copy() -> None:
    size = 32 * 2**20
    table = pa.RecordBatch.from_pydict({"text": ["small"] * 50 + ["x" * size] + ["small"] * 50})
    tracemalloc.start()
    try:
        batch = TableRecords(Columns(), (), Limits(2**20)).judge(table, "a.parquet", 0)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert batch.rejected["reason"].to_pylist() == ["record_too_large"]
    assert peak < size / 8
    (value,) = tables._raw_values(table["text"].cast(pa.binary()), [50])
    assert np.frombuffer(value, np.uint8).ctypes.data == table["text"].buffers()[2].address + 50 * len("small")


def test_table_keeps_columns_it_does_not_have_as_null() -> None:
    batch = judge_rows(
        {"text": ["x"], "when": pa.array([5], pa.timestamp("us"))},
        keep=[("when", "timestamp[us]"), ("no", "int64")],
    )
    assert batch.documents.schema == documents_schema([("when", "timestamp[us]"), ("no", "int64")])
    assert batch.documents["no"].to_pylist() == [None]


def test_table_refuses_a_column_whose_type_changed() -> None:
    with pytest.raises(pa.ArrowInvalid, match="many"):
        judge_rows({"text": ["x"], "count": ["many"]}, keep=[("count", "int64")])


def test_blank_text_means_the_same_to_lines_and_tables() -> None:
    texts = [chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000]
    batch = judge_rows({"text": texts})
    blank = [row for row, text in enumerate(texts) if text.isspace()]
    assert (np.array(batch.rejected["source_row"]) - 7).tolist() == blank
    assert len(blank) > 20
