"""Writes README.md, the data-set card: for people, and for `datasets.load_dataset` and the Hub, which read its YAML head.

The card is derived: the same commit and files give the same card, so `verify` can compare it. Each domain is one configuration
that names its exact files by split; nothing is globbed, so what lies untracked beside them is never read.

The sections are in `card_sections`, what the documents are made of in `composition`. Cost: a footer a data file, the plan, and
one pass over the narrow columns `domain`, `source`, `num_bytes`, `num_tokens` and the licences; no text is read.
"""

import re
from typing import Any, Final

import yaml

from lmsplit.manifests.card_sections import (
    domain_lines,
    encoder_lines,
    gate_lines,
    limit_lines,
    provenance_lines,
    split_lines,
)
from lmsplit.manifests.composition import Composition
from lmsplit.manifests.layout import CARD
from lmsplit.manifests.reader import Manifest
from lmsplit.manifests.schema import SPLITS
from lmsplit.manifests.statistics import splits_by_file

_SIZE_CATEGORIES: Final = (
    (10**3, "n<1K"),
    (10**4, "1K<n<10K"),
    (10**5, "10K<n<100K"),
    (10**6, "100K<n<1M"),
    (10**7, "1M<n<10M"),
    (10**8, "10M<n<100M"),
    (10**9, "100M<n<1B"),
    (10**10, "1B<n<10B"),
    (10**11, "10B<n<100B"),
    (10**12, "100B<n<1T"),
)
"""The Hub's words for so many rows, each below its bound."""

# fmt: off
_HUB_LICENCES: Final = frozenset((
    "apache-2.0", "mit", "openrail", "afl-3.0", "artistic-2.0", "bsl-1.0", "bsd", "bsd-2-clause", "bsd-3-clause",
    "bsd-3-clause-clear", "c-uda", "cc", "cc0-1.0", "cc-by-2.0", "cc-by-2.5", "cc-by-3.0", "cc-by-4.0", "cc-by-sa-3.0",
    "cc-by-sa-4.0", "cc-by-nc-2.0", "cc-by-nc-3.0", "cc-by-nc-4.0", "cc-by-nd-4.0", "cc-by-nc-nd-3.0",
    "cc-by-nc-nd-4.0", "cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0", "cdla-sharing-1.0",
    "cdla-permissive-1.0", "cdla-permissive-2.0", "wtfpl", "ecl-2.0", "epl-1.0", "epl-2.0", "etalab-2.0", "eupl-1.1",
    "agpl-3.0", "gfdl", "gpl", "gpl-2.0", "gpl-3.0", "lgpl", "lgpl-2.1", "lgpl-3.0", "isc", "lppl-1.3c", "ms-pl",
    "mpl-2.0", "odc-by", "odbl", "osl-3.0", "postgresql", "ofl-1.1", "ncsa", "unlicense", "zlib", "pddl",
))
# fmt: on
"""Identifiers that the Hub knows for a card's `license`; it wants any other as `other` with a `license_name`."""


def render_card(manifest: Manifest) -> str:
    """Return the card's text for a manifest's commit.

    Raises:
        DamagedError: a data file, the plan or the rule is missing or cannot be read.
    """
    counts = manifest.body.counts
    composition = Composition.of(manifest)
    head = yaml.safe_dump(_head(manifest, composition), sort_keys=False, allow_unicode=True, width=1000)
    tokens = "" if counts.tokens is None else f"{counts.tokens:,} tokens, "
    lines = [
        "---",
        head + "---",
        "# A corpus in domains",
        "",
        f"{counts.published.records:,} documents, {counts.text_bytes:,} bytes of text, {tokens}{len(manifest.domains)} domains.",
        "",
        *domain_lines(manifest),
        *split_lines(manifest),
        *composition.licence_lines(),
        *composition.source_lines(),
        *encoder_lines(manifest),
        *gate_lines(manifest),
        *provenance_lines(manifest),
        *limit_lines(manifest),
    ]
    return "\n".join(lines)


def write_card(manifest: Manifest) -> None:
    """Write the card of a manifest's commit over the one that is there."""
    manifest.store.replace(render_card(manifest).encode(), CARD)


def size_category(documents: int) -> str:
    """Return the Hub's word for so many documents.

    >>> size_category(999), size_category(1000), size_category(10**12)
    ('n<1K', '1K<n<10K', 'n>1T')
    """
    return next((word for bound, word in _SIZE_CATEGORIES if documents < bound), "n>1T")


def hub_licence(value: str) -> dict[str, str]:
    """Return the keys of a card's head for a licence that all documents share.

    >>> hub_licence("CC0-1.0"), hub_licence("Our terms, 2nd edition")
    ({'license': 'cc0-1.0'}, {'license': 'other', 'license_name': 'our-terms-2nd-edition'})
    """
    if (known := value.strip().lower()) in _HUB_LICENCES:
        return {"license": known}
    name = re.sub(r"[^a-z0-9.]+", "-", known).strip("-")
    return {"license": "other"} | ({"license_name": name} if name else {})


def _head(manifest: Manifest, composition: Composition) -> dict[str, Any]:
    licence = composition.only_licence
    return {
        **(hub_licence(licence) if licence is not None and licence.strip() else {}),
        "pretty_name": f"A corpus in {len(manifest.domains):,} domains",
        "size_categories": [size_category(manifest.body.counts.published.records)],
        "configs": _configurations(manifest),
    }


def _configurations(manifest: Manifest) -> list[dict[str, Any]]:
    split_of = splits_by_file(manifest)
    configurations = []
    for domain in manifest.domains:
        paths = [entry.path for entry in manifest.data_files(domain.domain)]
        files = [
            {"split": split, "path": [path for path in paths if split_of[path] == split]}
            for split in SPLITS
            if any(split_of[path] == split for path in paths)
        ]
        if files:
            configurations.append({"config_name": domain.domain, "data_files": files})
    return configurations
