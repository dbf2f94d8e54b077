"""From a document to the rows, steps and checkpoints that it went into, and back.

```
doc_id ─spans.parquet─► pack, row, start, end ─order.parquet─► step ─checkpoint-N─► the first weights that saw it
```

A run writes two files into its directory before its first step:

```
lineage.json     what it trains on: the manifest, the tokenizer, the packs, the row filter, the seed's run
order.parquet    step, pack, row: one line for each row drawn, in training order
```

An unfinished run lies in the hidden sibling of its final directory (see `directory`) and is found there. Which steps
were really trained is read from what the run left: all of them where `run.json` stands, else those up to its newest
checkpoint. This does *not* read texts or weights, and takes a checkpoint at its name's word.

Cost: tracing a step reads one row group of the order and the span tables of the step's packs; tracing a document
reads the span tables of all packs and the whole order. Both are scanned, never held.
"""

import os
from bisect import bisect_left
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal, NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field, ValidationError

from lmsplit.manifests.configuration import Strict
from lmsplit.manifests.errors import ConfigurationError, ManifestError
from lmsplit.manifests.store import flush
from lmsplit.train.config import Where
from lmsplit.train.directory import write_whole
from lmsplit.train.order import RowOrder
from lmsplit.train.record import RECORD

LINEAGE: Final = "lineage.json"
ORDER: Final = "order.parquet"
FINAL: Final = "final"
"""Stands for the published weights where a checkpoint's name is meant."""
ORDER_SCHEMA: Final = pa.schema(
    [
        pa.field("step", pa.int64(), nullable=False),
        pa.field("pack", pa.int32(), nullable=False),
        pa.field("row", pa.int64(), nullable=False),
    ]
)
_CHECKPOINT: Final = "checkpoint-"
_GROUP_ROWS: Final = 1 << 18


class PackReference(Strict):
    """A packed split that a run draws rows from."""

    domain: str
    digest: str
    """Its directory is `<output>/packed/<digest>`."""


class Lineage(Strict):
    """What a run trains on; `order.parquet` says when."""

    schema_version: Literal[1] = 1
    run: str
    """`seed`, or the expert's domain."""
    manifest: str
    """Digest of the manifest that the packs were made from."""
    tokenizer: str
    """Digest of the tokenizer."""
    packs: tuple[PackReference, ...]
    """In the order of their numbers in `order.parquet`."""
    rows_per_step: Annotated[int, Field(ge=1)]
    """Rows in one optimizer step, over all processes and accumulation."""
    where: Where | None
    """The filter that every document passed; null where all training documents were taken."""
    seed_run: str | None
    """The seed's directory, relative to an expert's; null for the seed."""


class Span(NamedTuple):
    """A piece of a document in one row that one step trains on."""

    doc_id: str
    start: int
    """Where the piece begins in the row, in tokens from 0."""
    end: int
    """Where it ends; this token is not in it."""
    token: int
    """Where the piece begins in the document; the document's begin token is 0."""
    row: int
    step: int
    """The optimizer step, from 1."""
    checkpoint: str | None
    """The first checkpoint still there that has the step, or `final`; None where none has it yet."""
    run: str
    domain: str


@dataclass(frozen=True)
class TracedRun:
    """A run's lineage, opened with what it has trained so far. Make it with `TracedRun.open`."""

    directory: Path
    output: Path
    """The training output that the run lies in."""
    lineage: Lineage
    num_steps: int
    """Steps from the first to the last, trained or not."""
    num_trained_steps: int
    """The first so many are in the run's weights or its newest checkpoint."""
    checkpoints: tuple[int, ...]
    """Steps after which there is a checkpoint, ascending."""
    finished: bool

    @classmethod
    def open(cls, run: Path) -> "TracedRun":
        """Open a run, finished or not.

        Args:
            run: its final directory, also where it does not exist yet.

        Raises:
            ManifestError: there is no such run, or its lineage is missing or damaged.
        """
        directory = _existing(run)
        lineage = read_lineage(directory)
        num_steps = _count_steps(directory / ORDER, lineage.rows_per_step)
        checkpoints = tuple(sorted(checkpoint_steps(directory)))
        finished = (directory / RECORD).exists()
        trained = num_steps if finished else min(num_steps, max(checkpoints, default=0))
        output = (_seed_directory(directory, lineage) or directory.resolve()).parent
        return cls(directory, output, lineage, num_steps, trained, checkpoints, finished)

    def seed(self) -> "TracedRun | None":
        """Open the run that an expert continues; None for the seed itself."""
        directory = _seed_directory(self.directory, self.lineage)
        return TracedRun.open(directory) if directory else None

    def checkpoint(self, step: int) -> str | None:
        """Return the name of the first weights that have a step; see `Span.checkpoint`."""
        place = bisect_left(self.checkpoints, step)
        if place < len(self.checkpoints):
            return f"{_CHECKPOINT}{self.checkpoints[place]}"
        return FINAL if self.finished else None

    def order(self) -> pl.LazyFrame:
        """Return the rows in training order: `position` (from 0), `step`, `pack`, `row`."""
        return pl.scan_parquet(self.directory / ORDER, row_index_name="position", glob=False)

    def packed(self, pack: int) -> Path:
        """Return a pack's directory.

        Raises:
            ManifestError: it is missing.
        """
        reference = self.lineage.packs[pack]
        directory = self.output / "packed" / reference.digest
        if not directory.exists():
            raise ManifestError(
                f"{directory} is missing, the packed documents of {reference.domain} that {self.lineage.run} trains on: "
                "run the same lmsplit train command, which packs them again bit for bit"
            )
        return directory

    def spans(self, pack: int) -> pl.LazyFrame:
        """Return which documents lie in a pack's rows: `doc_id`, `token`, `row`, `start`, `end`, `pack`.

        Raises:
            ManifestError: the pack is missing.
        """
        table = pl.scan_parquet(self.packed(pack) / "spans.parquet", glob=False)
        return table.with_columns(pl.lit(pack, pl.Int32).alias("pack"))


def write_lineage(directory: Path, lineage: Lineage, order: RowOrder) -> None:
    """Write a run's two lineage files, each whole or not at all; `lineage.json` comes last.

    Args:
        directory: the run's, before its first step.
        lineage: what the run trains on.
        order: the rows drawn, `lineage.rows_per_step` of them for each step.
    """
    assert len(order.row_S) == order.num_steps * lineage.rows_per_step
    partial = directory / f".{ORDER}.partial"
    with pq.ParquetWriter(
        partial,
        ORDER_SCHEMA,
        compression="zstd",
        use_dictionary=["pack"],
        column_encoding={"step": "DELTA_BINARY_PACKED"},
    ) as writer:
        for start in range(0, len(order.row_S), _GROUP_ROWS):
            stop = min(start + _GROUP_ROWS, len(order.row_S))
            steps = np.arange(start, stop, dtype=np.int64) // lineage.rows_per_step + 1
            columns = [steps, order.pack_S[start:stop], order.row_S[start:stop]]
            writer.write_table(pa.table([pa.array(column) for column in columns], schema=ORDER_SCHEMA))
    flush(partial)
    partial.replace(directory / ORDER)
    write_whole(directory / LINEAGE, lineage.model_dump_json(indent=1) + "\n")


def read_lineage(directory: Path) -> Lineage:
    """Read what a run trains on.

    Raises:
        ManifestError: it is missing, or this version cannot read it.
    """
    path = directory / LINEAGE
    try:
        return Lineage.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValidationError) as error:
        raise ManifestError(
            f"{path} is missing or cannot be read ({str(error).partition(chr(10))[0]}), so nothing in {directory} can be "
            "traced: name a run's directory, such as <output>/seed, or remove it and run lmsplit train again"
        ) from error


def trace_step(run: Path, step: int) -> list[Span]:
    """Return what one optimizer step trains on, in the order of its rows and of the places in them.

    Args:
        run: the run's directory.
        step: from 1; it need not be trained yet.

    Raises:
        ConfigurationError: the run has no such step.
        ManifestError: there is no such run, or a pack or a file of its lineage is missing.
    """
    traced = TracedRun.open(run)
    if not 1 <= step <= traced.num_steps:
        raise ConfigurationError(f"{run} has no step {step}: it has steps 1 to {traced.num_steps}")
    drawn = traced.order().filter(pl.col("step") == step).collect()
    found = []
    for pack in drawn["pack"].unique().sort().to_list():
        rows = drawn.filter(pl.col("pack") == pack)
        found.append(traced.spans(pack).filter(pl.col("row").is_in(rows["row"].unique().implode())))
    spans = pl.concat(pl.collect_all(found, engine="streaming"))
    return _spans(traced, drawn.join(spans, on=["pack", "row"]))


def trace_document(run: Path, doc_id: str) -> list[Span]:
    """Return every piece of a document in every step that trains on it, for an expert after those of its seed.

    Args:
        run: the run's directory.
        doc_id: the document's id in the manifest.

    Returns:
        The pieces, a row that is trained on n times n times; none where the document is in no row drawn.

    Raises:
        ManifestError: there is no such run, or a pack or a file of its lineage is missing.
    """
    traced = TracedRun.open(run)
    seed = traced.seed()
    return [span for each in (seed, traced) if each is not None for span in _document_spans(each, doc_id)]


def _document_spans(traced: TracedRun, doc_id: str) -> list[Span]:
    found = [traced.spans(pack).filter(pl.col("doc_id") == doc_id) for pack in range(len(traced.lineage.packs))]
    spans = pl.concat(pl.collect_all(found, engine="streaming"))
    if spans.is_empty():
        return []
    return _spans(traced, traced.order().join(spans.lazy(), on=["pack", "row"]).collect(engine="streaming"))


def _spans(traced: TracedRun, joined: pl.DataFrame) -> list[Span]:
    return [
        Span(
            **{name: piece[name] for name in ("doc_id", "start", "end", "token", "row", "step")},
            checkpoint=traced.checkpoint(piece["step"]),
            run=traced.lineage.run,
            domain=traced.lineage.packs[piece["pack"]].domain,
        )
        for piece in joined.sort("position", "start").iter_rows(named=True)
    ]


def _existing(run: Path) -> Path:
    partial = run.with_name(f".{run.name}.partial") if run.name else run
    for directory in (run, partial):
        if directory.is_dir():
            return directory
    raise ManifestError(f"there is no run {run}, and none unfinished in {partial}: run lmsplit train first")


def _seed_directory(directory: Path, lineage: Lineage) -> Path | None:
    return Path(os.path.normpath(directory.resolve() / lineage.seed_run)) if lineage.seed_run else None


def checkpoint_steps(directory: Path) -> list[int]:
    """Return the steps of the checkpoints that are whole: the trainer's state is written last."""
    states = directory.glob(f"{_CHECKPOINT}*/trainer_state.json")
    numbers = [path.parent.name.removeprefix(_CHECKPOINT) for path in states]
    return [int(number) for number in numbers if number.isdecimal()]


def _count_steps(path: Path, rows_per_step: int) -> int:
    try:
        num_rows: int = pq.read_metadata(path).num_rows
    except (OSError, pa.ArrowException) as error:
        raise ManifestError(f"{path} is missing or cannot be read ({error}): remove the run and train it again") from error
    if num_rows % rows_per_step:
        raise ManifestError(
            f"{path} has {num_rows} rows, expected a multiple of the {rows_per_step} of a step: remove the run and train it again"
        )
    return num_rows // rows_per_step
