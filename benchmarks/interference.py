"""Does holding an expert to the seed on other domains pay, and is it more than replay?

One seed on the mixture of the corpora, then one expert for each of twelve domains, in several ways, three seeds each, one for
other weights (`seeds`):

- `plain`: the own domain alone. `plain, random` and `hinge, random`: twelve random clusters of the same sizes.
- `replay`: 3 % of the tokens from other domains, trained on like the own ones. `replay ×…`: the same rows with a larger weight.
- `kl`: the divergence from the seed's predictions. `hinge token`, `hinge document`: the loss above the seed's. The number is λ.
- `dense, per model`: one model continued on what all experts are trained on, for an expert's tokens; `dense, total`: for those
  of all experts.

All of them but the dense ones draw the same rows of other domains. FLOPs are matched: where the seed is run on these rows too,
the expert trains on fewer tokens. S is what the experts gain on their own domains, I what they lose on others (`cross_loss`),
nats per token, domains counting alike; `routed` is the loss of held-out documents that go to their own domain's expert,
`routed, measured` to where the manifest's rule places their first 128 characters (`misrouted` says how many go elsewhere). ε*
is the share of misrouted texts from which on experts have a lower routed loss than `plain`, errors spread over all domains.
`− plain` and `− replay` are paired differences of `routed, measured` with 95 % intervals, seeds and originals of documents
drawn with replacement; below 0 is the better one. The second table has such differences from `plain` where documents are
routed by longer and shorter beginnings, and by their domains.

Runs that are done are kept in `--output`, so that the benchmark goes on where it was cut off. Takes about 2.5 hours on 2 cores.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any, Final, NamedTuple

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
import polars as pl
from matplotlib.figure import Figure
from measure import RESULTS, write_results
from paired import Judged, shown
from shuffled import ShuffledManifest
from vectors import CORPUS, manifest

from lmsplit.manifests.configuration import load
from lmsplit.manifests.layout import domain_index
from lmsplit.manifests.reader import Manifest
from lmsplit.train import experts
from lmsplit.train.campaign import Campaign
from lmsplit.train.config import Training
from lmsplit.train.cross_loss import break_even, cross_loss, interference, specialization
from lmsplit.train.layout import Matched
from lmsplit.train.models import load_model
from lmsplit.train.text_losses import document_losses

DOMAINS: Final = 12
SEED_TOKENS: Final = 3_000_000
TOKENS: Final = 300_000
FRACTION: Final = 0.03
HELD_OUT: Final = 60
"""Documents of a domain."""
PREFIX: Final = 128
PREFIXES: Final = (32, 64, PREFIX, 256, 1024)
"""Characters that documents are routed by."""

# Shapes: K experts, N held-out documents.


class Arm(NamedTuple):
    """One way to train the experts."""

    kind: str | None = None
    weight: float | None = None
    level: str = "token"
    random: bool = False
    dense: Matched | None = None
    """One dense model, for so many tokens."""
    is_once: bool = False
    """With the first seed only: another weight."""


ARMS: Final[dict[str, Arm]] = {
    "plain": Arm(),
    "replay": Arm("replay"),
    "replay ×10": Arm("replay", 0.3, is_once=True),
    "replay ×32": Arm("replay", 1.0, is_once=True),
    "kl 0.03": Arm("kl", 0.03),
    "kl 0.1": Arm("kl", 0.1),
    "kl 0.3": Arm("kl", 0.3, is_once=True),
    "kl 1": Arm("kl", 1.0, is_once=True),
    "hinge token 0.03": Arm("hinge", 0.03),
    "hinge token 0.1": Arm("hinge", 0.1, is_once=True),
    "hinge token 0.3": Arm("hinge", 0.3, is_once=True),
    "hinge token 1": Arm("hinge", 1.0, is_once=True),
    "hinge token 3": Arm("hinge", 3.0, is_once=True),
    "hinge document 0.03": Arm("hinge", 0.03, "document"),
    "hinge document 1": Arm("hinge", 1.0, "document", is_once=True),
    "plain, random": Arm(random=True),
    "hinge token 0.03, random": Arm("hinge", 0.03, random=True),
    "dense, per model": Arm(dense=Matched.PER_MODEL),
    "dense, total": Arm(dense=Matched.TOTAL),
}


class Bench:
    """A manifest, its held-out documents, and what was measured so far."""

    def __init__(self, output: Path, corpus: str, model: str) -> None:
        self.output = output
        self.model = model
        self.manifest = manifest(output, corpus, DOMAINS)
        self.shuffled = ShuffledManifest.of(self.manifest)
        documents = held_out(self.manifest)
        self.texts = documents["text"].to_list()
        self.groups = documents["group"].to_numpy()
        self.domain_N = {False: documents["domain"].to_numpy(), True: self.shuffled.domains_of(documents["doc_id"])}
        self.routed_N = self.routed_by(PREFIX)

    def routed_by(self, prefix: int) -> npt.NDArray[np.int64]:
        """Return (N,) the domain where the manifest's rule places the beginning of each held-out document.

        Args:
            prefix: its characters.
        """
        vectors_ND = self.manifest.encoder().encode([text[:prefix] for text in self.texts])
        return np.asarray(self.manifest.rule().place(vectors_ND).domain)

    def measured(self, name: str, seed: int) -> npt.NDArray[np.float64]:
        """Return (K, N) each expert's nats on each held-out document; (1, N) for the seed and dense models."""
        path = self.output / f"{seed}" / f"{name.replace(' ', '_').replace(',', '')}.npy"
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            np.save(path, self._measure(name, seed))
        return np.asarray(np.load(path))

    def _measure(self, name: str, seed: int) -> npt.NDArray[np.float64]:
        if name == "seed":
            campaign = self._seed(seed)
            return self._losses(campaign, [campaign.seed_run().directory])
        arm = ARMS[name]
        campaign = self._campaign(arm, seed)
        record = experts.seed_record(self._seed(seed))  # its digest names the manifest, which is shuffled in some arms
        if arm.dense:
            experts.train_dense(campaign, arm.dense, record)
            return self._losses(campaign, [campaign.dense_run(arm.dense, record.weights_sha256).directory])
        begun = campaign.output / "arm"
        if not begun.exists() or begun.read_text() != name:  # else it goes on with the experts that are missing
            shutil.rmtree(campaign.output / "experts", ignore_errors=True)
            begun.write_text(name)
        for domain in campaign.manifest.domains:
            found = experts.train_expert(campaign, domain, record)
            assert found is not None
            sys.stderr.write(f"{seed} {name} {domain.domain} {found.wall_time_s:.0f} s\n")
        directories = [campaign.output / "experts" / domain.domain for domain in campaign.manifest.domains]
        return self._losses(campaign, directories)

    def _seed(self, seed: int) -> Campaign:
        campaign = self._open(self.manifest, seed, {})
        experts.train_seed(campaign)
        return campaign

    def _campaign(self, arm: Arm, seed: int) -> Campaign:
        self._seed(seed)
        expert: dict[str, Any] = {"interference": None}
        if arm.kind is not None:
            expert["interference"] = {"kind": arm.kind, "weight": arm.weight, "fraction": FRACTION, "level": arm.level}
            if arm.random:
                expert["interference"]["temperature"] = None
            if arm.kind != "replay":
                expert["tokens"] = round(TOKENS / (1 + FRACTION / 3))
        return self._open(self.shuffled if arm.random else self.manifest, seed, expert)

    def _values(self, seed: int, expert: dict[str, Any]) -> dict[str, Any]:
        return {
            "manifest": str(self.output / "manifest"),
            "output": str(self.output / f"run-{seed}"),
            "model": self.model,
            "seed_model": {"tokens": SEED_TOKENS},
            "expert": {"tokens": TOKENS} | expert,
            "evaluation": {"documents": 1},
            "sft": {"bf16": False, "save_strategy": "no"},
            "seed": seed,
        }

    def _open(self, manifest: Manifest, seed: int, expert: dict[str, Any]) -> Campaign:
        path = self.output / f"train-{seed}.yaml"
        path.write_text(json.dumps(self._values(seed, expert)))
        campaign = Campaign.open(load(Training, path, ()))
        return Campaign(campaign.configuration, manifest, campaign.encoder)

    def _losses(self, campaign: Campaign, directories: list[Path]) -> npt.NDArray[np.float64]:
        found = [
            document_losses(load_model(each), campaign.encoder, [self.texts], campaign.packing.max_length) for each in directories
        ]
        np.save(self.output / f"tokens-{campaign.configuration.seed}.npy", found[0].tokens_N)
        return np.stack([each.nats_N for each in found])

    def tokens(self, seed: int) -> npt.NDArray[np.int64]:
        """Return (N,) the tokens of each held-out document, as the seed's tokenizer has them."""
        return np.asarray(np.load(self.output / f"tokens-{seed}.npy"))

    def judged(self, seed: int) -> Judged:
        """Return what is judged, in the domains of the manifest."""
        return Judged(self.tokens(seed), self.domain_N[False], self.groups)


def held_out(manifest: Manifest) -> pl.DataFrame:
    """Return the same number of held-out documents of each domain: doc_id, text, group, domain as a number."""
    found = []
    for domain in manifest.domains:
        batches = manifest.documents(domain.domain, "heldout", ["doc_id", "text", "group"])
        table = pl.concat([pl.from_arrow(batch) for batch in batches])
        chosen = table.gather(np.linspace(0, len(table) - 1, HELD_OUT).astype(int))
        found.append(chosen.with_columns(pl.lit(domain_index(domain.domain)).alias("domain")))
    return pl.concat(found)


def by_domain(nats_KN: npt.NDArray[np.float64], tokens_N: npt.NDArray[np.int64], domain_N: npt.NDArray[np.int64]) -> Any:
    """Return (K, J) the loss of each expert on each domain, nats per token."""
    of_J = [domain_N == domain for domain in range(DOMAINS)]
    return np.stack([nats_KN[:, chosen].sum(axis=1) / tokens_N[chosen].sum() for chosen in of_J], axis=1)


def all_experts(nats_KN: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return a dense model's losses as those of experts that are all alike."""
    return np.repeat(nats_KN, DOMAINS // len(nats_KN), axis=0)


def routed(nats_KN: npt.NDArray[np.float64], expert_N: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Return (N,) the nats of each document at its expert."""
    return all_experts(nats_KN)[expert_N, np.arange(nats_KN.shape[1])]


def row(bench: Bench, name: str, seeds: list[int]) -> dict[str, Any]:
    """Return a row of the table."""
    random = ARMS[name].random
    domain_N = bench.domain_N[random]
    expert_N = domain_N if random else bench.routed_N  # nothing says how a text without its id would find a random domain
    tables, losses, differences = [], [], {"plain": [], "replay": []}
    ahead: list[float] = []
    for seed in seeds:
        tokens_N, nats_KN = bench.tokens(seed), all_experts(bench.measured(name, seed))
        of_seed_J = by_domain(bench.measured("seed", seed), tokens_N, domain_N)[0]
        tables.append(cross_loss(by_domain(nats_KN, tokens_N, domain_N), of_seed_J))
        losses.append([bench.judged(seed).loss(routed(nats_KN, each)) for each in (domain_N, expert_N)])
        for other, found in differences.items():
            found.append(routed(nats_KN, expert_N) - routed(bench.measured(other, seed), bench.routed_N))
        if not random:
            plain = cross_loss(by_domain(bench.measured("plain", seed), tokens_N, domain_N), of_seed_J)
            ahead.append(break_even(plain, tables[-1]))
    right, measured = np.mean(losses, axis=0)
    judged = bench.judged(seeds[0])
    return {
        "experts": name,
        "seeds": len(seeds),
        "S": float(np.mean([specialization(table) for table in tables])),
        "I": float(np.mean([interference(table) for table in tables])),
        "routed": float(right),
        "routed, measured": None if random else float(measured),
        "misrouted": None if random else float((bench.routed_N != domain_N).mean()),
        "ε*": float(np.median(ahead)) if ahead else None,
        "− plain": None if random else shown(judged.interval(np.stack(differences["plain"]))),
        "− replay": None if random else shown(judged.interval(np.stack(differences["replay"]))),
    }


def row_by_prefix(bench: Bench, prefix: int | None, seeds: list[int]) -> dict[str, Any]:
    """Return a row of the second table.

    Args:
        bench: what was measured.
        prefix: characters that documents are routed by; None: each goes to its own domain's expert.
        seeds: of the ways that have them all.
    """
    domain_N = bench.domain_N[False]
    expert_N = domain_N if prefix is None else bench.routed_by(prefix)
    found: dict[str, Any] = {
        "routed by": "their domains" if prefix is None else f"{prefix} characters",
        "misrouted": float((expert_N != domain_N).mean()),
    }
    for name, arm in ARMS.items():
        if arm.kind is not None and not (arm.is_once or arm.random):
            pairs = [[routed(bench.measured(each, seed), expert_N) for each in (name, "plain")] for seed in seeds]
            found[f"{name} − plain"] = shown(bench.judged(seeds[0]).interval(np.stack([way - plain for way, plain in pairs])))
    return found


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw specialization against interference."""
    with mpl.rc_context({"svg.hashsalt": "lmsplit", "svg.fonttype": "none"}):
        figure = Figure(figsize=(8, 5.5), layout="constrained")
        axes = figure.add_subplot()
        for each in rows:
            kind = each["experts"].split()[0].rstrip(",")
            color = {"plain": "C7", "replay": "C1", "kl": "C2", "hinge": "C0", "dense": "C3"}[kind]
            axes.scatter(each["I"], each["S"], color=color, marker="x" if "random" in each["experts"] else "o")
            axes.annotate(each["experts"], (each["I"], each["S"]), xytext=(5, 3), textcoords="offset points", fontsize=8)
        axes.set_xlabel("interference I: loss above the seed's on the other domains, nats per token (less is better)")
        axes.set_ylabel("specialization S: loss below the seed's on the own domain (more is better)")
        axes.grid(alpha=0.3)
        figure.savefig(path, metadata={"Date": None})


def main() -> None:
    """Train, measure, and write the table and the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus", default=CORPUS)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / ".cache" / "interference")
    parser.add_argument("--model", default="1m")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", type=int, help="measure this seed and write nothing: several at a time, a thread each")
    options = parser.parse_args()
    bench = Bench(options.output, options.corpus, options.model)
    seeds = list(range(options.seeds))
    seeds_of = {name: [seed for seed in seeds if not (arm.is_once and seed)] for name, arm in ARMS.items()}
    for seed in seeds if options.only is None else [options.only]:
        for name in ("seed", *(each for each, wanted in seeds_of.items() if seed in wanted)):
            bench.measured(name, seed)
    if options.only is not None:
        return
    rows = [row(bench, name, seeds_of[name]) for name in ARMS]
    name = "interference" if options.model == "1m" else f"interference_{options.model}"
    write_results(name, "Experts and the other domains", __doc__ or "", rows)
    by_prefix = [row_by_prefix(bench, prefix, seeds) for prefix in (*PREFIXES, None)]
    write_results(f"{name}_prefix", "Experts and the other domains, by how much is routed by", __doc__ or "", by_prefix)
    draw(rows, RESULTS / f"{name}.svg")


if __name__ == "__main__":
    main()
