"""Held-out loss of a model: nats per token, and bits per UTF-8 byte, which does not depend on the tokenizer.

A document is `begin, t1 … tn`. Each of its n tokens is predicted exactly once; the begin token is only
context, and the end token is not counted, because it is not text. A document longer than `max_length` is cut
into windows that overlap by the one token which is the first context of the next window. Every document
stands alone: nothing before it is seen.

Cost: one forward pass over the tokens, in float32; memory is one batch of logits, at most 256 MB, and 1,024
windows. This does *not* compare models with each other.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Final

import torch
from torch.nn import functional
from transformers import PreTrainedModel

from lmsplit.manifests.reader import Manifest
from lmsplit.train.batches import IGNORED
from lmsplit.train.loss import HeldOutLoss
from lmsplit.train.tokenizer import DocumentEncoder

_LOGITS: Final = 1 << 26
_BUFFERED_WINDOWS: Final = 1024


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
    counts = [0, 0, 0]

    def windows() -> Iterator[list[int]]:
        """Yield the token windows of all texts, and count them."""
        for texts in batches:
            for text, ids in zip(texts, encoder.encode(texts), strict=True):
                counts[0] += 1
                counts[1] += len(ids)
                counts[2] += len(text.encode())
                yield from cut_windows([encoder.begin_id, *ids], max_length)

    was_training = model.training
    model.eval()
    try:
        nats = sum(_nats(model, batch) for batch in _batches(windows(), model, max_length))
    finally:
        model.train(was_training)
    return HeldOutLoss(counts[0], counts[1], counts[2], nats)


def cut_windows(sequence: Sequence[int], max_length: int) -> Iterator[list[int]]:
    """Cut a sequence into windows in which every token but the sequence's first is a target exactly once.

    >>> list(cut_windows([0, 1, 2, 3, 4], 3))
    [[0, 1, 2], [2, 3, 4]]
    """
    for start in range(0, len(sequence) - 1, max_length - 1):
        yield list(sequence[start : start + max_length])


def _batches(windows: Iterator[list[int]], model: PreTrainedModel, max_length: int) -> Iterator[list[list[int]]]:
    """Group windows of similar length, so that little is padded."""
    size = max(1, _LOGITS // (model.get_input_embeddings().weight.shape[0] * max_length))
    buffered: list[list[int]] = []
    for window in windows:
        buffered.append(window)
        if len(buffered) == _BUFFERED_WINDOWS:
            yield from _by_length(buffered, size)
            buffered = []
    yield from _by_length(buffered, size)


def _by_length(windows: list[list[int]], size: int) -> Iterator[list[list[int]]]:
    ordered = sorted(windows, key=len)
    for start in range(0, len(ordered), size):
        yield ordered[start : start + size]


@torch.no_grad()
def _nats(model: PreTrainedModel, windows: list[list[int]]) -> float:
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
    return float(losses.sum(dtype=torch.float64))
