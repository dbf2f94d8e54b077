import warnings

import pytest

from lmsplit.manifests.errors import ConfigurationError
from lmsplit.train.presets import PRESETS
from lmsplit.train.sft import check_fields, content_fields, max_length, phase_config

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
    ],
)
def test_fields_are_checked_strictly(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        check_fields(fields)


def test_fields_accept_an_integer_for_a_number() -> None:
    check_fields({"weight_decay": 0, "optim": "adamw_torch", "lr_scheduler_kwargs": {"min_lr_rate": 0.2}})


def test_phase_config_puts_the_configuration_over_the_preset() -> None:
    config = phase_config({"per_device_train_batch_size": 3}, PRESET, 0.01, 7, "scratch")
    assert (config.per_device_train_batch_size, config.max_length) == (3, PRESET.max_length)
    assert (config.learning_rate, config.seed, config.output_dir) == (0.01, 7, "scratch")
    assert config.train_sampling_strategy == "sequential"


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


def test_max_length_comes_from_the_preset_unless_it_is_set() -> None:
    assert (max_length({}, PRESET), max_length({"max_length": 99}, PRESET)) == (PRESET.max_length, 99)
