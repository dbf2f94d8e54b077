"""Text to token ids: a byte-level BPE tokenizer trained on the corpus, or a given one.

Byte level means that every text has tokens and decodes to itself, whatever bytes it holds. Special tokens
come from the packing alone: a document that *contains* the text `<|end|>` is encoded as that text, never as
the token. A truncation or padding that a given tokenizer carries is switched off, or tokens would be lost
silently (see `PlainTokenizer`).

Training reads each text once (measured: about 2 MB/s on two shared cores) and holds its distinct words; encoding
runs on all cores. This does *not* pack documents into rows (see `pack`).
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from lmsplit.manifests.errors import ConfigurationError
from lmsplit.manifests.reader import Manifest
from lmsplit.manifests.tokenizer import PlainTokenizer

BEGIN: Final = "<|begin|>"
END: Final = "<|end|>"
PADDING: Final = "<|pad|>"
TRAINING_BYTES_PER_TOKEN: Final = 5_000
"""Text that each token of the vocabulary is trained on at most; vocabularies change little beyond
(assumption).
"""


class DocumentEncoder:
    """Encodes whole documents, without their begin and end tokens.

    Args:
        tokenizer: any fast tokenizer with an end token.

    Raises:
        ConfigurationError: the tokenizer is a slow one, or has no end token.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        if not tokenizer.is_fast:
            raise ConfigurationError(f"tokenizer {tokenizer.name_or_path!r} has no fast form: choose one with tokenizer.json")
        if tokenizer.eos_token_id is None:
            raise ConfigurationError(f"tokenizer {tokenizer.name_or_path!r} has no end token: choose one that has")
        self.tokenizer = tokenizer
        self.end_id = int(tokenizer.eos_token_id)
        # Tokenizers of the GPT-2 kind have one token for both ends.
        self.begin_id = int(tokenizer.bos_token_id) if tokenizer.bos_token_id is not None else self.end_id
        self._plain = PlainTokenizer(tokenizer.backend_tokenizer.to_str())
        content = [self._plain.content(), self.begin_id, self.end_id]
        self.digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the token ids of each text: all of them, and no special token."""
        return self._plain.encode(texts)

    def beginnings(self, texts: Sequence[str], length: int) -> list[str]:
        """Return each text up to the end of its token number `length`, at least 1; a character that it is part of is whole."""
        return self._plain.beginnings(texts, length)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of token ids that `encode` gave."""
        return str(self._plain.backend.decode(list(ids), skip_special_tokens=False))


def train_tokenizer(texts: Iterable[Sequence[str]], vocabulary_size: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer; the same texts in the same order give the same tokenizer.

    Args:
        texts: batches of documents.
        vocabulary_size: number of tokens, the three special ones and the 256 bytes included; a small corpus
            gives fewer.

    Returns:
        The tokenizer. Called on a text, it puts the begin token first, as packing does.

    >>> tokenizer = train_tokenizer([["a b", "a c"]], 300)
    >>> tokenizer.decode(tokenizer("na\u00efve")["input_ids"], skip_special_tokens=True)
    'na\u00efve'
    """
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        special_tokens=[BEGIN, END, PADDING],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer=trainer)
    begin = backend.token_to_id(BEGIN)
    backend.post_processor = processors.TemplateProcessing(single=f"{BEGIN} $A", special_tokens=[(BEGIN, begin)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=BEGIN,
        eos_token=END,
        pad_token=PADDING,
        clean_up_tokenization_spaces=False,
    )


def training_texts(manifest: Manifest, max_bytes: int) -> Iterator[list[str]]:
    """Stream the manifest's training documents, evenly thinned where they are more than `max_bytes`.

    Yields:
        Batches of texts, in the manifest's order.
    """
    total = sum(domain.num_bytes for domain in manifest.domains)
    step = max(1, -(-total // max_bytes))
    position = 0
    for batch in manifest.documents(split="train", columns=["text"]):
        texts: list[str] = batch.column("text").to_pylist()
        yield texts[-position % step :: step]
        position += len(texts)


def open_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """Open a tokenizer from a local path or the hub; no code that comes with it is run.

    Raises:
        ConfigurationError: it cannot be found or read.
    """
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        kind = (
            "is a directory without a usable tokenizer"
            if Path(name).is_dir()
            else "is neither a local directory nor to be had from the hub"
        )
        raise ConfigurationError(f"tokenizer {name!r} {kind}: {_first_line(error)}") from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
