"""Exports a manifest as one Parquet file without texts: ids, places, provenance, and the kept columns.

```
data files, domain by domain ─► all columns but `text` ─► row groups of 65,536 rows ─► one file
```

Whoever has the corpus joins it by `doc_id`, by `text_sha256`, or by `source_path` and `source_row`. It does *not* carry the
domain table, the quarantine or the rule: the file's metadata names the manifest that has them.

Cost: one pass over the narrow columns; memory is one row group of them.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

from lmsplit.manifests.errors import DamagedError
from lmsplit.manifests.export import Progress, chosen_domains, new_file
from lmsplit.manifests.reader import Manifest

ROW_GROUP_ROWS: Final = 65_536
ROW_GROUP_BYTES: Final = 64 * 10**6
"""A row group is closed at either: kept columns may be long."""


def slim_schema(manifest: Manifest) -> pa.Schema:
    """Return the columns of the exported file: those of a data file but `text`; its metadata names the manifest."""
    fields = [field for field in manifest.schema if field.name != "text"]
    return pa.schema(fields, metadata={"lmsplit.schema_version": str(manifest.body.version), "lmsplit.manifest": manifest.digest})


def export_slim(manifest: Manifest, output: Path, domains: Sequence[str] = (), progress: Progress | None = None) -> int:
    """Write the documents' rows without their texts.

    Args:
        manifest: the manifest.
        output: the file to make.
        domains: of these only; all when empty.
        progress: called with the number of rows written since the last call.

    Returns:
        How many rows were written: in the order of domain, part and row.

    Raises:
        ManifestError: there is no such domain.
        ConfigurationError: `output` exists or cannot be there.
        DamagedError: a data file is missing or cannot be read.
    """
    chosen = [domain.domain for domain in chosen_domains(manifest, domains)]
    columns = slim_schema(manifest)
    written = 0
    writing = {"compression": "zstd", "write_page_checksum": True}
    with new_file(manifest, output) as path, pq.ParquetWriter(path, columns, **writing) as writer:
        for table in _row_groups(_batches(manifest, chosen, columns), columns):
            writer.write_table(table, row_group_size=table.num_rows)
            written += table.num_rows
            if progress is not None:
                progress(table.num_rows)
    return written


def _batches(manifest: Manifest, domains: Sequence[str], columns: pa.Schema) -> Iterator[pa.RecordBatch]:
    for domain in domains:
        yield from manifest.documents(domain, columns=columns.names)


def _row_groups(batches: Iterable[pa.RecordBatch], columns: pa.Schema) -> Iterator[pa.Table]:
    waiting: list[pa.RecordBatch] = []
    rows = num_bytes = 0
    for batch in batches:
        waiting.append(batch)
        rows, num_bytes = rows + batch.num_rows, num_bytes + batch.nbytes
        if rows >= ROW_GROUP_ROWS or num_bytes >= ROW_GROUP_BYTES:
            yield _table(waiting, columns)
            waiting, rows, num_bytes = [], 0, 0
    if waiting:
        yield _table(waiting, columns)


def _table(batches: list[pa.RecordBatch], columns: pa.Schema) -> pa.Table:
    try:
        return pa.Table.from_batches(batches).cast(columns)
    except (pa.ArrowException, ValueError) as error:  # another type or a null than the format has
        raise DamagedError("data", f"documents are not as the commit says ({error}): run lmsplit verify") from error
