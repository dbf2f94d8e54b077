"""Does a bound on the largest domain that was solved on a sample hold on the corpus?

For each encoder, k and bound r, over 20 seeds: a random sample as large as a run would take, a fit with `max_imbalance: r`,
and the largest domain over the mean, in bytes, when the whole corpus is placed. `within 5 %` is the share of the seeds in
which it is at most 1.05 r, `within r` at most r. The corpus is a mixture of 100 MB, so at k = 12 the sample is half of it and
more; `small` repeats each with a sample of 10,000 documents given, where the margin has more to do. `margin` is the mean of 1
+ 2s. Takes about 20 minutes on 2 cores.
"""

import argparse
import sys
from typing import Any

import numpy as np
from domains import fit, sample_of
from measure import write_results
from vectors import CORPUS, Encoded, encoded

CASES = (("minilm", 12), ("lexical", 12), ("lexical", 24))
BOUNDS = (1.25, 1.5, 2.0)
SMALL = 10_000


def measure(name: str, corpus: Encoded, domains: int, bound: float, seeds: int, small: bool) -> dict[str, Any]:
    """Fit with each seed, place the corpus, and count."""
    lengths = corpus.documents["text"].str.len_bytes().to_numpy()
    reached, margins, before = [], [], []
    for seed in range(seeds):
        rows = sample_of(corpus, (domains,), bound, seed)
        rows = rows[:SMALL] if small else rows
        fitted, _ = fit(corpus, rows, (domains,), bound, seed)
        sizes = np.bincount(fitted.rule.place(corpus.vectors_ND).domain, lengths)
        reached.append(float(sizes.max() / sizes.mean()))
        margins.append(1.0 if fitted.balance is None else 1 + 2 * fitted.balance.sampling_error)
        before.append(fitted.imbalance if fitted.balance is None else fitted.balance.imbalance_before)
    values = np.array(reached)
    row = {
        "encoder": name,
        "k": domains,
        "r": bound,
        "sample": len(rows),
        "seeds": seeds,
        "without a bound": float(np.mean(before)),
        "margin": float(np.mean(margins)),
        "mean reached": float(values.mean()),
        "largest reached": float(values.max()),
        "within r": float((values <= bound).mean()),
        "within 5 %": float((values <= 1.05 * bound).mean()),
    }
    sys.stderr.write(f"{row}\n")
    return row


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus", default=CORPUS, help="Parquet files with text, source and label")
    parser.add_argument("--seeds", type=int, default=20)
    arguments = parser.parse_args()
    rows = [
        measure(name, encoded(name, arguments.corpus), domains, bound, arguments.seeds, small)
        for small in (False, True)
        for name, domains in CASES
        for bound in BOUNDS
    ]
    write_results("imbalance", "A bound on the largest domain, on the whole corpus", __doc__ or "", rows)


if __name__ == "__main__":
    main()
