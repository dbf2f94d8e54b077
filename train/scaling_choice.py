"""Chooses the law that predicts larger runs from smaller ones.

```
runs ─► without the largest N │ without the longest D' │ without the largest D ─► each law fitted, and judged on what was left out
     ─► the laws that no other is clearly ahead of ─► of these the one with the lowest BIC on all runs
```

Each law stands twice, for all domains together and, where the runs of each domain are enough for every law, for each by itself
(see `scaling_domains`).
Laws that say the same between the runs say different things past them, and past them is where a plan is made: so a law that does
worse on the runs of the largest scale is out. Between those that these runs cannot tell apart, within three standard errors of
their paired difference, the Bayesian information criterion decides, which asks for evidence before it takes more parameters.
Costs a few fits for each law.

Shapes: R runs.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from lmsplit.manifests.errors import ConfigurationError
from lmsplit.train.scaling import LAWS, Floats, Law, Points
from lmsplit.train.scaling_domains import KINDS, AnyFit, OwnFits, of_domain

_HELD_OUT_FRACTION: Final = 0.2
"""Share of the runs at the top of a scale that is left out, as nearly as its values allow (assumption)."""
_RUNS_PER_PARAMETER: Final = 2
"""Below this BIC prefers laws that go through every run (12 runs drawn from F1 chose F3, by hand)."""
_LEAST_VALUES: Final = 3
"""Different values of a scale below which leaving the largest out leaves nothing to extrapolate from."""

_STANDARD_ERRORS: Final = 3.0
"""How far behind on the left-out runs a law is out. With 1, chance ruled the generating law out in 1 of 48 draws (by hand)."""

Mask = npt.NDArray[np.bool_]


class Candidate(NamedTuple):
    """A law, and how it is fitted."""

    law: str
    by_domain: bool
    """To each domain by itself."""


class Judgement(NamedTuple):
    """How well a law does."""

    fit: AnyFit
    """To all runs; of all domains together, or of each by itself."""
    mre: float
    """Mean |predicted − measured| ÷ measured over the runs."""
    r2: float
    """Share of the variance of the losses within domains that it explains."""
    heldout_mre: float | None
    """The same as `mre` over runs of a scale that the fit did not see; None where none could be left out."""
    bic: float


@dataclass(frozen=True)
class Choice:
    """The law that is chosen, and how all of them did."""

    law: str
    judgements: dict[str, Judgement]
    """By law, in the order they were given; of all domains together or each by itself, whichever does better."""
    scales: tuple[str, ...]
    """Which scales were left out in turn."""
    has_own: bool
    """Whether laws of each domain's own were among those to choose from."""

    @property
    def fit(self) -> AnyFit:
        """The chosen law's."""
        return self.judgements[self.law].fit

    def rivals(self) -> list[str]:
        """Return the other laws whose error on left-out runs is at most twice the chosen law's."""
        best = self.judgements[self.law].heldout_mre
        others = {name: each.heldout_mre for name, each in self.judgements.items() if name != self.law}
        return [name for name, error in others.items() if best is not None and error is not None and error <= 2 * best]


def choose(
    points: Points,
    loss_R: Floats,
    laws: Mapping[str, Law] = LAWS,
    by_domain: bool | None = None,
    names: Sequence[str] = (),
) -> Choice:
    """Fit every law and choose one.

    Args:
        points: of the runs; domains are numbered from 0 without a gap.
        loss_R: (R,) held-out loss, nats per token.
        laws: by name, the simplest first; one alone is chosen without a contest.
        by_domain: whether each domain is fitted by itself; None: where that does better.
        names: of the domains, for errors; none: their numbers.

    Raises:
        ConfigurationError: there are fewer runs than the simplest law has parameters, or they are too much alike for any law.
    """
    fits = _fits(laws, points, loss_R, by_domain, names)
    errors: dict[Candidate, list[Floats]] = {each: [] for each in fits}
    scales = []
    for scale, heldout_R in heldout_scales(points).items():
        rest, rest_R = points.take(~heldout_R), loss_R[~heldout_R]
        able = _in_kind(each for each in errors if _is_enough(laws[each.law], rest, each.by_domain))
        if not able:
            continue
        scales.append(scale)
        errors = {each: errors[each] for each in able}  # a law that cannot be fitted without the largest runs cannot be judged
        for each in able:
            predicted_R = KINDS[each.by_domain](laws[each.law], rest, rest_R).predict(points.take(heldout_R))
            errors[each].append(np.abs(np.log(predicted_R / loss_R[heldout_R])))
    judgements = {each: _judge(found, points, loss_R, errors.get(each, [])) for each, found in fits.items()}
    left_out = {each: np.concatenate(found) for each, found in errors.items()} if scales else {}
    best = _best(judgements, left_out)
    of_laws = {}
    for name in laws:
        if both := {each: judgement for each, judgement in judgements.items() if each.law == name}:
            of_laws[name] = judgements[_best(both, {each: left_out[each] for each in both if each in left_out})]
    return Choice(best.law, of_laws | {best.law: judgements[best]}, tuple(scales), any(each.by_domain for each in judgements))


def _best(judgements: Mapping[Candidate, Judgement], left_out: Mapping[Candidate, Floats]) -> Candidate:
    able = _not_behind(left_out) if left_out else list(judgements)
    return min(able, key=lambda each: judgements[each].bic)


def heldout_scales(points: Points) -> dict[str, Mask]:
    """Return, for each scale, which runs are its largest; a scale is left out where too little would remain to learn it from."""
    scales = {"N": points.num_parameters_R, "D'": points.specialization_R, "D": points.pretraining_R}
    found = {}
    for name, value_R in scales.items():
        steps = np.unique(value_R[value_R > 0])
        if len(steps) < _LEAST_VALUES:
            continue
        fractions = [(value_R >= step).mean() for step in steps]
        heldout_R = value_R >= steps[np.argmin(np.abs(np.array(fractions) - _HELD_OUT_FRACTION))]
        rest = points.take(~heldout_R)
        if len(np.unique(value_R[~heldout_R])) > 1 and set(rest.domain_R) == set(points.domain_R):
            found[name] = heldout_R
    return found


def _is_enough(law: Law, points: Points, by_domain: bool) -> bool:
    """Whether there are enough runs to choose a law: twice as many as it has parameters, or it bends to every one of them."""
    runs_K = np.bincount(points.domain_R)
    if by_domain:
        sizes_K = [len(np.unique(points.num_parameters_R[points.domain_R == domain])) for domain in range(len(runs_K))]
        if min(sizes_K) == 1 < max(sizes_K):  # a law of a domain's own would not know what N is worth
            return False
        return bool(runs_K.min() >= _RUNS_PER_PARAMETER * (1 + len(law.parameter_names)))
    return len(points.domain_R) >= _RUNS_PER_PARAMETER * (len(runs_K) + len(law.parameter_names))


def _in_kind(candidates: Iterable[Candidate]) -> list[Candidate]:
    """Return the candidates, by domain only if all laws are: the null by domain would beat the others' shared fits unopposed."""
    found = list(candidates)
    shared, own = ({law for law, kind in found if kind == by_domain} for by_domain in (False, True))
    return [each for each in found if not each.by_domain or not shared or own >= shared]


def _fits(
    laws: Mapping[str, Law], points: Points, loss_R: Floats, by_domain: bool | None, names: Sequence[str]
) -> dict[Candidate, AnyFit]:
    """Fit each law that there are enough runs for, and that these tell all parameters of; the simplest one in any case."""
    is_one = not points.domain_R.any()  # domain: both kinds are the same
    kinds = ((False,) if is_one else (False, True)) if by_domain is None else (by_domain,)
    able = _in_kind(Candidate(name, kind) for name in laws for kind in kinds if _is_enough(laws[name], points, kind))
    candidates = able or [Candidate(next(iter(laws)), kinds[0])]
    fits = {each: KINDS[each.by_domain](laws[each.law], points, loss_R) for each in candidates}
    found = _in_kind(each for each, fitted in fits.items() if fitted.is_pinned_down)
    if not found:
        raise ConfigurationError(_not_pinned_down(fits, points, names))
    return {each: fits[each] for each in found}


def _not_pinned_down(fits: Mapping[Candidate, AnyFit], points: Points, names: Sequence[str]) -> str:
    """Say which runs are too much alike: all, or those of the first domain that is fitted by itself and not pinned down."""
    whose, chosen = "the runs", points
    last = list(fits.values())[-1]
    if isinstance(last, OwnFits):
        domain = next(number for number, each in enumerate(last.fits) if not each.is_pinned_down)
        whose, chosen = f"the runs of {names[domain] if names else f'domain {domain}'}", of_domain(points, domain)
    spans = {"N": chosen.num_parameters_R, "D": chosen.pretraining_R, "D'": chosen.specialization_R}
    values = ", ".join(f"{len(np.unique(value_R))} of {name}" for name, value_R in spans.items())
    laws = ", ".join(dict.fromkeys(each.law for each in fits))
    return f"{whose} do not pin {laws} down: they have {values}; add runs of other sizes and tokens"


def _judge(found: AnyFit, points: Points, loss_R: Floats, errors: list[Floats]) -> Judgement:
    predicted_R = loss_R * np.exp(found.residual_R)
    num_domains = int(points.domain_R.max()) + 1
    means_K = np.bincount(points.domain_R, loss_R, num_domains) / np.maximum(
        1, np.bincount(points.domain_R, minlength=num_domains)
    )
    total = float(np.square(loss_R - means_K[points.domain_R]).sum())
    r2 = 1 - float(np.square(predicted_R - loss_R).sum()) / total if total else 0.0
    heldout = float(np.expm1(np.concatenate(errors)).mean()) if errors else None
    size = np.abs(found.residual_R)
    delta = found.huber_delta
    huber = np.where(size <= delta, size**2, 2 * delta * size - delta**2).mean()
    bic = len(loss_R) * float(np.log(max(huber, 1e-30))) + found.num_free * float(np.log(len(loss_R)))
    return Judgement(found, found.mean_relative_error(), r2, heldout, bic)


def _not_behind(errors: Mapping[Candidate, Floats]) -> list[Candidate]:
    """Return the laws whose errors are at most so many standard errors of the paired difference above the best one's."""
    best = errors[min(errors, key=lambda name: float(errors[name].mean()))]
    near = []
    for name, each in errors.items():
        difference = each - best
        if difference.mean() <= _STANDARD_ERRORS * difference.std() / np.sqrt(len(difference)):
            near.append(name)
    return near
