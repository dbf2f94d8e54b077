"""Ways to answer a text with one model or several, judged on the tokens after its prompt, and how sure the differences are.

A router sees the first tokens of a document, the prompt, and is judged on the others, which it did not see; so is every other
way, on the same ones. A loss is a mean over domains that count alike, each the mean over its tokens. Intervals are
percentiles of a paired bootstrap over groups of documents, each domain's drawn among its own. Pure functions; this runs no model.

Shapes: N documents, T tokens of all of them, K experts, J domains, W ways, B draws, G groups and M members of a domain.
"""

from collections.abc import Mapping
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from lmsplit.train.mixing import mix
from lmsplit.train.text_losses import sums_of_documents

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

DRAWS: Final = 1000
"""Of the bootstrap."""
_DRAWS_AT_ONCE: Final = 50
"""Each holds a number for every group."""
INTERVAL: Final = 0.95
_BLOCK: Final = 1 << 14
"""Tokens that are mixed at a time."""


class Documents(NamedTuple):
    """Which tokens are judged."""

    tokens_N: Integers
    """Tokens of each document."""
    domain_N: Integers
    """Number of each document's domain."""
    prompt: int
    """Tokens at a document's beginning that are not judged."""

    def is_prompt(self) -> npt.NDArray[np.bool_]:
        """Return (T,) whether each token belongs to a prompt."""
        starts_N = np.cumsum(self.tokens_N) - self.tokens_N
        return np.asarray(np.arange(self.tokens_N.sum()) - np.repeat(starts_N, self.tokens_N) < self.prompt)

    def num_judged(self) -> Integers:
        """Return (N,) the tokens of each document that are judged."""
        return np.maximum(0, self.tokens_N - self.prompt)

    def judged_nats(self, nats_T: npt.NDArray[np.float32]) -> Floats:
        """Return (..., N) the sum over each document's judged tokens of (..., T) losses."""
        return self._sums(nats_T, ~self.is_prompt())

    def prompt_nats(self, nats_T: npt.NDArray[np.float32]) -> Floats:
        """Return (..., N) the sum over each document's prompt of (..., T) losses."""
        return self._sums(nats_T, self.is_prompt())

    def _sums(self, nats_T: npt.NDArray[np.float32], counted_T: npt.NDArray[np.bool_]) -> Floats:
        if nats_T.ndim > 1:  # a row at a time: a table may be most of the memory
            return np.stack([self._sums(row_T, counted_T) for row_T in nats_T])
        return sums_of_documents(np.where(counted_T, nats_T, np.float32(0)), self.tokens_N)


def ways_to_answer(
    documents: Documents,
    experts_KT: npt.NDArray[np.float32],
    others: Mapping[str, npt.NDArray[np.float32]],
    routes: Mapping[str, Integers],
    mixtures: Mapping[str, Floats],
) -> dict[str, Floats]:
    """Return (N,) the nats of each document's judged tokens, by way to answer.

    Args:
        documents: which tokens are judged.
        experts_KT: the experts' losses.
        others: (T,) losses of the models that are no experts, by name.
        routes: number of the expert that each prompt is routed to, by rule: `routed` for the router's own.
        mixtures: (N, K) weights of the experts, by name.

    Returns:
        `routed` and the other rules: by what they say of the prompt. `likelihood`: to the expert that finds it least surprising.
        `own domain`: the expert of the domain that the manifest has the document in. `best expert`: the best one in hindsight,
        which no router knows. `any expert`, `another expert`: the mean over all, and over those that it is not routed to. Then
        the mixtures and the other models.
    """
    judged_KN = documents.judged_nats(experts_KT)
    each = np.arange(judged_KN.shape[1])
    found = {name: judged_KN[expert_N, each] for name, expert_N in routes.items()}
    found |= {
        "likelihood": judged_KN[documents.prompt_nats(experts_KT).argmin(axis=0), each],
        "own domain": judged_KN[documents.domain_N, each],
        "best expert": judged_KN.min(axis=0),
        "any expert": judged_KN.mean(axis=0),
    }
    if len(judged_KN) > 1:
        found["another expert"] = (judged_KN.sum(axis=0) - found["routed"]) / (len(judged_KN) - 1)
    for name, weights_NK in mixtures.items():
        found[name] = documents.judged_nats(_mixed(experts_KT, weights_NK, documents.tokens_N))
    return found | {name: documents.judged_nats(nats_T) for name, nats_T in others.items()}


def _mixed(experts_KT: npt.NDArray[np.float32], weights_NK: Floats, tokens_N: Integers) -> npt.NDArray[np.float32]:
    """Return (T,) the losses of a mixture, some tokens at a time."""
    document_T = np.repeat(np.arange(len(tokens_N)), tokens_N)
    mixed_T = np.empty(len(document_T), np.float32)
    for start in range(0, len(document_T), _BLOCK):
        block = slice(start, start + _BLOCK)
        mixed_T[block] = -mix(-experts_KT[:, block, None], weights_NK[document_T[block]])[:, 0]
    return mixed_T


class Comparison(NamedTuple):
    """Losses of several ways to answer the same documents, and draws of them."""

    names: tuple[str, ...]
    loss_W: Floats
    """Mean over domains, nats per unit."""
    loss_WJ: Floats
    """Of each domain; NaN where it has nothing that is judged."""
    draws_BW: Floats
    """Means over domains, of documents drawn with replacement; the same documents for all ways."""

    def loss(self, name: str) -> float:
        """Return the loss of a way."""
        return float(self.loss_W[self.names.index(name)])

    def interval(self, name: str) -> tuple[float, float]:
        """Return the 95 % interval of a way's loss."""
        return percentiles(self.draws_BW[:, self.names.index(name)])

    def difference(self, name: str, other: str) -> tuple[float, float, float]:
        """Return the loss of a way less that of another one, and its 95 % interval; below 0, the first is better."""
        first, second = self.names.index(name), self.names.index(other)
        low, high = percentiles(self.draws_BW[:, first] - self.draws_BW[:, second])
        return float(self.loss_W[first] - self.loss_W[second]), low, high


def compare(
    ways: Mapping[str, npt.ArrayLike],
    units_N: npt.ArrayLike,
    domain_N: Integers,
    num_domains: int,
    group_N: npt.ArrayLike | None = None,
    draws: int = DRAWS,
) -> Comparison:
    """Compare ways to answer.

    Args:
        ways: (N,) nats of each document, by way; or anything else that is added up.
        units_N: what it is divided by: tokens or bytes of each document, or 1; documents with none are left out.
        domain_N: number of each document's domain, below J.
        num_domains: J.
        group_N: what documents of one group have in common, such as the original that they are cuts of, makes their losses alike:
            groups are drawn whole. None: each document is one.
        draws: B.

    Raises:
        ValueError: no document has any.
    """
    units_all_N = np.asarray(units_N)
    if not (units_all_N > 0).any():
        raise ValueError("no document has anything to judge")
    nats_WN = np.stack([np.asarray(each, np.float64) for each in ways.values()])
    groups_N = np.arange(len(domain_N)) if group_N is None else np.unique(np.asarray(group_N), return_inverse=True)[1].ravel()
    generator = np.random.default_rng(0)
    loss_WJ = np.full((len(nats_WN), num_domains), np.nan)
    drawn_BWJ = np.full((draws, *loss_WJ.shape), np.nan)
    for domain in range(num_domains):
        members = np.flatnonzero((domain_N == domain) & (units_all_N > 0))
        if not len(members):
            continue
        _, group_M = np.unique(groups_N[members], return_inverse=True)
        nats_WG = np.stack([np.bincount(group_M, nats_M) for nats_M in nats_WN[:, members]])
        units_G = np.bincount(group_M, units_all_N[members])
        loss_WJ[:, domain] = nats_WG.sum(axis=1) / units_G.sum()
        for start in range(0, draws, _DRAWS_AT_ONCE):
            block = slice(start, min(start + _DRAWS_AT_ONCE, draws))
            counts_BG = generator.multinomial(len(units_G), np.full(len(units_G), 1 / len(units_G)), size=block.stop - start)
            drawn_BWJ[block, :, domain] = (counts_BG @ nats_WG.T) / (counts_BG @ units_G)[:, None]
    return Comparison(tuple(ways), np.nanmean(loss_WJ, axis=1), loss_WJ, np.nanmean(drawn_BWJ, axis=2))


def percentiles(values_B: Floats) -> tuple[float, float]:
    """Return the ends of the 95 % interval of draws."""
    low, high = np.quantile(values_B, [(1 - INTERVAL) / 2, (1 + INTERVAL) / 2])
    return float(low), float(high)
