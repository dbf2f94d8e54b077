"""How far a run is, read from its receipts and their times; the numbers behind `lmsplit status`, wherever it is asked."""

from typing import Any

from lmsplit.manifests.errors import LmsplitError
from lmsplit.partition.pipeline import stages
from lmsplit.partition.run import Run
from lmsplit.partition.supervise import Stage


def stage_rows(run: Run) -> list[dict[str, Any]]:
    """Return one row a stage: tasks done, documents, documents per second, seconds left, tasks that failed.

    Args:
        run: the run; it may be running.

    Returns:
        Rows in the order of the stages; `tasks` is null where it is not known yet.
    """
    counted = [(stage, _num_tasks(stage)) for stage in stages(run)]
    shown = [(stage, tasks) for stage, tasks in counted if tasks or (tasks is None and stage.name != "rescan")]
    return [_row(run, stage.name, tasks) for stage, tasks in shown]


def failures(run: Run) -> list[dict[str, Any]]:
    """Return why tasks failed that are not done: `stage`, `task`, `error`, `host`, and the traceback of what was not expected."""
    return [{"stage": stage.name, **facts} for stage in stages(run) for facts in run.failures(stage.name).values()]


def _num_tasks(stage: Stage) -> int | None:
    try:
        return stage.num_tasks
    except LmsplitError:  # what it follows from is not done yet
        return None


def _row(run: Run, stage: str, num_tasks: int | None) -> dict[str, Any]:
    times = run.done(stage)
    documents = {task: int(run.receipt(stage, task)["documents"]) for task in sorted(times)}
    # The clock starts with the first receipt: when the work on that one began is not known.
    first = min(times, key=lambda task: times[task], default=None)
    elapsed = max(times.values()) - times[first] if first is not None else 0.0
    since = sum(documents.values()) - documents[first] if first is not None else 0
    left = None if num_tasks is None else num_tasks - len(times)
    return {
        "stage": stage,
        "tasks_done": len(times),
        "tasks": num_tasks,
        "documents": sum(documents.values()),
        "documents_per_s": round(since / elapsed, 1) if elapsed > 0 else None,
        "remaining_s": round(elapsed / (len(times) - 1) * left, 1) if left and elapsed > 0 else (0.0 if left == 0 else None),
        "failed": len(run.failures(stage)),
    }
