"""What becomes of damaged input? Valid files of every format, damaged at random, read as the scan reads them.

Each input is one file of 80 records with one to three damages: flipped bits, a truncation, a deleted, doubled, moved or zeroed
range, random bytes, a slice of another format, a damaged beginning or end, other line ends. Every sixteenth goes through the
whole partition. An input passes if it is refused by an error of our own that names the file, or if every record is accounted for:

- lines (plain ones are never refused), after an independent decompression: as many records as lines that are not blank; a
  document's text is what Python's `json` finds in its line; a rejected line has its offset, length and SHA-256; a line that is as
  it was is a document;
- Parquet: as many records as the footer says, and as there were, each once.

A traceback, a crash of the process (a batch has one of its own), and an input that takes more than a minute are failures.

`refused`: stopped by an error. `read`: not refused. `quarantined`: records of these set aside. `changed`: documents of these with
another text than before, where the format has nothing that could tell. `seconds` is the longest that one input took.
"""

import argparse
import hashlib
import json
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple
from unittest import mock

import pyarrow as pa
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).parents[1]))  # as a script and as a module of the tests alike

from benchmarks.damage import FORMATS, NUM_RECORDS, Format, damaged, draw, lines, records
from lmsplit.manifests.errors import InputError, LmsplitError
from lmsplit.partition import units
from lmsplit.partition.config import Partition
from lmsplit.partition.pipeline import partition
from lmsplit.partition.planning import Planned, make_plan
from lmsplit.partition.records import Batch
from lmsplit.partition.run import Run

WHOLE_EVERY: Final = 16
TIMEOUT_S: Final = 60
BATCH: Final = 100


class Outcome(NamedTuple):
    """What became of an input that passed."""

    refused: bool
    records: int = 0
    quarantined: int = 0
    changed: int = 0


class Failure(Exception):  # noqa: N818 - what this looks for
    """An input was neither refused nor accounted for."""


def check(name: str, data: bytes, directory: Path, *, whole: bool = False) -> Outcome:
    """Read a damaged file as the scan does, and account for every record of it.

    Args:
        name: its format.
        data: the file.
        directory: an empty one.
        whole: run the whole partition too.

    Raises:
        Failure: it is neither refused nor accounted for.
    """
    form = FORMATS[name]
    path = directory / "in" / f"x.{form.suffix}"
    path.parent.mkdir()
    path.write_bytes(data)
    with mock.patch.object(units, "MIN_UNIT_BYTES", 3000):  # several units
        try:
            batches = read(path.parent, directory / "read")
        except InputError as error:
            if path.name not in str(error):
                raise Failure(f"the message does not name the file: {error}") from error
            if form.suffix == "jsonl":
                raise Failure(f"any bytes are lines, but they were refused: {error}") from error
            if whole:
                _check_whole(path.parent, directory / "whole", None)
            return Outcome(refused=True)
        if form.suffix == "parquet":
            check_rows(path, batches)
        else:
            check_lines(unpacked(form.suffix, data), batches)
        if whole:
            _check_whole(path.parent, directory / "whole", sum(batch.num_records for batch in batches))
    changed = _changed(form, batches)
    if changed and form.checked and form.suffix != "parquet":
        raise Failure(f"{changed} texts changed in spite of checksums")
    return Outcome(False, sum(batch.num_records for batch in batches), sum(batch.rejected.num_rows for batch in batches), changed)


SOUND_TEXTS: Final = [record["text"] for record in records()]
SOUND_LINES: Final = {line: json.loads(line)["text"] for line in lines(records()).splitlines()}


def _changed(form: Format, batches: Sequence[Batch]) -> int:
    """Return how many documents have another text than before; lines may have moved, rows may not."""
    documents = [row for batch in batches for row in batch.documents.to_pylist()]
    if form.suffix == "parquet":
        return sum(row["text"] != SOUND_TEXTS[row["source_row"]] for row in documents)
    return sum(row["text"] not in SOUND_TEXTS for row in documents)


def _asked(corpus: Path, output: Path) -> Partition:
    keep = [{"name": "year", "type": "int64"}]
    values = {"input": {"paths": str(corpus), "keep": keep}, "output": str(output), "domains": 2, "encoder": "lexical"}
    return Partition.model_validate(
        values | {"executor": {"workers": 0}, "max_bad_fraction": 1, "duplicate_ids": "quarantine", "max_record_bytes": 4096}
    )


def read(corpus: Path, output: Path) -> list[Batch]:
    """Plan a corpus and read its units, as the scan does."""
    plan = make_plan(_asked(corpus, output))
    run = Run(str(output), plan.run_id)
    run.start(plan.content, plan.here)
    planned = Planned(run)
    return [batch for unit in range(planned.num_units) for batch in planned.read(unit)]


def _check_whole(corpus: Path, output: Path, num_records: int | None) -> None:
    """Partition a corpus of so many records; None for one that must be refused."""
    try:
        counts = partition(_asked(corpus, output)).body.counts
    except LmsplitError as error:  # without an error of the reading, there was nothing to cluster
        if (output / "commits").exists():
            raise Failure(f"published in spite of an error: {error}") from error
        return
    if num_records is None:
        raise Failure("the reading is refused, the whole partition is not")
    parts = [counts.published, *counts.quarantined.values(), *counts.duplicates.values()]
    if not counts.read.records == num_records == sum(part.records for part in parts):
        raise Failure(f"the commit counts {counts}, read were {num_records}")


def unpacked(suffix: str, data: bytes) -> bytes:
    """Decompress with other code than the product's."""
    if suffix == "jsonl.gz":
        parts = []
        while data.strip(b"\0"):  # gzip allows zeros after the last member
            member = zlib.decompressobj(wbits=31)
            parts.append(member.decompress(data.lstrip(b"\0")) + member.flush())
            if not member.eof:
                raise Failure("a truncated gzip member was read as if it were whole")
            data = member.unused_data
        return b"".join(parts)
    if suffix == "jsonl.zst" and data:
        found: bytes = pa.CompressedInputStream(pa.BufferReader(data), "zstd").read()
        return found
    return data


def _rows(batches: Sequence[Batch]) -> tuple[dict[int, dict[str, Any]], dict[int, dict[str, Any]]]:
    """Return documents and rejected records by their row."""
    documents, rejected = ([row for batch in batches for row in batch[table].to_pylist()] for table in (0, 1))
    by_row = {row["source_row"]: row for row in documents}, {row["source_row"]: row for row in rejected}
    if len(by_row[0]) + len(by_row[1]) != len(documents) + len(rejected) or by_row[0].keys() & by_row[1].keys():
        raise Failure("a row was read twice")
    return by_row


def check_lines(data: bytes, batches: Sequence[Batch]) -> None:
    """Compare what was read with the lines themselves, split and parsed by Python's own code.

    Raises:
        Failure: something is lost, invented or in another place.
    """
    documents, rejected = _rows(batches)
    start = 0
    for row, whole in enumerate(data.split(b"\n")):
        line = whole.removeprefix(b"\xef\xbb\xbf") if row == 0 else whole
        offset = start + len(whole) - len(line)
        start += len(whole) + 1
        if not line.strip():
            if row in documents or row in rejected:
                raise Failure(f"blank line {row} was taken for a record")
        elif row in documents:
            if json.loads(line)["text"] != documents[row]["text"]:
                raise Failure(f"line {row} has another text than its document")
        elif row not in rejected:
            raise Failure(f"line {row} was lost")
        elif line in SOUND_LINES:
            raise Failure(f"sound line {row} was rejected: {rejected[row]}")
        else:
            found = tuple(rejected[row][name] for name in ("byte_offset", "num_bytes", "sha256"))
            if found != (offset, len(line), hashlib.sha256(line).hexdigest()):
                raise Failure(f"line {row} at byte {offset} was set aside as {found}")
    if max([*documents, *rejected], default=0) > data.count(b"\n"):
        raise Failure("a record was read that no line holds")


def check_rows(path: Path, batches: Sequence[Batch]) -> None:
    """Compare what was read with what the footer says.

    Raises:
        Failure: a row is lost or invented.
    """
    documents, rejected = _rows(batches)
    num_rows = pq.read_metadata(path).num_rows
    if sorted([*documents, *rejected]) != list(range(num_rows)):
        raise Failure(f"{len(documents)} documents and {len(rejected)} rejects of {num_rows} rows")
    if num_rows != NUM_RECORDS:
        raise Failure(f"{num_rows} rows of {NUM_RECORDS} were read without an error")


def one(seed: int, index: int) -> dict[str, Any]:
    """Try one input; return what is to be said of it."""
    name, damages = draw(seed, index)
    begun = time.perf_counter()
    result: dict[str, Any] = {"index": index, "format": name, "damages": [damage.kind for damage in damages]}
    with tempfile.TemporaryDirectory() as directory:
        try:
            data = damaged(FORMATS[name].sound, damages)
            outcome = check(name, data, Path(directory), whole=index % WHOLE_EVERY == 0)
            result |= outcome._asdict()
        except Failure as failure:
            result["failure"] = str(failure)
        except Exception:  # anything else is what this looks for
            result["failure"] = traceback.format_exc()
    return result | {"seconds": time.perf_counter() - begun}


def batch(seed: int, indexes: Sequence[int]) -> Iterator[dict[str, Any]]:
    """Try inputs in a process of their own; one that ends or hangs it is a failure, and the next one begins another."""
    left = list(indexes)
    while left:
        numbers = [str(index) for index in left]
        command = [sys.executable, __file__, "--seed", str(seed), "--only", *numbers]
        with tempfile.TemporaryFile("w+") as said:
            ended = subprocess.run(command, stdout=said, stderr=subprocess.DEVNULL, check=False).returncode
            said.seek(0)
            results = [json.loads(line) for line in said if line.endswith("\n")]
        yield from results
        left = left[len(results) :]
        if left:
            name, damages = draw(seed, left[0])
            kinds = [damage.kind for damage in damages]
            yield {
                "index": left[0],
                "format": name,
                "damages": kinds,
                "failure": f"the process ended with {ended}",
                "seconds": 0.0,
            }
            left = left[1:]


def main() -> None:
    """Try, count, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, nargs="*", help="try these inputs here, and say a JSON line of each")
    options = parser.parse_args()
    if options.only is not None:
        for index in options.only:
            signal.alarm(TIMEOUT_S)  # ends the process, whatever code it hangs in
            print(json.dumps(one(options.seed, index)), flush=True)
        return
    from measure import write_results

    results: list[dict[str, Any]] = []
    for first in range(0, options.inputs, BATCH):
        for result in batch(options.seed, range(first, min(first + BATCH, options.inputs))):
            results.append(result)
            if "failure" in result:
                print(
                    f"seed {options.seed}, input {result['index']}: {result['format']}, {result['damages']}: {result['failure']}"
                )
    rows = [_summary(name, [result for result in results if result["format"] == name]) for name in FORMATS]
    write_results("fuzz", "Damaged input", f"Seed {options.seed}. " + (__doc__ or ""), [*rows, _summary("all", results)])


def _summary(name: str, results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    sums: Counter[str] = Counter()
    for result in results:
        sums.update({key: result.get(key, 0) for key in ("records", "quarantined", "changed")})
    refused = sum(result.get("refused", False) for result in results)
    failures = sum("failure" in result for result in results)
    return {
        "format": name,
        "inputs": len(results),
        "refused": refused,
        "read": len(results) - refused - failures,
        **{key: sums[key] for key in ("records", "quarantined", "changed")},
        "failures": failures,
        "seconds": max((result["seconds"] for result in results), default=0.0),
    }


if __name__ == "__main__":
    main()
