"""What a report says of a manifest: numbers, tables and sentences, gathered by a few passes over narrow columns.

```
domain table, commit ─► domains, splits, gate, provenance
crosstab             ─► composition: which value of a column feeds which domain
distance, margin     ─► histograms; the documents nearest a border
quarantine           ─► reasons and examples
```

This lays nothing out: see `report`. Texts are read of the borderline documents alone, by a point look-up each.
"""

from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import polars as pl
import pyarrow as pa

from lmsplit.manifests.commit import read_commit, versions
from lmsplit.manifests.crosstab import crosstab
from lmsplit.manifests.domain_details import BIN, text_columns
from lmsplit.manifests.errors import DamagedError
from lmsplit.manifests.parquet import scan
from lmsplit.manifests.reader import Domain, Manifest
from lmsplit.manifests.schema import QUARANTINE
from lmsplit.manifests.show import summary

_MIXES: Final = 0.1
"""A domain mixes two values where the second one holds at least this share of its documents."""
_FEEDS: Final = 0.01
"""A value feeds a domain where it holds at least this share of the domain's documents."""
_MAX_DISTINCT: Final = 100_000
"""A column with more values than this, such as an address, is not laid out."""
_NONE: Final = "(none)"
_MAX_NAMED: Final = 12
"""Domains named for one kind of the gate's findings."""


class Limits(NamedTuple):
    """How much of each kind is shown; a report too large is made again with half of each."""

    domains: int = 4096
    representatives: int = 5
    excerpt: int = 280
    values: int = 60
    matrix: int = 40
    borderline: int = 60
    quarantined: int = 40
    map_documents: int = 1500

    def halved(self) -> "Limits":
        """Return limits of half the size, at least 1."""
        return Limits(*(max(1, limit // 2) for limit in self))


def facts(manifest: Manifest, limits: Limits) -> dict[str, Any]:
    """Return all that a report shows but the map and the comparison.

    Raises:
        DamagedError: a file is missing or cannot be read.
    """
    shown = manifest.domains[: limits.domains]
    histograms = _histograms(manifest)
    return {
        "summary": summary(manifest),
        "findings": _findings(manifest),
        "encoder_name": manifest.encoder_name,
        "domains": [_domain(domain, limits, histograms) for domain in shown],
        "num_domains": len(manifest.domains),
        "histograms": {kind: histograms[kind].get(None, []) for kind in histograms},
        "compositions": [found for name in text_columns(manifest) if (found := _composition(manifest, name, limits))],
        "borderline": list(_borderline(manifest, limits)),
        "borders": _borders(manifest, limits),
        "heldout": (manifest.body.configuration.get("heldout_fraction"), manifest.body.heldout_fraction),
        "quarantine": _quarantine(manifest, limits),
        "history": _history(manifest),
        "configuration": sorted(_flat(manifest.body.configuration).items()),
        "files": _files(manifest),
    }


def _findings(manifest: Manifest) -> list[dict[str, Any]]:
    """The quality gate's findings, one row for each kind."""
    kinds: dict[str, dict[str, Any]] = {}
    for finding in manifest.body.gate.findings if manifest.body.gate else ():
        row: dict[str, Any] = {"code": finding.code, "where": [], "expected": finding.expected, "remedy": finding.remedy}
        kinds.setdefault(finding.code, row)["where"].append(f"{finding.where} ({finding.found})")
    for row in kinds.values():
        if (more := len(row["where"]) - _MAX_NAMED) > 0:
            row["where"][_MAX_NAMED:] = [f"and {more} more: lmsplit show --json"]
    return list(kinds.values())


def _domain(domain: Domain, limits: Limits, histograms: dict[str, dict[str | None, list[int]]]) -> dict[str, Any]:
    pairs = list(zip(domain.representatives, domain.excerpts, strict=True))[: limits.representatives]
    return {
        "domain": domain.domain,
        "path": ".".join(map(str, domain.path)) if len(domain.path) > 1 else None,
        "label": domain.label,
        "keywords": list(domain.keywords),
        "documents": domain.documents,
        "bytes": domain.num_bytes,
        "tokens": domain.num_tokens,
        "splits": domain.splits,
        "mean_distance": domain.mean_distance,
        "distances": histograms["distance"].get(domain.domain, []),
        "representatives": [{"doc_id": doc_id, "excerpt": text[: limits.excerpt]} for doc_id, text in pairs],
    }


def _composition(manifest: Manifest, column: str, limits: Limits) -> dict[str, Any] | None:
    """Which value feeds which domain; None where the column is empty or as good as an id."""
    distinct = _collect(manifest, manifest.scan().select(pl.col(column).cast(pl.String).approx_n_unique()))[0, 0]
    if distinct > _MAX_DISTINCT:
        return {"column": column, "too_many": int(distinct)}
    counts = crosstab(manifest, column).with_columns(pl.col("value").fill_null(_NONE))
    if counts["value"].n_unique() == 1 and counts["value"][0] == _NONE:
        return None
    counts = counts.with_columns((pl.col("documents") / pl.col("documents").sum().over("domain")).alias("share"))
    by_domain = [_mixture(name[0], rows) for name, rows in counts.group_by("domain", maintain_order=True)]
    values = _values(counts)
    top = values.head(limits.values)
    return {
        "column": column,
        "too_many": None,
        "num_values": len(values),
        "by_domain": sorted(by_domain, key=lambda each: each["domain"])[: limits.domains],
        "by_value": [_value(row, counts, manifest) for row in top.iter_rows(named=True)],
        "matrix": _matrix(counts, top["value"].head(limits.matrix).to_list(), manifest, limits),
        "sentences": list(_sentences(column, by_domain, values, counts)),
    }


def _mixture(domain: object, rows: pl.DataFrame) -> dict[str, Any]:
    largest = rows.sort(["documents", "value"], descending=[True, False]).head(3)
    shares = largest["share"].to_list()
    return {
        "domain": str(domain),
        "top": [{"value": value, "share": share} for value, share in zip(largest["value"], shares, strict=True)],
        "num_values": rows.height,
        "mixes": len(shares) > 1 and shares[1] >= _MIXES,
    }


def _values(counts: pl.DataFrame) -> pl.DataFrame:
    return (
        counts.group_by("value")
        .agg(
            pl.col("documents").sum(),
            pl.col("bytes").sum(),
            pl.len().alias("domains"),
            (pl.col("share") >= _FEEDS).sum().alias("feeds"),
        )
        .sort(["documents", "value"], descending=[True, False])
    )


def _value(row: dict[str, Any], counts: pl.DataFrame, manifest: Manifest) -> dict[str, Any]:
    own = counts.filter(pl.col("value") == row["value"]).sort(["documents", "domain"], descending=[True, False]).head(3)
    largest = [
        {"domain": domain, "label": manifest.domain(domain).label, "share": documents / row["documents"]}
        for domain, documents in zip(own["domain"], own["documents"], strict=True)
    ]
    return {**row, "top": largest}


def _matrix(counts: pl.DataFrame, values: list[str], manifest: Manifest, limits: Limits) -> list[dict[str, Any]] | None:
    """Rows of values, columns of domains, in documents; None where there are too many domains for a table."""
    if len(manifest.domains) > limits.matrix:
        return None
    found = {(row["value"], row["domain"]): row["documents"] for row in counts.iter_rows(named=True)}
    names = [domain.domain for domain in manifest.domains]
    return [{"value": value, "documents": [found.get((value, name), 0) for name in names]} for value in values]


def _sentences(column: str, by_domain: list[dict[str, Any]], values: pl.DataFrame, counts: pl.DataFrame) -> Iterator[str]:
    """What the table says, in words."""
    mixing = sorted((each for each in by_domain if each["mixes"]), key=lambda each: -each["top"][1]["share"])
    shown = "; ".join(
        f"{each['domain']} ("
        + ", ".join(f"{part['value'][:60]} {part['share']:.1%}" for part in each["top"] if part["share"] >= _MIXES)
        + ")"
        for each in mixing[:_MAX_NAMED]
    )
    number = f"{len(mixing)} of {len(by_domain)} domains mix two or more values of {column} (the second holds at least 10 %)"
    yield number + (f": {shown}{'; …' if len(mixing) > _MAX_NAMED else ''}." if mixing else ".")
    widest = values.sort(["feeds", "domains", "documents", "value"], descending=[True, True, True, False]).row(0, named=True)
    fed = counts.filter((pl.col("value") == widest["value"]) & (pl.col("share") >= _FEEDS)).sort("share", descending=True)
    named = ", ".join(f"{name} {share:.1%}" for name, share in fed.select("domain", "share").head(_MAX_NAMED).iter_rows())
    sentence = (
        f"{widest['value'][:60]} is the value of {column} that feeds most domains: {widest['feeds']} of {len(by_domain)} have at "
    )
    sentence += f"least 1 % of their documents from it ({named}{', …' if fed.height > _MAX_NAMED else ''})."
    found = values.sort(["domains", "feeds", "documents", "value"], descending=[True, True, True, False]).row(0, named=True)
    if found["value"] != widest["value"]:
        sentence += f" Counting a single document too, {found['value'][:60]} is found in most: {found['domains']}."
    yield sentence


def _histograms(manifest: Manifest) -> dict[str, dict[str | None, list[int]]]:
    """Documents by bin of distance and of margin: of each domain, and of all under None."""
    found: dict[str, dict[str | None, list[int]]] = {}
    for kind in ("distance", "margin"):
        binned = (pl.col(kind) / BIN).floor().cast(pl.Int32).clip(0, None).alias("bin")
        rows = _collect(manifest, manifest.scan().filter(pl.col(kind).is_not_null()).group_by("domain", binned).agg(pl.len()))
        bins = int(rows["bin"].max() or 0) + 1 if rows.height else 0  # type: ignore[arg-type]  # a column of integers
        table: dict[str | None, list[int]] = {None: [0] * bins}
        for domain, number, documents in rows.iter_rows():
            table.setdefault(domain, [0] * bins)[number] = documents
            table[None][number] += documents
        found[kind] = table
    return found


def _borderline(manifest: Manifest, limits: Limits) -> Iterator[dict[str, Any]]:
    """The documents of the smallest margins, which a slightly other rule would have placed elsewhere."""
    columns = ["doc_id", "domain", "distance", "second_domain", "second_distance", "margin", "source", "split"]
    kept = text_columns(manifest)[1:4]
    query = (
        manifest.scan().select([*columns, *kept]).filter(pl.col("margin").is_not_null()).bottom_k(limits.borderline, by="margin")
    )
    labels = {domain.domain: domain.label for domain in manifest.domains}
    for row in _collect(manifest, query).sort(["margin", "doc_id"]).iter_rows(named=True):
        document = manifest.find(row["doc_id"], ["text"]).document or {"text": ""}
        excerpt = " ".join(document["text"][: 2 * limits.excerpt].split())[: limits.excerpt]
        values = {name: str(row.pop(name) or "") for name in kept}
        names = {"label": labels[row["domain"]], "second_label": labels.get(row["second_domain"])}
        yield {**row, **names, "excerpt": excerpt, "kept": values}


def _borders(manifest: Manifest, limits: Limits) -> dict[str, Any]:
    """How many documents have a margin below one bin, and between which domains they lie, whichever of the two they are in."""
    names = pl.concat_list("domain", "second_domain").list.sort()
    pair = [names.list.get(0).alias("one"), names.list.get(1).alias("other")]
    near = manifest.scan().filter(pl.col("margin") < BIN).group_by(pair).agg(pl.len().alias("documents"))
    rows = _collect(manifest, near).sort(["documents", "one", "other"], descending=[True, False, False])
    labels = {domain.domain: domain.label for domain in manifest.domains}
    pairs = [{**row, "label": labels.get(row["one"]), "other_label": labels.get(row["other"])} for row in rows.to_dicts()]
    return {"documents": int(rows["documents"].sum()), "num_pairs": len(pairs), "pairs": pairs[: limits.values]}


def _quarantine(manifest: Manifest, limits: Limits) -> dict[str, Any]:
    counts = manifest.body.counts
    reasons = [(reason, amount, "quarantined") for reason, amount in counts.quarantined.items()]
    reasons += [(reason, amount, "duplicate") for reason, amount in counts.duplicates.items()]
    names = [entry.path for entry in manifest.body.files if entry.path.startswith("quarantine/")]
    rows = scan(manifest.store, names, QUARANTINE)
    some = rows.select(["reason", "detail", "source_path", "source_row", "doc_id", "num_bytes"]).group_by("reason").head(3)
    ordered = some.sort(["reason", "source_path", "source_row"])
    return {
        "reasons": [{"reason": r, "records": a.records, "bytes": a.bytes, "kind": kind} for r, a, kind in sorted(reasons)],
        "examples": _collect(manifest, ordered).head(limits.quarantined).to_dicts(),
    }


def _history(manifest: Manifest) -> list[dict[str, Any]]:
    """Every commit up to this one."""
    history = []
    for version in versions(manifest.store):
        if version <= manifest.version:
            _, commit = read_commit(manifest.store, version)
            row = {"version": version, "commit": commit.body_sha256, "created_at": commit.created_at, "actor": commit.actor}
            history.append({**row, "documents": commit.body.counts.published.records, "run": commit.body.run_id})
    return history


def _files(manifest: Manifest) -> list[dict[str, Any]]:
    folders: dict[str, list[int]] = {}
    for entry in manifest.body.files:
        folders.setdefault(entry.path.split("/")[0], []).append(entry.bytes)
    return [{"folder": folder, "files": len(sizes), "bytes": sum(sizes)} for folder, sizes in sorted(folders.items())]


def _flat(value: Any, prefix: str = "") -> dict[str, str]:
    """Return a nested configuration with dotted keys."""
    if not isinstance(value, dict) or not value:
        return {prefix: "null" if value is None else str(value)}
    return {
        key: text for name, item in value.items() for key, text in _flat(item, f"{prefix}.{name}" if prefix else name).items()
    }


def _collect(manifest: Manifest, query: pl.LazyFrame) -> pl.DataFrame:
    try:
        return query.collect(engine="streaming")
    except (OSError, pa.ArrowException, pl.exceptions.PolarsError) as error:
        raise DamagedError("data", f"{manifest.store.location} cannot be read ({error}): run lmsplit verify --deep") from error
