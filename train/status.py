"""How far every run of a training output is, read from what the runs leave; the numbers behind `lmsplit status`.

Needs no torch and disturbs nothing: a run that is at work holds a lock on its unfinished directory.
"""

import fcntl
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from lmsplit.manifests.errors import ManifestError
from lmsplit.manifests.reader import Manifest
from lmsplit.train.directory import LOCK, partial_directory
from lmsplit.train.layout import DENSE, EXPERTS, MERGED, PROGRESS, SEED, Matched
from lmsplit.train.record import RECORD, read_record


def run_rows(output: Path) -> list[dict[str, Any]]:
    """Return one row a run: the seed, every domain's expert, and the average and the dense baselines where there are any.

    Args:
        output: the directory of `lmsplit train`.

    Returns:
        Rows with `run`, `state` (done, running, interrupted, waiting), `step`, `steps`, `loss`, `tokens_per_s`,
        `remaining_s`; null where it is not known.

    Raises:
        ManifestError: it is no training output.
    """
    return [_row(name, directory) for name, directory in _runs(output)]


def _runs(output: Path) -> Iterator[tuple[str, Path]]:
    path = output / "config.yaml"
    try:
        configuration = yaml.safe_load(path.read_text(encoding="utf-8"))
        domains = Manifest.open(configuration["manifest"]).domains
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise ManifestError(
            f"{output} is no training output ({path} cannot be read: {error}): run lmsplit train first"
        ) from error
    yield SEED, output / SEED
    for domain in domains:
        yield domain.domain, output / EXPERTS / domain.domain
    if (output / MERGED).exists():
        yield MERGED, output / MERGED
    for matched in Matched:
        directory = output / DENSE / matched
        if directory.exists() or partial_directory(directory).exists():
            yield f"{DENSE}-{matched}", directory


def _row(name: str, directory: Path) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(("step", "steps", "loss", "tokens_per_s", "remaining_s"))
    if (directory / RECORD).exists():
        record = read_record(directory)
        row |= {"step": record.num_steps, "steps": record.num_steps, "loss": record.train_loss, "remaining_s": 0.0}
        return {"run": name, "state": "done"} | row | {"tokens_per_s": record.tokens_per_s}
    partial = partial_directory(directory)
    if not partial.exists():
        return {"run": name, "state": "waiting"} | row
    path = partial / PROGRESS
    if path.exists():
        line = json.loads(path.read_text(encoding="utf-8"))
        row |= {key: line[key] for key in row}
    state = "running" if _is_locked(partial / LOCK) else "interrupted"
    if state == "interrupted":
        row["tokens_per_s"] = row["remaining_s"] = None
    return {"run": name, "state": state} | row


def _is_locked(path: Path) -> bool:
    try:
        with path.open("r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    return False
