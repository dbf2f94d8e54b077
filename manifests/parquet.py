"""Opens a manifest's Parquet files, wherever they lie, and closes them again.

```
footer, rows, batches ─► pyarrow, on a file that the store has opened        page checksums are verified
lazy scan, whole columns ─► polars on local paths, which reads them faster; else `read_rows`, a few files at a time
```

pyarrow's datasets are kept away from files that Python opens: their threads may still read when a scan has failed or was left
early, and then the interpreter aborts at its end (seen with pyarrow 26). This does *not* say what is wrong with a file that
cannot be read: callers catch OSError and pyarrow's or polars' own errors.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Final

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from polars.io.plugins import register_io_source

from lmsplit.manifests.store import LocalStore, Store

_FILES_AHEAD: Final = 4
"""Files that a scan reads at once where each request takes long; memory is the wanted columns of so many (assumption)."""


@contextmanager
def parquet_file(store: Store, name: str, **options: Any) -> Iterator[pq.ParquetFile]:
    """Open a Parquet file until the block ends; `options` are pyarrow's."""
    options = {"pre_buffer": store.is_local} | options  # by threads that an error does not stop: see above
    with store.input(name) as source:  # closed here, for a ParquetFile leaves open what it was given
        yield pq.ParquetFile(source, page_checksum_verification=True, **options)


def read_footer(store: Store, name: str) -> pq.FileMetaData:
    """Return what the footer of a Parquet file says."""
    with parquet_file(store, name) as file:
        return file.metadata


def read_rows(store: Store, name: str, columns: Sequence[str] | None = None, wanted: pc.Expression | None = None) -> pa.Table:
    """Read rows of a Parquet file.

    Args:
        store: the manifest.
        name: the file.
        columns: these only, among them those that `wanted` names; all when None.
        wanted: rows for which it holds; row groups whose statistics rule it out are not read.
    """
    names = None if columns is None else list(columns)
    if wanted is None:
        with parquet_file(store, name) as file:
            return file.read(names)
    from pyarrow.dataset import ParquetFileFormat

    with store.input(name) as source:
        admitted = ParquetFileFormat().make_fragment(source).subset(wanted)  # by the footer alone
        options = {"page_checksum_verification": True, "pre_buffer": store.is_local}
        rows = pq.ParquetFile(source, metadata=admitted.metadata, **options)
        return rows.read_row_groups([group.id for group in admitted.row_groups], names).filter(wanted)


def read_columns(store: Store, name: str, columns: Sequence[str]) -> pl.DataFrame:
    """Return whole columns of a Parquet file."""
    if isinstance(store, LocalStore):  # a directory may be called "a[1]", which is no pattern
        return pl.read_parquet(store.path(name), columns=list(columns), glob=False)
    return _frame(read_rows(store, name, columns))


def scan(store: Store, names: Sequence[str], columns: pa.Schema) -> pl.LazyFrame:
    """Return Parquet files as one LazyFrame, in this order.

    Args:
        store: the manifest.
        names: the files; of none, the frame is empty.
        columns: what they hold.
    """
    empty = _frame(columns.empty_table())
    if not names:
        return empty.lazy()
    if isinstance(store, LocalStore):
        return pl.scan_parquet([store.path(name) for name in names], glob=False)

    def frames(
        with_columns: list[str] | None, predicate: pl.Expr | None, n_rows: int | None, _: int | None
    ) -> Iterator[pl.DataFrame]:
        """Yield the rows that polars asks for, a file at a time."""
        for frame in _read_ahead(store, names, with_columns or columns.names):
            frame = frame if n_rows is None else frame.head(n_rows)
            n_rows = None if n_rows is None else n_rows - len(frame)
            yield frame if predicate is None else frame.filter(predicate)
            if n_rows == 0:
                return

    return register_io_source(frames, schema=empty.schema)


def _read_ahead(store: Store, names: Sequence[str], columns: Sequence[str]) -> Iterator[pl.DataFrame]:
    threads = ThreadPoolExecutor(_FILES_AHEAD)
    waiting: deque[Future[pl.DataFrame]] = deque()
    try:
        for name in names:
            waiting.append(threads.submit(read_columns, store, name, columns))
            if len(waiting) == _FILES_AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        threads.shutdown(cancel_futures=True)


def _frame(table: pa.Table) -> pl.DataFrame:
    frame = pl.from_arrow(table)
    assert isinstance(frame, pl.DataFrame)
    return frame
