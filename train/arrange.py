"""Document lengths to pieces in rows of one fixed length: arithmetic alone, no token and no file.

```
wrapped    documents end to end ─cut at every row's end─► pieces
bfd_split  documents ─whole rows + remainders─► remainders, longest first, each into the tightest row it fits
           └► where too little is filled: the emptiest rows are dissolved into the gaps of the others ─► pieces
```

The names are TRL's. Best fit decreasing is that of "Fewer Truncations Improve Language Modeling" (arXiv 2404.10830);
dissolving rows is ours, and bounds what padding costs whatever the lengths are: at least `FILLED_FRACTION` of the positions
hold a token. Every token has exactly one place, and the same lengths give the same pieces.

This does *not* look at tokens and draws nothing at random. Cost: sorting, and one step of about a microsecond for each row and
length that meet; memory about 150 bytes for each document.
"""

from heapq import heappop, heappush
from typing import Any, Final, Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt

# Shapes: N documents, P pieces, R rows, I items (pieces to place), S slots (room to fill).

Strategy = Literal["wrapped", "bfd_split"]
FILLED_FRACTION: Final = 0.995
"""Of the positions, all rows but a shorter last one counted in full (assumption: half a percent is not worth a cut document)."""
_FILLED_PERMILLE: Final = round(1000 * FILLED_FRACTION)

Numbers = npt.NDArray[np.int64]


class Pieces(NamedTuple):
    """Where each piece of each document lies, in the order of the documents and in each of its tokens."""

    document_P: Numbers
    """Number of the document, from 0."""
    offset_P: Numbers
    """Of the piece's first token in the document."""
    length_P: Numbers
    """Tokens, at least 1."""
    row_P: Numbers
    """Number of the row, from 0."""
    start_P: Numbers
    """Position of the piece's first token in the row."""


def arrange(lengths_N: Numbers, max_length: int, strategy: Strategy) -> Pieces:
    """Give every token of every document its place in a row.

    Args:
        lengths_N: tokens of each document, at least 1.
        max_length: tokens in a row, at least 1.
        strategy: `wrapped` cuts documents at every row's end and fills every row but the last; `bfd_split` cuts
            documents that are longer than a row, and as few others as fill 99.5 % of the positions.

    Returns:
        The pieces. Rows are numbered from 0, without gaps, in the order of their first document; the last one may
        be shorter than the others.

    Raises:
        ValueError: a length is below 1, or there is no such strategy.

    >>> pieces = arrange(np.array([5, 2, 1]), 4, "bfd_split")
    >>> list(zip(*(column.tolist() for column in pieces), strict=True))
    [(0, 0, 4, 0, 0), (0, 4, 1, 1, 2), (1, 0, 2, 1, 0), (2, 0, 1, 1, 3)]
    """
    if strategy not in get_args(Strategy):
        raise ValueError(f"there is no strategy {strategy!r}: expected one of {', '.join(get_args(Strategy))}")
    lengths_N = np.asarray(lengths_N, np.int64)
    if max_length < 1 or (len(lengths_N) and lengths_N.min() < 1):
        raise ValueError("documents and rows hold at least 1 token")
    if strategy == "wrapped":
        rows_R = np.full(-(-int(lengths_N.sum()) // max_length), max_length)
        return Pieces(*lay(lengths_N, rows_R))
    return _numbered(_dissolved(_best_fit(lengths_N, max_length), max_length), max_length)


def lay(items_I: Numbers, slots_S: Numbers) -> tuple[Numbers, Numbers, Numbers, Numbers, Numbers]:
    """Lay items end to end over slots end to end, cut wherever an item or a slot ends.

    Args:
        items_I: length of each item, at least 1.
        slots_S: length of each slot, at least 1; together at least as long as the items.

    Returns:
        For each part, in order: item, offset in the item, length, slot, offset in the slot.

    >>> [column.tolist() for column in lay(np.array([3, 2]), np.array([2, 9]))]
    [[0, 0, 1], [0, 2, 0], [2, 1, 2], [0, 1, 1], [0, 0, 1]]
    """
    item_ends_I, slot_ends_S = np.cumsum(items_I), np.cumsum(slots_S)
    total = int(item_ends_I[-1]) if len(items_I) else 0
    ends_P = np.union1d(item_ends_I, slot_ends_S[slot_ends_S < total])
    starts_P = np.concatenate([np.zeros(1, np.int64), ends_P])[:-1]
    item_P = np.searchsorted(item_ends_I, starts_P, side="right")
    slot_P = np.searchsorted(slot_ends_S, starts_P, side="right")
    offset_P = starts_P - (item_ends_I - items_I)[item_P]
    return item_P, offset_P, ends_P - starts_P, slot_P, starts_P - (slot_ends_S - slots_S)[slot_P]


def place(lengths_I: Numbers, capacity: int) -> Numbers:
    """Place items into rows by best fit: each into the row with the least room that it fits, the first of several.

    A set of the rooms there are, kept as the bits of one integer, finds the tightest row at once; items of one length
    follow each other into the same row while they fit, for no other row can be tighter then.

    Args:
        lengths_I: length of each item, 1 to `capacity`, the longest first.
        capacity: of a row.

    Returns:
        The row of each item; rows are numbered as they are opened.

    >>> place(np.array([6, 5, 4, 3, 2]), 10).tolist()
    [0, 1, 0, 1, 1]
    """
    changes_I = np.flatnonzero(np.diff(lengths_I, prepend=0))
    counts = np.diff(changes_I, append=len(lengths_I)).tolist()
    row_I: list[int] = []
    with_room: list[list[int]] = [[] for _ in range(capacity)]
    rooms = num_rows = 0
    for length, count in zip(lengths_I[changes_I].tolist(), counts, strict=True):
        left = count
        while left:
            if fitting := rooms >> length:
                room = length + (fitting & -fitting).bit_length() - 1
                row = heappop(with_room[room])
                rooms ^= 0 if with_room[room] else 1 << room
            else:
                row, room, num_rows = num_rows, capacity, num_rows + 1
            placed = min(left, room // length)
            row_I += [row] * placed
            left -= placed
            if room := room - placed * length:
                heappush(with_room[room], row)
                rooms |= 1 << room
    return np.array(row_I, np.int64)


def _best_fit(lengths_N: Numbers, max_length: int) -> Pieces:
    """Cut whole rows off each document and place what is left; in no particular order."""
    whole_N, rest_N = np.divmod(lengths_N, max_length)
    num_whole = int(whole_N.sum())
    document_P = np.repeat(np.arange(len(lengths_N)), whole_N)
    ordinal_P = np.arange(num_whole) - np.repeat(np.cumsum(whole_N) - whole_N, whole_N)
    full = Pieces(document_P, ordinal_P * max_length, np.full(num_whole, max_length), np.arange(num_whole), 0 * ordinal_P)
    document_I = np.argsort(-rest_N, kind="stable")[: np.count_nonzero(rest_N)]
    length_I = rest_N[document_I]
    row_I = place(length_I, max_length)
    rests = Pieces(document_I, whole_N[document_I] * max_length, length_I, num_whole + row_I, _starts(row_I, length_I))
    return _joined(full, rests)


def _starts(row_I: Numbers, length_I: Numbers) -> Numbers:
    """Return where each item begins in its row when the items of a row follow each other in their order."""
    order_I = np.argsort(row_I, kind="stable")
    ends_I = np.cumsum(length_I[order_I])
    first_I = np.flatnonzero(np.diff(row_I[order_I], prepend=-1))
    row_begins_I = np.repeat((ends_I - length_I[order_I])[first_I], np.diff(first_I, append=len(row_I)))
    start_I = np.empty(len(row_I), np.int64)
    start_I[order_I] = ends_I - length_I[order_I] - row_begins_I
    return start_I


def _dissolved(pieces: Pieces, max_length: int) -> Pieces:
    """Dissolve the emptiest rows into the gaps of the others where too little is filled, the widest gaps first."""
    filled_R = np.bincount(pieces.row_P, pieces.length_P).astype(np.int64)
    num_tokens = int(filled_R.sum())
    if not num_tokens or _fills(num_tokens, (len(filled_R) - 1) * max_length + int(filled_R.min())):
        return pieces
    num_kept = num_tokens * 1000 // (_FILLED_PERMILLE * max_length)
    num_needed = -(-num_tokens // max_length)
    spare = num_kept < num_needed  # few rows: only when all but the last are full is enough filled
    by_fill_R = np.argsort(-filled_R, kind="stable")
    kept_R, dissolved_R = np.split(by_fill_R, [num_needed - 1 if spare else num_kept])
    gapped_S = kept_R[::-1][: np.count_nonzero(filled_R[kept_R] < max_length)]
    row_S = np.append(gapped_S, dissolved_R[:1])
    taken_S = np.append(filled_R[gapped_S], 0)
    moved = np.isin(pieces.row_P, dissolved_R)
    moving, staying = _chosen(pieces, moved), _chosen(pieces, ~moved)
    moving = _chosen(moving, np.lexsort((moving.document_P, -moving.length_P)))
    item_P, cut_P, length_P, slot_P, start_P = lay(moving.length_P, max_length - taken_S)
    offset_P = moving.offset_P[item_P] + cut_P
    return _joined(staying, Pieces(moving.document_P[item_P], offset_P, length_P, row_S[slot_P], taken_S[slot_P] + start_P))


def _numbered(pieces: Pieces, max_length: int) -> Pieces:
    """Put pieces in the documents' order and number the rows as they are first met, the emptiest one last."""
    pieces = _chosen(pieces, np.lexsort((pieces.offset_P, pieces.document_P)))
    _, first_R, row_P = np.unique(pieces.row_P, return_index=True, return_inverse=True)
    if not len(first_R):
        return pieces
    filled_R = np.bincount(row_P, pieces.length_P)
    emptiest = np.lexsort((first_R, -filled_R))[-1]
    first_R[emptiest] = first_R.max() + (filled_R[emptiest] < max_length)
    number_R = np.argsort(np.argsort(first_R, kind="stable"), kind="stable")
    return pieces._replace(row_P=number_R[row_P])


def _fills(num_tokens: int, num_positions: int) -> bool:
    return num_tokens * 1000 >= _FILLED_PERMILLE * num_positions


def _chosen(pieces: Pieces, which: npt.NDArray[Any]) -> Pieces:
    return Pieces(*(column[which] for column in pieces))


def _joined(first: Pieces, second: Pieces) -> Pieces:
    return Pieces(*(np.concatenate(columns) for columns in zip(first, second, strict=True)))
