"""`show`: what a manifest holds, as a table for a terminal or as one JSON object.

Reads the commit and the domain table; of one domain alone, also a few narrow columns of its documents.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from lmsplit.manifests.domain_details import BIN, domain_details
from lmsplit.manifests.reader import Domain, Manifest
from lmsplit.manifests.schema import SPLITS
from lmsplit.manifests.terminal import shown

_WIDE, _NARROW = 120, 100
"""Columns from which on there is room for keywords, and for bars."""
_BAR = 8
"""Characters of the bar of the largest domain."""
_MAX_NAMED = 6
"""Domains named in a line about one kind of finding; `--json` has all."""


def summary(manifest: Manifest, domain: str | None = None) -> dict[str, Any]:
    """Return what `show --json` prints.

    Args:
        manifest: the manifest.
        domain: only this domain in `domains`, with its representatives.

    Raises:
        ManifestError: there is no such domain.
    """
    body = manifest.body
    domains = manifest.domains if domain is None else (manifest.domain(domain),)
    return {
        "version": manifest.version,
        "commit": manifest.digest,
        "format_version": body.version,
        "created_at": manifest.commit.created_at,
        "documents": body.counts.published.records,
        "bytes": body.counts.text_bytes,
        "tokens": body.counts.tokens,
        "read": body.counts.read.records,
        "quarantined": sum(amount.records for amount in body.counts.quarantined.values()),
        "quarantined_by_reason": {reason: amount.records for reason, amount in body.counts.quarantined.items()},
        "duplicates": sum(amount.records for amount in body.counts.duplicates.values()),
        "tier": body.tier,
        "encoder": body.encoder,
        "splits": body.splits,
        "gate": None if body.gate is None else body.gate.model_dump(mode="json"),
        "domains": [_domain(item) | (_detail(manifest, item) if domain else {}) for item in domains],
    }


def _domain(domain: Domain) -> dict[str, Any]:
    return {
        "domain": domain.domain,
        "path": list(domain.path),
        "label": domain.label,
        "keywords": list(domain.keywords),
        "documents": domain.documents,
        "tokens": domain.num_tokens,
        "bytes": domain.num_bytes,
        "splits": domain.splits,
        "mean_distance": domain.mean_distance,
    }


def _detail(manifest: Manifest, domain: Domain) -> dict[str, Any]:
    pairs = zip(domain.representatives, domain.excerpts, strict=True)
    representatives = [{"doc_id": doc_id, "excerpt": text} for doc_id, text in pairs]
    return {"representatives": representatives, **domain_details(manifest, domain.domain)}


def render(manifest: Manifest, domain: str | None = None, *, width: int = 100) -> RenderableType:
    """Return the terminal view of a manifest, or of one of its domains.

    Args:
        manifest: the manifest.
        domain: this domain only, with the documents nearest its centroid.
        width: columns of the terminal; a narrow one leaves the keywords to `--domain`.
    """
    facts = summary(manifest, domain)
    head = Text.assemble(
        (f"{manifest.store.location}@{facts['version']}", "bold"),
        f"  commit {facts['commit'][:12]}  {facts['documents']:,} documents  {size(facts['bytes'])}{_tokens(facts)}\n",
        "splits  " + ", ".join(f"{facts['splits'].get(split, 0):,} {split}" for split in SPLITS) + "\n",
        f"set aside  {facts['quarantined']:,} quarantined, {facts['duplicates']:,} duplicates of {facts['read']:,} read\n",
        f"encoder  {manifest.encoder_name}   {facts['tier']}\n",
        *gate_lines(facts["gate"]),
    )
    table = _table(facts, width)
    if domain is None:
        return Group(head, table)
    found = facts["domains"][0]
    lines = [Text.assemble((shown(item["doc_id"]), "bold"), f"\n{shown(item['excerpt'])}\n") for item in found["representatives"]]
    return Group(
        head, table, Text("\n".join(_detail_lines(manifest, found))), Text("nearest the centroid", "bold underline"), *lines
    )


def _detail_lines(manifest: Manifest, found: dict[str, Any]) -> Iterator[str]:
    documents = max(found["documents"], 1)
    yield ""
    yield shown("keywords  " + ", ".join(found["keywords"]))
    if found["distances"]:
        yield f"distances  {spark(found['distances'])}  from 0 to {len(found['distances']) * BIN:.2f}"
    labels = {domain.domain: domain.label for domain in manifest.domains}
    names = [f"{item['value']} {shown(labels.get(item['value'], ''))}" for item in found["neighbours"]]
    near = (f"{name} ({item['documents'] / documents:.0%})" for name, item in zip(names, found["neighbours"], strict=True))
    if found["neighbours"]:
        yield "runner-up  " + "; ".join(near)
    for name, values in found["values"].items():
        yield f"{name}  " + ", ".join(f"{shown(item['value'][:60])} ({item['documents'] / documents:.1%})" for item in values)
    yield ""


def spark(counts: Sequence[int]) -> str:
    """Return counts as a row of bars, one character each.

    >>> spark([0, 1, 4, 8])
    ' ▁▄█'
    """
    most = max(counts, default=0) or 1
    return "".join(" " if not count else "▁▂▃▄▅▆▇█"[max(0, -(-8 * count // most) - 1)] for count in counts)


def _table(facts: dict[str, Any], width: int) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("domain", no_wrap=True)
    nested = any(len(item["path"]) > 1 for item in facts["domains"])
    if nested:
        table.add_column("path", no_wrap=True)
    table.add_column("label", overflow="fold")
    tokens = [] if facts["tokens"] is None else ["tokens"]
    if width >= _NARROW:
        table.add_column("", no_wrap=True)
    for name in ("documents", "share", "size", *tokens, "held out", "distance"):
        table.add_column(name, justify="right", no_wrap=True)
    if width >= _WIDE:
        table.add_column("further keywords", overflow="ellipsis", no_wrap=True)
    most = max((item["documents"] for item in facts["domains"]), default=0) or 1
    for item in facts["domains"]:
        distance = item["mean_distance"]
        cells = [
            item["domain"],
            *([".".join(map(str, item["path"]))] if nested else []),
            Text(shown(item["label"])),
            *(["█" * max(1, round(_BAR * item["documents"] / most))] if width >= _NARROW else []),
            f"{item['documents']:,}",
            f"{item['documents'] / max(facts['documents'], 1):.1%}",
            size(item["bytes"]),
            *("" if item["tokens"] is None else f"{item['tokens']:,}" for _ in tokens),
            f"{item['splits']['heldout']:,}",
            "" if distance is None else f"{distance:.3f}",
        ]
        table.add_row(*cells, *([Text(shown(", ".join(item["keywords"][3:])))] if width >= _WIDE else []))
    return table


def gate_lines(gate: dict[str, Any] | None) -> list[str]:
    """Return what the quality gate measured and found, as lines for people; one line for each kind of finding.

    Args:
        gate: the commit's `gate`; None where it was not run.
    """
    if gate is None:
        return []
    lines = [f"largest domain  {gate['imbalance']:.2f} times the mean, in {gate['imbalance_by']}"]
    stability = "" if gate["stability"] is None else f", stability {gate['stability']:.2f}"
    lines.append(f"coherence  {gate['coherence']:.1%} of the variance explained{stability}")
    if (balance := gate["balance"]) is not None:
        lines[0] += f"; {balance['imbalance_before']:.2f} before max_imbalance {balance['max_imbalance']:.4g}"
        lines[1] += f"; {balance['coherence_before']:.1%} before max_imbalance"
    for code in dict.fromkeys(finding["code"] for finding in gate["findings"]):
        found = [finding for finding in gate["findings"] if finding["code"] == code]
        where = ", ".join(finding["where"] for finding in found[:_MAX_NAMED]) + (", …" if len(found) > _MAX_NAMED else "")
        lines.append(f"finding  {code}: {where}; expected {found[0]['expected']}; {found[0]['remedy']}")
    return [line + "\n" for line in lines]


def _tokens(facts: dict[str, Any]) -> str:
    return "" if facts["tokens"] is None else f"  {facts['tokens']:,} tokens"


def size(num_bytes: float) -> str:
    """Return bytes for people.

    >>> size(1_234_567)
    '1.2 MB'
    """
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if num_bytes < 1000 or unit == "TB":
            return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1000
    raise AssertionError
