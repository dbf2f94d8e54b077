"""Is anything lost when a run is killed? On every executor, at random moments; then the same command again.

A trial starts `lmsplit partition` on a corpus of six units, lets a fault happen, and runs the same command to its end.
*recovered*: exit code 0, the published bytes and the commit of an undisturbed run, and `verify --deep` finds nothing. *silent
losses*: a command that said 0 and left anything else. *first receipt*: seconds from the start of the second command to its first
new receipt, imports included, of the trials in which a task was left. *done twice*: tasks that were begun more than once, by
worker; the maximum of a trial. They are counted by a hook in every process of the run, which is no part of lmsplit.

- `points`: every write of a run in one process is numbered (`tests/partition/failpoints.py`); at a random one a fault.
- `local`: SIGKILL of all processes, or of one worker; two workers. `s3`: the same on moto's object store over HTTP.
- `slurm`: scancel of all jobs, SIGKILL of a job's process, SIGKILL of the command that watches; two jobs at a time.
- `ray`: SIGKILL of a task's process, or of the driver with all that it started; two tasks.

Each trial adds a line to `results/crash_trials.jsonl`, and the table is made of all lines: parts may run one after the other,
each with a seed of its own. `--fresh` begins anew. A trial takes 3 s (points), 20 s (local, s3) or 60 s (slurm, ray) on 2 cores.

The lines of seeds 1 to 8 are of trials that ran three at a time beside other work: their seconds are upper bounds. On a quiet
machine (seed 21) a local run took 2.5 to 3.0 s. Two faults were found on the way and mended, and their lines left out: a command
that waited for ever for a killed actor of datatrove's Ray executor, and one that Ray aborted when it cancelled ending tasks.
"""

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

from kills import cancel_jobs, kill_all, kill_command, kill_job, kill_ray_task, kill_worker
from measure import RESULTS, write_results

ROOT: Final = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from lmsplit.manifests.commit import read_commit  # noqa: E402
from lmsplit.manifests.errors import ManifestError  # noqa: E402
from lmsplit.manifests.layout import WORK  # noqa: E402
from lmsplit.manifests.store import Store, open_store  # noqa: E402
from lmsplit.manifests.verify import verify_manifest  # noqa: E402
from tests import object_store  # noqa: E402
from tests.partition import trials  # noqa: E402
from tests.partition.corpora import topical, write  # noqa: E402

LMSPLIT: Final = str(Path(sys.executable).parent / "lmsplit")
LINES: Final = RESULTS / "crash_trials.jsonl"
WORKERS: Final = 2
PATIENCE_S: Final = 300
POLL_S: Final = 0.05
HOOK: Final = '''"""Counts the tasks that begin in the processes of a run."""
import importlib.abc, importlib.util, os, sys

class Hook(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name != "lmsplit.partition.supervise":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        execute = spec.loader.exec_module
        def with_count(module):
            execute(module)
            attempt = module.attempt
            def counted(stage, task):
                descriptor = os.open(os.environ["LMSPLIT_TRIAL"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
                os.write(descriptor, f"{stage.name} {task}\\n".encode())
                os.close(descriptor)
                return attempt(stage, task)
            module.attempt = counted
        spec.loader.exec_module = with_count
        return spec

if "LMSPLIT_TRIAL" in os.environ:
    sys.meta_path.insert(0, Hook())
'''


class Bench:
    """What every trial needs.

    Args:
        directory: for its files.
        seed: of the moments.
    """

    def __init__(self, directory: Path, seed: int) -> None:
        self.directory = directory
        self.seed = seed
        self.random = random.Random(seed)
        self.corpus = directory / "in"
        documents = topical(480, words=1000)
        for index in range(6):
            write(self.corpus / f"{index}.jsonl", [*documents[80 * index : 80 * index + 80], documents[0]])
        (directory / "hook").mkdir()
        (directory / "hook" / "sitecustomize.py").write_text(HOOK)
        self.begun = directory / "begun"
        os.environ["LMSPLIT_TRIAL"] = str(self.begun)
        os.environ["PYTHONPATH"] = str(directory / "hook")
        self._number = 0
        store = self.run_to_end(self.output(), {"workers": WORKERS})
        self.expected = published(store)
        self.num_receipts = len(receipts(store))
        assert Counter(self.begun.read_text().splitlines()).total() == self.num_receipts, "the hook misses tasks"

    def output(self, prefix: str | None = None) -> str:
        """Return a location where no run has been."""
        self._number += 1
        self.begun.unlink(missing_ok=True)
        return f"{prefix or self.directory}/m{self._number}"

    def start(self, output: str, executor: dict[str, Any]) -> "subprocess.Popen[str]":
        """Start the command."""
        config = self.directory / f"{output.rpartition('/')[2]}.yaml"
        values = {
            "input": {"paths": str(self.corpus), "group": "group"},
            "output": output,
            "domains": 3,
            "encoder": "lexical",
            "duplicate_ids": "quarantine",
            "executor": executor,
        }
        config.write_text(json.dumps(values))
        with config.with_suffix(".log").open("a") as log:
            return subprocess.Popen(
                [LMSPLIT, "partition", str(config), "--json"],
                stdout=log,
                stderr=log,
                text=True,
                start_new_session=True,
                cwd=self.directory,
            )

    def run_to_end(self, output: str, executor: dict[str, Any]) -> Store:
        """Run the command undisturbed."""
        process = self.start(output, executor)
        log = self.directory / f"{output.rpartition('/')[2]}.log"
        assert process.wait(PATIENCE_S) == 0, log.read_text()
        return open_store(output)


def receipts(store: Store) -> set[str]:
    """Return the receipts that a run has."""
    names = (name for name in store.walk(WORK) if name.count("/") == 3 and name.endswith(".json"))
    return {name for name in names if name.rpartition("/")[2][:-5].isdigit()}


def published(store: Store) -> dict[str, Any]:
    """Return every published file and the digest of the commit; nothing where none is whole."""
    try:
        commit = read_commit(store)[1].body_sha256
    except ManifestError:
        return {}
    names = [name for name in store.walk("") if not name.startswith((f"{WORK}/", "commits/"))]
    return {name: store.read(name) for name in names} | {"commit": commit}


def trial(bench: Bench, executor: dict[str, Any], fault: Callable[[Any], str | None], prefix: str | None) -> dict[str, Any]:
    """Let a fault happen at a random moment, and run the command again.

    Args:
        bench: the bench.
        executor: what runs the work.
        fault: given the process, lets it happen; returns None where there was nothing to hit yet.
        prefix: where the output is, if not on this disk.

    Returns:
        What came of it.
    """
    output = bench.output(prefix)
    store = open_store(output)
    wanted = bench.random.randrange(bench.num_receipts)
    process = bench.start(output, executor)
    while process.poll() is None and len(receipts(store)) < wanted:
        time.sleep(POLL_S)
    time.sleep(bench.random.uniform(0, 0.4))
    hit = None
    while process.poll() is None and hit is None:
        hit = fault(process)
        time.sleep(0.01)
    first_code = process.wait(PATIENCE_S)
    before = receipts(store)
    lost = first_code == 0 and published(store) != bench.expected
    left = bench.num_receipts - len(before)
    started = time.monotonic()
    again = bench.start(output, executor)
    first_receipt_s = None
    while left and first_receipt_s is None and again.poll() is None:
        time.sleep(POLL_S)
        first_receipt_s = time.monotonic() - started if receipts(store) - before else None
    code = again.wait(PATIENCE_S)
    same = published(store) == bench.expected and verify_manifest(output, deep=True) == []
    begun = Counter(bench.begun.read_text().splitlines())
    assert code or len(begun) == bench.num_receipts, "the hook misses tasks"
    found = {
        "hit": hit,
        "receipts": len(before),
        "first_code": first_code,
        "recovered": code == 0 and same,
        "silent_loss": lost or (code == 0 and not same),
        "first_receipt_s": first_receipt_s,
        "twice_per_worker": sum(number - 1 for number in begun.values()) / WORKERS,
    }
    if found["recovered"] and store.is_local:
        shutil.rmtree(output)
    return found


@contextmanager
def slurm() -> Iterator[None]:
    """Start a cluster of one node."""
    script, directory = ROOT / "tests" / "slurm_cluster", tempfile.mkdtemp()
    said = subprocess.run([script, "start", directory], check=True, capture_output=True, text=True).stdout.strip()
    name, _, value = said.partition("=")
    os.environ[name] = value
    try:
        yield
    finally:
        subprocess.run([script, "stop", directory], check=True, capture_output=True)


@contextmanager
def s3() -> Iterator[str]:
    """Start an object store; give a URL in it."""
    store = object_store.ObjectStore(f"http://127.0.0.1:{object_store.free_port()}")
    os.environ.update(store.environment)
    server = object_store.install_server()
    log = Path(tempfile.mkdtemp()) / "log"
    with log.open("wb") as output:
        command = [str(server), "-H", "127.0.0.1", "-p", store.endpoint.rpartition(":")[2]]
        with subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT) as process:
            try:
                object_store.wait_until_up(store.endpoint, process, log)
                yield f"s3://{store.bucket()}"
            finally:
                process.terminate()


SLURM: Final = {"kind": "slurm", "partition": "debug", "mem_per_cpu": "1GB", "time": "20", "workers": WORKERS}
RAY: Final = {"kind": "ray", "workers": WORKERS}
HERE: Final = {"workers": WORKERS}
FAULTS: Final[dict[str, tuple[dict[str, Any], dict[str, Callable[[Any], str | None]]]]] = {
    "local": (HERE, {"SIGKILL of all processes": kill_all, "SIGKILL of a worker": kill_worker}),
    "s3": (HERE, {"SIGKILL of all processes": kill_all, "SIGKILL of a worker": kill_worker}),
    "slurm": (
        SLURM,
        {
            "scancel of all jobs": cancel_jobs,
            "SIGKILL of a job's process": kill_job,
            "SIGKILL of the watching command": kill_command,
        },
    ),
    "ray": (
        RAY,
        {"SIGKILL of the driver": kill_all, "SIGKILL of a task's process": kill_ray_task},
    ),
}


def try_points(directory: Path, num_trials: int, seed: int) -> Iterator[dict[str, Any]]:
    """Fail at so many of the numbered writes."""
    undisturbed = trials.undisturbed_run(directory)
    pairs = [(number, kind) for number in range(1, len(undisturbed.points) + 1) for kind in ("kill", "full", "broken")]
    names = {"kill": "SIGKILL at a write", "full": "ENOSPC at a write", "broken": "EIO at a write"}
    for number, kind in random.Random(seed).sample(pairs, min(num_trials, len(pairs))):
        output = directory / "trial"
        first = trials.run(undisturbed.corpus, output, kind, number)
        half = False
        code = None
        try:
            trials.reads_nothing_or_all(output)
            code = trials.run(undisturbed.corpus, output).exit_code
            trials.is_like(output, undisturbed)
            same = True
        except AssertionError:
            same, half = False, code is None
        yield {
            "fault": names[kind],
            "point": f"{number} of {len(undisturbed.points)}: {undisturbed.points[number - 1]}",
            "first_code": first.exit_code,
            "recovered": code == 0 and same,
            "silent_loss": half or first.exit_code == 0 or (code == 0 and not same),
            "first_receipt_s": None,
            "twice_per_worker": None,
        }
        shutil.rmtree(output)


def try_executor(name: str, directory: Path, num_trials: int, seed: int) -> Iterator[dict[str, Any]]:
    """Let the faults of an executor happen in turn."""
    bench = Bench(directory, seed)
    executor, faults = FAULTS[name]
    with ExitStack() as stack:
        prefix = stack.enter_context(s3()) if name == "s3" else None
        if name == "slurm":
            stack.enter_context(slurm())
        for number in range(num_trials):
            fault = list(faults)[number % len(faults)]
            found = trial(bench, executor, faults[fault], prefix)
            if found["hit"] is not None:  # else the run was over before it happened
                yield {"fault": fault, **found}


def table() -> list[dict[str, Any]]:
    """Make the table of all trials so far."""
    found = [json.loads(line) for line in LINES.read_text().splitlines()]
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for one in found:
        groups.setdefault((one["executor"], one["fault"]), []).append(one)
    return [_row(executor, fault, group) for (executor, fault), group in groups.items()] + [_row("all", "", found)]


def _row(executor: str, fault: str, group: list[dict[str, Any]]) -> dict[str, Any]:
    seconds = [one["first_receipt_s"] for one in group if one["first_receipt_s"] is not None]
    twice = [one["twice_per_worker"] for one in group if one["twice_per_worker"] is not None]
    return {
        "executor": executor,
        "fault": fault,
        "trials": len(group),
        "recovered": sum(one["recovered"] for one in group),
        "silent losses": sum(one["silent_loss"] for one in group),
        "first receipt s, median": statistics.median(seconds) if seconds else None,
        "maximum": max(seconds, default=None),
        "done twice per worker, maximum": max(twice, default=None),
    }


def main() -> None:
    """Run the trials and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=20, help="for each executor")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=["points", *FAULTS], help="one executor")
    parser.add_argument("--fresh", action="store_true", help="forget the trials so far")
    options = parser.parse_args()
    if options.fresh:
        LINES.unlink(missing_ok=True)
    for name in [options.only] if options.only else ["points", *FAULTS]:
        directory = Path(tempfile.mkdtemp())
        attempt = try_points if name == "points" else partial(try_executor, name)
        for one in attempt(directory, options.trials, options.seed):
            line = json.dumps({"executor": name, "seed": options.seed, **one})
            print(line, flush=True)
            with LINES.open("a") as lines:
                lines.write(line + "\n")
        shutil.rmtree(directory)
    write_results("crash_trials", "Crash trials", __doc__ or "", table())


if __name__ == "__main__":
    main()
