"""The card: it names the exact files, its head is what the Hub asks for, and hostile labels do nothing."""

import datasets
import pytest

from lmsplit.manifests.card import hub_licence, render_card, size_category, write_card
from lmsplit.manifests.reader import Manifest
from lmsplit.manifests.verify import verify_manifest
from tests.manifests.cards import HOSTILE, parts_of, set_all


def test_card_names_the_files_of_the_commit_by_domain_and_split(golden_path):
    manifest = Manifest.open(golden_path)
    head, _ = parts_of(render_card(manifest))
    assert [each["config_name"] for each in head["configs"]] == [domain.domain for domain in manifest.domains]
    named = [path for each in head["configs"] for files in each["data_files"] for path in files["path"]]
    assert sorted(named) == [entry.path for entry in manifest.data_files()]
    for each in head["configs"]:
        for files in each["data_files"]:
            rows = sum(entry.rows for entry in manifest.data_files() if entry.path in files["path"])
            assert rows == manifest.domain(each["config_name"]).splits[files["split"]]


def test_card_is_the_same_for_the_same_commit(golden_path):
    assert render_card(Manifest.open(golden_path)) == render_card(Manifest.open(golden_path))


def test_card_says_what_is_in_the_manifest(golden_path):
    manifest = Manifest.open(golden_path)
    _, text = parts_of(render_card(manifest))
    assert "32 documents" in text
    assert "Set aside: 1 duplicate\\_id, 1 empty\\_text, 1 malformed\\_json." in text
    assert manifest.digest in text


def test_card_has_no_tokens_when_they_are_not_counted(golden_path):
    text = (golden_path / "README.md").read_text()
    assert render_card(Manifest.open(golden_path)) == text
    assert "tokens" not in text
    assert "a text's first 2,000 characters" in text


def test_card_shows_tokens_when_they_are_counted(copy_path, forger):
    total = forger.count_words()
    manifest = Manifest.open(copy_path)
    lines = parts_of((copy_path / "README.md").read_text())[1].splitlines()
    assert f"bytes of text, {total:,} tokens, 3 domains." in "\n".join(lines)
    start = lines.index("| domain | label | documents | bytes | tokens | keywords |")
    assert lines[start + 1] == "|---|---|---:|---:|---:|---|"
    for domain, row in zip(manifest.domains, lines[start + 2 :], strict=False):
        assert f" | {domain.num_bytes:,} | {domain.num_tokens:,} | " in row


def test_card_leaves_out_a_count_that_a_domain_lacks(copy_path, forger):
    forger.count_words()
    forger.value("domains", "num_tokens", 0, None)
    domain = Manifest.open(copy_path).domains[0]
    assert f"| {domain.documents:,} | {domain.num_bytes:,} | | bread" in (copy_path / "README.md").read_text()


def with_labels(table, labels):
    columns = {name: table[name].to_pylist() for name in table.schema.names}
    columns["label"] = labels
    columns["keywords"] = [[label, "plain"] for label in labels]
    return table.from_pydict(columns, table.schema)


@pytest.mark.parametrize("label", HOSTILE, ids=range(len(HOSTILE)))
def test_card_shows_a_hostile_label_as_one_line_of_text(forger, copy_path, golden_path, label):
    forger.table("domains", lambda table: with_labels(table, [label] * 3))
    text = (copy_path / "README.md").read_text()
    head, body = parts_of(text)
    assert [each["config_name"] for each in head["configs"]] == ["d00000", "d00001", "d00002"]
    rows = [line for line in body.split("## Splits")[0].splitlines() if line.startswith("| d0")]
    assert len(rows) == 3
    for row in rows:
        assert row.replace("\\\\", "").replace("\\|", "").count("|") == 6
        for markup in "`*[]<#$&@!{":
            assert row.count(markup) == row.count(f"\\{markup}")
    assert len(body.splitlines()) == len(parts_of((golden_path / "README.md").read_text())[1].splitlines())
    assert text.isprintable() or set(filter(lambda c: not c.isprintable(), text)) == {"\n"}
    assert verify_manifest(copy_path, deep=True) == []


def test_card_with_hostile_labels_still_loads(forger, copy_path, tmp_path):
    forger.table("domains", lambda table: with_labels(table, ["\n".join(HOSTILE), "---\n", "configs:\n- x"]))
    loaded = datasets.load_dataset(str(copy_path), "d00001", cache_dir=str(tmp_path / "cache"))
    assert {split: len(rows) for split, rows in loaded.items()} == {"train": 8, "heldout": 2}


def test_write_card_replaces_the_card(copy_path):
    (copy_path / "README.md").write_text("old")
    write_card(Manifest.open(copy_path))
    assert (copy_path / "README.md").read_text() == render_card(Manifest.open(copy_path))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("CC-BY-4.0", {"license": "cc-by-4.0"}),
        (" MIT ", {"license": "mit"}),
        ("Our Terms: v2", {"license": "other", "license_name": "our-terms-v2"}),
        ("---\nconfigs: []", {"license": "other", "license_name": "configs"}),
        ("許可", {"license": "other"}),
        ("  ", {}),
    ],
)
def test_head_has_the_licence_that_all_documents_share(forger, copy_path, value, expected):
    """In the words of the Hub."""
    set_all(forger, "license", lambda number: value)
    head, _ = parts_of((copy_path / "README.md").read_text())
    assert {key: found for key, found in head.items() if key.startswith("license")} == expected
    assert not expected or hub_licence(value) == expected


@pytest.mark.parametrize("other", [None, "MIT"])
def test_head_has_no_licence_where_one_document_has_another(forger, copy_path, other):
    """Or none at all."""
    set_all(forger, "license", lambda number: other if number == 31 else "CC0-1.0")
    assert "license" not in parts_of((copy_path / "README.md").read_text())[0]


def test_head_says_what_the_hub_asks_for(golden_path):
    """A name for people, and the size in its own words."""
    head, _ = parts_of(render_card(Manifest.open(golden_path)))
    assert list(head) == ["pretty_name", "size_categories", "configs"]
    assert (head["pretty_name"], head["size_categories"]) == ("A corpus in 3 domains", ["n<1K"])


@pytest.mark.parametrize(
    ("documents", "expected"),
    [
        (0, "n<1K"),
        (9_999, "1K<n<10K"),
        (10_000, "10K<n<100K"),
        (999_999, "100K<n<1M"),
        (10**6, "1M<n<10M"),
        (10**9, "1B<n<10B"),
        (10**12 - 1, "100B<n<1T"),
        (10**12, "n>1T"),
    ],
)
def test_size_category_is_below_its_bound(documents, expected):
    """The bounds themselves belong to the next one."""
    assert size_category(documents) == expected
