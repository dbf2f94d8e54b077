"""Fits what a router needs to know of prompts, on training documents: a rule for them, and the temperatures of mixtures.

Prompts are cut from documents that are evenly chosen from every domain, in turn to each of the given lengths; half of them are
beginnings, the others start anywhere, since prompts are not all alike. Their domains are the manifest's, so labels are not
needed, and nothing held out is seen. The rule is linear discriminant analysis: prompts of all domains have one covariance, the
mean of the domains' own, each shrunk as Ledoit and Wolf do; before a prompt is seen all domains are equally likely, since nobody
knows what will be asked. A closed form, by scikit-learn.

Cross-validation by group says up to which length the rule routes prompts better than the manifest's does, beyond the error of the
comparison; longer ones are left to the manifest's, and all of them where there are too few to learn from. Its temperature is
fitted on scores by rules that have not seen the prompt. Documents that the experts' `where` leaves out are not read. Cost: the
training split is read once, and a prompt of each document that is chosen is encoded.

Shapes: N prompts, D dimensions, K domains, G groups.
"""

import re
import sys
import warnings
import zlib
from collections.abc import Callable, Sequence
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

LENGTHS: Final = (8, 16, 32, 64, 128, 256)
"""Tokens of prompts: whatever is evaluated, the rule is for all of them."""
_LIMITS: Final = 20
"""Lengths, evenly spread over the prompts, of which one is chosen as the limit: of more the best would be luck more often."""
_DOCUMENTS: Final = 6000
"""That prompts are cut from, in all (assumption: with a third of them 12 domains are told apart a point less often)."""
_OF_A_DOMAIN: Final = 50
"""At least, however many domains there are (assumption)."""
_FOLDS: Final = 5
_CHARACTERS: Final = 16
"""Of text for each token of a prompt, more than it needs."""
_AT_ONCE: Final = 500
_SPACE: Final = re.compile(r"\s+")


def fit_routing(
    campaign: Campaign,
    router: Router,
    lengths: Sequence[int] = LENGTHS,
    progress: Callable[[int, int], None] = lambda _done, _all: None,
) -> FittedRouting:
    """Fit the rule for prompts, and the temperatures for both rules.

    Args:
        campaign: the manifest and the tokenizer.
        router: of the training; its encoder and rule are asked.
        lengths: of prompts, in tokens.
        progress: called with how many prompts are encoded, and how many there are.
    """
    manifest = campaign.manifest.digest
    texts, domain_N, groups = _documents(campaign)
    if not texts:
        return FittedRouting(manifest, TEMPERATURE, None, POSTERIOR)
    prompts = _prompts(campaign, texts, _places(domain_N), lengths)
    vectors_ND = _vectors(router, prompts, progress)
    found = np.flatnonzero(is_unit(vectors_ND))
    vectors_ND, domain_N, groups = vectors_ND[found], domain_N[found], [groups[each] for each in found]
    placement_NK = scores(router.placement_rule, vectors_ND)
    without = FittedRouting(manifest, _temperature(placement_NK, domain_N, TEMPERATURE), None, POSTERIOR)
    num_domains = len(campaign.manifest.domains)
    if num_domains != router.placement_rule.num_domains:  # a hand-over: some prompts are none of its experts'
        return without
    scores_NK = _scores_of_others(vectors_ND, domain_N, groups, num_domains)
    rule = fit_prompt_rule(vectors_ND, domain_N, num_domains)
    if scores_NK is None or rule is None:
        return without
    as_placed_N = router.placement_rule.place_units(vectors_ND).domain
    length_N = np.array([len(prompts[each]) for each in found])
    right_N, otherwise_N = scores_NK.argmax(axis=1) == domain_N, as_placed_N == domain_N
    limit = better_up_to(length_N, right_N, otherwise_N, _per_domain(domain_N), groups)
    if limit is None:
        return without
    short_N = length_N <= limit
    long_N = ~short_N if not short_N.all() else short_N
    return FittedRouting(
        manifest,
        _temperature(placement_NK[long_N], domain_N[long_N], TEMPERATURE),
        replace(rule, max_characters=limit),
        _temperature(scores_NK[short_N], domain_N[short_N], POSTERIOR),
    )


def fit_prompt_rule(vectors_ND: npt.ArrayLike, domain_N: npt.ArrayLike, num_domains: int) -> PromptRule | None:
    """Fit the rule to the vectors of prompts by linear discriminant analysis.

    Args:
        vectors_ND: unit rows.
        domain_N: where each prompt's document belongs.
        num_domains: K. Domains without a prompt are never chosen, the others are equally likely before the prompt is seen.

    Returns:
        None where there are fewer than two domains, or no two prompts of any; else a rule for texts of any length.
    """
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    vectors, domains = np.asarray(vectors_ND, np.float64), np.asarray(domain_N)
    seen = np.unique(domains)
    if len(seen) < 2 or len(domains) <= len(seen):
        return None
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Only one sample available")  # of a domain: it has a mean, the others' covariance
        priors = np.full(len(seen), 1 / len(seen))
        model = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto", priors=priors).fit(vectors, domains)
    weights_KD = np.zeros((num_domains, vectors.shape[1]), np.float32)
    offsets_K = np.full(num_domains, -np.inf)
    if len(seen) == 2:  # scikit-learn keeps how far the second is above the first
        weights_KD[seen[1]], offsets_K[seen] = model.coef_[0], (0.0, model.intercept_[0])
    else:
        weights_KD[seen], offsets_K[seen] = model.coef_, model.intercept_
    return PromptRule(weights_KD, offsets_K, sys.maxsize)


def better_up_to(
    length_N: npt.ArrayLike,
    right_N: npt.ArrayLike,
    otherwise_N: npt.ArrayLike,
    weight_N: npt.ArrayLike,
    group_N: Sequence[object],
    errors: float = 3.0,
) -> int | None:
    """Return the length up to which one way should decide, and beyond which another.

    That is where the gain of the one way over the other, less so many of its standard errors, is highest.

    Args:
        length_N: of each prompt.
        right_N: whether the one way is right.
        otherwise_N: whether the other one is.
        weight_N: what each prompt counts.
        group_N: prompts of one group err alike.
        errors: how many standard errors the gain is lowered by.

    Returns:
        The least such length, of some; None where the other way should decide all.

    >>> better_up_to([5, 9, 9, 20], [1, 1, 0, 0], [0, 0, 0, 1], [1, 1, 1, 1], "abcd", errors=0)
    9
    """
    lengths_N = np.asarray(length_N)
    if not len(lengths_N):
        return None
    gain_N = (np.asarray(right_N, np.float64) - np.asarray(otherwise_N, np.float64)) * np.asarray(weight_N, np.float64)
    _, group_of_N = np.unique(np.array(list(group_N)), return_inverse=True)
    limits = np.unique(np.quantile(lengths_N, np.arange(1, _LIMITS + 1) / _LIMITS, method="inverted_cdf"))
    lower = []
    for limit in limits:
        gain_G = np.bincount(group_of_N, gain_N * (lengths_N <= limit))
        lower.append(gain_G.sum() - errors * np.sqrt(gain_G @ gain_G))
    best = int(np.argmax(lower))
    return int(limits[best]) if lower[best] > 0 else None


def _scores_of_others(
    vectors_ND: Floats, domain_N: Integers, groups: Sequence[str], num_domains: int
) -> npt.NDArray[np.float64] | None:
    """Return (N, K) each prompt's scores by the rule that is fitted to other groups; None where one cannot be fitted."""
    scores_NK = np.zeros((len(domain_N), num_domains))
    fold_N = np.array([zlib.crc32(group.encode()) % _FOLDS for group in groups])
    for fold in np.unique(fold_N):
        rule = fit_prompt_rule(vectors_ND[fold_N != fold], domain_N[fold_N != fold], num_domains)
        if rule is None:
            return None
        scores_NK[fold_N == fold] = rule.scores(vectors_ND[fold_N == fold])
    return scores_NK


def _per_domain(domain_N: Integers) -> npt.NDArray[np.float64]:
    """Return (N,) weights by which all domains count alike."""
    return 1 / np.bincount(domain_N)[domain_N]


def _vectors(router: Router, prompts: Sequence[str], progress: Callable[[int, int], None]) -> Floats:
    """Encode prompts, some at a time."""
    parts = []
    for start in range(0, len(prompts), _AT_ONCE):
        parts.append(router.vectors(prompts[start : start + _AT_ONCE]))
        progress(min(start + _AT_ONCE, len(prompts)), len(prompts))
    return np.concatenate(parts)


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


def _documents(campaign: Campaign) -> tuple[list[str], Integers, list[str]]:
    """Return texts of training documents, evenly chosen from every domain, the numbers of their domains, and their groups."""
    texts: list[str] = []
    groups: list[str] = []
    numbers: list[int] = []
    domains, training = campaign.manifest.domains, campaign.configuration
    where = training.expert.where or training.where
    for each in domains:
        wanted = max(_OF_A_DOMAIN, _DOCUMENTS // len(domains))
        for batch in evenly_chosen(campaign.manifest, each.domain, "train", wanted, ["doc_id", "text", "group"], where):
            texts += batch.column("text").to_pylist()
            groups += [row["group"] or row["doc_id"] for row in batch.select(["doc_id", "group"]).to_pylist()]
            numbers += [domain_index(each.domain)] * batch.num_rows
    return texts, np.array(numbers, np.int64), groups


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
    space = _SPACE.search(text, start, start + needed) if start else None
    start = start if space is None else space.end()
    part = text[start : start + needed]
    return part if part.strip() else text[:needed]


def _temperature(scores_NK: npt.NDArray[np.float64], domain_N: Integers, otherwise: float) -> float:
    """Return the T that says best where prompts belong, from those that may be routed there."""
    possible_N = np.isfinite(scores_NK[np.arange(len(domain_N)), domain_N])
    if scores_NK.shape[1] == 1 or not possible_N.any():
        return otherwise
    return fit_temperature(scores_NK[possible_N], domain_N[possible_N])
