"""How often the beginning of a text is routed to where the whole text was placed, by encoder, domains and length.

The corpora partitioned by each encoder into each number of domains; all held-out documents, cut to their first tokens, are
placed by the manifest's own encoder and rule. `tokens`: MiniLM's, for every encoder, the two special ones not counted.
`placed`: share that lands in the domain that the manifest has it in, with its 95 % interval, originals of documents drawn with
replacement. `two nearest`: or whose runner-up is that one. `labels`: share that lands in a domain whose most frequent label is
the document's. Controls: `chance` is the sum of the squares of the domains' shares, `other text` the share that lands in the
domain of the document that stands next in a random order. `longer documents`: share of the documents that have more tokens; the
others are not cut.

`python benchmarks/routing.py` takes 20 minutes on 2 cores for 100 MB, nearly all of it for the partitions.
"""

import argparse
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl
import yaml
from measure import write_results
from tokenizers import Tokenizer
from vectors import CORPUS, manifest

from lmsplit.manifests.layout import domain_index
from lmsplit.manifests.model_files import MINILM, find_model
from lmsplit.manifests.placement import is_unit
from lmsplit.manifests.reader import Manifest
from lmsplit.partition.config import Partition
from lmsplit.partition.pipeline import partition
from lmsplit.partition.planning import make_plan
from lmsplit.partition.refit import refit_plan
from lmsplit.train.routing_accuracy import accuracy, majority_labels

LENGTHS: Final = (8, 16, 32, 64, 128, 256)
DOMAINS: Final = (12, 24)


def opened(output: Path, corpus: str, encoder: str, domains: int) -> Manifest:
    """Return a partition of the corpus, made on the first call; others than the first are refits of its vectors."""
    directory = output / encoder / "manifest"
    first = manifest(directory.parent, corpus, DOMAINS[0], encoder, keep_embeddings=True)
    version = DOMAINS.index(domains)
    if version > Manifest.open(directory).version:
        kept = yaml.safe_load(next((directory / "_work").glob("*/configuration.yaml")).read_text())
        configuration = Partition.model_validate(kept | {"domains": domains})
        partition(configuration, refit_plan(make_plan(configuration), str(directory)))
    return Manifest.open(f"{directory}@{version}") if version else first


def measure(opened: Manifest, tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """Return a row for each length."""
    rows = opened.scan().select("doc_id", "domain", "label", "split")
    counts = rows.group_by("domain", "label").len().collect()
    majority = majority_labels(counts["domain"].to_list(), counts["label"].to_list(), counts["len"].to_list())
    held_out = opened.scan().filter(pl.col("split") == "heldout").select("text", "domain", "label", "group").collect()
    wanted_N = np.array([domain_index(name) for name in held_out["domain"]])
    encodings = tokenizer.encode_batch(held_out["text"].to_list(), add_special_tokens=False)
    encoder, rule = opened.encoder(), opened.rule()
    shares = np.bincount(wanted_N) / len(wanted_N)
    shuffled_N = wanted_N[np.random.default_rng(0).permutation(len(wanted_N))]
    found = []
    for length in LENGTHS:
        texts = [
            text[: each.offsets[length - 1][1]] if len(each.offsets) > length else text
            for text, each in zip(held_out["text"], encodings, strict=True)
        ]
        vectors_ND = encoder.encode(texts)
        found_N = is_unit(vectors_ND)  # not where the encoder finds nothing
        placed = rule.place(vectors_ND[found_N])
        first_N, second_N = np.full(len(texts), -1), np.full(len(texts), -1)
        first_N[found_N], second_N[found_N] = placed.domain, placed.second_domain
        labels = np.array([majority.get(f"d{number:05d}", "") for number in first_N])
        right = accuracy(first_N, wanted_N, held_out["group"].to_numpy())
        found.append(
            {
                "tokens": length,
                "documents": len(texts),
                "longer documents": float(np.mean([len(each.offsets) > length for each in encodings])),
                "placed": f"{right['accuracy']:.1%} [{right['low']:.1%}, {right['high']:.1%}]",
                "two nearest": float(((first_N == wanted_N) | (second_N == wanted_N)).mean()),
                "labels": float((labels == held_out["label"].to_numpy()).mean()),
                "chance": float(shares @ shares),
                "other text": float((first_N == shuffled_N).mean()),
            }
        )
    return found


def main() -> None:
    """Partition, route, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus", default=CORPUS)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / ".cache" / "routing")
    options = parser.parse_args()
    tokenizer = Tokenizer.from_file(str(find_model(MINILM).directory / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    rows = []
    for encoder in ("minilm", "lexical"):
        for domains in DOMAINS:
            found = measure(opened(options.output, options.corpus, encoder, domains), tokenizer)
            rows += [{"encoder": encoder, "domains": domains} | row for row in found]
            write_results("routing", "Routing by the beginning of a text", __doc__ or "", rows)


if __name__ == "__main__":
    main()
