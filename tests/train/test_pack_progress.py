import io
import json

import pytest

from lmsplit.train import pack_progress
from lmsplit.train.pack_progress import PackProgress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_writes_a_line_every_few_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 1.0, 6.0, 8.0, 11.5])
    monkeypatch.setattr(pack_progress.time, "monotonic", lambda: next(clock))
    stream = io.StringIO()
    progress = PackProgress("pack d00003", 40, stream)
    for number in range(4):
        progress.update(10 * number, 100 * number)
    assert [json.loads(line) for line in stream.getvalue().splitlines()] == [
        {"event": "progress", "run": "pack d00003", "documents": 10, "tokens": 100, "elapsed_s": 6.0},
        {"event": "progress", "run": "pack d00003", "documents": 30, "tokens": 300, "elapsed_s": 11.5},
    ]


def test_progress_says_nothing_of_a_short_split() -> None:
    stream = io.StringIO()
    with PackProgress("pack d00003", 40, stream) as progress:
        progress.update(40, 4000)
    assert stream.getvalue() == ""


def test_progress_shows_a_bar_on_a_terminal() -> None:
    stream = Terminal()
    with PackProgress("pack d00003", 40, stream) as progress:
        progress.update(40, 4000)
    assert "pack d00003" in stream.getvalue()
    assert "40/40" in stream.getvalue()
    assert "{" not in stream.getvalue()
