"""Why a document has its split: the draw is the writer's own, and what cannot be known is said so."""

import hypothesis.strategies as st
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given

from lmsplit.manifests.errors import DamagedError
from lmsplit.manifests.explanation import ExcludedFor
from lmsplit.manifests.reader import Manifest
from lmsplit.manifests.schema import EXCLUSIONS
from lmsplit.manifests.split_reason import heldout_hash, split_reason
from lmsplit.partition.hashing import heldout_hashes

NONE_FOUND = "; no held-out document was found that it nearly repeats"
TEXTS = st.text(st.characters(exclude_categories=["Cs"]))


@given(seed=st.integers(0, 2**63 - 1), group=st.none() | TEXTS, text=TEXTS)
def test_heldout_hash_is_that_of_the_writer(seed, group, text):
    documents = pa.table({"group": pa.array([group], pa.string()), "text": pa.array([text], pa.string())})
    assert heldout_hash(seed, group, text) == int(heldout_hashes(seed, documents)[0])


def test_heldout_hash_is_the_one_specified():
    """Worked with hashlib: b"gbook 1", 8 bytes of digest, the seed 7 in 8 bytes as key, b"heldout" as personalisation."""
    assert heldout_hash(7, "book 1", "a text") == 2709056353689016211
    assert heldout_hash(7, None, "book 1") != heldout_hash(7, "book 1", "book 1")


def reason_of(path, doc_id: str) -> str:
    manifest = Manifest.open(path)
    return split_reason(manifest, manifest.find(doc_id).document)[0]


def record(forger, fraction: float, **configuration) -> None:
    """Let the commit say what share is held out, and more of the configuration."""
    forger.body(lambda body: body.update(heldout_fraction=fraction))
    forger.body(lambda body: body["configuration"].update(configuration))


def test_reason_says_that_the_commit_does_not_record_it(golden_path):
    said = "was assigned in a way that the commit does not record"
    assert reason_of(golden_path, "book-03") == f"held out: its text, as it has no group, {said}"
    assert reason_of(golden_path, "book-00").startswith(f"train: its group 'chapter-0' {said}; no held-out document was found")


def test_reason_gives_the_draw_of_text_or_group(copy_path, forger):
    record(forger, 1.0)
    text = Manifest.open(copy_path).find("book-03").document["text"]
    drawn = heldout_hash(0, None, text) / 2**64
    expected = f"held out: the keyed hash of its text, as it has no group, drew {drawn:.6f}, below the held-out share of 1"
    assert reason_of(copy_path, "book-03") == expected


@pytest.mark.parametrize(
    ("configuration", "expected"),
    [
        ({}, NONE_FOUND),
        ({"near_duplicate_threshold": 0.8}, f"{NONE_FOUND}, with similarity 0.8 or more"),
        ({"near_duplicate_threshold": None}, "; near-duplicates of held-out documents were not searched for"),
    ],
)
def test_reason_of_a_training_document_says_whether_near_duplicates_were_searched_for(copy_path, forger, configuration, expected):
    record(forger, 1e-9, **configuration)
    drawn = heldout_hash(0, "chapter-0", "") / 2**64
    said = f"train: the keyed hash of its group 'chapter-0' drew {drawn:.6f}, not below the held-out share of 1e-09"
    assert reason_of(copy_path, "book-00") == said + expected


def test_reason_says_that_nothing_is_held_out(copy_path, forger):
    record(forger, 0.0)
    assert reason_of(copy_path, "book-00") == "train: nothing is held out"


def test_reason_says_that_the_draw_contradicts_the_split(copy_path, forger):
    record(forger, 1e-9)
    assert reason_of(copy_path, "book-03").startswith("held out, though the keyed hash of its text")
    assert reason_of(copy_path, "book-03").endswith("not below the held-out share of 1e-09: the manifest does not say why")
    record(forger, 1.0)
    assert reason_of(copy_path, "book-00").startswith("train, though the keyed hash of its group 'chapter-0' drew")


@pytest.mark.parametrize("seed", [-1, 2**63, "0", None])
def test_reason_computes_no_draw_without_a_usable_seed(copy_path, forger, seed):
    record(forger, 0.5, seed=seed)
    assert "was assigned in a way that the commit does not record" in reason_of(copy_path, "book-03")


def with_exclusions(forger, copy_path, rows: list[dict]) -> Manifest:
    """Let the golden manifest say why documents are excluded."""
    name = f"exclusions/part-00000-{'0' * 16}.parquet"
    (copy_path / name).parent.mkdir()
    pq.write_table(pa.Table.from_pylist(rows, EXCLUSIONS), copy_path / name, write_page_checksum=True)
    entry = {"path": name, "bytes": (copy_path / name).stat().st_size, "rows": len(rows), "sha256": "0" * 64}
    forger.body(lambda body: body.update(files=sorted([*body["files"], entry], key=lambda each: each["path"])))
    return Manifest.open(copy_path)


def test_reason_names_the_held_out_document_that_an_excluded_one_repeats(copy_path, forger):
    rows = [{"doc_id": "other", "heldout_doc_id": "book-03", "similarity": 0.875}]
    rows.append({"doc_id": "notes.jsonl:6", "heldout_doc_id": "notes.jsonl:2", "similarity": 0.9375})
    manifest = with_exclusions(forger, copy_path, rows)
    reason, found = split_reason(manifest, manifest.find("notes.jsonl:6").document)
    assert reason == "excluded: it nearly repeats the held-out document 'notes.jsonl:2', with similarity 0.938"
    assert found == ExcludedFor("notes.jsonl:2", 0.9375)


def test_reason_says_that_the_manifest_does_not_name_what_is_repeated(golden_path):
    expected = "excluded: it nearly repeats a held-out document; the manifest does not say which"
    assert reason_of(golden_path, "notes.jsonl:6") == expected


def test_reason_names_a_missing_file_of_exclusions(copy_path, forger):
    manifest = with_exclusions(forger, copy_path, [])
    document = manifest.find("notes.jsonl:6").document
    next(copy_path.glob("exclusions/*")).unlink()
    with pytest.raises(DamagedError, match=r"cannot be read .*: run lmsplit verify --deep") as caught:
        split_reason(manifest, document)
    assert caught.value.path.startswith("exclusions/")
