import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from lmsplit.train.models import count_parameters
from lmsplit.train.presets import PRESETS

UNITS = {"m": 10**6, "b": 10**9}


@pytest.mark.parametrize("name", PRESETS)
def test_preset_has_the_parameters_its_name_says(name: str) -> None:
    preset = PRESETS[name]
    with torch.device("meta"):
        config = AutoConfig.for_model(**preset.model_config(preset.vocabulary_size))
        count = count_parameters(AutoModelForCausalLM.from_config(config))
    wanted = int(name[:-1]) * UNITS[name[-1]]
    assert count.total == pytest.approx(wanted, rel=0.15)
    embeddings = preset.vocabulary_size * preset.hidden_size * (1 if preset.tied_embeddings else 2)
    assert count.non_embedding == count.total - embeddings


def test_preset_grows_with_the_vocabulary_alone() -> None:
    assert PRESETS["1m"].model_config(300) | {"vocab_size": 4096} == PRESETS["1m"].model_config(4096)
