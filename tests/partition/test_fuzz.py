"""Damaged files of every format are refused, or accounted for record by record; `benchmarks/fuzz.py` tries many more of them."""

import tempfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import fuzz
from benchmarks.damage import DAMAGES, FORMATS, NUM_RECORDS, Damage, damaged
from benchmarks.fuzz import Failure, check, check_lines, check_rows, read
from lmsplit.partition.records import Batch

fractions = st.floats(0, 1)
damages = st.lists(
    st.builds(Damage, st.sampled_from(DAMAGES), fractions, fractions, st.integers(1, 5000), st.integers(0, 2**32 - 1)),
    min_size=1,
    max_size=3,
)


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=60, deadline=None)
@given(damages)
def test_damaged_file_is_refused_or_accounted_for(name: str, damages: list[Damage]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        check(name, damaged(FORMATS[name].sound, damages), Path(directory))


@settings(max_examples=12, deadline=None)
@given(st.sampled_from(list(FORMATS)), damages)
def test_damaged_file_is_refused_or_accounted_for_by_a_whole_partition(name: str, damages: list[Damage]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        check(name, damaged(FORMATS[name].sound, damages), Path(directory), whole=True)


@pytest.mark.parametrize("name", FORMATS)
def test_sound_file_is_read_whole(name: str, tmp_path: Path) -> None:
    assert check(name, FORMATS[name].sound, tmp_path, whole=True) == (False, NUM_RECORDS, 0, 0)


@pytest.mark.parametrize("kind", DAMAGES)
def test_every_damage_changes_a_file(kind: str) -> None:
    found = {damaged(FORMATS["jsonl"].sound, [Damage(kind, 0.5, 0.1, 7, seed)]) for seed in range(3)}
    assert FORMATS["jsonl"].sound not in found


def without_a_document(batch: Batch) -> Batch:
    return batch._replace(documents=batch.documents.slice(1))


def twice(batch: Batch) -> Batch:
    return batch._replace(documents=batch.documents.take([0, *range(batch.documents.num_rows)]))


def with_another_text(batch: Batch) -> Batch:
    texts = batch.documents["text"].to_pylist()
    return batch._replace(documents=batch.documents.set_column(1, "text", pa.array([*texts[1:], texts[0]])))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without_a_document, "line 0 was lost"),
        (twice, "a row was read twice"),
        (with_another_text, "line 0 has another text than its document"),
    ],
)
def test_account_of_lines_notices(change: Callable[[Batch], Batch], message: str, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "x.jsonl").write_bytes(FORMATS["jsonl"].sound)
    (batch,) = read(tmp_path / "in", tmp_path / "out")
    check_lines(FORMATS["jsonl"].sound, [batch])
    with pytest.raises(Failure, match=message):
        check_lines(FORMATS["jsonl"].sound, [change(batch)])


def test_account_of_lines_notices_a_sound_line_that_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "x.jsonl").write_bytes(FORMATS["jsonl"].sound.replace(b'"text"', b'"test"', 1))
    batches = read(tmp_path / "in", tmp_path / "out")
    with pytest.raises(Failure, match="sound line 0 was rejected"):
        check_lines(FORMATS["jsonl"].sound, batches)


def test_account_of_rows_notices_a_lost_row(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / "x.parquet"
    path.write_bytes(FORMATS["parquet"].sound)
    first, *others = read(tmp_path / "in", tmp_path / "out")
    check_rows(path, [first, *others])
    with pytest.raises(Failure, match="79 documents and 0 rejects of 80 rows"):
        check_rows(path, [without_a_document(first), *others])


def test_process_that_ends_is_a_failure_of_its_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzz.sys, "executable", "false")
    found = [(result["index"], result["failure"]) for result in fuzz.batch(0, [3, 4])]
    assert found == [(3, "the process ended with 1"), (4, "the process ended with 1")]
