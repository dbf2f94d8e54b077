"""Spends a budget: the N, D and D' at which a law predicts the lowest mean loss over the domains.

The budget is in total, C = 6·N·(D + Σ_k D'_k) FLOPs: one shared seed and all experts (arXiv 2001.08361, section 2.1). D' is the
same for every domain, or each domain's own where each has a law of its own. A domain's documents are seen at most `repetitions`
times, in pretraining and specialization together: D'_k ≤ tokens_k · (repetitions − D / tokens).

```
sizes ─► for each: shares of pretraining on a grid ─► D ─► D'_k by even parts, or by the gain of the next token ─► the best, finer
```

No split at all, D' = 0, is one of the choices. Costs a few milliseconds for each N, up to a tenth of a second with a law for
each domain. This does *not* fit the laws.

Shapes: K domains, G shares on the grid, M stretches of tokens, R = K · G points.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NamedTuple, TypeVar

import numpy as np

from lmsplit.train.scaling import Floats, Points
from lmsplit.train.scaling_domains import AnyFit

FLOPS_PER_PARAMETER_AND_TOKEN: Final = 6.0
LEAST_SHARE: Final = 1e-4
"""Of the tokens, for pretraining, and for specialization where there is any (assumption)."""
_GRID: Final = 33
_ZOOMS: Final = 4
"""Each looks between the neighbours of the best so far: shares are found to within 1e-5, N to within 1e-4."""
_STRETCHES: Final = 256
_ROUNDING: Final = 1e-9

Found = TypeVar("Found")


@dataclass(frozen=True)
class Supply:
    """How many tokens there are."""

    tokens_K: Floats
    """Training tokens of each domain; infinite where nothing is known."""
    repetitions: float
    """How often a token is trained on at most."""
    for_experts: bool = True
    """Whether experts may have any."""

    def most_pretraining(self) -> float:
        """Return the largest D, and the largest D + Σ D'_k."""
        return float(self.tokens_K.sum() * self.repetitions)

    def most_specialization(self, pretraining_G: Floats) -> Floats:
        """Return (K, G) the largest D'_k after D pretraining tokens."""
        if not self.for_experts:
            return np.zeros((len(self.tokens_K), len(pretraining_G)))
        left_G = self.repetitions - pretraining_G / self.tokens_K.sum()
        most_KG: Floats = np.maximum(self.tokens_K[:, None] * left_G, 0.0)
        return most_KG


class Allocation(NamedTuple):
    """One way to spend a budget."""

    num_parameters: float
    pretraining: float
    """D, tokens."""
    specialization_K: Floats
    """D' of each domain, tokens."""
    loss_K: Floats
    """Predicted, nats per token."""

    @property
    def loss(self) -> float:
        """The mean over the domains."""
        return float(self.loss_K.mean())

    @property
    def pretraining_fraction(self) -> float:
        """Share of all tokens, and so of the compute, that goes into the seed."""
        return float(self.pretraining / (self.pretraining + self.specialization_K.sum()))

    @property
    def flops(self) -> float:
        """What it costs in total."""
        tokens = self.pretraining + self.specialization_K.sum()
        return float(FLOPS_PER_PARAMETER_AND_TOKEN * self.num_parameters * tokens)


@dataclass(frozen=True)
class Predictor:
    """The loss of each domain, by a law for all of them or one for each."""

    fit: AnyFit
    num_domains: int
    own_tokens: bool = False
    """Whether each domain has a D' of its own, which takes a law for each; else all have the same."""

    def losses(self, num_parameters: float, pretraining_G: Floats, specialization_KG: Floats) -> Floats:
        """Return the loss of each domain at each of G choices, nats per token."""
        pretraining_R = np.tile(pretraining_G, self.num_domains)
        domain_R = np.repeat(np.arange(self.num_domains), len(pretraining_G))
        sizes_R = np.full(len(domain_R), float(num_parameters))
        losses_R = self.fit.predict(Points(sizes_R, pretraining_R, specialization_KG.ravel(), domain_R))
        return losses_R.reshape(specialization_KG.shape)


def spend(predictor: Predictor, num_parameters: float, pretraining: float, rest: float, supply: Supply) -> Allocation:
    """Return the allocation of D tokens for the seed, and of the rest for the experts as well as can be.

    Args:
        predictor: the laws; without `own_tokens` every domain gets the same, as far as its supply goes.
        num_parameters: N.
        pretraining: D.
        rest: tokens for all experts together; what the supply does not allow is left over.
        supply: the tokens there are.
    """
    return _spend(predictor, num_parameters, np.array([pretraining]), np.array([rest]), supply)[0]


def affordable(num_parameters: float, budget: float, supply: Supply) -> float:
    """Return the tokens for seed and experts together that a budget pays for and the supply has."""
    return min(budget / FLOPS_PER_PARAMETER_AND_TOKEN / num_parameters, supply.most_pretraining())


def allocate(predictor: Predictor, num_parameters: float, budget: float, supply: Supply) -> Allocation:
    """Return the best way to spend a budget on models of one size.

    Args:
        predictor: the laws.
        num_parameters: N.
        budget: C in FLOPs, in total.
        supply: the tokens there are; what they do not allow to spend is left over.
    """
    tokens = affordable(num_parameters, budget, supply)

    def at(logits_G: Floats) -> list[Allocation]:
        """Return the allocation for each share of pretraining."""
        pretraining_G = tokens / (1 + np.exp(-logits_G))
        return _spend(predictor, num_parameters, pretraining_G, tokens - pretraining_G, supply)

    edge = float(np.log(1 / LEAST_SHARE - 1))
    best = _zoom(at, -edge, edge, lambda each: each.loss)
    unsplit = spend(predictor, num_parameters, tokens, 0.0, supply)
    return best if best.loss < unsplit.loss * (1 - _ROUNDING) else unsplit


def best_size(predictor: Predictor, low: float, high: float, budget: float, supply: Supply) -> Allocation:
    """Return the best way to spend a budget on models of any size between two."""

    def at(log_sizes: Floats) -> list[Allocation]:
        """Return the best allocation for each size."""
        return [allocate(predictor, float(np.exp(each)), budget, supply) for each in log_sizes]

    return _zoom(at, float(np.log(low)), float(np.log(high)), lambda each: each.loss)


def _zoom(at: Callable[[Floats], list[Found]], low: float, high: float, loss: Callable[[Found], float]) -> Found:
    """Return the best on a grid, on a finer one between its neighbours, and so on."""
    for _ in range(_ZOOMS):
        grid_G = np.linspace(low, high, _GRID)
        found = at(grid_G)
        best = min(range(_GRID), key=lambda index: loss(found[index]))
        low, high = grid_G[max(best - 1, 0)], grid_G[min(best + 1, _GRID - 1)]
    return found[best]


def _spend(
    predictor: Predictor, num_parameters: float, pretraining_G: Floats, rest_G: Floats, supply: Supply
) -> list[Allocation]:
    most_KG = supply.most_specialization(pretraining_G)
    if predictor.own_tokens:
        specialization_KG = _by_gain(predictor, num_parameters, pretraining_G, rest_G, most_KG)
    else:
        specialization_KG = _even_parts(rest_G, most_KG)
    loss_KG = predictor.losses(num_parameters, pretraining_G, specialization_KG)
    return [
        Allocation(num_parameters, float(pretraining), specialization_KG[:, index], loss_KG[:, index])
        for index, pretraining in enumerate(pretraining_G)
    ]


def _even_parts(rest_G: Floats, most_KG: Floats) -> Floats:
    """Return (K, G) equal parts of what is left; where a domain's supply ends, the others share what it cannot take.

    >>> _even_parts(np.array([9.0]), np.array([[1.0], [10.0], [10.0]])).T
    array([[1., 4., 4.]])
    """
    num_domains = len(most_KG)
    level_G, taken_G = np.full(len(rest_G), np.inf), np.zeros(len(rest_G))
    for rank, most_G in enumerate(np.sort(most_KG, axis=0)):
        part_G = (rest_G - taken_G) / (num_domains - rank)
        level_G = np.where(np.isinf(level_G) & (part_G <= most_G), part_G, level_G)
        taken_G += np.where(np.isinf(most_G), 0.0, most_G)
    parts_KG: Floats = np.minimum(np.maximum(level_G, 0.0), most_KG)
    return parts_KG


def _by_gain(predictor: Predictor, num_parameters: float, pretraining_G: Floats, rest_G: Floats, most_KG: Floats) -> Floats:
    """Return (K, G) D'_k such that another token helps every domain alike, which is where the sum of the losses is lowest.

    D' is cut into stretches; they are bought by falling gain per token until the tokens are spent.
    """
    edges_M = np.append(0.0, np.geomspace(LEAST_SHARE, 1.0, _STRETCHES))
    num_choices = len(rest_G)
    edges_KGM = np.minimum(edges_M * rest_G[:, None], most_KG[:, :, None])
    flat_K = edges_KGM.reshape(len(most_KG), -1)
    loss_KGM = predictor.losses(num_parameters, np.repeat(pretraining_G, len(edges_M)), flat_K).reshape(edges_KGM.shape)
    widths_KGM = np.diff(edges_KGM, axis=2)
    with np.errstate(divide="ignore", invalid="ignore"):
        gains_KGM = np.where(widths_KGM > 0, -np.diff(loss_KGM, axis=2) / widths_KGM, 0.0)
    gains_KGM = np.minimum.accumulate(gains_KGM, axis=2)
    gains_GX = gains_KGM.transpose(1, 0, 2).reshape(num_choices, -1)
    widths_GX = widths_KGM.transpose(1, 0, 2).reshape(num_choices, -1)
    order_GX = np.argsort(-gains_GX, axis=1, kind="stable")
    sorted_GX = np.take_along_axis(widths_GX, order_GX, axis=1)
    left_GX = rest_G[:, None] - (np.cumsum(sorted_GX, axis=1) - sorted_GX)
    bought_GX = np.empty_like(widths_GX)
    np.put_along_axis(bought_GX, order_GX, np.clip(left_GX, 0.0, sorted_GX), axis=1)
    bought_KG: Floats = bought_GX.reshape(num_choices, len(most_KG), -1).sum(axis=2).T
    return bought_KG
