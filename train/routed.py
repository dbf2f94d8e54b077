"""Where a router sends prompts, as numbers among a manifest's domains; and the temperature that its scores ask for.

A hand-over may hold some of the rule's domains only: a prompt that belongs to another one has no expert here, and is the seed's.

Shapes: N prompts, K domains of the manifest.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from lmsplit.train.campaign import Campaign
from lmsplit.train.heldout import evenly_chosen
from lmsplit.train.mixing import TEMPERATURE, fit_temperature
from lmsplit.train.router import Router

_FITTED_ON: Final = 50
"""Training documents of a domain that the temperature is fitted on (assumption)."""


class Routed(NamedTuple):
    """Where prompts go."""

    domain_N: npt.NDArray[np.int64]
    """Number of the domain; -1 where the encoder finds nothing, or the manifest lacks the domain: the seed answers."""
    scores_NK: npt.NDArray[np.float64]
    """How well each prompt fits each domain; 0 where the encoder finds nothing."""


def routed(router: Router, prompts: Sequence[str], domains: Sequence[str]) -> Routed:
    """Route prompts.

    Args:
        router: of the training.
        prompts: their texts.
        domains: names of the manifest's domains.
    """
    numbers = {name: number for number, name in enumerate(domains)}
    routes = router.route(prompts)
    domain_N = np.array([numbers.get(str(route.domain), -1) for route in routes], np.int64)
    scores_NK = np.array([[route.scores.get(name, 0.0) for name in domains] for route in routes], np.float64)
    return Routed(domain_N, scores_NK)


def fitted_temperature(campaign: Campaign, router: Router, prompt_tokens: int) -> float:
    """Return the temperature of mixtures, fitted on prompts of training documents of every domain.

    Args:
        campaign: the manifest and the tokenizer.
        router: of the training.
        prompt_tokens: length of the prompts.
    """
    names = [each.domain for each in campaign.manifest.domains]
    texts: list[str] = []
    domains: list[int] = []
    for number, name in enumerate(names):
        batches = evenly_chosen(campaign.manifest, name, "train", _FITTED_ON, ["text"])
        found = [text for batch in batches for text in batch.column("text").to_pylist()]
        texts += found
        domains += [number] * len(found)
    found_N = routed(router, campaign.encoder.beginnings(texts, prompt_tokens), names)
    known_N = found_N.domain_N >= 0
    if len(names) == 1 or not known_N.any():
        return TEMPERATURE
    return fit_temperature(found_N.scores_NK[known_N], np.array(domains)[known_N])
