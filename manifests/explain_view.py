"""What a person sees of an explanation, to be read from the top: the answer first, then why, then what it rests on.

Whatever comes from documents is shown as it is, never obeyed: no markup, and no character that a terminal would act on. It does
*not* look anything up. Cost: none.
"""

from collections.abc import Iterator
from typing import Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from lmsplit.manifests.explanation import CommitReference, Explanation
from lmsplit.manifests.terminal import shown

_LABEL_COLUMNS: Final = 12
_KEYWORDS: Final = 6
_DIGEST_DIGITS: Final = 12
_MAX_SHOWN: Final = 8
"""Records set aside, and columns kept; `--json` has all."""
_MAX_VALUE: Final = 60
_ANSWERS: Final = {
    "quarantined": "was quarantined: it is in no domain",
    "duplicate": "was set aside as a duplicate: it is in no domain",
    "taken_down": "was taken down: it is in no domain any more",
    "unknown": "is not in this manifest",
}


def render(explanation: Explanation, *, width: int = 100) -> RenderableType:
    """Return the terminal view of an explanation.

    Args:
        explanation: what to show.
        width: columns of the terminal; the text's beginning takes two lines of it.
    """
    facts = Table.grid(padding=(0, 2))
    facts.add_column(width=_LABEL_COLUMNS, no_wrap=True, style="dim")
    facts.add_column(overflow="fold")
    for label, value in _lines(explanation, width - _LABEL_COLUMNS - 2):
        facts.add_row(label, value)
    return Group(_answer(explanation), *([facts] if facts.row_count else []))


def _answer(explanation: Explanation) -> Text:
    """Return the one sentence that answers the question."""
    subject = ("this text", "bold") if explanation.doc_id is None else (shown(explanation.doc_id), "bold")
    if explanation.domain is None:
        return Text.assemble(subject, f" {_ANSWERS[explanation.status]}")
    keywords = ", ".join(explanation.keywords[:_KEYWORDS] if explanation.keywords else ())
    verb = "belongs in" if explanation.doc_id is None else "is in"
    answer = Text.assemble(subject, f" {verb} ", (shown(explanation.domain), "bold"), f" {_quoted(explanation.label)}")
    answer.append(f" ({shown(keywords)})", "dim")
    if explanation.distance is not None:
        answer.append(f" — distance {explanation.distance:.3f}")
    if explanation.percentile is not None:
        answer.append(f", nearer than {100 - explanation.percentile:.0f} % of its own")
    if explanation.confidence is not None:
        answer.append(f", confidence {explanation.confidence:.3f}")
    if explanation.second_domain is not None:
        answer.append(f"; runner-up {shown(explanation.second_domain)} {_quoted(explanation.second_label)}")
    if explanation.margin is not None:
        answer.append(f", margin {_margin(explanation.margin)}")
    return answer


def _lines(explanation: Explanation, width: int) -> Iterator[tuple[str, Text]]:
    """Yield what stands below the answer: a short name, and the fact."""
    if explanation.excerpt is not None:
        excerpt = Text(shown(explanation.excerpt))
        excerpt.truncate(max(2 * width, 40), overflow="ellipsis")
        yield "text", excerpt
    yield from _named(explanation)
    yield from _scores(explanation)
    yield from _representatives(explanation, width)
    yield from _aside(explanation)
    if explanation.nearest_ids:
        yield "did you mean", Text(", ".join(map(shown, explanation.nearest_ids)))
    yield from _grounds(explanation)


def _named(explanation: Explanation) -> Iterator[tuple[str, Text]]:
    if explanation.source_path is not None:
        source = "" if explanation.source is None else f"{shown(explanation.source)}: "
        group = "" if explanation.group is None else f", group {shown(explanation.group)}"
        yield "source", Text(f"{source}{shown(explanation.source_path)} row {explanation.source_row}{group}")
    if explanation.split_reason is not None:
        style = {"heldout": "cyan", "excluded": "yellow"}.get(str(explanation.split), "")
        yield "split", Text(shown(explanation.split_reason), style)
    if explanation.path is not None:
        tokens = "" if explanation.num_tokens is None else f", {explanation.num_tokens:,} tokens"
        yield "file", Text(f"{explanation.path} row {explanation.row}; {explanation.num_bytes:,} bytes{tokens}")
    if explanation.kept:
        pairs = [f"{shown(name)}: {_short(value)}" for name, value in list(explanation.kept.items())[:_MAX_SHOWN]]
        yield "kept", Text(", ".join(pairs) + _more(len(explanation.kept)))
    if (again := explanation.recomputed) is not None:
        verdict = ("matches", "green") if again.matches else ("DOES NOT MATCH", "bold red")
        difference = "" if again.difference is None else f"; differs by {again.difference:.2g}, {again.tolerance:.2g} allowed"
        yield "placed again", Text.assemble(verdict, f": {again.domain} at {again.distance:.6f}{difference}")


def _scores(explanation: Explanation) -> Iterator[tuple[str, Text]]:
    for number, score in enumerate(explanation.scores or ()):
        line = f"{shown(score.domain)} {_quoted(score.label)} distance {score.distance:.3f}, behind by {score.margin:.3f}"
        yield "" if number else "nearest", Text(line)


def _representatives(explanation: Explanation, width: int) -> Iterator[tuple[str, Text]]:
    for number, each in enumerate(explanation.representatives or ()):
        similarity = "" if each.similarity is None else f"{each.similarity:.3f}  "
        line = Text.assemble(similarity, (shown(each.doc_id), "bold"), f"  {shown(each.excerpt)}")
        line.truncate(max(width, 20), overflow="ellipsis")
        yield "" if number else "its domain", line


def _aside(explanation: Explanation) -> Iterator[tuple[str, Text]]:
    for number, record in enumerate(explanation.set_aside[:_MAX_SHOWN]):
        detail = "" if record.detail is None else f" ({shown(record.detail)})"
        last = _more(len(explanation.set_aside)) if number == _MAX_SHOWN - 1 else ""
        line = f"{shown(record.reason)}: {shown(record.source_path)} row {record.source_row}{detail}{last}"
        yield "" if number else "set aside", Text(line, "yellow")
    if (gone := explanation.taken_down) is not None:
        said = [shown(str(gone[key])) for key in ("date", "reason") if gone[key] is not None]
        yield "taken down", Text(", ".join([*said, f"in commit {gone['version']}"]), "red")


def _grounds(explanation: Explanation) -> Iterator[tuple[str, Text]]:
    """Yield since when, and what the answer rests on."""
    if explanation.added_in is not None and explanation.placed_in is not None:
        ends = "" if explanation.history_ends is None else f" (or earlier: {shown(explanation.history_ends)})"
        since = f"there since {_commit(explanation.added_in)}, placed so since {_commit(explanation.placed_in)}{ends}"
        yield "history", Text(since)
    digests = explanation.digests
    names = ("commit", "rule", "encoder", "configuration", "plan")
    yield "digests", Text(", ".join(f"{name} {getattr(digests, name)[:_DIGEST_DIGITS]}" for name in names), "dim")


def _commit(reference: CommitReference) -> str:
    return f"commit {reference.version} ({shown(reference.created_at[:10])})"


def _quoted(label: str | None) -> str:
    return f'"{shown(label or "")}"'


def _short(value: object) -> str:
    text = "–" if value is None else shown(str(value))
    return text if len(text) <= _MAX_VALUE else text[: _MAX_VALUE - 1] + "…"


def _more(number: int) -> str:
    return f", … {number - _MAX_SHOWN} more" if number > _MAX_SHOWN else ""


def _margin(margin: float) -> str:
    """Return a margin so that a small one is not shown as none.

    >>> _margin(0.05), _margin(0.0000259)
    ('0.050', '3e-05')
    """
    return f"{margin:.3f}" if margin >= 0.001 or margin == 0 else f"{margin:.0e}"
