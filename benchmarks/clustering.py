"""K-means by nearest mean, as shipped, beside spherical k-means (highest cosine) and scikit-learn's, on the same vectors.

12,000 random documents (`random`), and as many of each label where there are enough (`even`), are encoded by each encoder and
clustered; V-measure of the domains against the labels. Spherical k-means has the same starts and restarts as ours, the best by
its own objective; scikit-learn's KMeans has 10 starts. Takes about 10 minutes on 2 cores.
"""

import argparse
import sys
from typing import Any

import faiss
import numpy as np
import polars as pl
from measure import write_results
from sentence_encoder import encoder
from sklearn.cluster import KMeans, kmeans_plusplus
from sklearn.metrics import v_measure_score
from threadpoolctl import threadpool_limits

from lmsplit.manifests.placement import Floats, normalised
from lmsplit.partition import lexical
from lmsplit.partition.cluster import ITERATIONS, kmeans, num_restarts


def spherical(points_ND: Floats, domains: int, seed: int) -> Any:
    """Return the domains of the best of as many starts of spherical k-means as `kmeans` has."""
    best: tuple[float, Any] = (-np.inf, None)
    for start in range(num_restarts(domains)):
        state = int(np.random.SeedSequence([seed, start]).generate_state(1)[0])
        starts, _ = kmeans_plusplus(points_ND, domains, random_state=state)
        one = faiss.Kmeans(points_ND.shape[1], domains, niter=ITERATIONS, spherical=True, max_points_per_centroid=10**9)
        one.train(points_ND, init_centroids=starts)
        cosines_NK = points_ND @ normalised(np.asarray(one.centroids)).T
        best = max(best, (float(cosines_NK.max(axis=1).mean()), cosines_NK.argmax(axis=1)), key=lambda pair: pair[0])
    return best[1]


def measure(name: str, drawn: str, corpus: pl.DataFrame, seeds: list[int]) -> list[dict[str, Any]]:
    """Measure one encoder on one draw of documents."""
    texts, labels = corpus["text"].to_list(), corpus["label"]
    vectors_ND = encoder().encode(texts) if name == "minilm" else lexical.fit(texts, 0)[0].encode(texts)
    rows = []
    for domains in (12, 24):
        for seed in seeds:
            ours = kmeans(vectors_ND, domains, seed).rule().place(vectors_ND).domain
            sklearn = KMeans(domains, n_init=10, random_state=seed).fit_predict(vectors_ND)
            measured = {"V nearest mean": ours, "V spherical": spherical(vectors_ND, domains, seed), "V sklearn": sklearn}
            values = {key: v_measure_score(labels, found) for key, found in measured.items()}
            largest = float(np.bincount(ours).max() * domains / len(texts))
            rows.append({"encoder": name, "documents": drawn, "k": domains, "seed": seed, **values, "largest/mean": largest})
            sys.stderr.write(f"{rows[-1]}\n")
    return rows


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus", default="../shared/corpora/*.parquet", help="Parquet files with text and label")
    parser.add_argument("--documents", type=int, default=12_000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    corpus = pl.scan_parquet(arguments.corpus).select("text", "label").collect().sample(fraction=1, shuffle=True, seed=0)
    share = arguments.documents // corpus["label"].n_unique()
    even = corpus.filter(pl.int_range(pl.len()).over("label") < share)
    faiss.omp_set_num_threads(1)
    with threadpool_limits(1):
        rows = [
            row
            for name in ("minilm", "lexical")
            for drawn, documents in (("random", corpus.head(arguments.documents)), ("even", even))
            for row in measure(name, drawn, documents, arguments.seeds)
        ]
    write_results("clustering", "Nearest mean, spherical, and scikit-learn", __doc__ or "", rows)


if __name__ == "__main__":
    main()
