"""`lmsplit partition` on a real Slurm and a real Ray: the bytes of a run without them, loud failures, a status from anywhere."""

import contextlib
import json
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from lmsplit.manifests.commit import read_commit
from lmsplit.manifests.store import LocalStore
from lmsplit.manifests.verify import verify_manifest
from tests.cluster.conftest import Cluster, Expected
from tests.cluster.runs import BAD, DUPLICATES, LMSPLIT, LOCAL, RAY, SLURM, configured, lmsplit, partition
from tests.partition.corpora import tree

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def test_corpus_has_what_a_run_may_trip_over(expected: Expected) -> None:
    body = read_commit(LocalStore(expected.manifest))[1].body
    assert body.counts.duplicates["duplicate_id"].records == DUPLICATES
    assert body.counts.quarantined["malformed_json"].records == BAD
    plan = json.loads((expected.manifest / body.plan).read_text())
    assert len(plan["units"]) == 4
    assert body.splits["heldout"] > 0


# Slurm with one and two workers is below, Ray with two in `test_partition_s3.py`: each run there ends with the same commit.
@pytest.mark.parametrize(
    ("executor", "workers"),
    [(LOCAL, 1), (LOCAL, 2), (LOCAL, 7), (RAY, 1), (RAY, 7), (SLURM, 7)],
    ids=lambda value: value["kind"] if isinstance(value, dict) else str(value),
)
def test_any_number_of_workers_gives_the_same_bytes(
    expected: Expected, executor: dict[str, Any], workers: int, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if executor is SLURM:
        request.getfixturevalue("slurm")
    if executor is RAY:
        pytest.importorskip("ray")
    done = partition(tmp_path, expected.corpus, tmp_path / "manifest", executor | {"workers": workers})
    assert done.code == 0, done.err
    assert done.json["commit"] == expected.commit
    assert tree(tmp_path / "manifest") == tree(expected.manifest)
    assert verify_manifest(tmp_path / "manifest", deep=True) == []


@pytest.fixture
def gone(slurm: Cluster) -> Iterator[None]:
    """Nothing is left in the queue when a test ends."""
    yield
    deadline = time.monotonic() + 60
    while slurm.run("squeue", "--noheader", "--format=%i %j %T") and time.monotonic() < deadline:
        time.sleep(0.5)
    assert slurm.run("squeue", "--noheader", "--format=%i %j %T") == ""


@pytest.mark.usefixtures("gone")
def test_detached_run_is_published_by_its_last_job_and_watched_from_anywhere(
    expected: Expected, slurm: Cluster, tmp_path: Path
) -> None:
    stages = {"fit": {"partition": "big", "cpus_per_task": 2, "sbatch": {"comment": "fit here"}}, "place": {"workers": 3}}
    executor = SLURM | {"workers": 2, "max_array_size": 2, "stages": stages, "env": {"LMSPLIT_TEST": "a b"}}
    executor |= {"setup": "echo set up with $LMSPLIT_TEST", "sbatch": {"nice": 3}}
    config = configured(tmp_path / "c.yaml", expected.corpus, tmp_path / "manifest", executor)
    done = lmsplit("partition", config, "--detach", "--json", cwd=tmp_path)
    assert done.code == 0, done.err
    jobs = done.json["jobs"]
    assert list(jobs)[-1] == "publish"
    assert len(jobs["place"]) == 2  # three ranks, two to an array
    fit = slurm.run("scontrol", "--oneliner", "show", "job", *jobs["fit"])
    assert "Partition=big" in fit
    assert "CPUs/Task=2" in fit
    assert "Comment=fit" in fit
    again = lmsplit("partition", config, "--detach", "--json", cwd=tmp_path)
    assert again.json["jobs"] == jobs  # in the queue already
    early = lmsplit("status", tmp_path / "manifest", "--json").json
    assert {row["stage"] for row in early["stages"]} >= {"scan", "fit", "place"}
    assert early["slurm"]["publish"]["jobs"] == jobs["publish"]
    deadline = time.monotonic() + 400
    while not (tmp_path / "manifest" / "commits").exists() and time.monotonic() < deadline:
        time.sleep(1)
    assert read_commit(LocalStore(tmp_path / "manifest"))[1].body_sha256 == expected.commit
    (log,) = (tmp_path / "manifest" / "_work").glob("*/logs/fit/*_0.out")
    assert "set up with a b" in log.read_text()
    late = lmsplit("status", tmp_path / "manifest", "--json").json
    assert late["published"] is True
    assert all(row["tasks_done"] == row["tasks"] for row in late["stages"])
    refused = lmsplit("partition", config, "--detach", cwd=tmp_path)
    assert (refused.code, "is published in" in refused.err) == (4, True)


@pytest.mark.usefixtures("gone")
@pytest.mark.parametrize("executor", [SLURM, RAY], ids=lambda executor: executor["kind"])
def test_failed_task_fails_the_run_loudly_and_status_names_it(
    expected: Expected, executor: dict[str, Any], tmp_path: Path
) -> None:
    shutil.copytree(expected.corpus, tmp_path / "in")
    output = tmp_path / "manifest"
    done = partition(tmp_path, tmp_path / "in", output, executor | {"workers": 2}, max_bad_fraction=0)
    assert done.code == 3, done.err
    assert "Traceback" not in done.err
    last = done.err.strip().splitlines()[-1]
    assert re.search(rf"lmsplit: {BAD} of \d+ records are bad \(malformed_json {BAD}\), more than max_bad_fraction", last), last
    if executor is SLURM:
        assert re.search(r"\(Slurm: job \d+: .*FAILED.*; log: .*logs/settle\)", last), last
    assert not (output / "commits").exists()
    status = lmsplit("status", output, "--json").json
    ((failure),) = status["failures"]
    assert (failure["stage"], failure["task"], failure["exit_code"]) == ("settle", 0, 3)
    assert {row["stage"]: row["failed"] for row in status["stages"]}["settle"] == 1
    assert f"failed: stage settle, task 0 on {failure['host']}" in lmsplit("status", output).out


@pytest.mark.usefixtures("gone")
def test_ended_command_leaves_its_jobs_and_the_same_command_watches_them(
    expected: Expected, slurm: Cluster, tmp_path: Path
) -> None:
    config = configured(tmp_path / "c.yaml", expected.corpus, tmp_path / "manifest", SLURM | {"workers": 1})
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen([LMSPLIT, "partition", str(config)], stdout=log, stderr=log, cwd=tmp_path)
        while not list((tmp_path / "manifest").glob("_work/*/scan/?????.json")):
            assert process.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        process.wait(30)
    assert "the jobs go on: the same command watches them again, scancel" in (tmp_path / "log").read_text()
    before = slurm.run("squeue", "--noheader", "--format=%F")
    assert before
    done = lmsplit("partition", config, "--json", cwd=tmp_path)
    assert done.code == 0, done.err
    assert done.json["commit"] == expected.commit


def test_killed_ray_tasks_are_started_again(expected: Expected, tmp_path: Path) -> None:
    """Three processes, each as soon as it is seen: one may not have begun, another be in the middle of its task."""
    pytest.importorskip("ray")
    config = configured(tmp_path / "c.yaml", expected.corpus, tmp_path / "manifest", RAY | {"workers": 2})
    killed: set[int] = set()
    with (tmp_path / "log").open("w") as log:
        command = psutil.Popen([LMSPLIT, "partition", str(config)], stdout=log, stderr=log, cwd=tmp_path)
        while len(killed) < 3 and command.poll() is None:
            for process in command.children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    if process.pid not in killed and process.name().startswith("ray::_do_rank"):
                        process.kill()
                        killed.add(process.pid)
            time.sleep(0.02)
        assert command.wait(600) == 0, (tmp_path / "log").read_text()
    assert len(killed) >= 3
    assert read_commit(LocalStore(tmp_path / "manifest"))[1].body_sha256 == expected.commit


@pytest.mark.usefixtures("slurm")
@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"partition": "nowhere"}, "Slurm refused lmsplit-scan-.*[Ii]nvalid partition.*: mend executor in the configuration"),
        ({"mem_per_cpu": "900TB"}, "Slurm refused lmsplit-scan-.*: mend executor in the configuration"),
        ({"env": {"AWS_SECRET_ACCESS_KEY": "x"}}, "AWS_SECRET_ACCESS_KEY would be written into files"),
        ({"stages": {"scam": {}}}, "scam is no stage: expected scan, "),
    ],
)
def test_executor_that_slurm_cannot_have_is_refused(
    expected: Expected, keys: dict[str, Any], message: str, tmp_path: Path
) -> None:
    done = partition(tmp_path, expected.corpus, tmp_path / "manifest", SLURM | {"workers": 1} | keys)
    assert done.code == 2, done.err
    assert re.search(f"lmsplit: .*{message}", done.err), done.err
    assert "Traceback" not in done.err


def test_slurm_without_sbatch_and_ray_without_a_cluster_are_clear_errors(expected: Expected, tmp_path: Path) -> None:
    slurm = partition(tmp_path / "slurm", expected.corpus, tmp_path / "a", SLURM | {"workers": 1, "env": {"PATH": "/nowhere"}})
    assert slurm.code == 2, slurm.err
    assert "executor.kind is slurm, and there is no sbatch here: run this on a login node" in slurm.err
    pytest.importorskip("ray")
    ray = partition(tmp_path / "ray", expected.corpus, tmp_path / "b", RAY | {"workers": 1, "address": "127.0.0.1:1"})
    assert ray.code == 2, ray.err
    assert "executor.address 127.0.0.1:1: no Ray cluster there" in ray.err
