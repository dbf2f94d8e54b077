"""The `DomainConfig` of one phase: the preset's defaults < the configuration's `sft` < what is decided here.

Fields are checked strictly: an unknown one names its nearest neighbour, a value of another type is refused,
and a field whose value another key decides is refused with that key's name. This does *not* start anything.
"""

import dataclasses
import difflib
import typing
from collections.abc import Mapping
from typing import Any, Final

import torch
from pydantic import ConfigDict, TypeAdapter, ValidationError
from transformers import get_scheduler

from lmsplit.manifests.errors import ConfigurationError
from lmsplit.train.pack import Packing
from lmsplit.train.presets import Preset
from lmsplit.train.trainer import DomainConfig

_TOKENS: Final = "seed_model.tokens and expert.tokens decide it"
_ROWS: Final = "rows are packed and ordered from the manifest"
_RESUME: Final = "a run that was cut off goes on from its newest checkpoint by itself"
_EVALUATION: Final = "set the key evaluation"
DECIDED: Final[dict[str, str]] = {
    "num_processes": "set executor.processes",
    "save_only_model": _RESUME,
    "learning_rate": "set seed_model.learning_rate and expert.learning_rate",
    "seed": "set the key seed",
    "data_seed": "set the key seed",
    "output_dir": "set the key output",
    "max_steps": _TOKENS,
    "num_train_epochs": _TOKENS,
    "packing": _ROWS,
    "padding_free": _ROWS,
    "dataset_kwargs": _ROWS,
    "dataset_text_field": _ROWS,
    "shuffle_dataset": _ROWS,
    "train_sampling_strategy": _ROWS,
    "dataloader_drop_last": "every token counts",
    "load_best_model_at_end": _RESUME,
    "ignore_data_skip": _RESUME,
    "resume_from_checkpoint": _RESUME,
    "restore_callback_states_from_checkpoint": _RESUME,
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
    "ddp_find_unused_parameters": False,  # every parameter of a causal model is used; looking for others costs a pass
    "save_strategy": "steps",
    "save_steps": 0.1,  # a share of the steps where it is below 1
    "save_total_limit": 1,
    "packing_strategy": "bfd_split",
    "remove_unused_columns": False,
    "dataset_kwargs": {"skip_prepare_dataset": True},
    "num_train_epochs": 1,
}


STRATEGIES: Final = ("bfd_split", "wrapped")
_WITHOUT_EFFECT: Final = (
    "logging_",
    "log_",
    "report_to",
    "run_name",
    "dataloader_",
    "disable_tqdm",
    "include_",
    "save_",
    "ddp_",
)
"""Beginnings of the names of fields that do not change the model."""


def defaults(preset: Preset) -> dict[str, Any]:
    """Return the fields that a preset sets unless the configuration does."""
    return {
        "max_length": preset.max_length,
        "per_device_train_batch_size": preset.batch_size,
    } | _SHARED_DEFAULTS


def _resolved(fields: Mapping[str, Any], preset: Preset) -> dict[str, Any]:
    """Return all fields; a schedule of one's own does not inherit the arguments of the default one."""
    resolved = defaults(preset) | dict(fields)
    if "lr_scheduler_type" in fields and "lr_scheduler_kwargs" not in fields:
        resolved["lr_scheduler_kwargs"] = {}
    return resolved


def packing(fields: Mapping[str, Any], preset: Preset) -> Packing:
    """Return how documents are packed."""
    wanted = _resolved(fields, preset)
    return Packing(int(wanted["max_length"]), wanted["packing_strategy"])


def content_fields(fields: Mapping[str, Any], config: DomainConfig, preset: Preset) -> dict[str, Any]:
    """Return the fields that determine the model, defaults included and precision settled.

    Args:
        fields: the configuration's `sft` section.
        config: what `phase_config` made of it.
        preset: where the defaults come from.
    """
    resolved = _resolved(fields, preset) | {"bf16": config.bf16, "fp16": config.fp16}
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
    if (strategy := fields.get("packing_strategy", "bfd_split")) not in STRATEGIES:
        allowed = ", ".join(STRATEGIES)
        raise ConfigurationError(f"sft.packing_strategy: expected one of {allowed}, which keep every token, found {strategy!r}")
    if (length := fields.get("max_length", 2)) is None or length < 2:
        raise ConfigurationError(f"sft.max_length: expected at least 2 tokens, found {length!r}")


def phase_config(
    fields: Mapping[str, Any],
    preset: Preset,
    learning_rate: float,
    seed: int,
    output_dir: str,
    num_processes: int | None = None,
) -> DomainConfig:
    """Return the trainer's configuration for one phase.

    Args:
        fields: the configuration's `sft` section.
        preset: where the defaults come from.
        learning_rate: the phase's peak learning rate.
        seed: of the weights and of dropout.
        output_dir: the trainer's scratch directory, which holds its checkpoints.
        num_processes: that the run must have; None: as many as there are.

    Raises:
        ConfigurationError: TRL refuses a value, or `check_fields` does.
    """
    check_fields(fields)
    decided = {"learning_rate": learning_rate, "seed": seed, "output_dir": output_dir, "num_processes": num_processes}
    try:
        config = DomainConfig(**(_resolved(fields, preset) | decided))
        _check_schedule(config)
    except (ValueError, TypeError, ImportError) as error:  # some options need a package that is not here
        raise ConfigurationError(f"sft: {error}") from error
    return config


def _check_schedule(config: DomainConfig) -> None:
    """Make the schedule once, so that arguments which do not fit it are found before any work."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=config.learning_rate)
    get_scheduler(config.lr_scheduler_type, optimizer, 1, 2, scheduler_specific_kwargs=dict(config.lr_scheduler_kwargs or {}))
