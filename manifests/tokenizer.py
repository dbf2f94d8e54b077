"""Encodes plain text with any tokenizer that has a `tokenizer.json`: every token of the text, and no other.

A tokenizer file may carry a truncation and a padding, which would cut or lengthen texts silently, and takes text that looks like
a special token for that token. Here neither holds: `<|end|>` inside a document is text. The library `tokenizers` is imported only
once a tokenizer is built. It does *not* find tokenizers, and adds no begin or end token.

Cost: encoding runs on all cores, text by text, unless `TOKENIZERS_PARALLELISM` is `false`. Memory: about 10 times a batch of
texts, but 110 times a single text of millions of characters while it is encoded (measured with WordPiece, 4 MB: 440 MB).
"""

import json
from collections.abc import Iterator, Sequence
from typing import Any, Final

from lmsplit.manifests.commit import digest

_BATCH_CHARACTERS: Final = 1 << 20
"""Texts encoded at once, in characters, at most by one text."""


class PlainTokenizer:
    """A tokenizer that encodes plain text.

    Args:
        serialized: the JSON of a `tokenizer.json`.

    Attributes:
        backend: the `tokenizers.Tokenizer`, without truncation and padding.

    Raises:
        ImportError: the package `tokenizers` is not installed.
        ValueError: `serialized` is no tokenizer.
    """

    def __init__(self, serialized: str) -> None:
        from tokenizers import Tokenizer

        try:
            self.backend = Tokenizer.from_str(serialized)
        except Exception as error:  # the library raises nothing narrower
            raise ValueError(str(error)) from error
        self.backend.no_truncation()
        self.backend.no_padding()
        self.backend.encode_special_tokens = True

    def content(self) -> dict[str, Any]:
        """Return its JSON as the library writes it: the same for files that differ only in layout, truncation and padding."""
        content: dict[str, Any] = json.loads(self.backend.to_str())
        return content

    def digest(self) -> str:
        """Return the SHA-256 of the canonical JSON of `content`; another version of the library may write another one."""
        return digest(self.content())

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the token ids of each text: all of them, and no special token."""
        return [encoding.ids for encoding in self._encodings(texts)]

    def beginnings(self, texts: Sequence[str], length: int) -> list[str]:
        """Return each text up to the end of its token number `length`: what was typed, not what the tokens decode to."""
        found = []
        for batch in _batches(texts):
            encodings = self.backend.encode_batch(batch, add_special_tokens=False)
            for text, encoding in zip(batch, encodings, strict=True):
                offsets = encoding.offsets
                found.append(text[: offsets[length - 1][1]] if len(offsets) > length else text)
        return found

    def lengths(self, texts: Sequence[str]) -> list[int]:
        """Return the number of tokens that `encode` gives for each text."""
        return [len(encoding) for encoding in self._encodings(texts)]

    def _encodings(self, texts: Sequence[str]) -> Iterator[Any]:
        for batch in _batches(texts):
            yield from self.backend.encode_batch_fast(batch, add_special_tokens=False)


def _batches(texts: Sequence[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= _BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
