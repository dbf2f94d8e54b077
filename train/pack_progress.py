"""Shows how far packing is, on standard error: a bar on a terminal, else one JSON line every few seconds.

A split that is packed sooner leaves no line. This does *not* time anything for a record (see `progress` for trainings).
"""

import json
import sys
import time
from types import TracebackType
from typing import Final, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

_LINE_EVERY_S: Final = 5.0


class PackProgress:
    """Reports one split's progress while its block runs.

    Args:
        name: what is packed.
        num_documents: of the whole split.
        stream: standard error, unless a test asks for another.
    """

    def __init__(self, name: str, num_documents: int, stream: TextIO | None = None) -> None:
        self._name = name
        self._stream = stream if stream is not None else sys.stderr
        columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}")]
        self._bar = Progress(
            *[*columns, TimeElapsedColumn(), TimeRemainingColumn()],
            console=Console(file=self._stream),
            disable=not self._stream.isatty(),
            transient=True,
        )
        self._task = self._bar.add_task(name, total=num_documents, rate="")
        self._started = self._last_line = time.monotonic()

    def __enter__(self) -> "PackProgress":
        self._bar.start()
        return self

    def __exit__(self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None) -> None:
        self._bar.stop()

    def update(self, num_documents: int, num_tokens: int) -> None:
        """Show how many documents and tokens are done."""
        now = time.monotonic()
        elapsed_s = max(now - self._started, 1e-9)
        self._bar.update(self._task, completed=num_documents, rate=f"{num_tokens / elapsed_s:,.0f} tokens/s")
        if now - self._last_line >= _LINE_EVERY_S and not self._stream.isatty():
            self._last_line = now
            counts = {"documents": num_documents, "tokens": num_tokens, "elapsed_s": round(elapsed_s, 1)}
            self._stream.write(json.dumps({"event": "progress", "run": self._name, **counts}) + "\n")
            self._stream.flush()
