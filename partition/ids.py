"""Settles duplicate ids: of equal ids the lowest (unit, ordinal) stays, the others are losers.

One task per range of the id's hash, so that memory is one range (about a million ids) whatever the corpus. See `index` for what
becomes of the ids in the end.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lmsplit.manifests.errors import InputError
from lmsplit.manifests.parquet import read_rows
from lmsplit.partition.bad_records import check_bad_fraction
from lmsplit.partition.hashing import RANGE
from lmsplit.partition.planning import Planned
from lmsplit.partition.run import Run, piece
from lmsplit.partition.scan import IDS as SCANNED_IDS

IDS_PER_RANGE: Final = 1_000_000


def num_ranges(run: Run) -> int:
    """Return how many hash ranges the ids are cut into."""
    return max(1, -(-Planned(run).estimated_documents // IDS_PER_RANGE))


def read_range(run: Run, stage: str, num_tasks: int, hash_range: int, schema: pa.Schema) -> pl.DataFrame:
    """Read one hash range of the `ids` pieces of every receipt of a stage."""
    width = -(-RANGE // num_ranges(run))
    low, high = hash_range * width, min((hash_range + 1) * width, RANGE) - 1
    id_hash = pc.field("id_hash")
    within = (id_hash >= pa.scalar(low, pa.uint64())) & (id_hash <= pa.scalar(high, pa.uint64()))
    receipts = (receipt for receipt in run.receipts(stage, num_tasks) if "ids" in receipt["pieces"])
    tables = [read_rows(run.store, piece(receipt, "ids"), wanted=within) for receipt in receipts]
    frame = pl.from_arrow(pa.concat_tables(tables) if tables else schema.empty_table())
    assert isinstance(frame, pl.DataFrame)
    return frame


@dataclass(frozen=True)
class Settle:
    """The stage that finds repeated ids.

    Args:
        run: the run.
    """

    run: Run
    name: str = "settle"

    @property
    def num_tasks(self) -> int:
        """One per hash range."""
        return num_ranges(self.run)

    def do(self, task: int) -> None:
        """Find the losers of one hash range.

        Raises:
            InputError: an id is repeated and the configuration calls that an error, or the scan set too much aside.
        """
        planned = Planned(self.run)
        check_bad_fraction(self.run, ("scan",))
        frame = read_range(self.run, "scan", planned.num_units, task, SCANNED_IDS)
        frame = frame.sort("doc_id", "unit", "ordinal")
        repeated = frame.filter(pl.col("doc_id") == pl.col("doc_id").shift(1))
        if len(repeated) and planned.configuration.duplicate_ids == "error":
            raise InputError(_report(frame, repeated))
        with self.run.store.spool() as path:
            pieces = {}
            if len(repeated):
                pq.write_table(repeated.select("unit", "ordinal").sort("unit", "ordinal").to_arrow(), path)
                pieces["losers"] = path
            self.run.finish(self.name, task, pieces, {"documents": len(frame), "duplicates": len(repeated)})


def _report(frame: pl.DataFrame, repeated: pl.DataFrame) -> str:
    lines = []
    for doc_id in repeated["doc_id"].unique(maintain_order=True).head(3):
        rows = frame.filter(pl.col("doc_id") == doc_id)
        places = [f"{path} row {row}" for path, row in rows.head(3).select("source_path", "source_row").iter_rows()]
        places += [f"{len(rows) - 3} more places"] if len(rows) > 3 else []
        lines.append(f"{doc_id!r} stands in {' and '.join(places)}")
    return (
        f"{len(repeated)} documents repeat an id: {'; '.join(lines)}. Make the ids unique, name another id column, "
        "or set duplicate_ids: quarantine to keep the first of each"
    )


def losers(run: Run) -> pl.DataFrame:
    """Return (unit, ordinal) of every document that lost its id to an earlier one."""
    receipts = run.receipts("settle", num_ranges(run))
    frames = [pl.from_arrow(run.table(receipt, "losers")) for receipt in receipts if receipt["duplicates"]]
    return pl.concat([f for f in frames if isinstance(f, pl.DataFrame)]) if frames else _NO_LOSERS


def ordinals_of(losers: pl.DataFrame, unit: int) -> npt.NDArray[np.int64]:
    """Return the ordinals of a unit's losers, of a frame that `losers` returned."""
    return losers.filter(losers["unit"] == unit)["ordinal"].to_numpy()


_NO_LOSERS: Final = pl.DataFrame(schema={"unit": pl.Int64, "ordinal": pl.Int64})
