"""What should make a reader of a plan wary: it goes past the runs, laws disagree, the supply binds, the fit is poor.

This does *not* change a plan.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import numpy as np

from lmsplit.train.allocation import allocate
from lmsplit.train.runs import Runs
from lmsplit.train.scaling_domains import AnyFit, OwnFits

if TYPE_CHECKING:
    from lmsplit.train.plan import Plan

_FAR: Final = 1.05
"""How far past the runs a plan goes before it says so."""
_GOOD_MRE: Final = 0.02
_GOOD_R2: Final = 0.9
_SAME_FRACTION: Final = 0.1
"""A worse fit is called poor; laws whose best shares of pretraining differ by more disagree (assumptions)."""


def warnings_of(plan: "Plan", runs: Runs) -> list[str]:
    """Return a sentence for each reason to be wary.

    Args:
        plan: the plan.
        runs: what it was made from.
    """
    found = [*_past_the_runs(plan, runs), *_disagreements(plan), *_bound_by_supply(plan)]
    found += [*_laws_left_out(plan), *_poor_fit(plan), *_missing_runs(plan, runs)]
    if runs.num_duplicates:
        found.append(f"{runs.num_duplicates} rows of the runs are there before, with the same loss: each is counted once")
    return found


def _past_the_runs(plan: "Plan", runs: Runs) -> list[str]:
    """Say where the plan goes past what a law was fitted to: all runs, or those of each domain."""
    points, best = runs.points, plan.best
    planned_K = {
        "N": np.full(len(plan.domains), best.num_parameters),
        "D": np.full(len(plan.domains), best.pretraining),
        "D'": best.specialization_K,
    }
    values_R = {"N": points.num_parameters_R, "D": points.pretraining_R, "D'": points.specialization_R}
    is_own = isinstance(plan.choice.fit, OwnFits)
    found = []
    for name, value_R in values_R.items():
        ranges = []
        for domain, value in enumerate(planned_K[name]):
            seen_R = value_R[(value_R > 0) & ((points.domain_R == domain) | (not is_own))]
            if value > 0 and len(seen_R):
                ranges.append((float(value), float(seen_R.min()), float(seen_R.max()), f" of {plan.domains[domain]}" * is_own))
        if not ranges:
            continue
        value, _, most, whose = max(ranges, key=lambda each: each[0] / each[2])
        if value > _FAR * most:
            found.append(f"extrapolates: {name} = {value:.3g} is {value / most:.3g} times the largest run's{whose}")
        value, least, _, whose = min(ranges, key=lambda each: each[0] / each[1])
        if value * _FAR < least:
            found.append(f"extrapolates: {name} = {value:.3g} is below the smallest run's{whose}, {least:.3g}")
    return found


def _disagreements(plan: "Plan") -> list[str]:
    found, best, choice = [], plan.best, plan.choice
    for name in choice.rivals():
        predictor = replace(plan.predictor, fit=choice.judgements[name].fit)
        other = allocate(predictor, best.num_parameters, plan.question.budget, plan.supply)
        pretraining_G, specialization_KG = np.array([best.pretraining]), best.specialization_K[:, None]
        loss = float(predictor.losses(best.num_parameters, pretraining_G, specialization_KG).mean())
        if abs(other.pretraining_fraction - best.pretraining_fraction) > _SAME_FRACTION:
            found.append(
                f"laws disagree: {name}, which is nearly as good on the left-out runs, would pretrain with "
                f"{other.pretraining_fraction:.0%} of the compute, {choice.law} with {best.pretraining_fraction:.0%}: "
                "add runs near either"
            )
        elif not plan.interval[0] <= loss <= plan.interval[1]:
            found.append(f"laws disagree: {name}, nearly as good on the left-out runs, predicts {loss:.4f}, outside the interval")
    return found


def _bound_by_supply(plan: "Plan") -> list[str]:
    best, supply, found = plan.best, plan.supply, []
    if empty := [name for name, tokens in zip(plan.domains, supply.tokens_K, strict=True) if tokens == 0]:
        found.append(f"supply binds: no training tokens of {', '.join(empty)}")
    most_K = supply.most_specialization(np.array([best.pretraining]))[:, 0]
    spent = zip(plan.domains, most_K, best.specialization_K, strict=True)
    if bound := [name for name, most, tokens in spent if 0 < most <= tokens * 1.001]:
        have = "has" if len(bound) == 1 else "have"
        found.append(f"supply binds: {', '.join(bound)} {have} no more tokens at {supply.repetitions:g} repetitions")
    if best.pretraining * 1.001 >= supply.most_pretraining():
        found.append(f"supply binds: pretraining takes all tokens {supply.repetitions:g} times")
    if best.flops < 0.99 * plan.question.budget:
        found.append(f"supply binds: {1 - best.flops / plan.question.budget:.0%} of the budget cannot be spent on these tokens")
    return found


def _laws_left_out(plan: "Plan") -> list[str]:
    """Say which laws were no choice; the null law, which is the last to go, never splits."""
    left_out = [name for name in plan.laws if name not in plan.choice.judgements]
    if not left_out:
        return []
    of_domains = " of each domain" if plan.question.own_laws else ""
    advice = "add runs, or leave --own-laws out" if plan.question.own_laws else "add runs"
    return [
        f"the runs{of_domains} are too few, or too much alike, for {', '.join(left_out)}: the choice was among "
        f"{', '.join(plan.choice.judgements)}; {advice}"
    ]


def _poor_fit(plan: "Plan") -> list[str]:
    choice, found = plan.choice, []
    judgement = choice.judgements[choice.law]
    mre = judgement.mre
    if mre > _GOOD_MRE or judgement.r2 < _GOOD_R2:
        alone = "" if choice.has_own or len(plan.domains) == 1 else ", or add some of each domain, for laws of their own"
        found.append(
            f"poor fit: mean relative error {mre:.1%}, R² {judgement.r2:.3f} within domains: look for runs that went wrong{alone}"
        )
    if not choice.scales:
        found.append("no scale could be left out to choose the law on: add runs, with at least three values of N, D or D'")
    if loose := _loose(judgement.fit, plan.domains):
        found.append(f"the runs do not pin down {', '.join(loose)} of {choice.law}: add runs further apart")
    return found


def _loose(fit: AnyFit, domains: Sequence[str]) -> list[str]:
    """Return the parameters that the runs do not pin down."""
    if isinstance(fit, OwnFits):
        return [
            f"{name} of {domain}" if name != f"E of {domain}" else name
            for domain, each in zip(domains, fit.fits, strict=True)
            for name in _loose(each, [domain])
        ]
    names = {f"log E_{number}": f"E of {name}" for number, name in enumerate(domains)}
    loose = sorted(names.get(each, each) for each in fit.at_bounds)
    return loose if fit.is_pinned_down else [*loose, "all parameters"]


def _missing_runs(plan: "Plan", runs: Runs) -> list[str]:
    """Say which domains have no experts, or nothing but experts, among the runs."""
    points, found = runs.points, []
    has_K = [(points.specialization_R[points.domain_R == domain] > 0) for domain in range(len(plan.domains))]
    without = [name for name, has in zip(plan.domains, has_K, strict=True) if not has.any()]
    only = [name for name, has in zip(plan.domains, has_K, strict=True) if has.all()]
    if len(without) == len(plan.domains):
        found.append("no run has specialization tokens: what experts would gain is not known, and the plan is for one model")
    elif without:
        found.append(f"no run of {', '.join(without)} has specialization tokens: what its expert gains is taken from the others'")
    if len(only) == len(plan.domains):
        found.append("no run is without specialization: what no split would reach is extrapolated")
    elif only:
        found.append(f"no run of {', '.join(only)} is without specialization: what no split would reach there is extrapolated")
    return found
