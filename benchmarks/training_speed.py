"""Training speed: `DomainTrainer` and TRL's `SFTTrainer` beside a bare PyTorch loop on the same packed rows, in one run.

For each size and precision, contenders take turns over several rounds; each trains a fresh model for so many steps on the same
rows in the same order, with fused AdamW, the same schedule, and gradients clipped to 1. `bare loop` is the plainest loop there
is: the model's own loss, the documents' attention mask, nothing logged. `lmsplit` is `DomainTrainer`, as `lmsplit train` uses it.
`TRL, same rows` is `SFTTrainer` with gradient checkpointing off, on the same rows (it lets documents in a row see each other);
`TRL, defaults` has its own gradient checkpointing too. `compiled` ones use `torch.compile`; their first steps are left out.

- `tokens/s`: of the median step, the first ones left out; median over rounds. `ratio`: to the bare loop of the round, median.
- `loss`: mean over the last log line's steps (the bare loop: its last five), nats per token; `data wait`: share of the time that
  the trainer waited for its next batch.
- `utilization`: 6 · parameters · tokens/s over the peak of the device (a GPU's by its data sheet, a CPU's measured).
"""

import argparse
import contextlib
import logging
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from measure import write_results
from transformers import PreTrainedModel, TrainerCallback, get_scheduler
from trl import SFTConfig, SFTTrainer

from lmsplit.train import DomainConfig, DomainTrainer
from lmsplit.train.attention import confine
from lmsplit.train.batches import RowCollator
from lmsplit.train.config import InlineModel
from lmsplit.train.meter import peak_flops
from lmsplit.train.models import build_model, count_parameters
from lmsplit.train.pack import Packing, pack_documents
from lmsplit.train.presets import PRESETS, Preset
from lmsplit.train.tokenizer import DocumentEncoder, train_tokenizer

SIZES = PRESETS | {"10m": Preset(384, 1024, 4, 6, 8192, True, 512, 16, 1e-3, 5e-4)}
FIRST_STEPS = 3
CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")


class Clock(TrainerCallback):
    """Notes when each step ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *_arguments: Any, **_named: Any) -> None:
        """Note the time; on a GPU, once it has caught up."""
        self.ends.append(now())


def now() -> float:
    """Return the time at which all that was asked of the device is done."""
    if CUDA:
        torch.cuda.synchronize()
    return time.perf_counter()


class Contest:
    """One size in one precision: a model, rows, and everything that trains it."""

    def __init__(self, size: str, bf16: bool, steps: int, texts: list[str], directory: Path, batch: int | None) -> None:
        self.preset, self.bf16, self.steps, self.directory = SIZES[size], bf16, steps, directory
        self.batch = batch or self.preset.batch_size
        self.tokenizer = train_tokenizer([texts], self.preset.vocabulary_size)
        encoder = DocumentEncoder(self.tokenizer)
        (directory / "packed").mkdir()
        numbered = ((str(number), text) for number, text in enumerate(texts))
        packed = pack_documents(numbered, encoder, Packing(self.preset.max_length, "bfd_split"), directory / "packed")
        self.rows = packed.rows().with_format("numpy")
        full = np.flatnonzero(packed.row_lengths() == self.preset.max_length)
        self.order = np.resize(np.random.default_rng(0).permutation(full), steps * self.batch)
        self.num_parameters = count_parameters(self.model()).total

    def model(self) -> PreTrainedModel:
        """Return the model with fresh weights, the same every time."""
        shape = InlineModel(config=self.preset.model_config(len(self.tokenizer)))
        return build_model(shape, self.tokenizer, 0).to(DEVICE)

    def bare(self, compiled: bool = False) -> tuple[list[float], dict[str, float]]:
        """Train with a loop of ten lines."""
        model: Any = self.model().train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
        schedule = get_scheduler("cosine", optimizer, 5, self.steps)
        forward = torch.compile(model) if compiled else model
        collate, ends, losses = RowCollator(0), [], []
        for start in range(0, len(self.order), self.batch):
            rows = self.rows.select(self.order[start : start + self.batch])
            batch = {name: value.to(DEVICE) for name, value in collate([rows[index] for index in range(len(rows))]).items()}
            batch = confine(batch, model)
            with torch.autocast(DEVICE.type, torch.bfloat16) if self.bf16 else contextlib.nullcontext():
                loss = forward(**batch, use_cache=False).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            losses.append(loss.detach())
            ends.append(now())
        return ends, {"loss": float(torch.stack(losses[-5:]).mean())}

    def train(self, kind: type[SFTTrainer], config: type[SFTConfig], **fields: Any) -> tuple[list[float], dict[str, float]]:
        """Train with a trainer."""
        clock, named = Clock(), {}
        common = {"max_steps": self.steps, "per_device_train_batch_size": self.batch, "max_length": self.preset.max_length}
        common |= {"learning_rate": 1e-3, "adam_beta2": 0.95, "weight_decay": 0.1, "warmup_steps": 5, "bf16": self.bf16}
        common |= {"lr_scheduler_type": "cosine", "save_strategy": "no", "logging_steps": 5, "disable_tqdm": True}
        common |= {"report_to": "none", "use_cpu": not CUDA, "dataset_kwargs": {"skip_prepare_dataset": True}}
        if kind is DomainTrainer:
            rows, named["row_order"] = self.rows, self.order
        else:
            rows = self.rows.select(self.order).with_format(None)
            rows = rows.map(lambda row: {"labels": row["input_ids"]}, remove_columns="seq_lengths")
            common["train_sampling_strategy"] = "sequential"
        trainer = kind(
            model=self.model(),
            args=config(output_dir=str(self.directory / "out"), **(common | fields)),
            train_dataset=rows,
            processing_class=self.tokenizer,
            callbacks=[clock],
            **named,
        )
        with contextlib.redirect_stdout(None):
            trainer.train()
        return clock.ends, [line for line in trainer.state.log_history if "loss" in line][-1]

    def contenders(self, compiled: bool) -> dict[str, Callable[[], tuple[list[float], dict[str, float]]]]:
        """Return what trains, by name."""
        found = {
            "bare loop": self.bare,
            "lmsplit": lambda: self.train(DomainTrainer, DomainConfig),
            "TRL, same rows": lambda: self.train(SFTTrainer, SFTConfig, gradient_checkpointing=False),
            "TRL, defaults": lambda: self.train(SFTTrainer, SFTConfig),
        }
        if compiled:
            found["bare loop, compiled"] = lambda: self.bare(compiled=True)
            found["lmsplit, compiled"] = lambda: self.train(DomainTrainer, DomainConfig, torch_compile=True)
        return found


def compare(contest: Contest, size: str, rounds: int, compiled: bool) -> Iterator[dict[str, Any]]:
    """Yield one row a contender."""
    contenders = contest.contenders(compiled)
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    seen: dict[str, dict[str, float]] = {}
    names = list(contenders)
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            ends, seen[name] = contenders[name]()
            seconds = statistics.median(np.diff(ends)[FIRST_STEPS:].tolist())
            rates[name].append(contest.batch * contest.preset.max_length / seconds)
            logging.getLogger("benchmark").warning("%s %s %d: %.0f tokens/s", size, name, turn, rates[name][-1])
    peak = peak_flops(DEVICE, torch.bfloat16 if contest.bf16 else torch.float32)
    for name in names:
        rate = statistics.median(rates[name])
        yield {
            "size": size,
            "parameters": contest.num_parameters,
            "precision": "bf16" if contest.bf16 else "fp32",
            "contender": name,
            "tokens/s": round(rate),
            "ratio": statistics.median(ours / bare for ours, bare in zip(rates[name], rates["bare loop"], strict=True)),
            "lowest ratio": min(ours / bare for ours, bare in zip(rates[name], rates["bare loop"], strict=True)),
            "loss": seen[name]["loss"],
            "data wait": seen[name].get("data_wait_fraction"),
            "utilization": 6 * contest.num_parameters * rate / peak if peak else None,
        }


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", default="../shared/corpora/*.parquet", help="Parquet files with a text column")
    parser.add_argument("--sizes", default="125m,350m" if CUDA else "1m,5m,10m")
    parser.add_argument("--precisions", default="bf16" if CUDA else "fp32,bf16")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, help="rows in a step [the preset's]")
    parser.add_argument("--compile", action="store_true", help="with torch.compile too")
    parser.add_argument("--name", default="training_speed_gpu" if CUDA else "training_speed")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    logging.getLogger("transformers").setLevel(logging.ERROR)
    texts = pl.scan_parquet(arguments.corpus).select("text").collect().sample(12_000, shuffle=True, seed=0)["text"].to_list()
    rows: list[dict[str, Any]] = []
    for size in arguments.sizes.split(","):
        for precision in arguments.precisions.split(","):
            with tempfile.TemporaryDirectory() as directory:
                contest = Contest(size, precision == "bf16", arguments.steps, texts, Path(directory), arguments.batch)
                rows += compare(contest, size, arguments.rounds, arguments.compile)
            assert __doc__
            write_results(arguments.name, "Training speed", __doc__.partition("\n\n")[2], rows)


if __name__ == "__main__":
    main()
