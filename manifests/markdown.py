"""Writes data as Markdown that shows it and does nothing else: labels, licences, and whatever else a corpus may hold."""

from collections.abc import Iterable, Sequence
from typing import Final

MAX_CHARACTERS: Final = 80
"""A value is shown by so many first characters."""

_MARKUP: Final = frozenset("\\`*_[]<>|#&~$:@!{}")
"""What Markdown may act on, autolinks and formulas included; CommonMark lets any ASCII punctuation be escaped."""


def escaped(text: str) -> str:
    r"""Return data as one line of Markdown.

    >>> print(escaped("a | *b*"))
    a \| \*b\*
    """
    visible = (character if character.isprintable() else " " for character in text)
    marked = "".join(f"\\{character}" if character in _MARKUP else character for character in visible)
    return marked.replace("www.", "www\\.")  # which some readers link without any markup


def shown(value: str | None) -> str:
    r"""Return a value of a column as one short line of Markdown; what is in italics is no value.

    >>> shown(None), shown("  "), shown("MIT"), len(shown("x" * 10_000))
    ('*none*', '*blank*', 'MIT', 81)
    """
    if value is None:
        return "*none*"
    if not value.strip():
        return "*blank*"
    return escaped(value) if len(value) <= MAX_CHARACTERS else escaped(value[:MAX_CHARACTERS]) + "…"


def code(text: object) -> str:
    """Return a digest or a path as code; of what cannot stand there, nothing is left.

    >>> code("plans/0123.json"), code("a`b")
    ('`plans/0123.json`', '`ab`')
    """
    return f"`{''.join(filter(lambda character: character.isprintable() and character != '`', str(text)))}`"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a table; a heading that begins with a space is that of a column of numbers.

    >>> table(["what", " how many"], [["loaves", "3"]])
    ['| what | how many |', '|---|---:|', '| loaves | 3 |']
    """
    rule = "".join("---:|" if name.startswith(" ") else "---|" for name in head)
    lines = [f"| {' | '.join(name.strip() for name in head)} |", f"|{rule}"]
    return lines + ["|" + "".join(f" {cell} |" if cell else " |" for cell in row) for row in rows]
