"""`show`: what a manifest holds, as a table for a terminal or as one JSON object. Reads the commit and the domain table."""

from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from lmsplit.manifests.reader import Domain, Manifest


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
        "gate": body.gate,
        "domains": [_domain(item) | (_detail(item) if domain else {}) for item in domains],
    }


def _domain(domain: Domain) -> dict[str, Any]:
    return {
        "domain": domain.domain,
        "label": domain.label,
        "keywords": list(domain.keywords),
        "documents": domain.documents,
        "tokens": domain.num_tokens,
        "bytes": domain.num_bytes,
        "splits": domain.splits,
        "mean_distance": domain.mean_distance,
    }


def _detail(domain: Domain) -> dict[str, Any]:
    pairs = zip(domain.representatives, domain.excerpts, strict=True)
    return {"representatives": [{"doc_id": doc_id, "excerpt": text} for doc_id, text in pairs]}


def render(manifest: Manifest, domain: str | None = None) -> RenderableType:
    """Return the terminal view of a manifest, or of one of its domains."""
    facts = summary(manifest, domain)
    head = Text.assemble(
        (f"{manifest.store.root}@{facts['version']}", "bold"),
        f"  commit {facts['commit'][:12]}  {facts['documents']:,} documents  {_size(facts['bytes'])}\n",
        "splits  " + ", ".join(f"{count:,} {split}" for split, count in facts["splits"].items()) + "\n",
        f"set aside  {facts['quarantined']:,} quarantined, {facts['duplicates']:,} duplicates of {facts['read']:,} read\n",
        f"encoder  {facts['encoder']['kind']}   {facts['tier']}\n",
    )
    table = _table(facts)
    if domain is None:
        return Group(head, table)
    lines = [Text.assemble((item["doc_id"], "bold"), f"\n{item['excerpt']}\n") for item in facts["domains"][0]["representatives"]]
    return Group(head, table, Text("nearest the centroid", "bold underline"), *lines)


def _table(facts: dict[str, Any]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("domain", "label"):
        table.add_column(name, no_wrap=name == "domain")
    for name in ("documents", "share", "size", "held out", "distance"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("keywords", overflow="ellipsis", no_wrap=True)
    for item in facts["domains"]:
        distance = item["mean_distance"]
        table.add_row(
            item["domain"],
            Text(item["label"]),
            f"{item['documents']:,}",
            f"{item['documents'] / max(facts['documents'], 1):.1%}",
            _size(item["bytes"]),
            f"{item['splits']['heldout']:,}",
            "" if distance is None else f"{distance:.3f}",
            Text(", ".join(item["keywords"])),
        )
    return table


def _size(num_bytes: float) -> str:
    """Return bytes for people.

    >>> _size(1_234_567)
    '1.2 MB'
    """
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if num_bytes < 1000 or unit == "TB":
            return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1000
    raise AssertionError
