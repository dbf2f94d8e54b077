"""What `encoder: minilm` is worth on a CPU: quality by precision and prefix, and speed by precision and batch.

Quality: 12,000 random documents are encoded in each variant and clustered by this project's own k-means; V-measure against the
labels, k = 12 and 24, per seed. `agreement` is the share of the documents that the rule fitted on the float32 vectors of 128
tokens places alike with the variant's vectors; `max distance change` how far their distance to the same centroid moves at most.

Speed: 256 documents of at least 128 tokens on one thread (CPU seconds), in batches of so many, beside sentence-transformers' own
`encode`; and of 48 random documents, the share whose vector is the same to the last bit when they are shuffled, cut into two
calls, or encoded alone.

Takes about 20 minutes on 2 cores.
"""

import argparse
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl
import torch
from measure import write_results
from sklearn.metrics import v_measure_score

from lmsplit.manifests.model_files import MINILM, find_model
from lmsplit.manifests.placement import Floats
from lmsplit.manifests.sentence import SentenceDescription, SentenceEncoder, load_model
from lmsplit.partition.cluster import kmeans
from lmsplit.partition.config import Encoder
from lmsplit.partition.sample import pin

VARIANTS: dict[str, dict[str, Any]] = {
    "float32, 128 tokens": {"precision": "float32"},
    "as shipped": {},
    "as shipped, 256 tokens": {"max_tokens": 256},
}
DOMAINS = (12, 24)


def encoder(**keys: Any) -> SentenceEncoder:
    """Return an encoder as a run would pin it here."""
    description = SentenceDescription.model_validate(pin(Encoder(**keys))[0])
    return SentenceEncoder(description, load_model(find_model(MINILM).directory, description.device, description.precision))


def measure_quality(texts: list[str], labels: list[str], seeds: list[int]) -> list[dict[str, Any]]:
    """Measure every variant at every k and seed."""
    vectors: dict[str, Floats] = {}
    for name, keys in VARIANTS.items():
        vectors[name] = encoder(**keys).encode(texts)
        sys.stderr.write(f"encoded: {name}\n")
    rows = []
    for domains in DOMAINS:
        for seed in seeds:
            fitted = {name: kmeans(vectors_ND, domains, seed) for name, vectors_ND in vectors.items()}
            rule = fitted["float32, 128 tokens"].rule()
            reference = rule.place(vectors["float32, 128 tokens"])
            for name, vectors_ND in vectors.items():
                placed = rule.place(vectors_ND)
                same = placed.domain == reference.domain
                own = fitted[name].rule().place(vectors_ND).domain
                rows.append(
                    {
                        "variant": name,
                        "k": domains,
                        "seed": seed,
                        "V": v_measure_score(labels, own),
                        "agreement": float(same.mean()),
                        "max distance change": float(np.abs(placed.distance - reference.distance)[same].max()),
                    }
                )
    return rows


def measure_speed(texts: list[str], mixed: list[str]) -> list[dict[str, Any]]:
    """Measure every precision and batch size, and sentence-transformers itself: speed on long texts, bits on mixed ones."""
    rows = []
    torch.set_num_threads(1)
    for precision in ("float32", "bfloat16"):
        encodings = {f"{size} fixed": encoder(precision=precision, batch_size=size).encode for size in (1, 4, 16, 32)}
        model = load_model(find_model(MINILM).directory, "cpu", precision)
        model.max_seq_length = 128
        encodings["32, sentence-transformers"] = lambda given, own=model: own.encode(given, batch_size=32)
        for name, encode in encodings.items():
            rate = _rate(lambda chosen=encode: chosen(texts), len(texts))
            rows.append({"precision": precision, "batch": name, "documents/s": rate, **_alike(encode, mixed)})
    return rows


def _alike(encode: Callable[[list[str]], Floats], texts: list[str]) -> dict[str, float]:
    """Return the share of texts whose vector is the same to the last bit in other company."""
    vectors_ND = encode(texts)
    order = np.random.default_rng(0).permutation(len(texts))
    others = {
        "same shuffled": encode([texts[i] for i in order])[np.argsort(order)],
        "same cut": np.concatenate([encode(texts[:37]), encode(texts[37:])]),
        "same alone": np.concatenate([encode([text]) for text in texts]),
    }
    return {key: float((vectors_ND == again_ND).all(axis=1).mean()) for key, again_ND in others.items()}


def _rate(encode: Callable[[], Floats], count: int) -> float:
    encode()
    rates = []
    for _ in range(3):
        started = time.process_time()
        encode()
        rates.append(count / (time.process_time() - started))
    return max(rates)


def main() -> None:
    """Measure and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus", default="../shared/corpora/*.parquet", help="Parquet files with text and label")
    parser.add_argument("--documents", type=int, default=12_000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", choices=["quality", "speed"])
    arguments = parser.parse_args()
    corpus = pl.scan_parquet(arguments.corpus).select("text", "label").collect()
    chosen = corpus.sample(min(arguments.documents, len(corpus)), seed=0, shuffle=True)
    if arguments.only != "speed":
        rows = measure_quality(chosen["text"].to_list(), chosen["label"].to_list(), arguments.seeds)
        write_results("sentence_encoder", "encoder: minilm, quality by precision and prefix", __doc__ or "", rows)
    if arguments.only != "quality":
        long = chosen.filter(pl.col("text").str.len_chars() > 1000).head(256)["text"].to_list()
        rows = measure_speed(long, chosen["text"].head(48).to_list())
        write_results("sentence_encoder_speed", "encoder: minilm, speed by precision and batch", __doc__ or "", rows)


if __name__ == "__main__":
    main()
