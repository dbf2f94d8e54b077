"""The file of `diff --documents`: every document that is not unchanged, one row each, as Parquet.

It appears whole or not at all, and never over another file: see `export`. This does *not* decide what stands in it: see `diff`.

Cost: one compressed write of the rows given; each call makes at least one row group.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from lmsplit.manifests.export import new_file
from lmsplit.manifests.reader import Manifest

SCHEMA: Final = pa.schema(
    [
        pa.field("doc_id", pa.string(), nullable=False),
        pa.field("status", pa.string(), nullable=False),
        pa.field("cause", pa.string()),
        pa.field("domain_a", pa.string()),
        pa.field("domain_b", pa.string()),
        pa.field("aligned", pa.string()),  # the domain of B for domain_a
        *(
            pa.field(f"{name}_{side}", kind)
            for name, kind in (
                ("distance", pa.float32()),
                ("margin", pa.float32()),
                ("text_sha256", pa.string()),
                ("num_bytes", pa.int64()),
                ("num_tokens", pa.int32()),
                ("split", pa.string()),
                ("source_path", pa.string()),
                ("source_row", pa.int64()),
            )
            for side in "ab"
        ),
    ]
)
"""What a manifest does not say of a document is null: all of A where it was added, all of B where it was removed."""

_ROW_GROUP: Final = 1 << 18


@contextmanager
def documents_file(a: Manifest, path: Path) -> Iterator[Callable[[pl.DataFrame], None]]:
    """Give a function that writes rows to a new file, which has its name once the block ends well.

    Rows are written sorted by their ids; columns that the file does not have are left out.

    Args:
        a: the first manifest, in whose own folders the file must not lie.
        path: the name.

    Raises:
        ConfigurationError: `path` exists, has no directory, or lies where the manifest keeps its own files.
    """
    with new_file(a, path) as hidden, pq.ParquetWriter(hidden, SCHEMA, compression="zstd", write_page_checksum=True) as writer:

        def write(rows: pl.DataFrame) -> None:
            """Append rows, sorted by their ids."""
            if len(rows):
                table = rows.select(SCHEMA.names).sort("doc_id").to_arrow().cast(SCHEMA)
                writer.write_table(table, row_group_size=_ROW_GROUP)

        yield write
