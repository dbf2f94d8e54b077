"""Writes README.md, the data-set card: for people, and for `datasets.load_dataset`, which reads its YAML head.

The card is derived: the same commit gives the same card, so `verify` can compare it. Each domain is one configuration that
names its exact files by split; nothing is globbed, so what lies untracked beside them is never read.
"""

from typing import Any, Final

import yaml

from lmsplit.manifests.layout import CARD
from lmsplit.manifests.reader import Domain, Manifest
from lmsplit.manifests.schema import SPLITS
from lmsplit.manifests.statistics import splits_by_file

_MARKUP: Final = frozenset("\\`*_[]<>|#&~$:@!{}")
"""What Markdown may act on, autolinks and formulas included; CommonMark lets any ASCII punctuation be escaped."""


def render_card(manifest: Manifest) -> str:
    """Return the card's text for a manifest's commit."""
    body = manifest.body
    head = yaml.safe_dump({"configs": _configurations(manifest)}, sort_keys=False, allow_unicode=True, width=1000)
    splits = ", ".join(f"{body.splits.get(split, 0):,} {split}" for split in SPLITS)
    aside = {**body.counts.quarantined, **body.counts.duplicates}
    reasons = ", ".join(f"{amount.records:,} {reason}" for reason, amount in sorted(aside.items())) or "none"
    with_tokens = body.counts.tokens is not None
    lines = [
        "---",
        head + "---",
        "# A corpus in domains",
        "",
        f"{body.counts.published.records:,} documents, {body.counts.text_bytes:,} bytes of text, "
        + (f"{body.counts.tokens:,} tokens, " if with_tokens else "")
        + f"{len(manifest.domains)} domains.",
        f"Splits: {splits}. Set aside: {reasons}.",
        f"Encoder: {manifest.encoder_name}. Commit: `{manifest.digest}`.",
        "",
        f"| domain | label | documents | bytes |{' tokens |' if with_tokens else ''} keywords |",
        f"|---|---|---:|---:|{'---:|' if with_tokens else ''}---|",
        *(_row(domain, with_tokens=with_tokens) for domain in manifest.domains),
        "",
        "Each domain is a configuration: `load_dataset(path, 'd00000', split='train')`. Split `heldout` is for evaluation;",
        "`excluded` holds near-duplicates of held-out documents and is for neither.",
        "",
        "Made by lmsplit. `lmsplit verify` checks every file against the commit; `commits/` says how it was made.",
        "",
    ]
    return "\n".join(lines)


def write_card(manifest: Manifest) -> None:
    """Write the card of a manifest's commit over the one that is there."""
    manifest.store.replace(render_card(manifest).encode(), CARD)


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


def _row(domain: Domain, *, with_tokens: bool) -> str:
    words = ", ".join(map(_escaped, domain.keywords))
    counted = "" if domain.num_tokens is None else f" {domain.num_tokens:,}"
    tokens = f"{counted} |" if with_tokens else ""
    return f"| {domain.domain} | {_escaped(domain.label)} | {domain.documents:,} | {domain.num_bytes:,} |{tokens} {words} |"


def _escaped(text: str) -> str:
    """Return a label or keyword, which is data, as one line of Markdown that shows it and does nothing else."""
    visible = (character if character.isprintable() else " " for character in text)
    return "".join(f"\\{character}" if character in _MARKUP else character for character in visible)
