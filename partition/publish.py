"""Publishes a run: every receipt, the conservation law, then the commit.

It reads receipts only, writes the small derived tables (domains, quarantine, plan), checks that read = published +
quarantined + duplicates in records and in bytes, and puts the commit last. Running it twice is harmless.
"""

import hashlib
import logging
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from lmsplit.manifests import schema
from lmsplit.manifests.card import write_card
from lmsplit.manifests.commit import Amount, Body, Commit, Counts, FileEntry, Gate, GateFinding, canonical, write_commit
from lmsplit.manifests.errors import LmsplitError
from lmsplit.manifests.findings import Finding
from lmsplit.manifests.layout import domain_index, domain_name, domains_path, exclusions_path, plan_path, quarantine_path
from lmsplit.manifests.lexical import LEXICAL
from lmsplit.manifests.reader import Manifest
from lmsplit.manifests.store import file_sha256
from lmsplit.partition.gate import Domain, imbalance, judge
from lmsplit.partition.gather import Gather, add_tokens
from lmsplit.partition.ids import num_ranges
from lmsplit.partition.planning import Planned
from lmsplit.partition.refit import parent_of
from lmsplit.partition.run import Run, describe
from lmsplit.partition.sample import pinned_encoder
from lmsplit.partition.scan import add_amounts, parse_amounts, total

MAX_NAMED: Final = 10
"""Domains that one warning names; there may be thousands."""

_log = logging.getLogger(__name__)


def publish(run: Run) -> Commit:
    """Write the commit of a finished run.

    Args:
        run: the run; every stage has all its receipts.

    Returns:
        The commit.

    Raises:
        LmsplitError: a receipt is missing, or the conservation law does not hold.
        ConflictError: the output already holds another run's manifest.
    """
    planned = Planned(run)
    shards = [shard for receipt in run.receipts("gather", Gather(run).num_tasks) for shard in receipt["shards"]]
    counts = count(run, shards)
    if (other := counts.imbalance()) is not None:
        raise LmsplitError(f"records or bytes were lost: read {counts.read}, accounted for {other}. Please report this")
    fit = run.receipt("fit", 0)
    parent = parent_of(run)
    gate = check_gate(run, shards)
    domains = _domains(run, fit, shards)
    plan = _plan(run)
    files = [*fit["files"], domains, plan]
    files += _aside(run, ("scan", "place"), "rejected", schema.QUARANTINE, quarantine_path)
    files += _aside(run, ("place",), "exclusions", schema.EXCLUSIONS, exclusions_path)
    files += [shard["file"] for shard in shards]
    files += [entry for receipt in run.receipts("place", planned.num_units) for entry in receipt["files"]]
    files += [entry for receipt in run.receipts("ids", num_ranges(run)) for entry in receipt["files"]]
    body = Body(
        parent=None if parent is None else parent.digest,
        run_id=run.run_id,
        files=tuple(sorted((FileEntry(**entry) for entry in files), key=lambda entry: entry.path)),
        configuration=run.plan["configuration"],
        plan=plan["path"],
        domains=domains["path"],
        placement=fit["placement"],
        encoder={**_encoder(run), "placement_sha256": fit["placement_sha256"]},
        columns=dict(planned.keep),
        counts=counts,
        splits=_splits(shards),
        heldout_fraction=fit["heldout_fraction"],
        software=run.plan["software"],
        tier=fit["tier"],
        gate=gate,
    )
    version = 0 if parent is None else parent.version + 1
    commit = write_commit(run.store, body, version)
    _warn_of_empty_splits(shards, body)
    write_card(Manifest(run.store, version, commit))
    return commit


def check_gate(run: Run, shards: Sequence[dict[str, Any]]) -> Gate:
    """Return what the quality gate measured and found, for the commit; warn of the findings, or stop at them.

    Raises:
        LmsplitError: there are findings, and the configuration says `gate: fail`.
    """
    planned = Planned(run)
    fit = run.receipt("fit", 0)
    counted = planned.configuration.tokenizer is not None
    totals = [Domain(0, 0) for _ in fit["labels"]]
    for shard in shards:
        index = domain_index(shard["domain"])
        size = shard["tokens"] if counted else shard["text_bytes"]
        totals[index] = Domain(totals[index].documents + shard["documents"], totals[index].size + size)
    findings = judge(fit["measures"], totals, planned.configuration.num_domains, planned.configuration.max_imbalance)
    if findings and planned.configuration.gate == "fail":
        raise LmsplitError(
            f"the quality gate has {len(findings)} findings:\n  " + "\n  ".join(map(_sentence, findings)) + "\n"
            "Nothing was published, and nothing is lost: with gate: warn the same command publishes what is there"
        )
    for code in dict.fromkeys(finding.code for finding in findings):
        first, *others = (finding for finding in findings if finding.code == code)
        also = f" (and {', '.join(finding.where for finding in others)})" if others else ""
        _log.warning("quality gate: %s%s", _sentence(first), also)
    measured = {key: fit["measures"][key] for key in Gate.model_fields.keys() & fit["measures"].keys()}
    return Gate(
        imbalance=imbalance(totals),
        imbalance_by="tokens" if counted else "bytes",
        findings=tuple(GateFinding(**finding._asdict()) for finding in findings),
        **measured,
    )


def _sentence(finding: Finding) -> str:
    return f"{finding.code}: {finding.where} has {finding.found}, expected {finding.expected}: {finding.remedy}"


def _warn_of_empty_splits(shards: list[dict[str, Any]], body: Body) -> None:
    """Say which domains cannot be evaluated: a few large groups may all fall on one side."""
    heldout = {shard["domain"] for shard in shards if shard["split"] == "heldout"}
    empty = sorted({shard["domain"] for shard in shards} - heldout)
    if body.heldout_fraction and empty:
        named = ", ".join(empty[:MAX_NAMED]) + (f" and {len(empty) - MAX_NAMED} more" if len(empty) > MAX_NAMED else "")
        _log.warning("no document of %s is held out: too few documents, or groups too large", named)


def count(run: Run, shards: list[dict[str, Any]]) -> Counts:
    """Return both sides of the conservation law, from the receipts."""
    num_units = Planned(run).num_units
    quarantined: dict[str, Amount] = {}
    duplicates: dict[str, Amount] = {}
    for scanned, placed in zip(run.receipts("scan", num_units), run.receipts("place", num_units), strict=True):
        for receipt in (scanned, placed):
            quarantined = add_amounts(quarantined, parse_amounts(receipt["quarantined"]))
        duplicates = add_amounts(duplicates, parse_amounts(placed["duplicates"]))
    return Counts(
        read=total(run, "scan", num_units, "read"),
        published=total(run, "place", num_units, "published"),
        quarantined=quarantined,
        duplicates=duplicates,
        text_bytes=sum(shard["text_bytes"] for shard in shards),
        tokens=add_tokens(shard["tokens"] for shard in shards),
    )


def _splits(shards: list[dict[str, Any]]) -> dict[str, int]:
    return {split: sum(s["documents"] for s in shards if s["split"] == split) for split in schema.SPLITS}


def _plan(run: Run) -> dict[str, Any]:
    data = canonical(run.plan) + b"\n"
    sha256 = hashlib.sha256(data).hexdigest()
    run.store.put_bytes(data, plan_path(sha256))
    return {"path": plan_path(sha256), "bytes": len(data), "rows": None, "sha256": sha256}


def _domains(run: Run, fit: dict[str, Any], shards: list[dict[str, Any]]) -> dict[str, Any]:
    counted = Planned(run).configuration.tokenizer is not None
    of_domain: dict[str, list[dict[str, Any]]] = {}
    for shard in shards:
        of_domain.setdefault(shard["domain"], []).append(shard)
    facts = zip(fit["labels"], fit["prices"], fit["paths"], strict=True)
    rows = [
        _domain_row(k, label | {"price": price, "path": path}, of_domain.get(domain_name(k), []), counted)
        for k, (label, price, path) in enumerate(facts)
    ]
    table = pa.Table.from_pylist(rows, schema.DOMAINS)
    with run.store.spool() as path:
        pq.write_table(table, path, compression="zstd", write_page_checksum=True)
        sha256 = file_sha256(path)
        entry = describe(path, domains_path(sha256), sha256)
        run.store.put(path, entry["path"])
    return entry


def _domain_tokens(shards: list[dict[str, Any]], counted: bool) -> int | None:
    return (add_tokens(shard["tokens"] for shard in shards) or 0) if counted else None


def _domain_row(index: int, label: dict[str, Any], own: list[dict[str, Any]], counted: bool) -> dict[str, Any]:
    documents = sum(shard["documents"] for shard in own)
    splits = _splits(own)
    return {
        "domain": domain_name(index),
        **label,
        "num_documents": documents,
        "num_bytes": sum(shard["text_bytes"] for shard in own),
        "num_tokens": _domain_tokens(own, counted),
        **{f"num_{split}": splits[split] for split in schema.SPLITS},
        "mean_distance": sum(shard["distance_sum"] for shard in own) / documents if documents else None,
    }


def _aside(
    run: Run, stages: Sequence[str], piece: str, columns: pa.Schema, path_of: Callable[[int, str], str]
) -> list[dict[str, Any]]:
    """Write a piece of every unit, unit by unit, as one file; none where no unit has it. Memory: one unit's."""
    receipts = (run.receipt(stage, unit) for unit in range(Planned(run).num_units) for stage in stages)
    tables = (run.table(receipt, piece).select(columns.names) for receipt in receipts if piece in receipt["pieces"])
    first = next(tables, None)
    if first is None:
        return []
    with run.store.spool() as path:
        with pq.ParquetWriter(path, columns, compression="zstd", write_page_checksum=True) as writer:
            for table in chain([first], tables):
                writer.write_table(table.cast(columns))
        sha256 = file_sha256(path)
        entry = describe(path, path_of(0, sha256), sha256)
        run.store.put(path, entry["path"])
    return [entry]


def _encoder(run: Run) -> dict[str, Any]:
    """Return what people want to know of the encoder; all that pins it is in the placement rule."""
    pinned = pinned_encoder(run)
    if pinned is None or pinned[0]["kind"] == LEXICAL:
        return {"kind": LEXICAL}
    return {key: pinned[0][key] for key in ("kind", "model", "weights_sha256", "max_tokens", "device", "precision")}
