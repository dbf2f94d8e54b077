"""The partition configuration: every key, its unit and its bounds. Strict and frozen; see DESIGN's command table in the README.

Keys whose work comes with a later release are known here and refused with a message that says so.
"""

import re
from math import ceil, prod
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BeforeValidator, Field, field_serializer, field_validator, model_validator

from lmsplit.manifests.configuration import Strict
from lmsplit.manifests.executor import Executor
from lmsplit.manifests.lexical import LEXICAL
from lmsplit.manifests.model_files import MINILM
from lmsplit.manifests.schema import DOCUMENT_FIELDS
from lmsplit.manifests.sentence import Precision
from lmsplit.manifests.store import scheme_of

STAGES: Final = (
    "scan", "rescan", "settle", "sample", "encode", "suggest", "fit", "heldout", "bands", "place", "gather", "ids", "publish",
)  # fmt: skip
"""Names of the stages, which `executor.stages` may give other resources."""
MAX_DOMAINS: Final = 100_000
MIN_SAMPLE: Final = 10_000
SAMPLE_PER_DOMAIN: Final = 256
MIN_HELDOUT_PER_DOMAIN: Final = 200
MAX_HELDOUT_FRACTION: Final = 0.1
MAX_HELDOUT_DOCUMENTS: Final = 2_000_000
"""Where near-duplicates are searched for. Assumption: their index then maps 480 MB at threshold 0.8, and takes 1 GB to build."""

BALANCE_ERROR: Final = 0.02
"""Relative standard error of a domain's tokens that the sample of a balanced fit is made large enough for: the bound is then
lowered by about twice that (measured: benchmarks/results/imbalance.md)."""
ASSUMED_SPREAD: Final = 2.0
"""1 + (standard deviation / mean)² of documents' lengths, until the scan has measured it (assumption)."""
MAX_BALANCED_SAMPLE: Final = 1_000_000
"""Documents beyond which balancing alone asks for no more: 1.5 GB of MiniLM's vectors (assumption)."""

_LATER: Final = "comes with a later release; leave it out for now"
_UNITS: Final = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def parse_bytes(value: Any) -> Any:
    """Read a size such as `256MB` or `64 MiB` as bytes; anything but text is returned as it is.

    >>> parse_bytes("64 MiB")
    67108864
    """
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([KMG]?I?B?)", value.strip().upper())
    if match is None or match[2] not in _UNITS:
        raise ValueError(f"{value!r} is no size: expected bytes, or for example 256MB or 64MiB")
    return int(float(match[1]) * _UNITS[match[2]])


Bytes = Annotated[int, BeforeValidator(parse_bytes)]


class KeptColumn(Strict):
    """An input column that is carried into the manifest under its own name."""

    name: str = Field(min_length=1, description="the column's name")
    type: str | None = Field(default=None, description="Arrow type, such as int64; as in the Parquet file, or string")


class Input(Strict):
    """Where the corpus is, and which column means what."""

    paths: tuple[str, ...] = Field(min_length=1, description="Parquet or JSONL: files, globs, directories, or URLs of them")
    text: str = Field(default="text", min_length=1, description="column with the text")
    id: str = Field(default="id", min_length=1, description="column with a unique id; a document without one is path:row")
    source: str = Field(default="source", min_length=1, description="column with the source; may be absent")
    group: str | None = Field(default=None, description="column that must not be torn between splits; default: the text")
    keep: tuple[KeptColumn, ...] = Field(default=(), description="further columns to carry into the manifest, there by name")

    @field_validator("paths", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("keep", mode="before")
    @classmethod
    def _names(cls, value: Any) -> Any:
        return [{"name": item} if isinstance(item, str) else item for item in value] if isinstance(value, list) else value

    @field_validator("keep")
    @classmethod
    def _no_clash(cls, value: tuple[KeptColumn, ...]) -> tuple[KeptColumn, ...]:
        fixed = {name for name, *_ in DOCUMENT_FIELDS}
        names = [column.name for column in value]
        if clash := sorted(fixed.intersection(names)):
            raise ValueError(f"columns {clash} are in every manifest anyway: rename them in the input or leave them out")
        if len(set(names)) < len(names):
            raise ValueError(f"a column is named twice in {names}")
        return value


class Encoder(Strict):
    """What turns text into vectors: a sentence-transformers model, or `lexical`."""

    model: str = Field(default=MINILM, min_length=1, description="minilm, lexical, a model's directory, or a hub id")
    revision: str | None = Field(default=None, description="of a hub id: 40 hexadecimal digits of a commit")
    max_tokens: int = Field(
        default=128, ge=8, le=8192, description="a text's first so many tokens are read, by the model's tokenizer"
    )
    batch_size: int | None = Field(default=None, ge=1, description="texts of max_tokens in a batch [16 on a CPU, 256 on a GPU]")
    device: Literal["cpu", "cuda"] | None = Field(default=None, description="where to compute [a GPU where there is one]")
    backend: Literal["torch"] = Field(default="torch", description="what computes; onnx and openvino are not supported")
    precision: Precision | None = Field(default=None, description="of the model [bfloat16 where it is fast, else float32]")
    trust_remote_code: bool = Field(default=False, description="run code that comes with a hub model, at a pinned revision")

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        given = sorted(self.model_fields_set - {"model"})
        if self.model == LEXICAL and any(getattr(self, key) != type(self).model_fields[key].default for key in given):
            raise ValueError(f"{', '.join(given)} belong to a model, and lexical has none: leave them out")
        if self.revision and (self.model in {MINILM, LEXICAL} or Path(self.model).is_dir()):
            raise ValueError(f"revision is for a hub id, and {self.model!r} is none: leave it out")
        if self.trust_remote_code and not self.revision:
            raise ValueError("trust_remote_code needs a hub id with a revision: code that may change cannot be trusted")
        return self

    def content(self) -> dict[str, Any]:
        """Return the keys that determine vectors, but for a directory's name: its files have digests in the plan."""
        if self.model == LEXICAL:
            return {"model": LEXICAL}
        values = self.model_dump(mode="json")
        return values | {"model": "directory"} if Path(self.model).is_dir() else values


class Partition(Strict):
    """How to turn a corpus into a manifest."""

    input: Input = Field(description="the corpus: a path, a glob, a list of them, or a mapping with columns")
    output: str = Field(min_length=1, description="where the manifest goes: a directory, or a URL of s3, gs or az")
    domains: tuple[int, ...] = Field(description="number of domains k; or a list such as [8, 4]: 8 branches of 4 each")
    encoder: Encoder = Field(default_factory=Encoder, description="minilm, lexical, or a mapping: what turns text into vectors")
    sample_size: int | None = Field(default=None, ge=1, description="documents to cluster [256 x domains, at least 10,000]")
    max_imbalance: float | None = Field(
        default=None, gt=1, le=1000, description="bound on the largest domain's tokens (without a tokenizer: bytes) over the mean"
    )
    heldout_fraction: float = Field(default=0.01, ge=0, le=MAX_HELDOUT_FRACTION, description="share of documents held out")
    near_duplicate_threshold: float | None = Field(
        default=0.8,
        ge=0.5,
        le=1,
        description="Jaccard similarity of word 5-grams to a held-out text that excludes one; null: off",
    )
    max_bad_fraction: float = Field(default=0.001, ge=0, le=1, description="share of records that may be quarantined")
    max_record_bytes: Bytes = Field(default=64 * 2**20, ge=1024, le=2**30, description="longest record read, in bytes")
    duplicate_ids: Literal["error", "quarantine"] = Field(default="error", description="what to do with a repeated id")
    tokenizer: str | None = Field(default=None, min_length=1, description="tokenizer.json, its directory or a hub id: num_tokens")
    shard_size: Bytes = Field(default=256 * 10**6, ge=2**20, description="text bytes in one data file, at most by one piece")
    keep_embeddings: bool = Field(default=False, description="publish every document's vector too; lets --refit encode nothing")
    gate: Literal["warn", "fail"] = Field(default="warn", description="what findings of the quality gate do before publish")
    seed: int = Field(default=0, ge=0, lt=2**63, description="seed of every random choice")
    executor: Executor = Field(default_factory=Executor, description="what runs the stages")

    @model_validator(mode="before")
    @classmethod
    def _later(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        if values.get("agreement") is not None:
            raise ValueError(f"agreement: {_LATER}")
        return {key: value for key, value in values.items() if key != "agreement"}

    @field_validator("input", mode="before")
    @classmethod
    def _shorthand(cls, value: Any) -> Any:
        return {"paths": value} if isinstance(value, str | list) else value

    @field_validator("executor")
    @classmethod
    def _has_these_stages(cls, value: Executor) -> Executor:
        value.check_stages(STAGES)
        return value

    @field_validator("output")
    @classmethod
    def _is_writable(cls, value: str) -> str:
        if scheme_of(value) == "hf":
            raise ValueError("hf:// is for input only: write to a local directory, s3://, gs:// or az://")
        return value

    @field_validator("domains", mode="before")
    @classmethod
    def _levels(cls, value: Any) -> Any:
        levels = value if isinstance(value, list | tuple) else [value]
        least = 1 if len(levels) == 1 else 2
        if not levels or not all(type(level) is int and level >= least for level in levels) or prod(levels) > MAX_DOMAINS:
            raise ValueError(
                f"expected a whole number from 1 to {MAX_DOMAINS}, or for a hierarchy a list with one of at least 2 a level, "
                "such as [8, 4]"
            )
        return tuple(levels)

    @field_serializer("domains")
    def _shortest(self, value: tuple[int, ...]) -> int | list[int]:
        return value[0] if len(value) == 1 else list(value)

    @field_validator("encoder", mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        if value == "cascade":
            raise ValueError(f"cascade {_LATER}")
        if isinstance(value, str) and value not in {MINILM, LEXICAL}:
            raise ValueError("expected minilm, lexical, or a mapping such as {model: <directory or hub id>, revision: <commit>}")
        return {"model": value} if isinstance(value, str) else value

    @property
    def num_domains(self) -> int:
        """K, the leaves asked for; a branch with few different documents may get fewer."""
        return prod(self.domains)

    def wanted_sample(self, spread: float = ASSUMED_SPREAD) -> int:
        """Return how many documents the clustering sample should have; the corpus may have fewer.

        Args:
            spread: 1 + (standard deviation / mean)² of the documents' lengths; balancing needs the more of them the larger it is.
        """
        wanted = max(MIN_SAMPLE, SAMPLE_PER_DOMAIN * self.num_domains)
        if self.max_imbalance is not None:
            wanted = max(wanted, min(MAX_BALANCED_SAMPLE, ceil(self.num_domains * spread / BALANCE_ERROR**2)))
        return self.sample_size or wanted

    def content(self) -> dict[str, Any]:
        """Return the keys that determine the manifest's content: not the output, the executor, or where the input lies."""
        elsewhere = {"output", "executor", "encoder", "tokenizer", "gate"}
        values = self.model_dump(mode="json", exclude={**dict.fromkeys(elsewhere, True), "input": {"paths"}})
        if self.max_imbalance is None:  # else the scan finds out how many are needed
            values["sample_size"] = self.wanted_sample()
        return values | {"encoder": self.encoder.content()}
