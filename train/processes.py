"""Several processes that train one model together, started by torchrun or accelerate: who does what, and who waits.

The main process makes what all need (tokenizer, packs, the run's directory) and writes what is kept; the others wait for it.
Where there is one process, nothing here costs anything. This does *not* start processes: see `experts` and the launchers.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate import PartialState

from lmsplit.train.directory import partial_directory, whole_directory


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
    """Wait until every process has come here."""
    if num_processes() > 1:
        PartialState(cpu=not torch.accelerator.is_available()).wait_for_everyone()


@contextmanager
def main_first() -> Iterator[None]:
    """Let the main process run the block before the others do."""
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
