"""Writes what a plan leads to: the training configuration that carries it out, and the picture that shows it.

The picture: lines of equal predicted loss over D and D' for models of the planned size, the line on which the budget is spent,
the optimum, 80/20, and the runs that the law was fitted to. This does *not* decide anything.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import yaml

from lmsplit.train.allocation import FLOPS_PER_PARAMETER_AND_TOKEN
from lmsplit.train.picture import picture
from lmsplit.train.plan import Plan, at_size
from lmsplit.train.presets import GIVEN, PRESETS, preset_near
from lmsplit.train.runs import Runs

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_BLUE: Final = "#0072B2"
_ORANGE: Final = "#D55E00"
_GRID: Final = 80
_SAME_SIZE: Final = 0.01
_NEAR_SIZE: Final = 0.05
"""Up to here the nearest shape that can be built is the planned size (assumption)."""


def training_configuration(plan: Plan, runs: Runs) -> tuple[str, list[str]]:
    """Return the YAML of a training configuration for a plan, and what in it is not as planned.

    It is the runs' own configuration, where there is one beside them, with another model and other numbers of tokens. A size
    that none of the runs has becomes the nearest shape that can be built, and the budget is spent again for its size. After a
    ladder the schedule is the ladder's: constant, with a short decay at the end.

    Args:
        plan: the recommendation.
        runs: what it was made from.
    """
    values: dict[str, Any] = {"manifest": runs.manifest or "manifest", "output": "experts", "model": None}
    if runs.configuration is not None:
        values |= yaml.safe_load(runs.configuration.read_text(encoding="utf-8"))
    values["output"] = "planned-experts"
    keys, size = _model(plan, runs, values)
    allocation = at_size(plan, size)
    tokens_K = allocation.specialization_K
    values["model"] = keys["model"]
    values["seed_model"] = _phase(values, keys, "seed_model", allocation.pretraining, runs.decay_fraction)
    values["expert"] = _phase(values, keys, "expert", max(1.0, float(tokens_K.mean())), runs.decay_fraction)
    values["sft"] = keys.get("sft", {}) | (values.get("sft") or {})
    values["expert"].pop("domain_tokens", None)
    if tokens_K.max() - tokens_K.min() > 1:
        of_domains = {name: max(1, round(float(each))) for name, each in zip(plan.domains, tokens_K, strict=True)}
        values["expert"]["domain_tokens"] = of_domains
    kind = "each by its own expert" if tokens_K.max() else "by one model"
    head = [
        f"{plan.question.budget:.4g} FLOPs in total; law {plan.choice.law} predicts {allocation.loss:.4f} nats per token,",
        f"the mean over the domains, {kind}",
    ]
    if not tokens_K.max():
        head.append("no split pays: train the seed alone, with --seed-model; expert.tokens is a placeholder")
    text = "".join(f"# {line}\n" for line in head) + yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    if abs(size / plan.best.num_parameters - 1) <= _NEAR_SIZE:
        return text, []
    return text, [
        f"the configuration is for {size:,} parameters, the nearest shape, and its budget is spent anew: {allocation.loss:.4f}"
    ]


def _phase(
    values: dict[str, Any], keys: dict[str, Any], name: str, tokens: float, decay_fraction: float | None
) -> dict[str, Any]:
    """Return a section of the configuration with the keys of a model and a number of tokens."""
    section = {key: each for key, each in (values.get(name) or {}).items() if each is not None}
    section = dict(keys.get(name, {})) | section | {"tokens": round(tokens)}
    if decay_fraction is not None:
        sizes = _sizes(keys["model"]) | keys.get("sft", {}) | (values.get("sft") or {}) | (section.get("sft") or {})
        rows = sizes["per_device_train_batch_size"] * sizes.get("gradient_accumulation_steps", 1)
        steps = max(1.0, tokens / sizes["max_length"] / rows)
        decay = {"num_decay_steps": max(1, round(decay_fraction * steps)), "decay_type": "linear"}
        schedule = {"lr_scheduler_type": "warmup_stable_decay", "lr_scheduler_kwargs": decay}
        section["sft"] = (section.get("sft") or {}) | schedule
    return section


def _sizes(model: Any) -> dict[str, int]:
    """Return the size of a row and of a batch that a model has by default."""
    preset = PRESETS.get(model, GIVEN) if isinstance(model, str) else GIVEN
    return {"max_length": preset.max_length, "per_device_train_batch_size": preset.batch_size}


def _model(plan: Plan, runs: Runs, values: dict[str, Any]) -> tuple[dict[str, Any], int]:
    """Return the keys of a configuration that are a model's, and its size."""
    wanted = plan.best.num_parameters
    for num_parameters, keys in runs.models.items():
        if abs(wanted / num_parameters - 1) < _SAME_SIZE:
            return keys, num_parameters
    tokenizer = values.get("tokenizer")
    vocabulary = tokenizer.get("vocabulary_size") if isinstance(tokenizer, dict) else None
    if vocabulary is None:
        nearest = min(PRESETS.values(), key=lambda each: abs(np.log(each.num_parameters / wanted)))
        vocabulary = nearest.vocabulary_size
    shape = preset_near(wanted, vocabulary)
    return shape.keys(shape.model_config(vocabulary)), shape.num_parameters


def draw(plan: Plan, runs: Runs, path: Path) -> None:
    """Draw a plan as an SVG.

    Args:
        plan: the recommendation.
        runs: what it was made from.
        path: where to write.

    Raises:
        ConfigurationError: matplotlib is missing.
    """
    with picture(path, (7.2, 5.4), **{"font.family": "sans-serif"}) as figure:
        _fill(figure.add_subplot(), plan, runs)


def _fill(axes: "Axes", plan: Plan, runs: Runs) -> None:
    best, size = plan.best, plan.best.num_parameters
    num_domains = len(plan.domains)
    tokens = plan.question.budget / FLOPS_PER_PARAMETER_AND_TOKEN / size
    points = runs.points
    split_R = points.specialization_R > 0
    lows = [points.pretraining_R.min(), points.specialization_R[split_R].min() if split_R.any() else tokens * 1e-3]
    low_x, low_y = min(lows[0], best.pretraining) / 1.5, min(lows[1], max(best.specialization_K.mean(), lows[1])) / 1.5
    high_x = max(points.pretraining_R.max(), tokens) * 1.2
    high_y = max(points.specialization_R.max(), best.specialization_K.mean() * 2, low_y * 30) * 1.2
    x_G, y_G = np.geomspace(low_x, high_x, _GRID), np.geomspace(low_y, high_y, _GRID)
    grid_x, grid_y = (each.ravel() for each in np.meshgrid(x_G, y_G))
    loss = plan.predictor.losses(size, grid_x, np.repeat(grid_y[None], num_domains, axis=0)).mean(axis=0)
    lines = axes.contour(x_G, y_G, loss.reshape(_GRID, _GRID), levels=12, colors="0.6", linewidths=0.8)
    axes.clabel(lines, fmt="%.3g", fontsize=7)
    spent_G = tokens / (1 + np.exp(-np.linspace(-9, 9, 4 * _GRID)))
    axes.plot(spent_G, (tokens - spent_G) / num_domains, color=_BLUE, label=f"budget: {plan.question.budget:.3g} FLOPs")
    axes.plot(points.pretraining_R[split_R], points.specialization_R[split_R], ".", color="0.2", markersize=4, label="runs")
    alone = np.unique(points.pretraining_R[~split_R])
    axes.plot(alone, np.full(len(alone), low_y * 1.1), "|", color="0.2", label="runs with D' = 0")
    for other in (each.allocation for each in plan.alternatives if each.name == "80/20"):
        axes.plot(other.pretraining, other.specialization_K.mean(), "s", color=_BLUE, label=f"80/20: {other.loss:.3f}")
    label = f"{plan.choice.law}'s optimum: {best.loss:.3f}, {best.pretraining_fraction:.0%} for the seed"
    axes.plot(best.pretraining, max(best.specialization_K.mean(), low_y * 1.1), "*", color=_ORANGE, markersize=14, label=label)
    axes.set(xscale="log", yscale="log", xlim=(low_x, high_x), ylim=(low_y, high_y))
    axes.set(xlabel="D: tokens of shared pretraining", ylabel="D': tokens of each expert, on average")
    axes.set_title(f"Predicted loss of models with {size:,.0f} parameters, {num_domains} domains")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.06), ncols=2, frameon=False, fontsize=8)
