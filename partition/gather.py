"""Gathers the pieces into the domains' files: each output shard is written once, and a task reads a piece once.

```
groups of every piece ─► shards: per domain and split, the units' documents in order, cut at shard_size
shards, in order      ─► tasks: neighbours together, until they hold enough (16 to 64 MB)
task ─► unit by unit its rows, which lie together ─► data/<domain>/part-NNNNN-<sha>.parquet   and   its ids for the index
```

A file holds one split only, so that a reader who knows nothing of us can leave the held-out documents alone. Which shard holds
which rows, and which task writes it, follows from the receipts alone.

Cost: planning, one look at every unit's groups; then the documents once, and for every task a footer and at most two
half-wanted row groups of each unit that it touches. Memory: the plan's is a few numbers a domain and a shard; a task's is
64 MB of text for its small shards, one row group of a large one (64k rows or 64 MB), their other columns, and the ids.

Shape legend: G the (domain, split) pairs of the manifest, or those that a unit holds.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from lmsplit.manifests.layout import data_path, domain_name
from lmsplit.manifests.parquet import parquet_file
from lmsplit.manifests.schema import IDS, SPLITS
from lmsplit.manifests.store import file_sha256
from lmsplit.partition.bad_records import check_bad_fraction
from lmsplit.partition.hashing import id_hashes
from lmsplit.partition.pieces import GROUPS
from lmsplit.partition.place import document_schema
from lmsplit.partition.planning import Planned
from lmsplit.partition.run import Run, describe, piece

ROW_GROUP_ROWS: Final = 65_536
ROW_GROUP_BYTES: Final = 64 * 10**6
BUNDLES_WANTED: Final = 128
MIN_BUNDLE_BYTES: Final = 16 * 10**6
MAX_BUNDLE_BYTES: Final = 64 * 10**6
"""Text that a task gathers before it takes no further shard: a 128th of all, within these bounds. Assumptions: 128 tasks keep 64
workers busy nearly to the end, smaller ones would open every piece too often, and all of a larger one would be in memory."""
FILE_BYTES: Final = 2**17
"""What a file costs beside its text, as text. Measured (benchmarks/results/many_domains.md): the same documents in 4,761 files
instead of 36 take 2.6 ms of CPU more for each, as long as 0.2 MB of text."""


def _group_number(domain: int, split: int) -> int:
    return domain * len(SPLITS) + split


class Shard(NamedTuple):
    """One output file: the documents of one domain and split in consecutive units."""

    domain: int
    split: int
    """Position in `SPLITS`."""
    part: int
    first_unit: int
    stop_unit: int
    documents: int
    text_bytes: int

    @property
    def group(self) -> int:
        """The number of its (domain, split) pair, in the order of the files."""
        return _group_number(self.domain, self.split)


def add_tokens(counts: Iterable[int | None]) -> int | None:
    """Return the sum of token counts; None where they were not counted.

    >>> add_tokens([3, 4]), add_tokens([None, None])
    (7, None)
    """
    known = [count for count in counts if count is not None]
    return sum(known) if known else None


def plan_shards(units: Iterable[pa.Table], num_domains: int, shard_bytes: int) -> list[Shard]:
    """Cut the domains into output files.

    Args:
        units: what the piece of each unit holds, by `pieces.GROUPS`.
        num_domains: K.
        shard_bytes: a shard is closed once it holds so many bytes of text.

    Returns:
        The shards by domain, split and part; parts count through a domain's splits.
    """
    first_G, stop_G, documents_G, bytes_G = np.zeros((4, num_domains * len(SPLITS)), np.int64)
    closed: list[npt.NDArray[np.int64]] = []

    def close(group: npt.NDArray[np.int64]) -> None:
        """End the open shards of some (domain, split) pairs."""
        closed.append(np.stack([group, first_G[group], stop_G[group], documents_G[group], bytes_G[group]]))
        documents_G[group] = bytes_G[group] = 0

    for unit, groups in enumerate(units):
        held = _group_numbers(groups)
        first_G[held] = np.where(documents_G[held], first_G[held], unit)
        stop_G[held] = unit + 1
        documents_G[held] += groups["rows"].to_numpy()
        bytes_G[held] += groups["text_bytes"].to_numpy()
        close(held[bytes_G[held] >= shard_bytes])
    close(np.flatnonzero(documents_G))
    group, first, *others = np.concatenate(closed, axis=1)
    order = np.lexsort((first, group))
    domain, split = np.divmod(group[order], len(SPLITS))
    part = np.arange(len(order)) - np.searchsorted(domain, domain)
    columns = [domain, split, part, first[order], *(column[order] for column in others)]
    return [Shard(*row) for row in np.stack(columns, axis=1).tolist()]


def _group_numbers(groups: pa.Table) -> npt.NDArray[np.int64]:
    number_G: npt.NDArray[np.int64] = groups["domain"].to_numpy().astype(np.int64) * len(SPLITS) + groups["split"].to_numpy()
    return number_G


def bundle_shards(shards: Sequence[Shard]) -> list[list[Shard]]:
    """Put consecutive shards together into tasks.

    Args:
        shards: by domain, split and part.

    Returns:
        The shards of each task; it takes no further one once it holds its share of the text, `FILE_BYTES` a file included.
    """
    share = sum(shard.text_bytes + FILE_BYTES for shard in shards) // BUNDLES_WANTED
    bundle_bytes = min(max(share, MIN_BUNDLE_BYTES), MAX_BUNDLE_BYTES)
    bundles: list[list[Shard]] = []
    size = bundle_bytes
    for shard in shards:
        if size >= bundle_bytes:
            bundles.append([])
            size = 0
        bundles[-1].append(shard)
        size += shard.text_bytes + FILE_BYTES
    return bundles


@dataclass(frozen=True)
class Gather:
    """The gather stage.

    Args:
        run: the run, placed.
    """

    run: Run
    name: str = "gather"

    @cached_property
    def bundles(self) -> list[list[Shard]]:
        """The output files to write, task by task.

        Raises:
            InputError: scan and place set too much aside.
        """
        check_bad_fraction(self.run, ("scan", "place"))
        num_domains = len(self.run.receipt("fit", 0)["labels"])
        units = (self._groups(unit) for unit in range(len(self._receipts)))
        return bundle_shards(plan_shards(units, num_domains, Planned(self.run).configuration.shard_size))

    @property
    def num_tasks(self) -> int:
        """One per bundle of shards."""
        return len(self.bundles)

    @cached_property
    def _receipts(self) -> list[dict[str, Any]]:
        return list(self.run.receipts("place", Planned(self.run).num_units))

    def _groups(self, unit: int) -> pa.Table:
        receipt = self._receipts[unit]
        return self.run.table(receipt, "groups") if "groups" in receipt["pieces"] else GROUPS.empty_table()

    @cached_property
    def _schema(self) -> pa.Schema:
        return document_schema(self.run)

    def do(self, task: int) -> None:
        """Write the shards of one bundle, and their ids."""
        with ExitStack() as stack:
            spool = self.run.store.spool
            files = [_File(shard, self._schema, stack.enter_context(spool()), stack) for shard in self.bundles[task]]
            self._fill(files)
            shards = [self._publish(file) for file in files]
            ids = stack.enter_context(spool())
            table = pa.concat_tables([file.id_table() for file in files])
            table = table.sort_by([("id_hash", "ascending"), ("doc_id", "ascending")])
            pq.write_table(table, ids, row_group_size=ROW_GROUP_ROWS, write_page_checksum=True)
            self.run.finish(self.name, task, {"ids": ids}, {"documents": table.num_rows, "shards": shards})

    def _fill(self, files: Sequence["_File"]) -> None:
        """Give every file its documents, reading each unit once."""
        shards = [file.shard for file in files]
        for unit in range(min(shard.first_unit for shard in shards), max(shard.stop_unit for shard in shards)):
            wanted = {file.shard.group: file for file in files if file.shard.first_unit <= unit < file.shard.stop_unit}
            for group, documents in self._read(unit, wanted):
                wanted[_group_number(group["domain"], group["split"])].add(group, documents)

    def _read(self, unit: int, wanted: Iterable[int]) -> Iterator[tuple[dict[str, Any], pa.Table]]:
        """Yield what a unit holds of some (domain, split) pairs, in the order of the piece."""
        groups = self._groups(unit)
        held = np.flatnonzero(np.isin(_group_numbers(groups), list(wanted)))
        if not len(held):
            return
        assert held[-1] - held[0] + 1 == len(held), "neighbours among the files are neighbours in a piece"
        with parquet_file(self.run.store, piece(self._receipts[unit], "documents")) as file:
            for number, members in groupby(groups.take(held).to_pylist(), key=lambda group: int(group["row_group"])):
                together = list(members)
                first, last = together[0]["row"], together[-1]
                rows = _part(file.read_row_group(number), first, last["row"] + last["rows"])
                for group in together:
                    yield group, rows.slice(group["row"] - first, group["rows"])

    def _publish(self, file: "_File") -> dict[str, Any]:
        """Put a filled file where it belongs; return what the receipt says of it."""
        file.close()
        shard, sha256 = file.shard, file_sha256(file.path)
        domain = domain_name(shard.domain)
        entry = describe(file.path, data_path(domain, shard.part, sha256), sha256)
        assert entry["rows"] == shard.documents, "a shard holds what its receipts say"
        self.run.store.put(file.path, entry["path"])
        return {
            "domain": domain,
            "split": SPLITS[shard.split],
            "documents": shard.documents,
            "text_bytes": shard.text_bytes,
            "tokens": add_tokens(group["tokens"] for group in file.groups),
            "distance_sum": float(np.sum([group["distance_sum"] for group in file.groups])),
            "file": entry,
        }


def _part(table: pa.Table, start: int, stop: int) -> pa.Table:
    """Return some rows of a table; not as a view, which would keep all of the table in memory."""
    return table if stop - start == table.num_rows else table.take(pa.array(np.arange(start, stop)))


class _File:
    """An output file that is being written: row groups of at least 64k rows or 64 MB.

    Args:
        shard: what goes into it.
        schema: of the data files.
        path: where to write it.
        stack: closes the file and removes what is left of it.
    """

    def __init__(self, shard: Shard, schema: pa.Schema, path: Path, stack: ExitStack) -> None:
        self.shard = shard
        self.path = path
        self.groups: list[dict[str, Any]] = []
        self._schema = schema
        self._stack = stack
        self._doc_ids: list[str] = []
        self._waiting: list[pa.Table] = []
        self._rows = self._bytes = 0
        self._writer: pq.ParquetWriter | None = None

    def add(self, group: dict[str, Any], documents: pa.Table) -> None:
        """Take a unit's documents, and what is said of them."""
        self.groups.append(group)
        self._doc_ids += documents["doc_id"].to_pylist()
        self._waiting.append(documents)
        self._rows += documents.num_rows
        self._bytes += documents.nbytes
        if self._rows >= ROW_GROUP_ROWS or self._bytes >= ROW_GROUP_BYTES:
            self._flush()

    def _flush(self) -> None:
        if self._writer is None:  # not before: a bundle may have more files than a process may hold open
            writer = pq.ParquetWriter(self.path, self._schema, compression="zstd", write_page_checksum=True)
            self._writer = self._stack.enter_context(writer)
        table = pa.concat_tables(self._waiting).replace_schema_metadata(self._schema.metadata)
        self._writer.write_table(table, row_group_size=table.num_rows)
        self._waiting = []
        self._rows = self._bytes = 0

    def close(self) -> None:
        """Write what waits, and end the file."""
        if self._waiting:
            self._flush()
        assert self._writer is not None, "a shard has documents"
        self._writer.close()

    def id_table(self) -> pa.Table:
        """Return its part of the ids index."""
        columns = {
            "id_hash": id_hashes(self._doc_ids),
            "doc_id": self._doc_ids,
            "domain": [domain_name(self.shard.domain)] * len(self._doc_ids),
            "part": np.full(len(self._doc_ids), self.shard.part, np.int32),
            "row": np.arange(len(self._doc_ids), dtype=np.int64),
        }
        return pa.table(columns, schema=IDS)
