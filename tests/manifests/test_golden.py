"""The golden manifest of version 1 is read for ever: by us, and by readers that know nothing of us, with the same rows."""

import subprocess
import sys
from pathlib import Path

import datasets
import duckdb
import pandas as pd
import polars as pl
import pyarrow.parquet as pq
import pytest

from lmsplit.manifests.commit import digest
from lmsplit.manifests.reader import Manifest
from lmsplit.manifests.verify import verify_manifest

GOLDEN_BODY_SHA256 = "0743fc2de2f081efdfac4b081986680264aa61032b6bf7a7535da02485623203"
"""Changes only where a golden manifest was changed, which it must not be: add one for a new format version instead."""


@pytest.fixture(scope="module")
def expected(golden_path) -> list[dict]:
    rows = [row for batch in Manifest.open(golden_path).documents() for row in batch.to_pylist()]
    return sorted(rows, key=lambda row: row["doc_id"])


def in_order(rows: list[dict]) -> list[dict]:
    return sorted(rows, key=lambda row: row["doc_id"])


def without_nan(rows: list[dict]) -> list[dict]:
    """pandas and DuckDB's frames write NaN for null."""
    return [{key: None if value != value else value for key, value in row.items()} for row in rows]


def test_golden_manifest_is_the_one_it_was(golden_path):
    assert Manifest.open(golden_path).digest == GOLDEN_BODY_SHA256


def test_golden_manifest_is_sound(golden_path):
    assert verify_manifest(golden_path, deep=True) == []


def test_golden_body_is_written_again_as_it_is(golden_path):
    manifest = Manifest.open(golden_path)
    assert digest(manifest.body.model_dump(mode="json")) == manifest.digest


def test_golden_manifest_holds_every_case(golden_path, expected):
    manifest = Manifest.open(golden_path)
    assert {row["split"] for row in expected} == {"train", "heldout", "excluded"}
    assert {row["domain"] for row in expected} == {"d00000", "d00001", "d00002"}
    for column in ("source", "group", "license", "year"):
        assert {row[column] is None for row in expected} == {True, False}
    assert {row["num_tokens"] for row in expected} == {row["confidence"] for row in expected} == {None}
    assert any("\x00" in row["text"] for row in expected)
    assert any(ord(letter) > 0xFFFF for row in expected for letter in row["text"])
    assert set(manifest.body.counts.quarantined) == {"malformed_json", "empty_text"}
    assert set(manifest.body.counts.duplicates) == {"duplicate_id"}
    assert any(manifest.rule().prices_K)
    assert len([entry for entry in manifest.body.files if entry.path.startswith("ids/")]) == 2
    assert max(len(manifest.data_files(domain.domain)) for domain in manifest.domains) == 3


def test_golden_manifest_is_small(golden_path):
    assert sum(path.stat().st_size for path in golden_path.rglob("*")) < 300_000


def test_documents_are_placed_again_alike(golden_path, expected):
    manifest = Manifest.open(golden_path)
    placed = manifest.rule().place(manifest.encoder().encode([row["text"] for row in expected]))
    names = [domain.domain for domain in manifest.domains]
    assert [names[k] for k in placed.domain] == [row["domain"] for row in expected]
    assert [names[k] for k in placed.second_domain] == [row["second_domain"] for row in expected]
    for column in ("distance", "second_distance", "margin"):
        assert getattr(placed, column).tolist() == pytest.approx([row[column] for row in expected], abs=1e-6)


def test_index_leads_to_every_document(golden_path, expected):
    manifest = Manifest.open(golden_path)
    parts = {tuple(entry.path.split("-")[:2]): entry.path for entry in manifest.data_files()}
    for path in golden_path.glob("ids/*.parquet"):
        for row in pq.read_table(path).to_pylist():
            name = parts[f"data/{row['domain']}/part", f"{row['part']:05d}"]
            assert pq.read_table(golden_path / name)["doc_id"][row["row"]].as_py() == row["doc_id"]


def test_pyarrow_reads_the_directory(golden_path, expected):
    assert in_order(pq.read_table(golden_path / "data").to_pylist()) == expected


def test_pandas_reads_the_directory(golden_path, expected):
    frame = pd.read_parquet(golden_path / "data")
    assert without_nan(in_order(frame.to_dict("records"))) == expected


def test_polars_reads_the_files(golden_path, expected):
    assert in_order(pl.read_parquet(golden_path / "data/*/*.parquet").to_dicts()) == expected
    assert in_order(pl.scan_parquet(golden_path / "data").collect().to_dicts()) == expected


def test_duckdb_reads_the_files(golden_path, expected):
    relation = duckdb.sql(f"SELECT * FROM '{golden_path}/data/*/*.parquet'")
    assert in_order([dict(zip(relation.columns, row, strict=True)) for row in relation.fetchall()]) == expected
    counts = duckdb.sql(f"SELECT split, count(*) FROM '{golden_path}/data/*/*.parquet' GROUP BY split").fetchall()
    assert dict(counts) == {"train": 25, "heldout": 6, "excluded": 1}


def test_load_dataset_reads_every_domain_and_split(golden_path, expected, tmp_path):
    names = datasets.get_dataset_config_names(str(golden_path))
    assert names == [domain.domain for domain in Manifest.open(golden_path).domains]
    rows = []
    for name in names:
        for split, loaded in datasets.load_dataset(str(golden_path), name, cache_dir=str(tmp_path)).items():
            found = loaded.to_list()
            assert {(row["domain"], row["split"]) for row in found} == {(name, str(split))}
            rows += found
    assert in_order(rows) == expected


def test_load_dataset_reads_an_unpublished_file_never(copy_path, tmp_path):
    stray = next(copy_path.glob("data/d00002/part-00000-*"))
    (stray.parent / "part-00099-0123456789abcdef.parquet").write_bytes(stray.read_bytes())
    loaded = datasets.load_dataset(str(copy_path), "d00002", cache_dir=str(tmp_path / "cache"))
    assert {str(split): len(rows) for split, rows in loaded.items()} == {"train": 8, "heldout": 2, "excluded": 1}


def test_script_writes_a_sound_manifest_with_the_same_documents(golden_path, expected, tmp_path):
    script = Path(__file__).parent.parent / "golden" / "make_golden.py"
    subprocess.run([sys.executable, str(script), str(tmp_path / "made")], check=True)
    assert verify_manifest(tmp_path / "made", deep=True) == []
    rows = [row for batch in Manifest.open(tmp_path / "made").documents() for row in batch.to_pylist()]
    assert [row["text"] for row in in_order(rows)] == [row["text"] for row in expected]
    assert [row["domain"] for row in in_order(rows)] == [row["domain"] for row in expected]
