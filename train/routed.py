"""Where a router sends prompts, as numbers among a manifest's domains.

A hand-over may hold some of the rule's domains only: a prompt that belongs to another one has no expert here, and is the seed's.

Shapes: N prompts, K domains of the manifest.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from lmsplit.manifests.placement import Floats
from lmsplit.train.router import Router


class Routed(NamedTuple):
    """Where prompts go."""

    domain_N: npt.NDArray[np.int64]
    """Number of the domain; -1 where the encoder finds nothing, or the manifest lacks the domain: the seed answers."""
    scores_NK: npt.NDArray[np.float64]
    """How well each prompt fits each domain, over the temperature, so that exp(2 · score) weighs experts; -inf where it cannot
    go, 0 where the encoder finds nothing.
    """


def routed(router: Router, prompts: Sequence[str], vectors_ND: Floats, domains: Sequence[str]) -> Routed:
    """Route prompts.

    Args:
        router: of the training.
        prompts: their texts.
        vectors_ND: the prompts', as `Router.vectors` has them.
        domains: names of the manifest's domains.
    """
    numbers = {name: number for number, name in enumerate(domains)}
    routes = router.route_vectors(prompts, vectors_ND)
    domain_N = np.array([numbers.get(str(route.domain), -1) for route in routes], np.int64)
    scores_NK = np.array(
        [[route.scores.get(name, -np.inf if route.scores else 0.0) / route.temperature for name in domains] for route in routes]
    )
    return Routed(domain_N, scores_NK)
