"""Runs one stage: many independent tasks, on datatrove's executors, with progress.

```
              local                        ray                            slurm (see `slurm`)
supervisor    a thread of this process     a task on some node             an element of a job array
its tasks     the next one that is left    every workers-th               every workers-th
child         does them, one by one        does them, one by one          does them, one by one      (see `supervise`)
```

A stage says how many tasks it has and how to do one; a task leaves a receipt (see `run`). `EachTask` is the datatrove step that
does a rank's share of them. Datatrove's own completion markers are not used: they say that a task ended, not that its output is
whole. Its Ray executor is not used either: an actor that is killed before it has said where it runs leaves it waiting for ever
(measured, 0.10.1).
"""

import contextlib
import io
import logging
import multiprocessing
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any, Final

from datatrove.executor.local import LocalPipelineExecutor
from datatrove.pipeline.base import PipelineStep
from threadpoolctl import threadpool_limits

from lmsplit.manifests.errors import ConfigurationError, ConflictError, InputError, LmsplitError
from lmsplit.manifests.executor import Executor, memory_mib
from lmsplit.manifests.ray_cluster import connect_ray
from lmsplit.partition.progress import Progress
from lmsplit.partition.supervise import Stage, shares, supervise

logger = logging.getLogger(__name__)

_RETRIES: Final = 3
"""Times that Ray starts a rank again whose process or node was lost; tasks with a receipt are not done again."""
_BY_EXIT_CODE = {kind.exit_code: kind for kind in (LmsplitError, ConfigurationError, InputError, ConflictError)}


class EachTask(PipelineStep):
    """The datatrove step that does every task of a rank which has no receipt yet.

    Args:
        stage: the stage.
        num_threads: cores that a rank has.
    """

    name = "lmsplit"
    type = "stage"

    def __init__(self, stage: Stage, num_threads: int = 1) -> None:
        super().__init__()
        self.stage = stage
        self.num_threads = num_threads

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Any]:
        """Do tasks rank, rank + world_size, …; yields nothing, since the stages hand over files, not documents."""
        del data
        tasks = shares(self.stage.num_tasks, rank, world_size, self.stage.run.done(self.stage.name))
        if tasks:
            supervise(self.stage, tasks, num_threads=self.num_threads)
        yield from ()


class Together(PipelineStep):
    """The datatrove step that does a stage on this machine: so many supervisors, each of which takes the next task left.

    Args:
        stage: the stage.
        workers: supervisors; 0: none, the tasks are done in this process.
        gpus: GPUs to share out among them, one each.
    """

    name = "lmsplit"
    type = "stage"

    def __init__(self, stage: Stage, workers: int, gpus: Sequence[str]) -> None:
        super().__init__()
        self.stage = stage
        self._workers = workers
        self._gpus = gpus

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Any]:
        """Do every task that has no receipt yet; after an error no other task begins. Yields nothing."""
        del data, rank, world_size
        done = self.stage.run.done(self.stage.name)
        left = [task for task in range(self.stage.num_tasks) if task not in done]
        if self._workers:
            self._supervise(left)
        else:
            with threadpool_limits(1):
                for task in left:
                    self.stage.do(task)
        yield from ()

    def _supervise(self, left: Sequence[int]) -> None:
        stop, lock, tasks = threading.Event(), threading.Lock(), iter(left)
        num_threads = max(1, (os.cpu_count() or 1) // self._workers)

        def next_tasks() -> Iterator[int]:
            """Yield tasks that no other supervisor has."""
            while not stop.is_set():
                with lock:
                    task = next(tasks, None)
                if task is None:
                    return
                yield task

        def worker(number: int) -> None:
            """Supervise one child."""
            gpu = self._gpus[number] if self._gpus else None
            supervise(self.stage, next_tasks(), gpu=gpu, num_threads=num_threads, stop=stop)

        with ThreadPoolExecutor(self._workers) as threads:
            try:
                for ended in as_completed([threads.submit(worker, number) for number in range(self._workers)]):
                    ended.result()
            except LmsplitError:  # others may yet end the tasks that they are at
                stop.set()
                raise
            except BaseException:
                stop.set()
                for child in multiprocessing.active_children():
                    child.kill()
                raise


def run_stage(stage: Stage, executor: Executor, gpus: Sequence[str] = ()) -> None:
    """Do what is left of a stage, on this machine or on Ray.

    Args:
        stage: the stage; one without tasks is passed over.
        executor: what runs it.
        gpus: where the stage computes on GPUs of this machine, those to use: one process each, whatever `workers` says.

    Raises:
        LmsplitError: a task failed, or killed its process again and again; finished tasks keep their receipts.
    """
    if not stage.num_tasks:
        return
    num_left = stage.num_tasks - len(stage.run.done(stage.name))
    with Progress(stage.run, stage.name, stage.num_tasks):
        if num_left and executor.kind == "ray":
            _run_on_ray(stage, executor, min(executor.workers, num_left))
        elif num_left:
            workers = min(len(gpus) or executor.workers, num_left)
            step = Together(stage, workers, gpus)
            local = LocalPipelineExecutor([step], logging_dir=stage.run.where(f"logs/{stage.name}"), skip_completed=False)
            with contextlib.redirect_stderr(io.StringIO()):  # datatrove prints a failing task's local variables
                local._run_for_rank(0, local_rank=1)  # its pool would wait for a killed worker for ever
    check_done(stage)


def check_done(stage: Stage) -> None:
    """Check that every task of a stage left its receipt.

    Raises:
        LmsplitError: one did not; with the words that it left, if it could.
    """
    missing = sorted(set(range(stage.num_tasks)) - stage.run.done(stage.name).keys())
    if not missing:
        return
    said = stage.run.failures(stage.name)
    if not said:
        raise LmsplitError(f"stage {stage.name}: {len(missing)} of {stage.num_tasks} tasks left no receipt: run it again")
    facts = next(iter(said.values()))
    kind = _BY_EXIT_CODE.get(facts["exit_code"], LmsplitError)
    where = (
        "" if facts["traceback"] is None else f" (on {facts['host']}; traceback in {stage.run.where('failures/' + stage.name)})"
    )
    raise kind(f"{facts['error']}{where}")


def _run_on_ray(stage: Stage, executor: Executor, ranks: int) -> None:
    """Run ranks as Ray tasks, again where a process or node is lost; what failed is found by the receipts that are missing."""
    ray = connect_ray(executor)
    task = ray.remote(_do_rank).options(
        num_cpus=executor.cpus,
        num_gpus=executor.gpus,
        memory=memory_mib(executor.memory) * executor.cpus * 2**20,
        max_retries=_RETRIES,
    )
    started = [task.remote(EachTask(stage, executor.cpus), rank, ranks) for rank in range(ranks)]
    try:
        for each in started:
            try:
                ray.get(each)
            except ray.exceptions.RayError as error:
                logger.warning("a Ray task of stage %s ended with %s", stage.name, str(error).strip().rpartition("\n")[2])
    except BaseException:  # Ctrl-C: a cluster of its own ends with this process, another one would go on
        for each in ray.wait(started, num_returns=len(started), timeout=0)[1]:  # cancelling one that ends just now aborts Ray
            ray.cancel(each, force=True)
        raise


def _do_rank(step: EachTask, rank: int, num_ranks: int) -> None:
    for _ in step.run(rank=rank, world_size=num_ranks):
        pass


def visible_gpus() -> tuple[str, ...]:
    """Return the GPUs that this process may use, as `CUDA_VISIBLE_DEVICES` names them."""
    import torch

    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    return tuple(given.split(",")) if given else tuple(map(str, range(torch.cuda.device_count())))
