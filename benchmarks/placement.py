"""Placing vectors: how near the arithmetic and memory of one core it comes, and each way of doing it beside the others.

One thread places, as each worker of the pipeline does, encoded documents (D = 384). Centroids are the means of the documents
nearest to k random ones, prices half their squared lengths. The roofline in documents/s is min(peak / (2 · D · nodes compared),
bandwidth / (4 · D)); peak is that of a square float32 product, bandwidth that of a sum over 128 MB. The tree compares 64 + 64
nodes; the way to a second domain may compare 64 more, which the roofline does not count.

`share` is of the roofline: the best of all rounds over the best peak and bandwidth; `median share` compares within each round.
The columns after it are shares too. `product` is a float32 product of the documents and nodes alone, which bounds whatever is
built on one. `float64` and `nominated` are the two ways that there are, for every k: as shipped, up to 64 siblings are
multiplied in float64, and more are nominated in float32 and the best two multiplied in float64. `before` is the implementation
before (float32 nominates, ragged pairs are multiplied and sorted). Times are CPU times of the thread, the documents not in a
cache, taken in turn, so that other programs disturb them little.
"""

import argparse
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from measure import write_results
from threadpoolctl import threadpool_limits
from vectors import encoded

from lmsplit.manifests import nearest
from lmsplit.manifests.placement import Floats, PlacementRule, lengths

DOCUMENTS, DOCUMENTS_MANY, DOCUMENTS_TREE = 16_384, 4_096, 65_536
SIDE = 1024
BRANCHES = 64
FLAT = (12, 32, 64, 256, 1024, 4096)


def means(vectors_ND: Floats, k: int, generator: np.random.Generator) -> tuple[Floats, Any]:
    """Return up to k centroids, and the one nearest to each document."""
    seeds_KD = vectors_ND[generator.choice(len(vectors_ND), min(k, len(vectors_ND)), replace=False)]
    nearest_N = np.concatenate([(part @ seeds_KD.T).argmax(axis=1) for part in np.array_split(vectors_ND, 32)])
    used, nearest_N = np.unique(nearest_N, return_inverse=True)
    sums_KD = np.zeros((len(used), vectors_ND.shape[1]))
    np.add.at(sums_KD, nearest_N, vectors_ND)
    return (sums_KD / np.bincount(nearest_N)[:, None]).astype(np.float32), nearest_N


def flat_rule(vectors_ND: Floats, k: int, generator: np.random.Generator) -> PlacementRule:
    """Return a rule of about k domains."""
    centroids_KD, _ = means(vectors_ND, k, generator)
    return PlacementRule(centroids_KD, lengths(centroids_KD) ** 2 / 2)


def tree_rule(vectors_ND: Floats, k: int, generator: np.random.Generator) -> PlacementRule:
    """Return a rule of k branches with about k leaves each."""
    root_KD, nearest_N = means(vectors_ND, k, generator)
    below = [means(vectors_ND[nearest_N == branch], k, generator)[0] for branch in range(len(root_KD))]
    centroids_MD = np.concatenate([root_KD, *below])
    parent_M = np.repeat(np.arange(-1, len(root_KD), dtype=np.int32), [len(root_KD), *map(len, below)])
    return PlacementRule(centroids_MD, lengths(centroids_MD) ** 2 / 2, parent_M)


def place_as_before(rule: PlacementRule, vectors_ND: Floats) -> None:
    """Place as the implementation before did: float32 nominates, ragged pairs are multiplied in float64 and sorted."""
    np.count_nonzero(np.abs(lengths(vectors_ND) - 1) > 1e-3)
    slack = 4 * vectors_ND.shape[1] * float(np.finfo(np.float32).eps)
    for start in range(0, len(vectors_ND), 4096):
        block_ND = vectors_ND[start : start + 4096]
        fast_NK = (rule.prices_K + 1.0) - block_ND @ rule.centroids_KD.T
        row, domain = np.nonzero(fast_NK <= (np.partition(fast_NK, 1, axis=1)[:, 1] + slack)[:, None])
        dot = np.einsum("nd,nd->n", block_ND[row].astype(np.float64), rule.centroids_KD[domain].astype(np.float64))
        np.searchsorted(row[np.lexsort((domain, 1.0 - dot + rule.prices_K[domain], row))], np.arange(len(block_ND)))


def multiply(vectors_ND: Floats, centroids_KD: Floats, times: int) -> None:
    """Multiply and do nothing else, in blocks of the rows that suit so many columns best."""
    columns_DK, rows = np.ascontiguousarray(centroids_KD.T), 192 if len(centroids_KD) <= 12 else 1024
    scores_BK = np.empty((rows, len(centroids_KD)), np.float32)
    for start in range(0, len(vectors_ND), rows):
        for _ in range(times):
            block_BD = vectors_ND[start : start + rows]
            np.matmul(block_BD, columns_DK, out=scores_BK[: len(block_BD)])


def place_with(rule: PlacementRule, vectors_ND: Floats, few: int) -> None:
    """Place with up to so many centroids multiplied in float64."""
    shipped = nearest._FEW
    nearest._FEW = few
    try:
        rule.place(vectors_ND)
    finally:
        nearest._FEW = shipped


def rounds(ways: dict[str, Callable[[], Any]], number: int) -> dict[str, Any]:
    """Return the CPU seconds of each way, in as many rounds of all; none finds its data in a cache."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    other = np.ones(1 << 25, np.float32)
    for _ in range(number + 1):
        for name, way in ways.items():
            other.sum()
            start = time.thread_time()
            way()
            taken[name].append(time.thread_time() - start)
    return {name: np.array(seconds[1:]) for name, seconds in taken.items()}


def measure(k: int, rule: PlacementRule, vectors_ND: Floats, number: int) -> dict[str, Any]:
    """Measure a rule of about k domains beside the peak and the bandwidth."""
    square, stream = np.random.default_rng(0).random((SIDE, SIDE), np.float32), np.ones(1 << 25, np.float32)
    product, tree = np.empty_like(square), rule.depth > 1
    ways = {
        "peak": lambda: np.matmul(square, square, out=product),
        "bandwidth": stream.sum,
        "place": lambda: rule.place(vectors_ND),
        "product": lambda: multiply(vectors_ND, rule.centroids_MD[:BRANCHES] if tree else rule.centroids_MD, 2 if tree else 1),
        "float64": lambda: place_with(rule, vectors_ND, 10**9),
        "nominated": lambda: place_with(rule, vectors_ND, 0),
        "before": lambda: None if tree else place_as_before(rule, vectors_ND),
    }
    taken = rounds(ways, number)
    dimensions, documents = vectors_ND.shape[1], len(vectors_ND)
    flops = 2 * dimensions * (BRANCHES + BRANCHES if tree else k)
    peak, bandwidth = 2 * SIDE**3 / taken["peak"], stream.nbytes / taken["bandwidth"]
    roofline = min(peak.max() / flops, bandwidth.max() / (4 * dimensions))
    rate = {name: documents / taken[name].min() for name in ("place", "product", "float64", "nominated", "before")}
    in_turn = documents / taken["place"] / np.minimum(peak / flops, bandwidth / (4 * dimensions))
    return {
        "k": k,
        "tree": "64 x 64" if tree else "flat",
        "documents/s": float(rate["place"]),
        "GFLOP/s": float(rate["place"] * flops / 1e9),
        "peak GFLOP/s": float(peak.max() / 1e9),
        "GB/s": float(bandwidth.max() / 1e9),
        "roofline documents/s": float(roofline),
        "share": float(rate["place"] / roofline),
        "median share": float(np.median(in_turn)),
        **{name: float(rate[name] / roofline) for name in ("product", "float64", "nominated")},
        "before": None if tree else float(rate["before"] / roofline),
    }


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--encoder", default="minilm", choices=["minilm", "lexical"])
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    vectors_ND = encoded(arguments.encoder).vectors_ND[:DOCUMENTS_TREE]
    generator = np.random.default_rng(0)
    rows = []
    with threadpool_limits(1):
        for k in FLAT:
            documents = DOCUMENTS_MANY if k >= 1024 else DOCUMENTS
            rows.append(measure(k, flat_rule(vectors_ND, k, generator), vectors_ND[:documents], arguments.rounds))
            sys.stderr.write(f"{rows[-1]}\n")
        rows.append(measure(BRANCHES**2, tree_rule(vectors_ND, BRANCHES, generator), vectors_ND, arguments.rounds))
    write_results("placement", "Placement beside the roofline of one core", __doc__ or "", rows)


if __name__ == "__main__":
    main()
