"""How often a prompt is routed to where its document belongs, by the length of the prompt.

Two answers to "where it belongs": where the manifest has the document, and, where the documents have a label of their own, the
domains in which that label is the most frequent one. Pure functions; this encodes nothing (see `router`).

Shapes: N documents, K experts, T tokens of all documents.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import binomtest

from lmsplit.train.answers import Documents
from lmsplit.train.tokenizer import DocumentEncoder

Integers = npt.NDArray[np.int64]


def first_tokens(encoder: DocumentEncoder, texts: Sequence[str], length: int) -> list[str]:
    """Return the text of each text's first so many tokens.

    Args:
        encoder: whose tokens.
        texts: whole texts.
        length: tokens, at least 1.
    """
    return [encoder.decode(ids[:length]) for ids in encoder.encode(texts)]


def by_likelihood(experts_KT: npt.NDArray[np.float32], tokens_N: Integers, length: int) -> Integers:
    """Return (N,) the expert that finds each document's first `length` tokens least surprising."""
    prompts = Documents(tokens_N, np.zeros_like(tokens_N), length)
    return np.asarray(prompts.prompt_nats(experts_KT).argmin(axis=0))


def accuracy(routed_N: npt.NDArray[Any], wanted_N: npt.NDArray[Any]) -> dict[str, Any]:
    """Return the share of the prompts that are routed to where they belong.

    Args:
        routed_N: domain, or what stands for it.
        wanted_N: where it belongs.

    Returns:
        `accuracy`, and `low` and `high` of its 95 % interval (Wilson's).

    >>> accuracy(np.array([0, 1, 1, 2]), np.array([0, 1, 2, 2]))["accuracy"]
    0.75
    """
    found = binomtest(int((routed_N == wanted_N).sum()), len(wanted_N))
    interval = found.proportion_ci(0.95, method="wilson")
    return {"accuracy": found.statistic, "low": float(interval.low), "high": float(interval.high)}


def majority_labels(domains: Sequence[str], labels: Sequence[str], counts: Sequence[int]) -> dict[str, str]:
    """Return the most frequent label of each domain; of equal ones the first by name.

    Args:
        domains: of each pair of a domain and a label.
        labels: of each pair.
        counts: documents of each pair.

    >>> majority_labels(["d0", "d0", "d1"], ["a", "b", "b"], [2, 3, 1])
    {'d0': 'b', 'd1': 'b'}
    """
    best: dict[str, tuple[int, str]] = {}
    for domain, label, count in sorted(zip(domains, labels, counts, strict=True), key=lambda each: each[1]):
        if domain not in best or count > best[domain][0]:
            best[domain] = (count, label)
    return {domain: label for domain, (_, label) in sorted(best.items())}
