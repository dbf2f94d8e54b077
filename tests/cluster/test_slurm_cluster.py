"""The cluster that the tests start does what jobs need of one: arrays, partitions, chains, and chains that break."""

import time
from pathlib import Path

import pytest

from tests.cluster.conftest import Cluster

pytestmark = pytest.mark.slow
WAIT_S = 120


def submit(slurm: Cluster, command: str, *options: str) -> str:
    """Submit the shell command, and return the job's number."""
    return slurm.run("sbatch", "--parsable", *options, f"--wrap={command}")


def ends(slurm: Cluster, *jobs: str) -> dict[str, tuple[str, str]]:
    """Wait until the jobs have ended, and return each task's state and reason, by its number."""
    deadline = time.monotonic() + WAIT_S
    listing = ("squeue", "--noheader", "--array", f"--jobs={','.join(jobs)}", "--format=%i %T %r")
    while slurm.run(*listing):  # without --states it lists what has not ended
        assert time.monotonic() < deadline, slurm.run(*listing)
        time.sleep(0.1)
    rows = (row.split() for row in slurm.run(*listing, "--states=all").splitlines())
    return {task: (state, reason) for task, state, reason in rows}


@pytest.mark.parametrize("partition", ["debug", "big"])
def test_chain_starts_when_the_whole_array_has_completed(slurm: Cluster, tmp_path: Path, partition: str) -> None:
    write = f"touch {tmp_path}/$SLURM_ARRAY_TASK_ID.$SLURM_JOB_PARTITION"
    array = submit(slurm, write, "--array=0-2", f"--partition={partition}")
    listed = submit(slurm, f"ls {tmp_path} > {tmp_path}/listed", f"--dependency=afterok:{array}")
    last = submit(slurm, f"cp {tmp_path}/listed {tmp_path}/copied", f"--dependency=afterok:{listed}", "--partition=big")
    names = [*(f"{array}_{task}" for task in range(3)), listed, last]
    assert ends(slurm, array, listed, last) == dict.fromkeys(names, ("COMPLETED", "None"))
    assert (tmp_path / "copied").read_text().split() == [*(f"{task}.{partition}" for task in range(3)), "listed"]


def test_failed_array_task_takes_its_dependants_with_it(slurm: Cluster, tmp_path: Path) -> None:
    array = submit(slurm, "exit $((SLURM_ARRAY_TASK_ID == 1 ? 7 : 0))", "--array=0-2")
    touch, invalid = f"touch {tmp_path}/ran", "--kill-on-invalid-dep=yes"
    next_one = submit(slurm, touch, f"--dependency=afterok:{array}", invalid)
    last = submit(slurm, touch, f"--dependency=afterok:{next_one}", invalid)
    found = ends(slurm, array, next_one, last)
    cancelled = ("CANCELLED", "DependencyNeverSatisfied")
    completed = ("COMPLETED", "None")
    assert found == {
        f"{array}_0": completed,
        f"{array}_1": ("FAILED", "NonZeroExitCode"),
        f"{array}_2": completed,
        next_one: cancelled,
        last: cancelled,
    }
    assert not (tmp_path / "ran").exists()


def test_four_tasks_of_one_cpu_run_at_the_same_time(slurm: Cluster, tmp_path: Path) -> None:
    meet = f"touch {tmp_path}/$SLURM_ARRAY_TASK_ID; until [ $(ls {tmp_path} | wc -l) = 4 ]; do sleep 0.1; done"
    array = submit(slurm, f"timeout {WAIT_S // 2} bash -c '{meet}'", "--array=0-3")
    assert set(ends(slurm, array).values()) == {("COMPLETED", "None")}
