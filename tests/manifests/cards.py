"""What the tests of the data-set card share: hostile values, documents with other values, and the card's tables as read back."""

import pyarrow as pa
import yaml
from markdown_it import MarkdownIt

from lmsplit.manifests.card import write_card
from lmsplit.manifests.reader import Manifest

HOSTILE = [
    "a | b | c",
    "---\nconfigs: []\n---",
    "`code` *bold* _it_ [link](http://evil.example) ![image](x)",
    "<script>alert(1)</script> &lt;b&gt;",
    "# heading\r\n\r\n## another",
    "key: 'value' \"quoted\" {a: b} %TAG !tag &anchor @at",
    "$x^2$ https://evil.example ~~gone~~ \\",
    "line\u2028separator\x00nul\x1bescape \u202eright to left",
    "",
]
"""Values that try to leave their cell, their line, their head, or the text."""


def parts_of(card: str) -> tuple[dict, str]:
    """Return a card's head, parsed, and its text."""
    _, head, text = card.split("---\n", 2)
    return yaml.safe_load(head), text


def with_column(table, name, values):
    """Return a data file's table with other values in a column of text."""
    index = table.schema.get_field_index(name)
    return table.set_column(index, table.schema.field(name), pa.array(values, pa.string()))


def set_all(forger, name, value_of):
    """Give every document a value; `value_of` takes its number."""
    start = 0
    for entry in Manifest.open(forger.root).data_files():
        values = [value_of(number) for number in range(start, start + entry.rows)]
        forger.table(entry.path, lambda table, values=values: with_column(table, name, values), card=False)
        start += entry.rows
    write_card(Manifest.open(forger.root))


def tables_of(card):
    """Return the tables of a card as Markdown shows them: a list of rows, the head first, each a list of plain cells."""
    found, row = [], []
    for token in MarkdownIt("commonmark").enable("table").parse(parts_of(card)[1]):
        if token.type == "table_open":
            found.append([])
        elif token.type == "inline" and row is not None:
            row.append("".join(child.content for child in token.children))
        elif token.type == "tr_open":
            row = []
        elif token.type == "tr_close":
            found[-1].append(row)
            row = []
    return found


def table_under(card, heading, *head):
    """Return the rows of the table with this head in a section."""
    section = f"---\n---\n{card.split(f'## {heading}')[1].split('## ')[0]}"
    return next(rows[1:] for rows in tables_of(section) if rows[0] == list(head))
