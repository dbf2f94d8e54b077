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
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from lmsplit.manifests.errors import ConfigurationError
from lmsplit.manifests.progress import Progress
from lmsplit.train.allocation import Allocation, Predictor, Supply, affordable, allocate, best_size, spend
from lmsplit.train.plan_warnings import warnings_of
from lmsplit.train.runs import Runs
from lmsplit.train.scaling import LAWS, Law
from lmsplit.train.scaling_choice import Choice, choose
from lmsplit.train.scaling_domains import OwnFits, bootstrap_any, fit_each
from lmsplit.train.scaling_fit import Fit, spread

REPETITIONS: Final = 4.0
"""Up to four passes over the same text are worth nearly as much as new text (arXiv 2305.16264)."""
_SMALLER, _LARGER = 0.1, 1000.0
"""Sizes that are looked at, over the smallest and the largest of the runs (assumption)."""
_NEAR_SIZE: Final = 0.01
_SHARE_DRAWS: Final = 50
"""Draws for which the budget is allocated anew, to see how far the best share of pretraining varies."""
_NULL: Final = "F0"


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
    """The law to use; None: see `scaling_choice`."""
    own_laws: bool = False
    """Fit each domain by itself, and give each a D' of its own; else all have the same D', however they are fitted."""
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
    laws: tuple[str, ...]
    """Names of the laws to choose from."""
    choice: Choice
    predictor: Predictor
    supply: Supply
    best: Allocation
    interval: tuple[float, float]
    """Of the best allocation's loss, 90 %."""
    fraction_interval: tuple[float, float]
    """Of the share for pretraining that is best for models of this size, 90 %."""
    alternatives: tuple[Alternative, ...]
    warnings: tuple[str, ...] = ()

    @property
    def is_split(self) -> bool:
        """Whether experts are worth training at all."""
        return bool(self.best.specialization_K.max() > 0)

    @property
    def domain_tokens(self) -> dict[str, int]:
        """D' of each domain, whole tokens."""
        return {name: int(tokens) for name, tokens in zip(self.domains, self.best.specialization_K, strict=True)}

    def constants(self, name: str) -> dict[str, Any]:
        """Return what was fitted of a law, N and tokens counted one by one: by name, and by domain where each has its own."""
        fitted = self.choice.judgements[name].fit
        if isinstance(fitted, OwnFits):
            of_domains = {domain: _constants(each, [domain]) for domain, each in zip(self.domains, fitted.fits, strict=True)}
            names = ["E", *(each.removeprefix("log ") for each in LAWS[name].parameter_names)]
            return {
                each: {domain: values["E"][domain] if each == "E" else values[each] for domain, values in of_domains.items()}
                for each in names
            }
        return _constants(fitted, self.domains)

    def to_json(self) -> dict[str, Any]:
        """Return the plan as one JSON object."""
        best = self.best
        laws = {
            name: {"formula": each.fit.law.formula, "mre": each.mre, "r2": each.r2, "heldout_mre": each.heldout_mre}
            | {"by_domain": isinstance(each.fit, OwnFits), "constants": self.constants(name)}
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


def _constants(fitted: Fit, domains: Sequence[str]) -> dict[str, Any]:
    values = fitted.parameters
    found: dict[str, Any] = {"E": dict(zip(domains, np.exp(values.log_floor_K).tolist(), strict=True))}
    for each, value in zip(fitted.law.parameter_names, values.vector()[len(domains) :].tolist(), strict=True):
        found[each.removeprefix("log ")] = float(np.exp(value)) if each.startswith("log ") else value
    return found


def recommend(
    runs: Runs,
    question: Question,
    supply_K: Sequence[float] | None = None,
    progress: Progress = lambda _stage, _done, _all: None,
) -> Plan:
    """Recommend how to spend a budget.

    Args:
        runs: what small runs reached.
        question: the budget, and what else is given.
        supply_K: (K,) training tokens of each domain; None where nothing is known.
        progress: called with a stage's name, how much of it is done, and how much there is.

    Raises:
        ConfigurationError: the runs are too few, or too much alike, for what is asked.
    """
    sizes = _sizes(runs, question)
    laws = _laws(runs, question)
    if question.own_laws:  # says which domain has too few runs
        fit_each(next(iter(laws.values())), runs.points, runs.loss_R, runs.domains)
    choice = choose(runs.points, runs.loss_R, laws, True if question.own_laws else None, runs.domains)
    num_domains = len(runs.domains)
    predictor = Predictor(choice.fit, num_domains, question.own_laws)
    supply = _supply(runs, question, supply_K)
    best = _best(predictor, sizes, runs, question.budget, supply)
    if best.pretraining < 1:
        raise ConfigurationError(
            f"a budget of {question.budget:.3g} FLOPs does not pay for one token: raise it, or plan for less"
        )
    draws = []
    for each in bootstrap_any(choice.fit, runs.points, runs.loss_R, question.num_draws):
        draws.append(replace(predictor, fit=each))
        progress("bootstrap", len(draws), question.num_draws)
    others = _alternatives(predictor, best, question, supply)
    if supply.for_experts and len(sizes) != 1:
        others["no split, best size"] = _best(predictor, sizes, runs, question.budget, replace(supply, for_experts=False))
    shares = [allocate(each, best.num_parameters, question.budget, supply).pretraining_fraction for each in draws[:_SHARE_DRAWS]]
    alternatives = tuple(
        Alternative(name, each, each.loss - best.loss, _gain_interval(best, each, draws)) for name, each in others.items()
    )
    plan = Plan(
        question,
        runs.domains,
        tuple(laws),
        choice,
        predictor,
        supply,
        best,
        spread(best.loss, [_loss(each, best) for each in draws]),
        spread(best.pretraining_fraction, shares),
        alternatives,
    )
    return replace(plan, warnings=tuple(warnings_of(plan, runs)))


def _supply(runs: Runs, question: Question, supply_K: Sequence[float] | None) -> Supply:
    tokens_K = np.full(len(runs.domains), np.inf) if supply_K is None else np.asarray(supply_K, float)
    supply = Supply(tokens_K, question.repetitions, has_experts(runs))
    if supply.most_pretraining() < 1:
        raise ConfigurationError(
            f"there are {tokens_K.sum():,.0f} training tokens for {question.repetitions:g} repetitions: not one to train on"
        )
    return supply


def has_experts(runs: Runs) -> bool:
    """Whether any run has specialization tokens."""
    return bool((runs.points.specialization_R > 0).any())


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


def _laws(runs: Runs, question: Question) -> dict[str, Law]:
    """Return the laws to choose from; without experts' runs only the null says anything."""
    if question.law is not None and question.law not in LAWS:
        raise ConfigurationError(f"there is no law {question.law!r}: choose one of {', '.join(LAWS)}")
    if not has_experts(runs):
        if question.law not in (None, _NULL):
            raise ConfigurationError(f"no run has specialization tokens, which law {question.law} is about: add runs of experts")
        return {_NULL: LAWS[_NULL]}
    if len(np.unique(runs.points.pretraining_R)) == 1:
        raise ConfigurationError(
            f"all runs have D = {runs.points.pretraining_R[0]:,.0f}, so nothing says what other numbers of pretraining tokens "
            "are worth: add runs with at least two more"
        )
    return LAWS if question.law is None else {question.law: LAWS[question.law]}


def _sizes(runs: Runs, question: Question) -> tuple[float, ...]:
    """Return the sizes to choose from; with runs of one size there is no choice."""
    points = runs.points
    groups = [points.num_parameters_R]
    if question.own_laws:
        groups = [points.num_parameters_R[points.domain_R == number] for number in range(len(runs.domains))]
    alone = {float(each[0]) for each in groups if len(np.unique(each)) == 1}
    if not alone:
        return question.sizes
    size = min(alone)
    if strange := [each for each in question.sizes if abs(each / size - 1) > _NEAR_SIZE]:
        raise ConfigurationError(
            f"all runs have {size:,.0f} parameters, which says nothing about {strange[0]:,.0f}: add runs of other sizes"
        )
    if len(np.unique(points.num_parameters_R)) > 1:
        raise ConfigurationError(
            f"all runs of a domain have {size:,.0f} parameters, those of others not: add runs, or leave --own-laws out"
        )
    return (size,)


def _best(predictor: Predictor, sizes: Sequence[float], runs: Runs, budget: float, supply: Supply) -> Allocation:
    if sizes:
        return min((allocate(predictor, size, budget, supply) for size in sizes), key=lambda each: each.loss)
    seen_R = runs.points.num_parameters_R
    return best_size(predictor, seen_R.min() * _SMALLER, seen_R.max() * _LARGER, budget, supply)


def _alternatives(predictor: Predictor, best: Allocation, question: Question, supply: Supply) -> dict[str, Allocation]:
    size = best.num_parameters
    tokens = affordable(size, question.budget, supply)
    unsplit = {"no split": spend(predictor, size, tokens, 0.0, supply)}
    if not supply.for_experts:
        return unsplit
    return unsplit | {
        "80/20": spend(predictor, size, 0.8 * tokens, 0.2 * tokens, supply),
        "dense continued": spend(predictor, size, best.pretraining + float(best.specialization_K.mean()), 0.0, supply),
    }


def _loss(predictor: Predictor, allocation: Allocation) -> float:
    """Return the loss that other laws predict for an allocation."""
    specialization_KG = allocation.specialization_K[:, None]
    return float(predictor.losses(allocation.num_parameters, np.array([allocation.pretraining]), specialization_KG).mean())


def _gain_interval(best: Allocation, other: Allocation, draws: Sequence[Predictor]) -> tuple[float, float]:
    gain = other.loss - best.loss
    gains = np.array([_loss(each, other) - _loss(each, best) for each in draws])
    low, high = np.quantile(gains, [0.05, 0.95])
    return min(float(low), gain), max(float(high), gain)
