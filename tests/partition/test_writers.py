"""Several writers at one manifest: at the same moment, at the same task, or long after another has published."""

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from lmsplit.manifests.cli import main
from lmsplit.manifests.reader import Manifest
from lmsplit.manifests.verify import verify_manifest
from lmsplit.partition.cli import find_run, gc
from lmsplit.partition.pipeline import find_stage
from tests.partition import failpoints
from tests.partition.corpora import tree
from tests.partition.stages import Counting
from tests.partition.trials import FORKING, Ended, Started, Undisturbed, command, commit_of, is_like, points_of, run, start
from tests.partition.trials import undisturbed as undisturbed  # a fixture

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

PATIENCE_S = 120


def race(directory: Path, where: str, *calls: tuple[Any, ...]) -> list[Ended]:
    """Call functions in processes of their own; they make the link whose name begins with `where` at the same moment."""
    barrier = FORKING.Barrier(len(calls))
    started = [Started(directory / f"{n}.log", failpoints.meet, barrier, where, *call) for n, call in enumerate(calls)]
    return [one.end() for one in started]


def test_two_publishers_of_one_run_both_succeed_and_leave_one_commit(undisturbed: Undisturbed, tmp_path: Path) -> None:
    output = tmp_path / "m"
    number = undisturbed.points.index("before link commits/00000.json") + 1
    assert run(undisturbed.corpus, output, "kill", number).exit_code == -signal.SIGKILL
    publish = (main, ["publish", str(output), "--json"])
    for ended in race(tmp_path, "commits/", publish, publish):
        assert ended.exit_code == 0, ended.said
        assert undisturbed.commit in ended.said
    is_like(output, undisturbed)


@pytest.mark.parametrize("where", ["commits/", "place/00001.json", "d00001/part-00000"])
def test_two_commands_with_one_configuration_both_end_with_the_same_bytes(
    undisturbed: Undisturbed, tmp_path: Path, where: str
) -> None:
    output = tmp_path / "m"
    one = (main, command(undisturbed.corpus, output))
    for ended in race(tmp_path, where, one, one):
        assert ended.exit_code == 0, ended.said
    is_like(output, undisturbed)


def test_of_two_configurations_one_publishes_and_the_other_is_told(undisturbed: Undisturbed, tmp_path: Path) -> None:
    output = tmp_path / "m"
    ended = race(tmp_path, "commits/", *((main, command(undisturbed.corpus, output, domains)) for domains in (3, 2)))
    assert sorted(one.exit_code or 0 for one in ended) == [0, 4], ended
    (loser,) = [one for one in ended if one.exit_code == 4]
    last = loser.said.splitlines()[-1]
    assert last.startswith(f"lmsplit: {output} already holds commit 0 of run ")
    assert last.endswith(": choose another output")
    manifest = Manifest.open(output)
    assert len(manifest.domains) == (3 if ended.index(loser) else 2)
    assert {finding.code for finding in verify_manifest(output, deep=True)} == {"untracked"}  # what the other one wrote
    again = run(undisturbed.corpus, output, domains=2 if ended.index(loser) else 3)
    assert again.exit_code == 4
    assert "choose another output, or remove that manifest" in again.said


def wait_until_stopped(zombie: Started) -> None:
    deadline = time.monotonic() + PATIENCE_S
    stat = Path(f"/proc/{zombie.process.pid}/stat")
    while stat.read_text().rpartition(")")[2].split()[0] != "T":
        assert zombie.process.is_alive(), zombie.end().said
        assert time.monotonic() < deadline, "it does not stop"
        time.sleep(0.01)


def first(points: list[str], what: str) -> int:
    """The number of the first point that begins so."""
    return next(number for number, point in enumerate(points, 1) if point.startswith(what))


@pytest.mark.parametrize("where", ["before link scan/00001", "after link place/00001.json", "before link d00001/part"])
@pytest.mark.parametrize("collected", [False, True], ids=["work files kept", "work files removed"])
def test_writer_that_wakes_after_another_has_published_changes_nothing(
    undisturbed: Undisturbed, tmp_path: Path, where: str, collected: bool
) -> None:
    output = tmp_path / "m"
    zombie = start(undisturbed.corpus, output, "stop", first(undisturbed.points, where))
    wait_until_stopped(zombie)
    assert run(undisturbed.corpus, output).exit_code == 0
    if collected:
        gc(str(output))
    is_like(output, undisturbed)
    os.kill(zombie.process.pid or 0, signal.SIGCONT)
    ended = zombie.end()
    if collected:
        assert ended.exit_code == 1, ended.said
        assert ended.said.splitlines()[-1].startswith("lmsplit: "), ended.said
        assert "Traceback" not in ended.said
    else:
        assert ended.exit_code == 0, ended.said
    is_like(output, undisturbed)
    assert run(undisturbed.corpus, output).exit_code == 0
    is_like(output, undisturbed)


def test_files_of_a_writer_that_wakes_with_another_configuration_are_listed(undisturbed: Undisturbed, tmp_path: Path) -> None:
    output, other = tmp_path / "m", tmp_path / "other"
    points = points_of(run(undisturbed.corpus, other, domains=2))
    zombie = start(undisturbed.corpus, output, "stop", first(points, "before link d00000/part-00001"), domains=2)
    wait_until_stopped(zombie)
    assert run(undisturbed.corpus, output).exit_code == 0
    os.kill(zombie.process.pid or 0, signal.SIGCONT)
    ended = zombie.end()
    assert ended.exit_code == 4, ended.said
    assert commit_of(output) == undisturbed.commit
    findings = verify_manifest(output, deep=True)
    assert {finding.code for finding in findings} == {"untracked"}
    added = set(tree(other)) - set(undisturbed.tree)
    assert {finding.where for finding in findings} == added
    assert any(name.startswith("data/") for name in added)
    for finding in findings:
        assert finding.remedy == "remove it"
        (output / finding.where).unlink()
    is_like(output, undisturbed)


def test_task_done_twice_at_once_leaves_the_first_receipt(undisturbed: Undisturbed, tmp_path: Path) -> None:
    output = tmp_path / "m"
    number = first(undisturbed.points, "before link place/00001.json")
    assert run(undisturbed.corpus, output, "kill", number).exit_code == -signal.SIGKILL
    unfinished = find_run(str(output))
    counting, place = Counting(unfinished), find_stage(unfinished, "place")
    for stage in (counting, place):
        for ended in race(tmp_path, f"{stage.name}/00001.json", (stage.do, 1), (stage.do, 1)):
            assert ended.exit_code == 0, ended.said
    receipt = unfinished.receipt("counting", 1)
    counting.do(1)  # another process than either
    assert unfinished.receipt("counting", 1) == receipt
    assert receipt["pid"] != os.getpid()
    assert run(undisturbed.corpus, output).exit_code == 0
    is_like(output, undisturbed)
