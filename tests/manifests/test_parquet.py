"""Parquet files of a store: the same rows from a directory and from elsewhere, and every file closed again."""

import os
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest

from lmsplit.manifests import diff as comparing
from lmsplit.manifests import schema
from lmsplit.manifests.commit import read_commit
from lmsplit.manifests.deep import verify_contents
from lmsplit.manifests.domain_details import domain_details
from lmsplit.manifests.errors import DamagedError
from lmsplit.manifests.export_slim import export_slim
from lmsplit.manifests.parquet import parquet_file, read_columns, read_footer, read_rows, scan
from lmsplit.manifests.reader import Manifest
from lmsplit.manifests.report_facts import Limits, facts
from lmsplit.manifests.sample import sample_rows
from lmsplit.manifests.similar_ids import similar_ids
from lmsplit.manifests.store import LocalStore
from tests.manifests.small_manifests import document, flat_rule, make_manifest


class Elsewhere:
    """A directory that gives its files to those who do not know where they lie; remembers what it opened."""

    is_local = False

    def __init__(self, root: Path) -> None:
        self._local = LocalStore(root)
        self.location = f"file://{root}"
        self.opened: list[Any] = []

    def __getattr__(self, name: str) -> Any:
        assert name not in {"root", "path"}, "only a local store has paths"
        return getattr(self._local, name)

    def where(self, name: str) -> str:
        return f"{self.location}/{name}"

    def input(self, name: str) -> pa.NativeFile:
        self.opened.append(self._local.input(name))
        return self.opened[-1]

    def open(self, name: str) -> Any:
        self.opened.append(self._local.open(name))
        return self.opened[-1]


def elsewhere(path: Path) -> Manifest:
    store = Elsewhere(path)
    return Manifest(store, *read_commit(store))


@pytest.fixture
def near(golden_path) -> Manifest:
    return Manifest.open(golden_path)


@pytest.fixture
def far(golden_path) -> Manifest:
    return elsewhere(golden_path)


def test_scan_gives_the_same_rows_in_the_same_order(near, far):
    assert far.scan().collect().equals(near.scan().collect())
    assert far.scan("d00001").collect().equals(near.scan("d00001").collect())


def test_scan_stops_after_the_rows_that_are_wanted(near, far):
    assert far.scan().head(13).collect().equals(near.scan().head(13).collect())
    assert len(far.store.opened) < len(near.data_files())


def test_scan_gives_the_same_rows_to_a_query(near, far):
    def asked(manifest: Manifest) -> pl.DataFrame:
        rows = manifest.scan().filter((pl.col("domain") == "d00002") & pl.col("group").is_null())
        return rows.select("doc_id", "license", pl.col("text").str.len_bytes()).sort("doc_id").collect(engine="streaming")

    assert len(asked(near)) > 0
    assert asked(far).equals(asked(near))


def test_scan_of_no_files_has_the_columns(near):
    rows = scan(near.store, [], schema.QUARANTINE).collect()
    assert (rows.columns, len(rows)) == (schema.QUARANTINE.names, 0)


def test_scan_takes_a_directory_name_for_no_pattern(copy_path):
    copy_path.rename(moved := copy_path.with_name("a[1]*"))
    manifest = Manifest.open(moved)
    assert len(manifest.scan().collect()) == 32
    assert len(read_columns(manifest.store, manifest.data_files()[0].path, ["doc_id"])) == manifest.data_files()[0].rows


def test_columns_are_the_same_wherever_they_lie(near, far):
    for entry in near.data_files():
        columns = ["doc_id", "num_bytes", "group"]
        assert read_columns(far.store, entry.path, columns).equals(read_columns(near.store, entry.path, columns))


def read(manifest: Manifest) -> dict[str, Any]:
    """What everything finds that reads Parquet files but by a scan, by its name."""
    rule, encoder = manifest.rule(), manifest.encoder()
    texts = [document["text"] for batch in manifest.documents(columns=["text"]) for document in batch.to_pylist()]
    return {
        "domains": manifest.domains,
        "documents": [batch.to_pylist() for batch in manifest.documents(split="train")],
        "find": manifest.find("book-11"),
        "explain": manifest.explain("book-11").to_json(),
        "similar": similar_ids(manifest, "book-111"),
        "sample": sample_rows(manifest, 7, ["doc_id"], 1 << 20),
        "contents": verify_contents(manifest, 10, encoder, lambda _: None, lambda: iter(()), texts=True),
        "placed": rule.place(encoder.encode(texts)).domain.tolist(),
    }


def test_what_is_read_is_the_same_wherever_it_lies(near, far):
    expected = read(near)
    assert expected["find"].document is not None
    assert (expected["contents"], len(expected["similar"])) == ([], 5)
    assert read(far) == expected


def test_what_is_scanned_is_the_same_wherever_it_lies(near, far):
    assert domain_details(far, "d00001") == domain_details(near, "d00001")
    assert facts(far, Limits()) == facts(near, Limits())


def test_every_file_that_is_read_is_closed_again(far, tmp_path):
    read(far)
    export_slim(far, tmp_path / "slim.parquet")
    assert len(far.store.opened) > 50
    assert all(file.closed for file in far.store.opened)


def test_files_are_closed_where_reading_them_fails(far, copy_path):
    store = Elsewhere(copy_path)
    name = far.data_files()[0].path
    (copy_path / name).write_bytes(b"no Parquet at all")
    for reads in (read_footer, read_rows):
        with pytest.raises(pa.ArrowInvalid):
            reads(store, name)
    with pytest.raises(pa.ArrowInvalid), parquet_file(store, name):
        pass
    assert [file.closed for file in store.opened] == [True] * 3


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts the descriptors that Linux lists")  # noqa: PTH112
def test_a_file_left_early_leaves_no_descriptor(near):
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    for _ in range(20):
        next(near.documents())
        near.find("book-11")
    assert len(os.listdir("/proc/self/fd")) <= before + 1  # noqa: PTH208


def test_a_missing_file_elsewhere_is_damage(copy_path, tmp_path):
    manifest = elsewhere(copy_path)
    name = manifest.data_files("d00001")[0].path
    (copy_path / name).unlink()
    with pytest.raises(DamagedError, match=rf"^file://.*{name} cannot be read .*run lmsplit verify"):
        list(manifest.documents())
    with pytest.raises(DamagedError, match="d00001 cannot be read"):
        domain_details(manifest, "d00001")
    with pytest.raises(DamagedError, match=r"the documents of file://.* cannot be read .*run lmsplit verify file://"):
        comparing.diff(manifest, make_manifest(tmp_path / "other", [document("a", 0)], flat_rule(2)))
