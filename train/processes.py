"""Several processes that train one model together, started by torchrun or accelerate: who does what, and who waits.

The main process makes what all need (tokenizer, packs, the run's directory) and writes what is kept; the others wait for it.
Where there is one process, nothing here costs anything. This does *not* start processes: see `experts` and the launchers.
"""

import atexit
import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any, Final

import torch
from accelerate import PartialState
from torch import distributed

from lmsplit.train.directory import partial_directory, whole_directory

_PATIENCE: Final = timedelta(days=7)
"""How long the others wait for the main process: packing a large corpus takes longer than the half hour of a collective."""


def num_processes() -> int:
    """Return how many processes the launcher started; 1 without one."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_launched() -> bool:
    """Whether a launcher started this process, be it alone."""
    return "WORLD_SIZE" in os.environ


def is_main() -> bool:
    """Whether this process is the one that writes."""
    return int(os.environ.get("RANK", "0")) == 0


def wait_for_all() -> None:
    """Wait until every process has come here, for days if it must be."""
    if num_processes() > 1:
        distributed.barrier(group=_patient_group())


@contextmanager
def main_first() -> Iterator[None]:
    """Let the main process run the block before the others do."""
    if num_processes() > 1:
        _patient_group()  # made by all at the same time: making it is not patient
    if not is_main():
        wait_for_all()
    yield
    if is_main():
        wait_for_all()


@contextmanager
def run_directory(target: Path) -> Iterator[Path]:
    """Give every process the directory that a run is built in; the main one publishes it when its block ends.

    What an earlier attempt left in it is kept.

    Args:
        target: where the directory shall appear.

    Raises:
        ConflictError: another command is building it now.
    """
    if is_main():
        with whole_directory(target, resume=True) as partial:
            yield partial
    else:
        yield partial_directory(target)


@cache
def leave_at_exit() -> None:
    """Leave the process group when the interpreter ends, after a success.

    Threads of gloo that are still there when the interpreter is taken down abort the process now and then ("terminate called
    without an active exception"), and the launcher then calls a finished run failed. Whoever holds the group besides torch has to
    let go of it before. After an error the group is left as it is: leaving it could wait for a process that will never answer.
    """
    atexit.register(_leave)


def _leave() -> None:
    if distributed.is_initialized() and getattr(sys, "last_value", None) is None:
        _patient_group.cache_clear()
        distributed.destroy_process_group()
        gc.collect()


@cache
def _patient_group() -> Any:
    """Return the group that waits, made on the first call; it does not change how long a collective of the training may take."""
    PartialState(cpu=not torch.accelerator.is_available())
    leave_at_exit()
    return distributed.new_group(timeout=_PATIENCE, backend="gloo")
