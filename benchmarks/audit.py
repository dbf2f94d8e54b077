"""What an audit of a million documents costs: `explain`, `verify --deep` beside a plain SHA-256, `diff`, `report`.

A document is made of pieces of texts of one label of the corpora, drawn at random until it is as long as a text drawn at random:
so lengths and words are real, and no two documents are the same. Two manifests are made of them, in 12 domains with `lexical`,
with seeds 0 and 1 and no search for near-duplicates (15 min).

`explain`, `diff` and `report` are the commands, as whole processes with their imports: the wall time of the fastest and slowest
of several, and the largest memory of any. `verify` is the call in this process, so that imports do not count, beside hashlib's
SHA-256 over the same files, one after the other in one thread (`sha256`) and in as many threads as there are cores
(`sha256 in threads`), in turn; `share` is sha256 ÷ verify, the median of the rounds. What
`--sample` costs, here 1,000 documents, is the same for any number of documents.
"""

import argparse
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from measure import write_results

from lmsplit.manifests.reader import Manifest
from lmsplit.manifests.store import file_sha256
from lmsplit.manifests.verify import verify_manifest

FILES = 8
PIECE = 400
"""Characters."""


def write_documents(corpus: str, documents: int, directory: Path) -> None:
    """Write so many documents, as Parquet files."""
    rows = pl.read_parquet(corpus, columns=["text", "label"])
    generator = random.Random(0)
    texts = {label: part["text"].to_list() for (label,), part in rows.group_by("label", maintain_order=True)}
    labels = rows["label"].to_list()
    for number in range(FILES):
        made: dict[str, list[str]] = {"id": [], "text": [], "source": []}
        for index in range(number, documents, FILES):
            label = generator.choice(labels)
            made["id"].append(f"{label}/{index:07d}")
            made["text"].append(_document(texts[label], generator))
            made["source"].append(label)
        pq.write_table(pa.table(made), directory / f"{number}.parquet")


def _document(texts: list[str], generator: random.Random) -> str:
    missing, pieces = len(generator.choice(texts)), []
    while missing > 0:
        text = generator.choice(texts)
        start = generator.randrange(max(1, len(text) - PIECE))
        pieces.append(text[start : start + min(PIECE, missing)])
        missing -= PIECE
    return "\n".join(pieces)


def command(*arguments: str) -> tuple[float, float]:
    """Run a command; return its wall seconds and its largest memory in GB."""
    began = time.monotonic()
    process = subprocess.Popen([sys.executable, "-m", "lmsplit.manifests.cli", *arguments], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"lmsplit {' '.join(arguments)} ended with {status}")
    return time.monotonic() - began, usage.ru_maxrss / 1e6


def timed(call: Callable[[], Any]) -> float:
    """Return the wall seconds of a call."""
    began = time.monotonic()
    call()
    return time.monotonic() - began


def digest_all(manifest: Manifest, threads: int) -> None:
    """Digest every file, and nothing else."""
    paths = [manifest.store.path(entry.path) for entry in manifest.body.files]
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(file_sha256, paths))


def verify_rows(path: Path, rounds: int) -> list[dict[str, Any]]:
    """`verify --deep` beside SHA-256, in turn."""
    manifest = Manifest.open(path)
    size = sum(entry.bytes for entry in manifest.body.files)
    calls: dict[str, Callable[[], Any]] = {
        "sha256": lambda: digest_all(manifest, 1),
        "sha256 in threads": lambda: digest_all(manifest, os.cpu_count() or 1),
        "verify --deep": lambda: verify_manifest(path, deep=True),
        "verify --deep --sample 0": lambda: verify_manifest(path, deep=True, sample=0),
        "verify --deep --texts": lambda: verify_manifest(path, deep=True, texts=True),
    }
    assert not verify_manifest(path, deep=True)
    seconds = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            seconds[name].append(timed(call))
    return [
        {
            "what": name,
            "fastest_s": min(taken),
            "slowest_s": max(taken),
            "memory_GB": None,
            "GB_per_s": size / 1e9 / statistics.median(taken),
            "share": statistics.median(plain / own for plain, own in zip(seconds["sha256"], taken, strict=True)),
        }
        for name, taken in seconds.items()
    ]


def command_row(name: str, runs: list[tuple[float, float]]) -> dict[str, Any]:
    """One row of the table for a command."""
    seconds, memory = zip(*runs, strict=True)
    figures = {"fastest_s": min(seconds), "slowest_s": max(seconds), "memory_GB": max(memory)}
    return {"what": name, **figures, "GB_per_s": None, "share": None}


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus", default="../shared/corpora/*.parquet")
    parser.add_argument("--documents", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--directory", type=Path, help="keep corpus and manifests here, and use them again")
    options = parser.parse_args()
    directory = options.directory or Path(tempfile.mkdtemp())
    (directory / "corpus").mkdir(parents=True, exist_ok=True)
    if not list((directory / "corpus").iterdir()):
        write_documents(options.corpus, options.documents, directory / "corpus")
    manifests = [directory / f"seed{seed}" for seed in (0, 1)]
    configuration = directory / "partition.yaml"
    settings = [f"input: {directory / 'corpus'}", "domains: 12", "encoder: lexical", "near_duplicate_threshold: null"]
    configuration.write_text("\n".join([*settings, "output: x", ""]))
    for seed, path in enumerate(manifests):
        if not path.exists():
            command("partition", str(configuration), "--set", f"output={path}", "--set", f"seed={seed}")
    ids = Manifest.open(manifests[0]).scan().select("doc_id").collect()["doc_id"].to_list()
    chosen = random.Random(0).sample(ids, options.rounds)  # which documents is no secret
    first, second = map(str, manifests)
    rows = [
        command_row("explain", [command("explain", first, doc_id) for doc_id in chosen]),
        command_row("explain --recompute", [command("explain", first, doc_id, "--recompute") for doc_id in chosen]),
        command_row("diff", [command("diff", first, second, "--json") for _ in range(2)]),
        command_row("report", [command("report", first, "-o", str(directory / "report.html")) for _ in range(2)]),
        *verify_rows(manifests[0], options.rounds),
    ]
    manifest = Manifest.open(manifests[0])
    held = f"{manifest.body.counts.published.records:,} documents, {manifest.body.counts.text_bytes / 1e9:.2f} GB of text, "
    held += f"{sum(entry.bytes for entry in manifest.body.files) / 1e9:.2f} GB of files. "
    write_results("audit", "An audit of a million documents", held + (__doc__ or ""), rows)


if __name__ == "__main__":
    main()
