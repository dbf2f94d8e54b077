"""The `DomainConfig` of one phase: the preset's defaults < the configuration's `sft` < what is decided here.

Fields are checked strictly: an unknown one names its nearest neighbour, a value of another type is refused,
and a field whose value another key decides is refused with that key's name. This does *not* start anything.
"""

import dataclasses
import difflib
import typing
from collections.abc import Mapping
from typing import Any, Final

from pydantic import ConfigDict, TypeAdapter, ValidationError

from lmsplit.manifests.errors import ConfigurationError
from lmsplit.train.presets import Preset
from lmsplit.train.trainer import DomainConfig

_TOKENS: Final = "seed_model.tokens and expert.tokens decide it"
_ROWS: Final = "rows are packed and ordered from the manifest"
_LATER: Final = "checkpoints and exact resume come with a later release"
_EVALUATION: Final = "held-out loss is measured before and after each phase"
DECIDED: Final[dict[str, str]] = {
    "learning_rate": "set seed_model.learning_rate and expert.learning_rate",
    "seed": "set the key seed",
    "data_seed": "set the key seed",
    "output_dir": "set the key output",
    "max_steps": _TOKENS,
    "num_train_epochs": _TOKENS,
    "packing": _ROWS,
    "packing_strategy": _ROWS,
    "padding_free": _ROWS,
    "dataset_kwargs": _ROWS,
    "dataset_text_field": _ROWS,
    "shuffle_dataset": _ROWS,
    "train_sampling_strategy": _ROWS,
    "dataloader_drop_last": "every token counts",
    "save_strategy": _LATER,
    "save_steps": _LATER,
    "save_total_limit": _LATER,
    "load_best_model_at_end": _LATER,
    "ignore_data_skip": _LATER,
    "resume_from_checkpoint": _LATER,
    "eval_strategy": _EVALUATION,
    "eval_steps": _EVALUATION,
    "eval_on_start": _EVALUATION,
    "completion_only_loss": _ROWS,
    "assistant_only_loss": _ROWS,
    "chat_template_path": _ROWS,
    "model_init_kwargs": "the key model decides it",
    "trust_remote_code": "code that comes with a model is never run",
    "hub_token": "credentials do not belong in a file: set HF_TOKEN in the environment",
    "push_to_hub": "upload the finished directory instead",
}
_SHARED_DEFAULTS: Final[dict[str, Any]] = {
    "lr_scheduler_type": "cosine_with_min_lr",
    "lr_scheduler_kwargs": {"min_lr_rate": 0.1},
    "warmup_steps": 0.05,  # a share of the steps where it is below 1
    "weight_decay": 0.1,
    "adam_beta2": 0.95,
    "max_grad_norm": 1.0,
    "logging_steps": 10,
    "logging_nan_inf_filter": False,  # or the loss of a diverged run would look sound
    "disable_tqdm": True,
    "save_strategy": "no",
    "train_sampling_strategy": "sequential",  # the order is already in the data set, see `order`
    "remove_unused_columns": False,
    "dataset_kwargs": {"skip_prepare_dataset": True},
    "num_train_epochs": 1,
}


_WITHOUT_EFFECT: Final = (
    "logging_",
    "log_",
    "report_to",
    "run_name",
    "dataloader_",
    "disable_tqdm",
    "include_",
)
"""Beginnings of the names of fields that do not change the model."""


def defaults(preset: Preset) -> dict[str, Any]:
    """Return the fields that a preset sets unless the configuration does."""
    return {
        "max_length": preset.max_length,
        "per_device_train_batch_size": preset.batch_size,
    } | _SHARED_DEFAULTS


def max_length(fields: Mapping[str, Any], preset: Preset) -> int:
    """Return the tokens in a row."""
    return int(fields.get("max_length", preset.max_length))


def content_fields(fields: Mapping[str, Any], config: DomainConfig, preset: Preset) -> dict[str, Any]:
    """Return the fields that determine the model, defaults included and precision settled.

    Args:
        fields: the configuration's `sft` section.
        config: what `phase_config` made of it.
        preset: where the defaults come from.
    """
    resolved = defaults(preset) | dict(fields) | {"bf16": config.bf16, "fp16": config.fp16}
    return {name: value for name, value in resolved.items() if not name.startswith(_WITHOUT_EFFECT)}


def check_fields(fields: Mapping[str, Any]) -> None:
    """Check the `sft` section of a configuration.

    Raises:
        ConfigurationError: a field is unknown, decided elsewhere, or has a value of another type.
    """
    hints = typing.get_type_hints(DomainConfig)
    known = {entry.name for entry in dataclasses.fields(DomainConfig) if entry.init}
    for name, value in fields.items():
        if name in DECIDED:
            raise ConfigurationError(f"sft.{name} cannot be set: {DECIDED[name]}")
        if name not in known:
            near = difflib.get_close_matches(name, sorted(known - set(DECIDED)), n=1)
            hint = f"did you mean {near[0]!r}?" if near else "see the fields of TRL's SFTConfig"
            raise ConfigurationError(f"unknown key 'sft.{name}': {hint}")
        try:
            config = ConfigDict(arbitrary_types_allowed=True)
            TypeAdapter(hints[name], config=config).validate_python(value, strict=True)
        except ValidationError as error:
            expected = getattr(hints[name], "__name__", str(hints[name]))
            raise ConfigurationError(f"sft.{name}: expected {expected}, found {value!r}") from error
    if (length := fields.get("max_length", 2)) is None or length < 2:
        raise ConfigurationError(f"sft.max_length: expected at least 2 tokens, found {length!r}")


def phase_config(fields: Mapping[str, Any], preset: Preset, learning_rate: float, seed: int, output_dir: str) -> DomainConfig:
    """Return the trainer's configuration for one phase.

    Args:
        fields: the configuration's `sft` section.
        preset: where the defaults come from.
        learning_rate: the phase's peak learning rate.
        seed: of the weights and of dropout.
        output_dir: the trainer's scratch directory.

    Raises:
        ConfigurationError: TRL refuses a value, or `check_fields` does.
    """
    check_fields(fields)
    decided = {"learning_rate": learning_rate, "seed": seed, "output_dir": output_dir}
    try:
        return DomainConfig(**(defaults(preset) | dict(fields) | decided))
    except (ValueError, TypeError, ImportError) as error:  # some options need a package that is not here
        raise ConfigurationError(f"sft: {error}") from error
