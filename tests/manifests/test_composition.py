"""Licences and sources in the card: as counted in plain Python, bounded in number and length, and harmless whatever they say."""

from collections import Counter

import pytest
from markdown_it import MarkdownIt

from lmsplit.manifests import composition
from lmsplit.manifests.card import render_card
from lmsplit.manifests.composition import Composition
from lmsplit.manifests.reader import Manifest
from lmsplit.manifests.verify import verify_manifest
from tests.manifests.cards import HOSTILE, parts_of, set_all, table_under


def documents_of(manifest):
    return [row for batch in manifest.documents() for row in batch.to_pylist()]


def named(value):
    return "none" if value is None else value


def pairs_of(cell):
    return {name: int(count.replace(",", "")) for name, _, count in (part.rpartition(" ") for part in cell.split("; "))}


def test_card_counts_licences_by_themselves_by_domain_and_by_source(golden_path):
    """As counted in plain Python, row by row."""
    manifest = Manifest.open(golden_path)
    card, rows = render_card(manifest), documents_of(manifest)
    whole = table_under(card, "Licences", "licence", "documents", "bytes")
    counted = Counter(named(row["license"]) for row in rows)
    assert {name: int(number) for name, number, _ in whole} == counted
    assert [int(number) for _, number, _ in whole] == sorted(counted.values(), reverse=True)
    sizes = Counter()
    for row in rows:
        sizes[named(row["license"])] += row["num_bytes"]
    assert {name: int(size.replace(",", "")) for name, _, size in whole} == sizes
    for key, heads in (("domain", ["domain", "licences, documents"]), ("source", ["source", "documents", "licences, documents"])):
        pairs = Counter((named(row[key]), named(row["license"])) for row in rows)
        for name, *_, cell in table_under(card, "Licences", *heads):
            assert pairs_of(cell) == {licence: number for (owner, licence), number in pairs.items() if owner == name}


def test_card_counts_sources_by_domain(manifest_path):
    """The commonest first; there is no section on licences where no column holds any."""
    manifest = Manifest.open(manifest_path)
    card = render_card(manifest)
    rows = table_under(card, "Sources", "domain", "sources, documents")
    assert [name for name, _ in rows] == [domain.domain for domain in manifest.domains]
    pairs = Counter((row["domain"], row["source"]) for row in documents_of(manifest))
    for domain, cell in rows:
        assert pairs_of(cell) == {source: number for (owner, source), number in pairs.items() if owner == domain}
        assert list(pairs_of(cell).values()) == sorted(pairs_of(cell).values(), reverse=True)
    assert "Licences\n" not in card
    assert "license" not in parts_of(card)[0]


def test_card_names_five_sources_of_a_domain_and_counts_the_others(forger, copy_path):
    """Equals in the order of their names."""
    set_all(forger, "source", lambda number: f"s{number:02d}")
    cell = table_under((copy_path / "README.md").read_text(), "Sources", "domain", "sources, documents")[0][1]
    assert cell == "s00 1; s01 1; s02 1; s03 1; s04 1; 6 other 6"


def test_card_names_twenty_licences_and_sources_and_counts_the_others(forger, copy_path):
    """The largest sources have a row each, all others one together."""
    manifest = Manifest.open(copy_path)
    set_all(forger, "license", lambda number: f"L{number:02d}")
    set_all(forger, "source", lambda number: f"s{number:02d}")
    card = (copy_path / "README.md").read_text()
    whole = table_under(card, "Licences", "licence", "documents", "bytes")
    assert [row[0] for row in whole] == [f"L{number:02d}" for number in range(20)] + ["12 other"]
    assert sum(int(row[2].replace(",", "")) for row in whole) == manifest.body.counts.text_bytes
    sources = table_under(card, "Licences", "source", "documents", "licences, documents")
    assert sources[0] == ["s00", "1", "L00 1"]
    assert sources[-1] == ["12 other", "12", "; ".join(f"L{number:02d} 1" for number in range(20, 32))]


def test_card_says_that_the_input_names_no_sources(forger, copy_path):
    """And has no table of licences by source then."""
    set_all(forger, "source", lambda number: None)
    card = (copy_path / "README.md").read_text()
    assert "The input names none." in card
    assert "| source |" not in card


@pytest.mark.parametrize("limit", [8, 4])
def test_card_gives_up_sources_before_licences_where_there_are_too_many(golden_path, monkeypatch, limit):
    """Nine combinations with the source, six without."""
    monkeypatch.setattr(composition, "MAX_COMBINATIONS", limit)
    card = render_card(Manifest.open(golden_path))
    assert card.count("There are too many different ones to count.") == (1 if limit == 8 else 2)
    assert ("| CC0-1.0 | 21 |" in card) == (limit == 8)
    assert "| source |" not in card


def test_card_takes_the_column_by_either_spelling(forger, copy_path):
    """`licence` is a licence, too."""
    for path in [entry.path for entry in Manifest.open(copy_path).data_files()]:
        forger.table(path, lambda table: table.rename_columns({"license": "licence"}), card=False)
    forger.body(lambda body: body.update(columns={"licence": "string", "year": "int32"}))
    card = (copy_path / "README.md").read_text()
    assert "column `licence`" in card
    assert "| CC0-1.0 | 21 |" in card


@pytest.mark.parametrize("value", HOSTILE, ids=range(len(HOSTILE)))
def test_card_shows_hostile_licences_and_sources_as_text(forger, copy_path, value):
    """A Markdown reader finds the characters that are there, no tags, no links, and every section after them."""
    set_all(forger, "license", lambda number: value)
    set_all(forger, "source", lambda number: value)
    card = (copy_path / "README.md").read_text()
    html = MarkdownIt("commonmark").enable("table").render(parts_of(card)[1])
    for tag in ("<script", "<a ", "<img", "<b>", "<strong"):
        assert tag not in html
    assert html.count("<h2>") == 7
    assert html.count("<h1>") == 1
    expected = "".join(character if character.isprintable() else " " for character in value)
    shown = table_under(card, "Licences", "licence", "documents", "bytes")[0][0]
    assert shown == (expected[:80].strip() + ("…" if len(expected) > 80 else "") or "blank")
    head, _ = parts_of(card)
    assert [each["config_name"] for each in head["configs"]] == ["d00000", "d00001", "d00002"]
    assert verify_manifest(copy_path, deep=True) == []


def test_card_cuts_a_long_licence(forger, copy_path):
    """It is a text then, and no name for the head."""
    set_all(forger, "license", lambda number: "y" * 10_000)
    card = (copy_path / "README.md").read_text()
    assert f"| {'y' * 80}… | 32 |" in card
    assert "y" * 81 not in card
    assert "license" not in parts_of(card)[0]
    assert len(card) < 20_000
    assert Composition.of(Manifest.open(copy_path)).only_licence is None


def test_card_tells_a_value_from_what_is_no_value(forger, copy_path):
    """A licence called none is not the absence of one."""
    values = ["none", None, "", "*none*"]
    set_all(forger, "license", lambda number: values[number % 4])
    names = [line.split(" | ")[0] for line in (copy_path / "README.md").read_text().splitlines() if line.endswith(" |")]
    for name in ("| none", "| *none*", "| *blank*", r"| \*none\*"):
        assert names.count(name) >= 1
