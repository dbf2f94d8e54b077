"""How well a labelled corpus is divided: flat and as a tree, free and with a bounded largest domain.

The rows of other methods are in `neighbours.py`. Each rule is fitted as `lmsplit partition` does: on a random sample as large
as it would take (10,000 documents, or as many as balancing asks for, at most nine tenths), by all restarts; then every
document is placed. V-measure, NMI and ARI compare the domains with the labels. `largest/mean` is in bytes of text on the
whole corpus, `before` what it was on the sample without a bound; `coherence` the share of the sample's variance explained,
and `coherence before` without a bound. `fit_s` is the fit given vectors, on one thread; `over free` that time over the fit
without a bound on the same sample. Takes about 20 minutes on 2 cores.
"""

import argparse
import sys
import time
from typing import Any

import numpy as np
from measure import write_results
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score, v_measure_score
from vectors import CORPUS, Encoded, encoded

from lmsplit.partition.config import Partition
from lmsplit.partition.hierarchy import Fitted, fit_rule

SHAPES: tuple[tuple[int, ...], ...] = ((12,), (24,), (48,), (4, 3), (6, 4), (8, 6))
BOUNDS = (None, 1.25, 1.5, 2.0)
RESERVED = 0.1
"""Documents that may be held out are in no sample."""


def sample_of(corpus: Encoded, shape: tuple[int, ...], bound: float | None, seed: int) -> np.ndarray:
    """Return the rows that a run with this seed might have drawn."""
    lengths = corpus.documents["text"].str.len_bytes().to_numpy().astype(float)
    values = {"input": "", "output": "-", "domains": list(shape), "max_imbalance": bound}
    wanted = Partition.model_validate(values).wanted_sample(float((lengths**2).mean() / lengths.mean() ** 2))
    order = np.random.default_rng(seed).permutation(len(lengths))
    return order[: min(wanted, int((1 - RESERVED) * len(order)))]


def fit(corpus: Encoded, rows: np.ndarray, shape: tuple[int, ...], bound: float | None, seed: int) -> tuple[Fitted, float]:
    """Fit as a run would; return the seconds too."""
    lengths = corpus.documents["text"].str.len_bytes().to_numpy().astype(float)
    started = time.perf_counter()
    fraction = len(rows) / len(lengths)
    fitted = fit_rule(corpus.vectors_ND[rows], lengths[rows], shape, seed, max_imbalance=bound, sampled_fraction=fraction)
    return fitted, time.perf_counter() - started


def measure(name: str, corpus: Encoded, shape: tuple[int, ...], bound: float | None, seed: int) -> dict[str, Any]:
    """Fit, place all, and compare with the labels."""
    rows = sample_of(corpus, shape, bound, seed)
    fitted, fit_s = fit(corpus, rows, shape, bound, seed)
    free_s = fit(corpus, rows, shape, None, seed)[1] if bound else fit_s
    domains = fitted.rule.place(corpus.vectors_ND).domain
    labels = corpus.documents["label"]
    sizes = np.bincount(domains, corpus.documents["text"].str.len_bytes().to_numpy())
    before = fitted.balance
    return {
        "method": "lmsplit",
        "encoder": name,
        "k": " x ".join(map(str, shape)),
        "max_imbalance": bound or "none",
        "seed": seed,
        "sample": len(rows),
        "V": v_measure_score(labels, domains),
        "NMI": normalized_mutual_info_score(labels, domains, average_method="geometric"),
        "ARI": adjusted_rand_score(labels, domains),
        "largest/mean": float(sizes.max() / sizes.mean()),
        "before": before.imbalance_before if before else fitted.imbalance,
        "coherence": fitted.coherence,
        "coherence before": before.coherence_before if before else fitted.coherence,
        "fit_s": fit_s,
        "over free": fit_s / free_s,
    }


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus", default=CORPUS, help="Parquet files with text, source and label")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    rows = []
    for name in ("minilm", "lexical"):
        corpus = encoded(name, arguments.corpus)
        for shape in SHAPES:
            for bound in BOUNDS:
                for seed in arguments.seeds:
                    rows.append(measure(name, corpus, shape, bound, seed))
                    sys.stderr.write(f"{rows[-1]}\n")
    write_results("domains", "Domains against labels", __doc__ or "", rows)


if __name__ == "__main__":
    main()
