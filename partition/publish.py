"""Publishes a run: every receipt, the conservation law, then the commit.

It reads receipts only, writes the small derived tables (domains, quarantine, plan), checks that read = published +
quarantined + duplicates in records and in bytes, and puts the commit last. Running it twice is harmless.
"""

import hashlib
import logging
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lmsplit.manifests import schema
from lmsplit.manifests.card import write_card
from lmsplit.manifests.commit import Amount, Body, Commit, Counts, FileEntry, canonical, write_commit
from lmsplit.manifests.errors import InputError, LmsplitError
from lmsplit.manifests.layout import domain_name, domains_path, plan_path, quarantine_path
from lmsplit.manifests.reader import Manifest
from lmsplit.manifests.store import file_sha256
from lmsplit.partition.fit import total
from lmsplit.partition.gather import Gather
from lmsplit.partition.ids import num_ranges
from lmsplit.partition.planning import Planned
from lmsplit.partition.run import Run, describe
from lmsplit.partition.scan import add_amounts

_log = logging.getLogger(__name__)


def publish(run: Run, scan: str) -> Commit:
    """Write the commit of a finished run.

    Args:
        run: the run; every stage has all its receipts.
        scan: name of the scan stage that counts.

    Returns:
        The commit.

    Raises:
        LmsplitError: a receipt is missing, or the conservation law does not hold.
        ConflictError: the output already holds another run's manifest.
    """
    planned = Planned(run)
    shards = list(run.receipts("gather", Gather(run).num_tasks))
    counts = count(run, scan, shards)
    if (other := counts.imbalance()) is not None:
        raise LmsplitError(f"records or bytes were lost: read {counts.read}, accounted for {other}. Please report this")
    fit = run.receipt("fit", 0)
    domains = _domains(run, fit, shards)
    plan = _plan(run)
    files = [*fit["files"], domains, plan, *_quarantine(run, scan)]
    files += [entry for receipt in shards for entry in receipt["files"]]
    files += [entry for receipt in run.receipts("ids", num_ranges(run)) for entry in receipt["files"]]
    body = Body(
        parent=None,
        run_id=run.run_id,
        files=tuple(sorted((FileEntry(**entry) for entry in files), key=lambda entry: entry.path)),
        configuration=run.plan["configuration"],
        plan=plan["path"],
        domains=domains["path"],
        placement=fit["placement"],
        encoder={"kind": planned.configuration.encoder, "placement_sha256": fit["placement_sha256"]},
        columns=dict(planned.keep),
        counts=counts,
        splits=_splits(shards),
        heldout_fraction=fit["heldout_fraction"],
        software=run.plan["software"],
        tier=fit["tier"],
    )
    commit = write_commit(run.store, body, 0)
    _warn_of_empty_splits(shards, body)
    write_card(Manifest(run.store, 0, commit))
    return commit


def _warn_of_empty_splits(shards: list[dict[str, Any]], body: Body) -> None:
    """Say which domains cannot be evaluated: a few large groups may all fall on one side."""
    heldout = {shard["domain"] for shard in shards if shard["split"] == "heldout"}
    empty = sorted({shard["domain"] for shard in shards} - heldout)
    if body.heldout_fraction and empty:
        _log.warning("no document of %s is held out: too few documents, or groups too large", ", ".join(empty))


def count(run: Run, scan: str, shards: list[dict[str, Any]]) -> Counts:
    """Return both sides of the conservation law, from the receipts."""
    num_units = Planned(run).num_units
    quarantined: dict[str, Amount] = {}
    duplicates: dict[str, Amount] = {}
    for scanned, placed in zip(run.receipts(scan, num_units), run.receipts("place", num_units), strict=True):
        for receipt in (scanned, placed):
            quarantined = add_amounts(quarantined, _amounts(receipt["quarantined"]))
        duplicates = add_amounts(duplicates, _amounts(placed["duplicates"]))
    return Counts(
        read=total(run, scan, num_units, "read"),
        published=total(run, "place", num_units, "published"),
        quarantined=quarantined,
        duplicates=duplicates,
        text_bytes=sum(shard["text_bytes"] for shard in shards),
        tokens=None,
    )


def check_bad_fraction(run: Run, stages: Sequence[str]) -> None:
    """Stop when the scan and later stages set aside too many records as bad.

    Args:
        run: the run.
        stages: finished stages over the work units, the scan first.

    Raises:
        InputError: their share is above `max_bad_fraction`; the message says which reasons, and where to look at them.
    """
    planned = Planned(run)
    limit = planned.configuration.max_bad_fraction
    read = total(run, stages[0], planned.num_units, "read")
    reasons: dict[str, Amount] = {}
    for stage in stages:
        for receipt in run.receipts(stage, planned.num_units):
            reasons = add_amounts(reasons, _amounts(receipt["quarantined"]))
    bad = sum(amount.records for amount in reasons.values())
    if bad > limit * read.records:
        table = ", ".join(f"{reason} {amount.records}" for reason, amount in sorted(reasons.items()))
        raise InputError(
            f"{bad} of {read.records} records are bad ({table}), more than max_bad_fraction: {limit}. Nothing was published. "
            f"Look at {run.folder('*')}/*-rejected-*.parquet, mend the input, or raise max_bad_fraction"
        )


def _amounts(values: dict[str, Any]) -> dict[str, Amount]:
    return {key: Amount.model_validate(value) for key, value in values.items()}


def _splits(shards: list[dict[str, Any]]) -> dict[str, int]:
    return {split: sum(s["documents"] for s in shards if s["split"] == split) for split in schema.SPLITS}


def _plan(run: Run) -> dict[str, Any]:
    data = canonical(run.plan) + b"\n"
    sha256 = hashlib.sha256(data).hexdigest()
    run.store.put_bytes(data, plan_path(sha256))
    return {"path": plan_path(sha256), "bytes": len(data), "rows": None, "sha256": sha256}


def _domains(run: Run, fit: dict[str, Any], shards: list[dict[str, Any]]) -> dict[str, Any]:
    rows = [_domain_row(k, label, shards) for k, label in enumerate(fit["labels"])]
    table = pa.Table.from_pylist(rows, schema.DOMAINS)
    with run.store.spool() as path:
        pq.write_table(table, path, compression="zstd", write_page_checksum=True)
        sha256 = file_sha256(path)
        entry = describe(path, domains_path(sha256), sha256)
        run.store.put(path, entry["path"])
    return entry


def _domain_row(index: int, label: dict[str, Any], shards: list[dict[str, Any]]) -> dict[str, Any]:
    own = [shard for shard in shards if shard["domain"] == domain_name(index)]
    documents = sum(shard["documents"] for shard in own)
    splits = _splits(own)
    return {
        "domain": domain_name(index),
        "path": [index],
        **label,
        "num_documents": documents,
        "num_bytes": sum(shard["text_bytes"] for shard in own),
        "num_tokens": None,
        **{f"num_{split}": splits[split] for split in schema.SPLITS},
        "mean_distance": sum(shard["distance_sum"] for shard in own) / documents if documents else None,
        "price": 0.0,
    }


def _quarantine(run: Run, scan: str) -> list[dict[str, Any]]:
    """Write what was set aside, unit by unit, as one file; none where nothing was. Memory: one unit's."""
    tables = _rejected(run, scan)
    first = next(tables, None)
    if first is None:
        return []
    with run.store.spool() as path:
        with pq.ParquetWriter(path, schema.QUARANTINE, compression="zstd", write_page_checksum=True) as writer:
            for table in chain([first], tables):
                writer.write_table(table)
        sha256 = file_sha256(path)
        entry = describe(path, quarantine_path(0, sha256), sha256)
        run.store.put(path, entry["path"])
    return [entry]


def _rejected(run: Run, scan: str) -> Iterator[pa.Table]:
    for unit in range(Planned(run).num_units):
        for stage in (scan, "place"):
            receipt = run.receipt(stage, unit)
            if "rejected" in receipt["pieces"]:
                yield run.table(receipt, "rejected")
