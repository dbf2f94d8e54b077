"""Shows how far a run is: a bar on a terminal, one JSON line every few seconds otherwise, always on standard error.

Everything shown is read from the receipts, so it is the same whoever asks: this process, or `lmsplit status` elsewhere.
"""

import json
import sys
import threading
import time
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from lmsplit.partition.run import Run

_POLL_S = 0.25
_POLL_REMOTE_S = 2.0
"""A listing of an object store is a request that costs money."""
_LINE_EVERY_S = 5.0


class Progress:
    """Watches a stage's receipts from a thread while the stage runs.

    Args:
        run: the run.
        stage: the stage's name.
        num_tasks: how many tasks it has.
    """

    def __init__(self, run: Run, stage: str, num_tasks: int) -> None:
        self._run = run
        self._stage = stage
        self._num_tasks = num_tasks
        self._seen: set[int] = set()
        self._documents = 0
        self._stream = sys.stderr  # kept: a stage may redirect it while it runs
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._started = time.monotonic()
        self._bar, self._task = _bar(stage, num_tasks)
        self._resumed = self._resumed_tasks = 0

    def __enter__(self) -> Self:
        self._look()
        self._resumed = self._documents
        self._resumed_tasks = len(self._seen)
        self._bar.start()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()
        self._look()
        self._show(last=True)
        self._bar.stop()

    def _watch(self) -> None:
        last_line = self._started
        while not self._stop.wait(_POLL_S if self._run.store.is_local else _POLL_REMOTE_S):
            self._look()
            if time.monotonic() - last_line >= _LINE_EVERY_S:
                last_line = time.monotonic()
                self._show(last=False)
            self._update_bar()

    def _look(self) -> None:
        for task in self._run.done(self._stage).keys() - self._seen:
            self._seen.add(task)
            self._documents += int(self._run.receipt(self._stage, task).get("documents", 0))

    def _rate(self) -> float:
        return (self._documents - self._resumed) / max(time.monotonic() - self._started, 1e-9)

    def _update_bar(self) -> None:
        self._bar.update(self._task, completed=len(self._seen), rate=f"{self._rate():,.0f} documents/s")

    def _show(self, *, last: bool) -> None:
        self._update_bar()
        if self._stream.isatty():
            return
        elapsed = time.monotonic() - self._started
        done = len(self._seen)
        new = done - self._resumed_tasks
        line: dict[str, Any] = {
            "event": "stage_done" if last and done == self._num_tasks else "progress",
            "stage": self._stage,
            "tasks_done": done,
            "tasks": self._num_tasks,
            "documents": self._documents,
            "documents_per_s": round(self._rate(), 1),
            "elapsed_s": round(elapsed, 1),
            "remaining_s": round(elapsed * (self._num_tasks - done) / new, 1) if new else None,
        }
        self._stream.write(json.dumps(line) + "\n")
        self._stream.flush()


def _bar(stage: str, num_tasks: int) -> tuple[Bar, TaskID]:
    bar = Bar(
        TextColumn("{task.description:>8}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(file=sys.stderr),
        disable=not sys.stderr.isatty(),
    )
    return bar, bar.add_task(stage, total=num_tasks, rate="")
