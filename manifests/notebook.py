"""Shows a manifest as a table in a notebook: what `show` says, as HTML that holds texts as text."""

from html import escape

from lmsplit.manifests.reader import Domain, Manifest
from lmsplit.manifests.show import size


def table(manifest: Manifest) -> str:
    """Return the domains as an HTML table under one line on the whole."""
    counts, with_tokens = manifest.body.counts, manifest.body.counts.tokens is not None
    tokens = f", {counts.tokens:,} tokens" if with_tokens else ""
    head = ("domain", "label", "documents", *(["tokens"] if with_tokens else []), "size", "held out", "distance", "keywords")
    rows = "".join(_row(domain, with_tokens=with_tokens) for domain in manifest.domains)
    return (
        f"<p><b>{escape(manifest.name)}@{manifest.version}</b> <code>{manifest.digest[:12]}</code>: "
        f"{counts.published.records:,} documents, {size(counts.text_bytes)}{tokens}, {escape(manifest.encoder_name)}</p>"
        f"<table><thead><tr>{''.join(f'<th>{name}</th>' for name in head)}</tr></thead><tbody>{rows}</tbody></table>"
    )


def _row(domain: Domain, *, with_tokens: bool) -> str:
    distance = "" if domain.mean_distance is None else f"{domain.mean_distance:.3f}"
    numbers = [f"{domain.documents:,}", *([f"{domain.num_tokens or 0:,}"] if with_tokens else []), size(domain.num_bytes)]
    cells = [domain.domain, domain.label, *numbers, f"{domain.splits['heldout']:,}", distance, ", ".join(domain.keywords[:8])]
    return f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>"
