"""Shows how far training is, on standard error: a bar on a terminal, else one JSON line every few seconds.

The newest line also stands in `progress.json` in the run's unfinished directory, where `lmsplit status` finds it.

Reads no tensor and so never waits for the device; the loss shown is the one the trainer logs. This does *not*
replace a tracker: `sft.report_to` names those.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any, Final, TextIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lmsplit.train.directory import write_whole
from lmsplit.train.layout import PROGRESS

_LINE_EVERY_S: Final = 5.0


class ProgressCallback(TrainerCallback):
    """Reports one run's progress.

    Args:
        name: what is trained: `seed`, or the domain's name.
        num_tokens: tokens of the whole run.
        directory: receives `progress.json`, which `lmsplit status` reads.
        stream: standard error, unless a test asks for another.
    """

    def __init__(self, name: str, num_tokens: int, directory: Path, stream: TextIO | None = None) -> None:
        self._path = directory / PROGRESS
        self._name = name
        self._num_tokens = num_tokens
        self._stream = stream if stream is not None else sys.stderr
        self._bar, self._task = _bar(name, self._stream)
        self._loss: float | None = None
        self._started = self._last_line = 0.0
        self._first_step = 0

    def on_train_begin(self, _args: TrainingArguments, state: TrainerState, _control: TrainerControl, **_kwargs: Any) -> None:
        """Start the bar and the clock."""
        self._started = self._last_line = time.monotonic()
        self._first_step = state.global_step
        self._bar.update(self._task, total=state.max_steps)
        self._bar.start()

    def on_log(
        self,
        _args: TrainingArguments,
        _state: TrainerState,
        _control: TrainerControl,
        logs: dict[str, float] | None = None,
        **_kwargs: Any,
    ) -> None:
        """Remember the loss."""
        self._loss = (logs or {}).get("loss", self._loss)

    def on_step_end(self, _args: TrainingArguments, state: TrainerState, _control: TrainerControl, **_kwargs: Any) -> None:
        """Show the step."""
        loss = "" if self._loss is None else f"loss {self._loss:.3f}"
        rate = f"{self._tokens(state) / self._elapsed():,.0f} tokens/s"
        self._bar.update(self._task, completed=state.global_step, rate=rate, loss=loss)
        if time.monotonic() - self._last_line >= _LINE_EVERY_S:
            self._write_line("progress", state)

    def on_train_end(self, _args: TrainingArguments, state: TrainerState, _control: TrainerControl, **_kwargs: Any) -> None:
        """Stop the bar."""
        self._bar.stop()
        self._write_line("trained", state)

    def stop(self) -> None:
        """Stop the bar of a run that failed; harmless otherwise."""
        self._bar.stop()

    def _elapsed(self) -> float:
        return max(time.monotonic() - self._started, 1e-9)

    def _tokens(self, state: TrainerState) -> float:
        """Return the tokens since this attempt began."""
        steps = int(state.global_step) - self._first_step
        return self._num_tokens * steps / max(int(state.max_steps), 1)

    def _write_line(self, event: str, state: TrainerState) -> None:
        self._last_line = time.monotonic()
        done = max(state.global_step - self._first_step, 1)
        line = {
            "event": event,
            "run": self._name,
            "step": state.global_step,
            "steps": state.max_steps,
            "loss": self._loss,
            "tokens_per_s": round(self._tokens(state) / self._elapsed(), 1),
            "elapsed_s": round(self._elapsed(), 1),
            "remaining_s": round(self._elapsed() * (state.max_steps - state.global_step) / done, 1),
        }
        write_whole(self._path, json.dumps(line) + "\n")
        if not self._stream.isatty():
            self._stream.write(json.dumps(line) + "\n")
            self._stream.flush()


def _bar(name: str, stream: TextIO) -> tuple[Progress, TaskID]:
    bar = Progress(
        TextColumn("{task.description:>8}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TextColumn("{task.fields[loss]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(file=stream),
        disable=not stream.isatty(),
    )
    return bar, bar.add_task(name, total=None, rate="", loss="")
