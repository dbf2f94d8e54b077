"""The partition side of the command line: `partition`, `publish`, `status`, `gc`; imported when one of them is asked for."""

import json
import shutil
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from lmsplit.manifests.commit import read_commit, versions
from lmsplit.manifests.configuration import load
from lmsplit.manifests.errors import ConfigurationError
from lmsplit.manifests.layout import WORK
from lmsplit.manifests.options import JsonOption, print_json
from lmsplit.manifests.reader import Manifest
from lmsplit.manifests.show import render
from lmsplit.manifests.store import Store, local_path
from lmsplit.partition.config import Partition
from lmsplit.partition.picture import draw
from lmsplit.partition.pipeline import partition as run_partition
from lmsplit.partition.pipeline import publish_again
from lmsplit.partition.pipeline import suggest as run_suggest
from lmsplit.partition.planning import Plan, make_plan
from lmsplit.partition.refit import refit_plan
from lmsplit.partition.run import PLAN, Run
from lmsplit.partition.status import stage_rows
from lmsplit.partition.suggest import as_rows, as_table

SetOption = Annotated[list[str] | None, typer.Option("--set", metavar="a.b=c", help="set one key; may be repeated")]
RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="the output directory, or its _work/<run id>")]


def partition(
    config: Annotated[str, typer.Argument(metavar="CONFIG.yaml", help="the partition configuration")],
    overrides: SetOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="plan, print the plan, write nothing")] = False,
    suggest: Annotated[
        bool, typer.Option("--suggest", help="how many domains? a table, a picture and a number; publishes nothing")
    ] = False,
    refit: Annotated[
        bool, typer.Option("--refit", help="other domains from the kept embeddings of the manifest, as its next commit")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Cluster a corpus into domains and publish the manifest; the same command again goes on where it was cut off."""
    if suggest and refit:
        raise ConfigurationError("--suggest reports and --refit publishes: give one of them")
    if suggest:
        _suggest(load(Partition, config, [*(overrides or ()), "domains=1", "max_imbalance=null"]), as_json)
        return
    configuration = load(Partition, config, overrides or ())
    plan = make_plan(configuration)
    if refit:
        plan = refit_plan(plan, configuration.output)
    if dry_run:
        _print_plan(configuration, plan, as_json)
        return
    commit = run_partition(configuration, plan)
    output = Path(local_path(configuration.output))
    if as_json:
        print_json({"manifest": configuration.output, "run_id": commit.body.run_id, "commit": commit.body_sha256})
    else:
        console = Console()
        console.print(render(Manifest.open(output), width=console.width))


def _suggest(configuration: Partition, as_json: bool) -> None:
    assessments, recommendation = run_suggest(configuration, make_plan(configuration))
    output = local_path(configuration.output)
    picture = output.with_name(f"{output.name}.suggest.svg")
    draw(assessments, recommendation, picture)
    if as_json:
        rows = as_rows(assessments, recommendation)
        print_json({"recommended": recommendation.k, "why": recommendation.why, "picture": str(picture), "candidates": rows})
    else:
        Console().print(as_table(assessments, recommendation), f"picture: {picture}")


def publish(run: RunArgument, as_json: JsonOption = False) -> None:
    """Publish a run whose stages are all done."""
    commit = publish_again(find_run(run))
    facts = {"run_id": commit.body.run_id, "commit": commit.body_sha256}
    if as_json:
        print_json(facts)
    else:
        Console().print(f"published run {facts['run_id']} as commit {facts['commit'][:12]}")


def status(run: RunArgument, as_json: JsonOption = False) -> None:
    """Show how far a run is, from its receipts; works while it runs, and from anywhere that sees the directory."""
    found = find_run(run)
    commits = (read_commit(found.store, version)[1] for version in versions(found.store))
    published = any(commit.body.run_id == found.run_id for commit in commits)
    rows = stage_rows(found)
    if as_json:
        print_json({"run_id": found.run_id, "published": published, "stages": rows})
        return
    table = Table(box=None, header_style="bold", pad_edge=False, title=f"run {found.run_id}", title_justify="left")
    for name in ("stage", "done", "tasks", "documents", "documents/s", "time left"):
        table.add_column(name, justify="left" if name == "stage" else "right")
    for row in rows:
        table.add_row(
            row["stage"], *(_cell(row[key]) for key in ("tasks_done", "tasks", "documents", "documents_per_s", "remaining_s"))
        )
    Console().print(table, "published" if published else "not published yet: the same partition command goes on with it")


def gc(
    manifest: Annotated[str, typer.Argument(metavar="M", help="a manifest's directory")],
    as_json: JsonOption = False,
) -> None:
    """Remove the work files of published runs, and what killed tasks left; an unfinished run keeps its own."""
    store = Store(local_path(manifest))
    read_commit(store)  # a directory that is no manifest is an error, not an empty success
    published = {read_commit(store, version)[1].body.run_id for version in versions(store)}
    done = published | {name for name in _runs(store) if Run(str(store.root), name).plan.get("suggest")}
    folders = [store.path(f"{WORK}/{run_id}") for run_id in sorted(done)]
    if not set(_runs(store)) - done:
        folders.append(store.path(f"{WORK}/spool"))  # no run is left that could be writing there
    freed = 0
    for folder in folders:
        freed += sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        shutil.rmtree(folder, ignore_errors=True)
    facts = {"runs": len(published), "freed_bytes": freed}
    if as_json:
        print_json(facts)
    else:
        Console().print(f"freed {freed / 1e6:,.1f} MB of {len(published)} published run(s)")


def find_run(location: str) -> Run:
    """Find the run that a user means.

    Args:
        location: an output directory with one unpublished run in it, or `<output>/_work/<run id>`.

    Raises:
        ConfigurationError: there is no run, or there are several.
    """
    path = local_path(location).absolute()
    if path.parent.name == WORK and (path / PLAN).is_file():
        return Run(str(path.parent.parent), path.name)
    store = Store(path)
    runs = _runs(store)
    if len(runs) > 1:
        runs = [name for name in runs if not Run(str(path), name).plan.get("suggest")]
    if len(runs) > 1:  # of a refitted manifest: the one that is not done, else the newest
        published = [read_commit(store, version)[1].body.run_id for version in versions(store)]
        runs = [name for name in runs if name not in published] or [name for name in runs if name == published[-1]]
    if len(runs) != 1:
        found = ", ".join(runs) or "none (never started, or its work files are removed)"
        raise ConfigurationError(f"{location}: expected one run under {WORK}/, found {found}; name {location}/{WORK}/<run id>")
    return Run(str(path), runs[0])


def _runs(store: Store) -> list[str]:
    return sorted(plan.parent.name for plan in store.path(WORK).glob(f"*/{PLAN}"))


def _print_plan(configuration: Partition, plan: Plan, as_json: bool) -> None:
    documents = plan.corpus.estimated_documents
    facts: dict[str, Any] = {
        "run_id": plan.run_id,
        "files": len(plan.corpus.files),
        "bytes": sum(file.num_bytes for file in plan.corpus.files),
        "units": len(plan.corpus.units),
        "estimated_documents": documents,
        "sample_size": min(configuration.wanted_sample(), documents),
        "encoder": plan.content["configuration"]["encoder"],
        "heldout_fraction": configuration.heldout_fraction,
        "near_duplicate_threshold": configuration.near_duplicate_threshold,
        "keep": dict(plan.corpus.keep_types),
        "output": configuration.output,
    }
    if as_json:
        print_json(facts)
    else:
        sys.stdout.write(
            "".join(f"{key:>24}  {value if isinstance(value, str) else json.dumps(value)}\n" for key, value in facts.items())
        )


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}"
