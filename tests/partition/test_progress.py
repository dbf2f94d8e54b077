"""Progress as programs see it: JSON lines on standard error where that is no terminal."""

import json
from pathlib import Path
from typing import Any

import pytest

from lmsplit.partition import progress
from lmsplit.partition.engine import run_stage
from lmsplit.partition.run import Run
from tests.partition.corpora import HERE
from tests.partition.stages import Counting, Failing, Slow

KEYS = {"event", "stage", "tasks_done", "tasks", "documents", "documents_per_s", "elapsed_s", "remaining_s"}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(str(tmp_path), "0" * 16)


def lines_of(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    said = capsys.readouterr()
    assert said.out == ""
    lines = [json.loads(line) for line in said.err.splitlines()]
    assert all(set(line) == KEYS for line in lines)
    return lines


def test_stage_ends_with_a_line_of_its_totals(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    run_stage(Counting(run), HERE)
    (line,) = lines_of(capsys)
    assert (line["event"], line["stage"], line["tasks_done"], line["tasks"]) == ("stage_done", "counting", 5, 5)
    assert (line["documents"], line["remaining_s"]) == (50, 0.0)
    assert line["documents_per_s"] > 0


def test_running_stage_says_how_far_it_is(run: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_LINE_EVERY_S", 0.3)
    run_stage(Slow(run), HERE)
    *running, last = lines_of(capsys)
    assert last["event"] == "stage_done"
    assert {line["event"] for line in running} == {"progress"}
    done = [line["tasks_done"] for line in running]
    assert done == sorted(done)
    assert any(0 < each < 5 for each in done)  # all five may be done a moment before the stage is
    assert all(line["remaining_s"] > 0 for line in running if 0 < line["tasks_done"] < 5)
    assert [line["documents"] for line in running] == [10 * number for number in done]


def test_failed_stage_does_not_say_that_it_is_done(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="record 17 is bad"):
        run_stage(Failing(run), HERE)
    (line,) = lines_of(capsys)
    assert (line["event"], line["tasks_done"], line["tasks"]) == ("progress", 3, 5)


def test_rate_leaves_out_what_an_earlier_run_did(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    run_stage(Counting(run), HERE)
    lines_of(capsys)
    run_stage(Counting(run), HERE)
    (line,) = lines_of(capsys)
    assert (line["documents"], line["documents_per_s"], line["tasks_done"]) == (50, 0.0, 5)
