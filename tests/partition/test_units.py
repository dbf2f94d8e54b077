"""Work units: whatever the sizes, together they are the corpus, each record once."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lmsplit.partition import corpus as corpus_module
from lmsplit.partition import decompression, units
from lmsplit.partition.corpus import survey
from lmsplit.partition.records import Columns
from tests.partition.corpora import ROWS, documents, read, write


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lines=st.lists(
        st.sampled_from([b'{"text": "x"}', b'{"text": "longer than that"}', b"", b" \t\r", b"{bad"]),
        max_size=40,
    ),
    ended=st.booleans(),
    unit_bytes=st.integers(1, 300),
    chunk_bytes=st.integers(1, 100),
)
def test_units_partition_lines_exactly(
    tmp_path: Path, lines: list[bytes], ended: bool, unit_bytes: int, chunk_bytes: int
) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines) + b"\n" * ended)
    (tmp_path / "b.jsonl").write_bytes(b'{"text": "other file"}')
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus_module, "CHUNK_BYTES", chunk_bytes)
        patch.setattr(decompression, "CHUNK_BYTES", chunk_bytes)
        corpus = survey([str(tmp_path)], Columns(), unit_bytes=unit_bytes)
        batches = read(corpus)
    found = [
        (path, row)
        for batch in batches
        for table in (batch.documents, batch.rejected)
        for path, row in zip(table["source_path"].to_pylist(), table["source_row"].to_pylist(), strict=True)
    ]
    expected = [("a.jsonl", row) for row, line in enumerate(lines) if line.strip()] + [("b.jsonl", 0)]
    assert sorted(found) == expected
    assert sum(batch.num_bytes for batch in batches) == sum(len(line) for line in lines if line.strip()) + 22
    offsets = [start for batch in batches for start in batch.rejected["byte_offset"].to_pylist()]
    assert offsets == [sum(len(line) + 1 for line in lines[:row]) for row, line in enumerate(lines) if line == b"{bad"]


@pytest.mark.parametrize("unit_bytes", [1, 700, 3000, 10**6])
def test_units_partition_parquet_exactly(tmp_path: Path, unit_bytes: int) -> None:
    write(tmp_path / "a.parquet")
    write(tmp_path / "b.parquet", ROWS[:1])
    corpus = survey([str(tmp_path)], Columns(), unit_bytes=unit_bytes)
    table = documents(read(corpus))
    assert table["doc_id"].to_pylist() == [row["id"] for row in [*ROWS, ROWS[0]]]
    assert table["source_row"].to_pylist() == [*range(300), 0]
    assert len(corpus.units) == {1: 7, 10**6: 1}.get(unit_bytes, len(corpus.units))
    if unit_bytes == 10**6:
        assert [segment.stop for segment in corpus.units[0].segments] == [6, 1]


def test_units_follow_the_size_of_the_input_between_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.jsonl", ROWS * 10)
    monkeypatch.setattr(units, "MIN_UNIT_BYTES", 500)
    assert 100 < len(survey([str(path)], Columns()).units) <= 128
    monkeypatch.setattr(units, "MAX_UNIT_BYTES", 500)
    assert len(survey([str(path)], Columns()).units) > 300
