"""Processes that train together: who waits for whom, in two real ones, and what one alone does."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from lmsplit.train.processes import is_main, main_first, num_processes, run_directory, wait_for_all


def test_process_without_a_launcher_is_the_only_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WORLD_SIZE", "RANK"):
        monkeypatch.delenv(name, raising=False)
    assert (num_processes(), is_main()) == (1, True)
    wait_for_all()
    with main_first():
        pass


def test_launcher_says_how_many_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", "3")
    assert (num_processes(), is_main()) == (4, False)


def test_main_process_waits_after_the_block_and_the_others_before(monkeypatch: pytest.MonkeyPatch) -> None:
    for rank, expected in (("0", ["block", "wait"]), ("1", ["wait", "block"])):
        done: list[str] = []
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setattr("lmsplit.train.processes.wait_for_all", lambda done=done: done.append("wait"))
        with main_first():
            done.append("block")
        assert done == expected


def test_main_process_alone_publishes_the_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    with run_directory(tmp_path / "run") as main:
        monkeypatch.setenv("RANK", "1")
        with run_directory(tmp_path / "run") as other:
            assert other == main
            (other / "part").write_text("x")
        assert not (tmp_path / "run").exists()
        monkeypatch.setenv("RANK", "0")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["part"]


PROGRAM = """
import json, sys, time
from pathlib import Path
import numpy as np
import torch
from datasets import Dataset
from lmsplit.train import DomainConfig, DomainTrainer
from lmsplit.train.processes import is_main, main_first, num_processes, wait_for_all
from tests.train.test_trainer import DEFAULTS, TOKENIZER, small_model

torch.set_num_threads(1)
output = Path(sys.argv[1])
with main_first():
    if is_main():
        time.sleep(0.5)
        (output / "made").write_text("by the main process")
    else:
        assert (output / "made").exists(), "the others did not wait"

seen = []

class Watching(DomainTrainer):
    def compute_loss(self, model, inputs, *arguments, **named):
        seen.append(inputs["input_ids"][:, 0].sub(3).tolist())
        return super().compute_loss(model, inputs, *arguments, **named)

rows = Dataset.from_dict({"input_ids": [[row + 3, row + 4, row + 5] for row in range(16)], "seq_lengths": [[2, 1]] * 16})
fields = DEFAULTS | {"per_device_train_batch_size": 4 // num_processes(), "num_train_epochs": 1, "learning_rate": 0.01}
fields |= {"num_processes": num_processes(), "save_strategy": "steps", "save_steps": 2}
args = DomainConfig(output_dir=str(output), **fields)
order = np.arange(16)[::-1].copy()
trainer = Watching(model=small_model(), args=args, train_dataset=rows, processing_class=TOKENIZER, row_order=order)
trainer.train()
logs = [[entry["step"], entry["loss"], entry["num_tokens"]] for entry in trainer.state.log_history if "loss" in entry]
digest = [float(tensor.double().sum()) for tensor in trainer.model.state_dict().values()]
found = {"seen": seen, "logs": logs, "weights": digest, "lean": trainer._lean}
(output / f"rank-{args.process_index}.json").write_text(json.dumps(found))
wait_for_all()
if torch.distributed.is_initialized():
    torch.distributed.destroy_process_group()
"""


def run_processes(output: Path, number: int) -> list[dict]:
    output.mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    plain = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    launched = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(number)}
    started = []
    for rank in range(number):
        own = {**launched, "RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(number)} if number > 1 else {}
        started.append(subprocess.Popen([sys.executable, "-c", PROGRAM, str(output)], env={**plain, **own}))
    try:
        assert [process.wait(timeout=120) for process in started] == [0] * number
    finally:
        for process in started:
            process.kill()
    return [json.loads((output / f"rank-{rank}.json").read_text()) for rank in range(number)]


@pytest.mark.slow
def test_two_processes_train_what_one_does(tmp_path: Path) -> None:
    """The rows of each step are those of the given order, and the model is the same but for rounding."""
    [alone] = run_processes(tmp_path / "one", 1)
    first, second = run_processes(tmp_path / "two", 2)
    assert alone["seen"] == [[15, 14, 13, 12], [11, 10, 9, 8], [7, 6, 5, 4], [3, 2, 1, 0]]
    assert [ours + theirs for ours, theirs in zip(first["seen"], second["seen"], strict=True)] == alone["seen"]
    assert first["lean"]
    assert first["weights"] == second["weights"]
    assert first["weights"] == pytest.approx(alone["weights"], abs=1e-3)
    assert [step for step, _, _ in first["logs"]] == [2, 4]
    assert [tokens for _, _, tokens in first["logs"]] == [tokens for _, _, tokens in alone["logs"]] == [24, 48]
    assert [loss for _, loss, _ in first["logs"]] == pytest.approx([loss for _, loss, _ in alone["logs"]], rel=1e-4)
    assert (tmp_path / "two" / "checkpoint-4" / "rng_state_1.pth").exists()
