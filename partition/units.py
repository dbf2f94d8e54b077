"""Work units: pieces of the input that one task reads whole, cut from the input alone, never from the number of workers.

It opens no file: `corpus` feeds it what it finds there. Cost: a row of Python objects per piece; plain JSONL is searched once
for newlines.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal, NamedTuple

Format = Literal["parquet", "jsonl", "jsonl.gz", "jsonl.zst"]

# Assumptions: 128 units keep 64 workers busy nearly to the end; a smaller unit than 1 MiB would not pay for
# starting a task, and one above 64 MiB would cost too much when a worker is killed and starts it again.
UNITS_WANTED: Final = 128
MIN_UNIT_BYTES: Final = 2**20
MAX_UNIT_BYTES: Final = 64 * 2**20

FORMATS: Final[dict[str, Format]] = {
    ".parquet": "parquet",
    ".jsonl": "jsonl",
    ".json": "jsonl",
    ".jsonl.gz": "jsonl.gz",
    ".jsonl.zst": "jsonl.zst",
}


@dataclass(frozen=True)
class Segment:
    """A piece of one file that is read whole.

    Attributes:
        path: POSIX path relative to the input root.
        format: how the file is written.
        start: first row group (parquet), or first byte.
        stop: the row group or byte after the last; a compressed file is always whole.
        first_row: row or line of the file that the segment begins with.
        num_rows: rows, or lines including blank ones; None for a compressed file.
        file_bytes: size of the whole file, to notice one that changed.
    """

    path: str
    format: Format
    start: int
    stop: int
    first_row: int
    num_rows: int | None
    file_bytes: int


@dataclass(frozen=True)
class WorkUnit:
    """Consecutive segments of the corpus that one task processes."""

    index: int
    segments: tuple[Segment, ...]


class Piece(NamedTuple):
    """The smallest that a file is cut into, before neighbours are packed into units."""

    segment: Segment
    weight: int
    """uncompressed bytes, as far as they are known without reading."""
    num_documents: int


def format_of(name: str) -> Format | None:
    """Return how a file of this name is written; None for a suffix that is not known.

    >>> format_of("a/b.JSONL.gz")
    'jsonl.gz'
    """
    lower = name.lower()
    return next((form for suffix, form in FORMATS.items() if lower.endswith(suffix)), None)


def choose_unit_bytes(corpus_bytes: int) -> int:
    """Return the uncompressed bytes of a unit, for an input of so many: neither too small to pay nor too large to lose."""
    return min(max(corpus_bytes // UNITS_WANTED, MIN_UNIT_BYTES), MAX_UNIT_BYTES)


class Cutter:
    """Cuts plain JSONL after the first line that ends at or past the unit size, counting lines on the way."""

    def __init__(self, unit_bytes: int) -> None:
        self._unit_bytes = unit_bytes
        self._start = self._first_row = self._position = self._row = 0
        self._ended = True
        self.cuts: list[tuple[int, int, int, int]] = []
        """(start, stop, first row, rows) of each piece."""

    def add(self, chunk: bytes) -> None:
        """Take the next bytes of the file."""
        begin = 0
        while cut := chunk.find(b"\n", max(begin, self._start + self._unit_bytes - self._position - 1)) + 1:
            self._row += chunk.count(b"\n", begin, cut)
            self._close(self._position + cut)
            begin = cut
        self._row += chunk.count(b"\n", begin)
        self._position += len(chunk)
        self._ended = chunk.endswith(b"\n")

    def finish(self) -> None:
        """Close the last piece; `cuts` is complete."""
        self._row += not self._ended
        if self._position > self._start:
            self._close(self._position)

    def _close(self, stop: int) -> None:
        self.cuts.append((self._start, stop, self._first_row, self._row - self._first_row))
        self._start, self._first_row = stop, self._row


def pack(pieces: Sequence[Piece], unit_bytes: int) -> tuple[WorkUnit, ...]:
    """Put consecutive pieces together while they fit a unit, neighbours in a file into one segment."""
    units: list[list[Segment]] = []
    weight = 0
    for piece in pieces:
        if not units or weight + piece.weight > unit_bytes:
            units.append([])
            weight = 0
        weight += piece.weight
        last, new = units[-1][-1] if units[-1] else None, piece.segment
        if last and last.path == new.path and last.num_rows is not None and new.num_rows is not None:
            units[-1][-1] = replace(last, stop=new.stop, num_rows=last.num_rows + new.num_rows)
        else:
            units[-1].append(new)
    return tuple(WorkUnit(index, tuple(segments)) for index, segments in enumerate(units))
