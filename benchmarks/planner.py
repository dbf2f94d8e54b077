"""Does a plan made from small runs hold on real text?

The corpora in twelve domains (`lexical`), a tokenizer of 1,024 tokens, steps of 4 rows of 256. A ladder of small models, as
`lmsplit plan --ladder --run` makes it, gives the runs; the law is chosen and fitted on them, for all domains together or for each
by itself.

- `left out`: mean |predicted − measured| ÷ measured over runs that the fit did not see, a fifth of the trunks of experts at a
  time: all D' of a size, a D and a domain. `interpolating`: over those of them whose D lies between two that the fit saw, of
  their size and domain. `at 4×`: where the runs of more than a quarter of the dearest run's compute are left out, over these;
  `chosen at 4×`: the law that is chosen without them.
- the sweep: models of `--size` parameters, one budget in total, spent in each of several ways from nearly all on the experts to
  no split, with the ladder's schedule; seed and experts of four domains trained and measured. `predicted` is the law's.
  `over the best`: measured loss over the lowest measured one. The plan's own choice and 80/20 are among them.

Goes on where it was cut off. Takes about 3 hours on one core.
"""

import argparse
import itertools
import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from measure import RESULTS, write_results
from vectors import CORPUS, manifest

from lmsplit.manifests.configuration import load
from lmsplit.train.campaign import Campaign
from lmsplit.train.config import InlineModel, Training
from lmsplit.train.ladder import Ladder
from lmsplit.train.ladder_run import LadderRun
from lmsplit.train.plan import Plan, Question, recommend
from lmsplit.train.plan_files import draw
from lmsplit.train.presets import preset_near
from lmsplit.train.runs import Runs, read_runs
from lmsplit.train.scaling import LAWS
from lmsplit.train.scaling_choice import choose
from lmsplit.train.scaling_domains import KINDS, OwnFits

DOMAINS: Final = 12
VOCABULARY: Final = 1024
SIZES: Final = (60_000, 120_000, 240_000)
PRETRAINING: Final = (1_000_000, 2_000_000, 4_000_000, 8_000_000, 16_000_000)
SPECIALIZATION: Final = (100_000, 200_000, 400_000, 800_000)
OUTPUT: Final = Path(__file__).parent / ".cache" / "planner"
EXPERTS: Final = 4
"""Domains that are trained on: the first ones."""
SHARES: Final = (0.1, 0.25, 0.4, 0.55, 0.7, 0.8, 0.9, 1.0)
"""Of the budget, for the seed."""


@dataclass(frozen=True)
class SameDomains(Ladder):
    """The same domains for every seed, so that each has all N, D and D' together: a law of its own needs that."""

    def domains_of(self, seed: int) -> tuple[int, ...]:
        """Return the domains that a seed is continued on."""
        return tuple(range(self.experts_per_seed)) if self.specialization_of(seed) else ()


@dataclass(frozen=True)
class Sweep(SameDomains):
    """One size, and for each D the D' that the rest of the budget pays for: one trunk for all seeds."""

    tokens: int = 0
    """D + K D'."""

    def specialization_of(self, seed: int) -> tuple[int, ...]:
        """Return the D' of a seed's experts: none for the one without a split."""
        left = (self.tokens - self.pretraining[seed]) // self.experts_per_seed
        return (left,) if left else ()


def run(output: Path, name: str, ladder: Ladder) -> Runs:
    """Run a ladder, or go on with it, and read what it measured."""
    directory = output / name
    values = {
        "manifest": str(output / "manifest"),
        "output": str(directory),
        "model": "1m",
        "tokenizer": {"vocabulary_size": VOCABULARY},
        "seed_model": {"tokens": 1},
        "expert": {"tokens": 1, "interference": None},
        "evaluation": {"documents": 60},
        "sft": {"bf16": False, "max_length": 256, "per_device_train_batch_size": 4},
    }
    path = output / f"{name}.yaml"
    path.write_text(json.dumps(values))
    shapes = {}
    for size in ladder.sizes:
        shape = preset_near(size, VOCABULARY)
        shapes[size] = (InlineModel(config=shape.model_config(VOCABULARY)), shape)
    report = lambda done, total: sys.stderr.write(f"{name} {done} of {total}\n")  # noqa: E731 - one line of progress
    LadderRun(Campaign.open(load(Training, path, ())), ladder, shapes, report).run()
    return read_runs([str(directory)])


def of_experts(runs: Runs) -> Runs:
    """Return the runs of the domains that experts are trained on."""
    chosen = runs.points.domain_R < EXPERTS
    return replace(runs, points=runs.points.take(chosen), loss_R=runs.loss_R[chosen], domains=runs.domains[:EXPERTS])


def ladder_runs(output: Path) -> Runs:
    """Return what the ladder measured, on the domains of its experts."""
    return of_experts(read_runs([str(output / f"ladder-{size}") for size in SIZES]))


def without(runs: Runs, left_out: Any) -> Runs:
    """Return the runs that are not left out."""
    return Runs(runs.points.take(~left_out), runs.loss_R[~left_out], runs.domains)


def errors_of(law: str, by_domain: bool, runs: Runs, left_out: Any) -> Any:
    """Return the relative errors on the runs that a fit of the others did not see."""
    rest = without(runs, left_out)
    found = KINDS[by_domain](LAWS[law], rest.points, rest.loss_R)
    return np.abs(found.predict(runs.points.take(left_out)) / runs.loss_R[left_out] - 1)


def is_between(runs: Runs, left_out: Any) -> Any:
    """Whether each run that is left out has a D between two of the others, of its size and domain."""
    points, rest = runs.points, runs.points.take(~left_out)
    found = []
    for number in np.flatnonzero(left_out):
        alike = (rest.num_parameters_R == points.num_parameters_R[number]) & (rest.domain_R == points.domain_R[number])
        seen = rest.pretraining_R[alike & (rest.specialization_R > 0)]
        found.append(len(seen) > 0 and seen.min() < points.pretraining_R[number] < seen.max())
    return np.array(found)


def errors(runs: Runs) -> list[dict[str, Any]]:
    """Return a row for each law and way to fit it."""
    compute_R = runs.points.num_parameters_R * (runs.points.pretraining_R + runs.points.specialization_R)
    experts = np.flatnonzero(runs.points.specialization_R > 0)
    trunks = np.stack([runs.points.num_parameters_R, runs.points.pretraining_R, runs.points.domain_R], axis=1)[experts]
    _, trunk = np.unique(trunks, axis=0, return_inverse=True)
    folds = (np.random.default_rng(0).permutation(trunk.max() + 1) % 5)[trunk.ravel()]
    chosen = choose(runs.points, runs.loss_R)
    large = compute_R > compute_R.max() / 4
    rest = without(runs, large)
    before = choose(rest.points, rest.loss_R)
    rows = []
    for name, by_domain in itertools.product(LAWS, KINDS):
        unseen, inside = [], []
        for fold in range(5):
            left_out = np.zeros(len(runs.loss_R), bool)
            left_out[experts[folds == fold]] = True
            unseen.append(errors_of(name, by_domain, runs, left_out))
            inside.append(unseen[-1][is_between(runs, left_out)])
        fitted = KINDS[by_domain](LAWS[name], runs.points, runs.loss_R)
        rows.append(
            {
                "law": name,
                "fitted to": "each domain" if by_domain else "all domains",
                "chosen": (name, by_domain) == (chosen.law, isinstance(chosen.fit, OwnFits)),
                "runs": len(runs.loss_R),
                "parameters": fitted.num_free,
                "error on the runs": fitted.mean_relative_error(),
                "left out": float(np.concatenate(unseen).mean()),
                "interpolating": float(np.concatenate(inside).mean()),
                "interpolated": sum(map(len, inside)),
                "at 4×": float(errors_of(name, by_domain, runs, large).mean()),
                "left out at 4×": int(large.sum()),
                "chosen at 4×": (name, by_domain) == (before.law, isinstance(before.fit, OwnFits)),
            }
        )
    return rows


def sweep(output: Path, plan: Plan, size: int) -> list[dict[str, Any]]:
    """Spend one budget in several ways, and measure."""
    tokens = round(plan.question.budget / 6 / size)
    recommended = round(plan.best.pretraining_fraction, 3)
    shares = sorted({*SHARES, recommended})
    pretraining = tuple(round(tokens * share) for share in shares)
    ladder = Sweep((size,), pretraining, (tokens // EXPERTS,), DOMAINS, EXPERTS, tokens=tokens)
    runs = of_experts(run(output, f"sweep-{size}-{tokens}-{recommended}", ladder))
    reached = np.unique(runs.points.pretraining_R)
    assert len(reached) == len(shares)
    rows = []
    for number, (share, reached_D) in enumerate(zip(shares, reached, strict=True)):
        is_split = share < 1
        chosen = (runs.points.pretraining_R == reached_D) & ((runs.points.specialization_R > 0) == is_split)
        predicted_R = plan.choice.fit.predict(runs.points.take(chosen))
        rows.append(
            {
                "share of the seed": share,
                "D": int(reached_D),
                "D'": int(runs.points.specialization_R[chosen].max()),
                "measured": float(runs.loss_R[chosen].mean()),
                "predicted": float(predicted_R.mean()),
                "the plan's": number == shares.index(recommended),
            }
        )
    best = min(row["measured"] for row in rows)
    return [row | {"over the best": row["measured"] / best - 1} for row in rows]


def main() -> None:
    """Run the ladder and the sweep; write the tables and the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus", default=CORPUS)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    parser.add_argument("--size", type=int, default=160_000)
    parser.add_argument("--tokens", type=int, default=8_000_000, help="of the sweep: D + K D'")
    parser.add_argument(
        "--only", type=int, help="run the ladder of this size and write nothing: several at a time, a thread each"
    )
    options = parser.parse_args()
    manifest(options.output, options.corpus, DOMAINS)
    for size in SIZES if options.only is None else [options.only]:
        run(options.output, f"ladder-{size}", SameDomains((size,), PRETRAINING, SPECIALIZATION, DOMAINS, EXPERTS))
    if options.only is not None:
        return
    runs = ladder_runs(options.output)
    write_results("planner_laws", "Laws on real runs", __doc__ or "", errors(runs))
    size = int(np.unique(runs.points.num_parameters_R)[np.abs(np.unique(runs.points.num_parameters_R) - options.size).argmin()])
    plan = recommend(runs, Question(6.0 * size * options.tokens, (float(size),)))
    draw(plan, runs, RESULTS / "planner.svg")
    write_results("planner_sweep", "One budget spent in several ways", __doc__ or "", sweep(options.output, plan, size))


if __name__ == "__main__":
    main()
