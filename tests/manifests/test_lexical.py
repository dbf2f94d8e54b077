"""The lexical encoder against an implementation written from the specification with a dictionary and loops."""

import math
import zlib
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmsplit.manifests.encoder import build
from lmsplit.manifests.errors import ManifestError
from lmsplit.manifests.lexical import LexicalEncoder, LexicalFeatures, describe_lexical

NUM_BUCKETS, DIMENSIONS, MAX_CHARACTERS = 512, 12, 300
WORD_BYTES = frozenset(b"0123456789abcdefghijklmnopqrstuvwxyz_") | frozenset(range(0x80, 0x100))

TEXTS = [
    "",
    " ",
    "a",
    "!",
    "?! ...",
    "The of AND the",
    "the the x",
    "Graph nodes and the edges of a graph: nodes, edges.",
    "graph\x00nodes\x00",
    "\x00",
    "🍞",
    "🍞🍞 bread 🍞",
    "naïve Straße İstanbul ŒUVRE",
    "日本語のテキスト",
    "x" * 5_000,
    "word " * 5_000,
    "tab\tnew\nline\r\n\x0b\x0c" * 20,
    "a b c d e f g",
    "e\u0301 \u00a0 \u2028",
    "snake_case_1 CamelCase2 3.14 1_000",
    "İ" * 150 + " lower case makes these longer, but the cut comes first " * 5,
]


def words_of(data: bytes) -> list[bytes]:
    words, run = [], bytearray()
    for byte in data + b" ":
        if byte in WORD_BYTES:
            run.append(byte)
        else:
            if len(run) >= 2:
                words.append(bytes(run))
            run.clear()
    return words


def reference(text: str, idf: np.ndarray, projection: np.ndarray) -> list[float]:
    """The section "The lexical encoder" of manifests/README.md, step by step."""
    data = text[:MAX_CHARACTERS].lower().encode()
    hashes = [zlib.crc32(word) for word in words_of(data)]
    if not hashes:
        hashes = [zlib.crc32(bytes([byte])) for byte in data if byte not in b" \t\n\r\x0b\x0c"]
    counts: dict[int, int] = {}
    for h in hashes:
        counts[h % NUM_BUCKETS] = counts.get(h % NUM_BUCKETS, 0) + 1
    for first, second in pairwise(hashes):
        mixed = ((first * 0x9E3779B97F4A7C15 % 2**64) ^ second) * 0xD6E8FEB86659FD93 % 2**64
        bucket = (mixed >> 32) % NUM_BUCKETS
        counts[bucket] = counts.get(bucket, 0) + 1
    vector = [np.float32(0)] * DIMENSIONS
    for bucket in sorted(counts):
        weight = np.float32(1 + math.log(counts[bucket])) * np.float32(idf[bucket])
        vector = [value + weight * np.float32(projection[bucket, d]) for d, value in enumerate(vector)]
    norm = math.sqrt(math.fsum(float(value) ** 2 for value in vector))
    return [float(np.float32(float(value) * (1.0 / norm))) if norm else 0.0 for value in vector]


@pytest.fixture(scope="module")
def encoder() -> LexicalEncoder:
    generator = np.random.default_rng(5)
    features = LexicalFeatures(NUM_BUCKETS, MAX_CHARACTERS)
    idf_B = generator.uniform(0, 5, NUM_BUCKETS).astype(np.float32)
    projection_BD = generator.standard_normal((NUM_BUCKETS, DIMENSIONS)).astype(np.float16)
    return LexicalEncoder(features, idf_B, projection_BD)


def assert_is_reference(encoder: LexicalEncoder, text: str) -> None:
    expected = np.array(reference(text, encoder.idf_B, encoder.projection_BD), np.float32)
    # One unit in the last place: the specification leaves the order of the sum of squares free.
    np.testing.assert_array_max_ulp(encoder.encode([text])[0], expected, maxulp=1)


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_encode_is_what_the_specification_says(encoder, text):
    assert_is_reference(encoder, text)


@settings(max_examples=150, deadline=None)
@given(text=st.text(st.characters(codec="utf-8"), max_size=400))
def test_encode_is_what_the_specification_says_of_any_text(encoder, text):
    assert_is_reference(encoder, text)


@settings(max_examples=50, deadline=None)
@given(text=st.lists(st.sampled_from(["graph", "node", "the", "a", "Ä", "é", "x_1", "🍞", "\n"]), max_size=120).map(" ".join))
def test_encode_is_what_the_specification_says_of_repeated_words(encoder, text):
    assert_is_reference(encoder, text)


def test_encode_is_bit_equal_alone_and_in_any_batch(encoder):
    texts = [f"{text} {number}" for number in range(30) for text in TEXTS]  # more than one batch
    whole = encoder.encode(texts)
    order = np.random.default_rng(0).permutation(len(texts))
    assert encoder.encode([texts[i] for i in order]).tobytes() == whole[order].tobytes()
    alone = np.concatenate([encoder.encode([text]) for text in texts])
    assert alone.tobytes() == whole.tobytes()


def test_weights_are_correctly_rounded_for_any_count():
    features = LexicalFeatures(NUM_BUCKETS, 10_000)
    buckets = [features.count(word)[0][0] for word in ("aa", "bb")]
    projection_BD = np.zeros((NUM_BUCKETS, 2), np.float16)
    projection_BD[buckets] = np.eye(2)  # all other buckets vanish, so that nothing but the weights is rounded
    encoder = LexicalEncoder(features, np.ones(NUM_BUCKETS, np.float32), projection_BD)
    numbers = range(1, 3_000, 7)
    expected = []
    for number in numbers:
        weights = [float(np.float32(1 + math.log(count))) for count in (number, 1)]
        norm = math.sqrt(weights[0] ** 2 + weights[1] ** 2)
        expected.append([np.float32(weight * (1 / norm)) for weight in weights])
    assert encoder.encode(["aa " * number + "bb" for number in numbers]).tolist() == np.array(expected).tolist()


def test_encode_does_not_depend_on_how_the_projection_lies_in_memory(encoder):
    turned = LexicalEncoder(encoder.features, encoder.idf_B, np.asfortranarray(encoder.projection_BD).astype(np.float16))
    assert turned.encode(TEXTS).tobytes() == encoder.encode(TEXTS).tobytes()


def test_encode_gives_unit_rows_or_zeros(encoder):
    norms = np.linalg.norm(encoder.encode(TEXTS).astype(np.float64), axis=1)
    zeros = [number for number, text in enumerate(TEXTS) if not text.strip()]
    assert np.flatnonzero(norms == 0).tolist() == zeros
    np.testing.assert_allclose(np.delete(norms, zeros), 1, atol=1e-6)


def test_encode_reads_the_first_characters_only(encoder):
    head = "graph " * (MAX_CHARACTERS // 6)
    assert len(head) == MAX_CHARACTERS
    assert encoder.encode([head + "and something else"]).tobytes() == encoder.encode([head]).tobytes()


def test_encode_takes_no_texts(encoder):
    assert encoder.encode([]).shape == (0, DIMENSIONS)


def test_count_gives_sorted_buckets(encoder):
    buckets, counts = encoder.features.count("graph graph")
    assert buckets[0] < buckets[1]
    assert sorted(counts.tolist()) == [1, 2]
    assert [len(each) for each in encoder.features.count("")] == [0, 0]


def arrays_of(encoder: LexicalEncoder) -> dict[str, np.ndarray]:
    return {"idf_B": encoder.idf_B, "projection_BD": encoder.projection_BD.astype(np.float16)}


def test_build_gives_back_the_described_encoder(encoder):
    built = build(describe_lexical(encoder.features, DIMENSIONS), arrays_of(encoder))
    assert built.encode(TEXTS).tobytes() == encoder.encode(TEXTS).tobytes()


@pytest.mark.parametrize("changes", [{"kind": "minilm"}, {"version": 2}, {"kind": None}])
def test_build_refuses_an_encoder_it_does_not_know(encoder, changes):
    with pytest.raises(ManifestError, match="it needs a later lmsplit"):
        build(describe_lexical(encoder.features, DIMENSIONS) | changes, arrays_of(encoder))


@pytest.mark.parametrize("name", ["idf_B", "projection_BD"])
def test_build_names_a_missing_array(encoder, name):
    arrays = arrays_of(encoder)
    del arrays[name]
    with pytest.raises(ManifestError, match=f"lacks '{name}'"):
        build(describe_lexical(encoder.features, DIMENSIONS), arrays)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("idf_B", lambda array: array[:-1], "have shapes"),
        ("projection_BD", lambda array: array[:, :-1], "have shapes"),
        ("idf_B", lambda array: array.astype(np.float64), "have types"),
        ("projection_BD", lambda array: array.astype(np.float32), "have types"),
    ],
)
def test_build_refuses_arrays_of_another_shape_or_type(encoder, name, change, message):
    arrays = arrays_of(encoder)
    arrays[name] = change(arrays[name])
    with pytest.raises(ManifestError, match=message):
        build(describe_lexical(encoder.features, DIMENSIONS), arrays)
