from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from transformers import PreTrainedModel

from lmsplit.manifests.errors import ConfigurationError
from lmsplit.train.config import InlineModel
from lmsplit.train.models import build_model, count_parameters, describe_model, has_given_weights, preset_of
from lmsplit.train.presets import GIVEN, PRESETS
from lmsplit.train.tokenizer import train_tokenizer
from tests.train.runs import MODEL

TOKENIZER = train_tokenizer([["some words to learn"]], 280)


def inline(**fields: object) -> InlineModel:
    return InlineModel(config=MODEL | fields)


def equal(left: PreTrainedModel, right: PreTrainedModel) -> bool:
    pairs = zip(left.parameters(), right.parameters(), strict=True)
    return all(torch.equal(one, other) for one, other in pairs)


def test_model_takes_vocabulary_and_special_tokens_from_the_tokenizer() -> None:
    config = build_model(inline(), TOKENIZER, 0).config
    assert config.vocab_size == len(TOKENIZER)
    assert (config.bos_token_id, config.eos_token_id) == (TOKENIZER.bos_token_id, TOKENIZER.eos_token_id)


def test_model_depends_on_the_seed_alone() -> None:
    first = build_model(inline(), TOKENIZER, 3)
    assert equal(first, build_model(inline(), TOKENIZER, 3))
    assert not equal(first, build_model(inline(), TOKENIZER, 4))


@pytest.mark.parametrize(("tied", "embeddings"), [(True, 1), (False, 2)])
def test_parameters_count_tied_embeddings_once(tied: bool, embeddings: int) -> None:
    count = count_parameters(build_model(inline(tie_word_embeddings=tied), TOKENIZER, 0))
    assert count.non_embedding == 4 * 16 * 16 + 3 * 16 * 24 + 3 * 16
    assert count.total == count.non_embedding + embeddings * 16 * len(TOKENIZER)


def test_given_model_is_opened_with_its_weights(tmp_path: Path) -> None:
    model = build_model(inline(), TOKENIZER, 5)
    model.save_pretrained(tmp_path)
    assert equal(build_model(str(tmp_path), TOKENIZER, 0), model)
    assert has_given_weights(str(tmp_path))
    assert set(describe_model(str(tmp_path))["weights"]) == {"model.safetensors"}


def test_given_model_with_a_small_vocabulary_is_refused(tmp_path: Path) -> None:
    build_model(inline(), train_tokenizer([["some words"]], 260), 0).save_pretrained(tmp_path)
    with pytest.raises(ConfigurationError, match=f"has 260 embeddings, the tokenizer {len(TOKENIZER)} tokens"):
        build_model(str(tmp_path), TOKENIZER, 0)


def test_given_model_as_pickle_is_refused(tmp_path: Path) -> None:
    model = build_model(inline(), TOKENIZER, 0)
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ConfigurationError, match="no usable model is at that path"):
        build_model(str(tmp_path), TOKENIZER, 0)


def test_unknown_hub_id_is_a_clear_error_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigurationError, match=r"'nobody/nothing' is no preset \(1m, 5m, 30m, 125m, 350m, 1b\)"):
        build_model("nobody/nothing", TOKENIZER, 0)


def test_unknown_model_type_is_a_clear_error() -> None:
    with pytest.raises(ConfigurationError, match=r"model.config: Unrecognized model"):
        build_model(inline(model_type="lama"), TOKENIZER, 0)


def test_impossible_shape_is_a_clear_error() -> None:
    with pytest.raises(ConfigurationError, match=r"model.config: .*initializer_range"):
        build_model(inline(initializer_range=7.0), TOKENIZER, 0)


def test_preset_of_a_given_model_has_careful_defaults() -> None:
    assert preset_of("1m") is PRESETS["1m"]
    assert preset_of("nobody/nothing") is preset_of(inline()) is GIVEN
