"""Looking an id up: every document is found where it is, nothing else is read, and a broken manifest is never answered from."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lmsplit.manifests import lookup
from lmsplit.manifests.errors import DamagedError, ManifestError
from lmsplit.manifests.lookup import SetAside
from lmsplit.manifests.reader import Manifest

FIRST = "data/d00000/part-00000"  # book-00, -01, -02 and -04


def documents_of(path: Path) -> list[dict]:
    return [row for batch in Manifest.open(path).documents() for row in batch.to_pylist()]


def set_quarantine(forger, **changes: list) -> None:
    """Change columns of the three quarantined records: two of notes.jsonl without an id, and a duplicate of book-00."""

    def change(table: pa.Table) -> pa.Table:
        for name, values in changes.items():
            field = table.schema.field(name)
            table = table.set_column(table.schema.get_field_index(name), field, pa.array(values, field.type))
        return table

    forger.table("quarantine", change)


def in_row_groups_of(rows: int, path: Path) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pq.read_table(path), sink, compression="zstd", write_page_checksum=True, row_group_size=rows)
    return sink.getvalue().to_pybytes()


def flip_ends_of_columns(path: Path, row_group: int) -> None:
    """Damage the last page of every column of a row group."""
    data, group = bytearray(path.read_bytes()), pq.read_metadata(path).row_group(row_group)
    for chunk in map(group.column, range(group.num_columns)):
        data[chunk.dictionary_page_offset + chunk.total_compressed_size - 3] ^= 0x10
    path.write_bytes(data)


def test_find_gives_every_document_where_it_is(golden_path):
    manifest = Manifest.open(golden_path)
    rows = documents_of(golden_path)
    assert len(rows) == 32
    for expected in rows:
        found = manifest.find(expected["doc_id"])
        assert (found.status, found.domain, found.document) == ("published", expected["domain"], expected)
        assert pq.read_table(golden_path / found.path)["doc_id"][found.row].as_py() == expected["doc_id"]


def test_find_gives_documents_of_a_published_manifest(manifest_path):
    manifest = Manifest.open(manifest_path)
    for expected in documents_of(manifest_path)[::37]:
        assert manifest.find(expected["doc_id"]).document == expected


def test_find_gives_the_columns_asked_for_in_their_order(golden_path):
    found = Manifest.open(golden_path).find("book-02", columns=["year", "domain"])
    assert list(found.document.items()) == [("year", 1992), ("domain", "d00000")]


def test_find_opens_no_data_file_when_no_column_is_asked_for(copy_path, forger):
    path = forger.path(FIRST)
    (copy_path / path).unlink()
    found = Manifest.open(copy_path).find("book-02", columns=[])
    assert (found.status, found.path, found.row, found.document) == ("published", path, 2, {})


def test_find_refuses_a_column_that_is_not_there(golden_path):
    with pytest.raises(ManifestError, match=r"has no columns \['lang'\]: it has doc_id, text"):
        Manifest.open(golden_path).find("book-02", columns=["lang"])


@pytest.mark.parametrize(
    "doc_id",
    ["", "book", "book-2", "BOOK-02", "book-02 ", "book-99", "notes.jsonl", "notes.jsonl:99", "notes.jsonl:03", "\udc80"],
)
def test_find_does_not_know_an_id_that_is_not_there(golden_path, doc_id):
    found = Manifest.open(golden_path).find(doc_id)
    assert found == lookup.Lookup(doc_id, "unknown")
    assert (found.document, found.path, found.set_aside) == (None, None, ())


def test_find_lists_what_was_set_aside_beside_a_published_document(golden_path):
    found = Manifest.open(golden_path).find("book-00")
    assert found.status == "published"
    assert found.document["doc_id"] == "book-00"
    assert found.set_aside == (SetAside("duplicate_id", None, "books.parquet", 31),)


def test_find_says_that_a_record_is_quarantined(copy_path, forger):
    set_quarantine(forger, doc_id=["bad", None, None], detail=["no JSON", None, None])
    found = Manifest.open(copy_path).find("bad")
    assert (found.status, found.domain, found.document) == ("quarantined", None, None)
    assert found.set_aside == (SetAside("malformed_json", "no JSON", "notes.jsonl", 3),)


def test_find_knows_a_quarantined_record_without_an_id_by_its_place(golden_path):
    found = Manifest.open(golden_path).find("notes.jsonl:9")
    assert (found.status, found.set_aside) == ("quarantined", (SetAside("empty_text", None, "notes.jsonl", 9),))


def test_find_does_not_take_the_place_of_a_record_for_its_id_when_it_has_one(golden_path):
    assert Manifest.open(golden_path).find("books.parquet:31").status == "unknown"


def test_find_says_that_a_record_is_a_duplicate(copy_path, forger):
    set_quarantine(forger, doc_id=[None, None, "lost"])
    found = Manifest.open(copy_path).find("lost")
    assert (found.status, [record.reason for record in found.set_aside]) == ("duplicate", ["duplicate_id"])


def test_find_calls_an_id_quarantined_when_only_its_copies_are_duplicates(copy_path, forger):
    set_quarantine(forger, doc_id=[None, "lost", "lost"])
    found = Manifest.open(copy_path).find("lost")
    assert found.status == "quarantined"
    assert [record.reason for record in found.set_aside] == ["empty_text", "duplicate_id"]


def test_find_needs_no_quarantine(copy_path, forger):
    forger.body(lambda body: body.update(files=[e for e in body["files"] if not e["path"].startswith("quarantine/")]), card=False)
    assert Manifest.open(copy_path).find("book-00").set_aside == ()


def test_find_reads_the_one_index_file_of_the_range(copy_path, forger):
    for number, other in (("00000", "00001"), ("00001", "00000")):
        ids = pq.read_table(copy_path / forger.path(f"ids/{number}"))["doc_id"].to_pylist()
        aside = (copy_path / forger.path(f"ids/{other}")).rename(copy_path / "aside")
        assert [Manifest.open(copy_path).find(doc_id, columns=[]).status for doc_id in ids] == ["published"] * len(ids)
        aside.rename(copy_path / forger.path(f"ids/{other}"))


def test_find_reads_only_the_row_groups_of_the_index_that_admit_the_id(copy_path, forger):
    index = copy_path / forger.file("ids/00000", in_row_groups_of(5, copy_path / forger.path("ids/00000")))
    ids = pq.read_table(index)["doc_id"].to_pylist()
    groups = pq.read_metadata(index).num_row_groups
    assert groups > 1
    flip_ends_of_columns(index, groups - 1)
    assert [Manifest.open(copy_path).find(doc_id, columns=[]).status for doc_id in ids[:5]] == ["published"] * 5
    with pytest.raises(DamagedError, match="cannot be read"):
        Manifest.open(copy_path).find(ids[-1])


def test_find_reads_only_the_row_group_of_the_document(copy_path, forger):
    data = copy_path / forger.file(FIRST, in_row_groups_of(2, copy_path / forger.path(FIRST)))
    flip_ends_of_columns(data, 0)
    assert Manifest.open(copy_path).find("book-02").document["doc_id"] == "book-02"
    with pytest.raises(DamagedError, match=r"cannot be read .*: run lmsplit verify --deep"):
        Manifest.open(copy_path).find("book-01")


def test_find_reaches_a_row_behind_many_batches(copy_path, forger, monkeypatch):
    monkeypatch.setattr(lookup, "_BATCH_ROWS", 1)
    forger.file(FIRST, in_row_groups_of(3, copy_path / forger.path(FIRST)))
    manifest = Manifest.open(copy_path)
    ids = ["book-00", "book-01", "book-02", "book-04"]
    assert [manifest.find(doc_id).document["year"] for doc_id in ids] == [1990, 1991, 1992, 1994]


@pytest.mark.parametrize("prefix", ["ids/", "quarantine/", FIRST])
def test_find_names_a_missing_file(copy_path, forger, prefix):
    for path in copy_path.glob(f"{prefix}*"):
        path.unlink()
    with pytest.raises(DamagedError, match=r"cannot be read .*: run lmsplit verify --deep") as caught:
        Manifest.open(copy_path).find("book-02")
    assert caught.value.path.startswith(prefix)


@pytest.mark.parametrize("prefix", ["ids/00000", "ids/00001", "quarantine/", FIRST])
def test_find_finds_a_flipped_bit_in_what_it_reads(golden_path, copy_path, forger, prefix):
    flip_ends_of_columns(copy_path / forger.path(prefix), 0)
    ids = [row["doc_id"] for row in documents_of(golden_path)]
    with pytest.raises(DamagedError, match="cannot be read"):
        list(map(Manifest.open(copy_path).find, ids))


def test_find_names_an_index_file_that_the_commit_lacks(copy_path, forger):
    path = forger.path("ids/00000")
    forger.body(lambda body: body.update(files=[entry for entry in body["files"] if entry["path"] != path]))
    with pytest.raises(DamagedError, match="names no index file number 0: run lmsplit verify"):
        Manifest.open(copy_path).find("book-02")


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("row", 3, r"'book-02' is row 3, which holds 'book-04': run lmsplit verify --deep"),
        ("row", 4, "'book-02' is row 4, which the file does not have"),
        ("row", -1, "'book-02' is row -1, which the file does not have"),
        ("part", 9, "'book-02' is in part 9 of d00000, which the commit does not name"),
    ],
)
def test_find_says_that_the_index_leads_elsewhere(copy_path, forger, column, value, message):
    for number in ("ids/00000", "ids/00001"):
        ids = pq.read_table(copy_path / forger.path(number))["doc_id"].to_pylist()
        if "book-02" in ids:
            forger.value(number, column, ids.index("book-02"), value)
    with pytest.raises(DamagedError, match=message):
        Manifest.open(copy_path).find("book-02")
