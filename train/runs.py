"""Reads what small runs cost and reached: from the directories that training wrote, or from a table of anybody's runs.

A table is JSONL, CSV or Parquet with the columns `num_parameters`, `pretraining_tokens`, `specialization_tokens`, `domain`,
`loss` (nats per token on that domain's held-out documents); other columns are ignored. A directory is searched for run records: a
seed gives a point for each domain, with no specialization tokens, an expert one for its own domain. Averages of experts are
left out.

Losses are comparable only on the same held-out documents with the same tokenizer, so records of two manifests or tokenizers are
refused; of a table nothing says so. This does *not* judge what it reads.

Shapes: R points, K domains.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl

from lmsplit.manifests.errors import InputError, LmsplitError, ManifestError
from lmsplit.train.record import RECORD, RunRecord, read_record
from lmsplit.train.scaling import Floats, Points

COLUMNS: Final = {
    "num_parameters": pl.Float64,
    "pretraining_tokens": pl.Float64,
    "specialization_tokens": pl.Float64,
    "domain": pl.String,
    "loss": pl.Float64,
}
TABLE: Final = "runs.jsonl"
"""A table of this name in a directory is read instead of looking for records."""
LADDER: Final = "ladder.json"
"""Says of a table beside it which manifest and models it is of."""
_CONFIGURATION: Final = "config.yaml"


@dataclass(frozen=True)
class Runs:
    """Measured losses, and what the runs have in common."""

    points: Points
    loss_R: Floats
    """Nats per token."""
    domains: tuple[str, ...]
    """The names that the points' numbers stand for."""
    manifest: str | None = None
    """Where the manifest of the runs is; None for a table of anybody's."""
    tokens: dict[str, int] = field(default_factory=dict)
    """Training tokens of each domain, where a run's record says so."""
    models: dict[int, dict[str, Any]] = field(default_factory=dict)
    """Keys of a training configuration that are a model's, by number of parameters, where a run's record says so."""
    decay_fraction: float | None = None
    """Share of a run over which the rate fell to zero, from a constant one; None where it had another schedule."""
    num_duplicates: int = 0
    """Rows that were there more than once, loss and all."""
    configuration: Path | None = None
    """The training configuration of the first runs, where there is one beside them."""


def read_runs(paths: Sequence[str]) -> Runs:
    """Read all runs in tables and directories.

    Args:
        paths: files, or directories that hold a table `runs.jsonl` or run records at any depth.

    Raises:
        InputError: a path does not exist or holds no runs, a table lacks a column or has a value that cannot be, or the
            records are of several manifests or tokenizers, or cannot be read.
        LmsplitError: no run has a held-out loss.
    """
    frames, records, configurations, ladders = [], [], [], []
    for path in map(Path, paths):
        file = path / TABLE if path.is_dir() else path
        beside = file.parent if file.name == TABLE else path
        if file.is_file():
            frames.append(_read_table(file))
            ladders += [_read_ladder(beside / LADDER)] if (beside / LADDER).is_file() else []
        else:
            found = _read_records(path)
            frames.append(_points_of(found))
            records += found
        configurations += [beside / _CONFIGURATION] if (beside / _CONFIGURATION).is_file() else []
    _check_comparable(records, ladders)
    rows = pl.concat(frames)
    table = rows.unique(maintain_order=True)  # the same file or directory given twice says no more than once
    domains = tuple(sorted(table["domain"].unique().to_list()))
    numbers = {name: number for number, name in enumerate(domains)}
    points = Points(
        table["num_parameters"].to_numpy(),
        table["pretraining_tokens"].to_numpy(),
        table["specialization_tokens"].to_numpy(),
        np.array([numbers[name] for name in table["domain"]], np.int64),
    )
    seeds = [each for each in records if each.kind == "seed"]
    tokens: dict[str, int] = {name: each.num_tokens for name, each in seeds[0].domains.items()} if seeds else {}
    models = {each.num_parameters: _model(each) for each in seeds}
    manifests = [each.manifest.path for each in records]
    for ladder in ladders:
        tokens |= ladder["tokens"]
        models |= {int(size): keys for size, keys in ladder["models"].items()}
        manifests.append(ladder["manifest"])
    return Runs(
        points,
        table["loss"].to_numpy(),
        domains,
        manifests[0] if manifests else None,
        tokens,
        models,
        ladders[0]["decay_fraction"] if ladders else None,
        len(rows) - len(table),
        configurations[0] if configurations else None,
    )


def _read_ladder(path: Path) -> dict[str, Any]:
    keys = ("manifest", "manifest_digest", "tokenizer_digest", "tokens", "models", "decay_fraction")
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        return {key: facts[key] for key in keys}
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} is not what lmsplit plan --ladder writes ({error!r}): name the table {TABLE} elsewhere"
        ) from error


def _check_comparable(records: Sequence[RunRecord], ladders: Sequence[dict[str, Any]]) -> None:
    """Refuse losses on different documents, or of different tokens."""
    manifests = {each.manifest.digest for each in records} | {each["manifest_digest"] for each in ladders}
    tokenizers = {each.tokenizer_digest for each in records} | {each["tokenizer_digest"] for each in ladders}
    for name, digests in (("manifests", manifests), ("tokenizers", tokenizers)):
        if len(digests) > 1:
            raise InputError(
                f"the runs are of {len(digests)} {name} ({', '.join(sorted(digests))}): their losses cannot be compared; "
                "give the runs of one"
            )


def _model(record: RunRecord) -> dict[str, Any]:
    """Return what a configuration calls the model of a seed: a preset's name, or `{config: …}`."""
    described = record.configuration["model"]
    return {"model": described.get("preset") or described.get("hub") or described}


def _read_table(path: Path) -> pl.DataFrame:
    try:
        table = _table(path)
        missing = [name for name in COLUMNS if name not in table.columns]
        if missing:
            raise InputError(f"{path} lacks the column {missing[0]!r}: it needs {', '.join(COLUMNS)}")
        for name, kind in COLUMNS.items():
            found = table.schema[name]
            if not (found.is_numeric() or found in (pl.String, pl.Null)):
                raise InputError(f"{path}: the column {name!r} has values of type {found}, expected {kind}")
        table = table.select(pl.col(name).cast(kind) for name, kind in COLUMNS.items())
    except (pl.exceptions.PolarsError, OSError) as error:
        raise InputError(f"{path} cannot be read as a table of runs: {str(error).partition(chr(10))[0]}") from error
    if not len(table):
        raise InputError(f"{path} has no rows: it needs a row for each run and domain")
    bounds = [("num_parameters", 0), ("pretraining_tokens", 0), ("loss", 0), ("specialization_tokens", None)]
    for name, least in bounds:
        for row, value in enumerate(table[name].to_list()):
            low = value is None or not math.isfinite(value) or value < 0 or (least is not None and value <= least)
            if low:
                wanted = "a finite number above 0" if least is not None else "a finite number of at least 0"
                raise InputError(f"{path}, row {row + 1}: {name} is {value}, expected {wanted}")
    if table["domain"].null_count():
        raise InputError(f"{path}: a row has no domain; give each run the name of the domain that its loss is on")
    return table


def _table(path: Path) -> pl.DataFrame:
    if path.suffix in (".jsonl", ".ndjson"):
        return pl.read_ndjson(path, infer_schema_length=None)
    if path.suffix == ".csv":
        return pl.read_csv(path, infer_schema_length=None, schema_overrides={"domain": pl.String})  # 001 is no number
    if path.suffix == ".parquet":
        return pl.read_parquet(path)
    raise InputError(f"{path} is no table of runs: its name has to end in .jsonl, .csv or .parquet, or be a directory of runs")


def _read_records(path: Path) -> list[RunRecord]:
    if not path.exists():
        raise InputError(f"{path} does not exist: give tables of runs or directories that lmsplit train wrote")
    found = sorted(each for each in path.rglob(RECORD) if not any(part.startswith(".") for part in each.relative_to(path).parts))
    try:
        records = [record for record in (read_record(each.parent) for each in found) if record.kind in ("seed", "expert")]
    except ManifestError as error:
        raise InputError(f"{str(error).partition(': remove')[0]}: give the directories of the other runs, one by one") from error
    if not records:
        raise InputError(f"{path} holds no finished run: give directories that lmsplit train wrote, or tables of runs")
    return records


def _points_of(records: Sequence[RunRecord]) -> pl.DataFrame:
    rows: list[dict[str, Any]] = []
    for record in records:
        for domain, losses in record.losses.items():
            if record.domain in (None, domain) and losses.after.nats_per_token is not None:
                values = (record.num_parameters, record.pretraining_tokens, record.specialization_tokens, domain)
                rows.append(dict(zip(COLUMNS, (*values, losses.after.nats_per_token), strict=True)))
    if not rows:
        raise LmsplitError("no run has a held-out loss: train again with a manifest that has held-out documents")
    return pl.DataFrame(rows, schema=COLUMNS)
