"""What else groups documents by meaning: scikit-learn's k-means, c-BTM's recipe, BERTopic, UMAP + HDBSCAN, on the same vectors.

Every method gets all documents of the labelled corpus, encoded by `minilm` or `lexical` (`python benchmarks/vectors.py` makes the
vectors), and is asked for k domains. Labels only score; no method sees them. lmsplit is not run here: these are the rows to read
beside its own. Runs in an environment of its own (`requirements-neighbours.txt`). Takes about 20 minutes on 2 idle cores.

Asked for k domains:

- *KMeans*, *MiniBatchKMeans*: scikit-learn's, as they come (k-means++, 1 start); *10 starts* is `n_init=10`, for the smallest k.
- *c-BTM*: the recipe of arXiv 2303.14177, with the details of its authors' published code: TF-IDF of words without English stop
  words and numbers, SVD to 100 dimensions, length 1; balanced k-means from random documents, at most 20 iterations, each domain
  given the same number of documents; then every document goes to the nearest mean, whatever the sizes. Assumed: the balanced
  assignment is an auction of ours, four times finer than theirs; and all documents are fitted on, as they are fewer than 100,000,
  the least that their code would cut into batches.
- *UMAP + HDBSCAN*: UMAP to 5 dimensions (15 neighbours, min_dist 0, cosine, seeded), HDBSCAN (min_samples 10) with that
  min_cluster_size, of 13 from 10 to 2400, whose number of domains is nearest to k. HDBSCAN cannot be asked for k.
- *BERTopic*: as it comes, but for the seed of its UMAP (so the same reduced vectors as above), then its `reduce_topics` to k
  domains, not counting its outliers (it counts them: k + 1); *not reduced* is what it found before.
- *outliers placed*: what the two leave out goes to the nearest domain mean among the vectors (HDBSCAN), or where
  `reduce_outliers(strategy="embeddings")` puts it (BERTopic; its default strategy, which scores every window of every outlier,
  was not measured).

`domains` were found, outliers not counted; fewer domains are easier to score well with, so compare by what was found. V, NMI (of
arithmetic mean, which is V by definition) and ARI are against the labels, over all documents; outliers are one domain more.
`largest/mean` is of bytes of text, over the domains without outliers. `unplaced` is the share of documents left as outliers.
`seconds` are on the clock, from vectors to domains; `cpu_s` are the same of all cores, which other work beside the benchmark
disturbs less. They include UMAP (`umap_s`: run once for each encoder and seed, counted in every row that uses it), the one
HDBSCAN (not the others of the 13), and BERTopic's word statistics, a part of its fit; they do not include the encoding. c-BTM's
encoding is `encoding_s`, not in `seconds`. One thread each, as seeded UMAP has it anyway; only the HDBSCAN inside BERTopic starts
processes for one step, which `cpu_s` leaves out.
"""

import argparse
import copy
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from bertopic import BERTopic
from bertopic.dimensionality import BaseDimensionalityReduction
from hdbscan import HDBSCAN
from measure import COMMIT, RESULTS, _cell, _processor
from sklearn.cluster import KMeans, MiniBatchKMeans
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score, v_measure_score
from sklearn.metrics.pairwise import euclidean_distances
from sklearn.preprocessing import normalize
from threadpoolctl import threadpool_limits
from umap import UMAP

# Shapes: N documents, D dimensions, K domains, W documents without a domain yet.
Array = np.ndarray[Any, Any]
Row = dict[str, Any]

CACHE = Path(__file__).parent / ".cache"
LIBRARIES = ("scikit-learn", "umap-learn", "hdbscan", "bertopic", "numpy", "numba", "polars")
CLUSTER_SIZES = (10, 25, 50, 100, 150, 200, 300, 400, 600, 800, 1200, 1600, 2400)
"""Assumption: close enough together that some number of domains is near 12, 24 and 48."""
MIN_SAMPLES = 10
"""BERTopic's default min_topic_size, which is its HDBSCAN's min_cluster_size and thereby min_samples."""
WORD = r"(?u)\b[^\W\d]\w+\b"
"""scikit-learn's own pattern without the words that begin with a digit, which c-BTM's code replaces by a stop word."""
BALANCED_ITERATIONS = 20
BALANCED_TOLERANCE = 1e-3
"""Both from c-BTM's code: most iterations, and the squared sum of the means' shifts under which it stops earlier."""


class Corpus(NamedTuple):
    """The documents, in the order of their vectors."""

    texts: list[str]
    labels_N: Array
    sizes_N: Array
    """Bytes of text."""
    key: str
    """Names the vectors' file, after the encoder."""


def corpus_of(pattern: str) -> Corpus:
    """Read the documents as `vectors.encoded` does, which cannot be imported where lmsplit is not installed."""
    paths = sorted(Path(pattern).parent.glob(Path(pattern).name))
    key = hashlib.sha256(repr([(path.name, path.stat().st_size) for path in paths]).encode()).hexdigest()[:12]
    documents = pl.concat([pl.read_parquet(path, columns=["text", "source", "label"]) for path in paths])
    documents = documents.sample(fraction=1, shuffle=True, seed=0)
    labels_N = np.unique(documents["label"].to_numpy(), return_inverse=True)[1]
    return Corpus(documents["text"].to_list(), labels_N, documents["text"].str.len_bytes().to_numpy(), key)


def vectors_of(encoder: str, corpus: Corpus) -> Array:
    """Return the vectors that `benchmarks/vectors.py` kept."""
    file = CACHE / f"{encoder}-{corpus.key}.npy"
    if not file.exists():
        raise SystemExit(f'no vectors of this corpus by {encoder}: run "python benchmarks/vectors.py" where lmsplit is installed')
    vectors_ND = np.load(file)
    assert len(vectors_ND) == len(corpus.texts)
    return vectors_ND


def timed(call: Callable[[], Any]) -> tuple[Any, Array]:
    """Return what the call returns, and its seconds: on the clock, and of all cores."""
    before = time.perf_counter(), time.process_time()
    result = call()
    return result, np.subtract((time.perf_counter(), time.process_time()), before)


def scored(corpus: Corpus, domain_N: Any, seconds: Array, **told: Any) -> Row:
    """Return one row: what was run (`told`), and how well its domains agree with the labels; -1 is no domain."""
    domain_N = np.asarray(domain_N)
    placed_N = domain_N >= 0
    sizes_K = np.bincount(domain_N[placed_N], weights=corpus.sizes_N[placed_N])
    sizes_K = sizes_K[sizes_K > 0]
    keys = ("method", "encoder", "k")
    return {
        **{key: told[key] for key in keys},
        "domains": len(sizes_K),
        "seed": told["seed"],
        "V": float(v_measure_score(corpus.labels_N, domain_N)),
        "NMI": float(normalized_mutual_info_score(corpus.labels_N, domain_N)),
        "ARI": float(adjusted_rand_score(corpus.labels_N, domain_N)),
        "largest/mean": float(sizes_K.max() / sizes_K.mean()),
        "unplaced": float(1 - placed_N.mean()),
        "seconds": float(seconds[0]),
        "cpu_s": float(seconds[1]),
        **{key: float(told[key][0]) if key in told else None for key in ("umap_s", "encoding_s")},
        "min_cluster_size": told.get("min_cluster_size"),
    }


def kmeans_rows(corpus: Corpus, encoder: str, domains: list[int], seed: int) -> Iterator[Row]:
    """Measure scikit-learn's KMeans and MiniBatchKMeans."""
    vectors_ND = vectors_of(encoder, corpus)
    for k in domains:
        models = {
            "KMeans": KMeans(k, random_state=seed),
            "KMeans, 10 starts": KMeans(k, n_init=10, random_state=seed),
            "MiniBatchKMeans": MiniBatchKMeans(k, random_state=seed),
        }
        for method, model in models.items():
            if method != "KMeans, 10 starts" or k == min(domains):
                domain_N, seconds = timed(lambda model=model: model.fit_predict(vectors_ND))
                yield scored(corpus, domain_N, seconds, method=method, encoder=encoder, k=k, seed=seed)


def cbtm_rows(corpus: Corpus, domains: list[int], seed: int) -> Iterator[Row]:
    """Measure c-BTM's recipe, which has its own encoding."""
    words, svd = TfidfVectorizer(stop_words="english", token_pattern=WORD), TruncatedSVD(100, random_state=seed)
    points_ND, encoding_s = timed(lambda: normalize(svd.fit_transform(words.fit_transform(corpus.texts))))
    told = {"method": "c-BTM", "encoder": "tf-idf + svd 100", "seed": seed, "encoding_s": encoding_s}
    for k in domains:
        domain_N, seconds = timed(lambda k=k: balanced_kmeans(points_ND, k, seed))
        yield scored(corpus, domain_N, seconds, **told, k=k)


def balanced_kmeans(points_ND: Array, k: int, seed: int) -> Array:
    """Fit means with domains of equal size, then return each document's nearest mean."""
    means_KD = points_ND[np.random.default_rng(seed).choice(len(points_ND), k, replace=False)]
    for _ in range(BALANCED_ITERATIONS):
        domain_N = auction(-euclidean_distances(points_ND, means_KD, squared=True))
        before_KD, means_KD = means_KD, np.stack([points_ND[domain_N == domain].mean(axis=0) for domain in range(k)])
        if np.linalg.norm(means_KD - before_KD, axis=1).sum() ** 2 < BALANCED_TOLERANCE:
            break
    return euclidean_distances(points_ND, means_KD).argmin(axis=1)


def auction(scores_NK: Array) -> Array:
    """Return the domains of highest sum of scores among those of equal size (Bertsekas 1992: documents bid for places).

    Off the highest by at most 1/200 of the scores' range a document. A domain's price is its lowest bid, once it is full.
    """
    num_documents, k = scores_NK.shape
    places_K = np.full(k, num_documents // k) + (np.arange(k) < num_documents % k)
    least = np.ptp(scores_NK) / 200
    price_K, bid_N = np.zeros(k), np.zeros(num_documents)
    held = [np.empty(0, int)] * k
    waiting_W = np.arange(num_documents)
    while len(waiting_W):
        gain_WK = scores_NK[waiting_W] - price_K
        best_W = gain_WK.argmax(axis=1)
        second_W, first_W = np.partition(gain_WK, -2, axis=1)[:, -2:].T
        bid_N[waiting_W] = price_K[best_W] + first_W - second_W + least
        outbid = [np.empty(0, int)]
        for domain in np.unique(best_W):
            bidders, places = np.concatenate([held[domain], waiting_W[best_W == domain]]), places_K[domain]
            if len(bidders) >= places:
                highest = np.argpartition(-bid_N[bidders], places - 1)
                outbid.append(bidders[highest[places:]])
                bidders = bidders[highest[:places]]
                price_K[domain] = bid_N[bidders].min()
            held[domain] = bidders
        waiting_W = np.concatenate(outbid)
    domain_N = np.empty(num_documents, int)
    domain_N[np.concatenate(held)] = np.repeat(np.arange(k), places_K)
    return domain_N


def density_rows(corpus: Corpus, encoder: str, domains: list[int], seed: int) -> Iterator[Row]:
    """Measure what works on vectors reduced by UMAP: HDBSCAN and BERTopic."""
    vectors_ND = vectors_of(encoder, corpus)
    umap = UMAP(n_neighbors=15, n_components=5, min_dist=0.0, metric="cosine", random_state=seed, n_jobs=1)
    reduced_ND, umap_s = timed(lambda: umap.fit_transform(vectors_ND))
    told = {"encoder": encoder, "seed": seed, "umap_s": umap_s}
    yield from hdbscan_rows(corpus, vectors_ND, reduced_ND, domains, told)
    yield from bertopic_rows(corpus, vectors_ND, reduced_ND, domains, told)


def hdbscan_rows(corpus: Corpus, vectors_ND: Array, reduced_ND: Array, domains: list[int], told: Row) -> Iterator[Row]:
    """Measure HDBSCAN with the min_cluster_size that comes nearest to each k."""
    fits = {}
    for size in CLUSTER_SIZES:
        model = HDBSCAN(min_cluster_size=size, min_samples=MIN_SAMPLES, core_dist_n_jobs=1)
        fits[size] = timed(lambda model=model: model.fit_predict(reduced_ND))
    for k in domains:
        size = min(fits, key=lambda size: abs(fits[size][0].max() + 1 - k))
        domain_N, fit_s = fits[size]
        seconds = told["umap_s"] + fit_s
        row = {**told, "k": k, "min_cluster_size": size}
        yield scored(corpus, domain_N, seconds, **row, method="UMAP + HDBSCAN")
        placed_N, place_s = timed(lambda domain_N=domain_N: outliers_placed(vectors_ND, domain_N))
        yield scored(corpus, placed_N, seconds + place_s, **row, method="UMAP + HDBSCAN, outliers placed")


def outliers_placed(vectors_ND: Array, domain_N: Array) -> Array:
    """Return the domains with each outlier in the domain of the nearest mean."""
    means_KD = np.stack([vectors_ND[domain_N == domain].mean(axis=0) for domain in range(domain_N.max() + 1)])
    return np.where(domain_N < 0, euclidean_distances(vectors_ND, means_KD).argmin(axis=1), domain_N)


class Reduced(BaseDimensionalityReduction):
    """Gives BERTopic the vectors that UMAP has reduced already."""

    def __init__(self, reduced_ND: Array) -> None:
        self.reduced_ND = reduced_ND

    def transform(self, X: Array) -> Array:  # noqa: ARG002 - BERTopic's interface
        """Return the reduced vectors, whatever is given."""
        return self.reduced_ND


def bertopic_rows(corpus: Corpus, vectors_ND: Array, reduced_ND: Array, domains: list[int], told: Row) -> Iterator[Row]:
    """Measure BERTopic as it comes, and reduced to each k."""
    found = BERTopic(umap_model=Reduced(reduced_ND))
    (topics_N, _), fit_s = timed(lambda: found.fit_transform(corpus.texts, vectors_ND))
    fit_s = fit_s + told["umap_s"]
    yield scored(corpus, topics_N, fit_s, **told, k=None, method="BERTopic, not reduced")
    outliers = int(-1 in topics_N)
    for k in domains:
        model = copy.deepcopy(found)
        _, reduce_s = timed(lambda model=model, k=k: model.reduce_topics(corpus.texts, k + outliers))
        topics_N = model.topics_
        yield scored(corpus, topics_N, fit_s + reduce_s, **told, k=k, method="BERTopic")
        if outliers:
            placed_N, place_s = timed(
                lambda model=model, topics_N=topics_N: model.reduce_outliers(
                    corpus.texts, topics_N, strategy="embeddings", embeddings=vectors_ND
                )
            )
            seconds = fit_s + reduce_s + place_s
            yield scored(corpus, placed_N, seconds, **told, k=k, method="BERTopic, outliers placed")


def warm_up() -> None:
    """Compile what UMAP compiles on its first use."""
    UMAP(n_components=5, min_dist=0.0, metric="cosine", random_state=0, n_jobs=1).fit(
        np.random.default_rng(0).normal(size=(5000, 16)).astype(np.float32)
    )


def order(row: Row) -> tuple[Any, ...]:
    """Methods in alphabetical order, and so on; a k not asked for comes last."""
    return row["method"].lower(), row["encoder"], row["k"] or 10**9, row["seed"]


def over_seeds(rows: list[Row]) -> list[Row]:
    """Return the means over seeds, with the lowest and highest V."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["method"], row["encoder"], row["k"]), []).append(row)
    summary = []
    for (method, encoder, k), group in groups.items():
        mean = {key: float(np.mean([row[key] for row in group])) for key in group[0] if isinstance(group[0][key], float)}
        spread = " to ".join(f"{value:.3f}" for value in (min(row["V"] for row in group), max(row["V"] for row in group)))
        domains = float(np.mean([row["domains"] for row in group]))
        first = {"method": method, "encoder": encoder, "k": k, "domains": domains, "seeds": len(group), "V": mean.pop("V")}
        summary.append({**first, "V, seeds": spread, **mean, **{key: mean.get(key) for key in ("umap_s", "encoding_s")}})
    return summary


def table(rows: list[Row]) -> list[str]:
    """Return the lines of a Markdown table."""
    keys = list(rows[0])
    head = ["| " + " | ".join(keys) + " |", "|" + "---|" * len(keys)]
    return head + ["| " + " | ".join(_cell(row[key]) for key in keys) + " |" for row in rows]


def write(rows: list[Row]) -> None:
    """Write `neighbours.json` and `neighbours.md` as `measure.write_results` does, with the versions of this environment."""
    rows = sorted(rows, key=order)
    facts = {
        "date": time.strftime("%Y-%m-%d"),
        "commit": COMMIT,
        "command": " ".join(["python", *sys.argv]),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "software": {name: version(name) for name in LIBRARIES},
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "neighbours.json").write_text(json.dumps({**facts, "rows": rows}, indent=1) + "\n")
    software = ", ".join(f"{key} {value}" for key, value in facts["software"].items())
    lines = ["# Other methods on the same vectors", "", __doc__ or "", "## Means over seeds", "", *table(over_seeds(rows)), ""]
    lines += ["## Every run", "", *table(rows), ""]
    lines += [f"{facts['date']}, commit {facts['commit']}, {facts['cores']} cores of {facts['processor']}; {software}."]
    (RESULTS / "neighbours.md").write_text("\n".join([*lines, f"`{facts['command']}`", ""]))


def runs(corpus: Corpus, encoders: list[str], domains: list[int], seeds: list[int]) -> Iterator[Row]:
    """Run everything, the quick methods first."""
    for seed in seeds:
        for encoder in encoders:
            yield from kmeans_rows(corpus, encoder, domains, seed)
        yield from cbtm_rows(corpus, domains, seed)
    warm_up()
    for seed in seeds:
        for encoder in encoders:
            yield from density_rows(corpus, encoder, domains, seed)


def main() -> None:
    """Measure, and write the tables after every row: a run that is stopped leaves what it has."""
    parser = argparse.ArgumentParser(description="k-means, c-BTM's recipe, BERTopic, UMAP + HDBSCAN on the same vectors")
    parser.add_argument("--corpus", default="../shared/corpora/*.parquet", help="Parquet files with text, source and label")
    parser.add_argument("--encoders", nargs="+", default=["minilm", "lexical"])
    parser.add_argument("--domains", type=int, nargs="+", default=[12, 24, 48])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    rows: list[Row] = []
    with threadpool_limits(1):
        for row in runs(corpus_of(arguments.corpus), arguments.encoders, arguments.domains, arguments.seeds):
            rows.append(row)
            sys.stderr.write(f"{row}\n")
            write(rows)


if __name__ == "__main__":
    main()
