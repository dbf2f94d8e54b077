"""Documents by domain and value, beside the same counted in plain Python."""

from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from lmsplit.manifests.crosstab import crosstab
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
    for before, after in zip(rows, rows[1:], strict=False):
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
