"""What one domain's documents say of it: how far from the centroid they lie, next to which domains, and where they came from.

Cost: one pass over a few narrow columns of the domain's data files.
"""

from typing import Any, Final

import polars as pl
import pyarrow as pa

from lmsplit.manifests.errors import DamagedError
from lmsplit.manifests.reader import Manifest

BIN: Final = 0.02
"""Width of a bin of distances."""
_MAX_VALUES: Final = 5


def text_columns(manifest: Manifest) -> list[str]:
    """Return the columns whose values are worth counting: source first, then what was kept as text."""
    return ["source", *(name for name, kind in manifest.body.columns.items() if kind in ("string", "bool"))]


def domain_details(manifest: Manifest, domain: str) -> dict[str, Any]:
    """Return what `show --domain` adds.

    Args:
        manifest: the manifest.
        domain: name of one of its domains.

    Returns:
        `distances`: documents in each step of 0.02 of distance, from 0; `neighbours`: the domains that are the runner-up of most
        documents, with their number; `values`: of `source` and each kept column of text, the commonest values with their number.

    Raises:
        ManifestError: there is no such domain.
        DamagedError: a file is missing or cannot be read.
    """
    manifest.domain(domain)
    columns = text_columns(manifest)
    if not manifest.data_files(domain):
        return {"distances": [], "neighbours": [], "values": {}}
    wanted = ["distance", "second_domain", *columns]
    binned = (pl.col("distance") / BIN).floor().clip(0, None).cast(pl.Int32)
    try:
        rows = manifest.scan(domain).select(wanted)
        if not manifest.store.is_local:  # one read, not one for each column
            rows = rows.collect().lazy()
        queries = [_counts(rows, pl.col(name).cast(pl.String)) for name in wanted[1:]]
        bins, neighbours, *values = pl.collect_all([_counts(rows, binned), *queries])
    except (OSError, pa.ArrowException, pl.exceptions.PolarsError) as error:
        raise DamagedError(f"data/{domain}", f"{domain} cannot be read ({error}): run lmsplit verify --deep") from error
    found = dict(bins.drop_nulls().rows())
    named = ((name, _top(counts)) for name, counts in zip(columns, values, strict=True))
    return {
        "distances": [found.get(number, 0) for number in range(max(found, default=-1) + 1)],
        "neighbours": _top(neighbours),
        "values": {name: top for name, top in named if top},
    }


def _counts(rows: pl.LazyFrame, value: pl.Expr) -> pl.LazyFrame:
    return rows.group_by(value.alias("value")).agg(pl.len().alias("documents"))


def _top(counts: pl.DataFrame) -> list[dict[str, Any]]:
    return counts.drop_nulls().sort(["documents", "value"], descending=[True, False]).head(_MAX_VALUES).to_dicts()
