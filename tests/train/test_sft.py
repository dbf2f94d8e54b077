import dataclasses
import warnings

import pytest
from trl import SFTConfig

from lmsplit.manifests.errors import ConfigurationError
from lmsplit.train.pack import Packing
from lmsplit.train.presets import PRESETS
from lmsplit.train.sft import check_fields, content_fields, packing, phase_config
from lmsplit.train.trainer import DomainConfig

PRESET = PRESETS["1m"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"weigth_decay": 0.1}, "unknown key 'sft.weigth_decay': did you mean 'weight_decay'"),
        ({"weight_decay": "1e-1"}, "sft.weight_decay: expected float, found '1e-1'"),
        ({"per_device_train_batch_size": 4.5}, "sft.per_device_train_batch_size: expected int, found 4.5"),
        ({"learning_rate": 1e-4}, r"sft.learning_rate cannot be set: set seed_model.learning_rate"),
        ({"max_steps": 5}, "seed_model.tokens and expert.tokens decide it"),
        ({"packing": True}, "rows are packed and ordered from the manifest"),
        ({"hub_token": "x"}, "credentials do not belong in a file"),
        ({"max_length": None}, "sft.max_length: expected at least 2 tokens, found None"),
        ({"max_length": 1}, "sft.max_length: expected at least 2 tokens, found 1"),
        ({"num_processes": 2}, "sft.num_processes cannot be set: set executor.processes"),
        ({"eval_strategy": "steps"}, "sft.eval_strategy cannot be set: set the key evaluation"),
        ({"save_only_model": True}, "sft.save_only_model cannot be set: a run that was cut off goes on"),
        ({"train_sampling_strategy": "sequential"}, "rows are packed and ordered from the manifest"),
        ({"packing_strategy": "bfd"}, "sft.packing_strategy: expected one of bfd_split, wrapped, .* found 'bfd'"),
    ],
)
def test_fields_are_checked_strictly(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        check_fields(fields)


def test_fields_accept_an_integer_for_a_number() -> None:
    check_fields({"weight_decay": 0, "optim": "adamw_torch", "lr_scheduler_kwargs": {"min_lr_rate": 0.2}})


@pytest.mark.parametrize("name", [entry.name for entry in dataclasses.fields(SFTConfig) if entry.init])
def test_every_field_of_trls_can_be_set_or_says_why_not(name: str) -> None:
    """A value that no field has shows that the field is known."""
    with pytest.raises(ConfigurationError, match=rf"sft\.{name}(: expected .*, found|.packing_strategy| cannot be set: \w)"):
        check_fields({name: object()})


def test_phase_config_puts_the_configuration_over_the_preset() -> None:
    config = phase_config({"per_device_train_batch_size": 3}, PRESET, 0.01, 7, "scratch")
    assert (config.per_device_train_batch_size, config.max_length) == (3, PRESET.max_length)
    assert (config.learning_rate, config.seed, config.output_dir) == (0.01, 7, "scratch")
    assert (config.packing, config.dataset_kwargs) == (False, {"skip_prepare_dataset": True})


def test_phase_config_saves_as_the_configuration_says() -> None:
    config = phase_config({}, PRESET, 0.01, 0, "scratch")
    assert (config.save_strategy, config.save_steps, config.save_total_limit) == ("steps", 0.1, 1)
    config = phase_config({"save_steps": 7, "save_total_limit": 3}, PRESET, 0.01, 0, "scratch")
    assert (config.save_strategy, config.save_steps, config.save_total_limit) == ("steps", 7, 3)
    assert phase_config({"save_strategy": "no"}, PRESET, 0.01, 0, "scratch").save_strategy == "no"


def test_phase_config_asks_for_the_processes() -> None:
    with pytest.raises(ConfigurationError, match="asked for 3 processes and has 1"):
        phase_config({}, PRESET, 0.01, 0, "scratch", num_processes=3)


def test_schedule_of_ones_own_drops_the_arguments_of_the_default_one() -> None:
    default = phase_config({}, PRESET, 0.01, 0, "scratch")
    assert (default.lr_scheduler_type, default.lr_scheduler_kwargs) == ("cosine_with_min_lr", {"min_lr_rate": 0.1})
    own = {"lr_scheduler_type": "linear"}
    config = phase_config(own, PRESET, 0.01, 0, "scratch")
    assert (config.lr_scheduler_type, config.lr_scheduler_kwargs) == ("linear", {})
    assert content_fields(own, config, PRESET)["lr_scheduler_kwargs"] == {}
    both = {"lr_scheduler_type": "warmup_stable_decay", "lr_scheduler_kwargs": {"num_decay_steps": 3}}
    assert phase_config(both, PRESET, 0.01, 0, "scratch").lr_scheduler_kwargs == {"num_decay_steps": 3}


@pytest.mark.parametrize(
    "fields",
    [
        {"lr_scheduler_kwargs": {"min_lr_rat": 0.1}},
        {"lr_scheduler_type": "linear", "lr_scheduler_kwargs": {"min_lr_rate": 0.1}},
        {"lr_scheduler_type": "warmup_stable_decay"},
    ],
)
def test_arguments_that_do_not_fit_the_schedule_are_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError, match="sft: "):
        phase_config(fields, PRESET, 0.01, 0, "scratch")


def test_phase_config_has_no_checkpointing_of_activations_and_no_trackers() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        config = phase_config({}, PRESET, 0.01, 0, "scratch")
    assert config.gradient_checkpointing is False
    assert config.report_to == []


def test_phase_config_keeps_checkpointing_of_activations_where_asked() -> None:
    assert phase_config({"activation_checkpointing": True}, PRESET, 0.01, 0, "scratch").gradient_checkpointing


def test_phase_config_reports_what_trl_refuses() -> None:
    with pytest.raises(ConfigurationError, match="sft: "):
        phase_config({"lr_scheduler_type": "no such schedule"}, PRESET, 0.01, 0, "scratch")


def test_content_fields_leave_out_what_does_not_change_the_model() -> None:
    fields = {"logging_steps": 3, "report_to": "none", "dataloader_num_workers": 0, "weight_decay": 0.2}
    config = phase_config(fields, PRESET, 0.01, 0, "scratch")
    content = content_fields(fields, config, PRESET)
    assert content["weight_decay"] == 0.2
    assert isinstance(content["bf16"], bool)
    assert not {"logging_steps", "report_to", "dataloader_num_workers"} & set(content)


@pytest.mark.parametrize("name", ["save_steps", "save_strategy", "save_total_limit"])
def test_content_fields_do_not_depend_on_checkpoints(name: str) -> None:
    content = content_fields({}, DomainConfig(output_dir="scratch"), PRESET)
    assert name not in content


def test_packing_comes_from_the_preset_unless_it_is_set() -> None:
    assert packing({}, PRESET) == Packing(PRESET.max_length, "bfd_split")
    assert packing({"max_length": 99, "packing_strategy": "wrapped"}, PRESET) == Packing(99, "wrapped")
