"""The command `lmsplit evaluate`: judges a training, writes the object and the picture, and shows tables.

The result goes to standard output, progress to standard error. See `evaluate` for what is measured.
"""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from lmsplit.manifests.configuration import load
from lmsplit.manifests.options import JsonOption, ModelOption, TrustOption, print_json, screen
from lmsplit.manifests.progress import report_progress
from lmsplit.train.config import Training
from lmsplit.train.layout import EVALUATION
from lmsplit.train.libraries import engine, quiet_libraries

_SHOWN_DOMAINS = 16


def evaluate(
    config: Annotated[str, typer.Argument(metavar="CONFIG.yaml", help="the training configuration, its experts all trained")],
    overrides: Annotated[list[str] | None, typer.Option("--set", help="a.b=c: override a key; may be repeated")] = None,
    model: ModelOption = None,
    trust_remote_code: TrustOption = False,
    as_json: JsonOption = False,
) -> None:
    """Compare the routed experts with every other way to answer, on held-out documents."""
    configuration = load(Training, config, overrides or [])
    judge, campaigns, files = engine("evaluate"), engine("campaign"), engine("evaluate_files")
    quiet_libraries()
    campaign = campaigns.Campaign.open(configuration)
    found = judge.evaluate(campaign, model, trust_remote_code=trust_remote_code, progress=report_progress)
    directory = campaign.output / EVALUATION
    files.draw(found, directory / "evaluation.svg")
    if as_json:
        print_json(found | {"picture": str(directory / "evaluation.svg")})
    else:
        screen().print(view(found, directory))


def view(found: dict[str, Any], directory: Path) -> RenderableType:
    """Return what is shown of an evaluation.

    Args:
        found: from `evaluate.evaluate`.
        directory: where it was written.
    """
    parts: list[RenderableType] = [_ways(found), _routing(found)]
    if found.get("cloze", {}).get("answers"):
        parts.append(_cloze(found["cloze"]))
    if found.get("latency"):
        parts.append(_latency(found["latency"]))
    if len(found["domains"]) <= _SHOWN_DOMAINS:
        parts.append(_domains(found))
    parts.append(Text(f"specialization {found['specialization']:.3f}, interference {found['interference']:.3f} nats per token"))
    for name, option in found["missing"].items():
        parts.append(Text(f"! not compared with {name}: train it with lmsplit train {option}"))
    parts.append(Text(f"written: {directory / 'evaluation.json'}, {directory / 'evaluation.svg'}"))
    return Group(*parts)


def _ways(found: dict[str, Any]) -> Table:
    title = (
        f"{found['judged_documents']:,} documents, {found['judged_tokens']:,} tokens after prompts of {found['prompt_tokens']}"
    )
    table = _table(title, "way to answer", ("nats per token", "95 %", "bits per byte", "above routed", "95 %"))
    above = {row["way"]: row for row in found["differences"]}
    for row in sorted(found["answers"], key=lambda row: row["nats_per_token"]):
        other = above.get(row["way"])
        differs = ("", "") if other is None else (f"{other['nats_per_token']:+.4f}", _interval(other, "+.4f"))
        table.add_row(row["way"], f"{row['nats_per_token']:.4f}", _interval(row, ".4f"), f"{row['bits_per_byte']:.4f}", *differs)
    return table


def _routing(found: dict[str, Any]) -> Table:
    names = {
        "prompts": "rule for prompts",
        "placement": "manifest's own rule",
        "likelihood": "likelihood",
        "labels": f"{found['routed_by']}: to its label",
    }
    rows = found["routing"]
    table = _table("% of prompts routed to their document's domain, ± 95 %", "by", [f"{row['tokens']} tokens" for row in rows])
    for kind in (kind for kind in names if kind in rows[0]):
        values = [row[kind] for row in rows]
        widths = [(each["high"] - each["low"]) / 2 for each in values]
        shown = [f"{100 * each['accuracy']:.1f} ± {100 * width:.1f}" for each, width in zip(values, widths, strict=True)]
        table.add_row(names[kind], *shown)
    return table


def _cloze(found: dict[str, Any]) -> Table:
    title = f"{found['questions']:,} cloze questions, chance {found['chance']:.0%}"
    table = _table(title, "way to answer", ("accuracy", "95 %", "above routed", "95 %"))
    for row in sorted(found["answers"], key=lambda row: -row["accuracy"]):
        above = {"low": row["above_routed_low"], "high": row["above_routed_high"]}
        differs = ("", "") if row["way"] == "routed" else (f"{row['above_routed']:+.1%}", _interval(above, "+.1%"))
        table.add_row(row["way"], f"{row['accuracy']:.1%}", _interval(row, ".1%"), *differs)
    return table


def _latency(rows: list[dict[str, Any]]) -> Table:
    first = ("first token, p50", "p95", "router's share", "above the seed's")
    names = ("clients", *first, "each token, p50", "p95", "answer, p50", "p95", "joules")
    table = _table(f"{rows[0]['requests']} answers, milliseconds", "way to answer", names)
    for row in rows:
        times = {
            name: tuple("" if row[f"{name}_{p}_s"] is None else f"{1e3 * row[f'{name}_{p}_s']:.1f}" for p in ("p50", "p95"))
            for name in ("first_token", "token", "answer")
        }
        joules = "" if row["joules_per_answer"] is None else f"{row['joules_per_answer']:.2g}"
        joules += " (estimate)" if row["energy_is_an_estimate"] else ""
        share = f"{row['route_share']:.0%}"
        difference = ""
        if "first_token_above_seed_s" in row:
            above = (1e3 * row[f"first_token_above_seed{end}_s"] for end in ("", "_low", "_high"))
            difference = "{:+.2f} ({:+.2f} to {:+.2f})".format(*above)
        cells = (*times["first_token"], share, difference, *times["token"], *times["answer"], joules)
        table.add_row(row["way"], str(row["clients"]), *cells)
    return table


def _domains(found: dict[str, Any]) -> Table:
    ways = {row["way"]: row["domains"] for row in found["answers"]}
    shown = [name for name in ("seed", "dense-per-model", "dense-total", "routed", "own domain", "best expert") if name in ways]
    table = _table("nats per token by domain", "domain", ("label", *shown))
    for each in found["domains"]:
        values = [ways[name][each["domain"]] for name in shown]
        table.add_row(each["domain"], Text(each["label"] or ""), *("" if value is None else f"{value:.3f}" for value in values))
    return table


def _table(title: str, first: str, others: Any) -> Table:
    table = Table(title=title, title_justify="left", pad_edge=False)
    table.add_column(first, no_wrap=True)
    for name in others:
        table.add_column(name, justify="left" if name == "label" else "right")
    return table


def _interval(row: dict[str, Any], kind: str) -> str:
    return f"{row['low']:{kind}} to {row['high']:{kind}}"
