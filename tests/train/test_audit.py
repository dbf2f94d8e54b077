"""What a run has seen, looked up in the golden manifest: by hand, where something excluded was seen, and by a reference."""

import json
import tempfile
from collections import Counter
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmsplit.manifests.errors import ConfigurationError, ManifestError
from lmsplit.manifests.reader import Manifest
from lmsplit.train.audit import Count, PackAccount, Violation, audit
from lmsplit.train.config import Where
from tests.train.outputs import SPANS, Rows, write_checkpoint, write_pack, write_run

GOLDEN = Path(__file__).parent.parent / "golden" / "v1"
TABLE = Manifest.open(GOLDEN).scan().select("doc_id", "split", "source", "year").collect()
TRAIN = TABLE.filter(pl.col("split") == "train")["doc_id"].to_list()
BOOKS = [doc_id for doc_id in TRAIN if doc_id.startswith("book")]
NOTES = [doc_id for doc_id in TRAIN if doc_id.startswith("notes")]
HELDOUT = TABLE.filter(pl.col("split") == "heldout")["doc_id"].to_list()
EXCLUDED = TABLE.filter(pl.col("split") == "excluded")["doc_id"].to_list()

ROWS: Rows = [[(BOOKS[0], 5), (NOTES[0], 1)], [(NOTES[0], 4)], [(BOOKS[1], 2), (BOOKS[2], 3)]]


@pytest.fixture
def manifest() -> Manifest:
    return Manifest.open(GOLDEN)


def test_audit_by_hand(tmp_path: Path, manifest: Manifest) -> None:
    """Of three rows one is drawn twice and one never."""
    write_pack(tmp_path, "first", ROWS)
    run = write_run(tmp_path, "seed", [("d00000", "first")], [(0, 0), (0, 1), (0, 0)], 1)
    found = audit(run, manifest)
    assert found.ok
    assert (found.run, found.manifest, found.trained_on, found.trained_steps) == ("seed", manifest.digest, "m" * 64, {"seed": 3})
    assert (found.trained, found.splits, found.columns) == (Count(2, 16), {"train": Count(2, 16)}, {})
    assert found.packs == (PackAccount("seed", "d00000", "first", 15, 10, 5, 16, 16),)
    assert (found.num_violations, found.violations) == (0, ())


def test_audit_of_an_expert_counts_its_seed(tmp_path: Path, manifest: Manifest) -> None:
    write_pack(tmp_path, "first", ROWS)
    write_pack(tmp_path, "second", [[(BOOKS[5], 7)]])
    write_run(tmp_path, "seed", [("d00000", "first"), ("d00001", "second")], [(0, 2), (1, 0)], 1)
    found = audit(write_run(tmp_path, "d00000", [("d00000", "first")], [(0, 2)], 1), manifest)
    assert (found.ok, found.trained) == (True, Count(3, 17))
    assert found.trained_steps == {"seed": 2, "d00000": 1}
    assert [(pack.run, pack.domain, pack.trained_tokens) for pack in found.packs] == [
        ("seed", "d00000", 5),
        ("seed", "d00001", 7),
        ("d00000", "d00000", 5),
    ]


def test_documents_that_should_not_be_seen_are_violations(tmp_path: Path, manifest: Manifest) -> None:
    write_pack(tmp_path, "first", [[(HELDOUT[0], 5), (BOOKS[0], 1)], [(EXCLUDED[0], 2)], [("nobody's", 3)]])
    run = write_run(tmp_path, "seed", [("d00000", "first")], [(0, 0), (0, 1), (0, 0), (0, 2)], 1)
    found = audit(run, manifest)
    assert not found.ok
    expected = [(HELDOUT[0], "split heldout", 10), (EXCLUDED[0], "split excluded", 2), ("nobody's", "not in the manifest", 3)]
    assert found.violations == tuple(sorted(Violation(*each) for each in expected))
    assert found.num_violations == 3
    assert found.splits == {
        "train": Count(1, 2),
        "heldout": Count(1, 10),
        "excluded": Count(1, 2),
        "not in the manifest": Count(1, 3),
    }


def test_violation_of_the_seed_is_one_of_its_experts(tmp_path: Path, manifest: Manifest) -> None:
    write_pack(tmp_path, "first", ROWS)
    write_pack(tmp_path, "second", [[(HELDOUT[0], 7)]])
    write_run(tmp_path, "seed", [("d00001", "second")], [(0, 0)], 1)
    found = audit(write_run(tmp_path, "d00000", [("d00000", "first")], [(0, 2)], 1), manifest)
    assert found.violations == (Violation(HELDOUT[0], "split heldout", 7),)


def test_rows_that_are_not_trained_yet_do_not_count(tmp_path: Path, manifest: Manifest) -> None:
    write_pack(tmp_path, "first", [[(BOOKS[0], 5)], [(HELDOUT[0], 2)]])
    pairs = [(0, 0), (0, 0), (0, 1)]
    run = write_run(tmp_path, "seed", [("d00000", "first")], pairs, 1, finished=False, checkpoints=(1, 2))
    found = audit(run, manifest)
    assert (found.ok, found.trained, found.trained_steps) == (True, Count(1, 10), {"seed": 2})
    assert found.packs[0].not_reached_tokens == 2
    write_checkpoint(tmp_path / ".seed.partial", 3)
    assert not audit(run, manifest).ok


def test_run_without_a_checkpoint_has_seen_nothing(tmp_path: Path, manifest: Manifest) -> None:
    write_pack(tmp_path, "first", ROWS)
    found = audit(write_run(tmp_path, "seed", [("d00000", "first")], [(0, 0)], 1, finished=False), manifest)
    assert (found.ok, found.trained, found.splits, found.packs[0].not_reached_tokens) == (True, Count(0, 0), {}, 15)


def test_filter_of_each_run_is_its_own(tmp_path: Path, manifest: Manifest) -> None:
    """The seed may have the notes, which have no source; the expert may not."""
    write_pack(tmp_path, "first", ROWS)
    write_run(tmp_path, "seed", [("d00000", "first")], [(0, 1)], 1)
    books: Where = {"source": ["books"]}
    clean = write_run(tmp_path, "d00000", [("d00000", "first")], [(0, 2)], 1, where=books)
    found = audit(clean, manifest)
    assert found.ok
    assert found.columns == {"source": {"books": Count(2, 5), "null": Count(1, 4)}}
    wrong = write_run(tmp_path, "d00001", [("d00000", "first")], [(0, 1)], 1, where=books)
    assert audit(wrong, manifest).violations == (Violation(NOTES[0], "does not match where", 8),)
    assert audit(clean, manifest, where=books).violations == (Violation(NOTES[0], "does not match where", 4),)


def test_filter_over_a_kept_column_that_is_called_as_ours(tmp_path: Path, manifest: Manifest) -> None:
    write_pack(tmp_path, "first", ROWS)
    run = write_run(tmp_path, "seed", [("d00000", "first")], [(0, 2)], 1, where={"split": ["train"], "doc_id": BOOKS[1:3]})
    found = audit(run, manifest)
    assert found.ok
    assert found.columns == {"split": {"train": Count(2, 5)}, "doc_id": {BOOKS[1]: Count(1, 2), BOOKS[2]: Count(1, 3)}}


def test_filter_over_an_unknown_column_is_refused(tmp_path: Path, manifest: Manifest) -> None:
    write_pack(tmp_path, "first", ROWS)
    run = write_run(tmp_path, "seed", [("d00000", "first")], [(0, 2)], 1, where={"colour": ["red"]})
    with pytest.raises(ConfigurationError, match=r"has no columns \['colour'\] that the row filter names: it has doc_id"):
        audit(run, manifest)


def test_filter_by_values_of_another_type_is_refused(tmp_path: Path, manifest: Manifest) -> None:
    write_pack(tmp_path, "first", ROWS)
    run = write_run(tmp_path, "seed", [("d00000", "first")], [(0, 2)], 1)
    with pytest.raises(ConfigurationError, match=r"where: year lists \['MCMXC'\], which no Int32 can be"):
        audit(run, manifest, where={"year": ["MCMXC"]})


def test_spans_that_miss_a_document_break_conservation(tmp_path: Path, manifest: Manifest) -> None:
    spans = write_pack(tmp_path, "first", ROWS) / "spans.parquet"
    run = write_run(tmp_path, "seed", [("d00000", "first")], [(0, 0), (0, 0)], 1)
    table = pq.read_table(spans)
    pq.write_table(table.filter(pa.compute.not_equal(table["doc_id"], NOTES[0])), spans)
    found = audit(run, manifest)
    assert not found.ok
    assert (found.num_violations, found.packs) == (0, (PackAccount("seed", "d00000", "first", 15, 5, 9, 12, 10),))


def test_spans_that_name_the_wrong_row_break_conservation(tmp_path: Path, manifest: Manifest) -> None:
    """Row 0 is trained on twice and row 1 once: a piece moved between them changes no sum but that of what was trained."""
    spans = write_pack(tmp_path, "first", ROWS) / "spans.parquet"
    run = write_run(tmp_path, "seed", [("d00000", "first")], [(0, 0), (0, 0), (0, 1)], 1)
    table = pq.read_table(spans).to_pylist()
    pq.write_table(pa.Table.from_pylist([piece | {"row": max(1, piece["row"])} for piece in table], schema=SPANS), spans)
    found = audit(run, manifest)
    assert not found.ok
    assert found.packs == (PackAccount("seed", "d00000", "first", 15, 10, 5, 16, 10),)


def test_row_that_the_pack_lacks_is_refused(tmp_path: Path, manifest: Manifest) -> None:
    write_pack(tmp_path, "first", ROWS)
    run = write_run(tmp_path, "seed", [("d00000", "first")], [(0, 3)], 1)
    with pytest.raises(ManifestError, match=r"trains on row 3 of .*packed/first, which has 3 rows: remove that pack"):
        audit(run, manifest)


def test_listed_violations_are_bounded_and_counted(tmp_path: Path, manifest: Manifest) -> None:
    write_pack(tmp_path, "first", [[(f"{number:04}", 1) for number in range(1200)]])
    found = audit(write_run(tmp_path, "seed", [("d00000", "first")], [(0, 0)], 1), manifest)
    assert (found.num_violations, len(found.violations), found.violations[0].doc_id) == (1200, 1000, "0000")


def test_json_is_plain(tmp_path: Path, manifest: Manifest) -> None:
    write_pack(tmp_path, "first", ROWS)
    where: Where = {"source": ["books"], "year": TABLE["year"].drop_nulls().unique().to_list()}
    run = write_run(tmp_path, "seed", [("d00000", "first")], [(0, 2)], 1, where=where)
    content = json.loads(json.dumps(audit(run, manifest).to_json()))
    assert content["ok"] is True
    assert content["trained"] == {"documents": 2, "tokens": 5}
    assert content["splits"] == {"train": {"documents": 2, "tokens": 5}}
    assert sum(count["documents"] for count in content["columns"]["year"].values()) == 2
    assert content["packs"][0]["conserved"] is True


DOCUMENTS = st.sampled_from([*TABLE["doc_id"].to_list(), "nobody's"])
PACK = st.lists(st.lists(st.tuples(DOCUMENTS, st.integers(1, 4)), min_size=1, max_size=4), min_size=1, max_size=5)


@settings(max_examples=20, deadline=None)
@given(packs=st.lists(PACK, min_size=1, max_size=2), data=st.data(), steps=st.integers(0, 12))
def test_audit_is_the_reference(packs: list[Rows], data, steps: int) -> None:
    every = [(pack, row) for pack, rows in enumerate(packs) for row in range(len(rows))]
    pairs = data.draw(st.lists(st.sampled_from(every), min_size=1, max_size=12))
    splits = dict(TABLE.select("doc_id", "split").iter_rows())
    tokens: Counter[str] = Counter()
    for pack, row in pairs[:steps]:
        for doc_id, length in packs[pack][row]:
            tokens[doc_id] += length
    with tempfile.TemporaryDirectory() as temporary:
        for number, rows in enumerate(packs):
            write_pack(Path(temporary), f"p{number}", rows)
        names = [(f"d{number}", f"p{number}") for number in range(len(packs))]
        found = audit(
            write_run(Path(temporary), "seed", names, pairs, 1, finished=False, checkpoints=(steps,)), Manifest.open(GOLDEN)
        )
    expected: dict[str, list[int]] = {}
    for doc_id, count in tokens.items():
        total = expected.setdefault(splits.get(doc_id, "not in the manifest"), [0, 0])
        total[0] += 1
        total[1] += count
    assert found.splits == {split: tuple(total) for split, total in expected.items()}
    wrong = sorted(doc_id for doc_id in tokens if splits.get(doc_id) != "train")
    assert [violation.doc_id for violation in found.violations] == wrong
    assert found.ok == (not wrong)
    for number, (account, rows) in enumerate(zip(found.packs, packs, strict=True)):
        lengths = [sum(length for _, length in row) for row in rows]
        drawn = [row for pack, row in pairs[:steps] if pack == number]
        reached = sum(lengths[row] for row in set(drawn))
        trained = sum(lengths[row] for row in drawn)
        assert account[3:] == (sum(lengths), reached, sum(lengths) - reached, trained, trained)
