"""Does tasks in a process of their own, and outlives it: one that runs out of memory takes nothing else with it.

```
supervisor ──task──► child ──done, or its error──► supervisor ──next task──► …
                       └─ killed, or out of memory: a new child tries again, three times; then the task is set apart and named
```

A task's own error ends the work at once. A child ends with its supervisor. This does *not* decide which tasks there are, nor
where they run. Cost: a process a supervisor, forked from a server that has the imports already.
"""

import logging
import multiprocessing
import multiprocessing.connection
import os
import signal
import socket
import threading
import traceback
from collections.abc import Iterable
from typing import Any, Final, Protocol

from threadpoolctl import threadpool_limits

from lmsplit.manifests.errors import LmsplitError
from lmsplit.partition.planning import describe_task
from lmsplit.partition.run import Run

TRIES: Final = 3
_log = logging.getLogger(__name__)


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


class _Killed(Exception):  # noqa: N818 - what became of a child, never an error of the program
    """A child ended before its task did; the text says how."""


class _Child:
    """A process that does one task after the other.

    Args:
        stage: whose tasks.
        gpu: the GPU that it has to itself; None: as its supervisor.
        num_threads: cores that it may use.
    """

    def __init__(self, stage: Stage, gpu: str | None, num_threads: int) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["lmsplit.partition.pipeline"])
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(stage, theirs, gpu, num_threads), daemon=True)
        self._process.start()
        theirs.close()

    def do(self, task: int) -> None:
        """Do one task.

        Raises:
            _Killed: the process was killed, or had no memory left.
        """
        try:
            self._connection.send(task)
            error = self._connection.recv()
        except (EOFError, OSError):
            self._process.join()
            raise _Killed(_how(self._process.exitcode)) from None
        if isinstance(error, MemoryError):
            raise _Killed("out of memory")
        if error is not None:
            raise error

    def end(self, *, kill: bool = False) -> None:
        """End the process: after its task, or at once."""
        if kill:
            self._process.kill()
        self._connection.close()
        self._process.join()
        self._process.close()


def _how(exit_code: int | None) -> str:
    if exit_code == -signal.SIGKILL:
        return "killed (out of memory?)"
    return f"ended by signal {-exit_code}" if exit_code and exit_code < 0 else f"ended with {exit_code}"


def _serve(stage: Stage, connection: Any, gpu: str | None, num_threads: int) -> None:
    """Do the tasks that come; the child's whole life."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback: the supervisor hears of an interrupt too
    _end_with_parent()
    if gpu is not None:  # before torch is imported, which looks once
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    os.environ["RAYON_NUM_THREADS"] = os.environ["POLARS_MAX_THREADS"] = str(num_threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "true" if num_threads > 1 else "false"
    with threadpool_limits(1):  # one thread a worker: the cores are shared out among the workers
        while True:
            try:
                task = connection.recv()
            except EOFError:
                return
            error = attempt(stage, task)
            try:
                connection.send(error)
            except Exception:  # one that cannot be pickled
                connection.send(LmsplitError(f"{type(error).__name__}: {error}"))


def attempt(stage: Stage, task: int) -> Exception | None:
    """Do a task; return its error, which is left in the run as well, for whoever watches it from elsewhere."""
    try:
        stage.do(task)
    except MemoryError:
        return MemoryError()
    except Exception as error:
        _leave_word(stage, task, error)
        return error
    return None


def _leave_word(stage: Stage, task: int, error: Exception) -> None:
    expected = isinstance(error, LmsplitError)
    facts = {
        "task": task,
        "exit_code": error.exit_code if isinstance(error, LmsplitError) else 1,
        "error": str(error) if expected else f"{type(error).__name__}: {error}",
        "traceback": None if expected else "".join(traceback.format_exception(error)),  # no values of variables
        "host": socket.gethostname(),
    }
    try:
        stage.run.fail(stage.name, task, facts)
    except Exception:  # the disk is full, the store is away: the error itself says so
        _log.debug("no word of the failure could be left", exc_info=True)


def _end_with_parent() -> None:
    """End this process when its supervisor is killed: it would wait for ever for work, and hold the caller's pipes open."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "a child has a parent"

    def watch() -> None:
        """Wait until the supervisor is gone."""
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def supervise(
    stage: Stage,
    tasks: Iterable[int],
    *,
    gpu: str | None = None,
    num_threads: int = 1,
    stop: threading.Event | None = None,
) -> None:
    """Do tasks one after the other in a child process.

    Args:
        stage: whose tasks.
        tasks: their numbers; the next one is taken when the one before is done.
        gpu: the GPU that the child has to itself.
        num_threads: cores that the child may use.
        stop: set when a killed child is not to be replaced, since all ends.

    Raises:
        LmsplitError: a task killed its process three times; all others are done. A task's own error is raised as it is, at once.
    """
    apart: dict[int, str] = {}
    child: _Child | None = None
    killed = True
    try:
        for task in tasks:
            for number in range(1, TRIES + 1):
                child = child or _Child(stage, gpu, num_threads)
                try:
                    child.do(task)
                    break
                except _Killed as how:
                    child.end(kill=True)
                    child = None
                    if stop is not None and stop.is_set():
                        return
                    _log.warning("stage %s, task %d: its process was %s, try %d of %d", stage.name, task, how, number, TRIES)
                    if number == TRIES:
                        apart[task] = str(how)
        killed = False
    finally:
        if child is not None:
            child.end(kill=killed)
    if apart:
        raise LmsplitError(_set_apart(stage, apart))


def _set_apart(stage: Stage, apart: dict[int, str]) -> str:
    named = [f"{describe_task(stage.run, stage.name, task)}: {how}" for task, how in sorted(apart.items())]
    for task, text in zip(sorted(apart), named, strict=True):
        _leave_word(stage, task, LmsplitError(text))
    return (
        f"stage {stage.name}: {len(apart)} tasks were tried {TRIES} times, each in a process of its own, and set apart: "
        f"{'; '.join(named)}. The others are done and kept: give more memory or fewer executor.workers, or leave the file out"
    )


def shares(num_tasks: int, rank: int, world_size: int, done: Iterable[int]) -> list[int]:
    """Return the tasks of a rank that are not done: those at rank, rank + world_size and so on.

    >>> shares(7, 1, 3, done=[4])
    [1]
    """
    finished = set(done)
    return [task for task in range(rank, num_tasks, world_size) if task not in finished]
