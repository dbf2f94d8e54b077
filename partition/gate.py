"""The quality gate: what is measured of the domains at the fit, and what of it is a finding before they are published.

```
fit's sample ─► measure ─► coherence, stability, sources, points that coincide ─► receipt
receipt + what was published in each domain ─► judge ─► findings, each with a remedy ─► commit, `show`
```

A finding is a reason to look, not proof: a domain of one source may be right. The limits are assumptions, stated one by one. It
does *not* look at the texts of the whole corpus: shares of sources and of coinciding points are those of the sample.

Cost: two fits on halves of the sample, with a quarter of the starts.

Shape legend: N documents of the sample, K domains.
"""

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from lmsplit.manifests.findings import Finding
from lmsplit.manifests.layout import domain_name
from lmsplit.manifests.placement import Floats
from lmsplit.partition.cluster import num_distinct, num_restarts, point_numbers
from lmsplit.partition.hierarchy import Fitted, PointsOf, fit_rule
from lmsplit.partition.points import NumpyPoints

MAX_IMBALANCE: Final = 4.0
"""Without max_imbalance: a domain above so many times the mean is a catch-all."""
OVER_BOUND: Final = 1.05
"""The corpus may exceed max_imbalance by so much: what the sample's error leaves."""
NEAR_EMPTY: Final = 0.05
"""A domain below this share of the mean is a crumb."""
SINGLE_SOURCE: Final = 0.95
"""A domain with so large a share of one source is that source, where the corpus has several."""
COMMON_SOURCE: Final = 0.5
"""A source with so large a share of the corpus is expected to fill domains."""
COLLAPSED: Final = 0.2
"""So large a share of a domain's documents with one and the same vector."""
MIN_STABILITY: Final = 0.5
"""Adjusted Rand index between the domains of two disjoint halves of the sample."""
MIN_COHERENCE: Final = 0.05
"""Share of the vectors' variance that the domains explain."""
_MIN_PER_DOMAIN: Final = 20
"""Documents of a half per domain, below which stability says nothing."""


class Domain(NamedTuple):
    """What was published in a domain."""

    documents: int
    size: int
    """in tokens, or bytes without a tokenizer."""


def measure(
    fitted: Fitted,
    embeddings_ND: Floats,
    weight_N: npt.NDArray[np.float64],
    sources: pl.Series,
    branching: Sequence[int],
    seed: int,
    points_of: PointsOf = NumpyPoints,
) -> dict[str, Any]:
    """Measure a fitted rule on its sample.

    Args:
        fitted: the rule.
        embeddings_ND: unit rows of the sample.
        weight_N: the documents' tokens or bytes.
        sources: the documents' sources; null where there is none.
        branching: as the rule was fitted.
        seed: of the fit.
        points_of: see `hierarchy.fit_rule`.

    Returns:
        JSON values; lists have one entry per domain.
    """
    num_domains = fitted.rule.num_domains
    domain_N = fitted.placed.domain
    top = _top_sources(domain_N, sources, num_domains)
    return {
        "sample_documents": len(domain_N),
        "sample_imbalance": fitted.imbalance,
        "coherence": fitted.coherence,
        "balance": None if fitted.balance is None else fitted.balance._asdict(),
        "stability": _stability(embeddings_ND, weight_N, branching, seed, points_of),
        "top_source": [source for source, _ in top],
        "top_source_fraction": [fraction for _, fraction in top],
        "most_common_source_fraction": _most_common_fraction(sources),
        "coinciding_fraction": _coinciding(embeddings_ND, domain_N, num_domains),
    }


def _top_sources(domain_N: npt.NDArray[np.int64], sources: pl.Series, num_domains: int) -> list[tuple[str | None, float]]:
    frame = pl.DataFrame({"domain": domain_N, "source": sources}).drop_nulls()
    counts = frame.group_by("domain", "source").len().sort("len", "source", descending=[True, False])
    sizes = np.bincount(domain_N, minlength=num_domains)
    top: dict[int, tuple[str | None, float]] = {}
    for domain, source, count in counts.iter_rows():
        top.setdefault(domain, (source, count / sizes[domain]))
    return [top.get(domain, (None, 0.0)) for domain in range(num_domains)]


def _most_common_fraction(sources: pl.Series) -> float:
    counts = sources.drop_nulls().value_counts()["count"]
    largest = counts.max()
    return float(largest) / len(sources) if isinstance(largest, int) else 0.0


def _coinciding(embeddings_ND: Floats, domain_N: npt.NDArray[np.int64], num_domains: int) -> list[float]:
    """Return the share of each domain's documents that lie on its most common point."""
    counts = pl.DataFrame({"domain": domain_N, "point": point_numbers(embeddings_ND)}).group_by("domain", "point").len()
    largest = dict(counts.group_by("domain").agg(pl.col("len").max()).iter_rows())
    sizes = np.bincount(domain_N, minlength=num_domains)
    return [largest.get(domain, 0) / max(int(sizes[domain]), 1) for domain in range(num_domains)]


def _stability(
    embeddings_ND: Floats, weight_N: npt.NDArray[np.float64], branching: Sequence[int], seed: int, points_of: PointsOf
) -> float | None:
    """Return the adjusted Rand index between the placements of all by rules fitted on two halves; None for too small ones."""
    num_domains = int(np.prod(branching))
    order = np.random.default_rng([seed, len(embeddings_ND)]).permutation(len(embeddings_ND))
    from sklearn.metrics import adjusted_rand_score  # here: scikit-learn's import takes 1 s

    halves = order[: len(order) // 2], order[len(order) // 2 :]
    too_few = min(num_distinct(embeddings_ND[half]) for half in halves) < _MIN_PER_DOMAIN * num_domains
    if num_domains < 2 or too_few:
        return None
    domains = []
    for half in halves:
        restarts = max(1, num_restarts(branching[0]) // 4)
        found = fit_rule(embeddings_ND[half], weight_N[half], branching, seed, restarts=restarts, points_of=points_of)
        domains.append(found.rule.place(embeddings_ND).domain)
    return float(adjusted_rand_score(*domains))


def judge(measures: dict[str, Any], domains: Sequence[Domain], num_asked: int, max_imbalance: float | None) -> list[Finding]:
    """Say what about the domains is a reason to look before they are trained on.

    Args:
        measures: what `measure` returned.
        domains: what was published, domain by domain.
        num_asked: domains asked for.
        max_imbalance: bound asked for.

    Returns:
        Findings on the whole first, then domain by domain.
    """
    return [*_on_the_whole(measures, domains, num_asked, max_imbalance), *_domain_by_domain(measures, domains)]


def imbalance(domains: Sequence[Domain]) -> float:
    """Return the largest domain's size over the mean."""
    sizes = [domain.size for domain in domains]
    return max(sizes) * len(sizes) / max(sum(sizes), 1)


def _on_the_whole(
    measures: dict[str, Any], domains: Sequence[Domain], num_asked: int, max_imbalance: float | None
) -> list[Finding]:
    findings = []
    found, largest = imbalance(domains), max(range(len(domains)), key=lambda index: domains[index].size)
    bound = MAX_IMBALANCE if max_imbalance is None else OVER_BOUND * max_imbalance
    if found > bound and len(domains) > 1:
        remedy = "set max_imbalance, for example to 2" if max_imbalance is None else "give a larger sample_size"
        findings.append(Finding("imbalance", domain_name(largest), f"at most {bound:.4g} times the mean", f"{found:.2f}", remedy))
    if measures["stability"] is not None and measures["stability"] < MIN_STABILITY:
        expected = f"adjusted Rand index between halves of the sample of at least {MIN_STABILITY}"
        remedy = "another number of domains (lmsplit partition --suggest), or a larger sample_size"
        findings.append(Finding("stability", "fit", expected, f"{measures['stability']:.2f}", remedy))
    if measures["coherence"] < MIN_COHERENCE and len(domains) > 1:
        expected = f"at least {MIN_COHERENCE:.0%} of the variance explained"
        remedy = "more domains, or an encoder that tells these texts apart"
        findings.append(Finding("coherence", "fit", expected, f"{measures['coherence']:.1%}", remedy))
    if len(domains) < num_asked:
        remedy = "fewer branches a level, or a larger sample_size"
        findings.append(Finding("fewer_domains", "fit", f"{num_asked} domains", str(len(domains)), remedy))
    return findings


def _domain_by_domain(measures: dict[str, Any], domains: Sequence[Domain]) -> list[Finding]:
    findings = []
    mean = sum(domain.size for domain in domains) / len(domains)
    several_sources = 0 < measures["most_common_source_fraction"] < COMMON_SOURCE
    for index, domain in enumerate(domains):
        name = domain_name(index)
        if domain.size < NEAR_EMPTY * mean:
            found = f"{domain.documents} documents, {domain.size / mean:.1%} of the mean"
            findings.append(
                Finding(
                    "near_empty", name, f"at least {NEAR_EMPTY:.0%} of the mean", found, "fewer domains, or set max_imbalance"
                )
            )
        if several_sources and (fraction := measures["top_source_fraction"][index]) >= SINGLE_SOURCE:
            found = f"{fraction:.0%} from {measures['top_source'][index]}"
            remedy = "look whether it is a topic, or this source's format or boilerplate: clean that and partition again"
            findings.append(Finding("single_source", name, f"less than {SINGLE_SOURCE:.0%} from one source", found, remedy))
        if (fraction := measures["coinciding_fraction"][index]) >= COLLAPSED and domain.documents > 1:
            expected = f"less than {COLLAPSED:.0%} of its texts on one point"
            remedy = "remove duplicates, and boilerplate at the beginning of texts; or encode longer prefixes"
            findings.append(Finding("collapsed", name, expected, f"{fraction:.0%}", remedy))
    return findings
