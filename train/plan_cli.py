"""The command `lmsplit plan`: reads runs, recommends, and writes the picture and the training configuration beside the table.

This imports no torch; see `plan` for what is recommended, and `ladder` for the runs that it needs.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from lmsplit.manifests.errors import ConfigurationError
from lmsplit.manifests.options import JsonOption, print_json, screen
from lmsplit.manifests.progress import report_progress, seldom
from lmsplit.manifests.reader import Manifest
from lmsplit.train.allocation import Allocation
from lmsplit.train.directory import write_whole
from lmsplit.train.ladder_cli import plan_ladder
from lmsplit.train.plan import REPETITIONS, Plan, Question, recommend
from lmsplit.train.plan_files import draw, training_configuration
from lmsplit.train.runs import Runs, read_runs
from lmsplit.train.scaling_domains import OwnFits

_MOST_FLOPS = 1e30
"""More than anybody has; far above it the picture's axes fail."""
_BYTES_PER_TOKEN = 4.0
"""Where a manifest has no tokenizer (assumption: English text, a vocabulary of 32,000 tokens)."""


def plan(
    runs: Annotated[list[str], typer.Argument(metavar="RUNS…", help="directories of runs, or tables (.jsonl, .csv, .parquet)")],
    budget: Annotated[float, typer.Option(help="FLOPs in total: 6 N (D + K D')")],
    num_parameters: Annotated[list[float] | None, typer.Option(help="an N to choose from; may be repeated; default: any")] = None,
    own_laws: Annotated[bool, typer.Option("--own-laws", help="fit each domain by itself, and give it a D' of its own")] = False,
    law: Annotated[str | None, typer.Option(help="F0 to F4; default: the best of those that predict the largest runs")] = None,
    manifest: Annotated[
        str | None, typer.Option(metavar="M", help="whose tokens there are; default: the runs' own record")
    ] = None,
    max_repetitions: Annotated[float, typer.Option(help="how often a token may be trained on, in both phases")] = REPETITIONS,
    draws: Annotated[int, typer.Option(min=20, help="fits of the bootstrap")] = 200,
    ladder: Annotated[
        bool, typer.Option("--ladder", help="propose small runs within the budget; RUNS is then a training configuration")
    ] = False,
    run: Annotated[bool, typer.Option("--run", help="with --ladder: run them, and go on where that was cut off")] = False,
    precision: Annotated[float, typer.Option(help="with --ladder: standard error of the predicted loss aimed at")] = 0.01,
    output: Annotated[
        str | None, typer.Option("--output", "-o", metavar="DIR", help="what is written; default: plan, or ladder")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Recommend N, D and D' for a budget, from small runs; --ladder proposes or executes those."""
    if not 0 < budget <= _MOST_FLOPS:
        raise ConfigurationError(f"--budget is {budget}, expected a number of FLOPs above 0 and up to {_MOST_FLOPS:g}")
    if ladder:
        _check_ladder(runs, precision, bool(num_parameters or own_laws or law or manifest))
        plan_ladder(runs[0], budget, precision, output or "ladder", run=run, as_json=as_json)
        return
    if run:
        raise ConfigurationError("--run goes with --ladder: what it runs is the ladder")
    if any(not 0 < size < float("inf") for size in num_parameters or ()):
        raise ConfigurationError("--num-parameters has to be above 0")
    if not 0 < max_repetitions < float("inf"):
        raise ConfigurationError(f"--max-repetitions is {max_repetitions}, expected a number above 0")
    found = read_runs(runs)
    if manifest is not None:
        found = replace(found, manifest=manifest)
    question = Question(budget, tuple(num_parameters or ()), max_repetitions, law, own_laws, draws)
    made = recommend(found, question, _supply(found, manifest), seldom(report_progress))
    directory = Path(output or "plan")
    configuration, remarks = training_configuration(made, found)
    made = replace(made, warnings=(*made.warnings, *remarks))
    facts = made.to_json() | {"picture": str(directory / "plan.svg"), "configuration": str(directory / "train.yaml")}
    directory.mkdir(parents=True, exist_ok=True)
    write_whole(directory / "train.yaml", configuration)
    write_whole(directory / "plan.json", json.dumps(facts, indent=1, ensure_ascii=False) + "\n")
    draw(made, found, directory / "plan.svg")
    if as_json:
        print_json(facts)
    else:
        screen().print(_view(made, directory))


def _check_ladder(runs: list[str], precision: float, has_others: bool) -> None:
    if has_others:
        raise ConfigurationError("--num-parameters, --own-laws, --law and --manifest go with runs, not with --ladder")
    if len(runs) != 1:
        raise ConfigurationError(f"--ladder takes one training configuration, found {len(runs)} paths")
    if not 0 < precision < 1:
        raise ConfigurationError(f"--precision is {precision}, expected a share between 0 and 1, such as 0.01")


def _supply(runs: Runs, manifest: str | None) -> list[float] | None:
    """Return the training tokens of each domain, from a manifest or from the runs' record; None where neither is known."""
    if manifest is None:
        if missing := [name for name in runs.domains if runs.tokens and name not in runs.tokens]:
            raise ConfigurationError(f"the runs' records do not say how many tokens {missing[0]} has: name the --manifest")
        return [float(runs.tokens[name]) for name in runs.domains] if runs.tokens else None
    known = {domain.domain: domain for domain in Manifest.open(manifest).domains}
    if missing := [name for name in runs.domains if name not in known]:
        raise ConfigurationError(f"the manifest {manifest} has no domain {missing[0]!r}, which a run is of: give the runs' own")
    supply = []
    for name in runs.domains:
        domain = known[name]
        tokens = domain.num_bytes / _BYTES_PER_TOKEN if domain.num_tokens is None else float(domain.num_tokens)
        supply.append(tokens * domain.splits["train"] / domain.documents)
    return supply


def _view(made: Plan, directory: Path) -> RenderableType:
    best = made.best
    low, high = made.interval
    lines = [
        f"N = {best.num_parameters:,.0f} parameters, D = {best.pretraining:,.0f} tokens for the seed "
        f"({best.pretraining_fraction:.0%} of the compute),",
        _specialization(made),
        f"predicted loss {best.loss:.4f} nats per token, 90 % between {low:.4f} and {high:.4f}",
    ]
    if made.is_split:
        low, high = made.fraction_interval
        lines.append(f"share of pretraining, 90 % between {low:.0%} and {high:.0%}")
    warnings = [Text(f"! {each}") for each in made.warnings]
    places = Text(f"picture: {directory / 'plan.svg'}\nconfiguration: {directory / 'train.yaml'}")
    return Group(*map(Text, lines), Text(), _alternatives(made), Text(), _laws(made), *warnings, places)


def _specialization(made: Plan) -> str:
    if not made.is_split:
        return "and no split: one model on the mixture is predicted to be best with this budget"
    tokens = made.domain_tokens
    if len(set(tokens.values())) == 1:
        return f"D' = {next(iter(tokens.values())):,} tokens for each of {len(tokens)} experts"
    return "D' by domain: " + ", ".join(f"{name} {each:,}" for name, each in tokens.items())


def _alternatives(made: Plan) -> Table:
    table = Table(pad_edge=False)
    table.add_column("", no_wrap=True)
    for name in ("D", "D', mean", "FLOPs", "loss", "plan's gain", "90 %"):
        table.add_column(name, justify="right")
    table.add_row("the plan", *_amounts(made.best), "", "")
    for each in made.alternatives:
        low, high = each.interval
        table.add_row(each.name, *_amounts(each.allocation), f"{each.gain:.4f}", f"{low:.4f} to {high:.4f}")
    return table


def _amounts(allocation: Allocation) -> tuple[str, ...]:
    specialization = float(allocation.specialization_K.mean())
    return f"{allocation.pretraining:.4g}", f"{specialization:.4g}", f"{allocation.flops:.3g}", f"{allocation.loss:.4f}"


def _laws(made: Plan) -> Table:
    table = Table(pad_edge=False)
    table.add_column("law", no_wrap=True)
    table.add_column("form")
    for name in ("error", "on runs left out", "R²"):
        table.add_column(name, justify="right")
    for name, each in made.choice.judgements.items():
        chosen = f"{name} *" if name == made.choice.law else name
        left_out = "" if each.heldout_mre is None else f"{each.heldout_mre:.2%}"
        form = each.fit.law.formula + (", by domain" if isinstance(each.fit, OwnFits) else "")
        table.add_row(chosen, form, f"{each.mre:.2%}", left_out, f"{each.r2:.4f}")
    return table
