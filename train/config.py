"""The training configuration: what `lmsplit train CONFIG.yaml` accepts.

The smallest one is `manifest`, `output`, `model`, `seed_model.tokens` and `expert.tokens`. Keys whose work
belongs to a later release are refused by name, so that nobody believes they had an effect. Fields of TRL's
`SFTConfig` are checked in `sft`, because that needs TRL. Paths are relative to the current directory.

This imports nothing heavy and reads no file.
"""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from lmsplit.manifests.configuration import Strict

Tokens = Annotated[int, Field(gt=0)]
LearningRate = Annotated[float, Field(gt=0, lt=1)]


class _Section(Strict):
    """A section that knows which of its keys are promised for later."""

    later: ClassVar[frozenset[str]] = frozenset()

    @model_validator(mode="before")
    @classmethod
    def _refuse_later_keys(cls, values: Any) -> Any:
        found = sorted(cls.later & set(values)) if isinstance(values, dict) else []
        if found:
            raise ValueError(f"{', '.join(map(repr, found))} comes with a later release: remove it for now")
        return values


class InlineModel(_Section):
    """A model given as a transformers configuration, with fresh weights."""

    config: dict[str, Any]
    """`model_type` and any fields of that type's configuration; the vocabulary's size comes from the
    tokenizer.
    """

    @model_validator(mode="after")
    def _has_a_type(self) -> "InlineModel":
        if not isinstance(self.config.get("model_type"), str):
            raise ValueError("model.config needs a model_type, for example model_type: llama")
        return self


class TrainedTokenizer(_Section):
    """A byte-level BPE tokenizer trained on the manifest's training documents."""

    vocabulary_size: Annotated[int, Field(ge=300)] | None = None
    """Number of tokens, the special ones included; null: the preset's."""


class SeedModel(_Section):
    """The model pretrained on the mixture of all domains."""

    later: ClassVar[frozenset[str]] = frozenset({"mixture", "where", "replay", "max_repetitions"})

    tokens: Tokens
    """D: tokens to train on; the last row may pass it. More than the corpus has means repetition."""
    learning_rate: LearningRate | None = None
    """Peak learning rate; null: the preset's."""


class Expert(_Section):
    """One continued copy of the seed for each domain."""

    later: ClassVar[frozenset[str]] = frozenset(
        {"interference", "replay", "where", "mixture", "max_repetitions", "optimizer_state"}
    )

    tokens: Tokens
    """D': tokens to train each expert on, in its own domain; more than the domain has means repetition."""
    learning_rate: LearningRate | None = None
    """Peak learning rate of the continued phase; null: the preset's."""


class Executor(_Section):
    """Where the experts are trained."""

    later: ClassVar[frozenset[str]] = frozenset({"workers", "partition", "time", "gpus"})

    kind: Literal["local"] = "local"
    """One after the other in this process; Slurm and Ray come with a later release."""

    @model_validator(mode="before")
    @classmethod
    def _refuse_later_kinds(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("kind") in {"slurm", "ray"}:
            raise ValueError(f"kind {values['kind']!r} comes with a later release: use local for now")
        return values


class Training(_Section):
    """A whole training configuration."""

    later: ClassVar[frozenset[str]] = frozenset({"where", "mixture", "merge", "since", "trackers"})

    manifest: Annotated[str, Field(min_length=1)]
    """The manifest's directory, or `<directory>@<number>` for an older commit."""
    output: Annotated[str, Field(min_length=1)]
    """Directory for everything that training writes."""
    model: str | InlineModel
    """A preset (1m, 5m, 30m, 125m, 350m, 1b), `{config: …}`, a local path, or a hub id."""
    tokenizer: str | TrainedTokenizer | None = None
    """A local path or hub id, or one to train; null: the given model's own, else one trained for the preset.
    """
    seed_model: SeedModel
    """The phase on the mixture."""
    expert: Expert
    """The phase on one domain."""
    sft: dict[str, Any] = Field(default_factory=dict)
    """Any field of TRL's SFTConfig, for both phases, except those that the keys above decide."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Of the weights and of the order of rows."""
    executor: Executor = Executor()
    """Where the experts are trained."""
