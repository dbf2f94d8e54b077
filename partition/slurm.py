"""A run on a Slurm cluster: every stage a job array, chained by dependencies, all of them submitted at once.

```
scan ──afterok──► rescan ──afterok──► settle ──…──► ids ──afterok──► publish       (publish: only when nobody waits for the run)
  └─ ranks 0 … R-1, each `python -m lmsplit.partition.rank OUTPUT RUN STAGE R`: every R-th task of the stage
```

A stage has as many ranks as workers, and no more than tasks where their number is known when the jobs are submitted; elsewhere
each rank finds out from the receipts before it. A failed task fails its job, which takes those after it out of the queue. The
command that submitted them watches the receipts, and may be ended: the same command watches the same jobs again, and `lmsplit
status` reads the receipts from anywhere.

The jobs are datatrove's but for how they start: its pickled executor could hold credentials, ours is a command. Jobs inherit the
environment of the command that submits them, as Slurm has it; nothing of it is written by us.
"""

import json
import logging
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from datatrove.executor.slurm import SlurmPipelineExecutor
from datatrove.pipeline.base import PipelineStep

from lmsplit.manifests.commit import canonical
from lmsplit.manifests.errors import ConfigurationError, LmsplitError
from lmsplit.manifests.executor import Executor, memory_mib
from lmsplit.partition.engine import check_done
from lmsplit.partition.progress import Progress
from lmsplit.partition.run import Run
from lmsplit.partition.supervise import Stage

PUBLISH: Final = "publish"
_JOBS: Final = "slurm.json"
_POLL_S: Final = 1.0
_SETTLING_S: Final = 10.0
"""How long receipts may stay unseen after their job ended: a shared file system takes its time (assumption)."""
_PATIENCE_S: Final = 30.0
_log = logging.getLogger(__name__)


class RankJobs(SlurmPipelineExecutor):
    """Datatrove's Slurm executor for one stage: it submits the stage's array, and does a rank's share inside a job.

    Args:
        run: the run.
        stage: the stage's name.
        executor: what every stage gets, and this one instead.
        ranks: how many share the stage's tasks.
        pipeline: what a rank does; of no use where the array is submitted.
    """

    def __init__(self, run: Run, stage: str, executor: Executor, ranks: int, pipeline: Sequence[PipelineStep] = ()) -> None:
        given = executor.resources(stage)
        super().__init__(
            list(pipeline),
            tasks=ranks,
            time=given.time,
            partition=str(given.partition),
            cpus_per_task=given.cpus_per_task,
            gpus_per_task=given.gpus,
            workers=given.workers,
            job_name=f"lmsplit-{stage}-{run.run_id[:6]}",
            qos="",
            env_command=given.setup or "",
            sbatch_args={"mem-per-cpu": f"{memory_mib(given.mem_per_cpu)}M", "open-mode": "append", **given.sbatch},
            max_array_size=given.max_array_size,
            logging_dir=run.where(f"logs/{stage}"),
            skip_completed=False,
            slurm_logs_folder=str(log_folder(run, stage, executor)),
            with_srun=False,
        )
        self._command = [sys.executable, "-m", "lmsplit.partition.rank", run.output, run.run_id, stage, str(ranks)]
        self._environment = given.env

    def get_sbatch_args(self, max_array: int = 1) -> dict[str, str]:
        """Return datatrove's options, quoted: it writes them as they are."""
        return {
            name: shlex.quote(str(value)) if value != "" else "" for name, value in super().get_sbatch_args(max_array).items()
        }

    def launch(self, after: Sequence[str]) -> list[str]:
        """Submit the arrays.

        Args:
            after: ids of the jobs that must have succeeded before.

        Returns:
            The ids of the arrays; several where there are more ranks than one array takes.

        Raises:
            ConfigurationError: Slurm refuses them, or is not installed here.
        """
        with self.logging_dir.open("ranks_to_run.json", "w") as stream:
            json.dump(list(range(self.tasks)), stream)
        size = min(self.tasks, self.max_array_size)
        script = self.get_launch_file_contents(self.get_sbatch_args(size), f"exec {shlex.join(self._command)}")
        options = ["--parsable", "--export=ALL", "--kill-on-invalid-dep=yes"]
        options += [f"--dependency=afterok:{':'.join(after)}"] if after else []
        return [self._submit(script, options, offset) for offset in range(-(-self.tasks // size))]

    def _submit(self, script: str, options: Sequence[str], offset: int) -> str:
        with tempfile.NamedTemporaryFile("w", suffix=".sh") as file:
            file.write(script)
            file.flush()
            environment = os.environ | self._environment | {"RUN_OFFSET": str(offset)}
            try:
                done = subprocess.run(
                    ["sbatch", *options, file.name],  # noqa: S607
                    capture_output=True,
                    text=True,
                    check=False,
                    env=environment,
                )
            except FileNotFoundError as error:
                raise ConfigurationError(
                    "executor.kind is slurm, and there is no sbatch here: run this on a login node"
                ) from error
        if done.returncode:
            raise ConfigurationError(
                f"Slurm refused {self.job_name}: {' '.join(done.stderr.split())}: mend executor in the configuration"
            )
        return done.stdout.strip().partition(";")[0]


def log_folder(run: Run, stage: str, executor: Executor) -> Path:
    """Return where Slurm writes what a stage's jobs say: beside the receipts, or for an object store in this directory."""
    if executor.logs is not None:
        return Path(executor.logs).absolute() / run.run_id / stage
    if run.store.is_local:
        return Path(run.where(f"logs/{stage}"))
    return Path("lmsplit-logs").absolute() / run.run_id / stage


class SlurmRun:
    """A run's jobs.

    Args:
        run: the run, planned.
        executor: its executor.
    """

    def __init__(self, run: Run, executor: Executor) -> None:
        self._run = run
        self._executor = executor

    def submit(self, stages: Sequence[Stage], *, publish: bool = False) -> dict[str, list[str]]:
        """Submit what is left of a run; what is in the queue already is left there.

        Args:
            stages: the run's stages in their order.
            publish: whether a last job publishes.

        Returns:
            Job ids by stage.

        Raises:
            ConfigurationError: Slurm refuses a job; the others are taken back.
        """
        jobs = self.jobs()
        if jobs and queued(jobs):
            _log.info("run %s is in the queue already: jobs %s", self._run.run_id, ", ".join(_ids(jobs)))
            return jobs
        jobs = {}
        after: list[str] = []
        ranks = {stage.name: self._ranks(stage) for stage in stages if not _is_done(stage)} | ({PUBLISH: 1} if publish else {})
        try:
            for name, number in ranks.items():
                after = RankJobs(self._run, name, self._executor, number).launch(after)
                jobs[name] = after
        except ConfigurationError:
            _cancel(jobs)
            raise
        self._run.note(_JOBS, canonical(jobs) + b"\n")
        return jobs

    def _ranks(self, stage: Stage) -> int:
        workers = self._executor.resources(stage.name).workers
        try:
            return max(1, min(workers, stage.num_tasks))
        except LmsplitError:  # it follows from receipts that are not there yet
            return workers

    def jobs(self) -> dict[str, list[str]]:
        """Return the ids of the jobs that were last submitted, by stage."""
        jobs: dict[str, list[str]] = json.loads(self._run.noted(_JOBS) or b"{}")
        return jobs

    def do(self, stages: Sequence[Stage]) -> None:
        """Submit what is left and watch it to its end.

        Raises:
            LmsplitError: a task failed; the jobs after it are taken out of the queue.
        """
        jobs = self.submit(stages)
        try:
            for stage in stages:
                if not _is_done(stage):
                    self._watch(stage, jobs)
        except KeyboardInterrupt:
            ids = " ".join(_ids(jobs))
            _log.warning("the jobs go on: the same command watches them again, scancel %s ends them", ids)
            raise

    def _watch(self, stage: Stage, jobs: dict[str, list[str]]) -> None:
        began, gone_since = time.monotonic(), None
        with Progress(self._run, stage.name, stage.num_tasks):
            while len(self._run.done(stage.name)) < stage.num_tasks:
                states = queued({stage.name: jobs.get(stage.name, [])})
                gone_since = (gone_since or time.monotonic()) if states is not None and not states else None
                if gone_since is not None and (self._run.failures(stage.name) or time.monotonic() - gone_since > _SETTLING_S):
                    break
                if states and set(states) == {"PENDING"} and time.monotonic() - began > _PATIENCE_S:
                    began = float("inf")
                    _log.warning("stage %s waits in Slurm's queue; squeue --me says why", stage.name)
                time.sleep(_POLL_S)
        try:
            check_done(stage)
        except LmsplitError as error:
            _cancel(jobs)
            where = log_folder(self._run, stage.name, self._executor)
            raise type(error)(f"{error} (Slurm: {_how_they_ended(jobs.get(stage.name, []))}; log: {where})") from error


def _is_done(stage: Stage) -> bool:
    """Whether a stage has all its receipts; one that follows from others that are not done is not."""
    try:
        return stage.num_tasks == len(stage.run.done(stage.name))
    except LmsplitError:
        return False


def _ids(jobs: dict[str, list[str]]) -> list[str]:
    return [job for ids in jobs.values() for job in ids]


def queued(jobs: dict[str, list[str]]) -> Counter[str] | None:
    """Return how many jobs of these are in Slurm's queue, by state; None where Slurm does not answer."""
    wanted = set(_ids(jobs))
    try:
        done = subprocess.run(
            ["squeue", "--me", "--array", "--noheader", "--format=%F %T"],  # noqa: S607
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    if done.returncode:
        return None
    pairs = (line.split() for line in done.stdout.splitlines() if line.strip())
    return Counter(state for job, state in pairs if job in wanted)


def _how_they_ended(ids: Sequence[str]) -> str:
    """Say how jobs ended, as far as Slurm still knows: `job 12: FAILED 3, COMPLETED 5`."""
    said = []
    for job in ids:
        done = subprocess.run(["scontrol", "--oneliner", "show", "job", job], capture_output=True, text=True, check=False)  # noqa: S607
        states = Counter(word.removeprefix("JobState=") for word in done.stdout.split() if word.startswith("JobState="))
        said.append(f"job {job}: {', '.join(f'{state} {number}' for state, number in sorted(states.items())) or 'forgotten'}")
    return "; ".join(said) or "no job"


def _cancel(jobs: dict[str, list[str]]) -> None:
    """Take jobs out of the queue."""
    if ids := _ids(jobs):
        subprocess.run(["scancel", *ids], capture_output=True, check=False)  # noqa: S607


def slurm_state(run: Run, executor: Executor) -> dict[str, Any] | None:
    """Return what Slurm has of a run: job ids and states by stage; None for a run that is not on Slurm."""
    if executor.kind != "slurm":
        return None
    jobs = SlurmRun(run, executor).jobs()
    return {name: {"jobs": ids, "states": dict(queued({name: ids}) or {})} for name, ids in jobs.items()}
