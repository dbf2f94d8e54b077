"""Every single write of a run fails in turn: nothing half is ever read, and the same command again ends with the same bytes.

The points are numbered by `failpoints`; a random sample of them, and those around the commit and the card, are tried with a kill,
a full disk and a broken one. `benchmarks/crash_trials.py` tries more.
"""

import random
import secrets
import shutil
import signal
import sys
from pathlib import Path

import pytest

from lmsplit.partition.cli import gc
from tests.partition.trials import Ended, Undisturbed, is_like, reads_nothing_or_all, run
from tests.partition.trials import undisturbed as undisturbed  # a fixture

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

NUM_POINTS = 7
ALWAYS = ("before link commits/00000.json", "after link commits/00000.json", "after replace m/README.md")
SAID = {"full": "No space left on device. Nothing is lost: make room there", "broken": "Input/output error. Nothing is lost"}


def drawn(points: list[str], generator: random.Random) -> list[int]:
    """Numbers of the points to try: those around the commit and the card, and others at random, spread over the run."""
    always = [points.index(what) + 1 for what in ALWAYS]
    others = NUM_POINTS - len(always)
    return always + [1 + int(len(points) * (place + generator.random()) / others) for place in range(others)]


def ended_clearly(ended: Ended, kind: str) -> None:
    if kind == "kill":
        assert ended.exit_code == -signal.SIGKILL, ended.said
        return
    assert ended.exit_code == 1, ended.said
    assert "Traceback" not in ended.said, ended.said
    (line,) = [line for line in ended.said.splitlines() if line.startswith("lmsplit: ")]
    assert SAID[kind] in line


@pytest.mark.parametrize("kind", ["kill", "full", "broken"])
def test_run_that_failed_at_a_point_ends_with_the_same_bytes(undisturbed: Undisturbed, tmp_path: Path, kind: str) -> None:
    seed = secrets.randbits(32)
    for number in drawn(undisturbed.points, random.Random(seed)):
        sys.stdout.write(f"seed {seed}: {kind} at point {number}, {undisturbed.points[number - 1]}\n")
        output = tmp_path / "m"
        ended_clearly(run(undisturbed.corpus, output, kind, number), kind)
        reads_nothing_or_all(output)
        again = run(undisturbed.corpus, output)
        assert again.exit_code == 0, again.said
        is_like(output, undisturbed)
        gc(str(output))
        assert [path for path in output.glob("_work/**/*") if path.is_file()] == []
        shutil.rmtree(output)


def test_every_kind_of_write_is_a_point(undisturbed: Undisturbed) -> None:
    verbs = {what.split()[1] for what in undisturbed.points}
    assert verbs == {"mkdir", "write", "flush", "link", "replace", "unlink"}
    written = {what.rpartition("/")[2] for what in undisturbed.points if what.startswith("after link ")}
    assert {name.rpartition("/")[2] for name in undisturbed.tree} - {"README.md"} <= written
