"""Makes text that is data safe to print: nothing in it is obeyed by a terminal."""

from typing import Final

_JOINERS: Final = "\u200c\u200d"  # without them, words of several scripts are spelt wrongly


def shown(value: str) -> str:
    r"""Return a text on one line, without any character that a terminal would act on.

    >>> shown("a\tb\x1b[31m") == "a b\N{REPLACEMENT CHARACTER}[31m"
    True
    """
    return "".join(map(_shown_character, value))


def _shown_character(character: str) -> str:
    if character.isspace():
        return " "
    return character if character.isprintable() or character in _JOINERS else "\N{REPLACEMENT CHARACTER}"
