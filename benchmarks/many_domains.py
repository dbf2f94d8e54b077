"""What thousands of domains cost in placing and gathering: the pieces written, planned and gathered into the domains' files.

The documents of the corpora, shuffled, in 13 units, are given to K domains at random, as Zipf's law has it (the r-th domain is
chosen as often as 1/r), 2 % of them held out and 1 % excluded: no encoder, no fit. Then, in one process: `write` the pieces,
`plan` the files, `gather` them with their ids. `now` is the package. `before` is how it was first: a row group for every
(split, domain) of a piece, listed in a JSON receipt, and a task for every file, which opens the piece once for each row group.
`cpu_s` and `wall_s` are write + plan + gather, `openings` counts pieces opened by gather, `receipts_MB` what says what the
pieces hold. Of the tasks before, only as many as `tasks timed` says are done, evenly chosen, and the time of gather is scaled
up; `same` says that the files of those have the same digests both ways. The last row only plans, from groups of 20,000 documents
in each of 1,000 units that lie in files. Wall seconds are those of a machine on which other programs ran too; every file is
flushed to the disk.

The second table is about one piece, with all the documents in 4,096 domains: what it takes to open it and to read one of its row
groups, as a task of gather does, by the text in a row group (median of 30 openings, and of as many row groups).
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from measure import write_results

from lmsplit.manifests.layout import domain_name
from lmsplit.manifests.schema import SPLITS, documents
from lmsplit.manifests.store import file_sha256
from lmsplit.partition import pieces
from lmsplit.partition.config import Partition
from lmsplit.partition.gather import Gather, bundle_shards, plan_shards
from lmsplit.partition.pieces import GROUPS, write_piece
from lmsplit.partition.planning import make_plan
from lmsplit.partition.run import Run

NUM_UNITS = 13
TASKS_TIMED = 400
"""Of the tasks before: an even choice of so many says what all take."""


@dataclass
class Clock:
    """Seconds of CPU and of the wall, by step."""

    cpu_s: dict[str, float] = field(default_factory=dict)
    wall_s: dict[str, float] = field(default_factory=dict)

    def measure(self, step: str, since: tuple[float, float], scale: float = 1.0) -> None:
        """Note what a step took."""
        self.cpu_s[step] = (time.process_time() - since[0]) * scale
        self.wall_s[step] = (time.monotonic() - since[1]) * scale


def now() -> tuple[float, float]:
    """Return CPU and wall time."""
    return time.process_time(), time.monotonic()


def draw(num_domains: int, num_documents: int, generator: np.random.Generator) -> npt.NDArray[np.int64]:
    """Return a domain for every document, the r-th as often as 1/r."""
    weights = 1 / np.arange(1, num_domains + 1)
    return generator.choice(num_domains, num_documents, p=weights / weights.sum())


def placed(texts: pl.DataFrame, num_domains: int) -> Iterator[pa.Table]:
    """Yield the units' documents as the place stage has them."""
    generator = np.random.default_rng(num_domains)
    schema = documents(placement_sha256="0" * 64)
    for unit, rows in enumerate(np.array_split(generator.permutation(len(texts)), NUM_UNITS)):
        held = texts[rows]
        names = [domain_name(k) for k in draw(num_domains, len(held), generator).tolist()]
        frame = held.select(
            pl.col("id").alias("doc_id"),
            "text",
            "source",
            source_path=pl.lit(f"{unit}.parquet"),
            source_row=pl.Series(np.arange(len(held))),
            text_sha256=pl.Series(generator.bytes(32).hex() for _ in range(len(held))),
            domain=pl.Series(names),
            distance=pl.Series(generator.random(len(held), np.float32)),
            second_domain=pl.Series(reversed(names)),
            second_distance=pl.Series(generator.random(len(held), np.float32)),
            margin=pl.Series(generator.random(len(held), np.float32)),
            placed_by=pl.lit("centroids"),
            num_bytes=pl.col("text").str.len_bytes().cast(pl.Int64),
            split=pl.Series(generator.choice(SPLITS, len(held), p=[0.97, 0.02, 0.01])),
        )
        missing = {name: pl.lit(None) for name in schema.names if name not in frame.columns}
        yield frame.with_columns(**missing).select(schema.names).to_arrow().cast(schema)


def new_run(corpus: str, output: Path, num_domains: int) -> Run:
    """A run that has come as far as placing."""
    plan = make_plan(
        Partition.model_validate({"input": corpus, "output": str(output), "domains": num_domains, "encoder": "lexical"})
    )
    run = Run(str(output), plan.run_id)
    run.start(plan.content | {"units": [[]] * NUM_UNITS}, plan.here)
    run.finish("fit", 0, {}, {"documents": 1, "labels": [{}] * num_domains, "placement_sha256": "0" * 64})
    return run


def measure_now(run: Run, units: list[pa.Table]) -> tuple[dict[str, Any], dict[str, str]]:
    """Write, plan and gather with the package; return the figures, and the files' digests by name."""
    clock, since = Clock(), now()
    for unit, table in enumerate(units):
        with run.store.spool() as path, run.store.spool() as groups_path:
            pq.write_table(write_piece(table, path), groups_path, compression="zstd", write_page_checksum=True)
            run.finish("place", unit, {"documents": path, "groups": groups_path}, {"documents": table.num_rows})
    clock.measure("write", since)
    since = now()
    stage = Gather(run)
    num_tasks = stage.num_tasks
    clock.measure("plan", since)
    since = now()
    for task in range(num_tasks):
        stage.do(task)
    clock.measure("gather", since)
    digests = {}
    for receipt in run.receipts("gather", num_tasks):
        for shard in receipt["shards"]:
            digests["/".join(shard["file"]["path"].split("-")[:2])] = shard["file"]["sha256"]
    receipts = run.receipts("place", NUM_UNITS)
    size = sum(receipt["pieces"]["groups"]["bytes"] for receipt in receipts)
    return row("now", clock, num_tasks, num_tasks, num_tasks * NUM_UNITS, size), digests


def row(way: str, clock: Clock, tasks: int, timed: int, openings: int, receipt_bytes: int) -> dict[str, Any]:
    """Make a row of the table."""
    steps = {f"{step}_cpu_s": clock.cpu_s[step] for step in ("write", "plan", "gather")}
    totals = {"cpu_s": sum(clock.cpu_s.values()), "wall_s": sum(clock.wall_s.values())}
    counts = {"tasks": tasks, "tasks timed": timed, "openings": openings, "receipts_MB": receipt_bytes / 1e6}
    return {"way": way} | counts | steps | totals


def write_before(table: pa.Table, path: Path) -> list[dict[str, Any]]:
    """Write a piece as it was: a row group for every (split, domain)."""
    splits, domains = table["split"].to_numpy(), table["domain"].to_numpy()
    order = np.lexsort((np.arange(table.num_rows), domains, splits))
    changes = np.flatnonzero((splits[order][1:] != splits[order][:-1]) | (domains[order][1:] != domains[order][:-1])) + 1
    groups = []
    with pq.ParquetWriter(path, table.schema, compression="zstd", write_page_checksum=True) as writer:
        for rows in np.split(order, changes):
            group = table.take(rows)
            writer.write_table(group, row_group_size=group.num_rows)
            sizes = {"rows": group.num_rows, "text_bytes": pc.sum(group["num_bytes"]).as_py(), "tokens": None}
            distance_sum = float(np.sum(group["distance"].to_numpy(), dtype=np.float64))
            groups.append({"split": splits[rows[0]], "domain": domains[rows[0]], **sizes, "distance_sum": distance_sum})
    return groups


def measure_before(run: Run, units: list[pa.Table]) -> tuple[dict[str, Any], dict[str, str]]:
    """Write, plan and gather as it was, a part of the tasks if they are many."""
    clock, since = Clock(), now()
    for unit, table in enumerate(units):
        with run.store.spool() as path:
            groups = write_before(table, path)
            run.finish("place", unit, {"documents": path}, {"documents": table.num_rows, "groups": groups})
    clock.measure("write", since)
    since = now()
    shards: dict[tuple[str, int], list[tuple[Path, int]]] = {}
    for receipt in run.receipts("place", NUM_UNITS):
        for index, group in enumerate(receipt["groups"]):
            key = group["domain"], SPLITS.index(group["split"])
            shards.setdefault(key, []).append((run.piece(receipt, "documents"), index))
    tasks = sorted(shards)
    parts = {key: sum(other[0] == key[0] and other < key for other in tasks[max(0, n - 2) : n]) for n, key in enumerate(tasks)}
    clock.measure("plan", since)
    timed = [tasks[n] for n in np.unique(np.linspace(0, len(tasks) - 1, TASKS_TIMED).astype(int)).tolist()]
    since = now()
    digests = {}
    for number, key in enumerate(timed):
        digests[f"data/{key[0]}/part/{parts[key]:05d}"] = gather_before(run, number, shards[key], units[0].schema)
    clock.measure("gather", since, len(tasks) / len(timed))
    size = sum(path.stat().st_size for path in run.folder("place").glob("*.json"))
    return row("before", clock, len(tasks), len(timed), sum(map(len, shards.values())), size), digests


def gather_before(run: Run, task: int, sources: list[tuple[Path, int]], schema: pa.Schema) -> str:
    """Write one file as it was, with its ids; return its digest."""
    tables = []
    for path, index in sources:
        with pq.ParquetFile(path, page_checksum_verification=True) as piece:
            tables.append(piece.read_row_group(index))
    table = pa.concat_tables(tables).replace_schema_metadata(schema.metadata)
    with run.store.spool() as data, run.store.spool() as ids:
        with pq.ParquetWriter(data, schema, compression="zstd", write_page_checksum=True) as writer:
            writer.write_table(table, row_group_size=table.num_rows)
        pq.write_table(table.select(["doc_id"]), ids, write_page_checksum=True)
        sha256 = file_sha256(data)
        run.finish("before", task, {"ids": ids, "data": data}, {"documents": table.num_rows})
    return sha256


def plan_only(num_domains: int, num_units: int, documents_of_unit: int, directory: Path) -> dict[str, Any]:
    """Plan many units whose documents fall at random."""
    generator = np.random.default_rng(0)
    for unit in range(num_units):
        group, rows = np.unique(draw(num_domains, documents_of_unit, generator) * len(SPLITS), return_counts=True)
        domain, split = np.divmod(group, len(SPLITS))
        zero = np.zeros(len(group))
        columns = [domain, split, rows, rows * 1500, zero, zero, zero, zero]
        table = pa.table([pa.array(c).cast(f.type) for c, f in zip(columns, GROUPS, strict=True)], GROUPS)
        pq.write_table(table, directory / str(unit), compression="zstd", write_page_checksum=True)
    size = sum(path.stat().st_size for path in directory.iterdir())
    clock, since = Clock({"write": 0.0, "gather": 0.0}, {"write": 0.0, "gather": 0.0}), now()
    units = (pq.ParquetFile(directory / str(unit), page_checksum_verification=True).read() for unit in range(num_units))
    tasks = len(bundle_shards(plan_shards(units, num_domains, 256 * 10**6)))
    clock.measure("plan", since)
    return {"K": num_domains, "units": num_units, "same": None} | row("now", clock, tasks, 0, 0, size)


def row_groups(table: pa.Table, num_bytes: int, directory: Path) -> dict[str, Any]:
    """Write a piece with row groups of so much text; open it and read one, again and again."""
    path = directory / str(num_bytes)
    pieces.ROW_GROUP_BYTES = num_bytes  # type: ignore[misc]
    since = now()
    write_piece(table, path)
    write_s = time.process_time() - since[0]
    num_row_groups = pq.read_metadata(path).num_row_groups
    opened, read = [], []
    for number in np.linspace(0, num_row_groups - 1, 30).astype(int).tolist():
        started = time.process_time()
        with pq.ParquetFile(path, page_checksum_verification=True) as piece:
            opened.append(time.process_time() - started)
            piece.read_row_group(number)
            read.append(time.process_time() - started)
    sizes = {"row_group_KiB": num_bytes / 1024, "row_groups": num_row_groups, "piece_MB": path.stat().st_size / 1e6}
    return sizes | {"write_cpu_s": write_s, "open_cpu_ms": np.median(opened) * 1e3, "open_and_read_cpu_ms": np.median(read) * 1e3}


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus", default="../shared/corpora/*.parquet", help="Parquet files with text, id and source")
    parser.add_argument("--domains", type=int, nargs="+", default=[12, 256, 4096])
    arguments = parser.parse_args()
    texts = pl.read_parquet(arguments.corpus, columns=["id", "text", "source"])
    table = []
    for num_domains in arguments.domains:
        units = list(placed(texts, num_domains))
        found = []
        for way in (measure_now, measure_before):
            with tempfile.TemporaryDirectory() as directory:
                found.append(way(new_run(arguments.corpus, Path(directory), num_domains), units))
        (after, after_digests), (before, digests) = found
        same = all(after_digests[name] == digest for name, digest in digests.items())
        table += [{"K": num_domains, "units": NUM_UNITS, "same": same} | each for each in (before, after)]
    with tempfile.TemporaryDirectory() as directory:
        table.append(plan_only(4096, 1000, 20_000, Path(directory)))
    write_results("many_domains", "Thousands of domains", __doc__ or "", table)
    whole = pa.concat_tables(placed(texts, 4096))
    with tempfile.TemporaryDirectory() as directory:
        sizes = [row_groups(whole, 2**power, Path(directory)) for power in range(16, 23)]
    write_results("many_domains_row_groups", "Row groups of a piece with thousands of domains", __doc__ or "", sizes)
    sys.stdout.write(json.dumps(table + sizes, indent=1) + "\n")


if __name__ == "__main__":
    main()
