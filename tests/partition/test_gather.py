"""How pieces become files: every document in exactly one, in order, cut at the size; and what a task reads for it."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmsplit.manifests import store
from lmsplit.manifests.layout import domain_name
from lmsplit.manifests.schema import SPLITS, documents
from lmsplit.manifests.store import LocalStore
from lmsplit.manifests.verify import verify_manifest
from lmsplit.partition import gather, pieces
from lmsplit.partition.gather import FILE_BYTES, Gather, Shard, bundle_shards, plan_shards
from lmsplit.partition.pieces import GROUPS, write_piece
from lmsplit.partition.pipeline import partition
from lmsplit.partition.planning import make_plan
from lmsplit.partition.run import Run
from tests.partition.corpora import configuration, folder, rows

NUM_DOMAINS = 3
Held = tuple[int, int, int]
"""Domain, split and bytes of a document."""


@pytest.fixture(autouse=True)
def no_scan(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces are made by hand here, without a scan that could have set records aside."""
    monkeypatch.setattr("lmsplit.partition.gather.check_bad_fraction", lambda run, stages: None)


def groups_of(held: dict[tuple[int, int], tuple[int, int]]) -> pa.Table:
    """What a piece holds: rows and bytes by domain and split."""
    fixed = {"tokens": None, "distance_sum": 0.0, "row_group": 0, "row": 0}
    found = [
        {"domain": domain, "split": split, "rows": num_rows, "text_bytes": size} | fixed
        for (domain, split), (num_rows, size) in sorted(held.items())
    ]
    return pa.Table.from_pylist(found, GROUPS)


def cut_one_by_one(units: list[dict[tuple[int, int], tuple[int, int]]], shard_bytes: int) -> Iterator[Shard]:
    """The shards as the definition has them: (domain, split) by (domain, split), unit by unit."""
    for domain in range(NUM_DOMAINS):
        part = 0
        for split in range(len(SPLITS)):
            holding = [(unit, *held[domain, split]) for unit, held in enumerate(units) if (domain, split) in held]
            while holding:
                size = stop = 0
                while stop < len(holding) and size < shard_bytes:
                    size += holding[stop][2]
                    stop += 1
                members, holding = holding[:stop], holding[stop:]
                num_rows = sum(member[1] for member in members)
                yield Shard(domain, split, part, members[0][0], members[-1][0] + 1, num_rows, size)
                part += 1


some_groups = st.dictionaries(
    st.tuples(st.integers(0, NUM_DOMAINS - 1), st.integers(0, 2)), st.tuples(st.integers(1, 9), st.integers(1, 100)), max_size=6
)


@given(st.lists(some_groups, max_size=8), st.integers(1, 250))
def test_shards_are_those_of_the_definition(units: list[dict[tuple[int, int], tuple[int, int]]], shard_bytes: int) -> None:
    assert plan_shards(map(groups_of, units), NUM_DOMAINS, shard_bytes) == list(cut_one_by_one(units, shard_bytes))


def test_shards_worked_by_hand() -> None:
    units = [{(0, 0): (2, 10), (1, 1): (1, 3)}, {}, {(0, 0): (3, 5), (0, 1): (1, 99), (1, 0): (4, 4)}, {(0, 0): (1, 20)}]
    assert plan_shards(map(groups_of, units), 3, 15) == [
        Shard(0, 0, 0, 0, 3, 5, 15),  # domain 0, train: units 0 to 2, closed by its 15th byte
        Shard(0, 0, 1, 3, 4, 1, 20),
        Shard(0, 1, 2, 2, 3, 1, 99),  # parts count through the splits
        Shard(1, 0, 0, 2, 3, 4, 4),
        Shard(1, 1, 1, 0, 1, 1, 3),
    ]


def test_shard_is_closed_once_it_holds_its_size_exactly() -> None:
    units = [groups_of({(0, 0): (1, size)}) for size in (6, 4, 9, 2, 1)]
    assert [shard.text_bytes for shard in plan_shards(units, 1, 10)] == [10, 11, 1]


def test_thousands_of_domains_in_many_units_are_planned() -> None:
    num_domains, num_units = 4096, 50
    units = (groups_of({(domain, 0): (2, 60) for domain in range(unit % 2, num_domains, 2)}) for unit in range(num_units))
    shards = plan_shards(units, num_domains, 1000)
    assert [(shard.domain, shard.part, shard.text_bytes) for shard in shards[:2]] == [(0, 0, 1020), (0, 1, 480)]
    assert len(shards) == 2 * num_domains
    assert sum(shard.documents for shard in shards) == num_domains * num_units


def bundle_sizes(sizes: list[int]) -> list[list[int]]:
    """Bundle shards that have these sizes with what a file costs."""
    bundles = bundle_shards([Shard(0, 0, 0, 0, 1, 1, size - FILE_BYTES) for size in sizes])
    return [[shard.text_bytes + FILE_BYTES for shard in bundle] for bundle in bundles]


def test_bundle_is_closed_once_it_holds_its_size_exactly() -> None:
    sizes = [6_000_000, 10_000_000, 15_999_999, 1, 70_000_000, 1_000_000]
    assert bundle_sizes(sizes) == [[6_000_000, 10_000_000], [15_999_999, 1], [70_000_000], [1_000_000]]
    assert bundle_sizes([]) == []


@pytest.mark.parametrize(("shards", "expected"), [(100, 16), (4096, 32), (100_000, 64)])
def test_bundle_is_a_fixed_share_of_all_within_bounds(shards: int, expected: int) -> None:
    assert len(bundle_sizes([1_000_000] * shards)[0]) == expected


@given(st.lists(st.integers(FILE_BYTES, 9 * FILE_BYTES)), st.integers(1, 20 * FILE_BYTES))
def test_bundles_are_consecutive_and_no_larger_than_they_must(sizes: list[int], bundle_bytes: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gather, "MIN_BUNDLE_BYTES", bundle_bytes)
        patch.setattr(gather, "MAX_BUNDLE_BYTES", bundle_bytes)
        held = bundle_sizes(sizes)
    assert [size for bundle in held for size in bundle] == sizes
    assert all(sum(bundle[:-1]) < bundle_bytes for bundle in held)
    assert all(sum(bundle) >= bundle_bytes for bundle in held[:-1])


@contextmanager
def sizes_of(bundle_bytes: int, piece_bytes: int) -> Iterator[None]:
    """Make tasks and the row groups of pieces small enough for small corpora."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gather, "FILE_BYTES", 0)
        patch.setattr(gather, "MIN_BUNDLE_BYTES", bundle_bytes)
        patch.setattr(gather, "MAX_BUNDLE_BYTES", bundle_bytes)
        patch.setattr(pieces, "ROW_GROUP_BYTES", piece_bytes)
        yield


def documents_of(unit: int, held: list[Held]) -> pa.Table:
    """Placed documents; an id says of which unit they are, and in which order."""
    found = []
    for row, (domain, split, size) in enumerate(held):
        fixed = {
            "source_path": f"{unit}.jsonl",
            "source_row": row,
            "placed_by": "centroids",
            "num_bytes": size,
            "num_tokens": row,
        }
        text = {"doc_id": f"{unit}-{row}", "text": "x" * size, "text_sha256": hashlib.sha256(b"x" * size).hexdigest()}
        found.append(fixed | text | {"domain": domain_name(domain), "split": SPLITS[split], "distance": row / 4})
    return pa.Table.from_pylist(found, documents(placement_sha256="0" * 64))


def placed_run(corpus: Path, output: Path, units: list[list[Held]], num_domains: int) -> Run:
    """A run whose units were placed so; its configuration asks for another number of domains than the fit found."""
    plan = make_plan(configuration(corpus, output, domains=num_domains + 1))
    run = Run(str(output), plan.run_id)
    run.start(plan.content | {"units": [[] for _ in units]}, plan.here)
    run.finish("fit", 0, {}, {"documents": 1, "labels": [{}] * num_domains, "placement_sha256": "0" * 64})
    for unit, held in enumerate(units):
        with run.store.spool() as path, run.store.spool() as groups_path:
            groups = write_piece(documents_of(unit, held), path)
            pq.write_table(groups, groups_path)
            run.finish("place", unit, {"documents": path, "groups": groups_path} if held else {}, {"documents": len(held)})
    return run


def gathered(run: Run) -> list[dict[str, Any]]:
    """Do every task; return what the receipts say of the files."""
    stage = Gather(run)
    for task in range(stage.num_tasks):
        Gather(run).do(task)
    receipts = list(run.receipts("gather", stage.num_tasks))
    assert [receipt["documents"] for receipt in receipts] == [
        sum(shard["documents"] for shard in receipt["shards"]) for receipt in receipts
    ]
    return [shard for receipt in receipts for shard in receipt["shards"]]


a_document = st.tuples(st.integers(0, NUM_DOMAINS - 1), st.integers(0, 2), st.integers(1, 90))
some_units = st.lists(st.lists(a_document, max_size=9), max_size=5)


@settings(max_examples=25, deadline=None)
@given(some_units, st.integers(1, 300), st.integers(1, 200), st.integers(1, 200), st.integers(1, 9))
def test_every_document_comes_out_once_in_the_right_file_and_order(
    mixed_corpus: Path,
    tmp_path_factory: pytest.TempPathFactory,
    units: list[list[Held]],
    shard_bytes: int,
    bundle_bytes: int,
    piece_bytes: int,
    max_rows: int,
) -> None:
    with pytest.MonkeyPatch.context() as patch, sizes_of(bundle_bytes, piece_bytes):
        patch.setattr(gather, "ROW_GROUP_ROWS", max_rows)
        patch.setattr(gather, "plan_shards", lambda units, num_domains, _: plan_shards(units, num_domains, shard_bytes))
        patch.setattr(store, "flush", lambda path: None)  # no power is cut here, and the disk takes most of the time
        run = placed_run(mixed_corpus, tmp_path_factory.mktemp("run"), units, NUM_DOMAINS)
        shards = gathered(run)
        ids = [run.table(receipt, "ids") for receipt in run.receipts("gather", Gather(run).num_tasks)]
    expected = [
        (domain, split, f"{unit}-{row}")
        for domain in range(NUM_DOMAINS)
        for split in range(3)
        for unit, held in enumerate(units)
        for row, document in enumerate(held)
        if document[:2] == (domain, split)
    ]
    found: list[tuple[int, int, str]] = []
    places: list[tuple[str, str, int, int]] = []
    for shard in shards:
        table = pq.read_table(run.store.path(shard["file"]["path"])).to_pylist()
        assert {(row["domain"], row["split"]) for row in table} == {(shard["domain"], shard["split"])}
        assert (shard["documents"], shard["text_bytes"]) == (len(table), sum(len(row["text"]) for row in table))
        assert (shard["tokens"], shard["distance_sum"]) == tuple(
            sum(row[name] for row in table) for name in ("num_tokens", "distance")
        )
        domain, part = shard["file"]["path"].split("/")[1:]
        assert domain == shard["domain"]
        found += [(int(domain[1:]), SPLITS.index(row["split"]), row["doc_id"]) for row in table]
        places += [(row["doc_id"], domain, int(part[5:10]), number) for number, row in enumerate(table)]
    assert found == expected
    listed = [(row["doc_id"], row["domain"], row["part"], row["row"]) for table in ids for row in table.to_pylist()]
    assert sorted(listed) == sorted(places)
    for table in ids:
        assert table["id_hash"].to_pylist() == sorted(table["id_hash"].to_pylist())


def test_task_opens_a_piece_once_and_reads_only_row_groups_that_it_needs(mixed_corpus: Path, tmp_path: Path) -> None:
    num_domains = 200
    units = [[(domain, 0, 10) for domain in range(num_domains)], [], [(domain, 1, 10) for domain in range(0, num_domains, 2)]]
    read: list[tuple[str, int]] = []
    opened: list[str] = []

    def watched_input(store: LocalStore, name: str) -> pa.NativeFile:
        opened.append(name.rpartition("/")[2])
        return pa.OSFile(store.where(name))

    class Watched(pq.ParquetFile):  # type: ignore[misc]
        def read_row_group(self, i: int, **options: Any) -> pa.Table:
            read.append((opened[-1], i))
            return super().read_row_group(i, **options)

    with pytest.MonkeyPatch.context() as patch, sizes_of(bundle_bytes=300, piece_bytes=100):
        run = placed_run(mixed_corpus, tmp_path / "out", units, num_domains)
        stage = Gather(run)
        assert stage.num_tasks == 10  # planned before the watch begins
        patch.setattr(pq, "ParquetFile", Watched)
        patch.setattr(LocalStore, "input", watched_input)
        stage.do(4)
    assert [name.split("-")[:2] for name in opened] == [
        ["00000", "groups"], ["00000", "documents"], ["00002", "groups"], ["00002", "documents"],
    ]  # fmt: skip
    assert [group for _, group in read] == [8, 9, 4]  # of 20 and of 10
    assert run.receipt("gather", 4)["documents"] == 30


def test_one_domain_is_one_task_and_no_documents_are_none(mixed_corpus: Path, tmp_path: Path) -> None:
    run = placed_run(mixed_corpus, tmp_path / "one", [[(0, 0, 5)], [(0, 0, 6)]], 1)
    (shard,) = gathered(run)
    assert (shard["domain"], shard["documents"], shard["text_bytes"], shard["tokens"]) == ("d00000", 2, 11, 0)
    assert Gather(placed_run(mixed_corpus, tmp_path / "none", [[], []], 4)).num_tasks == 0


def test_task_that_is_done_again_leaves_the_same_files_and_receipt(mixed_corpus: Path, tmp_path: Path) -> None:
    run = placed_run(mixed_corpus, tmp_path / "out", [[(0, 0, 5), (1, 0, 7)], [(1, 2, 6)]], 2)
    first = gathered(run)
    before = {path: path.stat().st_mtime_ns for path in run.store.root.rglob("*") if path.is_file()}
    for receipt in folder(run, "gather").glob("*.json"):
        before.pop(receipt)
        receipt.unlink()
    assert gathered(run) == first
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert not list(run.store.path("_work/spool").iterdir())


def test_small_shards_hold_the_same_documents_in_the_same_order(
    mixed_corpus: Path, mixed_manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lmsplit.partition.units.MIN_UNIT_BYTES", 1500)
    monkeypatch.setattr(gather, "plan_shards", lambda units, num_domains, _: plan_shards(units, num_domains, shard_bytes=1000))
    with sizes_of(bundle_bytes=2500, piece_bytes=300):
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
