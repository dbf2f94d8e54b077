"""`lmsplit plan --ladder`: proposes the small runs for a training configuration, and runs them where that is asked for.

This imports no torch unless it runs them; see `ladder` and `ladder_run`.
"""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from lmsplit.manifests.configuration import load, validate
from lmsplit.manifests.errors import ConfigurationError
from lmsplit.manifests.options import print_json, screen
from lmsplit.manifests.reader import Manifest
from lmsplit.train.config import InlineModel, TrainedTokenizer, Training
from lmsplit.train.ladder import Ladder, Target, propose
from lmsplit.train.presets import PRESETS, Preset, preset_near

_PARTS = tuple(2.0**-step for step in range(9))
"""Sizes of a ladder's models, over the size that is planned."""
_SAME = 1.15
"""Neighbouring shapes that are nearer to each other than this count as one."""

Shapes = dict[int, tuple[InlineModel, Preset]]


def plan_ladder(config: str, budget: float, precision: float, output: str, *, run: bool, as_json: bool) -> None:
    """Propose a ladder for a training configuration, print it, and run it where that is asked for.

    Args:
        config: path of the training configuration; its model, seed_model.tokens and expert.tokens are what is planned in the end.
        budget: FLOPs that the ladder may take.
        precision: relative standard error of the predicted loss that is aimed at.
        output: directory of the ladder's runs.
        run: whether to run it.
        as_json: print one JSON object.

    Raises:
        ConfigurationError: the model is no preset, or the budget is too small.
    """
    configuration = load(Training, config).model_copy(update={"output": output})
    _check(configuration, config)
    if not isinstance(configuration.model, str) or configuration.model not in PRESETS:
        raise ConfigurationError(f"--ladder needs a preset as the model to plan for ({', '.join(PRESETS)}), as {config} has none")
    preset = PRESETS[configuration.model]
    tokenizer = configuration.tokenizer
    if isinstance(tokenizer, str):
        raise ConfigurationError("--ladder trains models from scratch with a tokenizer of its own: remove the key tokenizer")
    wanted = tokenizer.vocabulary_size if isinstance(tokenizer, TrainedTokenizer) else None
    vocabulary = wanted or preset.vocabulary_size
    shapes = _shapes(preset, vocabulary)
    num_domains = len(Manifest.open(configuration.manifest).domains)
    target = Target(max(shapes), configuration.seed_model.tokens, configuration.expert.tokens)
    sizes = {"max_length": preset.max_length, "per_device_train_batch_size": preset.batch_size} | configuration.sft
    rows = sizes["per_device_train_batch_size"] * sizes.get("gradient_accumulation_steps", 1)
    tokens_per_step = int(sizes["max_length"] * rows)
    ladder = propose(target, num_domains, budget, precision, sorted(shapes, reverse=True), tokens_per_step)
    if not run:
        _show(ladder, target, precision, as_json)
        return
    Console(stderr=True).print(_table(ladder, target, precision))
    table = _run(configuration, ladder, {size: shapes[size] for size in ladder.sizes}, vocabulary)
    if as_json:
        print_json(_facts(ladder) | {"runs": str(Path(output) / "runs.jsonl"), "measured": len(table)})
    else:
        screen().print(f"{len(table)} losses in {Path(output) / 'runs.jsonl'}: lmsplit plan {output} --budget FLOPS")


def _check(configuration: Training, config: str) -> None:
    """Refuse what a ladder does not do, or the plan would be for other runs than it."""
    seed, expert = configuration.seed_model, configuration.expert
    given = {
        "seed_model.mixture": seed.mixture != "natural",
        "expert.interference": expert.interference is not None and "interference" in expert.model_fields_set,
        "expert.optimizer_state": expert.optimizer_state != "fresh",
        "expert.domain_tokens": bool(expert.domain_tokens),
        "executor": configuration.executor.kind != "local" or configuration.executor.processes > 1,
    }
    for name, phase in (("seed_model", seed), ("expert", expert)):
        given |= {f"{name}.sft": bool(phase.sft), f"{name}.where": phase.where is not None}
        given[f"{name}.max_repetitions"] = phase.max_repetitions is not None
    if found := [name for name, is_given in given.items() if is_given]:
        raise ConfigurationError(
            f"--ladder trains plain seeds and experts in one process: remove {', '.join(found)} from {config}"
        )


def _shapes(preset: Preset, vocabulary: int) -> Shapes:
    """Return the models that can be built at parts of a preset's size, by number of parameters."""
    full = replace(preset, vocabulary_size=vocabulary)
    shapes: Shapes = {}
    for part in _PARTS:
        shape = full if part == 1 else preset_near(full.num_parameters * part, vocabulary)
        if not shapes or shape.num_parameters * _SAME < min(shapes):
            rates = shape.seed_learning_rate, shape.expert_learning_rate
            trained_as = Preset(0, 0, 0, 0, vocabulary, True, preset.max_length, preset.batch_size, *rates)
            shapes[shape.num_parameters] = InlineModel(config=shape.model_config(vocabulary)), trained_as
    return shapes


def _run(configuration: Training, ladder: Ladder, shapes: Shapes, vocabulary: int) -> Any:
    from lmsplit.train.campaign import Campaign
    from lmsplit.train.ladder_run import LadderRun

    values = configuration.model_dump(mode="json") | {"tokenizer": {"vocabulary_size": vocabulary}}
    values["expert"]["interference"] = None  # a ladder's experts see their own domains alone
    campaign = Campaign.open(validate(Training, values, "the configuration"))

    def report(done: int, total: int) -> None:
        """Say how far it is."""
        sys.stderr.write(f'{{"event": "ladder", "measured": {done}, "losses": {total}}}\n')

    return LadderRun(campaign, ladder, shapes, report).run()


def _facts(ladder: Ladder) -> dict[str, Any]:
    return {
        "sizes": list(ladder.sizes),
        "pretraining_tokens": list(ladder.pretraining),
        "specialization_tokens": list(ladder.specialization),
        "experts_per_seed": len(ladder.domains_of(0)),
        "losses": ladder.num_points,
        "flops": ladder.flops,
        "standard_error": ladder.standard_error,
    }


def _show(ladder: Ladder, target: Target, precision: float, as_json: bool) -> None:
    if as_json:
        print_json(_facts(ladder))
    else:
        screen().print(_table(ladder, target, precision))


def _table(ladder: Ladder, target: Target, precision: float) -> Group:
    table = Table(pad_edge=False, show_header=False)
    for name, values in (("N", ladder.sizes), ("D", ladder.pretraining), ("D'", ladder.specialization)):
        table.add_row(name, ", ".join(f"{each:,}" for each in values))
    table.add_row("experts of each seed", f"{len(ladder.domains_of(0))} of {ladder.num_domains} domains, in turn")
    table.add_row("losses", f"{ladder.num_points:,}")
    table.add_row("FLOPs", f"{ladder.flops:.3g}")
    there = f"N = {target.num_parameters:,.0f}, D = {target.pretraining:,}, D' = {target.specialization:,}"
    table.add_row("standard error", f"{ladder.standard_error:.2%} at {there}")
    if ladder.standard_error <= precision:
        return Group(table)
    return Group(
        table, Text(f"! the budget pays for no ladder with the {precision:.2%} that was asked for: raise it, or plan for less")
    )
