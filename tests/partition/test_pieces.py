"""Pieces: a unit's documents, sorted by split and domain."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from lmsplit.partition.pieces import write_piece


def test_piece_has_a_row_group_for_each_split_and_domain_in_the_order_of_the_input(tmp_path: Path) -> None:
    columns = {
        "split": ["train", "heldout", "train", "train"],
        "domain": ["d00001", "d00001", "d00000", "d00001"],
        "num_bytes": [1, 2, 4, 8],
        "num_tokens": pa.array([3, None, None, 5], pa.int32()),
        "distance": pa.array([0.5, 0.25, 1.0, 0.25], pa.float32()),
    }
    groups = write_piece(pa.table(columns), tmp_path / "piece")
    assert [(group["split"], group["domain"], group["rows"]) for group in groups] == [
        ("heldout", "d00001", 1), ("train", "d00000", 1), ("train", "d00001", 2),
    ]  # fmt: skip
    assert [(group["text_bytes"], group["distance_sum"]) for group in groups] == [(2, 0.25), (4, 1.0), (9, 0.75)]
    assert [group["tokens"] for group in groups] == [None, None, 8]
    with pq.ParquetFile(tmp_path / "piece") as piece:
        assert piece.read_row_group(2)["num_bytes"].to_pylist() == [1, 8]


def test_empty_unit_leaves_no_piece(tmp_path: Path) -> None:
    assert write_piece(pa.table({"split": pa.array([], pa.string())}), tmp_path / "piece") == []
    assert not (tmp_path / "piece").exists()
