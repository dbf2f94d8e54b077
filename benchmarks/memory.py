"""How much memory and time do large inputs take? The whole command, and the largest of its children, by the kernel's own peaks.

Documents are those of the corpus with their words shuffled, so that there are as many different ones as wanted, of the same kind
and length. `parent_mib` is the peak of the command's own process (the plan, the supervisors, the publishing), `child_mib` that of
its largest child, `children_mib` those of all in the order of their start (two that serve, then one or two for each stage):
resident memory as `VmHWM` has it, mapped files and about 200 MiB of libraries included.

- *documents*: 20 and 200 MB of text in units of 1 MiB, shards of 4 MB, and a sample of 5,000: what grows with the number of
  documents shows when no unit, shard or sample does.
- *long line*: one of 100 MB among 1,000 documents; quarantined at the default limit, kept with `max_record_bytes: 200MB`.
- *dictionary*: a Parquet file of rows that repeat one text: 0.9 MB of one letter, refused as a bomb, or 0.4 MB of words.
- *small files*: 100,000 files of one document each, at the default unit size.
- *one file*: 1 GB of JSON lines, at the default unit size; and 20 GB, of which only the plan is made and three units are read.

About 15 minutes on a quiet machine, and 25 GB of disk for a while.
"""

import argparse
import contextlib
import json
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from measure import write_results

_SMALL_UNITS = (
    "from lmsplit.partition import units; units.MAX_UNIT_BYTES = units.MIN_UNIT_BYTES; "
    "from lmsplit.manifests.cli import main; main()"
)
_COMMAND = "from lmsplit.manifests.cli import main; main()"
_READ = """
import sys
from lmsplit.manifests.store import open_store
from lmsplit.partition.corpus import survey
from lmsplit.partition.reading import read_unit
from lmsplit.partition.records import Columns, Limits
corpus = survey([sys.argv[1]], Columns())
for unit in (corpus.units[0], corpus.units[len(corpus.units) // 2], corpus.units[-1]):
    num = sum(batch.num_records for batch in read_unit(open_store(corpus.root), unit, Columns(), (), Limits()))
    assert num == sum(segment.num_rows for segment in unit.segments)
"""


class Peaks:
    """The peaks of a process and of its children, sampled while it runs; the kernel keeps them, so few samples are enough."""

    def __init__(self, process: subprocess.Popen[Any]) -> None:
        self._process = process
        self.parent_mib = 0.0
        self.by_child: dict[int, float] = {}
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def _watch(self) -> None:
        parent = psutil.Process(self._process.pid)
        while self._process.poll() is None:
            with contextlib.suppress(psutil.NoSuchProcess):
                self.parent_mib = max(self.parent_mib, peak_mib(parent.pid))
                for child in parent.children(recursive=True):
                    self.by_child[child.pid] = max(self.by_child.get(child.pid, 0.0), peak_mib(child.pid))
            time.sleep(0.02)

    def join(self) -> None:
        """Wait for the process to be watched to its end."""
        self._thread.join()


def peak_mib(pid: int) -> float:
    """Return the peak of a process's resident memory in MiB; 0 for one that has ended."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) / 1024
    return 0.0


def measured(case: str, program: str, *arguments: str, expected: int = 0) -> dict[str, Any]:
    """Run a program, and return a row of the results."""
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-c", program, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    peaks = Peaks(process)
    _, errors = process.communicate()
    peaks.join()
    assert process.returncode == expected, errors[-2000:]
    row = {
        "case": case,
        "parent_mib": round(peaks.parent_mib),
        "child_mib": round(max(peaks.by_child.values(), default=0)),
        "seconds": round(time.monotonic() - began, 1),
        "children_mib": " ".join(str(round(peak)) for peak in peaks.by_child.values()),
    }
    print(row, flush=True)
    return row


def partitioned(case: str, corpus: Path, program: str = _COMMAND, expected: int = 0, **keys: Any) -> dict[str, Any]:
    """Partition a corpus; the manifest is removed."""
    output = corpus.parent / "manifest"
    settings = {
        "input": str(corpus),
        "output": str(output),
        "domains": 4,
        "encoder": "lexical",
        "sample_size": 5000,
        "heldout_fraction": 0.001,
        "executor": {"workers": 2},
    }
    path = corpus.parent / "partition.yaml"
    path.write_text(yaml.safe_dump(settings | keys))
    row = measured(case, program, "partition", str(path), expected=expected)
    shutil.rmtree(output, ignore_errors=True)
    return row


def documents(texts: list[str], seed: int = 0) -> Iterator[str]:
    """Yield JSON lines without end: the texts in turn, their words shuffled."""
    generator = random.Random(seed)
    number = 0
    while True:
        for text in texts:
            words = text.split()
            generator.shuffle(words)
            yield json.dumps({"id": f"doc-{number}", "text": " ".join(words)}) + "\n"
            number += 1


def write_lines(path: Path, lines: Iterator[str], num_bytes: int) -> int:
    """Write lines until there are so many bytes; return how many lines."""
    number = written = 0
    with path.open("w") as file:
        while written < num_bytes:
            line = next(lines)
            written += file.write(line)
            number += 1
    return number


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    """A folder for the corpus in a directory of its own, which is removed in the end."""
    with tempfile.TemporaryDirectory() as directory:
        (corpus := Path(directory) / "corpus").mkdir()
        yield corpus


def number_of_documents(texts: list[str]) -> list[dict[str, Any]]:
    """Measure 20 and 200 MB."""
    rows = []
    for megabytes in (20, 200):
        with folder() as corpus:
            number = write_lines(corpus / "a.jsonl", documents(texts), megabytes * 10**6)
            case = f"documents: {number:,}, {megabytes} MB"
            rows.append(partitioned(case, corpus, _SMALL_UNITS, shard_size="4MB"))
    return rows


def long_line(texts: list[str]) -> list[dict[str, Any]]:
    """Measure a line of 100 MB, quarantined and kept."""
    rows = []
    words = " ".join(texts).split()
    text = " ".join(random.Random(0).choices(words, k=10**8 // 7))[: 10**8]
    for suffix, pack in (("jsonl", ["cat"]), ("jsonl.gz", ["gzip", "-1"]), ("jsonl.zst", ["zstd", "-q"])):
        with folder() as corpus:
            plain = corpus.parent / "plain"
            lines = documents(texts)
            plain.write_text("".join([next(lines) for _ in range(1000)]) + json.dumps({"id": "long", "text": text}) + "\n")
            with plain.open("rb") as source, (corpus / f"a.{suffix}").open("wb") as target:
                subprocess.run(pack, stdin=source, stdout=target, check=True)
            rows.append(partitioned(f"line of 100 MB, {suffix}: quarantined", corpus, max_bad_fraction=0.01))
            if suffix == "jsonl":
                rows.append(partitioned(f"line of 100 MB, {suffix}: kept", corpus, max_record_bytes="200MB"))
    return rows


def dictionary(texts: list[str]) -> list[dict[str, Any]]:
    """Measure a text that is repeated by a dictionary."""
    rows = []
    long = " ".join(texts)
    for case, text, number, expected in (
        ("dictionary: 1,000 times 0.9 MB of one letter, refused", "a" * 900_000, 1000, 3),
        ("dictionary: 300 times 0.4 MB of words, 120 MB", long[:400_000], 300, 0),
    ):
        with folder() as corpus:
            table = pa.table({"text": [*texts[:2000], *[text] * number]})
            pq.write_table(table.slice(0, 2000), corpus / "a.parquet")
            pq.write_table(table.slice(2000), corpus / "b.parquet", compression="zstd")
            rows.append(partitioned(case, corpus, expected=expected))
    return rows


def small_files(texts: list[str], number: int) -> list[dict[str, Any]]:
    """Measure so many files of one document each."""
    with folder() as corpus:
        lines = documents([text[:1000] for text in texts])
        for index in range(number):
            (corpus / f"{index // 1000:03}").mkdir(exist_ok=True)
            (corpus / f"{index // 1000:03}" / f"{index:06}.jsonl").write_text(next(lines))
        program = f"import sys; sys.argv.append('--dry-run'); {_COMMAND}"
        plan = partitioned(f"small files: {number:,}, plan only", corpus, program)
        return [plan, partitioned(f"small files: {number:,}", corpus)]


def one_file(texts: list[str], gigabytes: float, planned_gigabytes: float) -> list[dict[str, Any]]:
    """Measure a large file; and a far larger one, of which a few units are read."""
    with folder() as corpus:
        number = write_lines(corpus / "a.jsonl", documents(texts), int(gigabytes * 10**9))
        rows = [partitioned(f"one file of {gigabytes:g} GB, {number:,} documents", corpus)]
        with (corpus / "a.jsonl").open("rb") as source, (corpus.parent / "b.jsonl").open("wb") as target:
            for _ in range(int(planned_gigabytes / gigabytes)):
                source.seek(0)
                shutil.copyfileobj(source, target, 2**24)
        case = f"one file of {planned_gigabytes:g} GB: plan, and 3 of its units read"
        rows.append(measured(case, _READ, str(corpus.parent / "b.jsonl")))
    return rows


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus", default="../shared/corpora/*.parquet")
    parser.add_argument("--cases", nargs="*", default=["documents", "line", "dictionary", "files", "file"])
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--gigabytes", type=float, default=1)
    parser.add_argument("--planned-gigabytes", type=float, default=20)
    options = parser.parse_args()
    texts = pl.read_parquet(options.corpus, columns=["text"]).sample(fraction=1.0, shuffle=True, seed=0)["text"].to_list()
    cases = {
        "documents": lambda: number_of_documents(texts),
        "line": lambda: long_line(texts),
        "dictionary": lambda: dictionary(texts),
        "files": lambda: small_files(texts, options.files),
        "file": lambda: one_file(texts, options.gigabytes, options.planned_gigabytes),
    }
    rows = []
    for case in options.cases:
        rows += cases[case]()
        write_results("memory", "Memory of large inputs", __doc__ or "", rows)  # after each: all of it takes a while


if __name__ == "__main__":
    main()
