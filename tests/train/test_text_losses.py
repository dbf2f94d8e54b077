import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from lmsplit.train import text_losses
from lmsplit.train.loss import HeldOutLoss
from lmsplit.train.text_losses import cut_windows, document_losses, evaluate_texts
from lmsplit.train.tokenizer import DocumentEncoder, train_tokenizer

pytestmark = pytest.mark.usefixtures("one_thread")

ENCODER = DocumentEncoder(train_tokenizer([["a few words to learn from", "a few more words"]], 300))
TEXTS = ["a few words", "", "naïve words, more of them, far beyond one window", "to", "more " * 40]


@pytest.fixture
def model() -> PreTrainedModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(ENCODER.tokenizer),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        initializer_range=0.5,
    )
    return LlamaForCausalLM(config)


@torch.no_grad()
def reference_nats(model: PreTrainedModel, text: str, max_length: int) -> float:
    """One token at a time, each with the context that the windows define, and no batches."""
    sequence = [ENCODER.begin_id, *ENCODER.encode([text])[0]]
    nats = 0.0
    for position in range(1, len(sequence)):
        start = (position - 1) // (max_length - 1) * (max_length - 1)
        logits = model(input_ids=torch.tensor([sequence[start:position]])).logits[0, -1]
        nats -= float(torch.log_softmax(logits.double(), -1)[sequence[position]])
    return nats


@pytest.mark.parametrize("max_length", [2, 5, 16, 512])
def test_loss_is_that_of_a_token_by_token_reference(model: PreTrainedModel, max_length: int) -> None:
    model.eval()
    expected = sum(reference_nats(model, text, max_length) for text in TEXTS)
    found = evaluate_texts(model, ENCODER, [TEXTS[:2], TEXTS[2:]], max_length)
    assert found.nats == pytest.approx(expected, rel=1e-5)
    assert found.num_documents == len(TEXTS)
    assert found.num_tokens == sum(map(len, ENCODER.encode(TEXTS)))
    assert found.num_bytes == sum(len(text.encode()) for text in TEXTS)


def test_loss_does_not_depend_on_batches(model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = evaluate_texts(model, ENCODER, [TEXTS], 16)
    monkeypatch.setattr(text_losses, "_LOGITS", 1)
    monkeypatch.setattr(text_losses, "_BUFFERED_WINDOWS", 2)
    assert evaluate_texts(model, ENCODER, [[text] for text in TEXTS], 16).nats == pytest.approx(whole.nats, rel=1e-6)


def test_loss_of_a_uniform_model_is_the_logarithm_of_the_vocabulary(model: PreTrainedModel) -> None:
    torch.nn.init.zeros_(model.lm_head.weight)
    found = evaluate_texts(model, ENCODER, [TEXTS], 16)
    assert found.nats_per_token == pytest.approx(math.log(len(ENCODER.tokenizer)), rel=1e-6)
    assert found.bits_per_byte == pytest.approx(math.log2(len(ENCODER.tokenizer)) * found.num_tokens / found.num_bytes, rel=1e-6)


def test_loss_of_nothing_has_no_mean(model: PreTrainedModel) -> None:
    found = evaluate_texts(model, ENCODER, [], 16)
    assert found == HeldOutLoss(0, 0, 0, 0)
    assert (found.nats_per_token, found.bits_per_byte) == (None, None)


@pytest.mark.parametrize("training", [True, False])
def test_evaluation_leaves_the_model_in_its_mode(model: PreTrainedModel, training: bool) -> None:
    model.train(training)
    evaluate_texts(model, ENCODER, [TEXTS], 16)
    assert model.training is training
    assert all(parameter.grad is None for parameter in model.parameters())


@given(length=st.integers(1, 80), max_length=st.integers(2, 20))
def test_windows_hold_every_target_exactly_once(length: int, max_length: int) -> None:
    windows = list(cut_windows(range(length), max_length))
    assert [token for window in windows for token in window[1:]] == list(range(1, length))
    assert all(2 <= len(window) <= max_length for window in windows)


def test_each_documents_loss_is_its_own(model: PreTrainedModel) -> None:
    together = document_losses(model, ENCODER, [TEXTS[:2], TEXTS[2:]], 16)
    for index, text in enumerate(TEXTS):
        alone = evaluate_texts(model, ENCODER, [[text]], 16)
        assert together.nats_N[index] == pytest.approx(alone.nats, rel=1e-5, abs=1e-9)
        assert (together.tokens_N[index], together.bytes_N[index]) == (alone.num_tokens, alone.num_bytes)
    assert [len(each) for each in document_losses(model, ENCODER, [], 16)] == [0, 0, 0]
