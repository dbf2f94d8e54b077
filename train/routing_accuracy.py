"""How often a prompt is routed to where its document belongs, by the length of the prompt.

Two answers to "where it belongs": where the manifest has the document, and, where the documents have a label of their own, the
domains in which that label is the most frequent one. Pure functions; this encodes nothing (see `router`).

Shapes: N documents, K experts, T tokens of all documents.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from lmsplit.train.answers import Documents, compare

Integers = npt.NDArray[np.int64]


def by_likelihood(experts_KT: npt.NDArray[np.float32], tokens_N: Integers, length: int) -> Integers:
    """Return (N,) the expert that finds each document's first `length` tokens least surprising."""
    prompts = Documents(tokens_N, np.zeros_like(tokens_N), length)
    return np.asarray(prompts.prompt_nats(experts_KT).argmin(axis=0))


def accuracy(routed_N: npt.NDArray[Any], wanted_N: npt.NDArray[Any], group_N: npt.ArrayLike | None = None) -> dict[str, Any]:
    """Return the share of the prompts that are routed to where they belong.

    Args:
        routed_N: domain, or what stands for it.
        wanted_N: where it belongs.
        group_N: of each document: see `answers.compare`.

    Returns:
        `accuracy`, and `low` and `high` of its 95 % interval, groups drawn with replacement.

    >>> accuracy(np.array([0, 1, 1, 2]), np.array([0, 1, 2, 2]))["accuracy"]
    0.75
    """
    alike_N = np.zeros(len(wanted_N), np.int64)
    found = compare({"right": routed_N == wanted_N}, np.ones(len(wanted_N)), alike_N, 1, group_N)
    low, high = found.interval("right")
    return {"accuracy": found.loss("right"), "low": low, "high": high}


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
