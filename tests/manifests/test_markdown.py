"""Data as Markdown: a reader that is not ours shows every character of it, and makes nothing of them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from lmsplit.manifests.markdown import MAX_CHARACTERS, code, escaped, shown, table

READER = MarkdownIt("commonmark", {"linkify": False}).enable("table")


def cells_of(lines: list[str]) -> list[str]:
    """Return the text of every cell, and of every piece that is more than text its type."""
    cells = [token.children or [] for token in READER.parse("\n".join(lines)) if token.type == "inline"]
    return ["".join(each.content if each.type in {"text", "text_special"} else each.type for each in cell) for cell in cells]


MARKUP = st.text(st.sampled_from(list("\\`*_[]<>|#&~$:@!{}()-+=.'\"\n\r\t aé1")) | st.characters(codec="utf-8"), max_size=60)


@given(MARKUP)
def test_escaped_text_is_shown_as_it_is_in_a_table(text: str) -> None:
    """But for what has no shape, which becomes a space, and for spaces at the ends."""
    visible = "".join(character if character.isprintable() else " " for character in text)
    assert cells_of(table(["value", "next"], [[escaped(text), "next"]]))[2:] == [visible.strip(), "next"]


@given(MARKUP)
def test_escaped_text_is_one_line(text: str) -> None:
    """Whatever a text reader takes for the end of one."""
    assert len(f"|{escaped(text)}|".splitlines()) == 1


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, "*none*"),
        ("", "*blank*"),
        (" \n", "*blank*"),
        ("none", "none"),
        ("*none*", r"\*none\*"),
        ("x" * MAX_CHARACTERS, "x" * MAX_CHARACTERS),
        ("x" * (MAX_CHARACTERS + 1), "x" * MAX_CHARACTERS + "…"),
        ("|" * 10_000, r"\|" * MAX_CHARACTERS + "…"),
    ],
)
def test_shown_value_is_short_and_told_from_no_value(value: str | None, expected: str) -> None:
    """It is cut before it is escaped, never inside an escape."""
    assert shown(value) == expected


def test_escaped_address_is_no_link() -> None:
    """GitHub's and the Hub's Markdown link what begins with www., too."""
    assert escaped("www.evil.example") == r"www\.evil.example"


def test_code_holds_nothing_that_ends_it() -> None:
    """Neither a backtick nor the end of the line."""
    assert code("a`b\n``c") == "`abc`"
    assert code(None) == "`None`"


def test_table_aligns_numbers_and_keeps_empty_cells() -> None:
    """Each row has as many bars as the head."""
    lines = table(["a", " b", "c"], [["1", "", "3"]])
    assert lines == ["| a | b | c |", "|---|---:|---|", "| 1 | | 3 |"]
