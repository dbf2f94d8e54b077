"""What should make a reader of a plan wary: it goes past the runs, laws disagree, the supply binds, the fit is poor.

This does *not* change a plan.
"""

from typing import TYPE_CHECKING, Final

import numpy as np

from lmsplit.train.allocation import Predictor, allocate
from lmsplit.train.runs import Runs

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
    found = [*_past_the_runs(plan, runs), *_disagreements(plan, runs), *_bound_by_supply(plan)]
    return [*found, *_laws_left_out(plan), *_poor_fit(plan, runs)]


def _past_the_runs(plan: "Plan", runs: Runs) -> list[str]:
    points, best = runs.points, plan.best
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


def _disagreements(plan: "Plan", runs: Runs) -> list[str]:
    found, best, choice = [], plan.best, plan.choice
    for name in choice.rivals():
        predictor = Predictor([choice.judgements[name].fit], len(runs.domains))
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


def _poor_fit(plan: "Plan", runs: Runs) -> list[str]:
    choice, found = plan.choice, []
    judgement = choice.judgements[choice.law]
    mre = judgement.mre
    if mre > _GOOD_MRE or judgement.r2 < _GOOD_R2:
        found.append(
            f"poor fit: mean relative error {mre:.1%}, R² {judgement.r2:.3f} within domains: look for runs that went wrong"
        )
    if not choice.scales:
        found.append("no scale could be left out to choose the law on: add runs, with at least three values of N, D or D'")
    loose = set(judgement.fit.at_bounds)
    if not judgement.fit.is_pinned_down:
        loose.add("all parameters")
    if loose:
        names = {f"log E_{number}": f"E of {name}" for number, name in enumerate(plan.domains)}
        shown = ", ".join(sorted(names.get(each, each) for each in loose))
        found.append(f"the runs do not pin down {shown} of {choice.law}: add runs further apart")
    if len(np.unique(runs.points.specialization_R)) == 1:
        found.append("no run has specialization tokens: what experts would gain is not known, and the plan is for one model")
    elif not (runs.points.specialization_R == 0).any():
        found.append("no run is without specialization: what no split would reach is extrapolated")
    return found
