"""Documents by domain and value, beside the same counted in plain Python."""

import itertools
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lmsplit.manifests import crosstab as module
from lmsplit.manifests.crosstab import count_by, crosstab
from lmsplit.manifests.errors import DamagedError, ManifestError
from lmsplit.manifests.reader import Manifest


def test_crosstab_counts_every_document_once(manifest_path: Path) -> None:
    """Documents and bytes as counted row by row; the commonest value of a domain first."""
    manifest = Manifest.open(manifest_path)
    documents: Counter[tuple[str, str]] = Counter()
    num_bytes: Counter[tuple[str, str]] = Counter()
    for entry in manifest.data_files():
        for row in pq.read_table(manifest.store.path(entry.path)).to_pylist():
            documents[row["domain"], row["source"]] += 1
            num_bytes[row["domain"], row["source"]] += row["num_bytes"]
    rows = crosstab(manifest, "source").to_dicts()
    assert {(row["domain"], row["value"]): row["documents"] for row in rows} == documents
    assert {(row["domain"], row["value"]): row["bytes"] for row in rows} == num_bytes
    assert {row["tokens"] for row in rows} == {None}
    for before, after in itertools.pairwise(rows):
        assert (before["domain"], -before["documents"]) <= (after["domain"], -after["documents"])


def test_crosstab_refuses_an_unknown_column(manifest_path: Path) -> None:
    """The error names the columns that are there."""
    with pytest.raises(ManifestError, match="has no column 'licence': it has doc_id, text"):
        crosstab(Manifest.open(manifest_path), "licence")


def test_crosstab_names_what_cannot_be_read(copy_path: Path) -> None:
    """A missing data file is damage, not a traceback."""
    manifest = Manifest.open(copy_path)
    manifest.store.path(manifest.data_files()[0].path).unlink()
    with pytest.raises(DamagedError, match="cannot be read"):
        crosstab(manifest, "source")


def test_count_by_counts_combinations_in_any_number_of_batches(golden_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same as row by row, however few rows are read at once and wait; the commonest first, equals by their values."""
    manifest = Manifest.open(golden_path)
    rows = [row for batch in manifest.documents() for row in batch.to_pylist()]
    expected = Counter((row["domain"], row["license"], None if row["year"] is None else str(row["year"])) for row in rows)
    whole = count_by(manifest, ["domain", "license", "year"])
    monkeypatch.setattr(module, "_BATCH_ROWS", 3)
    monkeypatch.setattr(module, "_MAX_WAITING", 2)
    found = count_by(manifest, ["domain", "license", "year"])
    assert found is not None
    assert whole is not None
    assert found.rows() == whole.rows()
    assert {row[:3]: row[3] for row in found.rows()} == expected
    assert found["documents"].to_list() == sorted(expected.values(), reverse=True)


@pytest.mark.parametrize("waiting", [1 << 18, 0])
def test_count_by_gives_up_beyond_its_limit(golden_path: Path, monkeypatch: pytest.MonkeyPatch, waiting: int) -> None:
    """At the limit it does not, wherever it is looked at."""
    monkeypatch.setattr(module, "_MAX_WAITING", waiting)
    manifest = Manifest.open(golden_path)
    found = count_by(manifest, ["domain", "source", "license"], 9)
    assert found is not None
    assert len(found) == 9
    assert count_by(manifest, ["domain", "source", "license"], 8) is None


def test_count_by_tells_values_apart_by_their_first_characters(copy_path: Path, forger: Any) -> None:
    """Two licence texts with one beginning are one value."""

    def change(table: pa.Table) -> pa.Table:
        values = pa.array(["x" * 200 + "a", "x" * 200 + "b", "x" * 199, None])
        return table.set_column(table.schema.get_field_index("license"), table.schema.field("license"), values)

    forger.table("data/d00000/part-00000", change, card=False)
    found = count_by(Manifest.open(copy_path), ["license"])
    assert found is not None
    assert dict(found.select("value_0", "documents").iter_rows())["x" * 200] == 2
    assert "x" * 199 in found["value_0"].to_list()


def test_count_by_adds_up_tokens_where_they_are_counted(copy_path: Path, forger: Any) -> None:
    """All of them; null where there are none."""
    total = forger.count_words()
    found = count_by(Manifest.open(copy_path), ["split"])
    assert found is not None
    assert found["tokens"].sum() == total


def test_count_by_names_the_file_with_a_flipped_bit(copy_path: Path) -> None:
    """Page checksums are looked at, also in the narrow columns."""
    entry = Manifest.open(copy_path).data_files()[3]
    path = copy_path / entry.path
    chunk = pq.read_metadata(path).row_group(0).column(pq.read_schema(path).get_field_index("license"))
    data = bytearray(path.read_bytes())
    data[chunk.dictionary_page_offset + chunk.total_compressed_size - 3] ^= 1
    path.write_bytes(data)
    with pytest.raises(DamagedError, match="cannot be read") as caught:
        count_by(Manifest.open(copy_path), ["license"])
    assert caught.value.path == entry.path
