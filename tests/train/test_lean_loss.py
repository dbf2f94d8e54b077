"""The loss without logits against the model's own: value and gradients, and the models that must keep their own."""

import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from lmsplit.train.lean_loss import add_lean_loss

pytestmark = pytest.mark.usefixtures("one_thread")

NUM_WORDS = 60
SHAPE = {
    "vocab_size": NUM_WORDS,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
PLAIN: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE)),
    "llama with tied embeddings": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE, tie_word_embeddings=True)),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=NUM_WORDS, n_embd=16, n_layer=1, n_head=2)),
    "gemma2 without a cap": lambda: gemma2(None),
    "granite without a scale": lambda: GraniteForCausalLM(GraniteConfig(**SHAPE, logits_scaling=1.0)),
}
OWN: dict[str, Callable[[], PreTrainedModel]] = {
    "gemma2 with a cap": lambda: gemma2(30.0),
    "granite with a scale": lambda: GraniteForCausalLM(GraniteConfig(**SHAPE, logits_scaling=8.0)),
    "cohere with a scale": lambda: CohereForCausalLM(CohereConfig(**SHAPE, logit_scale=0.0625)),
}


def gemma2(cap: float | None) -> PreTrainedModel:
    config = Gemma2Config(**SHAPE, head_dim=8, final_logit_softcapping=cap)
    return Gemma2ForCausalLM._from_config(config, attn_implementation="eager")


def made(name: str) -> PreTrainedModel:
    torch.manual_seed(0)
    return (PLAIN | OWN)[name]().eval()


def batch_of(seed: int = 0, rows: int = 3, length: int = 9, ignored: float = 0.3) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(NUM_WORDS, (rows, length), generator=generator)
    out = torch.rand(rows, length, generator=generator) < ignored
    return {"input_ids": ids, "labels": ids.masked_fill(out, -100)}


def loss_and_gradients(model: PreTrainedModel, batch: dict[str, torch.Tensor], **named: object) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss = model(**batch, use_cache=False, **named).loss
    loss.backward()
    return {"loss": loss.detach()} | {name: weight.grad.clone() for name, weight in model.named_parameters()}


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], tolerance: float) -> None:
    """Each tensor differs by no more than a share of its own size, or of a tenth of the largest, of which it is rounding."""
    assert found.keys() == expected.keys()
    largest = max(float(tensor.norm()) for name, tensor in expected.items() if name != "loss")
    for name, tensor in expected.items():
        difference = float((found[name] - tensor).norm())
        assert difference <= tolerance * max(float(tensor.norm()), largest / 10), (name, difference)


@pytest.mark.parametrize("count", [None, 7, torch.tensor(7)])
@pytest.mark.parametrize("name", PLAIN)
def test_loss_and_gradients_are_the_models_own(name: str, count: int | torch.Tensor | None) -> None:
    model = made(name)
    named = {} if count is None else {"num_items_in_batch": count}
    expected = loss_and_gradients(model, batch_of(), **named)
    assert add_lean_loss(model)
    assert_same(loss_and_gradients(model, batch_of(), **named, loss_alone=True), expected, 1e-5)
    assert_same(loss_and_gradients(model, batch_of(), **named), expected, 0)  # what is not asked for stays as it was


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**30), rows=st.integers(1, 4), length=st.integers(2, 30), ignored=st.floats(0, 0.9))
def test_any_batch_has_the_models_own_loss(seed: int, rows: int, length: int, ignored: float) -> None:
    model = made("llama")
    batch = batch_of(seed, rows, length, ignored)
    batch["labels"][0, 1] = 3  # transformers' mean over nothing is no number
    expected = loss_and_gradients(model, batch)
    assert add_lean_loss(model)
    assert_same(loss_and_gradients(model, batch, loss_alone=True), expected, 1e-5)


def test_chunks_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lmsplit.train.lean_loss._CHUNK_TOKENS", 5)
    model = made("llama")
    expected = loss_and_gradients(model, batch_of())
    assert add_lean_loss(model)
    assert_same(loss_and_gradients(model, batch_of(), loss_alone=True), expected, 1e-5)


def test_batch_without_a_label_has_no_loss() -> None:
    model = made("llama")
    assert add_lean_loss(model)
    found = loss_and_gradients(model, batch_of(ignored=1.1), loss_alone=True)
    assert all(tensor.eq(0).all() for tensor in found.values())


@pytest.mark.parametrize("name", ["llama", "llama with tied embeddings", "gpt2"])
def test_loss_and_gradients_under_autocast_are_the_models_own(name: str) -> None:
    """A number of bf16 has 8 bits, so 3 % after some sums; the loss itself is summed in float32."""
    model = made(name)
    exact = loss_and_gradients(model, batch_of())
    assert add_lean_loss(model)
    with torch.autocast("cpu", torch.bfloat16):
        expected = loss_and_gradients(model, batch_of())
        found = loss_and_gradients(model, batch_of(), loss_alone=True)
    assert found["loss"].dtype == torch.float32
    assert_same(found, exact, 0.03)
    assert_same(found, expected, 0.03)
    assert found["loss"].item() == pytest.approx(expected["loss"].item(), rel=1e-3)


@pytest.mark.parametrize("name", OWN)
def test_model_that_changes_its_logits_keeps_its_own_loss(name: str) -> None:
    model = made(name)
    forward = model.forward
    expected = loss_and_gradients(model, batch_of())
    assert not add_lean_loss(model)
    assert model.forward == forward
    assert_same(loss_and_gradients(model, batch_of()), expected, 0)


def test_model_with_another_loss_keeps_it() -> None:
    model = made("llama")
    model.loss_function = lambda logits, labels, **_: logits.float().square().mean()
    assert not add_lean_loss(model)


def test_model_without_a_head_of_its_own_keeps_its_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    model = made("llama")
    monkeypatch.setattr(model, "get_output_embeddings", lambda: None)
    assert not add_lean_loss(model)


def test_older_pytorch_keeps_transformers_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.nn.functional, "linear_cross_entropy")
    assert not add_lean_loss(made("llama"))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", [*PLAIN, *OWN])
def test_probe_leaves_weights_mode_and_random_numbers(name: str, training: bool) -> None:
    model = made(name).train(training)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random = torch.get_rng_state()
    add_lean_loss(model)
    assert model.training is training
    assert torch.get_rng_state().equal(random)
    assert all(tensor.equal(before[name]) for name, tensor in model.state_dict().items())
    assert all(weight.grad is None for weight in model.parameters())


def test_logits_are_not_handed_out() -> None:
    model = made("llama")
    assert add_lean_loss(model)
    found = model(**batch_of(), use_cache=False, loss_alone=True)
    assert list(found.keys()) == ["loss"]
    assert model(**batch_of(), use_cache=False).logits.shape == (3, 9, NUM_WORDS)


DISTRIBUTED = """
import sys
import torch
from torch.nn.parallel import DistributedDataParallel
from lmsplit.train.lean_loss import add_lean_loss
from tests.train.test_lean_loss import assert_same, batch_of, loss_and_gradients, made

torch.set_num_threads(1)
torch.distributed.init_process_group("gloo", init_method="file://" + sys.argv[1], rank=0, world_size=1)
model = made("llama with tied embeddings")
expected = loss_and_gradients(model, batch_of())
assert add_lean_loss(model)
wrapped = DistributedDataParallel(model)
calls = []
wrapped.register_forward_hook(lambda *_: calls.append("wrapped"))
found = loss_and_gradients(wrapped, batch_of(), loss_alone=True)
assert_same({name.removeprefix("module."): tensor for name, tensor in found.items()}, expected, 1e-5)
assert calls == ["wrapped"]
torch.distributed.destroy_process_group()
"""


def test_loss_goes_through_a_wrapper_of_processes(tmp_path) -> None:
    subprocess.run([sys.executable, "-c", DISTRIBUTED, str(tmp_path / "group")], check=True, timeout=120)
