"""Where does splitting pay? One budget of compute, spent on models of several sizes, as experts and as one model.

The corpora in twelve domains (`lexical`), a tokenizer of 1,024 tokens. Every size N gets the same FLOPs in total, so that the
smallest sees the most tokens for each of its parameters. Half of its tokens T = C / 6N are the seed's, the others twelve
experts', or the same seed's continued as one dense model, on as many tokens of each domain. Experts are trained as they are by
default, 3 % of their tokens from other domains (kl). Three seeds of training.

- `tokens per parameter`: T / N, what the experts and their seed see in all; `dense, total` as much. In FLOPs that is about one
  percent less: the experts' seed is asked what it predicts on other domains.
- losses: nats per token after prompts of 64 tokens, a mean over domains. `routed`: as the router does it, by the prompt.
  `random`: experts of random clusters of the same sizes, each document answered by its own. `per model`: dense, for the tokens of
  one expert.
- `routed − …`: paired differences with 95 % intervals, seeds and originals of documents drawn with replacement; below 0 the
  experts win. `domains won`: of twelve, against `dense, total`.
- `own − total`: the same of the experts of the right domain, on four of the domains alone; `predicted` by the law that
  `lmsplit plan` chooses on a ladder of runs of the three smallest sizes on these, of 28 % of the compute of the rest.
  `crossing`, in the second table: at how many tokens per parameter the experts begin to win.
- cloze: questions of the domains whose most frequent label is legal, scientific or engineering (`SPECIAL`), accuracy by
  lm-evaluation-harness; `first token` and `answer`: median milliseconds for a prompt of 64 tokens and 32 more, router included,
  of the first seed's models, all of which take turns, measured last: the machine should do nothing else by then.

The third table has `routed − total` of each domain, by tokens per parameter. The fourth has for each dense model the smallest
routed experts that are no less accurate, and the most accurate ones that answer no later, beyond the error of the comparison.
`accuracy`: how many points of a hundred these are above the dense model, and over its accuracy; `latency`: of an answer, over the
dense model's; with 95 % intervals, of the same questions and prompts, seeds, originals and prompts drawn with replacement. Beside
them, `dense` again, the smallest or the most accurate dense model that does the same: what a smaller model does without experts.
Runs that are done are kept in `--output`.
"""

import argparse
import itertools
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
import polars as pl
from matplotlib.figure import Figure
from measure import RESULTS, write_results
from paired import Judged, shown
from planner import EXPERTS, SameDomains, of_experts
from planner import run as run_ladder
from shuffled import ShuffledManifest
from split_headline import Way, headline, of_ways, timed
from vectors import CORPUS, manifest

from lmsplit.manifests.configuration import load
from lmsplit.manifests.reader import Manifest
from lmsplit.train import experts
from lmsplit.train.answers import Documents
from lmsplit.train.campaign import Campaign
from lmsplit.train.config import Training
from lmsplit.train.evaluate import evaluate
from lmsplit.train.heldout import HeldOut
from lmsplit.train.layout import Matched
from lmsplit.train.models import load_model
from lmsplit.train.presets import preset_near
from lmsplit.train.record import RunRecord
from lmsplit.train.routing_accuracy import majority_labels
from lmsplit.train.scaling import Points
from lmsplit.train.scaling_choice import choose
from lmsplit.train.scaling_domains import AnyFit
from lmsplit.train.text_losses import token_losses

DOMAINS: Final = 12
VOCABULARY: Final = 1024
SIZES: Final = (50_000, 75_000, 160_000, 400_000)
BUDGET: Final = 3e12
"""FLOPs of a seed and its experts together."""
LADDER: Final = SameDomains(
    SIZES[:3], (500_000, 1_000_000, 2_000_000, 4_000_000), (50_000, 100_000, 200_000, 400_000), DOMAINS, EXPERTS
)
RANDOM: Final = "random"
PROMPT: Final = 64
HELD_OUT: Final = 60
_WHILE_TRAINING: Final = 1
"""Held-out documents of a domain whose loss a run measures before and after: all are measured at the end, of all runs."""
SPECIAL: Final = ("legal-contracts", "cs-research", "mathematics", "medicine", "software-docs")
"""Labels of legal, scientific and engineering text."""

# Shapes: S seeds, N documents, Q questions, R requests, B draws.


class Cell:
    """One size and one seed of training."""

    def __init__(self, output: Path, size: int, seed: int, budget: float) -> None:
        self.output = output / f"{size}-{seed}"
        self.manifest = output / "manifest"
        self.seed = seed
        self.preset = preset_near(size, VOCABULARY)
        tokens = budget / 6 / self.preset.num_parameters
        self.pretraining, self.specialization = round(tokens / 2), round(tokens / 2 / DOMAINS)

    def campaign(self, name: str, held_out: int = HELD_OUT) -> Campaign:
        """Open the experts' training, or that on random clusters, with so many held-out documents of a domain."""
        keys = self.preset.keys(self.preset.model_config(VOCABULARY))
        expert: dict[str, Any] = {"tokens": self.specialization}
        if name == RANDOM:
            expert["interference"] = {"temperature": None}  # random clusters are not near each other
        values = keys | {
            "manifest": str(self.manifest),
            "output": str(self.output / name),
            "tokenizer": {"vocabulary_size": VOCABULARY},
            "seed_model": keys["seed_model"] | {"tokens": self.pretraining},
            "expert": keys["expert"] | expert,
            "evaluation": {
                "documents": held_out,
                "prompt_tokens": PROMPT,
                "prefix_tokens": [PROMPT],
                "cloze": {"context_tokens": PROMPT, "continuation_tokens": 32},
            },
            "sft": {"bf16": False, "max_length": 256, "per_device_train_batch_size": 4, "save_strategy": "no"},
            "seed": self.seed,
        }
        self.output.mkdir(parents=True, exist_ok=True)
        path = self.output / f"{name}.yaml"
        path.write_text(json.dumps(values))
        return Campaign.open(load(Training, str(path), ()))

    def measured(self) -> tuple[dict[str, Any], pl.DataFrame]:
        """Return the evaluation, and each document's nats by way; train and judge what is missing."""
        training = self.campaign("experts", _WHILE_TRAINING)
        record, _ = experts.train_all(training)
        for matched in Matched:
            experts.train_dense(training, matched, record)
        campaign = self.campaign("experts")
        directory = campaign.output / "evaluation"
        if not (directory / "cloze.parquet").exists():
            evaluate(campaign)
        documents = pl.read_parquet(directory / "documents.parquet")
        random = self.output / "random.npy"
        if not random.exists():
            np.save(random, self._random(campaign, record))
        found: dict[str, Any] = json.loads((directory / "evaluation.json").read_text())
        return found, documents.with_columns(pl.Series("random", np.load(random)))

    def answered(self) -> pl.DataFrame:
        """Return which way to answer got which cloze question right, of an evaluation that is there."""
        return pl.read_parquet(self.output / "experts" / "evaluation" / "cloze.parquet")

    def _random(self, campaign: Campaign, seed: RunRecord) -> npt.NDArray[np.float64]:
        """Return each document's nats at the expert of its random cluster, continued from the same seed."""
        other = self.campaign(RANDOM, _WHILE_TRAINING)
        shuffled = Campaign(other.configuration, ShuffledManifest.of(other.manifest), other.encoder)
        link = shuffled.output / "seed"
        if not link.exists():
            link.symlink_to((campaign.output / "seed").absolute())
        held_out = HeldOut.of(campaign).documents()
        own_N = shuffled.manifest.domains_of(held_out["doc_id"])
        nats_N = np.zeros(len(held_out))
        for number, domain in enumerate(shuffled.manifest.domains):
            experts.train_expert(shuffled, domain, seed)
            model = load_model(shuffled.output / "experts" / domain.domain)
            texts = held_out.filter(pl.Series(own_N == number))["text"].to_list()
            found = token_losses(model, shuffled.encoder, [texts], shuffled.packing.max_length)
            documents = Documents(found.tokens_N, np.zeros_like(found.tokens_N), PROMPT)
            nats_N[own_N == number] = documents.judged_nats(found.nats_T)
        return nats_N


def judged(cells: list[pl.DataFrame]) -> Judged:
    """Return what is judged: the same documents in all cells."""
    documents = cells[0]
    _, domains = np.unique(documents["domain"].to_numpy(), return_inverse=True)
    return Judged(documents["judged_tokens"].to_numpy(), domains, documents["group"].to_numpy())


def difference(cells: list[pl.DataFrame], way: str, other: str, domains: Sequence[str] = ()) -> tuple[float, float, float]:
    """Return by how much a way's loss is above another one's, and its interval; on some domains, or all."""
    chosen = [cell.filter(pl.col("domain").is_in(list(domains))) for cell in cells] if domains else cells
    return judged(chosen).interval(np.stack([(cell[way] - cell[other]).to_numpy() for cell in chosen]))


def predicted(law: AnyFit, size: int, pretraining: float, specialization: float, num_ladder: int) -> float:
    """Return by how much experts' loss is above a dense model's of the same total, on the ladder's domains, as a law has it."""

    def at(tokens: float, own: float) -> npt.NDArray[np.float64]:
        """Return the loss on each domain."""
        whole = np.ones(num_ladder)
        return law.predict(Points(size * whole, tokens * whole, own * whole, np.arange(num_ladder)))

    return float((at(pretraining, specialization) - at(pretraining + DOMAINS * specialization, 0.0)).mean())


def crossing(rows: list[dict[str, Any]], key: str) -> float | None:
    """Return the tokens per parameter from which on a difference is below 0, linear in their logarithm; None: nowhere."""
    points = sorted((math.log(row["tokens per parameter"]), row[key]) for row in rows)
    for (low, above), (high, below) in itertools.pairwise(points):
        if above > 0 >= below:
            return math.exp(low + (high - low) * above / (above - below))
    return None


def loss(cells: list[pl.DataFrame], way: str) -> float:
    """Return the loss of a way, a mean over domains and seeds."""
    return float(np.mean([judged(cells).loss(cell[way].to_numpy()) for cell in cells]))


def wins(cells: list[pl.DataFrame]) -> int:
    """Return in how many domains the routed experts are better than the dense model of the same total, over all seeds."""
    both = pl.concat(cells).group_by("domain").agg(pl.col("routed").sum(), pl.col("dense-total").sum())
    return int((both["routed"] < both["dense-total"]).sum())


def labels_of(opened: Manifest) -> dict[str, str]:
    """Return each domain's most frequent label."""
    counts = opened.scan().group_by("domain", "label").len().collect().sort("domain", "label")
    return majority_labels(counts["domain"].to_list(), counts["label"].to_list(), counts["len"].to_list())


def row(measured: list[tuple[dict[str, Any], pl.DataFrame]], law: AnyFit, ladder: Sequence[str]) -> dict[str, Any]:
    """Return a row of the first table but for cloze and latencies, and what the others need."""
    evaluations, cells = [found for found, _ in measured], [documents for _, documents in measured]
    models = {each["name"]: each for each in evaluations[0]["models"]}
    seen = models["seed"]["pretraining_tokens"] + models["dense-total"]["specialization_tokens"]
    of_experts = [each["specialization_tokens"] for name, each in models.items() if name.startswith("d0")]
    flops = sum(each["flops"] for name, each in models.items() if name == "seed" or name.startswith("d0"))
    dense_flops = models["seed"]["flops"] + models["dense-total"]["flops"]
    size, pretraining = models["seed"]["num_parameters"], models["seed"]["pretraining_tokens"]
    specialization = float(np.mean(of_experts))
    return {
        "parameters": size,
        "tokens per parameter": seen / size,
        "D": pretraining,
        "D'": round(specialization),
        "FLOPs, dense over experts": dense_flops / flops,
        **{way: loss(cells, way) for way in ("seed", "routed", "own domain", "random", "dense-per-model", "dense-total")},
        "routed − total": difference(cells, "routed", "dense-total"),
        "routed − per model": difference(cells, "routed", "dense-per-model"),
        "random − total": difference(cells, "random", "dense-total"),
        "own − total": difference(cells, "own domain", "dense-total", ladder),
        "predicted": predicted(law, size, pretraining, specialization, len(ladder)),
        "domains won": wins(cells),
    }


def by_domain(labels: dict[str, str], rows: list[dict[str, Any]], cells_of: list[list[pl.DataFrame]]) -> list[dict[str, Any]]:
    """Return for each domain by how much the routed experts' loss is above the dense model's of the same total, at each size."""
    return [
        {"domain": domain, "most frequent label": label}
        | {
            f"{each['tokens per parameter']:.3g}": shown(difference(cells, "routed", "dense-total", [domain]))
            for each, cells in zip(rows, cells_of, strict=True)
        }
        for domain, label in sorted(labels.items())
    ]


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw how far experts are from the dense model, over tokens per parameter."""
    with mpl.rc_context({"svg.hashsalt": "lmsplit", "svg.fonttype": "none"}):
        figure = Figure(figsize=(8, 5), layout="constrained")
        axes = figure.add_subplot()
        x = [row["tokens per parameter"] for row in rows]
        for key, color, name in (
            ("routed − total", "C0", "experts, routed"),
            ("random − total", "C7", "random clusters"),
            ("own − total", "C1", "experts of the right domain, on the ladder's domains"),
        ):
            means, lows, highs = zip(*(row[key] for row in rows), strict=True)
            axes.errorbar(
                x,
                means,
                [np.subtract(means, lows), np.subtract(highs, means)],
                color=color,
                marker="o",
                capsize=3,
                label=name,
            )
        axes.plot(x, [row["predicted"] for row in rows], "x--", color="C1", label="these, as the planner's law predicts")
        axes.axhline(0, color="0.5", linewidth=0.8)
        axes.set_xscale("log")
        axes.set_xlabel("tokens per parameter, in all")
        axes.set_ylabel("loss above the dense model's for the same total, nats per token (less is better)")
        axes.legend(frameon=False)
        axes.grid(alpha=0.3)
        figure.savefig(path, metadata={"Date": None})


def main() -> None:
    """Train, judge, and write the tables and the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus", default=CORPUS)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / ".cache" / "split")
    parser.add_argument("--sizes", nargs="*", type=int, default=list(SIZES))
    parser.add_argument("--budget", type=float, default=BUDGET)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", type=int, help="measure this seed and write nothing: several at a time, a thread each")
    parser.add_argument("--ladder", action="store_true", help="run the ladder and write nothing")
    options = parser.parse_args()
    manifest(options.output, options.corpus, DOMAINS)
    if options.ladder:
        run_ladder(options.output, "ladder", LADDER)
        return
    for seed in range(options.seeds) if options.only is None else [options.only]:
        for size in options.sizes:
            Cell(options.output, size, seed, options.budget).measured()
            sys.stderr.write(f"seed {seed}, {size} parameters: done\n")
    if options.only is not None:
        return
    labels = labels_of(Manifest.open(options.output / "manifest"))
    special = [domain for domain, label in labels.items() if label in SPECIAL]
    ladder = of_experts(run_ladder(options.output, "ladder", LADDER))
    law = choose(ladder.points, ladder.loss_R).fit
    rows, cells_of = [], []
    for size in options.sizes:
        measured = [Cell(options.output, size, seed, options.budget).measured() for seed in range(options.seeds)]
        rows.append(row(measured, law, ladder.domains))
        cells_of.append([documents for _, documents in measured])
    routed, dense = [], []
    timings = timed([Cell(options.output, size, 0, options.budget).campaign("experts") for size in options.sizes])
    for size, each, latencies in zip(options.sizes, rows, timings, strict=True):
        cells = [Cell(options.output, size, seed, options.budget) for seed in range(options.seeds)]
        answered = [cell.answered().filter(pl.col("domain").is_in(special)) for cell in cells]
        routed.append(Way(each["parameters"], answered, "routed", latencies["routed"].answer_s()))
        dense.append(Way(each["parameters"], answered, "dense-total", latencies["dense"].answer_s()))
        each |= of_ways(routed[-1], dense[-1], latencies)
    table = [{key: shown(value) if isinstance(value, tuple) else value for key, value in each.items()} for each in rows]
    write_results("split_or_dense", "Where splitting pays", __doc__ or "", table)
    means = [{key: value[0] if isinstance(value, tuple) else value for key, value in each.items()} for each in rows]
    differences = [key for key, value in rows[0].items() if isinstance(value, tuple) or key == "predicted"]
    crossings = [{"difference": key, "crossing": crossing(means, key)} for key in differences]
    write_results("split_crossing", "From where on splitting pays", __doc__ or "", crossings)
    write_results("split_domains", "Splitting by domain", __doc__ or "", by_domain(labels, means, cells_of))
    write_results("split_headline", "Smaller experts instead of a larger model", __doc__ or "", headline(routed, dense))
    draw(rows, RESULTS / "split_or_dense.svg")


if __name__ == "__main__":
    main()
