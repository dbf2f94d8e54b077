"""The engine: what is left is done, once, and a failure reaches the user as it is."""

import os
import time
from pathlib import Path

import pytest
import torch

from lmsplit.manifests.errors import InputError, LmsplitError
from lmsplit.partition.engine import run_stage, visible_gpus
from lmsplit.partition.run import Run
from tests.partition.stages import Counting, Dying, Failing, Forgetful, Seeing


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(str(tmp_path), "0" * 16)


@pytest.mark.parametrize("workers", [1, 2])
def test_stage_does_every_task_in_its_workers(run: Run, workers: int) -> None:
    run_stage(Counting(run), workers)
    assert run.done("counting") == set(range(5))
    pids = {receipt["pid"] for receipt in run.receipts("counting", 5)}
    assert (pids == {os.getpid()}) == (workers == 1)


def test_stage_does_only_what_has_no_receipt(run: Run) -> None:
    Counting(run).do(1)
    before = run.folder("counting/00001.json").stat().st_mtime_ns
    run_stage(Counting(run), 1)
    assert run.folder("counting/00001.json").stat().st_mtime_ns == before
    assert run.done("counting") == set(range(5))
    run.folder("counting/00000.json").unlink()
    run_stage(Failing(run), 1)  # it would fail at task 3
    (run.folder("logs/counting")).rename(run.folder("logs/kept"))
    run_stage(Counting(run), 1)
    assert not run.folder("logs/counting").exists()


@pytest.mark.parametrize("workers", [1, 2])
def test_error_of_a_task_is_raised_as_it_is_and_finished_tasks_stay(
    run: Run, workers: int, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InputError, match="record 17 is bad"):
        run_stage(Failing(run), workers)
    assert 3 not in run.done("counting")
    assert 0 in run.done("counting")
    assert "Traceback" not in capfd.readouterr().err


def test_task_that_leaves_no_receipt_is_an_error(run: Run) -> None:
    with pytest.raises(LmsplitError, match="stage counting: 1 of 5 tasks left no receipt: run it again"):
        run_stage(Forgetful(run), 1)


def test_killed_worker_is_a_clear_error_and_no_hang(run: Run) -> None:
    started = time.monotonic()
    with pytest.raises(LmsplitError, match=r"a worker process was killed \(out of memory\?\): nothing is lost"):
        run_stage(Dying(run), 2)
    assert time.monotonic() - started < 60
    run_stage(Counting(run), 2)
    assert run.done("counting") == set(range(5))


def test_stage_without_tasks_is_done_at_once(run: Run) -> None:
    run_stage(Counting(run, num_tasks=0), 2)
    assert run.done("counting") == set()


@pytest.mark.parametrize("workers", [1, 5])
def test_each_process_has_a_gpu_to_itself_whatever_the_workers(run: Run, workers: int) -> None:
    run_stage(Seeing(run, num_tasks=9, num_processes=3), workers, gpus=("0", "GPU-17", "2"))
    receipts = list(run.receipts("counting", 9))
    pairs = {(receipt["pid"], receipt["CUDA_VISIBLE_DEVICES"]) for receipt in receipts}
    assert len(pairs) == len({pid for pid, _ in pairs}) == 3
    assert {gpu for _, gpu in pairs} == {"0", "GPU-17", "2"}
    assert not any(receipt["torch"] for receipt in receipts)  # imported before, it would see all of them


def test_processes_without_gpus_are_as_many_as_workers_and_share_the_cores(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 9)
    before = os.environ.get("CUDA_VISIBLE_DEVICES")
    run_stage(Seeing(run, num_tasks=4, num_processes=2), 2)
    receipts = list(run.receipts("counting", 4))
    assert len({receipt["pid"] for receipt in receipts}) == 2
    assert {receipt["CUDA_VISIBLE_DEVICES"] for receipt in receipts} == {before}
    assert {receipt["RAYON_NUM_THREADS"] for receipt in receipts} == {"4"}


def test_one_task_on_gpus_is_done_here(run: Run) -> None:
    before = os.environ.get("CUDA_VISIBLE_DEVICES")
    run_stage(Seeing(run, num_tasks=1), 4, gpus=("0", "1"))
    receipt = run.receipt("counting", 0)
    assert (receipt["pid"], receipt["CUDA_VISIBLE_DEVICES"]) == (os.getpid(), before)


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
