"""How well and how fast a labelled corpus is partitioned, beside scikit-learn's k-means on the same vectors.

For `lexical` and each seed, and for `minilm` and the first one: the real command with 2 workers (wall seconds, documents/s),
`verify --deep`, then V-measure of the published domains against the labels. For `lexical`, beside it scikit-learn's KMeans
(k-means++, 10 starts) on the same vectors, those of the manifest's own encoder: fitted on as many random documents as the
clustering sample has, and on all. Takes about 12 minutes on 2 cores.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from measure import write_results
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score, v_measure_score

from lmsplit.manifests.reader import Manifest

LMSPLIT = str(Path(sys.executable).parent / "lmsplit")
SAMPLE = 10_000


def run(*arguments: str) -> float:
    """Run an lmsplit command; return its wall seconds."""
    started = time.monotonic()
    subprocess.run([LMSPLIT, *arguments], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.monotonic() - started


def measure(corpus: str, domains: int, encoder: str, seed: int, directory: Path) -> dict[str, Any]:
    """Partition with one encoder and seed, and compare."""
    output = directory / f"{encoder}{seed}"
    configuration = directory / f"{encoder}{seed}.yaml"
    given = {"input": {"paths": corpus, "keep": ["label"]}, "output": str(output), "domains": domains, "seed": seed}
    configuration.write_text(json.dumps(given | {"encoder": encoder, "executor": {"workers": 2}}))
    wall_s = run("partition", str(configuration))
    verify_s = run("verify", str(output), "--deep")
    manifest = Manifest.open(output)
    documents = manifest.scan().select("text", "label", "domain").collect()
    labels = documents["label"]
    on_sample = on_all = None
    if encoder == "lexical":
        embeddings_ND = manifest.encoder().encode(documents["text"].to_list())
        sample = np.random.default_rng(seed).choice(len(documents), min(SAMPLE, len(documents)), replace=False)
        on_sample = KMeans(domains, n_init=10, random_state=seed).fit(embeddings_ND[sample]).predict(embeddings_ND)
        on_all = KMeans(domains, n_init=10, random_state=seed).fit_predict(embeddings_ND)
    return {
        "encoder": encoder,
        "seed": seed,
        "documents": len(documents),
        "wall_s": wall_s,
        "documents_per_s": len(documents) / wall_s,
        "verify_deep_s": verify_s,
        "V lmsplit": v_measure_score(labels, documents["domain"]),
        "V sklearn, same sample size": None if on_sample is None else v_measure_score(labels, on_sample),
        "V sklearn, all documents": None if on_all is None else v_measure_score(labels, on_all),
        "NMI": normalized_mutual_info_score(labels, documents["domain"]),
        "ARI": adjusted_rand_score(labels, documents["domain"]),
        "largest/mean": float(documents["domain"].value_counts()["count"].max() * domains / len(documents)),
    }


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus", default="../shared/corpora/*.parquet", help="Parquet files with text, id and label")
    parser.add_argument("--domains", type=int, default=12)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        asked = [("lexical", seed) for seed in arguments.seeds] + [("minilm", arguments.seeds[0])]
        rows = [measure(arguments.corpus, arguments.domains, encoder, seed, Path(directory)) for encoder, seed in asked]
    write_results("partition_quality", "Partitioning quality and speed", __doc__ or "", rows)
    sys.stdout.write(pl.DataFrame(rows).write_json() + "\n")


if __name__ == "__main__":
    main()
