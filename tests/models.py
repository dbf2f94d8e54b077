"""Tiny sentence-transformers models, made from nothing: real code and a real tokenizer, random weights, ready in a moment."""

import json
import random
import shutil
import string
from pathlib import Path
from typing import Any

from lmsplit.manifests.model_files import find_model
from lmsplit.manifests.sentence import PROBE, SentenceDescription, SentenceEncoder, describe_model, load_model
from tests.partition.corpora import TOPICS

DIMENSIONS = 32
MAX_TOKENS = 64
"""What the tiny transformer reads at most."""
SPECIAL_TOKENS = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
PROMPT = "a text on bread: "
KINDS = ("bert", "llama", "prompt", "static", "static with layers")
BATCH_SIZE = 4
_WORDS = " ".join(TOPICS).split()


def make_models(directory: Path) -> dict[str, Path]:
    """Save a model of each kind."""
    return {
        "bert": make_bert(directory / "bert"),
        "llama": make_llama(directory / "llama"),
        "prompt": make_bert(directory / "prompt", prompt=PROMPT),
        "static": make_static(directory / "static"),
        "static with layers": make_static(directory / "layers", num_dense=2),
    }


def make_bert(directory: Path, *, prompt: str = "", include_prompt: bool = True) -> Path:
    """Save a BERT of two layers with random weights, and the mean of its token vectors.

    Args:
        directory: where; made if it is not there.
        prompt: what it puts before a text by itself.
        include_prompt: whether the prompt's tokens are pooled.
    """
    from sentence_transformers.sentence_transformer.modules import Pooling
    from transformers import BertConfig, BertModel

    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    return _save(BertModel, BertConfig, directory, Pooling(DIMENSIONS, "mean", include_prompt), prompt, model_input_names=inputs)


def make_llama(directory: Path) -> Path:
    """Save a decoder of two layers with random weights: rotary positions, padded on the left, pooled by its last token."""
    from sentence_transformers.sentence_transformer.modules import Pooling
    from transformers import LlamaConfig, LlamaModel

    return _save(LlamaModel, LlamaConfig, directory, Pooling(DIMENSIONS, "lasttoken"), padding_side="left")


def _save(network: Any, configuration: Any, directory: Path, pooling: Any, prompt: str = "", **tokenizing: Any) -> Path:
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Transformer
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=_tokenizer(), model_max_length=MAX_TOKENS, **SPECIAL_TOKENS, **tokenizing
    )
    torch.manual_seed(7)
    shape = configuration(
        vocab_size=len(tokenizer),
        hidden_size=DIMENSIONS,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=MAX_TOKENS,
        initializer_range=0.3,  # wide: texts get vectors that are far apart, so that a wrong one is seen
    )
    whole = directory.with_name(f"{directory.name}-whole")
    network(shape).save_pretrained(whole)
    tokenizer.save_pretrained(whole)
    model = SentenceTransformer(
        modules=[Transformer(str(whole)), pooling, Normalize()],
        device="cpu",
        prompts={"default": prompt} if prompt else {},
        default_prompt_name="default" if prompt else None,
    )
    model.save(str(directory), create_model_card=False)
    shutil.rmtree(whole)
    return directory


def make_static(directory: Path, *, num_dense: int = 0, normalize: bool = True) -> Path:
    """Save a random table of token vectors; layers of a network, and the scaling to unit length, follow if so asked."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Dense, Normalize, StaticEmbedding

    plain = _tokenizer()
    torch.manual_seed(8)
    after = [Dense(DIMENSIONS, DIMENSIONS) for _ in range(num_dense)] + [Normalize()] * normalize
    table = StaticEmbedding(plain, embedding_weights=torch.randn(plain.get_vocab_size(), DIMENSIONS))
    SentenceTransformer(modules=[table, *after], device="cpu").save(str(directory), create_model_card=False)
    return directory


def make_bag_of_words(directory: Path) -> Path:
    """Save a model of words' counts, whose first module is neither a transformer nor a table, with weights of a kind."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import BoW, Dense

    words = TOPICS[0].split()
    modules = [BoW(vocab=words), Dense(len(words), DIMENSIONS)]
    SentenceTransformer(modules=modules, device="cpu").save(str(directory), create_model_card=False)
    (directory / "tokenizer.json").write_text("{}")
    return directory


def _tokenizer() -> Any:
    """The topics' words are tokens, and all else is spelled. Not trained: a trainer breaks ties as the process's hashes fall."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    characters = [*string.ascii_lowercase, *string.digits, *string.punctuation]
    tokens = [*SPECIAL_TOKENS.values(), *characters, *(f"##{character}" for character in characters), *_WORDS]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=SPECIAL_TOKENS["unk_token"]))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    ends = [(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    return tokenizer


def copied(model: Path, directory: Path) -> Path:
    """Return a copy of a model, to be changed."""
    return Path(shutil.copytree(model, directory))


def change(path: Path, **keys: Any) -> None:
    """Set keys of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | keys), encoding="utf-8")


def flip_bit(model: Path) -> None:
    """Flip the lowest bit of the last number of a model's weights."""
    weights = model / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-4] ^= 1  # numbers are little-endian, in four bytes
    weights.write_bytes(data)


def poison(model: Path, value: float, word: str | None = None) -> None:
    """Put a number such as NaN into the vector of one token, or of all, where the model begins."""
    import torch
    from safetensors.torch import load_file, save_file

    weights = load_file(model / "model.safetensors")
    name = next(name for name in weights if name.endswith(("word_embeddings.weight", "embed_tokens.weight", "embedding.weight")))
    rows = slice(None) if word is None else _tokenizer().token_to_id(word)
    weights[name][rows] = torch.tensor(value)
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})


def pickle_weights(model: Path) -> Path:
    """Put pickled weights in the place of a model's safetensors; return their path."""
    import torch
    from safetensors.torch import load_file

    weights = model / "model.safetensors"
    torch.save(load_file(weights), model / "pytorch_model.bin")
    weights.unlink()
    return model / "pytorch_model.bin"


def sentence_of(num_words: int, seed: int = 0) -> str:
    """Return words that are one token each, so that the text has `num_words` + 2 tokens."""
    return " ".join(random.Random(seed).choices(_WORDS, k=num_words))


ODD = ("", " ", "[PAD]", "🍞", "🍞 bread 🍞 oven", "日本語のテキスト", "naïve café, 3.14!", "\x00", "?! ...", "x" * 3_000)
TEXTS = [*ODD, *(sentence_of(number, number) for number in (1, 2, 13, 14, 15, 29, 30, 31, 50, 61, 62, 63, 64, 90)), *PROBE]
"""Texts of every kind, and of every padded length."""


def described(model: Path | str, precision: Any = "float32", max_tokens: int = 128) -> tuple[SentenceDescription, Any]:
    """Load a model, with small batches; return what pins it, and the model."""
    files = find_model(str(model))
    loaded = load_model(files.directory, "cpu", precision)
    return describe_model(files, loaded, max_tokens=max_tokens, batch_size=BATCH_SIZE, trust_remote_code=False), loaded


def encoder_of(model: Path | str, precision: Any = "float32", max_tokens: int = 128) -> SentenceEncoder:
    """Return an encoder that computes with a model, in small batches."""
    return SentenceEncoder(*described(model, precision, max_tokens))
