"""Counts a manifest's documents by the values of its columns: which source feeds which domain, under which licence.

Cost: one pass over the columns that are asked for and the sizes, a batch at a time; memory grows with the combinations found, not
with the documents. Page checksums are verified. It reads no text and decides nothing.
"""

from collections.abc import Iterator, Sequence
from typing import Final

import polars as pl
import pyarrow as pa

from lmsplit.manifests.errors import DamagedError, ManifestError
from lmsplit.manifests.parquet import parquet_file
from lmsplit.manifests.reader import Manifest
from lmsplit.manifests.schema import FIXED_COLUMNS

MAX_CHARACTERS: Final = 200
"""Values are told apart by so many first characters: a column may hold a whole licence text in every row."""

_BATCH_ROWS: Final = 65_536
_MAX_WAITING: Final = 1 << 18
"""Counted rows that wait before they are added up: so no more than these and the combinations are held."""

_SIZES: Final = ("documents", "bytes", "tokens")


def crosstab(manifest: Manifest, column: str) -> pl.DataFrame:
    """Count documents by domain and value.

    Args:
        manifest: the manifest.
        column: any column, fixed or kept; its values are compared as text.

    Returns:
        `domain`, `value` (null where the document has none), `documents`, `bytes`, `tokens` (null without a tokenizer); in each
        domain the commonest value first.

    Raises:
        ManifestError: there is no such column.
        DamagedError: a file is missing or cannot be read.
    """
    found = count_by(manifest, ["domain", column])
    assert found is not None, "nothing limits it"
    found = found.rename({"value_0": "domain", "value_1": "value"})
    return found.sort(["domain", "documents", "value"], descending=[False, True, False])


def count_by(manifest: Manifest, columns: Sequence[str], limit: int | None = None) -> pl.DataFrame | None:
    """Count documents by the values of several columns together.

    Args:
        manifest: the manifest.
        columns: any columns, fixed or kept; their values are compared as text, by their first 200 characters.
        limit: give up beyond so many combinations.

    Returns:
        `value_0`, `value_1`, … (null where the document has none), `documents`, `bytes`, `tokens` (null without a tokenizer), the
        commonest combination first; None beyond the limit.

    Raises:
        ManifestError: there is no such column.
        DamagedError: a file is missing or cannot be read.
    """
    known = [*FIXED_COLUMNS, *manifest.body.columns]
    for column in columns:
        if column not in known:
            raise ManifestError(f"{manifest.store.location} has no column {column!r}: it has {', '.join(known)}")
    names = [f"value_{number}" for number in range(len(columns))]
    found = pl.DataFrame(schema={**dict.fromkeys(names, pl.String), **dict.fromkeys(_SIZES, pl.Int64)})
    waiting: list[pl.DataFrame] = []
    for entry in manifest.data_files():
        for batch in _batches(manifest, entry.path, dict(zip(names, columns, strict=True))):
            waiting.append(_summed(batch, names))
            if sum(map(len, waiting)) > max(_MAX_WAITING, len(found)):
                found, waiting = _summed(pl.concat([found, *waiting]), names), []
                if limit is not None and len(found) > limit:
                    return None
    found = _summed(pl.concat([found, *waiting]), names)
    if limit is not None and len(found) > limit:
        return None
    if manifest.body.counts.tokens is None:
        found = found.with_columns(pl.lit(None, pl.Int64).alias("tokens"))
    return found.sort(["documents", *names], descending=[True, *(False for _ in names)])


def _batches(manifest: Manifest, path: str, columns: dict[str, str]) -> Iterator[pl.DataFrame]:
    """Yield one row a document, by the names that its values shall have."""
    sizes = [pl.lit(1, pl.Int64).alias("documents"), pl.col("num_bytes").alias("bytes"), pl.col("num_tokens").alias("tokens")]
    values = [pl.col(column).cast(pl.String).str.head(MAX_CHARACTERS).alias(name) for name, column in columns.items()]
    wanted = list(dict.fromkeys([*columns.values(), "num_bytes", "num_tokens"]))
    try:
        with parquet_file(manifest.store, path) as file:
            for batch in file.iter_batches(_BATCH_ROWS, columns=wanted):
                frame = pl.DataFrame(pa.Table.from_batches([batch]))
                yield frame.select(*values, *(size.cast(pl.Int64) for size in sizes))
    except (OSError, pa.ArrowException, pl.exceptions.PolarsError) as error:
        message = f"{manifest.store.where(path)} cannot be read ({error}): run lmsplit verify {manifest.store.location} --deep"
        raise DamagedError(path, message) from error


def _summed(counts: pl.DataFrame, names: list[str]) -> pl.DataFrame:
    return counts.group_by(names).agg(pl.col(*_SIZES).sum())
