"""The report: one file that holds what it shows, whatever the texts hold; tests in a browser are in test_report_browser."""

import html
import json
from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from lmsplit.manifests import report
from lmsplit.manifests.domain_details import BIN
from lmsplit.manifests.errors import ConfigurationError, DamagedError
from lmsplit.manifests.reader import Manifest
from lmsplit.manifests.report import MAX_BYTES
from lmsplit.manifests.report_facts import Limits, facts
from lmsplit.manifests.report_map import draw_map
from tests.manifests.hostile import SCRIPT, publish_hostile

SMALL = Limits(map_documents=60)
"""Laying the map out takes time that these tests need not spend."""
render_report = partial(report.render_report, limits=SMALL)
write_report = partial(report.write_report, limits=SMALL)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """A manifest whose texts would do harm."""
    return Manifest.open(publish_hostile(tmp_path_factory.mktemp("hostile")))


@pytest.fixture(scope="module")
def manifest(manifest_path: Path) -> Manifest:
    """Four domains of docstrings."""
    return Manifest.open(manifest_path)


class Tags(HTMLParser):
    """Collects every element's name and attributes, and the data block."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.data = ""
        self._in_data = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keep the element."""
        self.found.append((tag, dict(attrs)))
        self._in_data = dict(attrs).get("id") == "data"

    def handle_data(self, data: str) -> None:
        """Keep the data block's content."""
        if self._in_data:
            self.data += data

    def handle_endtag(self, tag: str) -> None:
        """Leave the data block."""
        self._in_data = False


def parsed(page: str) -> Tags:
    tags = Tags()
    tags.feed(page)
    return tags


def test_report_asks_the_network_for_nothing(manifest: Manifest) -> None:
    """No element loads anything, and the page's own policy forbids it."""
    tags = parsed(render_report(manifest))
    for tag, attributes in tags.found:
        assert tag not in ("link", "img", "iframe", "object", "embed", "base"), tag
        assert "src" not in attributes
        if "href" in attributes:
            assert str(attributes["href"]).startswith("#")
    policies = [a["content"] for tag, a in tags.found if a.get("http-equiv") == "Content-Security-Policy"]
    assert len(policies) == 1
    assert str(policies[0]).startswith("default-src 'none'")


def test_report_says_what_the_manifest_holds(manifest: Manifest) -> None:
    """Every domain with its size, label and representatives; every source."""
    page = html.unescape(render_report(manifest))
    assert manifest.digest in page
    for domain in manifest.domains:
        assert f'data-value="{domain.documents}"' in page
        assert domain.label in page
        assert domain.representatives[0] in page
    for source in manifest.scan().select("source").unique().collect()["source"]:
        assert source in page


def test_report_escapes_every_text(hostile: Manifest) -> None:
    """The harmful texts are there as text: the page has its own two scripts, and no element that a text made."""
    page = render_report(hostile, encoder=hostile.encoder())
    tags = parsed(page)
    assert [tag for tag, _ in tags.found].count("script") == 2
    assert not [a for _, a in tags.found if any(name.startswith("on") for name in a)]
    assert "window.harmed" in html.unescape(page)
    assert "{{ 7 * 7 }}" in html.unescape(page)
    documents = json.loads(tags.data)["map"]
    assert any(SCRIPT in each["text"] for each in documents)


def test_report_stays_below_its_limit(manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What does not fit is left out by halves, and the page says how much is shown."""
    whole = len(render_report(manifest).encode())
    assert whole < MAX_BYTES
    limit = whole - 1000
    monkeypatch.setattr(report, "MAX_BYTES", limit)
    smaller = render_report(manifest)
    assert len(smaller.encode()) <= limit
    assert "The 30 documents of the smallest margins" in html.unescape(smaller)


def test_report_map_is_drawn_without_the_encoder_too(manifest: Manifest) -> None:
    """From recorded distances; the caption says so. Documents of a domain are near each other either way."""
    for encoder in (None, manifest.encoder()):
        drawn = draw_map(manifest, 200, encoder)
        assert ("recorded distances" in drawn["caption"]) == (encoder is None)
        assert len(drawn["documents"]) == 200
        assert nearest_neighbour_agreement(drawn["documents"]) > 0.8


def nearest_neighbour_agreement(documents: list[dict[str, Any]]) -> float:
    """Share of the documents whose nearest one on the map is of the same domain."""
    agreed = 0
    for each in documents:
        others = (other for other in documents if other is not each)
        nearest = min(others, key=lambda other: (other["x"] - each["x"]) ** 2 + (other["y"] - each["y"]) ** 2)
        agreed += nearest["domain"] == each["domain"]
    return agreed / len(documents)


def test_report_facts_count_as_the_documents_do(manifest: Manifest) -> None:
    """Mixtures, feeds, histograms and borderline documents, beside the same from all rows."""
    rows = manifest.scan().drop("text").collect()
    found = facts(manifest, Limits())
    composition = next(each for each in found["compositions"] if each["column"] == "source")
    for mixture in composition["by_domain"]:
        own = rows.filter(pl.col("domain") == mixture["domain"])
        counts = own["source"].value_counts(sort=True)
        assert mixture["num_values"] == counts.height
        assert mixture["top"][0]["share"] == pytest.approx(counts["count"][0] / own.height)
        assert mixture["mixes"] == (counts.height > 1 and counts["count"][1] / own.height >= 0.1)
    for value in composition["by_value"]:
        own = rows.filter(pl.col("source") == value["value"])
        assert (value["documents"], value["domains"]) == (own.height, own["domain"].n_unique())
    assert sum(found["histograms"]["distance"]) == rows.height
    first = int((rows["margin"] < BIN).sum())
    assert found["histograms"]["margin"][0] == pytest.approx(first, abs=2)  # a float32 at the bin's edge
    least = rows.sort(["margin", "doc_id"]).head(5)["doc_id"].to_list()
    assert [each["doc_id"] for each in found["borderline"][:5]] == least
    assert found["borders"]["documents"] == sum(each["documents"] for each in found["borders"]["pairs"]) == first
    assert all(each["one"] < each["other"] for each in found["borders"]["pairs"])


def test_report_says_which_domains_mix(hostile: Manifest) -> None:
    """In words, with shares: sources of the same domain that hold half each."""
    found = facts(hostile, Limits())
    sentences = next(each for each in found["compositions"] if each["column"] == "source")["sentences"]
    assert sentences[0].startswith("3 of 3 domains mix two or more values of source")
    assert "(none) 50.0%" in sentences[0]


def test_report_names_what_was_set_aside(hostile: Manifest) -> None:
    """Each reason with its count and an example."""
    quarantine = facts(hostile, Limits())["quarantine"]
    assert [(each["reason"], each["records"]) for each in quarantine["reasons"]] == [("malformed_json", 1)]
    assert quarantine["examples"][0]["source_row"] == 120


def test_report_is_written_whole(manifest: Manifest, tmp_path: Path) -> None:
    """An earlier report is replaced; nothing else is left in the directory."""
    output = tmp_path / "report.html"
    output.write_text("old")
    assert write_report(manifest, output) == output.stat().st_size > 50_000
    assert [each.name for each in tmp_path.iterdir()] == ["report.html"]


def test_report_refuses_a_place_that_is_none(manifest: Manifest, tmp_path: Path) -> None:
    """A directory, or a file in a directory that does not exist."""
    for output in (tmp_path, tmp_path / "absent" / "report.html"):
        with pytest.raises(ConfigurationError, match=r"name a file in an existing directory, such as report\.html"):
            write_report(manifest, output)


def test_report_of_a_damaged_manifest_names_the_file(copy_path: Path) -> None:
    """No traceback, and no report of a part."""
    manifest = Manifest.open(copy_path)
    path = manifest.data_files()[0].path
    manifest.store.path(path).unlink()
    with pytest.raises(DamagedError, match="cannot be read"):
        render_report(manifest)
