"""The card: it names the exact files, and hostile labels do nothing."""

import datasets
import pytest
import yaml

from lmsplit.manifests.card import render_card, write_card
from lmsplit.manifests.reader import Manifest
from lmsplit.manifests.verify import verify_manifest

HOSTILE = [
    "a | b | c",
    "---\nconfigs: []\n---",
    "`code` *bold* _it_ [link](http://evil.example) ![image](x)",
    "<script>alert(1)</script> &lt;b&gt;",
    "# heading\r\n\r\n## another",
    "key: 'value' \"quoted\" {a: b} %TAG !tag &anchor @at",
    "$x^2$ https://evil.example ~~gone~~ \\",
    "line\u2028separator\x00nul\x1bescape \u202eright to left",
    "",
]


def parts_of(card: str) -> tuple[dict, str]:
    _, head, text = card.split("---\n", 2)
    return yaml.safe_load(head), text


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
    assert "1 duplicate_id, 1 empty_text, 1 malformed_json" in text
    assert manifest.digest in text


def test_card_has_no_tokens_when_they_are_not_counted(golden_path):
    text = (golden_path / "README.md").read_text()
    assert render_card(Manifest.open(golden_path)) == text
    assert "tokens" not in text


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
    rows = [line for line in body.splitlines() if line.startswith("| d0")]
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
