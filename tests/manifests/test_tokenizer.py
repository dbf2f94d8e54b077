"""Plain text in, all of its tokens out: the half that counting and training share."""

import json
import subprocess
import sys

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from lmsplit.manifests.commit import canonical
from lmsplit.manifests.tokenizer import PlainTokenizer


@pytest.fixture
def words() -> Tokenizer:
    """Three words; a post-processor that puts `[B]` before each text, and a truncation to two tokens, padded to five."""
    tokenizer = Tokenizer(models.WordLevel({"[U]": 0, "[B]": 1, "fox": 2, "dog": 3, "[": 4, "B": 5, "]": 6}, unk_token="[U]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["[B]"])
    tokenizer.post_processor = processors.TemplateProcessing(single="[B] $A", special_tokens=[("[B]", 1)])
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(length=5)
    return tokenizer


def test_encode_gives_every_token_and_no_special_one(words):
    assert words.encode("dog dog fox").ids == [1, 3, 0, 0, 0]
    assert PlainTokenizer(words.to_str()).encode(["dog dog fox", "", "[B] cat"]) == [[3, 3, 2], [], [4, 5, 6, 0]]


def test_lengths_are_those_of_what_is_encoded(words):
    texts = ["dog " * n for n in (0, 1, 300_000, 7)]
    assert PlainTokenizer(words.to_str()).lengths(texts) == [0, 1, 300_000, 7]


def test_given_tokenizer_stays_as_it_was(words):
    before = words.to_str()
    PlainTokenizer(before).encode(["dog"])
    assert words.to_str() == before


def test_content_has_no_truncation_and_no_padding(words):
    content = PlainTokenizer(words.to_str()).content()
    assert (content["truncation"], content["padding"]) == (None, None)
    assert content == json.loads(words.to_str()) | {"truncation": None, "padding": None}


def test_digest_follows_the_content_alone(words):
    plain = PlainTokenizer(words.to_str())
    assert PlainTokenizer(canonical(plain.content()).decode()).digest() == plain.digest()
    words.add_tokens(["cat"])
    assert PlainTokenizer(words.to_str()).digest() != plain.digest()


def test_what_is_no_tokenizer_is_a_value_error():
    with pytest.raises(ValueError, match="Model missing"):
        PlainTokenizer("{}")


def test_import_does_not_load_the_library():
    program = "import sys, lmsplit.manifests.tokenizer; sys.exit('tokenizers' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)
