"""Which number of domains does `--suggest` recommend where the labels are known, and what would other criteria recommend?

Corpora are the labelled documents (`12 labels`) and mixes of some of their labels, drawn at random; labels keep their unequal
sizes. Each is encoded by `minilm` and by `lexical`, the latter fitted on the mix itself, and every candidate k is assessed as
the command does. `labels` is how many there are, `recommended` what the command recommends, `V` the V-measure of those domains
against the labels, `best V` the k of the highest V, which no criterion can know; then what other criteria recommend (1: nothing
passes), and the stability by k. A criterion is right where it is within a factor of 1.5 of the number of labels. The rule was
chosen on other mixes of the same labels (seeds 1 and 21). Labels are not the only truth: medicine falls into its diseases, and
some labels are near each other. Takes about 18 minutes on 2 cores, the vectors of `vectors.py` apart.
"""

import argparse
import multiprocessing
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from measure import RESULTS, write_results
from sklearn.metrics import v_measure_score
from threadpoolctl import threadpool_limits
from vectors import CORPUS, encoded

from lmsplit.manifests.placement import Floats, PlacementRule, is_unit
from lmsplit.partition import lexical
from lmsplit.partition.picture import draw
from lmsplit.partition.suggest import Assessment, candidates, compare, fit_parts, parts, recommend

ENCODERS = ("minilm", "lexical")
SIZES = (3, 4, 6, 8, 10)
FACTOR = 1.5
SEED = 31
"""Of mixes and fits: none that the rule was chosen on."""


class Mix(NamedTuple):
    """A corpus of some labels."""

    name: str
    labels: tuple[str, ...]
    number: int
    encoder: str
    documents: int
    corpus: str


class Facts(NamedTuple):
    """An assessment, and what criteria that are not shipped go by."""

    assessment: Assessment
    silhouette: float
    """simplified: 1 - distance to the nearest centroid over that to the second."""
    strength: float
    """prediction strength: over the domains, the lowest share of pairs that the other rule keeps together."""
    v_measure: float

    @property
    def k(self) -> int:
        """Number of domains."""
        return self.assessment.k

    @property
    def stability(self) -> float:
        """See `Assessment`."""
        return self.assessment.stability

    @property
    def explained(self) -> float:
        """See `Assessment`."""
        return self.assessment.explained


def load(mix: Mix) -> tuple[Floats, npt.NDArray[Any], npt.NDArray[np.float64]]:
    """Return the vectors, labels and lengths of a mix's documents."""
    whole = encoded(mix.encoder, mix.corpus)
    rows = np.flatnonzero(np.isin(whole.documents["label"].to_numpy(), mix.labels))
    rows = np.roll(rows, -mix.number * mix.documents)[: mix.documents]
    documents = whole.documents[rows]
    vectors_ND = whole.vectors_ND[rows]
    if mix.encoder == "lexical":
        texts = documents["text"].to_list()
        vectors_ND = lexical.fit(texts, SEED)[0].encode(texts)
    usable = is_unit(vectors_ND)
    lengths_N = documents["text"].str.len_bytes().to_numpy().astype(np.float64)
    return vectors_ND[usable], documents["label"].to_numpy()[usable], lengths_N[usable]


def assess_all(mix: Mix) -> list[Facts]:
    """Assess every candidate k of a mix."""
    with threadpool_limits(1):
        vectors_ND, labels, lengths_N = load(mix)
        rows = parts(len(vectors_ND), SEED)
        found = []
        for k in candidates(len(vectors_ND)):
            rules = fit_parts(vectors_ND, rows, k, SEED)
            assessment = compare(rules, rows, vectors_ND, lengths_N)
            found.append(Facts(assessment, *_extras(rules, rows, vectors_ND, labels)))
    sys.stderr.write(f"{mix.encoder} {mix.name}: {[(one.k, round(one.stability, 3)) for one in found]}\n")
    return found


def _extras(
    rules: list[PlacementRule], rows: list[Any], vectors_ND: Floats, labels: npt.NDArray[Any]
) -> tuple[float, float, float]:
    first, second, third = *rules[:2], rows[2]
    held_ND = vectors_ND[third]
    one, other = first.place(held_ND).domain, second.place(held_ND).domain
    squares_NK = 1 + (first.centroids_KD**2).sum(axis=1) - 2 * held_ND @ first.centroids_KD.T
    near_N2 = np.sqrt(np.maximum(np.sort(squares_NK, axis=1)[:, :2], 0))
    silhouette = float((1 - near_N2[:, 0] / near_N2[:, 1]).mean())
    return silhouette, min(_strength(one, other), _strength(other, one)), float(v_measure_score(labels[third], one))


def _strength(clusters_N: npt.NDArray[np.int64], predicted_N: npt.NDArray[np.int64]) -> float:
    together = np.zeros((clusters_N.max() + 1, predicted_N.max() + 1))
    np.add.at(together, (clusters_N, predicted_N), 1)
    sizes = together.sum(axis=1)
    pairs = sizes * (sizes - 1)
    return float(((together * (together - 1)).sum(axis=1)[pairs > 0] / pairs[pairs > 0]).min())


def _largest(facts: list[Facts], passes: Callable[[Facts], bool]) -> int:
    return max((one.k for one in facts if passes(one)), default=1)


def _within(facts: list[Facts], drop: float) -> int:
    best = max(one.stability for one in facts)
    return _largest(facts, lambda one: one.stability >= best - drop)


def _highest(facts: list[Facts], score: Callable[[Facts], float]) -> int:
    return max(facts, key=score).k


def _calinski(one: Facts) -> float:
    return one.explained / (1 - one.explained) * (one.assessment.documents - one.k) / (one.k - 1)


def _knee(facts: list[Facts]) -> int:
    """Kneedle on held-out inertia over log k: the point farthest below the line from the first to the last."""
    x, y = np.log([one.k for one in facts]), np.array([one.explained for one in facts])
    return facts[int(np.argmax((y - y[0]) / (y[-1] - y[0]) - (x - x[0]) / (x[-1] - x[0])))].k


def _before_largest_drop(facts: list[Facts]) -> int:
    return facts[int(np.argmin(np.diff([one.stability for one in facts])))].k


def _product(exponent: int) -> Callable[[list[Facts]], int]:
    return partial(_highest, score=lambda one: one.explained * max(one.stability, 0.0) ** exponent)


CRITERIA: dict[str, Callable[[list[Facts]], int]] = {
    "recommended": lambda facts: recommend([one.assessment for one in facts]).k,
    **{f"explained × stability^{exponent}": _product(exponent) for exponent in (1, 2, 3, 5, 6)},
    "highest stability": partial(_highest, score=lambda one: one.stability),
    "last within 0.05 of it": partial(_within, drop=0.05),
    "last within 0.1 of it": partial(_within, drop=0.1),
    "last within 0.15 of it": partial(_within, drop=0.15),
    "last stability ≥ 0.8": partial(_largest, passes=lambda one: one.stability >= 0.8),
    "last stability ≥ 0.9": partial(_largest, passes=lambda one: one.stability >= 0.9),
    "before the largest drop": _before_largest_drop,
    "last prediction strength ≥ 0.8": partial(_largest, passes=lambda one: one.strength >= 0.8),
    "silhouette": partial(_highest, score=lambda one: one.silhouette),
    "Calinski-Harabasz": partial(_highest, score=_calinski),
    "knee of inertia": _knee,
    "best V": partial(_highest, score=lambda one: one.v_measure),
}


def row_of(mix: Mix, facts: list[Facts]) -> dict[str, Any]:
    """Return the table's row of a mix."""
    chosen = {name: criterion(facts) for name, criterion in CRITERIA.items()}
    at = next(one for one in facts if one.k == chosen["recommended"])
    return {
        "encoder": mix.encoder,
        "corpus": mix.name,
        "documents": at.assessment.documents,
        "labels": len(mix.labels),
        "recommended": at.k,
        "stability": at.stability,
        "smallest": at.assessment.smallest,
        "largest": at.assessment.largest,
        "V": at.v_measure,
        "best V": chosen["best V"],
        **{name: k for name, k in chosen.items() if name not in {"recommended", "best V"}},
        "stability by k": ", ".join(f"{one.k}: {one.stability:.2f}" for one in facts),
    }


def rates(rows: list[dict[str, Any]]) -> str:
    """Return a Markdown table: how often each criterion is within the factor, by encoder and number of labels."""
    groups = sorted({(row["encoder"], row["labels"]) for row in rows}, key=lambda group: (group[0] != "minilm", group[1]))
    heads = [f"{encoder}, {labels} labels" for encoder, labels in groups]
    lines = ["| right within a factor of 1.5 | " + " | ".join(heads) + " | all |", "|" + "---|" * (len(groups) + 2)]
    for name in CRITERIA:
        cells = [_rate(name, [row for row in rows if (row["encoder"], row["labels"]) == group]) for group in groups]
        lines.append(f"| {name} | " + " | ".join([*cells, _rate(name, rows)]) + " |")
    return "\n".join(lines)


def _rate(name: str, rows: list[dict[str, Any]]) -> str:
    right = sum(max(row[name] / row["labels"], row["labels"] / row[name]) <= FACTOR for row in rows)
    return f"{right} of {len(rows)}"


def mixes(labels: list[str], arguments: argparse.Namespace) -> list[Mix]:
    """Return what is measured: the whole, and random labels of each size."""
    found = []
    for encoder in ENCODERS:
        add = partial(Mix, encoder=encoder, corpus=arguments.corpus)
        whole = partial(add, labels=tuple(labels), documents=arguments.whole_documents)
        found += [whole(f"{len(labels)} labels, draw {number}", number=number) for number in range(arguments.draws)]
        for size in arguments.sizes:
            for number in range(arguments.mixes):
                drawn = np.random.default_rng([arguments.seed, size, number]).choice(labels, size, replace=False)
                found.append(
                    add(f"{size} labels, mix {number}", tuple(sorted(map(str, drawn))), number, documents=arguments.documents)
                )
    return found


def main() -> None:
    """Measure and write the tables and the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus", default=CORPUS, help="Parquet files with text, source and label")
    parser.add_argument("--documents", type=int, default=6000)
    parser.add_argument("--whole-documents", type=int, default=10_000)
    parser.add_argument("--mixes", type=int, default=8)
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="labels of a mix")
    parser.add_argument("--seed", type=int, default=SEED, help="of the mixes")
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    labels = sorted(encoded(ENCODERS[0], arguments.corpus).documents["label"].unique().to_list())
    todo = mixes(labels, arguments)
    with ProcessPoolExecutor(arguments.workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        found = list(pool.map(assess_all, todo))
    rows = [row_of(mix, facts) for mix, facts in zip(todo, found, strict=True)]
    assessments = [one.assessment for one in found[0]]
    draw(assessments, recommend(assessments), RESULTS / "suggest.svg")
    write_results("suggest", "How many domains?", f"{__doc__}\n{rates(rows)}", rows)


if __name__ == "__main__":
    main()
