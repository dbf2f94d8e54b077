"""Writes a unit's placed documents as one piece, sorted by domain and split, and says where in it each of them begins.

```
documents in the order of the input ─► by domain, by split (train, heldout, excluded), then as they were
  row group 0: d00000 train │ d00000 heldout │ d00001 train     a row group ends where a (domain, split) ends,
  row group 1: d00002 train │ …                                 once it holds enough to be worth reading by itself
```

So a small domain costs a few rows in a shared row group, and thousands of them no more than the documents that they have. It
does *not* say what belongs into which file: see `gather`. Cost: one sort of the unit's rows. Memory: the unit's documents twice.

Shape legend: N documents, G groups: the documents of a unit in one domain and split, R row groups.
"""

from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lmsplit.manifests.layout import domain_index
from lmsplit.manifests.schema import SPLITS

ROW_GROUP_BYTES: Final = 2**20
"""Text in a row group. Measured (benchmarks/results/many_domains_row_groups.md): opening a large piece and reading one row group
of it is cheapest here and at half of it, and here it is written faster; smaller ones make the footer longer, larger ones are
read for the sake of a few rows."""
ROW_GROUP_ROWS: Final = 8192
"""Rows in a row group: of documents shorter than 128 bytes, the other columns are the larger part (assumption)."""

GROUPS: Final = pa.schema(
    [
        pa.field("domain", pa.int32(), nullable=False),
        pa.field("split", pa.int8(), nullable=False),  # position in SPLITS
        pa.field("rows", pa.int64(), nullable=False),
        pa.field("text_bytes", pa.int64(), nullable=False),
        pa.field("tokens", pa.int64()),  # null without a tokenizer
        pa.field("distance_sum", pa.float64(), nullable=False),
        pa.field("row_group", pa.int32(), nullable=False),  # of the piece
        pa.field("row", pa.int64(), nullable=False),  # the first one, counted in the row group
    ]
)
"""What a piece holds, a row for each (domain, split) in it, in their order."""


def write_piece(table: pa.Table, path: Path) -> pa.Table:
    """Write a unit's documents by domain, split and order of the input.

    Args:
        table: the documents in the order of the input.
        path: where to write; nothing is written for an empty table.

    Returns:
        What the piece holds, by `GROUPS`.
    """
    if not table.num_rows:
        return GROUPS.empty_table()
    group_N = _domains(table["domain"]) * len(SPLITS) + pc.index_in(table["split"], value_set=pa.array(SPLITS)).to_numpy()
    order_N = np.argsort(group_N, kind="stable")
    group_G, first_G, rows_G = np.unique(group_N[order_N], return_index=True, return_counts=True)
    bytes_G = np.add.reduceat(table["num_bytes"].to_numpy()[order_N], first_G)
    begin_R = _row_groups(rows_G, bytes_G)
    with pq.ParquetWriter(path, table.schema, compression="zstd", write_page_checksum=True) as writer:
        for order in np.split(order_N, first_G[begin_R[1:]]):
            writer.write_table(table.take(pa.array(order)), row_group_size=len(order))
    domain_G, split_G = np.divmod(group_G, len(SPLITS))
    tokens_G = _tokens(table["num_tokens"], order_N, first_G)
    distance_G = _distances(table["distance"].to_numpy()[order_N], first_G)
    row_group_G = np.searchsorted(begin_R, np.arange(len(group_G)), side="right") - 1
    row_G = first_G - first_G[begin_R][row_group_G]
    columns = [domain_G, split_G, rows_G, bytes_G, tokens_G, distance_G, row_group_G, row_G]
    return pa.table([pa.array(column).cast(kind.type) for column, kind in zip(columns, GROUPS, strict=True)], schema=GROUPS)


def _domains(names: pa.ChunkedArray) -> npt.NDArray[np.int64]:
    distinct = names.unique()
    of_distinct = np.array([domain_index(name) for name in distinct.to_pylist()], np.int64)
    domain_N: npt.NDArray[np.int64] = of_distinct[pc.index_in(names, value_set=distinct).to_numpy()]
    return domain_N


def _row_groups(rows_G: npt.NDArray[np.int64], bytes_G: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return the first group of every row group; one that is large enough by itself shares its row group with none."""
    begin_R = []
    full = True
    for group, (more_rows, more_bytes) in enumerate(zip(rows_G.tolist(), bytes_G.tolist(), strict=True)):
        large = _is_full(more_rows, more_bytes)
        if full or large:
            begin_R.append(group)
            rows = size = 0
        rows, size = rows + more_rows, size + more_bytes
        full = large or _is_full(rows, size)
    return np.array(begin_R)


def _is_full(rows: int, num_bytes: int) -> bool:
    return rows >= ROW_GROUP_ROWS or num_bytes >= ROW_GROUP_BYTES


def _tokens(counts: pa.ChunkedArray, order_N: npt.NDArray[np.int64], first_G: npt.NDArray[np.int64]) -> pa.Array:
    """Return the sums of the groups; null where nothing is counted."""
    sums_G = np.add.reduceat(counts.fill_null(0).to_numpy()[order_N].astype(np.int64), first_G)
    known_G = np.add.reduceat(counts.is_valid().to_numpy()[order_N].astype(np.int64), first_G)
    return pa.array(sums_G, mask=known_G == 0)


def _distances(distance_N: npt.NDArray[np.float32], first_G: npt.NDArray[np.int64]) -> list[float]:
    return [float(np.sum(distances, dtype=np.float64)) for distances in np.split(distance_N, first_G[1:])]
