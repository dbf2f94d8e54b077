"""What the lexical encoder's constants are worth: V-measure against labels, one constant changed at a time.

10,000 random documents are encoded and clustered by this project's own k-means (k = number of labels), 20,000 others are placed;
V-measure of their domains against the labels, mean and range over three seeds. `sklearn` is scikit-learn's KMeans with 10 starts
on the same vectors. Takes about 15 minutes on 2 cores.
"""

import argparse
import sys
import zlib
from typing import Any

import numpy as np
import polars as pl
from measure import write_results
from sklearn.cluster import KMeans
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS
from sklearn.metrics import v_measure_score

from lmsplit.manifests.lexical import LexicalFeatures
from lmsplit.partition import lexical
from lmsplit.partition.cluster import kmeans


class WithoutStopWords(LexicalFeatures):
    """The features of a text without scikit-learn's English stop words."""

    _stop_words = frozenset(zlib.crc32(word.encode()) for word in ENGLISH_STOP_WORDS)

    def _hashes(self, text: str) -> list[int]:
        return [value for value in super()._hashes(text) if value not in self._stop_words]


VARIANTS: dict[str, dict[str, Any]] = {
    "as shipped": {},
    "buckets 2^15": {"NUM_BUCKETS": 1 << 15},
    "buckets 2^17": {"NUM_BUCKETS": 1 << 17},
    "64 dimensions": {"DIMENSIONS": 64},
    "100 dimensions": {"DIMENSIONS": 100},
    "200 dimensions": {"DIMENSIONS": 200},
    "256 dimensions": {"DIMENSIONS": 256},
    "no whitening (power 0)": {"SINGULAR_POWER": 0.0},
    "full whitening (power -1)": {"SINGULAR_POWER": -1.0},
    "without English stop words": {"LexicalFeatures": WithoutStopWords},
    "first 1,000 characters": {"MAX_CHARACTERS": 1_000},
}


def measure(name: str, corpus: pl.DataFrame, seeds: list[int]) -> dict[str, Any]:
    """Measure one variant over the seeds."""
    shipped = {key: getattr(lexical, key) for key in VARIANTS[name]}
    for key, value in VARIANTS[name].items():
        setattr(lexical, key, value)
    ours, sklearn = [], []
    for seed in seeds:
        order = np.random.default_rng(seed).permutation(len(corpus))
        sample, others = corpus[order[:10_000]], corpus[order[10_000:30_000]]
        encoder, _ = lexical.fit(sample["text"].to_list(), seed)
        fitted_ND, placed_ND = encoder.encode(sample["text"].to_list()), encoder.encode(others["text"].to_list())
        domains = corpus["label"].n_unique()
        rule = kmeans(fitted_ND, domains, seed).rule()
        ours.append(v_measure_score(others["label"], rule.place(placed_ND).domain))
        sklearn.append(
            v_measure_score(others["label"], KMeans(domains, n_init=10, random_state=seed).fit(fitted_ND).predict(placed_ND))
        )
    for key, value in shipped.items():
        setattr(lexical, key, value)
    return {
        "variant": name,
        "V mean": float(np.mean(ours)),
        "V min": float(np.min(ours)),
        "V max": float(np.max(ours)),
        "V sklearn mean": float(np.mean(sklearn)),
        "V sklearn min": float(np.min(sklearn)),
        "V sklearn max": float(np.max(sklearn)),
    }


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus", default="../shared/corpora/*.parquet", help="Parquet files with text and label")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    corpus = pl.scan_parquet(arguments.corpus).select("text", "label").collect()
    rows = [measure(name, corpus, arguments.seeds) for name in VARIANTS]
    write_results("lexical_encoder", "The lexical encoder's constants", __doc__ or "", rows)
    sys.stdout.write(pl.DataFrame(rows).write_json() + "\n")


if __name__ == "__main__":
    main()
