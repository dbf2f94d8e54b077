"""Small trainings for the tests: a configuration of a model with a few thousand parameters, and what a run leaves."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import TrainerCallback
from trl import SFTTrainer

from lmsplit.manifests.configuration import load
from lmsplit.manifests.reader import Manifest
from lmsplit.train import experts, phase
from lmsplit.train.campaign import Campaign
from lmsplit.train.config import Training
from lmsplit.train.record import RunRecord
from lmsplit.train.trainer import DomainTrainer

MODEL = {
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
}


class Result(NamedTuple):
    """What a command did."""

    code: int
    out: str
    err: str


Command = Callable[..., Result]


def write_configuration(directory: Path, manifest: Path, **keys: Any) -> Path:
    """Write a configuration into `directory`; its output is `directory/out`. Keys are set over the defaults, not merged."""
    values = {
        "manifest": str(manifest),
        "output": str(directory / "out"),
        "model": {"config": MODEL},
        "tokenizer": {"vocabulary_size": 350},
        "seed_model": {"tokens": 2_000, "learning_rate": 0.01},
        "expert": {"tokens": 1_000, "learning_rate": 0.01, "interference": None},
        "sft": {"max_length": 32, "per_device_train_batch_size": 4, "bf16": False, "logging_steps": 3},
    }
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "train.yaml"
    path.write_text(yaml.safe_dump(values | keys))
    return path


def campaign_of(path: Path, *overrides: str) -> Campaign:
    """Open a configuration with `--set` overrides."""
    return Campaign.open(load(Training, path, overrides))


def train(path: Path, *overrides: str) -> RunRecord:
    """Train the seed of a configuration with `--set` overrides."""
    record = experts.train_seed(campaign_of(path, *overrides))
    assert record is not None
    return record


def weights(model: Path) -> str:
    """Return the SHA-256 of a model's weights."""
    return hashlib.sha256((model / "model.safetensors").read_bytes()).hexdigest()


def tensors(model: Path) -> dict[str, torch.Tensor]:
    """Return a model's weights."""
    return load_file(model / "model.safetensors")


class CutOff(TrainerCallback):
    """Ends the process's training as Ctrl-C would, before a step."""

    def __init__(self, step: int, error: type[BaseException] = KeyboardInterrupt) -> None:
        self._step = step
        self._error = error

    def on_step_begin(self, _args: Any, state: Any, _control: Any, **_kwargs: Any) -> None:
        if state.global_step == self._step:
            raise self._error


class StepsSeen(TrainerCallback):
    """The steps that a process really trained."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def on_step_end(self, _args: Any, state: Any, _control: Any, **_kwargs: Any) -> None:
        self.steps.append(state.global_step)


class Watched:
    """The trainers that a test's runs made, and callbacks that the next ones get."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.trainers: list[SFTTrainer] = []
        self.callbacks: list[TrainerCallback] = []
        watched = self

        class WatchedTrainer(DomainTrainer):
            def __init__(self, *arguments: Any, **named: Any) -> None:
                super().__init__(*arguments, **named)
                watched.trainers.append(self)
                for each in watched.callbacks:
                    self.add_callback(each)

        monkeypatch.setattr(phase, "DomainTrainer", WatchedTrainer)

    def log(self) -> list[dict[str, Any]]:
        """Return the log lines of the newest trainer, without what depends on the clock."""
        clock = {"tokens_per_s", "data_wait_fraction", "model_flops_utilization", "train_runtime"}
        clock |= {"train_samples_per_second", "train_steps_per_second"}
        history = self.trainers[-1].state.log_history
        return [{key: value for key, value in line.items() if key not in clock} for line in history if "loss" in line]

    def cut_off(self, step: int, run: Callable[[], object], error: type[BaseException] = KeyboardInterrupt) -> None:
        """Call `run` and end its training before a step, counted from 0."""
        self.callbacks = [CutOff(step, error)]
        with pytest.raises(error):
            run()
        self.callbacks = []


def heldout_texts(manifest: Path, domain: str) -> list[str]:
    """Return the held-out texts of a domain."""
    batches = Manifest.open(manifest).documents(domain=domain, split="heldout", columns=["text"])
    return [text for batch in batches for text in batch.column("text").to_pylist()]
