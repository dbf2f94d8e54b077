"""Placing: what a row says agrees with the published rule, and a piece is sorted by split and domain."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lmsplit.manifests.reader import Manifest
from lmsplit.partition.place import write_piece
from tests.partition.corpora import rows


def test_rows_agree_with_the_published_rule(mixed_manifest: Path) -> None:
    manifest = Manifest.open(mixed_manifest)
    published = rows(mixed_manifest)
    embeddings_ND = manifest.encoder().encode([row["text"] for row in published]).astype(np.float64)
    costs_NK = 1 - embeddings_ND @ manifest.rule().centroids_KD.astype(np.float64).T
    ranked_NK = np.argsort(costs_NK, axis=1, kind="stable")
    for row, costs, ranked in zip(published, costs_NK, ranked_NK, strict=True):
        assert (row["domain"], row["second_domain"]) == (f"d{ranked[0]:05d}", f"d{ranked[1]:05d}")
        assert row["distance"] == pytest.approx(costs[ranked[0]], abs=1e-6)
        assert row["second_distance"] == pytest.approx(costs[ranked[1]], abs=1e-6)
        assert row["margin"] == pytest.approx(costs[ranked[1]] - costs[ranked[0]], abs=1e-6)
        assert (row["placed_by"], row["confidence"]) == ("centroids", None)


def test_piece_has_a_row_group_for_each_split_and_domain_in_the_order_of_the_input(tmp_path: Path) -> None:
    columns = {
        "split": ["train", "heldout", "train", "train"],
        "domain": ["d00001", "d00001", "d00000", "d00001"],
        "num_bytes": [1, 2, 4, 8],
        "distance": pa.array([0.5, 0.25, 1.0, 0.25], pa.float32()),
    }
    groups = write_piece(pa.table(columns), tmp_path / "piece")
    assert [(group["split"], group["domain"], group["rows"]) for group in groups] == [
        ("heldout", "d00001", 1), ("train", "d00000", 1), ("train", "d00001", 2),
    ]  # fmt: skip
    assert [(group["text_bytes"], group["distance_sum"]) for group in groups] == [(2, 0.25), (4, 1.0), (9, 0.75)]
    with pq.ParquetFile(tmp_path / "piece") as piece:
        assert piece.read_row_group(2)["num_bytes"].to_pylist() == [1, 8]


def test_empty_unit_leaves_no_piece(tmp_path: Path) -> None:
    assert write_piece(pa.table({"split": pa.array([], pa.string())}), tmp_path / "piece") == []
    assert not (tmp_path / "piece").exists()
