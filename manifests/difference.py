"""What `diff` found between two manifests: as one JSON object, and as a screen for people. It reads nothing: see `diff`."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from lmsplit.manifests.causes import RuleChange
from lmsplit.manifests.reader import Domain
from lmsplit.manifests.terminal import shown

_MAX_DOMAINS: Final = 16
_MAX_EXAMPLES: Final = 6
_MAX_CHANGES: Final = 8
"""Lines of a screen; `--json` has all."""
MEANINGS: Final = {
    "text_changed": "the document has another text",
    "encoder_changed": "another encoder, or one fitted anew",
    "low_margin": "so near a tie that rounding may decide",
    "price_moved": "the domains' prices, which balance their sizes",
    "centroids_moved": "the domains' centroids",
    "unexplained": "the same rule and text: run lmsplit verify --deep on both",
}
"""What each cause means, for people."""


@dataclass(frozen=True)
class Amount:
    """So many documents.

    Attributes:
        documents: how many.
        tokens: their tokens; None unless both manifests count them.
        bytes: their UTF-8 bytes. Of a document that both manifests have, tokens and bytes are those of B.
    """

    documents: int
    tokens: int | None
    bytes: int


@dataclass(frozen=True)
class Side:
    """One of the two manifests.

    Attributes:
        location: its directory.
        version: number of the commit.
        commit: SHA-256 of its body.
        documents: in all splits.
        domains: its domain table.
        encoder: what the commit says of its encoder.
    """

    location: str
    version: int
    commit: str
    documents: int
    domains: tuple[Domain, ...]
    encoder: dict[str, Any]


@dataclass(frozen=True)
class Flow:
    """The documents of both manifests that are in one domain of A and one of B."""

    a: str
    b: str
    amount: Amount


@dataclass(frozen=True)
class Example:
    """A document that is not unchanged; what one manifest does not say is None."""

    doc_id: str
    status: str
    cause: str | None
    domain_a: str | None
    domain_b: str | None
    margin_a: float | None
    margin_b: float | None
    source_path: str
    """its input file in B; in A where B does not have it. `source_row` likewise."""
    source_row: int


@dataclass(frozen=True)
class Diff:
    """What differs between two manifests.

    Attributes:
        same: the bodies of the two commits are the same.
        a: the first manifest.
        b: the second.
        amounts: documents by status: unchanged, moved, changed, added, removed. They partition those of both.
        causes: documents by cause, of those moved or changed; only causes that occur, commonest first.
        alignment: the domain of B for each of A; None where no document is left for it.
        adjusted_rand: agreement of the two partitions of the documents in both: 1 the same, about 0 by chance; None without one.
        churn: documents in both, by their domains; only pairs that occur.
        rule: how the placement rules differ.
        configuration: dotted keys of the configuration whose values differ, with A's and B's; None where one lacks the key.
        software: the same of the recorded versions.
        examples: at most 20 documents: first those whose text changed, then those moved, then added or removed; of each the ones
            that were placed with the largest margin, in A or B, whichever is smaller.
        split_changed: documents in both whose split differs.
        heldout_to_train: those of them held out in A and trained on in B: what is evaluated on them has leaked.
    """

    same: bool
    a: Side
    b: Side
    amounts: dict[str, Amount]
    causes: dict[str, int]
    alignment: dict[str, str | None]
    adjusted_rand: float | None
    churn: tuple[Flow, ...]
    rule: RuleChange
    configuration: dict[str, tuple[Any, Any]]
    software: dict[str, tuple[Any, Any]]
    examples: tuple[Example, ...]
    split_changed: int
    heldout_to_train: int

    def to_json(self) -> dict[str, Any]:
        """Return what `diff --json` prints."""
        tokens = {status: amount.tokens for status, amount in self.amounts.items()}
        return {
            "same": self.same,
            "a": _side(self.a),
            "b": _side(self.b),
            **{status: amount.documents for status, amount in self.amounts.items()},
            "tokens": None if None in tokens.values() else tokens,
            "bytes": {status: amount.bytes for status, amount in self.amounts.items()},
            "causes": self.causes,
            "alignment": self.alignment,
            "adjusted_rand": self.adjusted_rand,
            "churn": [{"a": flow.a, "b": flow.b, **asdict(flow.amount)} for flow in self.churn],
            "split_changed": self.split_changed,
            "heldout_to_train": self.heldout_to_train,
            "rule": asdict(self.rule) | {"configuration": _changes(self.configuration)},
            "software": _changes(self.software),
            "examples": [asdict(example) for example in self.examples],
        }


def _side(side: Side) -> dict[str, Any]:
    names = ("location", "version", "commit", "documents", "encoder")
    return {name: getattr(side, name) for name in names} | {"domains": len(side.domains)}


def _changes(changes: dict[str, tuple[Any, Any]]) -> dict[str, dict[str, Any]]:
    return {key: {"a": before, "b": after} for key, (before, after) in changes.items()}


def render(difference: Diff, *, width: int = 100) -> RenderableType:
    """Return the terminal view of a difference: one screen, whatever the number of domains.

    Args:
        difference: what `diff` found.
        width: columns of the terminal; labels are cut to fit.
    """
    parts: list[RenderableType] = [_headline(difference)]
    if difference.causes:
        parts.append(_causes(difference))
    parts.append(_domains(difference, max(12, (width - 60) // 2)))
    if difference.examples:
        parts.append(_examples(difference))
    if lines := list(_rule_lines(difference)):
        parts.append(Text("\n".join(lines) + "\n"))
    return Group(*parts)


def _headline(difference: Diff) -> Text:
    a, b = difference.a, difference.b
    text = Text.assemble(
        (f"{shown(a.location)}@{a.version}", "bold"),
        f"  {a.commit[:12]}\n",
        (f"{shown(b.location)}@{b.version}", "bold"),
        f"  {b.commit[:12]}{'  the same' if difference.same else ''}\n",
        _sentence(a.documents, {status: amount.documents for status, amount in difference.amounts.items()}),
    )
    if difference.adjusted_rand is not None:
        text.append(f"agreement of the domains  {difference.adjusted_rand:.3f} (adjusted Rand: 1 the same, 0 by chance)\n")
    if difference.split_changed:
        text.append(f"splits  {difference.split_changed:,} documents are in another split\n")
    if difference.heldout_to_train:
        text.append(
            f"{difference.heldout_to_train:,} held-out documents of A are trained on in B: evaluation leaks\n", "bold red"
        )
    return text


def _sentence(documents: int, number: dict[str, int]) -> str:
    """Say it in a sentence and a newline.

    >>> _sentence(9, {"unchanged": 4, "moved": 5, "changed": 0, "added": 1200, "removed": 0}).strip()
    'of 9 documents 4 stay, 5 move; 1,200 new'
    """
    others = (("changed", "stay with another text"), ("removed", "gone"))
    parts = [f"{number['unchanged']:,} stay", f"{number['moved']:,} move"]
    parts += [f"{number[status]:,} {what}" for status, what in others if number[status]]
    return f"of {documents:,} documents {', '.join(parts)}" + (f"; {number['added']:,} new\n" if number["added"] else "\n")


def _causes(difference: Diff) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("cause", no_wrap=True)
    table.add_column("documents", justify="right", no_wrap=True)
    table.add_column("what differs", overflow="fold")
    for cause, documents in difference.causes.items():
        table.add_row(Text(cause, "bold red" if cause == "unexplained" else ""), f"{documents:,}", MEANINGS[cause])
    return table


def _domains(difference: Diff, label_width: int) -> Table:
    """Return the aligned domains, those from which most documents leave first where not all fit."""
    flows: dict[str, dict[str, int]] = {domain.domain: {} for domain in difference.a.domains}
    for flow in difference.churn:
        flows[flow.a][flow.b] = flow.amount.documents
    theirs = {domain.domain: domain for domain in difference.b.domains}
    shown = list(difference.a.domains)
    if len(shown) > _MAX_DOMAINS:
        leaving = {name: sum(to.values()) - to.get(difference.alignment[name] or "", 0) for name, to in flows.items()}
        shown = sorted(shown, key=lambda domain: -leaving[domain.domain])[:_MAX_DOMAINS]
    left_out = len(difference.a.domains) - len(shown)
    caption = f"{left_out:,} domains more with --json; these lose most documents" if left_out else None
    table = Table(box=None, header_style="bold", pad_edge=False, caption=caption, caption_justify="left")
    for name in ("domain of A", "domain of B"):
        table.add_column(name, no_wrap=True, overflow="ellipsis", max_width=label_width)
    for name in ("in A", "in B", "stayed", "most go to"):
        table.add_column(name, justify="right", no_wrap=True)
    for domain in shown:
        table.add_row(*_domain_cells(domain, theirs.get(difference.alignment[domain.domain] or ""), flows[domain.domain]))
    new = [domain for name, domain in theirs.items() if name not in difference.alignment.values()]
    for domain in new[: _MAX_DOMAINS - len(shown)]:
        table.add_row(Text("none", "dim"), _named(domain), "", f"{domain.documents:,}", "", "")
    return table


def _domain_cells(domain: Domain, aligned: Domain | None, to: dict[str, int]) -> Iterator[Text]:
    yield _named(domain)
    yield Text("none", "dim") if aligned is None else _named(aligned)
    yield Text(f"{domain.documents:,}")
    yield Text("" if aligned is None else f"{aligned.documents:,}")
    stayed = 0 if aligned is None else to.get(aligned.domain, 0)
    yield Text(f"{stayed / domain.documents:.1%}" if domain.documents else "")
    elsewhere = {name: documents for name, documents in to.items() if aligned is None or name != aligned.domain}
    most = max(elsewhere, key=elsewhere.__getitem__, default=None)
    yield Text("" if most is None else f"{most} {elsewhere[most]:,}")


def _named(domain: Domain) -> Text:
    return Text(f"{domain.domain} {shown(domain.label)}")


def _examples(difference: Diff) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("document", overflow="ellipsis", no_wrap=True)
    for name in ("what", "cause", "from", "to"):
        table.add_column(name, no_wrap=True)
    for example in difference.examples[:_MAX_EXAMPLES]:
        facts = (example.status, example.cause, example.domain_a, example.domain_b)
        table.add_row(Text(shown(example.doc_id)), *(fact or "" for fact in facts))
    return table


def _rule_lines(difference: Diff) -> Iterator[str]:
    rule = difference.rule
    if rule.encoder_changed:
        yield "rule  the encoder differs"
    elif rule.centroids_moved or rule.prices_moved:
        apart = rule.mean_centroid_distance
        mean = "" if apart is None else f" ({apart:.2g} of 1 - cosine in the mean)"
        moved, repriced = rule.centroids_moved, rule.prices_moved
        yield f"rule  of the aligned domains {moved:,} have another centroid{mean}, {repriced:,} another price"
    for name, changes in (("configuration", difference.configuration), ("software", difference.software)):
        for key, (before, after) in list(changes.items())[:_MAX_CHANGES]:
            yield shown(f"{name}  {key}: {before} in A, {after} in B")
        if len(changes) > _MAX_CHANGES:
            yield f"{name}  {len(changes) - _MAX_CHANGES:,} more with --json"
