"""The model card: a README.md that says what a seed or an expert was trained on, and how well it does.

Text that comes from a corpus (labels, keywords) is escaped. This does *not* measure anything: it renders a
run record.
"""

import json
import re
from collections.abc import Sequence
from typing import Final

from lmsplit.manifests.reader import Domain
from lmsplit.train.record import Loss, RunRecord

_WHOLE: Final = {"seed": "Seed model", "merged": "Average of the experts", "dense": "Dense baseline"}


def render_card(record: RunRecord, domains: Sequence[Domain]) -> str:
    """Return the model card as Markdown.

    Args:
        record: the finished run.
        domains: the manifest's domains.
    """
    about = next((domain for domain in domains if domain.domain == record.domain), None)
    title = f"Expert {record.domain}: {_plain(about.label)}" if about else f"{_WHOLE[record.kind]} of {len(domains)} domains"
    lines = [
        "---",
        "library_name: transformers",
        "pipeline_tag: text-generation",
        f"tags: {json.dumps(['lmsplit', record.kind])}",
        "---",
        "",
        f"# {title}",
        "",
        _origin(record, about),
        "",
        *_facts(record, about),
        "",
        "## Held-out loss",
        "",
        *_losses(record, domains),
        "",
        "Every document is judged alone; the end token is not counted.",
        "Bits per byte do not depend on the tokenizer.",
        "",
    ]
    return "\n".join(lines)


def _origin(record: RunRecord, about: Domain | None) -> str:
    if record.kind == "merged":
        return "The mean of the weights of every domain's expert, which were continued from one seed; a baseline."
    if record.kind == "dense":
        return "A copy of the seed model, continued on what the experts of all domains are trained on; a baseline."
    if about is None:
        return "Pretrained on the training documents of every domain; each expert is continued from it."
    return f"A copy of the seed model, continued on the domain's {about.splits['train']:,} training documents."


def _facts(record: RunRecord, about: Domain | None) -> list[str]:
    facts = {
        "manifest": f"commit `{record.manifest.digest}`",
        "parameters": f"{record.num_parameters:,}",
        "of these without embeddings": f"{record.num_parameters_non_embedding:,}",
        "tokens, seed": f"{record.pretraining_tokens:,}",
        "steps": f"{record.num_steps:,} of {record.batch_rows} rows of {record.max_length} tokens",
        "passes over the documents": _passes(record),
        "only documents with": _filter(record),
        "training compute of this run": f"{record.flops:.3g} FLOP",
        "configuration": f"`{record.configuration_digest}`",
    }
    if record.kind == "dense":
        facts |= {"tokens, after the seed": f"{record.specialization_tokens:,}", "seed": f"`{record.seed_weights_sha256}`"}
    if about is not None:
        facts = {
            "domain": f"`{about.domain}`",
            "label": _plain(about.label),
            "keywords": ", ".join(map(_plain, about.keywords)),
            **facts,
            "tokens, expert": f"{record.specialization_tokens:,}",
            "seed": f"`{record.seed_weights_sha256}`",
        }
    if record.interference is not None:
        kind = record.configuration["interference"]["kind"]
        facts["tokens of other domains"] = f"{record.interference.num_tokens:,} of the expert's ({kind})"
    return ["| | |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in facts.items())]


def _passes(record: RunRecord) -> str:
    if record.domain is not None and (own := record.domains.get(record.domain)) is not None:
        return f"{own.repetitions:.2f}"
    passes = [each.repetitions for each in record.domains.values()]
    return f"{min(passes):.2f} to {max(passes):.2f}, by domain" if passes else ""


def _filter(record: RunRecord) -> str:
    allowed = (f"{column} {' or '.join(map(str, values))}" for column, values in (record.where or {}).items())
    return _plain("; ".join(allowed)) or "no filter"


def _losses(record: RunRecord, domains: Sequence[Domain]) -> list[str]:
    labels = {domain.domain: _plain(domain.label) for domain in domains}
    lines = ["| domain | label | documents | before, nats per token | after | before, bits per byte | after |"]
    lines.append("| --- | --- | ---: | ---: | ---: | ---: | ---: |")
    for name, losses in record.losses.items():
        before = losses.before or Loss(nats_per_token=None, bits_per_byte=None)
        numbers = [
            before.nats_per_token,
            losses.after.nats_per_token,
            before.bits_per_byte,
            losses.after.bits_per_byte,
        ]
        shown = " | ".join("" if number is None else f"{number:.4f}" for number in numbers)
        lines.append(f"| {name} | {labels.get(name, '')} | {losses.num_documents:,} | {shown} |")
    return lines


def _plain(text: str) -> str:
    """Escape what Markdown or HTML would act on, and keep the text on one line."""
    flat = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|#!])", r"\\\1", flat)
