"""Fixtures of the tests against real services: a Slurm cluster of one node, an object store."""

import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.runs import BAD, DUPLICATES, LOCAL, RAY, SLURM, partition
from tests.partition.corpora import as_lines, topical, write

SCRIPT = Path(__file__).parents[1] / "slurm_cluster"


@dataclass(frozen=True)
class Cluster:
    """A running cluster, with the partitions `debug` and `big` on one node.

    Attributes:
        directory: where its configuration, state and logs are.
    """

    directory: Path

    def run(self, *command: str) -> str:
        """Run one of Slurm's commands in the directory, where jobs leave their output too, and return what it prints."""
        done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=self.directory)
        assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
        return done.stdout.strip()


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster, to which the environment of this session's processes points."""
    if os.geteuid():
        pytest.skip("a Slurm cluster needs root: slurmd starts jobs as their users")
    installed = subprocess.run([SCRIPT, "install"], check=False, capture_output=True, text=True)
    if installed.returncode:
        pytest.skip(f"slurm-wlm and munge cannot be installed: {installed.stderr.strip()[-500:]}")
    directory = tmp_path_factory.mktemp("slurm")
    started = subprocess.run([SCRIPT, "start", directory], check=False, capture_output=True, text=True)
    if started.returncode:
        pytest.fail(started.stderr)
    name, value = started.stdout.strip().split("=", 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(name, value)
        yield Cluster(directory)
    stopped = subprocess.run([SCRIPT, "stop", directory], check=False, capture_output=True, text=True)
    assert stopped.returncode == 0, stopped.stderr


@dataclass(frozen=True)
class Expected:
    """A corpus, and what a run without a cluster makes of it.

    Attributes:
        corpus: four units of documents; some ids stand twice, some lines are broken.
        manifest: the manifest, on this disk.
        commit: digest of its commit's body.
    """

    corpus: Path
    manifest: Path
    commit: str


@pytest.fixture(scope="session")
def expected(tmp_path_factory: pytest.TempPathFactory) -> Expected:
    """The corpus and its manifest, made in one process. Read them; copy them before you change them."""
    directory = tmp_path_factory.mktemp("expected")
    documents = topical(4 * 150, words=900)
    for number, suffix in enumerate(("jsonl", "jsonl", "jsonl.zst", "parquet")):
        name = f"{number}.{suffix}"
        write(directory / "in" / name, documents[150 * number : 150 * number + 150])
    with (directory / "in" / "1.jsonl").open("ab") as stream:
        stream.write(as_lines(documents[:DUPLICATES]) + b"{broken\n" * BAD)
    done = partition(directory, directory / "in", directory / "manifest", LOCAL | {"workers": 0})
    assert done.code == 0, done.err
    return Expected(directory / "in", directory / "manifest", done.json["commit"])


@pytest.fixture(params=[LOCAL, RAY, SLURM], ids=lambda executor: executor["kind"])
def executor(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Each executor in turn, with its cluster up."""
    if request.param is SLURM:
        request.getfixturevalue("slurm")
    if request.param is RAY:
        pytest.importorskip("ray")
    return dict(request.param)
