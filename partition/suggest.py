"""How many domains? What each number k would give, and which k this sample supports; behind `lmsplit partition --suggest`.

```
sample's vectors ─► three disjoint parts ─► k-means on each ─► three rules
    each part + the two rules that have not seen it ─► held-out inertia, stability, domain sizes: Assessment
assessments of all k ─► recommend ─► Recommendation ─► table, JSON rows, picture (see `picture`)
```

Stability asks whether other documents would have given the same domains (Ben-Hur et al. 2002; Lange et al. 2004): two rules
fitted on disjoint documents place a third part, and the adjusted Rand index compares where. It says which k is reproducible, not
which is true: a corpus may have several good answers, and a sample shows none finer than it has documents for. This does *not*
partition anything, and knows nothing of `max_imbalance` or a hierarchy.

Cost: for each k three fits on a third of the sample; all candidates for 10,000 vectors of 384 dimensions take half a minute on
one core, and less with more workers. Memory: the sample's texts and vectors for each worker.

Shape legend: N documents of the sample, D dimensions, K domains.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import combinations
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
from rich.table import Table

from lmsplit.manifests.errors import InputError
from lmsplit.manifests.placement import Floats, PlacementRule
from lmsplit.partition.cluster import kmeans, num_distinct
from lmsplit.partition.fit import EncodedSample, encode_sample
from lmsplit.partition.gate import MIN_STABILITY
from lmsplit.partition.planning import Planned
from lmsplit.partition.run import Run

NUM_PARTS: Final = 3
"""The fewest where two rules can be compared on documents that neither has seen; each part has that role once."""
MIN_PER_DOMAIN: Final = 50
"""Documents of a part per domain (assumption; faiss warns below 39 points a centroid): with fewer, centroids are mostly noise."""
STABILITY_EXPONENT: Final = 4
"""A percent of stability is worth four percent of explained variance. Chosen on labelled mixes. On 86 other samples it comes
within a factor of 1.5 of the labels in 79; 3, 5 and 6 in 75 to 82, 2 in 73, stability alone in 71 at best
(benchmarks/results/suggest.md)."""
NEARLY: Final = 0.8
"""A number with so large a share of the best score is named as nearly as good. Measured (benchmarks/results/suggest.md): between
samples of one corpus the score of one k differs as much."""

Indices = npt.NDArray[np.int64]


class Assessment(NamedTuple):
    """What k domains would be like; each value is the mean over the parts, measured on documents that no fit has seen."""

    k: int
    documents: int
    """of the sample."""
    heldout_inertia: float
    """mean of |x - c|² over documents x and their centroids c; at most about 1, falling with k."""
    explained: float
    """share of their variance that the domains explain: 1 - held-out inertia over that of one domain; rising with k."""
    stability: float
    """adjusted Rand index between two rules' placements: 1 the same domains, 0 no more alike than by chance."""
    smallest: float
    """the smallest domain's tokens or bytes over the mean domain's."""
    largest: float
    """the largest domain's, likewise."""

    @property
    def score(self) -> float:
        """What a number of domains is recommended by: much explained, and confirmed by other documents."""
        return float(max(self.explained, 0.0) * max(self.stability, 0.0) ** STABILITY_EXPONENT)


class Recommendation(NamedTuple):
    """The number of domains to begin with."""

    k: int
    why: str
    """one to four sentences for a user."""


def candidates(num_documents: int) -> tuple[int, ...]:
    """Return the numbers of domains to try: powers of two and three times them, as far as each part has 50 documents a domain.

    Steps of a third to a half are as fine as recommendations are right (measured: benchmarks/results/suggest.md).

    Args:
        num_documents: of the sample.

    >>> candidates(1000), candidates(10_000)[-2:]
    ((2, 3, 4, 6), (48, 64))
    """
    limit = num_documents // NUM_PARTS // MIN_PER_DOMAIN
    powers = [2**exponent for exponent in range(1, limit.bit_length() + 1)]
    return tuple(k for k in sorted([*powers, *(power // 2 * 3 for power in powers)]) if k <= limit)


def parts(num_documents: int, seed: int) -> list[Indices]:
    """Return the rows of the three disjoint parts, drawn at random, equal to within one document."""
    drawn = np.random.default_rng([seed, num_documents]).permutation(num_documents)
    return [np.sort(part) for part in np.array_split(drawn, NUM_PARTS)]


def assess(embeddings_ND: Floats, weight_N: npt.NDArray[np.float64], num_domains: int, seed: int) -> Assessment:
    """Say what K domains would be like.

    Args:
        embeddings_ND: unit rows of the sample.
        weight_N: each document's tokens or bytes.
        num_domains: K.
        seed: of the parts and the fits.

    Raises:
        ConfigurationError: a part has fewer than K different vectors.
    """
    rows = parts(len(embeddings_ND), seed)
    return compare(fit_parts(embeddings_ND, rows, num_domains, seed), rows, embeddings_ND, weight_N)


def fit_parts(embeddings_ND: Floats, rows: Sequence[Indices], num_domains: int, seed: int) -> list[PlacementRule]:
    """Return a rule of K domains for each part."""
    return [kmeans(embeddings_ND[part], num_domains, seed).rule() for part in rows]


def compare(
    rules: Sequence[PlacementRule], rows: Sequence[Indices], embeddings_ND: Floats, weight_N: npt.NDArray[np.float64]
) -> Assessment:
    """Compare rules, each fitted on one part, by the documents that they have not seen.

    Args:
        rules: one a part.
        rows: the parts' rows.
        embeddings_ND: unit rows of the sample.
        weight_N: each document's tokens or bytes.
    """
    from sklearn.metrics import adjusted_rand_score  # here: scikit-learn's import takes 1 s

    domains = [rule.place(embeddings_ND).domain for rule in rules]
    new = [np.setdiff1d(np.arange(len(embeddings_ND)), part) for part in rows]
    agreements = []
    for one, other in combinations(range(NUM_PARTS), 2):
        third = np.intersect1d(new[one], new[other])
        agreements.append(adjusted_rand_score(domains[one][third], domains[other][third]))
    measures = []
    for rule, domain_N, part, own in zip(rules, domains, new, rows, strict=True):
        inertia = _inertia(embeddings_ND[part] - rule.centroids_KD[domain_N[part]])
        alone = _inertia(embeddings_ND[part] - embeddings_ND[own].mean(axis=0))
        sizes_K = np.bincount(domain_N[part], weights=weight_N[part], minlength=rule.num_domains)
        measures.append((inertia, 1 - inertia / alone, sizes_K.min() / sizes_K.mean(), sizes_K.max() / sizes_K.mean()))
    inertia, explained, smallest, largest = np.mean(measures, axis=0).tolist()
    stability = float(np.mean(agreements))
    return Assessment(rules[0].num_domains, len(embeddings_ND), inertia, explained, stability, smallest, largest)


def _inertia(differences_ND: Floats) -> float:
    return float(np.einsum("nd,nd->", differences_ND, differences_ND, dtype=np.float64)) / len(differences_ND)


def recommend(assessments: Sequence[Assessment]) -> Recommendation:
    """Recommend the k with the most explained variance × stability⁴: more domains, as long as other documents confirm them.

    Neither decides alone: a few coarse domains are nearly always the most stable, and variance explained only grows with k.
    Ben-Hur et al. (2002) and Lange et al. (2004) look for the most stable k or the fall, Tibshirani and Walther (2005) for the
    largest k above a bound; how often these and others are right: benchmarks/results/suggest.md.

    Args:
        assessments: by rising k, at least one.

    >>> found = {2: (1.0, 0.05), 8: (0.97, 0.2), 16: (0.75, 0.25)}
    >>> recommend([Assessment(k, 900, 0.8, explained, stability, 0.5, 2.0) for k, (stability, explained) in found.items()]).k
    8
    """
    best = max(assessments, key=lambda assessment: assessment.score)
    return Recommendation(best.k, " ".join(_reasons(assessments, best)))


def _reasons(assessments: Sequence[Assessment], best: Assessment) -> Iterator[str]:
    yield (
        f"{best.k} domains explain {best.explained:.0%} of the variance with a stability of {best.stability:.2f}: "
        f"no other number has so much of both (explained × stability^{STABILITY_EXPONENT})."
    )
    if best.stability < MIN_STABILITY:
        yield f"But this is not stable (below {MIN_STABILITY}): other documents would give other domains, so take it as a guess."
    others = [a for a in assessments if a is not best and a.score >= NEARLY * best.score > 0]
    if others:
        yield f"Nearly as good: {', '.join(f'{a.k} (stability {a.stability:.2f})' for a in others)}."
    if best is assessments[-1]:
        yield f"It is the largest that a sample of {best.documents} documents can judge: a larger sample_size tries more."


@dataclass(frozen=True)
class Suggest:
    """The stage that assesses each candidate; it comes after `encode`.

    Args:
        run: the run, with its sample chosen, and encoded where an encoder is pinned.
    """

    run: Run
    name: str = "suggest"

    @property
    def num_tasks(self) -> int:
        """One per candidate; none for a sample too small to compare."""
        return len(self._candidates)

    @cached_property
    def _candidates(self) -> tuple[int, ...]:
        return candidates(self.run.receipt("sample", 0)["documents"])

    def do(self, task: int) -> None:
        """Assess one candidate; none is found where a part has fewer different vectors than it has domains."""
        seed, k = Planned(self.run).configuration.seed, self._candidates[task]
        sample = _sample(self.run, seed)
        embeddings_ND = sample.embeddings_ND
        fits = min(num_distinct(embeddings_ND[part]) for part in parts(len(embeddings_ND), seed)) >= k
        found = assess(embeddings_ND, sample.weight_N, k, seed)._asdict() if fits else None
        self.run.finish(self.name, task, {}, {"documents": len(embeddings_ND), "assessment": found})


@lru_cache(maxsize=1)
def _sample(run: Run, seed: int) -> EncodedSample:
    """Kept by the process: a worker gets the stage anew with each rank, and would fit `lexical` again, which takes seconds."""
    return encode_sample(run, seed)


def suggestion(run: Run) -> tuple[list[Assessment], Recommendation]:
    """Read back what the stage found, by rising k, and recommend a number of domains.

    Args:
        run: the run, with the stage done.

    Raises:
        InputError: the sample is too small, or its vectors are too few, for two domains.
    """
    receipts = run.receipts("suggest", Suggest(run).num_tasks)
    assessments = [Assessment(**receipt["assessment"]) for receipt in receipts if receipt["assessment"]]
    if not assessments:
        documents, needed = run.receipt("sample", 0)["documents"], 2 * NUM_PARTS * MIN_PER_DOMAIN
        raise InputError(
            f"the sample has {documents} documents, and --suggest needs {needed} with different vectors: "
            "give a larger corpus or sample_size, or choose the number of domains yourself"
        )
    return assessments, recommend(assessments)


def as_rows(assessments: Sequence[Assessment], recommendation: Recommendation) -> list[dict[str, Any]]:
    """Return one JSON object for each k."""
    return [
        {
            "k": assessment.k,
            "heldout_inertia": assessment.heldout_inertia,
            "explained": assessment.explained,
            "stability": assessment.stability,
            "smallest": assessment.smallest,
            "largest": assessment.largest,
            "recommended": assessment.k == recommendation.k,
        }
        for assessment in assessments
    ]


def as_table(assessments: Sequence[Assessment], recommendation: Recommendation) -> Table:
    """Return the table for a terminal; the recommended row is marked."""
    table = Table(box=None, header_style="bold", pad_edge=False, caption=recommendation.why, caption_justify="left")
    for name in ("domains", "held-out inertia", "explained", "stability", "smallest/mean", "largest/mean"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("")
    for row in as_rows(assessments, recommendation):
        values = [f"{row[key]:.{digits}f}" for key, digits in _DIGITS.items()]
        table.add_row(str(row["k"]), *values, "recommended" if row["recommended"] else "", style="bold" * row["recommended"])
    return table


_DIGITS: Final = {"heldout_inertia": 4, "explained": 3, "stability": 3, "smallest": 2, "largest": 2}
