"""Since which commit a document is where it is: chains of commits made from the golden manifest and changed copies of it."""

import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from lmsplit.manifests.commit import Body, write_commit
from lmsplit.manifests.errors import DamagedError
from lmsplit.manifests.history import History, history
from lmsplit.manifests.reader import Manifest

FIRST = "data/d00000/part-00000"  # book-00, -01, -02 and -04, the last of them row 3


def past(root: Path, doc_id: str = "book-00") -> History:
    manifest = Manifest.open(root)
    return history(manifest, manifest.find(doc_id))


def since(root: Path, doc_id: str = "book-00") -> tuple[int, int]:
    found = past(root, doc_id)
    return found.added_in.version, found.placed_in.version


@pytest.fixture
def golden_body(golden_path) -> Body:
    return Manifest.open(golden_path).body


def grow(root: Path, body: Body, **changes) -> None:
    """Publish a body as the next commit, with the files of the golden manifest beside those that are there."""
    newest = Manifest.open(root)
    write_commit(newest.store, body.model_copy(update={"parent": newest.digest, **changes}), newest.version + 1)


def restore(root: Path, golden_path: Path) -> None:
    """Put the files of the golden manifest back, which a forger removed."""
    shutil.copytree(golden_path, root, dirs_exist_ok=True, ignore=shutil.ignore_patterns("commits", "README.md"))


def drop(forger, doc_id: str) -> None:
    """Take the last document of the first data file out of it and out of the index."""
    forger.table(FIRST, lambda table: table.slice(0, table.num_rows - 1))
    for number in ("ids/00000", "ids/00001"):
        forger.table(number, lambda table: table.filter([each != doc_id for each in table["doc_id"].to_pylist()]))


def test_history_of_one_commit_begins_with_it(golden_path):
    found, manifest = past(golden_path), Manifest.open(golden_path)
    assert (found.added_in.version, found.added_in.commit) == (0, manifest.digest)
    assert found.added_in.created_at == manifest.commit.created_at
    assert (found.placed_in, found.taken_down, found.ends) == (found.added_in, None, None)


@pytest.mark.parametrize("doc_id", ["nobody", "notes.jsonl:9"])
def test_history_of_what_is_not_published_has_no_beginning(golden_path, doc_id):
    assert past(golden_path, doc_id) == History(None, None, None, None)


def test_history_goes_back_as_far_as_the_document_is_there(copy_path, golden_body):
    grow(copy_path, golden_body)
    grow(copy_path, golden_body)
    assert since(copy_path) == (0, 0)


def test_history_needs_no_look_up_where_the_data_file_is_the_same(copy_path, golden_body):
    without_index = [entry for entry in golden_body.files if not entry.path.startswith("ids/")]
    grow(copy_path, golden_body.model_copy(update={"files": tuple(without_index)}))
    grow(copy_path, golden_body)
    assert since(copy_path) == (0, 0)


def test_history_begins_where_the_document_was_added(copy_path, golden_path, golden_body, forger):
    drop(forger, "book-04")
    restore(copy_path, golden_path)
    grow(copy_path, golden_body)
    assert (since(copy_path, "book-04"), since(copy_path, "book-00")) == ((1, 1), (0, 0))


def test_history_of_a_document_that_came_back_begins_with_its_return(copy_path, golden_path, golden_body, forger):
    drop(forger, "book-04")
    without = Manifest.open(copy_path).body
    restore(copy_path, golden_path)
    shutil.copy(golden_path / "commits" / "00000.json", copy_path / "commits")
    grow(copy_path, without)
    grow(copy_path, golden_body)
    assert (since(copy_path, "book-04"), since(copy_path, "book-00")) == ((2, 2), (0, 0))
    assert history(Manifest.open(f"{copy_path}@0"), Manifest.open(f"{copy_path}@0").find("book-04")).added_in.version == 0


def test_history_begins_anew_with_another_text(copy_path, golden_path, golden_body, forger):
    forger.value(FIRST, "text_sha256", 0, "0" * 64)
    restore(copy_path, golden_path)
    grow(copy_path, golden_body)
    assert (since(copy_path, "book-00"), since(copy_path, "book-01")) == ((1, 1), (0, 0))


def test_placed_in_begins_anew_with_another_rule(copy_path, golden_path, golden_body, forger):
    forger.file("placement/a1e", b"{}\n", card=False)
    restore(copy_path, golden_path)
    grow(copy_path, golden_body)
    assert since(copy_path) == (0, 1)


def test_placed_in_does_not_go_on_behind_another_rule(copy_path, golden_path, golden_body, forger):
    forger.file("placement/a1e", b"{}\n", card=False)
    other = Manifest.open(copy_path).body
    restore(copy_path, golden_path)
    shutil.copy(golden_path / "commits" / "00000.json", copy_path / "commits")
    grow(copy_path, other)
    grow(copy_path, golden_body)
    assert since(copy_path) == (0, 2)


def test_placed_in_begins_anew_in_another_domain(copy_path, golden_path, golden_body, forger):
    """book-04 stands in d00001 as well, and commit 0's index leads there."""
    row = pq.read_table(copy_path / forger.path(FIRST)).slice(3, 1)
    forger.table(FIRST, lambda table: table.slice(0, 3))
    forger.table("data/d00001/part-00001", lambda table: row)
    for number in ("ids/00000", "ids/00001"):
        ids = pq.read_table(copy_path / forger.path(number))["doc_id"].to_pylist()
        if "book-04" in ids:
            for column, value in (("domain", "d00001"), ("part", 1), ("row", 0)):
                forger.value(number, column, ids.index("book-04"), value, card=False)
    restore(copy_path, golden_path)
    grow(copy_path, golden_body)
    assert since(copy_path, "book-04") == (0, 1)


def test_history_says_that_an_older_commit_is_not_there(copy_path, golden_body):
    grow(copy_path, golden_body)
    grow(copy_path, golden_body)
    (copy_path / "commits" / "00000.json").unlink()
    assert (since(copy_path), past(copy_path).ends) == ((1, 1), "commit 0 is not there")


@pytest.mark.parametrize("prefix", ["data/", "ids/", "quarantine/"])
def test_history_says_that_files_of_an_older_commit_are_not_there(copy_path, golden_path, golden_body, forger, prefix):
    drop(forger, "book-04")
    if prefix == "quarantine/":
        forger.value("quarantine", "detail", 0, "changed")
    restore(copy_path, golden_path)
    grow(copy_path, golden_body)
    for path in copy_path.glob(f"{prefix}**/*.parquet"):
        if not (golden_path / path.relative_to(copy_path)).exists():
            path.unlink()
    assert (since(copy_path), past(copy_path).ends) == ((1, 1), "files of commit 0 are not there")


def test_history_refuses_a_damaged_file_of_an_older_commit(copy_path, golden_path, golden_body, forger):
    damaged = forger.file(FIRST, b"no Parquet", card=False)
    restore(copy_path, golden_path)
    grow(copy_path, golden_body)
    with pytest.raises(DamagedError, match="cannot be read"):
        past(copy_path)
    assert damaged.startswith(FIRST)


def test_history_refuses_a_parent_that_is_another_commit(copy_path, golden_body):
    grow(copy_path, golden_body)
    newest = Manifest.open(copy_path)
    write_commit(newest.store, golden_body.model_copy(update={"parent": "f" * 64}), 2)
    expected = rf"commits/00002.json has the parent f{{64}}, the commit before it is {newest.digest}"
    with pytest.raises(DamagedError, match=expected):
        past(copy_path)


def test_tombstone_is_found_in_the_opened_commit_and_its_ancestors(copy_path, golden_body):
    first = {"doc_id": "gone", "reason": "licence", "date": "2026-01-02", "by": "the author"}
    grow(copy_path, golden_body, tombstones=(first, {"doc_id": "other"}, {"no": "id"}))
    found = past(copy_path, "gone").taken_down
    holder = Manifest.open(f"{copy_path}@1")
    where = {"version": 1, "commit": holder.digest, "created_at": holder.commit.created_at}
    assert found == first | where
    grow(copy_path, golden_body)
    assert past(copy_path, "gone").taken_down == found
    assert past(copy_path, "nobody").taken_down is None
    older = Manifest.open(f"{copy_path}@0")
    assert history(older, older.find("gone")).taken_down is None
    assert past(copy_path, "other").taken_down == {"doc_id": "other", "reason": None, "date": None} | where


def test_tombstone_that_is_newest_is_told(copy_path, golden_body):
    for reason in ("first", "second"):
        grow(copy_path, golden_body, tombstones=({"doc_id": "gone", "reason": reason},))
    assert (past(copy_path, "gone").taken_down["reason"], past(copy_path, "gone").taken_down["version"]) == ("second", 2)
