"""Holds documents out without a leak: who is held out, and which training documents nearly repeat one of them.

```
unit ─► documents whose group's hash is below the fit's threshold ─► shingles       Heldout, one task per unit
all units' shingles ─► one index on disk: sorted band keys, and the shingles        Bands, one task
place ─► a training document that the index matches becomes `excluded`
```

Who is held out follows from seed and group alone (see `hashing`), the threshold from the fit. The index is mapped into memory,
so that the workers of a node share it: 240 bytes a held-out document at threshold 0.8, and the shingles as they are looked at.
`Bands` takes about 600 bytes a document and one unit's shingles. There are at most 2,000,000 documents (the fit lowers the
threshold for it), or the run stops. It does *not* look for near-duplicates among training documents.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from lmsplit.manifests.errors import InputError
from lmsplit.partition.config import MAX_HELDOUT_DOCUMENTS, Partition
from lmsplit.partition.hashing import chosen, heldout_hashes
from lmsplit.partition.ids import losers, ordinals_of
from lmsplit.partition.near_duplicates import DOCUMENTS, NearDuplicateIndex, write_index
from lmsplit.partition.planning import Planned
from lmsplit.partition.run import Run
from lmsplit.partition.shingles import Shingles, shingle

_TOLERATED: Final = 1.25
"""Groups are of unequal size, so somewhat more than the expected documents may be held out."""


def searches(configuration: Partition) -> bool:
    """Return whether near-duplicates of held-out documents are searched for."""
    return configuration.near_duplicate_threshold is not None and configuration.heldout_fraction > 0


@dataclass(frozen=True)
class Heldout:
    """The stage that takes the shingles of every held-out document.

    Args:
        run: the run, fitted.
    """

    run: Run
    name: str = "heldout"

    @property
    def num_tasks(self) -> int:
        """One per work unit; none where nothing is searched for."""
        planned = Planned(self.run)
        return planned.num_units if searches(planned.configuration) else 0

    @cached_property
    def _losers(self) -> pl.DataFrame:
        return losers(self.run)

    def do(self, task: int) -> None:
        """Write the ids and shingles of one unit's held-out documents."""
        planned = Planned(self.run)
        seed, fraction = planned.configuration.seed, self.run.receipt("fit", 0)["heldout_fraction"]
        repeated = ordinals_of(self._losers, task)
        batches = []
        first = 0
        for batch in planned.read(task):
            ordinals = np.arange(first, first + batch.documents.num_rows)
            first += batch.documents.num_rows
            wanted = chosen(heldout_hashes(seed, batch.documents), fraction) & ~np.isin(ordinals, repeated)
            documents = batch.documents.filter(pa.array(wanted))
            sets = shingle(documents["text"].to_pylist())
            batches.append(pa.record_batch([documents["doc_id"], _as_lists(sets)], schema=DOCUMENTS))
        table = pa.Table.from_batches(batches, DOCUMENTS)
        with self.run.store.spool() as path:
            pieces = {}
            if table.num_rows:  # hashes do not compress
                pq.write_table(table, path, compression="none", use_dictionary=False, write_page_checksum=True)
                pieces["shingles"] = path
            self.run.finish(self.name, task, pieces, {"documents": table.num_rows})


def _as_lists(sets: Shingles) -> pa.Array:
    return pa.LargeListArray.from_arrays(pa.array(sets.offsets), pa.array(sets.hashes))


@dataclass(frozen=True)
class Bands:
    """The stage that builds the index of held-out documents.

    Args:
        run: the run, its held-out documents shingled.
    """

    run: Run
    name: str = "bands"

    @property
    def num_tasks(self) -> int:
        """One; none where nothing is searched for."""
        return 1 if searches(Planned(self.run).configuration) else 0

    def do(self, task: int) -> None:
        """Build the index.

        Raises:
            InputError: more documents are held out than the index takes.
        """
        planned = Planned(self.run)
        threshold = planned.configuration.near_duplicate_threshold
        assert threshold is not None, "only a search has an index"
        num_heldout = sum(receipt["documents"] for receipt in self.run.receipts("heldout", planned.num_units))
        if num_heldout > _TOLERATED * MAX_HELDOUT_DOCUMENTS:
            raise InputError(
                f"{num_heldout} documents are held out, the search for near-duplicates takes {MAX_HELDOUT_DOCUMENTS}: some "
                "groups are very large; name a finer group column, lower heldout_fraction, or set near_duplicate_threshold: null"
            )
        with ExitStack() as stack:
            documents, bands = (stack.enter_context(self.run.store.spool()) for _ in range(2))
            pieces = {"documents.arrow": documents, "bands.arrow": bands}
            num_indexed = write_index(self._pieces(planned.num_units), threshold, planned.configuration.seed, documents, bands)
            self.run.finish(self.name, task, pieces, {"documents": num_heldout, "indexed": num_indexed})

    def _pieces(self, num_units: int) -> Iterator[tuple[Sequence[str], Shingles]]:
        for receipt in self.run.receipts("heldout", num_units):
            if receipt["pieces"]:
                table = self.run.table(receipt, "shingles")
                sets = table["shingles"].combine_chunks()
                yield table["doc_id"].to_pylist(), Shingles(sets.offsets.to_numpy(), sets.values.to_numpy())


def open_index(run: Run) -> NearDuplicateIndex | None:
    """Open the index of held-out documents; None where nothing is searched for."""
    if not Bands(run).num_tasks:
        return None
    receipt = run.receipt("bands", 0)
    return NearDuplicateIndex(run.local(receipt, "documents.arrow"), run.local(receipt, "bands.arrow"))
