"""Documents drawn at random: the same each time, uniform where all is read, and as they are at their place."""

from pathlib import Path

import polars as pl
import pytest

from lmsplit.manifests.errors import DamagedError
from lmsplit.manifests.reader import Manifest
from lmsplit.manifests.sample import sample_rows


def test_sample_is_the_same_each_time_and_lies_where_it_says(manifest_path: Path) -> None:
    """Every row is read back at its path and row."""
    manifest = Manifest.open(manifest_path)
    drawn = sample_rows(manifest, 50, ["doc_id", "domain"], 1 << 30)
    assert drawn == sample_rows(manifest, 50, ["doc_id", "domain"], 1 << 30)
    assert len({row["doc_id"] for row in drawn.rows}) == 50
    for row in drawn.rows:
        there = pl.read_parquet(manifest.store.path(row["path"]))[row["row"]]
        assert (there["doc_id"][0], there["domain"][0]) == (row["doc_id"], row["domain"])


def test_sample_of_more_than_there_is_has_every_document_once(manifest_path: Path) -> None:
    """In the order of the files."""
    manifest = Manifest.open(manifest_path)
    drawn = sample_rows(manifest, 10**6, ["doc_id"], 1 << 30)
    assert [row["doc_id"] for row in drawn.rows] == manifest.scan().select("doc_id").collect()["doc_id"].to_list()
    assert drawn.groups_read == drawn.num_groups


def test_sample_reads_no_more_row_groups_than_it_may(manifest_path: Path) -> None:
    """At least one, and the documents are all of those read."""
    manifest = Manifest.open(manifest_path)
    drawn = sample_rows(manifest, 10**6, ["doc_id"], 1)
    assert drawn.groups_read == 1 < drawn.num_groups
    assert len({row["path"] for row in drawn.rows}) == 1


def test_sample_names_what_cannot_be_read(copy_path: Path) -> None:
    """A missing file is damage."""
    manifest = Manifest.open(copy_path)
    manifest.store.path(manifest.data_files()[0].path).unlink()
    with pytest.raises(DamagedError, match="cannot be read"):
        sample_rows(manifest, 5, ["doc_id"], 1)
