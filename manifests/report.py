"""Writes a report: one HTML file that opens from disk, asks the network for nothing, and stays below 5 MB.

```
report_facts ─┐
report_map ───┼─► report-page/page.html (+ .css, .js) ─► one file
diff ─────────┘
```

Every table is in the HTML itself, for screen readers and where scripts are off; the script sorts, searches and draws the map.
Every text is escaped by the template, and the page's own policy forbids loading anything.

Cost: a few passes over narrow columns, 1 GB of text at most, and about ten seconds for the map.
"""

import json
import os
from pathlib import Path
from typing import Any, Final

import jinja2
import markupsafe

from lmsplit.manifests.difference import Diff
from lmsplit.manifests.domain_details import BIN
from lmsplit.manifests.errors import ConfigurationError
from lmsplit.manifests.export import check_place
from lmsplit.manifests.placement import Encoder
from lmsplit.manifests.reader import Manifest
from lmsplit.manifests.report_diff import diff_facts
from lmsplit.manifests.report_facts import Limits, facts
from lmsplit.manifests.report_map import draw_map
from lmsplit.manifests.show import size

MAX_BYTES: Final = 5_000_000
_PAGE: Final = Path(__file__).parent / "report-page"
_SECTIONS: Final = (
    ("glance", "At a glance"),
    ("domains", "Domains"),
    ("map", "Map"),
    ("composition", "Composition"),
    ("representatives", "Representatives"),
    ("distances", "Distances"),
    ("borderline", "Borderline"),
    ("aside", "Set aside"),
    ("provenance", "Provenance"),
)


def write_report(
    manifest: Manifest,
    output: Path,
    *,
    encoder: Encoder | None = None,
    difference: Diff | None = None,
    limits: Limits = Limits(),  # noqa: B008  # a tuple
) -> int:
    """Write the report of a manifest.

    Args:
        manifest: the manifest.
        output: the file; one that is there is replaced.
        encoder: the manifest's own, for the map; None where it cannot be had.
        difference: what `diff` found between this manifest and another one; None: no comparison.
        limits: how much of each kind is shown at most.

    Returns:
        Bytes written.

    Raises:
        ConfigurationError: the output is in no directory, among the manifest's own files, or something else than a file.
        DamagedError: a file of the manifest is missing or cannot be read.
    """
    check_place(manifest, output)
    if (output.exists() and not output.is_file()) or output.is_symlink() or not output.parent.is_dir():
        raise ConfigurationError(f"{output} cannot be written: name a file in an existing directory, such as report.html")
    page = render_report(manifest, encoder=encoder, difference=difference, limits=limits).encode()
    partial = output.with_name(f".{output.name}.{os.getpid()}")
    try:
        partial.write_bytes(page)
        partial.replace(output)
    finally:
        partial.unlink(missing_ok=True)
    return len(page)


def render_report(
    manifest: Manifest,
    *,
    encoder: Encoder | None = None,
    difference: Diff | None = None,
    limits: Limits = Limits(),  # noqa: B008  # a tuple
) -> str:
    """Return the page of `write_report`, with as much of what `limits` let in as fits into 5 MB."""
    drawn = draw_map(manifest, limits.map_documents, encoder)
    while True:
        page = _render(manifest, limits, drawn, difference)
        if len(page.encode()) <= MAX_BYTES or limits == limits.halved():
            return page
        limits = limits.halved()
        drawn = drawn | {"documents": drawn["documents"][: limits.map_documents]}


def _render(manifest: Manifest, limits: Limits, drawn: dict[str, Any], difference: Diff | None) -> str:
    shown = facts(manifest, limits)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_PAGE), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    environment.filters |= {"bytes": size, "short": _short}
    data = {"domains": [domain.domain for domain in manifest.domains], "map": drawn["documents"]}
    sections = [("difference", "What changed"), *_SECTIONS] if difference else _SECTIONS
    return environment.get_template("page.html").render(
        shown,
        title=manifest.name,
        labels={domain.domain: domain.label for domain in manifest.domains},
        software=manifest.body.software,
        most=max((domain["documents"] for domain in shown["domains"]), default=0) or 1,
        total=max(shown["summary"]["documents"], 1),
        bin=BIN,
        map=drawn,
        sections=sections,
        difference=None if difference is None else diff_facts(difference, limits.domains),
        css=_trusted("page.css"),
        js=_trusted("page.js"),
        data=_embedded(data),
    )


def _short(text: str, length: int) -> str:
    """Return the beginning of a text, and a mark where it goes on.

    >>> _short("bread", 3)
    'bre…'
    """
    return text if len(text) <= length else text[:length] + "…"


def _trusted(name: str) -> markupsafe.Markup:
    return markupsafe.Markup((_PAGE / name).read_text(encoding="utf-8"))  # noqa: S704  # our own file


def _embedded(data: dict[str, Any]) -> markupsafe.Markup:
    """Return JSON that cannot end the element it stands in, whatever the texts hold."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return markupsafe.Markup(text)  # noqa: S704  # escaped above
