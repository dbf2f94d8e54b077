"""Loss of a model on texts: nats per token, and bits per UTF-8 byte, which does not depend on the tokenizer.

A document is `begin, t1 … tn`. Each of its n tokens is predicted exactly once; the begin token is only
context, and the end token is not counted, because it is not text. A document longer than `max_length` is cut
into windows that overlap by the one token which is the first context of the next window. Every document
stands alone: nothing before it is seen.

Cost: one forward pass over the tokens, in float32; memory is one batch of logits, at most 256 MB, and 1,024
windows. This does *not* compare models with each other.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional
from transformers import PreTrainedModel

from lmsplit.manifests.reader import Manifest
from lmsplit.train.batches import IGNORED
from lmsplit.train.loss import HeldOutLoss
from lmsplit.train.tokenizer import DocumentEncoder

_LOGITS: Final = 1 << 26
_BUFFERED_WINDOWS: Final = 1024

# Shapes: N documents, T tokens of all of them.


class TokenLosses(NamedTuple):
    """A model's loss on each token of some texts, one text after the other."""

    nats_T: npt.NDArray[np.float32]
    """-ln p of each token."""
    tokens_N: npt.NDArray[np.int64]
    """Tokens predicted of each text."""
    bytes_N: npt.NDArray[np.int64]
    """UTF-8 bytes of each text."""


class DocumentLosses(NamedTuple):
    """A model's loss on each of some texts."""

    nats_N: npt.NDArray[np.float64]
    """Sum of -ln p over the text's tokens."""
    tokens_N: npt.NDArray[np.int64]
    """Tokens predicted."""
    bytes_N: npt.NDArray[np.int64]
    """UTF-8 bytes."""


class Window(NamedTuple):
    """Tokens that a model sees at once."""

    place: tuple[int, int]
    """Number of the text that it is of, and of the window in it."""
    ids: list[int]


def evaluate_domain(
    model: PreTrainedModel,
    encoder: DocumentEncoder,
    manifest: Manifest,
    domain: str,
    max_length: int,
    split: str = "heldout",
) -> HeldOutLoss:
    """Return a model's loss on one split of one domain; see `evaluate_texts`."""
    batches = manifest.documents(domain=domain, split=split, columns=["text"])
    return evaluate_texts(model, encoder, (batch.column("text").to_pylist() for batch in batches), max_length)


def evaluate_texts(
    model: PreTrainedModel, encoder: DocumentEncoder, batches: Iterable[Sequence[str]], max_length: int
) -> HeldOutLoss:
    """Return a model's loss on texts.

    Args:
        model: a causal language model; put back into the mode it was in.
        encoder: the model's tokenizer.
        batches: texts, in batches of any size.
        max_length: tokens in a window, at least 2.
    """
    found = document_losses(model, encoder, batches, max_length)
    return HeldOutLoss(len(found.nats_N), int(found.tokens_N.sum()), int(found.bytes_N.sum()), math.fsum(found.nats_N.tolist()))


def document_losses(
    model: PreTrainedModel, encoder: DocumentEncoder, batches: Iterable[Sequence[str]], max_length: int
) -> DocumentLosses:
    """Return a model's loss on each text, for comparisons of two models on the same texts; see `evaluate_texts`."""
    found = token_losses(model, encoder, batches, max_length)
    return DocumentLosses(sums_of_documents(found.nats_T, found.tokens_N), found.tokens_N, found.bytes_N)


def sums_of_documents(values_T: npt.NDArray[np.float32], tokens_N: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Return (..., N) the sum over each text's tokens of (..., T) values.

    >>> sums_of_documents(np.array([1, 2, 4], np.float32), np.array([2, 0, 1]))
    array([3., 0., 4.])
    """
    sums = np.zeros((*values_T.shape[:-1], len(tokens_N)))
    has_tokens_N = tokens_N > 0
    starts_N = np.cumsum(tokens_N) - tokens_N
    if has_tokens_N.any():
        sums[..., has_tokens_N] = np.add.reduceat(values_T, starts_N[has_tokens_N], axis=-1, dtype=np.float64)
    return sums


def token_losses(
    model: PreTrainedModel, encoder: DocumentEncoder, batches: Iterable[Sequence[str]], max_length: int
) -> TokenLosses:
    """Return a model's loss on each token of texts; see `evaluate_texts`."""
    counts: list[tuple[int, int]] = []

    def windows() -> Iterator[Window]:
        """Yield the token windows of all texts, and count them."""
        for texts in batches:
            for text, ids in zip(texts, encoder.encode(texts), strict=True):
                counts.append((len(ids), len(text.encode())))
                for number, window in enumerate(cut_windows([encoder.begin_id, *ids], max_length)):
                    yield Window((len(counts) - 1, number), window)

    nats: dict[tuple[int, int], npt.NDArray[np.float32]] = {}
    was_training = model.training
    model.eval()
    try:
        for batch in _batches(windows(), model, max_length):
            for window, losses in zip(batch, _nats(model, [window.ids for window in batch]), strict=True):
                nats[window.place] = losses
    finally:
        model.train(was_training)
    tokens_N, bytes_N = np.array(counts, np.int64).reshape(-1, 2).T
    in_order = [nats[place] for place in sorted(nats)]
    return TokenLosses(np.concatenate([np.zeros(0, np.float32), *in_order]), tokens_N, bytes_N)


def cut_windows(sequence: Sequence[int], max_length: int) -> Iterator[list[int]]:
    """Cut a sequence into windows in which every token but the sequence's first is a target exactly once.

    >>> list(cut_windows([0, 1, 2, 3, 4], 3))
    [[0, 1, 2], [2, 3, 4]]
    """
    for start in range(0, len(sequence) - 1, max_length - 1):
        yield list(sequence[start : start + max_length])


def _batches(windows: Iterator[Window], model: PreTrainedModel, max_length: int) -> Iterator[list[Window]]:
    """Group windows of similar length, so that little is padded."""
    size = max(1, _LOGITS // (model.get_input_embeddings().weight.shape[0] * max_length))
    buffered: list[Window] = []
    for window in windows:
        buffered.append(window)
        if len(buffered) == _BUFFERED_WINDOWS:
            yield from _by_length(buffered, size)
            buffered = []
    yield from _by_length(buffered, size)


def _by_length(windows: list[Window], size: int) -> Iterator[list[Window]]:
    ordered = sorted(windows, key=lambda window: len(window.ids))
    for start in range(0, len(ordered), size):
        yield ordered[start : start + size]


@torch.no_grad()
def _nats(model: PreTrainedModel, windows: list[list[int]]) -> list[npt.NDArray[np.float32]]:
    """Return each window's losses."""
    longest = max(map(len, windows))
    ids = torch.zeros(len(windows), longest, dtype=torch.long)
    targets = torch.full((len(windows), longest), IGNORED, dtype=torch.long)
    for index, window in enumerate(windows):
        ids[index, : len(window)] = torch.tensor(window)
        targets[index, : len(window) - 1] = torch.tensor(window[1:])
    # Padding stands on the right, where causal attention never looks from a target.
    logits = model(input_ids=ids.to(model.device), use_cache=False).logits.float()
    losses = functional.cross_entropy(
        logits.flatten(0, 1), targets.to(model.device).flatten(), ignore_index=IGNORED, reduction="none"
    )
    found = losses.view(len(windows), -1).cpu().numpy()
    return [row[: len(window) - 1] for row, window in zip(found, windows, strict=True)]
