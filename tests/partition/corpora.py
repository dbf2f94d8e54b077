"""Small corpora for the tests: rows written in any format, and read back through the survey."""

import gzip
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from lmsplit.manifests.executor import Executor
from lmsplit.manifests.reader import Manifest
from lmsplit.manifests.store import open_store
from lmsplit.partition.config import Partition
from lmsplit.partition.corpus import Corpus, survey
from lmsplit.partition.reading import read_unit
from lmsplit.partition.records import Batch, Columns, Limits
from lmsplit.partition.run import Run

HERE = Executor(workers=0)
"""In this process."""

ROWS = [{"id": f"i{row}", "text": f"text {row} é " * (row % 7 + 1), "source": "s"} for row in range(300)]


def as_lines(rows: Sequence[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def packed(suffix: str, data: bytes) -> bytes:
    """Compress data as the suffix says, with checksums."""
    if suffix.endswith("gz"):
        return gzip.compress(data, mtime=0)  # The same bytes in the next second.
    return zstandard.ZstdCompressor(write_checksum=True).compress(data) if suffix.endswith("zst") else data


def write(path: Path, rows: Sequence[dict[str, Any]] = ROWS, **options: bool | int | str) -> Path:
    """Write rows in the format that the name asks for."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        options = {"row_group_size": 50, "write_page_checksum": True, **options}
        pq.write_table(pa.Table.from_pylist(list(rows)), path, **options)
    else:
        path.write_bytes(packed(path.suffix, as_lines(rows)))
    return path


def read(corpus: Corpus, columns: Columns | None = None, limits: Limits | None = None) -> list[Batch]:
    return [
        batch
        for unit in corpus.units
        for batch in read_unit(open_store(corpus.root), unit, columns or Columns(), corpus.keep_types, limits or Limits())
    ]


def documents(batches: Sequence[Batch]) -> pa.Table:
    return pa.Table.from_batches([batch.documents for batch in batches])


def read_path(path: Path, limits: Limits | None = None) -> list[Batch]:
    return read(survey([str(path)], Columns()), limits=limits)


TOPICS = (
    "river water boat fish bridge stream current harbour anchor shore",
    "violin music concert melody piano orchestra rhythm choir sonata string",
    "bread oven flour yeast kitchen dough butter recipe baker crust",
)


def topical(num_documents: int, *, seed: int = 0, first: int = 0, words: int = 14) -> list[dict[str, Any]]:
    """Documents on three topics in turn, four to a group, with columns to keep."""
    generator = random.Random(seed)
    return [
        {
            "id": f"doc-{number}",
            "text": " ".join(generator.choices(TOPICS[number % 3].split(), k=words)),
            "source": f"site {number % 5}",
            "group": f"book {number // 4}",
            "lang": "en" if number % 2 else None,
            "stars": number % 6,
        }
        for number in range(first, first + num_documents)
    ]


def configuration(corpus: Path, output: Path, **keys: Any) -> Partition:
    """A configuration as a file would give it: lexical, three domains and one worker unless the keys say otherwise."""
    values = {"input": {"paths": str(corpus), "group": "group"}, "output": str(output), "domains": 3, "executor": {"workers": 0}}
    return Partition.model_validate(values | {"encoder": "lexical"} | keys)


def tree(root: Path) -> dict[str, bytes]:
    """Every published file of a manifest but the commit and the work files, by its relative path."""
    paths = (path for path in sorted(root.rglob("*")) if path.is_file())
    files = {path.relative_to(root).as_posix(): path.read_bytes() for path in paths}
    return {name: data for name, data in files.items() if not name.startswith(("_work/", "commits/"))}


def rows(output: Path) -> list[dict[str, Any]]:
    """Every published document, in the order of domain, part and row."""
    return [row for batch in Manifest.open(output).documents() for row in batch.to_pylist()]


def quarantined(output: Path) -> list[dict[str, Any]]:
    """Every record that a manifest set aside, in the order of the input."""
    return [row for path in sorted(output.glob("quarantine/*.parquet")) for row in pq.read_table(path).to_pylist()]


def folder(run: Run, name: str) -> Path:
    """The path of a file or folder of a run on this disk."""
    return Path(run.where(name))
