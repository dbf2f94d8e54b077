"""Fits what a router needs to know of prompts, on training documents: a rule for them, and the temperatures of mixtures.

Prompts are cut from documents that are evenly chosen from every domain, in turn to each of the given lengths; half of them are
beginnings, the others start anywhere, since prompts are not all alike. Their domains are the manifest's, so labels are not
needed, and nothing held out is seen. The rule is linear discriminant analysis: prompts of all domains have one covariance, shrunk
as Ledoit and Wolf do, and a domain's prior is its share of the training documents. A closed form, by scikit-learn.

By cross-validation the rule decides up to the length at which most prompts are routed right, longer ones by the manifest's; where
it has too few to learn from it decides none. Its temperature is fitted on scores by rules that have not seen the prompt.

Shapes: N prompts, D dimensions, K domains.
"""

import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import numpy as np
import numpy.typing as npt

from lmsplit.manifests.layout import domain_index
from lmsplit.manifests.placement import Floats, is_unit
from lmsplit.train.campaign import Campaign
from lmsplit.train.heldout import evenly_chosen
from lmsplit.train.mixing import TEMPERATURE, fit_temperature
from lmsplit.train.prompt_rule import POSTERIOR, FittedRouting, PromptRule
from lmsplit.train.router import Router, scores

Integers = npt.NDArray[np.int64]

_DOCUMENTS: Final = 6000
"""That prompts are cut from, in all (assumption: with a third of them 12 domains are told apart a point less often)."""
_OF_A_DOMAIN: Final = 50
"""At least, however many domains there are (assumption)."""
_FOLDS: Final = 5
_CHARACTERS: Final = 16
"""Of text for each token of a prompt, more than it needs."""


def fit_routing(campaign: Campaign, router: Router, lengths: Sequence[int]) -> FittedRouting:
    """Fit the rule for prompts, and the temperatures for both rules.

    Args:
        campaign: the manifest and the tokenizer.
        router: of the training; its encoder and rule are asked.
        lengths: of prompts, in tokens.
    """
    texts, domain_N = _documents(campaign)
    prompts = _prompts(campaign, texts, _places(domain_N), lengths)
    vectors_ND = router.vectors(prompts)
    found = np.flatnonzero(is_unit(vectors_ND))
    vectors_ND, domain_N = vectors_ND[found], domain_N[found]
    placement = _temperature(scores(router.placement_rule, vectors_ND), domain_N, TEMPERATURE)
    if len(campaign.manifest.domains) != router.placement_rule.num_domains:  # a hand-over: some prompts are none of its experts'
        return FittedRouting(placement, None, POSTERIOR)
    shares_K = np.array([each.splits["train"] for each in campaign.manifest.domains])
    scores_NK = _scores_of_others(vectors_ND, domain_N, shares_K)
    rule = fit_prompt_rule(vectors_ND, domain_N, shares_K)
    if scores_NK is None or rule is None:
        return FittedRouting(placement, None, POSTERIOR)
    as_placed_N = router.placement_rule.place_units(vectors_ND).domain
    length_N = np.array([len(prompts[each]) for each in found])
    limit = better_up_to(length_N, scores_NK.argmax(axis=1) == domain_N, as_placed_N == domain_N)
    if limit is None:
        return FittedRouting(placement, None, POSTERIOR)
    short_N = length_N <= limit
    temperature = _temperature(scores_NK[short_N], domain_N[short_N], POSTERIOR)
    return FittedRouting(placement, replace(rule, max_characters=limit), temperature)


def fit_prompt_rule(vectors_ND: npt.ArrayLike, domain_N: npt.ArrayLike, shares_K: npt.ArrayLike) -> PromptRule | None:
    """Fit the rule to the vectors of prompts by linear discriminant analysis.

    Args:
        vectors_ND: unit rows.
        domain_N: where each prompt's document belongs.
        shares_K: of the training documents, by domain; the prior. Domains without a prompt are never chosen.

    Returns:
        None where there are fewer than two domains, or no two prompts of any; else a rule for texts of any length.
    """
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    vectors, domains, shares = np.asarray(vectors_ND, np.float64), np.asarray(domain_N), np.asarray(shares_K, np.float64)
    seen = np.unique(domains)
    if len(seen) < 2 or len(domains) <= len(seen):
        return None
    priors = shares[seen] / shares[seen].sum()
    model = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto", priors=priors).fit(vectors, domains)
    weights_KD = np.zeros((len(shares), vectors.shape[1]), np.float32)
    offsets_K = np.full(len(shares), -np.inf)
    if len(seen) == 2:  # scikit-learn keeps how far the second is above the first
        weights_KD[seen[1]], offsets_K[seen] = model.coef_[0], (0.0, model.intercept_[0])
    else:
        weights_KD[seen], offsets_K[seen] = model.coef_, model.intercept_
    return PromptRule(weights_KD, offsets_K, sys.maxsize)


def _scores_of_others(vectors_ND: Floats, domain_N: Integers, shares_K: Integers) -> npt.NDArray[np.float64] | None:
    """Return (N, K) each prompt's scores by the rule that is fitted to the others' documents; None where one cannot be fitted."""
    scores_NK = np.zeros((len(domain_N), len(shares_K)))
    fold_N = _places(domain_N) % _FOLDS
    for fold in range(_FOLDS):
        rule = fit_prompt_rule(vectors_ND[fold_N != fold], domain_N[fold_N != fold], shares_K)
        if rule is None:
            return None
        scores_NK[fold_N == fold] = rule.scores(vectors_ND[fold_N == fold])
    return scores_NK


def better_up_to(length_N: npt.ArrayLike, right_N: npt.ArrayLike, otherwise_N: npt.ArrayLike) -> int | None:
    """Return the length up to which one way should decide, and beyond which another, so that most are right in all.

    Args:
        length_N: of each prompt.
        right_N: whether the one way is right.
        otherwise_N: whether the other one is.

    Returns:
        The least such length; None where the other way should decide all.

    >>> better_up_to([5, 9, 9, 20], [1, 1, 0, 0], [0, 0, 0, 1])
    9
    """
    length, gain = np.asarray(length_N), np.asarray(right_N, np.int64) - np.asarray(otherwise_N, np.int64)
    limits, place_N = np.unique(length, return_inverse=True)
    if not len(limits):
        return None
    gains = np.cumsum(np.bincount(place_N, weights=gain))
    best = int(gains.argmax())
    return int(limits[best]) if gains[best] > 0 else None


def _prompts(campaign: Campaign, texts: list[str], place_N: Integers, lengths: Sequence[int]) -> list[str]:
    """Cut a prompt from each text: in turn a beginning and one from anywhere, of each length."""
    random = np.random.default_rng(0)
    length_N = np.array(lengths)[place_N // 2 % len(lengths)]
    prompts = [""] * len(texts)
    for length in sorted(set(lengths)):
        chosen = np.flatnonzero(length_N == length).tolist()
        parts = [_part(texts[each], length, bool(place_N[each] % 2), random) for each in chosen]
        for each, prompt in zip(chosen, campaign.encoder.beginnings(parts, length), strict=True):
            prompts[each] = prompt
    return prompts


def _documents(campaign: Campaign) -> tuple[list[str], Integers]:
    """Return texts of training documents, evenly chosen from every domain, and the numbers of their domains."""
    texts: list[str] = []
    numbers: list[int] = []
    domains = campaign.manifest.domains
    for each in domains:
        wanted = max(_OF_A_DOMAIN, _DOCUMENTS // len(domains))
        for batch in evenly_chosen(campaign.manifest, each.domain, "train", wanted, ["text"]):
            texts += batch.column("text").to_pylist()
            numbers += [domain_index(each.domain)] * batch.num_rows
    return texts, np.array(numbers, np.int64)


def _places(domain_N: Integers) -> Integers:
    """Return (N,) how many of the same domain come before each."""
    place_N = np.zeros(len(domain_N), np.int64)
    for domain in np.unique(domain_N):
        place_N[domain_N == domain] = np.arange((domain_N == domain).sum())
    return place_N


def _part(text: str, length: int, anywhere: bool, random: np.random.Generator) -> str:
    """Return enough of a text for a prompt, from its beginning or from a word anywhere that leaves enough after it."""
    needed = _CHARACTERS * length
    if not anywhere or len(text) <= length:
        return text[:needed]
    start = int(random.integers(max(1, len(text) - needed // 4)))
    start = text.find(" ", start) + 1 if start else 0
    return text[start : start + needed]


def _temperature(scores_NK: npt.NDArray[np.float64], domain_N: Integers, otherwise: float) -> float:
    """Return the T that says best where prompts belong, from those that may be routed there."""
    possible_N = np.isfinite(scores_NK[np.arange(len(domain_N)), domain_N])
    if scores_NK.shape[1] == 1 or not possible_N.any():
        return otherwise
    return fit_temperature(scores_NK[possible_N], domain_N[possible_N])
