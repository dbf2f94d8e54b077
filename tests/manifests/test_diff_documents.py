"""The file of the documents that differ: whole under its name or not there, and never over another file."""

from pathlib import Path

import polars as pl
import pyarrow.parquet as pq
import pytest

from lmsplit.manifests.diff_documents import SCHEMA, documents_file
from lmsplit.manifests.errors import ConfigurationError
from lmsplit.manifests.reader import Manifest


@pytest.fixture
def a(golden_path: Path) -> Manifest:
    """The first of the two manifests."""
    return Manifest.open(golden_path)


def rows(*doc_ids: str) -> pl.DataFrame:
    """Rows of which only the id and the status are given; a column too many."""
    empty = pl.from_arrow(SCHEMA.empty_table())
    frame = pl.DataFrame({"doc_id": doc_ids, "status": ["moved"] * len(doc_ids), "extra": [1] * len(doc_ids)})
    return pl.concat([empty, frame], how="diagonal")


def test_documents_file_has_its_schema_and_the_rows_of_every_call_by_id(a: Manifest, tmp_path: Path):
    """Inside a call sorted by id, so that the file is the same whatever order a join gave."""
    with documents_file(a, tmp_path / "out.parquet") as write:
        write(rows("b", "a"))
        write(rows())
        write(rows("c", "0"))
    table = pq.read_table(tmp_path / "out.parquet")
    assert table.schema.equals(SCHEMA)
    assert table["doc_id"].to_pylist() == ["a", "b", "0", "c"]
    assert [path.name for path in tmp_path.iterdir()] == ["out.parquet"]


def test_documents_file_is_not_there_before_the_end(a: Manifest, tmp_path: Path):
    """Whoever looks sees no half a file."""
    with documents_file(a, tmp_path / "out.parquet") as write:
        write(rows("a"))
        assert not (tmp_path / "out.parquet").exists()
        assert all(path.name.startswith(".") for path in tmp_path.iterdir())
    assert (tmp_path / "out.parquet").exists()


def test_documents_file_leaves_nothing_after_an_error(a: Manifest, tmp_path: Path):
    """The error passes through."""

    def fail() -> None:
        with documents_file(a, tmp_path / "out.parquet") as write:
            write(rows("a"))
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_documents_file_refuses_a_name_that_is_taken(a: Manifest, tmp_path: Path):
    """Also by a link that leads nowhere."""
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("file", "link"):
        with pytest.raises(ConfigurationError, match=f"{name} exists"), documents_file(a, tmp_path / name):
            pass


def test_documents_file_refuses_a_name_that_was_taken_meanwhile(a: Manifest, tmp_path: Path):
    """The other's file stays."""
    with pytest.raises(ConfigurationError, match=r"out\.parquet exists"), documents_file(a, tmp_path / "out.parquet"):
        (tmp_path / "out.parquet").write_bytes(b"another's")
    assert (tmp_path / "out.parquet").read_bytes() == b"another's"
    assert len(list(tmp_path.iterdir())) == 1
