"""What pins a sentence encoder: built again elsewhere it gives the same bits, or an error that says why not."""

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lmsplit.manifests import sentence_pinned
from lmsplit.manifests.encoder import build
from lmsplit.manifests.errors import ConfigurationError, ManifestError
from lmsplit.manifests.model_files import MINILM, MINILM_PACKAGE, MINILM_REPOSITORY, MINILM_REVISION, find_model
from lmsplit.manifests.placement import DISTANCE_TOLERANCE, Floats
from lmsplit.manifests.sentence import SentenceEncoder, load_model
from lmsplit.manifests.sentence_pinned import build_sentence
from tests.models import (
    BATCH_SIZE,
    KINDS,
    MAX_TOKENS,
    PROMPT,
    TEXTS,
    change,
    copied,
    described,
    encoder_of,
    flip_bit,
    make_bag_of_words,
    make_bert,
)


def pinned(given: Path | str, precision: Any = "float32", **keys: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The stored form of an encoder; keys change its description afterwards."""
    description, loaded = described(given, precision)
    arrays = {"probe_PD": SentenceEncoder(description, loaded).probe()}
    return description.model_dump(mode="json") | keys, arrays


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", KINDS)
def test_build_gives_back_the_described_encoder(models: dict[str, Path], kind: str, precision: str) -> None:
    description, arrays = pinned(models[kind], precision)
    expected = encoder_of(models[kind], precision).encode(TEXTS)
    load_model.cache_clear()  # a machine that builds has loaded nothing before
    built = build(description, arrays, exact=True, model=str(models[kind]))
    assert built.tolerance == DISTANCE_TOLERANCE
    assert built.encode(TEXTS).tobytes() == expected.tobytes()


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", KINDS)
def test_texts_computed_alone_are_within_the_tolerance(models: dict[str, Path], kind: str, precision: str) -> None:
    description, arrays = pinned(models[kind], precision)
    alone = build(description, arrays, alone=True, model=str(models[kind]))
    together = build(description, arrays, exact=True, model=str(models[kind]))  # else float32 where bfloat16 would be slow
    assert alone.tolerance == description["tolerance"] > together.tolerance
    found, expected = alone.encode(TEXTS), together.encode(TEXTS)
    assert np.square(found - expected).sum(axis=1).max() / 2 < alone.tolerance  # 1 - cosine, of zeros too
    assert found.tobytes() == b"".join(alone.encode([text]).tobytes() for text in TEXTS)


def test_build_finds_minilm_by_its_name() -> None:
    pytest.importorskip(MINILM_PACKAGE)
    description, arrays = pinned(MINILM)
    assert (description["model"], description["revision"]) == (MINILM_REPOSITORY, MINILM_REVISION)
    assert build(description, arrays, exact=True).encode(["bread"]).shape == (1, 384)


def test_build_finds_a_hub_model_at_its_revision(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    description, arrays = pinned(tiny_model, model="owner/name", revision="a" * 40)
    asked = []
    monkeypatch.setattr("lmsplit.manifests.model_files._download", lambda *names: asked.append(names) or tiny_model)
    build(description, arrays, exact=True)
    assert asked == [("owner/name", "a" * 40)]
    build(description, arrays, exact=True, model=str(tiny_model))
    assert len(asked) == 1


def test_description_says_what_pins_the_encoder(models: dict[str, Path]) -> None:
    files = find_model(str(models["prompt"]))
    assert described(models["prompt"], "bfloat16")[0].model_dump() == {
        "kind": "sentence-transformers",
        "version": 1,
        "model": None,
        "revision": None,
        "weights_sha256": files.weights_sha256,
        "tokenizer_sha256": files.tokenizer_sha256,
        "max_tokens": MAX_TOKENS,
        "max_characters": 10 * MAX_TOKENS,
        "prompt": PROMPT,
        "pooling": "Transformer > Pooling(mean) > Normalize",
        "dimensions": 32,
        "backend": "torch",
        "device": "cpu",
        "precision": "bfloat16",
        "length_step": 16,
        "batch_tokens": BATCH_SIZE * MAX_TOKENS,
        "tolerance": 0.01,
        "trust_remote_code": False,
    }


def test_build_refuses_a_model_with_other_weights(tiny_model: Path, tmp_path: Path) -> None:
    description, arrays = pinned(tiny_model)
    other = copied(tiny_model, tmp_path / "other")
    flip_bit(other)
    found = find_model(str(other)).weights_sha256
    message = f"{other}: its weights should have sha256 {description['weights_sha256']}, as this manifest says, found {found}"
    with pytest.raises(ManifestError, match=re.escape(message)):
        build(description, arrays, model=str(other))


def test_build_refuses_a_model_with_another_tokenizer(tiny_model: Path, tmp_path: Path) -> None:
    description, arrays = pinned(tiny_model)
    other = copied(tiny_model, tmp_path / "other")
    change(other / "tokenizer.json", version="1.0 ")
    found = find_model(str(other)).tokenizer_sha256
    message = f"{other}: its tokenizer should have sha256 {description['tokenizer_sha256']}, as this manifest says, found {found}"
    with pytest.raises(ManifestError, match=re.escape(message)):
        build(description, arrays, model=str(other))


def test_build_needs_the_directory_of_a_model_without_a_name(tiny_model: Path) -> None:
    description, arrays = pinned(tiny_model)
    message = f"this manifest's encoder was a model in a directory, with weights of sha256 {description['weights_sha256']}: name"
    with pytest.raises(ConfigurationError, match=message + r" such a directory \(--model\)"):
        build(description, arrays)


def test_probe_that_differs_by_a_bit_is_refused_where_bits_count(tiny_model: Path) -> None:
    description, arrays = pinned(tiny_model)
    arrays["probe_PD"][2, 5] = np.nextafter(arrays["probe_PD"][2, 5], np.float32(1))
    message = r"this machine computes other vectors than those pinned \(1 - cosine up to .*\): the data files would differ"
    with pytest.raises(ConfigurationError, match=message):
        build(description, arrays, exact=True, model=str(tiny_model))


def test_probe_that_differs_a_little_widens_the_tolerance_of_an_audit(tiny_model: Path) -> None:
    description, arrays = pinned(tiny_model, tolerance=0.005)
    assert build(description, arrays, model=str(tiny_model)).tolerance == DISTANCE_TOLERANCE
    arrays["probe_PD"][2, 5] = np.nextafter(arrays["probe_PD"][2, 5], np.float32(1))
    assert build(description, arrays, model=str(tiny_model)).tolerance == 0.005


@pytest.mark.parametrize("spoil", [lambda probe: np.roll(probe, 1, axis=0), lambda probe: -probe, lambda probe: probe * np.nan])
def test_probe_that_differs_by_much_is_refused(tiny_model: Path, spoil: Callable[[Floats], Floats]) -> None:
    description, arrays = pinned(tiny_model)
    with pytest.raises(ManifestError, match=r"the encoder's probe differs from the pinned one by .*, more than 0\.001"):
        build(description, {"probe_PD": spoil(arrays["probe_PD"])}, model=str(tiny_model))


def test_tolerance_of_the_probe_bounds_one_minus_cosine(tiny_model: Path) -> None:
    description, arrays = pinned(tiny_model)
    exact = arrays["probe_PD"][0].astype(np.float64)
    across = np.roll(exact, 1) - np.roll(exact, 1) @ exact * exact
    across /= np.linalg.norm(across)
    for difference, accepted in ((0.0009, True), (0.0011, False)):
        angle = np.arccos(1 - difference)
        arrays["probe_PD"][0] = np.cos(angle) * exact + np.sin(angle) * across
        if accepted:
            assert build(description, arrays, model=str(tiny_model)).tolerance == 0.001
        else:
            with pytest.raises(ManifestError, match=r"differs from the pinned one by 1\.1e-03, more than 0\.001"):
                build(description, arrays, model=str(tiny_model))


@pytest.mark.parametrize("spoil", [lambda probe: probe[:-1], lambda probe: probe[:, :-1], lambda probe: probe.astype(np.float64)])
def test_probe_of_another_shape_is_refused(tiny_model: Path, spoil: Callable[[Floats], Floats]) -> None:
    description, arrays = pinned(tiny_model)
    message = "the placement rule lacks the probe of its sentence encoder, or it is misshapen"
    with pytest.raises(ManifestError, match=message):
        build(description, {"probe_PD": spoil(arrays["probe_PD"])}, model=str(tiny_model))
    with pytest.raises(ManifestError, match=message):
        build(description, {}, model=str(tiny_model))


@pytest.mark.parametrize(
    "keys", [{"version": 2}, {"later": 1}, {"device": "tpu"}, {"backend": "onnx"}, {"max_tokens": 0}, {"weights_sha256": "00"}]
)
def test_description_of_a_later_version_is_refused(tiny_model: Path, keys: dict[str, Any]) -> None:
    description, arrays = pinned(tiny_model, **keys)
    message = f"this manifest's sentence encoder needs a later lmsplit, or is damaged: (.|\n)*{next(iter(keys))}"
    with pytest.raises(ManifestError, match=message):
        build(description, arrays, model=str(tiny_model))


def test_description_that_lacks_a_key_is_refused(tiny_model: Path) -> None:
    description, arrays = pinned(tiny_model)
    del description["prompt"]
    with pytest.raises(ManifestError, match=r"needs a later lmsplit, or is damaged: (.|\n)*prompt"):
        build(description, arrays, model=str(tiny_model))


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def precision_of(encoder: SentenceEncoder) -> str:
    return str(next(encoder._model.parameters()).dtype)


@pytest.mark.usefixtures("no_gpu")
def test_encoder_of_a_gpu_needs_one_where_bits_count(tiny_model: Path) -> None:
    description, arrays = pinned(tiny_model, device="cuda")
    message = "the encoder is pinned to device cuda, and this machine has none: run where there is a GPU"
    with pytest.raises(ConfigurationError, match=message):
        build(description, arrays, exact=True, model=str(tiny_model))


@pytest.mark.usefixtures("no_gpu")
def test_encoder_of_a_gpu_is_audited_on_the_cpu_in_float32(tiny_model: Path) -> None:
    description, arrays = pinned(tiny_model, device="cuda", precision="bfloat16", tolerance=0.05)
    encoder = build_sentence(description, arrays, model=str(tiny_model))
    assert precision_of(encoder) == "torch.float32"
    assert encoder.encode(TEXTS).tobytes() == encoder_of(tiny_model).encode(TEXTS).tobytes()


@pytest.mark.parametrize("fast", [True, False])
def test_bfloat16_is_audited_in_float32_where_it_is_slow(tiny_model: Path, fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    description, arrays = pinned(tiny_model, "bfloat16", tolerance=0.05)
    monkeypatch.setattr(sentence_pinned, "has_fast_bfloat16", lambda: fast)
    assert precision_of(build_sentence(description, arrays, exact=True, model=str(tiny_model))) == "torch.bfloat16"
    audited = build_sentence(description, arrays, model=str(tiny_model))
    assert precision_of(audited) == ("torch.bfloat16" if fast else "torch.float32")
    assert audited.tolerance == (DISTANCE_TOLERANCE if fast else 0.05)


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({"avx512_bf16": True}, True),
        ({"amx_bf16": True, "avx512_bf16": False}, True),
        ({"bf16": False, "avx2": True}, False),
        ({}, False),
    ],
)
def test_fast_bfloat16_is_what_the_processor_says(
    capabilities: dict[str, bool], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert sentence_pinned.has_fast_bfloat16() is expected
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert sentence_pinned.has_fast_bfloat16() is False


def test_remote_code_runs_only_where_it_is_allowed(tiny_model: Path) -> None:
    description, arrays = pinned(tiny_model, model="owner/name", revision="a" * 40, trust_remote_code=True)
    message = "encoder owner/name runs code of its own repository: allow it"
    with pytest.raises(ConfigurationError, match=message):
        build(description, arrays, model=str(tiny_model))
    build(description, arrays, model=str(tiny_model), trust_remote_code=True)


def test_remote_code_is_not_run_because_it_is_allowed(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    description, arrays = pinned(tiny_model)
    asked = []
    monkeypatch.setattr(sentence_pinned, "load_model", lambda *given: asked.append(given) or load_model(*given))
    build(description, arrays, model=str(tiny_model), trust_remote_code=True)
    assert asked == [(tiny_model, "cpu", "float32", False)]


@pytest.mark.parametrize("library", ["sentence_transformers", "torch"])
def test_library_that_is_not_installed_is_named(tiny_model: Path, library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    description, arrays = pinned(tiny_model)
    monkeypatch.setitem(sys.modules, library, None)
    message = (
        f"a sentence encoder needs {library}, which is not installed: pip install 'lmsplit[offline]', "
        "or 'lmsplit[partition]' to partition; encoder: lexical needs neither"
    )
    with pytest.raises(ConfigurationError, match=re.escape(message)):
        build(description, arrays, model=str(tiny_model))
    load_model.cache_clear()
    with pytest.raises(ConfigurationError, match=re.escape(message)):
        load_model(tiny_model, "cpu", "float32")


def damaged_weights(model: Path) -> None:
    (model / "model.safetensors").write_bytes((model / "model.safetensors").read_bytes()[:1000])


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (damaged_weights, "Error while deserializing header"),
        (lambda model: (model / "config.json").write_text("{"), "is not a valid JSON file"),
        (lambda model: change(model / "config.json", model_type="nonesuch"), "model type `nonesuch`"),
        (lambda model: change(model / "config.json", hidden_size=64), "ignore_mismatched_sizes"),
        (lambda model: change(model / "1_Pooling" / "config.json", nonesuch=1), "unexpected keyword argument 'nonesuch'"),
        (lambda model: (model / "tokenizer.json").write_text("{}"), "a tokenizer"),
    ],
)
def test_model_that_cannot_be_loaded_says_why(
    tiny_model: Path, tmp_path: Path, damage: Callable[[Path], None], reason: str
) -> None:
    model = copied(tiny_model, tmp_path / "model")
    damage(model)
    message = f"^{re.escape(str(model))} cannot be loaded as a sentence-transformers model: [^\n]*{re.escape(reason)}[^\n]*$"
    with pytest.raises(ConfigurationError, match=message):
        load_model(model, "cpu", "float32")


def test_model_that_does_not_begin_with_tokens_is_refused(tmp_path: Path) -> None:
    model = make_bag_of_words(tmp_path / "model")
    message = re.escape(f"{model}: its first module is BoW, expected Transformer or StaticEmbedding")
    with pytest.raises(ConfigurationError, match=message):
        load_model(find_model(str(model)).directory, "cpu", "float32")


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("kind", KINDS)
def test_model_is_loaded_in_its_precision(models: dict[str, Path], kind: str, precision: Any) -> None:
    loaded = load_model(models[kind], "cpu", precision)
    assert {parameter.dtype for parameter in loaded.parameters()} == {getattr(torch, precision)}
    frequencies = [buffer.dtype for name, buffer in loaded.named_buffers() if "inv_freq" in name]
    assert set(frequencies) == ({torch.float32} if kind == "llama" else set())  # rounded, they turn far tokens wrongly
    assert not loaded.training


def test_slow_tokenizer_is_refused(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load_model(tiny_model, "cpu", "float32")
    monkeypatch.setattr(type(loaded.tokenizer), "is_fast", False)
    with pytest.raises(ConfigurationError, match=r"this model's tokenizer has no fast form \(tokenizer.json\): choose another"):
        described(tiny_model)


def test_prompt_that_is_not_pooled_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="this model leaves its prompt out of the pooling, which is not supported"):
        described(make_bert(tmp_path / "model", prompt="query: ", include_prompt=False))
    assert described(make_bert(tmp_path / "without", include_prompt=False))[0].prompt == ""
