"""Builds the index from an id to its document: gather's ids ─► ids/<range>.parquet, sorted by hash: id → domain, part, row.

One task per range of the id's hash, so that memory is one range (about a million ids) whatever the corpus.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyarrow.parquet as pq

from lmsplit.manifests.layout import ids_path
from lmsplit.manifests.schema import IDS
from lmsplit.manifests.store import file_sha256
from lmsplit.partition.gather import Gather
from lmsplit.partition.ids import num_ranges, read_range
from lmsplit.partition.run import Run, describe


@dataclass(frozen=True)
class Index:
    """The stage that writes the ids index.

    Args:
        run: the run.
    """

    run: Run
    name: str = "ids"

    @property
    def num_tasks(self) -> int:
        """One per hash range."""
        return num_ranges(self.run)

    @cached_property
    def _gather_tasks(self) -> int:
        return Gather(self.run).num_tasks

    def do(self, task: int) -> None:
        """Write the index of one hash range."""
        frame = read_range(self.run, "gather", self._gather_tasks, task, IDS).sort("id_hash", "doc_id")
        table = frame.to_arrow().cast(IDS)
        with self.run.store.spool() as path:
            # Small row groups: a look-up by hash reads one of them.
            pq.write_table(table, path, compression="zstd", write_page_checksum=True, row_group_size=65_536)
            sha256 = file_sha256(path)
            entry: dict[str, Any] = describe(path, ids_path(task, sha256), sha256)
            self.run.store.put(path, entry["path"])
            self.run.finish(self.name, task, {}, {"documents": len(frame), "files": [entry]})
