from pathlib import Path

import pytest

from lmsplit.manifests.configuration import load
from lmsplit.manifests.errors import ConfigurationError
from lmsplit.train.config import Training

SMALLEST = """
manifest: manifest/
output: experts/
model: 1m
seed_model: {tokens: 3_000_000}
expert: {tokens: 300_000}
"""


def configuration(directory: Path, *overrides: str, text: str = SMALLEST) -> Training:
    path = directory / "train.yaml"
    path.write_text(text)
    return load(Training, path, overrides)


def test_configuration_reads_the_smallest_file(tmp_path: Path) -> None:
    read = configuration(tmp_path)
    assert (read.seed_model.tokens, read.expert.tokens, read.model) == (3_000_000, 300_000, "1m")
    assert (read.sft, read.seed, read.tokenizer, read.seed_model.learning_rate) == ({}, 0, None, None)


def test_configuration_is_frozen(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="frozen"):
        configuration(tmp_path).seed = 1


def test_configuration_takes_an_inline_model(tmp_path: Path) -> None:
    read = configuration(tmp_path, "model={config: {model_type: llama, hidden_size: 32}}")
    assert not isinstance(read.model, str)
    assert read.model.config["hidden_size"] == 32


def test_configuration_names_the_nearest_key(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="unknown key 'manifset': did you mean 'manifest'"):
        configuration(tmp_path, "manifset=x")


@pytest.mark.parametrize(
    "override",
    [
        "expert.interference={weight: 0.3}",
        "expert.replay=0.1",
        "where={license: [mit]}",
        "mixture=uniform",
        "seed_model.mixture=uniform",
        "executor.workers=4",
        "executor.kind=slurm",
    ],
)
def test_configuration_refuses_keys_of_later_releases(tmp_path: Path, override: str) -> None:
    with pytest.raises(ConfigurationError, match="comes with a later release"):
        configuration(tmp_path, override)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed_model.tokens=0", "seed_model.tokens: Input should be greater than 0"),
        ("expert.learning_rate=2", "expert.learning_rate: Input should be less than 1"),
        ("seed=-1", "seed: Input should be greater than or equal to 0"),
        ("model={config: {hidden_size: 3}}", "needs a model_type"),
        ("executor.kind=condor", "executor.kind"),
    ],
)
def test_configuration_states_the_bound_it_checks(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        configuration(tmp_path, override)


def test_configuration_names_a_missing_key(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"key 'expert' is missing"):
        configuration(tmp_path, text=SMALLEST.replace("expert: {tokens: 300_000}", ""))
