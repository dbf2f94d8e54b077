"""Counts a manifest's documents by domain and the value of a column: which source feeds which domain, under which licence.

Cost: one pass over four narrow columns; memory grows with the pairs found, not with the documents.
"""

import polars as pl

from lmsplit.manifests.errors import DamagedError, ManifestError
from lmsplit.manifests.reader import Manifest
from lmsplit.manifests.schema import FIXED_COLUMNS


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
    known = [*FIXED_COLUMNS, *manifest.body.columns]
    if column not in known:
        raise ManifestError(f"{manifest.store.root} has no column {column!r}: it has {', '.join(known)}")
    counted = (
        manifest.scan()
        .select("domain", pl.col(column).cast(pl.String).alias("value"), "num_bytes", "num_tokens")
        .group_by("domain", "value")
        .agg(
            pl.len().cast(pl.Int64).alias("documents"),
            pl.col("num_bytes").sum().alias("bytes"),
            pl.col("num_tokens").cast(pl.Int64).sum().alias("tokens"),
        )
        .sort(["domain", "documents", "value"], descending=[False, True, False])
    )
    try:
        found = counted.collect(engine="streaming")
    except (OSError, pl.exceptions.PolarsError) as error:
        raise DamagedError("data", f"the documents of {manifest.store.root} cannot be read ({error}): run lmsplit verify") from error
    return found if manifest.body.counts.tokens is not None else found.with_columns(pl.lit(None, pl.Int64).alias("tokens"))
