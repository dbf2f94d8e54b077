"""A law fitted to all domains at once, which differ in their E_k alone, or to each domain by itself.

Real domains differ in more than a floor: templates are learned sooner than prose. Laws of their own need runs enough of each
domain. Both kinds of fit predict alike: `predict`, residuals, what the runs do not pin down.

Shapes: R runs, K domains.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from lmsplit.manifests.errors import ConfigurationError
from lmsplit.train.scaling import Floats, Law, Points
from lmsplit.train.scaling_fit import Fit, bootstrap, fit, huber_threshold, random_factors


@dataclass(frozen=True)
class OwnFits:
    """A law with parameters for each domain; has what a `Fit` has."""

    fits: tuple[Fit, ...]
    """K of them; each calls its domain number 0."""
    residual_R: Floats
    """log of predicted ÷ measured."""

    @property
    def law(self) -> Law:
        """The law that they have in common."""
        return self.fits[0].law

    @property
    def huber_delta(self) -> float:
        """The threshold that the residuals of all domains ask for."""
        return huber_threshold(self.residual_R)

    @property
    def num_free(self) -> int:
        """Parameters fitted."""
        return sum(each.num_free for each in self.fits)

    @property
    def is_pinned_down(self) -> bool:
        """Whether the runs of every domain tell all parameters apart."""
        return all(each.is_pinned_down for each in self.fits)

    def predict(self, points: Points) -> Floats:
        """Return (R,) the loss, nats per token."""
        loss_R = np.empty(len(points.domain_R))
        for domain, each in enumerate(self.fits):
            chosen_R = points.domain_R == domain
            loss_R[chosen_R] = each.predict(of_domain(points, domain))
        return loss_R

    def mean_relative_error(self) -> float:
        """Return the mean of |predicted − measured| ÷ measured over the runs."""
        return float(np.abs(np.expm1(self.residual_R)).mean())


AnyFit = Fit | OwnFits


def of_domain(points: Points, domain: int) -> Points:
    """Return the points of one domain, which is then number 0."""
    found = points.take(points.domain_R == domain)
    return found._replace(domain_R=np.zeros_like(found.domain_R))


def fit_each(law: Law, points: Points, loss_R: Floats, names: Sequence[str] = ()) -> OwnFits:
    """Fit a law to each domain by itself.

    Args:
        law: its form.
        points: of the runs.
        loss_R: (R,) their losses.
        names: of the domains, for errors; none: their numbers.

    Raises:
        ConfigurationError: there are fewer runs of a domain than parameters.
    """
    fits = []
    for domain in range(int(points.domain_R.max()) + 1):
        try:
            fits.append(fit(law, of_domain(points, domain), loss_R[points.domain_R == domain]))
        except ConfigurationError as error:
            name = names[domain] if names else domain
            raise ConfigurationError(f"domain {name}: {error}, or leave each domain a law of its own out") from error
    found = OwnFits(tuple(fits), np.zeros(0))
    return OwnFits(found.fits, np.log(found.predict(points) / loss_R))


def bootstrap_any(found: AnyFit, points: Points, loss_R: Floats, num_draws: int) -> Iterator[AnyFit]:
    """Fit the law again to losses with errors drawn anew: see `scaling_fit.bootstrap`; each domain by itself where it was so.

    A seed's luck is on all domains alike, and is drawn for them together.

    Args:
        found: the fit to all runs.
        points: of the runs.
        loss_R: (R,) their losses.
        num_draws: fits.
    """
    factors_BR = random_factors(points, num_draws)
    if isinstance(found, Fit):
        yield from bootstrap(found, points, loss_R, factors_BR)
        return
    by_domain = []
    for domain, each in enumerate(found.fits):
        chosen_R = points.domain_R == domain
        by_domain.append(bootstrap(each, of_domain(points, domain), loss_R[chosen_R], factors_BR[:, chosen_R]))
    for drawn in zip(*by_domain, strict=True):
        yield OwnFits(drawn, found.residual_R)


KINDS: Final[dict[bool, Callable[[Law, Points, Floats], AnyFit]]] = {False: fit, True: fit_each}
"""How a law is fitted: to each domain by itself, or to all."""
