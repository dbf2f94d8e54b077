"""Trains in processes of their own: several experts at a time, or one model by several processes together.

Each is the command `lmsplit train <output>/config.yaml --domain D`, under torchrun where a model has several processes: here, or
as a Slurm job or Ray task (see `launchers`). What it says goes to `<output>/logs/<run>.log`. Here GPUs are shared out, so many to
each model as it has processes; without GPUs each process has its share of the cores. A killed process takes no other with it.

This does *not* wait for anything but its processes: what they did is read from what they left.
"""

import json
import os
import queue
import re
import sys
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Final

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from lmsplit.manifests.errors import LmsplitError
from lmsplit.train.campaign import Campaign
from lmsplit.train.launchers import run_here, run_on_ray, run_on_slurm

_LINE_EVERY_S: Final = 5.0
_LAST_BYTES: Final = 100_000
_RAISED: Final = re.compile(r"(?:\[rank\d+\]: )?((?:\w+\.)*\w*(?:Error|Exception): .*)")


class Workers:
    """The processes of one campaign.

    Args:
        campaign: whose resolved configuration is on disk before the first process starts.
    """

    def __init__(self, campaign: Campaign) -> None:
        executor = campaign.configuration.executor
        self._campaign = campaign
        self._processes = executor.processes
        self._workers = executor.workers
        self._slots: queue.SimpleQueue[int] = queue.SimpleQueue()
        for slot in range(executor.workers):
            self._slots.put(slot)

    def train(self, options: Sequence[str], name: str) -> None:
        """Train one model.

        Args:
            options: which: `--seed-model`, `--domain` and its name, or `--dense` and what it matches.
            name: the run's, for its log.

        Raises:
            LmsplitError: its process failed, or was killed.
        """
        self._campaign.write_configuration()
        log = (self._campaign.output / "logs" / f"{name}.log").absolute()
        log.parent.mkdir(parents=True, exist_ok=True)
        slot = self._slots.get()
        try:
            code = self._run(options, name, slot, log)
        finally:
            self._slots.put(slot)
        if code:
            raise LmsplitError(f"{_last_word(log, code)} (see {log})")

    def train_each(self, names: Sequence[str]) -> dict[str, str]:
        """Train the experts of these domains, as many at a time as the configuration says, in this order.

        Returns:
            Why each one failed that did.
        """
        pool = ThreadPoolExecutor(self._workers)
        running = {name: pool.submit(self.train, ["--domain", name], name) for name in names}
        try:
            _watch(list(running.values()))
        finally:
            pool.shutdown(cancel_futures=True)  # after an interrupt, no other expert begins
        errors = {name: future.exception() for name, future in running.items()}
        for error in errors.values():
            if error is not None and not isinstance(error, LmsplitError):
                raise error
        return {name: str(error) for name, error in errors.items() if error is not None}

    def _run(self, options: Sequence[str], name: str, slot: int, log: Path) -> int:
        executor = self._campaign.configuration.executor
        command = ["lmsplit.manifests.cli", "train", str(self._campaign.output.absolute() / "config.yaml"), *options]
        launcher = ["torch.distributed.run", "--standalone", f"--nproc_per_node={self._processes}", "-m"]
        whole = [sys.executable, "-m", *(launcher if self._processes > 1 else []), *command]
        if executor.kind == "local":
            return run_here(whole, log, self._environment(slot))
        whole += ["--set", f"executor={{kind: local, processes: {self._processes}}}"]
        if executor.kind == "slurm":
            return run_on_slurm(whole, log, executor.resources("seed_model" if "--seed-model" in options else "expert"), name)
        return run_on_ray(whole, log, executor)

    def _environment(self, slot: int) -> dict[str, str]:
        environment = dict(os.environ)
        devices = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
        devices = devices or [str(number) for number in range(torch.cuda.device_count())]
        mine = devices[slot * self._processes : (slot + 1) * self._processes]
        if mine:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(mine)
        elif devices:
            raise LmsplitError(
                f"executor asks for {self._workers} × {self._processes} GPUs, there are {len(devices)}: lower one of them"
            )
        else:
            share = max(1, (os.cpu_count() or 1) // (self._workers * self._processes))
            environment.setdefault("OMP_NUM_THREADS", str(share))
        return environment


def _watch(running: Sequence["Future[None]"]) -> None:
    """Show how many are done, until all are."""
    stream, began = sys.stderr, time.monotonic()
    columns = (TextColumn("experts"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(file=stream), disable=not stream.isatty()) as bar:
        task = bar.add_task("experts", total=len(running))
        left = set(running)
        while left:
            _, left = wait(left, timeout=_LINE_EVERY_S)
            done = len(running) - len(left)
            bar.update(task, completed=done)
            if not stream.isatty():
                line = {"event": "progress", "stage": "experts", "done": done, "of": len(running)}
                stream.write(json.dumps(line | {"elapsed_s": round(time.monotonic() - began, 1)}) + "\n")
                stream.flush()


def _last_word(log: Path, code: int) -> str:
    """Return why a process failed, by its own last error line."""
    with log.open("rb") as stream:
        stream.seek(max(0, log.stat().st_size - _LAST_BYTES))
        lines = stream.read().decode(errors="replace").splitlines()
    said = [line.partition("lmsplit: ")[2] for line in lines if "lmsplit: " in line]
    raised = [found[1] for line in lines if (found := _RAISED.match(line)) and "ChildFailedError" not in line]
    return (said[-1:] + raised[:1] + [f"the process ended with {code}" + (" (killed: out of memory?)" if code < 0 else "")])[0]
