"""Runs one stage: many independent tasks, on datatrove's executor, with progress.

A stage says how many tasks it has and how to do one; a task leaves a receipt (see `run`). `EachTask` is the datatrove step
that does a rank's share of them, `LocalExecutor` runs the ranks on this machine, `run_stage` puts them together.

Datatrove's own completion markers are not used: they say that a task ended, not that its output is whole (measured, 0.10.1).
"""

import contextlib
import io
import multiprocessing
import multiprocessing.connection
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Protocol

from datatrove.executor.local import LocalPipelineExecutor
from datatrove.pipeline.base import PipelineStep
from datatrove.utils.stats import PipelineStats
from threadpoolctl import threadpool_limits

from lmsplit.manifests.errors import LmsplitError
from lmsplit.partition.progress import Progress
from lmsplit.partition.run import Run


class Stage(Protocol):
    """Work cut into tasks that need nothing of each other."""

    @property
    def name(self) -> str:
        """The stage's name, and its folder in the run."""
        ...

    @property
    def run(self) -> Run:
        """The run it belongs to."""
        ...

    @property
    def num_tasks(self) -> int:
        """How many tasks it has; a function of the plan alone, never of the workers."""
        ...

    def do(self, task: int) -> None:
        """Do one task and leave its receipt; doing it twice is harmless."""
        ...


class EachTask(PipelineStep):
    """The datatrove step that does every task of a rank which has no receipt yet."""

    name = "lmsplit"
    type = "stage"

    def __init__(self, stage: Stage) -> None:
        super().__init__()
        self.stage = stage

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Any]:
        """Do tasks rank, rank + world_size, …; yields nothing, since the stages hand over files, not documents."""
        del data
        done = self.stage.run.done(self.stage.name)
        with threadpool_limits(1):  # one thread a worker: the cores are shared out among the workers
            for task in range(rank, self.stage.num_tasks, world_size):
                if task not in done:
                    self.stage.do(task)
        yield from ()


class LocalExecutor(LocalPipelineExecutor):
    """Datatrove's local executor on a pool that notices a killed worker; datatrove's waits for it for ever."""

    gpus: Sequence[str] = ()
    """GPUs to share out among the workers, one each."""

    def run(self) -> None:
        """Run every rank.

        Raises:
            LmsplitError: a worker was killed. Any error of a task is raised as it is.
        """
        ranks = range(self.tasks)
        if self.workers == 1:
            for rank in ranks:
                self._run_quietly(rank)
            return
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["lmsplit.partition.pipeline"])
        begun = context.Value("i", 0)
        setting = (begun, tuple(self.gpus), max(1, (os.cpu_count() or 1) // self.workers))
        pool = ProcessPoolExecutor(self.workers, mp_context=context, initializer=_begin, initargs=setting)
        try:
            for future in as_completed([pool.submit(self._run_quietly, rank) for rank in ranks]):
                future.result()
        except BrokenProcessPool as error:
            raise LmsplitError(
                "a worker process was killed (out of memory?): nothing is lost, run the same command again, "
                "with fewer executor.workers if memory is short"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)

    def _run_quietly(self, rank: int) -> PipelineStats:
        # Datatrove prints a failing task's local variables; the error itself reaches the user by being raised.
        with contextlib.redirect_stderr(io.StringIO()):
            return self._run_for_rank(rank, local_rank=1)


def _begin(begun: Any, gpus: Sequence[str], num_threads: int) -> None:
    """Begin a worker: it ends with the command, has a GPU to itself, and its share of the cores."""
    _end_with_parent()
    with begun.get_lock():
        number, begun.value = begun.value, begun.value + 1
    if gpus:  # before torch is imported, which looks once
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus[number % len(gpus)]
    os.environ["RAYON_NUM_THREADS"] = os.environ["POLARS_MAX_THREADS"] = str(num_threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "true" if num_threads > 1 else "false"


def visible_gpus() -> tuple[str, ...]:
    """Return the GPUs that this process may use, as `CUDA_VISIBLE_DEVICES` names them."""
    import torch

    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    return tuple(given.split(",")) if given else tuple(map(str, range(torch.cuda.device_count())))


def _end_with_parent() -> None:
    """End this worker when the command is killed: it would wait for ever for work, and hold the caller's pipes open."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "a worker has a parent"

    def watch() -> None:
        """Wait until the command is gone."""
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def run_stage(stage: Stage, workers: int, gpus: Sequence[str] = ()) -> None:
    """Do what is left of a stage.

    Args:
        stage: the stage; one without tasks is passed over.
        workers: processes at a time.
        gpus: where the stage computes on GPUs, those to use: one process each, whatever `workers` says.

    Raises:
        LmsplitError: a task failed, or a worker was killed; finished tasks keep their receipts.
    """
    if not stage.num_tasks:
        return
    num_left = stage.num_tasks - len(stage.run.done(stage.name))
    with Progress(stage.run, stage.name, stage.num_tasks):
        if num_left:
            workers = min(len(gpus) or workers, num_left)
            # Several ranks a worker even out units of unequal cost; a rank costs datatrove a log file.
            ranks = min(stage.num_tasks, workers if workers == 1 else 8 * workers)
            executor = LocalExecutor(
                [EachTask(stage)],
                tasks=ranks,
                workers=workers,
                logging_dir=str(stage.run.folder(f"logs/{stage.name}")),
                skip_completed=False,
            )
            executor.gpus = gpus
            executor.run()
    missing = stage.num_tasks - len(stage.run.done(stage.name))
    if missing:
        raise LmsplitError(f"stage {stage.name}: {missing} of {stage.num_tasks} tasks left no receipt: run it again")
