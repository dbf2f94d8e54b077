"""The table without texts: every row and column but one, as they stand in the data files, and joinable to the corpus."""

from pathlib import Path

import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lmsplit.manifests import export_slim as slim
from lmsplit.manifests.errors import ConfigurationError, DamagedError, ManifestError
from lmsplit.manifests.export_slim import export_slim, slim_schema
from lmsplit.manifests.reader import Manifest
from lmsplit.manifests.schema import FIXED_COLUMNS


def expected_rows(path: Path, domains: list[str]) -> list[dict]:
    rows = []
    for domain in domains:
        for file in sorted((path / "data" / domain).glob("*.parquet")):
            rows += pq.read_table(file).to_pylist()
    return [{name: value for name, value in row.items() if name != "text"} for row in rows]


def test_slim_holds_every_row_without_its_text(golden_path: Path, tmp_path: Path) -> None:
    """In the order of domain, part and row."""
    output = tmp_path / "slim.parquet"
    assert export_slim(Manifest.open(golden_path), output) == 32
    assert pq.read_table(output).to_pylist() == expected_rows(golden_path, ["d00000", "d00001", "d00002"])


def test_slim_has_the_columns_of_the_format(golden_path: Path, tmp_path: Path) -> None:
    """With types and nullability, the kept ones last; the metadata names the manifest."""
    manifest = Manifest.open(golden_path)
    export_slim(manifest, tmp_path / "slim.parquet")
    found = pq.read_schema(tmp_path / "slim.parquet")
    data = pq.read_schema(golden_path / manifest.data_files()[0].path)
    assert found.names == [name for name in FIXED_COLUMNS if name != "text"] + ["license", "year"]
    assert [found.field(name) for name in found.names] == [data.field(name) for name in found.names]
    assert found.metadata == {b"lmsplit.manifest": manifest.digest.encode(), b"lmsplit.schema_version": b"1"}
    assert slim_schema(manifest).equals(found, check_metadata=True)


def test_slim_is_compressed_and_has_page_checksums(golden_path: Path, tmp_path: Path) -> None:
    """A flipped bit in a page is found by a reader that checks."""
    output = tmp_path / "slim.parquet"
    export_slim(Manifest.open(golden_path), output)
    chunk = pq.read_metadata(output).row_group(0).column(0)
    assert chunk.compression == "ZSTD"
    data = bytearray(output.read_bytes())
    data[chunk.dictionary_page_offset + chunk.total_compressed_size - 3] ^= 1
    output.write_bytes(data)
    with pytest.raises(OSError, match="CRC"):
        pq.read_table(output, page_checksum_verification=True)


def test_slim_holds_the_domains_asked_for(golden_path: Path, tmp_path: Path) -> None:
    """Each once, and no other."""
    output = tmp_path / "slim.parquet"
    assert export_slim(Manifest.open(golden_path), output, ["d00002", "d00001", "d00002"]) == 21
    assert pq.read_table(output).to_pylist() == expected_rows(golden_path, ["d00001", "d00002"])


def test_slim_joins_the_corpus_by_place(golden_path: Path, tmp_path: Path) -> None:
    """DuckDB, which knows nothing of us, finds every text again."""
    export_slim(Manifest.open(golden_path), tmp_path / "slim.parquet")
    joined = duckdb.sql(
        f"SELECT count(*), count(DISTINCT s.doc_id) FROM '{tmp_path}/slim.parquet' s JOIN '{golden_path}/data/*/*.parquet' c "
        "USING (source_path, source_row) WHERE s.text_sha256 = sha256(c.text) AND s.doc_id = c.doc_id"
    )
    assert joined.fetchall() == [(32, 32)]


def test_slim_of_a_published_manifest_reports_its_rows(manifest_path: Path, tmp_path: Path) -> None:
    """The calls add up to all rows, and the file to what the domain table says."""
    manifest, calls = Manifest.open(manifest_path), []
    total = export_slim(manifest, tmp_path / "slim.parquet", progress=calls.append)
    assert sum(calls) == total == manifest.body.counts.published.records
    counted = pl.read_parquet(tmp_path / "slim.parquet").group_by("domain").len()
    assert dict(counted.iter_rows()) == {domain.domain: domain.documents for domain in manifest.domains}


@pytest.mark.parametrize("bound", ["ROW_GROUP_ROWS", "ROW_GROUP_BYTES"])
def test_slim_streams_in_row_groups(golden_path: Path, tmp_path: Path, monkeypatch, bound: str) -> None:
    """A group is closed at so many rows or bytes; the rows are the same."""
    monkeypatch.setattr(slim, bound, 5)
    export_slim(Manifest.open(golden_path), tmp_path / "slim.parquet")
    assert pq.read_metadata(tmp_path / "slim.parquet").num_row_groups > 3
    assert pq.read_table(tmp_path / "slim.parquet").to_pylist() == expected_rows(golden_path, ["d00000", "d00001", "d00002"])


def test_slim_of_a_domain_without_documents_is_an_empty_table(copy_path: Path, forger, tmp_path: Path) -> None:
    """With all its columns."""

    def leave_out(body: dict) -> None:
        body["files"] = [entry for entry in body["files"] if not entry["path"].startswith("data/d00001/")]

    forger.body(leave_out, card=False)
    manifest = Manifest.open(copy_path)
    assert export_slim(manifest, tmp_path / "slim.parquet", ["d00001"]) == 0
    assert pq.read_schema(tmp_path / "slim.parquet").equals(slim_schema(manifest))


def test_slim_refuses_an_unknown_domain_and_an_output_that_exists(golden_path: Path, tmp_path: Path) -> None:
    """Before anything is written."""
    manifest = Manifest.open(golden_path)
    with pytest.raises(ManifestError, match="has no domain 'd9'"):
        export_slim(manifest, tmp_path / "slim.parquet", ["d9"])
    (tmp_path / "slim.parquet").touch()
    with pytest.raises(ConfigurationError, match=r"slim\.parquet exists"):
        export_slim(manifest, tmp_path / "slim.parquet")


def test_slim_leaves_nothing_when_a_file_cannot_be_read(copy_path: Path, forger, tmp_path: Path) -> None:
    """The last domain's file is missing: no half table stays."""
    (copy_path / forger.path("data/d00002")).unlink()
    with pytest.raises(DamagedError, match="cannot be read"):
        export_slim(Manifest.open(copy_path), tmp_path / "slim.parquet")
    assert list(tmp_path.glob("*slim*")) == list(tmp_path.glob(".*slim*")) == []


def test_slim_names_a_null_where_there_may_be_none(copy_path: Path, forger, tmp_path: Path) -> None:
    """A forged file does not become a sound-looking table."""

    def forge(table):
        column = table.schema.get_field_index("source_path")
        field = table.schema.field("source_path").with_nullable(True)
        return table.set_column(column, field, pa.nulls(table.num_rows, pa.string()))

    forger.table("data/d00000/part-00000", forge, card=False)
    with pytest.raises(DamagedError, match="are not as the commit says"):
        export_slim(Manifest.open(copy_path), tmp_path / "slim.parquet")
