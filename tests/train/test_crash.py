"""Real processes, killed: SIGKILL at random steps changes no bit; and how several processes are started, or refused."""

import contextlib
import fcntl
import json
import os
import random
import subprocess
import sys
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from lmsplit.train import experts
from lmsplit.train.lineage import checkpoint_steps
from lmsplit.train.record import RunRecord, read_record
from tests.train.runs import campaign_of, weights, write_configuration

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning"),
    pytest.mark.usefixtures("one_thread"),
]

COMMAND = ("-m", "lmsplit.manifests.cli", "train")
TORCHRUN = ("-m", "torch.distributed.run", "--standalone")
CLOCK = {"wall_time_s", "tokens_per_s", "data_wait_fraction", "model_flops_utilization"}
KILLS = 5


@pytest.fixture
def path(tmp_path: Path, licensed_manifest: Path) -> Path:
    """Two passes over a corpus of 9,500 tokens, and a checkpoint and an evaluation every few steps."""
    return write_configuration(
        tmp_path,
        licensed_manifest,
        seed_model={"tokens": 19_100, "learning_rate": 0.01},
        sft={"max_length": 32, "per_device_train_batch_size": 4, "bf16": False, "logging_steps": 3, "save_steps": 2},
        evaluation={"every_steps": 5},
    )


def environment(**changed: str) -> dict[str, str]:
    launchers = {"WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"}
    clean = {name: value for name, value in os.environ.items() if name not in launchers}
    return clean | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""} | changed


def run(*arguments: str, **changed: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, check=False, env=environment(**changed), timeout=150
    )


def kill_after(step: int, delay_s: float, scratch: Path, command: Sequence[str]) -> None:
    """Start a command, and kill it and all that it started soon after a checkpoint's directory is there."""
    process = psutil.Popen([sys.executable, *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment())
    try:
        deadline = time.monotonic() + 120
        while newest(scratch) < step:
            assert process.poll() is None, f"ended with {process.returncode} before step {step}"
            assert time.monotonic() < deadline
            time.sleep(0.002)
        time.sleep(delay_s)
    finally:
        kill_tree(process)
    deadline = time.monotonic() + 20
    while is_locked(scratch):  # a killed process is gone a moment later
        assert time.monotonic() < deadline, "somebody still has the run"
        time.sleep(0.01)
    before = newest(scratch)
    time.sleep(0.3)
    assert newest(scratch) == before, "something still trains"


def kill_tree(process: psutil.Popen) -> None:
    """Kill a process and its descendants: torchrun's are in sessions of their own, and go on when torchrun alone is killed."""
    descendants = process.children(recursive=True) if process.is_running() else []
    for each in (process, *descendants):
        with contextlib.suppress(psutil.NoSuchProcess):
            each.kill()
    process.wait()


def is_locked(scratch: Path) -> bool:
    try:
        with (scratch / ".lock").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False


def newest(scratch: Path) -> int:
    """Return the step of the newest checkpoint, whole or not."""
    return max((int(path.name.removeprefix("checkpoint-")) for path in scratch.glob("checkpoint-*")), default=0)


def without_clock(record: RunRecord) -> dict[str, Any]:
    return {key: value for key, value in record.model_dump().items() if key not in CLOCK}


def check_kills(path: Path, command: Sequence[str], undisturbed: RunRecord, seed: int) -> None:
    """Kill a seed's training at random steps, a new one after each, and compare what becomes of it."""
    generator = random.Random(seed)
    seed_directory = path.parent / "out" / "seed"
    scratch = seed_directory.with_name(".seed.partial")
    last = undisturbed.num_steps - 30  # it goes on for a moment until it is killed
    steps = sorted(generator.sample(range(4, last), KILLS))
    killed_at = []
    for step in steps:
        kill_after(max(step, newest(scratch) + 2), generator.uniform(0, 0.03), scratch, command)
        assert not seed_directory.exists()
        killed_at.append(max(checkpoint_steps(scratch)))
    assert killed_at == sorted(killed_at)
    assert killed_at[0] < killed_at[-1]
    done = run(*command)
    assert done.returncode == 0, done.stderr
    record = read_record(seed_directory)
    assert without_clock(record) == without_clock(undisturbed)
    assert record.domains["d00000"].repetitions == pytest.approx(2, abs=0.05)
    assert weights(seed_directory) == weights(path.parent / "undisturbed" / "seed")
    assert not list(seed_directory.glob("checkpoint-*"))


def test_five_kills_change_nothing(path: Path) -> None:
    undisturbed = experts.train_seed(campaign_of(path, f"output={path.parent / 'undisturbed'}"))
    assert undisturbed is not None
    check_kills(path, [*COMMAND, str(path), "--seed-model"], undisturbed, 1)


def test_five_kills_of_two_processes_change_nothing(path: Path) -> None:
    two = ("--set", "executor.processes=2")
    done = run(*COMMAND, str(path), "--seed-model", *two, "--set", f"output={path.parent / 'undisturbed'}")
    assert done.returncode == 0, done.stderr
    undisturbed = read_record(path.parent / "undisturbed" / "seed")
    assert (undisturbed.num_processes, undisturbed.batch_rows) == (2, 8)
    launched = [*TORCHRUN, "--nproc_per_node=2", *COMMAND, str(path), "--seed-model", *two]
    check_kills(path, launched, undisturbed, 2)


def test_two_processes_train_an_expert_from_a_launcher(path: Path) -> None:
    two = ("--set", "executor.processes=2", "--set", "seed_model.tokens=2000", "--set", "expert.interference={fraction: 0.3}")
    seed = run(*COMMAND, str(path), "--seed-model", *two)
    assert seed.returncode == 0, seed.stderr
    done = run(*TORCHRUN, "--nproc_per_node=2", *COMMAND, str(path), "--domain", "d00001", *two)
    assert done.returncode == 0, done.stderr
    record = read_record(path.parent / "out" / "experts" / "d00001")
    assert (record.num_processes, record.batch_rows, record.domain) == (2, 8, "d00001")
    assert done.stdout.count("held-out loss") == 1  # the main process alone shows it
    loss = record.losses["d00001"]
    assert loss.before is not None
    assert loss.after.nats_per_token < loss.before.nats_per_token
    again = run(*TORCHRUN, "--nproc_per_node=2", *COMMAND, str(path), "--domain", "d00001", *two)
    assert (again.returncode, again.stdout) == (0, done.stdout)


def test_interference_in_two_processes(path: Path) -> None:
    """Both follow one weight, and the log has the tokens of both; batches of either kind of rows alone hold nothing up."""
    keys = ["executor.processes=2", "seed_model.tokens=2000", "sft.logging_steps=1", "sft.save_total_limit=1"]
    keys += ["sft.per_device_train_batch_size=2"]
    keys += ["expert.interference={kind: hinge, weight: 1, fraction: 0.2, dual: {target: 0, rate: 1}}"]
    two = [each for key in keys for each in ("--set", key)]
    seed = run(*COMMAND, str(path), "--seed-model", *two)
    assert seed.returncode == 0, seed.stderr
    done = run(*TORCHRUN, "--nproc_per_node=2", *COMMAND, str(path), "--domain", "d00001", *two)
    assert done.returncode == 0, done.stderr
    directory = path.parent / "out" / "experts" / "d00001"
    record = read_record(directory)
    assert record.interference is not None
    (checkpoint,) = directory.glob("checkpoint-*")
    state = json.loads((checkpoint / "trainer_state.json").read_text())
    log = [line for line in state["log_history"] if "interference_weight" in line]
    assert len(log) == record.num_steps
    assert record.interference.end_weight > 1
    assert log[-1]["interference_weight"] == record.interference.end_weight
    assert any("gradient_cosine" in line for line in log)


def test_another_number_of_processes_is_refused(path: Path) -> None:
    small = ("--seed-model", "--set", "seed_model.tokens=2000")
    two_for_one = run(*TORCHRUN, "--nproc_per_node=2", *COMMAND, str(path), *small)
    one_for_two = run(*TORCHRUN, "--nproc_per_node=1", *COMMAND, str(path), *small, "--set", "executor.processes=2")
    by_variable = run(*COMMAND, str(path), *small, "--set", "executor.processes=2", WORLD_SIZE="1", RANK="0")
    for done, asked, has in ((two_for_one, 1, 2), (one_for_two, 2, 1), (by_variable, 2, 1)):
        assert done.returncode != 0
        message = f"the run was asked for {asked} processes and has {has}: start it with torchrun --nproc_per_node {asked}"
        assert message in done.stderr
    assert not (path.parent / "out" / "seed").exists()


def test_all_is_refused_in_several_processes(path: Path) -> None:
    done = run(*TORCHRUN, "--nproc_per_node=2", *COMMAND, str(path), "--all", "--set", "executor.processes=2")
    assert done.returncode != 0
    assert "--all starts processes itself: set executor.processes, and run it without a launcher" in done.stderr


def test_users_own_script_trains_on_a_packs_rows(path: Path, tmp_path: Path) -> None:
    """Without our commands: a script of one's own, on the packed rows, with the trainer and two processes."""
    campaign = campaign_of(path)
    packed = campaign.packed(campaign.manifest.domains[0], None)
    (tmp_path / "own.py").write_text(
        textwrap.dedent(
            """
            import atexit, json, sys
            from pathlib import Path
            from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, set_seed
            from lmsplit.train import DomainConfig, DomainTrainer
            from datasets import Dataset

            def tell_threads():
                names = [each.read_text().strip() for each in Path("/proc/self/task").glob("*/comm")]
                print("at the end:", [name for name in names if "gloo" in name])

            rows, tokenizer, output = sys.argv[1:]
            atexit.register(tell_threads)  # called after those that are registered later
            tokenizer = AutoTokenizer.from_pretrained(tokenizer)
            set_seed(0)
            shape = dict(hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2)
            ids = dict(pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.bos_token_id)
            model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id, **shape, **ids))
            config = DomainConfig(
                output_dir=output, num_processes=2, per_device_train_batch_size=2, num_train_epochs=2, learning_rate=0.02,
                logging_steps=4, bf16=False, max_length=32, disable_tqdm=True, remove_unused_columns=False,
                dataset_kwargs={"skip_prepare_dataset": True},
            )
            trainer = DomainTrainer(
                model=model, args=config, train_dataset=Dataset.from_file(rows), processing_class=tokenizer
            )
            trainer.train()
            if trainer.is_world_process_zero():
                trainer.save_model(output)
                losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
                print(json.dumps({"losses": losses, "steps": trainer.state.global_step, "world": config.world_size}))
            """
        )
    )
    arguments = (str(packed.directory / "rows.arrow"), str(campaign.output / "tokenizer"), str(tmp_path / "own"))
    done = run(*TORCHRUN, "--nproc_per_node=2", str(tmp_path / "own.py"), *arguments)
    assert done.returncode == 0, done.stderr
    said = json.loads(next(line for line in done.stdout.splitlines() if line.startswith('{"losses"')))
    assert said["world"] == 2
    assert said["steps"] == 2 * -(-packed.num_rows // 4)
    assert said["losses"][-1] < said["losses"][0] - 0.5
    assert (tmp_path / "own" / "model.safetensors").exists()
    assert done.stdout.count("at the end: []") == 2, done.stdout  # a thread of gloo would abort the process now and then
    alone = run(str(tmp_path / "own.py"), *arguments)
    assert alone.returncode != 0
    assert "the run was asked for 2 processes and has 1" in alone.stderr
