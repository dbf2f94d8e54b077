"""A manifest in a notebook: a table of its domains, in which no text is taken for markup."""

from html.parser import HTMLParser
from pathlib import Path

import pytest

from lmsplit.manifests.reader import Manifest
from tests.manifests.hostile import publish_hostile


class Cells(HTMLParser):
    """Collects rows of cells, and every element's name."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.names: set[str] = set()
        self._open = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Begin a row or a cell."""
        assert not attrs
        self.names.add(tag)
        if tag == "tr":
            self.rows.append([])
        self._open = tag in ("td", "th")
        if self._open:
            self.rows[-1].append("")

    def handle_data(self, data: str) -> None:
        """Add to the cell."""
        if self._open:
            self.rows[-1][-1] += data


@pytest.fixture
def hostile(tmp_path: Path) -> Manifest:
    """A manifest whose keywords hold markup."""
    return Manifest.open(publish_hostile(tmp_path))


def test_notebook_shows_every_domain(manifest_path: Path) -> None:
    """One row each, under a head."""
    manifest = Manifest.open(manifest_path)
    cells = Cells()
    cells.feed(manifest._repr_html_())
    head, *rows = cells.rows
    assert head[:3] == ["domain", "label", "documents"]
    assert [row[:3] for row in rows] == [[d.domain, d.label, f"{d.documents:,}"] for d in manifest.domains]


def test_notebook_takes_no_text_for_markup(hostile: Manifest) -> None:
    """Only the table's own elements, whatever the labels are."""
    cells = Cells()
    domain = hostile.domains[0]
    object.__setattr__(domain, "label", "<script>harm()</script>")
    cells.feed(hostile._repr_html_())
    assert cells.names <= {"p", "b", "code", "table", "thead", "tbody", "tr", "th", "td"}
    assert cells.rows[1][1] == "<script>harm()</script>"
