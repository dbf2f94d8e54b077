"""The partition side of the command line: `partition`, `publish`, `status`, `gc`; imported when one of them is asked for."""

import json
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
from lmsplit.manifests.store import Store, absolute, local_path, open_store
from lmsplit.partition.config import Partition
from lmsplit.partition.picture import draw
from lmsplit.partition.pipeline import partition as run_partition
from lmsplit.partition.pipeline import submit
from lmsplit.partition.pipeline import suggest as run_suggest
from lmsplit.partition.planning import Plan, Planned, make_plan
from lmsplit.partition.publish import publish as publish_run
from lmsplit.partition.refit import refit_plan
from lmsplit.partition.run import PLAN, Run
from lmsplit.partition.slurm import slurm_state
from lmsplit.partition.status import failures, stage_rows
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
    detach: Annotated[
        bool, typer.Option("--detach", help="kind slurm: submit the jobs, the last of which publishes, and return")
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
    if detach:
        _print_jobs(submit(configuration, plan), as_json)
        return
    commit = run_partition(configuration, plan)
    if as_json:
        print_json({"manifest": configuration.output, "run_id": commit.body.run_id, "commit": commit.body_sha256})
    else:
        console = Console()
        console.print(render(Manifest.open(configuration.output), width=console.width))


def _suggest(configuration: Partition, as_json: bool) -> None:
    assessments, recommendation = run_suggest(configuration, make_plan(configuration))
    output = absolute(configuration.output)
    beside = local_path(output).parent if open_store(output).is_local else Path()
    picture = beside / f"{output.rpartition('/')[2]}.suggest.svg"
    draw(assessments, recommendation, picture)
    if as_json:
        rows = as_rows(assessments, recommendation)
        print_json({"recommended": recommendation.k, "why": recommendation.why, "picture": str(picture), "candidates": rows})
    else:
        Console().print(as_table(assessments, recommendation), f"picture: {picture}")


def publish(run: RunArgument, as_json: JsonOption = False) -> None:
    """Publish a run whose stages are all done."""
    commit = publish_run(find_run(run))
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
    rows, failed = stage_rows(found), failures(found)
    jobs = slurm_state(found, Planned(found).configuration.executor)
    if as_json:
        print_json({"run_id": found.run_id, "published": published, "stages": rows, "failures": failed, "slurm": jobs})
        return
    table = Table(box=None, header_style="bold", pad_edge=False, title=f"run {found.run_id}", title_justify="left")
    for name in ("stage", "done", "tasks", "failed", "documents", "documents/s", "time left", *(["Slurm"] if jobs else [])):
        table.add_column(name, justify="left" if name in {"stage", "Slurm"} else "right")
    for row in rows:
        keys = ("tasks_done", "tasks", "failed", "documents", "documents_per_s", "remaining_s")
        states = (jobs or {}).get(row["stage"], {"jobs": [], "states": {}})
        said = ", ".join(f"{number} {state.lower()}" for state, number in sorted(states["states"].items()))
        table.add_row(row["stage"], *(_cell(row[key]) for key in keys), *([said] if jobs else []))
    console = Console()
    console.print(table)
    for failure in failed:
        console.print(
            f"failed: stage {failure['stage']}, task {failure['task']} on {failure['host']}: {failure['error']}", markup=False
        )
    console.print("published" if published else "not published yet: the same partition command goes on with it")


def _print_jobs(jobs: dict[str, list[str]], as_json: bool) -> None:
    if as_json:
        print_json({"jobs": jobs})
    else:
        Console().print("submitted: " + ", ".join(f"{stage} {' '.join(ids)}" for stage, ids in jobs.items()))


def gc(
    manifest: Annotated[str, typer.Argument(metavar="M", help="a manifest's directory")],
    as_json: JsonOption = False,
) -> None:
    """Remove the work files of published runs, and what killed tasks left; an unfinished run keeps its own."""
    store = open_store(absolute(manifest))
    read_commit(store)  # a directory that is no manifest is an error, not an empty success
    published = {read_commit(store, version)[1].body.run_id for version in versions(store)}
    done = published | {name for name in _runs(store) if Run(store.location, name).plan.get("suggest")}
    unfinished = set(_runs(store)) - done
    freed = sum(store.remove(f"{WORK}/{run_id}") for run_id in sorted(done))
    if not unfinished:  # else one could be writing
        freed += store.sweep()
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
    output, _, run_id = absolute(location).rpartition(f"/{WORK}/")
    if output and run_id in _runs(open_store(output)):
        return Run(output, run_id)
    store = open_store(absolute(location))
    runs = _runs(store)
    if len(runs) > 1:
        runs = [name for name in runs if not Run(store.location, name).plan.get("suggest")]
    if len(runs) > 1:  # of a refitted manifest: the one that is not done, else the newest
        published = [read_commit(store, version)[1].body.run_id for version in versions(store)]
        runs = [name for name in runs if name not in published] or [name for name in runs if name == published[-1]]
    if len(runs) != 1:
        found = ", ".join(runs) or "none (never started, or its work files are removed)"
        raise ConfigurationError(f"{location}: expected one run under {WORK}/, found {found}; name {location}/{WORK}/<run id>")
    return Run(store.location, runs[0])


def _runs(store: Store) -> list[str]:
    return [name for name in store.folders(WORK) if PLAN in store.entries(f"{WORK}/{name}")]


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
