"""How often the beginning of a text is routed to where the whole text was placed, by encoder, domains and length.

The corpora partitioned by each encoder into each number of domains; all held-out documents, cut to their first tokens, or to as
many from anywhere in them (`from`), are routed by the manifest's own rule and by the one that is fitted to prompts of training
documents as `lmsplit evaluate` does (`by`). `tokens`: MiniLM's, for every encoder, the two special ones not counted.
`routed`: share that goes to the domain that the manifest has the document in, with its 95 % interval, originals drawn
with replacement. `labels`: share that goes to a domain whose most frequent label is the document's. Controls: `chance` is the sum
of the squares of the domains' shares, `other text` the share that goes to the domain of the document that stands next in a random
order. `longer documents`: share of the documents that have more tokens; the others are not cut.

`python benchmarks/routing.py` takes 50 minutes on 2 cores for 100 MB, most of it for MiniLM's vectors.
"""

import argparse
import itertools
import json
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl
import yaml
from measure import write_results
from tokenizers import Tokenizer
from vectors import CORPUS, manifest

from lmsplit.manifests.configuration import load
from lmsplit.manifests.layout import domain_index
from lmsplit.manifests.model_files import MINILM, find_model
from lmsplit.manifests.placement import Floats
from lmsplit.manifests.reader import Manifest
from lmsplit.partition.config import Partition
from lmsplit.partition.pipeline import partition
from lmsplit.partition.planning import make_plan
from lmsplit.partition.refit import refit_plan
from lmsplit.train.campaign import Campaign
from lmsplit.train.config import Training
from lmsplit.train.routed import routed
from lmsplit.train.router import Router, Routing
from lmsplit.train.routing_accuracy import accuracy, majority_labels
from lmsplit.train.routing_fit import LENGTHS, fit_routing

DOMAINS: Final = (12, 24)
VOCABULARY: Final = 4096


def opened(output: Path, corpus: str, encoder: str, domains: int) -> Manifest:
    """Return a partition of the corpus, made on the first call; others than the first are refits of its vectors."""
    directory = output / encoder / "manifest"
    newest = manifest(directory.parent, corpus, DOMAINS[0], encoder, keep_embeddings=True)
    version = DOMAINS.index(domains)
    if version > newest.version:
        kept = yaml.safe_load(next((directory / "_work").glob("*/configuration.yaml")).read_text())
        configuration = Partition.model_validate(kept | {"domains": domains})
        partition(configuration, refit_plan(make_plan(configuration), str(directory)))
    return Manifest.open(f"{directory}@{version}")


def routers(manifest_path: str, output: Path) -> dict[str, Router]:
    """Return the router by the manifest's rule, and by the one that is fitted to prompts of its training documents."""
    values = {
        "manifest": manifest_path,
        "output": str(output),
        "model": "1m",
        "seed_model": {"tokens": 1},
        "expert": {"tokens": 1},
    }
    output.mkdir(parents=True, exist_ok=True)
    path = output / "train.yaml"
    path.write_text(json.dumps(values | {"tokenizer": {"vocabulary_size": VOCABULARY}}))
    campaign = Campaign.open(load(Training, str(path), ()))
    placement = Router.open(campaign.output, settings=Routing(by_placement=True))
    fitted = fit_routing(campaign, placement)
    assert fitted.prompt_rule is not None
    return {"placement": placement, "prompts": placement.fitted_with(fitted)}


def cut(text: str, ends: list[tuple[int, int]], length: int, start: float) -> str:
    """Return so many tokens of a text from a place on, a share of those that leave enough; all of it where it is shorter."""
    if len(ends) <= length:
        return text
    first = int(start * (len(ends) - length))
    return text[ends[first][0] : ends[first + length - 1][1]]


def measure(opened: Manifest, output: Path, tokenizer: Tokenizer, vectors: dict[tuple[str, int], Floats]) -> list[dict[str, Any]]:
    """Return a row for each length, place and rule.

    Args:
        opened: the partition.
        output: where a training would be.
        tokenizer: whose tokens the lengths are counted in.
        vectors: of the prompts by place and length; what is not there yet is put there. A refit holds out the same documents.
    """
    rows = opened.scan().select("doc_id", "domain", "label", "split")
    counts = rows.filter(pl.col("split") == "train").group_by("domain", "label").len().collect()
    majority = majority_labels(counts["domain"].to_list(), counts["label"].to_list(), counts["len"].to_list())
    held_out = opened.scan().filter(pl.col("split") == "heldout").select("text", "domain", "label", "group").collect()
    names = [each.domain for each in opened.domains]
    wanted_N = np.array([domain_index(name) for name in held_out["domain"]])
    offsets = [each.offsets for each in tokenizer.encode_batch(held_out["text"].to_list(), add_special_tokens=False)]
    shares = np.bincount(wanted_N) / len(wanted_N)
    random = np.random.default_rng(0)
    shuffled_N = wanted_N[random.permutation(len(wanted_N))]
    starts = {"beginning": np.zeros(len(wanted_N)), "anywhere": random.random(len(wanted_N))}
    of_rules = routers(f"{output.parent / 'manifest'}@{opened.version}", output)
    found = []
    for (place, start_N), length in itertools.product(starts.items(), LENGTHS):
        texts = [cut(*each, length, start) for *each, start in zip(held_out["text"], offsets, start_N, strict=True)]
        if (place, length) not in vectors:
            vectors[place, length] = of_rules["placement"].vectors(texts)
        for by, router in of_rules.items():
            first_N = routed(router, texts, vectors[place, length], names).domain_N
            labels = np.array([majority.get(f"d{number:05d}", "") for number in first_N])
            right = accuracy(first_N, wanted_N, held_out["group"].to_numpy())
            found.append(
                {
                    "from": place,
                    "tokens": length,
                    "by": by,
                    "documents": len(texts),
                    "longer documents": float(np.mean([len(each) > length for each in offsets])),
                    "routed": f"{right['accuracy']:.1%} [{right['low']:.1%}, {right['high']:.1%}]",
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
    parser.add_argument("--encoders", nargs="*", default=["minilm", "lexical"])
    parser.add_argument("--domains", nargs="*", type=int, default=list(DOMAINS), choices=DOMAINS)
    options = parser.parse_args()
    tokenizer = Tokenizer.from_file(str(find_model(MINILM).directory / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    for encoder in options.encoders:
        vectors: dict[tuple[str, int], Floats] = {}
        for domains in options.domains:
            output = options.output / encoder / f"training-{domains}"
            found = measure(opened(options.output, options.corpus, encoder, domains), output, tokenizer, vectors)
            rows = [{"encoder": encoder, "domains": domains} | row for row in found]
            write_results(f"routing_{encoder}_{domains}", "Routing by the beginning of a text", __doc__ or "", rows)


if __name__ == "__main__":
    main()
