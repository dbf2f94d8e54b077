"""A manifest and a configuration, opened for training: where everything lies, and what determines each run.

```
<output>/config.yaml                    the resolved configuration
<output>/tokenizer/                     trained on the manifest, or a copy of the given one
<output>/packed/<digest>/               one packed split: see `pack`
<output>/references/<digest>/           the seed's losses that experts are held to: see `references`
<output>/seed/  experts/d00000/         models: weights, tokenizer, README.md, run.json, lineage.json, order.parquet
<output>/merged/                        the average of the experts, where it was asked for
<output>/dense/total/  per-model/       the seed continued as one model, where it was asked for
<output>/logs/                          what each run said, where runs have processes of their own
<output>/placement/                     what a router needs of the manifest
```

Each run has a digest of all that determines its model, so that a run that was done is skipped, and one done
otherwise is never taken for it. This does *not* train: see `phase` and `experts`.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from transformers import PreTrainedTokenizerBase

from lmsplit.manifests.errors import ConfigurationError, ManifestError
from lmsplit.manifests.reader import Domain, Manifest
from lmsplit.manifests.store import local_path
from lmsplit.train.config import Expert, SeedModel, TrainedTokenizer, Training, Where
from lmsplit.train.directory import whole_directory, write_whole
from lmsplit.train.layout import DENSE, EXPERTS, PLACEMENT, SEED, Matched, placement_manifest
from lmsplit.train.models import describe_model, has_given_weights, preset_of
from lmsplit.train.pack import Packed, Packing, pack_split
from lmsplit.train.presets import Preset
from lmsplit.train.record import content_digest
from lmsplit.train.sft import content_fields, packing, phase_config
from lmsplit.train.tokenizer import (
    TRAINING_BYTES_PER_TOKEN,
    DocumentEncoder,
    open_tokenizer,
    train_tokenizer,
    training_texts,
)
from lmsplit.train.trainer import DomainConfig

_TOKENIZER_RECORD = "lmsplit.json"


@dataclass(frozen=True)
class Run:
    """One model to train."""

    kind: Literal["seed", "expert", "dense"]
    domain: Domain | None
    """The expert's domain; None for the others."""
    directory: Path
    tokens: int
    """Tokens to train on in this run."""
    learning_rate: float
    fields: dict[str, Any]
    """Fields of TRL's SFTConfig that the configuration sets for it."""
    where: Where | None
    """The row filter."""
    content: dict[str, Any]
    """All that determines the model."""

    @property
    def name(self) -> str:
        """`seed`, the domain's name, or `dense-` and what it matches."""
        if self.kind == "dense":
            return f"{DENSE}-{self.directory.name}"
        return self.domain.domain if self.domain else SEED

    @property
    def digest(self) -> str:
        """SHA-256 of `content`."""
        return content_digest(self.content)


class Campaign:
    """Everything that the runs of one configuration share. Make it with `Campaign.open`."""

    def __init__(self, configuration: Training, manifest: Manifest, encoder: DocumentEncoder) -> None:
        self.configuration = configuration
        self.manifest = manifest
        self.encoder = encoder
        self.output = local_path(configuration.output)

    @classmethod
    def open(cls, configuration: Training) -> "Campaign":
        """Open the manifest and the tokenizer; train the tokenizer where there is none yet.

        Raises:
            ConfigurationError: a field of `sft`, the model, a domain's name or the tokenizer cannot be used, or the output
                belongs to another manifest or tokenizer.
            ManifestError: the manifest cannot be read.
        """
        for phase in (configuration.seed_model, configuration.expert):
            _phase_config(configuration, phase)
        manifest = Manifest.open(configuration.manifest)
        _check_names(configuration, manifest)
        campaign = cls(configuration, manifest, DocumentEncoder(_tokenizer(configuration, manifest)))
        if not (campaign.output / PLACEMENT).exists():
            with whole_directory(campaign.output / PLACEMENT) as partial:
                manifest.copy_placement(partial)
        if (found := placement_manifest(campaign.output)) != manifest.digest:
            raise ConfigurationError(
                f"{campaign.output} belongs to manifest {found}, "
                f"{configuration.manifest} is {manifest.digest}: choose another output"
            )
        return campaign

    def write_configuration(self) -> None:
        """Write the resolved configuration; done when a run begins, so that a refused one leaves no trace."""
        resolved = yaml.safe_dump(self.configuration.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
        write_whole(self.output / "config.yaml", resolved)

    @property
    def preset(self) -> Preset:
        """The model's preset, or the defaults for given models."""
        return preset_of(self.configuration.model)

    @property
    def packing(self) -> Packing:
        """How documents are packed."""
        return packing(self.configuration.sft, self.preset)

    def packed(self, domain: Domain, where: Where | None) -> Packed:
        """Return the packed training documents of a domain; packs them where that was not done yet."""
        cache = self.output / "packed"
        return pack_split(self.manifest, self.encoder, self.packing, domain.domain, "train", cache, where)

    def seed_run(self) -> Run:
        """Return the seed's run."""
        phase = self.configuration.seed_model
        rate = phase.learning_rate or self.preset.seed_learning_rate
        content = {"model": describe_model(self.configuration.model), "mixture": phase.mixture}
        return self._run("seed", self.output / SEED, phase, phase.tokens, rate, content)

    def expert_run(self, domain: Domain, seed_weights_sha256: str) -> Run:
        """Return the run of one domain's expert.

        Args:
            domain: the domain.
            seed_weights_sha256: digest of the seed's weights.
        """
        phase = self.configuration.expert
        rate = phase.learning_rate or self.preset.expert_learning_rate
        content: dict[str, Any] = {"domain": domain.domain, "seed_weights": seed_weights_sha256}
        content |= {"optimizer_state": phase.optimizer_state}
        if phase.interference is not None:
            content["interference"] = phase.interference.model_dump()
        tokens = phase.domain_tokens.get(domain.domain, phase.tokens)
        directory = self.output / EXPERTS / domain.domain
        return self._run("expert", directory, phase, tokens, rate, content, domain)

    def dense_run(self, matched: Matched, seed_weights_sha256: str) -> Run:
        """Return the run of a dense baseline: one copy of the seed continued on all that the experts are trained on.

        Args:
            matched: `total` for as many tokens as all experts together, `per-model` for those of one, on average.
            seed_weights_sha256: digest of the seed's weights.
        """
        phase = self.configuration.expert
        rate = phase.learning_rate or self.preset.expert_learning_rate
        tokens = self.expert_tokens()
        content: dict[str, Any] = {"matched": matched.value, "mixture": tokens, "seed_weights": seed_weights_sha256}
        content |= {"optimizer_state": phase.optimizer_state}
        if phase.interference is not None:  # what it decides of the rows
            content["interference"] = phase.interference.model_dump(include={"fraction", "temperature"})
        total = sum(tokens.values())
        wanted = total if matched is Matched.TOTAL else round(total / len(tokens))
        return self._run("dense", self.output / DENSE / matched, phase, wanted, rate, content)

    def expert_tokens(self) -> dict[str, int]:
        """Return the tokens that each domain's expert is trained on."""
        phase = self.configuration.expert
        return {each.domain: phase.domain_tokens.get(each.domain, phase.tokens) for each in self.manifest.domains}

    def _run(
        self,
        kind: Literal["seed", "expert", "dense"],
        directory: Path,
        phase: SeedModel | Expert,
        tokens: int,
        learning_rate: float,
        content: dict[str, Any],
        domain: Domain | None = None,
    ) -> Run:
        config, where = _phase_config(self.configuration, phase), phase.where or self.configuration.where
        fields = self.configuration.sft | phase.sft
        shared = {
            "kind": kind,
            "manifest": self.manifest.digest,
            "tokenizer": self.encoder.digest,
            "tokens": tokens,
            "learning_rate": learning_rate,
            "max_repetitions": phase.max_repetitions,
            "where": where,
            "sft": content_fields(fields, config, self.preset),
            "seed": self.configuration.seed,
            "attention": self.configuration.attention,
            "processes": self.configuration.executor.processes,
        }
        return Run(kind, domain, directory, tokens, learning_rate, fields, where, shared | content)


def _phase_config(configuration: Training, phase: SeedModel | Expert) -> DomainConfig:
    """Check a phase's fields of SFTConfig, and return what becomes of them."""
    if elsewhere := sorted({"max_length", "packing_strategy"} & set(phase.sft)):
        raise ConfigurationError(f"{elsewhere[0]} is the same for both phases: set sft.{elsewhere[0]}")
    preset = preset_of(configuration.model)
    return phase_config(
        configuration.sft | phase.sft, preset, preset.seed_learning_rate, configuration.seed, configuration.output
    )


def _check_names(configuration: Training, manifest: Manifest) -> None:
    mixture = configuration.seed_model.mixture
    named = [("expert.domain_tokens", name) for name in configuration.expert.domain_tokens]
    named += [] if isinstance(mixture, str) else [("seed_model.mixture", name) for name in mixture]
    for key, name in named:
        try:
            manifest.domain(name)
        except ManifestError as error:
            raise ConfigurationError(f"{key}: {error}") from error


def _tokenizer(configuration: Training, manifest: Manifest) -> PreTrainedTokenizerBase:
    """Return the output's tokenizer, made on the first call; refuse one that was made otherwise."""
    directory = local_path(configuration.output) / "tokenizer"
    source = _tokenizer_source(configuration, manifest)
    if not directory.exists():
        tokenizer = _make_tokenizer(source, manifest)
        with whole_directory(directory) as partial:
            tokenizer.save_pretrained(partial)
            write_whole(partial / _TOKENIZER_RECORD, json.dumps(source, indent=1) + "\n")
    found = json.loads((directory / _TOKENIZER_RECORD).read_text(encoding="utf-8"))
    if found != source:
        raise ConfigurationError(f"{directory} was made from {found}, the configuration asks for {source}: choose another output")
    return open_tokenizer(str(directory))


def _tokenizer_source(configuration: Training, manifest: Manifest) -> dict[str, Any]:
    wanted = configuration.tokenizer
    if isinstance(wanted, str):
        return {"given": wanted}
    if wanted is None and has_given_weights(configuration.model):
        return {"given": configuration.model}
    size = wanted.vocabulary_size if isinstance(wanted, TrainedTokenizer) else None
    return {
        "trained_on": manifest.digest,
        "vocabulary_size": size or preset_of(configuration.model).vocabulary_size,
    }


def _make_tokenizer(source: dict[str, Any], manifest: Manifest) -> PreTrainedTokenizerBase:
    if "given" in source:
        return open_tokenizer(source["given"])
    size = source["vocabulary_size"]
    return train_tokenizer(training_texts(manifest, size * TRAINING_BYTES_PER_TOKEN), size)
