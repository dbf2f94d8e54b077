"""Two manifests compared: made-up pairs beside plain Python, and real ones whose difference is known."""

import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import adjusted_rand_score

from lmsplit.manifests import diff as diff_module
from lmsplit.manifests.causes import STATUSES
from lmsplit.manifests.diff import diff
from lmsplit.manifests.errors import ConfigurationError, DamagedError
from lmsplit.manifests.layout import domain_index
from lmsplit.manifests.reader import Manifest
from lmsplit.partition.config import Partition
from lmsplit.partition.pipeline import partition
from lmsplit.partition.planning import make_plan
from lmsplit.partition.refit import refit_plan
from tests.manifests.small_manifests import document, flat_rule, make_manifest
from tests.partition.corpora import configuration, topical, write

FACTS = st.fixed_dictionaries(
    {
        "domain": st.integers(0, 2),
        "second": st.integers(0, 2),
        "text": st.sampled_from(["one text", "another text"]),
        "margin": st.sampled_from([None, 0.0, 0.3, 0.6]),
        "num_tokens": st.integers(1, 9),
        "split": st.sampled_from(["train", "heldout", "excluded"]),
    }
)
CORPUS = st.dictionaries(st.sampled_from([f"doc {number}" for number in range(12)] + ["ü", "a\x00b"]), FACTS, max_size=14)


def published(root: Path, corpus: dict[str, dict], *, tokens: bool = True, **options) -> Manifest:
    rows = [document(doc_id, **facts) for doc_id, facts in corpus.items()]
    return make_manifest(root, rows if tokens else [row | {"num_tokens": None} for row in rows], flat_rule(3), **options)


def rows_by_id(manifest: Manifest) -> dict[str, dict]:
    return {row["doc_id"]: row for batch in manifest.documents() for row in batch.to_pylist()}


def expected_statuses(a: dict[str, dict], b: dict[str, dict], alignment: dict[str, str | None]) -> dict[str, str]:
    """The definition, document by document."""
    statuses = {}
    for doc_id in a.keys() | b.keys():
        if doc_id not in a:
            statuses[doc_id] = "added"
        elif doc_id not in b:
            statuses[doc_id] = "removed"
        elif alignment[a[doc_id]["domain"]] != b[doc_id]["domain"]:
            statuses[doc_id] = "moved"
        else:
            statuses[doc_id] = "unchanged" if a[doc_id]["text"] == b[doc_id]["text"] else "changed"
    return statuses


def expected_causes(a: dict[str, dict], b: dict[str, dict], statuses: dict[str, str]) -> Counter:
    """With one rule in both."""
    causes = Counter()
    for doc_id, status in statuses.items():
        if status in ("moved", "changed"):
            margins = [side[doc_id]["margin"] for side in (a, b) if side[doc_id]["margin"] is not None]
            other = a[doc_id]["text"] != b[doc_id]["text"]
            causes["text_changed" if other else "low_margin" if min(margins, default=1) <= 2e-4 else "unexplained"] += 1
    return causes


@settings(max_examples=40, deadline=None)
@given(CORPUS, CORPUS, st.integers(1, 40))
def test_diff_is_what_plain_python_counts(corpus_a, corpus_b, rows_per_pass):
    """The five counts in documents, tokens and bytes, causes, churn, splits and agreement, in any number of buckets."""
    with tempfile.TemporaryDirectory() as directory, pytest.MonkeyPatch.context() as patch:
        patch.setattr(diff_module, "ROWS_PER_PASS", rows_per_pass)
        sides = published(Path(directory) / "a", corpus_a), published(Path(directory) / "b", corpus_b, configuration={"seed": 1})
        out = Path(directory) / "out.parquet"
        found = diff(*sides, documents=out)
        a, b = map(rows_by_id, sides)
        written = {row["doc_id"]: row for row in pq.read_table(out).to_pylist()}
    json = found.to_json()
    statuses = expected_statuses(a, b, found.alignment)
    assert {status: json[status] for status in STATUSES} == dict.fromkeys(STATUSES, 0) | Counter(statuses.values())
    for name, column in (("tokens", "num_tokens"), ("bytes", "num_bytes")):
        sums = dict.fromkeys(STATUSES, 0)
        for doc_id, status in statuses.items():
            sums[status] += (b.get(doc_id) or a[doc_id])[column]
        assert json[name] == sums
    assert json["causes"] == expected_causes(a, b, statuses)
    both = sorted(a.keys() & b.keys())
    flows = {(flow["a"], flow["b"]): flow for flow in json["churn"]}
    for pair, documents in Counter((a[doc_id]["domain"], b[doc_id]["domain"]) for doc_id in both).items():
        flow = flows.pop(pair)
        ours = [b[doc_id] for doc_id in both if (a[doc_id]["domain"], b[doc_id]["domain"]) == pair]
        sums = {"tokens": sum(row["num_tokens"] for row in ours), "bytes": sum(row["num_bytes"] for row in ours)}
        assert flow == {"a": pair[0], "b": pair[1], "documents": documents} | sums
    assert not flows
    splits = [(a[doc_id]["split"], b[doc_id]["split"]) for doc_id in both]
    assert json["split_changed"] == sum(before != after for before, after in splits)
    assert json["heldout_to_train"] == splits.count(("heldout", "train"))
    domains = [[side[doc_id]["domain"] for doc_id in both] for side in (a, b)]
    assert json["adjusted_rand"] == (pytest.approx(adjusted_rand_score(*domains)) if both else None)
    assert {doc_id: row["status"] for doc_id, row in written.items()} == {k: v for k, v in statuses.items() if v != "unchanged"}


def some_pair(root: Path, **options) -> tuple[Manifest, Manifest]:
    generator = np.random.default_rng(0)
    texts, splits = ("one text", "another text"), ("train", "heldout")
    corpora = [
        {
            f"doc {number}": {
                "domain": int(generator.integers(3)) if number % 4 else number % 3,
                "text": texts[int(generator.random() < 0.1)],
                "margin": float(generator.random()),
                "num_tokens": int(generator.integers(1, 9)),
                "split": splits[int(generator.random() < 0.2)],
            }
            for number in range(first, first + 300)
        }
        for first in (0, 10)
    ]
    return published(root / "a", corpora[0], **options), published(root / "b", corpora[1], configuration={"seed": 1}, **options)


@pytest.mark.parametrize("rows_per_pass", [1_000, 601, 599, 97, 20])
def test_diff_is_the_same_in_any_number_of_buckets(tmp_path, monkeypatch, rows_per_pass):
    """So are the rows of the file; each pass is reported."""
    a, b = some_pair(tmp_path)
    whole = diff(a, b, documents=tmp_path / "whole.parquet")
    monkeypatch.setattr(diff_module, "ROWS_PER_PASS", rows_per_pass)
    ticks = []
    parts = diff(a, b, documents=tmp_path / "parts.parquet", progress=lambda done, total: ticks.append((done, total)))
    assert parts == whole
    passes = 2 * -(-600 // rows_per_pass)
    assert ticks == [(number, passes) for number in range(1, passes + 1)]
    tables = [pq.read_table(tmp_path / f"{name}.parquet").sort_by("doc_id") for name in ("whole", "parts")]
    assert tables[0].equals(tables[1])
    assert min(whole.amounts[status].documents for status in STATUSES) > 0


def test_diff_counts_bytes_alone_when_one_manifest_has_no_tokens(tmp_path):
    """Tokens are null, not 0."""
    a, _ = some_pair(tmp_path / "with")
    _, b = some_pair(tmp_path / "without", tokens=False)
    json = diff(a, b).to_json()
    assert json["tokens"] is None
    assert {flow["tokens"] for flow in json["churn"]} == {None}
    assert sum(json["bytes"].values()) > 0


def test_diff_of_a_manifest_with_itself_is_empty_and_reads_no_document(copy_path, golden_path, tmp_path):
    """A copy elsewhere is the same manifest; all documents are counted as unchanged."""
    for path in copy_path.glob("data/*/*"):
        path.unlink()
    found = diff(Manifest.open(golden_path), Manifest.open(copy_path), documents=tmp_path / "out.parquet")
    json = found.to_json()
    assert (json["same"], json["unchanged"], json["causes"], json["adjusted_rand"], json["examples"]) == (True, 32, {}, 1.0, [])
    assert [json[status] for status in STATUSES[1:]] == [0, 0, 0, 0]
    assert json["bytes"]["unchanged"] == sum(flow["bytes"] for flow in json["churn"]) == 3548
    assert json["alignment"] == {name: name for name in ("d00000", "d00001", "d00002")}
    assert pq.read_table(tmp_path / "out.parquet").num_rows == 0


def test_diff_that_reads_finds_what_equal_bodies_imply(golden_path, copy_path, forger):
    """The quick answer for the same body is that of reading all, but for `same`."""
    golden = Manifest.open(golden_path)
    quick = diff(golden, golden).to_json()
    forger.body(lambda body: body["software"].update(python="2"), card=False)
    read = diff(golden, Manifest.open(copy_path)).to_json()
    assert read["software"] == {"python": {"a": None, "b": "2"}}
    for key in quick.keys() - {"same", "a", "b", "software"}:
        assert read[key] == quick[key], key


def test_diff_names_the_one_document_whose_text_changed(golden_path, copy_path, forger):
    """It stays in its domain; the file has both digests."""
    forger.value("data/d00001", "text_sha256", 0, "0" * 64, card=False)
    out = copy_path.parent / "out.parquet"
    json = diff(Manifest.open(golden_path), Manifest.open(copy_path), documents=out).to_json()
    assert [json[status] for status in STATUSES] == [31, 0, 1, 0, 0]
    assert json["causes"] == {"text_changed": 1}
    assert [(example["doc_id"], example["status"], example["cause"]) for example in json["examples"]] == [
        ("book-10", "changed", "text_changed")
    ]
    (row,) = pq.read_table(out).to_pylist()
    assert (row["doc_id"], row["text_sha256_b"], row["aligned"]) == ("book-10", "0" * 64, "d00001")
    assert row["text_sha256_a"] == Manifest.open(golden_path).find("book-10").document["text_sha256"]


def test_diff_finds_what_came_and_what_went(golden_path, copy_path, forger):
    """Under another id a document is another one."""
    forger.value("data/d00001", "doc_id", 1, "new", card=False)
    json = diff(Manifest.open(golden_path), Manifest.open(copy_path)).to_json()
    assert [json[status] for status in STATUSES] == [31, 0, 0, 1, 1]
    assert {(each["doc_id"], each["status"], each["domain_a"], each["domain_b"]) for each in json["examples"]} == {
        ("new", "added", None, "d00001"),
        ("book-11", "removed", "d00001", None),
    }
    assert {each["source_path"] for each in json["examples"]} == {"books.parquet"}


def test_diff_counts_a_held_out_document_that_is_trained_on(golden_path, copy_path, forger):
    """It is neither moved nor changed, and yet the evaluation leaks."""
    entry = next(
        e for e in Manifest.open(golden_path).data_files() if pq.read_table(golden_path / e.path)["split"][0].as_py() == "heldout"
    )
    forger.value(entry.path, "split", 0, "train", card=False)
    found = diff(Manifest.open(golden_path), Manifest.open(copy_path))
    assert (found.split_changed, found.heldout_to_train, found.amounts["unchanged"].documents) == (1, 1, 32)


def test_diff_reads_every_kind_of_text_only_by_its_digest(golden_path, copy_path, forger):
    """With a data file that has no text column the difference is the same."""
    forger.table("data/d00001", lambda table: table.drop_columns(["text"]), card=False)
    assert diff(Manifest.open(golden_path), Manifest.open(copy_path)).amounts["unchanged"].documents == 32


def test_diff_of_one_rule_aligns_an_empty_domain_by_name(tmp_path):
    """With another rule it has no counterpart."""
    corpus = {"x": {"domain": 0}, "y": {"domain": 1}}
    a, b = (
        make_manifest(tmp_path / name, [document(k, **v) for k, v in corpus.items()], flat_rule(3), configuration={"n": name})
        for name in "ab"
    )
    assert diff(a, b).alignment == {"d00000": "d00000", "d00001": "d00001", "d00002": "d00002"}
    c = make_manifest(tmp_path / "c", [document(k, **v) for k, v in corpus.items()], flat_rule(3, 0.0, 0.1, 0.0))
    assert diff(a, c).alignment == {"d00000": "d00000", "d00001": "d00001", "d00002": None}


def test_diff_says_which_keys_of_the_configuration_differ(tmp_path):
    """By dotted keys, with both values; lists are values."""
    configurations = (
        {"input": {"text": "body", "keep": ["a"]}, "seed": 0},
        {"input": {"text": "body", "keep": ["b"]}, "fraction": 0.5},
    )
    a, b = (make_manifest(tmp_path / str(n), [], flat_rule(1), configuration=each) for n, each in enumerate(configurations))
    assert diff(a, b).to_json()["rule"]["configuration"] == {
        "fraction": {"a": None, "b": 0.5},
        "input.keep": {"a": ["a"], "b": ["b"]},
        "seed": {"a": 0, "b": None},
    }


def test_diff_of_manifests_without_documents_is_empty(tmp_path):
    """Nothing to agree on: no adjusted Rand index."""
    a, b = (make_manifest(tmp_path / name, [], flat_rule(2), configuration={"n": name}) for name in "ab")
    json = diff(a, b).to_json()
    assert [json[status] for status in STATUSES] == [0] * 5
    assert (json["adjusted_rand"], json["churn"]) == (None, [])


def test_diff_gives_the_most_telling_examples_first(tmp_path):
    """Other texts, then moves by the smaller of both margins, then what came and went; 20 in all."""
    moves = {f"m{n:02}": ({"domain": 0, "margin": 0.9}, {"domain": 1, "margin": n / 100}) for n in range(1, 31)}
    moves["a"] = ({"domain": 0, "margin": None}, {"domain": 1, "margin": None})
    stay = {f"s{n}": ({"domain": n % 3}, {"domain": n % 3}) for n in range(200)}
    texts = {f"t{n}": ({"domain": 0, "text": "x"}, {"domain": n, "text": "y"}) for n in range(2)}
    pairs = moves | stay | texts
    a = make_manifest(tmp_path / "a", [document(k, **v[0]) for k, v in pairs.items()] + [document("gone", 1)], flat_rule(3))
    b = make_manifest(tmp_path / "b", [document(k, **v[1]) for k, v in pairs.items()], flat_rule(3, 0.4, 0.0, 0.0))
    examples = diff(a, b).examples
    assert [each.doc_id for each in examples] == ["t0", "t1", *(f"m{n:02}" for n in range(30, 12, -1))]
    assert {each.cause for each in examples[2:]} == {"price_moved"}


def test_diff_does_not_take_a_directory_for_a_pattern(tmp_path):
    """Names that polars would expand or read columns from."""
    corpora = ({"x": {"domain": 0}}, {"x": {"domain": 0}, "y": {"domain": 0}})
    a, b = (
        make_manifest(tmp_path / name, [document(k, **v) for k, v in corpus.items()], flat_rule(1))
        for name, corpus in zip(("split=1 [a]*", "split=2?"), corpora, strict=True)
    )
    assert diff(a, b).amounts["added"].documents == 1


@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("how", ["missing", "torn", "page", "domain"])
def test_diff_names_the_manifest_that_cannot_be_read(golden_path, copy_path, forger, side, how):
    """A missing file, half a file, a broken page, a domain that the table does not have."""
    if how == "domain":
        forger.value("data/d00001", "domain", 0, "d00009", card=False)
    else:
        forger.body(lambda body: body.update(tier=""), card=False)
        path = copy_path / forger.path("data/d00001")
        data = path.read_bytes()
        path.unlink()
        if how != "missing":
            path.write_bytes(data[: len(data) // 2] if how == "torn" else data[:4] + bytes(1000) + data[1004:])
    sides = [Manifest.open(golden_path), Manifest.open(copy_path)][:: 1 if side else -1]
    with pytest.raises(DamagedError, match=f"the documents of {copy_path} cannot be read .*: run lmsplit verify {copy_path}"):
        diff(*sides)


def test_diff_refuses_an_existing_file_before_it_reads(golden_path, copy_path, forger, tmp_path):
    """The file is as it was, and the data is not opened."""
    forger.body(lambda body: body.update(tier=""), card=False)
    for path in copy_path.glob("data/*/*"):
        path.unlink()
    out = tmp_path / "out.parquet"
    out.write_bytes(b"mine")
    with pytest.raises(ConfigurationError, match=f"{out} exists, and is not overwritten"):
        diff(Manifest.open(golden_path), Manifest.open(copy_path), documents=out)
    assert out.read_bytes() == b"mine"


def test_diff_of_another_seed_explains_every_move(manifest_path, corpus_path, tmp_path):
    """A real corpus partitioned twice: the lexical encoder is fitted on the sample, which the seed draws."""
    first = Manifest.open(manifest_path)
    keys = {"input": {"paths": str(corpus_path), "group": "group"}, "output": str(tmp_path / "out"), "domains": 4}
    partition(
        Partition.model_validate(keys | {"encoder": "lexical", "executor": {"workers": 0}, "seed": 3, "heldout_fraction": 0.1})
    )
    json = diff(first, Manifest.open(tmp_path / "out")).to_json()
    assert json["moved"] > 0
    assert sum(json["causes"].values()) == json["moved"]
    assert "unexplained" not in json["causes"]
    assert json["rule"]["configuration"]["seed"] == {"a": 0, "b": 3}
    assert json["unchanged"] + json["moved"] == first.body.counts.published.records


def test_diff_of_a_changed_corpus_names_what_changed(tmp_path):
    """One text changed, one document added, one removed; all the others are told apart from them."""
    rows = topical(240)
    other = [row | {"text": "violin piano river"} if row["id"] == "doc-7" else row for row in rows if row["id"] != "doc-11"]
    for name, corpus in (("a", rows), ("b", [*other, topical(1, first=999)[0]])):
        write(tmp_path / f"in-{name}" / "a.parquet", corpus)
        partition(configuration(tmp_path / f"in-{name}", tmp_path / name))
    out = tmp_path / "out.parquet"
    json = diff(Manifest.open(tmp_path / "a"), Manifest.open(tmp_path / "b"), documents=out).to_json()
    assert (json["added"], json["removed"], json["causes"]["text_changed"]) == (1, 1, 1)
    rows_of = {row["doc_id"]: row for row in pq.read_table(out).to_pylist()}
    assert (rows_of["doc-999"]["status"], rows_of["doc-11"]["status"], rows_of["doc-7"]["cause"]) == (
        "added",
        "removed",
        "text_changed",
    )
    assert json["examples"][0]["doc_id"] == "doc-7"
    assert json["rule"]["encoder_changed"]
    assert set(json["causes"]) <= {"text_changed", "encoder_changed"}


@pytest.fixture(scope="module")
def refitted(corpus_path, tmp_path_factory) -> tuple[Manifest, Manifest]:
    """Commit 0 of unequal domains, and commit 1 that bounds the largest: the same vectors."""
    wanted = configuration(corpus_path, tmp_path_factory.mktemp("refitted") / "out", keep_embeddings=True, domains=4)
    partition(wanted)
    changed = Partition.model_validate(wanted.model_dump(mode="json") | {"max_imbalance": 1.05})
    partition(changed, refit_plan(make_plan(changed), changed.output))
    return Manifest.open(f"{wanted.output}@0"), Manifest.open(wanted.output)


def vectors(manifest: Manifest) -> dict[str, np.ndarray]:
    entries = [entry for entry in manifest.body.files if entry.path.startswith("embeddings/")]
    table = pa.concat_tables(pq.read_table(manifest.store.path(entry.path)) for entry in entries)
    return dict(zip(table["doc_id"].to_pylist(), np.array(table["vector"].to_pylist()), strict=True))


def test_diff_of_a_refit_says_whether_price_or_centroid_moved_a_document(refitted, tmp_path):
    """As the kept vectors say when each is placed with B's centroids and A's prices."""
    a, b = refitted
    out = tmp_path / "out.parquet"
    found = diff(a, b, documents=out)
    assert not found.rule.encoder_changed
    assert found.rule.prices_moved > 0
    assert found.amounts["changed"].documents == found.amounts["added"].documents == found.amounts["removed"].documents == 0
    centroids_a, centroids_b = (each.rule().centroids_KD.astype(np.float64) for each in (a, b))
    aligned = [domain_index(name) for name in found.alignment.values()]
    prices_KD = np.empty(len(aligned))
    prices_KD[aligned] = a.rule().prices_K - (centroids_a**2).sum(1) / 2
    vector_of = vectors(b)
    causes = Counter()
    for row in pq.read_table(out).to_pylist():
        if row["cause"] != "low_margin":
            costs_K = 1 - centroids_b @ vector_of[row["doc_id"]] + (centroids_b**2).sum(1) / 2 + prices_KD
            stays, moves = domain_index(row["aligned"]), domain_index(row["domain_b"])
            second = b.find(row["doc_id"], ["second_domain"]).document["second_domain"]
            by_price = second == row["aligned"] and costs_K[stays] <= costs_K[moves]
            assert row["cause"] == ("price_moved" if by_price else "centroids_moved"), row
        causes[row["cause"]] += 1
    assert found.causes == causes
    assert causes["price_moved"] > 0


def test_diff_back_from_a_refit_counts_the_same(refitted):
    """What stays one way stays the other way."""
    a, b = refitted
    there, back = diff(a, b), diff(b, a)
    assert there.amounts == back.amounts
    assert there.adjusted_rand == pytest.approx(back.adjusted_rand)
    assert {(flow.a, flow.b, flow.amount) for flow in there.churn} == {(flow.b, flow.a, flow.amount) for flow in back.churn}
