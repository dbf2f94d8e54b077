"""The command `lmsplit trace`: what a step trained on, where a document went, and whether anything excluded was seen.

The result goes to standard output. This imports no torch; see `lineage` and `audit` for the work and its cost.
"""

from pathlib import Path
from typing import Annotated

import typer
import yaml
from rich.table import Table
from rich.text import Text

from lmsplit.manifests.errors import ConfigurationError, LmsplitError
from lmsplit.manifests.options import JsonOption, print_json, screen
from lmsplit.manifests.reader import Manifest
from lmsplit.manifests.store import local_path
from lmsplit.train.audit import Audit, audit
from lmsplit.train.lineage import Span, TracedRun, trace_document, trace_step

_SHOWN_VIOLATIONS = 20


def trace(
    run: Annotated[str, typer.Argument(metavar="RUN", help="a run's directory: <output>/seed or <output>/experts/d00000")],
    step: Annotated[int | None, typer.Option(help="show what this step trains on, from 1")] = None,
    doc: Annotated[str | None, typer.Option(metavar="DOC_ID", help="show which steps train on this document")] = None,
    check: Annotated[bool, typer.Option("--audit", help="look every document trained on up; exit 1 on any excluded one")] = False,
    manifest: Annotated[str | None, typer.Option(metavar="M", help="the manifest to look in; default: the run's")] = None,
    as_json: JsonOption = False,
) -> None:
    """Trace a run: from a step or a document to tokens, rows and checkpoints, or audit all it has seen."""
    if (step is not None) + (doc is not None) + check != 1:
        raise ConfigurationError("lmsplit trace needs exactly one of --step N, --doc DOC_ID and --audit")
    directory = local_path(run)
    if step is not None:
        spans = trace_step(directory, step)
        if as_json:
            print_json({"step": step, "spans": [span._asdict() for span in spans]})
        else:
            screen().print(_spans_table(f"step {step}", spans))
    elif doc is not None:
        _trace_document(directory, doc, manifest, as_json)
    else:
        _audit(directory, manifest, as_json)


def _trace_document(run: Path, doc_id: str, manifest: str | None, as_json: bool) -> None:
    spans = trace_document(run, doc_id)
    if as_json:
        print_json({"doc_id": doc_id, "spans": [span._asdict() for span in spans]})
    elif spans:
        screen().print(_spans_table(doc_id, spans))
    else:
        screen().print(Text(f"{doc_id} is in no row that {run} trains on: {_whereabouts(run, doc_id, manifest)}"))


def _audit(run: Path, manifest: str | None, as_json: bool) -> None:
    result = audit(run, _manifest(run, manifest))
    if as_json:
        print_json(result.to_json())
    else:
        _print_audit(result)
    if not result.ok:
        raise typer.Exit(1)


def _manifest(run: Path, given: str | None) -> Manifest:
    if given is not None:
        return Manifest.open(given)
    path = TracedRun.open(run).output / "config.yaml"
    try:
        location = yaml.safe_load(path.read_text(encoding="utf-8"))["manifest"]
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise ConfigurationError(f"{path} does not name the manifest ({error}): give it with --manifest") from error
    try:
        return Manifest.open(location)
    except LmsplitError as error:
        raise ConfigurationError(f"{error}. {path} names {location}: if it was moved, give it with --manifest") from error


def _whereabouts(run: Path, doc_id: str, manifest: str | None) -> str:
    """Say what the manifest knows of a document, where there is one to ask."""
    try:
        opened = _manifest(run, manifest)
        found = opened.find(doc_id, columns=["split", "domain"])
    except LmsplitError as error:
        if manifest is not None:
            raise
        return f"whether a manifest has it is not known ({error})"
    if found.document is None:
        return f"the manifest calls it {found.status}"
    return f"the manifest has it in split {found.document['split']} of {found.document['domain']}"


def _spans_table(title: str, spans: list[Span]) -> Table:
    tokens = sum(span.end - span.start for span in spans)
    table = Table(title=Text(f"{title}: {len(spans):,} pieces, {tokens:,} tokens"), pad_edge=False)
    table.add_column("document", overflow="fold")
    for name in ("domain", "run"):
        table.add_column(name, no_wrap=True)
    for name in ("from token", "row", "start", "end", "step"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("checkpoint", no_wrap=True)
    for span in spans:
        numbers = (span.token, span.row, span.start, span.end, span.step)
        table.add_row(
            Text(span.doc_id), span.domain, span.run, *(f"{number:,}" for number in numbers), span.checkpoint or "not trained yet"
        )
    return table


def _print_audit(result: Audit) -> None:
    console = screen()
    steps = ", ".join(f"{run} {count:,}" for run, count in result.trained_steps.items())
    counts = Table(title=Text(f"trained on by {result.run} (steps: {steps})"), pad_edge=False)
    for name in ("column", "value"):
        counts.add_column(name, overflow="fold")
    for name in ("documents", "tokens"):
        counts.add_column(name, justify="right", no_wrap=True)
    for column, values in {"split": result.splits, **result.columns}.items():
        for value, count in values.items():
            counts.add_row(Text(column), Text(value), f"{count.documents:,}", f"{count.tokens:,}")
    console.print(counts)
    packs = Table(title="tokens: packed = reached + not reached", pad_edge=False)
    for name in ("run", "domain"):
        packs.add_column(name, no_wrap=True)
    for name in ("packed", "reached", "not reached", "trained"):
        packs.add_column(name, justify="right", no_wrap=True)
    packs.add_column("conserved")
    for pack in result.packs:
        tokens = (pack.packed_tokens, pack.reached_tokens, pack.not_reached_tokens, pack.trained_tokens)
        verdict = Text("yes") if pack.conserved else Text("no", "red")
        packs.add_row(pack.run, pack.domain, *(f"{number:,}" for number in tokens), verdict)
    console.print(packs)
    if result.manifest != result.trained_on:
        console.print(Text(f"looked up in manifest {result.manifest}, trained on {result.trained_on}"))
    for violation in result.violations[:_SHOWN_VIOLATIONS]:
        console.print(Text(f"{violation.doc_id}: {violation.reason} ({violation.tokens:,} tokens)", "red"))
    if (more := result.num_violations - _SHOWN_VIOLATIONS) > 0:
        console.print(Text(f"and {more:,} more: --json lists them", "red"))
    console.print(Text("ok: every document trained on may be" if result.ok else "the audit failed", "" if result.ok else "red"))
