"""The training configuration: what `lmsplit train CONFIG.yaml` accepts.

The smallest one is `manifest`, `output`, `model`, `seed_model.tokens` and `expert.tokens`. Keys whose work
belongs to a later release are refused by name, so that nobody believes they had an effect. Fields of TRL's
`SFTConfig` are checked in `sft`, because that needs TRL. Paths are relative to the current directory.

This imports nothing heavy and reads no file.
"""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from lmsplit.manifests import executor
from lmsplit.manifests.configuration import Strict

Tokens = Annotated[int, Field(gt=0)]
Where = dict[str, Annotated[list[str | int | float | bool], Field(min_length=1)]]
"""A row filter: column → the values that are let in, such as `{license: [MIT, CC0]}`."""
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


class _Phase(_Section):
    """What the seed's and the experts' training have in common."""

    tokens: Tokens
    """Tokens to train on, for each model; passed by less than a row of each domain and one step. More than there are means
    repetition.
    """
    learning_rate: LearningRate | None = None
    """Peak learning rate; null: the preset's."""
    where: Where | None = None
    """Train only on documents with these values in these columns; null: the configuration's `where`."""
    max_repetitions: Annotated[float, Field(gt=0)] | None = None
    """How often a domain's tokens are trained on at most; the budget is cut where it would be more. null: no bound."""
    sft: dict[str, Any] = Field(default_factory=dict)
    """Fields of TRL's SFTConfig for this phase alone, over those of `sft`: a schedule of its own, for example."""


class SeedModel(_Phase):
    """The model pretrained on the mixture of all domains."""

    mixture: Literal["natural", "uniform"] | dict[str, Annotated[float, Field(ge=0)]] = "natural"
    """Share of the tokens by domain: as they are, all alike, or given as weights, of which only the ratios matter. A domain
    that is not named has none.
    """


class Dual(_Section):
    """Lets the weight of the penalty follow what it is to hold: λ ← max(0, λ + rate · (excess − target)) after each batch."""

    target: Annotated[float, Field(ge=0)]
    """Excess over the seed's loss on the other domains that is put up with, nats per token."""
    rate: Annotated[float, Field(gt=0)] = 0.1
    """How fast the weight moves, per nat and batch (assumption: 0.1)."""


class Interference(_Section):
    """Documents of the other domains in an expert's training, and what they are trained on.

    The objective is E_own ℓ + weight · E_others p, both means over tokens; p is the divergence from the seed's predictions
    (`kl`), the loss itself (`replay`), or the loss above the seed's (`hinge`): see `interference`.
    """

    kind: Literal["hinge", "replay", "kl"] = "kl"
    """What the documents of the other domains are trained on (measured: benchmarks/results/interference.md)."""
    weight: Annotated[float, Field(ge=0)] | None = None
    """λ; null: fraction / (1 - fraction), with which all of the run's tokens count alike."""
    fraction: Annotated[float, Field(gt=0, lt=1)] = 0.03
    """Share of the run's tokens that comes from the other domains."""
    level: Literal["token", "document"] = "token"
    """Whether the hinge is put on each token's excess, or on the mean excess of each document's piece."""
    margin: Annotated[float, Field(ge=0)] = 0.0
    """Excess that costs nothing, nats; raised to the numerical noise that is measured before the first step."""
    temperature: Annotated[float, Field(gt=0)] | None = 0.5
    """T: a domain j is drawn from in proportion to its tokens · exp(−‖c − c_j‖²/T), c being unit centroids; null: to its tokens
    alone (assumption: 0.5).
    """
    dual: Dual | None = None
    """Let the weight move during the run; null: it stays."""

    @model_validator(mode="after")
    def _fits_its_kind(self) -> "Interference":
        if self.kind != "hinge" and (self.level != "token" or self.margin):
            raise ValueError(f"level and margin are those of the hinge: remove them, or the kind {self.kind}")
        if self.kind == "replay" and self.dual is not None:
            raise ValueError("replay has no excess over the seed that a dual weight could follow: remove dual")
        return self

    @property
    def start_weight(self) -> float:
        """λ before the first step."""
        if self.weight is not None:
            return self.weight
        return self.fraction / (1 - self.fraction)


class Expert(_Phase):
    """One continued copy of the seed for each domain."""

    later: ClassVar[frozenset[str]] = frozenset({"mixture"})

    domain_tokens: dict[str, Tokens] = Field(default_factory=dict)
    """Tokens for single domains, instead of `tokens`."""
    interference: Interference | None = Field(default_factory=Interference)
    """What keeps the expert from damage to the other domains; null: nothing, its own domain is all that it is trained on."""
    optimizer_state: Literal["fresh", "kept"] = "fresh"
    """Whether an expert starts with an empty optimizer, or with the one that the seed ended with."""


class Cloze(_Section):
    """Multiple-choice questions that `lmsplit evaluate` makes of held-out documents."""

    context_tokens: Annotated[int, Field(ge=1)] = 64
    """Tokens of a document that are shown."""
    continuation_tokens: Annotated[int, Field(ge=1)] = 32
    """Tokens of each choice, about: texts are cut before a space."""
    choices: Annotated[int, Field(ge=2)] = 4
    """The document's own continuation, and those of other documents of its domain."""


class Latency(_Section):
    """Answers that `lmsplit evaluate` times."""

    answer_tokens: Annotated[int, Field(ge=1)] = 32
    """Tokens of each answer."""
    requests: Annotated[int, Field(ge=1)] = 50
    """Prompts that are answered, of `prompt_tokens` each."""
    clients: tuple[Annotated[int, Field(ge=1)], ...] = (1,)
    """Requests at a time; each number is measured."""
    energy: bool = False
    """Measure the energy too, with codecarbon."""


class Evaluation(_Section):
    """How the held-out loss is measured: in training, besides before and after each run, and by `lmsplit evaluate`."""

    every_steps: Annotated[int, Field(gt=0)] | None = None
    """Measure after each so many steps; null: not in between."""
    documents: Annotated[int, Field(gt=0)] | None = 200
    """Held-out documents of a domain, evenly chosen; null: all of them."""
    prompt_tokens: Annotated[int, Field(ge=1)] = 64
    """`lmsplit evaluate`: tokens of a document that a router sees; every way to answer is judged on those that follow."""
    prefix_tokens: tuple[Annotated[int, Field(ge=1)], ...] = (8, 16, 32, 64, 128, 256)
    """`lmsplit evaluate`: prompt lengths for which routing is measured."""
    labels: str | None = None
    """`lmsplit evaluate`: column that says where a document comes from, to compare routes with; null: none."""
    cloze: Cloze | None = None
    """`lmsplit evaluate`: ask questions through lm-evaluation-harness, with the extra `evaluate`; null: ask none."""
    latency: Latency | None = None
    """`lmsplit evaluate`: time answers of the routed experts and of the seed alone; null: time none."""


class Executor(executor.Executor):
    """Where the models are trained: each in a process of its own, or in a Slurm job or Ray task."""

    workers: Annotated[int, Field(ge=1)] = 1
    """Experts at a time."""
    processes: Annotated[int, Field(ge=1)] = 1
    """Processes that train one model together, one GPU each where there are GPUs; a run with another number is refused."""

    @model_validator(mode="after")
    def _has_these_stages(self) -> "Executor":
        self.check_stages(("seed_model", "expert"))
        return self


class Training(_Section):
    """A whole training configuration."""

    later: ClassVar[frozenset[str]] = frozenset({"mixture", "since", "trackers"})

    manifest: Annotated[str, Field(min_length=1)]
    """The manifest's directory or URL, or `<either>@<number>` for an older commit."""
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
    where: Where | None = None
    """Train only on documents with these values in these columns, in both phases; null: on all."""
    sft: dict[str, Any] = Field(default_factory=dict)
    """Any field of TRL's SFTConfig, for both phases, except those that the other keys decide."""
    evaluation: Evaluation = Evaluation()
    """When the held-out loss is measured, and on how much."""
    energy: bool = False
    """Measure the energy of each run with codecarbon, which sends nothing anywhere."""
    attention: Literal["auto", "eager", "sdpa", "flash_attention_2", "flash_attention_3"] = "auto"
    """How attention is computed in training, always within documents; auto: flash_attention_2 on a GPU where the package
    flash-attn is installed, else sdpa.
    """
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Of the weights and of the order of rows."""
    executor: Executor = Executor()
    """Where the models are trained."""
