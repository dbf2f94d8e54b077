"""Proposes small runs that pin a scaling law down, the cheapest set that does so within a budget.

```
what is to be planned (N, D, D') ─► ladders: sizes × D × D' × domains, at fractions of it ─► cost, and how sure the law would be
                                                              ─► the cheapest that is sure enough, or the surest one affordable
```

A ladder is cheap because of how it is run (see `ladder_run`): a size has one run at a constant rate to its largest D, and every
smaller D is a short decay from a checkpoint of it; the same for D' on each domain. How sure: the standard error of the predicted
loss at what is to be planned, from the Fisher information of the runs, for each of a few laws with typical constants; the worst
counts. Domains are learned at paces of their own (see `scaling_domains`), so each has to be pinned down by its own runs. This
does *not* train anything.

Shapes: R runs, P parameters.
"""

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np

from lmsplit.manifests.errors import ConfigurationError
from lmsplit.train.scaling import LAWS, Floats, Law, Parameters, Points, log_loss

DECAY_FRACTION: Final = 0.2
"""Share of a run's tokens over which the rate falls to zero (arXiv 2405.18392 finds 10 to 20 % enough)."""
LEAST_STEPS: Final = 20
"""Steps below which a run is warm-up and little else (assumption)."""
NOISE: Final = 0.005
"""Relative noise of a measured loss (assumption)."""
_DOMAIN_TERM: Final = 0.5
"""Nats that each term of a typical law has at what is to be planned (assumption)."""
_FRACTIONS: Final = (1.0, 0.5, 0.25, 0.125)
"""Of the target's tokens, for the largest D and D': how far a law is trusted past its runs (assumption)."""


class Target(NamedTuple):
    """What is to be planned in the end."""

    num_parameters: float
    pretraining: float
    specialization: float


@dataclass(frozen=True)
class Ladder:
    """Small runs: every size with every D, and from each the experts of some domains with every D'."""

    sizes: tuple[int, ...]
    pretraining: tuple[int, ...]
    """D in tokens, rising."""
    specialization: tuple[int, ...]
    """D' in tokens, rising."""
    num_domains: int
    experts_per_seed: int
    """Domains that each seed is continued on; they take turns."""
    standard_error: float = np.nan
    """Of the predicted loss at the target, relative."""

    def domains_of(self, seed: int) -> tuple[int, ...]:
        """Return the domains that the seed of this number, counted over sizes and then D, is continued on."""
        first = seed * self.experts_per_seed
        return tuple(sorted({(first + each) % self.num_domains for each in range(self.experts_per_seed)}))

    def specialization_of(self, seed: int) -> tuple[int, ...]:  # noqa: ARG002 - a sweep has others for each seed
        """Return the D' of the experts of the seed of this number, rising."""
        return self.specialization

    def seeds(self) -> Iterator[tuple[int, int, int]]:
        """Yield the number, the size and the D of each seed."""
        for number, (size, tokens) in enumerate(itertools.product(self.sizes, self.pretraining)):
            yield number, size, tokens

    @property
    def num_points(self) -> int:
        """Losses that it measures."""
        num_seeds = len(self.sizes) * len(self.pretraining)
        return num_seeds * (self.num_domains + len(self.domains_of(0)) * len(self.specialization))

    @property
    def flops(self) -> float:
        """What it costs: trunks to the largest number of tokens, and a decay for each."""
        trunk = tokens_of_trunk(self.pretraining)
        branches = len(self.pretraining) * len(self.domains_of(0)) * tokens_of_trunk(self.specialization)
        return 6.0 * sum(self.sizes) * (trunk + branches)

    def points(self) -> Points:
        """Return where it measures the loss."""
        rows = []
        for number, size, tokens in self.seeds():
            rows += [(size, tokens, 0, domain) for domain in range(self.num_domains)]
            rows += [(size, tokens, each, domain) for domain in self.domains_of(number) for each in self.specialization]
        columns = np.array(rows, float).T
        return Points(columns[0], columns[1], columns[2], columns[3].astype(np.int64))


def tokens_of_trunk(ends: Sequence[int]) -> float:
    """Return the tokens that one constant run and a decay to each of its ends train on.

    >>> tokens_of_trunk([100, 200])
    220.0
    """
    return (1 - DECAY_FRACTION) * max(ends) + DECAY_FRACTION * sum(ends)


def propose(
    target: Target, num_domains: int, budget: float, precision: float, sizes: Sequence[int], tokens_per_step: int = 1
) -> Ladder:
    """Return the cheapest ladder that is precise enough, or the most precise that the budget pays for.

    Args:
        target: what is to be planned.
        num_domains: K.
        budget: FLOPs, above 0.
        precision: relative standard error of the predicted loss at the target that is put up with, above 0.
        sizes: numbers of parameters of models that can be built, the largest first; two to four neighbours are taken.
        tokens_per_step: of the training; no run has fewer than `LEAST_STEPS` steps.

    Raises:
        ConfigurationError: the budget pays for none.
    """
    least = LEAST_STEPS * tokens_per_step
    candidates = sorted(_candidates(target, num_domains, sizes, least), key=lambda each: each.flops)
    if not candidates:
        raise ConfigurationError(
            f"what is planned is too small for a ladder: its D' of {target.specialization:,.0f} tokens leaves no room for three "
            f"smaller ones of at least {LEAST_STEPS} steps, {least:,} tokens"
        )
    affordable = [each for each in candidates if each.flops <= budget]
    if not affordable:
        raise ConfigurationError(
            f"the cheapest ladder takes {candidates[0].flops:.3g} FLOPs, the budget is {budget:.3g}: raise it, or plan for less"
        )
    surest = None
    for each in affordable:
        error = standard_error(each, target)
        found = Ladder(each.sizes, each.pretraining, each.specialization, num_domains, each.experts_per_seed, error)
        if error <= precision:
            return found
        if surest is None or error < surest.standard_error:
            surest = found
    assert surest is not None
    return surest


def standard_error(ladder: Ladder, target: Target) -> float:
    """Return the relative standard error of a domain's loss that a ladder would predict at the target, of the worst typical law.

    Each domain's law is its own, so its own runs have to pin it down; the root of the mean square over the domains.
    """
    points = ladder.points()
    runs_R3 = np.stack(points[:3], axis=1)
    kinds = Counter(runs_R3[points.domain_R == domain].tobytes() for domain in range(ladder.num_domains))
    worst = 0.0
    for name, parameters_P in _typical(target).items():
        squares = {runs: _variance(LAWS[name], parameters_P, np.frombuffer(runs).reshape(-1, 3), target) for runs in kinds}
        mean = sum(number * squares[runs] for runs, number in kinds.items()) / ladder.num_domains
        worst = max(worst, float(np.sqrt(mean)))
    return worst


def _variance(law: Law, parameters_P: Floats, runs_R3: Floats, target: Target) -> float:
    """Return the variance of the log of one domain's predicted loss, from its runs."""

    def at(values_R3: Floats) -> Floats:
        """Return the gradients there."""
        columns = values_R3.T
        return log_loss(law, parameters_P, Points(columns[0], columns[1], columns[2], np.zeros(len(values_R3), np.int64)))[1]

    gradient_PR = at(runs_R3)
    scale_P = np.linalg.norm(gradient_PR, axis=1) + 1e-12
    information_PP = (gradient_PR / scale_P[:, None]) @ (gradient_PR / scale_P[:, None]).T / NOISE**2
    information_PP += np.eye(len(scale_P)) / scale_P[:, None] ** 2 / _PRIOR**2
    wanted_P = at(np.array([target], float))[:, 0] / scale_P
    return float(wanted_P @ np.linalg.solve(information_PP, wanted_P))


_PRIOR: Final = 1.0
"""Standard deviation of a parameter before any run: keeps a ladder that says nothing of one from having no error at all."""


def _typical(target: Target) -> dict[str, Floats]:
    """Return laws of one domain, with exponents as published ones (arXiv 2404.10102, 2102.01293).

    Their terms are alike at what is to be planned.
    """
    size, pretraining, specialization = (float(np.log(each)) for each in target)
    term = np.log(_DOMAIN_TERM)
    floors_K = np.full(1, np.log(4 * _DOMAIN_TERM))
    found = {
        "F1": (np.array([0.35, 0.2, specialization - 3.0]), 2),
        "F2": (np.array([0.3, specialization - 0.6 * pretraining, 0.6]), 1),
        "F3": (np.array([0.15, 0.15, 0.0, specialization - 3.0]), 1),
        "F4": (np.array([0.15, 0.15, 0.0, specialization - 3.0, 0.1]), 1),
    }
    typical = {}
    for name, (exponent_Q, num_terms) in found.items():
        shapes_T = LAWS[name].log_shapes(exponent_Q, np.array([pretraining]), np.array([specialization]))[0][:, 0]
        release = LAWS[name].log_release(exponent_Q, np.array([specialization]))[0][0]
        values = Parameters(floors_K, term + 0.35 * size - release, np.full(num_terms, term) - shapes_T, 0.35, exponent_Q)
        typical[name] = values.vector()
    return typical


def _candidates(target: Target, num_domains: int, sizes: Sequence[int], least_tokens: int = 1) -> Iterator[Ladder]:
    near = [size for size in sizes if size >= target.num_parameters * min(_FRACTIONS)]
    runs_of_sizes = [tuple(sizes[first : first + count]) for count in (2, 3, 4) for first in range(len(near))]
    runs_of_sizes = [each for each in runs_of_sizes if len(each) > 1]
    for chosen, count, part, few, small in itertools.product(runs_of_sizes, (3, 4, 5), _FRACTIONS, (3, 4), _FRACTIONS):
        pretraining = tuple(round(target.pretraining * part / 2**each) for each in reversed(range(count)))
        specialization = tuple(round(target.specialization * small / 2**each) for each in reversed(range(few)))
        if specialization[0] < least_tokens or pretraining[0] < least_tokens:
            continue
        for experts in sorted({1, 2, min(4, num_domains), num_domains}):
            if experts <= num_domains:
                yield Ladder(tuple(sorted(chosen)), pretraining, specialization, num_domains, experts)
