"""What reading a unit back gives, and what it refuses."""

import random
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lmsplit.manifests.errors import InputError
from lmsplit.manifests.store import LocalStore
from lmsplit.partition import decompression, reading
from lmsplit.partition.corpus import survey
from lmsplit.partition.reading import read_unit
from lmsplit.partition.records import BATCH_BYTES, Columns, Limits
from lmsplit.partition.tables import TableRecords
from tests.partition.corpora import ROWS, documents, packed, read, read_path, write


def test_every_format_gives_the_same_documents(tmp_path: Path) -> None:
    expected = None
    for suffix in ("jsonl", "jsonl.gz", "jsonl.zst", "parquet"):
        table = documents(read_path(write(tmp_path / f"x.{suffix}"))).select(["doc_id", "text", "source", "group", "source_row"])
        expected = expected or table
        assert table.equals(expected)
    assert expected is not None
    assert expected["text"].to_pylist() == [row["text"] for row in ROWS]


def test_batches_depend_on_the_unit_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.jsonl", [{"text": "x"}] * 5000 + [{"text": "y" * 2**21}] * 5)
    corpus = survey([str(path)], Columns(), unit_bytes=2**30)
    sizes = [batch.num_records for batch in read(corpus)]
    assert sizes == [4096, 904 + 4, 1]
    monkeypatch.setattr(decompression, "CHUNK_BYTES", 1000)
    assert [batch.num_records for batch in read(corpus)] == sizes


def test_parquet_batches_shrink_when_rows_are_large(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.parquet",
        [{"text": f"{row}" * 2**20} for row in range(20)],
        use_dictionary=False,
        row_group_size=20,
    )
    assert max(batch.num_bytes for batch in read_path(path)) < 16 * 2**20


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz", "jsonl.zst"])
def test_byte_order_mark_and_oversized_line_are_taken_care_of(tmp_path: Path, suffix: str) -> None:
    data = b'\xef\xbb\xbf{"text": "first"}\n' + b'{"text": "' + b"a" * 5000 + b'"}\n\n{"text": "last"}'
    path = tmp_path / f"x.{suffix}"
    path.write_bytes(packed(suffix, data))
    (batch,) = read_path(path, limits=Limits(1000))
    assert batch.documents["doc_id"].to_pylist() == [f"x.{suffix}:0", f"x.{suffix}:3"]
    assert batch.rejected.select(["source_row", "byte_offset", "reason", "num_bytes"]).to_pylist() == [
        {"source_row": 1, "byte_offset": 21, "reason": "record_too_large", "num_bytes": 5012}
    ]


def test_bit_flips_in_parquet_never_go_unnoticed(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", compression="zstd")
    whole, expected = path.read_bytes(), documents(read_path(path))
    footer = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
    corpus = survey([str(path)], Columns())
    refused = 0
    for position in range(4, footer, max(1, footer // 80)):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 4]) + whole[position + 1 :])
        try:
            assert documents(read(corpus)).equals(expected)  # a field of a page header that nobody reads
        except InputError as error:
            assert "a.parquet: row group" in str(error)  # noqa: PT017
            refused += 1
    assert refused >= 60


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.parquet"])
def test_file_that_changed_after_the_survey_is_refused(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name)
    corpus = survey([str(path)], Columns())
    size = path.stat().st_size
    with path.open("ab") as stream:
        stream.write(b"\n")
    with pytest.raises(
        InputError,
        match=rf"{name} changed after it was planned: it has {size + 1} bytes, the plan says {size}",
    ):
        read(corpus)
    path.unlink()
    with pytest.raises(InputError, match=rf"{name} changed after it was planned: it has 0 bytes"):
        read(corpus)


def test_lines_that_moved_within_a_file_of_the_same_size_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", ROWS[:3])
    corpus = survey([str(path)], Columns())
    path.write_bytes(path.read_bytes().replace(b"\n", b" ", 1))
    with pytest.raises(InputError, match="changed after it was planned: 2 lines from byte 0 on, not 3"):
        read(corpus)


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz"])
def test_empty_files_are_listed_and_give_nothing(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"a.{suffix}").write_bytes(b"")
    write(tmp_path / "b.parquet", ROWS[:2])
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "c.parquet")
    corpus = survey([str(tmp_path)], Columns())
    assert [file.path for file in corpus.files] == [f"a.{suffix}", "b.parquet", "c.parquet"]
    assert documents(read(corpus)).num_rows == 2


def test_moved_corpus_reads_the_same_under_its_new_root(tmp_path: Path) -> None:
    write(tmp_path / "old" / "a.jsonl")
    corpus = survey([str(tmp_path / "old")], Columns())
    (tmp_path / "old").rename(tmp_path / "new")
    (batch,) = read_unit(LocalStore(tmp_path / "new"), corpus.units[0], Columns(), corpus.keep_types, Limits())
    assert batch.num_records == 300


READ_IN_LITTLE_MEMORY = """
import sys
from tests.partition.corpora import read_path
from pathlib import Path

def peak():
    facts = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return int(facts["VmHWM"].split()[0]) * 1024

before = peak()
from lmsplit.partition.corpus import survey
from lmsplit.partition.reading import read_unit
from lmsplit.partition.records import Columns, Limits
from lmsplit.manifests.store import open_store
corpus = survey([sys.argv[1]], Columns())
num_bytes = 0
try:
    for unit in corpus.units:
        for batch in read_unit(open_store(corpus.root), unit, Columns(), (), Limits()):
            num_bytes += batch.num_bytes
finally:
    print(num_bytes, peak() - before)
"""


def written_small(path: Path, how: str, text: str, num_rows: int) -> None:
    """Write a Parquet file of a text over and over, by one of the encodings that make it small."""
    texts = pa.array([f"{text}{row}" if how == "prefix" else text for row in range(num_rows)])
    table = pa.table({"text": texts.dictionary_encode() if how == "dictionary type" else texts})
    encoding = {"use_dictionary": False, "column_encoding": {"text": "DELTA_BYTE_ARRAY"}} if how == "prefix" else {}
    pq.write_table(table, path, compression="zstd", **encoding)


@pytest.mark.parametrize("how", ["dictionary", "dictionary type", "prefix"])
def test_parquet_that_decodes_to_far_more_than_it_says_is_read_in_little_memory(tmp_path: Path, how: str) -> None:
    text = random.Random(0).randbytes(450_000).hex()  # 450 kB compressed
    written_small(tmp_path / "a.parquet", how, text, 440)
    assert (tmp_path / "a.parquet").stat().st_size < 10**6
    command = [sys.executable, "-c", READ_IN_LITTLE_MEMORY, str(tmp_path / "a.parquet")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    num_bytes, grown = map(int, done.stdout.split())
    assert 396 * 10**6 <= num_bytes < 397 * 10**6
    assert grown < 400 * 10**6  # decoded at once: 800 or more
    batches = read_path(tmp_path / "a.parquet")
    assert max(batch.num_bytes for batch in batches) < 8 * BATCH_BYTES
    assert documents(batches)["source_row"].to_pylist() == list(range(440))


@pytest.mark.parametrize("how", ["dictionary", "dictionary type", "prefix"])
def test_parquet_bomb_is_refused_before_it_takes_memory(tmp_path: Path, how: str) -> None:
    written_small(tmp_path / "a.parquet", how, "a" * 900_000, 1000)
    assert (tmp_path / "a.parquet").stat().st_size < 2000
    with pytest.raises(InputError, match=r"^a.parquet: \d+ bytes of a row group expand to \d{8,9} and more, .* taken for a bomb"):
        read_path(tmp_path / "a.parquet")
    command = [sys.executable, "-c", READ_IN_LITTLE_MEMORY, str(tmp_path / "a.parquet")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert int(done.stdout.split()[1]) < 400 * 10**6  # decoded at once: 1,800 and more


def test_parquet_rows_stay_in_order_when_steps_and_batches_do_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.parquet", row_group_size=130)
    expected = documents(read_path(path))
    monkeypatch.setattr(reading, "_STEP_ROWS", 7)
    monkeypatch.setattr(reading, "BATCH_DOCUMENTS", 30)
    batches = read_path(path)
    assert [batch.num_records for batch in batches] == 2 * [30, 30, 30, 30, 10] + [30, 10]
    assert documents(batches).equals(expected)


def test_memory_error_is_not_taken_for_a_damaged_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def judge(*arguments: object) -> None:
        raise pa.lib.ArrowMemoryError("malloc of size 64 failed")

    monkeypatch.setattr(TableRecords, "judge", judge)
    with pytest.raises(MemoryError, match="malloc of size 64 failed"):
        read_path(write(tmp_path / "a.parquet"))
