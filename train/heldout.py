"""The held-out loss on every domain: on the same documents every time, before, during and after a run.

A domain's documents are chosen evenly from all that are held out, so that two models, or two moments of one, are compared on
the same ones. This does *not* decide what a loss is (see `text_losses`).
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
from transformers import (
    PreTrainedModel,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from lmsplit.manifests.reader import Manifest
from lmsplit.train.campaign import Campaign
from lmsplit.train.config import Evaluation as Settings
from lmsplit.train.config import Where
from lmsplit.train.directory import write_whole
from lmsplit.train.loss import HeldOutLoss
from lmsplit.train.models import copy_model
from lmsplit.train.record import Evaluation, Loss
from lmsplit.train.selection import selected_batches
from lmsplit.train.text_losses import evaluate_texts
from lmsplit.train.tokenizer import DocumentEncoder


class HeldOut:
    """The held-out documents of every domain.

    Args:
        manifest: where they are.
        encoder: the model's tokenizer.
        max_length: tokens in a window, at least 2.
        settings: how many documents of a domain, and how often.
    """

    def __init__(self, manifest: Manifest, encoder: DocumentEncoder, max_length: int, settings: Settings) -> None:
        self.settings = settings
        self._manifest = manifest
        self._encoder = encoder
        self._max_length = max_length

    @classmethod
    def of(cls, campaign: Campaign) -> "HeldOut":
        """Return the held-out documents of a campaign's manifest, as its configuration asks for them."""
        settings = campaign.configuration.evaluation
        return cls(campaign.manifest, campaign.encoder, campaign.packing.max_length, settings)

    def num_documents(self) -> dict[str, int]:
        """Return how many documents of each domain are measured."""
        limit = self.settings.documents
        held_out = {domain.domain: domain.splits["heldout"] for domain in self._manifest.domains}
        return {name: count if limit is None else min(limit, count) for name, count in held_out.items()}

    def measure(self, model: PreTrainedModel) -> dict[str, HeldOutLoss]:
        """Return a model's loss on every domain."""
        return {name: self.measure_domain(model, name) for name in self.num_documents()}

    def measure_domain(self, model: PreTrainedModel, domain: str) -> HeldOutLoss:
        """Return a model's loss on one domain."""
        return evaluate_texts(model, self._encoder, self._texts(domain), self._max_length)

    def documents(self) -> pl.DataFrame:
        """Return all documents that are measured: doc_id, text, domain, group."""
        columns = ["doc_id", "text", "domain", "group"]
        batches = [batch for domain in self.num_documents() for batch in self._batches(domain, columns)]
        schema = pa.schema([self._manifest.schema.field(name) for name in columns])
        return pl.DataFrame(pa.Table.from_batches(batches, schema))

    def _texts(self, domain: str) -> Iterator[list[str]]:
        for batch in self._batches(domain, ["text"]):
            yield batch.column("text").to_pylist()

    def _batches(self, domain: str, columns: list[str]) -> Iterator[pa.RecordBatch]:
        yield from evenly_chosen(self._manifest, domain, "heldout", self.num_documents()[domain], columns)


def evenly_chosen(
    manifest: Manifest, domain: str, split: str, wanted: int, columns: Sequence[str], where: Where | None = None
) -> Iterator[pa.RecordBatch]:
    """Yield documents of a domain that are evenly chosen: the same ones every time.

    Args:
        manifest: where they are.
        domain: its name.
        split: of which split.
        wanted: how many; all of them where there are fewer.
        columns: of each.
        where: of which documents (see `selection`); of all when None.
    """
    total = manifest.domain(domain).splits[split]
    if where:
        total = sum(batch.num_rows for batch in selected_batches(manifest, domain, split, where, ["doc_id"]))
    wanted = min(wanted, total)
    chosen = set((np.arange(wanted) * total // max(1, wanted)).tolist())
    position = 0
    for batch in selected_batches(manifest, domain, split, where or {}, columns):
        places = [index for index in range(batch.num_rows) if position + index in chosen]
        position += batch.num_rows
        yield batch.take(pa.array(places, pa.int64()))


class HeldOutCallback(TrainerCallback):
    """Measures the held-out loss in the middle of a run, and keeps all that was measured.

    A copy of the model in float32 is measured, as at the end: the trained one may compute in mixed precision.

    Args:
        heldout: what to measure on.
        tokens_of_steps: (steps + 1,) tokens trained on after each step, 0 at first.
        path: where the measurements are kept until the run is done.
        before: the loss before the first step, where it is known.
    """

    def __init__(
        self, heldout: HeldOut, tokens_of_steps: npt.NDArray[np.int64], path: Path, before: dict[str, Loss] | None
    ) -> None:
        self._heldout = heldout
        self._tokens_of_steps = tokens_of_steps
        self._path = path
        self.evaluations = [] if before is None else [Evaluation(step=0, tokens=0, losses=before)]

    def add(self, step: int, losses: dict[str, HeldOutLoss]) -> None:
        """Keep what was measured after a step, unless that was done already."""
        if any(each.step == step for each in self.evaluations):
            return
        found = {name: Loss.of(loss) for name, loss in losses.items()}
        self.evaluations.append(Evaluation(step=step, tokens=int(self._tokens_of_steps[step]), losses=found))

    def on_train_begin(self, _args: TrainingArguments, state: TrainerState, _control: TrainerControl, **_kwargs: Any) -> None:
        """Take up what an earlier attempt measured up to its checkpoint."""
        if state.global_step and self._path.exists():
            kept = [Evaluation.model_validate(each) for each in json.loads(self._path.read_text(encoding="utf-8"))]
            self.evaluations = [each for each in kept if each.step <= state.global_step]

    def on_step_end(
        self,
        _args: TrainingArguments,
        state: TrainerState,
        _control: TrainerControl,
        model: PreTrainedModel | None = None,
        **_kwargs: Any,
    ) -> None:
        """Measure where it is time."""
        every = self._heldout.settings.every_steps
        if model is None or every is None or state.global_step % every or state.global_step >= state.max_steps:
            return
        self.add(state.global_step, self._heldout.measure(copy_model(model)))
        kept = [each.model_dump() for each in self.evaluations]
        write_whole(self._path, json.dumps(kept, indent=1) + "\n")
