"""How far a run is, read from its receipts and their times; the numbers behind `lmsplit status`."""

from typing import Any

from lmsplit.manifests.errors import LmsplitError
from lmsplit.partition.encode import Encode
from lmsplit.partition.engine import Stage
from lmsplit.partition.gather import Gather
from lmsplit.partition.heldout import Bands, Heldout
from lmsplit.partition.ids import num_ranges
from lmsplit.partition.planning import Planned
from lmsplit.partition.run import Run
from lmsplit.partition.suggest import Suggest


def stage_rows(run: Run) -> list[dict[str, Any]]:
    """Return one row a stage: tasks done, documents, documents per second, seconds left.

    Args:
        run: the run; it may be running.

    Returns:
        Rows in the order of the stages; `tasks` is null where it is not known yet.
    """
    units = Planned(run).num_units
    scans = sorted(path.name for path in run.folder(".").glob("scan*") if path.is_dir()) or ["scan"]
    stages: list[tuple[str, int | None]] = [(scan, units) for scan in scans]
    stages += [("settle", num_ranges(run)), ("sample", 1), ("encode", _num_tasks(Encode(run)))]
    if run.plan.get("suggest"):
        stages.append(("suggest", _num_tasks(Suggest(run))))
        return [_row(run, name, num_tasks) for name, num_tasks in stages if num_tasks != 0]
    stages.append(("fit", 1))
    stages += [("heldout", _num_tasks(Heldout(run))), ("bands", _num_tasks(Bands(run))), ("place", units)]
    stages += [("gather", _num_tasks(Gather(run))), ("ids", num_ranges(run))]
    return [_row(run, name, num_tasks) for name, num_tasks in stages if num_tasks != 0]


def _num_tasks(stage: Stage) -> int | None:
    try:
        return stage.num_tasks
    except LmsplitError:  # what it follows from is not done yet
        return None


def _row(run: Run, stage: str, num_tasks: int | None) -> dict[str, Any]:
    done = sorted(run.done(stage))
    documents = {task: int(run.receipt(stage, task)["documents"]) for task in done}
    times = {task: (run.folder(stage) / f"{task:05d}.json").stat().st_mtime for task in done}
    # The clock starts with the first receipt: when the work on that one began is not known.
    first = min(times, key=lambda task: times[task], default=None)
    elapsed = max(times.values()) - times[first] if first is not None else 0.0
    since = sum(documents.values()) - documents[first] if first is not None else 0
    left = None if num_tasks is None else num_tasks - len(done)
    return {
        "stage": stage,
        "tasks_done": len(done),
        "tasks": num_tasks,
        "documents": sum(documents.values()),
        "documents_per_s": round(since / elapsed, 1) if elapsed > 0 else None,
        "remaining_s": round(elapsed / (len(done) - 1) * left, 1) if left and elapsed > 0 else (0.0 if left == 0 else None),
    }
