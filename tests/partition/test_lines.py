"""JSON lines: every reason to reject one, and what is kept of it."""

import hashlib
import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmsplit.manifests.schema import QUARANTINE
from lmsplit.partition import records
from lmsplit.partition.lines import LineRecords, LongLine, split_lines
from lmsplit.partition.records import Batch, Columns, Limits, documents_schema

KEPT = (
    ("name", "string"),
    ("small", "int8"),
    ("unsigned", "uint64"),
    ("score", "double"),
    ("half", "float"),
    ("flag", "bool"),
    ("day", "date32[day]"),
    ("at", "timestamp[us]"),
    ("zoned", "timestamp[us, tz=UTC]"),
)


def judge(*lines: bytes | LongLine, columns: Columns | None = None, limits: Limits | None = None) -> Batch:
    reader = LineRecords(columns or Columns(group="group"), KEPT, limits or Limits())
    for row, line in enumerate(lines):
        reader.add("a.jsonl", row, 100 * row, line)
    return reader.take()


def test_line_gives_every_part_of_a_document() -> None:
    line = b'{"id": 7, "text": "a\\u0000b \xc3\xa9", "source": "s", "group": 12, "extra": [1]}\r'
    (row,) = (
        judge(line)
        .documents.select(["doc_id", "text", "source", "group", "source_path", "source_row", "record_bytes"])
        .to_pylist()
    )
    assert row == {"doc_id": "7", "text": "a\0b é", "source": "s", "group": "12", "source_path": "a.jsonl",
                   "source_row": 0, "record_bytes": len(line)}  # fmt: skip


@pytest.mark.parametrize("line", [b'{"text": "x"}', b'{"text": "x", "id": null}'])
def test_line_is_named_by_its_place_when_it_has_no_id(line: bytes) -> None:
    assert judge(b'{"text": "x", "id": ""}', line).documents["doc_id"].to_pylist() == ["", "a.jsonl:1"]


def test_line_keeps_the_last_value_of_a_duplicate_key() -> None:
    assert judge(b'{"text": "first", "text": "last"}').documents["text"].to_pylist() == ["last"]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"text": "\xff"}', records.INVALID_UTF8),
        (b'{"text": "\xed\xa0\x80"}', records.INVALID_UTF8),
        (b'{"text": "x"', records.MALFORMED_JSON),
        (b'{"text": "x"} {}', records.MALFORMED_JSON),
        (b'{"text": "\x01"}', records.MALFORMED_JSON),
        (b'["text"]', records.NOT_AN_OBJECT),
        (b"3", records.NOT_AN_OBJECT),
        (b"null", records.NOT_AN_OBJECT),
        (b"{}", records.MISSING_TEXT),
        (b'{"text": null}', records.MISSING_TEXT),
        (b'{"text": ""}', records.EMPTY_TEXT),
        (b'{"text": " \\n\\u3000"}', records.EMPTY_TEXT),
        (b'{"text": 3}', records.TEXT_NOT_STRING),
        (b'{"text": ["x"]}', records.TEXT_NOT_STRING),
        (b'{"text": "x", "unused": NaN}', records.NAN_OR_INFINITY),
        (b'{"text": "x", "unused": [-Infinity]}', records.NAN_OR_INFINITY),
        (b'{"text": "x", "unused": 1e999}', records.NAN_OR_INFINITY),
        (b'{"text": "x\\ud800"}', records.LONE_SURROGATE),
        (b'{"text": "x", "group": "\\udfff"}', records.LONE_SURROGATE),
        (b'{"text": "x", "at": "\\udfff"}', records.LONE_SURROGATE),
        (b'{"text": "x", "id": 18446744073709551616}', records.INTEGER_OUT_OF_RANGE),
        (b'{"text": "x", "id": -9223372036854775809}', records.INTEGER_OUT_OF_RANGE),
        (b'{"text": "x", "id": ' + b"9" * 5000 + b"}", records.INTEGER_OUT_OF_RANGE),
        (b'{"text": "x", "small": 128}', records.INTEGER_OUT_OF_RANGE),
        (b'{"text": "x", "unsigned": -1}', records.INTEGER_OUT_OF_RANGE),
        (b'{"text": "x", "half": 1e39}', records.INTEGER_OUT_OF_RANGE),
        (b'{"text": "x", "unused": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", records.NESTED_TOO_DEEP),
        (b"[" * 100_000, records.NESTED_TOO_DEEP),
        (b'{"text": "x", "id": 1.5}', records.BAD_VALUE),
        (b'{"text": "x", "id": true}', records.BAD_VALUE),
        (b'{"text": "x", "source": 3}', records.BAD_VALUE),
        (b'{"text": "x", "name": 3}', records.BAD_VALUE),
        (b'{"text": "x", "small": "3"}', records.BAD_VALUE),
        (b'{"text": "x", "score": "3"}', records.BAD_VALUE),
        (b'{"text": "x", "flag": 1}', records.BAD_VALUE),
        (b'{"text": "x", "day": "soon"}', records.BAD_VALUE),
        (b'{"text": "x", "at": "2024-01-01T00:00:00Z"}', records.BAD_VALUE),
        (b'{"text": "x", "zoned": 3}', records.BAD_VALUE),
    ],
)  # fmt: skip
def test_line_is_rejected_with_its_reason(line: bytes, reason: str) -> None:
    batch = judge(b'{"text": "good"}', line)
    (row,) = batch.rejected.to_pylist()
    assert row.pop("detail")
    assert row == {"source_path": "a.jsonl", "source_row": 1, "byte_offset": 100, "reason": reason,
                   "num_bytes": len(line),
                   "sha256": hashlib.sha256(line).hexdigest(), "record": line[:4096], "doc_id": None}  # fmt: skip
    assert batch.documents["text"].to_pylist() == ["good"]
    assert (batch.num_records, batch.num_bytes) == (2, 16 + len(line))


@pytest.mark.parametrize(
    ("line", "doc_id"),
    [
        (b'{"id": "a", "text": ""}', "a"),
        (b'{"id": 7, "text": null}', "7"),
        (b'{"id": "a", "text": "x", "small": 300}', "a"),
        (b'{"id": "a", "text": "x", "score": NaN}', None),  # no JSON: nothing of it can be trusted
        (b'{"id": [1], "text": ""}', None),
        (b'["a"]', None),
    ],
)
def test_rejected_line_keeps_its_id_where_one_can_be_read(line: bytes, doc_id: str | None) -> None:
    assert judge(line).rejected["doc_id"].to_pylist() == [doc_id]


@pytest.mark.parametrize(
    "line",
    [
        b'{"text": "x", "unused": "\\ud800"}',
        b'{"text": "x", "unused": ' + b"9" * 5000 + b"}",
        b'{"text": "x", "unused": ' + b"[" * 500 + b"]" * 500 + b"}",
        b'{"text": "x", "unused": "' + b"[" * 5000 + b'\\ud800"}',
    ],
)
def test_line_is_kept_when_only_an_unused_field_is_odd(line: bytes) -> None:
    assert judge(line).documents["text"].to_pylist() == ["x"]


def test_truncated_line_of_many_quotes_is_judged_in_linear_time() -> None:
    line = b'{"text": "' + b'<a href=\\"x\\">' * 300_000  # in quadratic time, hours
    assert judge(line).rejected["reason"].to_pylist() == [records.MALFORMED_JSON]


def test_line_gives_kept_columns_in_their_types() -> None:
    line = (
        b'{"text": "x", "name": "n", "small": -128, "unsigned": 18446744073709551615, "score": 2, '
        b'"half": 0.5, "flag": false, "day": "2024-02-29", "at": "2024-02-29T01:02:03.000004", '
        b'"zoned": "2024-02-29T02:00:00+02:00"}'
    )
    documents = judge(line, b'{"text": "y"}').documents
    assert documents.schema == documents_schema(KEPT)
    first, second = documents.select([name for name, _ in KEPT]).to_pylist()
    assert [first[name] for name in ("name", "small", "unsigned", "score", "half", "flag")] == [
        "n",
        -128,
        2**64 - 1,
        2.0,
        0.5,
        False,
    ]
    assert [first[name].isoformat() for name in ("day", "at", "zoned")] == [
        "2024-02-29", "2024-02-29T01:02:03.000004", "2024-02-29T00:00:00+00:00",
    ]  # fmt: skip
    assert set(second.values()) == {None}


def test_reader_starts_an_empty_batch_after_take() -> None:
    reader = LineRecords(Columns(), (), Limits())
    reader.add("a", 0, 0, b'{"text": "x"}')
    reader.take()
    batch = reader.take()
    assert (batch.num_records, batch.documents.num_rows, batch.rejected.schema) == (0, 0, QUARANTINE)


@pytest.mark.parametrize(
    ("line", "count"),
    [
        (b'{"text": "x", "text": "y"}', 1),
        (b'{"text": "x", "\\u0074ext" \t: "y", "text":"z"}', 1),  # a document counts once
        (b'{"text": "x", "unused": [{"a": 1, "b": {"a": 2, "a": 3}}]}', 1),
        (b'{"text": "x", "unused": "\\ud800", "unused": 1}', 1),  # parsed slowly
        (b'{"text": "x", "unused": [{"a": 1}, {"a": 1}]}', 0),
        (b'{"text": "\\"a\\": \\"a\\": ", "unused": "a:", "b": ":", "c": "\\\\"}', 0),
        (b'{"text": "", "text": ""}', 0),  # a rejected record has a reason already
    ],
)
def test_document_whose_line_repeats_a_key_is_counted(line: bytes, count: int) -> None:
    assert judge(line, b'{"text": "other: \\"quoted\\": "}').num_repeated_keys == count


@given(
    st.lists(st.tuples(st.text('a:" \\', max_size=3), st.text('a:" \\', max_size=5)), max_size=4),
    st.sampled_from(["", " ", "\t"]),
)
def test_repeated_keys_are_those_that_json_sees_twice(pairs: list[tuple[str, str]], space: str) -> None:
    members = [("text", "x"), *pairs]
    line = "{" + ",".join(f"{json.dumps(key)}{space}:{space}{json.dumps(value)}" for key, value in members) + "}"
    repeated = len({key for key, _ in members}) < len(members)
    assert judge(line.encode()).num_repeated_keys == repeated


@pytest.mark.parametrize("size", [1, 2, 7, 4000, 10_000])
def test_split_lines_reports_a_long_line_without_holding_it(size: int) -> None:
    long = bytes(range(65, 91)) * 300
    data = b"\xef\xbb\xbfa\n\n" + long + b"\nb\n" + b" " * 200 + b"\nlast"
    chunks = [data[start : start + size] for start in range(0, len(data), size)]
    assert list(split_lines(chunks, 100)) == [
        (3, b"a"),
        (5, b""),
        (6, LongLine(7800, hashlib.sha256(long).hexdigest(), long[:4096], False)),
        (7807, b"b"),
        (7809, LongLine(200, hashlib.sha256(b" " * 200).hexdigest(), b" " * 200, True)),
        (8010, b"last"),
    ]


@given(
    st.binary(max_size=200).map(lambda data: data.replace(b"\x01", b"\n")),
    st.integers(1, 30),
    st.integers(1, 40),
)
def test_split_lines_accounts_for_every_byte(data: bytes, size: int, limit: int) -> None:
    chunks = [data[start : start + size] for start in range(0, len(data), size)]
    found = list(split_lines(chunks, limit, offset=5))
    expected = data.split(b"\n") if not data.endswith(b"\n") and data else data.split(b"\n")[:-1]
    assert [line if isinstance(line, bytes) else line.sha256 for _, line in found] == [
        line if len(line) <= limit else hashlib.sha256(line).hexdigest() for line in expected
    ]
    assert [offset for offset, _ in found] == [5 + sum(len(line) + 1 for line in expected[:k]) for k in range(len(expected))]


def test_long_line_is_rejected_with_its_own_digest() -> None:
    batch = judge(LongLine(500, "ab" * 32, b"head", False), limits=Limits(100))
    (row,) = batch.rejected.to_pylist()
    assert (row["reason"], row["num_bytes"], row["sha256"], row["record"]) == (
        "record_too_large",
        500,
        "ab" * 32,
        b"head",
    )
    assert row["detail"] == "500 bytes, max_record_bytes is 100"
    assert batch.num_bytes == 500


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text("a \0é\ud800", max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("ab"), inner, max_size=2),
    max_leaves=6,
)
json_records = st.dictionaries(
    st.sampled_from(["id", "text", "source", "group", "other", *(name for name, _ in KEPT)]),
    json_values | st.just("word"),
)


@given(st.lists(json_records, max_size=6), st.data())
def test_lines_conserve_records_and_bytes_under_corruption(given_records: list[dict[str, Any]], data: st.DataObject) -> None:
    lines = []
    for record in given_records:
        line = bytearray(json.dumps(record).encode())
        for _ in range(data.draw(st.integers(0, 2))):
            line[data.draw(st.integers(0, len(line) - 1))] = data.draw(st.integers(0, 255))
        lines.append(bytes(line))
    batch = judge(*lines)
    assert sorted(batch.documents["source_row"].to_pylist() + batch.rejected["source_row"].to_pylist()) == list(range(len(lines)))
    sizes = batch.documents["record_bytes"].to_pylist() + batch.rejected["num_bytes"].to_pylist()
    assert sum(sizes) == batch.num_bytes == sum(map(len, lines))
    assert set(batch.rejected["reason"].to_pylist()) <= set(records.REASONS)
    batch.documents.validate(full=True)


@given(st.floats(allow_nan=False, allow_infinity=False), st.integers(-(2**63), 2**64 - 1))
def test_lines_give_numbers_exactly(score: float, identifier: int) -> None:
    line = json.dumps({"text": "x", "id": identifier, "score": score}).encode()
    (row,) = judge(line).documents.to_pylist()
    assert row["doc_id"] == str(identifier)
    assert math.copysign(1, row["score"]) == math.copysign(1, score)
    assert row["score"] == score
