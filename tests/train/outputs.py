"""Small training outputs written by hand: packs whose rows say which documents lie in them, and runs over them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lmsplit.train.config import Where
from lmsplit.train.lineage import Lineage, PackReference, write_lineage
from lmsplit.train.order import RowOrder

Rows = Sequence[Sequence[tuple[str, int]]]
"""For each row, its pieces: a document and the number of its next tokens that lie there."""

SPANS = pa.schema(
    [("doc_id", pa.string()), ("token", pa.int64()), ("row", pa.int64()), ("start", pa.int32()), ("end", pa.int32())]
)


def pieces(rows: Rows) -> list[dict]:
    """Return the span table as Python has it."""
    next_token: dict[str, int] = {}
    spans = []
    for row, content in enumerate(rows):
        start = 0
        for doc_id, length in content:
            token = next_token.get(doc_id, 0)
            spans.append({"doc_id": doc_id, "token": token, "row": row, "start": start, "end": start + length})
            next_token[doc_id] = token + length
            start += length
    return spans


def write_pack(output: Path, digest: str, rows: Rows) -> Path:
    """Write a pack; its span table is in no order that a reader could rely on."""
    directory = output / "packed" / digest
    directory.mkdir(parents=True)
    lists = pa.array([[7] * sum(length for _, length in content) for content in rows], pa.list_(pa.int32()))
    with pa.ipc.new_stream(str(directory / "rows.arrow"), pa.schema([("input_ids", lists.type)])) as writer:
        for start in range(0, len(lists), 2):
            writer.write_batch(pa.record_batch([lists[start : start + 2]], names=["input_ids"]))
    pq.write_table(pa.Table.from_pylist(pieces(rows)[::-1], schema=SPANS), directory / "spans.parquet")
    return directory


def make_order(pairs: Sequence[tuple[int, int]], rows_per_step: int) -> RowOrder:
    """Return an order of (pack, row) pairs; what does not go into the files is left out."""
    packs, rows = [list(each) for each in zip(*pairs, strict=True)]
    nothing = np.zeros(0, np.int64)
    steps = len(pairs) // rows_per_step
    return RowOrder(np.array(packs, np.int32), np.array(rows, np.int64), 0, nothing, nothing.astype(float), nothing, steps)


def write_checkpoint(directory: Path, step: int) -> Path:
    """Write a checkpoint; the trainer's state, which the trainer writes last, makes it a whole one."""
    checkpoint = directory / f"checkpoint-{step}"
    checkpoint.mkdir()
    (checkpoint / "trainer_state.json").write_text("{}")
    return checkpoint


def write_run(
    output: Path,
    run: str,
    packs: Sequence[tuple[str, str]],
    pairs: Sequence[tuple[int, int]],
    rows_per_step: int,
    *,
    finished: bool = True,
    checkpoints: Sequence[int] = (),
    where: Where | None = None,
) -> Path:
    """Write a run over packs given as (domain, digest); returns the directory it has, or will have once it is finished."""
    final = output / "seed" if run == "seed" else output / "experts" / run
    directory = final if finished else final.with_name(f".{final.name}.partial")
    directory.mkdir(parents=True)
    lineage = Lineage(
        run=run,
        manifest="m" * 64,
        tokenizer="t" * 64,
        packs=tuple(PackReference(domain=domain, digest=digest) for domain, digest in packs),
        rows_per_step=rows_per_step,
        where=where,
        seed_run=None if run == "seed" else "../../seed",
    )
    write_lineage(directory, lineage, make_order(pairs, rows_per_step))
    for step in checkpoints:
        write_checkpoint(directory, step)
    if finished:
        (directory / "run.json").write_text("{}")
    return final
