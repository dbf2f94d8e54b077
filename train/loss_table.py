"""Every model's loss on every token of the same held-out documents: what all comparisons are made from.

```
seed, experts, merged, dense ─token_losses─► (M, T) nats ─► cross-loss, ways to answer, mixtures, routing by likelihood
```

A model that was measured stays in `<output>/evaluation/losses/`, so that the same command goes on with the next one. Cost: one
forward pass a model and token; memory: 4 bytes a model and token, twice while it is read. This does *not* judge: see `answers`.

Shapes: M models, the seed first, then K experts; N documents; T tokens of all of them.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from lmsplit.manifests.errors import ConfigurationError, LmsplitError
from lmsplit.train.campaign import Campaign
from lmsplit.train.directory import whole_file
from lmsplit.train.experts import seed_record
from lmsplit.train.heldout import HeldOut
from lmsplit.train.layout import DENSE, EVALUATION, MERGED, SEED, Matched
from lmsplit.train.models import load_model
from lmsplit.train.phase import finished_record
from lmsplit.train.record import RunRecord, read_record
from lmsplit.train.text_losses import token_losses

_LOSSES: Final = "losses"

Floats = npt.NDArray[np.float64]


class Model(NamedTuple):
    """A model that is judged."""

    name: str
    """`seed`, an expert's domain, `merged`, `dense-per-model` or `dense-total`."""
    directory: Path
    record: RunRecord


class LossTable(NamedTuple):
    """Held-out documents, and every model's loss on each of their tokens."""

    models: tuple[Model, ...]
    """The seed, the expert of every domain in their order, and the baselines that there are."""
    num_experts: int
    nats_MT: npt.NDArray[np.float32]
    tokens_N: npt.NDArray[np.int64]
    """Of each document."""
    bytes_N: npt.NDArray[np.int64]
    domain_N: npt.NDArray[np.int64]
    """Number, among the manifest's domains, of the one that it has each document in."""
    groups: tuple[str, ...]
    """What each document has in common with others; its own id where there is none."""
    doc_ids: tuple[str, ...]
    texts: tuple[str, ...]

    @property
    def domains(self) -> tuple[str, ...]:
        """The domains' names."""
        return tuple(model.name for model in self.models[1 : 1 + self.num_experts])

    def of_experts(self) -> npt.NDArray[np.float32]:
        """Return (K, T) the experts' losses."""
        return self.nats_MT[1 : 1 + self.num_experts]

    def of_others(self) -> dict[str, npt.NDArray[np.float32]]:
        """Return (T,) the losses of each model that is no expert, by name."""
        return {
            model.name: nats_T
            for number, (model, nats_T) in enumerate(zip(self.models, self.nats_MT, strict=True))
            if number == 0 or number > self.num_experts
        }


def trained_models(campaign: Campaign) -> list[Model]:
    """Return the seed, all experts, and the baselines that there are.

    Raises:
        ConfigurationError: the seed or an expert is missing, or one of them was trained with another configuration.
    """
    seed = seed_record(campaign)
    found = [Model(SEED, campaign.seed_run().directory, seed)]
    missing = []
    for domain in campaign.manifest.domains:
        run = campaign.expert_run(domain, seed.weights_sha256)
        record = finished_record(run)
        if record is None:
            missing.append(domain.domain)
        else:
            found.append(Model(domain.domain, run.directory, record))
    if missing:
        raise ConfigurationError(f"there is no expert of {', '.join(missing)}: train them first with --all")
    experts = {model.name: model.record.weights_sha256 for model in found[1:]}
    merged = campaign.output / MERGED
    if merged.exists():
        record = read_record(merged)
        if record.configuration.get("experts") != experts:
            raise ConfigurationError(f"{merged} is the average of other experts: remove it, and average these with --merge")
        found.append(Model(MERGED, merged, record))
    for matched in Matched:
        run = campaign.dense_run(matched, seed.weights_sha256)
        if (record := finished_record(run)) is not None:
            found.append(Model(f"{DENSE}-{matched}", run.directory, record))
    return found


def measure(
    campaign: Campaign, models: Sequence[Model], progress: Callable[[int, int], None] = lambda _done, _all: None
) -> LossTable:
    """Return every model's losses; measure those that are missing.

    Args:
        campaign: the manifest, the tokenizer, and how many documents of a domain are measured.
        models: from `trained_models`.
        progress: called with the number of models that are measured and their number in all.

    Raises:
        LmsplitError: no document is held out, or a loss is no finite number.
    """
    documents = HeldOut.of(campaign).documents()
    if not len(documents):
        raise LmsplitError(f"{campaign.configuration.manifest} has no held-out documents: partition again with some")
    texts = documents["text"].to_list()
    max_length = campaign.packing.max_length
    content = [campaign.manifest.digest, campaign.encoder.digest, max_length, documents["doc_id"].to_list()]
    digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()
    directory = campaign.output / EVALUATION / _LOSSES
    directory.mkdir(parents=True, exist_ok=True)
    names = [domain.domain for domain in campaign.manifest.domains]
    rows = []
    for number, model in enumerate(models):
        path = directory / f"{model.name}-{model.record.weights_sha256[:16]}-{digest[:16]}.npz"
        if not path.exists():
            _measure_one(campaign, model, texts, path)
        with np.load(path, allow_pickle=False) as found:
            rows.append(found["nats_T"])
            tokens_N, bytes_N = found["tokens_N"], found["bytes_N"]
        progress(number + 1, len(models))
    return LossTable(
        models=tuple(models),
        num_experts=len(campaign.manifest.domains),
        nats_MT=np.stack(rows),
        tokens_N=tokens_N,
        bytes_N=bytes_N,
        domain_N=np.array([names.index(name) for name in documents["domain"]], np.int64),
        groups=tuple(documents["group"].fill_null(documents["doc_id"]).to_list()),
        doc_ids=tuple(documents["doc_id"].to_list()),
        texts=tuple(texts),
    )


def _measure_one(campaign: Campaign, model: Model, texts: Sequence[str], path: Path) -> None:
    loaded = load_model(model.directory)
    if torch.accelerator.is_available():
        loaded = loaded.to(torch.accelerator.current_accelerator())
    found = token_losses(loaded, campaign.encoder, [texts], campaign.packing.max_length)
    if not np.isfinite(found.nats_T).all():
        raise LmsplitError(f"{model.name} has a loss that is no finite number: train it again with a lower learning rate")
    with whole_file(path) as partial, partial.open("wb") as stream:
        np.savez(stream, nats_T=found.nats_T, tokens_N=found.tokens_N, bytes_N=found.bytes_N)
