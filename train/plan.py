"""Recommends how to spend a budget: how large a model, how many tokens for the seed and for each expert, and how sure that is.

```
runs ─► choose a law ─► allocate the budget ─► Plan: optimum, interval, what else could be done with the budget, warnings
             └─► bootstrap ─────────────────────────┘
```

The loss of a plan is the mean over the domains, each alike, of every expert's loss on its own domain. "No split" is one model
trained on the mixture with the whole budget, "80/20" puts four fifths of the tokens into the seed, "dense continued" is one model
trained on the mixture for as many tokens as one expert and its seed, which costs less. This does *not* train anything.

Shapes: K domains.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from lmsplit.manifests.errors import ConfigurationError
from lmsplit.train.allocation import FLOPS_PER_PARAMETER_AND_TOKEN, Allocation, Predictor, Supply, allocate, best_size, spend
from lmsplit.train.runs import Runs
from lmsplit.train.scaling import LAWS
from lmsplit.train.scaling_choice import Choice, choose
from lmsplit.train.scaling_fit import Fit, bootstrap, fit, spread

REPETITIONS: Final = 4.0
"""Up to four passes over the same text are worth nearly as much as new text (arXiv 2305.16264)."""
_SMALLER, _LARGER = 0.1, 1000.0
"""Sizes that are looked at, over the smallest and the largest of the runs (assumption)."""
_NEAR_SIZE: Final = 0.01
_FAR: Final = 1.05
"""How far past the runs a plan goes before it says so."""
_GOOD_MRE: Final = 0.02
_GOOD_R2: Final = 0.9
_SAME_FRACTION: Final = 0.1
"""Above these the fit is called poor, below the first laws disagree (assumptions)."""


@dataclass(frozen=True)
class Question:
    """What is to be planned."""

    budget: float
    """C in FLOPs, in total: 6·N·(D + Σ_k D'_k)."""
    sizes: tuple[float, ...] = ()
    """The N's to choose from; none: any."""
    repetitions: float = REPETITIONS
    """How often a token may be trained on, in both phases together."""
    law: str | None = None
    """The law to use; None: the one that predicts the largest runs best."""
    own_laws: bool = False
    """Fit each domain by itself, which gives each a D' of its own."""
    num_draws: int = 200
    """Fits of the bootstrap."""


@dataclass(frozen=True)
class Alternative:
    """Something else that could be done."""

    name: str
    allocation: Allocation
    gain: float
    """How much lower the plan's loss is, nats per token."""
    interval: tuple[float, float]
    """Of the gain, 90 %."""


@dataclass(frozen=True)
class Plan:
    """A recommendation."""

    question: Question
    domains: tuple[str, ...]
    choice: Choice
    predictor: Predictor
    supply: Supply
    best: Allocation
    interval: tuple[float, float]
    """Of the best allocation's loss, 90 %."""
    fraction_interval: tuple[float, float]
    """Of the share for pretraining that is best for models of this size, 90 %."""
    alternatives: tuple[Alternative, ...]
    warnings: tuple[str, ...]

    @property
    def is_split(self) -> bool:
        """Whether experts are worth training at all."""
        return bool(self.best.specialization_K.max() > 0)

    @property
    def domain_tokens(self) -> dict[str, int]:
        """D' of each domain, whole tokens."""
        return {name: int(tokens) for name, tokens in zip(self.domains, self.best.specialization_K, strict=True)}

    def to_json(self) -> dict[str, Any]:
        """Return the plan as one JSON object."""
        best = self.best
        laws = {
            name: {"formula": each.fit.law.formula, "mre": each.mre, "r2": each.r2, "heldout_mre": each.heldout_mre}
            for name, each in self.choice.judgements.items()
        }
        return {
            "law": self.choice.law,
            "laws": laws,
            "num_parameters": round(best.num_parameters),
            "pretraining_tokens": int(best.pretraining),
            "specialization_tokens": int(best.specialization_K.mean()),
            "domain_tokens": self.domain_tokens,
            "pretraining_fraction": best.pretraining_fraction,
            "pretraining_fraction_interval": list(self.fraction_interval),
            "predicted_loss": best.loss,
            "interval": list(self.interval),
            "budget_flops": self.question.budget,
            "flops": best.flops,
            "split": self.is_split,
            "alternatives": {each.name: _as_json(each) for each in self.alternatives},
            "warnings": list(self.warnings),
        }


def recommend(runs: Runs, question: Question, supply_K: Sequence[float] | None = None) -> Plan:
    """Recommend how to spend a budget.

    Args:
        runs: what small runs reached.
        question: the budget, and what else is given.
        supply_K: (K,) training tokens of each domain; None where nothing is known.

    Raises:
        ConfigurationError: the runs are too few, or too much alike, for what is asked.
    """
    sizes = _sizes(runs, question)
    laws = LAWS if question.law is None else {question.law: _law(question.law)}
    choice = choose(runs.points, runs.loss_R, laws)
    fits = _own_fits(runs, choice.law) if question.own_laws else [choice.fit]
    num_domains = len(runs.domains)
    predictor = Predictor(fits, num_domains)
    tokens_K = np.full(num_domains, np.inf) if supply_K is None else np.asarray(supply_K, float)
    supply = Supply(tokens_K, question.repetitions)
    best = _best(predictor, sizes, runs, question.budget, supply)
    draws = _draws(runs, fits, question)
    others = _alternatives(predictor, best, question, supply)
    widening = fits[0].widening
    fraction = [allocate(each, best.num_parameters, question.budget, supply).pretraining_fraction for each in draws]
    alternatives = tuple(
        Alternative(name, each, each.loss - best.loss, _gain_interval(best, each, draws, widening))
        for name, each in others.items()
    )
    low, high = spread(best.pretraining_fraction, fraction, 1.0)
    return Plan(
        question,
        runs.domains,
        choice,
        predictor,
        supply,
        best,
        spread(best.loss, [_loss(each, best) for each in draws], widening),
        (low, high),
        alternatives,
        tuple(_warnings(runs, choice, fits, best, question, supply)),
    )


def at_size(plan: Plan, num_parameters: float) -> Allocation:
    """Return the best allocation of the plan's budget for models of another size, such as one that can be built."""
    return allocate(plan.predictor, num_parameters, plan.question.budget, plan.supply)


def _as_json(other: Alternative) -> dict[str, Any]:
    allocation = other.allocation
    return {
        "pretraining_tokens": int(allocation.pretraining),
        "specialization_tokens": int(allocation.specialization_K.mean()),
        "num_parameters": round(allocation.num_parameters),
        "flops": allocation.flops,
        "predicted_loss": allocation.loss,
        "gain": other.gain,
        "gain_interval": list(other.interval),
    }


def _law(name: str) -> Any:
    if name not in LAWS:
        raise ConfigurationError(f"there is no law {name!r}: choose one of {', '.join(LAWS)}")
    return LAWS[name]


def _sizes(runs: Runs, question: Question) -> tuple[float, ...]:
    """Return the sizes to choose from; with runs of one size there is no choice."""
    seen = np.unique(runs.points.num_parameters_R)
    if len(seen) > 1:
        return question.sizes
    strange = [size for size in question.sizes if abs(size / seen[0] - 1) > _NEAR_SIZE]
    if strange:
        raise ConfigurationError(
            f"all runs have {seen[0]:,.0f} parameters, which says nothing about {strange[0]:,.0f}: add runs of other sizes"
        )
    return (float(seen[0]),)


def _own_fits(runs: Runs, law: str) -> list[Fit]:
    fits = []
    for number, name in enumerate(runs.domains):
        try:
            fits.append(fit(LAWS[law], *runs.of_domain(number)))
        except ConfigurationError as error:
            raise ConfigurationError(f"domain {name}: {error}, or leave each domain a law of its own out") from error
    return fits


def _best(predictor: Predictor, sizes: Sequence[float], runs: Runs, budget: float, supply: Supply) -> Allocation:
    if sizes:
        return min((allocate(predictor, size, budget, supply) for size in sizes), key=lambda each: each.loss)
    seen_R = runs.points.num_parameters_R
    return best_size(predictor, seen_R.min() * _SMALLER, seen_R.max() * _LARGER, budget, supply)


def _draws(runs: Runs, fits: Sequence[Fit], question: Question) -> list[Predictor]:
    num_domains = len(runs.domains)
    if not question.own_laws:
        found = bootstrap(fits[0], runs.points, runs.loss_R, question.num_draws)
        return [Predictor([each], num_domains) for each in found]
    by_domain = [bootstrap(each, *runs.of_domain(number), question.num_draws, seed=number) for number, each in enumerate(fits)]
    return [Predictor(each, num_domains) for each in zip(*by_domain, strict=True)]


def _alternatives(predictor: Predictor, best: Allocation, question: Question, supply: Supply) -> dict[str, Allocation]:
    size = best.num_parameters
    tokens = question.budget / FLOPS_PER_PARAMETER_AND_TOKEN / size
    most = supply.most_pretraining()
    mean = float(best.specialization_K.mean())
    return {
        "no split": spend(predictor, size, min(tokens, most), 0.0, supply),
        "80/20": spend(predictor, size, min(0.8 * tokens, most), 0.2 * tokens, supply),
        "dense continued": spend(predictor, size, min(best.pretraining + mean, most), 0.0, supply),
    }


def _loss(predictor: Predictor, allocation: Allocation) -> float:
    """Return the loss that other laws predict for an allocation."""
    specialization_KG = allocation.specialization_K[:, None]
    return float(predictor.losses(allocation.num_parameters, np.array([allocation.pretraining]), specialization_KG).mean())


def _gain_interval(best: Allocation, other: Allocation, draws: Sequence[Predictor], widening: float) -> tuple[float, float]:
    gain = other.loss - best.loss
    gains = np.array([_loss(each, other) - _loss(each, best) for each in draws])
    low, high = np.quantile(gains, [0.05, 0.95])
    return float(gain + widening * (low - gain)), float(gain + widening * (high - gain))


def _warnings(runs: Runs, choice: Choice, fits: Sequence[Fit], best: Allocation, question: Question, supply: Supply) -> list[str]:
    return [
        *_past_the_runs(runs, best),
        *_disagreements(runs, choice, best, question, supply),
        *_bound_by_supply(runs, best, question, supply),
        *_poor_fit(runs, choice, fits),
    ]


def _past_the_runs(runs: Runs, best: Allocation) -> list[str]:
    points = runs.points
    planned = {
        "N": (best.num_parameters, points.num_parameters_R),
        "D": (best.pretraining, points.pretraining_R),
        "D'": (float(best.specialization_K.max()), points.specialization_R[points.specialization_R > 0]),
    }
    found = []
    for name, (value, value_R) in planned.items():
        if value == 0 or not len(value_R):
            continue
        if value > _FAR * value_R.max():
            found.append(f"extrapolates: {name} = {value:.3g} is {value / value_R.max():.1f} times the largest run's")
        elif value * _FAR < value_R.min():
            found.append(f"extrapolates: {name} = {value:.3g} is below the smallest run's {value_R.min():.3g}")
    return found


def _disagreements(runs: Runs, choice: Choice, best: Allocation, question: Question, supply: Supply) -> list[str]:
    found = []
    for name in choice.rivals():
        judgement = choice.judgements[name]
        other = allocate(Predictor([judgement.fit], len(runs.domains)), best.num_parameters, question.budget, supply)
        if abs(other.pretraining_fraction - best.pretraining_fraction) > _SAME_FRACTION:
            found.append(
                f"laws disagree: {name}, which is nearly as good on the left-out runs, would pretrain with "
                f"{other.pretraining_fraction:.0%} of the compute, {choice.law} with {best.pretraining_fraction:.0%}: "
                "add runs near either"
            )
    return found


def _bound_by_supply(runs: Runs, best: Allocation, question: Question, supply: Supply) -> list[str]:
    most_K = supply.most_specialization(np.array([best.pretraining]))[:, 0]
    bound = [
        name for name, most, spent in zip(runs.domains, most_K, best.specialization_K, strict=True) if 0 < most <= spent * 1.001
    ]
    found = []
    if bound:
        found.append(
            f"supply binds: {', '.join(bound)} {'has' if len(bound) == 1 else 'have'} no more tokens at "
            f"{supply.repetitions:g} repetitions"
        )
    if best.pretraining * 1.001 >= supply.most_pretraining():
        found.append(f"supply binds: pretraining takes all tokens {supply.repetitions:g} times")
    if best.flops < 0.99 * question.budget:
        found.append(f"supply binds: {1 - best.flops / question.budget:.0%} of the budget cannot be spent on these tokens")
    return found


def _poor_fit(runs: Runs, choice: Choice, fits: Sequence[Fit]) -> list[str]:
    judgement = choice.judgements[choice.law]
    found = []
    if judgement.mre > _GOOD_MRE or judgement.r2 < _GOOD_R2:
        found.append(f"poor fit: mean relative error {judgement.mre:.1%}, R² {judgement.r2:.3f}: look for runs that went wrong")
    if not choice.scales:
        found.append("no scale could be left out to choose the law on: add runs with at least three values of N, D or D'")
    loose = sorted({name for each in fits for name in each.at_bounds})
    if loose:
        found.append(f"the runs do not pin down {', '.join(loose)} of {choice.law}: add runs further apart")
    if not (runs.points.specialization_R == 0).any():
        found.append("no run is without specialization: what no split would reach is extrapolated")
    return found
