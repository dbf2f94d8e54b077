"""Draws documents at random without reading all of a manifest: some row groups are drawn, then rows of these.

The same commit gives the same documents. Where the drawn row groups are all there are, the sample is uniform; else it is uniform
within them, and documents that lie together are drawn together.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lmsplit.manifests.errors import DamagedError
from lmsplit.manifests.parquet import parquet_file, read_footer
from lmsplit.manifests.reader import Manifest


class RowGroup(NamedTuple):
    """A row group of a data file."""

    path: str
    number: int
    first_row: int
    """of the file, counted from 0."""
    rows: int
    bytes: int
    """uncompressed."""


class Sample(NamedTuple):
    """Documents drawn from a manifest."""

    rows: list[dict[str, Any]]
    """in the order of the files; the wanted columns, and the place: `path` and `row`."""
    groups_read: int
    num_groups: int
    """in the manifest."""


def sample_rows(manifest: Manifest, size: int, columns: Sequence[str], read_bytes: int) -> Sample:
    """Draw documents.

    Args:
        manifest: the manifest.
        size: how many; all where there are fewer.
        columns: what to read of them.
        read_bytes: stop drawing row groups when they hold so much, uncompressed; at least one is read.

    Raises:
        DamagedError: a file is missing or cannot be read.
    """
    generator = np.random.default_rng(int(manifest.digest[:16], 16))
    groups = _groups(manifest)
    order = generator.permutation(len(groups))
    before = np.cumsum([0, *(groups[index].bytes for index in order)])[:-1]
    drawn = [groups[index] for index in np.sort(order[before < read_bytes])]
    ends = np.cumsum([0, *(group.rows for group in drawn)])
    places = np.sort(generator.choice(ends[-1], min(size, int(ends[-1])), replace=False))
    rows: list[dict[str, Any]] = []
    for group, start in zip(drawn, ends[:-1], strict=True):
        wanted = places[(places >= start) & (places < start + group.rows)] - start
        if len(wanted):
            rows += _rows(manifest, group, wanted, list(columns))
    return Sample(rows, len(drawn), len(groups))


def _groups(manifest: Manifest) -> list[RowGroup]:
    groups = []
    for entry in manifest.data_files():
        try:
            metadata = read_footer(manifest.store, entry.path)
        except (OSError, pa.ArrowException) as error:
            raise _unreadable(manifest, entry.path, error) from error
        first_row = 0
        for number in range(metadata.num_row_groups):
            group = metadata.row_group(number)
            groups.append(RowGroup(entry.path, number, first_row, group.num_rows, group.total_byte_size))
            first_row += group.num_rows
    return groups


def _rows(manifest: Manifest, group: RowGroup, wanted: npt.NDArray[np.int64], columns: list[str]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    try:
        with parquet_file(manifest.store, group.path) as file:
            start = 0
            for batch in file.iter_batches(4096, [group.number], columns):
                inside = wanted[(wanted >= start) & (wanted < start + batch.num_rows)] - start
                places = (group.first_row + start + inside).tolist()
                found = batch.take(pa.array(inside)).to_pylist()
                rows += [{**row, "path": group.path, "row": place} for row, place in zip(found, places, strict=True)]
                start += batch.num_rows
    except (OSError, pa.ArrowException) as error:
        raise _unreadable(manifest, group.path, error) from error
    return rows


def _unreadable(manifest: Manifest, path: str, error: Exception) -> DamagedError:
    return DamagedError(path, f"{manifest.store.where(path)} cannot be read ({error}): run lmsplit verify --deep")
