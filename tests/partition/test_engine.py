"""The engine: what is left is done, once, and a failure reaches the user as it is."""

import os
from pathlib import Path

import pytest
import torch

from lmsplit.manifests.errors import InputError, LmsplitError
from lmsplit.manifests.executor import Executor
from lmsplit.partition.engine import check_done, run_stage, visible_gpus
from lmsplit.partition.run import Run
from tests.partition.corpora import HERE, folder
from tests.partition.stages import Counting, Dying, DyingOnce, Failing, Forgetful, Hungry, Seeing, Surprised

TWO = Executor(workers=2)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(str(tmp_path), "0" * 16)


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_stage_does_every_task_in_its_workers(run: Run, workers: int) -> None:
    run_stage(Counting(run), Executor(workers=workers))
    assert run.done("counting").keys() == set(range(5))
    pids = {receipt["pid"] for receipt in run.receipts("counting", 5)}
    assert (pids == {os.getpid()}) == (workers == 0)


def test_stage_does_only_what_has_no_receipt(run: Run) -> None:
    Counting(run).do(1)
    before = folder(run, "counting/00001.json").stat().st_mtime_ns
    run_stage(Counting(run), HERE)
    assert folder(run, "counting/00001.json").stat().st_mtime_ns == before
    assert run.done("counting").keys() == set(range(5))
    folder(run, "counting/00000.json").unlink()
    run_stage(Failing(run), HERE)  # it would fail at task 3
    folder(run, "logs/counting").rename(folder(run, "logs/kept"))
    run_stage(Counting(run), HERE)
    assert not folder(run, "logs/counting").exists()


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_error_of_a_task_is_raised_as_it_is_and_finished_tasks_stay(
    run: Run, workers: int, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InputError, match="record 17 is bad"):
        run_stage(Failing(run), Executor(workers=workers))
    assert 3 not in run.done("counting")
    assert 0 in run.done("counting")
    assert "Traceback" not in capfd.readouterr().err


def test_error_of_a_task_is_left_for_whoever_watches_until_the_task_is_done(run: Run) -> None:
    with pytest.raises(InputError):
        run_stage(Failing(run), TWO)
    ((task, facts),) = run.failures("counting").items()
    assert (task, facts["error"], facts["exit_code"], facts["traceback"]) == (3, "record 17 is bad", 3, None)
    with pytest.raises(InputError, match="record 17 is bad"):  # as another process finds it
        check_done(Counting(run))
    run_stage(Counting(run), TWO)
    assert run.failures("counting") == {}


def test_unexpected_error_leaves_a_traceback_without_the_values_of_variables(run: Run) -> None:
    with pytest.raises(KeyError, match="nobody"):
        run_stage(Surprised(run), TWO)
    facts = run.failures("counting")[0]
    assert (facts["error"], facts["exit_code"]) == ("KeyError: 'nobody'", 1)
    assert 'raise KeyError("nobody")' in facts["traceback"]
    written = b"".join(path.read_bytes() for path in folder(run, ".").rglob("*") if path.is_file())
    assert b"KeyError" in written
    assert b"hunter2" not in written


def test_task_that_leaves_no_receipt_is_an_error(run: Run) -> None:
    with pytest.raises(LmsplitError, match="stage counting: 1 of 5 tasks left no receipt: run it again"):
        run_stage(Forgetful(run), HERE)


@pytest.mark.parametrize(("kind", "task", "how"), [(Dying, 1, r"killed \(out of memory\?\)"), (Hungry, 2, "out of memory")])
def test_task_that_kills_its_process_is_tried_three_times_and_named_and_the_others_are_done(
    run: Run, kind: type[Counting], task: int, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    message = f"stage counting: 1 tasks were tried 3 times, each in a process of its own, and set apart: task {task}: {how}"
    with pytest.raises(LmsplitError, match=message):
        run_stage(kind(run), TWO)
    assert run.done("counting").keys() == set(range(5)) - {task}
    assert [record.getMessage()[-10:] for record in caplog.records] == [f"try {number} of 3" for number in (1, 2, 3)]
    assert f"task {task}" in run.failures("counting")[task]["error"]
    run_stage(Counting(run), TWO)
    assert run.done("counting").keys() == set(range(5))


def test_task_that_kills_its_process_twice_is_done_at_the_third_try(run: Run) -> None:
    run_stage(DyingOnce(run), TWO)
    assert run.done("counting").keys() == set(range(5))
    assert len(list(folder(run, "tries").iterdir())) == 2


def test_stage_without_tasks_is_done_at_once(run: Run) -> None:
    run_stage(Counting(run, num_tasks=0), TWO)
    assert run.done("counting") == {}


@pytest.mark.parametrize("workers", [1, 5])
def test_each_process_has_a_gpu_to_itself_whatever_the_workers(run: Run, workers: int) -> None:
    run_stage(Seeing(run, num_tasks=9, num_processes=3), Executor(workers=workers), gpus=("0", "GPU-17", "2"))
    receipts = list(run.receipts("counting", 9))
    pairs = {(receipt["pid"], receipt["CUDA_VISIBLE_DEVICES"]) for receipt in receipts}
    assert len(pairs) == len({pid for pid, _ in pairs}) == 3
    assert {gpu for _, gpu in pairs} == {"0", "GPU-17", "2"}
    assert not any(receipt["torch"] for receipt in receipts)  # imported before, it would see all of them


def test_processes_without_gpus_are_as_many_as_workers_and_share_the_cores(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 9)
    before = os.environ.get("CUDA_VISIBLE_DEVICES")
    run_stage(Seeing(run, num_tasks=4, num_processes=2), TWO)
    receipts = list(run.receipts("counting", 4))
    assert len({receipt["pid"] for receipt in receipts}) == 2
    assert {receipt["CUDA_VISIBLE_DEVICES"] for receipt in receipts} == {before}
    assert {receipt["RAYON_NUM_THREADS"] for receipt in receipts} == {"4"}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("3,1", ("3", "1")),
        ("GPU-8932f937", ("GPU-8932f937",)),
        ("", ("0", "1")),
        (None, ("0", "1")),
    ],
)
def test_visible_gpus_are_those_of_the_environment_or_all(
    given: str | None, expected: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    if given is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    assert visible_gpus() == expected
