"""A labelled corpus encoded once and kept, for the benchmarks that cluster the same vectors again and again.

`python benchmarks/vectors.py` encodes it; whoever calls `encoded` finds the result in `benchmarks/.cache`, named by the corpus'
paths, sizes and encoder, and makes it where it is absent. Takes about 5 minutes on 2 cores for 100 MB.
"""

import argparse
import hashlib
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from threadpoolctl import threadpool_limits

from lmsplit.manifests.placement import Floats
from lmsplit.manifests.reader import Manifest
from lmsplit.partition import lexical
from lmsplit.partition.config import Partition
from lmsplit.partition.pipeline import partition

CORPUS = "../shared/corpora/*.parquet"
_CACHE = Path(__file__).parent / ".cache"
_WORKERS = 2
_SLICE = 2048


class Encoded(NamedTuple):
    """A labelled corpus with its vectors, in a fixed random order."""

    documents: pl.DataFrame
    """text, source, label."""
    vectors_ND: Floats


def encoded(encoder: str, corpus: str = CORPUS) -> Encoded:
    """Return the corpus encoded by `minilm`, or by `lexical` as fitted on 10,000 of its documents."""
    paths = sorted(Path(corpus).parent.glob(Path(corpus).name))
    key = hashlib.sha256(repr([(path.name, path.stat().st_size) for path in paths]).encode()).hexdigest()[:12]
    documents = pl.concat([pl.read_parquet(path, columns=["text", "source", "label"]) for path in paths])
    documents = documents.sample(fraction=1, shuffle=True, seed=0)
    file = _CACHE / f"{encoder}-{key}.npy"
    if not file.exists():
        _CACHE.mkdir(exist_ok=True)
        np.save(file, _encode(encoder, documents["text"].to_list()))
    return Encoded(documents, np.load(file))


def manifest(output: Path, corpus: str, domains: int, encoder: str = "lexical", **keys: Any) -> Manifest:
    """Open `<output>/manifest`, the corpus in domains, cuts of one original in one split; made on the first call."""
    directory = output / "manifest"
    if not (directory / "commits").exists():
        output.mkdir(parents=True, exist_ok=True)
        grouped = pl.read_parquet(corpus).with_columns(pl.col("id").str.split("#").list.first().alias("group"))
        grouped.write_parquet(output / "corpus.parquet", row_group_size=5000)
        kept = {"keep": ["label"]} if "label" in grouped.columns else {}
        values = {"input": {"paths": str(output / "corpus.parquet"), "group": "group"} | kept, "output": str(directory)}
        partition(Partition.model_validate(values | {"domains": domains, "encoder": encoder} | keys))
    return Manifest.open(directory)


def _encode(encoder: str, texts: list[str]) -> Floats:
    if encoder == "lexical":
        with threadpool_limits(1):
            return lexical.fit(texts[:10_000], 0)[0].encode(texts)
    slices = [texts[start : start + _SLICE] for start in range(0, len(texts), _SLICE)]
    with ProcessPoolExecutor(_WORKERS) as pool:
        return np.concatenate(list(pool.map(_minilm, slices)))


def _minilm(texts: list[str]) -> Floats:
    import torch
    from sentence_encoder import encoder

    torch.set_num_threads(1)
    return encoder().encode(texts)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus", default=CORPUS)
    for name in ("lexical", "minilm"):
        sys.stderr.write(f"{name}: {encoded(name, parser.parse_args().corpus).vectors_ND.shape}\n")
