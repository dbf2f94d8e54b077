"""How work that takes long says how far it is."""

import json
import sys
import time
from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Called with a stage's name, how much of it is done, and how much there is."""


def report_progress(stage: str, done: int, total: int) -> None:
    """Write how far a stage is on standard error, as a line of JSON."""
    sys.stderr.write(json.dumps({"event": "progress", "stage": stage, "done": done, "of": total}) + "\n")
    sys.stderr.flush()


def seldom(report: Progress, seconds: float = 5.0) -> Progress:
    """Return a report that is made at most once in so many seconds, and not before: quick work says nothing."""
    last = time.monotonic()

    def report_if_due(stage: str, done: int, total: int) -> None:
        """Report, unless that was done just before."""
        nonlocal last
        if time.monotonic() - last >= seconds:
            last = time.monotonic()
            report(stage, done, total)

    return report_if_due
