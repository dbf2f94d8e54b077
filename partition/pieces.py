"""Writes a unit's placed documents as one piece: a row group per (split, domain), so that gathering reads only what it wants.

Cost: one sort of the unit's rows. Memory: the unit's documents twice.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq


def write_piece(table: pa.Table, path: Any) -> list[dict[str, Any]]:
    """Write a unit's documents, a row group per (split, domain), each in the order of the input.

    Args:
        table: the documents in the order of the input.
        path: where to write; nothing is written for an empty table.

    Returns:
        What each row group holds, in their order; `tokens` is null without a tokenizer.
    """
    groups: list[dict[str, Any]] = []
    if not table.num_rows:
        return groups
    with pq.ParquetWriter(path, table.schema, compression="zstd", write_page_checksum=True) as writer:
        for split, domain, rows in _grouped(table):
            writer.write_table(rows, row_group_size=max(rows.num_rows, 1))
            groups.append(
                {
                    "split": split,
                    "domain": domain,
                    "rows": rows.num_rows,
                    "text_bytes": pc.sum(rows["num_bytes"]).as_py(),
                    "tokens": pc.sum(rows["num_tokens"]).as_py(),
                    "distance_sum": float(np.sum(rows["distance"].to_numpy(), dtype=np.float64)),
                }
            )
    return groups


def _grouped(table: pa.Table) -> Iterator[tuple[str, str, pa.Table]]:
    splits, domains = table["split"].to_numpy(), table["domain"].to_numpy()
    order = np.lexsort((np.arange(table.num_rows), domains, splits))
    changes = np.flatnonzero((splits[order][1:] != splits[order][:-1]) | (domains[order][1:] != domains[order][:-1])) + 1
    for rows in np.split(order, changes):
        yield str(splits[rows[0]]), str(domains[rows[0]]), table.take(rows)
