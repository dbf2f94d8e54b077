"""How row groups become files: each in exactly one, in order, cut at the size."""

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmsplit.manifests.layout import domain_name
from lmsplit.manifests.verify import verify_manifest
from lmsplit.partition import gather
from lmsplit.partition.gather import Source, plan_shards
from lmsplit.partition.pipeline import partition
from tests.partition.corpora import configuration, rows

NUM_DOMAINS = 3
groups = st.fixed_dictionaries(
    {
        "domain": st.integers(0, NUM_DOMAINS - 1).map(domain_name),
        "split": st.sampled_from(["train", "heldout"]),
        "rows": st.integers(1, 9),
        "text_bytes": st.integers(1, 100),
        "tokens": st.integers(0, 100),
        "distance_sum": st.floats(0, 9),
    }
)


def receipts(units: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Place receipts as the stage leaves them: no piece where a unit has no documents."""
    pieces = [{"documents": {"path": f"piece-{unit}"}} if held else {} for unit, held in enumerate(units)]
    return [{"groups": held, "pieces": piece} for held, piece in zip(units, pieces, strict=True)]


@given(st.lists(st.lists(groups, max_size=6), max_size=6), st.integers(1, 250))
def test_every_row_group_is_in_exactly_one_shard_and_in_order(units: list[list[dict[str, Any]]], shard_bytes: int) -> None:
    shards = plan_shards(receipts(units), NUM_DOMAINS, shard_bytes)
    for domain in map(domain_name, range(NUM_DOMAINS)):
        own = [shard for shard in shards if shard.domain == domain]
        assert [shard.part for shard in own] == list(range(len(own)))
        for split in ("train", "heldout"):
            of_split = [shard for shard in own if shard.split == split]
            expected = [
                Source(f"piece-{unit}", index, group["text_bytes"], group["rows"], group["tokens"])
                for unit, held in enumerate(units)
                for index, group in enumerate(held)
                if (group["domain"], group["split"]) == (domain, split)
            ]
            assert [source for shard in of_split for source in shard.sources] == expected
            for shard in of_split:
                before_the_last = shard.text_bytes - shard.sources[-1].text_bytes
                assert before_the_last < shard_bytes
                assert shard.text_bytes >= shard_bytes or shard is of_split[-1]
    total = sum(group["rows"] for held in units for group in held)
    assert sum(shard.rows for shard in shards) == total


def test_shards_carry_the_sums_of_their_row_groups() -> None:
    group = {"domain": "d00000", "split": "train", "rows": 2, "text_bytes": 10, "tokens": 7}
    units = [[group | {"distance_sum": 0.5}], [], [group | {"distance_sum": 0.25}]]
    (shard,) = plan_shards(receipts(units), 2, 100)
    assert (shard.rows, shard.text_bytes, shard.tokens, shard.distance_sum) == (4, 20, 14, 0.75)
    assert [source.piece for source in shard.sources] == ["piece-0", "piece-2"]


def test_shard_is_closed_once_it_holds_its_size_exactly() -> None:
    group = {"domain": "d00000", "split": "train", "rows": 1, "tokens": None, "distance_sum": 0.0}
    units = [[group | {"text_bytes": size}] for size in (6, 4, 9, 2, 1)]
    assert [shard.text_bytes for shard in plan_shards(receipts(units), 1, 10)] == [10, 11, 1]


def test_small_shards_hold_the_same_documents_in_the_same_order(
    mixed_corpus: Path, mixed_manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lmsplit.partition.units.MIN_UNIT_BYTES", 1500)
    monkeypatch.setattr(gather, "plan_shards", lambda placed, num_domains, _: plan_shards(placed, num_domains, shard_bytes=1000))
    partition(configuration(mixed_corpus, tmp_path / "manifest"))
    parts = list((tmp_path / "manifest").glob("data/*/*.parquet"))
    assert len(parts) > 2 * 3
    names = ("doc_id", "domain", "split", "distance")
    assert [[row[name] for name in names] for row in rows(tmp_path / "manifest")] == [
        [row[name] for name in names] for row in rows(mixed_manifest)
    ]
    assert verify_manifest(tmp_path / "manifest", deep=True) == []


def test_row_groups_are_gathered_up_to_their_size(mixed_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lmsplit.partition.units.MIN_UNIT_BYTES", 1)
    monkeypatch.setattr(gather, "ROW_GROUP_ROWS", 12)
    partition(configuration(mixed_corpus, tmp_path / "manifest"))
    sizes = []
    for path in (tmp_path / "manifest").glob("data/*/*.parquet"):
        metadata = pq.read_metadata(path)
        sizes.append([metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)])
    assert all(size >= 12 for own in sizes for size in own[:-1])
    assert max(map(len, sizes)) > 1
