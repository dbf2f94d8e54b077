from pathlib import Path

import huggingface_hub.constants
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from lmsplit.manifests.errors import ConfigurationError
from lmsplit.manifests.reader import Manifest
from lmsplit.train.tokenizer import (
    BEGIN,
    END,
    DocumentEncoder,
    open_tokenizer,
    train_tokenizer,
    training_texts,
)

TEXTS = ["the quick brown fox jumps over the lazy dog", "the lazy dog sleeps, the fox does not", "naïve café"] * 5
TOKENIZER = train_tokenizer([TEXTS], 320)
ENCODER = DocumentEncoder(TOKENIZER)


@given(st.text())
def test_tokenizer_decodes_any_text_to_itself(text: str) -> None:
    assert ENCODER.decode(ENCODER.encode([text])[0]) == text


@pytest.mark.parametrize("text", ["", "\x00", "  leading", "trailing \n\n", "日本語 🦊", f"a {END}{BEGIN} b", "\r\n\t"])
def test_tokenizer_decodes_hard_texts_to_themselves(text: str) -> None:
    assert ENCODER.decode(ENCODER.encode([text])[0]) == text


def test_tokenizer_never_takes_text_for_a_special_token() -> None:
    ids = ENCODER.encode([f"{BEGIN} inside {END}"])[0]
    assert not {ENCODER.begin_id, ENCODER.end_id, TOKENIZER.pad_token_id} & set(ids)


def test_tokenizer_is_the_same_for_the_same_texts() -> None:
    assert DocumentEncoder(train_tokenizer([TEXTS], 320)).digest == ENCODER.digest
    assert DocumentEncoder(train_tokenizer([TEXTS], 300)).digest != ENCODER.digest


def test_tokenizer_survives_saving(tmp_path: Path) -> None:
    TOKENIZER.save_pretrained(tmp_path)
    opened = AutoTokenizer.from_pretrained(tmp_path)
    assert DocumentEncoder(opened).digest == ENCODER.digest
    assert opened("the fox")["input_ids"] == [ENCODER.begin_id, *ENCODER.encode(["the fox"])[0]]


def test_encoder_ignores_a_truncation_that_the_tokenizer_carries() -> None:
    tokenizer = train_tokenizer([TEXTS], 320)
    tokenizer.backend_tokenizer.enable_truncation(3)
    tokenizer.backend_tokenizer.enable_padding(length=1000)
    encoder = DocumentEncoder(tokenizer)
    assert encoder.encode(TEXTS[:1]) == ENCODER.encode(TEXTS[:1])
    assert encoder.digest == ENCODER.digest


def test_encoder_begins_with_the_end_token_where_there_is_no_begin_token() -> None:
    tokenizer = train_tokenizer([TEXTS], 320)
    tokenizer.bos_token = None
    assert DocumentEncoder(tokenizer).begin_id == DocumentEncoder(tokenizer).end_id == tokenizer.eos_token_id


def test_encoder_refuses_a_tokenizer_without_end_token() -> None:
    tokenizer = train_tokenizer([TEXTS], 320)
    tokenizer.eos_token = None
    with pytest.raises(ConfigurationError, match="has no end token"):
        DocumentEncoder(tokenizer)


def test_tokenizer_of_an_empty_directory_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="is a directory without a usable tokenizer"):
        open_tokenizer(str(tmp_path))


def test_tokenizer_of_an_unknown_hub_id_is_a_clear_error_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigurationError, match="'nobody/nothing' is neither a local directory nor"):
        open_tokenizer("nobody/nothing")


def test_training_texts_are_thinned_evenly(manifest_path: Path) -> None:
    manifest = Manifest.open(manifest_path)
    everything = [text for batch in training_texts(manifest, 10**9) for text in batch]
    assert len(everything) == sum(domain.splits["train"] for domain in manifest.domains)
    total = sum(domain.num_bytes for domain in manifest.domains)
    third = [text for batch in training_texts(manifest, -(-total // 3)) for text in batch]
    assert third == everything[::3]
