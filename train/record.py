"""The record of one training run, `run.json`: what was trained, on what, at what cost, with what result.

Written once, beside the model, inside the directory that appears whole or not at all. This does *not* hold
settings of machines: no host, no absolute path but the manifest's as it was given.
"""

import hashlib
import json
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from lmsplit.manifests.configuration import Strict
from lmsplit.manifests.errors import ManifestError
from lmsplit.manifests.store import file_sha256
from lmsplit.train.loss import HeldOutLoss

RECORD = "run.json"
_SOFTWARE = (
    "lmsplit",
    "torch",
    "transformers",
    "trl",
    "accelerate",
    "datasets",
    "tokenizers",
    "safetensors",
    "numpy",
)


class Loss(Strict):
    """A loss in both units; null where there was nothing to predict."""

    nats_per_token: float | None
    bits_per_byte: float | None

    @classmethod
    def of(cls, loss: HeldOutLoss) -> "Loss":
        """Return the two means of a measured loss."""
        return cls(nats_per_token=loss.nats_per_token, bits_per_byte=loss.bits_per_byte)


class DomainLosses(Strict):
    """The loss on one domain's held-out documents."""

    before: Loss | None
    """At the first step; null for a model with fresh weights."""
    after: Loss
    """After the last step."""
    num_documents: int
    num_tokens: int
    """Tokens predicted."""
    num_bytes: int
    """UTF-8 bytes of the documents."""


class Evaluation(Strict):
    """The held-out loss on every domain after one step."""

    step: int
    """0: before the first one."""
    tokens: int
    """Tokens that this run had trained on."""
    losses: dict[str, Loss]
    """By domain."""


class DomainTokens(Strict):
    """What a run took from one domain's packed training documents."""

    pack: str
    """Digest of the packed rows."""
    num_documents: int
    """Documents in them."""
    num_filtered: int
    """Training documents that the row filter left out."""
    num_tokens: int
    """Tokens in them, begin and end tokens included."""
    trained_tokens: int
    """Tokens trained on, repetitions counted."""
    not_reached_tokens: int
    """Tokens never trained on: `num_tokens` is these and the ones trained on at least once."""
    repetitions: float
    """Rows trained on ÷ rows there are."""


class ManifestReference(Strict):
    """Which manifest a model was trained on."""

    path: str
    """As the configuration names it."""
    digest: str
    """SHA-256 of the commit's body."""


class InterferenceRecord(Strict):
    """What an expert's run had from the other domains, where `interference` was asked for."""

    num_tokens: int
    """Of the run's tokens, those in rows of the other domains."""
    seed_passes: bool
    """Whether the seed was run on them too; counted in `flops` as 2·N for each."""
    reference_losses: str | None
    """Digest of the seed's cached losses; null where none were needed."""
    noise: float | None
    """Largest difference between these and the trainer's before the first step, nats; null where there were none."""
    margin: float
    """Nats of excess that cost nothing."""
    end_weight: float
    """The weight at the end."""


class RunRecord(Strict):
    """One training run."""

    schema_version: Literal[2] = 2
    kind: Literal["seed", "expert", "merged", "dense"]
    domain: str | None
    """The expert's domain; null for the others."""
    label: str | None
    manifest: ManifestReference
    tokenizer_digest: str
    configuration_digest: str
    """SHA-256 of `configuration`: the same digest, the same training."""
    configuration: dict[str, Any]
    """Everything that determines the model; the other digests included."""
    num_parameters: int
    """N: every parameter, tied embeddings once."""
    num_parameters_non_embedding: int
    pretraining_tokens: int
    """D: tokens that the seed was trained on."""
    specialization_tokens: int
    """D': tokens that an expert or dense baseline was trained on beyond the seed; 0 for the seed."""
    where: dict[str, list[Any]] | None
    """The row filter; null where there was none."""
    domains: dict[str, DomainTokens]
    """Where the tokens came from; an expert's own domain and those that it sees some of."""
    num_steps: int
    batch_rows: int
    """Rows in a step, over all processes and accumulation."""
    max_length: int
    """Tokens in a row."""
    losses: dict[str, DomainLosses]
    """By domain, before and after."""
    evaluations: list[Evaluation]
    """Every time that the held-out loss was measured, in order."""
    interference: InterferenceRecord | None = None
    """Null where none was asked for, and where there were no documents of other domains."""
    train_loss: float | None
    """Mean over the steps of what is minimised, nats per token: with interference, the own loss and the weighted penalty; null
    where there were none.
    """
    flops: float
    """6·N·tokens of this run (arXiv 2001.08361, section 2.1), and what the seed was run on beside it."""
    wall_time_s: float
    """Of the training loop, all attempts together; loading, packing and evaluation are not in it."""
    tokens_per_s: float
    data_wait_fraction: float
    """Share of the loop that waited for its next batch."""
    model_flops_utilization: float | None
    """`flops` per second ÷ the peak of the devices: a GPU's by its data sheet, a CPU's measured; null where it is not known."""
    energy_kwh: float | None
    """Of the last attempt's training loop; null where it was not measured."""
    num_processes: int
    """Processes that trained together."""
    num_threads: int
    """Threads of each; another number may give other bits."""
    precision: Literal["fp32", "bf16", "fp16"]
    device: str
    weights_sha256: str
    seed_weights_sha256: str | None
    """The seed that an expert continues; null for the seed."""
    software: dict[str, str] = Field(default_factory=dict)

    def loss(self, domain: str) -> Loss | None:
        """Return the final loss on a domain, or None where it was not evaluated."""
        return self.losses[domain].after if domain in self.losses else None

    def to_json(self) -> str:
        """Return the record as indented JSON; never NaN."""
        return json.dumps(self.model_dump(), indent=1, allow_nan=False) + "\n"


def domain_losses(before: dict[str, Loss] | None, after: dict[str, HeldOutLoss]) -> dict[str, DomainLosses]:
    """Return the losses on every domain before and after a run.

    Args:
        before: None for fresh weights.
        after: what was measured at the end.
    """
    return {
        domain: DomainLosses(
            before=before[domain] if before else None,
            after=Loss.of(loss),
            num_documents=loss.num_documents,
            num_tokens=loss.num_tokens,
            num_bytes=loss.num_bytes,
        )
        for domain, loss in after.items()
    }


def read_record(directory: Path) -> RunRecord:
    """Read the record of a finished run.

    Raises:
        ManifestError: there is none, or this version cannot read it.
    """
    path = directory / RECORD
    try:
        return RunRecord.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValidationError) as error:
        raise ManifestError(
            f"{path} is missing or cannot be read ({str(error).partition(chr(10))[0]}): remove {directory} to train it again"
        ) from error


def content_digest(content: dict[str, Any]) -> str:
    """Return the SHA-256 of all that determines a model."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def weights_sha256(directory: Path) -> str:
    """Return one digest over all weight files of a model's directory, names included; an optimizer's state is none."""
    digest = hashlib.sha256()
    for path in sorted(directory.glob("model*.safetensors")):
        digest.update(f"{path.name} {file_sha256(path)}\n".encode())
    return digest.hexdigest()


def software_versions() -> dict[str, str]:
    """Return the versions of what trained the model."""
    return {"python": platform.python_version()} | {name: version(name) for name in _SOFTWARE}
