"""Large inputs in little memory: what does not grow with the corpus, a very long line, a unit that needs more than there is.

Peaks are the kernel's (`VmHWM`), of a process of their own that runs the whole command in itself, libraries included.
"""

import json
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from lmsplit.manifests.reader import Manifest
from tests.partition.corpora import as_lines, packed, quarantined, topical, tree

pytestmark = pytest.mark.slow

SMALL_UNITS = "from lmsplit.partition import units; units.MIN_UNIT_BYTES = units.MAX_UNIT_BYTES = 2**17\n"
LIMITED = "import resource, sys; resource.setrlimit(resource.RLIMIT_AS, 2 * (int(sys.argv.pop()),))\n"
BY_STAGE = """
from pathlib import Path
from lmsplit.partition import pipeline
run_stage = pipeline.run_stage

def measured(stage, *arguments):
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    run_stage(stage, *arguments)
    facts = dict(line.split(":", 1) for line in open("/proc/self/status"))
    print("STAGE", stage.name, int(facts["VmHWM"].split()[0]) * 1024)

pipeline.run_stage = measured
"""
COMMAND = """
from lmsplit.manifests.cli import main
try:
    main()
finally:
    facts = dict(line.split(":", 1) for line in open("/proc/self/status"))
    print("PEAKS", *(int(facts[name].split()[0]) * 1024 for name in ("VmHWM", "VmPeak")))
"""


def run(program: str, directory: Path, *arguments: str, **keys: Any) -> subprocess.CompletedProcess[str]:
    """Partition `directory/in` to `directory/out` in a process of its own."""
    settings = {
        "input": str(directory / "in"),
        "output": str(directory / "out"),
        "domains": 3,
        "encoder": "lexical",
        "sample_size": 1000,
        "heldout_fraction": 0.001,
        "executor": {"workers": 0},
    }
    path = directory / "partition.yaml"
    path.write_text(yaml.safe_dump(settings | keys))
    command = [sys.executable, "-c", program, "partition", str(path), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def peaks(done: subprocess.CompletedProcess[str]) -> tuple[int, int]:
    """Return the most resident and the most virtual memory of a finished process, in bytes."""
    assert done.returncode == 0, done.stderr[-2000:]
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("PEAKS"))
    resident, virtual = map(int, line.split()[1:])
    return resident, virtual


def write_topical(path: Path, num_documents: int, words: int = 100) -> None:
    path.parent.mkdir(parents=True)
    path.write_bytes(as_lines(topical(num_documents, words=words)))


def long_line(num_bytes: int) -> bytes:
    """A line of one document of about so many bytes; of different words, so that it does not compress like a bomb."""
    words = random.Random(0).randbytes(num_bytes * 4 // 9).hex(" ", 4)
    return b'{"id": "long", "text": "river water boat ' + words.encode() + b'"}\n'


def stage_peaks(done: subprocess.CompletedProcess[str]) -> dict[str, int]:
    """Return the most resident memory during each stage, in bytes."""
    peaks(done)
    lines = (line.split() for line in done.stdout.splitlines() if line.startswith("STAGE"))
    return {name: int(resident) for _, name, resident in lines}


def test_memory_does_not_grow_with_the_number_of_documents(tmp_path: Path) -> None:
    found = []
    for num_documents in (1_000, 10_000):  # 3 and 33 MB, in units of 128 KiB
        directory = tmp_path / str(num_documents)
        write_topical(directory / "in" / "a.jsonl", num_documents, words=500)
        found.append(stage_peaks(run(SMALL_UNITS + BY_STAGE + COMMAND, directory, shard_size="1MiB")))
    few, many = found
    assert few.keys() == many.keys() > {"scan", "settle", "fit", "heldout", "place", "gather", "ids"}
    assert {stage: round(many[stage] / few[stage], 2) for stage in few if many[stage] > 1.3 * few[stage]} == {}


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz", "jsonl.zst"])
def test_line_of_100_mb_is_quarantined_without_being_held(tmp_path: Path, suffix: str) -> None:
    documents, line = as_lines(topical(1000, words=100)), long_line(10**8)
    found = []
    for name, data in (("without", documents), ("with", documents + line)):
        (tmp_path / name / "in").mkdir(parents=True)
        (tmp_path / name / "in" / f"a.{suffix}").write_bytes(packed(suffix, data))
        found.append(peaks(run(COMMAND, tmp_path / name, max_bad_fraction=0.01, max_record_bytes="1MB"))[0])
    assert [row["reason"] for row in quarantined(tmp_path / "with" / "out")] == ["record_too_large"]
    assert found[1] < found[0] + 50 * 10**6


def test_line_of_100_mb_is_kept_where_the_limit_allows_it(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jsonl").write_bytes(as_lines(topical(1000, words=100)) + long_line(10**8))
    resident, _ = peaks(run(COMMAND, tmp_path, max_record_bytes="200MB"))
    assert Manifest.open(tmp_path / "out").commit.body.counts.published.records == 1001
    assert resident < 3 * 10**9


def test_unit_without_memory_is_tried_named_and_done_once_there_is_more(tmp_path: Path) -> None:
    """The limit is on address space, and children inherit it: what a whole run takes without the long line, and a little."""
    keys: dict[str, Any] = {"near_duplicate_threshold": None, "max_record_bytes": "400MB"}  # shingles of it would take long
    for name in ("without", "whole", "limited"):
        write_topical(tmp_path / name / "in" / "a.jsonl", 1_500)
    for name in ("whole", "limited"):
        (tmp_path / name / "in" / "b.jsonl").write_bytes(long_line(300 * 10**6))
    _, virtual = peaks(run(SMALL_UNITS + COMMAND, tmp_path / "without", **keys))
    peaks(run(SMALL_UNITS + COMMAND, tmp_path / "whole", **keys))

    keys["executor"] = {"workers": 1}
    failed = run(LIMITED + SMALL_UNITS + COMMAND, tmp_path / "limited", str(virtual + 10**8), **keys)
    assert failed.returncode == 1, failed.stderr[-2000:]
    assert failed.stderr.count("try 1 of 3") == failed.stderr.count("try 3 of 3") == 1
    named = re.search(r"stage (\w+): 1 tasks were tried 3 times.*: unit (\d+) \(b.jsonl rows 0 to 0\): ", failed.stderr)
    assert named, failed.stderr[-2000:]
    (work,) = (tmp_path / "limited" / "out" / "_work").glob("*/plan.json")
    units = {f"{unit:05d}.json" for unit in range(len(json.loads(work.read_bytes())["units"]))}
    assert len(units) > 5
    assert {path.name for path in (work.parent / named[1]).glob("?????.json")} == units - {f"{int(named[2]):05d}.json"}

    peaks(run(SMALL_UNITS + COMMAND, tmp_path / "limited", **keys))
    assert tree(tmp_path / "limited" / "out") == tree(tmp_path / "whole" / "out")
