"""Pieces: a unit's documents by domain and split, and what is said of them."""

import itertools
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmsplit.manifests.layout import domain_name
from lmsplit.manifests.schema import SPLITS
from lmsplit.partition import pieces
from lmsplit.partition.pieces import GROUPS, write_piece


def unit_of(documents: list[tuple[int, str, int, int | None]]) -> pa.Table:
    """Documents of a domain, a split, bytes and tokens; `row` counts them, the distance is a quarter of it."""
    domains, splits, sizes, tokens = zip(*documents, strict=True) if documents else ([], [], [], [])
    columns = {
        "domain": pa.array([domain_name(domain) for domain in domains], pa.string()),
        "split": pa.array(splits, pa.string()),
        "num_bytes": pa.array(sizes, pa.int64()),
        "num_tokens": pa.array(tokens, pa.int32()),
        "distance": pa.array(np.arange(len(documents)) / 4, pa.float32()),
        "row": pa.array(range(len(documents)), pa.int64()),
    }
    return pa.table(columns)


def test_piece_is_sorted_by_domain_then_split_then_input_and_says_what_it_holds(tmp_path: Path) -> None:
    documents = [
        (10, "train", 1, 3),
        (2, "excluded", 2, None),
        (10, "heldout", 4, None),
        (2, "train", 8, 5),
        (10, "train", 16, 7),
    ]
    groups = write_piece(unit_of(documents), tmp_path / "piece")
    assert pq.read_table(tmp_path / "piece")["row"].to_pylist() == [3, 1, 0, 4, 2]
    assert groups.to_pylist() == [
        {"domain": 2, "split": 0, "rows": 1, "text_bytes": 8, "tokens": 5, "distance_sum": 0.75, "row_group": 0, "row": 0},
        {"domain": 2, "split": 2, "rows": 1, "text_bytes": 2, "tokens": None, "distance_sum": 0.25, "row_group": 0, "row": 1},
        {"domain": 10, "split": 0, "rows": 2, "text_bytes": 17, "tokens": 10, "distance_sum": 1.0, "row_group": 0, "row": 2},
        {"domain": 10, "split": 1, "rows": 1, "text_bytes": 4, "tokens": None, "distance_sum": 0.5, "row_group": 0, "row": 4},
    ]


@pytest.mark.parametrize(
    ("sizes", "row_groups"),
    [([40, 59, 1, 1], [0, 0, 0, 1]), ([40, 100, 1], [0, 1, 2]), ([99, 250, 300, 5, 5], [0, 1, 2, 3, 3]), ([100], [0])],
)
def test_row_group_is_full_at_its_size_and_large_groups_share_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sizes: list[int], row_groups: list[int]
) -> None:
    monkeypatch.setattr(pieces, "ROW_GROUP_BYTES", 100)
    groups = write_piece(unit_of([(domain, "train", size, None) for domain, size in enumerate(sizes)]), tmp_path / "piece")
    assert groups["row_group"].to_pylist() == row_groups


def test_row_group_is_full_at_its_number_of_rows_however_short_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "ROW_GROUP_ROWS", 3)
    domains = [0, 1, 1, 2, 3, 3, 3, 4]
    groups = write_piece(unit_of([(domain, "train", 1, None) for domain in domains]), tmp_path / "piece")
    assert groups["row_group"].to_pylist() == [0, 0, 1, 2, 3]


def test_empty_unit_leaves_no_piece(tmp_path: Path) -> None:
    assert write_piece(unit_of([]), tmp_path / "piece") == GROUPS.empty_table()
    assert not (tmp_path / "piece").exists()


def test_thousands_of_domains_take_few_row_groups(tmp_path: Path) -> None:
    documents = [(domain * 7 % 4096, SPLITS[domain % 3], 100, 1) for domain in range(3 * 4096)]
    groups = write_piece(unit_of(documents), tmp_path / "piece")
    assert len(groups) == 3 * 4096
    assert pq.read_metadata(tmp_path / "piece").num_row_groups == 2


domains = st.sampled_from([0, 1, 2, 30, 99_999])
documents = st.lists(st.tuples(domains, st.sampled_from(SPLITS), st.integers(1, 90), st.integers(0, 9)))


@given(documents, st.integers(1, 9), st.integers(1, 200), st.integers(1, 5))
def test_every_document_is_where_the_groups_say(
    tmp_path_factory: pytest.TempPathFactory,
    held: list[tuple[int, str, int, int | None]],
    max_rows: int,
    max_bytes: int,
    num_chunks: int,
) -> None:
    table, path = unit_of(held), tmp_path_factory.getbasetemp() / "piece-of-any-kind"
    cuts = np.linspace(0, len(held), num_chunks + 1).astype(int)
    chunks = [table.slice(start, stop - start) for start, stop in itertools.pairwise(cuts)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pieces, "ROW_GROUP_ROWS", max_rows)
        patch.setattr(pieces, "ROW_GROUP_BYTES", max_bytes)
        groups = write_piece(pa.concat_tables(chunks), path).to_pylist()
    expected = sorted({(domain, SPLITS.index(split)) for domain, split, _, _ in held})
    assert [(group["domain"], group["split"]) for group in groups] == expected
    for group in groups:
        wanted = group["domain"], SPLITS[group["split"]]
        own = [row for row, document in enumerate(held) if document[:2] == wanted]
        with pq.ParquetFile(path) as piece:
            rows = piece.read_row_group(group["row_group"])["row"].to_pylist()
        assert rows[group["row"] : group["row"] + group["rows"]] == own
        assert group["text_bytes"] == sum(held[row][2] for row in own)
        assert group["tokens"] == sum(held[row][3] or 0 for row in own)
        assert group["distance_sum"] == sum(own) / 4
