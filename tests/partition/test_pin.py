"""What encodes a run's texts: what is wished of it, and what this machine makes of the wishes left open."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lmsplit.manifests.encoder import build
from lmsplit.manifests.errors import ConfigurationError
from lmsplit.manifests.placement import is_unit
from lmsplit.manifests.sentence import PROBE, SentenceEncoder
from lmsplit.partition import sample
from lmsplit.partition.config import Encoder
from lmsplit.partition.sample import has_gpu, pin
from tests.models import MAX_TOKENS, change, copied, encoder_of, poison


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def wished(model: Path, **keys: Any) -> Encoder:
    return Encoder.model_validate({"model": str(model)} | keys)


def test_pin_describes_what_it_can_build_again(tiny_model: Path) -> None:
    description, probe_PD = pin(wished(tiny_model))
    stored = json.loads(json.dumps(description))
    assert stored == description
    assert (probe_PD.shape, probe_PD.dtype) == ((len(PROBE), 32), np.float32)
    assert is_unit(probe_PD).all()
    build(stored, {"probe_PD": np.array(probe_PD.tolist(), np.float32)}, exact=True, model=str(tiny_model))


def test_pin_takes_the_wishes(tiny_model: Path) -> None:
    description, probe_PD = pin(wished(tiny_model, max_tokens=24, batch_size=3, device="cpu", precision="float16"))
    found = {key: description[key] for key in ("device", "precision", "max_tokens", "batch_tokens", "tolerance")}
    assert found == {"device": "cpu", "precision": "float16", "max_tokens": 24, "batch_tokens": 72, "tolerance": 0.01}
    assert probe_PD.tobytes() == encoder_of(tiny_model, "float16", 24).probe().tobytes()


def test_pin_cuts_texts_to_what_the_model_takes(tiny_model: Path) -> None:
    description, _ = pin(wished(tiny_model, max_tokens=128))
    assert (description["max_tokens"], description["max_characters"]) == (MAX_TOKENS, 10 * MAX_TOKENS)
    assert description["batch_tokens"] == 16 * MAX_TOKENS  # 16 texts on a CPU


def test_pin_takes_the_tokens_that_a_table_is_given(models: dict[str, Path]) -> None:
    description, _ = pin(wished(models["static"], max_tokens=200))
    assert (description["max_tokens"], description["max_characters"]) == (200, 2000)


@pytest.mark.parametrize(("fast", "precision"), [(True, "bfloat16"), (False, "float32")])
def test_pin_computes_in_bfloat16_where_it_is_fast(
    tiny_model: Path, fast: bool, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sample, "has_fast_bfloat16", lambda: fast)
    assert pin(wished(tiny_model))[0]["precision"] == precision
    assert pin(wished(tiny_model, precision="float32"))[0]["precision"] == "float32"


def test_pin_refuses_a_gpu_that_is_not_there(tiny_model: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"encoder\.device is cuda, but no GPU can be used here: leave it out"):
        pin(wished(tiny_model, device="cuda"))
    assert pin(wished(tiny_model))[0]["device"] == "cpu"


@pytest.mark.parametrize(("has_bfloat16", "precision"), [(True, "bfloat16"), (False, "float16")])
def test_pin_takes_a_gpu_where_there_is_one(
    tiny_model: Path, has_bfloat16: bool, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: has_bfloat16)
    asked = []

    class Loaded(Exception):  # noqa: N818
        pass

    def load_model(*wishes: Any) -> None:
        asked.append(wishes)
        raise Loaded

    monkeypatch.setattr(sample, "load_model", load_model)
    for keys in ({}, {"device": "cpu", "precision": "float32"}):
        with pytest.raises(Loaded):
            pin(wished(tiny_model, **keys))
    assert asked == [(tiny_model, "cuda", precision, False), (tiny_model, "cpu", "float32", False)]


def test_pin_refuses_a_model_that_gives_no_vectors(tiny_model: Path, tmp_path: Path) -> None:
    model = copied(tiny_model, tmp_path / "model")
    poison(model, float("nan"))
    with pytest.raises(ConfigurationError, match=r"model gives no finite unit vectors in float16: set encoder\.precision"):
        pin(wished(model, precision="float16"))


def test_pin_refuses_a_model_that_prepares_texts_in_its_own_way(tiny_model: Path, tmp_path: Path) -> None:
    model = copied(tiny_model, tmp_path / "model")
    change(model / "sentence_bert_config.json", processing_kwargs={"text": {"add_special_tokens": False}})
    with pytest.raises(ConfigurationError, match="this model does not tokenize texts as its tokenizer does"):
        pin(wished(model))


def test_gpu_is_none_without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert has_gpu()
    monkeypatch.setitem(sys.modules, "torch", None)
    assert not has_gpu()


@pytest.mark.parametrize(("max_tokens", "batch_tokens"), [(64, 2048), (16, 2048), (60, 2040)])
def test_pin_bounds_the_tokens_of_a_batch_whatever_a_text_has(tiny_model: Path, max_tokens: int, batch_tokens: int) -> None:
    assert pin(wished(tiny_model, max_tokens=max_tokens))[0]["batch_tokens"] == batch_tokens


def test_pin_warns_where_vectors_depend_on_their_neighbours(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pin(wished(tiny_model))
    assert not caplog.records
    forward = SentenceEncoder._forward
    leak = np.float32(1e-6)

    def leaking(self: SentenceEncoder, tokens: list[list[int]], length: int, size: int) -> Any:
        vectors_ND = forward(self, tokens, length, size)
        return vectors_ND + leak * vectors_ND[:1]

    monkeypatch.setattr(SentenceEncoder, "_forward", leaking)
    pin(wished(tiny_model))
    assert "vectors depend on their neighbours in a batch here" in caplog.text
