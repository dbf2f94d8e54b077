"""No document in a packed row sees another: against each document alone, on several architectures, and where a model leaks."""

from collections.abc import Callable
from functools import cache
from itertools import chain
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    AttentionInterface,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    RwkvConfig,
    RwkvForCausalLM,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from lmsplit.train import DomainConfig, DomainTrainer
from lmsplit.train.attention import check_attention, confine, is_flat
from lmsplit.train.batches import RowCollator
from tests.train.test_trainer import TOKENIZER

pytestmark = pytest.mark.usefixtures("one_thread")

NUM_WORDS = 60
SHAPE = {
    "vocab_size": NUM_WORDS,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "initializer_range": 0.3,  # wide: a leak changes the loss by far more than rounding
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
WINDOWED = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 3, "head_dim": 8}


def llama(**fields: object) -> PreTrainedModel:
    torch.manual_seed(0)
    return LlamaForCausalLM._from_config(LlamaConfig(**SHAPE | fields), attn_implementation="sdpa")


ARCHITECTURES: dict[str, Callable[[str], PreTrainedModel]] = {
    "llama": lambda kind: LlamaForCausalLM._from_config(LlamaConfig(**SHAPE), attn_implementation=kind),
    "mistral": lambda kind: MistralForCausalLM._from_config(MistralConfig(**SHAPE, sliding_window=3), attn_implementation=kind),
    "gemma3": lambda kind: Gemma3ForCausalLM._from_config(Gemma3TextConfig(**SHAPE, **WINDOWED), attn_implementation=kind),
    "gpt2": lambda kind: GPT2LMHeadModel._from_config(
        GPT2Config(vocab_size=NUM_WORDS, n_embd=16, n_layer=2, n_head=2, initializer_range=0.3), attn_implementation=kind
    ),
}


@cache
def model_of(architecture: str, kind: str) -> PreTrainedModel:
    torch.manual_seed(0)
    return ARCHITECTURES[architecture](kind).eval()


Row = list[list[int]]
"""The tokens of each piece."""


def loss_of(model: PreTrainedModel, rows: list[Row]) -> float:
    """Return the sum of the loss over a batch of these rows, as the trainer computes it."""
    columns = [{"input_ids": [*chain(*row)], "seq_lengths": [len(piece) for piece in row]} for row in rows]
    batch = RowCollator(0)(columns)
    with torch.no_grad():
        mean = model(**confine(batch, model), use_cache=False).loss.item()
    return mean * int(batch["labels"][:, 1:].ne(-100).sum())


def loss_alone(model: PreTrainedModel, piece: list[int]) -> float:
    """Return the sum of the loss on a piece that stands alone, by nothing of ours."""
    ids = torch.tensor([piece])
    with torch.no_grad():
        logits = model(input_ids=ids, use_cache=False).logits[0, :-1]
        return float(torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum"))


KINDS = ("eager", "sdpa")
PIECES = st.lists(st.integers(0, NUM_WORDS - 1), min_size=2, max_size=9)
ROWS = st.lists(st.lists(PIECES, min_size=1, max_size=4), min_size=1, max_size=3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_packed_rows_have_the_loss_of_their_documents_alone(architecture: str, kind: str) -> None:
    model = model_of(architecture, kind)
    check_attention(model)
    rows = [[[5, 6, 7, 8, 9, 5, 6], [9, 8], [31, 32, 33, 34, 35]], [[7, 7, 41, 2]]]
    expected = sum(loss_alone(model, piece) for row in rows for piece in row)
    assert loss_of(model, rows) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
@settings(max_examples=15, deadline=None)
@given(rows=ROWS)
def test_any_row_has_the_loss_of_its_documents_alone(architecture: str, kind: str, rows: list[Row]) -> None:
    model = model_of(architecture, kind)
    expected = sum(loss_alone(model, piece) for row in rows for piece in row)
    assert loss_of(model, rows) == pytest.approx(expected, rel=1e-5)


def test_documents_would_see_each_other_without_the_mask() -> None:
    """What the tests above could not tell apart would not be worth testing."""
    model = model_of("llama", "sdpa")
    first, second = [5, 6, 7, 8, 9], [31, 32, 33]
    batch = RowCollator(0)([{"input_ids": first + second, "seq_lengths": [5, 3]}])
    del batch["document_ids"], batch["position_ids"]
    with torch.no_grad():
        mixed = model(**batch).loss.item() * 6
    alone = loss_alone(model, first) + loss_alone(model, second)
    assert abs(mixed - alone) > 0.01 * alone


def test_mask_by_hand() -> None:
    model = model_of("llama", "sdpa")
    rows = [{"input_ids": [5, 6, 7], "seq_lengths": [2, 1]}, {"input_ids": [8], "seq_lengths": [1]}]
    batch = RowCollator(0)(rows)
    confined = confine(batch, model)
    assert "document_ids" in batch  # the caller's batch is left as it is
    assert confined["attention_mask"][:, 0].int().tolist() == [
        [[1, 0, 0], [1, 1, 0], [0, 0, 1]],
        [[1, 0, 0], [0, 1, 0], [0, 1, 1]],
    ]
    added = confine(batch, model_of("llama", "eager"))["attention_mask"]
    assert added.eq(0).equal(confined["attention_mask"])
    assert added.min() == torch.finfo(torch.float32).min


def test_batch_without_documents_is_left_alone() -> None:
    batch = RowCollator(0)([{"input_ids": [5, 6, 7]}])
    assert confine(batch, model_of("llama", "sdpa")) is batch


def mamba() -> PreTrainedModel:
    return MambaForCausalLM(MambaConfig(vocab_size=NUM_WORDS, hidden_size=16, state_size=4, num_hidden_layers=2))


def rwkv() -> PreTrainedModel:
    return RwkvForCausalLM(RwkvConfig(vocab_size=NUM_WORDS, hidden_size=16, num_hidden_layers=2, attention_hidden_size=16))


def without_positions() -> PreTrainedModel:
    """A GPT-2 that counts positions over the whole row, whatever it is told."""
    model = ARCHITECTURES["gpt2"]("sdpa")
    own = model.forward
    model.forward = lambda *arguments, position_ids=None, **named: own(*arguments, **named)
    return model


LEAKS = {"mamba": mamba, "rwkv": rwkv, "positions passed over": without_positions}


@pytest.mark.filterwarnings("ignore:.*:UserWarning")
@pytest.mark.parametrize("name", LEAKS)
def test_model_that_leaks_is_refused(name: str) -> None:
    torch.manual_seed(0)
    model = LEAKS[name]().train()
    with pytest.raises(ValueError, match=r"lets documents of a row see each other .* packed rows would mix them"):
        check_attention(model)
    assert model.training


def test_attention_that_passes_the_mask_over_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def without_mask(module, query, key, value, attention_mask, **named):
        return sdpa_attention_forward(module, query, key, value, None, **named)

    model = llama()
    check_attention(model)
    monkeypatch.setitem(AttentionInterface._global_mapping, "sdpa", without_mask)
    with pytest.raises(ValueError, match="LlamaForCausalLM with attention 'sdpa' lets documents of a row see each other"):
        check_attention(model)


@pytest.mark.parametrize("kind", ["flex_attention", "paged|sdpa"])
def test_attention_that_is_not_known_is_refused_by_name(kind: str) -> None:
    model = llama()
    model.config._attn_implementation_internal = kind
    with pytest.raises(ValueError, match=r"attention '.*' is not known to stay within .* one of eager, flash_attention_2"):
        check_attention(model)


def test_flash_attention_wants_documents_end_to_end() -> None:
    model = llama()
    assert not is_flat(model)
    model.config._attn_implementation_internal = "flash_attention_2"
    assert is_flat(model)


def test_check_changes_nothing() -> None:
    model = llama(attention_dropout=0.5).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    check_attention(model)
    assert model.training
    assert all(tensor.equal(before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.filterwarnings("ignore:.*:UserWarning")
def test_trainer_refuses_packed_rows_for_a_model_that_leaks(tmp_path: Path) -> None:
    torch.manual_seed(0)
    args = DomainConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False)
    rows = {"input_ids": [[5, 6, 7, 8]] * 4, "seq_lengths": [[2, 2]] * 4}

    def trainer(columns: dict[str, list[list[int]]]) -> DomainTrainer:
        return DomainTrainer(model=mamba(), args=args, train_dataset=Dataset.from_dict(columns), processing_class=TOKENIZER)

    with pytest.raises(ValueError, match=r"MambaForCausalLM .* lets documents of a row see each other"):
        trainer(rows)
    trainer({"input_ids": rows["input_ids"]})  # a document in each row cannot see another
