"""explain: every document is explained as its row has it, the rest as what became of it, and programs get the same keys."""

import datetime
import hashlib
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.stats import percentileofscore

from lmsplit.manifests.commit import canonical, write_commit
from lmsplit.manifests.errors import DamagedError, ManifestError
from lmsplit.manifests.explain import explain, explain_text
from lmsplit.manifests.explanation import Explanation
from lmsplit.manifests.lookup import SetAside
from lmsplit.manifests.reader import Manifest
from lmsplit.partition.config import Partition
from lmsplit.partition.pipeline import partition
from lmsplit.partition.planning import make_plan
from lmsplit.partition.refit import refit_plan
from tests.partition.corpora import configuration, rows, topical, write

FIRST = "data/d00000/part-00000"  # book-00, -01, -02 and -04
TOMBSTONE = {"doc_id": "gone", "reason": "licence", "date": "2026-01-02"}


def explained(path: Path, doc_id: str, **options) -> Explanation:
    return explain(Manifest.open(path), doc_id, **options)


def explained_again(path: Path, doc_id: str) -> Explanation:
    manifest = Manifest.open(path)
    return explain(manifest, doc_id, encoder=manifest.encoder())


def explained_text(path: Path, text: str) -> Explanation:
    manifest = Manifest.open(path)
    return explain_text(manifest, text, manifest.encoder())


def take_down(forger, doc_id: str) -> None:
    forger.body(lambda body: body.update(tombstones=[TOMBSTONE | {"doc_id": doc_id}]))


@pytest.fixture(scope="module")
def repeated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two commits, flat and as a tree, of 120 documents and a copy of each with one word changed, which has no group."""
    directory = tmp_path_factory.mktemp("repeated")
    originals = topical(120, words=120)
    copies = [row | {"id": f"{row['id']}-copy", "group": None, "text": f"{row['text']} again"} for row in originals]
    write(directory / "in" / "a.jsonl", originals)
    write(directory / "in" / "b.jsonl", copies)
    first = configuration(directory / "in", directory / "out", heldout_fraction=0.1, keep_embeddings=True)
    partition(first)
    second = Partition.model_validate(first.model_dump(mode="json") | {"domains": [2, 2]})
    partition(second, refit_plan(make_plan(second), second.output))
    return directory / "out"


def test_explain_tells_of_every_document_what_its_row_has(golden_path):
    manifest = Manifest.open(golden_path)
    for row in rows(golden_path):
        found = explain(manifest, row["doc_id"]).to_json()
        assert found["status"] == "published"
        for name in set(row) - {"text", *manifest.body.columns}:
            assert found[name] == row[name]
        assert found["kept"] == {"license": row["license"], "year": row["year"]}
        assert pq.read_table(golden_path / found["path"])["doc_id"][found["row"]].as_py() == row["doc_id"]
        domain = manifest.domain(row["domain"])
        assert (found["label"], found["keywords"]) == (domain.label, list(domain.keywords))
        assert found["second_label"] == manifest.domain(row["second_domain"]).label
        said = [(each["doc_id"], each["excerpt"], each["similarity"]) for each in found["representatives"]]
        assert said == [(*pair, None) for pair in zip(domain.representatives, domain.excerpts, strict=True)]


def test_excerpt_is_the_beginning_of_the_text_on_one_line(copy_path, forger):
    forger.value(FIRST, "text", 0, "  One\n\n line,\tthen " + "x" * 400)
    found = explained(copy_path, "book-00").excerpt
    assert found == "One line, then " + "x" * 284 + "…"
    assert len(found) == 300
    forger.value(FIRST, "text", 0, "y" * 300)
    assert explained(copy_path, "book-00").excerpt == "y" * 300


def test_percentile_counts_the_documents_that_are_nearer(golden_path):
    """By hand: of the ten distances in d00001, three are below 0.4692, and one is book-14's own: 3 + 1/2 of 10."""
    assert explained(golden_path, "book-14").percentile == 35.0
    assert explained(golden_path, "book-11").percentile == 5.0  # the nearest
    assert explained(golden_path, "notes.jsonl:7").percentile == 95.0


def test_percentile_counts_ties_half(copy_path, forger):
    """By hand: 0.25, 0.25, 0.25, 0.5 and seven that are farther: none is nearer than 0.25, three are as near."""
    table = pq.read_table(copy_path / forger.path(FIRST))
    for row, distance in enumerate([0.25, 0.25, 0.25, 0.375]):
        forger.value(FIRST, "distance", row, distance, card=False)
    assert table.num_rows == 4
    assert [explained(copy_path, doc_id).percentile for doc_id in ("book-00", "book-04")] == [
        pytest.approx(100 * 1.5 / 11),
        pytest.approx(100 * 3.5 / 11),
    ]


def test_percentile_is_that_of_scipy(manifest_path):
    manifest = Manifest.open(manifest_path)
    published = rows(manifest_path)
    for row in published[::53]:
        own = [each["distance"] for each in published if each["domain"] == row["domain"]]
        expected = percentileofscore(own, row["distance"], kind="mean")
        assert explain(manifest, row["doc_id"]).percentile == pytest.approx(expected)


def test_explain_opens_the_data_files_of_one_domain_only(copy_path, golden_path):
    for path in copy_path.glob("data/d0000[12]/*"):
        path.unlink()
    assert explained(copy_path, "book-00") == explained(golden_path, "book-00")
    with pytest.raises(DamagedError, match="cannot be read"):
        explained(copy_path, "book-14")


def test_explain_of_a_document_that_a_student_placed_has_no_percentile(copy_path, forger):
    for column, value in (("distance", None), ("second_distance", None), ("placed_by", "student"), ("confidence", 0.75)):
        forger.value(FIRST, column, 0, value, card=False)
    found = explained_again(copy_path, "book-00")
    assert (found.distance, found.percentile, found.placed_by, found.confidence) == (None, None, "student", 0.75)
    assert (found.recomputed.matches, found.recomputed.difference) == (True, None)
    others = [row["distance"] for row in rows(copy_path) if row["domain"] == "d00000" and row["distance"] is not None]
    assert explained(copy_path, "book-01").percentile == percentileofscore(others, others[0], kind="mean")


def test_split_reason_gives_the_draw_of_every_document(repeated):
    manifest = Manifest.open(repeated)
    assert manifest.body.heldout_fraction == 0.1
    for row in rows(repeated)[::5]:
        reason = explain(manifest, row["doc_id"]).split_reason
        whose = "its text, as it has no group," if row["group"] is None else f"its group {row['group']!r}"
        if row["split"] == "heldout":
            assert reason.startswith(f"held out: the keyed hash of {whose} drew 0.0")
            assert reason.endswith(", below the held-out share of 0.1")
        elif row["split"] == "train":
            assert reason.startswith(f"train: the keyed hash of {whose} drew ")
            assert "not below the held-out share of 0.1; no held-out document was found that it nearly repeats" in reason


def test_excluded_document_names_the_one_that_it_repeats(repeated):
    excluded = [row["doc_id"] for row in rows(repeated) if row["split"] == "excluded"]
    assert len(excluded) > 3
    for doc_id in excluded:
        found = explained(repeated, doc_id)
        other = doc_id.removesuffix("-copy") if doc_id.endswith("-copy") else f"{doc_id}-copy"
        assert (found.excluded_for.doc_id, explained(repeated, other).split) == (other, "heldout")
        assert found.excluded_for.similarity == pytest.approx(116 / 117)  # of 121 words, 117 5-grams; one is new
        assert found.split_reason == f"excluded: it nearly repeats the held-out document {other!r}, with similarity 0.991"


def test_explain_lists_what_was_set_aside_beside_a_published_document(golden_path):
    found = explained(golden_path, "book-00")
    assert (found.status, found.domain) == ("published", "d00000")
    assert found.set_aside == (SetAside("duplicate_id", None, "books.parquet", 31),)
    assert explained(golden_path, "book-01").set_aside == ()


def test_explain_says_why_a_record_was_quarantined(golden_path):
    found = explained(golden_path, "notes.jsonl:9")
    assert (found.status, found.domain, found.added_in, found.nearest_ids) == ("quarantined", None, None, None)
    assert found.set_aside == (SetAside("empty_text", None, "notes.jsonl", 9),)


def test_explain_knows_a_duplicate(copy_path, forger):
    forger.value("quarantine", "doc_id", 2, "lost")
    found = explained(copy_path, "lost")
    assert (found.status, [record.reason for record in found.set_aside]) == ("duplicate", ["duplicate_id"])


def test_explain_knows_what_was_taken_down(copy_path, forger):
    take_down(forger, "gone")
    found = explained(copy_path, "gone")
    assert (found.status, found.nearest_ids) == ("taken_down", None)
    assert {key: found.taken_down[key] for key in TOMBSTONE} == TOMBSTONE
    newest = Manifest.open(copy_path)
    write_commit(newest.store, newest.body.model_copy(update={"parent": newest.digest, "tombstones": ()}), 1)
    assert explained(copy_path, "gone").taken_down == found.taken_down


@pytest.mark.parametrize(("doc_id", "status"), [("notes.jsonl:9", "taken_down"), ("book-00", "published")])
def test_taken_down_wins_over_quarantined_but_not_over_published(copy_path, forger, doc_id, status):
    take_down(forger, doc_id)
    found = explained(copy_path, doc_id)
    assert (found.status, found.taken_down["reason"], len(found.set_aside)) == (status, "licence", 1)


def test_explain_of_an_unknown_id_names_ids_like_it(golden_path):
    found = explained(golden_path, "bok-02")
    assert (found.status, found.domain, found.taken_down, found.set_aside) == ("unknown", None, None, ())
    assert found.nearest_ids[0] == "book-02"


def test_recomputing_confirms_a_real_manifest(repeated):
    for location in (repeated, f"{repeated}@0"):
        manifest = Manifest.open(location)
        encoder = manifest.encoder()
        for row in rows(location)[::23]:
            again = explain(manifest, row["doc_id"], encoder=encoder).recomputed
            assert (again.domain, again.second_domain, again.matches) == (row["domain"], row["second_domain"], True)
            assert (again.distance, again.margin, again.difference) == (row["distance"], row["margin"], 0.0)
    assert manifest.rule().depth == 1
    assert Manifest.open(repeated).rule().depth == 2
    assert explained(repeated, "doc-0").recomputed is None


@pytest.mark.parametrize(
    ("changes", "matches"),
    [
        ({}, True),
        ({"distance": lambda old: old + 0.001}, False),
        ({"distance": lambda old: old - 1e-5}, True),
        ({"domain": "d00002"}, False),
        ({"domain": "d00002", "margin": 1e-4}, True),
    ],
)
def test_recomputing_decides_as_deep_verify_does(copy_path, forger, changes, matches):
    for column, value in changes.items():
        forger.value(FIRST, column, 0, value)
    found = explained_again(copy_path, "book-00").recomputed
    assert found.matches is matches
    assert (("placement", "book-00") in forger.found(deep=True)) is not matches
    assert found.tolerance == 1e-4
    recorded = Manifest.open(copy_path).find("book-00").document["distance"]
    assert found.difference == pytest.approx(abs(found.distance - recorded))


def test_recomputing_orders_representatives_by_similarity(golden_path):
    manifest = Manifest.open(golden_path)
    encoder = manifest.encoder()
    found = explain(manifest, "book-00", encoder=encoder)
    texts = {row["doc_id"]: row["text"] for row in rows(golden_path)}
    vectors = encoder.encode([texts["book-00"], texts["book-08"], texts["book-06"]]).astype(np.float64)
    expected = {"book-08": float(vectors[0] @ vectors[1]), "book-06": float(vectors[0] @ vectors[2])}
    assert [each.doc_id for each in found.representatives] == ["book-06", "book-08"]  # nearest the centroid is book-08
    assert {each.doc_id: each.similarity for each in found.representatives} == pytest.approx(expected)
    assert explain(manifest, "book-08", encoder=encoder).representatives[0].similarity == pytest.approx(1)


def test_representative_without_a_text_comes_last(copy_path, forger):
    forger.value("domains", "representatives", 0, ["nobody", "book-06"])
    found = explained_again(copy_path, "book-00").representatives
    assert [(each.doc_id, each.similarity is None) for each in found] == [("book-06", False), ("nobody", True)]


def test_recomputing_a_text_with_nothing_in_it_is_refused(copy_path, forger):
    forger.value(FIRST, "text", 0, " ")
    with pytest.raises(ManifestError, match=r"nothing in the text of 'book-00', .*: run lmsplit verify --deep"):
        explained_again(copy_path, "book-00")


def test_history_says_since_when_it_is_there_and_since_when_so_placed(repeated):
    first, second = Manifest.open(f"{repeated}@0"), Manifest.open(repeated)
    found = explain(second, "doc-7")
    assert (found.added_in.version, found.placed_in.version, found.history_ends) == (0, 1, None)
    assert (found.added_in.commit, found.placed_in.commit) == (first.digest, second.digest)
    assert found.placed_in.created_at == second.commit.created_at
    assert explain(first, "doc-7").placed_in.version == 0


def test_digests_are_those_of_the_files_and_the_commit(golden_path):
    body = json.loads((golden_path / "commits" / "00000.json").read_bytes())["body"]
    digests = explained(golden_path, "nobody").digests
    assert body["placement"] == f"placement/{digests.rule[:16]}.json"
    assert body["plan"] == f"plans/{digests.plan[:16]}.json"
    assert digests.commit == Manifest.open(golden_path).digest
    rule = json.loads((golden_path / body["placement"]).read_bytes())
    for found, content in ((digests.encoder, rule["encoder"]), (digests.configuration, body["configuration"])):
        assert found == hashlib.sha256(canonical(content)).hexdigest()


def test_text_is_placed_as_the_document_with_it_was(repeated):
    for location in (f"{repeated}@0", repeated):
        row = rows(location)[5]
        found = explained_text(location, row["text"])
        for name in ("domain", "distance", "second_domain", "second_distance", "margin", "text_sha256", "num_bytes", "placed_by"):
            assert getattr(found, name) == row[name]
        document = explained(location, row["doc_id"])
        assert (found.status, found.doc_id, found.percentile) == ("unknown", None, document.percentile)
        assert (found.label, found.keywords, found.excerpt) == (document.label, document.keywords, document.excerpt)
        assert {each.doc_id for each in found.representatives} == {each.doc_id for each in document.representatives}
        similarities = [each.similarity for each in found.representatives]
        assert similarities == sorted(similarities, reverse=True)


@pytest.mark.parametrize("commit", [0, 1])
def test_scores_begin_with_the_domain_and_the_runner_up(repeated, commit):
    location = f"{repeated}@{commit}"
    manifest = Manifest.open(location)
    for row in rows(location)[::29]:
        found = explained_text(location, row["text"])
        first, second, *rest = found.scores
        assert (first.domain, first.margin, second.domain) == (found.domain, 0.0, found.second_domain)
        assert (first.distance, second.distance) == (found.distance, found.second_distance)
        assert second.margin == pytest.approx(found.margin, abs=1e-6)
        assert [score.margin for score in rest] == sorted(score.margin for score in rest)
        assert [score.label for score in found.scores] == [manifest.domain(score.domain).label for score in found.scores]


def test_text_may_be_in_a_domain_without_documents(copy_path, forger):
    forger.body(lambda body: body.update(files=[e for e in body["files"] if not e["path"].startswith("data/d00001")]), card=False)
    for column in ("representatives", "excerpts"):
        forger.value("domains", column, 1, [], card=False)
    found = explained_text(copy_path, "Reef the mainsail early. When the wind rises, a smaller sail")
    assert (found.domain, found.percentile, found.representatives) == ("d00001", None, ())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the text is empty, so it belongs to no domain"),
        (" \n", "the encoder finds nothing in the text, so it belongs to no domain: give a text with words in it"),
        ("half \ud83d", "the text cannot be UTF-8 .*surrogates not allowed.*: give it without half surrogate pairs"),
    ],
)
def test_text_that_belongs_nowhere_is_refused(golden_path, text, message):
    with pytest.raises(ManifestError, match=message):
        explained_text(golden_path, text)


def test_to_json_has_the_same_keys_for_every_status(copy_path, forger):
    forger.value("quarantine", "doc_id", 2, "lost", card=False)
    take_down(forger, "gone")
    ids = ("book-00", "notes.jsonl:9", "lost", "gone", "nobody", "\udc80")
    found = [explained(copy_path, doc_id).to_json() for doc_id in ids]
    found += [explained_again(copy_path, "book-00").to_json(), explained_text(copy_path, "wind and bread").to_json()]
    statuses = ["published", "quarantined", "duplicate", "taken_down", "unknown", "unknown", "published", "unknown"]
    assert [each["status"] for each in found] == statuses
    assert {tuple(each) for each in found} == {tuple(found[0])}
    for each in found:
        assert json.loads(json.dumps(each, allow_nan=False, ensure_ascii=False).encode()) == each


def test_to_json_has_the_keys_that_programs_rely_on(golden_path):
    keys = """doc_id status domain label keywords distance percentile second_domain second_label second_distance margin source
    source_path source_row text_sha256 group split split_reason excluded_for placed_by confidence num_bytes num_tokens path row
    kept excerpt representatives set_aside taken_down digests added_in placed_in recomputed nearest_ids scores"""
    found = explained_again(golden_path, "book-00").to_json()
    assert set(keys.split()) <= set(found)
    assert set(found["digests"]) == {"encoder", "rule", "configuration", "plan", "commit"}
    assert set(found["added_in"]) == set(found["placed_in"]) == {"version", "commit", "created_at"}
    again = {"domain", "distance", "second_domain", "margin", "matches", "tolerance", "difference"}
    assert set(found["recomputed"]) == again
    assert set(found["set_aside"][0]) == {"reason", "detail", "source_path", "source_row"}


def test_to_json_writes_dates_as_text_and_no_number_that_json_lacks(golden_path):
    moment = datetime.datetime(2026, 1, 2, 3, tzinfo=datetime.UTC)
    kept = {"day": moment.date(), "moment": moment, "bad": float("nan"), "stars": 3, "good": True}
    found = Explanation("x", "published", explained(golden_path, "nobody").digests, kept=kept).to_json()["kept"]
    expected = {"day": "2026-01-02", "moment": "2026-01-02T03:00:00+00:00", "bad": None, "stars": 3, "good": True}
    assert found == expected


def test_kept_columns_of_a_real_manifest_are_json(tmp_path):
    source = [row | {"day": datetime.date(2026, 1, 1 + number % 20)} for number, row in enumerate(topical(120))]
    (tmp_path / "in").mkdir()
    pq.write_table(pa.Table.from_pylist(source), tmp_path / "in" / "a.parquet")
    columns = {"paths": str(tmp_path / "in"), "group": "group", "keep": ["day", "stars"]}
    partition(configuration(tmp_path / "in", tmp_path / "out", input=columns))
    assert explained(tmp_path / "out", "doc-7").to_json()["kept"] == {"day": "2026-01-08", "stars": 1}
