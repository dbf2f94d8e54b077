"""The file of `diff --documents`: every document that is not unchanged, one row each, as Parquet.

It is written beside its name, hidden, and takes the name only when it is whole: a run that is killed leaves nothing under it. A
file that is there already is never touched. This does *not* decide what stands in it: see `diff`.

Cost: one compressed write of the rows given; each call makes at least one row group.
"""

import uuid
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from lmsplit.manifests.errors import ConfigurationError
from lmsplit.manifests.store import Store

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


class DocumentsFile:
    """A Parquet file to be: write rows to it inside a `with`; at the end of the block it gets its name.

    Args:
        path: the name; its directory is made.

    Raises:
        ConfigurationError: the name is taken.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._hidden = path.parent / f".{path.name}.{uuid.uuid4().hex}"
        self._check(taken=path.exists() or path.is_symlink())

    def _check(self, *, taken: bool) -> None:
        if taken:
            raise ConfigurationError(f"{self._path} exists: choose another name for the documents, or remove it first")

    def __enter__(self) -> Self:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._writer = pq.ParquetWriter(self._hidden, SCHEMA, compression="zstd", write_page_checksum=True)
        return self

    def write(self, rows: pl.DataFrame) -> None:
        """Append rows, sorted by their ids; columns that the file does not have are left out."""
        if len(rows):
            table = rows.select(SCHEMA.names).sort("doc_id").to_arrow().cast(SCHEMA)
            self._writer.write_table(table, row_group_size=_ROW_GROUP)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self._writer.close()
            if kind is None:
                self._check(taken=not Store(self._path.parent).put(self._hidden, self._path.name))
        finally:
            self._hidden.unlink(missing_ok=True)
