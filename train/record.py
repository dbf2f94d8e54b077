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


class ManifestReference(Strict):
    """Which manifest a model was trained on."""

    path: str
    """As the configuration names it."""
    digest: str
    """SHA-256 of the commit's body."""


class RunRecord(Strict):
    """One training run."""

    schema_version: Literal[1] = 1
    kind: Literal["seed", "expert"]
    domain: str | None
    """The expert's domain; null for the seed."""
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
    """D': tokens that the expert was trained on beyond the seed; 0 for the seed."""
    num_documents: int
    """Training documents that the rows were packed from."""
    num_tokens: int
    """Tokens in those rows, begin and end tokens included."""
    num_epochs: float
    """Rows trained on ÷ rows there are; above 1, text was repeated."""
    num_steps: int
    batch_rows: int
    """Rows in a step, over all processes and accumulation."""
    max_length: int
    """Tokens in a row."""
    losses: dict[str, DomainLosses]
    """By domain."""
    train_loss: float
    """Mean over the steps, nats per token."""
    flops: float
    """6·N·tokens of this run (arXiv 2001.08361, section 2.1)."""
    wall_time_s: float
    """Of the training loop; loading, packing and evaluation are not in it."""
    tokens_per_s: float
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


def weights_sha256(directory: Path) -> str:
    """Return one digest over all weight files of a model's directory, names included."""
    digest = hashlib.sha256()
    for path in sorted(directory.glob("*.safetensors")):
        digest.update(f"{path.name} {file_sha256(path)}\n".encode())
    return digest.hexdigest()


def software_versions() -> dict[str, str]:
    """Return the versions of what trained the model."""
    return {"python": platform.python_version()} | {name: version(name) for name in _SOFTWARE}
