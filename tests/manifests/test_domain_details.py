"""What one domain's documents say of it, beside the same from all its rows."""

from pathlib import Path

import polars as pl
import pytest

from lmsplit.manifests.domain_details import BIN, domain_details
from lmsplit.manifests.errors import DamagedError, ManifestError
from lmsplit.manifests.reader import Manifest


def test_details_count_as_the_documents_do(manifest_path: Path) -> None:
    """Distances by bin, runners-up, and the five commonest sources."""
    manifest = Manifest.open(manifest_path)
    for domain in manifest.domains:
        rows = manifest.scan().filter(pl.col("domain") == domain.domain).collect()
        found = domain_details(manifest, domain.domain)
        assert sum(found["distances"]) == rows.height
        below = int((rows["distance"] < 20 * BIN).sum())
        assert sum(found["distances"][:20]) == pytest.approx(below, abs=2)  # a float32 at the bin's edge
        assert found["distances"][-1] > 0
        counts = rows["second_domain"].value_counts()
        assert {each["value"]: each["documents"] for each in found["neighbours"]} == dict(counts.iter_rows())
        sources = rows["source"].value_counts(sort=True)
        assert [each["documents"] for each in found["values"]["source"]] == sources["count"].head(5).to_list()


def test_details_of_no_domain(manifest_path: Path) -> None:
    """The error is the reader's."""
    with pytest.raises(ManifestError, match="has no domain 'd00099'"):
        domain_details(Manifest.open(manifest_path), "d00099")


def test_details_name_what_cannot_be_read(copy_path: Path) -> None:
    """A missing file is damage."""
    manifest = Manifest.open(copy_path)
    manifest.store.path(manifest.data_files("d00001")[0].path).unlink()
    with pytest.raises(DamagedError, match="d00001 cannot be read"):
        domain_details(manifest, "d00001")
