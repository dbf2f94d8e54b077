"""Runs a ladder: constant-rate trunks with a short decay from a checkpoint for every number of tokens.

```
fresh model ─constant─► 0.8·D1 ───────────► 0.8·D2 ──► …          a trunk for each size, on the mixture
                           └decay► seed D1     └decay► seed D2      measured on every domain
                                     └─constant─► 0.8·D'1 ──► …    a trunk for each of some domains, from each seed
                                                    └decay► expert  measured on its own domain
```

All of it is made of segments: a model and its optimizer, trained on the next rows of one order at a constant or a falling rate. A
segment that is done stays in `<output>/segments/`, so the same command goes on with the next one; a loss that was measured stays
in `<output>/runs.jsonl`, which `lmsplit plan` reads. The tokens in it are those really trained on. This does *not* decide
which runs to make: see `ladder`.
"""

import dataclasses
import itertools
import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl
import torch
from datasets import Dataset
from transformers import PrinterCallback

from lmsplit.manifests.errors import ConfigurationError, LmsplitError
from lmsplit.manifests.reader import Domain
from lmsplit.train.campaign import Campaign
from lmsplit.train.config import InlineModel
from lmsplit.train.directory import whole_directory, write_whole
from lmsplit.train.heldout import HeldOut
from lmsplit.train.ladder import DECAY_FRACTION, Ladder
from lmsplit.train.models import attention_kind, build_model, count_parameters, load_model
from lmsplit.train.optimizer import load_optimizer_state, save_optimizer_state
from lmsplit.train.order import draw_rows
from lmsplit.train.presets import Preset
from lmsplit.train.runs import LADDER, TABLE
from lmsplit.train.sft import phase_config
from lmsplit.train.shares import Share, joined_rows, tokens_of_steps
from lmsplit.train.trainer import DomainTrainer

_WARMUP: Final = 0.05
"""Share of a trunk's steps to its smallest number of tokens over which the rate rises (assumption)."""
_SEGMENTS: Final = "segments"

# Shapes: S rows drawn.


class Order(NamedTuple):
    """The rows of a trunk."""

    rows: Dataset
    position_S: npt.NDArray[np.int64]
    tokens_of_steps: npt.NDArray[np.int64]
    """(steps + 1,) tokens trained on after each step."""

    @property
    def rows_per_step(self) -> int:
        """Rows in a step."""
        return len(self.position_S) // (len(self.tokens_of_steps) - 1)

    def step_at(self, tokens: float) -> int:
        """Return the step after which so many tokens are trained on, as nearly as steps allow; at least 1."""
        return max(1, int(np.abs(self.tokens_of_steps - tokens).argmin()))


class LadderRun:
    """A ladder in a directory.

    Args:
        campaign: the manifest, the tokenizer and the configuration; its output is the ladder's directory.
        ladder: what to run.
        shapes: the model of each size, and the defaults that go with it.
        progress: called with the number of losses that are measured and their number in all.
    """

    def __init__(
        self,
        campaign: Campaign,
        ladder: Ladder,
        shapes: dict[int, tuple[InlineModel, Preset]],
        progress: Callable[[int, int], None] = lambda _done, _all: None,
    ) -> None:
        self.campaign = campaign
        self.ladder = ladder
        self._shapes = shapes
        self._progress = progress
        self._output = campaign.output
        self._heldout = HeldOut.of(campaign)

    def run(self) -> pl.DataFrame:
        """Train and measure whatever is missing.

        Returns:
            The table of all losses.

        Raises:
            LmsplitError: there is nothing to train on.
        """
        self._describe()
        order = self._order(self._mixture(), self.ladder.pretraining)
        for number, size, tokens in self.ladder.seeds():
            seed, trained = self._decayed(f"{size}", order, tokens, self.ladder.pretraining, None, size)
            self._measure(seed, (trained, 0), list(self.campaign.manifest.domains))
            for index in self.ladder.domains_of(number):
                ends = self.ladder.specialization_of(number)
                self._experts(seed, size, trained, self.campaign.manifest.domains[index], ends)
        return pl.read_ndjson(self._output / TABLE)

    def _experts(self, seed: Path, size: int, pretraining: int, domain: Domain, ends: Sequence[int]) -> None:
        packed = self.campaign.packed(domain, self.campaign.configuration.where)
        order = self._order([Share(packed, 1.0)], ends)
        for tokens in ends:
            name = f"{seed.name}-{domain.domain}"
            expert, trained = self._decayed(name, order, tokens, ends, seed, size)
            self._measure(expert, (pretraining, trained), [domain])

    def _mixture(self) -> list[Share]:
        """Return all domains in their natural ratios."""
        packs = [self.campaign.packed(each, self.campaign.configuration.where) for each in self.campaign.manifest.domains]
        return [Share(packed, float(packed.num_tokens)) for packed in packs]

    def _order(self, shares: Sequence[Share], ends: Sequence[int]) -> Order:
        fields = self.campaign.configuration.sft
        _, preset = self._shapes[self.ladder.sizes[0]]
        config = phase_config(fields, preset, 1e-3, self.campaign.configuration.seed, str(self._output))
        rows_per_step = config.per_device_train_batch_size * config.gradient_accumulation_steps
        drawn = draw_rows(
            [share.packed.row_lengths() for share in shares],
            [share.share for share in shares],
            ends[-1],
            rows_per_step,
            self.campaign.configuration.seed,
        )
        rows, position_S = joined_rows(shares, drawn)
        order = Order(rows, position_S, tokens_of_steps(shares, drawn))
        cuts = [0, *(order.step_at((1 - DECAY_FRACTION) * end) for end in ends)]
        short = any(later <= cut for cut, later in itertools.pairwise(cuts))
        if short or any(order.step_at(end) <= cut for end, cut in zip(ends, cuts[1:], strict=True)):
            raise ConfigurationError(
                f"{ends[0]:,} tokens, at {order.tokens_of_steps[1]:,} for a step, are too few for a constant rate and a decay, "
                "or within a step of the next number: choose larger ones, or smaller batches"
            )
        return order

    def _decayed(
        self, trunk: str, order: Order, tokens: int, ends: Sequence[int], start: Path | None, size: int
    ) -> tuple[Path, int]:
        """Return a model that was trained on so many tokens, the last of them at a falling rate, and how many they were."""
        warmup = max(1, round(_WARMUP * order.step_at(ends[0])))
        before, step = start, 0
        for end in ends[: ends.index(tokens) + 1]:
            until = order.step_at((1 - DECAY_FRACTION) * end)
            if until > step:
                before = self._segment(f"{trunk}-{until}", before, order, (step, until), size, warmup if step == 0 else 0, start)
                step = until
        last = order.step_at(tokens)
        segment = self._segment(f"{trunk}-{step}-{last}", before, order, (step, last), size, None, start)
        return segment, int(order.tokens_of_steps[last])

    def _segment(
        self,
        name: str,
        before: Path | None,
        order: Order,
        steps: tuple[int, int],
        size: int,
        warmup: int | None,
        start: Path | None,
    ) -> Path:
        """Train a segment unless that is done; `warmup` None: the rate falls to zero."""
        directory = self._output / _SEGMENTS / name
        if directory.exists():
            return directory
        inline, preset = self._shapes[size]
        configuration = self.campaign.configuration
        attention = attention_kind(configuration.attention)
        tokenizer = self.campaign.encoder.tokenizer
        model = load_model(before, attention) if before else build_model(inline, tokenizer, configuration.seed, attention)
        schedule = "linear" if warmup is None else "constant_with_warmup"
        fields = configuration.sft | {"lr_scheduler_type": schedule, "lr_scheduler_kwargs": {}, "warmup_steps": warmup or 0}
        phase = configuration.seed_model if start is None else configuration.expert
        rate = phase.learning_rate or (preset.seed_learning_rate if start is None else preset.expert_learning_rate)
        with whole_directory(directory) as partial:
            args = phase_config(fields | {"save_strategy": "no"}, preset, rate, configuration.seed, str(partial))
            first, last = (step * order.rows_per_step for step in steps)
            trainer = DomainTrainer(
                model=model,
                args=args,
                train_dataset=order.rows,
                row_order=order.position_S[first:last],
                processing_class=self.campaign.encoder.tokenizer,
            )
            trainer.remove_callback(PrinterCallback)
            if before is not None and before != start:  # an expert's optimizer starts empty
                load_optimizer_state(trainer, before)
            began = time.monotonic()
            trainer.train()
            seconds = time.monotonic() - began
            model.save_pretrained(partial)
            save_optimizer_state(trainer, partial)
            (partial / "training_args.bin").unlink(missing_ok=True)
            tokens = int(order.tokens_of_steps[steps[1]] - order.tokens_of_steps[steps[0]])
            facts = {"num_parameters": count_parameters(model).total, "tokens": tokens, "wall_time_s": seconds}
            write_whole(partial / "segment.json", json.dumps(facts, indent=1) + "\n")
        return directory

    def _measure(self, directory: Path, tokens: tuple[int, int], domains: Sequence[Domain]) -> None:
        """Add the losses of a model to the table, unless they are there."""
        path = self._output / TABLE
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
        if any(row["run"] == directory.name for row in rows):
            self._progress(len(rows), self.ladder.num_points)
            return
        model = load_model(directory)
        size = count_parameters(model).total
        if torch.accelerator.is_available():
            model = model.to(torch.accelerator.current_accelerator())
        for domain in domains:
            loss = self._heldout.measure_domain(model, domain.domain).nats_per_token
            if loss is None or not math.isfinite(loss):
                raise LmsplitError(
                    f"the held-out loss of {directory.name} on {domain.domain} is {loss}: lower the learning rate, or partition "
                    "again so that every domain has held-out documents"
                )
            values = (size, *tokens, domain.domain, loss)
            rows.append({"run": directory.name} | dict(zip(_COLUMNS, values, strict=True)))
        write_whole(path, "".join(json.dumps(row) + "\n" for row in rows))
        self._progress(len(rows), self.ladder.num_points)

    def _count(self, inline: InlineModel) -> int:
        """Return the number of parameters that a model has with the tokenizer as it is."""
        return count_parameters(build_model(inline, self.campaign.encoder.tokenizer, 0)).total

    def _describe(self) -> None:
        """Write what `lmsplit plan` has to know of the runs; refuse to go on with those of another ladder."""
        configuration = self.campaign.configuration
        tokens = {
            each.domain: self.campaign.packed(each, self.campaign.configuration.where).num_tokens
            for each in self.campaign.manifest.domains
        }
        facts: dict[str, Any] = {
            "manifest": configuration.manifest,
            "manifest_digest": self.campaign.manifest.digest,
            "tokenizer_digest": self.campaign.encoder.digest,
            "tokens": tokens,
            "models": {str(self._count(inline)): preset.keys(inline.config) for inline, preset in self._shapes.values()},
            "ladder": dataclasses.asdict(self.ladder) | {"standard_error": None},
            "decay_fraction": DECAY_FRACTION,
            "training": configuration.model_dump(mode="json", include={"seed_model", "expert", "where", "sft", "seed"}),
        }
        path = self._output / LADDER
        if path.exists() and (found := json.loads(path.read_text(encoding="utf-8"))) != json.loads(json.dumps(facts)):
            differs = next(key for key in facts if found.get(key) != json.loads(json.dumps(facts[key])))
            raise ConfigurationError(f"{self._output} holds a ladder with another {differs}: choose another --output")
        self.campaign.write_configuration()
        write_whole(path, json.dumps(facts, indent=1) + "\n")


_COLUMNS: Final = ("num_parameters", "pretraining_tokens", "specialization_tokens", "domain", "loss")
