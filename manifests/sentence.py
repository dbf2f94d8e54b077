"""The sentence encoder: any sentence-transformers model, with vectors that are a function of the text alone.

```
text ─cut in characters─► tokens, at most max_tokens ─► sorted by length ─► batches of one fixed shape per padded length
     ─► model in the pinned precision ─► unit length in float32
```

A model's arithmetic may round differently in a batch of another shape. So a text of n tokens is always padded to the next
multiple of `length_step`, and always computed in a batch of exactly `batch_tokens` tokens, filled up with copies. Measured
(benchmarks/results/sentence_encoder_speed.md): then its vector is the same to the last bit beside any other texts.
The vectors of a few fixed texts, the *probe*, are stored with the rule; a machine that computes them otherwise is noticed.

Heavy imports (torch, sentence-transformers) happen inside functions. Cost: with MiniLM and 128 tokens about 150 documents/s on
one core with bfloat16 units, 40 without (measured, the same file). Memory: the model, and one batch's activations.

Shape legend: N texts, D dimensions, P probe texts.
"""

import contextlib
import threading
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from lmsplit.manifests.commit import Record, Sha256
from lmsplit.manifests.errors import ConfigurationError
from lmsplit.manifests.model_files import ModelFiles
from lmsplit.manifests.placement import DISTANCE_TOLERANCE, Floats, normalised

SENTENCE: Final = "sentence-transformers"
CHARACTERS_PER_TOKEN: Final = 10
"""A text is cut to so many characters a token before it is tokenized. An exploration: 8 changed none of 3,000 documents."""
STATIC_BATCH: Final = 256
"""Texts in a batch of a model that is a table of token vectors; filled up with empty texts (assumption: cheap beside Python)."""
TOLERANCES: Final = {"float32": 1e-3, "bfloat16": 1e-2, "float16": 1e-2}
"""How far distances may differ on another machine. Measured (benchmarks/results/sentence_encoder.md): bfloat16 against float32
moved none of 12,000 by more than 0.0043. Assumed for float32 and float16: no second type of machine was at hand."""
_TOKENIZED: Final = 256
PROBE: Final = (
    "Bread begins with flour, water, salt and time.",
    "The heavy keel keeps a boat upright when a gust lays it over, and it keeps the boat from sliding sideways. " * 8,
    "x = [f(i) for i in range(10)]  # 1, 4, 9",
    "Größere Höhen: 東京, Москва, αβγ. " * 3,
)

Precision = Literal["float32", "bfloat16", "float16"]


class SentenceDescription(Record):
    """What pins a sentence encoder, besides its probe."""

    kind: Literal["sentence-transformers"] = Field(default=SENTENCE, description="always sentence-transformers")
    version: Literal[1] = Field(default=1, description="version of this encoder's definition")
    model: str | None = Field(description="hub id; null for a model known by its digests alone")
    revision: str | None = Field(description="commit of the hub's repository; null without a hub id")
    weights_sha256: Sha256 = Field(description="digest of the weights; of canonical JSON [[name, digest], …] if several files")
    tokenizer_sha256: Sha256 = Field(description="digest of tokenizer.json")
    max_tokens: int = Field(ge=1, description="a text's first so many tokens are read, special ones included")
    max_characters: int = Field(ge=1, description="a text's first so many code points are tokenized")
    prompt: str = Field(description="put before every text")
    pooling: str = Field(description="how token vectors become one: the model's modules, in order")
    dimensions: int = Field(ge=1, description="D")
    backend: Literal["torch"] = Field(default="torch", description="what computes")
    device: Literal["cpu", "cuda"] = Field(description="where")
    precision: Precision = Field(description="of the weights and activations; the vectors are float32")
    length_step: int = Field(ge=1, description="texts are padded to a multiple of so many tokens, at most max_tokens")
    batch_tokens: int = Field(ge=1, description="tokens of a batch, padding included; its texts all have one padded length")
    tolerance: float = Field(ge=0, description="distances computed again elsewhere may differ by so much")
    trust_remote_code: bool = Field(default=False, description="whether code from the model's repository is run")


_THREADS: Final = threading.Lock()


class SentenceEncoder:
    """A loaded model that encodes as described.

    Args:
        description: what pins it; `device` and `precision` are where and how this one computes.
        loaded: the model, from `load_model`.
        alone: compute each text by itself, on as many threads as torch has: soonest done for one text.
    """

    def __init__(self, description: SentenceDescription, loaded: Any, *, alone: bool = False) -> None:
        self._model = loaded
        self._about = description
        self._static = type(loaded[0]).__name__ == "StaticEmbedding"
        self._tokenizer = None if self._static else _plain_tokenizer(loaded.tokenizer, description.max_tokens)
        self._alone = alone
        self.tolerance = description.tolerance if alone else DISTANCE_TOLERANCE

    def encode(self, texts: Sequence[str]) -> Floats:
        """Return unit rows (N, D), float32; not a finite unit row where the model gives none."""
        vectors_ND = np.zeros((len(texts), self._about.dimensions), np.float32)
        prepared = [self._about.prompt + text[: self._about.max_characters] for text in texts]
        with _inference_mode() if self._alone else _one_thread():
            for rows, values in self._encode_static(prepared) if self._static else self._encode_batches(prepared):
                vectors_ND[rows] = values
        with np.errstate(invalid="ignore"):  # an infinite value makes its row NaN
            return normalised(vectors_ND)

    def _encode_batches(self, texts: Sequence[str]) -> Iterator[tuple[npt.NDArray[np.int64], Floats]]:
        tokens = self._tokenize(texts)
        lengths_N = np.fromiter((max(1, len(ids)) for ids in tokens), np.int64, len(tokens))
        step = self._about.length_step
        padded_N = np.minimum(-(-lengths_N // step) * step, self._about.max_tokens)
        for length in np.unique(padded_N).tolist():
            alike = np.flatnonzero(padded_N == length)
            size = 1 if self._alone else max(1, self._about.batch_tokens // length)
            for start in range(0, len(alike), size):
                rows = alike[start : start + size]
                yield rows, self._forward([tokens[row] for row in rows], length, size)[: len(rows)]

    def _tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each text; few texts at a time, as the library holds a hundred times their size meanwhile."""
        assert self._tokenizer is not None
        parts = (list(texts[start : start + _TOKENIZED]) for start in range(0, len(texts), _TOKENIZED))
        return [encoding.ids for part in parts for encoding in self._tokenizer.encode_batch_fast(part)]

    def _forward(self, tokens: list[list[int]], length: int, size: int) -> Floats:
        import torch

        settings = self._model.tokenizer
        ids = np.full((size, length), settings.pad_token_id or 0, np.int64)
        mask = np.zeros((size, length), np.int64)
        for row in range(size):
            own = tokens[row] if row < len(tokens) else tokens[0]  # copies fill the batch up to its one shape
            place = slice(length - len(own), None) if settings.padding_side == "left" else slice(len(own))
            ids[row, place], mask[row, place] = own, 1
        features = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}
        if "token_type_ids" in settings.model_input_names:
            features["token_type_ids"] = torch.zeros_like(features["input_ids"])
        return self._vectors(features)

    def _encode_static(self, texts: Sequence[str]) -> Iterator[tuple[npt.NDArray[np.int64], Floats]]:
        """A text's mean in a table of token vectors is its own; but layers may follow, and so every batch has one shape."""
        for start in range(0, len(texts), STATIC_BATCH):
            part = list(texts[start : start + STATIC_BATCH])
            features = self._model[0].preprocess(part + [""] * (STATIC_BATCH - len(part)))
            yield np.arange(start, start + len(part)), self._vectors(features)[: len(part)]

    def _vectors(self, features: dict[str, Any]) -> Floats:
        device = self._model.device
        output = self._model.forward({name: value.to(device) for name, value in features.items()})
        vectors: Floats = output["sentence_embedding"].float().cpu().numpy()
        return vectors

    def check_tokens(self) -> None:
        """Check that the probe's tokens are those that sentence-transformers itself would make.

        Raises:
            ConfigurationError: the model prepares texts in a way of its own.
        """
        if self._tokenizer is None:
            return
        texts = [self._about.prompt + text[: self._about.max_characters] for text in PROBE]
        theirs = self._model.preprocess(texts)
        pairs = zip(theirs["input_ids"].tolist(), theirs["attention_mask"].tolist(), strict=True)
        expected = [[token for token, kept in zip(ids, mask, strict=True) if kept] for ids, mask in pairs]
        found = self._tokenize(texts)
        for ours, whole in zip(found, expected, strict=True):  # theirs may be cut later, and then ends otherwise
            if ours[:-1] != whole[: len(ours) - 1]:
                raise ConfigurationError("this model does not tokenize texts as its tokenizer does: choose another one")

    def is_independent(self) -> bool:
        """Return whether a text has the same bits in another place of a batch, beside another text; true wherever measured."""
        pair = [PROBE[1], f"{PROBE[1][8:]}{PROBE[0]}"]
        there_ND, back_ND, alone_ND = self.encode(pair), self.encode(pair[::-1]), self.encode(pair[:1])
        return np.array_equal(there_ND, back_ND[::-1]) and np.array_equal(there_ND[:1], alone_ND)

    def probe(self) -> Floats:
        """Return the (P, D) vectors of the fixed probe texts."""
        return self.encode(PROBE)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Compute on one CPU thread: several may add in another order, and wait for each other on busy cores."""
    import torch

    with _THREADS:  # the number is the process's: two at a time would each restore the other's
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            with torch.inference_mode():
                yield
        finally:
            torch.set_num_threads(before)


@contextlib.contextmanager
def _inference_mode() -> Iterator[None]:
    import torch

    with torch.inference_mode():
        yield


def _plain_tokenizer(tokenizer: Any, max_tokens: int) -> Any:
    """Return a copy of a fast tokenizer's core that cuts at `max_tokens` and pads nothing."""
    from tokenizers import Tokenizer

    core = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    core.no_padding()
    core.enable_truncation(max_tokens, direction=tokenizer.truncation_side)
    return core


@lru_cache(maxsize=2)
def load_model(directory: Path, device: str, precision: Precision, trust_remote_code: bool = False) -> Any:
    """Load a sentence-transformers model; a process loads each one once.

    Args:
        directory: its files, from `find_model`.
        device: `cpu` or `cuda`.
        precision: of its weights.
        trust_remote_code: run code that comes with the model.

    Raises:
        ConfigurationError: sentence-transformers is not installed, or the model cannot be loaded or does not take text.
    """
    check_installed()
    import torch
    from sentence_transformers import SentenceTransformer
    from transformers.utils import logging as transformers_logging

    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()  # one bar for 0.1 s of loading, in the middle of ours
    try:
        model = SentenceTransformer(
            str(directory),
            device="cpu",
            local_files_only=True,
            trust_remote_code=trust_remote_code,
            model_kwargs={"use_safetensors": True, "dtype": getattr(torch, precision)},
        )
    except Exception as error:  # damaged files raise errors of many libraries; all mean that this is no model that can be used
        reason = str(error).strip().partition("\n")[0]
        raise ConfigurationError(f"{directory} cannot be loaded as a sentence-transformers model: {reason}") from error
    finally:
        if bars:
            transformers_logging.enable_progress_bar()
    first = type(model[0]).__name__
    if first not in {"Transformer", "StaticEmbedding"}:
        raise ConfigurationError(f"{directory}: its first module is {first}, expected Transformer or StaticEmbedding")
    # A transformer is not cast: loaded in its precision, it keeps what it needs in float32, such as rotary frequencies.
    for module in model if first == "StaticEmbedding" else list(model)[1:]:
        module.to(dtype=getattr(torch, precision))
    return model.to(device=device).eval()


def check_installed() -> None:
    """Check that what a sentence encoder computes with is installed.

    Raises:
        ConfigurationError: it is not.
    """
    try:
        import sentence_transformers
        import torch
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"a sentence encoder needs {error.name}, which is not installed: pip install 'lmsplit[offline]', "
            "or 'lmsplit[partition]' to partition; encoder: lexical needs neither"
        ) from error
    del sentence_transformers, torch


def describe_model(
    files: ModelFiles, loaded: Any, *, max_tokens: int, batch_size: int, trust_remote_code: bool
) -> SentenceDescription:
    """Return what pins an encoder made of a loaded model.

    Args:
        files: where it came from.
        loaded: from `load_model`: its device and precision are pinned.
        max_tokens: texts are cut to so many; less where the model takes fewer.
        batch_size: texts of `max_tokens` in a batch.
        trust_remote_code: whether code from the model's repository was allowed to run.

    Raises:
        ConfigurationError: its prompt is left out of the pooling, which the fixed batches cannot do, or its tokenizer is slow.
    """
    first = loaded[0]
    prompt = loaded.prompts.get(loaded.default_prompt_name, "") if loaded.default_prompt_name else ""
    if prompt and any(getattr(module, "include_prompt", True) is False for module in loaded):
        raise ConfigurationError("this model leaves its prompt out of the pooling, which is not supported: choose another one")
    if type(first).__name__ == "Transformer":
        if not getattr(loaded.tokenizer, "is_fast", False):
            raise ConfigurationError("this model's tokenizer has no fast form (tokenizer.json): choose another model")
        max_tokens = min(max_tokens, loaded.max_seq_length or max_tokens)
    precision: Any = str(next(loaded.parameters()).dtype).removeprefix("torch.")
    return SentenceDescription(
        model=files.name,
        revision=files.revision,
        weights_sha256=files.weights_sha256,
        tokenizer_sha256=files.tokenizer_sha256,
        max_tokens=max_tokens,
        max_characters=CHARACTERS_PER_TOKEN * max_tokens,
        prompt=prompt,
        pooling=" > ".join(_described(module) for module in loaded),
        dimensions=int(loaded.get_embedding_dimension()),
        device=loaded.device.type,
        precision=precision,
        length_step=min(16, max_tokens),
        batch_tokens=batch_size * max_tokens,
        tolerance=TOLERANCES[precision],
        trust_remote_code=trust_remote_code,
    )


def _described(module: Any) -> str:
    mode = getattr(module, "pooling_mode", None)
    return type(module).__name__ + (f"({mode if isinstance(mode, str) else '+'.join(mode)})" if mode else "")
