"""The ids index and the settling of duplicates, over several hash ranges."""

import hashlib
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from lmsplit.manifests.errors import InputError
from lmsplit.manifests.reader import Manifest
from lmsplit.manifests.verify import verify_manifest
from lmsplit.partition import ids
from lmsplit.partition.pipeline import partition
from tests.partition import outside
from tests.partition.corpora import configuration, quarantined, rows, topical, write


@pytest.fixture
def three_ranges(monkeypatch: pytest.MonkeyPatch) -> int:
    """Make a range hold 40 ids, so that 120 documents take three."""
    monkeypatch.setattr(ids, "IDS_PER_RANGE", 40)
    return 3


def find(output: Path, doc_id: str, num_ranges: int) -> list[tuple[str, int, int]]:
    """Look an id up as the format says: the range by its hash, then the row by its hash."""
    id_hash = int.from_bytes(hashlib.sha256(doc_id.encode()).digest()[:8], "big")
    hash_range = id_hash // -(-(2**64) // num_ranges)
    (path,) = output.glob(f"ids/{hash_range:05d}-*.parquet")
    wanted = (pc.field("id_hash") == pa.scalar(id_hash, pa.uint64())) & (pc.field("doc_id") == doc_id)
    found = pq.read_table(path, filters=wanted).to_pylist()
    return [(row["domain"], row["part"], row["row"]) for row in found]


def test_every_id_is_found_by_its_hash_in_the_right_range(tmp_path: Path, three_ranges: int) -> None:
    write(tmp_path / "in" / "a.jsonl", topical(120))
    partition(configuration(tmp_path / "in", tmp_path / "out"))
    assert len(list((tmp_path / "out").glob("ids/*"))) == three_ranges
    by_part = {
        (path.parent.name, int(path.name.split("-")[1])): pq.read_table(path)["doc_id"].to_pylist()
        for path in (tmp_path / "out").glob("data/*/*.parquet")
    }
    for row in rows(tmp_path / "out"):
        ((domain, part, position),) = find(tmp_path / "out", row["doc_id"], three_ranges)
        assert domain == row["domain"]
        assert by_part[domain, part][position] == row["doc_id"]
        found = Manifest.open(tmp_path / "out").find(row["doc_id"])
        assert (found.status, found.row, found.document) == ("published", position, row)
    assert find(tmp_path / "out", "no such document", three_ranges) == []
    assert Manifest.open(tmp_path / "out").find("no such document").status == "unknown"
    outside.check(tmp_path / "out", tmp_path / "in")
    assert verify_manifest(tmp_path / "out", deep=True) == []


def test_duplicates_are_settled_in_every_range_and_the_lowest_place_wins(
    tmp_path: Path, three_ranges: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lmsplit.partition.units.MIN_UNIT_BYTES", 1000)
    documents = topical(60)
    write(tmp_path / "in" / "a.jsonl", documents)
    write(tmp_path / "in" / "b.jsonl", [row | {"text": row["text"] + " again"} for row in reversed(documents)])
    partition(configuration(tmp_path / "in", tmp_path / "out", duplicate_ids="quarantine"))
    assert {row["doc_id"]: row["text"] for row in rows(tmp_path / "out")} == {row["id"]: row["text"] for row in documents}
    assert [row["doc_id"] for row in quarantined(tmp_path / "out")] == [row["id"] for row in reversed(documents)]
    assert {row["source_path"] for row in quarantined(tmp_path / "out")} == {"b.jsonl"}
    outside.check(tmp_path / "out", tmp_path / "in")


def test_ids_that_look_alike_are_one_id_in_every_format_and_unit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lmsplit.partition.units.MIN_UNIT_BYTES", 1000)
    given: dict[str, list[Any]] = {
        "a.jsonl": ["7", 7, None, "c.jsonl.gz:1", "e\u0301", *range(100, 130)],
        "b.jsonl.zst": [7, "b.jsonl.zst:2", None, "\u00e9", "07"],
        "c.jsonl.gz": ["a.jsonl:2", None, "7 "],
        "d.parquet": [7, 8, 129, 7],
    }
    for name, identifiers in given.items():
        texts = topical(len(identifiers))
        write(tmp_path / "in" / name, [row | {"id": i} for row, i in zip(texts, identifiers, strict=True)])
    places = [(str(i if i is not None else f"{name}:{row}"), name, row) for name in given for row, i in enumerate(given[name])]
    digests = []
    for workers in (1, 2):
        output = tmp_path / f"out-{workers}"
        settings = {"duplicate_ids": "quarantine", "executor": {"workers": workers}}
        digests.append(partition(configuration(tmp_path / "in", output, **settings)).body_sha256)
        first = {doc_id: (doc_id, *where) for doc_id, *where in reversed(places)}
        aside = [(row["doc_id"], row["source_path"], row["source_row"]) for row in quarantined(output)]
        assert sorted(aside) == sorted(set(places) - set(first.values()))
        assert {(row["doc_id"], row["source_path"], row["source_row"]) for row in rows(output)} == set(first.values())
        assert verify_manifest(output, deep=True) == []
        outside.check(output, tmp_path / "in")
    assert digests[0] == digests[1]
    assert [record.source_path for record in Manifest.open(output).find("7", columns=[]).set_aside] == [
        "a.jsonl", "b.jsonl.zst", "d.parquet", "d.parquet",
    ]  # fmt: skip


def test_error_says_how_many_places_more_have_the_id(tmp_path: Path) -> None:
    write(tmp_path / "in" / "a.jsonl", [row | {"id": 5} for row in topical(9)])
    message = (
        "8 documents repeat an id: '5' stands in a.jsonl row 0 and a.jsonl row 1 and a.jsonl row 2 and 6 more places. Make the"
    )
    with pytest.raises(InputError, match=message):
        partition(configuration(tmp_path / "in", tmp_path / "out"))


def test_error_names_the_first_three_repeated_ids(tmp_path: Path) -> None:
    write(tmp_path / "in" / "a.jsonl", [*topical(8), *topical(5)])
    with pytest.raises(InputError) as caught:
        partition(configuration(tmp_path / "in", tmp_path / "out"))
    message = str(caught.value)
    assert message.startswith("5 documents repeat an id: 'doc-0' stands in a.jsonl row 0 and a.jsonl row 8; 'doc-1' stands in")
    assert message.count("stands in") == 3


def test_index_covers_the_whole_range_of_hashes_without_overlap(tmp_path: Path, three_ranges: int) -> None:
    write(tmp_path / "in" / "a.jsonl", topical(120))
    partition(configuration(tmp_path / "in", tmp_path / "out"))
    width = -(-(2**64) // three_ranges)
    for number, path in enumerate(sorted((tmp_path / "out").glob("ids/*"))):
        hashes = pq.read_table(path)["id_hash"].to_pylist()
        assert hashes == sorted(hashes)
        assert {id_hash // width for id_hash in hashes} == {number}
