"""The sentence encoder against sentence-transformers itself, and its vectors in any company, to the last bit."""

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sentence_transformers import SentenceTransformer
from transformers.utils import logging as transformers_logging

from lmsplit.manifests.errors import ConfigurationError
from lmsplit.manifests.model_files import MINILM, MINILM_PACKAGE
from lmsplit.manifests.placement import Floats, is_unit
from lmsplit.manifests.sentence import PROBE, STATIC_BATCH, TOLERANCES, SentenceEncoder, load_model
from tests.models import (
    BATCH_SIZE,
    KINDS,
    MAX_TOKENS,
    TEXTS,
    change,
    copied,
    described,
    encoder_of,
    make_static,
    poison,
    sentence_of,
)


def theirs(model: Path, texts: list[str], max_tokens: int = MAX_TOKENS) -> Floats:
    """What sentence-transformers makes of texts, in batches of its own."""
    own = SentenceTransformer(str(model), device="cpu", local_files_only=True)
    if own.max_seq_length != float("inf"):
        own.max_seq_length = max_tokens
    return np.asarray(own.encode(texts, batch_size=5, normalize_embeddings=True))


def assert_same_but_for_rounding(found: Floats, expected: Floats) -> None:
    zero = np.linalg.norm(expected, axis=1) == 0
    assert not found[zero].any()
    assert ((found * expected).sum(1)[~zero] > 0.99999).all()


@pytest.mark.parametrize("kind", KINDS)
def test_encode_is_what_sentence_transformers_makes(models: dict[str, Path], kind: str) -> None:
    texts = [text for text in TEXTS if len(text) < 600]  # longer ones are cut before they are tokenized
    assert_same_but_for_rounding(encoder_of(models[kind]).encode(texts), theirs(models[kind], texts))


@pytest.mark.parametrize("max_tokens", [8, 16, 40])
def test_encode_reads_as_many_tokens_as_it_is_told(models: dict[str, Path], max_tokens: int) -> None:
    encoder = encoder_of(models["bert"], max_tokens=max_tokens)
    texts = [sentence_of(number, number) for number in range(1, 70, 3)]
    assert_same_but_for_rounding(encoder.encode(texts), theirs(models["bert"], texts, max_tokens))
    text = sentence_of(70)
    heads = [" ".join(text.split()[:number]) for number in (max_tokens - 3, max_tokens - 2, max_tokens - 1, 70)]
    shorter, *others = (vector.tobytes() for vector in encoder.encode(heads))
    assert set(others) == {others[0]} != {shorter}


@pytest.mark.parametrize("shown", [True, False])
def test_loading_leaves_the_librarys_bars_as_they_are(tiny_model: Path, monkeypatch: pytest.MonkeyPatch, shown: bool) -> None:
    monkeypatch.setattr(transformers_logging, "_tqdm_active", shown)
    load_model.__wrapped__(tiny_model, "cpu", "float32")  # it is kept otherwise, and a second call does nothing
    assert transformers_logging.is_progress_bar_enabled() is shown


class Company(NamedTuple):
    """An encoder, texts, and the vectors that they get together."""

    encoder: SentenceEncoder
    texts: list[str]
    vectors_ND: Floats


@pytest.fixture(scope="module")
def companies(models: dict[str, Path]) -> dict[tuple[str, str], Company]:
    found = {}
    for kind in KINDS:
        for precision in ("float32", "bfloat16"):
            encoder = encoder_of(models[kind], precision)
            found[kind, precision] = Company(encoder, TEXTS, encoder.encode(TEXTS))
    return found


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", KINDS)
def test_encode_gives_a_text_the_same_bits_alone_and_in_any_company(
    companies: dict[tuple[str, str], Company], kind: str, precision: str
) -> None:
    encoder, texts, whole = companies[kind, precision]

    @settings(max_examples=12, deadline=None)
    @given(st.lists(st.lists(st.integers(0, len(texts) - 1), max_size=2 * BATCH_SIZE * 4), min_size=1, max_size=3))
    def any_calls(calls: list[list[int]]) -> None:
        for rows in calls:
            assert encoder.encode([texts[row] for row in rows]).tobytes() == whole[rows].tobytes()

    any_calls()
    assert b"".join(encoder.encode([text]).tobytes() for text in texts) == whole.tobytes()


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("max_tokens", [40, 64])
def test_encode_gives_a_text_of_any_length_the_same_bits(models: dict[str, Path], precision: str, max_tokens: int) -> None:
    encoder = encoder_of(models["bert"], precision, max_tokens)
    texts = [sentence_of(number, seed) for number in range(MAX_TOKENS + 2) for seed in range(2)]
    whole = encoder.encode(texts)
    order = np.random.default_rng(1).permutation(len(texts))
    assert encoder.encode([texts[row] for row in order]).tobytes() == whole[order].tobytes()
    assert b"".join(encoder.encode([text]).tobytes() for text in texts[::2]) == whole[::2].tobytes()


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The batches that are computed."""
    seen: list[dict[str, Any]] = []
    forward = SentenceTransformer.forward

    def spy(model: SentenceTransformer, features: dict[str, Any]) -> Any:
        seen.append(dict(features))
        return forward(model, features)

    monkeypatch.setattr(SentenceTransformer, "forward", spy)
    return seen


def test_batches_of_a_padded_length_have_one_shape(models: dict[str, Path], batches: list[dict[str, Any]]) -> None:
    encoder = encoder_of(models["bert"], max_tokens=40)  # 160 tokens a batch, lengths 16, 32 and 40
    for number in range(1, 60):
        encoder.encode([sentence_of(number)] * (number % 7 + 1))
    assert {tuple(batch["input_ids"].shape) for batch in batches} == {(10, 16), (5, 32), (4, 40)}


def test_texts_of_a_padded_length_share_their_batches(models: dict[str, Path], batches: list[dict[str, Any]]) -> None:
    encoder_of(models["bert"]).encode([sentence_of(number % 60) for number in range(160)])
    texts = {16: 45, 32: 48, 48: 41, 64: 26}  # of 0 to 14, 15 to 30, 31 to 46 and 47 to 59 words
    expected = {(256 // length, length): -(-number // (256 // length)) for length, number in texts.items()}
    assert Counter(tuple(batch["input_ids"].shape) for batch in batches) == expected


@pytest.mark.parametrize(("kind", "first_kept"), [("bert", 0), ("llama", 16 - 7)])
def test_texts_are_padded_on_the_side_of_the_tokenizer(
    models: dict[str, Path], batches: list[dict[str, Any]], kind: str, first_kept: int
) -> None:
    encoder_of(models[kind]).encode([sentence_of(5)])
    (batch,) = batches
    expected = [int(first_kept <= place < first_kept + 7) for place in range(16)]
    assert batch["attention_mask"].tolist() == [expected] * 16  # the text, and 15 copies
    assert (batch["input_ids"] != 0).long().tolist() == [expected] * 16  # 0 is [PAD]
    assert ("token_type_ids" in batch) == (kind == "bert")


def test_batches_of_a_static_model_have_one_shape(models: dict[str, Path], batches: list[dict[str, Any]]) -> None:
    encoder = encoder_of(models["static with layers"])
    encoder.encode(["river"])
    encoder.encode([sentence_of(number % 9) for number in range(STATIC_BATCH + 1)])
    assert [len(batch["offsets"]) for batch in batches] == [STATIC_BATCH] * 3


@pytest.fixture(scope="module")
def minilm_path() -> Path:
    return Path(pytest.importorskip(MINILM_PACKAGE).__file__).parent / "model"


PROSE = [
    "A boat with a heavy keel comes upright again.",
    "Knead the dough until it is smooth, and let it rise in a warm place. " * 4,
    "🍞 日本語のテキスト naïve",
    "The choir sings the second verse more softly than the first, and the organ waits. " * 12,  # beyond 128 tokens
    "",
]


def test_minilm_is_what_sentence_transformers_makes(minilm_path: Path) -> None:
    found = encoder_of(MINILM).encode(PROSE)
    assert_same_but_for_rounding(found, theirs(minilm_path, PROSE, 128))
    assert (1 - (found @ found.T)[np.triu_indices(len(PROSE), 1)] > 0.2).all()  # texts that are not alike are far apart


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_minilm_gives_a_text_the_same_bits_alone_and_in_company(minilm_path: Path, precision: str) -> None:
    encoder = encoder_of(MINILM, precision, 32)
    texts = [text[:end] for text in PROSE[:2] for end in (9, 40, 70, 200)]
    whole = encoder.encode(texts)
    assert b"".join(encoder.encode([text]).tobytes() for text in texts) == whole.tobytes()
    assert encoder.encode(texts[::-1] + PROSE).tobytes()[: whole.nbytes] == whole[::-1].tobytes()


def test_minilm_in_bfloat16_is_within_the_tolerance(minilm_path: Path) -> None:
    exact, fast = (encoder_of(MINILM, precision, 32).encode(PROSE) for precision in ("float32", "bfloat16"))
    difference = np.abs(1 - (exact * fast).sum(1)).max()
    assert 0 < difference < TOLERANCES["bfloat16"] / 2


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", KINDS)
def test_encode_gives_unit_rows_in_float32(companies: dict[tuple[str, str], Company], kind: str, precision: str) -> None:
    _, texts, vectors_ND = companies[kind, precision]
    assert vectors_ND.dtype == np.float32
    nothing = [not text.strip("\x00 ") and kind.startswith("static") for text in texts]
    norms = np.linalg.norm(vectors_ND.astype(np.float64), axis=1)
    np.testing.assert_allclose(norms[~np.array(nothing)], 1, atol=1e-6)


def test_static_model_gives_zeros_where_a_text_has_no_token(models: dict[str, Path]) -> None:
    vectors_ND = encoder_of(models["static"]).encode(["", "river", " \n", "\x00"])
    assert is_unit(vectors_ND).tolist() == [False, True, False, False]
    assert not vectors_ND[[0, 2, 3]].any()


@pytest.mark.parametrize("kind", KINDS)
def test_encode_takes_no_texts(models: dict[str, Path], kind: str) -> None:
    vectors_ND = encoder_of(models[kind]).encode([])
    assert (vectors_ND.shape, vectors_ND.dtype) == ((0, 32), np.float32)


@pytest.mark.parametrize("kind", KINDS)
def test_encode_reads_the_first_characters_only(models: dict[str, Path], kind: str) -> None:
    description, loaded = described(models[kind])
    assert description.max_characters == 10 * description.max_tokens
    head, rest = "river " * 20, "violin"
    whole, cut = (
        SentenceEncoder(description.model_copy(update={"max_characters": number}), loaded).encode([head + rest, head])
        for number in (len(head + rest), len(head))
    )
    assert whole[0].tobytes() != whole[1].tobytes()
    assert cut[0].tobytes() == cut[1].tobytes() == whole[1].tobytes()


def test_vectors_that_are_not_finite_are_rows_that_cannot_be_placed(models: dict[str, Path], tmp_path: Path) -> None:
    texts = ["violin music", "river boat", "bread", "music on the river"]
    for number, (kind, value) in enumerate([("bert", np.nan), ("llama", np.nan), ("static", np.inf)]):
        model = copied(models[kind], tmp_path / str(number))
        poison(model, value, "river")
        vectors_ND = encoder_of(model).encode(texts)
        assert is_unit(vectors_ND).tolist() == [True, False, True, False]
        assert vectors_ND[[0, 2]].tobytes() == encoder_of(models[kind]).encode(texts)[[0, 2]].tobytes()


def test_vectors_without_end_are_rows_that_cannot_be_placed(tmp_path: Path) -> None:
    model = make_static(tmp_path / "model", normalize=False)
    poison(model, np.inf, "river")
    assert is_unit(encoder_of(model).encode(["violin", "river"])).tolist() == [True, False]


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
def test_several_callers_restore_the_number_of_threads(models: dict[str, Path]) -> None:
    encoder = encoder_of(models["bert"])
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda number: encoder.encode([sentence_of(number)]), range(60)))
    assert torch.get_num_threads() == 2


def test_a_text_alone_is_computed_alone(models: dict[str, Path], batches: list[dict[str, Any]]) -> None:
    description, loaded = described(models["bert"])
    SentenceEncoder(description, loaded, alone=True).encode([sentence_of(3), sentence_of(20)])
    assert [tuple(batch["input_ids"].shape) for batch in batches] == [(1, 16), (1, 32)]


@pytest.mark.usefixtures("two_threads")
def test_encode_computes_on_one_thread_and_restores_their_number(
    models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder, seen = encoder_of(models["bert"]), []

    def spy(model: SentenceTransformer, features: Any) -> Any:
        seen.append((torch.get_num_threads(), torch.is_inference_mode_enabled()))
        raise MemoryError

    encoder.encode(["river"])
    assert torch.get_num_threads() == 2
    monkeypatch.setattr(SentenceTransformer, "forward", spy)
    with pytest.raises(MemoryError):
        encoder.encode(["river"])
    assert seen == [(1, True)]
    assert (torch.get_num_threads(), torch.is_inference_mode_enabled()) == (2, False)


@pytest.mark.parametrize("max_tokens", [16, 128])
@pytest.mark.parametrize("kind", KINDS)
def test_check_tokens_accepts_what_sentence_transformers_makes(models: dict[str, Path], kind: str, max_tokens: int) -> None:
    encoder_of(models[kind], max_tokens=max_tokens).check_tokens()


def test_check_tokens_refuses_a_model_that_prepares_texts_in_its_own_way(tiny_model: Path, tmp_path: Path) -> None:
    model = copied(tiny_model, tmp_path / "model")
    change(model / "sentence_bert_config.json", processing_kwargs={"text": {"add_special_tokens": False}})
    with pytest.raises(ConfigurationError, match="this model does not tokenize texts as its tokenizer does: choose another one"):
        encoder_of(model).check_tokens()


def test_probe_reaches_beyond_any_usual_length(minilm_path: Path) -> None:
    encoder = encoder_of(MINILM)
    assert encoder._tokenizer is not None
    lengths = [len(encoding.ids) for encoding in encoder._tokenizer.encode_batch_fast(list(PROBE))]
    assert (min(lengths) < 16, max(lengths)) == (True, 128)
