"""Ways to answer a text with one model or several, judged on the tokens after its prompt, and how sure the differences are.

A router sees the first tokens of a document, the prompt, and is judged on the others, which it did not see; so is every other
way, on the same ones. A loss is a mean over domains that count alike, each the mean over its tokens. Intervals are
percentiles of a paired bootstrap over documents, each domain's drawn among its own. Pure functions; this runs no model.

Shapes: N documents, T tokens of all of them, K experts, W ways, B draws.
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
INTERVAL: Final = 0.95


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
        return sums_of_documents(np.where(self.is_prompt(), np.float32(0), nats_T), self.tokens_N)

    def prompt_nats(self, nats_T: npt.NDArray[np.float32]) -> Floats:
        """Return (..., N) the sum over each document's prompt of (..., T) losses."""
        return sums_of_documents(np.where(self.is_prompt(), nats_T, np.float32(0)), self.tokens_N)


def ways_to_answer(
    documents: Documents,
    experts_KT: npt.NDArray[np.float32],
    others: Mapping[str, npt.NDArray[np.float32]],
    expert_N: Integers,
    mixtures: Mapping[str, Floats],
) -> dict[str, Floats]:
    """Return (N,) the nats of each document's judged tokens, by way to answer.

    Args:
        documents: which tokens are judged.
        experts_KT: the experts' losses.
        others: (T,) losses of the models that are no experts, by name.
        expert_N: number of the expert that each prompt is routed to.
        mixtures: (N, K) weights of the experts, by name.

    Returns:
        `routed`: by the manifest's rule, on the prompt. `likelihood`: to the expert that finds the prompt least surprising.
        `own domain`: the expert of the domain that the manifest has the document in. `best expert`: the best one in hindsight,
        which no router knows. `any expert`, `another expert`: the mean over all, and over those that it is not routed to. Then
        the mixtures and the other models.
    """
    judged_KN = documents.judged_nats(experts_KT)
    each = np.arange(judged_KN.shape[1])
    routed_N = judged_KN[expert_N, each]
    found = {
        "routed": routed_N,
        "likelihood": judged_KN[documents.prompt_nats(experts_KT).argmin(axis=0), each],
        "own domain": judged_KN[documents.domain_N, each],
        "best expert": judged_KN.min(axis=0),
        "any expert": judged_KN.mean(axis=0),
    }
    if len(judged_KN) > 1:
        found["another expert"] = (judged_KN.sum(axis=0) - routed_N) / (len(judged_KN) - 1)
    for name, weights_NK in mixtures.items():
        weights_TK = np.repeat(weights_NK, documents.tokens_N, axis=0)
        mixed_T = -mix(-experts_KT[:, :, None], weights_TK)[:, 0]
        found[name] = documents.judged_nats(mixed_T.astype(np.float32))
    return found | {name: documents.judged_nats(nats_T) for name, nats_T in others.items()}


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
        return _percentiles(self.draws_BW[:, self.names.index(name)])

    def difference(self, name: str, other: str) -> tuple[float, float, float]:
        """Return the loss of a way less that of another one, and its 95 % interval; below 0, the first is better."""
        first, second = self.names.index(name), self.names.index(other)
        low, high = _percentiles(self.draws_BW[:, first] - self.draws_BW[:, second])
        return float(self.loss_W[first] - self.loss_W[second]), low, high


def compare(ways: Mapping[str, Floats], units_N: Integers, domain_N: Integers, draws: int = DRAWS) -> Comparison:
    """Compare ways to answer.

    Args:
        ways: (N,) nats of each document, by way.
        units_N: what the loss is counted in: tokens or bytes of each document; documents with none are left out.
        domain_N: number of each document's domain.
        draws: B.

    Raises:
        ValueError: no document has any.
    """
    if not (units_N > 0).any():
        raise ValueError("no document has anything to judge")
    nats_WN = np.stack(list(ways.values()))
    generator = np.random.default_rng(0)
    of_domains = []
    for domain in range(int(domain_N.max()) + 1):
        members = np.flatnonzero((domain_N == domain) & (units_N > 0))
        if not len(members):
            of_domains.append((np.full(len(nats_WN), np.nan), np.full((draws, len(nats_WN)), np.nan)))
            continue
        counts_BN = generator.multinomial(len(members), np.full(len(members), 1 / len(members)), size=draws)
        nats, units = nats_WN[:, members], units_N[members]
        of_domains.append((nats.sum(axis=1) / units.sum(), (counts_BN @ nats.T) / (counts_BN @ units)[:, None]))
    loss_WJ = np.stack([loss for loss, _ in of_domains], axis=1)
    draws_BW = np.nanmean(np.stack([drawn for _, drawn in of_domains]), axis=0)
    return Comparison(tuple(ways), np.nanmean(loss_WJ, axis=1), loss_WJ, draws_BW)


def _percentiles(values_B: Floats) -> tuple[float, float]:
    low, high = np.quantile(values_B, [(1 - INTERVAL) / 2, (1 + INTERVAL) / 2])
    return float(low), float(high)
