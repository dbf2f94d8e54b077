"""Small stages for the tests of the engine; in a module of their own, so that worker processes can import them."""

import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from lmsplit.manifests.errors import InputError
from lmsplit.partition.run import Run


@dataclass(frozen=True)
class Counting:
    """Does nothing but leave receipts; each says which process did it."""

    run: Run
    num_tasks: int = 5
    name: str = "counting"

    def do(self, task: int) -> None:
        self.run.finish(self.name, task, {}, {"documents": 10, "pid": os.getpid()})


@dataclass(frozen=True)
class Failing(Counting):
    """Fails at task 3 as bad input would."""

    def do(self, task: int) -> None:
        if task == 3:
            raise InputError("record 17 is bad")
        super().do(task)


@dataclass(frozen=True)
class Forgetful(Counting):
    """Leaves no receipt of task 2."""

    def do(self, task: int) -> None:
        if task != 2:
            super().do(task)


@dataclass(frozen=True)
class Dying(Counting):
    """Is killed at task 1, as by a kernel short of memory."""

    def do(self, task: int) -> None:
        if task == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        super().do(task)


@dataclass(frozen=True)
class DyingOnce(Counting):
    """Is killed at task 1, the first two times."""

    def do(self, task: int) -> None:
        tries = Path(self.run.where("tries"))
        tries.mkdir(parents=True, exist_ok=True)
        if task == 1 and len(list(tries.iterdir())) < 2:
            (tries / str(os.getpid())).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        super().do(task)


@dataclass(frozen=True)
class Hungry(Counting):
    """Has no memory for task 2."""

    def do(self, task: int) -> None:
        if task == 2:
            raise MemoryError
        super().do(task)


@dataclass(frozen=True)
class Surprised(Counting):
    """Fails at task 0 in a way that nobody thought of, with a secret in a local variable."""

    def do(self, task: int) -> None:
        secret = "hunter2"  # noqa: F841
        if task == 0:
            raise KeyError("nobody")
        super().do(task)


@dataclass(frozen=True)
class Slow(Counting):
    """Takes its time."""

    def do(self, task: int) -> None:
        time.sleep(0.4)
        super().do(task)


@dataclass(frozen=True)
class Seeing(Counting):
    """Each receipt says what its process sees; no task ends before `num_processes` processes are at work."""

    num_processes: int = 1

    def do(self, task: int) -> None:
        processes = Path(self.run.where("processes"))
        processes.mkdir(parents=True, exist_ok=True)
        (processes / str(os.getpid())).touch()
        deadline = time.monotonic() + 60
        while len(list(processes.iterdir())) < self.num_processes:
            assert time.monotonic() < deadline, "too few processes"
            time.sleep(0.01)
        environment = {name: os.environ.get(name) for name in ("CUDA_VISIBLE_DEVICES", "RAYON_NUM_THREADS")}
        self.run.finish(self.name, task, {}, {"pid": os.getpid(), "torch": "torch" in sys.modules} | environment)
